//! What the balancer sends beside requests and their answers ([`forwarding.rs`](forwarding.rs)), as Wireshark reads it: fragments,
//! ICMP errors, resets, answers of the program's own, frames with VLAN tags, SCTP.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use lb_common::tables::Tag;
use lb_tests::{
    backend::PORT,
    config::{Config, Health, Service},
    dump::Dump,
    link::Link,
    load::{fragments::Datagram, raw::Raw},
    process::{run, run_with_input},
    skip::{skip, with_root},
    stage::{
        BACKENDS, Stage, UDP_PORT, every_mode_at, every_udp_mode, full_nat, tcp, v4_pool, v6_pool,
        vip,
    },
    topology::{CLIENT_V4, CLIENT_V6, INTERFACE, Topology, vip_v4, vip_v6},
    wait::wait_ok,
    wireshark,
};

const SOON: Duration = Duration::from_secs(30);
/// Nobody answers.
const MOMENT: Duration = Duration::from_millis(100);
/// The switch's end of the balancer's link.
const FAR_END: &str = "balancer";
/// Where signalling over SCTP (M3UA) is at home.
const SCTP_PORT: u16 = 2_905;
/// A port that no service has.
const UNKNOWN: u16 = 81;
/// Of clients.
const FROM: u16 = 40_000;
/// A datagram that fills a link, in payload of IPv4 and IPv6.
const FULL: [usize; 2] = [1_472, 1_452];
const TAGS: [&[Tag]; 2] = [
    &[[0x81, 0, 0, 100]],
    &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 100]],
];

/// Whatever is looked at, as filters of Wireshark's.
const KINDS: [&str; 29] = [
    // Fragments, in tunnels and as they are.
    "ip.frag_offset > 0 && !ipv6",
    "ipv6.fraghdr.offset > 0 && !ip",
    "ip.frag_offset > 0 && ipv6",
    "ipv6.fraghdr.offset > 0 && ip",
    // Packets that are too big, or have no hop left; whom nobody serves; whose server nobody is.
    "icmp.type == 3 && icmp.code == 4",
    "icmpv6.type == 2",
    "icmp.type == 11",
    "icmpv6.type == 3",
    "icmp.type == 3 && icmp.code == 1",
    "icmpv6.type == 1 && icmpv6.code == 3",
    "icmp.type == 3 && icmp.code == 3",
    "icmpv6.type == 1 && icmpv6.code == 4",
    // Resets and SYN cookies.
    "ip && tcp.flags.reset == 1 && !icmp",
    "ipv6 && tcp.flags.reset == 1 && !icmpv6",
    "ip && tcp.srcport == 80 && tcp.flags.syn == 1 && tcp.flags.ack == 1",
    // Echoes.
    "icmp.type == 0",
    "icmpv6.type == 129",
    // Answers about VIPs, and what tells of them unasked.
    "arp.opcode == 2 && arp.src.proto_ipv4 == 10.0.0.1 && !arp.isgratuitous",
    "icmpv6.type == 136 && icmpv6.nd.na.target_address == fd00::1 && icmpv6.nd.na.flag.s == 1",
    "arp.isgratuitous",
    "icmpv6.type == 136 && icmpv6.nd.na.flag.s == 0",
    // Tags, around datagrams, tunnels and answers.
    "vlan.id == 100 && udp && !ieee8021ad",
    "ieee8021ad.id == 7 && ip.proto == 4",
    "vlan.id == 100 && icmp.type == 0",
    "vlan.id == 100 && tcp.flags.reset == 1",
    // SCTP, in tunnels and as it is.
    "sctp && ip.proto == 4",
    "sctp && ipv6.nxt == 41",
    "sctp && !(ip.proto == 4) && !ipv6",
    // SYNs whose MSS was lowered.
    "tcp.options.mss_val == 1200",
];

