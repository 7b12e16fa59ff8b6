//! How much of its weight a backend has that has begun to take new flows. Pure: time comes in, percent come out.
//!
//! The weight grows in a straight line, in steps of [`STEP`] percent of it: each step has the ring follow, and
//! moves about that part of the backend's own slots. Finer ones would move fewer at a time and more in all, since
//! every step of a Maglev ring moves some slots between others as well.

use lb_common::tables::Tick;

use crate::{model::SlowStart, plan::ticks};

/// All of a weight, in percent.
pub const WHOLE: u8 = 100;
/// Percent of its weight that a backend gets at once.
pub const STEP: u8 = 5;

/// A backend whose weight grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ramp {
    /// When it began.
    pub since: Tick,
    /// Percent of its weight that it has, as of the last step.
    pub percent: u8,
    /// Whether it is new in its pool, which was complete without it.
    pub new: bool,
    /// Whether it has yet to begin, since nobody gets new flows there for now.
    pub waits: bool,
}

impl Ramp {
    /// One that begins now.
    pub fn begin(slow: SlowStart, new: bool, now: Tick) -> Self {
        Self {
            since: now,
            percent: slow.from,
            new,
            waits: false,
        }
    }

    /// The same, where it begins once it gets new flows.
    pub fn wait(slow: SlowStart, new: bool, now: Tick) -> Self {
        Self {
            waits: true,
            ..Self::begin(slow, new, now)
        }
    }

    /// One that has come so far under another agent.
    pub fn resume(slow: SlowStart, percent: u8, now: Tick) -> Self {
        let part = u64::from(percent.saturating_sub(slow.from));
        let all = u64::from(WHOLE.saturating_sub(slow.from)).max(1);
        let passed = (u64::from(ticks(slow.window)) * part).div_ceil(all);
        Self {
            since: now.wrapping_sub(passed as Tick),
            percent,
            new: false,
            waits: false,
        }
    }

    /// What it is now; nothing once it has all of its weight.
    pub fn go_on(self, slow: SlowStart, now: Tick) -> Option<Self> {
        if self.waits {
            return (slow.from < WHOLE).then_some(Self::wait(slow, self.new, now));
        }
        let percent = percent(slow, now.wrapping_sub(self.since));
        (percent < WHOLE).then_some(Self { percent, ..self })
    }

    /// How long until it has all.
    pub fn left(self, slow: SlowStart, now: Tick) -> Tick {
        ticks(slow.window).saturating_sub(now.wrapping_sub(self.since))
    }
}

/// Percent of its weight that a backend has so long after it began.
fn percent(slow: SlowStart, passed: Tick) -> u8 {
    let window = ticks(slow.window);
    if passed >= window {
        return WHOLE;
    }
    let range = u64::from(WHOLE.saturating_sub(slow.from));
    let more = range * u64::from(passed) / u64::from(window);
    slow.from + more as u8 / STEP * STEP
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn over(seconds: u64, from: u8) -> SlowStart {
        SlowStart {
            window: Duration::from_secs(seconds),
            from,
        }
    }

    fn at(seconds: u64) -> Tick {
        ticks(Duration::from_secs(seconds))
    }

    #[test]
    fn a_weight_grows_in_a_straight_line_from_its_part_to_all() {
        let slow = over(90, 10);
        let begun = Ramp::begin(slow, false, 7);
        let percent = |seconds| Some(begun.go_on(slow, 7 + at(seconds))?.percent);
        assert_eq!(
            [0, 4, 6, 45, 89, 90].map(percent),
            [Some(10), Some(10), Some(15), Some(55), Some(95), None]
        );
    }

    #[test]
    fn clocks_wrap_and_ramps_go_on() {
        let slow = over(90, 10);
        let begun = Ramp::begin(slow, false, Tick::MAX);
        let later = begun.go_on(slow, Tick::MAX.wrapping_add(at(45)));
        assert_eq!(later.map(|ramp| ramp.percent), Some(55));
        assert_eq!(begun.left(slow, Tick::MAX.wrapping_add(at(90))), 0);
    }

    #[test]
    fn one_that_waits_stays_where_it_begins_and_has_all_of_its_time_left() {
        let slow = over(90, 10);
        let waiting = Ramp::wait(slow, false, 7);
        let later = waiting.go_on(slow, 7 + at(1_000)).unwrap();
        assert_eq!((later.percent, later.waits), (10, true));
        assert_eq!(later.left(slow, 7 + at(1_000)), at(90));
    }

    #[test]
    fn one_that_begins_with_all_is_over_in_its_time() {
        let slow = over(10, 100);
        assert_eq!(Ramp::begin(slow, false, 0).go_on(slow, at(1)), None);
        assert_eq!(Ramp::resume(slow, 50, 5).since, 5);
    }

    proptest! {
        #[test]
        fn no_step_is_backwards_or_larger_than_it_may_be_and_each_can_be_resumed(
            seconds in 1u64..3_600, from in 1u8..=100,
        ) {
            let slow = over(seconds, from);
            let window = ticks(slow.window);
            let mut before = from;
            for part in 0..=400u64 {
                let passed = (u64::from(window) * part / 400) as Tick;
                let now = percent(slow, passed);
                prop_assert!(before <= now && now < before + 2 * STEP, "{} {}", before, now);
                if now < WHOLE {
                    let resumed = Ramp::resume(slow, now, passed);
                    let again = resumed.go_on(slow, passed).map(|ramp| ramp.percent);
                    prop_assert!(again.is_some_and(|again| again <= now && now - again <= STEP));
                }
                before = now;
            }
            prop_assert_eq!(before, WHOLE);
        }
    }
}
