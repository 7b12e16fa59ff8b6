//! A balancer with everything around it that its services need, and the services that tests put on
//! it. Owns the set-up alone; traffic and judgement are the tests'.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::model::ServiceId;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    agent::{Agent, Decapsulator},
    backend::{self, Backend, OTHER_PORT},
    config::{Config, Health, Service},
    load::{Report, numbered::Receiver, requests},
    topology::{POOL_V4, POOL_V6, Topology, backend_name, backend_v4, backend_v6, vip_v4, vip_v6},
    wait::{wait_for, wait_until},
    xdp_pass::XdpPass,
};

/// Generous: this only bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(60);

/// Backends of a stage.
pub const BACKENDS: u8 = 3;
/// Port of UDP services and of their servers.
pub const UDP_PORT: u16 = 9_000;

/// `lbd` over a topology, an nginx at every backend, and a decapsulator where a service tunnels.
#[derive(Debug)]
pub struct Stage {
    /// The balancer.
    pub agent: Agent,
    tunnels: Vec<Decapsulator>,
    far_ends: Vec<XdpPass>,
    /// `servers[0]` is backend 1's.
    pub servers: Vec<Backend>,
    /// Where all of that runs.
    pub topology: Topology,
}

impl Stage {
    /// Sets `config`, or services with everything else as it is by default, up over `topology`.
    ///
    /// # Errors
    /// Anything that they need cannot be started.
    pub fn new(topology: Topology, config: impl Into<Config>) -> Result<Self> {
        let mut config = config.into();
        if config.services.iter().any(|s| s.mode == "full-nat") {
            topology.own_pool()?;
            if config.address_pools.is_empty() {
                config.address_pools.push(address_pool("1024-65535"));
            }
        }
        let servers = Backend::start_all(&topology)?;
        topology.accept_vips(&direct(&config.services)?)?;
        let direct = config.services.iter().filter(|s| !s.is_translated());
        for prefix in direct.filter_map(Service::prefix) {
            topology.accept_prefix(prefix)?;
        }
        let mut tunnels = Vec::new();
        if config.services.iter().any(Service::is_tunnelled) {
            for backend in &topology.backends {
                tunnels.push(Decapsulator::attach(backend)?);
            }
        }
        let agent = Agent::start(&topology.balancer, &config)?;
        Ok(Self {
            agent,
            tunnels,
            far_ends: Vec::new(),
            servers,
            topology,
        })
    }

