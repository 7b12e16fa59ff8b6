//! Which server a new flow gets from each scheduler. Every flow is recorded, so that only openings ask.

use std::collections::BTreeMap;

use crate::{
    TCP, UDP, VIP4,
    frames::{Flags, Spec, Transport, datagram, segment, syn},
    support::{CHOICES, Condition, Mode, Move, Scheduler, Stage, server},
    tracking::taken_by,
};

/// More than any test lasts.
const MOVING_TIME: u32 = 1_000_000;
/// The owner of every slot, whom no sequence below names.
const OWNER: u32 = 7;

fn stage_of(protocol: u8, servers: u32, scheduler: Scheduler<'_>) -> Stage {
    let address = |n| format!("10.1.{}.{}:80", n >> 8, n & 0xff);
    let servers: Vec<_> = (0..servers).map(|n| server(&address(n))).collect();
    Stage::new()
        .serve(Mode::Ipip, VIP4, protocol, &servers)
        .moving_time(MOVING_TIME)
        .recording_all()
        .moved(Move::Steady(OWNER))
        .scheduled(scheduler)
}

fn stage(scheduler: Scheduler<'_>) -> Stage {
    stage_of(TCP, 8, scheduler)
}

fn opening(port: u32) -> Spec {
    let [_, _, high, low] = port.to_be_bytes();
    syn(&format!("192.0.{high}.{low}:1234"), VIP4)
}

/// Whom so many new flows go to, in order.
fn order(stage: &Stage, flows: u32) -> Vec<u32> {
    (0..flows)
        .map(|port| taken_by(stage, &opening(port)).expect("a server"))
        .collect()
}

/// How many of so many new flows each server gets.
fn shares(stage: &Stage, flows: u32) -> BTreeMap<u32, u32> {
    let mut shares = BTreeMap::new();
    for server in order(stage, flows) {
        *shares.entry(server).or_default() += 1;
    }
    shares
}

#[test]
fn turns_follow_the_sequence_over_and_over() {
    let sequence = [0, 1, 0, 2, 3];
    let order = order(&stage(Scheduler::Turns(&sequence)), 20);
    let from = |start: usize| sequence.iter().cycle().skip(start).take(20).copied();
    assert!(
        (0..5).any(|start| from(start).eq(order.iter().copied())),
        "{order:?}"
    );
}

#[test]
fn turns_pass_over_servers_that_take_no_more() {
    let stage = stage(Scheduler::Turns(&[0, 1, 2, 3]))
        .condition(1, Condition::Dead)
        .condition(2, Condition::Drains)
        .weigh(3, 1, 5);
    assert_eq!(shares(&stage, 20), [(0, 15), (3, 5)].into());
}

#[test]
fn after_too_many_turns_the_ring_decides() {
    for scheduler in [Scheduler::Turns(&[1; 9]), Scheduler::TwoChoices(&[1; 9])] {
        let stage = stage(scheduler).condition(1, Condition::Dead);
        assert_eq!(order(&stage, 3), [OWNER; 3], "{scheduler:?}");
    }
}

#[test]
fn without_a_sequence_the_ring_decides() {
    for scheduler in [
        Scheduler::Turns(&[]),
        Scheduler::TwoChoices(&[]),
        Scheduler::Unknown,
    ] {
        assert_eq!(order(&stage(scheduler), 3), [OWNER; 3], "{scheduler:?}");
    }
}

#[test]
fn where_nobody_takes_flows_none_is_given() {
    for scheduler in [
        Scheduler::Turns(&[0, 1]),
        Scheduler::Least,
        Scheduler::TwoChoices(&[0, 1]),
        Scheduler::Unknown,
    ] {
        let stage = (0..8).fold(stage(scheduler), |stage, n| {
            stage.condition(n, Condition::Drains)
        });
        assert_eq!(taken_by(&stage, &opening(1)), None, "{scheduler:?}");
    }
}

#[test]
fn a_full_owners_new_flows_go_to_their_next_choices() {
    let [first, second, third] = CHOICES.map(|n| n as u32);
    let stage = stage(Scheduler::Unknown)
        .ring(&[0, 1, 2, 3, 4, 5, 6, 7])
        .weigh(first, 1, 2)
        .weigh(second, 1, 1);
    assert_eq!(order(&stage, 5), [first, first, second, third, third]);
}

