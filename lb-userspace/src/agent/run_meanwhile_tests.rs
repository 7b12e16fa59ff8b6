//! What checks say while a plan is under way.

use std::sync::atomic::{AtomicBool, Ordering};

use lb_common::tables::{SECOND, Signs, feature, state};

use super::{
    tests::{Dam, Faults, Flood, at_rest, backend, service},
    *,
};
use crate::{
    model::{EditRated, Mode, Passive, Service, Settings},
    neighbours::NextHop,
    plan::Layout,
    snapshot::Condition,
};

/// Backend 1 is in that condition, or dead.
fn news(condition: Condition, dead: bool) -> Event {
    news_of(1, condition, dead)
}

fn news_of(n: u8, condition: Condition, dead: bool) -> Event {
    let target = Target {
        service: service().id,
        address: backend(n).address,
    };
    Event {
        dead,
        ..Event::new(target, condition)
    }
}

/// A backend is reached by another way.
pub(super) fn way(n: u8, by: u8) -> Update {
    Update::NextHop {
        address: backend(n).address.ip(),
        next_hop: Some(NextHop {
            interface: 7,
            source_mac: [2; 6],
            destination_mac: [by; 6],
            source_address: IpAddr::from([10, 1, 0, 254]),
            mtu: 1_500,
            on_link: true,
        }),
        reason: None,
    }
}

/// An agent both backends of which take new flows.
fn start() -> (Running<Flood>, Arc<Faults>, Dam) {
    let faults = Arc::new(Faults::default());
    let (mut agent, dam) = at_rest(Arc::clone(&faults));
    for n in 1..=2 {
        assert!(agent.core.network(way(n, 4)));
    }
    agent.core.enforce().unwrap();
    for n in 1..=2 {
        assert_eq!(state_of(&agent, n), state::TAKES | state::HOLDS);
    }
    // Nothing is due for a while.
    agent.sweep = Sweeping::UnderWay(Instant::now());
    assert!(agent.next_deadline(None).unwrap() > Instant::now());
    (agent, faults, dam)
}

/// What a backend does in the maps, which is what the agent takes it to do.
fn state_of(agent: &Running<Flood>, n: u8) -> u8 {
    let placed = agent.core.layout().placed(service().id).unwrap();
    let (_, member) = placed.member(backend(n).address).unwrap();
    let tables = &agent.core.dataplane().memory.tables;
    let is = tables.backends[member.entry as usize].state;
    assert_eq!(is, member.backend.state, "of entry {}", member.entry);
    is
}

#[tokio::test]
async fn a_failure_told_while_a_plan_waits_for_packets_takes_effect_before_the_wait_is_over() {
    let (mut agent, faults, _dam) = start();
    let second = news_of(2, Condition::Down, false);
    *faults.told_in_wait.lock().unwrap() = Some(second);
    agent.on_health(news(Condition::Down, false));
    assert!(faults.in_time.load(Ordering::Acquire));
    assert_eq!([1, 2].map(|n| state_of(&agent, n)), [state::HOLDS; 2]);
    assert!(agent.core.has_heard(), "the ring has yet to follow");
    assert!(agent.next_deadline(None).unwrap() <= Instant::now());
    agent.on_deadlines(Instant::now());
    assert!(!agent.core.has_heard());
}

#[tokio::test]
async fn who_fails_and_recovers_before_the_ring_follows_takes_flows_again() {
    let (mut agent, _, _dam) = start();
    assert!(agent.core.hear(news(Condition::Down, false)));
    assert_eq!(state_of(&agent, 1), state::HOLDS);
    assert!(agent.core.hear(news(Condition::Up, false)));
    agent.enforce();
    assert_eq!(state_of(&agent, 1), state::TAKES | state::HOLDS);
}

/// The thread on which a plan is made, if one is.
fn planner() -> Option<PathBuf> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut names = threads.map(|thread| thread.path().join("comm"));
    names.find(|name| std::fs::read_to_string(name).is_ok_and(|name| name == "plan\n"))
}

/// Tells that backend 1 fails once a plan is being made; whether it was marked before that was over.
fn fail_amid_a_plan(events: &mpsc::Sender<Event>, faults: &Faults, over: &AtomicBool) -> bool {
    let planner = loop {
        match planner() {
            Some(planner) => break planner,
            None if over.load(Ordering::Acquire) => return false,
            None => {}
        }
    };
    events.try_send(news(Condition::Down, false)).unwrap();
    faults.await_mark() && planner.exists()
}

