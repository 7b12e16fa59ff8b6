//! The checker as the agent sees it, with scripted probes and paused time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{self, Instant},
};

use super::{
    probe::{Answer, ProbeError, Subject},
    reply::{Reply, Wants},
    runner::LATENCY_EVERY,
    *,
};
use crate::model::{Agent, Check, Combine, Detector, Exec, Probe};

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);

/// Answers as told: addresses in `dead` hang, those in `refusing` refuse, all others succeed.
#[derive(Clone, Default)]
struct Script {
    dead: Arc<Mutex<BTreeSet<SocketAddr>>>,
    refusing: Arc<Mutex<BTreeSet<SocketAddr>>>,
    broken_host: Arc<Mutex<bool>>,
    /// Whom this host cannot even try to ask.
    unsure: Arc<Mutex<Option<SocketAddr>>>,
    /// Checks of other kinds than TCP are never ready to be put.
    unready: Arc<Mutex<bool>>,
    /// How long probes take; a millisecond where it is zero.
    takes: Arc<Mutex<Duration>>,
    /// What agents say.
    says: Arc<Mutex<String>>,
    probes: Arc<AtomicUsize>,
    flying: Arc<AtomicUsize>,
    most_flying: Arc<AtomicUsize>,
}

impl Prober for Script {
    type Question = Probe;

    async fn prepare(&self, probe: &Probe) -> Result<Arc<Probe>, ProbeError> {
        if *self.unready.lock().unwrap() && *probe != Probe::TCP {
            std::future::pending::<()>().await;
        }
        Ok(Arc::new(probe.clone()))
    }

    async fn ask(&self, subject: &Subject, question: &Probe) -> Result<Answer, ProbeError> {
        let address = subject.address;
        self.probes.fetch_add(1, Ordering::Relaxed);
        let flying = self.flying.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_flying.fetch_max(flying, Ordering::Relaxed);
        let outcome = if self.dead.lock().unwrap().contains(&address) {
            time::sleep(subject.timeout).await;
            Err(ProbeError::Timeout(subject.timeout))
        } else if *self.broken_host.lock().unwrap() || *self.unsure.lock().unwrap() == Some(address)
        {
            Err(ProbeError::Local("too many open files".to_owned()))
        } else if self.refusing.lock().unwrap().contains(&address) {
            Err(ProbeError::Refused)
        } else {
            let reply = matches!(question, Probe::Agent(_))
                .then(|| Reply::parse(&self.says.lock().unwrap()));
            let takes = *self.takes.lock().unwrap();
            let latency = takes.max(Duration::from_millis(1));
            Ok(Answer { latency, reply })
        };
        self.flying.fetch_sub(1, Ordering::Relaxed);
        outcome
    }
}

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 1, 1], n))
}

fn target(n: u16) -> Target {
    Target {
        service: "10.0.0.1:80/tcp".parse().unwrap(),
        address: address(n),
    }
}

fn health() -> Check {
    Check {
        interval: INTERVAL,
        timeout: TIMEOUT,
        rise: 2,
        fall: 3,
        ..Check::new(Probe::TCP)
    }
}

fn config(health: impl Into<Health>, initial: Condition) -> TargetConfig {
    TargetConfig {
        health: Arc::new(health.into()),
        alone: true,
        smooth: None,
        way: Way::default(),
        initial,
        asked: Asked::default(),
        also: Arc::default(),
    }
}

fn targets(
    ports: impl IntoIterator<Item = u16>,
    health: &Check,
    initial: Condition,
) -> BTreeMap<Target, TargetConfig> {
    let config = config(health.clone(), initial);
    ports
        .into_iter()
        .map(|n| (target(n), config.clone()))
        .collect()
}

fn checker() -> (Checker<Script>, Script, mpsc::Receiver<Event>) {
    let (events, receiver) = mpsc::channel(64);
    let script = Script::default();
    (
        Checker::with_prober(events, script.clone(), PROBES_IN_FLIGHT),
        script,
        receiver,
    )
}

