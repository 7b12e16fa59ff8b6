//! Backends that people drain, maintain and force: what becomes of connections, and when a drain has ended.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    config::{Health, Service},
    load::{held::Held, open_loop::OpenLoop},
    skip::with_root,
    stage::{BACKENDS, Stage, vip, web, web_address},
    topology::{Topology, backend_name},
    wait::wait_until,
};

const HELD: usize = 90;
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// A port that nobody listens on.
const CLOSED: u16 = 81;
/// New connections a second.
const RATE: u32 = 200;

fn service() -> Service {
    web(Health::HTTP).with("moving_time", "2s")
}

fn stage(service: &Service) -> Result<Stage> {
    let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
    for n in 1..=BACKENDS {
        stage.await_condition(service, web_address(n), "up")?;
    }
    Ok(stage)
}

/// `lbctl backend VERB` of backend 1, with its exit code and what it said of progress.
fn of_first(stage: &Stage, service: &Service, verb: &str) -> Result<(Option<i32>, String)> {
    let (verb, options) = verb.split_once(' ').unwrap_or((verb, ""));
    let address = web_address(1).to_string();
    let mut arguments = vec!["backend", verb, service.vip.as_str(), address.as_str()];
    arguments.extend(options.split_whitespace());
    let said = stage.agent.lbctl(&arguments)?;
    Ok((said.status.code(), said.stderr))
}

fn takes_flows(stage: &Stage, service: &Service) -> Result<bool> {
    Ok(stage.answers(service, 200)?.contains_key(&backend_name(1)))
}

#[test]
fn a_drain_under_load_loses_no_request_and_ends_when_the_last_connection_has() -> Result<()> {
    with_root(
        "a_drain_under_load_loses_no_request_and_ends_when_the_last_connection_has",
        || {
            let service = service();
            let stage = stage(&service)?;
            let client = &stage.topology.client;
            let load = OpenLoop::start(client, vip(&service)?, RATE)?;
            let held = Held::open(client, vip(&service)?, HELD, PERIOD)?;
            // Connections that never end keep it from ending.
            let (code, told) = of_first(&stage, &service, "drain --wait --timeout 6s")?;
            assert_eq!(code, Some(6), "{told}");
            assert!(told.contains("flows observed"), "{told}");
            assert!(!takes_flows(&stage, &service)?);
            let lives = held.stop()?;
            assert!(lives.per_backend()[&backend_name(1)] > 0);
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            let (code, told) = of_first(&stage, &service, "drain --wait --timeout 60s")?;
            assert_eq!(code, Some(0), "{told}");
            assert!(told.ends_with("no flow is left\n"), "{told}");
            let (code, told) = of_first(&stage, &service, "undrain")?;
            assert_eq!(code, Some(0), "{told}");
            assert!(takes_flows(&stage, &service)?);
            let report = load.stop()?;
            println!("{report}");
            let failures: Vec<_> = report.failures().collect();
            assert!(failures.is_empty(), "{failures:?}");
            Ok(())
        },
    )
}

#[test]
fn a_backend_in_maintenance_is_not_asked_and_comes_back_by_its_checks() -> Result<()> {
    with_root(
        "a_backend_in_maintenance_is_not_asked_and_comes_back_by_its_checks",
        || {
            let service = service();
            let mut stage = stage(&service)?;
            of_first(&stage, &service, "maintenance --wait --timeout 60s")?;
            assert!(!takes_flows(&stage, &service)?);
            stage.servers[0].kill();
            // Several checks' time, in none of which anybody finds that out.
            thread::sleep(Duration::from_millis(
                5 * u64::from(Health::HTTP.interval_ms),
            ));
            let first = || stage.backend(&service, web_address(1));
            assert!(first()?.is_some_and(|b| b["condition"] != "down"));
            of_first(&stage, &service, "undrain")?;
            assert!(!takes_flows(&stage, &service)?);
            stage.servers[0].restart()?;
            stage.await_condition(&service, web_address(1), "up")?;
            assert!(takes_flows(&stage, &service)?);
            Ok(())
        },
    )
}

