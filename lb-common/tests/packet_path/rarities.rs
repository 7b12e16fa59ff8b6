//! What is rare: settings, tables and frames that agents and hosts do not bring about, or for a moment only. Each is safe nevertheless.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    flow::Signal,
    memory::MemoryTables,
    passive::{self, Step},
    tables::{UPPER, feature, handshake, mode, refusal},
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    fragments::{CUTS, cut, large},
    frames::{Extension, Flags, Spec, Transport, datagram, segment, socket, syn},
    full_nat::{FROM4, POOL4, PORTS},
    icmp::{about, error, quote},
    relayed_errors::too_long,
    support::{Condition, EGRESS, INGRESS, Mode, Move, Outcome, Scheduler, Stage, server},
    too_big::of_length,
    tracking::taken_by,
    vlan::{C100, tagged},
};

const OTHER4: &str = "10.1.0.3:8080";
const THIRD4: &str = "10.1.0.4:8080";
const MOVING_TIME: u32 = 900 * 954;

/// Three servers; every slot stands there.
fn tracked(to: Move) -> Stage {
    let servers = [SERVER4, OTHER4, THIRD4].map(server);
    let stage = Stage::new().serve(Mode::Ipip, VIP4, TCP, &servers);
    stage.moving_time(MOVING_TIME).moved(to)
}

fn finish() -> Spec {
    Spec {
        transport: Transport::Tcp(Flags::FIN),
        ..segment(CLIENT4, VIP4)
    }
}

#[test]
fn a_flow_whose_server_is_gone_is_recorded_also_with_who_would_get_it_anyway() {
    let stage = tracked(Move::Moving(1, 0));
    assert_eq!(taken_by(&stage, &syn(CLIENT4, VIP4)), Some(1));
    let stage = stage.condition(1, Condition::Dead).moved(Move::Settling(2));
    assert_eq!(taken_by(&stage, &segment(CLIENT4, VIP4)), Some(2));
    let stage = stage
        .condition(1, Condition::Takes)
        .moved(Move::Moving(0, 1));
    assert_eq!(taken_by(&stage, &segment(CLIENT4, VIP4)), Some(2));
}

#[test]
fn the_end_of_a_flow_whose_server_was_replaced_is_not_taken_off_its_successor() {
    let stage = tracked(Move::Moving(1, 0)).recording_all();
    taken_by(&stage, &syn(CLIENT4, VIP4));
    taken_by(&stage, &segment(CLIENT4, VIP4));
    assert_eq!(stage.in_progress(1), 1);
    let stage = stage.replaced(1).busy(1, 5);
    taken_by(&stage, &finish());
    assert_eq!(stage.in_progress(1), 5);
}

#[test]
fn where_nobody_on_the_ring_before_holds_flows_they_stay_with_whom_a_services_own_slot_names() {
    let stage = tracked(Move::Steady(1))
        .moving_from(&[0; 8])
        .condition(0, Condition::Dead);
    assert_eq!(taken_by(&stage, &segment(CLIENT4, VIP4)), Some(1));
    let stage = tracked(Move::Moving(1, 2))
        .moving_from(&[0; 8])
        .condition(0, Condition::Dead);
    assert_eq!(taken_by(&stage, &segment(CLIENT4, VIP4)), Some(2));
}

#[test]
fn a_turn_that_is_nobodys_is_passed_over() {
    let stage = tracked(Move::Steady(0))
        .recording_all()
        .scheduled(Scheduler::Turns(&[9, 2]));
    for port in 1..=4 {
        let from = format!("192.0.2.7:{port}");
        assert_eq!(taken_by(&stage, &syn(&from, VIP4)), Some(2), "{port}");
    }
}

#[test]
fn who_has_the_fewest_flows_is_found_behind_a_position_that_is_nobodys() {
    // Wherever the search begins.
    for [nobody, more, fewest] in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let stage = tracked(Move::Steady(nobody))
            .recording_all()
            .scheduled(Scheduler::Least)
            .vacated(nobody)
            .busy(more, 2)
            .busy(fewest, 1);
        assert_eq!(taken_by(&stage, &syn(CLIENT4, VIP4)), Some(fewest));
    }
}

