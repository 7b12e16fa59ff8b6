//! Token buckets, as the generic cell rate algorithm keeps them (ITU-T I.371, Annex A): one word a bucket, which
//! says when it will be full again. No clock of its own.
//!
//! Every CPU takes from the same bucket, without a lock: what one word says is read, judged by [`take`], and
//! moved by an atomic addition. Between the two, each other CPU may judge by the same word. So, of a rate of `r`
//! and a burst of `b`, no more than `r · t + b + n - 1` are let through in a time `t` on `n` CPUs, and `n - 1` more
//! each time the bucket has been full meanwhile; nothing that was taken is lost otherwise. `t` is told by the
//! kernel's coarse clock, to one of its periods (1 to 10 ms).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::tables::{TICK_SHIFT, Tick};

/// A time within 2³² ticks: ticks in the upper half, fractions of one in the lower.
pub type Moment = u64;

/// Base-two logarithm of the fractions of a tick.
const FRACTION: u32 = 32;

/// Highest rate, in a second.
pub const MOST: u32 = 1_000_000_000;

/// Base-two logarithm of how many a bucket may be overdrawn by, since CPUs judge by the same word. What is further
/// ahead says nothing: it is of other settings, or of weeks ago.
const OVERDRAFT: u32 = 12;

/// How often something may happen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rate {
    /// Time for each, in fractions of a tick; 0: there is no limit.
    pub interval: u64,
    /// How long after its due time each may still come early, in fractions of a tick: the burst but one.
    pub depth: u64,
}

impl Rate {
    /// So many a second (1 to [`MOST`]), and at most `burst` (at least 1) at once after a pause.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        const SECOND: u64 = 1_000_000_000 << (FRACTION - TICK_SHIFT);
        let interval = SECOND / if per_second == 0 { 1 } else { per_second } as u64;
        Self {
            interval,
            depth: interval.saturating_mul(burst.saturating_sub(1) as u64),
        }
    }

    /// Whether there is a limit.
    #[inline(always)]
    pub const fn is_set(&self) -> bool {
        self.interval != 0
    }
}

/// What becomes of a bucket from which one is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// It is empty, and stays as it is.
    Refused,
    /// One is taken: this is added to its word.
    Add(u64),
    /// One is taken of a full one, whose word becomes this.
    Set(Moment),
}

