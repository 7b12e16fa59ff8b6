//! Bad calls: each is refused with its status, its code and a line that says what would be right,
//! and changes nothing.

mod flows;

use serde_json::Value;

use crate::{WEB, ask, support::FakeAgent};

/// Method, path, body, and then status, code and a part of the message.
type Bad = (
    &'static str,
    &'static str,
    &'static str,
    u16,
    &'static str,
    &'static str,
);

const WEB_BACKENDS: &str = "/v1/services/10.0.0.1:80%2Ftcp/backends";
const BACKEND: &str = "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.2:80";

const BAD_PATHS: &[Bad] = &[
    ("GET", "/", "", 404, "no_route", "/v1/status"),
    (
        "GET",
        "/v2/status",
        "",
        404,
        "no_route",
        "no path /v2/status",
    ),
    ("GET", "/v1/service", "", 404, "no_route", "/v1/services"),
    (
        "GET",
        "/v1/services/10.0.0.1:80/tcp",
        "",
        404,
        "no_route",
        "percent-encoded",
    ),
    (
        "PUT",
        "/v1/services",
        "{}",
        405,
        "no_method",
        "PUT is not a method of /v1/services",
    ),
    (
        "POST",
        "/v1/status",
        "{}",
        405,
        "no_method",
        "POST is not a method",
    ),
    (
        "DELETE",
        WEB_BACKENDS,
        "",
        405,
        "no_method",
        "DELETE is not a method",
    ),
    (
        "GET",
        "/v1/services/web",
        "",
        400,
        "bad_service",
        "write ADDRESS:PORT/PROTOCOL",
    ),
    (
        "GET",
        "/v1/services/10.0.0.1%2Ftcp",
        "",
        400,
        "bad_service",
        "`10.0.0.1/tcp`",
    ),
    (
        "GET",
        "/v1/services/10.0.0.1:80%2Ficmp",
        "",
        400,
        "bad_service",
        "is not a service",
    ),
    (
        "GET",
        "/v1/services/127.0.0.1:80%2Ftcp",
        "",
        400,
        "invalid",
        "not a routable unicast",
    ),
    ("GET", "/v1/services/%ff", "", 400, "malformed", "UTF-8"),
    (
        "GET",
        "/v1/services/10.0.0.9:80%2Ftcp",
        "",
        404,
        "unknown_service",
        "lbctl service list",
    ),
    (
        "GET",
        "/v1/services/10.0.0.9:80%2Ftcp/backends",
        "",
        404,
        "unknown_service",
        "10.0.0.9:80/tcp",
    ),
    (
        "DELETE",
        "/v1/services/10.0.0.9:80%2Ftcp",
        "",
        404,
        "unknown_service",
        "no service",
    ),
    (
        "DELETE",
        "/v1/services/10.0.0.9:80%2Ftcp/backends/10.1.0.2:80",
        "",
        404,
        "unknown_service",
        "no service",
    ),
    (
        "DELETE",
        "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.9:80",
        "",
        404,
        "unknown_backend",
        "lbctl backend list",
    ),
    (
        "DELETE",
        "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.2",
        "",
        400,
        "bad_backend",
        "write ADDRESS:PORT",
    ),
    (
        "PATCH",
        "/v1/services/10.0.0.9:80%2Ftcp",
        "{\"scheduler\":\"maglev\"}",
        404,
        "unknown_service",
        "lbctl service list",
    ),
    (
        "POST",
        "/v1/flows",
        "",
        405,
        "no_method",
        "POST is not a method of /v1/flows",
    ),
    (
        "PATCH",
        "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.9:80",
        "{\"weight\":1}",
        404,
        "unknown_backend",
        "10.1.0.9:80",
    ),
];

