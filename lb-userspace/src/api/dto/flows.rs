//! Recorded flows, and what the flow tables do for services.

use std::net::SocketAddr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize};

use super::millis;
use crate::{
    model::ServiceId,
    snapshot::{self, FlowFilter},
};

/// Flows listed where a query names no limit.
pub const DEFAULT_FLOWS: usize = 100;
/// Flows listed at most.
pub const MAX_FLOWS: usize = 100_000;

/// Phase of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its owner takes every packet
    Steady,
    /// Its owner changed within the moving time
    Moving,
    /// It waits for its last recorded flows
    Settling,
}

impl Phase {
    /// As the snapshot and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Moving => "moving",
            Self::Settling => "settling",
        }
    }
}

/// Which recorded flows are asked for; all where nothing is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Of this service.
    #[serde(default)]
    pub service: Option<ServiceId>,
    /// Of this backend.
    #[serde(default, deserialize_with = "backend")]
    pub backend: Option<SocketAddr>,
    /// In a slot of this phase.
    #[serde(default)]
    pub phase: Option<Phase>,
    /// At most so many, up to [`MAX_FLOWS`]; [`DEFAULT_FLOWS`] where absent.
    #[serde(default)]
    pub limit: Option<usize>,
}

pub(super) fn backend<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    super::requests::address(deserializer).map(Some)
}

impl FlowQuery {
    /// What the agent is asked.
    ///
    /// # Errors
    /// The limit is too large.
    pub fn into_filter(self) -> Result<FlowFilter, String> {
        Ok(FlowFilter {
            service: self.service,
            backend: self.backend,
            phase: self.phase.map(Phase::name),
            limit: limit(self.limit)?,
        })
    }
}

/// How many to list.
pub(super) fn limit(asked: Option<usize>) -> Result<usize, String> {
    match asked.unwrap_or(DEFAULT_FLOWS) {
        limit if limit <= MAX_FLOWS => Ok(limit),
        limit => Err(format!("limit: {limit} is too large: 0 to {MAX_FLOWS}")),
    }
}

/// Recorded flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// How many match, those beyond the limit included.
    pub total: usize,
    /// The first of them, in no order.
    pub flows: Vec<Flow>,
}

/// A recorded flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Its service.
    pub service: ServiceId,
    /// The client.
    pub client: SocketAddr,
    /// The backend that it stays with; `null` once that has gone.
    pub backend: Option<SocketAddr>,
    /// Whether only its opening was seen.
    pub half_open: bool,
    /// Whether the client has ended it.
    pub closing: bool,
    /// [`Phase`] of its slot.
    pub phase: String,
    /// Since its last packet.
    pub idle_ms: u64,
    /// Since it was recorded.
    pub age_ms: u64,
}

/// A service's slots by phase, and what the flow tables do for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceFlows {
    /// Slots whose owner takes every packet.
    pub steady: u32,
    /// Slots whose owner changed within the moving time.
    pub moving: u32,
    /// Slots that wait for their last recorded flows.
    pub settling: u32,
    /// Slots that have entered each phase since the agent started.
    pub passed: Passed,
    /// Records of established flows.
    pub established: u32,
    /// Records of half-open flows.
    pub half_open: u32,
    /// What these records are for.
    #[serde(default)]
    pub uses: RecordUses,
    /// Packets that looked their flow up.
    pub lookups: u64,
    /// Flows recorded so far.
    pub recorded: u64,
    /// Choices that could not be recorded, since the table was full.
    pub overflows: u64,
    /// Packets of established flows that stayed among the half-open ones, likewise.
    #[serde(default)]
    pub promotion_overflows: u64,
    /// Packets of a QUIC service whose connection id named their backend.
    pub named: u64,
    /// Clients that are remembered for persistence.
    #[serde(default)]
    pub clients: u32,
    /// Clients that could not be remembered, since the table was full.
    #[serde(default)]
    pub client_overflows: u64,
    /// Packets dropped since the access list denies their source.
    #[serde(default)]
    pub denied: u64,
    /// Packets that would have begun a flow, of more than their source may begin.
    #[serde(default)]
    pub source_limited: u64,
    /// The same, of more than all may begin.
    #[serde(default)]
    pub service_limited: u64,
    /// Sessions of mode `full-nat`.
    #[serde(default)]
    pub sessions: u32,
    /// Flows that found no free port of the address pool, or no room for their session.
    #[serde(default)]
    pub ports_exhausted: u64,
    /// Packets that were to tell the client's address, and had no room for it.
    #[serde(default)]
    pub untold: u64,
    /// SYNs answered by a cookie.
    #[serde(default)]
    pub cookies_sent: u64,
    /// Packets that acknowledged one.
    #[serde(default)]
    pub cookies_valid: u64,
    /// Packets that might have, and did not.
    #[serde(default)]
    pub cookies_invalid: u64,
}

