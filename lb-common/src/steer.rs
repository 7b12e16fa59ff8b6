//! Which backend takes a flow by the ring alone: service, slot, member, backend. Reads tables, writes
//! nothing. Where the ring has moved, [`crate::track`] decides.

use crate::{
    flow::Flow,
    hash::{self, FlowHash},
    tables::{
        AccessKey, Address, Backend, ClassKey, Descriptor, Endpoint, FlowKey, Guard, Member, Phase,
        Record, Slot, Tables, VipKey, access, feature, flow_kind, owned, service_flag, state,
    },
    track::Question,
    verdict::DropReason,
    wire::protocol,
};

/// Slots tried before a flow is given up: the first choice and two more, so that a dead
/// backend's flows find a live one before the ring follows.
pub const ATTEMPTS: u32 = 3;

/// A service as of the generation in force.
#[derive(Debug, Clone, Copy)]
pub struct Service<'t> {
    /// Its index in the service map and counters.
    pub index: u32,
    /// What is in force for it.
    pub descriptor: &'t Descriptor,
}

impl<'t> Service<'t> {
    /// The service of an index, as of the half that is in force.
    #[inline(always)]
    pub fn at<T: Tables>(tables: &'t T, index: u32, half: u32) -> Option<Self> {
        let [even, odd] = &tables.service_entry(index)?.halves;
        let descriptor = if half == 0 { even } else { odd };
        Some(Self { index, descriptor })
    }

    /// What is in force for it beside its descriptor.
    #[inline(always)]
    pub fn guard<T: Tables>(&self, tables: &'t T, half: u32) -> Option<&'t Guard> {
        let [even, odd] = &tables.guards(self.descriptor.pool.into())?.halves;
        Some(if half == 0 { even } else { odd })
    }
}

/// A service found, and which of its halves is in force.
#[derive(Debug, Clone, Copy)]
pub struct InForce<'t> {
    /// The service.
    pub service: Service<'t>,
    /// 0 or 1.
    pub half: u32,
}

/// A backend of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'t> {
    /// Its local id.
    pub id: u32,
    /// Its place in the pool.
    pub member: &'t Member,
    /// How to reach it.
    pub backend: &'t Backend,
}

impl Candidate<'_> {
    /// Whether it takes new flows.
    #[inline(always)]
    pub fn takes(&self) -> bool {
        self.backend.state & state::TAKES != 0
    }

    /// Whether it keeps the flows that it has.
    #[inline(always)]
    pub fn holds(&self) -> bool {
        self.backend.state & state::HOLDS != 0
    }
}

/// The service that takes what goes to an endpoint, if there is one now: the one that is there, or else the one that
/// [`find`] finds.
#[inline(always)]
pub fn service<'t, T: Tables>(tables: &'t T, endpoint: &Endpoint) -> Option<InForce<'t>> {
    let half = (tables.generation() & 1) as u32;
    if let Some(service) = at(tables, endpoint, half) {
        return Some(InForce { service, half });
    }
    if !tables.uses(feature::ALL_PORTS | feature::WIDE) {
        return None;
    }
    let index = tables.find_apart(*endpoint, half).checked_sub(1)?;
    let service = Service::at(tables, index, half)?;
    Some(InForce { service, half })
}

/// Index + 1 of the service that takes what goes to an endpoint that none has for itself: the one that has every port of
/// the address, unless others have ranges of them, or else the one whose addresses are fewest, and of several of the
/// same addresses the one whose ports are; 0: none.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, endpoint: &Endpoint, half: u32) -> u32 {
    if tables.uses(feature::ALL_PORTS) {
        let every = Endpoint {
            port: 0,
            ..*endpoint
        };
        if let Some(service) = at(tables, &every, half)
            && !(tables.knows(feature::WIDE) && service.descriptor.is_overlaid())
        {
            return service.index + 1;
        }
    }
    if !tables.uses(feature::WIDE) {
        return 0;
    }
    let [even, odd] = tables.class(&VipKey::of(endpoint.protocol, endpoint.address));
    match if half == 0 { even } else { odd } {
        0 => 0,
        class => tables.class_port(&ClassKey::of(class, endpoint.port)),
    }
}

