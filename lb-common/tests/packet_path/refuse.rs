//! Packets to a VIP that nobody takes: dropped, the kernel's, or answered in its name by a reset or an ICMP
//! error. Answers are laid out and summed by etherparse.

use std::net::IpAddr;

use etherparse::TcpHeader;
use lb_common::{
    budget::LIMIT,
    pipeline,
    tables::refusal,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Flags, Spec, Transport, datagram, segment, socket, syn},
    icmp::message,
    support::{EGRESS, Mode, Outcome, Stage, server},
};

/// Client, VIP, and the VIP at a port that no service has.
const ENDS: [(&str, &str, &str); 2] = [
    (CLIENT4, VIP4, "10.0.0.1:81"),
    (CLIENT6, VIP6, "[2001:db8::1]:81"),
];

/// Services of both families and protocols, all of whose servers are dead, which refuse so, as unknown
/// ports do.
fn stage(policy: u8) -> Stage {
    let mut stage = Stage::new();
    for (vip, at) in [(VIP4, SERVER4), (VIP6, SERVER6)] {
        for protocol in [TCP, UDP] {
            stage = stage
                .serve(Mode::Ipip, vip, protocol, &[server(at).dead()])
                .no_backend(policy);
        }
    }
    stage.unknown_port(policy)
}

/// The two reasons to refuse, and where a packet meets them.
fn reasons<'a>(vip: &'a str, unknown: &'a str) -> [(DropReason, &'a str); 2] {
    [
        (DropReason::NoBackend, vip),
        (DropReason::UnknownPort, unknown),
    ]
}

/// A segment of these fields.
pub fn tcp(from: &str, to: &str, change: impl Fn(&mut TcpHeader), payload: &[u8]) -> Spec {
    let ends = (socket(from), socket(to));
    let mut header = TcpHeader::new(ends.0.port(), ends.1.port(), 0, 0);
    change(&mut header);
    let sum = match (ends.0.ip(), ends.1.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
        }
        mixed => panic!("addresses of two families: {mixed:?}"),
    };
    header.checksum = sum.expect("a length that fits");
    Spec {
        transport: Transport::Other(TCP),
        payload: [&header.to_bytes()[..], payload].concat(),
        ..syn(from, to)
    }
}

/// As the balancer sends it.
pub fn ours(answer: Spec) -> Vec<u8> {
    let (source, destination) = answer.macs;
    Spec {
        macs: (destination, source),
        ttl: 64,
        flow_label: 0,
        identification: 0,
        ..answer
    }
    .frame()
}

fn reset(from: &str, to: &str, sequence: u32, acknowledged: Option<u32>) -> Vec<u8> {
    ours(tcp(
        from,
        to,
        |header| {
            (header.rst, header.ack) = (true, acknowledged.is_some());
            header.sequence_number = sequence;
            header.acknowledgment_number = acknowledged.unwrap_or(0);
        },
        b"",
    ))
}

/// The error about a packet, with as much of it as fits.
pub fn error(about: &Spec, kind: (u8, u8), rest: [u8; 4]) -> Vec<u8> {
    let most = if about.from.is_ipv4() {
        576 - 28
    } else {
        1_280 - 48
    };
    let mut quoted = about.ip();
    quoted.truncate(most);
    let (vip, client) = (about.to.to_string(), about.from.to_string());
    ours(message(&vip, &client, kind, rest, &quoted))
}

/// Type and code that a reason is answered by.
fn kind(reason: DropReason, v4: bool) -> (u8, u8) {
    match (reason, v4) {
        (DropReason::NoBackend, true) => (3, 1),
        (DropReason::NoBackend, false) => (1, 3),
        (_, true) => (3, 3),
        (_, false) => (1, 4),
    }
}

