//! What takes longer than it may. Pure.

use crate::bench::report::Latency;

/// Scenarios, by how their names begin, and milliseconds. Each name is bound by the first that fits.
const BOUNDS: [(&str, f64); 5] = [
    ("decide-to-steer", 0.2),
    ("ring-follows", 100.0),
    // What is done once for each of 2,048 backends, and not for each of their pool.
    ("outage-steers", 50.0),
    ("outage-follows", 500.0),
    ("add-backends", 500.0),
];

/// The loop's news has to wake two threads first, which is the kernel's business; and where failures come one after another, it may
/// have to wait for what the loop does between two plans.
const LOOP: [(&str, f64); 2] = [
    ("decide-to-steer-loop", 2.0),
    ("decide-to-steer-spread", 5.0),
];

/// Each of the figures that is beyond its bound, in words: of 99 of 100 times, or, of the few times of a quick run, of half of
/// them, as one that somebody else disturbed says nothing.
pub fn exceeded(latencies: &[Latency], quick: bool) -> Vec<String> {
    let bound = |scenario: &str| {
        let mut bounds = LOOP.into_iter().chain(BOUNDS);
        bounds.find(|(name, _)| scenario.starts_with(name))
    };
    let beyond = latencies.iter().filter_map(|latency| {
        let (_, most) = bound(&latency.scenario)?;
        let (of, took) = match quick {
            true => ("half of the times", latency.p50_ms),
            false => ("99 of 100 times", latency.p99_ms),
        };
        let Latency {
            scenario, backends, ..
        } = latency;
        (took > most).then(|| {
            format!("{scenario} with {backends} backends: {took:.3} ms in {of}, and {most} ms is the most that it may take")
        })
    });
    beyond.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(scenario: &str, p50_ms: f64, p99_ms: f64) -> Latency {
        Latency {
            scenario: scenario.to_owned(),
            backends: 10,
            slots: 1_021,
            p50_ms,
            p99_ms,
            max_ms: 1e9,
        }
    }

    #[test]
    fn whole_runs_are_held_to_99_of_100_times_and_quick_ones_to_half() {
        let slow = [
            latency("decide-to-steer", 0.1, 0.21),
            latency("ring-follows-group-1000", 50.0, 101.0),
            latency("decide-to-steer-loop", 1.0, 1.9),
            latency("restart-load", 900.0, 1_000.0),
        ];
        let told = exceeded(&slow, false);
        assert_eq!(told.len(), 2, "{told:?}");
        let first = "decide-to-steer with 10 backends: 0.210 ms in 99 of 100 times, and 0.2 ms is the most that it may take";
        assert_eq!(told[0], first);
        assert!(told[1].starts_with("ring-follows-group-1000 with"));
        assert_eq!(exceeded(&slow, true), [""; 0]);
        assert_eq!(
            exceeded(&[latency("ring-follows", 101.0, 102.0)], true).len(),
            1
        );
    }
}
