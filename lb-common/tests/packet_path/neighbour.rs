//! Who has a VIP on its link: ARP requests and neighbour solicitations are answered, each as the RFCs say, and announcements say the
//! same unasked. ARP packets and checksums are etherparse's.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv6Header, Icmpv6Type,
    Ipv6Header, ip_number,
};
use lb_common::{
    neighbour::{self, Claim},
    packet::SlicePacket,
    pipeline,
    tables::Address,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, VIP4, VIP6,
    frames::socket,
    support::{Mac, Mode, OWN_MAC, Outcome, Stage, server},
};

const ASKER: Mac = [2, 0, 0, 0, 0, 9];
const BROADCAST: Mac = [0xff; 6];
/// Of `ff02::1:ff00:1` (RFC 2464 §7).
const VIP6_GROUP_MAC: Mac = [0x33, 0x33, 0xff, 0, 0, 1];
const VIP6_GROUP: &str = "ff02::1:ff00:1";

fn v4(address: &str) -> [u8; 4] {
    match socket(address).ip() {
        std::net::IpAddr::V4(v4) => v4.octets(),
        v6 => panic!("{v6}"),
    }
}

fn v6(address: &str) -> [u8; 16] {
    let address: std::net::Ipv6Addr = address.parse().expect("an IPv6 address");
    address.octets()
}

fn stage() -> Stage {
    Stage::new()
        .serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)])
        .serve(Mode::Ipip, VIP6, TCP, &[server(SERVER6)])
}

fn ethernet(source: Mac, destination: Mac, ether_type: EtherType) -> Vec<u8> {
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    header.to_bytes().to_vec()
}

/// An ARP frame: who sends it, and what it says of whom.
fn arp(
    (source, destination): (Mac, Mac),
    operation: ArpOperation,
    sender: (Mac, &str),
    target: (Mac, &str),
) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender.0,
        &v4(sender.1),
        &target.0,
        &v4(target.1),
    );
    let packet = packet.expect("lengths that fit");
    let mut frame = ethernet(source, destination, EtherType::ARP);
    frame.extend(packet.to_bytes());
    frame
}

fn request(sender: &str, target: &str) -> Vec<u8> {
    let ends = (ASKER, BROADCAST);
    arp(
        ends,
        ArpOperation::REQUEST,
        (ASKER, sender),
        ([0; 6], target),
    )
}

/// A solicitation, field by field.
#[derive(Clone)]
struct Solicitation {
    to_mac: Mac,
    from: String,
    to: String,
    hop_limit: u8,
    code: u8,
    target: String,
    options: Vec<u8>,
    trailer: Vec<u8>,
}

fn source_option(mac: Mac) -> Vec<u8> {
    [&[1, 1][..], &mac].concat()
}

fn solicitation() -> Solicitation {
    Solicitation {
        to_mac: VIP6_GROUP_MAC,
        from: socket(CLIENT6).ip().to_string(),
        to: VIP6_GROUP.to_owned(),
        hop_limit: 255,
        code: 0,
        target: socket(VIP6).ip().to_string(),
        options: source_option(ASKER),
        trailer: Vec::new(),
    }
}

fn icmpv6(kind: (u8, u8), from: [u8; 16], to: [u8; 16], flags: u8, body: &[u8]) -> Vec<u8> {
    let (type_u8, code_u8) = kind;
    let icmp = Icmpv6Type::Unknown {
        type_u8,
        code_u8,
        bytes5to8: [flags, 0, 0, 0],
    };
    let header = Icmpv6Header::with_checksum(icmp, from, to, body).expect("a length that fits");
    [&header.to_bytes()[..], body].concat()
}

fn packet_v6(from: [u8; 16], to: [u8; 16], hop_limit: u8, content: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: content.len() as u16,
        next_header: ip_number::IPV6_ICMP,
        hop_limit,
        source: from,
        destination: to,
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], content].concat()
}

impl Solicitation {
    fn frame(&self) -> Vec<u8> {
        let (from, to) = (v6(&self.from), v6(&self.to));
        let body = [&v6(&self.target)[..], &self.options].concat();
        let content = icmpv6((135, self.code), from, to, 0, &body);
        let mut frame = ethernet(ASKER, self.to_mac, EtherType::IPV6);
        frame.extend(packet_v6(from, to, self.hop_limit, &content));
        frame.extend(&self.trailer);
        frame
    }
}

/// An advertisement that the VIP is here.
fn advertisement((to_mac, to): (Mac, &str), flags: u8) -> Vec<u8> {
    let vip = v6(&socket(VIP6).ip().to_string());
    let option = [&[2, 1][..], &OWN_MAC].concat();
    let content = icmpv6((136, 0), vip, v6(to), flags, &[&vip[..], &option].concat());
    let mut frame = ethernet(OWN_MAC, to_mac, EtherType::IPV6);
    frame.extend(packet_v6(vip, v6(to), 255, &content));
    frame
}

