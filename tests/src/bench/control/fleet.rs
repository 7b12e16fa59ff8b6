//! Many services: all get other backends in one change, which one store puts in force.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::tables::feature;
use lb_userspace::{
    dataplane::{Capacity, bpf::LoadOptions},
    model::{FlowState, Mode, Scheduler},
};

use super::{Effort, Size, latency};
use crate::bench::{
    balancer::{Balancer, backend_of},
    frame::{Frame, Payload, flags},
    report::Latency,
    services::{Also, Guarded, Kind, Pool, numbered, repool},
};

pub(super) const NAMES: [&str; 2] = ["switch-services", "replace-services"];
const SERVICES: [u32; 3] = [1, 100, 1_000];
/// A small ring, as the figures are about their number.
const RING: u32 = 251;

pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for services in SERVICES {
        let kind = Kind {
            quic: None,
            guarded: Guarded::Open,
            also: Also::Nothing,
            mode: Mode::Ipip,
            scheduler: Scheduler::Maglev,
            flow_state: FlowState::Auto,
            ring_size: Some(RING),
            pool: Pool {
                number: 2,
                backends: 4,
                v6: false,
            },
        };
        let mut balancer = Balancer::load(&options(services))?;
        let all: Result<Vec<_>> = (0..services).map(|n| kind.service(numbered(n))).collect();
        balancer.serve(all?)?;
        balancer.reach_pool(kind.pool.other());
        let (mut switches, mut replaces) = (Vec::new(), Vec::new());
        let mut pool = kind.pool;
        for _ in 0..effort.often {
            pool = pool.other();
            let (switch, replace) = replace(&mut balancer, services, pool)?;
            switches.push(switch);
            replaces.push(replace);
        }
        let size = Size {
            backends: services * u32::from(kind.pool.backends),
            slots: services * RING,
        };
        let named = |what: &str| format!("{what}-services-{services}");
        latencies.push(latency(named("switch"), size, switches));
        latencies.push(latency(named("replace"), size, replaces));
    }
    Ok(latencies)
}

/// Every service gets another pool: how long the one store takes, and the change around it.
fn replace(balancer: &mut Balancer, services: u32, pool: Pool) -> Result<(Duration, Duration)> {
    let change = repool(balancer.core.state(), |_| Some(pool));
    #[expect(clippy::disallowed_methods, reason = "what is measured")]
    let start = Instant::now();
    balancer.core.change(change)?;
    let took = start.elapsed();
    let switch = balancer.core.dataplane_mut().switch.take();
    for n in [0, services - 1] {
        let frame = Frame::new(numbered(n).vip, Payload::Tcp(flags::SYN), 1, 1);
        let to = backend_of(balancer.program.xdp()?, &frame.bytes)?;
        ensure!(pool.has(to), "service {n} is not switched: {to}");
    }
    balancer.rest()?;
    Ok((switch.context("nothing was switched")?, took))
}

fn options(services: u32) -> LoadOptions {
    LoadOptions {
        pins: None,
        capacity: Capacity {
            services: services.max(16),
            backends: 32 * services.max(16),
            members: 64 * services.max(16),
            slots: 4 * (RING + 1) * services.max(16),
            flows: 1 << 16,
            half_open: 1 << 16,
            fragments: 1_024,
            ..Capacity::default()
        },
        features: feature::IPIP,
        log_level: 0,
    }
}