#[test]
fn a_segment_without_ack_is_reset_at_its_end() {
    // What the segment has, and how many sequence numbers it takes.
    type Case = (fn(&mut TcpHeader), &'static [u8], u32);
    let cases: [Case; 5] = [
        (|header| header.syn = true, b"", 1),
        (|header| header.syn = true, b"early", 6),
        (|header| header.fin = true, b"last words", 11),
        (|_| {}, b"", 0),
        (
            |header| header.options = [1; 8][..].try_into().expect("whole words"),
            b"abc",
            3,
        ),
    ];
    for (client, vip, unknown) in ENDS {
        for (reason, to) in reasons(vip, unknown) {
            for (change, payload, length) in cases {
                let request = tcp(
                    client,
                    to,
                    |header| {
                        header.sequence_number = 0xffff_fffe;
                        header.acknowledgment_number = 0x0bad_cafe;
                        change(header);
                    },
                    payload,
                );
                let outcome = stage(refusal::RESET).run(&request.frame());
                let next = 0xffff_fffe_u32.wrapping_add(length);
                let expected = reset(to, client, 0, Some(next));
                let expected = Outcome::refused(reason, Answer::Reset, expected);
                assert_eq!(outcome, expected, "{to} {payload:?}");
            }
        }
    }
}

#[test]
fn a_segment_with_ack_is_reset_where_it_acknowledges() {
    for (client, vip, unknown) in ENDS {
        for (reason, to) in reasons(vip, unknown) {
            for with in [
                Flags::ACK,
                Flags::FIN,
                Flags {
                    syn: true,
                    ..Flags::ACK
                },
            ] {
                let request = tcp(
                    client,
                    to,
                    |header| {
                        (header.syn, header.fin, header.ack) = (with.syn, with.fin, with.ack);
                        header.sequence_number = 7;
                        header.acknowledgment_number = 0xfedc_ba98;
                    },
                    b"data",
                );
                let outcome = stage(refusal::RESET).run(&request.frame());
                let expected = reset(to, client, 0xfedc_ba98, None);
                let expected = Outcome::refused(reason, Answer::Reset, expected);
                assert_eq!(outcome, expected, "{to} {with:?}");
            }
        }
    }
}

/// Packets with everything that may stand before and behind.
fn adorned(packet: Spec) -> Spec {
    Spec {
        options: vec![1; 8],
        extensions: if packet.from.is_ipv4() {
            Vec::new()
        } else {
            vec![Extension::HopByHop(6), Extension::Destination(14)]
        },
        trailer: vec![9; 5],
        traffic_class: 0xb8,
        ..packet
    }
}

#[test]
fn a_reset_has_no_options_nor_extension_headers_nor_padding() {
    for (client, _, unknown) in ENDS {
        let request = adorned(syn(client, unknown));
        let outcome = stage(refusal::RESET).run(&request.frame());
        let next = 0x1234_5678 + 1 + request.payload.len() as u32;
        let expected = reset(unknown, client, 0, Some(next));
        let expected = Outcome::refused(DropReason::UnknownPort, Answer::Reset, expected);
        assert_eq!(outcome, expected, "{unknown}");
    }
}

#[test]
fn whatever_is_not_tcp_gets_an_icmp_error_where_tcp_gets_a_reset() {
    for (client, vip, unknown) in ENDS {
        for (reason, to) in reasons(vip, unknown) {
            let request = datagram(client, to);
            let outcome = stage(refusal::RESET).run(&request.frame());
            let kind = kind(reason, request.from.is_ipv4());
            let expected = error(&request, kind, [0; 4]);
            let expected = Outcome::refused(reason, Answer::Unreachable, expected);
            assert_eq!(outcome, expected, "{to}");
        }
    }
}

#[test]
fn an_icmp_error_quotes_the_packet_as_it_came() {
    for (client, vip, unknown) in ENDS {
        for (reason, to) in reasons(vip, unknown) {
            for request in [syn(client, to), segment(client, to), datagram(client, to)] {
                for length in 0..6 {
                    let request = adorned(Spec {
                        payload: vec![0xa5; length],
                        ..request.clone()
                    });
                    let outcome = stage(refusal::UNREACHABLE).run(&request.frame());
                    let kind = kind(reason, request.from.is_ipv4());
                    let expected = error(&request, kind, [0; 4]);
                    let expected = Outcome::refused(reason, Answer::Unreachable, expected);
                    assert_eq!(outcome, expected, "{to} {length}");
                }
            }
        }
    }
}

#[test]
fn an_icmp_error_is_no_longer_than_every_host_can_take() {
    for (client, _, unknown) in ENDS {
        for length in (510..540).chain(1_170..1_240).chain([1_472, 8_972]) {
            let request = Spec {
                payload: (0..length).map(|n| n as u8).collect(),
                ..datagram(client, unknown)
            };
            let outcome = stage(refusal::UNREACHABLE).run(&request.frame());
            let v4 = request.from.is_ipv4();
            let expected = error(&request, kind(DropReason::UnknownPort, v4), [0; 4]);
            assert!(expected.len() <= 14 + if v4 { 576 } else { 1_280 });
            let expected = Outcome::refused(DropReason::UnknownPort, Answer::Unreachable, expected);
            assert_eq!(outcome, expected, "{unknown} {length}");
        }
    }
}

/// A packet of another protocol than services have.
fn foreign(number: u8, client: &str, vip: &str) -> Spec {
    Spec {
        transport: Transport::Other(number),
        ..syn(client, vip)
    }
}

#[test]
fn a_protocol_that_no_service_has_is_said_to_be_unknown() {
    for policy in [refusal::RESET, refusal::UNREACHABLE] {
        // Where IPv6 has the number: in its header, or in the last extension header.
        for (extensions, pointer) in [
            (vec![], 6),
            (vec![Extension::HopByHop(6)], 40),
            (vec![Extension::HopByHop(14), Extension::Destination(6)], 56),
        ] {
            for (client, vip, _) in ENDS {
                let request = Spec {
                    extensions: extensions.clone(),
                    ..foreign(132, client, vip)
                };
                let outcome = stage(policy).run(&request.frame());
                let expected = if request.from.is_ipv4() {
                    error(&request, (3, 2), [0; 4])
                } else {
                    error(&request, (4, 1), [0, 0, 0, pointer])
                };
                let expected =
                    Outcome::refused(DropReason::UnknownPort, Answer::Unreachable, expected);
                assert_eq!(outcome, expected, "{vip} {pointer}");
            }
        }
    }
}

#[test]
fn icmp_is_never_of_an_unknown_protocol() {
    let pong = Spec {
        extensions: vec![Extension::HopByHop(6)],
        ..message(CLIENT6, VIP6, (129, 0), [0; 4], b"pong")
    };
    let router = message(CLIENT4, VIP4, (9, 0), [0; 4], b"");
    for frame in [pong.frame(), router.frame()] {
        let outcome = stage(refusal::UNREACHABLE).run(&frame);
        assert_eq!(outcome, Outcome::passed(frame));
    }
}

#[test]
fn nobody_is_told_where_packets_are_dropped() {
    for (client, vip, unknown) in ENDS {
        for (reason, to) in reasons(vip, unknown) {
            for request in [syn(client, to), datagram(client, to)] {
                let outcome = stage(refusal::DROP).run(&request.frame());
                assert_eq!(outcome, Outcome::dropped(reason), "{to}");
            }
        }
        let outcome = stage(refusal::DROP).run(&foreign(47, client, vip).frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::UnknownPort));
    }
}

