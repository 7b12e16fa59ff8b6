//! SCTP in the modes in which backends answer directly: its packets go as they are, and what their first chunk says of
//! their association is heeded.

use lb_common::{
    tables::refusal,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, VIP4, VIP6,
    frames::{Extension, Spec, Transport, datagram, socket, syn},
    icmp::message,
    support::{EGRESS, GUE_PORT, Mode, Move, Outcome, Stage, macs, server},
    tracking::taken_by,
};

const SCTP: u8 = 132;
/// Types of chunks (RFC 9260 §3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Client, VIP, server.
const ENDS: [(&str, &str, &str); 2] = [(CLIENT4, VIP4, SERVER4), (CLIENT6, VIP6, SERVER6)];
const MOVING_TIME: u32 = 900 * 954;

/// A packet whose first chunk is of a type.
fn packet(from: &str, to: &str, kind: u8) -> Spec {
    let mut bytes = Vec::new();
    bytes.extend(socket(from).port().to_be_bytes());
    bytes.extend(socket(to).port().to_be_bytes());
    // Tag, checksum, and a chunk of twenty bytes.
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, kind, 0, 0, 20]);
    bytes.extend(1..=16);
    Spec {
        transport: Transport::Other(SCTP),
        payload: bytes,
        ..syn(from, to)
    }
}

#[test]
fn a_packet_goes_to_the_backend_as_it_is_and_its_init_is_counted_as_a_flow() {
    for (client, vip, to) in ENDS {
        for (kind, opens) in [(INIT, 1), (DATA, 0), (COOKIE_ECHO, 0), (ABORT, 0)] {
            let stage = Stage::new().serve(Mode::L2, vip, SCTP, &[server(to)]);
            let request = packet(client, vip, kind);
            let frame = request.frame();
            let expected = Spec {
                macs: macs(0),
                ..request
            };
            let count = (1, frame.len() as u64, opens);
            let verdict = Verdict::Redirect(EGRESS);
            let expected = Outcome::forwarded(verdict, expected.frame(), 0, count);
            assert_eq!(stage.run(&frame), expected, "{vip} {kind}");
        }
    }
}

#[test]
fn tunnels_carry_it_as_it_is_and_that_of_gue_without_a_checksum() {
    for (client, vip, to) in ENDS {
        let v4 = socket(to).is_ipv4();
        let tunnel = if v4 { "172.16.0.1" } else { "fd00:77::1" };
        let header = if v4 { 20 } else { 40 };
        for mode in [Mode::Ipip, Mode::Gue] {
            let to = server(to).tunnel(tunnel, 0);
            let stage = Stage::new().serve(mode, vip, SCTP, &[to]);
            let request = packet(client, vip, DATA);
            let outcome = stage.run(&request.frame());
            assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
            let outer = &outcome.frame.0[14..];
            let udp = if mode == Mode::Gue { 8 } else { 0 };
            assert_eq!(outer[header + udp..], request.ip(), "{mode:?} {vip}");
            if mode == Mode::Gue {
                // What is inside cannot be summed without reading it (RFC 6935 §5).
                assert_eq!(outer[header + 2..header + 4], GUE_PORT.to_be_bytes());
                assert_eq!(outer[header + 6..header + 8], [0, 0], "{vip}");
            }
        }
    }
}

#[test]
fn other_protocols_and_ports_are_not_its() {
    let stage = Stage::new().serve(Mode::L2, VIP4, SCTP, &[server(SERVER4)]);
    for other in [
        syn(CLIENT4, VIP4),
        datagram(CLIENT4, VIP4),
        packet(CLIENT4, "10.0.0.1:81", INIT),
        packet(CLIENT4, "10.0.0.2:80", INIT),
    ] {
        let frame = other.frame();
        assert_eq!(stage.run(&frame), Outcome::passed(frame), "{other:?}");
    }
    // Nor is it another's.
    let stage = Stage::new().serve(Mode::L2, VIP4, TCP, &[server(SERVER4)]);
    let frame = packet(CLIENT4, VIP4, INIT).frame();
    assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
}

#[test]
fn it_is_read_behind_extension_headers_and_not_beyond_its_end() {
    let stage = Stage::new()
        .serve(Mode::L2, VIP4, SCTP, &[server(SERVER4)])
        .serve(Mode::L2, VIP6, SCTP, &[server(SERVER6)]);
    let behind = Spec {
        extensions: vec![Extension::HopByHop(6)],
        ..packet(CLIENT6, VIP6, INIT)
    };
    assert_eq!(taken_by(&stage, &behind), Some(1));
    for (client, vip, _) in ENDS {
        let mut short = packet(client, vip, INIT);
        short.payload.truncate(12);
        // Also where bytes of the link's follow.
        for trailer in [Vec::new(), vec![0; 16]] {
            let short = Spec {
                trailer,
                ..short.clone()
            };
            let outcome = stage.run(&short.frame());
            assert_eq!(outcome, Outcome::dropped(DropReason::Truncated), "{vip}");
        }
    }
}

