//! Mode `full-nat` with handshakes that are answered for the backend, as users meet it: between the kernel's own clients and
//! servers, and under floods.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_tests::{
    config::{Config, Health, Service},
    load::{
        flood::{Flood, Segment},
        held::Held,
        open_loop::OpenLoop,
    },
    netns::Namespace,
    skip::with_root,
    stage::{BACKENDS, Stage, full_nat, tcp, v4_pool, v6_pool, vip},
    topology::{Topology, vip_v4, vip_v6},
    wait::wait_until,
};

const SOON: Duration = Duration::from_secs(60);
const WEB: u16 = lb_tests::backend::PORT;
/// Of servers that are of the tests' own.
const OWN: u16 = 7_070;

/// A service whose SYNs are answered for it.
fn proxied(service: Service, which: &str) -> Service {
    service.with("syn_proxy", which)
}

/// One of each family at the first backend's port, without checks.
fn at_one_backend(port: u16) -> [Service; 2] {
    let one = |vip: SocketAddr, backend: SocketAddr| Service {
        health: Health::NONE,
        ..proxied(full_nat(format!("{vip}/tcp"), [backend]), "always")
    };
    let v4 = v4_pool(port).next().expect("a backend");
    let v6 = v6_pool(port).next().expect("a backend");
    [
        one((vip_v4(7), port).into(), v4),
        one((vip_v6(7), port).into(), v6),
    ]
}

#[test]
fn clients_are_served_through_handshakes_that_are_answered_for_backends() -> Result<()> {
    with_root(
        "clients_are_served_through_handshakes_that_are_answered_for_backends",
        || {
            let services = vec![
                proxied(full_nat(tcp(vip_v4(7)), v4_pool(WEB)), "always"),
                proxied(full_nat(tcp(vip_v6(7)), v6_pool(WEB)), "always")
                    .with("client_address", "tcp-option"),
            ];
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for service in &services {
                ensure!(stage.answers(service, 200)?.len() == 3);
                let shown = stage.shown(service)?;
                ensure!(shown["syn_proxy"] == "always", "{shown}");
                let flows = &shown["flows"];
                println!("{flows}");
                ensure!(flows["cookies_sent"].as_u64() >= Some(200), "{flows}");
                ensure!(flows["cookies_valid"].as_u64() >= Some(200), "{flows}");
                ensure!(flows["cookies_invalid"] == 0, "{flows}");
                ensure!(flows["untold"] == 0, "{flows}");
            }
            Ok(())
        },
    )
}

/// A server that greets, sends back what it gets, and ends when its client does; of one connection.
fn echo(namespace: &Namespace, at: SocketAddr) -> Result<JoinHandle<Result<()>>> {
    let listener = namespace.run(|| TcpListener::bind(at))?;
    Ok(thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(GREETING)?;
        let mut from = stream.try_clone()?;
        std::io::copy(&mut from, &mut stream)?;
        stream.shutdown(Shutdown::Write)?;
        Ok(())
    }))
}

const GREETING: &[u8] = b"you may speak\n";
const MEGABYTES: usize = 12;

/// Bytes of which none is like its neighbours for long.
fn pattern() -> Vec<u8> {
    let words = (0..MEGABYTES << 18).map(|n| (n as u32).wrapping_mul(0x9e37_79b9));
    words.flat_map(u32::to_le_bytes).collect()
}

#[test]
fn much_goes_both_ways_unchanged_after_a_server_that_speaks_first() -> Result<()> {
    with_root(
        "much_goes_both_ways_unchanged_after_a_server_that_speaks_first",
        || {
            let services = at_one_backend(OWN);
            let stage = Stage::new(Topology::new(1)?, services.to_vec())?;
            let data = pattern();
            for service in &services {
                let at = SocketAddr::new(service.backends[0].0.ip(), OWN);
                let server = echo(stage.topology.backend(1), at)?;
                let target = vip(service)?;
                let client = &stage.topology.client;
                let mut stream = client.run(|| TcpStream::connect_timeout(&target, SOON))?;
                stream.set_read_timeout(Some(SOON))?;
                let mut greeting = vec![0; GREETING.len()];
                stream.read_exact(&mut greeting).context("the greeting")?;
                ensure!(greeting == GREETING);
                let mut writer = stream.try_clone()?;
                let echoed = thread::scope(|scope| {
                    let sent = scope.spawn(|| {
                        writer.write_all(&data)?;
                        writer.shutdown(Shutdown::Write)
                    });
                    let mut echoed = Vec::with_capacity(data.len());
                    stream.read_to_end(&mut echoed).context("what comes back")?;
                    sent.join().map_err(|_| anyhow!("a panic"))??;
                    anyhow::Ok(echoed)
                })?;
                ensure!(echoed == data, "{} of {} bytes", echoed.len(), data.len());
                server.join().map_err(|_| anyhow!("a panic"))??;
            }
            Ok(())
        },
    )
}

