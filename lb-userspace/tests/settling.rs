//! When slots settle: the agent's plan over tables in memory, with a packet in between.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::tables::{FlowEvent, Phase, Tables as _};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::{Dataplane as _, DataplaneError, Operation, memory::MemoryDataplane},
    health::{Event, Target},
    model::{Change, ServiceId, UNKNOWN_PORT},
    plan::{self, Inputs, census, ticks},
    snapshot::Condition,
};

use crate::reach::{memory, next_hop, reached};

const VIP: &str = "10.0.0.1:80/tcp";

fn addresses() -> impl Iterator<Item = IpAddr> {
    (1..4).map(|n| IpAddr::from([10, 1, 0, n]))
}

/// An agent whose service has just got a third backend, so that a part of its slots moves.
fn moving() -> Core<MemoryDataplane> {
    let mut core = Core::new("settling".to_owned(), Tunnel::default(), memory()).unwrap();
    for address in addresses() {
        core.network(reached(address, 1));
    }
    let text = format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"ipip\"\nring_size = 251\nbackend = [\
         {{ address = \"10.1.0.1:80\" }}, {{ address = \"10.1.0.2:80\" }}]\n"
    );
    let config = config::parse(&text, "test").unwrap();
    let services = config.services.clone();
    core.change(Change::Replace(services)).unwrap();
    let backend = serde_json::from_value(serde_json::json!({"address": "10.1.0.3:80"})).unwrap();
    core.change(Change::AddBackend(id(), backend)).unwrap();
    core
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
    let now = core.dataplane().tables.time.get();
    let next_hops = addresses()
        .map(|address| (address, next_hop(address, 1)))
        .collect();
    let plan = plan::plan(
        core.layout(),
        &Inputs {
            state: core.state(),
            down: &BTreeMap::new(),
            next_hops: &next_hops,
            own_addresses: &BTreeSet::new(),
            tunnel: Tunnel::default(),
            unknown_port: UNKNOWN_PORT,
            now,
            census: Some(&census),
            overflows: &BTreeMap::from([(index(core), 0)]),
            traffic: &BTreeMap::new(),
            keeps_flows: false,
        },
    );
    plan.unwrap().operations
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

/// A sweep of the tables as they are.
fn swept(core: &Core<MemoryDataplane>) -> census::Census {
    let tables = &core.dataplane().tables;
    census::sweep(core.layout(), &mut { tables }, tables.time.get()).unwrap()
}

/// A check says this of the third backend.
fn check(core: &mut Core<MemoryDataplane>, condition: Condition) -> bool {
    let target = Target {
        service: id(),
        address: "10.1.0.3:80".parse().unwrap(),
    };
    core.health(Event {
        changed: true,
        ..Event::new(target, condition)
    })
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
    let settings = lb_userspace::model::Settings {
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
