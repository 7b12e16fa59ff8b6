//! IP headers as they come: options, extension headers, fragments, lengths that lie, frames cut
//! short. Run through `nat`, whose rewriting shows that the transport header was found.

use lb_common::{
    flow::MAX_EXTENSION_HEADERS,
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Spec, Transport, datagram, segment, socket, syn},
    support::{EGRESS, Mode, Outcome, Stage, macs, server},
};

fn stage() -> Stage {
    let (v4, v6) = (server(SERVER4), server(SERVER6));
    Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[v4])
        .serve(Mode::Nat, VIP6, TCP, &[v6])
        .serve(Mode::Nat, VIP4, UDP, &[v4])
        .serve(Mode::Nat, VIP6, UDP, &[v6])
}

/// The packet reaches its server with all headers in place and every checksum right.
fn assert_rewritten(packet: &Spec, position: u8) {
    let server = if packet.from.is_ipv4() {
        SERVER4
    } else {
        SERVER6
    };
    let expected = Spec {
        to: socket(server),
        ..packet.clone()
    }
    .routed(macs(position));
    let outcome = stage().run(&packet.frame());
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{packet:?}");
    assert_eq!(outcome.frame.0, expected.frame(), "{packet:?}");
}

fn assert_dropped(packet: &Spec, reason: DropReason) {
    let outcome = stage().run(&packet.frame());
    assert_eq!(outcome, Outcome::dropped(reason), "{packet:?}");
}

#[test]
fn ipv4_options_of_every_length_are_stepped_over() {
    for words in 0..=10 {
        // 0x06 and 0x11 would be protocols, 0x00 0x50 the port, were they looked for here.
        let options: Vec<u8> = [6, 0x11, 0, 0x50].repeat(words);
        for (packet, position) in [(segment(CLIENT4, VIP4), 0), (datagram(CLIENT4, VIP4), 2)] {
            let options = options.clone();
            assert_rewritten(&Spec { options, ..packet }, position);
        }
    }
}

#[test]
fn ports_are_read_where_the_header_length_says() {
    // With options, the words where ports would be without name no service.
    let packet = Spec {
        options: vec![0; 4],
        ..segment(CLIENT4, VIP4)
    };
    let mut frame = packet.frame();
    frame[14] = 0x45;
    // Where the length of the transport header would be then.
    frame[46] = 0x50;
    assert_eq!(stage().run(&frame), Outcome::passed(frame.clone()));
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    use Extension::{Destination, Fragment, HopByHop, Routing};
    let chains = [
        vec![HopByHop(6)],
        vec![HopByHop(22)],
        vec![Destination(6)],
        vec![Destination(14)],
        vec![Destination(1022)],
        vec![Routing(0)],
        vec![Fragment(0, false)],
        vec![HopByHop(14), Destination(6), Routing(0), Fragment(0, false)],
        vec![Destination(14), Destination(6), HopByHop(6)],
    ];
    for extensions in chains {
        for (packet, position) in [(segment(CLIENT6, VIP6), 1), (datagram(CLIENT6, VIP6), 3)] {
            let extensions = extensions.clone();
            assert_rewritten(
                &Spec {
                    extensions,
                    ..packet
                },
                position,
            );
        }
    }
}

#[test]
fn extension_headers_are_followed_up_to_a_maximum() {
    for kind in [Extension::Destination(6), Extension::Routing(0)] {
        for length in 0..=MAX_EXTENSION_HEADERS + 2 {
            let packet = Spec {
                extensions: vec![kind.clone(); length],
                ..segment(CLIENT6, VIP6)
            };
            if length <= MAX_EXTENSION_HEADERS {
                assert_rewritten(&packet, 1);
            } else {
                assert_dropped(&packet, DropReason::ExtensionHeaders);
            }
        }
    }
}

#[test]
fn a_routing_header_with_segments_left_is_not_stepped_over() {
    for segments_left in [1, 2, 255] {
        let packet = Spec {
            extensions: vec![Extension::Routing(segments_left)],
            ..segment(CLIENT6, VIP6)
        };
        assert_dropped(&packet, DropReason::ExtensionHeaders);
    }
}

