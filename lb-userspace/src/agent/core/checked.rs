//! Takes in what checks say, and makes it take effect: of all that have news together, so that a pool of which many fail at
//! once is judged once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::tables::state;

use super::{
    Core,
    forced::Key,
    known::{Checked, Down},
    pools::Pools,
};
use crate::{
    dataplane::{Dataplane, Operation},
    health::{Event, reply::Asked},
    model::{Admin, ServiceId},
    plan::Liveness,
    snapshot::Condition,
};

/// A backend whose checks fail.
struct Failing {
    key: Key,
    admin: Admin,
    /// What was left of it before.
    was: Option<Liveness>,
}

impl<D: Dataplane> Core<D> {
    /// [`Core::health_of_all`] of one backend.
    pub fn health(&mut self, event: Event) -> bool {
        self.health_of_all(vec![event])
    }

    /// Takes note of what checks say, the last of each backend. Failures take effect in the maps before this returns, in one store
    /// each; true where the rings must follow by [`Core::enforce`].
    pub fn health_of_all(&mut self, events: Vec<Event>) -> bool {
        let mut pools = Pools::of(&self.state);
        let known = events.into_iter().filter_map(|event| {
            let admin = pools.admin((event.target.service, event.target.address))?;
            (admin != Admin::Maintenance).then_some((event, admin))
        });
        let known: Vec<(Event, Admin)> = known.collect();
        let (mut turned, mut failing) = (false, Vec::new());
        for (event, admin) in known {
            turned |= self.note(event, admin, &mut failing);
        }
        let pools: BTreeSet<ServiceId> = failing.iter().map(|failing| failing.key.0).collect();
        for lead in pools {
            turned |= self.judge(lead);
        }
        let hit = failing
            .iter()
            .filter(|of| self.liveness_with(of.key, || Some(of.admin)) != of.was);
        let hit: Vec<Key> = hit.map(|failing| failing.key).collect();
        self.mark(&hit);
        turned || !hit.is_empty()
    }

    fn note(&mut self, event: Event, admin: Admin, failing: &mut Vec<Failing>) -> bool {
        let key = (event.target.service, event.target.address);
        self.chronicle.touch(key);
        let asked = self.hear_agent(key, event.asked);
        if event.none_left.is_none() {
            self.takes_drained_back(key);
        }
        let (condition, dead) = (event.condition, event.dead);
        let failed = event.checks.is_empty() || event.fails;
        let checked = Checked {
            condition,
            error: event.error,
            suspect: event.suspect,
            latency: event.latency,
            smoothed: event.smoothed,
            checks: event.checks,
        };
        self.known.checked.insert(event.target, checked);
        match condition {
            Condition::Up => return self.recover(key) | asked,
            // Nothing has turned: who is new has not passed yet, and who fails has not passed again.
            Condition::Starting => return asked,
            Condition::Down => {}
        }
        failing.push(Failing {
            key,
            admin,
            was: self.liveness_with(key, || Some(admin)),
        });
        self.fail(key, dead, failed);
        asked
    }

    /// Takes note of what a backend's agent asks for; whether that is news.
    fn hear_agent(&mut self, key: Key, asked: Asked) -> bool {
        let before = if asked == Asked::default() {
            self.known.asked.remove(&key)
        } else {
            self.known.asked.insert(key, asked)
        };
        before.unwrap_or_default() != asked
    }

    /// A backend is not down; whether it was.
    fn recover(&mut self, key: Key) -> bool {
        let down = self.known.down.remove(&key);
        // The agent before this one may have known more than the maps tell.
        let failed = self.known.damped.has_failed(key);
        if down.is_some_and(|down| !down.found) || failed {
            self.count_recovery(key);
        }
        down.is_some() || failed
    }

    /// A backend is down. One that is so only since it has passed too few checks yet, and has not failed enough of them, loses
    /// nothing by it.
    fn fail(&mut self, key: Key, dead: bool, failed: bool) {
        let now = self.dataplane.now();
        let before = self.known.down.get(&key).copied();
        let proving = before.is_some_and(|before| before.found);
        if !proving || failed {
            self.count_failure(key, before.is_some());
        }
        let gone = (dead && (!proving || failed)) || before.is_some_and(|before| before.gone);
        let down = Down {
            since: before.map_or(now, |before| match proving && !before.failing {
                true => now,
                false => before.since,
            }),
            dead: gone || before.is_some_and(|before| before.dead),
            gone,
            found: proving && !failed,
            new: false,
            failing: before.is_some_and(|before| before.failing),
        };
        self.known.down.insert(key, down);
    }

    /// Takes backends' new flows, or all, from those that are not up, by one store each.
    pub(super) fn mark(&mut self, keys: &[Key]) {
        let mut pools = Pools::of(&self.state);
        let mut left: BTreeMap<ServiceId, BTreeMap<SocketAddr, u8>> = BTreeMap::new();
        for &key in keys {
            let liveness = self.liveness_with(key, || pools.admin(key));
            left.entry(key.0)
                .or_default()
                .extend(liveness.map(|liveness| (key.1, flags_left(liveness))));
        }
        for (lead, left) in left {
            self.marks.add(lead, &left);
            self.planned.mark(lead);
            self.mark_of_pool(lead, left);
        }
    }

    fn mark_of_pool(&mut self, lead: ServiceId, mut left: BTreeMap<SocketAddr, u8>) {
        let Some(placed) = self.layout.placed(lead) else {
            return;
        };
        let marked: Vec<_> = placed
            .members()
            .filter_map(|(id, member)| {
                let mask = left.remove(&member.address())?;
                Some((id, member.entry, member.backend.state & mask))
            })
            .collect();
        let now = self.dataplane.now();
        for (id, entry, left) in marked {
            if let Err(error) = self.dataplane.execute(&[Operation::State(entry, left)]) {
                tracing::error!(%error, service = %lead, id, "cannot mark a backend as down");
                continue;
            }
            let placed = Arc::make_mut(&mut self.layout).placed_mut(lead);
            let member = placed.and_then(|placed| placed.members.get_mut(usize::from(id)));
            if let Some(Ok(member)) = member {
                member.backend.state = left;
                self.stills.begin(member, now);
            }
        }
    }
}

/// What of a backend's state it keeps.
fn flags_left(liveness: Liveness) -> u8 {
    match liveness {
        Liveness::Down => state::HOLDS,
        Liveness::Dead => 0,
    }
}
