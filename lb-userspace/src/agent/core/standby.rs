//! Lays what agents ask for and what the tiers' state machines decide over what is wanted, so that the plan
//! sees which backends are to take new flows now, and with which weights.
//!
//! Backends of a tier without a share take no new flows and keep those that they have, as drained ones do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::tables::{Tick, state};

use super::{Core, asked, forced::Key, targets::inherit};
use crate::{
    agent::tiers::{Machine, Policy, Shares, Weight},
    dataplane::Dataplane,
    model::{Admin, Backend, Service, ServiceId, State},
    plan::Placed,
    snapshot::TierStatus,
};

/// Weights are brought up to this where tiers share flows, so that their ratio is that of their shares.
const FINEST: u64 = 1_000;

/// The tiers of every pool that has more than one, under its first service.
#[derive(Debug, Clone, Default)]
pub(super) struct Tiers {
    machines: BTreeMap<ServiceId, Machine>,
    shares: BTreeMap<ServiceId, Shares>,
}

impl Tiers {
    /// Forgets what waits for its failback.
    pub(super) fn release(&mut self, lead: ServiceId) {
        if let Some(machine) = self.machines.get_mut(&lead) {
            machine.release();
        }
    }

    /// The shares of a pool's tiers, where it has several and any can take flows: where nobody can, whoever recovers is
    /// asked first.
    pub(super) fn shares(&self, lead: ServiceId) -> Option<&Shares> {
        let shares = self.shares.get(&lead)?;
        shares.values().any(|&share| share > 0).then_some(shares)
    }

    /// The tiers of each pool that wait for their failback, as [`Machine::held`].
    pub(super) fn held(&self) -> impl Iterator<Item = (ServiceId, u8, u16, Option<Tick>)> {
        let pools = self.machines.iter();
        pools.flat_map(|(&lead, machine)| {
            let held = machine.held();
            held.map(move |(tier, most, better)| (lead, tier, most, better))
        })
    }

    /// Takes up one of these from the agent before this one.
    pub(super) fn take_up(&mut self, lead: ServiceId, tier: u8, most: u16, better: Option<Tick>) {
        let machine = self.machines.entry(lead).or_default();
        machine.hold_back(tier, most, better);
    }

    /// Pools have another first service now, by `(before, now)`; those that stay keep theirs.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        inherit(&mut self.machines, leads, |lead| lead, |_, now| now);
        inherit(&mut self.shares, leads, |lead| lead, |_, now| now);
    }
}

impl<D: Dataplane> Core<D> {
    /// Has everything laid over the state anew, as it and health are now. Takes in news meanwhile: each part looks through all
    /// services.
    pub(super) fn adapt(&mut self) {
        let asked = asked::lay_over(&self.state, &self.known.asked);
        self.hear_meanwhile();
        self.stop_damping();
        self.stop_watching();
        self.hear_meanwhile();
        self.judge_all();
        self.hear_meanwhile();
        self.turn_ramps(asked.as_ref());
        self.hear_meanwhile();
        self.turn_adapting();
        self.hear_meanwhile();
        self.turn_tiers(asked.as_ref());
        self.hear_meanwhile();
        let weighed = self.lay_weights_over(asked.as_ref().unwrap_or(&self.state));
        let weighed = weighed.or(asked);
        let tiers = self.lay_tiers_over(weighed.as_ref().unwrap_or(&self.state));
        self.adapted = tiers.or(weighed).map(Arc::new);
    }

    /// Whether a tier has waited long enough for its failback.
    pub(super) fn failback_is_due(&self) -> bool {
        let now = self.dataplane.now();
        let mut machines = self.known.tiers.machines.iter();
        machines.any(|(&lead, machine)| {
            let service = self.state.service(lead);
            service.is_some_and(|service| machine.is_due(service.failback, now))
        })
    }

