//! Pools of simulated servers, and what shares come to in them.

use lb_common::{
    maglev::{self, Claim},
    tables::Address,
};
use proptest::prelude::*;

use super::*;
use crate::{model::Signal, smooth::Smooth};

const SECOND: Duration = Duration::from_secs(1);
const SLOTS: u32 = 1_021;
/// What a probe that is not answered in time counts for.
const TIMEOUT: f64 = 0.5;

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n as u8 + 1], 80))
}

fn policy() -> Adaptive {
    Adaptive::by([Signal::Latency])
}

fn at(seconds: u64) -> Tick {
    ticks(Duration::from_secs(seconds))
}

fn of_latencies(millis: &[u64]) -> BTreeMap<SocketAddr, Signs> {
    let signs = |(n, &millis): (usize, &u64)| {
        let signs = Signs {
            latency: Some(Duration::from_millis(millis)),
            capacity: 1.0,
            ..Signs::default()
        };
        (address(n), signs)
    };
    millis.iter().enumerate().map(signs).collect()
}

/// The shares after so many looks at the same signs.
fn after(looks: u64, signs: &BTreeMap<SocketAddr, Signs>, policy: &Adaptive) -> Vec<u16> {
    let mut shares = Shares::default();
    for look in 0..looks {
        let now = at(look * 10);
        let moves = shares.look(signs, policy, now);
        shares.make(&moves, now);
    }
    signs.keys().map(|&b| shares.percent(b)).collect()
}

#[test]
fn a_backend_that_takes_four_times_as_long_comes_to_about_a_quarter_in_small_steps() {
    let signs = of_latencies(&[99, 99, 399, 99]);
    assert_eq!(after(1, &signs, &policy()), [100, 100, 80, 100]);
    let shares = after(50, &signs, &policy());
    // The last fifth is within the dead band.
    assert!((25..=30).contains(&shares[2]), "{shares:?}");
    assert_eq!([shares[0], shares[1], shares[3]], [100; 3]);
}

#[test]
fn latencies_far_below_the_floor_and_differences_within_the_band_change_nothing() {
    let micros = [100, 200, 300].map(Duration::from_micros);
    let mut signs = of_latencies(&[1; 3]);
    for (signs, latency) in signs.values_mut().zip(micros) {
        signs.latency = Some(latency);
    }
    assert_eq!(after(20, &signs, &policy()), [100; 3]);
    assert_eq!(
        after(20, &of_latencies(&[100, 110, 119]), &policy()),
        [100; 3]
    );
}

#[test]
fn shares_stay_within_their_bounds() {
    let bounded = Adaptive {
        least: 50,
        most: 150,
        ..policy()
    };
    let shares = after(200, &of_latencies(&[1, 100, 100, 100, 9_000]), &bounded);
    // As near as the dead band has them come.
    assert!((120..=150).contains(&shares[0]), "{shares:?}");
    assert!((50..=62).contains(&shares[4]), "{shares:?}");
    assert_eq!(shares[1..4], [100; 3]);
}

#[test]
fn what_is_known_of_one_backend_alone_says_nothing() {
    let mut signs = of_latencies(&[1, 500]);
    signs.get_mut(&address(0)).unwrap().latency = None;
    assert_eq!(after(20, &signs, &policy()), [100; 2]);
}

#[test]
fn a_backend_with_few_flows_is_like_any_other_and_one_with_many_for_what_it_carries_gets_less() {
    let loaded = |flows: [f64; 3]| {
        let mut signs = of_latencies(&[1; 3]);
        for (signs, flows) in signs.values_mut().zip(flows) {
            (signs.latency, signs.flows) = (None, Some(flows));
        }
        signs
    };
    assert_eq!(after(20, &loaded([0.0, 1.0, 2.0]), &policy()), [100; 3]);
    let mut signs = loaded([1_000.0, 1_000.0, 4_000.0]);
    let shares = after(50, &signs, &policy());
    assert!((25..=30).contains(&shares[2]), "{shares:?}");
    signs.get_mut(&address(2)).unwrap().capacity = 4.0;
    assert_eq!(after(20, &signs, &policy()), [100; 3]);
}

#[test]
fn an_agent_asks_for_a_share_of_what_else_counts() {
    let mut signs = of_latencies(&[99, 99, 199]);
    for (signs, asked) in signs.values_mut().zip([100, 50, 50]) {
        signs.asked = Some(asked);
    }
    let shares = after(50, &signs, &policy());
    assert!((50..=60).contains(&shares[1]), "{shares:?}");
    assert!((25..=30).contains(&shares[2]), "{shares:?}");
}

