//! ICMP errors about packets of our own tunnels: a backend, or a router on the way to it, says that they do not arrive. Where they
//! are too long for it, their client is told (RFC 2003 §4.1, RFC 2473 §8). What they are about beside is the kernel's, as ever; a
//! handshake that is watched has failed.
//!
//! Anybody may forge one. So it counts only where it quotes a packet that was sent: one wrapped for the backend that its flow
//! leads to from the source, and port, that the secret of the flow hash gives it; and, where a handshake is to fail, the SYN of one
//! that is waited for, with its sequence number. Whoever knows all of that sees the packets, or is the client, which can have its
//! own handshakes fail as it likes.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{ends, says_unreachable, v4, v6};
use crate::{
    egress,
    flow::{self, Flow, Signal},
    forward,
    hash::FlowHash,
    mtu,
    packet::Packet,
    passive::{self, Step},
    refuse, second_hop, steer,
    tables::{Address, Backend, RouteQuery, Tables, feature, mode},
    verdict::{Answer, DropReason, Verdict},
    wire::{self, Byte, Check, IcmpHdr, Ports, Word, protocol},
};

/// The code of ICMP's unreachable destinations that says that it would have to be fragmented (RFC 792).
const FRAGMENTATION_NEEDED: u8 = 4;
/// A code of ICMPv6's parameter problem: nobody is there for the protocol (RFC 4443 §3.4).
const UNKNOWN_NEXT_HEADER: u8 = 1;

/// Offset in a TCP header of its sequence number.
const SEQUENCE: usize = 4;
/// Offset in an IPv4 header of the length of its packet.
const TOTAL_LENGTH: usize = 2;
/// Offset in an IPv6 header of the length of what it is followed by.
const PAYLOAD_LENGTH: usize = 4;

/// Of a GUE header's first byte, what is below its variant (draft-ietf-intarea-gue-09 §3.1): 0 has a header of its own, 1 is that
/// of the packet within.
const VARIANT_SHIFT: u32 = 6;

/// A packet of a tunnel, as far as it is quoted.
struct Tunnelled {
    source: Address,
    /// Of its UDP header, as [`crate::tables::Endpoint::port`]; 0 where there is none.
    port: u16,
    backend: Address,
    mode: u8,
    /// Of the client's packet within: where in the frame, and how long it was when it was sent.
    flow: Flow,
    /// Offset of that packet in the frame, in bytes.
    inner: usize,
}

impl Tunnelled {
    /// Whether it is one that was sent to `backend` for the flow of this hash.
    #[inline(always)]
    fn was_sent_to(&self, backend: &Backend, hash: FlowHash) -> bool {
        let port = match self.mode {
            mode::GUE | mode::SECOND_HOP => forward::outer_port(hash).to_be(),
            _ => 0,
        };
        backend.address == self.backend
            && forward::outer_source(backend, hash) == self.source
            && port == self.port
    }
}

/// Takes note of an error that `outer` carries; whether it is about a packet of a tunnel that has to do with a handshake.
#[inline(always)]
pub(super) fn heard<P: Packet, T: Tables>(packet: &P, tables: &T, outer: &Flow) -> bool {
    if !tables.knows(feature::PASSIVE) || !tables.knows(feature::TUNNELS) {
        return false;
    }
    match step(packet, tables, outer) {
        Some(step) => {
            tables.follow_handshake(step);
            true
        }
        None => false,
    }
}

