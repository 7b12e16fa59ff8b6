//! What a forwarding mode asks of the way to a backend, and what the agent says where that is amiss.

use std::net::IpAddr;

use lb_common::mss;
use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    model::{Change, MssClamp, Settings},
    neighbours::{NextHop, Update},
    snapshot::BackendStatus,
};

/// A core with one service of `mode`, whose one backend is reached like this.
fn core(mode: &str, tunnel: Tunnel, on_link: bool) -> Core<MemoryDataplane> {
    let mut core = core_without_a_way_of(mode, tunnel);
    core.network(way(on_link));
    core.enforce().expect("room enough");
    core
}

fn core_without_a_way() -> Core<MemoryDataplane> {
    core_without_a_way_of("gue", Tunnel::default())
}

fn core_without_a_way_of(mode: &str, tunnel: Tunnel) -> Core<MemoryDataplane> {
    let text = format!(
        "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"{mode}\"\nhealth = {{ type = \"none\" }}\n\
         [[service.backend]]\naddress = \"10.2.0.11:80\"\n"
    );
    let mut dataplane = MemoryDataplane::default();
    dataplane.tables.control.lookup_bits = 2;
    let mut core = Core::new("test".to_owned(), tunnel, dataplane).expect("what is valid");
    for service in config::parse(&text, "lb.toml")
        .expect("what is valid")
        .services
    {
        core.change(Change::AddService(service))
            .expect("what is valid");
    }
    core
}

fn way(on_link: bool) -> Update {
    way_of(1_500, on_link)
}

/// A way to the backend that takes packets of so many bytes.
fn way_of(mtu: u32, on_link: bool) -> Update {
    let address: IpAddr = "10.2.0.11".parse().expect("what is valid");
    let next_hop = NextHop {
        interface: 7,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        source_address: "10.2.0.1".parse().expect("what is valid"),
        mtu,
        on_link,
    };
    Update::NextHop {
        address,
        next_hop: Some(next_hop),
        reason: None,
    }
}

fn backend(core: &Core<MemoryDataplane>) -> BackendStatus {
    core.snapshot().services[0].backends[0].clone()
}

#[test]
fn l2_leaves_a_backend_behind_a_router_alone_and_says_why() {
    let mut core = core("l2", Tunnel::default(), false);
    let status = backend(&core);
    assert!(!status.reachable);
    let reason = status.last_error.unwrap();
    assert!(
        reason.contains("10.2.0.11 is behind a router") && reason.contains("ipip or gue"),
        "{reason}"
    );
    core.network(way(true));
    core.enforce().unwrap();
    let status = backend(&core);
    assert!(
        status.reachable && status.last_error.is_none(),
        "{status:?}"
    );
}

#[test]
fn other_modes_reach_a_backend_behind_a_router() {
    for mode in ["nat", "ipip", "gue"] {
        let status = backend(&core(mode, Tunnel::default(), false));
        assert!(status.reachable && status.last_error.is_none(), "{mode}");
    }
}

#[test]
fn only_ipip_has_sources_that_vary_with_the_flow() {
    let tunnel = Tunnel {
        source_v4: Some(([10, 255, 0, 0].into(), 16)),
        ..Tunnel::default()
    };
    for (mode, source, mask) in [
        ("ipip", "10.255.0.0", 0xffff),
        ("gue", "10.2.0.1", 0),
        ("l2", "10.2.0.1", 0),
    ] {
        let core = core(mode, tunnel, true);
        let backends = &core.dataplane().tables.backends;
        let entry = backends.iter().find(|entry| entry.interface == 7).unwrap();
        assert_eq!(
            IpAddr::from(entry.source),
            source.parse::<IpAddr>().unwrap()
        );
        assert_eq!(u32::from_be(entry.source_mask), mask, "{mode}");
    }
}

#[test]
fn an_entry_has_what_the_mode_leaves_of_the_ways_mtu_and_follows_it() {
    for (mode, overhead) in [("nat", 0), ("l2", 0), ("ipip", 20), ("gue", 28)] {
        let mut core = core(mode, Tunnel::default(), true);
        for mtu in [1_400, 9_000, 1_500] {
            core.network(way_of(mtu, true));
            core.enforce().unwrap();
            assert_eq!(entry_of(&core).mtu, mtu as u16 - overhead, "{mode}");
        }
        let unknown = Update::NextHop {
            address: "10.2.0.11".parse().unwrap(),
            next_hop: None,
            reason: None,
        };
        core.network(unknown);
        core.enforce().unwrap();
        assert_eq!(entry_of(&core).mtu, 1_500 - overhead, "{mode}: kept");
    }
}

/// What an MSS is lowered to on the way there, as the program has it, and on the way back.
fn mss_of(core: &Core<MemoryDataplane>) -> (u16, Option<u16>) {
    let ways_back = &core.dataplane().tables.ways_back;
    let back = ways_back.values().next().map(|back| back.mss);
    (entry_of(core).mss, back)
}

