//! ICMP errors about packets of tunnels: what they show of the backend that those did not get to, and what they quote of what was
//! never sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::tables::{Signs, handshake};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, VIP4, VIP6,
    frames::{Flags, Spec, Transport, segment, socket},
    icmp::message,
    support::{EGRESS, INGRESS, Mode, Outcome, Stage, server},
};

const ROUTER4: &str = "198.51.100.9:0";
const ROUTER6: &str = "[2001:db8:9::9]:0";
pub const MODES: [Mode; 3] = [Mode::Ipip, Mode::Gue, Mode::SecondHop];
/// The client, the VIP and the server: 4in4, 6in6, 4in6, 6in4.
pub const FAMILIES: [[&str; 3]; 4] = [
    [CLIENT4, VIP4, SERVER4],
    [CLIENT6, VIP6, SERVER6],
    [CLIENT4, VIP4, SERVER6],
    [CLIENT6, VIP6, SERVER4],
];

fn stage_of(mode: Mode, vip: &str, to: &str, sampling: u8, interface: u32) -> Stage {
    Stage::new()
        .serve(mode, vip, TCP, &[server(to)])
        .watching(sampling, interface)
}

fn tcp(from: &str, to: &str, flags: Flags) -> Vec<u8> {
    let spec = Spec {
        transport: Transport::Tcp(flags),
        payload: Vec::new(),
        ..segment(from, to)
    };
    spec.frame()
}

/// The packet that a client's segment is wrapped in.
fn wrapped(stage: &Stage, client: &str, vip: &str, flags: Flags) -> Vec<u8> {
    let Outcome { frame, .. } = stage.run(&tcp(client, vip, flags));
    frame.0[14..].to_vec()
}

/// An error that a router sends about it, to where it came from.
fn about(quoted: &[u8], kind: (u8, u8)) -> Vec<u8> {
    about_with(quoted, kind, [0; 4])
}

/// The same, with this behind its checksum.
pub fn about_with(quoted: &[u8], kind: (u8, u8), rest: [u8; 4]) -> Vec<u8> {
    let (source, router): (IpAddr, _) = if quoted[0] >> 4 == 4 {
        let bytes: [u8; 4] = quoted[12..16].try_into().expect("four bytes");
        (Ipv4Addr::from(bytes).into(), ROUTER4)
    } else {
        let bytes: [u8; 16] = quoted[8..24].try_into().expect("sixteen bytes");
        (Ipv6Addr::from(bytes).into(), ROUTER6)
    };
    let to = std::net::SocketAddr::new(source, 0).to_string();
    message(router, &to, kind, rest, quoted).frame()
}

fn unreachable(times: u64) -> Signs {
    Signs {
        unreachable: times,
        ..Signs::default()
    }
}

/// What says that nobody is there.
fn gone(to: &str) -> (u8, u8) {
    if socket(to).is_ipv4() { (3, 2) } else { (1, 4) }
}

#[test]
fn an_error_about_the_tunnels_packet_that_brought_a_syn_is_a_handshake_that_failed_once() {
    for mode in MODES {
        for [client, vip, to] in FAMILIES {
            let stage = stage_of(mode, vip, to, 1, INGRESS);
            let syn = wrapped(&stage, client, vip, Flags::SYN);
            let error = about(&syn, gone(to));
            // The kernel gets it as it came, as it would without.
            assert_eq!(stage.run(&error), Outcome::passed(error.clone()));
            assert_eq!(stage.signs(0), unreachable(1), "{mode:?} {client} {to}");
            assert_eq!(stage.handshakes(), [handshake::UNREACHABLE]);
            stage.run(&error);
            stage.run(&tcp(client, vip, Flags::SYN));
            assert_eq!(stage.signs(0), unreachable(1), "once");
        }
    }
}

#[test]
fn errors_that_say_something_else_show_nothing() {
    let kinds: [(usize, (u8, u8), u64); 18] = [
        (0, (3, 0), 1),
        (0, (3, 1), 1),
        (0, (3, 2), 1),
        (0, (3, 3), 1),
        (0, (3, 4), 0),
        (0, (3, 13), 0),
        (0, (11, 0), 0),
        (0, (12, 0), 0),
        (0, (12, 1), 0),
        (1, (1, 0), 1),
        (1, (1, 1), 0),
        (1, (1, 3), 1),
        (1, (1, 4), 1),
        (1, (2, 0), 0),
        (1, (3, 0), 0),
        (1, (4, 0), 0),
        // Nobody is there for the protocol.
        (1, (4, 1), 1),
        (1, (4, 2), 0),
    ];
    for (family, kind, counts) in kinds {
        let [client, vip, to] = FAMILIES[family];
        let stage = stage_of(Mode::Ipip, vip, to, 1, INGRESS);
        let syn = wrapped(&stage, client, vip, Flags::SYN);
        stage.run(&about(&syn, kind));
        assert_eq!(stage.signs(0), unreachable(counts), "{kind:?}");
    }
}

