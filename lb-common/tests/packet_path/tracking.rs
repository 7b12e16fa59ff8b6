//! Flows across changes: whom a packet goes to while slots move and settle, servers drain and die,
//! and flow tables fill up. The contract of ARCHITECTURE.md, "Flow consistency".

use lb_common::{
    tables::{TICK_SHIFT, service_flag},
    track::{FINISHED_LIFETIME, OPENING_LIFETIME, RESET_LIFETIME},
    verdict::{DropReason, Verdict},
};

use crate::{
    TCP, UDP, VIP4,
    frames::{Flags, Spec, Transport, datagram, segment, syn},
    support::{CHOICES, Condition, Mode, Move, Stage, server},
};

/// Fifteen minutes, and more than any other time.
const MOVING_TIME: u32 = 900 * 954;

/// The slot's owner before its move, its owner since, and one that it may move to yet.
const OLD: u32 = 0;
const NEW: u32 = 1;
const NEXT: u32 = 2;

/// Eight servers; every slot stands there.
fn stage(to: Move) -> Stage {
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let stage = Stage::new().serve(Mode::Ipip, VIP4, TCP, &servers);
    stage.moving_time(MOVING_TIME).moved(to)
}

fn moving() -> Stage {
    stage(Move::Moving(NEW, OLD))
}

/// A client's socket.
fn client(port: u16) -> String {
    format!("192.0.2.7:{port}")
}

fn opening(port: u16) -> Spec {
    syn(&client(port), VIP4)
}

fn later(port: u16) -> Spec {
    segment(&client(port), VIP4)
}

fn ending(port: u16, flags: Flags) -> Spec {
    Spec {
        transport: Transport::Tcp(flags),
        ..later(port)
    }
}

/// Whom a packet goes to.
pub fn taken_by(stage: &Stage, packet: &Spec) -> Option<u32> {
    let outcome = stage.run(&packet.frame());
    if outcome.verdict == Verdict::Drop(DropReason::NoBackend) {
        return None;
    }
    let server = outcome.counted.servers.keys().next();
    Some(*server.expect("forwarded"))
}

/// Lookups, recorded flows, and those that could not be, of a packet.
fn remembered(stage: &Stage, packet: &Spec) -> (u64, u64, u64) {
    let outcome = stage.run(&packet.frame());
    outcome.counted.flows.get(&0).copied().unwrap_or_default()
}

#[test]
fn steady_slots_look_no_flow_up() {
    let stage = stage(Move::Steady(OLD));
    for packet in [opening(1), later(1), later(2)] {
        assert_eq!(remembered(&stage, &packet), (0, 0, 0));
        assert_eq!(taken_by(&stage, &packet), Some(OLD));
    }
    assert_eq!(stage.recorded(), (0, 0));
}

#[test]
fn while_a_slot_moves_new_flows_go_to_its_owner_and_old_ones_to_its_origin() {
    let stage = moving();
    assert_eq!(remembered(&stage, &opening(1)), (1, 1, 0));
    assert_eq!(stage.recorded(), (0, 1));
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    assert_eq!(stage.recorded(), (1, 0));
    assert_eq!(remembered(&stage, &later(1)), (1, 0, 0));
    assert_eq!(remembered(&stage, &later(2)), (1, 1, 0));
    assert_eq!(taken_by(&stage, &later(2)), Some(OLD));
    assert_eq!(stage.recorded(), (2, 0));
}

#[test]
fn recorded_flows_stay_over_every_further_move() {
    let stage = moving();
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    assert_eq!(taken_by(&stage, &later(2)), Some(OLD));
    let moves = [
        Move::Moving(NEXT, OLD),
        Move::Moving(OLD, NEW),
        Move::Moving(7, NEXT),
        Move::Settling(NEXT),
    ];
    let mut stage = stage;
    for to in moves {
        stage = stage.moved(to);
        assert_eq!(taken_by(&stage, &later(1)), Some(NEW), "{to:?}");
        assert_eq!(taken_by(&stage, &later(2)), Some(OLD), "{to:?}");
    }
}

