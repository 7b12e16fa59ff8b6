//! How a ring moves: which slots get another owner, and what becomes of those that have moved. Pure.
//!
//! What must hold for every slot, and what its tests break to see:
//! - One that moves while it moves keeps its origin; one that moves while it settles or is steady
//!   gets its last owner as its origin.
//! - An origin that is dead is replaced by the owner in the plan that follows the death.
//! - It settles once the moving time has passed since it moved last and since the last choice of its
//!   service that could not be recorded.
//! - It does not settle where another choice could not be recorded since the plan was made.
//! - Where nobody takes new flows, only slots of removed backends move: to those that hold flows.
//! - Of a service with a second hop, a slot that settles or is steady keeps its origin, which then stands for whoever else
//!   may have its flows ([`super::others`]), until that one has gone.
//! - It is steady again once a sweep that began when it settled already found no flow recorded for
//!   anybody but its owner, or where every flow is looked up.

use std::{collections::BTreeSet, sync::Arc};

use lb_common::tables::{Phase, Slot, Tick, service_flag, state};

use super::{
    Draft, Inputs, NoRoom, has_passed,
    layout::{Placed, Recipe, Ring, slot_span},
    others::{self, Others},
    recipe::{self, Settings},
    routes::Routes,
};
use crate::{dataplane::Operation, model::Service, snapshot::Passed};

/// What a sweep allows a service's slots.
#[derive(Debug, Clone)]
struct Allowance<'a> {
    now: Tick,
    moving_time: Tick,
    /// The last choice that could not be recorded.
    overflow: Option<Tick>,
    /// Slots with flows recorded for others than their owners, by service.
    foreign: Vec<&'a BTreeSet<u32>>,
    /// Every flow is looked up, so that nothing waits for records.
    tracked: bool,
    /// Backends are told who else may have a flow.
    second_hop: bool,
}

impl Allowance<'_> {
    fn passed_since(&self, moved: Tick) -> bool {
        let passed = |since: Tick| has_passed(self.moving_time, since, self.now);
        passed(moved) && self.overflow.is_none_or(passed)
    }

    fn is_foreign(&self, place: u32) -> bool {
        self.foreign.iter().any(|slots| slots.contains(&place))
    }

    /// Whether it has passed since any of a ring's slots moved.
    fn passed(&self, ring: &Ring) -> bool {
        ring.moved.iter().all(|&moved| self.passed_since(moved))
    }
}

/// Local ids of members that hold no flows, or held none until this plan: the flows of one that is
/// back are as dead as it was.
pub(super) type Dead = BTreeSet<u32>;

/// Adds those that hold none as things stand.
pub(super) fn add_dead(dead: &mut Dead, placed: &Placed) {
    let members = placed.members();
    let without = members.filter(|(_, member)| member.backend.state & state::HOLDS == 0);
    dead.extend(without.map(|(id, _)| u32::from(id)));
}

/// A slot after its ring was built anew.
pub(super) fn moved(slot: Slot, owner: u32, woken: bool) -> Option<Slot> {
    match slot.phase() {
        // Flows of the time when its owner took none are recorded elsewhere.
        Phase::Steady if slot.owner() == owner && woken => {
            Some(Slot::new(owner, owner, Phase::Moving))
        }
        _ if slot.owner() == owner => None,
        Phase::Moving => Some(Slot::new(owner, slot.origin(), Phase::Moving)),
        Phase::Steady | Phase::Settling => Some(Slot::new(owner, slot.owner(), Phase::Moving)),
    }
}

