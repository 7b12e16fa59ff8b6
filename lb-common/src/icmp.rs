//! ICMP and ICMPv6: errors about a connection go to the backend that has it, and echo requests to a VIP
//! are answered here (RFC 792, RFC 4443). Everything else passes.
//!
//! An error quotes the packet that it is about, and only that says whose it is. It is steered as a packet
//! of that flow, but is none: anybody may forge one, so it leaves no trace where flows are recorded.

mod tunnelled;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    admit,
    checksum::Sum,
    egress::{self, Onward},
    flow::{self, Family, Flow, MAX_EXTENSION_HEADERS, Signal},
    forward, full_nat, martian, neighbour,
    packet::Packet,
    passive::Said,
    pipeline::Rest,
    refuse,
    segment::{self, Number},
    session::{self, Answered, Known},
    steer::{self, Service},
    tables::{
        Address, Backend, Endpoint, PortKey, Tables, WayBack, feature, mode, owned, refusal,
        service_flag,
    },
    verdict::{Answer, DropReason, Verdict},
    vlan,
    wire::{self, Check, ExtensionHdr, IcmpHdr, Ports, Word, protocol},
};

/// Types of ICMP (<https://www.iana.org/assignments/icmp-parameters>).
mod v4 {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Types of ICMPv6 (<https://www.iana.org/assignments/icmpv6-parameters>).
mod v6 {
    pub const UNREACHABLE: u8 = 1;
    pub const TOO_BIG: u8 = 2;
    /// The last of the four kinds of errors, which begin at 1.
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
}

/// What a message is to the balancer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Echo,
    Error,
    /// A neighbour solicitation.
    Solicitation,
    Other,
}

/// A message. Its ends are those of the packet that carries it.
struct Message {
    /// Where it comes from, goes to and has its header. Ports are none.
    outer: Flow,
    kind: Kind,
}

/// The packet that an error is about, as far as it is quoted.
struct Quoted {
    /// The sender's end.
    from: Endpoint,
    /// The end that it was meant for.
    to: Endpoint,
    /// Offset of its IP header in the frame.
    network: usize,
    /// Offset of its ports in the frame.
    transport: usize,
}

/// Decides over an ICMP packet and makes it what it becomes.
///
/// # Errors
/// It is left to [`full_nat`], to [`tunnel`], or to [`neighbour`].
#[inline(always)]
pub fn process<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Result<Verdict, DropReason>, Rest> {
    let Some(message) = read(packet) else {
        return Ok(Ok(Verdict::Pass));
    };
    // Some of these come from nobody yet.
    if tables.knows(feature::ANNOUNCE) && message.kind == Kind::Solicitation {
        return Err(Rest::Neighbour);
    }
    // Asked once, since the kernel's program has little room for questions.
    let owned = steer::owned(tables, message.outer.destination);
    if let Some(outcome) = martian::outcome(&message.outer, owned) {
        return Ok(outcome);
    }
    if message.kind == Kind::Error {
        return forward(packet, tables, &message.outer, owned);
    }
    // What the link brings to everybody is for nobody to answer.
    if message.kind == Kind::Echo && owned & owned::VIP != 0 && refuse::is_for_one_host(packet) {
        return Ok(answer(packet, tables, &message.outer));
    }
    Ok(Ok(Verdict::Pass))
}

/// The same for errors about packets of mode `full-nat`: whose they are is known by their session alone.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn full_nat<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    let Some(Message { outer, .. }) = read(packet) else {
        return Ok(Verdict::Pass);
    };
    // Which SCTP has none of.
    let Some(quoted) = quoted(packet, &outer, false) else {
        return Ok(Verdict::Pass);
    };
    match steer::service(tables, &quoted.from) {
        Some(in_force) => to_translated(packet, tables, &outer, &quoted, &in_force),
        None => from_translated(packet, tables, &outer, &quoted),
    }
}

/// The same for errors that say a packet of a tunnel to be too long.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn tunnel<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    match read(packet) {
        Some(Message { outer, .. }) => tunnelled::relay(packet, tables, &outer),
        None => Ok(Verdict::Pass),
    }
}

