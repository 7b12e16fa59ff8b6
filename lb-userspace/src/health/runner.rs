//! Owns the checks of one target: runs them side by side, makes one verdict of theirs, reports what is
//! news. Never knows of other targets.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use tokio::{
    sync::{mpsc, watch},
    time,
};

use crate::{
    health::{
        Checks, Event, Target,
        checking::{Checking, Finding, Tools},
        combine,
        probe::Prober,
        reply::Asked,
    },
    model::{Combine, Probe},
    smooth::Smooth,
    snapshot::Condition,
};

/// What brings no other news is reported this often, for latencies and counts to be shown. With 10,000
/// targets these are 2,000 events a second at most, whatever their intervals are.
pub const LATENCY_EVERY: Duration = Duration::from_secs(5);

/// Nobody listens to the events any more.
struct Unheard;

/// Checks one target until the checker forgets it.
pub struct Runner<P> {
    target: Target,
    tools: Tools<P>,
    /// Over how long latencies are smoothed, if they are.
    smooth: watch::Receiver<Option<Duration>>,
    events: mpsc::Sender<Event>,
    /// What the receiver knows, and when it was told, if ever.
    reported: Event,
    at: Option<time::Instant>,
    /// How often latencies are told.
    every: Duration,
}

/// How long the probes of a check take on average.
#[derive(Debug, Clone, Default)]
struct Latency {
    seconds: Smooth,
    last: Option<time::Instant>,
}

impl Latency {
    fn add(&mut self, took: Duration, now: time::Instant, over: Duration) {
        let passed = self.last.map(|last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.seconds
            .add(took.as_secs_f64(), passed.unwrap_or_default(), over);
    }

    fn mean(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds.mean()?).ok()
    }
}

impl<P: Prober> Runner<P> {
    /// A runner that has not probed yet, of a target that was as said before.
    pub fn new(
        before: Event,
        tools: Tools<P>,
        smooth: watch::Receiver<Option<Duration>>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            target: before.target,
            tools,
            smooth,
            events,
            reported: before,
            at: None,
            every: LATENCY_EVERY,
        }
    }

    /// Checks as `updates` says, until its sender or the receiver of the events is gone.
    pub async fn run(mut self, mut updates: watch::Receiver<Checks>) {
        loop {
            let checks = updates.borrow_and_update().clone();
            // A probe under way when the checks change has asked the wrong question: it is dropped.
            tokio::select! {
                Unheard = self.check(&checks) => return,
                changed = updates.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Checks as `wanted` says, for ever.
    async fn check(&mut self, wanted: &Checks) -> Unheard {
        let health = &wanted.health;
        if health.is_none() {
            return self.settle().await;
        }
        let (mut findings, mut checks) = self.begin(wanted);
        let mut latencies = vec![Latency::default(); findings.len()];
        let mut news = None;
        loop {
            let (index, finding) = tokio::select! {
                biased;
                // Nobody may have taken what was told before, which the other checks do not wait for.
                slot = self.events.reserve(), if news.is_some() => {
                    let (Ok(slot), Some(event)) = (slot, news.take()) else {
                        return Unheard;
                    };
                    self.reported = self.reported.turned_to(event);
                    self.at = Some(time::Instant::now());
                    slot.send(self.reported.clone());
                    continue;
                }
                Some(found) = checks.next() => found,
                else => return Unheard,
            };
            let smooth = *self.smooth.borrow();
            self.every = smooth.map_or(LATENCY_EVERY, |over| (over / 3).min(LATENCY_EVERY));
            match (finding.took, smooth) {
                (Some(took), Some(over)) => {
                    latencies[index].add(took, time::Instant::now(), over);
                }
                (_, None) => latencies.fill(Latency::default()),
                (None, Some(_)) => {}
            }
            findings[index] = finding;
            let event = Event {
                smoothed: latencies.iter().filter_map(Latency::mean).max(),
                ..self.judge(health.combine, &findings)
            };
            news = self.is_news(&event).then_some(event);
        }
    }

    /// Starts all checks. They begin with the target's condition, and its agent with what it has said.
    fn begin(
        &self,
        Checks {
            health,
            alone,
            way,
            also,
        }: &Checks,
    ) -> (
        Vec<Finding>,
        SelectAll<BoxStream<'static, (usize, Finding)>>,
    ) {
        let mut findings = Vec::new();
        let mut streams = SelectAll::new();
        let checks = health.checks.iter().zip(health.names()).enumerate();
        for (index, (check, name)) in checks {
            let asked = match check.probe {
                Probe::Agent(_) => self.reported.asked,
                _ => Asked::default(),
            };
            let (tools, initial) = (self.tools.clone(), self.reported.condition);
            let checking = Checking::new(self.target, name, check, tools, initial, asked)
                .alone(*alone)
                .by(*way, Arc::clone(also));
            findings.push(checking.finding().clone());
            let found = move |mut checking: Checking<P>| async move {
                let finding = checking.next().await.clone();
                Some(((index, finding), checking))
            };
            streams.push(stream::unfold(checking, found).boxed());
        }
        (findings, streams)
    }

    /// Up, without a probe, and nothing more to say.
    async fn settle(&mut self) -> Unheard {
        let event = Event::new(self.target, Condition::Up);
        let Ok(slot) = self.events.reserve().await else {
            return Unheard;
        };
        self.reported = self.reported.turned_to(event);
        self.at = Some(time::Instant::now());
        slot.send(self.reported.clone());
        std::future::pending().await
    }

    /// What all checks together say.
    fn judge(&self, combine: Combine, findings: &[Finding]) -> Event {
        let each = findings.iter().map(|finding| finding.status.condition);
        let condition = combine::condition(combine, each);
        let asked = findings.iter().map(|finding| finding.asked);
        Event {
            condition,
            dead: condition == Condition::Down
                && findings
                    .iter()
                    .any(|f| f.nobody && f.status.condition == Condition::Down),
            // Where one that passes is enough, all have to fail.
            fails: condition == Condition::Down
                && match combine {
                    Combine::All => findings.iter().any(|f| f.fails),
                    Combine::Any => findings.iter().all(|f| f.fails),
                },
            suspect: findings.iter().any(|f| f.suspects),
            error: error(findings),
            latency: findings.iter().filter_map(|f| f.status.latency).max(),
            asked: asked
                .into_iter()
                .find(|asked| *asked != Asked::default())
                .unwrap_or_default(),
            none_left: findings.iter().filter_map(|f| f.none_left).max(),
            checks: findings.iter().map(|f| f.status.clone()).collect(),
            ..Event::new(self.target, condition)
        }
    }

    fn is_news(&self, event: &Event) -> bool {
        let last = &self.reported;
        self.at.is_none_or(|at| at.elapsed() >= self.every)
            || (last.condition, last.dead, last.asked) != (event.condition, event.dead, event.asked)
            || (last.fails, last.suspect, &last.error) != (event.fails, event.suspect, &event.error)
            || last.none_left != event.none_left
            || !event
                .checks
                .iter()
                .map(|check| check.condition)
                .eq(last.checks.iter().map(|check| check.condition))
    }
}

/// Why checks fail, each with its name where there are several.
fn error(findings: &[Finding]) -> Option<String> {
    let errors = findings.iter().filter_map(|finding| {
        let error = finding.status.last_error.as_ref()?;
        Some(match findings {
            [_] => error.clone(),
            _ => format!("{}: {error}", finding.status.name),
        })
    });
    let errors: Vec<String> = errors.collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}
