//! Configurations with one mistake each.

use crate::mistakes;

/// A service that is right, at line 1, with `rest` below it.
pub fn below_service(rest: &str) -> String {
    format!("[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"nat\"\n{rest}")
}

/// Each: the text, the line at fault, the key at fault, a part of the problem.
pub type Bad = (&'static str, usize, &'static str, &'static str);

/// `text` has one mistake, and it is this one.
#[track_caller]
pub fn assert_mistake(text: &str, line: usize, key: &str, part: &str) {
    let errors = mistakes(text);
    assert_eq!(errors.len(), 1, "{text}\n{errors:#?}");
    let error = &errors[0];
    assert_eq!(
        (error.line, error.key.as_str()),
        (line, key),
        "{text}\n{error}"
    );
    assert!(error.problem.contains(part), "{text}\n{error}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}

const BAD_FILES: &[Bad] = &[
    ("name = ", 1, "", "string"),
    ("\n[tunnel\n", 2, "", "unclosed table"),
    ("name = \"a\"\nname = \"b\"", 2, "", "duplicate key"),
    ("[[service]]\nvip = 10.0.0.1:80/tcp", 2, "", ""),
    (
        "name = \"Edge\"",
        1,
        "name",
        "use 1 to 32 of a-z, 0-9 and -",
    ),
    ("name = \"\"", 1, "name", "use 1 to 32"),
    (
        "name = 7",
        1,
        "name",
        "expected a string in quotes, found a number",
    ),
    (
        "\ninterface = [\"eth0\"]",
        2,
        "interface",
        "did you mean `interfaces`?",
    ),
    (
        "interfaces = \"eth0\"",
        1,
        "interfaces",
        "expected an array of strings, found a string",
    ),
    (
        "interfaces = [\n\"eth0\",\n3]",
        3,
        "interfaces",
        "found a number",
    ),
    (
        "interfaces = [\"eth0\",\n\"eth0\"]",
        2,
        "interfaces",
        "`eth0` stands here twice",
    ),
    (
        "interfaces = [\"an-interface-too-long\"]",
        1,
        "interfaces",
        "is not an interface's name",
    ),
    ("metrics = \"9150\"", 1, "metrics", "127.0.0.1:9150"),
    ("heartbeat = \"9151\"", 1, "heartbeat", "0.0.0.0:9151"),
    ("metrics = true", 1, "metrics", "found true or false"),
    (
        "tunnel = \"10.0.0.0/8\"",
        1,
        "tunnel",
        "expected a table, found a string",
    ),
    (
        "[tunnel]\nsource = \"10.0.0.0/8\"",
        2,
        "tunnel.source",
        "did you mean `source_v",
    ),
    (
        "unknown_port = \"close\"",
        1,
        "unknown_port",
        "`close` is not what unknown_port can be: use \"drop\", \"reset\", \"unreachable\" or \"pass\"",
    ),
    (
        "vlans = \"all\"",
        1,
        "vlans",
        "`all` is not what vlans can be: use \"auto\", \"on\" or \"off\"",
    ),
    ("[tunnel]\ngue_port = 0", 2, "tunnel.gue_port", "1 to 65535"),
    (
        "[tunnel]\nsource_v4 = \"10.255.0.1/16\"",
        2,
        "tunnel.source_v4",
        "write 10.255.0.0/16",
    ),
    (
        "[tunnel]\nsource_v4 = \"10.255.0.1\"",
        2,
        "tunnel.source_v4",
        "such as 10.255.0.0/16",
    ),
    (
        "[tunnel]\nsource_v4 = \"fd00::/64\"",
        2,
        "tunnel.source_v4",
        "not an IPv4 prefix",
    ),
    (
        "[tunnel]\nsource_v4 = \"0.0.0.0/0\"",
        2,
        "tunnel.source_v4",
        "/8 or longer",
    ),
    (
        "[tunnel]\nsource_v6 = \"ff02::/64\"",
        2,
        "tunnel.source_v6",
        "a unicast prefix",
    ),
    (
        "[limits]\nservices = 0",
        2,
        "limits.services",
        "0 is out of range: 1 to",
    ),
    (
        "[limits]\nbackends = 1.5",
        2,
        "limits.backends",
        "found a number with a fraction",
    ),
    (
        "[limits]\nring_slots = 99999999999999999999",
        2,
        "limits.ring_slots",
        "out of range",
    ),
    (
        "[limits]\nslots = 1",
        2,
        "limits.slots",
        "here can be services, backends, ring_slots, flows, half_open, fragments",
    ),
    ("[limits]\nflows = 0", 2, "limits.flows", "1 to 16777216"),
    (
        "[limits]\nfragments = 4194305",
        2,
        "limits.fragments",
        "1 to 4194304",
    ),
    (
        "[limits]\nhalf_open = 16777217",
        2,
        "limits.half_open",
        "1 to 16777216",
    ),
    (
        "[limits]\nflow = 1",
        2,
        "limits.flow",
        "did you mean `flows`?",
    ),
    (
        "[service]\nvip = \"10.0.0.1:80/tcp\"",
        1,
        "service",
        "each opened by its [[header]]",
    ),
    (
        "[[services]]\nvip = \"10.0.0.1:80/tcp\"",
        1,
        "services",
        "did you mean `service`?",
    ),
    (
        "[[service]]\nmode = \"nat\"",
        1,
        "service[0].vip",
        "write vip = \"10.0.0.1:80/tcp\"",
    ),
    (
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"",
        1,
        "service[0].mode",
        "write mode = \"ipip\"",
    ),
    (
        "[[service]]\nmode = \"nat\"\nvip = \"10.0.0.1:80/icmp\"",
        3,
        "service[0].vip",
        "write ADDRESS:PORT/PROTOCOL",
    ),
    (
        "[[service]]\nmode = \"nat\"\nvip = \"10.0.0.1:0/tcp\"",
        3,
        "service[0].vip",
        "10.0.0.1:0",
    ),
    (
        "[[service]]\nmode = \"nat\"\nvip = \"127.0.0.1:80/tcp\"",
        3,
        "service[0].vip",
        "not a routable unicast address",
    ),
    (
        "[[service]]\nmode = \"nat\"\nvip = \"[2001:db8::1%3]:80/tcp\"",
        3,
        "service[0].vip",
        "write [2001:db8::1]:80",
    ),
    (
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"NAT\"",
        3,
        "service[0].mode",
        "use \"nat\", \"full-nat\", \"ipip\", \"gue\" or \"l2\"",
    ),
];

/// Below a service of three lines in mode `nat`.
const BAD_SERVICES: &[Bad] = &[
    (
        "ring_size = 1000",
        4,
        "service[0].ring_size",
        "1000 is not one of [251, 1021",
    ),
    ("ring_size = -1", 4, "service[0].ring_size", "out of range"),
    (
        "scheduler = \"rr\"",
        4,
        "service[0].scheduler",
        "`rr` is not a scheduler: use \"maglev\", \"source-hash\", \"three-tuple-hash\", \"round-robin\", \"weighted-round-robin\", \"least-connections\", \"weighted-least-connections\" or \"power-of-two-choices\"",
    ),
    (
        "scheduler = \"Maglev\"",
        4,
        "service[0].scheduler",
        "is not a scheduler",
    ),
    (
        "flow_state = true",
        4,
        "service[0].flow_state",
        "expected a string in quotes, found true or false",
    ),
    (
        "flow_state = \"never\"",
        4,
        "service[0].flow_state",
        "use \"auto\" or \"always\"",
    ),
    (
        "on_down = \"drop\"",
        4,
        "service[0].on_down",
        "`drop` is not what on_down can be: use \"keep\" or \"resteer\"",
    ),
    (
        "no_backend = \"rst\"",
        4,
        "service[0].no_backend",
        "`rst` is not what no_backend can be: use \"drop\", \"reset\", \"unreachable\" or \"pass\"",
    ),
    (
        "mss_clamp = \"on\"",
        4,
        "service[0].mss_clamp",
        "`on` is nothing to lower an MSS to: \"off\", \"auto\", or 536 to 65495 bytes",
    ),
    (
        "mss_clamp = 535",
        4,
        "service[0].mss_clamp",
        "535 is out of range: 536 to 65495 bytes",
    ),
    (
        "mss_clamp = -1",
        4,
        "service[0].mss_clamp",
        "`-1` is nothing to lower an MSS to",
    ),
    (
        "mss_clamp = true",
        4,
        "service[0].mss_clamp",
        "expected a string in quotes or a number, found true or false",
    ),
    (
        "second_hop = true",
        4,
        "service[0].second_hop",
        "has no room to tell backends who else may have a flow: use mode \"gue\"",
    ),
    (
        "on_dwon = \"keep\"",
        4,
        "service[0].on_dwon",
        "did you mean `on_down`?",
    ),
    (
        "moving_time = 900",
        4,
        "service[0].moving_time",
        "expected a string in quotes, found a number",
    ),
    (
        "moving_time = \"fast\"",
        4,
        "service[0].moving_time",
        "such as 500ms, 2s or 1m",
    ),
    (
        "moving_time = \"8days\"",
        4,
        "service[0].moving_time",
        "8days is out of range: 0s to 1 week",
    ),
    (
        "moving_time = \"0s\"\nscheduler = \"least-connections\"",
        4,
        "service[0].moving_time",
        "use scheduler \"maglev\", \"source-hash\" or \"three-tuple-hash\"",
    ),
    (
        "flow_state = \"always\"\nmoving_time = \"0s\"",
        5,
        "service[0].moving_time",
        "use flow_state \"auto\"",
    ),
    (
        "persistence = \"1m\"\nmoving_time = \"0s\"",
        5,
        "service[0].moving_time",
        "leave persistence out",
    ),
    (
        "persistence = \"8d\"",
        4,
        "service[0].persistence",
        "8days is out of range: 0s to 1 week",
    ),
    (
        "persistence = 5",
        4,
        "service[0].persistence",
        "expected a string in quotes, found a number",
    ),
    (
        "persistence_prefix = 33",
        4,
        "service[0].persistence_prefix",
        "33 is out of range: 1 to 32",
    ),
    (
        "persistence_prefix = 0",
        4,
        "service[0].persistence_prefix",
        "0 is out of range: 1 to 128",
    ),
    (
        "dead_after = \"169h\"",
        4,
        "service[0].dead_after",
        "0s to 1 week",
    ),
    (
        "dead_after = \"1s 1us\"",
        4,
        "service[0].dead_after",
        "whole milliseconds",
    ),
    (
        "health = \"tcp\"",
        4,
        "service[0].health",
        "expected a table, found a string",
    ),
    (
        "health = {}",
        4,
        "service[0].health.type",
        "write type = \"tcp\"",
    ),
    (
        "health = { type = \"carp\" }",
        4,
        "service[0].health.type",
        "use \"tcp\", \"http\", \"https\", \"udp\"",
    ),
    (
        "health = { type = \"tcp\", path = \"/\" }",
        4,
        "service[0].health.path",
        "is for type = \"http\" or \"https\" only, not \"tcp\"",
    ),
    (
        "[service.health]\ntype = \"http\"\npath = \"health\"",
        6,
        "service[0].health.path",
        "must start with /",
    ),
    (
        "[service.health]\ntype = \"http\"\nhost = \"\"",
        6,
        "service[0].health.host",
        "is not a host name",
    ),
    (
        "[service.health]\ntype = \"tcp\"\nport = 0",
        6,
        "service[0].health.port",
        "1 to 65535",
    ),
    (
        "[service.health]\ntype = \"tcp\"\ninterval = \"fast\"",
        6,
        "service[0].health.interval",
        "such as 500ms",
    ),
    (
        "[service.health]\ntype = \"tcp\"\ninterval = 1",
        6,
        "service[0].health.interval",
        "expected a string in quotes",
    ),
    (
        "[service.health]\ntype = \"tcp\"\ninterval = \"2h\"",
        6,
        "service[0].health.interval",
        "10 ms to 1 hour",
    ),
    (
        "[service.health]\ntype = \"tcp\"\ntimeout = \"1500us\"",
        6,
        "service[0].health.timeout",
        "whole milliseconds",
    ),
    (
        "[service.health]\ntype = \"tcp\"\ntimeout = \"0s\"",
        6,
        "service[0].health.timeout",
        "1 ms to the interval",
    ),
    (
        "[service.health]\ntype = \"tcp\"\nrise = 0",
        6,
        "service[0].health.rise",
        "1 to 100",
    ),
    (
        "[service.health]\ntype = \"tcp\"\nfail = 3",
        6,
        "service[0].health.fail",
        "did you mean `fall`?",
    ),
    (
        "[[service.backends]]\naddress = \"10.1.0.2:80\"",
        4,
        "service[0].backends",
        "did you mean `backend`?",
    ),
    (
        "backend = [\"10.1.0.2:80\"]",
        4,
        "service[0].backend",
        "expected a table, found a string",
    ),
    (
        "[[service.backend]]\nweight = 1",
        4,
        "service[0].backend[0].address",
        "write address = \"10.1.0.2:80\"",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2\"",
        5,
        "service[0].backend[0].address",
        "write ADDRESS:PORT",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:0\"",
        5,
        "service[0].backend[0].address",
        "port 0",
    ),
    (
        "[[service.backend]]\naddress = \"224.0.0.1:80\"",
        5,
        "service[0].backend[0].address",
        "unicast",
    ),
    (
        "[[service.backend]]\naddress = \"[fd00::2]:80\"",
        5,
        "service[0].backend[0].address",
        "use mode \"ipip\"",
    ),
    (
        "[[service.backend]]\naddress = \"10.0.0.1:81\"",
        5,
        "service[0].backend[0].address",
        "the service's own address",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nweight = 1001",
        6,
        "service[0].backend[0].weight",
        "0 to 1000",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nweight = \"1\"",
        6,
        "service[0].backend[0].weight",
        "expected a number",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nmax_connections = 0",
        6,
        "service[0].backend[0].max_connections",
        "1 to 4294967295",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nmax_flow_rate = 0",
        6,
        "service[0].backend[0].max_flow_rate",
        "1 to 4294967295",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nmax_bandwidth = \"fast\"",
        6,
        "service[0].backend[0].max_bandwidth",
        "such as \"800Mbit/s\" or \"1.5G\"",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nmax_bandwidth = 0",
        6,
        "service[0].backend[0].max_bandwidth",
        "such as \"800Mbit/s\"",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nmax_conections = 1",
        6,
        "service[0].backend[0].max_conections",
        "did you mean `max_connections`?",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\ntier = 16",
        6,
        "service[0].backend[0].tier",
        "0 to 15",
    ),
    (
        "failback = \"never\"",
        4,
        "service[0].failback",
        "\"automatic\", \"manual\", or a time",
    ),
    (
        "failback = \"15days\"",
        4,
        "service[0].failback",
        "0s to 1 week",
    ),
    (
        "slow_start = \"30s from 0%\"",
        4,
        "service[0].slow_start",
        "from 1% to 100%",
    ),
    (
        "slow_start = \"15days\"",
        4,
        "service[0].slow_start",
        "0s to 1 week",
    ),
    (
        "scheduler = \"round-robin\"\nslow_start = \"30s\"",
        5,
        "service[0].slow_start",
        "use the weighted one",
    ),
    (
        "adaptive = \"latency\"",
        4,
        "service[0].adaptive",
        "a table",
    ),
    (
        "adaptive = {}",
        4,
        "service[0].adaptive.from",
        "write from = [\"latency\"]",
    ),
    (
        "adaptive = { from = [] }",
        4,
        "service[0].adaptive.from",
        "is empty",
    ),
    (
        "adaptive = { from = [\"luck\"] }",
        4,
        "service[0].adaptive.from",
        "use \"latency\", \"handshake\", \"flows\" or \"agent\"",
    ),
    (
        "adaptive = { from = [\"latency\"], least = 100, most = 100 }",
        4,
        "service[0].adaptive.dead_band",
        "none would ever move",
    ),
    (
        "adaptive = { from = [\"latency\"], least = 80, most = 100 }",
        4,
        "service[0].adaptive.dead_band",
        "25% is as wide as from 80% to 100%",
    ),
    (
        "adaptive = { from = [\"latency\"], least = 0 }",
        4,
        "service[0].adaptive.least",
        "1 to 100",
    ),
    (
        "adaptive = { from = [\"latency\"], interval = \"1ms\" }",
        4,
        "service[0].adaptive.interval",
        "1s to 1h",
    ),
    (
        "adaptive = { from = [\"flows\"] }\nbackend = [{ address = \"10.1.0.2:80\" }]",
        4,
        "service[0].adaptive.from",
        "give backends max_connections",
    ),
    (
        "adaptive = { from = [\"agent\"] }",
        4,
        "service[0].adaptive.from",
        "no check is of type \"agent\"",
    ),
    (
        "health = { type = \"heartbeat\" }\nadaptive = { from = [\"latency\"] }",
        5,
        "service[0].adaptive.from",
        "no check has any",
    ),
    (
        "scheduler = \"least-connections\"\nadaptive = { from = [\"latency\"] }",
        5,
        "service[0].adaptive",
        "use the weighted one",
    ),
    (
        "flap_damping = \"sometimes\"",
        4,
        "service[0].flap_damping",
        "as \"10s to 2m\"",
    ),
    (
        "flap_damping = \"500ms\"",
        4,
        "service[0].flap_damping",
        "1s or more",
    ),
    (
        "flap_damping = \"10m to 5m\"",
        4,
        "service[0].flap_damping",
        "5m is shorter than 10m",
    ),
    (
        "flap_damping = \"1s to 15days\"",
        4,
        "service[0].flap_damping",
        "0s to 1 week",
    ),
    (
        "passive = \"sometimes\"",
        4,
        "service[0].passive",
        "\"on\", \"off\", or settings between commas: refusals=3",
    ),
    (
        "passive = \"refusals=0,failing=0%\"",
        4,
        "service[0].passive",
        "nothing to keep a backend out for",
    ),
    (
        "passive = \"max_ejected=101%\"",
        4,
        "service[0].passive",
        "max_ejected is 101%: 0% to 100%",
    ),
    (
        "passive = \"handshake=9s\"",
        4,
        "service[0].passive",
        "handshake is 9s: 50ms to 5s",
    ),
    (
        "passive = \"ejection=10s,longest=5s\"",
        4,
        "service[0].passive",
        "longest is 5s: 10s to 7days",
    ),
    (
        "passive = \"volume=0\"",
        4,
        "service[0].passive",
        "volume is 0: 1 to 1000000",
    ),
    (
        "announce = \"yes\"",
        4,
        "service[0].announce",
        "true or false",
    ),
    ("panic_below = 101", 4, "service[0].panic_below", "0 to 100"),
    ("spill_below = 101", 4, "service[0].spill_below", "0 to 100"),
    (
        "moving_time = \"0s\"\n[[service.backend]]\naddress = \"10.1.0.2:80\"\nmax_connections = 1",
        7,
        "service[0].backend[0].max_connections",
        "leave max_connections out",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\nstate = \"off\"",
        6,
        "service[0].backend[0].state",
        "\"maintenance\", \"down\" or \"up\"",
    ),
    (
        "[[service.backend]]\naddress = \"10.1.0.2:80\"\n[[service.backend]]\naddress = \"10.1.0.2:80\"",
        7,
        "service[0].backend[1].address",
        "on line 5 already",
    ),
    (
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"nat\"",
        5,
        "service[1].vip",
        "on line 2 already",
    ),
    (
        "backend = [{ address = \"10.1.0.2:80\" }]\n[[service]]\nvip = \"10.0.0.2:80/tcp\"\nmode = \"nat\"\n[[service.backend]]\naddress = \"10.1.0.2:80\"",
        9,
        "service[1].backend[0].address",
        "already serves 10.0.0.1:80/tcp in nat mode",
    ),
    (
        "[limits]\nservices = 1\n[[service]]\nvip = \"10.0.0.2:80/tcp\"\nmode = \"nat\"",
        6,
        "service[1]",
        "limits.services = 1: raise it",
    ),
    (
        "backend = [{ address = \"10.1.0.2:80\" },\n{ address = \"10.1.0.3:80\" }]\n[limits]\nbackends = 1",
        5,
        "service[0].backend[1]",
        "limits.backends = 1: raise it",
    ),
];

#[test]
fn bad_files_are_refused_with_line_key_and_remedy() {
    for (text, line, key, part) in BAD_FILES {
        assert_mistake(text, *line, key, part);
    }
}

#[test]
fn bad_services_are_refused_with_line_key_and_remedy() {
    for (rest, line, key, part) in BAD_SERVICES {
        assert_mistake(&below_service(rest), *line, key, part);
    }
}
