//! A dataplane in memory: what the kernel's maps would hold, for tests of planner and agent.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use lb_common::{
    memory::MemoryTables,
    steer,
    tables::{
        Counters, FlowCounters, FlowKey, Handshake, PoolKey, PortKey, Record, Recorded,
        ServiceEntry, Session, Signs, Table, Tables, Tick, handshake,
    },
};

use super::{Capacity, Dataplane, DataplaneError, FlowTables, Operation, Wait};
use crate::plan::Ring;

/// Carries operations out on [`MemoryTables`], after every one of which a test may look.
#[derive(Debug, Default)]
pub struct MemoryDataplane {
    /// The tables.
    pub tables: MemoryTables,
    /// When each slot moved last.
    pub moved: Vec<Tick>,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Operations carried out so far.
    pub executed: usize,
    /// The operation to fail at, counted from the first ever.
    pub fail_at: Option<usize>,
    /// Features that the programs are not loaded for.
    pub without: Arc<AtomicU32>,
}

fn put<T: Clone + Default>(list: &mut Vec<T>, index: u32, value: T) {
    let index = index as usize;
    if list.len() <= index {
        list.resize(index + 1, T::default());
    }
    list[index] = value;
}

impl MemoryDataplane {
    /// Carries out one operation.
    pub fn apply(&mut self, operation: &Operation) {
        let tables = &mut self.tables;
        match operation {
            Operation::Slots(ring) => {
                for (index, pair) in (ring.start / 2..).zip(ring.slots.chunks(2)) {
                    let high = pair.get(1).map_or(0, |slot| slot.0);
                    let element = u64::from(pair[0].0) | (u64::from(high) << 32);
                    put(&mut tables.slots, index, element);
                }
            }
            Operation::Moved(ring) => {
                for (index, &tick) in (ring.start..).zip(&ring.moved) {
                    put(&mut self.moved, index, tick);
                }
            }
            Operation::Member(index, member) => put(&mut tables.members, *index, *member),
            Operation::Backend(index, backend) => put(&mut tables.backends, *index, *backend),
            Operation::State(index, state) => tables.backends[*index as usize].state = *state,
            Operation::Descriptor(index, half, descriptor) => {
                let mut entry: ServiceEntry = tables
                    .service_entries
                    .get(*index as usize)
                    .copied()
                    .unwrap_or_default();
                entry.halves[*half] = *descriptor;
                put(&mut tables.service_entries, *index, entry);
            }
            Operation::Lookup {
                bucket,
                place,
                value,
            } => {
                let mut places = tables
                    .lookup
                    .get(*bucket as usize)
                    .copied()
                    .unwrap_or_default();
                places[*place] = *value;
                put(&mut tables.lookup, *bucket, places);
                // In the kernel, all entries are there from the beginning.
                let entries = tables.service_entries.len().max(*value as usize);
                tables
                    .service_entries
                    .resize(entries, ServiceEntry::default());
            }
            Operation::WayBack(endpoint, back) => drop(tables.ways_back.insert(*endpoint, *back)),
            Operation::ForgetWayBack(endpoint) => drop(tables.ways_back.remove(endpoint)),
            Operation::Server(key, server) => drop(tables.servers.insert(*key, *server)),
            Operation::ForgetServer(key) => drop(tables.servers.remove(key)),
            Operation::Access(list, rules) => {
                let says = rules
                    .iter()
                    .map(|&(prefix, says)| (prefix.key(*list), says.number()));
                tables.access.extend(says);
            }
            Operation::ForgetAccess(list, rules) => {
                for (prefix, _) in rules.iter() {
                    tables.access.remove(&prefix.key(*list));
                }
            }
            Operation::PoolAddresses(pool, addresses) => {
                let keys = (0..).map(|index| PoolKey {
                    pool: (*pool).into(),
                    index,
                });
                tables
                    .pool_addresses
                    .extend(keys.zip(addresses.iter().copied()));
            }
            Operation::ForgetPoolAddress(key) => drop(tables.pool_addresses.remove(key)),
            Operation::Guard(pool, half, guard) => {
                let entry = tables.guards.get(*pool as usize);
                let mut entry = entry.copied().unwrap_or_default();
                entry.halves[*half] = *guard;
                put(&mut tables.guards, *pool, entry);
            }
            Operation::VipPrefix(key, halves) => drop(tables.classes.insert(*key, *halves)),
            Operation::ForgetVipPrefix(key) => drop(tables.classes.remove(key)),
            Operation::Class(class, ports) => {
                for range in ports.iter() {
                    let keys = range.keys(*class).into_iter();
                    tables
                        .class_ports
                        .extend(keys.map(|key| (key, range.index + 1)));
                }
            }
            Operation::ForgetClass(class, ports) => {
                for key in ports.iter().flat_map(|range| range.keys(*class)) {
                    tables.class_ports.remove(&key);
                }
            }
            Operation::Shape(index, shape) => put(&mut tables.shapes, *index, *shape),
            Operation::Own(address, bits) => drop(tables.owned.insert(*address, *bits)),
            Operation::Disown(address) => drop(tables.owned.remove(address)),
            Operation::Interface(index, interface) => {
                tables.interfaces.insert(*index, *interface);
            }
            Operation::ForgetInterface(index) => drop(tables.interfaces.remove(index)),
            Operation::Vlan(key, device) => drop(tables.vlans.insert(*key, *device)),
            Operation::ForgetVlan(key) => drop(tables.vlans.remove(key)),
            Operation::Upper(index, upper) => drop(tables.uppers.insert(*index, *upper)),
            Operation::ForgetUpper(index) => drop(tables.uppers.remove(index)),
            Operation::Features(bits) => tables.control.features = *bits,
            Operation::UnknownPort(refusal) => tables.control.unknown_port = *refusal,
            Operation::GuePort(port) => tables.control.gue_port = port.to_be(),
            Operation::Switch(generation) => tables.control.generation = *generation,
            Operation::ZeroService(index) => tables.zero_service(*index),
            Operation::ZeroBackend(index) => tables.zero_backend(*index),
            Operation::AddLoad(index, change) => tables.add_load(*index, *change as i32),
            Operation::Grace | Operation::Overflows(..) => {}
        }
    }
}

