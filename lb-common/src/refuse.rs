//! Packets to a VIP that nobody takes: of a service while no backend may take them, or to a port, or of a
//! protocol, that no service has. As it was asked for, they are dropped, left to the kernel, or answered in
//! the VIP's name, by a TCP reset (RFC 9293 §3.10.7.1) or an ICMP error (RFC 792, RFC 4443).
//!
//! So are packets that are longer than the way to their backend takes, with what the mode puts in front of
//! them, and answers to sessions of mode `full-nat` that are longer than the way to their client: their sender is told what length would do (RFC 1191 §4, RFC 4443 §3.2), as a router tells it before
//! a tunnel (RFC 4459 §3.2). One of IPv4 that might be fragmented is no exception: nothing here can cut it in
//! two, and a sender that heeds the error does so itself.
//!
//! A port that no service has is *unreachable*, as it is of any host. A service without a backend is not:
//! its VIP is *the host* that cannot be reached for now, which by RFC 1122 §3.2.2.1 and §4.2.3.9 is no more
//! than a hint, so that established connections outlive it, while new ones fail at once.
//!
//! Before all that, what says that it comes from nobody or from the VIP itself is dropped ([`crate::martian`]).
//!
//! Never answered is what RFC 1122 §3.2.2 and RFC 4443 §2.4(e) exempt, nor a reset, nor more than
//! [`crate::budget`] has. The frame alone says what is refused and why: this is called for what
//! [`crate::pipeline::usual`] left, and chooses no backend.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    checksum::Sum,
    flow::{self, Family, Flow, Stop},
    forward, martian, mtu,
    packet::Packet,
    steer,
    tables::{Address, Handover, Tables, feature, owned, refusal},
    verdict::{Answer, DropReason, Verdict},
    wire::{self, Byte, Check, IcmpHdr, Word, protocol},
};

/// The longest ICMP error in bytes: what every host can take (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// The longest ICMPv6 error in bytes: the least MTU (RFC 4443 §2.4(c)).
const LONGEST_V6: usize = 1_280;
/// Bytes behind the IP header that every error quotes (RFC 792).
const LEAST_QUOTED: usize = 8;
/// Words of the longest quotation.
const QUOTED_WORDS: usize = (LONGEST_V6 - wire::IPV6 - wire::ICMP) / 4;

/// Whether an address, by its bits of [`owned`], is a VIP and none of this host's own: what comes to one of
/// those, at a port that no service has, is the host's.
#[inline(always)]
pub const fn is_vip_alone(bits: u32) -> bool {
    bits & (owned::VIP | owned::LOCAL) == owned::VIP
}

/// Why nobody takes a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Its service has no backend that may.
    NoBackend,
    /// No service has its port.
    Port,
    /// None is of its protocol, whose number is at this offset of the frame.
    Protocol(usize),
    /// Its way takes no more than so many bytes.
    TooBig(u16),
    /// No hop is left of its TTL or hop limit.
    Expired,
}

impl Cause {
    #[inline(always)]
    const fn reason(self) -> DropReason {
        match self {
            Self::NoBackend => DropReason::NoBackend,
            Self::Port | Self::Protocol(_) => DropReason::UnknownPort,
            Self::TooBig(_) => DropReason::PacketTooBig,
            Self::Expired => DropReason::TtlExpired,
        }
    }

    /// Type and code of the error, and what stands behind its checksum. Hosts, ports and protocols that
    /// are unreachable are 1, 3 and 2 of RFC 792; addresses and ports 3 and 4 of RFC 4443 §3.1, where an
    /// unknown protocol is a parameter problem (§3.4) at an offset of the packet. An MTU is of RFC 1191 §4
    /// and RFC 4443 §3.2; that no hop is left, of RFC 792 and RFC 4443 §3.3.
    #[inline(always)]
    const fn error(self, v4: bool) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::NoBackend, true) => (3, 1, 0),
            (Self::Port, true) => (3, 3, 0),
            (Self::Protocol(_), true) => (3, 2, 0),
            (Self::NoBackend, false) => (1, 3, 0),
            (Self::Port, false) => (1, 4, 0),
            (Self::Protocol(at), false) => (4, 1, (at - wire::ETHERNET) as u32),
            (Self::TooBig(mtu), true) => (3, 4, mtu as u32),
            (Self::TooBig(mtu), false) => (2, 0, mtu as u32),
            (Self::Expired, true) => (11, 0, 0),
            (Self::Expired, false) => (3, 0, 0),
        }
    }
}

