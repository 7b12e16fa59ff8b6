//! The load balancer's maps, typed, and [`Dataplane`] over them. No pinning, no attaching.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use lb_common::{
    memory::MemoryTables,
    tables::{
        Address, Backend, Bucket, Control, Counters, Endpoint, FlowCounters, FlowKey, GuardEntry,
        HANDSHAKES, HASH_KEY_WORDS, Handshake, Interface, Member, PoolKey, PortKey, Server,
        ServerKey, ServiceEntry, Session, Shape, Signs, Slot, Tick, WayBack, handshake,
    },
};
use zerocopy::{FromBytes, IntoBytes, transmute};

use super::{
    access::{ACCESS, AccessMap},
    classes::{CLASS_PORTS, CLASSES, ClassMaps},
    flows::{self, Element, FlowMap, SharedFlows},
    mapped::Mapped,
};
use crate::{
    dataplane::{Capacity, Dataplane, DataplaneError, FlowTables, Operation, Wait},
    plan::Ring,
};

type Raw<const N: usize> = [u8; N];
type PerCpuCounters<const N: usize = 3> = PerCpuArray<MapData, [u64; N]>;

/// Every map of the load balancer.
pub struct Maps {
    control: Mapped<Control>,
    lookup: Mapped<Bucket>,
    service_entries: Mapped<ServiceEntry>,
    slots: Mapped<u64>,
    members: Mapped<Member>,
    backends: Mapped<Backend>,
    ways_back: HashMap<MapData, Raw<24>, Raw<24>>,
    servers: HashMap<MapData, Raw<24>, Raw<8>>,
    owned: HashMap<MapData, Raw<16>, u32>,
    interfaces: HashMap<MapData, u32, Raw<8>>,
    vlans: HashMap<MapData, Raw<12>, u32>,
    uppers: HashMap<MapData, u32, Raw<44>>,
    access: AccessMap,
    classes: ClassMaps,
    shapes: Mapped<Shape>,
    guards: Mapped<GuardEntry>,
    service_counters: PerCpuCounters,
    backend_counters: PerCpuCounters,
    flow_counters: PerCpuCounters<14>,
    loads: Mapped<u64>,
    signs: Mapped<Signs>,
    handshakes: Mapped<Handshake>,
    moved: Mapped<u64>,
    established: FlowMap,
    half_open: FlowMap,
    sessions: FlowMap<FlowKey, Session>,
    ports: FlowMap<PortKey, FlowKey>,
    pool_addresses: HashMap<MapData, Raw<8>, Raw<16>>,
    drops: PerCpuArray<MapData, u64>,
    /// What the programs are loaded for.
    features: Arc<AtomicU32>,
    /// Datagrams in fragments that the program has room for.
    fragments: u32,
    /// Sources, likewise.
    sources: u32,
}

/// The one whose element says what is in use.
pub(super) const CONTROL: &str = "CONTROL";

/// Names of maps that are one agent's alone, of all programs that it loads.
pub(super) const OWN: [&str; 7] = [
    "DATAGRAMS",
    "EARLY",
    "HANDSHAKES",
    "SERVICE_BUCKETS",
    "SOURCE_BUCKETS",
    "UNPROXIED_BUCKETS",
    "AYA_LOGS",
];

/// Names of the maps in the object, and of their pins.
pub const NAMES: [&str; 33] = [
    "TAILS",
    "HANDOVER",
    "TAGGED",
    CONTROL,
    "LOOKUP",
    "SERVICE_ENTRIES",
    "SLOTS",
    "MEMBERS",
    "BACKENDS",
    "WAYS_BACK",
    "SERVERS",
    "OWNED",
    "INTERFACES",
    "VLANS",
    "UPPERS",
    ACCESS,
    CLASSES,
    CLASS_PORTS,
    "SHAPES",
    "GUARDS",
    "SERVICE_COUNTERS",
    "BACKEND_COUNTERS",
    "FLOW_COUNTERS",
    "LOADS",
    "SIGNS",
    "TURNS",
    "MOVED",
    "ESTABLISHED",
    "HALF_OPEN",
    "SESSIONS",
    "PORTS",
    "POOL_ADDRESSES",
    "DROPS",
];

/// What is in use by a [`CONTROL`] map.
pub(super) fn features(data: MapData) -> Result<u32, MapError> {
    let control: Array<MapData, Raw<{ size_of::<Control>() }>> = Map::Array(data).try_into()?;
    let control: Control = transmute!(control.get(&0, 0)?);
    Ok(control.features)
}

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DataplaneError> {
    ebpf.take_map(name).ok_or_else(|| {
        DataplaneError::new(
            format!("looking for map {name}"),
            &"the object has none of that name",
        )
    })
}

