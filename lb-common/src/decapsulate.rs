//! The backend's end of an `ipip` or `gue` tunnel: takes the outer headers off (RFC 2003, RFC 2473;
//! draft-ietf-intarea-gue-09, variant 1, and variant 0 without extension fields). What another backend may have,
//! [`crate::hand_on`] sends there instead.
//!
//! Only what is addressed to this host and wraps an IP packet is touched; all else passes. Checksums of
//! a tunnel's UDP header are left unread: the inner packet has its own. Congestion that routers marked on
//! the outer header goes on with the inner one (RFC 6040 §4.2).

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    checksum::Sum,
    flow::{Family, Flow},
    hand_on::{self, Hop, Socket},
    packet::Packet,
    second_hop,
    tables::{Address, Endpoint, NoRoute, Route, RouteQuery},
    wire::{self, protocol},
};

/// Values of the ECN field, the last two bits of a traffic class (RFC 3168 §5).
mod ecn {
    pub const MASK: u8 = 3;
    pub const NOT_CAPABLE: u8 = 0;
    pub const CAPABLE_1: u8 = 1;
    pub const CAPABLE_0: u8 = 2;
    pub const CONGESTION: u8 = 3;
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// On to the network stack.
    Pass,
    /// Gone: congestion was marked on its way, and its sender would not be told of it otherwise; or it cannot be handed on.
    Drop,
    /// Handed on, out of the interface that it came in by.
    Transmit,
    /// Handed on, out of another interface.
    Redirect(u32),
}

/// What the decapsulator asks of its host.
pub trait Host {
    /// Whether tunnelled packets to this outer address are to be unwrapped.
    fn terminates(&self, outer: &Address) -> bool;
    /// The UDP port of `gue` tunnels, natively loaded; 0: none end here.
    fn gue_port(&self) -> u16;
    /// Counts an unwrapped packet.
    fn count(&self, bytes: u64);
    /// Counts one that was dropped, since congestion was marked.
    fn count_drop(&self);
    /// Whether packets of flows that this host does not know are handed on to whoever may have them.
    fn hands_on(&self) -> bool;
    /// Whose a TCP connection is here, between a remote and a local end.
    fn socket(&self, remote: &Endpoint, local: &Endpoint) -> Socket;
    /// Whether a packet of `flow`, whose port takes connections, answers a SYN cookie of this host's.
    fn answers_cookie<P: Packet>(&self, packet: &P, flow: &Flow) -> bool;
    /// Where the kernel would send a packet.
    ///
    /// # Errors
    /// Why it would not.
    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute>;
    /// Counts a packet that was handed on, or dropped since it could not be.
    fn count_hop(&self, hop: Hop);
}

/// The outer IP header of a packet.
struct Outer {
    destination: Address,
    /// Protocol of what it wraps.
    inner: u8,
    /// Its length in bytes.
    length: usize,
    /// Its ECN field.
    ecn: u8,
}

/// What is around a packet.
struct Tunnel {
    /// Bytes between the Ethernet header and the packet.
    headers: usize,
    /// What the packet is.
    family: Family,
    /// Who else may have its flow.
    other: Option<Address>,
}

/// Unwraps a frame where it should be, and hands all but those that another [`Fate`] is for to the network
/// stack.
#[inline(always)]
pub fn process<P: Packet, H: Host>(packet: &mut P, host: &H) -> Fate {
    let Some(outer) = outer(packet) else {
        return Fate::Pass;
    };
    if !host.terminates(&outer.destination) {
        return Fate::Pass;
    }
    let Some(tunnel) = tunnel(packet, host, &outer) else {
        return Fate::Pass;
    };
    if host.hands_on()
        && let Some(other) = tunnel.other
        && !host.terminates(&other)
        && !hand_on::stays(packet, host, tunnel.headers, tunnel.family)
    {
        let outer = hand_on::Outer {
            destination: outer.destination,
            udp: wire::ETHERNET + outer.length,
        };
        return hand_on::hand_on(packet, host, &outer, other);
    }
    match unwrap(packet, &tunnel, outer.ecn) {
        Some(Fate::Drop) => {
            host.count_drop();
            Fate::Drop
        }
        Some(fate) => {
            host.count(packet.length() as u64);
            fate
        }
        None => Fate::Pass,
    }
}

#[inline(always)]
fn outer<P: Packet>(packet: &P) -> Option<Outer> {
    match packet.read::<EthHdr>(0)?.ether_type {
        wire::ETHER_IPV4 => {
            let ip = packet.read::<Ipv4Hdr>(wire::ETHERNET)?;
            let fragment = u16::from_be_bytes(ip.frags) & 0x3fff != 0;
            // Our encapsulation writes no options; what has some is the kernel's.
            if ip.vihl != 0x45 || fragment {
                return None;
            }
            let destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
            Some(Outer {
                destination,
                inner: ip.proto,
                length: wire::IPV4,
                ecn: ip.tos & ecn::MASK,
            })
        }
        wire::ETHER_IPV6 => {
            let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
            let destination = Address::v6(ip.dst_addr);
            Some(Outer {
                destination,
                inner: ip.next_hdr,
                length: wire::IPV6,
                ecn: ecn_v6(&ip),
            })
        }
        _ => None,
    }
}

