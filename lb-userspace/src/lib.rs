//! The agent's library: `lbd` and `lbctl` are thin shells around it.
//!
//! Control goes one way: `config | api | health → model → plan → dataplane → maps`; counters come
//! back through snapshots. Deciding (`model`, `health::machine`, `plan`) is pure; doing (`api`,
//! `health::probe`, `neighbours`, `dataplane::bpf`) is apart from it.

pub mod agent;
pub mod announce;
pub mod api;
pub mod bonds;
pub mod capacity;
pub mod config;
pub mod dataplane;
pub mod duration;
pub mod fragments;
pub mod health;
mod http;
pub mod instance;
pub mod metrics;
pub mod model;
pub mod neighbours;
pub mod offloads;
pub mod plan;
#[cfg(test)]
mod skip;
pub mod smooth;
pub mod snapshot;
pub mod store;
