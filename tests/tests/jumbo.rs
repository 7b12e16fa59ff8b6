//! Links with an MTU of 9,000 bytes, whose frames do not fit the buffer that a program sees of them: transfers in segments
//! as long as that are completed in every mode, byte for byte, by a program that is attached natively.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    capture::{Capture, Direction},
    config::Service,
    netns::Namespace,
    process::run_with_input,
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode_at, vip},
    topology::{INTERFACE, Topology, backend_name},
    wait::wait_ok,
};

const MTU: u16 = 9_000;
/// What answers from VIPs may have, and the segments to them, so that the longest outer headers find room.
const DSR_ADVMSS: u16 = 8_800;
/// More than the first buffer of a frame takes: a page, less the room in front and behind.
const FIRST_BUFFER: usize = 3_520;
const PORT: u16 = 9_002;
/// Bytes of a transfer, each way.
const LARGE: usize = 1 << 20;
/// A transfer that makes no progress is given up after so long.
const PATIENCE: Duration = Duration::from_secs(10);

fn batch(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), lines).map(drop)
}

/// A network of such links, before anything is attached to them but what stands for the NIC at the far end.
fn topology() -> Result<Topology> {
    let topology = Topology::new(BACKENDS)?;
    let ends = ["client", "balancer"].map(str::to_owned).into_iter();
    let ports = ends.chain((1..=BACKENDS).map(backend_name));
    let ports: String = ports
        .map(|port| format!("link set {port} mtu {MTU}\n"))
        .collect();
    batch(&topology.switch, &ports)?;
    let wide = format!("link set {INTERFACE} mtu {MTU}\n");
    batch(&topology.client, &wide)?;
    batch(&topology.balancer, &wide)?;
    for backend in &topology.backends {
        let routes = format!(
            "{wide}\
             route replace 10.1.0.0/24 dev {INTERFACE} table 100 advmss {DSR_ADVMSS}\n\
             route replace fd00:1::/64 dev {INTERFACE} table 100 advmss {DSR_ADVMSS}\n"
        );
        batch(backend, &routes)?;
    }
    Ok(topology)
}

/// Takes all that comes, and sends it back.
fn serve(mut stream: TcpStream) -> Result<()> {
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken)?;
    Ok(stream.write_all(&taken)?)
}

fn start_servers(stage: &Stage) -> Result<()> {
    for backend in &stage.topology.backends {
        let listener = backend.run(|| TcpListener::bind(("::", PORT)))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
    }
    Ok(())
}

/// Bytes of which no two stretches are alike for long.
fn data(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| (n ^ (n / 251) ^ (n / 65_521)) as u8)
        .collect()
}

/// Sends bytes and gets them back.
fn transfer(client: &Namespace, to: SocketAddr, data: &[u8]) -> Result<()> {
    let mut stream = client.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(data).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).context("receiving")?;
    ensure!(back.len() == data.len(), "{} bytes came back", back.len());
    let differs = back.iter().zip(data).position(|(back, data)| back != data);
    ensure!(differs.is_none(), "other bytes from {differs:?} on");
    Ok(())
}

/// The longest frame of each so far.
fn longest<'a>(captures: impl IntoIterator<Item = &'a Capture>) -> Result<usize> {
    let mut longest = 0;
    for capture in captures {
        let frames = capture.take()?;
        longest = frames.iter().map(Vec::len).fold(longest, usize::max);
    }
    Ok(longest)
}

/// Bytes and packets that a service has forwarded.
fn forwarded(stage: &Stage, service: &Service) -> Result<(u64, u64)> {
    let shown = stage.shown(service)?;
    let of = |what: &str| shown["traffic"][what].as_u64().context("a count");
    Ok((of("bytes")?, of("packets")?))
}

#[test]
fn transfers_in_segments_of_several_buffers_are_completed_in_every_mode() -> Result<()> {
    with_root(
        "transfers_in_segments_of_several_buffers_are_completed_in_every_mode",
        || {
            let services = every_mode_at(PORT, "tcp")?;
            let stage = Stage::new(topology()?, services.clone())?;
            let status = stage.agent.lbctl_json(&["status"])?;
            ensure!(status["interfaces"][0]["mode"] == "native", "{status:#}");
            start_servers(&stage)?;
            let client = &stage.topology.client;
            let backends = stage.topology.backends.iter();
            let at_backends: Vec<Capture> = backends
                .map(|backend| Capture::start(backend, INTERFACE, Direction::Received))
                .collect::<Result<_>>()?;
            let at_client = Capture::start(client, INTERFACE, Direction::Received)?;
            let data = data(LARGE);
            for service in &services {
                let (name, to) = (format!("{} {}", service.mode, service.vip), vip(service)?);
                wait_ok(&name, PATIENCE, || transfer(client, to, b"hello"))
                    .with_context(|| stage.agent.log())?;
                longest(&at_backends)?;
                longest([&at_client])?;
                let before = forwarded(&stage, service)?;
                transfer(client, to, &data)
                    .with_context(|| format!("{name}: {}", stage.agent.log()))?;
                let after = forwarded(&stage, service)?;
                let (there, back) = (longest(&at_backends)?, longest([&at_client])?);
                println!("{name}: frames of {there} bytes there, {back} back");
                ensure!(there > FIRST_BUFFER, "{name}: {there} bytes there");
                ensure!(back > FIRST_BUFFER, "{name}: {back} bytes back");
                // All of each frame is counted, not what its first buffer has.
                let (bytes, packets) = (after.0 - before.0, after.1 - before.1);
                ensure!(
                    bytes > LARGE as u64 + 54 * packets,
                    "{name}: {bytes} bytes in {packets} packets"
                );
            }
            Ok(())
        },
    )
}