/// What is around a packet; `None` where that is no tunnel of ours.
#[inline(always)]
fn tunnel<P: Packet, H: Host>(packet: &P, host: &H, outer: &Outer) -> Option<Tunnel> {
    let mut headers = outer.length;
    let mut other = None;
    let mut said = outer.inner;
    if outer.inner == protocol::UDP {
        let udp = packet.read::<UdpHdr>(wire::ETHERNET + headers)?;
        let port = u16::from_ne_bytes(udp.dst);
        if port == 0 || port != host.gue_port() {
            return None;
        }
        headers += wire::UDP;
        // The versions of IP begin with the bits of variant 1, which has no header.
        let v4 = outer.length == wire::IPV4;
        if let Some(told) = second_hop::read(packet, wire::ETHERNET + headers, v4) {
            headers += told.length;
            (said, other) = (told.protocol, told.other);
        }
    }
    let inner = wire::ETHERNET + headers;
    // In a `gue` tunnel of variant 1 its version says what the packet is, and that there is no header before it.
    let family = match said {
        protocol::IPV4 | protocol::UDP if packet.read::<Ipv4Hdr>(inner)?.vihl >> 4 == 4 => {
            Family::V4
        }
        protocol::IPV6 | protocol::UDP if packet.read::<Ipv6Hdr>(inner)?.vcf[0] >> 4 == 6 => {
            Family::V6
        }
        _ => return None,
    };
    Some(Tunnel {
        headers,
        family,
        other,
    })
}

/// Takes a packet out of its tunnel; `None`, and nothing done, where it cannot be.
#[inline(always)]
fn unwrap<P: Packet>(packet: &mut P, tunnel: &Tunnel, ecn: u8) -> Option<Fate> {
    let inner = wire::ETHERNET + tunnel.headers;
    let (ether_type, fate) = match tunnel.family {
        Family::V4 => (wire::ETHER_IPV4, mark_v4(packet, inner, ecn)?),
        Family::V6 => (wire::ETHER_IPV6, mark_v6(packet, inner, ecn)?),
    };
    let ethernet = EthHdr {
        ether_type,
        ..packet.read::<EthHdr>(0)?
    };
    if !packet.shrink_front(tunnel.headers) {
        return None;
    }
    packet.write(0, &ethernet)?;
    Some(fate)
}

/// The ECN field that a packet leaves its tunnel with (RFC 6040, figure 4); `None`: it is dropped.
#[inline(always)]
const fn combined(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (ecn::NOT_CAPABLE, ecn::CONGESTION) => None,
        (ecn::CAPABLE_0 | ecn::CAPABLE_1, ecn::CONGESTION) => Some(ecn::CONGESTION),
        (ecn::CAPABLE_0, ecn::CAPABLE_1) => Some(ecn::CAPABLE_1),
        _ => Some(inner),
    }
}

/// Brings the outer ECN field into the IPv4 header at `offset`, with its checksum.
#[inline(always)]
fn mark_v4<P: Packet>(packet: &mut P, offset: usize, outer: u8) -> Option<Fate> {
    let mut ip = packet.read::<Ipv4Hdr>(offset)?;
    let before = ip.tos & ecn::MASK;
    let Some(after) = combined(before, outer) else {
        return Some(Fate::Drop);
    };
    if after != before {
        let change = Sum::new().remove16(u16::from_ne_bytes([ip.vihl, ip.tos]));
        ip.tos = (ip.tos & !ecn::MASK) | after;
        let change = change.add16(u16::from_ne_bytes([ip.vihl, ip.tos]));
        ip.check = change.update(u16::from_ne_bytes(ip.check)).to_ne_bytes();
        packet.write(offset, &ip)?;
    }
    Some(Fate::Pass)
}

/// The same for IPv6, which sums no header.
#[inline(always)]
fn mark_v6<P: Packet>(packet: &mut P, offset: usize, outer: u8) -> Option<Fate> {
    let mut ip = packet.read::<Ipv6Hdr>(offset)?;
    let before = ecn_v6(&ip);
    let Some(after) = combined(before, outer) else {
        return Some(Fate::Drop);
    };
    if after != before {
        let [_, second, ..] = &mut ip.vcf;
        *second = (*second & !(ecn::MASK << 4)) | (after << 4);
        packet.write(offset, &ip)?;
    }
    Some(Fate::Pass)
}

/// The ECN field of an IPv6 header: the traffic class begins in its first byte's second half.
#[inline(always)]
const fn ecn_v6(ip: &Ipv6Hdr) -> u8 {
    let [_, second, ..] = ip.vcf;
    (second >> 4) & ecn::MASK
}
