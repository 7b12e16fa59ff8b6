//! What the maps hold, and where: the planner's memory. Read back from the maps when the agent
//! starts, so that the maps themselves are the only record. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    memory::MemoryTables,
    tables::{
        Address, Backend, Control, Descriptor, Endpoint, Guard, Interface, Member, Phase, Server,
        ServerKey, Shape, Slot, Tick, WayBack, service_flag, state,
    },
};

use super::{
    address_pools::Addresses,
    devices::Devices,
    has_passed,
    loads::Holder,
    lookup::Lookup,
    routes::Routes,
    space::{Indices, Spans},
    wide::Wide,
};
use crate::{
    dataplane::{Capacity, Dataplane, DataplaneError, Operation},
    model::{Protocol, Rules, ServiceId},
    snapshot::Passed,
};

/// A backend in the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedMember {
    /// Its entry in the backend map.
    pub entry: u32,
    /// What that entry holds.
    pub backend: Backend,
    /// What the member map holds.
    pub member: Member,
}

impl PlacedMember {
    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(
            IpAddr::from(self.backend.address),
            u16::from_be(self.backend.port),
        )
    }

    /// Whose flows in progress its counters hold.
    pub fn holder(&self) -> Holder {
        Holder {
            counters: self.backend.counters,
            generation: self.member.generation,
        }
    }
}

/// What a ring was made of: the size of its parts, one for each subset of the pool, and each claim's local id and weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Slots of each part.
    pub size: u32,
    /// Local ids and weights of those that take new flows in each part. Where those are none, its owners stay.
    pub claims: Vec<Claims>,
}

/// Local ids and weights.
pub type Claims = Vec<(u16, u16)>;

/// A ring in the arena. Shared with sweeps that are under way; a plan that changes it makes another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ring {
    /// First slot in the arena.
    pub start: u32,
    /// Its slots.
    pub slots: Vec<Slot>,
    /// When each moved last; counts only while it is not steady.
    pub moved: Vec<Tick>,
    /// Slots that each local id owns.
    shares: Vec<u32>,
    /// Slots that lead to each, as their owner or their keeper.
    naming: Vec<u32>,
    /// Slots in each phase.
    pub phases: Phases,
    /// When the first and the last of those that move did.
    pub moving_since: Option<[Tick; 2]>,
}

/// Slots in each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phases {
    /// Steady ones.
    pub steady: u32,
    /// Moving ones.
    pub moving: u32,
    /// Settling ones.
    pub settling: u32,
}

/// Whether a tick is before another, from which it is less than half of all away.
fn is_before(one: Tick, other: Tick) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Ring {
    /// A ring of these slots, which moved at these times.
    pub fn new(start: u32, slots: Vec<Slot>, moved: Vec<Tick>) -> Self {
        let named = slots.iter().flat_map(|slot| [slot.owner(), slot.keeper()]);
        let ids = named.max().map_or(0, |id| id as usize + 1);
        let (mut shares, mut naming) = (vec![0; ids], vec![0; ids]);
        let mut phases = Phases::default();
        for slot in &slots {
            let [owner, keeper] = [slot.owner(), slot.keeper()].map(|id| id as usize);
            shares[owner] += 1;
            naming[owner] += 1;
            naming[keeper] += u32::from(keeper != owner);
            match slot.phase() {
                Phase::Steady => phases.steady += 1,
                Phase::Moving => phases.moving += 1,
                Phase::Settling => phases.settling += 1,
            }
        }
        let moving = slots.iter().zip(&moved);
        let moving = moving.filter(|(slot, _)| slot.phase() == Phase::Moving);
        let moving = moving.map(|(_, &when)| [when; 2]);
        let moving_since = moving.reduce(|[first, last], [when, _]| match is_before(when, first) {
            true => [when, last],
            false if is_before(last, when) => [first, when],
            false => [first, last],
        });
        Self {
            start,
            slots,
            moved,
            shares,
            naming,
            phases,
            moving_since,
        }
    }

    /// The same ring with other slots, of which none moved just now.
    pub(super) fn with(&self, slots: Vec<Slot>) -> Self {
        Self::new(self.start, slots, self.moved.clone())
    }

    /// Its slots that moved at `from` moved at `to`.
    pub(super) fn restamp(&mut self, from: Tick, to: Tick) {
        let times = self.moved.iter_mut();
        let times = times.chain(self.moving_since.iter_mut().flatten());
        for time in times.filter(|time| **time == from) {
            *time = to;
        }
    }

    /// Slots that a local id owns.
    pub fn share(&self, id: u16) -> u32 {
        self.shares.get(usize::from(id)).copied().unwrap_or(0)
    }

    /// Its slots' number.
    pub fn size(&self) -> u32 {
        self.slots.len() as u32
    }

    /// How many slots lead to a member.
    fn naming(&self, id: u16) -> u32 {
        self.naming.get(usize::from(id)).copied().unwrap_or(0)
    }

    /// The writes that put all of it in the arena.
    pub fn writes(self: &Arc<Self>) -> [Operation; 2] {
        [
            Operation::Moved(Arc::clone(self)),
            Operation::Slots(Arc::clone(self)),
        ]
    }
}

