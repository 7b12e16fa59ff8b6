//! What a packet becomes: encapsulated, or rewritten there and back. Writes the packet, reads no
//! tables. On an error the packet is dropped, so it may be left half-written.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    checksum::Sum,
    flow::Flow,
    hash::FlowHash,
    packet::{Header, Packet},
    second_hop,
    tables::{Address, Backend},
    verdict::DropReason,
    wire::{self, Byte, Check, EthernetAddresses, Ipv4Rest, Ipv6Address, Ports, Word, protocol},
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

/// What a tunnel of mode `gue` says beside the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gue {
    /// The UDP port that it ends at, as in [`crate::tables::Endpoint::port`].
    pub port: u16,
    /// Who else may have the flow, of the backend's family, or [`Address::NOBODY`], where the backend is told; it is told
    /// nothing, in a header of variant 1, where absent.
    pub other: Option<Address>,
}

/// Wraps a packet in an IP header to its backend (RFC 2003, RFC 2473), with `gue` also in a UDP header
/// (draft-ietf-intarea-gue-09, variant 1: the IP packet follows it directly; variant 0, with [`second_hop`] as private
/// data, where the backend is told of somebody else). DSCP and ECN are copied
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
    gue: Option<Gue>,
) -> Result<(), DropReason> {
    let other = gue.and_then(|gue| gue.other);
    let told = second_hop::length(other, backend.address.is_v4());
    let (inner, between) = match (gue, flow.v4) {
        (Some(_), _) => (protocol::UDP, wire::UDP + told),
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
    if let Some(Gue { port, .. }) = gue {
        let at = wire::ETHERNET + header;
        let mut sum = sum;
        if let Some(other) = other {
            let v4 = destination.is_v4();
            let told = second_hop::write(packet, at + wire::UDP, other, v4, flow.v4)?;
            sum = sum.map(|sum| sum.plus(told));
        }
        let udp = outer_udp(source, destination, port, payload, hash, sum);
        write(packet, at, &udp)?;
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
    let from = outer_port(hash);
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

/// The source port of a tunnel's UDP header: of the dynamic range (RFC 6335 §6), as the draft has it in §5.11.
#[inline(always)]
pub(crate) const fn outer_port(hash: FlowHash) -> u16 {
    0xc000 | (hash.entropy() as u16 & 0x3fff)
}

/// The sum of a packet from its IP header on, without reading its payload: what its own checksums say
/// that it is. `None` where they do not cover all of it.
#[inline(always)]
fn inner_sum<P: Packet>(packet: &P, flow: &Flow) -> Option<Sum> {
    // That of SCTP is no such sum.
    if matches!(flow.protocol, protocol::FRAGMENT | protocol::SCTP) {
        return None;
    }
    let header = flow.transport - wire::ETHERNET;
    if flow.protocol == protocol::UDP {
        let udp = packet.read::<UdpHdr>(flow.transport)?;
        // What lies behind a datagram that is shorter than its packet is in no checksum.
        let is_whole = usize::from(u16::from_be_bytes(udp.len)) + header == flow.length.into();
        if udp.check == [0; 2] || !is_whole {
            return None;
        }
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
pub(crate) fn outer_source(backend: &Backend, hash: FlowHash) -> Address {
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

/// What a packet's ends become: address and port, as in [`crate::tables::Endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The source, where it changes.
    pub source: Option<(Address, u16)>,
    /// The destination, likewise.
    pub destination: Option<(Address, u16)>,
}

impl Ends {
    /// One end.
    #[inline(always)]
    pub const fn one(end: End, address: Address, port: u16) -> Self {
        match end {
            End::Source => Self {
                source: Some((address, port)),
                destination: None,
            },
            End::Destination => Self {
                source: None,
                destination: Some((address, port)),
            },
        }
    }

    /// Both.
    #[inline(always)]
    pub const fn both(source: (Address, u16), destination: (Address, u16)) -> Self {
        Self {
            source: Some(source),
            destination: Some(destination),
        }
    }
}

/// Rewrites ends of a packet, to addresses of its own family, with its checksums (RFC 1624; a UDP checksum of
/// zero stays none, RFC 768), and takes `hops`, 0 or 1, off its TTL or hop limit.
///
/// # Errors
/// [`DropReason::TtlExpired`] where none would be left; [`DropReason::Inconsistent`] where an address is of the other
/// family, or the headers that `flow` found are not there.
#[inline(always)]
pub fn rewrite<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    ends: Ends,
    hops: u8,
) -> Result<(), DropReason> {
    let source = ends.source.map(|(address, _)| address);
    let destination = ends.destination.map(|(address, _)| address);
    let addresses = set_addresses(packet, wire::ETHERNET, flow.v4, source, destination, hops)?;
    let mut ports: Ports = read(packet, flow.transport)?;
    let mut change = addresses;
    if let Some((_, port)) = ends.source {
        change = change
            .remove16(u16::from_ne_bytes(ports.source))
            .add16(port);
        ports.source = port.to_ne_bytes();
    }
    if let Some((_, port)) = ends.destination {
        change = change
            .remove16(u16::from_ne_bytes(ports.destination))
            .add16(port);
        ports.destination = port.to_ne_bytes();
    }
    write(packet, flow.transport, &ports)?;
    let is_tcp = flow.protocol == protocol::TCP;
    let offset = if is_tcp {
        wire::TCP_CHECK
    } else {
        wire::UDP_CHECK
    };
    let Check(check) = read(packet, flow.transport + offset)?;
    let before = u16::from_ne_bytes(check);
    let after = change.update(before);
    let after = match before {
        _ if is_tcp => after,
        0 => 0,
        _ => sent(after),
    };
    write(packet, flow.transport + offset, &Check(after.to_ne_bytes()))
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
    match end {
        End::Source => set_addresses(packet, offset, v4, Some(address), None, 0),
        End::Destination => set_addresses(packet, offset, v4, None, Some(address), 0),
    }
}

/// The same of either end or both, with `hops`, 0 or 1, off the TTL or hop limit.
///
/// # Errors
/// As [`rewrite`].
#[inline(always)]
pub fn set_addresses<P: Packet>(
    packet: &mut P,
    offset: usize,
    v4: bool,
    source: Option<Address>,
    destination: Option<Address>,
    hops: u8,
) -> Result<Sum, DropReason> {
    let is_of_family = |end: Option<Address>| end.is_none_or(|address| address.is_v4() == v4);
    if !is_of_family(source) || !is_of_family(destination) {
        return Err(DropReason::Inconsistent);
    }
    if v4 {
        return set_v4(packet, offset + wire::IPV4_TTL, source, destination, hops);
    }
    if hops != 0 {
        let at = offset + wire::HOP_LIMIT;
        let Byte(limit) = read(packet, at)?;
        write(packet, at, &Byte(one_less(limit)?))?;
    }
    let mut change = Sum::new();
    if let Some(address) = source {
        change = set_v6(packet, offset + wire::IPV6_SOURCE, address)?;
    }
    if let Some(address) = destination {
        change = change.plus(set_v6(packet, offset + wire::IPV6_DESTINATION, address)?);
    }
    Ok(change)
}

#[inline(always)]
fn set_v4<P: Packet>(
    packet: &mut P,
    offset: usize,
    source: Option<Address>,
    destination: Option<Address>,
    hops: u8,
) -> Result<Sum, DropReason> {
    let mut ip: Ipv4Rest = read(packet, offset)?;
    let mut change = Sum::new();
    if let Some(address) = source {
        change = change
            .remove32(u32::from_ne_bytes(ip.source))
            .add32(address.low());
        ip.source = address.low().to_ne_bytes();
    }
    if let Some(address) = destination {
        change = change
            .remove32(u32::from_ne_bytes(ip.destination))
            .add32(address.low());
        ip.destination = address.low().to_ne_bytes();
    }
    ip.life = aged(ip.life, hops, change)?;
    write(packet, offset, &ip)?;
    Ok(change)
}

#[inline(always)]
fn set_v6<P: Packet>(packet: &mut P, offset: usize, address: Address) -> Result<Sum, DropReason> {
    let Ipv6Address([first, last]) = read(packet, offset)?;
    let old = Address::from_halves(u64::from_ne_bytes(first), u64::from_ne_bytes(last));
    let (first, last) = address.halves();
    let new = Ipv6Address([first.to_ne_bytes(), last.to_ne_bytes()]);
    write(packet, offset, &new)?;
    Ok(Sum::new().remove128(old.words()).add128(address.words()))
}

/// [`Ipv4Rest::life`] with `hops` off the TTL, and the checksum of a header of which that and `change` are different.
#[inline(always)]
fn aged(life: [u8; 4], hops: u8, change: Sum) -> Result<[u8; 4], DropReason> {
    let [ttl, proto, check @ ..] = life;
    let (mut left, mut change) = (ttl, change);
    if hops != 0 {
        left = one_less(ttl)?;
        change = change
            .remove16(u16::from_ne_bytes([ttl, proto]))
            .add16(u16::from_ne_bytes([left, proto]));
    }
    let [first, last] = change.update(u16::from_ne_bytes(check)).to_ne_bytes();
    Ok([left, proto, first, last])
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

/// Takes one off the TTL or hop limit, as a router does.
///
/// # Errors
/// [`DropReason::TtlExpired`] where none would be left; the packet is unchanged then.
#[inline(always)]
pub fn decrement_ttl<P: Packet>(packet: &mut P, flow: &Flow) -> Result<(), DropReason> {
    if flow.v4 {
        let at = wire::ETHERNET + wire::IPV4_TTL;
        let Word(life) = read(packet, at)?;
        write(packet, at, &Word(aged(life, 1, Sum::new())?))
    } else {
        let at = wire::ETHERNET + wire::HOP_LIMIT;
        let Byte(limit) = read(packet, at)?;
        write(packet, at, &Byte(one_less(limit)?))
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
    write(
        packet,
        0,
        &EthernetAddresses {
            destination,
            source,
        },
    )
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