#[test]
fn the_kernel_gets_what_passes_as_it_came() {
    for (client, vip, unknown) in ENDS {
        for request in [
            syn(client, vip),
            datagram(client, vip),
            syn(client, unknown),
            foreign(47, client, vip),
        ] {
            let frame = request.frame();
            let outcome = stage(refusal::PASS).run(&frame);
            assert_eq!(outcome, Outcome::passed(frame));
        }
        // What is said of the kernel's answers.
        let quoted = segment(vip, client).ip();
        let kind = if socket(vip).is_ipv4() {
            (3, 4)
        } else {
            (2, 0)
        };
        let error = message(client, vip, kind, [0; 4], &quoted).frame();
        let outcome = stage(refusal::PASS).run(&error);
        assert_eq!(outcome, Outcome::passed(error.clone()));
        let outcome = stage(refusal::UNREACHABLE).run(&error);
        assert_eq!(outcome, Outcome::dropped(DropReason::NoBackend));
    }
}

#[test]
fn without_a_policy_a_port_that_no_service_has_is_the_kernels() {
    for (client, _, unknown) in ENDS {
        let frame = syn(client, unknown).frame();
        let outcome = Stage::new()
            .serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)])
            .serve(Mode::Ipip, VIP6, TCP, &[server(SERVER6)])
            .run(&frame);
        assert_eq!(outcome, Outcome::passed(frame));
    }
}

