//! Backends that are kept out for what packets show.

use std::time::{Duration, SystemTime};

use lb_common::tables::{Handshake, Sign, TICK_SHIFT, Tables as _, handshake, state};
use lb_userspace::{
    health::Event,
    model::{Admin, Change, OnDown, Passive, Settings},
    snapshot::{BackendState, Condition, Happened},
};

use crate::{
    pool::{Pool, address, event, id},
    reach::wind,
};

pub const PASSIVE: &str = "passive = \"on\"";
pub const UNCHECKED: &str = "passive = \"on\"\nhealth = { type = \"none\" }";

pub fn pool_of(keys: &str, backends: usize) -> Pool {
    let mut pool = Pool::new(keys, &vec![""; backends]);
    for n in 1..=backends as u8 {
        pool.up(n);
    }
    look(&mut pool, 0);
    pool
}

/// Index of a backend's counters.
fn counters(pool: &Pool, n: u8) -> u32 {
    let placed = pool.core.layout().placed(id()).unwrap();
    placed.member(address(n)).unwrap().1.backend.counters
}

fn show(pool: &Pool, n: u8, sign: Sign, times: u64) {
    let tables = &pool.core.dataplane().tables;
    tables.add_sign(counters(pool, n), sign, times);
}

pub fn refuse(pool: &Pool, n: u8, times: u64) {
    show(pool, n, Sign::Refused, times);
    show(pool, n, Sign::Streak, times);
}

/// So many milliseconds pass, and then the agent looks at what packets show; whether that was news.
pub fn look(pool: &mut Pool, millis: u64) -> bool {
    wind(&pool.core, Duration::from_millis(millis));
    let news = pool.core.watch();
    if news {
        pool.core.enforce().unwrap();
    }
    pool.core.observe(SystemTime::UNIX_EPOCH);
    news
}

/// What everybody shows counts from now on.
fn ripen(pool: &mut Pool) {
    for _ in 0..5 {
        look(pool, 500);
    }
}

/// Seconds until a backend takes flows again.
pub fn waits(pool: &mut Pool, n: u8) -> u64 {
    let mut waited = 0;
    while !pool.takes(n) {
        look(pool, 1_000);
        waited += 1;
        assert!(waited < 1_000, "never");
    }
    waited
}

#[test]
fn a_backend_that_refuses_is_kept_out_at_once_with_its_reason_and_holds_its_flows() {
    let mut pool = pool_of(PASSIVE, 3);
    assert!(pool.core.watches());
    refuse(&pool, 3, 3);
    assert!(pool.takes(3));
    // The one store, before any ring moves.
    assert!(pool.core.watch());
    assert_eq!(pool.state(3), state::HOLDS);
    look(&mut pool, 10);
    pool.core.enforce().unwrap();
    assert_eq!((pool.state(3), pool.shares()), (state::HOLDS, [50, 50, 0]));
    let standing = pool.status(3).standing.unwrap();
    let reason = "ejected for 10s: 3 connections in a row were refused";
    assert_eq!(
        (standing.state, standing.reason.as_str()),
        (BackendState::Down, reason)
    );
    assert_eq!(pool.status(3).condition, Condition::Up);
    let passive = pool.status(3).passive.unwrap();
    assert_eq!((passive.refused, passive.ejections), (3, 1));
    assert!(
        passive.left.is_some_and(|left| left.as_secs() == 9),
        "{passive:?}"
    );
    let events = pool.events();
    let last = events.last().unwrap();
    let turned = Happened::Turned {
        backend: address(3),
        from: BackendState::Up,
        to: BackendState::Down,
    };
    assert_eq!((last.what, last.reason.as_str()), (turned, reason));
    assert_eq!(waits(&mut pool, 3), 10);
    assert_eq!(pool.reason(3), "its checks pass");
    assert_eq!(pool.shares(), [33, 33, 33]);
}

