//! Who else may have a flow: what backends are told in private data of GUE, and what they make of it. Frames are laid out
//! and summed by etherparse.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    decapsulate::{self, Fate, Host},
    flow::Flow,
    hand_on::{Hop, Socket},
    packet::{Packet, SlicePacket},
    pipeline,
    tables::{Address, Endpoint, NoRoute, Route, RouteQuery},
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, TCP, VIP4, VIP6,
    frames::{Extension, Flags, Outer, Spec, Transport, datagram, segment, socket, syn},
    icmp::message,
    support::{
        CLIENT_MACS, EGRESS, Frame, GUE_PORT, INGRESS, Mac, Mode, Move, Outcome, Server, Stage,
        macs, server,
    },
};

const OURS4: &str = "10.1.0.2:8080";
const THEIRS4: &str = "10.1.0.3:8080";
const OURS6: &str = "[fd00:1::2]:8080";
const THEIRS6: &str = "[fd00:1::3]:8080";

/// Client, VIP, and two backends: 4in4, 6in6, 4in6, 6in4.
const FAMILIES: [[&str; 4]; 4] = [
    [CLIENT4, VIP4, OURS4, THEIRS4],
    [CLIENT6, VIP6, OURS6, THEIRS6],
    [CLIENT4, VIP4, OURS6, THEIRS6],
    [CLIENT6, VIP6, OURS4, THEIRS4],
];

fn ip(text: &str) -> IpAddr {
    socket(text).ip()
}

/// The header that tells of `other`, or of nobody, to a backend of this family, before a packet.
fn telling(other: Option<IpAddr>, backend: IpAddr, packet: &[u8]) -> Vec<u8> {
    let (words, nobody) = match backend {
        IpAddr::V4(_) => (2, vec![0; 4]),
        IpAddr::V6(_) => (5, vec![0; 16]),
    };
    let number = if packet[0] >> 4 == 4 { 4 } else { 41 };
    let count = u8::from(other.is_some());
    let mut header = vec![words, number, 0, 0, b'L', b'B', 1, count];
    header.extend(match other {
        Some(IpAddr::V4(other)) => other.octets().to_vec(),
        Some(IpAddr::V6(other)) => other.octets().to_vec(),
        None => nobody,
    });
    header
}

/// The headers of a tunnel from the balancer to a backend.
fn outer(to: IpAddr) -> Outer {
    let source = match to {
        IpAddr::V4(_) => "172.16.158.223",
        IpAddr::V6(_) => "fd00:77::1:62c2:9edf",
    };
    Outer {
        macs: macs(0),
        source: source.parse().expect("an address"),
        destination: to,
        traffic_class: 0,
        flow_label: 0xe_c262,
        ports: Some((0xc262, GUE_PORT)),
        summed: true,
    }
}

/// A packet on its way to a backend that is told of `other`, or of nobody.
fn told(outer: &Outer, ttl: u8, other: Option<IpAddr>, packet: &[u8]) -> Vec<u8> {
    let mut payload = telling(other, outer.destination, packet);
    payload.extend(packet);
    let (from, to) = outer.ports.expect("ports");
    Spec {
        macs: outer.macs,
        from: SocketAddr::new(outer.source, from),
        to: SocketAddr::new(outer.destination, to),
        ttl,
        traffic_class: outer.traffic_class,
        flow_label: outer.flow_label,
        identification: 0,
        transport: Transport::Udp(outer.summed),
        payload,
        ..syn("0.0.0.0:0", "0.0.0.0:0")
    }
    .frame()
}

fn stage(vip: &str, servers: &[Server], slots: Move) -> Stage {
    Stage::new()
        .serve(Mode::SecondHop, vip, TCP, servers)
        .moving_time(1_000)
        .moved(slots)
}

