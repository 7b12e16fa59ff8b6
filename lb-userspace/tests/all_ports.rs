//! Services that have every port of their address: what the agent makes of them in the maps, and reads
//! back from there.

mod reach;

use lb_common::tables::{Endpoint, feature, service_flag};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    model::{Change, Service, ServiceId},
    plan::{endpoint, endpoint_at, half},
};

use crate::reach::reached;

const EVERY: &str = "10.0.0.1:*/tcp";
const BACKENDS: [&str; 2] = ["10.2.0.11:80", "10.2.0.12:80"];

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

fn core(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("all-ports".to_owned(), Tunnel::default(), memory).expect("maps");
    for n in [11, 12] {
        core.network(reached([10, 2, 0, n].into(), n));
    }
    core
}

fn with(service: Service) -> Core<MemoryDataplane> {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 3;
    let mut core = core(memory);
    core.change(Change::AddService(service)).expect("room");
    core
}

fn looks_for_them(core: &Core<MemoryDataplane>) -> bool {
    core.dataplane().tables.control.features & feature::ALL_PORTS != 0
}

/// Where answers are looked for, and the ports that they get.
fn ways_back(core: &Core<MemoryDataplane>) -> Vec<(Endpoint, u16)> {
    let ways = core.dataplane().tables.ways_back.iter();
    ways.map(|(&key, back)| (key, u16::from_be(back.port)))
        .collect()
}

#[test]
fn packets_look_for_it_as_long_as_there_is_one() {
    let mut core = with(service("10.0.0.1:80/tcp", "ipip", &[]));
    assert!(!looks_for_them(&core));
    core.change(Change::AddService(service(EVERY, "ipip", &BACKENDS)))
        .expect("room");
    assert!(looks_for_them(&core));
    core.change(Change::RemoveService(id(EVERY)))
        .expect("a service that is there");
    assert!(!looks_for_them(&core));
}

#[test]
fn its_packets_keep_their_port_and_its_answers_lead_back_from_every_one() {
    let core = with(service(EVERY, "nat", &BACKENDS));
    let tables = &core.dataplane().tables;
    let descriptor = tables.service_entries[0].halves[half(tables.control.generation)];
    assert!(descriptor.is_at(&endpoint(id(EVERY))));
    assert_ne!(descriptor.flags & service_flag::KEEPS_PORT, 0);
    let every = |backend: &str| {
        let mut at: std::net::SocketAddr = backend.parse().expect("an address");
        at.set_port(0);
        (endpoint_at(at, id(EVERY).protocol), 0)
    };
    assert_eq!(ways_back(&core), BACKENDS.map(every));
}

#[test]
fn an_agent_that_starts_again_takes_it_up_as_it_is() {
    let mut first = with(service(EVERY, "nat", &BACKENDS));
    let before = first.dataplane().tables.service_entries.clone();
    let mut second = core(std::mem::take(first.dataplane_mut()));
    let wanted = vec![service(EVERY, "nat", &BACKENDS)];
    second.change(Change::Replace(wanted)).expect("room");
    assert_eq!(second.dataplane().tables.service_entries, before);
    assert!(looks_for_them(&second));
    let told: Vec<_> = second.snapshot().services;
    assert_eq!(told[0].service.id.to_string(), EVERY);
}

#[test]
fn a_backend_that_leaves_it_keeps_other_nat_services_off_its_ports() {
    let mut core = with(service(EVERY, "nat", &BACKENDS));
    let [first, second] = BACKENDS.map(|address| address.parse().expect("an address"));
    core.change(Change::RemoveBackend(id(EVERY), second))
        .expect("a backend that is there");
    let leaving = ways_back(&core).len() == 2;
    assert!(leaving, "it may still have flows");
    let other = service("10.0.0.2:80/tcp", "nat", &[BACKENDS[1]]);
    let refused = core.change(Change::AddService(other)).expect_err("a clash");
    assert!(refused.to_string().contains("still has flows"), "{refused}");
    // Of its own VIP, every port stays itself.
    let own = service("10.0.0.1:80/tcp", "nat", &[BACKENDS[1]]);
    core.change(Change::AddService(own)).expect("no clash");
    assert!(
        core.state()
            .service(id(EVERY))
            .expect("it")
            .backend(first)
            .is_some()
    );
}

#[test]
fn a_check_of_one_port_says_nothing_of_the_others() {
    for (vip, alone) in [(EVERY, false), ("10.0.0.1:80/tcp", true)] {
        let core = with(service(vip, "nat", &BACKENDS));
        assert!(core.targets().values().all(|target| target.alone == alone));
    }
}
