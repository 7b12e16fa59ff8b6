//! The backend's end of a tunnel.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
};

use lb_common::{
    decapsulate::{self, Fate, Host},
    flow::Flow,
    hand_on::{Hop, Socket},
    packet::{Packet, SlicePacket},
    tables::{Address, Endpoint, NoRoute, Route, RouteQuery},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, VIP4, VIP6,
    frames::{Outer, Spec, datagram, segment, syn},
    support::{Frame, GUE_PORT, INGRESS, macs, server},
};

/// A host with one tunnel end; what it counted, in bytes a packet.
struct TunnelEnd {
    address: Address,
    counted: RefCell<Vec<u64>>,
    dropped: Cell<u64>,
}

impl Host for TunnelEnd {
    fn terminates(&self, outer: &Address) -> bool {
        *outer == self.address
    }

    fn gue_port(&self) -> u16 {
        GUE_PORT.to_be()
    }

    fn count(&self, bytes: u64) {
        self.counted.borrow_mut().push(bytes);
    }

    fn count_drop(&self) {
        self.dropped.set(self.dropped.get() + 1);
    }

    fn hands_on(&self) -> bool {
        false
    }

    fn socket(&self, _: &Endpoint, _: &Endpoint) -> Socket {
        unreachable!("it hands nothing on")
    }

    fn answers_cookie<P: Packet>(&self, _: &P, _: &Flow) -> bool {
        unreachable!("it hands nothing on")
    }

    fn route(&self, _: &RouteQuery) -> Result<Route, NoRoute> {
        unreachable!("it hands nothing on")
    }

    fn count_hop(&self, _: Hop) {
        unreachable!("it hands nothing on")
    }
}

/// What a host makes of a frame that it does not drop, and what it counts.
pub fn decapsulated(frame: &[u8], end: IpAddr) -> (Frame, Vec<u64>) {
    let (fate, after, counted) = fate(frame, end);
    assert_eq!(fate, Fate::Pass);
    (after, counted)
}

/// What becomes of a frame at a host, which must have counted it if it is dropped.
pub fn fate(frame: &[u8], end: IpAddr) -> (Fate, Frame, Vec<u64>) {
    let host = TunnelEnd {
        address: end.into(),
        counted: RefCell::default(),
        dropped: Cell::default(),
    };
    let mut buffer = frame.to_vec();
    let mut packet = SlicePacket::new(&mut buffer, 0, INGRESS);
    let fate = decapsulate::process(&mut packet, &host);
    let dropped = u64::from(fate == Fate::Drop);
    assert_eq!(host.dropped.get(), dropped, "{fate:?}");
    let after = Frame(packet.bytes().to_vec());
    (fate, after, host.counted.into_inner())
}

/// Every packet with every tunnel: inner packet, outer headers.
fn tunnels() -> Vec<(Spec, Outer)> {
    let mut all = Vec::new();
    for inner in [segment(CLIENT4, VIP4), segment(CLIENT6, VIP6)] {
        for (at, gue) in [
            (SERVER4, false),
            (SERVER6, false),
            (SERVER4, true),
            (SERVER6, true),
        ] {
            let end = server(at);
            let outer = Outer {
                macs: macs(0),
                source: end.tunnel.0,
                destination: end.address.ip(),
                traffic_class: 0xb8,
                flow_label: 0x1_2345,
                ports: gue.then_some((50_000, GUE_PORT)),
                summed: true,
            };
            all.push((inner.clone(), outer));
        }
    }
    all
}

fn wrapped(inner: &Spec, outer: &Outer) -> Vec<u8> {
    outer.around(&inner.ip(), &inner.trailer)
}

/// The inner packet as it is delivered: with the outer frame's MAC addresses.
fn delivered(inner: &Spec) -> Vec<u8> {
    let macs = macs(0);
    Spec {
        macs,
        ..inner.clone()
    }
    .frame()
}

fn assert_untouched(frame: &[u8], end: IpAddr, what: &str) {
    let (after, counted) = decapsulated(frame, end);
    assert_eq!(after, Frame(frame.to_vec()), "{what}");
    assert!(counted.is_empty(), "{what}: counted {counted:?}");
}

#[test]
fn every_pair_of_families_is_unwrapped_and_counted_by_what_is_left() {
    for (inner, outer) in tunnels() {
        let expected = delivered(&inner);
        let (after, counted) = decapsulated(&wrapped(&inner, &outer), outer.destination);
        assert_eq!(after, Frame(expected.clone()), "{outer:?}");
        assert_eq!(counted, [expected.len() as u64]);
    }
}

#[test]
fn congestion_marked_on_the_way_goes_on_with_the_inner_packet() {
    // RFC 6040, figure 4: inner and outer field, and what is left, where that is not the inner one.
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    let combined = |inner, outer| match (inner, outer) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        _ => Some(inner),
    };
    for (inner, outer) in tunnels() {
        for (inside, outside) in (0..4).flat_map(|inside| (0..4).map(move |on| (inside, on))) {
            let with = |field| Spec {
                traffic_class: 0xa8 | field,
                ..inner.clone()
            };
            let outer = Outer {
                traffic_class: 0x54 | outside,
                ..outer
            };
            let (fate, after, counted) = fate(&wrapped(&with(inside), &outer), outer.destination);
            let what = format!("{inside} in {outside}: {outer:?}");
            let Some(left) = combined(inside, outside) else {
                assert_eq!(fate, Fate::Drop, "{what}");
                assert!(counted.is_empty(), "{what}");
                continue;
            };
            let expected = delivered(&with(left));
            assert_eq!(fate, Fate::Pass, "{what}");
            assert_eq!(counted, [expected.len() as u64], "{what}");
            assert_eq!(after, Frame(expected), "{what}");
        }
    }
}

