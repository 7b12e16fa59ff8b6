//! Pools of which few are healthy.

use lb_common::tables::state;
use lb_userspace::{
    capacity::{self, Resource},
    health::{
        Event,
        reply::{Asked, Wants},
    },
    model::{Admin, Change, Settings},
    neighbours::Update,
    snapshot::{BackendState, Condition, Happened, PanicStatus},
};

use crate::pool::{Pool, address, event, id};

const PANIC: &str = "panic_below = 50\ndead_after = \"10s\"";

fn failing(keys: &str, backends: &[&str], down: impl IntoIterator<Item = u8>) -> Pool {
    let mut pool = Pool::new(keys, backends);
    down.into_iter().for_each(|n| pool.down(n));
    pool
}

fn panic(pool: &Pool) -> Option<PanicStatus> {
    pool.core.service(id()).unwrap().panic
}

/// What was told of the pool as a whole.
fn told(pool: &Pool) -> Vec<String> {
    let events = pool.events().into_iter();
    let panics = events.filter(|event| event.what == Happened::Panic);
    panics.map(|event| event.reason).collect()
}

#[test]
fn below_the_threshold_those_that_are_down_are_used_and_no_more_once_enough_are_back() {
    let mut pool = failing(PANIC, &[""; 4], [1, 2]);
    assert_eq!(pool.shares(), [0, 0, 50, 50]);
    assert_eq!(panic(&pool), None);
    pool.down(3);
    assert_eq!(pool.shares(), [25; 4]);
    let status = PanicStatus {
        healthy_percent: 25,
        used: 3,
    };
    assert_eq!(panic(&pool), Some(status));
    assert_eq!(pool.reason(1), "timed out; takes flows in panic");
    let standing = pool.status(1).standing.unwrap();
    assert_eq!(standing.state, BackendState::Down);
    pool.up(1);
    assert_eq!(pool.shares(), [50, 0, 0, 50]);
    assert_eq!(panic(&pool), None);
    assert_eq!(pool.reason(2), "timed out");
    let expected = [
        "panic: 25% of the weight is healthy, below 50%: 3 backends that are down are used as well",
        "panic is over: backends that are down are used no more",
    ];
    assert_eq!(told(&pool), expected);
}

#[test]
fn in_panic_the_capacity_of_those_that_are_used_counts_and_none_is_to_spare() {
    let figures = |pool: &Pool| {
        let capacity = capacity::of(&pool.core.service(id()).unwrap()).unwrap();
        let by = capacity.uses[&Resource::Connections];
        (by.most, capacity.headroom())
    };
    let mut pool = failing(PANIC, &[", max_connections = 100"; 4], [1, 2]);
    assert_eq!(figures(&pool), (Some(200), Some(1)));
    pool.down(3);
    assert_eq!(figures(&pool), (Some(400), Some(0)));
    let used: Vec<bool> = (1..=4).map(|n| pool.status(n).used_in_panic).collect();
    assert_eq!(used, [true, true, true, false]);
    pool.refuses(1);
    assert_eq!(figures(&pool), (Some(300), Some(0)), "nobody is there");
    pool.up(1);
    pool.up(2);
    assert_eq!(figures(&pool), (Some(300), Some(2)));
}

#[test]
fn who_no_way_leads_to_is_missed_and_not_used() {
    let mut pool = Pool::new(PANIC, &[""; 2]);
    pool.add(101, 1);
    pool.core.network(Update::NextHop {
        address: address(101).ip(),
        next_hop: None,
        reason: None,
    });
    pool.up(101);
    pool.pass(4);
    assert_eq!(panic(&pool), None, "two thirds are healthy");
    pool.down(1);
    let status = panic(&pool).unwrap();
    assert_eq!((status.healthy_percent, status.used), (33, 1));
    assert!(pool.takes(1) && !pool.takes(101));
}

#[test]
fn with_everybody_down_everybody_is_used_and_without_the_setting_nobody() {
    let pool = failing(PANIC, &[""; 3], 1..=3);
    assert_eq!(pool.shares(), [33; 3]);
    let pool = failing("", &[""; 3], 1..=3);
    assert_eq!(pool.shares(), [0; 3]);
    assert_eq!(told(&pool), [""; 0]);
}

