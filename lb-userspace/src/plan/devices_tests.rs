//! What the packet path is told of a host's devices.

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ID_100: Tag = [0x81, 0, 0, 100];
const ID_200: Tag = [0x81, 0, 0, 200];
const SERVICE_7: Tag = [0x88, 0xa8, 0, 7];
const NONE: Tag = [0; 4];

fn port(index: u32, kind: Kind) -> Port {
    Port {
        index,
        mac: MAC,
        running: true,
        mtu: 1_500,
        kind,
        deaf: false,
    }
}

fn vlan_over(lower: u32, tag: Tag) -> Kind {
    Kind::Vlan { lower, tag }
}

fn member(bond: u32, active: bool) -> Kind {
    Kind::Member { bond, active }
}

fn of(ports: &[Port]) -> Devices {
    Devices::of(
        &ports
            .iter()
            .map(|port| (format!("if{}", port.index), *port))
            .collect(),
    )
}

fn key(interface: u32, tags: [Tag; 2]) -> VlanKey {
    VlanKey { interface, tags }
}

#[test]
fn a_host_without_vlans_and_bonds_has_nothing_to_tell() {
    assert_eq!(
        of(&[port(1, Kind::Plain), port(2, Kind::Plain)]),
        Devices::default()
    );
}

#[test]
fn a_vlan_device_is_found_by_its_tag_and_leaves_by_its_parent() {
    let devices = of(&[port(2, Kind::Plain), port(9, vlan_over(2, ID_100))]);
    assert_eq!(devices.vlans, [(key(2, [ID_100, NONE]), 9 | UPPER)].into());
    let upper = Upper {
        lowers: [2; LOWERS],
        tags: [ID_100, NONE],
        count: 1,
        mtu: 1_500,
    };
    assert_eq!(devices.uppers, [(9, upper)].into());
    assert_eq!(devices.marked(9), 9 | UPPER);
    assert_eq!(devices.marked(2), 2);
    assert_eq!(devices.way_in(9 | UPPER), 9 | UPPER);
}

#[test]
fn two_vlan_devices_over_each_other_make_two_tags_which_leave_less_room() {
    let devices = of(&[
        port(2, Kind::Plain),
        port(8, vlan_over(2, SERVICE_7)),
        port(9, vlan_over(8, ID_100)),
    ]);
    let both = [SERVICE_7, ID_100];
    assert_eq!(devices.vlans.get(&key(2, both)), Some(&(9 | UPPER)));
    assert_eq!(devices.uppers[&9].tags, both);
    assert_eq!((devices.mtu(8), devices.mtu(9)), (Some(1_500), Some(1_496)));
}

#[test]
fn what_stands_over_two_vlan_devices_or_over_nothing_is_left_out() {
    let devices = of(&[
        port(2, Kind::Plain),
        port(7, vlan_over(2, SERVICE_7)),
        port(8, vlan_over(7, ID_100)),
        port(9, vlan_over(8, ID_200)),
        port(10, vlan_over(77, ID_200)),
    ]);
    assert_eq!(devices.uppers.keys().collect::<Vec<_>>(), [&7, &8]);
}

#[test]
fn a_bond_leaves_by_those_of_its_members_that_are_active_and_running() {
    let down = Port {
        running: false,
        ..port(4, member(9, true))
    };
    let ports = [
        port(2, member(9, true)),
        port(3, member(9, false)),
        down,
        port(9, Kind::Bond),
    ];
    let devices = of(&ports);
    assert_eq!(devices.uppers[&9].lowers, [2; LOWERS]);
    assert_eq!(devices.way_in(9 | UPPER), 2);
    let devices = of(&[
        port(2, member(9, true)),
        port(3, member(9, true)),
        port(9, Kind::Bond),
    ]);
    assert_eq!(devices.uppers[&9].lowers, [2, 3, 2, 3, 2, 3, 2, 3]);
    assert_eq!(devices.way_in(9 | UPPER), 0, "by either");
    let devices = of(&[port(3, member(9, false)), port(9, Kind::Bond)]);
    assert_eq!(devices.uppers[&9].lowers, [0; LOWERS], "by none");
    assert_eq!(
        of(&[port(9, Kind::Bond)]),
        Devices::default(),
        "one without members"
    );
}

#[test]
fn a_vlan_over_a_bond_is_found_at_its_live_members_and_leaves_by_them() {
    let devices = of(&[
        port(2, member(8, true)),
        port(3, member(8, false)),
        port(8, Kind::Bond),
        port(9, vlan_over(8, ID_100)),
    ]);
    let of_vlan = |interface| (key(interface, [ID_100, NONE]), 9 | UPPER);
    assert_eq!(devices.vlans, [2, 8].map(of_vlan).into());
    assert_eq!(devices.uppers[&9].lowers, [2; LOWERS]);
    assert_eq!(devices.uppers[&9].tags, [ID_100, NONE]);
}

#[test]
fn frames_of_vlans_without_a_device_are_taken_where_all_are_to_be() {
    let ports = [("eth0".to_owned(), port(2, Kind::Plain))].into();
    let any = |vlans| {
        let devices = Devices::wanted(vlans, &ports, &BTreeSet::new());
        devices.vlans.contains_key(&VlanKey::ANY)
    };
    assert_eq!(
        [Vlans::On, Vlans::Auto, Vlans::Off].map(any),
        [true, false, false]
    );
}

#[test]
fn devices_beyond_the_room_that_there_is_are_counted() {
    let most = Capacity::UPPERS / 2;
    let vlan = |n| {
        let [high, low] = (n as u16).to_be_bytes();
        port(10 + n, vlan_over(2, [0x81, 0, high, low]))
    };
    let ports: Vec<Port> = [port(2, Kind::Plain)]
        .into_iter()
        .chain((0..most + 3).map(vlan))
        .collect();
    let devices = of(&ports);
    assert_eq!(
        devices.left_out as u32 + devices.uppers.len() as u32,
        most + 3
    );
    assert!(devices.left_out >= 3);
}

#[test]
fn a_vlan_device_that_has_the_program_itself_is_an_interface_like_others() {
    let named = [
        ("eth0", port(2, Kind::Plain)),
        ("eth0.100", port(9, vlan_over(2, ID_100))),
    ];
    let ports = named.map(|(name, port)| (name.to_owned(), port)).into();
    let attending = |name: &str| Devices::wanted(Vlans::Auto, &ports, &[name.to_owned()].into());
    assert_eq!(attending("eth0").uppers.keys().collect::<Vec<_>>(), [&9]);
    assert_eq!(attending("eth0.100"), Devices::default());
}

#[test]
fn what_is_routed_by_a_device_that_nothing_can_be_sent_by_is_the_kernels_and_costs_only_who_asks_the_route()
 {
    let deaf = Port {
        deaf: true,
        ..port(5, Kind::Plain)
    };
    let ports = [port(2, Kind::Plain), deaf].map(|port| (format!("if{}", port.index), port));
    let ports: BTreeMap<String, Port> = ports.into();
    for vlans in [Vlans::Auto, Vlans::Off] {
        let devices = Devices::wanted(vlans, &ports, &BTreeSet::new());
        assert_eq!(devices.uppers.keys().collect::<Vec<_>>(), [&5]);
        assert_eq!(devices.uppers[&5].lowers, [0; LOWERS]);
        assert!(devices.matter(true) && !devices.matter(false));
        assert_eq!(devices.status(&ports), []);
    }
}
