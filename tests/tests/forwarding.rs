//! Every mode and family as users meet it: real requests and datagrams in front, real servers
//! behind, and every packet between read by an independent parser.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::IpNumber;
use lb_tests::{
    capture::{Capture, Direction},
    config::{Health, Service},
    dissect::{Ip, Packet, dissect},
    load::{Checksum, udp_requests},
    skip::{skip, with_root},
    stage::{BACKENDS, Stage, UDP_PORT, every_mode, every_udp_mode, vip, web},
    topology::{
        BALANCER_V4, BALANCER_V6, CLIENT_V4, CLIENT_V6, INTERFACE, POOL_V4, POOL_V6, Topology,
        backend_name, backend_v4, backend_v6,
    },
    udp::UdpEcho,
    wireshark,
};

/// Requests that are counted by backend: the standard deviation of a third of them is 2.1%, so that
/// 10% are beyond chance in all of these tests together.
const REQUESTS: usize = 4_500;

fn assert_shares(service: &Service, answers: &BTreeMap<String, usize>, weights: &[usize]) {
    let total: usize = answers.values().sum();
    let weight: usize = weights.iter().sum();
    println!("{} {}: {answers:?}", service.mode, service.vip);
    assert_eq!(answers.len(), weights.len(), "{}: {answers:?}", service.vip);
    for ((name, &count), &share) in answers.iter().zip(weights) {
        let ideal = total as f64 * share as f64 / weight as f64;
        let off = (count as f64 - ideal).abs() / ideal;
        assert!(
            off <= 0.10,
            "{}: {name} answered {count}, not {ideal}: {answers:?}",
            service.vip
        );
    }
}

#[test]
fn every_mode_and_family_spreads_requests_over_equal_backends() -> Result<()> {
    with_root(
        "every_mode_and_family_spreads_requests_over_equal_backends",
        || {
            let services = every_mode();
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for service in &services {
                assert_shares(service, &stage.answers(service, REQUESTS)?, &[1, 1, 1]);
            }
            Ok(())
        },
    )
}

#[test]
fn every_mode_and_family_spreads_datagrams_and_brings_answers_from_the_vip_intact() -> Result<()> {
    with_root(
        "every_mode_and_family_spreads_datagrams_and_brings_answers_from_the_vip_intact",
        || {
            let services = every_udp_mode()?;
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            let _servers = echo_servers(&stage, &services)?;
            for service in &services {
                let answers = datagrams(&stage, service, REQUESTS, Checksum::Present)?;
                assert_shares(service, &answers, &[1, 1, 1]);
            }
            // Over IPv6 there is no such datagram.
            for service in services.iter().filter(|service| is_v4(service)) {
                datagrams(&stage, service, 300, Checksum::Absent)?;
            }
            Ok(())
        },
    )
}

#[test]
fn weights_share_requests_out_in_their_ratio() -> Result<()> {
    with_root("weights_share_requests_out_in_their_ratio", || {
        let mut service = web(Health::HTTP);
        for ((_, weight), share) in service.backends.iter_mut().zip(1..) {
            *weight = share;
        }
        let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
        // The smallest share varies by a standard deviation of 2.4%, so that 10% are beyond chance.
        assert_shares(&service, &stage.answers(&service, 9_000)?, &[1, 2, 3]);
        Ok(())
    })
}

#[test]
fn every_packet_is_well_formed_on_the_wire_behind_the_tunnel_and_at_the_client() -> Result<()> {
    with_root(
        "every_packet_is_well_formed_on_the_wire_behind_the_tunnel_and_at_the_client",
        || {
            const EACH: usize = 20;
            let services = [every_mode(), every_udp_mode()?].concat();
            let captures = exchange(&services, EACH)?;
            let seen = read_all(&captures, &services)?;
            println!("packets: {seen:?}");
            for service in &services {
                for (place, least) in expected(service, EACH) {
                    let key = (service.mode, service.vip.clone(), place);
                    let count = seen.get(&key).copied().unwrap_or_default();
                    // TCP is free in how many acknowledgements it sends.
                    let right = count == least || !is_udp(service) && count > least;
                    ensure!(right, "{count} packets instead of {least}: {key:?}");
                }
            }
            Ok(())
        },
    )
}

