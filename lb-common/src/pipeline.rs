//! The order of the stages, named once: parse, find the service, steer, forward, count.
//!
//! The XDP program is this function over the kernel's maps; tests run it over memory.

use crate::{
    admit,
    egress::{self, Obstacle, Onward},
    flow::{self, Family, Flow, Signal, Stop},
    forward::{self, End, Ends},
    fragment::{self, Early, Fragment},
    full_nat,
    hash::FlowHash,
    icmp, martian, mss, mtu, neighbour,
    packet::Packet,
    passive,
    quic::{self, Start},
    refuse, second_hop,
    steer::{self, InForce},
    syn_proxy,
    tables::{
        Address, Backend, Handover, Tables, WayBack, feature, mode, owned, refusal, service_flag,
    },
    verdict::{DropReason, Verdict},
    vlan,
    wire::protocol,
};

/// Decides over a frame and makes it what it becomes.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let verdict = match usual(packet, tables) {
        Err(Rest::Vlan) if vlan(packet, tables) => {
            let left = usual(packet, tables);
            go_on(packet, tables, left)
        }
        left => go_on(packet, tables, left),
    };
    sent(packet, tables, verdict)
}

/// The same for fragments that have been [held](Verdict::Held).
#[inline(always)]
pub fn process_held<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut place = Fragment::EMPTY;
    let verdict = match held(packet, tables, &mut place) {
        Err(Rest::Vlan) if vlan(packet, tables) => held(packet, tables, &mut place),
        done => done,
    };
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(rest) => go_on_with_fragment(packet, tables, &mut place, rest),
    };
    sent(packet, tables, verdict)
}

/// The verdict as it is carried out.
#[inline(always)]
fn sent<P: Packet, T: Tables>(packet: &mut P, tables: &T, verdict: Verdict) -> Verdict {
    if vlan::is_left(tables, verdict) {
        tag(packet, tables)
    } else {
        verdict
    }
}

/// All programs but those about tags.
#[inline(always)]
fn go_on<P: Packet, T: Tables>(packet: &mut P, tables: &T, left: Result<Verdict, Rest>) -> Verdict {
    let left = match left {
        Err(Rest::Sctp) => sctp(packet, tables),
        done => done,
    };
    match left {
        Ok(verdict) => verdict,
        Err(Rest::Sctp | Rest::Vlan) => Verdict::Pass,
        Err(Rest::Unusual) => match unusual(packet, tables) {
            Ok(verdict) => verdict,
            Err(Rest::Neighbour) => neighbour(packet, tables),
            Err(Rest::TunnelError) => tunnel_error(packet, tables),
            Err(_) => full_nat_error(packet, tables),
        },
        Err(Rest::Refused) => refused(packet, tables),
        Err(Rest::TooBig) => too_big(packet, tables),
        Err(Rest::Syn) => syn(packet, tables),
        Err(Rest::Fragment) => {
            let mut place = Fragment::EMPTY;
            match fragment(packet, tables, &mut place) {
                Ok(verdict) => verdict,
                Err(rest) => go_on_with_fragment(packet, tables, &mut place, rest),
            }
        }
        Err(Rest::FullNat) => translate_both(packet, tables),
        Err(
            Rest::FullNatNew
            | Rest::FullNatFragment
            | Rest::SynCookie
            | Rest::ProxySyn
            | Rest::ProxyAnswer,
        ) => Verdict::Pass,
        Err(Rest::FullNatAnswer) => translate_back(packet, tables),
        Err(Rest::FullNatError) => full_nat_error(packet, tables),
        Err(Rest::TunnelError) => tunnel_error(packet, tables),
        Err(Rest::Untranslated) => untranslated(packet, tables),
        Err(Rest::Neighbour) => neighbour(packet, tables),
        Err(Rest::SecondHop) => match second_hop(packet, tables) {
            Ok(verdict) => verdict,
            Err(Rest::Refused) => refused(packet, tables),
            Err(Rest::TooBig) => too_big(packet, tables),
            Err(_) => syn(packet, tables),
        },
    }
}

