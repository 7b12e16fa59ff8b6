//! Weights that follow how backends fare: what clients have of it where one server is four times as slow as the others.

use std::{
    fmt::{self, Display, Formatter},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    answering::SpokenFor,
    backend,
    config::{Health, Service},
    load::{
        Report,
        held::Held,
        open_loop::{OpenLoop, connections_per_second},
    },
    process::run_with_input,
    queue::{self, QueueServer},
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, tcp, v4_pool, vip, web_address},
    topology::{Topology, backend_name, backend_v4, vip_v4},
    wait::wait_until,
};
use tokio::time::Instant;

/// What a request takes, and at the slow server.
const TAKES: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(40);
/// Requests that may wait at a server.
const ROOM: usize = 16;
/// New connections a second: a third of them is more than the slow server can serve.
const RATE: u32 = 105;
const MEASURED: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(100);
/// Where agents are asked.
const AGENT: u16 = 7_210;
const ADAPTIVE: &str = "{from=[\"latency\"],interval=\"1s\"}";

/// What clients have noticed.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    /// Of the requests that were answered.
    p99: Duration,
    failed: usize,
    /// Answered by the slow server.
    slow: usize,
    all: usize,
}

impl Display for Noticed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (p99, failed, slow, all) = (self.p99.as_millis(), self.failed, self.slow, self.all);
        write!(f, "| {p99} ms | {failed} of {all} | {slow} |")
    }
}

fn noticed(report: &Report) -> Result<Noticed> {
    let answered = report.attempts.iter().filter(|a| a.outcome.is_ok());
    let mut took: Vec<Duration> = answered.map(|a| a.ended - a.started).collect();
    took.sort_unstable();
    let all = report.attempts.len();
    ensure!(took.len() > all / 2, "hardly any answers");
    let answers = report.per_backend();
    Ok(Noticed {
        p99: took[took.len() * 99 / 100],
        failed: all - took.len(),
        slow: answers.get(&backend_name(3)).copied().unwrap_or(0),
        all,
    })
}

/// Percent of the third backend's weight that is in effect.
fn share(stage: &Stage, service: &Service) -> Option<u64> {
    let (slow, _) = service.backends[2];
    let shown = stage.backend(service, slow).ok().flatten()?;
    shown["adaptive"]["weight_percent"].as_u64()
}

/// How long clients' handshakes with the first and the third backend take, in microseconds.
fn handshakes(stage: &Stage, service: &Service) -> Result<[u64; 2]> {
    let of = |n: usize| -> Result<u64> {
        let shown = stage.backend(service, service.backends[n].0)?;
        let shown = shown.context("a backend of the service")?;
        let took = shown["adaptive"]["handshake_us"].as_u64();
        took.with_context(|| shown["adaptive"].to_string())
    };
    Ok([of(0)?, of(2)?])
}

#[test]
fn a_host_that_loses_syns_gets_less_of_its_weight_where_that_follows_handshakes() -> Result<()> {
    with_root(
        "a_host_that_loses_syns_gets_less_of_its_weight_where_that_follows_handshakes",
        || {
            let services: Vec<Service> = [(1, "nat"), (2, "ipip")]
                .into_iter()
                .map(|(n, mode)| {
                    let pool = v4_pool(backend::PORT);
                    Service::new(tcp(vip_v4(n)), mode, Health::NONE, pool).with("moving_time", "1s")
                })
                .collect();
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            let mut loads = Vec::new();
            for service in &services {
                let adaptive = "{from=[\"handshake\"],interval=\"1s\"}";
                stage.lbctl(&format!(
                    "service set {} --adaptive {adaptive}",
                    service.vip
                ))?;
                loads.push(OpenLoop::start(&stage.topology.client, vip(service)?, 60)?);
            }
            // Every other one: its client sends it again a second later.
            let rules = "table ip adaptive {\n chain new {\n  type filter hook input priority 0;\n  \
                         tcp dport 80 tcp flags & (syn | ack) == syn numgen inc mod 2 0 drop\n }\n}\n";
            let mut nft = stage.topology.backend(3).command("nft");
            run_with_input(nft.args(["-f", "-"]), rules)?;
            for service in &services {
                wait_until("the host that loses SYNs has less", SOON, || {
                    share(&stage, service).is_some_and(|share| share <= 60)
                })?;
                let [well, loses] = handshakes(&stage, service)?;
                println!("{}: {well} and {loses} µs", service.mode);
                ensure!(loses > 100_000 && well < loses / 4, "{well} {loses}");
            }
            for load in loads {
                load.stop()?;
            }
            // Off again, it returns, though SYNs are still lost, and not at once.
            for service in &services {
                stage.lbctl(&format!("service set {} --no-adaptive", service.vip))?;
                let share = share(&stage, service);
                ensure!(share.is_some_and(|share| share < 80), "{share:?}");
            }
            for service in &services {
                wait_until("the weight is the configured one", SOON, || {
                    stage
                        .shown(service)
                        .is_ok_and(|shown| shown["adapting"].is_null())
                })?;
                ensure!(share(&stage, service).is_none());
            }
            Ok(())
        },
    )
}

