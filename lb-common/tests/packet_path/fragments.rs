//! Datagrams in fragments: where they go, byte for byte, in which order they come, and which are dropped.

use lb_common::{
    fragment::LIFETIME,
    tables::refusal,
    verdict::{DropReason, Piece, Verdict},
};
use proptest::{
    prelude::*,
    sample::{Index, select},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Flags, Outer, Spec, Transport, datagram, segment, socket, syn},
    support::{CLIENT_MACS, EGRESS, GUE_PORT, INGRESS, Mode, Outcome, Stage, macs, server},
    tracking::taken_by,
};

const ID: u16 = 0x4321;

/// One of both families, with a payload that takes several fragments.
pub fn large(packet: Spec) -> Spec {
    Spec {
        payload: (0..3_000).map(|n| (n % 251) as u8).collect(),
        ..packet
    }
}

/// Cuts a packet's transport part at these places, in bytes.
pub fn cut(packet: &Spec, at: &[usize]) -> Vec<Spec> {
    let whole = packet.transport();
    let starts = [0].iter().chain(at).copied();
    let ends = at.iter().copied().chain([whole.len()]);
    starts
        .zip(ends)
        .map(|(from, to)| piece(packet, from, &whole[from..to], to < whole.len()))
        .collect()
}

/// A fragment of `packet`.
fn piece(packet: &Spec, offset: usize, bytes: &[u8], more: bool) -> Spec {
    let units = (offset / 8) as u16;
    let mut piece = Spec {
        transport: Transport::Other(packet.number().0),
        payload: bytes.to_vec(),
        fragment: (false, more, units),
        ..packet.clone()
    };
    if packet.from.is_ipv6() {
        piece.extensions.push(Extension::Fragment(units, more));
    }
    piece
}

/// Both families behind both protocols.
fn stage(mode: Mode, to: [&str; 2]) -> Stage {
    let [v4, v6] = to.map(server);
    Stage::new()
        .serve(mode, VIP4, TCP, &[v4])
        .serve(mode, VIP4, UDP, &[v4])
        .serve(mode, VIP6, TCP, &[v6])
        .serve(mode, VIP6, UDP, &[v6])
}

const OWN: [&str; 2] = [SERVER4, SERVER6];

/// Requests, and the positions of their services.
fn requests() -> [(Spec, u8); 4] {
    [
        (large(syn(CLIENT4, VIP4)), 0),
        (large(datagram(CLIENT4, VIP4)), 1),
        (large(syn(CLIENT6, VIP6)), 2),
        (large(datagram(CLIENT6, VIP6)), 3),
    ]
}

pub const CUTS: [usize; 2] = [1_480, 2_960];

/// Forwarded as this frame, to the server at a position.
fn forwarded(piece: Piece, before: &Spec, after: Vec<u8>, position: u8, opens: u64) -> Outcome {
    let count = (1, before.frame().len() as u64, opens);
    let position = u32::from(position);
    let mut outcome = Outcome::forwarded(Verdict::Redirect(EGRESS), after, position, count);
    outcome.counted.services = [(position, count)].into();
    outcome.counted.pieces = [(piece as u32, 1)].into();
    outcome
}

/// Fragments go where their first one goes, in order and given back.
fn assert_follow(stage: &Stage, before: &[Spec], after: &[Vec<u8>], position: u8, opens: u64) {
    let outcome = |place: usize, piece| {
        let opens = if place == 0 { opens } else { 0 };
        forwarded(piece, &before[place], after[place].clone(), position, opens)
    };
    for (place, spec) in before.iter().enumerate() {
        let piece = if place == 0 {
            Piece::First
        } else {
            Piece::Later
        };
        let run = stage.run(&spec.frame());
        assert_eq!(run, outcome(place, piece), "{place}: {spec:?}");
    }
    // The same datagram again, the other way round.
    let last = before.len() - 1;
    for place in (1..=last).rev() {
        assert_held(stage, &before[place]);
    }
    let run = stage.run(&before[0].frame());
    assert_eq!(run, outcome(0, Piece::First));
    let back = stage.give_back();
    let expected = (1..=last)
        .rev()
        .map(|place| outcome(place, Piece::Released));
    assert_eq!(back, expected.collect::<Vec<_>>());
}

pub fn assert_held(stage: &Stage, piece: &Spec) {
    let outcome = stage.run(&piece.frame());
    assert_eq!(outcome.verdict, Verdict::Held, "{piece:?}");
    assert_eq!(outcome.counted.pieces, [(Piece::Held as u32, 1)].into());
    assert!(outcome.counted.drops.is_empty());
}

