//! Services of prefixes of addresses and of ranges of ports: which of them a packet finds while they come and go, what the
//! agent makes of them in the maps, and reads back from there.

mod reach;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    memory::MemoryTables,
    steer,
    tables::{Address, Endpoint, feature, owned, service_flag},
};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::{Operation, memory::MemoryDataplane},
    model::{Change, Mode, ModelError, Protocol, Service, ServiceId, State, Unserved},
    plan::{self, Inputs, Layout, endpoint_at, half},
};
use proptest::prelude::*;

use crate::reach::reached;

/// Services one in another, of all shapes.
const CATALOGUE: [&str; 15] = [
    "10.0.0.1:80/tcp",
    "10.0.0.1:*/tcp",
    "10.0.0.1:70-90/tcp",
    "10.0.0.1:75-85/tcp",
    "10.0.0.1:80/udp",
    "10.0.0.2:*/tcp",
    "10.0.0.0/28:80/tcp",
    "10.0.0.0/28:*/tcp",
    "10.0.0.0/24:70-90/tcp",
    "10.0.0.0/24:*/udp",
    "10.0.0.0/30:85-100/tcp",
    "[2001:db8::/64]:*/tcp",
    "[2001:db8::/96]:70-79/tcp",
    "[2001:db8::1]:75/tcp",
    "[2001:db8::1]:74-76/tcp",
];
const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.9",
    "10.0.0.200",
    "10.0.1.0",
    "2001:db8::1",
    "2001:db8::1:0:0:1",
    "2001:db8:0:1::",
];
const PORTS: [u16; 12] = [1, 70, 74, 75, 76, 80, 85, 86, 90, 91, 100, 443];

fn id(text: &str) -> ServiceId {
    text.parse().expect("a service")
}

fn service(vip: &str, mode: &str, backends: &[&str]) -> Service {
    let backends: String = backends
        .iter()
        .map(|address| format!("[[service.backend]]\naddress = \"{address}\"\n"))
        .collect();
    let text = format!("[[service]]\nvip = \"{vip}\"\nmode = \"{mode}\"\n{backends}");
    let config = config::parse(&text, "lb.toml").expect("what is valid");
    config.services[0].clone()
}

/// Everywhere that a packet may go to.
fn endpoints() -> Vec<(IpAddr, u16, Protocol)> {
    let mut all = Vec::new();
    for ip in ADDRESSES {
        let ip = ip.parse().expect("an address");
        for port in PORTS {
            all.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| (ip, port, protocol)));
        }
    }
    all
}

/// Which of some services has a packet, by what is promised alone.
fn chosen(ids: &[ServiceId], (ip, port, protocol): (IpAddr, u16, Protocol)) -> Option<ServiceId> {
    let takes = |id: &&ServiceId| {
        id.protocol == protocol && id.has_address(ip) && id.ports().contains(&port)
    };
    // The length of a prefix, as it is written.
    let length = |id: &ServiceId| -> u32 {
        let text = id.to_string();
        let (before, _) = text.rsplit_once(':').expect("ports");
        match before.trim_end_matches(']').split_once('/') {
            Some((_, length)) => length.parse().expect("a length"),
            None => 128,
        }
    };
    let mine = ids.iter().filter(takes);
    mine.max_by_key(|id| (length(id), std::cmp::Reverse(id.ports().len())))
        .copied()
}

/// Maps, and what the planner knows of them.
struct Maps {
    memory: MemoryDataplane,
    layout: Layout,
    ids: Vec<ServiceId>,
}

impl Maps {
    fn new() -> Self {
        let mut memory = MemoryDataplane::default();
        memory.tables.control.lookup_bits = 4;
        memory.tables.control.hash_key = std::array::from_fn(|n| (n as u64 + 3) << 32 | 0x9e37);
        let (layout, _) = Layout::adopt(&memory).expect("empty maps");
        Self {
            memory,
            layout,
            ids: Vec::new(),
        }
    }

    /// Goes on to other services, and shows the maps after every write, with whether the switch is over. Dies after so
    /// many writes, where there are so many; whether it has.
    fn change(
        &mut self,
        ids: &[ServiceId],
        dies_after: usize,
        mut show: impl FnMut(&MemoryTables, &Layout, bool),
    ) -> bool {
        let services = ids.iter().map(|&id| Service::new(id, Mode::Ipip));
        let state = State::new(services).expect("what is valid");
        let (none, nowhere) = (BTreeMap::new(), BTreeMap::new());
        let plan = plan::plan(
            &self.layout,
            &Inputs {
                state: &state,
                down: &BTreeMap::new(),
                next_hops: &nowhere,
                no_ways: &Default::default(),
                own_addresses: &BTreeSet::new(),
                tunnel: Tunnel::default(),
                unknown_port: Unserved::Pass,
                now: 0,
                census: None,
                overflows: &none,
                traffic: &none,
                links: &BTreeMap::new(),
                devices: &Default::default(),
                vlans: false,
                sampling: &BTreeMap::new(),
                keeps_flows: false,
                only: None,
            },
        )
        .expect("room");
        let mut switched = false;
        for (done, operation) in plan.operations.iter().enumerate() {
            if done == dies_after {
                self.ids = if switched {
                    ids.to_vec()
                } else {
                    self.ids.clone()
                };
                return true;
            }
            self.memory.apply(operation);
            switched |= matches!(operation, Operation::Switch(_));
            let layout = if switched { &plan.layout } else { &self.layout };
            show(&self.memory.tables, layout, switched);
        }
        self.layout = plan.layout;
        self.ids = ids.to_vec();
        false
    }

