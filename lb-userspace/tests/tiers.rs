//! Which tier's backends take new flows: the agent's core over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use lb_common::tables::state;
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    health::{Event, Target, reply::Asked},
    model::{Admin, Change, Failback, ModelError, Service, ServiceId, Settings},
    neighbours::Update,
    snapshot::{BackendState, Condition, EventFilter},
};

use crate::reach::{asking, left_behind, memory, reached, wind};

const VIP: &str = "10.0.0.1:80/tcp";

fn id() -> ServiceId {
    VIP.parse().unwrap()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 80))
}

/// A service whose backends 1 and 2 are primary, 3 is standby, and 4 is for when nobody is left.
fn text(keys: &str) -> String {
    let backend = |n: u8, tier: u8| format!("{{ address = \"{}\", tier = {tier} }}", address(n));
    let backends = [(1, 0), (2, 0), (3, 1), (4, 2)].map(|(n, tier)| backend(n, tier));
    format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"ipip\"\nring_size = 1021\n{keys}\nbackend = [{}]\n",
        backends.join(", ")
    )
}

fn over(memory: MemoryDataplane, keys: &str) -> Core<MemoryDataplane> {
    with_services(memory, config::parse(&text(keys), "test").unwrap().services)
}

fn with_services(memory: MemoryDataplane, services: Vec<Service>) -> Core<MemoryDataplane> {
    let mut core = empty(memory);
    core.change(Change::Replace(services)).unwrap();
    core
}

fn empty(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("tiers".to_owned(), Tunnel::default(), memory).unwrap();
    for n in 1..=4 {
        core.network(reached(address(n).ip(), 1));
    }
    core
}

fn start(keys: &str) -> Core<MemoryDataplane> {
    over(memory(), keys)
}

/// Another agent over the same maps.
fn restart(mut core: Core<MemoryDataplane>, keys: &str) -> Core<MemoryDataplane> {
    over(std::mem::take(core.dataplane_mut()), keys)
}

/// The same after so long a time, and with what the former one has left to it.
fn restart_after(
    mut core: Core<MemoryDataplane>,
    keys: &str,
    away: Duration,
) -> Core<MemoryDataplane> {
    let history = left_behind(&core, away);
    let mut next = empty(std::mem::take(core.dataplane_mut()));
    next.recall(history);
    let services = config::parse(&text(keys), "test").unwrap().services;
    next.change(Change::Replace(services)).unwrap();
    next
}

fn check(core: &mut Core<MemoryDataplane>, n: u8, condition: Condition) {
    let target = Target {
        service: id(),
        address: address(n),
    };
    if core.health(Event {
        changed: true,
        ..Event::new(target, condition)
    }) {
        core.enforce().unwrap();
    }
}

fn down(core: &mut Core<MemoryDataplane>, n: u8) {
    check(core, n, Condition::Down);
}

fn up(core: &mut Core<MemoryDataplane>, n: u8) {
    check(core, n, Condition::Up);
}

/// Time passes, and the agent looks at its watch.
fn pass(core: &mut Core<MemoryDataplane>, time: Duration) {
    wind(core, time);
    if core.age() {
        core.enforce().unwrap();
    }
}

/// Percent of the slots whose owner takes new flows, by backends 1 to 4. While anybody takes some, nobody
/// else owns any; all keep what they have.
fn shares(core: &Core<MemoryDataplane>) -> [u32; 4] {
    let placed = core.layout().placed(id()).unwrap();
    let states = [1, 2, 3, 4].map(|n| {
        let (local, member) = placed.member(address(n)).unwrap();
        assert_ne!(member.backend.state & state::HOLDS, 0, "backend {n}");
        let takes = member.backend.state & state::TAKES != 0;
        (takes, placed.ring.share(local))
    });
    let served = states.iter().any(|(takes, _)| *takes);
    states.map(|(takes, slots)| {
        assert!(!served || takes == (slots > 0), "{states:?}");
        if takes {
            (slots * 100 + 510) / 1_021
        } else {
            0
        }
    })
}

