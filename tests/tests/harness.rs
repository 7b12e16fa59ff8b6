//! The harness itself: what the other tests rely on holds, and nothing is left behind.

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{
    backend::{self, Backend},
    bpffs::Bpffs,
    load::{
        Checksum, Phase, Reason,
        held::Held,
        http::{After, Connection},
        numbered::{Receiver, Sender, settle},
        open_loop::{OpenLoop, connections_per_second},
        requests, udp_requests,
    },
    netns::{self, Namespace},
    process::{Process, run},
    skip::with_root,
    topology::{Topology, backend_name, backend_v4, backend_v6, vip_v4, vip_v6},
    udp::UdpEcho,
    wait::{wait_ok, wait_until},
};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(5);
const UDP_PORT: u16 = 9_000;

fn at(address: impl Into<IpAddr>) -> SocketAddr {
    (address, backend::PORT).into_socket()
}

trait IntoSocket {
    fn into_socket(self) -> SocketAddr;
}

impl<A: Into<IpAddr>> IntoSocket for (A, u16) {
    fn into_socket(self) -> SocketAddr {
        SocketAddr::new(self.0.into(), self.1)
    }
}

#[test]
fn client_reaches_backends_through_the_balancers_kernel_in_both_families() -> Result<()> {
    with_root(
        "client_reaches_backends_through_the_balancers_kernel_in_both_families",
        || {
            let topology = Topology::new(2)?;
            for n in 1..=2 {
                for address in [IpAddr::from(backend_v4(n)), backend_v6(n).into()] {
                    let mut ping = topology.client.command("ping");
                    let ping = run(ping.args(["-c1", "-W2", &address.to_string()]))?;
                    let hops = if address.is_ipv4() {
                        "ttl=63"
                    } else {
                        "hlim=63"
                    };
                    let forwarded = ping.contains(hops) || ping.contains("ttl=63");
                    assert!(
                        forwarded,
                        "{address} did not answer through the balancer: {ping}"
                    );
                }
            }
            Ok(())
        },
    )
}

#[test]
fn a_vip_on_a_backends_loopback_is_not_answered_for_on_the_segment() -> Result<()> {
    with_root(
        "a_vip_on_a_backends_loopback_is_not_answered_for_on_the_segment",
        || {
            let topology = Topology::new(1)?;
            topology.accept_vips(&[vip_v4(1).into(), vip_v6(1).into()])?;
            let route = "route add 10.0.0.1 dev eth0\nroute add fd00::1 dev eth0\n";
            for line in route.lines() {
                let mut ip = topology.balancer.command("ip");
                run(ip.args(line.split(' ')))?;
            }
            for vip in ["10.0.0.1", "fd00::1"] {
                let mut ping = topology.balancer.command("ping");
                assert!(
                    run(ping.args(["-c1", "-W1", vip])).is_err(),
                    "{vip} was answered for"
                );
            }
            Ok(())
        },
    )
}

#[test]
fn a_backend_answers_from_a_vip_straight_to_the_client() -> Result<()> {
    with_root(
        "a_backend_answers_from_a_vip_straight_to_the_client",
        || {
            let topology = Topology::new(1)?;
            topology.accept_vips(&[vip_v4(1).into(), vip_v6(1).into()])?;
            for (address, vip) in [("10.1.0.10", "10.0.0.1"), ("fd00:1::10", "fd00::1")] {
                let mut route = topology.backend(1).command("ip");
                let route = run(route.args(["route", "get", address, "from", vip]))?;
                assert!(
                    route.contains("dev eth0") && !route.contains("via"),
                    "{route}"
                );
                let mut route = topology.backend(1).command("ip");
                let route = run(route.args(["route", "get", address]))?;
                assert!(route.contains("via"), "{route}");
            }
            Ok(())
        },
    )
}

#[test]
fn nginx_answers_its_name_and_refuses_once_killed_until_restarted() -> Result<()> {
    with_root(
        "nginx_answers_its_name_and_refuses_once_killed_until_restarted",
        || {
            let topology = Topology::new(1)?;
            let mut backend = Backend::start(topology.backend(1), "backend1")?;
            let targets = [at(backend_v4(1)), at(backend_v6(1))];
            for target in targets {
                let report = requests(&topology.client, target, 5)?;
                assert_eq!(
                    report.per_backend(),
                    [("backend1".into(), 5)].into(),
                    "{report}"
                );
            }
            backend.kill();
            for target in targets {
                let report = requests(&topology.client, target, 5)?;
                assert_eq!(report.failures().count(), 5, "{report}");
                for (_, failure) in report.failures() {
                    assert_eq!(
                        (failure.phase, &failure.reason),
                        (Phase::Connect, &Reason::Refused)
                    );
                }
            }
            backend.restart()?;
            let report = requests(&topology.client, targets[0], 5)?;
            assert_eq!(report.succeeded(), 5, "{report}");
            Ok(())
        },
    )
}