#[test]
fn a_settling_slot_gives_unrecorded_flows_to_its_owner_and_records_none() {
    let stage = stage(Move::Settling(NEW));
    for packet in [opening(1), later(2)] {
        assert_eq!(remembered(&stage, &packet), (1, 0, 0));
        assert_eq!(taken_by(&stage, &packet), Some(NEW));
    }
    assert_eq!(stage.recorded(), (0, 0));
}

#[test]
fn flows_of_a_dead_origin_go_to_the_owner() {
    let stage = moving().condition(OLD, Condition::Dead);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    let stage = stage.condition(OLD, Condition::Takes);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW), "recorded there");
}

#[test]
fn a_draining_origin_keeps_its_flows() {
    let stage = moving().condition(OLD, Condition::Drains);
    assert_eq!(taken_by(&stage, &later(1)), Some(OLD));
}

#[test]
fn a_recorded_flow_whose_server_is_gone_goes_to_the_owner_and_never_to_the_origin() {
    for gone in [
        |stage: Stage| stage.condition(NEW, Condition::Dead),
        |stage: Stage| stage.replaced(NEW),
    ] {
        let stage = moving();
        assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
        assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
        let stage = gone(stage).moved(Move::Moving(NEXT, OLD));
        assert_eq!(taken_by(&stage, &later(1)), Some(NEXT));
        let stage = stage.moved(Move::Moving(7, OLD));
        assert_eq!(taken_by(&stage, &later(1)), Some(NEXT), "recorded there");
    }
}

#[test]
fn a_full_table_gives_new_flows_what_unrecorded_ones_get() {
    let stage = moving().room(0, 0);
    assert_eq!(remembered(&stage, &opening(1)), (1, 0, 1));
    for packet in [opening(1), later(1), later(2)] {
        assert_eq!(taken_by(&stage, &packet), Some(OLD));
    }
    let orphaned = stage.condition(OLD, Condition::Dead);
    assert_eq!(taken_by(&orphaned, &later(1)), Some(NEW));
    let forsaken = orphaned
        .condition(NEW, Condition::Dead)
        .moved(Move::Moving(NEW, OLD));
    assert_eq!(
        taken_by(&forsaken, &opening(1)),
        None,
        "every slot is the dead owner's"
    );
}

#[test]
fn a_flow_that_cannot_be_recorded_and_has_no_keeper_goes_to_whoever_takes_it() {
    let stage = stage(Move::Steady(OLD))
        .ring(&[0, 1, 2, 3, 4, 5, 6, 7])
        .room(0, 0);
    let [first, second, _] = CHOICES.map(|n| n as u32);
    let stage = stage.condition(first, Condition::Dead);
    assert_eq!(taken_by(&stage, &later(1)), Some(second));
}

#[test]
fn openings_fill_their_own_table_alone() {
    let stage = moving().room(8, 1);
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    for port in 2..20 {
        assert_eq!(remembered(&stage, &opening(port)), (1, 0, 1));
    }
    assert_eq!(stage.recorded(), (0, 1));
    // The one that goes on makes room.
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    assert_eq!(stage.recorded(), (1, 0));
    assert_eq!(taken_by(&stage, &opening(2)), Some(NEW));
}

#[test]
fn a_flow_that_finds_no_room_among_the_established_stays_where_it_is() {
    let stage = moving().room(0, 8);
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    // Nothing was given up, so that no slot has to wait.
    assert_eq!(remembered(&stage, &later(1)), (1, 0, 0));
    assert_eq!(stage.recorded(), (0, 1));
    // For as long as if it were established.
    stage.at(OPENING_LIFETIME + 1);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
}

#[test]
fn lifetimes_are_so_many_seconds() {
    let seconds = |ticks: u32| (f64::from(ticks) * f64::from(1 << TICK_SHIFT) / 1e9).round();
    let lifetimes = [OPENING_LIFETIME, FINISHED_LIFETIME, RESET_LIFETIME];
    assert_eq!(lifetimes.map(seconds), [60.0, 120.0, 10.0]);
}

