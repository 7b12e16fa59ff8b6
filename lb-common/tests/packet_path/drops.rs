//! Every reason to drop, each produced at least once, and what a drop leaves behind.

use lb_common::verdict::{Answer, DropReason};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Spec, datagram, socket, syn},
    support::{EGRESS, Mode, Outcome, Server, Stage, server},
};

fn stage(mode: Mode, server: Server) -> Stage {
    Stage::new()
        .serve(mode, VIP4, TCP, &[server])
        .serve(mode, VIP6, TCP, &[server])
}

/// A SYN whose IPv4 header has another first byte and another length.
fn lying(first: u8, length: u16) -> Vec<u8> {
    let mut frame = syn(CLIENT4, VIP4).frame();
    frame[14] = first;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame
}

/// One stage and frame for each reason.
fn produced() -> Vec<(DropReason, Stage, Vec<u8>)> {
    use DropReason as Reason;
    let (v4, v6) = (syn(CLIENT4, VIP4), syn(CLIENT6, VIP6));
    let ipip = || stage(Mode::Ipip, server(SERVER4));
    let unreachable = stage(Mode::Ipip, server(SERVER4).behind(0));
    let chain = Spec {
        extensions: vec![Extension::Destination(6); 7],
        ..v6.clone()
    };
    let long = Spec {
        payload: vec![0; 65_516 - 40],
        ..v4.clone()
    };
    vec![
        (Reason::NoBackend, ipip().ring(&[]), v6.frame()),
        (Reason::NoNextHop, unreachable, v4.frame()),
        (Reason::Truncated, ipip(), lying(0x45, 39)),
        (Reason::BadHeader, ipip(), lying(0x4f, 59)),
        (Reason::ExtensionHeaders, ipip(), chain.frame()),
        (Reason::TooLong, ipip(), long.frame()),
        (Reason::NoHeadroom, ipip(), v4.frame()),
        (Reason::Inconsistent, ipip().ring(&[1]), v6.frame()),
    ]
}

#[test]
fn every_reason_is_given_and_counted_once() {
    let produced = produced();
    let given: Vec<DropReason> = produced.iter().map(|(reason, ..)| *reason).collect();
    // How echo requests are limited is `icmp`'s to show, what becomes of unknown ports `refuse`'s, of
    // what is too long `too_big`'s, of fragments `fragments`', who is not let in `admit`'s, who finds no port or whose
    // answer no route `full_nat`'s, who cannot have sent it `martian`'s, how the link asks for VIPs `neighbour`'s, what a source
    // route leads `headers`', whose hops are over `hops`', whose service has changed `second_hop`'s, and
    // what acknowledges no cookie `syn_proxy`'s.
    let elsewhere = |reason: &DropReason| {
        let name = reason.name();
        name.starts_with("fragment")
            || ["echo_limit", "unknown_port", "packet_too_big"].contains(&name)
            || ["access_denied", "source_limit", "service_limit"].contains(&name)
            || ["ttl_expired", "ports_exhausted", "no_session", "no_route"].contains(&name)
            || [
                "martian_source",
                "land",
                "source_route",
                "switched",
                "cookie_invalid",
            ]
            .contains(&name)
            || [
                "arp_malformed",
                "nd_hop_limit",
                "nd_checksum",
                "nd_malformed",
            ]
            .contains(&name)
    };
    let mut expected = DropReason::ALL.to_vec();
    expected.retain(|reason| !elsewhere(reason));
    assert_eq!(given, expected);
    for (reason, stage, frame) in produced {
        let headroom = if reason == DropReason::NoHeadroom {
            18
        } else {
            20
        };
        let outcome = stage.run_with(&frame, headroom);
        assert_eq!(outcome, Outcome::dropped(reason));
    }
}

