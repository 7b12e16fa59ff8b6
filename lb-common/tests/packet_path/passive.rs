//! What the packets of handshakes show of servers: answers that pass, and clients that go on.

use std::net::IpAddr;

use lb_common::{
    tables::{Signs, handshake},
    verdict::Verdict,
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Flags, Spec, Transport, datagram, segment, socket, syn},
    full_nat::{ENDS, FROM4, PORTS},
    icmp::{about, message, quote},
    support::{EGRESS, INGRESS, Mode, Stage, server},
};

const SYN_ACK: Flags = Flags {
    syn: true,
    ..Flags::ACK
};
const RST_ACK: Flags = Flags {
    rst: true,
    ..Flags::ACK
};
/// The sequence number of every segment that is not told another one.
const SEQUENCE: u32 = 0x1234_5678;
const ROUTER4: &str = "198.51.100.9:0";
const ROUTER6: &str = "[2001:db8:9::9]:0";

fn ip(at: &str) -> IpAddr {
    socket(at).ip()
}

/// Both families behind VIPs in mode `nat`, of which answers that come by an interface count.
fn stage_of(sampling: u8, interface: u32) -> Stage {
    Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)])
        .serve(Mode::Nat, VIP6, TCP, &[server(SERVER6)])
        .watching(sampling, interface)
        .route(ip(CLIENT4), EGRESS)
        .route(ip(CLIENT6), EGRESS)
}

fn stage() -> Stage {
    stage_of(0, INGRESS)
}

/// A segment with flags and a sequence number; its checksum is of another, which nobody here looks at.
fn tcp(from: &str, to: &str, flags: Flags, sequence: u32) -> Vec<u8> {
    let spec = Spec {
        transport: Transport::Tcp(flags),
        payload: Vec::new(),
        ..segment(from, to)
    };
    let mut frame = spec.frame();
    let at = if socket(from).is_ipv4() { 38 } else { 58 };
    frame[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    frame
}

/// What the first server has shown after these.
fn shown(stage: &Stage, frames: &[Vec<u8>]) -> Signs {
    for frame in frames {
        stage.run(frame);
    }
    stage.signs(0)
}

#[test]
fn a_server_that_acknowledges_a_syn_has_accepted_a_connection() {
    let stage = stage();
    let signs = shown(&stage, &[tcp(SERVER4, CLIENT4, SYN_ACK, 7)]);
    let accepted = Signs {
        accepted: 1,
        ..Signs::default()
    };
    assert_eq!(signs, accepted);
    stage.run(&tcp(SERVER6, CLIENT6, SYN_ACK, 7));
    assert_eq!((stage.signs(0), stage.signs(1)), (accepted, accepted));
}

#[test]
fn the_reset_of_a_syn_is_a_refusal_and_refusals_in_a_row_end_with_a_connection() {
    let stage = stage();
    let refusal = || tcp(SERVER4, CLIENT4, RST_ACK, 0);
    let signs = shown(&stage, &[refusal(), refusal()]);
    assert_eq!((signs.refused, signs.streak), (2, 2));
    let signs = shown(&stage, &[tcp(SERVER4, CLIENT4, SYN_ACK, 7), refusal()]);
    assert_eq!((signs.accepted, signs.refused, signs.streak), (1, 3, 1));
    stage.run(&tcp(SERVER6, CLIENT6, RST_ACK, 0));
    assert_eq!(stage.signs(1).refused, 1);
}

#[test]
fn the_reset_of_a_connection_under_way_shows_nothing_nor_do_its_other_segments() {
    let stage = stage();
    let frames = [
        tcp(SERVER4, CLIENT4, RST_ACK, 1),
        tcp(SERVER4, CLIENT4, Flags::RST, 0),
        tcp(SERVER4, CLIENT4, Flags::ACK, 0),
        tcp(SERVER4, CLIENT4, Flags::FIN, 0),
        tcp(SERVER4, CLIENT4, Flags::SYN, 0),
    ];
    assert_eq!(shown(&stage, &frames), Signs::default());
}

#[test]
fn an_answer_that_comes_by_another_interface_may_be_anybodys_and_shows_nothing() {
    for interface in [0, EGRESS] {
        let stage = stage_of(0, interface);
        let frames = [
            tcp(SERVER4, CLIENT4, RST_ACK, 0),
            tcp(SERVER4, CLIENT4, SYN_ACK, 0),
            unreachable(SERVER4, (3, 3)),
        ];
        assert_eq!(shown(&stage, &frames), Signs::default());
    }
}

#[test]
fn answers_to_the_balancers_own_probes_show_nothing() {
    let stage = stage().own("192.0.2.7");
    let frames = [
        tcp(SERVER4, CLIENT4, RST_ACK, 0),
        tcp(SERVER4, CLIENT4, SYN_ACK, 0),
        unreachable(SERVER4, (3, 3)),
    ];
    assert_eq!(shown(&stage, &frames), Signs::default());
}

#[test]
fn a_server_that_is_not_watched_shows_nothing() {
    let stage = Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)])
        .route(ip(CLIENT4), EGRESS);
    let signs = shown(
        &stage,
        &[
            tcp(SERVER4, CLIENT4, RST_ACK, 0),
            syn(CLIENT4, VIP4).frame(),
        ],
    );
    assert_eq!(signs, Signs::default());
    assert_eq!(stage.handshakes(), []);
}

