//! What a simulation is made of: services, sizes and a list of steps. Drawn by proptest, so that a
//! sequence that breaks a flow shrinks to the few steps that it takes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::Endpoint;
use lb_userspace::{
    model::{
        Backend, FlowState, Mode, OnDown, Prefix, Protocol, Quic, Scheduler, ServerId, Service,
        ServiceId,
    },
    plan,
};
use proptest::prelude::*;

use crate::world;

/// Backends that a service may have; as many addresses are in use.
pub const ADDRESSES: usize = 10;

/// A simulation from its start.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Which of [`services`] there are, by number.
    pub services: Vec<usize>,
    /// Clients' places of all services together.
    pub flows: usize,
    /// Records that the table of established flows has room for.
    pub established: usize,
    /// Records that the table of half-open flows has room for.
    pub half_open: usize,
    /// The scale of moving times.
    pub moving_time: Duration,
    /// The clock at the beginning.
    pub start: u32,
    /// What happens.
    pub steps: Vec<Step>,
}

/// One step, upon one service and one of its backends; numbers are taken modulo what there is.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// What happens.
    pub kind: Kind,
    /// To which service.
    pub service: u8,
    /// To which backend, or which of several values.
    pub choice: u8,
    /// How much, where that means anything.
    pub amount: u8,
    /// Seed of everything random in it.
    pub seed: u32,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Traffic,
    SynFlood,
    AckFlood,
    AddBackend,
    RemoveBackend,
    Weight,
    Drain,
    Undrain,
    /// Checks fail; the process lives.
    Down,
    Up,
    /// Checks fail and pass before the rings have followed.
    FalseAlarm,
    /// The process ends, and checks are told so.
    Die,
    Revive,
    /// Ends and is back before the rings have followed.
    DieAndRevive,
    /// Packets show that it refuses connections, whether it does or not.
    Refusals,
    /// Time has come to look who has been down for too long.
    Age,
    NextHop,
    RingSize,
    Scheduler,
    FlowState,
    MovingTime,
    OnDown,
    Persistence,
    Limit,
    /// A backend into another tier.
    Tier,
    FailOver,
    /// When flows spill over, and when they are given back.
    Spill,
    /// How backends come back, and when those are used that are down.
    Recovery,
    /// Which prefixes lead to which subset, and perhaps who is in them.
    Routes,
    /// A backend into other subsets.
    Subsets,
    RemoveService,
    AddService,
    Restart,
    /// An operation to come fails.
    Fail,
    /// What has failed is tried again.
    Retry,
    /// The agent is killed amid a change, and another takes its place after a while.
    Kill,
    Sweep,
    /// A sweep during which the next steps happen.
    SlowSweep,
    /// Clients speak once while slots move, and again between the two reads of the sweep after which
    /// slots could be steady.
    Promotion,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            services,
            flows,
            established,
            half_open,
            moving_time,
            start,
            steps,
        } = self;
        writeln!(
            f,
            "services {services:?}, {flows} flows, moving time {moving_time:?}"
        )?;
        writeln!(
            f,
            "room for {established} and {half_open}, clock from {start}"
        )?;
        steps.iter().try_for_each(|step| writeln!(f, "{step:?}"))
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        24 => Just(Kind::Traffic),
        16 => Just(Kind::Sweep),
        4 => Just(Kind::SlowSweep),
        2 => Just(Kind::Promotion),
        1 => Just(Kind::SynFlood),
        1 => Just(Kind::AckFlood),
        4 => Just(Kind::AddBackend),
        4 => Just(Kind::RemoveBackend),
        3 => Just(Kind::Weight),
        3 => Just(Kind::Drain),
        3 => Just(Kind::Undrain),
        4 => Just(Kind::Down),
        5 => Just(Kind::Up),
        2 => Just(Kind::FalseAlarm),
        3 => Just(Kind::Die),
        4 => Just(Kind::Revive),
        1 => Just(Kind::DieAndRevive),
        3 => Just(Kind::Refusals),
        1 => Just(Kind::Age),
        1 => Just(Kind::NextHop),
        2 => Just(Kind::RingSize),
        2 => Just(Kind::Scheduler),
        1 => Just(Kind::FlowState),
        1 => Just(Kind::MovingTime),
        1 => Just(Kind::OnDown),
        1 => Just(Kind::Persistence),
        1 => Just(Kind::Limit),
        3 => Just(Kind::Tier),
        2 => Just(Kind::FailOver),
        2 => Just(Kind::Spill),
        3 => Just(Kind::Recovery),
        3 => Just(Kind::Routes),
        3 => Just(Kind::Subsets),
        1 => Just(Kind::RemoveService),
        2 => Just(Kind::AddService),
        4 => Just(Kind::Restart),
        4 => Just(Kind::Kill),
        2 => Just(Kind::Fail),
        2 => Just(Kind::Retry),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    (kind(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u32>()).prop_map(
        |(kind, service, choice, amount, seed)| Step {
            kind,
            service,
            choice,
            amount,
            seed,
        },
    )
}

