//! From what is wanted and what is known to the writes that bring it about. Pure: no clock, no
//! I/O; the same inputs give the same operations.
//!
//! A plan keeps these promises, which its tests execute step by step:
//! - Until its one switch, no packet sees any of it but next hops, liveness, members, counters, ways back,
//!   server ids, and slots whose every new value is true by itself; at the switch, every service changes at once.
//! - Nothing is reused or removed before the grace period after that switch.
//! - No flow whose backend holds flows gets another by it ([`ring`] says how).
//! - At rest, both halves of every service are equal.
//! - A member keeps its local id and its counters for as long as it is in its pool.

mod address_pools;
pub mod census;
mod devices;
pub mod features;
mod guards;
mod keeps;
mod layout;
pub mod listing;
pub mod loads;
mod lookup;
mod others;
mod pool;
mod recipe;
mod ring;
mod routes;
mod servers;
mod services;
mod space;
mod wide;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    mss,
    tables::{Address, Backend, Descriptor, Endpoint, Guard, Interface, Tick, WayBack, owned},
};

pub use self::address_pools::Addresses;
pub use self::devices::Devices;
pub use self::layout::{Layout, Placed, PlacedMember, Ring, endpoint, endpoint_at, half};
pub use self::lookup::BUCKETS_PER_SERVICE;
pub use self::pool::next_hop;
pub use self::recipe::{duration, has_passed, ticks, unsteady, unsteady_after};
pub use self::routes::Routes;
pub use self::servers::still_named;
pub use self::wide::{PortRange, Ports};
use self::{
    census::Census,
    ring::{Dead, add_dead},
};
use crate::{
    config::Tunnel,
    dataplane::{Capacity, Operation},
    model::{Mode, MssClamp, Protocol, Service, ServiceId, State, Unserved},
    neighbours::NextHop,
};

/// What a plan is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What is wanted.
    pub state: &'a State,
    /// Backends that are not up.
    pub down: &'a BTreeMap<(ServiceId, SocketAddr), Liveness>,
    /// Next hops known so far.
    pub next_hops: &'a BTreeMap<IpAddr, NextHop>,
    /// Addresses that have been without one for longer than it takes to find one.
    pub no_ways: &'a BTreeSet<IpAddr>,
    /// Addresses of this host.
    pub own_addresses: &'a BTreeSet<IpAddr>,
    /// Hardware addresses of the interfaces that the program is attached to, by index.
    pub links: &'a BTreeMap<u32, [u8; 6]>,
    /// Devices that stand over others.
    pub devices: &'a Devices,
    /// Whether frames may have VLAN tags, whatever devices there are.
    pub vlans: bool,
    /// Where encapsulated packets come from.
    pub tunnel: Tunnel,
    /// What packets get to ports of VIPs that no service has.
    pub unknown_port: Unserved,
    /// The time.
    pub now: Tick,
    /// What a sweep of the flow tables has just found.
    pub census: Option<&'a Census>,
    /// Choices that could not be recorded so far, by index of the service; read with a census only.
    pub overflows: &'a BTreeMap<u32, u64>,
    /// Packets so far of backends that take no new flows, of QUIC services and of pools where nobody does, by index
    /// of their counters; as `overflows`.
    pub traffic: &'a BTreeMap<u32, u64>,
    /// Which handshakes are watched ([`Descriptor::sampling`]) of services that look at them, where not all: by the
    /// first of their group.
    pub sampling: &'a BTreeMap<ServiceId, u8>,
    /// Whether a plan that would forget flows is refused.
    pub keeps_flows: bool,
    /// The pools that anything has changed of since the last plan, by the first services of their groups, where nothing
    /// else has: no other is looked at.
    pub only: Option<&'a BTreeSet<ServiceId>>,
}

/// What is left of a backend that is not up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// It gets no new flows; those that it has stay.
    Down,
    /// Nobody is there.
    Dead,
}

