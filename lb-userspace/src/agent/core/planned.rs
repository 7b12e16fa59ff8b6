//! What the last plan was made of. Where only who is up has changed since, the next one looks at the pools of which that is
//! so, however many others there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::forced::Key;
use crate::{
    model::{ServiceId, State, Unserved},
    neighbours::NextHop,
    plan::{Devices, Liveness},
};

/// What plans are made of beside who is up, what a sweep has found and the time.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) state: Arc<State>,
    pub(super) next_hops: Arc<BTreeMap<IpAddr, NextHop>>,
    pub(super) own_addresses: Arc<BTreeSet<IpAddr>>,
    pub(super) no_ways: BTreeSet<IpAddr>,
    pub(super) links: BTreeMap<u32, [u8; 6]>,
    pub(super) devices: Devices,
    pub(super) vlans: bool,
    pub(super) unknown_port: Unserved,
    pub(super) sampling: BTreeMap<ServiceId, u8>,
}

impl Given {
    /// Whether it is the same; what is large, only if nobody has touched it.
    fn is(&self, other: &Self) -> bool {
        let Self {
            state,
            next_hops,
            own_addresses,
            no_ways,
            links,
            devices,
            vlans,
            unknown_port,
            sampling,
        } = self;
        Arc::ptr_eq(state, &other.state)
            && Arc::ptr_eq(next_hops, &other.next_hops)
            && Arc::ptr_eq(own_addresses, &other.own_addresses)
            && *no_ways == other.no_ways
            && *links == other.links
            && *devices == other.devices
            && *vlans == other.vlans
            && *unknown_port == other.unknown_port
            && *sampling == other.sampling
    }
}

/// See above.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// Nothing until a plan has come to its end: nobody knows what the maps hold.
    last: Option<(Given, BTreeSet<(Key, Liveness)>)>,
    /// Pools of which backends have been marked since the last plan began, by their first services.
    marked: BTreeSet<ServiceId>,
}

impl Planned {
    /// Backends of a pool are marked.
    pub(super) fn mark(&mut self, lead: ServiceId) {
        self.marked.insert(lead);
    }

    /// The pools that a plan has to look at since this one, where not all.
    pub(super) fn changed(
        self,
        given: &Given,
        down: &BTreeMap<Key, Liveness>,
    ) -> Option<BTreeSet<ServiceId>> {
        let Self { last, mut marked } = self;
        let ((last, were), are) = (last?, all(down));
        let turned = were.symmetric_difference(&are);
        marked.extend(turned.map(|((lead, _), _)| *lead));
        last.is(given).then_some(marked)
    }

    /// A plan has come to its end, with nothing put off.
    pub(super) fn end(&mut self, given: Given, down: &BTreeMap<Key, Liveness>) {
        self.last = Some((given, all(down)));
    }
}

fn all(down: &BTreeMap<Key, Liveness>) -> BTreeSet<(Key, Liveness)> {
    down.iter().map(|(&key, &left)| (key, left)).collect()
}
