//! What the agent does when the maps have no room, or the kernel refuses half-way: the change is refused
//! by name, and nothing of it stays.

mod reach;

use std::net::IpAddr;

use lb_common::{
    memory::MemoryTables,
    tables::{Address, owned},
};
use lb_userspace::{
    agent::{ChangeError, Core},
    config::Tunnel,
    dataplane::{Capacity, memory::MemoryDataplane},
    model::{Change, Service, ServiceId},
    neighbours::Update,
    plan::half,
};
use serde_json::{Value, json};

use crate::reach::reached;

/// Maps for so many backends.
fn core(backends: u32) -> Core<MemoryDataplane> {
    let mut memory = MemoryDataplane {
        capacity: Capacity {
            services: 4,
            backends,
            ..Capacity::default()
        },
        ..MemoryDataplane::default()
    };
    memory.tables.control.lookup_bits = 3;
    Core::new("room".to_owned(), Tunnel::default(), memory).expect("empty maps")
}

/// A `nat` service of this port of a group, with so many backends; QUIC where they have server ids.
fn service(port: u16, backends: u8, quic: bool) -> Service {
    let protocol = if quic { "udp" } else { "tcp" };
    let backend = |n: u8| match quic {
        true => json!({"address": format!("10.1.0.{n}:80"), "server_id": format!("{n:02x}")}),
        false => json!({"address": format!("10.1.0.{n}:80")}),
    };
    let backends: Vec<Value> = (1..=backends).map(backend).collect();
    let mut service = json!({
        "id": format!("10.0.0.1:{port}/{protocol}"), "group": "web", "mode": "nat",
        "ring_size": 251, "backends": backends,
    });
    if quic {
        service["quic"] = json!({"config_id": 0, "server_id_length": 1, "nonce_length": 6});
        service["mode"] = json!("ipip");
    }
    serde_json::from_value(service).expect("what is valid")
}

fn no_room(core: &mut Core<MemoryDataplane>, change: Change) -> String {
    let executed = core.dataplane().executed;
    match core.change(change) {
        Err(ChangeError::NoRoom(text)) => {
            assert_eq!(core.dataplane().executed, executed, "something was written");
            text
        }
        other => panic!("{other:?}"),
    }
}

/// Adds services of five backends each, of which two fit; the change that is the third.
fn third_that_does_not_fit(
    core: &mut Core<MemoryDataplane>,
    quic: bool,
    parts: [&str; 2],
) -> Change {
    let add = |port| Change::AddService(service(port, 5, quic));
    core.change(add(80)).expect("room for five");
    core.change(add(81)).expect("room for ten");
    let text = no_room(core, add(82));
    let named = parts.iter().all(|part| text.contains(part));
    assert!(named && text.contains("`backends`"), "{text}");
    add(82)
}

#[test]
fn services_of_a_group_need_a_way_back_from_each_backend_each() {
    // One entry stands for nobody.
    let mut core = core(11);
    let third = third_that_does_not_fit(&mut core, false, ["15 ways back", "11 fit"]);
    core.change(Change::RemoveService(service(81, 0, false).id))
        .expect("a way out");
    core.change(third).expect("10 of 11 again");
}

#[test]
fn ways_back_of_former_backends_count_until_they_are_forgotten() {
    // One entry stands for nobody, and one is for those whose next hops change.
    let mut core = core(10);
    core.change(Change::AddService(service(80, 4, false)))
        .expect("4 of 10");
    core.change(Change::AddService(service(81, 4, false)))
        .expect("8 of 10");
    // All eight would be replaced in one step, and are needed until the grace period.
    let others = [82, 83].map(|port| service(port, 4, false));
    let text = no_room(&mut core, Change::Replace(others.into()));
    assert!(text.contains("16 ways back"), "{text}");
}

#[test]
fn services_of_a_group_need_a_server_id_of_each_backend_each() {
    let mut core = core(7);
    third_that_does_not_fit(&mut core, true, ["15 server ids", "14 fit"]);
}

