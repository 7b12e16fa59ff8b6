//! What people say of backends against their checks: who counts as down, or as up, whatever the checks find,
//! and who is not checked at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    ops::RangeBounds,
    sync::Arc,
};

use lb_common::tables::Tick;

use super::{
    Core,
    known::Down,
    meanwhile::AT_A_TIME,
    pools::{Members, Pools},
};
use crate::{
    dataplane::Dataplane,
    health::Target,
    model::{Admin, OnDown, Service, ServiceId, State},
    plan::{Liveness, has_passed, ticks},
};

/// A backend, under the first service of its group.
pub(super) type Key = (ServiceId, SocketAddr);

/// The keys of a pool's backends.
pub(super) fn of_pool(lead: ServiceId) -> impl RangeBounds<Key> {
    let first = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let last = SocketAddr::V6(SocketAddrV6::new(
        Ipv6Addr::from_bits(u128::MAX),
        u16::MAX,
        u32::MAX,
        u32::MAX,
    ));
    (lead, first)..=(lead, last)
}

impl<D: Dataplane> Core<D> {
    /// What an operator asked of a backend.
    pub(super) fn admin(&self, (id, address): Key) -> Option<Admin> {
        Some(self.state.service(id)?.backend(address)?.admin)
    }

    /// Every backend that there is.
    pub(super) fn keys(&self) -> BTreeSet<Key> {
        let leads = self.state.services();
        let leads = leads.filter(|service| self.state.lead(service.id) == service.id);
        let of = |service: &Service| -> Vec<Key> {
            let backends = service.backends.iter();
            backends.map(|b| (service.id, b.address)).collect()
        };
        leads.flat_map(of).collect()
    }

    /// Takes note of who is forced down now, and of who is checked again.
    pub(super) fn follow_admin(&mut self, before: &State) {
        let now = self.dataplane.now();
        let mut forced = BTreeMap::new();
        let (mut then, mut after) = (Pools::of(before), Pools::of(&self.state));
        let mut members = Members::of(&self.layout);
        let turns: Vec<_> = self
            .keys()
            .into_iter()
            .map(|key| {
                let (was, admin) = (then.admin(key), after.admin(key));
                let known = before.service(key.0).is_some();
                let added = was.is_none() && (known || members.lack(&mut after, key));
                let unproven = added && members.others_take(&mut after, key);
                (key, was, admin, unproven)
            })
            .collect();
        for (key, was, admin, unproven) in turns {
            if admin == Some(Admin::Down) {
                let known = self.known.forced.get(&key).copied();
                forced.insert(key, known.unwrap_or_else(|| down_since(now)));
            }
            let maintained = |admin| admin == Some(Admin::Maintenance);
            match (maintained(was), maintained(admin)) {
                (false, true) => self.stop_checking(key),
                (true, false) => self.distrust(key, now, false),
                _ if unproven => self.distrust(key, now, true),
                _ => {}
            }
            // Somebody has looked after it.
            if was != admin && (admin == Some(Admin::Up) || maintained(admin)) {
                self.known.damped.forget(key);
                self.known.outliers.forget(key);
            }
        }
        self.known.forced = forced;
    }

    /// What the checks have said is of the time before.
    fn stop_checking(&mut self, key @ (service, address): Key) {
        self.known.checked.remove(&Target { service, address });
        self.known.asked.remove(&key);
    }

    /// Who comes back from maintenance has to pass its checks first, and who is `new` one of them. Where it was
    /// down already, only the time until it counts as dead begins anew.
    fn distrust(&mut self, key: Key, now: Tick, new: bool) {
        let checked = self.state.service(key.0);
        if checked.is_some_and(|service| !service.health.is_none()) {
            let unproven = Down {
                found: true,
                new,
                ..down_since(now)
            };
            self.known.down.entry(key).or_insert(unproven).since = now;
        }
    }

    /// Whether a backend was added while others took new flows, and has not been checked yet.
    pub(super) fn is_unproven(&self, key: Key) -> bool {
        self.known.down.get(&key).is_some_and(|down| down.new)
    }

    /// What is left of every backend that is not up. Takes in news meanwhile, some of which it may have missed.
    pub(super) fn liveness(&mut self) -> BTreeMap<Key, Liveness> {
        let keys = self.known.down.keys().chain(self.known.forced.keys());
        let keys = keys
            .chain(self.known.damped.keys())
            .chain(self.known.outliers.keys());
        let keys: Vec<Key> = keys.copied().collect();
        let state = Arc::clone(&self.state);
        let mut pools = Pools::of(&state);
        let mut all = BTreeMap::new();
        for keys in keys.chunks(AT_A_TIME) {
            let left = keys.iter().filter_map(|&key| {
                let left = self.liveness_with(key, || pools.admin(key));
                Some((key, left?))
            });
            all.extend(left);
            self.hear_meanwhile();
        }
        all
    }

    /// What is left of a backend, unless it is up; `admin` finds what an operator asked of it.
    pub(super) fn liveness_with(
        &self,
        key: Key,
        admin: impl FnOnce() -> Option<Admin>,
    ) -> Option<Liveness> {
        let found = self
            .known
            .down
            .get(&key)
            .filter(|_| !self.known.panics.uses(key));
        let ejected = self.known.outliers.waits(key) && !self.known.damped.spared.contains(&key.0);
        // Never dead for that: it may be alive.
        let held = (self.known.damped.holds(key) || ejected).then_some(Liveness::Down);
        let forced = self.known.forced.get(&key);
        if found.is_none() && held.is_none() && forced.is_none() {
            return None;
        }
        let (found, held) = match admin() {
            Some(Admin::Up) => (None, None),
            _ => (found, held),
        };
        let all = [found, forced].into_iter().flatten();
        all.map(|down| self.means(key.0, down)).chain(held).max()
    }

    fn means(&self, id: ServiceId, down: &Down) -> Liveness {
        let service = self.state.service(id);
        let resteers = service.is_some_and(|service| service.on_down() == OnDown::Resteer);
        if down.dead || (resteers && !down.found) {
            Liveness::Dead
        } else {
            Liveness::Down
        }
    }

    /// Who has been down for as long as it takes to count as dead, and does not yet.
    pub(super) fn mark_the_long_down(&mut self) -> Vec<Key> {
        let now = self.dataplane.now();
        let mut pools = Pools::of(&self.state);
        let mut dead = Vec::new();
        for (&key, down) in self.known.down.iter_mut().chain(&mut self.known.forced) {
            let Some(service) = self.state.service(key.0) else {
                continue;
            };
            let passed = has_passed(ticks(service.dead_after), down.since, now);
            if !passed || down.dead || down.found || self.known.panics.uses(key) {
                continue;
            }
            // Of who is in maintenance, nobody looks whether it still is.
            if pools.admin(key) != Some(Admin::Maintenance) {
                down.dead = true;
                dead.push(key);
            }
        }
        dead
    }
}

fn down_since(since: Tick) -> Down {
    Down {
        since,
        dead: false,
        gone: false,
        found: false,
        new: false,
        failing: false,
    }
}
