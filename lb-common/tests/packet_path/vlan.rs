//! VLAN tags: kept where a packet leaves by where it came in, those of the device that its route names elsewhere, and as they were
//! where the kernel gets it. Tags are etherparse's.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, SingleVlanHeader, VlanId,
    VlanPcp,
};
use lb_common::{
    tables::{NoRoute, Tag, UPPER, refusal},
    verdict::{Answer, DropReason, Piece, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    fragments::{CUTS, cut, large},
    frames::{Spec, datagram, segment, socket, syn},
    support::{CLIENT_MACS, EGRESS, INGRESS, Mac, Mode, Outcome, Server, Stage, macs, server},
    tunnels::outer,
};

/// A VLAN device over [`INGRESS`], and another.
const DEVICE: u32 = 20;
const OTHER: u32 = 21;
/// Its hardware address.
const DEVICE_MAC: Mac = [2, 0, 0, 0, 0, 0x88];

/// A tag: protocol, priority, whether it may be dropped first, VLAN.
pub type Written = (u16, u8, bool, u16);

pub const C100: Written = (0x8100, 0, false, 100);
const C200: Written = (0x8100, 0, false, 200);
const S7: Written = (0x88a8, 0, false, 7);
const URGENT_100: Written = (0x8100, 5, true, 100);
const PRIORITY: Written = (0x8100, 6, false, 0);

/// What a frame may have: the highest and lowest VLANs, priorities, two of either protocol.
const KEPT: [&[Written]; 8] = [
    &[C100],
    &[URGENT_100],
    &[(0x8100, 0, false, 4_094)],
    &[S7],
    &[PRIORITY],
    &[S7, C100],
    &[C200, URGENT_100],
    &[S7, PRIORITY],
];

fn of((protocol, _, _, id): Written) -> Tag {
    let ([a, b], [c, d]) = (protocol.to_be_bytes(), id.to_be_bytes());
    [a, b, c, d]
}

/// The frame with tags, the outermost first.
pub fn tagged(frame: &[u8], tags: &[Written]) -> Vec<u8> {
    let (header, rest) = frame.split_at(14);
    let (ethernet, _) = Ethernet2Header::from_slice(header).expect("an Ethernet header");
    let mut next = ethernet.ether_type;
    let mut inner = rest.to_vec();
    for &(protocol, pcp, drop_eligible_indicator, id) in tags.iter().rev() {
        let header = SingleVlanHeader {
            pcp: VlanPcp::try_new(pcp).expect("3 bits"),
            drop_eligible_indicator,
            vlan_id: VlanId::try_new(id).expect("12 bits"),
            ether_type: next,
        };
        inner.splice(0..0, header.to_bytes());
        next = EtherType(protocol);
    }
    let header = Ethernet2Header {
        ether_type: next,
        ..ethernet
    };
    [&header.to_bytes()[..], &inner].concat()
}

/// Client, VIP and server.
const ENDS: [(&str, &str, &str); 2] = [(CLIENT4, VIP4, SERVER4), (CLIENT6, VIP6, SERVER6)];

fn stage(mode: Mode, vip: &str, server: Server) -> Stage {
    Stage::new()
        .serve(mode, vip, TCP, &[server])
        .serve(mode, vip, UDP, &[server])
        .vlans()
}

/// What the first server gets of a request.
fn delivered(mode: Mode, request: &Spec, to: &str) -> Vec<u8> {
    let at = macs(0);
    match mode {
        Mode::Nat => {
            let to = socket(to);
            let request = request.clone();
            Spec { to, ..request }.routed(at).frame()
        }
        Mode::L2 => Spec {
            macs: at,
            ..request.clone()
        }
        .frame(),
        mode => outer(mode, request, to, 0).around(&request.ip(), &[]),
    }
}

const MODES: [Mode; 4] = [Mode::Nat, Mode::Ipip, Mode::Gue, Mode::L2];

/// A request that comes with tags leaves with others, for every mode and family.
fn assert_leaves(
    stage: impl Fn(Stage) -> Stage,
    by: u32,
    before: &[Written],
    verdict: Verdict,
    after: &[Written],
) {
    for mode in MODES {
        for (client, vip, at) in ENDS {
            let request = segment(client, vip);
            let bare = request.frame();
            let count = (1, bare.len() as u64, 0);
            let frame = tagged(&delivered(mode, &request, at), after);
            let expected = Outcome::forwarded(verdict, frame, 0, count);
            let stage = stage(self::stage(mode, vip, server(at).behind(by)));
            let run = stage.run(&tagged(&bare, before));
            assert_eq!(run, expected, "{mode:?} {vip} {before:?} to {after:?}");
        }
    }
}

#[test]
fn tags_are_kept_where_a_packet_leaves_by_where_it_came_in() {
    for tags in KEPT {
        assert_leaves(|stage| stage, INGRESS, tags, Verdict::Transmit, tags);
    }
}

#[test]
fn what_a_route_sends_by_another_interface_leaves_without_tags() {
    for tags in KEPT {
        assert_leaves(|stage| stage, EGRESS, tags, Verdict::Redirect(EGRESS), &[]);
    }
    // As it would of a host that has the VLAN: its route would name the device.
    let device = |stage: Stage| stage.device(DEVICE, &[INGRESS], &[of(C100)], 1_500);
    assert_leaves(device, INGRESS, &[URGENT_100], Verdict::Transmit, &[]);
}

#[test]
fn what_a_route_sends_by_a_vlan_device_gets_its_tags() {
    for (lower, verdict) in [
        (EGRESS, Verdict::Redirect(EGRESS)),
        (INGRESS, Verdict::Transmit),
    ] {
        for own in [&[C100][..], &[S7], &[S7, C100]] {
            let written: Vec<Tag> = own.iter().copied().map(of).collect();
            let device = |stage: Stage| stage.device(DEVICE, &[lower], &written, 1_500);
            for before in [&[][..], &[C200], &[PRIORITY], &[S7, C200]] {
                assert_leaves(device, DEVICE | UPPER, before, verdict, own);
            }
        }
    }
}

#[test]
fn what_comes_in_by_the_vlan_device_of_its_route_keeps_its_priority() {
    let device = |stage: Stage| stage.device(DEVICE, &[INGRESS], &[of(C100)], 1_500);
    for before in [&[C100][..], &[URGENT_100], &[PRIORITY, URGENT_100]] {
        assert_leaves(device, DEVICE | UPPER, before, Verdict::Transmit, before);
    }
    let both = |stage: Stage| stage.device(DEVICE, &[INGRESS], &[of(S7), of(C100)], 1_496);
    let before = &[(0x88a8, 3, false, 7), URGENT_100];
    assert_leaves(both, DEVICE | UPPER, before, Verdict::Transmit, before);
    // Another protocol is another VLAN, and so is another order.
    let other = &[(0x88a8, 0, false, 100)];
    assert_leaves(device, DEVICE | UPPER, other, Verdict::Transmit, &[C100]);
    let turned = &[C100, S7];
    assert_leaves(both, DEVICE | UPPER, turned, Verdict::Transmit, &[S7, C100]);
}

#[test]
fn an_answer_goes_to_the_vlan_of_its_client_or_stays_in_its_own() {
    for (client, vip, at) in ENDS {
        let answer = segment(at, client);
        let sent = Spec {
            from: socket(vip),
            ..answer.clone()
        }
        .routed(CLIENT_MACS)
        .frame();
        let bare = answer.frame();
        let by = |interface| {
            stage(Mode::Nat, vip, server(at))
                .device(DEVICE, &[EGRESS], &[of(C100)], 1_500)
                .route(socket(client).ip(), interface)
        };
        let outcome = |verdict, tags: &[Written]| Outcome::uncounted(verdict, tagged(&sent, tags));
        let run = by(DEVICE).run(&tagged(&bare, &[C200]));
        assert_eq!(run, outcome(Verdict::Redirect(EGRESS), &[C100]));
        assert_eq!(
            by(DEVICE).run(&bare),
            outcome(Verdict::Redirect(EGRESS), &[C100])
        );
        let run = by(INGRESS).run(&tagged(&bare, &[S7, URGENT_100]));
        assert_eq!(run, outcome(Verdict::Transmit, &[S7, URGENT_100]));
        assert_eq!(
            by(EGRESS).run(&tagged(&bare, &[C200])),
            outcome(Verdict::Redirect(EGRESS), &[])
        );
    }
}

#[test]
fn an_answer_too_long_for_what_a_vlan_device_stands_over_is_the_kernels_as_it_came() {
    let answer = Spec {
        payload: vec![7; 1_300],
        ..segment(SERVER4, CLIENT4)
    };
    let bare = answer.frame();
    let length = bare.len() as u16 - 14;
    for (mtu, passes) in [(length - 1, true), (length, false)] {
        let stage = stage(Mode::Nat, VIP4, server(SERVER4))
            .device(DEVICE, &[EGRESS], &[of(S7), of(C100)], mtu)
            .route(socket(CLIENT4).ip(), DEVICE);
        let frame = tagged(&bare, &[C200]);
        let run = stage.run(&frame);
        assert_eq!(run == Outcome::passed(frame), passes, "{mtu}: {run:?}");
    }
}

#[test]
fn an_answer_whose_route_is_by_a_device_that_nothing_can_be_sent_by_is_sent_by_the_kernel() {
    for (client, vip, at) in ENDS {
        let answer = segment(at, client).frame();
        let by_hand = stage(Mode::Nat, vip, server(at))
            .no_route(socket(client).ip(), NoRoute::Kernels)
            .run(&answer);
        let deaf = stage(Mode::Nat, vip, server(at))
            .device(DEVICE, &[], &[], u16::MAX)
            .route(socket(client).ip(), DEVICE)
            .run(&answer);
        assert_eq!(deaf, by_hand);
        assert_eq!(deaf.verdict, Verdict::Pass);
        assert_ne!(deaf, Outcome::passed(answer), "it is in the VIP's name");
    }
}

fn assert_passes(stage: &Stage, frame: &[u8], what: &str) {
    assert_eq!(stage.run(frame), Outcome::passed(frame.to_vec()), "{what}");
}

#[test]
fn what_is_the_kernels_passes_with_the_tags_that_it_came_with() {
    for (client, vip, at) in ENDS {
        let stage =
            stage(Mode::Nat, vip, server(at)).device(DEVICE, &[INGRESS], &[of(C100)], 1_500);
        let other = Spec {
            to: socket(&vip.replace(":80", ":81")),
            ..syn(client, vip)
        };
        for tags in KEPT {
            for packet in [&other, &segment(client, at)] {
                assert_passes(&stage, &tagged(&packet.frame(), tags), "to nobody");
            }
        }
        let request = syn(client, vip).frame();
        assert_passes(&stage, &tagged(&request, &[S7, C100, C200]), "three tags");
        assert_passes(
            &stage,
            &tagged(&request, &[S7, (0x9100, 0, false, 5)]),
            "another protocol",
        );
        let one = tagged(&request, &[C100]);
        for length in [14, 15, 17, 18, 19] {
            assert_passes(&stage, &one[..length], "too short for a tag and a packet");
        }
        let two = tagged(&request, &[S7, C100]);
        for length in [20, 21, 22] {
            assert_passes(&stage, &two[..length], "nothing behind the tags");
        }
    }
}

#[test]
fn frames_with_tags_pass_where_nothing_is_made_of_them() {
    let stage = Stage::new().serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)]);
    assert_passes(&stage, &tagged(&syn(CLIENT4, VIP4).frame(), &[C100]), "off");
}

