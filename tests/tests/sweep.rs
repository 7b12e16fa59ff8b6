//! The sweep takes out of the kernel's flow tables only what is as it was found.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::tables::{FlowKey, Record, Table, feature};
use lb_tests::{bpffs::Bpffs, skip::with_root};
use lb_userspace::dataplane::{
    Capacity, Dataplane as _, FlowTables,
    bpf::{LoadOptions, Pins, Program},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Attempts to take a record out while another processor renews it: about one of ten thousand meets that
/// between its look and its grip.
const ROUNDS: u32 = 300_000;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// The map of established flows, for whoever stands in for the program.
struct Established(HashMap<MapData, [u8; size_of::<FlowKey>()], [u8; size_of::<Record>()]>);

impl Established {
    fn open(bpffs: &Bpffs) -> Result<Self> {
        let mut pins = bpffs.entries().into_iter();
        let pin = pins.find(|pin| pin.ends_with("ESTABLISHED"));
        let data = MapData::from_pin(pin.context("no pin of the established flows")?)?;
        Ok(Self(HashMap::try_from(Map::HashMap(data))?))
    }

    fn write(&mut self, key: &FlowKey, record: &Record, flags: u64) -> Result<()> {
        let key: [u8; size_of::<FlowKey>()] = key.as_bytes().try_into()?;
        let record: [u8; size_of::<Record>()] = record.as_bytes().try_into()?;
        Ok(self.0.insert(key, record, flags)?)
    }

    fn read(&self, key: &FlowKey) -> Result<Option<Record>> {
        let key = key.as_bytes().try_into()?;
        match self.0.get(&key, 0) {
            Ok(bytes) => Ok(Record::read_from_bytes(&bytes).ok()),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A loaded program's flow tables, as the sweep has them.
fn tables(bpffs: &Bpffs) -> Result<(Program, Box<dyn FlowTables + Send>)> {
    let options = LoadOptions {
        pins: Some(Pins::new(bpffs.path(), "sweep")),
        capacity: Capacity {
            flows: 64,
            half_open: 64,
            slots: 4_096,
            ..Capacity::default()
        },
        features: feature::IPIP,
        log_level: 0,
    };
    let (program, maps) = Program::load(&options)?;
    let tables = maps.flow_tables()?;
    Ok((program, tables))
}

const FOUND: Record = Record {
    member: 1,
    flags: 0,
    generation: 7,
    stamp: 1_000,
    since: 900,
};
const RENEWED: Record = Record {
    stamp: 2_000,
    ..FOUND
};

fn key() -> FlowKey {
    FlowKey {
        port: 1_024,
        ..FlowKey::default()
    }
}

#[test]
fn a_record_goes_where_it_is_as_it_was_found_and_stays_where_it_was_renewed() -> Result<()> {
    with_root(
        "a_record_goes_where_it_is_as_it_was_found_and_stays_where_it_was_renewed",
        || {
            let bpffs = Bpffs::unique()?;
            let (_program, mut tables) = tables(&bpffs)?;
            let mut map = Established::open(&bpffs)?;
            map.write(&key(), &RENEWED, BPF_NOEXIST)?;
            assert!(!tables.remove(Table::Established, &key(), &FOUND)?);
            assert_eq!(map.read(&key())?, Some(RENEWED));
            assert!(!tables.remove(Table::HalfOpen, &key(), &RENEWED)?);
            assert_eq!(map.read(&key())?, Some(RENEWED));
            assert!(tables.remove(Table::Established, &key(), &RENEWED)?);
            assert_eq!(map.read(&key())?, None);
            // Nothing is there any more, and nothing is put back.
            assert!(!tables.remove(Table::Established, &key(), &RENEWED)?);
            assert_eq!(map.read(&key())?, None);
            Ok(())
        },
    )
}

#[test]
fn a_record_that_is_renewed_while_the_sweep_takes_it_out_is_put_back() -> Result<()> {
    with_root(
        "a_record_that_is_renewed_while_the_sweep_takes_it_out_is_put_back",
        || {
            let bpffs = Bpffs::unique()?;
            let (_program, mut tables) = tables(&bpffs)?;
            let mut map = Established::open(&bpffs)?;
            let mut others = Established::open(&bpffs)?;
            map.write(&key(), &FOUND, BPF_NOEXIST)?;
            let done = AtomicBool::new(false);
            let mut removed = 0;
            thread::scope(|scope| {
                // As the program does, this changes a record, but never makes one anew.
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for record in [RENEWED, FOUND] {
                            let _ = others.write(&key(), &record, BPF_EXIST);
                        }
                    }
                });
                let mut meet = || -> Result<()> {
                    for round in 1..=ROUNDS {
                        if tables.remove(Table::Established, &key(), &FOUND)? {
                            removed += 1;
                            map.write(&key(), &FOUND, BPF_NOEXIST)?;
                        } else {
                            let there = map.read(&key())?;
                            ensure!(there.is_some(), "lost in round {round}");
                        }
                    }
                    Ok(())
                };
                let met = meet();
                done.store(true, Ordering::Relaxed);
                met
            })?;
            println!("{removed} of {ROUNDS} taken out as found");
            ensure!(
                (1..ROUNDS).contains(&removed),
                "{removed} of {ROUNDS}: nothing met"
            );
            Ok(())
        },
    )
}
