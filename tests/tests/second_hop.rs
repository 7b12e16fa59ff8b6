//! The second hop as users meet it: connections over a change of the pool and the loss of everything that the balancer
//! knew, through GUE, with backends that hand on what they do not know.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::PacketBuilder;
use lb_tests::{
    backend::{OTHER_PORT, PORT},
    config::{Config, Health, Service},
    load::raw::Raw,
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, v4_pool, v6_pool, vip},
    topology::{CLIENT_V4, Topology, backend_name, vip_v4, vip_v6},
    wait::{wait_for, wait_ok, wait_until},
};
use lb_userspace::instance;
use tempfile::TempDir;

/// Connections to each service. Of three backends, a change of one moves a third of them.
const CONNECTIONS: usize = 60;
/// What an exchange may take: some retransmissions.
const PATIENCE: Duration = Duration::from_secs(8);
/// This only bounds the wait for what is about to happen.
const SOON: Duration = Duration::from_secs(30);
/// Packets that are sent by hand.
const PACKETS: u64 = 200;

/// A connection and the backend that it was opened to.
struct Connection {
    stream: TcpStream,
    backend: String,
}

impl Connection {
    fn open(stage: &Stage, to: SocketAddr) -> Result<Self> {
        let stream = stage.topology.client.run(|| TcpStream::connect(to))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            stream,
            backend: String::new(),
        };
        connection.backend = connection.ask()?;
        Ok(connection)
    }

    /// Who answers on it.
    fn ask(&mut self) -> Result<String> {
        self.stream
            .write_all(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut piece = [0; 1024];
        while !answer.ends_with(b"\n") || !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            let length = self.stream.read(&mut piece)?;
            ensure!(length > 0, "closed");
            answer.extend(&piece[..length]);
            if answer.ends_with(b"\r\n\r\n") {
                // The body is still to come.
                answer.push(b' ');
            }
        }
        let text = String::from_utf8(answer)?;
        let name = text.trim_end().rsplit_once(char::is_whitespace);
        Ok(name.context("no body")?.1.to_owned())
    }

    /// Whether the backend that it was opened to still answers on it.
    fn lives(&mut self) -> Result<()> {
        let answer = self.ask()?;
        ensure!(
            answer == self.backend,
            "{answer} instead of {}",
            self.backend
        );
        Ok(())
    }
}

/// A service of each pair of families, with the first so many backends.
fn services(backends: u8) -> Vec<Service> {
    let service = |vip: SocketAddr, pool: Vec<SocketAddr>| {
        let pool = pool.into_iter().take(backends.into());
        Service::new(format!("{vip}/tcp"), "gue", Health::HTTP, pool).with_true("second_hop")
    };
    vec![
        service((vip_v4(4), PORT).into(), v4_pool(PORT).collect()),
        service((vip_v6(4), PORT).into(), v6_pool(PORT).collect()),
        service((vip_v4(5), PORT).into(), v6_pool(OTHER_PORT).collect()),
        service((vip_v6(5), PORT).into(), v4_pool(OTHER_PORT).collect()),
    ]
}

fn config(directory: &Path, services: Vec<Service>) -> Result<Config> {
    let key = directory.join("hash.key");
    if !key.exists() {
        fs::write(&key, "0123456789abcdef".repeat(12))?;
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    }
    Ok(Config {
        services,
        hash_key_file: Some(key.display().to_string()),
        ..Config::default()
    })
}

fn open_all(stage: &Stage, services: &[Service]) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for service in services {
        let to = vip(service)?;
        for _ in 0..CONNECTIONS {
            let connection = Connection::open(stage, to);
            connections.push(connection.with_context(|| service.vip.clone())?);
        }
    }
    Ok(connections)
}

/// How many connections to each backend are broken.
fn broken(connections: &mut [Connection]) -> BTreeMap<String, usize> {
    let mut broken = BTreeMap::new();
    for connection in connections {
        if let Err(error) = connection.lives() {
            let name = connection.backend.clone();
            if broken.is_empty() {
                println!("the first that is broken, to {name}: {error:#}");
            }
            *broken.entry(name).or_default() += 1;
        }
    }
    broken
}

