//! ICMP errors about packets of our own tunnels: a backend, or a router on the way to it, says that they do not arrive. What they
//! are about beside is the kernel's, as ever; a handshake that is watched has failed.
//!
//! Anybody may forge one. So it counts only where it quotes a packet that was sent: the SYN of a handshake that is waited for,
//! with its sequence number, wrapped for the backend that its flow leads to from the source, and port, that the secret of the flow
//! hash gives it. Whoever knows all of that sees the packets, or is the client, which can have its own handshakes fail as it likes.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{ends, says_unreachable, v6};
use crate::{
    flow::{Flow, Signal},
    forward,
    packet::Packet,
    passive::{self, Step},
    second_hop, steer,
    tables::{Address, Tables, feature, mode},
    wire::{self, Byte, IcmpHdr, Ports, Word, protocol},
};

/// A code of ICMPv6's parameter problem: nobody is there for the protocol (RFC 4443 §3.4).
const UNKNOWN_NEXT_HEADER: u8 = 1;

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
    /// The client's segment within.
    flow: Flow,
    sequence: u32,
}

/// Takes note of an error that `outer` carries; whether it is about a packet of a tunnel that has to do with a handshake.
#[inline(always)]
pub(super) fn heard<P: Packet, T: Tables>(packet: &P, tables: &T, outer: &Flow) -> bool {
    let tunnels = feature::IPIP | feature::GUE | feature::SECOND_HOP;
    if !tables.knows(feature::PASSIVE) || !tables.knows(tunnels) {
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
    let in_force = steer::service(tables, &quoted.flow.to())?;
    let service = &in_force.service;
    let descriptor = service.descriptor;
    if descriptor.mode != quoted.mode {
        return None;
    }
    if descriptor.ring_size == 0 {
        return None;
    }
    let hash = steer::place(tables, service, &quoted.flow)?;
    let tag = passive::tag(hash, quoted.flow.ports());
    if !passive::is_watched(tag, descriptor.sampling()) {
        return None;
    }
    // By the ring alone: the program has little stack left for flow tables, and a SYN goes to the owner of its slot.
    let slot = steer::slot(tables, descriptor, hash, 0)?;
    let backend = steer::candidate(tables, descriptor, slot.owner())?.backend;
    let port = match quoted.mode {
        mode::GUE | mode::SECOND_HOP => forward::outer_port(hash).to_be(),
        _ => 0,
    };
    if backend.address != quoted.backend
        || forward::outer_source(backend, hash) != quoted.source
        || port != quoted.port
    {
        return None;
    }
    let interface = tables.ingress(packet);
    let comes_by = tables.comes_by(backend.counters);
    (interface != 0 && comes_by == interface).then_some(Step {
        tag,
        sequence: quoted.sequence,
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

/// The packet that an error quotes, where it is one of a tunnel from here with a segment in it. Those that were sent have no options
/// in their outer header, nor do SYNs in their inner one.
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
            if u16::from_ne_bytes(ports.destination) != tables.control()?.gue_port {
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
    if number != protocol::TCP || header != plain(v4) {
        return None;
    }
    let transport = inner + plain(v4);
    // As much as every error quotes of what an IP header is followed by (RFC 792), here of the inner one.
    if transport + 8 > outer.end() {
        return None;
    }
    let ports = packet.read::<Ports>(transport)?;
    let Word(sequence) = packet.read::<Word>(transport + 4)?;
    let flow = Flow {
        source: client,
        destination: vip,
        source_port: u16::from_ne_bytes(ports.source),
        destination_port: u16::from_ne_bytes(ports.destination),
        protocol: protocol::TCP,
        signal: Signal::Hearsay,
        ..Flow::EMPTY
    };
    Some(Tunnelled {
        source,
        port,
        backend,
        mode,
        flow,
        sequence: u32::from_be_bytes(sequence),
    })
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