#[test]
fn a_backend_that_nothing_listens_at_resets_the_client() -> Result<()> {
    with_root(
        "a_backend_that_nothing_listens_at_resets_the_client",
        || {
            let services = at_one_backend(OWN);
            let stage = Stage::new(Topology::new(1)?, services.to_vec())?;
            for service in &services {
                let target = vip(service)?;
                let client = &stage.topology.client;
                // It may come before it is known that the connection stood.
                let reset = client.run(|| {
                    let mut stream = TcpStream::connect_timeout(&target, SOON)?;
                    stream.set_read_timeout(Some(SOON))?;
                    stream.read(&mut [0])
                });
                let reset = reset.err().context("an answer")?;
                ensure!(reset.kind() == ErrorKind::ConnectionReset, "{reset}");
            }
            Ok(())
        },
    )
}

/// Segments a second.
const RATE: u32 = 3_000;
const HELD: usize = 100;
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(500);
/// Legitimate new connections a second.
const NEW: u32 = 20;
/// Segments of a flood.
const SEGMENTS: u64 = 20_000;

/// Floods a service of its own; what `lbctl service show` says of its flows then.
fn flooded(segment: Segment, count: &str) -> Result<()> {
    let service = proxied(full_nat(tcp(vip_v4(7)), v4_pool(WEB)), "always");
    // Of which the flood would need as many as it has segments.
    let config = Config {
        limits: vec![("sessions", 4_096)],
        ..vec![service.clone()].into()
    };
    let stage = Stage::new(Topology::new(BACKENDS)?, config)?;
    let (client, target) = (&stage.topology.client, vip(&service)?);
    let SocketAddr::V4(at) = target else {
        bail!("{target} is flooded by IPv4");
    };
    let held = Held::open(client, target, HELD, PERIOD)?;
    let before = stage.counted(&service, count)?;
    let recorded = stage.counted(&service, "recorded")?;
    let flood = Flood::start(client, at, segment, RATE)?;
    let legitimate = OpenLoop::start(client, target, NEW)?;
    wait_until("the flood has been", SOON, || flood.sent() > SEGMENTS)?;
    let (legitimate, sent) = (legitimate.stop()?, flood.stop()?);
    let lives = held.stop()?;
    println!("{segment:?}: {sent} sent; {legitimate}; {lives}");
    let failures = legitimate.failures().count();
    ensure!(failures == 0 && legitimate.succeeded() > 0, "{legitimate}");
    ensure!(lives.broken_per_backend() == BTreeMap::new(), "{lives}");
    let flows = stage.shown(&service)?["flows"].take();
    println!("{flows}");
    ensure!(
        stage.counted(&service, count)? - before >= sent * 9 / 10,
        "no flood"
    );
    // Not one of the flood's.
    let begun = stage.counted(&service, "recorded")? - recorded;
    let own = legitimate.attempts.len() as u64;
    ensure!(
        (own..=own + 2).contains(&begun),
        "{begun} sessions of {own}"
    );
    Ok(())
}

#[test]
fn a_flood_of_syns_begins_no_session_and_keeps_nobody_out() -> Result<()> {
    with_root(
        "a_flood_of_syns_begins_no_session_and_keeps_nobody_out",
        || flooded(Segment::Syn, "cookies_sent"),
    )
}

#[test]
fn a_flood_of_forged_acknowledgements_begins_no_session_and_keeps_nobody_out() -> Result<()> {
    with_root(
        "a_flood_of_forged_acknowledgements_begins_no_session_and_keeps_nobody_out",
        || flooded(Segment::Ack, "cookies_invalid"),
    )
}

#[test]
fn only_what_is_above_the_rate_is_proxied_and_both_kinds_are_served() -> Result<()> {
    with_root(
        "only_what_is_above_the_rate_is_proxied_and_both_kinds_are_served",
        || {
            let service = proxied(full_nat(tcp(vip_v4(7)), v4_pool(WEB)), "above=20");
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            stage.answers(&service, 10)?;
            ensure!(stage.counted(&service, "cookies_sent")? == 0);
            stage.answers(&service, 500)?;
            let sent = stage.counted(&service, "cookies_sent")?;
            println!("{sent} of 500 proxied");
            ensure!((1..500).contains(&sent), "{sent}");
            // It changes while connections live.
            let held = Held::open(&stage.topology.client, vip(&service)?, 50, PERIOD)?;
            stage.lbctl(&format!("service set {} --syn-proxy off", service.vip))?;
            let proxied = stage.counted(&service, "cookies_sent")?;
            stage.answers(&service, 100)?;
            ensure!(stage.counted(&service, "cookies_sent")? == proxied);
            let lives = held.stop()?;
            ensure!(lives.broken_per_backend() == BTreeMap::new(), "{lives}");
            Ok(())
        },
    )
}
