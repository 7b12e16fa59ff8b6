//! The desired state: services, backends and how they are checked. Validated, without I/O.
//!
//! A [`State`] that exists is valid: it is only made by [`State::new`] and [`State::apply`], and a
//! refused change leaves the old one as it was. How it came in (file, API) and what the kernel
//! makes of it are other modules' business.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Highest weight of a backend. 0 means: in the pool, but no share of new flows.
pub const MAX_WEIGHT: u16 = 1_000;
/// Backends of one service; local ids are 15 bits wide ([`lb_common::tables::Slot`]).
pub const MAX_BACKENDS: usize = 4_096;

/// A layer-4 protocol that can be balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol 6.
    Tcp,
    /// User Datagram Protocol, IP protocol 17.
    Udp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What identifies a service: address, port and protocol, written `10.0.0.1:80/tcp` or
/// `[2001:db8::1]:443/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The virtual address and port.
    pub vip: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vip, self.protocol)
    }
}

impl FromStr for ServiceId {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let bad = || ModelError::BadService {
            text: text.to_owned(),
        };
        let (vip, protocol) = text.rsplit_once('/').ok_or_else(bad)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(bad()),
        };
        let vip: SocketAddr = vip.parse().map_err(|_| bad())?;
        let id = Self { vip, protocol };
        check_unicast(vip.ip(), "service", &id)?;
        if vip.port() == 0 {
            return Err(bad());
        }
        Ok(id)
    }
}

impl Serialize for ServiceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How a packet reaches its backend (ARCHITECTURE.md, "Forwarding modes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Destination rewritten; answers return through the balancer and are rewritten back.
    Nat,
    /// IP-in-IP encapsulation (RFC 2003, RFC 2473); the backend answers the client directly.
    Ipip,
}

/// What an operator asked of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// Takes its share of flows while healthy.
    #[default]
    Active,
    /// Takes no new flows.
    Draining,
}

/// One server of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Where it listens. In `ipip` mode the packet's port stays the VIP's, and this port is only
    /// probed.
    pub address: SocketAddr,
    /// Its share relative to the others, 0 to [`MAX_WEIGHT`].
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// Active or draining.
    #[serde(default)]
    pub admin: Admin,
}

fn default_weight() -> u16 {
    1
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// Never probed: always up.
    None,
    /// A TCP connection is accepted.
    Tcp,
    /// `GET path` answers with a status in the 200s or 300s.
    Http {
        /// The path, starting with `/`.
        path: String,
        /// The Host header; the backend's address where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
}

/// How a service's backends are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Port probed instead of the backend's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From the start of one probe to the start of the next, in milliseconds.
    #[serde(rename = "interval_ms", with = "millis")]
    pub interval: Duration,
    /// A probe without an answer for this long has failed, in milliseconds; at most the interval.
    #[serde(rename = "timeout_ms", with = "millis")]
    pub timeout: Duration,
    /// Successes in a row after which a down backend is up.
    pub rise: u32,
    /// Failures in a row after which an up backend is down.
    pub fall: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
        }
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(
        clippy::cast_possible_truncation,
        reason = "validated to at most an hour"
    )]
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_millis() as u64)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A service and its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Address, port, protocol.
    pub id: ServiceId,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Slots of the Maglev ring, a prime; chosen from the pool's size where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    /// How its backends are checked.
    #[serde(default)]
    pub health: Health,
    /// Its servers, in the order given, without duplicates.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

impl Service {
    /// The backend at `address`.
    pub fn backend(&self, address: SocketAddr) -> Option<&Backend> {
        self.backends.iter().find(|b| b.address == address)
    }
}

/// Everything that is wanted. Valid by construction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    services: BTreeMap<ServiceId, Service>,
}

/// One change of a [`State`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new service.
    AddService(Service),
    /// A service and its pool go.
    RemoveService(ServiceId),
    /// A new backend of a service.
    AddBackend(ServiceId, Backend),
    /// A backend goes.
    RemoveBackend(ServiceId, SocketAddr),
    /// A backend's weight.
    SetWeight(ServiceId, SocketAddr, u16),
    /// Drain or undrain.
    SetAdmin(ServiceId, SocketAddr, Admin),
    /// Everything at once.
    Replace(Vec<Service>),
}

