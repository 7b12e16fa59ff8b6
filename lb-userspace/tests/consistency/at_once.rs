//! One store switches all services: between any two operations, the services of a group lead a client to
//! the same backend.

use std::net::{IpAddr, SocketAddr};

use lb_userspace::{
    agent::Core,
    config,
    model::{Admin, Change, Service, ServiceId, Settings},
};

use crate::{
    agent::{new_core, offer},
    frame::{self, Sent},
    groups::keyed,
    reach::reached,
    sabotage::Sabotage,
    stage::Stage,
    world::World,
};

const VIPS: [&str; 3] = ["10.0.0.1:80/tcp", "10.0.0.1:443/tcp", "10.0.0.2:80/tcp"];
const CLIENTS: u8 = 60;
const FLOWS: usize = 30;

impl World {
    /// Finds a client whom services that belong together lead to different backends just now.
    pub fn compare_services(&mut self) {
        let [first, others @ ..] = self.together.as_slice() else {
            return;
        };
        // What these packets leave behind is nobody's.
        let tables = self.memory.tables.clone();
        let lead = |id: ServiceId, host| {
            let client = SocketAddr::from(([198, 51, 100, host], 1_024));
            frame::send(&tables, client, id, Sent::Opening)
        };
        let differs = |host: &u8| {
            others
                .iter()
                .any(|&id| lead(id, *host) != lead(*first, *host))
        };
        if let Some(host) = (1..CLIENTS).find(differs) {
            let ids = self.together.iter();
            let reached: Vec<_> = ids.map(|&id| lead(id, host)).collect();
            let mixed = format!("at {}: client {host} is led to {reached:?}", self.now);
            self.tally.broken.push(mixed);
        }
    }
}

/// An agent that has just begun to serve that, to clients with so many flows together.
pub fn serving(
    services: &[Service],
    flows: usize,
    sabotage: Option<Sabotage>,
) -> (Stage, Core<Stage>) {
    let offers = services.iter().map(offer).collect();
    let stage = Stage::new(World::new(keyed(), offers, flows, 0, sabotage));
    let mut core = new_core(&stage);
    for n in 1..=u8::MAX {
        core.network(reached(IpAddr::from([10, 1, 0, n]), n));
    }
    core.change(Change::Replace(services.to_vec())).unwrap();
    (stage, core)
}

/// What breaks, and what is seen of a mix, over changes of a pool that three services share.
fn changes(sabotage: Option<Sabotage>) -> Vec<String> {
    let backends: Vec<String> = (1..6)
        .map(|n| format!("{{ address = \"10.1.0.{n}:80\" }}"))
        .collect();
    let backends = backends.join(", ");
    let [first, second, third] = VIPS;
    let text = format!(
        "[[service]]\nvip = \"{first}\"\nmode = \"ipip\"\ngroup = \"web\"\nscheduler = \"source-hash\"\n\
         ring_size = 251\nmoving_time = \"45s\"\nbackend = [{backends}]\n\
         [[service]]\nvip = \"{second}\"\ngroup = \"web\"\n[[service]]\nvip = \"{third}\"\ngroup = \"web\"\n"
    );
    let services = config::parse(&text, "test").unwrap().services;
    let id = services[0].id;
    let address = |n: u8| SocketAddr::from(([10, 1, 0, n], 80));
    let edit = |n, weight, admin| Change::EditBackend {
        id,
        address: address(n),
        weight,
        admin,
        max_connections: None,
        rated: Default::default(),
        tier: None,
    };
    let resize = Settings {
        ring_size: Some(1_021),
        ..Settings::default()
    };
    let removed = services[0].backends[0].clone();
    let (stage, mut core) = serving(&services, FLOWS, sabotage);
    stage.world().together = services.iter().map(|service| service.id).collect();
    for change in [
        edit(2, Some(9), None),
        edit(3, None, Some(Admin::Draining)),
        Change::RemoveBackend(id, address(1)),
        Change::AddBackend(id, removed),
        Change::EditService(id, resize),
    ] {
        stage.world().advance(1_000);
        core.change(change).unwrap();
    }
    std::mem::take(&mut stage.world().tally.broken)
}

#[test]
fn no_packet_sees_a_change_of_one_service_of_a_group_without_that_of_the_others() {
    let broken = changes(None);
    assert!(broken.is_empty(), "{broken:#?}");
    // Without the one store, it is seen.
    let broken = changes(Some(Sabotage::BothHalvesAreWritten));
    let mixed = broken.iter().filter(|told| told.contains("is led to"));
    assert!(mixed.count() >= 5, "{broken:#?}");
}
