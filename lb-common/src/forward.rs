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

/// Wraps a packet in an IP header to its backend (RFC 2003, RFC 2473). DSCP and ECN are copied
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
) -> Result<(), DropReason> {
    let inner = if flow.v4 {
        protocol::IPV4
    } else {
        protocol::IPV6
    };
    let source = outer_source(backend, hash);
    if backend.address.is_v4() {
        let length = flow
            .length
            .checked_add(wire::IPV4 as u16)
            .ok_or(DropReason::TooLong)?;
        grow(packet, wire::IPV4)?;
        let outer = outer_v4(flow, length, inner, source.low(), backend.address.low());
        write(packet, wire::ETHERNET, &outer)?;
        ethernet(
            packet,
            backend.source_mac,
            backend.destination_mac,
            wire::ETHER_IPV4,
        )
    } else {
        grow(packet, wire::IPV6)?;
        let outer = outer_v6(flow, inner, source, backend.address, hash);
        write(packet, wire::ETHERNET, &outer)?;
        ethernet(
            packet,
            backend.source_mac,
            backend.destination_mac,
            wire::ETHER_IPV6,
        )
    }
}

/// The outer source varies with the flow, so that the backend's NIC spreads flows over queues.
#[inline(always)]
fn outer_source(backend: &Backend, hash: FlowHash) -> Address {
    let mask = backend.source_mask;
    let low = (backend.source.low() & !mask) | (hash.entropy() & mask);
    backend.source.with_low(low)
}

#[inline(always)]
fn outer_v4(flow: &Flow, length: u16, inner: u8, source: u32, destination: u32) -> Ipv4Hdr {
    let mut ip = Ipv4Hdr {
        vihl: 0x45,
        tos: flow.traffic_class,
        tot_len: length.to_be_bytes(),
        id: [0; 2],
        frags: [0x40, 0],
        ttl: OUTER_TTL,
        proto: inner,
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

#[inline(always)]
fn outer_v6(
    flow: &Flow,
    inner: u8,
    source: Address,
    destination: Address,
    hash: FlowHash,
) -> Ipv6Hdr {
    // The flow label carries entropy for routers on the way (RFC 6438).
    let label = hash.entropy() & 0x000f_ffff;
    let word = (6 << 28) | (u32::from(flow.traffic_class) << 20) | label;
    Ipv6Hdr {
        vcf: word.to_be_bytes(),
        payload_len: flow.length.to_be_bytes(),
        next_hdr: inner,
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
    let (old, old_port) = match end {
        End::Source => (flow.source, flow.source_port),
        End::Destination => (flow.destination, flow.destination_port),
    };
    if flow.v4 != address.is_v4() {
        return Err(DropReason::Inconsistent);
    }
    let addresses = if flow.v4 {
        let change = Sum::new().remove32(old.low()).add32(address.low());
        let mut ip: Ipv4Hdr = read(packet, wire::ETHERNET)?;
        match end {
            End::Source => ip.src_addr = address.low().to_ne_bytes(),
            End::Destination => ip.dst_addr = address.low().to_ne_bytes(),
        }
        ip.check = change.update(u16::from_ne_bytes(ip.check)).to_ne_bytes();
        write(packet, wire::ETHERNET, &ip)?;
        change
    } else {
        let mut ip: Ipv6Hdr = read(packet, wire::ETHERNET)?;
        match end {
            End::Source => ip.src_addr = address.octets(),
            End::Destination => ip.dst_addr = address.octets(),
        }
        write(packet, wire::ETHERNET, &ip)?;
        Sum::new().remove128(old.words()).add128(address.words())
    };
    rewrite_port(
        packet,
        flow,
        end,
        port,
        addresses.remove16(old_port).add16(port),
    )
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
            // A computed zero is sent as all ones (RFC 768).
            let check = match change.update(check) {
                0 => 0xffff,
                check => check,
            };
            udp.check = check.to_ne_bytes();
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
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        ip.ttl = one_less(ip.ttl)?;
        let change = Sum::new()
            .remove16(old)
            .add16(u16::from_ne_bytes([ip.ttl, ip.proto]));
        ip.check = change.update(u16::from_ne_bytes(ip.check)).to_ne_bytes();
        write(packet, wire::ETHERNET, &ip)
    } else {
        let mut ip: Ipv6Hdr = read(packet, wire::ETHERNET)?;
        ip.hop_limit = one_less(ip.hop_limit)?;
        write(packet, wire::ETHERNET, &ip)
    }
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

#[inline(always)]
fn read<T: Header, P: Packet>(packet: &P, offset: usize) -> Result<T, DropReason> {
    packet.read(offset).ok_or(DropReason::Inconsistent)
}

#[inline(always)]
fn write<T: Header, P: Packet>(
    packet: &mut P,
    offset: usize,
    header: &T,
) -> Result<(), DropReason> {
    packet.write(offset, header).ok_or(DropReason::Inconsistent)
}
