//! `bench control`: how long the agent's core takes, over the maps of the loaded program. The maps are
//! the kernel's and so are the waits for packets in flight; what is left out is the loop around the core (but for
//! [`live`]), probes and the API. [`bounds`] says what is too long.
//!
//! [`pool`] measures one service of many backends, [`fleet`] many services at once, [`watched`] services of which
//! it is looked at what packets show, [`sweep`] the flow tables, [`restart`] taking up the maps again.

pub mod bounds;
mod fleet;
mod live;
mod pool;
mod restart;
mod sweep;
mod watched;

use std::time::Duration;

use anyhow::Result;

use super::report::Latency;

/// What latencies are of: backends and slots over all services.
#[derive(Debug, Clone, Copy)]
struct Size {
    backends: u32,
    slots: u32,
}

impl Size {
    /// Of so many services as this one.
    fn times(self, services: u32) -> Self {
        Self {
            backends: services * self.backends,
            slots: services * self.slots,
        }
    }
}

impl Latency {
    /// The same times, of so much.
    fn of(self, size: Size) -> Self {
        Self {
            backends: size.backends,
            slots: size.slots,
            ..self
        }
    }
}

/// How often each thing is done.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// What is quick to prepare.
    often: usize,
    /// What takes the whole of large maps.
    seldom: usize,
    /// Largest numbers of backends, services and records.
    largest: u32,
}

const FULL: Effort = Effort {
    often: 200,
    seldom: 20,
    largest: u32::MAX,
};
const QUICK: Effort = Effort {
    often: 10,
    seldom: 3,
    largest: 100_000,
};

/// Measures everything whose name contains `filter`.
///
/// # Errors
/// The product does not do what is measured, or the kernel refuses.
pub fn run(quick: bool, filter: &str) -> Result<Vec<Latency>> {
    let effort = if quick { QUICK } else { FULL };
    let mut latencies = Vec::new();
    type Part = fn(Effort) -> Result<Vec<Latency>>;
    let parts: [(&[&str], Part); 6] = [
        (&pool::NAMES, pool::run),
        (&live::NAMES, live::run),
        (&fleet::NAMES, fleet::run),
        (&watched::NAMES, watched::run),
        (&sweep::NAMES, sweep::run),
        (&restart::NAMES, restart::run),
    ];
    for (names, part) in parts {
        // A name may go on with a number.
        let may = |name: &&str| name.contains(filter) || filter.starts_with(name);
        if names.iter().any(may) {
            latencies.extend(part(effort)?);
        }
    }
    latencies.retain(|latency| latency.scenario.contains(filter));
    Ok(latencies)
}

/// A latency of at least one time.
fn latency(scenario: impl Into<String>, size: Size, mut times: Vec<Duration>) -> Latency {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // The nearest rank: the least time that so many of a hundred do not exceed.
    let percentile = |part: usize| ms(times[(times.len() * part).div_ceil(100) - 1]);
    Latency {
        scenario: scenario.into(),
        backends: size.backends,
        slots: size.slots,
        p50_ms: percentile(50),
        p99_ms: percentile(99),
        max_ms: percentile(100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let size = Size {
            backends: 1,
            slots: 251,
        };
        let times = (1..=200).rev().map(Duration::from_millis).collect();
        let latency = latency("anything", size, times);
        let Latency {
            p50_ms,
            p99_ms,
            max_ms,
            ..
        } = latency;
        assert_eq!((p50_ms, p99_ms, max_ms), (100.0, 198.0, 200.0));
    }

    #[test]
    fn one_time_is_every_percentile() {
        let size = Size {
            backends: 1,
            slots: 251,
        };
        let latency = latency("anything", size, vec![Duration::from_millis(7)]);
        assert_eq!(
            (latency.p50_ms, latency.p99_ms, latency.max_ms),
            (7.0, 7.0, 7.0)
        );
    }
}
