//! The maps as the agent writes them: a list of [`Operation`]s, and who carries them out.
//!
//! `bpf` does so on the kernel's maps, `memory` on a double for tests. What to write is decided in
//! [`crate::plan`]; nothing is decided here.

pub mod bpf;
pub mod memory;

use lb_common::{
    memory::MemoryTables,
    tables::{Address, Backend, Counters, Descriptor, Endpoint, Member, Slot, WayBack},
};

/// One write. A list is carried out in order; what comes before a [`Operation::Switch`] is aside,
/// so that a failure there changes nothing a packet sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Slots from an even index on.
    Slots {
        /// Index of the first.
        start: u32,
        /// Their owners.
        slots: Vec<Slot>,
    },
    /// A member, in one store.
    Member(u32, Member),
    /// A backend that no member names yet.
    Backend(u32, Backend),
    /// The state word of a backend, in one store.
    State(u32, u32),
    /// A service's descriptor in one half (0 or 1).
    Descriptor(u32, usize, Descriptor),
    /// A place of a bucket of the look-up table, in one store: a service's index + 1, or 0.
    Lookup {
        /// Which bucket.
        bucket: u32,
        /// Which of its places.
        place: usize,
        /// What it leads to.
        value: u32,
    },
    /// What answers from an endpoint become.
    WayBack(Endpoint, WayBack),
    /// Answers from an endpoint are left alone.
    ForgetWayBack(Endpoint),
    /// Bits of [`lb_common::tables::owned`] of an address.
    Own(Address, u32),
    /// An address becomes nobody's.
    Disown(Address),
    /// Bits of [`lb_common::tables::feature`].
    Features(u32),
    /// Sets a service's counters to zero.
    ZeroService(u32),
    /// Sets a backend's counters to zero.
    ZeroBackend(u32),
    /// The one store: puts the half that this generation names in force.
    Switch(u64),
    /// Waits until no packet in flight can have seen what was in force before.
    Grace,
}

/// Elements of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Services.
    pub services: u32,
    /// Backend entries, over all services.
    pub backends: u32,
    /// Members, over all pools.
    pub members: u32,
    /// Slots of all rings, those being written aside included.
    pub slots: u32,
    /// Records of established flows.
    pub flows: u32,
    /// Records of flows of which one packet was seen.
    pub half_open: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            services: 4_096,
            backends: 65_536,
            members: 262_144,
            slots: 16_777_216,
            flows: 262_144,
            half_open: 65_536,
        }
    }
}

/// The kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {cause}")]
pub struct DataplaneError {
    /// What was being done.
    pub doing: String,
    /// What came back.
    pub cause: String,
}

impl DataplaneError {
    /// An error while `doing` something.
    pub fn new(doing: impl Into<String>, cause: &dyn std::fmt::Display) -> Self {
        Self {
            doing: doing.into(),
            cause: cause.to_string(),
        }
    }
}

/// Who carries out operations.
pub trait Dataplane: Send {
    /// Elements of its maps.
    fn capacity(&self) -> Capacity;

    /// Carries out `operations` in order.
    ///
    /// # Errors
    /// The first that failed; those before it are done.
    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError>;

    /// What the maps hold; rings are left out.
    ///
    /// # Errors
    /// A map cannot be read.
    fn read(&self) -> Result<MemoryTables, DataplaneError>;

    /// Counters of a service, summed over CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    fn service_counters(&self, index: u32) -> Result<Counters, DataplaneError>;

    /// Counters of a backend, summed over CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError>;

    /// Dropped packets, by the number of the reason.
    ///
    /// # Errors
    /// The map cannot be read.
    fn drops(&self) -> Result<Vec<u64>, DataplaneError>;
}
