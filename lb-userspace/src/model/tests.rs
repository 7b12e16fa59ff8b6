//! Tests of the model: what is accepted, what is refused, and that refusals change nothing.

use std::time::Duration;

use super::*;

mod checks;
mod groups;
mod properties;
mod quic;
mod settings;

fn id(text: &str) -> ServiceId {
    text.parse().unwrap()
}

fn backend(text: &str) -> Backend {
    let address = Backend::parse_address(text).unwrap();
    Backend::at(address)
}

fn service(text: &str, mode: Mode, backends: &[&str]) -> Service {
    Service {
        backends: backends.iter().map(|b| backend(b)).collect(),
        ..Service::new(id(text), mode)
    }
}

fn web() -> State {
    State::new([service(
        "10.0.0.1:80/tcp",
        Mode::Nat,
        &["10.1.0.2:80", "10.1.0.3:80"],
    )])
    .unwrap()
}

#[test]
fn a_service_reads_as_it_is_written() {
    for text in [
        "10.0.0.1:80/tcp",
        "[2001:db8::1]:443/udp",
        "10.0.0.1:*/udp",
        "10.0.0.1:2905/sctp",
        "[2001:db8::1]:*/tcp",
        "10.0.0.1:8000-8999/tcp",
        "203.0.113.0/28:80/tcp",
        "203.0.113.0/28:*/udp",
        "10.0.0.0/8:1-65535/tcp",
        "[2001:db8::/64]:443-444/udp",
        "[2001:db8::8/125]:*/tcp",
    ] {
        assert_eq!(id(text).to_string(), text);
        assert_eq!(id(text).has_every_port(), text.contains('*'), "{text}");
    }
}

#[test]
fn one_address_and_one_port_are_no_prefix_and_no_range() {
    for (text, same) in [
        ("10.0.0.1/32:80-80/tcp", "10.0.0.1:80/tcp"),
        ("[2001:db8::1/128]:*/tcp", "[2001:db8::1]:*/tcp"),
        ("[2001:db8::]/64:80/tcp", "[2001:db8::/64]:80/tcp"),
    ] {
        assert_eq!(id(text), id(same), "{text}");
    }
}

#[test]
fn a_prefix_or_range_that_is_none_is_refused_by_what_would_be_right() {
    for (text, said) in [
        ("203.0.113.1/28:80/tcp", "write 203.0.113.0/28"),
        ("[2001:db8::1/64]:80/tcp", "write 2001:db8::/64"),
        ("203.0.113.0/33:80/tcp", "/8 to /32"),
        ("0.0.0.0/0:80/tcp", "not a routable unicast address"),
        ("10.0.0.0/7:80/tcp", "/8 to /32"),
        ("[2001:db8::/48]:80/tcp", "/64 to /128"),
        ("[2001:db8::/x]:80/tcp", "/64 to /128"),
        ("10.0.0.1:90-80/tcp", "the lower one first"),
        ("10.0.0.1:80-65536/tcp", "the lower one first"),
        ("10.0.0.1:80-+90/tcp", "the lower one first"),
        ("10.0.0.1:80-*/tcp", "the lower one first"),
    ] {
        let refused = text.parse::<ServiceId>().unwrap_err().to_string();
        assert!(refused.contains(said), "{text}: {refused}");
    }
}

#[test]
fn what_is_no_service_is_refused() {
    for text in [
        "",
        "/",
        "10.0.0.1",
        "10.0.0.1:80",
        "10.0.0.1/tcp",
        "10.0.0.1:80/TCP",
        "10.0.0.1:80/icmp",
        "10.0.0.1:0/tcp",
        "10.0.0.1:**/tcp",
        "10.0.0.1:0-80/tcp",
        "10.0.0.1:*-80/tcp",
        "10.0.0.0/28/tcp",
        "/28:80/tcp",
        "10.0.0.1*/tcp",
        "2001:db8::1:*/tcp",
        ":*/tcp",
        "10.0.0.1:65536/tcp",
        "2001:db8::1:80/tcp",
        "web:80/tcp",
        "10.0.0.1:80/tcp ",
        "127.0.0.1:80/tcp",
        "0.0.0.0:80/tcp",
        "224.0.0.1:80/tcp",
        "255.255.255.255:80/tcp",
        "[::]:80/tcp",
        "[::1]:80/tcp",
        "[ff02::1]:80/tcp",
        "[fe80::1]:80/tcp",
        "[::ffff:10.0.0.1]:80/tcp",
    ] {
        assert!(text.parse::<ServiceId>().is_err(), "{text}");
    }
}

#[test]
fn an_address_with_a_scope_id_is_refused_and_the_bare_one_named() {
    let refused = "[2001:db8::1%3]:80/tcp".parse::<ServiceId>().unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("write [2001:db8::1]:80"), "{text}");
    let refused = Backend::parse_address("[2001:db8::2%3]:80").unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("write [2001:db8::2]:80"), "{text}");
}