/// What is sent in the place of a packet.
enum Reply {
    /// A reset with these numbers, in host order; the second only where it acknowledges.
    Reset(u32, Option<u32>),
    /// An ICMP error.
    Unreachable,
}

/// Decides over a frame that nobody takes, and makes it what it becomes.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    let mut flow = Flow::EMPTY;
    let Some(unknown) = read(packet, tables, &mut flow, Fragments::Unread) else {
        return Ok(Verdict::Pass);
    };
    let owned = steer::owned(tables, flow.destination);
    if let Some(outcome) = martian::outcome(&flow, owned) {
        return outcome;
    }
    let (cause, policy) = judge(tables, &flow, unknown);
    carry_out(packet, tables, &flow, cause, policy, || cause.reason())
}

/// What a policy makes of a packet that nobody takes. For what reason that is, is asked at the end: verifiers follow each from where it
/// is known.
#[inline(always)]
fn carry_out<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    cause: Cause,
    policy: u8,
    reason: impl Fn() -> DropReason,
) -> Result<Verdict, DropReason> {
    if policy == refusal::PASS {
        return Ok(Verdict::Pass);
    }
    if policy != refusal::DROP && answer(packet, tables, flow, cause, policy)? {
        tables.count_drop(reason());
        return Ok(Verdict::Transmit);
    }
    Err(reason())
}

/// Decides over a packet of mode `full-nat` that has no port, for the reason that was handed over.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn untranslated<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Verdict, DropReason> {
    const EXHAUSTED: u16 = DropReason::PortsExhausted as u16;
    const NO_SESSION: u16 = DropReason::NoSession as u16;
    const COOKIE: u16 = DropReason::CookieInvalid as u16;
    let mut flow = Flow::EMPTY;
    if read(packet, tables, &mut flow, Fragments::Unread).is_none() {
        return Err(DropReason::Inconsistent);
    }
    let (cause, policy) = judge(tables, &flow, Cause::Port);
    // As of a service without a backend, which is what is told.
    let reason = || match (cause, tables.handed_over().limit) {
        (Cause::NoBackend, EXHAUSTED) => DropReason::PortsExhausted,
        (Cause::NoBackend, NO_SESSION) => DropReason::NoSession,
        (Cause::NoBackend, COOKIE) => DropReason::CookieInvalid,
        (cause, _) => cause.reason(),
    };
    carry_out(packet, tables, &flow, cause, policy, reason)
}

/// What is handed over of a packet that is not too long, but has no hop left. No way takes so little: [`leave_too_big`].
const EXPIRED: u16 = 0;

/// Leaves a packet to [`too_big`], of which the way takes no more than `room` bytes.
#[inline(always)]
pub fn leave_too_big<T: Tables>(tables: &T, room: u16) {
    tables.hand_over(Handover {
        limit: if room == EXPIRED { 1 } else { room },
        ..Handover::default()
    });
}

/// Leaves a packet to it that has no hop left.
#[inline(always)]
pub fn leave_expired<T: Tables>(tables: &T) {
    tables.hand_over(Handover {
        limit: EXPIRED,
        ..Handover::default()
    });
}

/// Answers a packet that is longer than its way takes, which is what was handed over, or has no hop left. One may be a fragment, which is as
/// long as its sender's link takes: the first one of an IPv4 datagram is answered (RFC 1122 §3.2.2), every one of IPv6
/// (RFC 4443 §3.2).
///
/// # Errors
/// It is dropped without an answer.
#[inline(always)]
pub fn too_big<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    let mut flow = Flow::EMPTY;
    if read(packet, tables, &mut flow, Fragments::Read).is_none() {
        return Err(DropReason::Inconsistent);
    }
    let room = tables.handed_over().limit;
    let mtu = mtu::told(room, flow.v4);
    let cause = match room {
        EXPIRED => Cause::Expired,
        _ => Cause::TooBig(mtu),
    };
    // What is no longer than that could not be sent any shorter.
    if cause != Cause::Expired && flow.length <= mtu {
        tables.count_answer(Answer::Withheld);
    } else if answer(packet, tables, &flow, cause, refusal::UNREACHABLE)? {
        tables.count_drop(cause.reason());
        return Ok(Verdict::Transmit);
    }
    Err(cause.reason())
}

