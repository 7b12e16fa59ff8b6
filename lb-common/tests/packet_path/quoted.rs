//! ICMPv6 errors about packets with extension headers: what they are about is found behind those, as it was on its way.

use lb_common::verdict::Verdict;

use crate::{
    CLIENT6, SERVER6, TCP, UDP, VIP6,
    frames::{Extension, Spec, datagram, socket, syn},
    full_nat::{self, goes_on},
    icmp::{about, delivered, error, message, quote},
    support::{CLIENT_MACS, EGRESS, Frame, Mode, Outcome, Stage, macs, server},
};

const ROUTER6: &str = "[2001:db8:9::9]:0";
const REST: [u8; 4] = [0, 0, 5, 0x14];

/// What a quoted packet may have in front of its ports; a fragment is its datagram's first one.
fn chains() -> Vec<Vec<Extension>> {
    vec![
        vec![Extension::HopByHop(6)],
        vec![Extension::Destination(14)],
        vec![Extension::Fragment(0, true)],
        vec![Extension::Fragment(0, false)],
        vec![Extension::Authentication(12)],
        vec![
            Extension::HopByHop(6),
            Extension::Routing(0),
            Extension::Fragment(0, true),
            Extension::Destination(6),
            Extension::Destination(6),
            Extension::Destination(6),
        ],
    ]
}

/// A packet from one end to another with extension headers.
fn extended(udp: bool, from: &str, to: &str, extensions: &[Extension]) -> Vec<u8> {
    let packet = Spec {
        extensions: extensions.to_vec(),
        ..about(udp, from, to)
    };
    quote(&packet, None)
}

fn stage(mode: Mode) -> Stage {
    let servers = [server(SERVER6)];
    Stage::new()
        .serve(mode, VIP6, TCP, &servers)
        .serve(mode, VIP6, UDP, &servers)
}

#[test]
fn an_error_about_a_packet_with_extension_headers_reaches_the_backend_that_sent_it() {
    for extensions in chains() {
        for mode in [Mode::Ipip, Mode::Gue, Mode::L2] {
            let error = error((2, 0), &extended(false, VIP6, CLIENT6, &extensions));
            let outcome = stage(mode).run(&error.frame());
            let count = (1, error.frame().len() as u64, 0);
            let expected = delivered(mode, &error, SERVER6);
            let verdict = Verdict::Redirect(EGRESS);
            let expected = Outcome::forwarded(verdict, expected, 0, count);
            assert_eq!(outcome, expected, "{mode:?} {extensions:?}");
        }
        for udp in [false, true] {
            let before = error((2, 0), &extended(udp, VIP6, CLIENT6, &extensions));
            let own = extended(udp, SERVER6, CLIENT6, &extensions);
            let after = message(ROUTER6, SERVER6, (2, 0), REST, &own);
            let after = after.routed(macs(u8::from(udp))).frame();
            let outcome = stage(Mode::Nat).run(&before.frame());
            assert_eq!(outcome.frame, Frame(after), "{udp} {extensions:?}");
        }
    }
}

#[test]
fn a_client_is_told_of_its_packet_with_extension_headers() {
    for extensions in chains() {
        for udp in [false, true] {
            let stage = stage(Mode::Nat).route(socket(CLIENT6).ip(), EGRESS);
            let sent = extended(udp, CLIENT6, SERVER6, &extensions);
            let own = extended(udp, CLIENT6, VIP6, &extensions);
            let before = message(SERVER6, CLIENT6, (1, 4), [0; 4], &sent);
            let after = message(VIP6, CLIENT6, (1, 4), [0; 4], &own);
            let outcome = stage.run(&before.frame());
            let after = after.routed(CLIENT_MACS).frame();
            assert_eq!(outcome.frame, Frame(after), "{udp} {extensions:?}");
        }
    }
}

#[test]
fn both_ends_of_a_session_are_told_of_their_packets_with_extension_headers() {
    let [client, vip, from, to] = full_nat::ENDS[1];
    for extensions in chains() {
        for udp in [false, true] {
            let stage = full_nat::stage();
            let first = if udp {
                datagram(client, vip)
            } else {
                syn(client, vip)
            };
            assert!(goes_on(&stage, &first));
            let told = |whom: &str, quoted: &[u8]| message(ROUTER6, whom, (1, 3), REST, quoted);
            let before = told(vip, &extended(udp, vip, client, &extensions));
            let after = told(to, &extended(udp, to, from, &extensions));
            let outcome = stage.run(&before.frame());
            let after = after.routed(macs(2 + u8::from(udp))).frame();
            assert_eq!(outcome.frame, Frame(after), "{udp} {extensions:?}");
            let before = told(from, &extended(udp, from, to, &extensions));
            let after = told(client, &extended(udp, client, vip, &extensions));
            let outcome = stage.run(&before.frame());
            let after = after.routed(CLIENT_MACS).frame();
            assert_eq!(outcome.frame, Frame(after), "{udp} {extensions:?}");
        }
    }
}

#[test]
fn an_error_about_what_has_no_ports_is_the_kernels() {
    let seven = vec![Extension::Destination(6); 7];
    for extensions in [
        vec![Extension::Fragment(1, true)],
        vec![Extension::HopByHop(6), Extension::Fragment(185, false)],
        vec![Extension::Routing(1)],
        seven,
    ] {
        let frame = error((2, 0), &extended(false, VIP6, CLIENT6, &extensions)).frame();
        let outcome = stage(Mode::Ipip).run(&frame);
        assert_eq!(outcome, Outcome::passed(frame), "{extensions:?}");
    }
}
