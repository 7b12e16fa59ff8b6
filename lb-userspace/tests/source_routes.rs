//! Rings of parts, and the routes that lead to them: the agent's plans over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_common::tables::{Guard, service_flag};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::{Dataplane as _, memory::MemoryDataplane},
    model::{Admin, Change, Prefix, ServiceId, Settings},
    plan::{census, half, ticks},
};

use crate::reach::{asking, memory, reached};

const VIP: &str = "10.0.0.1:80/tcp";
const OTHER: &str = "10.0.0.2:80/tcp";
/// Slots of each part.
const SIZE: usize = 251;

fn id() -> ServiceId {
    VIP.parse().unwrap()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 80))
}

/// A service whose clients of 192.0.2.0/24 go to subset a, and of backends 1 and 2 of none, 3 and 4 of a, and 5 of both.
fn text(vip: &str) -> String {
    let subsets = ["", "", "\"a\"", "\"a\"", "\"a\", \"default\""];
    let backends = (1..).zip(subsets).map(|(n, subsets)| {
        let address = address(n);
        format!("[[service.backend]]\naddress = \"{address}\"\nsubsets = [{subsets}]\n")
    });
    let backends: String = backends.collect();
    format!(
        "[[service]]\nvip = \"{vip}\"\nmode = \"ipip\"\nring_size = {SIZE}\nhealth = {{ type = \"none\" }}\nsource_route = [{{ prefixes = [\"192.0.2.0/24\"], subset = \"a\" }}]\n{backends}"
    )
}

fn over(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("routes".to_owned(), Tunnel::default(), memory).unwrap();
    for n in 1..=5 {
        core.network(reached(address(n).ip(), 1));
    }
    core
}

fn replace(core: &mut Core<MemoryDataplane>, vips: &[&str]) {
    let all: String = vips.iter().map(|vip| text(vip)).collect();
    let services = config::parse(&all, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
}

fn serving() -> Core<MemoryDataplane> {
    let mut core = over(memory());
    replace(&mut core, &[VIP]);
    core
}

/// The owners of slots, part by part.
fn owners(core: &Core<MemoryDataplane>) -> Vec<Vec<IpAddr>> {
    let placed = core.layout().placed(id()).unwrap();
    let written = core.dataplane();
    let ring = written.ring(placed.ring.start, placed.ring.size()).unwrap();
    let owner = |slot: &lb_common::tables::Slot| {
        let member = placed.member_by_id(slot.owner()).unwrap();
        member.address().ip()
    };
    let parts = ring.slots.chunks(SIZE);
    parts.map(|part| part.iter().map(owner).collect()).collect()
}

/// Who owns slots of each part, by number.
fn members(core: &Core<MemoryDataplane>) -> Vec<Vec<u8>> {
    let number = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => 0,
    };
    let of = |part: &Vec<IpAddr>| {
        let all: BTreeSet<u8> = part.iter().map(number).collect();
        all.into_iter().collect()
    };
    owners(core).iter().map(of).collect()
}

fn guard(core: &Core<MemoryDataplane>) -> Guard {
    let number = core.layout().placed(id()).unwrap().number;
    let tables = &core.dataplane().tables;
    tables.guards[number as usize].halves[half(tables.control.generation)]
}

/// Lists that the maps hold anything of.
fn lists(core: &Core<MemoryDataplane>) -> BTreeSet<u32> {
    let keys = core.dataplane().tables.access.keys();
    keys.map(|key| key.list).collect()
}

fn set(core: &mut Core<MemoryDataplane>, routes: &[(&str, &str)]) {
    let route = |&(prefix, name): &(&str, &str)| -> (Prefix, String) {
        (prefix.parse().unwrap(), name.to_owned())
    };
    let settings = Settings {
        source_routes: Some(routes.iter().map(route).collect()),
        ..Settings::default()
    };
    core.change(Change::EditService(id(), settings)).unwrap();
}

fn put(core: &mut Core<MemoryDataplane>, n: u8, subsets: &[&str]) {
    let subsets = subsets.iter().map(|&name| name.to_owned()).collect();
    let settings = Settings {
        subsets: [(address(n), subsets)].into(),
        ..Settings::default()
    };
    core.change(Change::EditService(id(), settings)).unwrap();
}

/// Lets slots come to rest.
fn rest(core: &mut Core<MemoryDataplane>) {
    let time = &core.dataplane().tables.time;
    let moving_time = core.state().service(id()).unwrap().moving_time();
    time.set(time.get() + ticks(moving_time) + 1);
    for _ in 0..3 {
        let tables = &core.dataplane().tables;
        let census = census::sweep(core.layout(), &mut { tables }, tables.time.get()).unwrap();
        core.swept(census).unwrap();
    }
    let placed = core.layout().placed(id()).unwrap();
    assert_eq!(placed.ring.phases.steady, placed.ring.size());
}

#[test]
fn each_part_of_the_ring_is_of_the_backends_of_its_subset() {
    let core = serving();
    assert_eq!(members(&core), [vec![1, 2, 5], vec![3, 4, 5]]);
    let placed = core.layout().placed(id()).unwrap();
    let apart: Vec<u16> = placed.members().map(|(_, m)| m.member.apart).collect();
    assert_eq!(apart, [0b10, 0b10, 0b01, 0b01, 0]);
    assert_eq!(placed.descriptor.ring_size as usize, SIZE);
    assert!(placed.descriptor.is_routed() && guard(&core).routes != 0);
}