/// Any scenario.
pub fn scenario() -> impl Strategy<Value = Scenario> {
    let services = prop::collection::btree_set(0..services().len(), 1..3);
    let seconds = prop_oneof![Just(2u64), Just(45), Just(900)];
    let flows = prop_oneof![24 => 20..100usize, 1 => 300..600usize];
    let start = prop_oneof![Just(0), Just(u32::MAX - 50_000), any::<u32>()];
    let steps = prop::collection::vec(step(), 5..60);
    (services, flows, 0..5u8, 0..5u8, seconds, start, steps).prop_map(
        |(services, flows, established, half_open, seconds, start, steps)| Scenario {
            services: services.into_iter().collect(),
            flows,
            established: capacity(established, flows),
            half_open: capacity(half_open, flows),
            moving_time: Duration::from_secs(seconds),
            start,
            steps,
        },
    )
}

/// From room for everybody, floods included, to room for one.
fn capacity(choice: u8, flows: usize) -> usize {
    match choice {
        0 | 1 => 100 * flows,
        2 => flows / 2,
        // One in a hundred, where there are so many.
        3 => (flows / 100).max(2),
        _ => 1,
    }
}

/// Every service that a scenario may have, without backends.
pub fn services() -> Vec<Service> {
    let service = |number: u8, protocol, mode, scheduler| {
        let vip = SocketAddr::from(([10, 200, 0, number + 1], 80));
        Service {
            ring_size: Some(251),
            scheduler,
            dead_after: Duration::from_secs(60),
            ..Service::new(ServiceId::new(vip, protocol), mode)
        }
    };
    use Protocol::{Tcp, Udp};
    let mut services = vec![
        service(0, Tcp, Mode::Nat, Scheduler::Maglev),
        service(1, Tcp, Mode::Ipip, Scheduler::Maglev),
        service(2, Udp, Mode::Nat, Scheduler::Maglev),
        service(3, Tcp, Mode::Ipip, Scheduler::SourceHash),
        service(4, Tcp, Mode::Nat, Scheduler::RoundRobin),
        service(5, Tcp, Mode::Ipip, Scheduler::WeightedLeastConnections),
        service(6, Udp, Mode::Ipip, Scheduler::PowerOfTwoChoices),
        service(7, Tcp, Mode::Ipip, Scheduler::LeastConnections),
        service(8, Udp, Mode::Nat, Scheduler::Maglev),
        service(9, Udp, Mode::Nat, Scheduler::Maglev),
        service(10, Udp, Mode::Ipip, Scheduler::LeastConnections),
        service(11, Tcp, Mode::Nat, Scheduler::RoundRobin),
        service(12, Udp, Mode::Ipip, Scheduler::Maglev),
        service(13, Tcp, Mode::Ipip, Scheduler::ThreeTupleHash),
        service(14, Tcp, Mode::Ipip, Scheduler::Maglev),
        service(15, Udp, Mode::Nat, Scheduler::RoundRobin),
        service(16, Udp, Mode::Ipip, Scheduler::Maglev),
    ];
    services[1].flow_state = FlowState::Always;
    services[3].id.vip = "[2001:db8::1]:443".parse().unwrap();
    services[5].on_down = Some(OnDown::Resteer);
    services[8].on_down = Some(OnDown::Keep);
    services[9].quic = Some(QUIC);
    services[10].quic = Some(QUIC);
    services[11].persistence = Duration::from_secs(300);
    services[12].persistence = Duration::from_secs(20);
    services[14].id = "10.200.15.0/28:80-87/tcp".parse().unwrap();
    services[15].id = "10.200.16.1:80-87/udp".parse().unwrap();
    services[16].id = "10.200.17.1:*/udp".parse().unwrap();
    services
}

