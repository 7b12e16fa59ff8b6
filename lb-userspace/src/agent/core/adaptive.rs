//! Whose weights follow how they fare, what is known of that, and how far a ring may move for it. What a share becomes
//! is [`crate::agent::adaptive`]'s to say.
//!
//! Weights rest while a pool has other things to get over: backends whose weight grows, a panic, or so many slots
//! that are not steady, for whatever reason, that the change would make them too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lb_common::tables::{Tick, state};

use super::{Core, asked, forced::Key, targets::inherit};
use crate::{
    agent::adaptive::{Move, Shares, Signs, TRIES, smaller, smoothed_over},
    dataplane::Dataplane,
    health::Target,
    model::{Adaptive, Backend, Service, ServiceId},
    plan::{self, Placed, has_passed, ticks},
    smooth::Smooth,
    snapshot::{AdaptivePoolStatus, AdaptiveStatus},
};

/// From one count of flows in progress to the next.
const COUNT: Duration = Duration::from_secs(1);

/// What is known of pools whose weights follow how they fare, under their first services.
#[derive(Debug, Clone, Default)]
pub(super) struct Adapting(BTreeMap<ServiceId, Pool>);

#[derive(Debug, Clone, Default)]
struct Pool {
    shares: Shares,
    flows: BTreeMap<SocketAddr, Smooth>,
    /// When it was looked at last, or has begun.
    looked: Tick,
    /// When flows were counted last.
    counted: Tick,
    status: AdaptivePoolStatus,
}

impl Adapting {
    /// The shares of a pool whose weights follow anything.
    pub(super) fn shares(&self, lead: ServiceId) -> Option<&Shares> {
        self.0.get(&lead).map(|pool| &pool.shares)
    }

    /// Pools have another first service now, by `(before, now)`; those that stay keep theirs.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        inherit(&mut self.0, leads, |lead| lead, |_, now| now);
    }
}

impl<D: Dataplane> Core<D> {
    /// Takes up pools whose weights are to follow how they fare, and forgets others.
    pub(super) fn turn_adapting(&mut self) {
        let mut before = std::mem::take(&mut self.adapting.0);
        for service in self.state.services() {
            let lead = service.id;
            let Some(policy) = &service.adaptive else {
                continue;
            };
            if self.state.lead(lead) != lead {
                continue;
            }
            let known = before.remove(&lead);
            let mut pool = known.unwrap_or_else(|| self.find_shares(service, policy));
            let there = |address| service.backend(address).is_some();
            pool.shares.retain(there);
            pool.flows.retain(|&address, _| there(address));
            self.adapting.0.insert(lead, pool);
        }
    }

    /// A pool of which nothing is known yet. What an agent before this one has come to goes on; only ratios can be seen of
    /// it, so that the median has what is configured.
    fn find_shares(&self, service: &Service, policy: &Adaptive) -> Pool {
        let now = self.dataplane.now();
        let mut pool = Pool {
            looked: now,
            counted: now,
            ..Pool::default()
        };
        let Some(placed) = self.layout.placed(service.id).filter(|_| !self.told) else {
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
    /// follow by [`Core::enforce`]. To be called once a second or so.
    pub fn look(&mut self) -> bool {
        let mut changed = false;
        let leads: Vec<ServiceId> = self.adapting.0.keys().copied().collect();
        for lead in leads {
            let Some(mut pool) = self.adapting.0.remove(&lead) else {
                continue;
            };
            if let Some(service) = self.state.service(lead)
                && let Some(policy) = &service.adaptive
            {
                changed |= self.look_at(service, policy, &mut pool);
            }
            self.adapting.0.insert(lead, pool);
        }
        changed
    }

    fn look_at(&self, service: &Service, policy: &Adaptive, pool: &mut Pool) -> bool {
        let now = self.dataplane.now();
        let placed = self.layout.placed(service.id).filter(|_| self.told);
        let Some(placed) = placed else {
            return false;
        };
        if policy.from.flows && has_passed(ticks(COUNT), pool.counted, now) {
            let passed = plan::duration(now.wrapping_sub(pool.counted));
            self.count_flows(placed, passed, policy, &mut pool.flows);
            pool.counted = now;
        }
        if !has_passed(ticks(policy.interval), pool.looked, now) {
            return false;
        }
        pool.looked = now;
        let over = asked::over(service, service.id, &self.asked);
        let mut moves = Vec::new();
        for signs in self.signs(service, &over, policy, &pool.flows).values() {
            moves.extend(pool.shares.look(signs, policy, now));
        }
        pool.status.held = false;
        if moves.is_empty() || self.is_unsettled(service.id) {
            return false;
        }
        match self.affordable(&over, policy, placed, &pool.shares, &moves) {
            Some((moves, shares)) => {
                for one in &moves {
                    let (id, backend) = (service.id, one.backend);
                    tracing::debug!(service = %id, %backend, from = one.from, to = one.to, "share of its weight");
                }
                pool.status.changes += 1;
                pool.shares = shares;
                true
            }
            None => {
                pool.status.held = true;
                pool.status.holds += 1;
                false
            }
        }
    }

    /// Whether a pool is in a state that will not last.
    fn is_unsettled(&self, lead: ServiceId) -> bool {
        self.panics.has(lead) || self.slow.has_any(lead)
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

    /// How the backends that take new flows fare, by tier; `over` is the service as their agents would have it.
    fn signs(
        &self,
        service: &Service,
        over: &Service,
        policy: &Adaptive,
        flows: &BTreeMap<SocketAddr, Smooth>,
    ) -> BTreeMap<u8, BTreeMap<SocketAddr, Signs>> {
        let limited = service.backends.iter().all(|b| b.max_connections.is_some());
        let of = |backend: &Backend| {
            let target = Target {
                service: service.id,
                address: backend.address,
            };
            let checked = self.checked.get(&target);
            let latency = checked.and_then(|checked| checked.smoothed);
            let flows = flows.get(&backend.address).and_then(Smooth::mean);
            let key: Key = (service.id, backend.address);
            let asked = self.asked.get(&key).and_then(|asked| asked.weight);
            let capacity = backend.max_connections.filter(|_| limited);
            Signs {
                latency: latency.filter(|_| policy.from.latency),
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

    /// As much of the moves as leaves enough slots steady, and the shares after them.
    fn affordable(
        &self,
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
            let unsteady = u64::from(plan::unsteady_after(placed, &service));
            (unsteady <= most).then_some((moves, next))
        })
    }

    /// A backend's share, where its weight follows how it fares.
    pub(super) fn adaptive_status(&self, (lead, address): Key) -> Option<AdaptiveStatus> {
        let standing = self.adapting.shares(lead)?.standing(address)?;
        let checked = self.checked.get(&Target {
            service: lead,
            address,
        });
        Some(AdaptiveStatus {
            percent: standing.percent,
            wanted: standing.wanted,
            reversals: standing.reversals,
            latency: checked.and_then(|checked| checked.smoothed),
        })
    }

    /// How a pool's weights have followed so far, where they do.
    pub(super) fn adaptive_pool_status(&self, lead: ServiceId) -> Option<AdaptivePoolStatus> {
        self.adapting.0.get(&lead).map(|pool| pool.status)
    }
}