    /// As another agent finds them.
    fn adopt(&mut self) {
        let (layout, repairs) = Layout::adopt(&self.memory).expect("maps");
        for operation in &repairs {
            self.memory.apply(operation);
        }
        self.layout = layout;
    }
}

fn endpoint((ip, port, protocol): (IpAddr, u16, Protocol)) -> Endpoint {
    endpoint_at(SocketAddr::new(ip, port), protocol)
}

/// Whether every packet finds the service that is promised, of these.
fn assert_found(tables: &MemoryTables, layout: &Layout, ids: &[ServiceId]) {
    let by_index: BTreeMap<u32, ServiceId> = layout
        .services()
        .map(|(id, index, _)| (index, id))
        .collect();
    for at in endpoints() {
        let found = steer::service(tables, &endpoint(at));
        let found = found.map(|found| by_index[&found.service.index]);
        assert_eq!(found, chosen(ids, at), "{at:?} of {ids:?}");
    }
}

/// Whether all addresses of services are VIPs, and no others.
fn assert_owned(tables: &MemoryTables, ids: &[ServiceId]) {
    for ip in ADDRESSES {
        let ip: IpAddr = ip.parse().expect("an address");
        let is_vip = steer::owned(tables, Address::from(ip)) & owned::VIP != 0;
        assert_eq!(is_vip, ids.iter().any(|id| id.has_address(ip)), "{ip}");
    }
}

