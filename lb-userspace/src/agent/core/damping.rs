//! Who is kept out although its checks pass, for having failed too often ([`crate::agent::damping`]).
//!
//! Who is kept out holds the flows that it has, as any backend that is down. Where too few others are left, nobody is
//! ([`super::panic`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::tables::Tick;

use super::{
    Core,
    forced::{Key, of_pool},
    targets::{inherit, inherit_keys},
};
use crate::{
    agent::{damping::Flaps, history::FlapsOf},
    dataplane::Dataplane,
    model::{FlapDamping, ServiceId},
    plan::{duration, has_passed, ticks},
    snapshot::DampingStatus,
};

/// See above; backends are under the first service of their group.
#[derive(Debug, Clone, Default)]
pub(super) struct Damped {
    flaps: BTreeMap<Key, Flaps>,
    /// Since when the checks of those who are kept out pass.
    held: BTreeMap<Key, Tick>,
    /// Who is kept out, or would be if nobody needed it, and was not told of.
    untold: BTreeSet<Key>,
    /// Who failed its checks when the agent before this one ended, and has not been heard of since.
    failing: BTreeSet<Key>,
    /// Pools whose backends are not kept out for now, since too few others are left.
    pub(super) spared: BTreeSet<ServiceId>,
}

impl Damped {
    /// Whether a backend has to wait, needed or not.
    pub(super) fn waits(&self, key: Key) -> bool {
        self.held.contains_key(&key)
    }

    /// Whether a backend is kept out.
    pub(super) fn holds(&self, key: Key) -> bool {
        self.waits(key) && !self.spared.contains(&key.0)
    }

    /// What is held against every backend.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Key, &Flaps)> {
        self.flaps.iter()
    }

    /// Since when the checks of a backend pass that has to wait.
    pub(super) fn held_since(&self, key: Key) -> Option<Tick> {
        self.held.get(&key).copied()
    }

    /// Takes up what the agent before this one held against a backend.
    pub(super) fn take_up(&mut self, key: Key, of: &FlapsOf<Tick>, damping: FlapDamping) {
        let flaps = Flaps::known(of.failures, of.well_since, damping);
        self.flaps.insert(key, flaps);
        if of.failing {
            self.failing.insert(key);
        } else if let Some(since) = of.held_since {
            self.held.insert(key, since);
        }
    }

    /// The same, which is left to be heard of.
    pub(super) fn is_failing(&self, key: Key) -> bool {
        self.failing.contains(&key)
    }

    /// Whether a backend is heard of for the first time that was failing when the agent before this one ended.
    pub(super) fn has_failed(&mut self, key: Key) -> bool {
        self.failing.remove(&key)
    }

    /// Backends that have to wait.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.held.keys()
    }

    /// Whether any backend of a pool has to wait.
    pub(super) fn has(&self, lead: ServiceId) -> bool {
        self.held.range(of_pool(lead)).next().is_some()
    }

    /// Forgets all of a backend: somebody has taken it into their hands.
    pub(super) fn forget(&mut self, key: Key) {
        self.flaps.remove(&key);
        self.held.remove(&key);
        self.failing.remove(&key);
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, keys: &BTreeSet<Key>) {
        self.flaps.retain(|key, _| keys.contains(key));
        self.held.retain(|key, _| keys.contains(key));
        self.failing.retain(|key| keys.contains(key));
    }

    /// Pools have another first service now, by `(before, now)`.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        let under = |(_, address), now| (now, address);
        inherit(&mut self.flaps, leads, |(lead, _)| lead, under);
        inherit(&mut self.held, leads, |(lead, _)| lead, under);
        inherit_keys(&mut self.untold, leads);
        inherit_keys(&mut self.failing, leads);
    }
}

impl<D: Dataplane> Core<D> {
    /// Takes note that a backend that took flows fails its checks. Who was kept out waits anew, and that is all.
    pub(super) fn count_failure(&mut self, key: Key, was_down: bool) {
        let waited = self.known.damped.held.remove(&key).is_some();
        let counted = self.known.damped.has_failed(key);
        let damping = self.damping_of(key.0);
        if !waited && !was_down && !counted && !damping.is_off() {
            self.known
                .damped
                .flaps
                .entry(key)
                .or_default()
                .fail(damping);
        }
    }

