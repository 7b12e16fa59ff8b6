//! Which tiers of a pool get which share of its new flows. A pure state machine: health and time come in,
//! shares come out. It knows nothing of backends, rings or maps.
//!
//! A tier carries its flows as long as enough of its weight is healthy (`spill_below`). Below that it keeps
//! what it can carry, and the rest goes to the next: with 70, a tier of which 35% are healthy keeps half
//! of the flows. That is Envoy's overprovisioning factor, 1 / 0.7 ≈ 1.4, said from the side that operators
//! think of; 0 is HAProxy's `backup`: the next tier is for when nobody is left.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use lb_common::tables::Tick;

use crate::{
    model::Failback,
    plan::{has_passed, ticks},
};

/// All new flows of a pool.
pub const WHOLE: u16 = 1_000;

/// The weight of a tier's backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weight {
    /// Of all.
    pub all: u64,
    /// Of those that can take new flows, as far as it has grown.
    pub healthy: u64,
    /// The same, as much as there will be once it has: what has yet to grow is not missing.
    pub able: u64,
}

impl Weight {
    /// The share of all flows that it will be able to carry, likewise.
    fn will_carry(self, spill_below: u8) -> u16 {
        let healthy = self.able;
        Self { healthy, ..self }.carries(spill_below)
    }

    /// The share of all flows that it can carry, of [`WHOLE`].
    fn carries(self, spill_below: u8) -> u16 {
        if self.healthy == 0 {
            return 0;
        }
        let enough = self.all * u64::from(spill_below);
        let carries = (self.healthy * 100 * u64::from(WHOLE)).checked_div(enough);
        let carries = carries.map_or(WHOLE, |share| share.clamp(1, WHOLE.into()) as u16);
        carries.min(WHOLE)
    }
}

/// What a service says of its tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// [`crate::model::Service::spill_below`].
    pub spill_below: u8,
    /// [`crate::model::Service::failback`].
    pub failback: Failback,
    /// [`crate::model::Service::from_tier`].
    pub from: u8,
}

/// Shares of new flows by tier, which sum up to [`WHOLE`]; all are 0 where nobody can take any.
pub type Shares = BTreeMap<u8, u16>;

/// A tier that could not carry its flows, and has not got them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// What it may have at most.
    most: u16,
    /// Since when it could carry more, without a break.
    better: Option<Tick>,
}

/// The memory of a pool's tiers: what waits for its failback.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    held: BTreeMap<u8, Held>,
}

impl Machine {
    /// Gives everything back at the next turn.
    pub fn release(&mut self) {
        self.held.clear();
    }

    /// The tiers that wait, what each may have at most, and since when it could carry more.
    pub fn held(&self) -> impl Iterator<Item = (u8, u16, Option<Tick>)> {
        let all = self.held.iter();
        all.map(|(&tier, held)| (tier, held.most, held.better))
    }

    /// Takes up one of these.
    pub fn hold_back(&mut self, tier: u8, most: u16, better: Option<Tick>) {
        let most = most.min(WHOLE);
        self.held.insert(tier, Held { most, better });
    }

    /// Whether a tier could carry more than it is given, and waits.
    pub fn waits(&self, tier: u8) -> bool {
        let held = self.held.get(&tier);
        held.is_some_and(|held| held.better.is_some())
    }

    /// Whether a tier's time of waiting is over, so that shares change though health does not.
    pub fn is_due(&self, failback: Failback, now: Tick) -> bool {
        let mut held = self.held.values();
        held.any(|held| held.is_over(failback, now))
    }

    /// The shares of tiers of these weights.
    pub fn turn(&mut self, weights: &BTreeMap<u8, Weight>, policy: Policy, now: Tick) -> Shares {
        let carries: BTreeMap<u8, u16> = weights
            .iter()
            .map(|(&tier, weight)| (tier, weight.carries(policy.spill_below)))
            .collect();
        let able: BTreeMap<u8, u16> = weights
            .iter()
            .map(|(&tier, weight)| (tier, weight.will_carry(policy.spill_below)))
            .collect();
        self.give_back(&able, policy.failback, now);
        let most = |tier: u8| self.held.get(&tier).map_or(WHOLE, |held| held.most);
        let mut shares = fill(&carries, policy.from, most);
        // Better those that are to wait than too few, and better those who were taken away by hand than
        // nobody.
        if sum(&shares) < WHOLE {
            shares = fill_up(shares, &carries, policy.from);
        }
        if sum(&shares) == 0 {
            shares = fill(&carries, 0, |_| WHOLE);
        }
        self.hold(&able, &shares, policy);
        level(&mut shares);
        shares
    }

