//! The desired state: services, backends and how they are checked. Validated, without I/O.
//!
//! A [`State`] that exists is valid: it is only made by [`State::new`] and [`State::apply`], and a
//! refused change leaves the old one as it was. How it came in (file, API) and what the kernel
//! makes of it are other modules' business.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

mod check;
mod error;
mod id;
mod millis;
mod quic;
#[cfg(test)]
mod tests;

pub use error::ModelError;
pub use id::{Protocol, ServiceId};
pub use quic::{Quic, ServerId};

/// Highest weight of a backend. 0 means: in the pool, but no share of new flows.
pub const MAX_WEIGHT: u16 = 1_000;
/// Backends of one service; local ids are 15 bits wide ([`lb_common::tables::Slot`]).
pub const MAX_BACKENDS: usize = 4_096;

/// The name of a setting's value, as the configuration, the API and `lbctl` write it.
pub fn name_of(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// How a packet reaches its backend (ARCHITECTURE.md, "Forwarding modes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Destination rewritten; answers return through the balancer and are rewritten back.
    Nat,
    /// IP-in-IP encapsulation (RFC 2003, RFC 2473); the backend answers the client directly.
    Ipip,
    /// Encapsulation in UDP (Generic UDP Encapsulation); the backend answers the client directly.
    Gue,
    /// Destination MAC address rewritten, on a link that both are on; the backend answers the client
    /// directly.
    L2,
}

/// How a new flow's backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// By the hash of addresses, ports and protocol on a Maglev ring, by weight.
    #[default]
    Maglev,
    /// By the hash of the client's address on such a ring: a client keeps its backend.
    SourceHash,
    /// In turns, weights left aside.
    RoundRobin,
    /// In turns, each as often as its weight says.
    WeightedRoundRobin,
    /// The fewest flows in progress, weights left aside.
    LeastConnections,
    /// The fewest flows in progress for its weight.
    WeightedLeastConnections,
    /// The better of two drawn by weight.
    ///
    /// M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10),
    /// 2001.
    PowerOfTwoChoices,
}

impl Scheduler {
    /// Whether it pays no heed to weights, but for 0.
    pub fn ignores_weights(self) -> bool {
        matches!(self, Self::RoundRobin | Self::LeastConnections)
    }

    /// Whether it goes by how many connections backends have.
    pub fn counts_connections(self) -> bool {
        matches!(
            self,
            Self::LeastConnections | Self::WeightedLeastConnections | Self::PowerOfTwoChoices
        )
    }

    /// Whether it chooses by connection, so that every flow has to be recorded.
    pub fn records_every_flow(self) -> bool {
        !matches!(self, Self::Maglev | Self::SourceHash)
    }
}

/// Which flows are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// Those of slots that move, and of schedulers that choose by connection.
    #[default]
    Auto,
    /// All.
    Always,
}

/// What becomes of a backend's flows when its checks fail. One that is known to be dead loses them
/// either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// They stay, so that a false alarm moves nobody.
    Keep,
    /// They go to other backends.
    Resteer,
}

/// What an operator asked of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
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
    /// Where it listens. But for mode `nat` the packet's port stays the VIP's, and this port is only
    /// probed.
    pub address: SocketAddr,
    /// Its share relative to the others, 0 to [`MAX_WEIGHT`].
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// Active or draining.
    #[serde(default)]
    pub admin: Admin,
    /// Flows in progress at which it takes no new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// What the connection ids of a QUIC service name it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<ServerId>,
}

impl Backend {
    /// Reads a backend's address, written `ADDRESS:PORT`.
    ///
    /// # Errors
    /// [`ModelError::BadBackend`].
    pub fn parse_address(text: &str) -> Result<SocketAddr, ModelError> {
        text.parse().map_err(|_| ModelError::BadBackend {
            text: text.to_owned(),
        })
    }
}

fn default_weight() -> u16 {
    1
}

/// How long a backend is down before it counts as dead, unless said otherwise.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);

fn default_dead_after() -> Duration {
    DEAD_AFTER
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
    /// How a new flow's backend is chosen.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Which flows are recorded.
    #[serde(default)]
    pub flow_state: FlowState,
    /// What becomes of a backend's flows when its checks fail; by the protocol where absent:
    /// [`Service::on_down`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_down: Option<OnDown>,
    /// How long a slot moves after its owner changed, and how long a flow may be idle, in milliseconds;
    /// by the protocol where absent: [`Service::moving_time`]. 0: flows are never recorded.
    #[serde(
        default,
        rename = "moving_time_ms",
        with = "millis::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub moving_time: Option<Duration>,
    /// How long a backend is down before it counts as dead, in milliseconds.
    #[serde(
        default = "default_dead_after",
        rename = "dead_after_ms",
        with = "millis"
    )]
    pub dead_after: Duration,
    /// How its connection ids are laid out, where it is QUIC: packets go by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<Quic>,
    /// How its backends are checked.
    #[serde(default)]
    pub health: Health,
    /// Its servers, in the order given, without duplicates.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// Everything that is wanted. Valid by construction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    services: BTreeMap<ServiceId, Service>,
    /// Who has which backend in mode `nat`: answers from it must lead back to one service.
    nat: BTreeMap<(Protocol, SocketAddr), ServiceId>,
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
    /// A backend's weight, or whether it drains, or both at once; what is absent stays.
    EditBackend {
        /// Of which service.
        id: ServiceId,
        /// Which.
        address: SocketAddr,
        /// The new weight.
        weight: Option<u16>,
        /// Drain or undrain.
        admin: Option<Admin>,
        /// The new limit of flows in progress; `Some(None)` takes it away.
        max_connections: Option<Option<u32>>,
    },
    /// Settings of a service; what is absent stays.
    EditService(ServiceId, Settings),
    /// Everything at once.
    Replace(Vec<Service>),
}

