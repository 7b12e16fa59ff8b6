//! Operations bent on their way to the tables, for [`crate::sabotage`].

use std::sync::Arc;

use lb_common::{
    memory::MemoryTables,
    steer,
    tables::{Descriptor, Phase, Slot, service_flag, state},
};
use lb_userspace::{
    dataplane::Operation,
    plan::{Ring, half},
};

use crate::{parts, sabotage::Sabotage};

/// `operations` as they are carried out with `sabotage`, upon `tables` as they are before.
pub fn bent(
    operations: &[Operation],
    tables: &MemoryTables,
    sabotage: Option<Sabotage>,
) -> Vec<Operation> {
    let mut operations = operations.to_vec();
    let Some(sabotage) = sabotage else {
        return operations;
    };
    match sabotage {
        Sabotage::GraceIsSkipped => operations.retain(|op| *op != Operation::Grace),
        Sabotage::OverflowIsForgotten => {
            operations.retain(|op| !matches!(op, Operation::Overflows(..)));
        }
        Sabotage::TimesAreLostOnRestart => {
            operations.retain(|op| !matches!(op, Operation::Moved(_)));
        }
        Sabotage::BothHalvesAreWritten => {
            let both = |operation: &Operation| match *operation {
                Operation::Descriptor(index, _, descriptor) => {
                    vec![
                        Operation::Descriptor(index, 0, descriptor),
                        Operation::Descriptor(index, 1, descriptor),
                    ]
                }
                _ => vec![operation.clone()],
            };
            operations = operations.iter().flat_map(both).collect();
        }
        Sabotage::RoutesComeBeforeTheRings => {
            let both = |operation: &Operation| match *operation {
                Operation::Guard(pool, _, guard) => [0, 1]
                    .map(|half| Operation::Guard(pool, half, guard))
                    .to_vec(),
                _ => vec![operation.clone()],
            };
            operations = operations.iter().flat_map(both).collect();
        }
        Sabotage::WakesComeBeforeTheRings => {
            let wakes =
                |op: &Operation| matches!(op, Operation::State(_, s) if s & state::TAKES != 0);
            let (early, mut rest): (Vec<_>, Vec<_>) = operations.into_iter().partition(wakes);
            let rings = rest.iter().position(|op| matches!(op, Operation::Slots(_)));
            let place = rings.unwrap_or(rest.len());
            rest.splice(place..place, early);
            operations = rest;
        }
        _ => {}
    }
    let in_place: Vec<(Option<Descriptor>, bool)> = operations
        .iter()
        .map(|operation| match operation {
            Operation::Slots(ring) => (
                before(ring, &operations, tables),
                is_whole_move(ring, &operations),
            ),
            _ => (None, false),
        })
        .collect();
    for (operation, (before, whole)) in operations.iter_mut().zip(in_place) {
        match operation {
            Operation::Slots(ring) if whole && sabotage == Sabotage::WholeMoveIsSkipped => {
                *ring = standing(ring);
            }
            Operation::Slots(ring) => *ring = bent_ring(ring, before.as_ref(), tables, sabotage),
            Operation::Descriptor(_, _, descriptor) => bend_descriptor(descriptor, sabotage),
            Operation::Guard(_, _, guard) if sabotage == Sabotage::PreviousRoutesAreForgotten => {
                guard.previous_routes = guard.routes;
            }
            Operation::State(_, state)
                if matches!(
                    sabotage,
                    Sabotage::LeavingBackendHoldsNothing | Sabotage::EjectedIsTakenForDead
                ) && *state == state::HOLDS =>
            {
                *state = 0;
            }
            _ => {}
        }
    }
    operations
}

/// The service in force whose ring this is, or is to follow.
fn before(ring: &Ring, operations: &[Operation], tables: &MemoryTables) -> Option<Descriptor> {
    let in_force = half(tables.control.generation);
    let named = operations.iter().find_map(|operation| match operation {
        Operation::Descriptor(index, _, d) if d.ring_start == ring.start && d.ring_size > 0 => {
            tables.service_entries.get(*index as usize)
        }
        _ => None,
    });
    let same = |d: &Descriptor| d.ring_size > 0 && d.ring_start == ring.start;
    let entry = named.or_else(|| {
        let mut entries = tables.service_entries.iter();
        entries.find(|entry| same(&entry.halves[in_force]))
    })?;
    Some(entry.halves[in_force])
}

