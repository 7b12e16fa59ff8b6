//! A service changes its pool while it runs: its flows follow, or it is refused.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::HASH_KEY_WORDS;
use lb_userspace::{
    agent::{ChangeError, Core},
    config::Tunnel,
    dataplane::memory::MemoryDataplane,
    health::{Event, Target},
    model::{Backend, Change, Mode, Scheduler, Service, ServiceId, Settings},
    plan::{census, ticks},
    snapshot::Condition,
};

use crate::{
    frame::{self, Sent, control::ACK},
    reach::reached,
};

const HTTP: &str = "10.0.0.1:80/tcp";
const HTTPS: &str = "10.0.0.1:443/tcp";
const OTHER: &str = "10.0.0.1:444/tcp";
const ALL: [&str; 3] = [HTTP, HTTPS, OTHER];
const FLOWS: u16 = 400;

fn id(text: &str) -> ServiceId {
    text.parse().unwrap()
}

fn backend(n: u8) -> Backend {
    Backend::at(SocketAddr::from(([10, 1, 0, n], 8_080)))
}

fn service(text: &str, group: Option<&str>) -> Service {
    Service {
        group: group.map(str::to_owned),
        ring_size: Some(251),
        backends: (1..5).map(backend).collect(),
        ..Service::new(id(text), Mode::Ipip)
    }
}

/// The first two in a group, the third by itself.
fn agent(edit: impl Fn(&mut Service)) -> Core<MemoryDataplane> {
    let mut dataplane = MemoryDataplane::default();
    dataplane.tables.control.lookup_bits = 4;
    dataplane.tables.control.hash_key = std::array::from_fn::<_, HASH_KEY_WORDS, _>(|n| {
        0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n as u64 + 1) | 1
    });
    let mut core = Core::new("regroup".to_owned(), Tunnel::default(), dataplane).unwrap();
    for n in 1..10u8 {
        core.network(reached(IpAddr::from([10, 1, 0, n]), n));
    }
    let groups = [Some("web"), Some("web"), None];
    let services = ALL.into_iter().zip(groups).map(|(text, group)| {
        let mut service = service(text, group);
        edit(&mut service);
        service
    });
    core.change(Change::Replace(services.collect())).unwrap();
    core
}

fn send(core: &Core<MemoryDataplane>, port: u16, to: &str, sent: Sent) -> IpAddr {
    let from = SocketAddr::from(([192, 0, 2, 7], port));
    frame::send(&core.dataplane().tables, from, id(to), sent).unwrap()
}

/// Where flows of every service are that were opened a moment ago.
fn open(core: &Core<MemoryDataplane>) -> BTreeMap<(&'static str, u16), IpAddr> {
    let flows = ALL
        .into_iter()
        .flat_map(|to| (1_000..1_000 + FLOWS).map(move |port| (to, port)));
    flows
        .map(|(to, port)| {
            let reached = send(core, port, to, Sent::Opening);
            assert_eq!(send(core, port, to, Sent::Segment(ACK)), reached);
            ((to, port), reached)
        })
        .collect()
}

