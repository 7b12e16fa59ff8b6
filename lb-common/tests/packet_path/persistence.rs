//! A client's new flows go where its last new flow went, for as long as is set.

use lb_common::track::{FINISHED_LIFETIME, OPENING_LIFETIME};

use crate::{
    TCP, UDP, VIP4, VIP6,
    frames::{Flags, Spec, Transport, datagram, segment, syn},
    support::{Condition, Mode, Move, Scheduler, Stage, server},
    tracking::taken_by,
};

/// Longer than opening flows are kept, and shorter than flows may be idle.
const PERSISTENCE: u32 = 300_000;
const MOVING_TIME: u32 = 1_000_000;
/// The owner of every slot, whose turn never comes.
const OWNER: u32 = 7;
const TURNS: Scheduler<'_> = Scheduler::Turns(&[0, 1, 2, 3]);

fn stage_at(vip: &str, protocol: u8) -> Stage {
    let servers: Vec<_> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    Stage::new()
        .serve(Mode::Ipip, vip, protocol, &servers)
        .moving_time(MOVING_TIME)
        .recording_all()
        .moved(Move::Steady(OWNER))
        .scheduled(TURNS)
        .persisting(PERSISTENCE, 128)
}

fn stage() -> Stage {
    stage_at(VIP4, TCP)
}

fn socket(host: u8, port: u16) -> String {
    format!("192.0.2.{host}:{port}")
}

fn opening(host: u8, port: u16) -> Spec {
    syn(&socket(host, port), VIP4)
}

fn later(host: u8, port: u16) -> Spec {
    segment(&socket(host, port), VIP4)
}

/// Whom a connection goes to that is opened and used.
fn connect(stage: &Stage, host: u8, port: u16) -> u32 {
    let server = taken_by(stage, &opening(host, port)).expect("a server");
    assert_eq!(taken_by(stage, &later(host, port)), Some(server));
    server
}

#[test]
fn a_clients_connections_go_to_one_server_and_other_clients_to_others() {
    let stage = stage();
    let first = connect(&stage, 1, 1);
    let second = connect(&stage, 2, 1);
    assert_ne!(first, second);
    for port in 2..50 {
        assert_eq!(connect(&stage, 1, port), first);
        assert_eq!(connect(&stage, 2, port), second);
    }
    assert_eq!(stage.clients(), (2, 0));
}

#[test]
fn connections_that_are_opened_at_once_go_to_one_server() {
    let stage = stage();
    let first = taken_by(&stage, &opening(1, 1));
    assert!((2..9).all(|port| taken_by(&stage, &opening(1, port)) == first));
    assert_eq!(stage.clients(), (0, 1));
}

#[test]
fn without_persistence_nobody_is_remembered() {
    let stage = stage().persisting(0, 128);
    let first = connect(&stage, 1, 1);
    assert_ne!(connect(&stage, 1, 2), first);
    assert_eq!(stage.clients(), (0, 0));
}

#[test]
fn it_lasts_from_the_last_new_connection_on_and_no_longer() {
    let stage = stage();
    let first = connect(&stage, 1, 1);
    stage.at(PERSISTENCE - 1);
    assert_eq!(connect(&stage, 1, 2), first);
    stage.at(2 * PERSISTENCE - 2);
    // What is sent over connections does not count.
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(first));
    assert_eq!(connect(&stage, 1, 3), first);
    stage.at(3 * PERSISTENCE - 2);
    assert_ne!(connect(&stage, 1, 4), first);
}

#[test]
fn where_it_has_ended_a_longer_one_does_not_bring_it_back() {
    let stage = stage();
    let first = connect(&stage, 1, 1);
    stage.at(PERSISTENCE);
    let second = taken_by(&stage, &opening(1, 2));
    assert_ne!(second, Some(first));
    let stage = stage.persisting(10 * PERSISTENCE, 128);
    assert_eq!(taken_by(&stage, &opening(1, 3)), second);
}

#[test]
fn a_client_that_only_opens_is_remembered_as_long_as_what_it_opens() {
    let stage = stage();
    let first = taken_by(&stage, &opening(1, 1));
    stage.at(OPENING_LIFETIME - 1);
    assert_eq!(taken_by(&stage, &opening(1, 2)), first);
    stage.at(2 * OPENING_LIFETIME - 1);
    assert_ne!(taken_by(&stage, &opening(1, 3)), first);
}

