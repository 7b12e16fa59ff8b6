//! Weights that follow how backends fare.

use std::time::Duration;

use lb_userspace::{
    dataplane::{Dataplane as _, Operation},
    health::{Event, reply::Asked},
    model::{Adaptive, Settings, Signal},
    plan::{census, ticks},
    snapshot::Condition,
};

use crate::pool::{Pool, address, event, id};

const BY_LATENCY: &str =
    "moving_time = \"20s\"\nadaptive = { from = [\"latency\"], interval = \"1s\" }";
const SLOTS: u32 = 4_093;

/// Four backends.
fn four(keys: &str) -> Pool {
    Pool::with_ring(SLOTS, keys, &[""; 4])
}

/// Probes of each backend, from the first on, take so many milliseconds.
fn take(pool: &mut Pool, millis: &[u64]) {
    for (n, &millis) in (1..).zip(millis) {
        pool.check(Event {
            smoothed: Some(Duration::from_millis(millis)),
            ..event(n, Condition::Up)
        });
    }
}

/// So many seconds pass, in each of which the agent looks and sweeps; the fewest slots that were steady.
fn pass(pool: &mut Pool, seconds: u64) -> u32 {
    let mut fewest = u32::MAX;
    for _ in 0..seconds {
        let clock = &pool.core.dataplane().tables.time;
        clock.set(clock.get().wrapping_add(ticks(Duration::from_secs(1))));
        if pool.core.look() {
            pool.core.enforce().unwrap();
        }
        fewest = fewest.min(steady(pool));
        let tables = &pool.core.dataplane().tables;
        let census = census::sweep(pool.core.layout(), &mut { tables }, tables.time.get());
        let census = census.unwrap();
        pool.core.swept(census).unwrap();
    }
    fewest
}

fn steady(pool: &Pool) -> u32 {
    pool.core.service(id()).unwrap().flows.steady
}

/// Percent of their weight that backends have.
fn percents<const N: usize>(pool: &Pool) -> [u16; N] {
    std::array::from_fn(|n| {
        let status = pool.status(n as u8 + 1).adaptive;
        status.map_or(100, |adaptive| adaptive.percent)
    })
}

#[test]
fn a_backend_that_takes_four_times_as_long_gets_a_quarter_and_most_slots_stay_steady() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    let fewest = pass(&mut pool, 400);
    let [others @ .., slow] = percents::<4>(&pool);
    assert_eq!(others, [100; 3]);
    assert!((25..=31).contains(&slow), "{slow}");
    assert!(u64::from(fewest) * 100 >= u64::from(SLOTS) * 95, "{fewest}");
    assert_eq!(steady(&pool), SLOTS);
    let status = pool.status(4);
    let wanted = status.adaptive.unwrap().wanted;
    assert_eq!(wanted, 25);
    assert!((status.effective_weight - f64::from(slow) / 100.0).abs() < 1e-9);
    let slots = f64::from(status.slots) / f64::from(SLOTS);
    let share = f64::from(slow) / f64::from(300 + slow);
    assert!((slots - share).abs() < 0.01, "{slots} {share}");
}

#[test]
fn weights_are_held_back_while_a_failure_keeps_slots_unsteady() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pool.down(1);
    pass(&mut pool, 19);
    assert_eq!(percents(&pool), [100; 4]);
    let status = pool.core.service(id()).unwrap().adaptive.unwrap();
    assert!(status.held && status.holds > 10 && status.changes == 0);
    pass(&mut pool, 300);
    let [.., slow] = percents::<4>(&pool);
    assert!(slow < 35, "{slow}");
    assert!(pool.core.service(id()).unwrap().adaptive.unwrap().changes > 0);
}

#[test]
fn what_agents_ask_for_is_followed_by_and_by_but_none_at_all_at_once() {
    let keys = "health = { type = \"agent\", port = 9777 }\nmoving_time = \"20s\"\nadaptive = { from = [\"agent\"], interval = \"1s\" }";
    let mut pool = four(keys);
    let ask = |pool: &mut Pool, percent| {
        let asked = Asked {
            weight: Some(percent),
            ..Asked::default()
        };
        pool.check(Event {
            asked,
            ..event(4, Condition::Up)
        });
    };
    ask(&mut pool, 50);
    assert_eq!(pool.status(4).effective_weight, 1.0);
    let fewest = pass(&mut pool, 300);
    let [.., asked] = percents::<4>(&pool);
    assert!((50..=62).contains(&asked), "{asked}");
    assert!(u64::from(fewest) * 100 >= u64::from(SLOTS) * 95, "{fewest}");
    ask(&mut pool, 0);
    assert!(!pool.takes(4));
}