#[test]
fn a_services_mss_clamp_is_in_entries_and_ways_back_and_follows_the_ways_mtu() {
    for (mode, back) in [("nat", true), ("ipip", false)] {
        let mut core = core(mode, Tunnel::default(), true);
        let id = core.state().services().next().unwrap().id;
        let of_back = |mss: u16| back.then_some(mss);
        assert_eq!(mss_of(&core), (mss::OFF, of_back(0)), "{mode}");
        let clamp = |core: &mut Core<_>, clamp| {
            let settings = Settings {
                mss_clamp: Some(clamp),
                ..Settings::default()
            };
            core.change(Change::EditService(id, settings)).unwrap();
        };
        clamp(&mut core, MssClamp::Auto);
        assert_eq!(mss_of(&core), (mss::AUTO, of_back(1_460)), "{mode}");
        core.network(way_of(1_400, true));
        core.enforce().unwrap();
        assert_eq!(mss_of(&core), (mss::AUTO, of_back(1_360)), "{mode}");
        clamp(&mut core, MssClamp::To(1_200));
        assert_eq!(mss_of(&core), (1_200, of_back(1_200)), "{mode}");
        clamp(&mut core, MssClamp::Off);
        assert_eq!(mss_of(&core), (mss::OFF, of_back(0)), "{mode}");
    }
}

#[test]
fn the_longest_packet_is_told_while_the_way_is_known() {
    let core = core("gue", Tunnel::default(), true);
    assert_eq!(backend(&core).mtu, Some(1_472));
    let core = core_without_a_way();
    assert_eq!(backend(&core).mtu, None);
}

/// What packets find of the one backend.
fn entry_of(core: &Core<MemoryDataplane>) -> lb_common::tables::Backend {
    let placed = core.layout().pools.values().next().expect("a pool");
    let (_, member) = placed.members().next().expect("a backend");
    core.dataplane().tables.backends[member.entry as usize]
}

#[test]
fn the_port_of_gue_tunnels_follows_the_configuration() {
    for port in [6_080, 5_555] {
        let tunnel = Tunnel {
            gue_port: port,
            ..Tunnel::default()
        };
        let core = core("gue", tunnel, true);
        let control = core.dataplane().tables.control;
        assert_eq!(control.gue_port, port.to_be());
    }
}

#[test]
fn what_the_resolver_has_forgotten_is_forgotten_unless_it_is_wanted_again() {
    let mut core = core("nat", Tunnel::default(), true);
    let service = core.state().services().next().unwrap().clone();
    let address = service.backends[0].address;
    let forgotten = || Update::Forgotten([address.ip()].into());
    core.change(Change::RemoveBackend(service.id, address))
        .unwrap();
    core.change(Change::AddBackend(service.id, service.backends[0].clone()))
        .unwrap();
    core.network(forgotten());
    assert!(core.unresolved().is_empty(), "its news are yet to come");
    core.change(Change::RemoveBackend(service.id, address))
        .unwrap();
    // For as long as it may have flows.
    assert!(core.watched().contains(&address.ip()));
    core.network(forgotten());
    let mut other = Update::clone(&way(true));
    if let Update::NextHop {
        next_hop: Some(next_hop),
        ..
    } = &mut other
    {
        next_hop.destination_mac = [6; 6];
    }
    assert!(core.network(other));
    core.enforce().unwrap();
    let placed = core.layout().placed(service.id).unwrap();
    let (_, member) = placed.member(address).unwrap();
    assert_eq!(member.backend.destination_mac, [6; 6]);
    core.change(Change::RemoveService(service.id)).unwrap();
    assert!(core.watched().is_empty());
    core.network(forgotten());
    core.change(Change::AddService(service)).unwrap();
    assert_eq!(core.unresolved(), [address.ip()].into());
}

#[test]
fn checks_of_a_vip_are_told_of_a_way_that_was_known_and_is_lost() {
    let text = "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"l2\"\nhealth = { type = \"vip\" }\n\
         [[service.backend]]\naddress = \"10.2.0.11:80\"\n";
    let mut core = core_without_a_way_of("l2", Tunnel::default());
    let services = config::parse(text, "lb.toml")
        .expect("what is valid")
        .services;
    core.change(Change::Replace(services))
        .expect("what is valid");
    let way_now = |core: &Core<MemoryDataplane>| {
        let (_, config) = core.targets().pop_first().expect("a target");
        (config.way.hop.is_some(), config.way.lost)
    };
    assert_eq!(way_now(&core), (false, false), "not known yet");
    core.network(way(true));
    core.enforce().expect("room enough");
    assert_eq!(way_now(&core), (true, false));
    let address: IpAddr = "10.2.0.11".parse().expect("what is valid");
    core.network(Update::NextHop {
        address,
        next_hop: None,
        reason: Some("no route".to_owned()),
    });
    core.enforce().expect("room enough");
    assert_eq!(way_now(&core), (false, true));
}
