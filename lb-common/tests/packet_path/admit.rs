//! Access lists and limits of new flows: who is dropped, why, and what of it is counted and recorded.

use std::collections::BTreeMap;

use lb_common::{
    rate::Rate,
    tables::SECOND,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Spec, Transport, datagram, segment, syn},
    full_nat,
    icmp::message,
    quic::{initial, named_short},
    support::{Mode, Move, Outcome, Stage, server},
};

/// Both families behind both protocols, with one access list and these limits.
fn stage(list: &[(&str, bool)], flows: Rate, sources: Rate) -> Stage {
    let mut stage = Stage::new().list(7, list);
    for (vip, at) in [(VIP4, SERVER4), (VIP6, SERVER6)] {
        for protocol in [TCP, UDP] {
            let number = if list.is_empty() { 0 } else { 7 };
            stage = stage
                .serve(Mode::Ipip, vip, protocol, &[server(at)])
                .moving_time(1_000 * SECOND)
                .recording_all()
                .guarded(number, flows, sources);
        }
    }
    stage
}

const NONE: Rate = Rate {
    interval: 0,
    depth: 0,
};

fn listed(list: &[(&str, bool)]) -> Stage {
    stage(list, NONE, NONE)
}

/// The reason that a frame is dropped for, after which nothing else has been counted or recorded.
fn dropped(stage: &Stage, spec: &Spec) -> Option<DropReason> {
    let recorded = stage.recorded();
    let Outcome {
        verdict, counted, ..
    } = stage.run(&spec.frame());
    let Verdict::Drop(reason) = verdict else {
        assert_eq!((counted.drops, counted.refused), Default::default());
        return None;
    };
    assert_eq!(counted.drops, BTreeMap::from([(reason as u32, 1)]));
    assert_eq!((counted.services, counted.servers), Default::default());
    assert_eq!(stage.recorded(), recorded, "{reason:?}");
    let refused: Vec<_> = counted.refused.values().copied().collect();
    let expected = match reason {
        DropReason::AccessDenied => vec![(1, 0, 0)],
        DropReason::SourceLimit => vec![(0, 1, 0)],
        DropReason::ServiceLimit => vec![(0, 0, 1)],
        _ => Vec::new(),
    };
    assert_eq!(refused, expected);
    Some(reason)
}

const DENIED: Option<DropReason> = Some(DropReason::AccessDenied);
const SOURCE: Option<DropReason> = Some(DropReason::SourceLimit);
const SERVICE: Option<DropReason> = Some(DropReason::ServiceLimit);

/// Every kind of packet from a source.
fn packets(from: &str, to: &str) -> [Spec; 3] {
    [syn(from, to), segment(from, to), datagram(from, to)]
}

#[test]
fn every_packet_of_a_denied_source_is_dropped_and_counted() {
    let stage = listed(&[
        ("0.0.0.0/0", true),
        ("192.0.2.0/24", false),
        ("192.0.2.64/26", true),
        ("192.0.2.65/32", false),
        ("::/0", false),
        ("2001:db8:c::/48", true),
        ("2001:db8:c::8/128", false),
    ]);
    for (from, to, reason) in [
        ("192.0.2.7:1", VIP4, DENIED),
        ("192.0.3.7:1", VIP4, None),
        ("192.0.2.66:1", VIP4, None),
        ("192.0.2.65:1", VIP4, DENIED),
        ("[2001:db8:c::7]:1", VIP6, None),
        ("[2001:db8:c::8]:1", VIP6, DENIED),
        ("[2001:db8:d::7]:1", VIP6, DENIED),
    ] {
        for packet in packets(from, to) {
            assert_eq!(dropped(&stage, &packet), reason, "{from} {packet:?}");
        }
    }
}

#[test]
fn a_list_that_is_not_there_denies() {
    let stage = listed(&[("0.0.0.0/0", true)]).guarded(8, NONE, NONE);
    assert_eq!(dropped(&stage, &datagram(CLIENT6, VIP6)), DENIED);
}

#[test]
fn the_half_in_force_says_which_list_counts() {
    for (generation, reason) in [(4, None), (5, DENIED)] {
        let stage = listed(&[("0.0.0.0/0", true), ("::/0", true)])
            .list(8, &[("0.0.0.0/0", false), ("::/0", false)])
            .guarded_in(1, 8)
            .generation(generation);
        assert_eq!(dropped(&stage, &datagram(CLIENT6, VIP6)), reason);
    }
}