#[test]
fn inner_packets_of_every_kind_and_a_trailer_stay_as_they_are() {
    for (inner, outer) in tunnels() {
        let kinds = [
            datagram(CLIENT4, VIP4),
            datagram(CLIENT6, VIP6),
            syn(CLIENT4, VIP4),
        ];
        for inner in kinds {
            let inner = Spec {
                ttl: 1,
                trailer: vec![0xab; 9],
                ..inner
            };
            let (after, _) = decapsulated(&wrapped(&inner, &outer), outer.destination);
            assert_eq!(after, Frame(delivered(&inner)));
        }
        let fragment = Spec {
            fragment: (false, true, 3),
            options: vec![1; 4],
            ..segment(CLIENT4, VIP4)
        };
        let (after, _) = decapsulated(&wrapped(&fragment, &outer), outer.destination);
        assert_eq!(after, Frame(delivered(&fragment)), "{inner:?}");
    }
}

#[test]
fn tunnels_that_end_elsewhere_pass() {
    for (inner, outer) in tunnels() {
        let elsewhere = ["10.1.0.3", "fd00:1::3", "10.0.0.1"];
        for end in elsewhere {
            assert_untouched(&wrapped(&inner, &outer), end.parse().unwrap(), end);
        }
    }
}

#[test]
fn packets_to_the_tunnels_end_that_are_no_tunnels_pass() {
    for packet in [segment(CLIENT4, SERVER4), datagram(CLIENT6, SERVER6)] {
        assert_untouched(&packet.frame(), packet.to.ip(), "no tunnel");
        let mut frame = packet.frame();
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_untouched(&frame, packet.to.ip(), "no IP");
    }
}

#[test]
fn frames_cut_before_the_inner_header_ends_pass() {
    for (inner, outer) in tunnels() {
        let frame = wrapped(&inner, &outer);
        let inner_header = if inner.from.is_ipv4() { 20 } else { 40 };
        let headers = 14 + outer.length() + inner_header;
        for length in 0..headers {
            assert_untouched(
                &frame[..length],
                outer.destination,
                &format!("{length} bytes"),
            );
        }
        let (after, _) = decapsulated(&frame[..headers], outer.destination);
        assert_eq!(after.0.len(), 14 + inner_header);
    }
}

#[test]
fn an_inner_version_that_contradicts_the_outer_header_passes() {
    for (inner, outer) in tunnels() {
        let at = 14 + outer.length();
        let right = inner.ip()[0] >> 4;
        // In a tunnel of UDP nothing else says which it is.
        let said = |version| outer.ports.is_some() && [4, 6].contains(&version);
        for version in (0..16).filter(|&version| version != right && !said(version)) {
            let mut frame = wrapped(&inner, &outer);
            frame[at] = (version << 4) | 5;
            assert_untouched(&frame, outer.destination, &format!("version {version}"));
        }
    }
}

#[test]
fn an_outer_ipv4_fragment_is_the_kernels_to_reassemble() {
    for (inner, outer) in tunnels()
        .into_iter()
        .filter(|(_, outer)| outer.destination.is_ipv4())
    {
        for flags in [[0x20, 0], [0, 1], [0x60, 0], [0x1f, 0xff], [1, 0]] {
            let mut frame = wrapped(&inner, &outer);
            frame[20..22].copy_from_slice(&flags);
            assert_untouched(&frame, outer.destination, &format!("{flags:x?}"));
        }
        for flags in [0, 0x40, 0x80] {
            let mut frame = wrapped(&inner, &outer);
            frame[20] = flags;
            let (_, counted) = decapsulated(&frame, outer.destination);
            assert_eq!(counted.len(), 1, "{flags:#x} is no fragment");
        }
    }
}

#[test]
fn outer_headers_that_the_balancer_never_writes_are_the_kernels() {
    for (inner, outer) in tunnels()
        .into_iter()
        .filter(|(_, outer)| outer.destination.is_ipv4())
    {
        for first in [0x46, 0x4f, 0x44, 0x55] {
            let mut frame = wrapped(&inner, &outer);
            frame[14] = first;
            assert_untouched(&frame, outer.destination, &format!("{first:#x}"));
        }
    }
    for (inner, outer) in tunnels()
        .into_iter()
        .filter(|(_, outer)| outer.destination.is_ipv6())
    {
        let mut frame = wrapped(&inner, &outer);
        // RFC 2473's tunnel encapsulation limit comes in destination options.
        frame[20] = 60;
        assert_untouched(&frame, outer.destination, "extension headers");
    }
}

#[test]
fn datagrams_to_other_ports_of_the_tunnels_end_pass() {
    for (inner, outer) in tunnels() {
        let Some((from, port)) = outer.ports else {
            continue;
        };
        for other in [0, 1, port - 1, port + 1, port.swap_bytes()] {
            let outer = Outer {
                ports: Some((from, other)),
                ..outer
            };
            let frame = wrapped(&inner, &outer);
            assert_untouched(&frame, outer.destination, &format!("port {other}"));
        }
    }
}

#[test]
fn a_tunnel_without_a_checksum_is_unwrapped() {
    for (inner, outer) in tunnels() {
        let outer = Outer {
            summed: false,
            ..outer
        };
        let (after, _) = decapsulated(&wrapped(&inner, &outer), outer.destination);
        assert_eq!(after, Frame(delivered(&inner)), "{outer:?}");
    }
}
