//! New connections go where the scheduler says, established ones stay, and limits are kept.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use lb_tests::{
    config::{Health, Service},
    load::{held::Held, open_loop::OpenLoop, requests},
    process::run,
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, v4_pool, vip, web},
    topology::{Topology, backend_name},
    wait::{wait_for, wait_until},
};

/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// Bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(60);

fn scheduled(scheduler: &str, weights: [u16; 3]) -> Service {
    let mut service = web(Health::HTTP)
        .with("scheduler", scheduler)
        .with("moving_time", "2s");
    for ((_, weight), wanted) in service.backends.iter_mut().zip(weights) {
        *weight = wanted;
    }
    service
}

fn stage(service: &Service) -> Result<Stage> {
    Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])
}

/// Asserts that `counts` are in the ratio of `weights`, to within `slack` each.
fn assert_shares(counts: &BTreeMap<String, usize>, weights: [u16; 3], slack: impl Fn(f64) -> f64) {
    let all: usize = counts.values().sum();
    let total: u16 = weights.iter().sum();
    for (n, weight) in (1..).zip(weights) {
        let ideal = all as f64 * f64::from(weight) / f64::from(total);
        let count = counts.get(&backend_name(n)).copied().unwrap_or_default();
        let off = (count as f64 - ideal).abs();
        assert!(
            off <= slack(ideal),
            "{n}: {ideal:.1} were its share: {counts:?}"
        );
    }
}

/// Each processor takes turns by itself: each may be within one of the ratio.
fn one_per_processor(_: f64) -> f64 {
    aya::util::nr_cpus().map_or(1.0, |count| count as f64)
}

/// Asserts that no backend has more than any other by more than one for each processor.
fn assert_even(counts: &BTreeMap<String, usize>) {
    let of = |n| counts.get(&backend_name(n)).copied().unwrap_or_default();
    let counts_of_all = || (1..=BACKENDS).map(of);
    let most = counts_of_all().max().unwrap_or_default();
    let least = counts_of_all().min().unwrap_or_default();
    let processors = aya::util::online_cpus().map_or(1, |cpus| cpus.len());
    assert!(
        most - least <= processors,
        "{counts:?} with {processors} processors"
    );
}

#[test]
fn round_robin_gives_every_backend_as_many_connections_whatever_its_weight() -> Result<()> {
    with_root(
        "round_robin_gives_every_backend_as_many_connections_whatever_its_weight",
        || {
            let service = scheduled("round-robin", [1, 2, 3]);
            let answers = stage(&service)?.answers(&service, 3_000)?;
            println!("{answers:?}");
            assert_even(&answers);
            Ok(())
        },
    )
}

#[test]
fn weighted_round_robin_gives_connections_in_the_ratio_of_the_weights() -> Result<()> {
    with_root(
        "weighted_round_robin_gives_connections_in_the_ratio_of_the_weights",
        || {
            let service = scheduled("weighted-round-robin", [10, 20, 30]);
            let answers = stage(&service)?.answers(&service, 3_000)?;
            println!("{answers:?}");
            assert_shares(&answers, [1, 2, 3], one_per_processor);
            Ok(())
        },
    )
}

/// What each backend has of connections held for long, while others come and go, and after a third
/// of those held has ended and as many were opened again.
fn held_under_churn(service: &Service) -> Result<BTreeMap<String, usize>> {
    let stage = stage(service)?;
    let (client, target) = (&stage.topology.client, vip(service)?);
    let churn = OpenLoop::start(client, target, 100)?;
    let open = || Held::open(client, target, 300, PERIOD);
    let (first, second) = (open()?, open()?);
    first.stop()?;
    let third = open()?;
    let came_and_went = churn.stop()?;
    println!("{}: {came_and_went}", stage.shown(service)?["scheduler"]);
    stage.all_answered(service, &came_and_went)?;
    let mut counts = BTreeMap::new();
    for held in [second, third] {
        let lives = held.stop()?;
        assert_eq!(lives.broken_per_backend(), BTreeMap::new());
        for (name, count) in lives.per_backend() {
            *counts.entry(name).or_default() += count;
        }
    }
    println!("held {counts:?}");
    assert_nobody_is_counted_for_ever(&stage, service)?;
    Ok(counts)
}

