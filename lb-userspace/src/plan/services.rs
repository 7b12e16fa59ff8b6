//! The part of a plan that says which services share which pool, and gives them their indices. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::tables::{Descriptor, Guard};

use super::{
    Draft, NoRoom,
    census::Census,
    layout::{Layout, Placed, endpoint},
};
use crate::{
    dataplane::Operation,
    model::{Service, ServiceId, State},
};

impl Draft {
    /// Frees the indices of services that were gone before a sweep began: it has removed their flows.
    pub(super) fn release_indices(&mut self, census: &Census) {
        let Layout {
            left,
            service_indices,
            ..
        } = &mut self.layout;
        left.retain(|&index| {
            let known = census.knows(index);
            if !known {
                service_indices.release(index);
            }
            known
        });
    }

    /// Finds the pool in the maps that each wanted one goes on with, and removes everything else. A pool
    /// goes on as long as one of its services stays, where most of them are; a service that comes from
    /// another pool is a new one to it, as its flows' records speak of the other's backends.
    pub(super) fn match_pools(&mut self, pools: &[Vec<&Service>]) -> Vec<Option<u32>> {
        let numbers = self.most_common_numbers(pools);
        let mut wanted: BTreeMap<u32, BTreeSet<ServiceId>> = BTreeMap::new();
        for (pool, number) in pools.iter().zip(&numbers) {
            if let Some(number) = *number {
                wanted.insert(number, pool.iter().map(|service| service.id).collect());
            }
        }
        let placed: Vec<u32> = self.layout.pools.keys().copied().collect();
        for number in placed {
            self.keep_services(number, wanted.get(&number));
        }
        numbers
    }

    /// Pools that are there and stay as they are but for their backends, by their first services, and their numbers.
    pub(super) fn found_pools<'a>(
        &self,
        state: &'a State,
        leads: &BTreeSet<ServiceId>,
    ) -> (Vec<Vec<&'a Service>>, Vec<Option<u32>>) {
        let number = |lead| self.layout.numbers.get(lead).copied();
        let found = leads.iter().map(|lead| (state.pool(*lead), number(lead)));
        found.filter(|(_, number)| number.is_some()).unzip()
    }

    /// For each wanted pool, the one in the maps that has most of its services, each given away once.
    fn most_common_numbers(&self, pools: &[Vec<&Service>]) -> Vec<Option<u32>> {
        let mut common: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        for (at, pool) in pools.iter().enumerate() {
            for number in pool.iter().filter_map(|s| self.layout.numbers.get(&s.id)) {
                *common.entry((at, *number)).or_default() += 1;
            }
        }
        let mut pairs: Vec<((usize, u32), usize)> = common.into_iter().collect();
        // Stable: of as many, the first.
        pairs.sort_by_key(|&(_, services)| std::cmp::Reverse(services));
        let mut numbers = vec![None; pools.len()];
        let mut given = BTreeSet::new();
        for ((at, number), _) in pairs {
            if numbers[at].is_none() && given.insert(number) {
                numbers[at] = Some(number);
            }
        }
        numbers
    }

    /// Takes services from a pool, and the pool with them where none is left.
    fn keep_services(&mut self, number: u32, wanted: Option<&BTreeSet<ServiceId>>) {
        let stays = |id: &ServiceId| wanted.is_some_and(|wanted| wanted.contains(id));
        let pools = &self.layout.pools;
        if pools
            .get(&number)
            .is_none_or(|placed| placed.services.keys().all(stays))
        {
            return;
        }
        let Some(placed) = self.layout.pools.remove(&number) else {
            return;
        };
        let mut placed = Arc::unwrap_or_clone(placed);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            placed.services.into_iter().partition(|(id, _)| stays(id));
        placed.services = kept;
        for (id, index) in gone {
            self.layout.numbers.remove(&id);
            self.descriptors.push((index, Descriptor::default()));
            self.released.services.push((endpoint(id), index));
            if index != number {
                self.released.indices.push(index);
            }
        }
        if placed.services.is_empty() {
            self.release(&placed);
        } else {
            self.layout.pools.insert(number, Arc::new(placed));
        }
    }

    fn release(&mut self, placed: &Placed) {
        for (_, member) in placed.members() {
            self.released.entries.push(member.entry);
            self.released.counters.push(member.backend.counters);
        }
        if placed.members_room > 0 {
            self.released
                .member_spans
                .push(placed.descriptor.members_start);
        }
        let descriptor = &placed.descriptor;
        for (start, size) in [
            (descriptor.ring_start, descriptor.ring_size),
            (descriptor.previous_start, descriptor.previous_size()),
            (descriptor.schedule_start, descriptor.schedule_size),
        ] {
            self.release_span(start, size);
        }
        if placed.guard != Guard::default() {
            let reset = |half| Operation::Guard(placed.number, half, Guard::default());
            self.after.extend([0, 1].map(reset));
        }
        self.released.indices.push(placed.number);
    }

    /// Gives every service of a pool its index.
    pub(super) fn place_services(
        &mut self,
        pool: &[&Service],
        placed: Option<Placed>,
    ) -> Result<Placed, NoRoom> {
        let mut placed = placed;
        for service in pool {
            let id = service.id;
            if placed
                .as_ref()
                .is_some_and(|p| p.services.contains_key(&id))
            {
                continue;
            }
            let index = self.new_service(id)?;
            let placed = placed.get_or_insert_with(|| Placed::new(index));
            placed.services.insert(id, index);
            self.layout.numbers.insert(id, placed.number);
        }
        // A pool has a service.
        Ok(placed.unwrap_or_else(|| Placed::new(0)))
    }

    fn new_service(&mut self, id: ServiceId) -> Result<u32, NoRoom> {
        let no_room = || NoRoom {
            what: format!("service {id}"),
            setting: "services",
        };
        let free = self.layout.service_indices.take();
        let index = free
            .or_else(|| self.layout.left.pop_first())
            .ok_or_else(no_room)?;
        self.before.push(Operation::ZeroService(index));
        let shape = id.shape();
        let before = match shape.bits {
            0 => self.layout.shapes.remove(&index),
            _ => self.layout.shapes.insert(index, shape),
        };
        if before.unwrap_or_default() != shape {
            self.before.push(Operation::Shape(index, shape));
        }
        if !id.is_wide() {
            let link = self.layout.lookup.link(&endpoint(id), index);
            self.before.extend(link.map_err(|_| no_room())?);
        }
        Ok(index)
    }
}
