//! Handshakes that are answered here beside those that are not, and what is no part of either; bytes of both are
//! [`crate::syn_proxy`]'s.

use etherparse::TcpHeader;
use lb_common::{
    pipeline,
    rate::Rate,
    tables::{record_flag, refusal},
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, SERVER4, TCP, UDP, VIP4,
    frames::{Spec, datagram, segment, socket, syn},
    full_nat::{FROM4, POOL4, PORTS, goes_on},
    icmp::{about, message, quote},
    refuse::tcp,
    support::{CLIENT_MACS, Condition, EGRESS, INGRESS, Mode, Move, Outcome, Stage, macs, server},
};

/// What answers every SYN here.
const COOKIE: u32 = 0x0bad_cafe;
const BEGINS: u32 = 0x1234_5678;
const NO_OPTIONS: &[u8] = &[];
const UNPROXIED: &str = "10.0.0.2:80";

fn proxied() -> Stage {
    Stage::new()
        .serve(
            Mode::FullNat,
            VIP4,
            TCP,
            &[server(SERVER4), server("10.1.0.3:8080")],
        )
        .ring(&[0; 8])
        .translating(&[POOL4], PORTS)
        .proxying(Rate::default())
        .cookie(COOKIE, 1_440)
        .route(socket(CLIENT4).ip(), INGRESS)
}

/// A segment of the client's or the backend's: control bits, and the two numbers.
fn numbered(
    (from, to): (&str, &str),
    set: impl Fn(&mut TcpHeader),
    (sequence, acknowledged): (u32, u32),
) -> Vec<u8> {
    let set = |header: &mut TcpHeader| {
        set(header);
        (header.sequence_number, header.acknowledgment_number) = (sequence, acknowledged);
    };
    tcp(from, to, set, NO_OPTIONS).frame()
}

/// What acknowledges the cookie.
fn acknowledgement() -> Vec<u8> {
    let numbers = (BEGINS + 1, COOKIE + 1);
    numbered((CLIENT4, VIP4), |header| header.ack = true, numbers)
}

/// The backend's answer to the SYN that comes of that.
fn accepted() -> Vec<u8> {
    let set = |header: &mut TcpHeader| (header.syn, header.ack) = (true, true);
    numbered((SERVER4, FROM4), set, (7, BEGINS + 1))
}

/// A session whose handshake is over at both ends.
fn established() -> Stage {
    let stage = proxied();
    for frame in [acknowledgement(), accepted(), acknowledgement()] {
        let outcome = stage.run(&frame);
        let went = matches!(outcome.verdict, Verdict::Redirect(_) | Verdict::Transmit);
        assert!(went, "{frame:x?}: {outcome:?}");
    }
    stage
}

fn flags(stage: &Stage) -> u16 {
    let sessions = stage.sessions();
    assert_eq!(sessions.by_flow.len(), 1);
    let session = sessions.by_flow.values().next();
    session.expect("the one").record.flags
}

#[test]
fn datagrams_and_services_that_are_not_proxied_begin_at_once_and_keep_their_numbers() {
    let stage = proxied()
        .serve(Mode::FullNat, VIP4, UDP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    assert!(goes_on(&stage, &datagram(CLIENT4, VIP4)));
    let stage = proxied()
        .serve(Mode::FullNat, UNPROXIED, TCP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    assert!(goes_on(&stage, &syn(CLIENT4, UNPROXIED)));
    assert_eq!(flags(&stage), record_flag::OPENING);
    let answer = segment(SERVER4, FROM4);
    let expected = Spec {
        from: socket(UNPROXIED),
        to: socket(CLIENT4),
        ..answer.clone()
    };
    let expected = expected.routed(CLIENT_MACS).frame();
    let expected = Outcome::uncounted(Verdict::Transmit, expected);
    assert_eq!(stage.run(&answer.frame()), expected);
    // An error about that quotes the number that was sent.
    let quoting = |packet: &Spec| {
        let to = packet.from.to_string();
        message("198.51.100.9:0", &to, (3, 1), [0; 4], &quote(packet, None))
    };
    let outcome = stage.run(&quoting(&about(false, UNPROXIED, CLIENT4)).frame());
    let expected = quoting(&about(false, SERVER4, FROM4)).routed(macs(2));
    assert_eq!(outcome.frame.0, expected.frame());
}

#[test]
fn who_is_not_let_in_gets_no_cookie_and_has_none_accepted() {
    let all = ("0.0.0.0/0", true);
    for (lists, lets_in) in [(&[all][..], true), (&[all, ("192.0.2.7/32", false)], false)] {
        let stage = || {
            let none = Rate::default();
            proxied().list(1, lists).guarded(1, none, none)
        };
        for frame in [syn(CLIENT4, VIP4).frame(), acknowledgement()] {
            let denied = Verdict::Drop(DropReason::AccessDenied);
            let outcome = stage().run(&frame);
            assert_eq!(outcome.verdict == denied, !lets_in);
            // The list may have been changed since the program before has asked it.
            let (done, _) = stage().run_alone(&frame, |packet, tables| {
                pipeline::syn_cookie(packet, tables)
            });
            assert_eq!(done == Ok(denied), !lets_in);
        }
    }
}

#[test]
fn what_acknowledges_nothing_acknowledges_no_cookie() {
    let finished = |ack| {
        let set = move |header: &mut TcpHeader| (header.fin, header.ack) = (true, ack);
        numbered((CLIENT4, VIP4), set, (BEGINS + 1, COOKIE + 1))
    };
    assert_eq!(proxied().run(&finished(true)).counted.cookies, (0, 1, 0));
    let stage = proxied();
    let outcome = stage.run(&finished(false));
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::CookieInvalid));
    assert!(stage.sessions().by_flow.is_empty());
}