pub(super) fn typed<T: TryFrom<Map>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, DataplaneError>
where
    T::Error: std::fmt::Display,
{
    T::try_from(take(ebpf, name)?)
        .map_err(|error| DataplaneError::new(format!("opening map {name}"), &error))
}

fn mapped<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<Mapped<T>, DataplaneError>
where
    T: FromBytes + IntoBytes + zerocopy::Immutable + Copy,
{
    let Map::Array(data) = take(ebpf, name)? else {
        return Err(DataplaneError::new(
            format!("opening map {name}"),
            &"it is not an array",
        ));
    };
    let info = data
        .info()
        .map_err(|error| DataplaneError::new(format!("asking about map {name}"), &error))?;
    Mapped::new(data.fd(), info.max_entries(), name)
}

/// How many elements a map has that is left where it is.
fn elements(ebpf: &Ebpf, name: &'static str) -> Result<u32, DataplaneError> {
    let Some(Map::LruHashMap(data)) = ebpf.map(name) else {
        let cause = "the object has no LRU hash of that name";
        return Err(DataplaneError::new(
            format!("looking for map {name}"),
            &cause,
        ));
    };
    let info = data.info();
    let info =
        info.map_err(|error| DataplaneError::new(format!("asking about map {name}"), &error))?;
    Ok(info.max_entries())
}

