//! The sweep of the flow tables: which records have outlived their use, and what the others mean for
//! slots that settle and backends that leave. Pure but for the tables that it is given.
//!
//! Runs beside the agent's loop, over a layout as it was when it began. What it removes may be removed
//! whatever the loop changes meanwhile: the program takes an expired record for none, and where a slot
//! gives all flows to one backend, so it does to those that are not recorded once it moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    hash::{self, FlowHash},
    tables::{
        Address, Descriptor, FlowKey, HASH_KEY_WORDS, Phase, Record, Slot, Table, Tick, flow_kind,
        record_flag, service_flag, state,
    },
    track,
};

mod sessions;

use super::{
    Layout, Placed, PlacedMember,
    layout::Ring,
    loads::{Excess, Holder, Tally},
};
use crate::{
    dataplane::{DataplaneError, FlowTables},
    model::ServiceId,
    snapshot::RecordUses,
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
    /// Those among them whose flow one of its ends has closed or reset.
    pub ended_by_member: BTreeMap<u16, u32>,
    /// Slots with a live record of another backend than their owner.
    pub foreign: BTreeSet<u32>,
    /// Sessions of mode `full-nat`, which count as flows above, too.
    pub sessions: u32,
    /// Clients that are remembered, where the pool has its number. They are no flows: nothing waits for
    /// them.
    pub clients: u32,
    /// What the live records are for.
    pub uses: RecordUses,
}

impl ServiceCensus {
    fn count_use(&mut self, record: &Record, moves: bool, at_owner: bool) {
        let ended = record.flags & (record_flag::FINISHED | record_flag::RESET) != 0;
        *self.by_member.entry(record.member).or_default() += 1;
        *self.ended_by_member.entry(record.member).or_default() += u32::from(ended);
        let count = match (ended, moves, at_owner) {
            (true, ..) => &mut self.uses.ended,
            (_, true, _) => &mut self.uses.moving,
            (_, _, false) => &mut self.uses.away,
            (_, _, true) => &mut self.uses.home,
        };
        *count += 1;
    }
}

/// What a sweep found. About the layout that it began with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// By index of the service.
    pub services: BTreeMap<u32, ServiceCensus>,
    /// Records found in the table of established flows, those that it removed included: never are there more.
    pub established: u32,
    /// Records found in the table of half-open flows, likewise.
    pub half_open: u32,
    /// Sessions of mode `full-nat`, those removed left out.
    pub sessions: u32,
    /// How many of them have a port of each address.
    pub ports: BTreeMap<Address, u32>,
    /// Ports that were no session's, and are free again.
    pub released: u32,
    /// Flows in progress whose records were removed. They are still counted: by the time a sweep ends,
    /// their backend's counters may be another's, which only the loop knows.
    pub ended: BTreeMap<Holder, i64>,
    /// By how much the flows in progress of backends are counted too high, those that ended left out.
    pub excess: Excess,
    /// When it began.
    pub began: Tick,
    /// What it began with, by number of the pool.
    seen: BTreeMap<u32, Seen>,
    /// Addresses that sessions could begin with then.
    pub(super) offered: BTreeSet<Address>,
}

/// A pool as a sweep began with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    services: BTreeMap<ServiceId, u32>,
    ring: Arc<Ring>,
    previous: Option<Arc<Ring>>,
    marks: u64,
    /// Local ids of backends that took new flows.
    taking: BTreeSet<u16>,
}

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Keep,
    Remove,
}

/// A recorded flow's place on the ring of its service, which is in that pool.
pub fn slot_of(
    key: &FlowKey,
    (id, placed): (ServiceId, &Placed),
    hash_key: &[u64; HASH_KEY_WORDS],
) -> Option<(u32, Slot)> {
    let descriptor = placed.descriptor_of(id);
    let hash = flow_hash(key, &descriptor, hash_key);
    let size = descriptor.ring_size;
    let place = placed.routes.part(key.source, size) + hash.slot(size, 0);
    Some((place, *placed.ring.slots.get(place as usize)?))
}

