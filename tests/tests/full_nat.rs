//! Mode `full-nat` as users meet it: backends that have no way back to clients, ports that run out and come again, and
//! an agent that is restarted with another pool.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::tables::feature;
use lb_tests::{
    bench::{
        balancer::Balancer,
        frame::{Frame, Payload, flags},
        harness::action,
        services::{ADDRESS_POOL, Also, Guarded, Kind, Pool},
    },
    capture::{Capture, Direction},
    config::{Config, Health, Service},
    dissect::dissect,
    load::{Checksum, held::Held, udp_requests},
    skip::with_root,
    stage::{BACKENDS, Stage, UDP_PORT, address_pool, full_nat, tcp, v4_pool, v6_pool, vip},
    topology::{
        BALANCER_V4, BALANCER_V6, CLIENT_V4, INTERFACE, POOL_V4, POOL_V6, Topology, backend_name,
        backend_v4, backend_v6, vip_v4, vip_v6,
    },
    udp::UdpEcho,
    wait::wait_until,
};
use lb_userspace::{
    dataplane::{Capacity, Dataplane as _, bpf::LoadOptions},
    model::{AddressPool, FlowState, Mode, Scheduler, ServiceId},
};
use nix::sys::socket::{setsockopt, sockopt};

const SOON: Duration = Duration::from_secs(60);
const WEB: u16 = lb_tests::backend::PORT;

/// Of both families: a web service each, and one of datagrams.
fn services() -> Vec<Service> {
    let udp = |vip: IpAddr, backends: Vec<SocketAddr>| Service {
        health: Health::NONE,
        ..full_nat(format!("{}/udp", SocketAddr::new(vip, UDP_PORT)), backends)
    };
    vec![
        full_nat(tcp(vip_v4(7)), v4_pool(WEB)),
        full_nat(tcp(vip_v6(7)), v6_pool(WEB)),
        udp(vip_v4(7).into(), v4_pool(UDP_PORT).collect()),
        udp(vip_v6(7).into(), v6_pool(UDP_PORT).collect()),
    ]
}

fn echoes(stage: &Stage) -> Result<Vec<UdpEcho>> {
    let echo = |n: u8| {
        let own = [IpAddr::from(backend_v4(n)), backend_v6(n).into()];
        let own = own.map(|address| SocketAddr::new(address, UDP_PORT));
        UdpEcho::start(stage.topology.backend(n), &backend_name(n), &own)
    };
    (1..=BACKENDS).map(echo).collect()
}

#[test]
fn backends_without_a_way_to_the_client_answer_it() -> Result<()> {
    with_root("backends_without_a_way_to_the_client_answer_it", || {
        let services = services();
        let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
        let _echoes = echoes(&stage)?;
        for n in 1..=BACKENDS {
            stage.topology.isolate(n)?;
            let to = SocketAddr::from((CLIENT_V4, 9));
            let lost = stage.topology.backend(n).run(|| TcpStream::connect(to));
            ensure!(lost.is_err_and(|e| e.kind() == ErrorKind::NetworkUnreachable));
        }
        for service in &services {
            if service.vip.ends_with("/udp") {
                let client = &stage.topology.client;
                let report = udp_requests(client, vip(service)?, 300, Checksum::Present)?;
                ensure!(stage.all_answered(service, &report)?.len() == 3);
            } else {
                ensure!(stage.answers(service, 300)?.len() == 3);
            }
            let shown = stage.shown(service)?;
            ensure!(shown["address_pool"] == "snat", "{shown}");
        }
        Ok(())
    })
}

