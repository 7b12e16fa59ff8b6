//! Mode `full-nat` on its way into the maps and out of them again: pools, sessions that age, and what of a pool that has
//! gone stays for those that it still has.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    session::CLOSED_LIFETIME,
    tables::{
        Address, FlowKey, PoolKey, Record, Recorded, SECOND, Session, Tables as _, Tick,
        Translation, feature, flow_kind, owned, record_flag, syn_proxy,
    },
};
use lb_userspace::{
    agent::Core,
    config::Tunnel,
    dataplane::{Dataplane as _, memory::MemoryDataplane},
    model::{AddressPool, Change, Service, ServiceId, Settings, SynProxy, UNKNOWN_PORT},
    plan::{
        self, Inputs,
        census::{self, Census},
        half,
    },
};
use serde_json::json;

const VIP: &str = "10.0.0.1:80/tcp";
const FIRST: &str = "10.9.0.1";
const SECOND_ADDRESS: &str = "10.9.0.2";

fn id() -> ServiceId {
    VIP.parse().expect("a service")
}

fn service(pool: &str, backends: &[&str]) -> Service {
    let backends: Vec<_> = backends.iter().map(|at| json!({ "address": at })).collect();
    serde_json::from_value(json!({
        "id": VIP, "mode": "full-nat", "address_pool": pool, "ring_size": 251,
        "scheduler": "least-connections", "backends": backends,
    }))
    .expect("what is valid")
}

fn pool(name: &str, addresses: &[&str]) -> AddressPool {
    let addresses = addresses.iter().map(|at| at.parse().expect("an address"));
    AddressPool::new(name, addresses, (1_000, 1_999)).expect("a pool")
}

/// A core over these maps that begins with pools and services.
fn begin(
    memory: MemoryDataplane,
    pools: &[AddressPool],
    services: Vec<Service>,
) -> Core<MemoryDataplane> {
    let mut core = Core::new("full-nat".to_owned(), Tunnel::default(), memory).expect("sound maps");
    core.offer_pools(pools.iter().cloned())
        .expect("pools apart");
    core.change(Change::ReplaceAll(Vec::new(), services))
        .expect("room enough");
    core
}

fn empty() -> MemoryDataplane {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 4;
    memory
}