/// What a frame becomes that goes to the server at a position, which is told of `other`.
fn assert_told(outcome: &Outcome, packet: &Spec, to: (u8, &str), other: Option<&str>) {
    let (position, to) = to;
    let outer = Outer {
        macs: macs(position),
        ..outer(ip(to))
    };
    let expected = told(&outer, 64, other.map(ip), &packet.ip());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
    assert_eq!(outcome.frame, Frame(expected), "{to} of {other:?}");
    assert_eq!(outcome.counted.servers[&position.into()].0, 1);
}

#[test]
fn a_backend_is_told_who_had_its_slot_before() {
    for [client, vip, ours, theirs] in FAMILIES {
        let servers = [server(ours), server(theirs)];
        let stage = stage(vip, &servers, Move::Former(0, 1));
        for packet in [segment(client, vip), syn(client, vip)] {
            let outcome = stage.run(&packet.frame());
            assert_told(&outcome, &packet, (0, ours), Some(theirs));
        }
    }
}

/// A flow from before goes to the second server, and a new one to the first.
fn assert_each_is_told_of_the_other(stage: &Stage, [client, vip, ours, theirs]: [&str; 4]) {
    let old = segment(client, vip);
    assert_told(&stage.run(&old.frame()), &old, (1, theirs), Some(ours));
    let new = Spec {
        from: SocketAddr::new(ip(client), 40_001),
        ..syn(client, vip)
    };
    assert_told(&stage.run(&new.frame()), &new, (0, ours), Some(theirs));
}

#[test]
fn of_a_slot_that_moves_each_backend_is_told_of_the_other() {
    for [client, vip, ours, theirs] in FAMILIES {
        let servers = [server(ours), server(theirs)];
        let stage = stage(vip, &servers, Move::Moving(0, 1));
        assert_each_is_told_of_the_other(&stage, [client, vip, ours, theirs]);
    }
}

#[test]
fn of_a_service_that_moves_backends_are_told_whose_the_flow_was_on_the_ring_before() {
    let [client, vip, ours, theirs] = FAMILIES[0];
    let servers = [server(ours), server(theirs)];
    let stage = stage(vip, &servers, Move::Moving(0, 0)).moving_from(&[1; 8]);
    assert_each_is_told_of_the_other(&stage, [client, vip, ours, theirs]);
}

#[test]
fn nobody_is_told_of_who_has_no_flows_or_is_the_backend_itself() {
    let [client, vip, ours, theirs] = FAMILIES[0];
    let packet = segment(client, vip);
    let alone = stage(vip, &[server(ours)], Move::Former(0, 0));
    let dead = [server(ours), server(theirs).dead()];
    let dead = stage(vip, &dead, Move::Former(0, 1));
    let gone = stage(vip, &[server(ours)], Move::Former(0, 1));
    for stage in [alone, dead, gone] {
        assert_told(&stage.run(&packet.frame()), &packet, (0, ours), None);
    }
}

#[test]
fn an_error_about_a_flow_tells_who_else_may_have_it() {
    for [client, vip, ours, theirs] in [FAMILIES[0], FAMILIES[1]] {
        let servers = [server(ours), server(theirs)];
        let stage = stage(vip, &servers, Move::Former(0, 1));
        let error = about_answer(client, vip);
        let outcome = stage.run(&error.frame());
        let expected = told(&outer(ip(ours)), 64, Some(ip(theirs)), &error.ip());
        assert_eq!(outcome.frame, Frame(expected));
    }
}

#[test]
fn fragments_tell_of_nobody() {
    let [client, vip, ours, theirs] = FAMILIES[0];
    let servers = [server(ours), server(theirs)];
    let stage = stage(vip, &servers, Move::Former(0, 1));
    let first = Spec {
        fragment: (false, true, 0),
        payload: vec![7; 20],
        ..segment(client, vip)
    };
    let outer = Outer {
        summed: false,
        ..outer(ip(ours))
    };
    let expected = told(&outer, 64, None, &first.ip());
    assert_eq!(stage.run(&first.frame()).frame, Frame(expected));
}

