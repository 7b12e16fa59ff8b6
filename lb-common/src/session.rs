//! Sessions of mode `full-nat`: which backend a flow has, and from which address and port of the pool it comes
//! there. Unlike in any other mode, every flow is kept, since nothing else says how its answers get back.
//!
//! A session is in two tables: under the flow of the client's packets, with all that is known of it, and under the
//! ends that the backend sees, which only says whose session it is. The second one is how a port is taken:
//! inserting it succeeds for one flow alone, however many processors try it. So two flows have the same
//! address and port only where their backends differ.
//!
//! What must hold: a port is claimed before its session is kept, and given back after it is gone; a session of
//! which packets came in time stays as it is while its backend holds flows; packets of either end keep it.
//! What has expired is nobody's: it leaves by the agent's sweep, both entries together, or by a flow that
//! finds no other port. A session that is there is replaced or removed, and its port given to another flow, only by who has
//! the port's lock, and that is whoever has inserted it.

use crate::{
    flow::Signal,
    hash::{self, FlowHash},
    steer::{self, Candidate, Service},
    tables::{
        Address, Descriptor, FlowEvent, FlowKey, PoolKey, PortKey, Proxied, Record, Recorded,
        SECOND, Session, Tables, Tick, Translation, feature, mode, record_flag, service_flag,
    },
    track::{OPENING_LIFETIME, Question, RESET_LIFETIME},
    wire::protocol,
};

/// Ports tried for a flow before it is given up. With a share `u` of the pool's ports taken at a backend, one
/// flow of `u⁻³²` finds none: one of 30 at 90 %, one of 1,300 at 80 %.
pub const ATTEMPTS: u32 = 32;
/// How long a session is kept after the last packet once one end has sent a FIN: longer than the other usually has
/// left to say.
pub const HALF_CLOSED_LIFETIME: Tick = 120 * SECOND;
/// The same once both have: as long as Linux holds such a connection (TIME-WAIT, RFC 9293 §3.6.1), which
/// would take a new one from the same port for its own.
pub const CLOSED_LIFETIME: Tick = 60 * SECOND;

/// Flags of a session that one end has ended.
const ENDED: u16 = record_flag::FINISHED
    | record_flag::RESET
    | record_flag::BACKEND_FINISHED
    | record_flag::BACKEND_RESET;

/// Which end a packet is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client's.
    Client,
    /// The backend's.
    Backend,
}

/// How long a session lives after its last packet, of either end, given its service's moving time.
#[inline(always)]
pub const fn lifetime(flags: u16, moving_time: Tick) -> Tick {
    const RESET: u16 = record_flag::RESET | record_flag::BACKEND_RESET;
    const BOTH: u16 = record_flag::FINISHED | record_flag::BACKEND_FINISHED;
    let most = if flags & RESET != 0 {
        RESET_LIFETIME
    } else if flags & BOTH == BOTH {
        // However short flows may be idle, the backend's end of it lasts so long.
        return CLOSED_LIFETIME;
    } else if flags & BOTH != 0 {
        HALF_CLOSED_LIFETIME
    } else if flags & record_flag::OPENING != 0 {
        OPENING_LIFETIME
    } else {
        moving_time
    };
    if most < moving_time {
        most
    } else {
        moving_time
    }
}

/// Whether a session counts at a time.
#[inline(always)]
pub const fn live(record: &Record, now: Tick, moving_time: Tick) -> bool {
    // Signed: another CPU may be a tick ahead.
    (now.wrapping_sub(record.stamp) as i32) < lifetime(record.flags, moving_time) as i32
}

/// Whether an end has ended it: a client that opens a connection now begins another.
#[inline(always)]
pub const fn ended(flags: u16) -> bool {
    flags & ENDED != 0
}

/// What a packet of an end makes of a session's flags: those that it takes off and those that it sets. A RST is taken back
/// by what follows it from the same end, as it may have been forged; a FIN is not, as acknowledgements follow it.
#[inline(always)]
pub const fn change(end: End, signal: Signal) -> (u16, u16) {
    let (finished, reset) = match end {
        End::Client => (record_flag::FINISHED, record_flag::RESET),
        End::Backend => (record_flag::BACKEND_FINISHED, record_flag::BACKEND_RESET),
    };
    // Only the client's own acknowledgement makes more of an opening.
    let opening = match end {
        End::Client => record_flag::OPENING,
        End::Backend => 0,
    };
    match signal {
        Signal::Opens | Signal::Hearsay => (0, 0),
        Signal::None => (opening | reset, 0),
        Signal::Finishes => (record_flag::COUNTED | opening | reset, finished),
        Signal::Resets => (record_flag::COUNTED, reset),
    }
}