/// Waits until every service is served again.
fn await_service(stage: &Stage, services: &[Service]) -> Result<()> {
    for service in services {
        wait_ok("it is served", SOON, || stage.answers(service, 10))?;
    }
    Ok(())
}

/// What all decapsulators have counted under `what`.
fn counted(stage: &Stage, what: &str) -> Result<u64> {
    let mut sum = 0;
    for tunnel in stage.tunnels() {
        let counters = tunnel.counters()?;
        sum += counters
            .get(what)
            .with_context(|| format!("{what}: {counters:?}"))?;
    }
    Ok(sum)
}

/// Packets that were handed on, by either way.
fn handed_on(stage: &Stage) -> Result<u64> {
    Ok(counted(stage, "handed on")? + counted(stage, "handed on by the sender")?)
}

/// A balancer of these services whose backends hand on, and where its key is.
fn handing_on(services: Vec<Service>) -> Result<(Stage, TempDir)> {
    let directory = TempDir::new()?;
    let config = config(directory.path(), services)?;
    let mut stage = Stage::new(Topology::new(BACKENDS)?, config)?;
    stage.hand_on()?;
    Ok((stage, directory))
}

/// A backend is added, and then the balancer is replaced by one that has nothing but the configuration.
fn replaced_after_an_addition(hands_on: bool) -> Result<BTreeMap<String, usize>> {
    let directory = TempDir::new()?;
    let (before, after) = (services(BACKENDS - 1), services(BACKENDS));
    let first = config(directory.path(), before.clone())?;
    let mut stage = Stage::new(Topology::new(BACKENDS)?, first)?;
    if hands_on {
        stage.hand_on()?;
    }
    await_service(&stage, &before)?;
    let mut connections = open_all(&stage, &before)?;
    for service in &after {
        let (added, _) = service.backends.last().context("backends")?;
        stage.lbctl(&format!("backend add {} {added}", service.vip))?;
        stage.await_slots(service, |slots| slots.moving > 0)?;
    }
    let lost = broken(&mut connections);
    ensure!(lost.is_empty(), "by the addition alone: {lost:?}");
    // It takes the state that is kept on disk along.
    stage.agent.detach()?;
    stage
        .agent
        .write_config(&config(directory.path(), after.clone())?)?;
    stage.agent.restart()?;
    await_service(&stage, &after)?;
    let handed_before = hands_on.then(|| handed_on(&stage)).transpose()?;
    let lost = broken(&mut connections);
    if let Some(before) = handed_before {
        let handed_on = handed_on(&stage)? - before;
        println!("{handed_on} packets were handed on");
        ensure!(handed_on > 0);
    }
    println!("hands on: {hands_on}; broken: {lost:?}");
    Ok(lost)
}

#[test]
fn no_connection_breaks_when_a_new_balancer_takes_over_after_a_backend_was_added() -> Result<()> {
    with_root(
        "no_connection_breaks_when_a_new_balancer_takes_over_after_a_backend_was_added",
        || {
            let lost = replaced_after_an_addition(true)?;
            ensure!(lost.is_empty(), "{lost:?}");
            Ok(())
        },
    )
}

#[test]
fn connections_do_break_then_where_backends_hand_nothing_on() -> Result<()> {
    with_root(
        "connections_do_break_then_where_backends_hand_nothing_on",
        || {
            let lost = replaced_after_an_addition(false)?;
            // A third of all, give or take.
            ensure!(lost.values().sum::<usize>() > CONNECTIONS / 2, "{lost:?}");
            Ok(())
        },
    )
}