/// A backend's host: its connections, its tunnel end, and the way to others.
struct Backend {
    end: Address,
    hands_on: bool,
    flows: Vec<(SocketAddr, SocketAddr)>,
    listens: bool,
    /// Whether what comes answers a cookie.
    cookie: bool,
    way: Result<Route, NoRoute>,
    asked: RefCell<Vec<RouteQuery>>,
    hops: RefCell<Vec<Hop>>,
    unwrapped: Cell<u32>,
}

impl Backend {
    fn new(end: &str) -> Self {
        let (source_mac, destination_mac) = CLIENT_MACS;
        Self {
            end: ip(end).into(),
            hands_on: true,
            flows: Vec::new(),
            listens: true,
            cookie: false,
            way: Ok(Route {
                interface: INGRESS,
                destination_mac,
                source_mac,
            }),
            asked: RefCell::default(),
            hops: RefCell::default(),
            unwrapped: Cell::default(),
        }
    }

    fn knowing(self, client: &str, vip: &str) -> Self {
        Self {
            flows: vec![(socket(client), socket(vip))],
            ..self
        }
    }

    /// What becomes of a frame.
    fn run(&self, frame: &[u8]) -> (Fate, Vec<u8>) {
        let mut buffer = frame.to_vec();
        let mut packet = SlicePacket::new(&mut buffer, 0, INGRESS);
        let fate = decapsulate::process(&mut packet, self);
        (fate, packet.bytes().to_vec())
    }

    /// It is unwrapped and stays.
    fn assert_stays(&self, frame: &[u8], packet: &Spec, what: &str) {
        let (fate, bytes) = self.run(frame);
        let delivered = Spec {
            macs: macs(0),
            ..packet.clone()
        };
        assert_eq!(fate, Fate::Pass, "{what}");
        assert_eq!(Frame(bytes), Frame(delivered.frame()), "{what}");
        assert_eq!(self.unwrapped.take(), 1, "{what}");
        assert!(self.hops.take().is_empty(), "{what}");
    }
}

impl Host for Backend {
    fn terminates(&self, outer: &Address) -> bool {
        *outer == self.end
    }

    fn gue_port(&self) -> u16 {
        GUE_PORT.to_be()
    }

    fn count(&self, _: u64) {
        self.unwrapped.set(self.unwrapped.get() + 1);
    }

    fn count_drop(&self) {
        panic!("nothing is congested")
    }

    fn hands_on(&self) -> bool {
        self.hands_on
    }

    fn socket(&self, remote: &Endpoint, local: &Endpoint) -> Socket {
        let at = |end: &Endpoint| {
            assert_eq!(end.protocol, TCP);
            SocketAddr::new(end.address.into(), u16::from_be(end.port))
        };
        if self.flows.contains(&(at(remote), at(local))) {
            Socket::Flow
        } else if self.listens {
            Socket::Listener
        } else {
            Socket::Nobody
        }
    }

    fn answers_cookie<P: Packet>(&self, packet: &P, flow: &Flow) -> bool {
        // The offsets are those of the packet that is inside.
        let ports = packet.read::<lb_common::wire::Ports>(flow.transport);
        assert_eq!(ports.expect("ports").source, flow.source_port.to_ne_bytes());
        self.cookie
    }

    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute> {
        self.asked.borrow_mut().push(*query);
        self.way
    }

    fn count_hop(&self, hop: Hop) {
        self.hops.borrow_mut().push(hop);
    }
}

/// An error to a VIP about a server's answer to a client.
fn about_answer(client: &str, vip: &str) -> Spec {
    let (router, kind) = match ip(vip) {
        IpAddr::V4(_) => ("198.51.100.1:0", (3, 1)),
        IpAddr::V6(_) => ("[2001:db8:f::1]:0", (1, 3)),
    };
    let answer = segment(vip, client).ip();
    message(router, vip, kind, [0; 4], &answer)
}