#[test]
fn handshakes_count_by_their_number_and_the_worst_sign_decides() {
    let timed = |samples: [f64; 3], millis: [f64; 3]| {
        let mut signs = of_latencies(&[99; 3]);
        for (signs, (samples, millis)) in signs.values_mut().zip(samples.into_iter().zip(millis)) {
            signs.handshakes = Some(Total::of(samples, millis / 1e3));
        }
        signs
    };
    let shares = after(50, &timed([1e4; 3], [99.0, 99.0, 399.0]), &policy());
    assert!((25..=31).contains(&shares[2]), "{shares:?}");
    // A single one that takes long is no news, and neither is none at all.
    for few in [1.0, 0.0] {
        let shares = after(50, &timed([1e4, 1e4, few], [99.0, 99.0, 399.0]), &policy());
        assert_eq!(shares, [100; 3]);
    }
    let mut signs = timed([1e4; 3], [99.0, 99.0, 399.0]);
    signs.get_mut(&address(1)).unwrap().latency = Some(Duration::from_millis(199));
    let shares = after(50, &signs, &policy());
    assert!(
        (50..=60).contains(&shares[1]) && (25..=31).contains(&shares[2]),
        "{shares:?}"
    );
}

#[test]
fn a_move_against_the_last_one_makes_the_next_smaller_until_it_has_been_calm() {
    let mut shares = Shares::default();
    let slow = of_latencies(&[99, 99, 999]);
    let quick = of_latencies(&[99, 99, 99]);
    let step = |shares: &mut Shares, signs, seconds| {
        let before = shares.percent(address(2));
        let moves = shares.look(signs, &policy(), at(seconds));
        shares.make(&moves, at(seconds));
        i32::from(shares.percent(address(2))) - i32::from(before)
    };
    let ways: Vec<i32> = (0..6)
        .map(|n| step(&mut shares, [&slow, &quick][n % 2], 10 * n as u64))
        .collect();
    // Away, back within the band, away, back and so on; the way back is half as long as it would be.
    assert_eq!(ways, [-20, 0, -16, 16, -16, 0]);
    assert_eq!(shares.standing(address(2)).unwrap().reversals, 2);
    let calm = 10 * u64::from(CALM);
    let at_rest = of_latencies(&[99, 99, 155]);
    for (looks, left) in [(1, 1), (2, 0)] {
        step(&mut shares, &at_rest, 60 + calm * looks);
        assert_eq!(shares.standing(address(2)).unwrap().reversals, left);
    }
}

#[test]
fn shares_that_are_given_back_come_to_the_whole_weight_by_bounded_steps_whatever_was_measured() {
    let mut shares = Shares::default();
    for (n, share) in [0.2, 1.0, 2.0].into_iter().enumerate() {
        shares.find(address(n), share, &policy(), 0);
    }
    let mut steps = 0;
    while !shares.are_whole() {
        let moves = shares.give_back();
        assert!(
            moves.iter().all(|one| one.backend != address(1)),
            "{moves:?}"
        );
        for one in &moves {
            let (from, to) = (f64::from(one.from), f64::from(one.to));
            assert!((0.79..=1.26).contains(&(to / from)), "{one:?}");
            assert!((to - 100.0).abs() < (from - 100.0).abs(), "{one:?}");
            assert_eq!(shares.standing(one.backend).unwrap().wanted, 100);
        }
        shares.make(&moves, 0);
        steps += 1;
        assert!(steps < 20);
    }
    // A fifth becomes a whole by quarters of itself.
    assert_eq!(steps, 8);
    assert_eq!(shares.give_back(), []);
}

#[test]
fn proposals_become_smaller_and_end_with_the_one_that_is_worst_off() {
    let mut shares = Shares::default();
    let moves = shares.look(&of_latencies(&[100, 100, 200, 900]), &policy(), 0);
    let to = |attempt| -> Vec<(SocketAddr, u16)> {
        let smaller = smaller(&moves, attempt).into_iter();
        smaller.map(|one| (one.backend, one.to)).collect()
    };
    assert_eq!(to(TRIES[0]), [(address(2), 80), (address(3), 80)]);
    assert_eq!(to(TRIES[1]), [(address(2), 90), (address(3), 90)]);
    assert_eq!(to(TRIES[3]), [(address(3), 80)]);
    assert_eq!(to((0.01, false)), []);
}