/// Whether fragments of what services are of are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragments {
    /// As far as all of them can be.
    Read,
    Unread,
}

/// Reads the frame; the cause of the refusal, unless there is a service of that protocol and port.
#[inline(always)]
fn read<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &mut Flow,
    fragments: Fragments,
) -> Option<Cause> {
    let sctp = tables.knows(feature::SCTP);
    let family = flow::family(packet)?;
    let parsed = match family {
        Family::V4 => flow::parse_v4_of(packet, flow, sctp),
        Family::V6 => flow::parse_v6_of(packet, flow, sctp),
    };
    match (parsed, family) {
        (Ok(()), _) => Some(Cause::Port),
        (Err(Stop::Foreign), Family::V4) => foreign_v4(packet, flow),
        (Err(Stop::Foreign), Family::V6) => foreign_v6(packet, flow),
        (Err(Stop::Refused(DropReason::Fragment)), family) if fragments == Fragments::Read => {
            match family {
                Family::V4 => foreign_v4(packet, flow),
                Family::V6 => fragment_v6(packet, flow),
            }
        }
        (Err(Stop::Unusual | Stop::Refused(_)), _) => None,
    }
}

/// Reads what an IPv4 packet of any protocol has. A fragment without the beginning has no length of a whole
/// one to be quoted, so that [`Flow::transport`] is 0.
#[inline(always)]
fn foreign_v4<P: Packet>(packet: &P, flow: &mut Flow) -> Option<Cause> {
    let ip = packet.read::<Ipv4Hdr>(wire::ETHERNET)?;
    let header = flow::header_v4(&ip)?;
    flow.source = Address::v4(u32::from_ne_bytes(ip.src_addr));
    flow.destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
    flow.protocol = ip.proto;
    flow.length = u16::from_be_bytes(ip.tot_len);
    flow.v4 = true;
    flow.transport = if u16::from_be_bytes(ip.frags) & 0x1fff == 0 {
        wire::ETHERNET + header
    } else {
        0
    };
    let whole = usize::from(flow.length) >= header && packet.reaches(flow.end());
    whole.then_some(Cause::Protocol(0))
}

/// The same for IPv6, where only whole packets have a protocol.
#[inline(always)]
fn foreign_v6<P: Packet>(packet: &P, flow: &mut Flow) -> Option<Cause> {
    let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
    let found = flow::skip_extensions(packet, ip.next_hdr).ok()?;
    flow.source = Address::v6(ip.src_addr);
    flow.destination = Address::v6(ip.dst_addr);
    flow.protocol = found.protocol;
    flow.length = u16::from_be_bytes(ip.payload_len).checked_add(wire::IPV6 as u16)?;
    flow.transport = found.offset;
    flow.v4 = false;
    let whole = packet.reaches(flow.end());
    // A message behind extension headers is the kernel's, as one that nothing here understands.
    (whole && found.protocol != protocol::ICMPV6).then_some(Cause::Protocol(found.named_at))
}

/// Reads what an IPv6 fragment has, whichever it is: of what protocol its datagram is only the first one may say.
#[inline(always)]
fn fragment_v6<P: Packet>(packet: &P, flow: &mut Flow) -> Option<Cause> {
    let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
    flow.source = Address::v6(ip.src_addr);
    flow.destination = Address::v6(ip.dst_addr);
    flow.protocol = protocol::FRAGMENT;
    flow.length = u16::from_be_bytes(ip.payload_len).checked_add(wire::IPV6 as u16)?;
    flow.transport = wire::ETHERNET + wire::IPV6;
    flow.v4 = false;
    packet.reaches(flow.end()).then_some(Cause::Port)
}