pub fn assert_dropped(stage: &Stage, piece: &Spec, reason: DropReason) {
    let outcome = stage.run(&piece.frame());
    assert_eq!(outcome, Outcome::dropped(reason), "{piece:?}");
}

#[test]
fn by_l2_every_fragment_leaves_as_it_came() {
    for (request, position) in requests() {
        let before = cut(&request, &CUTS);
        let macs = macs(position);
        let after = before.iter().map(|piece| Spec {
            macs,
            ..piece.clone()
        });
        let after: Vec<_> = after.map(|piece| piece.frame()).collect();
        let opens = u64::from(position % 2 == 0);
        assert_follow(&stage(Mode::L2, OWN), &before, &after, position, opens);
    }
}

#[test]
fn by_nat_the_datagram_that_is_put_together_has_the_servers_address_port_and_checksum() {
    for (request, position) in requests() {
        let to = if request.to.is_ipv4() {
            SERVER4
        } else {
            SERVER6
        };
        let rewritten = Spec {
            to: socket(to),
            ..request.clone()
        };
        let after = cut(&rewritten.routed(macs(position)), &CUTS);
        let after: Vec<_> = after.iter().map(Spec::frame).collect();
        let before = cut(&request, &CUTS);
        let opens = u64::from(position % 2 == 0);
        assert_follow(&stage(Mode::Nat, OWN), &before, &after, position, opens);
    }
}

#[test]
fn by_tunnels_of_every_pair_of_families_each_fragment_is_wrapped_as_it_came() {
    for mode in [Mode::Ipip, Mode::Gue] {
        for to in [OWN, [SERVER6, SERVER4]] {
            for (request, position) in requests() {
                let server = to[usize::from(request.from.is_ipv6())];
                let before = cut(&request, &CUTS);
                let after: Vec<_> = before
                    .iter()
                    .map(|piece| outer(mode, server, position).around(&piece.ip(), &[]))
                    .collect();
                let opens = u64::from(position % 2 == 0);
                assert_follow(&stage(mode, to), &before, &after, position, opens);
            }
        }
    }
}

/// As `tunnels` has it, without a checksum: those of a fragment cover the datagram.
fn outer(mode: Mode, server: &str, position: u8) -> Outer {
    let destination = socket(server).ip();
    let source = if destination.is_ipv4() {
        "172.16.158.223:0"
    } else {
        "[fd00:77::1:62c2:9edf]:0"
    };
    Outer {
        macs: macs(position),
        source: socket(source).ip(),
        destination,
        traffic_class: 0,
        flow_label: 0xe_c262,
        ports: (mode == Mode::Gue).then_some((0xc262, GUE_PORT)),
        summed: false,
    }
}

#[test]
fn a_nat_servers_answer_in_fragments_comes_from_the_vip_once_it_is_put_together() {
    for (answer, vip) in [
        (large(segment(SERVER4, CLIENT4)), VIP4),
        (large(datagram(SERVER4, CLIENT4)), VIP4),
        (large(segment(SERVER6, CLIENT6)), VIP6),
        (large(datagram(SERVER6, CLIENT6)), VIP6),
    ] {
        let stage = stage(Mode::Nat, OWN).route(answer.to.ip(), INGRESS);
        let rewritten = Spec {
            from: socket(vip),
            ..answer.clone()
        };
        let after = cut(&rewritten.routed(CLIENT_MACS), &CUTS);
        let before = cut(&answer, &CUTS);
        // What comes before the first is whoever's.
        let early = before[1].frame();
        assert_eq!(stage.run(&early), Outcome::passed(early.clone()));
        for (place, (before, after)) in before.iter().zip(&after).enumerate() {
            let mut outcome = Outcome::uncounted(Verdict::Transmit, after.frame());
            let piece = if place == 0 {
                Piece::First
            } else {
                Piece::Later
            };
            outcome.counted.pieces = [(piece as u32, 1)].into();
            assert_eq!(stage.run(&before.frame()), outcome, "{before:?}");
        }
    }
}

#[test]
fn answers_to_our_own_probes_pass_in_fragments_too() {
    let answer = large(datagram(SERVER4, CLIENT4));
    let stage = stage(Mode::Nat, OWN)
        .route(answer.to.ip(), EGRESS)
        .own("192.0.2.7");
    for piece in cut(&answer, &CUTS) {
        let frame = piece.frame();
        let outcome = stage.run(&frame);
        assert_eq!(outcome.verdict, Verdict::Pass);
        assert_eq!(outcome.frame.0, frame);
    }
}

