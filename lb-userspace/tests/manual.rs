//! What people say of backends against their checks: the agent's core over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::{FlowKey, Record, Table, Tables as _, flow_kind, record_flag, state};
use lb_userspace::{
    agent::{Core, Teller},
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    health::{
        Event, Target,
        reply::{Asked, Wants},
    },
    model::{Admin, Change, ServiceId},
    plan::ticks,
    snapshot::{CheckStatus, Condition, DrainStatus},
};

use crate::reach::{asking, memory, reached};

const VIP: &str = "10.0.0.1:80/tcp";
const TAKES: u8 = state::TAKES | state::HOLDS;

fn id() -> ServiceId {
    VIP.parse().unwrap()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 80))
}

/// An agent whose service has backends 1 and 2.
fn start(keys: &str) -> Core<MemoryDataplane> {
    let mut core = Core::new("manual".to_owned(), Tunnel::default(), memory()).unwrap();
    for n in 1..=2 {
        core.network(reached(address(n).ip(), 1));
    }
    let text = format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"ipip\"\nring_size = 251\n{keys}\nbackend = [\
         {{ address = \"10.1.0.1:80\" }}, {{ address = \"10.1.0.2:80\" }}]\n"
    );
    let services = config::parse(&text, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    core
}

/// Asks something of backend 1.
fn ask(core: &mut Core<MemoryDataplane>, admin: Admin) {
    core.change(asking(id(), address(1), admin)).unwrap();
}

/// A check says this of backend 1.
fn check(core: &mut Core<MemoryDataplane>, condition: Condition, dead: bool) {
    let target = Target {
        service: id(),
        address: address(1),
    };
    let event = Event {
        changed: true,
        dead,
        ..Event::new(target, condition)
    };
    if core.health(event) {
        core.enforce().unwrap();
    }
}

/// What backend 1 does in the maps.
fn state_of(core: &Core<MemoryDataplane>) -> u8 {
    let placed = core.layout().placed(id()).unwrap();
    placed.member(address(1)).unwrap().1.backend.state
}

fn is_checked(core: &Core<MemoryDataplane>) -> bool {
    core.targets()
        .keys()
        .any(|target| target.address == address(1))
}

fn pass(core: &mut Core<MemoryDataplane>, time: Duration) {
    let clock = &core.dataplane().tables.time;
    clock.set(clock.get() + ticks(time) + 1);
}

fn age(core: &mut Core<MemoryDataplane>) {
    if core.age() {
        core.enforce().unwrap();
    }
}

/// So many of backend 1's probes have passed and failed, the latter at last in a row, and it is not up.
fn probed(core: &mut Core<MemoryDataplane>, passed: u64, failed: u64) {
    let target = Target {
        service: id(),
        address: address(1),
    };
    let status = CheckStatus {
        passed,
        failed,
        ..CheckStatus::new("tcp".to_owned(), Condition::Down)
    };
    let event = Event {
        changed: true,
        fails: failed >= 3,
        checks: vec![status],
        ..Event::new(target, Condition::Down)
    };
    if core.health(event) {
        core.enforce().unwrap();
    }
}

#[test]
fn a_backend_that_has_yet_to_pass_enough_checks_keeps_its_flows() {
    let mut core = start("on_down = \"resteer\"\ndead_after = \"60s\"");
    check(&mut core, Condition::Up, false);
    ask(&mut core, Admin::Maintenance);
    ask(&mut core, Admin::Active);
    assert_eq!(state_of(&core), state::HOLDS);
    probed(&mut core, 1, 0);
    assert_eq!(state_of(&core), state::HOLDS, "its first probe passed");
    pass(&mut core, Duration::from_secs(61));
    age(&mut core);
    assert_eq!(state_of(&core), state::HOLDS, "nothing has failed yet");
    for failed in 1..=2 {
        probed(&mut core, 1, failed);
        assert_eq!(state_of(&core), state::HOLDS, "one may be chance");
    }
    probed(&mut core, 1, 3);
    assert_eq!(state_of(&core), 0);
}