#[test]
fn no_connection_breaks_when_the_maps_are_lost_after_a_backend_was_drained() -> Result<()> {
    with_root(
        "no_connection_breaks_when_the_maps_are_lost_after_a_backend_was_drained",
        || {
            let services = services(BACKENDS);
            let (mut stage, _directory) = handing_on(services.clone())?;
            await_service(&stage, &services)?;
            let mut connections = open_all(&stage, &services)?;
            for service in &services {
                let (drained, _) = service.backends[0];
                stage.lbctl(&format!("backend drain {} {drained}", service.vip))?;
                stage.await_slots(service, |slots| slots.moving > 0)?;
            }
            // As if the machine had restarted: what is on its disk stays.
            let state = instance::state_path(&stage.agent.home().name);
            let kept = wait_for("the state is kept", SOON, || fs::read(&state).ok())?;
            stage.agent.detach()?;
            fs::write(&state, kept)?;
            stage.agent.restart()?;
            await_service(&stage, &services)?;
            let drained = backend_name(1);
            for service in &services {
                let answers = stage.answers(service, 30)?;
                ensure!(!answers.contains_key(&drained), "{answers:?}");
            }
            let own = connections.iter().filter(|c| c.backend == drained).count();
            let lost = broken(&mut connections);
            let handed_on = handed_on(&stage)?;
            println!("{own} of the drained one; {handed_on} packets were handed on");
            ensure!(lost.is_empty() && own > 0 && handed_on > 0, "{lost:?}");
            Ok(())
        },
    )
}

/// A TCP packet of the client's from a port that nothing uses.
fn by_hand(to: SocketAddr, n: u64, flags: impl Fn(TcpBuilder) -> TcpBuilder) -> Result<Vec<u8>> {
    let SocketAddr::V4(to) = to else {
        bail!("{to} is not of IPv4")
    };
    let ip = PacketBuilder::ipv4(CLIENT_V4.octets(), to.ip().octets(), 64);
    let builder = flags(ip.tcp(20_000 + n as u16, to.port(), 0x1000 + n as u32, 1_000));
    let mut packet = Vec::new();
    builder.write(&mut packet, &[])?;
    Ok(packet)
}

type TcpBuilder = etherparse::PacketBuilderStep<etherparse::TcpHeader>;

#[test]
fn a_packet_of_a_connection_that_nobody_knows_goes_on_once_and_one_that_opens_stays() -> Result<()>
{
    with_root(
        "a_packet_of_a_connection_that_nobody_knows_goes_on_once_and_one_that_opens_stays",
        || {
            let service = services(BACKENDS).remove(0);
            let (stage, _directory) = handing_on(vec![service.clone()])?;
            await_service(&stage, std::slice::from_ref(&service))?;
            let to = vip(&service)?;
            let raw = Raw::new(&stage.topology.client, to)?;
            let (unwrapped, handed) = (counted(&stage, "unwrapped packets")?, handed_on(&stage)?);
            for n in 0..PACKETS {
                raw.send(&by_hand(to, n, |tcp| tcp.ack(n as u32))?)?;
            }
            wait_until("all are unwrapped", SOON, || {
                counted(&stage, "unwrapped packets").is_ok_and(|n| n >= unwrapped + PACKETS)
            })?;
            ensure!(counted(&stage, "unwrapped packets")? == unwrapped + PACKETS);
            ensure!(handed_on(&stage)? == handed + PACKETS, "each goes on once");
            let (unwrapped, handed) = (counted(&stage, "unwrapped packets")?, handed_on(&stage)?);
            for n in 0..PACKETS {
                raw.send(&by_hand(to, n, TcpBuilder::syn)?)?;
            }
            // Each is answered, which the client's kernel resets.
            wait_until("all are answered and reset", SOON, || {
                counted(&stage, "unwrapped packets").is_ok_and(|n| n >= unwrapped + 2 * PACKETS)
            })?;
            ensure!(handed_on(&stage)? == handed, "none goes on");
            Ok(())
        },
    )
}

#[test]
fn connections_are_opened_by_syn_cookies_as_by_anything_else() -> Result<()> {
    with_root(
        "connections_are_opened_by_syn_cookies_as_by_anything_else",
        || {
            let services = services(BACKENDS);
            let (stage, _directory) = handing_on(services.clone())?;
            // Cookies for all, and nothing is remembered of who asks.
            for backend in &stage.topology.backends {
                run(backend
                    .command("sysctl")
                    .args(["-w", "net.ipv4.tcp_syncookies=2"]))?;
            }
            await_service(&stage, &services)?;
            for service in &services {
                stage.answers(service, 100)?;
            }
            Ok(())
        },
    )
}