#[inline(always)]
fn at<'t, T: Tables>(tables: &'t T, endpoint: &Endpoint, half: u32) -> Option<Service<'t>> {
    let control = tables.control()?;
    let hash = hash::endpoint(&control.hash_key, endpoint);
    for choice in 0..2 {
        let bucket = tables.bucket(hash.bucket(control.lookup_bits, choice))?;
        for place in bucket {
            if *place == 0 {
                continue;
            }
            let [even, odd] = &tables.service_entry_of(place)?.halves;
            let descriptor = if half == 0 { even } else { odd };
            if descriptor.is_at(endpoint) {
                let index = *place - 1;
                return Some(Service { index, descriptor });
            }
        }
    }
    None
}

/// What an address is to the balancer. By value: whatever a helper is given the address of stays in
/// memory for good, and the flow is to live in registers.
#[inline(always)]
pub fn owned<T: Tables>(tables: &T, address: Address) -> u32 {
    let alone = tables.owned(&address);
    if alone & owned::VIP == 0 && tables.uses(feature::WIDE) {
        return alone | tables.owned_as_prefix(address);
    }
    alone
}

/// The same, but for whether it is one of many VIPs of a service.
#[inline(always)]
pub fn owned_alone<T: Tables>(tables: &T, address: Address) -> u32 {
    tables.owned(&address)
}

/// The rest of it.
#[inline(always)]
pub fn owned_as_prefix<T: Tables>(tables: &T, address: Address) -> u32 {
    let [bits, _] = tables.class(&VipKey::of(0, address));
    bits
}

/// The hash that places a flow on a ring by some of its fields, bits of [`service_flag::FIELDS`].
#[inline(always)]
pub fn hash<T: Tables>(tables: &T, flow: &Flow, fields: u16) -> Option<FlowHash> {
    let key = &tables.control()?.hash_key;
    Some(hash::placing(
        key,
        fields,
        &flow.source,
        &flow.destination,
        flow.ports(),
        flow.protocol,
    ))
}

/// The hash that places a flow on a service's ring.
#[inline(always)]
pub fn place<T: Tables>(tables: &T, service: &Service<'_>, flow: &Flow) -> Option<FlowHash> {
    let mut known = 0;
    if tables.knows(feature::BY_SOURCE) {
        known |= service_flag::BY_SOURCE;
    }
    if tables.knows(feature::BY_THREE_TUPLE) {
        known |= service_flag::BY_THREE_TUPLE;
    }
    hash(tables, flow, service.descriptor.flags & known)
}

/// The backend that takes a flow, which [`place`] has given its hash.
///
/// # Errors
/// [`DropReason::NoBackend`] when nobody may take it; [`DropReason::Inconsistent`] when a slot
/// leads nowhere.
#[inline(always)]
pub fn backend<'t, T: Tables>(
    tables: &'t T,
    in_force: &InForce<'t>,
    flow: &Flow,
    hash: FlowHash,
) -> Result<&'t Backend, DropReason> {
    let InForce { service, half } = *in_force;
    let descriptor = service.descriptor;
    if descriptor.ring_size == 0 {
        return Err(DropReason::NoBackend);
    }
    let spot = spot(tables, in_force, flow.source, hash).ok_or(DropReason::Inconsistent)?;
    let slot = spot.slot;
    // Whoever owns it, where flows are looked up: two lines of memory that such packets need not wait for.
    if slot.phase() == Phase::Steady && descriptor.flags & service_flag::TRACKED == 0 {
        let owner = candidate(tables, descriptor, slot.owner()).ok_or(DropReason::Inconsistent)?;
        if owner.takes() {
            return Ok(owner.backend);
        }
    }
    let before = descriptor.previous_fields();
    let changes = tables.knows(feature::BY_SOURCE | feature::BY_THREE_TUPLE);
    let previous_hash = if changes && before != descriptor.fields() {
        self::hash(tables, flow, before).ok_or(DropReason::Inconsistent)?
    } else {
        hash
    };
    let index = tables.track(&Question {
        key: key(&service, flow),
        hash,
        previous_hash,
        slot,
        half,
        signal: flow.signal,
        connectionless: flow.protocol == protocol::UDP && descriptor.quic == 0,
        over: false,
        subset: spot.subset as u8,
    });
    if index == 0 {
        return Err(DropReason::NoBackend);
    }
    tables.backend(index).ok_or(DropReason::Inconsistent)
}