/// An error from a router or the server about a client's segment.
fn unreachable(from: &str, kind: (u8, u8)) -> Vec<u8> {
    let v4 = socket(from).is_ipv4();
    let (client, server) = if v4 {
        (CLIENT4, SERVER4)
    } else {
        (CLIENT6, SERVER6)
    };
    let quoted = segment(client, server).ip();
    message(from, client, kind, [0; 4], &quoted).frame()
}

#[test]
fn an_error_that_says_nobody_is_there_counts_as_a_failure_and_other_errors_do_not() {
    let kinds: [(&str, (u8, u8), u64); 14] = [
        (ROUTER4, (3, 0), 1),
        (ROUTER4, (3, 1), 1),
        (SERVER4, (3, 2), 1),
        (SERVER4, (3, 3), 1),
        (ROUTER4, (3, 4), 0),
        (ROUTER4, (3, 13), 0),
        (ROUTER4, (11, 0), 0),
        (ROUTER4, (12, 0), 0),
        (ROUTER6, (1, 0), 1),
        (ROUTER6, (1, 1), 0),
        (ROUTER6, (1, 3), 1),
        (SERVER6, (1, 4), 1),
        (ROUTER6, (2, 0), 0),
        (ROUTER6, (3, 0), 0),
    ];
    for (from, kind, counts) in kinds {
        let stage = stage();
        stage.run(&unreachable(from, kind));
        let signs = stage.signs(u32::from(!socket(from).is_ipv4()));
        let expected = Signs {
            unreachable: counts,
            streak: counts,
            ..Signs::default()
        };
        assert_eq!(signs, expected, "{from} {kind:?}");
    }
}

/// Both families in mode `full-nat`, looked at or not, of which answers that come by an interface count; a client of
/// each has sent its SYN.
fn opened(sampling: u8, interface: u32) -> Stage {
    let mut stage = Stage::new();
    for [_, vip, from, server_at] in ENDS {
        let pool = ip(from).to_string();
        stage = stage
            .serve(Mode::FullNat, vip, TCP, &[server(server_at)])
            .translating(&[&pool], PORTS)
            .watching(sampling, interface);
    }
    let stage = stage.route(ip(CLIENT4), EGRESS).route(ip(CLIENT6), EGRESS);
    for [client, vip, ..] in ENDS {
        stage.run(&tcp(client, vip, Flags::SYN, SEQUENCE));
    }
    stage
}

/// An error from a router or the server about a segment of a session.
fn unreachable_by(at: usize, kind: (u8, u8)) -> Vec<u8> {
    let [_, _, from, to] = ENDS[at];
    let router = [ROUTER4, ROUTER6][at];
    message(router, from, kind, [0; 4], &segment(from, to).ip()).frame()
}

const GONE: [(u8, u8); 2] = [(3, 1), (1, 3)];

#[test]
fn what_answers_the_syn_of_a_session_shows_whether_its_server_accepts_connections() {
    for (at, [_, _, from, to]) in ENDS.into_iter().enumerate() {
        let shows = |frames: &[Vec<u8>]| {
            let stage = opened(1, INGRESS);
            shown(&stage, frames);
            let other = stage.signs(1 - at as u32);
            assert_eq!(other, Signs::default(), "{to}");
            let signs = stage.signs(at as u32);
            (
                signs.accepted,
                signs.refused,
                signs.unreachable,
                signs.streak,
            )
        };
        let refusal = || tcp(to, from, RST_ACK, 0);
        assert_eq!(shows(&[tcp(to, from, SYN_ACK, 7)]), (1, 0, 0, 0));
        assert_eq!(shows(&[refusal()]), (0, 1, 0, 1));
        assert_eq!(shows(&[unreachable_by(at, GONE[at])]), (0, 0, 1, 1));
        let both = [refusal(), tcp(to, from, SYN_ACK, 7)];
        assert_eq!(shows(&both), (1, 1, 0, 0));
    }
}