#[test]
fn packets_of_a_connection_that_is_known_stay() {
    for [client, vip, ours, theirs] in FAMILIES {
        let backend = Backend::new(ours).knowing(client, vip);
        for packet in [segment(client, vip), about_answer(client, vip)] {
            let frame = told(&outer(ip(ours)), 64, Some(ip(theirs)), &packet.ip());
            backend.assert_stays(&frame, &packet, "known");
        }
    }
}

#[test]
fn packets_of_one_that_is_not_go_on_as_they_came_and_no_further() {
    for [client, vip, ours, theirs] in FAMILIES {
        let rst = Spec {
            transport: Transport::Tcp(Flags::RST),
            ..segment(client, vip)
        };
        let syn_ack = Spec {
            transport: Transport::Tcp(Flags {
                syn: true,
                ..Flags::ACK
            }),
            ..segment(client, vip)
        };
        for summed in [true, false] {
            let every = [
                segment(client, vip),
                rst.clone(),
                syn_ack.clone(),
                about_answer(client, vip),
            ];
            for packet in every {
                let before = Outer {
                    summed,
                    traffic_class: 0xb9,
                    ..outer(ip(ours))
                };
                let backend = Backend::new(ours);
                let frame = told(&before, 57, Some(ip(theirs)), &packet.ip());
                let (fate, bytes) = backend.run(&frame);
                let after = Outer {
                    macs: CLIENT_MACS,
                    source: ip(ours),
                    destination: ip(theirs),
                    ..before
                };
                let expected = told(&after, 56, None, &packet.ip());
                assert_eq!(fate, Fate::Transmit, "{packet:?}");
                assert_eq!(Frame(bytes.clone()), Frame(expected), "{packet:?}");
                assert_eq!(backend.hops.take(), [Hop::Direct]);
                assert_eq!(backend.unwrapped.get(), 0);
                let query = RouteQuery {
                    source: ip(ours).into(),
                    destination: ip(theirs).into(),
                    length: (frame.len() - 14) as u16,
                };
                assert_eq!(backend.asked.take(), [query]);
                // Whoever gets it does not know it either.
                let (fate, _) = Backend::new(theirs).run(&bytes);
                assert_eq!(fate, Fate::Pass);
            }
        }
    }
}

#[test]
fn what_opens_a_connection_or_is_of_none_stays() {
    for [client, vip, ours, theirs] in FAMILIES {
        let mut packets = vec![syn(client, vip), datagram(client, vip)];
        if ip(vip).is_ipv4() {
            packets.push(Spec {
                fragment: (false, true, 0),
                ..segment(client, vip)
            });
            packets.push(Spec {
                fragment: (false, false, 9),
                ..segment(client, vip)
            });
        } else {
            packets.push(Spec {
                extensions: vec![Extension::Fragment(0, true)],
                ..segment(client, vip)
            });
        }
        // Messages that are no errors, and one about what has no connection.
        let (echo, about) = if ip(vip).is_ipv4() {
            ((8, 0), (3, 1))
        } else {
            ((128, 0), (1, 3))
        };
        let answer = datagram(vip, client).ip();
        packets.push(message(client, vip, echo, [0; 4], b"hello"));
        packets.push(message(client, vip, about, [0; 4], &answer));
        let backend = Backend {
            listens: false,
            ..Backend::new(ours)
        };
        for packet in packets {
            let frame = told(&outer(ip(ours)), 64, Some(ip(theirs)), &packet.ip());
            backend.assert_stays(&frame, &packet, "opens");
        }
    }
}