/// The next event that says more than a latency.
async fn next_turn(events: &mut mpsc::Receiver<Event>) -> Event {
    let turn = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.changed {
                return event;
            }
        }
    };
    time::timeout(INTERVAL * 60, turn).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn first_success_is_reported_as_up_within_one_interval() {
    let (mut checker, _, mut events) = checker();
    let begin = Instant::now();
    checker.set(targets([1], &health(), Condition::Starting));
    let event = events.recv().await.unwrap();
    let latency = Some(Duration::from_millis(1));
    let up = Condition::Up;
    assert_eq!(
        event,
        Event {
            target: target(1),
            condition: up,
            changed: true,
            dead: false,
            fails: false,
            suspect: false,
            error: None,
            latency,
            smoothed: None,
            checks: event.checks.clone(),
            asked: Asked::default(),
            none_left: None,
        }
    );
    let check = CheckStatus {
        latency,
        passed: 1,
        ..CheckStatus::new("tcp".to_owned(), up)
    };
    assert_eq!(event.checks, [check]);
    assert!(begin.elapsed() <= INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn silent_death_is_seen_within_interval_times_fall_plus_timeout() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets(1..=50, &health(), Condition::Starting));
    for _ in 1..=50 {
        next_turn(&mut events).await;
    }
    let begin = Instant::now();
    script.dead.lock().unwrap().extend((1..=50).map(address));
    for _ in 1..=50 {
        let event = next_turn(&mut events).await;
        assert_eq!(event.condition, Condition::Down);
        assert_eq!(event.error.as_deref(), Some("no answer within 500ms"));
    }
    // One millisecond is the resolution of tokio's timer.
    assert!(begin.elapsed() <= INTERVAL * 3 + TIMEOUT + Duration::from_millis(2));
}

#[tokio::test(start_paused = true)]
async fn refusal_is_seen_without_waiting_for_the_timeout_and_recovery_after_rise_probes() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets([1], &health(), Condition::Up));
    let first = events.recv().await.unwrap();
    assert!(!first.changed, "it was up before: {first:?}");
    let begin = Instant::now();
    script.refusing.lock().unwrap().insert(address(1));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Down);
    assert!(begin.elapsed() <= INTERVAL * 3 + Duration::from_millis(2));
    let begin = Instant::now();
    script.refusing.lock().unwrap().clear();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    assert!(begin.elapsed() <= INTERVAL * 2 + Duration::from_millis(2));
}

#[tokio::test(start_paused = true)]
async fn unchanging_outcomes_are_reported_rarely() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets([1, 2], &health(), Condition::Up));
    script.refusing.lock().unwrap().insert(address(2));
    let (mut good, mut bad) = (0, 0);
    let _ = time::timeout(LATENCY_EVERY * 10, async {
        while let Some(event) = events.recv().await {
            *(if event.target == target(1) {
                &mut good
            } else {
                &mut bad
            }) += 1;
        }
    })
    .await;
    assert!(
        (8..=10).contains(&good),
        "latencies and counts, once per period: {good}"
    );
    assert!(
        (9..=12).contains(&bad),
        "the first error, the transition, and counts once per period: {bad}"
    );
    assert!(script.probes.load(Ordering::Relaxed) >= 98);
}

#[tokio::test(start_paused = true)]
async fn trouble_of_this_host_is_reported_but_takes_no_backend_down() {
    let (mut checker, script, mut events) = checker();
    *script.broken_host.lock().unwrap() = true;
    checker.set(targets([1], &health(), Condition::Up));
    let event = events.recv().await.unwrap();
    assert!(event.error.unwrap().contains("too many open files"));
    let more = time::timeout(INTERVAL * 20, next_turn(&mut events)).await;
    assert!(more.is_err(), "{more:?}");
    let counts = events.recv().await.unwrap().checks.remove(0);
    assert_eq!((counts.passed, counts.failed), (0, 0));
    assert!(counts.undecided >= 20);
}

/// The next event, whatever it says.
async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    let event = time::timeout(INTERVAL * 60, events.recv()).await;
    event.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn refusing_backend_is_dead_once_it_is_down_and_silent_one_is_not() {
    let (mut checker, script, mut events) = checker();
    script.refusing.lock().unwrap().insert(address(1));
    script.dead.lock().unwrap().insert(address(2));
    checker.set(targets([1, 2], &health(), Condition::Up));
    let mut down = BTreeMap::new();
    while down.len() < 2 {
        let event = next(&mut events).await;
        if event.condition == Condition::Up {
            assert!(!event.dead, "what is up is not dead: {event:?}");
        } else {
            down.insert(event.target, event.dead);
        }
    }
    assert_eq!(
        down,
        BTreeMap::from([(target(1), true), (target(2), false)])
    );
}

#[tokio::test(start_paused = true)]
async fn backend_that_is_down_is_reported_again_when_it_dies_and_when_it_answers() {
    let (mut checker, script, mut events) = checker();
    script.dead.lock().unwrap().insert(address(1));
    let slow_to_rise = Check {
        rise: 9,
        ..health()
    };
    checker.set(targets([1], &slow_to_rise, Condition::Up));
    assert!(!next_turn(&mut events).await.dead);
    script.refusing.lock().unwrap().insert(address(1));
    script.dead.lock().unwrap().clear();
    let event = next(&mut events).await;
    assert!(event.dead && !event.changed, "{event:?}");
    script.refusing.lock().unwrap().clear();
    let event = next(&mut events).await;
    assert!(!event.dead && !event.changed, "{event:?}");
    assert_eq!(event.condition, Condition::Down);
}

