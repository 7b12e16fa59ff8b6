//! From bytes to a [`Flow`]: which connection a packet belongs to, and where its headers are.
//!
//! Never guesses: what cannot be read for certain is [`Stop::Refused`] with a reason, which
//! becomes a drop only if its destination is a VIP. No packet is written here.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    packet::Packet,
    tables::{Address, Endpoint},
    verdict::DropReason,
    wire::{self, Byte, Check, ExtensionHdr, SctpStart, TcpStart, control, protocol},
};

/// Extension headers followed before a packet is refused; real ones have one or two.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// The coordinates of a packet of TCP, UDP or SCTP. Ports are natively loaded network-order words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its source address.
    pub source: Address,
    /// Its destination address.
    pub destination: Address,
    /// Its source port.
    pub source_port: u16,
    /// Its destination port.
    pub destination_port: u16,
    /// [`protocol::TCP`], [`protocol::UDP`] or [`protocol::SCTP`]; of a fragment that is forwarded as it is,
    /// [`protocol::FRAGMENT`].
    pub protocol: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Length of the IP packet in bytes, its header included.
    pub length: u16,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: usize,
    /// Whether it is of IPv4.
    pub v4: bool,
    /// What it says of its connection; for UDP nothing, until it is known to be QUIC's.
    pub signal: Signal,
}

/// What a packet says of its connection (RFC 9293 §3.1, "Control bits"; RFC 9260 §3.2; for QUIC, [`crate::quic`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Signal {
    /// Nothing.
    None = 0,
    /// It opens one: SYN without ACK, INIT, or a QUIC Initial.
    Opens,
    /// The sender has no more to say: FIN, or what shuts an SCTP association down.
    Finishes,
    /// It ends at once: RST, ABORT.
    Resets,
    /// It is not of the connection, but says that it is about it, as anybody may: an ICMP error.
    Hearsay,
}

impl Signal {
    /// From its number; what is none says nothing.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Opens,
            2 => Self::Finishes,
            3 => Self::Resets,
            4 => Self::Hearsay,
            _ => Self::None,
        }
    }
}

impl Flow {
    /// To be read into.
    pub const EMPTY: Self = Self {
        source: Address::v6([0; 16]),
        destination: Address::v6([0; 16]),
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        traffic_class: 0,
        length: 0,
        transport: 0,
        v4: false,
        signal: Signal::None,
    };

    /// Where it goes.
    #[inline(always)]
    pub const fn to(&self) -> Endpoint {
        Endpoint {
            address: self.destination,
            port: self.destination_port,
            protocol: self.protocol,
            zero: 0,
            zeros: 0,
        }
    }

    /// Where it comes from.
    #[inline(always)]
    pub const fn from(&self) -> Endpoint {
        Endpoint {
            address: self.source,
            port: self.source_port,
            protocol: self.protocol,
            zero: 0,
            zeros: 0,
        }
    }

    /// Where its packet ends in the frame, in bytes.
    #[inline(always)]
    pub const fn end(&self) -> usize {
        wire::ETHERNET + self.length as usize
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.signal == Signal::Opens
    }

    /// Both ports in one word, for hashing.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        ((self.source_port as u32) << 16) | self.destination_port as u32
    }
}

/// Why a packet has no [`Flow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is nothing that a service could be addressed by.
    Foreign,
    /// It may be ICMP, which is read apart.
    Unusual,
    /// It is broken or unsupported; dropped if [`Flow::destination`] is a VIP.
    Refused(DropReason),
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What stands where a transport header should.
pub(crate) struct Transport {
    /// Its IANA protocol number.
    pub protocol: u8,
    /// Where it begins in the frame, in bytes.
    pub offset: usize,
    /// Where the number is that says so, in the frame.
    pub named_at: usize,
}

