//! What makes a service and its backends valid, each on its own. What they owe each other is
//! [`State`](super::State)'s.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    Backend, BitRate, Check, Failback, FlowState, MAX_BACKENDS, MAX_WEIGHT, Mode, ModelError,
    Probe, Protocol, Service, ServiceId,
    adaptive::check_adaptive,
    address_pool::check_full_nat,
    group,
    limit::check_limits,
    mss::check_clamp,
    name_of,
    passive::check_passive,
    recovery::{check_damping, check_panic, check_slow_start},
    second_hop::{check_families, check_second_hop},
    subset::{check_names, check_subsets},
    syn_proxy::check_syn_proxy,
    tier::{check_spill, check_tier},
};

/// Ports of one range in mode `nat` at most.
const MAX_NAT_PORTS: usize = 4_096;

/// The longest of the times that a service is given.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Service {
    /// Everything but the backends, each on its own.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check_settings(&self) -> Result<(), ModelError> {
        let id = self.id;
        let sizes = lb_common::maglev::RING_SIZES;
        check_address(id.vip, "vip", &id)?;
        self.check_span()?;
        if let Some(group) = &self.group
            && let Err(problem) = group::parse_name(group)
        {
            return invalid(id, "group", problem);
        }
        if let Some(size) = self.ring_size
            && !sizes.contains(&size)
        {
            return invalid(id, "ring_size", format!("{size} is not one of {sizes:?}"));
        }
        let count = self.backends.len();
        if count > MAX_BACKENDS {
            let problem = format!("{count} are too many: at most {MAX_BACKENDS}");
            return invalid(id, "backends", problem);
        }
        check_flows(self)?;
        check_spill(self)?;
        check_slow_start(self)?;
        check_damping(self)?;
        check_panic(self)?;
        check_passive(self)?;
        check_clamp(self)?;
        check_second_hop(self)?;
        check_limits(self)?;
        check_full_nat(self)?;
        check_syn_proxy(self)?;
        self.check_quic()?;
        self.health.check(id)?;
        check_adaptive(self)?;
        self.check_probes_by_vip()
    }

    /// Whether answers can tell which of several addresses and ports they are from.
    fn check_span(&self) -> Result<(), ModelError> {
        let id = self.id;
        if id.protocol == Protocol::Sctp && matches!(self.mode, Mode::Nat | Mode::FullNat) {
            let problem = format!(
                "\"{}\" rewrites ports, which the checksum of SCTP (CRC32c) has all of the packet read for: use mode \"ipip\", \"gue\" or \"l2\"",
                name_of(self.mode)
            );
            return invalid(id, "mode", problem);
        }
        if self.mode != Mode::Nat {
            return Ok(());
        }
        if id.is_prefix() {
            let problem = "in mode \"nat\", an answer could not tell which address of the prefix it is from: use mode \"full-nat\", \"ipip\", \"gue\" or \"l2\", or a service for each address";
            return invalid(id, "vip", problem);
        }
        let ports = id.ports().len();
        if !id.has_every_port() && ports > MAX_NAT_PORTS {
            let problem = format!(
                "{ports} ports are too many for mode \"nat\", in which each has a way back from each backend: at most {MAX_NAT_PORTS}, or every one (*)"
            );
            return invalid(id, "vip", problem);
        }
        Ok(())
    }

    /// Whether traffic goes a way that probes can go.
    fn check_probes_by_vip(&self) -> Result<(), ModelError> {
        if !self.health.probes_vip() {
            return Ok(());
        }
        if matches!(self.mode, Mode::Nat | Mode::FullNat) {
            let problem = format!(
                "type \"vip\" asks backends for the VIP, and in mode {} they get packets to their own addresses, as those of any other type: use type \"tcp\", or mode ipip, gue or l2",
                name_of(self.mode)
            );
            return invalid(self.id, "checks", problem);
        }
        let at_vip = |check: &&Check| check.probe == Probe::Vip {};
        let mut ports = self
            .health
            .checks
            .iter()
            .filter(at_vip)
            .filter_map(|check| check.port);
        if let Some(port) =
            ports.find(|port| !self.id.has_several_ports() || !self.id.ports().contains(port))
        {
            let problem = format!(
                "type \"vip\" asks where traffic goes, which port {port} is not: leave `port` out, or give one of the service's where it has several"
            );
            return invalid(self.id, "checks", problem);
        }
        Ok(())
    }

    /// Whether probes of a backend have to know where packets to it leave: of a hardware address, or of the interface's
    /// addresses of the VIP's family, where the backend's own is of the other.
    pub fn probes_by_hop(&self, backend: IpAddr) -> bool {
        let other = backend.is_ipv4() != self.id.vip.is_ipv4();
        self.health.probes_vip() && (self.mode == Mode::L2 || other)
    }

    /// Whether `backend` can serve this service, its other backends left aside.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check_backend(&self, backend: &Backend) -> Result<(), ModelError> {
        let (id, address, weight) = (self.id, backend.address, backend.weight);
        check_address(address, "address", &id)?;
        if address.port() == 0 {
            let problem = format!("{address}: port 0 is not a port: use 1 to 65535");
            return invalid(id, "address", problem);
        }
        if weight > MAX_WEIGHT {
            let problem = format!("{address}: {weight} is too large: 0 to {MAX_WEIGHT}");
            return invalid(id, "weight", problem);
        }
        if backend.max_connections == Some(0) {
            let problem = format!("{address}: 0 lets no flow in: 1 or more, or drain the backend");
            return invalid(id, "max_connections", problem);
        }
        if backend.max_connections.is_some() && self.moving_time().is_zero() {
            let problem = format!(
                "{address}: flows are counted by their records, and moving_time 0 keeps none: set moving_time, or leave max_connections out"
            );
            return invalid(id, "max_connections", problem);
        }
        self.check_rated(backend)?;
        check_tier(id, backend.tier)?;
        check_names(self, backend)?;
        let translates = matches!(self.mode, Mode::Nat | Mode::FullNat);
        if translates && address.is_ipv4() != id.vip.is_ipv4() {
            let mode = name_of(self.mode);
            let problem = format!(
                "{address} is of another address family, which mode \"{mode}\" cannot reach: use mode \"ipip\""
            );
            return invalid(id, "address", problem);
        }
        if id.has_address(address.ip()) {
            let problem = format!("{address} is the service's own address: give a server's");
            return invalid(id, "address", problem);
        }
        self.check_server_id(backend)
    }

    fn check_rated(&self, backend: &Backend) -> Result<(), ModelError> {
        let Backend { address, rated, .. } = *backend;
        if rated.max_flow_rate == Some(0) {
            let problem = format!("{address}: 0 carries nothing: 1 or more, or drain the backend");
            return invalid(self.id, "max_flow_rate", problem);
        }
        if rated.max_flow_rate.is_some() && !self.tells_beginnings() {
            let problem = format!(
                "{address}: no packet of UDP tells that it begins a flow, so that nobody can count those: use max_bandwidth or max_connections"
            );
            return invalid(self.id, "max_flow_rate", problem);
        }
        if rated.max_bandwidth == Some(BitRate(0)) {
            let problem = format!("{address}: 0 carries nothing: 1 or more, or drain the backend");
            return invalid(self.id, "max_bandwidth", problem);
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), ModelError> {
        self.check_settings()?;
        check_families(self)?;
        check_subsets(self)?;
        let mut seen = HashSet::with_capacity(self.backends.len());
        let mut identified = HashMap::new();
        for backend in &self.backends {
            self.check_backend(backend)?;
            if !seen.insert(backend.address) {
                let (id, address) = (self.id, backend.address);
                return Err(ModelError::DuplicateBackend { id, address });
            }
            if let Some(server_id) = backend.server_id
                && let Some(other) = identified.insert(server_id, backend.address)
            {
                return Err(ModelError::SharedServerId {
                    id: self.id,
                    address: backend.address,
                    other,
                    server_id,
                });
            }
        }
        Ok(())
    }
}

