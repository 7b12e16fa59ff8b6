//! The sweep of the flow tables. It runs beside the agent's loop, which its length does not hold up.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Effort, Size, latency};
use crate::bench::{
    report::Latency,
    rig::Rig,
    scenario::{self, Fleet, Scenario},
};

pub(super) const NAMES: [&str; 1] = ["sweep-records"];
const RECORDS: [u32; 3] = [0, 100_000, 1_000_000];

/// Sweeps that find every record in use: each is read and judged, and none removed.
pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let quick = effort.largest < 1_000_000;
    let scenarios = scenario::all(quick);
    let mut rig = Rig::new(Fleet::Varied, &scenarios)?;
    let mut latencies = Vec::new();
    for records in RECORDS {
        if records > effort.largest {
            continue;
        }
        let prepared = match records {
            0 => None,
            _ => Some(moving(&scenarios, records)?),
        };
        if let Some(scenario) = prepared {
            rig.prepare(scenario)?;
        }
        let mut times = Vec::new();
        for _ in 0..effort.seldom {
            #[expect(clippy::disallowed_methods, reason = "what is measured")]
            let start = Instant::now();
            rig.sweep(records)?;
            times.push(start.elapsed());
        }
        let (backends, slots) = rig.size();
        let size = Size { backends, slots };
        latencies.push(latency(format!("sweep-records-{records}"), size, times));
        if let Some(scenario) = prepared {
            rig.restore(scenario)?;
        }
    }
    Ok(latencies)
}

fn moving(scenarios: &[Scenario], flows: u32) -> Result<&Scenario> {
    let title = format!("tcp-v4 ipip {flows} moving");
    let found = scenarios.iter().find(|scenario| scenario.title() == title);
    found.with_context(|| format!("no scenario `{title}`"))
}