/// The two ends of the packet that an error is about, its sender's first, where it quotes them.
#[inline(always)]
pub fn about<P: Packet>(packet: &P, family: Family) -> Option<(Endpoint, Endpoint)> {
    let message = read_of(packet, family)?;
    if message.kind != Kind::Error {
        return None;
    }
    let quoted = quoted(packet, &message.outer, false)?;
    Some((quoted.from, quoted.to))
}

#[inline(always)]
fn read<P: Packet>(packet: &P) -> Option<Message> {
    read_of(packet, flow::family(packet)?)
}

#[inline(always)]
fn read_of<P: Packet>(packet: &P, family: Family) -> Option<Message> {
    let mut outer = Flow::EMPTY;
    let header = match family {
        Family::V4 => {
            let ip = packet.read::<Ipv4Hdr>(wire::ETHERNET)?;
            let header = flow::header_v4(&ip)?;
            let whole = u16::from_be_bytes(ip.frags) & 0x3fff == 0;
            if ip.proto != protocol::ICMP || !whole {
                return None;
            }
            outer.source = Address::v4(u32::from_ne_bytes(ip.src_addr));
            outer.destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
            outer.traffic_class = ip.tos;
            outer.length = u16::from_be_bytes(ip.tot_len);
            outer.v4 = true;
            header
        }
        Family::V6 => {
            let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
            let [first, second, ..] = ip.vcf;
            if ip.next_hdr != protocol::ICMPV6 || first >> 4 != 6 {
                return None;
            }
            outer.source = Address::v6(ip.src_addr);
            outer.destination = Address::v6(ip.dst_addr);
            outer.traffic_class = (first << 4) | (second >> 4);
            outer.length = u16::from_be_bytes(ip.payload_len).checked_add(wire::IPV6 as u16)?;
            wire::IPV6
        }
    };
    outer.protocol = if outer.v4 {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    outer.transport = wire::ETHERNET + header;
    let end = outer.end();
    if outer.transport + wire::ICMP > end || !packet.reaches(end) {
        return None;
    }
    let icmp = packet.read::<IcmpHdr>(outer.transport)?;
    let kind = if outer.v4 {
        kind_v4(icmp.kind)
    } else {
        kind_v6(icmp.kind)
    };
    Some(Message { outer, kind })
}

#[inline(always)]
const fn kind_v4(kind: u8) -> Kind {
    match kind {
        v4::ECHO => Kind::Echo,
        v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM => Kind::Error,
        _ => Kind::Other,
    }
}

#[inline(always)]
const fn kind_v6(kind: u8) -> Kind {
    match kind {
        v6::ECHO => Kind::Echo,
        v6::UNREACHABLE..=v6::PARAMETER_PROBLEM => Kind::Error,
        neighbour::SOLICITATION => Kind::Solicitation,
        _ => Kind::Other,
    }
}

/// Answers an echo request to a VIP in its place.
#[inline(always)]
fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
) -> Result<Verdict, DropReason> {
    if !tables.may_answer(Answer::Echo) {
        return Err(DropReason::EchoLimit);
    }
    forward::swap_ends(packet, outer)?;
    let reply = if outer.v4 {
        v4::ECHO_REPLY
    } else {
        v6::ECHO_REPLY
    };
    let mut icmp: IcmpHdr = forward::read(packet, outer.transport)?;
    let change = Sum::new()
        .remove16(u16::from_ne_bytes([icmp.kind, icmp.code]))
        .add16(u16::from_ne_bytes([reply, icmp.code]));
    icmp.kind = reply;
    icmp.check = change.update(u16::from_ne_bytes(icmp.check)).to_ne_bytes();
    forward::write(packet, outer.transport, &icmp)?;
    tables.count_answer(Answer::Echo);
    Ok(Verdict::Transmit)
}

/// Sends an error on to the backend that has the connection, or to the client of one.
#[inline(always)]
fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
    owned: u32,
) -> Result<Result<Verdict, DropReason>, Rest> {
    if tunnelled::may_be_too_long(packet, tables, outer) {
        return Err(Rest::TunnelError);
    }
    if tunnelled::heard(packet, tables, outer) {
        return Ok(Ok(Verdict::Pass));
    }
    let Some(quoted) = quoted(packet, outer, tables.knows(feature::SCTP)) else {
        return Ok(Ok(Verdict::Pass));
    };
    // An error goes to whoever sent what it is about.
    if quoted.from.address != outer.destination {
        return Ok(Ok(Verdict::Pass));
    }
    Ok(match steer::service(tables, &quoted.from) {
        Some(in_force) if in_force.service.descriptor.mode == mode::FULL_NAT => {
            return Err(Rest::FullNatError);
        }
        Some(in_force) => to_backend(packet, tables, outer, &quoted, &in_force),
        None if owned & owned::POOL != 0 => return Err(Rest::FullNatError),
        None => to_client(packet, tables, outer, &quoted, owned),
    })
}