/// Subsets that backends may be of.
pub fn subsets(choice: usize) -> Vec<String> {
    let all: [&[&str]; 6] = [
        &[],
        &["a"],
        &["b"],
        &["a", "b"],
        &["default", "a"],
        &["b", "default"],
    ];
    all[choice % all.len()]
        .iter()
        .map(|&name| name.to_owned())
        .collect()
}

/// A prefix of some clients of a service.
pub fn prefix(id: &ServiceId, number: usize, length: usize) -> Prefix {
    // All of them, or 4 to 128 of those that are numbered in a row.
    let host = 2 + length % 6;
    let client = world::client(id, number >> host << host, 0).ip();
    let (bits, all) = match client {
        IpAddr::V4(_) => (32, "0.0.0.0/0"),
        IpAddr::V6(_) => (128, "::/0"),
    };
    let text = format!("{client}/{}", bits - host);
    let text = if length % 16 == 15 { all } else { &text };
    text.parse().unwrap()
}

/// How QUIC services lay out connection ids.
pub const QUIC: Quic = Quic {
    config_id: 3,
    server_id_length: 2,
    nonce_length: 5,
};

/// The server id of a backend.
pub fn server_id(address: SocketAddr) -> [u8; 2] {
    match address.ip() {
        IpAddr::V4(v4) => [v4.octets()[2], v4.octets()[3]],
        IpAddr::V6(v6) => v6.segments()[7].to_be_bytes(),
    }
}

/// Where a client's flow to a service goes: always to the same of its addresses and ports.
pub fn destination(client: SocketAddr, service: &ServiceId) -> SocketAddr {
    let (which, ports) = (client.port() % 8, service.ports());
    let port = match service.has_every_port() {
        true => 1 + which,
        false => (ports.start() + which).min(*ports.end()),
    };
    let ip = match service.vip.ip() {
        IpAddr::V4(v4) if service.is_prefix() => {
            let [a, b, c, d] = v4.octets();
            IpAddr::from([a, b, c, d + (client.port() / 8 % 16) as u8])
        }
        ip => ip,
    };
    SocketAddr::new(ip, port)
}

/// Where a service's descriptor says that it is: at none of its ports, where it has several.
pub fn endpoint(id: ServiceId) -> Endpoint {
    let at = plan::endpoint(id);
    Endpoint {
        port: if id.is_wide() { 0 } else { at.port },
        ..at
    }
}

/// A backend's address: unique over all services.
pub fn address(service: usize, number: usize) -> SocketAddr {
    let (service, number) = (service as u16, number as u16);
    match services()[usize::from(service)].id.vip.ip() {
        IpAddr::V4(_) => SocketAddr::from(([10, 1, service as u8, number as u8 + 1], 80)),
        IpAddr::V6(_) => SocketAddr::from(([0xfd00, 1, service, 0, 0, 0, 0, number + 1], 443)),
    }
}

/// A backend as it comes to a service.
pub fn backend(service: &Service, address: SocketAddr, weight: u16) -> Backend {
    let server_id: Option<ServerId> = service.quic.map(|_| {
        let [high, low] = server_id(address);
        format!("{high:02x}{low:02x}").parse().unwrap()
    });
    Backend {
        weight,
        server_id,
        ..Backend::at(address)
    }
}
