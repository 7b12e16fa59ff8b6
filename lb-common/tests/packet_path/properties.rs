//! What holds for every packet, over generated ones: well-formed, oddly formed, broken.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::{
    decapsulate::Fate,
    verdict::{Answer, DropReason, Piece, Verdict},
};
use proptest::{
    prelude::*,
    sample::{Index, select},
};

use crate::{
    SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    decapsulation::{decapsulated, fate},
    frames::{Extension, Flags, Spec, Transport, socket, syn},
    support::{CLIENT_MACS, EGRESS, Frame, Mode, Outcome, Stage, macs, server},
};

/// Servers of either family, in order of their positions on the stages below.
const SERVERS4: [&str; 3] = [SERVER4, "10.1.0.3:8080", "10.1.255.255:65535"];
const SERVERS6: [&str; 3] = [SERVER6, "[fd00:1::3]:8080", "[feff:ffff::ffff]:65535"];

fn stage(mode: Mode, v4: [&str; 3], v6: [&str; 3]) -> Stage {
    let (v4, v6) = (v4.map(server), v6.map(server));
    Stage::new()
        .hashing()
        .serve(mode, VIP4, TCP, &v4)
        .serve(mode, VIP4, UDP, &v4)
        .serve(mode, VIP6, TCP, &v6)
        .serve(mode, VIP6, UDP, &v6)
}

/// Whom a forwarded packet went to, by position on the stage.
fn taken_by(outcome: &Outcome) -> u8 {
    *outcome.counted.servers.keys().next().expect("forwarded") as u8
}

fn extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        (0..4usize).prop_map(|n| Extension::HopByHop(8 * n + 6)),
        (0..4usize).prop_map(|n| Extension::Destination(8 * n + 6)),
        Just(Extension::Routing(0)),
        Just(Extension::Fragment(0, false)),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        any::<[bool; 4]>().prop_map(|[syn, ack, fin, rst]| Transport::Tcp(Flags {
            syn,
            ack,
            fin,
            rst
        })),
        any::<bool>().prop_map(Transport::Udp),
    ]
}

/// A whole packet to a VIP that has far enough to go.
fn request() -> impl Strategy<Value = Spec> {
    let ends = prop_oneof![
        a_hosts_v4().prop_map(|client| (IpAddr::from(client), socket(VIP4))),
        any::<[u8; 14]>().prop_map(|tail| (global_v6(tail).into(), socket(VIP6))),
    ];
    let header = (3u8.., any::<u8>(), 0..1u32 << 20, any::<u16>(), 0..=10usize);
    let bytes = |limit| prop::collection::vec(any::<u8>(), 0..limit);
    let extensions = prop::collection::vec(extension(), 0..=6);
    (
        ends,
        any::<u16>(),
        header,
        extensions,
        transport(),
        bytes(64),
        bytes(16),
    )
        .prop_map(
            |((client, to), port, header, extensions, transport, payload, trailer)| {
                let (ttl, traffic_class, flow_label, identification, options) = header;
                Spec {
                    from: SocketAddr::new(client, port),
                    to,
                    ttl,
                    traffic_class,
                    flow_label,
                    identification,
                    options: [1, 1, 1, 0].repeat(options),
                    extensions: if to.is_ipv4() { Vec::new() } else { extensions },
                    transport,
                    payload,
                    trailer,
                    ..syn("0.0.0.0:0", VIP4)
                }
            },
        )
}

/// None of those that `martian` is about.
fn a_hosts_v4() -> impl Strategy<Value = [u8; 4]> {
    let first = prop_oneof![1..127u8, 128..224u8, 240..255u8];
    let client = (first, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| [a, b, c, d]);
    client.prop_filter("the VIP itself", |&client| {
        IpAddr::from(client) != socket(VIP4).ip()
    })
}

/// Out of 2000::/16, where no IPv4-mapped address is.
fn global_v6(tail: [u8; 14]) -> Ipv6Addr {
    let mut octets = [0x20; 16];
    octets[1] = 0;
    octets[2..].copy_from_slice(&tail);
    octets.into()
}

/// Offset of the transport header in a packet's frame.
fn transport_offset(spec: &Spec) -> usize {
    let header = match spec.transport {
        Transport::Tcp(_) => 20,
        _ => 8,
    };
    14 + spec.ip().len() - spec.payload.len() - header
}

