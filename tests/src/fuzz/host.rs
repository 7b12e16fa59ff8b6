//! The packet path on the host, and what has to hold of whatever it makes of a frame: no panic, and of a
//! well-formed packet a well-formed one.

use std::{cell::Cell, collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    decapsulate::Fate,
    flow::Flow,
    hand_on::Socket,
    memory::{MemoryHost, MemoryTables},
    packet::SlicePacket,
    tables::{Address, Endpoint, NoRoute, Route, RouteQuery, SECOND, Signs, Tagged, Tick},
    verdict::DropReason,
};
use lb_userspace::{dataplane::memory::MemoryDataplane, plan::census};

use super::Input;
use crate::{
    differential::{
        INGRESS, Way,
        changes::disturbance,
        execute,
        frames::Random,
        hex, routes,
        setting::{GUE_PORT, Setting},
    },
    dissect::dissect,
};

/// Balancers in different states; the first at rest, in each other slots move, settle and lead to backends that
/// drain or are dead.
const WORLDS: usize = 4;
/// What has happened in each but the first.
const DISTURBANCES: usize = 60;
/// Few, so that tables overflow.
const RECORDS: usize = 4;
/// Buckets of the look-up table, as a power of two.
const LOOKUP_BITS: u32 = 6;
/// What passes between two frames of an input, to beyond each of the times that something is remembered for.
const PACES: [Tick; 8] = [
    0,
    0,
    1,
    SECOND,
    3 * SECOND,
    11 * SECOND,
    125 * SECOND,
    1_000 * SECOND,
];

/// Balancers in memory, the same for every input, and what unwraps what they send.
#[derive(Debug)]
pub struct Host {
    worlds: Vec<World>,
    backends: [MemoryHost; 2],
    /// Frames so far.
    pub frames: u64,
}

/// A balancer as every input finds it.
#[derive(Debug)]
struct World {
    tables: MemoryTables,
    /// What time it is then.
    now: Tick,
}

impl Host {
    /// Sets them up.
    ///
    /// # Errors
    /// The setting is not valid.
    pub fn new() -> Result<Self> {
        let setting = Setting::new()?;
        let worlds: Result<_> = (0..WORLDS as u64)
            .map(|number| World::new(&setting, number))
            .collect();
        let backend = |terminates| MemoryHost {
            terminates,
            gue_port: GUE_PORT.to_be(),
            socket,
            answers_cookie: |flow: &Flow| flow.from().port & 8 != 0,
            router: way_between,
            counted: Cell::default(),
            hops: Cell::default(),
        };
        Ok(Self {
            worlds: worlds?,
            backends: [backend(is_even), backend(is_odd)],
            frames: 0,
        })
    }

    /// Has an input's frames come, and then what was held of them given back.
    ///
    /// # Errors
    /// Something does not hold of one.
    pub fn run(&mut self, input: &Input) -> Result<()> {
        let (state, pace) = (usize::from(input.world) % WORLDS, input.world / 4);
        let World { tables, now } = &mut self.worlds[state];
        forget(tables);
        tables.time.set(*now);
        for frame in &input.frames {
            self.frames += 1;
            judged(tables, &self.backends, frame, Way::Network)?;
            for held in tables.held.take() {
                judged(tables, &self.backends, &held.frame, Way::Held)?;
            }
            let pace = PACES[usize::from(pace) % PACES.len()];
            tables.time.set(tables.time.get().wrapping_add(pace));
        }
        let inconsistent = tables.dropped(DropReason::Inconsistent);
        ensure!(inconsistent == 0, "the tables contradict themselves");
        Ok(())
    }
}

