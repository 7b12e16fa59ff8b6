//! What the agent answers.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Capacity, EditService, FlowTables, ServiceFlows, Standing, Worst, millis, requests::given,
};
use crate::{
    capacity,
    health::reply::{self, Wants},
    model::{
        Admin, Check, Combine, Failback, FlowLimit, FlowState, Mode, MssClamp, OnDown, Quic,
        SOURCE_PREFIX_V4, SOURCE_PREFIX_V6, Scheduler, ServerId, ServiceId, Unserved,
    },
    snapshot,
};

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
    /// How many backends of all pools are in which condition.
    pub backends: Tally,
    /// The pools that are worst off.
    #[serde(default)]
    pub worst: Worst,
    /// How full the flow tables are.
    pub flow_tables: FlowTables,
    /// Packets to VIPs that were not forwarded, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Answers in VIPs' names, by kind: `echo`, `reset`, `unreachable`; and how often there was none,
    /// where it would have been wrong (`withheld`) or one too many (`limited`).
    pub answers: BTreeMap<String, u64>,
    /// Fragments: those that were the first of their datagram, those that followed it (`later`), those that came
    /// before it (`held`), and of these those that followed in the end (`released`).
    #[serde(default)]
    pub fragments: BTreeMap<String, u64>,
    /// What packets get to ports of VIPs that no service has.
    pub unknown_port: Unserved,
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
    /// The group that it shares pool and settings with.
    #[serde(default)]
    pub group: Option<String>,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Slots of the ring in force.
    pub ring_size: u32,
    /// How a new flow's backend is chosen.
    pub scheduler: Scheduler,
    /// Which flows are recorded.
    pub flow_state: FlowState,
    /// What becomes of a backend's flows when its checks fail.
    pub on_down: OnDown,
    /// How long a slot moves, and how long a flow may be idle; 0: flows are never recorded.
    pub moving_time_ms: u64,
    /// How long a backend is down before it counts as dead.
    pub dead_after_ms: u64,
    /// What its packets get while no backend may take them.
    pub no_backend: Unserved,
    /// What the MSS of its SYNs is lowered to: bytes, `auto` or `off`.
    #[serde(default)]
    pub mss_clamp: MssClamp,
    /// The access list that says who may send to it; `null`: everybody may.
    #[serde(default)]
    pub access_list: Option<String>,
    /// How many flows may begin: a number a second, `RATE,burst=N` or `none`.
    #[serde(default)]
    pub flow_limit: FlowLimit,
    /// How many of each source.
    #[serde(default)]
    pub source_limit: FlowLimit,
    /// First bits of an IPv4 address that make a source.
    #[serde(default)]
    pub source_prefix_v4: u8,
    /// First bits of an IPv6 address that make a source.
    #[serde(default)]
    pub source_prefix_v6: u8,
    /// How its connection ids are laid out; `null` where it is not QUIC.
    pub quic: Option<Quic>,
    /// How long a client's new flows go where its last new flow went; 0: not at all.
    #[serde(default)]
    pub persistence_ms: u64,
    /// Bits of an address that make a client; `null`: all.
    #[serde(default)]
    pub persistence_prefix: Option<u8>,
    /// Percent of a tier's weight that is healthy below which it gives flows to the next.
    #[serde(default)]
    pub spill_below: u8,
    /// When a tier gets back what it could not carry.
    #[serde(default)]
    pub failback: Failback,
    /// The tier that somebody has failed over to; 0: none.
    #[serde(default)]
    pub from_tier: u8,
    /// Its tiers in order, where there is more than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    /// How backends are checked, where there is one check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Check>,
    /// How backends are checked, where there are several checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Check>>,
    /// How those make one verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combine>,
    /// Its slots by phase, and what the flow tables do for it.
    pub flows: ServiceFlows,
    /// How loaded its pool is, where its flows are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its backends, and those removed that still have flows.
    pub backends: Vec<Backend>,
}

