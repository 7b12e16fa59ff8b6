//! What a packet becomes: encapsulated, or rewritten there and back. Writes the packet, reads no
//! tables. On an error the packet is dropped, so it may be left half-written.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    checksum::Sum,
    flow::Flow,
    hash::FlowHash,
    packet::{Header, Packet},
    tables::{Address, Backend},
    verdict::DropReason,
    wire::{self, protocol},
};

/// Time to live, or hop limit, of an outer header (RFC 1700: the default).
pub const OUTER_TTL: u8 = 64;

/// Which end of a packet is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source, of an answer.
    Source,
    /// The destination, of a request.
    Destination,
}

/// The UDP port that tunnels of mode `gue` end at, as in [`crate::tables::Endpoint::port`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuePort(pub u16);

/// Wraps a packet in an IP header to its backend (RFC 2003, RFC 2473), with `gue` also in a UDP header
/// (draft-ietf-intarea-gue-09, variant 1: the IP packet follows it directly). DSCP and ECN are copied
/// (RFC 6040 §4.1, normal mode); IPv4 is sent with DF, so its identification is free (RFC 6864).
///
/// # Errors
/// [`DropReason::TooLong`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn encapsulate<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    backend: &Backend,
    hash: FlowHash,
    gue: Option<GuePort>,
) -> Result<(), DropReason> {
    let (inner, between) = match (gue, flow.v4) {
        (Some(_), _) => (protocol::UDP, wire::UDP),
        (None, true) => (protocol::IPV4, 0),
        (None, false) => (protocol::IPV6, 0),
    };
    let payload = flow.length.checked_add(between as u16);
    let payload = payload.ok_or(DropReason::TooLong)?;
    // Before the frame grows, and the offsets of `flow` with it.
    let sum = match gue {
        Some(_) => inner_sum(packet, flow),
        None => None,
    };
    let (source, destination) = (outer_source(backend, hash), backend.address);
    let (ether_type, header) = if destination.is_v4() {
        let length = payload.checked_add(wire::IPV4 as u16);
        let length = length.ok_or(DropReason::TooLong)?;
        grow(packet, wire::IPV4 + between)?;
        let class = flow.traffic_class;
        let outer = header_v4(class, length, inner, source.low(), destination.low());
        write(packet, wire::ETHERNET, &outer)?;
        (wire::ETHER_IPV4, wire::IPV4)
    } else {
        grow(packet, wire::IPV6 + between)?;
        // The flow label carries entropy for routers on the way (RFC 6438).
        let first = u32::from(flow.traffic_class) << 20 | (hash.entropy() & 0x000f_ffff);
        let outer = header_v6(first, payload, inner, source, destination);
        write(packet, wire::ETHERNET, &outer)?;
        (wire::ETHER_IPV6, wire::IPV6)
    };
    if let Some(GuePort(port)) = gue {
        let udp = outer_udp(source, destination, port, payload, hash, sum);
        write(packet, wire::ETHERNET + header, &udp)?;
    }
    ethernet(
        packet,
        backend.source_mac,
        backend.destination_mac,
        ether_type,
    )
}

/// The UDP header of a tunnel. Its source port varies with the flow, so that routers and the backend's
/// NIC spread flows; without a `sum` of the inner packet it has no checksum, which tunnels may do
/// without (RFC 768, RFC 6935).
#[inline(always)]
fn outer_udp(
    source: Address,
    destination: Address,
    to: u16,
    length: u16,
    hash: FlowHash,
    sum: Option<Sum>,
) -> UdpHdr {
    // Of the dynamic range (RFC 6335 §6), as the draft has it in §5.11.
    let from = 0xc000 | (hash.entropy() as u16 & 0x3fff);
    let check = match sum {
        Some(sum) => {
            let sum = sum
                .add128(source.words())
                .add128(destination.words())
                .add16(u16::from(protocol::UDP).to_be())
                .add16(length.to_be())
                .add16(from.to_be())
                .add16(to)
                .add16(length.to_be());
            // The prefix that stands before IPv4 addresses, 0xffff twice, sums to nothing.
            sent(sum.checksum())
        }
        None => 0,
    };
    UdpHdr {
        src: from.to_be_bytes(),
        dst: to.to_ne_bytes(),
        len: length.to_be_bytes(),
        check: check.to_ne_bytes(),
    }
}