#[test]
fn the_time_until_a_backend_counts_as_dead_begins_with_its_first_failure() {
    let mut core = start("on_down = \"keep\"\ndead_after = \"60s\"");
    check(&mut core, Condition::Up, false);
    ask(&mut core, Admin::Maintenance);
    ask(&mut core, Admin::Active);
    pass(&mut core, Duration::from_secs(59));
    probed(&mut core, 0, 3);
    pass(&mut core, Duration::from_secs(59));
    age(&mut core);
    assert_eq!(state_of(&core), state::HOLDS);
    pass(&mut core, Duration::from_secs(2));
    age(&mut core);
    assert_eq!(state_of(&core), 0);
}

fn drain(core: &Core<MemoryDataplane>) -> Option<DrainStatus> {
    let service = core.service(id()).unwrap();
    service.backend(address(1)).unwrap().drain
}

fn sweep(core: &mut Core<MemoryDataplane>) {
    use lb_userspace::{dataplane::Dataplane as _, plan::census};
    let now = core.dataplane().now();
    let layout = core.certain_layout().unwrap();
    let census = census::sweep(&layout, &mut &core.dataplane().tables, now).unwrap();
    core.swept(census).unwrap();
}

#[test]
fn a_backend_that_is_forced_down_keeps_its_flows_as_on_down_says_whatever_its_checks_do() {
    let mut core = start("");
    check(&mut core, Condition::Up, false);
    ask(&mut core, Admin::Down);
    assert_eq!(state_of(&core), state::HOLDS);
    check(&mut core, Condition::Down, false);
    check(&mut core, Condition::Up, false);
    assert_eq!(state_of(&core), state::HOLDS);
    ask(&mut core, Admin::Active);
    assert_eq!(state_of(&core), TAKES);
    let mut core = start("on_down = \"resteer\"");
    ask(&mut core, Admin::Down);
    assert_eq!(state_of(&core), 0);
}

#[test]
fn a_backend_that_is_forced_down_is_dead_in_time_as_any_that_is_down() {
    let mut core = start("dead_after = \"10s\"");
    ask(&mut core, Admin::Down);
    pass(&mut core, Duration::from_secs(9));
    age(&mut core);
    assert_eq!(state_of(&core), state::HOLDS);
    pass(&mut core, Duration::from_secs(1));
    age(&mut core);
    assert_eq!(state_of(&core), 0);
    ask(&mut core, Admin::Active);
    assert_eq!(state_of(&core), TAKES);
}

#[test]
fn a_backend_that_is_forced_up_takes_flows_against_its_checks_until_that_is_undone() {
    let mut core = start("dead_after = \"10s\"");
    ask(&mut core, Admin::Up);
    check(&mut core, Condition::Down, true);
    assert_eq!(state_of(&core), TAKES);
    pass(&mut core, Duration::from_secs(20));
    age(&mut core);
    assert_eq!(state_of(&core), TAKES);
    ask(&mut core, Admin::Active);
    assert_eq!(state_of(&core), 0);
    ask(&mut core, Admin::Up);
    assert_eq!(state_of(&core), TAKES);
}

#[test]
fn a_backend_in_maintenance_is_not_checked_and_has_to_pass_its_checks_when_it_comes_back() {
    let mut core = start("");
    check(&mut core, Condition::Up, false);
    ask(&mut core, Admin::Maintenance);
    assert_eq!(state_of(&core), state::HOLDS);
    assert!(!is_checked(&core));
    // News that was on its way.
    check(&mut core, Condition::Down, true);
    assert_eq!(state_of(&core), state::HOLDS);
    ask(&mut core, Admin::Active);
    assert!(is_checked(&core));
    assert_eq!(state_of(&core), state::HOLDS);
    check(&mut core, Condition::Up, false);
    assert_eq!(state_of(&core), TAKES);
}

