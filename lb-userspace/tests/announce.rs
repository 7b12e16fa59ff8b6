//! VIPs that are announced: what the agent makes of them in the maps, whom it tells to announce them, and what it tells of others
//! that claim them.

mod reach;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::SystemTime,
};

use lb_common::tables::{Address, Interface, feature, owned};
use lb_userspace::{
    agent::Core,
    announce::Conflict,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    model::{Change, Service, Settings},
    neighbours::{Kind, Port, Update},
    snapshot::{AnnouncedStatus, EventFilter, Happened},
};

const FIRST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 3];
const VIP: &str = "10.0.0.1";

fn vip() -> IpAddr {
    VIP.parse().expect("an address")
}

fn service(port: u16, announce: bool) -> Service {
    let text = format!(
        "[[service]]\nvip = \"{VIP}:{port}/tcp\"\nmode = \"ipip\"\nannounce = {announce}\n\
         backend = [{{ address = \"10.2.0.11:80\" }}]\n"
    );
    let config = config::parse(&text, "lb.toml").expect("what is valid");
    config.services[0].clone()
}

/// The host's interfaces: two that the program is attached to, of which the second has no link, and another.
fn ports() -> BTreeMap<String, Port> {
    let port = |(name, index, mac, running): (&str, u32, [u8; 6], bool)| {
        (
            name.to_owned(),
            Port {
                index,
                mac,
                running,
                mtu: 1_500,
                kind: Kind::Plain,
                deaf: false,
            },
        )
    };
    [
        ("eth0", 4, FIRST, true),
        ("eth1", 5, SECOND, false),
        ("eth2", 6, OTHER, true),
    ]
    .map(port)
    .into()
}

fn start(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("announce".to_owned(), Tunnel::default(), memory).expect("sound maps");
    core.attend(["eth0", "eth1"].map(str::to_owned));
    core.network(Update::Ports(ports()));
    core
}

fn add(core: &mut Core<MemoryDataplane>, service: Service) {
    core.change(Change::AddService(service)).expect("room");
}

fn announce(core: &mut Core<MemoryDataplane>, port: u16, announce: bool) {
    let settings = Settings {
        announce: Some(announce),
        ..Settings::default()
    };
    let id = service(port, announce).id;
    core.change(Change::EditService(id, settings))
        .expect("no flow is at stake");
}

/// Whether the program answers for the VIP, what it takes that for of itself, and where.
fn answered(core: &Core<MemoryDataplane>) -> (bool, bool, Vec<(u32, [u8; 6])>) {
    let tables = &core.dataplane().tables;
    let interfaces = tables.interfaces.iter();
    let bits = tables.owned.get(&Address::from(vip()));
    (
        bits.is_some_and(|bits| bits & owned::ANNOUNCED != 0),
        tables.control.features & feature::ANNOUNCE != 0,
        interfaces
            .map(|(&index, interface): (&u32, &Interface)| (index, interface.mac))
            .collect(),
    )
}

#[test]
fn neighbours_are_answered_on_attached_interfaces_while_a_service_of_the_vip_says_so() {
    let mut core = start(reach::memory());
    let everywhere = || vec![(4, FIRST), (5, SECOND)];
    add(&mut core, service(80, false));
    assert_eq!(answered(&core), (false, false, vec![]));
    add(&mut core, service(443, true));
    assert_eq!(answered(&core), (true, true, everywhere()));
    announce(&mut core, 80, true);
    announce(&mut core, 443, false);
    assert_eq!(answered(&core), (true, true, everywhere()));
    announce(&mut core, 80, false);
    assert_eq!(answered(&core), (false, false, vec![]));
    announce(&mut core, 80, true);
    core.change(Change::RemoveService(service(80, true).id))
        .expect("a service that is there");
    assert_eq!(answered(&core), (false, false, vec![]));
}