/// What [`fragment()`] and [`held`] leave.
#[inline(always)]
fn go_on_with_fragment<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    place: &mut Fragment,
    rest: Rest,
) -> Verdict {
    let mut left = Err(rest);
    loop {
        left = match left {
            Ok(verdict) => return verdict,
            Err(Rest::FullNatFragment) => full_nat_fragment(packet, tables, place),
            // Once, likewise.
            Err(Rest::FullNatNew) => full_nat_new(packet, tables, Some(place)),
            Err(Rest::TooBig) => return too_big(packet, tables),
            Err(_) => return Verdict::Pass,
        };
    }
}

/// What [`usual`] leaves to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// To [`unusual`].
    Unusual,
    /// To [`refused`].
    Refused,
    /// To [`too_big`], as is what has no hop left.
    TooBig,
    /// To [`syn`].
    Syn,
    /// To [`fragment`].
    Fragment,
    /// To [`full_nat`](full_nat()).
    FullNat,
    /// To [`full_nat_new`].
    FullNatNew,
    /// To [`full_nat_answer`].
    FullNatAnswer,
    /// To [`full_nat_fragment`].
    FullNatFragment,
    /// To [`full_nat_error`].
    FullNatError,
    /// To [`tunnel_error`].
    TunnelError,
    /// To [`untranslated`].
    Untranslated,
    /// To [`syn_cookie`].
    SynCookie,
    /// To [`proxy_syn`].
    ProxySyn,
    /// To [`proxy_answer`].
    ProxyAnswer,
    /// To [`sctp`].
    Sctp,
    /// To [`neighbour`](neighbour()).
    Neighbour,
    /// To [`second_hop`](second_hop()).
    SecondHop,
    /// To [`vlan`](vlan()), from which it comes back without its tags.
    Vlan,
}

/// The same for frames as nearly all are.
///
/// # Errors
/// It is another's, and nothing is done, or all but the rest.
#[inline(always)]
pub fn usual<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let mut verdict = Verdict::Pass;
    // Once for each family, so that neither carries the other's addresses along.
    match flow::family(packet) {
        Some(Family::V4) => follow(packet, tables, parse_v4::<P, false>, &mut verdict)?,
        Some(Family::V6) => follow(packet, tables, flow::parse_v6, &mut verdict)?,
        None if neighbour::may_be_asked(packet, tables) => return Err(Rest::Neighbour),
        None if vlan::is_tagged(packet, tables) => return Err(Rest::Vlan),
        None => {}
    }
    Ok(verdict)
}

/// The same for what [`usual`] knows nothing of, where some service is of SCTP: its packets go as others do.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn sctp<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let mut verdict = Verdict::Pass;
    let v6 = |packet: &P, flow: &mut Flow| flow::parse_v6_of(packet, flow, true);
    let done = match flow::family(packet) {
        Some(Family::V4) => follow(packet, tables, parse_v4::<P, true>, &mut verdict),
        Some(Family::V6) => follow(packet, tables, v6, &mut verdict),
        None => Ok(()),
    };
    match done {
        // It is of yet another protocol.
        Err(Rest::Sctp) if refuses(tables) => return Err(Rest::Refused),
        Ok(()) | Err(Rest::Sctp) => {}
        Err(rest) => return Err(rest),
    }
    Ok(verdict)
}

/// The same for frames that take longer to understand, apart from [`usual`] so that the kernel can have it
/// in a program of its own; so are those that follow.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn unusual<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = icmp::process(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// The same for packets of services whose backends are told who else may have a flow.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn second_hop<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = second_hop::request(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// The same for packets of clients in mode `full-nat`.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn full_nat<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = full_nat::request(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// The same for those among them that begin a session.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn full_nat_new<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    fragment: Option<&Fragment>,
) -> Result<Verdict, Rest> {
    let outcome = full_nat::begin(packet, tables, fragment)?;
    Ok(counted(tables, outcome))
}

