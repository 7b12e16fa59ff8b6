//! What states backends are in, and what is told when they turn: the agent's core over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    health::{
        Event, Target,
        reply::{Asked, Wants},
    },
    model::{Admin, Change, ServiceId},
    snapshot::{BackendState, Condition, EventFilter, Happened, Standing},
};

use crate::reach::{asking, memory, reached};

const VIP: &str = "10.0.0.1:80/tcp";

fn id() -> ServiceId {
    VIP.parse().unwrap()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 80))
}

/// A moment of the test.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// An agent whose service has a primary backend 1 and a standby 2, both up since second 1.
fn start() -> Core<MemoryDataplane> {
    let mut core = Core::new("standing".to_owned(), Tunnel::default(), memory()).unwrap();
    for n in 1..=2 {
        core.network(reached(address(n).ip(), 1));
    }
    let text = format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"ipip\"\nring_size = 251\nbackend = [\
         {{ address = \"10.1.0.1:80\" }}, {{ address = \"10.1.0.2:80\", tier = 1 }}]\n"
    );
    let services = config::parse(&text, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    core.observe(at(0));
    assert_eq!(standing(&core, 1).state, BackendState::Starting);
    for n in 1..=2 {
        check(&mut core, event(n, Condition::Up, None), 1);
    }
    core
}

fn event(n: u8, condition: Condition, error: Option<&str>) -> Event {
    let target = Target {
        service: id(),
        address: address(n),
    };
    Event {
        error: error.map(str::to_owned),
        suspect: error.is_some(),
        ..Event::new(target, condition)
    }
}

fn check(core: &mut Core<MemoryDataplane>, event: Event, second: u64) {
    if core.health(event) {
        core.enforce().unwrap();
    }
    core.observe(at(second));
}

fn ask(core: &mut Core<MemoryDataplane>, admin: Admin, second: u64) {
    core.change(asking(id(), address(1), admin)).unwrap();
    core.observe(at(second));
}

fn standing(core: &Core<MemoryDataplane>, n: u8) -> Standing {
    let service = core.service(id()).unwrap();
    service
        .backend(address(n))
        .unwrap()
        .standing
        .clone()
        .unwrap()
}

fn is(core: &Core<MemoryDataplane>, n: u8, state: BackendState, reason: &str, second: u64) {
    let reason = reason.to_owned();
    let since = at(second);
    let expected = Standing {
        state,
        reason,
        since,
    };
    assert_eq!(standing(core, n), expected);
}

/// What has happened, in short.
fn told(core: &Core<MemoryDataplane>) -> Vec<String> {
    let all = EventFilter {
        service: None,
        after: None,
        epoch: None,
        limit: usize::MAX,
    };
    let events = core.events(&all).events.into_iter();
    let line = |event: lb_userspace::snapshot::EventRecord| match event.what {
        Happened::Tiers | Happened::Panic | Happened::Damped { .. } | Happened::Conflict => {
            event.reason
        }
        Happened::Turned { backend, from, to } => format!("{backend} {from:?} {to:?}"),
    };
    events.map(line).collect()
}

#[test]
fn a_failure_is_told_with_its_doubt_its_reason_and_the_standby_that_takes_over() {
    use BackendState::{Down, Standby, Suspect, Up};
    let mut core = start();
    is(&core, 1, Up, "its checks pass", 1);
    is(&core, 2, Standby, "tier 1 is not needed", 1);
    check(&mut core, event(1, Condition::Up, Some("timed out")), 2);
    is(&core, 1, Suspect, "timed out", 2);
    check(&mut core, event(1, Condition::Up, Some("refused")), 3);
    is(&core, 1, Suspect, "refused", 2);
    check(&mut core, event(1, Condition::Down, Some("refused")), 4);
    is(&core, 1, Down, "refused", 4);
    is(&core, 2, Up, "its checks pass", 4);
    check(&mut core, event(1, Condition::Up, None), 5);
    is(&core, 1, Up, "its checks pass", 5);
    is(&core, 2, Standby, "tier 1 is not needed", 5);
    let expected = [
        "10.1.0.1:80 Starting Up",
        "10.1.0.2:80 Starting Standby",
        "10.1.0.1:80 Up Suspect",
        "10.1.0.1:80 Suspect Down",
        "10.1.0.2:80 Standby Up",
        "100% to tier 0",
        "10.1.0.1:80 Down Up",
        "10.1.0.2:80 Up Standby",
    ];
    let mut told = told(&core);
    // What tiers come to is told before who turned by it.
    assert_eq!(told.remove(3), "100% to tier 1");
    assert_eq!(told, expected);
}