fn flow_map<K: Element, V: Element>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<FlowMap<K, V>, DataplaneError> {
    let Map::HashMap(data) = take(ebpf, name)? else {
        return Err(DataplaneError::new(
            format!("opening map {name}"),
            &"it is not a hash",
        ));
    };
    FlowMap::new(&data, name)
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// One is missing or of another kind.
    pub(super) fn take(ebpf: &mut Ebpf, features: Arc<AtomicU32>) -> Result<Self, DataplaneError> {
        Ok(Self {
            features,
            control: mapped(ebpf, CONTROL)?,
            lookup: mapped(ebpf, "LOOKUP")?,
            service_entries: mapped(ebpf, "SERVICE_ENTRIES")?,
            slots: mapped(ebpf, "SLOTS")?,
            members: mapped(ebpf, "MEMBERS")?,
            backends: mapped(ebpf, "BACKENDS")?,
            ways_back: typed(ebpf, "WAYS_BACK")?,
            servers: typed(ebpf, "SERVERS")?,
            owned: typed(ebpf, "OWNED")?,
            interfaces: typed(ebpf, "INTERFACES")?,
            vlans: typed(ebpf, "VLANS")?,
            uppers: typed(ebpf, "UPPERS")?,
            access: AccessMap::take(ebpf)?,
            classes: ClassMaps::take(ebpf)?,
            shapes: mapped(ebpf, "SHAPES")?,
            guards: mapped(ebpf, "GUARDS")?,
            service_counters: typed(ebpf, "SERVICE_COUNTERS")?,
            backend_counters: typed(ebpf, "BACKEND_COUNTERS")?,
            flow_counters: typed(ebpf, "FLOW_COUNTERS")?,
            loads: mapped(ebpf, "LOADS")?,
            signs: mapped(ebpf, "SIGNS")?,
            handshakes: mapped(ebpf, "HANDSHAKES")?,
            moved: mapped(ebpf, "MOVED")?,
            established: flow_map(ebpf, "ESTABLISHED")?,
            half_open: flow_map(ebpf, "HALF_OPEN")?,
            sessions: flow_map(ebpf, "SESSIONS")?,
            ports: flow_map(ebpf, "PORTS")?,
            pool_addresses: typed(ebpf, "POOL_ADDRESSES")?,
            drops: typed(ebpf, "DROPS")?,
            fragments: elements(ebpf, "DATAGRAMS")?,
            sources: elements(ebpf, "SOURCE_BUCKETS")?,
        })
    }

    /// The control element.
    ///
    /// # Errors
    /// Never, for a map with its one element.
    pub fn control(&self) -> Result<Control, DataplaneError> {
        self.control.get(0)
    }

    /// Makes fresh maps ready, with the secret of the flow hash; not while there are services, which
    /// would be lost.
    ///
    /// # Errors
    /// Never, for a map with its one element.
    pub fn initialise(&mut self, hash_key: [u64; HASH_KEY_WORDS]) -> Result<(), DataplaneError> {
        let control = Control {
            hash_key,
            lookup_bits: self.lookup.length().ilog2(),
            ..self.control.get(0)?
        };
        self.control.set(0, control)
    }

    fn execute_one(&mut self, operation: &Operation) -> Result<(), DataplaneError> {
        match operation {
            Operation::Slots(ring) => {
                write_pairs(&mut self.slots, ring.start, &ring.slots, |s| s.0)
            }
            Operation::Moved(ring) => write_pairs(&mut self.moved, ring.start, &ring.moved, |&t| t),
            Operation::Member(index, member) => self.members.store_member(*index, *member),
            Operation::Backend(index, backend) => self.backends.set(*index, *backend),
            Operation::State(index, state) => self.backends.store_state(*index, *state),
            Operation::Descriptor(index, half, descriptor) => {
                self.service_entries
                    .set_half(*index + 1, *half, *descriptor)
            }
            Operation::Lookup {
                bucket,
                place,
                value,
            } => self.lookup.store_place(*bucket, *place, *value),
            Operation::WayBack(endpoint, back) => {
                let (key, value): (Raw<24>, Raw<24>) = (transmute!(*endpoint), transmute!(*back));
                put(&mut self.ways_back, key, value, "a way back")
            }
            Operation::ForgetWayBack(endpoint) => {
                let key: Raw<24> = transmute!(*endpoint);
                remove(&mut self.ways_back, key, "a way back")
            }
            Operation::Server(key, server) => {
                let (key, value): (Raw<24>, Raw<8>) = (transmute!(*key), transmute!(*server));
                put(&mut self.servers, key, value, "a server id")
            }
            Operation::ForgetServer(key) => {
                let key: Raw<24> = transmute!(*key);
                remove(&mut self.servers, key, "a server id")
            }
            Operation::Access(list, rules) => self.access.put(*list, rules),
            Operation::ForgetAccess(list, rules) => self.access.forget(*list, rules),
            Operation::PoolAddresses(pool, addresses) => {
                for (index, address) in (0..).zip(addresses.iter()) {
                    let pool = u32::from(*pool);
                    let key: Raw<8> = transmute!(PoolKey { pool, index });
                    let value: Raw<16> = transmute!(*address);
                    put(&mut self.pool_addresses, key, value, "an address of a pool")?;
                }
                Ok(())
            }
            Operation::ForgetPoolAddress(key) => {
                let key: Raw<8> = transmute!(*key);
                forget(&mut self.pool_addresses, key, "an address of a pool")
            }
            Operation::Guard(pool, half, guard) => self.guards.set_guard(*pool, *half, *guard),
            Operation::VipPrefix(key, halves) => self.classes.put_prefix(*key, *halves),
            Operation::ForgetVipPrefix(key) => self.classes.forget_prefix(*key),
            Operation::Class(class, ports) => self.classes.put_class(*class, ports),
            Operation::ForgetClass(class, ports) => self.classes.forget_class(*class, ports),
            Operation::Shape(index, shape) => self.shapes.set(*index, *shape),
            Operation::Own(address, bits) => {
                let key: Raw<16> = transmute!(*address);
                put(&mut self.owned, key, *bits, "an own address")
            }
            Operation::Disown(address) => {
                let key: Raw<16> = transmute!(*address);
                remove(&mut self.owned, key, "an own address")
            }
            Operation::Interface(index, interface) => {
                let value: Raw<8> = transmute!(*interface);
                put(&mut self.interfaces, *index, value, "an interface")
            }
            Operation::ForgetInterface(index) => {
                remove(&mut self.interfaces, *index, "an interface")
            }
            Operation::Vlan(key, device) => {
                let key: Raw<12> = transmute!(*key);
                put(&mut self.vlans, key, *device, "a VLAN")
            }
            Operation::ForgetVlan(key) => {
                let key: Raw<12> = transmute!(*key);
                remove(&mut self.vlans, key, "a VLAN")
            }
            Operation::Upper(index, upper) => {
                let value: Raw<44> = transmute!(*upper);
                put(&mut self.uppers, *index, value, "a device over others")
            }
            Operation::ForgetUpper(index) => {
                remove(&mut self.uppers, *index, "a device over others")
            }
            Operation::Features(features) => self.control.store_features(*features),
            Operation::UnknownPort(refusal) => self.control.store_unknown_port(*refusal),
            Operation::GuePort(port) => self.control.store_gue_port(port.to_be()),
            Operation::ZeroService(index) => {
                zero(&mut self.flow_counters, *index)?;
                zero(&mut self.service_counters, *index)
            }
            Operation::ZeroBackend(index) => {
                self.loads.reset_load(*index)?;
                self.signs.set(*index, Signs::default())?;
                zero(&mut self.backend_counters, *index)
            }
            Operation::AddLoad(index, change) => self.loads.add_load(*index, *change),
            Operation::Overflows(index, count) => self.expect_overflows(*index, *count),
            Operation::Switch(generation) => self.control.store_word(0, 0, *generation),
            Operation::Grace => super::grace::wait(),
        }
    }
}

