//! Who is kept out, in figures that settings promise: ceilings, times, and how seldom it is a mistake.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const ON: Passive = Passive::ON;

fn at(millis: u64) -> Tick {
    Tick::MAX.wrapping_add(ticks(Duration::from_millis(millis)))
}

const WELL: Place = Place {
    wanted: true,
    takes: true,
    forced: false,
    ready: true,
    at_least: Duration::ZERO,
};

/// It could take flows, and is not asked.
const SPARE: Place = Place {
    takes: false,
    ..WELL
};

const DRAINED: Place = Place {
    wanted: false,
    ..SPARE
};

/// A pool whose backends are told by their numbers.
struct Pool {
    settings: Passive,
    shown: Vec<Shown>,
    places: BTreeMap<usize, Place>,
    outliers: BTreeMap<usize, Outlier>,
    /// Those who could take flows, and are asked only once nobody else can.
    spares: BTreeSet<usize>,
    now: u64,
}

impl Pool {
    fn new(backends: usize, settings: Passive) -> Self {
        let mut pool = Self {
            settings,
            shown: vec![Shown::default(); backends],
            places: (0..backends).map(|n| (n, WELL)).collect(),
            outliers: BTreeMap::new(),
            spares: BTreeSet::new(),
            now: 0,
        };
        // Until what everybody shows counts.
        (0..5).for_each(|_| drop(pool.look(500)));
        pool
    }

    /// So many milliseconds later, what is shown is judged.
    fn look(&mut self, later: u64) -> Vec<Change<usize>> {
        self.now += later;
        let now = at(self.now);
        let taking = self.taking();
        self.outliers.retain(|n, _| self.places.contains_key(n));
        let there = |(n, _): &(usize, _)| self.places.contains_key(n);
        for (n, shown) in self.shown.iter().enumerate().filter(there) {
            let known = self.outliers.entry(n);
            let known = known.or_insert_with(|| Outlier::new(*shown, now));
            known.take(*shown, taking.contains(&n), &self.settings, now);
        }
        let outliers = self.outliers.iter_mut();
        let mut known = outliers.map(|(&n, outlier)| (n, outlier)).collect();
        judge(&mut known, &self.places, &self.settings, now)
    }

    /// Who gets new flows.
    fn taking(&self) -> Vec<usize> {
        let out = self.out();
        let takes = self
            .places
            .iter()
            .filter(|(n, p)| p.takes && !out.contains(n));
        let (spares, others): (Vec<_>, Vec<_>) = takes
            .map(|(&n, _)| n)
            .partition(|n| self.spares.contains(n));
        if others.is_empty() { spares } else { others }
    }

    fn accepts(&mut self, n: usize, times: u64) {
        self.shown[n].accepted += times;
        self.shown[n].streak = 0;
    }

    fn refuses(&mut self, n: usize, times: u64) {
        self.shown[n].refused += times;
        self.shown[n].streak += times;
    }

    fn out(&self) -> Vec<usize> {
        let out = self.outliers.iter().filter(|(_, o)| o.ejected.is_some());
        out.map(|(&n, _)| n).collect()
    }

    /// Seconds until a backend is back.
    fn waits(&mut self, n: usize) -> u64 {
        let mut waited = 0;
        while self.out().contains(&n) {
            self.look(1_000);
            waited += 1;
            assert!(waited < 10_000, "never");
        }
        waited
    }
}

#[test]
fn connections_refused_in_a_row_are_enough_and_one_that_is_accepted_between_is_not() {
    let mut pool = Pool::new(3, ON);
    pool.refuses(0, 2);
    assert_eq!(pool.look(10), []);
    pool.accepts(0, 1);
    pool.refuses(0, 2);
    assert_eq!(pool.look(10), []);
    pool.refuses(0, 1);
    assert_eq!(
        pool.look(10),
        [Change::Ejected(0, Reason::Refusals(3))],
        "{pool:?}",
        pool = pool.shown
    );
    assert_eq!(pool.out(), [0]);
}

