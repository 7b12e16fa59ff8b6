//! Datagrams that come in fragments, of both families: the first fragment, which has the ports, says where
//! all of them go (RFC 791 §3.2, RFC 8200 §4.5). Nothing is reassembled.
//!
//! What the first one came to is remembered for [`LIFETIME`] in a table of its own, and the others follow it
//! by addresses, protocol and identification. They are not steered anew by its ports: a scheduler, a
//! connection id or a ring that moves could choose another backend for them, which none of the two could
//! make anything of. A fragment that comes before its first one is [held](Tables::hold), where there is
//! somebody to hold it.
//!
//! Dropped, with a reason of their own: first fragments without all of the transport header and what would
//! write over it later (RFC 1858, RFC 3128, RFC 8200 §4.5), lengths that nothing can be made of, and overlaps
//! as far as [`Seen`] tells them, after which the whole datagram is lost (RFC 5722).

use crate::{
    egress::{self, Onward},
    flow::Flow,
    forward::{self, End, Ends},
    hash::FlowHash,
    martian,
    packet::Packet,
    pipeline::{self, Rest},
    refuse,
    steer::{self, InForce},
    tables::{
        Address, Backend, Datagram, HELD_WORDS, Handover, SECOND, Tables, Tick, WayBack, fate,
        feature, mode, owned, refusal,
    },
    verdict::{Answer, DropReason, Piece, Verdict},
    vlan,
    wire::{self, protocol},
};

mod read;
mod seen;
mod translated;

use read::Found;
pub use read::Fragment;
pub use seen::{Overlap, Part, Seen};
pub use translated::process as translate;
pub(crate) use translated::untaken;

/// How long the fragments of a datagram are waited for after the last one that came. Those of one datagram
/// are sent one after the other; hosts that reassemble wait longer, 15 s and more (RFC 791 §3.2), but they
/// need not keep apart what all hosts behind a balancer are sent under 16 bits of identification.
pub const LIFETIME: Tick = 2 * SECOND;
/// What becomes of a fragment that comes before its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Early {
    /// It is held, if it can be.
    Held,
    /// It is dropped: it has been held.
    Dropped,
}

/// Decides over a frame that carries a fragment, and makes it what it becomes. The fragment is read into an empty
/// place, which the kernel's program has off its stack.
///
/// # Errors
/// Why it is dropped. What is [`DropReason::PacketTooBig`] or [`DropReason::TtlExpired`] is as it came, and left to
/// [`refuse::too_big`], to which it is handed over; of what is [left](Fragment::left) to another, nothing.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &mut Fragment,
    early: Early,
) -> Result<Verdict, DropReason> {
    if read::read(packet, fragment, tables.knows(feature::SCTP)).is_none() {
        return Ok(Verdict::Pass);
    }
    fragment.early = early;
    let owned = steer::owned(tables, fragment.flow.destination);
    if let Some(outcome) = martian::outcome(&fragment.flow, owned) {
        return outcome;
    }
    let is_vip = owned & owned::VIP != 0;
    if owned & (owned::VIP | owned::POOL) == 0 && !tables.uses(feature::NAT) {
        return Ok(Verdict::Pass);
    }
    let sound = fragment.check();
    if !is_vip && sound.is_err() {
        return Ok(Verdict::Pass);
    }
    sound?;
    let now = tables.now();
    if fragment.offset == 0 {
        first(packet, tables, fragment, owned, now)
    } else {
        later(packet, tables, fragment, owned, now)
    }
}

/// Whether what is known of a datagram counts for a fragment that comes now. What is whole has been of another
/// one: identifications come again.
#[inline(always)]
pub fn counts(datagram: &Datagram, now: Tick) -> bool {
    // Signed: another CPU may be a tick ahead.
    let age = now.wrapping_sub(datagram.stamp) as i32;
    age < LIFETIME as i32 && !Seen::from_word(datagram.seen).is_whole()
}

/// What is to be remembered of a first fragment.
struct Note<'t> {
    fate: u8,
    way: Way<'t>,
    /// The VIP, of an answer.
    address: Address,
}