/// No packet of theirs says that it begins a flow.
#[test]
fn datagrams_keep_to_limits_also_where_the_ring_alone_chooses() {
    let [first, second, third] = CHOICES.map(|n| n as u32);
    let servers: Vec<_> = (0..8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, UDP, &servers)
        .moving_time(MOVING_TIME)
        .recording_all()
        .ring(&[0, 1, 2, 3, 4, 5, 6, 7])
        .weigh(first, 1, 2)
        .weigh(second, 1, 1);
    let of_flow = |n| taken_by(&stage, &datagram(&format!("192.0.2.{n}:1234"), VIP4));
    let taken: Vec<_> = (0..5).map(of_flow).collect();
    let wanted = [first, first, second, third, third].map(Some);
    assert_eq!(taken, wanted);
    // Those that are recorded are within what is allowed.
    assert_eq!((0..5).map(of_flow).collect::<Vec<_>>(), wanted);
}

#[test]
fn whoever_takes_one_more_is_found_however_many_are_full() {
    // Of pools that are compared at once, and window by window.
    for (servers, free) in [(8, 5), (64, 63), (65, 64), (150, 140), (200, 0)] {
        let every: Vec<u32> = (0..servers).collect();
        for scheduler in [
            Scheduler::Turns(&every),
            Scheduler::TwoChoices(&every),
            Scheduler::Least,
            Scheduler::Unknown,
        ] {
            let full = (0..servers).filter(|&server| server != free);
            let stage = stage_of(TCP, servers, scheduler).hashing();
            let stage = full.fold(stage, |stage, server| {
                stage.weigh(server, 1, 1).busy(server, 1)
            });
            assert_eq!(order(&stage, 40), [free; 40], "{servers} {scheduler:?}");
        }
    }
}

#[test]
fn a_flow_that_a_dead_server_loses_is_counted_where_it_goes_and_there_no_more() {
    let stage = stage_of(TCP, 2, Scheduler::Least)
        .moved(Move::Steady(0))
        .weigh(0, 100, 0);
    let later = Spec {
        transport: Transport::Tcp(Flags::ACK),
        ..opening(1)
    };
    assert_eq!(taken_by(&stage, &opening(1)), Some(0));
    assert_eq!(taken_by(&stage, &later), Some(0));
    assert_eq!((stage.in_progress(0), stage.in_progress(1)), (1, 0));
    let stage = stage.condition(0, Condition::Dead);
    assert_eq!(taken_by(&stage, &later), Some(1));
    assert_eq!((stage.in_progress(0), stage.in_progress(1)), (0, 1));
    assert_eq!(taken_by(&stage, &ended(1)), Some(1));
    assert_eq!((stage.in_progress(0), stage.in_progress(1)), (0, 0));
}

#[test]
fn flows_from_before_their_service_counted_are_counted_once_and_so_is_one_after_a_forged_reset() {
    let stage = stage_of(TCP, 2, Scheduler::Turns(&[0]))
        .moved(Move::Steady(0))
        .uncounted();
    let later = Spec {
        transport: Transport::Tcp(Flags::ACK),
        ..opening(1)
    };
    for packet in [opening(1), later.clone()] {
        assert_eq!(taken_by(&stage, &packet), Some(0));
        assert_eq!(stage.in_progress(0), 0);
    }
    let stage = stage.recording_all();
    let counts = [
        (later.clone(), 1),
        (later.clone(), 1),
        (ended(1), 0),
        (later, 1),
        (ended(1), 0),
    ];
    for (number, (packet, count)) in counts.into_iter().enumerate() {
        assert_eq!(taken_by(&stage, &packet), Some(0));
        assert_eq!(stage.in_progress(0), count, "after packet {number}");
    }
}

#[test]
fn an_end_without_a_beginning_is_not_counted() {
    let stage = stage_of(TCP, 2, Scheduler::Least).moved(Move::Steady(0));
    let server = taken_by(&stage, &ended(1)).unwrap();
    assert_eq!(stage.in_progress(server), 0);
}

#[test]
fn the_fewest_flows_for_its_weight_get_a_server_the_next() {
    let stage = stage_of(TCP, 4, Scheduler::Least)
        .moved(Move::Steady(0))
        .weigh(1, 2, 0)
        .weigh(2, 4, 0);
    assert_eq!(
        shares(&stage, 40),
        [(0, 5), (1, 10), (2, 20), (3, 5)].into()
    );
}

#[test]
fn the_fewest_flows_count_only_among_servers_that_take_more() {
    let stage = stage_of(TCP, 4, Scheduler::Least)
        .moved(Move::Steady(0))
        .condition(0, Condition::Drains)
        .condition(1, Condition::Dead)
        .weigh(2, 1, 3);
    assert_eq!(shares(&stage, 20), [(2, 3), (3, 17)].into());
}

fn ended(port: u32) -> Spec {
    Spec {
        transport: Transport::Tcp(Flags::RST),
        ..opening(port)
    }
}