/// The same for answers of backends in that mode.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn full_nat_answer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = full_nat::answer(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// All programs of mode `full-nat` that a client's packet goes through.
#[inline(always)]
fn translate_both<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    loop {
        match full_nat(packet, tables) {
            Ok(verdict) => return verdict,
            Err(Rest::TooBig) => return too_big(packet, tables),
            Err(Rest::Syn) => return syn(packet, tables),
            Err(Rest::ProxySyn) => match proxy_syn(packet, tables) {
                Ok(verdict) => return verdict,
                Err(_) => continue,
            },
            Err(Rest::FullNatNew) => {}
            Err(_) => return untranslated(packet, tables),
        }
        // It comes here once: what it has handed over says so.
        let begun = match full_nat_new(packet, tables, None) {
            Err(Rest::SynCookie) => syn_cookie(packet, tables),
            begun => begun,
        };
        match begun {
            Ok(verdict) => return verdict,
            Err(Rest::FullNat) => {}
            Err(_) => return untranslated(packet, tables),
        }
    }
}

/// All programs of mode `full-nat` that a backend's answer goes through.
#[inline(always)]
fn translate_back<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    loop {
        match full_nat_answer(packet, tables) {
            Ok(verdict) => return verdict,
            Err(Rest::TooBig) => return too_big(packet, tables),
            Err(Rest::ProxyAnswer) => {}
            Err(_) => return syn(packet, tables),
        }
        // Once, likewise.
        if let Ok(verdict) = proxy_answer(packet, tables) {
            return verdict;
        }
    }
}

/// The same for SYNs of clients in mode `full-nat` that are answered here, and for what answers them.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn syn_cookie<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = syn_proxy::answer(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// The same for what becomes a SYN to the backend.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn proxy_syn<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = syn_proxy::open(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// The same for what backends answer to that.
///
/// # Errors
/// As [`usual`].
#[inline(always)]
pub fn proxy_answer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Rest> {
    let outcome = syn_proxy::opened(packet, tables)?;
    Ok(counted(tables, outcome))
}

/// The same for ICMP errors about such packets.
#[inline(always)]
pub fn full_nat_error<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = icmp::full_nat(packet, tables);
    counted(tables, outcome)
}

/// The same for those that say a packet of a tunnel to be too long.
#[inline(always)]
pub fn tunnel_error<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = icmp::tunnel(packet, tables);
    counted(tables, outcome)
}

/// The same for packets of mode `full-nat` that have no port, for the reason that [`Handover`] says.
#[inline(always)]
pub fn untranslated<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = refuse::untranslated(packet, tables);
    counted(tables, outcome)
}

/// The same for frames that ask who has a VIP.
#[inline(always)]
pub fn neighbour<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = neighbour::process(packet, tables);
    counted(tables, outcome)
}

/// The same for frames that nobody takes.
#[inline(always)]
pub fn refused<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = refuse::process(packet, tables);
    counted(tables, outcome)
}

/// The same for frames that are too long for the way to their backend, or to the client of a session, or have no hop left,
/// as [`Handover`] says.
#[inline(always)]
pub fn too_big<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = refuse::too_big(packet, tables);
    counted(tables, outcome)
}

/// The end of the way of SYNs whose MSS is lowered.
#[inline(always)]
pub fn syn<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = mss::process(packet, tables);
    counted(tables, outcome)
}

/// The same for fragments of datagrams.
///
/// # Errors
/// It is too long for its way, has no hop left, or is [`full_nat_fragment`]'s.
#[inline(always)]
pub fn fragment<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    place: &mut Fragment,
) -> Result<Verdict, Rest> {
    followed(packet, tables, place, Early::Held)
}

#[inline(always)]
fn followed<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    place: &mut Fragment,
    early: Early,
) -> Result<Verdict, Rest> {
    let outcome = fragment::process(packet, tables, place, early);
    decided(tables, place, outcome)
}

/// What has become of a fragment, unless another goes on with it.
#[inline(always)]
fn decided<T: Tables>(
    tables: &T,
    place: &Fragment,
    outcome: Result<Verdict, DropReason>,
) -> Result<Verdict, Rest> {
    if let Some(rest) = place.left() {
        return Err(rest);
    }
    match outcome {
        Err(DropReason::PacketTooBig | DropReason::TtlExpired) => Err(Rest::TooBig),
        outcome => Ok(counted(tables, outcome)),
    }
}

/// The same for those of mode `full-nat`, as they have been read into `place`.
///
/// # Errors
/// It is too long for its way, has no hop left, or is [`full_nat_new`]'s, to begin a session.
#[inline(always)]
pub fn full_nat_fragment<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    place: &mut Fragment,
) -> Result<Verdict, Rest> {
    let outcome = fragment::translate(packet, tables, place);
    decided(tables, place, outcome)
}

