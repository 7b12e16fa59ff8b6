//! What the agent tells of its backends, over maps in memory.

mod reach;

use std::net::SocketAddr;

use lb_userspace::{
    agent::Core,
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    model::{Change, ServiceId},
};

use crate::reach::reached;

const SERVICE: &str = "10.0.0.1:80/tcp";

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 2, 0, n], 80))
}

fn id() -> ServiceId {
    SERVICE.parse().expect("what is valid")
}

/// An agent with backends 4 to 1, of their number as weight, and another service beside.
fn core() -> Core<MemoryDataplane> {
    let backends: String = (1..=4)
        .rev()
        .map(|n| {
            format!(
                "[[service.backend]]\naddress = \"{}\"\nweight = {n}\n",
                address(n)
            )
        })
        .collect();
    let text = format!(
        "[[service]]\nvip = \"10.0.0.2:80/tcp\"\nmode = \"ipip\"\n\
         [[service]]\nvip = \"{SERVICE}\"\nmode = \"ipip\"\nring_size = 1021\n{backends}"
    );
    let mut dataplane = MemoryDataplane::default();
    dataplane.tables.control.lookup_bits = 3;
    let mut core = Core::new("test".to_owned(), Tunnel::default(), dataplane).expect("empty maps");
    for n in 1..=4 {
        core.network(reached(address(n).ip(), n));
    }
    let config = config::parse(&text, "lb.toml").expect("what is valid");
    core.change(Change::Replace(config.services))
        .expect("room enough");
    core
}

#[test]
fn each_backend_is_told_with_what_is_its_own_and_a_former_one_as_leaving() {
    let mut core = core();
    core.change(Change::RemoveBackend(id(), address(2)))
        .expect("a backend that is there");
    let status = core.service(id()).expect("a service that is there");
    let told: Vec<_> = status
        .backends
        .iter()
        .map(|b| (b.backend.address, b.leaving))
        .collect();
    assert_eq!(
        told,
        [(4, false), (3, false), (1, false), (2, true)].map(|(n, left)| (address(n), left))
    );
    for backend in status.backends.iter() {
        // Shares of what the four had are kept as far as they go; weights are 4, 3 and 1 now.
        let share = f64::from(backend.slots) / 1_021.0 * 8.0;
        let weight = if backend.leaving {
            0
        } else {
            backend.backend.weight
        };
        assert!((share - f64::from(weight)).abs() < 0.2, "{backend:?}");
        assert!(backend.reachable, "{backend:?}");
    }
}

#[test]
fn a_service_alone_is_told_as_among_all() {
    let core = core();
    let all = core.snapshot().services;
    assert_eq!(all.len(), 2);
    for service in all {
        assert_eq!(core.service(service.service.id), Some(service));
    }
    assert_eq!(
        core.service("10.0.0.9:80/tcp".parse().expect("what is valid")),
        None
    );
}
