//! QUIC services: what goes together, and what server ids are.

use super::*;

const QUIC: Quic = Quic {
    config_id: 0,
    server_id_length: 2,
    nonce_length: 6,
};

fn server_id(text: &str) -> ServerId {
    text.parse().unwrap()
}

/// A valid one, of two servers.
fn quic() -> Service {
    let backends = ["10.1.0.2:443", "10.1.0.3:443"];
    let mut service = service("10.0.0.1:443/udp", Mode::Ipip, &backends);
    service.quic = Some(QUIC);
    service.backends[0].server_id = Some(server_id("0a01"));
    service.backends[1].server_id = Some(server_id("0a02"));
    service
}

/// Spoils a service.
type SpoilQuic = fn(&mut Service, &mut Quic);

#[test]
fn every_mistake_of_a_quic_service_is_told_by_its_key_and_remedy() {
    let spoils: &[(SpoilQuic, &str, &str)] = &[
        (
            |s, _| s.id.protocol = Protocol::Tcp,
            "quic",
            "10.0.0.1:443/udp",
        ),
        (|_, q| q.config_id = 7, "quic.config_id", "0 to 6"),
        (
            |_, q| q.server_id_length = 0,
            "quic.server_id_length",
            "1 to 15",
        ),
        (
            |_, q| q.server_id_length = 16,
            "quic.server_id_length",
            "1 to 15",
        ),
        (|_, q| q.nonce_length = 3, "quic.nonce_length", "4 to 17"),
        (|_, q| q.nonce_length = 18, "quic.nonce_length", "4 to 17"),
        (
            |s, _| s.backends[1].server_id = None,
            "server_id",
            "missing",
        ),
        (
            |s, _| s.backends[1].server_id = Some(server_id("0a")),
            "server_id",
            "0a has 1 bytes",
        ),
        (
            |_, q| q.server_id_length = 3,
            "server_id",
            "0a01 has 2 bytes",
        ),
    ];
    assert!(State::new([quic()]).is_ok());
    for (index, (spoil, key, part)) in spoils.iter().enumerate() {
        let (mut service, mut settings) = (quic(), QUIC);
        spoil(&mut service, &mut settings);
        service.quic = Some(settings);
        match State::new([service]) {
            Err(ModelError::Invalid { field, problem, .. }) => {
                assert_eq!(field, *key, "{index}: {problem}");
                assert!(problem.contains(part), "{index}: {problem}");
            }
            other => panic!("{index}: {other:?}"),
        }
    }
}

#[test]
fn lengths_that_fill_a_connection_id_are_accepted() {
    for length in 1..=15u8 {
        let mut service = quic();
        service.quic = Some(Quic {
            server_id_length: length,
            nonce_length: 19 - length,
            ..QUIC
        });
        for (n, backend) in (1u8..).zip(&mut service.backends) {
            let id = format!("{n:02x}").repeat(length.into());
            backend.server_id = Some(server_id(&id));
        }
        assert!(State::new([service]).is_ok(), "{length}");
    }
}

#[test]
fn a_server_id_without_quic_is_refused() {
    let mut service = quic();
    service.quic = None;
    let refused = State::new([service]).unwrap_err().to_string();
    assert!(refused.contains("server_id"), "{refused}");
    assert!(refused.contains("leave it out"), "{refused}");
}

#[test]
fn two_backends_cannot_have_one_server_id_and_two_services_can() {
    let state = State::new([quic()]).unwrap();
    let mut third = backend("10.1.0.4:443");
    third.server_id = Some(server_id("0A02"));
    let refused = state.apply(Change::AddBackend(quic().id, third.clone()));
    let expected = ModelError::SharedServerId {
        id: quic().id,
        address: third.address,
        other: "10.1.0.3:443".parse().unwrap(),
        server_id: server_id("0a02"),
    };
    assert_eq!(refused, Err(expected));
    let mut other = quic();
    other.id = id("10.0.0.2:443/udp");
    assert!(state.apply(Change::AddService(other)).is_ok());
}

#[test]
fn quic_keeps_connections_of_backends_that_are_down_and_other_udp_does_not() {
    let mut service = quic();
    assert_eq!(service.on_down(), OnDown::Keep);
    service.quic = None;
    assert_eq!(service.on_down(), OnDown::Resteer);
}

#[test]
fn what_is_no_server_id_is_refused() {
    for text in [
        "",
        "0",
        "0a0",
        "0x0a",
        "0a 0",
        "zz",
        "+a",
        "ää",
        &"00".repeat(16),
    ] {
        let refused = text.parse::<ServerId>();
        assert!(
            matches!(refused, Err(ModelError::BadServerId { .. })),
            "{text}: {refused:?}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn a_server_id_reads_back_from_its_text(bytes in proptest::collection::vec(0u8.., 1..=15)) {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = server_id(&text);
        proptest::prop_assert_eq!(id.bytes(), bytes.as_slice());
        proptest::prop_assert_eq!(id.to_string(), text.clone());
        proptest::prop_assert_eq!(server_id(&text.to_uppercase()), id);
        proptest::prop_assert_eq!(serde_json::to_value(id).unwrap(), serde_json::Value::from(text));
    }

    #[test]
    fn no_text_makes_reading_a_server_id_panic(text in ".{0,40}") {
        let _ = text.parse::<ServerId>();
    }
}
