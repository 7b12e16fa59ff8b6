//! One pool: a backend fails, is added, is weighted. Of one service, or of a group of many.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::tables::feature;
use lb_userspace::{
    dataplane::{
        Capacity,
        bpf::{LoadOptions, Program},
    },
    health::{Event, Target},
    model::{Admin, Backend, Change, FlowState, Mode, Passive, Scheduler, ServiceId},
    snapshot::Condition,
};

use super::{Effort, Size, latency};
use crate::bench::{
    balancer::{Balancer, backend_of},
    frame::{Frame, Payload, flags},
    report::Latency,
    services::{Also, Guarded, Kind, Pool, numbered},
};

pub(super) const NAMES: [&str; 7] = [
    "decide-to-steer",
    "ring-follows",
    "add-backend",
    "weight",
    "outage-steers",
    "outage-follows",
    "add-backends",
];
const BACKENDS: [u16; 3] = [10, 100, 1_000];
/// The group's: all of its services share the pool and the ring.
const GROUP: u32 = 1_000;
const GROUPS_BACKENDS: u16 = 1_000;
const GROUPS_RING: u32 = 65_537;
/// As many services on their own, each with its pool.
const SINGLES: u32 = 1_000;
const SINGLES_BACKENDS: u16 = 10;
const SINGLES_RING: u32 = 251;
/// Backends of a pool half of which fail at once.
const OUTAGE: u16 = 4_096;
/// Percent of its weight below which it would panic: less than is left.
const OUTAGE_PANIC: u8 = 40;

pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for backends in BACKENDS {
        let mut bench = Bench::new(&Shape::of_one(backends))?;
        let size = bench.size()?;
        latencies.extend(bench.failures(effort, "")?);
        let adds: Result<_> = (0..effort.often).map(|_| bench.add()).collect();
        latencies.push(latency("add-backend", size, adds?));
        let weights: Result<_> = (0..effort.often).map(|turn| bench.weigh(turn)).collect();
        latencies.push(latency("weight", size, weights?));
    }
    let group = Shape {
        services: GROUP,
        ring_size: Some(GROUPS_RING),
        grouped: true,
        ..Shape::of_one(GROUPS_BACKENDS)
    };
    let mut bench = Bench::new(&group)?;
    latencies.extend(bench.failures(effort, &format!("-group-{GROUP}"))?);
    let singles = Shape {
        services: SINGLES,
        ring_size: Some(SINGLES_RING),
        ..Shape::of_one(SINGLES_BACKENDS)
    };
    let mut bench = Bench::new(&singles)?;
    let size = bench.size()?.times(SINGLES);
    let figures = bench.failures(effort, &format!("-services-{SINGLES}"))?;
    latencies.extend(figures.map(|figure| figure.of(size)));
    let outage = Shape {
        panic_below: OUTAGE_PANIC,
        ..Shape::of_one(OUTAGE)
    };
    let mut bench = Bench::new(&outage)?;
    latencies.extend(bench.outages(effort)?);
    latencies.push(bench.crowds(effort)?);
    Ok(latencies)
}

/// What a check says.
pub(super) fn event(service: ServiceId, address: SocketAddr, condition: Condition) -> Event {
    let target = Target { service, address };
    Event {
        changed: true,
        ..Event::new(target, condition)
    }
}

/// What services there are, each of so many backends.
pub(super) struct Shape {
    pub(super) services: u32,
    pub(super) backends: u16,
    pub(super) ring_size: Option<u32>,
    /// All of them share a pool.
    pub(super) grouped: bool,
    pub(super) passive: Passive,
    pub(super) panic_below: u8,
    /// Of flows; as services have it where absent.
    pub(super) moving_time: Option<Duration>,
}

impl Shape {
    /// One service.
    pub(super) fn of_one(backends: u16) -> Self {
        Self {
            services: 1,
            backends,
            ring_size: None,
            grouped: false,
            passive: Passive::OFF,
            panic_below: 0,
            moving_time: None,
        }
    }

    fn features(&self) -> u32 {
        match self.passive.is_off() {
            true => feature::IPIP,
            false => feature::IPIP | feature::PASSIVE,
        }
    }

    fn capacity(&self) -> Capacity {
        let pools = match self.grouped {
            true => 1,
            false => self.services,
        };
        let backends = pools * u32::from(self.backends);
        Capacity {
            services: self.services.max(16),
            backends: (2 * backends).max(8_192),
            members: (4 * backends).max(16_384),
            slots: 1 << 22,
            flows: 1 << 16,
            half_open: 1 << 16,
            fragments: 1_024,
            ..Capacity::default()
        }
    }
}

/// Services, and the flows that have been tried.
pub(super) struct Bench {
    pub(super) balancer: Balancer,
    /// Whose backends are checked: the first.
    pub(super) id: ServiceId,
    pool: Pool,
    pub(super) backends: Vec<Backend>,
    pub(super) flows: NewFlows,
}

/// Flows that have not been before.
pub(super) struct NewFlows {
    frame: Frame,
    next: u64,
}

impl NewFlows {
    /// Of this service.
    pub(super) fn of(service: ServiceId) -> Self {
        Self {
            frame: Frame::new(service.vip, Payload::Tcp(flags::SYN), 0, 1),
            next: 0,
        }
    }

    /// The next one.
    fn next(&mut self) -> Vec<u8> {
        let frame = self.frame.at(self.next);
        self.next += 1;
        frame
    }

    /// The next one whose packets go to a backend.
    pub(super) fn next_of(&mut self, program: &mut Program, backend: IpAddr) -> Result<Vec<u8>> {
        loop {
            let frame = self.next();
            if backend_of(program.xdp()?, &frame)? == backend {
                return Ok(frame);
            }
        }
    }
}

