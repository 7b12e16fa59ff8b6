//! Which pools are in panic, and who is used there although its checks fail ([`crate::agent::panic`]).
//!
//! Before a pool panics, it lets those in who are kept out for having failed too often ([`super::damping`]) or for
//! what packets show ([`super::outliers`]), and whose checks pass; and so does any pool of which nobody else is healthy.
//!
//! Never used are those that somebody keeps out (drain, maintenance, down by hand, weight 0, an agent that asks for
//! it), and those whose own port refuses, whose host is not there or to which no way leads: a flow that goes there is
//! lost for certain.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{Core, forced::Key};
use crate::{
    agent::{
        panic::{self, Healthy},
        tiers::{Shares, Weight},
    },
    dataplane::Dataplane,
    model::{Admin, Backend, Service, ServiceId},
    snapshot::PanicStatus,
};

/// A pool in panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Panic {
    healthy: Healthy,
    /// Who takes new flows against what its checks say.
    used: BTreeSet<SocketAddr>,
    shares: Shares,
}

/// Pools in panic, under their first services.
#[derive(Debug, Clone, Default)]
pub(super) struct Panics(BTreeMap<ServiceId, Panic>);

impl Panics {
    /// Whether a backend takes new flows against what its checks say.
    pub(super) fn uses(&self, (lead, address): Key) -> bool {
        self.0
            .get(&lead)
            .is_some_and(|panic| panic.used.contains(&address))
    }

    /// Whether a pool is in panic.
    pub(super) fn has(&self, lead: ServiceId) -> bool {
        self.0.contains_key(&lead)
    }

    /// The tiers' shares of a pool in panic.
    pub(super) fn shares(&self, lead: ServiceId) -> Option<&Shares> {
        self.0.get(&lead).map(|panic| &panic.shares)
    }

    /// How a pool in panic stands.
    pub(super) fn status(&self, lead: ServiceId) -> Option<PanicStatus> {
        let panic = self.0.get(&lead)?;
        Some(PanicStatus {
            healthy_percent: panic.healthy.percent(),
            used: panic.used.len(),
        })
    }

    /// Pools have another first service now, by `(before, now)`.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        super::targets::inherit(&mut self.0, leads, |lead| lead, |_, now| now);
    }
}

impl<D: Dataplane> Core<D> {
    /// Judges every pool anew.
    pub(super) fn judge_all(&mut self) {
        let services = self.state.services();
        let firsts = services.filter(|service| self.state.lead(service.id) == service.id);
        let may = firsts
            .filter(|s| s.panic_below > 0 || self.known.panics.has(s.id) || self.keeps_out(s.id));
        let leads: BTreeSet<_> = may.map(|service| service.id).collect();
        self.known.panics.0.retain(|lead, _| leads.contains(lead));
        self.known.damped.spared.retain(|lead| leads.contains(lead));
        for lead in leads {
            self.judge(lead);
        }
    }

    /// Judges a pool by what is known now; whether other backends are used than before.
    pub(super) fn judge(&mut self, lead: ServiceId) -> bool {
        let Some(service) = self.state.service(lead) else {
            return false;
        };
        let below = service.panic_below;
        let spared = self.known.damped.spared.contains(&lead);
        if below == 0 && !self.known.panics.has(lead) && !self.keeps_out(lead) && !spared {
            return false;
        }
        let (spares, after) = self.verdict(service);
        let spared = match spares {
            true => self.known.damped.spared.insert(lead),
            false => self.known.damped.spared.remove(&lead),
        };
        if spared {
            self.chronicle.touch_all();
        }
        let before = match after {
            Some(after) => self.known.panics.0.insert(lead, after),
            None => self.known.panics.0.remove(&lead),
        };
        if let Some(before) = &before {
            self.leave(lead, &before.used);
        }
        match (&before, self.known.panics.0.get(&lead)) {
            (None, Some(panic)) => {
                let (healthy, used) = (panic.healthy.percent(), panic.used.len());
                let text = format!(
                    "panic: {healthy}% of the weight is healthy, below {below}%: {used} backends that are down are used as well"
                );
                self.chronicle.note_panic(lead, text);
                true
            }
            (Some(_), None) => {
                let text = "panic is over: backends that are down are used no more".to_owned();
                self.chronicle.note_panic(lead, text);
                true
            }
            _ => spared,
        }
    }

    /// Whether anybody of a pool would be kept out although its checks pass.
    fn keeps_out(&self, lead: ServiceId) -> bool {
        self.known.damped.has(lead) || self.known.outliers.has(lead)
    }

    /// Whether nobody is kept out of a pool for having failed too often or for what packets show, and its panic.
    fn verdict(&self, service: &Service) -> (bool, Option<Panic>) {
        let below = service.panic_below;
        let (weights, _) = self.weigh(service, false);
        let healthy = panic::healthy(&weights, service.from_tier);
        let suffices = |healthy: Healthy| healthy.parts > 0 && !healthy.is_below(below);
        if healthy.is_none_or(suffices) {
            return (false, None);
        }
        let (weights, mut down) = self.weigh(service, true);
        let healthy = panic::healthy(&weights, service.from_tier);
        let panic = healthy.filter(|healthy| healthy.is_below(below));
        let panic = panic.map(|healthy| Panic {
            healthy,
            used: down
                .split_off(&healthy.from)
                .into_values()
                .flatten()
                .collect(),
            shares: panic::shares(&weights, healthy.from),
        });
        let panic = panic.filter(|panic| !panic.used.is_empty());
        (self.keeps_out(service.id), panic)
    }

    /// The weights of a pool's tiers, with those who wait for having failed too often or without, and who of each is
    /// down and could be used all the same.
    fn weigh(
        &self,
        service: &Service,
        with_held: bool,
    ) -> (BTreeMap<u8, Weight>, BTreeMap<u8, Vec<SocketAddr>>) {
        let mut weights: BTreeMap<u8, Weight> = BTreeMap::new();
        let mut used: BTreeMap<u8, Vec<SocketAddr>> = BTreeMap::new();
        for backend in &service.backends {
            let key = (service.id, backend.address);
            // Who has just been added is not missed yet.
            if !self.is_eligible(key, backend) || self.is_unproven(key) {
                continue;
            }
            let weight = weights.entry(backend.tier).or_default();
            let own = service.counted_weight(backend);
            weight.all += own;
            match self
                .known
                .down
                .get(&key)
                .filter(|_| backend.admin != Admin::Up)
            {
                Some(down) if down.gone => {}
                _ if self.unusable(service, backend.address).is_some() => {}
                Some(_) => used.entry(backend.tier).or_default().push(backend.address),
                None if with_held
                    || !(self.known.damped.waits(key) || self.known.outliers.waits(key)) =>
                {
                    weight.healthy += own;
                }
                None => {}
            }
        }
        (weights, used)
    }

    /// Whether nobody keeps a backend out, neither people nor its agent.
    pub(super) fn is_eligible(&self, key: Key, backend: &Backend) -> bool {
        backend.is_wanted() && !self.is_declined(key, backend)
    }

    /// Those who were used and are no more are down as of now: what they were given meanwhile is theirs for as long
    /// as that of anybody who goes down.
    fn leave(&mut self, lead: ServiceId, used: &BTreeSet<SocketAddr>) {
        let now = self.dataplane.now();
        for &address in used {
            if self.known.panics.uses((lead, address)) {
                continue;
            }
            if let Some(down) = self.known.down.get_mut(&(lead, address)) {
                (down.since, down.dead) = (now, down.gone);
            }
        }
    }
}
