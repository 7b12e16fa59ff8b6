//! Whether a backend fails too often, next to others. Pure.
//!
//! "Cannot be chance" is two tests at 10⁻⁹ each. That a backend is as others are is Fisher's exact one (R. A. Fisher, Journal of
//! the Royal Statistical Society 98(1), 1935): whatever share fails of all, those that do were dealt out among the trials at
//! random. It needs no estimate of that share, so that few trials of others prove little, and none nothing. That a
//! backend is as a usual network is, of which a hundredth fails, is Chernoff's bound: of n trials that fail with probability p
//! each, a share s > p of them fails with a probability of at most exp(-n·D(s‖p)), D being the divergence of Kullback and
//! Leibler (H. Chernoff, Annals of Mathematical Statistics 23(4), 1952).

use crate::model::Passive;

/// The logarithm of one to the probability below which nothing is chance: 10⁻⁹.
const IMPLAUSIBLE: f64 = 20.723;
/// What fails anyway, at least: a better network cannot be told from this one by as few trials.
const USUAL: f64 = 0.01;

/// How trials ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trials {
    /// Well.
    pub good: u64,
    /// Otherwise.
    pub bad: u64,
}

impl Trials {
    pub(super) fn all(self) -> u64 {
        self.good + self.bad
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            good: self.good + other.good,
            bad: self.bad + other.bad,
        }
    }

    /// What is left of these without a part of them.
    pub(super) fn minus(self, part: Self) -> Self {
        Self {
            good: self.good - part.good,
            bad: self.bad - part.bad,
        }
    }

    /// Whether so many fail as cannot be chance, neither next to others of the same time nor in a usual network.
    fn is_implausible(self, others: Self) -> bool {
        let (all, bad) = (self.all() as f64, self.bad as f64);
        let share = bad / all;
        share > USUAL
            && all * divergence(share, USUAL) >= IMPLAUSIBLE
            && -self.chance(others) >= IMPLAUSIBLE
    }

    /// The logarithm of the probability, or of a bound on it, that at least so many of those that fail are among these, if it is chance
    /// whose they are.
    fn chance(self, others: Self) -> f64 {
        let [good, bad] = [self.good, self.bad].map(|n| n as f64);
        let [others_good, others_bad] = [others.good, others.bad].map(|n| n as f64);
        // Each number more has less of the probability of the one before than that has of its own: a geometric series.
        let ratio = good * others_bad / ((bad + 1.0) * (others_good + 1.0));
        if others.all() == 0 || ratio >= 1.0 {
            return 0.0;
        }
        let exactly = choices(good + bad, bad) + choices(others_good + others_bad, others_bad)
            - choices(good + bad + others_good + others_bad, bad + others_bad);
        (exactly - (-ratio).ln_1p()).min(0.0)
    }

    /// Whether it fails more than settings allow, and others do not.
    pub(super) fn is_outlier(self, others: Self, settings: &Passive) -> bool {
        settings.failing > 0
            && self.all() >= u64::from(settings.volume)
            && self.bad * 100 >= self.all() * u64::from(settings.failing)
            && self.is_implausible(others)
    }
}

/// The logarithm of how many ways there are to choose so many of n.
fn choices(n: f64, chosen: f64) -> f64 {
    libm::lgamma(n + 1.0) - libm::lgamma(chosen + 1.0) - libm::lgamma(n - chosen + 1.0)
}

/// D(s‖p) of two Bernoulli distributions, in nats.
fn divergence(s: f64, p: f64) -> f64 {
    let term = |s: f64, p: f64| if s > 0.0 { s * (s / p).ln() } else { 0.0 };
    term(s, p) + term(1.0 - s, 1.0 - p)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// ln of the probability that at least as many fail, term by term.
    fn chance_by_terms(own: Trials, others: Trials) -> f64 {
        let (all, bad) = (own.all() + others.all(), own.bad + others.bad);
        let all_choices = choices(all as f64, bad as f64);
        let most = own.all().min(bad);
        let terms = (own.bad..=most)
            .filter(|n| bad - n <= others.all())
            .map(|n| {
                let own = choices(own.all() as f64, n as f64);
                let others = choices(others.all() as f64, (bad - n) as f64);
                (own + others - all_choices).exp()
            });
        terms.sum::<f64>().ln()
    }

    #[test]
    fn chance_is_that_of_drawing_without_putting_back() {
        let trials = |good, bad| Trials { good, bad };
        // One of 105 over 5, about 9.7 × 10⁷.
        let five = trials(0, 5).chance(trials(100, 0));
        assert!((five + (96_560_646.0_f64).ln()).abs() < 1e-6, "{five}");
        assert_eq!(trials(0, 1_000).chance(trials(0, 0)), 0.0);
        assert_eq!(trials(3, 3).chance(trials(30, 30)), 0.0);
        assert_eq!(trials(0, 0).chance(trials(7, 3)), 0.0);
    }

    proptest! {
        #[test]
        fn chance_is_never_told_to_be_less_than_it_is(
            own in (0u64..200, 0u64..200), others in (0u64..200, 0u64..200),
        ) {
            let trials = |(good, bad)| Trials { good, bad };
            let (own, others) = (trials(own), trials(others));
            let (told, is) = (own.chance(others), chance_by_terms(own, others));
            prop_assert!(told <= 1e-9 && told >= is - 1e-6, "{} {}", told, is);
            // Nor much more where it matters.
            prop_assert!(is > -10.0 || told - is < 1.0, "{} {}", told, is);
        }
    }
}
