//! What is held against backends, over a restart of the agent.

use std::{sync::atomic::Ordering, time::Duration};

use lb_common::tables::{feature, state};
use lb_userspace::{
    agent::{ChangeError, history::History},
    health::{
        Event, Target,
        reply::{Asked, Wants},
    },
    model::{Admin, Change, Mode, Passive, Service, Settings},
    snapshot::{BackendState, CheckStatus, Condition},
};

use crate::{
    damping::{self, DAMPING, failures, flap},
    passive::{self, PASSIVE, UNCHECKED, look, pool_of, refuse},
    pool::{Pool, address, event, id},
};

const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(3_600);

/// A pool whose third backend has failed three times and is kept out for 20 seconds.
fn kept_out() -> Pool {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 2);
    pool.down(3);
    pool.up(3);
    assert!(!pool.takes(3));
    pool
}

#[test]
fn who_has_failed_too_often_is_kept_out_over_a_restart_for_what_is_left_of_its_time() {
    let mut pool = kept_out();
    pool.pass(5);
    let mut pool = pool.restart_after(SOON);
    assert_eq!((pool.state(3), failures(&pool, 3)), (state::HOLDS, 3));
    (1..=3).for_each(|n| pool.up(n));
    let reason = "its checks have to pass for 20s first: it has failed 3 times of late";
    assert_eq!(pool.reason(3), reason);
    assert_eq!(pool.shares(), [50, 50, 0]);
    assert_eq!(damping::waits(&mut pool, 3), 13);
    // And waits for longer the next time.
    pool.down(3);
    pool.up(3);
    assert_eq!(damping::waits(&mut pool, 3), 40);
}

#[test]
fn time_in_which_no_agent_runs_passes_too() {
    let mut pool = kept_out().restart_after(Duration::from_secs(30));
    assert!(!pool.takes(3), "it has to pass its checks");
    pool.pass(1);
    pool.up(3);
    assert!(pool.takes(3));
    assert_eq!(failures(&pool, 3), 3);
    let mut pool = kept_out().restart_after(LATER);
    pool.pass(1);
    pool.up(3);
    assert!(pool.takes(3));
    // Nobody knows whether it was well meanwhile.
    assert_eq!(failures(&pool, 3), 3);
}

#[test]
fn who_fails_when_the_agent_ends_waits_once_it_passes_and_that_is_no_further_failure() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    // The second one knows only by the first that it failed.
    let mut pool = pool.restart_after(SOON).restart_after(SOON);
    pool.up(3);
    assert_eq!((pool.takes(3), failures(&pool, 3)), (false, 2));
    assert_eq!(damping::waits(&mut pool, 3), 10);
    pool.down(3);
    let mut pool = pool.restart_after(SOON);
    pool.down(3);
    assert_eq!(failures(&pool, 3), 3);
    pool.up(3);
    assert_eq!(damping::waits(&mut pool, 3), 20);
}

#[test]
fn who_fails_and_is_used_in_panic_when_the_agent_ends_has_not_failed_once_more() {
    let keys = format!("{DAMPING}\npanic_below = 70");
    let mut pool = Pool::new(&keys, &[""; 2]);
    flap(&mut pool, 2, 1);
    pool.down(2);
    assert!(pool.takes(2), "panic");
    let mut pool = pool.restart_after(SOON);
    assert!(pool.takes(2));
    pool.down(2);
    assert_eq!(failures(&pool, 2), 2);
}

#[test]
fn who_is_ejected_stays_so_over_a_restart_and_is_on_probation_afterwards() {
    for keys in [PASSIVE, UNCHECKED] {
        let mut pool = pool_of(keys, 3);
        refuse(&pool, 3, 3);
        look(&mut pool, 10);
        look(&mut pool, 3_000);
        let mut pool = pool.restart_after(SOON);
        assert_eq!(pool.state(3), state::HOLDS, "{keys}");
        (1..=3).for_each(|n| pool.up(n));
        look(&mut pool, 10);
        let standing = pool.status(3).standing.unwrap();
        let reason = "ejected for 10s: 3 connections in a row were refused";
        assert_eq!(
            (standing.state, standing.reason.as_str()),
            (BackendState::Down, reason),
            "{keys}"
        );
        assert_eq!(pool.shares(), [50, 50, 0]);
        let waited = passive::waits(&mut pool, 3);
        assert!((4..=6).contains(&waited), "{waited}, {keys}");
        // What it has shown before the restart is paid for; one refusal more is enough, and for longer.
        look(&mut pool, 10);
        assert!(pool.takes(3));
        refuse(&pool, 3, 1);
        look(&mut pool, 10);
        assert_eq!(pool.reason(3), "ejected for 20s: a connection was refused");
    }
}

