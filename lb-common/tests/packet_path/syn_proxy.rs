//! Mode `full-nat` with handshakes that are answered for the backend: what each of the two ends gets to see, as etherparse
//! would lay it out, and what is kept meanwhile.

use etherparse::TcpHeader;
use lb_common::{
    rate::Rate,
    tables::{SECOND, record_flag, refusal},
    track::OPENING_LIFETIME,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    SERVER4, TCP, VIP4,
    frames::{MACS_IN, Spec, socket},
    full_nat::{ENDS, FROM4, POOL4, POOL6, PORTS},
    icmp::{message, quote},
    refuse::tcp,
    support::{CLIENT_MACS, Condition, EGRESS, INGRESS, Mode, Outcome, Stage, macs, server},
};

/// What answers every SYN here.
const COOKIE: u32 = 0x0bad_cafe;
const MSS: u16 = 1_440;
/// Where the client and the backend begin.
const CLIENT: u32 = 0xffff_fffe;
const BACKEND: u32 = 0x7000_0001;
/// MSS of 1460, SACK, timestamps, window scale: as Linux sends them.
const COMMON: [u8; 20] = [
    2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
];
const NOTHING: &[u8] = &[];

/// One service, of the family of its VIP.
fn stage(at: usize) -> Stage {
    let [client, vip, _, to] = ENDS[at];
    Stage::new()
        .serve(Mode::FullNat, vip, TCP, &[server(to)])
        .translating(&[[POOL4, POOL6][at]], PORTS)
        .proxying(Rate::default())
        .cookie(COOKIE, MSS)
        .route(socket(client).ip(), INGRESS)
}

/// Control bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bits {
    Syn,
    SynAck,
    Ack,
    FinAck,
    Rst,
    RstAck,
}

/// A segment with these numbers.
fn segment(
    (from, to): (&str, &str),
    bits: Bits,
    (sequence, acknowledged): (u32, u32),
    options: &[u8],
    payload: &[u8],
) -> Spec {
    let set = |header: &mut TcpHeader| {
        header.syn = matches!(bits, Bits::Syn | Bits::SynAck);
        header.ack = !matches!(bits, Bits::Syn | Bits::Rst);
        header.fin = bits == Bits::FinAck;
        header.rst = matches!(bits, Bits::Rst | Bits::RstAck);
        (header.sequence_number, header.acknowledgment_number) = (sequence, acknowledged);
        header.window_size = 0x4321;
        header.options = options.try_into().expect("whole words");
    };
    tcp(from, to, set, payload)
}

/// The same without a window.
fn windowless(ends: (&str, &str), bits: Bits, numbers: (u32, u32), options: &[u8]) -> Spec {
    let set = |header: &mut TcpHeader| {
        header.syn = bits == Bits::SynAck;
        header.ack = bits == Bits::SynAck;
        header.rst = bits == Bits::Rst;
        (header.sequence_number, header.acknowledgment_number) = numbers;
        header.window_size = 0;
        header.options = options.try_into().expect("whole words");
    };
    tcp(ends.0, ends.1, set, NOTHING)
}

/// As it is where it was made here.
fn made(spec: Spec) -> Spec {
    Spec {
        ttl: 64,
        identification: 0,
        flow_label: 0,
        ..spec
    }
}

/// The same, sent back to where the frame came from.
fn back(spec: Spec) -> Spec {
    let (source, destination) = MACS_IN;
    Spec {
        macs: (destination, source),
        ..made(spec)
    }
}

fn mss(bytes: u16) -> [u8; 4] {
    let [high, low] = bytes.to_be_bytes();
    [2, 4, high, low]
}

fn run(stage: &Stage, spec: &Spec) -> Outcome {
    stage.run(&spec.frame())
}

/// The client's SYN, and what answers it.
fn opening(at: usize) -> (Spec, Spec) {
    let [client, vip, ..] = ENDS[at];
    let syn = segment((client, vip), Bits::Syn, (CLIENT, 0), &COMMON, NOTHING);
    let numbers = (COOKIE, CLIENT.wrapping_add(1));
    let answer = windowless((vip, client), Bits::SynAck, numbers, &mss(MSS));
    (syn, back(answer))
}