impl Draft {
    /// Brings a service's ring to what its pool makes of it.
    pub(super) fn place_ring(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
        dead: &Dead,
    ) -> Result<(), NoRoom> {
        let settings = Settings::of(service);
        let mut wanted = recipe::wanted(service, placed);
        let before = placed.descriptor;
        let routes = self.routes(service, placed)?;
        let rerouted = !routes.is_same(&placed.routes);
        if wanted.is_empty() && service.is_split() && before.ring_size > 0 {
            wanted.size = before.ring_size;
        }
        let stays = !rerouted && wanted.size == before.ring_size;
        recipe::inherit(service, placed, &mut wanted, stays);
        if wanted.is_empty() && before.ring_size > 0 {
            wanted.size = before.ring_size;
        }
        settings.write(&mut placed.descriptor);
        // Without anybody to take new flows, those under way keep their backends.
        let build = !wanted.is_empty() && placed.recipe.as_ref() != Some(&wanted);
        let otherwise = rerouted || settings.places_otherwise(&before);
        let resized = wanted.size != before.ring_size;
        let whole = placed.ring.size() > 0 && (resized || otherwise);
        let stateless = placed.descriptor.moving_time == 0;
        let former = std::mem::replace(&mut placed.routes, routes);
        let names = service.second_hop && before.mode != placed.descriptor.mode;
        if whole && !stateless {
            self.move_whole(
                service,
                placed,
                &wanted,
                (before.fields(), former),
                inputs.now,
            )?;
        } else if (whole && rerouted) || !wanted.is_empty() && (build || self.has_woken(placed)) {
            let owners = recipe::owners(&wanted, placed);
            self.move_slots(service, placed, &owners, inputs, dead, names)?;
        } else if names {
            self.name_others(service, placed, inputs)?;
        } else if service.backends.is_empty() && is_forsaken(placed, inputs) {
            self.drop_ring(placed);
        }
        if build || whole {
            placed.recipe = Some(wanted);
        }
        let routed = [&placed.routes, &placed.previous_routes].map(Routes::number);
        placed.descriptor.set_routed(routed != [0; 2]);
        // Records of the time before it kept none may still be there.
        let doubtful = before.moving_time == 0 && before.ring_size > 0 && !stateless;
        let aside = placed.descriptor.ring_start != before.ring_start;
        let first = self.in_place.len();
        if self.revise(service, placed, inputs, dead, doubtful)? {
            let conditions = no_more_overflows(placed, inputs);
            if aside || self.in_place.len() == first {
                self.conditions.extend(conditions);
            } else {
                self.in_place.splice(first..first, conditions);
            }
        }
        self.place_sequence(service, placed)
    }

    fn has_woken(&self, placed: &Placed) -> bool {
        self.woken.contains_key(&placed.number)
    }

    /// Another size, hash or scheduler, or other routes: every slot moves, and the ring before answers for `origin`, where
    /// flows were placed by `fields` and routes.
    fn move_whole(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        wanted: &Recipe,
        (fields, routes): (u16, Routes),
        now: Tick,
    ) -> Result<(), NoRoom> {
        let owners = recipe::owners(wanted, placed);
        let slots: Vec<Slot> = owners
            .iter()
            .map(|&owner| Slot::new(owner.into(), owner.into(), Phase::Moving))
            .collect();
        let moved = vec![now; slots.len()];
        if placed.descriptor.flags & service_flag::MOVING == 0 {
            placed.previous = Some(Arc::clone(&placed.ring));
            let size = placed.descriptor.ring_size;
            let start = placed.ring.start;
            placed.descriptor.set_previous(start, size, fields);
            placed.previous_routes = routes;
            placed.descriptor.flags |= service_flag::MOVING;
            placed.passed.moving += u64::from(placed.ring.size());
        } else {
            self.release_span(placed.ring.start, placed.ring.size());
        }
        self.put_ring(service, placed, slots, moved)
    }