#[test]
fn frames_of_a_vlan_without_a_device_pass_where_only_those_of_devices_are_taken() {
    let stage = stage(Mode::Ipip, VIP4, server(SERVER4).behind(DEVICE | UPPER))
        .device(DEVICE, &[INGRESS], &[of(C100)], 1_500)
        .known_vlans();
    let bare = syn(CLIENT4, VIP4).frame();
    for tags in [&[C200][..], &[S7, C100], &[C100, C200]] {
        assert_passes(&stage, &tagged(&bare, tags), "no device of the host's");
    }
    for tags in [&[C100][..], &[URGENT_100], &[PRIORITY], &[PRIORITY, C100]] {
        let verdict = stage.run(&tagged(&bare, tags)).verdict;
        assert_eq!(verdict, Verdict::Transmit, "{tags:?}");
    }
}

#[test]
fn what_is_dropped_is_counted_and_its_tags_stay_with_it() {
    let stage = stage(Mode::Ipip, VIP4, server(SERVER4).behind(0));
    let dropped = stage.run(&tagged(&syn(CLIENT4, VIP4).frame(), &[S7, C100]));
    assert_eq!(dropped, Outcome::dropped(DropReason::NoNextHop));
    assert_passes(
        &stage,
        &syn(CLIENT4, "10.0.0.1:81").frame(),
        "the next frame",
    );
}

