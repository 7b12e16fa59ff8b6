//! What packets show of backends, with real servers: how soon one that has crashed gets no more flows, who is not
//! blamed, and what becomes of flows. Checks ask once a second, and so are not what finds out.

use std::{collections::BTreeMap, env, net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::RESTARTS,
    config::{Health, Service},
    load::{
        Phase, Report,
        flood::{Flood, Segment},
        handshakes::Handshakes,
        held::Held,
        open_loop::OpenLoop,
    },
    process::run_with_input,
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode, tcp, v4_pool, vip, web, web_address},
    topology::{Topology, backend_name, vip_v4},
    wait::wait_until,
};
use serde_json::Value;
use tokio::time::Instant;

const CHECK: Health = Health {
    interval_ms: 1_000,
    timeout_ms: 500,
    ..Health::HTTP
};
const VICTIM: u8 = 2;
const SOON: Duration = Duration::from_secs(30);

fn stage(service: &Service, topology: Topology) -> Result<Stage> {
    let stage = Stage::new(topology, vec![service.clone()])?;
    for n in 1..=BACKENDS {
        stage.await_condition(service, web_address(n), "up")?;
    }
    Ok(stage)
}

/// A service whose backends answer clients directly.
fn direct() -> Service {
    Service::new(
        tcp(vip_v4(2)),
        "ipip",
        CHECK,
        v4_pool(lb_tests::backend::PORT),
    )
}

fn backend(stage: &Stage, service: &Service, n: u8) -> Result<Value> {
    let backend = stage.backend(service, web_address(n))?;
    backend.context("a backend of the service")
}

fn is_ejected(stage: &Stage, service: &Service, n: u8) -> bool {
    backend(stage, service, n).is_ok_and(|b| b["passive"]["left_ms"].is_number())
}

/// Why a backend is in its state.
fn reason(stage: &Stage, service: &Service, n: u8) -> Result<String> {
    let reason = &backend(stage, service, n)?["standing"]["reason"];
    Ok(reason.as_str().unwrap_or_default().to_owned())
}

/// How many rounds there are: more than these, for figures, by this variable.
fn rounds() -> Result<usize> {
    const VARIABLE: &str = "LB_TEST_ROUNDS";
    const USUAL: usize = 3;
    match env::var(VARIABLE) {
        Ok(text) => {
            let rounds = text.parse().ok().filter(|&rounds| rounds > 0);
            rounds.with_context(|| format!("{VARIABLE} is `{text}`: a number from 1 on"))
        }
        Err(_) => Ok(USUAL),
    }
}

/// New connections at a rate: with a request each, or, where those are too many for sockets, without.
enum Load {
    Requests(OpenLoop),
    Handshakes(Handshakes),
}

impl Load {
    /// More a second than that are handshakes alone.
    const MOST: u32 = 4_000;

    fn start(stage: &Stage, service: &Service, rate: u32) -> Result<Self> {
        let (client, target) = (&stage.topology.client, vip(service)?);
        match target {
            SocketAddr::V4(target) if rate > Self::MOST => {
                Handshakes::start(client, target, rate).map(Self::Handshakes)
            }
            _ => OpenLoop::start(client, target, rate).map(Self::Requests),
        }
    }

    fn stop(self) -> Result<Report> {
        match self {
            Self::Requests(load) => load.stop(),
            Self::Handshakes(load) => load.stop(),
        }
    }
}

