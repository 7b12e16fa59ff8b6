//! Services of which it is looked at what packets show: what a look takes, and what all that is kept of
//! their backends costs a failure.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_userspace::model::Passive;

use super::{
    Effort, latency,
    pool::{Bench, Shape},
};
use crate::bench::report::Latency;

pub(super) const NAMES: [&str; 4] = [
    "decide-to-steer-passive",
    "ring-follows-passive",
    "look-passive",
    "look-at-suspects-passive",
];
/// Handshakes that fail, so that their backends are looked at more closely.
const SUSPECTS: usize = 10;
/// Services, backends of each, and slots of each ring.
const SHAPES: [(u32, u16, Option<u32>); 2] = [(1_000, 10, Some(251)), (1, 1_000, None)];

pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for (services, backends, ring_size) in SHAPES {
        let mut bench = Bench::new(&Shape {
            services,
            ring_size,
            passive: Passive::ON,
            ..Shape::of_one(backends)
        })?;
        let own = bench.size()?;
        let size = own.times(services);
        // The first takes everybody up.
        bench.balancer.core.watch();
        let looks = (0..effort.often).map(|_| look(&mut bench)).collect();
        let named = |what: &str| format!("{what}-passive-services-{services}");
        latencies.push(latency(named("look"), size, looks));
        bench.resend(SUSPECTS)?;
        let looks = (0..effort.often).map(|_| look(&mut bench)).collect();
        latencies.push(latency(named("look-at-suspects"), size, looks));
        let [steer, follow] = bench.failures(effort, "")?;
        for (what, found) in [("decide-to-steer", steer), ("ring-follows", follow)] {
            let found = found.of(size);
            let scenario = named(what);
            latencies.push(Latency { scenario, ..found });
        }
    }
    Ok(latencies)
}

/// How long it takes to look at what all backends have shown.
fn look(bench: &mut Bench) -> Duration {
    #[expect(clippy::disallowed_methods, reason = "what is measured")]
    let start = Instant::now();
    bench.balancer.core.watch();
    start.elapsed()
}