#[test]
fn a_server_that_takes_no_more_is_replaced_and_the_other_remembered() {
    let conditions: [fn(Stage, u32) -> Stage; 4] = [
        |stage, first| stage.condition(first, Condition::Drains),
        |stage, first| stage.condition(first, Condition::Dead),
        |stage, first| stage.weigh(first, 1, 1),
        |stage, first| stage.replaced(first),
    ];
    for (n, condition) in conditions.iter().enumerate() {
        let stage = stage();
        let first = connect(&stage, 1, 1);
        let stage = condition(stage, first);
        let second = taken_by(&stage, &opening(1, 2)).expect("a server");
        assert_ne!(second, first, "{n}");
        assert_eq!(connect(&stage, 1, 3), second, "{n}");
        let stage = stage.condition(first, Condition::Takes).weigh(first, 1, 0);
        assert_eq!(connect(&stage, 1, 4), second, "{n}");
        assert_eq!(stage.clients(), (1, 0), "{n}");
    }
}

#[test]
fn established_connections_stay_where_their_client_was() {
    let stage = stage();
    let first = connect(&stage, 1, 1);
    let stage = stage.condition(first, Condition::Drains);
    assert_ne!(connect(&stage, 1, 2), first);
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(first));
}

#[test]
fn a_dead_servers_connections_go_where_its_clients_are_now() {
    let stage = stage();
    let first = connect(&stage, 1, 1);
    let stage = stage.condition(first, Condition::Dead);
    let second = connect(&stage, 1, 2);
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(second));
    // The other way round too.
    let third = connect(&stage, 2, 1);
    let stage = stage.condition(third, Condition::Dead);
    let fourth = taken_by(&stage, &later(2, 1)).expect("a server");
    assert_eq!(connect(&stage, 2, 2), fourth);
}

#[test]
fn openings_alone_fill_no_table_but_that_of_half_open_flows() {
    let stage = stage().room(4, 6);
    let known = connect(&stage, 1, 1);
    let mut forgotten = 0;
    for host in 10..50 {
        forgotten += stage.run(&opening(host, 1).frame()).counted.clients;
    }
    assert_eq!(stage.recorded(), (2, 6));
    assert_eq!(stage.clients(), (1, 3));
    // Only those whose flow found room are tried.
    assert_eq!(forgotten, 0);
    let stage = stage.room(4, 7);
    forgotten += stage.run(&opening(50, 1).frame()).counted.clients;
    assert_eq!(forgotten, 1);
    // Who was known before the flood is still, as far as its flow finds room.
    assert_eq!(taken_by(&stage.room(4, 8), &opening(1, 2)), Some(known));
}

#[test]
fn a_reset_of_an_opening_establishes_no_client() {
    let stage = stage();
    let first = taken_by(&stage, &opening(1, 1));
    let reset = Spec {
        transport: Transport::Tcp(Flags::RST),
        ..later(1, 1)
    };
    assert_eq!(taken_by(&stage, &reset), first);
    assert_eq!(stage.clients(), (0, 1));
}

/// The record of what ended is among the established ones, where nothing is promoted any more.
#[test]
fn a_connection_over_an_ended_one_establishes_its_client_also_after_a_forged_reset() {
    let packet = |flags| Spec {
        transport: Transport::Tcp(flags),
        ..later(1, 1)
    };
    // So that the client is forgotten before its connection.
    let persistence = FINISHED_LIFETIME - 1;
    let stage = stage().persisting(persistence, 128);
    let first = connect(&stage, 1, 1);
    assert_eq!(taken_by(&stage, &packet(Flags::FIN)), Some(first));
    stage.at(persistence);
    let second = taken_by(&stage, &opening(1, 1)).expect("a server");
    assert_ne!(second, first);
    assert_eq!(taken_by(&stage, &packet(Flags::RST)), Some(second));
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(second));
    stage.at(persistence + OPENING_LIFETIME + 1);
    assert_eq!(taken_by(&stage, &opening(1, 2)), Some(second));
}

#[test]
fn a_connection_that_is_established_late_leaves_its_client_where_a_newer_one_went() {
    let stage = stage();
    let first = taken_by(&stage, &opening(1, 1)).expect("a server");
    let stage = stage.condition(first, Condition::Drains);
    let second = taken_by(&stage, &opening(1, 2)).expect("a server");
    assert_ne!(second, first);
    let stage = stage.condition(first, Condition::Takes);
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(first));
    assert_eq!(stage.clients(), (1, 0));
    assert_eq!(taken_by(&stage, &opening(1, 3)), Some(second));
}