#[test]
fn ports_that_run_out_are_counted_and_answered_and_come_again() -> Result<()> {
    with_root(
        "ports_that_run_out_are_counted_and_answered_and_come_again",
        || {
            let one = |service: Service| {
                let service = Service {
                    health: Health::NONE,
                    backends: service.backends[..1].to_vec(),
                    ..service
                };
                service
                    .with("no_backend", "reset")
                    .with("moving_time", "2s")
            };
            let web = one(full_nat(tcp(vip_v4(7)), v4_pool(WEB)));
            let echo = one(full_nat(
                format!("{}:{UDP_PORT}/udp", vip_v4(7)),
                v4_pool(UDP_PORT),
            ));
            let config = Config {
                address_pools: vec![address_pool("2000-2003")],
                ..vec![web.clone(), echo.clone()].into()
            };
            let stage = Stage::new(Topology::new(BACKENDS)?, config)?;
            let _echoes = echoes(&stage)?;
            let client = &stage.topology.client;
            let (to_web, to_echo) = (vip(&web)?, vip(&echo)?);
            let open = || client.run(|| TcpStream::connect_timeout(&to_web, SOON));
            let held: Vec<TcpStream> = (0..8).filter_map(|_| open().ok()).collect();
            ensure!(
                (1..=4).contains(&held.len()),
                "{} with four ports",
                held.len()
            );
            let refused = open().err().context("a fifth")?;
            ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{refused}");
            ensure!(stage.counted(&web, "ports_exhausted")? >= 4);
            let status = stage.agent.lbctl_json(&["status"])?;
            ensure!(
                status["drops"]["ports_exhausted"].as_u64() >= Some(4),
                "{status}"
            );
            wait_until("the sweep has seen them", SOON, || {
                stage
                    .counted(&web, "sessions")
                    .is_ok_and(|n| n == held.len() as u64)
            })?;
            // The same ports at another endpoint are others.
            let report = udp_requests(client, to_echo, 1, Checksum::Present)?;
            ensure!(report.succeeded() == 1, "{report}");
            // By a reset, after which nothing has to be held for long.
            let at_once = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            for stream in held {
                setsockopt(&stream, sockopt::Linger, &at_once)?;
            }
            wait_until("ports come again", SOON, || open().is_ok())?;
            let each = || udp_requests(client, to_echo, 1, Checksum::Present);
            wait_until("datagrams find a port after the idle time", SOON, || {
                each().is_ok_and(|report| report.succeeded() == 1)
            })
        },
    )
}

#[test]
fn connections_outlive_a_restart_with_another_pool() -> Result<()> {
    with_root("connections_outlive_a_restart_with_another_pool", || {
        let service = full_nat(tcp(vip_v4(7)), v4_pool(WEB));
        let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
        let client = stage.topology.client.clone();
        let held = Held::open(&client, vip(&service)?, 50, Duration::from_millis(200))?;
        let other = address_pool("3000-4999").replace(&POOL_V4.to_string(), "10.2.0.202");
        let config = Config {
            address_pools: vec![other.replace("snat", "other")],
            ..vec![
                Service {
                    keys: Vec::new(),
                    ..service.clone()
                }
                .with("address_pool", "other"),
            ]
            .into()
        };
        stage.agent.write_config(&config)?;
        stage.topology.own_v4("10.2.0.202".parse()?)?;
        stage.agent.restart()?;
        let capture = Capture::start(stage.topology.backend(1), INTERFACE, Direction::Received)?;
        stage.answers(&service, 60)?;
        let both = [IpAddr::from(POOL_V4), "10.2.0.202".parse()?];
        let mut sources = BTreeSet::new();
        wait_until("flows from before and since are under way", SOON, || {
            sources.extend(web_sources(&capture).unwrap_or_default());
            both.iter().all(|address| sources.contains(address))
        })?;
        ensure!(sources == both.into(), "{sources:?}");
        let lives = held.stop()?;
        ensure!(lives.broken_per_backend().is_empty(), "{lives}");
        Ok(())
    })
}

/// Where requests came from that have been captured, probes left out.
fn web_sources(capture: &Capture) -> Result<BTreeSet<IpAddr>> {
    let mut sources = BTreeSet::new();
    for frame in capture.take()? {
        if let Some(packet) = dissect(&frame)?
            && packet.segment.destination_port == WEB
            && packet.ip.source != IpAddr::from(BALANCER_V4)
        {
            sources.insert(packet.ip.source);
        }
    }
    Ok(sources)
}

#[test]
fn syns_tell_the_client_and_connections_work_with_that() -> Result<()> {
    with_root(
        "syns_tell_the_client_and_connections_work_with_that",
        || {
            let tells = |service: Service| service.with("client_address", "tcp-option");
            let services = vec![
                tells(full_nat(tcp(vip_v4(7)), v4_pool(WEB).take(1))),
                tells(full_nat(tcp(vip_v6(7)), v6_pool(WEB).take(1))),
            ];
            let stage = Stage::new(Topology::new(1)?, services.clone())?;
            let capture =
                Capture::start(stage.topology.backend(1), INTERFACE, Direction::Received)?;
            for service in &services {
                stage.answers(service, 20)?;
                ensure!(stage.counted(service, "untold")? == 0);
            }
            let mut told = [0, 0];
            for frame in capture.take()? {
                let Some(packet) = dissect(&frame)? else {
                    continue;
                };
                let v4 = packet.ip.source.is_ipv4();
                let ip = if v4 { 34 } else { 54 };
                let is_syn = frame.get(ip + 13).is_some_and(|flags| flags & 0x12 == 2);
                let pool = [IpAddr::from(POOL_V4), POOL_V6.into()].contains(&packet.ip.source);
                if !is_syn || !pool {
                    ensure!(
                        pool || [IpAddr::from(BALANCER_V4), BALANCER_V6.into()]
                            .contains(&packet.ip.source),
                        "{packet:?}"
                    );
                    continue;
                }
                let option = &frame[ip + 20..];
                ensure!(option[..2] == [254, if v4 { 8 } else { 20 }], "{option:?}");
                let client = match v4 {
                    true => CLIENT_V4.octets().to_vec(),
                    false => lb_tests::topology::CLIENT_V6.octets().to_vec(),
                };
                ensure!(option[4..4 + client.len()] == client, "{option:?}");
                told[usize::from(!v4)] += 1;
            }
            ensure!(told == [20, 20], "{told:?}");
            Ok(())
        },
    )
}

