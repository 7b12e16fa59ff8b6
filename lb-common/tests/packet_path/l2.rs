//! `l2`: the frame as it was, but for its MAC addresses.

use lb_common::verdict::{DropReason, Verdict};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Spec, Transport, datagram, segment, syn},
    support::{EGRESS, INGRESS, Mode, Outcome, Server, Stage, macs, server},
};

fn stage(server: Server) -> Stage {
    let servers = [server];
    Stage::new()
        .serve(Mode::L2, VIP4, TCP, &servers)
        .serve(Mode::L2, VIP4, UDP, &servers)
        .serve(Mode::L2, VIP6, TCP, &servers)
        .serve(Mode::L2, VIP6, UDP, &servers)
}

/// Packets of every family and protocol, and their services' positions.
fn packets() -> [(Spec, u8); 4] {
    [
        (segment(CLIENT4, VIP4), 0),
        (datagram(CLIENT4, VIP4), 1),
        (segment(CLIENT6, VIP6), 2),
        (datagram(CLIENT6, VIP6), 3),
    ]
}

/// It leaves for a server with that server's MAC addresses, and nothing else of it changes.
fn assert_readdressed(packet: &Spec, position: u8, to: &str, opens: u64) {
    let expected = Spec {
        macs: macs(position),
        ..packet.clone()
    };
    let count = (1, packet.frame().len() as u64, opens);
    let place = u32::from(position);
    let mut outcome = Outcome::forwarded(Verdict::Redirect(EGRESS), expected.frame(), place, count);
    outcome.counted.services = [(place, count)].into();
    assert_eq!(
        stage(server(to)).run(&packet.frame()),
        outcome,
        "{packet:?}"
    );
}

#[test]
fn only_mac_addresses_change_whatever_the_servers_family() {
    for to in [SERVER4, SERVER6] {
        for (packet, position) in packets() {
            assert_readdressed(&packet, position, to, 0);
        }
        assert_readdressed(&syn(CLIENT4, VIP4), 0, to, 1);
    }
}

#[test]
fn what_a_rewriting_mode_would_touch_stays_as_it_is() {
    for (packet, position) in packets() {
        let v4 = packet.from.is_ipv4();
        for ttl in [0, 1, 255] {
            let packet = Spec {
                ttl,
                traffic_class: 0xb9,
                options: if v4 { vec![1; 8] } else { Vec::new() },
                extensions: if v4 {
                    Vec::new()
                } else {
                    vec![Extension::Destination(6)]
                },
                trailer: vec![0xaa; 7],
                ..packet.clone()
            };
            assert_readdressed(&packet, position, SERVER4, 0);
        }
    }
    let unsummed = Spec {
        transport: Transport::Udp(false),
        ..datagram(CLIENT4, VIP4)
    };
    assert_readdressed(&unsummed, 1, SERVER4, 0);
}

#[test]
fn a_server_behind_the_interface_that_the_frame_came_in_by_gets_it_transmitted() {
    for (packet, _) in packets() {
        let outcome = stage(server(SERVER4).behind(INGRESS)).run(&packet.frame());
        assert_eq!(outcome.verdict, Verdict::Transmit);
    }
}

#[test]
fn no_headroom_is_needed() {
    for (packet, _) in packets() {
        let (stage, frame) = (stage(server(SERVER4)), packet.frame());
        assert_eq!(stage.run_with(&frame, 0), stage.run(&frame));
    }
}

#[test]
fn a_server_without_a_next_hop_gets_nothing() {
    for (packet, _) in packets() {
        let outcome = stage(server(SERVER4).behind(0)).run(&packet.frame());
        assert_eq!(outcome, Outcome::dropped(DropReason::NoNextHop));
    }
}
