//! The sweep of the flow tables: which records have outlived their use, and what the others mean for
//! slots that settle and backends that leave. Pure but for the tables that it is given.
//!
//! Runs beside the agent's loop, over a layout as it was when it began. What it removes may be removed
//! whatever the loop changes meanwhile: the program takes an expired record for none, and where a slot
//! gives all flows to one backend, so it does to those that are not recorded once it moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::{
    hash::{self, FlowHash},
    tables::{
        Address, FlowKey, HASH_KEY_WORDS, Phase, Record, Slot, TICK_SHIFT, Table, Tick,
        hash_fields, record_flag, service_flag, state,
    },
    track,
};

use super::{Layout, Placed, PlacedMember, layout::Ring};
use crate::{
    dataplane::{DataplaneError, FlowTables},
    model::ServiceId,
    snapshot::{FlowFilter, FlowList, FlowRecord},
};

/// Records removed in one go.
const REMOVED_AT_ONCE: usize = 4_096;

/// What is recorded for a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceCensus {
    /// Live records of established flows.
    pub established: u32,
    /// Live records of half-open flows.
    pub half_open: u32,
    /// Live records of each local id in its present generation.
    pub by_member: BTreeMap<u16, u32>,
    /// Slots with a live record of another backend than their owner.
    pub foreign: BTreeSet<u32>,
}

/// What a sweep found. About the layout that it began with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// By index of the service.
    pub services: BTreeMap<u32, ServiceCensus>,
    /// Records in the table of established flows, those removed left out.
    pub established: u32,
    /// Records in the table of half-open flows, likewise.
    pub half_open: u32,
    /// What it began with, by index of the service.
    seen: BTreeMap<u32, Seen>,
}

/// A service as a sweep began with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    ring: Arc<Ring>,
    previous: Option<Arc<Ring>>,
    marks: u64,
}

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Keep,
    Remove,
}

/// A recorded flow's place on its service's ring.
pub fn slot_of(
    key: &FlowKey,
    placed: &Placed,
    hash_key: &[u64; HASH_KEY_WORDS],
) -> Option<(u32, Slot)> {
    let hash = flow_hash(key, placed, hash_key);
    let place = hash.slot(placed.ring.size(), 0);
    Some((place, *placed.ring.slots.get(place as usize)?))
}

fn flow_hash(key: &FlowKey, placed: &Placed, hash_key: &[u64; HASH_KEY_WORDS]) -> FlowHash {
    let descriptor = &placed.descriptor;
    if descriptor.hash_fields == hash_fields::SOURCE {
        return hash::source(hash_key, &key.source);
    }
    let destination: Address = descriptor.address;
    let ports = (u32::from(key.port) << 16) | u32::from(descriptor.port);
    hash::flow(
        hash_key,
        &key.source,
        &destination,
        ports,
        descriptor.protocol,
    )
}

/// Sweeps both tables.
///
/// Half-open flows are read before established ones, so that one that is promoted meanwhile is seen.
///
/// # Errors
/// The tables cannot be read or written.
pub fn sweep(
    layout: &Layout,
    tables: &mut dyn FlowTables,
    now: Tick,
) -> Result<Census, DataplaneError> {
    let by_index: BTreeMap<u32, &Placed> = layout
        .services
        .values()
        .map(|placed| (placed.index, placed))
        .collect();
    let seen = by_index
        .iter()
        .map(|(&index, placed)| {
            let seen = Seen {
                ring: Arc::clone(&placed.ring),
                previous: placed.previous.clone(),
                marks: placed.marks,
            };
            (index, seen)
        })
        .collect();
    let mut census = Census {
        seen,
        ..Census::default()
    };
    for table in [Table::HalfOpen, Table::Established] {
        let mut doomed = Vec::new();
        let mut kept = 0;
        tables.scan(table, &mut |key, record| {
            let placed = by_index.get(&key.service).copied();
            match census.judge(layout, placed, table, key, record, now) {
                Judgement::Keep => kept += 1,
                Judgement::Remove => doomed.push((*key, *record)),
            }
        })?;
        for chunk in doomed.chunks(REMOVED_AT_ONCE) {
            for (key, record) in chunk {
                let removed = tables.remove(table, key, record)?;
                if removed && record.flags & record_flag::COUNTED != 0 {
                    let counters = counters_of(by_index.get(&key.service).copied(), record);
                    counters.map_or(Ok(()), |counters| tables.unload(counters))?;
                }
            }
        }
        match table {
            Table::HalfOpen => census.half_open = kept,
            Table::Established => census.established = kept,
        }
    }
    Ok(census)
}

fn counters_of(placed: Option<&Placed>, record: &Record) -> Option<u32> {
    let member = placed?.member_by_id(record.member.into())?;
    (member.member.generation == record.generation).then_some(member.backend.counters)
}

