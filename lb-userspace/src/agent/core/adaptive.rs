//! Whose weights follow how they fare, what is known of that, and how far a ring may move for it. What a share becomes
//! is [`crate::agent::adaptive`]'s to say.
//!
//! Weights rest while a pool has other things to get over: backends whose weight grows, a panic, or so many slots
//! that are not steady, for whatever reason, that the change would make them too many. Where they are to follow nothing any
//! more, they come back to what is configured in the same way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::tables::{Tick, state};

use super::{
    Core, asked,
    forced::{Key, of_pool},
    outliers::Handshakes,
    targets::inherit,
};
use crate::{
    agent::{
        adaptive::{Move, Shares, Signs, TRIES, smaller, smoothed_over},
        history::ShareOf,
    },
    dataplane::Dataplane,
    health::Target,
    model::{Adaptive, Backend, Service, ServiceId, Signals},
    plan::{self, Placed, has_passed, ticks},
    smooth::{Smooth, Total},
    snapshot::{AdaptivePoolStatus, AdaptiveStatus},
};

/// From one count of flows in progress, and of handshakes, to the next.
const COUNT: Duration = Duration::from_secs(1);

/// What is known of pools whose weights follow how they fare, under their first services.
#[derive(Debug, Clone, Default)]
pub(super) struct Adapting {
    pools: BTreeMap<ServiceId, Pool>,
    /// The pool that was looked at last: the next one's turn comes first.
    last: Option<ServiceId>,
    /// A pool may be due that the last look has left to the next.
    left: bool,
    /// Shares before the last looks, of pools of which the maps have not taken the new ones yet.
    before: BTreeMap<ServiceId, Shares>,
    /// Shares in percent under the agent before this one, until pools are taken up.
    former: BTreeMap<Key, u16>,
}

#[derive(Debug, Clone)]
struct Pool {
    shares: Shares,
    /// How they have come about; from no signals where weights are on their way back to what is configured.
    policy: Adaptive,
    flows: BTreeMap<SocketAddr, Smooth>,
    handshakes: BTreeMap<SocketAddr, Timed>,
    /// When it was looked at last, or has begun.
    looked: Tick,
    /// When flows and handshakes were counted last.
    counted: Tick,
    status: AdaptivePoolStatus,
}

/// How long the handshakes of a backend's clients take.
#[derive(Debug, Clone, Copy)]
struct Timed {
    /// Index of its counters, and what they have shown of handshakes by the last count.
    counters: u32,
    seen: Handshakes,
    /// In seconds, of late.
    total: Total,
}

/// What a look at a pool has come to.
#[derive(Debug)]
enum Looked {
    /// No ring was tried.
    Nothing,
    /// No ring that was tried leaves enough slots steady.
    Held,
    /// Shares are others than these now.
    Changed(Shares),
}

impl Adapting {
    /// The shares of a pool whose weights follow anything.
    pub(super) fn shares(&self, lead: ServiceId) -> Option<&Shares> {
        self.pools.get(&lead).map(|pool| &pool.shares)
    }

    /// Backends that have another share than all.
    pub(super) fn all(&self) -> impl Iterator<Item = ShareOf> {
        let pools = self.pools.iter();
        pools.flat_map(|(&service, pool)| {
            let shares = pool.shares.all().filter(|&(_, percent)| percent != 100);
            shares.map(move |(backend, percent)| ShareOf {
                service,
                backend,
                percent,
            })
        })
    }

    /// Takes up one of these from the agent before this one.
    pub(super) fn take_up(&mut self, key: Key, percent: u16) {
        self.former.insert(key, percent);
    }

    /// The maps have the shares as they are.
    pub(super) fn settle(&mut self) {
        self.before.clear();
    }

    /// The maps have no room for the shares that the last looks came to: they are as before, and their pools held back.
    /// Whether there were any.
    pub(super) fn take_back(&mut self) -> bool {
        let before = std::mem::take(&mut self.before);
        let any = !before.is_empty();
        for (lead, shares) in before {
            if let Some(pool) = self.pools.get_mut(&lead) {
                pool.shares = shares;
                pool.status.changes = pool.status.changes.saturating_sub(1);
                pool.status.held = true;
                pool.status.holds += 1;
            }
        }
        any
    }

    /// Pools have another first service now, by `(before, now)`; those that stay keep theirs.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        inherit(&mut self.pools, leads, |lead| lead, |_, now| now);
    }
}