    /// Forgets all tiers but these.
    pub fn retain(&mut self, tiers: &[u8]) {
        self.held.retain(|tier, _| tiers.contains(tier));
    }

    /// A tier of which nothing is known, since it has none but new backends, waits all the same.
    fn give_back(&mut self, able: &BTreeMap<u8, u16>, failback: Failback, now: Tick) {
        for (tier, held) in &mut self.held {
            let more = able.get(tier).is_some_and(|&able| able > held.most);
            held.better = more.then(|| held.better.unwrap_or(now));
        }
        self.held.retain(|_, held| !held.is_over(failback, now));
    }

    /// What a tier had to leave to those after it, it does not get back by itself: as long as one of those
    /// has any of it. What it was given all the same, it keeps.
    fn hold(&mut self, able: &BTreeMap<u8, u16>, shares: &Shares, policy: Policy) {
        if policy.failback == Failback::Automatic {
            return self.held.clear();
        }
        for (&tier, &share) in shares {
            let able = able.get(&tier).copied().unwrap_or(0);
            let left_to_others = shares
                .range((Excluded(tier), Unbounded))
                .any(|(_, &share)| share > 0);
            if !left_to_others {
                self.held.remove(&tier);
            } else if let Some(held) = self.held.get_mut(&tier) {
                held.most = held.most.min(able).max(share);
            } else if tier >= policy.from && able < WHOLE {
                let new = Held {
                    most: able,
                    better: None,
                };
                self.held.insert(tier, new);
            }
        }
    }
}

impl Held {
    fn is_over(&self, failback: Failback, now: Tick) -> bool {
        match failback {
            Failback::Automatic => true,
            Failback::Manual => false,
            Failback::After(time) => self
                .better
                .is_some_and(|since| has_passed(ticks(time), since, now)),
        }
    }
}

/// Each tier in turn, from `from` on, takes what it can and may of what is left.
fn fill(carries: &BTreeMap<u8, u16>, from: u8, most: impl Fn(u8) -> u16) -> Shares {
    let mut left = WHOLE;
    let take = |(&tier, &carries): (&u8, &u16)| {
        let may = if tier < from { 0 } else { most(tier) };
        let share = carries.min(may).min(left);
        left -= share;
        (tier, share)
    };
    carries.iter().map(take).collect()
}

/// What is left goes to tiers that could carry more than they have, each in turn.
fn fill_up(mut shares: Shares, carries: &BTreeMap<u8, u16>, from: u8) -> Shares {
    let mut left = WHOLE - sum(&shares);
    for (tier, share) in shares.range_mut(from..) {
        let carries = carries.get(tier).copied().unwrap_or(0);
        let more = carries.saturating_sub(*share).min(left);
        *share += more;
        left -= more;
    }
    shares
}

fn sum(shares: &Shares) -> u16 {
    shares.values().sum()
}

/// What nobody can carry is everybody's, in proportion.
fn level(shares: &mut Shares) {
    let sum = u32::from(sum(shares));
    if sum == 0 || sum == u32::from(WHOLE) {
        return;
    }
    let mut left = WHOLE;
    let mut last = None;
    for (&tier, share) in shares.iter_mut().filter(|(_, share)| **share > 0) {
        let part = u32::from(*share) * u32::from(WHOLE) / sum;
        *share = u16::try_from(part).unwrap_or(WHOLE).min(left);
        left -= *share;
        last = Some(tier);
    }
    if let Some(share) = last.and_then(|tier| shares.get_mut(&tier)) {
        *share += left;
    }
}

#[cfg(test)]
#[path = "tiers_tests.rs"]
mod tests;
