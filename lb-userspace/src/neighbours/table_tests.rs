//! Resolution from the mirror alone.

use super::*;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link() -> Link {
    Link {
        name: "eth7".to_owned(),
        mac: Some(OWN),
        mtu: 1500,
        up: true,
        carrier: true,
        kind: Kind::Plain,
    }
}

fn route() -> Route {
    Route {
        interface: 7,
        gateway: None,
        source: Some(ip("10.0.0.1")),
        mtu: None,
    }
}

fn neighbour(text: &str, mac: Option<[u8; 6]>, freshness: Freshness) -> Change {
    Change::Neighbour((7, ip(text)), Neighbour { mac, freshness })
}

/// 10.0.0.2 on the link of interface 7, resolved.
fn table() -> Table {
    let mut table = Table::default();
    table.apply(Change::Link(7, link()));
    table.apply(neighbour("10.0.0.2", Some(PEER), Freshness::Fresh));
    table.set_route(ip("10.0.0.2"), Ok(route()));
    table
}

fn reason(table: &Table) -> String {
    table.resolve(ip("10.0.0.2")).unwrap_err()
}

#[test]
fn address_on_the_link_resolves_to_its_own_hardware_address() {
    let expected = NextHop {
        interface: 7,
        source_mac: OWN,
        destination_mac: PEER,
        source_address: ip("10.0.0.1"),
        mtu: 1500,
        on_link: true,
    };
    assert_eq!(table().resolve(ip("10.0.0.2")), Ok(expected));
}

#[test]
fn address_behind_a_gateway_resolves_to_the_gateway_of_any_family() {
    let mut table = table();
    for (n, gateway) in [(8, "10.0.0.9"), (9, "fe80::9")] {
        let mac = [2, 0, 0, 0, 0, n];
        table.apply(neighbour(gateway, Some(mac), Freshness::Fresh));
        let gateway = Some(ip(gateway));
        table.set_route(
            ip("10.9.0.1"),
            Ok(Route {
                gateway,
                mtu: Some(1400),
                ..route()
            }),
        );
        let next_hop = table.resolve(ip("10.9.0.1")).unwrap();
        assert_eq!((next_hop.destination_mac, next_hop.mtu), (mac, 1400));
    }
}

#[test]
fn a_way_takes_no_more_than_its_interface_whatever_the_route_says() {
    let mut table = table();
    for (of_route, mtu) in [(None, 1500), (Some(1280), 1280), (Some(9000), 1500)] {
        let route = Route {
            mtu: of_route,
            ..route()
        };
        table.set_route(ip("10.0.0.2"), Ok(route));
        assert_eq!(table.resolve(ip("10.0.0.2")).unwrap().mtu, mtu);
    }
}

#[test]
fn every_missing_piece_is_named() {
    assert_eq!(
        Table::default().resolve(ip("10.0.0.2")).unwrap_err(),
        "its route is not known yet"
    );
    let mut table = table();
    table.set_route(ip("10.0.0.2"), Err("its route is a blackhole".to_owned()));
    assert_eq!(reason(&table), "its route is a blackhole");
    table.set_route(
        ip("10.0.0.2"),
        Ok(Route {
            source: None,
            ..route()
        }),
    );
    assert_eq!(reason(&table), "eth7 has no address to send from");
    table.set_route(
        ip("10.0.0.2"),
        Ok(Route {
            gateway: Some(ip("10.0.0.3")),
            ..route()
        }),
    );
    assert!(reason(&table).starts_with("10.0.0.3 has not told its hardware address on eth7"));
    table.apply(Change::Link(
        7,
        Link {
            mac: None,
            ..link()
        },
    ));
    assert_eq!(
        reason(&table),
        "interface eth7 has no Ethernet address: use one that has"
    );
    table.apply(Change::Link(
        7,
        Link {
            up: false,
            ..link()
        },
    ));
    assert_eq!(reason(&table), "interface eth7 is down");
    table.apply(Change::LinkGone(7));
    assert_eq!(reason(&table), "interface 7 is gone");
}

#[test]
fn lost_neighbour_keeps_its_hardware_address_and_a_new_one_replaces_it() {
    let mut table = table();
    let effect = table.apply(neighbour("10.0.0.2", None, Freshness::Lost));
    assert_eq!(effect, Effect::default());
    assert_eq!(table.resolve(ip("10.0.0.2")).unwrap().destination_mac, PEER);
    let new = [2, 0, 0, 0, 0, 3];
    let effect = table.apply(neighbour("10.0.0.2", Some(new), Freshness::Fresh));
    assert!(effect.resolutions && !effect.routes);
    assert_eq!(table.resolve(ip("10.0.0.2")).unwrap().destination_mac, new);
}