/// The client's acknowledgement, as what follows it may be, too.
fn acknowledgement(at: usize, payload: &[u8]) -> Spec {
    let [client, vip, ..] = ENDS[at];
    let numbers = (CLIENT.wrapping_add(1), COOKIE.wrapping_add(1));
    segment((client, vip), Bits::Ack, numbers, NOTHING, payload)
}

/// The SYN that the backend gets.
fn syn_onward(at: usize, length: u16) -> Spec {
    let [_, _, from, to] = ENDS[at];
    let syn = segment((from, to), Bits::Syn, (CLIENT, 0), &mss(length), NOTHING);
    made(syn).routed(macs(0))
}

/// The backend's answer to that.
fn accepted(at: usize) -> Spec {
    let [_, _, from, to] = ENDS[at];
    let numbers = (BACKEND, CLIENT.wrapping_add(1));
    segment((to, from), Bits::SynAck, numbers, &mss(1_460), NOTHING)
}

/// A session whose handshake is over at both ends.
fn established(at: usize) -> Stage {
    let stage = stage(at);
    for spec in [
        acknowledgement(at, NOTHING),
        accepted(at),
        acknowledgement(at, NOTHING),
    ] {
        run(&stage, &spec);
    }
    assert_eq!(stage.sessions().by_flow.len(), 1);
    stage
}

/// The flags of the only session.
fn flags(stage: &Stage) -> u16 {
    let sessions = stage.sessions();
    assert_eq!(sessions.by_flow.len(), 1);
    stage.assert_sound();
    let session = sessions.by_flow.values().next();
    session.expect("the one").record.flags
}

#[test]
fn a_syn_is_answered_by_a_cookie_with_a_closed_window_and_nothing_is_kept() {
    for at in [0, 1] {
        let stage = stage(at);
        let (syn, answer) = opening(at);
        for _ in 0..3 {
            let out = run(&stage, &syn);
            assert_eq!(out.verdict, Verdict::Transmit);
            assert_eq!(out.frame.0, answer.frame());
            assert_eq!(out.counted.cookies, (1, 0, 0));
            assert!(out.counted.services.is_empty() && out.counted.drops.is_empty());
        }
        assert!(stage.sessions().by_flow.is_empty());
        assert!(stage.sessions().ports.is_empty());
    }
}

#[test]
fn what_acknowledges_the_cookie_becomes_a_syn_to_the_backend_with_no_option_but_the_mss() {
    for at in [0, 1] {
        for payload in [
            &b""[..],
            b"a payload of more bytes than the options of a SYN",
        ] {
            let stage = stage(at);
            let out = run(&stage, &acknowledgement(at, payload));
            assert_eq!(out.verdict, Verdict::Redirect(EGRESS));
            assert_eq!(out.frame.0, syn_onward(at, MSS).frame());
            assert_eq!(out.counted.cookies, (0, 1, 0));
            let expected = record_flag::OPENING | record_flag::PROXIED | record_flag::AWAITS;
            assert_eq!(flags(&stage), expected);
        }
    }
}

#[test]
fn what_the_client_sends_until_the_backend_has_answered_is_the_syn_again() {
    let [client, vip, ..] = ENDS[0];
    let next = CLIENT.wrapping_add(1);
    for (bits, sequence, payload) in [
        (Bits::Ack, next, &b""[..]),
        (Bits::Ack, CLIENT, b""),
        (Bits::Ack, next, b"too early"),
        (Bits::FinAck, next, b""),
        (Bits::Syn, CLIENT, b""),
        (Bits::Syn, 77, b""),
    ] {
        let stage = stage(0);
        run(&stage, &acknowledgement(0, NOTHING));
        let numbers = (sequence, COOKIE.wrapping_add(1));
        let again = segment((client, vip), bits, numbers, NOTHING, payload);
        let out = run(stage.at(5), &again);
        assert_eq!(out.verdict, Verdict::Redirect(EGRESS), "{sequence}");
        assert_eq!(out.frame.0, syn_onward(0, MSS).frame(), "{sequence}");
        assert_eq!(out.counted.cookies, (0, 0, 0));
        let expected = record_flag::OPENING | record_flag::PROXIED | record_flag::AWAITS;
        assert_eq!(flags(&stage), expected, "as half-open as before");
    }
}