/// One with two backends and a pool of the first address.
fn core() -> Core<MemoryDataplane> {
    let backends = ["10.2.0.11:80", "10.2.0.12:80"];
    begin(
        empty(),
        &[pool("snat", &[FIRST])],
        vec![service("snat", &backends)],
    )
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

/// What the service's flows become, as a packet meets it.
fn translation(core: &Core<MemoryDataplane>) -> Translation {
    let number = core.layout().placed(id()).expect("a service").number;
    let tables = &core.dataplane().tables;
    let entry = tables.guards.get(number as usize).copied();
    entry.unwrap_or_default().halves[half(tables.control.generation)].translation
}

fn owned(core: &Core<MemoryDataplane>, text: &str) -> u32 {
    core.dataplane().tables.owned(&address(text))
}

/// A session of the client at a port, with the backend of a local id, last heard of at `stamp`; as the program makes it.
fn begun(
    core: &Core<MemoryDataplane>,
    client: u16,
    member: u16,
    flags: u16,
    stamp: Tick,
) -> FlowKey {
    let placed = core.layout().placed(id()).expect("a service");
    let backend = placed.member_by_id(member.into()).expect("a member");
    let key = FlowKey {
        source: address("192.0.2.7"),
        port: client.to_be(),
        kind: flow_kind::FLOW,
        service: placed.services[&id()] as u16,
        to: 0,
        host: 0,
    };
    let session = Session {
        record: Record {
            member,
            flags,
            generation: backend.member.generation,
            stamp,
            since: stamp,
        },
        address: address(FIRST),
        backend: backend.backend.address,
        port: client.to_be(),
        backend_port: backend.backend.port,
        pool: translation(core).pool,
        protocol: 6,
        ..Session::default()
    };
    let tables = &core.dataplane().tables;
    assert_eq!(tables.claim_port(&session.port_key(), &key), Recorded::Done);
    assert_eq!(tables.put_session(&key, &session), Recorded::Done);
    key
}

/// Sweeps at a time, and lets the core go on.
fn sweep(core: &mut Core<MemoryDataplane>, now: Tick) -> Census {
    core.dataplane_mut().tables.time.set(now);
    let mut tables = &core.dataplane().tables;
    let census = census::sweep(core.layout(), &mut tables, now).expect("a sweep");
    core.swept(census.clone()).expect("a plan");
    census
}

fn sessions(core: &Core<MemoryDataplane>) -> (usize, usize) {
    let sessions = core.dataplane().tables.sessions.borrow();
    (sessions.by_flow.len(), sessions.ports.len())
}

#[test]
fn a_service_finds_the_addresses_of_its_pool() {
    let core = core();
    let found = translation(&core);
    assert_eq!(
        (found.addresses, found.first_port, found.last_port),
        (1, 1_000, 1_999)
    );
    let tables = &core.dataplane().tables;
    let key = PoolKey {
        pool: found.pool.into(),
        index: 0,
    };
    assert_eq!(tables.pool_address(&key), Some(address(FIRST)));
    assert_eq!(owned(&core, FIRST), owned::POOL);
    assert_ne!(tables.control.features & feature::FULL_NAT, 0);
}

#[test]
fn without_such_a_service_nothing_of_a_pool_is_in_the_maps() {
    let mut core = core();
    core.change(Change::RemoveService(id()))
        .expect("no service");
    sweep(&mut core, 10);
    let tables = &core.dataplane().tables;
    assert!(tables.pool_addresses.is_empty());
    // The sweep began while answers could not be ruled out; the next one knows.
    sweep(&mut core, 20);
    assert_eq!(owned(&core, FIRST), 0);
    assert_eq!(
        core.dataplane().tables.control.features & feature::FULL_NAT,
        0
    );
}

#[test]
fn what_answers_syns_stays_known_until_no_session_can_be_proxied() {
    let mut core = core();
    let knows = |core: &Core<MemoryDataplane>| {
        core.dataplane().tables.control.features & feature::SYN_PROXY != 0
    };
    let set = |core: &mut Core<MemoryDataplane>, syn_proxy| {
        let settings = Settings {
            syn_proxy: Some(syn_proxy),
            ..Settings::default()
        };
        core.change(Change::EditService(id(), settings))
            .expect("what is valid");
        translation(core).syn_proxy
    };
    assert!(!knows(&core));
    assert_eq!(set(&mut core, SynProxy::Above(7)), syn_proxy::ON);
    assert!(knows(&core));
    assert_eq!(set(&mut core, SynProxy::Off), syn_proxy::OFF);
    assert!(knows(&core), "sessions that began so may go on");
    core.change(Change::RemoveService(id()))
        .expect("no service");
    sweep(&mut core, 10);
    sweep(&mut core, 20);
    assert!(!knows(&core));
}

#[test]
fn a_pool_that_another_replaces_is_answered_as_long_as_sessions_have_its_ports() {
    let core = core();
    begun(&core, 40_000, 0, 0, 0);
    let former = translation(&core).pool;
    let memory = MemoryDataplane {
        tables: core.dataplane().tables.clone(),
        moved: core.dataplane().moved.clone(),
        ..MemoryDataplane::default()
    };
    let backends = ["10.2.0.11:80", "10.2.0.12:80"];
    let mut core = begin(
        memory,
        &[pool("other", &[SECOND_ADDRESS])],
        vec![service("other", &backends)],
    );
    let now = translation(&core);
    assert_ne!(now.pool, former);
    let addresses: Vec<_> = core.dataplane().tables.pool_addresses.values().collect();
    assert_eq!(addresses, [&address(SECOND_ADDRESS)]);
    let both = [FIRST, SECOND_ADDRESS].map(|at| owned(&core, at));
    assert_eq!(both, [owned::POOL; 2]);
    let found = sweep(&mut core, 10);
    assert_eq!(found.ports, [(address(FIRST), 1)].into());
    assert_eq!(owned(&core, FIRST), owned::POOL);
    let found = sweep(&mut core, 1_000 * SECOND);
    assert_eq!((found.sessions, sessions(&core)), (0, (0, 0)));
    sweep(&mut core, 1_001 * SECOND);
    assert_eq!(
        [FIRST, SECOND_ADDRESS].map(|at| owned(&core, at)),
        [0, owned::POOL]
    );
}

#[test]
fn a_restarted_agent_finds_the_pool_where_it_was() {
    let core = core();
    let before = translation(&core);
    let memory = MemoryDataplane {
        tables: core.dataplane().tables.clone(),
        moved: core.dataplane().moved.clone(),
        ..MemoryDataplane::default()
    };
    let backends = ["10.2.0.11:80", "10.2.0.12:80"];
    let core = begin(
        memory,
        &[pool("renamed", &[FIRST])],
        vec![service("renamed", &backends)],
    );
    assert_eq!(translation(&core), before);
}

#[test]
fn a_session_and_its_port_leave_together_once_its_time_has_passed() {
    let closed = record_flag::FINISHED | record_flag::BACKEND_FINISHED;
    for (flags, lifetime) in [
        (record_flag::OPENING, 60 * SECOND),
        (0, 858_307),
        (record_flag::FINISHED, 120 * SECOND),
        (closed, CLOSED_LIFETIME),
        (record_flag::BACKEND_RESET, 10 * SECOND),
    ] {
        let mut core = core();
        begun(&core, 40_000, 0, flags, 1_000);
        let found = sweep(&mut core, 1_000 + lifetime - 1_000);
        assert_eq!((found.sessions, sessions(&core)), (1, (1, 1)), "{flags}");
        sweep(&mut core, 1_000 + lifetime);
        assert_eq!(sessions(&core), (0, 0), "{flags}");
    }
}

#[test]
fn a_port_without_a_session_is_freed_and_no_other() {
    let mut core = core();
    let key = begun(&core, 40_000, 0, 0, 0);
    let tables = &core.dataplane().tables;
    let kept = tables.sessions.borrow().by_flow[&key];
    let left = Session {
        port: 41_000u16.to_be(),
        ..kept
    };
    // The same flow's, and one of a flow that is not there at all.
    tables.claim_port(&left.port_key(), &key);
    let other = FlowKey { port: 1, ..key };
    let lost = Session {
        port: 42_000u16.to_be(),
        ..kept
    };
    tables.claim_port(&lost.port_key(), &other);
    let found = sweep(&mut core, 10);
    assert_eq!((found.released, sessions(&core)), (2, (1, 1)));
    let ports = core.dataplane().tables.sessions.borrow().ports.clone();
    assert_eq!(ports, [(kept.port_key(), key)].into());
}

#[test]
fn sessions_are_flows_of_their_service_and_hold_a_backend_that_leaves() {
    let mut core = core();
    begun(&core, 40_000, 0, 0, 0);
    begun(&core, 40_001, 0, record_flag::OPENING, 0);
    let found = sweep(&mut core, 10);
    let index = core.layout().placed(id()).expect("a service").services[&id()];
    let service = &found.services[&index];
    let counts = (service.established, service.half_open, service.sessions);
    assert_eq!(counts, (1, 1, 2));
    let backend: SocketAddr = "10.2.0.11:80".parse().expect("an address");
    let at = core
        .layout()
        .placed(id())
        .and_then(|placed| placed.member(backend));
    assert_eq!(
        at.map(|(id, _)| id),
        Some(0),
        "the first has the first local id"
    );
    core.change(Change::RemoveBackend(id(), backend))
        .expect("a backend");
    let is_there = |core: &Core<MemoryDataplane>| {
        let placed = core.layout().placed(id()).expect("a service");
        placed.member(backend).is_some()
    };
    for now in [20, 30, 40] {
        sweep(&mut core, now);
        assert!(is_there(&core), "{now}");
    }
    for now in [2_000, 4_000, 6_000] {
        sweep(&mut core, now * SECOND);
    }
    assert!(!is_there(&core));
}

#[test]
fn a_session_that_is_swept_is_taken_off_its_backends_flows() {
    let mut core = core();
    begun(&core, 40_000, 0, record_flag::COUNTED, 0);
    let placed = core.layout().placed(id()).expect("a service");
    let counters = placed.member_by_id(0).expect("a member").backend.counters;
    core.dataplane().tables.add_load(counters, 1);
    sweep(&mut core, 10);
    assert_eq!(core.dataplane().load(counters).expect("a load"), 1);
    sweep(&mut core, 2_000 * SECOND);
    assert_eq!(core.dataplane().load(counters).expect("a load"), 0);
}

/// What is left in the maps where the agent ends after each of the steps that carry a change out.
fn cut_short(core: &Core<MemoryDataplane>, change: Change) -> Vec<MemoryDataplane> {
    let state = core.state().apply(change).expect("a valid change");
    let inputs = Inputs {
        state: &state,
        down: &Default::default(),
        next_hops: &Default::default(),
        no_ways: &Default::default(),
        own_addresses: &Default::default(),
        tunnel: Tunnel::default(),
        unknown_port: UNKNOWN_PORT,
        now: core.dataplane().now(),
        census: None,
        overflows: &Default::default(),
        traffic: &Default::default(),
        links: &Default::default(),
        devices: &Default::default(),
        vlans: false,
        sampling: &Default::default(),
        keeps_flows: false,
        only: None,
    };
    let plan = plan::plan(core.layout(), &inputs).expect("a plan");
    let copy = || MemoryDataplane {
        tables: core.dataplane().tables.clone(),
        moved: core.dataplane().moved.clone(),
        ..MemoryDataplane::default()
    };
    (0..=plan.operations.len())
        .map(|steps| {
            let mut memory = copy();
            plan.operations[..steps]
                .iter()
                .for_each(|o| memory.apply(o));
            memory
        })
        .collect()
}

#[test]
fn a_pool_whose_removal_ends_at_any_step_is_whole_at_its_beginning_and_removed_by_the_next_agent() {
    let backends = ["10.2.0.11:80", "10.2.0.12:80"];
    let addresses = ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4"];
    let services = |pool: &str| vec![service(pool, &backends)];
    let core = begin(empty(), &[pool("snat", &addresses)], services("snat"));
    let cuts = cut_short(&core, Change::RemoveService(id()));
    let mut lengths = Vec::new();
    for memory in cuts {
        let left: Vec<u32> = memory
            .tables
            .pool_addresses
            .keys()
            .map(|k| k.index)
            .collect();
        assert_eq!(left, (0..left.len() as u32).collect::<Vec<_>>());
        lengths.push(left.len());
        let other = [pool("other", &[SECOND_ADDRESS])];
        let core = begin(memory, &other, services("other"));
        let tables = &core.dataplane().tables;
        let found: Vec<_> = tables.pool_addresses.values().collect();
        assert_eq!(found, [&address(SECOND_ADDRESS)], "{left:?} were left");
    }
    lengths.dedup();
    assert_eq!(lengths, [4, 3, 2, 1, 0], "a step for each");
}

#[test]
fn a_pool_that_lacks_its_first_addresses_is_removed_by_the_next_agent() {
    let backends = ["10.2.0.11:80", "10.2.0.12:80"];
    let addresses = ["10.9.0.1", "10.9.0.2", "10.9.0.3"];
    let core = begin(
        empty(),
        &[pool("snat", &addresses)],
        vec![service("snat", &backends)],
    );
    let mut memory = MemoryDataplane {
        tables: core.dataplane().tables.clone(),
        moved: core.dataplane().moved.clone(),
        ..MemoryDataplane::default()
    };
    memory.tables.pool_addresses.retain(|key, _| key.index > 0);
    let other = [pool("other", &[SECOND_ADDRESS])];
    let core = begin(memory, &other, vec![service("other", &backends)]);
    let tables = &core.dataplane().tables;
    let found: Vec<_> = tables.pool_addresses.values().collect();
    assert_eq!(found, [&address(SECOND_ADDRESS)]);
}