#[test]
fn the_failure_that_begins_a_panic_takes_no_flow_from_anybody_for_a_moment() {
    let mut pool = failing(PANIC, &[""; 2], [1]);
    let failure = event(2, Condition::Down);
    assert!(pool.core.health(failure), "the rings must follow");
    assert!(pool.takes(2));
}

#[test]
fn weights_count_and_not_heads() {
    let heavy = [", weight = 10", "", "", ""];
    assert_eq!(panic(&failing(PANIC, &heavy, 2..=4)), None);
    assert!(panic(&failing(PANIC, &heavy, [1])).is_some());
    let ignored = format!("{PANIC}\nscheduler = \"least-connections\"");
    assert_eq!(panic(&failing(&ignored, &heavy, [1])), None);
}

#[test]
fn who_is_kept_out_by_people_or_its_agent_is_neither_used_nor_missed() {
    let mut pool = failing(PANIC, &[""; 6], []);
    for (n, admin) in [
        (1, Admin::Draining),
        (2, Admin::Maintenance),
        (3, Admin::Down),
    ] {
        pool.ask(n, admin);
    }
    let asked = Asked {
        wants: Some(Wants::Drain),
        ..Asked::default()
    };
    pool.check(Event {
        asked,
        ..event(4, Condition::Down)
    });
    assert_eq!(panic(&pool), None, "5 and 6 are all that there is");
    pool.down(1);
    pool.down(5);
    pool.down(6);
    assert_eq!(panic(&pool).map(|panic| panic.used), Some(2));
    assert_eq!(pool.shares(), [0, 0, 0, 0, 50, 50]);
}

#[test]
fn who_refuses_is_not_used_however_few_are_left() {
    let mut pool = failing(PANIC, &[""; 4], [1, 2]);
    pool.refuses(3);
    assert_eq!(pool.shares(), [33, 33, 0, 33]);
    assert_eq!(pool.state(3), 0);
    pool.refuses(1);
    assert_eq!((pool.state(1), pool.takes(2)), (0, true));
}

#[test]
fn nobody_is_dead_by_time_in_panic_and_the_time_begins_anew_after_it() {
    let mut pool = failing(PANIC, &[""; 4], [1, 2]);
    pool.pass(11);
    assert_eq!(pool.state(1), 0, "dead");
    pool.down(3);
    assert!((1..=4).all(|n| pool.takes(n)));
    pool.pass(20);
    assert!((1..=4).all(|n| pool.takes(n)));
    pool.up(3);
    assert_eq!(pool.shares(), [0, 0, 50, 50]);
    assert_eq!(pool.state(1), state::HOLDS, "it keeps what it was given");
    pool.pass(9);
    assert_eq!(pool.state(1), state::HOLDS);
    pool.pass(2);
    assert_eq!(pool.state(1), 0);
}

#[test]
fn who_is_drained_in_panic_keeps_what_it_was_given_however_long_it_had_been_down() {
    let mut pool = failing(PANIC, &[""; 4], [1, 2]);
    pool.pass(11);
    pool.down(3);
    assert!(pool.takes(1));
    pool.ask(1, Admin::Draining);
    assert_eq!((pool.state(1), pool.takes(2)), (state::HOLDS, true));
    pool.ask(1, Admin::Active);
    assert!(pool.takes(1));
}

#[test]
fn where_nobody_could_be_used_beside_those_who_are_healthy_there_is_no_panic() {
    let mut pool = failing(PANIC, &[""; 4], []);
    (1..=3).for_each(|n| pool.refuses(n));
    assert_eq!(pool.shares(), [0, 0, 0, 100]);
    assert_eq!((panic(&pool), told(&pool)), (None, Vec::new()));
    pool.refuses(4);
    assert_eq!(panic(&pool), None);
}

#[test]
fn standbys_come_first_and_in_panic_tiers_are_left_aside() {
    let tiers = ["", "", ", tier = 1", ", tier = 1, weight = 2"];
    let mut pool = failing(PANIC, &tiers, [1, 2]);
    assert_eq!(pool.shares(), [0, 0, 33, 67]);
    assert_eq!(panic(&pool), None);
    pool.down(4);
    assert_eq!(panic(&pool).map(|panic| panic.healthy_percent), Some(33));
    assert_eq!(pool.shares(), [20, 20, 20, 40]);
    let tiers = pool.core.service(id()).unwrap().tiers;
    let shown: Vec<(usize, u16)> = tiers.iter().map(|t| (t.healthy, t.share)).collect();
    assert_eq!(shown, [(0, 400), (1, 600)]);
    pool.up(4);
    assert_eq!(pool.shares(), [0, 0, 33, 67]);
    pool.up(1);
    pool.up(2);
    assert_eq!(pool.shares(), [50, 50, 0, 0]);
}

