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
//! What has expired is nobody's, and leaves by the agent's sweep, both entries together.

use crate::{
    flow::Signal,
    hash,
    steer::{self, Candidate, Service},
    tables::{
        Address, FlowEvent, FlowKey, PoolKey, PortKey, Record, Recorded, SECOND, Session, Tables,
        Tick, Translation, mode, record_flag, service_flag,
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

/// A session's flags after a packet of an end. A RST is taken back by what follows it from the same end, as it may
/// have been forged; a FIN is not, as acknowledgements follow it.
#[inline(always)]
pub const fn noted(flags: u16, end: End, signal: Signal) -> u16 {
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
        Signal::Opens | Signal::Hearsay => flags,
        Signal::None => flags & !(opening | reset),
        Signal::Finishes => flags & !(record_flag::COUNTED | opening | reset) | finished,
        Signal::Resets => flags & !record_flag::COUNTED | reset,
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
    let (now, moving_time) = (tables.now(), service.descriptor.moving_time);
    let found = tables.visit_session(key, |session| {
        let before = session.record.flags;
        let opens = signal == Signal::Opens;
        let stays = live(&session.record, now, moving_time) && !(opens && ended(before));
        if stays && signal != Signal::Hearsay {
            session.record.stamp = now;
            session.record.flags = noted(before, End::Client, signal);
        }
        (stays, before, session.record, session.address, session.port)
    });
    let Some((true, before, record, address, port)) = found else {
        return Known::Nothing;
    };
    let named = steer::named(tables, service.descriptor, &record);
    uncount(tables, named.as_ref(), before, record.flags);
    match named {
        Some(candidate) if candidate.holds() && (candidate.takes() || signal != Signal::Opens) => {
            Known::Session(Way {
                candidate,
                address,
                port,
                confirms: before & !record.flags & record_flag::OPENING != 0,
            })
        }
        _ => Known::Lost,
    }
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
    let found = tables.visit_session(&flow, |session| {
        let before = session.record.flags;
        let stays = session.port == key.port
            && session.address == key.address
            && session.backend == key.backend
            && session.backend_port == key.backend_port
            && live(&session.record, now, moving_time);
        if stays && signal != Signal::Hearsay {
            session.record.stamp = now;
            session.record.flags = noted(before, End::Backend, signal);
        }
        (stays, before, session.record)
    });
    let Some((true, before, record)) = found else {
        return None;
    };
    let named = steer::named(tables, service.descriptor, &record);
    uncount(tables, named.as_ref(), before, record.flags);
    Some(Answered {
        client: flow,
        service,
        named,
        opening: before & record_flag::OPENING != 0,
    })
}

/// Takes a flow off its backend's where its flags cease to say that it counts there.
#[inline(always)]
fn uncount<T: Tables>(tables: &T, named: Option<&Candidate<'_>>, before: u16, after: u16) {
    if before & !after & record_flag::COUNTED != 0
        && let Some(candidate) = named
    {
        tables.add_load(candidate.backend.counters, -1);
    }
}

/// What [`begin`] says: there is a session.
pub const BEGUN: u32 = 0;
/// The same: no port was free, or there was no room.
pub const EXHAUSTED: u32 = 1;
/// The same: something is not as it should be.
pub const INCONSISTENT: u32 = 2;

/// Begins a session of the flow that is asked about, with the backend of a local id. One of the three words above; to
/// be called through [`Tables::begin_session`].
#[inline(always)]
pub fn begin<T: Tables>(tables: &T, question: &Question, id: u32, place: &mut Opening) -> u32 {
    match try_begin(tables, question, id, place) {
        Some(done) => done,
        None => INCONSISTENT,
    }
}

/// What a session begins with, which the kernel's program has off its stack.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Opening {
    /// The session.
    session: Session,
    /// The port that is tried.
    port: PortKey,
    /// The port of what stood in its place.
    former: PortKey,
}

#[inline(always)]
fn try_begin<T: Tables>(
    tables: &T,
    question: &Question,
    id: u32,
    place: &mut Opening,
) -> Option<u32> {
    let service = Service::at(tables, question.key.service.into(), question.half)?;
    let descriptor = service.descriptor;
    let candidate = steer::candidate(tables, descriptor, id)?;
    let translation = &service.guard(tables, question.half)?.translation;
    let to = descriptor.port_of(question.key.to);
    let session = &mut place.session;
    session.record = first(tables, &service, question, &candidate);
    session.backend = candidate.backend.address;
    session.backend_port = descriptor.port_at(candidate.backend, to);
    session.pool = translation.pool;
    session.protocol = descriptor.protocol;
    session.zero = 0;
    let before = former(tables, &service, question, place);
    // The same ends, from which the backend has seen the last of what was before. The sweep may have taken it out just now.
    let renew = |session: &mut Session| session.record = place.session.record;
    let renewed = before.stays && tables.visit_session(&question.key, renew).is_some();
    if !renewed {
        let Some(new) = claim(tables, &question.key, translation, to, place) else {
            tables.count_flow(service.index, FlowEvent::PortsExhausted);
            return Some(EXHAUSTED);
        };
        match tables.put_session(&question.key, &place.session, before.is_there) {
            Recorded::Done => {}
            Recorded::Taken => {
                // Another CPU has been faster, with another backend where this port is not its own.
                if new {
                    give_back(tables, &question.key, &place.port);
                }
                return Some(BEGUN);
            }
            Recorded::Full => {
                if new {
                    tables.release_port(&place.port);
                }
                tables.count_flow(service.index, FlowEvent::PortsExhausted);
                return Some(EXHAUSTED);
            }
        }
        // Unless the sweep has released it already, and it is another flow's since.
        if before.is_there
            && place.former != place.port
            && is_of(tables, &place.former, &question.key)
        {
            tables.release_port(&place.former);
        }
    }
    tables.count_flow(service.index, FlowEvent::Recorded);
    if place.session.record.flags & record_flag::COUNTED != 0 {
        tables.add_load(candidate.backend.counters, 1);
    }
    Some(BEGUN)
}

/// What stands in the place of a session that begins.
struct Former {
    /// Whether anything does.
    is_there: bool,
    /// Whether it has the same backend and a port of the same pool, which it goes on with.
    stays: bool,
}

/// Looks for it, and takes it off its backend's flows.
#[inline(always)]
fn former<T: Tables>(
    tables: &T,
    service: &Service<'_>,
    question: &Question,
    place: &mut Opening,
) -> Former {
    let visited = tables.visit_session(&question.key, |before| {
        let flags = before.record.flags;
        before.record.flags = flags & !record_flag::COUNTED;
        place.former = before.port_key();
        (before.record, flags, before.pool)
    });
    let Some((record, flags, pool)) = visited else {
        return Former {
            is_there: false,
            stays: false,
        };
    };
    let named = steer::named(tables, service.descriptor, &record);
    uncount(tables, named.as_ref(), flags, record.flags);
    let same = place.former.backend == place.session.backend
        && place.former.backend_port == place.session.backend_port
        && pool == place.session.pool;
    // The sweep may have taken it out just now.
    let stays = same && is_of(tables, &place.former, &question.key);
    Former {
        is_there: true,
        stays,
    }
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
        signal => noted(0, End::Client, signal),
    };
    if service.descriptor.flags & service_flag::COUNTED != 0 && !ended(flags) {
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

/// Takes a port of the pool for a session, and says whether it was nobody's before: it may be this very flow's.
/// `None` where all that were tried are others'. Which are tried depends on nothing but the flow and the secret, so
/// that two processors that begin it at once try the same.
#[inline(always)]
fn claim<T: Tables>(
    tables: &T,
    flow: &FlowKey,
    translation: &Translation,
    to: u16,
    place: &mut Opening,
) -> Option<bool> {
    if translation.addresses == 0 {
        return None;
    }
    let ports = (u32::from(flow.port) << 16) | u32::from(to);
    let secret = &tables.control()?.hash_key;
    let Opening { session, port, .. } = place;
    let backend = &session.backend;
    let hash = hash::flow(secret, &flow.source, backend, ports, session.protocol);
    for attempt in 0..ATTEMPTS {
        let (address, number) = self::place(translation, hash.word(), attempt);
        session.address = tables.pool_address(&PoolKey {
            pool: translation.pool.into(),
            index: address,
        })?;
        session.port = number.to_be();
        *port = session.port_key();
        match tables.claim_port(port, flow) {
            Recorded::Done => return Some(true),
            Recorded::Taken if is_of(tables, port, flow) => return Some(false),
            Recorded::Taken => {}
            Recorded::Full => return None,
        }
    }
    None
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

/// Gives a port back that was taken for a session which another CPU has begun meanwhile, unless that one has it.
#[inline(always)]
fn give_back<T: Tables>(tables: &T, flow: &FlowKey, port: &PortKey) {
    let has = tables.visit_session(flow, |kept| kept.port_key() == *port);
    if has != Some(true) {
        tables.release_port(port);
    }
}

/// Whether a port is a flow's.
#[inline(always)]
fn is_of<T: Tables>(tables: &T, port: &PortKey, flow: &FlowKey) -> bool {
    tables.port(port) == Some(*flow)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