/// What is counted, read from time to time to tell whether it has risen of late.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watched<C> {
    /// The count when it was read last.
    pub seen: Option<C>,
    /// When it had risen; nothing once that is long over.
    pub at: Option<Tick>,
}

impl<C: Default + PartialEq> Watched<C> {
    /// Takes note of a reading; `within` is how long a rise matters, in ticks.
    pub(super) fn note(&mut self, count: C, now: Tick, within: Tick) {
        // Unknown before: whatever there was may have been just now.
        if self.seen.take().unwrap_or_default() != count {
            self.at = Some(now);
        } else if self.at.is_some_and(|at| has_passed(within, at, now)) {
            // Not to be taken for yet to come once ticks have wrapped.
            self.at = None;
        }
        self.seen = Some(count);
    }

    /// Whether it is known not to have risen within that time.
    pub(super) fn is_quiet(&self) -> bool {
        self.seen.is_some() && self.at.is_none()
    }
}

/// A pool in the maps: that of one service, or of the several that share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its number: the index of its first service, which is nobody else's as long as the pool is there.
    pub number: u32,
    /// Its services' indices.
    pub services: BTreeMap<ServiceId, u32>,
    /// Those with every port of an address of which others have ranges.
    pub overlaid: BTreeSet<ServiceId>,
    /// What is in force for all of them, without an endpoint: [`Placed::descriptor_of`].
    pub descriptor: Descriptor,
    /// What guards all of them.
    pub guard: Guard,
    /// What its ring was made of; unknown after a restart.
    pub recipe: Option<Recipe>,
    /// Its ring; without slots until it has a backend.
    pub ring: Arc<Ring>,
    /// The routes by which flows have their part of it.
    pub routes: Routes,
    /// The ring before a move of the whole service that is under way.
    pub previous: Option<Arc<Ring>>,
    /// The routes by which flows had their part of that.
    pub previous_routes: Routes,
    /// Local ids in the order in which a scheduler takes them; empty unless it takes turns or draws.
    pub sequence: Vec<u16>,
    /// Choices that could not be recorded, by index of the service, where there were any.
    pub overflows: Watched<BTreeMap<u32, u64>>,
    /// Packets of backends that take no new flows, by local id, where connection ids may lead to them or slots that stay.
    pub traffic: BTreeMap<u16, Watched<u64>>,
    /// Slots that have entered each phase.
    pub passed: Passed,
    /// How often backends were marked between plans; flows may have been recorded elsewhere each time.
    pub marks: u64,
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
    /// How much longer the first of its slots that move has to, where a sweep would be too early now; the
    /// last, while all do together.
    pub fn moves_for(&self, now: Tick) -> Option<Tick> {
        let [first, last] = self.ring.moving_since?;
        let together = self.descriptor.flags & service_flag::MOVING != 0;
        let passed = now.wrapping_sub(if together { last } else { first });
        let left = self.descriptor.moving_time.wrapping_sub(passed);
        (left as i32 > 0).then_some(left)
    }

    /// A pool that is not in the maps yet.
    pub fn new(number: u32) -> Self {
        Self {
            number,
            services: BTreeMap::new(),
            overlaid: BTreeSet::new(),
            descriptor: Descriptor::default(),
            guard: Guard::default(),
            recipe: None,
            ring: Arc::default(),
            routes: Routes::default(),
            previous: None,
            previous_routes: Routes::default(),
            sequence: Vec::new(),
            overflows: Watched::default(),
            traffic: BTreeMap::new(),
            passed: Passed::default(),
            marks: 0,
            members: Vec::new(),
            members_room: 0,
        }
    }

    /// The descriptor of one of its services.
    pub fn descriptor_of(&self, id: ServiceId) -> Descriptor {
        let Endpoint {
            address,
            port,
            protocol,
            ..
        } = endpoint(id);
        let mut descriptor = Descriptor {
            address,
            port: if id.is_wide() { 0 } else { port },
            protocol,
            ..self.descriptor
        };
        descriptor.set_overlaid(self.overlaid.contains(&id));
        descriptor
    }

    /// Those of all of its services, by index.
    pub(super) fn descriptors(&self) -> BTreeMap<u32, Descriptor> {
        let services = self.services.iter();
        services
            .map(|(&id, &index)| (index, self.descriptor_of(id)))
            .collect()
    }

    /// The member at an address, with its local id.
    pub fn member(&self, address: SocketAddr) -> Option<(u16, &PlacedMember)> {
        self.members()
            .find(|(_, member)| member.address() == address)
    }

    /// The member of a local id.
    pub fn member_by_id(&self, id: u32) -> Option<&PlacedMember> {
        self.members.get(id as usize)?.as_ref().ok()
    }

    /// Every member, with its local id.
    pub fn members(&self) -> impl Iterator<Item = (u16, &PlacedMember)> {
        let ids = 0u16..;
        self.members
            .iter()
            .zip(ids)
            .filter_map(|(member, id)| Some((id, member.as_ref().ok()?)))
    }

    /// Whether none of its members takes new flows. Its ring stays as it is then.
    pub fn takes_none(&self) -> bool {
        let mut members = self.members();
        members.all(|(_, member)| member.backend.state & state::TAKES == 0)
    }

    /// Whether nothing is under way to a member, although slots may lead to it: no packet has gone to it for
    /// the moving time, and nobody takes new flows, so that none of its own would have moved.
    pub fn is_quiet(&self, id: u16) -> bool {
        self.takes_none() && self.traffic.get(&id).is_some_and(Watched::is_quiet)
    }

    /// Whether a slot of its rings names a member.
    pub fn names(&self, id: u16) -> bool {
        self.naming(id) > 0
    }

    /// How many slots lead to it, of the ring in force and of the one before that unrecorded flows still go by.
    pub fn naming(&self, id: u16) -> u32 {
        let previous = self.previous.as_ref().map_or(0, |ring| ring.naming(id));
        self.ring.naming(id) + previous
    }
}

