//! Mode `full-nat`: both ends of a packet are rewritten, so that the backend's answers come back here by
//! themselves. A client's packet goes on from an address and port of a pool; what comes there from the backend goes
//! to the client from the VIP. Which session that is, [`crate::session`] says; bytes are [`crate::forward`]'s.

use crate::{
    admit, client_address,
    egress::{self, Obstacle, Onward},
    flow::{self, Family, Flow},
    forward::{self, Ends},
    fragment::{self, Fragment},
    mss,
    packet::Packet,
    passive,
    pipeline::{self, Rest},
    refuse, schedule,
    session::{self, Answered, Known, Way},
    steer::{self, Candidate, InForce, Service},
    syn_proxy,
    tables::{
        Address, FlowEvent, FlowKey, Handover, PortKey, Proxied, Tables, client_address as tells,
        feature, mode, owned, refusal, service_flag,
    },
    track::Question,
    verdict::{DropReason, Verdict},
    vlan,
    wire::protocol,
};

/// What becomes of a packet, or who goes on with it.
pub(crate) type Outcome = Result<Result<Verdict, DropReason>, Rest>;

/// What [`Handover::limit`] says of a packet that a session has just been begun for, here or by another CPU.
pub const BEGUN: u16 = 1;
/// The same of a packet that [`crate::syn_proxy`] has made what it is.
pub(crate) const MADE: u16 = 2;
/// The same of one whose session has lost its backend.
pub(crate) const LOST: u16 = 3;
/// What it says to [`begin`] of a fragment.
pub const FRAGMENT: u16 = 4;

/// Decides over a client's packet to a VIP of this mode, and makes it what it becomes. What has no session is left to
/// [`begin`], and comes again.
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn request<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    let mut flow = Flow::EMPTY;
    if !read(packet, &mut flow) {
        return Ok(Ok(Verdict::Pass));
    }
    let Some(found) = service(tables, &flow) else {
        return Ok(Err(DropReason::NoSession));
    };
    let key = steer::key(&found.service, &flow);
    // Who is not let in any more keeps no session alive either.
    if found.service.descriptor.flags & service_flag::GUARDED != 0
        && let Err(reason) = admit::source(tables, &found, &flow)
    {
        return Ok(Err(reason));
    }
    let way = match session::look(tables, &found.service, &key, flow.signal) {
        Known::Session(way) => way,
        // Another CPU is still at it, or the last of a connection from before it has ended it already.
        _ if matches!(tables.handed_over().limit, BEGUN | MADE) => {
            return refused(tables, &found, DropReason::NoSession);
        }
        known => {
            if tables.knows(feature::SYN_PROXY) && matches!(known, Known::Lost) {
                tables.hand_over(Handover {
                    limit: LOST,
                    ..Handover::default()
                });
            }
            return Err(Rest::FullNatNew);
        }
    };
    if syn_proxy::opens(tables, &flow, &way) {
        return Err(Rest::ProxySyn);
    }
    match to_backend::<true, _, _>(packet, tables, &mut flow, &found, &way) {
        Err(DropReason::PacketTooBig | DropReason::TtlExpired) => Err(Rest::TooBig),
        Err(reason) => Ok(Err(reason)),
        Ok(()) if pipeline::opens_with_mss(tables, &flow, way.candidate.backend) => {
            pipeline::leave_syn(tables, &flow, mode::FULL_NAT, way.candidate.backend);
            Err(Rest::Syn)
        }
        Ok(()) => Ok(Ok(egress::by(
            packet,
            tables,
            way.candidate.backend.interface,
        ))),
    }
}

/// Begins a session for a client's packet, which goes back to [`request`] then, or for a fragment that has been read, which
/// goes back to [`fragment::translate`].
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn begin<P: Packet, T: Tables>(packet: &P, tables: &T, fragment: Option<&Fragment>) -> Outcome {
    let mut flow = Flow::EMPTY;
    match fragment {
        Some(fragment) => flow = *fragment.flow(),
        None if !read(packet, &mut flow) => return Ok(Ok(Verdict::Pass)),
        None => {}
    }
    let Some(found) = service(tables, &flow) else {
        return Ok(Err(DropReason::NoSession));
    };
    if syn_proxy::answers(tables, &found, &flow) {
        return match fragment {
            // What is told by a cookie is of whole packets.
            Some(_) => Ok(Err(DropReason::Fragment)),
            None => Err(Rest::SynCookie),
        };
    }
    let key = steer::key(&found.service, &flow);
    let lost = match session::look(tables, &found.service, &key, flow.signal) {
        // Another CPU has begun it in the meantime.
        Known::Session(_) => return goes_on(tables, fragment),
        // A SYN begins a flow also where one was before.
        Known::Lost => !flow.opens(),
        Known::Nothing => false,
    };
    begun(tables, &found, &flow, lost, Proxied::default(), fragment)
}