/// Datagrams that no server takes, in every mode; SCTP where there is any; TCP that is refused, proxied, clamped.
fn services() -> Result<Vec<Service>> {
    let announced = |service: Service| match service.mode {
        "nat" => service.with_true("announce"),
        _ => service,
    };
    let sctp = every_mode_at(SCTP_PORT, "sctp")?.into_iter();
    let mut services: Vec<Service> = every_udp_mode()?.into_iter().map(announced).collect();
    services.extend(sctp.filter(|service| !service.is_translated()));
    for (n, policy) in [(8, "reset"), (9, "unreachable")] {
        for vip in [tcp(vip_v4(n)), tcp(vip_v6(n.into()))] {
            let unserved = Service::new(vip, "nat", Health::NONE, []);
            services.push(unserved.with("no_backend", policy));
        }
    }
    let proxied = Service {
        health: Health::NONE,
        ..full_nat(tcp(vip_v4(10)), v4_pool(PORT))
    };
    services.push(proxied.with("syn_proxy", "always"));
    let second_hop = Service::new(tcp(vip_v4(11)), "gue", Health::NONE, v4_pool(PORT));
    services.push(second_hop.with_true("second_hop"));
    let clamped = Service::new(tcp(vip_v6(12)), "nat", Health::NONE, v6_pool(PORT));
    services.push(clamped.with_number("mss_clamp", 1_200));
    Ok(services)
}

fn client(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() {
        CLIENT_V4.into()
    } else {
        CLIENT_V6.into()
    }
}

/// An IP packet from the client.
fn packet(to: SocketAddr, protocol: IpNumber, ttl: u8, content: &[u8]) -> Result<Vec<u8>> {
    let header = match to.ip() {
        IpAddr::V4(to) => {
            let own = CLIENT_V4.octets();
            let mut ip = Ipv4Header::new(content.len() as u16, ttl, protocol, own, to.octets())?;
            ip.header_checksum = ip.calc_header_checksum();
            ip.to_bytes().to_vec()
        }
        IpAddr::V6(to) => Ipv6Header {
            payload_length: content.len() as u16,
            next_header: protocol,
            hop_limit: ttl,
            source: CLIENT_V6.octets(),
            destination: to.octets(),
            ..Ipv6Header::default()
        }
        .to_bytes()
        .to_vec(),
    };
    Ok([&header[..], content].concat())
}

/// An SCTP packet with an INIT chunk (RFC 9260 §3.3.2), without a checksum and then with it.
fn init() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(FROM.to_be_bytes());
    bytes.extend(SCTP_PORT.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 7]);
    let sum = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg())
        })
    })
}

/// Until the way to every backend is known.
fn await_ways(stage: &Stage, services: &[Service]) -> Result<()> {
    wait_ok("every way is known", SOON, || {
        for service in services {
            let shown = stage.shown(service)?;
            let backends = shown["backends"].as_array().context("backends")?;
            let is_known = |backend: &serde_json::Value| backend["mtu"].is_u64();
            ensure!(backends.iter().all(is_known), "{shown:#}");
        }
        Ok(())
    })
}

/// All that client and hosts on the link send.
fn send_all(stage: &Stage, services: &[Service]) -> Result<()> {
    let namespace = &stage.topology.client;
    let of = |protocol: &str| {
        let own = services.iter().filter(move |s| s.vip.ends_with(protocol));
        own.map(vip).collect::<Result<Vec<_>>>()
    };
    for (to, id) in of("/udp")?.into_iter().zip(1..) {
        let socket = namespace.run(|| UdpSocket::bind((client(to), 0)))?;
        // What it hears of one datagram, the next one is refused for.
        for length in [100, FULL[usize::from(to.is_ipv6())]] {
            socket.send_to(&vec![7; length], to)?;
        }
        let from = SocketAddr::new(client(to), FROM);
        let (raw, datagram) = (
            Raw::new(namespace, to)?,
            Datagram::new(from, to, id, &[7; 3_000])?,
        );
        datagram
            .parts()?
            .iter()
            .try_for_each(|part| raw.send(part))?;
        let datagram = Datagram::new(from, to, id + 100, &[8; 3_000])?;
        let parts = datagram.parts()?;
        parts.iter().rev().try_for_each(|part| raw.send(part))?;
        raw.send(&packet(
            to,
            IpNumber::UDP,
            1,
            &[0, 9, 0x23, 0x28, 0, 8, 0, 0],
        )?)?;
        socket.send_to(b"?", SocketAddr::new(to.ip(), UNKNOWN))?;
    }
    for to in of("/sctp")? {
        Raw::new(namespace, to)?.send(&packet(to, IpNumber::SCTP, 64, &init())?)?;
    }
    for to in of("/tcp")? {
        drop(namespace.run(|| TcpStream::connect_timeout(&to, MOMENT)));
    }
    for to in [IpAddr::from(vip_v4(1)), vip_v6(1).into()] {
        let mut ping = namespace.command("ping");
        run(ping.args(["-c1", "-W5", "-s", "501", &to.to_string()]))?;
    }
    on_link(stage)?;
    tagged(stage, &of("/udp")?)?;
    stage.lbctl("announce")
}

