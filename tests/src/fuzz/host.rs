//! The packet path on the host, and what has to hold of whatever it makes of a frame: no panic, and of a
//! well-formed packet a well-formed one.

use anyhow::{Context as _, Result, ensure};
use lb_common::{memory::MemoryTables, verdict::DropReason};
use lb_userspace::{dataplane::memory::MemoryDataplane, plan::census};

use super::Input;
use crate::{
    differential::{Way, changes::disturbance, execute, frames::Random, hex, setting::Setting},
    dissect::dissect,
};

/// Balancers in different states; the first at rest, in each other slots move, settle and lead to backends that
/// drain or are dead.
const WORLDS: u64 = 4;
/// What has happened in each but the first.
const DISTURBANCES: usize = 60;
/// Few, so that tables overflow.
const RECORDS: usize = 4;
/// Buckets of the look-up table, as a power of two.
const LOOKUP_BITS: u32 = 6;

/// Balancers in memory, the same for every input.
#[derive(Debug)]
pub struct Host {
    worlds: Vec<MemoryTables>,
    /// Frames so far.
    pub frames: u64,
}

impl Host {
    /// Sets them up.
    ///
    /// # Errors
    /// The setting is not valid.
    pub fn new() -> Result<Self> {
        let setting = Setting::new()?;
        let worlds: Result<_> = (0..WORLDS).map(|number| world(&setting, number)).collect();
        let (worlds, frames) = (worlds?, 0);
        Ok(Self { worlds, frames })
    }

    /// Has an input's frames come, and then what was held of them given back.
    ///
    /// # Errors
    /// Something does not hold of one.
    pub fn run(&mut self, input: &Input) -> Result<()> {
        let world = usize::from(input.world) % self.worlds.len();
        let tables = &mut self.worlds[world];
        forget(tables);
        for frame in &input.frames {
            self.frames += 1;
            judged(tables, frame, Way::Network)?;
            for held in tables.held.take() {
                judged(tables, &held.frame, Way::Held)?;
            }
        }
        Ok(())
    }
}

/// The tables of a balancer in a state.
fn world(setting: &Setting, number: u64) -> Result<MemoryTables> {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = LOOKUP_BITS;
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
    Ok(tables)
}

/// What a frame before has left: an input is to do the same whenever it comes.
fn forget(tables: &mut MemoryTables) {
    let flows = tables.flows.get_mut();
    flows.established.records.clear();
    flows.half_open.records.clear();
    flows.loads.clear();
    flows.turns.clear();
    tables.source_buckets.get_mut().clear();
    tables.service_buckets.get_mut().clear();
    tables.datagrams.get_mut().clear();
    tables.held.get_mut().clear();
    tables.budgets.set(Default::default());
    tables.handover.set(Default::default());
    drop(tables.take_counted());
}

/// Runs a frame, and says what is wrong with what it became.
fn judged(tables: &mut MemoryTables, frame: &[u8], way: Way) -> Result<()> {
    let outcome = execute(tables, frame, way);
    if outcome.is_sent() && matches!(dissect(frame), Ok(Some(_))) {
        dissect(&outcome.bytes)
            .with_context(|| format!("{} became {}", hex(frame), hex(&outcome.bytes)))?;
    }
    let inconsistent = tables.take_counted().drops;
    let inconsistent = inconsistent.contains_key(&(DropReason::Inconsistent as u32));
    ensure!(
        !inconsistent,
        "the tables contradict themselves at {}",
        hex(frame)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{
        differential::frames::Generator,
        fuzz::{Input, mangle},
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
    fn an_input_does_the_same_whatever_came_before() {
        let mut host = Host::new().expect("worlds");
        let mut generator = generator(2);
        let frames: Vec<Vec<u8>> = (0..200).map(|_| generator.frame()).collect();
        for world in 0..WORLDS as usize {
            let tables = &mut host.worlds[world];
            let mut outcomes = || {
                forget(tables);
                let run = |frame: &Vec<u8>| execute(tables, frame, Way::Network);
                frames.iter().map(run).collect::<Vec<_>>()
            };
            assert_eq!(outcomes(), outcomes(), "world {world}");
        }
    }
}
