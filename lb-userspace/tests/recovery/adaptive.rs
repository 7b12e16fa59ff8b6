//! Weights that follow how backends fare.

use std::time::Duration;

use lb_common::tables::{Sign, Tables as _};
use lb_userspace::{
    capacity,
    dataplane::{Dataplane as _, Operation},
    health::{Event, Target, reply::Asked},
    model::{Adaptive, Change, Mode, Passive, Service, ServiceId, Settings, Signal},
    plan::{census, ticks},
    snapshot::Condition,
};

use crate::{
    pool::{Pool, VIP, address, event, id},
    reach::memory,
};

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

/// So many seconds pass, in each of which so many handshakes with each backend take so many milliseconds, or are
/// not answered.
fn shake(pool: &mut Pool, seconds: u32, each: [(u64, u64, u64); 4]) {
    for _ in 0..seconds {
        for (n, (answered, millis, missed)) in (1..).zip(each) {
            let placed = pool.core.layout().placed(id()).unwrap();
            let counters = placed.member(address(n)).unwrap().1.backend.counters;
            let tables = &pool.core.dataplane().tables;
            tables.add_sign(counters, Sign::Progressed, answered);
            tables.add_sign(counters, Sign::Nanoseconds, answered * millis * 1_000_000);
            tables.add_sign(counters, Sign::Resent, missed);
        }
        pass(pool, 1);
    }
}

const BY_HANDSHAKE: &str = "moving_time = \"20s\"\nhealth = { type = \"none\" }\nadaptive = { from = [\"handshake\"], interval = \"1s\" }";

#[test]
fn backends_whose_clients_wait_for_their_handshakes_get_less() {
    let mut pool = four(BY_HANDSHAKE);
    assert!(pool.core.watches());
    // What they showed before was of another time.
    for n in 1..=4 {
        let placed = pool.core.layout().placed(id()).unwrap();
        let counters = placed.member(address(n)).unwrap().1.backend.counters;
        let tables = &pool.core.dataplane().tables;
        tables.add_sign(counters, Sign::Progressed, 1_000_000);
        tables.add_sign(
            counters,
            Sign::Nanoseconds,
            u64::from(n) * 1_000_000_000_000_000,
        );
    }
    pass(&mut pool, 1);
    shake(&mut pool, 30, [(100, 19, 0); 4]);
    assert_eq!(percents(&pool), [100; 4]);
    shake(
        &mut pool,
        300,
        [(100, 19, 0), (100, 19, 0), (100, 19, 0), (100, 79, 0)],
    );
    let [others @ .., slow] = percents::<4>(&pool);
    assert_eq!(others, [100; 3]);
    assert!((25..=33).contains(&slow), "{slow}");
    let handshake = pool.status(4).adaptive.unwrap().handshake.unwrap();
    assert_eq!(handshake.as_millis(), 79);
    assert_eq!(pool.status(4).passive, None);
    shake(&mut pool, 300, [(100, 19, 0); 4]);
    let [.., back] = percents::<4>(&pool);
    assert!(back > 70, "{back}");
}

#[test]
fn a_handshake_that_is_not_answered_has_taken_as_long_as_it_was_given() {
    let mut pool = four(&format!(
        "{BY_HANDSHAKE}\npassive = \"handshake=2s,failing=0%\""
    ));
    pass(&mut pool, 1);
    // One of a hundred for two seconds is twenty milliseconds for each.
    shake(
        &mut pool,
        300,
        [(100, 19, 0), (100, 19, 0), (100, 19, 0), (99, 19, 1)],
    );
    let [.., slow] = percents::<4>(&pool);
    let handshake = pool.status(4).adaptive.unwrap().handshake.unwrap();
    assert_eq!(handshake, Duration::from_micros(38_810));
    assert!((51..=66).contains(&slow), "{slow}");
    // And the same of all says nothing of any.
    shake(&mut pool, 600, [(99, 19, 1); 4]);
    let [.., back] = percents::<4>(&pool);
    assert!(back > 70, "{back}");
}