/// Makes that of the flags of a flow's session, where they are not so already: what they were, and what they are. Both ends
/// may do so at once, on two CPUs, and neither's is lost; so who finds a flag that it takes off is the only one who does.
#[inline(always)]
fn amend<T: Tables>(
    tables: &T,
    flow: &FlowKey,
    flags: u16,
    (clear, set): (u16, u16),
) -> (u16, u16) {
    if flags & clear == 0 && flags & set == set {
        return (flags, flags);
    }
    let amended = tables.visit_session(flow, |session| {
        let before = tables.clear_flags(&mut session.record, clear);
        let then = tables.set_flags(&mut session.record, set);
        before & clear | then & !clear
    });
    match amended {
        Some(before) => (before, before & !clear | set),
        // It has just gone, by who takes care of the rest.
        None => (0, 0),
    }
}

/// How a flow's packets reach its backend.
#[derive(Debug, Clone, Copy)]
pub struct Way<'t> {
    /// The backend.
    pub candidate: Candidate<'t>,
    /// The address of the pool that they come from there.
    pub address: Address,
    /// The port, as in [`Endpoint::port`](crate::tables::Endpoint::port).
    pub port: u16,
    /// Whether this is the first packet after those that open the connection.
    pub confirms: bool,
    /// Bits of [`record_flag`], as before it.
    pub flags: u16,
    /// [`Proxied::shift`].
    pub shift: u32,
}

/// What is known of a flow.
#[derive(Debug, Clone, Copy)]
pub enum Known<'t> {
    /// It has a session.
    Session(Way<'t>),
    /// It had one, with a backend that has died, or takes no connection that is opened only now.
    Lost,
    /// Nothing that counts.
    Nothing,
}

/// A flow's session, noting a packet of the client's in it; of hearsay, nothing.
#[inline(always)]
pub fn look<'t, T: Tables>(
    tables: &'t T,
    service: &Service<'t>,
    key: &FlowKey,
    signal: Signal,
) -> Known<'t> {
    let (now, descriptor) = (tables.now(), service.descriptor);
    let proxies = tables.knows(feature::SYN_PROXY);
    let found = tables.visit_session(key, |session| {
        let record = session.record;
        let opens = signal == Signal::Opens;
        let stays = live(&record, now, descriptor.moving_time) && !(opens && ended(record.flags));
        if stays && signal != Signal::Hearsay {
            session.record.stamp = now;
        }
        let shift = if proxies { session.proxied.shift } else { 0 };
        (stays, record, session.address, session.port, shift)
    });
    let Some((true, record, address, port, shift)) = found else {
        return Known::Nothing;
    };
    let signal = heeded(proxies, record.flags, signal);
    // Not above, where more of it would make a function of its own.
    if proxies && (reopened(record.flags, signal) || signal == Signal::Opens && ended(record.flags))
    {
        return Known::Nothing;
    }
    let (clear, mut set) = change(End::Client, signal);
    // Also one that has begun before flows were counted.
    if signal != Signal::Hearsay && counts(descriptor) && !ended(record.flags & !clear | set) {
        set |= record_flag::COUNTED;
    }
    let (before, after) = amend(tables, key, record.flags, (clear, set));
    let named = steer::named(tables, descriptor, &record);
    recount(tables, named.as_ref(), before, after);
    match named {
        Some(candidate) if candidate.holds() && (candidate.takes() || signal != Signal::Opens) => {
            Known::Session(Way {
                candidate,
                address,
                port,
                confirms: before & !after & record_flag::OPENING != 0,
                flags: record.flags,
                shift,
            })
        }
        // Its backend has seen none of it: whoever gets it may begin it.
        _ if proxies && record.flags & record_flag::AWAITS != 0 => Known::Nothing,
        _ => Known::Lost,
    }
}

