//! Who broke, and why: the bookkeeping of a run. Pure; all times are since the run's start.
//!
//! A connection breaks *with its backend* where the process that it had was killed before. It
//! breaks *idle* where it had sent nothing for the moving time, beyond which nothing is promised.
//! Otherwise it is *broken*: its backend lived, so something on the way moved or lost it.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    io,
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{plan::Kind, wire::Identity};

/// For a connection to be made, greeted, answered or closed. Far beyond TCP's first
/// retransmissions, so that a slow machine breaks nothing.
pub const LIMIT: Duration = Duration::from_secs(10);
/// The longest latency that is told from longer ones, in microseconds: a minute.
const LONGEST: u64 = 60_000_000;
/// Breaks that are kept one by one.
const KEPT: usize = 20;

/// What an established connection was doing when it broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Established, it waited for its backend's greeting.
    Greeting,
    /// It waited for the answer to a request.
    Exchange,
    /// It had sent its end and waited for the backend's.
    Closing,
}

/// How it broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Reset.
    Reset,
    /// Ended by the other side.
    Ended,
    /// No answer within [`LIMIT`].
    Silent,
    /// Another backend answered.
    Foreign,
    /// The answer was not the request's.
    Garbled,
    /// Another error of the socket.
    Other,
}

impl From<&io::Error> for How {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::UnexpectedEof => Self::Ended,
            io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Other,
        }
    }
}

/// A connection that broke.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Break {
    /// When it was noticed.
    #[serde(serialize_with = "seconds")]
    pub at: Duration,
    /// When the connection was begun.
    #[serde(serialize_with = "seconds")]
    pub born: Duration,
    /// Its service, counted from 0.
    pub service: usize,
    /// Its port at the client.
    pub port: u16,
    /// Its backend; none where it was never greeted.
    pub backend: Option<Identity>,
    /// What it was doing.
    pub phase: Phase,
    /// How it broke.
    pub how: How,
    /// How long it had sent nothing before what it sent last.
    #[serde(serialize_with = "seconds")]
    pub quiet: Duration,
    /// The last change before.
    pub after: Option<Kind>,
}

impl Display for Break {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let backend = self
            .backend
            .map_or("unknown".to_owned(), |backend| backend.to_string());
        write!(
            f,
            "{:.3} s: port {} of service {} to {backend}, born {:.3} s, {:?} {:?} after {}",
            self.at.as_secs_f64(),
            self.port,
            self.service,
            self.born.as_secs_f64(),
            self.phase,
            self.how,
            self.after.map_or("start", Kind::name)
        )
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Whose fault a break is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its backend lived.
    Broken,
    /// Its backend had been killed.
    WithBackend,
    /// It had been idle for too long.
    Idle,
}

/// What is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections greeted by a backend.
    pub opened: u64,
    /// Those standing now.
    pub open: u64,
    /// The most that stood at once.
    pub most_open: u64,
    /// Those closed in order, on purpose.
    pub closed: u64,
    /// Answered requests.
    pub echoes: u64,
    /// Broken although their backend lived.
    pub broken: u64,
    /// Broken after their backend was killed.
    pub with_backend: u64,
    /// Broken after they had been idle for the moving time.
    pub idle: u64,
    /// The broken ones by the last change before; "start" where there was none.
    pub broken_after: BTreeMap<&'static str, u64>,
    /// The broken ones by what they did and how it went wrong.
    pub broken_how: BTreeMap<(Phase, How), u64>,
    /// Attempts to connect that failed, by error.
    pub not_opened: BTreeMap<String, u64>,
}

/// A process of a backend.
#[derive(Debug, Default)]
struct Life {
    killed: Option<Duration>,
    /// When it was gone: until then its sockets may have taken connections.
    gone: Option<Duration>,
    /// Each from, until.
    stalls: Vec<(Duration, Option<Duration>)>,
}

/// The books of a run.
pub struct Account {
    lives: BTreeMap<Identity, Life>,
    changes: Vec<(Duration, Kind)>,
    totals: Totals,
    kept: Vec<Break>,
    /// The moving time, if there is one.
    idle: Option<Duration>,
    /// Of answers, in microseconds.
    latencies: Histogram<u64>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}

impl Account {
    /// New books; `idle` is how long a connection may send nothing, if that is limited.
    pub fn new(idle: Option<Duration>) -> Self {
        Self {
            lives: BTreeMap::new(),
            changes: Vec::new(),
            totals: Totals::default(),
            kept: Vec::new(),
            idle,
            latencies: Histogram::new_with_max(LONGEST, 3).expect("bounds that are allowed"),
        }
    }

    /// A change begins.
    pub fn changes(&mut self, kind: Kind, at: Duration) {
        self.changes.push((at, kind));
    }