fn flow_hash(key: &FlowKey, descriptor: &Descriptor, hash_key: &[u64; HASH_KEY_WORDS]) -> FlowHash {
    let destination: Address = descriptor.vip_of(key);
    let to = descriptor.port_of(key.to);
    let ports = (u32::from(key.port) << 16) | u32::from(to);
    hash::placing(
        hash_key,
        descriptor.fields(),
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
    let by_index: ByIndex<'_> = layout
        .services()
        .map(|(id, index, placed)| (index, (id, placed)))
        .collect();
    let seen = layout
        .pools
        .iter()
        .map(|(&number, placed)| {
            let seen = Seen {
                services: placed.services.clone(),
                ring: Arc::clone(&placed.ring),
                previous: placed.previous.clone(),
                marks: placed.marks,
                taking: taking(placed),
            };
            (number, seen)
        })
        .collect();
    let pools = layout.address_pools.values();
    let mut census = Census {
        seen,
        offered: pools.flat_map(|all| all.iter().copied()).collect(),
        began: now,
        ..Census::default()
    };
    let mut loads = Tally::begin(layout, tables, now)?;
    for table in [Table::HalfOpen, Table::Established] {
        let mut doomed = Vec::new();
        let mut all = 0;
        tables.scan(table, &mut |key, record| {
            let judgement = match key.kind {
                flow_kind::CLIENT => census.judge_client(layout, key, record, now),
                _ => {
                    let found = by_index.get(&key.service.into()).copied();
                    let member = found.and_then(|(_, placed)| backend_of(placed, record));
                    if let Some(member) = member {
                        loads.see(member.holder(), table, key, record);
                    }
                    census.judge(layout, found, table, key, record, now)
                }
            };
            all += 1;
            if judgement == Judgement::Remove {
                doomed.push((*key, *record));
            }
        })?;
        for chunk in doomed.chunks(REMOVED_AT_ONCE) {
            for (key, record) in chunk {
                if !tables.remove(table, key, record)? {
                    continue;
                }
                let counted = record.flags & record_flag::COUNTED != 0;
                let found = by_index.get(&key.service.into()).filter(|_| counted);
                if let Some(member) = found.and_then(|(_, placed)| backend_of(placed, record)) {
                    *census.ended.entry(member.holder()).or_default() += 1;
                }
            }
        }
        match table {
            Table::HalfOpen => census.half_open = all,
            Table::Established => census.established = all,
        }
    }
    sessions::sweep(&mut census, layout, &by_index, tables, &mut loads, now)?;
    census.excess = loads.excess();
    Ok(census)
}

/// Services by their indices.
type ByIndex<'a> = BTreeMap<u32, (ServiceId, &'a Placed)>;

/// Whether a record has been left alone since the sweep began, and what becomes of it then if it is of
/// nobody: what has been used may be of a service, a ring or a backend that the sweep does not know.
fn removal(record: &Record, now: Tick) -> (bool, Judgement) {
    let untouched = (record.stamp.wrapping_sub(now) as i32) < 0;
    match untouched {
        true => (untouched, Judgement::Remove),
        false => (untouched, Judgement::Keep),
    }
}

/// The backend that a record names, while it has its place.
pub(super) fn backend_of<'a>(placed: &'a Placed, record: &Record) -> Option<&'a PlacedMember> {
    placed
        .member_by_id(record.member.into())
        .filter(|member| member.member.generation == record.generation)
}