#[test]
fn what_is_no_answer_to_the_syn_of_a_session_shows_nothing() {
    let [client, vip, from, to] = ENDS[0];
    let established = || tcp(client, vip, Flags::ACK, SEQUENCE + 1);
    let refusal = || tcp(to, from, RST_ACK, 0);
    let cases: [&[Vec<u8>]; 8] = [
        &[established(), refusal()],
        &[established(), tcp(to, from, SYN_ACK, 7)],
        &[established(), unreachable_by(0, GONE[0])],
        &[tcp(to, from, RST_ACK, 1)],
        &[tcp(to, from, Flags::RST, 0)],
        &[tcp("10.1.0.2:8081", from, RST_ACK, 0)],
        &[tcp(to, "10.9.0.1:2001", RST_ACK, 0)],
        &[unreachable_by(0, (3, 13))],
    ];
    for frames in cases {
        let stage = opened(1, INGRESS);
        assert_eq!(shown(&stage, frames), Signs::default());
    }
}

#[test]
fn answers_to_sessions_show_nothing_by_another_interface_or_of_a_service_that_is_not_looked_at() {
    for (sampling, interface) in [(1, 0), (1, EGRESS), (0, INGRESS)] {
        let stage = opened(sampling, interface);
        let frames = [
            tcp(SERVER4, FROM4, RST_ACK, 0),
            tcp(SERVER4, FROM4, SYN_ACK, 7),
            unreachable_by(0, GONE[0]),
        ];
        assert_eq!(shown(&stage, &frames), Signs::default());
    }
}

#[test]
fn nothing_is_watched_of_the_clients_of_sessions() {
    let stage = opened(1, INGRESS);
    let [client, vip, ..] = ENDS[0];
    stage.run(&tcp(client, vip, Flags::SYN, SEQUENCE));
    stage.run(&tcp(client, vip, Flags::ACK, SEQUENCE + 1));
    assert_eq!(stage.handshakes(), []);
    assert_eq!(stage.signs(0), Signs::default());
}

/// A service in a mode in which its answers do not pass.
fn direct(sampling: u8) -> Stage {
    Stage::new()
        .serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)])
        .watching(sampling, INGRESS)
}

const TICK: u64 = 1 << 20;

#[test]
fn a_client_that_goes_on_shows_that_its_syn_was_answered_and_how_long_that_took() {
    for next in [Flags::ACK, Flags::FIN] {
        let stage = direct(1);
        stage.run(&tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE));
        assert_eq!(stage.handshakes(), [handshake::PENDING]);
        stage.ticks(3);
        let signs = shown(&stage, &[tcp(CLIENT4, VIP4, next, SEQUENCE + 1)]);
        let progressed = Signs {
            progressed: 1,
            nanoseconds: 3 * TICK,
            ..Signs::default()
        };
        assert_eq!(signs, progressed);
        let more = [
            tcp(CLIENT4, VIP4, Flags::ACK, SEQUENCE + 100),
            tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE),
        ];
        assert_eq!(shown(&stage, &more), progressed, "once");
    }
}

#[test]
fn it_does_so_in_every_such_mode_and_where_clients_are_told_by_their_address() {
    for mode in [Mode::Gue, Mode::L2] {
        let stage = Stage::new()
            .serve(mode, VIP4, TCP, &[server(SERVER4)])
            .by_source()
            .watching(1, INGRESS);
        let other = "192.0.2.7:40001";
        stage.run(&tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE));
        stage.run(&tcp(other, VIP4, Flags::SYN, SEQUENCE));
        assert_eq!(stage.handshakes(), [handshake::PENDING; 2]);
        let signs = shown(&stage, &[tcp(other, VIP4, Flags::ACK, SEQUENCE + 1)]);
        assert_eq!(signs.progressed, 1, "{mode:?}");
    }
}

#[test]
fn where_answers_pass_clients_tell_how_soon_they_come_if_they_are_asked() {
    for (sampling, progressed) in [(0, 0), (1, 1)] {
        for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
            let stage = Stage::new()
                .serve(
                    Mode::Nat,
                    vip,
                    TCP,
                    &[server(if vip == VIP4 { SERVER4 } else { SERVER6 })],
                )
                .watching(sampling, INGRESS)
                .route(ip(client), EGRESS);
            stage.run(&tcp(client, vip, Flags::SYN, SEQUENCE));
            stage.ticks(5);
            let signs = shown(&stage, &[tcp(client, vip, Flags::ACK, SEQUENCE + 1)]);
            let expected = Signs {
                progressed,
                nanoseconds: progressed * 5 * TICK,
                ..Signs::default()
            };
            assert_eq!(signs, expected);
        }
    }
}

