//! Where a run takes place: client, balancer and backends in namespaces, and a service of each
//! mode over the same backends. Owns addresses and the balancer's configuration.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;

use super::{
    echo_server::{HEALTH_PORT, PORT},
    fleet::Fleet,
    flow_state::FlowState,
    metrics,
    plan::{Member, Pools},
};
use crate::{
    agent::{Agent, Decapsulator, Home},
    config::{Config, Health, Service},
    topology::{Names, Topology, Turn, backend_v4, vip_v4},
    wait::wait_until,
};

/// The modes of services, in turn.
const MODES: [&str; 2] = ["nat", "ipip"];

/// Every service checks every backend of its own: less often than elsewhere, for there are many.
const CHECK_INTERVAL_MS: u32 = 400;

/// Bounds what takes a moving time, and then until it is seen.
const SOON: Duration = Duration::from_secs(60);

/// How much there is of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Services, each with a part of the backends.
    pub services: u8,
    /// Backends, each in several services.
    pub backends: u8,
}

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
    pub fn start(
        size: Size,
        pools: &Pools,
        flow_state: FlowState,
        flows: Option<u32>,
    ) -> Result<Self> {
        let topology = Topology::build(size.backends, Names::Unique, Some(Turn::Shared))?;
        let fleet = Fleet::start(&topology, size.services)?;
        let vips: Vec<IpAddr> = targets(size).iter().map(SocketAddr::ip).collect();
        topology.accept_vips(&vips)?;
        let tunnels = topology.backends.iter().map(Decapsulator::attach);
        let tunnels = tunnels.collect::<Result<_>>()?;
        let config = configuration(pools, flow_state, flows);
        let arguments = ["--metrics", &metrics::ADDRESS.to_string()];
        let agent = Agent::start_in(&topology.balancer, &config, Home::unique()?, &arguments)?;
        // Backends are reached one after another, and slots move to each: no change of the plan is to blame for what is
        // recorded meanwhile.
        wait_until("all slots are steady", SOON, || {
            metrics::scrape(&topology.balancer).is_ok_and(|page| metrics::are_steady(&page))
        })?;
        Ok(Self {
            agent,
            _tunnels: tunnels,
            fleet,
            topology,
        })
    }
}

/// Where clients connect to, by service.
pub fn targets(size: Size) -> Vec<SocketAddr> {
    (0..usize::from(size.services)).map(target).collect()
}

fn target(service: usize) -> SocketAddr {
    (vip_v4(1 + service as u8), port(service)).into()
}

/// A backend has a port for each service: in `nat`, a port can serve one only.
fn port(service: usize) -> u16 {
    PORT + service as u16
}

/// How `lbctl` calls `service`.
pub fn name(service: usize) -> String {
    format!("{}/tcp", target(service))
}

/// Where `backend` serves `service`.
pub fn address(service: usize, backend: u8) -> SocketAddr {
    (backend_v4(backend), port(service)).into()
}

fn configuration(pools: &Pools, flow_state: FlowState, flows: Option<u32>) -> Config {
    let services = (0..)
        .zip(pools)
        .map(|(service, pool)| configured(service, pool, flow_state))
        .collect();
    let limits = flows.map_or_else(Vec::new, |flows| {
        vec![("flows", flows), ("half_open", flows)]
    });
    Config {
        services,
        limits,
        ..Config::default()
    }
}

fn configured(service: usize, pool: &BTreeMap<u8, Member>, flow_state: FlowState) -> Service {
    let health = Health {
        port: Some(HEALTH_PORT),
        interval_ms: CHECK_INTERVAL_MS,
        ..Health::HTTP
    };
    let mode = MODES[service % MODES.len()];
    Service {
        backends: pool
            .iter()
            .map(|(&backend, member)| (address(service, backend), member.weight))
            .collect(),
        keys: flow_state.keys(),
        ..Service::new(name(service), mode, health, [])
    }
}