#[test]
fn fragments_of_other_datagrams_come_in_between() {
    let servers = [server("10.1.0.2:80"), server("10.1.0.3:80")];
    let stage = Stage::new()
        .hashing()
        .serve(Mode::L2, VIP4, UDP, &servers)
        .ring(&[0, 1, 0, 1, 0, 1, 0, 1]);
    let of = |n: u16| {
        let mut request = large(datagram(CLIENT4, VIP4));
        request.from.set_port(1_000 + n);
        request.identification = n;
        cut(&request, &CUTS)
    };
    let datagrams: Vec<_> = (0..64).map(of).collect();
    let mut chosen = [[None; 64]; 3];
    for place in 0..3 {
        for (n, pieces) in datagrams.iter().enumerate() {
            let outcome = stage.run(&pieces[place].frame());
            chosen[place][n] = outcome.counted.servers.keys().next().copied();
        }
    }
    assert!(chosen[0].contains(&Some(0)) && chosen[0].contains(&Some(1)));
    assert_eq!(chosen[0], chosen[1]);
    assert_eq!(chosen[0], chosen[2]);
}

#[test]
fn a_first_fragment_goes_where_its_clients_packets_go_where_they_are_hashed_by_some_fields() {
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let stage = || {
        let stage = Stage::new().hashing();
        stage.serve(Mode::L2, VIP4, UDP, &servers)
    };
    for stage in [stage().by_source(), stage().by_three_tuple()] {
        for port in 1_000..1_032 {
            let mut request = large(datagram(CLIENT4, VIP4));
            request.from.set_port(port);
            request.identification = port;
            let first = &cut(&request, &CUTS)[0];
            let whole = taken_by(&stage, &request);
            assert_eq!(taken_by(&stage, first), whole, "{port}");
        }
    }
}

#[test]
fn fragments_stay_with_their_first_one_whatever_becomes_of_its_server() {
    for (request, position) in requests() {
        let stage = stage(Mode::L2, OWN);
        let pieces = cut(&request, &CUTS);
        assert_eq!(stage.run(&pieces[0].frame()).counted.pieces.len(), 1);
        let stage = stage.ring(&[]);
        let outcome = stage.run(&pieces[1].frame());
        let servers = outcome.counted.servers.keys().collect::<Vec<_>>();
        assert_eq!(servers, [&u32::from(position)]);
    }
}