#[tokio::test]
async fn a_failure_told_while_a_plan_is_made_takes_effect_before_it_is() {
    let (mut agent, faults, _dam) = start();
    // So that it takes long.
    let settings = Settings {
        ring_size: Some(655_373),
        ..Settings::default()
    };
    let change = Change::EditService(service().id, settings);
    agent.core.change(change).unwrap();
    let amid = (0..20).any(|_| {
        agent.on_health(news(Condition::Up, false));
        faults.marked.store(false, Ordering::Release);
        let (events, over) = (
            agent.core.dataplane().events.clone(),
            AtomicBool::new(false),
        );
        let weight = |weight| Change::EditBackend {
            id: service().id,
            address: backend(2).address,
            weight: Some(weight),
            admin: None,
            max_connections: None,
            rated: Default::default(),
            tier: None,
        };
        std::thread::scope(|scope| {
            let told = scope.spawn(|| fail_amid_a_plan(&events, &faults, &over));
            agent.core.change(weight(2)).unwrap();
            over.store(true, Ordering::Release);
            let amid = told.join().unwrap();
            agent.core.change(weight(1)).unwrap();
            amid
        })
    });
    assert!(amid, "failures have waited for plans");
}

/// What leads to a plan that gives backend 1 a state, or another entry, or is about somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Recovery,
    Way,
    Addition,
}

impl Cause {
    fn prepare(self, agent: &mut Running<Flood>) {
        if self == Self::Recovery {
            agent.on_health(news(Condition::Down, false));
        }
    }

    fn come(self, agent: &mut Running<Flood>) {
        match self {
            Self::Recovery => agent.on_health(news(Condition::Up, false)),
            Self::Way => {
                assert!(agent.core.network(way(1, 5)));
                agent.enforce();
            }
            Self::Addition => {
                let change = Change::AddBackend(service().id, backend(3));
                agent.core.change(change).unwrap();
            }
        }
    }
}

/// What the maps hold after such a plan during whose operation of that number backend 1 fails, and one that follows
/// that; nothing where the plan has no such operation.
fn failing_at(number: usize, cause: Cause, dead: bool) -> Option<Layout> {
    let (mut agent, faults, _dam) = start();
    cause.prepare(&mut agent);
    let at = faults.executed.load(Ordering::Relaxed) + number;
    *faults.told.lock().unwrap() = Some((at, news(Condition::Down, dead)));
    cause.come(&mut agent);
    faults.told.lock().unwrap().is_none().then_some(())?;
    // Told by the last operation, it waits for its turn.
    if let Some(event) = agent.core.news_at_hand() {
        agent.on_health(event);
    }
    let left = if dead { 0 } else { state::HOLDS };
    assert_eq!(state_of(&agent, 1), left, "failing at {number}");
    if agent.core.has_heard() {
        agent.enforce();
    }
    assert_eq!(
        state_of(&agent, 1),
        left,
        "once the ring follows, failing at {number}"
    );
    state_of(&agent, 2);
    Some(agent.core.layout().clone())
}

#[tokio::test]
async fn at_whichever_step_of_a_plan_a_backend_fails_it_is_as_if_it_had_failed_right_after() {
    for cause in [Cause::Recovery, Cause::Way, Cause::Addition] {
        for dead in [false, true] {
            let (mut agent, _, _dam) = start();
            cause.prepare(&mut agent);
            cause.come(&mut agent);
            agent.on_health(news(Condition::Down, dead));
            let after = agent.core.layout().clone();
            let mut steps = 0;
            while let Some(layout) = failing_at(steps, cause, dead) {
                assert_eq!(layout, after, "{cause:?}, failing at {steps}");
                steps += 1;
            }
            assert!(steps >= 3, "{cause:?} has {steps} steps");
        }
    }
}

#[tokio::test]
async fn what_is_heard_during_a_change_that_is_refused_is_not_forgotten_with_it() {
    let (mut agent, _, _dam) = start();
    let memory = &agent.core.dataplane().memory;
    memory.without.store(feature::GUE, Ordering::Relaxed);
    let events = agent.core.dataplane().events.clone();
    events.try_send(news(Condition::Down, false)).unwrap();
    let other = Service::new("10.0.0.2:80/tcp".parse().unwrap(), Mode::Gue);
    let refused = agent.core.change(Change::AddService(other)).unwrap_err();
    assert!(matches!(refused, ChangeError::NotLoaded(_)), "{refused}");
    assert_eq!(state_of(&agent, 1), state::HOLDS);
    assert!(agent.core.has_heard());
    agent.enforce();
    assert_eq!(state_of(&agent, 1), state::HOLDS);
}

#[tokio::test]
async fn a_failure_told_while_statuses_are_told_takes_effect_before_they_are() {
    let (mut agent, faults, _dam) = start();
    *faults.told_in_read.lock().unwrap() = Some(news(Condition::Down, false));
    drop(agent.core.snapshot_meanwhile());
    assert_eq!(state_of(&agent, 1), state::HOLDS);
    assert!(agent.core.has_heard());
}

#[tokio::test]
async fn what_is_heard_while_states_are_told_is_told_next_though_no_ring_follows_it() {
    let (mut agent, _, _dam) = start();
    agent.core.observe(SystemTime::now());
    agent.on_health(news_of(2, Condition::Up, false));
    let events = agent.core.dataplane().events.clone();
    events.try_send(news(Condition::Up, false)).unwrap();
    agent.core.observe(SystemTime::now());
    assert!(agent.core.news_at_hand().is_none(), "it was heard");
    assert!(!agent.core.has_heard());
    assert!(agent.next_deadline(None).unwrap() <= Instant::now());
    agent.core.observe(SystemTime::now());
    assert!(!agent.core.has_news());
}