#[test]
fn what_was_refused_before_it_was_looked_at_is_not_held_against_a_backend() {
    let mut pool = Pool::new(2, ON);
    pool.outliers.clear();
    pool.refuses(0, 50);
    assert_eq!(pool.look(10), []);
    pool.refuses(0, 2);
    assert_eq!(pool.look(10), []);
    pool.refuses(0, 1);
    assert_eq!(pool.look(10).len(), 1);
}

#[test]
fn no_more_than_the_ceiling_are_kept_out_and_the_worst_come_first() {
    let mut pool = Pool::new(4, ON);
    for n in 0..4 {
        pool.refuses(n, 3 + n as u64);
    }
    pool.look(10);
    assert_eq!(pool.out(), [2, 3]);
    for (backends, percent, most) in [
        (1, 100, 0),
        (2, 100, 1),
        (2, 10, 1),
        (5, 50, 2),
        (10, 30, 3),
        (10, 0, 0),
    ] {
        let settings = Passive {
            max_ejected: percent,
            ..ON
        };
        assert_eq!(ceiling(backends, &settings), most, "{backends} {percent}");
    }
}

#[test]
fn the_last_that_takes_flows_stays_whatever_it_shows() {
    let mut pool = Pool::new(
        4,
        Passive {
            max_ejected: 100,
            ..ON
        },
    );
    pool.places.insert(0, SPARE);
    pool.places.insert(1, SPARE);
    (2..4).for_each(|n| pool.refuses(n, 9));
    pool.look(10);
    assert_eq!(pool.out().len(), 1);
}

#[test]
fn each_ejection_lasts_longer_up_to_the_longest_and_each_is_forgotten_in_time() {
    let mut pool = Pool::new(
        2,
        Passive {
            longest: Duration::from_secs(25),
            ..ON
        },
    );
    let mut waited = Vec::new();
    for _ in 0..4 {
        pool.refuses(0, 3);
        pool.look(10);
        waited.push(pool.waits(0));
    }
    // By whole ticks.
    let mut close = waited.iter().zip([10, 20, 25, 25]);
    assert!(close.all(|(is, time)| is - time <= 1), "{waited:?}");
    let times = |pool: &Pool| pool.outliers[&0].times;
    assert_eq!(times(&pool), 3);
    for (second, left) in [(9, 3), (2, 2), (10, 1), (10, 0), (100, 0)] {
        pool.look(second * 1_000);
        assert_eq!(times(&pool), left);
    }
}

#[test]
fn on_probation_one_refusal_is_enough_until_the_ejection_is_forgotten() {
    let mut pool = Pool::new(2, ON);
    pool.refuses(0, 3);
    pool.look(10);
    pool.waits(0);
    assert_eq!(pool.look(10), [], "what it had shown is paid for");
    pool.refuses(0, 1);
    assert_eq!(pool.look(10).len(), 1);
    assert!([20, 21].contains(&pool.waits(0)), "the time of two");
    pool.look(10_500);
    pool.look(10_500);
    pool.refuses(0, 2);
    assert_eq!(pool.look(10), []);
}

#[test]
fn who_does_not_pass_its_checks_does_not_come_back_and_who_has_passed_none_since_waits() {
    let mut pool = Pool::new(2, ON);
    let busy = Place {
        ready: false,
        ..WELL
    };
    pool.refuses(0, 3);
    pool.look(10);
    pool.places.insert(0, busy);
    pool.look(60_000);
    assert_eq!(pool.out(), [0]);
    pool.places.insert(
        0,
        Place {
            at_least: Duration::from_secs(120),
            ..WELL
        },
    );
    pool.look(30_000);
    assert_eq!(pool.out(), [0]);
    pool.look(31_000);
    assert_eq!(pool.out(), [] as [usize; 0]);
}

#[test]
fn those_who_are_too_many_for_a_pool_that_shrank_come_back_the_first_first() {
    let mut pool = Pool::new(6, ON);
    for n in 0..3 {
        pool.refuses(n, 3);
        pool.look(1_000);
    }
    assert_eq!(pool.out(), [0, 1, 2]);
    for n in 4..6 {
        pool.places.remove(&n);
    }
    pool.look(10);
    assert_eq!(pool.out(), [1, 2]);
    pool.places.insert(
        1,
        Place {
            forced: true,
            ..WELL
        },
    );
    pool.look(10);
    assert_eq!(pool.out(), [2], "people want it");
}