/// Flows in progress of each backend, as `lbctl` tells them.
fn connections(stage: &Stage, service: &Service) -> Result<Vec<u64>> {
    let shown = stage.shown(service)?;
    let backends = shown["backends"].as_array().context("backends")?;
    let counts = backends
        .iter()
        .map(|backend| backend["connections"].as_u64());
    counts
        .collect::<Option<_>>()
        .with_context(|| format!("no flows are counted: {shown:#}"))
}

fn assert_nobody_is_counted_for_ever(stage: &Stage, service: &Service) -> Result<()> {
    wait_until("no flow is in progress", SOON, || {
        connections(stage, service).is_ok_and(|counts| counts.iter().all(|&count| count == 0))
    })
    .with_context(|| format!("{:?}", connections(stage, service)))
}

#[test]
fn weighted_least_connections_keeps_held_connections_in_the_ratio_of_the_weights() -> Result<()> {
    with_root(
        "weighted_least_connections_keeps_held_connections_in_the_ratio_of_the_weights",
        || {
            let service = scheduled("weighted-least-connections", [1, 2, 3]);
            let held = held_under_churn(&service)?;
            assert_shares(&held, [1, 2, 3], |ideal| ideal * 0.05);
            Ok(())
        },
    )
}

#[test]
fn least_connections_gives_every_backend_as_many_whatever_its_weight() -> Result<()> {
    with_root(
        "least_connections_gives_every_backend_as_many_whatever_its_weight",
        || {
            let held = held_under_churn(&scheduled("least-connections", [1, 2, 3]))?;
            assert_shares(&held, [1, 1, 1], |ideal| ideal * 0.05);
            Ok(())
        },
    )
}

#[test]
fn power_of_two_choices_stays_within_a_tenth_of_the_ratio_of_the_weights() -> Result<()> {
    with_root(
        "power_of_two_choices_stays_within_a_tenth_of_the_ratio_of_the_weights",
        || {
            let held = held_under_churn(&scheduled("power-of-two-choices", [1, 1, 1]))?;
            assert_shares(&held, [1, 1, 1], |ideal| ideal * 0.1);
            Ok(())
        },
    )
}

#[test]
fn source_hash_sends_all_connections_of_a_client_to_one_backend() -> Result<()> {
    with_root(
        "source_hash_sends_all_connections_of_a_client_to_one_backend",
        || clients_keep_their_backends("source-hash"),
    )
}

#[test]
fn three_tuple_hash_sends_all_connections_of_a_client_to_one_backend() -> Result<()> {
    with_root(
        "three_tuple_hash_sends_all_connections_of_a_client_to_one_backend",
        || clients_keep_their_backends("three-tuple-hash"),
    )
}

fn clients_keep_their_backends(scheduler: &'static str) -> Result<()> {
    let service = scheduled(scheduler, [1, 1, 1]);
    let stage = stage(&service)?;
    let mut used = BTreeMap::new();
    for n in 0..24 {
        let source = Ipv4Addr::new(10, 1, 0, 100 + n);
        let address = format!("addr add {source}/24 dev eth0");
        let route = format!("route replace default via 10.1.0.1 src {source}");
        for line in [address, route] {
            run(stage.topology.client.command("ip").args(line.split(' ')))?;
        }
        let answers = stage.answers(&service, 30)?;
        assert_eq!(answers.len(), 1, "{source}: {answers:?}");
        *used.entry(answers.into_keys().next()).or_insert(0) += 1;
    }
    println!("clients by backend: {used:?}");
    assert!(used.len() > 1, "all clients have the same backend");
    Ok(())
}

