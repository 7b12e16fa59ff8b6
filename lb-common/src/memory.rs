//! The maps on the host, for tests, benchmarks and what the agent reads back. Never used in the kernel.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    vec::Vec,
};

use crate::{
    budget::{BUDGETS, Budget, HELD},
    flow::Flow,
    fragment, hash,
    packet::Packet,
    rate::{self, Rate, Take},
    tables::{
        AccessKey, Address, Backend, Bucket, ClassKey, Control, Counters, Datagram, Endpoint,
        FlowCounters, FlowEvent, FlowKey, FragmentKey, GuardEntry, HANDSHAKES, Handover, Handshake,
        Interface, Member, NoRoute, PoolKey, PortKey, Record, Recorded, Route, RouteQuery, Server,
        ServerKey, ServiceEntry, Session, Shape, Sign, Signs, SourceKey, TICK_SHIFT, Table, Tables,
        Tagged, Tick, Upper, VipKey, VlanKey, WayBack, feature,
    },
    verdict::{Answer, DROP_COUNTERS, DropReason, Piece},
    vlan,
    wire::Byte,
};

mod meanwhile;
mod paths;

pub use meanwhile::Meanwhile;
pub use paths::MemoryHost;

/// What says where a packet goes.
pub type Router = fn(&RouteQuery) -> Result<Route, NoRoute>;

/// [`Tables`] in memory. Fill the public fields; counters come back through methods.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables {
    /// The control element.
    pub control: Control,
    /// The look-up table of services, 2^`control.lookup_bits` buckets.
    pub lookup: Vec<Bucket>,
    /// Services by index.
    pub service_entries: Vec<ServiceEntry>,
    /// The arena, two slots an element.
    pub slots: Vec<u64>,
    /// Members of all pools.
    pub members: Vec<Member>,
    /// Backends; the first stands for nobody.
    pub backends: Vec<Backend>,
    /// What answers become.
    pub ways_back: BTreeMap<Endpoint, WayBack>,
    /// Who has which server id.
    pub servers: BTreeMap<ServerKey, Server>,
    /// What guards services, by the number of their pool.
    pub guards: Vec<GuardEntry>,
    /// All access lists: what each of their prefixes says.
    pub access: BTreeMap<AccessKey, u32>,
    /// Addresses of pools.
    pub pool_addresses: BTreeMap<PoolKey, Address>,
    /// Sessions of mode `full-nat`, and the ports that they have.
    pub sessions: RefCell<Sessions>,
    /// Buckets of sources.
    pub source_buckets: RefCell<BTreeMap<SourceKey, rate::Moment>>,
    /// Buckets of services, by their index.
    pub service_buckets: RefCell<BTreeMap<u32, rate::Moment>>,
    /// Those that flows take of which begin unproxied, likewise.
    pub unproxied_buckets: RefCell<BTreeMap<u32, rate::Moment>>,
    /// The cookie that every SYN gets, and the largest segment that it stands for, in the place of those that depend on the SYN.
    pub cookie: Cell<Option<(u32, u16)>>,
    /// Bits of [`crate::tables::owned`].
    pub owned: BTreeMap<Address, u32>,
    /// Classes of prefixes of VIPs, as of either half.
    pub classes: BTreeMap<VipKey, [u32; 2]>,
    /// Index + 1 of the services that have ports of classes.
    pub class_ports: BTreeMap<ClassKey, u32>,
    /// What descriptors do not say of services that have several addresses or ports, by index.
    pub shapes: Vec<Shape>,
    /// Hardware addresses of interfaces that VIPs are announced on.
    pub interfaces: BTreeMap<u32, Interface>,
    /// VLAN devices by the tags of their frames, with [`UPPER`](crate::tables::UPPER).
    pub vlans: BTreeMap<VlanKey, u32>,
    /// Devices that stand over others.
    pub uppers: BTreeMap<u32, Upper>,
    /// What has been taken off the frame at hand.
    pub tagged: Cell<Tagged>,
    /// Routes by destination; where there is none, packets are [refused](NoRoute::Refused).
    pub routes: BTreeMap<Address, Result<Route, NoRoute>>,
    /// What says where packets go instead, if anything: by all that a look-up is asked.
    pub router: Option<Router>,
    /// The flow tables.
    pub flows: RefCell<Flows>,
    /// What is known of datagrams in fragments.
    pub datagrams: RefCell<BTreeMap<FragmentKey, Datagram>>,
    /// Fragments that are held.
    pub held: RefCell<Vec<HeldFrame>>,
    /// The time.
    pub time: Cell<Tick>,
    /// Answers that may still be given.
    pub budgets: Cell<[Budget; BUDGETS as usize]>,
    /// What one program has left for the next.
    pub handover: Cell<Handover>,
    /// What backends have shown, by the index of their counters.
    pub signs: RefCell<BTreeMap<u32, Signs>>,
    /// Handshakes that are watched, by their places.
    pub handshakes: RefCell<BTreeMap<u32, Handshake>>,
    /// What other CPUs do in the midst of a packet of mode `full-nat`.
    pub meanwhile: Meanwhile,
    counted: RefCell<Counted>,
}