    fn turn_tiers(&mut self, asked: Option<&State>) {
        let mut before = std::mem::take(&mut self.known.tiers);
        let now = self.dataplane.now();
        let (mut after, mut news) = (Tiers::default(), Vec::new());
        for service in self.state.services() {
            let lead = service.id;
            if self.state.lead(lead) != lead || !has_tiers(service) {
                continue;
            }
            let over = asked.and_then(|asked| asked.service(lead));
            let weights = self.weights(service, over.unwrap_or(service));
            let policy = Policy {
                spill_below: service.spill_below,
                failback: service.failback,
                from: service.from_tier,
            };
            let mut machine = before.machines.remove(&lead).unwrap_or_default();
            machine.retain(&service.tiers());
            let shares = machine.turn(&weights, policy, now);
            let shares = self.known.panics.shares(lead).cloned().unwrap_or(shares);
            news.push((lead, before.shares.remove(&lead), shares.clone()));
            after.machines.insert(lead, machine);
            after.shares.insert(lead, shares);
        }
        self.known.tiers = after;
        for (lead, before, after) in news {
            self.chronicle.note_shares(lead, before.as_ref(), &after);
        }
    }

    /// Whether a backend's tier gets no new flows, while another does, or it is not known yet which one does.
    pub(super) fn is_idle(&self, (lead, address): Key) -> bool {
        let Some(service) = self.state.service(lead) else {
            return false;
        };
        let tier = service.backend(address).map(|backend| backend.tier);
        let Some((tier, shares)) = tier.zip(self.known.tiers.shares.get(&lead)) else {
            return has_tiers(service);
        };
        let has_none = shares.get(&tier).is_none_or(|&share| share == 0);
        has_none && shares.values().any(|&share| share > 0)
    }

    /// Why a tier gets no new flows, where it gets none.
    pub(super) fn stands_by(&self, service: &Service, tier: u8) -> Option<String> {
        let shares = self.known.tiers.shares.get(&service.id)?;
        if shares.get(&tier).is_none_or(|&share| share > 0) {
            return None;
        }
        let machine = self.known.tiers.machines.get(&service.id);
        Some(if tier < service.from_tier {
            format!("failed over to tier {} by hand", service.from_tier)
        } else if machine.is_some_and(|machine| machine.waits(tier)) {
            format!("tier {tier} waits for its failback")
        } else {
            format!("tier {tier} is not needed")
        })
    }

    /// What each tier of a service weighs, and how much of it can take new flows, which is as much as has grown of
    /// those that start slowly; `over` is the service as its backends' agents would have it.
    fn weights(&self, service: &Service, over: &Service) -> BTreeMap<u8, Weight> {
        let mut weights: BTreeMap<u8, Weight> = BTreeMap::new();
        for (backend, now) in service.backends.iter().zip(&over.backends) {
            let key = (service.id, backend.address);
            // Who has just been added is not missed yet.
            if self.is_unproven(key) {
                continue;
            }
            let asked = self.known.asked.get(&key);
            let percent = asked.and_then(|asked| asked::percent(asked, backend));
            let percent = percent.unwrap_or(100).min(100);
            let own = service.counted_weight(backend);
            let weight = weights.entry(backend.tier).or_default();
            let counted = u64::from(self.known.slow.counted(key));
            weight.all += own * 100 * counted;
            if self.is_healthy(service, now) {
                let grown = u64::from(self.known.slow.percent(key));
                weight.healthy += own * u64::from(percent) * grown;
                weight.able += own * u64::from(percent) * counted;
            }
        }
        weights
    }

    /// Whether a backend could take new flows, its tier left aside: nobody keeps it out, and a way leads there.
    pub(super) fn is_fit(&self, service: &Service, backend: &Backend) -> bool {
        let lead = self.state.lead(service.id);
        let key = (lead, backend.address);
        backend.is_wanted()
            && self.liveness_with(key, || Some(backend.admin)).is_none()
            && self.unusable(service, backend.address).is_none()
    }

    /// The same, where nobody is used against what its checks say.
    fn is_healthy(&self, service: &Service, backend: &Backend) -> bool {
        let lead = self.state.lead(service.id);
        self.is_fit(service, backend) && !self.known.panics.uses((lead, backend.address))
    }

