//! Where a run takes place: client, balancer and backends in namespaces, and a service of each
//! mode over the same backends. Owns addresses and the balancer's configuration.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{
    echo_server::{HEALTH_PORT, PORT},
    fleet::Fleet,
    flow_state::FlowState,
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
    /// Starts everything, with these pools, and room for `flows` in each flow table.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(pools: &Pools, flow_state: FlowState, flows: Option<u32>) -> Result<Self> {
        let topology = Topology::build(BACKENDS, Names::Unique, Some(Turn::Shared))?;
        let fleet = Fleet::start(&topology)?;
        let vips: Vec<IpAddr> = (0..SERVICES).map(|service| target(service).ip()).collect();
        topology.accept_vips(&vips)?;
        let tunnels = topology.backends.iter().map(Decapsulator::attach);
        let tunnels = tunnels.collect::<Result<_>>()?;
        let config = configuration(pools, flow_state, flows);
        let arguments = ["--metrics", &metrics::ADDRESS.to_string()];
        Ok(Self {
            agent: Agent::start_in(&topology.balancer, &config, Home::unique()?, &arguments)?,
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

fn configuration(pools: &Pools, flow_state: FlowState, flows: Option<u32>) -> Config {
    let services = (0..SERVICES)
        .map(|service| configured(service, pools, flow_state))
        .collect();
    let limits = flows.map_or_else(Vec::new, |flows| {
        vec![("flows", flows), ("half_open", flows)]
    });
    Config { services, limits }
}

fn configured(service: usize, pools: &Pools, flow_state: FlowState) -> Service {
    let health = Health {
        port: Some(HEALTH_PORT),
        ..Health::HTTP
    };
    let members = pools[service].iter();
    Service {
        backends: members
            .map(|(&backend, member)| (address(backend), member.weight))
            .collect(),
        keys: flow_state.keys(),
        ..Service::new(name(service), MODES[service], health, [])
    }
}