/// Why nobody takes the packet, and which policy it falls under.
#[inline(always)]
fn judge<T: Tables>(tables: &T, flow: &Flow, unknown: Cause) -> (Cause, u8) {
    if unknown == Cause::Port
        && let Some(found) = steer::service(tables, &flow.to())
    {
        return (Cause::NoBackend, found.service.descriptor.refusal());
    }
    let policy = match tables.control() {
        Some(control) if is_vip_alone(steer::owned(tables, flow.destination)) => {
            control.unknown_port
        }
        _ => refusal::PASS,
    };
    (unknown, policy)
}

/// Makes the frame an answer in the VIP's name, unless there must or may be none; whether it did.
#[inline(always)]
fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    cause: Cause,
    policy: u8,
) -> Result<bool, DropReason> {
    let reply = match reply(packet, flow, policy) {
        Some(reply) if is_intact(packet, flow) && is_from_a_host(packet, tables, flow) => reply,
        _ => {
            tables.count_answer(Answer::Withheld);
            return Ok(false);
        }
    };
    let kind = match (&reply, cause) {
        (Reply::Reset(..), _) => Answer::Reset,
        (Reply::Unreachable, Cause::TooBig(_)) => Answer::TooBig,
        (Reply::Unreachable, Cause::Expired) => Answer::Expired,
        (Reply::Unreachable, _) => Answer::Unreachable,
    };
    if !tables.may_answer(kind) {
        tables.count_answer(Answer::Limited);
        return Ok(false);
    }
    match reply {
        Reply::Reset(sequence, acknowledged) => reset(packet, flow, sequence, acknowledged)?,
        Reply::Unreachable => unreachable(packet, flow, cause)?,
    }
    tables.count_answer(kind);
    Ok(true)
}

/// What an answer would be; none to what is none to be answered, whoever sent it.
#[inline(always)]
fn reply<P: Packet>(packet: &P, flow: &Flow, policy: u8) -> Option<Reply> {
    // A fragment other than the first, or nothing that could be missed.
    if flow.transport == 0 || flow.protocol == protocol::NO_NEXT_HEADER {
        return None;
    }
    if flow.protocol != protocol::TCP {
        return Some(Reply::Unreachable);
    }
    let tcp = packet.read::<TcpHdr>(flow.transport)?;
    let header = usize::from(tcp.doff()) * 4;
    let segment = flow.end() - flow.transport;
    if tcp.rst() != 0 || header < wire::TCP || header > segment {
        return None;
    }
    if policy != refusal::RESET {
        return Some(Reply::Unreachable);
    }
    if tcp.ack() != 0 {
        return Some(Reply::Reset(u32::from_be_bytes(tcp.ack_seq), None));
    }
    let length = (segment - header) as u32 + u32::from(tcp.syn()) + u32::from(tcp.fin());
    let next = u32::from_be_bytes(tcp.seq).wrapping_add(length);
    Some(Reply::Reset(0, Some(next)))
}

/// Whether the IPv4 header arrived as it was sent (RFC 1122 §3.2.1.2): what it says may be another's otherwise. IPv6 leaves that
/// to the link and to the transport's checksum, which takes all of the packet.
#[inline(always)]
fn is_intact<P: Packet>(packet: &P, flow: &Flow) -> bool {
    const MOST_WORDS: usize = 15;
    if !flow.v4 {
        return true;
    }
    let header = packet.read::<Byte>(wire::ETHERNET);
    let words = header.map_or(0, |Byte(first)| usize::from(first & 0xf));
    let mut sum = Sum::new();
    for n in 0..MOST_WORDS {
        if n >= words {
            break;
        }
        let Some(Word(word)) = packet.read::<Word>(wire::ETHERNET + n * 4) else {
            return false;
        };
        sum = sum.add32(u32::from_ne_bytes(word));
    }
    sum.fold() == 0xffff
}

