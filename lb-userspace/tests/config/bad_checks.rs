//! Checks with one mistake each, below a service that is right otherwise.

use crate::bad::{Bad, assert_mistake, below_service};

#[test]
fn every_mistake_in_a_check_is_named_with_line_key_and_remedy() {
    for &(text, line, key, part) in CHECKS.iter().chain(LISTS) {
        assert_mistake(&below_service(text), line, key, part);
    }
}

/// As the one check of a service.
const CHECKS: &[Bad] = &[
    (
        "[service.health]\ntype = \"http\"\nstatus = [\"200\",\n\"2xx\"]",
        7,
        "service[0].health.status",
        "write \"200\" or \"200-399\"",
    ),
    (
        "health = { type = \"heartbeat\", detector = \"luck\" }",
        4,
        "service[0].health.detector",
        "use \"count\" or \"phi\"",
    ),
    (
        "health = { type = \"heartbeat\", phi_threshold = 8 }",
        4,
        "service[0].health.phi_threshold",
        "is for detector = \"phi\" only",
    ),
    (
        "health = { type = \"heartbeat\", detector = \"phi\", phi_window = 9 }",
        4,
        "service[0].health.phi_window",
        "10 to 1000",
    ),
    (
        "health = { type = \"heartbeat\", detector = \"phi\", phi_min_std_dev = \"0s\" }",
        4,
        "service[0].health.phi_min_std_dev",
        "1 ms to 1 hour",
    ),
    (
        "health = { type = \"tcp\", detector = \"phi\", phi_min_std_dev = \"100ms\" }",
        4,
        "service[0].health.phi_min_std_dev",
        "once it takes 561 ms more than usual, by when it has failed, the timeout being 500ms",
    ),
    (
        "health = { type = \"exec\", command = [\"/x\"], detector = \"phi\" }",
        4,
        "service[0].health.detector",
        "which type \"exec\" does not",
    ),
    (
        "health = { type = \"http\", status = \"200\" }",
        4,
        "service[0].health.status",
        "expected an array of strings, found a string",
    ),
    (
        "health = { type = \"http\", status = [] }",
        4,
        "service[0].health.status",
        "write [\"200-399\"]",
    ),
    (
        "health = { type = \"http\", method = \"PUT\" }",
        4,
        "service[0].health.method",
        "use \"GET\", \"HEAD\" or \"OPTIONS\"",
    ),
    (
        "health = { type = \"http\", method = \"HEAD\", body = \"ok\" }",
        4,
        "service[0].health.body",
        "an answer to HEAD has none: use method = \"GET\"",
    ),
    (
        "health = { type = \"http\", body = \"(\" }",
        4,
        "service[0].health.body",
        "not a regular expression",
    ),
    (
        "health = { type = \"http\", headers = [\"a\"] }",
        4,
        "service[0].health.headers",
        "expected a table of strings, found an array",
    ),
    (
        "health = { type = \"http\", headers = { a = 1 } }",
        4,
        "service[0].health.headers.a",
        "expected a string in quotes, found a number",
    ),
    (
        "health = { type = \"http\", headers = { Host = \"x\" } }",
        4,
        "service[0].health.headers",
        "`host` names the host",
    ),
    (
        "health = { type = \"http\", tls = {} }",
        4,
        "service[0].health.tls",
        "is for type = \"https\" or \"grpc\" only",
    ),
    (
        "health = { type = \"https\", tls = { insecure = \"yes\" } }",
        4,
        "service[0].health.tls.insecure",
        "expected true or false, found a string",
    ),
    (
        "health = { type = \"https\", tls = { certificate = \"/ca.pem\" } }",
        4,
        "service[0].health.tls.certificate",
        "here can be server_name, ca, insecure",
    ),
    (
        "[service.health]\ntype = \"https\"\n[service.health.tls]\nca = \"ca.pem\"",
        7,
        "service[0].health.tls.ca",
        "is not an absolute path",
    ),
    (
        "health = { type = \"udp\", payload = \"hex:0\" }",
        4,
        "service[0].health.payload",
        "as in hex:00ff",
    ),
    (
        "health = { type = \"udp\", expect = \"*\" }",
        4,
        "service[0].health.expect",
        "not a regular expression",
    ),
    (
        "health = { type = \"dns\" }",
        4,
        "service[0].health.query",
        "write query = \"example.org\"",
    ),
    (
        "health = { type = \"dns\", query = \"example.org\", record = \"AA\" }",
        4,
        "service[0].health.record",
        "use A, AAAA, SOA",
    ),
    (
        "health = { type = \"dns\", query = \"example.org\", transport = \"tls\" }",
        4,
        "service[0].health.transport",
        "use \"udp\" or \"tcp\"",
    ),
    (
        "health = { type = \"icmp\", port = 7 }",
        4,
        "service[0].health.port",
        "asks no port: leave it out",
    ),
    (
        "health = { type = \"exec\" }",
        4,
        "service[0].health.command",
        "write command = [",
    ),
    (
        "health = { type = \"exec\", command = \"/bin/true\" }",
        4,
        "service[0].health.command",
        "expected an array of strings",
    ),
    (
        "health = { type = \"exec\", command = [\"true\"] }",
        4,
        "service[0].health.command",
        "is not an absolute path",
    ),
    (
        "health = { type = \"agent\" }",
        4,
        "service[0].health.port",
        "write port = 9777",
    ),
    (
        "health = { type = \"agent\", port = 9777, unreachable = \"down\" }",
        4,
        "service[0].health.unreachable",
        "use \"keep\" or \"fail\"",
    ),
    (
        "health = { type = \"heartbeat\", path = \"/\" }",
        4,
        "service[0].health.path",
        "is for type = \"http\" or \"https\" only, not \"heartbeat\"",
    ),
    (
        "[service.health]\ntype = \"tcp\"\nfast_interval = \"2s\"",
        6,
        "service[0].health.fast_interval",
        "10 ms to the interval, 1s",
    ),
    (
        "[service.health]\ntype = \"tcp\"\njitter = \"600ms\"",
        6,
        "service[0].health.jitter",
        "half of the shortest interval, 500ms",
    ),
    (
        "[service.health]\ntype = \"tcp\"\nname = \"The Web\"",
        6,
        "service[0].health.name",
        "use 1 to 32 of a-z",
    ),
];

