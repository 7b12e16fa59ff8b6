//! Access lists and limits of new flows, with real clients: whom they let in, what is counted, and whom a change
//! or a flood leaves alone.

use std::{
    io::{BufWriter, ErrorKind, Write as _},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    backend::PORT,
    config::{Config, Health, Service},
    load::{
        flood::{Flood, Segment},
        held::Held,
        open_loop::OpenLoop,
    },
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, v4_pool, vip, web},
    topology::{CLIENT_V4, Topology, vip_v4, vip_v6},
    wait::wait_until,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::AsRawFd as _;
use tempfile::NamedTempFile;

/// The client's other address.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 77);
/// A connection that nobody answers is given up after so long.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(100);
/// Bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(60);

/// A list as the configuration has it.
fn list(name: &str, keys: &str) -> String {
    format!("[[access_list]]\nname = \"{name}\"\n{keys}\n")
}

/// Gives the client another address beside its own.
fn stage(config: Config) -> Result<Stage> {
    let stage = Stage::new(Topology::new(BACKENDS)?, config)?;
    let address = format!("addr add {OTHER}/24 dev eth0");
    run(stage.topology.client.command("ip").args(address.split(' ')))?;
    Ok(stage)
}

/// Whether a connection from an address of the client's is accepted.
fn connects(stage: &Stage, from: Ipv4Addr, to: SocketAddr) -> Result<bool> {
    let SocketAddr::V4(to) = to else {
        bail!("{to} is not of IPv4");
    };
    stage.topology.client.run(|| {
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        let socket = socket(family, kind, SockFlag::empty(), None)?;
        let patience = TimeVal::new(1, 500_000);
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        let from = SockaddrIn::from(std::net::SocketAddrV4::new(from, 0));
        bind(socket.as_raw_fd(), &from)?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) => Ok(true),
            // How a blocking connection's timeout is told.
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => Ok(false),
            Err(nix::errno::Errno::EINPROGRESS) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("connecting within {PATIENCE:?}")),
        }
    })
}

/// Connections from the client's own address and from its other one.
fn connect_both(stage: &Stage, service: &Service) -> Result<(bool, bool)> {
    let to = vip(service)?;
    Ok((connects(stage, CLIENT_V4, to)?, connects(stage, OTHER, to)?))
}

fn drops(stage: &Stage, reason: &str) -> Result<u64> {
    let status = stage.agent.lbctl_json(&["status"])?;
    status["drops"][reason].as_u64().context("a count")
}

#[test]
fn a_denied_client_is_dropped_and_counted_and_a_change_of_the_list_breaks_nobody_else() -> Result<()>
{
    with_root(
        "a_denied_client_is_dropped_and_counted_and_a_change_of_the_list_breaks_nobody_else",
        || {
            let listed = web(Health::TCP).with("access_list", "office");
            let open = Service::new(tcp(vip_v4(2)), "ipip", Health::TCP, v4_pool(PORT));
            let v6 = Service::new(tcp(vip_v6(2)), "ipip", Health::TCP, v4_pool(PORT))
                .with("access_list", "office");
            let mut stage = stage(Config {
                access_lists: vec![list("office", &format!("allow = [\"{CLIENT_V4}\"]"))],
                services: vec![listed.clone(), open.clone(), v6.clone()],
                ..Config::default()
            })?;
            ensure!(connect_both(&stage, &listed)? == (true, false));
            ensure!(connect_both(&stage, &open)? == (true, true));
            ensure!(stage.answers(&v6, 1).is_err(), "the list allows IPv4 alone");
            let denied = stage.counted(&listed, "denied")?;
            ensure!(denied > 0 && drops(&stage, "access_denied")? > denied);
            ensure!(stage.counted(&open, "denied")? == 0);
            let held = Held::open(&stage.topology.client, vip(&listed)?, 50, PERIOD)?;
            let legitimate = OpenLoop::start(&stage.topology.client, vip(&listed)?, 50)?;
            stage.lbctl("access-list edit office --allow 10.1.0.77 --allow fd00::/8")?;
            ensure!(connect_both(&stage, &listed)? == (true, true));
            stage.answers(&v6, 5)?;
            // Whole lists, one after the other, each of which has the client of the held connections.
            for n in 0..20 {
                let set = format!(
                    "access-list set office --allow 10.1.0.0/27 --allow 10.1.{n}.0/30 --deny 10.9.0.0/16"
                );
                stage.lbctl(&set)?;
            }
            ensure!(connect_both(&stage, &listed)? == (true, false));
            // The program goes on by itself, and the next agent takes the list up.
            stage.agent.sigkill();
            ensure!(connect_both(&stage, &listed)? == (true, false));
            stage.agent.restart()?;
            ensure!(connect_both(&stage, &listed)? == (true, false));
            stage.lbctl(&format!("service set {} --no-access-list", listed.vip))?;
            ensure!(connect_both(&stage, &listed)? == (true, true));
            let (lives, report) = (held.stop()?, legitimate.stop()?);
            ensure!(lives.broken_per_backend().is_empty(), "{lives}");
            ensure!(report.succeeded() == report.attempts.len(), "{report}");
            println!("{lives}; {report}");
            Ok(())
        },
    )
}