/// Flows that several processors begin at once, half as many again as there are ports.
const FLOWS: u64 = 3_000;
const PORTS: (u16, u16) = (1, 2_000);

/// A loaded program with one service, of one backend and one address.
fn loaded() -> Result<(Balancer, SocketAddr)> {
    let mut balancer = Balancer::load(&LoadOptions {
        pins: None,
        capacity: Capacity {
            services: 4,
            backends: 16,
            members: 64,
            slots: 1 << 12,
            sessions: 1 << 16,
            ..Capacity::default()
        },
        features: feature::ALL,
        log_level: 0,
    })?;
    let pool = AddressPool::new(ADDRESS_POOL, ["10.254.0.1".parse()?], PORTS)?;
    balancer.core.offer_pools([pool])?;
    let kind = Kind {
        mode: Mode::FullNat,
        scheduler: Scheduler::Maglev,
        flow_state: FlowState::Auto,
        ring_size: Some(251),
        pool: Pool {
            number: 2,
            backends: 1,
            v6: false,
        },
        quic: None,
        guarded: Guarded::Open,
        also: Also::Nothing,
    };
    let id: ServiceId = "10.0.0.9:80/tcp".parse()?;
    balancer.serve(vec![kind.service(id)?])?;
    Ok((balancer, id.vip))
}

/// The flows that were forwarded, of all, by their numbers.
fn begin_all(program: &Xdp, vip: SocketAddr) -> Result<BTreeSet<u64>> {
    let frame = Frame::new(vip, Payload::Tcp(flags::SYN), 0, 1);
    let mut forwarded = BTreeSet::new();
    for flow in 0..FLOWS {
        let mut out = [0; 128];
        let run = program.test_run(TestRunOptions {
            data_in: Some(&frame.at(flow)),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        if run.return_value == action::TX {
            forwarded.insert(flow);
        }
    }
    Ok(forwarded)
}

#[test]
fn no_port_is_two_flows_and_none_is_lost_where_processors_begin_them_at_once() -> Result<()> {
    with_root(
        "no_port_is_two_flows_and_none_is_lost_where_processors_begin_them_at_once",
        || {
            let (mut balancer, vip) = loaded()?;
            let program: &Xdp = balancer.program.xdp()?;
            let begun: Vec<BTreeSet<u64>> = thread::scope(|scope| {
                let each = || begin_all(program, vip);
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(each)).collect();
                let results = threads.into_iter().map(|thread| thread.join());
                results
                    .map(|result| result.map_err(|_| anyhow::anyhow!("a panic"))?)
                    .collect::<Result<_>>()
            })?;
            let mut tables = balancer.core.dataplane().flow_tables()?;
            let (mut sessions, mut ports) = (Vec::new(), std::collections::BTreeMap::new());
            tables.scan_sessions(&mut |key, session| sessions.push((*key, *session)))?;
            tables.scan_ports(&mut |key, flow| {
                ports.insert(*key, *flow);
            })?;
            let forwarded: BTreeSet<u64> = begun.into_iter().flatten().collect();
            println!(
                "{FLOWS} flows, {} sessions, {} ports",
                sessions.len(),
                ports.len()
            );
            ensure!(sessions.len() == forwarded.len());
            ensure!(sessions.len() > 1_900 && sessions.len() <= 2_000);
            ensure!(ports.len() == sessions.len());
            for (flow, session) in sessions {
                ensure!(ports.get(&session.port_key()) == Some(&flow), "{session:?}");
            }
            let census = balancer.core.sweep()?.run()?;
            ensure!(
                census.released == 0,
                "{} ports were nobody's",
                census.released
            );
            Ok(())
        },
    )
}
