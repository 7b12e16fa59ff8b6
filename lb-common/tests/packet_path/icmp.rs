//! ICMP and ICMPv6: errors find the backend, or the client, whose packet they are about; echo requests to
//! a VIP are answered. Messages are laid out and summed by etherparse.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use lb_common::{
    budget::LIMIT,
    tables::NoRoute,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Outer, Spec, Transport, datagram, segment, socket, syn},
    support::{
        CLIENT_MACS, EGRESS, Frame, GUE_PORT, INGRESS, Mode, Outcome, Server, Stage, macs, server,
    },
    tracking::taken_by,
};

/// Routers on the way.
const ROUTER4: &str = "198.51.100.9:0";
const ROUTER6: &str = "[2001:db8:9::9]:0";

/// Type and code of every error that is steered, and one of each that it is not to be confused with.
const ERRORS4: [(u8, u8); 6] = [(3, 0), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0)];
const ERRORS6: [(u8, u8); 6] = [(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 2)];

/// A message of a type and code, with four bytes more and what follows.
pub fn message(
    from: &str,
    to: &str,
    (kind, code): (u8, u8),
    rest: [u8; 4],
    payload: &[u8],
) -> Spec {
    let (from, to) = (socket(from), socket(to));
    let (number, header) = match (from.ip(), to.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let icmp = Icmpv4Type::Unknown {
                type_u8: kind,
                code_u8: code,
                bytes5to8: rest,
            };
            (
                1,
                Icmpv4Header::with_checksum(icmp, payload)
                    .to_bytes()
                    .to_vec(),
            )
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let icmp = Icmpv6Type::Unknown {
                type_u8: kind,
                code_u8: code,
                bytes5to8: rest,
            };
            let (source, destination) = (source.octets(), destination.octets());
            let header = Icmpv6Header::with_checksum(icmp, source, destination, payload);
            (58, header.expect("a length that fits").to_bytes().to_vec())
        }
        mixed => panic!("addresses of two families: {mixed:?}"),
    };
    Spec {
        from,
        to,
        transport: Transport::Other(number),
        payload: [&header, payload].concat(),
        ..syn("0.0.0.0:0", "0.0.0.0:0")
    }
}

/// The packet that an error is about, between these ends.
pub fn about(udp: bool, from: &str, to: &str) -> Spec {
    let packet = if udp {
        datagram(from, to)
    } else {
        segment(from, to)
    };
    Spec {
        payload: (0..40).collect(),
        ..packet
    }
}

/// As much of it as an error quotes: all, or its IP header and so many bytes.
pub fn quote(packet: &Spec, bytes: Option<usize>) -> Vec<u8> {
    let mut quoted = packet.ip();
    let header = if packet.from.is_ipv4() { 20 } else { 40 };
    quoted.truncate(bytes.map_or(usize::MAX, |bytes| header + bytes));
    quoted
}

/// An error from a router about a packet from a VIP to a client.
pub fn error(kind: (u8, u8), quoted: &[u8]) -> Spec {
    let (router, vip) = if quoted[0] >> 4 == 4 {
        (ROUTER4, VIP4)
    } else {
        (ROUTER6, VIP6)
    };
    message(router, vip, kind, [0, 0, 5, 0x14], quoted)
}

fn every_error(v4: bool) -> [(u8, u8); 6] {
    if v4 { ERRORS4 } else { ERRORS6 }
}

/// The ends of every family: client, VIP, a server.
const ENDS: [(&str, &str, &str); 2] = [(CLIENT4, VIP4, SERVER4), (CLIENT6, VIP6, SERVER6)];
/// How much is quoted: what must be, what includes TCP's checksum and no more, all.
const QUOTED: [Option<usize>; 4] = [Some(8), Some(16), Some(18), None];

fn stage(mode: Mode, server: Server, family: IpAddr) -> Stage {
    let servers = [server];
    let vip = if family.is_ipv4() { VIP4 } else { VIP6 };
    Stage::new()
        .serve(mode, vip, TCP, &servers)
        .serve(mode, vip, UDP, &servers)
}

