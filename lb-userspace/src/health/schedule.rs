//! Owns when probes start: spread over the interval, without drift, more often while in doubt. Pure:
//! time and the seed of what is random are passed in.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
    time::Duration,
};

use tokio::time::Instant;

use crate::model::Check;

/// The rhythm of one check.
///
/// Starts lie on a grid: the start of the agent's checking, plus the target's own place within the
/// interval, plus whole intervals. They count from the grid, not from when a probe started or ended, so
/// that neither slow probes nor jitter shift the next ones. After a stall the grid stays: one probe at
/// once, the next in its turn; catching up would ask for nothing new, and counting from the late one
/// would let the places of all targets drift together.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    fast: Duration,
    jitter: Duration,
    random: fastrand::Rng,
    /// The next start on the grid.
    turn: Instant,
    /// The start before, of the grid or in doubt, less its jitter.
    last: Option<Instant>,
}

/// A hash that stays the same over restarts, so that a target keeps its place.
pub fn seed(of: &impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}

/// When the first probe of a target with this hash starts, counted from now: somewhere within the
/// interval, the same place each time, so that 10,000 targets make a steady trickle.
pub fn first_delay(hash: u64, interval: Duration) -> Duration {
    let nanos = (interval.as_nanos() * u128::from(hash)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Schedule {
    /// The rhythm of `check` from `now` on; `seed` places it and draws its jitter.
    pub fn new(check: &Check, seed: u64, now: Instant) -> Self {
        Self {
            interval: check.interval,
            fast: check.fast_interval.unwrap_or(check.interval),
            jitter: check.jitter,
            random: fastrand::Rng::with_seed(seed),
            turn: now + first_delay(seed, check.interval),
            last: None,
        }
    }

    /// When the next probe starts, as of `now`, when the one before has ended. `in_doubt`: whether that
    /// one spoke against the condition.
    pub fn next(&mut self, now: Instant, in_doubt: bool) -> Instant {
        let sooner = match self.last {
            Some(last) if in_doubt => Some(last + self.fast),
            _ => None,
        };
        if let Some(start) = sooner
            && start.max(now) < self.turn
        {
            self.last = Some(start.max(now));
            return start.max(now) + self.drawn();
        }
        let start = self.turn.max(now);
        let missed = now.saturating_duration_since(self.turn).as_nanos() / self.interval.as_nanos();
        let missed = u32::try_from(missed).unwrap_or(u32::MAX);
        self.last = Some(start);
        self.turn += self.interval * missed.saturating_add(1);
        start + self.drawn()
    }

    fn drawn(&mut self) -> Duration {
        self.jitter.mul_f64(self.random.f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Probe;

    const SECOND: Duration = Duration::from_secs(1);
    const TENTH: Duration = Duration::from_millis(100);

    fn check() -> Check {
        Check::new(Probe::TCP)
    }

    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn first_delay_covers_the_interval_and_never_reaches_its_end() {
        assert_eq!(first_delay(0, SECOND), Duration::ZERO);
        assert_eq!(first_delay(1 << 63, SECOND), SECOND / 2);
        assert!(first_delay(u64::MAX, Duration::from_secs(3_600)) < Duration::from_secs(3_600));
    }

    #[test]
    fn many_targets_spread_evenly_and_alike_on_every_start() {
        let now = origin();
        let mut tenths = [0; 10];
        for target in 0..10_000_u32 {
            let start = || Schedule::new(&check(), seed(&target), now).next(now, false);
            assert_eq!(start(), start());
            tenths[(start() - now).subsec_millis() as usize / 100] += 1;
        }
        let even = tenths.iter().all(|&n| (900..1_100).contains(&n));
        assert!(even, "{tenths:?}");
    }

    #[test]
    fn slow_probes_do_not_shift_the_schedule() {
        let now = origin();
        let mut schedule = Schedule::new(&check(), 7, now);
        let first = schedule.next(now, false);
        let mut start = first;
        for n in 1..100 {
            start = schedule.next(start + SECOND * 3 / 4, false);
            assert_eq!(start, first + SECOND * n);
        }
    }

    #[test]
    fn a_stall_is_followed_by_one_probe_in_the_old_rhythm_not_by_a_burst() {
        let now = origin();
        let mut schedule = Schedule::new(&check(), 7, now);
        let first = schedule.next(now, false);
        let stalled = first + SECOND * 7 / 2;
        assert_eq!(schedule.next(stalled, false), stalled, "late, but at once");
        assert_eq!(schedule.next(stalled, false), first + SECOND * 4);
    }

    #[test]
    fn in_doubt_probes_follow_the_fast_interval_and_then_the_old_rhythm_again() {
        let now = origin();
        let fast = Check {
            fast_interval: Some(TENTH),
            ..check()
        };
        let mut schedule = Schedule::new(&fast, 7, now);
        let first = schedule.next(now, false);
        assert_eq!(schedule.next(first, true), first + TENTH);
        assert_eq!(schedule.next(first + TENTH, true), first + TENTH * 2);
        assert_eq!(schedule.next(first + TENTH * 2, false), first + SECOND);
        assert_eq!(schedule.next(first + SECOND, false), first + SECOND * 2);
    }

    #[test]
    fn doubt_changes_nothing_without_a_fast_interval() {
        let now = origin();
        let mut schedule = Schedule::new(&check(), 7, now);
        let first = schedule.next(now, true);
        assert_eq!(schedule.next(first, true), first + SECOND);
        assert_eq!(schedule.next(first + SECOND, true), first + SECOND * 2);
    }

    proptest! {
        /// Whatever probes last and say, starts are in order and every turn of the grid has its one.
        #[test]
        fn starts_never_drift_and_jitter_stays_within_its_bounds(
            seed: u64,
            jitter_ms in 0_u64..=50,
            probes in prop::collection::vec((0_u64..900, any::<bool>()), 1..200),
        ) {
            let now = origin();
            let jitter = Duration::from_millis(jitter_ms);
            let check = Check { fast_interval: Some(TENTH), jitter, ..check() };
            let mut schedule = Schedule::new(&check, seed, now);
            let grid = now + first_delay(seed, SECOND);
            let (mut ended, mut doubt) = (now, false);
            let mut next_turn = 0;
            for (lasted, in_doubt) in probes {
                let start = schedule.next(ended, doubt);
                prop_assert!(start >= ended);
                let turn = grid + SECOND * next_turn;
                // A late probe may run into the turn, which then begins with its end.
                if start >= turn {
                    prop_assert!(start <= turn.max(ended) + jitter, "turn {next_turn} is missed");
                    next_turn = u32::try_from((start - grid).as_millis() / 1_000).unwrap() + 1;
                }
                (ended, doubt) = (start + Duration::from_millis(lasted), in_doubt);
            }
        }
    }
}
