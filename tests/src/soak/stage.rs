//! Where a run takes place: client, balancer and backends in namespaces, and a service of each
//! mode over the same backends. Owns addresses and the balancer's configuration.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};

use super::{
    echo_server::{HEALTH_PORT, PORT},
    features::{Keys, lines},
    fleet::Fleet,
    metrics,
    plan::Pools,
};
use crate::{
    agent::{Agent, Decapsulator, Home},
    config::{Config, Health, Service},
    topology::{Names, Topology, Turn, backend_v4, vip_v4},
};

/// How many backends.
pub const BACKENDS: u8 = 6;
/// The mode of each service.
const MODES: [&str; 2] = ["nat", "ipip"];
/// How many services.
pub const SERVICES: usize = MODES.len();

/// Everything that runs, in the order in which it goes.
#[derive(Debug)]
pub struct Stage {
    /// The balancer.
    pub agent: Agent,
    _tunnels: Vec<Decapsulator>,
    /// The backends.
    pub fleet: Fleet,
    /// The network.
    pub topology: Topology,
}

impl Stage {
    /// Starts everything, with these pools.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(pools: &Pools, keys: &Keys) -> Result<Self> {
        let topology = Topology::build(BACKENDS, Names::Unique, Some(Turn::Shared))?;
        let fleet = Fleet::start(&topology)?;
        let vips: Vec<IpAddr> = (0..SERVICES).map(|service| target(service).ip()).collect();
        topology.accept_vips(&vips)?;
        let tunnels = topology.backends.iter().map(Decapsulator::attach);
        let tunnels = tunnels.collect::<Result<_>>()?;
        let home = Home::unique()?;
        fs::write(&home.config, configuration(&home.name, pools, keys))
            .context("writing the configuration")?;
        let arguments = ["--metrics", &metrics::ADDRESS.to_string()];
        Ok(Self {
            agent: Agent::start_configured(&topology.balancer, home, &arguments)?,
            _tunnels: tunnels,
            fleet,
            topology,
        })
    }
}

/// Where clients of `service` connect to.
pub fn target(service: usize) -> SocketAddr {
    let vips = [vip_v4(1), vip_v4(2)];
    (vips[service], PORT).into()
}

/// How `lbctl` calls `service`.
pub fn name(service: usize) -> String {
    format!("{}/tcp", target(service))
}

/// Where `backend` serves.
pub fn address(backend: u8) -> SocketAddr {
    (backend_v4(backend), PORT).into()
}

fn configuration(name: &str, pools: &Pools, keys: &Keys) -> String {
    let services = (0..SERVICES)
        .map(|service| configured(service, pools, keys))
        .collect();
    let config = Config { services };
    format!("{}\n[limits]\n{}", config.render(name), lines(&keys.limits))
}

fn configured(service: usize, pools: &Pools, keys: &Keys) -> Service {
    let health = Health {
        port: Some(HEALTH_PORT),
        ..Health::HTTP
    };
    let members = pools[service].iter();
    Service {
        backends: members
            .map(|(&backend, member)| (address(backend), member.weight))
            .collect(),
        keys: keys.service.clone(),
        ..Service::new(name(service), MODES[service], health, [])
    }
}
