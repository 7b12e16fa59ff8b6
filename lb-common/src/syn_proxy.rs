//! Handshakes of mode `full-nat` that are answered here, in the backend's name, by SYN cookies (RFC 4987 §3.6): nothing is kept of
//! a SYN, so that a flood of them takes nothing.
//!
//! ```text
//! client         here           backend
//!    | SYN c       |               |      [`answer`]
//!    |<------ SYN-ACK k, window 0  |      k: the cookie
//!    | ACK k + 1   |               |      [`answer`]: it is one; the session begins
//!    |             | SYN c ------->|      [`open`]
//!    |             |<----- SYN-ACK b      [`opened`]: from here on, b is k
//!    |<--- a byte at k, window     |
//!    | ACK k + 1, data ----------->|      the end of the handshake with the backend
//! ```
//!
//! Until the backend has answered, the client may send nothing (its window is 0), so nothing is lost and nothing has to be kept. The
//! backend's SYN-ACK becomes what opens that window: a segment with one byte from before it, as keep-alives have (RFC 9293
//! §3.8.4), which the client acknowledges. That, or the client's first data, ends the handshake with the backend. So each step is
//! sent again by one of the two ends if it is lost, and no timer is needed here. The client's numbers reach the backend as they are;
//! the backend's are [shifted](Proxied::shift).
//!
//! The cookie tells one of four MSS, and neither window scale, selective acknowledgements nor timestamps; so the backend is
//! offered none of them, and no option but the MSS has to be understood later.

use network_types::tcp::TcpHdr;

use crate::{
    admit,
    flow::{Flow, Signal},
    full_nat::{self, LOST, MADE},
    mss,
    packet::Packet,
    pipeline::Rest,
    refuse,
    segment::{self, Direction, Number, Segment, Tail},
    session::{self, Answered, Numbers, Way},
    steer::{self, InForce},
    tables::{
        FlowEvent, Handover, PortKey, Proxied, Tables, feature, record_flag, service_flag,
        syn_proxy,
    },
    verdict::{DropReason, Verdict},
    wire::{Byte, control, protocol},
};

/// The MSS that a cookie of Linux can stand for, the likeliest first
/// (<https://github.com/torvalds/linux/blob/v6.18/net/ipv4/syncookies.c>).
const MSS_V4: [u16; 4] = [1_460, 1_440, 1_300, 536];
/// The same over IPv6 (<https://github.com/torvalds/linux/blob/v6.18/net/ipv6/syncookies.c>).
const MSS_V6: [u16; 4] = [1_440, 8_940, 1_420, 1_220];
/// What is taken for granted of a client that tells none (RFC 9293 §3.7.1).
const UNTOLD_V4: u16 = 536;
/// The same over IPv6.
const UNTOLD_V6: u16 = 1_220;
/// Offset in a TCP header of its control bits.
const CONTROL: usize = 13;

/// Whether a packet of no session goes to [`answer`]: a SYN, unless it is among those that may begin unproxied, and
/// whatever may acknowledge a cookie.
#[inline(always)]
pub fn answers<T: Tables>(tables: &T, in_force: &InForce<'_>, flow: &Flow) -> bool {
    if !tables.knows(feature::SYN_PROXY) || flow.protocol != protocol::TCP {
        return false;
    }
    let InForce { service, half } = *in_force;
    let Some(guard) = service.guard(tables, half) else {
        return false;
    };
    if guard.translation.syn_proxy == syn_proxy::OFF {
        return false;
    }
    match flow.signal {
        Signal::Opens => {
            let rate = &guard.unproxied;
            !(rate.is_set() && tables.take_of_unproxied(service.index, rate))
        }
        Signal::None | Signal::Finishes => tables.handed_over().limit != LOST,
        Signal::Resets | Signal::Hearsay => false,
    }
}

/// Answers a client's SYN, or begins a session for what acknowledges such an answer, which goes back to
/// [`full_nat::request`] then.
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> full_nat::Outcome {
    let mut flow = Flow::EMPTY;
    if !full_nat::read(packet, &mut flow) {
        return Ok(Ok(Verdict::Pass));
    }
    let Some(found) = full_nat::service(tables, &flow) else {
        return Ok(Err(DropReason::NoSession));
    };
    let Some(tcp) = packet.read::<TcpHdr>(flow.transport) else {
        return Ok(Err(DropReason::Inconsistent));
    };
    if found.service.descriptor.flags & service_flag::GUARDED != 0
        && let Err(reason) = admit::source(tables, &found, &flow)
    {
        return Ok(Err(reason));
    }
    let sequence = u32::from_be_bytes(tcp.seq);
    if flow.opens() {
        return Ok(send(packet, tables, &found, &flow, sequence));
    }
    let acknowledges = tcp.ack() != 0 && tcp.syn() == 0;
    let cookie = u32::from_be_bytes(tcp.ack_seq).wrapping_sub(1);
    let proven = match acknowledges {
        true => prove(tables, &flow, sequence, cookie),
        false => None,
    };
    let Some(proxied) = proven else {
        tables.count_flow(found.service.index, FlowEvent::CookieInvalid);
        return full_nat::refused(tables, &found, DropReason::CookieInvalid);
    };
    tables.count_flow(found.service.index, FlowEvent::CookieValid);
    // From here on, it is as good as its SYN was.
    flow.signal = Signal::Opens;
    full_nat::begun(tables, &found, &flow, false, proxied, None)
}