/// The same for fragments that have been [held](Verdict::Held).
///
/// # Errors
/// It has tags, or as [`fragment()`].
#[inline(always)]
pub fn held<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    place: &mut Fragment,
) -> Result<Verdict, Rest> {
    if vlan::is_tagged(packet, tables) {
        return Err(Rest::Vlan);
    }
    followed(packet, tables, place, Early::Dropped)
}

/// Takes off a frame's VLAN tags; whether there were any. Who left it goes on with it then.
#[inline(always)]
pub fn vlan<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> bool {
    vlan::enter(packet, tables)
}

/// The end of the way of frames that leave with tags, or by what their device stands over.
#[inline(always)]
pub fn tag<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = vlan::leave(packet, tables);
    counted(tables, outcome)
}

#[inline(always)]
fn counted<T: Tables>(tables: &T, outcome: Result<Verdict, DropReason>) -> Verdict {
    let mut verdict = Verdict::Pass;
    settle(tables, &outcome, &mut verdict);
    verdict
}

/// The same in place.
#[inline(always)]
fn settle<T: Tables>(tables: &T, outcome: &Result<Verdict, DropReason>, verdict: &mut Verdict) {
    match *outcome {
        Ok(decided) => *verdict = decided,
        Err(reason) => {
            tables.count_drop(reason);
            *verdict = Verdict::Drop(reason);
        }
    }
}

/// Reads an IPv4 packet for the first time, with SCTP where that is asked for.
#[inline(always)]
fn parse_v4<P: Packet, const SCTP: bool>(packet: &P, flow: &mut Flow) -> Result<(), Stop> {
    flow::parse_v4_of(packet, flow, SCTP)?;
    flow::refuse_source_route(packet, flow)
}

/// The stages after the family is known. The verdict goes into place: returned, it would be one word for the compiler, into
/// which it puts whatever is at hand where a verdict has no number, and the kernel's verifier refuses that of a pointer.
#[inline(always)]
fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    parse: impl FnOnce(&P, &mut Flow) -> Result<(), Stop>,
    verdict: &mut Verdict,
) -> Result<(), Rest> {
    let mut flow = Flow::EMPTY;
    let outcome = match parse(packet, &mut flow) {
        // Whether it is to a VIP is found out where there is time for it.
        Ok(()) if martian::is_one(&flow) => return Err(Rest::Refused),
        Ok(()) => match steer::service(tables, &flow.to()) {
            Some(found) if is_full_nat(tables, &found) => {
                tables.hand_over(Handover::default());
                return Err(Rest::FullNat);
            }
            Some(found) if is_second_hop(tables, &found) => return Err(Rest::SecondHop),
            Some(found) => match to_backend::<false, _, _>(packet, tables, &mut flow, &found) {
                Ok(backend) if opens_with_mss(tables, &flow, backend) => {
                    let mode = found.service.descriptor.mode;
                    leave_syn(tables, &flow, mode, backend);
                    return Err(Rest::Syn);
                }
                Ok(backend) => Ok(egress::by(packet, tables, backend.interface)),
                Err(DropReason::NoBackend)
                    if found.service.descriptor.refusal() != refusal::DROP =>
                {
                    return Err(Rest::Refused);
                }
                Err(DropReason::PacketTooBig) => return Err(Rest::TooBig),
                Err(DropReason::TtlExpired) => {
                    refuse::leave_expired(tables);
                    return Err(Rest::TooBig);
                }
                Err(reason) => Err(reason),
            },
            // Before what a `nat` service of the same backend makes of its answers.
            None if full_nat::is_of_a_pool(tables, flow.destination) => {
                if tables.knows(feature::SYN_PROXY) {
                    tables.hand_over(Handover::default());
                }
                return Err(Rest::FullNatAnswer);
            }
            None => match egress::way_back(tables, flow.from()) {
                Some(way_back) => match to_client(packet, tables, &flow, way_back) {
                    // Of a flow, its handshake; nothing that ends here, as answers to probes do.
                    Ok(onward) if is_heard(tables, &way_back, onward) => {
                        passive::heard(packet, tables, &flow, way_back.watched);
                        if answers_with_mss(packet, tables, &flow, &way_back, onward) {
                            leave_answer(tables, &flow, &way_back, onward);
                            return Err(Rest::Syn);
                        }
                        Ok(egress::leave(packet, tables, onward))
                    }
                    Ok(onward) if answers_with_mss(packet, tables, &flow, &way_back, onward) => {
                        leave_answer(tables, &flow, &way_back, onward);
                        return Err(Rest::Syn);
                    }
                    outcome => outcome.map(|onward| egress::leave(packet, tables, onward)),
                },
                None if is_refused(tables, flow.destination) => return Err(Rest::Refused),
                None => Ok(Verdict::Pass),
            },
        },
        Err(Stop::Refused(DropReason::Fragment)) => return Err(Rest::Fragment),
        Err(Stop::Refused(reason)) if steer::owned(tables, flow.destination) & owned::VIP != 0 => {
            Err(reason)
        }
        Err(Stop::Unusual) => return Err(Rest::Unusual),
        Err(Stop::Foreign) if tables.knows(feature::SCTP) => return Err(Rest::Sctp),
        Err(Stop::Foreign) if refuses(tables) => return Err(Rest::Refused),
        Err(_) => Ok(Verdict::Pass),
    };
    settle(tables, &outcome, verdict);
    Ok(())
}

