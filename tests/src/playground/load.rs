//! The playground's own load: a few requests a second to every service, each on a connection of its
//! own, from the client's namespace. Bounded: a request ends, answered or not, within
//! [`CONNECT_TIMEOUT`](http::CONNECT_TIMEOUT) and [`EXCHANGE_TIMEOUT`](http::EXCHANGE_TIMEOUT).

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    load::{Background, Failure, http},
    netns::Namespace,
};

/// Requests per second to each service.
pub const RATE: u32 = 20;

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Which of the services was asked.
    pub service: usize,
    /// The name of the server that answered, or what went wrong.
    pub outcome: Result<String, Failure>,
}

/// A load at work. It ends on drop.
#[derive(Debug)]
pub struct Load {
    attempts: mpsc::UnboundedReceiver<Attempt>,
    _background: Background<()>,
}

impl Load {
    /// Starts asking `targets` from `client`.
    ///
    /// # Errors
    /// The generator cannot run.
    pub fn start(client: &Namespace, targets: Vec<SocketAddr>) -> Result<Self> {
        let (report, attempts) = mpsc::unbounded_channel();
        let background = Background::start(client, move |stop| generate(targets, report, stop))?;
        Ok(Self {
            attempts,
            _background: background,
        })
    }

    /// The next that ended; none once the generator is gone.
    pub async fn next(&mut self) -> Option<Attempt> {
        self.attempts.recv().await
    }
}

async fn generate(
    targets: Vec<SocketAddr>,
    report: mpsc::UnboundedSender<Attempt>,
    mut stop: watch::Receiver<bool>,
) {
    let mut schedule = interval(Duration::from_secs(1) / RATE);
    // For people to look at: nobody misses what a busy machine did not send.
    schedule.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = schedule.tick() => {
                for (service, &target) in targets.iter().enumerate() {
                    under_way.spawn(async move {
                        let outcome = http::ask_name(target).await;
                        Attempt { service, outcome }
                    });
                }
            }
            Some(Ok(attempt)) = under_way.join_next() => {
                // Whoever started this is ending it where nobody listens.
                drop(report.send(attempt));
            }
        }
    }
}
