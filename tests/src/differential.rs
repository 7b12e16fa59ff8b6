//! Host against kernel: the same operations fill both sides' tables, the same frames run through
//! both executions of `lb_common::pipeline`. `frames` makes the frames, `routes` their ways back; the
//! judging is here.

pub mod changes;
mod fragments;
pub mod frames;
mod handshakes;
mod neighbours;
mod routers;
pub mod routes;
pub mod setting;
mod tunnels;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::{
    budget,
    memory::{Counted, HeldFrame, MemoryTables},
    packet::SlicePacket,
    rate::Rate,
    tables::{
        Counters, FlowCounters, FlowKey, Guard, HASH_KEY_WORDS, Handshake, Record, Session, Signs,
        Slot, Table, Tick,
    },
    verdict::{FIRST_ANSWER, FIRST_PIECE, Verdict},
};
use lb_userspace::{
    agent::Core,
    dataplane::{
        Capacity, Dataplane, DataplaneError, FlowTables, Operation, Wait,
        bpf::{EarlyFragments, LoadOptions, Maps, Program},
        memory::MemoryDataplane,
    },
    model::Unserved,
    neighbours::{NextHop, Update},
    plan::{Ring, census},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use self::{changes::Disturbance, setting::Setting};
use crate::{bench::balancer::renew_budgets, wait::wait_until};

/// More bytes than any mode puts in front of a frame.
const LONGEST_TUNNEL: usize = 96;
/// And the tags of two VLANs.
const TAGS: usize = 8;
/// Records that the flow tables have room for: few, so that they overflow.
const FLOWS: u32 = 512;
const HALF_OPEN: u32 = 256;
/// Sessions of mode `full-nat`, likewise.
const SESSIONS: u32 = 96;
/// Backends, and so places of counters.
const BACKENDS: u32 = 256;
/// Datagrams in fragments: more than there are, since the kernel evicts and the host does not.
const FRAGMENTS: u32 = 1 << 18;
/// What XDP leaves in front of a frame, in a test run as on a NIC.
const HEADROOM: usize = 256;
/// Of so many packets in tunnels, a router says something of one.
const COMPLAIN_EVERY: u64 = 16;
/// The interface that a test run's frames come in by: the loopback.
pub const INGRESS: u32 = 1;

/// The kernel's maps and their double in memory, written alike.
struct Twin {
    maps: Maps,
    memory: MemoryDataplane,
    /// How far the agent's clock is ahead of the program's.
    ahead: Tick,
}

impl Dataplane for Twin {
    fn features(&self) -> u32 {
        self.maps.features()
    }

    fn capacity(&self) -> Capacity {
        self.maps.capacity()
    }

    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError> {
        let operations: Vec<Operation> = operations.iter().map(slowed).collect();
        self.memory.execute(&operations)?;
        self.maps.execute(&operations)
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
        self.memory.set_way_in(counters, interface)?;
        self.maps.set_way_in(counters, interface)
    }

    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError> {
        self.memory.end_handshakes(ends)?;
        self.maps.end_handshakes(ends)
    }

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        self.maps.flow_tables()
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        self.maps.drops()
    }
}

/// Time for each flow of a limit, in fractions of a tick: nine minutes. The two sides' clocks may lie a tick apart, so
/// that buckets may empty, but not fill again while frames are compared.
const INTERVAL: u64 = 1 << 51;

/// The same operation, with limits of the same bursts that come back this slowly.
fn slowed(operation: &Operation) -> Operation {
    let slow = |rate: Rate| match rate.depth.checked_div(rate.interval) {
        Some(more) => Rate {
            interval: INTERVAL,
            depth: more * INTERVAL,
        },
        None => rate,
    };
    match operation {
        &Operation::Guard(pool, half, guard) => {
            let guard = Guard {
                flows: slow(guard.flows),
                sources: slow(guard.sources),
                unproxied: slow(guard.unproxied),
                ..guard
            };
            Operation::Guard(pool, half, guard)
        }
        other => other.clone(),
    }
}

/// How a frame comes to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As every frame does.
    Network,
    /// As a fragment that was held.
    Held,
}

impl Way {
    fn program(self) -> &'static str {
        match self {
            Self::Network => "lb",
            Self::Held => "held",
        }
    }
}

