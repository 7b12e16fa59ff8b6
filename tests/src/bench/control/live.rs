//! Failures on their way through the agent's loop: told as checks tell them, by the channel that the loop listens to, while another
//! thread sends new flows through the program.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    agent::{self, Handle, Sources},
    announce::Announcer,
    dataplane::{DataplaneError, Programs, bpf::Program},
    health::{Checker, Event},
    model::ServiceId,
    neighbours::Resolver,
    snapshot::{Condition, EventFilter},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
};

use super::{
    Effort, latency,
    pool::{Bench, NewFlows, Shape, event},
};
use crate::bench::{balancer::backend_of, report::Latency, services::numbered};

pub(super) const NAMES: [&str; 3] = [
    "decide-to-steer-loop",
    "ring-follows-loop",
    "decide-to-steer-spread",
];
const BACKENDS: u16 = 1_000;
/// Services on their own which have a host in common, and what each has.
const SPREAD: u32 = 1_000;
const SPREAD_BACKENDS: u16 = 10;
const SPREAD_RING: u32 = 251;
/// Over so long the deciding probes of that host come.
const SPREAD_OVER: Duration = Duration::from_secs(1);
/// News that wait for the loop at most, as in `lbd`.
const NEWS: usize = 4_096;
/// No failure takes that long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Those that are loaded are loaded for all that is asked of them.
#[derive(Debug)]
struct Loaded;

impl Programs for Loaded {
    fn load(&self, features: u32) -> Result<(), DataplaneError> {
        let problem = format!("features {features:#x}");
        Err(DataplaneError::new("loading", &problem))
    }
}

pub(super) fn run(effort: Effort) -> Result<Vec<Latency>> {
    let mut latencies = one_by_one(effort)?;
    latencies.push(spread(effort)?);
    Ok(latencies)
}

/// A host in many services dies, and each finds out at its own time: amid what the loop has to do for those before.
fn spread(effort: Effort) -> Result<Latency> {
    let mut bench = Bench::new(&Shape {
        services: SPREAD,
        ring_size: Some(SPREAD_RING),
        moving_time: Some(Duration::ZERO),
        ..Shape::of_one(SPREAD_BACKENDS)
    })?;
    let size = bench.size()?.times(SPREAD);
    let victim = bench.backends[0].address;
    let ids = (0..SPREAD).map(numbered);
    let mut flows = Vec::new();
    for id in ids {
        let flow = NewFlows::of(id).next_of(&mut bench.balancer.program, victim.ip())?;
        flows.push((id, flow));
    }
    let rounds = effort.seldom.min(5);
    let times = beside_a_loop(bench, |watcher| {
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.extend(watcher.fail_everywhere(victim, &flows)?);
        }
        Ok(times)
    })?;
    Ok(latency(NAMES[2], size, times))
}

fn one_by_one(effort: Effort) -> Result<Vec<Latency>> {
    // Without records, slots are at rest at once, and flows are nobody's.
    let bench = Bench::new(&Shape {
        moving_time: Some(Duration::ZERO),
        ..Shape::of_one(BACKENDS)
    })?;
    let size = bench.size()?;
    let victims = (0..effort.often).map(|turn| bench.backends[turn % bench.backends.len()].address);
    let failures = victims.map(|address| {
        let event = |condition| event(bench.id, address, condition);
        [event(Condition::Down), event(Condition::Up)]
    });
    let failures: Vec<[Event; 2]> = failures.collect();
    let times = beside_a_loop(bench, |watcher| {
        let times = failures.into_iter().map(|failure| watcher.fail(failure));
        times.collect::<Result<Vec<_>>>()
    })?;
    let (steers, follows) = times.into_iter().unzip();
    Ok(vec![
        latency(NAMES[0], size, steers),
        latency(NAMES[1], size, follows),
    ])
}