#[test]
fn an_ejection_that_is_over_is_forgotten_in_its_time_over_a_restart() {
    let mut pool = pool_of(UNCHECKED, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    passive::waits(&mut pool, 3);
    let ejections = |pool: &Pool| pool.status(3).passive.unwrap().ejections;
    assert_eq!(ejections(&pool), 1);
    let mut pool = pool.restart_after(SOON);
    look(&mut pool, 10);
    assert!(pool.takes(3));
    assert_eq!(ejections(&pool), 1);
    look(&mut pool, 9_000);
    assert_eq!(ejections(&pool), 0);
}

#[test]
fn who_was_forced_down_is_dead_in_the_time_since_then_and_stays_so() {
    let mut pool = Pool::new("dead_after = \"60s\"", &[""; 2]);
    pool.ask(2, Admin::Down);
    pool.pass(20);
    let mut pool = pool.restart_after(Duration::from_secs(20));
    (1..=2).for_each(|n| pool.up(n));
    assert_eq!(pool.state(2), state::HOLDS);
    pool.pass(19);
    assert_eq!(pool.state(2), state::HOLDS);
    pool.pass(2);
    assert_eq!(pool.state(2), 0);
    let mut pool = pool.restart_after(SOON);
    (1..=2).for_each(|n| pool.up(n));
    assert_eq!(pool.state(2), 0, "its checks say nothing here");
    // Nor does another change revive it.
    pool.ask(1, Admin::Draining);
    assert_eq!(pool.state(2), 0);
    pool.ask(2, Admin::Active);
    assert!(pool.takes(2));
}

#[test]
fn who_was_forced_up_still_is_against_its_checks() {
    let mut pool = Pool::new("", &[""; 2]);
    pool.ask(2, Admin::Up);
    pool.down(2);
    let mut pool = pool.restart_after(SOON);
    assert!(pool.takes(2));
    pool.down(2);
    assert!(pool.takes(2));
}

#[test]
fn nothing_is_known_of_backends_and_settings_that_are_no_more() {
    let mut pool = kept_out();
    pool.change(Change::RemoveBackend(id(), address(2)));
    let elsewhere = |mut history: History<Duration>| {
        for of in &mut history.flaps {
            of.backend = address(2);
        }
        history
    };
    let mut pool = pool.restart_with(SOON, elsewhere);
    pool.up(3);
    assert!(pool.takes(3));
    assert!(pool.core.history().is_empty());
    let off = Settings {
        flap_damping: Some("off".parse().unwrap()),
        passive: Some(Passive::default()),
        ..Settings::default()
    };
    let mut pool = kept_out();
    let mut left = None;
    pool.restart_with(SOON, |history| {
        left = Some(history.clone());
        history
    });
    pool = Pool::new("", &[""; 3]).restart_with(SOON, |_| left.unwrap_or_default());
    pool.set(off);
    assert!(pool.takes(3) && pool.core.history().is_empty());
}

#[test]
fn counts_that_no_agent_would_come_to_are_bounded_by_the_longest_time() {
    let mut pool = kept_out();
    pool.pass(1);
    let many = |mut history: History<Duration>| {
        history.flaps[0].failures = u32::MAX;
        history
    };
    let mut pool = pool.restart_with(SOON, many);
    pool.up(3);
    assert_eq!(failures(&pool, 3), 5);
    assert!(damping::waits(&mut pool, 3) <= 60);
    let mut pool = pool_of(UNCHECKED, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    let many = |mut history: History<Duration>| {
        history.ejections[0].times = u32::MAX;
        history
    };
    let mut pool = pool.restart_with(SOON, many);
    pool.up(3);
    assert!(passive::waits(&mut pool, 3) <= 300);
    assert_eq!(pool.status(3).passive.unwrap().ejections, 30);
}

#[test]
fn what_is_known_under_the_former_first_service_of_a_group_counts_under_the_new_one() {
    let mut pool = kept_out();
    let both = pool.behind_another();
    let first = both[0].id;
    let history = crate::reach::left_behind(&pool.core, SOON);
    let maps = std::mem::take(pool.core.dataplane_mut());
    pool.core = crate::pool::agent_over(maps);
    pool.core.recall(history);
    pool.change(Change::Replace(both.to_vec()));
    assert_eq!(pool.core.state().lead(id()), first);
    assert_eq!(failures(&pool, 3), 3);
}

#[test]
fn what_was_known_is_not_lost_with_a_first_change_that_is_refused() {
    let mut pool = kept_out();
    pool.pass(5);
    let history = crate::reach::left_behind(&pool.core, SOON);
    let wanted: Vec<Service> = pool.core.state().services().cloned().collect();
    let maps = std::mem::take(pool.core.dataplane_mut());
    maps.without.store(feature::GUE, Ordering::Relaxed);
    pool.core = crate::pool::agent_over(maps);
    pool.core.recall(history);
    let other = Service::new("10.0.0.9:80/tcp".parse().unwrap(), Mode::Gue);
    let more = wanted.iter().cloned().chain([other]);
    let refused = pool.core.change(Change::Replace(more.collect()));
    assert!(matches!(refused, Err(ChangeError::NotLoaded(_))));
    pool.pass(3);
    pool.change(Change::Replace(wanted));
    assert_eq!((pool.state(3), failures(&pool, 3)), (state::HOLDS, 3));
    pool.up(3);
    assert_eq!(damping::waits(&mut pool, 3), 10);
}

#[test]
fn who_was_down_is_dead_in_the_time_since_it_failed_once_its_checks_have_failed_again() {
    let mut pool = Pool::new("dead_after = \"60s\"", &[""; 2]);
    pool.down(2);
    pool.pass(20);
    // And over a second restart before its checks have said anything.
    let mut pool = pool
        .restart_after(SOON)
        .restart_after(Duration::from_secs(45));
    pool.pass(5);
    assert_eq!(pool.state(2), state::HOLDS, "it may be well by now");
    let proving = Event {
        checks: vec![CheckStatus::new("tcp".to_owned(), Condition::Down)],
        ..event(2, Condition::Down)
    };
    pool.check(proving);
    pool.pass(2);
    assert_eq!(
        pool.state(2),
        state::HOLDS,
        "it has not failed often enough"
    );
    pool.down(2);
    pool.pass(1);
    assert_eq!(pool.state(2), 0);
    let mut pool = Pool::new("dead_after = \"60s\"", &[""; 2]);
    pool.down(2);
    let mut pool = pool.restart_after(LATER);
    pool.up(2);
    assert!(pool.takes(2));
    pool.down(2);
    pool.pass(59);
    assert_eq!(pool.state(2), state::HOLDS, "another failure");
}

#[test]
fn who_refused_is_used_in_no_panic_after_a_restart() {
    let mut pool = Pool::new("panic_below = 100", &[""; 3]);
    pool.refuses(3);
    let mut pool = pool.restart_after(SOON);
    pool.down(2);
    assert!(pool.takes(2), "panic");
    assert_eq!(pool.state(3), 0);
}

const AGENT: &str = "health = { type = \"agent\", port = 9777 }";

#[test]
fn what_agents_have_asked_for_stays_over_a_restart_until_they_say_otherwise() {
    let mut pool = Pool::new(AGENT, &[""; 3]);
    let asked = Asked {
        weight: Some(50),
        wants: Some(Wants::Drain),
        says_down: true,
        ..Asked::default()
    };
    pool.check(Event {
        asked,
        ..event(3, Condition::Up)
    });
    assert!(!pool.takes(3));
    let mut pool = pool.restart_after(LATER);
    pool.check(Event {
        asked: pool.asked(3),
        ..event(3, Condition::Up)
    });
    assert_eq!((pool.asked(3), pool.takes(3)), (asked, false));
    assert_eq!(pool.reason(3), "its agent asks for it");
    pool.check(event(3, Condition::Up));
    assert!(pool.takes(3));
    assert!(pool.core.history().is_empty());
}

#[test]
fn what_agents_have_asked_for_goes_with_the_first_service_of_a_group() {
    let mut pool = Pool::new(&format!("group = \"web\"\n{AGENT}"), &[""; 2]);
    let mut second = pool.core.state().service(id()).unwrap().clone();
    second.id = "10.0.0.2:80/tcp".parse().unwrap();
    let second_id = second.id;
    pool.change(Change::AddService(second));
    let asked = Asked {
        says_down: true,
        ..Asked::default()
    };
    pool.check(Event {
        asked,
        ..event(2, Condition::Down)
    });
    pool.change(Change::RemoveService(id()));
    let target = Target {
        service: second_id,
        address: address(2),
    };
    let targets = pool.core.targets();
    let config = &targets[&target];
    assert_eq!((config.asked, config.initial), (asked, Condition::Down));
}

#[test]
fn what_agents_have_asked_for_is_nothing_to_a_service_without_them() {
    let mut pool = Pool::new(AGENT, &[""; 2]);
    let asked = Asked {
        wants: Some(Wants::Drain),
        ..Asked::default()
    };
    pool.check(Event {
        asked,
        ..event(2, Condition::Up)
    });
    let history = crate::reach::left_behind(&pool.core, SOON);
    let pool = Pool::new("", &[""; 2]).restart_with(SOON, |_| history);
    assert_eq!(pool.asked(2), Asked::default());
}

#[test]
fn who_failed_when_the_agent_ended_waits_though_its_group_has_another_first_service_since() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    let mut pool = pool.restart_after(SOON);
    let both = pool.behind_another();
    let service = both[0].id;
    pool.change(Change::Replace(both.to_vec()));
    let up = event(3, Condition::Up);
    let target = Target {
        service,
        ..up.target
    };
    pool.check(Event { target, ..up });
    assert_eq!((pool.takes(3), failures(&pool, 3)), (false, 2));
    assert_eq!(damping::waits(&mut pool, 3), 10);
}

#[test]
fn who_is_not_forced_down_any_more_is_not_for_what_was_kept() {
    let mut pool = Pool::new("dead_after = \"60s\"", &[""; 2]);
    pool.ask(2, Admin::Down);
    let mut left = History::default();
    let mut pool = pool.restart_with(SOON, |history| {
        left = history.clone();
        history
    });
    assert_eq!(pool.state(2), state::HOLDS);
    pool.ask(2, Admin::Active);
    (1..=2).for_each(|n| pool.up(n));
    let mut pool = pool.restart_with(SOON, |_| left);
    (1..=2).for_each(|n| pool.up(n));
    assert!(pool.takes(2));
    // Nor does its time count that somebody begins anew.
    pool.pass(50);
    pool.ask(2, Admin::Down);
    pool.pass(50);
    assert_eq!(pool.state(2), state::HOLDS);
}

#[test]
fn what_is_taken_up_is_so_once() {
    let mut pool = kept_out().restart_after(SOON);
    pool.up(3);
    pool.ask(3, Admin::Up);
    pool.ask(3, Admin::Active);
    assert_eq!((pool.takes(3), failures(&pool, 3)), (true, 0));
    assert!(pool.core.history().is_empty());
}

/// An agent that ran would have waited for as many.
#[test]
fn one_refusal_takes_no_flows_of_a_backend_that_was_kept_out_when_the_agent_ended() {
    let mut pool = kept_out().restart_after(SOON);
    let refuses = |fails| Event {
        dead: true,
        fails,
        checks: vec![CheckStatus::new("tcp".to_owned(), Condition::Down)],
        ..event(3, Condition::Down)
    };
    pool.check(refuses(false));
    assert_eq!(pool.state(3), state::HOLDS);
    pool.check(refuses(true));
    assert_eq!(pool.state(3), 0);
}

#[test]
fn who_is_new_when_the_agent_ends_still_has_to_pass_one_check_and_is_not_missed() {
    let mut pool = Pool::new("panic_below = 50", &[""; 2]);
    (3..=5).for_each(|n| pool.add(n, 1));
    // The second agent knows only by the first.
    let mut pool = pool.restart_after(SOON).restart_after(SOON);
    let states = |pool: &Pool| [3, 4, 5].map(|n| pool.status(n).standing.unwrap().state);
    assert_eq!(states(&pool), [BackendState::Starting; 3]);
    (1..=2).for_each(|n| pool.up(n));
    assert!((3..=5).all(|n| !pool.takes(n)), "no panic");
    let starts = |pool: &Pool, n| {
        let targets = pool.core.targets();
        let mut at = targets.iter().filter(|(at, _)| at.address == address(n));
        at.next().map(|(_, config)| config.initial)
    };
    assert_eq!(starts(&pool, 3), Some(Condition::Starting));
    pool.up(3);
    assert!(pool.takes(3) && !pool.takes(4));
}
