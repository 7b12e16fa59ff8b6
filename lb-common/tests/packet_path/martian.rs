//! Packets from sources that no host has, and from the VIP that they go to: dropped with a reason, and nothing else
//! happens; to any other address they are the kernel's as they came.

use lb_common::{
    tables::refusal,
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Flags, Spec, Transport, datagram, segment, socket, syn},
    full_nat, icmp,
    support::{EGRESS, Mode, Outcome, Stage, server},
};

/// Sources that are nobody's, at a VIP of their family.
const NOBODYS: [(&str, &str); 13] = [
    ("0.0.0.0:40000", VIP4),
    ("0.1.2.3:40000", VIP4),
    ("127.0.0.1:40000", VIP4),
    ("127.255.255.254:40000", VIP4),
    ("224.0.0.1:40000", VIP4),
    ("239.255.255.255:40000", VIP4),
    ("255.255.255.255:40000", VIP4),
    ("[::]:40000", VIP6),
    ("[::1]:40000", VIP6),
    ("[ff02::1]:40000", VIP6),
    ("[ff0e::7]:40000", VIP6),
    ("[::ffff:192.0.2.7]:40000", VIP6),
    ("[::ffff:10.1.0.2]:40000", VIP6),
];
/// The VIP's own address, at its port and at another one.
const LANDS: [(&str, &str); 4] = [
    (VIP4, VIP4),
    ("10.0.0.1:40000", VIP4),
    (VIP6, VIP6),
    ("[2001:db8::1]:40000", VIP6),
];
/// Sources beside those, as somebody may have them: neighbours, a translator's (RFC 6052), and those that some networks
/// give to hosts.
const SOMEBODYS: [(&str, &str); 11] = [
    ("1.0.0.0:40000", VIP4),
    ("126.255.255.255:40000", VIP4),
    ("128.0.0.0:40000", VIP4),
    ("169.254.7.7:40000", VIP4),
    ("223.255.255.255:40000", VIP4),
    ("240.0.0.1:40000", VIP4),
    ("255.255.255.254:40000", VIP4),
    ("[fe80::7]:40000", VIP6),
    ("[64:ff9b::c000:207]:40000", VIP6),
    ("[::2]:40000", VIP6),
    ("[feff::1]:40000", VIP6),
];

/// Each of both, with the reason that it is dropped for.
fn dropped() -> impl Iterator<Item = (DropReason, &'static str, &'static str)> {
    let nobodys = NOBODYS.map(|(from, to)| (DropReason::MartianSource, from, to));
    let lands = LANDS.map(|(from, to)| (DropReason::Land, from, to));
    nobodys.into_iter().chain(lands)
}

/// Services of both families and protocols in a mode.
fn stage(mode: Mode) -> Stage {
    let mut stage = Stage::new();
    for (vip, at) in [(VIP4, SERVER4), (VIP6, SERVER6)] {
        for protocol in [TCP, UDP] {
            stage = stage.serve(mode, vip, protocol, &[server(at)]);
        }
    }
    stage
}

/// Every mode but `full-nat`, whose stage is another.
const MODES: [Mode; 5] = [Mode::Nat, Mode::Ipip, Mode::Gue, Mode::SecondHop, Mode::L2];

/// What a client may send: the beginning of a connection, its middle and its end, and a datagram.
fn packets(from: &str, to: &str) -> [Spec; 4] {
    let reset = Spec {
        transport: Transport::Tcp(Flags::RST),
        ..segment(from, to)
    };
    [syn(from, to), segment(from, to), reset, datagram(from, to)]
}

#[test]
fn packets_of_nobody_and_of_the_vip_itself_are_dropped_by_reason_in_every_mode() {
    for (reason, from, to) in dropped() {
        for packet in packets(from, to) {
            let stages = MODES.map(stage).into_iter().chain([full_nat::stage()]);
            for stage in stages {
                let outcome = stage.run(&packet.frame());
                assert_eq!(outcome, Outcome::dropped(reason), "{packet:?}");
            }
        }
    }
}

