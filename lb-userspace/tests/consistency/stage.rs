//! What the agent acts upon: tables that are written one operation at a time, with packets in between,
//! and flow tables that are swept while packets change them.

use std::sync::{Arc, Mutex, MutexGuard};

use lb_common::{
    memory::MemoryTables,
    tables::{
        Counters, FlowCounters, FlowKey, Handshake, PortKey, Record, Session, Signs, Table, Tick,
    },
};
use lb_userspace::{
    dataplane::{Capacity, Dataplane, DataplaneError, FlowTables, Operation, Wait},
    plan::Ring,
};

use crate::{bend::bent, sabotage::Sabotage, world::World};

/// The agent's hold of the world.
#[derive(Clone)]
pub struct Stage(Arc<Mutex<World>>);

impl Stage {
    /// The stage of a world.
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    /// The world, for as long as nobody acts.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

/// What an agent does after it was killed comes to nothing.
fn alive(world: &World) -> Result<(), DataplaneError> {
    match world.dead {
        true => Err(DataplaneError::new("testing", &"killed")),
        false => Ok(()),
    }
}

impl Dataplane for Stage {
    fn features(&self) -> u32 {
        self.world().memory.features()
    }

    fn capacity(&self) -> Capacity {
        self.world().memory.capacity()
    }

    fn grace(&self) -> Wait {
        let stage = self.clone();
        Box::new(move || stage.clone().execute(&[Operation::Grace]))
    }

    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError> {
        let mut guard = self.world();
        let world = &mut *guard;
        alive(world)?;
        // Not while the agent waits, and hears it at a moment that nobody can foresee.
        if operations != [Operation::Grace] {
            world.tell_in_time();
        }
        let conditional = operations
            .iter()
            .any(|op| matches!(op, Operation::Overflows(..)));
        if conditional && world.random.once_in(2) {
            world.rush();
        }
        let mut at_once = false;
        let in_place =
            |sabotage: &Sabotage| *sabotage != Sabotage::EjectedIsTakenForDead || world.watching;
        let sabotage = world.sabotage.filter(in_place);
        let mut operations = bent(operations, &world.memory.tables, sabotage);
        if world.sabotage == Some(Sabotage::ServerIdsComeAfterTheirServers) {
            let is_server = |op: &mut Operation| matches!(op, Operation::Server(..));
            world.withheld.extend(operations.extract_if(.., is_server));
            // By then whoever they are about has been chosen for a while.
            if operations.contains(&Operation::Grace) {
                operations.append(&mut world.withheld);
            }
        }
        for operation in operations {
            // What is done under a condition follows within microseconds.
            if !std::mem::replace(&mut at_once, matches!(operation, Operation::Overflows(..))) {
                world.moment();
            }
            if world.sabotage != Some(Sabotage::BothHalvesAreWritten)
                && let Some(objection) = world.grace.objection(&operation, &world.memory.tables)
            {
                world.tally.broken.push(objection);
            }
            let outcome = world.carry_out(&operation);
            world.dead = world.doomed && outcome.is_err();
            if outcome.is_err() && world.random.once_in(4) {
                // So may what is done about it.
                let soon = world.random.index(4);
                world.memory.fail_at = Some(world.memory.executed + soon);
            }
            outcome?;
        }
        world.moment();
        Ok(())
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        let world = self.world();
        alive(&world)?;
        world.memory.read()
    }

    fn service_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        self.world().memory.service_counters(index)
    }

    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        let world = self.world();
        if world.sabotage == Some(Sabotage::NamedTrafficIsOverlooked) {
            return Ok(Counters::default());
        }
        world.memory.backend_counters(index)
    }

    fn ring(&self, start: u32, size: u32) -> Result<Ring, DataplaneError> {
        self.world().memory.ring(start, size)
    }

    fn now(&self) -> Tick {
        self.world().memory.now()
    }

    fn flow_counters(&self, index: u32) -> Result<FlowCounters, DataplaneError> {
        let world = self.world();
        let mut counters = world.memory.flow_counters(index)?;
        if world.sabotage == Some(Sabotage::OverflowIsForgotten) {
            counters.overflows = 0;
        }
        Ok(counters)
    }

    fn load(&self, counters: u32) -> Result<u32, DataplaneError> {
        self.world().memory.load(counters)
    }

    fn signs(&self, counters: u32) -> Result<Signs, DataplaneError> {
        self.world().memory.signs(counters)
    }

    fn set_way_in(&mut self, counters: u32, interface: u32) -> Result<(), DataplaneError> {
        self.world().memory.set_way_in(counters, interface)
    }

    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError> {
        self.world().memory.end_handshakes(ends)
    }

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        Ok(Box::new(Swept {
            stage: self.clone(),
            meanwhile: || {},
            quiet: true,
        }))
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        self.world().memory.drops()
    }
}