fn client6() -> String {
    socket(CLIENT6).ip().to_string()
}

#[test]
fn a_request_for_a_vip_is_answered_with_the_interfaces_hardware_address() {
    let reply = |to: (Mac, &str)| {
        let ends = (OWN_MAC, to.0);
        let frame = arp(ends, ArpOperation::REPLY, (OWN_MAC, VIP4), to);
        Outcome::answered(Answer::Arp, frame)
    };
    let stage = stage().announcing();
    assert_eq!(stage.run(&request(CLIENT4, VIP4)), reply((ASKER, CLIENT4)));
    // A probe of one that wants the address (RFC 5227 §2.1.1) has none to be answered at.
    assert_eq!(
        stage.run(&request("0.0.0.0:0", VIP4)),
        reply((ASKER, "0.0.0.0:0"))
    );
}

#[test]
fn what_pads_a_request_pads_its_reply() {
    let padding = [0x5a; 18];
    let asked = [request(CLIENT4, VIP4), padding.to_vec()].concat();
    let answered = stage().announcing().run(&asked);
    assert_eq!(answered.frame.0.len(), 60);
    assert_eq!(answered.frame.0[42..], padding);
}

#[test]
fn other_arp_packets_are_the_kernels() {
    let ends = (ASKER, BROADCAST);
    let asked = |target| request(CLIENT4, target);
    let reply = arp(ends, ArpOperation::REPLY, (ASKER, VIP4), (OWN_MAC, CLIENT4));
    let announced_by_others = request(VIP4, VIP4);
    let mut of_another_protocol = asked(VIP4);
    of_another_protocol[16..18].copy_from_slice(&[0x86, 0xdd]);
    let mut cut = asked(VIP4);
    cut.truncate(41);
    let others = asked(SERVER4);
    for frame in [others, reply, announced_by_others, of_another_protocol, cut] {
        let passed = Outcome::passed(frame.clone());
        assert_eq!(stage().announcing().run(&frame), passed);
    }
}

#[test]
fn without_announce_or_a_known_interface_neighbours_are_the_kernels_to_answer() {
    for frame in [request(CLIENT4, VIP4), solicitation().frame()] {
        let passed = Outcome::passed(frame.clone());
        assert_eq!(stage().run(&frame), passed);
        assert_eq!(stage().announcing_nowhere().run(&frame), passed);
    }
    // Announced is what was there when it was: no service that came later.
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP6, TCP, &[server(SERVER6)])
        .announcing()
        .serve(Mode::Ipip, VIP4, TCP, &[server(SERVER4)]);
    let frame = request(CLIENT4, VIP4);
    assert_eq!(stage.run(&frame), Outcome::passed(frame));
}

