//! A failure on its way through the agent's loop: told as checks tell it, by the channel that the loop listens to, while another
//! thread sends new flows through the program.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    agent::{self, Handle, Sources},
    announce::Announcer,
    dataplane::{DataplaneError, Programs, bpf::Program},
    health::{Checker, Event},
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
use crate::bench::{balancer::backend_of, report::Latency};

pub(super) const NAMES: [&str; 2] = ["decide-to-steer-loop", "ring-follows-loop"];
const BACKENDS: u16 = 1_000;
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
    // Without records, slots are at rest at once, and flows are nobody's.
    let bench = Bench::new(&Shape {
        moving_time: Some(Duration::ZERO),
        ..Shape::of_one(BACKENDS)
    })?;
    let size = bench.size()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let (events, health) = mpsc::channel(NEWS);
    let (handle, requests) = Handle::new();
    let sources = Sources {
        requests,
        checker: Checker::new(events.clone(), 1),
        health,
        resolver: Resolver::idle(),
        network: mpsc::channel(1).1,
        announcer: Announcer::idle(),
        conflicts: mpsc::channel(1).1,
        store: None,
        programs: Arc::new(Loaded),
        history: None,
    };
    let victims = (0..effort.often).map(|turn| bench.backends[turn % bench.backends.len()].address);
    let failures = victims.map(|address| {
        let event = |condition| event(bench.id, address, condition);
        [event(Condition::Down), event(Condition::Up)]
    });
    let failures: Vec<[Event; 2]> = failures.collect();
    let mut watcher = Watcher {
        program: bench.balancer.program,
        flows: bench.flows,
        events,
        handle,
        runtime: Builder::new_current_thread().enable_all().build()?,
    };
    let core = bench.balancer.core;
    let (stop, stopped) = oneshot::channel::<()>();
    let times = thread::scope(|scope| {
        let watching = scope.spawn(move || {
            beside_the_loop();
            let times: Result<Vec<_>> = failures
                .into_iter()
                .map(|failure| watcher.fail(failure))
                .collect();
            drop(stop);
            times
        });
        runtime.block_on(agent::run(core, sources, || {}, async {
            drop(stopped.await);
        }));
        watching.join()
    });
    let times = times.map_err(|_| anyhow::anyhow!("the thread that sends flows broke off"))??;
    let (steers, follows) = times.into_iter().unzip();
    Ok(vec![
        latency(NAMES[0], size, steers),
        latency(NAMES[1], size, follows),
    ])
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