#[test]
fn real_ipv6_fragments_are_told_wherever_they_stand_in_the_chain() {
    for (offset, more) in [
        (3, false),
        (3, true),
        (31, false),
        (32, false),
        (0x100, true),
    ] {
        let fragment = Extension::Fragment(offset, more);
        for extensions in [
            vec![fragment.clone()],
            vec![Extension::HopByHop(6), fragment.clone()],
            vec![Extension::Fragment(0, false), fragment.clone()],
        ] {
            let packet = Spec {
                extensions,
                payload: vec![7; 20],
                ..segment(CLIENT6, VIP6)
            };
            assert_eq!(stage().run(&packet.frame()).verdict, Verdict::Held);
        }
    }
}

#[test]
fn reserved_bits_of_a_fragment_header_do_not_make_a_fragment() {
    let packet = Spec {
        extensions: vec![Extension::Fragment(0, false)],
        ..segment(CLIENT6, VIP6)
    };
    let mut frame = packet.frame();
    // The reserved byte, and the two reserved bits before the M flag (RFC 8200 §4.5).
    frame[55] = 0xff;
    frame[57] = 0x06;
    assert_eq!(stage().run(&frame).verdict, Verdict::Redirect(EGRESS));
}

#[test]
fn ipv4_fragments_are_told_and_the_other_flags_do_not_matter() {
    for (more, offset) in [(false, 3), (true, 3), (false, 0xff), (false, 0x100)] {
        for dont in [false, true] {
            let packet = Spec {
                fragment: (dont, more, offset),
                payload: vec![7; 20],
                ..segment(CLIENT4, VIP4)
            };
            assert_eq!(stage().run(&packet.frame()).verdict, Verdict::Held);
        }
    }
    for flags in [0x00, 0x40, 0x80, 0xc0] {
        let mut frame = segment(CLIENT4, VIP4).frame();
        frame[20] = flags;
        assert_eq!(stage().run(&frame).verdict, Verdict::Redirect(EGRESS));
    }
}

#[test]
fn frames_cut_anywhere_pass_before_the_ip_header_ends_and_drop_behind() {
    let chained = Spec {
        extensions: vec![Extension::HopByHop(6), Extension::Destination(14)],
        ..segment(CLIENT6, VIP6)
    };
    let options = Spec {
        options: vec![1; 12],
        ..segment(CLIENT4, VIP4)
    };
    for (packet, header) in [
        (segment(CLIENT4, VIP4), 34),
        (datagram(CLIENT4, VIP4), 34),
        (options, 34),
        (segment(CLIENT6, VIP6), 54),
        (datagram(CLIENT6, VIP6), 54),
        (chained, 54),
    ] {
        let whole = packet.frame();
        for length in 0..whole.len() {
            let frame = &whole[..length];
            let expected = if length < header {
                Outcome::passed(frame.to_vec())
            } else {
                // The length field says more than is there.
                Outcome::dropped(DropReason::BadHeader)
            };
            assert_eq!(stage().run(frame), expected, "{packet:?} cut to {length}");
        }
    }
}

/// Writes the length field of an IP packet in a frame.
fn set_length(frame: &mut [u8], length: usize) {
    if frame[14] >> 4 == 4 {
        frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&(length as u16 - 40).to_be_bytes());
    }
}

#[test]
fn packets_that_end_within_their_headers_are_dropped() {
    let chained = Spec {
        extensions: vec![Extension::HopByHop(6), Extension::Destination(22)],
        ..datagram(CLIENT6, VIP6)
    };
    // Length of the IP header, and of everything up to the payload.
    for (packet, ip, headers) in [
        (segment(CLIENT4, VIP4), 20, 40),
        (datagram(CLIENT4, VIP4), 20, 28),
        (segment(CLIENT6, VIP6), 40, 60),
        (datagram(CLIENT6, VIP6), 40, 48),
        (chained, 40, 80),
    ] {
        for length in ip..headers {
            let mut cut = packet.frame();
            set_length(&mut cut, length);
            // Behind the packet the rest of it stands as a trailer, or nothing does.
            assert_eq!(stage().run(&cut), Outcome::dropped(DropReason::Truncated));
            cut.truncate(14 + length);
            assert_eq!(stage().run(&cut), Outcome::dropped(DropReason::Truncated));
        }
        let mut bare = Spec {
            payload: Vec::new(),
            trailer: packet.payload.clone(),
            ..packet
        }
        .frame();
        assert_eq!(stage().run(&bare).verdict, Verdict::Redirect(EGRESS));
        bare.truncate(14 + headers);
        assert_eq!(stage().run(&bare).verdict, Verdict::Redirect(EGRESS));
    }
}

