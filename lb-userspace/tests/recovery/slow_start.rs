//! Backends that get their weight by and by.

use std::time::Duration;

use lb_userspace::{
    health::{
        Event,
        reply::{Asked, Wants},
    },
    model::{Admin, Change, Settings, SlowStart},
    snapshot::Condition,
};

use crate::pool::{Pool, address, event, id};

const SLOW: &str = "slow_start = \"90s from 10%\"";

/// Four backends, of which the last is down and about to come back.
fn returning(keys: &str) -> Pool {
    let mut pool = Pool::new(keys, &[""; 4]);
    pool.down(4);
    pool
}

/// The percent of their weight that backends have, where that grows.
fn grown<const N: usize>(pool: &Pool) -> [Option<u8>; N] {
    std::array::from_fn(|n| Some(pool.status(n as u8 + 1).slow_start?.percent))
}

#[test]
fn the_first_backends_of_a_service_have_all_of_their_weight() {
    let pool = Pool::new(SLOW, &[""; 4]);
    assert_eq!(pool.shares(), [25; 4]);
    assert_eq!(grown(&pool), [None; 4]);
    assert!(!pool.core.is_ramping());
}

#[test]
fn a_backend_that_comes_back_gets_its_weight_by_and_by_in_steps_that_move_few_slots() {
    let mut pool = returning(SLOW);
    pool.up(4);
    // A tenth of a weight beside three whole ones.
    assert_eq!(pool.shares(), [32, 32, 32, 3]);
    assert_eq!(grown(&pool), [None, None, None, Some(10)]);
    assert_eq!(pool.reason(4), "its checks pass; its weight grows");
    let (mut before, mut most) = (pool.moved(), 0);
    for second in 1..=90 {
        pool.pass(1);
        most = most.max(pool.moved() - before);
        before = pool.moved();
        if second == 45 {
            assert_eq!(pool.shares(), [28, 28, 28, 15]);
            assert_eq!(pool.status(4).slow_start.unwrap().percent, 55);
            assert!(pool.status(4).slow_start.unwrap().left.as_secs() == 44);
        }
    }
    assert_eq!(pool.shares(), [25; 4]);
    assert_eq!(grown(&pool), [None; 4]);
    assert_eq!(pool.reason(4), "its checks pass");
    assert!((1..=30).contains(&most), "{most} of 1,021 slots at a time");
}

#[test]
fn without_slow_start_a_backend_comes_back_whole() {
    let mut pool = returning("");
    pool.up(4);
    assert_eq!(pool.shares(), [25; 4]);
}

#[test]
fn a_backend_that_is_added_begins_slowly_and_so_does_one_whose_drain_is_undone() {
    let mut pool = Pool::new(SLOW, &[""; 3]);
    pool.add(4, 1);
    assert_eq!(pool.shares(), [33, 33, 33, 0]);
    pool.up(4);
    assert_eq!(pool.shares(), [32, 32, 32, 3]);
    pool.pass(91);
    assert_eq!(pool.shares(), [25; 4]);
    pool.ask(4, Admin::Draining);
    assert_eq!(grown(&pool), [None; 4]);
    pool.ask(4, Admin::Active);
    assert_eq!(pool.shares(), [32, 32, 32, 3]);
    assert_eq!(grown(&pool), [None, None, None, Some(10)]);
}

#[test]
fn who_fails_while_its_weight_grows_begins_anew_and_false_alarms_of_others_change_nothing() {
    let mut pool = returning(SLOW);
    pool.up(4);
    pool.pass(45);
    pool.up(1);
    assert_eq!(grown(&pool), [None, None, None, Some(55)]);
    pool.down(4);
    assert_eq!(pool.shares(), [33, 33, 33, 0]);
    pool.up(4);
    assert_eq!(grown(&pool), [None, None, None, Some(10)]);
}

