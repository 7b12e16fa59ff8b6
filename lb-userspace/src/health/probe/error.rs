//! Owns what a probe can find instead of success, and whom that speaks of. Never decides what comes of
//! it for the backend.

use std::{io, time::Duration};

/// Why a probe did not succeed, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// Nobody answers to the address, where it should be.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The network has no way to where it should be: a route has gone, here or further on. Says nothing of who is
    /// there, and whoever has another way may still reach it.
    #[error("cannot connect: {0}")]
    NoWay(String),
    /// No verdict in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The network refused the connection in another way.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke before the answer's header was complete.
    #[error("closed before answering")]
    Closed,
    /// No secure connection comes about, mostly because of the certificate.
    #[error("TLS: {0}")]
    Tls(String),
    /// An HTTP status other than expected.
    #[error("status {0}, expected {1}")]
    Status(u16, String),
    /// The answer is another than expected; says which and what was expected.
    #[error("{0}")]
    Unexpected(String),
    /// The answer cannot be read.
    #[error("not {protocol}: {problem}")]
    Malformed {
        /// What it should have been.
        protocol: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The backend says that it cannot serve.
    #[error("the agent says {0}")]
    SaysDown(String),
    /// A program that checks has not ended well; how, and what it wrote.
    #[error("{0}")]
    Exited(String),
    /// The backend has not reported for so long.
    #[error("no heartbeat within {0:?}")]
    Silent(Duration),
    /// The question cannot be put as it is configured. Says nothing about the backend.
    #[error("cannot check: {0}")]
    Unaskable(String),
    /// This host could not even try: no descriptor, port or memory left. Says nothing about the
    /// backend.
    #[error("cannot probe from this host: {0}")]
    Local(String),
}

impl ProbeError {
    /// Whether the probe says something about the backend. If the agent itself is short of
    /// descriptors, taking every backend down would turn its trouble into an outage.
    pub fn blames_backend(&self) -> bool {
        !matches!(self, Self::Local(_) | Self::Unaskable(_))
    }

    /// Whether the probe was told that nobody is there, by the backend's host or by its network.
    /// Silence, a broken connection, a bad answer and a route that is missing are not that: whoever is behind them may be alive.
    ///
    /// `serves` says whether the port probed is the one that flows go to. A refusal at another says
    /// that the checks have lost their listener, not the flows; and firewalls that let nobody in there may
    /// say that the host is unreachable (`REJECT` with `icmp-host-prohibited`), as if it were not there.
    pub fn says_dead(&self, serves: bool) -> bool {
        serves && matches!(self, Self::Refused | Self::Unreachable(_))
    }

    pub(super) fn from_connect(error: &io::Error) -> Self {
        const LOCAL: [i32; 6] = [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::ENOBUFS,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
        ];
        // What the kernel makes of ICMP's "host unreachable", and of a neighbour that does not answer
        // (icmp_err_convert, icmpv6_err_convert). Administrative prohibition is not among them where it can
        // be told apart (EACCES): it speaks of the probe.
        const UNREACHABLE: [i32; 2] = [libc::EHOSTUNREACH, libc::EHOSTDOWN];
        // The same of "network unreachable", and of a route that is missing here.
        const NO_WAY: [i32; 2] = [libc::ENETUNREACH, libc::ENONET];
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ECONNRESET) => Self::Closed,
            Some(code) if LOCAL.contains(&code) => Self::Local(error.to_string()),
            Some(code) if UNREACHABLE.contains(&code) => Self::Unreachable(error.to_string()),
            Some(code) if NO_WAY.contains(&code) => Self::NoWay(error.to_string()),
            _ => Self::Connect(error.to_string()),
        }
    }

    /// Why a connection that stood broke.
    pub(super) fn from_broken(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::from_connect(error),
        }
    }
}
