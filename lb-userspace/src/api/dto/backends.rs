//! What the agent answers of backends.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Standing, Traffic, millis};
use crate::{
    health::reply::{self, Wants},
    model::{Admin, BitRate, ServerId},
    snapshot,
};

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
    /// New flows a second that it is said to carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_flow_rate: Option<u32>,
    /// Bits a second that it is said to be able to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<BitRate>,
    /// What connection ids name it by, where the service is QUIC.
    pub server_id: Option<ServerId>,
    /// Its tier.
    #[serde(default)]
    pub tier: u8,
    /// The subsets that it is of; the default one where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
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
    /// What is held against it for having failed, where something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<Damping>,
    /// What packets show of it, where they are looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<Passive>,
    /// How far its weight has grown, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Growing>,
    /// Its share of its weight, where that follows how it fares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Share>,
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
    /// Whether it takes new flows although it is down, as its pool is in panic.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub used_in_panic: bool,
    /// What it still has, where it takes no new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Flows in progress, where the service counts them.
    pub connections: Option<u32>,
    /// New flows a second of late, where its pool says how many that may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_rate: Option<u64>,
    /// Bits a second that it was sent of late, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BitRate>,
    /// Its traffic.
    pub traffic: Traffic,
}

/// What is held against a backend for having failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damping {
    /// Failures that are not forgotten yet.
    pub failures: u32,
    /// How long it is kept out although its checks pass, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}

/// What packets show of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passive {
    /// Connections that it has accepted, where its answers pass.
    pub accepted: u64,
    /// Connections that it has refused, likewise.
    pub refused: u64,
    /// ICMP errors that say that it cannot be reached; where its answers do not pass, of watched handshakes, which are `missed` too.
    pub unreachable: u64,
    /// Watched handshakes whose client went on.
    pub progressed: u64,
    /// Those whose client did not.
    pub missed: u64,
    /// How long handshakes have taken on average, from SYN to the client's next segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u64>,
    /// Times that it was kept out for it that are not forgotten yet.
    pub ejections: u32,
    /// How long it still is at least, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}

/// How far a backend is that gets its weight by and by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growing {
    /// Percent of its weight that it has.
    pub weight_percent: u8,
    /// How long until it has all.
    pub left_ms: u64,
}

/// A backend's share of its weight by how it fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Percent of its weight that it has.
    pub weight_percent: u16,
    /// What it should have by the last look.
    pub wanted_percent: u16,
    /// How often it has turned back and forth of late.
    pub reversals: u32,
    /// How long its probes take on average, where that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// How long its clients' handshakes take on average, where that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u64>,
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
    /// Whether it has said itself that it has none left.
    #[serde(default)]
    pub reported: bool,
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
    /// How long the next heartbeat is waited for, where the backend reports by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_us: Option<u64>,
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

impl From<&snapshot::BackendStatus> for Backend {
    fn from(status: &snapshot::BackendStatus) -> Self {
        Self {
            address: status.backend.address,
            weight: status.backend.weight,
            state: status.backend.admin,
            max_connections: status.backend.max_connections,
            max_flow_rate: status.backend.rated.max_flow_rate,
            max_bandwidth: status.backend.rated.max_bandwidth,
            server_id: status.backend.server_id,
            tier: status.backend.tier,
            subsets: status.backend.subsets.clone(),
            leaving: status.leaving,
            condition: status.condition.into(),
            standing: status.standing.as_ref().map(Into::into),
            last_error: status.last_error.clone(),
            latency_us: status.latency.and_then(micros),
            checks: status.checks.iter().map(Into::into).collect(),
            asked: asks(status.asked).then(|| status.asked.into()),
            damping: (status.damping.failures > 0).then(|| Damping {
                failures: status.damping.failures,
                left_ms: status.damping.left.map(millis),
            }),
            passive: status.passive.map(Into::into),
            slow_start: status.slow_start.map(|slow| Growing {
                weight_percent: slow.percent,
                left_ms: millis(slow.left),
            }),
            adaptive: status.adaptive.map(|share| Share {
                weight_percent: share.percent,
                wanted_percent: share.wanted,
                reversals: share.reversals,
                latency_us: share.latency.and_then(micros),
                handshake_us: share.handshake.and_then(micros),
            }),
            reachable: status.reachable,
            mtu: status.mtu,
            slots: status.slots,
            recorded: status.recorded,
            used_in_panic: status.used_in_panic,
            drain: status.drain.map(Into::into),
            connections: status.connections,
            flow_rate: status.rates.map(|rates| rates.flows),
            bandwidth: status.rates.map(|rates| rates.bandwidth),
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
            patience_us: status.patience.and_then(micros),
            passed: status.passed,
            failed: status.failed,
            undecided: status.undecided,
        }
    }
}

impl From<snapshot::PassiveStatus> for Passive {
    fn from(status: snapshot::PassiveStatus) -> Self {
        let snapshot::PassiveStatus {
            accepted,
            refused,
            unreachable,
            progressed,
            missed,
            handshake,
            ejections,
            left,
        } = status;
        Self {
            accepted,
            refused,
            unreachable,
            progressed,
            missed,
            handshake_us: handshake.and_then(micros),
            ejections,
            left_ms: left.map(millis),
        }
    }
}

/// Whether an agent asks for anything, beside what it says of whether its backend can serve.
fn asks(asked: reply::Asked) -> bool {
    let says_down = asked.says_down;
    asked
        != reply::Asked {
            says_down,
            ..reply::Asked::default()
        }
}

impl From<reply::Asked> for Asked {
    fn from(asked: reply::Asked) -> Self {
        let reply::Asked {
            weight,
            wants,
            max_connections,
            // Told as its condition.
            says_down: _,
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

impl From<snapshot::DrainStatus> for Drain {
    fn from(status: snapshot::DrainStatus) -> Self {
        let snapshot::DrainStatus {
            observed,
            unknown_slots,
            by_id,
            reported,
            ended,
        } = status;
        Self {
            observed,
            unknown_slots,
            by_id,
            reported,
            ended,
        }
    }
}