/// The maps have no room. Says for what, and which setting would make room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {what}: raise `{setting}` under [limits] in the configuration, then `lbd detach` and start again"
)]
pub struct NoRoom {
    /// For what.
    pub what: String,
    /// Which setting would make room.
    pub setting: &'static str,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The maps have no room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A `nat` backend was removed from one service and is wanted by another.
    #[error(
        "backend {address} still has flows of {other}, which it was removed from, and its answers could not be told apart: wait until `lbctl backend list {other}` does not show it as leaving, or remove {other}"
    )]
    Leaving {
        /// The backend.
        address: SocketAddr,
        /// The service that it was removed from.
        other: ServiceId,
    },
    /// A server id was taken from a backend that leaves, and is wanted for another.
    #[error(
        "backend {address} still has connections of {other}, which it was removed from, and their ids name it as they would the new one: give that another server id, or wait until `lbctl backend list {other}` does not show {address} as leaving"
    )]
    ServerIdLeaving {
        /// The backend that leaves.
        address: SocketAddr,
        /// The service that it was removed from.
        other: ServiceId,
    },
    /// A service cannot take its flows along, or those of its connections that ids tell.
    #[error(
        "service {id} would forget flows: {obstacle}; or remove the service and add it, which breaks them"
    )]
    Forgets {
        /// The service.
        id: ServiceId,
        /// What stands in the way.
        obstacle: String,
    },
}

/// Writes, and what the maps hold after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To be carried out in order.
    pub operations: Vec<Operation>,
    /// What the maps hold then.
    pub layout: Layout,
    /// What the programs have to be loaded for while it is carried out: bits of [`lb_common::tables::feature`].
    pub features: u32,
    /// When slots moved, by this plan's clock.
    now: Tick,
    /// Pools whose slots move by it.
    moves: BTreeSet<u32>,
    /// Backends whose entries stay as they are for want of room: the next plan has what this one gives up.
    pub put_off: usize,
}

impl Plan {
    /// Takes out what may be written before any packet sees it, and the rest: what the switch depends on, and
    /// the switch.
    pub fn take_steps(&mut self) -> [Vec<Operation>; 2] {
        let is_switch = |operation: &Operation| matches!(operation, Operation::Switch(_));
        let mut at = self.operations.iter().position(is_switch).unwrap_or(0);
        let is_condition = |operation: &Operation| matches!(operation, Operation::Overflows(..));
        while at > 0 && is_condition(&self.operations[at - 1]) {
            at -= 1;
        }
        let rest = self.operations.split_off(at);
        [std::mem::take(&mut self.operations), rest]
    }

    /// The writes by which slots of this plan have moved at `now`: they have not before every packet saw it,
    /// however long that took.
    pub fn restamp(&mut self, now: Tick) -> Vec<Operation> {
        let before = std::mem::replace(&mut self.now, now);
        let mut writes = Vec::new();
        for number in self.moves.iter().filter(|_| before != now) {
            if let Some(placed) = self.layout.pools.get_mut(number) {
                let placed = Arc::make_mut(placed);
                Arc::make_mut(&mut placed.ring).restamp(before, now);
                writes.push(Operation::Moved(Arc::clone(&placed.ring)));
            }
        }
        writes
    }
}

/// Writes in the order in which they must become visible.
#[derive(Debug)]
struct Draft {
    layout: Layout,
    /// Aside, or harmless at once.
    before: Vec<Operation>,
    /// What the switch puts in force.
    descriptors: Vec<(u32, Descriptor)>,
    /// And which guards, by the number of the pool.
    guards: Vec<(u32, Guard)>,
    /// In the ring in force, each true by itself.
    in_place: Vec<Operation>,
    /// Under which the switch may end what has kept unrecorded flows where they are.
    conditions: Vec<Operation>,
    /// By which packets that were the kernel's are refused unless a service has them, as one of this plan may: last but for what
    /// the switch depends on, since what comes before may take long.
    refusing: Vec<Operation>,
    /// Rings before a move of the whole service, without backends that died. Not before the grace
    /// period: until then, such a ring may still be the one in force to a packet.
    buried: Vec<Operation>,
    /// Pools whose slots move.
    moves: BTreeSet<u32>,
    /// Backends that may take flows again once the switch has told the rings.
    wakes: Vec<Operation>,
    /// Which those are, by index of the service.
    woken: BTreeMap<u32, BTreeSet<u16>>,
    /// What must wait for the grace period.
    after: Vec<Operation>,
    /// Room that the next plan may use again.
    released: Released,
    /// Backends that would need a new entry, and found none.
    put_off: usize,
    /// What the programs have to be loaded for.
    features: u32,
    /// Services with every port of an address of which others have ranges.
    overlaid: BTreeSet<ServiceId>,
    /// Whether the switch puts other classes of VIPs in force.
    reclassed: bool,
    /// Prefixes of lists that the maps hold, those that go after the grace period included.
    prefixes: usize,
    /// Numbers of lists that are or were in the maps.
    list_numbers: BTreeSet<u32>,
}

