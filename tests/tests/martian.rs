//! Packets that no host can have sent, on a real network: each is dropped and counted, none is forwarded or answered,
//! and who is a host is served as before.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::PacketBuilder;
use lb_tests::{
    capture::{Capture, Direction},
    load::{fragments::Datagram, raw::Raw},
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode, vip},
    topology::{INTERFACE, Topology},
    wait::wait_ok,
};

const SOON: Duration = Duration::from_secs(20);
const TTL: u8 = 64;
/// Requests to each service afterwards.
const REQUESTS: usize = 4;

/// Sources of a VIP's family that are no host's.
fn nobodys(vip: IpAddr) -> Result<Vec<IpAddr>> {
    let of_family: &[&str] = if vip.is_ipv4() {
        // Not 0.0.0.0, in whose place the sending kernel would put its own.
        &["0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
    } else {
        &["::", "::1", "ff02::1", "::ffff:10.1.0.10"]
    };
    let sources = of_family.iter().map(|text| Ok(text.parse()?));
    sources.collect()
}

/// What is sent from an address to a VIP: the beginning of a connection, its middle, a datagram in two fragments, and
/// an echo request.
fn packets(from: SocketAddr, to: SocketAddr) -> Result<Vec<Vec<u8>>> {
    let ip = || match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Ok(PacketBuilder::ipv4(from.octets(), to.octets(), TTL))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Ok(PacketBuilder::ipv6(from.octets(), to.octets(), TTL))
        }
        mixed => bail!("addresses of two families: {mixed:?}"),
    };
    let (mut syn, mut segment, mut echo) = (Vec::new(), Vec::new(), Vec::new());
    let tcp = || Ok::<_, anyhow::Error>(ip()?.tcp(from.port(), to.port(), 7, 1_024));
    tcp()?.syn().write(&mut syn, &[])?;
    tcp()?.ack(9).write(&mut segment, b"hello")?;
    if to.is_ipv4() {
        ip()?.icmpv4_echo_request(1, 2).write(&mut echo, b"echo")?;
    } else {
        ip()?.icmpv6_echo_request(1, 2).write(&mut echo, b"echo")?;
    }
    let datagram = Datagram::new(from, to, 3, &[0x5a; 120])?;
    let fragments = [datagram.part(0, 64)?, datagram.part(64, 128)?];
    Ok([syn, segment, echo].into_iter().chain(fragments).collect())
}

/// Whether a frame is what neighbours send whatever they get: ARP, neighbour discovery (RFC 4861 §4), and reports of the groups that
/// they listen to, which go to `ff02::16` behind a hop-by-hop option (MLDv2, RFC 3810 §5).
fn is_neighbours(frame: &[u8]) -> bool {
    const ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x06, ..] => true,
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] => match frame.get(20) {
            Some(58) => matches!(frame.get(54), Some(133..=137)),
            Some(0) => {
                frame.get(38..54) == Some(&ROUTERS)
                    && (frame.get(54), frame.get(62)) == (Some(&58), Some(&143))
            }
            _ => false,
        },
        _ => false,
    }
}

fn dropped(stage: &Stage, reason: &str) -> Result<u64> {
    let status = stage.agent.lbctl_json(&["status"])?;
    status["drops"][reason]
        .as_u64()
        .with_context(|| status.to_string())
}

#[test]
fn a_report_of_groups_is_no_answer_and_an_error_by_icmp_is_one() {
    // A report of MLDv2 as Linux sends it, of one group that is listened to.
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 0x16, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 36, 0, 1]);
    frame.extend([0; 16]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]);
    frame.extend([58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([4, 0, 0, 0]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1]);
    assert!(is_neighbours(&frame));
    // To anybody else, and an error in its place.
    for (at, byte) in [(53, 0x17), (62, 1)] {
        let mut other = frame.clone();
        other[at] = byte;
        assert!(!is_neighbours(&other), "{at}");
    }
    // An error without the option.
    frame[20] = 58;
    frame[54] = 1;
    assert!(!is_neighbours(&frame));
}

#[test]
fn packets_of_nobody_and_of_the_vip_itself_are_dropped_and_hosts_are_served() -> Result<()> {
    with_root(
        "packets_of_nobody_and_of_the_vip_itself_are_dropped_and_hosts_are_served",
        || {
            let services = every_mode();
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            let client = &stage.topology.client;
            let answers = Capture::start(client, INTERFACE, Direction::Received)?;
            let (mut martians, mut lands) = (0, 0);
            for service in &services {
                let vip = vip(service)?;
                let raw = Raw::new(client, vip)?;
                for source in nobodys(vip.ip())? {
                    for packet in packets(SocketAddr::new(source, 40_000), vip)? {
                        raw.send(&packet)
                            .with_context(|| format!("{source} to {vip}"))?;
                        martians += 1;
                    }
                }
                for port in [vip.port(), 40_000] {
                    for packet in packets(SocketAddr::new(vip.ip(), port), vip)? {
                        raw.send(&packet).with_context(|| vip.to_string())?;
                        lands += 1;
                    }
                }
            }
            wait_ok("each is counted", SOON, || {
                let found = (dropped(&stage, "martian_source")?, dropped(&stage, "land")?);
                ensure!(
                    found == (martians, lands),
                    "{found:?} of {martians} and {lands}"
                );
                Ok(())
            })?;
            for service in &services {
                let shown = stage.shown(service)?;
                ensure!(shown["traffic"]["packets"] == 0, "{shown:#}");
            }
            for frame in answers.take()? {
                ensure!(is_neighbours(&frame), "an answer: {frame:02x?}");
            }
            for service in &services {
                stage.answers(service, REQUESTS)?;
            }
            let found = (dropped(&stage, "martian_source")?, dropped(&stage, "land")?);
            ensure!(found == (martians, lands), "{found:?}");
            println!("{martians} of nobody and {lands} of the VIP itself, all dropped");
            Ok(())
        },
    )
}