#[test]
fn a_service_without_the_flag_asks_nobody() {
    let stage = listed(&[("0.0.0.0/0", false), ("::/0", false)]).unguarded();
    assert_eq!(dropped(&stage, &datagram(CLIENT6, VIP6)), None);
    assert_eq!(dropped(&stage, &datagram(CLIENT4, VIP4)), DENIED);
}

#[test]
fn fragments_of_a_denied_source_are_dropped_with_their_first_one() {
    for (allowed, first, later) in [
        (false, DENIED, Some(DropReason::Fragment)),
        (true, None, None),
    ] {
        let stage = listed(&[("0.0.0.0/0", allowed)]);
        let whole = Spec {
            payload: vec![3; 64],
            ..datagram(CLIENT4, VIP4)
        };
        let bytes = whole.transport();
        let piece = |units: u16, bytes: &[u8]| Spec {
            transport: Transport::Other(UDP),
            payload: bytes.to_vec(),
            fragment: (false, units == 0, units),
            identification: 5,
            ..whole.clone()
        };
        assert_eq!(dropped(&stage, &piece(0, &bytes[..32])), first);
        assert_eq!(dropped(&stage, &piece(4, &bytes[32..])), later);
    }
}

#[test]
fn errors_about_what_a_denied_client_was_sent_are_dropped_whoever_sends_them() {
    let quoted = segment(VIP4, CLIENT4).ip();
    let error = message("198.51.100.9:0", VIP4, (3, 4), [0, 0, 5, 0], &quoted);
    let denying = listed(&[("0.0.0.0/0", true), ("192.0.2.7/32", false)]);
    assert_eq!(dropped(&denying, &error), DENIED);
    let router = listed(&[("0.0.0.0/0", true), ("198.51.100.0/24", false)]);
    assert_eq!(dropped(&router, &error), None);
}

#[test]
fn echo_requests_are_of_no_service() {
    let stage = listed(&[("0.0.0.0/0", false)]);
    let echo = message(CLIENT4, VIP4, (8, 0), [0, 1, 0, 1], b"ping");
    let outcome = stage.run(&echo.frame());
    assert_eq!(outcome.verdict, Verdict::Transmit);
    assert_eq!(outcome.counted.answers[&(Answer::Echo as u32)], 1);
}

/// The VIPs, with a source's address and a port to be given.
const SOURCES: [(&str, &str); 2] = [(VIP4, "192.0.2.N:"), (VIP6, "[2001:db8:c:N::1]:")];

/// A client of a number, at a port.
fn client(pattern: &str, number: u8, port: u16) -> String {
    format!("{}{port}", pattern.replace('N', &number.to_string()))
}

#[test]
fn no_more_flows_begin_than_the_service_may_have_and_others_go_on() {
    for (vip, pattern) in SOURCES {
        let stage = stage(&[], Rate::new(10, 5), NONE);
        let opening = |n: u16| syn(&client(pattern, n as u8, n), vip);
        for n in 1..=5 {
            assert_eq!(dropped(&stage, &opening(n)), None);
        }
        assert_eq!(dropped(&stage, &opening(6)), SERVICE);
        for n in 1..=5 {
            assert_eq!(
                dropped(&stage, &segment(&client(pattern, n, n.into()), vip)),
                None
            );
        }
        // Also such as it knows nothing of.
        assert_eq!(
            dropped(&stage, &segment(&client(pattern, 99, 9), vip)),
            None
        );
        stage.at(SECOND / 10 + 1);
        assert_eq!(dropped(&stage, &opening(7)), None);
        assert_eq!(dropped(&stage, &opening(8)), SERVICE);
    }
}

#[test]
fn a_source_that_begins_too_many_takes_nothing_from_the_others() {
    for (vip, pattern) in SOURCES {
        let stage = stage(&[], Rate::new(10, 6), Rate::new(10, 3));
        let opening = |number, port| syn(&client(pattern, number, port), vip);
        for port in 1..=3 {
            assert_eq!(dropped(&stage, &opening(1, port)), None);
        }
        for port in 4..50 {
            assert_eq!(dropped(&stage, &opening(1, port)), SOURCE);
        }
        for port in 1..=3 {
            assert_eq!(dropped(&stage, &opening(2, port)), None);
        }
        assert_eq!(dropped(&stage, &opening(3, 1)), SERVICE);
    }
}