/// Turns adaptive weights of a service on, which follow these signals.
fn adapt(stage: &Stage, service: &Service, from: &str) -> Result<()> {
    let adaptive = format!("{{from=[\"{from}\"],interval=\"1s\"}}");
    stage.lbctl(&format!(
        "service set {} --adaptive {adaptive}",
        service.vip
    ))
}

/// Slots of the ring that are steady, in percent.
fn steady(stage: &Stage, service: &Service) -> Result<f64> {
    let slots = stage.slots(service)?;
    let all = slots.steady + slots.moving + slots.settling;
    Ok(f64::from(slots.steady) * 100.0 / f64::from(all))
}

#[test]
fn a_backend_with_four_times_as_many_flows_in_progress_gets_less_of_its_weight() -> Result<()> {
    with_root(
        "a_backend_with_four_times_as_many_flows_in_progress_gets_less_of_its_weight",
        || {
            let pool = v4_pool(backend::PORT);
            let service =
                Service::new(tcp(vip_v4(1)), "nat", Health::NONE, pool).with("moving_time", "1s");
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let client = &stage.topology.client;
            let (id, period) = (&service.vip, Duration::from_millis(200));
            for n in 1..=BACKENDS {
                stage.lbctl(&format!("backend limit {id} {} 1000", web_address(n)))?;
            }
            stage.await_slots(&service, Slots::are_steady)?;
            let evenly = Held::open(client, vip(&service)?, 60, period)?;
            for n in [1, 2] {
                stage.lbctl(&format!("backend drain {id} {}", web_address(n)))?;
            }
            let more = Held::open(client, vip(&service)?, 60, period)?;
            for n in [1, 2] {
                stage.lbctl(&format!("backend undrain {id} {}", web_address(n)))?;
            }
            stage.await_slots(&service, Slots::are_steady)?;
            adapt(&stage, &service, "flows")?;
            let mut fewest = f64::MAX;
            wait_until("the backend with most flows has less", SOON, || {
                fewest = steady(&stage, &service).map_or(fewest, |now| fewest.min(now));
                share(&stage, &service).is_some_and(|share| share <= 60)
            })?;
            println!("{fewest:.1}% of slots steady at least");
            ensure!(fewest >= 95.0, "{fewest}");
            for held in [evenly, more] {
                let lives = held.stop()?;
                ensure!(lives.broken_per_backend().is_empty(), "{lives}");
            }
            Ok(())
        },
    )
}