    /// Receivers of numbered datagrams at every backend.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn receivers(&self) -> Result<Vec<Receiver>> {
        (1..=BACKENDS)
            .map(|n| Receiver::start(self.topology.backend(n), &backend_name(n), UDP_PORT))
            .collect()
    }

    /// Has every backend hand on packets of connections that it does not know.
    ///
    /// # Errors
    /// `lbd decap` refuses.
    pub fn hand_on(&mut self) -> Result<()> {
        for (n, tunnel) in (1..).zip(&self.tunnels) {
            // What backends send from their own programs, the switch takes by such a one.
            let port = XdpPass::attach(&self.topology.switch, &backend_name(n))?;
            self.far_ends.push(port);
            tunnel.lbd_decap(&["--second-hop"])?;
        }
        Ok(())
    }

    /// The far ends of the tunnels, by backend.
    pub fn tunnels(&self) -> &[Decapsulator] {
        &self.tunnels
    }

    /// Takes the far end of the tunnel away at backend `n`.
    ///
    /// # Errors
    /// There is none, or it does not go.
    pub fn detach_tunnel(&mut self, n: u8) -> Result<()> {
        let at = usize::from(n) - 1;
        ensure!(at < self.tunnels.len(), "backend {n} has no tunnel");
        self.tunnels.swap_remove(at).detach()
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

    /// The one backend that answers all of `count` requests to `service`.
    ///
    /// # Errors
    /// As [`Self::answers`], or several answer.
    pub fn only(&self, service: &Service, count: usize) -> Result<String> {
        let answers = self.answers(service, count)?;
        ensure!(answers.len() == 1, "not one backend: {answers:?}");
        answers.into_keys().next().context("no answer")
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

    /// Changes something by `lbctl`, whose arguments are separated by blanks.
    ///
    /// # Errors
    /// It refuses.
    pub fn lbctl(&self, arguments: &str) -> Result<()> {
        let words: Vec<&str> = arguments.split(' ').collect();
        let said = self.agent.lbctl(&words)?.succeeded();
        said.map(drop).with_context(|| format!("lbctl {arguments}"))
    }

    /// What `lbctl service show` says of `service`.
    ///
    /// # Errors
    /// It fails.
    pub fn shown(&self, service: &Service) -> Result<Value> {
        self.agent.lbctl_json(&["service", "show", &service.vip])
    }

    /// What it counts of the flows of `service` under a name.
    ///
    /// # Errors
    /// It fails, or has no such count.
    pub fn counted(&self, service: &Service, name: &str) -> Result<u64> {
        let shown = self.shown(service)?;
        shown["flows"][name]
            .as_u64()
            .with_context(|| shown.to_string())
    }

    /// The slots of `service` by phase.
    ///
    /// # Errors
    /// `lbctl` does not tell.
    pub fn slots(&self, service: &Service) -> Result<Slots> {
        let mut shown = self.shown(service)?;
        serde_json::from_value(shown["flows"].take()).context("slots by phase")
    }

    /// Waits until the slots of `service` are as `wanted`.
    ///
    /// # Errors
    /// They are not, for a long time.
    pub fn await_slots(&self, service: &Service, wanted: impl Fn(&Slots) -> bool) -> Result<Slots> {
        let slots = || self.slots(service).ok().filter(|slots| wanted(slots));
        wait_for("its slots are in these phases", SOON, slots)
            .with_context(|| format!("{:?}", self.slots(service)))
    }

    /// What `lbctl` says of the backend at `address`, unless it is not in `service` any more.
    ///
    /// # Errors
    /// `lbctl` fails.
    pub fn backend(&self, service: &Service, address: SocketAddr) -> Result<Option<Value>> {
        let shown = self.shown(service)?;
        let backends = shown["backends"].as_array().context("backends")?;
        let own = |backend: &&Value| backend["address"] == address.to_string();
        Ok(backends.iter().find(own).cloned())
    }

    /// Waits until the checks call the backend at `address` `condition`.
    ///
    /// # Errors
    /// They do not, for a long time.
    pub fn await_condition(
        &self,
        service: &Service,
        address: SocketAddr,
        condition: &str,
    ) -> Result<()> {
        wait_until(&format!("{address} is {condition}"), SOON, || {
            let backend = self.backend(service, address).ok().flatten();
            backend.is_some_and(|backend| backend["condition"] == condition)
        })
    }
}

/// The slots of a service by phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Slots {
    /// Their owner takes every packet.
    pub steady: u32,
    /// Their owner has changed.
    pub moving: u32,
    /// They wait for their last recorded flows.
    pub settling: u32,
}

impl Slots {
    /// Whether none moves any more.
    pub fn have_moved(&self) -> bool {
        self.moving == 0
    }

    /// Whether all are steady.
    pub fn are_steady(&self) -> bool {
        self.moving == 0 && self.settling == 0
    }
}

/// The address that `service` is reached at, or the first of several; port 0 where it has every one.
///
/// # Errors
/// It has none.
pub fn vip(service: &Service) -> Result<SocketAddr> {
    let id: ServiceId = service.vip.parse()?;
    Ok(id.vip)
}

/// `port` of the IPv4 address of every backend.
pub fn v4_pool(port: u16) -> impl Iterator<Item = SocketAddr> {
    (1..=BACKENDS).map(move |n| SocketAddr::from((backend_v4(n), port)))
}

