//! Services of a group share one pool: a client has one backend through all of them, and what changes
//! for one changes for all.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    backend::{OTHER_PORT, PORT},
    config::{Health, Service},
    load::held::Held,
    skip::with_root,
    stage::{BACKENDS, Stage, v4_pool, vip, web_address_of},
    topology::{Topology, vip_v4},
};

/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);

/// One service of the group, at a port of its own.
fn member(mode: &'static str, port: u16) -> Service {
    let address = SocketAddr::new(vip_v4(1).into(), port);
    Service::new(format!("{address}/tcp"), mode, Health::HTTP, v4_pool(PORT))
        .with("group", "web")
        .with("scheduler", "round-robin")
        .with("moving_time", "2s")
        .with("persistence", "5m")
}

/// What must hold of both services of a group.
fn assert_one_pool(stage: &Stage, first: &Service, second: &Service) -> Result<()> {
    let client = &stage.topology.client;
    let one = stage.only(first, 50)?;
    assert_eq!(stage.only(second, 50)?, one);
    let held = [first, second].map(|service| Held::open(client, vip(service)?, 10, PERIOD));
    // Drained through the second, for both.
    let at = web_address_of(&one)?;
    stage.lbctl(&format!("backend drain {} {at}", second.vip))?;
    let other = stage.only(first, 50)?;
    assert_ne!(other, one);
    assert_eq!(stage.only(second, 50)?, other);
    stage.lbctl(&format!("backend undrain {} {at}", first.vip))?;
    for held in held {
        let lives = held?.stop()?;
        assert_eq!(lives.broken_per_backend(), BTreeMap::new());
        assert_eq!(lives.per_backend(), [(one.clone(), 10)].into());
    }
    Ok(())
}

#[test]
fn a_client_has_one_backend_through_both_ports_and_a_drain_takes_effect_on_both() -> Result<()> {
    with_root(
        "a_client_has_one_backend_through_both_ports_and_a_drain_takes_effect_on_both",
        || {
            for mode in ["nat", "ipip"] {
                let [first, second] = [PORT, OTHER_PORT].map(|port| member(mode, port));
                let services = vec![first.clone(), second.clone()];
                let mut stage = Stage::new(Topology::new(BACKENDS)?, services)?;
                assert_one_pool(&stage, &first, &second).context(mode)?;
                stage.agent.restart()?;
                assert_one_pool(&stage, &first, &second).context(mode)?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_service_joins_and_leaves_a_group_while_connections_last() -> Result<()> {
    with_root(
        "a_service_joins_and_leaves_a_group_while_connections_last",
        || {
            let [first, second] = [PORT, OTHER_PORT].map(|port| member("nat", port));
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![first.clone()])?;
            let held = Held::open(&stage.topology.client, vip(&first)?, 30, PERIOD)?;
            for _ in 0..3 {
                stage.lbctl(&format!("service add {} --group web", second.vip))?;
                assert_one_pool(&stage, &first, &second)?;
                stage.lbctl(&format!("service remove {}", second.vip))?;
            }
            let lives = held.stop()?;
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}

#[test]
fn a_backend_that_dies_is_left_by_all_services_of_the_group() -> Result<()> {
    with_root(
        "a_backend_that_dies_is_left_by_all_services_of_the_group",
        || {
            let [first, second] = [PORT, OTHER_PORT].map(|port| member("ipip", port));
            let services = vec![first.clone(), second.clone()];
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services)?;
            let one = stage.only(&first, 20)?;
            let server = stage.servers.iter_mut().find(|server| server.name() == one);
            server.context("a server")?.kill();
            stage.await_condition(&second, web_address_of(&one)?, "down")?;
            let other = stage.only(&second, 20)?;
            assert_ne!(other, one);
            assert_eq!(stage.only(&first, 20)?, other);
            Ok(())
        },
    )
}