#[test]
fn only_vips_are_answered_for_and_none_that_the_host_has_itself() {
    for policy in [refusal::DROP, refusal::RESET, refusal::UNREACHABLE] {
        let stage = stage(policy).own("10.0.0.1").own("2001:db8::1");
        for (client, vip, unknown) in ENDS {
            let server = if socket(client).is_ipv4() {
                SERVER4
            } else {
                SERVER6
            };
            for request in [
                syn(client, unknown),
                foreign(47, client, vip),
                syn(client, server),
            ] {
                let frame = request.frame();
                assert_eq!(stage.run(&frame), Outcome::passed(frame));
            }
        }
    }
}

#[test]
fn a_service_with_a_server_forwards_whatever_it_would_refuse() {
    for policy in [refusal::RESET, refusal::UNREACHABLE, refusal::PASS] {
        let stage = Stage::new()
            .serve(Mode::L2, VIP4, TCP, &[server(SERVER4)])
            .no_backend(policy)
            .unknown_port(policy);
        let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
        assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
        assert!(outcome.counted.answers.is_empty());
    }
}

#[test]
fn an_answer_of_a_nat_backend_to_a_vip_is_no_packet_to_an_unknown_port() {
    let stage = Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)])
        .serve(Mode::Ipip, "10.0.0.9:443", TCP, &[server("10.1.0.3:443")])
        .route("10.0.0.9".parse().expect("an address"), EGRESS)
        .unknown_port(refusal::DROP);
    let outcome = stage.run(&segment(SERVER4, "10.0.0.9:5000").frame());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
}

/// Packets that must not be answered (RFC 1122 §3.2.2, RFC 4443 §2.4(e), RFC 9293 §3.10.7.1).
fn unanswerable() -> Vec<(&'static str, Spec)> {
    let unknown4 = "10.0.0.1:81";
    let unknown6 = "[2001:db8::1]:81";
    let mut all = vec![
        (
            "a reset",
            Spec {
                transport: Transport::Tcp(Flags::RST),
                ..syn(CLIENT4, unknown4)
            },
        ),
        (
            "a broadcast frame",
            Spec {
                macs: ([2, 0, 0, 0, 0, 9], [0xff; 6]),
                ..syn(CLIENT4, unknown4)
            },
        ),
        (
            "a multicast frame",
            Spec {
                macs: ([2, 0, 0, 0, 0, 9], [0x33, 0x33, 0, 0, 0, 1]),
                ..datagram(CLIENT6, unknown6)
            },
        ),
        (
            "a later fragment",
            Spec {
                fragment: (false, false, 9),
                ..foreign(47, CLIENT4, VIP4)
            },
        ),
        ("nothing", foreign(59, CLIENT6, VIP6)),
    ];
    // Reserved; what is dropped before is `martian`'s.
    for source in ["240.0.0.1:1", "255.255.255.254:1"] {
        all.push((source, syn(source, unknown4)));
        all.push((source, datagram(source, unknown4)));
    }
    all
}

#[test]
fn what_must_not_be_answered_is_not() {
    for (what, packet) in unanswerable() {
        for policy in [refusal::RESET, refusal::UNREACHABLE] {
            let outcome = stage(policy).run(&packet.frame());
            let expected = Outcome::unanswered(DropReason::UnknownPort, Answer::Withheld);
            assert_eq!(outcome, expected, "{what}");
        }
    }
}

#[test]
fn hosts_next_to_those_that_are_none_are_answered() {
    for source in [
        "1.0.0.0:1",
        "126.255.255.255:1",
        "128.0.0.1:1",
        "223.255.255.255:1",
    ] {
        let outcome = stage(refusal::RESET).run(&syn(source, "10.0.0.1:81").frame());
        assert_eq!(outcome.verdict, Verdict::Transmit, "{source}");
    }
    for source in ["[::2]:1", "[1::]:1", "[1::1]:1", "[fe80::1]:1"] {
        let outcome = stage(refusal::RESET).run(&syn(source, "[2001:db8::1]:81").frame());
        assert_eq!(outcome.verdict, Verdict::Transmit, "{source}");
    }
}

#[test]
fn a_host_of_the_balancers_own_is_not_answered() {
    let stage = stage(refusal::RESET).own("192.0.2.7");
    let outcome = stage.run(&syn(CLIENT4, "10.0.0.1:81").frame());
    let expected = Outcome::unanswered(DropReason::UnknownPort, Answer::Withheld);
    assert_eq!(outcome, expected);
}

