//! What a service's settings and pool make of its ring, its sequence and its descriptor. Pure, and
//! without a look at what is in the maps but for local ids.

use std::collections::BTreeSet;

use lb_common::{
    maglev::{self, Claim},
    tables::{Descriptor, Phase, Slot, TICK_SHIFT, Tick, scheduler, service_flag, state},
};

use super::layout::{Claims, Placed, PlacedMember, Recipe};
use crate::model::{Scheduler, Service, Subsets};

/// Places of a sequence at most: weights are scaled down beyond.
const LONGEST_SEQUENCE: u32 = 65_536;

/// The part of a descriptor that settings decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    mode: u8,
    scheduler: u8,
    flags: u16,
    moving_time: Tick,
    quic: u8,
    persistence: Tick,
}

impl Settings {
    pub(super) fn of(service: &Service) -> Self {
        let scheduler = match service.scheduler {
            Scheduler::Maglev | Scheduler::SourceHash | Scheduler::ThreeTupleHash => {
                scheduler::RING
            }
            Scheduler::RoundRobin | Scheduler::WeightedRoundRobin => scheduler::TURNS,
            Scheduler::LeastConnections | Scheduler::WeightedLeastConnections => scheduler::LEAST,
            Scheduler::PowerOfTwoChoices => scheduler::TWO_CHOICES,
        };
        let counted = service.counts_flows();
        let always = service.records_every_flow();
        let fields = service.scheduler.hash_fields().unwrap_or(0);
        let flag = |condition, flag| if condition { flag } else { 0 };
        Self {
            mode: service.mode_number(),
            scheduler,
            flags: flag(counted, service_flag::COUNTED)
                | flag(always, service_flag::ALWAYS)
                | fields
                | flag(service.keeps_port(), service_flag::KEEPS_PORT)
                | flag(service.is_guarded(), service_flag::GUARDED)
                | u16::from(service.no_backend.number()) << service_flag::REFUSAL_SHIFT
                | u16::from(128 - service.client_bits()) << service_flag::CLIENT_SHIFT,
            moving_time: ticks(service.moving_time()),
            quic: service.quic.map_or(0, |quic| quic.lengths().0),
            persistence: ticks(service.persistence),
        }
    }

    /// Whether flows would be placed otherwise than under `before`, whatever the pool.
    pub(super) fn places_otherwise(&self, before: &Descriptor) -> bool {
        let flags = service_flag::ALWAYS | service_flag::FIELDS;
        self.scheduler != before.scheduler()
            || (self.persistence == 0) != (before.persistence == 0)
            || self.flags & flags != before.flags & flags
    }

    pub(super) fn write(&self, descriptor: &mut Descriptor) {
        descriptor.mode = self.mode;
        descriptor.set_scheduler(self.scheduler);
        descriptor.flags = (descriptor.flags & service_flag::MOVING) | self.flags;
        descriptor.moving_time = self.moving_time;
        descriptor.quic = self.quic;
        descriptor.persistence = self.persistence;
    }
}

/// A duration in ticks, rounded up; the longest that ticks can tell where it is longer.
pub fn ticks(duration: std::time::Duration) -> Tick {
    let ticks = duration.as_nanos().div_ceil(1 << TICK_SHIFT);
    Tick::try_from(ticks)
        .unwrap_or(Tick::MAX)
        .min(i32::MAX as Tick)
}

/// Another CPU, or a clock that was read before, may be so many ticks ahead: less than twenty minutes.
const AHEAD: Tick = 1 << 20;

/// Whether a time has passed since a tick, up to 52 days ago.
pub fn has_passed(time: Tick, since: Tick, now: Tick) -> bool {
    let age = now.wrapping_sub(since);
    age >= time && age < Tick::MAX - AHEAD
}

/// Ticks as a duration.
pub fn duration(ticks: Tick) -> std::time::Duration {
    std::time::Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)
}

/// A backend takes new flows while it is active, has weight, is up and can be reached: the last two are in its state.
pub(super) fn takes(service: &Service, member: &PlacedMember) -> bool {
    service
        .backend(member.address())
        .is_some_and(|backend| backend.is_wanted() && member.backend.state & state::TAKES != 0)
}

/// What the ring should be made of.
pub(super) fn wanted(service: &Service, placed: &Placed) -> Recipe {
    let subsets = service.subsets();
    let claims = (0..subsets.count()).map(|number| {
        let takes = |member: &PlacedMember| takes(service, member);
        claims_of(service, placed, &subsets, number, takes)
    });
    // Down and drained backends count, so that a failure does not change the size.
    let current = Some(placed.descriptor.ring_size).filter(|&size| size > 0);
    let size = service
        .ring_size
        .unwrap_or_else(|| maglev::suitable_size(service.backends.len(), current));
    Recipe {
        size,
        claims: claims.collect(),
    }
}