#[test]
fn handshakes_that_fail_count_only_where_those_of_others_do_not() {
    let mut pool = Pool::new(3, ON);
    let mut show = |own: (u64, u64), others: (u64, u64)| {
        for n in 0..3 {
            let (good, bad) = if n == 0 { own } else { others };
            pool.shown[n].progressed += good;
            pool.shown[n].missed += bad;
        }
        let changes = pool.look(10);
        pool = Pool::new(3, ON);
        changes.len()
    };
    assert_eq!(show((0, 4), (50, 0)), 0, "too few");
    assert_eq!(show((0, 6), (50, 0)), 1);
    assert_eq!(show((7, 6), (50, 0)), 0, "less than half");
    assert_eq!(show((0, 20), (0, 20)), 0, "all alike");
    assert_eq!(show((10, 90), (10, 90)), 0, "as in a flood");
    assert_eq!(show((0, 400), (40, 360)), 1, "and yet none of its own");
    assert_eq!(show((0, 5), (50, 0)), 0, "once in a hundred million");
    assert_eq!(show((0, 5), (500, 0)), 1);
    assert_eq!(show((30, 70), (1, 2)), 0, "of others there are too few");
}

#[test]
fn who_is_next_to_nobody_is_no_outlier_however_many_of_its_handshakes_fail() {
    let mut pool = Pool::new(2, ON);
    pool.spares.insert(1);
    pool.look(10);
    pool.shown[0].missed += 10_000;
    assert_eq!(pool.look(10), []);
    pool.shown[1].progressed += 10_000;
    assert_eq!(pool.look(10), [], "who takes no flows has shown nothing");
}

#[test]
fn what_a_newcomer_shows_counts_once_those_that_failed_could_be_known() {
    let mut pool = Pool::new(2, ON);
    pool.outliers.remove(&0);
    let mut counts = |millis: u64| {
        pool.shown[0].progressed += 10;
        pool.look(millis);
        pool.outliers[&0].recent.handshakes.good
    };
    assert_eq!([0, 400, 400, 200].map(&mut counts), [0; 4]);
    // Of the part that begins after a second and a tenth.
    assert_eq!([600, 600].map(&mut counts), [10, 20]);
}

#[test]
fn a_newcomer_is_compared_with_what_others_have_shown_since() {
    let mut pool = Pool::new(2, ON);
    // A flood begins, of which the other has seen all.
    pool.shown[1].progressed += 1_000;
    pool.outliers.remove(&0);
    (0..4).for_each(|_| drop(pool.look(500)));
    for n in 0..2 {
        pool.shown[n].progressed += 10;
        pool.shown[n].missed += 90;
    }
    assert_eq!(pool.look(10), []);
    pool.shown[0].missed += 300;
    pool.shown[1].progressed += 300;
    assert_eq!(pool.look(10).len(), 1, "and yet not for ever");
}

#[test]
fn who_is_drained_while_it_is_kept_out_stays_out_and_makes_room_for_others() {
    let mut pool = Pool::new(4, ON);
    for n in 0..2 {
        pool.refuses(n, 3);
    }
    pool.look(10);
    assert_eq!(pool.out(), [0, 1]);
    for n in [0, 1] {
        pool.places.insert(n, DRAINED);
    }
    pool.refuses(2, 3);
    pool.look(1_000);
    assert_eq!(pool.out(), [0, 1, 2], "one of two who are wanted");
    for n in [0, 1] {
        pool.places.insert(n, WELL);
    }
    pool.look(1_000);
    assert_eq!(pool.out(), [1, 2], "two of four, the first comes in first");
    pool.waits(1);
    pool.refuses(1, 1);
    pool.look(10);
    assert!(pool.out().contains(&1), "it is on probation");
}

#[test]
fn counters_that_begin_anew_are_no_news() {
    let mut pool = Pool::new(2, ON);
    pool.accepts(0, 100);
    pool.refuses(0, 2);
    pool.look(10);
    pool.shown[0] = Shown::default();
    assert_eq!(pool.look(10), []);
    pool.refuses(0, 2);
    assert_eq!(pool.look(10), []);
    pool.refuses(0, 1);
    assert_eq!(pool.look(10).len(), 1);
}