#[test]
fn an_error_reaches_the_backend_as_it_is_where_packets_do() {
    for (client, vip, to) in ENDS {
        let family = socket(vip).ip();
        for mode in [Mode::Ipip, Mode::Gue, Mode::L2] {
            for kind in every_error(family.is_ipv4()) {
                for quoted in QUOTED {
                    let error = Spec {
                        traffic_class: 0xb9,
                        ..error(kind, &quote(&about(false, vip, client), quoted))
                    };
                    let outcome = stage(mode, server(to), family).run(&error.frame());
                    let expected = delivered(mode, &error, to);
                    let count = (1, error.frame().len() as u64, 0);
                    let verdict = Verdict::Redirect(EGRESS);
                    assert_eq!(outcome, Outcome::forwarded(verdict, expected, 0, count));
                }
            }
        }
    }
}

/// What a mode that leaves packets as they are makes of one.
pub fn delivered(mode: Mode, packet: &Spec, to: &str) -> Vec<u8> {
    if mode == Mode::L2 {
        let macs = macs(0);
        return Spec {
            macs,
            ..packet.clone()
        }
        .frame();
    }
    let source = if socket(to).is_ipv4() {
        "172.16.158.223"
    } else {
        "fd00:77::1:62c2:9edf"
    };
    let outer = Outer {
        macs: macs(0),
        source: source.parse().expect("an address"),
        destination: socket(to).ip(),
        traffic_class: packet.traffic_class,
        flow_label: 0xe_c262,
        ports: (mode == Mode::Gue).then_some((0xc262, GUE_PORT)),
        summed: true,
    };
    outer.around(&packet.ip(), &packet.trailer)
}

#[test]
fn a_nat_backend_gets_the_error_about_the_packet_that_it_sent() {
    for (client, vip, to) in ENDS {
        let family = socket(vip).ip();
        for udp in [false, true] {
            for kind in every_error(family.is_ipv4()) {
                for quoted in QUOTED {
                    let stage = stage(Mode::Nat, server(to), family);
                    let before = error(kind, &quote(&about(udp, vip, client), quoted));
                    let outcome = stage.run(&before.frame());
                    let own = quote(&about(udp, to, client), quoted);
                    let router = if family.is_ipv4() { ROUTER4 } else { ROUTER6 };
                    let after = message(router, to, kind, [0, 0, 5, 0x14], &own);
                    let place = u8::from(udp);
                    let after = after.routed(macs(place)).frame();
                    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
                    assert_eq!(outcome.frame, Frame(after), "{udp} {kind:?} {quoted:?}");
                    assert_eq!(outcome.counted.servers[&u32::from(place)].0, 1);
                }
            }
        }
    }
}

#[test]
fn a_backend_of_a_group_gets_the_error_about_the_packet_of_the_port_that_it_kept() {
    let stage = Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)])
        .keeping_ports();
    let before = error(ERRORS4[0], &quote(&about(false, VIP4, CLIENT4), None));
    let kept = SocketAddr::new(socket(SERVER4).ip(), socket(VIP4).port()).to_string();
    let own = quote(&about(false, &kept, CLIENT4), None);
    let after = message(ROUTER4, &kept, ERRORS4[0], [0, 0, 5, 0x14], &own);
    let outcome = stage.run(&before.frame());
    assert_eq!(outcome.frame, Frame(after.routed(macs(0)).frame()));
}

#[test]
fn a_client_gets_a_nat_backends_error_from_the_vip_about_the_packet_that_it_sent() {
    for (client, vip, backend) in ENDS {
        let family = socket(vip).ip();
        let router = if family.is_ipv4() { ROUTER4 } else { ROUTER6 };
        // From the backend itself, and from a router on the way to it.
        for (from, seen_from) in [(backend, vip), (router, router)] {
            for udp in [false, true] {
                for quoted in QUOTED {
                    let stage = stage(Mode::Nat, server(backend), family)
                        .route(socket(client).ip(), EGRESS);
                    let kind = every_error(family.is_ipv4())[1];
                    let sent = quote(&about(udp, client, backend), quoted);
                    let before = message(from, client, kind, [0; 4], &sent);
                    let own = quote(&about(udp, client, vip), quoted);
                    let after = message(seen_from, client, kind, [0; 4], &own);
                    let outcome = stage.run(&before.frame());
                    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
                    let after = after.routed(CLIENT_MACS).frame();
                    assert_eq!(outcome.frame, Frame(after), "{from} {udp} {quoted:?}");
                }
            }
        }
    }
}