#[test]
fn changing_the_scheduler_breaks_no_connection() -> Result<()> {
    with_root("changing_the_scheduler_breaks_no_connection", || {
        const SCHEDULERS: [&str; 8] = [
            "round-robin",
            "least-connections",
            "source-hash",
            "three-tuple-hash",
            "power-of-two-choices",
            "weighted-round-robin",
            "maglev",
            "weighted-least-connections",
        ];
        let service = scheduled("maglev", [1, 2, 3]);
        let stage = stage(&service)?;
        let (client, target) = (&stage.topology.client, vip(&service)?);
        let mut held = vec![Held::open(client, target, 150, PERIOD)?];
        for scheduler in SCHEDULERS {
            stage.lbctl(&format!(
                "service set {} --scheduler {scheduler}",
                service.vip
            ))?;
            held.push(Held::open(client, target, 50, PERIOD)?);
        }
        // And each for long enough that nothing of the one before is in force any more.
        for scheduler in SCHEDULERS {
            stage.lbctl(&format!(
                "service set {} --scheduler {scheduler}",
                service.vip
            ))?;
            stage.await_slots(&service, Slots::have_moved)?;
            thread::sleep(2 * PERIOD);
            held.push(Held::open(client, target, 50, PERIOD)?);
        }
        for held in held {
            let lives = held.stop()?;
            println!("{lives}");
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
        }
        Ok(())
    })
}

/// Adds so many to each backend's flows in progress behind the balancer's back; how many backends had any.
fn miscount(stage: &Stage, change: u64) -> Result<usize> {
    let pins = stage.agent.home().bpffs.entries();
    let pin = pins.iter().find(|pin| pin.ends_with("LOADS"));
    let map = Map::Array(MapData::from_pin(pin.context("no pin of LOADS")?)?);
    let mut loads: Array<MapData, u64> = Array::try_from(map)?;
    let mut changed = 0;
    for index in 0..loads.len() {
        let load = loads.get(&index, 0)?;
        if load > 0 {
            loads.set(index, load.wrapping_add(change), 0)?;
            changed += 1;
        }
    }
    Ok(changed)
}

