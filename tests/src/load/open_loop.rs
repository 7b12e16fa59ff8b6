//! New connections at a fixed rate, each with one short exchange, begun on schedule whether or not
//! earlier ones have succeeded: as many users would. Owns the schedule.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Result;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{Attempt, Background, Report, app::App, raise_file_limit, requests::attempt};
use crate::netns::Namespace;

/// A generator at work; [`Self::stop`] gives its report.
#[derive(Debug)]
pub struct OpenLoop {
    background: Background<Report>,
}

impl OpenLoop {
    /// Starts `rate` connections a second from `client` to the web servers at `target`.
    ///
    /// # Errors
    /// The generator cannot run.
    pub fn start(client: &Namespace, target: SocketAddr, rate: u32) -> Result<Self> {
        Self::start_to(App::Web, client, target, rate)
    }

    /// Starts `rate` connections a second from `client` to `target`.
    ///
    /// # Errors
    /// The generator cannot run.
    pub fn start_to(app: App, client: &Namespace, target: SocketAddr, rate: u32) -> Result<Self> {
        raise_file_limit()?;
        let background =
            Background::start(client, move |stop| generate((app, target), rate, stop))?;
        Ok(Self { background })
    }

    /// Starts no more, awaits those under way, and says what became of all.
    ///
    /// # Errors
    /// The generator panicked.
    pub fn stop(self) -> Result<Report> {
        self.background.stop()
    }
}

/// `rate` connections a second from `client` to `target`, for `duration`.
///
/// # Errors
/// The generator cannot run; failed connections are in the report.
pub fn connections_per_second(
    client: &Namespace,
    target: SocketAddr,
    rate: u32,
    duration: Duration,
) -> Result<Report> {
    let load = OpenLoop::start(client, target, rate)?;
    thread::sleep(duration);
    load.stop()
}

async fn generate(
    (app, target): (App, SocketAddr),
    rate: u32,
    mut stop: watch::Receiver<bool>,
) -> Report {
    let mut schedule = interval(Duration::from_secs(1) / rate);
    // A late tick is made up for: the rate is what was asked for, in the long run.
    schedule.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way: JoinSet<Attempt> = JoinSet::new();
    let mut report = Report::default();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = schedule.tick() => { under_way.spawn(attempt(app.ask_name(target))); }
            Some(Ok(ended)) = under_way.join_next() => report.attempts.push(ended),
        }
    }
    report.attempts.extend(under_way.join_all().await);
    report
}