#[test]
fn a_tier_that_was_failed_over_from_is_not_used_in_panic_either() {
    let mut pool = failing(PANIC, &["", ", tier = 1", ", tier = 1", ", tier = 1"], []);
    pool.change(Change::FailOver(id(), 1));
    pool.down(1);
    pool.down(2);
    pool.down(3);
    assert_eq!(pool.shares(), [0, 33, 33, 33]);
    assert_eq!(panic(&pool).map(|panic| panic.used), Some(2));
    pool.up(1);
    pool.down(4);
    assert_eq!(pool.shares(), [100, 0, 0, 0], "nobody else is left");
}

#[test]
fn in_panic_nobody_begins_slowly_and_who_recovers_in_it_keeps_its_weight() {
    let mut pool = failing(
        &format!("{PANIC}\nslow_start = \"90s\""),
        &[""; 4],
        [1, 2, 3],
    );
    assert_eq!(pool.shares(), [25; 4]);
    pool.up(1);
    assert_eq!(pool.shares(), [50, 0, 0, 50]);
    pool.up(2);
    assert_eq!(pool.shares(), [48, 5, 0, 48], "after it, as ever");
}

#[test]
fn the_setting_is_changed_while_the_pool_fails() {
    let below = |percent| Settings {
        panic_below: Some(percent),
        ..Settings::default()
    };
    let mut pool = failing("", &[""; 4], [1, 2, 3]);
    pool.set(below(26));
    assert_eq!(pool.shares(), [25; 4]);
    pool.set(below(25));
    assert_eq!(pool.shares(), [0, 0, 0, 100]);
    pool.set(below(100));
    assert_eq!(pool.shares(), [25; 4]);
    pool.set(below(0));
    assert_eq!(pool.shares(), [0, 0, 0, 100]);
    assert_eq!(told(&pool).len(), 4);
}

#[test]
fn who_was_used_in_panic_is_judged_anew_by_a_restarted_agent() {
    let pool = failing(PANIC, &[""; 4], [1, 2, 3]);
    let mut pool = pool.restart();
    assert_eq!(pool.shares(), [25; 4]);
    (1..=3).for_each(|n| pool.down(n));
    assert_eq!(pool.shares(), [25; 4]);
    assert!(panic(&pool).is_some());
}

#[test]
fn a_refused_change_leaves_the_panic_as_it_was() {
    let mut pool = failing(PANIC, &[""; 4], [1, 2, 3]);
    let at = pool.core.dataplane().executed;
    pool.core.dataplane_mut().fail_at = Some(at);
    let off = Settings {
        panic_below: Some(0),
        ..Settings::default()
    };
    pool.core
        .change(Change::EditService(id(), off))
        .unwrap_err();
    pool.core.enforce().unwrap();
    assert_eq!(pool.shares(), [25; 4]);
    assert!(panic(&pool).is_some());
}

#[test]
fn of_news_that_come_together_the_pool_is_judged_once() {
    let mut pool = failing(PANIC, &[""; 4], [1, 2]);
    let news = vec![event(3, Condition::Down), event(1, Condition::Up)];
    assert!(pool.core.health_of_all(news), "the rings must follow");
    assert!(!pool.takes(3), "half is healthy all the while");
    pool.core.enforce().unwrap();
    assert_eq!(pool.shares(), [50, 0, 0, 50]);
    assert_eq!((panic(&pool), told(&pool).len()), (None, 0));
}

#[test]
fn of_many_that_fail_together_each_takes_no_new_flow_before_the_rings_follow() {
    let mut pool = Pool::new("", &[""; 20]);
    let news = (1..=15).map(|n| event(n, Condition::Down)).collect();
    assert!(pool.core.health_of_all(news));
    let taking: Vec<u8> = (1..=20).filter(|&n| pool.takes(n)).collect();
    assert_eq!(taking, [16, 17, 18, 19, 20]);
}
