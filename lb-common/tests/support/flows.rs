//! Stages on which flows are remembered: moves of slots and services, schedulers, time. All of it
//! concerns the last service added.

use lb_common::{
    memory::Flows,
    tables::{Phase, Slot, Table, Tick, flow_kind, scheduler, service_flag},
};

use super::{Condition, FIRST_COUNTERS, FIRST_MEMBER, Stage};

/// Where every slot of a ring stands, by positions of servers in the pool.
#[derive(Debug, Clone, Copy)]
pub enum Move {
    /// From the second to the first.
    Moving(u32, u32),
    /// To the first, and done moving.
    Settling(u32),
    /// The first's.
    Steady(u32),
    /// The first's, and known to have been the second's.
    Former(u32, u32),
}

/// How new flows are spread, and over which sequence of positions.
#[derive(Debug, Clone, Copy)]
pub enum Scheduler<'a> {
    Turns(&'a [u32]),
    Least,
    TwoChoices(&'a [u32]),
    /// A number that no scheduler has.
    Unknown,
}

impl Stage {
    /// Every slot of the ring, of eight, stands there.
    pub fn moved(self, to: Move) -> Self {
        let slot = match to {
            Move::Moving(owner, origin) => Slot::new(owner, origin, Phase::Moving),
            Move::Settling(owner) => Slot::new(owner, owner, Phase::Settling),
            Move::Steady(owner) => Slot::steady(owner),
            Move::Former(owner, former) => Slot::new(owner, former, Phase::Steady),
        };
        self.ring_of(&[slot; 8])
    }

    /// How long slots move and flows may be idle.
    pub fn moving_time(self, ticks: Tick) -> Self {
        self.describe(|descriptor| descriptor.moving_time = ticks)
    }

    fn flag(self, flag: u16) -> Self {
        self.describe(|descriptor| descriptor.flags |= flag)
    }

    /// Every flow is recorded, and those in progress are counted.
    pub fn recording_all(self) -> Self {
        self.flag(service_flag::ALWAYS | service_flag::COUNTED)
    }

    /// Flows in progress are not counted.
    pub fn uncounted(self) -> Self {
        self.describe(|descriptor| descriptor.flags &= !service_flag::COUNTED)
    }

    /// The whole service moves from a ring of these owners.
    pub fn moving_from(mut self, owners: &[u32]) -> Self {
        let slots: Vec<Slot> = owners.iter().map(|&owner| Slot::steady(owner)).collect();
        let (start, size) = self.lay(&slots);
        self.flag(service_flag::MOVING).describe(|descriptor| {
            descriptor.set_previous(start, size, descriptor.previous_fields());
        })
    }

    /// The whole service moves from a ring every slot of which was itself on the move.
    pub fn moving_from_move(mut self, owner: u32, origin: u32) -> Self {
        let (start, size) = self.lay(&[Slot::new(owner, origin, Phase::Moving); 8]);
        self.flag(service_flag::MOVING).describe(|descriptor| {
            descriptor.set_previous(start, size, descriptor.previous_fields());
        })
    }

    /// The move of the whole service is over, and its slots settle for this owner.
    pub fn settling(self, owner: u32) -> Self {
        self.describe(|descriptor| descriptor.flags &= !service_flag::MOVING)
            .moved(Move::Settling(owner))
    }

    /// In mode `nat`, packets keep their destination port.
    pub fn keeping_ports(self) -> Self {
        self.flag(service_flag::KEEPS_PORT)
    }

    /// Clients keep to a slot, whatever their ports.
    pub fn by_source(self) -> Self {
        self.flag(service_flag::BY_SOURCE)
    }

    /// They do for each VIP.
    pub fn by_three_tuple(self) -> Self {
        self.flag(service_flag::BY_THREE_TUPLE)
    }

    /// Flows were placed by other fields on the previous ring.
    pub fn previously(self, fields: u16) -> Self {
        self.describe(|descriptor| {
            let (start, size) = (descriptor.previous_start, descriptor.previous_size());
            descriptor.set_previous(start, size, fields);
        })
    }

    /// How new flows are spread.
    pub fn scheduled(mut self, scheduler: Scheduler<'_>) -> Self {
        let (number, sequence) = match scheduler {
            Scheduler::Turns(sequence) => (scheduler::TURNS, sequence),
            Scheduler::Least => (scheduler::LEAST, &[][..]),
            Scheduler::TwoChoices(sequence) => (scheduler::TWO_CHOICES, sequence),
            Scheduler::Unknown => (7, &[][..]),
        };
        let slots: Vec<Slot> = sequence.iter().map(|&owner| Slot::steady(owner)).collect();
        let (start, size) = self.lay(&slots);
        self.describe(|descriptor| {
            descriptor.scheduler = number;
            (descriptor.schedule_start, descriptor.schedule_size) = (start, size);
        })
    }

    /// Weight and limit of a server's flows in progress.
    pub fn weigh(mut self, server: u32, weight: u16, limit: u32) -> Self {
        let member = &mut self.tables.members[(FIRST_MEMBER + server) as usize];
        (member.weight, member.limit) = (weight, limit);
        self
    }

    /// Another server has the position now.
    pub fn replaced(mut self, server: u32) -> Self {
        self.tables.members[(FIRST_MEMBER + server) as usize].generation += 1;
        self
    }

    /// Nobody has the position now.
    pub fn vacated(mut self, server: u32) -> Self {
        self.tables.members[(FIRST_MEMBER + server) as usize].backend = 0;
        self
    }

    /// Changes what a server may have.
    pub fn condition(mut self, server: u32, condition: Condition) -> Self {
        self.tables.backends[server as usize + 1].state = condition.state();
        self
    }

    /// Room of the tables of established and half-open flows.
    pub fn room(self, established: usize, half_open: usize) -> Self {
        let mut flows = self.tables.flows.borrow_mut();
        flows.table(Table::Established).capacity = established;
        flows.table(Table::HalfOpen).capacity = half_open;
        drop(flows);
        self
    }

    /// Flows recorded as established and as half-open.
    pub fn recorded(&self) -> (usize, usize) {
        let mut flows = self.tables.flows.borrow_mut();
        let established = flows.table(Table::Established).records.len();
        (established, flows.table(Table::HalfOpen).records.len())
    }

    /// All that is remembered of flows.
    pub fn flows(&self) -> Flows {
        self.tables.flows.borrow().clone()
    }

    /// A server's flows in progress.
    pub fn in_progress(&self, server: u32) -> i32 {
        let flows = self.tables.flows.borrow();
        let load = flows.loads.get(&(FIRST_COUNTERS + server));
        load.copied().unwrap_or(0)
    }

    /// Sets a server's flows in progress.
    pub fn busy(self, server: u32, flows: i32) -> Self {
        let key = FIRST_COUNTERS + server;
        self.tables.flows.borrow_mut().loads.insert(key, flows);
        self
    }

    /// Clients of so many bits of their addresses keep their servers for so long.
    pub fn persisting(self, ticks: Tick, prefix: u8) -> Self {
        self.describe(|descriptor| {
            const SHIFT: u32 = service_flag::CLIENT_SHIFT;
            descriptor.persistence = ticks;
            descriptor.flags &= (1 << SHIFT) - 1;
            descriptor.flags |= u16::from(128 - prefix) << SHIFT;
        })
    }

    /// Clients remembered among the established flows and among the half-open ones.
    pub fn clients(&self) -> (usize, usize) {
        let mut flows = self.tables.flows.borrow_mut();
        let mut clients = |table| {
            let keys = flows.table(table).records.keys();
            keys.filter(|key| key.kind == flow_kind::CLIENT).count()
        };
        (clients(Table::Established), clients(Table::HalfOpen))
    }

    /// The time is that.
    pub fn at(&self, now: Tick) -> &Self {
        self.tables.time.set(now);
        self
    }
}
