//! What is none of the balancer's business leaves as it came.

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Spec, Transport, datagram, segment, syn},
    support::{EGRESS, Mode, Outcome, Stage, server},
};

fn stage() -> Stage {
    Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)])
        .serve(Mode::Ipip, VIP4, UDP, &[server(SERVER4)])
        .serve(Mode::Nat, VIP6, TCP, &[server(SERVER6)])
        .serve(Mode::Ipip, VIP6, UDP, &[server(SERVER6)])
}

fn assert_untouched(frame: &[u8], what: &str) {
    assert_eq!(
        stage().run(frame),
        Outcome::passed(frame.to_vec()),
        "{what}"
    );
}

#[test]
fn packets_to_other_addresses_ports_and_protocols() {
    for packet in [
        syn(CLIENT4, "10.0.0.2:80"),
        syn(CLIENT4, "10.0.0.1:81"),
        syn(CLIENT6, "[2001:db8::2]:80"),
        syn(CLIENT6, "[2001:db8::1]:81"),
        segment(CLIENT4, SERVER4),
        datagram(CLIENT4, "10.0.0.1:53"),
        datagram(CLIENT6, "[2001:db8::1]:53"),
    ] {
        assert_untouched(&packet.frame(), &format!("{packet:?}"));
    }
}

#[test]
fn protocols_that_no_service_has_even_to_a_vip() {
    for number in [2, 4, 41, 47, 50, 59, 89, 132, 255] {
        for packet in [syn(CLIENT4, VIP4), syn(CLIENT6, VIP6)] {
            let packet = Spec {
                transport: Transport::Other(number),
                payload: vec![8, 0, 0, 0, 0, 1, 0, 2],
                ..packet
            };
            assert_untouched(&packet.frame(), &format!("{packet:?}"));
        }
    }
    let echo = Spec {
        transport: Transport::Other(58),
        extensions: vec![Extension::HopByHop(6), Extension::Destination(14)],
        ..syn(CLIENT6, VIP6)
    };
    assert_untouched(&echo.frame(), "ICMPv6 behind extension headers");
}

#[test]
fn frames_that_are_no_ip() {
    // ARP, LLDP, 802.1Q, 802.1ad, MPLS, PPPoE, a length, and both IP types in the wrong byte order.
    for ether_type in [
        0x0806, 0x88cc, 0x8100, 0x88a8, 0x8847, 0x8864, 46, 0x0008, 0xdd86u16,
    ] {
        for packet in [syn(CLIENT4, VIP4), syn(CLIENT6, VIP6)] {
            let mut frame = packet.frame();
            frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
            assert_untouched(&frame, &format!("ether type {ether_type:#06x}"));
        }
    }
}

#[test]
fn an_ip_packet_under_the_other_familys_ether_type() {
    for (packet, ether_type) in [
        (syn(CLIENT6, VIP6), 0x0800u16),
        (syn(CLIENT4, VIP4), 0x86dd),
    ] {
        let mut frame = packet.frame();
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        assert_untouched(&frame, &format!("{packet:?}"));
    }
}

#[test]
fn frames_too_short_for_their_first_headers() {
    for packet in [syn(CLIENT4, VIP4), syn(CLIENT6, VIP6)] {
        let frame = packet.frame();
        let headers = if packet.from.is_ipv4() { 34 } else { 54 };
        for length in 0..headers {
            assert_untouched(&frame[..length], &format!("{length} bytes"));
        }
    }
}

#[test]
fn broken_packets_to_addresses_that_are_no_vip() {
    let fragment = Spec {
        fragment: (false, true, 0),
        ..syn(CLIENT4, "10.0.0.2:80")
    };
    assert_untouched(&fragment.frame(), "a fragment");
    let mut bad = syn(CLIENT4, "10.0.0.2:80").frame();
    bad[14] = 0x44;
    assert_untouched(&bad, "a short header length");
    let mut long = syn(CLIENT6, "[2001:db8::2]:80").frame();
    long[18] = 0x40;
    assert_untouched(&long, "a payload beyond the frame");
    let chain = Spec {
        extensions: vec![Extension::Destination(6); 7],
        ..syn(CLIENT6, "[2001:db8::2]:80")
    };
    assert_untouched(&chain.frame(), "a long chain");
    let own = stage().own("10.0.0.2").run(&fragment.frame());
    assert_eq!(
        own,
        Outcome::passed(fragment.frame()),
        "an address of our own"
    );
}

#[test]
fn without_services_everything() {
    for packet in [syn(CLIENT4, VIP4), datagram(CLIENT6, VIP6)] {
        let frame = packet.frame();
        let stage = Stage::new()
            .looking_for_answers(true)
            .route(packet.to.ip(), EGRESS);
        assert_eq!(stage.run(&frame), Outcome::passed(frame));
    }
}