#[test]
fn a_large_answer_arrives_whole() -> Result<()> {
    with_root("a_large_answer_arrives_whole", || {
        let topology = Topology::new(1)?;
        let _backend = Backend::start(topology.backend(1), "backend1")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let body = topology.client.run(|| {
            runtime.block_on(async {
                let mut connection = Connection::open(at(backend_v6(1))).await?;
                connection.get("/large", After::Close).await
            })
        });
        let body = body.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        assert_eq!(body.len(), backend::LARGE);
        assert!((0..body.len()).all(|at| body[at] == b'a' + (at % 23) as u8));
        Ok(())
    })
}

#[test]
fn a_silenced_backend_times_out_and_comes_back() -> Result<()> {
    with_root("a_silenced_backend_times_out_and_comes_back", || {
        let topology = Topology::new(1)?;
        let _backend = Backend::start(topology.backend(1), "backend1")?;
        let target = at(backend_v4(1));
        assert_eq!(requests(&topology.client, target, 1)?.succeeded(), 1);
        topology.silence(1)?;
        let report = requests(&topology.client, target, 1)?;
        let (_, failure) = report
            .failures()
            .next()
            .context("a silenced backend answered")?;
        assert_eq!(
            (failure.phase, &failure.reason),
            (Phase::Connect, &Reason::TimedOut)
        );
        topology.unsilence(1)?;
        wait_ok("the backend is back", SOON, || {
            let answered = requests(&topology.client, target, 1)?.succeeded();
            anyhow::ensure!(answered == 1);
            Ok(())
        })
    })
}

#[test]
fn the_open_loop_sustains_a_thousand_connections_a_second() -> Result<()> {
    with_root(
        "the_open_loop_sustains_a_thousand_connections_a_second",
        || {
            let topology = Topology::exclusive(1)?;
            let _backend = Backend::start(topology.backend(1), "backend1")?;
            let two_seconds = Duration::from_secs(2);
            let report =
                connections_per_second(&topology.client, at(backend_v4(1)), 1_000, two_seconds)?;
            println!("{report}, slowest {:?}", report.slowest());
            assert_eq!(report.failures().count(), 0, "{report}");
            assert!((950.0..1050.0).contains(&report.rate()), "{report}");
            Ok(())
        },
    )
}

#[test]
fn the_open_loop_dates_failures_by_their_start() -> Result<()> {
    with_root("the_open_loop_dates_failures_by_their_start", || {
        let topology = Topology::new(1)?;
        let mut backend = Backend::start(topology.backend(1), "backend1")?;
        let load = OpenLoop::start(&topology.client, at(backend_v4(1)), 200)?;
        let half = Duration::from_millis(500);
        thread::sleep(half);
        let killed = Instant::now();
        backend.kill();
        thread::sleep(half);
        backend.restart()?;
        let revived = Instant::now();
        thread::sleep(half);
        let report = load.stop()?;
        // Those that began before were under way when it was killed.
        let mut failures = report.failures();
        assert!(
            failures.all(|(attempt, _)| attempt.ended >= killed),
            "{report}"
        );
        let (before, after) = report.failures_around(killed);
        assert!(after >= 80, "{before} before, {after} after: {report}");
        let last = report.last_failure_started().context("no failure")?;
        assert!(
            last <= revived,
            "a failure {:?} after the revival",
            last - revived
        );
        assert!(
            report
                .attempts
                .iter()
                .any(|attempt| attempt.started > revived)
        );
        Ok(())
    })
}

#[test]
fn held_connections_break_only_at_the_backend_that_dies() -> Result<()> {
    with_root(
        "held_connections_break_only_at_the_backend_that_dies",
        || {
            let topology = Topology::new(2)?;
            let mut backends = Backend::start_all(&topology)?;
            let period = Duration::from_millis(100);
            let first = Held::open(&topology.client, at(backend_v4(1)), 100, period)?;
            let second = Held::open(&topology.client, at(backend_v6(2)), 100, period)?;
            backends[0].kill();
            wait_until("all 100 notice", SOON, || first.broken() == 100)?;
            assert_eq!(second.alive(), 100);
            let (first, second) = (first.stop()?, second.stop()?);
            assert_eq!(
                first.broken_per_backend(),
                [("backend1".into(), 100)].into(),
                "{first}"
            );
            assert!(first.broken_elsewhere("backend1").is_empty());
            assert!(second.broken_per_backend().is_empty(), "{second}");
            assert!(second.exchanges() > 100, "{second}");
            Ok(())
        },
    )
}

