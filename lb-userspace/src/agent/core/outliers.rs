//! Who is kept out for what packets show ([`crate::agent::outlier`]): reads it, and makes the judgement take effect. Has
//! handshakes watched also where only their times are wanted ([`super::adaptive`]).
//!
//! Who is kept out holds the flows that it has, whatever `on_down` says: it may be alive. Where too few others are left,
//! nobody is ([`super::panic`]).

mod handshakes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lb_common::tables::{Signs, Tick, state};

pub(super) use self::handshakes::Handshakes;
use super::{
    Core,
    forced::{Key, of_pool},
    targets::inherit,
};
use crate::{
    agent::{
        history::EjectionsOf,
        outlier::{self, Change, Outlier, Place, Shown},
    },
    dataplane::{Dataplane, DataplaneError},
    health::Target,
    model::{Admin, Backend, Passive, Service, ServiceId},
    plan::{duration, ticks},
    snapshot::{Condition, PassiveStatus},
};

/// What is kept of a backend.
#[derive(Debug, Clone)]
struct Kept {
    /// Index of its counters; of another one, all of this is of somebody else. None of one of which the agent before
    /// this one knew, until it is looked at.
    counters: Option<u32>,
    outlier: Outlier,
    /// Why it is kept out, or was last.
    why: String,
}

/// See above; backends are under the first service of their group.
#[derive(Debug, Clone, Default)]
pub(super) struct Outliers {
    kept: BTreeMap<Key, Kept>,
    /// Those of them who are kept out.
    out: BTreeSet<Key>,
    /// Handshakes that nothing followed, by index of counters.
    stalled: BTreeMap<u32, u64>,
    /// Which handshakes are watched, by pool.
    pub(super) sampling: BTreeMap<ServiceId, u8>,
    /// Flows that have begun so far, by pool, and when that was read.
    begun: BTreeMap<ServiceId, (Tick, u64)>,
    /// When handshakes were looked through last.
    looked: Tick,
}

impl Outliers {
    /// Whether a backend has to wait, needed or not.
    pub(super) fn waits(&self, key: Key) -> bool {
        self.out.contains(&key)
    }

    /// Backends that have to wait.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.out.iter()
    }

    /// Whether any backend of a pool has to wait.
    pub(super) fn has(&self, lead: ServiceId) -> bool {
        self.out.range(of_pool(lead)).next().is_some()
    }

    /// What is held against every backend.
    pub(super) fn ejections(&self) -> impl Iterator<Item = EjectionsOf<Tick>> {
        let held = |(_, kept): &(&Key, &Kept)| kept.outlier.times > 0;
        let of = |(&(service, backend), kept): (&Key, &Kept)| EjectionsOf {
            service,
            backend,
            times: kept.outlier.times,
            well_since: kept.outlier.well_since,
            ejected_since: kept.outlier.ejected,
            why: kept.why.clone(),
        };
        self.kept.iter().filter(held).map(of)
    }

    /// Takes up what the agent before this one held against a backend.
    pub(super) fn take_up(&mut self, key: Key, of: EjectionsOf<Tick>, passive: &Passive) {
        let kept = Kept {
            counters: None,
            outlier: Outlier::known(of.times, of.ejected_since, of.well_since, passive),
            why: of.why,
        };
        if kept.outlier.ejected.is_some() {
            self.out.insert(key);
        }
        self.kept.insert(key, kept);
    }

    /// Forgets all of a backend: somebody has taken it into their hands.
    pub(super) fn forget(&mut self, key: Key) {
        self.kept.remove(&key);
        self.out.remove(&key);
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, keys: &BTreeSet<Key>) {
        self.kept.retain(|key, _| keys.contains(key));
        self.out.retain(|key| keys.contains(key));
    }

    /// Pools have another first service now, by `(before, now)`.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        let under = |(_, address), now| (now, address);
        inherit(&mut self.kept, leads, |(lead, _)| lead, under);
        let waits = |(_, kept): &(&Key, &Kept)| kept.outlier.ejected.is_some();
        self.out = self
            .kept
            .iter()
            .filter(waits)
            .map(|(&key, _)| key)
            .collect();
        inherit(&mut self.sampling, leads, |lead| lead, |_, now| now);
    }
}

