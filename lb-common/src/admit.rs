//! Who may send to a service: its access list, and how many flows may begin. Asked before a backend is chosen
//! and before anything is recorded, and only of services that say so ([`service_flag::GUARDED`]).
//!
//! An access list is a set of prefixes, of which the longest that a source has decides. It is asked of every
//! packet. Limits are asked of those that begin a flow: SYNs, Initials of QUIC services, and other datagrams
//! whose flow is not recorded, unless the whole service moves. A source's own bucket is asked first, so that
//! one source that sends too much takes nothing from the others.
//!
//! [`service_flag::GUARDED`]: crate::tables::service_flag::GUARDED

use crate::{
    flow::Flow,
    steer::{InForce, Service},
    tables::{
        AccessKey, Address, FlowEvent, FlowKey, Guard, Record, SourceKey, Table, Tables, access,
        flow_kind, service_flag,
    },
    track,
    verdict::DropReason,
    wire::protocol,
};

/// What is asked of a packet, in the words that a function of the kernel's program takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Where it comes from.
    pub source: Address,
    /// Twice the index of its service, and the half that is in force.
    pub service: u32,
    /// Its source port above the port that its flow is recorded with; both as in [`FlowKey`].
    pub ports: u32,
    /// As there.
    pub host: u64,
}

impl Request {
    #[inline(always)]
    fn of(in_force: &InForce<'_>, flow: &Flow) -> Self {
        let descriptor = in_force.service.descriptor;
        let to = descriptor.key_port(flow.destination_port);
        Self {
            source: flow.source,
            service: in_force.service.index << 1 | in_force.half,
            ports: u32::from(flow.source_port) << 16 | u32::from(to),
            host: descriptor.key_host(flow.destination),
        }
    }

    #[inline(always)]
    fn index(&self) -> u32 {
        self.service >> 1
    }

    #[inline(always)]
    fn half(&self) -> u32 {
        self.service & 1
    }
}

/// It may pass.
pub const ADMITTED: u32 = 0;
/// The access list denies its source.
const DENIED: u32 = 1;
/// Its source has begun too many flows.
const SOURCE_LIMIT: u32 = 2;
/// Its service has.
const SERVICE_LIMIT: u32 = 3;

/// Whether a packet's source may send to the service.
///
/// # Errors
/// [`DropReason::AccessDenied`], which has been counted for the service.
#[inline(always)]
pub fn source<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
) -> Result<(), DropReason> {
    judged(tables.admits_source(Request::of(in_force, flow)))
}

/// Whether a packet's flow may begin, if it does not go on.
///
/// # Errors
/// [`DropReason::SourceLimit`], [`DropReason::ServiceLimit`]; either has been counted for the service.
#[inline(always)]
pub fn flow<T: Tables>(tables: &T, in_force: &InForce<'_>, flow: &Flow) -> Result<(), DropReason> {
    let is_quic = in_force.service.descriptor.quic != 0;
    let request = Request::of(in_force, flow);
    if flow.opens() {
        return judged(tables.admits_flow(request, false));
    }
    if flow.protocol == protocol::UDP && !is_quic {
        return judged(tables.admits_flow(request, true));
    }
    Ok(())
}

/// Whether a flow may begin that is known to: what is not recorded is older than nothing here.
///
/// # Errors
/// As [`flow`].
#[inline(always)]
pub fn beginning<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
) -> Result<(), DropReason> {
    judged(tables.admits_flow(Request::of(in_force, flow), false))
}

#[inline(always)]
fn judged(answer: u32) -> Result<(), DropReason> {
    match answer {
        ADMITTED => Ok(()),
        DENIED => Err(DropReason::AccessDenied),
        SOURCE_LIMIT => Err(DropReason::SourceLimit),
        _ => Err(DropReason::ServiceLimit),
    }
}

/// [`ADMITTED`], or that the service's list denies the source. To be called through [`Tables::admits_source`].
#[inline(always)]
pub fn judge_source<T: Tables>(tables: &T, request: &Request) -> u32 {
    let Some((_, guard)) = guard(tables, request) else {
        return DENIED;
    };
    if guard.list == 0 {
        return ADMITTED;
    }
    let key = AccessKey {
        bits: AccessKey::LIST_BITS + 128,
        list: guard.list,
        address: request.source,
    };
    // Every list has a prefix for whatever no other one is about.
    if tables.access(&key) == access::ALLOWED {
        return ADMITTED;
    }
    tables.count_flow(request.index(), FlowEvent::Denied);
    DENIED
}

/// [`ADMITTED`], or which limit a flow that begins is one too many for; with `recorded`, one that is recorded,
/// or may be older than its service's recording, does not begin. To be called through [`Tables::admits_flow`].
#[inline(always)]
pub fn judge_flow<T: Tables>(tables: &T, request: &Request, recorded: bool) -> u32 {
    let Some((service, guard)) = guard(tables, request) else {
        return DENIED;
    };
    let (of_sources, of_service) = (guard.sources.is_set(), guard.flows.is_set());
    if !of_sources && !of_service {
        return ADMITTED;
    }
    // Until a move of the whole service is over, what is not recorded may be older than the move.
    let whole = service.descriptor.flags & service_flag::MOVING != 0;
    if recorded && (whole || is_recorded(tables, &service, request)) {
        return ADMITTED;
    }
    if of_sources {
        let key = SourceKey {
            address: request.source.prefix(guard.source_bits(request.source)),
            service: request.index(),
            zero: 0,
        };
        if !tables.take_of_source(&key, &guard.sources) {
            tables.count_flow(request.index(), FlowEvent::SourceLimit);
            return SOURCE_LIMIT;
        }
    }
    if of_service && !tables.take_of_service(request.index(), &guard.flows) {
        tables.count_flow(request.index(), FlowEvent::ServiceLimit);
        return SERVICE_LIMIT;
    }
    ADMITTED
}

#[inline(always)]
fn guard<'t, T: Tables>(tables: &'t T, request: &Request) -> Option<(Service<'t>, &'t Guard)> {
    let service = Service::at(tables, request.index(), request.half())?;
    Some((service, service.guard(tables, request.half())?))
}

#[inline(always)]
fn is_recorded<T: Tables>(tables: &T, service: &Service<'_>, request: &Request) -> bool {
    let key = FlowKey {
        source: request.source,
        port: (request.ports >> 16) as u16,
        kind: flow_kind::FLOW,
        service: request.index() as u16,
        to: request.ports as u16,
        host: request.host,
    };
    let now = tables.now();
    let moving_time = service.descriptor.moving_time;
    let is_live = |table| {
        let live = |record: &mut Record| track::live(record, now, moving_time);
        tables.visit(table, &key, live).unwrap_or(false)
    };
    is_live(Table::Established) || is_live(Table::HalfOpen)
}
