//! Services that lower the MSS of SYNs: what comes out is what would have come out of a SYN with the lower
//! one, whose checksums are etherparse's.

use etherparse::TcpHeader;
use lb_common::{mss, tables::NoRoute, verdict::Verdict};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Spec, datagram, socket},
    refuse::tcp,
    support::{EGRESS, INGRESS, Mode, Outcome, Server, Stage, server},
};

const MODES: [Mode; 5] = [Mode::Nat, Mode::Ipip, Mode::Gue, Mode::SecondHop, Mode::L2];
/// Client, VIP, backend, by all pairs of families.
const ENDS: [(&str, &str, &str); 4] = [
    (CLIENT4, VIP4, SERVER4),
    (CLIENT4, VIP4, SERVER6),
    (CLIENT6, VIP6, SERVER6),
    (CLIENT6, VIP6, SERVER4),
];
const MSS: u8 = 2;

/// Every mode and the ends that it serves.
fn ways() -> impl Iterator<Item = (Mode, &'static str, &'static str, &'static str)> {
    let ways = MODES
        .iter()
        .flat_map(|&mode| ENDS.map(|(client, vip, at)| (mode, client, vip, at)));
    ways.filter(|&(mode, _, vip, at)| {
        mode != Mode::Nat || socket(vip).is_ipv4() == socket(at).is_ipv4()
    })
}

fn stage(mode: Mode, vip: &str, server: Server) -> Stage {
    Stage::new()
        .serve(mode, vip, TCP, &[server])
        .serve(mode, vip, UDP, &[server])
        .route(socket(CLIENT4).ip(), INGRESS)
        .route(socket(CLIENT6).ip(), EGRESS)
}

/// An option that tells an MSS.
fn told(mss: u16) -> [u8; 4] {
    let [high, low] = mss.to_be_bytes();
    [MSS, 4, high, low]
}