/// Takes one of the bucket of that word, at `now`.
#[inline(always)]
pub fn take(word: Moment, now: Tick, rate: &Rate) -> Take {
    let now = Moment::from(now) << FRACTION;
    let ahead = word.wrapping_sub(now);
    let Rate { interval, depth } = *rate;
    // An interval is below 2^42: that of one a second.
    let furthest = depth.saturating_add(interval << OVERDRAFT);
    // Behind, it is beyond all of them.
    if ahead == 0 || ahead > furthest {
        return Take::Set(now.wrapping_add(interval));
    }
    if ahead > depth {
        return Take::Refused;
    }
    Take::Add(interval)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::SECOND;

    /// The word of a bucket that is full.
    fn full(now: Tick) -> Moment {
        Moment::from(now) << FRACTION
    }

    /// How many of so many attempts succeed at one moment.
    fn taken(word: &mut Moment, now: Tick, rate: &Rate, attempts: u32) -> u32 {
        let mut taken = 0;
        for _ in 0..attempts {
            match take(*word, now, rate) {
                Take::Refused => continue,
                Take::Add(interval) => *word = word.wrapping_add(interval),
                Take::Set(to) => *word = to,
            }
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_full_bucket_has_its_burst_and_no_more() {
        for burst in [1, 2, 50, 10_000] {
            let rate = Rate::new(1_000, burst);
            for now in [0, 1, 77, Tick::MAX] {
                let mut word = full(now);
                assert_eq!(taken(&mut word, now, &rate, 2 * burst), burst, "at {now}");
            }
        }
    }

    #[test]
    fn a_second_brings_as_many_as_the_rate_says() {
        for (per_second, burst) in [(1, 1), (10, 3), (5_000, 5_000), (100_000, 5_000)] {
            let rate = Rate::new(per_second, burst);
            for start in [5, Tick::MAX - 400] {
                let mut word = full(start);
                taken(&mut word, start, &rate, burst);
                let attempts = burst.min(200);
                let each = |tick: u32| taken(&mut word, start.wrapping_add(tick), &rate, attempts);
                let in_ten: u32 = (1..=10 * SECOND).map(each).sum();
                let expected = 10 * per_second;
                assert!(
                    in_ten.abs_diff(expected) <= 1 + expected / 1_000,
                    "{in_ten} of {expected} from {start}"
                );
            }
        }
    }

    #[test]
    fn a_bucket_that_was_left_alone_for_weeks_is_full() {
        let rate = Rate::new(10, 5);
        for weeks in [1, 3, 5, 7] {
            let mut word = 0;
            let start: Tick = 9;
            taken(&mut word, start, &rate, 5);
            let later = start.wrapping_add(weeks * 7 * 86_400 * SECOND);
            assert_eq!(taken(&mut word, later, &rate, 9), 5, "after {weeks} weeks");
        }
    }

    #[test]
    fn a_bucket_of_other_settings_is_full_at_most() {
        let (slow, fast) = (Rate::new(1, 1_000), Rate::new(100_000, 2_000));
        let mut word = 0;
        taken(&mut word, 4, &slow, 1_000);
        assert_eq!(taken(&mut word, 4, &fast, 5_000), 2_000);
    }

    #[test]
    fn whoever_judges_by_the_same_word_overdraws_by_one_each_and_it_is_paid_back() {
        let rate = Rate::new(1_000, 10);
        let mut word = 0;
        taken(&mut word, 50, &rate, 9);
        // Four CPUs see the last one left.
        let Take::Add(interval) = take(word, 50, &rate) else {
            panic!("one is left");
        };
        word += 4 * interval;
        // A tick brings a little more than one.
        assert_eq!(taken(&mut word, 53, &rate, 9), 0);
        assert_eq!(taken(&mut word, 54, &rate, 9), 1);
        assert_eq!(taken(&mut word, 58, &rate, 99), 4);
    }

    #[test]
    fn the_extremes_stay_within_64_bits() {
        let slowest = Rate::new(1, u32::MAX);
        let fastest = Rate::new(MOST, 1);
        assert!(slowest.depth > u64::MAX >> 12 && fastest.interval > 4_000);
        assert_eq!(Rate::new(0, 0), Rate::new(1, 1));
        let mut word = 0;
        assert_eq!(taken(&mut word, 1, &slowest, 100), 100);
        assert_eq!(taken(&mut word, 1, &fastest, 100), 1);
    }

    proptest! {
        /// Whatever comes when, no time has more than rate and burst allow.
        #[test]
        fn no_window_has_more_than_rate_and_burst_allow(
            per_second in 1u32..100_000,
            burst in 1u32..2_000,
            start: Tick,
            steps in prop::collection::vec((0u32..300, 0u32..500), 1..60),
        ) {
            let rate = Rate::new(per_second, burst);
            let (mut word, mut now) = (0, start);
            let mut seen = std::vec![(0u64, 0u64)];
            let (mut elapsed, mut total) = (0u64, 0u64);
            for (pause, attempts) in steps {
                now = now.wrapping_add(pause);
                elapsed += u64::from(pause);
                let before = total;
                total += u64::from(taken(&mut word, now, &rate, attempts));
                seen.push((elapsed, before));
                for &(from, had) in &seen {
                    let time = (elapsed - from) as u128;
                    let allowed = (time << FRACTION) / u128::from(rate.interval) + u128::from(burst);
                    prop_assert!(u128::from(total - had) <= allowed);
                }
            }
        }
    }
}