/// Whether packets to a VIP that no service has are anything but the kernel's.
#[inline(always)]
fn refuses<T: Tables>(tables: &T) -> bool {
    tables.uses(feature::UNKNOWN_PORTS)
}

/// Whether those to this address are.
#[inline(always)]
fn is_refused<T: Tables>(tables: &T, destination: Address) -> bool {
    refuses(tables) && refuse::is_vip_alone(steer::owned(tables, destination))
}

/// Whether a service is of mode `full-nat`.
#[inline(always)]
pub(crate) fn is_full_nat<T: Tables>(tables: &T, found: &InForce<'_>) -> bool {
    tables.knows(feature::FULL_NAT) && found.service.descriptor.mode == mode::FULL_NAT
}

/// Whether backends of a service are told who else may have a flow.
#[inline(always)]
fn is_second_hop<T: Tables>(tables: &T, found: &InForce<'_>) -> bool {
    tables.knows(feature::SECOND_HOP) && found.service.descriptor.mode == mode::SECOND_HOP
}

/// Whether an answer tells how its backend is.
#[inline(always)]
fn is_heard<T: Tables>(tables: &T, way_back: &WayBack, onward: Onward) -> bool {
    tables.knows(feature::PASSIVE) && way_back.watched != 0 && !matches!(onward, Onward::Ends(_))
}

/// Whether a packet that goes to a backend has an MSS that may have to be lowered.
#[inline(always)]
pub(crate) fn opens_with_mss<T: Tables>(tables: &T, flow: &Flow, backend: &Backend) -> bool {
    tables.knows(feature::MSS)
        && flow.opens()
        && backend.mss != mss::OFF
        && flow.protocol == protocol::TCP
}

/// Leaves it to [`syn`], in the frame that `mode` has made of it.
#[inline(always)]
pub(crate) fn leave_syn<T: Tables>(tables: &T, flow: &Flow, mode: u8, backend: &Backend) {
    let before = mtu::overhead(mode, backend.address.is_v4());
    tables.hand_over(Handover {
        interface: backend.interface,
        offset: flow.transport as u16 + before,
        limit: mss::limit(backend.mss, vlan::room(tables, backend), flow.v4),
    });
}

/// Whether a `nat` backend's answer has one.
#[inline(always)]
fn answers_with_mss<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow,
    way_back: &WayBack,
    onward: Onward,
) -> bool {
    tables.knows(feature::MSS)
        && way_back.mss != mss::OFF
        && !matches!(onward, Onward::Ends(_))
        && mss::is_told_by(packet, flow)
}

/// Leaves that to [`syn`].
#[inline(always)]
fn leave_answer<T: Tables>(tables: &T, flow: &Flow, way_back: &WayBack, onward: Onward) {
    tables.hand_over(Handover {
        interface: match onward {
            Onward::Sent(interface) => interface,
            Onward::Kernels | Onward::Ends(_) => 0,
        },
        offset: flow.transport as u16,
        limit: way_back.mss,
    });
}

