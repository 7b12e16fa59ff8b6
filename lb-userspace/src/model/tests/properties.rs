//! What must hold after any changes, and for any text.

use proptest::{collection::vec, prelude::*};

use super::*;

/// Changes over a few addresses, so that they meet: valid and invalid ones.
fn any_change() -> impl Strategy<Value = Change> {
    let id = (1u8..4, prop_oneof![Just("tcp"), Just("udp")])
        .prop_map(|(host, protocol)| id(&format!("10.0.0.{host}:80/{protocol}")));
    let address = prop_oneof![
        (0u8..5, 80u16..82).prop_map(|(host, port)| SocketAddr::from(([10, 1, 0, host], port))),
        Just("10.0.0.1:81".parse().unwrap()),
        Just("[fd00::2]:80".parse().unwrap()),
    ];
    let weight = 0u16..=1_100;
    let admin = prop_oneof![Just(Admin::Active), Just(Admin::Draining)];
    let limit = prop_oneof![4 => Just(None), 1 => (0u32..3).prop_map(Some)];
    let backend = (
        address.clone(),
        weight.clone(),
        admin.clone(),
        limit.clone(),
    )
        .prop_map(|(address, weight, admin, max_connections)| Backend {
            weight,
            admin,
            max_connections,
            ..Backend::at(address)
        });
    let mode = prop_oneof![Just(Mode::Nat), Just(Mode::Ipip)];
    let service = (id.clone(), mode, any_settings(), vec(backend.clone(), 0..3)).prop_map(
        |(id, mode, settings, backends)| {
            let mut service = service(&id.to_string(), mode, &[]);
            settings.apply(&mut service).unwrap();
            Service {
                backends,
                ..service
            }
        },
    );
    let edit = (
        id.clone(),
        address.clone(),
        any::<bool>(),
        weight,
        admin,
        limit,
    )
        .prop_map(
            |(id, address, both, weight, admin, limit)| Change::EditBackend {
                id,
                address,
                weight: Some(weight),
                admin: both.then_some(admin),
                max_connections: (!both).then_some(limit),
                rated: Default::default(),
                tier: None,
            },
        );
    prop_oneof![
        4 => service.clone().prop_map(Change::AddService),
        1 => id.clone().prop_map(Change::RemoveService),
        4 => (id.clone(), backend).prop_map(|(id, b)| Change::AddBackend(id, b)),
        2 => (id.clone(), address).prop_map(|(id, a)| Change::RemoveBackend(id, a)),
        3 => edit,
        2 => (id, any_settings()).prop_map(|(id, s)| Change::EditService(id, s)),
        1 => vec(service, 0..3).prop_map(Change::Replace),
    ]
}

/// Settings of which each may be absent, good or, now and then, out of range.
fn any_settings() -> impl Strategy<Value = Settings> + Clone {
    let seconds = |most: u64| prop_oneof![3 => 0..3u64, 1 => most - 1..=most + 1];
    let time = || proptest::option::of(seconds(WEEK.as_secs()).prop_map(Duration::from_secs));
    let scheduler = proptest::sample::select(Scheduler::value_variants());
    let flow_state = proptest::sample::select(FlowState::value_variants());
    let on_down = proptest::sample::select(OnDown::value_variants());
    let no_backend = proptest::sample::select(Unserved::value_variants());
    (
        proptest::option::of(prop_oneof![Just(251), Just(1_021), Just(1_000)]),
        proptest::option::of(scheduler),
        proptest::option::of(flow_state),
        proptest::option::of(on_down),
        proptest::option::of(no_backend),
        time(),
        time(),
        time(),
        proptest::option::of(prop_oneof![Just(24), Just(33)]),
        proptest::option::of(prop_oneof![Just(0), Just(101)]),
        time().prop_map(|time| time.map(Failback::After)),
        proptest::option::weighted(0.3, proptest::option::of(Just("web".to_owned()))),
    )
        .prop_map(
            |(
                ring_size,
                scheduler,
                flow_state,
                on_down,
                no_backend,
                moving_time,
                dead_after,
                persistence,
                prefix,
                spill_below,
                failback,
                group,
            )| Settings {
                ring_size,
                scheduler,
                flow_state,
                on_down,
                no_backend,
                moving_time,
                dead_after,
                persistence,
                persistence_prefix: prefix,
                spill_below,
                failback,
                group,
                ..Settings::default()
            },
        )
}

proptest! {
    #[test]
    fn whatever_changes_are_tried_the_state_stays_valid(changes in vec(any_change(), 0..40)) {
        let mut state = State::default();
        for change in changes {
            if let Ok(next) = state.apply(change) {
                state = next;
            }
            let services: Vec<_> = state.services().cloned().collect();
            prop_assert_eq!(State::new(services), Ok(state.clone()));
        }
    }

    #[test]
    fn an_added_service_can_be_removed_without_a_trace(changes in vec(any_change(), 0..20)) {
        let mut state = State::default();
        for change in changes {
            let Ok(next) = state.apply(change.clone()) else { continue };
            if let Change::AddService(service) = change {
                prop_assert_eq!(next.apply(Change::RemoveService(service.id)), Ok(state));
            }
            state = next;
        }
    }

    #[test]
    fn every_service_reads_back_from_its_text(v6: bool, bits: u128, port in 1u16.., udp: bool) {
        let ip: std::net::IpAddr = match v6 {
            true => std::net::Ipv6Addr::from(bits).into(),
            false => std::net::Ipv4Addr::from(bits as u32).into(),
        };
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let id = ServiceId::new((ip, port).into(), protocol);
        if let Ok(read) = id.to_string().parse::<ServiceId>() {
            prop_assert_eq!(read, id);
        }
    }

    #[test]
    fn no_text_makes_reading_a_service_panic(text in ".{0,60}") {
        let _ = text.parse::<ServiceId>();
        let _ = Backend::parse_address(&text);
    }
}