#[test]
fn more_flows_are_watched_as_fewer_begin_but_not_at_every_turn() {
    assert_eq!(next_sampling(0, 100), 1);
    assert_eq!(next_sampling(1, 500), 1);
    assert_eq!(next_sampling(1, 10_000), 6);
    assert_eq!(next_sampling(6, 6_000), 6, "187 a second are enough");
    assert_eq!(next_sampling(6, 5_000), 5);
    assert_eq!(next_sampling(6, 0), 1);
    assert_eq!(next_sampling(1, u64::MAX), 17);
}

/// What happens in a step of the property below.
#[derive(Debug, Clone)]
enum Step {
    Accepts(usize, u64),
    Refuses(usize, u64),
    Handshakes(usize, u64, u64),
    Takes(usize, bool),
    Ready(usize, bool),
    Leaves(usize),
    Joins(usize),
    Starts(usize),
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0usize..8;
    prop_oneof![
        (n.clone(), 1u64..9).prop_map(|(n, times)| Step::Accepts(n, times)),
        (n.clone(), 1u64..9).prop_map(|(n, times)| Step::Refuses(n, times)),
        (n.clone(), 0u64..60, 0u64..60).prop_map(|(n, g, b)| Step::Handshakes(n, g, b)),
        (n.clone(), any::<bool>()).prop_map(|(n, takes)| Step::Takes(n, takes)),
        (n.clone(), any::<bool>()).prop_map(|(n, ready)| Step::Ready(n, ready)),
        n.clone().prop_map(Step::Leaves),
        n.clone().prop_map(Step::Joins),
        n.prop_map(Step::Starts),
        (1u64..20_000).prop_map(Step::Passes),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_no_more_than_the_ceiling_are_kept_out_one_stays_and_all_come_back(
        percent in 0u8..=100, steps in proptest::collection::vec(step(), 1..120),
    ) {
        let settings = Passive { max_ejected: percent, ..ON };
        let mut pool = Pool::new(8, settings);
        for step in steps {
            let mut later = 10;
            match step {
                Step::Accepts(n, times) => pool.accepts(n, times),
                Step::Refuses(n, times) => pool.refuses(n, times),
                Step::Handshakes(n, good, bad) => {
                    pool.shown[n].progressed += good;
                    pool.shown[n].missed += bad;
                }
                Step::Takes(n, takes) => {
                    pool.places.entry(n).and_modify(|place| place.takes = takes);
                }
                Step::Ready(n, ready) => {
                    pool.places.entry(n).and_modify(|place| place.ready = ready);
                }
                Step::Leaves(n) => drop(pool.places.remove(&n)),
                Step::Joins(n) => drop(pool.places.insert(n, WELL)),
                Step::Starts(n) => pool.shown[n] = Shown::default(),
                Step::Passes(millis) => later = millis,
            }
            let had = pool.places.values().filter(|place| place.takes).count();
            let changes = pool.look(later);
            let out = pool.out();
            prop_assert!(out.len() <= ceiling(pool.places.len(), &settings), "{out:?}");
            let took_one = changes.iter().any(|change| matches!(change, Change::Ejected(..)));
            let left = pool.places.iter().filter(|(n, place)| place.takes && !out.contains(n));
            prop_assert!(!took_one || had == 0 || left.count() >= 1, "{changes:?}");
        }
        for place in pool.places.values_mut() {
            *place = WELL;
        }
        // Who has shown enough, and had no room or was not to take flows, is kept out first, one after another.
        for _ in 0..9 {
            pool.look(settings.longest.as_millis() as u64 + 1);
        }
        prop_assert_eq!(pool.out(), [] as [usize; 0]);
        for _ in 0..settings.longest.as_secs() / settings.ejection.as_secs() + 1 {
            pool.look(settings.ejection.as_millis() as u64);
        }
        prop_assert!(pool.outliers.values().all(|outlier| outlier.times == 0));
    }
}

#[path = "outlier_figures.rs"]
mod figures;