#[test]
fn where_nobody_takes_a_flow_of_a_service_that_tells_of_others_its_packets_are_refused_as_others_are()
 {
    let dead = || Stage::new().serve(Mode::SecondHop, VIP4, TCP, &[server(SERVER4).dead()]);
    let frame = segment(CLIENT4, VIP4).frame();
    let dropped = dead().run(&frame).verdict;
    assert_eq!(dropped, Verdict::Drop(DropReason::NoBackend));
    let reset = dead().no_backend(refusal::RESET).run(&frame);
    assert_eq!(reset.verdict, Verdict::Transmit);
    assert_eq!(reset.counted.answers, [(Answer::Reset as u32, 1)].into());
    let passed = dead().no_backend(refusal::PASS).run(&frame);
    assert_eq!((passed.verdict, passed.frame.0), (Verdict::Pass, frame));
}

#[test]
fn packets_and_errors_of_a_mode_that_the_program_does_not_have_go_nowhere() {
    let gue = || Stage::new().serve(Mode::Gue, VIP6, TCP, &[server(SERVER6)]);
    let none = gue().serve(Mode::Unknown, VIP4, TCP, &[server(SERVER4)]);
    let unloaded = gue()
        .serve(Mode::SecondHop, VIP4, TCP, &[server(SERVER4)])
        .without(feature::SECOND_HOP);
    let quoted = quote(&about(false, VIP4, CLIENT4), None);
    for stage in [none, unloaded] {
        for packet in [segment(CLIENT4, VIP4), error((3, 1), &quoted)] {
            let outcome = stage.run(&packet.frame());
            let expected = Verdict::Drop(DropReason::Inconsistent);
            assert_eq!(outcome.verdict, expected, "{packet:?}");
            assert!(outcome.counted.servers.is_empty());
        }
    }
}

#[test]
fn datagrams_have_no_mss_whatever_their_bytes_look_like() {
    // As of a SYN whose header has six words, the last one its MSS.
    let payload = [0, 0, 0, 0, 0x60, 2, 0, 0, 0, 0, 0, 0, 2, 4, 0xff, 0xff].to_vec();
    let answer = Spec {
        payload,
        ..datagram(SERVER4, CLIENT4)
    };
    let [lowered, kept] = [server(SERVER4).lowering(1_000), server(SERVER4)].map(|server| {
        Stage::new()
            .serve(Mode::Nat, VIP4, UDP, &[server])
            .route(socket(CLIENT4).ip(), EGRESS)
            .run(&answer.frame())
    });
    assert_eq!(kept.verdict, Verdict::Redirect(EGRESS));
    assert_eq!(lowered, kept);
}

#[test]
fn a_syn_of_which_all_is_zero_is_watched_as_others_are() {
    let tables = MemoryTables::default();
    let syn = Step {
        tag: 0,
        sequence: 0,
        counters: 3,
        signal: Signal::Opens,
    };
    let state = || tables.handshakes.borrow()[&0].state;
    passive::follow(&tables, syn);
    assert_eq!(state(), handshake::PENDING);
    passive::follow(&tables, syn);
    assert_eq!(state(), handshake::RESENT);
}

/// What a router says of a packet that a tunnel's way takes no more.
fn narrowed() -> (Stage, Vec<u8>) {
    let stage = Stage::new().serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)]);
    let long = of_length(segment(CLIENT4, VIP4), 1_460);
    let sent = stage.run(&long.frame());
    (stage, too_long(&sent.frame.0[14..], 1_400))
}

