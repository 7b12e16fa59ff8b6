//! From bytes to a [`Flow`]: which connection a packet belongs to, and where its headers are.
//!
//! Never guesses: what cannot be read for certain is [`Parsed::Refused`] with a reason, which
//! becomes a drop only if its destination is a VIP. Nothing is written here.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    packet::Packet,
    tables::{Address, Endpoint},
    verdict::DropReason,
    wire::{self, ExtensionHdr, protocol},
};

/// Extension headers followed before a packet is refused; real ones have one or two.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// A TCP or UDP packet's coordinates. Ports are natively loaded network-order words.
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
    /// [`protocol::TCP`] or [`protocol::UDP`].
    pub protocol: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Length of the IP packet in bytes, its header included.
    pub length: u16,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: usize,
    /// Whether it is of IPv4.
    pub v4: bool,
    /// What it says of its connection; nothing for UDP.
    pub signal: Signal,
}

/// What a packet says of its connection (RFC 9293 §3.1, "Control bits").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Signal {
    /// Nothing.
    None,
    /// It opens one: SYN without ACK.
    Opens,
    /// The sender has no more to say: FIN.
    Finishes,
    /// It ends at once: RST.
    Resets,
}

impl Flow {
    /// Where it goes.
    #[inline(always)]
    pub const fn to(&self) -> Endpoint {
        Endpoint {
            address: self.destination,
            port: self.destination_port,
            protocol: self.protocol,
            zero: 0,
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
        }
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

/// What a packet turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// TCP or UDP, whole.
    Flow(Flow),
    /// Nothing that a service could be addressed by.
    Foreign,
    /// Broken or unsupported; dropped if `destination` is a VIP.
    Refused {
        /// Where it goes.
        destination: Address,
        /// What is wrong with it.
        reason: DropReason,
    },
}

/// What stands where a transport header should.
struct Transport {
    protocol: u8,
    offset: usize,
}

/// Reads a frame's headers.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Parsed {
    match packet.read::<EthHdr>(0) {
        Some(ethernet) if ethernet.ether_type == wire::ETHER_IPV4 => parse_v4(packet),
        Some(ethernet) if ethernet.ether_type == wire::ETHER_IPV6 => parse_v6(packet),
        _ => Parsed::Foreign,
    }
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P) -> Parsed {
    let Some(ip) = packet.read::<Ipv4Hdr>(wire::ETHERNET) else {
        return Parsed::Foreign;
    };
    let protocol = ip.proto;
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return Parsed::Foreign;
    }
    let destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
    let refused = |reason| Parsed::Refused {
        destination,
        reason,
    };
    let length = u16::from_be_bytes(ip.tot_len);
    let header = usize::from(ip.vihl & 0xf) * 4;
    if ip.vihl >> 4 != 4
        || header < wire::IPV4
        || usize::from(length) < header
        || wire::ETHERNET + usize::from(length) > packet.length()
    {
        return refused(DropReason::BadHeader);
    }
    // More fragments, or an offset: the reserved and the don't-fragment bit do not matter.
    if u16::from_be_bytes(ip.frags) & 0x3fff != 0 {
        return refused(DropReason::Fragment);
    }
    let flow = Flow {
        source: Address::v4(u32::from_ne_bytes(ip.src_addr)),
        destination,
        source_port: 0,
        destination_port: 0,
        protocol,
        traffic_class: ip.tos,
        length,
        transport: wire::ETHERNET + header,
        v4: true,
        signal: Signal::None,
    };
    transport(packet, flow)
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P) -> Parsed {
    let Some(ip) = packet.read::<Ipv6Hdr>(wire::ETHERNET) else {
        return Parsed::Foreign;
    };
    let destination = Address::v6(ip.dst_addr);
    let refused = |reason| Parsed::Refused {
        destination,
        reason,
    };
    let payload = u16::from_be_bytes(ip.payload_len);
    let length = match u16::try_from(wire::IPV6 + usize::from(payload)) {
        Ok(length) if wire::ETHERNET + usize::from(length) <= packet.length() => length,
        _ => return refused(DropReason::BadHeader),
    };
    let [first, second, ..] = ip.vcf;
    if first >> 4 != 6 {
        return refused(DropReason::BadHeader);
    }
    let found = match skip_extensions(packet, ip.next_hdr) {
        Ok(found) => found,
        Err(reason) => return refused(reason),
    };
    if found.protocol != protocol::TCP && found.protocol != protocol::UDP {
        return Parsed::Foreign;
    }
    let flow = Flow {
        source: Address::v6(ip.src_addr),
        destination,
        source_port: 0,
        destination_port: 0,
        protocol: found.protocol,
        traffic_class: (first << 4) | (second >> 4),
        length,
        transport: found.offset,
        v4: false,
        signal: Signal::None,
    };
    transport(packet, flow)
}

/// Follows IPv6 extension headers (RFC 8200 §4) to the first header that is none.
#[inline(always)]
fn skip_extensions<P: Packet>(packet: &P, first: u8) -> Result<Transport, DropReason> {
    let mut found = Transport {
        protocol: first,
        offset: wire::ETHERNET + wire::IPV6,
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(found.protocol) {
            return Ok(found);
        }
        let header = packet
            .read::<ExtensionHdr>(found.offset)
            .ok_or(DropReason::Truncated)?;
        found.offset += extension_length(found.protocol, &header)?;
        found.protocol = header.next_header;
    }
    if is_extension(found.protocol) {
        return Err(DropReason::ExtensionHeaders);
    }
    Ok(found)
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
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
fn extension_length(protocol: u8, header: &ExtensionHdr) -> Result<usize, DropReason> {
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

#[inline(always)]
fn signal(tcp: &TcpHdr) -> Signal {
    if tcp.rst() != 0 {
        Signal::Resets
    } else if tcp.syn() != 0 && tcp.ack() == 0 {
        Signal::Opens
    } else if tcp.fin() != 0 {
        Signal::Finishes
    } else {
        Signal::None
    }
}

/// Adds the ports, which must lie within the IP packet.
#[inline(always)]
fn transport<P: Packet>(packet: &P, mut flow: Flow) -> Parsed {
    let truncated = Parsed::Refused {
        destination: flow.destination,
        reason: DropReason::Truncated,
    };
    let end = wire::ETHERNET + usize::from(flow.length);
    if flow.protocol == protocol::TCP {
        match packet.read::<TcpHdr>(flow.transport) {
            Some(tcp) if flow.transport + wire::TCP <= end => {
                flow.source_port = u16::from_ne_bytes(tcp.source);
                flow.destination_port = u16::from_ne_bytes(tcp.dest);
                flow.signal = signal(&tcp);
            }
            _ => return truncated,
        }
    } else {
        match packet.read::<UdpHdr>(flow.transport) {
            Some(udp) if flow.transport + wire::UDP <= end => {
                flow.source_port = u16::from_ne_bytes(udp.src);
                flow.destination_port = u16::from_ne_bytes(udp.dst);
            }
            _ => return truncated,
        }
    }
    Parsed::Flow(flow)
}
