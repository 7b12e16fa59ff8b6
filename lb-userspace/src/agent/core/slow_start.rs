//! Whose weight grows, and what that makes of what is wanted: backends that begin to take new flows get their
//! weight by and by ([`crate::agent::ramp`]).
//!
//! The first backends of a service have all of theirs at once, as there is nobody whose flows they could leave
//! to others; so has one that somebody has forced up, and everybody in a pool in panic. Who comes back to a tier that gets no new
//! flows for now begins once that does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::tables::state;

use super::{
    Core,
    forced::{Key, of_pool},
    targets::inherit,
};
use crate::{
    agent::ramp::{Ramp, WHOLE},
    dataplane::Dataplane,
    model::{Admin, Service, ServiceId, State},
    plan::{Placed, duration},
    snapshot::SlowStartStatus,
};

/// The backends of a pool, and whether each can take new flows.
type Fitness = BTreeMap<SocketAddr, bool>;

/// What is known of pools that start slowly, under their first services.
#[derive(Debug, Clone, Default)]
pub(super) struct SlowStarts {
    ramps: BTreeMap<Key, Ramp>,
    pools: BTreeMap<ServiceId, Fitness>,
    /// Who waited under the agent before this one, of pools of which nothing is known yet.
    former: BTreeSet<Key>,
}

impl SlowStarts {
    /// The percent of its weight that a backend has.
    pub(super) fn percent(&self, key: Key) -> u8 {
        self.ramps.get(&key).map_or(WHOLE, |ramp| ramp.percent)
    }

    /// The same, of what its pool counts it for: who is new is not missed yet.
    pub(super) fn counted(&self, key: Key) -> u8 {
        let new = self.ramps.get(&key).filter(|ramp| ramp.new);
        new.map_or(WHOLE, |ramp| ramp.percent)
    }

    /// Whether anything is known of a pool.
    pub(super) fn has_pool(&self, lead: ServiceId) -> bool {
        self.pools.contains_key(&lead)
    }

    /// Whether the weight of any backend of a pool grows.
    pub(super) fn has_any(&self, lead: ServiceId) -> bool {
        let mut ramps = self.ramps.range(of_pool(lead));
        ramps.any(|(_, ramp)| !ramp.waits)
    }

    /// Whether a backend's weight grows.
    pub(super) fn has(&self, key: Key) -> bool {
        self.ramps.get(&key).is_some_and(|ramp| !ramp.waits)
    }

    /// Backends whose weight begins to grow once their tier gets new flows.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Key> {
        let waiting = self.ramps.iter().filter(|(_, ramp)| ramp.waits);
        waiting.map(|(&key, _)| key)
    }

    /// Takes up one of these from the agent before this one.
    pub(super) fn take_up(&mut self, key: Key) {
        self.former.insert(key);
    }

    /// Pools have another first service now, by `(before, now)`; those that stay keep theirs.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        inherit(&mut self.pools, leads, |lead| lead, |_, now| now);
        let under = |(_, address), now| (now, address);
        inherit(&mut self.ramps, leads, |(lead, _)| lead, under);
    }
}

impl<D: Dataplane> Core<D> {
    /// Whether any backend's weight grows, so that [`Core::step`] has something to do.
    pub fn is_ramping(&self) -> bool {
        let mut ramps = self.known.slow.ramps.iter();
        ramps.any(|(&key, ramp)| !ramp.waits || !self.is_idle(key))
    }

    /// Whether a backend has come to its next part of its weight, so that the maps must follow by
    /// [`Core::enforce`].
    pub fn step(&self) -> bool {
        let now = self.dataplane.now();
        let mut ramps = self.known.slow.ramps.iter();
        ramps.any(|(&key, ramp)| {
            let slow = self.state.service(key.0).map(|service| service.slow_start);
            let next = slow.and_then(|slow| ramp.go_on(slow, now));
            let begins = ramp.waits && !self.is_idle(key);
            begins || next.is_none_or(|next| next.percent != ramp.percent)
        })
    }

    /// Begins, goes on with and ends what grows; `asked` is the state as its backends' agents would have it.
    pub(super) fn turn_ramps(&mut self, asked: Option<&State>) {
        let mut before = std::mem::take(&mut self.known.slow);
        let mut after = SlowStarts::default();
        for service in self.state.services() {
            let lead = service.id;
            if service.slow_start.is_off() || self.state.lead(lead) != lead {
                continue;
            }
            let over = asked.and_then(|asked| asked.service(lead));
            let backends = &over.unwrap_or(service).backends;
            // Who has yet to pass its first check is new when it has.
            let proven = backends
                .iter()
                .filter(|backend| !self.is_unproven((lead, backend.address)));
            let fit: Fitness = proven
                .map(|backend| (backend.address, self.is_fit(service, backend)))
                .collect();
            if !before.pools.contains_key(&lead) {
                self.find(service, &fit, &mut before);
            }
            self.turn_pool(service, &fit, &before, &mut after.ramps);
            after.pools.insert(lead, fit);
        }
        let turned = before.ramps.keys().chain(after.ramps.keys());
        for &key in turned.filter(|key| before.has(**key) != after.has(**key)) {
            self.chronicle.touch(key);
        }
        self.known.slow = after;
    }

