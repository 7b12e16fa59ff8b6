//! Services of a group share one pool: the agent's own code over tables in memory, and packets
//! through them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_common::tables::{FlowKey, HASH_KEY_WORDS, Table, flow_kind};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::{FlowTables as _, memory::MemoryDataplane},
    health::{Event, Target},
    model::{Admin, Change, ServiceId},
    plan::census,
    snapshot::Condition,
};

use crate::{
    frame::{self, Sent, control::ACK},
    reach::reached,
};

const HTTP: &str = "10.0.0.1:80/tcp";
const HTTPS: &str = "10.0.0.1:443/tcp";
const CLIENTS: u8 = 60;

fn id(text: &str) -> ServiceId {
    text.parse().unwrap()
}

fn core_over(dataplane: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("groups".to_owned(), Tunnel::default(), dataplane).unwrap();
    for n in 1..10u8 {
        core.network(reached(IpAddr::from([10, 1, 0, n]), n));
    }
    core
}

/// Empty maps with a hash key of their own.
pub fn keyed() -> MemoryDataplane {
    let mut dataplane = MemoryDataplane::default();
    dataplane.tables.control.lookup_bits = 4;
    dataplane.tables.control.hash_key = std::array::from_fn::<_, HASH_KEY_WORDS, _>(|n| {
        0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n as u64 + 1) | 1
    });
    dataplane
}

/// An agent whose configuration says so, with a first service of this mode and these settings and
/// four backends, and a second one that shares them.
fn agent(mode: &str, settings: &str) -> Core<MemoryDataplane> {
    let backends: String = (1..5u8)
        .map(|n| format!("{{ address = \"10.1.0.{n}:8080\" }},"))
        .collect();
    let text = format!(
        "[[service]]\nvip = \"{HTTP}\"\nmode = \"{mode}\"\ngroup = \"web\"\n{settings}\nbackend = [{backends}]\n\
         [[service]]\nvip = \"{HTTPS}\"\ngroup = \"web\"\n"
    );
    let config = config::parse(&text, "test").unwrap();
    let mut core = core_over(keyed());
    core.change(Change::Replace(config.services)).unwrap();
    core
}

/// The same maps with another agent.
fn restarted(core: &Core<MemoryDataplane>) -> Core<MemoryDataplane> {
    let services = core.state().services().cloned().collect();
    let before = core.dataplane();
    let mut next = core_over(MemoryDataplane {
        tables: before.tables.clone(),
        moved: before.moved.clone(),
        ..MemoryDataplane::default()
    });
    next.change(Change::Replace(services)).unwrap();
    next
}

fn client(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], port))
}

fn send(core: &Core<MemoryDataplane>, from: SocketAddr, to: &str, sent: Sent) -> IpAddr {
    frame::send(&core.dataplane().tables, from, id(to), sent).unwrap()
}

/// Opens a connection and uses it.
fn connect(core: &Core<MemoryDataplane>, host: u8, port: u16, to: &str) -> IpAddr {
    let reached = send(core, client(host, port), to, Sent::Opening);
    assert_eq!(
        send(core, client(host, port), to, Sent::Segment(ACK)),
        reached
    );
    reached
}

#[test]
fn a_client_reaches_the_same_backend_through_all_services_of_its_group() {
    for mode in ["nat", "ipip"] {
        for settings in [
            "scheduler = \"source-hash\"",
            "scheduler = \"round-robin\"\npersistence = \"5m\"",
            "persistence = \"5m\"",
        ] {
            let core = agent(mode, settings);
            let mut used = BTreeSet::new();
            for host in 1..CLIENTS {
                let reached = connect(&core, host, 1_000, HTTP);
                for port in 1_001..1_010 {
                    let other = [HTTP, HTTPS][usize::from(port % 2)];
                    assert_eq!(connect(&core, host, port, other), reached, "{settings}");
                }
                used.insert(reached);
            }
            assert_eq!(used.len(), 4, "{settings}");
        }
    }
}

