//! A dataplane in memory: what the kernel's maps would hold, for tests of planner and agent.

use lb_common::{
    memory::MemoryTables,
    tables::{Counters, ServiceEntry},
};

use super::{Capacity, Dataplane, DataplaneError, Operation};

/// Carries operations out on [`MemoryTables`], after every one of which a test may look.
#[derive(Debug, Default)]
pub struct MemoryDataplane {
    /// The tables.
    pub tables: MemoryTables,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Operations carried out so far.
    pub executed: usize,
    /// The operation to fail at, counted from the first ever.
    pub fail_at: Option<usize>,
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
            Operation::Slots { start, slots } => {
                for (index, pair) in slots.chunks(2).enumerate() {
                    let high = pair.get(1).map_or(0, |slot| slot.0);
                    let element = u64::from(pair[0].0) | (u64::from(high) << 32);
                    put(&mut tables.slots, start / 2 + index as u32, element);
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
            }
            Operation::WayBack(endpoint, back) => drop(tables.ways_back.insert(*endpoint, *back)),
            Operation::ForgetWayBack(endpoint) => drop(tables.ways_back.remove(endpoint)),
            Operation::Own(address, bits) => drop(tables.owned.insert(*address, *bits)),
            Operation::Disown(address) => drop(tables.owned.remove(address)),
            Operation::Features(bits) => tables.control.features = *bits,
            Operation::Switch(generation) => tables.control.generation = *generation,
            Operation::ZeroService(_) | Operation::ZeroBackend(_) | Operation::Grace => {}
        }
    }
}

impl Dataplane for MemoryDataplane {
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
            self.apply(operation);
        }
        Ok(())
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        Ok(self.tables.clone())
    }

    fn service_counters(&self, _: u32) -> Result<Counters, DataplaneError> {
        Ok(Counters::default())
    }

    fn backend_counters(&self, _: u32) -> Result<Counters, DataplaneError> {
        Ok(Counters::default())
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        Ok(Vec::new())
    }
}