/// A service's live records by what they are for, each under the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecordUses {
    /// The client has ended the flow.
    pub ended: u32,
    /// The flow's slot moves, or its whole service.
    pub moving: u32,
    /// The flow has another backend than its slot's owner.
    pub away: u32,
    /// The owner has it: every flow is recorded, or the next sweep removes the record.
    pub home: u32,
}

/// Slots that have entered each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Passed {
    /// Have begun to move.
    pub moving: u64,
    /// Have begun to settle.
    pub settling: u64,
    /// Have become steady again.
    pub steady: u64,
}

/// How full the flow tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowTables {
    /// The one of established flows.
    pub established: TableUse,
    /// The one of half-open flows.
    pub half_open: TableUse,
    /// The one of sessions of mode `full-nat`.
    #[serde(default)]
    pub sessions: TableUse,
}

/// An address pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    /// Its name.
    pub name: String,
    /// How many addresses it has.
    pub addresses: usize,
    /// The first port of each.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
    /// Sessions that have one of its ports; of different backends, several can have the same.
    pub sessions: u32,
}

/// How full a flow table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableUse {
    /// Records, those included that have expired since the last sweep.
    pub entries: u32,
    /// Records that it has room for.
    pub capacity: u32,
}

impl From<snapshot::FlowList> for Flows {
    fn from(list: snapshot::FlowList) -> Self {
        Self {
            total: list.total,
            flows: list.flows.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<snapshot::FlowRecord> for Flow {
    fn from(record: snapshot::FlowRecord) -> Self {
        Self {
            service: record.service,
            client: record.client,
            backend: record.backend,
            half_open: record.half_open,
            closing: record.closing,
            phase: record.phase.to_owned(),
            idle_ms: millis(record.idle),
            age_ms: millis(record.age),
        }
    }
}

impl From<snapshot::FlowStatus> for ServiceFlows {
    fn from(status: snapshot::FlowStatus) -> Self {
        let snapshot::FlowStatus {
            steady,
            moving,
            settling,
            passed,
            established,
            half_open,
            uses,
            lookups,
            recorded,
            overflows,
            promotion_overflows,
            named,
            clients,
            client_overflows,
            denied,
            source_limited,
            service_limited,
            sessions,
            ports_exhausted,
            untold,
            cookies_sent,
            cookies_valid,
            cookies_invalid,
        } = status;
        Self {
            steady,
            moving,
            settling,
            passed: Passed {
                moving: passed.moving,
                settling: passed.settling,
                steady: passed.steady,
            },
            established,
            half_open,
            uses: uses.into(),
            lookups,
            recorded,
            overflows,
            promotion_overflows,
            named,
            clients,
            client_overflows,
            denied,
            source_limited,
            service_limited,
            sessions,
            ports_exhausted,
            untold,
            cookies_sent,
            cookies_valid,
            cookies_invalid,
        }
    }
}

impl From<&snapshot::AddressPoolStatus> for AddressPool {
    fn from(pool: &snapshot::AddressPoolStatus) -> Self {
        let (first_port, last_port) = pool.ports;
        Self {
            name: pool.name.clone(),
            addresses: pool.addresses,
            first_port,
            last_port,
            sessions: pool.sessions,
        }
    }
}

impl From<snapshot::RecordUses> for RecordUses {
    fn from(uses: snapshot::RecordUses) -> Self {
        let snapshot::RecordUses {
            ended,
            moving,
            away,
            home,
        } = uses;
        Self {
            ended,
            moving,
            away,
            home,
        }
    }
}

impl From<snapshot::TableUse> for TableUse {
    fn from(table: snapshot::TableUse) -> Self {
        let snapshot::TableUse { entries, capacity } = table;
        Self { entries, capacity }
    }
}