/// Puts an element, called `what`, into a hash.
fn put<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    value: V,
    what: &str,
) -> Result<(), DataplaneError> {
    map.insert(key, value, 0)
        .map_err(|error| DataplaneError::new(format!("adding {what}"), &error))
}

/// Takes an element, called `what`, out of a hash.
fn remove<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    what: &str,
) -> Result<(), DataplaneError> {
    map.remove(&key)
        .map_err(|error| DataplaneError::new(format!("removing {what}"), &error))
}

/// The same of one that may have gone already, by an agent that has ended since.
fn forget<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    what: &str,
) -> Result<(), DataplaneError> {
    match map.remove(&key) {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        removed => removed.map_err(|error| DataplaneError::new(format!("removing {what}"), &error)),
    }
}

/// Writes words two to an element, from an even place on.
fn write_pairs<T>(
    map: &mut Mapped<u64>,
    start: u32,
    words: &[T],
    word: impl Fn(&T) -> u32,
) -> Result<(), DataplaneError> {
    for (index, pair) in (start / 2..).zip(words.chunks(2)) {
        let [low, high] = [pair.first(), pair.get(1)].map(|at| at.map_or(0, &word));
        map.set(index, u64::from(low) | (u64::from(high) << 32))?;
    }
    Ok(())
}

/// Reads words that were so written.
fn read_pairs(map: &Mapped<u64>, start: u32, size: u32) -> Result<Vec<u32>, DataplaneError> {
    let word = |place: u32| {
        let pair = map.get((start + place) >> 1)?;
        Ok((pair >> (32 * ((start + place) & 1))) as u32)
    };
    (0..size).map(word).collect()
}

/// The counters of an element, each summed over CPUs.
fn sum<const N: usize>(map: &PerCpuCounters<N>, index: u32) -> Result<[u64; N], DataplaneError> {
    let values = map
        .get(&index, 0)
        .map_err(|error| DataplaneError::new("reading counters", &error))?;
    let mut total = [0u64; N];
    for counters in values.iter() {
        for (sum, counter) in total.iter_mut().zip(counters) {
            *sum = sum.wrapping_add(*counter);
        }
    }
    Ok(total)
}

fn traffic(map: &PerCpuCounters<3>, index: u32) -> Result<Counters, DataplaneError> {
    let [packets, bytes, flows] = sum(map, index)?;
    Ok(Counters {
        packets,
        bytes,
        flows,
    })
}

fn zero<const N: usize>(map: &mut PerCpuCounters<N>, index: u32) -> Result<(), DataplaneError> {
    let failed = |error: &dyn std::fmt::Display| DataplaneError::new("resetting counters", error);
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(&error))?;
    let zeros = PerCpuValues::try_from(vec![[0; N]; cpus]).map_err(|error| failed(&error))?;
    map.set(index, zeros, 0).map_err(|error| failed(&error))
}

