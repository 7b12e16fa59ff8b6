//! Flows in progress of each backend, counted anew from their records. Pure.
//!
//! The program changes a record and then its backend's count, in two steps that other CPUs, and a program
//! that is replaced, can come between. What goes wrong there would stay wrong for ever, and a backend
//! with a limit would end up taking too few flows or too many.
//!
//! Packets go on changing both while a sweep reads. So it finds bounds only, and a count is corrected
//! by no more than two sweeps in a row agree on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    tables::{FlowKey, Record, Table, Tick, record_flag, service_flag},
    track::LONG_AGO,
};

use super::{Layout, Placed};
use crate::dataplane::{DataplaneError, FlowTables};

/// How far beyond the beginning of a sweep lies what happened during it: nearly five hours, in which every
/// sweep ends. What lies further is of the past, as a tick wraps: half its range would make flows begun of
/// all that are 26 to 52 days old.
const SWEEP_MOST: Tick = 1 << 24;

/// A backend whose flows are counted, as one of several that had its counters in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Index of its counters.
    pub counters: u32,
    /// [`lb_common::tables::Member::generation`].
    pub generation: u32,
}

/// By how much counts are too high at least; negative: too low. Those that may be right are left out.
pub type Excess = BTreeMap<Holder, i64>;

/// Records of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    /// The count before any record was read.
    load: i64,
    /// Records that counted then.
    sure: i64,
    /// Records that a packet has touched since, which may have counted then.
    unsure: i64,
    /// Its pool, whose services' flows may take each other's places.
    pool: u32,
}

impl Count {
    /// Given how many records of the pool may have taken the place of others that counted.
    fn excess(self, begun: i64) -> i64 {
        let most = self.load - self.sure;
        let least = most - self.unsure - begun;
        if least > 0 { least } else { most.min(0) }
    }
}

/// Counts while a sweep reads.
#[derive(Debug, Default)]
pub struct Tally {
    counts: BTreeMap<Holder, Count>,
    /// Half-open flows that were counted: promoted meanwhile, they are met again.
    half_open: BTreeSet<FlowKey>,
    /// Records made since the sweep began, by pool.
    begun: BTreeMap<u32, i64>,
    /// When it began.
    now: Tick,
}

impl Tally {
    /// The counts of all backends whose flows are counted, for a sweep that begins at `now`.
    ///
    /// # Errors
    /// The map of counts cannot be read.
    pub fn begin(
        layout: &Layout,
        tables: &dyn FlowTables,
        now: Tick,
    ) -> Result<Self, DataplaneError> {
        let mut tally = Self {
            now,
            ..Self::default()
        };
        let counted = |placed: &&Arc<Placed>| placed.descriptor.flags & service_flag::COUNTED != 0;
        for placed in layout.pools.values().filter(counted) {
            for (_, member) in placed.members() {
                let holder = member.holder();
                tally.expect(placed.number, holder, tables.load(holder.counters)?);
            }
        }
        Ok(tally)
    }

    /// The count of a pool's backend, before any record is read. Records of others are not counted.
    fn expect(&mut self, pool: u32, holder: Holder, load: i64) {
        let count = Count {
            load,
            pool,
            ..Count::default()
        };
        self.counts.insert(holder, count);
    }

    /// Takes note of a record. Half-open ones come first.
    pub fn see(&mut self, holder: Holder, table: Table, key: &FlowKey, record: &Record) {
        let Some(count) = self.counts.get_mut(&holder) else {
            return;
        };
        let begun = |tick: Tick| tick.wrapping_sub(self.now) < SWEEP_MOST;
        let counts = record.flags & record_flag::COUNTED != 0;
        // One that a packet has found expired was taken off, and its time put back: just so far, if
        // that was since.
        let put_back = (LONG_AGO / 2..=LONG_AGO).contains(&self.now.wrapping_sub(record.stamp));
        let touched = begun(record.stamp) || put_back;
        if begun(record.since) {
            *self.begun.entry(count.pool).or_default() += 1;
        } else if table == Table::Established && self.half_open.contains(key) {
            // Met already.
        } else if touched {
            count.unsure += 1;
        } else if counts {
            count.sure += 1;
        }
        if counts && table == Table::HalfOpen {
            self.half_open.insert(*key);
        }
    }

    /// What counts are too high by.
    pub fn excess(&self) -> Excess {
        let counts = self.counts.iter();
        counts
            .map(|(&holder, count)| {
                let begun = self.begun.get(&count.pool).copied().unwrap_or(0);
                (holder, count.excess(begun))
            })
            .filter(|&(_, excess)| excess != 0)
            .collect()
    }
}

/// What to add to counts, given what the last two sweeps found.
pub fn corrections(before: &Excess, now: &Excess) -> BTreeMap<Holder, i64> {
    let agreed = |(&holder, &now): (&Holder, &i64)| {
        let before = *before.get(&holder)?;
        let smaller = if before.abs() < now.abs() {
            before
        } else {
            now
        };
        (before.signum() == now.signum()).then_some((holder, -smaller))
    };
    now.iter().filter_map(agreed).collect()
}

