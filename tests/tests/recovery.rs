//! Backends that come back, and pools of which few are healthy: what new connections get, and that others
//! notice nothing.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::RESTARTS,
    config::{Health, Service},
    load::{held::Held, open_loop::OpenLoop},
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode, vip, web, web_address},
    topology::{Topology, backend_name},
    wait::wait_until,
};

const HELD: usize = 90;
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// New connections a second.
const RATE: u32 = 200;
const CYCLES: u32 = 100;
/// The same in each of several modes.
const FEW_CYCLES: u32 = 10;
const REQUESTS: usize = 300;
const SOON: Duration = Duration::from_secs(30);

/// Asks where nobody listens, and so says nothing of the servers.
const BROKEN_CHECK: Health = Health {
    port: Some(7_199),
    ..Health::TCP
};

fn stage(service: &Service, condition: &str) -> Result<Stage> {
    let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
    for n in 1..=BACKENDS {
        stage.await_condition(service, web_address(n), condition)?;
    }
    Ok(stage)
}

/// `lbctl backend VERB` of backend `n`.
fn ask(stage: &Stage, service: &Service, verb: &str, n: u8) -> Result<()> {
    let (address, _) = service.backends[usize::from(n) - 1];
    stage.lbctl(&format!("backend {verb} {} {address}", service.vip))
}

/// How many of a number of requests backend `n` answers.
fn answered_by(stage: &Stage, service: &Service, n: u8) -> Result<usize> {
    let answers = stage.answers(service, REQUESTS)?;
    Ok(answers.get(&backend_name(n)).copied().unwrap_or(0))
}

fn kill_and_revive(stage: &mut Stage, service: &Service, n: u8) -> Result<()> {
    stage.servers[usize::from(n) - 1].kill();
    stage.await_condition(service, web_address(n), "down")?;
    stage.servers[usize::from(n) - 1].restart()?;
    stage.await_condition(service, web_address(n), "up")
}

#[test]
fn a_hundred_drains_and_undrains_under_load_lose_no_request() -> Result<()> {
    with_root(
        "a_hundred_drains_and_undrains_under_load_lose_no_request",
        || {
            let service = web(Health::HTTP).with("moving_time", "2s");
            let stage = stage(&service, "up")?;
            let attempts = drain_in_turn(&stage, &[service], CYCLES, RATE)?;
            ensure!(attempts > 1_000, "hardly any load");
            Ok(())
        },
    )
}

#[test]
fn drains_and_undrains_under_load_lose_no_request_in_any_other_mode() -> Result<()> {
    with_root(
        "drains_and_undrains_under_load_lose_no_request_in_any_other_mode",
        || {
            let others = every_mode().into_iter();
            let others = others.filter(|service| service.mode != "nat");
            let mut services: Vec<Service> = others.map(|s| s.with("moving_time", "2s")).collect();
            services.dedup_by_key(|service| service.mode);
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for service in &services {
                for &(address, _) in &service.backends {
                    stage.await_condition(service, address, "up")?;
                }
            }
            let attempts = drain_in_turn(&stage, &services, FEW_CYCLES, RATE / 5)?;
            ensure!(attempts > 100 * services.len(), "hardly any load");
            Ok(())
        },
    )
}

