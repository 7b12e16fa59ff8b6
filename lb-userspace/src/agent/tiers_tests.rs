use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A tier of ten backends of which so many are healthy.
fn ten(healthy: u64) -> Weight {
    Weight {
        all: 10,
        healthy,
        able: healthy,
    }
}

fn policy(failback: Failback) -> Policy {
    Policy {
        spill_below: 70,
        failback,
        from: 0,
    }
}

/// The shares of tiers 0, 1, … of which so many of ten are healthy.
fn turn<const N: usize>(
    machine: &mut Machine,
    healthy: [u64; N],
    policy: Policy,
    now: Tick,
) -> Vec<u16> {
    let weights = (0..).zip(healthy.map(ten)).collect();
    machine.turn(&weights, policy, now).into_values().collect()
}

fn memoryless<const N: usize>(healthy: [u64; N], policy: Policy) -> Vec<u16> {
    turn(&mut Machine::default(), healthy, policy, 0)
}

const AUTOMATIC: Failback = Failback::Automatic;
const MANUAL: Failback = Failback::Manual;
const LATER: Failback = Failback::After(Duration::from_secs(30));

#[test]
fn a_tier_keeps_all_flows_until_too_few_are_healthy_and_then_what_it_can_carry() {
    let automatic = policy(AUTOMATIC);
    assert_eq!(memoryless([10, 10], automatic), [1_000, 0]);
    assert_eq!(memoryless([7, 10], automatic), [1_000, 0]);
    assert_eq!(memoryless([6, 10], automatic), [857, 143]);
    assert_eq!(memoryless([1, 10], automatic), [142, 858]);
    assert_eq!(memoryless([0, 10], automatic), [0, 1_000]);
}

#[test]
fn what_the_second_tier_cannot_carry_goes_to_the_third() {
    assert_eq!(memoryless([0, 5, 10], policy(AUTOMATIC)), [0, 714, 286]);
}

#[test]
fn what_nobody_can_carry_is_shared_in_proportion() {
    assert_eq!(memoryless([1, 3], policy(AUTOMATIC)), [249, 751]);
    assert_eq!(memoryless([2, 0], policy(AUTOMATIC)), [1_000, 0]);
    assert_eq!(memoryless([0, 0], policy(AUTOMATIC)), [0, 0]);
}

#[test]
fn at_zero_the_next_tier_is_for_when_nobody_is_left() {
    let backup = Policy {
        spill_below: 0,
        ..policy(AUTOMATIC)
    };
    assert_eq!(memoryless([1, 10], backup), [1_000, 0]);
    assert_eq!(memoryless([0, 10], backup), [0, 1_000]);
}

#[test]
fn failback_is_at_once_where_it_is_automatic() {
    let mut machine = Machine::default();
    let automatic = policy(AUTOMATIC);
    assert_eq!(turn(&mut machine, [0, 10], automatic, 0), [0, 1_000]);
    assert_eq!(turn(&mut machine, [10, 10], automatic, 1), [1_000, 0]);
}

#[test]
fn manual_failback_waits_until_it_is_asked_for() {
    let mut machine = Machine::default();
    let manual = policy(MANUAL);
    assert_eq!(turn(&mut machine, [3, 10], manual, 0), [428, 572]);
    assert!(!machine.waits(0));
    assert_eq!(turn(&mut machine, [10, 10], manual, 1), [428, 572]);
    assert!(machine.waits(0) && !machine.is_due(MANUAL, Tick::MAX / 2));
    assert_eq!(turn(&mut machine, [0, 10], manual, 2), [0, 1_000]);
    assert_eq!(turn(&mut machine, [10, 10], manual, 3), [0, 1_000]);
    machine.release();
    assert_eq!(turn(&mut machine, [10, 10], manual, 4), [1_000, 0]);
}

#[test]
fn a_tier_that_waits_gets_what_nobody_else_can_carry_and_keeps_it() {
    let mut machine = Machine::default();
    let manual = policy(MANUAL);
    turn(&mut machine, [0, 10], manual, 0);
    assert_eq!(turn(&mut machine, [10, 8], manual, 1), [0, 1_000]);
    assert_eq!(turn(&mut machine, [10, 1], manual, 2), [858, 142]);
    assert_eq!(turn(&mut machine, [10, 10], manual, 3), [858, 142]);
    assert_eq!(turn(&mut machine, [10, 0], manual, 4), [1_000, 0]);
    assert_eq!(turn(&mut machine, [10, 10], manual, 5), [1_000, 0]);
    assert_eq!(turn(&mut machine, [0, 10], manual, 6), [0, 1_000]);
}

#[test]
fn a_tier_waits_for_nothing_once_nobody_has_what_it_had_to_leave() {
    let mut machine = Machine::default();
    let manual = policy(MANUAL);
    assert_eq!(turn(&mut machine, [0, 5, 10], manual, 0), [0, 714, 286]);
    machine.release();
    assert_eq!(turn(&mut machine, [10, 5, 10], manual, 1), [1_000, 0, 0]);
    // Well again long since when it is asked once more.
    assert_eq!(turn(&mut machine, [10, 10, 10], manual, 2), [1_000, 0, 0]);
    assert_eq!(turn(&mut machine, [0, 10, 10], manual, 3), [0, 1_000, 0]);
}

