//! Whom slots name beside their owner, of services with a second hop: the agent's plans over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod reach;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::{Phase, mode};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::{Dataplane as _, memory::MemoryDataplane},
    model::{Admin, Change, ServiceId, Settings},
    neighbours::Update,
    plan::{census, ticks},
};

use crate::reach::{asking, memory, reached, wind};

const VIP: &str = "10.0.0.1:80/tcp";

fn id() -> ServiceId {
    VIP.parse().unwrap()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 80))
}

/// A service of these backends, in the state that stands beside each.
fn text(backends: &[(u8, &str)], second_hop: bool) -> String {
    let backends: String = backends
        .iter()
        .map(|&(n, state)| {
            format!(
                "[[service.backend]]\naddress = \"{}\"\nstate = \"{state}\"\n",
                address(n)
            )
        })
        .collect();
    format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"gue\"\nring_size = 4093\nsecond_hop = {second_hop}\n{backends}"
    )
}

/// A new agent that knows the way to the backends of `reachable`.
fn serving(text: &str, reachable: &[u8]) -> Core<MemoryDataplane> {
    let mut core = Core::new("hop".to_owned(), Tunnel::default(), memory()).unwrap();
    for &n in reachable {
        core.network(reached(address(n).ip(), 1));
    }
    let services = config::parse(text, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    core
}

fn active(backends: &[u8]) -> Core<MemoryDataplane> {
    let all: Vec<(u8, &str)> = backends.iter().map(|&n| (n, "active")).collect();
    serving(&text(&all, true), backends)
}

/// A slot, by the addresses of its owner and of whom it names beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named {
    owner: IpAddr,
    other: IpAddr,
    phase: Phase,
}

fn ring(core: &Core<MemoryDataplane>) -> Vec<Named> {
    let placed = core.layout().placed(id()).unwrap();
    let ring = core
        .dataplane()
        .ring(placed.ring.start, placed.ring.size())
        .unwrap();
    let at = |local: u32| {
        let mut members = placed.members();
        let found = members.find(|(id, _)| u32::from(*id) == local);
        found.unwrap().1.address().ip()
    };
    let named = |slot: &lb_common::tables::Slot| Named {
        owner: at(slot.owner()),
        other: at(slot.origin()),
        phase: slot.phase(),
    };
    ring.slots.iter().map(named).collect()
}

/// Lets slots come to rest.
fn rest(core: &mut Core<MemoryDataplane>) {
    let time = &core.dataplane().tables.time;
    let moving_time = core.state().service(id()).unwrap().moving_time();
    time.set(time.get() + ticks(moving_time) + 1);
    for _ in 0..2 {
        let tables = &core.dataplane().tables;
        let census = census::sweep(core.layout(), &mut { tables }, tables.time.get()).unwrap();
        core.swept(census).unwrap();
    }
    assert!(ring(core).iter().all(|slot| slot.phase == Phase::Steady));
}

/// Every slot whose owner is another than before names that one.
fn assert_names_former(before: &[Named], after: &[Named]) {
    let moved = before.iter().zip(after).filter(|(b, a)| b.owner != a.owner);
    let mut count = 0;
    for (before, after) in moved {
        assert_eq!(after.other, before.owner);
        count += 1;
    }
    assert!(count > before.len() / 10, "{count} slots have moved");
}

#[test]
fn slots_of_a_new_agent_name_who_had_them_before_the_backend_that_is_listed_last() {
    let before = active(&[1, 2, 3, 4, 5]);
    let after = active(&[1, 2, 3, 4, 5, 6]);
    assert_names_former(&ring(&before), &ring(&after));
    let others: BTreeSet<IpAddr> = ring(&after).iter().map(|slot| slot.other).collect();
    assert_eq!(others.len(), 6, "the others name each other, too");
    assert!(ring(&after).iter().all(|slot| slot.owner != slot.other));
    assert!(ring(&after).iter().all(|slot| slot.phase == Phase::Steady));
}