#[test]
fn a_syn_from_no_single_host_gets_no_cookie() {
    let broadcast = Spec {
        macs: ([2, 0, 0, 0, 0, 9], [0xff; 6]),
        ..syn(CLIENT4, VIP4)
    };
    for syn in [broadcast, syn("240.0.0.1:1", VIP4)] {
        let outcome = proxied().run(&syn.frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::NoSession));
    }
}

#[test]
fn a_syn_gets_no_cookie_where_nothing_can_be_put_in_front() {
    let bare = numbered((CLIENT4, VIP4), |header| header.syn = true, (BEGINS, 0));
    let outcome = proxied().run_with(&bare, 0);
    assert_eq!(outcome, Outcome::dropped(DropReason::NoHeadroom));
    assert_eq!(proxied().run_with(&bare, 4).counted.cookies, (1, 0, 0));
}

#[test]
fn a_backends_answer_without_any_option_opens_the_clients_window_too() {
    let stage = proxied();
    stage.run(&acknowledgement());
    let opened = stage.run(&accepted());
    assert_eq!(opened.verdict, Verdict::Transmit);
    let set = |header: &mut TcpHeader| {
        (header.ack, header.window_size) = (true, 0);
        (header.sequence_number, header.acknowledgment_number) = (COOKIE, BEGINS + 1);
    };
    let expected = Spec {
        ttl: 64,
        identification: 0,
        ..tcp(VIP4, CLIENT4, set, &[0])
    };
    let expected = expected.routed(CLIENT_MACS);
    assert_eq!(opened.frame.0, expected.frame());
}

#[test]
fn a_backend_that_answers_the_syn_by_what_acknowledges_nothing_is_not_heard() {
    let stage = proxied();
    stage.run(&acknowledgement());
    let stray = numbered((SERVER4, FROM4), |header| header.psh = true, (7, 0));
    assert_eq!(stage.run(&stray), Outcome::dropped(DropReason::NoSession));
    assert_eq!(flags(&stage) & record_flag::AWAITS, record_flag::AWAITS);
}

#[test]
fn an_established_session_that_loses_its_backend_gets_another_to_be_reset_by() {
    let stage = established()
        .condition(0, Condition::Dead)
        .moved(Move::Steady(1));
    let outcome = stage.run(&acknowledgement());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
    assert_eq!(outcome.counted.cookies, (0, 0, 0));
    assert_eq!(outcome.counted.servers.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(flags(&stage), 0);
}

#[test]
fn a_client_that_opens_anew_after_an_end_may_ask_more_than_once() {
    let stage = established();
    let set = |header: &mut TcpHeader| (header.rst, header.ack) = (true, true);
    stage.run(&numbered((SERVER4, FROM4), set, (8, BEGINS + 1)));
    for _ in 0..2 {
        let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
        assert_eq!(outcome.counted.cookies, (1, 0, 0));
        assert_eq!(flags(&stage) & record_flag::REOPENS, record_flag::REOPENS);
    }
    let refusing = stage.no_backend(refusal::RESET);
    assert_eq!(refusing.run(&acknowledgement()).counted.cookies, (0, 1, 0));
}