/// A watched backend, and where its counters are.
struct Watched {
    address: SocketAddr,
    counters: u32,
    interface: u32,
    /// Whether it takes new flows.
    takes: bool,
}

impl<D: Dataplane> Core<D> {
    /// Whether any packets are looked at, so that [`Core::watch`] has something to do.
    pub fn watches(&self) -> bool {
        self.state.services().any(is_watched)
    }

    /// Takes note of what packets have shown. Who is kept out for it is in the maps before this returns, by one store;
    /// true where the rings must follow by [`Core::enforce`].
    pub fn watch(&mut self) -> bool {
        let pools = self.watched_pools();
        match self.survey(&pools) {
            Ok(turned) => turned,
            Err(error) => {
                tracing::error!(%error, "what packets show cannot be read");
                false
            }
        }
    }

    fn watched_pools(&self) -> Vec<(ServiceId, Passive)> {
        let services = self.state.services();
        let on = services.filter(|s| is_watched(s) && self.state.lead(s.id) == s.id);
        on.map(|service| (service.id, service.passive)).collect()
    }

    fn survey(&mut self, pools: &[(ServiceId, Passive)]) -> Result<bool, DataplaneError> {
        let now = self.dataplane.now();
        self.look_through(pools, now)?;
        let mut turned = false;
        for &(lead, passive) in pools {
            // One that cannot be read takes nothing from what the others have come to.
            match self.survey_pool(lead, &passive, now) {
                Ok(changed) => turned |= changed,
                Err(error) => {
                    tracing::error!(%error, service = %lead, "what packets show cannot be read");
                }
            }
            self.hear_meanwhile();
        }
        Ok(turned)
    }

    fn survey_pool(
        &mut self,
        lead: ServiceId,
        passive: &Passive,
        now: Tick,
    ) -> Result<bool, DataplaneError> {
        let mut suspect = false;
        // Where it is off, handshakes are watched for how long they take alone.
        let heard = match passive.is_off() {
            true => Vec::new(),
            false => self.looked_at(lead),
        };
        for watched in heard {
            suspect |= self.hear_out(lead, &watched, passive, now)?;
        }
        // What is known is judged, whether or not more can be read.
        let turned = suspect && self.judge_outliers(lead, passive, now);
        match self.turn_sampling(lead, now) {
            Err(error) if turned => {
                tracing::error!(%error, service = %lead, "which handshakes are watched stays");
                Ok(true)
            }
            sampling => sampling.map(|sampling| turned || sampling),
        }
    }

    /// The backends of a pool that are wanted and are in the maps.
    fn looked_at(&self, lead: ServiceId) -> Vec<Watched> {
        let (service, placed) = (self.state.service(lead), self.layout.placed(lead));
        let Some((service, placed)) = service.zip(placed) else {
            return Vec::new();
        };
        let there: BTreeSet<SocketAddr> = service.backends.iter().map(|b| b.address).collect();
        let members = placed.members();
        let wanted = members.filter(|(_, member)| there.contains(&member.address()));
        wanted
            .map(|(_, member)| Watched {
                address: member.address(),
                counters: member.backend.counters,
                interface: self.devices.way_in(member.backend.interface),
                takes: member.backend.state & state::TAKES != 0,
            })
            .collect()
    }