    /// Whether a backend takes no new flows since its agent wants none. Who is forced up is so against the word of that, too.
    pub(super) fn is_declined(&self, key: Key, backend: &Backend) -> bool {
        let asked = self.known.asked.get(&key);
        asked.is_some_and(|asked| asked::declines(asked, backend))
    }

    fn lay_tiers_over(&self, state: &State) -> Option<State> {
        let mut services: BTreeMap<ServiceId, Service> = BTreeMap::new();
        for service in state.services() {
            let shares = self.known.tiers.shares(state.lead(service.id));
            if let Some(shares) = shares {
                let fit = |backend: &Backend| self.is_fit(service, backend);
                let mut over = service.clone();
                share_out(&mut over, shares, fit);
                services.insert(service.id, over);
            }
        }
        (!services.is_empty()).then(|| state.overlaid(services.into_values()))
    }

    /// A service's tiers, where it has more than one.
    pub(super) fn tier_status(&self, service: &Service) -> Vec<TierStatus> {
        let lead = self.state.lead(service.id);
        let Some(shares) = self.known.tiers.shares.get(&lead) else {
            return Vec::new();
        };
        let machine = self.known.tiers.machines.get(&lead);
        let status = |(&number, &share)| {
            let backends = service.backends.iter().filter(|b| b.tier == number);
            let fit = |b: &&Backend| {
                self.is_healthy(service, b) && !self.is_declined((lead, b.address), b)
            };
            TierStatus {
                number,
                backends: backends.clone().count(),
                healthy: backends.filter(fit).count(),
                share,
                waits: machine.is_some_and(|machine| machine.waits(number)),
            }
        };
        shares.iter().map(status).collect()
    }
}

fn has_tiers(service: &Service) -> bool {
    let mut tiers = service.backends.iter().map(|backend| backend.tier);
    let first = tiers.next();
    tiers.any(|tier| Some(tier) != first)
}

/// Makes of shares what the plan knows: who takes new flows, and with which weight.
pub(super) fn share_out(service: &mut Service, shares: &Shares, fit: impl Fn(&Backend) -> bool) {
    let share = |tier| u64::from(shares.get(&tier).copied().unwrap_or(0));
    let several = shares.values().filter(|&&share| share > 0).count() > 1;
    if several && !service.scheduler.ignores_weights() {
        let mut healthy: BTreeMap<u8, u64> = BTreeMap::new();
        for backend in service.backends.iter().filter(|backend| fit(backend)) {
            *healthy.entry(backend.tier).or_default() += u64::from(backend.weight);
        }
        // In parts of a common whole; rounded once, when all are known.
        let part = |b: &Backend| {
            let all = healthy.get(&b.tier).copied().unwrap_or(0);
            ((u64::from(b.weight) * share(b.tier)) << 20).checked_div(all)
        };
        let parts: Vec<u64> = service
            .backends
            .iter()
            .map(|b| part(b).unwrap_or(0))
            .collect();
        let largest = parts.iter().copied().max().unwrap_or(0).max(1);
        for (backend, part) in service.backends.iter_mut().zip(parts) {
            let weight = (part * FINEST).div_ceil(largest);
            let least = u64::from(backend.weight > 0);
            backend.weight = u16::try_from(weight.max(least)).unwrap_or(u16::MAX);
        }
    }
    for backend in &mut service.backends {
        if share(backend.tier) == 0 && backend.is_wanted() {
            backend.admin = Admin::Draining;
        }
    }
}

/// The tiers behind those that take new flows, in the maps: they were not asked, which says nothing of their
/// backends.
pub(super) fn spare(service: &Service, placed: &Placed) -> BTreeSet<u8> {
    let backends = service.backends.iter();
    let tiers: HashMap<SocketAddr, u8> = backends.map(|b| (b.address, b.tier)).collect();
    let taking = placed
        .members()
        .filter(|(_, member)| member.backend.state & state::TAKES != 0)
        .filter_map(|(_, member)| tiers.get(&member.address()).copied());
    let Some(last) = taking.max() else {
        return BTreeSet::new();
    };
    let tiers = service.tiers().into_iter();
    tiers
        .filter(|&tier| tier > last || tier < service.from_tier)
        .collect()
}