/// Why a state or change was refused. The texts say what was wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not of the form `ADDRESS:PORT/PROTOCOL`.
    #[error(
        "`{text}` is not a service: write ADDRESS:PORT/PROTOCOL, such as 10.0.0.1:80/tcp or [2001:db8::1]:443/udp"
    )]
    BadService {
        /// What was given.
        text: String,
    },
    /// The service exists already.
    #[error("service {id} exists already: remove it first, or change its backends")]
    DuplicateService {
        /// Which.
        id: ServiceId,
    },
    /// No such service.
    #[error("no service {id}: `lbctl service list` shows those there are")]
    UnknownService {
        /// Which.
        id: ServiceId,
    },
    /// The backend exists already.
    #[error(
        "service {id} has a backend {address} already: `lbctl backend weight` changes its weight"
    )]
    DuplicateBackend {
        /// Of which service.
        id: ServiceId,
        /// Which.
        address: SocketAddr,
    },
    /// No such backend.
    #[error("service {id} has no backend {address}: `lbctl backend list {id}` shows those it has")]
    UnknownBackend {
        /// Of which service.
        id: ServiceId,
        /// Which.
        address: SocketAddr,
    },
    /// A value is out of range or does not fit the rest.
    #[error("service {id}: {field}: {problem}")]
    Invalid {
        /// Of which service.
        id: ServiceId,
        /// Which field, as the configuration names it.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Two `nat` services would need the same answers rewritten to different VIPs.
    #[error(
        "backend {address} already serves {other} in nat mode, and its answers cannot be told apart: give {id} another backend port, or use mode \"ipip\""
    )]
    SharedNatBackend {
        /// The service refused.
        id: ServiceId,
        /// The one that has it.
        other: ServiceId,
        /// The backend.
        address: SocketAddr,
    },
}

impl State {
    /// A state with these services.
    ///
    /// # Errors
    /// The first service that is invalid or stands twice.
    pub fn new(services: impl IntoIterator<Item = Service>) -> Result<Self, ModelError> {
        let mut state = Self::default();
        for service in services {
            state.insert(service)?;
        }
        Ok(state)
    }

    /// The services, in order of address, port and protocol.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values()
    }

    /// The service of that id.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(&id)
    }

    /// The state after `change`; `self` stays what it was.
    ///
    /// # Errors
    /// What is wrong with the change.
    pub fn apply(&self, change: Change) -> Result<Self, ModelError> {
        let mut next = self.clone();
        match change {
            Change::AddService(service) => next.insert(service)?,
            Change::RemoveService(id) => {
                next.services
                    .remove(&id)
                    .ok_or(ModelError::UnknownService { id })?;
            }
            Change::AddBackend(id, backend) => {
                next.edit(id, |service| {
                    if service.backend(backend.address).is_some() {
                        let address = backend.address;
                        return Err(ModelError::DuplicateBackend { id, address });
                    }
                    service.backends.push(backend);
                    Ok(())
                })?;
            }
            Change::RemoveBackend(id, address) => {
                next.edit(id, |service| {
                    if service.backend(address).is_none() {
                        return Err(ModelError::UnknownBackend { id, address });
                    }
                    service.backends.retain(|b| b.address != address);
                    Ok(())
                })?;
            }
            Change::SetWeight(id, address, weight) => {
                next.edit_backend(id, address, |backend| backend.weight = weight)?;
            }
            Change::SetAdmin(id, address, admin) => {
                next.edit_backend(id, address, |backend| backend.admin = admin)?;
            }
            Change::Replace(services) => next = Self::new(services)?,
        }
        Ok(next)
    }

    fn insert(&mut self, service: Service) -> Result<(), ModelError> {
        let id = service.id;
        if self.services.contains_key(&id) {
            return Err(ModelError::DuplicateService { id });
        }
        self.check(&service)?;
        self.services.insert(id, service);
        Ok(())
    }

    fn edit(
        &mut self,
        id: ServiceId,
        edit: impl FnOnce(&mut Service) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let mut service = self
            .services
            .remove(&id)
            .ok_or(ModelError::UnknownService { id })?;
        edit(&mut service)?;
        self.insert(service)
    }

    fn edit_backend(
        &mut self,
        id: ServiceId,
        address: SocketAddr,
        edit: impl FnOnce(&mut Backend),
    ) -> Result<(), ModelError> {
        self.edit(id, |service| {
            let backend = service
                .backends
                .iter_mut()
                .find(|b| b.address == address)
                .ok_or(ModelError::UnknownBackend { id, address })?;
            edit(backend);
            Ok(())
        })
    }

    fn check(&self, service: &Service) -> Result<(), ModelError> {
        check_service(service)?;
        if service.mode == Mode::Nat {
            for other in self.services.values() {
                check_unique_nat_backend(service, other)?;
            }
        }
        Ok(())
    }
}

