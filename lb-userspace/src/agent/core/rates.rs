//! How many flows begin at backends a second, and how many bits they are sent, of pools in which one says how much of it it can
//! carry. Their counters tell, whether or not flows are recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lb_common::tables::{Counters, Tick};

use super::{Core, forced::Key, meanwhile::AT_A_TIME, targets::inherit};
use crate::{
    dataplane::Dataplane,
    model::{BitRate, Service, ServiceId},
    plan::{self, Placed, has_passed, ticks},
    smooth::Rate,
    snapshot::Rates,
};

/// The time constant: what is older by this counts for 1/e.
const OVER: Duration = Duration::from_secs(10);
/// From one look at the counters to the next, at least: half of the time that the loop leaves between them.
const PAUSE: Duration = Duration::from_millis(500);
const BITS: u64 = 8;

/// What is known of that; backends are under the first service of their group.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    backends: BTreeMap<Key, Own>,
    looked: Tick,
}

#[derive(Debug, Clone, Copy)]
struct Own {
    /// Index of its counters; of another one, all of this is of somebody else.
    counters: u32,
    looked: Tick,
    flows: Rate,
    bytes: Rate,
}

impl Own {
    fn new(counters: u32, now: Tick) -> Self {
        Self {
            counters,
            looked: now,
            flows: Rate::default(),
            bytes: Rate::default(),
        }
    }

    fn count(&mut self, counted: Counters, now: Tick) {
        let passed = plan::duration(now.wrapping_sub(self.looked));
        self.flows.count(counted.flows, passed, OVER);
        self.bytes.count(counted.bytes, passed, OVER);
        self.looked = now;
    }
}

impl<D: Dataplane> Core<D> {
    /// Takes note of how much backends get, where anybody wants to know. Takes in news meanwhile.
    pub fn measure(&mut self) {
        let now = self.dataplane.now();
        if !has_passed(ticks(PAUSE), self.known.measured.looked, now) {
            return;
        }
        let mut before = std::mem::take(&mut self.known.measured.backends);
        let mut after = BTreeMap::new();
        let (state, layout) = (Arc::clone(&self.state), Arc::clone(&self.layout));
        let services = state.services();
        let leads = services.filter(|s| state.lead(s.id) == s.id && is_measured(s));
        for service in leads {
            let members = layout.placed(service.id).into_iter();
            for ((_, member), n) in members.flat_map(Placed::members).zip(1..) {
                if n % AT_A_TIME == 0 {
                    self.hear_meanwhile();
                }
                let (key, counters) = ((service.id, member.address()), member.backend.counters);
                let counted = match self.dataplane.backend_counters(counters) {
                    Ok(counted) => counted,
                    Err(error) => {
                        tracing::error!(%error, "what backends get cannot be read");
                        continue;
                    }
                };
                let known = before.remove(&key).filter(|own| own.counters == counters);
                let mut own = known.unwrap_or_else(|| Own::new(counters, now));
                own.count(counted, now);
                after.insert(key, own);
            }
            self.hear_meanwhile();
        }
        self.known.measured = Measured {
            backends: after,
            looked: now,
        };
    }

    /// How much a backend gets, where that is measured.
    pub(super) fn rates(&self, key: Key) -> Option<Rates> {
        let own = self.known.measured.backends.get(&key)?;
        let bits = own.bytes.per_second()? * BITS as f64;
        Some(Rates {
            flows: own.flows.per_second()?.round() as u64,
            bandwidth: BitRate(bits.round() as u64),
        })
    }
}

impl Measured {
    /// Pools have another first service now, by `(before, now)`.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        let under = |(_, address), now| (now, address);
        inherit(&mut self.backends, leads, |(lead, _)| lead, under);
    }
}

fn is_measured(service: &Service) -> bool {
    service
        .backends
        .iter()
        .any(|backend| !backend.rated.is_none())
}