/// A tier of a service's backends as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Its number; 0 is the primary one.
    pub number: u8,
    /// Its backends.
    pub backends: usize,
    /// Those that can take new flows.
    pub healthy: usize,
    /// Its share of new flows, in thousandths.
    pub share: u16,
    /// Whether it could carry more than that, and waits for its failback.
    pub waits: bool,
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
    /// Flows in progress at which it takes no new ones.
    pub max_connections: Option<u32>,
    /// What connection ids name it by, where the service is QUIC.
    pub server_id: Option<ServerId>,
    /// Its tier.
    #[serde(default)]
    pub tier: u8,
    /// Whether it was removed, and is here only for the flows that it may still have.
    pub leaving: bool,
    /// What the checks say.
    pub condition: Condition,
    /// Its state, all considered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
    /// Why the last check failed, where it did.
    pub last_error: Option<String>,
    /// How long the last successful check took.
    pub latency_us: Option<u64>,
    /// What each check says; empty before the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckStatus>,
    /// What the backend's agent asks for, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    /// Whether route and neighbour are known.
    pub reachable: bool,
    /// The longest IP packet that can be sent to it, in bytes and as it arrives; `null` while the way is
    /// not known.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Slots of the ring that it owns.
    pub slots: u32,
    /// Flows recorded for it.
    pub recorded: u32,
    /// What it still has, where it takes no new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Flows in progress, where the service counts them.
    pub connections: Option<u32>,
    /// Its traffic.
    pub traffic: Traffic,
}

/// What a backend that takes no new flows still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Flows recorded for it at the last sweep.
    pub observed: u32,
    /// Slots that still lead to it: flows in them that have not spoken since are unknown.
    pub unknown_slots: u32,
    /// Whether connection ids may still lead packets to it.
    pub by_id: bool,
    /// Whether it has no flow any more, for certain.
    pub ended: bool,
}

/// What one check says of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// What the check is called.
    pub name: String,
    /// Whether the backend passes it.
    pub condition: Condition,
    /// Why the last probe failed, where it did.
    pub last_error: Option<String>,
    /// How long the last probe took, where it succeeded.
    pub latency_us: Option<u64>,
    /// Probes that succeeded, since the check began.
    pub passed: u64,
    /// Probes that failed.
    pub failed: u64,
    /// Probes that say nothing about the backend.
    pub undecided: u64,
}

/// What a backend's agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Share of the configured weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<u16>,
    /// Whether it wants new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wants: Option<Wants>,
    /// Flows in progress at which it wants no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
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
    /// Its new limit, where that changed; `null`: none.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_connections: Option<Option<u32>>,
    /// Its new tier, or the one that new flows go to first, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<u8>,
    /// The service's new settings, where those changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<EditService>,
}

/// Answer to a backend that reports by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Its service.
    pub service: ServiceId,
    /// The backend.
    pub backend: SocketAddr,
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
        // The backends of a group once, though all its services show them.
        let leads = snapshot.services.iter().filter(|s| s.lead == s.service.id);
        let pools = leads.flat_map(|s| &s.backends);
        for backend in pools.filter(|b| !b.leaving) {
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
        let named = |(name, count): &(&str, u64)| ((*name).to_owned(), *count);
        Self {
            instance: snapshot.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: snapshot.generation,
            interfaces: snapshot.interfaces.iter().map(interface).collect(),
            services: snapshot.services.len(),
            backends,
            worst: snapshot.into(),
            flow_tables: FlowTables {
                established: snapshot.established.into(),
                half_open: snapshot.half_open.into(),
            },
            drops: drops.map(named).collect(),
            answers: snapshot.answers.iter().map(named).collect(),
            fragments: snapshot.fragments.iter().map(named).collect(),
            unknown_port: snapshot.unknown_port,
        }
    }
}

