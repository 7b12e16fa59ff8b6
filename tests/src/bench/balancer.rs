//! The product's program and core, loaded without an interface, and the ways to bring its slots into a
//! phase: each is the product's own, only that its clock is set ahead where it would wait.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{PerCpuArray, PerCpuValues},
    programs::{TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};
use lb_common::{
    budget,
    memory::MemoryTables,
    tables::{Counters, FlowCounters, Handshake, Phase, Signs, Tick, service_flag},
};
use lb_userspace::{
    agent::Core,
    config::Tunnel,
    dataplane::{
        Capacity, Dataplane, DataplaneError, FlowTables, Operation, Wait,
        bpf::{LoadOptions, Maps, Program, draw_hash_key},
    },
    model::{AccessList, Change, Service, ServiceId, Unserved, Vlans},
    neighbours::Update,
    plan::{Placed, Ring},
};

use super::{
    frame::destination,
    harness::{INGRESS, action},
    services::{Pool, address_pool, list_name, next_hop, port, repool, sources},
};

/// More than the moving time of any service here: 36 minutes.
const LATER: Tick = 1 << 21;
/// Sweeps after which everything is at rest: to settle, to be steady, to let backends go, and one more
/// where choices could not be recorded.
const SWEEPS: u32 = 6;

/// Bytes that forwarding adds at most: an IPv6 header.
const LONGEST_OVERHEAD: usize = 40;

/// The kernel's maps, with a clock that can be set ahead and an eye on the switch.
pub struct Watched {
    maps: Maps,
    /// How far the agent's clock is ahead of the program's.
    ahead: Tick,
    /// How long the last switch took.
    pub switch: Option<Duration>,
}

impl Dataplane for Watched {
    fn features(&self) -> u32 {
        self.maps.features()
    }

    fn capacity(&self) -> Capacity {
        self.maps.capacity()
    }

    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError> {
        let is_switch = |operation: &Operation| matches!(operation, Operation::Switch(_));
        let Some(place) = operations.iter().position(is_switch) else {
            return self.maps.execute(operations);
        };
        let (before, rest) = operations.split_at(place);
        let (switch, after) = rest.split_at(1);
        self.maps.execute(before)?;
        #[expect(clippy::disallowed_methods, reason = "what is measured")]
        let start = Instant::now();
        self.maps.execute(switch)?;
        self.switch = Some(start.elapsed());
        self.maps.execute(after)
    }

    fn grace(&self) -> Wait {
        self.maps.grace()
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        self.maps.read()
    }

    fn service_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        self.maps.service_counters(index)
    }

    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        self.maps.backend_counters(index)
    }

    fn ring(&self, start: u32, size: u32) -> Result<Ring, DataplaneError> {
        self.maps.ring(start, size)
    }

    fn now(&self) -> Tick {
        self.maps.now().wrapping_add(self.ahead)
    }

    fn flow_counters(&self, index: u32) -> Result<FlowCounters, DataplaneError> {
        self.maps.flow_counters(index)
    }

    fn load(&self, counters: u32) -> Result<u32, DataplaneError> {
        self.maps.load(counters)
    }

    fn signs(&self, counters: u32) -> Result<Signs, DataplaneError> {
        self.maps.signs(counters)
    }

    fn set_way_in(&mut self, counters: u32, interface: u32) -> Result<(), DataplaneError> {
        self.maps.set_way_in(counters, interface)
    }

    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError> {
        self.maps.end_handshakes(ends)
    }

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        self.maps.flow_tables()
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        self.maps.drops()
    }
}

/// The loaded program, and the core that writes its maps.
pub struct Balancer {
    /// The program.
    pub program: Program,
    /// The core.
    pub core: Core<Watched>,
}