#[test]
fn a_flow_that_ends_makes_room_for_another() {
    let stage = stage_of(TCP, 2, Scheduler::Least).moved(Move::Steady(0));
    let stage = stage.busy(0, 5).busy(1, 9);
    assert_eq!(order(&stage, 3), [0, 0, 0]);
    assert_eq!(stage.in_progress(0), 8);
    for port in 0..3 {
        assert_eq!(taken_by(&stage, &ended(port)), Some(0));
    }
    assert_eq!((stage.in_progress(0), stage.in_progress(1)), (5, 9));
}

#[test]
fn idle_servers_share_out_flows_that_end_at_once() {
    let stage = stage(Scheduler::Least);
    let mut shares = BTreeMap::new();
    for port in 0..16 {
        let server = taken_by(&stage, &opening(port)).unwrap();
        assert_eq!(taken_by(&stage, &ended(port)), Some(server));
        assert_eq!(stage.in_progress(server), 0);
        *shares.entry(server).or_default() += 1;
    }
    assert_eq!(shares, (0..8).map(|server| (server, 2)).collect());
}

#[test]
fn idle_servers_of_a_pool_compared_whole_all_get_flows() {
    // As many as are compared at once.
    let stage = stage_of(TCP, 64, Scheduler::Least);
    let mut seen = std::collections::BTreeSet::new();
    for port in 0..64 {
        seen.insert(taken_by(&stage, &opening(port)));
        taken_by(&stage, &ended(port));
    }
    assert_eq!(seen.len(), 64);
}

#[test]
fn of_idle_servers_the_one_of_most_weight_is_first() {
    let stage = stage(Scheduler::Least).weigh(6, 4, 0);
    assert_eq!(order(&stage, 2), [6, 6]);
}

#[test]
fn pools_larger_than_are_compared_at_once_are_shared_evenly() {
    let stage = stage_of(TCP, 150, Scheduler::Least);
    let shares = shares(&stage, 1_500);
    assert_eq!(shares.len(), 150);
    assert!(shares.values().all(|n| (8..=12).contains(n)), "{shares:?}");
}

#[test]
fn the_better_of_two_is_chosen_by_flows_for_weight() {
    let every: Vec<u32> = (0..8).collect();
    let loaded = || {
        let stage = stage(Scheduler::TwoChoices(&every)).hashing();
        (0..8).fold(stage, |stage, server| stage.busy(server, 1_000))
    };
    // Both draws are the busy one for a flow in 64: 16, with a standard deviation of 4.
    let got = shares(&loaded().busy(3, 100_000), 1_024)[&3];
    assert!((1..=36).contains(&got), "{got} of 1,024");
    // It is drawn for 15 flows in 64: 240, with a standard deviation of 14.
    let got = shares(&loaded().busy(3, 100_000).weigh(3, 1_000, 0), 1_024)[&3];
    assert!((170..=310).contains(&got), "{got} of 1,024");
}

#[test]
fn the_two_are_other_choices_than_the_rings() {
    // Places that the hash of every flow here draws fourth and fifth, computed apart.
    let mut sequence = [2; 32];
    (sequence[28], sequence[30]) = (0, 1);
    let stage = stage(Scheduler::TwoChoices(&sequence))
        .busy(0, 10)
        .busy(1, 10);
    assert_eq!(order(&stage, 4), [0, 1, 0, 1]);
}

#[test]
fn a_draw_of_a_dead_server_leaves_the_other() {
    let every: Vec<u32> = (0..8).collect();
    let stage = stage(Scheduler::TwoChoices(&every))
        .hashing()
        .condition(3, Condition::Dead);
    let shares = shares(&stage, 512);
    assert_eq!(shares.len(), 7);
    assert!(
        shares.values().all(|n| (40..=120).contains(n)),
        "{shares:?}"
    );
}

#[test]
fn later_packets_of_unknown_flows_are_no_new_ones() {
    let stage = stage(Scheduler::Turns(&[0, 1, 2]));
    for port in 1..4 {
        let packet = segment(&format!("192.0.2.7:{port}"), VIP4);
        assert_eq!(taken_by(&stage, &packet), Some(OWNER));
    }
}

#[test]
fn datagrams_of_unrecorded_flows_are_scheduled_unless_their_slot_moves() {
    let stage = stage_of(UDP, 8, Scheduler::Turns(&[3]));
    let packet = |port| datagram(&format!("192.0.2.7:{port}"), VIP4);
    assert_eq!(taken_by(&stage, &packet(1)), Some(3));
    let stage = stage.moved(Move::Moving(OWNER, 2));
    assert_eq!(taken_by(&stage, &packet(1)), Some(3), "recorded");
    assert_eq!(taken_by(&stage, &packet(2)), Some(2));
    let stage = stage.moved(Move::Settling(OWNER));
    assert_eq!(taken_by(&stage, &packet(3)), Some(3));
}
