//! Services of a group share one pool: a client has one backend through all of them, and what changes
//! for one changes for all.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    backend::{OTHER_PORT, PORT},
    config::{Health, Service},
    load::held::Held,
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, v4_pool, vip, web_address, web_address_of},
    topology::{Topology, backend_name, vip_v4},
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

#[test]
fn a_running_service_changes_its_pool_at_rest_and_keeps_its_connections() -> Result<()> {
    with_root(
        "a_running_service_changes_its_pool_at_rest_and_keeps_its_connections",
        || {
            let plain = |port| {
                let address = SocketAddr::new(vip_v4(1).into(), port);
                Service::new(
                    format!("{address}/tcp"),
                    "ipip",
                    Health::HTTP,
                    v4_pool(PORT),
                )
                .with("moving_time", "2s")
            };
            let (first, second) = (plain(PORT).with("group", "web"), plain(OTHER_PORT));
            let by_turns = plain(OTHER_PORT + 1).with("scheduler", "round-robin");
            let services = vec![first.clone(), second.clone(), by_turns.clone()];
            let stage = Stage::new(Topology::new(BACKENDS)?, services)?;
            // Health checks have taken their first look, and what that moved is at rest.
            stage.answers(&second, 50)?;
            for service in [&first, &second] {
                stage.await_slots(service, Slots::are_steady)?;
            }
            let client = &stage.topology.client;
            let held =
                [&first, &second].map(|service| Held::open(client, vip(service)?, 30, PERIOD));
            let set = |what: &str| stage.lbctl(&format!("service set {} {what}", second.vip));
            set("--group web")?;
            set("--no-group")?;
            set("--group web")?;
            // One pool: a drain through the one is one of the other.
            stage.lbctl(&format!("backend drain {} {}", second.vip, web_address(1)))?;
            let answers = stage.answers(&first, 100)?;
            ensure!(!answers.contains_key(&backend_name(1)), "{answers:?}");
            let moving = set("--no-group").unwrap_err();
            ensure!(
                format!("{moving:#}").contains("slots move or settle"),
                "{moving:#}"
            );
            stage.lbctl(&format!("backend undrain {} {}", first.vip, web_address(1)))?;
            let recorded = stage.lbctl(&format!(
                "service set {} --group web --scheduler maglev",
                by_turns.vip
            ));
            let recorded = format!("{:#}", recorded.unwrap_err());
            ensure!(
                recorded.contains("every flow of it is recorded"),
                "{recorded}"
            );
            for held in held {
                let lives = held?.stop()?;
                assert_eq!(lives.broken_per_backend(), BTreeMap::new());
                assert_eq!(lives.per_backend().values().sum::<usize>(), 30);
            }
            Ok(())
        },
    )
}