/// The client looks for VIPs on its own link.
fn on_link(stage: &Stage) -> Result<()> {
    let namespace = &stage.topology.client;
    run_with_input(
        Command::new("ip").args(["-n", namespace.name(), "-batch", "-"]),
        "route add 10.0.0.0/24 dev eth0\nroute add fd00::/64 dev eth0\n",
    )?;
    for to in [IpAddr::from(vip_v4(1)), vip_v6(1).into()] {
        let mut ping = namespace.command("ping");
        run(ping.args(["-c1", "-W5", &to.to_string()]))?;
    }
    Ok(())
}

/// Datagrams, an echo request and what is refused, with tags.
fn tagged(stage: &Stage, to: &[SocketAddr]) -> Result<()> {
    let mac = |namespace| anyhow::Ok(Link::open(namespace, INTERFACE)?.mac());
    let (balancer, own) = (mac(&stage.topology.balancer)?, mac(&stage.topology.client)?);
    let link = Link::open(&stage.topology.switch, FAR_END)?;
    let send = |frame: &[u8]| {
        let (addresses, rest) = frame.split_at(12);
        TAGS.iter()
            .try_for_each(|tags| link.send(&[addresses, tags.as_flattened(), rest].concat()))
    };
    let ethernet = || PacketBuilder::ethernet2(own, balancer);
    let mut frame = Vec::new();
    for to in to {
        frame.clear();
        let ip = match to.ip() {
            IpAddr::V4(to) => ethernet().ipv4(CLIENT_V4.octets(), to.octets(), 64),
            IpAddr::V6(to) => ethernet().ipv6(CLIENT_V6.octets(), to.octets(), 64),
        };
        ip.udp(FROM + 1, UDP_PORT)
            .write(&mut frame, b"a datagram")?;
        send(&frame)?;
    }
    let ip = || ethernet().ipv4(CLIENT_V4.octets(), vip_v4(8).octets(), 64);
    frame.clear();
    ip().icmpv4_echo_request(7, 1).write(&mut frame, b"hello")?;
    send(&frame)?;
    frame.clear();
    ip().tcp(FROM, PORT, 7, 1_024)
        .syn()
        .write(&mut frame, &[])?;
    send(&frame)
}

#[test]
fn wireshark_finds_nothing_wrong_with_fragments_errors_resets_tags_and_the_programs_own_answers()
-> Result<()> {
    const NAME: &str = "wireshark_finds_nothing_wrong_with_fragments_errors_resets_tags_and_the_programs_own_answers";
    with_root(NAME, || {
        if !wireshark::is_here() {
            skip(NAME, "tshark is not installed");
            return Ok(());
        }
        let services = services()?;
        let config = Config {
            vlans: Some("on"),
            unknown_port: Some("reset"),
            ..Config::from(services.clone())
        };
        let stage = Stage::new(Topology::new(BACKENDS)?, config)?;
        await_ways(&stage, &services)?;
        let sent = Dump::start(&stage.topology.switch, FAR_END)?;
        send_all(&stage, &services)?;
        for kind in KINDS {
            let count = wait_ok(kind, SOON, || {
                let found = wireshark::found(&sent.all()?, kind)?;
                ensure!(!found.is_empty(), "no such frame");
                Ok(found.len())
            })
            .with_context(|| stage.agent.log())?;
            println!("{count} frames: {kind}");
        }
        let frames = sent.all()?;
        let faults = wireshark::faults(&frames)?;
        assert!(faults.is_empty(), "{faults:#?}");
        // It would say so, of each that has a checksum.
        for protocol in ["icmp", "icmpv6", "tcp", "udp", "sctp"] {
            let mut spoilt = Vec::new();
            for place in wireshark::found(&frames, protocol)? {
                let mut frame = frames[place].clone();
                frame.last_mut().into_iter().for_each(|byte| *byte ^= 1);
                spoilt.push(frame);
            }
            let faults = wireshark::faults(&spoilt)?;
            // Some are in fragments; of a message, the sum takes all.
            let least = match protocol {
                "icmp" | "icmpv6" => spoilt.len(),
                _ => 1,
            };
            let found = faults.len();
            assert!(found >= least, "{found} of {} of {protocol}", spoilt.len());
        }
        Ok(())
    })
}