#[test]
fn wireshark_finds_nothing_wrong_with_a_packet_of_any_mode_and_family() -> Result<()> {
    const NAME: &str = "wireshark_finds_nothing_wrong_with_a_packet_of_any_mode_and_family";
    with_root(NAME, || {
        if !wireshark::is_here() {
            skip(NAME, "tshark is not installed");
            return Ok(());
        }
        let services = [every_mode(), every_udp_mode()?].concat();
        let mut frames = Vec::new();
        for (_, capture) in exchange(&services, 5)? {
            frames.extend(capture.take()?);
        }
        println!("{} frames", frames.len());
        let faults = wireshark::faults(&frames)?;
        assert!(faults.is_empty(), "{faults:#?}");
        // It would say so.
        let spoilt = frames.iter().cloned().map(|mut frame| {
            frame.last_mut().into_iter().for_each(|byte| *byte ^= 1);
            frame
        });
        assert!(!wireshark::faults(&spoilt.collect::<Vec<_>>())?.is_empty());
        Ok(())
    })
}

/// So many requests to each service, and as many datagrams without a checksum: what was seen of them everywhere.
fn exchange(services: &[Service], each: usize) -> Result<Vec<(Place, Capture)>> {
    let stage = Stage::new(Topology::new(BACKENDS)?, services.to_vec())?;
    let _servers = echo_servers(&stage, services)?;
    let captures = captures(&stage.topology)?;
    for service in services {
        if is_udp(service) {
            datagrams(&stage, service, each, Checksum::Present)?;
        } else {
            stage.answers(service, each)?;
        }
    }
    for service in services.iter().filter(|s| is_udp(s) && is_v4(s)) {
        datagrams(&stage, service, each, Checksum::Absent)?;
    }
    Ok(captures)
}

/// How many packets there are at each place, of `each` requests.
fn expected(service: &Service, each: usize) -> [(&'static str, usize); 5] {
    let (there, back, unsummed) = match (is_udp(service), is_v4(service)) {
        // SYN, ACK, the request, FIN; there and back.
        (false, _) => (4 * each, 4 * each, 0),
        (true, true) => (2 * each, 2 * each, each),
        (true, false) => (each, each, 0),
    };
    [
        ("wire", there),
        ("wire, without checksum", unsummed),
        ("backend", there),
        ("backend, without checksum", unsummed),
        ("client", back),
    ]
}

fn is_udp(service: &Service) -> bool {
    service.vip.ends_with("/udp")
}

fn is_v4(service: &Service) -> bool {
    vip(service).is_ok_and(|vip| vip.is_ipv4())
}

fn echo_servers(stage: &Stage, services: &[Service]) -> Result<Vec<UdpEcho>> {
    let direct = services.iter().filter(|s| is_udp(s) && !s.is_translated());
    let vips = direct.map(vip).collect::<Result<Vec<_>>>()?;
    let server = |n: u8| {
        let own = [IpAddr::from(backend_v4(n)), backend_v6(n).into()];
        let own = own.map(|address| SocketAddr::new(address, UDP_PORT));
        let addresses = [&own[..], &vips].concat();
        UdpEcho::start(stage.topology.backend(n), &backend_name(n), &addresses)
    };
    (1..=BACKENDS).map(server).collect()
}

fn datagrams(
    stage: &Stage,
    service: &Service,
    count: usize,
    checksum: Checksum,
) -> Result<BTreeMap<String, usize>> {
    let report = udp_requests(&stage.topology.client, vip(service)?, count, checksum)?;
    stage.all_answered(service, &report)
}

/// Where packets are looked at.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// As they leave the switch for backend `n`.
    Wire(u8),
    /// Past the decapsulator of backend `n`.
    Backend(u8),
    /// As the client gets them.
    Client,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Wire(_) => "wire",
            Self::Backend(_) => "backend",
            Self::Client => "client",
        }
    }

    /// What datagrams without a checksum are counted under, too.
    fn without_checksum(self) -> &'static str {
        match self {
            Self::Wire(_) => "wire, without checksum",
            Self::Backend(_) => "backend, without checksum",
            Self::Client => "client, without checksum",
        }
    }
}