/// Has [`request`] go on with a packet whose session has just been begun, or [`fragment::translate`] with a fragment.
#[inline(always)]
fn goes_on<T: Tables>(tables: &T, fragment: Option<&Fragment>) -> Outcome {
    tables.hand_over(Handover {
        limit: BEGUN,
        ..Handover::default()
    });
    Err(match fragment {
        Some(_) => Rest::FullNatFragment,
        None => Rest::FullNat,
    })
}

/// Begins a session for a packet, where it has `lost` its backend also for one that opens none, with what has been proven of its
/// handshake; says who goes on.
#[inline(always)]
pub(crate) fn begun<T: Tables>(
    tables: &T,
    found: &InForce<'_>,
    flow: &Flow,
    lost: bool,
    proxied: Proxied,
    fragment: Option<&Fragment>,
) -> Outcome {
    match try_begin(tables, found, flow, lost, proxied) {
        Ok(()) => goes_on(tables, fragment),
        Err(
            reason @ (DropReason::PortsExhausted | DropReason::NoSession | DropReason::NoBackend),
        ) => match fragment {
            Some(fragment) => Ok(fragment::untaken(tables, fragment, reason, found)),
            None => refused(tables, found, reason),
        },
        Err(reason) => Ok(Err(reason)),
    }
}

/// Decides over a packet to an address of a pool, and makes it what it becomes. What is of no session is the kernel's;
/// what does not go on is dropped, and its sender told where something shorter would.
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    let mut flow = Flow::EMPTY;
    if !read(packet, &mut flow) {
        return Ok(Ok(Verdict::Pass));
    }
    to_client(packet, tables, &flow)
}

/// Reads a packet that has been read before: whether it still can be.
#[inline(always)]
pub(crate) fn read<P: Packet>(packet: &P, flow: &mut Flow) -> bool {
    let parsed = match flow::family(packet) {
        Some(Family::V4) => flow::parse_v4(packet, flow),
        Some(Family::V6) => flow::parse_v6(packet, flow),
        None => return false,
    };
    // However many extension headers there are.
    flow.transport = packet.forget(flow.transport);
    parsed.is_ok()
}

/// The service that a packet goes to, unless it has got another mode in this very moment.
#[inline(always)]
pub(crate) fn service<'t, T: Tables>(tables: &'t T, flow: &Flow) -> Option<InForce<'t>> {
    let found = steer::service(tables, &flow.to())?;
    (found.service.descriptor.mode == mode::FULL_NAT).then_some(found)
}

/// Whether an address is one of a pool.
#[inline(always)]
pub fn is_of_a_pool<T: Tables>(tables: &T, address: Address) -> bool {
    tables.uses(feature::FULL_NAT) && steer::owned_alone(tables, address) & owned::POOL != 0
}

/// What its service says of packets that nobody takes.
#[inline(always)]
pub(crate) fn refused<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    reason: DropReason,
) -> Outcome {
    if in_force.service.descriptor.refusal() == refusal::DROP {
        return Ok(Err(reason));
    }
    tables.hand_over(Handover {
        limit: reason as u32 as u16,
        ..Handover::default()
    });
    Err(Rest::Untranslated)
}