/// Adds backend 3.
fn add(core: &mut Core<MemoryDataplane>) {
    core.network(reached(address(3).ip(), 1));
    let backend = serde_json::from_value(serde_json::json!({ "address": address(3) })).unwrap();
    core.change(Change::AddBackend(id(), backend)).unwrap();
}

/// The entry's state, and what the checks have said.
fn third(core: &Core<MemoryDataplane>) -> (u8, Condition) {
    let placed = core.layout().placed(id()).unwrap();
    let (_, member) = placed.member(address(3)).unwrap();
    let status = core.service(id()).unwrap();
    let condition = status.backend(address(3)).unwrap().condition;
    (member.backend.state, condition)
}

fn third_passes(core: &mut Core<MemoryDataplane>, condition: Condition) {
    let target = Target {
        service: id(),
        address: address(3),
    };
    core.health(Event::new(target, condition));
    core.enforce().unwrap();
}

#[test]
fn a_backend_that_joins_others_that_serve_takes_flows_once_a_check_has_passed() {
    let mut core = start("");
    add(&mut core);
    assert_eq!(third(&core), (state::HOLDS, Condition::Starting));
    let targets = core.targets();
    let mut added = targets.iter().filter(|(at, _)| at.address == address(3));
    // One success is enough, and not as many as after a failure.
    assert_eq!(added.next().unwrap().1.initial, Condition::Starting);
    third_passes(&mut core, Condition::Up);
    assert_eq!(third(&core), (TAKES, Condition::Up));
}

#[test]
fn a_backend_that_joins_others_and_fails_its_checks_has_never_taken_a_flow() {
    let mut core = start("");
    add(&mut core);
    // The first failures are no proof of either.
    third_passes(&mut core, Condition::Starting);
    assert_eq!(third(&core), (state::HOLDS, Condition::Starting));
    third_passes(&mut core, Condition::Down);
    assert_eq!(third(&core), (state::HOLDS, Condition::Down));
}

#[test]
fn a_backend_that_joins_while_nobody_takes_flows_takes_them_at_once() {
    let mut core = start("");
    for n in 1..=2 {
        core.change(asking(id(), address(n), Admin::Draining))
            .unwrap();
    }
    add(&mut core);
    assert_eq!(third(&core).0, TAKES);
}

#[test]
fn a_backend_that_joins_and_is_not_checked_takes_flows_at_once() {
    let mut core = start("health = { type = \"none\" }");
    add(&mut core);
    assert_eq!(third(&core), (TAKES, Condition::Up));
}

#[test]
fn a_backend_that_comes_back_from_maintenance_by_another_way_has_to_pass_its_checks_too() {
    let mut core = start("");
    check(&mut core, Condition::Up, false);
    for between in [Admin::Down, Admin::Draining] {
        ask(&mut core, Admin::Maintenance);
        ask(&mut core, between);
        ask(&mut core, Admin::Active);
        assert_eq!(state_of(&core), state::HOLDS, "{between:?}");
        check(&mut core, Condition::Up, false);
        assert_eq!(state_of(&core), TAKES, "{between:?}");
    }
}

#[test]
fn the_time_until_a_backend_is_dead_stands_still_in_maintenance_and_begins_anew_after_it() {
    let mut core = start("dead_after = \"10s\"");
    check(&mut core, Condition::Down, false);
    pass(&mut core, Duration::from_secs(9));
    ask(&mut core, Admin::Maintenance);
    pass(&mut core, Duration::from_secs(20));
    age(&mut core);
    assert_eq!(state_of(&core), state::HOLDS);
    ask(&mut core, Admin::Active);
    pass(&mut core, Duration::from_secs(9));
    age(&mut core);
    assert_eq!(state_of(&core), state::HOLDS);
    pass(&mut core, Duration::from_secs(1));
    age(&mut core);
    assert_eq!(state_of(&core), 0);
}