    /// A process is about to be killed.
    pub fn kills(&mut self, backend: Identity, at: Duration) {
        self.life(backend).killed = Some(at);
    }

    /// A killed process has been seen to be gone.
    pub fn gone(&mut self, backend: Identity, at: Duration) {
        self.life(backend).gone = Some(at);
    }

    /// A process is about to be stopped.
    pub fn stalls(&mut self, backend: Identity, at: Duration) {
        self.life(backend).stalls.push((at, None));
    }

    /// A stopped process goes on.
    pub fn goes_on(&mut self, backend: Identity, at: Duration) {
        if let Some((_, until @ None)) = self.life(backend).stalls.last_mut() {
            *until = Some(at);
        }
    }

    fn life(&mut self, backend: Identity) -> &mut Life {
        self.lives.entry(backend).or_default()
    }

    /// Until when what was asked of `backend` (of any one, where it is not known yet) at `asked`
    /// has to be answered: a stopped process answers nobody, and that breaks nothing.
    pub fn deadline(&self, backend: Option<Identity>, asked: Duration, now: Duration) -> Duration {
        let stalls = self
            .lives
            .iter()
            .filter(|(identity, _)| backend.is_none_or(|backend| backend == **identity))
            .flat_map(|(_, life)| &life.stalls);
        let went_on = stalls.map(|(_, until)| until.unwrap_or(now));
        went_on.fold(asked, Duration::max) + LIMIT
    }

    /// A connection stands.
    pub fn opened(&mut self) {
        self.totals.opened += 1;
        self.totals.open += 1;
        self.totals.most_open = self.totals.most_open.max(self.totals.open);
    }

    /// A connection could not be made.
    pub fn not_opened(&mut self, reason: &str) {
        *self.totals.not_opened.entry(reason.to_owned()).or_default() += 1;
    }

    /// A request was answered after `latency`.
    pub fn echoed(&mut self, latency: Duration) {
        self.totals.echoes += 1;
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros);
    }

    /// A connection was closed in order.
    pub fn closed(&mut self) {
        self.totals.closed += 1;
        self.totals.open -= 1;
    }

    /// A connection broke; `broken.after` is filled in here.
    pub fn broke(&mut self, mut broken: Break) -> Verdict {
        if broken.phase != Phase::Greeting {
            self.totals.open -= 1;
        }
        let verdict = self.judge(&broken);
        match verdict {
            Verdict::WithBackend => self.totals.with_backend += 1,
            Verdict::Idle => self.totals.idle += 1,
            Verdict::Broken => {
                broken.after = self.last_change(broken.at);
                self.count_broken(&broken);
            }
        }
        verdict
    }

    fn count_broken(&mut self, broken: &Break) {
        let after = broken.after.map_or("start", Kind::name);
        self.totals.broken += 1;
        *self.totals.broken_after.entry(after).or_default() += 1;
        let how = (broken.phase, broken.how);
        *self.totals.broken_how.entry(how).or_default() += 1;
        if self.kept.len() < KEPT {
            self.kept.push(*broken);
        }
    }

    /// A connection that was never greeted may have had any backend.
    fn judge(&self, broken: &Break) -> Verdict {
        let killed = match broken.backend {
            Some(backend) => self.killed(backend).is_some_and(|at| at <= broken.at),
            None => self.lives.values().any(|life| died_within(life, broken)),
        };
        let idle = self.idle.is_some_and(|limit| broken.quiet >= limit);
        match (killed, idle) {
            (true, _) => Verdict::WithBackend,
            (false, true) => Verdict::Idle,
            (false, false) => Verdict::Broken,
        }
    }

    fn killed(&self, backend: Identity) -> Option<Duration> {
        self.lives.get(&backend)?.killed
    }

    fn last_change(&self, before: Duration) -> Option<Kind> {
        let earlier = self.changes.iter().rev().find(|(at, _)| *at <= before);
        earlier.map(|(_, kind)| *kind)
    }

    /// The sums.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Changes by kind.
    pub fn changes_by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (_, kind) in &self.changes {
            *counts.entry(kind.name()).or_default() += 1;
        }
        counts
    }

    /// The first breaks of connections whose backend lived.
    pub fn kept(&self) -> &[Break] {
        &self.kept
    }

    /// How long answers took, in microseconds.
    pub fn latencies(&self) -> &Histogram<u64> {
        &self.latencies
    }
}

/// Whether `life` was dying at some time while a connection lived.
fn died_within(life: &Life, broken: &Break) -> bool {
    let begun = life.killed.is_some_and(|at| at <= broken.at);
    begun && life.gone.is_none_or(|at| broken.born <= at)
}

#[cfg(test)]
mod tests;
