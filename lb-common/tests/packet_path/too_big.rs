//! Packets that are longer than the way to their backend takes: their sender is told what would do, in the
//! VIP's name. Answers are laid out and summed by etherparse.

use lb_common::{
    budget::LIMIT,
    tables::NoRoute,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    fragments::{CUTS, cut, large},
    frames::{Extension, Flags, Spec, Transport, datagram, segment, socket, syn},
    full_nat,
    icmp::message,
    refuse::error,
    support::{EGRESS, Mode, Outcome, Server, Stage, server},
};

const MODES: [Mode; 5] = [Mode::Nat, Mode::Ipip, Mode::Gue, Mode::SecondHop, Mode::L2];
/// Client, VIP, and a backend of the same family, then of the other.
const ENDS: [(&str, &str, [&str; 2]); 2] = [
    (CLIENT4, VIP4, [SERVER4, SERVER6]),
    (CLIENT6, VIP6, [SERVER6, SERVER4]),
];
const TOO_BIG: DropReason = DropReason::PacketTooBig;

fn stage(mode: Mode, vip: &str, server: Server) -> Stage {
    Stage::new()
        .serve(mode, vip, TCP, &[server])
        .serve(mode, vip, UDP, &[server])
}

/// The packet with as much payload as makes it `length` bytes.
pub fn of_length(packet: Spec, length: usize) -> Spec {
    let bare = Spec {
        payload: Vec::new(),
        ..packet
    };
    let payload = (0..length - bare.ip().len()).map(|n| n as u8).collect();
    Spec { payload, ..bare }
}

/// Type and code, and what stands behind the checksum, of the error that says `mtu`.
fn told(about: &Spec, mtu: u16) -> Vec<u8> {
    let kind = if about.from.is_ipv4() { (3, 4) } else { (2, 0) };
    let [high, low] = mtu.to_be_bytes();
    error(about, kind, [0, 0, high, low])
}

fn refused(about: &Spec, mtu: u16) -> Outcome {
    Outcome::refused(TOO_BIG, Answer::TooBig, told(about, mtu))
}