#[test]
fn sources_beside_those_are_served_in_every_mode() {
    for (from, to) in SOMEBODYS {
        for packet in [syn(from, to), datagram(from, to)] {
            let stages = MODES.map(stage).into_iter().chain([full_nat::stage()]);
            for stage in stages {
                let verdict = stage.run(&packet.frame()).verdict;
                assert_eq!(verdict, Verdict::Redirect(EGRESS), "{packet:?}");
            }
        }
    }
}

#[test]
fn options_and_extension_headers_hide_nobody() {
    for (reason, from, to) in dropped() {
        let mut packet = syn(from, to);
        if packet.from.is_ipv4() {
            packet.options = vec![1; 8];
        } else {
            packet.extensions = vec![Extension::HopByHop(6), Extension::Destination(14)];
        }
        let outcome = stage(Mode::Ipip).run(&packet.frame());
        assert_eq!(outcome, Outcome::dropped(reason), "{packet:?}");
    }
}

/// One fragment of a datagram, at an offset in units of eight bytes.
fn fragment(packet: Spec, more: bool, offset: u16) -> Spec {
    let mut fragment = Spec {
        fragment: (false, more, offset),
        payload: vec![7; 64],
        ..packet
    };
    if offset != 0 {
        fragment.transport = Transport::Other(fragment.number().0);
    }
    if fragment.from.is_ipv6() {
        fragment.extensions.push(Extension::Fragment(offset, more));
    }
    fragment
}

#[test]
fn fragments_of_nobody_and_of_the_vip_itself_are_dropped_each_and_not_held() {
    for (reason, from, to) in dropped() {
        for packet in [syn(from, to), datagram(from, to)] {
            let stage = stage(Mode::Ipip);
            for (more, offset) in [(true, 0), (true, 9), (false, 17)] {
                let piece = fragment(packet.clone(), more, offset);
                let outcome = stage.run(&piece.frame());
                assert_eq!(outcome, Outcome::dropped(reason), "{piece:?}");
            }
            assert!(stage.give_back().is_empty());
        }
    }
}

#[test]
fn messages_of_nobody_and_of_the_vip_itself_are_dropped_whatever_they_say() {
    for (reason, from, to) in dropped() {
        let (client, kinds) = if socket(to).is_ipv4() {
            // An error about an answer, an echo request and its reply, and an advertisement of a router.
            (CLIENT4, [(3, 4), (8, 0), (0, 0), (9, 0)])
        } else {
            // The last one a neighbour's.
            (CLIENT6, [(2, 0), (128, 0), (129, 0), (135, 0)])
        };
        let quoted = segment(to, client).ip();
        for kind in kinds {
            let message = icmp::message(from, to, kind, [0; 4], &quoted);
            let outcome = stage(Mode::Ipip).run(&message.frame());
            assert_eq!(outcome, Outcome::dropped(reason), "{kind:?} {message:?}");
        }
    }
}

#[test]
fn a_neighbour_that_looks_for_a_vip_by_its_link_local_address_reaches_the_kernel() {
    // RFC 4861 §4.3, §7.2.2: solicitations of a neighbour, to the address itself and to its group, and one of who wants
    // to have the address.
    let target: [u8; 16] = match socket(VIP6).ip() {
        std::net::IpAddr::V6(vip) => vip.octets(),
        std::net::IpAddr::V4(_) => unreachable!("a VIP of IPv6"),
    };
    for (from, to) in [
        ("[fe80::7]:0", VIP6),
        ("[fe80::7]:0", "[ff02::1:ff00:1]:0"),
        ("[::]:0", "[ff02::1:ff00:1]:0"),
    ] {
        let frame = icmp::message(from, to, (135, 0), [0; 4], &target).frame();
        let outcome = stage(Mode::Ipip).run(&frame);
        assert_eq!(outcome, Outcome::passed(frame), "{from} {to}");
    }
}

