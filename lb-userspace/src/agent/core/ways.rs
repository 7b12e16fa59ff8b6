//! Which backends no way leads to: they take no new flows, whatever their checks say, and so count for nobody's share.
//!
//! One that had a way and has lost it keeps the last one in the maps: if that leads nowhere, its checks find out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::Tick;

use super::Core;
use crate::{
    dataplane::Dataplane,
    model::Service,
    plan::{has_passed, next_hop, ticks},
};

/// How long the kernel is given to find a neighbour out: it asks three times, once a second. A tier is not to lose its flows
/// for that, which it may wait long for to get back.
const PATIENCE: Duration = Duration::from_secs(3);

/// An address that has no next hop.
#[derive(Debug, Clone)]
struct NoWay {
    since: Tick,
    /// Why.
    reason: String,
    /// It has been without for long enough.
    counts: bool,
}

/// See above.
#[derive(Debug, Clone, Default)]
pub(super) struct NoWays(BTreeMap<IpAddr, NoWay>);

impl NoWays {
    /// Takes note that an address has no next hop.
    pub(super) fn miss(&mut self, address: IpAddr, reason: String, now: Tick) {
        let new = NoWay {
            since: now,
            reason: String::new(),
            counts: false,
        };
        self.0.entry(address).or_insert(new).reason = reason;
    }

    /// Takes note that an address has one, or matters no more; whether it counted as having none.
    pub(super) fn find(&mut self, address: IpAddr) -> bool {
        self.0.remove(&address).is_some_and(|no| no.counts)
    }

    /// Those that have been without for long enough.
    pub(super) fn counting(&self) -> BTreeSet<IpAddr> {
        let counting = self.0.iter().filter(|(_, no)| no.counts);
        counting.map(|(&address, _)| address).collect()
    }

    /// Sees who has been without for long enough; whether anybody new.
    fn age(&mut self, now: Tick) -> bool {
        let mut turned = false;
        for no in self.0.values_mut().filter(|no| !no.counts) {
            no.counts = has_passed(ticks(PATIENCE), no.since, now);
            turned |= no.counts;
        }
        turned
    }
}

impl<D: Dataplane> Core<D> {
    /// Sees which addresses have been without a next hop for long enough to count; whether the maps must follow.
    pub(super) fn miss_ways(&mut self) -> bool {
        let turned = self.no_ways.age(self.dataplane.now());
        if turned {
            self.chronicle.touch_all();
        }
        turned
    }

    /// Why no way leads to a backend that packets of the service could take, where none does.
    pub(super) fn unusable(&self, service: &Service, address: SocketAddr) -> Option<String> {
        let ip = address.ip();
        if self.next_hops.contains_key(&ip) {
            let usable = next_hop(&self.next_hops, service.mode, ip).is_some();
            return (!usable).then(|| {
                format!(
                    "{ip} is behind a router, and mode l2 needs it on a link of this host: use ipip or gue"
                )
            });
        }
        let no = self.no_ways.0.get(&ip).filter(|no| no.counts)?;
        let has_last = self.has_last_way(service, address);
        (!has_last).then(|| format!("no next hop: {}", no.reason))
    }

    /// Whether packets of the service go to a backend by a way that it has, or had last.
    pub(super) fn has_last_way(&self, service: &Service, address: SocketAddr) -> bool {
        let placed = self.layout.placed(self.state.lead(service.id));
        let member = placed.and_then(|placed| placed.member(address));
        member.is_some_and(|(_, member)| member.backend.interface != 0)
    }
}
