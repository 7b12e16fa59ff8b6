//! Owns a single probe on the wire: TCP connect or HTTP/1.1 GET, never longer than its timeout.
//! Never decides what an outcome means for the backend (`machine`), nor when to probe (`runner`).

use std::{future::Future, io, net::SocketAddr, pin::pin, time::Duration};

use futures_util::{FutureExt as _, future::Fuse};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time};

use crate::model::{Health, Probe};

/// Most that is read of an HTTP answer: its header, and as much again of its body.
pub const MAX_ANSWER: usize = 64 * 1024;

/// Why a probe did not succeed, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The network has no way there, or nobody answers to the address.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// No verdict in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The network refused the connection in another way.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke before the answer's header was complete.
    #[error("closed before answering")]
    Closed,
    /// An HTTP status outside of the 200s and 300s.
    #[error("status {0}, expected 200 to 399")]
    Status(u16),
    /// The answer is not HTTP, or its header is larger than [`MAX_ANSWER`].
    #[error("not an HTTP answer: {0}")]
    Malformed(String),
    /// The request cannot be written down; validation should have refused it.
    #[error("cannot ask for this path or host: {0}")]
    BadRequest(String),
    /// This host could not even try: no descriptor, port or memory left. Says nothing about the
    /// backend.
    #[error("cannot probe from this host: {0}")]
    Local(String),
}

impl ProbeError {
    /// Whether the probe says something about the backend. If the agent itself is short of
    /// descriptors, taking every backend down would turn its trouble into an outage.
    pub fn blames_backend(&self) -> bool {
        !matches!(self, Self::Local(_) | Self::BadRequest(_))
    }

    /// Whether the probe was told that nobody is there, by the backend's host or by the network.
    /// Silence, a broken connection and a bad answer are not that: whoever caused them may be alive.
    ///
    /// `serves` says whether the port probed is the one that flows go to. A refusal at another says
    /// that the checks have lost their listener, not the flows.
    pub fn says_dead(&self, serves: bool) -> bool {
        match self {
            Self::Refused => serves,
            Self::Unreachable(_) => true,
            _ => false,
        }
    }

    fn from_connect(error: &io::Error) -> Self {
        const LOCAL: [i32; 6] = [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::ENOBUFS,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
        ];
        // What the kernel makes of ICMP's "destination unreachable", and of a route or neighbour that
        // is missing here (icmp_err_convert, icmpv6_err_convert). Administrative prohibition is not
        // among them where it can be told apart (EACCES): it speaks of the probe.
        const UNREACHABLE: [i32; 4] = [
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::EHOSTDOWN,
            libc::ENONET,
        ];
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ECONNRESET) => Self::Closed,
            Some(code) if LOCAL.contains(&code) => Self::Local(error.to_string()),
            Some(code) if UNREACHABLE.contains(&code) => Self::Unreachable(error.to_string()),
            _ => Self::Connect(error.to_string()),
        }
    }

    fn from_http(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            Self::Malformed(format!(
                "header larger than {MAX_ANSWER} bytes or of over 100 fields"
            ))
        } else if error.is_parse() {
            Self::Malformed(error.to_string())
        } else {
            Self::Closed
        }
    }
}

/// Probes backends. The one on the network is [`Network`]; tests script their own.
pub trait Prober: Clone + Send + Sync + 'static {
    /// One probe of the backend at `address`; how long a success took. Returns within
    /// `health.timeout`.
    fn probe(
        &self,
        address: SocketAddr,
        health: &Health,
    ) -> impl Future<Output = Result<Duration, ProbeError>> + Send;
}

/// Probes over the network of this process.
#[derive(Debug, Clone, Copy)]
pub struct Network;

impl Prober for Network {
    async fn probe(
        &self,
        mut address: SocketAddr,
        health: &Health,
    ) -> Result<Duration, ProbeError> {
        if let Some(port) = health.port {
            address.set_port(port);
        }
        let started = time::Instant::now();
        let deadline = started + health.timeout;
        let verdict = async {
            let answer = match &health.probe {
                Probe::None => None,
                Probe::Tcp => connect(address).await.map(|_| None)?,
                Probe::Http { path, host } => Some(get(address, path, host.as_deref()).await?),
            };
            Ok((started.elapsed(), answer))
        };
        let verdict = time::timeout_at(deadline, verdict).await;
        let (latency, answer) = verdict.map_err(|_| ProbeError::Timeout(health.timeout))??;
        if let Some(answer) = answer {
            // The status has decided. Closing on unread data would reset the connection and fill
            // the backend's log, so read on for as long as the probe may last.
            let _ = time::timeout_at(deadline, answer.drain()).await;
        }
        Ok(latency)
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, ProbeError> {
    TcpStream::connect(address)
        .await
        .map_err(|error| ProbeError::from_connect(&error))
}

/// Fused, since answers are read on after the server has closed.
type Connection = Fuse<http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>>;

/// An answer whose status is good and whose body is still to be read.
struct Answer {
    connection: Connection,
    response: Response<Incoming>,
}

/// Asks for `path`; an answer with a status from 200 to 399, or why there is none.
async fn get(address: SocketAddr, path: &str, host: Option<&str>) -> Result<Answer, ProbeError> {
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .header(
            header::USER_AGENT,
            concat!("lbd/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::new())
        .map_err(|error| ProbeError::BadRequest(error.to_string()))?;
    let stream = TokioIo::new(connect(address).await?);
    let http = |error: hyper::Error| ProbeError::from_http(&error);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_ANSWER)
        .handshake(stream)
        .await
        .map_err(http)?;
    let mut connection = connection.fuse();
    let response = drive(&mut connection, sender.send_request(request))
        .await
        .map_err(http)?;
    match response.status().as_u16() {
        200..=399 => Ok(Answer {
            connection,
            response,
        }),
        status => Err(ProbeError::Status(status)),
    }
}

impl Answer {
    async fn drain(self) {
        let Self {
            mut connection,
            mut response,
        } = self;
        let body = async {
            let mut read = 0;
            while let Some(Ok(frame)) = response.body_mut().frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read >= MAX_ANSWER {
                    break;
                }
            }
        };
        drive(&mut connection, body).await;
    }
}

/// Runs `exchange` while moving its connection along. The connection's own end is not the
/// exchange's: what it has read is still on its way.
async fn drive<T>(connection: &mut Connection, exchange: impl Future<Output = T>) -> T {
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