/// What hosts send: MSS, SACK permitted, timestamps, window scale.
fn common(mss: u16) -> Vec<u8> {
    let rest = [4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    [&told(mss)[..], &rest].concat()
}

fn with(from: &str, to: &str, change: impl Fn(&mut TcpHeader), options: &[u8]) -> Spec {
    let set = |header: &mut TcpHeader| {
        change(header);
        header.options = options.try_into().expect("whole words");
    };
    tcp(from, to, set, b"")
}

fn syn(from: &str, to: &str, options: &[u8]) -> Spec {
    with(from, to, |header| header.syn = true, options)
}

fn syn_ack(from: &str, to: &str, options: &[u8]) -> Spec {
    let flags = |header: &mut TcpHeader| (header.syn, header.ack) = (true, true);
    with(from, to, flags, options)
}

/// What comes of `packet` where the MSS is lowered so, and of `other` where it is not.
fn both(way: (Mode, &str, &str), mss: u16, packet: &Spec, other: &Spec) -> [Outcome; 2] {
    let (mode, vip, at) = way;
    let lowering = server(at).within(1_480).lowering(mss);
    let plain = server(at).within(1_480);
    [
        stage(mode, vip, lowering).run(&packet.frame()),
        stage(mode, vip, plain).run(&other.frame()),
    ]
}

#[test]
fn a_higher_mss_becomes_the_configured_one_in_every_mode() {
    for (mode, client, vip, at) in ways() {
        for mss in [9_000, 1_401] {
            let higher = syn(client, vip, &common(mss));
            let lower = syn(client, vip, &common(1_400));
            let [lowered, expected] = both((mode, vip, at), 1_400, &higher, &lower);
            assert_eq!(lowered, expected, "{mode:?} {vip} {at}");
            assert_ne!(lowered.verdict, Verdict::Pass);
        }
    }
}

#[test]
fn auto_is_what_the_way_leaves_beside_the_headers_of_the_clients_family() {
    for (mode, client, vip, at) in ways() {
        let limit = if client == CLIENT4 { 1_440 } else { 1_420 };
        let higher = syn(client, vip, &common(1_460));
        let lower = syn(client, vip, &common(limit));
        let [lowered, expected] = both((mode, vip, at), mss::AUTO, &higher, &lower);
        assert_eq!(lowered, expected, "{mode:?} {vip} {at}");
    }
}

#[test]
fn an_mss_that_is_low_enough_stays() {
    for (mode, client, vip, at) in ways() {
        for mss in [1_400, 1_399, 536, 0] {
            let packet = syn(client, vip, &common(mss));
            let [lowered, expected] = both((mode, vip, at), 1_400, &packet, &packet);
            assert_eq!(lowered, expected, "{mode:?} {vip} {at} {mss}");
        }
    }
}

#[test]
fn the_option_is_found_at_any_place() {
    for (client, vip, at) in ENDS {
        for before in 0..=36 {
            let options = |mss| {
                let mut options = vec![1; before];
                options.extend(told(mss));
                options.resize(40, 0);
                options
            };
            let higher = syn(client, vip, &options(1_460));
            let lower = syn(client, vip, &options(1_300));
            let way = (Mode::Ipip, vip, at);
            let [lowered, expected] = both(way, 1_300, &higher, &lower);
            assert_eq!(lowered, expected, "{vip} {before}");
        }
        // Behind longer ones.
        let options = |mss| {
            let before = [8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 1];
            // As short as one with a length is.
            let permitted = [4, 2];
            [&before[..], &permitted, &told(mss), &[0]].concat()
        };
        let higher = syn(client, vip, &options(1_460));
        let lower = syn(client, vip, &options(1_300));
        let [lowered, expected] = both((Mode::Gue, vip, at), 1_300, &higher, &lower);
        assert_eq!(lowered, expected, "{vip}");
    }
}

#[test]
fn options_without_an_mss_that_can_be_read_stay() {
    let cases: [&[u8]; 9] = [
        &[],
        &[1, 1, 1, 1],
        // Behind the end.
        &[0, 0, 0, 0, MSS, 4, 5, 180],
        &[0, 4, 0, 0, MSS, 4, 5, 180],
        // Of another length.
        &[MSS, 3, 5, 180],
        &[MSS, 6, 5, 180, 0, 0, 0, 0],
        // Of no length that is one.
        &[8, 0, MSS, 4, 5, 180, 0, 0],
        &[8, 1, MSS, 4, 5, 180, 0, 0],
        // Beyond the header.
        &[8, 200, MSS, 4],
    ];
    for (client, vip, at) in ENDS {
        for options in cases {
            let packet = syn(client, vip, options);
            let [lowered, expected] = both((Mode::Ipip, vip, at), 1_300, &packet, &packet);
            assert_eq!(lowered, expected, "{vip} {options:?}");
        }
        // What looks like one in the data.
        let syn = |header: &mut TcpHeader| header.syn = true;
        let packet = tcp(client, vip, syn, &told(1_460));
        let [lowered, expected] = both((Mode::Ipip, vip, at), 1_300, &packet, &packet);
        assert_eq!(lowered, expected, "{vip}");
    }
}

#[test]
fn headers_before_it_do_not_hide_it() {
    let options = |mss| Spec {
        options: vec![1; 40],
        ..syn(CLIENT4, VIP4, &common(mss))
    };
    let extensions = |mss| Spec {
        extensions: vec![Extension::HopByHop(6), Extension::Destination(214)],
        ..syn(CLIENT6, VIP6, &common(mss))
    };
    for (higher, lower, vip, at) in [
        (options(1_460), options(1_300), VIP4, SERVER6),
        (extensions(1_460), extensions(1_300), VIP6, SERVER6),
    ] {
        for mode in [Mode::Ipip, Mode::Gue, Mode::L2] {
            let [lowered, expected] = both((mode, vip, at), 1_300, &higher, &lower);
            assert_eq!(lowered, expected, "{mode:?} {vip}");
        }
    }
}

#[test]
fn nothing_but_syns_of_clients_is_touched_on_the_way_to_a_backend() {
    for (mode, client, vip, at) in ways() {
        let later = |header: &mut TcpHeader| header.ack = true;
        for packet in [
            with(client, vip, later, &common(1_460)),
            syn_ack(client, vip, &common(1_460)),
            datagram(client, vip),
        ] {
            let [lowered, expected] = both((mode, vip, at), 1_300, &packet, &packet);
            assert_eq!(lowered, expected, "{mode:?} {vip} {at}");
        }
    }
}

#[test]
fn a_nat_backends_answer_is_lowered_as_its_clients_syn_is() {
    for (client, vip, at) in [(CLIENT4, VIP4, SERVER4), (CLIENT6, VIP6, SERVER6)] {
        let auto = if client == CLIENT4 { 1_440 } else { 1_420 };
        for (setting, limit) in [(1_300, 1_300), (mss::AUTO, auto)] {
            let higher = syn_ack(at, client, &common(1_460));
            let lower = syn_ack(at, client, &common(limit));
            let way = (Mode::Nat, vip, at);
            let [lowered, expected] = both(way, setting, &higher, &lower);
            assert_eq!(lowered, expected, "{vip}");
            assert_ne!(lowered.verdict, Verdict::Pass);
            // One that is no SYN.
            let later = |header: &mut TcpHeader| header.ack = true;
            let packet = with(at, client, later, &common(1_460));
            let [lowered, expected] = both(way, setting, &packet, &packet);
            assert_eq!(lowered, expected, "{vip}");
            // One that ends here goes to the kernel as it came.
            let dying = Spec { ttl: 1, ..higher };
            let [lowered, _] = both(way, setting, &dying, &dying);
            assert_eq!(lowered, Outcome::passed(dying.frame()), "{vip}");
        }
    }
}

#[test]
fn an_answer_that_the_kernel_sends_on_is_lowered_before() {
    for (client, vip, at) in [(CLIENT4, VIP4, SERVER4), (CLIENT6, VIP6, SERVER6)] {
        let stage =
            |server| stage(Mode::Nat, vip, server).no_route(socket(client).ip(), NoRoute::Kernels);
        let [lowered, expected] = [(1_460, 1_300), (1_300, mss::OFF)].map(|(mss, lowering)| {
            let packet = syn_ack(at, client, &common(mss));
            stage(server(at).lowering(lowering)).run(&packet.frame())
        });
        assert_eq!(lowered, expected, "{vip}");
        assert_eq!(lowered.verdict, Verdict::Pass);
    }
}

#[test]
fn answers_to_probes_of_the_balancers_own_stay() {
    let stage = stage(Mode::Nat, VIP4, server(SERVER4).lowering(1_300)).own("192.0.2.7");
    let packet = syn_ack(SERVER4, CLIENT4, &common(1_460));
    let outcome = stage.run(&packet.frame());
    assert_eq!(outcome, Outcome::passed(packet.frame()));
}