fn check_unique_nat_backend(service: &Service, other: &Service) -> Result<(), ModelError> {
    if other.mode != Mode::Nat || other.id.protocol != service.id.protocol {
        return Ok(());
    }
    match service
        .backends
        .iter()
        .find(|b| other.backend(b.address).is_some())
    {
        None => Ok(()),
        Some(shared) => Err(ModelError::SharedNatBackend {
            id: service.id,
            other: other.id,
            address: shared.address,
        }),
    }
}

fn check_service(service: &Service) -> Result<(), ModelError> {
    let id = service.id;
    let invalid = |field, problem: String| Err(ModelError::Invalid { id, field, problem });
    check_unicast(id.vip.ip(), "id", &id)?;
    if id.vip.port() == 0 {
        return invalid("id", "port 0 is not a port: use 1 to 65535".to_owned());
    }
    if service.backends.len() > MAX_BACKENDS {
        let problem = format!(
            "{} are too many: at most {MAX_BACKENDS}",
            service.backends.len()
        );
        return invalid("backends", problem);
    }
    if let Some(size) = service.ring_size
        && !lb_common::maglev::RING_SIZES.contains(&size)
    {
        let sizes = lb_common::maglev::RING_SIZES;
        return invalid("ring_size", format!("{size} is not one of {sizes:?}"));
    }
    check_health(service)?;
    for (index, backend) in service.backends.iter().enumerate() {
        let address = backend.address;
        check_unicast(address.ip(), "backends", &id)?;
        if address.port() == 0 {
            return invalid(
                "backends",
                format!("{address}: port 0 is not a port: use 1 to 65535"),
            );
        }
        if backend.weight > MAX_WEIGHT {
            let weight = backend.weight;
            return invalid(
                "weight",
                format!("{address}: {weight} is too large: 0 to {MAX_WEIGHT}"),
            );
        }
        if service.mode == Mode::Nat && address.is_ipv4() != id.vip.is_ipv4() {
            return invalid(
                "backends",
                format!(
                    "{address} is of another address family, which mode \"nat\" cannot reach: use mode \"ipip\""
                ),
            );
        }
        if address.ip() == id.vip.ip() {
            return invalid(
                "backends",
                format!("{address} is the service's own address"),
            );
        }
        if service.backends[..index]
            .iter()
            .any(|b| b.address == address)
        {
            return Err(ModelError::DuplicateBackend { id, address });
        }
    }
    Ok(())
}

fn check_health(service: &Service) -> Result<(), ModelError> {
    let id = service.id;
    let invalid = |field, problem: String| Err(ModelError::Invalid { id, field, problem });
    let health = &service.health;
    let bounds = Duration::from_millis(10)..=Duration::from_secs(3_600);
    if !bounds.contains(&health.interval) {
        return invalid("health.interval_ms", "must be 10 to 3600000".to_owned());
    }
    if health.timeout.is_zero() || health.timeout > health.interval {
        return invalid("health.timeout_ms", "must be 1 to interval_ms".to_owned());
    }
    for (field, count) in [("health.rise", health.rise), ("health.fall", health.fall)] {
        if !(1..=100).contains(&count) {
            return invalid(field, format!("{count} is out of range: 1 to 100"));
        }
    }
    if health.port == Some(0) {
        return invalid(
            "health.port",
            "port 0 is not a port: use 1 to 65535".to_owned(),
        );
    }
    if let Probe::Http { path, .. } = &health.probe
        && (!path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()))
    {
        return invalid(
            "health.probe.path",
            format!("`{path}` must start with / and have no blanks"),
        );
    }
    if let Probe::Http {
        host: Some(host), ..
    } = &health.probe
        && (host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()))
    {
        return invalid("health.probe.host", format!("`{host}` is not a host name"));
    }
    Ok(())
}

fn check_unicast(ip: IpAddr, field: &'static str, id: &ServiceId) -> Result<(), ModelError> {
    let unusable = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    if unusable || ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() {
        let problem = format!("{ip} is not a routable unicast address");
        return Err(ModelError::Invalid {
            id: *id,
            field,
            problem,
        });
    }
    Ok(())
}
