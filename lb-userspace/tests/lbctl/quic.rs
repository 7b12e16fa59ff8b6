//! QUIC services on the command line.

use crate::{run, succeed, support::FakeAgent};

const ADD: &str = "service add 10.0.0.1:443/udp --mode ipip --health none --quic-config-id 1 \
    --quic-server-id-length 2 --quic-nonce-length 6 --backend 10.1.0.2:443,server-id=0a01,weight=2";

#[tokio::test]
async fn a_quic_service_is_added_shown_and_gets_backends() {
    let agent = FakeAgent::start("");
    succeed(&agent, ADD).await;
    let line = succeed(
        &agent,
        "backend add 10.0.0.1:443/udp 10.1.0.3:443 --server-id 0a02",
    );
    assert_eq!(
        line.await,
        "added backend 10.1.0.3:443 to 10.0.0.1:443/udp with weight 1, by server id 0a02\n"
    );
    let shown = succeed(&agent, "service show 10.0.0.1:443/udp").await;
    let quic = "quic         configuration 1, server ids of 2 bytes, nonces of 6; 6 packets by connection id so far\n";
    assert!(shown.contains(quic), "{shown}");
    for row in [
        "BACKEND       SERVER ID  WEIGHT",
        "10.1.0.2:443  0a01            2",
    ] {
        assert!(shown.contains(row), "{shown}");
    }
}

#[tokio::test]
async fn without_quic_there_is_no_column_of_server_ids() {
    let agent = FakeAgent::start("");
    succeed(
        &agent,
        "service add 10.0.0.2:80/tcp --mode ipip --backend 10.1.0.9:80",
    )
    .await;
    let list = succeed(&agent, "backend list").await;
    assert!(!list.contains("SERVER ID"), "{list}");
    succeed(&agent, ADD).await;
    let list = succeed(&agent, "backend list").await;
    assert!(list.contains("10.1.0.9:80   -          "), "{list}");
}

#[tokio::test]
async fn half_of_a_layout_and_bad_ids_are_wrong_usage() {
    let agent = FakeAgent::start("");
    let half = "service add 10.0.0.1:443/udp --mode ipip --quic-config-id 1";
    let ran = run(&agent.socket, half).await;
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("--quic-nonce-length"), "{}", ran.stderr);
    let bad = "backend add 10.0.0.1:443/udp 10.1.0.3:443 --server-id 0a0";
    let ran = run(&agent.socket, bad).await;
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("hexadecimal"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_running_service_becomes_quic_gets_another_configuration_and_ceases_to_be() {
    let agent = FakeAgent::start("");
    let add = "service add 10.0.0.1:443/udp --mode ipip --health none --backend 10.1.0.2:443";
    succeed(&agent, add).await;
    let set = "service set 10.0.0.1:443/udp --quic-config-id 1 --quic-server-id-length 2 \
        --quic-nonce-length 6";
    let without = run(&agent.socket, set).await;
    assert_eq!(without.code, 5, "{}", without.stderr);
    assert!(without.stderr.contains("server_id"), "{}", without.stderr);
    succeed(&agent, &format!("{set} --server-id 10.1.0.2:443=0a01")).await;
    let shown = succeed(&agent, "service show 10.0.0.1:443/udp").await;
    let quic = "configuration 1, server ids of 2 bytes, nonces of 6";
    assert!(
        shown.contains(quic) && shown.contains("10.1.0.2:443  0a01"),
        "{shown}"
    );
    let stranger = "service set 10.0.0.1:443/udp --server-id 10.1.0.3:443=0a01";
    assert_eq!(run(&agent.socket, stranger).await.code, 4);
    succeed(&agent, "service set 10.0.0.1:443/udp --no-quic").await;
    let list = succeed(&agent, "backend list").await;
    assert!(!list.contains("SERVER ID"), "{list}");
}

#[tokio::test]
async fn quic_and_its_end_together_are_wrong_usage() {
    let agent = FakeAgent::start("");
    let both = "service set 10.0.0.1:443/udp --no-quic --server-id 10.1.0.2:443=0a01";
    assert_eq!(run(&agent.socket, both).await.code, 2);
    let bad = "service set 10.0.0.1:443/udp --server-id 0a01";
    let ran = run(&agent.socket, bad).await;
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("ADDRESS:PORT=HEX"), "{}", ran.stderr);
}