#[tokio::test(start_paused = true)]
async fn trouble_of_this_host_does_not_revive_the_dead() {
    let (mut checker, script, mut events) = checker();
    script.refusing.lock().unwrap().insert(address(1));
    checker.set(targets([1], &health(), Condition::Up));
    assert!(next_turn(&mut events).await.dead);
    *script.broken_host.lock().unwrap() = true;
    let event = next(&mut events).await;
    assert!(event.error.unwrap().contains("too many open files"));
    assert!(event.dead);
}

#[tokio::test(start_paused = true)]
async fn death_is_news_even_if_the_error_reads_as_before() {
    let (mut checker, script, mut events) = checker();
    script
        .refusing
        .lock()
        .unwrap()
        .extend([address(1), address(9)]);
    let other_port = Check {
        port: Some(9),
        ..health()
    };
    checker.set(targets([1], &other_port, Condition::Up));
    let before = next_turn(&mut events).await;
    assert!(!before.dead);
    checker.set(targets([1], &health(), Condition::Up));
    let event = next(&mut events).await;
    assert!(event.dead && !event.changed, "{event:?}");
    assert_eq!(event.error, before.error);
}

#[tokio::test(start_paused = true)]
async fn refusal_where_no_flows_go_takes_down_but_not_for_dead() {
    let (mut checker, script, mut events) = checker();
    let own_port = Check {
        port: Some(1),
        ..health()
    };
    let other_port = Check {
        port: Some(9),
        ..health()
    };
    let udp = Target {
        service: "10.0.0.1:80/udp".parse().unwrap(),
        ..target(3)
    };
    let ports = [1, 2, 3, 9].map(address);
    script.refusing.lock().unwrap().extend(ports);
    let up = Condition::Up;
    checker.set(BTreeMap::from([
        (target(1), config(own_port, up)),
        (target(2), config(other_port, up)),
        (udp, config(health(), up)),
    ]));
    for _ in 0..3 {
        let event = next_turn(&mut events).await;
        assert_eq!(event.condition, Condition::Down);
        assert_eq!(event.dead, event.target == target(1), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn unprobed_target_is_up_at_once_and_says_so_once() {
    let (mut checker, script, mut events) = checker();
    let health = Check {
        probe: Probe::NONE,
        ..health()
    };
    checker.set(targets([1], &health, Condition::Down));
    let event = events.recv().await.unwrap();
    assert!(event.changed && event.condition == Condition::Up);
    assert!(time::timeout(INTERVAL * 20, events.recv()).await.is_err());
    assert_eq!(script.probes.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn removed_target_is_probed_no_more_and_the_others_go_on() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets([1, 2], &health(), Condition::Starting));
    next_turn(&mut events).await;
    next_turn(&mut events).await;
    checker.set(targets([2], &health(), Condition::Starting));
    script
        .refusing
        .lock()
        .unwrap()
        .extend([address(1), address(2)]);
    assert_eq!(next_turn(&mut events).await.target, target(2));
    let more = time::timeout(INTERVAL * 10, next_turn(&mut events)).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test(start_paused = true)]
async fn same_targets_again_do_not_disturb_the_rhythm() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets([1], &health(), Condition::Starting));
    next_turn(&mut events).await;
    for _ in 0..100 {
        time::sleep(INTERVAL / 10).await;
        checker.set(targets([1], &health(), Condition::Starting));
    }
    assert!((10..=11).contains(&script.probes.load(Ordering::Relaxed)));
}

#[tokio::test(start_paused = true)]
async fn changed_check_takes_effect_and_keeps_the_condition() {
    let (mut checker, script, mut events) = checker();
    script.refusing.lock().unwrap().insert(address(1));
    checker.set(targets([1], &health(), Condition::Starting));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Down);
    let patient = Check {
        rise: 5,
        ..health()
    };
    checker.set(targets([1], &patient, Condition::Starting));
    script.refusing.lock().unwrap().clear();
    let begin = Instant::now();
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    assert!(
        begin.elapsed() >= INTERVAL * 4,
        "down until five successes: {:?}",
        begin.elapsed()
    );
    checker.set(targets(
        [1],
        &Check {
            probe: Probe::NONE,
            ..health()
        },
        Condition::Starting,
    ));
    assert!(!events.recv().await.unwrap().changed, "still up");
}

