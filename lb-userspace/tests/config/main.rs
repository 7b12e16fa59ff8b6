//! The configuration format: what is read, and how mistakes are told.

mod access;
mod address_pool;
mod bad;
mod bad_checks;
mod checks;
mod quic;
mod source_routes;

use std::time::Duration;

use lb_userspace::{
    config::{self, Config, ConfigError, Limits},
    model::{
        Adaptive, Admin, DEAD_AFTER, Failback, FlowState, Health, Http, Mode, MssClamp, OnDown,
        Probe, Quic, Scheduler, Service, Signal, State, Unserved, Vlans,
    },
};

const GOOD: &str = r#"
name = "edge-1"
interfaces = ["eth0", "eth1"]
metrics = "127.0.0.1:9150"
unknown_port = "unreachable"
vlans = "on"

[tunnel]
source_v4 = "10.255.0.0/16"
source_v6 = "fd00:ffff::/64"

[limits]
services = 10
backends = 100
ring_slots = 1000000
flows = 1000
half_open = 500
fragments = 250
access_prefixes = 125
sources = 60
sessions = 77

[[service]]
vip = "10.0.0.1:80/tcp"
mode = "ipip"
ring_size = 65537
scheduler = "weighted-least-connections"
flow_state = "always"
on_down = "resteer"
moving_time = "10m"
dead_after = "0s"
no_backend = "reset"
mss_clamp = 1_360
persistence = "5m"
persistence_prefix = 24
spill_below = 50
failback = "30s"
slow_start = "45s from 20%"
adaptive = { from = ["latency", "handshake"], least = 30, most = 300, dead_band = 10, unsteady = 8, interval = "5s", latency_floor = "3ms" }
flap_damping = "10s to 2m"
passive = "refusals=2,window=20s"
panic_below = 40
announce = true
health = { type = "http", path = "/health", host = "x", port = 8080, interval = "1s", timeout = "500ms", rise = 2, fall = 4 }
[[service.backend]]
address = "10.1.0.2:80"
weight = 3
state = "draining"
max_connections = 400
[[service.backend]]
address = "[fd00::2]:80"
tier = 1

[[service]]
vip = "[2001:db8::1]:443/udp"
mode = "nat"
quic = { config_id = 2, server_id_length = 3, nonce_length = 7 }
backend = [{ address = "[fd00::3]:443", server_id = "0a0B0c" }]
health = { type = "none" }
"#;

