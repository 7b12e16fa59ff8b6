//! What a sweep finds and does, bent for [`crate::sabotage`].

use std::sync::Arc;

use lb_common::{
    memory::MemoryTables,
    tables::{FlowKey, Record, Slot},
    track,
};
use lb_userspace::{
    agent::Core,
    dataplane::Dataplane as _,
    plan::{
        Layout, Routes,
        census::{self, Census},
    },
};

use crate::{sabotage::Sabotage, stage::Stage};

/// A layout as a sweep takes it.
pub fn seen(layout: &Layout, sabotage: Option<Sabotage>) -> Layout {
    let mut layout = layout.clone();
    if sabotage == Some(Sabotage::SweepIgnoresRoutes) {
        let pools = layout.pools.values_mut();
        pools.for_each(|placed| Arc::make_mut(placed).routes = Routes::default());
    }
    layout
}

/// Spoils a sweep that began with `layout` and has just come to its end.
pub fn spoil(sabotage: Sabotage, core: &Core<Stage>, layout: &Layout, census: &mut Census) {
    match sabotage {
        Sabotage::SettlingWaitsForNobody => {
            let services = census.services.values_mut();
            services.for_each(|service| service.foreign.clear());
        }
        Sabotage::LeavingBackendIsFreedAtOnce => {
            let services = census.services.values_mut();
            services.for_each(|service| service.by_member.clear());
        }
        Sabotage::OwnersRecordsGoWhileMoving => {
            drop_records(core, layout, |slot, record| {
                slot.owner() == u32::from(record.member)
            });
        }
        Sabotage::OthersRecordsAreSwept => {
            drop_records(core, layout, |slot, record| {
                slot.owner() != u32::from(record.member)
            });
        }
        _ => {}
    }
}

/// Drops live records of established flows, given their slot and what they say.
fn drop_records(core: &Core<Stage>, layout: &Layout, goes: impl Fn(Slot, &Record) -> bool) {
    let world = core.dataplane().world();
    let (tables, key) = (&world.memory.tables, &layout.control.hash_key);
    let mut flows = tables.flows.borrow_mut();
    for (id, index, placed) in layout.services() {
        let moving_time = placed.descriptor.moving_time;
        let is_dropped = |flow: &FlowKey, record: &Record| {
            let slot = census::slot_of(flow, (id, placed), key);
            u32::from(flow.service) == index
                && track::live(record, tables.time.get(), moving_time)
                && slot.is_some_and(|(_, slot)| goes(slot, record))
        };
        let records = &mut flows.established.records;
        records.retain(|flow, record| !is_dropped(flow, record));
    }
}

/// Makes a census one that began with what there is now, whatever it is about.
pub fn pass_for_current(core: &mut Core<Stage>, census: &mut Census) {
    let Ok(layout) = core.certain_layout() else {
        return;
    };
    let nothing = MemoryTables::default();
    let current = census::sweep(&layout, &mut &nothing, core.dataplane().now());
    let Ok(current) = current else {
        return;
    };
    let found = std::mem::replace(census, current);
    census.services = found.services;
    census.established = found.established;
    census.half_open = found.half_open;
    census.ended = found.ended;
    census.excess = found.excess;
}