/// What a client's packet says of a session: until its backend has answered, whatever has come but a RST is as good as the SYN
/// that it becomes ([`crate::syn_proxy`]).
#[inline(always)]
const fn heeded(proxies: bool, flags: u16, signal: Signal) -> Signal {
    match signal {
        Signal::None | Signal::Finishes if proxies && flags & record_flag::AWAITS != 0 => {
            Signal::Opens
        }
        signal => signal,
    }
}

/// Whether a client's packet is rather of the connection that a cookie has been sent for.
#[inline(always)]
const fn reopened(flags: u16, signal: Signal) -> bool {
    flags & record_flag::REOPENS != 0 && matches!(signal, Signal::None | Signal::Finishes)
}

/// Notes that a SYN of a flow is answered by a cookie. Changes no more than a flag of what is there.
#[inline(always)]
pub fn reopen<T: Tables>(tables: &T, flow: &FlowKey) {
    tables.visit_session(flow, |session| {
        if session.record.flags & record_flag::REOPENS == 0 {
            tables.set_flags(&mut session.record, record_flag::REOPENS);
        }
    });
}

/// What is known of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'t> {
    /// The client's flow.
    pub client: FlowKey,
    /// Its service.
    pub service: Service<'t>,
    /// The backend that has it, while it has its place.
    pub named: Option<Candidate<'t>>,
    /// Whether the client has done nothing but open it, so that this may be what comes of that.
    pub opening: bool,
    /// Bits of [`record_flag`], as before it.
    pub flags: u16,
    /// What is to be known of [`Proxied`].
    pub proxied: Numbers,
}

/// What an answer's sequence number becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// By so much another.
    Shifted(u32),
    /// This one, whatever it was: that of the first byte, where the backend has begun with none.
    First(u32),
}

impl Answered<'_> {
    /// Index of the backend's counters + 1 where this shows how it is ([`crate::passive`]); else 0. Whether it does
    /// is the descriptor's to say, as nothing is watched of clients in this mode.
    #[inline(always)]
    pub fn watched(&self) -> u32 {
        match self.named {
            Some(candidate) if self.opening && self.service.descriptor.sampling() != 0 => {
                candidate.backend.counters.wrapping_add(1)
            }
            _ => 0,
        }
    }
}

/// The session that an answer is of, noting it there. `None` where there is none.
#[inline(always)]
pub fn answered<'t, T: Tables>(
    tables: &'t T,
    key: &PortKey,
    half: u32,
    signal: Signal,
) -> Option<Answered<'t>> {
    let flow = tables.port(key)?;
    let service = Service::at(tables, flow.service.into(), half)?;
    // Its service may have gone, got another mode, or turned into another.
    let descriptor = service.descriptor;
    if descriptor.protocol != key.protocol || descriptor.mode != mode::FULL_NAT {
        return None;
    }
    let (now, moving_time) = (tables.now(), service.descriptor.moving_time);
    let proxies = tables.knows(feature::SYN_PROXY);
    let found = tables.visit_session(&flow, |session| {
        let record = session.record;
        let number = match record.flags & record_flag::AWAITS {
            _ if !proxies => 0,
            0 => session.proxied.shift,
            _ => session.proxied.cookie.wrapping_add(1),
        };
        let stays = session.port == key.port
            && session.address == key.address
            && session.backend == key.backend
            && session.backend_port == key.backend_port
            && live(&record, now, moving_time);
        if stays && signal != Signal::Hearsay {
            session.record.stamp = now;
        }
        (stays, record, number)
    });
    let Some((true, record, number)) = found else {
        return None;
    };
    let change = change(End::Backend, signal);
    let (before, after) = amend(tables, &flow, record.flags, change);
    let named = steer::named(tables, service.descriptor, &record);
    recount(tables, named.as_ref(), before, after);
    Some(Answered {
        client: flow,
        service,
        named,
        opening: before & record_flag::OPENING != 0,
        flags: record.flags,
        proxied: if record.flags & record_flag::AWAITS == 0 {
            Numbers::Shifted(number)
        } else {
            Numbers::First(number)
        },
    })
}