fn read(text: &str) -> Config {
    config::parse(text, "lb.toml").unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn mistakes(text: &str) -> Vec<ConfigError> {
    match config::parse(text, "lb.toml") {
        Ok(config) => panic!("accepted: {config:#?}"),
        Err(errors) => errors,
    }
}

#[test]
fn every_key_of_the_format_is_read() {
    let config = read(GOOD);
    assert_eq!(config.name.as_deref(), Some("edge-1"));
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.metrics, Some("127.0.0.1:9150".parse().unwrap()));
    assert_eq!(config.unknown_port, Some(Unserved::Unreachable));
    assert_eq!(config.vlans, Vlans::On);
    assert_eq!(read("").vlans, Vlans::Auto);
    assert_eq!(config.tunnel.source_v4, Some(([10, 255, 0, 0].into(), 16)));
    assert_eq!(
        config.tunnel.source_v6,
        Some(("fd00:ffff::".parse().unwrap(), 64))
    );
    let limits = Limits {
        services: 10,
        backends: 100,
        ring_slots: 1_000_000,
        flows: 1_000,
        half_open: 500,
        fragments: 250,
        access_prefixes: 125,
        sources: 60,
        sessions: 77,
    };
    assert_eq!(config.limits, limits);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    let [first, second] = &config.services[..] else {
        panic!("{:#?}", config.services);
    };
    assert_eq!((first.mode, first.ring_size), (Mode::Ipip, Some(65_537)));
    assert_eq!(
        (first.scheduler, first.flow_state, first.on_down),
        (
            Scheduler::WeightedLeastConnections,
            FlowState::Always,
            Some(OnDown::Resteer)
        )
    );
    assert_eq!(
        (first.moving_time, first.dead_after),
        (Some(Duration::from_secs(600)), Duration::ZERO)
    );
    assert_eq!(first.no_backend, Unserved::Reset);
    assert_eq!(
        (first.mss_clamp, second.mss_clamp),
        (MssClamp::To(1_360), MssClamp::Off)
    );
    assert_eq!(
        (first.persistence, first.persistence_prefix),
        (Duration::from_secs(300), Some(24))
    );
    assert_eq!(
        (first.spill_below, first.failback, first.tiers()),
        (50, Failback::After(Duration::from_secs(30)), vec![0, 1])
    );
    assert_eq!(
        (second.spill_below, second.failback, second.tiers()),
        (70, Failback::Automatic, vec![0])
    );
    assert_eq!((first.panic_below, second.panic_below), (40, 0));
    assert_eq!((first.announce, second.announce), (true, false));
    let damping = |service: &Service| service.flap_damping.to_string();
    assert_eq!(
        (damping(first), damping(second)),
        ("10s to 2m".to_owned(), "off".to_owned())
    );
    let passive = |service: &Service| service.passive.to_string();
    assert_eq!(
        (passive(first), passive(second)),
        ("refusals=2,window=20s".to_owned(), "off".to_owned())
    );
    let slow = |service: &Service| service.slow_start.to_string();
    assert_eq!(
        (slow(first), slow(second)),
        ("45s from 20%".to_owned(), "off".to_owned())
    );
    let adaptive = Adaptive {
        from: [Signal::Latency, Signal::Handshake].into_iter().collect(),
        least: 30,
        most: 300,
        dead_band: 10,
        unsteady: 8,
        interval: Duration::from_secs(5),
        latency_floor: Duration::from_millis(3),
    };
    assert_eq!((first.adaptive, second.adaptive), (Some(adaptive), None));
    let http = Probe::Http(Http {
        path: "/health".to_owned(),
        host: Some("x".to_owned()),
        ..Http::default()
    });
    let [check] = &first.health.checks[..] else {
        panic!("{:#?}", first.health);
    };
    assert_eq!(check.probe, http);
    assert_eq!((check.port, check.rise, check.fall), (Some(8080), 2, 4));
    assert_eq!(check.interval, Duration::from_secs(1));
    assert_eq!(check.timeout, Duration::from_millis(500));
    assert_eq!(
        (first.backends[0].weight, first.backends[0].admin),
        (3, Admin::Draining)
    );
    assert_eq!(
        (first.backends[1].weight, first.backends[1].admin),
        (1, Admin::Active)
    );
    let limits: Vec<_> = first.backends.iter().map(|b| b.max_connections).collect();
    assert_eq!(limits, [Some(400), None]);
    assert_eq!((second.mode, &second.health), (Mode::Nat, &Health::none()));
    let quic = Quic {
        config_id: 2,
        server_id_length: 3,
        nonce_length: 7,
    };
    assert_eq!((first.quic, second.quic), (None, Some(quic)));
    let ids: Vec<_> = second.backends.iter().map(|b| b.server_id).collect();
    assert_eq!(ids, ["0a0b0c".parse().ok()]);
    assert_eq!(first.backends[0].server_id, None);
}

#[test]
fn what_is_not_given_has_its_default() {
    let config = read(&bad::below_service(""));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(
        (config.limits.flows, config.limits.half_open),
        (262_144, 65_536)
    );
    let service = &config.services[0];
    assert_eq!(
        (service.scheduler, service.flow_state, service.dead_after),
        (Scheduler::Maglev, FlowState::Auto, DEAD_AFTER)
    );
    assert_eq!((service.on_down, service.moving_time), (None, None));
    assert_eq!(
        (service.persistence, service.persistence_prefix),
        (Duration::ZERO, None)
    );
}

#[test]
fn every_scheduler_is_read_by_its_name() {
    for (name, scheduler) in [
        ("maglev", Scheduler::Maglev),
        ("source-hash", Scheduler::SourceHash),
        ("three-tuple-hash", Scheduler::ThreeTupleHash),
        ("round-robin", Scheduler::RoundRobin),
        ("weighted-round-robin", Scheduler::WeightedRoundRobin),
        ("least-connections", Scheduler::LeastConnections),
        (
            "weighted-least-connections",
            Scheduler::WeightedLeastConnections,
        ),
        ("power-of-two-choices", Scheduler::PowerOfTwoChoices),
    ] {
        let config = read(&bad::below_service(&format!("scheduler = \"{name}\"")));
        assert_eq!(config.services[0].scheduler, scheduler, "{name}");
    }
}