/// Room that packets in flight can still lead to, until the grace period.
#[derive(Debug, Default)]
struct Released {
    services: Vec<(Endpoint, u32)>,
    indices: Vec<u32>,
    entries: Vec<u32>,
    counters: Vec<u32>,
    slots: Vec<u32>,
    member_spans: Vec<u32>,
}

/// The writes that make of `layout` what `inputs` want.
///
/// # Errors
/// Why there are none; nothing is to be done then.
pub fn plan(layout: &Layout, inputs: &Inputs<'_>) -> Result<Plan, PlanError> {
    let lists = layout.lists.iter().chain(&layout.route_lists);
    let mut draft = Draft {
        layout: layout.clone(),
        before: Vec::new(),
        refusing: Vec::new(),
        descriptors: Vec::new(),
        guards: Vec::new(),
        in_place: Vec::new(),
        conditions: Vec::new(),
        buried: Vec::new(),
        moves: BTreeSet::new(),
        wakes: Vec::new(),
        woken: BTreeMap::new(),
        after: Vec::new(),
        released: Released::default(),
        put_off: 0,
        features: 0,
        overlaid: wide::overlaid(inputs.state),
        reclassed: false,
        prefixes: lists.clone().map(|(_, rules)| rules.len()).sum(),
        list_numbers: lists.map(|(&number, _)| number).collect(),
    };
    if let Some(census) = inputs.census {
        draft.release_indices(census);
    }
    let whole = inputs.only.is_none();
    if whole {
        draft.place_lists(inputs.state)?;
        draft.place_address_pools(inputs.state);
    }
    let (pools, numbers) = match inputs.only {
        Some(leads) => draft.found_pools(inputs.state, leads),
        None => {
            let pools = inputs.state.pools();
            let numbers = draft.match_pools(&pools);
            (pools, numbers)
        }
    };
    for (pool, number) in pools.iter().zip(numbers) {
        draft.place(pool, number, inputs)?;
    }
    draft.forget_routes();
    // Before the members that these are about: a scheduler chooses them as soon as they are there, and
    // what they answer has to find its way, their connections' ids their server.
    let members = std::mem::take(&mut draft.before);
    draft.set_ways_back(inputs.state)?;
    draft.set_servers(inputs.state)?;
    if whole {
        draft.place_classes()?;
        draft.set_owned(inputs)?;
        draft.set_interfaces(inputs);
        draft.set_devices(inputs.devices);
    }
    draft.set_features(inputs);
    draft.set_gue_port(inputs.tunnel.gue_port);
    draft.before.extend(members);
    if inputs.keeps_flows {
        keeps::check(layout, &draft.layout)?;
    }
    let made = draft.finish(inputs.now);
    if cfg!(debug_assertions)
        && !whole
        && let Ok(all) = plan(
            layout,
            &Inputs {
                only: None,
                ..*inputs
            },
        )
    {
        assert!(all == made, "a pool that was not looked at has changed");
    }
    Ok(made)
}

