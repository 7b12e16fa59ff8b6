//! ICMP errors about packets of mode `full-nat`, which each end is to take for ones about its own.

use lb_common::{
    rate::Rate,
    tables::{NoRoute, refusal},
    verdict::{DropReason, Verdict},
};

use crate::{
    SERVER4, SERVER6, TCP,
    frames::{Spec, datagram, socket, syn},
    full_nat::{ENDS, POOL4, POOL6, PORTS, goes_on, stage},
    icmp::{about, message, quote},
    support::{CLIENT_MACS, EGRESS, Mode, Outcome, Stage, macs, server},
};

const ROUTERS: [&str; 2] = ["198.51.100.9:0", "[2001:db8:9::9]:0"];
/// Type and code of an error that each family has.
const UNREACHABLE: [(u8, u8); 2] = [(3, 1), (1, 3)];
const REST: [u8; 4] = [0, 0, 5, 0x14];

/// An error about a packet, in full or its beginning, from an end or a router to whoever sent it.
fn error(at: usize, sender: &str, packet: &Spec, bytes: Option<usize>) -> Spec {
    let quoted = quote(packet, bytes);
    let to = packet.from.to_string();
    message(sender, &to, UNREACHABLE[at], REST, &quoted)
}

/// Every way to say it: by UDP or not, in full or as much as must be.
fn quotations() -> impl Iterator<Item = (bool, Option<usize>)> {
    [false, true]
        .into_iter()
        .flat_map(|udp| [None, Some(8)].map(|bytes| (udp, bytes)))
}

fn begun(udp: bool, client: &str, vip: &str) -> Stage {
    let stage = stage();
    let first = if udp {
        datagram(client, vip)
    } else {
        syn(client, vip)
    };
    assert!(goes_on(&stage, &first));
    stage
}

#[test]
fn an_error_about_an_answer_goes_to_the_backend_as_if_about_its_own_packet() {
    for (at, [client, vip, from, to]) in ENDS.into_iter().enumerate() {
        for (udp, bytes) in quotations() {
            let position = 2 * at as u8 + u8::from(udp);
            for (sender, seen) in [(ROUTERS[at], ROUTERS[at]), (client, from)] {
                let stage = begun(udp, client, vip);
                let before = stage.sessions();
                let given = error(at, sender, &about(udp, vip, client), bytes);
                let expected = error(at, seen, &about(udp, to, from), bytes);
                let out = stage.at(7).run(&given.frame());
                assert_eq!(out.verdict, Verdict::Redirect(EGRESS));
                assert_eq!(out.frame.0, expected.routed(macs(position)).frame());
                assert_eq!(stage.sessions(), before, "hearsay");
            }
        }
    }
}

#[test]
fn an_error_about_a_request_goes_to_the_client_as_if_about_its_own_packet() {
    for (at, [client, vip, from, to]) in ENDS.into_iter().enumerate() {
        for (udp, bytes) in quotations() {
            for (sender, seen) in [(ROUTERS[at], ROUTERS[at]), (to, vip)] {
                let stage = begun(udp, client, vip);
                let before = stage.sessions();
                let given = error(at, sender, &about(udp, from, to), bytes);
                let expected = error(at, seen, &about(udp, client, vip), bytes);
                let out = stage.at(7).run(&given.frame());
                let verdict = [Verdict::Transmit, Verdict::Redirect(EGRESS)][at];
                assert_eq!(out.verdict, verdict);
                assert_eq!(out.frame.0, expected.routed(CLIENT_MACS).frame());
                assert_eq!(stage.sessions(), before, "hearsay");
            }
        }
    }
}

#[test]
fn an_error_about_no_session_is_the_kernels_where_packets_of_none_are() {
    let [client, vip, ..] = ENDS[1];
    // That of datagrams of the second family.
    let stage = stage().no_backend(refusal::PASS);
    let given = error(1, ROUTERS[1], &about(true, vip, client), None).frame();
    assert_eq!(stage.run(&given), Outcome::passed(given));
    assert!(goes_on(&stage, &datagram(client, vip)));
    let given = error(1, ROUTERS[1], &about(true, vip, client), None).frame();
    assert_eq!(stage.run(&given).verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn an_error_about_no_session_goes_nowhere() {
    for (at, [client, vip, from, to]) in ENDS.into_iter().enumerate() {
        let stage = stage();
        let of_answer = error(at, ROUTERS[at], &about(false, vip, client), None);
        let expected = Outcome::dropped(DropReason::NoSession);
        assert_eq!(stage.run(&of_answer.frame()), expected);
        let of_request = error(at, ROUTERS[at], &about(false, from, to), None).frame();
        assert_eq!(stage.run(&of_request), Outcome::passed(of_request));
    }
}

#[test]
fn an_error_to_who_may_not_send_and_one_without_a_way_are_dropped_as_requests_are() {
    let [client, vip, ..] = ENDS[0];
    let about_answer = |payload: usize| {
        let packet = Spec {
            payload: vec![7; payload],
            ..about(false, vip, client)
        };
        error(0, ROUTERS[0], &packet, None).frame()
    };
    let serving = |server| {
        Stage::new()
            .serve(Mode::FullNat, vip, TCP, &[server])
            .translating(&[POOL4], PORTS)
    };
    let denied = [("0.0.0.0/0", true), ("192.0.2.7/32", false)];
    let to = server(SERVER4);
    for (stage, error, reason) in [
        (
            serving(to)
                .list(1, &denied)
                .guarded(1, Rate::default(), Rate::default()),
            about_answer(8),
            DropReason::AccessDenied,
        ),
        (
            serving(to.behind(0)),
            about_answer(8),
            DropReason::NoNextHop,
        ),
        (
            serving(to.within(90)),
            about_answer(100),
            DropReason::PacketTooBig,
        ),
    ] {
        stage.run(&syn(client, vip).frame());
        let dropped = [(reason as u32, 1)].into();
        assert_eq!(stage.run(&error).counted.drops, dropped, "{reason:?}");
    }
    // Who may send is told.
    let stage =
        serving(to)
            .list(1, &[("0.0.0.0/0", true)])
            .guarded(1, Rate::default(), Rate::default());
    assert!(goes_on(&stage, &syn(client, vip)));
    assert_eq!(
        stage.run(&about_answer(8)).verdict,
        Verdict::Redirect(EGRESS)
    );
}

#[test]
fn an_error_about_a_request_is_the_kernels_where_no_way_leads_to_the_client() {
    let [client, vip, from, to] = ENDS[0];
    let stage = begun(false, client, vip).no_route(socket(client).ip(), NoRoute::Refused);
    let error = error(0, ROUTERS[0], &about(false, from, to), None).frame();
    assert_eq!(stage.run(&error), Outcome::passed(error));
}

#[test]
fn an_error_is_not_translated_to_the_other_family() {
    let [client, vip, ..] = ENDS[0];
    for (to, pool) in [(SERVER6, POOL4), (SERVER4, POOL6)] {
        let stage = Stage::new()
            .serve(Mode::FullNat, vip, TCP, &[server(to)])
            .translating(&[pool], PORTS);
        stage.run(&syn(client, vip).frame());
        assert_eq!(stage.sessions().by_flow.len(), 1);
        let error = error(0, ROUTERS[0], &about(false, vip, client), None).frame();
        let expected = Outcome::dropped(DropReason::Inconsistent);
        assert_eq!(stage.run(&error), expected, "{to} {pool}");
    }
}