/// Servers of one queue each, a ring before them whose slots move, and the shares that their probes lead to.
struct Simulation {
    random: fastrand::Rng,
    /// Requests a second that each can answer.
    speeds: Vec<f64>,
    /// That come, in all.
    load: f64,
    moving: Duration,
    shares: Shares,
    latencies: Vec<Smooth>,
    /// How long each server takes on average.
    times: Vec<f64>,
    owners: Vec<u16>,
    /// When each slot moved last, in seconds; none that is steady.
    moved: Vec<Option<u64>>,
    now: u64,
    /// Moves of each backend's share, as the percent before and after and when.
    moves: Vec<Vec<(u64, u16, u16)>>,
    most_unsteady: usize,
}

impl Simulation {
    fn new(seed: u64, speeds: Vec<f64>, load: f64, moving: Duration) -> Self {
        let count = speeds.len();
        let mut simulation = Self {
            random: fastrand::Rng::with_seed(seed),
            load: speeds.iter().sum::<f64>() * load,
            speeds,
            moving,
            shares: Shares::default(),
            latencies: vec![Smooth::default(); count],
            times: Vec::new(),
            owners: Vec::new(),
            moved: vec![None; SLOTS as usize],
            now: 0,
            moves: vec![Vec::new(); count],
            most_unsteady: 0,
        };
        simulation.owners = simulation.ring(&simulation.shares);
        simulation.times = simulation.mean_times();
        simulation
    }

    fn ring(&self, shares: &Shares) -> Vec<u16> {
        let mut claims: Vec<Claim> = (0..self.speeds.len())
            .map(|n| {
                let SocketAddr::V4(at) = address(n) else {
                    unreachable!("of IPv4")
                };
                let address = Address::v4(u32::from_ne_bytes(at.ip().octets()));
                let weight = shares.percent(at.into());
                Claim::new(n as u16, &address, 80_u16.to_be(), weight, SLOTS)
            })
            .collect();
        let mut owners = vec![maglev::NOBODY; SLOTS as usize];
        maglev::fill(&mut owners, &mut claims);
        owners
    }

    /// What each server has to do of what it can.
    fn utilisations(&self) -> Vec<f64> {
        let slots = |n: usize| self.owners.iter().filter(move |&&owner| owner == n as u16);
        let load = |n| self.load * slots(n).count() as f64 / f64::from(SLOTS);
        let speeds = self.speeds.iter().enumerate();
        speeds.map(|(n, speed)| load(n) / speed).collect()
    }

    /// How long each server takes on average; the timeout where it cannot keep up.
    fn mean_times(&self) -> Vec<f64> {
        let each = self.speeds.iter().zip(self.utilisations());
        each.map(|(speed, part)| match part < 1.0 {
            true => (1.0 / (speed * (1.0 - part))).min(TIMEOUT),
            false => TIMEOUT,
        })
        .collect()
    }

    fn pass(&mut self, seconds: u64) {
        let (interval, over) = (policy().interval, smoothed_over(&policy()));
        for _ in 0..seconds {
            self.now += 1;
            for (time, latency) in self.times.iter().zip(&mut self.latencies) {
                let drawn = -time * (1.0 - self.random.f64()).ln();
                latency.add(drawn.min(TIMEOUT), SECOND, over);
            }
            if self.now.is_multiple_of(interval.as_secs()) {
                self.look();
            }
        }
    }

    fn look(&mut self) {
        let now = at(self.now);
        let (seconds, moving) = (self.now, self.moving.as_secs());
        for moved in &mut self.moved {
            *moved = moved.filter(|&moved| moved + moving > seconds);
        }
        let latencies = self.latencies.iter().enumerate();
        let signs = latencies.map(|(n, latency)| {
            let signs = Signs {
                latency: latency.mean().map(Duration::from_secs_f64),
                capacity: 1.0,
                ..Signs::default()
            };
            (address(n), signs)
        });
        let moves = self.shares.look(&signs.collect(), &policy(), now);
        for attempt in TRIES {
            let smaller = smaller(&moves, attempt);
            let mut shares = self.shares.clone();
            shares.make(&smaller, now);
            let owners = self.ring(&shares);
            let moved = || (0..owners.len()).filter(|&slot| owners[slot] != self.owners[slot]);
            let unsteady = (0..owners.len())
                .filter(|&slot| self.moved[slot].is_some() || owners[slot] != self.owners[slot])
                .count();
            if unsteady * 100 > usize::from(policy().unsteady) * owners.len() {
                continue;
            }
            for slot in moved().collect::<Vec<_>>() {
                self.moved[slot] = Some(self.now);
            }
            for one in smaller {
                let n = (0..self.speeds.len()).find(|&n| address(n) == one.backend);
                self.moves[n.unwrap()].push((self.now, one.from, one.to));
            }
            (self.shares, self.owners) = (shares, owners);
            self.times = self.mean_times();
            self.most_unsteady = self.most_unsteady.max(unsteady);
            return;
        }
    }