#[test]
fn headers_with_options_hide_no_connection() {
    let options = Spec {
        options: vec![1; 8],
        ..segment(CLIENT4, VIP4)
    };
    let extensions = Spec {
        extensions: vec![Extension::HopByHop(6), Extension::Destination(14)],
        ..segment(CLIENT6, VIP6)
    };
    for packet in [options, extensions] {
        let frame = told(&outer(ip(OURS4)), 64, Some(ip(THEIRS4)), &packet.ip());
        let (client, vip) = (packet.from.to_string(), packet.to.to_string());
        let knows = Backend::new(OURS4).knowing(&client, &vip);
        knows.assert_stays(&frame, &packet, "known");
        assert_eq!(Backend::new(OURS4).run(&frame).0, Fate::Transmit);
    }
}

#[test]
fn what_answers_a_syn_cookie_stays_and_goes_on_where_nobody_listens() {
    for [client, vip, ours, theirs] in FAMILIES {
        let packet = segment(client, vip);
        let frame = told(&outer(ip(ours)), 64, Some(ip(theirs)), &packet.ip());
        let listens = Backend {
            cookie: true,
            ..Backend::new(ours)
        };
        listens.assert_stays(&frame, &packet, "a cookie");
        let closed = Backend {
            listens: false,
            ..listens
        };
        assert_eq!(closed.run(&frame).0, Fate::Transmit);
        // An error answers nothing.
        let error = about_answer(client, vip);
        let frame = told(&outer(ip(ours)), 64, Some(ip(theirs)), &error.ip());
        let listens = Backend {
            cookie: true,
            ..Backend::new(ours)
        };
        assert_eq!(listens.run(&frame).0, Fate::Transmit);
    }
}

#[test]
fn it_goes_by_another_interface_or_back_where_the_way_leads() {
    let [client, vip, ours, theirs] = FAMILIES[0];
    let frame = told(
        &outer(ip(ours)),
        64,
        Some(ip(theirs)),
        &segment(client, vip).ip(),
    );
    let by = Route {
        interface: EGRESS,
        destination_mac: CLIENT_MACS.1,
        source_mac: CLIENT_MACS.0,
    };
    let backend = Backend {
        way: Ok(by),
        ..Backend::new(ours)
    };
    assert_eq!(backend.run(&frame).0, Fate::Redirect(EGRESS));
    let backend = Backend {
        way: Err(NoRoute::Kernels),
        ..Backend::new(ours)
    };
    let (fate, bytes) = backend.run(&frame);
    let (source, destination): (Mac, Mac) = macs(0);
    let back = Outer {
        macs: (destination, source),
        source: ip(ours),
        destination: ip(theirs),
        ..outer(ip(ours))
    };
    let expected = told(&back, 63, None, &segment(client, vip).ip());
    assert_eq!(fate, Fate::Transmit);
    assert_eq!(Frame(bytes), Frame(expected));
    assert_eq!(backend.hops.take(), [Hop::Back]);
}

#[test]
fn what_cannot_go_on_is_dropped_by_its_reason() {
    for [client, vip, ours, theirs] in FAMILIES {
        let packet = segment(client, vip).ip();
        let frame = |ttl| told(&outer(ip(ours)), ttl, Some(ip(theirs)), &packet);
        for (way, hop) in [
            (NoRoute::Refused, Hop::NoRoute),
            (NoRoute::TooLong(1_400), Hop::TooLong),
        ] {
            let backend = Backend {
                way: Err(way),
                ..Backend::new(ours)
            };
            assert_eq!(backend.run(&frame(64)).0, Fate::Drop);
            assert_eq!(backend.hops.take(), [hop]);
        }
        for ttl in [0, 1] {
            let backend = Backend::new(ours);
            assert_eq!(backend.run(&frame(ttl)).0, Fate::Drop);
            assert_eq!(backend.hops.take(), [Hop::Expired]);
        }
    }
}

