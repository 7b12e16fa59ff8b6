//! The maps as the agent writes them: a list of [`Operation`]s, and who carries them out.
//!
//! `bpf` does so on the kernel's maps, `memory` on a double for tests. What to write is decided in
//! [`crate::plan`]; nothing is decided here.

pub mod bpf;
pub mod memory;

use std::sync::Arc;

use lb_common::{
    memory::MemoryTables,
    tables::{
        Address, Backend, Counters, Descriptor, Endpoint, FlowCounters, FlowKey, Guard, Handshake,
        Interface, Member, PoolKey, PortKey, Record, Server, ServerKey, Session, Shape, Signs,
        Table, Tick, Upper, VipKey, VlanKey, WayBack,
    },
};

use crate::{
    model::{MAX_POOL_ADDRESSES, Rules},
    plan::{Addresses, Ports, Ring},
};

/// One write. A list is carried out in order; what comes before a [`Operation::Switch`] is aside or true
/// by itself, so that a failure there breaks nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// The slots of a ring.
    Slots(Arc<Ring>),
    /// When the slots of a ring moved last.
    Moved(Arc<Ring>),
    /// A member, in one store.
    Member(u32, Member),
    /// A backend that no member names yet.
    Backend(u32, Backend),
    /// The state of a backend, in one store.
    State(u32, u8),
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
    /// Connection ids that begin so name a member.
    Server(ServerKey, Server),
    /// They name nobody.
    ForgetServer(ServerKey),
    /// What an access list says of these prefixes, by its number.
    Access(u32, Rules),
    /// Prefixes of an access list, whatever it says of them, go.
    ForgetAccess(u32, Rules),
    /// The addresses of an address pool, by its number.
    PoolAddresses(u16, Addresses),
    /// One of the addresses of an address pool goes, if it is there.
    ForgetPoolAddress(PoolKey),
    /// What guards a pool, by its number, in one half (0 or 1).
    Guard(u32, usize, Guard),
    /// The classes of a prefix of VIPs in both halves, in one store.
    VipPrefix(VipKey, [u32; 2]),
    /// A prefix of VIPs leads nowhere.
    ForgetVipPrefix(VipKey),
    /// The ports of a class, by its number.
    Class(u32, Ports),
    /// Ports of a class, all that it has, go.
    ForgetClass(u32, Ports),
    /// What its descriptor does not say of a service.
    Shape(u32, Shape),
    /// Bits of [`lb_common::tables::owned`] of an address.
    Own(Address, u32),
    /// An address becomes nobody's.
    Disown(Address),
    /// An interface that VIPs are announced on, by its index.
    Interface(u32, Interface),
    /// They are announced there no longer.
    ForgetInterface(u32),
    /// The VLAN device that frames are of.
    Vlan(VlanKey, u32),
    /// Frames are no VLAN device's.
    ForgetVlan(VlanKey),
    /// What a device stands over, by its index.
    Upper(u32, Upper),
    /// A device stands over nothing.
    ForgetUpper(u32),
    /// Bits of [`lb_common::tables::feature`].
    Features(u32),
    /// What packets to unknown ports of VIPs get: one of [`lb_common::tables::refusal`].
    UnknownPort(u8),
    /// UDP port that backends take packets of mode `gue` at.
    GuePort(u16),
    /// Sets a service's counters to zero.
    ZeroService(u32),
    /// Sets a backend's counters to zero.
    ZeroBackend(u32),
    /// Adds to the flows in progress of a backend, by the index of its counters, whatever the program
    /// adds at the same time.
    AddLoad(u32, i64),
    /// Goes on only where so many choices of a service could not be recorded so far, and no more: what
    /// follows gives flows up that are not recorded. Else [`DataplaneError::Overtaken`].
    Overflows(u32, u64),
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
    /// Datagrams in fragments.
    pub fragments: u32,
    /// Prefixes of all access lists.
    pub access_prefixes: u32,
    /// Sources whose flows are limited.
    pub sources: u32,
    /// Sessions of mode `full-nat`.
    pub sessions: u32,
}