/// The sum of a packet from its IP header on, without reading its payload: what its own checksums say
/// that it is. `None` where they do not cover all of it.
#[inline(always)]
fn inner_sum<P: Packet>(packet: &P, flow: &Flow) -> Option<Sum> {
    if flow.protocol == protocol::FRAGMENT {
        return None;
    }
    let header = flow.transport - wire::ETHERNET;
    if flow.protocol == protocol::UDP && packet.read::<UdpHdr>(flow.transport)?.check == [0; 2] {
        return None;
    }
    // ICMP has no pseudo-header (RFC 792).
    if flow.protocol == protocol::ICMP {
        return Some(Sum::new());
    }
    // The transport header and its payload sum to the complement of their pseudo-header (RFC 9293
    // §3.1), an IPv4 header to nothing (RFC 791 §3.1).
    let length = (flow.length - header as u16).to_be();
    let proto = u16::from(flow.protocol).to_be();
    if flow.v4 {
        let ends = Sum::new()
            .remove32(flow.source.low())
            .remove32(flow.destination.low());
        return Some(ends.remove16(proto).remove16(length));
    }
    // Extension headers are in no checksum.
    if header != wire::IPV6 {
        return None;
    }
    // Addresses and length are in header and pseudo-header both.
    let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
    Some(
        Sum::new()
            .add32(u32::from_ne_bytes(ip.vcf))
            .add16(u16::from_ne_bytes([ip.next_hdr, ip.hop_limit]))
            .remove16(proto),
    )
}

/// A UDP checksum as it is sent: a computed zero as all ones (RFC 768).
#[inline(always)]
pub const fn sent(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

/// The outer source varies with the flow, so that the backend's NIC spreads flows over queues.
#[inline(always)]
fn outer_source(backend: &Backend, hash: FlowHash) -> Address {
    let mask = backend.source_mask;
    let low = (backend.source.low() & !mask) | (hash.entropy() & mask);
    backend.source.with_low(low)
}

/// An IPv4 header of a packet of ours, which may not be fragmented. Addresses are natively loaded.
#[inline(always)]
pub fn header_v4(
    traffic_class: u8,
    length: u16,
    protocol: u8,
    source: u32,
    destination: u32,
) -> Ipv4Hdr {
    let mut ip = Ipv4Hdr {
        vihl: 0x45,
        tos: traffic_class,
        tot_len: length.to_be_bytes(),
        id: [0; 2],
        frags: [0x40, 0],
        ttl: OUTER_TTL,
        proto: protocol,
        check: [0; 2],
        src_addr: source.to_ne_bytes(),
        dst_addr: destination.to_ne_bytes(),
    };
    let sum = Sum::new()
        .add16(u16::from_ne_bytes([ip.vihl, ip.tos]))
        .add16(length.to_be())
        .add16(u16::from_ne_bytes(ip.frags))
        .add16(u16::from_ne_bytes([ip.ttl, ip.proto]))
        .add32(source)
        .add32(destination);
    ip.check = sum.checksum().to_ne_bytes();
    ip
}

/// An IPv6 header of a packet of ours. `first` is its first word but for the version: traffic class and
/// flow label.
#[inline(always)]
pub fn header_v6(
    first: u32,
    payload: u16,
    protocol: u8,
    source: Address,
    destination: Address,
) -> Ipv6Hdr {
    Ipv6Hdr {
        vcf: ((6 << 28) | first).to_be_bytes(),
        payload_len: payload.to_be_bytes(),
        next_hdr: protocol,
        hop_limit: OUTER_TTL,
        src_addr: source.octets(),
        dst_addr: destination.octets(),
    }
}

/// Rewrites one end of a packet to `address` and `port`, of the packet's own family, with its
/// checksums (RFC 1624; a UDP checksum of zero stays none, RFC 768).
///
/// # Errors
/// [`DropReason::Inconsistent`] where the address is of the other family, or the headers that
/// `flow` found are not there.
#[inline(always)]
pub fn rewrite<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    end: End,
    address: Address,
    port: u16,
) -> Result<(), DropReason> {
    let old_port = match end {
        End::Source => flow.source_port,
        End::Destination => flow.destination_port,
    };
    if flow.v4 != address.is_v4() {
        return Err(DropReason::Inconsistent);
    }
    let addresses = set_address(packet, wire::ETHERNET, flow.v4, end, address)?;
    rewrite_port(
        packet,
        flow,
        end,
        port,
        addresses.remove16(old_port).add16(port),
    )
}