#[cfg(test)]
mod tests {
    use lb_common::tables::SECOND;

    use super::*;

    const NOW: Tick = 1_000;
    const HOLDER: Holder = Holder {
        counters: 3,
        generation: 1,
    };

    fn tally() -> Tally {
        Tally {
            now: NOW,
            ..Tally::default()
        }
    }

    fn key(port: u16) -> FlowKey {
        FlowKey {
            port,
            ..FlowKey::default()
        }
    }

    fn record(flags: u16, since: Tick, stamp: Tick) -> Record {
        Record {
            flags,
            since,
            stamp,
            ..Record::default()
        }
    }

    const COUNTED: Record = Record {
        member: 0,
        flags: record_flag::COUNTED,
        generation: 1,
        stamp: 900,
        since: 500,
    };

    /// What a count of `load` is too high by, given records of established flows.
    fn excess(load: i64, records: &[Record]) -> i64 {
        let mut tally = tally();
        tally.expect(0, HOLDER, load);
        for (port, record) in (0..).zip(records) {
            tally.see(HOLDER, Table::Established, &key(port), record);
        }
        tally.excess().get(&HOLDER).copied().unwrap_or(0)
    }

    #[test]
    fn a_count_that_is_that_of_the_records_is_right() {
        assert_eq!(excess(2, &[COUNTED, COUNTED]), 0);
        assert_eq!(excess(0, &[record(0, 500, 900)]), 0);
    }

    #[test]
    fn a_count_beyond_its_records_is_too_high_and_one_below_too_low() {
        assert_eq!(excess(7, &[COUNTED, COUNTED]), 5);
        assert_eq!(excess(-1, &[COUNTED]), -2);
    }

    #[test]
    fn what_a_packet_has_touched_meanwhile_may_have_counted_or_not() {
        let touched = record(record_flag::COUNTED, 500, NOW);
        let ended = record(record_flag::FINISHED, 500, NOW + 1);
        for load in [1, 2, 3] {
            assert_eq!(excess(load, &[COUNTED, touched, ended]), 0, "{load}");
        }
        assert_eq!(excess(4, &[COUNTED, touched, ended]), 1);
        assert_eq!(excess(0, &[COUNTED, touched, ended]), -1);
    }

    #[test]
    fn flows_that_began_meanwhile_may_have_taken_the_place_of_others() {
        let new = record(record_flag::COUNTED, NOW + 1, NOW + 1);
        assert_eq!(excess(1, &[COUNTED, new]), 0);
        assert_eq!(excess(2, &[COUNTED, new]), 0);
        assert_eq!(excess(3, &[COUNTED, new]), 1);
        assert_eq!(excess(0, &[COUNTED, new]), -1);
    }

    #[test]
    fn flows_of_any_age_began_before() {
        const DAY: Tick = 24 * 3_600 * SECOND;
        for days in [1, 25, 26, 27, 40, 51] {
            let old = record(record_flag::COUNTED, NOW.wrapping_sub(days * DAY), 900);
            assert_eq!(excess(2, &[COUNTED, old]), 0, "{days} days");
            assert_eq!(excess(3, &[COUNTED, old]), 1, "{days} days");
            assert_eq!(excess(1, &[COUNTED, old]), -1, "{days} days");
        }
    }

    #[test]
    fn what_was_found_expired_meanwhile_counted_before() {
        let expired = record(0, 100, (NOW + 1).wrapping_sub(LONG_AGO));
        assert_eq!(excess(2, &[COUNTED, expired]), 0);
        assert_eq!(excess(3, &[COUNTED, expired]), 1);
    }

    #[test]
    fn a_flow_that_is_promoted_meanwhile_counts_once() {
        let mut tally = tally();
        tally.expect(0, HOLDER, 1);
        tally.see(HOLDER, Table::HalfOpen, &key(1), &COUNTED);
        let promoted = Record {
            stamp: NOW,
            ..COUNTED
        };
        tally.see(HOLDER, Table::Established, &key(1), &promoted);
        assert_eq!(tally.excess(), Excess::new());
    }

    #[test]
    fn records_of_backends_that_are_not_counted_are_left_alone() {
        let mut tally = tally();
        tally.see(HOLDER, Table::Established, &key(1), &COUNTED);
        assert_eq!(tally.excess(), Excess::new());
    }

    #[test]
    fn a_count_is_corrected_by_what_two_sweeps_agree_on() {
        let corrected = |before: i64, now: i64| {
            let found = |excess| Excess::from([(HOLDER, excess)]);
            corrections(&found(before), &found(now))
                .get(&HOLDER)
                .copied()
        };
        assert_eq!(corrected(5, 5), Some(-5));
        assert_eq!(corrected(9, 5), Some(-5));
        assert_eq!(corrected(-2, -3), Some(2));
        assert_eq!(corrected(5, -5), None);
        let once = Excess::from([(HOLDER, 5)]);
        assert!(corrections(&Excess::new(), &once).is_empty());
        let next = Holder {
            generation: 2,
            ..HOLDER
        };
        assert!(corrections(&once, &Excess::from([(next, 5)])).is_empty());
    }
}
