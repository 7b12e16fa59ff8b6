//! What goes over the wire, and its conversions to and from the model and the snapshot.
//!
//! Requests refuse unknown fields, so that a misspelt one is not silently ignored; answers accept
//! them, so that an older client understands a newer agent.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    model::{self, Admin, Mode, ModelError, ServiceId},
    snapshot,
};

/// A service to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// `ADDRESS:PORT/PROTOCOL`.
    pub id: ServiceId,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Slots of the ring; chosen by the agent where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    /// How backends are checked; by TCP connection where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Its first backends.
    #[serde(default)]
    pub backends: Vec<NewBackend>,
}

/// A backend to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBackend {
    /// `ADDRESS:PORT`.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Its share relative to the others.
    #[serde(default = "one")]
    pub weight: u16,
    /// Whether it takes new flows.
    #[serde(default)]
    pub state: Admin,
}

fn one() -> u16 {
    1
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    model::Backend::parse_address(&text).map_err(serde::de::Error::custom)
}

/// A change of a backend; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditBackend {
    /// Its share relative to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether it takes new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Admin>,
}

/// What a check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// Nothing: always up.
    None,
    /// A TCP connection.
    Tcp,
    /// An HTTP GET.
    Http,
}

/// How backends are checked. In requests, what is absent has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is asked.
    #[serde(rename = "type")]
    pub check: Check,
    /// Path of an HTTP check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Host header of an HTTP check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port checked instead of the backend's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From one check to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// A check without an answer for this long has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Successes in a row that make a backend up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<u32>,
    /// Failures in a row that make it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<u32>,
}

impl NewService {
    /// The model's service; the model still has to accept it.
    ///
    /// # Errors
    /// A field of the health check that does not fit its type.
    pub fn into_model(self) -> Result<model::Service, ModelError> {
        let health = self.health.map(|health| health.into_model(self.id));
        Ok(model::Service {
            id: self.id,
            mode: self.mode,
            ring_size: self.ring_size,
            scheduler: model::Scheduler::default(),
            flow_state: model::FlowState::default(),
            on_down: None,
            moving_time: None,
            dead_after: model::DEAD_AFTER,
            health: health.transpose()?.unwrap_or_default(),
            backends: self.backends.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<NewBackend> for model::Backend {
    fn from(new: NewBackend) -> Self {
        Self {
            address: new.address,
            weight: new.weight,
            admin: new.state,
            max_connections: None,
        }
    }
}

impl Health {
    fn into_model(self, id: ServiceId) -> Result<model::Health, ModelError> {
        let given = [("health.path", &self.path), ("health.host", &self.host)];
        if self.check != Check::Http
            && let Some((field, _)) = given.into_iter().find(|(_, value)| value.is_some())
        {
            let problem = "is for type \"http\" only".to_owned();
            return Err(ModelError::Invalid { id, field, problem });
        }
        let default = model::Health::default();
        let millis = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
        Ok(model::Health {
            probe: match self.check {
                Check::None => model::Probe::None,
                Check::Tcp => model::Probe::Tcp,
                Check::Http => model::Probe::Http {
                    path: self.path.unwrap_or_else(|| "/".to_owned()),
                    host: self.host,
                },
            },
            port: self.port,
            interval: millis(self.interval_ms, default.interval),
            timeout: millis(self.timeout_ms, default.timeout),
            rise: self.rise.unwrap_or(default.rise),
            fall: self.fall.unwrap_or(default.fall),
        })
    }
}

impl From<&model::Health> for Health {
    fn from(health: &model::Health) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).ok();
        let (check, path, host) = match &health.probe {
            model::Probe::None => (Check::None, None, None),
            model::Probe::Tcp => (Check::Tcp, None, None),
            model::Probe::Http { path, host } => (Check::Http, Some(path.clone()), host.clone()),
        };
        Self {
            check,
            path,
            host,
            port: health.port,
            interval_ms: millis(health.interval),
            timeout_ms: millis(health.timeout),
            rise: Some(health.rise),
            fall: Some(health.fall),
        }
    }
}

/// The agent as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the instance.
    pub instance: String,
    /// Version of the agent.
    pub version: String,
    /// Generation of the tables in force.
    pub generation: u64,
    /// Where the program is attached.
    pub interfaces: Vec<Interface>,
    /// How many services there are.
    pub services: usize,
    /// How many backends of all services are in which condition.
    pub backends: Tally,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// An interface the program is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
}

/// Backends by condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// All.
    pub total: usize,
    /// Passing their checks, or not checked.
    pub up: usize,
    /// Failing their checks.
    pub down: usize,
    /// Not checked yet.
    pub starting: usize,
}

