//! Brings the product into the state that a scenario wants, and out of it again. Times nothing.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    budget,
    tables::feature,
    verdict::{Answer, DropReason, FIRST_ANSWER, FIRST_PIECE, Piece},
};
use lb_userspace::{
    dataplane::{
        Capacity, Dataplane as _,
        bpf::{LoadOptions, Pins, Program},
    },
    model::ServiceId,
};

use super::{
    backend::Backend,
    balancer::{Balancer, renew_budgets},
    frame::{Frame, Payload, destination, flags},
    harness::{Harness, Run, Target, action},
    scenario::{End, Fleet, Records, Scenario, Slots},
    services::{Guarded, Kind, Pool, numbered},
};
use crate::bpffs::Bpffs;

/// What the balancer's own program is loaded for, where it is measured.
const OWN_FEATURES: u32 = feature::ALL;
/// Records of half-open flows that there is room for: more than a round's new ones.
pub const HALF_OPEN: u32 = 65_536;
/// Records of established flows: twice what any scenario records, as a table that is nearly full
/// is another matter.
const FLOWS: u32 = 1 << 21;
/// Flows that are opened, then established, in one go: less than [`HALF_OPEN`].
const BATCH: u32 = 32_768;
/// New flows that fill the table of half-open ones.
const FILLING: u32 = 2 * HALF_OPEN;
/// Flows whose backends are noted before and compared after.
const WITNESSES: u32 = 16;
/// Flows from before a move: their runs' numbers begin here, beyond all others.
const VETERANS: u64 = 1 << 30;

/// Flows that fill a table: theirs begin here, beyond all others too.
const FILLERS: u64 = 1 << 31;

/// What a fragment without a first one is dropped for, or would be if it were not held.
const NO_FIRST: &str = DropReason::FragmentBeforeFirst.name();

/// Everything that is counted, over all services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets forwarded.
    pub packets: u64,
    /// Packets dropped, or held, by reason; fragments without a first one.
    pub drops: BTreeMap<&'static str, u64>,
    /// Answers given, by kind.
    pub answers: BTreeMap<&'static str, u64>,
    /// Packets that looked their flow up.
    pub lookups: u64,
    /// Flows recorded.
    pub recorded: u64,
    /// Choices that could not be recorded.
    pub overflows: u64,
    /// Packets steered by a connection id.
    pub named: u64,
    /// Connections that backends have been seen to accept.
    pub accepted: u64,
    /// Packets that a backend has taken out of tunnels.
    pub unwrapped: u64,
    /// Packets that it has handed on.
    pub handed_on: u64,
}

impl Counts {
    /// What a number of a scenario's packets count.
    pub fn of(scenario: &Scenario, packets: u64) -> Self {
        let if_ = |condition: bool| if condition { packets } else { 0 };
        let (records, end) = (scenario.records, scenario.end);
        let once = |name: Option<&'static str>| name.map(|name| (name, packets)).into_iter();
        let (reason, answer) = match end {
            End::Dropped(reason) => (Some(reason), None),
            End::Answered(answer, reason) => (reason, Some(answer)),
            _ => (None, None),
        };
        Self {
            packets: if_(scenario.target == Target::Product && end == End::Backend),
            drops: once(reason.map(DropReason::name)).collect(),
            answers: once(answer.map(Answer::name)).collect(),
            lookups: if_(records != Records::Unasked && !scenario.has_sessions()),
            recorded: if_(records == Records::New),
            overflows: if_(records == Records::Full),
            named: if_(scenario.leads_to.is_some()),
            accepted: if_(scenario.is_heard()),
            unwrapped: if_(matches!(end, End::Unwrapped(_))),
            handed_on: if_(end == End::HandedOn),
        }
    }

    /// As if so many answers had been given before.
    pub fn skip(&mut self, answered: &Self) {
        for (&name, &count) in &answered.answers {
            *self.answers.entry(name).or_default() += count;
        }
    }

    /// What was counted since.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            drops: more(&self.drops, &before.drops),
            answers: more(&self.answers, &before.answers),
            lookups: self.lookups - before.lookups,
            recorded: self.recorded - before.recorded,
            overflows: self.overflows - before.overflows,
            named: self.named - before.named,
            accepted: self.accepted - before.accepted,
            unwrapped: self.unwrapped - before.unwrapped,
            handed_on: self.handed_on - before.handed_on,
        }
    }
}

/// What of each kind has come since, but for those of which nothing has.
fn more(
    now: &BTreeMap<&'static str, u64>,
    before: &BTreeMap<&'static str, u64>,
) -> BTreeMap<&'static str, u64> {
    let since = |(&name, &count): (&&'static str, &u64)| {
        let more = count - before.get(name).copied().unwrap_or_default();
        (more > 0).then_some((name, more))
    };
    now.iter().filter_map(since).collect()
}