#[test]
fn a_probe_of_the_closed_window_begins_what_a_lost_acknowledgement_did_not() {
    let [client, vip, ..] = ENDS[0];
    let stage = stage(0).hashing_cookies();
    let cookie = cookie_of(&stage, 0, &COMMON);
    let numbers = (CLIENT, cookie.wrapping_add(1));
    let probe = segment((client, vip), Bits::Ack, numbers, NOTHING, NOTHING);
    let out = run(&stage, &probe);
    assert_eq!(out.frame.0, syn_onward(0, 1_460).frame());
}

/// The cookie that a SYN with options gets.
fn cookie_of(stage: &Stage, at: usize, options: &[u8]) -> u32 {
    let [client, vip, ..] = ENDS[at];
    let syn = segment((client, vip), Bits::Syn, (CLIENT, 0), options, NOTHING);
    let frame = run(stage, &syn).frame.0;
    let at = 14 + [20, 40][at] + 4;
    u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"))
}

#[test]
fn the_backend_is_told_an_mss_that_the_client_takes() {
    for (at, told, expected) in [
        (0, Some(1_460), 1_460),
        (0, Some(9_000), 1_460),
        (0, Some(1_450), 1_440),
        (0, Some(700), 536),
        (0, Some(100), 536),
        (0, None, 536),
        (1, Some(1_440), 1_440),
        (1, Some(1_300), 1_220),
        (1, None, 1_220),
    ] {
        let stage = stage(at).hashing_cookies();
        let options = told.map_or(Vec::new(), |told: u16| mss(told).to_vec());
        let cookie = cookie_of(&stage, at, &options);
        let [client, vip, ..] = ENDS[at];
        let numbers = (CLIENT.wrapping_add(1), cookie.wrapping_add(1));
        let back = segment((client, vip), Bits::Ack, numbers, NOTHING, NOTHING);
        let out = run(&stage, &back);
        assert_eq!(out.frame.0, syn_onward(at, expected).frame(), "{told:?}");
    }
}

#[test]
fn the_backends_answer_opens_the_clients_window_by_a_byte_that_it_has_had() {
    for at in [0, 1] {
        let [client, vip, ..] = ENDS[at];
        let stage = stage(at);
        run(&stage, &acknowledgement(at, NOTHING));
        let numbers = (COOKIE, CLIENT.wrapping_add(1));
        let opens = segment((vip, client), Bits::Ack, numbers, NOTHING, &[0]);
        let expected = made(opens).routed(CLIENT_MACS).frame();
        // And once more, if the backend sends it again.
        for _ in 0..2 {
            let out = run(&stage, &accepted(at));
            assert_eq!(out.verdict, Verdict::Transmit);
            assert_eq!(out.frame.0, expected);
            assert_eq!(flags(&stage), record_flag::OPENING | record_flag::PROXIED);
        }
    }
}

#[test]
fn numbers_are_those_that_each_end_knows_wherever_they_wrap() {
    let [client, vip, from, to] = ENDS[1];
    for (cookie, begins) in [
        (0xffff_fff0_u32, 5_u32),
        (5, 0xffff_fff0),
        (0, 0),
        (u32::MAX, 0),
        (0, u32::MAX),
        (0x8000_0000, 0x7fff_ffff),
    ] {
        let stage = stage(1).cookie(cookie, MSS);
        let next = CLIENT.wrapping_add(1);
        let reply = (next, cookie.wrapping_add(1));
        run(
            &stage,
            &segment((client, vip), Bits::Ack, reply, NOTHING, NOTHING),
        );
        let numbers = (begins, next);
        run(
            &stage,
            &segment((to, from), Bits::SynAck, numbers, NOTHING, NOTHING),
        );
        for (sent, heard) in [
            (0_u32, 0_u32),
            (3, 11),
            (0x40, 0x20),
            (0x7fff_ffff, 0x8000_0000),
        ] {
            let sequence = next.wrapping_add(sent);
            let of_client = |ends, first: u32| {
                let numbers = (sequence, first.wrapping_add(1).wrapping_add(heard));
                segment(ends, Bits::Ack, numbers, NOTHING, b"odd")
            };
            let out = run(&stage, &of_client((client, vip), cookie));
            let expected = of_client((from, to), begins).routed(macs(0));
            assert_eq!(out.frame.0, expected.frame(), "{cookie:#x} {begins:#x}");
            let of_backend = |ends, first: u32| {
                let numbers = (first.wrapping_add(1).wrapping_add(heard), sequence);
                segment(ends, Bits::Ack, numbers, NOTHING, b"a payload")
            };
            let out = run(&stage, &of_backend((to, from), begins));
            let expected = of_backend((vip, client), cookie).routed(CLIENT_MACS);
            assert_eq!(out.frame.0, expected.frame(), "{cookie:#x} {begins:#x}");
        }
    }
}