/// Prefixes of the list below, of which the kernel's trie takes one after the other.
const MANY: u32 = 1_000_000;

/// A file that denies so many of both families, the client's other address among them.
fn scanners() -> Result<NamedTempFile> {
    let mut file = BufWriter::new(NamedTempFile::new()?);
    for n in 1..MANY {
        let [_, a, b, c] = n.to_be_bytes();
        match n % 2 {
            0 => writeln!(file, "11.{a}.{b}.{c}")?,
            _ => writeln!(file, "2001:db8:b{a:02x}:{b:x}{c:02x}::/64")?,
        }
    }
    writeln!(file, "{OTHER}")?;
    Ok(file.into_inner()?)
}

#[test]
fn a_list_of_a_million_prefixes_is_set_edited_taken_up_and_replaced_under_connections() -> Result<()>
{
    with_root(
        "a_list_of_a_million_prefixes_is_set_edited_taken_up_and_replaced_under_connections",
        || {
            let service = web(Health::TCP).with("access_list", "scanners");
            let mut stage = stage(Config {
                access_lists: vec![list("scanners", "deny = [\"203.0.113.0/24\"]")],
                services: vec![service.clone()],
                ..Config::default()
            })?;
            ensure!(connect_both(&stage, &service)? == (true, true));
            let held = Held::open(&stage.topology.client, vip(&service)?, 50, PERIOD)?;
            let file = scanners()?;
            stage.lbctl(&format!(
                "access-list set scanners --deny-file {}",
                file.path().display()
            ))?;
            ensure!(connect_both(&stage, &service)? == (true, false));
            stage.lbctl(&format!("access-list edit scanners --remove {OTHER}"))?;
            ensure!(connect_both(&stage, &service)? == (true, true));
            stage.lbctl(&format!("access-list edit scanners --deny {OTHER}"))?;
            stage.agent.sigkill();
            stage.agent.restart()?;
            ensure!(connect_both(&stage, &service)? == (true, false));
            let judged = |source: &str| {
                let judged = stage
                    .agent
                    .lbctl(&["access-list", "check", "scanners", source])?;
                judged.succeeded()
            };
            ensure!(judged("11.15.66.62")?.contains("11.15.66.62/32"));
            ensure!(judged("2001:db8:b00:1::7")?.contains("2001:db8:b00:1::/64"));
            ensure!(!judged("11.15.66.63")?.contains("/32"));
            stage.lbctl("access-list set scanners --deny 203.0.113.0/24")?;
            ensure!(connect_both(&stage, &service)? == (true, true));
            let lives = held.stop()?;
            ensure!(lives.broken_per_backend().is_empty(), "{lives}");
            println!("{lives}");
            Ok(())
        },
    )
}

/// Segments a second from one source, and what it may open.
const FLOOD: u32 = 4_000;
const RATE: u64 = 50;
const BURST: u64 = 100;
/// Connections a second of everybody else.
const NEW: u32 = 40;