#[test]
fn a_backend_that_changes_its_subset_moves_slots_of_the_two_alone() {
    let mut core = serving();
    set(
        &mut core,
        &[("192.0.2.0/24", "a"), ("198.51.100.0/24", "c")],
    );
    put(&mut core, 2, &["c"]);
    rest(&mut core);
    let before = owners(&core);
    put(&mut core, 4, &["c"]);
    assert_eq!(members(&core), [vec![1, 5], vec![3, 5], vec![2, 4]]);
    let after = owners(&core);
    assert_eq!(before[0], after[0]);
    let placed = core.layout().placed(id()).unwrap();
    assert_eq!(placed.descriptor.flags & service_flag::MOVING, 0);
    let moved = (before.concat().iter().zip(after.concat()))
        .filter(|(before, after)| *before != after)
        .count();
    assert_eq!(placed.ring.phases.moving as usize, moved);
}

#[test]
fn other_routes_move_the_whole_service_and_those_before_go_with_the_ring_before() {
    let mut core = serving();
    rest(&mut core);
    let first = guard(&core).routes;
    set(&mut core, &[("192.0.2.0/25", "a")]);
    let second = guard(&core).routes;
    assert_ne!(second, first);
    assert_eq!(guard(&core).previous_routes, first);
    assert_eq!(lists(&core), [first, second].into());
    // What comes between does not touch where flows were before all of that.
    set(&mut core, &[]);
    assert_eq!(
        (guard(&core).routes, guard(&core).previous_routes),
        (0, first)
    );
    assert_eq!(lists(&core), [first].into());
    assert_eq!(members(&core), [vec![1, 2, 5]]);
    rest(&mut core);
    assert_eq!(guard(&core), Guard::default());
    assert!(lists(&core).is_empty());
    let placed = core.layout().placed(id()).unwrap();
    assert!(!placed.descriptor.is_routed());
}

#[test]
fn other_names_in_the_same_order_move_nothing() {
    let mut core = serving();
    rest(&mut core);
    let (before, generation) = (owners(&core), core.layout().generation);
    let named = [(3, &["z"][..]), (4, &["z"]), (5, &["z", "default"])];
    let settings = Settings {
        source_routes: Some(
            [("192.0.2.0/24".parse().unwrap(), "z".to_owned())]
                .into_iter()
                .collect(),
        ),
        subsets: named
            .map(|(n, names)| {
                (
                    address(n),
                    names.iter().map(|&name| name.to_owned()).collect(),
                )
            })
            .into(),
        ..Settings::default()
    };
    core.change(Change::EditService(id(), settings)).unwrap();
    assert_eq!(owners(&core), before);
    assert_eq!(core.layout().generation, generation);
}

#[test]
fn an_agent_that_starts_again_takes_up_parts_and_routes_and_moves_nothing() {
    for moves in [false, true] {
        let mut first = serving();
        rest(&mut first);
        if moves {
            set(&mut first, &[("192.0.2.0/25", "a")]);
            set(&mut first, &[("192.0.2.0/24", "a")]);
        }
        let (guard_before, lists_before) = (guard(&first), lists(&first));
        let before = owners(&first);
        let mut next = over(std::mem::take(first.dataplane_mut()));
        let generation = next.layout().generation;
        replace(&mut next, &[VIP]);
        assert_eq!(guard(&next), guard_before);
        assert_eq!(lists(&next), lists_before);
        assert_eq!(owners(&next), before);
        assert_eq!(next.layout().generation, generation);
        let placed = next.layout().placed(id()).unwrap();
        assert_eq!(placed.previous.is_some(), moves);
        rest(&mut next);
        assert_eq!(guard(&next).previous_routes, 0);
    }
}

#[test]
fn services_with_the_same_routes_share_one_list_and_none_is_left_behind() {
    let mut core = serving();
    replace(&mut core, &[VIP, OTHER]);
    assert_eq!(lists(&core).len(), 1);
    core.change(Change::RemoveService(id())).unwrap();
    assert_eq!(lists(&core).len(), 1);
    core.change(Change::RemoveService(OTHER.parse().unwrap()))
        .unwrap();
    assert!(lists(&core).is_empty());
}

#[test]
fn a_subset_in_which_nobody_takes_flows_keeps_its_slots_while_others_move() {
    let mut core = serving();
    for n in [3, 4, 5] {
        core.change(asking(id(), address(n), Admin::Draining))
            .unwrap();
    }
    assert_eq!(members(&core)[0], [1, 2]);
    assert_eq!(members(&core)[1], [5], "the last that was left");
    // One that was moved out may have none of its slots: it takes others' flows.
    put(&mut core, 5, &["default"]);
    core.change(asking(id(), address(5), Admin::Active))
        .unwrap();
    assert_eq!(members(&core), [vec![1, 2, 5], vec![3, 4]]);
}

#[test]
fn a_first_ring_has_owners_for_subsets_whose_backends_cannot_be_reached_yet() {
    let mut core = Core::new("routes".to_owned(), Tunnel::default(), memory()).unwrap();
    core.network(reached(address(1).ip(), 1));
    replace(&mut core, &[VIP]);
    assert_eq!(members(&core), [vec![1], vec![3, 4, 5]]);
    for n in 2..=5 {
        core.network(reached(address(n).ip(), 1));
    }
    core.enforce().unwrap();
    assert_eq!(members(&core), [vec![1, 2, 5], vec![3, 4, 5]]);
}