/// Flow tables during a sweep. `meanwhile` is called before each is read.
pub struct Swept<F> {
    /// Whose tables.
    pub stage: Stage,
    /// What happens meanwhile, packets apart.
    pub meanwhile: F,
    /// No packets come.
    pub quiet: bool,
}

impl<F> Swept<F> {
    fn moment(&self, world: &mut World) {
        if !self.quiet && world.random.once_in(8) {
            world.moment();
        }
    }
}

/// The table that is read where the sweep asks for one: the other, where their order is wrong.
fn read(world: &World, table: Table) -> Table {
    match (world.sabotage, table) {
        (Some(Sabotage::EstablishedIsReadFirst), Table::HalfOpen) => Table::Established,
        (Some(Sabotage::EstablishedIsReadFirst), Table::Established) => Table::HalfOpen,
        (_, table) => table,
    }
}

impl<F: FnMut()> FlowTables for Swept<F> {
    fn scan(
        &mut self,
        table: Table,
        show: &mut dyn FnMut(&FlowKey, &Record),
    ) -> Result<(), DataplaneError> {
        (self.meanwhile)();
        let mut world = self.stage.world();
        // The worst moment: flows seen once are promoted from a table that has been read to one that has
        // not, or the other way round where that order is wrong.
        if table == Table::Established && std::mem::take(&mut world.held_back) {
            world.speak(0);
        }
        let table = read(&world, table);
        let flows = &world.memory.tables.flows;
        let keys: Vec<FlowKey> = flows
            .borrow_mut()
            .table(table)
            .records
            .keys()
            .copied()
            .collect();
        for key in keys {
            self.moment(&mut world);
            let mut flows = world.memory.tables.flows.borrow_mut();
            if let Some(record) = flows.table(table).records.get(&key) {
                show(&key, record);
            }
        }
        Ok(())
    }

    fn remove(
        &mut self,
        table: Table,
        key: &FlowKey,
        record: &Record,
    ) -> Result<bool, DataplaneError> {
        let mut world = self.stage.world();
        let table = read(&world, table);
        self.moment(&mut world);
        (&world.memory.tables).remove(table, key, record)
    }

    fn scan_sessions(
        &mut self,
        show: &mut dyn FnMut(&FlowKey, &Session),
    ) -> Result<(), DataplaneError> {
        (&self.stage.world().memory.tables).scan_sessions(show)
    }

    fn scan_ports(
        &mut self,
        show: &mut dyn FnMut(&PortKey, &FlowKey),
    ) -> Result<(), DataplaneError> {
        (&self.stage.world().memory.tables).scan_ports(show)
    }

    fn session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        (&self.stage.world().memory.tables).session(key)
    }

    fn take_session(&mut self, key: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        (&self.stage.world().memory.tables).take_session(key)
    }

    fn insert_session(&mut self, key: &FlowKey, session: &Session) -> Result<bool, DataplaneError> {
        (&self.stage.world().memory.tables).insert_session(key, session)
    }

    fn port(&mut self, key: &PortKey) -> Result<Option<FlowKey>, DataplaneError> {
        FlowTables::port(&mut &self.stage.world().memory.tables, key)
    }

    fn claim_port(&mut self, key: &PortKey, flow: &FlowKey) -> Result<bool, DataplaneError> {
        FlowTables::claim_port(&mut &self.stage.world().memory.tables, key, flow)
    }

    fn free_port(&mut self, key: &PortKey) -> Result<(), DataplaneError> {
        FlowTables::free_port(&mut &self.stage.world().memory.tables, key)
    }

    fn wait_for_packets(&mut self) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn load(&self, counters: u32) -> Result<i64, DataplaneError> {
        FlowTables::load(&&self.stage.world().memory.tables, counters)
    }
}
