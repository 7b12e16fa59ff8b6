//! Means of samples that forget: each counts the less, the older it is. Pure.

use std::time::Duration;

/// A sample counts for this many times the mean at most, so that a single one that lies far out says little, and many that
/// do are believed soon.
const MOST: f64 = 4.0;

/// An exponentially weighted mean of samples that come when they will. The first ones count all the same, as there is
/// nothing yet to weigh them against.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Smooth {
    mean: Option<f64>,
    samples: u32,
}

impl Smooth {
    /// The mean, once there is a sample.
    pub fn mean(&self) -> Option<f64> {
        self.mean
    }

    /// Takes note of a sample, so long after the one before; `over` is the time constant: what is older by that much counts
    /// for 1/e as much.
    pub fn add(&mut self, sample: f64, passed: Duration, over: Duration) {
        self.samples = self.samples.saturating_add(1);
        let Some(mean) = self.mean else {
            self.mean = Some(sample);
            return;
        };
        let aged = 1.0 - (-passed.as_secs_f64() / over.as_secs_f64().max(f64::MIN_POSITIVE)).exp();
        let part = aged.max(1.0 / f64::from(self.samples));
        // What has been nothing so far has nothing to be compared with.
        let most = if mean > 0.0 { mean * MOST } else { sample };
        self.mean = Some(mean + part * (sample.min(most) - mean));
    }
}

/// Samples that are counted and added up elsewhere, so that many at a time say more than few; they are forgotten as well.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Total {
    samples: f64,
    sum: f64,
}

impl Total {
    /// So many samples with this mean.
    pub fn of(samples: f64, mean: f64) -> Self {
        let sum = samples * mean;
        Self { samples, sum }
    }

    /// Their mean, where there are any.
    pub fn mean(self) -> Option<f64> {
        (self.samples > 0.0).then(|| self.sum / self.samples)
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            samples: self.samples + other.samples,
            sum: self.sum + other.sum,
        }
    }

    /// Takes in so many samples with this sum, so long after those before; `over` is the time constant.
    pub fn add(&mut self, samples: f64, sum: f64, passed: Duration, over: Duration) {
        let kept = (-passed.as_secs_f64() / over.as_secs_f64().max(f64::MIN_POSITIVE)).exp();
        self.samples = self.samples * kept + samples;
        self.sum = self.sum * kept + sum;
    }
}

/// How fast a counter rises, of late.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    last: Option<u64>,
    /// Seconds, and by how much it rose in them.
    total: Total,
}

impl Rate {
    /// Takes note of where the counter stands, so long after the last time; `over` is the time constant. One that has been set back
    /// begins anew.
    pub fn count(&mut self, value: u64, passed: Duration, over: Duration) {
        match self.last.and_then(|last| value.checked_sub(last)) {
            Some(risen) => {
                let seconds = passed.as_secs_f64();
                self.total.add(seconds, risen as f64, passed, over);
            }
            None => self.total = Total::default(),
        }
        self.last = Some(value);
    }

    /// By how much it rises a second, once it was looked at twice.
    pub fn per_second(&self) -> Option<f64> {
        self.total.mean()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const OVER: Duration = Duration::from_secs(10);

    fn after(samples: impl IntoIterator<Item = f64>) -> f64 {
        let mut smooth = Smooth::default();
        for sample in samples {
            smooth.add(sample, SECOND, OVER);
        }
        smooth.mean().unwrap()
    }

    #[test]
    fn the_first_samples_count_all_the_same() {
        assert_eq!(Smooth::default().mean(), None);
        assert_eq!(after([3.0]), 3.0);
        assert!((after([1.0, 2.0, 3.0]) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_lasting_change_is_followed_and_a_single_outlier_hardly() {
        let steady = || std::iter::repeat_n(1.0, 100);
        let once = after(steady().chain([1_000.0]));
        assert!(once < 1.4, "{once}");
        let lasting = after(steady().chain(std::iter::repeat_n(100.0, 60)));
        assert!(lasting > 95.0, "{lasting}");
        let back = after(
            steady()
                .chain([1_000.0])
                .chain(std::iter::repeat_n(1.0, 30)),
        );
        assert!(back < 1.02, "{back}");
    }

    #[test]
    fn time_counts_and_not_the_number_of_samples() {
        let mut often = Smooth::default();
        let mut seldom = Smooth::default();
        for smooth in [&mut often, &mut seldom] {
            (0..200).for_each(|_| smooth.add(1.0, SECOND, OVER));
        }
        (0..10).for_each(|_| often.add(2.0, SECOND, OVER));
        seldom.add(2.0, SECOND * 10, OVER);
        let means = [often, seldom].map(|smooth| smooth.mean().unwrap());
        assert!((means[0] - means[1]).abs() < 1e-9, "{means:?}");
    }

    #[test]
    fn samples_that_are_added_up_count_by_their_number_and_are_forgotten_with_time() {
        let mut total = Total::default();
        assert_eq!(total.mean(), None);
        total.add(90.0, 90.0, SECOND, OVER);
        total.add(10.0, 110.0, Duration::ZERO, OVER);
        assert_eq!(total.mean(), Some(2.0));
        // After one time constant, as many of another kind weigh e times as much.
        total.add(100.0, 0.0, OVER, OVER);
        let kept = std::f64::consts::E.recip();
        assert!((total.mean().unwrap() - 2.0 * kept / (1.0 + kept)).abs() < 1e-9);
        let both = Total::of(100.0, 2.0).plus(Total::of(300.0, 6.0));
        assert_eq!(both, Total::of(400.0, 5.0));
    }

    #[test]
    fn a_rate_is_known_at_the_second_look_and_follows_within_a_few_time_constants() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        rate.count(1_000, SECOND, OVER);
        assert_eq!(rate.per_second(), None, "what was before is of no time");
        rate.count(1_050, SECOND / 2, OVER);
        assert_eq!(rate.per_second(), Some(100.0));
        let mut value = 1_050;
        for _ in 0..30 {
            value += 400;
            rate.count(value, SECOND, OVER);
        }
        let followed = rate.per_second().unwrap();
        assert!((380.0..=400.0).contains(&followed), "{followed}");
        // What is older than the time constant counts for 1/e.
        rate.count(value, OVER, OVER);
        let left = rate.per_second().unwrap();
        assert!(left < 0.37 * followed, "{left}");
        rate.count(7, SECOND, OVER);
        assert_eq!(rate.per_second(), None, "another counter");
    }

    #[test]
    fn how_often_a_counter_is_looked_at_makes_no_difference_to_a_steady_rate() {
        let of = |step: Duration| {
            let mut rate = Rate::default();
            for n in 0..100_u64 {
                rate.count(n * 250 * step.as_millis() as u64, step, OVER);
            }
            rate.per_second().unwrap()
        };
        for step in [SECOND / 100, SECOND, SECOND * 7] {
            let rate = of(step);
            assert!((rate - 250_000.0).abs() < 1e-3, "{rate}");
        }
    }

    proptest! {
        #[test]
        fn the_mean_stays_among_the_samples(
            samples in prop::collection::vec((0.0..1e6_f64, 0_u64..100_000), 1..50),
        ) {
            let mut smooth = Smooth::default();
            let (mut least, mut most) = (f64::MAX, 0.0_f64);
            for (sample, millis) in samples {
                smooth.add(sample, Duration::from_millis(millis), OVER);
                (least, most) = (least.min(sample), most.max(sample));
                let mean = smooth.mean().unwrap();
                prop_assert!(mean >= least * 0.999_999 && mean <= most * 1.000_001);
            }
        }
    }
}