#[test]
fn fin_and_rst_have_numbers_as_well_and_end_the_session_as_ever() {
    let [client, vip, from, to] = ENDS[0];
    let (next, then) = (CLIENT.wrapping_add(1), BACKEND.wrapping_add(1));
    for (bits, of_client, of_backend) in [
        (
            Bits::FinAck,
            record_flag::FINISHED,
            record_flag::BACKEND_FINISHED,
        ),
        (Bits::RstAck, record_flag::RESET, record_flag::BACKEND_RESET),
    ] {
        let stage = established(0);
        let out = run(
            &stage,
            &segment((client, vip), bits, (next, COOKIE + 1), NOTHING, NOTHING),
        );
        let expected = segment((from, to), bits, (next, then), NOTHING, NOTHING).routed(macs(0));
        assert_eq!(out.frame.0, expected.frame());
        assert_eq!(flags(&stage) & of_client, of_client);
        let out = run(
            &stage,
            &segment((to, from), bits, (then, next), NOTHING, NOTHING),
        );
        let expected = segment((vip, client), bits, (COOKIE + 1, next), NOTHING, NOTHING);
        assert_eq!(out.frame.0, expected.routed(CLIENT_MACS).frame());
        assert_eq!(flags(&stage) & of_backend, of_backend);
    }
    // What acknowledges nothing has nothing to be translated.
    let bare = |ends| segment(ends, Bits::Rst, (next, 0), NOTHING, NOTHING);
    let out = run(&established(0), &bare((client, vip)));
    assert_eq!(out.frame.0, bare((from, to)).routed(macs(0)).frame());
}

#[test]
fn what_acknowledges_no_cookie_is_dropped_or_reset_and_nothing_is_kept() {
    let [client, vip, ..] = ENDS[0];
    let next = CLIENT.wrapping_add(1);
    let forged = |bits, cookie: u32| {
        let numbers = (next, cookie.wrapping_add(1));
        segment((client, vip), bits, numbers, NOTHING, b"data")
    };
    for bits in [Bits::Ack, Bits::FinAck, Bits::SynAck] {
        let stage = stage(0);
        let cookie = if bits == Bits::SynAck {
            COOKIE
        } else {
            COOKIE + 1
        };
        let out = run(&stage, &forged(bits, cookie));
        assert_eq!(out.verdict, Verdict::Drop(DropReason::CookieInvalid));
        assert_eq!(out.counted.cookies, (0, 0, 1));
        assert!(stage.sessions().by_flow.is_empty());
    }
    let resetting = stage(0).no_backend(refusal::RESET);
    let out = run(&resetting, &forged(Bits::Ack, COOKIE + 1));
    assert_eq!(out.verdict, Verdict::Transmit);
    let reset = windowless((vip, client), Bits::Rst, (COOKIE + 2, 0), NOTHING);
    assert_eq!(out.frame.0, back(reset).frame());
    assert_eq!(out.counted.answers, [(Answer::Reset as u32, 1)].into());
    let reason = DropReason::CookieInvalid as u32;
    assert_eq!(out.counted.drops, [(reason, 1)].into());
    // A RST acknowledges nothing, whatever it says.
    let out = run(&stage(0), &forged(Bits::RstAck, COOKIE));
    assert_eq!(out.verdict, Verdict::Drop(DropReason::NoSession));
}

#[test]
fn a_backend_that_refuses_resets_the_client_at_the_number_that_it_waits_for() {
    for at in [0, 1] {
        let [client, vip, from, to] = ENDS[at];
        let stage = stage(at);
        run(&stage, &acknowledgement(at, NOTHING));
        let next = CLIENT.wrapping_add(1);
        let refusal = segment((to, from), Bits::RstAck, (0, next), NOTHING, NOTHING);
        let out = run(&stage, &refusal);
        let expected = segment(
            (vip, client),
            Bits::RstAck,
            (COOKIE + 1, next),
            NOTHING,
            NOTHING,
        );
        assert_eq!(out.frame.0, expected.routed(CLIENT_MACS).frame());
        // A client that opens it again is asked for a cookie again, and gets its port again.
        let (syn, answer) = opening(at);
        assert_eq!(run(&stage, &syn).frame.0, answer.frame());
        let out = run(&stage, &acknowledgement(at, NOTHING));
        assert_eq!(out.frame.0, syn_onward(at, MSS).frame());
        stage.assert_sound();
    }
}