/// A client's packet on its way to a backend, which is whose it has become; in mode [`mode::SECOND_HOP`] if `TELLING`, and
/// never else.
#[inline(always)]
pub(crate) fn to_backend<'t, const TELLING: bool, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &'t T,
    flow: &mut Flow,
    in_force: &InForce<'t>,
) -> Result<&'t Backend, DropReason> {
    let service = &in_force.service;
    let hash = steer::place(tables, service, flow).ok_or(DropReason::Inconsistent)?;
    let backend = backend(packet, tables, flow, in_force, hash)?;
    if backend.interface == 0 {
        return Err(DropReason::NoNextHop);
    }
    let room = vlan::room(tables, backend);
    if flow.length > room {
        refuse::leave_too_big(tables, room);
        return Err(DropReason::PacketTooBig);
    }
    let bytes = packet.length_around(flow.end()) as u64;
    let mode = service.descriptor.mode;
    if tables.knows(feature::PASSIVE) && service.descriptor.sampling() != 0 {
        passive::watch(packet, tables, flow, service.descriptor, backend, hash);
    }
    if TELLING {
        let other = steer::other(tables, in_force, flow, hash, backend);
        egress::in_gue(packet, tables, flow, backend, hash, Some(other))?;
    } else if tables.knows(feature::NAT) && mode == mode::NAT {
        let port = service.descriptor.port_at(backend, flow.destination_port);
        translate(packet, flow, backend, port)?;
    } else {
        egress::deliver(packet, tables, flow, mode, backend, hash)?;
    }
    tables.count_service(service.index, bytes, flow.opens());
    tables.count_backend(backend, bytes, flow.opens());
    Ok(backend)
}

/// Who takes a client's packet, if it may come. Of a QUIC service, its connection id may say so, and what it opens.
///
/// # Errors
/// As [`steer::backend`], [`admit::source`] and [`admit::flow`].
#[inline(always)]
pub(crate) fn backend<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    flow: &mut Flow,
    in_force: &InForce<'t>,
    hash: FlowHash,
) -> Result<&'t Backend, DropReason> {
    if !tables.knows(feature::GUARDS | feature::QUIC) {
        return steer::backend(tables, in_force, flow, hash);
    }
    let descriptor = in_force.service.descriptor;
    let guarded = tables.knows(feature::GUARDS) && descriptor.flags & service_flag::GUARDED != 0;
    if guarded {
        admit::source(tables, in_force, flow)?;
    }
    let mut named = quic::STEER;
    if tables.knows(feature::QUIC)
        && descriptor.quic != 0
        && let Some(start) = Start::read(packet, flow)
    {
        named = tables.route_by_id(in_force.service.index, in_force.half, start);
    }
    if named == quic::OPENS {
        flow.signal = Signal::Opens;
    }
    if guarded {
        admit::flow(tables, in_force, flow)?;
    }
    match named {
        quic::STEER | quic::OPENS => steer::backend(tables, in_force, flow, hash),
        index => tables.backend(index).ok_or(DropReason::Inconsistent),
    }
}

#[inline(always)]
fn translate<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    backend: &Backend,
    port: u16,
) -> Result<(), DropReason> {
    // It would arrive with an address that its sender has not vouched for.
    if flow::is_authenticated(packet, flow) {
        return Err(DropReason::ExtensionHeaders);
    }
    let ends = Ends::one(End::Destination, backend.address, port);
    forward::rewrite(packet, flow, ends, 1)?;
    forward::readdress(packet, backend.source_mac, backend.destination_mac)
}

/// A `nat` backend's answer on its way to the client.
#[inline(always)]
fn to_client<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    way_back: WayBack,
) -> Result<Onward, DropReason> {
    // Answers to our own probes.
    if steer::owned_alone(tables, flow.destination) & owned::LOCAL != 0 {
        return Ok(Onward::Ends(Obstacle::NoRoute));
    }
    let onward = egress::onward(packet, tables, flow, way_back.address)?;
    if !matches!(onward, Onward::Ends(_)) {
        let ends = Ends::one(End::Source, way_back.address, way_back.port);
        forward::rewrite(packet, flow, ends, 0)?;
    }
    Ok(onward)
}
