use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn settings(seed: u64, changes: usize) -> Settings {
    Settings {
        seed,
        changes,
        pace: Duration::from_millis(500),
        rest: Duration::ZERO,
        kinds: Kind::all().collect(),
        services: 2,
        backends: 6,
    }
}

#[test]
fn same_seed_gives_the_same_plan_and_another_seed_another() {
    let steps = |seed| Plan::draw(&settings(seed, 100)).steps;
    assert_eq!(steps(1), steps(1));
    assert_ne!(steps(1), steps(2));
}

#[test]
fn a_plan_has_as_many_changes_as_asked_for() {
    assert_eq!(Plan::draw(&settings(1, 0)).changes().count(), 0);
    assert_eq!(Plan::draw(&settings(1, 137)).changes().count(), 137);
}

#[test]
fn kinds_that_cannot_be_carried_out_are_left_out() {
    let mut settings = settings(3, 500);
    settings.kinds.retain(|&kind| kind != Kind::RingSize);
    let plan = Plan::draw(&settings);
    assert!(plan.changes().all(|change| change.kind() != Kind::RingSize));
}

#[test]
fn a_plan_ends_early_where_nothing_more_makes_sense() {
    let only = |kinds: &[Kind]| {
        let mut settings = settings(1, 100);
        settings.kinds = kinds.to_vec();
        Plan::draw(&settings).changes().count()
    };
    assert_eq!(only(&[Kind::Revive]), 0);
    assert_eq!(only(&[Kind::Kill]), 2);
    assert_eq!(only(&[Kind::FalseAlarm]), 100);
    assert_eq!(only(&[Kind::Kill, Kind::Revive]), 100);
}

#[test]
fn a_short_run_has_every_kind_that_needs_no_preparation() {
    for seed in 0..50 {
        let plan = Plan::draw(&settings(seed, 30));
        let kinds: BTreeSet<Kind> = plan.changes().map(|change| change.kind()).collect();
        for kind in [
            Kind::Add,
            Kind::Remove,
            Kind::Weight,
            Kind::Kill,
            Kind::FalseAlarm,
        ] {
            assert!(kinds.contains(&kind), "seed {seed} lacks {kind}: {kinds:?}");
        }
    }
}

#[test]
fn changes_that_move_all_slots_leave_half_of_each_stretch_to_the_others() {
    let plan = Plan::draw(&settings(1, 200));
    let kinds: Vec<Kind> = plan.changes().map(|change| change.kind()).collect();
    for stretch in kinds.chunks(REST_EVERY) {
        let (first, second) = stretch.split_at(REST_EVERY / 2);
        assert!(!first.iter().any(|kind| kind.moves_all()), "{first:?}");
        assert!(second.contains(&Kind::RingSize), "{second:?}");
        assert!(second.contains(&Kind::Scheduler), "{second:?}");
    }
}

#[test]
fn changes_that_move_all_slots_do_not_wait_for_others_that_are_not_there() {
    let mut settings = settings(1, 100);
    settings.kinds = vec![Kind::RingSize, Kind::Scheduler];
    assert_eq!(Plan::draw(&settings).changes().count(), 100);
}

#[test]
fn some_changes_come_in_bursts_and_the_others_at_the_pace() {
    let plan = Plan::draw(&settings(1, 400));
    let bursts = plan
        .steps
        .iter()
        .filter(|step| step.pause < Duration::from_millis(60));
    assert!((40..250).contains(&bursts.count()));
    let longest = plan.steps.iter().map(|step| step.pause).max();
    assert!(longest <= Some(Duration::from_secs(3)), "{longest:?}");
}

#[test]
fn every_fifty_changes_nothing_happens_for_a_while() {
    let mut settings = settings(1, 151);
    settings.rest = Duration::from_secs(12);
    let plan = Plan::draw(&settings);
    // What ends within a rest divides it.
    let rested = |step: &&Step| step.pause > Duration::from_secs(5);
    assert_eq!(plan.steps.iter().filter(rested).count(), 3);
}