#[test]
fn a_backend_that_has_another_connection_in_mind_is_reset_and_hears_the_next_syn() {
    let [_, _, from, to] = ENDS[0];
    let stage = stage(0);
    run(&stage, &acknowledgement(0, NOTHING));
    let stale = segment((to, from), Bits::Ack, (99, 0x1357_9bdf), NOTHING, NOTHING);
    let out = run(&stage, &stale);
    assert_eq!(out.verdict, Verdict::Transmit);
    let reset = windowless((from, to), Bits::Rst, (0x1357_9bdf, 0), NOTHING);
    assert_eq!(out.frame.0, back(reset).frame());
    let out = run(&stage, &acknowledgement(0, NOTHING));
    assert_eq!(out.frame.0, syn_onward(0, MSS).frame());
}

#[test]
fn a_client_that_opens_anew_after_an_end_has_what_it_acknowledges_checked() {
    let [client, vip, from, to] = ENDS[0];
    let stage = established(0);
    let then = (BACKEND.wrapping_add(1), CLIENT.wrapping_add(1));
    run(
        &stage,
        &segment((to, from), Bits::RstAck, then, NOTHING, NOTHING),
    );
    // The former connection's, which may be late.
    let late = segment((client, vip), Bits::Ack, (4, 5), NOTHING, NOTHING);
    assert_eq!(run(&stage, &late).verdict, Verdict::Redirect(EGRESS));
    run(
        &stage,
        &segment((to, from), Bits::RstAck, then, NOTHING, NOTHING),
    );
    let (syn, answer) = opening(0);
    let before = stage.sessions().by_flow.len();
    assert_eq!(run(&stage, &syn).frame.0, answer.frame());
    assert_eq!(stage.sessions().by_flow.len(), before, "no other one");
    let out = run(&stage, &late);
    assert_eq!(out.verdict, Verdict::Drop(DropReason::CookieInvalid));
    let out = run(&stage, &acknowledgement(0, NOTHING));
    assert_eq!(out.frame.0, syn_onward(0, MSS).frame());
    let expected = record_flag::OPENING | record_flag::PROXIED | record_flag::AWAITS;
    assert_eq!(flags(&stage), expected);
}

#[test]
fn a_client_that_opens_anew_before_an_end_asks_the_backend_without_its_options() {
    let [client, vip, from, to] = ENDS[0];
    let stage = established(0);
    let again = segment((client, vip), Bits::Syn, (9_000, 0), &COMMON, NOTHING);
    let expected = segment((from, to), Bits::Syn, (9_000, 0), &mss(MSS), NOTHING);
    assert_eq!(
        run(&stage, &again).frame.0,
        made(expected).routed(macs(0)).frame()
    );
    // A backend that has forgotten the former one accepts, at its word.
    let numbers = |first: u32| (first, 9_001);
    let accepts = segment((to, from), Bits::SynAck, numbers(70), &mss(1_460), NOTHING);
    let shifted = 70_u32.wrapping_add(COOKIE.wrapping_sub(BACKEND));
    let expected = segment(
        (vip, client),
        Bits::SynAck,
        numbers(shifted),
        &mss(1_460),
        NOTHING,
    );
    let out = run(&stage, &accepts);
    assert_eq!(out.frame.0, expected.routed(CLIENT_MACS).frame());
}

#[test]
fn a_half_made_session_ages_as_a_half_open_one() {
    let stage = stage(0);
    run(stage.at(1), &acknowledgement(0, NOTHING));
    let lives = stage.clone();
    let out = run(lives.at(OPENING_LIFETIME), &accepted(0));
    assert_eq!(out.verdict, Verdict::Transmit);
    let out = run(stage.at(1 + OPENING_LIFETIME), &accepted(0));
    assert_eq!(out.verdict, Verdict::Pass, "of no session");
}