/// Whether the flows of a service are counted.
#[inline(always)]
const fn counts(descriptor: &Descriptor) -> bool {
    descriptor.flags & service_flag::COUNTED != 0
}

/// Counts a flow in or out where its flags begin or cease to say that it is counted at its backend.
#[inline(always)]
fn recount<T: Tables>(tables: &T, named: Option<&Candidate<'_>>, before: u16, after: u16) {
    let change = match (
        before & record_flag::COUNTED != 0,
        after & record_flag::COUNTED != 0,
    ) {
        (false, true) => 1,
        (true, false) => -1,
        _ => return,
    };
    if let Some(candidate) = named {
        tables.add_load(candidate.backend.counters, change);
    }
}

/// What [`begin`] and [`take_over`] say: there is a session.
pub const BEGUN: u32 = 0;
/// The same: no port was free, or there was no room.
pub const EXHAUSTED: u32 = 1;
/// The same: something is not as it should be.
pub const INCONSISTENT: u32 = 2;
/// The same: another CPU has just begun one, or is at it.
pub const ANOTHERS: u32 = 3;

/// Begins a session of the flow that is asked about, with the backend of a local id, from a port that is nobody's or that
/// it has. One of the words above; to be called through [`Tables::begin_session`].
#[inline(always)]
pub fn begin<T: Tables>(
    tables: &T,
    question: &Question,
    id: u32,
    proxied: Proxied,
    place: &mut Opening,
) -> u32 {
    place.session.proxied = proxied;
    try_begin(tables, question, id, place).unwrap_or(INCONSISTENT)
}

/// Begins one, where [`begin`] found no port or no room, in the place of one that has expired. The same words; to be called
/// through [`Tables::take_over`].
///
/// Where an agent runs, its sweep has left few of them. Without one, they are what a flood has left.
#[inline(always)]
pub fn take_over<T: Tables>(
    tables: &T,
    question: &Question,
    id: u32,
    proxied: Proxied,
    place: &mut Opening,
) -> u32 {
    place.session.proxied = proxied;
    try_take_over(tables, question, id, place).unwrap_or(INCONSISTENT)
}

/// What a session begins with, which the kernel's programs have off their stack.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Opening {
    /// The session.
    session: Session,
    /// The port that is tried.
    port: PortKey,
    /// The port of what stands in its place.
    former: PortKey,
    /// The lock that is taken out.
    lock: PortKey,
    /// Whose the port is.
    holder: FlowKey,
}

/// A session that is to begin.
struct Asked<'t> {
    service: Service<'t>,
    candidate: Candidate<'t>,
    translation: &'t Translation,
    /// Which ports are tried depends on nothing else.
    hash: FlowHash,
}

/// Makes it, without a port. Whether its handshake was answered here is in place.
#[inline(always)]
fn ask<'t, T: Tables>(
    tables: &'t T,
    question: &Question,
    id: u32,
    session: &mut Session,
) -> Option<Asked<'t>> {
    let service = Service::at(tables, question.key.service.into(), question.half)?;
    let descriptor = service.descriptor;
    let candidate = steer::candidate(tables, descriptor, id)?;
    let translation = &service.guard(tables, question.half)?.translation;
    let to = descriptor.port_of(question.key.to);
    session.record = first(tables, &service, question, &candidate);
    if session.proxied.mss != 0 {
        session.record.flags |= record_flag::PROXIED | record_flag::AWAITS;
    }
    session.backend = candidate.backend.address;
    session.backend_port = descriptor.port_at(candidate.backend, to);
    session.pool = translation.pool;
    session.protocol = descriptor.protocol;
    session.zero = 0;
    let flow = &question.key;
    let ports = (u32::from(flow.port) << 16) | u32::from(to);
    let secret = &tables.control()?.hash_key;
    let hash = hash::flow(
        secret,
        &flow.source,
        &session.backend,
        ports,
        session.protocol,
    );
    Some(Asked {
        service,
        candidate,
        translation,
        hash,
    })
}

