//! Which backend a new flow gets. Only new flows come here; those under way are [`crate::track`]'s.

use crate::{
    hash::FlowHash,
    steer::{self, ATTEMPTS, Candidate, Service, Spot},
    tables::{Slot, Tables, feature, scheduler},
};

/// Turns taken before the ring is asked instead: a sequence names backends that the agent knew to
/// take flows, so that few are passed over.
const TURNS: u32 = 4;
/// Backends compared for the fewest flows. Larger pools are compared in windows of this size, one
/// window a flow as long as it has somebody who takes it, which comes as close for pools in which every
/// window is loaded alike.
pub const COMPARED: u32 = 64;
/// Windows of the largest pool that local ids allow.
const WINDOWS: u32 = (Slot::MAX_ID + 1).div_ceil(COMPARED);

/// What is said where no backend takes new flows: larger than any local id.
pub const NOBODY: u32 = u32::MAX;

/// Local id of the backend that a new flow gets, or [`NOBODY`]. `half` is the half of the service in
/// force, `spot` the flow's own.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, service: u32, half: u32, hash: FlowHash, spot: Spot) -> u32 {
    // Few may take one more, because of limits or since the others have just died, and those must be
    // found: a flow that finds none is lost, as all its packets lead to the same few.
    match tables.pick(service, half, hash, spot) {
        NOBODY => tables.least(service, half, spot.subset),
        picked => picked,
    }
}

/// Local id of the backend that the scheduler picks, or the ring where it does not; [`NOBODY`] where those
/// few decline that are asked, or all are to be compared.
#[inline(always)]
pub fn pick<T: Tables>(tables: &T, service: u32, half: u32, hash: FlowHash, spot: Spot) -> u32 {
    let Some(service) = Service::at(tables, service, half) else {
        return NOBODY;
    };
    // Ids alone are carried on: the kernel gives its functions little room.
    let picked = match service.descriptor.scheduler() {
        scheduler::TURNS => id(next(tables, &service)),
        scheduler::TWO_CHOICES => id(two_choices(tables, &service, hash)),
        scheduler::LEAST => return NOBODY,
        _ => NOBODY,
    };
    match picked {
        NOBODY => id(ring(tables, &service, hash, spot)),
        picked => picked,
    }
}

/// Local id of the backend that has the fewest flows for its weight of a window, or of the next one that
/// has anybody who takes a flow; [`NOBODY`] where nobody of the subset does, which all of the pool is asked for.
#[inline(always)]
pub fn least<T: Tables>(tables: &T, service: u32, half: u32, subset: u32) -> u32 {
    let Some(Service { descriptor, .. }) = Service::at(tables, service, half) else {
        return NOBODY;
    };
    let members = u32::from(descriptor.members_len);
    if members == 0 {
        return NOBODY;
    }
    // Starting elsewhere every time shares ties out.
    let turn = tables.turn(descriptor.pool.into());
    let step = if members > COMPARED { COMPARED } else { 1 };
    let mut start = turn.wrapping_mul(step) % members;
    for window in 0..WINDOWS {
        if window * COMPARED >= members {
            break;
        }
        let lightest = tables.lightest(service, half, subset, start);
        if lightest != NOBODY {
            return lightest;
        }
        start += COMPARED;
        if start >= members {
            start -= members;
        }
    }
    NOBODY
}

#[inline(always)]
fn id(candidate: Option<Candidate<'_>>) -> u32 {
    candidate.map_or(NOBODY, |candidate| candidate.id)
}

/// Whether a backend takes one more flow.
#[inline(always)]
fn takes_more<T: Tables>(tables: &T, candidate: &Candidate<'_>) -> bool {
    let limit = candidate.member.limit;
    candidate.takes() && (limit == 0 || tables.load(candidate.backend.counters) < limit)
}

/// Whether it takes one more of a subset's clients. Not asked of owners of slots, which are of the subset whose part of the
/// ring these are in, nor of sequences, which services with subsets do not have.
#[inline(always)]
pub fn eligible<T: Tables>(tables: &T, candidate: &Candidate<'_>, subset: u32) -> bool {
    takes_more(tables, candidate)
        && !(tables.knows(feature::SOURCE_ROUTES) && is_apart(candidate, subset))
}

/// Whether a backend is not of a subset.
#[inline(always)]
fn is_apart(candidate: &Candidate<'_>, subset: u32) -> bool {
    u32::from(candidate.member.apart) >> (subset & 15) & 1 != 0
}

/// The owner of the flow's slot, or of the next that its hash leads to.
#[inline(always)]
fn ring<'t, T: Tables>(
    tables: &'t T,
    service: &Service<'t>,
    hash: FlowHash,
    spot: Spot,
) -> Option<Candidate<'t>> {
    let descriptor = service.descriptor;
    let Spot { mut slot, subset } = spot;
    for attempt in 1..=ATTEMPTS {
        let candidate = steer::candidate(tables, descriptor, slot.owner())?;
        if takes_more(tables, &candidate) {
            return Some(candidate);
        }
        slot = steer::slot(tables, descriptor, subset, hash, attempt)?;
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
            && takes_more(tables, &candidate)
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
            weight: candidate.member.weight.into(),
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

/// Local id of the backend that has the fewest flows for its weight of the [`COMPARED`] from `start` on,
/// which is a local id, or of all where those are fewer; [`NOBODY`] where none of them takes one more of the subset's.
#[inline(always)]
pub fn lightest<T: Tables>(tables: &T, service: u32, half: u32, subset: u32, start: u32) -> u32 {
    let Some(service) = Service::at(tables, service, half) else {
        return NOBODY;
    };
    let members = u32::from(service.descriptor.members_len);
    let mut best = Best::NOBODY;
    for step in 0..COMPARED {
        if step >= members {
            break;
        }
        let place = start.wrapping_add(step);
        let id = if place >= members {
            place.wrapping_sub(members)
        } else {
            place
        };
        let Some(candidate) = steer::candidate(tables, service.descriptor, id) else {
            continue;
        };
        let share = Share::of(tables, &candidate);
        let is_lighter = best.is_nobody() || share.is_lighter_than(best.share());
        if eligible(tables, &candidate, subset) && is_lighter {
            best = Best::of(share, id);
        }
    }
    best.id()
}

/// The lightest so far, in one word: a reference that is carried through a loop is one more state to verify, and each number
/// takes of the stack.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Best(u64);

impl Best {
    const NOBODY: Self = Self(u64::MAX);

    #[inline(always)]
    fn of(share: Share, id: u32) -> Self {
        Self(u64::from(share.flows) << 32 | u64::from(share.weight & 0xffff) << 16 | u64::from(id))
    }

    #[inline(always)]
    fn is_nobody(self) -> bool {
        self == Self::NOBODY
    }

    #[inline(always)]
    fn share(self) -> Share {
        let Self(word) = self;
        Share {
            flows: (word >> 32) as u32,
            weight: (word >> 16) as u32 & 0xffff,
        }
    }

    #[inline(always)]
    fn id(self) -> u32 {
        let Self(word) = self;
        if self.is_nobody() {
            NOBODY
        } else {
            word as u32 & 0xffff
        }
    }
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
            .filter(|candidate| takes_more(tables, candidate))
    };
    match (draw(ATTEMPTS + 1), draw(ATTEMPTS + 2)) {
        (Some(one), Some(other)) => {
            let lighter = Share::of(tables, &other).is_lighter_than(Share::of(tables, &one));
            Some(if lighter { other } else { one })
        }
        (one, other) => one.or(other),
    }
}