#[tokio::test]
async fn a_request_is_answered_once_rings_follow_what_was_heard_while_states_were_told() {
    let (mut agent, _, _dam) = start();
    let events = agent.core.dataplane().events.clone();
    events.try_send(news(Condition::Down, false)).unwrap();
    agent.core.observe(SystemTime::now());
    assert!(agent.core.has_heard());
    let (reply, answer) = oneshot::channel();
    agent.on_request(Request::Snapshot(reply));
    let first = &answer.await.unwrap().services[0].backends[0];
    assert_eq!(first.slots, 0);
}

#[tokio::test]
async fn a_failure_told_while_rates_are_measured_takes_effect_before_all_are() {
    let (mut agent, faults, _dam) = start();
    let rated = EditRated {
        max_flow_rate: Some(Some(1_000)),
        ..EditRated::default()
    };
    let change = Change::EditBackend {
        id: service().id,
        address: backend(2).address,
        weight: None,
        admin: None,
        max_connections: None,
        rated,
        tier: None,
    };
    agent.core.change(change).unwrap();
    let now = &agent.core.dataplane().memory.tables.time;
    now.set(now.get() + SECOND);
    *faults.told_in_read.lock().unwrap() = Some(news(Condition::Down, false));
    agent.core.measure();
    assert_eq!(state_of(&agent, 1), state::HOLDS);
    assert!(agent.core.has_heard(), "the ring has yet to follow");
}

/// As many clients as it takes were refused by a backend.
fn refusals() -> Signs {
    Signs {
        refused: 100,
        streak: 100,
        ..Signs::default()
    }
}

#[tokio::test]
async fn what_packets_show_while_a_plan_waits_takes_effect_before_the_wait_is_over() {
    let (mut agent, faults, _dam) = start();
    let settings = Settings {
        passive: Some(Passive::ON),
        ..Settings::default()
    };
    let change = Change::EditService(service().id, settings);
    agent.core.change(change).unwrap();
    // What was shown before counts for nothing.
    agent.core.watch_now();
    *faults.shown_in_wait.lock().unwrap() = Some(refusals());
    assert!(agent.core.network(way(2, 5)));
    agent.enforce();
    assert!(faults.in_time.load(Ordering::Acquire));
    assert_eq!(state_of(&agent, 1), state::HOLDS);
    assert!(agent.core.has_heard(), "the ring has yet to follow");
}

#[tokio::test]
async fn a_failure_told_while_it_is_looked_at_what_packets_show_takes_effect_meanwhile() {
    let (mut agent, _, _dam) = start();
    let settings = Settings {
        passive: Some(Passive::ON),
        ..Settings::default()
    };
    let change = Change::EditService(service().id, settings);
    agent.core.change(change).unwrap();
    let events = agent.core.dataplane().events.clone();
    events.try_send(news(Condition::Down, false)).unwrap();
    agent.core.watch_now();
    assert_eq!(state_of(&agent, 1), state::HOLDS);
    assert!(agent.core.has_heard(), "the ring has yet to follow");
}

/// Where a file is written that nobody takes yet.
fn slow_disk(folder: &std::path::Path) -> PathBuf {
    let path = folder.join("kept.json");
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&path.with_extension("new"), mode).unwrap();
    path
}

/// Has backend 1 fail while the agent does what writes to a slow disk, which takes it once the backend is marked.
fn failing_while(keeps: impl FnOnce(&mut Running<Flood>, PathBuf)) {
    let (mut agent, faults, _dam) = start();
    let folder = tempfile::tempdir().unwrap();
    let path = slow_disk(folder.path());
    let (disk, events) = (
        path.with_extension("new"),
        agent.core.dataplane().events.clone(),
    );
    agent.on_health(news_of(2, Condition::Down, false));
    faults.marked.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            events.try_send(news(Condition::Down, false)).unwrap();
            let marked = faults.await_mark();
            drop(std::fs::read(disk));
            marked
        });
        keeps(&mut agent, path);
        assert!(seen.join().unwrap(), "marked only once the disk had it");
    });
    assert_eq!(state_of(&agent, 1), state::HOLDS);
}

#[tokio::test]
async fn a_failure_told_while_a_slow_disk_keeps_the_state_takes_effect_before_that_is_kept() {
    failing_while(|agent, path| {
        agent.sources.store = Some((path, String::new()));
        agent.save();
    });
}

#[tokio::test]
async fn a_failure_told_while_a_slow_disk_keeps_the_history_takes_effect_before_that_is_kept() {
    failing_while(|agent, path| {
        agent.sources.history = Some(path);
        agent.remember();
    });
}