/// Where the web server of backend `n` listens.
pub fn web_address(n: u8) -> SocketAddr {
    (backend_v4(n), backend::PORT).into()
}

/// Where the web server that answers `name` listens.
///
/// # Errors
/// There is none.
pub fn web_address_of(name: &str) -> Result<SocketAddr> {
    let n = (1..=BACKENDS).find(|&n| backend_name(n) == name);
    n.map(web_address)
        .with_context(|| format!("no backend {name}"))
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

/// A web service in mode `full-nat`, from the pool of [`address_pool`].
pub fn full_nat(vip: String, backends: impl IntoIterator<Item = SocketAddr>) -> Service {
    Service::new(vip, "full-nat", Health::HTTP, backends).with("address_pool", "snat")
}

/// The pool of both families, with these ports, as a configuration writes it.
pub fn address_pool(ports: &str) -> String {
    format!(
        "\n[[address_pool]]\nname = \"snat\"\naddresses = [\"{POOL_V4}\", \"{POOL_V6}\"]\nports = \"{ports}\"\n"
    )
}

/// A web service for every mode and pair of families.
pub fn every_mode() -> Vec<Service> {
    let (port, other) = (backend::PORT, OTHER_PORT);
    vec![
        Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(port)),
        Service::new(tcp(vip_v6(1)), "nat", Health::HTTP, v6_pool(port)),
        full_nat(tcp(vip_v4(7)), v4_pool(port)),
        full_nat(tcp(vip_v6(7)), v6_pool(port)),
        Service::new(tcp(vip_v4(2)), "ipip", Health::HTTP, v4_pool(port)),
        Service::new(tcp(vip_v6(2)), "ipip", Health::HTTP, v6_pool(port)),
        Service::new(tcp(vip_v4(3)), "ipip", Health::HTTP, v6_pool(other)),
        Service::new(tcp(vip_v6(3)), "ipip", Health::HTTP, v4_pool(other)),
        Service::new(tcp(vip_v4(4)), "gue", Health::HTTP, v4_pool(port)),
        Service::new(tcp(vip_v6(4)), "gue", Health::HTTP, v6_pool(port)),
        Service::new(tcp(vip_v4(5)), "gue", Health::HTTP, v6_pool(other)),
        Service::new(tcp(vip_v6(5)), "gue", Health::HTTP, v4_pool(other)),
        Service::new(tcp(vip_v4(6)), "l2", Health::HTTP, v4_pool(port)),
        Service::new(tcp(vip_v6(6)), "l2", Health::HTTP, v6_pool(port)),
    ]
}

/// A UDP service for every mode and pair of families, at the VIPs of [`every_mode`].
///
/// # Errors
/// As [`vip`].
pub fn every_udp_mode() -> Result<Vec<Service>> {
    every_mode_at(UDP_PORT, "udp")
}

/// The services of [`every_mode`], of a protocol and at a port of their own, and without checks.
///
/// # Errors
/// As [`vip`].
pub fn every_mode_at(port: u16, protocol: &str) -> Result<Vec<Service>> {
    let of = |service: Service| {
        let vip = SocketAddr::new(vip(&service)?.ip(), port);
        let backends = service.backends.iter();
        let backends = backends.map(|(address, _)| SocketAddr::new(address.ip(), port));
        let (name, mode) = (format!("{vip}/{protocol}"), service.mode);
        Ok(Service {
            keys: service.keys.clone(),
            ..Service::new(name, mode, Health::NONE, backends)
        })
    };
    every_mode().into_iter().map(of).collect()
}

/// The VIPs that backends answer from by themselves.
fn direct(services: &[Service]) -> Result<Vec<IpAddr>> {
    let mut vips: Vec<IpAddr> = services
        .iter()
        .filter(|service| !service.is_translated() && service.prefix().is_none())
        .map(|service| Ok(vip(service)?.ip()))
        .collect::<Result<_>>()?;
    vips.sort_unstable();
    vips.dedup();
    Ok(vips)
}