/// How long after a crash the last connection began that met the dead backend, in rounds, at this rate of new ones;
/// clients have so long to go on with a handshake.
fn last_flows(
    stage: &mut Stage,
    service: &Service,
    rate: u32,
    handshake: Duration,
) -> Result<Vec<Duration>> {
    let victim = usize::from(VICTIM) - 1;
    let load = Load::start(stage, service, rate)?;
    // The rate is known by then, and with it how many handshakes are watched.
    sleep(Duration::from_millis(2_500));
    let mut crashes = Vec::new();
    for _ in 0..rounds()? {
        let killed = Instant::now();
        stage.servers[victim].kill();
        wait_until("the victim is kept out", SOON, || {
            is_ejected(stage, service, VICTIM)
        })?;
        let why = reason(stage, service, VICTIM)?;
        ensure!(why.starts_with("ejected"), "{why}");
        crashes.push((killed, Instant::now(), why));
        stage.servers[victim].restart()?;
        let_in(stage, service, VICTIM)?;
        // What it shows counts again by then: failures of the first flows are known, and a part of the window has begun.
        sleep(handshake + Duration::from_millis(700));
    }
    let report = load.stop()?;
    let mut last = Vec::new();
    for (killed, until, why) in crashes {
        let met: Vec<Duration> = report
            .failures()
            .filter(|(attempt, failure)| {
                failure.phase == Phase::Connect
                    && attempt.ended >= killed
                    && attempt.started < until
            })
            .map(|(attempt, _)| attempt.started.saturating_duration_since(killed))
            .collect();
        let longest = met.iter().max().copied().unwrap_or_default();
        println!(
            "{:.0} connections a second, {} met the dead backend, the last {longest:?} after the kill; {why}",
            report.rate(),
            met.len(),
        );
        // Else the load was not there to tell.
        ensure!(!met.is_empty(), "no connection met the dead backend");
        last.push(longest);
    }
    last.sort_unstable();
    println!("{} at {rate}/s: {last:?}", service.mode);
    Ok(last)
}

/// Lets a backend in that is kept out and well again, without waiting for its time, and has nothing held against it.
fn let_in(stage: &Stage, service: &Service, n: u8) -> Result<()> {
    for verb in ["up", "undrain"] {
        let (id, address) = (&service.vip, web_address(n));
        stage.lbctl(&format!("backend {verb} {id} {address}"))?;
    }
    wait_until("the victim is back", SOON, || {
        backend(stage, service, n)
            .is_ok_and(|b| b["standing"]["state"] == "up" && b["passive"]["ejections"] == 0)
    })
}

fn median(last: &[Duration]) -> Duration {
    last[last.len() / 2]
}

/// Of all rounds; others may take the processors for longer in a few.
fn ensure_soon(last: &[Duration]) {
    let most = last.iter().max().copied().unwrap_or_default();
    assert!(median(last) <= Duration::from_millis(50), "{last:?}");
    assert!(most <= Duration::from_millis(200), "{last:?}");
}

#[test]
fn a_crashed_server_gets_no_new_flow_after_50_ms_where_its_answers_pass() -> Result<()> {
    with_root(
        "a_crashed_server_gets_no_new_flow_after_50_ms_where_its_answers_pass",
        || {
            let service = web(CHECK).with("passive", "on");
            let mut stage = stage(&service, Topology::exclusive(BACKENDS)?)?;
            let last = last_flows(&mut stage, &service, 1_000, Duration::ZERO)?;
            ensure_soon(&last);
            Ok(())
        },
    )
}

#[test]
fn a_crashed_server_gets_no_new_flow_after_50_ms_in_full_nat() -> Result<()> {
    with_root(
        "a_crashed_server_gets_no_new_flow_after_50_ms_in_full_nat",
        || {
            let pool = v4_pool(lb_tests::backend::PORT);
            let service = Service::new(tcp(vip_v4(7)), "full-nat", CHECK, pool)
                .with("address_pool", "snat")
                .with("passive", "on");
            let mut stage = stage(&service, Topology::exclusive(BACKENDS)?)?;
            let last = last_flows(&mut stage, &service, 1_000, Duration::ZERO)?;
            ensure_soon(&last);
            Ok(())
        },
    )
}