#[test]
fn as_many_as_the_rate_says_begin_unproxied_and_more_are_asked_for_cookies() {
    let stage = Stage::new()
        .hashing()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], (2_000, 2_999))
        .proxying(Rate::new(3, 3));
    let open = |port: u16| {
        let client = format!("192.0.2.7:{port}");
        let syn = segment((&client, VIP4), Bits::Syn, (CLIENT, 0), &COMMON, NOTHING);
        run(&stage, &syn).counted.cookies.0
    };
    stage.at(100 * SECOND);
    let proxied: Vec<u64> = (1..=6).map(open).collect();
    assert_eq!(proxied, [0, 0, 0, 1, 1, 1]);
    assert_eq!(stage.sessions().by_flow.len(), 3);
    // Those that have one go on as they began.
    assert_eq!(open(2), 0);
    assert_eq!(open(6), 1);
    stage.at(102 * SECOND);
    let proxied: Vec<u64> = (11..=14).map(open).collect();
    assert_eq!(proxied, [0, 0, 0, 1]);
    let unproxied = segment(
        ("192.0.2.7:2", VIP4),
        Bits::Ack,
        (CLIENT.wrapping_add(1), 77),
        NOTHING,
        NOTHING,
    );
    let out = run(&stage, &unproxied).frame.0;
    assert_eq!(out[42..46], 77_u32.to_be_bytes(), "as its backend knows it");
}

#[test]
fn the_clients_address_goes_with_the_syn_and_the_packet_after_the_answer() {
    let told = [254, 8, 0x9c, 0x40, 192, 0, 2, 7];
    let ends = (FROM4, SERVER4);
    let stage = stage(0).telling();
    let out = run(&stage, &acknowledgement(0, NOTHING));
    let options = [&told[..], &mss(MSS)].concat();
    let expected = segment(ends, Bits::Syn, (CLIENT, 0), &options, NOTHING);
    assert_eq!(out.frame.0, made(expected).routed(macs(0)).frame());
    run(&stage, &accepted(0));
    let numbers = (CLIENT.wrapping_add(1), BACKEND.wrapping_add(1));
    for options in [&told[..], &[]] {
        let out = run(&stage, &acknowledgement(0, b"data"));
        let expected = segment(ends, Bits::Ack, numbers, options, b"data").routed(macs(0));
        assert_eq!(out.frame.0, expected.frame());
    }
}

#[test]
fn an_error_about_an_answer_quotes_the_number_that_the_backend_has_sent() {
    for (at, router, (kind, code)) in [
        (0, "198.51.100.9:0", (3, 4)),
        (1, "[2001:db8:9::9]:0", (2, 0)),
    ] {
        let [client, vip, from, to] = ENDS[at];
        let about = |ends, first: u32| {
            let numbers = (first.wrapping_add(1), CLIENT.wrapping_add(1));
            segment(ends, Bits::Ack, numbers, NOTHING, b"a long one")
        };
        let rest = [0, 0, 5, 0x14];
        for bytes in [None, Some(8)] {
            let error = |sender: &str, packet: &Spec| {
                let to = packet.from.to_string();
                message(sender, &to, (kind, code), rest, &quote(packet, bytes))
            };
            let given = error(router, &about((vip, client), COOKIE));
            let expected = error(router, &about((to, from), BACKEND));
            let out = run(&established(at), &given);
            assert_eq!(out.frame.0, expected.routed(macs(0)).frame(), "{bytes:?}");
        }
    }
}

#[test]
fn a_backend_that_dies_before_it_has_answered_is_replaced_by_another() {
    let servers = [server(SERVER4), server("10.1.0.3:8080")];
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, &servers)
        .translating(&[POOL4], PORTS)
        .proxying(Rate::default())
        .cookie(COOKIE, MSS);
    let taken = |stage: &Stage| {
        let out = run(stage, &acknowledgement(0, NOTHING));
        assert_eq!(out.verdict, Verdict::Redirect(EGRESS));
        assert_eq!(out.counted.cookies, (0, 1, 0));
        *out.counted.servers.keys().next().expect("a server")
    };
    let first = taken(&stage);
    let stage = stage.condition(first, Condition::Dead);
    assert_ne!(taken(&stage), first);
    assert_eq!(
        flags(&stage) & record_flag::AWAITS,
        record_flag::AWAITS,
        "of the other one"
    );
}