impl Capacity {
    /// Addresses of the host that are told from VIPs at most.
    pub const OWN_ADDRESSES: u32 = 4_096;
    /// Interfaces that VIPs are announced on, at most.
    pub const INTERFACES: u32 = 1_024;
    /// VLAN devices and bonds, and their members: while those are replaced, there are both.
    pub const UPPERS: u32 = 16_384;
    /// Addresses of pools: while those are replaced, they have both.
    pub const POOL_ADDRESSES: u32 = 2 * MAX_POOL_ADDRESSES as u32;

    /// Endpoints whose answers are rewritten.
    pub fn ways_back(&self) -> u32 {
        self.backends
    }

    /// Prefixes of VIPs, by protocol and without: while services are replaced, there are both.
    pub fn vip_prefixes(&self) -> u32 {
        self.services.saturating_mul(4)
    }

    /// Prefixes of ports of those, likewise: one range takes thirty at most.
    pub fn class_ports(&self) -> u32 {
        self.services.saturating_mul(64)
    }

    /// Server ids: while servers get other ones, they have both.
    pub fn servers(&self) -> u32 {
        self.backends.saturating_mul(2)
    }

    /// VIPs, and addresses of pools and of the host.
    pub fn owned(&self) -> u32 {
        self.services
            .saturating_add(Self::OWN_ADDRESSES + Self::POOL_ADDRESSES)
    }
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
            fragments: 16_384,
            access_prefixes: 2_097_152,
            sources: 65_536,
            sessions: 262_144,
        }
    }
}

/// Why not all operations were carried out.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel refused.
    #[error("{doing}: {cause}")]
    Refused {
        /// What was being done.
        doing: String,
        /// What came back.
        cause: String,
    },
    /// [`Operation::Overflows`] found more.
    #[error("service {0}: more flows could not be recorded while a change was made")]
    Overtaken(u32),
}

impl DataplaneError {
    /// The kernel's error while `doing` something.
    pub fn new(doing: impl Into<String>, cause: &dyn std::fmt::Display) -> Self {
        Self::Refused {
            doing: doing.into(),
            cause: cause.to_string(),
        }
    }
}

/// The flow tables. What is to be removed is decided in [`crate::plan::census`].
pub trait FlowTables {
    /// Shows every record that is there from beginning to end; one that comes or goes meanwhile may
    /// be shown or not.
    ///
    /// # Errors
    /// The table cannot be read.
    fn scan(
        &mut self,
        table: Table,
        show: &mut dyn FnMut(&FlowKey, &Record),
    ) -> Result<(), DataplaneError>;

    /// Removes a record that is still as it was; false where it is not, or is gone.
    ///
    /// # Errors
    /// The table cannot be written.
    fn remove(
        &mut self,
        table: Table,
        key: &FlowKey,
        record: &Record,
    ) -> Result<bool, DataplaneError>;

    /// Shows every session, as [`FlowTables::scan`] shows records.
    ///
    /// # Errors
    /// The table cannot be read.
    fn scan_sessions(
        &mut self,
        show: &mut dyn FnMut(&FlowKey, &Session),
    ) -> Result<(), DataplaneError>;

    /// Shows whose every port is, likewise.
    ///
    /// # Errors
    /// The table cannot be read.
    fn scan_ports(
        &mut self,
        show: &mut dyn FnMut(&PortKey, &FlowKey),
    ) -> Result<(), DataplaneError>;

    /// The session of a flow.
    ///
    /// # Errors
    /// The table cannot be read.
    fn session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError>;

    /// Removes it, and says what it was.
    ///
    /// # Errors
    /// The table cannot be written.
    fn take_session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError>;

    /// Inserts one unless there is one, or no room; whether it did.
    ///
    /// # Errors
    /// The table cannot be written.
    fn insert_session(&mut self, key: &FlowKey, session: &Session) -> Result<bool, DataplaneError>;

    /// Whose a port is, or its lock.
    ///
    /// # Errors
    /// The table cannot be read.
    fn port(&mut self, key: &PortKey) -> Result<Option<FlowKey>, DataplaneError>;