#[test]
fn who_is_kept_out_is_never_dead_whatever_on_down_says_and_however_long_it_lasts() {
    let keys = format!("{PASSIVE}\non_down = \"resteer\"\ndead_after = \"5s\"");
    let mut pool = pool_of(&keys, 3);
    assert_eq!(
        pool.core.state().service(id()).unwrap().on_down(),
        OnDown::Resteer
    );
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    for _ in 0..9 {
        pool.core.age();
        look(&mut pool, 1_000);
        assert_eq!(pool.state(3), state::HOLDS);
    }
}

#[test]
fn without_passive_detection_nothing_is_looked_at() {
    let mut pool = pool_of("", 3);
    refuse(&pool, 3, 100);
    assert!(!pool.core.watches() && !look(&mut pool, 10));
    assert!(pool.takes(3));
    assert_eq!(pool.status(3).passive, None);
    let placed = pool.core.layout().placed(id()).unwrap();
    assert_eq!(placed.descriptor.sampling(), 0);
}

#[test]
fn no_more_than_the_ceiling_are_kept_out_and_the_last_that_is_left_stays() {
    let mut pool = pool_of(PASSIVE, 4);
    (1..=4).for_each(|n| refuse(&pool, n, 3 + u64::from(n)));
    look(&mut pool, 10);
    let takes: Vec<bool> = (1..=4).map(|n| pool.takes(n)).collect();
    assert_eq!(takes, [true, true, false, false]);
    let mut pool = pool_of("passive = \"max_ejected=100%\"", 3);
    pool.down(1);
    refuse(&pool, 2, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    let takes: Vec<bool> = (1..=3).map(|n| pool.takes(n)).collect();
    assert_eq!(takes.iter().filter(|takes| **takes).count(), 1, "{takes:?}");
}

#[test]
fn who_is_kept_out_is_let_in_where_all_others_fail_their_checks() {
    let mut pool = pool_of(PASSIVE, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    pool.down(1);
    assert!(!pool.takes(3));
    pool.down(2);
    assert!(pool.takes(3), "{}", pool.reason(3));
    assert_eq!(pool.reason(3), "its checks pass");
    pool.up(1);
    assert!(!pool.takes(3));
}

#[test]
fn it_comes_back_only_once_its_checks_pass_and_a_little_after_they_have_asked() {
    let keys = "passive = \"ejection=1s\"\nhealth = { type = \"tcp\", interval = \"4s\", timeout = \"1s\", fall = 2 }";
    let mut pool = pool_of(keys, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    let reason = "ejected for 9s: 3 connections in a row were refused";
    assert_eq!(pool.reason(3), reason);
    let left = pool.status(3).passive.unwrap().left.unwrap();
    assert_eq!(left.as_secs(), 9, "{left:?}");
    look(&mut pool, 8_900);
    assert!(
        !pool.takes(3),
        "checks may not have found yet that it is down"
    );
    pool.down(3);
    look(&mut pool, 60_000);
    assert!(!pool.takes(3));
    pool.up(3);
    look(&mut pool, 10);
    assert!(pool.takes(3), "{}", pool.reason(3));
}

#[test]
fn it_comes_back_without_checks_and_slowly_where_that_is_wanted() {
    let keys = format!("{UNCHECKED}\nslow_start = \"10s\"");
    let mut pool = Pool::new(&keys, &[""; 2]);
    look(&mut pool, 0);
    refuse(&pool, 2, 3);
    look(&mut pool, 10);
    assert!(!pool.takes(2));
    assert_eq!(waits(&mut pool, 2), 10);
    let percent = pool.status(2).slow_start.unwrap().percent;
    assert!(percent <= 20, "{percent}");
}

#[test]
fn people_have_the_last_word() {
    let mut pool = pool_of(PASSIVE, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    pool.ask(3, Admin::Up);
    assert!(pool.takes(3));
    refuse(&pool, 3, 9);
    look(&mut pool, 10);
    assert!(pool.takes(3));
    pool.ask(3, Admin::Active);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    look(&mut pool, 10);
    assert!(!pool.takes(3));
    pool.set(Settings {
        passive: Some(Passive::default()),
        ..Settings::default()
    });
    assert!(pool.takes(3), "nobody looks any more");
}

#[test]
fn a_change_that_is_refused_lets_nobody_in() {
    let mut pool = pool_of(PASSIVE, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    let at = pool.core.dataplane().executed;
    pool.core.dataplane_mut().fail_at = Some(at);
    let off = Settings {
        passive: Some(Passive::OFF),
        ..Settings::default()
    };
    let change = Change::EditService(id(), off);
    pool.core.change(change).unwrap_err();
    pool.core.enforce().unwrap();
    assert!(!pool.takes(3));
    assert_eq!(pool.status(3).passive.unwrap().ejections, 1);
    assert_eq!(waits(&mut pool, 3), 10, "and no longer than it had to");
}

#[test]
fn it_comes_back_although_one_of_its_checks_has_something_to_complain_of() {
    let mut pool = pool_of(PASSIVE, 3);
    let complain = |pool: &mut Pool| {
        pool.check(Event {
            error: Some("admin: refused; one is enough".to_owned()),
            ..event(3, Condition::Up)
        });
    };
    complain(&mut pool);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    complain(&mut pool);
    assert!(!pool.takes(3));
    assert_eq!(waits(&mut pool, 3), 10);
}

#[test]
fn who_is_drained_meanwhile_is_kept_out_all_the_same_and_nothing_is_forgotten() {
    let weight = |weight| Change::EditBackend {
        id: id(),
        address: address(3),
        weight: Some(weight),
        admin: None,
        max_connections: None,
        rated: Default::default(),
        tier: None,
    };
    type Way = (&'static str, fn(&mut Pool), fn(&mut Pool));
    let ways: [Way; 2] = [
        (
            "drain",
            |pool| pool.ask(3, Admin::Draining),
            |pool| pool.ask(3, Admin::Active),
        ),
        ("down", |pool| pool.down(3), |pool| pool.up(3)),
    ];
    for (name, away, back) in ways {
        let mut pool = pool_of(PASSIVE, 3);
        refuse(&pool, 3, 3);
        look(&mut pool, 10);
        away(&mut pool);
        look(&mut pool, 1_000);
        back(&mut pool);
        look(&mut pool, 10);
        assert!(!pool.takes(3), "{name}");
        assert_eq!(pool.status(3).passive.unwrap().ejections, 1, "{name}");
        assert_eq!(waits(&mut pool, 3), 9, "{name}");
        refuse(&pool, 3, 1);
        look(&mut pool, 10);
        assert!(!pool.takes(3), "{name}: on probation");
    }
    let mut pool = pool_of(PASSIVE, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    pool.change(weight(0));
    look(&mut pool, 1_000);
    pool.change(weight(1));
    look(&mut pool, 10);
    assert!(!pool.takes(3));
}

#[test]
fn who_is_drained_while_it_is_kept_out_is_told_to_drain_once_its_time_is_over() {
    let mut pool = pool_of(UNCHECKED, 3);
    refuse(&pool, 3, 3);
    look(&mut pool, 10);
    pool.ask(3, Admin::Draining);
    assert!(pool.reason(3).starts_with("ejected for 10s"));
    look(&mut pool, 10_100);
    let standing = pool.status(3).standing.unwrap();
    assert_eq!(standing.state, BackendState::Draining, "{standing:?}");
}

#[test]
fn in_a_flood_the_only_primary_is_not_taken_for_an_outlier_next_to_its_standby() {
    let keys = format!("{PASSIVE}\nfailback = \"manual\"");
    let mut pool = Pool::new(&keys, &["", ", tier = 1"]);
    for n in 1..=2 {
        pool.up(n);
    }
    look(&mut pool, 0);
    ripen(&mut pool);
    for _ in 0..20 {
        show(&pool, 1, Sign::Progressed, 3);
        show(&pool, 1, Sign::Resent, 30);
        look(&mut pool, 50);
    }
    assert_eq!(pool.status(1).passive.unwrap().missed, 600);
    assert!(pool.takes(1) && !pool.takes(2), "{}", pool.reason(1));
    assert_eq!(pool.status(1).passive.unwrap().ejections, 0);
}

#[test]
fn in_a_flood_whoever_comes_back_is_not_the_yardstick_of_the_other() {
    for away in [Admin::Draining, Admin::Maintenance] {
        let mut pool = Pool::new(UNCHECKED, &[""; 2]);
        look(&mut pool, 0);
        ripen(&mut pool);
        // What fails is known to fail a second later than it began.
        let mut pending = [const { Vec::new() }; 2];
        for turn in 0..800_u64 {
            match turn {
                100 => pool.ask(2, away),
                200 => pool.ask(2, Admin::Active),
                _ => {}
            }
            for n in [1, 2].into_iter().filter(|&n| pool.takes(n)) {
                show(&pool, n, Sign::Progressed, 1);
                pending[usize::from(n) - 1].push(turn + 100);
            }
            for (n, pending) in (1..).zip(&mut pending) {
                let known = pending.extract_if(.., |at| *at <= turn).count();
                show(&pool, n, Sign::Resent, 2 * known as u64);
            }
            look(&mut pool, 10);
            let ejections = |n| pool.status(n).passive.unwrap().ejections;
            assert_eq!([1, 2].map(ejections), [0, 0], "{away:?} {turn}");
        }
    }
}

#[test]
fn a_backend_that_has_the_counters_of_one_that_left_is_not_blamed_for_it() {
    let mut pool = pool_of(UNCHECKED, 2);
    refuse(&pool, 2, 2);
    look(&mut pool, 10);
    pool.change(Change::RemoveBackend(id(), address(2)));
    pool.add(3, 1);
    look(&mut pool, 10);
    refuse(&pool, 3, 1);
    look(&mut pool, 10);
    assert!(pool.takes(3));
}

/// A handshake with a backend that begins now.
fn begin(pool: &mut Pool, place: u32, n: u8) {
    let counters = counters(pool, n);
    let tables = &pool.core.dataplane().tables;
    let since = u64::from(tables.now()) << TICK_SHIFT;
    let begun = Handshake {
        since,
        counters,
        state: handshake::PENDING,
        ..Handshake::default()
    };
    tables.visit_handshake(place, |handshake| *handshake = begun);
}

#[test]
fn handshakes_that_nothing_follows_count_after_the_time_that_they_are_given() {
    let mut pool = pool_of("passive = \"handshake=500ms\"", 3);
    ripen(&mut pool);
    for place in 0..8 {
        begin(&mut pool, place, 3);
    }
    for n in 1..=2 {
        show(&pool, n, Sign::Progressed, 40);
    }
    look(&mut pool, 400);
    assert!(pool.takes(3));
    look(&mut pool, 200);
    assert!(!pool.takes(3));
    let reason = "ejected for 10s: 8 of 8 handshakes were not answered, and of others 0 of 80";
    assert_eq!(pool.reason(3), reason);
    assert_eq!(pool.status(3).passive.unwrap().missed, 8);
    look(&mut pool, 1_000);
    assert_eq!(pool.status(3).passive.unwrap().missed, 8, "once");
}

#[test]
fn the_interface_that_answers_come_by_is_that_of_the_way_to_the_backend() {
    let pool = pool_of(PASSIVE, 2);
    let placed = pool.core.layout().placed(id()).unwrap();
    let member = placed.member(address(1)).unwrap().1;
    let tables = &pool.core.dataplane().tables;
    assert_eq!(
        tables.comes_by(member.backend.counters),
        member.backend.interface
    );
    assert_ne!(member.backend.interface, 0);
}