/// Who else may have a flow that goes to `chosen`: whoever of the slot's owner and its former one is another, and keeps the
/// flows that it has; [`Address::NOBODY`] where that is nobody.
#[inline(always)]
pub fn other<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
    hash: FlowHash,
    chosen: &Backend,
) -> Address {
    let descriptor = in_force.service.descriptor;
    let Some(Spot { slot, .. }) = spot(tables, in_force, flow.source, hash) else {
        return Address::NOBODY;
    };
    let former = if descriptor.flags & service_flag::MOVING == 0 {
        slot.origin()
    } else {
        former_keeper(tables, in_force, flow, hash)
    };
    for id in [slot.owner(), former] {
        if let Some(candidate) = candidate(tables, descriptor, id)
            && candidate.holds()
            && candidate.backend.address != chosen.address
            && candidate.backend.address.is_v4() == chosen.address.is_v4()
        {
            return candidate.backend.address;
        }
    }
    Address::NOBODY
}

/// Whom unrecorded flows belonged to before the whole service began to move, by local id.
#[inline(always)]
fn former_keeper<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    flow: &Flow,
    hash: FlowHash,
) -> u32 {
    let descriptor = in_force.service.descriptor;
    let before = descriptor.previous_fields();
    let hash = match before == descriptor.fields() {
        true => Some(hash),
        false => self::hash(tables, flow, before),
    };
    let half = in_force.half;
    let slot = hash.and_then(|hash| previous_slot(tables, descriptor, half, flow.source, hash));
    slot.map_or(Slot::NOBODY, Slot::keeper)
}

/// What a flow of a service is recorded under.
#[inline(always)]
pub fn key(service: &Service<'_>, flow: &Flow) -> FlowKey {
    FlowKey {
        source: flow.source,
        port: flow.source_port,
        kind: flow_kind::FLOW,
        service: service.index as u16,
        to: service.descriptor.key_port(flow.destination_port),
        host: service.descriptor.key_host(flow.destination),
    }
}

/// Where a flow is placed on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Its slot.
    pub slot: Slot,
    /// The subset whose part of the ring that is in, by number; 0 where there are no parts.
    pub subset: u32,
}

/// A list of source routes, in the word that a function of the kernel's program takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTable(pub u32);

impl RouteTable {
    /// The one that is in force for a service, or was before a move of the whole service.
    #[inline(always)]
    pub const fn of(descriptor: &Descriptor, half: u32, previous: bool) -> Self {
        Self((descriptor.pool as u32) << 2 | (previous as u32) << 1 | (half & 1))
    }
}

/// The subset that flows from a source are for, by number: as the longest prefix says that it has; 0, the default one,
/// where there are no routes. To be called through [`Tables::subset`].
#[inline(always)]
pub fn subset<T: Tables>(tables: &T, source: Address, table: RouteTable) -> u32 {
    let RouteTable(word) = table;
    let Some(entry) = tables.guards(word >> 2) else {
        return 0;
    };
    let [even, odd] = &entry.halves;
    let guard = if word & 1 == 0 { even } else { odd };
    let list = if word & 2 == 0 {
        guard.routes
    } else {
        guard.previous_routes
    };
    if list == 0 {
        return 0;
    }
    let key = AccessKey {
        bits: AccessKey::LIST_BITS + 128,
        list,
        address: source,
    };
    tables.access(&key) & (access::SUBSETS - 1)
}

