//! SCTP over real links. Packets are made and seen as they are on the wire, since not every kernel speaks it; where this one
//! does not, the association that two of its sockets would have is reported as skipped.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpNumber, Ipv4Header};
use lb_tests::{
    capture::{Capture, Direction},
    config::{Health, Service},
    load::raw::Raw,
    skip::{skip, with_root},
    stage::{BACKENDS, Stage, v4_pool},
    topology::{CLIENT_V4, INTERFACE, Topology, backend_v4, vip_v4},
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(30);
/// IANA protocol number.
const SCTP: u8 = 132;
/// Where signalling over SCTP (M3UA) is at home.
const PORT: u16 = 2_905;
/// Types of chunks (RFC 9260 §3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
/// Clients' ports.
const FIRST: u16 = 20_000;
const CLIENTS: u16 = 24;

/// An IP packet to a VIP from a port, with one chunk.
fn packet(to: Ipv4Addr, from: u16, kind: u8) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(PORT.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, kind, 0, 0, 20]);
    bytes.extend([7; 16]);
    let ends = (CLIENT_V4.octets(), to.octets());
    let mut ip = Ipv4Header::new(bytes.len() as u16, 64, IpNumber(SCTP), ends.0, ends.1)?;
    ip.header_checksum = ip.calc_header_checksum();
    Ok([&ip.to_bytes()[..], &bytes].concat())
}

/// Who sent it and its type of chunk, if a frame is such a packet as it was sent.
fn told(frame: &[u8], to: Ipv4Addr) -> Option<(u16, u8)> {
    let ip = frame.get(14..)?;
    if ip.get(9) != Some(&SCTP) || ip.get(16..20)? != to.octets() {
        return None;
    }
    let from = u16::from_be_bytes([*ip.get(20)?, *ip.get(21)?]);
    let kind = *ip.get(32)?;
    (ip.get(20..) == packet(to, from, kind).ok()?.get(20..)).then_some((from, kind))
}

/// Sends a chunk from every client, and says which backend each has come to.
fn spread(stage: &Stage, vip: Ipv4Addr, ports: &[u16], kind: u8) -> Result<BTreeMap<u16, u8>> {
    let backends = &stage.topology.backends;
    let captures = backends
        .iter()
        .map(|node| Capture::start(node, INTERFACE, Direction::Received))
        .collect::<Result<Vec<_>>>()?;
    let raw = Raw::new(&stage.topology.client, (vip, PORT).into())?;
    for &port in ports {
        raw.send(&packet(vip, port, kind)?)?;
    }
    let mut taken = BTreeMap::new();
    wait_for("every packet has come", SOON, || {
        for (n, capture) in (1u8..).zip(&captures) {
            let frames = capture.take().ok()?;
            for (from, chunk) in frames.iter().filter_map(|frame| told(frame, vip)) {
                assert_eq!(chunk, kind);
                assert_eq!(taken.insert(from, n), None, "{from} has come twice");
            }
        }
        (taken.len() == ports.len()).then_some(())
    })
    .with_context(|| format!("{vip}, chunk {kind}: {taken:?}; {}", stage.agent.log()))?;
    Ok(taken)
}

#[test]
fn sctp_reaches_backends_as_it_is_and_associations_keep_theirs_over_drains_and_restarts()
-> Result<()> {
    with_root(
        "sctp_reaches_backends_as_it_is_and_associations_keep_theirs_over_drains_and_restarts",
        || {
            let modes = ["ipip", "gue", "l2"];
            let services: Vec<Service> = (1..)
                .zip(modes)
                .map(|(n, mode)| {
                    let vip = format!("{}:{PORT}/sctp", vip_v4(n));
                    Service::new(vip, mode, Health::NONE, v4_pool(PORT)).with("moving_time", "1m")
                })
                .collect();
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            let ports: Vec<u16> = (FIRST..FIRST + CLIENTS).collect();
            for service in &services {
                let vip = lb_tests::stage::vip(service)?;
                let std::net::IpAddr::V4(vip) = vip.ip() else {
                    continue;
                };
                let first = spread(&stage, vip, &ports, INIT)?;
                let mut used: Vec<u8> = first.values().copied().collect();
                used.sort_unstable();
                used.dedup();
                ensure!(used.len() == usize::from(BACKENDS), "{used:?}");
                ensure!(spread(&stage, vip, &ports, COOKIE_ECHO)? == first);
                let drained = (backend_v4(1), PORT);
                let drain = format!("backend drain {} {}:{PORT}", service.vip, drained.0);
                stage.lbctl(&drain)?;
                ensure!(spread(&stage, vip, &ports, DATA)? == first, "drained");
                // Those that begin now go to others.
                let later: Vec<u16> = ports.iter().map(|port| port + CLIENTS).collect();
                let begun = spread(&stage, vip, &later, INIT)?;
                ensure!(begun.values().all(|&n| n != 1), "{begun:?}");
                stage.agent.restart()?;
                ensure!(spread(&stage, vip, &ports, DATA)? == first, "restarted");
                ensure!(spread(&stage, vip, &later, DATA)? == begun, "restarted");
                spread(&stage, vip, &ports, ABORT)?;
                stage.lbctl(&format!("service remove {}", service.vip))?;
            }
            Ok(())
        },
    )
}

#[test]
fn an_association_of_the_kernels_own_stands() -> Result<()> {
    const NAME: &str = "an_association_of_the_kernels_own_stands";
    with_root(NAME, || {
        let listed = std::fs::read_to_string("/proc/net/protocols")?;
        if !listed.lines().any(|line| line.starts_with("SCTP ")) {
            skip(NAME, "this kernel has no SCTP");
            return Ok(());
        }
        let vip = vip_v4(1);
        let service = format!("{vip}:{PORT}/sctp");
        let service = Service::new(service, "l2", Health::NONE, v4_pool(PORT));
        let stage = Stage::new(Topology::new(BACKENDS)?, vec![service])?;
        let sctp = || {
            let (kind, protocol) = (libc::SOCK_STREAM.into(), libc::IPPROTO_SCTP.into());
            socket2::Socket::new(socket2::Domain::IPV4, kind, Some(protocol))
        };
        let mut listeners = Vec::new();
        for node in &stage.topology.backends {
            let listener = node.run(|| {
                let socket = sctp()?;
                socket.bind(&std::net::SocketAddr::from((vip, PORT)).into())?;
                socket.listen(8)?;
                std::io::Result::Ok(socket)
            })?;
            listeners.push(listener);
        }
        stage.topology.client.run(|| {
            let to = std::net::SocketAddr::from((vip, PORT));
            sctp()?.connect_timeout(&to.into(), SOON)
        })?;
        Ok(())
    })
}
