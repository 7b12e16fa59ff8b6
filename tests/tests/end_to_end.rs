//! The product as a user has it: `lbd` in a namespace, real nginx servers behind it, real requests
//! in front.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    agent::{Agent, Decapsulator},
    backend::{self, Backend, OTHER_PORT},
    config::{Config, Health, Service},
    load::{
        held::Held,
        numbered::{Receiver, Sender, settle},
        open_loop::OpenLoop,
        requests,
    },
    skip::root_or_skip,
    topology::{Topology, backend_v4, backend_v6, vip_v4, vip_v6},
    wait::wait_until,
};
use tokio::time::Instant;

const BACKENDS: u8 = 3;
const SOON: Duration = Duration::from_secs(5);

/// A balancer with everything around it that a service needs.
struct Stage {
    agent: Agent,
    _tunnels: Vec<Decapsulator>,
    servers: Vec<Backend>,
    topology: Topology,
}

impl Stage {
    fn new(topology: Topology, services: Vec<Service>) -> Result<Self> {
        let servers = Backend::start_all(&topology)?;
        let tunnelled = services.iter().filter(|service| service.mode == "ipip");
        let vips: Vec<IpAddr> = tunnelled.map(|service| vip(service).ip()).collect();
        let mut tunnels = Vec::new();
        if !vips.is_empty() {
            topology.accept_vips(&vips)?;
            for backend in &topology.backends {
                tunnels.push(Decapsulator::attach(backend)?);
            }
        }
        let agent = Agent::start(&topology.balancer, &Config { services })?;
        Ok(Self {
            agent,
            _tunnels: tunnels,
            servers,
            topology,
        })
    }

    /// Requests answered by each backend.
    fn answers(&self, service: &Service, count: usize) -> Result<BTreeMap<String, usize>> {
        let report = requests(&self.topology.client, vip(service), count)?;
        ensure!(
            report.succeeded() == count,
            "{} of {count} requests to {} failed: {:?}; {}",
            count - report.succeeded(),
            service.vip,
            report.failure_kinds(),
            self.agent.log()
        );
        Ok(report.per_backend())
    }
}

fn vip(service: &Service) -> SocketAddr {
    let (vip, _) = service.vip.split_once('/').expect("written by this test");
    vip.parse().expect("written by this test")
}

fn v4_pool(port: u16) -> impl Iterator<Item = SocketAddr> {
    (1..=BACKENDS).map(move |n| SocketAddr::from((backend_v4(n), port)))
}

fn v6_pool(port: u16) -> impl Iterator<Item = SocketAddr> {
    (1..=BACKENDS).map(move |n| SocketAddr::from((backend_v6(n), port)))
}

fn tcp(address: impl Into<IpAddr>) -> String {
    format!("{}/tcp", SocketAddr::new(address.into(), backend::PORT))
}

/// One service per mode and pair of families.
fn every_mode() -> Vec<Service> {
    let (port, other) = (backend::PORT, OTHER_PORT);
    vec![
        Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(port)),
        Service::new(tcp(vip_v6(1)), "nat", Health::HTTP, v6_pool(port)),
        Service::new(tcp(vip_v4(2)), "ipip", Health::HTTP, v4_pool(port)),
        Service::new(tcp(vip_v6(2)), "ipip", Health::HTTP, v6_pool(port)),
        Service::new(tcp(vip_v4(3)), "ipip", Health::HTTP, v6_pool(other)),
        Service::new(tcp(vip_v6(3)), "ipip", Health::HTTP, v4_pool(other)),
    ]
}

fn assert_shares(service: &Service, answers: &BTreeMap<String, usize>, weights: &[usize]) {
    let total: usize = answers.values().sum();
    let weight: usize = weights.iter().sum();
    assert_eq!(answers.len(), weights.len(), "{}: {answers:?}", service.vip);
    for ((name, &count), &share) in answers.iter().zip(weights) {
        let ideal = total as f64 * share as f64 / weight as f64;
        let off = (count as f64 - ideal).abs() / ideal;
        assert!(
            off <= 0.10,
            "{}: {name} answered {count}, not {ideal}: {answers:?}",
            service.vip
        );
    }
}

#[test]
fn every_mode_and_family_spreads_requests_over_equal_backends() -> Result<()> {
    if !root_or_skip("every_mode_and_family_spreads_requests_over_equal_backends") {
        return Ok(());
    }
    let services = every_mode();
    let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
    for service in &services {
        let answers = stage.answers(service, 3_000)?;
        println!("{} {}: {answers:?}", service.mode, service.vip);
        assert_shares(service, &answers, &[1, 1, 1]);
    }
    Ok(())
}

#[test]
fn weights_share_requests_out_in_their_ratio() -> Result<()> {
    if !root_or_skip("weights_share_requests_out_in_their_ratio") {
        return Ok(());
    }
    let mut service = Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(backend::PORT));
    for ((_, weight), share) in service.backends.iter_mut().zip(1..) {
        *weight = share;
    }
    let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
    // The smallest share varies by a standard deviation of 2.4%, so that 10% are beyond chance.
    let answers = stage.answers(&service, 9_000)?;
    println!("weights 1:2:3: {answers:?}");
    assert_shares(&service, &answers, &[1, 2, 3]);
    Ok(())
}