#[test]
fn a_backend_that_was_drained_under_the_agent_before_takes_flows_once_that_is_undone() {
    let mut before = start("");
    ask(&mut before, Admin::Draining);
    let maps = std::mem::take(before.dataplane_mut());
    let mut core = Core::new("manual".to_owned(), Tunnel::default(), maps).unwrap();
    for n in 1..=2 {
        core.network(reached(address(n).ip(), 1));
    }
    let services = before.state().services().cloned().collect();
    core.change(Change::Replace(services)).unwrap();
    assert_eq!(state_of(&core), state::HOLDS);
    ask(&mut core, Admin::Active);
    assert_eq!(state_of(&core), TAKES);
}

#[test]
fn without_checks_a_backend_comes_back_from_maintenance_at_once() {
    let mut core = start("health = { type = \"none\" }");
    ask(&mut core, Admin::Maintenance);
    ask(&mut core, Admin::Active);
    assert_eq!(state_of(&core), TAKES);
}

#[test]
fn a_refused_change_forces_nobody() {
    let mut core = start("");
    let at = core.dataplane().executed;
    core.dataplane_mut().fail_at = Some(at);
    core.change(asking(id(), address(1), Admin::Down))
        .unwrap_err();
    core.enforce().unwrap();
    assert_eq!(state_of(&core), TAKES);
}

#[test]
fn a_drain_has_ended_once_no_slot_leads_to_the_backend_and_a_sweep_has_found_no_record() {
    let mut core = start("moving_time = \"1m\"");
    assert_eq!(drain(&core), None);
    ask(&mut core, Admin::Draining);
    let begun = drain(&core).unwrap();
    assert!(begun.unknown_slots > 100 && !begun.ended, "{begun:?}");
    for _ in 0..4 {
        pass(&mut core, Duration::from_secs(20));
        sweep(&mut core);
    }
    let moved = drain(&core).unwrap();
    assert_eq!((moved.unknown_slots, moved.observed), (0, 0));
    sweep(&mut core);
    assert!(drain(&core).unwrap().ended);
    ask(&mut core, Admin::Active);
    assert_eq!(drain(&core), None);
}

#[test]
fn where_flows_are_never_recorded_a_drain_ends_at_once() {
    let mut core = start("moving_time = \"0s\"");
    ask(&mut core, Admin::Draining);
    assert!(drain(&core).unwrap().ended);
}

/// Backend 1 says that it has no flow left, as it knew so many milliseconds ago.
fn say_drained(core: &mut Core<MemoryDataplane>, millis: u64) -> Result<bool, String> {
    let target = Target {
        service: id(),
        address: address(1),
    };
    let age = Duration::from_millis(millis);
    core.says_drained(target, Teller::Reporter, age)
        .map_err(|error| error.to_string())
}

/// A record of a flow of backend 1 that was used last now.
fn record(core: &Core<MemoryDataplane>, port: u16, flags: u16) {
    let placed = core.layout().placed(id()).unwrap();
    let (local, member) = placed.member(address(1)).unwrap();
    let tables = &core.dataplane().tables;
    let stamp = tables.now();
    let key = FlowKey {
        source: IpAddr::from([192, 0, 2, 1]).into(),
        service: placed.services[&id()] as u16,
        port,
        kind: flow_kind::FLOW,
        to: 0,
        host: 0,
    };
    let record = Record {
        member: local,
        flags,
        generation: member.member.generation,
        stamp,
        since: stamp,
    };
    tables.record(Table::Established, &key, &record, true);
}

