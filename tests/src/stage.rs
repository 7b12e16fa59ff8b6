//! A balancer with everything around it that its services need, and the services that tests put on
//! it. Owns the set-up alone; traffic and judgement are the tests'.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{Agent, Decapsulator},
    backend::{self, Backend, OTHER_PORT},
    config::{Config, Health, Service},
    load::{Report, requests},
    topology::{Topology, backend_v4, backend_v6, vip_v4, vip_v6},
};

/// Backends of a stage.
pub const BACKENDS: u8 = 3;
/// Port of UDP services and of their servers.
pub const UDP_PORT: u16 = 9_000;

/// `lbd` over a topology, an nginx at every backend, and a decapsulator where a service tunnels.
#[derive(Debug)]
pub struct Stage {
    /// The balancer.
    pub agent: Agent,
    _tunnels: Vec<Decapsulator>,
    /// `servers[0]` is backend 1's.
    pub servers: Vec<Backend>,
    /// Where all of that runs.
    pub topology: Topology,
}

impl Stage {
    /// Sets `services` up over `topology`.
    ///
    /// # Errors
    /// Anything that they need cannot be started.
    pub fn new(topology: Topology, services: Vec<Service>) -> Result<Self> {
        let servers = Backend::start_all(&topology)?;
        let vips = tunnelled(&services)?;
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

    /// How many of `count` requests to `service` each backend answered.
    ///
    /// # Errors
    /// One was not answered; with the agent's log.
    pub fn answers(&self, service: &Service, count: usize) -> Result<BTreeMap<String, usize>> {
        self.all_answered(
            service,
            &requests(&self.topology.client, vip(service)?, count)?,
        )
    }

    /// How many of the requests of `report` each backend answered.
    ///
    /// # Errors
    /// One was not answered; with the agent's log.
    pub fn all_answered(
        &self,
        service: &Service,
        report: &Report,
    ) -> Result<BTreeMap<String, usize>> {
        let count = report.attempts.len();
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

/// The address that `service` is reached at.
///
/// # Errors
/// It has none.
pub fn vip(service: &Service) -> Result<SocketAddr> {
    let (vip, _) = service
        .vip
        .split_once('/')
        .context("a service has a protocol")?;
    vip.parse().with_context(|| service.vip.clone())
}

/// `port` of the IPv4 address of every backend.
pub fn v4_pool(port: u16) -> impl Iterator<Item = SocketAddr> {
    (1..=BACKENDS).map(move |n| SocketAddr::from((backend_v4(n), port)))
}

/// `port` of the IPv6 address of every backend.
pub fn v6_pool(port: u16) -> impl Iterator<Item = SocketAddr> {
    (1..=BACKENDS).map(move |n| SocketAddr::from((backend_v6(n), port)))
}

/// The name of a web service at `address`.
pub fn tcp(address: impl Into<IpAddr>) -> String {
    format!("{}/tcp", SocketAddr::new(address.into(), backend::PORT))
}

/// A web service in mode `nat`, with all backends equal.
pub fn web(health: Health) -> Service {
    Service::new(tcp(vip_v4(1)), "nat", health, v4_pool(backend::PORT))
}

/// A web service for every mode and pair of families.
pub fn every_mode() -> Vec<Service> {
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

/// A UDP service for every mode and pair of families, at the VIPs of [`every_mode`].
///
/// # Errors
/// As [`vip`].
pub fn every_udp_mode() -> Result<Vec<Service>> {
    let of = |service: Service| {
        let vip = SocketAddr::new(vip(&service)?.ip(), UDP_PORT);
        let backends = service.backends.iter();
        let backends = backends.map(|(address, _)| SocketAddr::new(address.ip(), UDP_PORT));
        let (name, mode) = (format!("{vip}/udp"), service.mode);
        Ok(Service::new(name, mode, Health::NONE, backends))
    };
    every_mode().into_iter().map(of).collect()
}

fn tunnelled(services: &[Service]) -> Result<Vec<IpAddr>> {
    let mut vips: Vec<IpAddr> = services
        .iter()
        .filter(|service| service.mode == "ipip")
        .map(|service| Ok(vip(service)?.ip()))
        .collect::<Result<_>>()?;
    vips.sort_unstable();
    vips.dedup();
    Ok(vips)
}