#[test]
fn answers_in_a_vips_name_keep_the_tags_of_what_they_answer() {
    for (client, vip, at) in ENDS {
        let stage = stage(Mode::Nat, vip, server(at).within(1_280))
            .unknown_port(refusal::RESET)
            .device(DEVICE, &[INGRESS], &[of(C100)], 1_500);
        let unknown = Spec {
            to: socket(&vip.replace(":80", ":81")),
            ..syn(client, vip)
        };
        let long = Spec {
            payload: vec![7; 1_300],
            ..segment(client, vip)
        };
        for packet in [unknown, long] {
            let bare = stage.run(&packet.frame());
            assert_eq!(bare.verdict, Verdict::Transmit, "{packet:?}");
            for tags in KEPT {
                let mut expected = bare.clone();
                expected.frame.0 = tagged(&bare.frame.0, tags);
                let run = stage.run(&tagged(&packet.frame(), tags));
                assert_eq!(run, expected, "{tags:?} {packet:?}");
            }
        }
    }
}

/// A request of so many bytes.
fn of_length(client: &str, vip: &str, length: usize) -> Spec {
    let bare = Spec {
        payload: Vec::new(),
        ..datagram(client, vip)
    };
    let payload = vec![7; length - bare.ip().len()];
    Spec { payload, ..bare }
}

