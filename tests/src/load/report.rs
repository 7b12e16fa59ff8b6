//! What a load generator saw. Plain data and the questions that tests ask of it.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use tokio::time::Instant;

/// Where an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Before the connection stood.
    Connect,
    /// After.
    Exchange,
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The other side's kernel has no such listener.
    Refused,
    /// The other side sent a reset.
    Reset,
    /// The other side closed in the middle.
    Closed,
    /// Something on the way has no route.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The answer was not a success.
    Status(u16),
    /// Anything else, in words.
    Other(String),
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failure {
    /// Where.
    pub phase: Phase,
    /// How.
    pub reason: Reason,
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Connect => "connecting",
            Phase::Exchange => "exchange",
        };
        write!(f, "{phase}: {:?}", self.reason)
    }
}

/// One attempt, such as a connection with its request.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Just before its first packet.
    pub started: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// The name of the backend that answered, or what went wrong.
    pub outcome: Result<String, Failure>,
}

/// All attempts, in the order in which they ended.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The attempts.
    pub attempts: Vec<Attempt>,
}

impl Report {
    /// How often each backend answered.
    pub fn per_backend(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in self
            .attempts
            .iter()
            .filter_map(|attempt| attempt.outcome.as_ref().ok())
        {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    /// Attempts that were answered.
    pub fn succeeded(&self) -> usize {
        self.attempts
            .iter()
            .filter(|attempt| attempt.outcome.is_ok())
            .count()
    }

    /// Attempts that failed, with how.
    pub fn failures(&self) -> impl Iterator<Item = (&Attempt, &Failure)> {
        self.attempts
            .iter()
            .filter_map(|attempt| Some((attempt, attempt.outcome.as_ref().err()?)))
    }

    /// Failed attempts that began before `moment`, and those that began then or later.
    pub fn failures_around(&self, moment: Instant) -> (usize, usize) {
        let all = self.failures().count();
        let before = self
            .failures()
            .filter(|(attempt, _)| attempt.started < moment)
            .count();
        (before, all - before)
    }

    /// When the last attempt began that failed: the last one misdirected, where a dead backend is
    /// the only cause of failures.
    pub fn last_failure_started(&self) -> Option<Instant> {
        self.failures().map(|(attempt, _)| attempt.started).max()
    }

    /// Attempts per second, from the first's start to the last's.
    pub fn rate(&self) -> f64 {
        let starts = || self.attempts.iter().map(|attempt| attempt.started);
        let (Some(first), Some(last)) = (starts().min(), starts().max()) else {
            return 0.0;
        };
        (self.attempts.len() - 1) as f64 / (last - first).as_secs_f64()
    }

    /// The longest that an answered attempt took.
    pub fn slowest(&self) -> Option<Duration> {
        let answered = self
            .attempts
            .iter()
            .filter(|attempt| attempt.outcome.is_ok());
        answered
            .map(|attempt| attempt.ended - attempt.started)
            .max()
    }

    /// How often each kind of failure happened.
    pub fn failure_kinds(&self) -> BTreeMap<Failure, usize> {
        let mut kinds = BTreeMap::new();
        for (_, failure) in self.failures() {
            *kinds.entry(failure.clone()).or_default() += 1;
        }
        kinds
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} attempts ({:.0}/s), {} answered {:?}",
            self.attempts.len(),
            self.rate(),
            self.succeeded(),
            self.per_backend()
        )?;
        for (failure, count) in self.failure_kinds() {
            write!(f, ", {count} × {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(start: Instant, at_ms: u64, outcome: Result<&str, Reason>) -> Attempt {
        let started = start + Duration::from_millis(at_ms);
        let failure = |reason| Failure {
            phase: Phase::Connect,
            reason,
        };
        let outcome = outcome.map(str::to_owned).map_err(failure);
        Attempt {
            started,
            ended: started + Duration::from_millis(5),
            outcome,
        }
    }

    fn report(start: Instant) -> Report {
        Report {
            attempts: vec![
                attempt(start, 0, Ok("a")),
                attempt(start, 10, Err(Reason::Refused)),
                attempt(start, 30, Err(Reason::Refused)),
                attempt(start, 20, Ok("b")),
                attempt(start, 40, Ok("a")),
            ],
        }
    }

    #[test]
    fn answers_are_counted_per_backend() {
        let report = report(Instant::now());
        assert_eq!(
            report.per_backend(),
            [("a".into(), 2), ("b".into(), 1)].into()
        );
        assert_eq!(report.succeeded(), 3);
        assert_eq!(report.slowest(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn failures_are_split_by_when_they_began() {
        let start = Instant::now();
        let report = report(start);
        assert_eq!(
            report.failures_around(start + Duration::from_millis(30)),
            (1, 1)
        );
        assert_eq!(
            report.last_failure_started(),
            Some(start + Duration::from_millis(30))
        );
    }

    #[test]
    fn the_rate_is_that_of_the_starts() {
        assert!((report(Instant::now()).rate() - 100.0).abs() < 0.001);
        assert!(Report::default().rate().abs() < 0.001);
    }
}
