//! What backends show by the packets that pass: formats. What is made of packets is [`crate::passive`]'s.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a backend has shown, by the index of its counters: one cache line, which every CPU adds to. Written
/// for packets of handshakes alone.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Signs {
    /// Connections that it has accepted, of those whose answers pass.
    pub accepted: u64,
    /// Connections that it has refused, likewise.
    pub refused: u64,
    /// ICMP errors that say that it cannot be reached; where its answers do not pass, watched handshakes that failed by one.
    pub unreachable: u64,
    /// Refused and unreachable in a row: since it has accepted one last.
    pub streak: u64,
    /// Watched handshakes whose client went on.
    pub progressed: u64,
    /// Watched handshakes whose client sent its SYN again.
    pub resent: u64,
    /// How long those took in all whose client went on, in nanoseconds from SYN to the next segment.
    pub nanoseconds: u64,
    /// The interface that its answers come in by: no other ones are its own. 0: none count. The agent's
    /// alone.
    pub interface: u64,
}

/// What the program adds to in [`Signs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// [`Signs::accepted`].
    Accepted,
    /// [`Signs::refused`].
    Refused,
    /// [`Signs::unreachable`].
    Unreachable,
    /// [`Signs::streak`].
    Streak,
    /// [`Signs::progressed`].
    Progressed,
    /// [`Signs::resent`].
    Resent,
    /// [`Signs::nanoseconds`].
    Nanoseconds,
}

impl Signs {
    /// The word that a sign is added to.
    #[inline(always)]
    pub fn word(&mut self, sign: Sign) -> &mut u64 {
        match sign {
            Sign::Accepted => &mut self.accepted,
            Sign::Refused => &mut self.refused,
            Sign::Unreachable => &mut self.unreachable,
            Sign::Streak => &mut self.streak,
            Sign::Progressed => &mut self.progressed,
            Sign::Resent => &mut self.resent,
            Sign::Nanoseconds => &mut self.nanoseconds,
        }
    }
}

/// Handshakes that can be watched at a time.
pub const HANDSHAKES: u32 = 4_096;

/// A handshake that is watched, or was.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Handshake {
    /// Stands for its flow ([`crate::passive::tag`]).
    pub tag: u64,
    /// When its SYN came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// The sequence number of that.
    pub sequence: u32,
    /// Index of the counters of the backend that it went to.
    pub counters: u32,
    /// One of [`handshake`](mod@handshake).
    pub state: u32,
    /// Always zero.
    pub zero: u32,
}

/// How a handshake stands; the values of [`Handshake::state`].
pub mod handshake {
    /// There is none.
    pub const NONE: u32 = 0;
    /// Its client has sent a SYN, and nothing since.
    pub const PENDING: u32 = 1;
    /// Its client went on, so that it has been answered.
    pub const PROGRESSED: u32 = 2;
    /// Its client has sent the SYN again.
    pub const RESENT: u32 = 3;
    /// Its client gave it up: that says nothing.
    pub const RESET: u32 = 4;
    /// Nothing came for too long. The agent's alone.
    pub const STALLED: u32 = 5;
    /// An ICMP error has said that its SYN did not arrive.
    pub const UNREACHABLE: u32 = 6;
}