#[test]
fn a_nat_backends_error_is_rewritten_only_if_it_goes_on_to_the_client() {
    for (client, vip, backend) in ENDS {
        let family = socket(vip).ip();
        let kind = every_error(family.is_ipv4())[1];
        let sent = quote(&about(false, client, backend), None);
        let before = message(backend, client, kind, [0; 4], &sent);
        let own = quote(&about(false, client, vip), None);
        let after = message(vip, client, kind, [0; 4], &own).frame();
        for (why, left) in [
            (NoRoute::Kernels, after),
            (NoRoute::Refused, before.frame()),
        ] {
            let stage = stage(Mode::Nat, server(backend), family);
            let stage = stage.no_route(socket(client).ip(), why);
            assert_eq!(stage.run(&before.frame()), Outcome::passed(left), "{why:?}");
        }
    }
}

#[test]
fn an_error_about_the_balancers_own_probe_passes() {
    let stage = stage(Mode::Nat, server(SERVER4), socket(VIP4).ip()).own("192.0.2.7");
    let sent = quote(&about(false, CLIENT4, SERVER4), None);
    let error = message(ROUTER4, CLIENT4, (3, 1), [0; 4], &sent).frame();
    assert_eq!(stage.run(&error), Outcome::passed(error));
}

#[test]
fn an_error_goes_where_the_packets_of_its_flow_go() {
    for (vip, client) in [(VIP4, "192.0.2.7"), (VIP6, "[2001:db8:c::7]")] {
        let servers: Vec<Server> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
        let stage = Stage::new().serve(Mode::Ipip, vip, TCP, &servers).hashing();
        for port in 1_000..1_100 {
            let client = format!("{client}:{port}");
            let error = error((3, 4), &quote(&about(false, vip, &client), Some(8)));
            let error = if vip == VIP4 {
                error
            } else {
                message(
                    ROUTER6,
                    vip,
                    (2, 0),
                    [0; 4],
                    &quote(&about(false, vip, &client), Some(8)),
                )
            };
            let taken = taken_by(&stage, &segment(&client, vip));
            assert_eq!(taken_by(&stage, &error), taken, "{client}");
        }
    }
}

fn assert_untouched(frame: Vec<u8>, what: &str) {
    for mode in [Mode::Nat, Mode::Ipip] {
        for family in [VIP4, VIP6].map(socket) {
            let server = server(if family.is_ipv4() { SERVER4 } else { SERVER6 });
            let stage = stage(mode, server, family.ip());
            let outcome = stage.run(&frame);
            assert_eq!(outcome, Outcome::passed(frame.clone()), "{what}");
        }
    }
}

#[test]
fn messages_that_are_no_errors_pass() {
    for (kind, v4) in [0, 4, 5, 9, 10, 13, 14, 40, 255]
        .map(|kind| (kind, true))
        .into_iter()
        .chain([0, 5, 100, 127, 129, 133, 134, 135, 136, 137, 255].map(|kind| (kind, false)))
    {
        let (vip, client) = if v4 { (VIP4, CLIENT4) } else { (VIP6, CLIENT6) };
        let error = error((kind, 0), &quote(&about(false, vip, client), None));
        assert_untouched(error.frame(), &format!("type {kind}"));
    }
}

#[test]
fn errors_that_quote_nothing_of_ours_pass() {
    for (vip, client, other) in [
        (VIP4, CLIENT4, "10.0.0.1:81"),
        (VIP6, CLIENT6, "[2001:db8::1]:81"),
    ] {
        let kind = every_error(socket(vip).is_ipv4())[2];
        let error = |quoted: &[u8]| error(kind, quoted).frame();
        assert_untouched(
            error(&quote(&about(false, other, client), None)),
            "no service",
        );
        let sctp = Spec {
            transport: Transport::Other(132),
            ..about(false, vip, client)
        };
        assert_untouched(error(&quote(&sctp, None)), "no ports");
        for bytes in 0..8 {
            let quoted = quote(&about(false, vip, client), Some(bytes));
            assert_untouched(
                error(&quoted),
                &format!("{bytes} bytes of the transport header"),
            );
        }
        let mut broken = quote(&about(false, vip, client), None);
        broken[0] = 0x54;
        assert_untouched(error(&broken), "a version that is none");
    }
    let later = Spec {
        fragment: (false, true, 8),
        ..about(false, VIP4, CLIENT4)
    };
    assert_untouched(
        error((3, 4), &quote(&later, None)).frame(),
        "a later fragment",
    );
}

