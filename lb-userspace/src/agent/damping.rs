//! How long a backend that fails again and again is kept out once its checks pass. Pure: time comes in.
//!
//! The first failure costs nothing. From the second on, checks have to pass without a break for a time that doubles
//! with each, up to a longest one; of a backend that is well for as long as that, one failure is forgotten, and so on.
//! It is Envoy's outlier ejection (a time that grows with each ejection and shrinks with each interval without) held
//! against checks, where RFC 2439 damps routes by a penalty with a half-life: here one level is one halving.

use std::time::Duration;

use lb_common::tables::Tick;

use crate::{model::FlapDamping, plan::ticks};

/// The failures of a backend that are not forgotten yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flaps {
    /// How many.
    pub failures: u32,
    /// Since when it is well, or forgotten the last one for, while it is.
    pub well_since: Tick,
}

/// Failures that are counted, at most: whatever the settings, the time is the longest by then.
const MOST: u32 = 64;

impl Flaps {
    /// Failures that were counted before, by settings that may have been others.
    pub fn known(failures: u32, well_since: Tick, damping: FlapDamping) -> Self {
        let mut flaps = Self {
            failures: 0,
            well_since,
        };
        (0..failures.min(MOST)).for_each(|_| flaps.fail(damping));
        flaps
    }

    /// Counts a failure; no more than lead to the longest time, so that all are forgotten in bounded time.
    pub fn fail(&mut self, damping: FlapDamping) {
        if self.hold(damping) < damping.most {
            self.failures += 1;
        }
    }

    /// It takes flows again as of now.
    pub fn recover(&mut self, now: Tick) {
        self.well_since = now;
    }

    /// Forgets what is old enough, of a backend that is well.
    pub fn forgive(&mut self, damping: FlapDamping, now: Tick) {
        let most = ticks(damping.most).max(1);
        while self.failures > 0 && now.wrapping_sub(self.well_since) >= most {
            self.failures -= 1;
            self.well_since = self.well_since.wrapping_add(most);
        }
    }

    /// How long its checks have to pass before it takes flows.
    pub fn hold(self, damping: FlapDamping) -> Duration {
        match self.failures.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => {
                let times = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
                damping.hold.saturating_mul(times).min(damping.most)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAMPING: FlapDamping = FlapDamping {
        hold: Duration::from_secs(10),
        most: Duration::from_secs(60),
    };

    fn at(seconds: u64) -> Tick {
        Tick::MAX.wrapping_add(ticks(Duration::from_secs(seconds)))
    }

    fn failed(times: u32) -> Flaps {
        let mut flaps = Flaps::default();
        (0..times).for_each(|_| flaps.fail(DAMPING));
        flaps.recover(at(0));
        flaps
    }

    #[test]
    fn the_first_failure_is_free_and_each_after_it_doubles_the_time_up_to_the_longest() {
        let seconds = |times| failed(times).hold(DAMPING).as_secs();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 99].map(seconds),
            [0, 0, 10, 20, 40, 60, 60]
        );
    }

    #[test]
    fn a_failure_is_forgotten_for_each_longest_time_of_being_well() {
        let mut flaps = failed(3);
        for (second, failures) in [
            (0, 3),
            (59, 3),
            (60, 2),
            (61, 2),
            (119, 2),
            (121, 1),
            (500, 0),
        ] {
            flaps.forgive(DAMPING, at(second));
            assert_eq!(flaps.failures, failures, "{second}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_the_time_is_bounded_and_all_is_forgotten_in_the_end(
            hold in 1u64..1_000, more in 0u64..600_000, times in 0u32..200,
        ) {
            let most = Duration::from_secs(hold + more);
            let damping = FlapDamping { hold: Duration::from_secs(hold), most };
            let mut flaps = Flaps::default();
            for _ in 0..times {
                flaps.fail(damping);
                prop_assert!(flaps.hold(damping) <= most);
            }
            flaps.recover(0);
            prop_assert!(flaps.failures <= 22, "{}", flaps.failures);
            let mut now: Tick = 0;
            for _ in 0..flaps.failures {
                now = now.wrapping_add(ticks(most));
                flaps.forgive(damping, now);
            }
            prop_assert_eq!(flaps.failures, 0);
        }
    }
}
