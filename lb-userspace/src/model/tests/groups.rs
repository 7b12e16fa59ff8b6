//! Services of a group share everything, and every change is one of all.

use super::*;

fn member(text: &str) -> Service {
    Service {
        group: Some("web".to_owned()),
        ..service(text, Mode::Ipip, &["10.1.0.2:80", "10.1.0.3:80"])
    }
}

fn group() -> State {
    State::new([member("10.0.0.1:80/tcp"), member("10.0.0.1:443/tcp")]).unwrap()
}

#[test]
fn whatever_differs_from_the_group_is_refused_by_its_field() {
    let spoils: &[Spoil] = &[
        (|s| s.mode = Mode::Nat, "mode"),
        (|s| s.ring_size = Some(251), "ring_size"),
        (|s| s.scheduler = Scheduler::SourceHash, "scheduler"),
        (|s| s.flow_state = FlowState::Always, "flow_state"),
        (|s| s.on_down = Some(OnDown::Resteer), "on_down"),
        (|s| s.no_backend = Unserved::Reset, "no_backend"),
        (|s| s.mss_clamp = MssClamp::Auto, "mss_clamp"),
        (|s| s.moving_time = Some(WEEK), "moving_time"),
        (|s| s.dead_after = WEEK, "dead_after"),
        (|s| s.persistence = WEEK, "persistence"),
        (|s| s.persistence_prefix = Some(24), "persistence_prefix"),
        (|s| s.spill_below = 9, "spill_below"),
        (|s| s.failback = Failback::Manual, "failback"),
        (|s| s.slow_start.window = WEEK, "slow_start"),
        (
            |s| s.adaptive = Some(Adaptive::by([Signal::Latency])),
            "adaptive",
        ),
        (
            |s| s.flap_damping.hold = s.flap_damping.most,
            "flap_damping",
        ),
        (|s| s.passive.on = true, "passive"),
        (|s| s.panic_below = 1, "panic_below"),
        (|s| s.from_tier = 1, "failover"),
        (|s| s.backends[1].tier = 1, "backend"),
        (|s| s.health.checks[0].rise = 9, "health"),
        (|s| s.backends[1].weight = 2, "backend"),
        (|s| s.backends.truncate(1), "backend"),
        (|s| s.backends.push(backend("10.1.0.4:80")), "backend"),
    ];
    for (index, (spoil, expected)) in spoils.iter().enumerate() {
        let mut other = member("10.0.0.1:8080/tcp");
        spoil(&mut other);
        match group().apply(Change::AddService(other)) {
            Err(ModelError::GroupDiffers { field, other, .. }) => {
                assert_eq!(
                    (field, other),
                    (*expected, id("10.0.0.1:80/tcp")),
                    "{index}"
                );
            }
            other => panic!("{index}: {other:?}"),
        }
    }
}

#[test]
fn a_refusal_says_what_differs_from_whom() {
    let mut other = member("10.0.0.1:8080/tcp");
    other.scheduler = Scheduler::RoundRobin;
    let refused = group().apply(Change::AddService(other)).unwrap_err();
    let text = refused.to_string();
    for part in [
        "service 10.0.0.1:8080/tcp: scheduler: round-robin here and maglev there",
        "10.0.0.1:80/tcp",
        "leave it out",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn defaults_that_go_by_the_protocol_have_to_agree_too() {
    let mut quic = member("10.0.0.1:443/udp");
    let refused = group().apply(Change::AddService(quic.clone())).unwrap_err();
    assert!(matches!(
        refused,
        ModelError::GroupDiffers {
            field: "on_down",
            ..
        }
    ));
    quic.on_down = Some(OnDown::Keep);
    quic.moving_time = Some(Duration::from_secs(900));
    assert!(group().apply(Change::AddService(quic)).is_ok());
}

#[test]
fn every_change_of_one_is_a_change_of_all() {
    let (one, other) = (id("10.0.0.1:80/tcp"), id("10.0.0.1:443/tcp"));
    let address = "10.1.0.2:80".parse().unwrap();
    let changes = [
        Change::AddBackend(one, backend("10.1.0.4:80")),
        Change::EditBackend {
            id: other,
            address,
            weight: Some(7),
            admin: Some(Admin::Draining),
            max_connections: None,
            rated: Default::default(),
            tier: None,
        },
        Change::RemoveBackend(one, address),
        Change::EditService(
            other,
            Settings {
                scheduler: Some(Scheduler::RoundRobin),
                ..Settings::default()
            },
        ),
    ];
    let mut state = group();
    for change in changes {
        let next = state.apply(change).unwrap();
        assert_ne!(next, state);
        let [first, second] = [one, other].map(|id| next.service(id).unwrap());
        assert_eq!(first.difference(second), None);
        assert_eq!(State::new(next.services().cloned()), Ok(next.clone()));
        state = next;
    }
    // One may go, and the other keeps what it has.
    let left = state.apply(Change::RemoveService(one)).unwrap();
    assert_eq!(left.service(other), state.service(other));
    assert_eq!((state.lead(other), left.lead(other)), (one, other));
    assert_eq!((state.pools().len(), left.pools().len()), (1, 1));
}

#[test]
fn a_backend_serves_the_ports_of_a_nat_group_and_no_other_service_on_them() {
    let nat = |text| Service {
        mode: Mode::Nat,
        ..member(text)
    };
    let state = State::new([nat("10.0.0.1:80/tcp"), nat("10.0.0.1:443/tcp")]).unwrap();
    let alone = |backend| {
        state.apply(Change::AddService(service(
            "10.0.0.2:80/tcp",
            Mode::Nat,
            &[backend],
        )))
    };
    assert!(matches!(
        alone("10.1.0.2:443"),
        Err(ModelError::SharedNatBackend { .. })
    ));
    assert!(alone("10.1.0.2:8080").is_ok());
}

#[test]
fn a_name_is_short_and_plain() {
    for name in ["", "a b", "web/1", "\u{e9}", &"x".repeat(65)] {
        let mut service = member("10.0.0.1:80/tcp");
        service.group = Some(name.to_owned());
        let refused = State::new([service]).unwrap_err();
        assert!(
            matches!(refused, ModelError::Invalid { field: "group", .. }),
            "{name}"
        );
    }
}