/// Settings of a service that can be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// [`Service::ring_size`].
    pub ring_size: Option<u32>,
    /// [`Service::scheduler`].
    pub scheduler: Option<Scheduler>,
    /// [`Service::flow_state`].
    pub flow_state: Option<FlowState>,
    /// [`Service::on_down`].
    pub on_down: Option<OnDown>,
    /// [`Service::moving_time`].
    pub moving_time: Option<Duration>,
    /// [`Service::dead_after`].
    pub dead_after: Option<Duration>,
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
                next.take(id)?;
            }
            Change::AddBackend(id, backend) => next.edit(id, |service| {
                service.backends.push(backend);
                Ok(())
            })?,
            Change::RemoveBackend(id, address) => next.edit(id, |service| {
                service
                    .backend(address)
                    .ok_or(ModelError::UnknownBackend { id, address })?;
                service.backends.retain(|b| b.address != address);
                Ok(())
            })?,
            Change::EditBackend {
                id,
                address,
                weight,
                admin,
                max_connections,
            } => next.edit_backend(id, address, |backend| {
                backend.weight = weight.unwrap_or(backend.weight);
                backend.admin = admin.unwrap_or(backend.admin);
                backend.max_connections = max_connections.unwrap_or(backend.max_connections);
            })?,
            Change::EditService(id, settings) => next.edit(id, |service| {
                settings.apply(service);
                Ok(())
            })?,
            Change::Replace(services) => next = Self::new(services)?,
        }
        Ok(next)
    }

    /// Adds a service.
    ///
    /// # Errors
    /// What is wrong with it; `self` stays what it was then.
    pub fn insert(&mut self, service: Service) -> Result<(), ModelError> {
        let id = service.id;
        if self.services.contains_key(&id) {
            return Err(ModelError::DuplicateService { id });
        }
        service.check()?;
        self.check_ways_back(&service)?;
        for way in ways_back(&service) {
            self.nat.insert(way, id);
        }
        self.services.insert(id, service);
        Ok(())
    }

    fn take(&mut self, id: ServiceId) -> Result<Service, ModelError> {
        let service = self.services.remove(&id);
        let service = service.ok_or(ModelError::UnknownService { id })?;
        for way in ways_back(&service) {
            self.nat.remove(&way);
        }
        Ok(service)
    }

    fn edit(
        &mut self,
        id: ServiceId,
        edit: impl FnOnce(&mut Service) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let mut service = self.take(id)?;
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

    fn check_ways_back(&self, service: &Service) -> Result<(), ModelError> {
        for way in ways_back(service) {
            if let Some(other) = self.nat.get(&way) {
                let (id, other, address) = (service.id, *other, way.1);
                return Err(ModelError::SharedNatBackend { id, other, address });
            }
        }
        Ok(())
    }
}

/// Where the answers to a `nat` service come from.
fn ways_back(service: &Service) -> impl Iterator<Item = (Protocol, SocketAddr)> {
    let backends = match service.mode {
        Mode::Nat => service.backends.as_slice(),
        Mode::Ipip | Mode::Gue | Mode::L2 => &[],
    };
    backends.iter().map(|b| (service.id.protocol, b.address))
}

impl Settings {
    fn apply(self, service: &mut Service) {
        let Self {
            ring_size,
            scheduler,
            flow_state,
            on_down,
            moving_time,
            dead_after,
        } = self;
        service.ring_size = ring_size.or(service.ring_size);
        service.scheduler = scheduler.unwrap_or(service.scheduler);
        service.flow_state = flow_state.unwrap_or(service.flow_state);
        service.on_down = on_down.or(service.on_down);
        service.moving_time = moving_time.or(service.moving_time);
        service.dead_after = dead_after.unwrap_or(service.dead_after);
    }
}

impl Service {
    /// What becomes of a backend's flows when its checks fail: without connections, nothing is
    /// lost by moving them.
    pub fn on_down(&self) -> OnDown {
        self.on_down.unwrap_or(match (self.id.protocol, self.quic) {
            (Protocol::Tcp, _) | (_, Some(_)) => OnDown::Keep,
            (Protocol::Udp, None) => OnDown::Resteer,
        })
    }

    /// How long a slot moves after its owner changed, and how long a flow may be idle: as long as
    /// connections of the protocol commonly are.
    pub fn moving_time(&self) -> Duration {
        self.moving_time.unwrap_or(match self.id.protocol {
            Protocol::Tcp => Duration::from_secs(15 * 60),
            Protocol::Udp => Duration::from_secs(30),
        })
    }

    /// The backend at `address`.
    pub fn backend(&self, address: SocketAddr) -> Option<&Backend> {
        self.backends.iter().find(|b| b.address == address)
    }
}
