//! Which backend a new flow gets. Only new flows come here; those under way are [`crate::track`]'s.

use crate::{
    hash::FlowHash,
    steer::{self, ATTEMPTS, Candidate, Service},
    tables::{Slot, Tables, scheduler},
};

/// Turns taken before the ring is asked instead: a sequence names backends that the agent knew to
/// take flows, so that few are passed over.
const TURNS: u32 = 4;
/// Backends compared for the fewest flows. Larger pools are compared in windows of this size, one
/// window a flow, which comes as close for pools in which every window is loaded alike.
pub const COMPARED: u32 = 64;

/// What [`choose`] says where no backend takes new flows: larger than any local id.
pub const NOBODY: u32 = u32::MAX;

/// Local id of the backend that a new flow gets, or [`NOBODY`]. `half` is the half of the service in
/// force, `slot` the flow's own.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, service: u32, half: u32, hash: FlowHash, slot: Slot) -> u32 {
    let Some(service) = Service::at(tables, service, half) else {
        return NOBODY;
    };
    // Ids alone are carried on: the kernel gives its functions little room.
    let id = |candidate: Option<Candidate<'_>>| candidate.map_or(NOBODY, |candidate| candidate.id);
    let descriptor = service.descriptor;
    let picked = match descriptor.scheduler {
        scheduler::TURNS => id(next(tables, &service)),
        scheduler::TWO_CHOICES => id(two_choices(tables, &service, hash)),
        _ => NOBODY,
    };
    let picked = match picked {
        NOBODY => id(ring(tables, &service, hash, slot)),
        picked => picked,
    };
    // Few may take one more, because of limits or since the others have just died, and those must be
    // found: a flow that finds none is lost, as all its packets lead to the same few.
    if descriptor.scheduler != scheduler::LEAST && picked != NOBODY {
        return picked;
    }
    match id(least(tables, &service)) {
        NOBODY => picked,
        least => least,
    }
}

/// Whether a backend takes one more flow.
#[inline(always)]
pub fn eligible<T: Tables>(tables: &T, candidate: &Candidate<'_>) -> bool {
    let limit = candidate.member.limit;
    candidate.takes() && (limit == 0 || tables.load(candidate.backend.counters) < limit)
}

/// The owner of the flow's slot, or of the next that its hash leads to.
#[inline(always)]
fn ring<'t, T: Tables>(
    tables: &'t T,
    service: &Service<'t>,
    hash: FlowHash,
    slot: Slot,
) -> Option<Candidate<'t>> {
    let descriptor = service.descriptor;
    let mut slot = slot;
    for attempt in 1..=ATTEMPTS {
        let candidate = steer::candidate(tables, descriptor, slot.owner())?;
        if eligible(tables, &candidate) {
            return Some(candidate);
        }
        slot = steer::slot(tables, descriptor, hash, attempt)?;
    }
    None
}

/// The backend at a place of the service's sequence.
#[inline(always)]
fn scheduled<'t, T: Tables>(
    tables: &'t T,
    service: &Service<'t>,
    place: u32,
) -> Option<Candidate<'t>> {
    let descriptor = service.descriptor;
    let slot = steer::slot_at(tables, descriptor.schedule_start, place)?;
    steer::candidate(tables, descriptor, slot.owner())
}

#[inline(always)]
fn next<'t, T: Tables>(tables: &'t T, service: &Service<'t>) -> Option<Candidate<'t>> {
    let size = service.descriptor.schedule_size;
    if size == 0 {
        return None;
    }
    for _ in 0..TURNS {
        let place = tables.turn(service.descriptor.pool.into()) % size;
        if let Some(candidate) = scheduled(tables, service, place)
            && eligible(tables, &candidate)
        {
            return Some(candidate);
        }
    }
    None
}

/// Flows in progress, and the weight that they are to be compared by.
#[derive(Clone, Copy)]
struct Share {
    flows: u32,
    weight: u32,
}

impl Share {
    #[inline(always)]
    fn of<T: Tables>(tables: &T, candidate: &Candidate<'_>) -> Self {
        Self {
            flows: tables.load(candidate.backend.counters),
            weight: candidate.member.weight,
        }
    }

    /// Whether one more flow would weigh less here than there. Cross-multiplied, since the kernel's
    /// program divides slowly.
    #[inline(always)]
    fn is_lighter_than(self, other: Self) -> bool {
        let cost = |flows: u32, weight: u32| (u64::from(flows) + 1) * u64::from(weight);
        cost(self.flows, other.weight) < cost(other.flows, self.weight)
    }
}

#[inline(always)]
fn least<'t, T: Tables>(tables: &'t T, service: &Service<'t>) -> Option<Candidate<'t>> {
    let members = u32::from(service.descriptor.members_len);
    if members == 0 {
        return None;
    }
    // Starting elsewhere every time shares ties out.
    let turn = tables.turn(service.descriptor.pool.into());
    let step = if members > COMPARED { COMPARED } else { 1 };
    let start = turn.wrapping_mul(step) % members;
    // Plain numbers: a reference that is carried through the loop is one more state to verify.
    let mut best = Share {
        flows: u32::MAX,
        weight: 0,
    };
    let mut best_id = members;
    for step in 0..COMPARED {
        if step >= members {
            break;
        }
        let place = start + step;
        let id = if place >= members {
            place - members
        } else {
            place
        };
        let Some(candidate) = steer::candidate(tables, service.descriptor, id) else {
            continue;
        };
        let share = Share::of(tables, &candidate);
        if eligible(tables, &candidate) && (best_id == members || share.is_lighter_than(best)) {
            best = share;
            best_id = id;
        }
    }
    steer::candidate(tables, service.descriptor, best_id)
}

#[inline(always)]
fn two_choices<'t, T: Tables>(
    tables: &'t T,
    service: &Service<'t>,
    hash: FlowHash,
) -> Option<Candidate<'t>> {
    let size = service.descriptor.schedule_size;
    if size == 0 {
        return None;
    }
    let draw = |attempt| {
        scheduled(tables, service, hash.slot(size, attempt))
            .filter(|candidate| eligible(tables, candidate))
    };
    match (draw(ATTEMPTS + 1), draw(ATTEMPTS + 2)) {
        (Some(one), Some(other)) => {
            let lighter = Share::of(tables, &other).is_lighter_than(Share::of(tables, &one));
            Some(if lighter { other } else { one })
        }
        (one, other) => one.or(other),
    }
}