    /// Takes in what a backend has shown by now; whether there is anything to judge.
    fn hear_out(
        &mut self,
        lead: ServiceId,
        watched: &Watched,
        passive: &Passive,
        now: Tick,
    ) -> Result<bool, DataplaneError> {
        let signs = self.dataplane.signs(watched.counters)?;
        if signs.interface != u64::from(watched.interface) {
            self.dataplane
                .set_way_in(watched.counters, watched.interface)?;
        }
        let service = self.state.service(lead);
        let direct = service.is_some_and(Service::answers_directly);
        let mut shown = self.shown(watched.counters, &signs, direct);
        if !service.is_some_and(Service::judges_handshakes) {
            (shown.progressed, shown.missed) = (0, 0);
        }
        let new = || Kept {
            counters: Some(watched.counters),
            outlier: Outlier::new(shown, now),
            why: String::new(),
        };
        let kept = self
            .known
            .outliers
            .kept
            .entry((lead, watched.address))
            .or_insert_with(new);
        match kept.counters {
            None => {
                kept.counters = Some(watched.counters);
                kept.outlier.begin_at(shown);
            }
            Some(counters) if counters != watched.counters => {
                *kept = new();
                self.known.outliers.out.remove(&(lead, watched.address));
                self.chronicle.touch((lead, watched.address));
            }
            Some(_) => {}
        }
        kept.outlier.take(shown, watched.takes, passive, now);
        Ok(kept.outlier.is_suspect())
    }

    /// Where backends answer `direct`ly, an ICMP error is about a handshake that is watched.
    fn shown(&self, counters: u32, signs: &Signs, direct: bool) -> Shown {
        let stalled = self
            .known
            .outliers
            .stalled
            .get(&counters)
            .copied()
            .unwrap_or(0);
        let [refused, missed] = match direct {
            true => [0, signs.unreachable],
            false => [signs.unreachable, 0],
        };
        Shown {
            accepted: signs.accepted,
            refused: signs.refused + refused,
            streak: signs.streak,
            progressed: signs.progressed,
            missed: signs.resent + stalled + missed,
        }
    }

    fn judge_outliers(&mut self, lead: ServiceId, passive: &Passive, now: Tick) -> bool {
        let Some(service) = self.state.service(lead) else {
            return false;
        };
        let places = self.places(service);
        let of_pool = self.known.outliers.kept.range_mut(of_pool(lead));
        let mut pool: BTreeMap<SocketAddr, &mut Outlier> = of_pool
            .map(|(&(_, address), kept)| (address, &mut kept.outlier))
            .collect();
        let changes = outlier::judge(&mut pool, &places, passive, now);
        for change in &changes {
            self.note_change(lead, change);
        }
        // Of all together: the first that is kept out may leave too few.
        !changes.is_empty() && {
            self.judge(lead);
            let ejected = changes.iter().filter_map(|change| match *change {
                Change::Ejected(address, _) => Some((lead, address)),
                Change::Returned(_) => None,
            });
            self.mark(&ejected.collect::<Vec<Key>>());
            true
        }
    }

    fn note_change(&mut self, lead: ServiceId, change: &Change<SocketAddr>) {
        let (address, why) = match *change {
            Change::Ejected(address, reason) => (address, reason.to_string()),
            Change::Returned(address) => (address, String::new()),
        };
        let key = (lead, address);
        self.chronicle.touch(key);
        if let Some(kept) = self.known.outliers.kept.get_mut(&key) {
            kept.why = why;
            match kept.outlier.ejected {
                Some(_) => self.known.outliers.out.insert(key),
                None => self.known.outliers.out.remove(&key),
            };
        }
    }

    /// How each backend of a pool stands.
    fn places(&self, service: &Service) -> BTreeMap<SocketAddr, Place> {
        let at_least = asked_within(service);
        let place = |backend: &Backend| Place {
            wanted: self.is_eligible((service.id, backend.address), backend),
            takes: false,
            forced: backend.admin == Admin::Up,
            ready: self.is_ready(service, backend),
            at_least,
        };
        let backends = service.backends.iter();
        let places = backends.map(|backend| {
            let place = place(backend);
            let takes = place.wanted && self.is_fit(service, backend);
            (backend.address, Place { takes, ..place })
        });
        places.collect()
    }