#[test]
fn lengths_beyond_the_frame_are_bad_headers() {
    for packet in [segment(CLIENT4, VIP4), segment(CLIENT6, VIP6)] {
        let whole = packet.ip().len();
        for length in [whole + 1, whole + 256, 65_535] {
            let mut frame = packet.frame();
            set_length(&mut frame, length);
            assert_eq!(stage().run(&frame), Outcome::dropped(DropReason::BadHeader));
        }
    }
    // An IPv6 payload that makes the packet longer than 65,535 bytes.
    let mut frame = segment(CLIENT6, VIP6).frame();
    for payload in [65_496u16, 65_535] {
        frame[18..20].copy_from_slice(&payload.to_be_bytes());
        let mut long = frame.clone();
        long.resize(14 + 40 + 65_535, 0);
        assert_eq!(stage().run(&long), Outcome::dropped(DropReason::BadHeader));
    }
}

#[test]
fn the_longest_packets_are_rewritten() {
    for (packet, headers, position) in [
        (datagram(CLIENT4, VIP4), 28, 2),
        (datagram(CLIENT6, VIP6), 48, 3),
    ] {
        let payload = vec![7; 65_535 - headers];
        assert_rewritten(&Spec { payload, ..packet }, position);
    }
}

#[test]
fn impossible_ipv4_header_lengths_and_versions_are_bad_headers() {
    for words in 0..5 {
        let mut frame = segment(CLIENT4, VIP4).frame();
        frame[14] = 0x40 | words;
        assert_eq!(stage().run(&frame), Outcome::dropped(DropReason::BadHeader));
    }
    for version in (0..16).filter(|&version| version != 4) {
        let mut frame = segment(CLIENT4, VIP4).frame();
        frame[14] = version << 4 | 5;
        assert_eq!(stage().run(&frame), Outcome::dropped(DropReason::BadHeader));
    }
    for version in (0..16).filter(|&version| version != 6) {
        let mut frame = segment(CLIENT6, VIP6).frame();
        frame[14] = version << 4;
        assert_eq!(stage().run(&frame), Outcome::dropped(DropReason::BadHeader));
    }
    // A total length shorter than the header.
    let packet = Spec {
        options: vec![1; 8],
        ..segment(CLIENT4, VIP4)
    };
    for (length, reason) in [
        (0, DropReason::BadHeader),
        (27, DropReason::BadHeader),
        (28, DropReason::Truncated),
    ] {
        let mut frame = packet.frame();
        set_length(&mut frame, length);
        assert_eq!(stage().run(&frame), Outcome::dropped(reason), "{length}");
    }
}

#[test]
fn padded_frames_are_rewritten_within_their_packet_only() {
    for (packet, position) in [(syn(CLIENT4, VIP4), 0), (syn(CLIENT6, VIP6), 1)] {
        for padding in [1, 6, 46, 300] {
            let packet = Spec {
                payload: Vec::new(),
                trailer: vec![0xa5; padding],
                ..packet.clone()
            };
            assert_rewritten(&packet, position);
        }
    }
}

#[test]
fn a_payload_of_odd_length_keeps_its_checksum_right() {
    for length in 0..4 {
        let payload = vec![0xc3; length];
        for (packet, position) in [(segment(CLIENT4, VIP4), 0), (segment(CLIENT6, VIP6), 1)] {
            let payload = payload.clone();
            assert_rewritten(&Spec { payload, ..packet }, position);
        }
    }
}

/// The packet with its transport header changed, on its way to a service of either family.
fn changed(packet: &Spec, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut payload = packet.transport();
    change(&mut payload);
    Spec {
        transport: Transport::Other(packet.number().0),
        payload,
        ..packet.clone()
    }
    .frame()
}

#[test]
fn a_datagram_whose_length_is_none_or_goes_beyond_its_packet_is_dropped() {
    for packet in [datagram(CLIENT4, VIP4), datagram(CLIENT6, VIP6)] {
        let whole = packet.transport().len() as u16;
        let of_length = |length: u16| {
            let set = |udp: &mut [u8]| udp[4..6].copy_from_slice(&length.to_be_bytes());
            stage().run(&changed(&packet, set))
        };
        for length in [0, 1, 7, whole + 1, 0x7fff, 0xffff] {
            let expected = Outcome::dropped(DropReason::Truncated);
            assert_eq!(of_length(length), expected, "{length}");
        }
        for length in [8, whole - 1, whole] {
            let verdict = of_length(length).verdict;
            assert_eq!(verdict, Verdict::Redirect(EGRESS), "{length}");
        }
    }
}