/// What one side made of a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The XDP action's number.
    pub action: u32,
    /// The frame, unless it was dropped.
    pub bytes: Vec<u8>,
}

impl Outcome {
    /// Whether it leaves by an interface.
    pub fn is_sent(&self) -> bool {
        matches!(self.action, 3 | 4)
    }
}

/// Both executions over the same services. To be made and used in one network namespace with the routes of
/// [`routes::lay`].
pub struct Bench {
    program: Program,
    early: EarlyFragments,
    core: Core<Twin>,
    /// Frames compared.
    compared: u32,
    /// Handshakes with cookies among them.
    shaken: u32,
    /// Packets that left in a tunnel.
    wrapped: u64,
    /// What routers have said of them that went on to somebody.
    pub told: u64,
}

impl Bench {
    /// Loads the program and fills both sides; the calling thread is kept on one CPU from then on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(setting: &Setting) -> Result<Self> {
        // Turns are taken per CPU, on the host as on one.
        let mut cpu = CpuSet::new();
        cpu.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpu)?;
        let capacity = Capacity {
            services: 64,
            backends: BACKENDS,
            members: 1_024,
            // The rings of all services, each twice while it moves as a whole, and once more in a plan.
            slots: 1 << 19,
            flows: FLOWS,
            half_open: HALF_OPEN,
            fragments: FRAGMENTS,
            access_prefixes: 4_096,
            // As with fragments.
            sources: FRAGMENTS,
            sessions: SESSIONS,
        };
        let options = LoadOptions {
            pins: None,
            capacity,
            features: setting.features,
            log_level: 0,
        };
        let (mut program, mut maps) = Program::load(&options)?;
        let mut key = [0; HASH_KEY_WORDS];
        for (word, seed) in key.iter_mut().zip(1u64..) {
            *word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        }
        maps.initialise(key)?;
        let mut memory = MemoryDataplane::default();
        memory.tables.control = maps.control()?;
        memory.tables.router = Some(routes::look_up);
        memory.tables.flows.get_mut().established.capacity = FLOWS as usize;
        memory.tables.flows.get_mut().half_open.capacity = HALF_OPEN as usize;
        memory.tables.sessions.get_mut().capacity = SESSIONS as usize;
        // There is room for more ports than that, as for their locks.
        let twin = Twin {
            maps,
            memory,
            ahead: 0,
        };
        let core = setting.fill(twin)?;
        let early = program.early_fragments()?;
        let mut bench = Self {
            program,
            early,
            core,
            compared: 0,
            shaken: 0,
            wrapped: 0,
            told: 0,
        };
        bench.listen()?;
        Ok(bench)
    }

    /// Runs a frame (at least 14 bytes, which the kernel insists on) through both; the XDP action's
    /// number.
    ///
    /// # Errors
    /// They differ, or the kernel refuses the run.
    pub fn compare(&mut self, frame: &[u8]) -> Result<u32> {
        self.compare_by(frame, Way::Network)
    }

    /// The same by another way.
    ///
    /// # Errors
    /// As [`Self::compare`].
    pub fn compare_by(&mut self, frame: &[u8], way: Way) -> Result<u32> {
        Ok(self.compare_whole(frame, way)?.action)
    }

    /// The same, with what comes out.
    fn compare_whole(&mut self, frame: &[u8], way: Way) -> Result<Outcome> {
        // The two read the clock one after the other: at the end of a budget's second, one would still have
        // none left where the other has a new one.
        if self.compared.is_multiple_of(budget::LIMIT) {
            self.renew_budgets()?;
        }
        self.compared += 1;
        let kernel = self.kernel(frame, way)?;
        let cookie = handshakes::cookie(&kernel.bytes).filter(|_| kernel.action == 3);
        if cookie.is_some() {
            self.core.dataplane().memory.tables.cookie.set(cookie);
        }
        let host = self.host(frame, way);
        ensure!(
            host == kernel,
            "differs: {}\n host   {host:?}\n kernel {kernel:?}",
            hex(frame)
        );
        if let Some((cookie, _)) = cookie {
            self.shake_hands(frame, cookie)?;
        }
        self.complain(&host)?;
        Ok(host)
    }

    /// Has a router say something of every few packets that left in a tunnel.
    fn complain(&mut self, sent: &Outcome) -> Result<()> {
        if !sent.is_sent() {
            return Ok(());
        }
        let Some(error) = routers::error(&sent.bytes, self.wrapped) else {
            return Ok(());
        };
        self.wrapped += 1;
        if self.wrapped.is_multiple_of(COMPLAIN_EVERY) {
            let told = self.compare_whole(&error, Way::Network)?;
            self.told += u64::from(told.is_sent());
        }
        Ok(())
    }

    /// Goes on with a SYN that a cookie has answered.
    fn shake_hands(&mut self, syn: &[u8], cookie: u32) -> Result<()> {
        let Some(acknowledgement) = handshakes::acknowledgement(syn, cookie) else {
            return Ok(());
        };
        let before = self.shaken;
        self.shaken += 1;
        // The SYN to the backend, unless there is none, no port or no room.
        let onward = self.compare_whole(&acknowledgement, Way::Network)?.bytes;
        if before.is_multiple_of(3) {
            return Ok(());
        }
        // Where the backend's numbers begin, and on which side of the cookie.
        let first = before.wrapping_mul(0x9e37_79b9);
        for opens in [true, false] {
            let Some(answer) = handshakes::answer(&onward, first, opens) else {
                return Ok(());
            };
            self.compare(&answer)?;
            self.compare(&acknowledgement)?;
        }
        Ok(())
    }

    /// The same, and then what was held of it, which comes back at once.
    ///
    /// # Errors
    /// As [`Self::compare`].
    pub fn compare_at_once(&mut self, frame: &[u8]) -> Result<()> {
        self.compare(frame)?;
        for held in self.take_held()? {
            self.compare_by(&held.frame, Way::Held)?;
        }
        Ok(())
    }

    /// Takes the fragments that both sides hold, which must be the same.
    ///
    /// # Errors
    /// They differ.
    pub fn take_held(&mut self) -> Result<Vec<HeldFrame>> {
        let host = self.core.dataplane().memory.tables.held.take();
        let kernel: Vec<_> = std::iter::from_fn(|| self.early.take_frame()).collect();
        ensure!(
            host == kernel,
            "held frames differ:\n host   {host:?}\n kernel {kernel:?}"
        );
        Ok(host)
    }

    /// Has something happen, on both sides.
    ///
    /// # Errors
    /// They differ, or the kernel refuses; not where a change is refused.
    pub fn disturb(&mut self, disturbance: Disturbance) -> Result<()> {
        self.check_rings()?;
        match disturbance.bring_about(&mut self.core)? {
            None => self.listen(),
            Some(later) => self.sweep(later),
        }
    }

    /// Has what all backends answer count, by whichever way it would come.
    fn listen(&mut self) -> Result<()> {
        let twin = self.core.dataplane_mut();
        (0..BACKENDS).try_for_each(|counters| twin.set_way_in(counters, INGRESS))?;
        Ok(())
    }

    /// Says what packets to unknown ports get, on both sides.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn refuse_unknown_ports(&mut self, unserved: Unserved) -> Result<()> {
        self.core.refuse_unknown_ports(unserved);
        Ok(self.core.enforce()?)
    }

    /// Sweeps both sides' flow tables, which must find the same, and lets slots go on as if `later`
    /// had passed for them, though not for the flows.
    ///
    /// # Errors
    /// They differ, or the kernel refuses.
    pub fn sweep(&mut self, later: Tick) -> Result<()> {
        // What was used in the very tick of a sweep stays, and the two sides' stamps may lie a tick apart.
        let last = self.core.dataplane().maps.now();
        wait_until("the clock goes on", Duration::from_secs(5), || {
            self.core.dataplane().maps.now().wrapping_sub(last) >= 2
        })?;
        let kernel = self.core.sweep()?.run()?;
        let twin = self.core.dataplane();
        let mut memory = &twin.memory.tables;
        // Of the same moment, whatever the kernel's has taken.
        let host = census::sweep(self.core.layout(), &mut memory, kernel.began)?;
        ensure!(
            host == kernel,
            "sweeps differ:\n host   {host:?}\n kernel {kernel:?}"
        );
        self.compare_flows()?;
        self.core.dataplane_mut().ahead = later;
        let swept = self.core.swept(kernel);
        self.core.dataplane_mut().ahead = 0;
        Ok(swept?)
    }

    /// Whether every slot names somebody; in the ring before a whole move, the dead are left out.
    ///
    /// # Errors
    /// One does not.
    pub fn check_rings(&self) -> Result<()> {
        for (id, _, placed) in self.core.layout().services() {
            let rings = [Some(&placed.ring), placed.previous.as_ref()];
            for slot in rings.into_iter().flatten().flat_map(|ring| &ring.slots) {
                for named in [slot.owner(), slot.keeper()] {
                    let known = named == Slot::NOBODY || placed.member_by_id(named).is_some();
                    ensure!(known, "{id}: {slot:?} names nobody: {placed:?}");
                }
            }
        }
        Ok(())
    }

    /// Compares what both sides have recorded, but for the times.
    ///
    /// # Errors
    /// They differ.
    pub fn compare_flows(&self) -> Result<usize> {
        let twin = self.core.dataplane();
        let mut flows = twin.memory.tables.flows.borrow_mut();
        let mut kernel = twin.maps.flow_tables()?;
        let mut total = 0;
        for table in [Table::HalfOpen, Table::Established] {
            let timeless = |record: &Record| (record.member, record.flags, record.generation);
            let records = &flows.table(table).records;
            let host: BTreeMap<FlowKey, _> = records
                .iter()
                .map(|(key, record)| (*key, timeless(record)))
                .collect();
            let mut found = BTreeMap::new();
            kernel.scan(table, &mut |key, record| {
                found.insert(*key, timeless(record));
            })?;
            ensure!(
                host == found,
                "{table:?} differs: host {} records, kernel {}: {:?}",
                host.len(),
                found.len(),
                host.iter()
                    .find(|&(key, record)| found.get(key) != Some(record))
            );
            total += host.len();
        }
        Ok(total + self.compare_sessions(kernel.as_mut())?)
    }

    /// The same of sessions, and of the ports that they have.
    fn compare_sessions(&self, kernel: &mut dyn FlowTables) -> Result<usize> {
        let host = self.core.dataplane().memory.tables.sessions.borrow();
        let timeless = |session: &Session| Session {
            record: Record {
                stamp: 0,
                since: 0,
                ..session.record
            },
            ..*session
        };
        let sessions = host.by_flow.iter();
        let sessions: BTreeMap<FlowKey, Session> = sessions
            .map(|(key, session)| (*key, timeless(session)))
            .collect();
        let (mut found, mut ports) = (BTreeMap::new(), BTreeMap::new());
        kernel.scan_sessions(&mut |key, session| {
            found.insert(*key, timeless(session));
        })?;
        kernel.scan_ports(&mut |key, flow| {
            ports.insert(*key, *flow);
        })?;
        ensure!(
            sessions == found,
            "sessions differ:\n host   {sessions:?}\n kernel {found:?}"
        );
        let host = &host.ports;
        ensure!(
            *host == ports,
            "ports differ:\n host   {host:?}\n kernel {ports:?}"
        );
        Ok(found.len())
    }

    /// Compares what backends have shown, but for the times, and returns it summed up.
    ///
    /// # Errors
    /// They differ.
    pub fn compare_signs(&self) -> Result<Signs> {
        let twin = self.core.dataplane();
        let mut sum = Signs::default();
        for counters in 0..BACKENDS {
            let timeless = |signs: Signs| Signs {
                nanoseconds: 0,
                ..signs
            };
            let host = timeless(twin.memory.signs(counters)?);
            let kernel = timeless(twin.maps.signs(counters)?);
            ensure!(
                host == kernel,
                "signs of {counters} differ:\n host   {host:?}\n kernel {kernel:?}"
            );
            sum.accepted += host.accepted;
            sum.refused += host.refused;
            sum.unreachable += host.unreachable;
            sum.progressed += host.progressed;
            sum.resent += host.resent;
        }
        Ok(sum)
    }

    /// Gives both sides all that a second has, before either can have used it up.
    fn renew_budgets(&mut self) -> Result<()> {
        let host = &self.core.dataplane().memory.tables.budgets;
        host.set(Default::default());
        renew_budgets(&mut self.program)
    }

    fn host(&mut self, frame: &[u8], way: Way) -> Outcome {
        let twin = self.core.dataplane_mut();
        twin.memory.tables.time.set(twin.maps.now());
        execute(&twin.memory.tables, frame, way)
    }

    fn kernel(&mut self, frame: &[u8], way: Way) -> Result<Outcome> {
        let mut out = vec![0; frame.len() + LONGEST_TUNNEL + TAGS];
        let program = self.program.ebpf().program_mut(way.program());
        let program: &mut Xdp = program.context("no such program")?.try_into()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .context("BPF_PROG_TEST_RUN")?;
        let length = (result.data_size_out as usize).min(out.len());
        Ok(outcome(result.return_value, &out[..length]))
    }

    /// Compares everything that both sides have counted since the start, and returns it.
    ///
    /// # Errors
    /// They differ.
    pub fn compare_counters(&self) -> Result<Counted> {
        let twin = self.core.dataplane();
        let host = twin.memory.tables.take_counted();
        let mut kernel = Counted::default();
        for index in 0..64 {
            insert(&mut kernel.services, index, twin.service_counters(index)?);
            insert(&mut kernel.flows, index, twin.flow_counters(index)?);
        }
        for index in 0..BACKENDS {
            insert(&mut kernel.backends, index, twin.backend_counters(index)?);
        }
        for (number, count) in (0..).zip(twin.drops()?) {
            let (counts, number) = match number {
                FIRST_ANSWER.. => (&mut kernel.answers, number - FIRST_ANSWER),
                FIRST_PIECE.. => (&mut kernel.pieces, number - FIRST_PIECE),
                _ => (&mut kernel.drops, number),
            };
            if count > 0 {
                counts.insert(number, count);
            }
        }
        ensure!(
            host == kernel,
            "counters differ:\n host   {host:?}\n kernel {kernel:?}"
        );
        Ok(host)
    }
}

