//! Services that have every port of their address which no other service has.

use std::net::{IpAddr, SocketAddr};

use lb_common::verdict::{DropReason, Verdict};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP,
    frames::{Spec, datagram, segment, socket, syn},
    icmp::message,
    support::{CLIENT_MACS, EGRESS, Mode, Move, Outcome, Stage, macs, server},
    tracking::taken_by,
};

/// Client, server, and the address of the VIP.
const ENDS: [(&str, &str, &str); 2] = [
    (CLIENT4, SERVER4, "10.0.0.1"),
    (CLIENT6, SERVER6, "2001:db8::1"),
];
/// Ports of all kinds.
const PORTS: [u16; 5] = [1, 80, 8_080, 0x8000, u16::MAX];

/// An address with a port, written.
fn at(ip: &str, port: u16) -> String {
    let ip: IpAddr = ip.parse().expect("an address");
    SocketAddr::new(ip, port).to_string()
}

/// One service over TCP with every port.
fn every(mode: Mode, ip: &str, to: &str) -> Stage {
    let stage = Stage::new().serve(mode, &at(ip, 0), TCP, &[server(to)]);
    stage.keeping_ports()
}

#[test]
fn a_packet_to_any_port_goes_to_the_server() {
    for (client, to, ip) in ENDS {
        for port in PORTS {
            let frame = syn(client, &at(ip, port)).frame();
            let outcome = every(Mode::L2, ip, to).run(&frame);
            let expected = Spec {
                macs: macs(0),
                ..syn(client, &at(ip, port))
            };
            let count = (1, frame.len() as u64, 1);
            let verdict = Verdict::Redirect(EGRESS);
            let expected = Outcome::forwarded(verdict, expected.frame(), 0, count);
            assert_eq!(outcome, expected, "{port}");
        }
    }
}

#[test]
fn other_protocols_and_addresses_are_not_its() {
    for (client, to, ip) in ENDS {
        let other = if socket(client).is_ipv4() {
            "10.0.0.2"
        } else {
            "2001:db8::2"
        };
        for request in [datagram(client, &at(ip, 80)), syn(client, &at(other, 80))] {
            let frame = request.frame();
            let outcome = every(Mode::Ipip, ip, to).run(&frame);
            assert_eq!(outcome, Outcome::passed(frame));
        }
    }
}

#[test]
fn a_service_of_one_port_has_that_port() {
    for (client, to, ip) in ENDS {
        let single = |stage: Stage| stage.serve(Mode::L2, &at(ip, 80), TCP, &[server(to)]);
        let stage = single(every(Mode::L2, ip, to));
        for (port, taker) in [(79, 0), (80, 1), (81, 0)] {
            let taken = taken_by(&stage, &syn(client, &at(ip, port)));
            assert_eq!(taken, Some(taker), "{port}");
        }
        // Also while nobody may take its packets.
        let dead = every(Mode::L2, ip, to).serve(Mode::L2, &at(ip, 80), TCP, &[server(to).dead()]);
        let outcome = dead.run(&syn(client, &at(ip, 80)).frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::NoBackend));
    }
}