#[test]
fn what_the_link_brings_to_everybody_of_a_tunnels_way_is_told_to_nobody() {
    let (stage, error) = narrowed();
    let mut to_all = error.clone();
    to_all[..6].fill(0xff);
    let mut expected = Outcome::passed(to_all.clone());
    expected.counted.answers = [(Answer::Withheld as u32, 1)].into();
    assert_eq!(stage.run(&to_all), expected);
    assert_eq!(stage.run(&error).verdict, Verdict::Transmit);
}

#[test]
fn what_is_too_long_for_a_tunnel_that_a_service_had_is_the_kernels() {
    let (stage, error) = narrowed();
    let stage = stage.turned_into(mode::L2, TCP);
    assert_eq!(stage.run(&error), Outcome::passed(error));
}

#[test]
fn a_fragment_to_an_address_of_a_pool_is_the_kernels_also_from_a_nat_backend() {
    let stage = Stage::new()
        .serve(Mode::Nat, VIP4, UDP, &[server(SERVER4)])
        .route(socket(FROM4).ip(), EGRESS)
        .serve(Mode::FullNat, "10.0.0.2:80", UDP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    for piece in cut(&large(datagram(SERVER4, FROM4)), &CUTS) {
        let frame = piece.frame();
        assert_eq!(stage.run(&frame), Outcome::passed(frame));
    }
}

#[test]
fn fragments_to_a_backend_that_no_way_leads_to_are_dropped() {
    let stage = Stage::new().serve(Mode::Ipip, VIP4, UDP, &[server(SERVER4).behind(0)]);
    let pieces = cut(&large(datagram(CLIENT4, VIP4)), &CUTS);
    let first = stage.run(&pieces[0].frame()).verdict;
    assert_eq!(first, Verdict::Drop(DropReason::NoNextHop));
    let second = stage.run(&pieces[1].frame());
    assert_eq!(second, Outcome::dropped(DropReason::Fragment));
}

#[test]
fn a_fragment_whose_options_are_not_in_the_first_buffer_has_no_ports_there_either() {
    let stage = Stage::new().serve(Mode::L2, VIP4, UDP, &[server(SERVER4)]);
    let mut first = cut(&large(datagram(CLIENT4, VIP4)), &CUTS).swap_remove(0);
    first.options = vec![1; 4];
    let (verdict, _) = stage.run_in_buffers(&first.frame(), 36);
    assert_eq!(verdict, Verdict::Drop(DropReason::FragmentTiny));
    let (verdict, _) = stage.run_in_buffers(&first.frame(), 46);
    assert_eq!(verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn a_fragment_that_was_held_is_the_kernels_once_nothing_is_made_of_its_vlan() {
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, UDP, &[server(SERVER4)])
        .vlans();
    let pieces = cut(&large(datagram(CLIENT4, VIP4)), &CUTS);
    let held = tagged(&pieces[1].frame(), &[C100]);
    assert_eq!(stage.run(&held).verdict, Verdict::Held);
    let stage = stage.known_vlans();
    assert_eq!(stage.give_back(), [Outcome::passed(held)]);
}

#[test]
fn a_bond_keeps_a_flow_on_one_member_whatever_options_its_packets_have() {
    const BOND: u32 = 20;
    let stage = Stage::new()
        .serve(Mode::L2, VIP4, TCP, &[server(SERVER4).behind(BOND | UPPER)])
        .device(BOND, &[EGRESS, INGRESS], &[], 1_500);
    // Of a kind that nobody knows (RFC 4727), with two bytes of its own.
    let taken = |n| {
        let packet = Spec {
            options: vec![30, 4, n, 7],
            ..segment(CLIENT4, VIP4)
        };
        stage.run(&packet.frame()).verdict
    };
    assert!((1..64).all(|n| taken(n) == taken(0)));
}

#[test]
fn a_packet_of_another_protocol_that_says_to_be_shorter_than_its_header_is_the_kernels() {
    let stage = Stage::new()
        .serve(Mode::L2, VIP4, TCP, &[server(SERVER4)])
        .unknown_port(refusal::RESET);
    let mut frame = Spec {
        transport: Transport::Other(47),
        ..segment(CLIENT4, VIP4)
    }
    .frame();
    assert_ne!(stage.run(&frame).verdict, Verdict::Pass);
    frame[16..18].copy_from_slice(&19u16.to_be_bytes());
    assert_eq!(stage.run(&frame), Outcome::passed(frame));
}

#[test]
fn ports_behind_options_are_no_source_route_whatever_their_bytes() {
    let stage = Stage::new().serve(Mode::L2, VIP4, TCP, &[server(SERVER4)]);
    for kind in [131, 137] {
        let mut packet = segment(CLIENT4, VIP4);
        packet.from.set_port(u16::from_be_bytes([kind, 3]));
        packet.options = vec![1; 4];
        let outcome = stage.run(&packet.frame());
        assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{kind}");
    }
}

/// One service of a prefix, behind a bond of two.
fn bonded(prefix: (&str, u32), to: &str) -> Stage {
    const BOND: u32 = 20;
    let server = server(to).behind(BOND | UPPER);
    Stage::new()
        .serve_wide(Mode::L2, prefix, 80..=80, TCP, &[server])
        .device(BOND, &[EGRESS, INGRESS], &[], 1_500)
}

#[test]
fn a_bond_spreads_what_differs_by_port_or_by_destination_alone() {
    for (prefix, to) in [
        (("10.0.0.0:0", 24), SERVER4),
        (("[2001:db8:7::]:0", 64), SERVER6),
    ] {
        let stage = bonded(prefix, to);
        let mut vip = socket(prefix.0);
        vip.set_port(80);
        // Addresses that differ in their last byte alone, by which half of a hash is left to the ports.
        let at = |last: u8| match vip.ip() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                SocketAddr::from(([a, b, c, last], 80))
            }
            IpAddr::V6(ip) => {
                let mut octets = ip.octets();
                octets[15] = last;
                SocketAddr::from((octets, 80))
            }
        };
        let taken = |port, last| {
            let (mut from, to) = (at(200), at(last));
            from.set_port(port);
            let packet = segment(&from.to_string(), &to.to_string());
            stage.run(&packet.frame()).verdict
        };
        let first = taken(40_000, 1);
        assert!((0..64).any(|n| taken(40_000 + n, 1) != first), "{to}");
        assert!((1..64).any(|n| taken(40_000, n) != first), "{to}");
    }
}

