//! Whether so few of a pool are healthy that those which are not are better used as well. Pure: weights come in.
//!
//! When most of a pool fails its checks at once, the checks or what they have in common may be what fails, and a few
//! healthy backends that get everybody's flows fail next. Envoy calls it panic, and begins it per priority, once all
//! of those together cannot carry the flows. Here tiers are added up: as long as what is healthy of all of them comes to
//! the given percent of a whole tier, spilling over is enough.

use std::collections::BTreeMap;

use super::tiers::{Shares, WHOLE, Weight};

/// What is healthy of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Healthy {
    /// Of a tier's weight, the tiers added up, in hundredths of percent.
    pub parts: u64,
    /// The first tier that counts.
    pub from: u8,
}

impl Healthy {
    /// Whether that is less than `percent`.
    pub fn is_below(self, percent: u8) -> bool {
        self.parts < u64::from(percent) * 100
    }

    /// In whole percent of one tier.
    pub fn percent(self) -> u8 {
        (self.parts / 100).min(100) as u8
    }
}

/// What is healthy of tiers of these weights, from `from` on; of all where that is nothing, since those before are then
/// used anyway. Nothing where nobody is to take flows.
pub fn healthy(weights: &BTreeMap<u8, Weight>, from: u8) -> Option<Healthy> {
    let part = |weight: &Weight| (weight.healthy * 10_000).checked_div(weight.all);
    let sum = |from| {
        let parts = weights.range(from..).filter_map(|(_, weight)| part(weight));
        parts.reduce(|sum, part| sum + part)
    };
    let of = |from| {
        let parts = sum(from)?;
        Some(Healthy { parts, from })
    };
    of(from)
        .filter(|healthy| healthy.parts > 0)
        .or_else(|| of(0))
}

/// The shares of tiers when everybody is used: by weight, whatever the order of the tiers.
pub fn shares(weights: &BTreeMap<u8, Weight>, from: u8) -> Shares {
    let of = |tier: u8, weight: &Weight| if tier < from { 0 } else { weight.all };
    let all: u64 = weights.iter().map(|(&tier, weight)| of(tier, weight)).sum();
    let share = |(&tier, weight): (&u8, &Weight)| {
        let weight = of(tier, weight);
        let share = (weight * u64::from(WHOLE)).checked_div(all);
        let least = u16::from(weight > 0);
        (
            tier,
            u16::try_from(share.unwrap_or(0)).unwrap_or(0).max(least),
        )
    };
    let mut shares: Shares = weights.iter().map(share).collect();
    // What rounding has left over, or given too much of, is the largest one's.
    let others: u16 = shares.values().sum();
    if let Some(largest) = shares.values_mut().max().filter(|_| all > 0) {
        *largest = (*largest + WHOLE).saturating_sub(others);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(weights: &[(u64, u64)]) -> BTreeMap<u8, Weight> {
        let weight = |&(healthy, all): &(u64, u64)| Weight {
            all,
            healthy,
            able: healthy,
        };
        (0..).zip(weights.iter().map(weight)).collect()
    }

    fn panics(weights: &[(u64, u64)], from: u8, below: u8) -> bool {
        healthy(&tiers(weights), from).is_some_and(|healthy| healthy.is_below(below))
    }

    #[test]
    fn one_tier_panics_below_its_threshold_and_not_at_it() {
        assert!(!panics(&[(2, 4)], 0, 50));
        assert!(panics(&[(1, 4)], 0, 50));
        assert!(panics(&[(0, 4)], 0, 1));
        assert!(!panics(&[(0, 4)], 0, 0), "0 is never");
        assert!(panics(&[(3, 4)], 0, 100) && !panics(&[(4, 4)], 0, 100));
        assert!(!panics(&[(1, 3)], 0, 33) && panics(&[(1, 3)], 0, 34));
    }

    #[test]
    fn spilling_over_comes_first_so_that_tiers_are_added_up() {
        assert!(!panics(&[(0, 4), (1, 2)], 0, 50), "a standby carries it");
        assert!(!panics(&[(1, 4), (1, 4)], 0, 50));
        assert!(panics(&[(1, 4), (1, 5)], 0, 50));
    }

    #[test]
    fn tiers_that_were_failed_over_from_do_not_count_unless_nobody_else_is_left() {
        let weights = [(4, 4), (1, 4)];
        assert!(panics(&weights, 1, 50));
        assert!(!panics(&[(4, 4), (0, 4)], 1, 50));
        let none_left = healthy(&tiers(&[(1, 4), (0, 4)]), 1).unwrap();
        assert_eq!((none_left.percent(), none_left.from), (25, 0));
    }

    #[test]
    fn a_pool_without_anybody_who_is_to_take_flows_does_not_panic() {
        assert_eq!(healthy(&tiers(&[(0, 0)]), 0), None);
        assert_eq!(healthy(&tiers(&[]), 0), None);
        assert!(
            !panics(&[(0, 0), (2, 4)], 0, 50),
            "an empty tier is not missed"
        );
    }

    #[test]
    fn in_panic_tiers_share_by_weight_and_nobody_is_left_out() {
        let shares = |weights: &[(u64, u64)], from| {
            shares(&tiers(weights), from)
                .into_values()
                .collect::<Vec<u16>>()
        };
        assert_eq!(shares(&[(0, 6), (1, 2)], 0), [750, 250]);
        assert_eq!(shares(&[(0, 6), (1, 2)], 1), [0, 1_000]);
        let uneven = shares(&[(0, 1), (0, 100_000), (0, 3)], 0);
        assert_eq!(uneven.iter().sum::<u16>(), WHOLE);
        assert!(uneven.iter().all(|&share| share > 0), "{uneven:?}");
        assert_eq!(shares(&[(0, 0), (0, 2)], 0), [0, 1_000]);
        assert_eq!(shares(&[(0, 0), (0, 0)], 0), [0, 0]);
    }
}