#[test]
fn flows_in_progress_that_were_miscounted_are_counted_anew() -> Result<()> {
    with_root(
        "flows_in_progress_that_were_miscounted_are_counted_anew",
        || {
            let service = scheduled("least-connections", [1, 1, 1]);
            let stage = stage(&service)?;
            let held = Held::open(&stage.topology.client, vip(&service)?, 30, PERIOD)?;
            wait_until("all are counted", SOON, || {
                connections(&stage, &service).is_ok_and(|counts| counts == [10, 10, 10])
            })?;
            for change in [7, 4u64.wrapping_neg()] {
                assert_eq!(miscount(&stage, change)?, 3);
                wait_until("they are counted anew", SOON, || {
                    connections(&stage, &service).is_ok_and(|counts| counts == [10, 10, 10])
                })
                .with_context(|| format!("{:?}", connections(&stage, &service)))?;
            }
            let log = stage.agent.log();
            // Each backend twice at least: what a packet touches during a sweep is left to the next.
            assert!(log.matches("miscounted").count() >= 6, "{log}");
            assert_eq!(held.stop()?.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}

/// Sets the limits of the first backends.
fn limit(stage: &Stage, service: &Service, limits: &[u32]) -> Result<()> {
    let backends = v4_pool(lb_tests::backend::PORT).zip(limits);
    for (backend, limit) in backends {
        stage.lbctl(&format!("backend limit {} {backend} {limit}", service.vip))?;
    }
    Ok(())
}

/// With every scheduler a backend at its limit is passed over, however few take more.
fn assert_limit_is_kept(scheduler: &str) -> Result<()> {
    let service = scheduled(scheduler, [1, 1, 1]);
    let stage = stage(&service)?;
    limit(&stage, &service, &[10, 20])?;
    let client = &stage.topology.client;
    let held = Held::open(client, vip(&service)?, 200, PERIOD)
        .with_context(|| format!("{scheduler}: {:?}", connections(&stage, &service)))?;
    let counted = connections(&stage, &service)?;
    println!("{scheduler}: {counted:?}");
    let lives = held.stop()?;
    assert_eq!(lives.broken_per_backend(), BTreeMap::new());
    let opened = lives.per_backend();
    let of = |n| opened.get(&backend_name(n)).copied().unwrap_or_default();
    assert!(of(1) <= 10 && of(2) <= 20, "{scheduler}: {opened:?}");
    let told: Vec<u64> = (1..=3).map(|n| of(n) as u64).collect();
    assert_eq!(counted, told, "{scheduler}");
    Ok(())
}

#[test]
fn no_backend_has_more_connections_than_its_limit_and_the_others_take_them() -> Result<()> {
    with_root(
        "no_backend_has_more_connections_than_its_limit_and_the_others_take_them",
        || {
            let schedulers = [
                "round-robin",
                "weighted-least-connections",
                "power-of-two-choices",
                "maglev",
            ];
            schedulers.into_iter().try_for_each(assert_limit_is_kept)
        },
    )
}

/// Connections from before a limit count as much as later ones, recorded or not.
fn assert_limit_counts_what_is_there(scheduler: &str) -> Result<()> {
    let service = scheduled(scheduler, [1, 1, 1]);
    let stage = stage(&service)?;
    let (client, target) = (&stage.topology.client, vip(&service)?);
    let earlier = Held::open(client, target, 60, PERIOD)?;
    limit(&stage, &service, &[1, 1])?;
    wait_until("all connections are counted", SOON, || {
        connections(&stage, &service).is_ok_and(|counts| counts.iter().sum::<u64>() == 60)
    })
    .with_context(|| format!("{scheduler}: {:?}", connections(&stage, &service)))?;
    let counted = connections(&stage, &service)?;
    let later = Held::open(client, target, 30, PERIOD)?.stop()?;
    assert_eq!(later.per_backend(), [(backend_name(3), 30)].into());
    let earlier = earlier.stop()?;
    assert_eq!(earlier.broken_per_backend(), BTreeMap::new());
    let told: BTreeMap<String, usize> = (1..)
        .map(backend_name)
        .zip(counted.iter().map(|&count| count as usize))
        .collect();
    assert_eq!(told, earlier.per_backend(), "{scheduler}");
    Ok(())
}

#[test]
fn a_limit_counts_the_connections_that_were_there_before_it() -> Result<()> {
    with_root(
        "a_limit_counts_the_connections_that_were_there_before_it",
        || {
            let schedulers = ["maglev", "round-robin", "least-connections"];
            schedulers
                .into_iter()
                .try_for_each(assert_limit_counts_what_is_there)
        },
    )
}

#[test]
fn where_all_are_at_their_limit_a_connection_is_dropped_until_one_has_ended() -> Result<()> {
    with_root(
        "where_all_are_at_their_limit_a_connection_is_dropped_until_one_has_ended",
        || {
            let service = scheduled("least-connections", [1, 1, 1]);
            let stage = stage(&service)?;
            limit(&stage, &service, &[5, 5, 5])?;
            let (client, target): (_, SocketAddr) = (&stage.topology.client, vip(&service)?);
            let held = Held::open(client, target, 15, PERIOD)?;
            let dropped = || -> Result<u64> {
                let status = stage.agent.lbctl_json(&["status"])?;
                status["drops"]["no_backend"].as_u64().context("a count")
            };
            let before = dropped()?;
            let refused = requests(client, target, 10)?;
            assert_eq!(refused.succeeded(), 0, "{refused}");
            assert!(dropped()? >= before + 10, "{} dropped", dropped()? - before);
            assert_eq!(connections(&stage, &service)?, [5, 5, 5]);
            let lives = held.stop()?;
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            wait_for("a connection is taken again", SOON, || {
                let report = requests(client, target, 1).ok()?;
                (report.succeeded() == 1).then_some(())
            })
        },
    )
}

#[test]
fn what_a_pool_carries_of_what_it_can_is_told() -> Result<()> {
    with_root("what_a_pool_carries_of_what_it_can_is_told", || {
        let service = scheduled("least-connections", [1, 1, 1]);
        let stage = stage(&service)?;
        limit(&stage, &service, &[100, 100, 100])?;
        let held = Held::open(&stage.topology.client, vip(&service)?, 90, PERIOD)?;
        let told = stage.shown(&service)?["capacity"]["connections"].clone();
        held.stop()?;
        // Of three with room for a hundred each, one is enough.
        let wanted = serde_json::json!({
            "load": 90, "most": 300, "utilisation": 300, "imbalance": 1_000, "headroom": 2,
        });
        assert_eq!(told, wanted);
        Ok(())
    })
}