fn some(mask: u16) -> Vec<ServiceId> {
    let named = CATALOGUE.iter().enumerate();
    let named = named.filter(|(n, _)| mask & 1 << n != 0);
    named.map(|(_, text)| id(text)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_packet_finds_the_most_specific_service_at_every_moment_of_any_change(
        masks in prop::collection::vec(0u16..1 << 15, 4),
        dies in prop::collection::vec(0usize..60, 4),
    ) {
        let mut maps = Maps::new();
        for (mask, dies_after) in masks.into_iter().zip(dies) {
            let (before, after) = (maps.ids.clone(), some(mask));
            let both = before.iter().chain(&after).copied().collect::<Vec<_>>();
            let died = maps.change(&after, dies_after, |tables, layout, switched| {
                let ids = if switched { &after } else { &before };
                assert_found(tables, layout, ids);
                // VIPs are so from before the first packet until after the last.
                for ip in ADDRESSES {
                    let ip: IpAddr = ip.parse().expect("an address");
                    let is_vip = steer::owned(tables, Address::from(ip)) & owned::VIP != 0;
                    let has = |ids: &[ServiceId]| ids.iter().any(|id| id.has_address(ip));
                    assert!(is_vip || !has(ids), "{ip}");
                    assert!(!is_vip || has(&both), "{ip}");
                }
            });
            if died {
                maps.adopt();
                assert_found(&maps.memory.tables, &maps.layout, &maps.ids);
                maps.change(&after, usize::MAX, |tables, layout, switched| {
                    if switched {
                        assert_found(tables, layout, &after);
                    }
                });
            }
            assert_found(&maps.memory.tables, &maps.layout, &after);
            assert_owned(&maps.memory.tables, &after);
        }
        // Nothing is left of them.
        maps.change(&[], usize::MAX, |_, _, _| {});
        let tables = &maps.memory.tables;
        prop_assert!(tables.classes.is_empty() && tables.class_ports.is_empty());
        prop_assert!(tables.owned.is_empty());
    }
}

fn core(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("wide".to_owned(), Tunnel::default(), memory).expect("maps");
    for n in [11, 12] {
        core.network(reached([10, 2, 0, n].into(), n));
    }
    core
}

fn with(services: &[Service]) -> Core<MemoryDataplane> {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 3;
    let mut core = core(memory);
    for service in services {
        let change = Change::AddService(service.clone());
        core.change(change).expect("room");
    }
    core
}

const BACKENDS: [&str; 2] = ["10.2.0.11:80", "10.2.0.12:80"];

#[test]
fn packets_look_for_them_as_long_as_there_are_some() {
    let uses = |core: &Core<MemoryDataplane>| {
        let features = core.dataplane().tables.control.features;
        features & (feature::WIDE | feature::ALL_PORTS)
    };
    let mut core = with(&[service("10.0.0.1:80/tcp", "ipip", &BACKENDS)]);
    assert_eq!(uses(&core), 0);
    for text in [
        "10.0.0.0/28:80/tcp",
        "10.0.0.1:81-82/tcp",
        "10.0.0.0/28:*/udp",
    ] {
        let service = service(text, "ipip", &BACKENDS);
        core.change(Change::AddService(service)).expect("room");
        assert_eq!(uses(&core), feature::WIDE, "{text}");
        core.change(Change::RemoveService(id(text))).expect("it");
        assert_eq!(uses(&core), 0, "{text}");
    }
}

#[test]
fn an_agent_that_starts_again_takes_them_up_as_they_are() {
    let services: Vec<Service> = [
        "10.0.0.0/28:80/tcp",
        "10.0.0.0/28:8000-8999/udp",
        "10.0.0.1:*/tcp",
        "10.0.0.1:70-90/tcp",
        "[2001:db8::/64]:*/tcp",
    ]
    .iter()
    .map(|text| service(text, "ipip", &BACKENDS))
    .collect();
    let mut first = with(&services);
    let before = first.dataplane().tables.clone();
    let mut second = core(std::mem::take(first.dataplane_mut()));
    second
        .change(Change::Replace(services.clone()))
        .expect("room");
    let after = &second.dataplane().tables;
    assert_eq!(after.service_entries, before.service_entries);
    assert_eq!(after.classes, before.classes);
    assert_eq!(after.class_ports, before.class_ports);
    assert_eq!(after.shapes, before.shapes);
    let told = second.snapshot().services;
    let told: BTreeSet<_> = told.iter().map(|told| told.service.id).collect();
    assert_eq!(told, services.iter().map(|service| service.id).collect());
}

#[test]
fn a_range_in_nat_mode_has_a_way_back_of_each_of_its_ports() {
    let text = "10.0.0.1:8000-8002/tcp";
    let mut core = with(&[service(text, "nat", &BACKENDS)]);
    let tables = &core.dataplane().tables;
    let descriptor = tables.service_entries[0].halves[half(tables.control.generation)];
    assert_ne!(descriptor.flags & service_flag::KEEPS_PORT, 0);
    let ways = |core: &Core<MemoryDataplane>| -> Vec<(IpAddr, u16, u16)> {
        let ways = core.dataplane().tables.ways_back.iter();
        let port = u16::from_be;
        ways.map(|(key, back)| (key.address.into(), port(key.port), port(back.port)))
            .collect()
    };
    let backend = |n| -> IpAddr { [10, 2, 0, n].into() };
    let each = |n| [8_000, 8_001, 8_002].map(|port| (backend(n), port, port));
    let mut expected = [each(11), each(12)].concat();
    expected.sort_unstable();
    let mut found = ways(&core);
    found.sort_unstable();
    assert_eq!(found, expected);
    // Other ports of the same backend are free for others, its own are not.
    let other = service("10.0.0.2:80/tcp", "nat", &["10.2.0.11:8003"]);
    core.change(Change::AddService(other)).expect("no clash");
    let clash = service("10.0.0.2:81/tcp", "nat", &["10.2.0.11:8002"]);
    let refused = core.change(Change::AddService(clash)).expect_err("a clash");
    assert!(
        refused.to_string().contains("cannot be told apart"),
        "{refused}"
    );
}

#[test]
fn a_check_of_one_port_says_nothing_of_the_others_of_a_range() {
    for (vip, alone) in [
        ("10.0.0.1:80-81/tcp", false),
        ("10.0.0.0/28:*/tcp", false),
        ("10.0.0.0/28:80/tcp", true),
    ] {
        let core = with(&[service(vip, "ipip", &BACKENDS)]);
        assert!(
            core.targets().values().all(|target| target.alone == alone),
            "{vip}"
        );
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_what_would_be_right() {
    for (text, mode, said) in [
        ("10.0.0.0/28:80/tcp", Mode::Nat, "use mode \"full-nat\""),
        ("10.0.0.1:1-5000/tcp", Mode::Nat, "at most 4096"),
    ] {
        let service = Service::new(id(text), mode);
        let refused = State::new([service]).expect_err(text).to_string();
        assert!(refused.contains(said), "{text}: {refused}");
    }
    let crossing = ["10.0.0.0/28:80-90/tcp", "10.0.0.0/28:85-95/tcp"];
    let services = crossing.map(|text| Service::new(id(text), Mode::Ipip));
    let refused = State::new(services).expect_err("ranges that cross");
    let expected = ModelError::CrossingPorts {
        id: id(crossing[1]),
        other: id(crossing[0]),
    };
    assert_eq!(refused, expected);
    // One that holds the other, another protocol, other addresses: what goes before what is certain.
    let right = [
        "10.0.0.0/28:80-90/tcp",
        "10.0.0.0/28:85-90/tcp",
        "10.0.0.0/28:85-95/udp",
        "10.0.0.0/29:85-95/tcp",
        "10.0.0.0/28:*/tcp",
    ];
    let services = right.map(|text| Service::new(id(text), Mode::Ipip));
    State::new(services).expect("what is valid");
    let mut own = Service::new(id("10.0.0.0/28:80/tcp"), Mode::Ipip);
    own.backends = service("10.1.0.1:80/tcp", "ipip", &["10.0.0.9:80"]).backends;
    let refused = State::new([own]).expect_err("its own address").to_string();
    assert!(refused.contains("the service's own address"), "{refused}");
}