#[test]
fn a_datagram_that_is_not_recorded_begins_a_flow_where_turns_are_taken_and_nothing_is_counted() {
    let servers = [SERVER4, OTHER4, THIRD4].map(server);
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, UDP, &servers)
        .moving_time(MOVING_TIME)
        .moved(Move::Steady(0))
        .recording_all()
        .uncounted();
    assert_eq!(taken_by(&stage, &datagram(CLIENT4, VIP4)), Some(0));
    let stage = stage.moved(Move::Steady(1));
    let stage = stage.scheduled(Scheduler::Turns(&[2]));
    assert_eq!(taken_by(&stage, &datagram("192.0.2.9:7", VIP4)), Some(2));
    assert_eq!(taken_by(&stage, &datagram(CLIENT4, VIP4)), Some(0));
}

#[test]
fn a_fragment_that_only_its_headers_make_longer_than_a_packet_may_be_is_malformed() {
    let stage = Stage::new().serve(Mode::L2, VIP6, UDP, &[server(SERVER6)]);
    let last = |before: &[Extension]| Spec {
        extensions: [before, &[Extension::Fragment(8_190, false)]].concat(),
        transport: Transport::Other(UDP),
        payload: vec![7; 8],
        ..datagram(CLIENT6, VIP6)
    };
    let held = stage.run(&last(&[]).frame()).verdict;
    assert_eq!(held, Verdict::Held);
    let outcome = stage.run(&last(&[Extension::HopByHop(6)]).frame());
    let malformed = Outcome::dropped(DropReason::FragmentMalformed);
    assert_eq!(outcome, malformed);
}
