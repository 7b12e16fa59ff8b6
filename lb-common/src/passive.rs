//! What the packets of handshakes show of backends. Counts, and decides nothing: who is kept out for it is the
//! agent's to say.
//!
//! Where a backend's answers pass, they tell ([`heard`], [`note`]): a SYN-ACK, the reset of a closed port, an ICMP
//! error on the way to it. Where it answers clients directly, only clients' packets pass, and of some flows,
//! which their hash picks, it is watched whether a SYN is followed by what only an answer brings about, and how
//! soon ([`watch`], [`follow`]); also where answers pass and somebody wants to know how soon. An ICMP error about the
//! tunnel's packet that had the SYN in it says that it was not.

use network_types::tcp::TcpHdr;

use crate::{
    flow::{Flow, Signal},
    hash::FlowHash,
    packet::Packet,
    tables::{Backend, Descriptor, HANDSHAKES, Handshake, Sign, Tables, handshake},
    wire::protocol,
};

/// What an answer says of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Said {
    /// It has accepted a connection.
    Accepted = 0,
    /// Its port is closed.
    Refused = 1,
    /// It cannot be reached.
    Unreachable = 2,
}

impl Said {
    /// From its number; what is none is [`Said::Unreachable`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Accepted,
            1 => Self::Refused,
            _ => Self::Unreachable,
        }
    }
}

/// Takes note of a segment that comes from a backend, of which `watched` is [`crate::tables::WayBack::watched`].
///
/// The reset of a SYN acknowledges it and has sequence number 0 (RFC 9293 §3.10.7.1), which one that ends a
/// connection under way has by chance alone, once in 2³². So nothing needs to be remembered of the SYN.
#[inline(always)]
pub fn heard<P: Packet, T: Tables>(packet: &P, tables: &T, flow: &Flow, watched: u32) {
    if flow.protocol != protocol::TCP {
        return;
    }
    let Some(tcp) = packet.read::<TcpHdr>(flow.transport) else {
        return;
    };
    if tcp.ack() == 0 {
        return;
    }
    let said = if tcp.syn() != 0 && tcp.rst() == 0 {
        Said::Accepted
    } else if tcp.rst() != 0 && tcp.seq == [0; 4] {
        Said::Refused
    } else {
        return;
    };
    tables.note(watched.wrapping_sub(1), said, tables.ingress(packet));
}

/// Takes note of what came in by an interface. What comes by another than the one that leads to the backend
/// may be anybody's.
#[inline(always)]
pub fn note<T: Tables>(tables: &T, counters: u32, said: Said, interface: u32) {
    if interface == 0 || tables.comes_by(counters) != interface {
        return;
    }
    let sign = match said {
        Said::Accepted => {
            tables.end_streak(counters);
            Sign::Accepted
        }
        Said::Refused => Sign::Refused,
        Said::Unreachable => Sign::Unreachable,
    };
    if said != Said::Accepted {
        tables.add_sign(counters, Sign::Streak, 1);
    }
    tables.add_sign(counters, sign, 1);
}

/// A segment of a flow whose handshake is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// [`tag`] of the flow.
    pub tag: u64,
    /// The segment's sequence number.
    pub sequence: u32,
    /// Index of the counters of the backend that it goes to.
    pub counters: u32,
    /// What it says; [`Signal::Hearsay`] where an ICMP error quotes it.
    pub signal: Signal,
}

/// An odd number (2⁶⁴ over the golden ratio), by which ports reach every bit above.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// The first bit of a tag that its place is in.
const PLACE_SHIFT: u32 = u64::BITS - HANDSHAKES.ilog2();
/// The first bit of a tag that says whether its flow is watched.
const SAMPLING_SHIFT: u32 = 24;

/// What stands for a flow, from the hash that places it, which may be that of its client alone.
#[inline(always)]
pub const fn tag(hash: FlowHash, ports: u32) -> u64 {
    (hash.word() ^ ports as u64).wrapping_mul(SPREAD)
}