/// How a datagram gets to its backend.
#[derive(Clone, Copy)]
struct Way<'t> {
    backend: Option<&'t Backend>,
    /// Its port, or the VIP's.
    port: u16,
    hash: FlowHash,
    service: u32,
    mode: u8,
}

#[inline(always)]
fn first<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &mut Fragment,
    owned: u32,
    now: Tick,
) -> Result<Verdict, DropReason> {
    let is_vip = owned & owned::VIP != 0;
    let (part, seen) = (fragment.part(), fragment.seen());
    let sctp = tables.knows(feature::SCTP);
    let found = match read::ports(packet, &mut fragment.flow, sctp) {
        Ok(found) => found,
        // Whose it is cannot be told.
        Err(_) if !is_vip => return Ok(Verdict::Pass),
        Err(reason) => return Err(reason),
    };
    let overlaps = tables.visit_datagram(&fragment.key, |before| {
        let overlaps = counts(before, now) && !matches!(before.fate, fate::PASSES | fate::DROPPED);
        if overlaps {
            // It has a first fragment.
            let _ = add(before, part, now);
        }
        overlaps
    });
    if overlaps == Some(true) {
        return Err(DropReason::FragmentOverlap);
    }
    let mut note = Note {
        fate: fate::PASSES,
        way: Way {
            backend: None,
            port: 0,
            hash: FlowHash::from_word(0),
            service: 0,
            mode: 0,
        },
        address: Address::v6([0; 16]),
    };
    let outcome = match found {
        Found::Flow => found_flow(packet, tables, fragment, owned, &mut note),
        Found::Foreign if fragment.flow.protocol == protocol::ICMPV6 => Ok(Verdict::Pass),
        Found::Foreign => unserved(tables, owned),
    };
    // Of what is neither to a VIP nor from a backend, nothing is remembered.
    if is_vip || note.fate != fate::PASSES {
        if outcome.is_err() {
            note.fate = fate::DROPPED;
        } else if note.fate != fate::PASSES {
            tables.count_piece(Piece::First);
        }
        tables.note_datagram(&fragment.key, |datagram| {
            match note.way.backend {
                Some(backend) => datagram.backend = *backend,
                None => datagram.backend.address = note.address,
            }
            datagram.backend.port = note.way.port;
            datagram.hash = note.way.hash.word();
            datagram.service = note.way.service;
            datagram.mode = note.way.mode;
            datagram.fate = note.fate;
            datagram.seen = seen;
            datagram.stamp = now;
        });
    }
    outcome
}

/// Where a first fragment with ports goes.
#[inline(always)]
fn found_flow<'t, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &'t T,
    fragment: &mut Fragment,
    owned: u32,
    note: &mut Note<'t>,
) -> Result<Verdict, DropReason> {
    let flow = &mut fragment.flow;
    if let Some(found) = steer::service(tables, &flow.to()) {
        if pipeline::is_full_nat(tables, &found) {
            return translated(tables, fragment);
        }
        return match to_backend(packet, tables, flow, &found, note) {
            Err(DropReason::NoBackend) => {
                let policy = found.service.descriptor.refusal();
                refused(tables, DropReason::NoBackend, policy)
            }
            outcome => outcome,
        };
    }
    if owned & owned::POOL != 0 {
        // So that it is remembered, though it is to no VIP.
        note.fate = fate::DROPPED;
        return translated(tables, fragment);
    }
    match egress::way_back(tables, flow.from()) {
        Some(WayBack { address, port, .. }) => {
            note.fate = fate::TO_CLIENT;
            note.address = address;
            note.way.port = port;
            to_client(packet, tables, flow, address, Some(port))
        }
        None => unserved(tables, owned),
    }
}

/// Leaves a fragment of a session, or one that begins it, to [`translate`]. Noted as dropped, until that says more.
#[inline(always)]
fn translated<T: Tables>(tables: &T, fragment: &mut Fragment) -> Result<Verdict, DropReason> {
    tables.hand_over(Handover::default());
    fragment.left = Some(Rest::FullNatFragment);
    Err(DropReason::Fragment)
}