impl Bench {
    pub(super) fn new(shape: &Shape) -> Result<Self> {
        let pool = Pool {
            number: 2,
            backends: shape.backends,
            v6: false,
        };
        let kind = Kind {
            quic: None,
            guarded: Guarded::Open,
            also: Also::Nothing,
            mode: Mode::Ipip,
            scheduler: Scheduler::Maglev,
            flow_state: FlowState::Auto,
            ring_size: shape.ring_size,
            pool,
        };
        let mut balancer = Balancer::load(&LoadOptions {
            pins: None,
            capacity: shape.capacity(),
            features: shape.features(),
            log_level: 0,
        })?;
        let services: Result<Vec<_>> = (0..shape.services)
            .map(|n| kind.service(numbered(n)))
            .collect();
        let mut services = services?;
        for service in &mut services {
            service.group = shape.grouped.then(|| "bench".to_owned());
            service.passive = shape.passive;
            service.panic_below = shape.panic_below;
            service.moving_time = shape.moving_time.or(service.moving_time);
        }
        balancer.serve(services)?;
        balancer.reach_pool(pool.other());
        // New flows: those of a backend that is only down may stay. In a group of the last service, which learns
        // of it no later than the others.
        let last = match shape.grouped {
            true => shape.services - 1,
            false => 0,
        };
        Ok(Self {
            balancer,
            id: numbered(0),
            pool,
            backends: pool.backends(),
            flows: NewFlows::of(numbered(last)),
        })
    }

    pub(super) fn size(&self) -> Result<Size> {
        Ok(Size {
            backends: self.backends.len() as u32,
            slots: self.balancer.placed(self.id)?.ring.size(),
        })
    }

    /// A flow whose packets go to a backend.
    fn flow_of(&mut self, backend: SocketAddr) -> Result<Vec<u8>> {
        self.flows.next_of(&mut self.balancer.program, backend.ip())
    }

    fn steered(&mut self, frame: &[u8]) -> Result<IpAddr> {
        backend_of(self.balancer.program.xdp()?, frame)
    }

    /// Clients send so many SYNs twice.
    pub(super) fn resend(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            let frame = self.flows.next();
            for _ in 0..2 {
                self.steered(&frame)?;
            }
        }
        Ok(())
    }

    /// Backends fail in turn; the scenarios' names end so.
    pub(super) fn failures(&mut self, effort: Effort, suffix: &str) -> Result<[Latency; 2]> {
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
        let down = event(self.id, address, Condition::Down);
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let start = Instant::now();
        let follow = self.balancer.core.health(down);
        let to = self.steered(&flow)?;
        let steer = start.elapsed();
        ensure!(to != address.ip(), "{address} is down and gets a new flow");
        ensure!(follow, "the ring does not follow");
        self.balancer.core.enforce()?;
        let followed = start.elapsed();
        let up = event(self.id, address, Condition::Up);
        self.balancer.core.health(up);
        self.balancer.core.enforce()?;
        self.balancer.rest()?;
        ensure!(
            self.steered(&flow)? == address.ip(),
            "{address} is up again"
        );
        Ok((steer, followed))
    }

    /// Half of the backends fail at once, time and again.
    fn outages(&mut self, effort: Effort) -> Result<[Latency; 2]> {
        let size = self.size()?;
        let (mut steers, mut follows) = (Vec::new(), Vec::new());
        for _ in 0..effort.seldom {
            let (steer, follow) = self.outage()?;
            steers.push(steer);
            follows.push(follow);
        }
        Ok([
            latency("outage-steers", size, steers),
            latency("outage-follows", size, follows),
        ])
    }

    /// How long until a new flow of the last of them goes elsewhere, and until the ring knows and all is told.
    fn outage(&mut self) -> Result<(Duration, Duration)> {
        let half = self.backends.len() / 2;
        let victims: Vec<SocketAddr> = self.backends[..half].iter().map(|b| b.address).collect();
        let last = victims[half - 1];
        let flow = self.flow_of(last)?;
        let events = |condition| -> Vec<Event> {
            let each = victims.iter();
            each.map(|&address| event(self.id, address, condition))
                .collect()
        };
        let (down, up) = (events(Condition::Down), events(Condition::Up));
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let start = Instant::now();
        let follow = self.balancer.core.health_of_all(down);
        let to = self.steered(&flow)?;
        let steer = start.elapsed();
        ensure!(to != last.ip(), "{last} is down and gets a new flow");
        ensure!(follow, "the ring does not follow");
        self.balancer.core.enforce()?;
        self.balancer.core.observe(SystemTime::UNIX_EPOCH);
        let followed = start.elapsed();
        self.balancer.core.health_of_all(up);
        self.balancer.core.enforce()?;
        self.balancer.core.observe(SystemTime::UNIX_EPOCH);
        self.balancer.rest()?;
        Ok((steer, followed))
    }

    /// Half of the backends are added at once, time and again, beside as many of which only the last takes new flows.
    fn crowds(&mut self, effort: Effort) -> Result<Latency> {
        let size = self.size()?;
        let service = self.balancer.core.state().service(self.id);
        let mut whole = service.context("the service")?.clone();
        let half = whole.backends.len() / 2;
        for backend in &mut whole.backends[..half - 1] {
            backend.admin = Admin::Draining;
        }
        let mut few = whole.clone();
        few.backends.truncate(half);
        let mut times = Vec::new();
        for _ in 0..effort.seldom {
            self.change(Change::Replace(vec![few.clone()]))?;
            self.balancer.rest()?;
            times.push(self.change(Change::Replace(vec![whole.clone()]))?);
            self.balancer.rest()?;
        }
        Ok(latency("add-backends", size, times))
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
            rated: Default::default(),
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
