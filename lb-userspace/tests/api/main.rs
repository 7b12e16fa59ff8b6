//! The API over its socket: what each route answers, and what it takes.

// The largest answer is one `json!` with dozens of keys.
#![recursion_limit = "256"]
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod quic;
mod refusals;
mod routes;
mod socket;

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use lb_userspace::{
    api::{
        client::{Client, ClientError},
        dto::{
            Action, Condition, EditBackend, EditService, EventQuery, FlowQuery, NewBackend,
            NewService, Phase,
        },
    },
    model::{Adaptive, Admin, Failback, Mode, Scheduler, ServiceId, Signal},
};
use serde_json::{Value, json};
use support::FakeAgent;
use tokio::net::UnixStream;

const WEB: &str = r#"
[[service]]
vip = "10.0.0.1:80/tcp"
mode = "nat"
health = { type = "http", path = "/health" }
backend = [{ address = "10.1.0.2:80" }, { address = "10.1.0.3:81", weight = 3, max_connections = 9 }]
"#;

/// One request as any HTTP client would make it: status and JSON body.
async fn ask(agent: &FakeAgent, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
    let stream = UnixStream::connect(&agent.socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("host", "localhost")
        .body(Full::new(body.into()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{status}: {bytes:?}"));
    (status, body)
}

fn id(text: &str) -> ServiceId {
    text.parse().unwrap()
}

#[tokio::test]
async fn status_tells_instance_interfaces_tally_and_drops() {
    let agent = FakeAgent::start(WEB);
    let (status, body) = ask(&agent, "GET", "/v1/status", "").await;
    let expected = json!({
        "instance": "default",
        "version": env!("CARGO_PKG_VERSION"),
        "generation": 7,
        "interfaces": [{"name": "eth0", "mode": "native"}],
        "services": 1,
        "backends": {"total": 2, "up": 1, "down": 1, "starting": 0, "used_in_panic": 0},
        "worst": {"utilisation": null, "imbalance": null, "headroom": null},
        "flow_tables": {
            "established": {"entries": 1200, "capacity": 262_144},
            "half_open": {"entries": 65_536, "capacity": 65_536},
            "sessions": {"entries": 3, "capacity": 262_144},
        },
        "address_pools": [
            {"name": "snat", "addresses": 2, "first_port": 1_000, "last_port": 1_999, "sessions": 3},
        ],
        "announced": [{"vip": "10.0.0.1", "conflicts": 3}],
        "devices": [{"name": "eth0.100", "over": ["eth0"], "tags": ["802.1q 100"]}],
        "drops": {"malformed": 0, "no_backend": 3},
        "answers": {"limited": 0, "reset": 2},
        "fragments": {"first": 4, "held": 0},
        "unknown_port": "reset",
    });
    assert_eq!((status, body), (200, expected));
}

#[tokio::test]
async fn a_service_is_told_with_its_health_and_backends() {
    let agent = FakeAgent::start(WEB);
    let (status, body) = ask(&agent, "GET", "/v1/services/10.0.0.1:80%2Ftcp", "").await;
    let backends = json!([
        {
            "address": "10.1.0.2:80", "weight": 1, "state": "active", "max_connections": null,
            "server_id": null, "tier": 0,
            "leaving": false, "condition": "up",
            "last_error": null, "latency_us": 250, "reachable": true, "mtu": 1480, "slots": 502,
            "recorded": 5, "connections": null,
            "traffic": {"packets": 1234, "bytes": 56789, "flows": 12},
        },
        {
            "address": "10.1.0.3:81", "weight": 3, "state": "active", "max_connections": 9,
            "server_id": null, "tier": 0,
            "leaving": false, "condition": "down",
            "last_error": "connection refused", "latency_us": null, "reachable": true, "mtu": 1460, "slots": 0,
            "recorded": 5, "connections": 3,
            "traffic": {"packets": 1234, "bytes": 56789, "flows": 12},
        },
    ]);
    let mut expected = json!({
        "id": "10.0.0.1:80/tcp",
        "group": null,
        "mode": "nat",
        "ring_size": 1004,
        "scheduler": "maglev",
        "flow_state": "auto",
        "on_down": "keep",
        "moving_time_ms": 900_000,
        "dead_after_ms": 60_000,
        "no_backend": "drop",
        "mss_clamp": "off",
        "second_hop": false,
        "quic": null,
        "persistence_ms": 0,
        "persistence_prefix": null,
        "spill_below": 70, "failback": "automatic", "slow_start": "off", "adaptive": null, "flap_damping": "off", "passive": "off", "panic_below": 0, "from_tier": 0,
        "health": {"type": "http", "path": "/health", "interval_ms": 1000, "timeout_ms": 500, "rise": 2, "fall": 3},
        "flows": {
            "steady": 1000, "moving": 3, "settling": 1,
            "passed": {"moving": 20, "settling": 17, "steady": 16},
            "established": 10, "half_open": 4,
            "uses": {"ended": 1, "moving": 9, "away": 4, "home": 0}, "lookups": 70, "recorded": 30, "overflows": 2, "promotion_overflows": 3, "named": 6,
            "clients": 7, "client_overflows": 1, "denied": 11, "source_limited": 21, "service_limited": 31,
        },
        "traffic": {"packets": 2468, "bytes": 113578, "flows": 24},
        "backends": backends,
    });
    let sessions = json!({"sessions": 41, "ports_exhausted": 51, "untold": 61, "cookies_sent": 71, "cookies_valid": 81, "cookies_invalid": 91});
    for (key, value) in sessions.as_object().unwrap() {
        expected["flows"][key] = value.clone();
    }
    let guards = json!({
        "announce": false, "access_list": null, "flow_limit": "none", "source_limit": "none",
        "source_prefix_v4": 32, "source_prefix_v6": 64,
    });
    for (key, value) in guards.as_object().unwrap() {
        expected[key] = value.clone();
    }
    assert_eq!((status, &body), (200, &expected));
    assert_eq!(
        ask(&agent, "GET", "/v1/services", "").await,
        (200, json!([expected]))
    );
    let backends = ask(&agent, "GET", "/v1/services/10.0.0.1:80%2Ftcp/backends", "").await;
    assert_eq!(backends, (200, body["backends"].clone()));
}

#[tokio::test]
async fn adding_answers_201_and_names_what_changed() {
    let agent = FakeAgent::start("");
    let new = json!({"id": "[2001:db8::1]:443/udp", "mode": "ipip"}).to_string();
    let added = json!({"changed": {"action": "added", "service": "[2001:db8::1]:443/udp"}});
    assert_eq!(ask(&agent, "POST", "/v1/services", new).await, (201, added));

    let path = "/v1/services/%5B2001:db8::1%5D:443%2Fudp/backends";
    let (status, body) = ask(&agent, "POST", path, r#"{"address": "[fd00::2]:443"}"#).await;
    assert_eq!(
        (status, &body["changed"]["backend"]),
        (201, &json!("[fd00::2]:443"))
    );

    let path = "/v1/services/%5B2001:db8::1%5D:443%2Fudp/backends/%5Bfd00::2%5D:443";
    let (status, body) = ask(&agent, "DELETE", path, "").await;
    assert_eq!(
        (status, &body["changed"]["action"]),
        (200, &json!("removed"))
    );
    assert!(
        agent
            .state()
            .service(id("[2001:db8::1]:443/udp"))
            .unwrap()
            .backends
            .is_empty()
    );
}

#[tokio::test]
async fn one_patch_changes_weight_and_state_together() {
    let agent = FakeAgent::start(WEB);
    let path = "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.2:80";
    let (status, body) = ask(
        &agent,
        "PATCH",
        path,
        r#"{"weight": 9, "state": "draining"}"#,
    )
    .await;
    let expected = json!({"changed": {
        "action": "edited", "service": "10.0.0.1:80/tcp", "backend": "10.1.0.2:80",
        "weight": 9, "state": "draining",
    }});
    assert_eq!((status, body), (200, expected));
    let state = agent.state();
    let backend = &state.service(id("10.0.0.1:80/tcp")).unwrap().backends[0];
    assert_eq!((backend.weight, backend.admin), (9, Admin::Draining));
}

#[tokio::test]
async fn one_patch_changes_several_settings_of_a_service_and_answers_them() {
    let agent = FakeAgent::start(WEB);
    let path = "/v1/services/10.0.0.1:80%2Ftcp";
    let settings = json!({
        "ring_size": 251, "scheduler": "power-of-two-choices", "flow_state": "always",
        "on_down": "resteer", "moving_time_ms": 5000, "dead_after_ms": 0, "no_backend": "unreachable",
        "mss_clamp": 1400,
        "persistence_ms": 300_000, "persistence_prefix": 24,
    });
    let (status, body) = ask(&agent, "PATCH", path, settings.to_string()).await;
    let expected = json!({"changed": {
        "action": "edited", "service": "10.0.0.1:80/tcp", "settings": settings,
    }});
    assert_eq!((status, body), (200, expected));
    let body = ask(&agent, "GET", path, "").await.1;
    for (key, value) in settings.as_object().unwrap() {
        // The test double's ring is always of one size.
        if key != "ring_size" {
            assert_eq!(&body[key], value, "{key}");
        }
    }
    let state = agent.state();
    let service = state.service(id("10.0.0.1:80/tcp")).unwrap();
    assert_eq!(service.ring_size, Some(251));
}

#[tokio::test]
async fn a_service_is_created_with_all_its_settings() {
    let agent = FakeAgent::start("");
    let new = json!({
        "id": "10.0.0.2:80/tcp", "mode": "nat", "ring_size": 251, "scheduler": "round-robin",
        "flow_state": "always", "on_down": "resteer", "moving_time_ms": 5000,
        "dead_after_ms": 7000, "no_backend": "pass", "mss_clamp": "auto", "persistence_ms": 90_000, "persistence_prefix": 31,
        "backends": [{"address": "10.2.0.2:80", "max_connections": 12}],
    });
    let (status, body) = ask(&agent, "POST", "/v1/services", new.to_string()).await;
    assert_eq!(status, 201, "{body}");
    let expected = lb_userspace::config::parse(
        r#"
[[service]]
vip = "10.0.0.2:80/tcp"
mode = "nat"
ring_size = 251
scheduler = "round-robin"
flow_state = "always"
on_down = "resteer"
moving_time = "5s"
dead_after = "7s"
no_backend = "pass"
mss_clamp = "auto"
persistence = "90s"
persistence_prefix = 31
backend = [{ address = "10.2.0.2:80", max_connections = 12 }]
"#,
        "test",
    );
    let state = agent.state();
    assert_eq!(
        state.service(id("10.0.0.2:80/tcp")),
        Some(&expected.unwrap().services[0])
    );
}

#[tokio::test]
async fn a_heartbeat_is_heard_of_backends_that_are_there_only() {
    let agent = FakeAgent::start(WEB);
    let path = |backend| format!("/v1/services/10.0.0.1:80%2Ftcp/backends/{backend}/heartbeat");
    let heard = json!({"service": "10.0.0.1:80/tcp", "backend": "10.1.0.2:80"});
    assert_eq!(
        ask(&agent, "POST", &path("10.1.0.2:80"), "").await,
        (200, heard)
    );
    let (status, refusal) = ask(&agent, "POST", &path("10.1.0.9:80"), "").await;
    assert_eq!((status, &refusal["code"]), (404, &json!("unknown_backend")));
}

#[tokio::test]
async fn a_backend_reports_that_it_is_drained_and_is_refused_while_it_is_not() {
    let agent = FakeAgent::start(WEB);
    let backend = "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.2:80";
    let path = format!("{backend}/drained");
    let (status, refusal) = ask(&agent, "POST", &path, "").await;
    assert_eq!((status, &refusal["code"]), (409, &json!("not_drained")));
    ask(&agent, "PATCH", backend, r#"{"state":"draining"}"#).await;
    let heard = json!({"service": "10.0.0.1:80/tcp", "backend": "10.1.0.2:80"});
    assert_eq!(ask(&agent, "POST", &path, "").await, (200, heard));
    let other = path.replace("0.2:80", "0.9:80");
    let (status, refusal) = ask(&agent, "POST", &other, "").await;
    assert_eq!((status, &refusal["code"]), (404, &json!("unknown_backend")));
}

#[tokio::test]
async fn several_checks_are_taken_and_told_as_they_were_given() {
    let agent = FakeAgent::start("");
    let checks = json!([
        {"type": "dns", "query": "example.org", "record": "A", "transport": "udp",
         "interval_ms": 1000, "timeout_ms": 500, "rise": 2, "fall": 3},
        {"type": "https", "name": "web", "path": "/", "tls": {"insecure": true}, "port": 8443,
         "interval_ms": 1000, "fast_interval_ms": 100, "timeout_ms": 500, "jitter_ms": 50,
         "rise": 1, "fall": 2},
    ]);
    let new = json!({"id": "10.0.0.2:80/tcp", "mode": "nat", "checks": checks, "combine": "any"});
    let (status, _) = ask(&agent, "POST", "/v1/services", new.to_string()).await;
    assert_eq!(status, 201);
    let (_, told) = ask(&agent, "GET", "/v1/services/10.0.0.2:80%2Ftcp", "").await;
    assert_eq!(
        (&told["checks"], &told["combine"]),
        (&checks, &json!("any"))
    );
    assert_eq!(told.get("health"), None);
}

#[tokio::test]
async fn a_limit_is_set_stays_when_not_named_and_is_taken_away_by_null() {
    let agent = FakeAgent::start(WEB);
    let path = "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.2:80";
    for (body, told, limit) in [
        (
            r#"{"max_connections": 7}"#,
            json!({"max_connections": 7}),
            Some(7),
        ),
        (r#"{"weight": 2}"#, json!({"weight": 2}), Some(7)),
        (
            r#"{"max_connections": null}"#,
            json!({"max_connections": null}),
            None,
        ),
    ] {
        let (status, mut answer) = ask(&agent, "PATCH", path, body).await;
        assert_eq!(status, 200, "{answer}");
        let changed = answer["changed"].as_object_mut().unwrap();
        for key in ["action", "service", "backend"] {
            assert!(changed.remove(key).is_some(), "{key}");
        }
        assert_eq!(answer["changed"], told);
        let state = agent.state();
        let backend = &state.service(id("10.0.0.1:80/tcp")).unwrap().backends[0];
        assert_eq!(backend.max_connections, limit, "{body}");
    }
}

#[tokio::test]
async fn what_a_backend_is_said_to_carry_is_set_shown_and_taken_back_by_null() {
    let agent = FakeAgent::start(WEB);
    let path = "/v1/services/10.0.0.1:80%2Ftcp/backends/10.1.0.2:80";
    for (body, flow_rate, bandwidth) in [
        (json!({"max_flow_rate": 50}), Some(50), None),
        (
            json!({"max_bandwidth": 3_000_000}),
            Some(50),
            Some(3_000_000),
        ),
        (json!({"max_flow_rate": null}), None, Some(3_000_000)),
    ] {
        let (status, answer) = ask(&agent, "PATCH", path, body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        for (key, value) in body.as_object().unwrap() {
            assert_eq!(&answer["changed"][key], value);
        }
        let state = agent.state();
        let rated = state.service(id("10.0.0.1:80/tcp")).unwrap().backends[0].rated;
        let told = (rated.max_flow_rate, rated.max_bandwidth.map(|rate| rate.0));
        assert_eq!(told, (flow_rate, bandwidth), "{body}");
    }
    let (_, service) = ask(&agent, "GET", "/v1/services/10.0.0.1:80%2Ftcp", "").await;
    let backend = &service["backends"][0];
    assert_eq!(backend["max_bandwidth"], 3_000_000);
    assert_eq!(
        (&backend["flow_rate"], &backend["bandwidth"]),
        (&json!(40), &json!(1_500_000))
    );
}

#[tokio::test]
async fn flows_are_listed_and_narrowed_down() {
    let agent = FakeAgent::start(WEB);
    let flows = |query: &'static str| {
        let agent = &agent;
        async move {
            let (status, body) = ask(agent, "GET", &format!("/v1/flows{query}"), "").await;
            assert_eq!(status, 200, "{query}: {body}");
            let listed = body["flows"].as_array().unwrap().len();
            (body["total"].as_u64().unwrap(), listed, body)
        }
    };
    for (query, total, listed) in [
        ("", 7, 7),
        ("?limit=2", 7, 2),
        ("?limit=0", 7, 0),
        ("?phase=moving", 3, 3),
        ("?service=10.0.0.1:80%2Ftcp&backend=10.1.0.3:81", 3, 3),
        ("?backend=10.1.0.2:80&phase=steady", 1, 1),
        ("?backend=10.1.0.9:80", 0, 0),
    ] {
        let (got, shown, body) = flows(query).await;
        assert_eq!((got, shown), (total, listed), "{query}: {body}");
    }
    let (_, _, body) = flows("?backend=10.1.0.2:80&phase=moving").await;
    let expected = json!({
        "service": "10.0.0.1:80/tcp", "client": "192.0.2.7:40000", "backend": "10.1.0.2:80",
        "half_open": true, "closing": false, "phase": "moving", "idle_ms": 1500, "age_ms": 60_000,
    });
    assert_eq!(body["flows"], json!([expected]));
}

#[tokio::test]
async fn a_removed_backend_with_flows_is_told_and_counts_no_more() {
    let agent = FakeAgent::start(&WEB.replace("10.0.0.1:80/", "10.0.0.1:8081/"));
    let path = "/v1/services/10.0.0.1:8081%2Ftcp/backends";
    let (_, backends) = ask(&agent, "GET", path, "").await;
    let leaving = backends.as_array().unwrap().iter();
    let leaving = leaving.map(|b| (b["address"].clone(), b["leaving"].clone()));
    assert_eq!(
        leaving.collect::<Vec<_>>(),
        [
            (json!("10.1.0.2:80"), json!(false)),
            (json!("10.1.0.3:81"), json!(false)),
            (json!("10.1.0.9:80"), json!(true)),
        ]
    );
    let (_, status) = ask(&agent, "GET", "/v1/status", "").await;
    assert_eq!(
        status["backends"],
        json!({"total": 2, "up": 1, "down": 1, "starting": 0, "used_in_panic": 0})
    );
}

#[tokio::test]
async fn metrics_are_served_as_openmetrics() {
    let agent = FakeAgent::start(WEB);
    let stream = UnixStream::connect(&agent.socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/v1/metrics").header("host", "x");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .contains("openmetrics")
    );
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.ends_with(b"# EOF\n"));
}

#[tokio::test]
async fn the_client_speaks_every_route() {
    let agent = FakeAgent::start(WEB);
    let client = Client::new(agent.socket.clone());
    let (web, dns) = (id("10.0.0.1:80/tcp"), id("[2001:db8::53]:53/udp"));
    assert_eq!(client.status().await.unwrap().services, 1);
    assert_eq!(client.services().await.unwrap()[0].id, web);
    assert_eq!(
        client.backends(web).await.unwrap()[1].condition,
        Condition::Down
    );

    let address = "[fd00::2]:53".parse().unwrap();
    let backend = NewBackend {
        address,
        weight: 2,
        state: Admin::Active,
        max_connections: None,
        max_flow_rate: None,
        max_bandwidth: None,
        server_id: None,
        tier: 0,
        subsets: Vec::new(),
    };
    let new = NewService {
        id: dns,
        group: None,
        mode: Some(Mode::Ipip),
        announce: Some(true),
        ring_size: None,
        scheduler: None,
        flow_state: None,
        on_down: None,
        moving_time_ms: None,
        dead_after_ms: None,
        no_backend: None,
        mss_clamp: None,
        second_hop: None,
        address_pool: None,
        client_address: None,
        syn_proxy: None,
        access_list: None,
        flow_limit: None,
        source_limit: None,
        source_prefix_v4: None,
        source_prefix_v6: None,
        source_routes: None,
        quic: None,
        persistence_ms: None,
        persistence_prefix: None,
        spill_below: Some(50),
        failback: Some(Failback::Manual),
        slow_start: Some("1m".parse().unwrap()),
        adaptive: Some(Adaptive::by([Signal::Latency])),
        flap_damping: Some("10s".parse().unwrap()),
        passive: Some("off".parse().unwrap()),
        panic_below: Some(30),
        health: None,
        checks: None,
        combine: None,
        backends: vec![],
    };
    assert_eq!(
        client.add_service(&new).await.unwrap().changed.action,
        Action::Added
    );
    assert_eq!(
        client
            .add_backend(dns, &backend)
            .await
            .unwrap()
            .changed
            .backend,
        Some(address)
    );
    let edit = EditBackend {
        weight: Some(5),
        ..EditBackend::default()
    };
    assert_eq!(
        client
            .edit_backend(dns, address, &edit)
            .await
            .unwrap()
            .changed
            .weight,
        Some(5)
    );
    assert_eq!(client.service(dns).await.unwrap().backends[0].weight, 5);
    let settings = EditService {
        scheduler: Some(Scheduler::SourceHash),
        moving_time_ms: Some(5_000),
        ..EditService::default()
    };
    let changed = client.edit_service(dns, &settings).await.unwrap().changed;
    assert_eq!(changed.settings, Some(settings));
    let edited = client.service(dns).await.unwrap();
    assert_eq!(
        (edited.scheduler, edited.moving_time_ms),
        (Scheduler::SourceHash, 5_000)
    );
    assert_eq!(
        (edited.spill_below, edited.failback),
        (50, Failback::Manual)
    );
    assert_eq!(edited.slow_start.to_string(), "1m from 10%");
    assert_eq!(edited.adaptive, Some(Adaptive::by([Signal::Latency])));
    assert_eq!((edited.panic_below, edited.panic), (30, None));
    assert_eq!(edited.flap_damping.to_string(), "10s to 5m");
    assert_eq!(edited.passive.to_string(), "off");
    assert!(edited.announce);
    let edit = EditBackend {
        tier: Some(2),
        ..EditBackend::default()
    };
    client.edit_backend(dns, address, &edit).await.unwrap();
    let failed_over = client.fail_over(dns, 2).await.unwrap().changed;
    assert_eq!(failed_over.tier, Some(2));
    assert_eq!(client.service(dns).await.unwrap().from_tier, 2);
    let query = EventQuery {
        service: Some(web),
        after: Some(1),
        epoch: None,
        limit: Some(5),
    };
    let events = client.events(&query).await.unwrap();
    assert_eq!((events.last, events.lost, events.events.len()), (2, 0, 1));
    assert_eq!(events.events[0].reason, "100% to tier 1");
    let query = FlowQuery {
        service: Some(dns),
        backend: Some(address),
        phase: Some(Phase::Settling),
        limit: Some(9),
    };
    let flows = client.flows(&query).await.unwrap();
    assert_eq!((flows.total, flows.flows[0].backend), (1, Some(address)));
    let all = client.flows(&FlowQuery::default()).await.unwrap();
    assert_eq!(all.total, 7 + 4);
    assert_eq!(
        client
            .remove_backend(dns, address)
            .await
            .unwrap()
            .changed
            .action,
        Action::Removed
    );
    assert_eq!(
        client.remove_service(dns).await.unwrap().changed.service,
        dns
    );

    let refused = client.service(dns).await.unwrap_err();
    assert!(
        matches!(refused, ClientError::Refused { status: 404, .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn remembered_clients_are_listed_apart_from_flows() {
    let agent = FakeAgent::start(WEB);
    let (status, body) = ask(
        &agent,
        "GET",
        "/v1/clients?service=10.0.0.1:80/tcp&backend=10.1.0.3:81&limit=5",
        "",
    )
    .await;
    let expected = json!({"total": 1, "clients": [{
        "service": "10.0.0.1:80/tcp", "client": "192.0.2.1", "backend": "10.1.0.3:81",
        "half_open": true, "idle_ms": 1500, "left_ms": 60_000,
    }]});
    assert_eq!((status, body), (200, expected));
    let (status, body) = ask(&agent, "GET", "/v1/clients?limit=0", "").await;
    assert_eq!((status, body), (200, json!({"total": 2, "clients": []})));
}

#[tokio::test]
async fn bad_queries_of_clients_are_refused() {
    let agent = FakeAgent::start(WEB);
    for (query, expected, code) in [
        ("limit=100001", 400, "malformed"),
        ("phase=moving", 400, "malformed"),
        ("service=10.0.0.9:80/tcp", 404, "unknown_service"),
        (
            "service=10.0.0.1:80/tcp&backend=10.9.9.9:80",
            404,
            "unknown_backend",
        ),
    ] {
        let (status, body) = ask(&agent, "GET", &format!("/v1/clients?{query}"), "").await;
        assert_eq!(
            (status, body["code"].as_str()),
            (expected, Some(code)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_service_that_joins_a_group_has_what_the_group_has_or_is_refused() {
    let agent = FakeAgent::start(&WEB.replace("mode = \"nat\"", "group = \"web\"\nmode = \"nat\""));
    let join = |more: &str| format!(r#"{{"id":"10.0.0.1:443/tcp","group":"web"{more}}}"#);
    let (status, body) = ask(&agent, "POST", "/v1/services", join(r#","mode":"ipip""#)).await;
    assert_eq!(
        (status, body["code"].as_str()),
        (409, Some("group_differs"))
    );
    let (status, body) = ask(&agent, "POST", "/v1/services", join("")).await;
    assert_eq!(status, 201, "{body}");
    let state = agent.state();
    let [first, second] = ["10.0.0.1:80/tcp", "10.0.0.1:443/tcp"].map(|of| {
        let service = state.service(id(of)).unwrap();
        lb_userspace::model::Service {
            id: id("10.0.0.1:80/tcp"),
            ..service.clone()
        }
    });
    assert_eq!(first, second);
    let path = "/v1/services/10.0.0.1:443%2Ftcp";
    assert_eq!(ask(&agent, "GET", path, "").await.1["group"], "web");
    let (status, _) = ask(
        &agent,
        "DELETE",
        &format!("{path}/backends/10.1.0.2:80"),
        "",
    )
    .await;
    assert_eq!(status, 200);
    let web = agent
        .state()
        .service(id("10.0.0.1:80/tcp"))
        .unwrap()
        .clone();
    assert_eq!(web.backends.len(), 1);
}

#[tokio::test]
async fn who_asks_about_one_service_does_not_make_the_agent_describe_all() {
    let agent = FakeAgent::start(WEB);
    let grouped = json!({"id": "10.0.0.2:80/tcp", "group": "web", "mode": "ipip"}).to_string();
    for (method, path, body) in [
        ("POST", "/v1/services", grouped.as_str()),
        ("GET", "/v1/services/10.0.0.1:80%2Ftcp", ""),
        ("GET", "/v1/services/10.0.0.1:80%2Ftcp/backends", ""),
        ("GET", "/v1/flows?service=10.0.0.1:80%2Ftcp", ""),
        ("GET", "/v1/clients?service=10.0.0.1:80%2Ftcp", ""),
    ] {
        let (status, answer) = ask(&agent, method, path, body.to_owned()).await;
        assert!(status < 300, "{path}: {answer}");
        assert_eq!(agent.snapshots(), 0, "{path}");
    }
    ask(&agent, "GET", "/v1/services", "").await;
    assert_eq!(agent.snapshots(), 1);
}