/// The family that a frame says it is of.
#[inline(always)]
pub fn family<P: Packet>(packet: &P) -> Option<Family> {
    match packet.read::<EthHdr>(0)?.ether_type {
        wire::ETHER_IPV4 => Some(Family::V4),
        wire::ETHER_IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// Length of an IPv4 header in bytes, options included; `None` where it cannot be one.
#[inline(always)]
pub fn header_v4(ip: &Ipv4Hdr) -> Option<usize> {
    let length = usize::from(ip.vihl & 0xf) * 4;
    (ip.vihl >> 4 == 4 && length >= wire::IPV4).then_some(length)
}

/// Reads the headers of an IPv4 frame. Into place, as the other family's: a value that is moved is
/// copied through memory in other words than it was written in, which stalls.
///
/// # Errors
/// Why there is no flow; its destination is set nevertheless where there is a reason to refuse it.
#[inline(always)]
pub fn parse_v4<P: Packet>(packet: &P, flow: &mut Flow) -> Result<(), Stop> {
    parse_v4_of(packet, flow, false)
}

/// The same with SCTP, where that is asked for; so is the one of IPv6.
///
/// # Errors
/// As [`parse_v4`].
#[inline(always)]
pub fn parse_v4_of<P: Packet>(packet: &P, flow: &mut Flow, sctp: bool) -> Result<(), Stop> {
    let Some(ip) = packet.read::<Ipv4Hdr>(wire::ETHERNET) else {
        return Err(Stop::Foreign);
    };
    if !has_ports(ip.proto, sctp) {
        return Err(if ip.proto == protocol::ICMP {
            Stop::Unusual
        } else {
            Stop::Foreign
        });
    }
    flow.destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
    let length = u16::from_be_bytes(ip.tot_len);
    let Some(header) = header_v4(&ip) else {
        return Err(Stop::Refused(DropReason::BadHeader));
    };
    if usize::from(length) < header || !packet.reaches(wire::ETHERNET + usize::from(length)) {
        return Err(Stop::Refused(DropReason::BadHeader));
    }
    // More fragments, or an offset: the reserved and the don't-fragment bit do not matter.
    if u16::from_be_bytes(ip.frags) & 0x3fff != 0 {
        return Err(Stop::Refused(DropReason::Fragment));
    }
    flow.source = Address::v4(u32::from_ne_bytes(ip.src_addr));
    flow.protocol = ip.proto;
    flow.traffic_class = ip.tos;
    flow.length = length;
    flow.transport = wire::ETHERNET + header;
    flow.v4 = true;
    transport(packet, flow, sctp, Part::Whole)
}

/// Refuses an IPv4 packet of `flow` that is led by a source route, as one of IPv6 with segments left is: its destination is
/// a way-point, and answers would have to be led back (RFC 7126 §4.3, §4.4).
///
/// # Errors
/// It is.
#[inline(always)]
pub fn refuse_source_route<P: Packet>(packet: &P, flow: &Flow) -> Result<(), Stop> {
    if is_source_routed(packet, flow.transport) {
        return Err(Stop::Refused(DropReason::SourceRoute));
    }
    Ok(())
}

/// Whether the options of an IPv4 header that ends at `end` in the frame have a source route (RFC 791 §3.1).
#[inline(always)]
pub(crate) fn is_source_routed<P: Packet>(packet: &P, end: usize) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    const MOST: usize = 40;
    let mut at = wire::ETHERNET + wire::IPV4;
    if at >= end {
        return false;
    }
    for _ in 0..MOST {
        // Every way here is one: older verifiers would follow each.
        at = packet.forget(at);
        if at + 2 > end {
            return false;
        }
        let Some(Check([kind, length])) = packet.read(at) else {
            return false;
        };
        match kind {
            LOOSE | STRICT => return true,
            NO_OPERATION => at += 1,
            END => return false,
            _ if length < 2 => return false,
            _ => at += usize::from(length),
        }
    }
    false
}

/// Whether a packet of IPv6 has an authentication header, which covers its addresses (RFC 4302 §3.3.3.1).
#[inline(always)]
pub(crate) fn is_authenticated<P: Packet>(packet: &P, flow: &Flow) -> bool {
    let mut at = wire::ETHERNET + wire::IPV6;
    if flow.v4 || flow.transport == at {
        return false;
    }
    let Some(Byte(mut number)) = packet.read(wire::ETHERNET + wire::NEXT_HEADER) else {
        return false;
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        if number == protocol::AUTHENTICATION || !is_extension(number) {
            break;
        }
        at = packet.forget(at);
        let Some(header) = packet.read::<ExtensionHdr>(at) else {
            return false;
        };
        let Ok(length) = extension_length(number, &header) else {
            return false;
        };
        at += length;
        number = header.next_header;
    }
    number == protocol::AUTHENTICATION
}

/// Reads the headers of an IPv6 frame.
///
/// # Errors
/// As [`parse_v4`].
#[inline(always)]
pub fn parse_v6<P: Packet>(packet: &P, flow: &mut Flow) -> Result<(), Stop> {
    parse_v6_of(packet, flow, false)
}

/// See [`parse_v4_of`].
///
/// # Errors
/// As [`parse_v4`].
#[inline(always)]
pub fn parse_v6_of<P: Packet>(packet: &P, flow: &mut Flow, sctp: bool) -> Result<(), Stop> {
    let Some(ip) = packet.read::<Ipv6Hdr>(wire::ETHERNET) else {
        return Err(Stop::Foreign);
    };
    if ip.next_hdr == protocol::ICMPV6 {
        return Err(Stop::Unusual);
    }
    flow.destination = Address::v6(ip.dst_addr);
    let payload = u16::from_be_bytes(ip.payload_len);
    let length = match u16::try_from(wire::IPV6 + usize::from(payload)) {
        Ok(length) if packet.reaches(wire::ETHERNET + usize::from(length)) => length,
        _ => return Err(Stop::Refused(DropReason::BadHeader)),
    };
    let [first, second, ..] = ip.vcf;
    if first >> 4 != 6 {
        return Err(Stop::Refused(DropReason::BadHeader));
    }
    let found = skip_extensions(packet, ip.next_hdr).map_err(Stop::Refused)?;
    if !has_ports(found.protocol, sctp) {
        return Err(Stop::Foreign);
    }
    flow.source = Address::v6(ip.src_addr);
    flow.protocol = found.protocol;
    flow.traffic_class = (first << 4) | (second >> 4);
    flow.length = length;
    flow.transport = found.offset;
    flow.v4 = false;
    transport(packet, flow, sctp, Part::Whole)
}

/// Whether services can be of a protocol, given whether some are of SCTP.
#[inline(always)]
pub(crate) const fn has_ports(number: u8, sctp: bool) -> bool {
    number == protocol::TCP || number == protocol::UDP || (sctp && number == protocol::SCTP)
}

/// Follows IPv6 extension headers (RFC 8200 §4) to the first header that is none.
///
/// # Errors
/// Why it cannot be found.
#[inline(always)]
pub(crate) fn skip_extensions<P: Packet>(packet: &P, first: u8) -> Result<Transport, DropReason> {
    let mut found = Transport {
        protocol: first,
        offset: wire::ETHERNET + wire::IPV6,
        named_at: wire::ETHERNET + wire::NEXT_HEADER,
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(found.protocol) {
            return Ok(found);
        }
        let header = packet
            .read::<ExtensionHdr>(found.offset)
            .ok_or(DropReason::Truncated)?;
        // Its first byte.
        found.named_at = found.offset;
        found.offset += extension_length(found.protocol, &header)?;
        found.protocol = header.next_header;
    }
    if is_extension(found.protocol) {
        return Err(DropReason::ExtensionHeaders);
    }
    Ok(found)
}

#[inline(always)]
pub(crate) const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

/// Length in bytes of an extension header that may be skipped.
#[inline(always)]
pub(crate) fn extension_length(protocol: u8, header: &ExtensionHdr) -> Result<usize, DropReason> {
    let [third, fourth] = header.data;
    match protocol {
        // An atomic fragment is a whole packet (RFC 6946); the two bits between are reserved.
        protocol::FRAGMENT if third == 0 && fourth & 0xf9 == 0 => Ok(8),
        protocol::FRAGMENT => Err(DropReason::Fragment),
        // In units of four bytes, less two (RFC 4302 §2.2).
        protocol::AUTHENTICATION => Ok((usize::from(header.length) + 2) * 4),
        // With segments left, the destination is only a way-point (RFC 8200 §4.4).
        protocol::ROUTING if fourth != 0 => Err(DropReason::ExtensionHeaders),
        _ => Ok((usize::from(header.length) + 1) * 8),
    }
}

/// What the control bits of a TCP header say. Those of nearly all packets say nothing, which is told first.
#[inline(always)]
const fn signal(bits: u8) -> Signal {
    if bits & (control::SYN | control::RST | control::FIN) == 0 {
        Signal::None
    } else if bits & control::RST != 0 {
        Signal::Resets
    } else if bits & (control::SYN | control::ACK) == control::SYN {
        Signal::Opens
    } else if bits & control::FIN != 0 {
        Signal::Finishes
    } else {
        Signal::None
    }
}

/// What the first chunk of an SCTP packet says (RFC 9260 §3.2): those of opening and ending stand alone or first.
#[inline(always)]
const fn chunk_signal(kind: u8) -> Signal {
    const INIT: u8 = 1;
    const ABORT: u8 = 6;
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_ACK: u8 = 8;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match kind {
        INIT => Signal::Opens,
        ABORT => Signal::Resets,
        SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => Signal::Finishes,
        _ => Signal::None,
    }
}

/// How much of a datagram a packet has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// Its beginning.
    First,
}

