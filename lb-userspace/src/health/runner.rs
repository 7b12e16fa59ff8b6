//! Owns the checks of one target: probes in its rhythm, keeps its machine, reports what is news.
//! Never knows of other targets, apart from the permits that all share.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    time,
};

use crate::{
    health::{
        Check, Event, Target,
        machine::{Machine, Outcome},
        probe::{ProbeError, Prober},
        schedule,
    },
    model::{Probe, Protocol},
    snapshot::Condition,
};

/// A success that brings no other news is reported this often, for its latency to be shown. With
/// 10,000 targets these are 2,000 events a second at most, whatever their intervals are.
pub const LATENCY_EVERY: Duration = Duration::from_secs(5);

/// Nobody listens to the events any more.
struct Unheard;

/// Checks one target until the checker forgets it.
pub struct Runner<P> {
    target: Target,
    machine: Machine,
    prober: P,
    permits: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    /// Whether the last probe that blames the backend was told that nobody is there.
    nobody: bool,
    reported: Reported,
}

/// What the receiver knows.
struct Reported {
    condition: Condition,
    dead: bool,
    error: Option<String>,
    /// When it was told, if ever.
    at: Option<time::Instant>,
}

impl<P: Prober> Runner<P> {
    /// A runner that has not probed yet.
    pub fn new(
        target: Target,
        initial: Condition,
        prober: P,
        permits: Arc<Semaphore>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let machine = Machine::new(initial, 1, 1);
        let reported = Reported {
            condition: initial,
            dead: false,
            error: None,
            at: None,
        };
        Self {
            target,
            machine,
            prober,
            permits,
            events,
            nobody: false,
            reported,
        }
    }

    /// Probes as `updates` says, until its sender or the receiver of the events is gone.
    pub async fn run(mut self, mut updates: watch::Receiver<Check>) {
        loop {
            let check = updates.borrow_and_update().clone();
            // A probe under way when the check changes has asked the wrong question: it is dropped.
            tokio::select! {
                Unheard = self.check(&check) => return,
                changed = updates.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Probes as `check` says, for ever.
    async fn check(&mut self, check: &Check) -> Unheard {
        let health = &check.health;
        self.machine = Machine::new(self.machine.condition(), health.rise, health.fall);
        if health.probe == Probe::None {
            return self.settle().await;
        }
        let mut starts = schedule::starts(&self.target, health.interval);
        loop {
            starts.tick().await;
            let Ok(permit) = self.permits.acquire().await else {
                return Unheard;
            };
            let outcome = self.prober.probe(self.target.address, health).await;
            drop(permit);
            if let Err(unheard) = self.conclude(outcome, check).await {
                return unheard;
            }
        }
    }

    /// Up, without a probe, and nothing more to say.
    async fn settle(&mut self) -> Unheard {
        self.machine = Machine::new(Condition::Up, 1, 1);
        match self.report(None, None).await {
            Ok(()) => std::future::pending().await,
            Err(unheard) => unheard,
        }
    }

    async fn conclude(
        &mut self,
        outcome: Result<Duration, ProbeError>,
        check: &Check,
    ) -> Result<(), Unheard> {
        match &outcome {
            Ok(_) => {
                self.nobody = false;
                self.machine.observe(Outcome::Success);
            }
            Err(error) if error.blames_backend() => {
                self.nobody = error.says_dead(self.probes_what_serves(check));
                self.machine.observe(Outcome::Failure);
            }
            Err(_) => {}
        }
        let error = outcome.as_ref().err().map(ToString::to_string);
        if self.is_news(error.as_ref()) {
            self.report(error, outcome.ok()).await?;
        }
        Ok(())
    }

    /// Whether probes go to where all flows go.
    fn probes_what_serves(&self, Check { health, alone }: &Check) -> bool {
        let port = self.target.address.port();
        *alone
            && self.target.service.protocol == Protocol::Tcp
            && health.port.is_none_or(|p| p == port)
    }

    fn dead(&self) -> bool {
        self.nobody && self.machine.condition() == Condition::Down
    }

    fn is_news(&self, error: Option<&String>) -> bool {
        let last = &self.reported;
        let due = last
            .at
            .is_none_or(|at| error.is_none() && at.elapsed() >= LATENCY_EVERY);
        due || last.condition != self.machine.condition()
            || last.dead != self.dead()
            || last.error.as_ref() != error
    }

    async fn report(
        &mut self,
        error: Option<String>,
        latency: Option<Duration>,
    ) -> Result<(), Unheard> {
        // Waiting comes first: a change of the check may end it, and what was not said then is
        // still news after the next probe.
        let slot = self.events.reserve().await.map_err(|_| Unheard)?;
        let (condition, dead) = (self.machine.condition(), self.dead());
        let changed = condition != self.reported.condition;
        slot.send(Event {
            target: self.target,
            condition,
            changed,
            dead,
            error: error.clone(),
            latency,
        });
        self.reported = Reported {
            condition,
            dead,
            error,
            at: Some(time::Instant::now()),
        };
        Ok(())
    }
}