#[test]
fn a_segment_whose_header_is_none_or_goes_beyond_its_packet_is_dropped() {
    for packet in [segment(CLIENT4, VIP4), syn(CLIENT6, VIP6)] {
        let packet = Spec {
            payload: vec![1; 20],
            ..packet
        };
        let of_words = |words: u8| {
            let set = |tcp: &mut [u8]| tcp[12] = words << 4 | (tcp[12] & 0xf);
            stage().run(&changed(&packet, set))
        };
        for words in [0, 4, 11, 15] {
            let expected = Outcome::dropped(DropReason::Truncated);
            assert_eq!(of_words(words), expected, "{words}");
        }
        for words in [5, 9, 10] {
            let verdict = of_words(words).verdict;
            assert_eq!(verdict, Verdict::Redirect(EGRESS), "{words}");
        }
    }
}

#[test]
fn a_packet_that_a_source_route_leads_is_dropped_and_one_with_other_options_goes() {
    const ROUTE: [u8; 6] = [7, 4, 10, 0, 0, 9];
    let route = |kind: u8| [&[kind][..], &ROUTE, &[0]].concat();
    for kind in [131, 137] {
        for options in [
            route(kind),
            [&[1; 4][..], &route(kind)].concat(),
            [&[148, 4, 0, 0][..], &route(kind)].concat(),
            [&[1; 32][..], &route(kind)].concat(),
        ] {
            let whole = Spec {
                options: options.clone(),
                ..datagram(CLIENT4, VIP4)
            };
            let first = Spec {
                fragment: (false, true, 0),
                payload: vec![0; 16],
                ..whole.clone()
            };
            for packet in [whole, first] {
                let outcome = stage().run(&packet.frame());
                let expected = Outcome::dropped(DropReason::SourceRoute);
                assert_eq!(outcome, expected, "{options:?}");
            }
            let elsewhere = Spec {
                options,
                ..segment(CLIENT4, "10.0.0.99:80")
            };
            let frame = elsewhere.frame();
            assert_eq!(stage().run(&frame), Outcome::passed(frame));
        }
    }
    // Router alert, a recorded route that has the numbers as values, padding, and what cannot be read.
    for options in [
        vec![148, 4, 131, 137],
        vec![7, 7, 4, 131, 137, 131, 137, 0],
        vec![1; 40],
        vec![0, 131, 7, 4],
        vec![68, 0, 131, 7],
        vec![68, 1, 131, 7],
    ] {
        let packet = Spec {
            options: options.clone(),
            ..segment(CLIENT4, VIP4)
        };
        let verdict = stage().run(&packet.frame()).verdict;
        assert_eq!(verdict, Verdict::Redirect(EGRESS), "{options:?}");
    }
}

#[test]
fn an_authenticated_packet_is_dropped_where_it_would_be_rewritten() {
    let stage = Stage::new().serve(Mode::Nat, VIP6, TCP, &[server(SERVER6)]);
    let with = |extensions: Vec<Extension>| Spec {
        extensions,
        ..segment(CLIENT6, VIP6)
    };
    let as_it_is = Stage::new().serve(Mode::L2, VIP6, TCP, &[server(SERVER6)]);
    for extensions in [
        vec![Extension::Authentication(4)],
        vec![Extension::Authentication(12)],
        vec![Extension::HopByHop(6), Extension::Authentication(20)],
        vec![Extension::Authentication(12), Extension::Destination(6)],
        vec![Extension::Authentication(4); MAX_EXTENSION_HEADERS],
    ] {
        let packet = with(extensions);
        let outcome = stage.run(&packet.frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::ExtensionHeaders));
        let outcome = as_it_is.run(&packet.frame());
        let macs = macs(0);
        assert_eq!(outcome.frame.0, Spec { macs, ..packet }.frame());
    }
    let others = vec![Extension::HopByHop(6), Extension::Destination(14)];
    let verdict = stage.run(&with(others).frame()).verdict;
    assert_eq!(verdict, Verdict::Redirect(EGRESS));
}