impl From<&snapshot::ServiceStatus> for Service {
    fn from(status: &snapshot::ServiceStatus) -> Self {
        let service = &status.service;
        let (health, checks, combine) = match &service.health.checks[..] {
            [check] => (Some(check.clone()), None, None),
            checks => (None, Some(checks.to_vec()), Some(service.health.combine)),
        };
        Self {
            id: service.id,
            group: service.group.clone(),
            mode: service.mode,
            ring_size: status.ring_size,
            scheduler: service.scheduler,
            flow_state: service.flow_state,
            on_down: service.on_down(),
            moving_time_ms: millis(service.moving_time()),
            dead_after_ms: millis(service.dead_after),
            no_backend: service.no_backend,
            mss_clamp: service.mss_clamp,
            access_list: service.access_list.clone(),
            flow_limit: service.flow_limit,
            source_limit: service.source_limit,
            source_prefix_v4: service.source_prefix_v4.unwrap_or(SOURCE_PREFIX_V4),
            source_prefix_v6: service.source_prefix_v6.unwrap_or(SOURCE_PREFIX_V6),
            quic: service.quic,
            persistence_ms: millis(service.persistence),
            persistence_prefix: service.persistence_prefix,
            spill_below: service.spill_below,
            failback: service.failback,
            from_tier: service.from_tier,
            tiers: status.tiers.iter().copied().map(Into::into).collect(),
            health,
            checks,
            combine,
            flows: status.flows.into(),
            capacity: capacity::of(status).map(Into::into),
            traffic: status.traffic.into(),
            backends: status.backends.iter().map(Into::into).collect(),
        }
    }
}

impl From<&snapshot::BackendStatus> for Backend {
    fn from(status: &snapshot::BackendStatus) -> Self {
        Self {
            address: status.backend.address,
            weight: status.backend.weight,
            state: status.backend.admin,
            max_connections: status.backend.max_connections,
            server_id: status.backend.server_id,
            tier: status.backend.tier,
            leaving: status.leaving,
            condition: status.condition.into(),
            standing: status.standing.as_ref().map(Into::into),
            last_error: status.last_error.clone(),
            latency_us: status.latency.and_then(micros),
            checks: status.checks.iter().map(Into::into).collect(),
            asked: (status.asked != reply::Asked::default()).then(|| status.asked.into()),
            reachable: status.reachable,
            mtu: status.mtu,
            slots: status.slots,
            recorded: status.recorded,
            drain: status.drain.map(Into::into),
            connections: status.connections,
            traffic: status.traffic.into(),
        }
    }
}

fn micros(time: Duration) -> Option<u64> {
    u64::try_from(time.as_micros()).ok()
}

impl From<&snapshot::CheckStatus> for CheckStatus {
    fn from(status: &snapshot::CheckStatus) -> Self {
        Self {
            name: status.name.clone(),
            condition: status.condition.into(),
            last_error: status.last_error.clone(),
            latency_us: status.latency.and_then(micros),
            passed: status.passed,
            failed: status.failed,
            undecided: status.undecided,
        }
    }
}

impl From<reply::Asked> for Asked {
    fn from(asked: reply::Asked) -> Self {
        let reply::Asked {
            weight,
            wants,
            max_connections,
        } = asked;
        Self {
            weight_percent: weight,
            wants,
            max_connections,
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

impl From<snapshot::TierStatus> for Tier {
    fn from(status: snapshot::TierStatus) -> Self {
        let snapshot::TierStatus {
            number,
            backends,
            healthy,
            share,
            waits,
        } = status;
        Self {
            number,
            backends,
            healthy,
            share,
            waits,
        }
    }
}

impl From<snapshot::DrainStatus> for Drain {
    fn from(status: snapshot::DrainStatus) -> Self {
        let snapshot::DrainStatus {
            observed,
            unknown_slots,
            by_id,
            ended,
        } = status;
        Self {
            observed,
            unknown_slots,
            by_id,
            ended,
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