#[test]
fn turns_and_flows_in_progress_are_counted_over_the_group() {
    for scheduler in ["round-robin", "least-connections"] {
        let core = agent("ipip", &format!("scheduler = \"{scheduler}\""));
        let reached: Vec<IpAddr> = (0..8u16)
            .map(|n| connect(&core, 1, 1_000 + n, [HTTP, HTTPS][usize::from(n % 2)]))
            .collect();
        let first: BTreeSet<_> = reached[..4].iter().collect();
        assert_eq!(first.len(), 4, "{scheduler}: {reached:?}");
        let second: BTreeSet<_> = reached[4..].iter().collect();
        assert_eq!(second.len(), 4, "{scheduler}: {reached:?}");
    }
}

#[test]
fn a_change_of_one_service_is_one_of_all_at_one_switch() {
    let mut core = agent("ipip", "scheduler = \"source-hash\"");
    let generation = core.layout().generation;
    let drained: IpAddr = connect(&core, 1, 1_000, HTTP);
    core.change(Change::EditBackend {
        id: id(HTTPS),
        address: SocketAddr::new(drained, 8080),
        weight: None,
        admin: Some(Admin::Draining),
        max_connections: None,
        rated: Default::default(),
        tier: None,
    })
    .unwrap();
    assert_eq!(core.layout().generation, generation + 1);
    for host in 1..CLIENTS {
        let port = 2_000 + u16::from(host);
        let reached = connect(&core, host, port, HTTP);
        assert_ne!(reached, drained);
        assert_eq!(connect(&core, host, port, HTTPS), reached);
    }
    // Who was there stays.
    assert_eq!(
        send(&core, client(1, 1_000), HTTP, Sent::Segment(ACK)),
        drained
    );
}

#[test]
fn a_failed_check_counts_for_the_whole_group_also_when_its_first_service_goes() {
    let mut core = agent("nat", "scheduler = \"round-robin\"");
    let targets = core.targets();
    // Every backend is checked once, for the service that comes first.
    assert_eq!(targets.len(), 4);
    assert!(targets.keys().all(|target| target.service == id(HTTP)));
    assert!(targets.values().all(|config| !config.alone));
    let address = "10.1.0.2:8080".parse().unwrap();
    let lead = target(HTTP, address);
    let event = Event {
        changed: true,
        ..Event::new(lead, Condition::Down)
    };
    assert!(core.health(event));
    let avoided = |core: &Core<MemoryDataplane>, to: &str, port: u16| {
        (0..40).all(|n| connect(core, 9, port + n, to) != address.ip())
    };
    assert!(avoided(&core, HTTPS, 1_000));
    core.enforce().unwrap();
    assert!(avoided(&core, HTTPS, 2_000) && avoided(&core, HTTP, 2_000));
    core.change(Change::RemoveService(id(HTTP))).unwrap();
    assert!(avoided(&core, HTTPS, 3_000));
    let targets = core.targets();
    assert_eq!(targets[&target(HTTPS, address)].initial, Condition::Down);
    // Flows arrive at the VIP's port, and the backends' own are only probed.
    assert!(targets.values().all(|config| !config.alone));
}

fn target(service: &str, address: SocketAddr) -> Target {
    Target {
        service: id(service),
        address,
    }
}

#[test]
fn flows_stay_when_a_service_joins_or_leaves_and_over_restarts() {
    let mut core = agent("ipip", "scheduler = \"round-robin\"");
    let reached: Vec<IpAddr> = (1..CLIENTS)
        .map(|n| connect(&core, n, 1_000, HTTP))
        .collect();
    let stay = |core: &Core<MemoryDataplane>| {
        (1..CLIENTS)
            .zip(&reached)
            .all(|(n, &reached)| send(core, client(n, 1_000), HTTP, Sent::Segment(ACK)) == reached)
    };
    let https = core.state().service(id(HTTPS)).unwrap().clone();
    core = restarted(&core);
    assert!(stay(&core));
    assert_eq!(core.layout().pools.len(), 1);
    core.change(Change::RemoveService(id(HTTPS))).unwrap();
    assert!(stay(&core));
    core = restarted(&core);
    core.change(Change::AddService(https)).unwrap();
    assert!(stay(&core));
    assert_eq!(core.layout().pools.len(), 1);
    // The first to be placed leaves, and its number stays the pool's.
    let number = *core.layout().pools.keys().next().unwrap();
    let http = core.state().service(id(HTTP)).unwrap().clone();
    core.change(Change::RemoveService(id(HTTP))).unwrap();
    let later: Vec<IpAddr> = (1..CLIENTS)
        .map(|n| connect(&core, n, 2_000, HTTPS))
        .collect();
    core = restarted(&core);
    core.change(Change::AddService(http)).unwrap();
    assert_eq!(core.layout().pools.keys().collect::<Vec<_>>(), [&number]);
    for (n, reached) in (1..CLIENTS).zip(later) {
        assert_eq!(
            send(&core, client(n, 2_000), HTTPS, Sent::Segment(ACK)),
            reached
        );
    }
}

