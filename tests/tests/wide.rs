//! Services of prefixes of addresses and of ranges of ports, over real servers: each address and port of theirs is served
//! as it is asked for, and what is beyond is not, over restarts and changes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    backend::{OTHER_PORT, PORT},
    config::{Health, Service},
    load::{held::Held, requests},
    skip::with_root,
    stage::{BACKENDS, Stage, v4_pool, v6_pool, web_address},
    topology::{Topology, vip_v4, vip_v6},
    wait::wait_until,
};

const SOON: Duration = Duration::from_secs(30);
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// Modes that a prefix may have.
const MODES: [&str; 4] = ["ipip", "gue", "l2", "full-nat"];

/// Each mode has sixteen addresses of its own, of which these are asked: the first, the last and one between.
fn within(n: u8) -> [IpAddr; 3] {
    [0, 5, 15].map(|host| IpAddr::from(vip_v4(64 + 16 * n + host)))
}

/// The same of IPv6, whose prefixes have many more.
fn within_v6(n: u16) -> [IpAddr; 3] {
    let at = |last: [u16; 3]| IpAddr::from([0xfd00, 0, 0, 0, 0x10 + n, last[0], last[1], last[2]]);
    [[0, 0, 0], [0, 0, 5], [0xffff; 3]].map(at)
}

/// One of every mode and family with a prefix of its own; of IPv4 with one port, of IPv6 with a range of them.
fn services() -> Vec<Service> {
    let mut services = Vec::new();
    for (n, mode) in (0..).zip(MODES) {
        let [v4, ..] = within(n);
        let [v6, ..] = within_v6(n.into());
        for (vip, pool) in [
            (format!("{v4}/28:{PORT}/tcp"), v4_pool(PORT).collect()),
            (
                format!("[{v6}/80]:{PORT}-{OTHER_PORT}/tcp"),
                v6_pool(PORT).collect::<Vec<_>>(),
            ),
        ] {
            let service = Service::new(vip, mode, Health::HTTP, pool);
            services.push(match mode {
                "full-nat" => service.with("address_pool", "snat"),
                _ => service,
            });
        }
    }
    services
}

/// How many of some requests to an address each backend answered.
fn answered(stage: &Stage, service: &Service, at: SocketAddr) -> Result<BTreeMap<String, usize>> {
    let report = requests(&stage.topology.client, at, 30)?;
    let answers = stage.all_answered(service, &report);
    answers.with_context(|| format!("{at} {}", service.mode))
}

/// Whether nobody answers there.
fn is_unserved(stage: &Stage, at: SocketAddr) -> Result<bool> {
    let client = &stage.topology.client;
    let connected = client.run(|| std::net::TcpStream::connect_timeout(&at, 2 * PERIOD).is_ok());
    Ok(!connected)
}

/// Whether a backend's checks pass, and the way to it is known.
fn is_usable(stage: &Stage, service: &Service, address: SocketAddr) -> bool {
    let backend = stage.backend(service, address).ok().flatten();
    backend.is_some_and(|backend| backend["condition"] == "up" && backend["reachable"] == true)
}

#[test]
fn every_address_of_a_prefix_is_served_in_every_mode_also_by_an_agent_that_starts_again()
-> Result<()> {
    with_root(
        "every_address_of_a_prefix_is_served_in_every_mode_also_by_an_agent_that_starts_again",
        || {
            let services = services();
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for again in [false, true] {
                for (place, service) in (0u8..).zip(&services) {
                    let (n, v6) = (place / 2, place % 2 == 1);
                    let (addresses, ports) = match v6 {
                        false => (within(n), vec![PORT]),
                        true => (within_v6(n.into()), vec![PORT, OTHER_PORT]),
                    };
                    for ip in addresses {
                        for &port in &ports {
                            let names = answered(&stage, service, (ip, port).into())?;
                            ensure!(names.len() == usize::from(BACKENDS), "{ip}: {names:?}");
                        }
                    }
                    let [first, ..] = addresses;
                    let beyond = if v6 { OTHER_PORT + 1 } else { OTHER_PORT };
                    ensure!(
                        is_unserved(&stage, (first, beyond).into())?,
                        "{} serves port {beyond}",
                        service.vip
                    );
                }
                if !again {
                    stage.agent.restart()?;
                }
            }
            let shown = stage.agent.lbctl(&["service", "list"])?.succeeded()?;
            for service in &services {
                ensure!(shown.contains(&service.vip), "{} in {shown}", service.vip);
            }
            Ok(())
        },
    )
}

