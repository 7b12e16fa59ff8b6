//! QUIC services: a connection id that names a server leads there, whatever the client's address, and
//! everything else is steered as a flow, of which Initials are the first packets.

use std::collections::BTreeMap;

use crate::{
    CLIENT4, CLIENT6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Spec, datagram, segment},
    support::{Condition, Mode, Move, Scheduler, Stage, server},
    tracking::taken_by,
};

const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;
/// A version that nobody knows.
const GREASE: u32 = 0x1a2a_3a4a;

/// Bits of a long header's first octet: an Initial, 0-RTT and Handshake of version 1.
const INITIAL: u8 = 0xc3;
const ZERO_RTT: u8 = 0xd3;
const HANDSHAKE: u8 = 0xe3;
/// An Initial of version 2.
const INITIAL_2: u8 = 0xd3;

/// Fifteen minutes, and more than any other time.
const MOVING_TIME: u32 = 900 * 954;
const OLD: u32 = 0;
const NEW: u32 = 1;
/// Whom connection ids name: no slot does.
const NAMED: u32 = 5;

/// Whom a connection id of configuration 2, two bytes of server id and five of nonce names.
fn id(server_id: [u8; 2]) -> Vec<u8> {
    let [first, second] = server_id;
    vec![0x47, first, second, 9, 8, 7, 6, 5]
}

fn named() -> Vec<u8> {
    id([0x0a, 0x0b])
}

/// What a client draws for itself.
fn drawn() -> Vec<u8> {
    vec![0xe1, 0x0a, 0x0b, 9, 8, 7, 6, 5]
}

/// A service of eight servers on a ring that does not name the server whose id is 0a0b.
fn stage(mode: Mode, vip: &str, servers: &str) -> Stage {
    let servers: Vec<_> = (1..=8)
        .map(|n| server(&servers.replace('N', &n.to_string())))
        .collect();
    Stage::new()
        .serve(mode, vip, UDP, &servers)
        .moving_time(MOVING_TIME)
        .moved(Move::Steady(OLD))
        .quic(2, 5)
        .identified(NAMED, 2, &[0x0a, 0x0b])
}

fn steady() -> Stage {
    stage(Mode::Ipip, VIP4, "10.1.0.N:443")
}

fn moving() -> Stage {
    steady().moved(Move::Moving(NEW, OLD))
}

fn with(from: &str, to: &str, payload: Vec<u8>) -> Spec {
    Spec {
        payload,
        ..datagram(from, to)
    }
}

/// A long header of a version, and more.
fn long_bytes(first: u8, version: u32, id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    bytes.extend(version.to_be_bytes());
    bytes.push(id.len() as u8);
    bytes.extend(id);
    bytes.extend([0; 40]);
    bytes
}

fn long(port: u16, first: u8, version: u32, id: &[u8]) -> Spec {
    let client = format!("192.0.2.7:{port}");
    with(&client, VIP4, long_bytes(first, version, id))
}

fn short_bytes(id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x41];
    bytes.extend(id);
    bytes.extend([0; 20]);
    bytes
}

fn short(port: u16, id: &[u8]) -> Spec {
    with(&format!("192.0.2.7:{port}"), VIP4, short_bytes(id))
}

/// What begins a connection.
pub fn initial(from: &str, to: &str) -> Spec {
    with(from, to, long_bytes(INITIAL, V1, &drawn()))
}

/// What belongs to one of the server whose id is 0a0b.
pub fn named_short(from: &str, to: &str) -> Spec {
    with(from, to, short_bytes(&named()))
}

#[test]
fn a_connection_id_that_names_a_server_leads_there_whatever_the_clients_address() {
    for (mode, vip, client, servers) in [
        (Mode::Ipip, VIP4, CLIENT4, "10.1.0.N:443"),
        (Mode::Nat, VIP4, CLIENT4, "10.1.0.N:443"),
        (Mode::Ipip, VIP6, CLIENT6, "[fd00:1::N]:443"),
        (Mode::Nat, VIP6, CLIENT6, "[fd00:1::N]:443"),
    ] {
        let stage = stage(mode, vip, servers);
        for move_to in [
            Move::Steady(OLD),
            Move::Moving(NEW, OLD),
            Move::Settling(NEW),
        ] {
            let stage = stage.clone().moved(move_to);
            for payload in [
                short_bytes(&named()),
                long_bytes(HANDSHAKE, V1, &named()),
                long_bytes(INITIAL, V1, &named()),
                long_bytes(0xc0, GREASE, &named()),
            ] {
                let packet = with(client, vip, payload);
                assert_eq!(taken_by(&stage, &packet), Some(NAMED), "{move_to:?}");
            }
            assert_eq!(stage.recorded(), (0, 0), "no state is touched");
        }
    }
}