#[test]
fn what_is_accepted_is_a_valid_state() {
    let config = read(GOOD);
    assert_eq!(State::new(config.services).unwrap().services().len(), 2);
}

#[test]
fn the_example_of_the_readme_is_right_and_warns_of_nothing() {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let config = read(example);
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.limits, Limits::default(), "it shows the defaults");
    let service = &config.services[0];
    let plain = read(&bad::below_service("")).services.remove(0);
    assert_eq!(
        (service.on_down(), service.moving_time(), service.dead_after),
        (plain.on_down(), plain.moving_time(), plain.dead_after)
    );
}

#[test]
fn an_empty_file_is_a_configuration() {
    assert_eq!(read(""), Config::default());
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let errors = mistakes(
        r#"nmae = "x"
interfaces = ["a/b"]
[[service]]
vip = "10.0.0.1:80"
mode = "dsr"
[[service.backend]]
address = "10.1.0.2"
wieght = 1
[[service]]
vip = "10.0.0.2:80/tcp"
mode = "nat"
health = { type = "tcp", interval = "1s", timeout = "2s" }
[[service.backend]]
address = "10.0.0.2:80"
"#,
    );
    let found: Vec<_> = errors.iter().map(|e| (e.line, e.key.as_str())).collect();
    let expected = [
        (1, "nmae"),
        (2, "interfaces"),
        (4, "service[0].vip"),
        (5, "service[0].mode"),
        (7, "service[0].backend[0].address"),
        (8, "service[0].backend[0].wieght"),
        (12, "service[1].health.timeout"),
        (14, "service[1].backend[0].address"),
    ];
    assert_eq!(found, expected, "{errors:#?}");
}

#[test]
fn a_mistake_reads_as_file_line_column_key_and_remedy() {
    let errors = mistakes("\n  nmae = \"x\"\n");
    assert_eq!(
        errors[0].to_string(),
        "lb.toml:2:3: nmae: unknown key: did you mean `name`?"
    );
}

#[test]
fn columns_count_characters_and_not_bytes() {
    let errors = mistakes("interfaces = [\"ä\", \"a/b\"]");
    assert_eq!((errors[0].line, errors[0].column), (1, 20));
}

/// A service of two backends that is right, and a line below its header.
fn pool(rest: &str, options: [&str; 2]) -> String {
    let [one, other] = options;
    bad::below_service(&format!(
        "{rest}\nbackend = [{{ address = \"10.1.0.2:80\"{one} }}, {{ address = \"10.1.0.3:80\"{other} }}]"
    ))
}