#[test]
fn flows_in_progress_count_for_what_a_backend_can_carry() {
    let keys = "moving_time = \"20s\"\nadaptive = { from = [\"flows\"], interval = \"1s\" }";
    let limits = ["1000", "1000", "1000", "4000"];
    let limits = limits.map(|most| format!(", max_connections = {most}"));
    let mut pool = Pool::with_ring(SLOTS, keys, &limits.each_ref().map(String::as_str));
    // Sweeps find no records of such flows, and correct their number.
    let hold = |pool: &mut Pool, seconds, flows: [i64; 4]| {
        for _ in 0..seconds {
            for (n, flows) in (1..).zip(flows) {
                let placed = pool.core.layout().placed(id()).unwrap();
                let counters = placed.member(address(n)).unwrap().1.backend.counters;
                let there = i64::from(pool.core.dataplane().load(counters).unwrap());
                let add = Operation::AddLoad(counters, flows - there);
                pool.core.dataplane_mut().execute(&[add]).unwrap();
            }
            pass(pool, 1);
        }
    };
    hold(&mut pool, 100, [200, 200, 200, 800]);
    assert_eq!(percents(&pool), [100; 4]);
    hold(&mut pool, 300, [200, 200, 800, 800]);
    let [first, second, third, fourth] = percents(&pool);
    assert_eq!([first, second, fourth], [100; 3]);
    assert!((26..=33).contains(&third), "{third}");
}

#[test]
fn a_restarted_agent_goes_on_with_the_shares_that_it_finds() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pass(&mut pool, 400);
    let before: [u16; 4] = percents(&pool);
    let mut pool = pool.restart();
    assert_eq!(percents(&pool), before);
    pass(&mut pool, 50);
    assert_eq!((percents(&pool), steady(&pool)), (before, SLOTS));
}

#[test]
fn turned_off_weights_are_as_configured_again() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pass(&mut pool, 400);
    let set = |adaptive| Settings {
        adaptive: Some(adaptive),
        ..Settings::default()
    };
    pool.set(set(None));
    assert_eq!(pool.status(4).adaptive, None);
    assert_eq!(pool.status(4).effective_weight, 1.0);
    assert!(pool.status(4).slots.abs_diff(SLOTS / 4) < 4);
    pool.set(set(Some(Adaptive::by([Signal::Latency]))));
    assert_eq!(percents(&pool), [100; 4]);
}

#[test]
fn backends_are_compared_within_their_tier_alone() {
    let tiers = ["", "", "", ", tier = 1", ", tier = 1"];
    let mut pool = Pool::with_ring(SLOTS, BY_LATENCY, &tiers);
    take(&mut pool, &[99, 99, 99, 999, 9_999]);
    pass(&mut pool, 100);
    // Nor are those of a tier that takes no flows.
    assert_eq!(percents(&pool), [100; 5]);
}

#[test]
fn weights_rest_while_another_grows_and_in_panic() {
    let mut pool = four(&format!(
        "{BY_LATENCY}\nslow_start = \"90s\"\npanic_below = 50"
    ));
    pool.down(4);
    pass(&mut pool, 50);
    pool.up(4);
    take(&mut pool, &[99, 399, 99, 99]);
    pass(&mut pool, 60);
    assert_eq!(percents(&pool), [100; 4]);
    for n in [1, 3, 4] {
        pool.down(n);
    }
    pass(&mut pool, 100);
    assert_eq!(percents(&pool), [100; 4]);
}

#[test]
fn a_refused_change_leaves_shares_as_they_were() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pass(&mut pool, 400);
    let before: [u16; 4] = percents(&pool);
    let at = pool.core.dataplane().executed;
    pool.core.dataplane_mut().fail_at = Some(at);
    let settings = Settings {
        adaptive: Some(None),
        ..Settings::default()
    };
    let change = lb_userspace::model::Change::EditService(id(), settings);
    pool.core.change(change).unwrap_err();
    pool.core.enforce().unwrap();
    assert_eq!(percents(&pool), before);
}
