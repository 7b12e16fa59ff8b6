//! Fragments of mode `full-nat`, both of whose ends are rewritten. The first one finds its session or begins it, as a whole
//! packet does; what the others become is remembered of it. They get past [`super::process`], which leaves them here.

use super::{Fragment, refused};
use crate::{
    egress::{self, Onward},
    flow::Flow,
    forward, full_nat,
    packet::Packet,
    pipeline::Rest,
    refuse,
    session::{self, Answered},
    steer::InForce,
    syn_proxy,
    tables::{Address, Backend, Datagram, PortKey, Tables, fate, mode},
    verdict::{DropReason, Piece, Verdict},
    vlan, wire,
};

/// Goes on with a fragment that has been read, and noted as a part of its datagram.
///
/// # Errors
/// As [`super::process`]; what begins a session is [left](Fragment::left) to [`full_nat::begin`], after which it comes again.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &mut Fragment,
) -> Result<Verdict, DropReason> {
    fragment.left = None;
    // What is read of memory has no bounds any more.
    fragment.flow.transport = packet.forget(fragment.flow.transport);
    if fragment.offset != 0 {
        return later(packet, tables, fragment);
    }
    match full_nat::service(tables, &fragment.flow) {
        Some(found) => to_backend(packet, tables, fragment, &found),
        None => to_client(packet, tables, fragment),
    }
}

/// What becomes of a first fragment for which no session could be begun: it is not answered, and the others follow it.
#[inline(always)]
pub(crate) fn untaken<T: Tables>(
    tables: &T,
    fragment: &Fragment,
    reason: DropReason,
    in_force: &InForce<'_>,
) -> Result<Verdict, DropReason> {
    let outcome = refused(tables, reason, in_force.service.descriptor.refusal());
    if outcome.is_ok() {
        passes(tables, fragment);
    }
    outcome
}

/// Notes that the rest of a datagram is the kernel's, as its first fragment was.
#[inline(always)]
fn passes<T: Tables>(tables: &T, fragment: &Fragment) {
    tables.visit_datagram(&fragment.key, |datagram| datagram.fate = fate::PASSES);
}

/// What is to be remembered of a first fragment that goes on.
struct Note<'t> {
    fate: u8,
    backend: Option<&'t Backend>,
    /// Of an answer.
    vip: Address,
    other: Address,
    service: u32,
}

/// Remembers what became of it.
#[inline(always)]
fn note<T: Tables>(tables: &T, fragment: &Fragment, note: &Note<'_>) {
    tables.count_piece(Piece::First);
    tables.note_datagram(&fragment.key, |datagram| {
        match note.backend {
            Some(backend) => datagram.backend = *backend,
            None => datagram.backend.address = note.vip,
        }
        datagram.other = note.other;
        datagram.service = note.service;
        datagram.mode = mode::FULL_NAT;
        datagram.fate = note.fate;
        datagram.seen = fragment.seen();
        datagram.stamp = tables.now();
    });
}

/// A client's, by its session.
#[inline(always)]
fn to_backend<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &mut Fragment,
    in_force: &InForce<'_>,
) -> Result<Verdict, DropReason> {
    let flow = &mut fragment.flow;
    let Some(way) = full_nat::way(tables, in_force, flow)? else {
        fragment.left = Some(Rest::FullNatNew);
        return Err(DropReason::NoSession);
    };
    // A handshake that is answered for the backend is of whole packets.
    if syn_proxy::opens(tables, flow, &way) {
        return Err(DropReason::Fragment);
    }
    full_nat::to_backend::<false, _, _>(packet, tables, flow, in_force, &way)?;
    let backend = way.candidate.backend;
    let became = Note {
        fate: fate::TO_BACKEND,
        backend: Some(backend),
        vip: Address::NOBODY,
        other: way.address,
        service: in_force.service.index,
    };
    note(tables, fragment, &became);
    Ok(egress::by(packet, tables, backend.interface))
}

/// A backend's answer, by the session that its port is of.
#[inline(always)]
fn to_client<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &mut Fragment,
) -> Result<Verdict, DropReason> {
    let flow = &fragment.flow;
    let half = (tables.generation() & 1) as u32;
    let key = PortKey::of_answer(flow);
    let Some(answered) = session::answered(tables, &key, half, flow.signal) else {
        passes(tables, fragment);
        return Ok(Verdict::Pass);
    };
    if syn_proxy::is_opened(packet, tables, flow, &answered) {
        return Err(DropReason::Fragment);
    }
    let Answered {
        client, service, ..
    } = answered;
    let descriptor = service.descriptor;
    let (vip, port) = (descriptor.vip_of(&client), descriptor.port_of(client.to));
    let onward = onward(packet, tables, flow, client.source, vip)?;
    let ends = forward::Ends::both((vip, port), (client.source, client.port));
    forward::rewrite(packet, flow, ends, 0)?;
    syn_proxy::shift_answer(packet, tables, flow, &answered)?;
    let became = Note {
        fate: fate::TO_CLIENT,
        backend: None,
        vip,
        other: client.source,
        service: 0,
    };
    note(tables, fragment, &became);
    Ok(egress::leave(packet, tables, onward))
}

#[inline(always)]
fn onward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    client: Address,
    vip: Address,
) -> Result<Onward, DropReason> {
    match full_nat::onward(packet, tables, flow, client, vip)? {
        Onward::Ends(obstacle) => Err(full_nat::obstructed(tables, obstacle)),
        onward => Ok(onward),
    }
}

#[inline(always)]
fn later<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &Fragment,
) -> Result<Verdict, DropReason> {
    let flow = &fragment.flow;
    let followed = tables.visit_datagram(&fragment.key, |datagram| {
        follow(packet, tables, flow, datagram)
    });
    let verdict = followed.ok_or(DropReason::FragmentBeforeFirst)??;
    tables.count_piece(fragment.piece());
    Ok(verdict)
}

/// Sends it where the first one went. It has nothing but the IP header to be changed.
#[inline(always)]
fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    datagram: &Datagram,
) -> Result<Verdict, DropReason> {
    let Datagram {
        backend,
        other,
        service,
        ..
    } = datagram;
    // Another CPU may have given it up in the meantime, or noted another datagram.
    if datagram.mode != mode::FULL_NAT
        || !matches!(datagram.fate, fate::TO_CLIENT | fate::TO_BACKEND)
    {
        return Err(DropReason::Fragment);
    }
    if datagram.fate == fate::TO_CLIENT {
        let (vip, client) = (backend.address, *other);
        let onward = onward(packet, tables, flow, client, vip)?;
        let (source, destination) = (Some(vip), Some(client));
        forward::set_addresses(packet, wire::ETHERNET, flow.v4, source, destination, 0)?;
        return Ok(egress::leave(packet, tables, onward));
    }
    let room = vlan::room(tables, backend);
    if flow.length > room {
        refuse::leave_too_big(tables, room);
        return Err(DropReason::PacketTooBig);
    }
    let bytes = packet.length_around(flow.end()) as u64;
    let (source, destination) = (Some(*other), Some(backend.address));
    if let Err(reason) =
        forward::set_addresses(packet, wire::ETHERNET, flow.v4, source, destination, 1)
    {
        refuse::leave_expired(tables);
        return Err(reason);
    }
    forward::readdress(packet, backend.source_mac, backend.destination_mac)?;
    tables.count_service(*service, bytes, false);
    tables.count_backend(backend, bytes, false);
    Ok(egress::by(packet, tables, backend.interface))
}