#[test]
fn more_than_are_answered_in_a_second_are_dropped_and_counted() {
    for (policy, other) in [
        (refusal::RESET, datagram(CLIENT4, "10.0.0.1:81")),
        (
            refusal::UNREACHABLE,
            message(CLIENT4, VIP4, (8, 0), [0; 4], b""),
        ),
    ] {
        let stage = stage(policy);
        stage.at(5_000);
        let request = syn(CLIENT4, "10.0.0.1:81").frame();
        for n in 0..LIMIT {
            assert_eq!(stage.run(&request).verdict, Verdict::Transmit, "{n}");
        }
        let expected = Outcome::unanswered(DropReason::UnknownPort, Answer::Limited);
        assert_eq!(stage.run(&request), expected);
        let others = stage.run(&other.frame()).verdict;
        assert_eq!(others, Verdict::Transmit, "other answers have their own");
        assert_eq!(stage.at(6_000).run(&request).verdict, Verdict::Transmit);
    }
}

#[test]
fn an_error_needs_room_for_its_headers() {
    for (client, _, unknown) in ENDS {
        let frame = datagram(client, unknown).frame();
        let headers = if socket(client).is_ipv4() { 28 } else { 48 };
        let outcome = stage(refusal::UNREACHABLE).run_with(&frame, headers - 2);
        assert_eq!(outcome, Outcome::dropped(DropReason::NoHeadroom));
        let outcome = stage(refusal::UNREACHABLE).run_with(&frame, headers);
        assert_eq!(outcome.verdict, Verdict::Transmit);
    }
}

#[test]
fn what_arrives_with_a_broken_header_is_not_answered() {
    for (reason, to) in reasons(VIP4, "10.0.0.1:81") {
        for policy in [refusal::RESET, refusal::UNREACHABLE] {
            let options = Spec {
                options: vec![1; 40],
                ..syn(CLIENT4, to)
            };
            for packet in [syn(CLIENT4, to), datagram(CLIENT4, to), options] {
                let mut frame = packet.frame();
                assert_eq!(stage(policy).run(&frame).verdict, Verdict::Transmit);
                // A bit of its source.
                frame[28] ^= 0x10;
                let expected = Outcome::unanswered(reason, Answer::Withheld);
                assert_eq!(stage(policy).run(&frame), expected);
                frame[28] ^= 0x10;
                // And one of its last word.
                if let 60.. = usize::from(frame[14] & 0xf) * 4 {
                    frame[14 + 59] ^= 2;
                    assert_eq!(stage(policy).run(&frame), expected);
                }
            }
        }
    }
}

#[test]
fn of_a_frame_whose_rest_is_in_another_buffer_as_much_is_quoted_as_must_be() {
    for (client, _, unknown) in ENDS {
        let request = Spec {
            payload: vec![0x5a; 3_000],
            ..datagram(client, unknown)
        };
        let network = if socket(client).is_ipv4() { 20 } else { 40 };
        let stage = stage(refusal::UNREACHABLE);
        for linear in [14 + network + 8, 14 + network + 100] {
            let outcome = stage.run_in_buffers(&request.frame(), linear);
            let mut quoted = request.ip();
            quoted.truncate(network + 8);
            let kind = kind(DropReason::UnknownPort, network == 20);
            let expected = ours(message(unknown, client, kind, [0; 4], &quoted));
            assert_eq!(outcome, (Verdict::Transmit, expected), "{linear}");
        }
    }
}

#[test]
fn the_first_fragment_of_a_segment_whose_header_is_none_is_not_answered() {
    let first = Spec {
        fragment: (false, true, 0),
        payload: vec![7; 12],
        ..segment(CLIENT4, VIP4)
    };
    for (doff, verdict) in [
        (5, Verdict::Transmit),
        (4, Verdict::Drop(DropReason::TtlExpired)),
        (15, Verdict::Drop(DropReason::TtlExpired)),
    ] {
        let mut frame = first.frame();
        frame[46] = doff << 4;
        // As one that is left with no hop.
        let (became, _) = stage(refusal::RESET)
            .run_alone(&frame, |packet, tables| pipeline::too_big(packet, tables));
        assert_eq!(became, verdict, "{doff}");
    }
}