    /// Slots get new owners, one by one; with `names`, the others come to name whoever else may have their flows, too.
    fn move_slots(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        owners: &[u16],
        inputs: &Inputs<'_>,
        dead: &Dead,
        names: bool,
    ) -> Result<(), NoRoom> {
        let stateless = placed.descriptor.moving_time == 0;
        let now = inputs.now;
        let woken = self.woken.get(&placed.number);
        let mut others = Others::of(service, placed, owners.len() as u32, inputs);
        if placed.ring.size() != owners.len() as u32 || stateless {
            // The first ring, or a stateless service's: nothing to keep but what begins between the
            // switch and an owner's waking.
            let slots = owners.iter().enumerate().map(|(place, &owner)| {
                let late = !stateless && woken.is_some_and(|ids| ids.contains(&owner));
                if let Some(others) = &mut others {
                    return others.first(placed, place, owner, late);
                }
                let slot = Slot::steady(owner.into());
                moved(slot, owner.into(), late).unwrap_or(slot)
            });
            let slots = slots.collect();
            self.release_span(placed.ring.start, placed.ring.size());
            return self.put_ring(service, placed, slots, vec![now; owners.len()]);
        }
        let mut slots = placed.ring.slots.clone();
        let mut times = placed.ring.moved.clone();
        let mut changed = 0u64;
        let whole = placed.descriptor.flags & service_flag::MOVING != 0;
        let names = names && !whole;
        let both = slots.iter_mut().zip(&mut times).zip(owners);
        for (place, ((slot, when), &owner)) in both.enumerate() {
            let owner_woken = woken.is_some_and(|ids| ids.contains(&owner));
            // Flows that could not be recorded since the origin died are the last owner's.
            *slot = without_dead_origin(*slot, dead);
            let Some(next) = moved(*slot, owner.into(), owner_woken) else {
                if let Some(others) = others.as_mut().filter(|_| names) {
                    *slot = others.complete(placed, place, *slot);
                }
                continue;
            };
            *slot = without_dead_origin(next, dead);
            if let Some(others) = &mut others {
                *slot = others.complete(placed, place, *slot);
            }
            *when = now;
            changed += 1;
        }
        if changed == 0 && !names {
            return Ok(());
        }
        placed.passed.moving += changed;
        self.release_span(placed.ring.start, placed.ring.size());
        self.put_ring(service, placed, slots, times)
    }

    /// Slots come to name whoever else may have their flows, where they do not.
    fn name_others(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        let ring = Arc::clone(&placed.ring);
        let whole = placed.descriptor.flags & service_flag::MOVING != 0;
        let others = Others::of(service, placed, ring.size(), inputs);
        let Some(mut others) = others.filter(|_| !whole) else {
            return Ok(());
        };
        let slots = ring.slots.iter().enumerate();
        let slots = slots.map(|(place, &slot)| others.complete(placed, place, slot));
        let slots = slots.collect();
        self.release_span(ring.start, ring.size());
        self.put_ring(service, placed, slots, ring.moved.clone())
    }

    /// Slots name nobody who has gone: the next one to get that local id is a stranger to them. In place, before the grace
    /// period after which it is free.
    pub(super) fn forget_origins(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) {
        let ring = Arc::clone(&placed.ring);
        let has_gone = |slot: &Slot| {
            // What leads to somebody keeps him.
            slot.phase() != Phase::Moving
                && slot.origin() != slot.owner()
                && placed.member_by_id(slot.origin()).is_none()
        };
        if !ring.slots.iter().any(has_gone) {
            return;
        }
        let whole = placed.descriptor.flags & service_flag::MOVING != 0;
        let mut others = Others::of(service, placed, ring.size(), inputs).filter(|_| !whole);
        let kept = |(place, &slot): (usize, &Slot)| {
            if !has_gone(&slot) {
                return slot;
            }
            let alone = Slot::new(slot.owner(), slot.owner(), slot.phase());
            match &mut others {
                Some(others) => others.complete(placed, place, alone),
                None => alone,
            }
        };
        let slots = ring.slots.iter().enumerate().map(kept).collect();
        placed.ring = Arc::new(ring.with(slots));
        self.in_place
            .push(Operation::Slots(Arc::clone(&placed.ring)));
    }

    /// Writes a ring aside, and makes the descriptor name it.
    fn put_ring(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        slots: Vec<Slot>,
        moved: Vec<Tick>,
    ) -> Result<(), NoRoom> {
        let start = self.take_span(service, slots.len() as u32)?;
        self.moves.insert(placed.number);
        let ring = Arc::new(Ring::new(start, slots, moved));
        self.before.extend(ring.writes());
        placed.descriptor.ring_start = start;
        placed.descriptor.ring_size = ring.size() / placed.routes.parts();
        placed.ring = ring;
        Ok(())
    }

