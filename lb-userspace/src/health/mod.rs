//! Owns the health checks: probes all backends on tasks of its own and reports what changed.
//! Never touches rings or maps, and never blocks the agent's loop, which only receives [`Event`]s.
//!
//! `accrual` tells what takes long from what does not,
//! `schedule` says when, `probe` asks, `heartbeat` tells silence from beats, which come through the API or
//! `heartbeat_port` and are passed on by `reports`, `machine` judges;
//! `checking` joins them for one check, `runner` those of one target with the help of `combine`, and
//! [`Checker`] keeps one runner per target. `reply` is what a backend's own agent says.

pub mod accrual;
mod checking;
pub mod combine;
pub mod heartbeat;
pub mod heartbeat_port;
pub mod machine;
pub mod probe;
pub mod reply;
pub mod reports;
mod runner;
mod schedule;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    health::{
        checking::Tools,
        probe::{Network, Prober},
        reply::Asked,
        reports::Reports,
        runner::Runner,
    },
    model::{Health, ServiceId},
    snapshot::{CheckStatus, Condition},
};

/// Probes under way at once, unless said otherwise. Each takes a descriptor, so an outage of thousands of
/// backends, whose probes all last until their timeout, must not take those of the rest of the agent.
/// With the default interval and timeout (1 s, 500 ms) some 2,000 backends can hang at the same time
/// and still be found in time; beyond that, probes wait for their turn, and waiting is not failing.
pub const PROBES_IN_FLIGHT: usize = 1_024;

/// How many probes may be under way in a process that can have `descriptors` open: half of them, and as many
/// as 10,000 hanging backends need at the default interval and timeout.
pub fn probes_in_flight(descriptors: u64) -> usize {
    let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
    half.clamp(64, 6_144)
}

/// What is checked: a backend in its role for one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The service.
    pub service: ServiceId,
    /// The backend's address in that service.
    pub address: SocketAddr,
}

/// How traffic of a service reaches its backends, for probes that go the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// What packets become.
    pub by: By,
    /// Where they leave this host, where a probe has to know that and it is known.
    pub hop: Option<Hop>,
    /// Whether that was known, and is no longer.
    pub lost: bool,
}

/// What packets become on their way to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// They are addressed to it.
    #[default]
    Address,
    /// They have an IP header more.
    Ipip,
    /// They are in UDP.
    Gue {
        /// To this port.
        port: u16,
        /// With room for another backend ([`lb_common::second_hop`]).
        second_hop: bool,
    },
    /// They have its hardware address.
    Mac,
}

/// By which interface packets leave, and to which hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The interface's index.
    pub interface: u32,
    /// The backend's address, or that of the router to it.
    pub mac: [u8; 6],
}

/// How a target is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// Its checks: what they ask, their rhythm and thresholds.
    pub health: Arc<Health>,
    /// All of its flows arrive at its own port: who refuses there is not there at all.
    pub alone: bool,
    /// How traffic reaches it.
    pub way: Way,
    /// Over how long latencies are smoothed, and how often they are told, where somebody goes by them.
    pub smooth: Option<Duration>,
    /// What it counts as before its first probe. Only looked at when the target is new.
    pub initial: Condition,
    /// What its agent has asked for before that. Looked at as seldom.
    pub asked: Asked,
    /// Services beside the target's own by whose names it reports, and at whose VIPs it is asked: those of its group.
    pub also: Arc<[ServiceId]>,
}

/// What running checks go by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Checks {
    health: Arc<Health>,
    alone: bool,
    way: Way,
    also: Arc<[ServiceId]>,
}

impl TargetConfig {
    fn checks(&self) -> Checks {
        let Self {
            health,
            alone,
            way,
            also,
            ..
        } = self;
        Checks {
            health: Arc::clone(health),
            alone: *alone,
            way: *way,
            also: Arc::clone(also),
        }
    }
}