#[test]
fn one_that_is_not_in_force_has_no_port() {
    let frame = syn(CLIENT4, "10.0.0.1:443").frame();
    let stage = every(Mode::Ipip, "10.0.0.1", SERVER4).only_in(1);
    assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
    let verdict = stage.generation(1).run(&frame).verdict;
    assert_eq!(verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn in_nat_mode_packets_keep_their_port_there_and_back() {
    for (client, to, ip) in ENDS {
        let backend = socket(to).ip().to_string();
        for port in PORTS {
            let stage = every(Mode::Nat, ip, to).route(socket(client).ip(), EGRESS);
            let request = segment(client, &at(ip, port));
            let expected = segment(client, &at(&backend, port)).routed(macs(0));
            let outcome = stage.run(&request.frame());
            assert_eq!(outcome.frame.0, expected.frame(), "{port}");
            let answer = segment(&at(&backend, port), client);
            let expected = segment(&at(ip, port), client).routed(CLIENT_MACS);
            let verdict = Verdict::Redirect(EGRESS);
            let expected = Outcome::uncounted(verdict, expected.frame());
            assert_eq!(stage.run(&answer.frame()), expected, "{port}");
        }
    }
}

#[test]
fn an_answer_goes_by_the_service_of_its_port_first() {
    let stage = every(Mode::Nat, "10.0.0.1", SERVER4)
        .serve(Mode::Nat, "10.0.0.1:80", TCP, &[server("10.1.0.2:80")])
        .route(socket(CLIENT4).ip(), EGRESS);
    for (from, as_if) in [(80, 80), (8_080, 8_080)] {
        let answer = segment(&at("10.1.0.2", from), CLIENT4);
        let expected = segment(&at("10.0.0.1", as_if), CLIENT4).routed(CLIENT_MACS);
        assert_eq!(stage.run(&answer.frame()).frame.0, expected.frame());
    }
}

#[test]
fn a_servers_answers_by_another_protocol_are_left_alone() {
    let stage = every(Mode::Nat, "10.0.0.1", SERVER4).route(socket(CLIENT4).ip(), EGRESS);
    let frame = datagram(SERVER4, CLIENT4).frame();
    assert_eq!(stage.run(&frame), Outcome::passed(frame));
}

#[test]
fn an_error_about_a_flow_finds_both_of_its_ends() {
    for (client, to, ip) in ENDS {
        let too_big = if socket(client).is_ipv4() {
            (3, 4)
        } else {
            (2, 0)
        };
        let vip = at(ip, 5_060);
        let backend = at(&socket(to).ip().to_string(), 5_060);
        let rest = [0, 0, 5, 0];
        let stage = every(Mode::Nat, ip, to).route(socket(client).ip(), EGRESS);
        let error = message(client, &vip, too_big, rest, &segment(&vip, client).ip());
        let quoted = segment(&backend, client).ip();
        let expected = message(client, &backend, too_big, rest, &quoted).routed(macs(0));
        assert_eq!(stage.run(&error.frame()).frame.0, expected.frame());
        // Of the server's host, about what the client sent.
        let error = message(
            &backend,
            client,
            too_big,
            rest,
            &segment(client, &backend).ip(),
        );
        let quoted = segment(client, &vip).ip();
        let expected = message(&vip, client, too_big, rest, &quoted).routed(CLIENT_MACS);
        assert_eq!(stage.run(&error.frame()).frame.0, expected.frame());
    }
}

#[test]
fn flows_from_one_socket_to_several_ports_are_told_apart() {
    let servers = [server(SERVER4), server("10.1.0.3:8080")];
    let stage = Stage::new()
        .serve(Mode::L2, "10.0.0.1:0", TCP, &servers)
        .moving_time(900 * 954)
        .moved(Move::Moving(1, 0));
    // The one was there before the slot moved, the other comes after.
    assert_eq!(taken_by(&stage, &segment(CLIENT4, "10.0.0.1:80")), Some(0));
    assert_eq!(taken_by(&stage, &syn(CLIENT4, "10.0.0.1:81")), Some(1));
    assert_eq!(taken_by(&stage, &segment(CLIENT4, "10.0.0.1:80")), Some(0));
    assert_eq!(taken_by(&stage, &segment(CLIENT4, "10.0.0.1:81")), Some(1));
    assert_eq!(stage.recorded(), (2, 0));
}

#[test]
fn both_protocols_may_have_every_port() {
    let stage = Stage::new()
        .serve(Mode::L2, "10.0.0.1:0", TCP, &[server(SERVER4)])
        .serve(Mode::L2, "10.0.0.1:0", UDP, &[server("10.1.0.3:8080")]);
    assert_eq!(taken_by(&stage, &syn(CLIENT4, "10.0.0.1:53")), Some(0));
    assert_eq!(taken_by(&stage, &datagram(CLIENT4, "10.0.0.1:53")), Some(1));
}
