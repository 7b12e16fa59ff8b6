//! A number of requests, each on a connection (or socket) of its own, a few at a time: for how
//! they spread over backends. Owns the concurrency.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use nix::{setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
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
/// Fits a link of 1,500 bytes with the answer's name, and in a tunnel.
pub const MAX_PAYLOAD: usize = 1_301;

sockopt_impl!(
    /// No checksum on UDP datagrams, of socket(7).
    NoCheck,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_NO_CHECK,
    bool
);

/// `count` HTTP requests from `client` to `target`, each on a new connection.
///
/// # Errors
/// The generator cannot run; failed requests are in the report.
pub fn requests(client: &Namespace, target: SocketAddr, count: usize) -> Result<Report> {
    Background::start(client, move |_| many(count, move || ask_name(target)))?.stop()
}

/// Whether datagrams carry a UDP checksum. Over IPv4 they need not (RFC 768), and some senders
/// leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// They do.
    Present,
    /// It is zero.
    Absent,
}

/// `count` datagrams from `client` to a [`crate::udp::UdpEcho`] at `target`, each from a new
/// socket and with a payload of its own, of 1 to [`MAX_PAYLOAD`] bytes. Answered is what came back
/// from `target` itself, with every byte intact.
///
/// # Errors
/// The generator cannot run; datagrams without a right answer are in the report.
pub fn udp_requests(
    client: &Namespace,
    target: SocketAddr,
    count: usize,
    checksum: Checksum,
) -> Result<Report> {
    let mut payloads = (0..count).map(payload);
    let next = move || {
        let payload = payloads.next().unwrap_or_default();
        udp_name(target, payload, checksum)
    };
    Background::start(client, move |_| many(count, next))?.stop()
}

/// Lengths and bytes that differ from one datagram to the next.
fn payload(number: usize) -> Vec<u8> {
    let length = 1 + number * 37 % MAX_PAYLOAD;
    (0..length).map(|at| (at * 7 + number) as u8).collect()
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

async fn many<A>(count: usize, mut ask: impl FnMut() -> A) -> Report
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

async fn udp_name(
    target: SocketAddr,
    payload: Vec<u8>,
    checksum: Checksum,
) -> Result<String, Failure> {
    let failure = |phase| {
        move |error: io::Error| Failure {
            phase,
            reason: io_reason(&error),
        }
    };
    let socket = socket(target, checksum).map_err(failure(Phase::Connect))?;
    let answer = timeout(UDP_TIMEOUT, exchange(&socket, target, &payload));
    let (answer, from) = answer
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failure(Phase::Exchange))?;
    let wrong = |what| Failure {
        phase: Phase::Exchange,
        reason: Reason::Other(what),
    };
    if from != target {
        return Err(wrong(format!("{from} answered for {target}")));
    }
    let name = answer
        .strip_suffix(&payload[..])
        .and_then(|name| name.strip_suffix(b" "));
    let name = name.ok_or_else(|| wrong(format!("{payload:x?} came back as {answer:x?}")))?;
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Not connected: the kernel would hide answers that come from elsewhere.
fn socket(target: SocketAddr, checksum: Checksum) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    setsockopt(&socket, NoCheck, &(checksum == Checksum::Absent))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn exchange(
    socket: &UdpSocket,
    target: SocketAddr,
    payload: &[u8],
) -> io::Result<(Vec<u8>, SocketAddr)> {
    socket.send_to(payload, target).await?;
    let mut answer = vec![0; 2 * MAX_PAYLOAD];
    let (length, from) = socket.recv_from(&mut answer).await?;
    answer.truncate(length);
    Ok((answer, from))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn payloads_have_many_lengths_that_fit() {
        let lengths: BTreeSet<usize> = (0..3_000).map(|number| payload(number).len()).collect();
        assert!(lengths.len() > 1_000);
        assert_eq!(lengths.last(), Some(&MAX_PAYLOAD));
    }
}