#[test]
fn an_error_to_somebody_else_than_the_sender_of_what_it_quotes_passes() {
    let quoted = quote(&about(false, VIP4, CLIENT4), None);
    let error = message(ROUTER4, "10.0.0.9:0", (3, 4), [0; 4], &quoted);
    assert_untouched(error.frame(), "quotes a VIP's packet");
}

#[test]
fn messages_in_fragments_and_cut_ones_pass() {
    for (vip, client) in [(VIP4, CLIENT4), (VIP6, CLIENT6)] {
        let v4 = socket(vip).is_ipv4();
        let kind = every_error(v4)[2];
        let whole = error(kind, &quote(&about(false, vip, client), None)).frame();
        for length in 0..whole.len() {
            assert_untouched(whole[..length].to_vec(), &format!("{length} bytes"));
        }
        if v4 {
            for flags in [[0x20, 0], [0, 1]] {
                let mut frame = whole.clone();
                frame[20..22].copy_from_slice(&flags);
                assert_untouched(frame, "a fragment");
            }
        }
    }
}

fn ping(from: &str, to: &str, reply: bool) -> Spec {
    ping_with(b"are you there, and is this odd?", from, to, reply)
}

fn ping_with(data: &[u8], from: &str, to: &str, reply: bool) -> Spec {
    let kind = match (socket(to).is_ipv4(), reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    message(from, to, (kind, 0), [0x12, 0x34, 0, 7], data)
}

#[test]
fn an_echo_request_to_a_vip_is_answered_from_it() {
    for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
        for mode in [Mode::Nat, Mode::Ipip] {
            let family = socket(vip).ip();
            let at = if family.is_ipv4() { SERVER4 } else { SERVER6 };
            let request = Spec {
                ttl: 3,
                trailer: vec![9; 5],
                ..ping(client, vip, false)
            };
            let (source, destination) = request.macs;
            let reply = Spec {
                macs: (destination, source),
                ttl: 64,
                trailer: vec![9; 5],
                ..ping(vip, client, true)
            };
            let outcome = stage(mode, server(at), family).run(&request.frame());
            let expected = Outcome::answered(Answer::Echo, reply.frame());
            assert_eq!(outcome, expected, "{vip}");
        }
    }
}

#[test]
fn an_echo_request_without_data_is_answered_and_one_cut_within_its_header_passes() {
    for (client, vip, to) in ENDS {
        let request = ping_with(b"", client, vip, false);
        let outcome = stage(Mode::Ipip, server(to), socket(vip).ip()).run(&request.frame());
        let (source, destination) = request.macs;
        let reply = Spec {
            macs: (destination, source),
            ttl: 64,
            ..ping_with(b"", vip, client, true)
        };
        let expected = Outcome::answered(Answer::Echo, reply.frame());
        assert_eq!(outcome, expected, "{vip}");
        for kept in 0..8 {
            let cut = Spec {
                payload: request.payload[..kept].to_vec(),
                trailer: request.payload[kept..].to_vec(),
                ..request.clone()
            };
            assert_untouched(cut.frame(), &format!("{kept} bytes of ICMP"));
        }
    }
}

#[test]
fn an_icmpv6_message_of_another_ip_version_passes() {
    let quoted = quote(&about(false, VIP6, CLIENT6), None);
    for whole in [error((2, 0), &quoted), ping(CLIENT6, VIP6, false)] {
        let mut frame = whole.frame();
        frame[14] = 0x40 | (frame[14] & 0xf);
        assert_untouched(frame, "a version that is not 6");
    }
}