    /// Slots whose origin died, and those that a sweep lets go on. In place: each store is true by
    /// itself. Whether flows that are not recorded get another keeper by it.
    fn revise(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
        dead: &Dead,
        doubtful: bool,
    ) -> Result<bool, NoRoom> {
        let census = inputs.census.filter(|census| census.is_about(placed));
        let allowance = census.map(|census| Allowance {
            now: inputs.now,
            moving_time: placed.descriptor.moving_time,
            overflow: placed.overflows.at,
            foreign: census.foreign(placed),
            tracked: placed.descriptor.flags & service_flag::ALWAYS != 0,
            second_hop: service.second_hop,
        });
        let whole = placed.descriptor.flags & service_flag::MOVING != 0;
        let passed = |allowance: &Allowance<'_>| allowance.passed(&placed.ring);
        if whole && allowance.as_ref().is_some_and(passed) {
            self.end_whole_move(service, placed, inputs)?;
            return Ok(true);
        }
        let mut given_up = false;
        let unreachable = match whole {
            true => BTreeSet::new(),
            false => others::unreachable(service, placed, inputs),
        };
        if let Some(slots) = revised(
            placed,
            allowance.as_ref().filter(|_| !whole),
            (dead, &unreachable),
            doubtful,
        ) {
            let mut both = placed.ring.slots.iter().zip(&slots);
            // Unrecorded flows of a dead origin are the owner's already.
            given_up = both
                .any(|(&before, now)| without_dead_origin(before, dead).keeper() != now.keeper());
            placed.ring = Arc::new(placed.ring.with(slots));
            // Where the ring was written by this plan, this writes it once more, still aside.
            let ring = Arc::clone(&placed.ring);
            self.in_place.push(Operation::Slots(ring));
        }
        if let Some(previous) = &mut placed.previous
            && let Some(slots) = without_dead(previous, dead)
        {
            *previous = Arc::new(previous.with(slots));
            self.buried.push(Operation::Slots(Arc::clone(previous)));
        }
        Ok(given_up)
    }

    /// The ring before is given up. Whatever its flows were, they are recorded, or their backend owns
    /// their slot.
    fn end_whole_move(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        placed.descriptor.flags &= !service_flag::MOVING;
        placed.descriptor.set_previous(0, 0, 0);
        placed.previous_routes = Routes::default();
        placed.passed.settling += u64::from(placed.ring.size());
        if let Some(previous) = placed.previous.take() {
            self.release_span(previous.start, previous.size());
        }
        self.release_span(placed.ring.start, placed.ring.size());
        let mut others = Others::of(service, placed, placed.ring.size(), inputs);
        let settled = |(place, slot): (usize, &Slot)| match &mut others {
            Some(others) => others.settling(placed, place, slot.owner() as u16),
            None => Slot::new(slot.owner(), slot.owner(), Phase::Settling),
        };
        let slots = placed.ring.slots.iter().enumerate().map(settled).collect();
        let moved = placed.ring.moved.clone();
        self.put_ring(service, placed, slots, moved)
    }

    /// All backends were removed, and no flow is left: nothing needs to be found any more.
    fn drop_ring(&mut self, placed: &mut Placed) {
        self.release_span(placed.ring.start, placed.ring.size());
        placed.descriptor.ring_start = 0;
        placed.descriptor.ring_size = 0;
        placed.ring = Arc::default();
        placed.recipe = None;
    }

    /// The order in which a scheduler takes backends, written aside where it changed.
    fn place_sequence(&mut self, service: &Service, placed: &mut Placed) -> Result<(), NoRoom> {
        let wanted = recipe::sequence(service, placed);
        if wanted == placed.sequence {
            return Ok(());
        }
        let descriptor = &mut placed.descriptor;
        self.release_span(descriptor.schedule_start, descriptor.schedule_size);
        descriptor.schedule_start = 0;
        descriptor.schedule_size = wanted.len() as u32;
        if !wanted.is_empty() {
            let start = self.take_span(service, wanted.len() as u32)?;
            let slots = wanted.iter().map(|&id| Slot::steady(id.into())).collect();
            placed.descriptor.schedule_start = start;
            let sequence = Ring::new(start, slots, Vec::new());
            self.before.push(Operation::Slots(Arc::new(sequence)));
        }
        placed.sequence = wanted;
        Ok(())
    }