#[test]
fn a_range_of_ports_is_served_in_nat_mode_beside_every_other_port() -> Result<()> {
    with_root(
        "a_range_of_ports_is_served_in_nat_mode_beside_every_other_port",
        || {
            let (v4, v6) = (vip_v4(1), vip_v6(1));
            let range = format!("{OTHER_PORT}-{}", OTHER_PORT + 9);
            let ranges = [
                Service::new(
                    format!("{v4}:{range}/tcp"),
                    "nat",
                    Health::HTTP,
                    v4_pool(PORT).take(1),
                ),
                Service::new(
                    format!("[{v6}]:{range}/tcp"),
                    "nat",
                    Health::HTTP,
                    v6_pool(PORT).take(1),
                ),
            ];
            let every = v4_pool(PORT).skip(1);
            let every = Service::new(format!("{v4}:*/tcp"), "nat", Health::HTTP, every);
            let [first, second] = ranges.clone();
            let mut stage =
                Stage::new(Topology::new(BACKENDS)?, vec![first, second, every.clone()])?;
            for _ in 0..2 {
                for range in &ranges {
                    let ip = lb_tests::stage::vip(range)?.ip();
                    let names = answered(&stage, range, (ip, OTHER_PORT).into())?;
                    ensure!(names.keys().eq(["backend1"]), "{ip}: {names:?}");
                }
                let names = answered(&stage, &every, (v4, PORT).into())?;
                ensure!(names.keys().eq(["backend2", "backend3"]), "{names:?}");
                ensure!(
                    is_unserved(&stage, (v6, PORT).into())?,
                    "{v6} serves {PORT}"
                );
                stage.agent.restart()?;
            }
            // Without the range, the other one has its ports.
            stage.lbctl(&format!("service remove {}", ranges[0].vip))?;
            let names = answered(&stage, &every, (v4, OTHER_PORT).into())?;
            ensure!(names.keys().eq(["backend2", "backend3"]), "{names:?}");
            Ok(())
        },
    )
}

#[test]
fn connections_to_a_prefix_outlive_changes_and_services_that_come_and_go_within_it() -> Result<()> {
    with_root(
        "connections_to_a_prefix_outlive_changes_and_services_that_come_and_go_within_it",
        || {
            let [first, inner, last] = within(0);
            let prefix = Service::new(
                format!("{first}/28:*/tcp"),
                "ipip",
                Health::HTTP,
                v4_pool(PORT).take(2),
            )
            .with("moving_time", "3s");
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![prefix.clone()])?;
            let client = &stage.topology.client;
            let mut held = Vec::new();
            for ip in [first, last] {
                for port in [PORT, OTHER_PORT] {
                    held.push(Held::open(client, (ip, port).into(), 20, PERIOD)?);
                }
            }
            let third = web_address(3);
            let name = format!("{inner}:{PORT}-{OTHER_PORT}/tcp");
            let range = Service::new(name, "ipip", Health::TCP, [third]);
            for _ in 0..2 {
                let add = format!("service add {} --mode ipip --backend {third}", range.vip);
                stage.lbctl(&add)?;
                wait_until("its backend can take flows", SOON, || {
                    is_usable(&stage, &range, third)
                })?;
                let names = answered(&stage, &range, (inner, OTHER_PORT).into())?;
                ensure!(names.keys().eq(["backend3"]), "{names:?}");
                for change in [
                    format!("backend drain {} {}", prefix.vip, web_address(1)),
                    format!("backend add {} {third}", prefix.vip),
                ] {
                    stage.lbctl(&change)?;
                    thread::sleep(2 * PERIOD);
                }
                stage.lbctl(&format!("service remove {}", range.vip))?;
                for change in [
                    format!("backend undrain {} {}", prefix.vip, web_address(1)),
                    format!("backend remove {} {third}", prefix.vip),
                ] {
                    stage.lbctl(&change)?;
                }
                let names = answered(&stage, &prefix, (inner, OTHER_PORT).into())?;
                ensure!(names.contains_key("backend2"), "{names:?}");
                stage.await_slots(&prefix, lb_tests::stage::Slots::have_moved)?;
            }
            for held in held {
                let lives = held.stop()?;
                println!("{lives}");
                ensure!(lives.broken_per_backend().is_empty(), "{lives}");
            }
            Ok(())
        },
    )
}