fn captures(topology: &Topology) -> Result<Vec<(Place, Capture)>> {
    let received = Direction::Received;
    let client = Capture::start(&topology.client, INTERFACE, received)?;
    let mut captures = vec![(Place::Client, client)];
    for n in 1..=BACKENDS {
        let wire = Capture::start(&topology.switch, &backend_name(n), Direction::Sent)?;
        captures.push((Place::Wire(n), wire));
        let behind = Capture::start(topology.backend(n), INTERFACE, received)?;
        captures.push((Place::Backend(n), behind));
    }
    Ok(captures)
}

/// Packets by mode, service and place. Each must be well-formed, and what its service makes of it.
type Seen = BTreeMap<(&'static str, String, &'static str), usize>;

fn read_all(captures: &[(Place, Capture)], services: &[Service]) -> Result<Seen> {
    let mut seen = Seen::new();
    for (place, capture) in captures {
        for frame in capture.take()? {
            let shown = || format!("{place:?}: {frame:02x?}");
            let Some(packet) = dissect(&frame).with_context(shown)? else {
                continue;
            };
            for service in services {
                if !is_of(service, *place, &packet).with_context(shown)? {
                    continue;
                }
                let mut count = |place| {
                    let key = (service.mode, service.vip.clone(), place);
                    *seen.entry(key).or_default() += 1;
                };
                count(place.name());
                if packet.segment.checksum == 0 {
                    count(place.without_checksum());
                }
            }
        }
    }
    Ok(seen)
}

/// Whether `packet` belongs to `service`.
///
/// # Errors
/// It does, and is not what the service's mode makes of a packet at that place.
fn is_of(service: &Service, place: Place, packet: &Packet) -> Result<bool> {
    let protocol = if is_udp(service) {
        IpNumber::UDP
    } else {
        IpNumber::TCP
    };
    let vip = vip(service)?;
    let (from, to) = ends(packet);
    let client = if vip.is_ipv4() {
        IpAddr::from(CLIENT_V4)
    } else {
        CLIENT_V6.into()
    };
    let (n, tunnelled) = match place {
        Place::Client => {
            ensure!(
                packet.outer.is_none() && to.ip() == client_of(packet.ip),
                "{packet:?}"
            );
            return Ok(from == vip && packet.segment.protocol == protocol);
        }
        Place::Wire(n) => (n, service.is_tunnelled()),
        Place::Backend(n) => (n, false),
    };
    let (backend, _) = service.backends[usize::from(n) - 1];
    let target = if service.is_translated() {
        backend
    } else {
        vip
    };
    // Health checks go to backends, too.
    let probe = [IpAddr::from(BALANCER_V4), BALANCER_V6.into()].contains(&from.ip());
    if to != target || packet.segment.protocol != protocol || probe {
        return Ok(false);
    }
    let pool = [IpAddr::from(POOL_V4), POOL_V6.into()].contains(&from.ip());
    if service.mode == "full-nat" {
        return Ok(pool && packet.outer.is_none());
    }
    // Those of mode full-nat go to the same servers.
    if pool && service.mode == "nat" {
        return Ok(false);
    }
    ensure!(from.ip() == client, "{from} instead of the client");
    match packet.outer {
        Some(outer) if tunnelled => {
            ensure!(outer.destination == backend.ip(), "{outer:?} at {backend}");
            let gue = service.mode == "gue";
            ensure!(packet.between.is_some() == gue, "{packet:?}");
            // With UDP, it is the source port that varies.
            let own = [IpAddr::from(BALANCER_V4), BALANCER_V6.into()].contains(&outer.source);
            ensure!(
                if gue { own } else { is_tunnels(outer.source) },
                "{} is no source of tunnels",
                outer.source
            );
        }
        None if !tunnelled => {}
        other => bail!("tunnelled: {tunnelled}, but the outer header is {other:?}"),
    }
    Ok(true)
}

fn ends(packet: &Packet) -> (SocketAddr, SocketAddr) {
    let Packet { ip, segment, .. } = packet;
    (
        SocketAddr::new(ip.source, segment.source_port),
        SocketAddr::new(ip.destination, segment.destination_port),
    )
}

fn client_of(ip: Ip) -> IpAddr {
    if ip.source.is_ipv4() {
        CLIENT_V4.into()
    } else {
        CLIENT_V6.into()
    }
}

/// Whether `address` is one that the configuration has tunnels come from.
fn is_tunnels(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[10, 255]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0xffff, 0, 0]),
    }
}