impl Balancer {
    /// Loads the program, over the maps that are pinned where there are some, and takes those up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        let (program, maps) = Self::open(options)?;
        Self::adopt(program, maps)
    }

    /// Loads the program; maps that are new get a hash key.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(options: &LoadOptions) -> Result<(Program, Maps)> {
        let (program, mut maps) = Program::load(options)?;
        if maps.control()?.lookup_bits == 0 {
            maps.initialise(draw_hash_key()?)?;
        }
        Ok((program, maps))
    }

    /// Takes up what the maps hold.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn adopt(program: Program, maps: Maps) -> Result<Self> {
        let watched = Watched {
            maps,
            ahead: 0,
            switch: None,
        };
        let mut core = Core::new("bench".to_owned(), Tunnel::default(), watched)?;
        core.offer_pools([address_pool()?])?;
        Ok(Self { program, core })
    }

    /// Has an access list of so many prefixes, all allowed.
    ///
    /// # Errors
    /// It is refused.
    pub fn list(&mut self, prefixes: u32) -> Result<()> {
        let name = list_name(prefixes);
        let list = AccessList::new(&name, sources(prefixes)?, [])?;
        Ok(self.core.change(Change::SetAccessList(list))?)
    }

    /// Has frames with tags balanced, packets to unknown ports answered, and VIPs told by the interface that frames come in by.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn take_everything(&mut self) -> Result<()> {
        let (name, port) = port();
        self.core.attend([name.clone()]);
        self.core.set_vlans(Vlans::On);
        self.core.refuse_unknown_ports(Unserved::Reset);
        self.core.network(Update::Ports([(name, port)].into()));
        Ok(self.core.enforce()?)
    }

    /// Has what all backends answer count, by the interface that frames come in by.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn listen(&mut self) -> Result<()> {
        let all = self.counters();
        let maps = self.core.dataplane_mut();
        all.into_iter()
            .try_for_each(|counters| Ok(maps.set_way_in(counters, INGRESS)?))
    }

    /// Connections that backends have been seen to accept.
    ///
    /// # Errors
    /// The maps cannot be read.
    pub fn accepted(&self) -> Result<u64> {
        let maps = self.core.dataplane();
        let accepted = |counters| Ok(maps.signs(counters)?.accepted);
        self.counters().into_iter().map(accepted).sum()
    }

    /// Indices of the backends' counters.
    fn counters(&self) -> BTreeSet<u32> {
        let pools = self.core.layout().pools.values();
        let members = pools.flat_map(|placed| placed.members());
        members.map(|(_, member)| member.backend.counters).collect()
    }

    /// Makes these its services, whose backends are all within reach.
    ///
    /// # Errors
    /// They are refused.
    pub fn serve(&mut self, services: Vec<Service>) -> Result<()> {
        self.reach(&services);
        Ok(self.core.change(Change::Replace(services))?)
    }

    /// Tells how the backends of services are reached.
    pub fn reach(&mut self, services: &[Service]) {
        for backend in services.iter().flat_map(|service| &service.backends) {
            self.core.network(next_hop(backend.address.ip()));
        }
    }

    /// Tells how the backends of a pool are reached.
    pub fn reach_pool(&mut self, pool: Pool) {
        for address in pool.addresses() {
            self.core.network(next_hop(address));
        }
    }

    /// What the maps hold of a service.
    ///
    /// # Errors
    /// There is no such service.
    pub fn placed(&self, id: ServiceId) -> Result<&Placed> {
        let placed = self.core.layout().placed(id);
        placed.with_context(|| format!("there is no service {id}"))
    }

    /// Slots of all rings.
    pub fn slots(&self) -> u32 {
        let pools = self.core.layout().pools.values();
        pools.map(|placed| placed.ring.size()).sum()
    }

    /// Gives a service another pool, so that every slot of its ring moves.
    ///
    /// # Errors
    /// The change is refused, or leaves a slot where it was.
    pub fn repool(&mut self, id: ServiceId, pool: Pool) -> Result<()> {
        self.reach_pool(pool);
        let change = repool(self.core.state(), |service| {
            (service.id == id).then_some(pool)
        });
        self.core.change(change)?;
        ensure!(
            self.all_are(id, Phase::Moving)?,
            "{id}: not every slot moves: {:?}",
            self.placed(id)?.ring.phases
        );
        Ok(())
    }

    /// Whether every slot of a service is in a phase.
    ///
    /// # Errors
    /// There is no such service.
    pub fn all_are(&self, id: ServiceId, phase: Phase) -> Result<bool> {
        let ring = &self.placed(id)?.ring;
        let there = match phase {
            Phase::Steady => ring.phases.steady,
            Phase::Moving => ring.phases.moving,
            Phase::Settling => ring.phases.settling,
        };
        Ok(there == ring.size())
    }

    /// Lets a service's slots, all of which move, settle as if the moving time had passed for them,
    /// though not for recorded flows.
    ///
    /// # Errors
    /// They do not, or the kernel refuses.
    pub fn settle(&mut self, id: ServiceId) -> Result<()> {
        for sweep in 1..=SWEEPS {
            let census = self.core.sweep()?.run()?;
            self.core.dataplane_mut().ahead = sweep * LATER;
            let swept = self.core.swept(census);
            self.core.dataplane_mut().ahead = 0;
            swept?;
            if self.all_are(id, Phase::Settling)? {
                return Ok(());
            }
        }
        anyhow::bail!("{id} does not settle: {:?}", self.placed(id)?.ring.phases)
    }

    /// Forgets every recorded flow, as if none had sent anything for long; slots stay as they are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_flows(&mut self) -> Result<()> {
        self.core.dataplane_mut().ahead = LATER;
        let swept = self.core.sweep().and_then(|sweep| sweep.run());
        self.core.dataplane_mut().ahead = 0;
        swept?;
        Ok(())
    }

    /// Lets everything come to rest as if time had passed: no flow is recorded, every slot is steady,
    /// and backends that were removed are gone.
    ///
    /// # Errors
    /// It does not, or the kernel refuses.
    pub fn rest(&mut self) -> Result<()> {
        for sweep in 1..=SWEEPS {
            self.core.dataplane_mut().ahead = sweep * LATER;
            let swept = self.sweep_all();
            self.core.dataplane_mut().ahead = 0;
            if swept? == 0 && self.rests() {
                return Ok(());
            }
        }
        anyhow::bail!("slots move or backends leave after {SWEEPS} sweeps")
    }

    /// Sweeps, and lets slots and backends go on; how many flows are still recorded.
    fn sweep_all(&mut self) -> Result<u32> {
        let census = self.core.sweep()?.run()?;
        let recorded = census.established + census.half_open + census.sessions;
        self.core.swept(census)?;
        Ok(recorded)
    }

    fn rests(&self) -> bool {
        let state = self.core.state();
        self.core.layout().services().all(|(id, _, placed)| {
            let pool = state
                .service(id)
                .map_or(0, |service| service.backends.len());
            placed.ring.phases.steady == placed.ring.size()
                && placed.descriptor.flags & service_flag::MOVING == 0
                && placed.members().count() == pool
        })
    }
}

/// Gives a program all answers that there are in a second, before it can have given them.
///
/// # Errors
/// It has no such map, or the kernel refuses.
pub fn renew_budgets(program: &mut Program) -> Result<()> {
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    let map = program.ebpf().map_mut("BUDGETS");
    let mut map = PerCpuArray::try_from(map.context("no map BUDGETS")?)?;
    for number in 0..budget::BUDGETS {
        let fresh = vec![[0u8; size_of::<budget::Budget>()]; cpus];
        map.set(number, PerCpuValues::try_from(fresh)?, 0)?;
    }
    Ok(())
}

/// The backend that the program steers a frame to.
///
/// # Errors
/// It forwards it to none, or the kernel refuses.
pub fn backend_of(program: &Xdp, frame: &[u8]) -> Result<IpAddr> {
    let mut out = vec![0; frame.len() + LONGEST_OVERHEAD];
    let run = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })
        .context("BPF_PROG_TEST_RUN")?;
    let action = run.return_value;
    ensure!(action == action::TX, "XDP action {action}");
    destination(&out).context("what came out is no IP packet")
}