#[test]
fn in_mode_nat_handshakes_are_timed_where_weights_follow_them_and_nobody_is_kept_out_for_any() {
    let nat = |keys: &str| Pool::in_mode("nat", SLOTS, keys, &[""; 4]);
    let sampling = |pool: &Pool| {
        let placed = pool.core.layout().placed(id()).unwrap();
        placed.descriptor.sampling()
    };
    assert_eq!(sampling(&nat("passive = \"on\"")), 0);
    let mut pool = nat(&format!("{BY_HANDSHAKE}\npassive = \"on\""));
    assert_eq!(pool.core.state().service(id()).unwrap().mode, Mode::Nat);
    assert_eq!(sampling(&pool), 1);
    for _ in 0..300 {
        shake(
            &mut pool,
            1,
            [(100, 19, 0), (100, 19, 0), (100, 19, 0), (0, 0, 100)],
        );
        pool.core.watch();
    }
    let [.., slow] = percents::<4>(&pool);
    assert!(slow < 30, "{slow}");
    assert!(pool.takes(4));
    let shown = pool.status(4).passive.unwrap();
    assert_eq!((shown.missed, shown.ejections), (30_000, 0));
    let off = Settings {
        adaptive: Some(None),
        passive: Some(Passive::OFF),
        ..Settings::default()
    };
    pool.set(off);
    assert_eq!((sampling(&pool), pool.core.watches()), (0, false));
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
fn an_agent_with_an_edited_configuration_begins_with_the_weights_that_it_says() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99; 4]);
    let pool = pool.restart_edited(|service| service.backends[3].weight = 4);
    assert_eq!(percents(&pool), [100; 4]);
    let slots: [u32; 4] = std::array::from_fn(|n| pool.status(n as u8 + 1).slots);
    assert!(slots[3].abs_diff(SLOTS * 4 / 7) < 20, "{slots:?}");
    let grown = Pool::with_ring(SLOTS, "slow_start = \"90s\"", &["", "", "", ", weight = 4"]);
    let grown = grown.restart_edited(|service| service.backends[0].weight = 8);
    assert_eq!(grown.status(4).slow_start, None);
}

/// Backends with agents, whose weights follow this.
fn with_agents(from: &str) -> Pool {
    four(&format!(
        "checks = [{{ type = \"tcp\" }}, {{ type = \"agent\", port = 9777 }}]\nmoving_time = \"20s\"\nadaptive = {{ from = {from}, interval = \"1s\" }}"
    ))
}

/// The last backend's agent asks for so many percent; its probes take as long as all others'.
fn ask(pool: &mut Pool, percent: u16) {
    take(pool, &[99; 3]);
    pool.check(Event {
        asked: Asked {
            weight: Some(percent),
            ..Asked::default()
        },
        smoothed: Some(Duration::from_millis(99)),
        ..event(4, Condition::Up)
    });
}

#[test]
fn shares_are_kept_over_a_restart_also_where_agents_ask_for_a_part_of_them() {
    let mut pool = with_agents("[\"latency\"]");
    for _ in 0..400 {
        take(&mut pool, &[99, 99, 399]);
        ask(&mut pool, 50);
        take(&mut pool, &[99, 99, 399]);
        pass(&mut pool, 1);
    }
    let before: [u16; 4] = percents(&pool);
    assert!(before[2] < 40, "{before:?}");
    let weights = |pool: &Pool| [1, 2, 3, 4].map(|n| pool.status(n).effective_weight);
    let weighed = weights(&pool);
    let mut pool = pool.restart_after(Duration::from_secs(1));
    assert_eq!((percents(&pool), weights(&pool)), (before, weighed));
    assert_eq!(steady(&pool), SLOTS);
    pass(&mut pool, 5);
    assert_eq!(steady(&pool), SLOTS);
}

#[test]
fn what_an_agent_asks_for_counts_once_after_a_restart() {
    let mut pool = with_agents("[\"latency\"]");
    ask(&mut pool, 50);
    assert_eq!(pool.status(4).effective_weight, 0.5);
    let mut pool = pool.restart();
    ask(&mut pool, 50);
    assert_eq!(pool.status(4).effective_weight, 0.5);
    let keys = "health = { type = \"agent\", port = 9777 }\nslow_start = \"90s\"";
    let mut pool = four(keys);
    ask(&mut pool, 50);
    let mut pool = pool.restart();
    ask(&mut pool, 50);
    assert_eq!(pool.status(4).effective_weight, 0.5);
}