#[inline(always)]
fn quoted<P: Packet>(packet: &P, outer: &Flow, sctp: bool) -> Option<Quoted> {
    let network = outer.transport + wire::ICMP;
    let (source, destination, number, header) = ends(packet, network, outer.v4)?;
    let (number, transport) = if outer.v4 {
        (number, network + header)
    } else {
        behind_extensions(packet, number, network + header)?
    };
    if !flow::has_ports(number, sctp) {
        return None;
    }
    // As much as every error quotes (RFC 792); the ports are in it.
    if transport + 8 > outer.end() {
        return None;
    }
    let ports = packet.read::<Ports>(transport)?;
    let at = |address, port| Endpoint {
        address,
        port: u16::from_ne_bytes(port),
        protocol: number,
        zero: 0,
        zeros: 0,
    };
    Some(Quoted {
        from: at(source, ports.source),
        to: at(destination, ports.destination),
        network,
        transport,
    })
}

/// Source and destination of the IP packet whose header is at `network`, the protocol of what that holds, and how long it is. None of
/// a later fragment, which has no ports.
#[inline(always)]
fn ends<P: Packet>(packet: &P, network: usize, v4: bool) -> Option<(Address, Address, u8, usize)> {
    if v4 {
        let ip = packet.read::<Ipv4Hdr>(network)?;
        let header = flow::header_v4(&ip)?;
        if u16::from_be_bytes(ip.frags) & 0x1fff != 0 {
            return None;
        }
        let source = Address::v4(u32::from_ne_bytes(ip.src_addr));
        let destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
        Some((source, destination, ip.proto, header))
    } else {
        let ip = packet.read::<Ipv6Hdr>(network)?;
        if ip.vcf[0] >> 4 != 6 {
            return None;
        }
        let (source, destination) = (Address::v6(ip.src_addr), Address::v6(ip.dst_addr));
        Some((source, destination, ip.next_hdr, wire::IPV6))
    }
}

/// Protocol and offset of what stands behind the IPv6 extension headers of a quoted packet, which may be the first fragment of
/// a datagram, and so has the ports. `None` of a later one, or where it cannot be found.
#[inline(always)]
fn behind_extensions<P: Packet>(packet: &P, first: u8, behind: usize) -> Option<(u8, usize)> {
    /// Quotations are shorter, and numbers are kept so far that [`Packet::forget`] has seen.
    const FARTHEST: usize = 0xfff;
    let (mut number, mut at) = (first, behind);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !flow::is_extension(number) {
            break;
        }
        let header = packet.read::<ExtensionHdr>(at)?;
        at += match flow::extension_length(number, &header) {
            Ok(length) => length,
            Err(DropReason::Fragment) if u16::from_be_bytes(header.data) & 0xfff8 == 0 => {
                wire::FRAGMENT
            }
            Err(_) => return None,
        };
        if at > FARTHEST {
            return None;
        }
        at = packet.forget(at);
        number = header.next_header;
    }
    Some((number, at))
}