#[test]
fn a_request_that_contradicts_itself_is_dropped() {
    let malformed = Outcome::dropped(DropReason::ArpMalformed);
    let broken = |at: usize, bytes: &[u8]| {
        let mut frame = request(CLIENT4, VIP4);
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for frame in [
        // Hardware of another kind, addresses of another length; from everybody, from nobody.
        broken(14, &[0, 6]),
        broken(18, &[8]),
        broken(22, &[0xff; 6]),
        broken(22, &[1, 0, 0x5e, 0, 0, 1]),
        broken(22, &[0; 6]),
    ] {
        assert_eq!(stage().announcing().run(&frame), malformed);
    }
}

#[test]
fn a_solicitation_is_answered_to_who_sent_it_with_both_flags() {
    let client = client6();
    let answered = |mac| Outcome::answered(Answer::Neighbour, advertisement((mac, &client), 0x60));
    let other: Mac = [2, 0, 0, 0, 0, 0x33];
    let stage = stage().announcing();
    let base = solicitation();
    let padded = Solicitation {
        trailer: vec![0; 6],
        ..base.clone()
    };
    for (solicitation, mac) in [
        (base.clone(), ASKER),
        (padded, ASKER),
        // To the VIP itself, as one that checks whether it is still there; without an option.
        (
            Solicitation {
                to_mac: OWN_MAC,
                to: base.target.clone(),
                options: Vec::new(),
                ..base.clone()
            },
            ASKER,
        ),
        // The option counts; so does one behind others, a nonce (RFC 3971 §5.3.2) say.
        (
            Solicitation {
                options: source_option(other),
                ..base.clone()
            },
            other,
        ),
        (
            Solicitation {
                options: [&[14, 2][..], &[7; 14], &source_option(other)].concat(),
                ..base
            },
            other,
        ),
    ] {
        assert_eq!(stage.run(&solicitation.frame()), answered(mac));
    }
}

#[test]
fn who_probes_for_the_address_is_told_as_all_nodes_are() {
    let probe = Solicitation {
        from: "::".to_owned(),
        options: Vec::new(),
        ..solicitation()
    };
    let told = advertisement(([0x33, 0x33, 0, 0, 0, 1], "ff02::1"), 0x20);
    let stage = stage().announcing();
    assert_eq!(
        stage.run(&probe.frame()),
        Outcome::answered(Answer::Neighbour, told.clone())
    );
    // With a nonce (RFC 7527 §4).
    let with_nonce = Solicitation {
        options: [&[14, 1][..], &[7; 6]].concat(),
        ..probe.clone()
    };
    assert_eq!(
        stage.run(&with_nonce.frame()),
        Outcome::answered(Answer::Neighbour, told)
    );
    for broken in [
        Solicitation {
            options: source_option(ASKER),
            ..probe.clone()
        },
        Solicitation {
            to: "ff02::1".to_owned(),
            ..probe.clone()
        },
        Solicitation {
            to: "ff02::1:ff00:2".to_owned(),
            ..probe.clone()
        },
        Solicitation {
            to: probe.target.clone(),
            ..probe
        },
    ] {
        let malformed = Outcome::dropped(DropReason::NdMalformed);
        assert_eq!(stage.run(&broken.frame()), malformed);
    }
}

#[test]
fn a_solicitation_that_breaks_the_rfcs_rules_is_dropped_by_the_rule_that_it_breaks() {
    let base = solicitation();
    let stage = stage().announcing();
    let dropped = |frame: &[u8]| stage.run(frame);
    let routed = Solicitation {
        hop_limit: 254,
        ..base.clone()
    };
    assert_eq!(
        dropped(&routed.frame()),
        Outcome::dropped(DropReason::NdHopLimit)
    );
    // Every byte that the checksum covers, but those by which it would be something else.
    for at in (22..38).chain([56, 57]).chain(58..62).chain(80..86) {
        let mut frame = base.frame();
        frame[at] ^= 0x40;
        let dropped = dropped(&frame);
        assert_eq!(dropped, Outcome::dropped(DropReason::NdChecksum), "{at}");
    }
    let long = |units: usize| [vec![14, units as u8], vec![7; 8 * units - 2]].concat();
    for broken in [
        Solicitation {
            code: 1,
            ..base.clone()
        },
        Solicitation {
            from: "ff02::5".to_owned(),
            ..base.clone()
        },
        // An option without length, beyond the end, of half an option more; one more than is read.
        Solicitation {
            options: vec![14, 0, 0, 0, 0, 0, 0, 0],
            ..base.clone()
        },
        Solicitation {
            options: [source_option(ASKER), vec![14, 2, 0, 0, 0, 0, 0, 0]].concat(),
            ..base.clone()
        },
        Solicitation {
            options: [source_option(ASKER), vec![14, 1, 0, 0]].concat(),
            ..base.clone()
        },
        Solicitation {
            options: long(6),
            ..base.clone()
        },
        // From everybody.
        Solicitation {
            options: source_option([0x33, 0x33, 0, 0, 0, 1]),
            ..base.clone()
        },
    ] {
        let malformed = Outcome::dropped(DropReason::NdMalformed);
        assert_eq!(dropped(&broken.frame()), malformed);
    }
    let longest = Solicitation {
        options: [long(4), source_option(ASKER)].concat(),
        ..base
    };
    assert_eq!(
        stage.run(&longest.frame()).frame,
        stage.run(&solicitation().frame()).frame
    );
}

#[test]
fn a_solicitation_for_another_address_and_what_is_cut_short_are_the_kernels() {
    let other = Solicitation {
        target: "2001:db8::2".to_owned(),
        ..solicitation()
    };
    let mut cut = solicitation().frame();
    cut.truncate(77);
    let advertisement = advertisement((ASKER, &client6()), 0x60);
    for frame in [other.frame(), cut, advertisement] {
        let passed = Outcome::passed(frame.clone());
        assert_eq!(stage().announcing().run(&frame), passed);
    }
}

#[test]
fn a_solicitation_without_room_for_the_answers_option_is_dropped() {
    let short = Solicitation {
        options: Vec::new(),
        ..solicitation()
    };
    let stage = stage().announcing();
    let none = stage.run_with(&short.frame(), 6);
    assert_eq!(none, Outcome::dropped(DropReason::NoHeadroom));
    let enough = stage.run_with(&short.frame(), 8);
    assert_eq!(enough.frame.0.len(), 86);
    assert_eq!(enough.counted.drops.len(), 0);
}

/// The frame of an announcement.
fn announced(vip: &str) -> Vec<u8> {
    let vip = Address::from(socket(vip).ip());
    let mut frame = vec![0; neighbour::announcement_length(vip)];
    let mut packet = SlicePacket::new(&mut frame, 0, 1);
    neighbour::announce(&mut packet, OWN_MAC, vip).expect("room");
    frame
}

#[test]
fn announcements_tell_all_of_the_link_and_override_what_it_knew() {
    let ends = (OWN_MAC, BROADCAST);
    let arp = arp(ends, ArpOperation::REQUEST, (OWN_MAC, VIP4), ([0; 6], VIP4));
    assert_eq!(announced(VIP4), arp);
    let all_nodes = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1");
    assert_eq!(announced(VIP6), advertisement(all_nodes, 0x20));
}

/// What a frame claims.
fn claim(frame: &[u8]) -> Option<Claim> {
    let mut frame = frame.to_vec();
    neighbour::claim(&SlicePacket::new(&mut frame, 0, 1))
}

#[test]
fn announcements_replies_and_requests_claim_their_senders_address() {
    let at = |address: &str, mac| {
        let address = socket(address).ip().into();
        Some(Claim { address, mac })
    };
    assert_eq!(claim(&announced(VIP4)), at(VIP4, OWN_MAC));
    assert_eq!(claim(&announced(VIP6)), at(VIP6, OWN_MAC));
    assert_eq!(claim(&request(VIP4, CLIENT4)), at(VIP4, ASKER));
    let ends = (ASKER, OWN_MAC);
    let reply = arp(ends, ArpOperation::REPLY, (ASKER, VIP4), (OWN_MAC, CLIENT4));
    assert_eq!(claim(&reply), at(VIP4, ASKER));
}

#[test]
fn what_names_nobody_or_has_passed_a_router_claims_nothing() {
    assert_eq!(claim(&solicitation().frame()), None);
    for (at, byte) in [
        // Ether type, hop limit, type, kind of the option.
        (12, 0x08),
        (21, 254),
        (54, 135),
        (78, 1),
    ] {
        let mut frame = announced(VIP6);
        frame[at] = byte;
        assert_eq!(claim(&frame), None, "{at}");
    }
    let mut token_ring = announced(VIP4);
    token_ring[15] = 6;
    assert_eq!(claim(&token_ring), None);
    assert_eq!(claim(&[0; 20]), None);
}

#[test]
fn nobody_is_told_who_has_what_stands_for_a_vip_of_ipv4() {
    let asked = Solicitation {
        target: "::ffff:10.0.0.1".to_owned(),
        ..solicitation()
    };
    let outcome = stage().announcing().run(&asked.frame());
    assert_eq!(outcome, Outcome::passed(asked.frame()));
}

#[test]
fn a_solicitation_is_dropped_that_is_not_there_as_far_as_it_says() {
    let malformed = Outcome::dropped(DropReason::NdMalformed);
    // In another buffer.
    let frame = solicitation().frame();
    let (verdict, _) = stage().announcing().run_in_buffers(&frame, 80);
    assert_eq!(verdict, malformed.verdict);
    let mut cut = frame.clone();
    cut.truncate(80);
    let (verdict, _) = stage()
        .announcing()
        .run_alone(&cut, |packet, tables| pipeline::neighbour(packet, tables));
    assert_eq!(verdict, malformed.verdict);
}

#[test]
fn what_comes_to_the_program_and_asks_nothing_is_the_kernels() {
    let mut other = solicitation().frame();
    other[20] = TCP;
    let arp_cut = request(CLIENT4, VIP4)[..40].to_vec();
    let cut = solicitation().frame()[..60].to_vec();
    for frame in [other, arp_cut, cut] {
        let (verdict, bytes) = stage()
            .announcing()
            .run_alone(&frame, |packet, tables| pipeline::neighbour(packet, tables));
        assert_eq!((verdict, bytes), (Verdict::Pass, frame));
    }
}

#[test]
fn an_option_of_another_length_does_not_say_where_its_sender_is() {
    let odd = Solicitation {
        options: [&[1, 2][..], &[7; 14]].concat(),
        ..solicitation()
    };
    let outcome = stage().announcing().run(&odd.frame());
    let expected = advertisement((ASKER, &client6()), 0x60);
    assert_eq!(outcome, Outcome::answered(Answer::Neighbour, expected));
}

#[test]
fn addresses_of_another_protocol_and_packets_of_another_claim_nothing() {
    let mut of_v6 = announced(VIP4);
    of_v6[16..18].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(claim(&of_v6), None);
    let mut tcp = announced(VIP6);
    tcp[20] = TCP;
    assert_eq!(claim(&tcp), None);
}