impl Draft {
    /// Brings one pool to what is wanted of it and of its services, of which the first one speaks for all.
    fn place(
        &mut self,
        pool: &[&Service],
        number: Option<u32>,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        let Some(&service) = pool.first() else {
            return Ok(());
        };
        let shared = number.and_then(|number| self.layout.pools.remove(&number));
        let before = shared.as_deref();
        let before = before.map(Placed::descriptors).unwrap_or_default();
        let mut placed = self.place_services(pool, shared.as_deref().cloned())?;
        placed.overlaid.clone_from(&self.overlaid);
        let services = &placed.services;
        placed.overlaid.retain(|id| services.contains_key(id));
        placed.descriptor.pool = placed.number as u16;
        let sampling = match service.mode {
            _ if service.watches_handshakes() => {
                inputs.sampling.get(&service.id).copied().unwrap_or(1)
            }
            // Of all flows, since each has a session that says whose its answers are.
            Mode::FullNat => u8::from(!service.passive.is_off()),
            _ => 0,
        };
        placed.descriptor.set_sampling(sampling);
        note_overflows(&mut placed, inputs);
        servers::note_traffic(&mut placed, inputs);
        let mut dead = Dead::new();
        add_dead(&mut dead, &placed);
        self.place_members(service, &mut placed, inputs)?;
        add_dead(&mut dead, &placed);
        self.place_ring(service, &mut placed, inputs, &dead)?;
        if self.release_left(service, &mut placed, inputs) {
            self.forget_origins(service, &mut placed, inputs);
        }
        servers::forget_traffic(&mut placed);
        let guard = self.guard(inputs.state, service, &placed);
        if placed.guard != guard {
            placed.guard = guard;
            self.guards.push((placed.number, guard));
        }
        let descriptors = placed.descriptors().into_iter();
        let changed = descriptors.filter(|(index, now)| before.get(index) != Some(now));
        self.descriptors.extend(changed);
        let placed = match shared {
            Some(shared) if *shared == placed => shared,
            _ => Arc::new(placed),
        };
        self.layout.pools.insert(placed.number, placed);
        Ok(())
    }

    fn set_ways_back(&mut self, state: &State) -> Result<(), PlanError> {
        let mut wanted: BTreeMap<Endpoint, WayBack> = BTreeMap::new();
        let mut left = Vec::new();
        for service in state.services().filter(|service| service.mode == Mode::Nat) {
            let Some(placed) = self.layout.placed(service.id) else {
                continue;
            };
            let vip = endpoint(service.id);
            let back = WayBack {
                address: vip.address,
                port: vip.port,
                mss: 0,
                watched: 0,
            };
            for (_, member) in placed.members() {
                let address = member.address();
                let back = WayBack {
                    mss: answered_mss(service, &member.backend),
                    watched: watched(service, &member.backend),
                    ..back
                };
                let stays = service.backend(address).is_some();
                for at in service.served_at(address) {
                    let key = endpoint_at(at, service.id.protocol);
                    let back = match service.id.is_wide() {
                        true => WayBack {
                            port: key.port,
                            ..back
                        },
                        false => back,
                    };
                    if stays {
                        wanted.insert(key, back);
                    } else {
                        left.push((key, back, address, service.id));
                    }
                }
            }
        }
        for (key, back, address, other) in left {
            let differs = |taken: WayBack| {
                WayBack {
                    mss: back.mss,
                    watched: back.watched,
                    ..taken
                } != back
            };
            let taken = wanted.insert(key, back).is_some_and(differs);
            if taken || is_confused(&wanted, key, back) {
                return Err(PlanError::Leaving { address, other });
            }
        }
        let room = self.layout.capacity.ways_back();
        check_room(
            &self.layout.ways_back,
            &wanted,
            room,
            "backends",
            |needed| {
                format!(
                    "{needed} ways back from backends of mode nat, one to each service of a group and each port of a range ({room} fit)"
                )
            },
        )?;
        // Answers are rewritten from before the first request until after the last.
        for (&key, &back) in &wanted {
            if self.layout.ways_back.get(&key) != Some(&back) {
                self.before.push(Operation::WayBack(key, back));
            }
        }
        for &key in self
            .layout
            .ways_back
            .keys()
            .filter(|key| !wanted.contains_key(key))
        {
            self.after.push(Operation::ForgetWayBack(key));
        }
        self.layout.ways_back = wanted;
        Ok(())
    }

    /// Before the first packet goes there.
    fn set_gue_port(&mut self, port: u16) {
        if self.layout.gue_port != port {
            self.before.push(Operation::GuePort(port));
            self.layout.gue_port = port;
        }
    }

