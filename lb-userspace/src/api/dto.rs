//! What goes over the wire, and its conversions to and from the model and the snapshot.
//!
//! Requests refuse unknown fields, so that a misspelt one is not silently ignored; answers accept
//! them, so that an older client understands a newer agent.

mod access;
mod announce;
mod answers;
mod backends;
mod capacity;
mod clients;
mod events;
mod flows;
mod requests;
mod subsets;

pub use access::{
    AccessList, AccessListSummary, AccessQuery, Judged, ListChanged, ListSubject, Prefixes,
};
pub use announce::{Announce, Announced, AnnouncedVip};
pub use answers::{
    Action, Changed, Device, Heard, Interface, Panic, Refusal, Service, Status, Subject, Tally,
    Tier, Traffic,
};
pub use backends::{Asked, Backend, CheckStatus, Condition, Damping, Drain, Growing};
pub use capacity::{Capacity, Of, Use, Worst};
pub use clients::{Client, ClientQuery, Clients};
pub use events::{DEFAULT_EVENTS, Event, EventKind, EventQuery, Events, Standing};
pub use flows::{
    AddressPool, DEFAULT_FLOWS, Flow, FlowQuery, FlowTables, Flows, MAX_FLOWS, Passed, Phase,
    ServiceFlows, TableUse,
};
pub use requests::{EditBackend, EditService, FailOver, NewBackend, NewService};
pub use subsets::Subset;

use std::time::Duration;

/// Milliseconds of a time, which validation bounds far below the largest number.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