#[test]
fn a_source_that_floods_is_held_to_its_limit_and_others_get_through() -> Result<()> {
    with_root(
        "a_source_that_floods_is_held_to_its_limit_and_others_get_through",
        || {
            // All sources of the flood are of one prefix of this length.
            let service = web(Health::TCP)
                .with("source_limit", format!("{RATE},burst={BURST}"))
                .with_number("source_prefix_v4", 15);
            let stage = stage(vec![service.clone()].into())?;
            let client = &stage.topology.client;
            let SocketAddr::V4(target) = vip(&service)? else {
                bail!("the flood is of IPv4");
            };
            let held = Held::open(client, target.into(), 50, PERIOD)?;
            let opened = |stage: &Stage| -> Result<u64> {
                stage.shown(&service)?["traffic"]["flows"]
                    .as_u64()
                    .context("a count")
            };
            let before = opened(&stage)?;
            #[expect(clippy::disallowed_methods, reason = "a rate is measured over time")]
            let start = std::time::Instant::now();
            let flood = Flood::start(client, target, Segment::Syn, FLOOD)?;
            wait_until("a flood", SOON, || flood.sent() > u64::from(2 * FLOOD))?;
            let sent = flood.stop()?;
            let (flows, time) = (opened(&stage)? - before, start.elapsed());
            let limited = stage.counted(&service, "source_limited")?;
            println!("{sent} sent in {time:?}: {flows} let in, {limited} refused");
            let cpus = std::thread::available_parallelism()?.get() as u64;
            // And one period of the kernel's coarse clock, of 10 ms at most.
            let most = (time.as_secs_f64() + 0.01) * RATE as f64 + (BURST + 2 * cpus) as f64;
            ensure!((flows as f64) <= most, "{flows} of {most}");
            ensure!(
                flows >= BURST && limited + flows >= sent,
                "{flows} {limited}"
            );
            ensure!(drops(&stage, "source_limit")? == limited);
            // While it goes on, everybody else gets what they may have.
            let flood = Flood::start(client, target, Segment::Syn, FLOOD)?;
            let legitimate = OpenLoop::start(client, target.into(), NEW)?;
            wait_until("a flood", SOON, || flood.sent() > u64::from(3 * FLOOD))?;
            let (report, _, lives) = (legitimate.stop()?, flood.stop()?, held.stop()?);
            println!("{report}; {lives}");
            ensure!(report.succeeded() == report.attempts.len(), "{report}");
            ensure!(lives.broken_per_backend().is_empty(), "{lives}");
            Ok(())
        },
    )
}

#[test]
fn a_limit_of_the_service_is_changed_while_it_runs_and_spares_open_connections() -> Result<()> {
    with_root(
        "a_limit_of_the_service_is_changed_while_it_runs_and_spares_open_connections",
        || {
            let service = web(Health::TCP);
            let stage = stage(vec![service.clone()].into())?;
            let held = Held::open(&stage.topology.client, vip(&service)?, 50, PERIOD)?;
            let set = |limit: &str| {
                stage.lbctl(&format!("service set {} --flow-limit {limit}", service.vip))
            };
            set("1,burst=2")?;
            let to = vip(&service)?;
            let served: Result<Vec<bool>> =
                (0..2).map(|_| connects(&stage, CLIENT_V4, to)).collect();
            ensure!(served? == [true, true]);
            let sent = stage.counted(&service, "service_limited")?;
            // Sent again a second later, when there may be one more.
            wait_until("one is refused", SOON, || {
                let _ = connects(&stage, CLIENT_V4, to);
                stage
                    .counted(&service, "service_limited")
                    .is_ok_and(|now| now > sent)
            })?;
            ensure!(drops(&stage, "service_limit")? > 0);
            set("none")?;
            stage.answers(&service, 200)?;
            let lives = held.stop()?;
            ensure!(lives.broken_per_backend().is_empty(), "{lives}");
            println!("{lives}");
            Ok(())
        },
    )
}