/// News of a target. The news of a target that has just been removed may still be on its way.
#[derive(Debug, Clone, PartialEq)]
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
    /// Whether it is down, and a check has failed as often in a row as it takes: one that began as down, as some do after a
    /// restart of the agent, has yet to be found so.
    pub fails: bool,
    /// Why the last probes failed, where they did.
    pub error: Option<String>,
    /// Whether any of them says something against it: others could not be made.
    pub suspect: bool,
    /// How long the last probes took, the slowest of those that succeeded.
    pub latency: Option<Duration>,
    /// How long probes take on average, those that are not answered in time included, where somebody goes by that: the check
    /// that takes longest.
    pub smoothed: Option<Duration>,
    /// What each check says.
    pub checks: Vec<CheckStatus>,
    /// What the backend's agent asks for.
    pub asked: Asked,
    /// When the agent was asked that answered last that no flow is left.
    pub none_left: Option<Instant>,
}

impl Event {
    /// A target in that condition, as it was before, and nothing more about it.
    pub fn new(target: Target, condition: Condition) -> Self {
        Self {
            target,
            condition,
            changed: false,
            dead: false,
            fails: false,
            error: None,
            suspect: false,
            latency: None,
            smoothed: None,
            checks: Vec::new(),
            asked: Asked::default(),
            none_left: None,
        }
    }

    /// `next` as what comes after this.
    fn turned_to(&self, next: Self) -> Self {
        let changed = next.condition != self.condition;
        Self { changed, ..next }
    }
}

/// Runs the checks of all targets. Dropping it stops them.
#[derive(Debug)]
pub struct Checker<P = Network> {
    prober: P,
    events: mpsc::Sender<Event>,
    permits: Arc<Semaphore>,
    running: BTreeMap<Target, Running>,
    reports: Reports,
}

/// The task of one target.
#[derive(Debug)]
struct Running {
    checks: watch::Sender<Checks>,
    /// Over how long latencies are smoothed, which disturbs no check.
    smooth: watch::Sender<Option<Duration>>,
    beats: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// A checker without targets that reports to `events`, with so many probes under way at once.
    pub fn new(events: mpsc::Sender<Event>, probes_in_flight: usize) -> Self {
        Self::with_prober(events, Network::default(), probes_in_flight)
    }
}

impl<P: Prober> Checker<P> {
    fn with_prober(events: mpsc::Sender<Event>, prober: P, probes_in_flight: usize) -> Self {
        Self {
            prober,
            events,
            permits: Arc::new(Semaphore::new(probes_in_flight)),
            running: BTreeMap::new(),
            reports: Reports::default(),
        }
    }

    /// Passes beats on to the targets, from anywhere.
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// Makes `targets` the ones that are checked. New ones start, missing ones stop; one whose
    /// [`Health`] changed keeps its condition and counts anew; the others go on undisturbed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn set(&mut self, targets: BTreeMap<Target, TargetConfig>) {
        self.running
            .retain(|target, _| targets.contains_key(target));
        let (mut reporting, mut leads) = (HashMap::new(), HashMap::new());
        for (target, config) in targets {
            let reports = config.health.expects_beats();
            if reports {
                leads.extend(config.also.iter().map(|&id| (id, target.service)));
            }
            match self.running.get(&target) {
                Some(running) => running.update(&config),
                None => {
                    let running = self.start(target, config);
                    self.running.insert(target, running);
                }
            }
            if let Some(running) = self.running.get(&target).filter(|_| reports) {
                reporting.insert(target, Arc::clone(&running.beats));
            }
        }
        self.reports.set(reporting, leads);
    }

    fn start(&self, target: Target, config: TargetConfig) -> Running {
        let (checks, updates) = watch::channel(config.checks());
        let (smooth, smoothed) = watch::channel(config.smooth);
        let beats = Arc::new(Notify::new());
        let tools = Tools {
            prober: self.prober.clone(),
            permits: Arc::clone(&self.permits),
            beats: Arc::clone(&beats),
        };
        let events = self.events.clone();
        let before = Event {
            asked: config.asked,
            ..Event::new(target, config.initial)
        };
        let runner = Runner::new(before, tools, smoothed, events);
        let task = tokio::spawn(runner.run(updates)).abort_handle();
        Running {
            checks,
            smooth,
            beats,
            task,
        }
    }
}

impl Running {
    fn update(&self, config: &TargetConfig) {
        self.smooth.send_replace(config.smooth);
        let checks = config.checks();
        self.checks.send_if_modified(|current| {
            let changed = *current != checks;
            *current = checks;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
