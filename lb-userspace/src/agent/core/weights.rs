//! Which weight of a backend is in effect: the configured one, times what its agent asks for, what of it has grown
//! ([`super::slow_start`]) and what its share is by how it fares ([`super::adaptive`]). Tiers share out what this comes to.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{Core, asked, forced::Key, standby};
use crate::{
    agent::{adaptive::Shares, ramp::WHOLE},
    dataplane::Dataplane,
    model::{Backend, Probe, Service, State},
};

/// All of something, in percent.
const ALL: u16 = WHOLE as u16;
/// A configured weight of 1 is brought up to the first of these that tells all parts, or to the last.
const SCALES: [u64; 3] = [1, 100, 10_000];

/// What of a backend's weight is in effect, in percent of what comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// What its agent asks for.
    pub asked: u16,
    /// What has grown of it.
    pub grown: u16,
    /// How it fares.
    pub adapted: u16,
}

impl Parts {
    /// Of a weight, in effect.
    pub(super) fn of(self, weight: u16) -> f64 {
        let percent = [self.asked, self.grown, self.adapted].map(|part| f64::from(part) / 100.0);
        f64::from(weight) * percent.iter().product::<f64>()
    }

    fn product(self) -> u64 {
        u64::from(self.asked) * u64::from(self.grown) * u64::from(self.adapted)
    }
}

impl<D: Dataplane> Core<D> {
    /// What of a backend's weight is in effect.
    pub(super) fn parts(&self, service: &Service, address: SocketAddr) -> Parts {
        let lead = self.state.lead(service.id);
        self.parts_with(service, (lead, address), self.known.adapting.shares(lead))
    }

    fn parts_with(&self, service: &Service, key: Key, shares: Option<&Shares>) -> Parts {
        let asked = self.known.asked.get(&key).zip(service.backend(key.1));
        let asked = asked.and_then(|(asked, backend)| asked::percent(asked, backend));
        Parts {
            // What comes to the same over the share is not to come twice.
            asked: match asked {
                Some(1..) if service.hears_agents() => ALL,
                asked => asked.unwrap_or(ALL),
            },
            grown: self.known.slow.percent(key).into(),
            adapted: shares.map_or(ALL, |shares| shares.percent(key.1)),
        }
    }

    /// `state`, which is what is wanted or that as backends' agents would have it, with the weights in effect; nothing
    /// where that is no difference.
    pub(super) fn lay_weights_over(&self, state: &State) -> Option<State> {
        let mut services = BTreeMap::new();
        for service in state.services() {
            let lead = state.lead(service.id);
            if !self.known.slow.has_pool(lead) && self.known.adapting.shares(lead).is_none() {
                continue;
            }
            let mut over = service.clone();
            if self.weigh_in(&mut over, self.known.adapting.shares(lead)) {
                services.insert(service.id, over);
            }
        }
        (!services.is_empty()).then(|| state.overlaid(services.into_values()))
    }

    /// Gives a service's backends the weights in effect with these shares; whether any is another than its agent alone
    /// would make it.
    fn weigh_in(&self, over: &mut Service, shares: Option<&Shares>) -> bool {
        let lead = self.state.lead(over.id);
        let Some(service) = self.state.service(over.id) else {
            return false;
        };
        let parts = |backend: &Backend| {
            let parts = self.parts_with(service, (lead, backend.address), shares);
            (backend.weight, parts)
        };
        let parts: Vec<(u16, Parts)> = service.backends.iter().map(parts).collect();
        let whole = |parts: &Parts| (parts.grown, parts.adapted) == (ALL, ALL);
        if parts.iter().all(|(_, parts)| whole(parts)) {
            return false;
        }
        for (backend, weight) in over.backends.iter_mut().zip(in_effect(&parts)) {
            backend.weight = weight;
        }
        true
    }

    /// What the plan would see of a service with these shares.
    pub(super) fn laid_over_with(&self, asked: &Service, shares: &Shares) -> Service {
        let mut over = asked.clone();
        self.weigh_in(&mut over, Some(shares));
        if let Some(tiers) = self.known.tiers.shares(self.state.lead(over.id)) {
            standby::share_out(&mut over, tiers, |backend| self.is_fit(asked, backend));
        }
        over
    }
}

impl Service {
    /// Whether backends have agents that may ask for a part of their weights.
    pub(super) fn has_agents(&self) -> bool {
        let checks = &self.health.checks;
        checks
            .iter()
            .any(|check| matches!(check.probe, Probe::Agent(_)))
    }

    /// Whether what agents ask for of weights is one of the things that these follow by and by.
    pub(super) fn hears_agents(&self) -> bool {
        self.adaptive.is_some_and(|adaptive| adaptive.from.agent)
    }
}

/// The weights that parts of weights come to, in a ratio as close as they go; none is lost that is not 0.
fn in_effect(parts: &[(u16, Parts)]) -> Vec<u16> {
    let exact: Vec<u64> = parts
        .iter()
        .map(|(weight, parts)| u64::from(*weight) * parts.product())
        .collect();
    let largest = exact.iter().copied().max().unwrap_or(0).max(1);
    // Of a weight of 1, all of which is there.
    let unit = u64::from(ALL).pow(3);
    let tells = |scale: &u64| exact.iter().all(|exact| exact.is_multiple_of(unit / scale));
    let [.., finest] = SCALES;
    let scale = SCALES.into_iter().find(tells).unwrap_or(finest);
    let most = (largest * scale).div_ceil(unit).clamp(1, u16::MAX.into());
    let scaled = |&exact: &u64| {
        let weight = (exact * most).div_ceil(largest);
        u16::try_from(weight).unwrap_or(u16::MAX)
    };
    exact.iter().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grown(grown: u16) -> Parts {
        Parts {
            asked: 100,
            grown,
            adapted: 100,
        }
    }

    #[test]
    fn parts_multiply() {
        let parts = Parts {
            asked: 50,
            grown: 40,
            adapted: 150,
        };
        assert!((parts.of(10) - 3.0).abs() < 1e-9);
        assert_eq!(in_effect(&[(10, parts), (3, grown(100))]), [3, 3]);
        assert_eq!(in_effect(&[(0, parts), (3, grown(10))]), [0, 30]);
        assert_eq!(in_effect(&[]), Vec::<u16>::new());
    }

    proptest! {
        #[test]
        fn weights_in_effect_keep_their_ratio_and_nobody_who_has_some_gets_none(
            shares in prop::collection::vec((0_u16..=1_000, 0_u16..=1_000, 1_u16..=100, 1_u16..=1_000), 1..20),
        ) {
            let parts: Vec<(u16, Parts)> = shares
                .into_iter()
                .map(|(weight, asked, grown, adapted)| (weight, Parts { asked, grown, adapted }))
                .collect();
            let got = in_effect(&parts);
            let ideal = |(weight, parts): &(u16, Parts)| parts.of(*weight);
            let largest = parts.iter().map(ideal).fold(0.0, f64::max);
            let most = got.iter().copied().max().unwrap_or(0);
            for (share, &weight) in parts.iter().zip(&got) {
                let wanted = ideal(share);
                prop_assert_eq!(weight == 0, wanted == 0.0);
                if largest > 0.0 {
                    let (is, should) = (f64::from(weight) / f64::from(most), wanted / largest);
                    // To what a whole number can tell.
                    prop_assert!((is - should).abs() <= 1.0 / f64::from(most), "{} of {}", is, should);
                }
            }
        }
    }
}