/// The error is about a packet of a backend's, in a VIP's name, to a client.
#[inline(always)]
fn to_backend<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
    quoted: &Quoted,
    in_force: &steer::InForce<'_>,
) -> Result<Verdict, DropReason> {
    let service = &in_force.service;
    // The flow that the client's packets are of.
    let flow = Flow {
        source: quoted.to.address,
        destination: quoted.from.address,
        source_port: quoted.to.port,
        destination_port: quoted.from.port,
        protocol: quoted.from.protocol,
        signal: Signal::Hearsay,
        ..*outer
    };
    // The client's own packets would not come through, so nothing is due about the answers.
    if service.descriptor.flags & service_flag::GUARDED != 0 {
        admit::source(tables, in_force, &flow)?;
    }
    let hash = steer::place(tables, service, &flow).ok_or(DropReason::Inconsistent)?;
    let backend = match steer::backend(tables, in_force, &flow, hash) {
        // The kernel has the service's packets, and so what is said of its answers.
        Err(DropReason::NoBackend) if service.descriptor.refusal() == refusal::PASS => {
            return Ok(Verdict::Pass);
        }
        backend => backend?,
    };
    if backend.interface == 0 {
        return Err(DropReason::NoNextHop);
    }
    // No error is sent about one (RFC 1122 §3.2.2, RFC 4443 §2.4(e)).
    if outer.length > vlan::room(tables, backend) {
        return Err(DropReason::PacketTooBig);
    }
    let bytes = packet.length_around(outer.end()) as u64;
    match service.descriptor.mode {
        mode::NAT => {
            let port = service.descriptor.port_at(backend, quoted.from.port);
            translate(packet, outer, quoted, backend, port)?;
        }
        mode::SECOND_HOP if tables.knows(feature::SECOND_HOP) => {
            let other = steer::other(tables, in_force, &flow, hash, backend);
            egress::in_gue(packet, tables, outer, backend, hash, Some(other))?;
        }
        mode => egress::deliver(packet, tables, outer, mode, backend, hash)?,
    }
    tables.count_service(service.index, bytes, false);
    tables.count_backend(backend, bytes, false);
    Ok(egress::by(packet, tables, backend.interface))
}

/// The error is about a packet in a VIP's name that a session's backend has sent.
#[inline(always)]
fn to_translated<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
    quoted: &Quoted,
    in_force: &steer::InForce<'_>,
) -> Result<Verdict, DropReason> {
    let service = &in_force.service;
    // The flow that the client's packets are of.
    let flow = Flow {
        source: quoted.to.address,
        destination: quoted.from.address,
        source_port: quoted.to.port,
        destination_port: quoted.from.port,
        protocol: quoted.from.protocol,
        signal: Signal::Hearsay,
        ..*outer
    };
    if service.descriptor.flags & service_flag::GUARDED != 0 {
        admit::source(tables, in_force, &flow)?;
    }
    let key = steer::key(service, &flow);
    let Known::Session(way) = session::look(tables, service, &key, Signal::Hearsay) else {
        // The kernel has packets of no session, and so what is said of its answers.
        return match service.descriptor.refusal() {
            refusal::PASS => Ok(Verdict::Pass),
            _ => Err(DropReason::NoSession),
        };
    };
    let backend = way.candidate.backend;
    if backend.interface == 0 {
        return Err(DropReason::NoNextHop);
    }
    if outer.length > vlan::room(tables, backend) {
        return Err(DropReason::PacketTooBig);
    }
    let bytes = packet.length_around(outer.end()) as u64;
    let port = service.descriptor.port_at(backend, quoted.from.port);
    // A router on the way to the client keeps its own address.
    let sender = if outer.source == quoted.to.address {
        way.address
    } else {
        outer.source
    };
    forward::decrement_ttl(packet, outer)?;
    let (here, there) = ((backend.address, port), (way.address, way.port));
    let mut change = requote_both(packet, outer, quoted, here, there)?;
    if tables.knows(feature::SYN_PROXY) && way.shift != 0 {
        change = change.plus(renumber(packet, outer, quoted, way.shift)?);
    }
    readdress(packet, outer, forward::End::Source, sender, change)?;
    let end = forward::End::Destination;
    readdress(packet, outer, end, backend.address, Sum::new())?;
    forward::readdress(packet, backend.source_mac, backend.destination_mac)?;
    tables.count_service(service.index, bytes, false);
    tables.count_backend(backend, bytes, false);
    Ok(egress::by(packet, tables, backend.interface))
}