fn insert<T: Default + PartialEq>(map: &mut BTreeMap<u32, T>, index: u32, counters: T) {
    if counters != T::default() {
        map.insert(index, counters);
    }
}

/// What the host makes of a frame.
pub fn execute(tables: &MemoryTables, frame: &[u8], way: Way) -> Outcome {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend_from_slice(frame);
    let mut packet = SlicePacket::new(&mut buffer, HEADROOM, INGRESS);
    let verdict = match way {
        Way::Network => tables.process(&mut packet),
        Way::Held => tables.process_held(&mut packet),
    };
    let action = match verdict {
        Verdict::Drop(_) | Verdict::Held => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
    };
    outcome(action, packet.bytes())
}

fn outcome(action: u32, bytes: &[u8]) -> Outcome {
    // What is left of a dropped frame is nobody's business.
    let bytes = if action == 1 { &[] } else { bytes };
    Outcome {
        action,
        bytes: bytes.to_vec(),
    }
}

fn next_hop(address: IpAddr) -> Update {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    // Every third leaves by another interface than it came in by.
    let interface = match last % 3 {
        0 => 7,
        // Of the others, some by a VLAN device, two VLAN devices over each other, or a bond.
        _ => match last % 7 {
            1 => setting::VLAN,
            2 => setting::BOTH_VLANS,
            3 => setting::BOND,
            _ => INGRESS,
        },
    };
    let source: SocketAddr = frames::own_for(address);
    Update::NextHop {
        address,
        next_hop: Some(NextHop {
            interface,
            source_mac: [2, 0, 0, 0, 1, last],
            destination_mac: [2, 0, 0, 0, 2, last],
            source_address: source.ip(),
            // Every fifth takes little, another fifth much.
            mtu: match last % 5 {
                2 => 90,
                3 => 9_000,
                _ => 1_500,
            },
            on_link: true,
        }),
        reason: None,
    }
}

/// A frame as it is kept for regression: hexadecimal.
pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The frame in a line of [`hex`].
///
/// # Errors
/// It is not hexadecimal.
pub fn unhex(line: &str) -> Result<Vec<u8>> {
    let digits = line.trim().as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair)?;
            u8::from_str_radix(pair, 16).with_context(|| format!("`{pair}` in {line}"))
        })
        .collect()
}
