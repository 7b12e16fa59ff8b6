//! Services that have every port of their address, over real servers: each port is served as it is asked
//! for, there and back, but for those that other services have.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    backend::{OTHER_PORT, PORT},
    config::{Health, Service},
    load::requests,
    skip::with_root,
    stage::{BACKENDS, Stage, v4_pool, v6_pool, web_address},
    topology::{Topology, backend_name, vip_v4, vip_v6},
    wait::wait_until,
};

const SOON: Duration = Duration::from_secs(30);
const MODES: [&str; 4] = ["nat", "ipip", "gue", "l2"];

/// One of every mode and family, at a VIP of its own.
fn services() -> Vec<Service> {
    let mut services = Vec::new();
    for (n, mode) in (1..).zip(MODES) {
        let (v4, v6) = (vip_v4(n), vip_v6(n.into()));
        // A pool in mode `nat` is one VIP's, and each family has its own.
        services.push(Service::new(
            format!("{v4}:*/tcp"),
            mode,
            Health::HTTP,
            v4_pool(PORT),
        ));
        services.push(Service::new(
            format!("[{v6}]:*/tcp"),
            mode,
            Health::HTTP,
            v6_pool(PORT),
        ));
    }
    services
}

/// Who answers at a port of the service's.
fn answered(stage: &Stage, service: &Service, port: u16) -> Result<Vec<String>> {
    let mut at = lb_tests::stage::vip(service)?;
    at.set_port(port);
    let report = requests(&stage.topology.client, at, 60)?;
    let answers = stage.all_answered(service, &report);
    let answers = answers.with_context(|| format!("{at} {}", service.mode))?;
    Ok(answers.into_keys().collect())
}

/// Whether a backend's checks pass, and the way to it is known.
fn is_usable(stage: &Stage, service: &Service, address: SocketAddr) -> bool {
    let backend = stage.backend(service, address).ok().flatten();
    backend.is_some_and(|backend| backend["condition"] == "up" && backend["reachable"] == true)
}

#[test]
fn every_port_is_served_in_every_mode_also_by_an_agent_that_starts_again() -> Result<()> {
    with_root(
        "every_port_is_served_in_every_mode_also_by_an_agent_that_starts_again",
        || {
            let services = services();
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for _ in 0..2 {
                for service in &services {
                    for port in [PORT, OTHER_PORT] {
                        let names = answered(&stage, service, port)?;
                        ensure!(names.len() == usize::from(BACKENDS), "{names:?}");
                    }
                }
                stage.agent.restart()?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_service_of_one_port_comes_and_goes_beside_one_of_every_port() -> Result<()> {
    with_root(
        "a_service_of_one_port_comes_and_goes_beside_one_of_every_port",
        || {
            for mode in ["nat", "ipip"] {
                let vip = vip_v4(1);
                let pool = v4_pool(PORT).take(2);
                let every = Service::new(format!("{vip}:*/tcp"), mode, Health::HTTP, pool);
                let stage = Stage::new(Topology::new(BACKENDS)?, vec![every.clone()])?;
                let at = web_address(3);
                let name = format!("{}/tcp", SocketAddr::from((vip, PORT)));
                let single = Service::new(name, mode, Health::TCP, [at]);
                let add = format!("service add {} --mode {mode} --backend {at}", single.vip);
                stage.lbctl(&add)?;
                wait_until("its backend can take flows", SOON, || {
                    is_usable(&stage, &single, at)
                })?;
                let third = vec![backend_name(3)];
                ensure!(answered(&stage, &every, PORT)? == third, "{mode}");
                ensure!(answered(&stage, &every, OTHER_PORT)?.len() == 2, "{mode}");
                stage.lbctl(&format!("service remove {}", single.vip))?;
                ensure!(
                    !answered(&stage, &every, PORT)?.contains(&third[0]),
                    "{mode}"
                );
            }
            Ok(())
        },
    )
}