/// Whether one host sent the packet, and to this one alone: not from a VIP or an address of ours either,
/// which would be to answer ourselves.
#[inline(always)]
pub(crate) fn is_from_a_host<P: Packet, T: Tables>(packet: &P, tables: &T, flow: &Flow) -> bool {
    let [first, ..] = flow.source.low().to_ne_bytes();
    // What else is none has not come so far; this is reserved (RFC 1122 §3.2.2).
    let is_host = !flow.v4 || first < 240;
    is_for_one_host(packet) && is_host && steer::owned(tables, flow.source) == 0
}

/// Whether the frame is to one hardware address, not to a group of them or to all.
#[inline(always)]
pub(crate) fn is_for_one_host<P: Packet>(packet: &P) -> bool {
    const GROUP: u8 = 1;
    packet
        .read::<EthHdr>(0)
        .is_some_and(|ethernet| ethernet.dst_addr[0] & GROUP == 0)
}

/// Makes the frame a reset of the connection that its segment is of.
#[inline(always)]
fn reset<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    sequence: u32,
    acknowledged: Option<u32>,
) -> Result<(), DropReason> {
    let acks = u16::from(acknowledged.is_some());
    let mut tcp = TcpHdr {
        source: flow.destination_port.to_ne_bytes(),
        dest: flow.source_port.to_ne_bytes(),
        seq: sequence.to_be_bytes(),
        ack_seq: acknowledged.unwrap_or(0).to_be_bytes(),
        _bitfield_align_1: [],
        _bitfield_1: TcpHdr::new_bitfield_1(0, 5, 0, 0, 1, 0, acks, 0, 0, 0),
        window: [0; 2],
        check: [0; 2],
        urg_ptr: [0; 2],
    };
    // Its length, and RST, ACK.
    let control = [0x50, 0x04 | (acks as u8) << 4];
    let sum = pseudo_header(flow, protocol::TCP, wire::TCP)
        .add16(flow.destination_port)
        .add16(flow.source_port)
        .add32(u32::from_ne_bytes(tcp.seq))
        .add32(u32::from_ne_bytes(tcp.ack_seq))
        .add16(u16::from_ne_bytes(control));
    tcp.check = sum.checksum().to_ne_bytes();
    let network = network_length(flow);
    cut(packet, wire::ETHERNET + network + wire::TCP)?;
    forward::turn_back(packet)?;
    write_network(packet, flow, protocol::TCP, wire::TCP)?;
    forward::write(packet, wire::ETHERNET + network, &tcp)
}

/// Makes the frame an ICMP error about the packet that it was.
#[inline(always)]
fn unreachable<P: Packet>(packet: &mut P, flow: &Flow, cause: Cause) -> Result<(), DropReason> {
    let network = network_length(flow);
    let headers = network + wire::ICMP;
    let longest = if flow.v4 { LONGEST_V4 } else { LONGEST_V6 };
    let mut quoted = usize::from(flow.length).min(longest - headers);
    // The rest of a frame in several buffers may be where nothing here can be read, and summed: then as much is quoted as must
    // be (RFC 792).
    if packet.read::<Byte>(wire::ETHERNET + quoted - 1).is_none() {
        quoted = quoted.min(flow.transport - wire::ETHERNET + LEAST_QUOTED);
    }
    let ethernet: EthHdr = forward::read(packet, 0)?;
    cut(packet, wire::ETHERNET + quoted)?;
    if !packet.grow_front(headers) {
        return Err(DropReason::NoHeadroom);
    }
    write_error(packet, flow, cause, &ethernet, quoted)
}

/// Makes the frame, an error that quotes a packet of `flow` at offset `at`, so many bytes of it, one about that packet that says
/// `mtu`, to who sent the frame; its length in bytes.
///
/// # Errors
/// The frame is not as it is said to be.
#[inline(always)]
pub(crate) fn relay_too_big<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    mtu: u16,
    at: usize,
    quoted: usize,
) -> Result<u16, DropReason> {
    let headers = network_length(flow) + wire::ICMP;
    let longest = if flow.v4 { LONGEST_V4 } else { LONGEST_V6 };
    let quoted = quoted.min(longest - headers);
    let ethernet: EthHdr = forward::read(packet, 0)?;
    cut(packet, at + quoted)?;
    if !packet.shrink_front(at - wire::ETHERNET - headers) {
        return Err(DropReason::Inconsistent);
    }
    write_error(packet, flow, Cause::TooBig(mtu), &ethernet, quoted)?;
    Ok((headers + quoted) as u16)
}

