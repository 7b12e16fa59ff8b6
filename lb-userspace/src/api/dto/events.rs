//! What has happened lately, and what state backends are in.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::millis;
use crate::{
    model::ServiceId,
    snapshot::{self, BackendState, EventFilter, EventRecord, Happened},
};

/// Events told where no limit is given.
pub const DEFAULT_EVENTS: usize = 100;

/// A backend's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Which.
    pub state: BackendState,
    /// Why.
    pub reason: String,
    /// Since when, in milliseconds of Unix time.
    pub since_ms: u64,
}

/// Which events are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Of this service; a group's are of its first one.
    pub service: Option<ServiceId>,
    /// After the one of this number.
    pub after: Option<u64>,
    /// Of which agent that number is, as [`Events::epoch`] said: all events of another one come after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The last so many.
    pub limit: Option<usize>,
}

/// Events, and what is beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Event>,
    /// The number of the last event there was, to ask for those after it.
    pub last: u64,
    /// Of which agent that number is: when it started, in milliseconds of Unix time.
    #[serde(default)]
    pub epoch: u64,
    /// Events after the one asked for that are kept no more; at most so many, where those of one service were asked for.
    pub lost: u64,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counted from 1, since the agent started.
    pub number: u64,
    /// When it was noticed, in milliseconds of Unix time.
    pub at_ms: u64,
    /// What it is about.
    #[serde(default)]
    pub kind: EventKind,
    /// The service, or the first of its group.
    pub service: ServiceId,
    /// The backend that turned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// What it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<BackendState>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<BackendState>,
    /// Why, or which tiers have which share.
    pub reason: String,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A backend turned.
    #[default]
    Backend,
    /// New flows go to tiers in other shares.
    Tiers,
    /// A pool's panic has begun or ended.
    Panic,
    /// A backend is kept out though its checks pass, for having failed too often.
    Damped,
    /// Somebody else claims the VIP.
    Conflict,
}

impl From<EventQuery> for EventFilter {
    fn from(query: EventQuery) -> Self {
        Self {
            service: query.service,
            after: query.after,
            epoch: query.epoch,
            limit: query.limit.unwrap_or(DEFAULT_EVENTS),
        }
    }
}

impl From<snapshot::EventList> for Events {
    fn from(list: snapshot::EventList) -> Self {
        Self {
            events: list.events.into_iter().map(Into::into).collect(),
            last: list.last,
            epoch: list.epoch,
            lost: list.lost,
        }
    }
}

impl From<EventRecord> for Event {
    fn from(event: EventRecord) -> Self {
        let (backend, from, to) = match event.what {
            Happened::Turned { backend, from, to } => (Some(backend), Some(from), Some(to)),
            Happened::Damped { backend } => (Some(backend), None, None),
            Happened::Tiers | Happened::Panic | Happened::Conflict => (None, None, None),
        };
        Self {
            number: event.number,
            at_ms: unix_millis(event.at),
            kind: match event.what {
                Happened::Turned { .. } => EventKind::Backend,
                Happened::Tiers => EventKind::Tiers,
                Happened::Panic => EventKind::Panic,
                Happened::Damped { .. } => EventKind::Damped,
                Happened::Conflict => EventKind::Conflict,
            },
            service: event.service,
            backend,
            from,
            to,
            reason: event.reason,
        }
    }
}

impl From<&snapshot::Standing> for Standing {
    fn from(standing: &snapshot::Standing) -> Self {
        Self {
            state: standing.state,
            reason: standing.reason.clone(),
            since_ms: unix_millis(standing.since),
        }
    }
}

fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}