#[test]
fn a_weight_that_is_changed_by_hand_goes_on_growing_towards_the_new_one() {
    let mut pool = returning(SLOW);
    pool.up(4);
    pool.pass(45);
    pool.change(Change::EditBackend {
        id: id(),
        address: address(4),
        weight: Some(2),
        admin: None,
        max_connections: None,
        rated: Default::default(),
        tier: None,
    });
    // 1.1 beside three.
    assert_eq!(pool.shares(), [24, 24, 24, 27]);
    pool.pass(46);
    assert_eq!(pool.shares(), [20, 20, 20, 40]);
}

#[test]
fn who_is_forced_up_has_all_of_its_weight_at_once_and_keeps_it() {
    let mut pool = returning(SLOW);
    pool.up(4);
    pool.ask(4, Admin::Up);
    assert_eq!(pool.shares(), [25; 4]);
    pool.ask(4, Admin::Active);
    assert_eq!(pool.shares(), [25; 4]);
}

#[test]
fn what_its_agent_asks_for_and_what_has_grown_are_multiplied() {
    let mut pool = returning(SLOW);
    pool.up(4);
    pool.pass(45);
    let half = Asked {
        weight: Some(50),
        ..Asked::default()
    };
    pool.check(Event {
        asked: half,
        ..event(4, Condition::Up)
    });
    // 0.55 × 0.5 beside three.
    assert_eq!(pool.shares(), [31, 31, 31, 8]);
    let drain = Asked {
        wants: Some(Wants::Drain),
        ..half
    };
    pool.check(Event {
        asked: drain,
        ..event(4, Condition::Up)
    });
    pool.check(event(4, Condition::Up));
    assert_eq!(grown(&pool), [None, None, None, Some(10)], "after a drain");
}

#[test]
fn a_restarted_agent_starts_nobody_anew_and_goes_on_where_the_former_was() {
    let mut pool = returning(SLOW);
    pool.up(4);
    pool.pass(45);
    let mut pool = pool.restart();
    assert_eq!(grown(&pool), [None, None, None, Some(55)]);
    assert_eq!(pool.shares(), [28, 28, 28, 15]);
    for n in 1..=4 {
        pool.up(n);
    }
    pool.pass(44);
    assert_eq!(grown(&pool), [None, None, None, Some(95)]);
    pool.pass(2);
    let pool = pool.restart();
    assert_eq!(grown(&pool), [None; 4]);
    assert_eq!(pool.shares(), [25; 4]);
}

#[test]
fn weights_that_differ_are_not_taken_for_half_grown_after_a_restart() {
    let weights = [", weight = 1", ", weight = 1000", ", weight = 7, tier = 1"];
    let mut pool = Pool::new(SLOW, &weights);
    assert_eq!(grown(&pool.restart()), [None; 3]);
    pool = Pool::new(SLOW, &weights);
    // Both tiers have a part now, and weights are to another scale.
    pool.down(2);
    pool.ask(1, Admin::Up);
    pool.ask(1, Admin::Active);
    assert_eq!(grown(&pool.restart()), [None; 3]);
}

#[test]
fn turning_it_on_and_off_begins_with_nobody_and_ends_what_grows() {
    let slow = |window| Settings {
        slow_start: Some(SlowStart {
            window: Duration::from_secs(window),
            from: 10,
        }),
        ..Settings::default()
    };
    let mut pool = returning("");
    pool.set(slow(90));
    assert_eq!(grown(&pool), [None; 4]);
    pool.up(4);
    assert_eq!(grown(&pool), [None, None, None, Some(10)]);
    pool.pass(30);
    pool.set(slow(60));
    assert_eq!(grown(&pool), [None, None, None, Some(55)]);
    pool.set(slow(0));
    assert_eq!(pool.shares(), [25; 4]);
    assert!(!pool.core.is_ramping());
}