impl Census {
    /// Whether the sweep began with the rings and services that a pool has: only then do its findings
    /// hold.
    pub fn is_about(&self, placed: &Placed) -> bool {
        let Some(Seen {
            services,
            ring,
            previous,
            marks,
            taking: _,
        }) = self.seen.get(&placed.number)
        else {
            return false;
        };
        let same_previous = match (previous, &placed.previous) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            (None, None) => true,
            _ => false,
        };
        let same_services = *services == placed.services;
        Arc::ptr_eq(ring, &placed.ring) && same_previous && same_services && *marks == placed.marks
    }

    /// Whether there was a service of that index, or a pool of that number, when it began.
    pub fn knows(&self, index: u32) -> bool {
        let mut pools = self.seen.values();
        self.seen.contains_key(&index)
            || pools.any(|pool| pool.services.values().any(|&known| known == index))
    }

    /// Slots of a pool with flows recorded for others than their owners: a set for each service.
    pub fn foreign(&self, placed: &Placed) -> Vec<&BTreeSet<u32>> {
        self.of(placed).map(|service| &service.foreign).collect()
    }

    /// What was found of a pool's services.
    fn of(&self, placed: &Placed) -> impl Iterator<Item = &ServiceCensus> {
        let indices = placed.services.values();
        indices.filter_map(|index| self.services.get(index))
    }

    /// Clients that are remembered for a pool.
    pub fn clients(&self, placed: &Placed) -> u32 {
        let service = self.services.get(&placed.number);
        service.map_or(0, |service| service.clients)
    }

    /// Live records of a member.
    pub fn records_of(&self, placed: &Placed, id: u16) -> u32 {
        self.of(placed).filter_map(|s| s.by_member.get(&id)).sum()
    }

    /// Those among them of flows that have not ended.
    fn open_of(&self, placed: &Placed, id: u16) -> u32 {
        let ended: u32 = self
            .of(placed)
            .filter_map(|s| s.ended_by_member.get(&id))
            .sum();
        self.records_of(placed, id).saturating_sub(ended)
    }

    /// The same as [`Census::is_vacant`], but for records of flows that have ended, which are kept for what may still come.
    pub fn is_idle(&self, placed: &Placed, id: u16) -> bool {
        !self.took(placed, id) && self.open_of(placed, id) == 0
    }

    fn took(&self, placed: &Placed, id: u16) -> bool {
        let seen = self.seen.get(&placed.number);
        seen.is_none_or(|seen| seen.taking.contains(&id))
    }

    /// Whether a backend took no new flows when the sweep began, and had none: it will not have any.
    pub fn is_vacant(&self, placed: &Placed, id: u16) -> bool {
        !self.took(placed, id) && self.records_of(placed, id) == 0
    }

    fn judge(
        &mut self,
        layout: &Layout,
        found: Option<(ServiceId, &Placed)>,
        table: Table,
        key: &FlowKey,
        record: &Record,
        now: Tick,
    ) -> Judgement {
        let (untouched, removal) = removal(record, now);
        // A service that has gone took its flows with it.
        let Some((id, placed)) = found else {
            return removal;
        };
        if !track::live(record, now, placed.descriptor.moving_time) {
            return Judgement::Remove;
        }
        let Some((place, slot)) = slot_of(key, (id, placed), &layout.control.hash_key) else {
            return removal;
        };
        let Some(member) = backend_of(placed, record) else {
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
        let service = self.services.entry(key.service.into()).or_default();
        match table {
            Table::HalfOpen => service.half_open += 1,
            Table::Established => service.established += 1,
        }
        let whole = placed.descriptor.flags & service_flag::MOVING != 0;
        service.count_use(record, whole || slot.phase() == Phase::Moving, at_owner);
        if !at_owner {
            service.foreign.insert(place);
        }
        Judgement::Keep
    }
    /// A client whose backend takes no flows any more is kept: it may again, and the next new flow tells.
    fn judge_client(
        &mut self,
        layout: &Layout,
        key: &FlowKey,
        record: &Record,
        now: Tick,
    ) -> Judgement {
        let (_, removal) = removal(record, now);
        let Some(placed) = layout.pools.get(&key.service.into()) else {
            return removal;
        };
        if !track::live(record, now, placed.descriptor.persistence) {
            return match placed.descriptor.persistence {
                // It may have been switched on since the sweep began.
                0 => removal,
                _ => Judgement::Remove,
            };
        }
        if backend_of(placed, record).is_none() {
            return removal;
        }
        self.services.entry(placed.number).or_default().clients += 1;
        Judgement::Keep
    }
}

/// Local ids of a pool's backends that take new flows.
fn taking(placed: &Placed) -> BTreeSet<u16> {
    let members = placed.members();
    let taking = members.filter(|(_, member)| member.backend.state & state::TAKES != 0);
    taking.map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_under_the_first_use_that_it_has() {
        let uses = |flags, moves, at_owner| {
            let mut census = ServiceCensus::default();
            let record = Record {
                flags,
                ..Record::default()
            };
            census.count_use(&record, moves, at_owner);
            let RecordUses {
                ended,
                moving,
                away,
                home,
            } = census.uses;
            [ended, moving, away, home]
        };
        assert_eq!(uses(record_flag::FINISHED, true, false), [1, 0, 0, 0]);
        assert_eq!(uses(record_flag::RESET, false, true), [1, 0, 0, 0]);
        assert_eq!(uses(record_flag::OPENING, true, true), [0, 1, 0, 0]);
        assert_eq!(uses(0, false, false), [0, 0, 1, 0]);
        assert_eq!(uses(record_flag::COUNTED, false, true), [0, 0, 0, 1]);
    }
}
