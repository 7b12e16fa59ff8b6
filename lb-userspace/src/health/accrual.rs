//! How suspicious it is that something has not happened yet, or took so long, by how long it has taken of late: the φ
//! accrual failure detector of N. Hayashibara, X. Défago, R. Yared and T. Katayama, "The φ Accrual Failure Detector", SRDS
//! 2004. Pure: never waits, never looks at a clock.
//!
//! Times are taken to be normally distributed (§4.2 of the paper), with the mean and the deviation of those in a window.
//! φ is -log₁₀ of the probability that one is longer than what has passed: at a φ of 3, the suspicion is wrong once in a
//! thousand times, as far as times are so distributed.

use std::{collections::VecDeque, f64::consts::SQRT_2, time::Duration};

use crate::model::Phi;

/// Deviation that is expected of what has not been seen yet, as a part of its mean.
const UNSEEN: u32 = 4;
/// Standard deviations above which the probability is told by its asymptote: below, it is far from the least that a number
/// can hold.
const FAR: f64 = 20.0;
/// Times that say what is usual, at least.
const ENOUGH: usize = 10;
/// Beyond what φ can be set to.
const MOST_DEVIATIONS: f64 = 40.0;

/// Times seen of late, and what they make of the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Accrual {
    policy: Phi,
    /// Microseconds, the oldest first.
    window: VecDeque<u64>,
    /// Of the window, exactly.
    sum: u128,
    squares: u128,
    /// Standard deviations at which φ is the threshold.
    deviations: f64,
}

impl Accrual {
    /// One that has seen nothing.
    pub fn new(policy: Phi) -> Self {
        Self {
            policy,
            window: VecDeque::new(),
            sum: 0,
            squares: 0,
            deviations: deviations(f64::from(policy.threshold)),
        }
    }

    /// One that has seen nothing and expects this long, within a quarter.
    pub fn expecting(policy: Phi, expected: Duration) -> Self {
        let mut accrual = Self::new(policy);
        for expected in [expected - expected / UNSEEN, expected + expected / UNSEEN] {
            accrual.note(expected);
        }
        accrual
    }

    /// How many times it goes by.
    pub fn seen(&self) -> usize {
        self.window.len()
    }

    /// Takes note of how long it took.
    pub fn note(&mut self, time: Duration) {
        // An hour's square fits millions of times; more says nothing more.
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let micros = micros.min(u64::from(u32::MAX));
        if self.window.len() >= self.policy.window as usize
            && let Some(oldest) = self.window.pop_front()
        {
            self.sum -= u128::from(oldest);
            self.squares -= u128::from(oldest) * u128::from(oldest);
        }
        self.window.push_back(micros);
        self.sum += u128::from(micros);
        self.squares += u128::from(micros) * u128::from(micros);
    }

    /// Mean and standard deviation, in seconds; the latter as large as is always allowed for.
    fn usual(&self) -> (f64, f64) {
        let count = self.window.len().max(1) as u128;
        let mean = self.sum as f64 / count as f64;
        // Differences of exact numbers: of close ones, nothing is lost.
        let spread = (count * self.squares).saturating_sub(self.sum * self.sum);
        let deviation = (spread as f64).sqrt() / count as f64;
        let least = self.policy.min_std_dev.as_secs_f64();
        (mean / 1e6, (deviation / 1e6).max(least))
    }

    /// How suspicious it is that it has taken so long.
    pub fn phi(&self, passed: Duration) -> f64 {
        let (mean, deviation) = self.usual();
        phi((passed.as_secs_f64() - mean) / deviation)
    }

    /// How long it takes for that to reach the threshold.
    pub fn patience(&self) -> Duration {
        let (mean, deviation) = self.usual();
        Duration::try_from_secs_f64(mean + self.deviations * deviation).unwrap_or(Duration::MAX)
    }

    /// Takes note of how long an answer took; why that is suspicious, if it is. Of such a one, no more is learnt than that
    /// patience was too short, so that who stays slow stays suspicious for a while.
    pub fn judge(&mut self, passed: Duration) -> Option<String> {
        let why = self.suspects(passed).filter(|_| self.seen() >= ENOUGH);
        self.note(match why {
            Some(_) => passed.min(self.patience()),
            None => passed,
        });
        why
    }

    /// Whether so long is suspicious, and why in words.
    fn suspects(&self, passed: Duration) -> Option<String> {
        let phi = self.phi(passed);
        let (mean, deviation) = self.usual();
        (phi >= f64::from(self.policy.threshold)).then(|| {
            format!(
                "slow: took {:.1} ms, usually {:.1} ± {:.1} (phi {phi:.1})",
                passed.as_secs_f64() * 1e3,
                mean * 1e3,
                deviation * 1e3
            )
        })
    }
}

/// By how much more than is usual something has to take, at least, to be suspicious.
pub fn least_lateness(policy: &Phi) -> Duration {
    let least = deviations(f64::from(policy.threshold)) * policy.min_std_dev.as_secs_f64();
    Duration::try_from_secs_f64(least).unwrap_or(Duration::MAX)
}

/// -log₁₀ of the probability that a normally distributed number lies more than so many deviations above its mean.
fn phi(deviations: f64) -> f64 {
    if deviations > FAR {
        let square = deviations * deviations;
        let density = square / 2.0 + (deviations * (2.0 * std::f64::consts::PI).sqrt()).ln();
        return (density - (-1.0 / square).ln_1p()) / std::f64::consts::LN_10;
    }
    -(libm::erfc(deviations / SQRT_2) / 2.0).log10()
}