/// A flow to the slot's new owner that ends with these flags, or has only begun. Unrecorded, its
/// packets would go to the old one.
fn after(flags: Option<Flags>) -> Stage {
    let stage = moving();
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    if let Some(flags) = flags {
        assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
        assert_eq!(taken_by(&stage, &ending(1, flags)), Some(NEW));
    }
    stage
}

#[test]
fn records_live_as_long_as_their_flows_may_be_idle() {
    for (flags, lifetime) in [
        (None, OPENING_LIFETIME),
        (Some(Flags::ACK), MOVING_TIME),
        (Some(Flags::FIN), FINISHED_LIFETIME),
        (Some(Flags::RST), RESET_LIFETIME),
        (
            Some(Flags {
                fin: true,
                ..Flags::RST
            }),
            RESET_LIFETIME,
        ),
    ] {
        let stage = after(flags);
        stage.at(lifetime - 1);
        assert_eq!(taken_by(&stage, &later(1)), Some(NEW), "{flags:?}");
        let stage = after(flags);
        stage.at(lifetime);
        assert_eq!(taken_by(&stage, &later(1)), Some(OLD), "{flags:?}");
    }
}

#[test]
fn no_record_outlives_the_moving_time() {
    for flags in [None, Some(Flags::ACK), Some(Flags::FIN), Some(Flags::RST)] {
        let stage = after(flags).moving_time(10);
        stage.at(9);
        assert_eq!(taken_by(&stage.clone(), &later(1)), Some(NEW), "{flags:?}");
        let stage = after(flags).moving_time(10);
        stage.at(10);
        assert_eq!(taken_by(&stage, &later(1)), Some(OLD), "{flags:?}");
    }
}

#[test]
fn every_packet_renews_its_flows_record() {
    let stage = after(Some(Flags::ACK));
    for now in 1..5 {
        stage.at(now * (MOVING_TIME - 1));
        assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    }
}

#[test]
fn time_may_wrap_and_differ_between_processors() {
    let stage = moving();
    stage.at(u32::MAX - 3);
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    stage.at(u32::MAX - 4);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW), "a tick earlier");
    stage.at(MOVING_TIME - 6);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW), "behind the wrap");
    stage.at(2 * MOVING_TIME);
    assert_eq!(taken_by(&stage, &later(1)), Some(OLD), "expired");
}

#[test]
fn a_reset_is_taken_back_by_what_follows_and_a_fin_is_not() {
    let stage = after(Some(Flags::RST));
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    stage.at(RESET_LIFETIME);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    let stage = after(Some(Flags::FIN));
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    stage.at(FINISHED_LIFETIME);
    assert_eq!(taken_by(&stage, &later(1)), Some(OLD));
}

#[test]
fn a_reset_of_an_opening_promotes_nothing() {
    let stage = moving();
    for port in 1..9 {
        assert_eq!(taken_by(&stage, &opening(port)), Some(NEW));
        // Twice: that it is noted already makes no difference.
        for _ in 0..2 {
            assert_eq!(taken_by(&stage, &ending(port, Flags::RST)), Some(NEW));
            assert_eq!(stage.recorded(), (0, port.into()));
        }
    }
    // It is noted where the opening is, and taken back by what follows.
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    assert_eq!(stage.recorded(), (1, 7));
    stage.at(RESET_LIFETIME);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    assert_eq!(taken_by(&stage, &later(2)), Some(OLD));
}

#[test]
fn an_opening_that_comes_again_stays_and_one_after_an_end_is_new() {
    let onwards = Move::Moving(NEXT, OLD);
    for (flags, server) in [
        (None, NEW),
        (Some(Flags::ACK), NEW),
        (Some(Flags::FIN), NEXT),
        (Some(Flags::RST), NEXT),
    ] {
        let stage = after(flags).moved(onwards);
        assert_eq!(taken_by(&stage, &opening(1)), Some(server), "{flags:?}");
        assert_eq!(taken_by(&stage, &later(1)), Some(server), "{flags:?}");
    }
}

#[test]
fn a_draining_server_keeps_its_flows_and_gets_no_new_ones() {
    let stage = after(Some(Flags::ACK)).condition(NEW, Condition::Drains);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    let stage = stage.moved(Move::Moving(NEXT, OLD));
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    // The client gave up and tries again.
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEXT));
    assert_eq!(taken_by(&stage, &later(1)), Some(NEXT));
}