#[test]
fn what_is_probably_not_meant_is_a_warning_with_its_line() {
    let (plain, unequal) = (["", ""], ["", ", weight = 2"]);
    let limited = [", max_connections = 200000", ", max_connections = 62145"];
    for (text, part) in [
        (bad::below_service(""), "has no backends"),
        (
            bad::below_service("backend = [{ address = \"10.1.0.2:80\", weight = 0 }]"),
            "all weights are 0",
        ),
        (
            pool("scheduler = \"round-robin\"", unequal),
            "use \"weighted-round-robin\"",
        ),
        (
            pool("scheduler = \"least-connections\"", unequal),
            "use \"weighted-least-connections\"",
        ),
        (
            pool("on_down = \"keep\"\nhealth = { type = \"none\" }", plain),
            "on_down has no effect, since health.type",
        ),
        (
            pool(
                "health = { type = \"none\" }\nflap_damping = \"10s\"",
                plain,
            ),
            "flap_damping has no effect, since health.type",
        ),
        (
            pool("health = { type = \"none\" }\npanic_below = 50", plain),
            "panic_below has no effect, since health.type",
        ),
        (
            pool("dead_after = \"0s\"", plain),
            "dead_after 0 makes every backend that is down dead",
        ),
        (
            pool("on_down = \"keep\"\nmoving_time = \"0s\"", plain),
            "on_down = \"keep\" has no effect, since moving_time 0",
        ),
        (
            pool("moving_time = \"59s\"", plain),
            "moving_time 59s is shorter",
        ),
        (
            pool("persistence_prefix = 24", plain),
            "persistence_prefix has no effect without persistence",
        ),
        (
            pool("", limited),
            "max_connections add up to 262145, but no more than limits.flows = 262144",
        ),
    ] {
        let warnings = read(&text).warnings;
        assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
        assert!(
            warnings[0].starts_with("lb.toml:1: service 10.0.0.1:80/tcp: "),
            "{warnings:?}"
        );
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
}

#[test]
fn what_only_looks_like_a_mistake_is_no_warning() {
    let (plain, unequal) = (["", ""], ["", ", weight = 2"]);
    for text in [
        pool("scheduler = \"weighted-round-robin\"", unequal),
        pool("scheduler = \"round-robin\"", ["", ", weight = 0"]),
        pool("on_down = \"resteer\"\ndead_after = \"0s\"", plain),
        pool("on_down = \"resteer\"\nmoving_time = \"0s\"", plain),
        pool("moving_time = \"0s\"", plain),
        pool("moving_time = \"1m\"", plain),
        pool("", [", max_connections = 262144", ""]),
    ] {
        assert_eq!(read(&text).warnings, Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_udp_service_checked_by_tcp_on_its_own_port_is_a_warning() {
    let text = |health: &str| {
        format!(
            "[[service]]\nvip = \"10.0.0.1:53/udp\"\nmode = \"nat\"\nbackend = [{{ address = \"10.1.0.2:53\" }}]\n{health}"
        )
    };
    assert!(read(&text("")).warnings[0].contains("set its port"));
    for health in [
        "health = { type = \"tcp\", port = 80 }",
        "health = { type = \"none\" }",
    ] {
        assert_eq!(read(&text(health)).warnings, Vec::<String>::new());
    }
}

#[test]
fn any_truncation_of_a_file_is_read_or_refused_and_never_panics() {
    for (end, _) in GOOD.char_indices() {
        let _ = config::parse(&GOOD[..end], "lb.toml");
    }
}

#[test]
fn services_of_a_group_have_what_the_first_one_says() {
    let config = read(
        r#"
[[service]]
vip = "10.0.0.1:80/tcp"
group = "web"
mode = "ipip"
scheduler = "source-hash"
persistence = "5m"
health = { type = "http", path = "/health" }
backend = [{ address = "10.1.0.2:80", weight = 3 }, { address = "10.1.0.3:80" }]

[[service]]
vip = "10.0.0.1:443/tcp"
group = "web"

[[service]]
vip = "10.0.0.1:8443/tcp"
group = "web"
mode = "ipip"
persistence = "5m"
backend = [{ address = "10.1.0.2:80", weight = 3 }, { address = "10.1.0.3:80" }]
"#,
    );
    assert_eq!(config.warnings, Vec::<String>::new());
    let [first, others @ ..] = &config.services[..] else {
        panic!("{:#?}", config.services);
    };
    assert_eq!(others.len(), 2);
    for other in others {
        let same = Service {
            id: other.id,
            ..first.clone()
        };
        assert_eq!(*other, same);
    }
}

#[test]
fn what_differs_from_the_group_is_a_mistake_where_it_stands() {
    let text = |more: &str| {
        format!(
            "[[service]]\nvip = \"10.0.0.1:80/tcp\"\ngroup = \"web\"\nmode = \"ipip\"\n\
             backend = [{{ address = \"10.1.0.2:80\" }}]\n\
             [[service]]\nvip = \"10.0.0.1:443/tcp\"\ngroup = \"web\"\n{more}\n"
        )
    };
    for (more, key, part) in [
        (
            "scheduler = \"round-robin\"",
            "service[1].scheduler",
            "round-robin here and maglev there, which is 10.0.0.1:80/tcp of the same group",
        ),
        (
            "mode = \"nat\"",
            "service[1].mode",
            "nat here and ipip there",
        ),
        (
            "backend = [{ address = \"10.1.0.9:80\" }]",
            "service[1].backend",
            "10.1.0.9:80 is here and not there",
        ),
        (
            "health = { type = \"none\" }",
            "service[1].health",
            "the checks are not the same",
        ),
    ] {
        let errors = mistakes(&text(more));
        assert_eq!(errors.len(), 1, "{errors:#?}");
        assert_eq!(
            (errors[0].line, errors[0].key.as_str()),
            (9, key),
            "{errors:#?}"
        );
        assert!(errors[0].problem.contains(part), "{errors:#?}");
    }
    let errors =
        mistakes("[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"nat\"\ngroup = \"a b\"\n");
    assert_eq!(
        (errors[0].line, errors[0].key.as_str()),
        (4, "service[0].group")
    );
}
