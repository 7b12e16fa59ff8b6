//! When slots settle: the agent's plan over tables in memory, with a packet in between.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::{FlowEvent, Phase, Tables as _, state};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::{Dataplane as _, DataplaneError, Operation, memory::MemoryDataplane},
    health::{Event, Target},
    model::{Admin, Change, ServiceId, Settings, State, UNKNOWN_PORT},
    plan::{self, Inputs, Plan, census, ticks},
    snapshot::Condition,
};

use crate::reach::{asking, memory, next_hop, reached};

const VIP: &str = "10.0.0.1:80/tcp";

fn addresses() -> impl Iterator<Item = IpAddr> {
    (1..4).map(|n| IpAddr::from([10, 1, 0, n]))
}

/// The service's table, but for its backends.
fn head() -> String {
    format!("[[service]]\nvip = \"{VIP}\"\nmode = \"ipip\"\nring_size = 251\n")
}

fn service(one: &str, other: &str) -> String {
    let backends = format!("[{{ address = \"{one}\" }}, {{ address = \"{other}\" }}]");
    format!("{}backend = {backends}\n", head())
}

/// An agent of these services, which knows the way to these addresses.
fn serving(text: &str, reachable: &[IpAddr]) -> Core<MemoryDataplane> {
    let mut core = Core::new("settling".to_owned(), Tunnel::default(), memory()).unwrap();
    for &address in reachable {
        core.network(reached(address, 1));
    }
    let services = config::parse(text, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    core
}

/// An agent whose service has just got a third backend, so that a part of its slots moves.
fn moving() -> Core<MemoryDataplane> {
    let reachable: Vec<IpAddr> = addresses().collect();
    let mut core = serving(&service("10.1.0.1:80", "10.1.0.2:80"), &reachable);
    core.change(third()).unwrap();
    assert!(check(&mut core, Condition::Up));
    core.enforce().unwrap();
    core
}

/// Adds a third backend.
fn third() -> Change {
    let backend = serde_json::from_value(serde_json::json!({"address": "10.1.0.3:80"})).unwrap();
    Change::AddBackend(id(), backend)
}

fn id() -> ServiceId {
    VIP.parse().unwrap()
}

fn index(core: &Core<MemoryDataplane>) -> u32 {
    let mut services = core.layout().services();
    services.next().unwrap().1
}

fn slots_in(core: &Core<MemoryDataplane>, phase: Phase) -> usize {
    let ring = &core.layout().placed(id()).unwrap().ring;
    let read = core.dataplane().ring(ring.start, ring.size()).unwrap();
    read.slots
        .iter()
        .filter(|slot| slot.phase() == phase)
        .count()
}

fn pass_the_moving_time(core: &Core<MemoryDataplane>) {
    let time = &core.dataplane().tables.time;
    let moving_time = core.state().service(id()).unwrap().moving_time();
    time.set(time.get() + ticks(moving_time) + 1);
}

/// Lets the moving time pass, and plans what a sweep then allows.
fn plan_after_the_moving_time(core: &Core<MemoryDataplane>) -> Vec<Operation> {
    pass_the_moving_time(core);
    let census = swept(core);
    planned(core, core.state(), Some(&census)).operations
}

/// The plan by which the maps become what `state` wants.
fn planned(core: &Core<MemoryDataplane>, state: &State, census: Option<&census::Census>) -> Plan {
    let next_hops = addresses()
        .map(|address| (address, next_hop(address, 1)))
        .collect();
    let inputs = Inputs {
        state,
        down: &BTreeMap::new(),
        next_hops: &next_hops,
        no_ways: &Default::default(),
        links: &BTreeMap::new(),
        devices: &Default::default(),
        vlans: false,
        own_addresses: &BTreeSet::new(),
        tunnel: Tunnel::default(),
        unknown_port: UNKNOWN_PORT,
        now: core.dataplane().tables.time.get(),
        census,
        overflows: &BTreeMap::from([(index(core), 0)]),
        traffic: &BTreeMap::new(),
        sampling: &BTreeMap::new(),
        keeps_flows: false,
        only: None,
    };
    plan::plan(core.layout(), &inputs).unwrap()
}

/// A sweep of the tables as they are.
fn swept(core: &Core<MemoryDataplane>) -> census::Census {
    let tables = &core.dataplane().tables;
    census::sweep(core.layout(), &mut { tables }, tables.time.get()).unwrap()
}

/// A check says this of the third backend.
fn check(core: &mut Core<MemoryDataplane>, condition: Condition) -> bool {
    check_of(core, "10.1.0.3:80".parse().unwrap(), condition, false)
}

/// A check says this of a backend, and whether nothing of it is left.
fn check_of(
    core: &mut Core<MemoryDataplane>,
    address: SocketAddr,
    condition: Condition,
    dead: bool,
) -> bool {
    let target = Target {
        service: id(),
        address,
    };
    core.health(Event {
        changed: true,
        dead,
        ..Event::new(target, condition)
    })
}

#[test]
fn slots_settle_after_the_moving_time() {
    let mut core = moving();
    assert!(slots_in(&core, Phase::Moving) > 50);
    let operations = plan_after_the_moving_time(&core);
    core.dataplane_mut().execute(&operations).unwrap();
    assert_eq!(slots_in(&core, Phase::Moving), 0);
    assert!(slots_in(&core, Phase::Settling) > 50);
}

#[test]
fn the_next_sweep_is_due_when_slots_can_settle_and_at_once_for_those_that_have() {
    let mut core = moving();
    let rare = core.sweep_interval();
    let second = Duration::from_secs(1);
    assert_eq!(core.next_sweep(Duration::ZERO), rare);
    let moving_time = ticks(core.state().service(id()).unwrap().moving_time());
    let time = |core: &Core<MemoryDataplane>| core.dataplane().tables.time.get();
    let until = time(&core).wrapping_add(moving_time);
    let set = |core: &Core<MemoryDataplane>, at| core.dataplane().tables.time.set(at);
    set(&core, until.wrapping_sub(ticks(2 * second)));
    let next = core.next_sweep(Duration::ZERO);
    assert_eq!(next.as_secs_f64().round(), 2.0, "{next:?}");
    // Most of the time is for others.
    assert_eq!(core.next_sweep(second), 4 * second);
    assert_eq!(core.next_sweep(rare), rare);
    set(&core, until);
    let sweep = swept(&core);
    core.swept(sweep).unwrap();
    assert!(slots_in(&core, Phase::Settling) > 50);
    assert!(core.next_sweep(Duration::ZERO) < second / 10);
    let sweep = swept(&core);
    core.swept(sweep).unwrap();
    assert_eq!(slots_in(&core, Phase::Steady), 251);
    assert_eq!(core.next_sweep(Duration::ZERO), rare);
}

/// Flows begin by the ring before until then.
#[test]
fn the_moving_time_begins_once_a_plan_has_taken_effect() {
    let reachable: Vec<IpAddr> = addresses().collect();
    let core = serving(&service("10.1.0.1:80", "10.1.0.2:80"), &reachable);
    let mut plan = planned(&core, &core.state().apply(third()).unwrap(), None);
    let done = core.dataplane().tables.time.get() + 500;
    let writes = plan.restamp(done);
    let ring = &plan.layout.placed(id()).unwrap().ring;
    let mut slots = ring.slots.iter().zip(&ring.moved);
    assert!(ring.phases.moving > 50);
    assert!(slots.all(|(slot, &moved)| slot.phase() != Phase::Moving || moved == done));
    assert!(
        matches!(writes.as_slice(), [Operation::Moved(written)] if written.moved == ring.moved)
    );
}

#[test]
fn settling_slots_wait_for_a_sweep_that_began_after_their_owner_woke() {
    let mut core = moving();
    pass_the_moving_time(&core);
    let first = swept(&core);
    core.swept(first).unwrap();
    assert!(check(&mut core, Condition::Down));
    // From here to the wake, flows of its slots begin elsewhere, too late for this sweep to see them.
    let early = swept(&core);
    assert!(check(&mut core, Condition::Up));
    core.enforce().unwrap();
    let settling = slots_in(&core, Phase::Settling);
    assert!(settling > 50);
    core.swept(early).unwrap();
    assert_eq!(slots_in(&core, Phase::Settling), settling);
    let late = swept(&core);
    core.swept(late).unwrap();
    assert_eq!(slots_in(&core, Phase::Settling), 0);
}

/// Else a sweep could read the place of a flow that a packet in flight has chosen somebody else for before it is there.
#[test]
fn who_wakes_is_followed_by_a_grace_period_with_a_switch_and_without() {
    let mut core = moving();
    pass_the_moving_time(&core);
    let census = swept(&core);
    core.swept(census).unwrap();
    assert!(check(&mut core, Condition::Down) && check(&mut core, Condition::Up));
    let slow = Settings {
        moving_time: Some(Duration::from_secs(1_200)),
        ..Settings::default()
    };
    let slower = core.state().apply(Change::EditService(id(), slow)).unwrap();
    for (state, switched) in [(core.state(), false), (&slower, true)] {
        let operations = planned(&core, state, None).operations;
        let switches = |operation: &Operation| matches!(operation, Operation::Switch(_));
        assert_eq!(operations.iter().any(switches), switched, "{operations:?}");
        let wakes = |op: &Operation| matches!(op, Operation::State(_, s) if s & state::TAKES != 0);
        let wake = operations.iter().position(wakes).unwrap();
        assert_eq!(operations.get(wake + 1), Some(&Operation::Grace));
    }
}

/// While it was dead, its flows' records were for the sweep to take. What came of them meanwhile is theirs.
#[test]
fn settling_slots_wait_for_a_sweep_that_began_after_a_draining_backend_came_back() {
    let mut core = moving();
    pass_the_moving_time(&core);
    let census = swept(&core);
    core.swept(census).unwrap();
    let first = "10.1.0.1:80".parse().unwrap();
    core.change(asking(id(), first, Admin::Draining)).unwrap();
    check_of(&mut core, first, Condition::Down, true);
    core.enforce().unwrap();
    let settling = slots_in(&core, Phase::Settling);
    assert!(settling > 50);
    let early = swept(&core);
    check_of(&mut core, first, Condition::Up, false);
    core.enforce().unwrap();
    core.swept(early).unwrap();
    assert_eq!(slots_in(&core, Phase::Settling), settling);
    let late = swept(&core);
    core.swept(late).unwrap();
    assert_eq!(slots_in(&core, Phase::Settling), 0);
}

#[test]
fn slots_of_a_service_that_kept_no_records_have_to_show_that_there_are_none() {
    let reachable: Vec<IpAddr> = addresses().collect();
    let text = service("10.1.0.1:80", "10.1.0.2:80") + "moving_time = \"0s\"\n";
    let mut core = serving(&text, &reachable);
    assert_eq!(slots_in(&core, Phase::Steady), 251);
    let settings = Settings {
        moving_time: Some(Duration::from_secs(60)),
        ..Settings::default()
    };
    core.change(Change::EditService(id(), settings)).unwrap();
    assert_eq!(slots_in(&core, Phase::Settling), 251);
    let census = swept(&core);
    core.swept(census).unwrap();
    assert_eq!(slots_in(&core, Phase::Steady), 251);
}

/// It may be the last that the ring of before names.
#[test]
fn a_backend_that_drains_takes_flows_until_no_packet_sees_a_ring_that_names_it() {
    let reachable: Vec<IpAddr> = addresses().collect();
    let core = serving(&service("10.1.0.1:80", "10.1.0.2:80"), &reachable);
    let address = "10.1.0.1:80".parse().unwrap();
    let entry = core
        .layout()
        .placed(id())
        .unwrap()
        .member(address)
        .unwrap()
        .1
        .entry;
    let drained = core
        .state()
        .apply(asking(id(), address, Admin::Draining))
        .unwrap();
    let operations = planned(&core, &drained, None).operations;
    let at = |wanted| operations.iter().position(|operation| *operation == wanted);
    let (resigns, grace) = (
        at(Operation::State(entry, state::HOLDS)),
        at(Operation::Grace),
    );
    assert!(grace.is_some() && resigns > grace, "{resigns:?}, {grace:?}");
}

/// All else may take long, as a large list does, and until then its packets are the kernel's.
#[test]
fn an_address_is_a_vip_no_sooner_than_right_before_the_switch_that_has_its_service() {
    let core = serving(&service("10.1.0.1:80", "10.1.0.2:80"), &[]);
    let mut other = core.state().services().next().unwrap().clone();
    other.id = "10.0.0.9:80/tcp".parse().unwrap();
    let state = core.state().apply(Change::AddService(other)).unwrap();
    let operations = planned(&core, &state, None).operations;
    let at = |wanted: &dyn Fn(&Operation) -> bool| operations.iter().position(wanted);
    let owned = at(&|operation| matches!(operation, Operation::Own(..)));
    let switched = at(&|operation| matches!(operation, Operation::Switch(_)));
    assert_eq!(owned.map(|owned| owned + 1), switched, "{operations:?}");
}

/// Between the switch to the ring and a wake, flows of a slot begin with whoever is awake.
#[test]
fn slots_of_a_first_ring_move_where_their_owners_wake_with_it() {
    let mut core = serving(&service("10.1.0.1:80", "10.1.0.2:80"), &[]);
    assert_eq!(core.layout().placed(id()).unwrap().ring.size(), 0);
    for address in addresses().take(2) {
        assert!(core.network(reached(address, 1)));
    }
    core.enforce().unwrap();
    assert_eq!(slots_in(&core, Phase::Moving), 251);
}

#[test]
fn a_backend_that_took_flows_when_a_sweep_began_is_not_released_by_it() {
    // Too light for a slot of its own: the ring stays the same without it.
    let keys = "scheduler = \"weighted-round-robin\"\n";
    let backends = "[{ address = \"10.1.0.1:80\", weight = 1000 }, { address = \"10.1.0.2:80\" }]";
    let text = format!("{}{keys}backend = {backends}\n", head());
    let reachable: Vec<IpAddr> = addresses().collect();
    let mut core = serving(&text, &reachable);
    let light = "10.1.0.2:80".parse().unwrap();
    let placed = |core: &Core<MemoryDataplane>| {
        let placed = core.layout().placed(id()).unwrap();
        placed
            .member(light)
            .map(|(id, member)| (placed.names(id), member.backend.state))
    };
    assert_eq!(placed(&core), Some((false, state::TAKES | state::HOLDS)));
    // What begins from here on, this sweep does not see.
    let early = swept(&core);
    core.change(Change::RemoveBackend(id(), light)).unwrap();
    core.swept(early).unwrap();
    assert_eq!(placed(&core), Some((false, state::HOLDS)));
    let late = swept(&core);
    core.swept(late).unwrap();
    assert_eq!(placed(&core), None);
}

#[test]
fn slots_go_on_moving_where_a_choice_could_not_be_recorded_since_the_plan_was_made() {
    let mut core = moving();
    let before = slots_in(&core, Phase::Moving);
    let operations = plan_after_the_moving_time(&core);
    let service = index(&core);
    core.dataplane()
        .tables
        .count_flow(service, FlowEvent::Overflow);
    let overtaken = core.dataplane_mut().execute(&operations);
    assert!(matches!(overtaken, Err(DataplaneError::Overtaken(which)) if which == service));
    assert_eq!(slots_in(&core, Phase::Moving), before);
}

#[test]
fn a_move_of_the_whole_service_goes_on_where_a_choice_could_not_be_recorded_since_the_plan_was_made()
 {
    let mut core = moving();
    let settings = Settings {
        ring_size: Some(1_021),
        ..Default::default()
    };
    core.change(Change::EditService(id(), settings)).unwrap();
    let generation = core.dataplane().tables.control.generation;
    let operations = plan_after_the_moving_time(&core);
    core.dataplane()
        .tables
        .count_flow(index(&core), FlowEvent::Overflow);
    let overtaken = core.dataplane_mut().execute(&operations);
    assert!(matches!(overtaken, Err(DataplaneError::Overtaken(_))));
    assert_eq!(
        core.dataplane().tables.control.generation,
        generation,
        "no switch"
    );
}

/// Else a packet that has read the ring before could go to a backend that was dead when others of its flow came.
#[test]
fn an_owner_wakes_once_no_packet_goes_by_a_previous_ring_that_still_names_it() {
    let mut core = moving();
    pass_the_moving_time(&core);
    for _ in 0..2 {
        let sweep = swept(&core);
        core.swept(sweep).unwrap();
    }
    assert_eq!(slots_in(&core, Phase::Steady), 251);
    let resize = Settings {
        ring_size: Some(1_021),
        ..Settings::default()
    };
    core.change(Change::EditService(id(), resize)).unwrap();
    let third = Target {
        service: id(),
        address: "10.1.0.3:80".parse().unwrap(),
    };
    let died = Event {
        changed: true,
        dead: true,
        ..Event::new(third, Condition::Down)
    };
    assert!(core.health(died));
    let operations = planned(&core, core.state(), None).operations;
    let place = |wanted: &dyn Fn(&Operation) -> bool| operations.iter().position(wanted);
    let buried = operations
        .iter()
        .rposition(|op| matches!(op, Operation::Slots(_)))
        .unwrap();
    let wakes = place(&|op| matches!(op, Operation::State(_, s) if s & state::TAKES != 0)).unwrap();
    assert!(buried < wakes, "{operations:?}");
    assert!(operations[buried..wakes].contains(&Operation::Grace));
}
