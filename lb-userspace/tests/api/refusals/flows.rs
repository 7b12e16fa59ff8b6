//! Bad settings of a service's flows, and bad queries of flows.

use serde_json::Value;

use super::{BACKEND, assert_refused};
use crate::{WEB, ask, support::FakeAgent};

const SERVICE: &str = "/v1/services/10.0.0.1:80%2Ftcp";

const BAD_SETTINGS: &[(&str, u16, &str, &str)] = &[
    (
        "{}",
        400,
        "malformed",
        "give announce, ring_size, scheduler, flow_state, on_down, moving_time_ms, dead_after_ms, no_backend, mss_clamp, second_hop, address_pool, client_address, syn_proxy, access_list, flow_limit, source_limit, source_prefix_v4, source_prefix_v6, source_routes, persistence_ms, persistence_prefix, spill_below, failback, slow_start, adaptive, flap_damping, passive, panic_below, group, quic, server_ids or subsets",
    ),
    (
        r#"{"scheduler":null}"#,
        400,
        "malformed",
        "nothing to change",
    ),
    (
        r#"{"mode":"ipip"}"#,
        400,
        "malformed",
        "unknown field `mode`",
    ),
    (r#"{"ring_size":1000}"#, 400, "invalid", "is not one of"),
    (r#"{"group":"a b"}"#, 400, "invalid", "not a group's name"),
    (
        r#"{"quic":{"config_id":0,"server_id_length":2,"nonce_length":5}}"#,
        400,
        "invalid",
        "is for UDP services",
    ),
    (
        r#"{"server_ids":{"10.9.9.9:80":"0a"}}"#,
        404,
        "unknown_backend",
        "has no backend 10.9.9.9:80",
    ),
    (
        r#"{"scheduler":"rr"}"#,
        400,
        "malformed",
        "`weighted-round-robin`",
    ),
    (
        r#"{"flow_state":"never"}"#,
        400,
        "malformed",
        "`auto` or `always`",
    ),
    (
        r#"{"on_down":"drop"}"#,
        400,
        "malformed",
        "`keep` or `resteer`",
    ),
    (
        r#"{"moving_time_ms":"5s"}"#,
        400,
        "malformed",
        "invalid type: string",
    ),
    (
        r#"{"moving_time_ms":604800001}"#,
        400,
        "invalid",
        "0s to 1 week",
    ),
    (
        r#"{"dead_after_ms":604800001}"#,
        400,
        "invalid",
        "0s to 1 week",
    ),
    (
        r#"{"persistence_ms":604800001}"#,
        400,
        "invalid",
        "persistence: 7days 1ms is out of range: 0s to 1 week",
    ),
    (
        r#"{"persistence_prefix":33}"#,
        400,
        "invalid",
        "33 is out of range: 1 to 32",
    ),
    (
        r#"{"persistence_prefix":256}"#,
        400,
        "malformed",
        "expected u8",
    ),
    (
        r#"{"persistence_ms":1000,"moving_time_ms":0}"#,
        400,
        "invalid",
        "leave persistence out",
    ),
    // The valid half must not take effect.
    (
        r#"{"scheduler":"round-robin","moving_time_ms":0}"#,
        400,
        "invalid",
        "goes by them",
    ),
];

const BAD_SERVICES: &[(&str, u16, &str, &str)] = &[
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","scheduler":"rr"}"#,
        400,
        "malformed",
        "unknown variant `rr`, expected one of `maglev`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","moving_time_ms":604800001}"#,
        400,
        "invalid",
        "moving_time: 7days 1ms is out of range: 0s to 1 week",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","dead_after_ms":604800001}"#,
        400,
        "invalid",
        "dead_after: 7days 1ms is out of range",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","moving_time":"5s"}"#,
        400,
        "malformed",
        "unknown field `moving_time`",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","moving_time_ms":0,"scheduler":"round-robin"}"#,
        400,
        "invalid",
        "use scheduler \"maglev\", \"source-hash\" or \"three-tuple-hash\"",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","moving_time_ms":0,"flow_state":"always"}"#,
        400,
        "invalid",
        "use flow_state \"auto\"",
    ),
    (
        r#"{"id":"10.0.0.2:80/tcp","mode":"nat","moving_time_ms":0,"backends":[{"address":"10.2.0.2:80","max_connections":1}]}"#,
        400,
        "invalid",
        "leave max_connections out",
    ),
];

/// A query, and then status, code and a part of the message.
const BAD_QUERIES: &[(&str, u16, &str, &str)] = &[
    (
        "service=web",
        400,
        "malformed",
        "write ADDRESS:PORT/PROTOCOL",
    ),
    (
        "service=10.0.0.9:80/tcp",
        404,
        "unknown_service",
        "lbctl service list",
    ),
    (
        "service=10.0.0.1:80/tcp&backend=10.1.0.9:80",
        404,
        "unknown_backend",
        "lbctl backend list",
    ),
    ("backend=10.1.0.2", 400, "malformed", "write ADDRESS:PORT"),
    ("phase=still", 400, "malformed", "`steady`"),
    ("limit=-1", 400, "malformed", "invalid digit"),
    (
        "limit=100001",
        400,
        "malformed",
        "100001 is too large: 0 to 100000",
    ),
    (
        "client=192.0.2.7",
        400,
        "malformed",
        "unknown field `client`",
    ),
    ("limit=1&limit=2", 400, "malformed", "duplicate field"),
];

#[tokio::test]
async fn bad_settings_are_refused_whole() {
    let agent = FakeAgent::start(WEB);
    for (body, status, code, part) in BAD_SETTINGS {
        assert_refused(&agent, ("PATCH", SERVICE, body, *status, code, part)).await;
    }
}

#[tokio::test]
async fn services_with_bad_settings_are_refused() {
    let agent = FakeAgent::start(WEB);
    for (body, status, code, part) in BAD_SERVICES {
        assert_refused(&agent, ("POST", "/v1/services", body, *status, code, part)).await;
    }
}

#[tokio::test]
async fn settings_that_do_not_fit_the_pool_are_refused() {
    let agent = FakeAgent::start(WEB);
    let limit = ask(&agent, "PATCH", BACKEND, r#"{"max_connections":9}"#).await;
    assert_eq!(limit.0, 200, "{limit:?}");
    let stateless = r#"{"moving_time_ms":0}"#;
    let part = "10.1.0.2:80: flows are counted by their records";
    assert_refused(&agent, ("PATCH", SERVICE, stateless, 400, "invalid", part)).await;
}

#[tokio::test]
async fn bad_queries_of_flows_are_refused() {
    let agent = FakeAgent::start(WEB);
    for (query, status, code, part) in BAD_QUERIES {
        let path: &str = &format!("/v1/flows?{query}");
        let (got, answer) = ask(&agent, "GET", path, "").await;
        let call = format!("{path}: {got} {answer}");
        assert_eq!(
            (got, &answer["code"]),
            (*status, &Value::from(*code)),
            "{call}"
        );
        let message = answer["error"].as_str().unwrap();
        assert!(message.contains(part), "{call}");
        assert_eq!(message.lines().count(), 1, "{call}");
    }
}