/// Everything that the maps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Generation in force.
    pub generation: u64,
    /// Bits of [`lb_common::tables::feature`].
    pub features: u32,
    /// What packets to unknown ports of VIPs get, one of [`lb_common::tables::refusal`].
    pub unknown_port: u8,
    /// UDP port that backends take packets of mode `gue` at; 0: none has been set.
    pub gue_port: u16,
    /// What the maps were made with.
    pub control: Control,
    /// Elements of the maps.
    pub(super) capacity: Capacity,
    /// Pools, by number. One that a plan leaves as it is is shared with the layout before it.
    pub pools: BTreeMap<u32, Arc<Placed>>,
    /// The number of each service's pool.
    pub(super) numbers: BTreeMap<ServiceId, u32>,
    /// What answers become.
    pub ways_back: BTreeMap<Endpoint, WayBack>,
    /// Who has which server id.
    pub servers: BTreeMap<ServerKey, Server>,
    /// Access lists by number, as they are told by it.
    pub(super) lists: BTreeMap<u32, Rules>,
    /// Source routes by number, likewise; no list has the number of another one.
    pub(super) route_lists: BTreeMap<u32, Rules>,
    /// Addresses of pools, by number.
    pub(super) address_pools: BTreeMap<u16, Addresses>,
    /// The number of each list that services have; unknown after a restart.
    pub(super) list_numbers: BTreeMap<String, u32>,
    /// Bits of [`lb_common::tables::owned`].
    pub owned: BTreeMap<Address, u32>,
    /// How services of several addresses or ports are found.
    pub(super) wide: Wide,
    /// What descriptors do not say of them, by index.
    pub(super) shapes: BTreeMap<u32, Shape>,
    /// Interfaces that VIPs are announced on.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Devices that stand over others.
    pub devices: Devices,
    pub(super) lookup: Lookup,
    pub(super) service_indices: Indices,
    /// Indices of services that have gone, of which flows may still be recorded.
    pub(super) left: BTreeSet<u32>,
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
        zeros: 0,
    }
}

fn service_id(endpoint: &Endpoint, shape: &Shape) -> Option<ServiceId> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == endpoint.protocol)?;
    let vip = SocketAddr::new(IpAddr::from(endpoint.address), u16::from_be(endpoint.port));
    Some(ServiceId::of_shape(vip, protocol, shape))
}