#[test]
fn ids_are_found_behind_extension_headers() {
    let stage = stage(Mode::Ipip, VIP6, "[fd00:1::N]:443");
    let packet = Spec {
        extensions: vec![Extension::Destination(6), Extension::HopByHop(14)],
        ..with(CLIENT6, VIP6, short_bytes(&named()))
    };
    assert_eq!(taken_by(&stage, &packet), Some(NAMED));
}

#[test]
fn packets_that_an_id_leads_are_counted_as_such_and_open_nothing() {
    let stage = moving();
    let outcome = stage.run(&long(1, INITIAL, V1, &named()).frame());
    assert_eq!(outcome.counted.named, BTreeMap::from([(0, 1)]));
    assert_eq!(outcome.counted.flows.get(&0), Some(&(0, 0, 0)));
    let (packets, _, opened) = outcome.counted.servers[&NAMED];
    assert_eq!((packets, opened), (1, 0));
    let outcome = stage.run(&long(1, INITIAL, V1, &drawn()).frame());
    assert_eq!(outcome.counted.named, BTreeMap::new());
    let (packets, _, opened) = outcome.counted.servers[&NEW];
    assert_eq!((packets, opened), (1, 1));
}

#[test]
fn initials_of_both_versions_begin_flows() {
    let stage = moving();
    let packets = [
        long(1, INITIAL, V1, &drawn()),
        long(2, INITIAL_2, V2, &drawn()),
    ];
    for (n, packet) in packets.iter().enumerate() {
        assert_eq!(taken_by(&stage, packet), Some(NEW));
        assert_eq!(stage.recorded(), (0, n + 1));
        assert_eq!(taken_by(&stage, packet), Some(NEW), "sent again");
        assert_eq!(stage.recorded(), (0, n + 1));
    }
}

#[test]
fn whatever_else_nothing_is_known_of_is_of_an_old_flow() {
    let stage = moving();
    let others = [
        long(1, ZERO_RTT, V1, &drawn()),
        long(2, HANDSHAKE, V1, &drawn()),
        long(3, INITIAL, GREASE, &drawn()),
        // A version negotiation, which only servers send.
        long(4, INITIAL, 0, &drawn()),
        // An Initial of the other version.
        long(5, INITIAL_2, V1, &drawn()),
        short(6, &drawn()),
        with(
            "192.0.2.7:7",
            VIP4,
            b"no QUIC at all, though of some length".into(),
        ),
    ];
    for packet in &others {
        assert_eq!(taken_by(&stage, packet), Some(OLD), "{packet:?}");
    }
}

#[test]
fn what_follows_an_initial_with_the_clients_own_id_stays_with_it() {
    let stage = moving();
    assert_eq!(taken_by(&stage, &long(1, INITIAL, V1, &drawn())), Some(NEW));
    assert_eq!(
        taken_by(&stage, &long(1, ZERO_RTT, V1, &drawn())),
        Some(NEW)
    );
    assert_eq!(stage.recorded(), (1, 0));
    // A 0-RTT packet that has overtaken its Initial takes that along.
    assert_eq!(
        taken_by(&stage, &long(2, ZERO_RTT, V1, &drawn())),
        Some(OLD)
    );
    assert_eq!(taken_by(&stage, &long(2, INITIAL, V1, &drawn())), Some(OLD));
}

#[test]
fn only_an_id_of_the_whole_length_names_a_server_in_a_long_header() {
    let stage = steady();
    for length in 0..=20 {
        let mut id = named();
        id.resize(length, 0);
        let packet = long(1, HANDSHAKE, V1, &id);
        let wanted = if length == 8 { NAMED } else { OLD };
        assert_eq!(taken_by(&stage, &packet), Some(wanted), "{length}");
    }
}

