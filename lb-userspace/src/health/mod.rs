//! Owns the health checks: probes all backends on tasks of its own and reports what changed.
//! Never touches rings or maps, and never blocks the agent's loop, which only receives [`Event`]s.
//!
//! `schedule` says when, `probe` asks, `machine` judges, `runner` joins them for one target, and
//! [`Checker`] keeps one runner per target.

pub mod machine;
pub mod probe;
mod runner;
mod schedule;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
};

use crate::{
    health::{
        probe::{Network, Prober},
        runner::Runner,
    },
    model::{Health, ServiceId},
    snapshot::Condition,
};

/// Probes under way at once. Each takes a descriptor, so an outage of thousands of backends, whose
/// probes all last until their timeout, must not take those of the rest of the agent. With the
/// default interval and timeout (1 s, 500 ms) some 2,000 backends can hang at the same time and
/// still be found in time; beyond that, probes wait for their turn, and waiting is not failing.
pub const PROBES_IN_FLIGHT: usize = 1_024;

/// What is checked: a backend in its role for one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The service.
    pub service: ServiceId,
    /// The backend's address in that service.
    pub address: SocketAddr,
}

/// How a target is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// Probe, rhythm and thresholds.
    pub health: Health,
    /// Its port is the only one that serves: who refuses there is not there at all.
    pub alone: bool,
    /// What it counts as before its first probe. Only looked at when the target is new.
    pub initial: Condition,
}

/// What a running check goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    health: Health,
    alone: bool,
}

impl TargetConfig {
    fn check(&self) -> Check {
        let Self { health, alone, .. } = self;
        Check {
            health: health.clone(),
            alone: *alone,
        }
    }
}

/// News of a target. The news of a target that has just been removed may still be on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which.
    pub target: Target,
    /// Its condition now.
    pub condition: Condition,
    /// Whether the condition is another than before: the rings must follow.
    pub changed: bool,
    /// Whether it is down, and the last probe that says anything about it was told that nobody is
    /// there ([`probe::ProbeError::says_dead`]), which is more than no answer.
    pub dead: bool,
    /// Why the last probe failed, where it did.
    pub error: Option<String>,
    /// How long the last probe took, where it succeeded.
    pub latency: Option<Duration>,
}

/// Runs the checks of all targets. Dropping it stops them.
#[derive(Debug)]
pub struct Checker<P = Network> {
    prober: P,
    events: mpsc::Sender<Event>,
    permits: Arc<Semaphore>,
    running: BTreeMap<Target, Running>,
}

/// The task of one target.
#[derive(Debug)]
struct Running {
    check: watch::Sender<Check>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// A checker without targets that reports to `events`.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self::with_prober(events, Network)
    }
}

impl<P: Prober> Checker<P> {
    fn with_prober(events: mpsc::Sender<Event>, prober: P) -> Self {
        let permits = Arc::new(Semaphore::new(PROBES_IN_FLIGHT));
        Self {
            prober,
            events,
            permits,
            running: BTreeMap::new(),
        }
    }

    /// Makes `targets` the ones that are checked. New ones start, missing ones stop; one whose
    /// [`Health`] changed keeps its condition and counts anew; the others go on undisturbed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn set(&mut self, targets: BTreeMap<Target, TargetConfig>) {
        self.running
            .retain(|target, _| targets.contains_key(target));
        for (target, config) in targets {
            match self.running.get(&target) {
                Some(running) => running.update(config.check()),
                None => {
                    let running = self.start(target, config);
                    self.running.insert(target, running);
                }
            }
        }
    }

    fn start(&self, target: Target, config: TargetConfig) -> Running {
        let (check, updates) = watch::channel(config.check());
        let (prober, permits) = (self.prober.clone(), Arc::clone(&self.permits));
        let runner = Runner::new(target, config.initial, prober, permits, self.events.clone());
        let task = tokio::spawn(runner.run(updates)).abort_handle();
        Running { check, task }
    }
}

impl Running {
    fn update(&self, check: Check) {
        self.check.send_if_modified(|current| {
            let changed = *current != check;
            *current = check;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
