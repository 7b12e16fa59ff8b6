//! Services of several addresses, or of a range of ports.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use lb_common::{
    tables::refusal,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP,
    fragments::{CUTS, cut, large},
    frames::{Spec, datagram, segment, socket, syn},
    icmp::message,
    support::{CLIENT_MACS, EGRESS, GUE_PORT, INGRESS, Mode, Move, Outcome, Stage, macs, server},
    tracking::taken_by,
};

/// Client, server, the first address of a prefix and its length.
const ENDS: [(&str, &str, (&str, u32)); 2] = [
    (CLIENT4, SERVER4, ("203.0.113.16:0", 28)),
    (CLIENT6, SERVER6, ("[2001:db8:7::]:0", 64)),
];
/// Addresses of those prefixes, the first and the last ones among them, and some that are just beyond.
const WITHIN4: [&str; 3] = ["203.0.113.16", "203.0.113.25", "203.0.113.31"];
const BEYOND4: [&str; 2] = ["203.0.113.15", "203.0.113.32"];
const WITHIN6: [&str; 3] = [
    "2001:db8:7::",
    "2001:db8:7::25",
    "2001:db8:7:0:ffff:ffff:ffff:ffff",
];
const BEYOND6: [&str; 2] = ["2001:db8:6:ffff:ffff:ffff:ffff:ffff", "2001:db8:7:1::"];

const RANGE: RangeInclusive<u16> = 8_000..=8_005;
const EVERY: RangeInclusive<u16> = 0..=u16::MAX;

/// An address with a port, written.
fn at(ip: &str, port: u16) -> String {
    let ip: IpAddr = ip.parse().expect("an address");
    SocketAddr::new(ip, port).to_string()
}

fn within(client: &str) -> [&'static str; 3] {
    if socket(client).is_ipv4() {
        WITHIN4
    } else {
        WITHIN6
    }
}

fn beyond(client: &str) -> [&'static str; 2] {
    if socket(client).is_ipv4() {
        BEYOND4
    } else {
        BEYOND6
    }
}

#[test]
fn every_address_of_a_prefix_and_every_port_of_a_range_is_the_services() {
    for (client, to, prefix) in ENDS {
        let stage = Stage::new().serve_wide(Mode::L2, prefix, RANGE, TCP, &[server(to)]);
        for ip in within(client) {
            for port in [8_000, 8_003, 8_005] {
                let request = syn(client, &at(ip, port));
                let frame = request.frame();
                let expected = Spec {
                    macs: macs(0),
                    ..request
                };
                let count = (1, frame.len() as u64, 1);
                let verdict = Verdict::Redirect(EGRESS);
                let expected = Outcome::forwarded(verdict, expected.frame(), 0, count);
                assert_eq!(stage.run(&frame), expected, "{ip} {port}");
            }
            for other in [
                syn(client, &at(ip, 7_999)),
                syn(client, &at(ip, 8_006)),
                datagram(client, &at(ip, 8_000)),
            ] {
                let frame = other.frame();
                assert_eq!(stage.run(&frame), Outcome::passed(frame), "{other:?}");
            }
        }
        for ip in beyond(client) {
            let frame = syn(client, &at(ip, 8_000)).frame();
            assert_eq!(stage.run(&frame), Outcome::passed(frame), "{ip}");
        }
    }
}

#[test]
fn tunnels_carry_a_packet_to_any_of_its_addresses_as_it_is() {
    for (client, to, prefix) in ENDS {
        let tunnel = if socket(client).is_ipv4() {
            "172.16.0.1"
        } else {
            "fd00:77::1"
        };
        for (mode, udp) in [(Mode::Ipip, None), (Mode::Gue, Some(GUE_PORT))] {
            let to = server(to).tunnel(tunnel, 0);
            let stage = Stage::new().serve_wide(mode, prefix, EVERY, TCP, &[to]);
            for ip in within(client) {
                let request = segment(client, &at(ip, 443));
                let outcome = stage.run(&request.frame());
                assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
                let inner = request.ip();
                let before = outcome.frame.0.len() - inner.len();
                assert_eq!(outcome.frame.0[before..], inner, "{mode:?} {ip}");
                let outer = if udp.is_some() { 8 } else { 0 };
                let header = if socket(client).is_ipv4() { 20 } else { 40 };
                assert_eq!(before, 14 + header + outer, "{mode:?}");
            }
        }
    }
}

#[test]
fn the_fewest_addresses_come_first_then_the_fewest_ports() {
    let servers = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"].map(server);
    let [wide, every, single] = servers;
    let prefix = ("203.0.113.16:0", 28);
    let stage = Stage::new()
        .serve_wide(Mode::L2, prefix, EVERY, TCP, &[wide])
        .serve(Mode::L2, "203.0.113.17:0", TCP, &[every])
        .serve(Mode::L2, "203.0.113.17:80", TCP, &[single]);
    for (to, taker) in [
        ("203.0.113.18:80", 0),
        ("203.0.113.17:81", 1),
        ("203.0.113.17:80", 2),
    ] {
        assert_eq!(taken_by(&stage, &syn(CLIENT4, to)), Some(taker), "{to}");
    }
}