/// A service as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `ADDRESS:PORT/PROTOCOL`.
    pub id: ServiceId,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Slots of the ring in force.
    pub ring_size: u32,
    /// How backends are checked.
    pub health: Health,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// A backend as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `ADDRESS:PORT`.
    pub address: SocketAddr,
    /// Its share relative to the others.
    pub weight: u16,
    /// What the operator asked of it.
    pub state: Admin,
    /// What the checks say.
    pub condition: Condition,
    /// Why the last check failed, where it did.
    pub last_error: Option<String>,
    /// How long the last successful check took.
    pub latency_us: Option<u64>,
    /// Whether route and neighbour are known.
    pub reachable: bool,
    /// Slots of the ring that it owns.
    pub slots: u32,
    /// Its traffic.
    pub traffic: Traffic,
}

/// What the checks say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Not checked yet; treated as up.
    Starting,
    /// Passing, or not checked.
    Up,
    /// Failing.
    Down,
}

/// Counters since the tables were created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// New flows.
    pub flows: u64,
}

/// Answer to a change that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What changed.
    pub changed: Subject,
}

/// What a change was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// What happened to it.
    pub action: Action,
    /// The service.
    pub service: ServiceId,
    /// The backend, where one changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// Its new weight, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Its new state, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Admin>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is different.
    Edited,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was wrong and what would be right, in one line.
    pub error: String,
    /// The same for programs; never changes.
    pub code: String,
}

impl From<&snapshot::Snapshot> for Status {
    fn from(snapshot: &snapshot::Snapshot) -> Self {
        let mut backends = Tally::default();
        for backend in snapshot.services.iter().flat_map(|s| &s.backends) {
            backends.total += 1;
            match backend.condition {
                snapshot::Condition::Starting => backends.starting += 1,
                snapshot::Condition::Up => backends.up += 1,
                snapshot::Condition::Down => backends.down += 1,
            }
        }
        let interface = |i: &snapshot::InterfaceStatus| Interface {
            name: i.name.clone(),
            mode: i.mode.to_owned(),
        };
        let drops = snapshot.drops.iter();
        Self {
            instance: snapshot.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: snapshot.generation,
            interfaces: snapshot.interfaces.iter().map(interface).collect(),
            services: snapshot.services.len(),
            backends,
            drops: drops
                .map(|(reason, count)| ((*reason).to_owned(), *count))
                .collect(),
        }
    }
}

impl From<&snapshot::ServiceStatus> for Service {
    fn from(status: &snapshot::ServiceStatus) -> Self {
        Self {
            id: status.service.id,
            mode: status.service.mode,
            ring_size: status.ring_size,
            health: (&status.service.health).into(),
            traffic: status.traffic.into(),
            backends: status.backends.iter().map(Into::into).collect(),
        }
    }
}

impl From<&snapshot::BackendStatus> for Backend {
    fn from(status: &snapshot::BackendStatus) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).ok();
        Self {
            address: status.backend.address,
            weight: status.backend.weight,
            state: status.backend.admin,
            condition: status.condition.into(),
            last_error: status.last_error.clone(),
            latency_us: status.latency.and_then(micros),
            reachable: status.reachable,
            slots: status.slots,
            traffic: status.traffic.into(),
        }
    }
}

impl From<snapshot::Condition> for Condition {
    fn from(condition: snapshot::Condition) -> Self {
        match condition {
            snapshot::Condition::Starting => Self::Starting,
            snapshot::Condition::Up => Self::Up,
            snapshot::Condition::Down => Self::Down,
        }
    }
}

impl From<snapshot::Traffic> for Traffic {
    fn from(traffic: snapshot::Traffic) -> Self {
        let snapshot::Traffic {
            packets,
            bytes,
            flows,
        } = traffic;
        Self {
            packets,
            bytes,
            flows,
        }
    }
}
