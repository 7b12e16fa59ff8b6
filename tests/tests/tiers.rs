//! Standby backends: they take over what the primaries cannot carry, give it back, and no connection of
//! anybody who lives notices.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::{
    agent::RESTARTS,
    config::{Health, Service},
    load::held::{Held, HeldReport},
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, vip, web, web_address},
    topology::{Topology, backend_name, backend_v4, vip_v4},
    wait::wait_until,
};

const HELD: usize = 150;
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
const SOON: Duration = Duration::from_secs(30);

/// Backends 1 and 2 are primary, 3 is standby.
fn service() -> Service {
    web(Health::HTTP)
        .tiered(&[0, 0, 1])
        .with("moving_time", "2s")
}

fn stage(service: &Service) -> Result<Stage> {
    let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
    for n in 1..=BACKENDS {
        stage.await_condition(service, web_address(n), "up")?;
    }
    Ok(stage)
}

fn hold(stage: &Stage, service: &Service) -> Result<Held> {
    Held::open(&stage.topology.client, vip(service)?, HELD, PERIOD)
}

/// Long enough for slots to settle for their new owners, and for every connection to have spoken since.
fn settle() {
    thread::sleep(Duration::from_secs(4));
}

fn answering(stage: &Stage, service: &Service) -> Result<Vec<String>> {
    Ok(stage.answers(service, 200)?.into_keys().collect())
}

fn names<const N: usize>(backends: [u8; N]) -> Vec<String> {
    backends.map(backend_name).to_vec()
}

fn kill(stage: &mut Stage, service: &Service, n: u8) -> Result<()> {
    stage.servers[usize::from(n) - 1].kill();
    stage.await_condition(service, web_address(n), "down")
}

fn revive(stage: &mut Stage, service: &Service, n: u8) -> Result<()> {
    stage.servers[usize::from(n) - 1].restart()?;
    stage.await_condition(service, web_address(n), "up")
}

/// Who had connections, when nobody's but these backends' broke.
fn only_of<const N: usize>(held: Held, killed: [u8; N]) -> Result<HeldReport> {
    let lives = held.stop()?;
    println!("{lives}");
    let broken: Vec<String> = lives.broken_per_backend().into_keys().collect();
    let killed = names(killed);
    ensure!(
        broken.iter().all(|backend| killed.contains(backend)),
        "{broken:?}"
    );
    Ok(lives)
}

/// Backend 1 is down and the standby has its part, in states as in events.
fn assert_told(stage: &Stage, service: &Service) -> Result<()> {
    for (n, state) in [(1, "down"), (2, "up"), (3, "up")] {
        let backend = stage.backend(service, web_address(n))?;
        let standing = backend.map(|backend| backend["standing"]["state"].clone());
        assert_eq!(standing, Some(state.into()), "backend {n}");
    }
    let events = stage
        .agent
        .lbctl_json(&["events", "--service", &service.vip])?;
    let turned = |n: u8, from: &str, to: &str| {
        let address = web_address(n).to_string();
        let mut events = events["events"].as_array().into_iter().flatten();
        events.any(|e| e["backend"] == address && e["from"] == from && e["to"] == to)
    };
    assert!(
        turned(1, "suspect", "down") && turned(3, "standby", "up"),
        "{events}"
    );
    Ok(())
}

#[test]
fn a_standby_takes_over_and_gives_back_without_breaking_a_connection_of_anybody_else() -> Result<()>
{
    with_root(
        "a_standby_takes_over_and_gives_back_without_breaking_a_connection_of_anybody_else",
        || {
            let service = service();
            let mut stage = stage(&service)?;
            assert_eq!(answering(&stage, &service)?, names([1, 2]));
            let first = hold(&stage, &service)?;
            kill(&mut stage, &service, 1)?;
            // Half of the primaries are fewer than 70%.
            assert_eq!(answering(&stage, &service)?, names([2, 3]));
            assert_told(&stage, &service)?;
            let second = hold(&stage, &service)?;
            settle();
            let lives = only_of(first, [1])?;
            assert_eq!(
                lives.per_backend().into_keys().collect::<Vec<_>>(),
                names([1, 2])
            );
            kill(&mut stage, &service, 2)?;
            assert_eq!(answering(&stage, &service)?, names([3]));
            let third = hold(&stage, &service)?;
            revive(&mut stage, &service, 1)?;
            revive(&mut stage, &service, 2)?;
            assert_eq!(answering(&stage, &service)?, names([1, 2]));
            settle();
            only_of(second, [2])?;
            let lives = only_of(third, [])?;
            assert_eq!(lives.per_backend(), [(backend_name(3), HELD)].into());
            Ok(())
        },
    )
}

#[test]
fn with_manual_failback_new_flows_stay_on_the_standby_until_somebody_says_so() -> Result<()> {
    with_root(
        "with_manual_failback_new_flows_stay_on_the_standby_until_somebody_says_so",
        || {
            let service = service().with("failback", "manual");
            let mut stage = stage(&service)?;
            kill(&mut stage, &service, 1)?;
            kill(&mut stage, &service, 2)?;
            revive(&mut stage, &service, 1)?;
            revive(&mut stage, &service, 2)?;
            assert_eq!(answering(&stage, &service)?, names([3]));
            stage.agent.restart()?;
            for n in 1..=BACKENDS {
                stage.await_condition(&service, web_address(n), "up")?;
            }
            assert_eq!(answering(&stage, &service)?, names([3]));
            assert_eq!(stage.shown(&service)?["tiers"][0]["waits"], true);
            let held = hold(&stage, &service)?;
            stage.lbctl(&format!("failback {}", service.vip))?;
            assert_eq!(answering(&stage, &service)?, names([1, 2]));
            settle();
            only_of(held, [])?;
            Ok(())
        },
    )
}