const BAD_SERVICES: &[(&str, u16, &str, &str)] = &[
    ("", 400, "malformed", "the body is wrong"),
    ("[]", 400, "malformed", "the body is wrong"),
    ("{", 400, "malformed", "line 1 column 1"),
    ("\u{0}", 400, "malformed", "the body is wrong"),
    (r#"{"mode":"nat"}"#, 400, "malformed", "missing field `id`"),
    (
        r#"{"id":"10.0.0.2:80/tcp"}"#,
        400,
        "invalid",
        "mode: missing: give \"nat\"",
    ),
    (
        r#"{"id":"10.0.0.2","mode":"nat"}"#,
        400,
        "malformed",
        "write ADDRESS:PORT/PROTOCOL",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"dsr"}"#,
        400,
        "malformed",
        "expected one of `nat`, `full-nat`, `ipip`, `gue`, `l2`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","backend":[]}"#,
        400,
        "malformed",
        "unknown field `backend`, expected one of",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","mode":"nat"}"#,
        400,
        "malformed",
        "duplicate field `mode`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat"} x"#,
        400,
        "malformed",
        "trailing characters",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","ring_size":1000}"#,
        400,
        "invalid",
        "ring_size: 1000 is not one of",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","ring_size":-1}"#,
        400,
        "malformed",
        "invalid value",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"tcp"},"checks":[]}"#,
        400,
        "invalid",
        "stands beside checks",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","checks":[]}"#,
        400,
        "invalid",
        "0 are out of range: 1 to 8",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{}}"#,
        400,
        "malformed",
        "missing field `type`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"carp"}}"#,
        400,
        "malformed",
        "`none`, `tcp`, `http`, `https`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"tcp","path":"/"}}"#,
        400,
        "malformed",
        "unknown field `path`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"http","path":"x"}}"#,
        400,
        "invalid",
        "must start with /",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"http","host":"a b"}}"#,
        400,
        "invalid",
        "is not a host name",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"tcp","interval_ms":1}}"#,
        400,
        "invalid",
        "10 ms to 1 hour",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"tcp","timeout_ms":2000}}"#,
        400,
        "invalid",
        "1 ms to the interval, 1s",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"tcp","rise":0}}"#,
        400,
        "invalid",
        "check tcp: rise: 0 is out of range",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","health":{"type":"tcp","port":0}}"#,
        400,
        "invalid",
        "1 to 65535",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","backends":[{"address":"10.2.0.2:80"},{"address":"10.2.0.2:80"}]}"#,
        409,
        "duplicate_backend",
        "10.2.0.2:80",
    ),
    (
        r#"{"id":"10.0.0.1:80/tcp","mode":"ipip"}"#,
        409,
        "duplicate_service",
        "exists already",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","backends":[{"address":"10.1.0.2:80"}]}"#,
        409,
        "shared_nat_backend",
        "use mode \"ipip\"",
    ),
    (
        r#"{"id":"10.0.0.2:507/tcp","mode":"nat"}"#,
        507,
        "no_room",
        "raise limits.services",
    ),
    (
        r#"{"id":"10.0.0.2:500/tcp","mode":"nat"}"#,
        500,
        "kernel",
        "the kernel refused the change: EINVAL",
    ),
];

const BAD_BACKENDS: &[(&str, u16, &str, &str)] = &[
    ("{}", 400, "malformed", "missing field `address`"),
    (
        r#"{"address":"10.1.0.4"}"#,
        400,
        "malformed",
        "write ADDRESS:PORT",
    ),
    (
        r#"{"address":"web:80"}"#,
        400,
        "malformed",
        "`web:80` is not a backend",
    ),
    (
        r#"{"address":"10.1.0.4:80","admin":"active"}"#,
        400,
        "malformed",
        "unknown field `admin`",
    ),
    (
        r#"{"address":"10.1.0.4:80","weight":70000}"#,
        400,
        "malformed",
        "70000",
    ),
    (
        r#"{"address":"10.1.0.4:80","weight":1001}"#,
        400,
        "invalid",
        "0 to 1000",
    ),
    (
        r#"{"address":"10.1.0.4:80","max_connections":0}"#,
        400,
        "invalid",
        "0 lets no flow in",
    ),
    (
        r#"{"address":"10.1.0.4:80","state":"off"}"#,
        400,
        "malformed",
        "`maintenance`, `down`, `up`",
    ),
    (
        r#"{"address":"10.1.0.4:0"}"#,
        400,
        "invalid",
        "port 0 is not a port",
    ),
    (
        r#"{"address":"10.0.0.1:8080"}"#,
        400,
        "invalid",
        "the service's own address",
    ),
    (
        r#"{"address":"[fd00::1]:80"}"#,
        400,
        "invalid",
        "another address family",
    ),
    (
        r#"{"address":"[::ffff:10.1.0.4]:80"}"#,
        400,
        "invalid",
        "not a routable unicast",
    ),
    (
        r#"{"address":"10.1.0.2:80"}"#,
        409,
        "duplicate_backend",
        "lbctl backend weight",
    ),
];