#[test]
fn nothing_goes_on_where_that_is_not_asked_for_or_leads_nowhere_else() {
    for [client, vip, ours, theirs] in FAMILIES {
        let packet = segment(client, vip);
        let frame = told(&outer(ip(ours)), 64, Some(ip(theirs)), &packet.ip());
        let plain = Backend {
            hands_on: false,
            ..Backend::new(ours)
        };
        plain.assert_stays(&frame, &packet, "not asked for");
        let backend = Backend::new(ours);
        let nobody = told(&outer(ip(ours)), 64, None, &packet.ip());
        backend.assert_stays(&nobody, &packet, "nobody");
        let itself = told(&outer(ip(ours)), 64, Some(ip(ours)), &packet.ip());
        backend.assert_stays(&itself, &packet, "itself");
    }
}

#[test]
fn headers_of_others_are_taken_off_where_they_need_not_be_understood() {
    let [client, vip, ours, _] = FAMILIES[0];
    let packet = segment(client, vip);
    let outer = outer(ip(ours));
    let with = |header: &[u8]| outer.around(&[header, &packet.ip()].concat(), &[]);
    let backend = Backend::new(ours);
    for header in [
        // Nothing but the protocol.
        &[0, 4, 0, 0][..],
        // Private data of somebody else, and of another version.
        &[2, 4, 0, 0, 0, 0, 1, 1, 10, 1, 0, 3],
        &[2, 4, 0, 0, b'L', b'B', 2, 1, 10, 1, 0, 3],
        // More addresses than there is room for.
        &[2, 4, 0, 0, b'L', b'B', 1, 2, 10, 1, 0, 3],
        // One of the other family.
        &[
            5, 4, 0, 0, b'L', b'B', 1, 1, 0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3,
        ],
    ] {
        backend.assert_stays(&with(header), &packet, &format!("{header:x?}"));
    }
    for header in [
        // A control message; extension fields; a protocol that is none of IP, or not this one; lengths that are none.
        &[0x20, 4, 0, 0][..],
        &[0, 4, 0x80, 0],
        &[0, 6, 0, 0],
        &[0, 17, 0, 0],
        &[0, 41, 0, 0],
        &[1, 4, 0, 0, 1, 2, 3, 4],
        // Variants that are none.
        &[0x80, 4, 0, 0],
        &[0xc0, 4, 0, 0],
    ] {
        let frame = with(header);
        let (fate, bytes) = backend.run(&frame);
        assert_eq!(fate, Fate::Pass);
        assert_eq!(Frame(bytes), Frame(frame), "{header:x?}");
        assert_eq!(backend.unwrapped.get(), 0);
    }
}

#[test]
fn frames_that_end_early_pass() {
    for [client, vip, ours, theirs] in FAMILIES {
        let packet = segment(client, vip).ip();
        let frame = told(&outer(ip(ours)), 64, Some(ip(theirs)), &packet);
        let headers = frame.len() - packet.len();
        let inner = if ip(vip).is_ipv4() { 20 } else { 40 };
        for length in 0..headers + inner {
            let (fate, bytes) = Backend::new(ours).run(&frame[..length]);
            assert_eq!(fate, Fate::Pass);
            assert_eq!(bytes, &frame[..length], "{length}");
        }
    }
}

#[test]
fn a_packet_whose_service_has_got_another_mode_in_the_meantime_is_dropped_as_that() {
    let stage = Stage::new().serve(Mode::Gue, VIP4, TCP, &[server(OURS4)]);
    for frame in [syn(CLIENT4, VIP4), syn(CLIENT4, "10.0.0.1:81")].map(|packet| packet.frame()) {
        let (done, _) = stage.run_alone(&frame, |packet, tables| {
            pipeline::second_hop(packet, tables)
        });
        assert_eq!(done, Ok(Verdict::Drop(DropReason::Switched)));
    }
}

#[test]
fn nobody_is_told_of_who_cannot_be_reached_by_the_family_of_the_tunnel() {
    let [client, vip, ours, _] = FAMILIES[0];
    let packet = segment(client, vip);
    let stage = stage(vip, &[server(ours), server(THEIRS6)], Move::Former(0, 1));
    assert_told(&stage.run(&packet.frame()), &packet, (0, ours), None);
}