/// How a fragment's flow reaches its backend; `None` where it has no session yet, of which [`begin`] is told.
///
/// # Errors
/// As [`admit::source`]; [`DropReason::NoSession`] where there is none although it has begun.
#[inline(always)]
pub(crate) fn way<'t, T: Tables>(
    tables: &'t T,
    in_force: &InForce<'t>,
    flow: &Flow,
) -> Result<Option<Way<'t>>, DropReason> {
    let service = &in_force.service;
    if service.descriptor.flags & service_flag::GUARDED != 0 {
        admit::source(tables, in_force, flow)?;
    }
    let key = steer::key(service, flow);
    if let Known::Session(way) = session::look(tables, service, &key, flow.signal) {
        return Ok(Some(way));
    }
    if tables.handed_over().limit == BEGUN {
        return Err(DropReason::NoSession);
    }
    tables.hand_over(Handover {
        limit: FRAGMENT,
        ..Handover::default()
    });
    Ok(None)
}

/// A client's packet on its way to the backend of its session. One that is not `WHOLE` has no room for an option: what follows it
/// would write over what it is longer by.
#[inline(always)]
pub(crate) fn to_backend<const WHOLE: bool, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &mut Flow,
    in_force: &InForce<'_>,
    way: &Way<'_>,
) -> Result<(), DropReason> {
    let InForce { service, half } = *in_force;
    let descriptor = service.descriptor;
    if flow::is_authenticated(packet, flow) {
        return Err(DropReason::ExtensionHeaders);
    }
    let backend = way.candidate.backend;
    if backend.interface == 0 {
        return Err(DropReason::NoNextHop);
    }
    let room = vlan::room(tables, backend);
    if flow.length > room {
        refuse::leave_too_big(tables, room);
        return Err(DropReason::PacketTooBig);
    }
    // Its client is remembered for as long as the service says, and not only as one that opens.
    if way.confirms && descriptor.persistence != 0 {
        let key = steer::key(&service, flow);
        let question = question(tables, in_force, flow, key)?;
        tables.ask(&question);
        tables.confirm(&question, way.candidate.id);
    }
    let bytes = packet.length_around(flow.end()) as u64;
    let (client, client_port) = (flow.source, flow.source_port);
    let port = descriptor.port_at(backend, flow.destination_port);
    let ends = Ends::both((way.address, way.port), (backend.address, port));
    if let Err(reason) = forward::rewrite(packet, flow, ends, 1) {
        if reason == DropReason::TtlExpired {
            refuse::leave_expired(tables);
        }
        return Err(reason);
    }
    syn_proxy::shift_request(packet, tables, flow, way)?;
    if flow.protocol == protocol::TCP && (flow.opens() || way.confirms) {
        let told = service
            .guard(tables, half)
            .map_or(tells::NONE, |guard| guard.translation.client_address);
        if told == tells::TCP_OPTION {
            let is_told = WHOLE && client_address::tell(packet, flow, client, client_port, room)?;
            if !is_told {
                tables.count_flow(service.index, FlowEvent::Untold);
            }
        }
    }
    forward::readdress(packet, backend.source_mac, backend.destination_mac)?;
    tables.count_service(service.index, bytes, flow.opens());
    tables.count_backend(backend, bytes, flow.opens());
    Ok(())
}

/// Begins a session of a flow that has none: by a SYN, by any datagram, and by whatever comes of a flow whose backend
/// has died, so that the next one resets it.
#[inline(always)]
fn try_begin<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
    lost: bool,
    proxied: Proxied,
) -> Result<(), DropReason> {
    let InForce { service, .. } = *in_force;
    let guarded = service.descriptor.flags & service_flag::GUARDED != 0;
    if guarded {
        admit::source(tables, in_force, flow)?;
    }
    let key = steer::key(&service, flow);
    // Else a flood of anything but SYNs would take all ports.
    if flow.protocol == protocol::TCP && !flow.opens() && !lost {
        return Err(DropReason::NoSession);
    }
    if guarded && !lost {
        // Each has a session, also while the service moves.
        admit::beginning(tables, in_force, flow)?;
    }
    if service.descriptor.ring_size == 0 {
        return Err(DropReason::NoBackend);
    }
    let question = question(tables, in_force, flow, key)?;
    let id = tables.choose(&question);
    if id == schedule::NOBODY {
        return Err(DropReason::NoBackend);
    }
    let became = match tables.begin_session(&question, id, proxied) {
        session::EXHAUSTED => tables.take_over(&question, id, proxied),
        became => became,
    };
    match became {
        session::BEGUN => {}
        session::ANOTHERS => return Ok(()),
        session::EXHAUSTED => {
            tables.count_flow(service.index, FlowEvent::PortsExhausted);
            return Err(DropReason::PortsExhausted);
        }
        _ => return Err(DropReason::Inconsistent),
    }
    if service.descriptor.persistence != 0 {
        tables.remember(&question, id);
    }
    Ok(())
}