impl<D: Dataplane> Core<D> {
    /// Takes up pools whose weights are to follow how they fare, and forgets others.
    pub(super) fn turn_adapting(&mut self) {
        let mut before = std::mem::take(&mut self.known.adapting.pools);
        for service in self.state.services() {
            let lead = service.id;
            if self.state.lead(lead) != lead {
                continue;
            }
            let known = before.remove(&lead);
            let Some(policy) = self.policy_of(service, known.as_ref()) else {
                continue;
            };
            let policy = &policy;
            let mut pool = known.unwrap_or_else(|| self.find_shares(service, policy));
            let there = |address| service.backend(address).is_some();
            pool.shares.retain(there);
            pool.flows.retain(|&address, _| there(address));
            pool.handshakes.retain(|&address, _| there(address));
            if pool.policy.from.agent != policy.from.agent {
                self.hand_over(service, policy, &mut pool.shares);
            }
            pool.policy = *policy;
            pool.shares.bound(policy);
            self.known.adapting.pools.insert(lead, pool);
        }
        self.known.adapting.former.clear();
    }

    /// How a pool's weights change, if they do: as its service says, or back to what is configured as it said before.
    fn policy_of(&self, service: &Service, known: Option<&Pool>) -> Option<Adaptive> {
        let returns = || {
            let pool = known?;
            // The maps may not have the last step yet, and have no room for it.
            let returns =
                !pool.shares.are_whole() || self.known.adapting.before.contains_key(&service.id);
            let from = Signals::default();
            returns.then_some(Adaptive {
                from,
                ..pool.policy
            })
        };
        service.adaptive.or_else(returns)
    }

    /// What agents ask for counts within shares from now on, or beside them; either way it counts once, and weights stay
    /// as they are as far as bounds allow.
    fn hand_over(&self, service: &Service, policy: &Adaptive, shares: &mut Shares) {
        let now = self.dataplane.now();
        for backend in &service.backends {
            let asked = self.known.asked.get(&(service.id, backend.address));
            let Some(asked @ 1..) = asked.and_then(|asked| asked.weight) else {
                continue;
            };
            let (share, asked) = (shares.percent(backend.address), f64::from(asked) / 100.0);
            let share = f64::from(share) / 100.0;
            let share = match policy.from.agent {
                true => share * asked,
                false => share / asked,
            };
            shares.find(backend.address, share, policy, now);
        }
    }

    /// A pool of which nothing is known yet. What an agent before this one has come to goes on; only ratios can be seen of
    /// it, so that the median has what is configured.
    fn find_shares(&self, service: &Service, policy: &Adaptive) -> Pool {
        let now = self.dataplane.now();
        let mut pool = Pool {
            shares: Shares::default(),
            policy: *policy,
            flows: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            looked: now,
            counted: now,
            status: AdaptivePoolStatus::default(),
        };
        let former = &self.known.adapting.former;
        let kept: Vec<_> = former.range(of_pool(service.id)).collect();
        if !kept.is_empty() {
            for (&(_, address), &percent) in kept {
                let share = f64::from(percent) / 100.0;
                pool.shares.find(address, share, policy, now);
            }
            return pool;
        }
        // What an agent asked for is part of the weights that are found, and will be asked for again.
        let asks = service.hears_agents() || !service.has_agents();
        let resumes = self.resumes() && asks;
        let Some(placed) = self.layout.placed(service.id).filter(|_| resumes) else {
            return pool;
        };
        let mut found: BTreeMap<u8, Vec<(f64, SocketAddr)>> = BTreeMap::new();
        for (_, member) in placed.members() {
            let backend = service.backend(member.address());
            if let Some(backend) = backend.filter(|backend| backend.weight > 0)
                && member.backend.state & state::TAKES != 0
            {
                let share = f64::from(member.member.weight) / f64::from(backend.weight);
                let tier = found.entry(backend.tier).or_default();
                tier.push((share, backend.address));
            }
        }
        for tier in found.values_mut() {
            tier.sort_by(|a, b| a.0.total_cmp(&b.0));
            let Some(&(median, _)) = tier.get(tier.len() / 2).filter(|(share, _)| *share > 0.0)
            else {
                continue;
            };
            for &(share, address) in &*tier {
                pool.shares.find(address, share / median, policy, now);
            }
        }
        pool
    }