/// Adds the ports, whose header must lie within the IP packet, and what that says to be behind it (RFC 9293 §3.1, "Data
/// Offset"; RFC 768, "Length"), which of a [`Part::First`] is elsewhere. Of SCTP only where that is asked for.
#[inline(always)]
pub(crate) fn transport<P: Packet>(
    packet: &P,
    flow: &mut Flow,
    sctp: bool,
    part: Part,
) -> Result<(), Stop> {
    let truncated = Stop::Refused(DropReason::Truncated);
    let end = flow.end();
    if flow.protocol == protocol::TCP {
        let Some(tcp) = packet.read::<TcpStart>(flow.transport) else {
            return Err(truncated);
        };
        let header = usize::from(tcp.offset >> 4) * 4;
        if header < wire::TCP || flow.transport + header > end {
            return Err(truncated);
        }
        flow.source_port = u16::from_ne_bytes(tcp.source);
        flow.destination_port = u16::from_ne_bytes(tcp.destination);
        flow.signal = signal(tcp.control);
    } else if sctp && flow.protocol == protocol::SCTP {
        let Some(start) = packet.read::<SctpStart>(flow.transport) else {
            return Err(truncated);
        };
        if flow.transport + wire::SCTP_START > end {
            return Err(truncated);
        }
        flow.source_port = u16::from_ne_bytes(start.source);
        flow.destination_port = u16::from_ne_bytes(start.destination);
        flow.signal = chunk_signal(start.kind);
    } else {
        let Some(udp) = packet.read::<UdpHdr>(flow.transport) else {
            return Err(truncated);
        };
        let length = match part {
            Part::Whole => usize::from(u16::from_be_bytes(udp.len)),
            Part::First => wire::UDP,
        };
        if length < wire::UDP || flow.transport + length > end {
            return Err(truncated);
        }
        flow.source_port = u16::from_ne_bytes(udp.src);
        flow.destination_port = u16::from_ne_bytes(udp.dst);
        flow.signal = Signal::None;
    }
    Ok(())
}