/// Runs an agent's loop over the maps, and `watch` on a thread beside it.
fn beside_a_loop<T: Send>(
    bench: Bench,
    watch: impl FnOnce(&mut Watcher) -> Result<T> + Send,
) -> Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let (events, health) = mpsc::channel(NEWS);
    let (handle, requests) = Handle::new();
    let sources = Sources {
        requests,
        checker: Checker::new(events.clone(), 1),
        resolver: Resolver::idle(),
        network: mpsc::channel(1).1,
        announcer: Announcer::idle(),
        conflicts: mpsc::channel(1).1,
        store: None,
        programs: Arc::new(Loaded),
        history: None,
    };
    let mut watcher = Watcher {
        program: bench.balancer.program,
        flows: bench.flows,
        events,
        handle,
        runtime: Builder::new_current_thread().enable_all().build()?,
    };
    let mut core = bench.balancer.core;
    core.listen(health, SystemTime::now);
    let (stop, stopped) = oneshot::channel::<()>();
    let times = thread::scope(|scope| {
        let watching = scope.spawn(move || {
            beside_the_loop();
            let times = watch(&mut watcher);
            drop(stop);
            times
        });
        runtime.block_on(agent::run(core, sources, || {}, async {
            drop(stopped.await);
        }));
        watching.join()
    });
    times.map_err(|_| anyhow::anyhow!("the thread that sends flows broke off"))?
}

/// Moves this thread to the second processor, where there is one: `lbd` and packets share none either.
fn beside_the_loop() {
    let mut cpu = CpuSet::new();
    let _ = cpu
        .set(1)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpu));
}

/// Who tells of failures, and sees what comes of them.
struct Watcher {
    program: Program,
    flows: NewFlows,
    events: mpsc::Sender<Event>,
    handle: Handle,
    runtime: Runtime,
}

impl Watcher {
    /// How long until a new flow goes elsewhere, and until the loop has done all that there is to do.
    fn fail(&mut self, [down, up]: [Event; 2]) -> Result<(Duration, Duration)> {
        let address = down.target.address;
        let flow = self.flows.next_of(&mut self.program, address.ip())?;
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let start = Instant::now();
        self.tell(down)?;
        while backend_of(self.program.xdp()?, &flow)? == address.ip() {
            ensure!(start.elapsed() < PATIENCE, "{address} goes on to get flows");
        }
        let steer = start.elapsed();
        self.hear()?;
        let follow = start.elapsed();
        self.tell(up)?;
        self.hear()?;
        ensure!(
            backend_of(self.program.xdp()?, &flow)? == address.ip(),
            "{address} is up again"
        );
        Ok((steer, follow))
    }

    /// The same of a backend of many services, each with a flow that goes there, whose failures are told over [`SPREAD_OVER`]: how
    /// long until each flow goes elsewhere.
    fn fail_everywhere(
        &mut self,
        victim: SocketAddr,
        flows: &[(ServiceId, Vec<u8>)],
    ) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let begun = Instant::now();
        for ((id, flow), n) in flows.iter().zip(0u32..) {
            let due = SPREAD_OVER * n / flows.len() as u32;
            while begun.elapsed() < due {
                std::hint::spin_loop();
            }
            #[expect(clippy::disallowed_methods, reason = "what is measured")]
            let start = Instant::now();
            self.tell(event(*id, victim, Condition::Down))?;
            while backend_of(self.program.xdp()?, flow)? == victim.ip() {
                ensure!(
                    start.elapsed() < PATIENCE,
                    "{victim} goes on to get flows of {id}"
                );
            }
            times.push(start.elapsed());
        }
        self.hear()?;
        for (id, _) in flows {
            self.tell(event(*id, victim, Condition::Up))?;
        }
        // What was told amid the last plan has one of its own.
        for _ in 0..2 {
            self.hear()?;
        }
        for (id, flow) in flows {
            let to = backend_of(self.program.xdp()?, flow)?;
            ensure!(
                to == victim.ip(),
                "{victim} is up again, and {id} sends to {to}"
            );
        }
        Ok(times)
    }

    fn tell(&self, event: Event) -> Result<()> {
        let told = self.events.blocking_send(event);
        told.context("the loop has ended")
    }

    /// Until the loop has done what it was told before: it answers after that.
    fn hear(&self) -> Result<()> {
        let none = EventFilter {
            service: None,
            after: None,
            epoch: None,
            limit: 0,
        };
        self.runtime.block_on(self.handle.events(none))?;
        Ok(())
    }
}