#[test]
fn with_delayed_failback_new_flows_return_by_themselves() -> Result<()> {
    with_root(
        "with_delayed_failback_new_flows_return_by_themselves",
        || {
            let service = service()
                .with("failback", "3s")
                .with_number("spill_below", 0);
            let mut stage = stage(&service)?;
            kill(&mut stage, &service, 1)?;
            assert_eq!(answering(&stage, &service)?, names([2]));
            kill(&mut stage, &service, 2)?;
            revive(&mut stage, &service, 2)?;
            assert_eq!(answering(&stage, &service)?, names([3]));
            wait_until("the primary has its flows back", SOON, || {
                answering(&stage, &service).is_ok_and(|answering| answering == names([2]))
            })
        },
    )
}

#[test]
fn failing_over_by_hand_and_back_breaks_no_connection() -> Result<()> {
    with_root("failing_over_by_hand_and_back_breaks_no_connection", || {
        let service = service();
        let mut stage = stage(&service)?;
        let first = hold(&stage, &service)?;
        stage.lbctl(&format!("failover {} --to 1", service.vip))?;
        assert_eq!(answering(&stage, &service)?, names([3]));
        let second = hold(&stage, &service)?;
        settle();
        stage.agent.restart()?;
        assert_eq!(answering(&stage, &service)?, names([3]));
        stage.lbctl(&format!("failback {}", service.vip))?;
        assert_eq!(answering(&stage, &service)?, names([1, 2]));
        settle();
        for held in [first, second] {
            assert_eq!(held.stop()?.broken_per_backend(), BTreeMap::new());
        }
        Ok(())
    })
}

/// Of 300 requests, how many the standby answers.
fn standbys_part(stage: &Stage, service: &Service) -> Result<usize> {
    let answers = stage.answers(service, 300)?;
    Ok(answers.get(&backend_name(3)).copied().unwrap_or(0))
}

#[test]
fn a_tier_that_is_held_back_in_part_or_by_hand_stays_so_over_restarts_of_the_agent() -> Result<()> {
    with_root(
        "a_tier_that_is_held_back_in_part_or_by_hand_stays_so_over_restarts_of_the_agent",
        || {
            let service = service().with("failback", "manual");
            let mut stage = stage(&service)?;
            kill(&mut stage, &service, 1)?;
            revive(&mut stage, &service, 1)?;
            let held = hold(&stage, &service)?;
            let before = standbys_part(&stage, &service)?;
            // 28.6% of them.
            ensure!((50..130).contains(&before), "{before}");
            for restart in RESTARTS {
                stage.agent.await_moment("better_since")?;
                restart(&mut stage.agent)?;
                for n in 1..=BACKENDS {
                    stage.await_condition(&service, web_address(n), "up")?;
                }
                let after = standbys_part(&stage, &service)?;
                println!("{before} of 300 to the standby before a restart, {after} after it");
                ensure!((50..130).contains(&after), "{after}");
                assert_eq!(stage.shown(&service)?["tiers"][0]["waits"], true);
            }
            stage.lbctl(&format!("failover {} --to 1", service.vip))?;
            stage.lbctl(&format!("backend down {} {}", service.vip, web_address(2)))?;
            for restart in RESTARTS {
                restart(&mut stage.agent)?;
                assert_eq!(answering(&stage, &service)?, names([3]));
                for n in 1..=BACKENDS {
                    stage.await_condition(&service, web_address(n), "up")?;
                }
                assert_eq!(answering(&stage, &service)?, names([3]));
            }
            stage.lbctl(&format!("failback {}", service.vip))?;
            assert_eq!(answering(&stage, &service)?, names([1, 3]));
            stage.lbctl(&format!("backend auto {} {}", service.vip, web_address(2)))?;
            stage.lbctl(&format!("failback {}", service.vip))?;
            assert_eq!(answering(&stage, &service)?, names([1, 2]));
            only_of(held, []).map(drop)
        },
    )
}

#[test]
fn a_primary_that_is_not_on_the_network_is_missed_without_any_check() -> Result<()> {
    with_root(
        "a_primary_that_is_not_on_the_network_is_missed_without_any_check",
        || {
            let nobody = std::net::SocketAddr::from((backend_v4(99), 80));
            let backends = [web_address(1), nobody, web_address(3)];
            let service = Service::new(tcp(vip_v4(1)), "nat", Health::NONE, backends);
            let service = service.tiered(&[0, 0, 1]);
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            wait_until("the standby has its part", SOON, || {
                standbys_part(&stage, &service).is_ok_and(|part| (50..130).contains(&part))
            })?;
            let missed = stage.backend(&service, nobody)?;
            let standing = missed.map(|backend| backend["standing"].clone());
            println!("{standing:?}");
            assert_eq!(standing.map(|s| s["state"].clone()), Some("down".into()));
            Ok(())
        },
    )
}