#[test]
fn a_standby_that_fails_while_nobody_asks_it_has_nothing_to_wait_for() {
    let mut machine = Machine::default();
    let manual = policy(MANUAL);
    turn(&mut machine, [10, 0], manual, 0);
    assert_eq!(turn(&mut machine, [0, 10], manual, 1), [0, 1_000]);
}

#[test]
fn delayed_failback_waits_for_an_unbroken_time() {
    let mut machine = Machine::default();
    let later = policy(LATER);
    let wait = ticks(Duration::from_secs(30));
    let start = Tick::MAX - 10;
    let at = |after: Tick| start.wrapping_add(after);
    turn(&mut machine, [0, 10], later, start);
    assert_eq!(turn(&mut machine, [10, 10], later, at(5)), [0, 1_000]);
    assert!(!machine.is_due(LATER, at(4 + wait)));
    // It fails again, and the time begins anew.
    turn(&mut machine, [0, 10], later, at(20));
    assert_eq!(
        turn(&mut machine, [10, 10], later, at(30 + wait)),
        [0, 1_000]
    );
    assert!(machine.is_due(LATER, at(30 + 2 * wait)));
    assert_eq!(
        turn(&mut machine, [10, 10], later, at(30 + 2 * wait)),
        [1_000, 0]
    );
}

#[test]
fn failing_over_by_hand_takes_flows_from_the_tiers_before_unless_nobody_else_is_left() {
    let forced = Policy {
        from: 1,
        ..policy(AUTOMATIC)
    };
    assert_eq!(memoryless([10, 10, 10], forced), [0, 1_000, 0]);
    assert_eq!(memoryless([10, 5, 10], forced), [0, 714, 286]);
    assert_eq!(memoryless([10, 0, 0], forced), [1_000, 0, 0]);
}

#[test]
fn a_tier_that_waits_comes_before_one_that_was_taken_away_by_hand() {
    let mut machine = Machine::default();
    let forced = Policy {
        from: 1,
        ..policy(MANUAL)
    };
    assert_eq!(turn(&mut machine, [10, 0, 10], forced, 0), [0, 0, 1_000]);
    assert_eq!(turn(&mut machine, [10, 10, 0], forced, 0), [0, 1_000, 0]);
}

fn weights() -> impl Strategy<Value = BTreeMap<u8, Weight>> {
    let weight = (0..2_000u64, 0..=100u64, 1..=100u64);
    let weight = weight.prop_map(|(all, percent, grown)| {
        let able = all * percent / 100;
        Weight {
            all,
            healthy: (able * grown).div_ceil(100),
            able,
        }
    });
    prop::collection::btree_map(0..6u8, weight, 0..5)
}

fn failback() -> impl Strategy<Value = Failback> {
    prop_oneof![Just(AUTOMATIC), Just(MANUAL), Just(LATER)]
}

proptest! {
    #[test]
    fn shares_are_whole_if_anybody_is_healthy_and_nobody_who_is_not_has_some(
        turns in prop::collection::vec((weights(), 0..=100u8, failback(), 0..4u8, 0..60_000u32), 1..20),
    ) {
        let (mut machine, mut now) = (Machine::default(), 0);
        for (weights, spill_below, failback, from, passed) in turns {
            now += passed;
            let policy = Policy { spill_below, failback, from };
            let shares = machine.turn(&weights, policy, now);
            let healthy = weights.values().any(|weight| weight.healthy > 0);
            let sum: u32 = shares.values().map(|&share| u32::from(share)).sum();
            prop_assert_eq!(sum, if healthy { WHOLE.into() } else { 0 });
            for (tier, weight) in &weights {
                prop_assert!(weight.healthy > 0 || shares[tier] == 0);
            }
            // Nothing but news changes anything, but for time.
            prop_assert_eq!(machine.clone().turn(&weights, policy, now), shares);
        }
    }

    #[test]
    fn with_automatic_failback_the_past_means_nothing(
        past in prop::collection::vec((weights(), failback(), 0..60_000u32), 0..10),
        weights in weights(),
        spill_below in 0..=100u8,
    ) {
        let mut machine = Machine::default();
        for (weights, failback, now) in past {
            machine.turn(&weights, policy(failback), now);
        }
        let policy = Policy { spill_below, ..policy(AUTOMATIC) };
        let fresh = Machine::default().turn(&weights, policy, 0);
        prop_assert_eq!(machine.turn(&weights, policy, 0), fresh);
    }

    #[test]
    fn with_manual_failback_the_first_tier_never_gains_while_the_second_stands(
        healthy in prop::collection::vec((0..=10u64, 1..=10u64), 1..30),
    ) {
        let (mut machine, mut before) = (Machine::default(), WHOLE);
        for (first, second) in healthy {
            let shares = turn(&mut machine, [first, second], policy(MANUAL), 0);
            // What the second cannot carry the first may have, and keep.
            if second >= 7 {
                prop_assert!(shares[0] <= before, "{} after {before}", shares[0]);
            }
            before = shares[0];
        }
    }

    #[test]
    fn the_worse_a_tier_the_less_it_gets(one in 0..=1_000u64, other in 0..=1_000u64, spill_below in 0..=100u8) {
        let share = |healthy| {
            let weights = [(0, Weight { all: 1_000, healthy, able: healthy }), (1, ten(10))].into();
            let policy = Policy { spill_below, ..policy(AUTOMATIC) };
            Machine::default().turn(&weights, policy, 0)[&0]
        };
        let (worse, better) = (one.min(other), one.max(other));
        prop_assert!(share(worse) <= share(better));
    }
}