/// Elements that a ring or a sequence takes: spans start at even slots.
pub fn slot_span(size: u32) -> u32 {
    size.next_multiple_of(2)
}

impl Layout {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        let control = Control::default();
        Self {
            generation: 0,
            features: 0,
            unknown_port: 0,
            gue_port: 0,
            control,
            capacity,
            pools: BTreeMap::new(),
            numbers: BTreeMap::new(),
            ways_back: BTreeMap::new(),
            servers: BTreeMap::new(),
            lists: BTreeMap::new(),
            route_lists: BTreeMap::new(),
            list_numbers: BTreeMap::new(),
            address_pools: BTreeMap::new(),
            owned: BTreeMap::new(),
            wide: Wide::default(),
            shapes: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            devices: Devices::default(),
            lookup: Lookup::new(&control, Vec::new()),
            service_indices: Indices::new(0, capacity.services),
            left: BTreeSet::new(),
            // Entry 0 stands for nobody.
            entries: Indices::new(1, capacity.backends),
            counters: Indices::new(0, capacity.backends),
            slots: Spans::new(capacity.slots),
            member_spans: Spans::new(capacity.members),
        }
    }

    /// The pool of a service.
    pub fn placed(&self, id: ServiceId) -> Option<&Placed> {
        self.pools.get(self.numbers.get(&id)?).map(Arc::as_ref)
    }

    /// The pool of a service, to be changed.
    pub fn placed_mut(&mut self, id: ServiceId) -> Option<&mut Placed> {
        self.pools
            .get_mut(self.numbers.get(&id)?)
            .map(Arc::make_mut)
    }

    /// Every service with its index and pool.
    pub fn services(&self) -> impl Iterator<Item = (ServiceId, u32, &Placed)> {
        let services = |placed: &'_ Placed| placed.services.clone().into_iter();
        let pools = self.pools.values();
        pools.flat_map(move |placed| {
            let services = services(placed);
            services.map(move |(id, index)| (id, index, placed.as_ref()))
        })
    }

    /// The layout of maps that are in use, and the operations that finish what an agent that died
    /// half-way through a change left behind.
    ///
    /// # Errors
    /// The maps cannot be read.
    pub fn adopt<D: Dataplane>(dataplane: &D) -> Result<(Self, Vec<Operation>), DataplaneError> {
        let tables = dataplane.read()?;
        let mut layout = Self::new(dataplane.capacity());
        // It may have switched, and not waited for packets that had begun before.
        let mut repairs = vec![Operation::Grace];
        layout.control = tables.control;
        layout.generation = tables.control.generation;
        layout.features = tables.control.features;
        layout.unknown_port = tables.control.unknown_port;
        layout.gue_port = u16::from_be(tables.control.gue_port);
        layout.owned.clone_from(&tables.owned);
        layout.interfaces.clone_from(&tables.interfaces);
        layout.devices = Devices {
            vlans: tables.vlans.clone(),
            uppers: tables.uppers.clone(),
            deaf: BTreeSet::new(),
            left_out: 0,
        };
        layout.ways_back.clone_from(&tables.ways_back);
        layout.servers.clone_from(&tables.servers);
        layout.adopt_lists(&tables);
        layout.adopt_address_pools(&tables);
        layout.lookup = Lookup::new(&tables.control, tables.lookup.clone());
        let in_force = half(layout.generation);
        repairs.extend(layout.adopt_wide(&tables, in_force));
        let mut taken = BTreeSet::new();
        for (index, entry) in (0..).zip(&tables.service_entries) {
            let descriptor = entry.halves[in_force];
            let shape = layout.shapes.get(&index).copied().unwrap_or_default();
            if let Some(id) = service_id(&descriptor.endpoint(), &shape) {
                layout.adopt_service(dataplane, &tables, (id, index), descriptor)?;
                if !id.is_wide() {
                    let link = layout.lookup.link(&descriptor.endpoint(), index);
                    repairs.extend(link.ok().flatten());
                }
                taken.insert(index);
            }
            if entry.halves[1 - in_force] != descriptor {
                repairs.push(Operation::Descriptor(index, 1 - in_force, descriptor));
            }
        }
        repairs.extend(layout.guard_repairs(&tables, in_force));
        repairs.extend(layout.lookup.retain(|index| taken.contains(&index)));
        Ok((layout, repairs))
    }

    /// Keeps the indices of services that `before` knew, and that have gone, from those to come: their
    /// flows may still be recorded. Keeps what has been watched and counted of the others.
    pub fn remember(&mut self, before: &Self) {
        let indices = |layout: &Self| -> BTreeSet<u32> {
            let services = layout.services().map(|(_, index, _)| index);
            services.chain(layout.pools.keys().copied()).collect()
        };
        let mut known = indices(before);
        known.extend(&before.left);
        let here = indices(self);
        for &index in known.difference(&here) {
            self.service_indices.claim(index);
            self.left.insert(index);
        }
        let known = before.list_numbers.iter();
        let known = known.filter(|&(_, number)| self.lists.contains_key(number));
        self.list_numbers = known
            .map(|(name, &number)| (name.clone(), number))
            .collect();
        for (number, placed) in &mut self.pools {
            let before = before.pools.get(number);
            if let Some(same) = before.filter(|before| before.services == placed.services) {
                let placed = Arc::make_mut(placed);
                placed.overflows.clone_from(&same.overflows);
                placed.traffic.clone_from(&same.traffic);
                placed.passed = same.passed;
            }
        }
    }

    fn adopt_service<D: Dataplane>(
        &mut self,
        dataplane: &D,
        tables: &MemoryTables,
        (id, index): (ServiceId, u32),
        descriptor: Descriptor,
    ) -> Result<(), DataplaneError> {
        let number = u32::from(descriptor.pool);
        self.service_indices.claim(index);
        self.service_indices.claim(number);
        self.numbers.insert(id, number);
        if !self.pools.contains_key(&number) {
            let placed = self.adopt_pool(dataplane, tables, descriptor)?;
            self.pools.insert(number, Arc::new(placed));
        }
        if let Some(placed) = self.pools.get_mut(&number) {
            let placed = Arc::make_mut(placed);
            placed.services.insert(id, index);
            if descriptor.is_overlaid() {
                placed.overlaid.insert(id);
            }
        }
        Ok(())
    }

    fn adopt_pool<D: Dataplane>(
        &mut self,
        dataplane: &D,
        tables: &MemoryTables,
        descriptor: Descriptor,
    ) -> Result<Placed, DataplaneError> {
        let guard = tables.guards.get(usize::from(descriptor.pool));
        let guard = guard.map(|entry| entry.halves[half(self.generation)]);
        let guard = guard.unwrap_or_default();
        let [routes, previous_routes] =
            [guard.routes, guard.previous_routes].map(|number| self.adopt_routes(number));
        let members_len = u32::from(descriptor.members_len);
        let room = members_room(members_len);
        self.member_spans.claim(descriptor.members_start, room);
        let members = (0..members_len)
            .map(|id| self.adopt_member(tables, descriptor.members_start + id))
            .collect();
        let mut ring = |start, size| {
            self.slots.claim(start, slot_span(size));
            dataplane.ring(start, size).map(Arc::new)
        };
        let sequence = ring(descriptor.schedule_start, descriptor.schedule_size)?;
        let previous = match descriptor.previous_size() {
            0 => None,
            size => {
                let size = size * previous_routes.parts();
                Some(ring(descriptor.previous_start, size)?)
            }
        };
        let size = descriptor.ring_size * routes.parts();
        let mut shared = descriptor;
        shared.set_overlaid(false);
        Ok(Placed {
            ring: ring(descriptor.ring_start, size)?,
            routes,
            previous,
            previous_routes,
            guard,
            sequence: sequence
                .slots
                .iter()
                .map(|slot| slot.owner() as u16)
                .collect(),
            members,
            members_room: room,
            descriptor: Descriptor {
                address: Address::default(),
                port: 0,
                protocol: 0,
                ..shared
            },
            ..Placed::new(descriptor.pool.into())
        })
    }

    fn adopt_routes(&self, number: u32) -> Routes {
        let rules = self.route_lists.get(&number).cloned();
        Routes::new(number, rules.unwrap_or_default(), None)
    }

    fn adopt_member(&mut self, tables: &MemoryTables, index: u32) -> Result<PlacedMember, Vacant> {
        let member = tables
            .members
            .get(index as usize)
            .copied()
            .unwrap_or_default();
        let entry = member.backend;
        match tables.backends.get(entry as usize) {
            Some(&backend) if entry != 0 => {
                self.entries.claim(entry);
                self.counters.claim(backend.counters);
                Ok(PlacedMember {
                    entry,
                    backend,
                    member,
                })
            }
            _ => Err(Vacant {
                generation: member.generation,
            }),
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
