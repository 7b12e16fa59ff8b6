//! Several checks of a backend, those that it answers by itself, and how they are told.

use super::*;
use crate::health::heartbeat::Whose;

fn named(name: &str, probe: Probe, port: Option<u16>) -> Check {
    Check {
        name: Some(name.to_owned()),
        probe,
        port,
        ..health()
    }
}

/// Target 1, by a check of its own port and one of port 9.
fn two(combine: Combine) -> BTreeMap<Target, TargetConfig> {
    let checks = vec![
        named("web", Probe::TCP, None),
        named("admin", Probe::TCP, Some(9)),
    ];
    let health = Health { combine, checks };
    BTreeMap::from([(target(1), config(health, Condition::Starting))])
}

#[tokio::test(start_paused = true)]
async fn with_all_one_failing_check_takes_the_backend_down_and_is_named() {
    let (mut checker, script, mut events) = checker();
    checker.set(two(Combine::All));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    script.refusing.lock().unwrap().insert(address(9));
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    assert_eq!(event.error.as_deref(), Some("admin: connection refused"));
    assert!(!event.dead, "flows go to the other port");
    let each: Vec<_> = event
        .checks
        .iter()
        .map(|c| (c.name.as_str(), c.condition))
        .collect();
    assert_eq!(each, [("web", Condition::Up), ("admin", Condition::Down)]);
}