#[test]
fn a_range_comes_before_every_port_of_its_address() {
    let [range, every, single] = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"].map(server);
    let stage = Stage::new().serve_wide(Mode::L2, ("203.0.113.17:0", 32), RANGE, TCP, &[range]);
    let class = stage.class();
    let stage = stage
        .serve(Mode::L2, "203.0.113.17:0", TCP, &[every])
        .overlaid(class, EVERY)
        .serve(Mode::L2, "203.0.113.17:8001", TCP, &[single]);
    for (port, taker) in [
        (80, 1),
        (7_999, 1),
        (8_000, 0),
        (8_001, 2),
        (8_005, 0),
        (8_006, 1),
    ] {
        let taken = taken_by(&stage, &syn(CLIENT4, &at("203.0.113.17", port)));
        assert_eq!(taken, Some(taker), "{port}");
    }
}

#[test]
fn one_that_is_not_in_force_has_nothing() {
    let prefix = ("203.0.113.16:0", 28);
    let stage = Stage::new().serve_wide(Mode::L2, prefix, EVERY, TCP, &[server(SERVER4)]);
    let stage = stage.class_only_in(1);
    let frame = syn(CLIENT4, "203.0.113.17:80").frame();
    assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
    let verdict = stage.generation(1).run(&frame).verdict;
    assert_eq!(verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn flows_are_placed_by_their_own_destination() {
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let prefix = ("203.0.113.0:0", 24);
    let stage = Stage::new()
        .hashing()
        .serve_wide(Mode::L2, prefix, EVERY, TCP, &servers);
    let taken = |ip: u8, port: u16| {
        let request = segment(CLIENT4, &format!("203.0.113.{ip}:{port}"));
        taken_by(&stage, &request)
    };
    let by_address: BTreeSet<_> = (0..=255).map(|ip| taken(ip, 80)).collect();
    let by_port: BTreeSet<_> = (1..=255).map(|port| taken(1, port)).collect();
    assert_eq!((by_address.len(), by_port.len()), (8, 8));
}

#[test]
fn flows_from_one_socket_to_several_addresses_or_ports_are_told_apart() {
    for (client, to, prefix) in ENDS {
        let servers = [server(to), server(to)];
        let stage = Stage::new()
            .serve_wide(Mode::L2, prefix, EVERY, TCP, &servers)
            .moving_time(900 * 954)
            .moved(Move::Moving(1, 0));
        let [first, second, third] = within(client);
        // The one was there before the slot moved, the others come after.
        assert_eq!(taken_by(&stage, &segment(client, &at(first, 80))), Some(0));
        for (ip, port) in [(second, 80), (third, 80), (first, 81)] {
            assert_eq!(taken_by(&stage, &syn(client, &at(ip, port))), Some(1));
        }
        for (ip, port, taker) in [
            (first, 80, 0),
            (second, 80, 1),
            (third, 80, 1),
            (first, 81, 1),
        ] {
            let taken = taken_by(&stage, &segment(client, &at(ip, port)));
            assert_eq!(taken, Some(taker), "{ip} {port}");
        }
        assert_eq!(stage.recorded(), (4, 0));
    }
}

#[test]
fn in_nat_mode_a_range_keeps_its_ports_there_and_back() {
    for (client, to, (vip, _)) in ENDS {
        let one = if socket(client).is_ipv4() { 32 } else { 128 };
        let stage = Stage::new()
            .serve_wide(Mode::Nat, (vip, one), RANGE, TCP, &[server(to)])
            .route(socket(client).ip(), EGRESS);
        let (vip, backend) = (socket(vip).ip().to_string(), socket(to).ip().to_string());
        for port in RANGE {
            let request = segment(client, &at(&vip, port));
            let expected = segment(client, &at(&backend, port)).routed(macs(0));
            assert_eq!(stage.run(&request.frame()).frame.0, expected.frame());
            let answer = segment(&at(&backend, port), client);
            let expected = segment(&at(&vip, port), client).routed(CLIENT_MACS);
            let verdict = Verdict::Redirect(EGRESS);
            let expected = Outcome::uncounted(verdict, expected.frame());
            assert_eq!(stage.run(&answer.frame()), expected, "{port}");
        }
        // What it sends from other ports is its own.
        let frame = segment(&at(&backend, 22), client).frame();
        assert_eq!(stage.run(&frame), Outcome::passed(frame));
    }
}

#[test]
fn in_full_nat_answers_come_from_the_address_and_port_that_were_asked() {
    for (client, to, prefix) in ENDS {
        let pool = if socket(client).is_ipv4() {
            "10.9.0.1"
        } else {
            "fd00:9::1"
        };
        let stage = Stage::new()
            .hashing()
            .serve_wide(Mode::FullNat, prefix, EVERY, TCP, &[server(to)])
            .translating(&[pool], (2_000, 2_999))
            .route(socket(client).ip(), INGRESS);
        let backend = socket(to).ip().to_string();
        for ip in within(client) {
            let vip = at(ip, 443);
            let out = stage.run(&syn(client, &vip).frame());
            assert_eq!(out.verdict, Verdict::Redirect(EGRESS), "{vip}");
            let sessions = stage.sessions();
            let newest = sessions.ports.iter().find(|(_, flow)| {
                let last: [u8; 8] = flow.host.to_ne_bytes();
                match ip.parse().expect("an address") {
                    IpAddr::V4(v4) => last[4..] == v4.octets(),
                    IpAddr::V6(v6) => last == v6.octets()[8..],
                }
            });
            let (key, _) = newest.expect("a session of that address");
            let from = at(pool, key.port.to_be());
            let answer = segment(&at(&backend, 443), &from);
            let expected = Spec {
                from: socket(&vip),
                to: socket(client),
                ..answer.clone()
            };
            let expected = expected.routed(CLIENT_MACS).frame();
            let expected = Outcome::uncounted(Verdict::Transmit, expected);
            assert_eq!(stage.run(&answer.frame()), expected, "{vip}");
            // An error of the backend's host about what it was sent.
            let kind = if socket(client).is_ipv4() {
                (3, 3)
            } else {
                (1, 4)
            };
            let quoted = segment(&from, &at(&backend, 443)).ip();
            let error = message(&at(&backend, 0), &from, kind, [0; 4], &quoted);
            let quoted = segment(client, &vip).ip();
            let expected = message(&vip, client, kind, [0; 4], &quoted).routed(CLIENT_MACS);
            assert_eq!(stage.run(&error.frame()).frame.0, expected.frame(), "{vip}");
        }
    }
}

#[test]
fn an_error_about_an_answer_of_any_address_finds_its_backend() {
    for (client, to, prefix) in ENDS {
        let too_big = if socket(client).is_ipv4() {
            (3, 4)
        } else {
            (2, 0)
        };
        let stage = Stage::new().serve_wide(Mode::L2, prefix, EVERY, TCP, &[server(to)]);
        for ip in within(client) {
            let vip = at(ip, 443);
            let quoted = segment(&vip, client).ip();
            let error = message(client, &vip, too_big, [0, 0, 5, 0], &quoted);
            let expected = Spec {
                macs: macs(0),
                ..error.clone()
            };
            assert_eq!(stage.run(&error.frame()).frame.0, expected.frame(), "{ip}");
        }
    }
}

#[test]
fn each_address_of_a_prefix_is_a_vip() {
    for (client, to, prefix) in ENDS {
        let stage = Stage::new().serve_wide(Mode::L2, prefix, RANGE, TCP, &[server(to)]);
        let v4 = socket(client).is_ipv4();
        let echo = |ip: &str| {
            let kind = if v4 { (8, 0) } else { (128, 0) };
            message(client, &at(ip, 0), kind, [0, 7, 0, 1], b"ping")
        };
        let land = |ip: &str| syn(&at(ip, 80), &at(ip, 80));
        for ip in within(client) {
            let stage = stage.clone();
            let outcome = stage.run(&echo(ip).frame());
            assert_eq!(outcome.verdict, Verdict::Transmit, "{ip}");
            assert_eq!(outcome.counted.answers, [(Answer::Echo as u32, 1)].into());
            let outcome = stage.run(&land(ip).frame());
            assert_eq!(outcome, Outcome::dropped(DropReason::Land), "{ip}");
            // A port that no service has.
            let refusing = stage.unknown_port(refusal::RESET);
            let outcome = refusing.run(&syn(client, &at(ip, 22)).frame());
            assert_eq!(outcome.verdict, Verdict::Transmit, "{ip}");
            let reset = [(Answer::Reset as u32, 1)].into();
            assert_eq!(outcome.counted.answers, reset, "{ip}");
        }
        for ip in beyond(client) {
            for other in [echo(ip), land(ip)] {
                let frame = other.frame();
                assert_eq!(stage.run(&frame), Outcome::passed(frame), "{ip}");
            }
        }
    }
}

#[test]
fn an_address_of_the_hosts_own_keeps_its_other_ports() {
    let (client, to, prefix) = ENDS[0];
    let stage = Stage::new()
        .serve_wide(Mode::L2, prefix, RANGE, TCP, &[server(to)])
        .own("203.0.113.17")
        .unknown_port(refusal::DROP);
    let frame = syn(client, "203.0.113.17:22").frame();
    assert_eq!(stage.run(&frame), Outcome::passed(frame));
    let outcome = stage.run(&syn(client, "203.0.113.18:22").frame());
    assert_eq!(outcome, Outcome::dropped(DropReason::UnknownPort));
}

#[test]
fn fragments_follow_their_first_one_to_any_address() {
    let (_, _, prefix) = ENDS[0];
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let stage = Stage::new()
        .hashing()
        .serve_wide(Mode::L2, prefix, EVERY, UDP, &servers);
    for ip in WITHIN4 {
        let mut whole = large(datagram(CLIENT4, &at(ip, 53)));
        whole.identification = u16::from(ip.ends_with('5')) + 7;
        let taker = taken_by(&stage, &whole);
        assert!(taker.is_some(), "{ip}");
        for piece in &cut(&whole, &CUTS) {
            assert_eq!(taken_by(&stage, piece), taker, "{ip}");
        }
    }
}