#[test]
fn numbered_datagrams_all_arrive_where_nothing_is_lost() -> Result<()> {
    with_root(
        "numbered_datagrams_all_arrive_where_nothing_is_lost",
        || {
            let topology = Topology::exclusive(1)?;
            let receiver = Receiver::start(topology.backend(1), "backend1", UDP_PORT)?;
            let target = SocketAddr::new(backend_v4(1).into(), UDP_PORT);
            let sender = Sender::start(&topology.client, target, 50_000, 16)?;
            let started = Instant::now();
            wait_until("100,000 datagrams", SOON, || receiver.count() >= 100_000)?;
            let took = started.elapsed();
            let delivery = settle(sender, vec![receiver])?;
            println!("{delivery}, 100,000 in {took:?}");
            assert_eq!(
                delivery.missing(),
                0,
                "{delivery}, {:?}",
                topology.link_drops()?
            );
            assert_eq!(
                (delivery.duplicated, delivery.reordered),
                (0, 0),
                "{delivery}"
            );
            // Never faster than asked; how much slower is the machine's affair, and printed.
            assert!(took > Duration::from_millis(1_900));
            Ok(())
        },
    )
}

#[test]
fn numbered_datagrams_find_and_date_what_a_dead_link_loses() -> Result<()> {
    with_root(
        "numbered_datagrams_find_and_date_what_a_dead_link_loses",
        || {
            let topology = Topology::new(1)?;
            let receiver = Receiver::start(topology.backend(1), "backend1", UDP_PORT)?;
            let target = SocketAddr::new(backend_v6(1).into(), UDP_PORT);
            let sender = Sender::start(&topology.client, target, 5_000, 1)?;
            let arrive = |more: u64| {
                let goal = receiver.count() + more;
                wait_until("datagrams arrive", SOON, || receiver.count() >= goal)
            };
            arrive(500)?;
            let silenced = Instant::now();
            topology.silence(1)?;
            topology.unsilence(1)?;
            arrive(500)?;
            let delivery = settle(sender, vec![receiver])?;
            assert!(delivery.missing() > 0, "{delivery}");
            let first = delivery.gaps.first().context("no gap")?;
            let slack = Duration::from_millis(100);
            assert!(
                first.at + slack > silenced && first.at < silenced + slack,
                "{first:?}"
            );
            Ok(())
        },
    )
}

#[test]
fn udp_servers_answer_from_the_address_that_was_asked() -> Result<()> {
    with_root("udp_servers_answer_from_the_address_that_was_asked", || {
        let topology = Topology::new(2)?;
        let addresses = |n| {
            [IpAddr::from(backend_v4(n)), backend_v6(n).into()]
                .map(|address| SocketAddr::new(address, UDP_PORT))
        };
        let _servers = (1..=2)
            .map(|n| UdpEcho::start(topology.backend(n), &backend_name(n), &addresses(n)))
            .collect::<Result<Vec<_>>>()?;
        for n in 1..=2 {
            for target in addresses(n) {
                let report = udp_requests(&topology.client, target, 10, Checksum::Present)?;
                assert_eq!(
                    report.per_backend(),
                    [(backend_name(n), 10)].into(),
                    "{report}"
                );
            }
        }
        let closed = SocketAddr::new(backend_v4(1).into(), UDP_PORT + 1);
        let report = udp_requests(&topology.client, closed, 1, Checksum::Present)?;
        let (_, failure) = report.failures().next().context("a closed port answered")?;
        assert_eq!(failure.reason, Reason::TimedOut);
        Ok(())
    })
}

#[test]
fn nothing_is_left_after_a_panic() -> Result<()> {
    with_root("nothing_is_left_after_a_panic", || {
        let (mut names, mut pid, mut pins) = (Vec::new(), 0, None);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let topology = Topology::new(1).expect("a topology");
            let mut sleep = topology.backend(1).command("sleep");
            sleep.arg("1000");
            let sleeper = Process::spawn("sleep", sleep).expect("sleep");
            let bpffs = Bpffs::unique().expect("a BPF file system");
            names.extend([&topology.client, &topology.switch].map(|ns| ns.name().to_owned()));
            names.push(topology.backend(1).name().to_owned());
            pid = sleeper.id();
            pins = Some(bpffs.path().to_owned());
            panic!("on purpose");
        }));
        assert!(outcome.is_err());
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| !netns::exists(name)), "{names:?}");
        assert!(netns::is_gone(pid));
        assert!(!pins.context("no BPF file system was made")?.exists());
        Ok(())
    })
}

#[test]
fn processes_inside_a_namespace_die_with_it() -> Result<()> {
    with_root("processes_inside_a_namespace_die_with_it", || {
        let namespace = Namespace::unique("doomed")?;
        let mut child = namespace.command("sleep").arg("1000").spawn()?;
        drop(namespace);
        let status = child.wait()?;
        assert!(!status.success(), "{status}");
        Ok(())
    })
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next() -> Result<()> {
    with_root("what_a_killed_run_left_is_swept_by_the_next", || {
        let mut dead = Command::new("true").spawn()?;
        dead.wait()?;
        let stale = format!("lb-{}-0-stale", dead.id());
        run(Command::new("ip").args(["netns", "add", &stale]))?;
        netns::sweep_stale();
        assert!(!netns::exists(&stale));
        Ok(())
    })
}