impl World {
    /// The balancer in one of the states.
    fn new(setting: &Setting, number: u64) -> Result<Self> {
        let mut memory = MemoryDataplane::default();
        memory.tables.control.lookup_bits = LOOKUP_BITS;
        memory.tables.router = Some(routes::look_up);
        for (word, seed) in memory.tables.control.hash_key.iter_mut().zip(1u64..) {
            *word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        }
        let mut core = setting.fill(memory)?;
        let mut random = Random(number);
        for _ in 0..DISTURBANCES * usize::from(number > 0) {
            if let Some(later) = disturbance(&mut random)?.bring_about(&mut core)? {
                let tables = &core.dataplane().tables;
                tables.time.set(tables.time.get().wrapping_add(later));
                let census = census::sweep(core.layout(), &mut { tables }, tables.time.get())?;
                core.swept(census)?;
            }
        }
        let mut tables = std::mem::take(&mut core.dataplane_mut().tables);
        let flows = tables.flows.get_mut();
        flows.established.capacity = RECORDS;
        flows.half_open.capacity = RECORDS;
        tables.sessions.get_mut().capacity = RECORDS;
        // What all backends answer counts, by whichever way it would come.
        let counters = tables.backends.iter().map(|backend| backend.counters);
        let listened = counters.map(|counters| (counters, LISTENED));
        tables.signs = listened.collect::<BTreeMap<_, _>>().into();
        let now = tables.time.get();
        Ok(Self { tables, now })
    }
}

/// Whose answers count.
const LISTENED: Signs = Signs {
    accepted: 0,
    refused: 0,
    unreachable: 0,
    streak: 0,
    progressed: 0,
    resent: 0,
    nanoseconds: 0,
    interface: INGRESS as u64,
};

/// What a frame before has left: an input is to do the same whenever it comes.
fn forget(tables: &mut MemoryTables) {
    let flows = tables.flows.get_mut();
    flows.established.records.clear();
    flows.half_open.records.clear();
    flows.loads.clear();
    flows.turns.clear();
    let sessions = tables.sessions.get_mut();
    sessions.by_flow.clear();
    sessions.ports.clear();
    for signs in tables.signs.get_mut().values_mut() {
        *signs = LISTENED;
    }
    tables.handshakes.get_mut().clear();
    tables.source_buckets.get_mut().clear();
    tables.service_buckets.get_mut().clear();
    tables.datagrams.get_mut().clear();
    tables.held.get_mut().clear();
    tables.tagged.set(Tagged::NONE);
    tables.budgets.set(Default::default());
    tables.handover.set(Default::default());
}

/// Runs a frame, and says what is wrong with what it became: at the balancer, and at the backend that gets it.
fn judged(tables: &MemoryTables, backends: &[MemoryHost; 2], frame: &[u8], way: Way) -> Result<()> {
    let outcome = execute(tables, frame, way);
    if way == Way::Network {
        unwrapped(backends, frame)?;
    }
    if !outcome.is_sent() {
        return Ok(());
    }
    let became = || format!("{} became {}", hex(frame), hex(&outcome.bytes));
    let whole = matches!(dissect(frame), Ok(Some(_)));
    let sent = dissect(&outcome.bytes);
    let unwrapped = unwrapped(backends, &outcome.bytes)?;
    if !whole {
        return Ok(());
    }
    // What was well-formed stays so.
    let sent = sent.with_context(became)?;
    let in_tunnel = sent.is_some_and(|sent| sent.outer.is_some());
    if let Some((Fate::Pass, bytes)) = unwrapped
        && in_tunnel
    {
        let what = || format!("{}, which became {}", became(), hex(&bytes));
        let inner = dissect(&bytes).with_context(what)?;
        ensure!(inner.is_some_and(|inner| inner.outer.is_none()), what());
    }
    Ok(())
}

/// What the backend that a frame is for makes of it, and what becomes of the frame; nothing where it is for none.
///
/// # Errors
/// What was handed on is handed on again.
fn unwrapped(backends: &[MemoryHost; 2], frame: &[u8]) -> Result<Option<(Fate, Vec<u8>)>> {
    let run = |frame: &[u8]| {
        backends.iter().find_map(|backend| {
            let mut buffer = frame.to_vec();
            let mut packet = SlicePacket::new(&mut buffer, 0, INGRESS);
            let fate = backend.process(&mut packet);
            let touched = fate != Fate::Pass || packet.bytes() != frame;
            touched.then(|| (fate, packet.bytes().to_vec()))
        })
    };
    let is_handed_on = |fate| matches!(fate, Fate::Transmit | Fate::Redirect(_));
    let became = run(frame);
    if let Some((fate, bytes)) = &became
        && is_handed_on(*fate)
        && let Some((next, _)) = run(bytes)
    {
        let what = || format!("{} is handed on as {}", hex(frame), hex(bytes));
        ensure!(!is_handed_on(next), "{}, and again", what());
    }
    Ok(became)
}