/// What a fragment gets that no service is addressed by, to an address that is so owned.
#[inline(always)]
fn unserved<T: Tables>(tables: &T, owned: u32) -> Result<Verdict, DropReason> {
    match tables.control() {
        Some(control) if tables.uses(feature::UNKNOWN_PORTS) && refuse::is_vip_alone(owned) => {
            refused(tables, DropReason::UnknownPort, control.unknown_port)
        }
        _ => Ok(Verdict::Pass),
    }
}

/// The same where a policy, one of [`refusal`], is set for it. No fragment is answered.
#[inline(always)]
fn refused<T: Tables>(tables: &T, reason: DropReason, policy: u8) -> Result<Verdict, DropReason> {
    match policy {
        refusal::PASS => return Ok(Verdict::Pass),
        refusal::DROP => {}
        _ => tables.count_answer(Answer::Withheld),
    }
    Err(reason)
}

#[inline(always)]
fn later<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    fragment: &mut Fragment,
    owned: u32,
    now: Tick,
) -> Result<Verdict, DropReason> {
    let part = fragment.part();
    let flow = &mut fragment.flow;
    let left = &mut fragment.left;
    let known = tables.visit_datagram(&fragment.key, |datagram| {
        counts(datagram, now).then(|| follow(packet, tables, flow, part, datagram, left, now))
    });
    match known {
        Some(Some(outcome)) => {
            if let Ok((verdict, true)) = outcome {
                tables.count_piece(fragment.piece());
                return Ok(verdict);
            }
            outcome.map(|(verdict, _)| verdict)
        }
        _ if owned & (owned::VIP | owned::POOL) == 0 => Ok(Verdict::Pass),
        _ => {
            let offset = fragment.offset as u32;
            if fragment.early == Early::Held && tables.hold(packet, &fragment.key, offset) {
                tables.count_piece(Piece::Held);
                return Ok(Verdict::Held);
            }
            // What is to a pool may be this host's own.
            if owned & owned::VIP != 0 {
                return Err(DropReason::FragmentBeforeFirst);
            }
            Ok(Verdict::Pass)
        }
    }
}

/// Sends a fragment where its first one went; and whether that was anywhere but to the kernel as it came. One of a session is
/// left to [`translate`].
#[inline(always)]
fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &mut Flow,
    part: Part,
    datagram: &mut Datagram,
    left: &mut Option<Rest>,
    now: Tick,
) -> Result<(Verdict, bool), DropReason> {
    match datagram.fate {
        fate::PASSES => return Ok((Verdict::Pass, false)),
        fate::DROPPED => return Err(DropReason::Fragment),
        fate::OVERLAPS => return Err(DropReason::FragmentOverlap),
        _ => add(datagram, part, now)?,
    }
    if tables.knows(feature::FULL_NAT) && datagram.mode == mode::FULL_NAT {
        tables.hand_over(Handover::default());
        *left = Some(Rest::FullNatFragment);
        return Ok((Verdict::Pass, false));
    }
    let verdict = if datagram.fate == fate::TO_CLIENT {
        to_client(packet, tables, flow, datagram.backend.address, None)?
    } else {
        let way = Way {
            backend: None,
            port: 0,
            hash: FlowHash::from_word(datagram.hash),
            service: datagram.service,
            mode: datagram.mode,
        };
        forward(packet, tables, flow, &datagram.backend, &way, None)?
    };
    Ok((verdict, true))
}

/// Notes that a part has come. A datagram of which one contradicts what has come before is given up; what comes
/// twice is dropped alone, since networks may send things twice.
#[inline(always)]
fn add(datagram: &mut Datagram, part: Part, now: Tick) -> Result<(), DropReason> {
    datagram.stamp = now;
    match Seen::from_word(datagram.seen).with(part) {
        Ok(seen) => {
            datagram.seen = seen.word();
            return Ok(());
        }
        Err(Overlap::Contradicts) => datagram.fate = fate::OVERLAPS,
        Err(Overlap::Again) => {}
    }
    Err(DropReason::FragmentOverlap)
}