#[test]
fn a_backend_that_has_no_flow_left_ends_its_drain_with_the_next_sweep_that_finds_none() {
    let mut core = start("moving_time = \"15m\"");
    let refused = say_drained(&mut core, 0).unwrap_err();
    assert!(refused.contains("takes new flows"), "{refused}");
    ask(&mut core, Admin::Draining);
    sweep(&mut core);
    let refused = say_drained(&mut core, 0).unwrap_err();
    assert!(refused.contains("for 0 ms only"), "{refused}");
    pass(&mut core, Duration::from_millis(1_500));
    let refused = say_drained(&mut core, 1_000).unwrap_err();
    assert!(refused.contains("may be on their way"), "{refused}");
    assert_eq!(say_drained(&mut core, 0), Ok(true));
    assert_eq!(say_drained(&mut core, 0), Ok(false), "known");
    let said = drain(&core).unwrap();
    assert!(said.reported && !said.ended, "no sweep since: {said:?}");
    pass(&mut core, Duration::from_millis(10));
    sweep(&mut core);
    let ended = drain(&core).unwrap();
    assert!(ended.ended && ended.unknown_slots > 100, "{ended:?}");
    // Of that drain alone.
    ask(&mut core, Admin::Active);
    ask(&mut core, Admin::Draining);
    sweep(&mut core);
    let anew = drain(&core).unwrap();
    assert!(!anew.reported && !anew.ended, "{anew:?}");
}

/// Backend 1's agent answers that it wants this.
fn answer(core: &mut Core<MemoryDataplane>, wants: Wants) {
    let target = Target {
        service: id(),
        address: address(1),
    };
    let asked = Asked {
        wants: Some(wants),
        ..Asked::default()
    };
    let none_left = (wants == Wants::Drained).then(tokio::time::Instant::now);
    let event = Event {
        asked,
        none_left,
        ..Event::new(target, Condition::Up)
    };
    if core.health(event) {
        core.enforce().unwrap();
    }
    if wants == Wants::Drained {
        let told = core.says_drained(target, Teller::Agent, Duration::ZERO);
        told.unwrap();
    }
}

#[test]
fn an_agent_takes_back_that_no_flow_is_left_and_what_was_reported_stays() {
    for next in [Wants::Drain, Wants::Flows] {
        let mut core = start("moving_time = \"15m\"");
        ask(&mut core, Admin::Draining);
        pass(&mut core, Duration::from_secs(2));
        answer(&mut core, Wants::Drained);
        assert!(drain(&core).unwrap().reported);
        answer(&mut core, next);
        pass(&mut core, Duration::from_secs(2));
        sweep(&mut core);
        let taken_back = drain(&core).unwrap();
        assert!(!taken_back.reported && !taken_back.ended, "{taken_back:?}");
        // It may say so again; and a report is nobody's to take back.
        answer(&mut core, Wants::Drained);
        say_drained(&mut core, 0).unwrap();
        answer(&mut core, next);
        pass(&mut core, Duration::from_secs(2));
        sweep(&mut core);
        let reported = drain(&core).unwrap();
        assert!(reported.reported && reported.ended, "{reported:?}");
    }
}

#[test]
fn a_recorded_flow_that_has_not_ended_speaks_against_a_backend_that_has_none_left() {
    for (flags, ends) in [
        (0, false),
        (record_flag::FINISHED, true),
        (record_flag::RESET, true),
    ] {
        let mut core = start("moving_time = \"15m\"");
        ask(&mut core, Admin::Draining);
        pass(&mut core, Duration::from_secs(2));
        record(&core, 1, flags);
        assert_eq!(say_drained(&mut core, 0), Ok(true));
        pass(&mut core, Duration::from_secs(2));
        record(&core, 2, record_flag::FINISHED);
        sweep(&mut core);
        let drain = drain(&core).unwrap();
        assert_eq!((drain.ended, drain.observed), (ends, 2), "{flags}");
    }
}

#[test]
fn while_a_backend_says_that_it_has_none_left_sweeps_come_sooner_until_one_proves_it() {
    let mut core = start("moving_time = \"15m\"");
    ask(&mut core, Admin::Draining);
    sweep(&mut core);
    let pause = |core: &Core<MemoryDataplane>| core.next_sweep(Duration::ZERO);
    let usual = pause(&core);
    assert!(usual > Duration::from_secs(10), "{usual:?}");
    pass(&mut core, Duration::from_secs(2));
    say_drained(&mut core, 0).unwrap();
    assert_eq!(pause(&core), Duration::from_secs(2));
    pass(&mut core, Duration::from_millis(10));
    sweep(&mut core);
    assert_eq!(pause(&core), usual);
}