#[test]
fn next_hops_that_change_are_followed_one_after_the_other_where_there_is_room_for_one_more() {
    let mut core = core(7);
    core.change(Change::AddService(service(80, 5, false)))
        .expect("5 of 7, of which one stands for nobody");
    let text = no_room(&mut core, Change::AddService(service(443, 5, false)));
    assert!(text.contains("`backends`"), "{text}");
    for way in [1, 2] {
        for n in 1..=5 {
            core.network(reached(IpAddr::from([10, 1, 0, n]), way));
        }
        core.enforce().expect("as far as there is room");
        let placed = core
            .layout()
            .placed("10.0.0.1:80/tcp".parse().expect("an id"));
        let members = placed.expect("a service").members();
        let followed = members.filter(|(_, m)| m.backend.destination_mac[5] == way);
        assert_eq!(followed.count(), 5, "way {way}");
    }
}

#[test]
fn a_host_with_more_addresses_than_there_is_room_for_still_serves() {
    let mut core = core(8);
    let host = |n: u32| IpAddr::from((0x0a80_0000 + n).to_be_bytes());
    let room = core.dataplane().capacity.owned();
    let crowds = [0, 20_000].map(|first| (first..first + 2 * room).map(host).collect());
    for addresses in crowds {
        core.network(Update::OwnAddresses(addresses));
        core.enforce().expect("as many as there is room for");
        core.change(Change::Replace(vec![service(80, 2, false)]))
            .expect("a VIP has its room");
        core.change(Change::Replace(Vec::new()))
            .expect("and gives it back");
    }
    // Those that had no room beside the former ones have it now.
    let local = core.dataplane().tables.owned.values();
    let local = local.filter(|&&bits| bits == owned::LOCAL).count();
    assert_eq!(local, Capacity::OWN_ADDRESSES as usize);
    let first = Address::from(host(20_000));
    assert!(core.dataplane().tables.owned.contains_key(&first));
}

/// What packets can see, and what a table has room for.
fn seen(tables: &MemoryTables, services: &[ServiceId]) -> String {
    let half = half(tables.control.generation);
    let entries = tables.service_entries.iter();
    let in_force = entries
        .map(|entry| entry.halves[half])
        .filter(|descriptor| descriptor.port != 0)
        .map(|d| (d.address, d.port, d.ring_size, d.members_len, d.mode))
        .collect::<Vec<_>>();
    format!(
        "{in_force:?} {services:?} {:?} {:?} {:?} {}",
        tables.ways_back, tables.servers, tables.owned, tables.control.features
    )
}

#[test]
fn a_change_that_the_kernel_refuses_half_way_leaves_nothing_behind() {
    let mut refused = 0;
    loop {
        let mut core = core(32);
        core.change(Change::AddService(service(80, 3, false)))
            .expect("room enough");
        let before = seen(&core.dataplane().tables, &ids(&core));
        let memory = core.dataplane_mut();
        memory.fail_at = Some(memory.executed + refused);
        match core.change(Change::AddService(service(81, 3, false))) {
            Err(ChangeError::Kernel(_)) => {}
            Ok(()) => break,
            Err(error) => panic!("{error}"),
        }
        let after = seen(&core.dataplane().tables, &ids(&core));
        assert_eq!(after, before, "refused at operation {refused}");
        assert!(!core.is_behind());
        refused += 1;
    }
    assert!(refused > 7, "{refused}");
}

fn ids(core: &Core<MemoryDataplane>) -> Vec<ServiceId> {
    core.state().services().map(|service| service.id).collect()
}

#[test]
fn an_agent_whose_first_change_is_refused_leaves_what_serves_as_it_is() {
    let mut core = core(32);
    core.change(Change::AddService(service(80, 3, false)))
        .expect("room enough");
    let mut memory = std::mem::take(core.dataplane_mut());
    let before = seen(&memory.tables, &[]);
    // Beyond what the next agent repairs when it starts.
    memory.fail_at = Some(memory.executed + 4);
    let mut next = Core::new("room".to_owned(), Tunnel::default(), memory).expect("full maps");
    let services = [80, 81].map(|port| service(port, 3, false));
    let refused = next.change(Change::Replace(services.into()));
    assert!(
        matches!(refused, Err(ChangeError::Kernel(_))),
        "{refused:?}"
    );
    assert!(next.is_behind());
    let after = seen(&next.dataplane().tables, &[]);
    let service = before.split(']').next().expect("the services");
    assert!(after.starts_with(service), "{before}\n{after}");
}