/// Whether flows of a service are placed by their source's route, too.
#[inline(always)]
fn is_routed<T: Tables>(tables: &T, descriptor: &Descriptor) -> bool {
    tables.knows(feature::SOURCE_ROUTES) && descriptor.is_routed()
}

/// A flow's place on the ring, which [`place`] has given its hash.
#[inline(always)]
pub fn spot<T: Tables>(
    tables: &T,
    in_force: &InForce<'_>,
    source: Address,
    hash: FlowHash,
) -> Option<Spot> {
    let descriptor = in_force.service.descriptor;
    let size = descriptor.ring_size;
    let (mut place, mut subset) = (hash.slot(size, 0), 0);
    if is_routed(tables, descriptor) {
        subset = tables.subset(source, RouteTable::of(descriptor, in_force.half, false));
        place = part(subset, size).wrapping_add(place);
    }
    let slot = slot_at(tables, descriptor.ring_start, place)?;
    Some(Spot { slot, subset })
}

/// The slot of a flow on the ring before a move of the whole service, given its hash by the fields of that.
#[inline(always)]
pub fn previous_slot<T: Tables>(
    tables: &T,
    descriptor: &Descriptor,
    half: u32,
    source: Address,
    hash: FlowHash,
) -> Option<Slot> {
    let size = descriptor.previous_size();
    if size == 0 {
        return None;
    }
    let mut place = hash.slot(size, 0);
    if is_routed(tables, descriptor) {
        let subset = tables.subset(source, RouteTable::of(descriptor, half, true));
        place = part(subset, size).wrapping_add(place);
    }
    slot_at(tables, descriptor.previous_start, place)
}

/// Where a subset's part of a ring begins, of parts of `size` slots.
#[inline(always)]
pub const fn part(subset: u32, size: u32) -> u32 {
    subset.wrapping_mul(size)
}

/// Another slot that a flow's hash leads to in a subset's part of the ring.
#[inline(always)]
pub fn slot<T: Tables>(
    tables: &T,
    descriptor: &Descriptor,
    subset: u32,
    hash: FlowHash,
    attempt: u32,
) -> Option<Slot> {
    let size = descriptor.ring_size;
    let place = part(subset, size).wrapping_add(hash.slot(size, attempt));
    slot_at(tables, descriptor.ring_start, place)
}

/// The slot at a place of the span that starts at `start`, which is even.
#[inline(always)]
pub fn slot_at<T: Tables>(tables: &T, start: u32, place: u32) -> Option<Slot> {
    let index = start.wrapping_add(place);
    let pair = tables.slots(index >> 1)?;
    Some(Slot(if index & 1 == 0 {
        pair as u32
    } else {
        (pair >> 32) as u32
    }))
}

/// The backend of a local id, unless nobody has it.
#[inline(always)]
pub fn candidate<'t, T: Tables>(
    tables: &'t T,
    descriptor: &Descriptor,
    id: u32,
) -> Option<Candidate<'t>> {
    if id >= u32::from(descriptor.members_len) {
        return None;
    }
    let member = tables.member(descriptor.members_start.wrapping_add(id))?;
    if member.backend == 0 {
        return None;
    }
    let backend = tables.backend_of(member)?;
    Some(Candidate {
        id,
        member,
        backend,
    })
}

/// The backend that a record names, while it has its place.
#[inline(always)]
pub fn named<'t, T: Tables>(
    tables: &'t T,
    descriptor: &Descriptor,
    record: &Record,
) -> Option<Candidate<'t>> {
    candidate(tables, descriptor, u32::from(record.member))
        .filter(|candidate| candidate.member.generation == record.generation)
}