#[test]
fn a_server_without_a_next_hop_drops_in_every_mode() {
    for mode in [Mode::Nat, Mode::Ipip] {
        for (request, at) in [(syn(CLIENT4, VIP4), SERVER4), (syn(CLIENT6, VIP6), SERVER6)] {
            let outcome = stage(mode, server(at).behind(0)).run(&request.frame());
            assert_eq!(outcome, Outcome::dropped(DropReason::NoNextHop));
        }
    }
}

#[test]
fn tables_that_contradict_each_other_drop_as_inconsistent() {
    let ipip = || Stage::new().serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)]);
    let stages = [
        ("an unknown mode", stage(Mode::Unknown, server(SERVER4))),
        ("slots out of bounds", ipip().ring_out_of_bounds()),
        ("a pool out of bounds", ipip().pool_out_of_bounds()),
        ("nobody in the pool", ipip().empty_pool()),
        ("an id beyond the pool", ipip().ring(&[1])),
        (
            "a neighbour's member",
            ipip()
                .ring(&[1])
                .serve(Mode::Ipip, VIP6, TCP, &[server(SERVER4)]),
        ),
        ("nat to another family", stage(Mode::Nat, server(SERVER6))),
    ];
    for (what, stage) in stages {
        let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
        assert_eq!(
            outcome,
            Outcome::dropped(DropReason::Inconsistent),
            "{what}"
        );
    }
    let other = stage(Mode::Nat, server(SERVER4)).run(&syn(CLIENT6, VIP6).frame());
    assert_eq!(other, Outcome::dropped(DropReason::Inconsistent));
}

#[test]
fn an_answer_of_another_family_than_its_vip_drops_as_inconsistent() {
    for (vip, at, client) in [(VIP6, SERVER4, CLIENT4), (VIP4, SERVER6, CLIENT6)] {
        let stage = Stage::new()
            .serve(Mode::Nat, vip, UDP, &[server(at)])
            .route(socket(client).ip(), EGRESS);
        let outcome = stage.run(&datagram(at, client).frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::Inconsistent));
    }
}

#[test]
fn drops_of_a_kind_add_up() {
    let stage = stage(Mode::Ipip, server(SERVER4).dead());
    for _ in 0..2 {
        let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::NoBackend));
    }
}

#[test]
fn names_and_numbers_of_answers_stay() {
    let names: Vec<_> = Answer::ALL
        .iter()
        .map(|&kind| (kind as u32, kind.name()))
        .collect();
    let expected = [
        (0, "echo"),
        (1, "reset"),
        (2, "unreachable"),
        (3, "withheld"),
        (4, "limited"),
        (5, "too_big"),
        (6, "arp"),
        (7, "neighbour"),
        (8, "expired"),
    ];
    assert_eq!(names, expected);
}

#[test]
fn names_and_numbers_of_reasons_stay() {
    let names: Vec<_> = DropReason::ALL
        .iter()
        .map(|&reason| (reason as u32, reason.name()))
        .collect();
    let expected = [
        (0, "no_backend"),
        (1, "no_next_hop"),
        (2, "truncated"),
        (3, "bad_header"),
        (4, "fragment"),
        (5, "extension_headers"),
        (6, "too_long"),
        (7, "ttl_expired"),
        (8, "no_headroom"),
        (9, "inconsistent"),
        (10, "echo_limit"),
        (11, "unknown_port"),
        (12, "packet_too_big"),
        (13, "fragment_tiny"),
        (14, "fragment_overlap"),
        (15, "fragment_malformed"),
        (16, "fragment_before_first"),
        (17, "access_denied"),
        (18, "source_limit"),
        (19, "service_limit"),
        (20, "ports_exhausted"),
        (21, "no_session"),
        (22, "martian_source"),
        (23, "land"),
        (24, "no_route"),
        (25, "arp_malformed"),
        (26, "nd_hop_limit"),
        (27, "nd_checksum"),
        (28, "nd_malformed"),
        (29, "source_route"),
        (30, "switched"),
        (31, "cookie_invalid"),
    ];
    assert_eq!(names, expected);
}
