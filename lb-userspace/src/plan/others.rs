//! Who else may have the flows of a slot, of services with a second hop: by the configuration alone, as far as that tells of
//! its last change. Pure.
//!
//! What a slot's owner was before the last change is known for as long as the maps are: it stays there as its origin. Where
//! they are new, it is guessed, in this order, by whoever would own the slot
//! - if backends that are there still and take no new flows (drained ones, say) took their share;
//! - if the backend that is listed last, as one that was added last is, were not there;
//! - if its owner were not there, roughly.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    maglev,
    tables::{Phase, Slot, state},
};

use super::{
    Inputs,
    layout::{Placed, PlacedMember, Recipe},
    recipe,
};
use crate::model::Service;

/// Rings that were or would be, made as they are asked for.
#[derive(Debug)]
pub(super) struct Others {
    /// Of whoever takes new flows, or will as soon as there is a way to it.
    wished: Recipe,
    /// Of whoever keeps flows.
    all: Recipe,
    /// The backend that is listed last.
    last: Option<u16>,
    rings: BTreeMap<Kind, Vec<u16>>,
}

/// Whether nobody has found a way to a member in the time that this takes: it may never come.
fn has_no_way(member: &PlacedMember, inputs: &Inputs<'_>) -> bool {
    member.backend.interface == 0 && inputs.no_ways.contains(&member.address().ip())
}

/// Local ids of those that keep flows and that no way leads to, of a service where whoever gets their packets instead can be
/// told of them.
pub(super) fn unreachable(
    service: &Service,
    placed: &Placed,
    inputs: &Inputs<'_>,
) -> BTreeSet<u32> {
    let members = placed.members().filter(|_| service.second_hop);
    let lost = members.filter(|(_, member)| has_no_way(member, inputs));
    lost.map(|(id, _)| u32::from(id)).collect()
}

/// Which ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Wished,
    All,
    /// Of whoever takes new flows but for the one that is listed last.
    WithoutLast,
    /// Whoever comes to slots next after their owners: near to what a ring without each one would be, and made once for all.
    Seconds,
}

impl Others {
    /// Those of a service, for a ring of `size` slots; `None` where nobody is told.
    pub(super) fn of(
        service: &Service,
        placed: &Placed,
        size: u32,
        inputs: &Inputs<'_>,
    ) -> Option<Self> {
        if !service.second_hop {
            return None;
        }
        let recipe = |counts: &dyn Fn(&PlacedMember) -> bool| {
            let members = placed.members().filter(|(_, member)| counts(member));
            let weighed =
                members.filter_map(|(id, m)| Some((id, service.backend(m.address())?.weight)));
            let claims = weighed.filter(|&(_, weight)| weight > 0).collect();
            Recipe {
                size,
                claims: vec![claims],
            }
        };
        let holds = |member: &PlacedMember| member.backend.state & state::HOLDS != 0;
        let awaited = |member: &PlacedMember| {
            let backend = service.backend(member.address());
            member.backend.interface == 0
                && backend.is_some_and(|backend| backend.is_wanted())
                && !has_no_way(member, inputs)
        };
        let id_of = |address| {
            let mut members = placed.members();
            members.find_map(|(id, member)| (member.address() == address).then_some(id))
        };
        Some(Self {
            wished: recipe(&|member| {
                recipe::takes(service, member) || holds(member) && awaited(member)
            }),
            all: recipe(&holds),
            last: service.backends.last().and_then(|last| id_of(last.address)),
            rings: BTreeMap::new(),
        })
    }

    fn owner(&mut self, placed: &Placed, kind: Kind, place: usize) -> u16 {
        let ring = self.rings.entry(kind).or_insert_with(|| match kind {
            Kind::Wished => recipe::owners(&self.wished, placed),
            Kind::All => recipe::owners(&self.all, placed),
            Kind::WithoutLast => {
                let mut recipe = self.wished.clone();
                for claims in &mut recipe.claims {
                    claims.retain(|&(id, _)| Some(id) != self.last);
                }
                recipe::owners(&recipe, placed)
            }
            Kind::Seconds => recipe::seconds(&self.wished, placed),
        });
        ring.get(place).copied().unwrap_or(maglev::NOBODY)
    }

    /// Who else may have flows of the slot at `place`; its owner, where that is nobody.
    fn other(&mut self, placed: &Placed, place: usize, owner: u16) -> u16 {
        // The last is for a slot whose owner is not the one that it is to have.
        let kinds = [Kind::All, Kind::WithoutLast, Kind::Seconds, Kind::Wished];
        let mut kinds = kinds.into_iter();
        kinds
            .find_map(|kind| {
                let other = self.owner(placed, kind, place);
                (other != owner && other != maglev::NOBODY).then_some(other)
            })
            .unwrap_or(owner)
    }

    /// A slot of a pool's first ring. Where its owner only stands in for one to which there is no way yet, flows that are
    /// under way are not the owner's.
    pub(super) fn first(&mut self, placed: &Placed, place: usize, owner: u16, late: bool) -> Slot {
        match self.owner(placed, Kind::Wished, place) {
            keeper if keeper != owner && keeper != maglev::NOBODY => {
                Slot::new(owner.into(), keeper.into(), Phase::Moving)
            }
            _ if late => self.settling(placed, place, owner),
            _ => Slot::new(
                owner.into(),
                self.other(placed, place, owner).into(),
                Phase::Steady,
            ),
        }
    }

    /// A slot whose unrecorded flows are its owner's, and that may have recorded ones of others.
    pub(super) fn settling(&mut self, placed: &Placed, place: usize, owner: u16) -> Slot {
        let other = self.other(placed, place, owner);
        Slot::new(owner.into(), other.into(), Phase::Settling)
    }

    /// A slot that names somebody else where it has room for that and names nobody. One that moves to whom its unrecorded flows
    /// belong to already is as good as one that settles, which has.
    pub(super) fn complete(&mut self, placed: &Placed, place: usize, slot: Slot) -> Slot {
        let owner = slot.owner();
        if slot.origin() != owner {
            return slot;
        }
        let other = self.other(placed, place, owner as u16);
        let phase = match slot.phase() {
            Phase::Moving => Phase::Settling,
            phase => phase,
        };
        Slot::new(owner, other.into(), phase)
    }
}