/// The error is about a session's packet to its backend; the client knows the VIP only.
#[inline(always)]
fn from_translated<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
    quoted: &Quoted,
) -> Result<Verdict, DropReason> {
    let key = PortKey {
        backend: quoted.to.address,
        address: quoted.from.address,
        backend_port: quoted.to.port,
        port: quoted.from.port,
        protocol: quoted.from.protocol,
        lock: 0,
        zeros: [0; 2],
    };
    let half = (tables.generation() & 1) as u32;
    let found = session::answered(tables, &key, half, Signal::Hearsay);
    let Some(answered) = found else {
        return Ok(Verdict::Pass);
    };
    let watched = answered.watched();
    if tables.knows(feature::PASSIVE) {
        heard(packet, tables, outer, quoted, watched);
    }
    let Answered {
        client,
        service: Service { descriptor, .. },
        ..
    } = answered;
    let (vip, port) = (descriptor.vip_of(&client), descriptor.port_of(client.to));
    // A router on the way to the backend keeps its own address.
    let sender = if outer.source == quoted.to.address {
        vip
    } else {
        outer.source
    };
    let onward = full_nat::onward(packet, tables, outer, client.source, sender)?;
    if let Onward::Ends(_) = onward {
        return Ok(Verdict::Pass);
    }
    let (here, there) = ((client.source, client.port), (vip, port));
    let change = requote_both(packet, outer, quoted, here, there)?;
    readdress(packet, outer, forward::End::Source, sender, change)?;
    let end = forward::End::Destination;
    readdress(packet, outer, end, client.source, Sum::new())?;
    Ok(egress::leave(packet, tables, onward))
}

/// [`requote`] of both ends: the source first.
#[inline(always)]
fn requote_both<P: Packet>(
    packet: &mut P,
    outer: &Flow,
    quoted: &Quoted,
    (source, source_port): (Address, u16),
    (destination, destination_port): (Address, u16),
) -> Result<Sum, DropReason> {
    if outer.v4 != source.is_v4() || outer.v4 != destination.is_v4() {
        return Err(DropReason::Inconsistent);
    }
    let end = forward::End::Source;
    let change = requote(packet, outer, quoted, end, source, source_port)?;
    let end = forward::End::Destination;
    let other = requote(packet, outer, quoted, end, destination, destination_port)?;
    Ok(change.plus(other))
}

/// As the backend's own packet would have brought it.
#[inline(always)]
fn translate<P: Packet>(
    packet: &mut P,
    outer: &Flow,
    quoted: &Quoted,
    backend: &Backend,
    port: u16,
) -> Result<(), DropReason> {
    if outer.v4 != backend.address.is_v4() {
        return Err(DropReason::Inconsistent);
    }
    forward::decrement_ttl(packet, outer)?;
    let end = forward::End::Source;
    let change = requote(packet, outer, quoted, end, backend.address, port)?;
    let end = forward::End::Destination;
    readdress(packet, outer, end, backend.address, change)?;
    forward::readdress(packet, backend.source_mac, backend.destination_mac)
}

/// The error is about a client's packet to a `nat` backend; the client knows the VIP only.
#[inline(always)]
fn to_client<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    outer: &Flow,
    quoted: &Quoted,
    owned: u32,
) -> Result<Verdict, DropReason> {
    let Some(WayBack {
        address,
        port,
        watched,
        ..
    }) = egress::way_back(tables, quoted.to)
    else {
        return Ok(Verdict::Pass);
    };
    // About our own probes.
    if owned & owned::LOCAL != 0 {
        return Ok(Verdict::Pass);
    }
    if outer.v4 != address.is_v4() {
        return Err(DropReason::Inconsistent);
    }
    // A router on the way to the backend keeps its own address.
    let sender = if outer.source == quoted.to.address {
        address
    } else {
        outer.source
    };
    heard(packet, tables, outer, quoted, watched);
    let onward = egress::onward(packet, tables, outer, sender)?;
    if let Onward::Ends(_) = onward {
        return Ok(Verdict::Pass);
    }
    let end = forward::End::Destination;
    let change = requote(packet, outer, quoted, end, address, port)?;
    readdress(packet, outer, forward::End::Source, sender, change)?;
    Ok(egress::leave(packet, tables, onward))
}

/// Takes note of an error about a packet to a backend, of which `watched` is [`WayBack::watched`].
#[inline(always)]
fn heard<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    outer: &Flow,
    quoted: &Quoted,
    watched: u32,
) {
    if watched != 0 && quoted.to.protocol == protocol::TCP && says_unreachable(packet, outer) {
        let interface = tables.ingress(packet);
        tables.note(watched.wrapping_sub(1), Said::Unreachable, interface);
    }
}