pub(super) fn invalid<T>(
    id: ServiceId,
    field: &'static str,
    problem: impl Into<String>,
) -> Result<T, ModelError> {
    let problem = problem.into();
    Err(ModelError::Invalid { id, field, problem })
}

fn check_flows(service: &Service) -> Result<(), ModelError> {
    let (id, moving_time) = (service.id, service.moving_time());
    let failback = match service.failback {
        Failback::After(time) => time,
        Failback::Automatic | Failback::Manual => Duration::ZERO,
    };
    for (field, time) in [
        ("moving_time", moving_time),
        ("dead_after", service.dead_after),
        ("persistence", service.persistence),
        ("failback", failback),
        ("slow_start", service.slow_start.window),
        ("flap_damping", service.flap_damping.most),
    ] {
        if time > WEEK {
            let time = humantime::format_duration(time);
            return invalid(id, field, format!("{time} is out of range: 0s to 1 week"));
        }
    }
    check_client(service)?;
    if !moving_time.is_zero() {
        return Ok(());
    }
    if !service.persistence.is_zero() {
        let problem = "0 keeps no record of flows, and persistence makes choices that have to be kept: set it, or leave persistence out";
        return invalid(id, "moving_time", problem);
    }
    if service.scheduler.records_every_flow() {
        let problem = format!(
            "0 keeps no record of flows, and scheduler \"{}\" goes by them: set it, or use scheduler \"maglev\", \"source-hash\" or \"three-tuple-hash\"",
            name_of(service.scheduler)
        );
        return invalid(id, "moving_time", problem);
    }
    if service.flow_state == FlowState::Always {
        let problem = "0 keeps no record of flows, and flow_state \"always\" asks for them: set it, or use flow_state \"auto\"";
        return invalid(id, "moving_time", problem);
    }
    Ok(())
}

fn check_client(service: &Service) -> Result<(), ModelError> {
    let most = match service.id.vip.ip() {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    match service.persistence_prefix {
        Some(bits) if bits == 0 || bits > most => {
            let problem = format!("{bits} is out of range: 1 to {most}");
            invalid(service.id, "persistence_prefix", problem)
        }
        _ => Ok(()),
    }
}

/// Whether an address has more to it than what packets, and so the maps, tell it by.
pub(super) fn is_scoped(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0)
}

pub(super) fn check_address(
    address: SocketAddr,
    field: &'static str,
    id: &ServiceId,
) -> Result<(), ModelError> {
    let ip = address.ip();
    if is_scoped(address) {
        return invalid(*id, field, ModelError::Scoped { address }.to_string());
    }
    let unusable = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    if unusable || ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() {
        let problem = format!("{ip} is not a routable unicast address");
        return invalid(*id, field, problem);
    }
    Ok(())
}