/// A change of a byte of what is quoted, counted from its outer IP header.
type Forgery = (Mode, usize, &'static str);

/// Those that make it nothing that was sent. Without options, the inner header begins at 20 (28 behind UDP), and its ports at 40.
pub const FORGERIES: [Forgery; 11] = [
    (Mode::Ipip, 0, "length of the header"),
    (Mode::Ipip, 7, "later fragment"),
    (Mode::Ipip, 9, "protocol"),
    (Mode::Ipip, 19, "backend"),
    (Mode::Ipip, 29, "inner protocol"),
    (Mode::Ipip, 35, "client"),
    (Mode::Ipip, 39, "VIP"),
    (Mode::Ipip, 41, "client's port"),
    (Mode::Ipip, 43, "VIP's port"),
    (Mode::Gue, 21, "source port of the tunnel"),
    (Mode::Gue, 23, "port of the tunnel"),
];

#[test]
fn what_was_not_sent_is_forged_and_shows_nothing() {
    let of_another_syn = (Mode::Ipip, 47, "sequence number");
    for (mode, at, what) in FORGERIES.into_iter().chain([of_another_syn]) {
        let stage = stage_of(mode, VIP4, SERVER4, 1, INGRESS).hashing();
        let mut quoted = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
        quoted[at] ^= 1;
        let forged = about(&quoted, (3, 2));
        assert_eq!(stage.run(&forged), Outcome::passed(forged.clone()));
        assert_eq!(stage.signs(0), Signs::default(), "{what}");
        assert_eq!(stage.handshakes(), [handshake::PENDING], "{what}");
    }
}

#[test]
fn the_source_that_the_secret_of_the_hash_gives_a_tunnel_has_to_be_quoted() {
    let stage = stage_of(Mode::Ipip, VIP4, SERVER4, 1, INGRESS);
    let syn = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
    // It is answered to whom it names as its sender, one of as many as the prefix has.
    let mut guess = syn.clone();
    guess[15] ^= 1;
    stage.run(&about(&guess, (3, 2)));
    assert_eq!(stage.signs(0), Signs::default());
    // An error goes to whoever sent what it is about.
    let elsewhere = message(ROUTER4, "172.16.1.1:0", (3, 2), [0; 4], &syn);
    stage.run(&elsewhere.frame());
    assert_eq!(stage.signs(0), Signs::default());
    stage.run(&about(&syn, (3, 2)));
    assert_eq!(stage.signs(0), unreachable(1));
}

#[test]
fn an_error_that_quotes_as_little_as_it_may_is_enough_with_the_inner_ports_and_sequence_number() {
    for (length, counts) in [(48, 1), (47, 0), (28, 0)] {
        let stage = stage_of(Mode::Ipip, VIP4, SERVER4, 1, INGRESS);
        let syn = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
        stage.run(&about(&syn[..length], (3, 1)));
        assert_eq!(stage.signs(0), unreachable(counts), "{length}");
    }
}

#[test]
fn an_error_shows_nothing_by_another_interface_or_of_what_is_not_watched_or_has_been_answered() {
    for (sampling, interface) in [(1, 0), (1, EGRESS), (0, INGRESS)] {
        let stage = stage_of(Mode::Ipip, VIP4, SERVER4, sampling, interface);
        let syn = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
        stage.run(&about(&syn, (3, 2)));
        assert_eq!(stage.signs(0), Signs::default(), "{sampling} {interface}");
    }
    let stage = stage_of(Mode::Ipip, VIP4, SERVER4, 1, INGRESS);
    let syn = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
    let frame = tcp(CLIENT4, VIP4, Flags::ACK);
    let mut next = frame.clone();
    next[41] = next[41].wrapping_add(1);
    stage.run(&next);
    assert_eq!(stage.handshakes(), [handshake::PROGRESSED]);
    let before = stage.signs(0);
    stage.run(&about(&syn, (3, 2)));
    assert_eq!(stage.signs(0), before);
}

#[test]
fn an_error_about_another_segment_than_the_syn_or_from_another_backends_tunnel_shows_nothing() {
    let stage = Stage::new()
        .serve(
            Mode::Ipip,
            VIP4,
            TCP,
            &[server(SERVER4), server("10.1.0.3:8080")],
        )
        .ring(&[0; 8])
        .watching(1, INGRESS);
    let syn = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
    let mut other = syn.clone();
    other[16..20].copy_from_slice(&[10, 1, 0, 3]);
    stage.run(&about(&other, (3, 2)));
    assert_eq!((stage.signs(0), stage.signs(1)), Default::default());
    stage.run(&about(&syn, (3, 2)));
    assert_eq!(stage.signs(0), unreachable(1));
    assert_eq!(stage.signs(1), Signs::default());
}

#[test]
fn an_error_about_a_tunnel_of_another_mode_or_with_options_that_were_not_sent_shows_nothing() {
    let ipip = || stage_of(Mode::Ipip, VIP4, SERVER4, 1, INGRESS);
    let syn = wrapped(&ipip(), CLIENT4, VIP4, Flags::SYN);
    // One word of no operation behind a header at `at`, which has its length in its first byte.
    let with_options = |at: usize| {
        let mut quoted = syn.clone();
        quoted[at] += 1;
        quoted.splice(at + 20..at + 20, [1; 4]);
        quoted
    };
    let gue = stage_of(Mode::Gue, VIP4, SERVER4, 1, INGRESS);
    let gue = wrapped(&gue, CLIENT4, VIP4, Flags::SYN);
    for (quoted, what) in [
        (with_options(0), "outer options"),
        (with_options(20), "inner options"),
        (gue, "another mode"),
    ] {
        // The program knows of all tunnels.
        let stage = ipip().serve(Mode::Gue, VIP6, TCP, &[server(SERVER6)]);
        stage.run(&tcp(CLIENT4, VIP4, Flags::SYN));
        stage.run(&about(&quoted, (3, 2)));
        assert_eq!(stage.signs(0), Signs::default(), "{what}");
        assert_eq!(stage.handshakes(), [handshake::PENDING], "{what}");
    }
}

#[test]
fn an_error_about_a_tunnel_of_a_service_without_backends_shows_nothing() {
    let syn = wrapped(
        &stage_of(Mode::Ipip, VIP4, SERVER4, 1, INGRESS),
        CLIENT4,
        VIP4,
        Flags::SYN,
    );
    let empty = Stage::new()
        .serve(Mode::Ipip, VIP4, TCP, &[])
        .watching(1, INGRESS);
    let error = about(&syn, (3, 2));
    assert_eq!(empty.run(&error), Outcome::passed(error));
}

#[test]
fn tunnels_that_tell_of_a_second_hop_and_others_are_told_apart() {
    for (mode, other) in [(Mode::Gue, Mode::SecondHop), (Mode::SecondHop, Mode::Gue)] {
        let stage = Stage::new()
            .serve(other, VIP6, TCP, &[server(SERVER6)])
            .serve(mode, VIP4, TCP, &[server(SERVER4)])
            .watching(1, INGRESS);
        let syn = wrapped(&stage, CLIENT4, VIP4, Flags::SYN);
        stage.run(&about(&syn, (3, 2)));
        assert_eq!(stage.signs(1), unreachable(1), "{mode:?}");
    }
}

#[test]
fn an_error_about_the_backend_that_a_slot_has_now_is_not_one_about_who_got_the_syn() {
    let stage = || {
        Stage::new()
            .serve(
                Mode::Ipip,
                VIP4,
                TCP,
                &[SERVER4, "10.1.0.3:8080"].map(server),
            )
            .watching(1, INGRESS)
    };
    let [first, second] = [0, 1].map(|owner| stage().ring(&[owner; 8]));
    let to_second = wrapped(&second, CLIENT4, VIP4, Flags::SYN);
    wrapped(&first, CLIENT4, VIP4, Flags::SYN);
    let moved = first.ring(&[1; 8]);
    moved.run(&about(&to_second, (3, 2)));
    assert_eq!((moved.signs(0), moved.signs(1)), Default::default());
    assert_eq!(moved.handshakes(), [handshake::PENDING]);
}
