//! Persistence: a client's new flows go where its last new flow went, for a set time after that.
//!
//! The one place that reads and writes records of clients. They only guide choices: one that is lost,
//! or cannot be made for want of room, costs a client its backend and breaks no flow.
//!
//! A client is remembered among the half-open flows at first, and among the established ones from the
//! first packet of it that opens nothing, so that a flood of SYNs fills neither table for long nor the
//! second at all.

use crate::{
    schedule::{self, NOBODY},
    steer::{self, Service},
    tables::{
        Descriptor, FlowEvent, FlowKey, Record, Recorded, Table, Tables, Tick, flow_kind,
        record_flag,
    },
    track::{self, Question},
    wire::protocol,
};

/// What a client is remembered under.
#[inline(always)]
fn key(descriptor: &Descriptor, question: &Question) -> FlowKey {
    FlowKey {
        source: question.key.source.prefix(descriptor.client_bits()),
        port: 0,
        kind: flow_kind::CLIENT,
        service: descriptor.pool,
        to: 0,
        host: 0,
    }
}

#[inline(always)]
fn service<'t, T: Tables>(tables: &'t T, question: &Question) -> Option<Service<'t>> {
    Service::at(tables, question.key.service.into(), question.half)
}

/// A client's record in a table, where there is one that counts; any other is given up for good.
#[inline(always)]
fn find<T: Tables>(
    tables: &T,
    table: Table,
    key: &FlowKey,
    persistence: Tick,
    now: Tick,
) -> Option<Record> {
    let visited = tables.visit(table, key, |record| {
        let is_live = track::live(record, now, persistence);
        if !is_live {
            // Out of reach of a longer persistence, since its client is about to go elsewhere.
            record.stamp = now.wrapping_sub(track::LONG_AGO);
        }
        (*record, is_live)
    });
    let (record, is_live) = visited?;
    is_live.then_some(record)
}

/// Local id of the backend that a client has, while that takes one more flow; else
/// [`NOBODY`](schedule::NOBODY).
#[inline(always)]
pub fn recall<T: Tables>(tables: &T, question: &Question) -> u32 {
    let Some(service) = service(tables, question) else {
        return NOBODY;
    };
    let (descriptor, now) = (service.descriptor, tables.now());
    let (key, persistence) = (key(descriptor, question), descriptor.persistence);
    let look = |table| find(tables, table, &key, persistence, now);
    let Some(record) = look(Table::Established)
        .or_else(|| look(Table::HalfOpen))
        // Another CPU may have confirmed it between the two.
        .or_else(|| look(Table::Established))
    else {
        return NOBODY;
    };
    let id = u32::from(record.member);
    match steer::candidate(tables, descriptor, id) {
        Some(candidate)
            if candidate.member.generation == record.generation
                && schedule::eligible(tables, &candidate, question.subset.into()) =>
        {
            id
        }
        _ => NOBODY,
    }
}

/// Takes note of the backend that a client's new flow got.
#[inline(always)]
pub fn remember<T: Tables>(tables: &T, question: &Question, id: u32) {
    let Some(service) = service(tables, question) else {
        return;
    };
    let (descriptor, now) = (service.descriptor, tables.now());
    let Some(candidate) = steer::candidate(tables, descriptor, id) else {
        return;
    };
    let (key, persistence) = (key(descriptor, question), descriptor.persistence);
    let generation = candidate.member.generation;
    let known = tables.visit(Table::Established, &key, |record| {
        let is_live = track::live(record, now, persistence);
        if is_live {
            record.member = id as u16;
            record.generation = generation;
            record.stamp = now;
        }
        is_live
    });
    if known == Some(true) {
        return;
    }
    let record = Record {
        member: id as u16,
        // Of UDP, nothing may ever come that is looked up and opens none.
        flags: if descriptor.protocol == protocol::UDP {
            0
        } else {
            record_flag::OPENING
        },
        generation,
        stamp: now,
        since: now,
    };
    if tables.record(Table::HalfOpen, &key, &record, true) != Recorded::Done {
        tables.count_flow(service.index, FlowEvent::ClientOverflow);
    }
}

/// Takes note that a client is there: a flow of it has been established with the backend `id`.
#[inline(always)]
pub fn confirm<T: Tables>(tables: &T, question: &Question, id: u32) {
    let Some(service) = service(tables, question) else {
        return;
    };
    let (descriptor, now) = (service.descriptor, tables.now());
    let (key, persistence) = (key(descriptor, question), descriptor.persistence);
    if find(tables, Table::Established, &key, persistence, now).is_some() {
        return;
    }
    let Some(candidate) = steer::candidate(tables, descriptor, id) else {
        return;
    };
    let mut record = Record {
        member: id as u16,
        flags: 0,
        generation: candidate.member.generation,
        stamp: now,
        since: now,
    };
    if let Some(known) = find(tables, Table::HalfOpen, &key, persistence, now) {
        // Its last new flow may have gone elsewhere.
        record = Record { flags: 0, ..known };
    }
    if tables.record(Table::Established, &key, &record, true) == Recorded::Done {
        tables.forget(Table::HalfOpen, &key);
    } else {
        tables.count_flow(service.index, FlowEvent::ClientOverflow);
    }
}