/// Whether an error says that nobody is there: not that a rule forbids it, nor that it is too long.
#[inline(always)]
fn says_unreachable<P: Packet>(packet: &P, outer: &Flow) -> bool {
    let Some(icmp) = packet.read::<IcmpHdr>(outer.transport) else {
        return false;
    };
    if outer.v4 {
        // Of the network, the host, the protocol and the port.
        icmp.kind == v4::UNREACHABLE && icmp.code <= 3
    } else {
        // No route, address, port.
        icmp.kind == v6::UNREACHABLE && matches!(icmp.code, 0 | 3 | 4)
    }
}

/// Rewrites one end of the quoted packet, with its checksums as far as they are quoted (RFC 5508 §4.2);
/// what that changes of the sum over the message.
#[inline(always)]
fn requote<P: Packet>(
    packet: &mut P,
    outer: &Flow,
    quoted: &Quoted,
    end: forward::End,
    address: Address,
    port: u16,
) -> Result<Sum, DropReason> {
    let old = match end {
        forward::End::Source => quoted.from,
        forward::End::Destination => quoted.to,
    };
    let addresses = forward::set_address(packet, quoted.network, outer.v4, end, address)?;
    let mut ports: Ports = forward::read(packet, quoted.transport)?;
    match end {
        forward::End::Source => ports.source = port.to_ne_bytes(),
        forward::End::Destination => ports.destination = port.to_ne_bytes(),
    }
    forward::write(packet, quoted.transport, &ports)?;
    let moved = Sum::new().remove16(old.port).add16(port);
    // An IPv4 header sums to nothing before and after.
    let mut message = if outer.v4 {
        moved
    } else {
        addresses.plus(moved)
    };
    let is_tcp = old.protocol == protocol::TCP;
    let at = quoted.transport
        + if is_tcp {
            wire::TCP_CHECK
        } else {
            wire::UDP_CHECK
        };
    if at + 2 <= outer.end() {
        let Check(check) = forward::read(packet, at)?;
        let before = u16::from_ne_bytes(check);
        if is_tcp || before != 0 {
            let after = addresses.plus(moved).update(before);
            let after = if is_tcp { after } else { forward::sent(after) };
            forward::write(packet, at, &Check(after.to_ne_bytes()))?;
            message = message.remove16(before).add16(after);
        }
    }
    Ok(message)
}

/// Has the sequence number of a segment in a VIP's name that is quoted be the one that the session's backend has sent, by which
/// it tells whether the error is about what is under way; what that changes of the sum over the message.
#[inline(always)]
fn renumber<P: Packet>(
    packet: &mut P,
    outer: &Flow,
    quoted: &Quoted,
    shift: u32,
) -> Result<Sum, DropReason> {
    let at = quoted.transport + Number::Sequence.offset();
    let Word(before) = forward::read(packet, at)?;
    let after = u32::from_be_bytes(before).wrapping_sub(shift).to_be_bytes();
    forward::write(packet, at, &Word(after))?;
    let change = segment::changed(before, after);
    let at = quoted.transport + wire::TCP_CHECK;
    if at + 2 > outer.end() {
        return Ok(change);
    }
    let Check(check) = forward::read(packet, at)?;
    let before = u16::from_ne_bytes(check);
    let after = change.update(before);
    forward::write(packet, at, &Check(after.to_ne_bytes()))?;
    Ok(change.remove16(before).add16(after))
}

/// Rewrites one end of the packet that carries the message, of whose sum `change` is different.
#[inline(always)]
fn readdress<P: Packet>(
    packet: &mut P,
    outer: &Flow,
    end: forward::End,
    address: Address,
    change: Sum,
) -> Result<(), DropReason> {
    let addresses = forward::set_address(packet, wire::ETHERNET, outer.v4, end, address)?;
    // ICMPv6 sums a pseudo-header as well (RFC 4443 §2.3).
    let change = if outer.v4 {
        change
    } else {
        change.plus(addresses)
    };
    let mut icmp: IcmpHdr = forward::read(packet, outer.transport)?;
    icmp.check = change.update(u16::from_ne_bytes(icmp.check)).to_ne_bytes();
    forward::write(packet, outer.transport, &icmp)
}