/// What is asked of a flow that begins, or has just been established.
#[inline(always)]
fn question<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
    key: FlowKey,
) -> Result<Question, DropReason> {
    let InForce { service, half } = *in_force;
    let hash = steer::place(tables, &service, flow).ok_or(DropReason::Inconsistent)?;
    let spot = steer::spot(tables, in_force, flow.source, hash).ok_or(DropReason::Inconsistent)?;
    Ok(Question {
        key,
        hash,
        previous_hash: hash,
        slot: spot.slot,
        half,
        signal: flow.signal,
        connectionless: flow.protocol == protocol::UDP,
        over: false,
        subset: spot.subset as u8,
    })
}

/// A backend's answer on its way to the client.
#[inline(always)]
fn to_client<P: Packet, T: Tables>(packet: &mut P, tables: &T, flow: &Flow) -> Outcome {
    let key = PortKey::of_answer(flow);
    let half = (tables.generation() & 1) as u32;
    let Some(answered) = session::answered(tables, &key, half, flow.signal) else {
        return Ok(Ok(Verdict::Pass));
    };
    let watched = answered.watched();
    if tables.knows(feature::PASSIVE) && watched != 0 {
        passive::heard(packet, tables, flow, watched);
    }
    if syn_proxy::is_opened(packet, tables, flow, &answered) {
        return Err(Rest::ProxyAnswer);
    }
    let Answered {
        client,
        service: Service { descriptor, .. },
        named,
        ..
    } = answered;
    let port = descriptor.port_of(client.to);
    let vip = descriptor.vip_of(&client);
    let onward = match onward(packet, tables, flow, client.source, vip) {
        Ok(Onward::Ends(obstacle)) => return stopped(tables, obstacle),
        Ok(onward) => onward,
        Err(reason) => return Ok(Err(reason)),
    };
    let (vip, client) = ((vip, port), (client.source, client.port));
    if let Err(reason) = forward::rewrite(packet, flow, Ends::both(vip, client), 0) {
        return Ok(Err(reason));
    }
    if let Err(reason) = syn_proxy::shift_answer(packet, tables, flow, &answered) {
        return Ok(Err(reason));
    }
    if let Some(Candidate { backend, .. }) = named
        && backend.mss != mss::OFF
        && backend.interface != 0
        && mss::is_told_by(packet, flow)
    {
        tables.hand_over(Handover {
            interface: match onward {
                Onward::Sent(interface) => interface,
                Onward::Kernels | Onward::Ends(_) => 0,
            },
            offset: flow.transport as u16,
            limit: mss::limit(backend.mss, vlan::room(tables, backend), flow.v4),
        });
        return Err(Rest::Syn);
    }
    Ok(Ok(egress::leave(packet, tables, onward)))
}

/// What becomes of an answer that does not go on. None is the kernel's: that knows no connection of the pool's
/// addresses, and would reset what is one.
#[inline(always)]
fn stopped<T: Tables>(tables: &T, obstacle: Obstacle) -> Outcome {
    match obstructed(tables, obstacle) {
        reason @ DropReason::NoRoute => Ok(Err(reason)),
        _ => Err(Rest::TooBig),
    }
}

/// Why that is dropped, of which [`refuse::too_big`] is told what it is to know.
#[inline(always)]
pub(crate) fn obstructed<T: Tables>(tables: &T, obstacle: Obstacle) -> DropReason {
    match obstacle {
        Obstacle::NoRoute => DropReason::NoRoute,
        Obstacle::Expired => {
            refuse::leave_expired(tables);
            DropReason::TtlExpired
        }
        Obstacle::TooLong(room) => {
            refuse::leave_too_big(tables, room);
            DropReason::PacketTooBig
        }
    }
}

/// [`egress::onward`] to a client that the packet is not addressed to yet.
#[inline(always)]
pub fn onward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    client: Address,
    from: Address,
) -> Result<Onward, DropReason> {
    let flow = Flow {
        destination: client,
        ..*flow
    };
    egress::onward(packet, tables, &flow, from)
}