#[test]
fn a_steady_slot_of_a_draining_owner_keeps_old_flows_and_records_new_ones() {
    let [first, second, _] = CHOICES.map(|n| n as u32);
    let ring = [0, 1, 2, 3, 4, 5, 6, 7];
    let stage = stage(Move::Steady(OLD)).ring(&ring);
    let stage = stage.condition(first, Condition::Drains);
    assert_eq!(remembered(&stage, &later(1)), (1, 0, 0));
    assert_eq!(taken_by(&stage, &later(1)), Some(first));
    assert_eq!(remembered(&stage, &opening(2)), (1, 1, 0));
    assert_eq!(taken_by(&stage, &later(2)), Some(second));
}

#[test]
fn without_a_moving_time_nothing_is_looked_up_or_recorded() {
    let stage = stage(Move::Steady(OLD))
        .ring(&[0, 1, 2, 3, 4, 5, 6, 7])
        .moving_time(0);
    let [first, second, _] = CHOICES.map(|n| n as u32);
    for condition in [Condition::Drains, Condition::Dead] {
        let stage = stage.clone().condition(first, condition);
        assert_eq!(remembered(&stage, &later(1)), (0, 0, 0));
        assert_eq!(taken_by(&stage, &later(1)), Some(second));
        assert_eq!(stage.recorded(), (0, 0));
    }
}

#[test]
fn a_service_that_moves_as_a_whole_asks_its_previous_ring_for_old_flows() {
    let stage = stage(Move::Steady(NEW)).moving_from(&[OLD; 8]);
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
    assert_eq!(taken_by(&stage, &later(2)), Some(OLD));
    let stage = stage.settling(NEW);
    assert_eq!(taken_by(&stage, &later(2)), Some(OLD), "recorded");
    assert_eq!(taken_by(&stage, &later(3)), Some(NEW));
    assert_eq!(remembered(&stage, &later(3)), (1, 0, 0));
}

#[test]
fn a_whole_move_from_nowhere_gives_old_flows_to_the_owner() {
    let stage = stage(Move::Steady(NEW)).moving_from(&[]);
    assert_eq!(taken_by(&stage, &later(1)), Some(NEW));
}

#[test]
fn a_whole_move_amid_a_slots_move_keeps_the_slots_origin() {
    let stage = stage(Move::Steady(NEXT)).moving_from_move(NEW, OLD);
    assert_eq!(taken_by(&stage, &later(1)), Some(OLD));
}

#[test]
fn the_previous_ring_is_asked_by_its_own_hash_and_size() {
    let every: Vec<u32> = (0..8).collect();
    for fields in [service_flag::BY_SOURCE, service_flag::BY_THREE_TUPLE] {
        let stage = stage(Move::Steady(NEW)).hashing();
        let stage = stage.moving_from(&every).previously(fields);
        let first = taken_by(&stage, &later(1));
        assert!((2..64).all(|port| taken_by(&stage, &later(port)) == first));
    }
    // The other way round: it is the ring in force that leaves ports aside.
    let stage = stage(Move::Steady(NEW)).hashing().by_three_tuple();
    let stage = stage.moving_from(&every);
    let first = taken_by(&stage, &later(1));
    assert!((2..64).any(|port| taken_by(&stage, &later(port)) != first));
}