#[test]
fn ipv4_fragments_of_another_protocol_or_identification_are_of_another_datagram() {
    let stage = stage(Mode::L2, OWN);
    let request = large(datagram(CLIENT4, VIP4));
    let pieces = cut(&request, &CUTS);
    stage.run(&pieces[0].frame());
    for other in [
        Spec {
            identification: ID + 1,
            ..pieces[1].clone()
        },
        Spec {
            transport: Transport::Other(TCP),
            ..pieces[1].clone()
        },
        Spec {
            from: socket("192.0.2.8:1"),
            ..pieces[1].clone()
        },
    ] {
        assert_held(&stage, &other);
    }
    let outcome = stage.run(&pieces[1].frame());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn a_datagram_is_forgotten_some_time_after_its_last_fragment() {
    let request = large(datagram(CLIENT6, VIP6));
    let pieces = cut(&request, &CUTS);
    let stage = stage(Mode::L2, OWN);
    stage.at(u32::MAX - 5).run(&pieces[0].frame());
    let later = (u32::MAX - 5).wrapping_add(LIFETIME - 1);
    let outcome = stage.at(later).run(&pieces[1].frame());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
    let last = &pieces[2];
    assert_held(stage.at(later.wrapping_add(LIFETIME)), last);
    let back = stage.give_back();
    assert_eq!(back, [Outcome::dropped(DropReason::FragmentBeforeFirst)]);
}

#[test]
fn a_frame_that_is_too_long_to_be_held_is_dropped_and_so_are_more_than_may_be_held() {
    let stage = stage(Mode::L2, OWN);
    let request = large(datagram(CLIENT4, VIP4));
    let longest = |bytes: usize| piece(&request, 8, &vec![1; bytes], false);
    assert_held(&stage, &longest(2_048 - 34));
    let before_first = DropReason::FragmentBeforeFirst;
    assert_dropped(&stage, &longest(2_048 - 33), before_first);
    for _ in 2..lb_common::budget::LIMIT {
        assert_held(&stage, &longest(8));
    }
    assert_dropped(&stage, &longest(8), before_first);
}

#[test]
fn what_is_held_keeps_every_byte_and_where_it_came_from() {
    let request = large(datagram(CLIENT4, VIP4));
    for length in 1..40 {
        let stage = stage(Mode::L2, OWN);
        let [first, _] = &cut(&request, &[16])[..] else {
            panic!("two fragments");
        };
        let late = piece(&request, 16, &vec![0xa5; length], false);
        assert_held(&stage, &late);
        stage.run(&first.frame());
        let expected = Spec {
            macs: macs(1),
            ..late
        };
        let back = stage.give_back();
        assert_eq!(back[0].frame.0, expected.frame());
    }
}

#[test]
fn first_fragments_without_all_of_their_headers_are_tiny() {
    for (request, at) in [
        (large(datagram(CLIENT4, VIP4)), 8),
        (large(datagram(CLIENT6, VIP6)), 8),
        (large(segment(CLIENT4, VIP4)), 24),
        (large(segment(CLIENT6, VIP6)), 24),
    ] {
        let first = &cut(&request, &[at])[0];
        let outcome = stage(Mode::L2, OWN).run(&first.frame());
        assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{first:?}");
    }
    let stage = stage(Mode::L2, OWN);
    for request in [large(segment(CLIENT4, VIP4)), large(syn(CLIENT6, VIP6))] {
        for at in [8, 16] {
            let [first, second] = &cut(&request, &[at])[..] else {
                panic!("two fragments");
            };
            assert_dropped(&stage, first, DropReason::FragmentTiny);
            assert_dropped(&stage, second, DropReason::FragmentTiny);
        }
    }
    // A data offset of fifteen words, of which ten are there.
    let mut first = cut(&large(segment(CLIENT4, VIP4)), &[40]).remove(0);
    first.payload[12] = 0xf0;
    assert_dropped(&stage, &first, DropReason::FragmentTiny);
    first.payload[12] = 0xa0;
    let outcome = stage.run(&first.frame());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn ipv6_headers_behind_the_fragment_header_are_the_first_fragments_to_have() {
    let request = large(datagram(CLIENT6, VIP6));
    let mut chain = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
    chain.extend(request.transport());
    let number = Transport::Other(60);
    let of = |offset: usize, to: usize| {
        let piece = piece(&request, offset, &chain[offset..to], to < chain.len());
        Spec {
            transport: number,
            ..piece
        }
    };
    let stage = stage(Mode::L2, OWN);
    assert_dropped(&stage, &of(0, 8), DropReason::FragmentTiny);
    for piece in [of(0, 16), of(16, 1_600), of(1_600, chain.len())] {
        let outcome = stage.run(&piece.frame());
        assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{piece:?}");
    }
}

#[test]
fn other_protocols_in_ipv6_fragments_are_the_kernels() {
    let request = large(datagram(CLIENT6, VIP6));
    for number in [58, 132] {
        let stage = stage(Mode::L2, OWN);
        for piece in cut(&request, &CUTS) {
            let piece = Spec {
                transport: Transport::Other(number),
                ..piece
            };
            // Later ones once the first one has said so.
            let frame = piece.frame();
            assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
        }
    }
}

#[test]
fn lengths_that_nothing_can_be_made_of_are_malformed() {
    let stage = stage(Mode::L2, OWN);
    for request in [
        large(datagram(CLIENT4, VIP4)),
        large(datagram(CLIENT6, VIP6)),
    ] {
        let ends = if request.from.is_ipv4() {
            65_515
        } else {
            65_535
        };
        let of = |offset, length, more| piece(&request, offset, &vec![0; length], more);
        for malformed in [
            of(8, 0, false),
            of(8, 0, true),
            of(0, 0, true),
            of(0, 15, true),
            of(16, 9, true),
            of(65_504, ends - 65_503, false),
            of(65_528, 8, false),
        ] {
            assert_dropped(&stage, &malformed, DropReason::FragmentMalformed);
        }
        assert_held(&stage, &of(65_504, ends - 65_504, false));
    }
}

#[test]
fn fragments_that_overlap_are_dropped_and_all_that_follow() {
    let overlap = DropReason::FragmentOverlap;
    for (request, _) in requests() {
        let pieces = cut(&request, &CUTS);
        let bytes = request.transport();
        let straddling = piece(&request, 1_472, &bytes[1_472..2_960], true);
        let stage = stage(Mode::L2, OWN);
        stage.run(&pieces[0].frame());
        // Sent twice, the others go on.
        assert_dropped(&stage, &pieces[0], overlap);
        assert_eq!(
            stage.run(&pieces[1].frame()).verdict,
            Verdict::Redirect(EGRESS)
        );
        assert_dropped(&stage, &pieces[1], overlap);
        assert_dropped(&stage, &straddling, overlap);
        let longer = piece(&request, 0, &bytes[..2_968], true);
        assert_dropped(&stage, &longer, overlap);
        assert_dropped(&stage, &pieces[2], overlap);
    }
}

#[test]
fn an_identification_that_comes_again_is_of_another_datagram_once_the_one_before_is_whole() {
    let stage = stage(Mode::L2, OWN);
    for (request, _) in requests() {
        for _ in 0..3 {
            for piece in cut(&request, &CUTS) {
                let outcome = stage.run(&piece.frame());
                assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{piece:?}");
            }
        }
    }
}

#[test]
fn what_follows_a_first_fragment_that_was_dropped_is_dropped() {
    let request = large(datagram(CLIENT4, VIP4));
    let [first, second, _] = &cut(&request, &CUTS)[..] else {
        panic!("three fragments");
    };
    let stage = Stage::new().serve(Mode::L2, VIP4, UDP, &[]);
    assert_dropped(&stage, first, DropReason::NoBackend);
    assert_dropped(&stage, second, DropReason::Fragment);
    // A backend that is back gets the next datagram.
    assert_dropped(&stage, first, DropReason::NoBackend);
}

#[test]
fn a_port_that_no_service_has_is_answered_for_by_nobody_or_left_to_the_kernel() {
    let [first, second, _] = &cut(&large(datagram(CLIENT4, "10.0.0.1:81")), &CUTS)[..] else {
        panic!("three fragments");
    };
    let stage = stage(Mode::L2, OWN);
    for piece in [first, second] {
        let frame = piece.frame();
        assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
    }
    for policy in [refusal::RESET, refusal::UNREACHABLE, refusal::DROP] {
        let stage = self::stage(Mode::L2, OWN).unknown_port(policy);
        let outcome = stage.run(&first.frame());
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::UnknownPort));
        let answers = u64::from(policy != refusal::DROP);
        assert_eq!(outcome.counted.answers.values().sum::<u64>(), answers);
        assert_dropped(&stage, second, DropReason::Fragment);
    }
}