/// Drains and undrains backends of services in turn, so often each, with so many new connections to each a second; how many there
/// were. None of them fails, and none that is held breaks.
fn drain_in_turn(stage: &Stage, services: &[Service], cycles: u32, rate: u32) -> Result<usize> {
    let client = &stage.topology.client;
    let mut loads = Vec::new();
    for service in services {
        let load = OpenLoop::start(client, vip(service)?, rate)?;
        loads.push((load, Held::open(client, vip(service)?, HELD, PERIOD)?));
    }
    for cycle in 0..cycles {
        let n = (cycle % u32::from(BACKENDS)) as u8 + 1;
        for verb in ["drain", "undrain"] {
            for service in services {
                ask(stage, service, verb, n)?;
            }
            // Some connections begin in each state.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let mut attempts = 0;
    for (service, (load, held)) in services.iter().zip(loads) {
        let (report, lives) = (load.stop()?, held.stop()?);
        println!(
            "{} {}, {cycles} cycles: {report}; {lives}",
            service.mode, service.vip
        );
        let failures: Vec<_> = report.failures().collect();
        assert!(failures.is_empty(), "{}: {failures:?}", service.vip);
        assert_eq!(
            lives.broken_per_backend(),
            BTreeMap::new(),
            "{}",
            service.vip
        );
        assert_eq!(
            report.per_backend().len(),
            usize::from(BACKENDS),
            "{}",
            service.vip
        );
        attempts += report.attempts.len();
    }
    Ok(attempts)
}

#[test]
fn a_revived_backend_gets_its_share_by_and_by_and_no_connection_breaks() -> Result<()> {
    with_root(
        "a_revived_backend_gets_its_share_by_and_by_and_no_connection_breaks",
        || {
            let service = web(Health::HTTP)
                .with("slow_start", "12s")
                .with("moving_time", "2s");
            let mut stage = stage(&service, "up")?;
            let whole = answered_by(&stage, &service, 1)?;
            kill_and_revive(&mut stage, &service, 1)?;
            let begun = answered_by(&stage, &service, 1)?;
            let held = Held::open(&stage.topology.client, vip(&service)?, HELD, PERIOD)?;
            let first = || stage.backend(&service, web_address(1));
            let grown = || first().ok().flatten().map(|b| b["slow_start"].clone());
            ensure!(
                grown().is_some_and(|slow| slow.is_object()),
                "{:?}",
                first()?
            );
            wait_until("all of its weight is there", SOON, || {
                grown().is_some_and(|slow| slow.is_null())
            })?;
            let grown = answered_by(&stage, &service, 1)?;
            println!("of {REQUESTS}: {whole} before, {begun} as it came back, {grown} after");
            // A third; a tenth to a quarter of a weight beside two whole ones; a third.
            ensure!(
                whole > REQUESTS / 4 && grown > REQUESTS / 4,
                "{whole}, {grown}"
            );
            ensure!(begun > 0 && begun < REQUESTS / 5, "{begun}");
            assert_eq!(held.stop()?.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}

#[test]
fn with_every_check_failing_a_pool_that_panics_serves_on_without_those_who_drain() -> Result<()> {
    with_root(
        "with_every_check_failing_a_pool_that_panics_serves_on_without_those_who_drain",
        || {
            let service = web(BROKEN_CHECK).with_number("panic_below", 50);
            let stage = stage(&service, "down")?;
            assert_eq!(stage.answers(&service, REQUESTS)?.len(), 3);
            let held = Held::open(&stage.topology.client, vip(&service)?, HELD, PERIOD)?;
            ask(&stage, &service, "drain", 2)?;
            let names: Vec<_> = stage.answers(&service, REQUESTS)?.into_keys().collect();
            assert_eq!(names, [backend_name(1), backend_name(3)]);
            let status = stage.agent.lbctl_json(&["status"])?;
            assert_eq!(status["panic"][0], service.vip);
            let shown = stage.shown(&service)?;
            assert_eq!(shown["panic"]["healthy_percent"], 0);
            let events = stage.agent.lbctl_json(&["events"])?;
            let mut events = events["events"].as_array().context("events")?.iter();
            ensure!(events.any(|event| event["kind"] == "panic"));
            // Somebody knows better of one, who then is all that is healthy.
            ask(&stage, &service, "up", 1)?;
            let said = stage.shown(&service)?;
            assert!(said.get("panic").is_none(), "{said}");
            assert_eq!(stage.only(&service, REQUESTS)?, backend_name(1));
            assert_eq!(held.stop()?.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}

#[test]
fn a_backend_that_fails_twice_is_kept_out_until_its_time_is_over_or_somebody_says_so() -> Result<()>
{
    with_root(
        "a_backend_that_fails_twice_is_kept_out_until_its_time_is_over_or_somebody_says_so",
        || {
            let service = web(Health::HTTP).with("flap_damping", "4s to 1m");
            let mut stage = stage(&service, "up")?;
            kill_and_revive(&mut stage, &service, 1)?;
            assert!(answered_by(&stage, &service, 1)? > 0, "once is nothing");
            kill_and_revive(&mut stage, &service, 1)?;
            assert_eq!(answered_by(&stage, &service, 1)?, 0);
            let first = stage.backend(&service, web_address(1))?.context("it")?;
            assert_eq!(first["damping"]["failures"], 2, "{first}");
            wait_until("its time is over", SOON, || {
                answered_by(&stage, &service, 1).is_ok_and(|answers| answers > 0)
            })?;
            kill_and_revive(&mut stage, &service, 1)?;
            assert_eq!(answered_by(&stage, &service, 1)?, 0);
            ask(&stage, &service, "up", 1)?;
            assert!(answered_by(&stage, &service, 1)? > 0);
            ask(&stage, &service, "undrain", 1)?;
            assert!(answered_by(&stage, &service, 1)? > 0);
            Ok(())
        },
    )
}

#[test]
fn a_backend_that_fails_again_and_again_stays_kept_out_over_restarts_of_the_agent() -> Result<()> {
    with_root(
        "a_backend_that_fails_again_and_again_stays_kept_out_over_restarts_of_the_agent",
        || {
            let service = web(Health::HTTP).with("flap_damping", "5m to 10m");
            let mut stage = stage(&service, "up")?;
            for _ in 0..2 {
                kill_and_revive(&mut stage, &service, 1)?;
            }
            assert_eq!(answered_by(&stage, &service, 1)?, 0);
            for restart in RESTARTS {
                stage.agent.await_moment("held_since")?;
                restart(&mut stage.agent)?;
                for n in 1..=BACKENDS {
                    stage.await_condition(&service, web_address(n), "up")?;
                }
                assert_eq!(answered_by(&stage, &service, 1)?, 0);
                let first = stage.backend(&service, web_address(1))?.context("it")?;
                println!("{}", first["damping"]);
                assert_eq!(first["damping"]["failures"], 2, "{first}");
                let left = first["damping"]["left_ms"].as_u64();
                assert!(left.is_some_and(|left| left < 300_000), "{first}");
            }
            // One that is down as the agent ends waits once it is up again.
            ask(&stage, &service, "up", 1)?;
            ask(&stage, &service, "auto", 1)?;
            for failures in 1..=2 {
                assert!(answered_by(&stage, &service, 1)? > 0);
                stage.servers[0].kill();
                stage.await_condition(&service, web_address(1), "down")?;
                // It is written once a second, and might still say what was before.
                stage
                    .agent
                    .await_history(&format!("\"failures\":{failures}"))?;
                stage.agent.await_history("\"failing\":true")?;
                stage.agent.restart()?;
                stage.servers[0].restart()?;
                stage.await_condition(&service, web_address(1), "up")?;
            }
            assert_eq!(answered_by(&stage, &service, 1)?, 0);
            Ok(())
        },
    )
}

#[test]
fn a_history_that_is_damaged_or_of_another_format_is_told_and_left_aside() -> Result<()> {
    with_root(
        "a_history_that_is_damaged_or_of_another_format_is_told_and_left_aside",
        || {
            let service = web(Health::HTTP).with("flap_damping", "5m to 10m");
            let mut stage = stage(&service, "up")?;
            let path = lb_userspace::instance::history_path(&stage.agent.home().name);
            for (history, told) in [
                ("{\"format\":2,\"hist", "it is damaged"),
                ("{\"format\":1,\"flaps\":[]}", "it is of format 1"),
            ] {
                for _ in 0..2 {
                    kill_and_revive(&mut stage, &service, 1)?;
                }
                assert_eq!(answered_by(&stage, &service, 1)?, 0);
                stage.agent.sigterm()?;
                std::fs::write(&path, history)?;
                stage.agent.restart()?;
                let log = stage.agent.log();
                let warned = log.lines().any(|l| l.contains("WARN") && l.contains(told));
                ensure!(warned, "{told} is not in {log}");
                for n in 1..=BACKENDS {
                    stage.await_condition(&service, web_address(n), "up")?;
                }
                assert!(answered_by(&stage, &service, 1)? > 0);
            }
            Ok(())
        },
    )
}