    /// Whether the last that its checks have said is that a backend is up.
    fn is_ready(&self, service: &Service, backend: &Backend) -> bool {
        let target = Target {
            service: service.id,
            address: backend.address,
        };
        let down = self.known.down.contains_key(&(service.id, backend.address));
        let checked = self.known.checked.get(&target);
        !down && checked.is_none_or(|checked| checked.condition == Condition::Up)
    }

    /// Lets everybody in of services that look at packets no more.
    pub(super) fn stop_watching(&mut self) {
        let watched: BTreeMap<ServiceId, Passive> = self.watched_pools().into_iter().collect();
        let judged = |lead: &ServiceId| watched.get(lead).is_some_and(|passive| !passive.is_off());
        let outliers = &mut self.known.outliers;
        outliers.kept.retain(|(lead, _), _| judged(lead));
        outliers.out.retain(|(lead, _)| judged(lead));
        outliers
            .sampling
            .retain(|lead, _| watched.contains_key(lead));
        outliers.begun.retain(|lead, _| watched.contains_key(lead));
    }

    /// Whether a backend is kept out.
    pub(super) fn is_ejected(&self, key: Key) -> bool {
        let waits = self.known.outliers.waits(key) && !self.known.damped.spared.contains(&key.0);
        waits && self.admin(key) != Some(Admin::Up)
    }

    /// For how long a backend is kept out at least.
    fn hold_of_outlier(&self, key: Key, outlier: &Outlier) -> Option<Duration> {
        let service = self.state.service(key.0)?;
        Some(outlier.hold(&service.passive).max(asked_within(service)))
    }

    /// Why a backend is kept out, where it is.
    pub(super) fn ejected_for(&self, key: Key) -> Option<String> {
        let kept = self.known.outliers.kept.get(&key)?;
        let hold = self.hold_of_outlier(key, &kept.outlier)?;
        let hold = humantime::format_duration(hold);
        let why = &kept.why;
        self.is_ejected(key)
            .then(|| format!("ejected for {hold}: {why}"))
    }

    /// What packets show of a backend, where they are looked at.
    pub(super) fn passive_status(&self, key: Key) -> Option<PassiveStatus> {
        let kept = self.known.outliers.kept.get(&key)?;
        let counters = kept.counters?;
        let signs = self.dataplane.signs(counters).unwrap_or_default();
        let service = self.state.service(key.0);
        let direct = service.is_some_and(Service::answers_directly);
        let shown = self.shown(counters, &signs, direct);
        let now = self.dataplane.now();
        let hold = ticks(self.hold_of_outlier(key, &kept.outlier)?);
        let left = kept.outlier.ejected.filter(|_| self.is_ejected(key));
        let left = left.map(|since| duration(hold.saturating_sub(now.wrapping_sub(since))));
        let took = signs.nanoseconds.checked_div(signs.progressed);
        Some(PassiveStatus {
            accepted: shown.accepted,
            refused: signs.refused,
            unreachable: signs.unreachable,
            progressed: shown.progressed,
            missed: shown.missed,
            handshake: took.map(Duration::from_nanos),
            ejections: kept.outlier.times,
            left,
        })
    }
}

/// Whether packets are looked at of a service, for whatever reason.
fn is_watched(service: &Service) -> bool {
    !service.passive.is_off() || service.watches_handshakes()
}

/// How long it takes the checks of a service at most to find a backend that fails all of them.
fn asked_within(service: &Service) -> Duration {
    if service.health.is_none() {
        return Duration::ZERO;
    }
    let checks = service.health.checks.iter();
    let times = checks.map(|check| {
        let fails = check.interval.saturating_mul(check.fall);
        fails.saturating_add(check.timeout)
    });
    times.max().unwrap_or_default()
}
