//! One HTTP connection, with failures told apart. Owns what a failure is called; when to connect
//! and what to do with failures is the generators'.

use std::{error::Error, io, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use super::{Failure, Phase, Reason};

/// Shorter than the second after which the kernel repeats a SYN: one attempt is one SYN, and its
/// start is when that was sent.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(900);
/// Long enough for several retransmissions of a lost segment.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether the server may keep the connection open after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It may.
    Keep,
    /// It closes.
    Close,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    target: SocketAddr,
    requests: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Connects to `target`.
    ///
    /// # Errors
    /// How it failed.
    pub async fn open(target: SocketAddr) -> Result<Self, Failure> {
        let failure = |reason| Failure {
            phase: Phase::Connect,
            reason,
        };
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
            .await
            .map_err(|_| failure(Reason::TimedOut))?
            .map_err(|error| failure(io_reason(&error)))?;
        drop(stream.set_nodelay(true));
        let (requests, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure(http_reason(&error)))?;
        // What ends the connection also fails the request that is under way, which reports it.
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok(Self {
            target,
            requests,
            driver,
        })
    }

    /// `GET path`; returns the body.
    ///
    /// # Errors
    /// How it failed.
    pub async fn get(&mut self, path: &str, after: After) -> Result<Bytes, Failure> {
        let failure = |reason| Failure {
            phase: Phase::Exchange,
            reason,
        };
        timeout(EXCHANGE_TIMEOUT, self.exchange(path, after))
            .await
            .unwrap_or(Err(Reason::TimedOut))
            .map_err(failure)
    }

    async fn exchange(&mut self, path: &str, after: After) -> Result<Bytes, Reason> {
        let mut request = Request::get(path).header(HOST, self.target.to_string());
        if after == After::Close {
            request = request.header(CONNECTION, "close");
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| Reason::Other(error.to_string()))?;
        self.requests
            .ready()
            .await
            .map_err(|error| http_reason(&error))?;
        let answer = self
            .requests
            .send_request(request)
            .await
            .map_err(|error| http_reason(&error))?;
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(|error| http_reason(&error))?;
        if !status.is_success() {
            return Err(Reason::Status(status.as_u16()));
        }
        Ok(body.to_bytes())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One request on a connection of its own: the name that the backend answered.
///
/// # Errors
/// How it failed.
pub async fn ask_name(target: SocketAddr) -> Result<String, Failure> {
    let mut connection = Connection::open(target).await?;
    connection
        .get("/", After::Close)
        .await
        .map(|body| name_in(&body))
}

/// The name in the answer of a backend.
pub fn name_in(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().to_owned()
}

/// What an I/O error says of the network.
pub(super) fn io_reason(error: &io::Error) -> Reason {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => Reason::Refused,
        Kind::ConnectionReset | Kind::BrokenPipe => Reason::Reset,
        Kind::HostUnreachable | Kind::NetworkUnreachable => Reason::Unreachable,
        Kind::TimedOut => Reason::TimedOut,
        _ => Reason::Other(error.to_string()),
    }
}

fn http_reason(error: &hyper::Error) -> Reason {
    if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref()) {
        return io_reason(cause);
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Reason::Closed;
    }
    Reason::Other(error.to_string())
}
