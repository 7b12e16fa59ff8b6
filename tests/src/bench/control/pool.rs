//! One pool: a backend fails, is added, is weighted. Of one service, or of a group of many.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_common::tables::feature;
use lb_userspace::{
    dataplane::{Capacity, bpf::LoadOptions},
    health::{Event, Target},
    model::{Backend, Change, FlowState, Mode, Scheduler, ServiceId},
    snapshot::Condition,
};

use super::{Effort, Size, latency};
use crate::bench::{
    balancer::{Balancer, backend_of},
    frame::{Frame, Payload, flags},
    report::Latency,
    services::{Guarded, Kind, Pool, numbered},
};

pub(super) const NAMES: [&str; 4] = ["decide-to-steer", "ring-follows", "add-backend", "weight"];
const BACKENDS: [u16; 3] = [10, 100, 1_000];
/// The group's: all of its services share the pool and the ring.
const GROUP: u32 = 1_000;
const GROUPS_BACKENDS: u16 = 1_000;
const GROUPS_RING: u32 = 65_537;

pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for backends in BACKENDS {
        let mut bench = Bench::new(1, backends, None)?;
        let size = bench.size()?;
        latencies.extend(bench.failures(effort, "")?);
        let adds: Result<_> = (0..effort.often).map(|_| bench.add()).collect();
        latencies.push(latency("add-backend", size, adds?));
        let weights: Result<_> = (0..effort.often).map(|turn| bench.weigh(turn)).collect();
        latencies.push(latency("weight", size, weights?));
    }
    let mut bench = Bench::new(GROUP, GROUPS_BACKENDS, Some(GROUPS_RING))?;
    latencies.extend(bench.failures(effort, &format!("-group-{GROUP}"))?);
    Ok(latencies)
}

/// A service, or a group of them, and the flows that have been tried.
struct Bench {
    balancer: Balancer,
    /// Whose backends are checked: the first.
    id: ServiceId,
    pool: Pool,
    backends: Vec<Backend>,
    frame: Frame,
    next: u64,
}

impl Bench {
    fn new(services: u32, backends: u16, ring_size: Option<u32>) -> Result<Self> {
        let pool = Pool {
            number: 2,
            backends,
            v6: false,
        };
        let kind = Kind {
            quic: None,
            guarded: Guarded::Open,
            mode: Mode::Ipip,
            scheduler: Scheduler::Maglev,
            flow_state: FlowState::Auto,
            ring_size,
            pool,
        };
        let mut balancer = Balancer::load(&LoadOptions {
            pins: None,
            capacity: Capacity {
                services: services.max(16),
                backends: 8_192,
                members: 16_384,
                slots: 1 << 22,
                flows: 1 << 16,
                half_open: 1 << 16,
                fragments: 1_024,
                ..Capacity::default()
            },
            features: feature::IPIP,
            log_level: 0,
        })?;
        let ids = 0..services;
        let services: Result<Vec<_>> = ids.clone().map(|n| kind.service(numbered(n))).collect();
        let mut services = services?;
        if services.len() > 1 {
            for service in &mut services {
                service.group = Some("bench".to_owned());
            }
        }
        balancer.serve(services)?;
        balancer.reach_pool(pool.other());
        Ok(Self {
            balancer,
            id: numbered(0),
            pool,
            backends: pool.backends(),
            // New flows: those of a backend that is only down may stay. Of the last service, which learns
            // of it no later than the others.
            frame: Frame::new(numbered(ids.end - 1).vip, Payload::Tcp(flags::SYN), 0, 1),
            next: 0,
        })
    }

    fn size(&self) -> Result<Size> {
        Ok(Size {
            backends: self.backends.len() as u32,
            slots: self.balancer.placed(self.id)?.ring.size(),
        })
    }

    /// A flow whose packets go to a backend.
    fn flow_of(&mut self, backend: SocketAddr) -> Result<Vec<u8>> {
        loop {
            let frame = self.frame.at(self.next);
            self.next += 1;
            if self.steered(&frame)? == backend.ip() {
                return Ok(frame);
            }
        }
    }

    fn steered(&mut self, frame: &[u8]) -> Result<IpAddr> {
        backend_of(self.balancer.program.xdp()?, frame)
    }

    /// Backends fail in turn; the scenarios' names end so.
    fn failures(&mut self, effort: Effort, suffix: &str) -> Result<[Latency; 2]> {
        let size = self.size()?;
        let (mut steers, mut follows) = (Vec::new(), Vec::new());
        for turn in 0..effort.often {
            let (steer, follow) = self.fail(turn)?;
            steers.push(steer);
            follows.push(follow);
        }
        Ok([
            latency(format!("decide-to-steer{suffix}"), size, steers),
            latency(format!("ring-follows{suffix}"), size, follows),
        ])
    }

    /// A check decides that a backend is down: how long until a new flow of its slots goes elsewhere, and
    /// until the ring knows. The former includes a test run of the program.
    fn fail(&mut self, turn: usize) -> Result<(Duration, Duration)> {
        let address = self.backends[turn % self.backends.len()].address;
        let flow = self.flow_of(address)?;
        let down = self.event(address, Condition::Down);
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let start = Instant::now();
        let follow = self.balancer.core.health(down);
        let to = self.steered(&flow)?;
        let steer = start.elapsed();
        ensure!(to != address.ip(), "{address} is down and gets a new flow");
        ensure!(follow, "the ring does not follow");
        self.balancer.core.enforce()?;
        let followed = start.elapsed();
        let up = self.event(address, Condition::Up);
        self.balancer.core.health(up);
        self.balancer.core.enforce()?;
        self.balancer.rest()?;
        ensure!(
            self.steered(&flow)? == address.ip(),
            "{address} is up again"
        );
        Ok((steer, followed))
    }

    fn event(&self, address: SocketAddr, condition: Condition) -> Event {
        let target = Target {
            service: self.id,
            address,
        };
        Event {
            changed: true,
            ..Event::new(target, condition)
        }
    }

    /// One backend more.
    fn add(&mut self) -> Result<Duration> {
        let backend = self.pool.other().backends().swap_remove(0);
        let address = backend.address;
        let took = self.change(Change::AddBackend(self.id, backend))?;
        self.change(Change::RemoveBackend(self.id, address))?;
        self.balancer.rest()?;
        Ok(took)
    }

    /// Another weight, half of the time the one that it had before.
    fn weigh(&mut self, turn: usize) -> Result<Duration> {
        let address = self.backends[turn / 2 % self.backends.len()].address;
        let took = self.change(Change::EditBackend {
            id: self.id,
            address,
            weight: Some(if turn.is_multiple_of(2) { 2 } else { 1 }),
            admin: None,
            max_connections: None,
            tier: None,
        })?;
        let moving = self.balancer.placed(self.id)?.ring.phases.moving;
        ensure!(moving > 0, "another weight moves no slot");
        self.balancer.rest()?;
        Ok(took)
    }

    /// A change, as long as it takes to be in force and everything done that it takes.
    fn change(&mut self, change: Change) -> Result<Duration> {
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let start = Instant::now();
        self.balancer.core.change(change)?;
        Ok(start.elapsed())
    }
}