impl Dataplane for Maps {
    fn features(&self) -> u32 {
        self.features.load(Ordering::Acquire)
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            services: self.service_entries.length() - 1,
            backends: self.backends.length(),
            members: self.members.length(),
            slots: self.slots.length().saturating_mul(2),
            flows: self.established.capacity(),
            half_open: self.half_open.capacity(),
            fragments: self.fragments,
            access_prefixes: self.access.capacity(),
            sources: self.sources,
            sessions: self.sessions.capacity(),
        }
    }

    fn grace(&self) -> Wait {
        Box::new(super::grace::wait)
    }

    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError> {
        operations
            .iter()
            .try_for_each(|operation| self.execute_one(operation))
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        let mut tables = MemoryTables::default();
        tables.control = self.control.get(0)?;
        let failed = |error: MapError| DataplaneError::new("reading the maps", &error);
        tables.lookup = all(&self.lookup)?;
        for item in self.ways_back.iter() {
            let (key, back): (Raw<24>, Raw<24>) = item.map_err(failed)?;
            let (key, back): (Endpoint, WayBack) = (transmute!(key), transmute!(back));
            tables.ways_back.insert(key, back);
        }
        for item in self.servers.iter() {
            let (key, server): (Raw<24>, Raw<8>) = item.map_err(failed)?;
            let (key, server): (ServerKey, Server) = (transmute!(key), transmute!(server));
            tables.servers.insert(key, server);
        }
        for item in self.owned.iter() {
            let (key, bits): (Raw<16>, u32) = item.map_err(failed)?;
            let key: Address = transmute!(key);
            tables.owned.insert(key, bits);
        }
        for item in self.vlans.iter() {
            let (key, device): (Raw<12>, u32) = item.map_err(failed)?;
            tables.vlans.insert(transmute!(key), device);
        }
        for item in self.uppers.iter() {
            let (index, upper): (u32, Raw<44>) = item.map_err(failed)?;
            tables.uppers.insert(index, transmute!(upper));
        }
        for item in self.interfaces.iter() {
            let (index, interface): (u32, Raw<8>) = item.map_err(failed)?;
            let interface: Interface = transmute!(interface);
            tables.interfaces.insert(index, interface);
        }
        for item in self.pool_addresses.iter() {
            let (key, address): (Raw<8>, Raw<16>) = item.map_err(failed)?;
            let (key, address): (PoolKey, Address) = (transmute!(key), transmute!(address));
            tables.pool_addresses.insert(key, address);
        }
        tables.access = self.access.read()?;
        tables.classes = self.classes.prefixes()?;
        tables.class_ports = self.classes.ports()?;
        tables.shapes = all(&self.shapes)?;
        tables.guards = all(&self.guards)?;
        tables.service_entries = all(&self.service_entries)?.split_off(1);
        tables.members = all(&self.members)?;
        tables.backends = all(&self.backends)?;
        Ok(tables)
    }

    fn service_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        traffic(&self.service_counters, index)
    }

    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        traffic(&self.backend_counters, index)
    }

    fn ring(&self, start: u32, size: u32) -> Result<Ring, DataplaneError> {
        let slots = read_pairs(&self.slots, start, size)?;
        let slots = slots.into_iter().map(Slot).collect();
        Ok(Ring::new(
            start,
            slots,
            read_pairs(&self.moved, start, size)?,
        ))
    }

    fn now(&self) -> Tick {
        flows::now()
    }

    fn flow_counters(&self, index: u32) -> Result<FlowCounters, DataplaneError> {
        let [
            lookups,
            recorded,
            overflows,
            named,
            client_overflows,
            promotion_overflows,
            denied,
            source_limited,
            service_limited,
            ports_exhausted,
            untold,
            cookies_sent,
            cookies_valid,
            cookies_invalid,
        ] = sum(&self.flow_counters, index)?;
        Ok(FlowCounters {
            lookups,
            recorded,
            overflows,
            named,
            client_overflows,
            promotion_overflows,
            denied,
            source_limited,
            service_limited,
            ports_exhausted,
            untold,
            cookies_sent,
            cookies_valid,
            cookies_invalid,
        })
    }

    fn load(&self, counters: u32) -> Result<u32, DataplaneError> {
        // Below zero for a moment reads as zero, as in the program.
        Ok(u32::try_from(self.loads.load(counters)?).unwrap_or(0))
    }

    fn signs(&self, counters: u32) -> Result<Signs, DataplaneError> {
        self.signs.get(counters)
    }

    fn set_way_in(&mut self, counters: u32, interface: u32) -> Result<(), DataplaneError> {
        self.signs.set_way_in(counters, interface)
    }

    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError> {
        for place in 0..HANDSHAKES {
            let found = self.handshakes.get(place)?;
            if found.state == handshake::PENDING && ends(&found) {
                self.handshakes.set_stalled(place)?;
            }
        }
        Ok(())
    }

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        Ok(Box::new(SharedFlows {
            established: self.established.share()?,
            half_open: self.half_open.share()?,
            sessions: self.sessions.share()?,
            ports: self.ports.share()?,
            loads: self.loads.share(),
        }))
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        let total =
            |values: PerCpuValues<u64>| values.iter().fold(0u64, |sum, &n| sum.wrapping_add(n));
        self.drops
            .iter()
            .map(|values| {
                values
                    .map(total)
                    .map_err(|error| DataplaneError::new("reading drop counters", &error))
            })
            .collect()
    }
}

fn all<T: FromBytes + IntoBytes + zerocopy::Immutable + Copy>(
    map: &Mapped<T>,
) -> Result<Vec<T>, DataplaneError> {
    (0..map.length()).map(|index| map.get(index)).collect()
}