    fn set_owned(&mut self, inputs: &Inputs<'_>) -> Result<(), NoRoom> {
        let ids = inputs.state.services().map(|service| service.id);
        // The others are found by their prefixes.
        let vips = ids.filter(|id| !id.is_prefix()).map(|id| id.vip.ip());
        let mut wanted: BTreeMap<Address, u32> = vips.map(|ip| (ip.into(), owned::VIP)).collect();
        for service in inputs.state.services().filter(|service| service.announce) {
            *wanted.entry(service.id.vip.ip().into()).or_default() |= owned::ANNOUNCED;
        }
        for address in self.answered_addresses(inputs.census) {
            *wanted.entry(address).or_default() |= owned::POOL;
        }
        let (before, room) = (&self.layout.owned, self.layout.capacity.owned());
        let needed = check_room(before, &wanted, room, "services", |needed| {
            format!("{needed} VIPs, addresses of pools and of this host ({room} fit)")
        })?;
        // A host may have any number of addresses, which must not keep services from what they need.
        let (mut own, mut free) = (Capacity::OWN_ADDRESSES, room as usize - needed);
        for &ip in inputs.own_addresses {
            let address = Address::from(ip);
            if let Some(bits) = wanted.get_mut(&address) {
                *bits |= owned::LOCAL;
                continue;
            }
            let new = usize::from(!before.contains_key(&address));
            if own > 0 && new <= free {
                wanted.insert(address, owned::LOCAL);
                (own, free) = (own - 1, free - new);
            }
        }
        for (&address, &bits) in &wanted {
            if self.layout.owned.get(&address) != Some(&bits) {
                self.refusing.push(Operation::Own(address, bits));
            }
        }
        for &address in self
            .layout
            .owned
            .keys()
            .filter(|address| !wanted.contains_key(address))
        {
            self.after.push(Operation::Disown(address));
        }
        self.layout.owned = wanted;
        Ok(())
    }

    /// Where VIPs are announced, if any are.
    fn set_interfaces(&mut self, inputs: &Inputs<'_>) {
        let announces = inputs.state.services().any(|service| service.announce);
        let links = inputs.links.iter().filter(|_| announces);
        let links = links.take(Capacity::INTERFACES as usize / 2);
        let wanted: BTreeMap<u32, Interface> = links
            .map(|(&index, &mac)| (index, Interface { mac, zeros: [0; 2] }))
            .collect();
        let before = std::mem::replace(&mut self.layout.interfaces, wanted);
        for (&index, &interface) in &self.layout.interfaces {
            if before.get(&index) != Some(&interface) {
                self.before.push(Operation::Interface(index, interface));
            }
        }
        let gone = before.into_keys();
        let gone = gone.filter(|index| !self.layout.interfaces.contains_key(index));
        self.after.extend(gone.map(Operation::ForgetInterface));
    }

    /// Puts the writes in order. Both halves end up equal, so that the next plan can write aside.
    fn finish(mut self, now: Tick) -> Plan {
        let waits = !self.after.is_empty()
            || !self.in_place.is_empty()
            || !self.buried.is_empty()
            || !self.released.entries.is_empty();
        // What packets in flight choose before they see it is recorded when the next sweep begins.
        let woken = (!self.wakes.is_empty()).then_some(Operation::Grace);
        let mut operations = self.before;
        let in_place = !self.in_place.is_empty();
        operations.extend(self.in_place);
        // A packet that has read a slot may see only now in what state is whom it names.
        let stale = |slots: bool| slots && !self.wakes.is_empty();
        let buried = !self.buried.is_empty();
        if self.descriptors.is_empty() && self.guards.is_empty() && !self.reclassed {
            operations.extend(self.refusing);
            operations.extend(self.buried);
            operations.extend(stale(in_place || buried).then_some(Operation::Grace));
            operations.extend(self.wakes);
            operations.extend(woken.or(waits.then_some(Operation::Grace)));
        } else {
            let generation = self.layout.generation + 1;
            let (guards, descriptors) = (&self.guards, &self.descriptors);
            let write = |to: usize| {
                let guards = guards.iter();
                let guards = guards.map(move |&(pool, guard)| Operation::Guard(pool, to, guard));
                let descriptors = descriptors.iter();
                guards.chain(
                    descriptors.map(move |&(index, descriptor)| {
                        Operation::Descriptor(index, to, descriptor)
                    }),
                )
            };
            operations.extend(write(half(generation)));
            operations.extend(self.refusing);
            operations.extend(self.conditions);
            operations.push(Operation::Switch(generation));
            operations.push(Operation::Grace);
            // Only now does every packet know that their slots move, and that a ring is the one before.
            operations.extend(self.buried);
            operations.extend(stale(buried).then_some(Operation::Grace));
            operations.extend(self.wakes);
            operations.extend(woken);
            operations.extend(write(1 - half(generation)));
            self.layout.generation = generation;
        }
        let vacates = self
            .after
            .iter()
            .any(|operation| matches!(operation, Operation::Member(..)));
        operations.extend(self.after);
        if vacates {
            // A scheduler that compares the whole pool may be looking at them even now.
            operations.push(Operation::Grace);
        }
        operations.extend(self.released.give_back(&mut self.layout));
        Plan {
            operations,
            layout: self.layout,
            features: self.features,
            now,
            moves: self.moves,
            put_off: self.put_off,
        }
    }
}