#[test]
fn a_crashed_server_is_found_by_its_clients_handshakes_where_answers_do_not_pass() -> Result<()> {
    with_root(
        "a_crashed_server_is_found_by_its_clients_handshakes_where_answers_do_not_pass",
        || {
            let service = direct().with("passive", "on");
            let mut stage = stage(&service, Topology::exclusive(BACKENDS)?)?;
            for (handshake, rate, most) in [
                (1_000, 100, 2_000),
                (200, 100, 1_200),
                (200, 4_000, 1_200),
                (200, 10_000, 1_200),
            ] {
                println!("passive = \"handshake={handshake}ms\"");
                let id = &service.vip;
                stage.lbctl(&format!(
                    "service set {id} --passive handshake={handshake}ms"
                ))?;
                let handshake = Duration::from_millis(handshake);
                let last = last_flows(&mut stage, &service, rate, handshake)?;
                assert!(median(&last) <= Duration::from_millis(most), "{last:?}");
            }
            Ok(())
        },
    )
}

#[test]
fn a_flood_of_forged_syns_has_nobody_kept_out_but_a_dead_server_under_it() -> Result<()> {
    with_root(
        "a_flood_of_forged_syns_has_nobody_kept_out_but_a_dead_server_under_it",
        || {
            let service = direct().with("passive", "on");
            let mut stage = stage(&service, Topology::exclusive(BACKENDS)?)?;
            let SocketAddr::V4(target) = vip(&service)? else {
                unreachable!("the service has an IPv4 address")
            };
            let client = &stage.topology.client;
            let load = OpenLoop::start(client, vip(&service)?, 1_000)?;
            let flood = Flood::start(client, target, Segment::Syn, 9_000)?;
            sleep(Duration::from_secs(8));
            for n in 1..=BACKENDS {
                let shown = backend(&stage, &service, n)?;
                println!("{}", shown["passive"]);
                assert!(
                    !is_ejected(&stage, &service, n),
                    "{}",
                    reason(&stage, &service, n)?
                );
                assert_eq!(shown["passive"]["ejections"], 0, "{shown}");
                let missed = shown["passive"]["missed"].as_u64();
                assert!(missed > Some(100), "the flood is not seen: {shown}");
            }
            let killed = Instant::now();
            stage.servers[usize::from(VICTIM) - 1].kill();
            wait_until("the victim is down", SOON, || {
                backend(&stage, &service, VICTIM).is_ok_and(|b| b["standing"]["state"] == "down")
            })?;
            println!(
                "{:?} after the kill: {}",
                killed.elapsed(),
                reason(&stage, &service, VICTIM)?
            );
            let (sent, report) = (flood.stop()?, load.stop()?);
            println!("{sent} forged; {report}");
            Ok(())
        },
    )
}

/// Web services in every mode in which answers do not pass, and every pair of families that backends and VIPs are of.
fn every_direct_mode(passive: &str) -> Vec<Service> {
    every_mode()
        .into_iter()
        .filter(|service| !service.is_translated())
        .map(|service| Service {
            health: Health::NONE,
            ..service.with("passive", passive)
        })
        .collect()
}

/// What is told of the victim in a service, whichever of its addresses that has.
fn victim_of(stage: &Stage, service: &Service) -> Result<Value> {
    let (at, _) = service.backends[usize::from(VICTIM) - 1];
    let backend = stage.backend(service, at)?;
    backend.context("a backend of the service")
}

/// Waits until the victim is kept out of every service; why it is, in each.
fn await_ejections(stage: &Stage, services: &[Service]) -> Result<Vec<Value>> {
    let kept_out = |service: &Service| {
        let victim = victim_of(stage, service)?;
        ensure!(victim["passive"]["left_ms"].is_number(), "{victim}");
        Ok(victim)
    };
    services
        .iter()
        .map(|service| {
            wait_until(
                &format!("the victim is kept out of {}", service.vip),
                SOON,
                || kept_out(service).is_ok(),
            )?;
            kept_out(service)
        })
        .collect()
}