#[tokio::test(start_paused = true)]
async fn with_any_a_backend_is_up_until_its_last_check_fails() {
    let (mut checker, script, mut events) = checker();
    checker.set(two(Combine::Any));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    script.refusing.lock().unwrap().insert(address(9));
    let quiet = time::timeout(INTERVAL * 20, next_turn(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    script.refusing.lock().unwrap().insert(address(1));
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    assert_eq!(
        event.error.as_deref(),
        Some("web: connection refused; admin: connection refused")
    );
    assert!(event.dead, "its own port refuses");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_turns_is_told_at_once_even_if_the_verdict_on_its_backend_stays() {
    let (mut checker, script, mut events) = checker();
    script.refusing.lock().unwrap().insert(address(9));
    checker.set(two(Combine::Any));
    let admin = |event: &Event| event.checks.get(1).map(|check| check.condition);
    while admin(&next(&mut events).await) != Some(Condition::Down) {}
    script.refusing.lock().unwrap().clear();
    let begin = Instant::now();
    while admin(&next(&mut events).await) != Some(Condition::Up) {}
    assert!(begin.elapsed() <= INTERVAL * 2 + Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_does_not_hold_up_the_others() {
    let (mut checker, script, mut events) = checker();
    let slow = Check {
        interval: INTERVAL * 60,
        timeout: INTERVAL * 60,
        ..named("slow", Probe::TCP, Some(9))
    };
    script.dead.lock().unwrap().insert(address(9));
    let checks = vec![named("web", Probe::TCP, None), slow];
    let health = Health {
        combine: Combine::All,
        checks,
    };
    checker.set(BTreeMap::from([(target(1), config(health, Condition::Up))]));
    time::sleep(INTERVAL * 70).await;
    script.refusing.lock().unwrap().insert(address(1));
    let begin = Instant::now();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Down);
    assert!(begin.elapsed() <= INTERVAL * 3 + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn one_that_began_as_down_is_found_so_by_as_many_failures_as_take_it_down_and_at_once() {
    let (mut checker, script, mut events) = checker();
    script.dead.lock().unwrap().insert(address(1));
    checker.set(targets([1], &health(), Condition::Down));
    let begin = Instant::now();
    let event = next(&mut events).await;
    assert!(!event.fails && event.error.is_some(), "{event:?}");
    let event = next(&mut events).await;
    assert!(event.fails && event.condition == Condition::Down);
    // The third ends within its timeout.
    assert!(begin.elapsed() > INTERVAL * 2 && begin.elapsed() <= INTERVAL * 3 + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn in_doubt_the_fast_interval_finds_out_sooner() {
    let (mut checker, script, mut events) = checker();
    let fast = Check {
        fast_interval: Some(INTERVAL / 10),
        ..health()
    };
    checker.set(targets([1], &fast, Condition::Up));
    events.recv().await.unwrap();
    script.refusing.lock().unwrap().insert(address(1));
    let begin = Instant::now();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Down);
    assert!(begin.elapsed() <= INTERVAL * 12 / 10 + Duration::from_millis(5));
}

fn heart(n: u16) -> BTreeMap<Target, TargetConfig> {
    let check = Check {
        probe: Probe::Heartbeat {},
        ..health()
    };
    targets([n], &check, Condition::Starting)
}

#[tokio::test(start_paused = true)]
async fn heartbeats_bring_a_backend_up_and_their_absence_takes_it_down() {
    let (mut checker, _, mut events) = checker();
    checker.set(heart(1));
    assert!(checker.reports().beat(&target(1)));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    for _ in 0..10 {
        time::sleep(INTERVAL).await;
        assert_eq!(
            checker
                .reports()
                .beat_from(address(1).ip(), Whose::default()),
            1
        );
    }
    let begin = Instant::now();
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    assert_eq!(event.error.as_deref(), Some("no heartbeat within 1.5s"));
    assert!(!event.dead, "silence is not death");
    let took = begin.elapsed();
    assert!((INTERVAL * 3..=INTERVAL * 4).contains(&took), "{took:?}");
    checker.reports().beat(&target(1));
    tokio::task::yield_now().await;
    time::sleep(INTERVAL).await;
    checker.reports().beat(&target(1));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
}

#[tokio::test(start_paused = true)]
async fn a_single_silence_that_is_unlikely_enough_takes_a_backend_down() {
    let (mut checker, _, mut events) = checker();
    let mut all = heart(1);
    for config in all.values_mut() {
        let health = Arc::make_mut(&mut config.health);
        health.checks[0].detector = Detector::Phi;
    }
    checker.set(all);
    checker.reports().beat(&target(1));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    for _ in 0..300 {
        time::sleep(INTERVAL).await;
        assert!(checker.reports().beat(&target(1)));
    }
    let begin = Instant::now();
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    let took = begin.elapsed();
    // A second, and 5.6 times the least deviation.
    assert!((1_550..1_570).contains(&took.as_millis()), "{took:?}");
    assert_eq!(event.checks[0].patience.unwrap().as_millis(), 1_561);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_takes_unusually_long_is_told_and_takes_nobody_down() {
    let (mut checker, script, mut events) = checker();
    let slow = Check {
        detector: Detector::Phi,
        ..health()
    };
    checker.set(targets([1], &slow, Condition::Starting));
    next_turn(&mut events).await;
    time::sleep(INTERVAL * 30).await;
    *script.takes.lock().unwrap() = Duration::from_millis(400);
    let event = loop {
        let event = events.recv().await.unwrap();
        if event.error.is_some() {
            break event;
        }
    };
    assert_eq!((event.condition, event.changed), (Condition::Up, false));
    let why = event.error.unwrap();
    assert!(
        why.starts_with("slow: took 400.0 ms, usually 1.0 ± 5.0"),
        "{why}"
    );
}

#[tokio::test(start_paused = true)]
async fn latencies_are_smoothed_and_told_as_often_as_somebody_goes_by_them() {
    let (mut checker, script, mut events) = checker();
    let mut all = targets([1], &health(), Condition::Starting);
    for config in all.values_mut() {
        config.smooth = Some(INTERVAL * 3);
    }
    checker.set(all);
    let first = next_turn(&mut events).await;
    assert_eq!(first.smoothed, Some(Duration::from_millis(1)));
    script.dead.lock().unwrap().insert(address(1));
    let begin = Instant::now();
    let mut before = first.smoothed;
    // A probe that is not answered took as long as it was given, and a single one counts for little.
    for _ in 0..2 {
        let event = events.recv().await.unwrap();
        assert!(
            event.smoothed > before && event.smoothed < Some(TIMEOUT / 50),
            "{event:?}"
        );
        before = event.smoothed;
    }
    assert!(begin.elapsed() <= INTERVAL * 3);
}

#[tokio::test(start_paused = true)]
async fn what_latencies_are_smoothed_over_changes_without_disturbing_checks() {
    let (mut checker, script, mut events) = checker();
    let set = |checker: &mut Checker<Script>, smooth| {
        let mut all = targets([1], &health(), Condition::Up);
        for config in all.values_mut() {
            config.smooth = smooth;
        }
        checker.set(all);
    };
    set(&mut checker, None);
    script.dead.lock().unwrap().insert(address(1));
    // Two of the three failures that take it down, of which the change may forget none.
    while script.probes.load(Ordering::Relaxed) < 2 {
        time::sleep(TIMEOUT / 10).await;
    }
    time::sleep(TIMEOUT).await;
    let begin = Instant::now();
    set(&mut checker, Some(INTERVAL * 3));
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    assert!(
        begin.elapsed() <= INTERVAL + TIMEOUT,
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(event.smoothed, Some(TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_of_strangers_and_of_backends_that_are_probed_count_for_nobody() {
    let (mut checker, _, _events) = checker();
    let mut all = heart(1);
    all.extend(targets([2], &health(), Condition::Starting));
    checker.set(all);
    assert!(!checker.reports().beat(&target(2)) && !checker.reports().beat(&target(3)));
    let from = |whose| checker.reports().beat_from(address(1).ip(), whose);
    let whose = |n| Whose {
        backend: Some(address(n)),
        service: None,
    };
    assert_eq!(from(Whose::default()), 1);
    assert_eq!((from(whose(1)), from(whose(2))), (1, 0));
    let other = Whose {
        service: Some("10.0.0.2:80/tcp".parse().unwrap()),
        ..whose(1)
    };
    assert_eq!(from(other), 0);
    assert_eq!(
        checker.reports().beat_from([192, 0, 2, 1].into(), whose(1)),
        0
    );
    checker.set(BTreeMap::new());
    assert_eq!(checker.reports().beat_from(address(1).ip(), whose(1)), 0);
}

fn agent() -> Check {
    named("agent", Probe::Agent(Agent::default()), Some(9))
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_asks_for_is_told_and_its_word_counts_at_once() {
    let (mut checker, script, mut events) = checker();
    *script.says.lock().unwrap() = "50% drain".to_owned();
    checker.set(targets([1], &agent(), Condition::Starting));
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Up, "nothing speaks against it");
    assert_eq!(
        (event.asked.weight, event.asked.wants),
        (Some(50), Some(Wants::Drain))
    );
    *script.says.lock().unwrap() = "down # disk".to_owned();
    let begin = Instant::now();
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    assert_eq!(event.error.as_deref(), Some("the agent says down: disk"));
    assert!(begin.elapsed() <= INTERVAL * 2);
    assert_eq!(event.asked.weight, Some(50), "not mentioned, so it stays");
    *script.says.lock().unwrap() = "up ready 100%".to_owned();
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Up);
    assert_eq!(event.asked.wants, Some(Wants::Flows));
}

#[tokio::test(start_paused = true)]
async fn that_no_flow_is_left_is_told_with_each_answer_that_says_so_and_when_it_was_asked_for() {
    let (mut checker, script, mut events) = checker();
    *script.says.lock().unwrap() = "drained".to_owned();
    let begin = Instant::now();
    checker.set(targets([1], &agent(), Condition::Starting));
    let first = events.recv().await.unwrap();
    assert_eq!(first.asked.wants, Some(Wants::Drained));
    assert!(first.asked.wants_none());
    let second = events.recv().await.unwrap();
    assert!(begin.elapsed() <= INTERVAL * 3, "not only now and then");
    let [first, second] = [first, second].map(|event| event.none_left.unwrap());
    let asked = [begin, first, second, Instant::now()];
    assert!(asked.is_sorted() && first < second, "{asked:?}");
    *script.says.lock().unwrap() = "drain".to_owned();
    let event = events.recv().await.unwrap();
    assert_eq!(
        (event.asked.wants, event.none_left),
        (Some(Wants::Drain), None)
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_changes_nothing_unless_it_is_said_to() {
    let (mut checker, script, mut events) = checker();
    *script.says.lock().unwrap() = "25%".to_owned();
    let must_answer = Check {
        probe: Probe::Agent(Agent {
            unreachable: crate::model::Unreachable::Fail,
            ..Agent::default()
        }),
        port: Some(8),
        ..agent()
    };
    checker.set(targets([1], &agent(), Condition::Up));
    assert_eq!(next(&mut events).await.asked.weight, Some(25));
    script
        .refusing
        .lock()
        .unwrap()
        .extend([address(8), address(9)]);
    let quiet = time::timeout(INTERVAL * 20, next_turn(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let event = next(&mut events).await;
    assert_eq!(event.error.as_deref(), Some("connection refused"));
    assert_eq!(event.asked.weight, Some(25));
    checker.set(targets([1], &must_answer, Condition::Up));
    let event = next_turn(&mut events).await;
    assert_eq!((event.condition, event.dead), (Condition::Down, false));
    assert_eq!(
        event.asked.weight,
        Some(25),
        "kept over a change of the checks"
    );
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_was_down_before_its_agent_was_asked_is_not_held_down_by_it() {
    for (refusing, line) in [(false, "100%"), (true, "")] {
        let (mut checker, script, mut events) = checker();
        *script.says.lock().unwrap() = line.to_owned();
        if refusing {
            script.refusing.lock().unwrap().insert(address(9));
        }
        checker.set(targets([1], &agent(), Condition::Down));
        assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agents_down_stays_until_it_says_up_and_its_absence_only_until_it_answers() {
    let (mut checker, script, mut events) = checker();
    let must_answer = Check {
        probe: Probe::Agent(Agent {
            unreachable: crate::model::Unreachable::Fail,
            ..Agent::default()
        }),
        ..agent()
    };
    *script.says.lock().unwrap() = "75%".to_owned();
    checker.set(targets([1], &must_answer, Condition::Up));
    script.refusing.lock().unwrap().insert(address(9));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Down);
    script.refusing.lock().unwrap().clear();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    *script.says.lock().unwrap() = "down".to_owned();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Down);
    *script.says.lock().unwrap() = "75%".to_owned();
    let quiet = time::timeout(INTERVAL * 20, next_turn(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    *script.says.lock().unwrap() = "up".to_owned();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_cannot_be_prepared_is_told_and_blames_nobody() {
    let (sender, mut events) = mpsc::channel(64);
    let mut checker = Checker::new(sender, PROBES_IN_FLIGHT);
    let check = Check {
        probe: Probe::Exec(Exec {
            command: Vec::new(),
        }),
        ..health()
    };
    checker.set(targets([1], &check, Condition::Up));
    let event = events.recv().await.unwrap();
    assert_eq!(event.condition, Condition::Up);
    assert_eq!(event.error.as_deref(), Some("cannot check: no program"));
    assert!(!event.suspect, "nothing is said against it");
}

#[tokio::test(start_paused = true)]
async fn a_failure_makes_suspect_and_a_probe_that_was_not_made_changes_nothing_of_that() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets([1], &health(), Condition::Up));
    assert!(!next(&mut events).await.suspect);
    script.refusing.lock().unwrap().insert(address(1));
    let failed = next(&mut events).await;
    assert!(
        failed.suspect && failed.condition == Condition::Up,
        "{failed:?}"
    );
    *script.broken_host.lock().unwrap() = true;
    let undecided = next(&mut events).await;
    assert!(undecided.suspect, "{undecided:?}");
    script.refusing.lock().unwrap().clear();
    *script.broken_host.lock().unwrap() = false;
    let passed = next(&mut events).await;
    assert!(!passed.suspect && passed.error.is_none(), "{passed:?}");
}

#[tokio::test(start_paused = true)]
async fn with_any_one_that_began_as_down_fails_once_all_of_its_checks_do() {
    for (combine, fails) in [(Combine::Any, false), (Combine::All, true)] {
        let (mut checker, script, mut events) = checker();
        script.refusing.lock().unwrap().insert(address(9));
        *script.unsure.lock().unwrap() = Some(address(1));
        let mut two = two(combine);
        for config in two.values_mut() {
            config.initial = Condition::Down;
        }
        checker.set(two);
        let told = time::timeout(INTERVAL * 20, async {
            while !events.recv().await.unwrap().fails {}
        });
        assert_eq!(told.await.is_ok(), fails, "{combine:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agents_down_is_remembered_over_other_checks_and_by_who_takes_over() {
    let (mut checker, script, mut events) = checker();
    *script.says.lock().unwrap() = "down".to_owned();
    checker.set(targets([1], &agent(), Condition::Up));
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    *script.says.lock().unwrap() = "75%".to_owned();
    // A service of the group gets another port.
    let mut others = targets([1], &agent(), Condition::Up);
    for config in others.values_mut() {
        config.alone = false;
    }
    checker.set(others);
    let quiet = time::timeout(INTERVAL * 20, next_turn(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // The first service of the group goes, or lbd is started again.
    drop(checker);
    let (sender, mut events) = mpsc::channel(64);
    let mut checker = Checker::with_prober(sender, script, 8);
    let mut heirs = targets([1], &agent(), Condition::Down);
    for config in heirs.values_mut() {
        config.asked = event.asked;
    }
    checker.set(heirs);
    let quiet = time::timeout(INTERVAL * 20, next_turn(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