/// Writes what stands before the quotation of an error, which has its place and its length, in answer to a frame with this header.
#[inline(always)]
fn write_error<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    cause: Cause,
    ethernet: &EthHdr,
    quoted: usize,
) -> Result<(), DropReason> {
    let network = network_length(flow);
    let answer = EthHdr {
        dst_addr: ethernet.src_addr,
        src_addr: ethernet.dst_addr,
        ether_type: if flow.v4 {
            wire::ETHER_IPV4
        } else {
            wire::ETHER_IPV6
        },
    };
    forward::write(packet, 0, &answer)?;
    let number = if flow.v4 {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    write_network(packet, flow, number, wire::ICMP + quoted)?;
    let (kind, code, rest) = cause.error(flow.v4);
    let rest = rest.to_be_bytes();
    // ICMP has no pseudo-header (RFC 792).
    let sum = if flow.v4 {
        Sum::new()
    } else {
        pseudo_header(flow, number, wire::ICMP + quoted)
    };
    let sum = sum
        .plus(sum_of(
            packet,
            wire::ETHERNET + network + wire::ICMP,
            quoted,
        )?)
        .add16(u16::from_ne_bytes([kind, code]))
        .add32(u32::from_ne_bytes(rest));
    let icmp = IcmpHdr {
        kind,
        code,
        check: sum.checksum().to_ne_bytes(),
        rest,
    };
    forward::write(packet, wire::ETHERNET + network, &icmp)
}

#[inline(always)]
const fn network_length(flow: &Flow) -> usize {
    if flow.v4 { wire::IPV4 } else { wire::IPV6 }
}

/// The IP header of an answer of so many bytes to a packet of `flow`.
#[inline(always)]
fn write_network<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    number: u8,
    length: usize,
) -> Result<(), DropReason> {
    let (source, destination) = (flow.destination, flow.source);
    if flow.v4 {
        let length = (wire::IPV4 + length) as u16;
        let ip = forward::header_v4(0, length, number, source.low(), destination.low());
        forward::write(packet, wire::ETHERNET, &ip)
    } else {
        let ip = forward::header_v6(0, length as u16, number, source, destination);
        forward::write(packet, wire::ETHERNET, &ip)
    }
}

/// What checksums cover beside the message (RFC 9293 §3.1, RFC 8200 §8.1), whichever way it goes. The prefix
/// that stands before IPv4 addresses, 0xffff twice, sums to nothing.
#[inline(always)]
fn pseudo_header(flow: &Flow, number: u8, length: usize) -> Sum {
    Sum::new()
        .add128(flow.source.words())
        .add128(flow.destination.words())
        .add16(u16::from(number).to_be())
        .add16((length as u16).to_be())
}

/// The sum of so many bytes from `offset` on, at most [`QUOTED_WORDS`].
#[inline(always)]
fn sum_of<P: Packet>(packet: &P, offset: usize, length: usize) -> Result<Sum, DropReason> {
    let (mut sum, mut at) = (Sum::new(), 0);
    for _ in 0..QUOTED_WORDS {
        if at + 4 > length {
            break;
        }
        let Word(word) = forward::read(packet, offset + at)?;
        sum = sum.add32(u32::from_ne_bytes(word));
        at += 4;
    }
    if length & 2 != 0 {
        let Check(half) = forward::read(packet, offset + at)?;
        sum = sum.add16(u16::from_ne_bytes(half));
        at += 2;
    }
    if length & 1 != 0 {
        // The last byte has a zero behind it (RFC 1071 §1).
        let Byte(byte) = forward::read(packet, offset + at)?;
        sum = sum.add16(u16::from_ne_bytes([byte, 0]));
    }
    Ok(sum)
}

#[inline(always)]
fn cut<P: Packet>(packet: &mut P, length: usize) -> Result<(), DropReason> {
    if packet.truncate(length) {
        Ok(())
    } else {
        Err(DropReason::Inconsistent)
    }
}