#[test]
fn of_any_backend_that_was_added_slots_name_who_had_them_without_it() {
    let before = active(&[1, 3, 4, 5]);
    // In the middle of the list.
    let after = active(&[1, 2, 3, 4, 5]);
    let slots: Vec<(Named, Named)> = ring(&before).into_iter().zip(ring(&after)).collect();
    let own = slots.iter().filter(|(_, now)| now.owner == address(2).ip());
    let named = own.clone().filter(|(then, now)| now.other == then.owner);
    let (own, named) = (own.count(), named.count());
    println!("{named} of {own} slots name who had them");
    // Those that the last one would not have had either name who would have had them instead.
    assert!(
        own > 4093 / 6 && named * 100 >= own * 70,
        "{named} of {own}"
    );
}

#[test]
fn slots_of_a_new_agent_name_a_drained_backend_where_they_were_its_own() {
    let before = active(&[1, 2, 3, 4]);
    let drained = [(1, "draining"), (2, "active"), (3, "active"), (4, "active")];
    let after = serving(&text(&drained, true), &[1, 2, 3, 4]);
    assert_names_former(&ring(&before), &ring(&after));
    let own = |slots: &[Named]| {
        let own = slots.iter().filter(|slot| slot.owner == address(1).ip());
        own.count()
    };
    assert_eq!(own(&ring(&after)), 0);
}

#[test]
fn a_slot_names_its_former_owner_for_as_long_as_it_does_not_move_again() {
    let mut core = active(&[1, 2, 3]);
    rest(&mut core);
    let before = ring(&core);
    core.change(asking(id(), address(1), Admin::Draining))
        .unwrap();
    let moving = ring(&core);
    assert_names_former(&before, &moving);
    rest(&mut core);
    assert_names_former(&before, &ring(&core));
    core.change(asking(id(), address(2), Admin::Draining))
        .unwrap();
    rest(&mut core);
    assert_names_former(&moving, &ring(&core));
}

#[test]
fn without_a_second_hop_a_slot_that_is_steady_names_its_owner_alone() {
    let backends = [(1, "active"), (2, "active"), (3, "active")];
    let mut core = serving(&text(&backends, false), &[1, 2, 3]);
    rest(&mut core);
    core.change(asking(id(), address(1), Admin::Draining))
        .unwrap();
    rest(&mut core);
    assert!(ring(&core).iter().all(|slot| slot.owner == slot.other));
    let placed = core.layout().placed(id()).unwrap();
    assert_eq!(placed.descriptor.mode, mode::GUE);
}

#[test]
fn a_second_hop_that_is_switched_on_moves_nothing_and_has_every_slot_name_somebody() {
    let backends = [(1, "active"), (2, "active"), (3, "active")];
    let mut core = serving(&text(&backends, false), &[1, 2, 3]);
    rest(&mut core);
    let before = ring(&core);
    core.change(switched(true)).unwrap();
    let after = ring(&core);
    let owners = |slots: &[Named]| -> Vec<_> { slots.iter().map(|s| (s.owner, s.phase)).collect() };
    assert_eq!(owners(&after), owners(&before));
    assert!(after.iter().all(|slot| slot.owner != slot.other));
    let descriptor = core.layout().placed(id()).unwrap().descriptor;
    assert_eq!(descriptor.mode, mode::SECOND_HOP);
    core.change(switched(false)).unwrap();
    assert_eq!(owners(&ring(&core)), owners(&before));
    let descriptor = core.layout().placed(id()).unwrap().descriptor;
    assert_eq!(descriptor.mode, mode::GUE);
}

fn switched(second_hop: bool) -> Change {
    let settings = Settings {
        second_hop: Some(second_hop),
        ..Settings::default()
    };
    Change::EditService(id(), settings)
}

fn remove(core: &mut Core<MemoryDataplane>, n: u8) {
    core.change(Change::RemoveBackend(id(), address(n)))
        .unwrap();
    rest(core);
    // Only now did a sweep begin that nothing led to it any more.
    rest(core);
    let placed = core.layout().placed(id()).unwrap();
    assert!(placed.member(address(n)).is_none(), "it has left");
}