/// So many seconds pass, and weights grow.
fn grow(core: &mut Core<MemoryDataplane>, seconds: u64) {
    for _ in 0..5 * seconds {
        wind(core, Duration::from_millis(200));
        let (aged, stepped) = (core.age(), core.is_ramping() && core.step());
        if aged || stepped {
            core.enforce().unwrap();
        }
    }
}

fn fail_over(core: &mut Core<MemoryDataplane>, to: u8) {
    core.change(Change::FailOver(id(), to)).unwrap();
}

#[test]
fn a_standby_takes_what_the_primaries_cannot_carry_and_gives_it_back() {
    let mut core = start("");
    assert_eq!(shares(&core), [50, 50, 0, 0]);
    down(&mut core, 1);
    // Half of the primary tier is 714 thousandths of what it should be.
    assert_eq!(shares(&core), [0, 71, 29, 0]);
    down(&mut core, 2);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    down(&mut core, 3);
    assert_eq!(shares(&core), [0, 0, 0, 100]);
    up(&mut core, 1);
    assert_eq!(shares(&core), [71, 0, 0, 29]);
    up(&mut core, 2);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn with_everybody_down_whoever_recovers_first_takes_all() {
    let mut core = start("failback = \"manual\"");
    (1..=4).for_each(|n| down(&mut core, n));
    assert_eq!(shares(&core), [0, 0, 0, 0]);
    up(&mut core, 3);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
}

#[test]
fn a_drained_primary_is_missed_like_one_that_is_down() {
    let mut core = start("spill_below = 100");
    let ask = |admin| asking(id(), address(1), admin);
    core.change(ask(Admin::Draining)).unwrap();
    assert_eq!(shares(&core), [0, 50, 50, 0]);
    core.change(ask(Admin::Active)).unwrap();
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn where_weights_are_left_aside_a_tier_that_is_needed_joins_whole() {
    let mut core = start("scheduler = \"least-connections\"");
    down(&mut core, 1);
    let takes = |n| {
        let placed = core.layout().placed(id()).unwrap();
        let (_, member) = placed.member(address(n)).unwrap();
        member.backend.state & state::TAKES != 0
    };
    assert_eq!([1, 2, 3, 4].map(takes), [false, true, true, false]);
}

#[test]
fn manual_failback_waits_for_its_word_across_a_restart() {
    const MANUAL: &str = "failback = \"manual\"";
    let mut core = start(MANUAL);
    down(&mut core, 1);
    down(&mut core, 2);
    up(&mut core, 1);
    up(&mut core, 2);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    let status = core.service(id()).unwrap();
    assert!(status.tiers[0].waits && status.tiers[0].healthy == 2);
    let mut core = restart(core, MANUAL);
    (1..=4).for_each(|n| up(&mut core, n));
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    fail_over(&mut core, 0);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn a_failback_that_waits_goes_on_waiting_over_a_restart_and_no_longer_than_without() {
    const WAITING: &str = "failback = \"60s\"";
    let mut core = start(WAITING);
    (1..=2).for_each(|n| down(&mut core, n));
    (1..=2).for_each(|n| up(&mut core, n));
    pass(&mut core, Duration::from_secs(20));
    let mut core = restart_after(core, WAITING, Duration::from_secs(30));
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    let status = core.service(id()).unwrap();
    assert!(status.tiers[0].waits, "{:?}", status.tiers);
    // Before any check has said anything.
    pass(&mut core, Duration::from_secs(5));
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    (1..=4).for_each(|n| up(&mut core, n));
    pass(&mut core, Duration::from_secs(6));
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn a_tier_that_has_a_part_of_its_flows_waits_for_its_word_over_a_restart() {
    const MANUAL: &str = "failback = \"manual\"";
    let mut core = start(MANUAL);
    down(&mut core, 1);
    up(&mut core, 1);
    assert_eq!(shares(&core), [36, 36, 29, 0]);
    let mut core = restart_after(core, MANUAL, Duration::from_secs(1));
    assert_eq!(shares(&core), [36, 36, 29, 0]);
    (1..=4).for_each(|n| up(&mut core, n));
    assert_eq!(shares(&core), [36, 36, 29, 0]);
    fail_over(&mut core, 0);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn who_failed_in_a_tier_that_waits_has_to_pass_its_checks_after_a_restart() {
    const WAITING: &str = "failback = \"10s\"\nspill_below = 40";
    let mut core = start(WAITING);
    (1..=2).for_each(|n| down(&mut core, n));
    up(&mut core, 1);
    let mut core = restart_after(core, WAITING, Duration::from_secs(20));
    pass(&mut core, Duration::from_secs(1));
    assert_eq!(shares(&core), [100, 0, 0, 0], "not backend 2, unasked");
    up(&mut core, 2);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

/// Nobody answers for the address of a backend.
fn no_way(n: u8) -> Update {
    Update::NextHop {
        address: address(n).ip(),
        next_hop: None,
        reason: Some("it has not told its hardware address".to_owned()),
    }
}

/// An agent whose backends are all there but those of `lost`, which no way leads to.
fn start_without(lost: &[u8], keys: &str) -> Core<MemoryDataplane> {
    let mut core = Core::new("tiers".to_owned(), Tunnel::default(), memory()).unwrap();
    for n in 1..=4 {
        let update = match lost.contains(&n) {
            true => no_way(n),
            false => reached(address(n).ip(), 1),
        };
        core.network(update);
    }
    let services = config::parse(&text(keys), "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    (1..=4).for_each(|n| up(&mut core, n));
    core
}

fn find_way(core: &mut Core<MemoryDataplane>, n: u8) {
    assert!(core.network(reached(address(n).ip(), 1)));
    core.enforce().unwrap();
}

#[test]
fn a_primary_that_no_way_leads_to_is_missed_like_one_that_is_down() {
    let mut core = start_without(&[1], "");
    pass(&mut core, Duration::from_secs(4));
    assert_eq!(shares(&core), [0, 71, 29, 0]);
    let service = core.service(id()).unwrap();
    assert_eq!(service.tiers[0].healthy, 1);
    core.observe(SystemTime::UNIX_EPOCH);
    let standing = core.service(id()).unwrap();
    let standing = standing
        .backend(address(1))
        .unwrap()
        .standing
        .clone()
        .unwrap();
    assert_eq!(
        (standing.state, standing.reason.as_str()),
        (
            BackendState::Down,
            "no next hop: it has not told its hardware address"
        )
    );
    find_way(&mut core, 1);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
    let mut core = start_without(&[1, 2], "");
    pass(&mut core, Duration::from_secs(4));
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    find_way(&mut core, 2);
    assert_eq!(shares(&core), [0, 71, 29, 0]);
}

#[test]
fn a_tier_does_not_lose_its_flows_while_ways_to_it_are_found_out() {
    let mut core = start_without(&[1, 2], "failback = \"manual\"");
    pass(&mut core, Duration::from_secs(2));
    find_way(&mut core, 1);
    find_way(&mut core, 2);
    pass(&mut core, Duration::from_secs(60));
    assert_eq!(shares(&core), [50, 50, 0, 0]);
    assert!(!core.service(id()).unwrap().tiers[0].waits);
}

#[test]
fn a_backend_that_has_lost_its_way_keeps_the_last_one_and_its_share() {
    let mut core = start("");
    core.network(no_way(1));
    core.enforce().unwrap();
    pass(&mut core, Duration::from_secs(60));
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn a_restarted_agent_does_not_take_standbys_for_down() {
    let mut core = restart(start(""), "");
    let status = core.service(id()).unwrap();
    let standby = status.backend(address(3)).unwrap();
    assert_eq!(standby.condition, Condition::Starting);
    down(&mut core, 1);
    down(&mut core, 2);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
}

#[test]
fn a_restarted_agent_does_not_take_failed_primaries_for_well() {
    let mut core = start("");
    down(&mut core, 1);
    down(&mut core, 2);
    let core = restart(core, "");
    assert_eq!(shares(&core), [0, 0, 100, 0]);
}

#[test]
fn delayed_failback_comes_when_its_time_has_passed() {
    let mut core = start("failback = \"30s\"");
    down(&mut core, 1);
    down(&mut core, 2);
    up(&mut core, 1);
    up(&mut core, 2);
    pass(&mut core, Duration::from_secs(29));
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    pass(&mut core, Duration::from_secs(2));
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

/// Both servers of tier 0 fail, and recover.
fn restart_primaries(core: &mut Core<MemoryDataplane>) {
    for n in [1, 2] {
        down(core, n);
    }
    for n in [1, 2] {
        up(core, n);
    }
}

/// Tier 0 has just got its flows back: what it gets then, and half of the time of a slow start later; all after that.
fn grows(core: &mut Core<MemoryDataplane>) {
    grow(core, 1);
    // A tenth of a tier of which seven tenths are enough.
    assert_eq!(shares(core), [7, 7, 86, 0]);
    grow(core, 15);
    let [first, second, third, _] = shares(core);
    assert!(first + second > 70 && third > 15, "{:?}", shares(core));
    grow(core, 16);
    assert_eq!(shares(core), [50, 50, 0, 0]);
    assert!(!core.is_ramping());
}

#[test]
fn who_recovers_while_its_tier_waits_grows_once_that_gets_its_flows() {
    const SLOW: &str = "slow_start = \"30s from 10%\"";
    let mut core = start(&format!("failback = \"30s\"\n{SLOW}"));
    restart_primaries(&mut core);
    grow(&mut core, 29);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    assert!(!core.is_ramping(), "nobody's weight grows while it waits");
    grow(&mut core, 1);
    grows(&mut core);

    let mut core = start(&format!("failback = \"manual\"\n{SLOW}"));
    restart_primaries(&mut core);
    grow(&mut core, 100);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    fail_over(&mut core, 0);
    grows(&mut core);

    // Its servers are replaced while it is failed over by hand.
    let mut core = start(SLOW);
    fail_over(&mut core, 1);
    restart_primaries(&mut core);
    grow(&mut core, 100);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    fail_over(&mut core, 0);
    grows(&mut core);
}

#[test]
fn who_waits_to_grow_with_its_tier_goes_on_waiting_over_a_restart() {
    const KEYS: &str = "failback = \"manual\"\nslow_start = \"30s from 10%\"";
    let mut core = start(KEYS);
    restart_primaries(&mut core);
    let mut core = restart_after(core, KEYS, Duration::from_secs(100));
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    fail_over(&mut core, 0);
    grows(&mut core);
}

#[test]
fn a_tier_whose_backends_are_all_replaced_waits_for_its_failback_as_before() {
    let mut core = start("failback = \"manual\"");
    restart_primaries(&mut core);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    let mut service = core.state().service(id()).unwrap().clone();
    service.backends.retain(|backend| backend.tier > 0);
    let new = [11, 12].map(|n| {
        core.network(reached(address(n).ip(), 1));
        let mut backend = service.backends[0].clone();
        (backend.address, backend.tier) = (address(n), 0);
        backend
    });
    service.backends.extend(new);
    core.change(Change::Replace(vec![service])).unwrap();
    for n in [11, 12] {
        up(&mut core, n);
    }
    let takes = |core: &Core<MemoryDataplane>, n: u8| {
        let placed = core.layout().placed(id()).unwrap();
        let (_, member) = placed.member(address(n)).unwrap();
        member.backend.state & state::TAKES != 0
    };
    assert_eq!([11, 12, 3].map(|n| takes(&core, n)), [false, false, true]);
    fail_over(&mut core, 0);
    assert_eq!([11, 12, 3].map(|n| takes(&core, n)), [true, true, false]);
}

#[test]
fn a_primary_whose_agent_asks_for_none_of_its_weight_is_not_told_to_be_healthy() {
    let mut core = start("");
    let target = Target {
        service: id(),
        address: address(1),
    };
    let asked = Asked {
        weight: Some(0),
        ..Asked::default()
    };
    let event = Event {
        asked,
        ..Event::new(target, Condition::Up)
    };
    assert!(core.health(event));
    core.enforce().unwrap();
    let healthy = |core: &Core<MemoryDataplane>| core.service(id()).unwrap().tiers[0].healthy;
    assert_eq!((healthy(&core), shares(&core)), (1, [0, 71, 29, 0]));
    core.change(asking(id(), address(1), Admin::Up)).unwrap();
    assert_eq!((healthy(&core), shares(&core)), (2, [50, 50, 0, 0]));
}

#[test]
fn failing_over_by_hand_lasts_until_somebody_fails_back() {
    let mut core = start("");
    fail_over(&mut core, 1);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    let services = core.state().services().cloned().collect();
    let memory = std::mem::take(core.dataplane_mut());
    let mut core = with_services(memory, services);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    down(&mut core, 3);
    assert_eq!(shares(&core), [0, 0, 0, 100]);
    down(&mut core, 4);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
    up(&mut core, 3);
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    fail_over(&mut core, 0);
    assert_eq!(shares(&core), [50, 50, 0, 0]);
}

#[test]
fn failing_over_to_a_tier_that_is_not_there_is_refused_with_those_that_are() {
    let mut core = start("");
    let refused = core.change(Change::FailOver(id(), 9)).unwrap_err();
    assert!(refused.to_string().contains("of 0, 1, 2"), "{refused}");
    let unknown = "10.0.0.9:80/tcp".parse().unwrap();
    let refused = core.change(Change::FailOver(unknown, 1)).unwrap_err();
    let expected = ModelError::UnknownService { id: unknown };
    assert_eq!(refused.to_string(), expected.to_string());
}

#[test]
fn a_refused_change_leaves_who_waits_as_it_was() {
    let mut core = start("failback = \"manual\"");
    down(&mut core, 1);
    down(&mut core, 2);
    up(&mut core, 1);
    up(&mut core, 2);
    let at = core.dataplane().executed;
    core.dataplane_mut().fail_at = Some(at);
    let news = |core: &mut Core<MemoryDataplane>| {
        core.observe(SystemTime::UNIX_EPOCH);
        let all = EventFilter {
            service: None,
            after: None,
            epoch: None,
            limit: 1,
        };
        core.events(&all).last
    };
    let told = news(&mut core);
    core.change(Change::FailOver(id(), 0)).unwrap_err();
    core.enforce().unwrap();
    assert_eq!(shares(&core), [0, 0, 100, 0]);
    assert_eq!(news(&mut core), told, "nothing has come about");
}

#[test]
fn what_spills_over_follows_the_settings() {
    let mut core = start("");
    down(&mut core, 1);
    let settings = |spill_below, failback| {
        Change::EditService(
            id(),
            Settings {
                spill_below: Some(spill_below),
                failback: Some(failback),
                ..Settings::default()
            },
        )
    };
    core.change(settings(0, Failback::Automatic)).unwrap();
    assert_eq!(shares(&core), [0, 100, 0, 0]);
    core.change(settings(100, Failback::Manual)).unwrap();
    assert_eq!(shares(&core), [0, 50, 50, 0]);
    up(&mut core, 1);
    assert_eq!(shares(&core), [25, 25, 50, 0]);
}
