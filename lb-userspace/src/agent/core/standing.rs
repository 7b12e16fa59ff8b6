//! What state each backend is in, since when, and why; and what is told when it turns.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use super::{Core, forced::Key, meanwhile::AT_A_TIME, pools::Pools};
use crate::{
    agent::{journal::Journal, tiers::Shares},
    dataplane::Dataplane,
    health::{Target, reply::Wants},
    model::{Admin, Backend, Service, ServiceId, name_of},
    snapshot::{BackendState, Condition, EventFilter, EventList, Happened, Standing},
};

/// What was told last, and what may be news.
#[derive(Debug, Default)]
pub(super) struct Told {
    standings: BTreeMap<Key, Standing>,
    journal: Journal,
    /// Backends that may be in another state now.
    stale: BTreeSet<Key>,
    all_stale: bool,
    /// What is to be told beside states that turn.
    pools: Vec<(ServiceId, Happened, String)>,
}

impl Told {
    pub(super) fn touch(&mut self, key: Key) {
        self.stale.insert(key);
    }

    pub(super) fn touch_all(&mut self) {
        self.all_stale = true;
    }

    /// Takes note of other shares of a service's tiers; the first ones are no news.
    pub(super) fn note_shares(&mut self, id: ServiceId, before: Option<&Shares>, after: &Shares) {
        if before == Some(after) {
            return;
        }
        self.all_stale = true;
        if before.is_some() {
            self.pools.push((id, Happened::Tiers, in_words(after)));
        }
    }

    /// How much news of pools waits to be told.
    pub(super) fn untold(&self) -> usize {
        self.pools.len()
    }

    /// Forgets what has come to more than that: it has not come about.
    pub(super) fn unsay(&mut self, untold: usize) {
        self.pools.truncate(untold);
    }

    /// Takes note of a panic that has begun or ended.
    pub(super) fn note_panic(&mut self, id: ServiceId, what: String) {
        self.all_stale = true;
        self.pools.push((id, Happened::Panic, what));
    }

    /// Takes note that a backend is kept out though its checks pass.
    pub(super) fn note_damped(&mut self, (id, backend): Key, why: String) {
        self.pools.push((id, Happened::Damped { backend }, why));
    }

    /// Takes note that somebody else claims a service's VIP.
    pub(super) fn note_conflict(&mut self, id: ServiceId, who: String) {
        self.pools.push((id, Happened::Conflict, who));
    }

    /// How many events there have been.
    pub(super) fn events(&self) -> u64 {
        self.journal.recorded()
    }
}

impl<D: Dataplane> Core<D> {
    /// Records and logs what has turned since the last time; `now` is when. Takes in news meanwhile.
    pub fn observe(&mut self, now: SystemTime) {
        for keys in self.begin_observing(now).chunks(AT_A_TIME) {
            self.observe_backends(keys, now);
            self.hear_meanwhile();
        }
    }

    /// The same, before anything further is heard.
    pub(super) fn observe_at_once(&mut self, now: SystemTime) {
        let keys = self.begin_observing(now);
        self.observe_backends(&keys, now);
    }

    /// Whose states may have turned, once what is told of pools is.
    fn begin_observing(&mut self, now: SystemTime) -> Vec<Key> {
        self.heard.unobserved.clear();
        self.tell_damped();
        for (service, what, reason) in std::mem::take(&mut self.chronicle.pools) {
            match what {
                Happened::Conflict => tracing::warn!(%service, "{reason}"),
                Happened::Panic => tracing::warn!(%service, "{reason}"),
                Happened::Damped { backend } => {
                    tracing::info!(%service, %backend, reason, "kept out")
                }
                _ => tracing::info!(%service, shares = reason, "new flows by tier"),
            }
            self.chronicle.journal.record(now, service, what, reason);
        }
        let mut keys = std::mem::take(&mut self.chronicle.stale);
        if std::mem::take(&mut self.chronicle.all_stale) {
            keys = self.keys();
            let there = &keys;
            self.chronicle
                .standings
                .retain(|key, _| there.contains(key));
        }
        keys.into_iter().collect()
    }

    fn observe_backends(&mut self, keys: &[Key], now: SystemTime) {
        let mut pools = Pools::of(&self.state);
        let standings: Vec<_> = keys
            .iter()
            .map(|&key| (key, self.state_and_reason(key, pools.backend(key))))
            .collect();
        for (key, standing) in standings {
            match standing {
                Some((state, reason)) => self.observe_backend(key, state, reason, now),
                None => drop(self.chronicle.standings.remove(&key)),
            }
        }
    }

    fn observe_backend(
        &mut self,
        key @ (service, backend): Key,
        state: BackendState,
        reason: String,
        now: SystemTime,
    ) {
        let before = self
            .chronicle
            .standings
            .get(&key)
            .map(|told| (told.state, told.since));
        let since = match before {
            Some((was, since)) if was == state => since,
            _ => now,
        };
        if let Some((from, _)) = before.filter(|(was, _)| *was != state) {
            let (was, is) = (name_of(from), name_of(state));
            tracing::info!(%service, %backend, from = was, to = is, reason, "backend");
            let what = Happened::Turned {
                backend,
                from,
                to: state,
            };
            let journal = &mut self.chronicle.journal;
            journal.record(now, service, what, reason.clone());
        }
        let standing = Standing {
            state,
            reason,
            since,
        };
        self.chronicle.standings.insert(key, standing);
    }

