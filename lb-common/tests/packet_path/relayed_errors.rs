//! What routers say of tunnels' packets that are too long: their client is told, in the VIP's name. Errors are laid out and summed by
//! etherparse.

use lb_common::{
    budget::LIMIT,
    mtu,
    tables::mode,
    verdict::{Answer, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{datagram, segment, socket, syn},
    icmp::message,
    refuse::ours,
    support::{CLIENT_MACS, EGRESS, Mode, Move, Outcome, Stage, server},
    too_big::of_length,
    tunnel_errors::{FAMILIES, FORGERIES, MODES, about_with},
};

/// What a router's link takes.
const WAY: u16 = 1_400;
/// What the ways of clients and of the balancer do.
const WIDE: u16 = 1_400 + 60;

fn stage(mode: Mode, vip: &str, to: &str) -> Stage {
    Stage::new()
        .serve(mode, vip, TCP, &[server(to)])
        .serve(mode, vip, UDP, &[server(to)])
        .hashing()
}

fn overhead(mode: Mode, to: &str) -> u16 {
    let mode = match mode {
        Mode::Ipip => mode::IPIP,
        Mode::Gue => mode::GUE,
        Mode::SecondHop => mode::SECOND_HOP,
        other => panic!("{other:?} is no tunnel"),
    };
    mtu::overhead(mode, socket(to).is_ipv4())
}

/// The IP packet that the balancer wraps one of a client in.
fn wrapped(stage: &Stage, frame: &[u8]) -> Vec<u8> {
    let Outcome { frame, verdict, .. } = stage.run(frame);
    assert_eq!(verdict, Verdict::Redirect(EGRESS));
    frame.0[14..].to_vec()
}

/// What a router says of a packet that is longer than `way`.
pub fn too_long(quoted: &[u8], way: u16) -> Vec<u8> {
    let kind = if quoted[0] >> 4 == 4 { (3, 4) } else { (2, 0) };
    let [high, low] = way.to_be_bytes();
    about_with(quoted, kind, [0, 0, high, low])
}

/// What the client is told of its packet, of which so much was quoted.
fn told(client: &str, vip: &str, quoted: &[u8], mtu: u16) -> Vec<u8> {
    let (kind, most) = if socket(client).is_ipv4() {
        ((3, 4), 576 - 28)
    } else {
        ((2, 0), 1_280 - 48)
    };
    let [high, low] = mtu.to_be_bytes();
    let quoted = &quoted[..quoted.len().min(most)];
    ours(message(vip, client, kind, [0, 0, high, low], quoted))
}

#[test]
fn a_client_is_told_what_the_tunnel_leaves_of_a_way_that_is_narrower_further_on() {
    for mode in MODES {
        for [client, vip, to] in FAMILIES {
            let stage = stage(mode, vip, to);
            let headers = overhead(mode, to);
            for packet in [segment(client, vip), datagram(client, vip)] {
                let long = of_length(packet, usize::from(WIDE - headers));
                let sent = wrapped(&stage, &long.frame());
                // As much as routers quote: to 576 bytes in all, to the least MTU, and all of it.
                for quoted in [576 - 28, 1_280 - 48, sent.len()] {
                    let quoted = &sent[..quoted];
                    let inner = &quoted[usize::from(headers)..];
                    let error = told(client, vip, inner, WAY - headers);
                    let expected = Outcome::answered(Answer::TooBig, error);
                    let outcome = stage.run(&too_long(quoted, WAY));
                    assert_eq!(outcome, expected, "{mode:?} {client} {to}");
                }
            }
        }
    }
}

#[test]
fn it_goes_the_way_that_the_kernel_has_to_the_client() {
    let (source, destination) = CLIENT_MACS;
    for [client, vip, to] in FAMILIES {
        let stage = stage(Mode::Gue, vip, to).route(socket(client).ip(), EGRESS);
        let long = of_length(segment(client, vip), usize::from(WAY));
        let sent = wrapped(&stage, &long.frame());
        let outcome = stage.run(&too_long(&sent, WAY));
        assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
        assert_eq!(outcome.frame.0[..12], [destination, source].concat());
    }
}

#[test]
fn as_little_as_the_inner_ports_is_enough_of_a_quotation() {
    let stage = stage(Mode::Ipip, VIP4, SERVER4);
    let long = of_length(segment(CLIENT4, VIP4), usize::from(WAY));
    let sent = wrapped(&stage, &long.frame());
    let error = told(CLIENT4, VIP4, &sent[20..48], WAY - 20);
    let expected = Outcome::answered(Answer::TooBig, error);
    assert_eq!(stage.run(&too_long(&sent[..48], WAY)), expected);
    for less in [28, 47] {
        let error = too_long(&sent[..less], WAY);
        assert_eq!(stage.run(&error), Outcome::passed(error.clone()), "{less}");
    }
}

#[test]
fn an_error_about_what_was_not_sent_is_the_kernels() {
    let of_nobody = (Mode::Ipip, 15, "source");
    for (mode, at, what) in FORGERIES.into_iter().chain([of_nobody]) {
        let stage = stage(mode, VIP4, SERVER4);
        let long = of_length(segment(CLIENT4, VIP4), usize::from(WAY));
        let mut sent = wrapped(&stage, &long.frame());
        sent[at] ^= 1;
        let error = too_long(&sent, WAY);
        assert_eq!(stage.run(&error), Outcome::passed(error.clone()), "{what}");
    }
}

#[test]
fn an_error_that_names_no_length_is_the_kernels() {
    for [client, vip, to] in FAMILIES {
        let stage = stage(Mode::Ipip, vip, to);
        let long = of_length(segment(client, vip), usize::from(WAY));
        let error = too_long(&wrapped(&stage, &long.frame()), 0);
        assert_eq!(stage.run(&error), Outcome::passed(error.clone()));
    }
}

#[test]
fn nobody_is_told_of_what_could_not_be_sent_any_shorter() {
    for [client, vip, to] in [[CLIENT4, VIP4, SERVER4], [CLIENT6, VIP6, SERVER6]] {
        let headers = overhead(Mode::Ipip, to);
        let least = if vip == VIP4 { 68 } else { 1_280 };
        let stage = stage(Mode::Ipip, vip, to);
        for (length, way, is_told) in [
            (least, least + headers - 1, false),
            (least + 1, least + headers - 1, true),
            (WAY, WAY + headers, false),
            (WAY, WAY + headers - 1, true),
        ] {
            let packet = of_length(segment(client, vip), length.into());
            let error = too_long(&wrapped(&stage, &packet.frame()), way);
            let outcome = stage.run(&error);
            let answer = if is_told {
                Answer::TooBig
            } else {
                assert_eq!(outcome.frame.0, error);
                Answer::Withheld
            };
            assert_eq!(outcome.counted.answers, [(answer as u32, 1)].into());
        }
    }
}

#[test]
fn no_more_clients_are_told_than_any_other_error_is_sent_to() {
    let stage = stage(Mode::Ipip, VIP4, SERVER4);
    let long = of_length(segment(CLIENT4, VIP4), usize::from(WAY));
    let error = too_long(&wrapped(&stage, &long.frame()), WAY);
    for _ in 0..LIMIT {
        assert_eq!(stage.run(&error).verdict, Verdict::Transmit);
    }
    let outcome = stage.run(&error);
    assert_eq!(outcome.verdict, Verdict::Pass);
    assert_eq!(
        outcome.counted.answers,
        [(Answer::Limited as u32, 1)].into()
    );
}

#[test]
fn the_backend_that_keeps_a_flow_is_the_one_that_is_asked_for() {
    // Its slot has another owner since; the flow is recorded.
    let servers = [server(SERVER4), server("10.1.0.3:8080")];
    let stage = Stage::new()
        .serve(Mode::Ipip, VIP4, TCP, &servers)
        .moving_time(1_000)
        .moved(Move::Moving(1, 0));
    stage.run(&syn(CLIENT4, VIP4).frame());
    let long = of_length(segment(CLIENT4, VIP4), usize::from(WAY));
    let sent = wrapped(&stage, &long.frame());
    let stage = stage.moved(Move::Settling(0));
    let verdict = |quoted: &[u8]| stage.run(&too_long(quoted, WAY)).verdict;
    assert_eq!(verdict(&sent), Verdict::Transmit);
    let unknown = of_length(segment("192.0.2.7:9", VIP4), usize::from(WAY));
    let mut other = wrapped(&stage, &unknown.frame());
    assert_eq!(verdict(&other), Verdict::Transmit);
    // The backend that has the recorded one.
    other[16..20].copy_from_slice(&sent[16..20]);
    assert_eq!(verdict(&other), Verdict::Pass);
}