#[test]
fn scope_ids_and_flow_labels_that_were_not_parsed_are_refused_by_their_field() {
    let qualified = |host: &str, flowinfo, scope_id| {
        let ip = host.parse().unwrap();
        SocketAddr::V6(std::net::SocketAddrV6::new(ip, 80, flowinfo, scope_id))
    };
    for (flowinfo, scope_id) in [(0, 3), (3, 0)] {
        let good = service("[2001:db8::1]:80/tcp", Mode::Nat, &["[2001:db8::2]:80"]);
        let (mut vip, mut address) = (good.clone(), good.clone());
        vip.id.vip = qualified("2001:db8::1", flowinfo, scope_id);
        address.backends[0].address = qualified("2001:db8::2", flowinfo, scope_id);
        assert!(State::new([good]).is_ok());
        for (bad, expected) in [(vip, "vip"), (address, "address")] {
            match State::new([bad]) {
                Err(ModelError::Invalid { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);

/// A change of a valid service that makes it invalid, and the field to be named.
type Spoil = (fn(&mut Service), &'static str);

#[test]
fn values_out_of_range_are_refused_by_their_field() {
    let spoils: &[Spoil] = &[
        (|s| s.ring_size = Some(1_000), "ring_size"),
        (|s| s.backends[0].weight = MAX_WEIGHT + 1, "weight"),
        (|s| s.moving_time = Some(WEEK + MILLISECOND), "moving_time"),
        (|s| s.dead_after = WEEK + MILLISECOND, "dead_after"),
        (|s| s.persistence = WEEK + MILLISECOND, "persistence"),
        (|s| s.persistence_prefix = Some(0), "persistence_prefix"),
        (|s| s.persistence_prefix = Some(33), "persistence_prefix"),
        (
            |s| s.backends[0].max_connections = Some(0),
            "max_connections",
        ),
        (|s| s.backends[0].address.set_port(0), "address"),
        (|s| s.backends[0].address.set_ip(s.id.vip.ip()), "address"),
        (|s| s.backends[0] = backend("[fd00::2]:80"), "address"),
        (
            |s| s.backends = vec![backend("10.1.0.2:80"); MAX_BACKENDS + 1],
            "backends",
        ),
    ];
    for (index, (spoil, expected)) in spoils.iter().enumerate() {
        let mut service = service("10.0.0.1:80/tcp", Mode::Nat, &["10.1.0.2:80"]);
        spoil(&mut service);
        match State::new([service]) {
            Err(ModelError::Invalid { field, .. }) => assert_eq!(field, *expected, "{index}"),
            other => panic!("{index}: {other:?}"),
        }
    }
}

#[test]
fn the_bounds_themselves_are_accepted() {
    let mut service = service(
        "10.0.0.1:80/tcp",
        Mode::Nat,
        &["10.1.0.2:80", "10.1.0.3:80"],
    );
    service.backends[0].weight = MAX_WEIGHT;
    service.backends[1].weight = 0;
    service.backends[0].max_connections = Some(u32::MAX);
    service.backends[1].max_connections = Some(1);
    (service.moving_time, service.dead_after) = (Some(WEEK), WEEK);
    assert!(State::new([service.clone()]).is_ok());
    service.dead_after = Duration::ZERO;
    for (millis, count) in [(10, 1), (3_600_000, 100)] {
        let check = &mut service.health.checks[0];
        check.interval = Duration::from_millis(millis);
        check.timeout = check.interval;
        (check.rise, check.fall) = (count, count);
        assert!(State::new([service.clone()]).is_ok(), "{millis}");
    }
}

#[test]
fn ipip_reaches_backends_of_the_other_family() {
    for (vip, address) in [
        ("10.0.0.1:80/tcp", "[fd00::2]:80"),
        ("[2001:db8::1]:80/tcp", "10.1.0.2:80"),
    ] {
        assert!(State::new([service(vip, Mode::Ipip, &[address])]).is_ok());
        assert!(State::new([service(vip, Mode::Nat, &[address])]).is_err());
    }
}

#[test]
fn a_backend_serves_two_nat_services_only_with_different_protocols() {
    let with = |vip, mode| web().apply(Change::AddService(service(vip, mode, &["10.1.0.3:80"])));
    let refused = with("10.0.0.2:80/tcp", Mode::Nat).unwrap_err();
    let (id, other) = (id("10.0.0.2:80/tcp"), id("10.0.0.1:80/tcp"));
    let address = "10.1.0.3:80".parse().unwrap();
    assert_eq!(refused, ModelError::SharedNatBackend { id, other, address });
    assert!(with("10.0.0.2:80/udp", Mode::Nat).is_ok());
    assert!(with("10.0.0.2:80/tcp", Mode::Ipip).is_ok());
}

#[test]
fn a_nat_service_of_every_port_has_its_backends_alone_but_for_ports_of_its_own_vip() {
    let every = service("10.0.0.1:*/tcp", Mode::Nat, &["10.1.0.2:80", "10.1.0.3:80"]);
    let singles = [
        ("10.0.0.1:80/tcp", "10.1.0.2:80", true),
        // Who comes to port 8080 would be answered from port 80.
        ("10.0.0.1:80/tcp", "10.1.0.2:8080", false),
        ("10.0.0.2:80/tcp", "10.1.0.2:80", false),
        ("10.0.0.2:80/tcp", "10.1.0.4:80", true),
        ("10.0.0.2:80/udp", "10.1.0.2:80", true),
        ("10.0.0.2:*/tcp", "10.1.0.2:80", false),
        ("10.0.0.2:*/tcp", "10.1.0.4:80", true),
        ("10.0.0.1:*/udp", "10.1.0.2:80", true),
    ];
    for (vip, backend, may) in singles {
        let single = service(vip, Mode::Nat, &[backend]);
        for both in [[&every, &single], [&single, &every]] {
            let refused = State::new(both.map(Clone::clone)).err();
            let shared = matches!(refused, Some(ModelError::SharedNatBackend { .. }));
            assert_eq!((refused.is_none(), shared), (may, !may), "{vip} {backend}");
        }
    }
}

#[test]
fn a_backend_added_later_is_checked_like_the_first() {
    let state = web().apply(Change::AddService(service(
        "10.0.0.2:80/tcp",
        Mode::Nat,
        &[],
    )));
    let state = state.unwrap();
    let add = |text| state.apply(Change::AddBackend(id("10.0.0.2:80/tcp"), backend(text)));
    assert!(matches!(
        add("10.1.0.2:80"),
        Err(ModelError::SharedNatBackend { .. })
    ));
    assert!(matches!(
        add("[fd00::2]:80"),
        Err(ModelError::Invalid { .. })
    ));
    assert!(add("10.1.0.2:81").is_ok());
}

#[test]
fn an_edit_changes_what_it_names_and_leaves_the_rest() {
    let (id, address) = (id("10.0.0.1:80/tcp"), "10.1.0.2:80".parse().unwrap());
    let edit = |state: State, weight, admin, max_connections| {
        state
            .apply(Change::EditBackend {
                id,
                address,
                weight,
                admin,
                max_connections,
                rated: Default::default(),
                tier: None,
            })
            .unwrap()
    };
    let seen = |state: &State| {
        let backend = state.service(id).unwrap().backend(address).unwrap();
        (backend.weight, backend.admin, backend.max_connections)
    };
    let state = edit(web(), Some(7), None, None);
    assert_eq!(seen(&state), (7, Admin::Active, None));
    let state = edit(state, None, Some(Admin::Draining), None);
    assert_eq!(seen(&state), (7, Admin::Draining, None));
    let state = edit(state, None, None, Some(Some(9)));
    assert_eq!(seen(&state), (7, Admin::Draining, Some(9)));
    let state = edit(state, Some(0), Some(Admin::Active), None);
    assert_eq!(seen(&state), (0, Admin::Active, Some(9)));
    let state = edit(state, None, None, Some(None));
    assert_eq!(seen(&state), (0, Admin::Active, None));
    assert_eq!(
        state.service(id).unwrap().backends[1],
        backend("10.1.0.3:80")
    );
}

#[test]
fn removing_a_backend_keeps_the_order_of_the_others() {
    let id = id("10.0.0.1:80/tcp");
    let state = web()
        .apply(Change::AddBackend(id, backend("10.1.0.4:80")))
        .unwrap();
    let removed = Change::RemoveBackend(id, "10.1.0.3:80".parse().unwrap());
    let state = state.apply(removed).unwrap();
    let left: Vec<_> = state
        .service(id)
        .unwrap()
        .backends
        .iter()
        .map(|b| b.address)
        .collect();
    assert_eq!(
        left,
        [
            "10.1.0.2:80".parse().unwrap(),
            "10.1.0.4:80".parse().unwrap()
        ]
    );
}

#[test]
fn what_is_not_there_cannot_be_changed() {
    let (id, other) = (id("10.0.0.1:80/tcp"), id("10.0.0.9:80/tcp"));
    let address = "10.1.0.9:80".parse().unwrap();
    let edit = |id| Change::EditBackend {
        id,
        address,
        weight: Some(1),
        admin: None,
        max_connections: None,
        rated: Default::default(),
        tier: None,
    };
    for change in [
        Change::RemoveService(other),
        Change::RemoveBackend(other, address),
        Change::EditService(other, Settings::default()),
        edit(other),
    ] {
        assert_eq!(
            web().apply(change),
            Err(ModelError::UnknownService { id: other })
        );
    }
    for change in [Change::RemoveBackend(id, address), edit(id)] {
        assert_eq!(
            web().apply(change),
            Err(ModelError::UnknownBackend { id, address })
        );
    }
}

#[test]
fn a_replacement_is_taken_whole_or_not_at_all() {
    let good = service("10.0.0.2:80/tcp", Mode::Nat, &["10.1.0.2:80"]);
    let state = web().apply(Change::Replace(vec![good.clone()])).unwrap();
    assert_eq!(state.services().collect::<Vec<_>>(), [&good]);
    let refused = web().apply(Change::Replace(vec![good.clone(), good.clone()]));
    assert_eq!(refused, Err(ModelError::DuplicateService { id: good.id }));
}