    fn turn_pool(
        &self,
        service: &Service,
        fit: &Fitness,
        before: &SlowStarts,
        after: &mut BTreeMap<Key, Ramp>,
    ) {
        let (slow, now) = (service.slow_start, self.dataplane.now());
        let were = before.pools.get(&service.id);
        let was = |address| were.and_then(|were| were.get(&address).copied());
        if self.known.panics.has(service.id) {
            return;
        }
        let served = were.is_some_and(|were| were.values().any(|&fit| fit));
        for backend in &service.backends {
            let key = (service.id, backend.address);
            if backend.admin == Admin::Up || fit.get(&backend.address) != Some(&true) {
                continue;
            }
            let begin = match self.is_idle(key) {
                true => Ramp::wait,
                false => Ramp::begin,
            };
            let ramp = match (was(backend.address), before.ramps.get(&key)) {
                (Some(true), Some(ramp)) if ramp.waits => Some(begin(slow, ramp.new, now)),
                (Some(true), ramp) => ramp.copied(),
                (Some(false), _) => Some(begin(slow, false, now)),
                (None, _) => served.then(|| begin(slow, true, now)),
            };
            if let Some(ramp) = ramp.and_then(|ramp| ramp.go_on(slow, now)) {
                after.insert(key, ramp);
            }
        }
    }

    /// Takes up a pool of which nothing is known yet: whoever is found in it is not new, and what is half-grown
    /// under an agent before this one goes on.
    fn find(&self, service: &Service, fit: &Fitness, known: &mut SlowStarts) {
        let lead = service.id;
        let Some(placed) = self.layout.placed(lead) else {
            return;
        };
        let were = fit.iter().filter(|(at, _)| placed.member(**at).is_some());
        let were = were.map(|(&address, &fit)| (address, fit)).collect();
        known.pools.insert(lead, were);
        for &key in known.former.range(of_pool(lead)) {
            let waits = Ramp::wait(service.slow_start, false, self.dataplane.now());
            known.ramps.insert(key, waits);
        }
        // Where weights follow how backends fare, or what their agents ask for, that may be why one has less.
        if !self.resumes() || service.adaptive.is_some() || service.has_agents() {
            return;
        }
        let found = found(service, placed);
        let now = self.dataplane.now();
        for one in &found {
            let percent = one.percent(&found);
            if percent < WHOLE {
                let ramp = Ramp::resume(service.slow_start, percent, now);
                known.ramps.insert((lead, one.address), ramp);
            }
        }
    }

    /// How far a backend's weight has grown, where it does.
    pub(super) fn slow_start_status(&self, service: &Service, key: Key) -> Option<SlowStartStatus> {
        let ramps = &self.known.slow.ramps;
        let ramp = ramps.get(&key).filter(|ramp| !ramp.waits)?;
        let left = ramp.left(service.slow_start, self.dataplane.now());
        Some(SlowStartStatus {
            percent: ramp.percent,
            left: duration(left),
        })
    }
}

/// The backends of a service that take new flows in the maps.
fn found(service: &Service, placed: &Placed) -> Vec<Found> {
    let taking = placed
        .members()
        .filter(|(_, member)| member.backend.state & state::TAKES != 0);
    let found = taking.filter_map(|(_, member)| {
        let backend = service.backend(member.address())?;
        (backend.weight > 0).then(|| Found {
            address: backend.address,
            tier: backend.tier,
            own: backend.weight.into(),
            is: member.member.weight.into(),
        })
    });
    found.collect()
}

/// A backend as it is found in the maps.
struct Found {
    address: SocketAddr,
    tier: u8,
    /// The weight that is wanted.
    own: u64,
    /// The one that it has, to the scale of its tier and rounded up.
    is: u64,
}

impl Found {
    /// The percent of its weight that it has, where it certainly lacks some: next to whoever has most for its weight
    /// of its tier, who has all.
    fn percent(&self, all: &[Self]) -> u8 {
        let tier = all.iter().filter(|other| other.tier == self.tier);
        // The least that others can have before it was rounded.
        let beside = tier.map(|other| {
            let (theirs, mine) = ((other.is.max(1) - 1) * self.own, self.is * other.own);
            if mine >= theirs {
                return u64::from(WHOLE);
            }
            mine * u64::from(WHOLE) / (other.is * self.own)
        });
        let least = beside.min().unwrap_or(WHOLE.into());
        u8::try_from(least).unwrap_or(WHOLE).clamp(1, WHOLE)
    }
}