/// Lists recorded flows.
///
/// # Errors
/// The tables cannot be read.
pub fn list(
    layout: &Layout,
    tables: &mut dyn FlowTables,
    filter: &FlowFilter,
    now: Tick,
) -> Result<FlowList, DataplaneError> {
    let by_index: BTreeMap<u32, (ServiceId, &Placed)> = layout
        .services
        .iter()
        .map(|(&id, placed)| (placed.index, (id, placed)))
        .collect();
    let mut list = FlowList::default();
    for table in [Table::HalfOpen, Table::Established] {
        tables.scan(table, &mut |key, record| {
            let Some(&(service, placed)) = by_index.get(&key.service) else {
                return;
            };
            let Some(flow) = describe(layout, service, placed, table, key, record, now) else {
                return;
            };
            if filter.matches(&flow) {
                list.total += 1;
                if list.flows.len() < filter.limit {
                    list.flows.push(flow);
                }
            }
        })?;
    }
    Ok(list)
}

fn describe(
    layout: &Layout,
    service: ServiceId,
    placed: &Placed,
    table: Table,
    key: &FlowKey,
    record: &Record,
    now: Tick,
) -> Option<FlowRecord> {
    if !track::live(record, now, placed.descriptor.moving_time) {
        return None;
    }
    let (_, slot) = slot_of(key, placed, &layout.control.hash_key)?;
    let member = placed
        .member_by_id(record.member.into())
        .filter(|member| member.member.generation == record.generation);
    let whole = placed.descriptor.flags & service_flag::MOVING != 0;
    let since = |tick: Tick| {
        let ticks = now.wrapping_sub(tick).min(i32::MAX as Tick);
        Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)
    };
    Some(FlowRecord {
        service,
        client: SocketAddr::new(key.source.into(), u16::from_be(key.port)),
        backend: member.map(PlacedMember::address),
        half_open: table == Table::HalfOpen,
        closing: record.flags & (record_flag::FINISHED | record_flag::RESET) != 0,
        phase: match slot.phase() {
            _ if whole => "moving",
            Phase::Steady => "steady",
            Phase::Moving => "moving",
            Phase::Settling => "settling",
        },
        idle: since(record.stamp),
        age: since(record.since),
    })
}

impl Census {
    /// Whether the sweep began with the rings that a service has: only then do its findings hold.
    pub fn is_about(&self, placed: &Placed) -> bool {
        let Some(Seen {
            ring,
            previous,
            marks,
        }) = self.seen.get(&placed.index)
        else {
            return false;
        };
        let same_previous = match (previous, &placed.previous) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(ring, &placed.ring) && same_previous && *marks == placed.marks
    }

    /// Whether there was a service of that index when it began.
    pub fn knows(&self, index: u32) -> bool {
        self.seen.contains_key(&index)
    }

    /// Slots of a service with flows recorded for others than their owners.
    pub fn foreign(&self, placed: &Placed) -> Option<&BTreeSet<u32>> {
        Some(&self.services.get(&placed.index)?.foreign)
    }

    /// Live records of a member.
    pub fn records_of(&self, placed: &Placed, id: u16) -> u32 {
        let service = self.services.get(&placed.index);
        let records = service.and_then(|service| service.by_member.get(&id));
        records.copied().unwrap_or(0)
    }

    fn judge(
        &mut self,
        layout: &Layout,
        placed: Option<&Placed>,
        table: Table,
        key: &FlowKey,
        record: &Record,
        now: Tick,
    ) -> Judgement {
        // What has been used since the sweep began may be of a service, a ring or a backend that it does
        // not know.
        let untouched = (record.stamp.wrapping_sub(now) as i32) < 0;
        let removal = match untouched {
            true => Judgement::Remove,
            false => Judgement::Keep,
        };
        // A service that has gone took its flows with it.
        let Some(placed) = placed else {
            return removal;
        };
        if !track::live(record, now, placed.descriptor.moving_time) {
            return Judgement::Remove;
        }
        let Some((place, slot)) = slot_of(key, placed, &layout.control.hash_key) else {
            return removal;
        };
        let member = placed
            .member_by_id(record.member.into())
            .filter(|member| member.member.generation == record.generation);
        let Some(member) = member else {
            return removal;
        };
        let held = member.backend.state & state::HOLDS != 0;
        // Whom an unrecorded packet would get too. While the slot moves from one backend to another,
        // that differs from flow to flow.
        let tracked = placed.descriptor.flags & service_flag::TRACKED != 0;
        let certain = !tracked && slot.keeper() == slot.owner();
        let at_owner = u32::from(record.member) == slot.owner();
        if untouched && certain && (at_owner || (!held && slot.phase() == Phase::Settling)) {
            return Judgement::Remove;
        }
        let service = self.services.entry(placed.index).or_default();
        match table {
            Table::HalfOpen => service.half_open += 1,
            Table::Established => service.established += 1,
        }
        *service.by_member.entry(record.member).or_default() += 1;
        if !at_owner {
            service.foreign.insert(place);
        }
        Judgement::Keep
    }
}