#[test]
fn sources_are_told_apart_by_their_first_bits() {
    let one = Rate::new(1, 1);
    let v4 = stage(&[], NONE, one).sources_of(24, 48);
    assert_eq!(dropped(&v4, &datagram("192.0.2.1:1", VIP4)), None);
    assert_eq!(dropped(&v4, &datagram("192.0.2.2:1", VIP4)), SOURCE);
    assert_eq!(dropped(&v4, &datagram("192.0.3.1:1", VIP4)), None);
    assert_eq!(dropped(&v4, &datagram("[2001:db8:c:1::1]:1", VIP6)), None);
    assert_eq!(dropped(&v4, &datagram("[2001:db8:c:2::1]:1", VIP6)), SOURCE);
    assert_eq!(dropped(&v4, &datagram("[2001:db8:d::1]:1", VIP6)), None);
}

#[test]
fn services_have_buckets_of_their_own() {
    let stage = stage(&[], Rate::new(1, 1), Rate::new(1, 1));
    assert_eq!(dropped(&stage, &syn(CLIENT4, VIP4)), None);
    assert_eq!(dropped(&stage, &datagram(CLIENT4, VIP4)), None);
    assert_eq!(dropped(&stage, &syn(CLIENT4, VIP4)), SOURCE);
}

#[test]
fn datagrams_of_a_recorded_flow_go_on_and_others_begin_one() {
    let stage = stage(&[], Rate::new(1, 2), NONE);
    for _ in 0..5 {
        assert_eq!(dropped(&stage, &datagram("192.0.2.1:1", VIP4)), None);
        assert_eq!(dropped(&stage, &datagram("192.0.2.1:2", VIP4)), None);
        assert_eq!(dropped(&stage, &datagram("192.0.2.1:3", VIP4)), SERVICE);
    }
    // What is recorded and has expired begins anew.
    stage.at(1_001 * SECOND);
    assert_eq!(dropped(&stage, &datagram("192.0.2.1:2", VIP4)), None);
}

/// That it is not recorded does not say that it begins: it may be older than its service's recording of all.
#[test]
fn datagrams_of_unrecorded_flows_are_not_limited_while_their_service_moves_as_a_whole() {
    let servers = [server("10.1.0.1:53"), server("10.1.0.2:53")];
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, UDP, &servers)
        .moving_time(1_000 * SECOND)
        .recording_all()
        .moved(Move::Steady(1))
        .moving_from(&[0])
        .guarded(0, NONE, Rate::new(1, 1));
    for port in 1..=5 {
        let spec = datagram(&format!("192.0.2.1:{port}"), VIP4);
        assert_eq!(dropped(&stage, &spec), None, "{port}");
    }
    let stage = stage.settling(1);
    assert_eq!(dropped(&stage, &datagram("192.0.2.1:6", VIP4)), None);
    assert_eq!(dropped(&stage, &datagram("192.0.2.1:7", VIP4)), SOURCE);
}

#[test]
fn of_quic_only_initials_begin_flows() {
    let servers = [server("10.1.0.1:443"), server("10.1.0.2:443")];
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, UDP, &servers)
        .moving_time(900 * SECOND)
        .moved(Move::Steady(0))
        .quic(2, 5)
        .identified(1, 2, &[0x0a, 0x0b])
        .guarded(0, Rate::new(1, 2), NONE);
    for _ in 0..2 {
        assert_eq!(dropped(&stage, &initial(CLIENT4, VIP4)), None);
    }
    assert_eq!(dropped(&stage, &initial(CLIENT4, VIP4)), SERVICE);
    for _ in 0..5 {
        assert_eq!(dropped(&stage, &named_short(CLIENT4, VIP4)), None);
    }
}

#[test]
fn who_is_not_let_in_any_more_keeps_no_session_alive() {
    let letting_in = |allowed| {
        Stage::new()
            .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
            .translating(&[full_nat::POOL4], full_nat::PORTS)
            .list(1, &[("0.0.0.0/0", allowed)])
            .guarded(1, Rate::default(), Rate::default())
    };
    let stage = letting_in(true);
    assert!(full_nat::goes_on(&stage, &syn(CLIENT4, VIP4)));
    assert!(full_nat::goes_on(&stage, &segment(CLIENT4, VIP4)));
    let denied = stage.list(1, &[("0.0.0.0/0", false)]);
    let before = denied.sessions();
    let outcome = denied.at(SECOND).run(&segment(CLIENT4, VIP4).frame());
    let expected = Verdict::Drop(DropReason::AccessDenied);
    assert_eq!(outcome.verdict, expected);
    assert_eq!(denied.sessions(), before);
}
