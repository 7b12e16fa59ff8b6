//! What the packet path asks of flow tables, with an invariant of [`crate::sabotage`] switched off.

use lb_common::{
    flow::Signal,
    memory::MemoryTables,
    steer::{self, Candidate, Service},
    tables::{FlowKey, Record, Table, Tables as _, flow_kind, record_flag},
    track::{self, Question},
};

use crate::sabotage::Sabotage;

/// The backend that takes a packet, where that is decided otherwise than by [`track::answer`].
pub fn answer(tables: &MemoryTables, question: &Question, sabotage: Sabotage) -> Option<u32> {
    (sabotage == Sabotage::FlowsOfTheDeadGoToOrigin)
        .then(|| origin_of_the_dead(tables, question))
        .flatten()
}

/// A recorded flow's new backend, where the one that it had is gone: the origin, and recorded so.
fn origin_of_the_dead(tables: &MemoryTables, question: &Question) -> Option<u32> {
    let service = Service::at(tables, question.key.service.into(), question.half)?;
    let moving_time = service.descriptor.moving_time;
    let (table, record) = [Table::Established, Table::HalfOpen]
        .into_iter()
        .find_map(|table| Some((table, recorded(tables, table, &question.key)?)))?;
    if !track::live(&record, tables.now(), moving_time) || moving_time == 0 {
        return None;
    }
    let candidate = |id| steer::candidate(tables, service.descriptor, id);
    let has_it = |candidate: &Candidate<'_>| {
        candidate.member.generation == record.generation && candidate.holds()
    };
    if candidate(record.member.into()).is_some_and(|candidate| has_it(&candidate)) {
        return None;
    }
    let origin = candidate(question.slot.keeper()).filter(Candidate::holds)?;
    let flags = match question.signal {
        Signal::Opens => record_flag::OPENING,
        _ => 0,
    };
    let record = Record {
        member: origin.id as u16,
        flags,
        generation: origin.member.generation,
        stamp: tables.now(),
        since: tables.now(),
    };
    tables.record(table, &question.key, &record, true);
    Some(origin.member.backend)
}

/// What a table says of a flow, live or not.
pub fn recorded(tables: &MemoryTables, table: Table, key: &FlowKey) -> Option<Record> {
    tables.visit(table, key, |record| *record)
}

/// Whether the owner of a flow's slot takes no new flows.
pub fn declines(tables: &MemoryTables, question: &Question) -> bool {
    let service = Service::at(tables, question.key.service.into(), question.half);
    let owner = service.and_then(|s| steer::candidate(tables, s.descriptor, question.slot.owner()));
    owner.is_some_and(|owner| !owner.takes())
}

/// The generation of whoever has the local id that a flow's record names.
pub fn present_generation(tables: &MemoryTables, key: &FlowKey, record: &Record) -> Option<u32> {
    if key.kind != flow_kind::FLOW {
        return None;
    }
    let half = (tables.generation() & 1) as u32;
    let service = Service::at(tables, key.service.into(), half)?;
    let named = steer::candidate(tables, service.descriptor, record.member.into())?;
    Some(named.member.generation)
}