#[tokio::test(start_paused = true)]
async fn turn_that_a_full_channel_held_back_is_reported_after_the_check_changed() {
    let (sender, mut events) = mpsc::channel(1);
    sender
        .send(Event::new(target(9), Condition::Up))
        .await
        .unwrap();
    let mut checker = Checker::with_prober(sender, Script::default(), 8);
    checker.set(targets([1], &health(), Condition::Starting));
    time::sleep(INTERVAL * 2).await;
    checker.set(targets(
        [1],
        &Check {
            fall: 9,
            ..health()
        },
        Condition::Starting,
    ));
    time::sleep(INTERVAL * 2).await;
    assert_eq!(events.recv().await.unwrap().target, target(9));
    let event = events.recv().await.unwrap();
    assert!(
        event.changed && event.condition == Condition::Up,
        "{event:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn checks_go_on_while_nobody_takes_their_news_and_the_last_is_told_then() {
    let (sender, mut events) = mpsc::channel(1);
    let full = Event::new(target(9), Condition::Up);
    sender.send(full).await.unwrap();
    let script = Script::default();
    let mut checker = Checker::with_prober(sender, script.clone(), 8);
    checker.set(targets([1], &health(), Condition::Starting));
    time::sleep(INTERVAL * 10).await;
    let probes = script.probes.load(Ordering::Relaxed);
    assert!((9..=11).contains(&probes), "{probes}");
    script.dead.lock().unwrap().insert(address(1));
    time::sleep(INTERVAL * 5).await;
    assert_eq!(events.recv().await.unwrap().target, target(9));
    let event = events.recv().await.unwrap();
    assert_eq!((event.condition, event.changed), (Condition::Down, true));
}

#[tokio::test(start_paused = true)]
async fn probes_in_flight_are_bounded_and_the_living_are_not_blamed_for_waiting() {
    let (mut checker, script, mut events) = checker();
    let ports = 1..=4_000_u16;
    script.dead.lock().unwrap().extend((2..=4_000).map(address));
    checker.set(targets(ports, &health(), Condition::Up));
    let mut down = 0;
    while down < 3_999 {
        let event = next_turn(&mut events).await;
        assert_ne!(event.target, target(1));
        down += 1;
    }
    assert_eq!(script.most_flying.load(Ordering::Relaxed), PROBES_IN_FLIGHT);
}

#[tokio::test(start_paused = true)]
async fn dropped_checker_stops_probing() {
    let (mut checker, script, mut events) = checker();
    checker.set(targets(1..=10, &health(), Condition::Starting));
    next_turn(&mut events).await;
    drop(checker);
    while time::timeout(INTERVAL, events.recv())
        .await
        .is_ok_and(|event| event.is_some())
    {}
    let probes = script.probes.load(Ordering::Relaxed);
    time::sleep(INTERVAL * 10).await;
    assert_eq!(script.probes.load(Ordering::Relaxed), probes);
}

#[tokio::test]
async fn real_listener_comes_up_and_goes_down_when_it_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let mut checker = Checker::new(sender, PROBES_IN_FLIGHT);
    let ms = Duration::from_millis;
    let health = Check {
        interval: ms(50),
        timeout: ms(50),
        ..health()
    };
    let target = Target {
        address,
        ..target(1)
    };
    let config = config(health, Condition::Starting);
    checker.set(BTreeMap::from([(target, config)]));
    assert_eq!(next_turn(&mut events).await.condition, Condition::Up);
    drop(listener);
    let event = next_turn(&mut events).await;
    assert_eq!(event.condition, Condition::Down);
    assert_eq!(event.error.as_deref(), Some("connection refused"));
    assert!(event.dead);
}

#[test]
fn probes_in_flight_leave_half_of_the_descriptors_to_others() {
    assert_eq!(probes_in_flight(1_024), 512);
    assert_eq!(probes_in_flight(1 << 20), 6_144);
    assert_eq!(probes_in_flight(20), 64);
}

mod several;

#[tokio::test(start_paused = true)]
async fn a_check_that_is_never_ready_says_so_blames_nobody_and_holds_up_no_other() {
    let (events, mut news) = mpsc::channel(64);
    let script = Script::default();
    *script.unready.lock().unwrap() = true;
    let mut checker = Checker::with_prober(events, script, 1);
    let unready = Check {
        probe: Probe::Icmp {},
        ..health()
    };
    let mut all = targets([1], &unready, Condition::Starting);
    all.extend(targets([2], &health(), Condition::Starting));
    checker.set(all);
    let heard = async {
        let (mut said, mut up) = (None, false);
        while said.is_none() || !up {
            let event = next(&mut news).await;
            match event.target.address.port() {
                1 => said = event.error.map(|error| (event.condition, error)),
                _ => up |= event.condition == Condition::Up,
            }
        }
        said.unwrap()
    };
    let (condition, error) = time::timeout(INTERVAL * 10, heard).await.unwrap();
    assert_eq!(condition, Condition::Starting);
    assert!(error.contains("could not be read within 500ms"), "{error}");
}
