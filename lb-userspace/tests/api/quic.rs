//! QUIC services over the API.

use lb_userspace::model::Quic;
use serde_json::json;

use crate::{ask, id, support::FakeAgent};

const SERVICES: &str = "/v1/services";
const BACKENDS: &str = "/v1/services/10.0.0.2:443%2Fudp/backends";

fn new() -> serde_json::Value {
    json!({
        "id": "10.0.0.2:443/udp", "mode": "ipip",
        "quic": {"config_id": 1, "server_id_length": 2, "nonce_length": 6},
        "backends": [{"address": "10.2.0.2:443", "server_id": "0a01"}],
    })
}

#[tokio::test]
async fn a_quic_service_and_its_server_ids_are_told_as_they_were_given() {
    let agent = FakeAgent::start("");
    let (status, body) = ask(&agent, "POST", SERVICES, new().to_string()).await;
    assert_eq!(status, 201, "{body}");
    let quic = Quic {
        config_id: 1,
        server_id_length: 2,
        nonce_length: 6,
    };
    let state = agent.state();
    let service = state.service(id("10.0.0.2:443/udp")).unwrap();
    assert_eq!(service.quic, Some(quic));
    let second = json!({"address": "10.2.0.3:443", "server_id": "0a02"}).to_string();
    assert_eq!(ask(&agent, "POST", BACKENDS, second).await.0, 201);
    let (_, told) = ask(&agent, "GET", "/v1/services/10.0.0.2:443%2Fudp", "").await;
    assert_eq!(told["quic"], new()["quic"]);
    let ids = [0, 1].map(|n: usize| told["backends"][n]["server_id"].clone());
    assert_eq!(ids, ["0a01", "0a02"]);
    assert_eq!(told["flows"]["named"], 6);
}

#[tokio::test]
async fn what_does_not_fit_a_quic_service_is_refused() {
    let agent = FakeAgent::start("");
    assert_eq!(
        ask(&agent, "POST", SERVICES, new().to_string()).await.0,
        201
    );
    for (backend, status, code) in [
        (json!({"address": "10.2.0.3:443"}), 400, "invalid"),
        (
            json!({"address": "10.2.0.3:443", "server_id": "0a"}),
            400,
            "invalid",
        ),
        (
            json!({"address": "10.2.0.3:443", "server_id": "0a01"}),
            409,
            "shared_server_id",
        ),
    ] {
        let (answered, body) = ask(&agent, "POST", BACKENDS, backend.to_string()).await;
        assert_eq!((answered, &body["code"]), (status, &json!(code)), "{body}");
    }
    let mut tcp = new();
    tcp["id"] = json!("10.0.0.3:443/tcp");
    let (status, body) = ask(&agent, "POST", SERVICES, tcp.to_string()).await;
    assert_eq!((status, &body["code"]), (400, &json!("invalid")), "{body}");
}