/// The frame with both ends swapped, which no checksum notices.
fn mirrored(spec: &Spec, frame: &[u8]) -> Vec<u8> {
    let mut mirrored = frame.to_vec();
    let (address, length) = if spec.to.is_ipv4() { (26, 4) } else { (22, 16) };
    for (at, length) in [(address, length), (transport_offset(spec), 2)] {
        let (source, destination) = mirrored[at..at + 2 * length].split_at_mut(length);
        source.swap_with_slice(destination);
    }
    mirrored
}

/// What is wrong with the sum of a frame's transport checksum: 0, or the error (RFC 1071 §1).
fn error(spec: &Spec, frame: &[u8]) -> u32 {
    let end = 14 + spec.ip().len();
    let at = transport_offset(spec);
    let (address, length) = if spec.to.is_ipv4() { (26, 8) } else { (22, 32) };
    let protocol = if at + 20 + spec.payload.len() == end {
        TCP
    } else {
        UDP
    };
    let words = frame[address..address + length]
        .chunks(2)
        .chain(frame[at..end].chunks(2))
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    (words.sum::<u32>() + u32::from(protocol) + (end - at) as u32) % 0xffff
}

proptest! {
    #[test]
    fn a_nat_request_is_the_packet_that_its_client_would_have_sent_to_the_server(spec in request()) {
        let outcome = stage(Mode::Nat, SERVERS4, SERVERS6).run(&spec.frame());
        prop_assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
        let taken_by = taken_by(&outcome);
        let servers = [SERVERS4, SERVERS4, SERVERS6, SERVERS6].concat();
        let to = socket(servers[usize::from(taken_by)]);
        let expected = Spec { to, ..spec }.routed(macs(taken_by)).frame();
        prop_assert_eq!(outcome.frame, Frame(expected));
    }

    #[test]
    fn nat_there_and_back_changes_nothing_but_ttl_and_mac_addresses(spec in request()) {
        let stage = stage(Mode::Nat, SERVERS4, SERVERS6).route(spec.from.ip(), EGRESS);
        let there = stage.run(&spec.frame()).frame.0;
        let back = stage.run(&mirrored(&spec, &there));
        prop_assert_eq!(back.verdict, Verdict::Redirect(EGRESS));
        let expected = spec.clone().routed(macs(0)).routed(CLIENT_MACS).frame();
        prop_assert_eq!(Frame(mirrored(&spec, &back.frame.0)), Frame(expected));
    }

    #[test]
    fn decapsulation_undoes_encapsulation(
        spec in request(), across: bool, mode in select(&[Mode::Ipip, Mode::Gue][..]),
    ) {
        let (v4, v6) = if across { (SERVERS6, SERVERS4) } else { (SERVERS4, SERVERS6) };
        let outcome = stage(mode, v4, v6).run(&spec.frame());
        prop_assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
        let taken_by = taken_by(&outcome);
        let end = socket([v4, v4, v6, v6].concat()[usize::from(taken_by)]).ip();
        let (after, counted) = decapsulated(&outcome.frame.0, end);
        let expected = Spec { macs: macs(taken_by), ..spec }.frame();
        prop_assert_eq!(counted, [expected.len() as u64]);
        prop_assert_eq!(after, Frame(expected));
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong_as_it_was(spec in request(), wrong: u16) {
        let mut frame = spec.frame();
        let field = transport_offset(&spec) + if matches!(spec.transport, Transport::Tcp(_)) { 16 } else { 6 };
        frame[field..field + 2].copy_from_slice(&wrong.to_be_bytes());
        // Without a checksum none can be wrong.
        prop_assume!(wrong != 0);
        let after = stage(Mode::Nat, SERVERS4, SERVERS6).run(&frame).frame.0;
        prop_assert_eq!(error(&spec, &after), error(&spec, &frame));
    }
}

/// Addresses worth sending from and to: a VIP, a server, the balancer, a client.
const ENDS4: [&str; 4] = [VIP4, SERVERS4[1], "10.0.0.2:80", "192.0.2.7:80"];
const ENDS6: [&str; 4] = [VIP6, SERVERS6[1], "[2001:db8::2]:80", "[2001:db8:c::7]:80"];

/// A packet between any two ends, often one that no service takes.
fn packet() -> impl Strategy<Value = Spec> {
    let ends = prop_oneof![
        (select(&ENDS4[..]), select(&ENDS4[..])),
        (select(&ENDS6[..]), select(&ENDS6[..])),
    ];
    let tunnelled = prop_oneof![Just(1), Just(4), Just(41), Just(58)];
    let transport = prop_oneof![4 => transport(), 1 => tunnelled.prop_map(Transport::Other)];
    let extension = prop_oneof![
        extension(),
        any::<u8>().prop_map(Extension::Routing),
        (0..1u16 << 13, any::<bool>()).prop_map(|(offset, more)| Extension::Fragment(offset, more)),
    ];
    let extensions = prop::collection::vec(extension, 0..9);
    (request(), ends, 0u8..4, transport, extensions).prop_map(
        |(spec, (from, to), ttl, transport, extensions)| {
            let (from, to) = (socket(from), socket(to));
            Spec {
                extensions: if to.is_ipv4() { Vec::new() } else { extensions },
                from,
                to,
                ttl,
                transport,
                ..spec
            }
        },
    )
}

/// Any frame at all: packets whole or damaged, and noise.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((any::<Index>(), any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.2, any::<Index>());
    let damaged = (packet(), damage, cut).prop_map(|(packet, damage, cut)| {
        let mut frame = packet.frame();
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        frame.truncate(cut.map_or(usize::MAX, |cut| cut.index(frame.len())));
        frame
    });
    prop_oneof![9 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

/// Whether a frame is an IP packet from a server's address.
fn from_a_server(frame: &[u8]) -> bool {
    let addresses = SERVERS4.iter().chain(&SERVERS6).map(|at| socket(at).ip());
    addresses.into_iter().any(|address| match address {
        IpAddr::V4(v4) => frame.get(26..30) == Some(&v4.octets()[..]),
        IpAddr::V6(v6) => frame.get(22..38) == Some(&v6.octets()[..]),
    })
}

proptest! {
    #[test]
    fn whatever_comes_is_counted_once_and_passes_untouched_unless_it_is_an_answer(
        frame in frame(), mode in select(&[Mode::Nat, Mode::Ipip, Mode::Gue, Mode::L2, Mode::Unknown][..]), headroom in 0usize..40,
    ) {
        let stage = stage(mode, SERVERS4, SERVERS6).own("10.0.0.2").route(socket("192.0.2.7:0").ip(), EGRESS);
        let outcome = stage.run_with(&frame, headroom * 2);
        let answer = mode == Mode::Nat && from_a_server(&frame);
        match outcome.verdict {
            Verdict::Held => prop_assert_eq!(outcome.counted.pieces, [(Piece::Held as u32, 1)].into()),
            Verdict::Pass if !answer => prop_assert_eq!(outcome, Outcome::passed(frame)),
            Verdict::Pass => prop_assert_eq!(outcome.frame.0.len(), frame.len()),
            // No hop was left.
            Verdict::Transmit if !outcome.counted.answers.is_empty() => {
                prop_assert_eq!(outcome.counted.answers, [(Answer::Expired as u32, 1)].into());
                prop_assert_eq!(outcome.counted.drops, [(DropReason::TtlExpired as u32, 1)].into());
            }
            Verdict::Drop(DropReason::TtlExpired) => {
                let unanswered = [Answer::Withheld, Answer::Limited].map(|why| Outcome::unanswered(DropReason::TtlExpired, why));
                prop_assert!(unanswered.contains(&outcome) || outcome == Outcome::dropped(DropReason::TtlExpired));
            }
            Verdict::Drop(reason) => prop_assert_eq!(outcome, Outcome::dropped(reason)),
            Verdict::Transmit | Verdict::Redirect(_) => {
                let counts = [outcome.counted.services, outcome.counted.servers];
                for counts in counts {
                    let bytes: Vec<u64> = counts.values().map(|count| count.1).collect();
                    prop_assert!(bytes == [frame.len() as u64] || (answer && bytes.is_empty()));
                }
                prop_assert!(outcome.counted.drops.is_empty());
            }
        }
    }

    #[test]
    fn a_host_unwraps_only_tunnels_that_end_there(frame in frame()) {
        for end in [VIP4, VIP6, "10.9.9.9:0"] {
            let end = socket(end).ip();
            let (fate, after, counted) = fate(&frame, end);
            if fate == Fate::Drop {
                prop_assert!(counted.is_empty());
            } else if counted.is_empty() {
                prop_assert_eq!(after, Frame(frame.clone()));
            } else {
                prop_assert!(after.0.len() + 20 <= frame.len());
                prop_assert_eq!(counted, [after.0.len() as u64]);
            }
        }
    }
}