/// Among several.
const LISTS: &[Bad] = &[
    (
        "checks = []",
        4,
        "service[0].checks",
        "is empty: write a check",
    ),
    (
        "checks = { type = \"tcp\" }",
        4,
        "service[0].checks",
        "expected an array of tables",
    ),
    (
        "checks = [{ type = \"tcp\" },\n{ type = \"tcp\", rise = 0 }]",
        5,
        "service[0].checks[1].rise",
        "1 to 100",
    ),
    (
        "checks = [{ type = \"tcp\" },\n{ type = \"tcp\", timeout = \"9s\" }]",
        5,
        "service[0].checks[1].timeout",
        "1 ms to the interval",
    ),
    (
        "health = { type = \"tcp\" }\nchecks = [{ type = \"icmp\" }]",
        4,
        "service[0].health",
        "stands beside checks",
    ),
    (
        "health = { type = \"tcp\" }\ncombine = \"any\"",
        5,
        "service[0].combine",
        "write them as checks",
    ),
    (
        "checks = [{ type = \"tcp\" }]\ncombine = \"most\"",
        5,
        "service[0].combine",
        "use \"all\" or \"any\"",
    ),
    (
        "checks = [{ type = \"tcp\" }, { type = \"none\" }]",
        4,
        "service[0].checks",
        "stands alone",
    ),
    (
        "checks = [{ type = \"tcp\", name = \"a\" }, { type = \"icmp\", name = \"a\" }]",
        4,
        "service[0].checks",
        "two are called `a`",
    ),
    (
        "checks = [{ type = \"heartbeat\" }, { type = \"heartbeat\" }]",
        4,
        "service[0].checks",
        "two are of type \"heartbeat\"",
    ),
];