    /// Looks at how backends fare, as often as their services say; true where weights are others now, so that the maps must
    /// follow by [`Core::enforce`]. To be called once a second or so, and again as soon as others had their turn where
    /// [`Core::has_looks_left`]: rings are tried for one pool at a time, which takes long for many.
    pub fn look(&mut self) -> bool {
        let leads: Vec<ServiceId> = self.known.adapting.pools.keys().copied().collect();
        let state = Arc::clone(&self.state);
        let last = self.known.adapting.last;
        let first = leads.partition_point(|&lead| last.is_some_and(|last| lead <= last));
        self.known.adapting.left = false;
        let (earlier, later) = leads.split_at(first);
        for (n, &lead) in later.iter().chain(earlier).enumerate() {
            let Some(mut pool) = self.known.adapting.pools.remove(&lead) else {
                continue;
            };
            let looked = match state.service(lead) {
                Some(service) => self.look_at(service, &mut pool),
                None => Looked::Nothing,
            };
            self.known.adapting.pools.insert(lead, pool);
            let changed = match looked {
                Looked::Nothing => continue,
                Looked::Held => false,
                Looked::Changed(before) => {
                    self.known.adapting.before.entry(lead).or_insert(before);
                    true
                }
            };
            self.known.adapting.last = Some(lead);
            self.known.adapting.left = n + 1 < leads.len();
            return changed;
        }
        false
    }

    /// Whether the last [`Core::look`] has left pools to the next one.
    pub fn has_looks_left(&self) -> bool {
        self.known.adapting.left
    }

    fn look_at(&mut self, service: &Service, pool: &mut Pool) -> Looked {
        let (now, policy) = (self.dataplane.now(), &pool.policy.clone());
        let layout = Arc::clone(&self.layout);
        let placed = layout.placed(service.id).filter(|_| self.told);
        let Some(placed) = placed else {
            return Looked::Nothing;
        };
        if has_passed(ticks(COUNT), pool.counted, now) {
            let passed = plan::duration(now.wrapping_sub(pool.counted));
            if policy.from.flows {
                self.count_flows(placed, passed, policy, &mut pool.flows);
            }
            if policy.from.handshake {
                let over = smoothed_over(policy);
                let took = &mut pool.handshakes;
                self.time_handshakes(service, placed, (passed, over), took);
            }
            pool.counted = now;
        }
        if !has_passed(ticks(policy.interval), pool.looked, now) {
            return Looked::Nothing;
        }
        pool.looked = now;
        let over = asked::over(service, service.id, &self.known.asked);
        let mut moves = Vec::new();
        if policy.from == Signals::default() {
            moves = pool.shares.give_back();
        } else {
            for signs in self.signs(service, &over, policy, pool).values() {
                moves.extend(pool.shares.look(signs, policy, now));
            }
        }
        pool.status.held = false;
        if moves.is_empty() || self.is_unsettled(service.id) {
            return Looked::Nothing;
        }
        match self.affordable(&over, policy, placed, &pool.shares, &moves) {
            Some((moves, shares)) => {
                for one in &moves {
                    let (id, backend) = (service.id, one.backend);
                    tracing::debug!(service = %id, %backend, from = one.from, to = one.to, "share of its weight");
                }
                pool.status.changes += 1;
                Looked::Changed(std::mem::replace(&mut pool.shares, shares))
            }
            None => {
                pool.status.held = true;
                pool.status.holds += 1;
                Looked::Held
            }
        }
    }

    /// Whether a pool is in a state that will not last.
    fn is_unsettled(&self, lead: ServiceId) -> bool {
        self.known.panics.has(lead) || self.known.slow.has_any(lead)
    }

    /// Flows in progress, as they are on average.
    fn count_flows(
        &self,
        placed: &Placed,
        passed: Duration,
        policy: &Adaptive,
        flows: &mut BTreeMap<SocketAddr, Smooth>,
    ) {
        for (_, member) in placed.members() {
            match self.dataplane.load(member.backend.counters) {
                Ok(count) => {
                    let smooth = flows.entry(member.address()).or_default();
                    smooth.add(count.into(), passed, smoothed_over(policy));
                }
                Err(error) => tracing::error!(%error, "no flows in progress"),
            }
        }
    }