/// [`WayBack::watched`] of a backend.
fn watched(service: &Service, backend: &Backend) -> u32 {
    match service.passive.is_off() {
        true => 0,
        false => backend.counters + 1,
    }
}

/// Whether answers from an endpoint could be those that another way back is for, since one of the two has
/// every port of the backend.
fn is_confused(ways: &BTreeMap<Endpoint, WayBack>, key: Endpoint, back: WayBack) -> bool {
    let at = |port| Endpoint { port, ..key };
    let same = |(other, their): (&Endpoint, &WayBack)| {
        let single = if key.port == 0 {
            (other, their)
        } else {
            (&key, &back)
        };
        other.protocol != key.protocol
            || (other.port == 0) == (key.port == 0)
            || (their.address == back.address && single.0.port == single.1.port)
    };
    // Protocols come last in the order of endpoints.
    let last = Endpoint {
        protocol: u8::MAX,
        ..at(u16::MAX)
    };
    let first = Endpoint {
        protocol: 0,
        ..at(0)
    };
    !ways.range(first..=last).all(same)
}

/// What the MSS of the SYNs that a backend answers with is lowered to; 0 where it is not, or its way is
/// not known.
fn answered_mss(service: &Service, entry: &Backend) -> u16 {
    let is_off = service.mss_clamp == MssClamp::Off || service.id.protocol != Protocol::Tcp;
    if is_off || entry.interface == 0 {
        return 0;
    }
    let v4 = service.id.vip.is_ipv4();
    mss::limit(service.mss_clamp.number(), entry.mtu, v4)
}

/// Whether a table holds what is wanted beside what was there before, which stays until the grace period:
/// how many elements that is.
fn check_room<K: Ord, V>(
    before: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    room: u32,
    setting: &'static str,
    what: impl FnOnce(usize) -> String,
) -> Result<usize, NoRoom> {
    let new = wanted.keys().filter(|key| !before.contains_key(key));
    let needed = before.len() + new.count();
    if needed > room as usize {
        let what = what(needed);
        return Err(NoRoom { what, setting });
    }
    Ok(needed)
}

/// Takes note of choices that could not be recorded since the last sweep, for whichever service.
fn note_overflows(placed: &mut Placed, inputs: &Inputs<'_>) {
    let indices = placed.services.values();
    let counts = indices.map(|index| Some((*index, *inputs.overflows.get(index)?)));
    // Not their sum, which may stay the same where one service takes another's place in a group.
    if let Some(mut counts) = counts.collect::<Option<BTreeMap<_, _>>>() {
        counts.retain(|_, count| *count > 0);
        let within = placed.descriptor.moving_time;
        placed.overflows.note(counts, inputs.now, within);
    }
}

impl Released {
    /// Frees the room; the writes that take services out of the look-up table.
    fn give_back(self, layout: &mut Layout) -> Vec<Operation> {
        let Self {
            services,
            indices,
            entries,
            counters,
            slots,
            member_spans,
        } = self;
        let mut unlinks = Vec::new();
        for (endpoint, index) in services {
            unlinks.extend(layout.lookup.unlink(&endpoint, index));
        }
        layout.left.extend(indices);
        entries
            .into_iter()
            .for_each(|index| layout.entries.release(index));
        counters
            .into_iter()
            .for_each(|index| layout.counters.release(index));
        slots
            .into_iter()
            .for_each(|start| layout.slots.release(start));
        member_spans
            .into_iter()
            .for_each(|start| layout.member_spans.release(start));
        unlinks
    }
}
