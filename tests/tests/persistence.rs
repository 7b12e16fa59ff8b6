//! A client's new connections go where its last new one went, for as long as is set.

use std::{collections::BTreeMap, net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    config::{Health, Service},
    load::held::Held,
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, vip, web, web_address_of},
    topology::Topology,
    wait::wait_until,
};
use serde_json::Value;

/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// Bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(60);

fn persistent(time: &str) -> Service {
    web(Health::HTTP)
        .with("scheduler", "round-robin")
        .with("moving_time", "2s")
        .with("persistence", time)
}

fn stage(service: &Service) -> Result<Stage> {
    Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])
}

fn listed(stage: &Stage, arguments: &[&str]) -> Result<Value> {
    stage.agent.lbctl_json(arguments)
}

/// From now on, the client's connections come from another of its addresses.
fn come_from(stage: &Stage, host: u8) -> Result<()> {
    let source = Ipv4Addr::new(10, 1, 0, host);
    let address = format!("addr add {source}/24 dev eth0");
    let route = format!("route replace default via 10.1.0.1 src {source}");
    for line in [address, route] {
        run(stage.topology.client.command("ip").args(line.split(' ')))?;
    }
    Ok(())
}

#[test]
fn a_clients_connections_all_go_to_one_backend_under_round_robin() -> Result<()> {
    with_root(
        "a_clients_connections_all_go_to_one_backend_under_round_robin",
        || {
            let service = persistent("5m");
            let stage = stage(&service)?;
            stage.only(&service, 300)?;
            let mut used = BTreeMap::new();
            for host in 100..112 {
                come_from(&stage, host)?;
                *used.entry(stage.only(&service, 10)?).or_insert(0) += 1;
            }
            // By turns, so that nobody is left out.
            assert_eq!(used.len(), usize::from(BACKENDS), "{used:?}");
            let clients = listed(&stage, &["flows", "--clients", "--service", &service.vip])?;
            assert_eq!(clients["total"], 13, "{clients:#}");
            let named = clients["clients"].as_array().context("clients")?;
            let of = |host: &str| named.iter().any(|client| client["client"] == host);
            assert!(of("10.1.0.100") && of("10.1.0.111"), "{clients:#}");
            Ok(())
        },
    )
}

#[test]
fn clients_are_scheduled_anew_once_their_time_is_over() -> Result<()> {
    with_root("clients_are_scheduled_anew_once_their_time_is_over", || {
        let service = persistent("1s");
        let stage = stage(&service)?;
        let mut used = BTreeMap::new();
        let before = stage.only(&service, 50)?;
        wait_until("another backend's turn comes", SOON, || {
            thread::sleep(Duration::from_millis(1_100));
            let now = stage.only(&service, 1).unwrap_or_default();
            *used.entry(now.clone()).or_insert(0) += 1;
            !now.is_empty() && now != before
        })
        .with_context(|| format!("{used:?}"))
    })
}

#[test]
fn a_drain_moves_new_connections_and_leaves_the_others_and_waits_for_no_client() -> Result<()> {
    with_root(
        "a_drain_moves_new_connections_and_leaves_the_others_and_waits_for_no_client",
        || {
            let service = persistent("5m");
            let stage = stage(&service)?;
            let (client, target) = (&stage.topology.client, vip(&service)?);
            let first = stage.only(&service, 20)?;
            let held = Held::open(client, target, 20, PERIOD)?;
            let at = web_address_of(&first)?;
            stage.lbctl(&format!("backend drain {} {at}", service.vip))?;
            let second = stage.only(&service, 50)?;
            assert_ne!(second, first);
            stage.lbctl(&format!("backend undrain {} {at}", service.vip))?;
            assert_eq!(stage.only(&service, 50)?, second);
            let lives = held.stop()?;
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            assert_eq!(lives.per_backend(), [(first, 20)].into());
            // Nor does a backend that is removed wait for clients that are remembered with it.
            let at = web_address_of(&second)?;
            stage.lbctl(&format!("backend remove {} {at}", service.vip))?;
            let third = stage.only(&service, 20)?;
            assert_ne!(third, second);
            wait_until("the removed backend has left", SOON, || {
                stage
                    .backend(&service, at)
                    .is_ok_and(|backend| backend.is_none())
            })
        },
    )
}

#[test]
fn persistence_is_switched_on_and_off_and_survives_a_restart() -> Result<()> {
    with_root(
        "persistence_is_switched_on_and_off_and_survives_a_restart",
        || {
            let service = persistent("0s");
            let mut stage = stage(&service)?;
            let (client, target) = (&stage.topology.client, vip(&service)?);
            let held = Held::open(client, target, 60, PERIOD)?;
            assert_eq!(stage.answers(&service, 60)?.len(), 3);
            let set = |stage: &Stage, time: &str| {
                stage.lbctl(&format!("service set {} --persistence {time}", service.vip))
            };
            set(&stage, "5m")?;
            let first = stage.only(&service, 60)?;
            stage.agent.sigkill();
            assert_eq!(stage.only(&service, 20)?, first);
            stage.agent.restart()?;
            assert_eq!(stage.only(&service, 20)?, first);
            set(&stage, "0s")?;
            assert_eq!(stage.answers(&service, 60)?.len(), 3);
            let lives = held.stop()?;
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}