#[inline(always)]
fn try_begin<T: Tables>(
    tables: &T,
    question: &Question,
    id: u32,
    place: &mut Opening,
) -> Option<u32> {
    let asked = ask(tables, question, id, &mut place.session)?;
    match succeed(tables, &asked, question, place) {
        Former::Renewed => return Some(begun(tables, &asked, &place.session)),
        Former::Anothers => return Some(ANOTHERS),
        Former::None => {}
    }
    for attempt in 0..ATTEMPTS {
        if asked.translation.addresses == 0 {
            break;
        }
        aim(tables, &asked, attempt, place)?;
        match tables.claim_port(&place.port, &question.key) {
            Recorded::Done => return Some(keep(tables, &asked, &question.key, place)),
            Recorded::Taken => {}
            Recorded::Full => break,
        }
    }
    Some(EXHAUSTED)
}

#[inline(always)]
fn try_take_over<T: Tables>(
    tables: &T,
    question: &Question,
    id: u32,
    place: &mut Opening,
) -> Option<u32> {
    let asked = ask(tables, question, id, &mut place.session)?;
    for attempt in 0..ATTEMPTS {
        if asked.translation.addresses == 0 {
            break;
        }
        aim(tables, &asked, attempt, place)?;
        if usurp(tables, question, place) {
            return Some(keep(tables, &asked, &question.key, place));
        }
    }
    Some(EXHAUSTED)
}

/// Which port is tried at an attempt.
#[inline(always)]
fn aim<T: Tables>(tables: &T, asked: &Asked<'_>, attempt: u32, place: &mut Opening) -> Option<()> {
    let Opening { session, port, .. } = place;
    let (index, number) = self::place(asked.translation, asked.hash.word(), attempt);
    let pool = session.pool.into();
    session.address = tables.pool_address(&PoolKey { pool, index })?;
    session.port = number.to_be();
    *port = session.port_key();
    Some(())
}

/// Keeps a session whose port has been taken for it.
#[inline(always)]
fn keep<T: Tables>(tables: &T, asked: &Asked<'_>, flow: &FlowKey, place: &Opening) -> u32 {
    match tables.put_session(flow, &place.session) {
        Recorded::Done => begun(tables, asked, &place.session),
        // Another CPU has been faster, with a port of its own.
        Recorded::Taken => {
            tables.release_port(&place.port);
            ANOTHERS
        }
        Recorded::Full => {
            tables.release_port(&place.port);
            EXHAUSTED
        }
    }
}

/// Counts a session that has begun.
#[inline(always)]
fn begun<T: Tables>(tables: &T, asked: &Asked<'_>, session: &Session) -> u32 {
    tables.count_flow(asked.service.index, FlowEvent::Recorded);
    recount(tables, Some(&asked.candidate), 0, session.record.flags);
    BEGUN
}

/// What has become of a session that stood in the place of one that begins.
enum Former {
    /// There is none, or none any more.
    None,
    /// It has begun anew, from the same port.
    Renewed,
    /// Another CPU is at it, or has just begun it.
    Anothers,
}

/// Takes the place of a session that has ended, has expired or is lost.
#[inline(always)]
fn succeed<T: Tables>(
    tables: &T,
    asked: &Asked<'_>,
    question: &Question,
    place: &mut Opening,
) -> Former {
    let flow = &question.key;
    let former = tables.visit_session(flow, |before| before.port_key());
    let Some(former) = former else {
        return Former::None;
    };
    place.former = former;
    place.lock = former.lock();
    if tables.claim_port(&place.lock, flow) != Recorded::Done {
        return Former::Anothers;
    }
    let became = replace(tables, asked, question, place);
    tables.release_port(&place.lock);
    became
}

/// The same under its port's lock.
#[inline(always)]
fn replace<T: Tables>(
    tables: &T,
    asked: &Asked<'_>,
    question: &Question,
    place: &Opening,
) -> Former {
    let flow = &question.key;
    let descriptor = asked.service.descriptor;
    let visited = tables.visit_session(flow, |before| {
        let is_it = before.port_key() == place.former;
        (before.record, before.pool, is_it)
    });
    // The sweep, or who has the port now, may have taken it out.
    let Some((record, pool, is_it)) = visited else {
        return Former::None;
    };
    let named = steer::named(tables, descriptor, &record);
    let opens = question.signal == Signal::Opens;
    let holds = named.is_some_and(|named| named.holds() && (named.takes() || !opens));
    let goes_on =
        live(&record, tables.now(), descriptor.moving_time) && !(opens && ended(record.flags));
    if !is_it || (goes_on && holds) {
        return Former::Anothers;
    }
    remove_count(tables, flow, record.flags, named.as_ref());
    let has_port = tables.port(&place.former) == Some(*flow);
    // The same ends, from which the backend has seen the last of what was before.
    let same = place.former.backend == place.session.backend
        && place.former.backend_port == place.session.backend_port
        && pool == place.session.pool;
    if same && has_port {
        let renew = |session: &mut Session| {
            session.proxied = place.session.proxied;
            session.record = place.session.record;
        };
        return match tables.visit_session(flow, renew) {
            Some(()) => Former::Renewed,
            None => Former::None,
        };
    }
    tables.remove_session(flow);
    if has_port {
        tables.release_port(&place.former);
    }
    Former::None
}