#[test]
fn a_refused_change_begins_nothing() {
    let mut pool = Pool::new(SLOW, &[""; 4]);
    pool.ask(4, Admin::Draining);
    let at = pool.core.dataplane().executed;
    pool.core.dataplane_mut().fail_at = Some(at);
    let undrain = crate::reach::asking(id(), address(4), Admin::Active);
    pool.core.change(undrain).unwrap_err();
    pool.core.enforce().unwrap();
    assert!(!pool.core.is_ramping());
    pool.ask(4, Admin::Active);
    assert_eq!(grown(&pool), [None, None, None, Some(10)]);
}

#[test]
fn a_tier_that_comes_back_gets_new_flows_as_its_weight_grows_and_the_standby_keeps_the_rest() {
    let mut pool = Pool::new(SLOW, &["", "", ", tier = 1"]);
    pool.down(1);
    pool.down(2);
    assert_eq!(pool.shares(), [0, 0, 100]);
    pool.up(1);
    pool.up(2);
    // A tenth of the tier carries a tenth of 1 / 0.7.
    assert_eq!(pool.shares(), [7, 7, 86]);
    pool.pass(45);
    assert_eq!(pool.shares(), [39, 39, 21]);
    pool.pass(46);
    assert_eq!(pool.shares(), [50, 50, 0]);
}

#[test]
fn a_new_primary_that_begins_slowly_is_not_missed() {
    let mut pool = Pool::new(SLOW, &["", ", tier = 1"]);
    pool.add(3, 1);
    assert_eq!(pool.shares(), [100, 0, 0]);
    pool.up(3);
    assert_eq!(pool.shares(), [91, 0, 9]);
}

#[test]
fn schedulers_that_go_by_weights_have_those_that_have_grown() {
    for scheduler in ["weighted-round-robin", "power-of-two-choices"] {
        let mut pool = returning(&format!("{SLOW}\nscheduler = \"{scheduler}\""));
        pool.up(4);
        let placed = pool.core.layout().placed(id()).unwrap();
        let (local, _) = placed.member(address(4)).unwrap();
        let turns = placed.sequence.iter().filter(|&&of| of == local).count();
        assert_eq!((turns, placed.sequence.len()), (1, 31), "{scheduler}");
    }
    let mut pool = returning(&format!(
        "{SLOW}\nscheduler = \"weighted-least-connections\""
    ));
    pool.up(4);
    let placed = pool.core.layout().placed(id()).unwrap();
    let weight = |n| placed.member(address(n)).unwrap().1.member.weight;
    assert_eq!([1, 2, 3, 4].map(weight), [100, 100, 100, 10]);
}

/// What docs/recovery.md tells: slots moved as a backend comes up, by the largest step after, in all, and at once.
fn moves_of(backends: usize, ring: u32) -> [u64; 4] {
    let come_up = |slow: &str| {
        let keys = vec![""; backends];
        let mut pool = Pool::with_ring(ring, slow, &keys);
        let last = u8::try_from(backends).unwrap();
        pool.down(last);
        let begun = pool.moved();
        pool.up(last);
        (pool, begun)
    };
    let (mut pool, begun) = come_up("slow_start = \"20s\"");
    let first = pool.moved() - begun;
    let (mut before, mut most) = (pool.moved(), 0);
    while pool.core.is_ramping() {
        pool.pass(1);
        most = most.max(pool.moved() - before);
        before = pool.moved();
    }
    let all = before - begun;
    let (pool, begun) = come_up("");
    [first, most, all, pool.moved() - begun]
}

#[test]
fn figures_of_slow_start_are_bounded_by_a_few_percent_of_the_ring() {
    for (backends, ring) in [(4, 4_093), (10, 4_093), (100, 16_381)] {
        let [first, most, all, at_once] = moves_of(backends, ring);
        println!(
            "| {backends} backends, {ring} slots | {first} | {most} ({:.1}%) | {all} | {at_once} |",
            most as f64 * 100.0 / f64::from(ring)
        );
        assert!(most * 40 < u64::from(ring), "{most} of {ring}");
        assert!(all < at_once * 5, "{all}, and {at_once} at once");
    }
}