/// Backends that flows had when they were noted, by a frame and its run's number.
#[derive(Debug, Default)]
pub struct Witnesses(Vec<(Frame, u64, IpAddr)>);

/// What a scenario was prepared to.
#[derive(Debug)]
pub struct Prepared {
    /// Its frame, of which a part may be known only then.
    pub frame: Frame,
    /// Flows that are to stay where they are.
    pub witnesses: Witnesses,
}

/// The harness around the product, with a fleet of services.
pub struct Rig {
    /// The harness.
    pub harness: Harness,
    balancer: Balancer,
    /// A backend, where that is what is measured.
    backend: Option<Backend>,
    /// What runs, and what it is loaded for; the balancer's own where absent.
    program: Option<(u32, Program)>,
    _bpffs: Bpffs,
    fleet: Fleet,
    /// The scenario whose flows age the flow tables, until they have.
    ageing: Option<Scenario>,
}

impl Rig {
    /// Loads both, and makes the services that the scenarios of a fleet are about.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(fleet: Fleet, scenarios: &[Scenario]) -> Result<Self> {
        let mut kinds: BTreeMap<ServiceId, Kind> = BTreeMap::new();
        for scenario in scenarios.iter().filter(|scenario| scenario.fleet == fleet) {
            let Some((id, kind)) = scenario.service else {
                continue;
            };
            match fleet {
                Fleet::Varied | Fleet::Special => drop(kinds.insert(id, kind)),
                Fleet::Alike(services) => kinds.extend((0..services).map(|n| (numbered(n), kind))),
                Fleet::Backend => {}
            }
        }
        let services: Result<Vec<_>> = kinds.iter().map(|(&id, kind)| kind.service(id)).collect();
        // So that programs that are loaded for other features share its maps.
        let bpffs = Bpffs::unique()?;
        let mut balancer = Balancer::load(&LoadOptions {
            pins: Some(Pins::new(bpffs.path(), "bench")),
            capacity: capacity(fleet),
            features: match fleet {
                Fleet::Backend => 0,
                _ => OWN_FEATURES,
            },
            log_level: 0,
        })?;
        let is_special = fleet == Fleet::Special;
        if is_special {
            balancer.take_everything()?;
        }
        for kind in kinds.values() {
            if let Guarded::Listed(prefixes) = kind.guarded {
                balancer.list(prefixes)?;
            }
        }
        balancer.serve(services?)?;
        if is_special {
            balancer.listen()?;
        }
        let mut backend = None;
        let product = if fleet == Fleet::Backend {
            backend.insert(Backend::new()?).program()?
        } else {
            balancer.program.xdp()?.fd()?.try_clone()?
        };
        let records = |scenario: &&Scenario| {
            let Scenario { slots, records, .. } = scenario;
            scenario.fleet == fleet
                && !scenario.has_sessions()
                && (*slots, *records) == (Slots::Steady, Records::Established)
        };
        let most = scenarios
            .iter()
            .filter(records)
            .max_by_key(|scenario| scenario.frame.flows);
        Ok(Self {
            harness: Harness::new(product)?,
            balancer,
            backend,
            program: None,
            _bpffs: bpffs,
            fleet,
            ageing: most.cloned(),
        })
    }

    /// Which services it has.
    pub fn fleet(&self) -> Fleet {
        self.fleet
    }

    /// Everything counted so far.
    ///
    /// # Errors
    /// The maps cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        let maps = self.balancer.core.dataplane();
        let mut counts = Counts::default();
        if self.fleet == Fleet::Special {
            counts.accepted = self.balancer.accepted()?;
        }
        if let Some(backend) = &self.backend {
            (counts.unwrapped, counts.handed_on) = backend.counted()?;
        }
        let counted = maps.drops()?;
        let count = |index: u32| counted.get(index as usize).copied().unwrap_or_default();
        for reason in DropReason::ALL {
            counts.drops.insert(reason.name(), count(*reason as u32));
        }
        *counts.drops.entry(NO_FIRST).or_default() += count(FIRST_PIECE + Piece::Held as u32);
        for answer in Answer::ALL {
            counts
                .answers
                .insert(answer.name(), count(FIRST_ANSWER + *answer as u32));
        }
        for (_, index, _) in self.balancer.core.layout().services() {
            counts.packets += maps.service_counters(index)?.packets;
            let flows = maps.flow_counters(index)?;
            counts.lookups += flows.lookups;
            counts.recorded += flows.recorded;
            counts.overflows += flows.overflows;
            counts.named += flows.named;
        }
        Ok(counts)
    }

    /// Whether an address is of a backend that may get a scenario's packets: the one that their connection
    /// ids name, or one of the service's pool, or of that which it moves to.
    pub fn is_backend(&self, scenario: &Scenario, address: IpAddr) -> bool {
        let pool = scenario.service.map(|(_, kind)| kind.pool);
        if let Some(server) = scenario.leads_to {
            return pool.and_then(|pool| pool.address(server)) == Some(address);
        }
        pool.is_some_and(|pool| pool.has(address) || pool.other().has(address))
    }

    /// Brings slots and flow tables into a scenario's state, and its frame into the harness. Everything
    /// is at rest before.
    ///
    /// # Errors
    /// They do not come there, or the kernel refuses.
    pub fn prepare(&mut self, scenario: &Scenario) -> Result<Prepared> {
        if scenario.records != Records::Unasked {
            self.age()?;
        }
        let mut frame = scenario.frame.clone();
        match &self.backend {
            Some(backend) => frame = backend.frame(scenario)?,
            None => self.load(scenario.features()?)?,
        }
        let mut witnesses = Witnesses::default();
        if let Some((id, kind)) = scenario.service.filter(|_| scenario.slots != Slots::Steady) {
            witnesses = self.move_slots(id, kind.pool)?;
        }
        match scenario.records {
            Records::Established => {
                let opening = scenario.opening.as_ref().unwrap_or(&scenario.frame);
                let flows = opening.flows;
                let lookups = if scenario.has_sessions() { 0 } else { 2 };
                self.establish(opening, flows, lookups)?;
                self.note(&mut witnesses, opening, flows.min(WITNESSES))?;
                if scenario.end == End::Client {
                    frame = self.answer(opening)?;
                }
            }
            Records::Full => self.fill(&scenario.frame)?,
            Records::Unasked | Records::Missing | Records::New => {}
        }
        if let Some((id, _)) = scenario
            .service
            .filter(|_| scenario.slots == Slots::Settling)
        {
            self.balancer.settle(id)?;
        }
        self.harness.set_frame(&frame)?;
        self.harness.set_next_run(0)?;
        Ok(Prepared { frame, witnesses })
    }

    /// What a backend answers to the first of a scenario's flows.
    fn answer(&mut self, opening: &Frame) -> Result<Frame> {
        self.harness.set_frame(opening)?;
        self.harness.set_next_run(0)?;
        let run = self.harness.run(Target::Product, 1)?;
        ensure!(run.action == action::TX, "XDP action {}", run.action);
        Ok(Frame::answer_to(&run.frame))
    }

    /// Gives the program as many answers as there are in a second; or takes them all, where a scenario is about what is not
    /// answered.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ration(&mut self, scenario: &Scenario) -> Result<()> {
        let runs = match &mut self.program {
            Some((_, program)) => program,
            None => &mut self.balancer.program,
        };
        renew_budgets(runs)?;
        if scenario.is_limited() {
            self.harness.run(Target::Product, budget::LIMIT)?;
        }
        Ok(())
    }

    /// Has a program run that is loaded for these features and no others, as an agent with such services loads it.
    fn load(&mut self, features: u32) -> Result<()> {
        let loaded = match &self.program {
            Some((loaded, _)) => *loaded,
            None => OWN_FEATURES,
        };
        if loaded == features {
            return Ok(());
        }
        let mut program = self.balancer.program.beside(features)?;
        self.harness.set_product(program.xdp()?.fd()?.try_clone()?);
        self.program = Some((features, program));
        Ok(())
    }

    /// Fills flow tables and empties them again, once: a new table gives flows that come one after the other
    /// places beside each other, which no table in use does.
    fn age(&mut self) -> Result<()> {
        let Some(scenario) = self.ageing.take() else {
            return Ok(());
        };
        self.load(scenario.features()?)?;
        let frame = scenario.frame;
        self.establish(&frame, frame.flows, 2)?;
        let endless = Frame { flows: 0, ..frame };
        self.fill(&endless)?;
        self.balancer.rest()
    }

    /// Moves every slot of a service to another pool; flows from before must stay where they are.
    fn move_slots(&mut self, id: ServiceId, pool: Pool) -> Result<Witnesses> {
        let payload = Payload::Tcp(flags::ACK);
        let frame = Frame::new(id.vip, payload, 0, 1);
        let mut witnesses = Witnesses::default();
        self.harness.set_next_run(VETERANS)?;
        self.note(&mut witnesses, &frame, WITNESSES)?;
        self.balancer.repool(id, pool.other())?;
        self.confirm(&witnesses)?;
        Ok(witnesses)
    }

    /// Notes the backends of so many flows, from the next run's on.
    fn note(&mut self, witnesses: &mut Witnesses, frame: &Frame, flows: u32) -> Result<()> {
        self.harness.set_frame(frame)?;
        for _ in 0..flows {
            let run = self.harness.next_run();
            let out = self.harness.run(Target::Product, 1)?;
            witnesses.0.push((frame.clone(), run, backend(&out)?));
        }
        Ok(())
    }

    /// Compares the backends of noted flows with what they get now.
    ///
    /// # Errors
    /// One has moved.
    pub fn confirm(&mut self, witnesses: &Witnesses) -> Result<()> {
        for (frame, run, noted) in &witnesses.0 {
            self.harness.set_frame(frame)?;
            self.harness.set_next_run(*run)?;
            let now = backend(&self.harness.run(Target::Product, 1)?)?;
            ensure!(now == *noted, "run {run}: moved from {noted} to {now}");
        }
        Ok(())
    }

    /// Opens so many flows by a SYN and establishes them by an ACK, which records each once and looks so often.
    fn establish(&mut self, frame: &Frame, flows: u32, lookups: u64) -> Result<()> {
        let before = self.counts()?;
        for start in (0..flows).step_by(BATCH as usize) {
            let batch = BATCH.min(flows - start);
            for flags in [flags::SYN, flags::ACK] {
                self.harness.set_frame(&frame.with_tcp_flags(flags))?;
                self.harness.set_next_run(start.into())?;
                self.harness.run(Target::Product, batch)?;
            }
        }
        let flows = u64::from(flows);
        let counted = self.counts()?.since(&before);
        let wanted = Counts {
            packets: 2 * flows,
            lookups: lookups * flows,
            recorded: flows,
            ..Counts::default()
        };
        ensure!(counted == wanted, "establishing {flows} flows: {counted:?}");
        Ok(())
    }

    /// Fills the table of half-open flows with flows that are never seen again.
    fn fill(&mut self, frame: &Frame) -> Result<()> {
        let before = self.counts()?;
        self.harness.set_frame(frame)?;
        self.harness.set_next_run(FILLERS)?;
        self.harness.run(Target::Product, FILLING)?;
        let counted = self.counts()?.since(&before);
        ensure!(
            counted.recorded <= u64::from(HALF_OPEN) && counted.overflows > 0,
            "the table of {HALF_OPEN} half-open flows does not fill: {counted:?}"
        );
        Ok(())
    }

    /// Forgets every recorded flow; slots stay as they are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_flows(&mut self) -> Result<()> {
        self.balancer.forget_flows()
    }

    /// Sweeps the flow tables, which hold so many flows of the scenario that was prepared.
    ///
    /// # Errors
    /// They hold fewer, or the kernel refuses.
    pub fn sweep(&mut self, flows: u32) -> Result<()> {
        let census = self.balancer.core.sweep()?.run()?;
        ensure!(census.established >= flows, "{} flows", census.established);
        Ok(())
    }

    /// Backends and slots of all services.
    pub fn size(&self) -> (u32, u32) {
        let services = self.balancer.core.state().services();
        let backends: usize = services.map(|service| service.backends.len()).sum();
        (backends as u32, self.balancer.slots())
    }

    /// Ends what [`Rig::prepare`] began: the service has its own pool again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restore(&mut self, scenario: &Scenario) -> Result<()> {
        if scenario.slots == Slots::Steady && scenario.records == Records::Unasked {
            return Ok(());
        }
        self.balancer.rest()?;
        if let Some((id, kind)) = scenario.service.filter(|_| scenario.slots != Slots::Steady) {
            self.balancer.repool(id, kind.pool)?;
            self.balancer.rest()?;
        }
        Ok(())
    }
}

fn backend(run: &Run) -> Result<IpAddr> {
    ensure!(run.action == action::TX, "XDP action {}", run.action);
    destination(&run.frame).context("what came out is no IP packet")
}

/// Maps that hold a fleet, and its rings twice while they change.
fn capacity(fleet: Fleet) -> Capacity {
    let base = Capacity {
        services: 64,
        backends: 1_024,
        members: 4_096,
        slots: 1 << 21,
        flows: FLOWS,
        half_open: HALF_OPEN,
        fragments: 16_384,
        sessions: FLOWS,
        ..Capacity::default()
    };
    match fleet {
        Fleet::Varied => base,
        Fleet::Special => Capacity {
            slots: 1 << 22,
            ..base
        },
        Fleet::Backend => Capacity {
            slots: 1_024,
            flows: 1_024,
            sessions: 1_024,
            ..base
        },
        Fleet::Alike(_) => Capacity {
            services: 16_384,
            backends: 1 << 17,
            members: 1 << 18,
            slots: 1 << 22,
            flows: 1_024,
            sessions: 1_024,
            ..base
        },
    }
}