#[test]
fn lbctl_changes_are_in_force_when_the_command_returns() -> Result<()> {
    if !root_or_skip("lbctl_changes_are_in_force_when_the_command_returns") {
        return Ok(());
    }
    let service = Service::new(
        tcp(vip_v4(1)),
        "nat",
        Health::HTTP,
        v4_pool(backend::PORT).take(2),
    );
    let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
    let id = service.vip.as_str();
    let names = |answers: BTreeMap<String, usize>| answers.into_keys().collect::<Vec<_>>();
    let lbctl = |arguments: &[&str]| stage.agent.lbctl(arguments)?.succeeded().map(drop);
    lbctl(&["backend", "drain", id, "10.2.0.11:80"])?;
    assert_eq!(names(stage.answers(&service, 100)?), ["backend2"]);
    lbctl(&["backend", "add", id, "10.2.0.13:80"])?;
    assert_eq!(
        names(stage.answers(&service, 200)?),
        ["backend2", "backend3"]
    );
    lbctl(&["backend", "undrain", id, "10.2.0.11:80"])?;
    assert_eq!(stage.answers(&service, 300)?.len(), 3);
    lbctl(&["backend", "remove", id, "10.2.0.12:80"])?;
    assert_eq!(
        names(stage.answers(&service, 200)?),
        ["backend1", "backend3"]
    );
    lbctl(&["backend", "weight", id, "10.2.0.13:80", "0"])?;
    assert_eq!(names(stage.answers(&service, 100)?), ["backend1"]);
    lbctl(&["service", "remove", id])?;
    let report = requests(&stage.topology.client, vip(&service), 2)?;
    assert_eq!(report.succeeded(), 0, "a removed service still answers");
    Ok(())
}

#[test]
fn after_detection_no_request_meets_the_killed_backend_and_it_returns() -> Result<()> {
    if !root_or_skip("after_detection_no_request_meets_the_killed_backend_and_it_returns") {
        return Ok(());
    }
    let service = Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(backend::PORT));
    let mut stage = Stage::new(Topology::exclusive(BACKENDS)?, vec![service.clone()])?;
    let client = stage.topology.client.clone();
    let load = OpenLoop::start(&client, vip(&service), 500)?;
    let condition = |stage: &Stage, wanted: &str| {
        let list = stage.agent.lbctl_json(&["backend", "list"]);
        list.is_ok_and(|list| list[1]["condition"] == wanted)
    };
    wait_until("backend2 is up", SOON, || condition(&stage, "up"))?;
    stage.servers[1].kill();
    let killed = Instant::now();
    wait_until("backend2 is found dead", SOON, || condition(&stage, "down"))?;
    std::thread::sleep(Duration::from_secs(1));
    stage.servers[1].restart()?;
    wait_until("backend2 is back", SOON, || condition(&stage, "up"))?;
    let answers = stage.answers(&service, 300)?;
    let report = load.stop()?;
    let allowed = killed + Duration::from_millis(u64::from(Health::HTTP.detection_ms()) + 100);
    let (before, after) = report.failures_around(allowed);
    let last = report
        .last_failure_started()
        .map(|last| last.saturating_duration_since(killed));
    println!(
        "killed: {before} failures until detection, {after} after, the last began {last:?} after the kill"
    );
    assert_eq!(after, 0, "{:?}", report.failure_kinds());
    assert_eq!(
        report.failures_around(killed).0,
        0,
        "failures before anything had failed"
    );
    assert_eq!(
        answers.len(),
        3,
        "the revived backend takes its share again: {answers:?}"
    );
    Ok(())
}

#[test]
fn killing_the_agent_loses_no_packet_breaks_no_connection_and_resets_no_counter() -> Result<()> {
    if !root_or_skip("killing_the_agent_loses_no_packet_breaks_no_connection_and_resets_no_counter")
    {
        return Ok(());
    }
    const UDP_PORT: u16 = 9_000;
    const RATE: u32 = 20_000;
    let web = Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(backend::PORT));
    let numbered = SocketAddr::from((vip_v4(4), UDP_PORT));
    let udp = Service::new(
        format!("{numbered}/udp"),
        "nat",
        Health::NONE,
        v4_pool(UDP_PORT),
    );
    let mut stage = Stage::new(Topology::exclusive(BACKENDS)?, vec![web.clone(), udp])?;
    let receivers = (1..=BACKENDS)
        .map(|n| Receiver::start(stage.topology.backend(n), &format!("backend{n}"), UDP_PORT))
        .collect::<Result<Vec<_>>>()?;
    let held = Held::open(
        &stage.topology.client,
        vip(&web),
        100,
        Duration::from_millis(500),
    )?;
    let sender = Sender::start(&stage.topology.client, numbered, RATE, 64)?;
    let packets = |stage: &Stage| -> Result<u64> {
        let list = stage.agent.lbctl_json(&["service", "list"])?;
        Ok(list[1]["traffic"]["packets"].as_u64().unwrap_or_default())
    };
    let mut last = packets(&stage)?;
    for round in 1..=10 {
        stage.agent.restart()?;
        let now = packets(&stage)?;
        ensure!(
            now > last,
            "restart {round}: the counter went from {last} to {now}"
        );
        last = now;
    }
    let delivery = settle(sender, receivers)?;
    let lives = held.stop()?;
    let broken = lives.broken_per_backend();
    println!("10 kills: {delivery:?}; broken connections: {broken:?}");
    assert!(broken.is_empty(), "{broken:?}");
    assert!(delivery.gaps.is_empty(), "{delivery:?}");
    Ok(())
}