/// Who is in the pool, and nobody names somebody who never had its flows: one that was added last and takes none.
fn assert_stranger_is_not_named(core: &mut Core<MemoryDataplane>, n: u8) {
    let stranger = format!(
        "[[service.backend]]\naddress = \"{}\"\nstate = \"draining\"\n",
        address(n)
    );
    let kept = [(2, "active"), (3, "active"), (4, "active")];
    let text = text(&kept, true) + &stranger;
    let services = config::parse(&text, "test").unwrap().services;
    core.network(reached(address(n).ip(), 1));
    core.change(Change::Replace(services)).unwrap();
    let ids = |core: &Core<MemoryDataplane>| core.layout().placed(id()).unwrap().members.len();
    assert_eq!(ids(core), 4, "it has the local id of who has left");
    for slot in ring(core) {
        assert_ne!(slot.other, address(n).ip());
        assert_ne!(slot.owner, slot.other);
    }
}

#[test]
fn slots_that_name_a_backend_which_leaves_come_to_name_others_and_not_whoever_gets_its_id() {
    let mut core = active(&[1, 2, 3, 4]);
    rest(&mut core);
    remove(&mut core, 1);
    for slot in ring(&core) {
        assert_ne!(slot.owner, slot.other);
    }
    assert_stranger_is_not_named(&mut core, 9);
}

#[test]
fn a_second_hop_that_is_switched_off_and_on_again_names_nobody_who_left_in_between() {
    let mut core = active(&[1, 2, 3, 4]);
    rest(&mut core);
    core.change(asking(id(), address(1), Admin::Draining))
        .unwrap();
    rest(&mut core);
    core.change(switched(false)).unwrap();
    remove(&mut core, 1);
    assert!(ring(&core).iter().any(|slot| slot.owner == slot.other));
    core.change(switched(true)).unwrap();
    assert_stranger_is_not_named(&mut core, 9);
}

/// Another agent over the same maps, that is told this.
fn next_agent(
    mut core: Core<MemoryDataplane>,
    text: &str,
    backends: &[u8],
) -> Core<MemoryDataplane> {
    let maps = std::mem::take(core.dataplane_mut());
    let mut core = Core::new("hop".to_owned(), Tunnel::default(), maps).unwrap();
    for &n in backends {
        core.network(reached(address(n).ip(), 1));
    }
    let services = config::parse(text, "test").unwrap().services;
    core.change(Change::Replace(services)).unwrap();
    core
}

#[test]
fn a_second_hop_that_a_new_agent_is_told_of_has_every_slot_name_somebody() {
    let backends = [(1, "active"), (2, "active"), (3, "active")];
    let mut core = serving(&text(&backends, false), &[1, 2, 3]);
    rest(&mut core);
    let before = ring(&core);
    let core = next_agent(core, &text(&backends, true), &[1, 2, 3]);
    let after = ring(&core);
    let owners = |slots: &[Named]| -> Vec<_> { slots.iter().map(|s| (s.owner, s.phase)).collect() };
    assert_eq!(owners(&after), owners(&before));
    assert!(after.iter().all(|slot| slot.owner != slot.other));
}

#[test]
fn a_second_hop_that_is_switched_on_with_a_change_of_the_pool_has_every_slot_name_somebody() {
    let all = [(1, "active"), (2, "active"), (3, "active"), (4, "active")];
    let mut core = serving(&text(&all, false), &[1, 2, 3, 4]);
    rest(&mut core);
    let before = ring(&core);
    let mut backends = all;
    backends[0].1 = "draining";
    let services = config::parse(&text(&backends, true), "test")
        .unwrap()
        .services;
    core.change(Change::Replace(services)).unwrap();
    let after = ring(&core);
    assert_names_former(&before, &after);
    assert!(after.iter().all(|slot| slot.owner != slot.other));
}

/// Else whoever stands in for it would be taken for who had its flows.
#[test]
fn a_backend_to_which_there_is_no_way_yet_keeps_its_slots_flows_and_names_others_once_there_is() {
    let backends: Vec<(u8, &str)> = (1..=4).map(|n| (n, "active")).collect();
    let complete = ring(&active(&[1, 2, 3, 4]));
    let mut core = serving(&text(&backends, true), &[1, 2, 4]);
    let awaited = address(3).ip();
    for (slot, complete) in ring(&core).iter().zip(&complete) {
        // A slot that is another's in the meantime keeps for whoever is to have it.
        let keeper = match slot.phase {
            Phase::Moving => slot.other,
            _ => slot.owner,
        };
        assert_eq!(keeper, complete.owner);
        assert_ne!(slot.owner, awaited);
    }
    core.network(reached(awaited, 1));
    core.enforce().unwrap();
    rest(&mut core);
    assert_eq!(ring(&core), complete);
}