/// Whether a refusal of a check at a backend's port tells that nobody is there.
#[test]
fn what_refuses_at_a_port_where_not_all_flows_arrive_is_down_and_not_dead() {
    let service = |vip: &str, mode: &str, keys: &str| {
        let (backend, keys) = ("[{ address = \"10.1.0.1:8080\" }]", format!("{keys}\n"));
        format!(
            "[[service]]\nvip = \"{vip}\"\nmode = \"{mode}\"\non_down = \"keep\"\nmoving_time = \"60s\"\n{keys}backend = {backend}\n"
        )
    };
    let grouped = |vip: &str, mode: &str| service(vip, mode, "group = \"web\"");
    for (text, alone) in [
        (service("10.0.0.1:8080/tcp", "ipip", ""), true),
        (service("10.0.0.1:80/tcp", "nat", ""), true),
        (service("10.0.0.1:80/tcp", "ipip", ""), false),
        (service("10.0.0.1:80/tcp", "l2", ""), false),
        (grouped("10.0.0.1:80/tcp", "nat"), false),
        (grouped("10.0.0.1:8080/tcp", "nat"), true),
        (
            grouped("10.0.0.1:8080/tcp", "ipip") + &grouped("10.0.0.2:8080/tcp", "ipip"),
            true,
        ),
        (
            grouped("10.0.0.1:8080/tcp", "ipip") + &grouped("10.0.0.1:8080/udp", "ipip"),
            false,
        ),
    ] {
        let mut core = Core::new("manual".to_owned(), Tunnel::default(), memory()).unwrap();
        let services = config::parse(&text, "test").unwrap().services;
        core.change(Change::Replace(services)).unwrap();
        let found: Vec<bool> = core.targets().values().map(|config| config.alone).collect();
        assert_eq!(found, [alone], "{text}");
    }
}

/// Nobody of the service takes new flows, so that its slots stay where they are.
mod last {
    use super::*;
    use lb_common::tables::Backend;

    /// A packet goes to a backend.
    fn packet(core: &Core<MemoryDataplane>, n: u8) {
        let placed = core.layout().placed(id()).unwrap();
        let (_, member) = placed.member(address(n)).unwrap();
        let backend: Backend = member.backend;
        core.dataplane().tables.count_backend(&backend, 60, false);
    }

    fn members(core: &Core<MemoryDataplane>) -> Vec<SocketAddr> {
        let placed = core.layout().placed(id()).unwrap();
        placed.members().map(|(_, m)| m.address()).collect()
    }

    fn moving_time(core: &Core<MemoryDataplane>) -> Duration {
        core.state().service(id()).unwrap().moving_time()
    }

    /// A sweep, and another after the moving time.
    fn quiet(core: &mut Core<MemoryDataplane>) {
        sweep(core);
        pass(core, moving_time(core));
        sweep(core);
    }

    #[test]
    fn a_drain_of_all_has_ended_once_nobody_has_had_a_packet_for_the_moving_time() {
        let mut core = start("");
        packet(&core, 1);
        for n in 1..=2 {
            core.change(asking(id(), address(n), Admin::Draining))
                .unwrap();
        }
        // What moved when the first of them drained has to settle.
        for _ in 0..2 {
            quiet(&mut core);
        }
        packet(&core, 2);
        sweep(&mut core);
        let half = moving_time(&core) / 2;
        let service = core.service(id()).unwrap();
        let second = service.backend(address(2)).unwrap().drain.unwrap();
        assert!(!second.ended && second.unknown_slots > 0, "{second:?}");
        pass(&mut core, half);
        packet(&core, 2);
        sweep(&mut core);
        pass(&mut core, half + Duration::from_millis(2));
        sweep(&mut core);
        let service = core.service(id()).unwrap();
        assert!(!service.backend(address(2)).unwrap().drain.unwrap().ended);
        pass(&mut core, half);
        sweep(&mut core);
        let service = core.service(id()).unwrap();
        for n in 1..=2 {
            let drain = service.backend(address(n)).unwrap().drain.unwrap();
            assert_eq!((drain.ended, drain.unknown_slots), (true, 0), "{n}");
        }
    }