/// A client's datagram on its way to a backend, by its first fragment.
#[inline(always)]
fn to_backend<'t, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &'t T,
    flow: &mut Flow,
    in_force: &InForce<'t>,
    note: &mut Note<'t>,
) -> Result<Verdict, DropReason> {
    let service = &in_force.service;
    let hash = steer::place(tables, service, flow).ok_or(DropReason::Inconsistent)?;
    let backend = pipeline::backend(packet, tables, flow, in_force, hash)?;
    if backend.interface == 0 {
        return Err(DropReason::NoNextHop);
    }
    note.fate = fate::TO_BACKEND;
    note.way = Way {
        backend: Some(backend),
        port: service.descriptor.port_at(backend, flow.destination_port),
        hash,
        service: service.index,
        mode: service.descriptor.mode,
    };
    let port = Some(note.way.port);
    forward(packet, tables, flow, backend, &note.way, port)
}

/// Sends a fragment to its datagram's backend; a first one to a port there.
#[inline(always)]
fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &mut Flow,
    backend: &Backend,
    way: &Way<'_>,
    port: Option<u16>,
) -> Result<Verdict, DropReason> {
    let room = vlan::room(tables, backend);
    if flow.length > room {
        refuse::leave_too_big(tables, room);
        return Err(DropReason::PacketTooBig);
    }
    let bytes = packet.length_around(flow.end()) as u64;
    let opens = port.is_some() && flow.opens();
    match way.mode {
        mode::NAT => {
            if let Err(reason) = forward::decrement_ttl(packet, flow) {
                refuse::leave_expired(tables);
                return Err(reason);
            }
            rewrite(packet, flow, End::Destination, backend.address, port)?;
            forward::readdress(packet, backend.source_mac, backend.destination_mac)?;
        }
        mode => {
            // Its checksums are not over this packet, whatever they are over.
            flow.protocol = protocol::FRAGMENT;
            if tables.knows(feature::SECOND_HOP) && mode == mode::SECOND_HOP {
                // What has no ports stays where it comes.
                let nobody = Some(Address::NOBODY);
                egress::in_gue(packet, tables, flow, backend, way.hash, nobody)?;
            } else {
                egress::deliver(packet, tables, flow, mode, backend, way.hash)?;
            }
        }
    }
    tables.count_service(way.service, bytes, opens);
    tables.count_backend(backend, bytes, opens);
    Ok(egress::by(packet, tables, backend.interface))
}

/// Sends a fragment of a `nat` backend's answer to the client, from the VIP.
#[inline(always)]
fn to_client<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    vip: Address,
    port: Option<u16>,
) -> Result<Verdict, DropReason> {
    // An answer to our own probes.
    if steer::owned_alone(tables, flow.destination) & owned::LOCAL != 0 {
        return Ok(Verdict::Pass);
    }
    let onward = egress::onward(packet, tables, flow, vip)?;
    if let Onward::Ends(_) = onward {
        return Ok(Verdict::Pass);
    }
    rewrite(packet, flow, End::Source, vip, port)?;
    Ok(egress::leave(packet, tables, onward))
}

/// Rewrites one end of a fragment. A first one has the port, and the checksum of all of the datagram, in which the
/// address counts once; the others have nothing but the IP header to be changed.
#[inline(always)]
fn rewrite<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    end: End,
    address: Address,
    port: Option<u16>,
) -> Result<(), DropReason> {
    if let Some(port) = port {
        return forward::rewrite(packet, flow, Ends::one(end, address, port), 0);
    }
    forward::set_address(packet, wire::ETHERNET, flow.v4, end, address).map(drop)
}

/// Bytes of a frame that can be held; `None` where it is too long.
#[inline(always)]
pub fn holds<P: Packet>(packet: &P) -> Option<usize> {
    let length = packet.length();
    (length <= 8 * HELD_WORDS).then_some(length)
}