    /// Takes note that a backend's checks pass again, and keeps it out where it has to wait.
    pub(super) fn count_recovery(&mut self, key: Key) {
        let (damping, now) = (self.damping_of(key.0), self.dataplane.now());
        let Some(flaps) = self.known.damped.flaps.get_mut(&key) else {
            return;
        };
        flaps.recover(now);
        if flaps.hold(damping).is_zero() {
            return;
        }
        self.known.damped.held.insert(key, now);
        self.known.damped.untold.insert(key);
    }

    /// Tells who is kept out since the last time, once it is certain that they are: they may be needed.
    pub(super) fn tell_damped(&mut self) {
        for key in std::mem::take(&mut self.known.damped.untold) {
            if let Some(why) = self.kept_out(key) {
                self.chronicle.note_damped(key, why);
            }
        }
    }

    /// Lets those in who have waited long enough, and forgets what is old enough; whether anybody came in.
    pub(super) fn release(&mut self) -> bool {
        let now = self.dataplane.now();
        let over = |(&key, &since): (&Key, &Tick)| {
            let hold = ticks(self.hold_of(key));
            has_passed(hold, since, now).then_some(key)
        };
        let over: Vec<Key> = self.known.damped.held.iter().filter_map(over).collect();
        for &key in &over {
            self.known.damped.held.remove(&key);
            self.chronicle.touch(key);
            if let Some(flaps) = self.known.damped.flaps.get_mut(&key) {
                flaps.recover(now);
            }
        }
        let keys: Vec<Key> = self.known.damped.flaps.keys().copied().collect();
        for key in keys {
            let damping = self.damping_of(key.0);
            let well = !self.known.down.contains_key(&key)
                && !self.known.damped.waits(key)
                && !self.known.damped.is_failing(key);
            if let Some(flaps) = self.known.damped.flaps.get_mut(&key).filter(|_| well) {
                flaps.forgive(damping, now);
            }
        }
        self.known
            .damped
            .flaps
            .retain(|_, flaps| flaps.failures > 0);
        !over.is_empty()
    }

    /// Lets everybody in of services that damp no more.
    pub(super) fn stop_damping(&mut self) {
        let off = |lead: ServiceId| {
            self.state
                .service(lead)
                .is_none_or(|s| s.flap_damping.is_off())
        };
        let keys: Vec<Key> = self.known.damped.flaps.keys().copied().collect();
        for key in keys.into_iter().filter(|key| off(key.0)) {
            self.known.damped.forget(key);
        }
    }

    fn damping_of(&self, lead: ServiceId) -> FlapDamping {
        let service = self.state.service(lead);
        service.map_or_else(FlapDamping::default, |service| service.flap_damping)
    }

    /// How long a backend's checks have to pass.
    fn hold_of(&self, key: Key) -> Duration {
        let flaps = self.known.damped.flaps.get(&key).copied();
        flaps.unwrap_or_default().hold(self.damping_of(key.0))
    }

    /// Why a backend is kept out, where it is.
    pub(super) fn kept_out(&self, key: Key) -> Option<String> {
        let failures = self.known.damped.flaps.get(&key)?.failures;
        let holds = self.known.damped.holds(key);
        holds.then(|| has_to_wait(failures, self.hold_of(key)))
    }

    /// What is held against a backend.
    pub(super) fn damping_status(&self, key: Key) -> DampingStatus {
        let now = self.dataplane.now();
        let since = self
            .known
            .damped
            .held
            .get(&key)
            .filter(|_| self.known.damped.holds(key));
        let left = since.map(|&since| {
            duration(ticks(self.hold_of(key)).saturating_sub(now.wrapping_sub(since)))
        });
        DampingStatus {
            failures: self
                .known
                .damped
                .flaps
                .get(&key)
                .map_or(0, |flaps| flaps.failures),
            left,
        }
    }
}

fn has_to_wait(failures: u32, hold: Duration) -> String {
    let hold = humantime::format_duration(hold);
    format!("its checks have to pass for {hold} first: it has failed {failures} times of late")
}