/// Whether the handshake of a flow is watched, by [`Descriptor::sampling`].
#[inline(always)]
pub const fn is_watched(tag: u64, sampling: u8) -> bool {
    let mask = (1u64 << (sampling.wrapping_sub(1) & 31)) - 1;
    sampling != 0 && (tag >> SAMPLING_SHIFT) & mask == 0
}

/// Takes note of a segment on its way to a backend, where its flow's handshake is watched.
#[inline(always)]
pub fn watch<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow,
    descriptor: &Descriptor,
    backend: &Backend,
    hash: FlowHash,
) {
    let tag = tag(hash, flow.ports());
    if flow.protocol != protocol::TCP || !is_watched(tag, descriptor.sampling()) {
        return;
    }
    let Some(tcp) = packet.read::<TcpHdr>(flow.transport) else {
        return;
    };
    tables.follow_handshake(Step {
        tag,
        sequence: u32::from_be_bytes(tcp.seq),
        counters: backend.counters,
        signal: flow.signal,
    });
}

/// How long a handshake keeps its place without a word, in nanoseconds: longer than any agent waits for one.
pub const KEPT: u64 = 10_000_000_000;
/// How far behind its SYN a segment may be in sequence: what is further is of another connection.
const FARTHEST: u32 = 1 << 30;

/// What a segment makes of the handshake at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nothing,
    /// The client of a handshake with this backend went on, so long after its SYN.
    Progressed(u32, u64),
    Resent(u32),
    /// It did not get to this backend.
    Unreachable(u32),
}

/// Takes note of a segment.
#[inline(always)]
pub fn follow<T: Tables>(tables: &T, step: Step) {
    let now = tables.exact_now();
    let place = (step.tag >> PLACE_SHIFT) as u32;
    let turn = tables.visit_handshake(place, |handshake| turn(handshake, &step, now));
    match turn {
        Some(Turn::Progressed(counters, took)) => {
            tables.add_sign(counters, Sign::Progressed, 1);
            tables.add_sign(counters, Sign::Nanoseconds, took);
        }
        Some(Turn::Resent(counters)) => tables.add_sign(counters, Sign::Resent, 1),
        Some(Turn::Unreachable(counters)) => tables.add_sign(counters, Sign::Unreachable, 1),
        Some(Turn::Nothing) | None => {}
    }
}

/// What a segment makes of the handshake that it finds at its place, which may be another flow's.
#[inline(always)]
fn turn(known: &mut Handshake, step: &Step, now: u64) -> Turn {
    let pending = known.state == handshake::PENDING;
    let same = known.tag == step.tag;
    if step.signal != Signal::Opens {
        if !pending || !same {
            return Turn::Nothing;
        }
        if step.signal == Signal::Hearsay {
            // Of no other segment than the one that is waited for, and of nobody else's.
            if known.sequence != step.sequence || known.counters != step.counters {
                return Turn::Nothing;
            }
            known.state = handshake::UNREACHABLE;
            return Turn::Unreachable(known.counters);
        }
        if step.signal == Signal::Resets {
            known.state = handshake::RESET;
            return Turn::Nothing;
        }
        let beyond = step.sequence.wrapping_sub(known.sequence);
        if beyond == 0 || beyond > FARTHEST {
            return Turn::Nothing;
        }
        known.state = handshake::PROGRESSED;
        return Turn::Progressed(known.counters, now.saturating_sub(known.since));
    }
    if same && known.sequence == step.sequence && known.state != handshake::NONE {
        if !pending {
            return Turn::Nothing;
        }
        known.state = handshake::RESENT;
        return Turn::Resent(known.counters);
    }
    // Somebody else's is waited for.
    if pending && !same && now.saturating_sub(known.since) < KEPT {
        return Turn::Nothing;
    }
    *known = Handshake {
        tag: step.tag,
        since: now,
        sequence: step.sequence,
        counters: step.counters,
        state: handshake::PENDING,
        zero: 0,
    };
    Turn::Nothing
}
