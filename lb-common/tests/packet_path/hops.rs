//! Packets whose TTL or hop limit ends here, where the balancer is the router that it is in modes `nat` and `full-nat`: their
//! sender is told, as `traceroute` needs it (RFC 792, RFC 4443 §3.3).

use lb_common::{
    budget::LIMIT,
    tables::NoRoute,
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    fragments::{CUTS, cut, large},
    frames::{Flags, Spec, Transport, datagram, segment, socket, syn},
    full_nat::{self, goes_on},
    icmp::message,
    refuse::error,
    support::{EGRESS, Mode, Outcome, Stage, server},
};

const ENDS: [(&str, &str, &str); 2] = [(CLIENT4, VIP4, SERVER4), (CLIENT6, VIP6, SERVER6)];
const EXPIRED: DropReason = DropReason::TtlExpired;

fn stage(vip: &str, at: &str) -> Stage {
    Stage::new()
        .serve(Mode::Nat, vip, TCP, &[server(at)])
        .serve(Mode::Nat, vip, UDP, &[server(at)])
}

fn with_ttl(packet: Spec, ttl: u8) -> Spec {
    Spec { ttl, ..packet }
}

fn told(about: &Spec) -> Outcome {
    let kind = if about.from.is_ipv4() {
        (11, 0)
    } else {
        (3, 0)
    };
    Outcome::refused(EXPIRED, Answer::Expired, error(about, kind, [0; 4]))
}

#[test]
fn a_client_is_told_in_the_vips_name_that_no_hop_is_left() {
    for (client, vip, at) in ENDS {
        for packet in [
            segment(client, vip),
            datagram(client, vip),
            syn(client, vip),
        ] {
            for ttl in [0, 1] {
                let last = with_ttl(packet.clone(), ttl);
                assert_eq!(stage(vip, at).run(&last.frame()), told(&last), "{last:?}");
            }
            let outcome = stage(vip, at).run(&with_ttl(packet, 2).frame());
            assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
        }
    }
}

#[test]
fn of_a_datagram_in_fragments_the_first_one_is_answered() {
    for (client, vip, at) in ENDS {
        let stage = stage(vip, at);
        let pieces = cut(&with_ttl(large(datagram(client, vip)), 1), &CUTS);
        assert_eq!(stage.run(&pieces[0].frame()), told(&pieces[0]));
        let after = stage.run(&pieces[1].frame());
        assert_eq!(after, Outcome::dropped(DropReason::Fragment));
    }
}

#[test]
fn both_ends_of_a_session_are_told_that_no_hop_is_left() {
    for [client, vip, from, to] in full_nat::ENDS {
        let stage = full_nat::stage();
        assert!(goes_on(&stage, &syn(client, vip)));
        for (sender, target) in [(client, vip), (to, from)] {
            let last = with_ttl(segment(sender, target), 1);
            assert_eq!(stage.run(&last.frame()), told(&last), "{sender}");
        }
    }
}

#[test]
fn nothing_is_said_about_resets_and_errors_or_beyond_the_budget() {
    for (client, vip, at) in ENDS {
        let stage = stage(vip, at);
        let reset = Spec {
            transport: Transport::Tcp(Flags::RST),
            ..with_ttl(segment(client, vip), 1)
        };
        let quiet = Outcome::unanswered(EXPIRED, Answer::Withheld);
        assert_eq!(stage.run(&reset.frame()), quiet);
        let kind = if vip == VIP4 { (3, 4) } else { (2, 0) };
        let error = message(client, vip, kind, [0; 4], &segment(vip, client).ip());
        let outcome = stage.run(&with_ttl(error, 1).frame());
        assert_eq!(outcome, Outcome::dropped(EXPIRED));
        let last = with_ttl(segment(client, vip), 1);
        for _ in 0..LIMIT {
            assert_eq!(stage.run(&last.frame()), told(&last));
        }
        let beyond = Outcome::unanswered(EXPIRED, Answer::Limited);
        assert_eq!(stage.run(&last.frame()), beyond);
    }
}

#[test]
fn a_nat_backends_answer_that_ends_here_is_the_kernels_which_tells_it() {
    let client = socket(CLIENT4).ip();
    let stage = stage(VIP4, SERVER4).no_route(client, NoRoute::Kernels);
    let frame = with_ttl(segment(SERVER4, CLIENT4), 1).frame();
    assert_eq!(stage.run(&frame), Outcome::passed(frame));
}
