//! What the maps hold, and where: the planner's memory. Read back from the maps when the agent
//! starts, so that the maps themselves are the only record. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    memory::MemoryTables,
    tables::{Address, Backend, Control, Descriptor, Endpoint, Member, WayBack},
};

use super::{
    lookup::Lookup,
    space::{Indices, Spans},
};
use crate::{
    dataplane::{Capacity, Operation},
    model::{Protocol, ServiceId},
};

/// A backend in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMember {
    /// Its entry in the backend map.
    pub entry: u32,
    /// What that entry holds.
    pub backend: Backend,
    /// Generation of its local id.
    pub generation: u32,
}

impl PlacedMember {
    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(
            IpAddr::from(self.backend.address),
            u16::from_be(self.backend.port),
        )
    }
}

/// What a ring was made of: its size, and each claim's local id and weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Its slots.
    pub size: u32,
    /// Local ids and weights; those of weight 0 are left out.
    pub claims: Vec<(u16, u16)>,
}

/// A service in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its index.
    pub index: u32,
    /// What is in force for it.
    pub descriptor: Descriptor,
    /// What its ring was made of; unknown after a restart.
    pub ring: Option<Ring>,
    /// Slots that each local id owns.
    pub shares: BTreeMap<u16, u32>,
    /// Its pool by local id; freed ids keep their generation.
    pub members: Vec<Result<PlacedMember, Vacant>>,
    /// Members that its span has room for.
    pub members_room: u32,
}

/// A local id that is free, and how many backends had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacant {
    /// Generation of the next one.
    pub generation: u32,
}

impl Placed {
    /// The member at an address, with its local id.
    pub fn member(&self, address: SocketAddr) -> Option<(u16, &PlacedMember)> {
        self.members()
            .find(|(_, member)| member.address() == address)
    }

    /// Every member, with its local id.
    pub fn members(&self) -> impl Iterator<Item = (u16, &PlacedMember)> {
        let ids = 0u16..;
        self.members
            .iter()
            .zip(ids)
            .filter_map(|(member, id)| Some((id, member.as_ref().ok()?)))
    }
}

/// Everything that the maps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Generation in force.
    pub generation: u64,
    /// Bits of [`lb_common::tables::feature`].
    pub features: u32,
    /// Services.
    pub services: BTreeMap<ServiceId, Placed>,
    /// What answers become.
    pub ways_back: BTreeMap<Endpoint, WayBack>,
    /// Bits of [`lb_common::tables::owned`].
    pub owned: BTreeMap<Address, u32>,
    pub(super) lookup: Lookup,
    pub(super) service_indices: Indices,
    pub(super) entries: Indices,
    pub(super) counters: Indices,
    pub(super) slots: Spans,
    pub(super) member_spans: Spans,
}

/// The endpoint of a service.
pub fn endpoint(id: ServiceId) -> Endpoint {
    endpoint_at(id.vip, id.protocol)
}

/// The endpoint at an address.
pub fn endpoint_at(address: SocketAddr, protocol: Protocol) -> Endpoint {
    Endpoint {
        address: Address::from(address.ip()),
        port: address.port().to_be(),
        protocol: protocol.number(),
        zero: 0,
    }
}

fn service_id(endpoint: &Endpoint) -> Option<ServiceId> {
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.number() == endpoint.protocol)?;
    let vip = SocketAddr::new(IpAddr::from(endpoint.address), u16::from_be(endpoint.port));
    Some(ServiceId { vip, protocol })
}

/// Elements that a ring takes: spans start at even slots.
pub fn ring_span(size: u32) -> u32 {
    size.next_multiple_of(2)
}

impl Layout {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            lookup: Lookup::new(&Control::default(), Vec::new()),
            generation: 0,
            features: 0,
            services: BTreeMap::new(),
            ways_back: BTreeMap::new(),
            owned: BTreeMap::new(),
            service_indices: Indices::new(0, capacity.services),
            // Entry 0 stands for nobody.
            entries: Indices::new(1, capacity.backends),
            counters: Indices::new(0, capacity.backends),
            slots: Spans::new(capacity.slots),
            member_spans: Spans::new(capacity.members),
        }
    }

    /// The layout of maps that are in use, and the operations that finish what an agent that died
    /// half-way through a change left behind.
    pub fn adopt(tables: &MemoryTables, capacity: Capacity) -> (Self, Vec<Operation>) {
        let mut layout = Self::new(capacity);
        let mut repairs = Vec::new();
        layout.generation = tables.control.generation;
        layout.features = tables.control.features;
        layout.owned.clone_from(&tables.owned);
        layout.ways_back.clone_from(&tables.ways_back);
        layout.lookup = Lookup::new(&tables.control, tables.lookup.clone());
        let other = 1 - half(layout.generation);
        let mut taken = BTreeSet::new();
        for (index, entry) in (0..).zip(&tables.service_entries) {
            let in_force = entry.halves[half(layout.generation)];
            if let Some((id, placed)) = layout.adopt_service(tables, index, in_force) {
                repairs.extend(
                    layout
                        .lookup
                        .link(&in_force.endpoint(), index)
                        .ok()
                        .flatten(),
                );
                layout.services.insert(id, placed);
                taken.insert(index);
            }
            if entry.halves[other] != in_force {
                repairs.push(Operation::Descriptor(index, other, in_force));
            }
        }
        repairs.extend(layout.lookup.retain(|index| taken.contains(&index)));
        (layout, repairs)
    }

    fn adopt_service(
        &mut self,
        tables: &MemoryTables,
        index: u32,
        descriptor: Descriptor,
    ) -> Option<(ServiceId, Placed)> {
        let id = service_id(&descriptor.endpoint())?;
        self.service_indices.claim(index);
        self.slots
            .claim(descriptor.ring_start, ring_span(descriptor.ring_size));
        let members_len = u32::from(descriptor.members_len);
        let room = members_room(members_len);
        self.member_spans.claim(descriptor.members_start, room);
        let members = (0..members_len)
            .map(|id| self.adopt_member(tables, descriptor.members_start + id))
            .collect();
        let placed = Placed {
            index,
            descriptor,
            ring: None,
            shares: BTreeMap::new(),
            members,
            members_room: room,
        };
        Some((id, placed))
    }

    fn adopt_member(&mut self, tables: &MemoryTables, index: u32) -> Result<PlacedMember, Vacant> {
        let member = tables
            .members
            .get(index as usize)
            .copied()
            .unwrap_or_default();
        let Member {
            backend: entry,
            generation,
            ..
        } = member;
        match tables.backends.get(entry as usize) {
            Some(&backend) if entry != 0 => {
                self.entries.claim(entry);
                self.counters.claim(backend.counters);
                Ok(PlacedMember {
                    entry,
                    backend,
                    generation,
                })
            }
            _ => Err(Vacant { generation }),
        }
    }
}

/// The half that a generation puts in force.
pub fn half(generation: u64) -> usize {
    (generation & 1) as usize
}

/// Members that a pool's span has room for: to grow in place a few times. The span of an adopted
/// pool may be larger than this says; the rest is free again then.
pub fn members_room(members: u32) -> u32 {
    members.next_power_of_two().max(8)
}