#[test]
fn a_service_that_changes_its_group_takes_no_records_of_the_other_pool_along() {
    let mut core = agent("ipip", "scheduler = \"round-robin\"");
    let reached: Vec<IpAddr> = (1..CLIENTS)
        .map(|n| connect(&core, n, 1_000, HTTP))
        .collect();
    let mut services: Vec<_> = core.state().services().cloned().collect();
    for service in &mut services {
        if service.id == id(HTTPS) {
            service.group = None;
        }
    }
    connect(&core, 1, 1_000, HTTPS);
    core.change(Change::Replace(services.clone())).unwrap();
    assert_eq!(core.layout().pools.len(), 2);
    // Either may have kept the pool; nobody's records lead to another pool's backends.
    let kept = core.layout().placed(id(HTTPS)).unwrap();
    assert!(kept.services.len() == 1 && !kept.services.contains_key(&id(HTTP)));
    for service in &mut services {
        service.group = Some("other".to_owned());
    }
    core.change(Change::Replace(services)).unwrap();
    assert_eq!(core.layout().pools.len(), 1);
    let all: BTreeSet<IpAddr> = (1..5u8).map(|n| IpAddr::from([10, 1, 0, n])).collect();
    for (n, _) in (1..CLIENTS).zip(reached) {
        assert!(all.contains(&send(&core, client(n, 1_000), HTTP, Sent::Segment(ACK))));
    }
}

#[test]
fn a_sweep_knows_the_flows_of_each_service_and_the_clients_of_the_pool() {
    let core = agent("nat", "scheduler = \"round-robin\"\npersistence = \"5m\"");
    for host in 1..11 {
        connect(&core, host, 1_000, HTTP);
        connect(&core, host, 1_000, HTTPS);
    }
    let mut tables = &core.dataplane().tables;
    let census = census::sweep(core.layout(), &mut tables, 1).unwrap();
    let placed = core.layout().placed(id(HTTP)).unwrap();
    assert_eq!(census.clients(placed), 10);
    let flows: Vec<u32> = placed
        .services
        .values()
        .map(|index| census.services[index].established)
        .collect();
    assert_eq!(flows, [10, 10]);
    let records: u32 = (0..4).map(|member| census.records_of(placed, member)).sum();
    assert_eq!(records, 20);
    // Ten minutes later, nobody is remembered.
    let later = 600 * 954;
    let census = census::sweep(core.layout(), &mut tables, later).unwrap();
    assert_eq!(census.clients(core.layout().placed(id(HTTP)).unwrap()), 0);
    let mut clients = 0;
    let count = &mut |key: &FlowKey, _: &_| clients += u32::from(key.kind == flow_kind::CLIENT);
    tables.scan(Table::Established, count).unwrap();
    assert_eq!(clients, 0);
}

#[test]
fn answers_of_a_nat_backend_lead_back_by_their_ports() {
    let core = agent("nat", "");
    let ports: BTreeSet<u16> = core
        .dataplane()
        .tables
        .ways_back
        .iter()
        .map(|(from, back)| {
            assert_eq!(from.port, back.port);
            u16::from_be(from.port)
        })
        .collect();
    assert_eq!(ports, [80, 443].into());
    assert_eq!(core.dataplane().tables.ways_back.len(), 8);
}
