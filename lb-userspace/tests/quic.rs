//! Server ids over changes of a pool: the agent's own code over tables in memory, and packets through
//! the packet path in between.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    packet::SlicePacket,
    pipeline,
    tables::{Server, ServerKey},
    verdict::Verdict,
};
use lb_userspace::{
    agent::{ChangeError, Core},
    config::Tunnel,
    dataplane::memory::MemoryDataplane,
    model::{Change, Quic, Service, Settings},
    plan::{census, ticks},
};
use serde_json::{Value, json};

use crate::reach::{memory, reached};

const VIP: &str = "10.0.0.1:443/udp";
const MOVING_TIME: Duration = Duration::from_secs(30);

/// A backend whose server id is two bytes of the last part of its address.
fn backend(n: u8) -> Value {
    json!({"address": address(n), "server_id": format!("0a{n:02x}")})
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 443))
}

fn service(config_id: u8, backends: &[u8]) -> Service {
    let backends: Vec<Value> = backends.iter().map(|&n| backend(n)).collect();
    let quic = json!({"config_id": config_id, "server_id_length": 2, "nonce_length": 5});
    serde_json::from_value(json!({
        "id": VIP, "mode": "nat", "ring_size": 251, "quic": quic, "backends": backends,
    }))
    .unwrap()
}

/// The agent over maps in memory, with servers 1 to 4.
struct Balancer {
    core: Core<MemoryDataplane>,
}

impl Balancer {
    fn over(memory: MemoryDataplane) -> Self {
        let mut core = Core::new("quic".to_owned(), Tunnel::default(), memory).unwrap();
        for n in 1..=9 {
            core.network(reached(address(n).ip(), n));
        }
        Self { core }
    }

    fn new(service: Service) -> Self {
        let mut balancer = Self::over(memory());
        balancer.change(Change::Replace(vec![service])).unwrap();
        balancer
    }

    /// Another agent over the same maps.
    fn restarted(mut self, service: Service) -> Self {
        let memory = std::mem::take(self.core.dataplane_mut());
        let mut balancer = Self::over(memory);
        balancer.change(Change::Replace(vec![service])).unwrap();
        balancer
    }

    fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        self.core.change(change)
    }

    fn add(&mut self, n: u8, backend: Value) -> Result<(), ChangeError> {
        assert_eq!(backend["address"], json!(address(n)));
        let backend = serde_json::from_value(backend).unwrap();
        self.change(Change::AddBackend(VIP.parse().unwrap(), backend))
    }

    fn remove(&mut self, n: u8) {
        let change = Change::RemoveBackend(VIP.parse().unwrap(), address(n));
        self.change(change).unwrap();
    }

    /// Lets time pass, and sweeps at its end.
    fn pass(&mut self, time: Duration) {
        let tables = &self.core.dataplane().tables;
        let now = tables.time.get() + ticks(time);
        tables.time.set(now);
        let mut flows = tables;
        let census = census::sweep(self.core.layout(), &mut flows, now).unwrap();
        self.core.swept(census).unwrap();
    }

    /// Sweeps for as long as it takes everything idle to be over.
    fn settle(&mut self) {
        (0..6).for_each(|_| self.pass(MOVING_TIME / 2));
    }

    /// Whom a packet with a connection id that names a server goes to: its last byte.
    fn named(&self, config_id: u8, n: u8, port: u16) -> Option<u8> {
        let mut datagram = vec![0x40, config_id << 5, 0x0a, n];
        datagram.resize(40, 0);
        self.send(&datagram, port)
    }

    fn send(&self, datagram: &[u8], port: u16) -> Option<u8> {
        let mut frame = vec![0; 64];
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
        frame.extend((28 + datagram.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 7, 10, 0, 0, 1]);
        frame.extend([port.to_be_bytes(), 443u16.to_be_bytes()].as_flattened());
        frame.extend((8 + datagram.len() as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(datagram);
        let mut packet = SlicePacket::new(&mut frame, 64, 1);
        match pipeline::process(&mut packet, &self.core.dataplane().tables) {
            Verdict::Redirect(7) => packet.bytes().get(33).copied(),
            _ => None,
        }
    }

    /// Whether every port's packet with such an id goes to its server.
    fn leads(&self, config_id: u8, n: u8) -> bool {
        (1..=32).all(|port| self.named(config_id, n, port) == Some(n))
    }

    fn servers(&self) -> &BTreeMap<ServerKey, Server> {
        &self.core.dataplane().tables.servers
    }

    fn leaving(&self) -> Vec<IpAddr> {
        let service = &self.core.snapshot().services[0];
        let leaving = service.backends.iter().filter(|b| b.leaving);
        leaving.map(|b| b.backend.address.ip()).collect()
    }
}

#[test]
fn every_backend_is_found_by_its_server_id_as_soon_as_it_is_there() {
    let mut balancer = Balancer::new(service(2, &[1, 2]));
    assert!(balancer.leads(2, 1) && balancer.leads(2, 2));
    assert!(!balancer.leads(2, 3));
    balancer.add(3, backend(3)).unwrap();
    assert!((1..=3).all(|n| balancer.leads(2, n)));
}

#[test]
fn a_backend_that_leaves_is_found_by_its_id_for_as_long_as_packets_come() {
    let mut balancer = Balancer::new(service(2, &[1, 2, 3]));
    balancer.settle();
    balancer.remove(1);
    for _ in 0..12 {
        balancer.pass(MOVING_TIME / 2);
        assert!(balancer.leads(2, 1));
    }
    assert_eq!(balancer.leaving(), [address(1).ip()]);
    balancer.settle();
    assert_eq!(balancer.leaving(), [] as [IpAddr; 0]);
    assert!(!balancer.leads(2, 1));
    assert_eq!(balancer.servers().len(), 2);
}

#[test]
fn a_backend_that_leaves_without_a_packet_goes_as_any_other() {
    let mut balancer = Balancer::new(service(2, &[1, 2, 3]));
    balancer.remove(1);
    balancer.settle();
    assert_eq!(balancer.leaving(), [] as [IpAddr; 0]);
}

#[test]
fn the_id_of_a_backend_that_leaves_is_not_given_to_another() {
    let mut balancer = Balancer::new(service(2, &[1, 2]));
    balancer.remove(1);
    let mut another = backend(3);
    another["server_id"] = json!("0a01");
    let refused = balancer.add(3, another.clone()).unwrap_err().to_string();
    for part in ["10.1.0.1:443", "still has connections", "another server id"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(balancer.leads(2, 1));
    // The same one comes back.
    balancer.add(1, backend(1)).unwrap();
    assert!(balancer.leads(2, 1));
    balancer.remove(1);
    balancer.settle();
    balancer.add(3, another).unwrap();
    assert!((1..=32).all(|port| balancer.named(2, 1, port) == Some(3)));
}

#[test]
fn ids_of_a_former_configuration_lead_to_their_backends_until_those_are_gone() {
    let mut balancer = Balancer::new(service(2, &[1, 2, 3]));
    balancer
        .change(Change::Replace(vec![service(3, &[1, 2])]))
        .unwrap();
    assert!(
        [(2, 1), (3, 1), (2, 2), (3, 2), (2, 3)]
            .iter()
            .all(|&(config_id, n)| balancer.leads(config_id, n))
    );
    balancer.settle();
    balancer.settle();
    assert!(!balancer.leads(2, 3), "it has left");
    assert_eq!(balancer.servers().len(), 4);
}

#[test]
fn a_service_that_is_quic_no_more_has_no_server_ids() {
    let mut balancer = Balancer::new(service(2, &[1, 2]));
    let mut plain = service(2, &[1, 2]);
    plain.quic = None;
    plain.backends.iter_mut().for_each(|b| b.server_id = None);
    balancer.change(Change::Replace(vec![plain])).unwrap();
    assert!(balancer.servers().is_empty());
    assert!(!balancer.leads(2, 1));
    balancer
        .change(Change::Replace(vec![service(2, &[1, 2])]))
        .unwrap();
    assert!(balancer.leads(2, 1));
    balancer.change(Change::Replace(Vec::new())).unwrap();
    assert!(balancer.servers().is_empty());
}

#[test]
fn a_restarted_agent_takes_up_the_ids_and_those_that_leave() {
    let mut balancer = Balancer::new(service(2, &[1, 2, 3]));
    balancer.remove(1);
    let before = balancer.servers().clone();
    let executed = balancer.core.dataplane().executed;
    let balancer = balancer.restarted(service(2, &[2, 3]));
    assert_eq!(balancer.servers(), &before);
    assert!((1..=3).all(|n| balancer.leads(2, n)));
    // Beside what every start writes, nothing is written again.
    let again = balancer.core.dataplane().executed - executed;
    assert!(again < 10, "{again} operations");
}

fn set(balancer: &mut Balancer, settings: Settings) -> Result<(), ChangeError> {
    balancer.change(Change::EditService(VIP.parse().unwrap(), settings))
}

fn layout(config_id: u8, server_id_length: u8, nonce_length: u8) -> Settings {
    let quic = Quic {
        config_id,
        server_id_length,
        nonce_length,
    };
    Settings {
        quic: Some(Some(quic)),
        ..Settings::default()
    }
}

#[test]
fn a_service_becomes_quic_while_it_runs_and_its_flows_stay_where_they_were() {
    let plain: Service = serde_json::from_value(json!({
        "id": VIP, "mode": "nat", "ring_size": 251,
        "backends": (1..=4).map(|n| json!({"address": address(n)})).collect::<Vec<_>>(),
    }))
    .unwrap();
    let mut balancer = Balancer::new(plain);
    // No QUIC server's: no configuration of that number is ever read.
    let datagram = [0xff; 40];
    let before: Vec<Option<u8>> = (1..=60)
        .map(|port| balancer.send(&datagram, port))
        .collect();
    assert!(before.iter().all(Option::is_some));
    let named = Settings {
        server_ids: (1..=4)
            .map(|n| (address(n), format!("0a{n:02x}").parse().unwrap()))
            .collect(),
        ..layout(0, 2, 5)
    };
    set(&mut balancer, named).unwrap();
    for n in 1..=4 {
        assert!(balancer.leads(0, n));
    }
    let after: Vec<Option<u8>> = (1..=60)
        .map(|port| balancer.send(&datagram, port))
        .collect();
    assert_eq!(before, after);
}

#[test]
fn another_configuration_leaves_connections_of_the_former_where_they_are() {
    let mut balancer = Balancer::new(service(0, &[1, 2, 3, 4]));
    set(&mut balancer, layout(1, 2, 9)).unwrap();
    for n in 1..=4 {
        assert!(balancer.leads(0, n) && balancer.leads(1, n));
    }
}

#[test]
fn what_would_make_connection_ids_unreadable_is_refused_and_changes_nothing() {
    let mut balancer = Balancer::new(service(0, &[1, 2]));
    let ids = |bytes: [&str; 2]| {
        (1..=2)
            .zip(bytes)
            .map(|(n, id)| (address(n), id.parse().unwrap()))
            .collect()
    };
    let longer = Settings {
        server_ids: ids(["0a0101", "0a0201"]),
        ..layout(0, 3, 5)
    };
    let swapped = Settings {
        server_ids: ids(["0a02", "0a01"]),
        ..Settings::default()
    };
    let none = Settings {
        quic: Some(None),
        ..Settings::default()
    };
    let before = (balancer.servers().clone(), balancer.core.layout().clone());
    for settings in [longer, swapped, none.clone()] {
        match set(&mut balancer, settings) {
            Err(ChangeError::Forgets(why)) => assert!(why.contains("connection ids"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            before,
            (balancer.servers().clone(), balancer.core.layout().clone())
        );
    }
    let mut unused = Balancer::new(service(0, &[]));
    set(&mut unused, none).unwrap();
}

#[test]
fn a_backend_that_leaves_is_not_taken_back_under_another_id() {
    let mut balancer = Balancer::new(service(0, &[1, 2]));
    balancer.remove(1);
    let other = json!({"address": address(1), "server_id": "0a09"});
    match balancer.add(1, other) {
        Err(ChangeError::Forgets(why)) => assert!(why.contains("connection ids"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(balancer.leads(0, 1));
    balancer.add(1, backend(1)).unwrap();
    assert!(balancer.leads(0, 1));
}