const BAD_EDITS: &[(&str, u16, &str, &str)] = &[
    (
        "{}",
        400,
        "malformed",
        "give weight, state, max_connections, max_flow_rate, max_bandwidth or tier",
    ),
    (
        r#"{"max_connections":0}"#,
        400,
        "invalid",
        "or drain the backend",
    ),
    (
        r#"{"max_flow_rate":0}"#,
        400,
        "invalid",
        "0 carries nothing",
    ),
    (
        r#"{"max_bandwidth":0}"#,
        400,
        "invalid",
        "0 carries nothing",
    ),
    (
        r#"{"max_connections":-1}"#,
        400,
        "malformed",
        "invalid value",
    ),
    (r#"{"max_connections":4294967296}"#, 400, "malformed", "u32"),
    (r#"{"weight":1001}"#, 400, "invalid", "0 to 1000"),
    (r#"{"weight":-1}"#, 400, "malformed", "invalid value"),
    (
        r#"{"weight":"1"}"#,
        400,
        "malformed",
        "invalid type: string",
    ),
    (
        r#"{"state":"on"}"#,
        400,
        "malformed",
        "`maintenance`, `down`, `up`",
    ),
    (
        r#"{"address":"10.1.0.4:80"}"#,
        400,
        "malformed",
        "unknown field `address`",
    ),
    // Both or neither: the valid half must not take effect.
    (
        r#"{"weight":1001,"state":"draining"}"#,
        400,
        "invalid",
        "0 to 1000",
    ),
];

async fn assert_refused(agent: &FakeAgent, bad: Bad) {
    let (method, path, body, status, code, part) = bad;
    let before = agent.state();
    let (got, answer) = ask(agent, method, path, body).await;
    let call = format!("{method} {path} {body}: {got} {answer}");
    assert_eq!(
        (got, &answer["code"]),
        (status, &Value::from(code)),
        "{call}"
    );
    let message = answer["error"].as_str().unwrap();
    assert!(message.contains(part), "{call}");
    assert_eq!(message.lines().count(), 1, "{call}");
    assert_eq!(agent.state(), before, "{call}");
}

#[tokio::test]
async fn bad_paths_and_methods_are_refused() {
    let agent = FakeAgent::start(WEB);
    for bad in BAD_PATHS {
        assert_refused(&agent, *bad).await;
    }
}

#[tokio::test]
async fn bad_services_are_refused() {
    let agent = FakeAgent::start(WEB);
    for (body, status, code, part) in BAD_SERVICES {
        assert_refused(&agent, ("POST", "/v1/services", body, *status, code, part)).await;
    }
}

#[tokio::test]
async fn bad_backends_are_refused() {
    let agent = FakeAgent::start(WEB);
    for (body, status, code, part) in BAD_BACKENDS {
        assert_refused(&agent, ("POST", WEB_BACKENDS, body, *status, code, part)).await;
    }
}

#[tokio::test]
async fn bad_edits_are_refused_whole() {
    let agent = FakeAgent::start(WEB);
    for (body, status, code, part) in BAD_EDITS {
        assert_refused(&agent, ("PATCH", BACKEND, body, *status, code, part)).await;
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_below_is_read() {
    let agent = FakeAgent::start(WEB);
    let of = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    let (status, answer) = ask(&agent, "POST", "/v1/services", of((1 << 20) + 1)).await;
    assert_eq!((status, &answer["code"]), (413, &Value::from("too_large")));
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("at most 1048576 bytes")
    );
    let (status, answer) = ask(&agent, "POST", "/v1/services", of(1 << 20)).await;
    assert_eq!((status, &answer["code"]), (400, &Value::from("malformed")));
}

#[tokio::test]
async fn an_agent_that_stops_says_so() {
    let mut agent = FakeAgent::start(WEB);
    agent.end_loop().await;
    for (method, path) in [("GET", "/v1/status"), ("DELETE", BACKEND)] {
        assert_refused(
            &agent,
            (method, path, "", 503, "stopping", "try again once it runs"),
        )
        .await;
    }
}