#[test]
fn what_people_and_agents_ask_is_told_as_such() {
    use BackendState::{Down, Draining, Maintenance, Up};
    let mut core = start();
    for (second, admin, state) in [
        (2, Admin::Draining, Draining),
        (3, Admin::Maintenance, Maintenance),
        (4, Admin::Down, Down),
        (5, Admin::Up, Up),
    ] {
        ask(&mut core, admin, second);
        is(&core, 1, state, "by hand", second);
    }
    check(&mut core, event(1, Condition::Down, Some("refused")), 6);
    is(&core, 1, Up, "by hand; its checks say: refused", 5);
    ask(&mut core, Admin::Active, 7);
    is(&core, 1, Down, "refused", 7);
    let asked = Asked {
        wants: Some(Wants::Drain),
        ..Asked::default()
    };
    let drains = Event {
        asked,
        ..event(1, Condition::Up, None)
    };
    check(&mut core, drains, 8);
    is(&core, 1, Draining, "its agent asks for it", 8);
}

#[test]
fn who_wants_no_flows_for_its_agent_is_told_in_which_way_and_is_up_where_it_is_forced_to_be() {
    use BackendState::{Draining, Maintenance, Up};
    let mut core = start();
    let weight = |weight| Asked {
        weight: Some(weight),
        ..Asked::default()
    };
    let wants = |wants| Asked {
        wants: Some(wants),
        ..Asked::default()
    };
    let none = "its agent asks for 0% of its weight";
    let maintenance = "its agent asks for it; it is checked all the same";
    for (second, asked, state, reason) in [
        (2, weight(0), Draining, none),
        (3, weight(50), Up, "its checks pass"),
        (4, wants(Wants::Maintenance), Maintenance, maintenance),
        (5, wants(Wants::Drained), Draining, "its agent asks for it"),
        (6, weight(0), Draining, none),
    ] {
        let event = Event {
            asked,
            ..event(1, Condition::Up, None)
        };
        check(&mut core, event, second);
        // From one way of draining to another it has not turned.
        let since = if second == 6 { 5 } else { second };
        is(&core, 1, state, reason, since);
    }
    let turned = told(&core);
    assert!(
        turned.contains(&"10.1.0.1:80 Up Draining".to_owned()),
        "{turned:?}"
    );
    ask(&mut core, Admin::Up, 7);
    is(&core, 1, Up, "by hand", 7);
}

#[test]
fn a_check_that_could_not_be_made_makes_nobody_suspect() {
    let mut core = start();
    let undecided = Event {
        suspect: false,
        ..event(1, Condition::Up, Some("cannot check: no program"))
    };
    check(&mut core, undecided, 2);
    let reason = "no check fails, and not all could be made: cannot check: no program";
    is(&core, 1, BackendState::Up, reason, 1);
}

#[test]
fn who_is_up_by_hand_and_takes_no_flow_all_the_same_is_not_told_to_be_up() {
    let mut core = start();
    let second = address(2);
    core.change(asking(id(), second, Admin::Up)).unwrap();
    core.observe(at(2));
    let reason = "tier 1 is not needed; up by hand";
    is(&core, 2, BackendState::Standby, reason, 1);
    ask(&mut core, Admin::Up, 3);
    is(&core, 1, BackendState::Up, "by hand", 1);
    let weightless = Change::EditBackend {
        id: id(),
        address: address(1),
        weight: Some(0),
        admin: None,
        max_connections: None,
        rated: Default::default(),
        tier: None,
    };
    core.change(weightless).unwrap();
    core.observe(at(4));
    is(&core, 1, BackendState::Draining, "its weight is 0", 4);
    // Who stood by takes over.
    is(&core, 2, BackendState::Up, "by hand", 4);
}

#[test]
fn nothing_is_told_twice_and_nobody_who_has_gone_is_told_of() {
    let mut core = start();
    let before = told(&core);
    check(&mut core, event(1, Condition::Up, None), 2);
    core.change(Change::RemoveBackend(id(), address(1)))
        .unwrap();
    core.observe(at(3));
    let after = told(&core);
    assert_eq!(after[before.len()..], ["10.1.0.2:80 Standby Up"]);
}