/// Rewrites both ends of a packet to addresses of its own family and ports, with its checksums, as [`rewrite`]
/// does one.
///
/// # Errors
/// As [`rewrite`].
#[inline(always)]
pub fn rewrite_both<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    (source, source_port): (Address, u16),
    (destination, destination_port): (Address, u16),
) -> Result<(), DropReason> {
    rewrite(packet, flow, End::Source, source, source_port)?;
    rewrite(
        packet,
        flow,
        End::Destination,
        destination,
        destination_port,
    )
}

/// Rewrites one end of the IP header at `offset`, of `address`'s family, with its checksum; what that
/// changes of a sum that it is part of.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no such header.
#[inline(always)]
pub fn set_address<P: Packet>(
    packet: &mut P,
    offset: usize,
    v4: bool,
    end: End,
    address: Address,
) -> Result<Sum, DropReason> {
    if v4 {
        let mut ip: Ipv4Hdr = read(packet, offset)?;
        let field = match end {
            End::Source => &mut ip.src_addr,
            End::Destination => &mut ip.dst_addr,
        };
        let old = u32::from_ne_bytes(*field);
        *field = address.low().to_ne_bytes();
        let change = Sum::new().remove32(old).add32(address.low());
        ip.check = change.update(u16::from_ne_bytes(ip.check)).to_ne_bytes();
        write(packet, offset, &ip)?;
        Ok(change)
    } else {
        let mut ip: Ipv6Hdr = read(packet, offset)?;
        let field = match end {
            End::Source => &mut ip.src_addr,
            End::Destination => &mut ip.dst_addr,
        };
        let old = Address::v6(*field);
        *field = address.octets();
        write(packet, offset, &ip)?;
        Ok(Sum::new().remove128(old.words()).add128(address.words()))
    }
}

/// Sends a packet back to where it came from: both ends change places, and it begins its way anew.
///
/// # Errors
/// [`DropReason::Inconsistent`] where the headers are not there.
#[inline(always)]
pub fn swap_ends<P: Packet>(packet: &mut P, flow: &Flow) -> Result<(), DropReason> {
    if flow.v4 {
        let mut ip: Ipv4Hdr = read(packet, wire::ETHERNET)?;
        (ip.src_addr, ip.dst_addr) = (ip.dst_addr, ip.src_addr);
        set_ttl(&mut ip, OUTER_TTL);
        write(packet, wire::ETHERNET, &ip)?;
    } else {
        let mut ip: Ipv6Hdr = read(packet, wire::ETHERNET)?;
        (ip.src_addr, ip.dst_addr) = (ip.dst_addr, ip.src_addr);
        ip.hop_limit = OUTER_TTL;
        write(packet, wire::ETHERNET, &ip)?;
    }
    turn_back(packet)
}

/// Has the frame's two MAC addresses change places.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no Ethernet header.
#[inline(always)]
pub fn turn_back<P: Packet>(packet: &mut P) -> Result<(), DropReason> {
    let EthHdr {
        dst_addr, src_addr, ..
    } = read(packet, 0)?;
    readdress(packet, dst_addr, src_addr)
}

#[inline(always)]
fn rewrite_port<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    end: End,
    port: u16,
    change: Sum,
) -> Result<(), DropReason> {
    if flow.protocol == protocol::TCP {
        let mut tcp: TcpHdr = read(packet, flow.transport)?;
        match end {
            End::Source => tcp.source = port.to_ne_bytes(),
            End::Destination => tcp.dest = port.to_ne_bytes(),
        }
        tcp.check = change.update(u16::from_ne_bytes(tcp.check)).to_ne_bytes();
        write(packet, flow.transport, &tcp)
    } else {
        let mut udp: UdpHdr = read(packet, flow.transport)?;
        match end {
            End::Source => udp.src = port.to_ne_bytes(),
            End::Destination => udp.dst = port.to_ne_bytes(),
        }
        let check = u16::from_ne_bytes(udp.check);
        if check != 0 {
            udp.check = sent(change.update(check)).to_ne_bytes();
        }
        write(packet, flow.transport, &udp)
    }
}

