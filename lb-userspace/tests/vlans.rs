//! VLAN devices and bonds: what the agent tells the packet path of them, and which of a host's it has VIPs announced by.

mod reach;

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::tables::{LOWERS, UPPER, Upper, VlanKey, feature};
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    model::{Change, Service, Vlans},
    neighbours::{Kind, NextHop, Port, Update},
};

const TAG: [u8; 4] = [0x81, 0, 0, 100];
const NONE: [u8; 4] = [0; 4];
const NIC: u32 = 4;
const VLAN: u32 = 9;
const BOND: u32 = 7;
const BACKEND: &str = "10.2.0.11";

fn service() -> Service {
    let text = format!(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"nat\"\nannounce = true\n\
         backend = [{{ address = \"{BACKEND}:80\" }}]\n"
    );
    let config = config::parse(&text, "lb.toml").expect("what is valid");
    config.services[0].clone()
}

fn port(index: u32, kind: Kind) -> Port {
    Port {
        index,
        mac: [2, 0, 0, 0, 0, index as u8],
        running: true,
        mtu: 1_500,
        kind,
        deaf: false,
    }
}

fn ports(of: &[(&str, u32, Kind)]) -> BTreeMap<String, Port> {
    let named = of
        .iter()
        .map(|&(name, index, kind)| (name.to_owned(), port(index, kind)));
    named.collect()
}

fn with_vlan() -> BTreeMap<String, Port> {
    let vlan = Kind::Vlan {
        lower: NIC,
        tag: TAG,
    };
    ports(&[("eth0", NIC, Kind::Plain), ("eth0.100", VLAN, vlan)])
}

/// An agent of that service, whose backend is reached by an interface.
fn start(vlans: Vlans, ports: BTreeMap<String, Port>, by: u32) -> Core<MemoryDataplane> {
    let mut core =
        Core::new("vlans".to_owned(), Tunnel::default(), reach::memory()).expect("sound maps");
    core.set_vlans(vlans);
    core.attend(["eth0", "bond0"].map(str::to_owned));
    core.network(Update::Ports(ports));
    let address: IpAddr = BACKEND.parse().expect("an address");
    let next_hop = NextHop {
        interface: by,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        source_address: [10, 2, 0, 1].into(),
        mtu: 1_500,
        on_link: true,
    };
    core.network(Update::NextHop {
        address,
        next_hop: Some(next_hop),
        reason: None,
    });
    core.change(Change::AddService(service())).expect("room");
    core
}

/// What stands below each device, and the interface that the backend is reached by.
fn told(core: &Core<MemoryDataplane>) -> (Vec<(u32, Upper)>, u32) {
    let tables = &core.dataplane().tables;
    let uppers = tables.uppers.iter().map(|(&index, &upper)| (index, upper));
    let placed = core.layout().placed(service().id).expect("the service");
    let member = placed.members().next();
    (
        uppers.collect(),
        // What the packet path reads.
        member.map_or(0, |(_, member)| {
            tables.backends[member.entry as usize].interface
        }),
    )
}

fn is_used(core: &Core<MemoryDataplane>) -> bool {
    core.dataplane().tables.control.features & feature::VLAN != 0
}

#[test]
fn a_backend_behind_a_vlan_device_is_sent_to_with_its_tag() {
    let core = start(Vlans::Auto, with_vlan(), VLAN);
    let upper = Upper {
        lowers: [NIC; LOWERS],
        tags: [TAG, NONE],
        count: 1,
        mtu: 1_500,
    };
    assert_eq!(told(&core), (vec![(VLAN, upper)], VLAN | UPPER));
    assert!(is_used(&core));
    let key = VlanKey {
        interface: NIC,
        tags: [TAG, NONE],
    };
    assert_eq!(core.dataplane().tables.vlans, [(key, VLAN | UPPER)].into());
    let announced: Vec<u32> = core.dataplane().tables.interfaces.keys().copied().collect();
    assert_eq!(announced, [NIC, VLAN], "asked for in the VLAN as well");
}

#[test]
fn nothing_is_made_of_tags_where_the_host_has_no_device_or_where_it_is_switched_off() {
    let plain = || ports(&[("eth0", NIC, Kind::Plain)]);
    for (vlans, ports, used) in [
        (Vlans::Auto, plain(), false),
        (Vlans::On, plain(), true),
        (Vlans::Off, plain(), false),
        (Vlans::Off, with_vlan(), false),
    ] {
        let core = start(vlans, ports, NIC);
        assert_eq!(is_used(&core), used, "{vlans:?}");
        assert_eq!(told(&core), (vec![], NIC), "{vlans:?}");
    }
}

#[test]
fn devices_that_come_and_go_are_followed() {
    let mut core = start(Vlans::Auto, ports(&[("eth0", NIC, Kind::Plain)]), VLAN);
    assert_eq!(told(&core).1, VLAN, "nobody has told what that is");
    assert!(core.network(Update::Ports(with_vlan())));
    core.enforce().expect("room");
    assert_eq!(told(&core).1, VLAN | UPPER);
    assert!(!core.network(Update::Ports(with_vlan())), "nothing new");
    assert!(core.network(Update::Ports(ports(&[("eth0", NIC, Kind::Plain)]))));
    core.enforce().expect("room");
    assert_eq!(told(&core), (vec![], VLAN));
    assert!(!is_used(&core) && core.dataplane().tables.vlans.is_empty());
}

#[test]
fn a_bond_that_fails_over_is_sent_by_its_other_member_and_backends_stay_as_they_are() {
    let bond = |first: bool| {
        let member = |active| Kind::Member { bond: BOND, active };
        ports(&[
            ("bond0", BOND, Kind::Bond),
            ("eth1", 5, member(first)),
            ("eth2", 6, member(!first)),
        ])
    };
    let mut core = start(Vlans::Auto, bond(true), BOND);
    let (uppers, by) = told(&core);
    assert_eq!((uppers[0].1.lowers, by), ([5; LOWERS], BOND | UPPER));
    let macs = |core: &Core<MemoryDataplane>| -> Vec<(u32, u8)> {
        let interfaces = core.dataplane().tables.interfaces.iter();
        interfaces.map(|(&index, at)| (index, at.mac[5])).collect()
    };
    // Nobody is told the bond's address by a member that stands by.
    assert_eq!(macs(&core), [(5, 7), (7, 7)]);
    let backends = core.dataplane().tables.backends.clone();
    assert!(core.network(Update::Ports(bond(false))));
    core.enforce().expect("room");
    assert_eq!(macs(&core), [(6, 7), (7, 7)]);
    assert_eq!(told(&core).0[0].1.lowers, [6; LOWERS]);
    assert_eq!(core.dataplane().tables.backends, backends);
}