#[test]
fn a_change_of_weight_changes_it() {
    let plan = Plan::draw(&settings(5, 1_000));
    let mut weights: BTreeMap<(usize, u8), u16> = BTreeMap::new();
    for (service, pool) in plan.pools.iter().enumerate() {
        weights.extend(
            pool.iter()
                .map(|(&backend, member)| ((service, backend), member.weight)),
        );
    }
    for change in plan.changes() {
        let (service, backend, weight) = match change {
            Change::Weight {
                service,
                backend,
                weight,
            } => {
                assert_ne!(weights[&(service, backend)], weight, "{change:?}");
                (service, backend, weight)
            }
            Change::Add {
                service,
                backend,
                weight,
            } => (service, backend, weight),
            _ => continue,
        };
        assert!((1..=MAX_WEIGHT).contains(&weight));
        weights.insert((service, backend), weight);
    }
}

proptest! {
    #[test]
    fn every_alarm_and_stall_ends_and_nothing_else_befalls_its_backend_meanwhile(seed: u64) {
        let mut troubled: BTreeMap<u8, Kind> = BTreeMap::new();
        for step in Plan::draw(&settings(seed, 200)).steps {
            let kinds: BTreeSet<_> = troubled.values().collect();
            prop_assert!(kinds.len() <= 1, "stalled until an alarm is noticed: {:?}", troubled);
            match step.action {
                Action::Change(Change::FalseAlarm { backend, .. }) => {
                    prop_assert_eq!(troubled.insert(backend, Kind::FalseAlarm), None);
                }
                Action::Change(Change::Stall { backend }) => {
                    prop_assert_eq!(troubled.insert(backend, Kind::Stall), None);
                }
                Action::Change(Change::Kill { backend } | Change::Revive { backend }) => {
                    prop_assert_eq!(troubled.get(&backend), None);
                }
                Action::Change(Change::AgentRestart) => {
                    prop_assert!(!troubled.values().any(|&kind| kind == Kind::Stall));
                }
                Action::AlarmEnds(backend) => {
                    prop_assert_eq!(troubled.remove(&backend), Some(Kind::FalseAlarm));
                }
                Action::StallEnds(backend) => {
                    prop_assert_eq!(troubled.remove(&backend), Some(Kind::Stall));
                }
                Action::Change(_) => {}
            }
        }
        prop_assert_eq!(troubled, BTreeMap::new());
    }

    #[test]
    fn every_change_fits_the_state_and_leaves_each_service_backends_to_use(seed: u64) {
        let plan = Plan::draw(&settings(seed, 200));
        let mut fleet = Fleet::new(2, 6);
        prop_assert_eq!(fleet.pools(), &plan.pools);
        let mut now = Duration::ZERO;
        for Step { pause, action } in plan.steps {
            now += pause;
            match action {
                Action::Change(change) => {
                    let same_kind = fleet.candidates(change.kind(), now);
                    let fits = same_kind.iter().any(|candidate| same_place(candidate, &change));
                    prop_assert!(fits, "{:?} at {:?}", change, now);
                    fleet.apply(&change, now + RECOVERY);
                }
                Action::AlarmEnds(backend) | Action::StallEnds(backend) => {
                    fleet.recover(backend, now + RECOVERY);
                }
            }
            for service in 0..2 {
                prop_assert!(fleet.usable(service, now).count() >= MIN_USABLE);
            }
        }
    }
}

/// Whether two changes of one kind are about the same backend and service.
fn same_place(one: &Change, other: &Change) -> bool {
    let place = |change: &Change| match *change {
        Change::Add {
            service, backend, ..
        }
        | Change::Remove { service, backend }
        | Change::Weight {
            service, backend, ..
        }
        | Change::Drain { service, backend }
        | Change::Undrain { service, backend } => (Some(service), Some(backend)),
        Change::Kill { backend }
        | Change::Revive { backend }
        | Change::FalseAlarm { backend, .. }
        | Change::Stall { backend } => (None, Some(backend)),
        Change::RingSize { service, .. } | Change::Scheduler { service, .. } => {
            (Some(service), None)
        }
        Change::AgentRestart => (None, None),
    };
    place(one) == place(other)
}