/// The MTU that a sender is told by an ICMP or ICMPv6 error, its frame's tags being of so many bytes.
fn told(frame: &[u8], tags: usize) -> u16 {
    let at = tags
        + if frame[tags + 14] >> 4 == 4 {
            14 + 20 + 6
        } else {
            14 + 40 + 6
        };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn a_second_tag_that_is_kept_leaves_less_room_and_senders_are_told_so() {
    for (client, vip, at) in ENDS {
        for (by, tags, room) in [
            (INGRESS, &[C100][..], 1_400),
            (INGRESS, &[S7, C100], 1_396),
            // It leaves without them.
            (EGRESS, &[S7, C100], 1_400),
        ] {
            let stage = stage(Mode::Ipip, vip, server(at).behind(by).within(1_400));
            let fits = of_length(client, vip, room.into()).frame();
            let run = stage.run(&tagged(&fits, tags));
            assert!(run.counted.drops.is_empty(), "{tags:?} {room}: {run:?}");
            let long = of_length(client, vip, usize::from(room) + 1).frame();
            let run = stage.run(&tagged(&long, tags));
            assert_eq!(run.verdict, Verdict::Transmit);
            assert_eq!(run.counted.answers, [(Answer::TooBig as u32, 1)].into());
            assert_eq!(told(&run.frame.0, tags.len() * 4), room, "{tags:?}");
        }
        // What is known of a device says already what its tags take.
        let stage = stage(
            Mode::Ipip,
            vip,
            server(at).behind(DEVICE | UPPER).within(1_400),
        )
        .device(DEVICE, &[INGRESS], &[of(S7), of(C100)], 1_420);
        let fits = of_length(client, vip, 1_400).frame();
        let run = stage.run(&tagged(&fits, &[S7, C100]));
        assert_eq!(run.verdict, Verdict::Transmit);
        assert!(run.counted.answers.is_empty());
    }
}

#[test]
fn fragments_that_are_held_come_back_with_their_tags() {
    for (client, vip, at) in ENDS {
        for tags in [&[C100][..], &[S7, URGENT_100]] {
            let stage = stage(Mode::Ipip, vip, server(at).behind(INGRESS));
            let pieces = cut(&large(datagram(client, vip)), &CUTS);
            let frames: Vec<_> = pieces
                .iter()
                .map(|piece| tagged(&piece.frame(), tags))
                .collect();
            assert_eq!(stage.run(&frames[1]).verdict, Verdict::Held);
            // Nothing of it is left for the next frame.
            let bare = stage.run(&pieces[0].frame());
            assert_eq!(bare.verdict, Verdict::Transmit);
            assert_eq!(
                &bare.frame.0[12..14],
                if at == SERVER4 {
                    &[8, 0]
                } else {
                    &[0x86, 0xdd]
                }
            );
            let back = stage.give_back();
            let [back] = &back[..] else {
                panic!("{back:?}")
            };
            assert_eq!(back.verdict, Verdict::Transmit);
            assert_eq!(back.counted.pieces, [(Piece::Released as u32, 1)].into());
            let bare = self::stage(Mode::Ipip, vip, server(at).behind(INGRESS));
            bare.run(&pieces[0].frame());
            let expected = tagged(&bare.run(&pieces[1].frame()).frame.0, tags);
            assert_eq!(back.frame.0, expected);
        }
    }
}

#[test]
fn who_asks_in_a_vlan_is_told_the_address_of_its_device_there() {
    let asker: Mac = [2, 0, 0, 0, 0, 9];
    let arp = |ends: (Mac, Mac), operation, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])| {
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &sender.0,
            &sender.1,
            &target.0,
            &target.1,
        );
        let header = Ethernet2Header {
            source: ends.0,
            destination: ends.1,
            ether_type: EtherType::ARP,
        };
        let packet = packet.expect("lengths that fit");
        [&header.to_bytes()[..], &packet.to_bytes()].concat()
    };
    let (client, vip) = ([192, 0, 2, 7], [10, 0, 0, 1]);
    let request = arp(
        (asker, [0xff; 6]),
        ArpOperation::REQUEST,
        (asker, client),
        ([0; 6], vip),
    );
    let reply = arp(
        (DEVICE_MAC, asker),
        ArpOperation::REPLY,
        (DEVICE_MAC, vip),
        (asker, client),
    );
    let stage = stage(Mode::Ipip, VIP4, server(SERVER4))
        .device(DEVICE, &[INGRESS], &[of(C100)], 1_500)
        .announcing_by(DEVICE, DEVICE_MAC);
    let expected = Outcome::answered(Answer::Arp, tagged(&reply, &[URGENT_100]));
    assert_eq!(stage.run(&tagged(&request, &[URGENT_100])), expected);
}