/// Members of a subset that are wanted and fit otherwise, with their weights.
fn claims_of(
    service: &Service,
    placed: &Placed,
    subsets: &Subsets<'_>,
    number: usize,
    fits: impl Fn(&PlacedMember) -> bool,
) -> Claims {
    let members = placed.members().filter(|(_, member)| fits(member));
    let wanted = members.filter_map(|(id, member)| {
        let backend = service.backend(member.address())?;
        subsets
            .serves(backend, number)
            .then_some((id, backend.weight))
    });
    wanted.collect()
}

impl Recipe {
    /// Whether nobody has a claim.
    pub(super) fn is_empty(&self) -> bool {
        self.claims.iter().all(Vec::is_empty)
    }

    /// Parts of the ring.
    fn parts(&self) -> u32 {
        self.claims.len() as u32
    }

    /// Slots of all of them.
    pub(super) fn slots(&self) -> u32 {
        self.size * self.parts()
    }
}

/// Who gets the slots of a part of the ring where nobody takes new flows, of backends that are not in it any more: those that
/// are wanted and hold some. The slots would lead to the removed ones for ever. Nobody where there is nothing to inherit; where
/// parts do not stay what they are, every part has somebody, as soon as one has.
pub(super) fn inherit(service: &Service, placed: &Placed, recipe: &mut Recipe, stays: bool) {
    let (none_takes, split) = (recipe.is_empty(), service.is_split());
    let subsets = service.subsets();
    for (number, claims) in recipe.claims.iter_mut().enumerate() {
        if !claims.is_empty() {
            continue;
        }
        let all = claims_of(service, placed, &subsets, number, |_| true);
        let inherits = if split && !stays {
            !none_takes || placed.ring.size() > 0
        } else {
            let slots = match split {
                true => part(&placed.ring.slots, recipe.size, number),
                false => &placed.ring.slots,
            };
            let its: BTreeSet<u32> = all.iter().map(|&(id, _)| id.into()).collect();
            slots.iter().any(|slot| !its.contains(&slot.owner()))
        };
        if !inherits {
            // As they were made, so that the next plan finds nothing to do.
            let known = placed.recipe.as_ref().filter(|_| split && stays);
            if let Some(made) = known.and_then(|recipe| recipe.claims.get(number)) {
                claims.clone_from(made);
            }
            continue;
        }
        let holds = |member: &PlacedMember| member.backend.state & state::HOLDS != 0;
        *claims = claims_of(service, placed, &subsets, number, holds);
        if claims.is_empty() && split {
            // One that is up for others would get new flows of those that it is not for.
            *claims = all;
        }
        for (_, weight) in claims {
            *weight = (*weight).max(1);
        }
    }
}

/// A part of a ring by its number, of parts of `size` slots.
fn part(slots: &[Slot], size: u32, number: usize) -> &[Slot] {
    let mut parts = slots.chunks(size.max(1) as usize);
    parts.nth(number).unwrap_or_default()
}

/// The owners that a recipe makes. A part that nobody claims has those that it has.
pub(super) fn owners(recipe: &Recipe, placed: &Placed) -> Vec<u16> {
    let mut owners = vec![maglev::NOBODY; recipe.slots() as usize];
    let parts = owners.chunks_mut(recipe.size.max(1) as usize);
    for (number, (owners, claimed)) in parts.zip(&recipe.claims).enumerate() {
        if !claimed.is_empty() {
            maglev::fill(owners, &mut claims(claimed, recipe.size, placed));
            continue;
        }
        let first = placed.ring.slots.as_slice();
        let standing = match part(first, recipe.size, number) {
            // There are more parts than there were, and nobody takes new flows in any.
            [] => first,
            its => its,
        };
        for (owner, slot) in owners.iter_mut().zip(standing) {
            *owner = slot.owner() as u16;
        }
    }
    owners
}

/// Who would own slots of the ring that a recipe makes if their owners were not there, roughly.
pub(super) fn seconds(recipe: &Recipe, placed: &Placed) -> Vec<u16> {
    let mut seconds = vec![maglev::NOBODY; recipe.size as usize];
    let mut owners = seconds.clone();
    let claimed = recipe.claims.first().map_or(&[][..], Vec::as_slice);
    let mut claims = claims(claimed, recipe.size, placed);
    maglev::fill_with_seconds(&mut owners, &mut seconds, &mut claims);
    seconds
}

fn claims(claimed: &[(u16, u16)], size: u32, placed: &Placed) -> Vec<Claim> {
    let mut claims: Vec<Claim> = claimed
        .iter()
        .filter_map(|&(id, weight)| {
            let member = placed.member_by_id(id.into())?;
            let (address, port) = (&member.backend.address, member.backend.port);
            Some(Claim::new(id, address, port, weight, size))
        })
        .collect();
    // In the order of addresses, which every balancer shares, not in that of local ids.
    claims.sort_by_key(|claim| {
        placed
            .member_by_id(claim.id().into())
            .map(PlacedMember::address)
    });
    claims
}