#[test]
fn fragments_of_flows_that_open_and_finish_say_so_once() {
    let fin = Spec {
        transport: Transport::Tcp(Flags::FIN),
        ..large(segment(CLIENT4, VIP4))
    };
    let stage = stage(Mode::L2, OWN).recording_all().moving_time(1_000);
    for request in [large(syn(CLIENT6, VIP6)), fin] {
        let opens: u64 = cut(&request, &CUTS)
            .iter()
            .flat_map(|piece| stage.run(&piece.frame()).counted.services.into_values())
            .map(|(_, _, opens)| opens)
            .sum();
        let syn = request.transport == Transport::Tcp(Flags::SYN);
        assert_eq!(opens, u64::from(syn));
    }
}

proptest! {
    /// However a datagram is cut and in whichever order it comes, the server of its flow gets all of it.
    #[test]
    fn every_fragment_of_a_datagram_goes_where_the_flow_goes(
        cuts in prop::collection::btree_set(4..230usize, 1..8), order in prop::collection::vec(any::<Index>(), 8),
        port: u16, v6: bool, mode in select(&[Mode::Nat, Mode::Ipip, Mode::Gue, Mode::L2][..]),
    ) {
        let (client, vip, servers) = if v6 {
            (CLIENT6, VIP6, ["[fd00:1::2]:80", "[fd00:1::3]:80", "[fd00:1::4]:80"])
        } else {
            (CLIENT4, VIP4, ["10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80"])
        };
        let stage = Stage::new()
            .serve(mode, vip, UDP, &servers.map(server))
            .ring(&[0, 1, 2, 0, 1, 2, 0])
            .hashing();
        let mut request = large(datagram(client, vip));
        request.from.set_port(port);
        // No longer than what can be held.
        request.payload.truncate(1_900);
        let own = |outcome: &Outcome| outcome.counted.servers.keys().copied().collect::<Vec<_>>();
        let expected = own(&stage.run(&request.frame()));
        prop_assert_eq!(expected.len(), 1);
        let at: Vec<usize> = cuts.iter().map(|units| units * 8).collect();
        let mut pieces = cut(&request, &at);
        let mut got = Vec::new();
        let mut held = 0;
        let total = pieces.len();
        for index in order.iter().cycle().take(total) {
            let piece = pieces.remove(index.index(pieces.len()));
            let outcome = stage.run(&piece.frame());
            match outcome.verdict {
                Verdict::Held => held += 1,
                Verdict::Redirect(_) => got.push(own(&outcome)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        let back = stage.give_back();
        prop_assert_eq!(back.len(), held);
        got.extend(back.iter().map(own));
        prop_assert_eq!(got, vec![expected; total]);
    }
}