/// A fragment that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldFrame {
    /// Its datagram.
    pub key: FragmentKey,
    /// Where it belongs there, in bytes.
    pub offset: u32,
    /// The interface that it came in by.
    pub interface: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Flow tables, and what schedulers keep, as the program left them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flows {
    /// Flows of which a packet after the first was seen.
    pub established: FlowTable,
    /// Flows of which one packet was seen.
    pub half_open: FlowTable,
    /// Flows in progress, by the index of a backend's counters.
    pub loads: BTreeMap<u32, i32>,
    /// Turns taken, by number of the pool.
    pub turns: BTreeMap<u32, u32>,
}

/// Sessions, as the program left them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// By the client's flow.
    pub by_flow: BTreeMap<FlowKey, Session>,
    /// Whose each port is.
    pub ports: BTreeMap<PortKey, FlowKey>,
    /// How many sessions there is room for.
    pub capacity: usize,
    /// The same of ports.
    pub port_capacity: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            by_flow: BTreeMap::new(),
            ports: BTreeMap::new(),
            capacity: usize::MAX,
            port_capacity: usize::MAX,
        }
    }
}

/// A flow table of a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowTable {
    /// What is recorded.
    pub records: BTreeMap<FlowKey, Record>,
    /// Records that it has room for.
    pub capacity: usize,
}

impl Default for FlowTable {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            capacity: usize::MAX,
        }
    }
}

impl Flows {
    /// A table.
    pub fn table(&mut self, table: Table) -> &mut FlowTable {
        match table {
            Table::Established => &mut self.established,
            Table::HalfOpen => &mut self.half_open,
        }
    }
}

/// What a run over [`MemoryTables`] has counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counted {
    /// Of services, by index.
    pub services: BTreeMap<u32, Counters>,
    /// Of backends, by index of their counters.
    pub backends: BTreeMap<u32, Counters>,
    /// Of flow tables, by service.
    pub flows: BTreeMap<u32, FlowCounters>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<u32, u64>,
    /// Answers by kind.
    pub answers: BTreeMap<u32, u64>,
    /// Fragments by what they came to.
    pub pieces: BTreeMap<u32, u64>,
}

impl MemoryTables {
    /// Everything counted so far, which starts at zero again.
    pub fn take_counted(&self) -> Counted {
        self.counted.take()
    }

