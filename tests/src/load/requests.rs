//! A number of requests, each on a connection (or socket) of its own, a few at a time: for how
//! they spread over backends. Owns the concurrency.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Attempt, Background, Failure, Phase, Reason, Report,
    http::{ask_name, io_reason},
};
use crate::netns::Namespace;

/// Requests under way at once: enough to keep two cores busy.
const CONCURRENCY: usize = 32;
const UDP_TIMEOUT: Duration = Duration::from_secs(1);

/// `count` HTTP requests from `client` to `target`, each on a new connection.
///
/// # Errors
/// The generator cannot run; failed requests are in the report.
pub fn requests(client: &Namespace, target: SocketAddr, count: usize) -> Result<Report> {
    Background::start(client, move |_| many(count, move || ask_name(target)))?.stop()
}

/// `count` datagrams from `client` to a [`crate::udp::UdpEcho`] at `target`, each from a new
/// socket.
///
/// # Errors
/// The generator cannot run; datagrams without an answer are in the report.
pub fn udp_requests(client: &Namespace, target: SocketAddr, count: usize) -> Result<Report> {
    Background::start(client, move |_| many(count, move || udp_name(target)))?.stop()
}

/// Runs `ask` and notes when it began and ended.
pub(super) async fn attempt(ask: impl Future<Output = Result<String, Failure>>) -> Attempt {
    let started = Instant::now();
    let outcome = ask.await;
    Attempt {
        started,
        ended: Instant::now(),
        outcome,
    }
}

async fn many<A>(count: usize, ask: impl Fn() -> A) -> Report
where
    A: Future<Output = Result<String, Failure>> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let mut report = Report::default();
    for _ in 0..count {
        if under_way.len() == CONCURRENCY {
            report
                .attempts
                .extend(under_way.join_next().await.and_then(Result::ok));
        }
        under_way.spawn(attempt(ask()));
    }
    report.attempts.extend(under_way.join_all().await);
    report
}

async fn udp_name(target: SocketAddr) -> Result<String, Failure> {
    let failure = |phase| {
        move |error: std::io::Error| Failure {
            phase,
            reason: io_reason(&error),
        }
    };
    let any: SocketAddr = if target.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)
        .await
        .map_err(failure(Phase::Connect))?;
    socket
        .connect(target)
        .await
        .map_err(failure(Phase::Connect))?;
    socket
        .send(b"who")
        .await
        .map_err(failure(Phase::Exchange))?;
    let mut answer = [0; 256];
    let length = timeout(UDP_TIMEOUT, socket.recv(&mut answer))
        .await
        .map_err(|_| Failure {
            phase: Phase::Exchange,
            reason: Reason::TimedOut,
        })?
        .map_err(failure(Phase::Exchange))?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    match answer.strip_suffix(" who") {
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure {
            phase: Phase::Exchange,
            reason: Reason::Other(format!("answered {answer:?}")),
        }),
    }
}