#[test]
fn an_init_begins_a_flow_and_all_else_is_of_one_that_is_older() {
    let servers = [server(SERVER4), server("10.1.0.3:8080")];
    let stage = Stage::new()
        .serve(Mode::L2, VIP4, SCTP, &servers)
        .moving_time(MOVING_TIME)
        .moved(Move::Moving(1, 0));
    let client = |n: u16| format!("192.0.2.7:{}", 40_000 + n);
    assert_eq!(taken_by(&stage, &packet(&client(1), VIP4, DATA)), Some(0));
    assert_eq!(taken_by(&stage, &packet(&client(2), VIP4, INIT)), Some(1));
    // Both are recorded, and stay.
    for kind in [COOKIE_ECHO, DATA, SHUTDOWN] {
        assert_eq!(taken_by(&stage, &packet(&client(1), VIP4, kind)), Some(0));
        assert_eq!(taken_by(&stage, &packet(&client(2), VIP4, kind)), Some(1));
    }
    assert_eq!(stage.recorded(), (2, 0));
}

#[test]
fn what_ends_an_association_ends_its_flow() {
    for kind in [ABORT, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE] {
        let stage = Stage::new()
            .serve(Mode::L2, VIP4, SCTP, &[server(SERVER4)])
            .moving_time(MOVING_TIME)
            .recording_all();
        taken_by(&stage, &packet(CLIENT4, VIP4, INIT));
        taken_by(&stage, &packet(CLIENT4, VIP4, COOKIE_ECHO));
        assert_eq!(stage.in_progress(0), 1, "{kind}");
        taken_by(&stage, &packet(CLIENT4, VIP4, kind));
        assert_eq!(stage.in_progress(0), 0, "{kind}");
    }
}

#[test]
fn an_error_about_an_answer_finds_its_backend() {
    for (client, vip, to) in ENDS {
        let too_big = if socket(client).is_ipv4() {
            (3, 4)
        } else {
            (2, 0)
        };
        let servers = [server(to), server(to), server(to)];
        let stage = Stage::new().hashing().serve(Mode::L2, vip, SCTP, &servers);
        let mut taken = std::collections::BTreeSet::new();
        for port in 1_000..1_016 {
            let mut from = socket(client);
            from.set_port(port);
            let from = from.to_string();
            let taker = taken_by(&stage, &packet(&from, vip, DATA));
            let quoted = packet(vip, &from, DATA).ip();
            let error = message(client, vip, too_big, [0, 0, 5, 0], &quoted);
            assert_eq!(taken_by(&stage, &error), taker, "{from}");
            taken.insert(taker);
        }
        assert!(taken.len() > 1, "{taken:?}");
    }
}

#[test]
fn what_nobody_takes_gets_what_the_service_says() {
    for (client, vip, to) in ENDS {
        for policy in [refusal::RESET, refusal::UNREACHABLE] {
            let stage = Stage::new()
                .serve(Mode::L2, vip, SCTP, &[server(to).dead()])
                .no_backend(policy)
                .unknown_port(policy);
            let mut unknown = socket(vip);
            unknown.set_port(81);
            for (at, reason) in [
                (vip.to_owned(), DropReason::NoBackend),
                (unknown.to_string(), DropReason::UnknownPort),
            ] {
                let outcome = stage.run(&packet(client, &at, INIT).frame());
                assert_eq!(outcome.verdict, Verdict::Transmit, "{at}");
                let unreachable = [(Answer::Unreachable as u32, 1)].into();
                assert_eq!(outcome.counted.answers, unreachable, "{at}");
                assert_eq!(outcome.counted.drops, [(reason as u32, 1)].into(), "{at}");
            }
        }
    }
}

#[test]
fn fragments_follow_their_first_one() {
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let stage = Stage::new().hashing().serve(Mode::L2, VIP4, SCTP, &servers);
    for port in 1_000..1_008 {
        let mut whole = packet(&format!("192.0.2.7:{port}"), VIP4, DATA);
        whole.payload.extend([7; 3_000]);
        whole.identification = port;
        let taker = taken_by(&stage, &whole);
        for piece in &crate::fragments::cut(&whole, &crate::fragments::CUTS) {
            assert_eq!(taken_by(&stage, piece), taker, "{port}");
        }
    }
}