/// Makes a SYN the answer to it.
#[inline(always)]
fn send<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
    sequence: u32,
) -> Result<Verdict, DropReason> {
    let service = &in_force.service;
    if !refuse::is_from_a_host(packet, tables, flow) {
        return Err(DropReason::NoSession);
    }
    let untold = if flow.v4 { UNTOLD_V4 } else { UNTOLD_V6 };
    let told = mss::told(packet, flow.transport).unwrap_or(untold);
    let (cookie, mss) = tables
        .cookie(flow, sequence, told)
        .ok_or(DropReason::Inconsistent)?;
    // Whatever there is under its flow has ended, or is lost.
    session::reopen(tables, &steer::key(service, flow));
    let segment = Segment {
        sequence: cookie,
        acknowledged: sequence.wrapping_add(1),
        control: control::SYN | control::ACK,
        window: 0,
        tail: Tail::Mss(mss),
    };
    segment::make(packet, flow, Direction::Back, segment)?;
    tables.count_flow(service.index, FlowEvent::CookieSent);
    Ok(Verdict::Transmit)
}

/// What a client's packet proves: that it has had the cookie that answered its SYN.
#[inline(always)]
fn prove<T: Tables>(tables: &T, flow: &Flow, sequence: u32, cookie: u32) -> Option<Proxied> {
    let before = sequence.wrapping_sub(1);
    // What probes a window of zero is from one before what comes next (RFC 9293 §3.8.6.1).
    let first = if tables.is_cookie(flow, before, cookie) {
        before
    } else if tables.is_cookie(flow, sequence, cookie) {
        sequence
    } else {
        return None;
    };
    // Which is not told: the one for which a SYN would get the same cookie now. Where the minute has turned since, the least, which
    // every client takes.
    let (known, least) = if flow.v4 {
        (MSS_V4, UNTOLD_V4)
    } else {
        (MSS_V6, UNTOLD_V6)
    };
    let mut mss = least;
    for told in known {
        if let Some((same, meant)) = tables.cookie(flow, first, told)
            && same == cookie
        {
            mss = meant;
            break;
        }
    }
    Some(Proxied {
        cookie,
        sequence: first,
        shift: 0,
        mss,
        zeros: [0; 2],
    })
}

/// Whether a client's packet of a session goes to [`open`]: any but a RST until its backend has answered, and any SYN.
#[inline(always)]
pub fn opens<T: Tables>(tables: &T, flow: &Flow, way: &Way<'_>) -> bool {
    if !tables.knows(feature::SYN_PROXY) || tables.handed_over().limit == MADE {
        return false;
    }
    let (proxied, awaits) = (
        way.flags & record_flag::PROXIED != 0,
        way.flags & record_flag::AWAITS != 0,
    );
    proxied && flow.signal != Signal::Resets && (awaits || flow.opens())
}

/// Makes a client's packet the SYN to its session's backend, as the client might have sent it, with which
/// [`full_nat::request`] goes on.
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn open<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> full_nat::Outcome {
    let mut flow = Flow::EMPTY;
    if !full_nat::read(packet, &mut flow) {
        return Ok(Ok(Verdict::Pass));
    }
    let Some(found) = full_nat::service(tables, &flow) else {
        return Ok(Err(DropReason::NoSession));
    };
    let key = steer::key(&found.service, &flow);
    let session = tables.visit_session(&key, |session| {
        (
            session.record.flags,
            session.proxied.sequence,
            session.proxied.mss,
        )
    });
    let (Some((flags, first, mss)), Some(tcp)) = (session, packet.read::<TcpHdr>(flow.transport))
    else {
        return Ok(Err(DropReason::NoSession));
    };
    tables.hand_over(Handover {
        limit: MADE,
        ..Handover::default()
    });
    let awaits = flags & record_flag::AWAITS != 0;
    // Its backend has answered meanwhile.
    if !awaits && !flow.opens() {
        return Err(Rest::FullNat);
    }
    let segment = Segment {
        // A client that opens it again has other numbers, and nothing else to offer: what SYN cookies did not tell, nobody
        // translates.
        sequence: if awaits {
            first
        } else {
            u32::from_be_bytes(tcp.seq)
        },
        acknowledged: 0,
        control: control::SYN,
        window: u16::from_be_bytes(tcp.window),
        tail: Tail::Mss(mss),
    };
    match segment::make(packet, &flow, Direction::Same, segment) {
        Ok(()) => Err(Rest::FullNat),
        Err(reason) => Ok(Err(reason)),
    }
}