#[inline(always)]
fn step<P: Packet, T: Tables>(packet: &P, tables: &T, outer: &Flow) -> Option<Step> {
    if !says_gone(packet, outer) {
        return None;
    }
    let quoted = read(packet, tables, outer)?;
    if quoted.flow.protocol != protocol::TCP {
        return None;
    }
    let Word(sequence) = packet.read::<Word>(quoted.flow.transport + SEQUENCE)?;
    let in_force = steer::service(tables, &quoted.flow.to())?;
    let service = &in_force.service;
    let descriptor = service.descriptor;
    if descriptor.mode != quoted.mode || descriptor.ring_size == 0 {
        return None;
    }
    let hash = steer::place(tables, service, &quoted.flow)?;
    let tag = passive::tag(hash, quoted.flow.ports());
    if !passive::is_watched(tag, descriptor.sampling()) {
        return None;
    }
    // By the ring alone: the program has little stack left for flow tables, and a SYN goes to the owner of its slot.
    let spot = steer::spot(tables, &in_force, quoted.flow.source, hash)?;
    let backend = steer::candidate(tables, descriptor, spot.slot.owner())?.backend;
    if !quoted.was_sent_to(backend, hash) {
        return None;
    }
    let interface = tables.ingress(packet);
    let comes_by = tables.comes_by(backend.counters);
    (interface != 0 && comes_by == interface).then_some(Step {
        tag,
        sequence: u32::from_be_bytes(sequence),
        counters: backend.counters,
        signal: Signal::Hearsay,
    })
}

/// Whether an error says that nobody takes what the tunnel brings.
#[inline(always)]
fn says_gone<P: Packet>(packet: &P, outer: &Flow) -> bool {
    if says_unreachable(packet, outer) {
        return true;
    }
    let Some(icmp) = packet.read::<IcmpHdr>(outer.transport) else {
        return false;
    };
    !outer.v4 && icmp.kind == v6::PARAMETER_PROBLEM && icmp.code == UNKNOWN_NEXT_HEADER
}

/// Whether an error that `outer` carries says that a tunnel's packet is too long for the way, by what is cheap to see.
#[inline(always)]
pub(super) fn may_be_too_long<P: Packet, T: Tables>(packet: &P, tables: &T, outer: &Flow) -> bool {
    if !tables.knows(feature::TUNNELS) || told(packet, outer).is_none() {
        return false;
    }
    match ends(packet, outer.transport + wire::ICMP, outer.v4) {
        Some((_, _, protocol::IPV4 | protocol::IPV6, _)) => true,
        Some((_, _, protocol::UDP, header)) => {
            let ports = packet.read::<Ports>(outer.transport + wire::ICMP + header);
            ports.is_some_and(|ports| is_gue(tables, ports))
        }
        _ => false,
    }
}

/// Makes such an error one that tells the client, in the VIP's name, what length would do; where it is none, it is the kernel's.
///
/// # Errors
/// It cannot be made so.
#[inline(always)]
pub(super) fn relay<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
) -> Result<Verdict, DropReason> {
    let Some((quoted, room)) = too_long(packet, tables, outer) else {
        return Ok(Verdict::Pass);
    };
    let Tunnelled { flow, inner, .. } = quoted;
    let mtu = mtu::told(room, flow.v4);
    // What is no longer than that could not be sent any shorter.
    if flow.length <= mtu || !refuse::is_from_a_host(packet, tables, &flow) {
        tables.count_answer(Answer::Withheld);
        return Ok(Verdict::Pass);
    }
    if !tables.may_answer(Answer::TooBig) {
        tables.count_answer(Answer::Limited);
        return Ok(Verdict::Pass);
    }
    let length = refuse::relay_too_big(packet, &flow, mtu, inner, outer.end() - inner)?;
    tables.count_answer(Answer::TooBig);
    let query = RouteQuery {
        source: flow.destination,
        destination: flow.source,
        length,
    };
    let Ok(route) = tables.route(&query) else {
        // By the router that has told, as an answer.
        return Ok(Verdict::Transmit);
    };
    forward::readdress(packet, route.source_mac, route.destination_mac)?;
    Ok(egress::by(packet, tables, route.interface))
}

/// The packet of a tunnel that an error says to be too long, if it was sent, and how long a client's may be.
#[inline(always)]
fn too_long<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    outer: &Flow,
) -> Option<(Tunnelled, u16)> {
    let way = told(packet, outer)?;
    let quoted = read(packet, tables, outer)?;
    let in_force = steer::service(tables, &quoted.flow.to())?;
    let service = &in_force.service;
    if service.descriptor.mode != quoted.mode {
        return None;
    }
    let hash = steer::place(tables, service, &quoted.flow)?;
    let backend = steer::backend(tables, &in_force, &quoted.flow, hash).ok()?;
    if !quoted.was_sent_to(backend, hash) {
        return None;
    }
    let room = mtu::room(way, quoted.mode, outer.v4);
    Some((quoted, room))
}

