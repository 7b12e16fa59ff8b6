//! What the agent knows at one moment, for the API, the command line and metrics to show.
//! Plain data; made by the agent alone.

use std::{net::SocketAddr, time::Duration};

use crate::model::{Backend, Service};

/// Cumulative traffic counters, summed over CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets forwarded to the backend or service.
    pub packets: u64,
    /// Their bytes as they arrived, Ethernet header included.
    pub bytes: u64,
    /// TCP SYNs among them: new connections (retransmitted SYNs count again).
    pub flows: u64,
}

/// What the checks say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Not probed yet; treated as up.
    Starting,
    /// Passing its checks, or not checked.
    Up,
    /// Failing its checks.
    Down,
}

impl Condition {
    /// Lower-case name, as the API and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// A backend as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendStatus {
    /// What is wanted of it.
    pub backend: Backend,
    /// What the checks say.
    pub condition: Condition,
    /// Why the last probe failed, where it did.
    pub last_error: Option<String>,
    /// How long the last successful probe took.
    pub latency: Option<Duration>,
    /// Whether the agent knows how to reach it (route and neighbour resolved).
    pub reachable: bool,
    /// Slots of the ring that it owns.
    pub slots: u32,
    /// Its traffic.
    pub traffic: Traffic,
}

/// A service as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceStatus {
    /// What is wanted, backends included.
    pub service: Service,
    /// Slots of its ring now.
    pub ring_size: u32,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its backends, in the order of `service.backends`.
    pub backends: Vec<BackendStatus>,
}

impl ServiceStatus {
    /// The backend at `address`.
    pub fn backend(&self, address: SocketAddr) -> Option<&BackendStatus> {
        self.backends.iter().find(|b| b.backend.address == address)
    }
}

/// An interface the XDP program is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: &'static str,
}

/// The agent at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Name of this instance (`--name`).
    pub instance: String,
    /// Generation of the tables in force; rises by one with each change of rings.
    pub generation: u64,
    /// Where the program is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// All services.
    pub services: Vec<ServiceStatus>,
    /// Packets dropped, by the reason's name; every reason is listed.
    pub drops: Vec<(&'static str, u64)>,
}
