//! Backends that fail again and again.

use lb_common::tables::state;
use lb_userspace::{
    model::{Admin, Change, FlapDamping, ServiceId, Settings},
    snapshot::{BackendState, Condition, DampingStatus, Happened},
};

use crate::pool::{Pool, address, event, id};

pub const DAMPING: &str = "flap_damping = \"10s to 60s\"";

/// The backend goes down and comes up, so many times.
pub fn flap(pool: &mut Pool, n: u8, times: usize) {
    for _ in 0..times {
        pool.down(n);
        pool.up(n);
        // Until it is let in, and it has done nothing yet.
        while !pool.takes(n) {
            pool.pass(1);
        }
    }
}

/// Seconds until a backend takes flows after it came up.
pub fn waits(pool: &mut Pool, n: u8) -> u64 {
    let mut waited = 0;
    while !pool.takes(n) {
        pool.pass(1);
        waited += 1;
        assert!(waited < 1_000, "never");
    }
    waited
}

pub fn failures(pool: &Pool, n: u8) -> u32 {
    pool.status(n).damping.failures
}

#[test]
fn a_backend_that_fails_again_is_kept_out_longer_each_time_up_to_the_longest() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    let mut waited = Vec::new();
    for _ in 0..6 {
        pool.down(3);
        pool.up(3);
        waited.push(waits(&mut pool, 3));
    }
    assert_eq!(waited, [0, 10, 20, 40, 60, 60]);
    assert_eq!(pool.shares(), [33, 33, 33]);
}

#[test]
fn without_damping_it_comes_back_each_time() {
    let mut pool = Pool::new("", &[""; 3]);
    for _ in 0..6 {
        pool.down(3);
        pool.up(3);
        assert!(pool.takes(3));
    }
    assert_eq!(pool.status(3).damping, DampingStatus::default());
}

#[test]
fn who_is_kept_out_is_told_with_its_reason_and_keeps_its_flows() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 2);
    pool.down(3);
    pool.up(3);
    assert_eq!((pool.state(3), pool.shares()), (state::HOLDS, [50, 50, 0]));
    let reason = "its checks have to pass for 20s first: it has failed 3 times of late";
    let standing = pool.status(3).standing.unwrap();
    assert_eq!(
        (standing.state, standing.reason.as_str()),
        (BackendState::Down, reason)
    );
    assert_eq!(pool.status(3).condition, Condition::Up);
    pool.pass(5);
    assert_eq!(pool.status(3).damping.left.unwrap().as_secs(), 14);
    let events = pool.events();
    let last = events.last().unwrap();
    let backend = address(3);
    assert_eq!(
        (last.what, last.reason.as_str()),
        (Happened::Damped { backend }, reason)
    );
    pool.pass(16);
    assert_eq!(pool.reason(3), "its checks pass");
    assert_eq!(pool.status(3).damping.left, None);
    let turned = Happened::Turned {
        backend,
        from: BackendState::Down,
        to: BackendState::Up,
    };
    assert_eq!(pool.events().last().unwrap().what, turned);
}

#[test]
fn checks_have_to_pass_without_a_break_and_failing_meanwhile_is_not_counted() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    for _ in 0..5 {
        pool.up(3);
        pool.pass(9);
        assert!(!pool.takes(3));
        pool.down(3);
    }
    pool.up(3);
    assert_eq!((waits(&mut pool, 3), failures(&pool, 3)), (10, 2));
}

#[test]
fn a_failure_is_forgotten_for_each_longest_time_that_it_is_well() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 3);
    assert_eq!(failures(&pool, 3), 3);
    pool.pass(58);
    assert_eq!(failures(&pool, 3), 3);
    pool.pass(4);
    assert_eq!(failures(&pool, 3), 2);
    pool.down(3);
    pool.pass(200);
    assert_eq!(failures(&pool, 3), 3, "being down is not being well");
    pool.up(3);
    assert_eq!(waits(&mut pool, 3), 20);
    pool.pass(181);
    assert_eq!(failures(&pool, 3), 0);
    flap(&mut pool, 3, 1);
    assert!(pool.takes(3));
}

#[test]
fn people_override_it_and_what_they_have_looked_after_is_forgotten() {
    for admin in [Admin::Up, Admin::Maintenance] {
        let mut pool = Pool::new(DAMPING, &[""; 3]);
        flap(&mut pool, 3, 2);
        pool.down(3);
        pool.up(3);
        assert!(!pool.takes(3));
        pool.ask(3, admin);
        assert_eq!(pool.takes(3), admin == Admin::Up);
        pool.ask(3, Admin::Active);
        pool.up(3);
        assert!(pool.takes(3), "{admin:?}");
        assert_eq!(failures(&pool, 3), 0, "{admin:?}");
    }
}

#[test]
fn a_drain_meanwhile_changes_nothing_of_it() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    pool.up(3);
    pool.ask(3, Admin::Draining);
    pool.ask(3, Admin::Active);
    assert_eq!(waits(&mut pool, 3), 10);
}

#[test]
fn who_is_kept_out_is_used_while_nobody_else_is_left() {
    let mut pool = Pool::new(DAMPING, &[""; 2]);
    flap(&mut pool, 2, 2);
    pool.down(2);
    pool.up(2);
    assert_eq!(pool.shares(), [100, 0]);
    pool.down(1);
    assert_eq!(pool.shares(), [0, 100]);
    assert_eq!(pool.reason(2), "its checks pass");
    pool.up(1);
    assert_eq!(pool.shares(), [100, 0]);
    assert_eq!(waits(&mut pool, 2), 20, "its time goes on");
}