    /// How long handshakes have taken since the last time. One that was not answered has taken as long as it was given.
    fn time_handshakes(
        &self,
        service: &Service,
        placed: &Placed,
        (passed, over): (Duration, Duration),
        took: &mut BTreeMap<SocketAddr, Timed>,
    ) {
        let (patience, direct) = (service.passive.handshake, service.answers_directly());
        for (_, member) in placed.members() {
            let counters = member.backend.counters;
            let seen = match self.handshakes(counters, direct) {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::error!(%error, "no times of handshakes");
                    continue;
                }
            };
            // What was shown before it was first looked at counts for nothing.
            let new = Timed {
                counters,
                seen,
                total: Total::default(),
            };
            let timed = took.entry(member.address()).or_insert(new);
            if timed.counters != counters {
                *timed = new;
            }
            let news = seen.since(timed.seen);
            let seconds = news.took.as_secs_f64() + news.missed as f64 * patience.as_secs_f64();
            let samples = (news.progressed + news.missed) as f64;
            timed.total.add(samples, seconds, passed, over);
            timed.seen = seen;
        }
    }

    /// How the backends that take new flows fare, by tier; `over` is the service as their agents would have it.
    fn signs(
        &self,
        service: &Service,
        over: &Service,
        policy: &Adaptive,
        pool: &Pool,
    ) -> BTreeMap<u8, BTreeMap<SocketAddr, Signs>> {
        let limited = service.backends.iter().all(|b| b.max_connections.is_some());
        let of = |backend: &Backend| {
            let target = Target {
                service: service.id,
                address: backend.address,
            };
            let checked = self.known.checked.get(&target);
            let latency = checked.and_then(|checked| checked.smoothed);
            let flows = pool.flows.get(&backend.address).and_then(Smooth::mean);
            let timed = pool.handshakes.get(&backend.address);
            let key: Key = (service.id, backend.address);
            let asked = self.known.asked.get(&key).and_then(|asked| asked.weight);
            let capacity = backend.max_connections.filter(|_| limited);
            Signs {
                latency: latency.filter(|_| policy.from.latency),
                handshakes: timed
                    .map(|timed| timed.total)
                    .filter(|_| policy.from.handshake),
                flows: flows.filter(|_| policy.from.flows),
                capacity: capacity.map_or(f64::from(backend.weight), f64::from),
                asked: policy.from.agent.then(|| asked.unwrap_or(100)),
            }
        };
        let mut signs: BTreeMap<u8, BTreeMap<SocketAddr, Signs>> = BTreeMap::new();
        for (backend, now) in service.backends.iter().zip(&over.backends) {
            let stands_by = self.stands_by(service, backend.tier).is_some();
            if self.is_fit(service, now) && !stands_by {
                let tier = signs.entry(backend.tier).or_default();
                tier.insert(backend.address, of(backend));
            }
        }
        signs
    }

    /// As much of the moves as leaves enough slots steady, and the shares after them. Takes in news while rings are tried.
    fn affordable(
        &mut self,
        over: &Service,
        policy: &Adaptive,
        placed: &Placed,
        shares: &Shares,
        moves: &[Move],
    ) -> Option<(Vec<Move>, Shares)> {
        let size = u64::from(placed.ring.size());
        let most = size * u64::from(policy.unsteady) / 100;
        if u64::from(plan::unsteady(placed)) >= most {
            return None;
        }
        let now = self.dataplane.now();
        TRIES.into_iter().find_map(|attempt| {
            let moves = smaller(moves, attempt);
            if moves.is_empty() {
                return None;
            }
            let mut next = shares.clone();
            next.make(&moves, now);
            let service = self.laid_over_with(over, &next);
            let unsteady = self.beside("ring", || plan::unsteady_after(placed, &service));
            (u64::from(unsteady) <= most).then_some((moves, next))
        })
    }

    /// A backend's share, where its weight follows how it fares.
    pub(super) fn adaptive_status(&self, (lead, address): Key) -> Option<AdaptiveStatus> {
        let pool = self.known.adapting.pools.get(&lead)?;
        let standing = pool.shares.standing(address)?;
        let timed = pool.handshakes.get(&address);
        let handshake = timed.and_then(|timed| timed.total.mean());
        let checked = self.known.checked.get(&Target {
            service: lead,
            address,
        });
        Some(AdaptiveStatus {
            percent: standing.percent,
            wanted: standing.wanted,
            reversals: standing.reversals,
            latency: checked.and_then(|checked| checked.smoothed),
            handshake: handshake.map(Duration::from_secs_f64),
        })
    }

    /// How a pool's weights have followed so far, where they do.
    pub(super) fn adaptive_pool_status(&self, lead: ServiceId) -> Option<AdaptivePoolStatus> {
        self.known.adapting.pools.get(&lead).map(|pool| pool.status)
    }
}