    /// Says when this agent has started, by which its events are told from those of others.
    pub fn begin_journal(&mut self, now: SystemTime) {
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let epoch = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.chronicle.journal.begin(epoch);
    }

    /// The state of a backend, as it was observed last.
    pub(super) fn standing(&self, key: Key) -> Option<Standing> {
        self.chronicle.standings.get(&key).cloned()
    }

    /// What has happened lately.
    pub fn events(&self, filter: &EventFilter) -> EventList {
        self.chronicle.journal.list(filter)
    }

    fn state_and_reason(
        &self,
        key: Key,
        backend: Option<&Backend>,
    ) -> Option<(BackendState, String)> {
        let service = self.state.service(key.0)?;
        let backend = backend?;
        let target = Target {
            service: key.0,
            address: key.1,
        };
        let error = self
            .known
            .checked
            .get(&target)
            .and_then(|c| c.error.clone());
        let by_hand = |state| Some((state, "by hand".to_owned()));
        match backend.admin {
            Admin::Maintenance => return by_hand(BackendState::Maintenance),
            Admin::Down => return by_hand(BackendState::Down),
            _ => {}
        }
        if let Some(reason) = self.unusable(service, key.1) {
            return Some((BackendState::Down, reason));
        }
        if let Some(reason) = self.kept_out(key).filter(|_| backend.admin != Admin::Up) {
            return Some((BackendState::Down, reason));
        }
        if let Some(reason) = self.ejected_for(key) {
            return Some((BackendState::Down, reason));
        }
        let used = self.known.panics.uses(key);
        let down = self.liveness_with(key, || Some(backend.admin));
        if used || down.is_some() {
            let starts = self.condition(service, key.1) == Condition::Starting;
            if starts && !used && backend.admin == Admin::Active {
                let reason = "it has to pass a check first".to_owned();
                return Some((BackendState::Starting, reason));
            }
            let unchecked = "it has to pass its checks first".to_owned();
            let used = if used { "; takes flows in panic" } else { "" };
            let reason = error.unwrap_or(unchecked) + used;
            return Some((BackendState::Down, reason));
        }
        Some(match backend.admin {
            Admin::Draining => return by_hand(BackendState::Draining),
            _ if backend.weight == 0 => (BackendState::Draining, "its weight is 0".to_owned()),
            Admin::Up => {
                let checks = error.map(|error| format!("; its checks say: {error}"));
                let checks = checks.unwrap_or_default();
                match self.stands_by(service, backend.tier) {
                    Some(reason) => (
                        BackendState::Standby,
                        format!("{reason}; up by hand{checks}"),
                    ),
                    None => (BackendState::Up, format!("by hand{checks}")),
                }
            }
            _ => match self.state_by_agent(key) {
                Some((state, why)) => (state, why.to_owned()),
                None => self.state_by_checks(service, backend, error),
            },
        })
    }

    /// The state of a backend whose agent wants no new flows.
    fn state_by_agent(&self, key: Key) -> Option<(BackendState, &'static str)> {
        let asked = self.known.asked.get(&key)?;
        asked.wants_none().then_some(match asked.wants {
            Some(Wants::Maintenance) => (
                BackendState::Maintenance,
                "its agent asks for it; it is checked all the same",
            ),
            Some(Wants::Drain | Wants::Drained) => {
                (BackendState::Draining, "its agent asks for it")
            }
            Some(Wants::Flows) | None => (
                BackendState::Draining,
                "its agent asks for 0% of its weight",
            ),
        })
    }

    /// The state of a backend that nobody keeps from taking flows, and that is not down.
    fn state_by_checks(
        &self,
        service: &Service,
        backend: &Backend,
        error: Option<String>,
    ) -> (BackendState, String) {
        if self.condition(service, backend.address) == Condition::Starting {
            return (BackendState::Starting, "not checked yet".to_owned());
        }
        if let Some(reason) = self.stands_by(service, backend.tier) {
            return (BackendState::Standby, reason);
        }
        let target = Target {
            service: self.state.lead(service.id),
            address: backend.address,
        };
        let checked = self.known.checked.get(&target);
        let suspect = checked.is_some_and(|checked| checked.suspect);
        match error {
            Some(error) if suspect => (BackendState::Suspect, error),
            error => {
                let checks = match (error, service.health.is_none()) {
                    (_, true) => "not checked".to_owned(),
                    (None, false) => "its checks pass".to_owned(),
                    // It is no fault of the backend's.
                    (Some(error), false) => {
                        format!("no check fails, and not all could be made: {error}")
                    }
                };
                let slow = self
                    .known
                    .slow
                    .has((self.state.lead(service.id), backend.address));
                let slow = if slow { "; its weight grows" } else { "" };
                (BackendState::Up, format!("{checks}{slow}"))
            }
        }
    }
}

fn in_words(shares: &Shares) -> String {
    let parts = shares.iter().filter(|(_, share)| **share > 0);
    let parts: Vec<String> = parts
        .map(|(tier, &share)| format!("{}% to tier {tier}", f64::from(share) / 10.0))
        .collect();
    match &parts[..] {
        [] => "no tier can take any".to_owned(),
        parts => parts.join(", "),
    }
}
