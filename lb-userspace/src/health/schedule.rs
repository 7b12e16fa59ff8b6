//! Owns when probes start: spread over the interval, without drift.
//! Never probes; pure apart from the timer that it makes.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
    time::Duration,
};

use tokio::time::{self, Interval, MissedTickBehavior};

/// When the first probe of a target with this hash starts, counted from now: somewhere within the
/// interval, the same place each time, so that 10,000 targets make a steady trickle.
pub fn first_delay(hash: u64, interval: Duration) -> Duration {
    let nanos = (interval.as_nanos() * u128::from(hash)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Starts of the probes of `target`, one per `interval`.
///
/// They count from the scheduled start of the last, so a slow probe does not shift the next ones.
/// After a stall `Skip` keeps each target's place in the interval; `Burst` would catch up on probes
/// that say nothing new, and `Delay` would let the places drift together.
pub fn starts(target: &impl Hash, interval: Duration) -> Interval {
    // Fixed keys: the place must not change when the agent restarts.
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(target);
    let first = time::Instant::now() + first_delay(hash, interval);
    let mut starts = time::interval_at(first, interval);
    starts.set_missed_tick_behavior(MissedTickBehavior::Skip);
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn first_delay_covers_the_interval_and_never_reaches_its_end() {
        assert_eq!(first_delay(0, SECOND), Duration::ZERO);
        assert_eq!(first_delay(1 << 63, SECOND), SECOND / 2);
        assert!(first_delay(u64::MAX, Duration::from_secs(3_600)) < Duration::from_secs(3_600));
    }

    #[tokio::test(start_paused = true)]
    async fn many_targets_spread_evenly_and_alike_on_every_start() {
        let mut tenths = [0; 10];
        for target in 0..10_000_u32 {
            let (mut one, mut again) = (starts(&target, SECOND), starts(&target, SECOND));
            let begin = time::Instant::now();
            assert_eq!(one.tick().await, again.tick().await);
            tenths[begin.elapsed().subsec_millis() as usize / 100] += 1;
        }
        assert!(
            tenths.iter().all(|&n| (900..1_100).contains(&n)),
            "{tenths:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_probes_do_not_shift_the_schedule() {
        let mut starts = starts(&"target", SECOND);
        let first = starts.tick().await;
        for n in 1..100 {
            time::sleep(SECOND * 3 / 4).await;
            assert_eq!(starts.tick().await, first + SECOND * n);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_followed_by_one_probe_in_the_old_rhythm_not_by_a_burst() {
        let mut starts = starts(&"target", SECOND);
        let first = starts.tick().await;
        time::sleep(SECOND * 7 / 2).await;
        starts.tick().await;
        assert!(first.elapsed() < SECOND * 36 / 10, "late, but at once");
        assert_eq!(starts.tick().await, first + SECOND * 4);
    }
}
