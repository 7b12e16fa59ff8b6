//! Who is kept out, in figures that settings promise: ceilings, times, and how seldom it is a mistake.

use proptest::prelude::*;

use super::*;

const ON: Passive = Passive::ON;

fn at(millis: u64) -> Tick {
    Tick::MAX.wrapping_add(ticks(Duration::from_millis(millis)))
}

const WELL: Place = Place {
    takes: true,
    forced: false,
    ready: true,
    at_least: Duration::ZERO,
};

/// A pool whose backends are told by their numbers.
struct Pool {
    settings: Passive,
    shown: Vec<Shown>,
    places: BTreeMap<usize, Place>,
    outliers: BTreeMap<usize, Outlier>,
    now: u64,
}

impl Pool {
    fn new(backends: usize, settings: Passive) -> Self {
        let mut pool = Self {
            settings,
            shown: vec![Shown::default(); backends],
            places: (0..backends).map(|n| (n, WELL)).collect(),
            outliers: BTreeMap::new(),
            now: 0,
        };
        pool.look(0);
        pool
    }

    /// So many milliseconds later, what is shown is judged.
    fn look(&mut self, later: u64) -> Vec<Change<usize>> {
        self.now += later;
        let now = at(self.now);
        for (n, shown) in self.shown.iter().enumerate() {
            let known = self.outliers.entry(n);
            let known = known.or_insert_with(|| Outlier::new(*shown, now));
            known.take(*shown, &self.settings, now);
        }
        judge(&mut self.outliers, &self.places, &self.settings, now)
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
    pool.places.insert(
        0,
        Place {
            takes: false,
            ..WELL
        },
    );
    pool.places.insert(
        1,
        Place {
            takes: false,
            ..WELL
        },
    );
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
    assert_eq!(waited, [10, 20, 25, 25]);
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

/// What begins and how it ends, drawn from a seed.
struct Network {
    random: u64,
}

impl Network {
    /// Xorshift64* (S. Vigna, ACM Transactions on Mathematical Software 42(4), 2016), as a share of one.
    fn draw(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How long a handshake is waited for.
const PATIENCE: u64 = ON.handshake.as_millis() as u64;
/// From one look to the next.
const LOOK: u64 = 50;

/// A pool of four, judged by handshakes alone, and clients that begin some: those that go on do so at once, and those that fail are known
/// to only once they have been waited for.
struct Clients {
    network: Network,
    pool: Pool,
    due: f64,
    /// Handshakes that fail, by when that is known, and whose they are.
    failing: std::collections::VecDeque<(u64, usize)>,
    /// Whether the first backend answers nobody.
    dead: bool,
}

impl Clients {
    fn new(seed: u64) -> Self {
        Self {
            network: Network { random: seed | 1 },
            pool: Pool::new(4, Passive { refusals: 0, ..ON }),
            due: 0.0,
            failing: Default::default(),
            dead: false,
        }
    }

    /// So many milliseconds with so many watched handshakes a second, of which this share fails whoever gets it; how many backends were
    /// kept out, and when the first one was first.
    fn run(&mut self, millis: u64, watched: u64, failing: f64) -> (usize, Option<u64>) {
        let (mut ejected, mut took) = (0, None);
        for passed in (0..millis).step_by(LOOK as usize) {
            let now = self.pool.now;
            self.due += watched as f64 * LOOK as f64 / 1_000.0;
            while self.due >= 1.0 {
                self.due -= 1.0;
                let n = (self.network.draw() * 4.0) as usize;
                if self.network.draw() < failing || (self.dead && n == 0) {
                    self.failing.push_back((now + PATIENCE, n));
                } else {
                    self.pool.shown[n].progressed += 1;
                }
            }
            while let Some((_, n)) = self.failing.pop_front_if(|(known, _)| *known <= now) {
                self.pool.shown[n].missed += 1;
            }
            let changes = self.pool.look(LOOK);
            let out = changes.iter().filter(|c| matches!(c, Change::Ejected(..)));
            ejected += out.count();
            if took.is_none() && self.pool.out().contains(&0) {
                took = Some(passed + LOOK);
            }
        }
        (ejected, took)
    }
}

#[test]
fn figures_of_handshakes_mistakes_are_none_in_hours_and_a_dead_backend_is_found() {
    println!(
        "SYN/s, failing anyway, hours, kept out by mistake, ms until a dead one is found (median, most)"
    );
    for (rate, failing, most) in [
        (100, 0.001, 2_500),
        (100, 0.01, 2_500),
        (100, 0.05, 2_500),
        (100, 0.5, 15_000),
        (10_000, 0.001, 2_000),
        (10_000, 0.01, 2_000),
        (10_000, 0.05, 2_000),
        (10_000, 0.5, 5_000),
    ] {
        let watched = rate >> (next_sampling(0, rate) - 1);
        let runs = 20;
        let (mut mistakes, mut found) = (0, Vec::new());
        for seed in 1..=runs {
            let mut clients = Clients::new(seed * 0x9E37_79B9);
            mistakes += clients.run(180_000, watched, failing).0;
            clients.dead = true;
            let (_, took) = clients.run(60_000, watched, failing);
            found.push(took.unwrap_or(u64::MAX));
        }
        found.sort_unstable();
        let (median, worst) = (found[found.len() / 2], found[found.len() - 1]);
        println!(
            "{rate}, {}%, {}, {mistakes}, {median}, {worst}",
            failing * 100.0,
            runs as f64 * 180.0 / 3_600.0
        );
        assert_eq!(mistakes, 0, "{rate} {failing}");
        assert!(worst <= most, "{rate} {failing}: {found:?}");
    }
}

#[test]
fn figures_of_floods_that_begin_and_end_have_nobody_kept_out() {
    let mut mistakes = 0;
    let runs = 50;
    for seed in 1..=runs {
        let mut clients = Clients::new(seed * 0x9E37_79B9);
        for _ in 0..3 {
            mistakes += clients.run(12_000 + seed * 7, 400, 0.01).0;
            // All of them are watched until the agent knows their rate.
            mistakes += clients.run(1_000, 4_000, 0.9).0;
            mistakes += clients.run(12_000, 400, 0.9).0;
        }
    }
    println!("{} floods: {mistakes} kept out", runs * 3);
    assert_eq!(mistakes, 0);
}