impl Dataplane for MemoryDataplane {
    fn features(&self) -> u32 {
        !self.without.load(Ordering::Relaxed)
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError> {
        for operation in operations {
            if self.fail_at == Some(self.executed) {
                self.fail_at = None;
                return Err(DataplaneError::new("testing", &"failed as asked"));
            }
            self.executed += 1;
            if let Operation::Overflows(index, count) = *operation {
                self.expect_overflows(index, count)?;
            }
            self.apply(operation);
        }
        Ok(())
    }

    fn grace(&self) -> Wait {
        Box::new(|| Ok(()))
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        Ok(self.tables.clone())
    }

    fn service_counters(&self, _: u32) -> Result<Counters, DataplaneError> {
        Ok(Counters::default())
    }

    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        Ok(self.tables.backend_counters(index))
    }

    fn ring(&self, start: u32, size: u32) -> Result<Ring, DataplaneError> {
        let slots = (0..size)
            .map(|place| steer::slot_at(&self.tables, start, place).unwrap_or_default())
            .collect();
        let moved = |place| self.moved.get((start + place) as usize).copied();
        let moved = (0..size).map(|place| moved(place).unwrap_or_default());
        Ok(Ring::new(start, slots, moved.collect()))
    }

    fn now(&self) -> Tick {
        self.tables.time.get()
    }

    fn flow_counters(&self, index: u32) -> Result<FlowCounters, DataplaneError> {
        Ok(self.tables.flow_counters(index))
    }

    fn load(&self, counters: u32) -> Result<u32, DataplaneError> {
        Ok(self.tables.load(counters))
    }

    fn signs(&self, counters: u32) -> Result<Signs, DataplaneError> {
        let signs = self.tables.signs.borrow();
        Ok(signs.get(&counters).copied().unwrap_or_default())
    }

    fn set_way_in(&mut self, counters: u32, interface: u32) -> Result<(), DataplaneError> {
        let signs = self.tables.signs.get_mut();
        signs.entry(counters).or_default().interface = interface.into();
        Ok(())
    }

    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError> {
        for found in self.tables.handshakes.get_mut().values_mut() {
            if found.state == handshake::PENDING && ends(found) {
                found.state = handshake::STALLED;
            }
        }
        Ok(())
    }

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        Err(DataplaneError::new(
            "sharing flow tables",
            &"those in memory are swept in place",
        ))
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        Ok(Vec::new())
    }
}

/// The flow tables of [`MemoryTables`], in place.
impl FlowTables for &MemoryTables {
    fn scan(
        &mut self,
        table: Table,
        show: &mut dyn FnMut(&FlowKey, &Record),
    ) -> Result<(), DataplaneError> {
        for (key, record) in &self.flows.borrow_mut().table(table).records {
            show(key, record);
        }
        Ok(())
    }

    fn remove(
        &mut self,
        table: Table,
        key: &FlowKey,
        record: &Record,
    ) -> Result<bool, DataplaneError> {
        let mut flows = self.flows.borrow_mut();
        let records = &mut flows.table(table).records;
        let same = records.get(key) == Some(record);
        if same {
            records.remove(key);
        }
        Ok(same)
    }

    fn scan_sessions(
        &mut self,
        show: &mut dyn FnMut(&FlowKey, &Session),
    ) -> Result<(), DataplaneError> {
        for (key, session) in &self.sessions.borrow().by_flow {
            show(key, session);
        }
        Ok(())
    }

    fn scan_ports(
        &mut self,
        show: &mut dyn FnMut(&PortKey, &FlowKey),
    ) -> Result<(), DataplaneError> {
        for (key, flow) in &self.sessions.borrow().ports {
            show(key, flow);
        }
        Ok(())
    }

    fn session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        Ok(self.visit_session(key, |session| *session))
    }

    fn take_session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        let taken = self.visit_session(key, |session| *session);
        self.sessions.borrow_mut().by_flow.remove(key);
        Ok(taken)
    }

    fn insert_session(&mut self, key: &FlowKey, session: &Session) -> Result<bool, DataplaneError> {
        Ok(self.put_session(key, session) == Recorded::Done)
    }

    fn port(&mut self, key: &PortKey) -> Result<Option<FlowKey>, DataplaneError> {
        Ok(Tables::port(*self, key))
    }

    fn free_port(&mut self, key: &PortKey) -> Result<(), DataplaneError> {
        self.release_port(key);
        Ok(())
    }

    fn claim_port(&mut self, key: &PortKey, flow: &FlowKey) -> Result<bool, DataplaneError> {
        Ok(Tables::claim_port(*self, key, flow) == Recorded::Done)
    }

    fn wait_for_packets(&mut self) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn load(&self, counters: u32) -> Result<i64, DataplaneError> {
        let flows = self.flows.borrow();
        Ok(flows.loads.get(&counters).copied().unwrap_or(0).into())
    }
}