#[test]
fn a_bond_spreads_flows_over_its_members_and_keeps_each_on_one() {
    for (client, vip, at) in ENDS {
        let stage = stage(Mode::Nat, vip, server(at).behind(DEVICE | UPPER)).device(
            DEVICE,
            &[EGRESS, INGRESS],
            &[],
            1_500,
        );
        let mut taken = [0; 2];
        for port in 40_000..40_064 {
            let mut from = socket(client);
            from.set_port(port);
            let of_flow = |request: Spec| stage.run(&Spec { from, ..request }.frame()).verdict;
            let verdict = of_flow(syn(client, vip));
            assert_eq!(of_flow(segment(client, vip)), verdict);
            match verdict {
                Verdict::Redirect(EGRESS) => taken[0] += 1,
                Verdict::Transmit => taken[1] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(taken.iter().all(|&n| n > 16), "{taken:?}");
        let none = self::stage(Mode::Nat, vip, server(at).behind(DEVICE | UPPER)).device(
            DEVICE,
            &[],
            &[],
            1_500,
        );
        let dropped = none.run(&syn(client, vip).frame());
        assert_eq!(
            dropped.verdict,
            Verdict::Drop(DropReason::NoNextHop),
            "no member is left"
        );
        let gone = self::stage(Mode::Nat, vip, server(at).behind(OTHER | UPPER));
        let dropped = gone.run(&syn(client, vip).frame());
        assert_eq!(
            dropped.verdict,
            Verdict::Drop(DropReason::NoNextHop),
            "nobody knows the device"
        );
    }
}

/// What stands behind an outer header is no port: of one flow, its length differs from packet to packet.
#[test]
fn a_bond_keeps_the_packets_of_a_tunnel_on_one_member_however_long_they_are() {
    for (client, vip, at) in ENDS {
        for mode in [Mode::Ipip, Mode::Gue] {
            let stage = stage(mode, vip, server(at).behind(DEVICE | UPPER));
            let stage = stage.device(DEVICE, &[EGRESS, INGRESS], &[], 1_500);
            let taken = |length| stage.run(&of_length(client, vip, length).frame()).verdict;
            let first = taken(100);
            for length in 101..200 {
                assert_eq!(taken(length), first, "{mode:?} {vip} {length}");
            }
        }
    }
}

#[test]
fn tags_that_find_no_room_are_a_reason_to_drop() {
    let stage = stage(Mode::L2, VIP4, server(SERVER4).behind(DEVICE | UPPER)).device(
        DEVICE,
        &[EGRESS],
        &[of(S7), of(C100)],
        1_500,
    );
    let frame = syn(CLIENT4, VIP4).frame();
    let dropped = stage.run_with(&frame, 6);
    assert_eq!(dropped.verdict, Verdict::Drop(DropReason::NoHeadroom));
    let kept = stage.run_with(&frame, 8);
    assert_eq!(kept.verdict, Verdict::Redirect(EGRESS));
    // Its own have made some.
    let kept = stage.run_with(&tagged(&frame, &[C200, C100]), 0);
    assert_eq!(kept.verdict, Verdict::Redirect(EGRESS));
}