    fn take_span(&mut self, service: &Service, size: u32) -> Result<u32, NoRoom> {
        let start = self.layout.slots.take(slot_span(size));
        start.ok_or_else(|| NoRoom {
            what: format!("the ring of service {} ({size} slots)", service.id),
            setting: "ring_slots",
        })
    }

    pub(super) fn release_span(&mut self, start: u32, size: u32) {
        if size > 0 {
            self.released.slots.push(start);
        }
    }
}

/// Whether no flow of a pool can be under way: none is recorded, and no member has had a packet for the moving time.
fn is_forsaken(placed: &Placed, inputs: &Inputs<'_>) -> bool {
    let whole = placed.descriptor.flags & service_flag::MOVING != 0;
    let Some(census) = inputs.census.filter(|census| census.is_about(placed)) else {
        return false;
    };
    let mut members = placed.members();
    placed.ring.size() > 0
        && !whole
        && members.all(|(id, _)| placed.is_quiet(id) && census.is_vacant(placed, id))
}

/// What holds as long as a pool's services could record every choice since the plan's reading.
fn no_more_overflows(placed: &Placed, inputs: &Inputs<'_>) -> Vec<Operation> {
    let counted = |&index: &u32| Some((index, *inputs.overflows.get(&index)?));
    let counts = placed.services.values().filter_map(counted);
    counts
        .map(|(index, count)| Operation::Overflows(index, count))
        .collect()
}

/// The slots of a ring after its dead origins, those that can be told of and not be reached, and what a sweep allows; `None`
/// where none changes.
/// Where it is `doubtful` that steady slots have no records of others, they have to show it first.
fn revised(
    placed: &mut Placed,
    allowance: Option<&Allowance<'_>>,
    (dead, unreachable): (&Dead, &BTreeSet<u32>),
    doubtful: bool,
) -> Option<Vec<Slot>> {
    let ring = Arc::clone(&placed.ring);
    if ring.phases.steady == ring.size() && !doubtful {
        return None;
    }
    // Every plan passes here, and nothing of this ring can change by most of them.
    if allowance.is_none() && dead.is_empty() && unreachable.is_empty() && !doubtful {
        return None;
    }
    let mut slots: Option<Vec<Slot>> = None;
    for (place, (&slot, &when)) in ring.slots.iter().zip(&ring.moved).enumerate() {
        let mut next = without_dead_origin(slot, dead);
        if next.phase() == Phase::Moving && unreachable.contains(&next.origin()) {
            // Its unrecorded flows would be dropped: the owner has them, or hands them on.
            next = Slot::new(next.owner(), next.origin(), Phase::Settling);
        }
        if doubtful && next.phase() == Phase::Steady {
            next = Slot::new(next.owner(), next.owner(), Phase::Settling);
        } else if let Some(allowance) = allowance {
            next = advanced(next, when, place as u32, allowance);
        }
        if next != slot {
            count_passed(&mut placed.passed, next.phase(), slot.phase());
            slots.get_or_insert_with(|| ring.slots.clone())[place] = next;
        }
    }
    slots
}

fn count_passed(passed: &mut Passed, next: Phase, before: Phase) {
    match next {
        Phase::Settling if before != next => passed.settling += 1,
        Phase::Steady if before != next => passed.steady += 1,
        _ => {}
    }
}

/// The slot with its origin replaced where that holds no flows any more.
fn without_dead_origin(slot: Slot, dead: &Dead) -> Slot {
    if slot.phase() == Phase::Moving && dead.contains(&slot.origin()) {
        Slot::new(slot.owner(), slot.owner(), Phase::Moving)
    } else {
        slot
    }
}

/// The slots of a previous ring without those that hold no flows; `None` where none names any. Flows
/// of a dead origin that could not be recorded are the owner's.
fn without_dead(ring: &Ring, dead: &Dead) -> Option<Vec<Slot>> {
    let is_dead = |slot: &Slot| dead.contains(&slot.keeper());
    let slots = ring.slots.iter();
    ring.slots.iter().any(is_dead).then(|| {
        slots
            .map(|&slot| match slot.owner() {
                _ if !is_dead(&slot) => slot,
                owner if dead.contains(&owner) => Slot::steady(Slot::NOBODY),
                owner => Slot::steady(owner),
            })
            .collect()
    })
}