#[test]
fn what_an_agent_asks_for_counts_once_where_weights_begin_or_cease_to_follow_it() {
    let set = |pool: &mut Pool, signals: &[Signal]| {
        let adaptive = Adaptive {
            interval: Duration::from_secs(1),
            ..Adaptive::by(signals.iter().copied())
        };
        pool.set(Settings {
            adaptive: Some(Some(adaptive)),
            ..Settings::default()
        });
    };
    let weight = |pool: &Pool| pool.status(4).effective_weight;
    let mut pool = with_agents("[\"latency\", \"agent\"]");
    ask(&mut pool, 30);
    pass(&mut pool, 400);
    let before = weight(&pool);
    assert!((0.3..0.38).contains(&before), "{before}");
    set(&mut pool, &[Signal::Latency]);
    let after = weight(&pool);
    assert!((after - before).abs() < 0.01, "{before} {after}");
    pass(&mut pool, 60);
    assert!((0.3..0.38).contains(&weight(&pool)), "{}", weight(&pool));
    set(&mut pool, &[Signal::Latency, Signal::Agent]);
    assert!((weight(&pool) - after).abs() < 0.02, "{}", weight(&pool));
}

#[test]
fn balance_is_measured_by_the_weights_in_effect() {
    let keys = "health = { type = \"agent\", port = 9777 }";
    let mut pool = Pool::new(keys, &[", max_connections = 100"; 2]);
    pool.up(1);
    pool.check(Event {
        asked: Asked {
            weight: Some(50),
            ..Asked::default()
        },
        ..event(2, Condition::Up)
    });
    for (n, flows) in [(1, 40), (2, 20)] {
        let placed = pool.core.layout().placed(id()).unwrap();
        let counters = placed.member(address(n)).unwrap().1.backend.counters;
        let add = Operation::AddLoad(counters, flows);
        pool.core.dataplane_mut().execute(&[add]).unwrap();
    }
    let capacity = capacity::of(&pool.core.service(id()).unwrap()).unwrap();
    assert_eq!(capacity.imbalance(), Some(1_000));
}

#[test]
fn shares_are_within_bounds_that_become_narrower() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pass(&mut pool, 400);
    let narrow = Adaptive {
        least: 50,
        most: 110,
        interval: Duration::from_secs(1),
        ..Adaptive::by([Signal::Latency])
    };
    pool.set(Settings {
        adaptive: Some(Some(narrow)),
        ..Settings::default()
    });
    assert_eq!(percents(&pool), [100, 100, 100, 50]);
    assert_eq!(pool.status(4).effective_weight, 0.5);
}

#[test]
fn shares_that_the_maps_have_no_room_for_are_given_up_and_stand_in_nobodys_way() {
    // For one ring, and not for another beside it.
    let mut memory = memory();
    memory.capacity.slots = SLOTS + SLOTS / 2;
    let mut pool = Pool::over(memory, SLOTS, BY_LATENCY, &[""; 4]);
    take(&mut pool, &[99, 99, 99, 399]);
    let clock = &pool.core.dataplane().tables.time;
    clock.set(clock.get().wrapping_add(ticks(Duration::from_secs(2))));
    assert!(pool.core.look());
    let changes = |pool: &Pool| pool.core.service(id()).unwrap().adaptive.unwrap();
    assert_eq!(changes(&pool).changes, 1);
    pool.core.enforce().unwrap();
    let status = changes(&pool);
    assert_eq!((status.changes, status.holds, status.held), (0, 1, true));
    assert_eq!(percents(&pool), [100; 4]);
    assert!(!pool.core.is_behind());
}