#[test]
fn at_a_port_that_no_service_has_they_are_dropped_and_never_answered() {
    for policy in [
        None,
        Some(refusal::RESET),
        Some(refusal::UNREACHABLE),
        Some(refusal::DROP),
    ] {
        for (reason, from, to) in dropped() {
            let mut to = socket(to);
            to.set_port(81);
            let to = to.to_string();
            for packet in [syn(from, &to), datagram(from, &to)] {
                let mut stage = stage(Mode::Nat);
                if let Some(policy) = policy {
                    stage = stage.unknown_port(policy);
                }
                let outcome = stage.run(&packet.frame());
                assert_eq!(outcome, Outcome::dropped(reason), "{policy:?} {packet:?}");
            }
        }
    }
}

#[test]
fn of_protocols_that_no_service_has_they_are_dropped_where_those_are_not_the_kernels() {
    for (reason, from, to) in dropped() {
        let packet = Spec {
            transport: Transport::Other(132),
            ..syn(from, to)
        };
        let frame = packet.frame();
        let outcome = stage(Mode::Nat).unknown_port(refusal::RESET).run(&frame);
        assert_eq!(outcome, Outcome::dropped(reason), "{packet:?}");
        let outcome = stage(Mode::Nat).run(&frame);
        assert_eq!(outcome, Outcome::passed(frame), "{packet:?}");
    }
}

#[test]
fn to_any_other_address_they_are_the_kernels_as_they_came() {
    let others = NOBODYS.map(|(from, to)| {
        let to = if to == VIP4 { SERVER4 } else { SERVER6 };
        (from, to)
    });
    let lands = [(SERVER4, SERVER4), (SERVER6, SERVER6)];
    let pools = [
        (full_nat::FROM4, full_nat::FROM4),
        ("127.0.0.1:80", full_nat::FROM4),
        ("[::1]:80", full_nat::FROM6),
    ];
    for (from, to) in others.into_iter().chain(lands).chain(pools) {
        for packet in packets(from, to) {
            let first = fragment(datagram(from, to), true, 0);
            let kind = if packet.from.is_ipv4() {
                (8, 0)
            } else {
                (128, 0)
            };
            let echo = icmp::message(from, to, kind, [0; 4], b"echo");
            for packet in [packet, first, echo] {
                let frame = packet.frame();
                for stage in [
                    stage(Mode::Nat),
                    full_nat::stage(),
                    stage(Mode::Nat).unknown_port(refusal::DROP),
                ] {
                    let outcome = stage.run(&frame);
                    assert_eq!(outcome, Outcome::passed(frame.clone()), "{packet:?}");
                }
            }
        }
    }
}

#[test]
fn a_packet_of_ipv6_is_to_no_vip_of_ipv4() {
    let mapped = "[::ffff:10.0.0.1]:80";
    for mode in [Mode::Ipip, Mode::Gue, Mode::L2, Mode::Nat, Mode::FullNat] {
        let mut stage = Stage::new();
        for protocol in [TCP, UDP] {
            stage = stage.serve(mode, VIP4, protocol, &[server(SERVER4)]);
            if mode == Mode::FullNat {
                stage = stage.translating(&[full_nat::POOL4], full_nat::PORTS);
            }
        }
        let stage = stage.unknown_port(refusal::UNREACHABLE);
        let first = Spec {
            extensions: vec![Extension::Fragment(0, true)],
            ..datagram(CLIENT6, mapped)
        };
        let quoted = segment(mapped, CLIENT6).ip();
        for packet in [
            syn(CLIENT6, mapped),
            segment(CLIENT6, mapped),
            datagram(CLIENT6, mapped),
            syn(CLIENT6, "[::ffff:10.0.0.1]:81"),
            first,
            icmp::message(CLIENT6, mapped, (128, 0), [0; 4], b"are you there?"),
            icmp::message(CLIENT6, mapped, (2, 0), [0, 0, 5, 0], &quoted),
        ] {
            let frame = packet.frame();
            let outcome = stage.run(&frame);
            assert_eq!(outcome, Outcome::passed(frame), "{mode:?} {packet:?}");
        }
    }
}