/// Whether a service begins with this ring to move as a whole, at the size that it had.
fn is_whole_move(ring: &Ring, operations: &[Operation]) -> bool {
    operations.iter().any(|operation| match operation {
        Operation::Descriptor(_, _, d) => {
            d.ring_start == ring.start && d.ring_size > 0 && keeps_its_size(d)
        }
        _ => false,
    })
}

fn keeps_its_size(descriptor: &Descriptor) -> bool {
    descriptor.flags & service_flag::MOVING != 0
        && descriptor.previous_size() == descriptor.ring_size
}

/// A ring none of whose slots moves.
fn standing(ring: &Ring) -> Arc<Ring> {
    let slots = ring.slots.iter().map(|slot| Slot::steady(slot.owner()));
    Arc::new(Ring::new(ring.start, slots.collect(), ring.moved.clone()))
}

fn bend_descriptor(descriptor: &mut Descriptor, sabotage: Sabotage) {
    match sabotage {
        Sabotage::PreviousRingIsReleased => descriptor.set_previous(0, 0, 0),
        Sabotage::PreviousHashIsForgotten if descriptor.flags & service_flag::MOVING != 0 => {
            let fields = match descriptor.previous_fields() {
                0 => service_flag::BY_SOURCE,
                _ => 0,
            };
            let (start, size) = (descriptor.previous_start, descriptor.previous_size());
            descriptor.set_previous(start, size, fields);
        }
        Sabotage::WholeMoveIsSkipped if keeps_its_size(descriptor) => {
            descriptor.flags &= !service_flag::MOVING;
            descriptor.set_previous(0, 0, 0);
        }
        _ => {}
    }
}

fn bent_ring(
    ring: &Arc<Ring>,
    before: Option<&Descriptor>,
    tables: &MemoryTables,
    sabotage: Sabotage,
) -> Arc<Ring> {
    let before = before.filter(|before| parts::ring_slots(tables, before) == ring.size());
    let slots = ring.slots.iter().zip(0..).map(|(&slot, place)| {
        let old = before.and_then(|d| steer::slot_at(tables, d.ring_start, place));
        bent_slot(slot, old, sabotage)
    });
    Arc::new(Ring::new(ring.start, slots.collect(), ring.moved.clone()))
}

fn bent_slot(slot: Slot, old: Option<Slot>, sabotage: Sabotage) -> Slot {
    let moving = |origin| Slot::new(slot.owner(), origin, Phase::Moving);
    match (sabotage, slot.phase(), old) {
        (Sabotage::SlotSettlesAtOnce, Phase::Moving, _) => {
            Slot::new(slot.owner(), slot.owner(), Phase::Settling)
        }
        (Sabotage::OriginIsLostByMovingAgain, Phase::Moving, Some(old))
            if old.phase() == Phase::Moving && old.owner() != slot.owner() =>
        {
            moving(old.owner())
        }
        (Sabotage::SteadySlotForgetsItsOwner, Phase::Moving, Some(old))
            if old.phase() == Phase::Steady && old.owner() != slot.owner() =>
        {
            moving(slot.owner())
        }
        (Sabotage::SettlingSlotForgetsItsOwner, Phase::Moving, Some(old))
            if old.phase() == Phase::Settling && old.owner() != slot.owner() =>
        {
            moving(slot.owner())
        }
        (Sabotage::DeadOriginStays, Phase::Moving, Some(old))
            if slot.origin() == slot.owner() && old.keeper() != slot.owner() =>
        {
            moving(old.keeper())
        }
        (Sabotage::WokenSlotStaysSteady, Phase::Moving, Some(old))
            if old.phase() == Phase::Steady && old.owner() == slot.owner() =>
        {
            old
        }
        _ => slot,
    }
}