#[test]
fn a_client_hashed_by_3_tuple_keeps_its_server_for_each_vip_and_protocol_whatever_its_ports() {
    let every: Vec<u32> = (0..8).collect();
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let places = |vip: &str, protocol: u8, frame: &dyn Fn(&str) -> Spec| -> Vec<Option<u32>> {
        let stage = Stage::new()
            .serve(Mode::Ipip, vip, protocol, &servers)
            .hashing()
            .ring(&every)
            .by_three_tuple();
        let of = |client: u8| {
            let at = |port: u16| taken_by(&stage, &frame(&format!("192.0.2.{client}:{port}")));
            let first = at(1);
            assert!((2..32).all(|port| at(port) == first), "{vip} {client}");
            first
        };
        (0..64).map(of).collect()
    };
    let (one, other) = (VIP4, "10.0.0.2:443");
    let tcp = places(one, TCP, &|client| syn(client, one));
    let same_vip = places("10.0.0.1:443", TCP, &|client| syn(client, "10.0.0.1:443"));
    assert_eq!(tcp, same_vip, "the port of the VIP does not count either");
    assert!(tcp.iter().collect::<std::collections::BTreeSet<_>>().len() == 8);
    for differs in [
        places(other, TCP, &|client| syn(client, other)),
        places(one, UDP, &|client| datagram(client, one)),
    ] {
        let moved = tcp.iter().zip(&differs).filter(|(a, b)| a != b).count();
        assert!((40..=64).contains(&moved), "{moved} of 64");
    }
}

#[test]
fn clients_hashed_by_source_keep_their_server_whatever_their_ports() {
    let every: Vec<u32> = (0..8).collect();
    let stage = stage(Move::Steady(OLD)).hashing().ring(&every).by_source();
    let first = taken_by(&stage, &opening(1));
    assert!((2..64).all(|port| taken_by(&stage, &opening(port)) == first));
    let others: std::collections::BTreeSet<_> = (0..64)
        .map(|n| taken_by(&stage, &syn(&format!("192.0.2.{n}:1"), VIP4)))
        .collect();
    assert_eq!(others.len(), 8);
}

#[test]
fn datagrams_of_unrecorded_flows_are_old_ones() {
    let servers: Vec<_> = (1..=3).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, UDP, &servers)
        .moving_time(MOVING_TIME)
        .moved(Move::Moving(NEW, OLD));
    assert_eq!(taken_by(&stage, &datagram(&client(1), VIP4)), Some(OLD));
    let stage = stage.moved(Move::Settling(NEW));
    assert_eq!(taken_by(&stage, &datagram(&client(1), VIP4)), Some(OLD));
    assert_eq!(taken_by(&stage, &datagram(&client(2), VIP4)), Some(NEW));
}

#[test]
fn flows_of_two_services_are_recorded_apart() {
    let other = "10.0.0.2:80";
    let stage = moving().serve(Mode::Ipip, other, TCP, &[server("10.9.0.1:80")]);
    let stage = stage.moving_time(MOVING_TIME).recording_all();
    assert_eq!(taken_by(&stage, &opening(1)), Some(NEW));
    assert_eq!(taken_by(&stage, &syn(&client(1), other)), Some(8));
    assert_eq!(stage.recorded(), (0, 2));
}

#[test]
fn flows_in_progress_are_counted_from_their_record_to_their_end() {
    for flags in [Flags::FIN, Flags::RST] {
        let stage = moving().recording_all();
        for port in 1..=3 {
            assert_eq!(taken_by(&stage, &opening(port)), Some(NEW));
            taken_by(&stage, &later(port));
        }
        assert_eq!(stage.in_progress(NEW), 3);
        for _ in 0..2 {
            taken_by(&stage, &ending(1, flags));
            assert_eq!(stage.in_progress(NEW), 2, "{flags:?} counts once");
        }
        // The client comes back by the same port.
        taken_by(&stage, &opening(1));
        assert_eq!(stage.in_progress(NEW), 3);
        // One that has expired is no more in progress; the packet that tells begins another.
        stage.at(MOVING_TIME);
        taken_by(&stage, &later(2));
        assert_eq!((stage.in_progress(NEW), stage.in_progress(OLD)), (2, 1));
    }
}

#[test]
fn a_service_that_records_all_keeps_its_flows_without_a_move() {
    let stage = stage(Move::Steady(OLD)).recording_all();
    assert_eq!(remembered(&stage, &opening(1)), (1, 1, 0));
    assert_eq!(remembered(&stage, &later(2)), (1, 1, 0));
    let stage = stage.moved(Move::Steady(NEW));
    assert_eq!(taken_by(&stage, &later(1)), Some(OLD));
    assert_eq!(taken_by(&stage, &later(2)), Some(OLD));
    assert_eq!(taken_by(&stage, &later(3)), Some(NEW));
}