#[test]
fn neighbours_of_a_removed_interface_are_forgotten() {
    let mut table = table();
    assert!(table.apply(Change::LinkGone(7)).routes);
    table.apply(Change::Link(7, link()));
    assert!(table.resolve(ip("10.0.0.2")).is_err());
}

#[test]
fn only_changes_that_matter_ask_for_routes_again() {
    let mut table = table();
    assert_eq!(table.apply(Change::Link(7, link())), Effect::default());
    assert_eq!(table.apply(Change::LinkGone(99)), Effect::default());
    assert!(
        table
            .apply(Change::Link(
                7,
                Link {
                    mtu: 9000,
                    ..link()
                }
            ))
            .routes
    );
    assert!(table.apply(Change::Routes).routes);
    let address = Change::Address(7, ip("10.0.0.1"));
    assert!(table.apply(address.clone()).own_addresses);
    let again = table.apply(address);
    assert!(again.routes && !again.own_addresses);
    assert!(
        table
            .apply(Change::AddressGone(7, ip("10.0.0.1")))
            .own_addresses
    );
    assert_eq!(
        table.apply(Change::AddressGone(7, ip("10.0.0.1"))),
        Effect::default()
    );
}

#[test]
fn address_on_two_interfaces_stays_own_until_both_lose_it() {
    let mut table = Table::default();
    for index in [1, 2] {
        table.apply(Change::Address(index, ip("192.0.2.1")));
    }
    table.apply(Change::AddressGone(1, ip("192.0.2.1")));
    assert_eq!(table.own_addresses(), BTreeSet::from([ip("192.0.2.1")]));
    table.apply(Change::AddressGone(2, ip("192.0.2.1")));
    assert!(table.own_addresses().is_empty());
}

#[test]
fn doubtful_are_the_neighbours_in_use_that_the_kernel_is_not_sure_of() {
    let mut table = table();
    table.apply(neighbour("10.0.0.99", None, Freshness::Lost));
    assert!(
        table.doubtful_neighbours(true).is_empty(),
        "one is fresh, the other not in use"
    );
    let key = BTreeSet::from([(7, ip("10.0.0.2"))]);
    table.apply(neighbour("10.0.0.2", Some(PEER), Freshness::Stale));
    assert!(table.doubtful_neighbours(false).is_empty());
    assert_eq!(table.doubtful_neighbours(true), key);
    table.apply(neighbour("10.0.0.2", None, Freshness::Lost));
    assert_eq!(table.doubtful_neighbours(false), key);
    table.keep_routes(&BTreeSet::new());
    assert!(table.doubtful_neighbours(true).is_empty());
}

#[test]
fn replacing_forgets_what_is_gone_but_not_hardware_addresses_in_use() {
    let mut table = table();
    table.apply(neighbour("10.0.0.99", Some([9; 6]), Freshness::Fresh));
    table.apply(Change::Address(7, ip("10.0.0.1")));
    table.replace([Change::Link(7, link())]);
    assert!(table.own_addresses().is_empty());
    assert_eq!(table.resolve(ip("10.0.0.2")).unwrap().destination_mac, PEER);
    assert_eq!(table.doubtful_neighbours(false).len(), 1);
    table.set_route(ip("10.0.0.99"), Ok(route()));
    assert!(table.resolve(ip("10.0.0.99")).is_err(), "it was not in use");
    table.replace([
        neighbour("10.0.0.2", Some([3; 6]), Freshness::Fresh),
        Change::Link(7, link()),
    ]);
    assert_eq!(
        table.resolve(ip("10.0.0.2")).unwrap().destination_mac,
        [3; 6]
    );
    table.replace([]);
    assert_eq!(reason(&table), "interface 7 is gone");
}

#[test]
fn an_interface_runs_while_it_is_up_and_has_a_carrier() {
    let mut table = table();
    let running = |table: &Table| table.ports()["eth7"].running;
    assert!(running(&table));
    for (up, carrier) in [(true, false), (false, true), (false, false)] {
        let link = Link {
            up,
            carrier,
            ..link()
        };
        assert!(table.apply(Change::Link(7, link)).ports);
        assert!(!running(&table), "{up} {carrier}");
        assert!(table.apply(Change::Link(7, self::link())).ports);
        assert!(running(&table));
    }
    assert!(table.apply(Change::LinkGone(7)).ports);
    assert_eq!(table.ports(), BTreeMap::new());
}