    /// Moves of a share against the direction of the one before, since then.
    fn turns(&self, since: u64) -> Vec<usize> {
        let turns = |moves: &Vec<(u64, u16, u16)>| {
            let upwards: Vec<(u64, bool)> = moves.iter().map(|m| (m.0, m.2 > m.1)).collect();
            let turned = upwards.windows(2).filter(|w| w[0].1 != w[1].1);
            turned.filter(|w| w[1].0 >= since).count()
        };
        self.moves.iter().map(turns).collect()
    }

    /// What an average request takes.
    fn mean_time(&self) -> f64 {
        let parts = self.utilisations().into_iter().zip(&self.speeds);
        let parts = parts.map(|(part, speed)| part * speed / self.load);
        parts.zip(&self.times).map(|(part, time)| part * time).sum()
    }
}

const HOUR: u64 = 3_600;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn weights_of_any_pool_settle_within_their_bounds_and_move_few_slots(
        seed in any::<u64>(),
        speeds in prop::collection::vec(1.0_f64..4.0, 2..9),
        load in 0.1_f64..0.95,
        moving in 10_u64..900,
    ) {
        let speeds: Vec<f64> = speeds.into_iter().map(|speed| 25.0 * 2_f64.powf(speed)).collect();
        let count = speeds.len();
        let mut simulation = Simulation::new(seed, speeds, load, Duration::from_secs(moving));
        simulation.pass(3 * HOUR);
        let policy = policy();
        prop_assert!(simulation.most_unsteady * 20 <= SLOTS as usize);
        for moves in &simulation.moves {
            for &(_, from, to) in moves {
                prop_assert!((policy.least..=policy.most).contains(&to));
                prop_assert!(to <= from + from / 4 + 1 && from <= to + from / 4 + 1, "{} {}", from, to);
            }
        }
        let most = reversals(&policy, 3 * 360) as usize;
        let turns = simulation.turns(0);
        prop_assert!(turns.iter().all(|&turns| turns <= most), "{turns:?} of {most}");
        // And in fact far fewer, none of them large.
        let late = simulation.turns(HOUR).iter().sum::<usize>();
        prop_assert!(late <= 6 * count, "{late} of {count}");
    }

    #[test]
    fn whatever_the_signs_say_no_share_turns_back_more_often_than_the_bound(
        millis in prop::collection::vec(prop::collection::vec(0_u64..10_000, 3), 1..2_000),
    ) {
        let (mut shares, policy) = (Shares::default(), policy());
        let mut before: BTreeMap<SocketAddr, bool> = BTreeMap::new();
        let mut turns: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for (look, latencies) in millis.iter().enumerate() {
            let now = at(10 * look as u64);
            let moves = shares.look(&of_latencies(latencies), &policy, now);
            shares.make(&moves, now);
            for one in moves {
                let upwards = one.to > one.from;
                if before.insert(one.backend, upwards).is_some_and(|was| was != upwards) {
                    *turns.entry(one.backend).or_default() += 1;
                }
            }
        }
        let most = reversals(&policy, millis.len() as u32);
        prop_assert!(turns.values().all(|&turns| turns <= most), "{turns:?} of {most}");
    }
}

#[test]
fn figures_of_a_pool_of_which_one_is_slowed_fourfold() {
    for (moving, load) in [(60, 0.5), (60, 0.8), (900, 0.5), (900, 0.8)] {
        let moving = Duration::from_secs(moving);
        let mut speeds = vec![100.0; 4];
        speeds[3] = 25.0;
        // So much of what all four can do.
        let mut simulation = Simulation::new(7, speeds, load, moving);
        let begun = simulation.mean_time();
        let mut spared = None;
        while simulation.now < 4 * HOUR {
            simulation.pass(10);
            if spared.is_none() && simulation.utilisations().iter().all(|&part| part < 0.95) {
                spared = Some(simulation.now);
            }
        }
        let turns = simulation.turns(0);
        println!(
            "| {} s | {load} | {:.0} ms | {:.0} ms | {} s | {turns:?} | {:.1}% |",
            moving.as_secs(),
            begun * 1e3,
            simulation.mean_time() * 1e3,
            spared.unwrap(),
            simulation.most_unsteady as f64 * 100.0 / f64::from(SLOTS),
        );
        let slow = simulation.shares.percent(address(3));
        assert!((20..=32).contains(&slow), "{slow}");
        assert!(simulation.most_unsteady * 20 <= SLOTS as usize);
        assert!(simulation.mean_time() * 1.5 < begun);
    }
}