/// Whether an address is one of those backends' at one of the two hosts.
fn is_even(address: &Address) -> bool {
    is_backend(address, 0)
}

/// The same of the other one.
fn is_odd(address: &Address) -> bool {
    is_backend(address, 1)
}

fn is_backend(address: &Address, parity: u8) -> bool {
    let [.., last] = address.octets();
    let backend = match IpAddr::from(*address) {
        IpAddr::V4(v4) => v4.octets().starts_with(&[10, 2]),
        IpAddr::V6(v6) => v6.segments().starts_with(&[0xfd00, 2]),
    };
    backend && last % 2 == parity
}

/// Every kind of way between two backends.
fn way_between(query: &RouteQuery) -> Result<Route, NoRoute> {
    const WIDE: u16 = 1_500;
    let [.., last] = query.destination.octets();
    let by = |interface| Route {
        interface,
        destination_mac: [2, 0, 0, 0, 2, last],
        source_mac: [2, 0, 0, 0, 1, last],
    };
    match last {
        _ if query.length > WIDE => Err(NoRoute::TooLong(WIDE)),
        14 => Err(NoRoute::Refused),
        13 => Err(NoRoute::Kernels),
        12 => Ok(by(INGRESS + 1)),
        _ => Ok(by(INGRESS)),
    }
}

/// A connection's, a listening one or none: as the client's port has it.
fn socket(remote: &Endpoint, _: &Endpoint) -> Socket {
    match u16::from_be(remote.port) % 4 {
        0 => Socket::Flow,
        1 => Socket::Listener,
        _ => Socket::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{
        differential::frames::Generator,
        fuzz::{Input, corpus, mangle},
    };

    use super::*;

    fn generator(seed: u64) -> Generator {
        Generator::new(seed, Setting::new().expect("a setting").endpoints)
    }

    #[test]
    fn whatever_comes_is_dropped_passed_or_becomes_something_well_formed() {
        let mut host = Host::new().expect("worlds");
        let mut generator = generator(1);
        let mut input = Input::default();
        for _ in 0..5_000 {
            let mut random = Random(generator.random.word());
            input.mutate(&mut generator, |frame| mangle(frame, &mut random));
            host.run(&input).expect("what holds of every packet");
        }
        assert!(host.frames > 20_000, "{}", host.frames);
    }

    #[test]
    fn what_backends_hand_on_goes_every_way_and_no_further_than_one() {
        let host = Host::new().expect("worlds");
        let mut generator = generator(3);
        for _ in 0..60_000 {
            unwrapped(&host.backends, &generator.tunnelled()).expect("one hop");
        }
        let of = |backend: &MemoryHost| [&backend.counted.get()[..], &backend.hops.get()].concat();
        let [even, odd] = host.backends.each_ref().map(of);
        let both: Vec<u64> = even.iter().zip(odd).map(|(n, more)| n + more).collect();
        assert!(both.iter().all(|&count| count > 0), "{both:?}");
    }

    #[test]
    fn every_kept_input_does_on_the_host_what_has_to_hold() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/frames.hex");
        let mut host = Host::new().expect("worlds");
        for input in corpus::read(&kept).expect("the inputs that are kept") {
            if let Err(error) = host.run(&input) {
                panic!("{}: {error:#}", hex(&input.encode()));
            }
        }
    }

    #[test]
    fn an_input_does_the_same_whatever_came_before() {
        let mut host = Host::new().expect("worlds");
        let mut generator = generator(2);
        let frames: Vec<Vec<u8>> = (0..200).map(|_| generator.frame()).collect();
        for world in 0..WORLDS {
            let tables = &mut host.worlds[world].tables;
            let mut outcomes = || {
                forget(tables);
                let run = |frame: &Vec<u8>| execute(tables, frame, Way::Network);
                frames.iter().map(run).collect::<Vec<_>>()
            };
            assert_eq!(outcomes(), outcomes(), "world {world}");
        }
    }
}