/// Takes one off the TTL or hop limit, as a router does.
///
/// # Errors
/// [`DropReason::TtlExpired`] where none would be left; the packet is unchanged then.
#[inline(always)]
pub fn decrement_ttl<P: Packet>(packet: &mut P, flow: &Flow) -> Result<(), DropReason> {
    if flow.v4 {
        let mut ip: Ipv4Hdr = read(packet, wire::ETHERNET)?;
        let ttl = one_less(ip.ttl)?;
        set_ttl(&mut ip, ttl);
        write(packet, wire::ETHERNET, &ip)
    } else {
        let mut ip: Ipv6Hdr = read(packet, wire::ETHERNET)?;
        ip.hop_limit = one_less(ip.hop_limit)?;
        write(packet, wire::ETHERNET, &ip)
    }
}

/// Whether a router would leave a packet any of its TTL or hop limit.
#[inline(always)]
pub fn outlives_a_hop<P: Packet>(packet: &P, flow: &Flow) -> bool {
    let ttl = if flow.v4 {
        packet.read::<Ipv4Hdr>(wire::ETHERNET).map(|ip| ip.ttl)
    } else {
        packet
            .read::<Ipv6Hdr>(wire::ETHERNET)
            .map(|ip| ip.hop_limit)
    };
    ttl.is_some_and(|ttl| one_less(ttl).is_ok())
}

/// Whether a router may fragment a packet (RFC 791 §3.1; none of IPv6, RFC 8200 §5).
#[inline(always)]
pub fn may_be_fragmented<P: Packet>(packet: &P, flow: &Flow) -> bool {
    const DO_NOT: u16 = 0x4000;
    flow.v4
        && packet
            .read::<Ipv4Hdr>(wire::ETHERNET)
            .is_some_and(|ip| u16::from_be_bytes(ip.frags) & DO_NOT == 0)
}

/// Sets a TTL, with the checksum.
#[inline(always)]
fn set_ttl(ip: &mut Ipv4Hdr, ttl: u8) {
    let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
    ip.ttl = ttl;
    let change = Sum::new()
        .remove16(old)
        .add16(u16::from_ne_bytes([ip.ttl, ip.proto]));
    ip.check = change.update(u16::from_ne_bytes(ip.check)).to_ne_bytes();
}

#[inline(always)]
fn one_less(ttl: u8) -> Result<u8, DropReason> {
    if ttl <= 1 {
        Err(DropReason::TtlExpired)
    } else {
        Ok(ttl - 1)
    }
}

/// Addresses a frame whose ether type stays.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no Ethernet header.
#[inline(always)]
pub fn readdress<P: Packet>(
    packet: &mut P,
    source: [u8; 6],
    destination: [u8; 6],
) -> Result<(), DropReason> {
    let EthHdr { ether_type, .. } = read(packet, 0)?;
    ethernet(packet, source, destination, ether_type)
}

#[inline(always)]
fn ethernet<P: Packet>(
    packet: &mut P,
    source: [u8; 6],
    destination: [u8; 6],
    ether_type: u16,
) -> Result<(), DropReason> {
    let ethernet = EthHdr {
        dst_addr: destination,
        src_addr: source,
        ether_type,
    };
    write(packet, 0, &ethernet)
}

#[inline(always)]
fn grow<P: Packet>(packet: &mut P, bytes: usize) -> Result<(), DropReason> {
    if packet.grow_front(bytes) {
        Ok(())
    } else {
        Err(DropReason::NoHeadroom)
    }
}

/// A header that is known to be there.
///
/// # Errors
/// [`DropReason::Inconsistent`] where it is not.
#[inline(always)]
pub fn read<T: Header, P: Packet>(packet: &P, offset: usize) -> Result<T, DropReason> {
    packet.read(offset).ok_or(DropReason::Inconsistent)
}

/// Writes a header where there is known to be one.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is none.
#[inline(always)]
pub fn write<T: Header, P: Packet>(
    packet: &mut P,
    offset: usize,
    header: &T,
) -> Result<(), DropReason> {
    packet.write(offset, header).ok_or(DropReason::Inconsistent)
}