#[test]
fn interfaces_are_answered_for_as_they_come_go_and_change() {
    let mut core = start(reach::memory());
    add(&mut core, service(80, true));
    let mut ports = ports();
    // What is not attached to, and whether there is a link, is none of the program's business.
    ports.remove("eth2");
    if let Some(port) = ports.get_mut("eth1") {
        port.running = true;
    }
    assert!(!core.network(Update::Ports(ports.clone())));
    if let Some(port) = ports.get_mut("eth0") {
        (port.index, port.mac) = (9, OTHER);
    }
    ports.remove("eth1");
    assert!(core.network(Update::Ports(ports)));
    core.enforce().expect("room");
    assert_eq!(answered(&core), (true, true, vec![(9, OTHER)]));
}

#[test]
fn an_agent_that_starts_again_leaves_what_neighbours_are_answered_with() {
    let mut core = start(reach::memory());
    add(&mut core, service(80, true));
    let before = core.dataplane().tables.interfaces.clone();
    let memory = std::mem::take(core.dataplane_mut());
    let mut again = start(memory);
    assert_eq!(again.dataplane().tables.interfaces, before);
    let writes = |core: &Core<MemoryDataplane>| core.dataplane().tables.control.generation;
    let generation = writes(&again);
    again
        .change(Change::Replace(vec![service(80, true)]))
        .expect("what is there");
    assert_eq!(answered(&again).2.len(), 2);
    assert_eq!(writes(&again), generation);
}

#[test]
fn vips_are_announced_where_the_program_is_attached_and_asked_for_by_name() {
    let mut core = start(reach::memory());
    add(&mut core, service(80, false));
    assert_eq!(core.owned().vips, BTreeSet::new());
    let refused = core.announced(Some(vip())).expect_err("not announced");
    assert!(refused.to_string().contains("announce = true"), "{refused}");
    announce(&mut core, 80, true);
    let owned = core.owned();
    assert_eq!(owned.vips, [vip()].into());
    let indices: Vec<u32> = owned.ports.keys().copied().collect();
    assert_eq!(indices, [4, 5]);
    // Of all of them: none of these is another host.
    assert_eq!(owned.macs, [FIRST, SECOND, OTHER].into());
    for asked in [None, Some(vip())] {
        let announced = core.announced(asked).expect("it is announced");
        assert_eq!(announced.vips, [vip()].into());
        // The other one has no link.
        assert_eq!(announced.interfaces, ["eth0".to_owned()].into());
    }
    let other = core.announced(Some([10, 0, 0, 9].into()));
    assert!(other.is_err());
}

#[test]
fn who_claims_a_vip_is_told_with_where_and_counted() {
    let mut core = start(reach::memory());
    add(&mut core, service(80, true));
    let conflict = Conflict {
        vip: vip(),
        mac: [2, 0, 0, 0xab, 0, 9],
        interface: 4,
        frames: 3,
    };
    core.claimed(conflict);
    core.claimed(Conflict {
        interface: 77,
        frames: 2,
        ..conflict
    });
    core.observe(SystemTime::UNIX_EPOCH);
    let all = EventFilter {
        service: None,
        after: None,
        epoch: None,
        limit: usize::MAX,
    };
    let events = core.events(&all).events.into_iter();
    let conflicts = events.filter(|event| event.what == Happened::Conflict);
    let told: Vec<_> = conflicts.map(|e| (e.service, e.reason)).collect();
    let id = service(80, true).id;
    assert_eq!(
        told,
        [
            (
                id,
                "02:00:00:ab:00:09 on eth0 claims 10.0.0.1 as well (3 frames)".to_owned()
            ),
            (
                id,
                "02:00:00:ab:00:09 on 77 claims 10.0.0.1 as well (2 frames)".to_owned()
            ),
        ]
    );
    let status = AnnouncedStatus {
        vip: vip(),
        conflicts: 5,
    };
    assert_eq!(core.snapshot().announced, [status]);
}
