//! A new agent takes up pinned maps: what a restart or an upgrade takes, while packets go on.

use std::time::Instant;

use anyhow::Result;
use lb_common::tables::feature;
use lb_userspace::{
    dataplane::{
        Capacity,
        bpf::{LoadOptions, Pins},
    },
    model::{FlowState, Mode, Scheduler, Service},
};

use super::{Effort, Size, latency};
use crate::{
    bench::{
        balancer::Balancer,
        report::Latency,
        services::{Also, Guarded, Kind, Pool, numbered},
    },
    bpffs::Bpffs,
};

pub(super) const NAMES: [&str; 2] = ["restart-load", "restart-adopt"];
const SERVICES: [u32; 2] = [1, 1_000];

/// Loading is the kernel's verifier, mostly; adopting is reading the maps, and finding that they are what
/// the configuration says.
pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for services in SERVICES {
        let bpffs = Bpffs::unique()?;
        let options = LoadOptions {
            pins: Some(Pins::new(bpffs.path(), "bench")),
            // As `lbd` has them unless told otherwise.
            capacity: Capacity::default(),
            features: feature::IPIP,
            log_level: 0,
        };
        let wanted = wanted(services)?;
        let mut balancer = Balancer::load(&options)?;
        balancer.serve(wanted.clone())?;
        let size = Size {
            backends: services * u32::from(POOL.backends),
            slots: balancer.slots(),
        };
        let (mut loads, mut adopts) = (Vec::new(), Vec::new());
        for _ in 0..effort.seldom {
            drop(balancer);
            let wanted = wanted.clone();
            #[expect(clippy::disallowed_methods, reason = "what is measured")]
            let start = Instant::now();
            let (program, maps) = Balancer::open(&options)?;
            loads.push(start.elapsed());
            #[expect(clippy::disallowed_methods, reason = "what is measured")]
            let start = Instant::now();
            balancer = Balancer::adopt(program, maps)?;
            balancer.serve(wanted)?;
            adopts.push(start.elapsed());
        }
        let named = |what: &str| format!("{what}-services-{services}");
        latencies.push(latency(named("restart-load"), size, loads));
        latencies.push(latency(named("restart-adopt"), size, adopts));
    }
    Ok(latencies)
}

const POOL: Pool = Pool {
    number: 2,
    backends: 10,
    v6: false,
};

fn wanted(services: u32) -> Result<Vec<Service>> {
    let kind = Kind {
        quic: None,
        guarded: Guarded::Open,
        also: Also::Nothing,
        mode: Mode::Ipip,
        scheduler: Scheduler::Maglev,
        flow_state: FlowState::Auto,
        ring_size: None,
        pool: POOL,
    };
    (0..services).map(|n| kind.service(numbered(n))).collect()
}