/// Clients of each service open so many connections a second.
fn loads(stage: &Stage, services: &[Service], rate: u32) -> Result<Vec<OpenLoop>> {
    let client = &stage.topology.client;
    let each = services.iter();
    each.map(|service| OpenLoop::start(client, vip(service)?, rate))
        .collect()
}

/// Nobody is kept out but the victim.
fn ensure_others_serve(stage: &Stage, services: &[Service]) -> Result<()> {
    for service in services {
        for (n, &(at, _)) in (1..).zip(&service.backends) {
            let backend = stage.backend(service, at)?.context("a backend")?;
            let out = backend["passive"]["left_ms"].is_number();
            ensure!(out == (n == VICTIM), "{}: {backend}", service.vip);
        }
    }
    Ok(())
}

#[test]
fn a_crashed_server_is_found_in_every_mode_and_family_in_which_its_answers_do_not_pass()
-> Result<()> {
    with_root(
        "a_crashed_server_is_found_in_every_mode_and_family_in_which_its_answers_do_not_pass",
        || {
            let services = every_direct_mode("handshake=300ms");
            assert_eq!(services.len(), 10);
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            let loads = loads(&stage, &services, 40)?;
            sleep(Duration::from_secs(2));
            stage.servers[usize::from(VICTIM) - 1].kill();
            let killed = Instant::now();
            for (service, victim) in services.iter().zip(await_ejections(&stage, &services)?) {
                let why = victim["standing"]["reason"].as_str().unwrap_or_default();
                println!(
                    "{} {}: {:?}, {why}",
                    service.mode,
                    service.vip,
                    killed.elapsed()
                );
                assert!(why.contains("handshakes were not answered"), "{why}");
                // Its host is there, and takes what tunnels bring.
                assert_eq!(victim["passive"]["unreachable"], 0, "{victim}");
            }
            ensure_others_serve(&stage, &services)?;
            for load in loads {
                load.stop()?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_host_that_says_that_nobody_takes_its_tunnels_packets_is_kept_out_for_that() -> Result<()> {
    with_root(
        "a_host_that_says_that_nobody_takes_its_tunnels_packets_is_kept_out_for_that",
        || {
            let mut services = every_direct_mode("handshake=2s");
            services.retain(Service::is_tunnelled);
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            // Errors to one host are one a second otherwise, for all of its services together.
            for key in ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"] {
                let mut sysctl = stage.topology.backend(VICTIM).command("sysctl");
                let set = sysctl.args(["-q", "-w", key]).status()?;
                ensure!(set.success(), "{key}");
            }
            let loads = loads(&stage, &services, 40)?;
            // Until what the backends show counts.
            sleep(Duration::from_secs(4));
            stage.detach_tunnel(VICTIM)?;
            let detached = Instant::now();
            for (service, victim) in services.iter().zip(await_ejections(&stage, &services)?) {
                let why = victim["standing"]["reason"].as_str().unwrap_or_default();
                println!(
                    "{} {}: {:?}, {why}",
                    service.mode,
                    service.vip,
                    detached.elapsed()
                );
                assert!(why.contains("handshakes were not answered"), "{why}");
                let shown = &victim["passive"];
                let (unreachable, missed) = (&shown["unreachable"], &shown["missed"]);
                assert!(unreachable.as_u64() > Some(0), "{shown}");
                // Clients who send their SYNs again later have been counted by then.
                assert_eq!(missed, unreachable, "{shown}");
            }
            ensure_others_serve(&stage, &services)?;
            for load in loads {
                load.stop()?;
            }
            Ok(())
        },
    )
}

/// A firewall of a backend refuses new connections, until it is told otherwise; others go on.
fn refuse_new(stage: &Stage, n: u8, refuse: bool) -> Result<()> {
    let rules = match refuse {
        true => {
            "table ip passive {\n chain new {\n  type filter hook input priority 0;\n  \
             tcp dport 80 tcp flags & (syn | ack) == syn reject with tcp reset\n }\n}\n"
        }
        false => "delete table ip passive\n",
    };
    let mut nft = stage.topology.backend(n).command("nft");
    run_with_input(nft.args(["-f", "-"]), rules)?;
    Ok(())
}

#[test]
fn who_is_kept_out_keeps_its_connections_and_comes_back_once_it_accepts_new_ones() -> Result<()> {
    with_root(
        "who_is_kept_out_keeps_its_connections_and_comes_back_once_it_accepts_new_ones",
        || {
            let service = web(Health::NONE).with("passive", "ejection=2s");
            let stage = stage(&service, Topology::new(BACKENDS)?)?;
            let client = &stage.topology.client;
            let held = Held::open(client, vip(&service)?, 60, Duration::from_millis(200))?;
            let load = OpenLoop::start(client, vip(&service)?, 200)?;
            refuse_new(&stage, VICTIM, true)?;
            wait_until("the victim is kept out", SOON, || {
                is_ejected(&stage, &service, VICTIM)
            })?;
            let why = reason(&stage, &service, VICTIM)?;
            assert!(why.contains("in a row were refused"), "{why}");
            let list = stage.agent.lbctl(&["backend", "list"])?.succeeded()?;
            assert!(list.contains("ejected for 2s"), "{list}");
            let events = stage.agent.lbctl(&["events"])?.succeeded()?;
            assert!(events.contains("ejected for 2s"), "{events}");
            refuse_new(&stage, VICTIM, false)?;
            wait_until("the victim is back", SOON, || {
                !is_ejected(&stage, &service, VICTIM)
            })?;
            let answers = stage.answers(&service, 300)?;
            assert_eq!(answers.len(), usize::from(BACKENDS), "{answers:?}");
            println!("{}", load.stop()?);
            let lives = held.stop()?;
            println!("{lives}");
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}

#[test]
fn who_is_kept_out_stays_so_over_restarts_of_the_agent_though_its_checks_pass() -> Result<()> {
    with_root(
        "who_is_kept_out_stays_so_over_restarts_of_the_agent_though_its_checks_pass",
        || {
            let service = web(CHECK).with("passive", "ejection=5m");
            let mut stage = stage(&service, Topology::new(BACKENDS)?)?;
            let client = stage.topology.client.clone();
            let held = Held::open(&client, vip(&service)?, 60, Duration::from_millis(200))?;
            let load = OpenLoop::start(&client, vip(&service)?, 200)?;
            refuse_new(&stage, VICTIM, true)?;
            wait_until("the victim is kept out", SOON, || {
                is_ejected(&stage, &service, VICTIM)
            })?;
            refuse_new(&stage, VICTIM, false)?;
            load.stop()?;
            for restart in RESTARTS {
                stage
                    .agent
                    .await_history("connections in a row were refused")?;
                restart(&mut stage.agent)?;
                for n in 1..=BACKENDS {
                    stage.await_condition(&service, web_address(n), "up")?;
                }
                let why = reason(&stage, &service, VICTIM)?;
                // Three, or as many as came before the agent looked.
                let told = why.strip_prefix("ejected for 5m: ");
                let told = told.and_then(|told| told.split_once(' '));
                let refused = "connections in a row were refused";
                assert!(told.is_some_and(|(_, what)| what == refused), "{why}");
                let left = &backend(&stage, &service, VICTIM)?["passive"]["left_ms"];
                println!("{left} ms are left; {why}");
                assert!(left.as_u64().is_some_and(|left| left < 300_000), "{left}");
                let answers = stage.answers(&service, 300)?;
                assert_eq!(answers.get(&backend_name(VICTIM)), None, "{answers:?}");
                assert_eq!(answers.len(), 2, "{answers:?}");
            }
            let lives = held.stop()?;
            assert!(lives.per_backend()[&backend_name(VICTIM)] > 0);
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}