#[test]
fn backends_forced_down_and_up_go_against_their_checks_until_that_is_undone() -> Result<()> {
    with_root(
        "backends_forced_down_and_up_go_against_their_checks_until_that_is_undone",
        || {
            // Asks where nobody listens.
            let failing = Health {
                port: Some(7_199),
                ..Health::TCP
            };
            let service = service();
            let first = stage(&service)?;
            let held = Held::open(&first.topology.client, vip(&service)?, HELD, PERIOD)?;
            of_first(&first, &service, "down")?;
            assert!(!takes_flows(&first, &service)?);
            thread::sleep(Duration::from_secs(3));
            of_first(&first, &service, "auto")?;
            assert!(takes_flows(&first, &service)?);
            assert_eq!(held.stop()?.broken_per_backend(), BTreeMap::new());
            drop(first);

            let service = web(failing);
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            for n in 1..=BACKENDS {
                stage.await_condition(&service, web_address(n), "down")?;
            }
            of_first(&stage, &service, "up")?;
            assert_eq!(stage.only(&service, 50)?, backend_name(1));
            Ok(())
        },
    )
}

/// How far the drain of backend 1 is.
fn drain(stage: &Stage, service: &Service) -> Result<serde_json::Value> {
    let first = stage.backend(service, web_address(1))?.context("it")?;
    Ok(first["drain"].clone())
}

#[test]
fn a_drain_ends_early_once_the_backend_says_that_it_has_none_left_and_none_is_observed()
-> Result<()> {
    with_root(
        "a_drain_ends_early_once_the_backend_says_that_it_has_none_left_and_none_is_observed",
        || {
            // Else it would take as long as this, for connections that are idle.
            let service = web(Health::HTTP).with("moving_time", "15m");
            let stage = stage(&service)?;
            let client = &stage.topology.client;
            let held = Held::open(client, vip(&service)?, HELD, PERIOD)?;
            let (code, told) = of_first(&stage, &service, "drained")?;
            assert_eq!(code, Some(5), "{told}");
            assert!(told.contains("takes new flows"), "{told}");
            of_first(&stage, &service, "drain")?;
            wait_until("it may say so", Duration::from_secs(10), || {
                of_first(&stage, &service, "drained").is_ok_and(|(code, _)| code == Some(0))
            })?;
            // It is mistaken, as its connections show.
            let (code, told) = of_first(&stage, &service, "drain --wait --timeout 8s")?;
            assert_eq!(code, Some(6), "{told}");
            assert!(told.contains("the backend says that it has none"), "{told}");
            let lives = held.stop()?;
            assert!(lives.per_backend()[&backend_name(1)] > 0);
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            let (code, told) = of_first(&stage, &service, "drain --wait --timeout 60s")?;
            println!("{}; {told}", drain(&stage, &service)?);
            assert_eq!(code, Some(0), "{told}");
            let ended = drain(&stage, &service)?;
            let unknown = ended["unknown_slots"].as_u64();
            assert!(unknown > Some(0), "by itself: {ended}");
            // What it said is of this drain alone.
            of_first(&stage, &service, "undrain")?;
            assert!(takes_flows(&stage, &service)?);
            of_first(&stage, &service, "drain")?;
            let (code, told) = of_first(&stage, &service, "drain --wait --timeout 4s")?;
            assert_eq!(code, Some(6), "{told}");
            assert_eq!(drain(&stage, &service)?["reported"], false);
            Ok(())
        },
    )
}

/// The first failures of a backend that nobody has seen pass prove nothing yet.
#[test]
fn a_backend_that_is_added_and_never_answers_costs_no_connection() -> Result<()> {
    with_root(
        "a_backend_that_is_added_and_never_answers_costs_no_connection",
        || {
            let service = service();
            let stage = stage(&service)?;
            let load = OpenLoop::start(&stage.topology.client, vip(&service)?, RATE)?;
            let closed = SocketAddr::new(web_address(1).ip(), CLOSED);
            stage.lbctl(&format!("backend add {} {closed}", service.vip))?;
            let added = stage
                .backend(&service, closed)?
                .context("the new backend")?;
            assert_eq!(added["condition"], "starting", "{added}");
            stage.await_condition(&service, closed, "down")?;
            let report = load.stop()?;
            println!("{report}");
            let failures: Vec<_> = report.failures().collect();
            assert!(failures.is_empty(), "{failures:?}");
            Ok(())
        },
    )
}
