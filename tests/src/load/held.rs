//! Connections that are kept open, each with an exchange now and then, as web sockets and
//! connection pools are: for whether anything breaks them. Owns their life and its record.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Background, Failure, Phase, Reason,
    app::{App, Session},
    raise_file_limit,
};
use crate::{netns::Namespace, wait::wait_until};

/// Connections opened at once.
const OPENING: usize = 64;
/// For all of them to be open.
const OPEN_WITHIN: Duration = Duration::from_secs(20);

/// How one connection ended before it was told to.
#[derive(Debug, Clone)]
pub struct Broken {
    /// When that was noticed: at its next exchange.
    pub at: Instant,
    /// How.
    pub failure: Failure,
}

/// The life of one connection.
#[derive(Debug, Clone)]
pub struct Life {
    /// Which backend it was opened to; none where it never stood.
    pub backend: Option<String>,
    /// Exchanges that were answered.
    pub exchanges: usize,
    /// How it ended, where it broke.
    pub broken: Option<Broken>,
}

/// What became of all connections.
#[derive(Debug, Clone, Default)]
pub struct HeldReport {
    /// A life each.
    pub lives: Vec<Life>,
}

impl HeldReport {
    /// Connections opened to each backend.
    pub fn per_backend(&self) -> BTreeMap<String, usize> {
        self.count(|_| true)
    }

    /// Those among them that broke.
    pub fn broken_per_backend(&self) -> BTreeMap<String, usize> {
        self.count(|life| life.broken.is_some())
    }

    /// Those that broke although they were not opened to `backend`.
    pub fn broken_elsewhere(&self, backend: &str) -> Vec<&Life> {
        let elsewhere = |life: &&Life| life.backend.as_deref() != Some(backend);
        self.lives
            .iter()
            .filter(|life| life.broken.is_some())
            .filter(elsewhere)
            .collect()
    }

    /// Exchanges that were answered.
    pub fn exchanges(&self) -> usize {
        self.lives.iter().map(|life| life.exchanges).sum()
    }

    fn count(&self, counts: impl Fn(&Life) -> bool) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for life in self.lives.iter().filter(|life| counts(life)) {
            let name = life
                .backend
                .clone()
                .unwrap_or_else(|| "(never opened)".into());
            *found.entry(name).or_default() += 1;
        }
        found
    }
}

impl Display for HeldReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections {:?}, {} exchanges, broken {:?}",
            self.lives.len(),
            self.per_backend(),
            self.exchanges(),
            self.broken_per_backend()
        )
    }
}

/// Connections being held; [`Self::stop`] gives their report.
#[derive(Debug)]
pub struct Held {
    background: Background<HeldReport>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    failed: AtomicUsize,
}

impl Held {
    /// Opens `count` connections from `client` to the web servers at `target`, as [`Self::open_to`] does.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn open(
        client: &Namespace,
        target: SocketAddr,
        count: usize,
        period: Duration,
    ) -> Result<Self> {
        Self::open_to(App::Web, client, target, count, period)
    }

    /// Opens `count` connections from `client` to `target` and returns once they stand. Each has
    /// an exchange every `period` from then on, spread evenly.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn open_to(
        app: App,
        client: &Namespace,
        target: SocketAddr,
        count: usize,
        period: Duration,
    ) -> Result<Self> {
        raise_file_limit()?;
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let background = Background::start(client, move |stop| {
            hold_all((app, target), count, period, shared, stop)
        })?;
        let held = Self { background, counts };
        wait_until(
            &format!("{count} connections to {target}"),
            OPEN_WITHIN,
            || held.alive() + held.broken() >= count,
        )?;
        ensure!(
            held.broken() == 0,
            "{} of {count} connections cannot be opened",
            held.broken()
        );
        Ok(held)
    }

    /// How many stand now.
    pub fn alive(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// How many broke, or never stood.
    pub fn broken(&self) -> usize {
        self.counts.failed.load(Ordering::Relaxed)
    }

    /// Closes all, and says what became of each.
    ///
    /// # Errors
    /// The generator panicked.
    pub fn stop(self) -> Result<HeldReport> {
        self.background.stop()
    }
}

async fn hold_all(
    (app, target): (App, SocketAddr),
    count: usize,
    period: Duration,
    counts: Arc<Counts>,
    stop: watch::Receiver<bool>,
) -> HeldReport {
    let opening = Arc::new(Semaphore::new(OPENING));
    let start = Instant::now();
    let mut lives = JoinSet::new();
    for index in 0..count {
        let phase = period.mul_f64(index as f64 / count as f64);
        let schedule = Schedule {
            next: start + period + phase,
            period,
        };
        let (counts, opening, stop) = (Arc::clone(&counts), Arc::clone(&opening), stop.clone());
        lives.spawn(async move {
            let opened = {
                let _turn = opening.acquire().await;
                open(app, target).await
            };
            live(opened, schedule, &counts, stop).await
        });
    }
    HeldReport {
        lives: lives.join_all().await,
    }
}

struct Schedule {
    next: Instant,
    period: Duration,
}

async fn open(app: App, target: SocketAddr) -> Result<(Session, String), Failure> {
    let mut session = app.open(target).await?;
    let name = session.name().await?;
    Ok((session, name))
}

async fn live(
    opened: Result<(Session, String), Failure>,
    schedule: Schedule,
    counts: &Counts,
    stop: watch::Receiver<bool>,
) -> Life {
    let broken = |failure| {
        Some(Broken {
            at: Instant::now(),
            failure,
        })
    };
    let (connection, name) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            return Life {
                backend: None,
                exchanges: 0,
                broken: broken(failure),
            };
        }
    };
    counts.open.fetch_add(1, Ordering::Relaxed);
    let mut exchanges = 1;
    let ended = exchange_until(connection, &name, schedule, &mut exchanges, stop).await;
    counts.open.fetch_sub(1, Ordering::Relaxed);
    let failure = ended.err();
    counts
        .failed
        .fetch_add(usize::from(failure.is_some()), Ordering::Relaxed);
    Life {
        backend: Some(name),
        exchanges,
        broken: failure.and_then(broken),
    }
}

async fn exchange_until(
    mut connection: Session,
    name: &str,
    mut schedule: Schedule,
    exchanges: &mut usize,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            () = sleep_until(schedule.next) => {}
        }
        schedule.next += schedule.period;
        let answered = connection.name().await?;
        if answered != name {
            let reason = Reason::Other(format!("opened to {name}, answered by {answered}"));
            return Err(Failure {
                phase: Phase::Exchange,
                reason,
            });
        }
        *exchanges += 1;
    }
}