/// Whether a backend's answer goes to [`opened`]: its SYN-ACK, and until that has come, whatever else but a RST.
#[inline(always)]
pub fn is_opened<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow,
    answered: &Answered<'_>,
) -> bool {
    if !tables.knows(feature::SYN_PROXY)
        || answered.flags & record_flag::PROXIED == 0
        || tables.handed_over().limit == MADE
    {
        return false;
    }
    let awaits = answered.flags & record_flag::AWAITS != 0;
    flow.signal != Signal::Resets && (awaits || mss::is_told_by(packet, flow))
}

/// Makes a backend's SYN-ACK what opens the client's window, with which [`full_nat::answer`] goes on; of a backend that answers a
/// SYN by anything else, the connection from before that it has in mind is reset, so that the next one is heard.
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn opened<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> full_nat::Outcome {
    let mut flow = Flow::EMPTY;
    if !full_nat::read(packet, &mut flow) {
        return Ok(Ok(Verdict::Pass));
    }
    let key = PortKey::of_answer(&flow);
    let Some(client) = tables.port(&key) else {
        return Ok(Ok(Verdict::Pass));
    };
    let (Some((flags, proxied)), Some(tcp)) = (
        tables.visit_session(&client, |session| (session.record.flags, session.proxied)),
        packet.read::<TcpHdr>(flow.transport),
    ) else {
        return Ok(Ok(Verdict::Pass));
    };
    tables.hand_over(Handover {
        limit: MADE,
        ..Handover::default()
    });
    let sequence = u32::from_be_bytes(tcp.seq);
    let acknowledged = u32::from_be_bytes(tcp.ack_seq);
    let awaits = flags & record_flag::AWAITS != 0;
    let accepts = tcp.syn() != 0 && tcp.ack() != 0;
    if accepts && acknowledged == proxied.sequence.wrapping_add(1) {
        if awaits {
            tables.visit_session(&client, |session| {
                // First, for who sees that it awaits no more has need of it.
                session.proxied.shift = proxied.cookie.wrapping_sub(sequence);
                tables.clear_flags(&mut session.record, record_flag::AWAITS);
            });
        }
        let segment = Segment {
            sequence,
            acknowledged,
            control: control::ACK,
            window: u16::from_be_bytes(tcp.window),
            tail: Tail::Byte,
        };
        return match segment::make(packet, &flow, Direction::Same, segment) {
            Ok(()) => Err(Rest::FullNatAnswer),
            Err(reason) => Ok(Err(reason)),
        };
    }
    if !awaits {
        return Err(Rest::FullNatAnswer);
    }
    if tcp.ack() == 0 {
        return Ok(Err(DropReason::NoSession));
    }
    // RFC 9293 §3.10.7.3, of an acknowledgement that is not acceptable.
    let segment = Segment {
        sequence: acknowledged,
        acknowledged: 0,
        control: control::RST,
        window: 0,
        tail: Tail::None,
    };
    Ok(segment::make(packet, &flow, Direction::Back, segment).map(|()| Verdict::Transmit))
}

/// Has what a client's packet acknowledges be as its backend knows it.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no TCP header.
#[inline(always)]
pub fn shift_request<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    way: &Way<'_>,
) -> Result<(), DropReason> {
    if !tables.knows(feature::SYN_PROXY) || way.shift == 0 {
        return Ok(());
    }
    let Byte(bits) = crate::forward::read(packet, flow.transport + CONTROL)?;
    if bits & control::ACK == 0 {
        return Ok(());
    }
    let number = Number::Acknowledged;
    segment::renumber(packet, flow.transport, number, |before| {
        before.wrapping_sub(way.shift)
    })
}

/// Has an answer's sequence number be as its client knows it.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no TCP header.
#[inline(always)]
pub fn shift_answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    answered: &Answered<'_>,
) -> Result<(), DropReason> {
    if !tables.knows(feature::SYN_PROXY) || answered.flags & record_flag::PROXIED == 0 {
        return Ok(());
    }
    let number = Number::Sequence;
    segment::renumber(packet, flow.transport, number, |before| {
        match answered.proxied {
            Numbers::Shifted(shift) => before.wrapping_add(shift),
            Numbers::First(number) => number,
        }
    })
}