fn assert_unmoved(core: &Core<MemoryDataplane>, flows: &BTreeMap<(&'static str, u16), IpAddr>) {
    for (&(to, port), &reached) in flows {
        let now = send(core, port, to, Sent::Segment(ACK));
        assert_eq!(now, reached, "{to} {port}");
    }
}

fn move_to(
    core: &mut Core<MemoryDataplane>,
    service: &str,
    group: Option<&str>,
) -> Result<(), ChangeError> {
    let settings = Settings {
        group: Some(group.map(str::to_owned)),
        ..Settings::default()
    };
    core.change(Change::EditService(id(service), settings))
}

/// Refused, for what is named, and without a trace.
fn assert_refused(
    core: &mut Core<MemoryDataplane>,
    service: &str,
    group: Option<&str>,
    obstacle: &str,
) {
    let before = (core.layout().clone(), core.state().clone());
    match move_to(core, service, group) {
        Err(ChangeError::Forgets(why)) => assert!(why.contains(obstacle), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(before, (core.layout().clone(), core.state().clone()));
}

/// Lets time pass until slots that move are steady.
fn rest(core: &mut Core<MemoryDataplane>) {
    for _ in 0..6 {
        let tables = &core.dataplane().tables;
        let now = tables.time.get() + ticks(Duration::from_secs(8 * 60));
        tables.time.set(now);
        let mut flows = tables;
        let census = census::sweep(core.layout(), &mut flows, now).unwrap();
        core.swept(census).unwrap();
    }
}

#[test]
fn flows_follow_a_service_that_joins_or_leaves_a_group_at_rest_whichever_comes_first() {
    for mode in [Mode::Ipip, Mode::Nat] {
        for scheduler in [
            Scheduler::Maglev,
            Scheduler::SourceHash,
            Scheduler::ThreeTupleHash,
        ] {
            let mut core = agent(|service| {
                (service.mode, service.scheduler) = (mode, scheduler);
                if mode == Mode::Nat {
                    let port = service.id.vip.port();
                    service.group = None;
                    for backend in &mut service.backends {
                        backend.address.set_port(port);
                    }
                }
            });
            let flows = open(&core);
            if mode == Mode::Nat {
                // Alone in a group, with the port that it has there.
                move_to(&mut core, HTTP, Some("web")).unwrap();
                move_to(&mut core, HTTP, None).unwrap();
            } else {
                move_to(&mut core, OTHER, Some("web")).unwrap();
                assert_eq!(core.layout().pools.len(), 1);
                for service in [HTTP, HTTPS, OTHER] {
                    move_to(&mut core, service, None).unwrap();
                    assert_unmoved(&core, &flows);
                }
                assert_eq!(core.layout().pools.len(), 3);
            }
            assert_unmoved(&core, &flows);
        }
    }
}

#[test]
fn a_pool_stays_with_most_of_its_services() {
    let mut core = agent(|_| {});
    move_to(&mut core, OTHER, Some("web")).unwrap();
    let number = core.layout().placed(id(HTTPS)).unwrap().number;
    // The first of its group in order, and alone: the others' pool is not its own.
    move_to(&mut core, HTTP, None).unwrap();
    assert_eq!(core.layout().placed(id(HTTPS)).unwrap().number, number);
    assert_ne!(core.layout().placed(id(HTTP)).unwrap().number, number);
}

#[test]
fn a_service_waits_for_its_own_slots_and_those_of_the_group() {
    for changed in [HTTP, OTHER] {
        // A backend too many here, and then as many as there.
        let mut core = agent(|_| {});
        let gone = Change::RemoveBackend(id(changed), backend(4).address);
        core.change(gone).unwrap();
        let flows = open(&core);
        let back = Change::AddBackend(id(changed), backend(4));
        core.change(back).unwrap();
        let address = backend(4).address;
        let service = core.state().lead(id(changed));
        let passed = Event::new(Target { service, address }, Condition::Up);
        assert!(core.health(passed));
        core.enforce().unwrap();
        assert_refused(&mut core, OTHER, Some("web"), "slots move or settle");
        assert_unmoved(&core, &flows);
        rest(&mut core);
        let flows = open(&core);
        move_to(&mut core, OTHER, Some("web")).unwrap();
        assert_unmoved(&core, &flows);
    }
}

#[test]
fn a_service_whose_flows_are_all_recorded_is_refused() {
    type Edit = fn(&mut Service);
    let edits: [Edit; 3] = [
        |s| s.scheduler = Scheduler::RoundRobin,
        |s| s.persistence = Duration::from_secs(60),
        |s| s.backends[0].max_connections = Some(1_000),
    ];
    for edit in edits {
        let mut core = agent(edit);
        let flows = open(&core);
        assert_refused(
            &mut core,
            OTHER,
            Some("web"),
            "every flow of it is recorded",
        );
        assert_refused(&mut core, HTTP, None, "every flow of it is recorded");
        assert_unmoved(&core, &flows);
    }
}

#[test]
fn a_service_whose_packets_would_get_another_port_is_refused() {
    let mut core = agent(|service| {
        service.mode = Mode::Nat;
        if service.id == id(OTHER) {
            service.backends.truncate(0);
        }
    });
    let single = Service {
        mode: Mode::Nat,
        backends: (5..9).map(backend).collect(),
        ..service("10.0.0.9:80/tcp", None)
    };
    core.change(Change::AddService(single)).unwrap();
    assert_refused(&mut core, "10.0.0.9:80/tcp", Some("other"), "another port");
}

#[test]
fn a_stateless_service_moves_at_any_time() {
    let mut core = agent(|service| service.moving_time = Some(Duration::ZERO));
    core.change(Change::RemoveBackend(id(OTHER), backend(4).address))
        .unwrap();
    core.change(Change::AddBackend(id(OTHER), backend(4)))
        .unwrap();
    move_to(&mut core, OTHER, Some("web")).unwrap();
}

#[test]
fn what_is_known_of_backends_follows_a_service_out_of_its_group() {
    let mut core = agent(|service| service.moving_time = Some(Duration::ZERO));
    let down = Target {
        service: id(HTTP),
        address: backend(1).address,
    };
    assert!(core.health(Event::new(down, Condition::Down)));
    core.enforce().unwrap();
    move_to(&mut core, HTTPS, None).unwrap();
    let own = Target {
        service: id(HTTPS),
        ..down
    };
    assert_eq!(core.targets()[&own].initial, Condition::Down);
    for port in 1..FLOWS {
        let reached = send(&core, port, HTTPS, Sent::Opening);
        assert_ne!(reached, down.address.ip());
    }
}