/// The slot as a sweep lets it be. One phase at a time: what the sweep found was true of the phase
/// that it began in.
fn advanced(slot: Slot, moved: Tick, place: u32, allowance: &Allowance<'_>) -> Slot {
    let owner = slot.owner();
    let other = if allowance.second_hop {
        slot.origin()
    } else {
        owner
    };
    match slot.phase() {
        Phase::Moving if allowance.passed_since(moved) => Slot::new(owner, other, Phase::Settling),
        Phase::Settling if allowance.tracked || !allowance.is_foreign(place) => {
            Slot::new(owner, other, Phase::Steady)
        }
        _ => slot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(foreign: &BTreeSet<u32>) -> Allowance<'_> {
        Allowance {
            now: 1_000,
            moving_time: 100,
            overflow: None,
            foreign: vec![foreign],
            tracked: false,
            second_hop: false,
        }
    }

    #[test]
    fn a_slot_that_moves_again_while_moving_keeps_its_origin() {
        let first = moved(Slot::steady(1), 2, false).unwrap();
        assert_eq!((first.owner(), first.origin()), (2, 1));
        let again = moved(first, 3, false).unwrap();
        assert_eq!(
            (again.owner(), again.origin(), again.phase()),
            (3, 1, Phase::Moving)
        );
        let back = moved(again, 1, false).unwrap();
        assert_eq!(
            (back.owner(), back.origin(), back.phase()),
            (1, 1, Phase::Moving)
        );
    }

    #[test]
    fn a_slot_that_moves_while_settling_gets_its_last_owner_as_its_origin() {
        let settling = Slot::new(2, 1, Phase::Settling);
        let next = moved(settling, 3, false).unwrap();
        assert_eq!(
            (next.owner(), next.origin(), next.phase()),
            (3, 2, Phase::Moving)
        );
    }

    #[test]
    fn a_steady_slot_moves_where_its_owner_takes_flows_again() {
        let next = moved(Slot::steady(1), 1, true).unwrap();
        assert_eq!(
            (next.owner(), next.origin(), next.phase()),
            (1, 1, Phase::Moving)
        );
        assert_eq!(moved(Slot::steady(1), 1, false), None);
    }

    #[test]
    fn a_slot_settles_after_the_moving_time_and_not_before() {
        let (nobody, slot) = (BTreeSet::new(), Slot::new(2, 1, Phase::Moving));
        let allowance = allowance(&nobody);
        assert_eq!(advanced(slot, 901, 0, &allowance), slot);
        assert_eq!(advanced(slot, 900, 0, &allowance).phase(), Phase::Settling);
        // Something has kept it from doing so for half of all ticks, which are 52 days.
        let long_ago = 900u32.wrapping_sub(1 << 31);
        assert_eq!(
            advanced(slot, long_ago, 0, &allowance).phase(),
            Phase::Settling
        );
        // Ticks wrap.
        let wrapped = Allowance {
            now: 50,
            ..allowance
        };
        assert_eq!(
            advanced(slot, u32::MAX - 49, 0, &wrapped).phase(),
            Phase::Settling
        );
        assert_eq!(advanced(slot, u32::MAX - 48, 0, &wrapped), slot);
    }

    #[test]
    fn a_choice_that_could_not_be_recorded_keeps_slots_moving() {
        let (nobody, slot) = (BTreeSet::new(), Slot::new(2, 1, Phase::Moving));
        let late = Allowance {
            overflow: Some(950),
            ..allowance(&nobody)
        };
        assert_eq!(advanced(slot, 100, 0, &late), slot);
    }

    #[test]
    fn a_settling_slot_waits_for_its_foreign_records() {
        let slot = Slot::new(2, 2, Phase::Settling);
        let foreign = BTreeSet::from([7]);
        assert_eq!(advanced(slot, 0, 7, &allowance(&foreign)), slot);
        assert_eq!(advanced(slot, 0, 8, &allowance(&foreign)), Slot::steady(2));
    }
}
