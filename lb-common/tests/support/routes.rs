//! Stages whose last service has source routes, and a ring of parts.

use lb_common::tables::{Phase, Slot, access, feature, service_flag};

use super::{FIRST_MEMBER, Stage, guards::key};

/// Slots of each part.
const SIZE: u32 = 8;

impl Stage {
    /// A list of routes of a number: prefixes, and the subsets that they lead to.
    pub fn routes(mut self, number: u32, routes: &[(&str, u32)]) -> Self {
        for &(prefix, subset) in routes {
            let says = access::SUBSET + subset;
            self.tables.access.insert(key(number, prefix), says);
        }
        self
    }

    /// Flows are placed by the routes of one number, and were by those of another, 0 for none.
    pub fn routed(mut self, routes: u32, previous: u32) -> Self {
        self.tables.control.features |= feature::SOURCE_ROUTES;
        let routed = self.guards(|guard| {
            (guard.routes, guard.previous_routes) = (routes, previous);
        });
        routed
            .unguarded()
            .describe(|descriptor| descriptor.set_routed(true))
    }

    /// The owner of all slots of each part of the ring.
    pub fn in_parts(mut self, owners: &[u32]) -> Self {
        let slots = parts(owners.iter().map(|&owner| Slot::steady(owner)));
        let (start, _) = self.lay(&slots);
        self.describe(|descriptor| {
            (descriptor.ring_start, descriptor.ring_size) = (start, SIZE);
        })
    }

    /// The ring, of sixteen slots, is two parts.
    pub fn in_two_parts(self) -> Self {
        self.describe(|descriptor| descriptor.ring_size = SIZE)
    }

    /// All slots of each part move, to the first from the second.
    pub fn moving_in_parts(mut self, moves: &[(u32, u32)]) -> Self {
        let moves = moves.iter();
        let slots = parts(moves.map(|&(owner, origin)| Slot::new(owner, origin, Phase::Moving)));
        let (start, _) = self.lay(&slots);
        self.describe(|descriptor| {
            (descriptor.ring_start, descriptor.ring_size) = (start, SIZE);
        })
    }

    /// The same of the ring that the whole service moves from.
    pub fn moving_from_parts(mut self, owners: &[u32]) -> Self {
        let slots = parts(owners.iter().map(|&owner| Slot::steady(owner)));
        let (start, _) = self.lay(&slots);
        self.describe(|descriptor| {
            descriptor.flags |= service_flag::MOVING;
            descriptor.set_previous(start, SIZE, descriptor.previous_fields());
        })
    }

    /// A server is not of these subsets.
    pub fn apart(mut self, server: u32, subsets: &[u32]) -> Self {
        let member = &mut self.tables.members[(FIRST_MEMBER + server) as usize];
        member.apart = subsets.iter().fold(0, |bits, subset| bits | 1 << subset);
        self
    }
}

/// So many of each.
fn parts(slots: impl Iterator<Item = Slot>) -> Vec<Slot> {
    slots.flat_map(|slot| [slot; SIZE as usize]).collect()
}