#[test]
fn ids_that_no_server_has_are_steered() {
    let stage = steady();
    let other_config = {
        let mut id = named();
        id[0] = 0x27;
        id
    };
    let unroutable = {
        let mut id = named();
        id[0] = 0xe7;
        id
    };
    for id in [id([0x0a, 0x0c]), id([0, 0]), other_config, unroutable] {
        assert_eq!(taken_by(&stage, &short(1, &id)), Some(OLD), "{id:x?}");
    }
}

#[test]
fn the_first_octets_own_bits_and_the_nonce_say_nothing() {
    let stage = steady();
    for n in 0..32u8 {
        let mut id = named();
        id[0] = 0x40 | n;
        id[3..].fill(n * 7);
        assert_eq!(taken_by(&stage, &short(1, &id)), Some(NAMED), "{id:x?}");
    }
}

#[test]
fn datagrams_too_short_for_an_id_are_steered_and_never_dropped() {
    let stage = steady();
    let whole = short_bytes(&named());
    for length in 0..whole.len() {
        let packet = with(CLIENT4, VIP4, whole[..length].to_vec());
        // Behind the datagram there may be anything.
        let packet = Spec {
            trailer: whole[length..].to_vec(),
            ..packet
        };
        let wanted = if length < 24 { OLD } else { NAMED };
        assert_eq!(taken_by(&stage, &packet), Some(wanted), "{length}");
    }
}

#[test]
fn a_server_that_drains_is_still_found_by_its_id_and_a_dead_one_is_not() {
    let stage = steady().condition(NAMED, Condition::Drains);
    assert_eq!(taken_by(&stage, &short(1, &named())), Some(NAMED));
    let stage = stage.condition(NAMED, Condition::Dead);
    assert_eq!(taken_by(&stage, &short(1, &named())), Some(OLD));
    let stage = stage.moved(Move::Moving(NEW, OLD));
    assert_eq!(taken_by(&stage, &short(2, &named())), Some(OLD));
    assert_eq!(taken_by(&stage, &long(3, INITIAL, V1, &named())), Some(NEW));
}

#[test]
fn an_id_of_a_server_whose_place_another_has_names_nobody() {
    let stage = steady().replaced(NAMED);
    assert_eq!(taken_by(&stage, &short(1, &named())), Some(OLD));
    let stage = steady().identified(99, 2, &[9, 9]);
    assert_eq!(taken_by(&stage, &short(1, &id([9, 9]))), Some(OLD));
}

#[test]
fn ids_of_one_service_mean_nothing_to_another() {
    let other = "10.0.0.2:443";
    let stage = steady().serve(Mode::Ipip, other, UDP, &[server("10.9.0.1:443")]);
    let packet = with(CLIENT4, other, short_bytes(&named()));
    assert_eq!(taken_by(&stage.clone().quic(2, 5), &packet), Some(8));
    assert_eq!(taken_by(&stage, &packet), Some(8), "not QUIC");
}

#[test]
fn without_quic_an_id_says_nothing() {
    let stage = steady().not_quic();
    assert_eq!(taken_by(&stage, &short(1, &named())), Some(OLD));
    let stage = stage.moved(Move::Moving(NEW, OLD));
    assert_eq!(taken_by(&stage, &long(1, INITIAL, V1, &drawn())), Some(OLD));
    let tcp = Stage::new().serve(Mode::Ipip, VIP4, TCP, &[server("10.1.0.1:443")]);
    assert_eq!(taken_by(&tcp, &segment(CLIENT4, VIP4)), Some(0));
}

#[test]
fn a_scheduler_chooses_for_initials_and_for_nothing_else() {
    let stage = steady()
        .scheduled(Scheduler::Turns(&[6, 7]))
        .recording_all();
    let chosen = taken_by(&stage, &long(1, INITIAL, V1, &drawn()));
    assert!(matches!(chosen, Some(6 | 7)), "{chosen:?}");
    assert_eq!(taken_by(&stage, &long(1, ZERO_RTT, V1, &drawn())), chosen);
    assert_eq!(taken_by(&stage, &short(2, &drawn())), Some(OLD));
}