    /// Packets dropped for a reason since then.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        let drops = &self.counted.borrow().drops;
        drops.get(&(reason as u32)).copied().unwrap_or(0)
    }

    /// Starts a service's counters at zero.
    pub fn zero_service(&mut self, index: u32) {
        let counted = self.counted.get_mut();
        counted.services.remove(&index);
        counted.flows.remove(&index);
    }

    /// Starts a backend's counters at zero, by their index.
    pub fn zero_backend(&mut self, index: u32) {
        self.counted.get_mut().backends.remove(&index);
        self.flows.get_mut().loads.remove(&index);
        self.signs.get_mut().remove(&index);
    }

    /// What flow tables have done for a service since [`MemoryTables::take_counted`].
    pub fn flow_counters(&self, service: u32) -> FlowCounters {
        let counted = self.counted.borrow();
        counted.flows.get(&service).copied().unwrap_or_default()
    }

    /// Traffic of a backend since then, by the index of its counters.
    pub fn backend_counters(&self, index: u32) -> Counters {
        let counted = self.counted.borrow();
        counted.backends.get(&index).copied().unwrap_or_default()
    }

    /// Makes an endpoint find the service of that index, in the first bucket with room.
    ///
    /// # Panics
    /// Both buckets are full.
    pub fn link(&mut self, endpoint: &Endpoint, index: u32) {
        let bits = self.control.lookup_bits;
        self.lookup.resize(1 << bits, Bucket::default());
        let hash = hash::endpoint(&self.control.hash_key, endpoint);
        for choice in 0..2 {
            let bucket = &mut self.lookup[hash.bucket(bits, choice) as usize];
            if let Some(place) = bucket.iter_mut().find(|place| **place == 0) {
                *place = index + 1;
                return;
            }
        }
        panic!("no room for {endpoint:?} in the look-up table of 2^{bits} buckets");
    }
}

/// What cookies stand for here.
const COOKIE_MSS: [u16; 4] = [536, 1_220, 1_440, 1_460];

impl MemoryTables {
    /// The cookie of a SYN that tells the smallest of [`COOKIE_MSS`]: of its flow, its number and the secret.
    fn first_cookie(&self, flow: &Flow, sequence: u32) -> u32 {
        let (from, to) = (&flow.source, &flow.destination);
        let ports = flow.ports() ^ sequence;
        let hash = hash::flow(&self.control.hash_key, from, to, ports, flow.protocol);
        (hash.word() >> 32) as u32 ^ hash.word() as u32
    }

    fn take_of_budget(&self, number: u32) -> bool {
        let mut budgets = self.budgets.get();
        let budget = budgets.get_mut(number as usize);
        let may = budget.is_some_and(|budget| budget.take(self.now()));
        self.budgets.set(budgets);
        may
    }
}

/// [`rate::take`] of a bucket.
fn take_one(word: &mut rate::Moment, now: Tick, rate: &Rate) -> bool {
    match rate::take(*word, now, rate) {
        Take::Refused => return false,
        Take::Add(interval) => *word = word.wrapping_add(interval),
        Take::Set(to) => *word = to,
    }
    true
}

/// Puts an element into a table of a size that never evicts, as the kernel's do.
fn insert<K: Ord, V>(
    table: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    over: bool,
    capacity: usize,
) -> Recorded {
    let known = table.contains_key(&key);
    if known && !over {
        return Recorded::Taken;
    }
    if !known && table.len() >= capacity {
        return Recorded::Full;
    }
    table.insert(key, value);
    Recorded::Done
}

fn at<T>(list: &[T], index: u32) -> Option<&T> {
    list.get(usize::try_from(index).ok()?)
}

impl Tables for MemoryTables {
    /// It is loaded for what is in use and nothing else.
    fn knows(&self, feature: u32) -> bool {
        self.uses(feature)
    }