/// The deviations at which φ is this, which grows with them.
fn deviations(wanted: f64) -> f64 {
    let (mut below, mut above) = (-MOST_DEVIATIONS, MOST_DEVIATIONS);
    for _ in 0..60 {
        let middle = f64::midpoint(below, above);
        match phi(middle) < wanted {
            true => below = middle,
            false => above = middle,
        }
    }
    above
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(threshold: u32) -> Phi {
        Phi {
            threshold,
            window: 100,
            min_std_dev: Duration::from_millis(10),
        }
    }

    fn after(times: impl IntoIterator<Item = Duration>) -> Accrual {
        let mut accrual = Accrual::new(policy(8));
        times.into_iter().for_each(|time| accrual.note(time));
        accrual
    }

    /// Tables of the normal distribution.
    #[test]
    fn phi_is_the_tail_of_the_normal_distribution() {
        for (deviations, wanted) in [
            (-40.0, 0.0),
            (0.0, 2.0_f64.log10()),
            (1.0, 0.799_55),
            (3.090_232, 3.0),
            (5.612_001, 8.0),
            (19.9, 87.691_51),
            (20.1, 89.433_01),
        ] {
            let phi = phi(deviations);
            assert!((phi - wanted).abs() < 1e-4, "{deviations} {phi}");
        }
        // No number is as small as the probability.
        assert!((phi(40.0) - 349.437).abs() < 0.01, "{}", phi(40.0));
    }

    #[test]
    fn what_has_not_been_seen_is_expected_within_a_quarter() {
        let accrual = Accrual::expecting(policy(8), SECOND);
        assert_eq!(accrual.usual(), (1.0, 0.25));
        let patience = accrual.patience().as_secs_f64();
        assert!((patience - (1.0 + 5.612 * 0.25)).abs() < 1e-3, "{patience}");
    }

    #[test]
    fn punctual_beats_are_missed_sooner_than_those_that_jitter() {
        let punctual = after(std::iter::repeat_n(SECOND, 100));
        let jitter = |n| SECOND + Duration::from_millis(if n % 2 == 0 { 200 } else { 0 });
        let jittery = after((0..100).map(jitter));
        assert_eq!(jittery.usual(), (1.1, 0.1));
        assert_eq!(punctual.usual(), (1.0, 0.01));
        let [punctual, jittery] = [punctual, jittery].map(|a| a.patience().as_millis());
        assert_eq!((punctual, jittery), (1_056, 1_661));
    }

    #[test]
    fn what_left_the_window_counts_no_more() {
        let long = std::iter::repeat_n(SECOND * 60, 100);
        let accrual = after(long.chain(std::iter::repeat_n(SECOND, 100)));
        assert_eq!((accrual.usual(), accrual.seen()), ((1.0, 0.01), 100));
    }

    #[test]
    fn a_slow_answer_is_suspected_with_what_is_usual_and_an_average_one_is_not() {
        let accrual = after(std::iter::repeat_n(Duration::from_millis(20), 50));
        assert_eq!(accrual.suspects(Duration::from_millis(30)), None);
        let why = accrual.suspects(Duration::from_millis(100)).unwrap();
        assert_eq!(why, "slow: took 100.0 ms, usually 20.0 ± 10.0 (phi 15.2)");
    }

    #[test]
    fn who_becomes_slow_for_good_is_suspected_for_a_while_and_then_that_is_usual() {
        let usual = Duration::from_millis(20);
        let slow = Duration::from_millis(200);
        let mut accrual = after([]);
        for _ in 0..100 {
            assert_eq!(accrual.judge(usual), None);
        }
        let suspected = (0..1_000).take_while(|_| accrual.judge(slow).is_some());
        let suspected = suspected.count();
        assert!((10..20).contains(&suspected), "{suspected}");
        // Learnt in full, they would be a third of that.
        let mut accrual = after(std::iter::repeat_n(usual, 100));
        let in_full = (0..1_000).take_while(|_| {
            let why = accrual.suspects(slow);
            accrual.note(slow);
            why.is_some()
        });
        assert!(in_full.count() <= suspected / 2);
    }

    #[test]
    fn too_few_answers_say_nothing_of_what_is_usual() {
        let mut accrual = after([]);
        for _ in 0..ENOUGH - 1 {
            accrual.judge(Duration::from_millis(1));
        }
        assert_eq!(accrual.judge(SECOND), None);
        let mut accrual = after(std::iter::repeat_n(Duration::from_millis(1), ENOUGH));
        assert!(accrual.judge(SECOND).is_some());
    }

    #[test]
    fn nothing_is_suspicious_that_is_less_than_the_least_lateness_late() {
        let policy = policy(8);
        let least = least_lateness(&policy);
        assert_eq!(least.as_micros(), 56_120);
        let accrual = after(std::iter::repeat_n(SECOND, 50));
        let late = |by| accrual.suspects(SECOND + least + by).is_some();
        assert!(late(Duration::from_micros(10)));
        let early = accrual.suspects(SECOND + least - Duration::from_micros(10));
        assert_eq!(early, None);
    }

    proptest! {
        #[test]
        fn phi_reaches_the_threshold_when_patience_ends_and_grows_all_the_while(
            times in prop::collection::vec(0_u64..10_000, 1..300), threshold in 1_u32..=100,
        ) {
            let mut accrual = Accrual::new(policy(threshold));
            for time in times {
                accrual.note(Duration::from_millis(time));
            }
            let patience = accrual.patience();
            let at = accrual.phi(patience);
            prop_assert!((at - f64::from(threshold)).abs() < 1e-2 * f64::from(threshold), "{at}");
            let mut before = -1.0;
            for tenth in 0..20 {
                let phi = accrual.phi(patience * tenth / 10);
                prop_assert!(phi >= before);
                before = phi;
            }
        }
    }
}