#[test]
fn rings_of_several_pools_are_tried_one_at_a_time_and_each_has_its_turn() {
    let mut pool = four(BY_LATENCY);
    let ids = [VIP, "10.0.0.2:80/tcp"].map(|id| id.parse::<ServiceId>().unwrap());
    let second = Service {
        id: ids[1],
        ..pool.core.state().service(ids[0]).unwrap().clone()
    };
    pool.change(Change::AddService(second));
    for service in ids {
        for (n, millis) in [(1, 99), (2, 99), (3, 99), (4, 399)] {
            let event = event(n, Condition::Up);
            let target = Target {
                service,
                ..event.target
            };
            pool.check(Event {
                target,
                smoothed: Some(Duration::from_millis(millis)),
                ..event
            });
        }
    }
    let clock = &pool.core.dataplane().tables.time;
    clock.set(clock.get().wrapping_add(ticks(Duration::from_secs(2))));
    let changes = |pool: &Pool| {
        let status = |id| pool.core.service(id).unwrap().adaptive.unwrap();
        ids.map(|id| status(id).changes)
    };
    for expected in [[1, 0], [1, 1]] {
        assert!(pool.core.look() && pool.core.has_looks_left());
        pool.core.enforce().unwrap();
        assert_eq!(changes(&pool), expected);
    }
    assert!(!pool.core.look() && !pool.core.has_looks_left());
}

#[test]
fn turned_off_weights_return_to_the_configured_ones_and_most_slots_stay_steady() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pass(&mut pool, 400);
    let [.., slow] = percents::<4>(&pool);
    pool.set(adapting(None));
    assert_eq!(percents(&pool), [100, 100, 100, slow], "nothing at once");
    let mut fewest = pass(&mut pool, 1);
    let [.., first] = percents::<4>(&pool);
    assert!(
        first > slow && first <= slow + slow / 4 + 1,
        "{slow} {first}"
    );
    // What is measured says nothing any more.
    take(&mut pool, &[99, 99, 99, 9_999]);
    fewest = fewest.min(pass(&mut pool, 400));
    assert!(u64::from(fewest) * 100 >= u64::from(SLOTS) * 95, "{fewest}");
    assert_eq!(pool.status(4).adaptive, None);
    assert_eq!(pool.core.service(id()).unwrap().adaptive, None);
    assert_eq!(pool.status(4).effective_weight, 1.0);
    assert!(pool.status(4).slots.abs_diff(SLOTS / 4) < 4);
    pool.set(adapting(Some(Adaptive::by([Signal::Latency]))));
    assert_eq!(percents(&pool), [100; 4]);
}

fn adapting(adaptive: Option<Adaptive>) -> Settings {
    Settings {
        adaptive: Some(adaptive),
        ..Settings::default()
    }
}

#[test]
fn turned_off_over_a_restart_weights_are_the_configured_ones_and_nothing_is_watched_or_stuck() {
    let slowed = || {
        let mut pool = four(BY_HANDSHAKE);
        pass(&mut pool, 1);
        let each = [(100, 19, 0), (100, 19, 0), (100, 19, 0), (100, 79, 0)];
        shake(&mut pool, 300, each);
        let [.., slow] = percents::<4>(&pool);
        assert!(slow <= 33, "{slow}");
        pool
    };
    let off_before = |mut pool: Pool| {
        // On their way back when the agent ends.
        pool.set(adapting(None));
        pass(&mut pool, 30);
        assert!(pool.status(4).effective_weight < 0.9);
        pool.restart()
    };
    let off_meanwhile = |pool: Pool| pool.restart_edited(|service| service.adaptive = None);
    let ways: [&dyn Fn(Pool) -> Pool; 2] = [&off_before, &off_meanwhile];
    for off in ways {
        let mut pool = off(slowed());
        assert_eq!(pool.status(4).effective_weight, 1.0);
        let sampling = |pool: &Pool| {
            let placed = pool.core.layout().placed(id()).unwrap();
            placed.descriptor.sampling()
        };
        assert_eq!((sampling(&pool), pool.core.watches()), (0, false));
        // Handshakes that are still in the counters say nothing any more.
        shake(
            &mut pool,
            60,
            [(100, 19, 0), (100, 19, 0), (100, 19, 0), (100, 79, 0)],
        );
        assert_eq!(pool.core.service(id()).unwrap().adaptive, None);
        assert_eq!(pool.status(4).adaptive, None);
        assert!(pool.status(4).slots.abs_diff(SLOTS / 4) < 4);
        assert_eq!(steady(&pool), SLOTS, "nothing moves for ever");
    }
}