#[test]
fn a_carrier_that_comes_or_goes_asks_for_no_routes() {
    let mut table = table();
    let link = Link {
        carrier: false,
        ..link()
    };
    let effect = table.apply(Change::Link(7, link));
    let ports = Effect {
        ports: true,
        ..Effect::default()
    };
    assert_eq!(effect, ports);
}

#[test]
fn what_is_no_ethernet_is_no_port() {
    let mut table = table();
    let link = Link {
        mac: None,
        ..link()
    };
    table.apply(Change::Link(7, link));
    assert_eq!(table.ports(), BTreeMap::new());
}

/// What a driver has that takes frames, or none.
const fn driver(transmits: bool) -> Xdp {
    Xdp {
        native: true,
        transmits,
    }
}

/// As `table`, for who has the program on these interfaces: eth3 is interface 3.
fn table_of<const N: usize>(native: [&str; N], follows_lowers: bool) -> Table {
    let mut table = table();
    table.origin = Origin {
        native: native.map(str::to_owned).into(),
        follows_lowers,
    };
    let eth3 = Link {
        name: "eth3".to_owned(),
        ..link()
    };
    table.apply(Change::Link(3, eth3));
    table
}

#[test]
fn no_way_leads_by_an_interface_that_takes_no_frames_but_for_those_that_came_in_by_it() {
    let ends = |native: &[&str]| {
        let mut table = table_of([], true);
        table.origin.native = native.iter().map(|&name| name.to_owned()).collect();
        let effect = table.set_drivers([(3, driver(true)), (7, driver(false))].into());
        assert!(effect.resolutions && effect.ports);
        let deaf = table.ports()["eth7"].deaf;
        assert_eq!(deaf, table.resolve(ip("10.0.0.2")).is_err());
        deaf
    };
    assert!(ends(&["eth3"]));
    assert!(ends(&["eth3", "eth7"]));
    assert!(!ends(&["eth7"]));
    assert!(!ends(&[]));
}

#[test]
fn what_an_interface_in_generic_mode_redirects_goes_out_by_any() {
    let mut table = table_of(["eth3"], true);
    let none = Xdp {
        native: false,
        transmits: false,
    };
    table.set_drivers([(3, none), (7, none)].into());
    assert!(table.resolve(ip("10.0.0.2")).is_ok());
}

#[test]
fn where_the_kernel_does_not_tell_all_interfaces_are_taken_to_take_frames() {
    let table = table_of(["eth3"], true);
    assert!(table.resolve(ip("10.0.0.2")).is_ok());
    assert!(!table.ports()["eth7"].deaf);
}

#[test]
fn a_driver_that_begins_to_take_frames_gives_its_backends_their_way_back() {
    let mut table = table_of(["eth3"], true);
    table.set_drivers([(3, driver(true)), (7, driver(false))].into());
    let reason = reason(&table);
    assert!(
        reason.contains("the driver of eth7 takes no frames"),
        "{reason}"
    );
    assert!(
        table
            .set_drivers([(3, driver(true)), (7, driver(true))].into())
            .resolutions
    );
    assert!(table.resolve(ip("10.0.0.2")).is_ok());
    let same = table.set_drivers([(3, driver(true)), (7, driver(true))].into());
    assert_eq!(same, Effect::default());
}

#[test]
fn of_a_vlan_device_it_is_what_it_stands_over_that_has_to_take_frames() {
    for (follows_lowers, lower_transmits, leads) in [
        (true, true, true),
        (true, false, false),
        (false, true, false),
    ] {
        let mut table = table_of(["eth3"], follows_lowers);
        let kind = Kind::Vlan {
            lower: 9,
            tag: [0x81, 0, 0, 100],
        };
        table.apply(Change::Link(7, Link { kind, ..link() }));
        let eth9 = Link {
            name: "eth9".to_owned(),
            ..link()
        };
        table.apply(Change::Link(9, eth9));
        table.set_drivers([(7, driver(false)), (9, driver(lower_transmits))].into());
        let found = table.resolve(ip("10.0.0.2"));
        assert_eq!(found.is_ok(), leads, "{found:?}");
    }
}
