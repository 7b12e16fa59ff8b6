//! ICMP errors about packets of mode `full-nat`, which each end is to take for ones about its own.

use lb_common::{
    tables::refusal,
    verdict::{DropReason, Verdict},
};

use crate::{
    frames::{Spec, datagram, syn},
    full_nat::{ENDS, goes_on, stage},
    icmp::{about, message, quote},
    support::{CLIENT_MACS, EGRESS, Outcome, Stage, macs},
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