#[test]
fn a_syn_that_is_sent_again_shows_once_that_it_was_not_answered() {
    let stage = direct(1);
    let syn = || tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE);
    let signs = shown(&stage, &[syn(), syn(), syn()]);
    let resent = Signs {
        resent: 1,
        ..Signs::default()
    };
    assert_eq!(signs, resent);
    let late = [tcp(CLIENT4, VIP4, Flags::ACK, SEQUENCE + 1)];
    assert_eq!(shown(&stage, &late), resent, "that is decided");
}

#[test]
fn a_client_that_gives_up_or_sends_what_is_of_no_connection_of_its_shows_nothing() {
    for (flags, sequence, state) in [
        (Flags::RST, SEQUENCE + 1, handshake::RESET),
        (Flags::ACK, SEQUENCE, handshake::PENDING),
        (Flags::ACK, SEQUENCE - 1, handshake::PENDING),
        (
            Flags::ACK,
            SEQUENCE.wrapping_add(1 << 31),
            handshake::PENDING,
        ),
    ] {
        let stage = direct(1);
        let frames = [
            tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE),
            tcp(CLIENT4, VIP4, flags, sequence),
        ];
        assert_eq!(shown(&stage, &frames), Signs::default());
        assert_eq!(stage.handshakes(), [state], "{flags:?} {sequence:#x}");
    }
}

#[test]
fn a_new_connection_of_the_same_ports_is_watched_in_the_place_of_the_former() {
    let stage = direct(1);
    let frames = [
        tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE),
        tcp(CLIENT4, VIP4, Flags::SYN, SEQUENCE + 64_000),
        tcp(CLIENT4, VIP4, Flags::ACK, SEQUENCE + 64_001),
    ];
    let signs = shown(&stage, &frames);
    assert_eq!((signs.progressed, signs.resent), (1, 0));
}

#[test]
fn a_share_of_the_flows_is_watched_that_is_known_by_their_hash() {
    // Less those whose place another flow has.
    for (sampling, least, most) in [(0, 0, 0), (1, 860, 910), (2, 430, 510), (4, 90, 160)] {
        let stage = direct(sampling).hashing();
        for port in 1..=1_000 {
            let client = format!("192.0.2.9:{port}");
            stage.run(&tcp(&client, VIP4, Flags::SYN, SEQUENCE));
        }
        let watched = stage.handshakes().len();
        assert!((least..=most).contains(&watched), "{sampling}: {watched}");
    }
}

#[test]
fn a_handshake_that_is_waited_for_keeps_its_place_for_ten_seconds() {
    // Two flows at one place: every flow has this stage's hash, and so its ports' only.
    let stage = direct(1);
    let clients: Vec<String> = (1..=40_000)
        .map(|port| format!("192.0.2.9:{port}"))
        .collect();
    let taken = |stage: &Stage| stage.handshakes().len();
    for client in &clients {
        stage.run(&tcp(client, VIP4, Flags::SYN, SEQUENCE));
    }
    assert!(taken(&stage) > 3_900, "{}", taken(&stage));
    let first = |stage: &Stage| shown(stage, &[tcp(&clients[0], VIP4, Flags::ACK, SEQUENCE + 1)]);
    assert_eq!(first(&stage).progressed, 1, "the first is still there");
    let stage = direct(1);
    stage.run(&tcp(&clients[0], VIP4, Flags::SYN, SEQUENCE));
    stage.ticks(9_600);
    for client in &clients[1..] {
        stage.run(&tcp(client, VIP4, Flags::SYN, SEQUENCE));
    }
    assert_eq!(first(&stage).progressed, 0, "another has its place");
}

#[test]
fn datagrams_show_nothing_of_handshakes() {
    let stage = Stage::new()
        .serve(Mode::Nat, VIP4, UDP, &[server(SERVER4)])
        .serve(Mode::Ipip, VIP6, UDP, &[server(SERVER6)])
        .watching(1, INGRESS)
        .route(ip(CLIENT4), EGRESS);
    let failed = about(true, CLIENT4, SERVER4);
    let failed = message(ROUTER4, CLIENT4, (3, 3), [0; 4], &quote(&failed, None));
    for frame in [
        datagram(CLIENT6, VIP6).frame(),
        datagram(SERVER4, CLIENT4).frame(),
        failed.frame(),
    ] {
        let outcome = stage.run(&frame);
        assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
    }
    assert_eq!((stage.signs(0), stage.signs(1)), Default::default());
    assert_eq!(stage.handshakes(), []);
}

#[test]
fn a_reset_refuses_whatever_else_it_says() {
    let all = Flags {
        syn: true,
        ..RST_ACK
    };
    let signs = shown(&stage(), &[tcp(SERVER4, CLIENT4, all, 0)]);
    assert_eq!((signs.accepted, signs.refused), (0, 1));
}