fn lost(address: SocketAddr) -> Update {
    Update::NextHop {
        address: address.ip(),
        next_hop: None,
        reason: Some("nobody answers".to_owned()),
    }
}

/// Every slot leads to whom a way leads to, and those that would be `missing`'s name it.
fn assert_kept_by_others(core: &Core<MemoryDataplane>, complete: &[Named], missing: SocketAddr) {
    for (slot, complete) in ring(core).iter().zip(complete) {
        assert_ne!(slot.owner, missing.ip());
        // A ring without one moves a few slots between others, too.
        if slot.owner != complete.owner {
            assert_eq!(slot.other, complete.owner);
        }
        if slot.other == missing.ip() {
            assert_ne!(slot.phase, Phase::Moving, "its flows are dropped");
        }
    }
}

#[test]
fn a_backend_to_which_there_is_no_way_for_long_leaves_its_flows_to_others_that_are_told_of_it() {
    let backends: Vec<(u8, &str)> = (1..=4).map(|n| (n, "active")).collect();
    let complete = ring(&active(&[1, 2, 3, 4]));
    let mut core = serving(&text(&backends, true), &[1, 2, 4]);
    core.network(lost(address(3)));
    assert!(!core.age(), "it may be found yet");
    wind(&core, Duration::from_secs(4));
    assert!(core.age());
    core.enforce().unwrap();
    assert_kept_by_others(&core, &complete, address(3));
    rest(&mut core);
    assert_kept_by_others(&core, &complete, address(3));
    // It is there after all.
    core.network(reached(address(3).ip(), 1));
    core.enforce().unwrap();
    rest(&mut core);
    let owners = |slots: &[Named]| slots.iter().map(|slot| slot.owner).collect::<Vec<_>>();
    assert_eq!(owners(&ring(&core)), owners(&complete));
}

#[test]
fn a_backend_that_is_known_to_have_no_way_is_not_waited_for() {
    let backends: Vec<(u8, &str)> = (1..=4).map(|n| (n, "active")).collect();
    let complete = ring(&active(&[1, 2, 3, 4]));
    let mut core = serving("", &[1, 2, 4]);
    core.network(lost(address(3)));
    wind(&core, Duration::from_secs(4));
    core.age();
    let services = config::parse(&text(&backends, true), "test")
        .unwrap()
        .services;
    core.change(Change::Replace(services)).unwrap();
    assert_kept_by_others(&core, &complete, address(3));
}

/// How long this thread has run: others may be in its way. The first figure of schedstat is nanoseconds.
fn on_cpu() -> Duration {
    let figures = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(figures.split(' ').next().unwrap().parse().unwrap())
}

/// How long it takes to serve a pool of 1,000, and what that leaves.
fn serving_many(second_hop: bool) -> (Duration, Core<MemoryDataplane>) {
    let address = |n: u16| SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 80));
    let mut core = Core::new("hop".to_owned(), Tunnel::default(), memory()).unwrap();
    let mut text = format!(
        "[[service]]\nvip = \"{VIP}\"\nmode = \"gue\"\nring_size = 65537\nsecond_hop = {second_hop}\n"
    );
    for n in 0..1_000 {
        core.network(reached(address(n).ip(), 1));
        text += &format!("[[service.backend]]\naddress = \"{}\"\n", address(n));
    }
    let services = config::parse(&text, "test").unwrap().services;
    let begin = on_cpu();
    core.change(Change::Replace(services)).unwrap();
    (on_cpu() - begin, core)
}

/// A ring for each backend would take a thousand times as long.
#[test]
fn whom_a_large_pool_names_takes_a_few_rings_to_find() {
    let (alone, _) = serving_many(false);
    let (took, core) = serving_many(true);
    println!("{took:?} instead of {alone:?}");
    assert!(took < Duration::from_secs(3), "{took:?}, {alone:?}");
    let placed = core.layout().placed(id()).unwrap();
    let mut slots = placed.ring.slots.iter();
    assert!(slots.all(|slot| slot.owner() != slot.origin()));
}

#[test]
fn a_pool_of_one_names_nobody_else() {
    let core = active(&[1]);
    assert!(ring(&core).iter().all(|slot| slot.owner == slot.other));
}