    /// Frees it.
    ///
    /// # Errors
    /// The table cannot be written.
    fn free_port(&mut self, key: &PortKey) -> Result<(), DataplaneError>;

    /// Gives it to a flow unless it is somebody's, or there is no room; whether it did.
    ///
    /// # Errors
    /// The table cannot be written.
    fn claim_port(&mut self, key: &PortKey, flow: &FlowKey) -> Result<bool, DataplaneError>;

    /// Waits until no packet is under way that was when this was called.
    ///
    /// # Errors
    /// The kernel cannot say.
    fn wait_for_packets(&mut self) -> Result<(), DataplaneError>;

    /// Flows in progress of a backend, by the index of its counters; below zero where that is wrong.
    ///
    /// # Errors
    /// The map cannot be read.
    fn load(&self, counters: u32) -> Result<i64, DataplaneError>;
}

/// Who loads the programs.
pub trait Programs: std::fmt::Debug + Send + Sync {
    /// Puts programs in force that are loaded for these features, bits of [`lb_common::tables::feature`], and for those
    /// that the ones in force are loaded for. No packet is without one, and nothing that they keep is lost. It takes as
    /// long as the kernel takes to verify them.
    ///
    /// # Errors
    /// The kernel refuses; those in force stay, on some interfaces at least.
    fn load(&self, features: u32) -> Result<(), DataplaneError>;
}

/// Returns once no packet in flight can have seen what was in force when it was called.
pub type Wait = Box<dyn Fn() -> Result<(), DataplaneError> + Send + Sync>;

/// Who carries out operations.
pub trait Dataplane: Send {
    /// Elements of its maps.
    fn capacity(&self) -> Capacity;

    /// What the programs are loaded for: bits of [`lb_common::tables::feature`].
    fn features(&self) -> u32;

    /// Carries out `operations` in order.
    ///
    /// # Errors
    /// The first that failed; those before it are done.
    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError>;

    /// What waits as [`Operation::Grace`] does, on whichever thread.
    fn grace(&self) -> Wait;

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

    /// A ring of so many slots, as it is in the arena from `start` on.
    ///
    /// # Errors
    /// It is not within the arena.
    fn ring(&self, start: u32, size: u32) -> Result<Ring, DataplaneError>;

    /// The time, by the clock that the program stamps records with.
    fn now(&self) -> Tick;

    /// What flow tables did for a service, summed over CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    fn flow_counters(&self, index: u32) -> Result<FlowCounters, DataplaneError>;

    /// [`Operation::Overflows`].
    ///
    /// # Errors
    /// There are more, or the map cannot be read.
    fn expect_overflows(&self, index: u32, count: u64) -> Result<(), DataplaneError> {
        let now = self.flow_counters(index)?.overflows;
        if now == count {
            Ok(())
        } else {
            Err(DataplaneError::Overtaken(index))
        }
    }

    /// Flows in progress of a backend, by the index of its counters.
    ///
    /// # Errors
    /// The map cannot be read.
    fn load(&self, counters: u32) -> Result<u32, DataplaneError>;

    /// What a backend has shown, by the index of its counters.
    ///
    /// # Errors
    /// The map cannot be read.
    fn signs(&self, counters: u32) -> Result<Signs, DataplaneError>;

    /// Says by which interface a backend's answers come in, by the index of its counters; 0: by none.
    ///
    /// # Errors
    /// The map cannot be written.
    fn set_way_in(&mut self, counters: u32, interface: u32) -> Result<(), DataplaneError>;

    /// Goes through the handshakes that are waited for, and ends those that `ends` says so of.
    ///
    /// # Errors
    /// The map cannot be read or written.
    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError>;

    /// The flow tables, to be swept or listed beside whatever else is done.
    ///
    /// # Errors
    /// The kernel gives no further handles.
    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError>;

    /// Dropped packets, by the number of the reason, and answers from
    /// [`lb_common::verdict::FIRST_ANSWER`] on.
    ///
    /// # Errors
    /// The map cannot be read.
    fn drops(&self) -> Result<Vec<u64>, DataplaneError>;
}