/// What an error says that the way takes, in bytes (RFC 1191 §4, RFC 4443 §3.2). None that says nothing of it, as those of routers from
/// before RFC 1191 do not.
#[inline(always)]
fn told<P: Packet>(packet: &P, outer: &Flow) -> Option<u32> {
    let icmp = packet.read::<IcmpHdr>(outer.transport)?;
    let [_, _, high, low] = icmp.rest;
    let way = match (outer.v4, icmp.kind, icmp.code) {
        (true, v4::UNREACHABLE, FRAGMENTATION_NEEDED) => u16::from_be_bytes([high, low]).into(),
        (false, v6::TOO_BIG, _) => u32::from_be_bytes(icmp.rest),
        _ => 0,
    };
    (way != 0).then_some(way)
}

#[inline(always)]
fn is_gue<T: Tables>(tables: &T, ports: Ports) -> bool {
    let gue = tables.control().map_or(0, |control| control.gue_port);
    gue != 0 && u16::from_ne_bytes(ports.destination) == gue
}

/// The packet that an error quotes, where it is one of a tunnel from here. Those that were sent have no options in their outer
/// header.
#[inline(always)]
fn read<P: Packet, T: Tables>(packet: &P, tables: &T, outer: &Flow) -> Option<Tunnelled> {
    let network = outer.transport + wire::ICMP;
    let (source, backend, number, header) = ends(packet, network, outer.v4)?;
    if source != outer.destination || header != plain(outer.v4) {
        return None;
    }
    let within = network + plain(outer.v4);
    let (inner, v4, port, mode) = match number {
        protocol::IPV4 => (within, true, 0, mode::IPIP),
        protocol::IPV6 => (within, false, 0, mode::IPIP),
        protocol::UDP => {
            let ports = packet.read::<Ports>(within)?;
            if !is_gue(tables, ports) {
                return None;
            }
            let inner = within + wire::UDP;
            let Byte(first) = packet.read::<Byte>(inner)?;
            let port = u16::from_ne_bytes(ports.source);
            if tables.knows(feature::SECOND_HOP) && first >> VARIANT_SHIFT == 0 {
                let (length, protocol) = second_hop::extent(packet, inner)?;
                let v4 = protocol == protocol::IPV4;
                (inner + length, v4, port, mode::SECOND_HOP)
            } else {
                (inner, first >> 4 == 4, port, mode::GUE)
            }
        }
        _ => return None,
    };
    let (client, vip, number, header) = ends(packet, inner, v4)?;
    if !flow::has_ports(number, false) || header != plain(v4) {
        return None;
    }
    let transport = inner + plain(v4);
    // As much as every error quotes of what an IP header is followed by (RFC 792), here of the inner one.
    if transport + 8 > outer.end() {
        return None;
    }
    let ports = packet.read::<Ports>(transport)?;
    let flow = Flow {
        source: client,
        destination: vip,
        source_port: u16::from_ne_bytes(ports.source),
        destination_port: u16::from_ne_bytes(ports.destination),
        protocol: number,
        length: length(packet, inner, v4)?,
        transport,
        v4,
        signal: Signal::Hearsay,
        ..Flow::EMPTY
    };
    Some(Tunnelled {
        source,
        port,
        backend,
        mode,
        flow,
        inner,
    })
}

/// The length that a packet says to have whose header is at `network`, in bytes.
#[inline(always)]
fn length<P: Packet>(packet: &P, network: usize, v4: bool) -> Option<u16> {
    let (at, besides) = if v4 {
        (TOTAL_LENGTH, 0)
    } else {
        (PAYLOAD_LENGTH, wire::IPV6 as u16)
    };
    let Check(length) = packet.read::<Check>(network + at)?;
    u16::from_be_bytes(length).checked_add(besides)
}

/// The length of an IP header without options or extensions.
#[inline(always)]
const fn plain(v4: bool) -> usize {
    if v4 {
        size_of::<Ipv4Hdr>()
    } else {
        size_of::<Ipv6Hdr>()
    }
}