#[test]
fn turned_on_over_a_restart_weights_begin_as_configured_and_follow_what_comes_from_then_on() {
    let adaptive = four(BY_HANDSHAKE)
        .core
        .state()
        .service(id())
        .unwrap()
        .adaptive;
    let mut pool = four("moving_time = \"20s\"\nhealth = { type = \"none\" }");
    assert!(!pool.core.watches());
    // What is counted before it is looked at is of another time.
    shake(
        &mut pool,
        10,
        [(100, 19, 0), (100, 19, 0), (100, 19, 0), (100, 999, 0)],
    );
    let mut pool = pool.restart_edited(|service| service.adaptive = adaptive);
    assert!(pool.core.watches());
    assert_eq!(percents(&pool), [100; 4]);
    pass(&mut pool, 1);
    shake(&mut pool, 30, [(100, 19, 0); 4]);
    assert_eq!(percents(&pool), [100; 4]);
    shake(
        &mut pool,
        300,
        [(100, 79, 0), (100, 19, 0), (100, 19, 0), (100, 19, 0)],
    );
    let [slow, others @ ..] = percents::<4>(&pool);
    assert!(slow <= 33, "{slow}");
    assert_eq!(others, [100; 3]);
}

#[test]
fn turned_on_again_on_their_way_back_weights_go_on_from_where_they_are() {
    let mut pool = four(BY_LATENCY);
    take(&mut pool, &[99, 99, 99, 399]);
    pass(&mut pool, 400);
    let adaptive = pool.core.state().service(id()).unwrap().adaptive;
    pool.set(adapting(None));
    pass(&mut pool, 30);
    let before: [u16; 4] = percents(&pool);
    assert!((33..90).contains(&before[3]), "{before:?}");
    pool.set(adapting(adaptive));
    assert_eq!(percents(&pool), before);
    pass(&mut pool, 400);
    // It has turned back twice, so that the dead band is twice as wide.
    let [.., slow] = percents::<4>(&pool);
    assert!((25..=40).contains(&slow), "{slow}");
}

#[test]
fn turned_off_what_agents_ask_for_counts_once() {
    let mut pool = with_agents("[\"latency\", \"agent\"]");
    ask(&mut pool, 30);
    pass(&mut pool, 400);
    let before = pool.status(4).effective_weight;
    pool.set(adapting(None));
    let after = pool.status(4).effective_weight;
    assert!((after - before).abs() < 0.01, "{before} {after}");
    pass(&mut pool, 400);
    assert_eq!(pool.status(4).effective_weight, 0.3);
}

#[test]
fn the_last_step_back_waits_for_room_like_any_other() {
    let mut memory = memory();
    memory.capacity.slots = SLOTS * 5 / 2;
    let mut pool = Pool::over(memory, SLOTS, BY_LATENCY, &[""; 4]);
    take(&mut pool, &[99, 99, 99, 129]);
    pass(&mut pool, 60);
    let before: [u16; 4] = percents(&pool);
    assert!((80..90).contains(&before[3]), "{before:?}");
    pool.set(adapting(None));
    let second = Service {
        id: "10.0.0.2:80/tcp".parse().unwrap(),
        ..pool.core.state().service(id()).unwrap().clone()
    };
    let other = second.id;
    pool.change(Change::AddService(second));
    pass(&mut pool, 60);
    assert_eq!(percents(&pool), before);
    assert!(pool.core.service(id()).unwrap().adaptive.unwrap().held);
    assert!(!pool.core.is_behind());
    pool.change(Change::RemoveService(other));
    pass(&mut pool, 60);
    assert_eq!(percents(&pool), [100; 4]);
    assert_eq!(pool.core.service(id()).unwrap().adaptive, None);
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
        moving_time: Some(Duration::from_secs(30)),
        ..Settings::default()
    };
    let change = Change::EditService(id(), settings);
    pool.core.change(change).unwrap_err();
    pool.core.enforce().unwrap();
    assert_eq!(percents(&pool), before);
    pass(&mut pool, 60);
    assert_eq!(percents(&pool), before, "they follow what they did");
}