#[test]
fn what_an_agent_asks_for_is_followed_by_and_by_and_that_it_wants_nothing_at_once() -> Result<()> {
    with_root(
        "what_an_agent_asks_for_is_followed_by_and_by_and_that_it_wants_nothing_at_once",
        || {
            let topology = Topology::new(BACKENDS)?;
            let agents = topology.backends.iter();
            let agents: Result<Vec<_>> = agents.map(|host| SpokenFor::start(host, AGENT)).collect();
            let agents = agents?;
            let check = format!(
                "{{ type = \"agent\", port = {AGENT}, interval = \"200ms\", timeout = \"150ms\" }}"
            );
            let service =
                Service::new(tcp(vip_v4(2)), "ipip", Health::NONE, v4_pool(backend::PORT))
                    .checked(&[&check])
                    .with("moving_time", "1s");
            let stage = Stage::new(topology, vec![service.clone()])?;
            adapt(&stage, &service, "agent")?;
            wait_until("weights follow", SOON, || {
                share(&stage, &service) == Some(100)
            })?;
            stage.await_slots(&service, Slots::are_steady)?;
            agents[2].say("ready up 40%");
            let (mut fewest, mut most) = (f64::MAX, Vec::new());
            wait_until("the backend has what its agent asks for", SOON, || {
                fewest = steady(&stage, &service).map_or(fewest, |now| fewest.min(now));
                let share = share(&stage, &service);
                most.extend(share);
                share.is_some_and(|share| share <= 55)
            })?;
            most.dedup();
            println!("{most:?}, {fewest:.1}% of slots steady at least");
            ensure!(fewest >= 95.0, "{fewest}");
            // A quarter of itself at a time.
            ensure!(
                most.iter().any(|share| (60..100).contains(share)),
                "{most:?}"
            );
            agents[2].say("0%");
            wait_until("it gets no new flows", SOON, || {
                let answers = stage.answers(&service, 30);
                answers.is_ok_and(|answers| !answers.contains_key(&backend_name(3)))
            })?;
            agents[2].say("100%");
            wait_until("it gets some again", SOON, || {
                let answers = stage.answers(&service, 30);
                answers.is_ok_and(|answers| answers.contains_key(&backend_name(3)))
            })?;
            Ok(())
        },
    )
}

#[test]
fn adaptive_weights_spare_a_server_that_is_four_times_as_slow_and_its_clients() -> Result<()> {
    with_root(
        "adaptive_weights_spare_a_server_that_is_four_times_as_slow_and_its_clients",
        || {
            let pool = v4_pool(queue::PORT);
            let service = Service::new(tcp(vip_v4(1)), "nat", Health::NONE, pool)
                .checked(&[
                    "{ type = \"http\", path = \"/health\", interval = \"1s\", timeout = \"1s\" }",
                ])
                .with("moving_time", "1s");
            let stage = Stage::new(Topology::exclusive(BACKENDS)?, vec![service.clone()])?;
            let mut servers = Vec::new();
            for n in 1..=BACKENDS {
                let takes = if n == 3 { SLOW } else { TAKES };
                let host = stage.topology.backend(n);
                servers.push(QueueServer::start(host, &backend_name(n), takes, ROOM)?);
            }
            for n in 1..=BACKENDS {
                stage.await_condition(&service, (backend_v4(n), queue::PORT).into(), "up")?;
            }
            let (client, target) = (&stage.topology.client, vip(&service)?);
            // Until queues are as long as they get.
            connections_per_second(client, target, RATE, Duration::from_secs(3))?;
            let fixed = noticed(&connections_per_second(client, target, RATE, MEASURED)?)?;
            println!("| as configured {fixed}");
            let load = OpenLoop::start(client, target, RATE)?;
            stage.lbctl(&format!(
                "service set {} --adaptive {ADAPTIVE}",
                service.vip
            ))?;
            let (begun, mut fewest) = (Instant::now(), f64::MAX);
            wait_until(
                "the slow server has the share that it can serve",
                SOON,
                || {
                    if let Ok(slots) = stage.slots(&service) {
                        let all = slots.steady + slots.moving + slots.settling;
                        fewest = fewest.min(f64::from(slots.steady) / f64::from(all));
                    }
                    share(&stage, &service).is_some_and(|share| share <= 45)
                },
            )?;
            println!(
                "followed within {:?}, {:.1}% of slots steady at least",
                begun.elapsed(),
                fewest * 100.0
            );
            load.stop()?;
            sleep(Duration::from_secs(1));
            let adaptive = noticed(&connections_per_second(client, target, RATE, MEASURED)?)?;
            let percent = share(&stage, &service);
            println!("| adaptive {adaptive} its weight: {percent:?}%");
            ensure!(fewest >= 0.95, "{fewest}");
            ensure!(adaptive.p99 * 2 < fixed.p99, "{adaptive:?} {fixed:?}");
            ensure!(
                fixed.failed > 20,
                "{fixed:?}: the slow server was not overloaded"
            );
            ensure!(adaptive.failed * 4 < fixed.failed, "{adaptive:?} {fixed:?}");
            ensure!(adaptive.slow > 0, "{adaptive:?}");
            Ok(())
        },
    )
}