#[test]
fn an_echo_request_to_anybody_else_passes() {
    for (client, other) in [(CLIENT4, "10.0.0.2:0"), (CLIENT6, "[2001:db8::2]:0")] {
        assert_untouched(ping(client, other, false).frame(), other);
    }
}

#[test]
fn more_echo_requests_than_are_answered_in_a_second_are_dropped_and_counted() {
    let stage = stage(Mode::Ipip, server(SERVER4), socket(VIP4).ip());
    stage.at(5_000);
    let request = ping(CLIENT4, VIP4, false).frame();
    for n in 0..LIMIT {
        assert_eq!(stage.run(&request).verdict, Verdict::Transmit, "{n}");
    }
    assert_eq!(stage.run(&request), Outcome::dropped(DropReason::EchoLimit));
    let error = error((3, 4), &quote(&about(false, VIP4, CLIENT4), None)).frame();
    assert_eq!(
        stage.run(&error).verdict,
        Verdict::Redirect(EGRESS),
        "others go on"
    );
    assert_eq!(stage.at(6_000).run(&request).verdict, Verdict::Transmit);
}

#[test]
fn an_error_for_a_server_that_is_not_reachable_is_dropped_and_counted() {
    let error = error((3, 4), &quote(&about(false, VIP4, CLIENT4), None)).frame();
    let family = socket(VIP4).ip();
    let unreachable = stage(Mode::Ipip, server(SERVER4).behind(0), family).run(&error);
    assert_eq!(unreachable, Outcome::dropped(DropReason::NoNextHop));
    let dead = stage(Mode::Ipip, server(SERVER4).dead(), family).run(&error);
    assert_eq!(dead, Outcome::dropped(DropReason::NoBackend));
    let behind = stage(Mode::Nat, server(SERVER4).behind(INGRESS), family).run(&error);
    assert_eq!(behind.verdict, Verdict::Transmit);
    let expiring = Spec {
        ttl: 1,
        ..self::error((3, 4), &quote(&about(false, VIP4, CLIENT4), None))
    };
    let expired = stage(Mode::Nat, server(SERVER4), family).run(&expiring.frame());
    assert_eq!(expired, Outcome::dropped(DropReason::TtlExpired));
}

#[test]
fn an_echo_request_that_the_link_brings_to_many_is_the_kernels() {
    for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
        for to in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let mut request = ping(client, vip, false);
            request.macs.1 = to;
            assert_untouched(request.frame(), "to a group");
        }
    }
}

#[test]
fn an_error_is_not_translated_to_the_other_family() {
    let crossed = [
        (
            VIP4,
            SERVER6,
            CLIENT4,
            error((3, 1), &quote(&about(false, VIP4, CLIENT4), None)),
        ),
        (
            VIP6,
            SERVER4,
            CLIENT6,
            error((1, 3), &quote(&about(false, VIP6, CLIENT6), None)),
        ),
        // What such a backend's own packets came to.
        (
            VIP6,
            SERVER4,
            CLIENT6,
            message(
                ROUTER4,
                CLIENT4,
                (3, 1),
                [0; 4],
                &quote(&about(false, CLIENT4, SERVER4), None),
            ),
        ),
    ];
    for (vip, to, client, error) in crossed {
        let stage = stage(Mode::Nat, server(to), socket(vip).ip())
            .route(socket(client).ip(), EGRESS)
            .route(socket(CLIENT4).ip(), EGRESS);
        let outcome = stage.run(&error.frame());
        assert_eq!(
            outcome,
            Outcome::dropped(DropReason::Inconsistent),
            "{vip} {to}"
        );
    }
}

#[test]
fn an_error_that_quotes_more_extension_headers_than_any_error_has_passes() {
    let long = |length| Spec {
        extensions: vec![Extension::Destination(length); 2],
        ..about(false, VIP6, CLIENT6)
    };
    let stage = || stage(Mode::Ipip, server(SERVER6), socket(VIP6).ip());
    let error = |length| error((1, 3), &long(length).ip()).frame();
    assert_eq!(
        stage().run(&error(1_014)).verdict,
        Verdict::Redirect(EGRESS)
    );
    let beyond = error(6 + 8 * 255);
    assert_eq!(stage().run(&beyond), Outcome::passed(beyond));
}