#[test]
fn a_choice_whose_client_cannot_be_remembered_stands() {
    let stage = stage().room(1, 1);
    let first = taken_by(&stage, &opening(1, 1)).expect("a server");
    assert_ne!(first, OWNER);
    // The flow takes the last place among the established, and its client finds none.
    let outcome = stage.run(&later(1, 1).frame());
    assert_eq!(outcome.counted.clients, 1);
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(first));
    assert_eq!(stage.recorded(), (1, 0));
    assert_eq!(stage.clients(), (0, 0));
}

#[test]
fn a_client_whose_opening_was_not_remembered_is_once_it_is_established() {
    let stage = stage().room(9, 1);
    let first = taken_by(&stage, &opening(1, 1)).expect("a server");
    assert_eq!(stage.clients(), (0, 0));
    assert_eq!(taken_by(&stage, &later(1, 1)), Some(first));
    assert_eq!(stage.clients(), (1, 0));
    assert_eq!(taken_by(&stage, &opening(1, 2)), Some(first));
}

#[test]
fn a_prefix_makes_one_client_of_many() {
    let of = |prefix: u8, one: &str, other: &str| {
        let stage = stage().persisting(PERSISTENCE, 96 + prefix);
        let first = taken_by(&stage, &syn(one, VIP4));
        taken_by(&stage, &syn(other, VIP4)) == first
    };
    assert!(of(24, "192.0.2.1:1", "192.0.2.254:1"));
    assert!(!of(24, "192.0.2.1:1", "192.0.3.1:1"));
    assert!(of(31, "192.0.2.2:1", "192.0.2.3:1"));
    assert!(!of(32, "192.0.2.2:1", "192.0.2.3:1"));
    assert!(of(1, "128.0.0.1:1", "255.0.0.1:1"));
    let of = |prefix: u8, one: &str, other: &str| {
        let stage = stage_at(VIP6, TCP).persisting(PERSISTENCE, prefix);
        let first = taken_by(&stage, &syn(one, VIP6));
        taken_by(&stage, &syn(other, VIP6)) == first
    };
    assert!(of(64, "[2001:db8::9]:1", "[2001:db8::ffff:0:0:2]:1"));
    assert!(!of(64, "[2001:db8::9]:1", "[2001:db8:0:1::1]:1"));
    assert!(of(127, "[2001:db8::2]:1", "[2001:db8::3]:1"));
    assert!(!of(128, "[2001:db8::2]:1", "[2001:db8::3]:1"));
    assert!(of(32, "[2001:db8::2]:1", "[2001:db8:1::3]:1"));
    assert!(!of(33, "[2001:db8::2]:1", "[2001:db8:8000::3]:1"));
}

#[test]
fn the_flows_of_udp_are_new_where_they_are_not_recorded_and_persist_from_the_first_packet() {
    for scheduler in [TURNS, Scheduler::Unknown] {
        let stage = stage_at(VIP4, UDP).scheduled(scheduler);
        let send = |host, port| taken_by(&stage, &datagram(&socket(host, port), VIP4));
        let first = send(1, 1);
        stage.at(OPENING_LIFETIME + 1);
        assert!((2..9).all(|port| send(1, port) == first));
        assert_eq!(stage.clients(), (0, 1));
        assert_eq!(send(1, 2), first);
        assert_eq!(stage.clients(), (1, 0));
        stage.at(OPENING_LIFETIME + PERSISTENCE);
        assert_eq!(send(1, 9), first);
    }
}

#[test]
fn a_ring_that_moves_takes_no_client_along() {
    for protocol in [TCP, UDP] {
        let stage = stage_at(VIP4, protocol).scheduled(Scheduler::Unknown);
        let packet = |port| match protocol {
            TCP => opening(1, port),
            _ => datagram(&socket(1, port), VIP4),
        };
        assert_eq!(taken_by(&stage, &packet(1)), Some(OWNER));
        let stage = stage.moved(Move::Moving(2, OWNER));
        assert_eq!(taken_by(&stage, &packet(2)), Some(OWNER), "{protocol}");
        let stage = stage.moved(Move::Moving(3, 2));
        assert_eq!(taken_by(&stage, &packet(3)), Some(OWNER), "{protocol}");
        let stage = stage.moved(Move::Settling(3));
        assert_eq!(taken_by(&stage, &packet(4)), Some(OWNER), "{protocol}");
    }
}

#[test]
fn udp_flows_that_may_be_older_than_the_setting_stay_with_the_previous_ring() {
    let stage = stage_at(VIP4, UDP).moving_from(&[5; 8]);
    let flow = datagram(&socket(1, 1), VIP4);
    assert_eq!(taken_by(&stage, &flow), Some(5));
    assert_eq!(stage.clients(), (0, 0));
}