/// Takes a session that goes off its backend's flows.
#[inline(always)]
fn remove_count<T: Tables>(tables: &T, flow: &FlowKey, flags: u16, named: Option<&Candidate<'_>>) {
    let (before, after) = amend(tables, flow, flags, (record_flag::COUNTED, 0));
    recount(tables, named, before, after);
}

/// Takes a port from a flow whose session has expired, and that session with it; whether it has.
#[inline(always)]
fn usurp<T: Tables>(tables: &T, question: &Question, place: &mut Opening) -> bool {
    let (flow, half) = (&question.key, question.half);
    let Some(holder) = tables.port(&place.port) else {
        return false;
    };
    place.holder = holder;
    place.lock = place.port.lock();
    if expired(tables, place, half).is_none()
        || tables.claim_port(&place.lock, flow) != Recorded::Done
    {
        return false;
    }
    // It may have changed hands until just now, and cannot from here on.
    let mut done = false;
    if tables.port(&place.port) == Some(place.holder)
        && let Some((service, record)) = expired(tables, place, half)
    {
        let named = steer::named(tables, service.descriptor, &record);
        remove_count(tables, &place.holder, record.flags, named.as_ref());
        tables.remove_session(&place.holder);
        done = tables.hand_port_on(&place.port, flow);
    }
    tables.release_port(&place.lock);
    done
}

/// The session that has the port, where it has expired so long ago that no packet can still be about to renew it.
#[inline(always)]
fn expired<'t, T: Tables>(
    tables: &'t T,
    place: &Opening,
    half: u32,
) -> Option<(Service<'t>, Record)> {
    let service = Service::at(tables, place.holder.service.into(), half)?;
    let descriptor = service.descriptor;
    // What is none of this mode any more is the sweep's.
    if descriptor.mode != mode::FULL_NAT || descriptor.protocol != place.port.protocol {
        return None;
    }
    let before = tables.now().wrapping_sub(SECOND);
    let (record, is_it) = tables.visit_session(&place.holder, |session| {
        (session.record, session.port_key() == place.port)
    })?;
    (is_it && !live(&record, before, descriptor.moving_time)).then_some((service, record))
}

/// How a session begins.
#[inline(always)]
fn first<T: Tables>(
    tables: &T,
    service: &Service<'_>,
    question: &Question,
    candidate: &Candidate<'_>,
) -> Record {
    let mut flags = match question.signal {
        Signal::Opens if service.descriptor.protocol == protocol::TCP => record_flag::OPENING,
        signal => change(End::Client, signal).1,
    };
    if counts(service.descriptor) && !ended(flags) {
        flags |= record_flag::COUNTED;
    }
    let now = tables.now();
    Record {
        member: candidate.id as u16,
        flags,
        generation: candidate.member.generation,
        stamp: now,
        since: now,
    }
}

/// Which address of a pool, and which port of it in host order, is tried for a flow at an attempt.
#[inline(always)]
pub const fn place(translation: &Translation, hash: u64, attempt: u32) -> (u32, u16) {
    // Every attempt is another permutation, so that flows that meet once part again.
    let word = hash::finish(hash ^ ((attempt as u64) << 32 | attempt as u64));
    let address = ((word >> 32) * translation.addresses as u64) >> 32;
    let port = ((word & 0xffff_ffff) * translation.ports() as u64) >> 32;
    (
        address as u32,
        translation.first_port.wrapping_add(port as u16),
    )
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