#[test]
fn what_is_a_byte_too_long_is_answered_and_nothing_shorter_is() {
    for mode in MODES {
        for (client, vip, servers) in ENDS {
            for at in servers {
                if matches!(mode, Mode::Nat) && at != servers[0] {
                    continue;
                }
                let stage = stage(mode, vip, server(at).within(1_400));
                for packet in [segment(client, vip), datagram(client, vip)] {
                    let fits = of_length(packet.clone(), 1_400);
                    let outcome = stage.run(&fits.frame());
                    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{mode:?} {at}");
                    assert!(outcome.counted.answers.is_empty());
                    for length in [1_401, 1_500, 9_000] {
                        let long = of_length(packet.clone(), length);
                        let outcome = stage.run(&long.frame());
                        assert_eq!(outcome, refused(&long, 1_400), "{mode:?} {at} {length}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_backend_is_told_where_its_answer_is_a_byte_too_long_for_the_way_to_the_client_of_a_session() {
    for [client, vip, from, to] in full_nat::ENDS {
        let client_at = socket(client).ip();
        let stage = full_nat::stage().no_route(client_at, NoRoute::TooLong(1_400));
        for (first, answer) in [
            (syn(client, vip), segment(to, from)),
            (datagram(client, vip), datagram(to, from)),
        ] {
            assert!(full_nat::goes_on(&stage, &first));
            let long = of_length(answer, 1_401);
            assert_eq!(stage.run(&long.frame()), refused(&long, 1_400), "{to}");
        }
    }
}

#[test]
fn one_that_might_be_fragmented_is_answered_as_well() {
    let long = Spec {
        fragment: (false, false, 0),
        ..of_length(datagram(CLIENT4, VIP4), 1_401)
    };
    let stage = stage(Mode::Ipip, VIP4, server(SERVER4).within(1_400));
    assert_eq!(stage.run(&long.frame()), refused(&long, 1_400));
}

#[test]
fn bytes_behind_the_packet_make_it_no_longer() {
    for (client, vip, [at, _]) in ENDS {
        let stage = stage(Mode::Ipip, vip, server(at).within(1_400));
        let padded = Spec {
            trailer: vec![7; 30],
            ..of_length(segment(client, vip), 1_400)
        };
        let verdict = stage.run(&padded.frame()).verdict;
        assert_eq!(verdict, Verdict::Redirect(EGRESS));
    }
}

#[test]
fn headers_of_the_packet_count_as_the_rest_does() {
    let options = Spec {
        options: vec![1; 8],
        ..segment(CLIENT4, VIP4)
    };
    let extensions = Spec {
        extensions: vec![Extension::HopByHop(6), Extension::Destination(14)],
        ..segment(CLIENT6, VIP6)
    };
    for (packet, at) in [(options, SERVER4), (extensions, SERVER6)] {
        let vip = packet.to.to_string();
        let stage = stage(Mode::Gue, &vip, server(at).within(1_400));
        let long = of_length(packet, 1_401);
        assert_eq!(stage.run(&long.frame()), refused(&long, 1_400));
    }
}

#[test]
fn nobody_is_told_less_than_every_link_takes() {
    for (client, vip, [at, _]) in ENDS {
        let least = if vip == VIP4 { 68 } else { 1_280 };
        let stage = stage(Mode::Ipip, vip, server(at).within(least - 8));
        let long = of_length(segment(client, vip), usize::from(least) + 1);
        assert_eq!(stage.run(&long.frame()), refused(&long, least));
        // To say it of these would be to ask for them again.
        for length in [least - 7, least] {
            let short = of_length(segment(client, vip), length.into());
            let outcome = stage.run(&short.frame());
            assert_eq!(outcome, Outcome::unanswered(TOO_BIG, Answer::Withheld));
        }
    }
}

#[test]
fn nothing_is_said_to_those_who_get_no_errors() {
    for (client, vip, [at, _]) in ENDS {
        let stage = stage(Mode::Ipip, vip, server(at).within(1_400)).own("192.0.2.77");
        let reset = Spec {
            transport: Transport::Tcp(Flags::RST),
            ..segment(client, vip)
        };
        let mut quiet = vec![reset];
        if vip == VIP4 {
            quiet.push(segment("192.0.2.77:1", vip));
            quiet.push(segment("240.0.0.1:1", vip));
        }
        let mut to_all = segment(client, vip);
        to_all.macs.1 = [0xff; 6];
        quiet.push(to_all);
        for packet in quiet {
            let long = of_length(packet, 1_401);
            let outcome = stage.run(&long.frame());
            let expected = Outcome::unanswered(TOO_BIG, Answer::Withheld);
            assert_eq!(outcome, expected, "{:?} to {vip}", long.from);
        }
    }
}

#[test]
fn no_more_are_told_in_a_second_than_there_is_a_budget_for() {
    for (client, vip, [at, _]) in ENDS {
        let stage = stage(Mode::Ipip, vip, server(at).within(1_400));
        let long = of_length(segment(client, vip), 1_401);
        for _ in 0..LIMIT {
            assert_eq!(stage.run(&long.frame()), refused(&long, 1_400));
        }
        let beyond = Outcome::unanswered(TOO_BIG, Answer::Limited);
        assert_eq!(stage.run(&long.frame()), beyond);
    }
}

#[test]
fn no_error_is_sent_about_an_error() {
    for mode in MODES {
        for (client, vip, [at, _]) in ENDS {
            // About an answer of the backend's.
            let quoted = of_length(segment(vip, client), 500).ip();
            let kind = if vip == VIP4 { (3, 4) } else { (2, 0) };
            let message = message(client, vip, kind, [0, 0, 4, 0], &quoted);
            let length = message.ip().len() as u16;
            let narrow = stage(mode, vip, server(at).within(length - 1));
            let outcome = narrow.run(&message.frame());
            assert_eq!(outcome, Outcome::dropped(TOO_BIG), "{mode:?} {vip}");
            let outcome = stage(mode, vip, server(at).within(length)).run(&message.frame());
            assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{mode:?} {vip}");
        }
    }
}

#[test]
fn a_datagrams_first_fragment_is_answered_where_it_is_too_long() {
    for mode in MODES {
        for (client, vip, [at, _]) in ENDS {
            let stage = stage(mode, vip, server(at).within(1_400));
            for packet in [datagram(client, vip), segment(client, vip)] {
                let pieces = cut(&large(packet), &CUTS);
                let [first, second, ..] = &pieces[..] else {
                    panic!("{} pieces", pieces.len())
                };
                assert_eq!(stage.run(&first.frame()), refused(first, 1_400), "{mode:?}");
                // Of one that has been dropped.
                let expected = Outcome::dropped(DropReason::Fragment);
                assert_eq!(stage.run(&second.frame()), expected, "{mode:?}");
            }
        }
    }
}

#[test]
fn a_later_fragment_that_is_too_long_is_answered_only_by_ipv6() {
    for mode in MODES {
        for (client, vip, [at, _]) in ENDS {
            let stage = stage(mode, vip, server(at).within(1_400));
            let pieces = cut(&large(datagram(client, vip)), &[800, 2_280]);
            let expected = match vip {
                VIP4 => Outcome::unanswered(TOO_BIG, Answer::Withheld),
                _ => refused(&pieces[1], 1_400),
            };
            let first = pieces[0].frame();
            let verdict = stage.run(&first).verdict;
            assert_eq!(verdict, Verdict::Redirect(EGRESS), "{mode:?} {vip}");
            let outcome = stage.run(&pieces[1].frame());
            assert_eq!(outcome, expected, "{mode:?} {vip}");
        }
    }
}

#[test]
fn one_that_was_held_is_answered_as_others_are() {
    for (client, vip, [at, _]) in ENDS {
        let stage = stage(Mode::Gue, vip, server(at).within(1_400));
        let pieces = cut(&large(datagram(client, vip)), &[800, 2_280]);
        assert_eq!(stage.run(&pieces[1].frame()).verdict, Verdict::Held);
        let first = stage.run(&pieces[0].frame()).verdict;
        assert_eq!(first, Verdict::Redirect(EGRESS));
        let expected = match vip {
            VIP4 => Outcome::unanswered(TOO_BIG, Answer::Withheld),
            _ => refused(&pieces[1], 1_400),
        };
        assert_eq!(stage.give_back(), [expected]);
    }
}