    #[test]
    fn quiet_backends_have_not_ended_their_drain_while_flows_of_theirs_are_recorded() {
        let mut core = start("");
        for n in 1..=2 {
            core.change(asking(id(), address(n), Admin::Draining))
                .unwrap();
        }
        for _ in 0..2 {
            quiet(&mut core);
        }
        assert!(drain(&core).unwrap().ended);
        record(&core, 4_000, 0);
        sweep(&mut core);
        let drain = drain(&core).unwrap();
        assert_eq!(
            (drain.observed, drain.unknown_slots, drain.ended),
            (1, 0, false)
        );
    }

    #[test]
    fn backends_that_were_all_removed_leave_once_they_are_quiet() {
        let mut core = start("");
        packet(&core, 1);
        for n in 1..=2 {
            core.change(Change::RemoveBackend(id(), address(n)))
                .unwrap();
        }
        quiet(&mut core);
        assert_eq!(members(&core).len(), 2, "what moved has settled just now");
        for _ in 0..3 {
            quiet(&mut core);
        }
        assert_eq!(members(&core), []);
        let placed = core.layout().placed(id()).unwrap();
        assert_eq!(placed.descriptor.ring_size, 0);
        add(&mut core);
        assert_eq!(third(&core).0, TAKES);
    }

    #[test]
    fn a_backend_that_was_removed_beside_drained_ones_leaves_its_slots_to_them() {
        let mut core = start("");
        // The last to drain has all slots.
        for n in [2, 1] {
            core.change(asking(id(), address(n), Admin::Draining))
                .unwrap();
        }
        core.change(Change::RemoveBackend(id(), address(1)))
            .unwrap();
        for _ in 0..3 {
            quiet(&mut core);
        }
        assert_eq!(members(&core), [address(2)]);
        core.change(asking(id(), address(2), Admin::Active))
            .unwrap();
        let placed = core.layout().placed(id()).unwrap();
        let (second, _) = placed.member(address(2)).unwrap();
        assert_eq!(placed.ring.share(second), 251);
    }
}

#[test]
fn a_backend_that_fails_takes_no_new_flows_from_that_moment_on_whenever_the_next_plan_is_made() {
    let mut core = start("moving_time = \"15m\"");
    let target = Target {
        service: id(),
        address: address(1),
    };
    assert!(core.health(Event::new(target, Condition::Down)));
    pass(&mut core, Duration::from_millis(1_500));
    assert_eq!(say_drained(&mut core, 0), Ok(true));
}

#[test]
fn what_changes_of_others_does_not_have_a_drain_begin_anew() {
    let mut core = start("moving_time = \"15m\"");
    ask(&mut core, Admin::Draining);
    pass(&mut core, Duration::from_millis(600));
    for admin in [Admin::Draining, Admin::Active] {
        core.change(asking(id(), address(2), admin)).unwrap();
    }
    pass(&mut core, Duration::from_millis(600));
    assert_eq!(say_drained(&mut core, 0), Ok(true));
    // Nor what is read back after a plan that failed.
    let at = core.dataplane().executed;
    core.dataplane_mut().fail_at = Some(at);
    let other = asking(id(), address(2), Admin::Draining);
    core.change(other).unwrap_err();
    core.enforce().unwrap();
    assert!(drain(&core).unwrap().reported);
}
