//! A client's connection as the client sees it, and what it has been promised: the oracle.

use std::net::{IpAddr, SocketAddr};

use lb_common::track::{FINISHED_LIFETIME, OPENING_LIFETIME, RESET_LIFETIME};

/// Ticks since the simulation began, which never wrap.
pub type Time = u64;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// None at present.
    Idle,
    /// SYNs sent; the last one reached the backend.
    Opening,
    /// The SYN was followed by an ACK, or the protocol has no connections.
    Established,
    /// A FIN was sent; so many packets follow.
    Closing(u8),
    /// The last packet was a RST that somebody else sent.
    Attacked,
    /// Its backend has died, and its client has not noticed: so many packets follow.
    Orphaned(u8),
}

/// A client's place for one connection after the other.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Its service's number in the scenario.
    pub service: usize,
    /// The client.
    pub client: SocketAddr,
    /// How far it has come.
    pub stage: Stage,
    /// Whom every packet has to reach.
    pub backend: Option<IpAddr>,
    /// The promise is open: the next packet makes it.
    pub loose: bool,
    /// Its last packet found no room to be recorded.
    pub homeless: bool,
    /// When it sent last.
    pub last: Time,
    /// When it sends next.
    pub due: Time,
    /// The shortest moving time in force since it sent last, in ticks.
    pub limit: Time,
}

impl Flow {
    /// How long it may be idle now without being forgotten.
    pub fn patience(&self) -> Time {
        let most = match self.stage {
            Stage::Opening => OPENING_LIFETIME,
            Stage::Closing(_) => FINISHED_LIFETIME,
            Stage::Attacked => RESET_LIFETIME,
            _ => return self.limit,
        };
        self.limit.min(Time::from(most))
    }

    /// Whether it has been idle for longer than it may.
    pub fn is_forgotten(&self, now: Time) -> bool {
        self.stage != Stage::Idle && now - self.last >= self.patience()
    }

    /// Its backend died: nothing is promised any more.
    pub fn orphan(&mut self, strays: u8) {
        self.backend = None;
        self.stage = match strays {
            0 => Stage::Idle,
            strays => Stage::Orphaned(strays),
        };
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.backend = None;
        self.stage = Stage::Idle;
    }
}
