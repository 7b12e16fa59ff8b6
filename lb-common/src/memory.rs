//! The maps on the host, for tests, benchmarks and `lbctl explain`. Never used in the kernel.

use std::{cell::RefCell, collections::BTreeMap, vec::Vec};

use crate::{
    tables::{
        Address, Backend, Control, Counters, Endpoint, Member, Route, RouteQuery, ServiceEntry,
        Tables, WayBack,
    },
    verdict::{DROP_COUNTERS, DropReason},
};

/// [`Tables`] in memory. Fill the public fields; counters come back through methods.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables {
    /// The control element.
    pub control: Control,
    /// Index of each service.
    pub services: BTreeMap<Endpoint, u32>,
    /// Services by index.
    pub service_entries: Vec<ServiceEntry>,
    /// The arena, two slots an element.
    pub slots: Vec<u64>,
    /// Members of all pools.
    pub members: Vec<Member>,
    /// Backends; the first stands for nobody.
    pub backends: Vec<Backend>,
    /// What answers become.
    pub ways_back: BTreeMap<Endpoint, WayBack>,
    /// Bits of [`crate::tables::owned`].
    pub owned: BTreeMap<Address, u32>,
    /// Routes by destination.
    pub routes: BTreeMap<Address, Route>,
    counted: RefCell<Counted>,
}

/// What a run over [`MemoryTables`] has counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counted {
    /// Of services, by index.
    pub services: BTreeMap<u32, Counters>,
    /// Of backends, by index of their counters.
    pub backends: BTreeMap<u32, Counters>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<u32, u64>,
}

impl MemoryTables {
    /// Everything counted so far, which starts at zero again.
    pub fn take_counted(&self) -> Counted {
        self.counted.take()
    }
}

fn at<T>(list: &[T], index: u32) -> Option<&T> {
    list.get(usize::try_from(index).ok()?)
}

impl Tables for MemoryTables {
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }

    fn generation(&self) -> u64 {
        self.control.generation
    }

    fn service(&self, key: &Endpoint) -> Option<u32> {
        self.services.get(key).copied()
    }

    fn service_entry(&self, index: u32) -> Option<&ServiceEntry> {
        at(&self.service_entries, index)
    }

    fn slots(&self, index: u32) -> Option<u64> {
        at(&self.slots, index).copied()
    }

    fn member(&self, index: u32) -> Option<&Member> {
        at(&self.members, index)
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        at(&self.backends, index)
    }

    fn way_back(&self, key: &Endpoint) -> Option<&WayBack> {
        self.ways_back.get(key)
    }

    fn owned(&self, address: &Address) -> u32 {
        self.owned.get(address).copied().unwrap_or(0)
    }

    fn route(&self, query: &RouteQuery) -> Option<Route> {
        self.routes.get(&query.destination).copied()
    }

    fn count_service(&self, index: u32, bytes: u64, new_flow: bool) {
        let mut counted = self.counted.borrow_mut();
        counted
            .services
            .entry(index)
            .or_default()
            .add(bytes, new_flow);
    }

    fn count_backend(&self, index: u32, bytes: u64, new_flow: bool) {
        let mut counted = self.counted.borrow_mut();
        counted
            .backends
            .entry(index)
            .or_default()
            .add(bytes, new_flow);
    }

    fn count_drop(&self, reason: DropReason) {
        debug_assert!((reason as u32) < DROP_COUNTERS);
        *self
            .counted
            .borrow_mut()
            .drops
            .entry(reason as u32)
            .or_default() += 1;
    }
}