/// Slots that are not steady.
pub fn unsteady(placed: &Placed) -> u32 {
    match placed.descriptor.flags & service_flag::MOVING {
        0 => placed.ring.size() - placed.ring.phases.steady,
        // All of them, whatever their phases.
        _ => placed.ring.size(),
    }
}

/// Slots that would not be, were the service what is wanted now.
pub fn unsteady_after(placed: &Placed, service: &Service) -> u32 {
    let recipe = wanted(service, placed);
    if recipe.slots() != placed.ring.size() || unsteady(placed) == placed.ring.size() {
        return placed.ring.size();
    }
    if recipe.is_empty() {
        return unsteady(placed);
    }
    let owners = owners(&recipe, placed);
    let slots = placed.ring.slots.iter().zip(owners);
    let moves = slots
        .filter(|(slot, owner)| slot.phase() != Phase::Steady || slot.owner() != u32::from(*owner));
    moves.count() as u32
}

/// The order in which a scheduler that takes turns or draws goes through the pool; empty for others.
pub(super) fn sequence(service: &Service, placed: &Placed) -> Vec<u16> {
    let weighted = match service.scheduler {
        Scheduler::RoundRobin => false,
        Scheduler::WeightedRoundRobin | Scheduler::PowerOfTwoChoices => true,
        _ => return Vec::new(),
    };
    // Who takes from a sequence has no subsets.
    let claims = wanted(service, placed).claims.into_iter().flatten();
    let claims: Vec<(u16, u32)> = claims
        .map(|(id, weight)| (id, if weighted { u32::from(weight) } else { 1 }))
        .collect();
    smooth(&scaled(claims))
}

/// Weights in the same ratio as small as they go, and so that all of them fit a sequence.
fn scaled(mut claims: Vec<(u16, u32)>) -> Vec<(u16, u32)> {
    let divisor = claims
        .iter()
        .fold(0, |gcd, &(_, weight)| greatest_common_divisor(gcd, weight));
    let total: u32 = claims
        .iter()
        .map(|&(_, weight)| weight / divisor.max(1))
        .sum();
    let shrink = divisor.max(1) * total.div_ceil(LONGEST_SEQUENCE).max(1);
    for (_, weight) in &mut claims {
        *weight = (*weight / shrink).max(1);
    }
    claims
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// Each id as often as its weight says, spread out: the k-th of n comes at (2k + 1) / 2n of the way.
fn smooth(claims: &[(u16, u32)]) -> Vec<u16> {
    let mut places: Vec<(u64, u16)> = claims
        .iter()
        .flat_map(|&(id, weight)| {
            let (weight, unit) = (u64::from(weight), 1u64 << 32);
            (0..weight).map(move |k| ((2 * k + 1) * unit / (2 * weight), id))
        })
        .collect();
    places.sort_unstable();
    places.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_sequence_holds_each_id_as_often_as_its_weight_and_spreads_it() {
        let sequence = smooth(&scaled(vec![(0, 4), (1, 2), (2, 2)]));
        assert_eq!(sequence.len(), 4);
        assert_eq!(sequence.iter().filter(|&&id| id == 0).count(), 2);
        assert_ne!(sequence[0], sequence[1]);
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(smooth(&scaled(vec![(0, 7), (3, 7), (9, 7)])), [0, 3, 9]);
    }

    #[test]
    fn a_sequence_stays_within_its_bounds() {
        let claims: Vec<(u16, u32)> = (0..4_096)
            .map(|id| (id, u32::from(id) % 1_000 + 1))
            .collect();
        let sequence = smooth(&scaled(claims));
        assert!(
            sequence.len() <= LONGEST_SEQUENCE as usize + 4_096,
            "{}",
            sequence.len()
        );
    }

    #[test]
    fn a_time_has_passed_however_long_ago_it_was_and_not_where_it_is_to_come() {
        for since in [0, 5, Tick::MAX - 3] {
            for (age, has) in [(99, false), (100, true), (1 << 31, true), (3 << 30, true)] {
                assert_eq!(
                    has_passed(100, since, since.wrapping_add(age)),
                    has,
                    "{age}"
                );
            }
            assert!(!has_passed(100, since, since.wrapping_sub(1_000)));
        }
    }

    #[test]
    fn ticks_round_up_and_stay_tellable() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_nanos(1)), 1);
        assert_eq!(ticks(Duration::from_secs(5)), 4_769);
        assert_eq!(ticks(Duration::MAX), i32::MAX as Tick);
    }
}
