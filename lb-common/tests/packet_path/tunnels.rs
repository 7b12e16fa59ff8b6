//! `ipip` and `gue`: the outer headers, field by field, and the inner packet as it was.

use lb_common::verdict::{DropReason, Verdict};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Outer, Spec, Transport, datagram, segment, socket, syn},
    support::{EGRESS, GUE_PORT, HASH, INGRESS, Mode, Outcome, Server, Stage, macs, server},
};

/// A packet to a VIP, and the server that it is wrapped for: 4in4, 6in6, 4in6, 6in4.
fn families() -> [(Spec, &'static str); 4] {
    [
        (segment(CLIENT4, VIP4), SERVER4),
        (segment(CLIENT6, VIP6), SERVER6),
        (segment(CLIENT4, VIP4), SERVER6),
        (segment(CLIENT6, VIP6), SERVER4),
    ]
}

const MODES: [Mode; 2] = [Mode::Ipip, Mode::Gue];

fn stage(mode: Mode, server: Server) -> Stage {
    let servers = [server];
    Stage::new()
        .serve(mode, VIP4, TCP, &servers)
        .serve(mode, VIP4, UDP, &servers)
        .serve(mode, VIP6, TCP, &servers)
        .serve(mode, VIP6, UDP, &servers)
}

/// The outer headers that [`support::server`]'s tunnels have at [`HASH`], around `packet`.
pub fn outer(mode: Mode, packet: &Spec, server: &str, position: u8) -> Outer {
    let destination = socket(server);
    // 172.16.0.0/16 and fd00:77::1:0:0/96 with the hash's low half, in memory order, behind the prefix.
    let source = if destination.is_ipv4() {
        "172.16.158.223:0"
    } else {
        "[fd00:77::1:62c2:9edf]:0"
    };
    Outer {
        macs: macs(position),
        source: socket(source).ip(),
        destination: destination.ip(),
        traffic_class: packet.traffic_class,
        flow_label: 0xe_c262,
        // The hash's low 14 bits, in the dynamic range.
        ports: (mode == Mode::Gue).then_some((0xc262, GUE_PORT)),
        // Of what its own checksums cover whole.
        summed: packet.transport != Transport::Udp(false) && packet.extensions.is_empty(),
    }
}

/// A packet is wrapped for a server like this in every mode, unchanged itself.
fn assert_wrapped(packet: &Spec, to: &str, opens: u64) {
    for mode in MODES {
        assert_wrapped_by(mode, packet, to, opens);
    }
}

fn assert_wrapped_by(mode: Mode, packet: &Spec, to: &str, opens: u64) {
    let udp = u8::from(packet.frame()[if packet.from.is_ipv4() { 23 } else { 20 }] == UDP);
    let position = udp + 2 * u8::from(packet.from.is_ipv6());
    let outer = outer(mode, packet, to, position);
    let expected = outer.around(&packet.ip(), &packet.trailer);
    let frame = packet.frame();
    let count = (1, frame.len() as u64, opens);
    let position = u32::from(position);
    let mut outcome = Outcome::forwarded(Verdict::Redirect(EGRESS), expected, position, count);
    outcome.counted.services = [(position, count)].into();
    assert_eq!(stage(mode, server(to)).run(&frame), outcome, "{packet:?}");
}

#[test]
fn every_pair_of_families_is_wrapped() {
    for (packet, server) in families() {
        assert_wrapped(&packet, server, 0);
    }
    assert_wrapped(&syn(CLIENT4, VIP4), SERVER4, 1);
    assert_wrapped(&syn(CLIENT6, VIP6), SERVER4, 1);
    assert_wrapped(&datagram(CLIENT4, VIP4), SERVER6, 0);
    assert_wrapped(&datagram(CLIENT6, VIP6), SERVER6, 0);
}

#[test]
fn dscp_and_ecn_are_copied_to_the_outer_header() {
    for (packet, server) in families() {
        for traffic_class in [0x01, 0x02, 0x03, 0x10, 0xb8, 0xff] {
            let packet = Spec {
                traffic_class,
                ..packet.clone()
            };
            assert_wrapped(&packet, server, 0);
        }
    }
}

#[test]
fn the_inner_ttl_is_not_touched_however_small() {
    for (packet, server) in families() {
        for ttl in [0, 1, 255] {
            assert_wrapped(
                &Spec {
                    ttl,
                    ..packet.clone()
                },
                server,
                0,
            );
        }
    }
}

#[test]
fn the_outer_ipv4_header_forbids_fragmentation_whatever_the_inner_one_says() {
    let packet = Spec {
        fragment: (false, false, 0),
        ..segment(CLIENT4, VIP4)
    };
    assert_wrapped(&packet, SERVER4, 0);
}

#[test]
fn a_padded_frame_keeps_its_padding_outside_of_both_packets() {
    for (packet, server) in families() {
        let packet = Spec {
            trailer: vec![0xaa; 6],
            payload: Vec::new(),
            ..packet
        };
        assert_wrapped(&packet, server, 0);
    }
}

#[test]
fn a_server_behind_the_interface_that_the_frame_came_in_by_gets_it_transmitted() {
    for (packet, to) in families() {
        for mode in MODES {
            let stage = stage(mode, server(to).behind(INGRESS));
            assert_eq!(stage.run(&packet.frame()).verdict, Verdict::Transmit);
        }
    }
}

#[test]
fn the_hash_sets_the_bits_behind_the_tunnels_prefix_only() {
    // Words are mixed as loaded, so the hash's low half stands in memory order.
    let hash = u32::from_be_bytes((HASH as u32).to_ne_bytes());
    let source = u32::from_be_bytes([203, 0, 113, 77]);
    for bits in [0, 1, 8, 31, 32] {
        let mask = ((1u64 << bits) - 1) as u32;
        let expected = ((source & !mask) | (hash & mask)).to_be_bytes();
        let stage = stage(Mode::Ipip, server(SERVER4).tunnel("203.0.113.77", bits));
        let outcome = stage.run(&segment(CLIENT4, VIP4).frame());
        assert_eq!(outcome.frame.0[26..30], expected, "{bits} bits");
    }
}

#[test]
fn flows_vary_the_outer_source_and_the_flow_label() {
    let (mut sources, mut labels) = (
        std::collections::BTreeSet::new(),
        std::collections::BTreeSet::new(),
    );
    let stage = stage(Mode::Ipip, server(SERVER6)).hashing();
    for port in 1024..1280 {
        let packet = segment(&format!("192.0.2.7:{port}"), VIP4).frame();
        let frame = stage.run(&packet).frame.0;
        assert_eq!(
            frame[22..34],
            "fd00:77::1:0:0"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets()[..12]
        );
        sources.insert(frame[34..38].to_vec());
        labels.insert(frame[15..18].to_vec());
    }
    assert!(
        sources.len() > 250,
        "{} sources of 256 flows",
        sources.len()
    );
    assert!(labels.len() > 250, "{} labels of 256 flows", labels.len());
}

#[test]
fn packets_of_a_flow_share_an_outer_header() {
    let stage = stage(Mode::Ipip, server(SERVER4)).hashing();
    let first = stage.run(&syn(CLIENT4, VIP4).frame()).frame.0;
    let second = stage.run(&segment(CLIENT4, VIP4).frame()).frame.0;
    assert_eq!(first[..34], second[..34]);
}

/// A packet of so many bytes at layer 3.
fn of_length(packet: Spec, length: usize) -> Spec {
    let headers = if packet.from.is_ipv4() { 28 } else { 48 };
    Spec {
        payload: vec![7; length - headers],
        ..packet
    }
}

#[test]
fn what_fits_into_65535_bytes_once_wrapped_in_ipv4_goes() {
    for packet in [datagram(CLIENT4, VIP4), datagram(CLIENT6, VIP6)] {
        for (mode, most) in [(Mode::Ipip, 65_515), (Mode::Gue, 65_507)] {
            assert_wrapped_by(mode, &of_length(packet.clone(), most), SERVER4, 0);
            let longer = of_length(packet.clone(), most + 1).frame();
            let outcome = stage(mode, server(SERVER4)).run(&longer);
            assert_eq!(outcome, Outcome::dropped(DropReason::TooLong), "{mode:?}");
        }
    }
}

#[test]
fn the_longest_packets_go_wrapped_in_ipv6() {
    // An IPv6 header's length is its payload's alone.
    for packet in [datagram(CLIENT4, VIP4), datagram(CLIENT6, VIP6)] {
        for (mode, most) in [(Mode::Ipip, 65_535), (Mode::Gue, 65_527)] {
            assert_wrapped_by(mode, &of_length(packet.clone(), most), SERVER6, 0);
        }
        let longer = of_length(packet, 65_528).frame();
        let outcome = stage(Mode::Gue, server(SERVER6)).run(&longer);
        assert_eq!(outcome, Outcome::dropped(DropReason::TooLong));
    }
}

#[test]
fn headroom_for_the_outer_header_suffices_exactly() {
    for (packet, to) in families() {
        let frame = packet.frame();
        for mode in MODES {
            let header = outer(mode, &packet, to, 0).length();
            let stage = stage(mode, server(to));
            let enough = stage.run_with(&frame, header);
            assert_eq!(enough, stage.run(&frame));
            // Frames start at even addresses.
            let short = stage.run_with(&frame, header - 2);
            assert_eq!(short, Outcome::dropped(DropReason::NoHeadroom));
        }
    }
}

#[test]
fn the_udp_header_has_a_checksum_where_the_inner_ones_tell_it() {
    // An odd payload, options that the IPv4 header's checksum covers, and no payload at all.
    for payload in [vec![1, 2, 3], Vec::new(), vec![0xff; 500]] {
        for (packet, to) in families() {
            let options = if packet.from.is_ipv4() { 8 } else { 0 };
            let packet = Spec {
                options: vec![1; options],
                payload: payload.clone(),
                ..packet
            };
            assert_wrapped(&packet, to, 0);
        }
        for packet in [datagram(CLIENT4, VIP4), datagram(CLIENT6, VIP6)] {
            let payload = payload.clone();
            assert_wrapped(&Spec { payload, ..packet }, SERVER6, 0);
        }
    }
}

#[test]
fn the_udp_header_has_no_checksum_where_the_inner_ones_leave_something_out() {
    let unsummed = Spec {
        transport: Transport::Udp(false),
        ..datagram(CLIENT4, VIP4)
    };
    let extended = Spec {
        extensions: vec![Extension::Destination(6)],
        ..segment(CLIENT6, VIP6)
    };
    for to in [SERVER4, SERVER6] {
        assert_wrapped(&unsummed, to, 0);
        let mode = Mode::Gue;
        let frame = stage(mode, server(to)).run(&extended.frame()).frame.0;
        let expected = outer(mode, &extended, to, 2).around(&extended.ip(), &[]);
        assert_eq!(frame, expected);
    }
}

#[test]
fn a_computed_udp_checksum_of_zero_is_sent_as_all_ones() {
    // Some inner packet makes the outer sum come out as nothing.
    let stage = stage(Mode::Gue, server(SERVER4));
    let mut ones = 0;
    for label in 0..=u16::MAX {
        let packet = Spec {
            flow_label: u32::from(label),
            ..segment(CLIENT6, VIP6)
        };
        let frame = stage.run(&packet.frame()).frame.0;
        let check = [frame[40], frame[41]];
        assert_ne!(check, [0, 0], "{label}");
        ones += u32::from(check == [0xff, 0xff]);
    }
    assert_eq!(ones, 1);
}

#[test]
fn flows_vary_the_source_port_of_gue_within_the_dynamic_range() {
    let stage = stage(Mode::Gue, server(SERVER4)).hashing();
    let mut ports = std::collections::BTreeSet::new();
    for port in 1024..1280 {
        let packet = segment(&format!("192.0.2.7:{port}"), VIP4).frame();
        let frame = stage.run(&packet).frame.0;
        ports.insert(u16::from_be_bytes([frame[34], frame[35]]));
    }
    assert!(ports.first() >= Some(&49_152), "{ports:?}");
    assert!(ports.len() > 245, "{} ports of 256 flows", ports.len());
}

#[test]
fn the_udp_header_has_no_checksum_where_something_lies_behind_the_datagram_in_its_packet() {
    for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
        let whole = datagram(client, vip);
        // What UDP's own length leaves of the IP packet (RFC 9868), of which no checksum is.
        let packet = Spec {
            transport: Transport::Other(17),
            payload: [whole.transport(), b"surplus!".to_vec()].concat(),
            ..whole
        };
        for to in [SERVER4, SERVER6] {
            let mode = Mode::Gue;
            let frame = stage(mode, server(to)).run(&packet.frame()).frame.0;
            let unsummed = Outer {
                summed: false,
                ..outer(mode, &packet, to, if vip == VIP4 { 1 } else { 3 })
            };
            assert_eq!(frame, unsummed.around(&packet.ip(), &[]), "{vip} {to}");
        }
    }
}