#[test]
fn a_standby_takes_over_from_a_primary_that_is_kept_out() {
    let mut pool = Pool::new(DAMPING, &["", ", tier = 1"]);
    flap(&mut pool, 1, 1);
    pool.down(1);
    pool.up(1);
    assert_eq!(pool.shares(), [0, 100]);
    assert_eq!(waits(&mut pool, 1), 10);
    assert_eq!(pool.shares(), [100, 0]);
}

#[test]
fn before_a_pool_panics_those_who_are_kept_out_are_let_in() {
    let mut pool = Pool::new(&format!("{DAMPING}\npanic_below = 50"), &[""; 4]);
    for n in [3, 4] {
        flap(&mut pool, n, 2);
        pool.down(n);
        pool.up(n);
    }
    assert_eq!(pool.shares(), [50, 50, 0, 0]);
    pool.down(1);
    // With those two, three quarters are healthy.
    assert_eq!(pool.shares(), [0, 33, 33, 33]);
    assert_eq!(pool.core.service(id()).unwrap().panic, None);
    pool.down(2);
    pool.down(3);
    assert_eq!(pool.shares(), [25; 4]);
    assert!(pool.core.service(id()).unwrap().panic.is_some());
}

#[test]
fn who_was_kept_out_begins_slowly_when_it_is_let_in() {
    let mut pool = Pool::new(&format!("{DAMPING}\nslow_start = \"90s\""), &[""; 3]);
    pool.down(3);
    pool.up(3);
    pool.down(3);
    pool.up(3);
    assert_eq!(pool.status(3).slow_start, None);
    assert_eq!(waits(&mut pool, 3), 10);
    assert_eq!(pool.status(3).slow_start.unwrap().percent, 10);
}

#[test]
fn turning_it_off_lets_everybody_in_and_another_time_counts_at_once() {
    let damping = |text: &str| Settings {
        flap_damping: Some(text.parse::<FlapDamping>().unwrap()),
        ..Settings::default()
    };
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    pool.up(3);
    pool.set(damping("30s"));
    pool.pass(15);
    assert!(!pool.takes(3));
    pool.set(damping("off"));
    assert!(pool.takes(3));
    assert_eq!(failures(&pool, 3), 0);
}

#[test]
fn a_refused_change_lets_nobody_in_and_forgets_nothing() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    pool.up(3);
    let at = pool.core.dataplane().executed;
    pool.core.dataplane_mut().fail_at = Some(at);
    let off = Settings {
        flap_damping: Some(FlapDamping::default()),
        ..Settings::default()
    };
    let change = Change::EditService(id(), off);
    pool.core.change(change).unwrap_err();
    pool.core.enforce().unwrap();
    assert!(!pool.takes(3));
    assert_eq!(failures(&pool, 3), 2);
    assert_eq!(waits(&mut pool, 3), 10);
}

#[test]
fn who_would_be_kept_out_and_is_needed_is_told_of_only_once_it_is_kept_out() {
    let mut pool = Pool::new(DAMPING, &[""; 1]);
    for _ in 0..3 {
        pool.down(1);
        pool.up(1);
        assert!(pool.takes(1), "there is nobody else");
    }
    let damped = |pool: &Pool| {
        let events = pool.events().into_iter();
        let damped = events.filter(|event| matches!(event.what, Happened::Damped { .. }));
        damped.count()
    };
    assert_eq!(damped(&pool), 0);
    let mut pool = Pool::new(DAMPING, &[""; 2]);
    flap(&mut pool, 2, 2);
    assert_eq!(damped(&pool), 1);
}

#[test]
fn an_agent_that_is_left_nothing_holds_nothing_against_anybody() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 2);
    pool.down(3);
    pool.up(3);
    let mut pool = pool.restart();
    assert!(!pool.takes(3), "it has to pass its checks");
    pool.up(3);
    assert!(pool.takes(3));
    assert_eq!(failures(&pool, 3), 0);
}

/// How often a backend came back within an hour that is up and down for so many seconds in turn.
fn returns(keys: &str, up: u64, down: u64) -> u32 {
    let mut pool = Pool::new(keys, &[""; 2]);
    let (mut times, mut took) = (0, true);
    let mut count = |pool: &Pool| {
        let takes = pool.takes(2);
        times += u32::from(takes && !took);
        took = takes;
    };
    for second in 0..3_600 {
        match second % (up + down) {
            0 if second > 0 => pool.up(2),
            at if at == up => pool.down(2),
            _ => {}
        }
        count(&pool);
        pool.pass(1);
        count(&pool);
    }
    times
}

#[test]
fn figures_of_flap_damping_are_fewer_returns_than_without_it() {
    for (up, down) in [(2, 2), (30, 5), (120, 10), (600, 10)] {
        let without = returns("", up, down);
        let with = returns("flap_damping = \"10s\"", up, down);
        println!("| {up} s up, {down} s down | {without} | {with} |");
        assert!(with < without || up >= 300, "{with} of {without}");
    }
}

#[test]
fn who_is_kept_out_is_told_of_though_its_group_has_another_first_service_meanwhile() {
    let mut pool = Pool::new(DAMPING, &[""; 3]);
    flap(&mut pool, 3, 1);
    pool.down(3);
    assert!(pool.core.health(event(3, Condition::Up)));
    let both = pool.behind_another();
    let first = both[0].id;
    pool.change(Change::Replace(both.to_vec()));
    assert_eq!(pool.core.state().lead(id()), first);
    let what = Happened::Damped {
        backend: address(3),
    };
    let told: Vec<ServiceId> = pool
        .events()
        .iter()
        .filter(|event| event.what == what)
        .map(|event| event.service)
        .collect();
    assert_eq!(told, [first], "once");
}