    fn uses(&self, feature: u32) -> bool {
        self.control.features & feature != 0
    }

    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }

    fn generation(&self) -> u64 {
        self.control.generation
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        at(&self.lookup, index)
    }

    fn service_entry(&self, index: u32) -> Option<&ServiceEntry> {
        at(&self.service_entries, index)
    }

    fn slots(&self, index: u32) -> Option<u64> {
        at(&self.slots, index).copied()
    }

    fn member(&self, index: u32) -> Option<&Member> {
        at(&self.members, index)
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        at(&self.backends, index)
    }

    fn way_back(&self, key: &Endpoint) -> Option<WayBack> {
        self.ways_back.get(key).copied()
    }

    fn may_answer(&self, answer: Answer) -> bool {
        self.take_of_budget(answer as u32)
    }

    fn hand_over(&self, handover: Handover) {
        self.handover.set(handover);
    }

    fn handed_over(&self) -> Handover {
        self.handover.get()
    }

    fn server(&self, key: &ServerKey) -> Option<Server> {
        self.servers.get(key).copied()
    }

    fn owned(&self, address: &Address) -> u32 {
        self.owned.get(address).copied().unwrap_or(0)
    }

    fn class(&self, key: &VipKey) -> [u32; 2] {
        let lengths = (VipKey::PROTOCOL_BITS..=key.bits).rev();
        let mut prefixes = lengths.map(|bits| key.prefix(bits));
        let found = prefixes.find_map(|prefix| self.classes.get(&prefix));
        found.copied().unwrap_or_default()
    }

    fn class_port(&self, key: &ClassKey) -> u32 {
        let port = u16::from_be_bytes(key.port);
        let mut blocks = (0..=16)
            .rev()
            .map(|bits| ClassKey::block(key.class, port, bits));
        let found = blocks.find_map(|block| self.class_ports.get(&block));
        found.copied().unwrap_or(0)
    }

    fn tagged(&self) -> Option<Tagged> {
        let tagged = self.tagged.get();
        (tagged.count != 0).then_some(tagged)
    }

    fn note_tags(&self, tagged: &Tagged) {
        self.tagged.set(*tagged);
    }

    fn vlan(&self, key: &VlanKey) -> Option<u32> {
        self.vlans.get(key).copied()
    }

    fn upper(&self, interface: u32) -> Option<&Upper> {
        self.uppers.get(&interface)
    }

    fn hardware_address(&self, interface: u32) -> Option<[u8; 6]> {
        self.interfaces.get(&interface).map(|found| found.mac)
    }

    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute> {
        let route = match self.router {
            Some(router) => router(query)?,
            None => {
                let route = self.routes.get(&query.destination).copied();
                route.unwrap_or(Err(NoRoute::Refused))?
            }
        };
        let upper = self
            .upper(route.interface)
            .filter(|_| self.knows(feature::VLAN));
        let interface = vlan::led(route.interface, upper, query.length)?;
        Ok(Route { interface, ..route })
    }

    fn count_service(&self, index: u32, bytes: u64, new_flow: bool) {
        let mut counted = self.counted.borrow_mut();
        counted
            .services
            .entry(index)
            .or_default()
            .add(bytes, new_flow);
    }

    fn count_backend(&self, backend: &Backend, bytes: u64, new_flow: bool) {
        let index = backend.counters;
        let mut counted = self.counted.borrow_mut();
        counted
            .backends
            .entry(index)
            .or_default()
            .add(bytes, new_flow);
    }

    fn count_drop(&self, reason: DropReason) {
        debug_assert!((reason as u32) < DROP_COUNTERS);
        *self
            .counted
            .borrow_mut()
            .drops
            .entry(reason as u32)
            .or_default() += 1;
    }

    fn count_answer(&self, answer: Answer) {
        let mut counted = self.counted.borrow_mut();
        *counted.answers.entry(answer as u32).or_default() += 1;
    }

    fn count_piece(&self, piece: Piece) {
        let mut counted = self.counted.borrow_mut();
        *counted.pieces.entry(piece as u32).or_default() += 1;
    }

    fn visit_datagram<R>(
        &self,
        key: &FragmentKey,
        visit: impl FnOnce(&mut Datagram) -> R,
    ) -> Option<R> {
        self.datagrams.borrow_mut().get_mut(key).map(visit)
    }

    fn note_datagram(&self, key: &FragmentKey, fill: impl FnOnce(&mut Datagram)) {
        let mut datagram = Datagram::default();
        fill(&mut datagram);
        self.datagrams.borrow_mut().insert(*key, datagram);
    }

    fn hold<P: Packet>(&self, packet: &P, key: &FragmentKey, offset: u32) -> bool {
        if !self.take_of_budget(HELD) {
            return false;
        }
        let Some(length) = fragment::holds(packet) else {
            return false;
        };
        let bytes = (0..length).map_while(|at| packet.read(at));
        let frame: Vec<u8> = bytes.map(|Byte(byte)| byte).collect();
        let Tagged { tags, count, .. } = self.tagged.get();
        self.held.borrow_mut().push(HeldFrame {
            key: *key,
            offset,
            interface: packet.interface(),
            frame: vlan::restored(&frame, &tags[..count as usize]),
        });
        true
    }

    fn guards(&self, pool: u32) -> Option<&GuardEntry> {
        at(&self.guards, pool)
    }

    fn access(&self, key: &AccessKey) -> u32 {
        let mut prefixes = (0..=key.bits).rev().map(|bits| key.prefix(bits));
        let found = prefixes.find_map(|prefix| self.access.get(&prefix));
        found.copied().unwrap_or(0)
    }

    fn take_of_source(&self, key: &SourceKey, rate: &Rate) -> bool {
        let mut buckets = self.source_buckets.borrow_mut();
        take_one(buckets.entry(*key).or_default(), self.now(), rate)
    }

    fn take_of_service(&self, service: u32, rate: &Rate) -> bool {
        let mut buckets = self.service_buckets.borrow_mut();
        take_one(buckets.entry(service).or_default(), self.now(), rate)
    }

    fn take_of_unproxied(&self, service: u32, rate: &Rate) -> bool {
        let mut buckets = self.unproxied_buckets.borrow_mut();
        take_one(buckets.entry(service).or_default(), self.now(), rate)
    }

    fn cookie(&self, flow: &Flow, sequence: u32, mss: u16) -> Option<(u32, u16)> {
        let known = COOKIE_MSS.iter().enumerate().rev();
        let (index, &least) = known
            .into_iter()
            .find(|(_, least)| mss >= **least)
            .unwrap_or((0, &COOKIE_MSS[0]));
        let given = self.cookie.get();
        Some(given.unwrap_or_else(|| {
            (
                self.first_cookie(flow, sequence).wrapping_add(index as u32),
                least,
            )
        }))
    }

    fn is_cookie(&self, flow: &Flow, sequence: u32, cookie: u32) -> bool {
        match self.cookie.get() {
            Some((given, _)) => given == cookie,
            None => {
                cookie.wrapping_sub(self.first_cookie(flow, sequence)) < COOKIE_MSS.len() as u32
            }
        }
    }

    fn now(&self) -> Tick {
        self.time.get()
    }

    fn visit<R>(
        &self,
        table: Table,
        key: &FlowKey,
        visit: impl FnOnce(&mut Record) -> R,
    ) -> Option<R> {
        let mut flows = self.flows.borrow_mut();
        flows.table(table).records.get_mut(key).map(visit)
    }

    fn record(&self, table: Table, key: &FlowKey, record: &Record, over: bool) -> Recorded {
        let mut flows = self.flows.borrow_mut();
        let FlowTable { records, capacity } = flows.table(table);
        insert(records, *key, *record, over, *capacity)
    }

    fn forget(&self, table: Table, key: &FlowKey) {
        self.flows.borrow_mut().table(table).records.remove(key);
    }

    fn visit_session<R>(&self, key: &FlowKey, visit: impl FnOnce(&mut Session) -> R) -> Option<R> {
        self.meanwhile.interrupt(self);
        self.sessions.borrow_mut().by_flow.get_mut(key).map(visit)
    }

    fn clear_flags(&self, record: &mut Record, flags: u16) -> u16 {
        self.meanwhile.touch(record);
        let before = record.flags;
        record.flags &= !flags;
        before
    }

    fn set_flags(&self, record: &mut Record, flags: u16) -> u16 {
        self.meanwhile.touch(record);
        let before = record.flags;
        record.flags |= flags;
        before
    }

    fn put_session(&self, key: &FlowKey, session: &Session) -> Recorded {
        self.meanwhile.interrupt(self);
        let mut sessions = self.sessions.borrow_mut();
        let room = sessions.capacity;
        insert(&mut sessions.by_flow, *key, *session, false, room)
    }

    fn remove_session(&self, key: &FlowKey) {
        self.meanwhile.interrupt(self);
        self.sessions.borrow_mut().by_flow.remove(key);
    }

    fn port(&self, key: &PortKey) -> Option<FlowKey> {
        self.meanwhile.interrupt(self);
        self.sessions.borrow().ports.get(key).copied()
    }

    fn claim_port(&self, key: &PortKey, flow: &FlowKey) -> Recorded {
        self.meanwhile.interrupt(self);
        let mut sessions = self.sessions.borrow_mut();
        let room = sessions.port_capacity;
        insert(&mut sessions.ports, *key, *flow, false, room)
    }

    fn hand_port_on(&self, key: &PortKey, flow: &FlowKey) -> bool {
        self.meanwhile.interrupt(self);
        self.sessions.borrow_mut().ports.insert(*key, *flow);
        true
    }

    fn release_port(&self, key: &PortKey) {
        self.meanwhile.interrupt(self);
        self.sessions.borrow_mut().ports.remove(key);
    }

    fn pool_address(&self, key: &PoolKey) -> Option<Address> {
        self.pool_addresses.get(key).copied()
    }

    fn count_flow(&self, service: u32, event: FlowEvent) {
        let mut counted = self.counted.borrow_mut();
        counted.flows.entry(service).or_default().add(event);
    }

    fn load(&self, counters: u32) -> u32 {
        let flows = self.flows.borrow();
        let load = flows.loads.get(&counters).copied().unwrap_or(0);
        u32::try_from(load).unwrap_or(0)
    }

    fn add_load(&self, counters: u32, change: i32) {
        *self.flows.borrow_mut().loads.entry(counters).or_default() += change;
    }

    fn turn(&self, pool: u32) -> u32 {
        let mut flows = self.flows.borrow_mut();
        let turn = flows.turns.entry(pool).or_default();
        *turn = turn.wrapping_add(1);
        *turn
    }

    fn exact_now(&self) -> u64 {
        u64::from(self.time.get()) << TICK_SHIFT
    }

    fn comes_by(&self, counters: u32) -> u32 {
        let signs = self.signs.borrow();
        signs
            .get(&counters)
            .map_or(0, |signs| signs.interface as u32)
    }

    fn add_sign(&self, counters: u32, sign: Sign, amount: u64) {
        let mut signs = self.signs.borrow_mut();
        let word = signs.entry(counters).or_default().word(sign);
        *word = word.wrapping_add(amount);
    }

    fn end_streak(&self, counters: u32) {
        if let Some(signs) = self.signs.borrow_mut().get_mut(&counters) {
            signs.streak = 0;
        }
    }

    fn visit_handshake<R>(&self, place: u32, visit: impl FnOnce(&mut Handshake) -> R) -> Option<R> {
        let mut handshakes = self.handshakes.borrow_mut();
        (place < HANDSHAKES).then(|| visit(handshakes.entry(place).or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Services 1 and 2 and backends 1 and 2, each with a packet of 60 bytes and a flow.
    fn counted() -> MemoryTables {
        let tables = MemoryTables::default();
        for index in [1, 2] {
            tables.count_service(index, 60, true);
            let backend = Backend {
                counters: index,
                ..Backend::default()
            };
            tables.count_backend(&backend, 60, true);
            tables.count_flow(index, FlowEvent::Recorded);
            tables.add_load(index, 1);
        }
        tables
    }

    #[test]
    fn a_service_that_starts_at_zero_leaves_the_others() {
        let mut tables = counted();
        tables.zero_service(1);
        assert_eq!(tables.flow_counters(1), FlowCounters::default());
        assert_eq!(tables.flow_counters(2).recorded, 1);
        let counted = tables.take_counted();
        assert_eq!(counted.services.keys().collect::<Vec<_>>(), [&2]);
        assert_eq!(counted.backends.len(), 2);
    }

    #[test]
    fn a_backend_that_starts_at_zero_leaves_the_others() {
        let mut tables = counted();
        tables.zero_backend(1);
        assert_eq!((tables.load(1), tables.load(2)), (0, 1));
        let counted = tables.take_counted();
        assert_eq!(counted.backends.keys().collect::<Vec<_>>(), [&2]);
        assert_eq!(counted.services.len(), 2);
    }
}
