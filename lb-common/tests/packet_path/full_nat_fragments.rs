//! Datagrams in fragments to services of mode `full-nat`, and their answers: both ends of each are rewritten, by the session of
//! the first one.

use lb_common::{
    fragment::Fragment,
    pipeline::{self, Rest},
    rate::Rate,
    tables::{NoRoute, fate, refusal},
    verdict::{Answer, DropReason, Piece, Verdict},
};

use crate::{
    CLIENT4, SERVER4, SERVER6, UDP, VIP4,
    fragments::{CUTS, assert_dropped, assert_held, cut, large},
    frames::{Spec, datagram, socket, syn},
    full_nat::{ENDS, FROM4, POOL4, PORTS, between, goes_on, request, stage, with},
    support::{CLIENT_MACS, Condition, EGRESS, INGRESS, Mode, Outcome, Stage, macs, server},
};

/// Requests of both families and protocols in fragments, each with its ends and the position of its service.
fn requests() -> Vec<(Spec, [&'static str; 4], u8)> {
    let ends = (0u8..).zip(ENDS);
    let both = ends.flat_map(|(at, ends @ [client, vip, ..])| {
        let tcp = (large(syn(client, vip)), ends, 2 * at);
        [tcp, (large(datagram(client, vip)), ends, 2 * at + 1)]
    });
    both.collect()
}

/// A fragment that is forwarded as this one, of the service and to the server at a position.
fn forwarded(piece: Piece, before: &Spec, after: &Spec, position: u8, opens: u64) -> Outcome {
    let mut outcome = request(before, "0.0.0.0:0", "0.0.0.0:0", position, opens, 0);
    outcome.frame.0 = after.frame();
    outcome.counted.pieces = [(piece as u32, 1)].into();
    outcome
}

/// An answer that goes to its client as this one.
fn answered(piece: Piece, after: &Spec) -> Outcome {
    let verdict = match after.to.is_ipv4() {
        true => Verdict::Transmit,
        false => Verdict::Redirect(EGRESS),
    };
    let mut outcome = Outcome::uncounted(verdict, after.frame());
    outcome.counted.pieces = [(piece as u32, 1)].into();
    outcome
}

/// The fragments in order, then the same ones the other way round, of which all but the first are held and given back.
fn assert_follow(stage: &Stage, before: &[Spec], outcome: impl Fn(usize, Piece, bool) -> Outcome) {
    for (place, spec) in before.iter().enumerate() {
        let piece = [Piece::First, Piece::Later][place.min(1)];
        assert_eq!(
            stage.run(&spec.frame()),
            outcome(place, piece, true),
            "{place}: {spec:?}"
        );
    }
    for spec in before[1..].iter().rev() {
        assert_held(stage, spec);
    }
    let run = stage.run(&before[0].frame());
    assert_eq!(run, outcome(0, Piece::First, false), "{:?}", before[0]);
    let places = (1..before.len()).rev();
    let expected = places.map(|place| outcome(place, Piece::Released, false));
    assert_eq!(stage.give_back(), expected.collect::<Vec<_>>());
}

#[test]
fn a_datagram_that_is_put_together_comes_from_the_pool_in_whichever_order_its_fragments_came() {
    for (request, [_, _, from, to], position) in requests() {
        let stage = stage();
        let before = cut(&request, &CUTS);
        let after = cut(&between(&request, from, to).routed(macs(position)), &CUTS);
        assert_follow(&stage, &before, |place, piece, begins| {
            let opens = u64::from(place == 0 && position % 2 == 0);
            let mut outcome = forwarded(piece, &before[place], &after[place], position, opens);
            if place == 0 && begins {
                outcome.counted.flows = [(u32::from(position), (0, 1, 0))].into();
            }
            outcome
        });
        assert_eq!(stage.sessions().by_flow.len(), 1);
        stage.assert_sound();
    }
}

#[test]
fn its_answer_comes_from_the_vip_in_whichever_order_its_fragments_came() {
    for (request, [client, vip, from, to], _) in requests() {
        let stage = stage();
        assert!(goes_on(
            &stage,
            &Spec {
                payload: vec![1],
                ..request.clone()
            }
        ));
        let answer = between(&request, to, from);
        let before = cut(&answer, &CUTS);
        let after = cut(&between(&answer, vip, client).routed(CLIENT_MACS), &CUTS);
        assert_follow(&stage, &before, |place, piece, _| {
            answered(piece, &after[place])
        });
    }
}

#[test]
fn whole_packets_and_fragments_are_of_one_session() {
    let stage = stage();
    let whole = datagram(CLIENT4, VIP4);
    let first = &cut(&large(whole.clone()), &CUTS)[0];
    assert!(goes_on(&stage, first));
    assert_eq!(
        stage.run(&whole.frame()),
        request(&whole, FROM4, SERVER4, 1, 0, 0)
    );
    assert_eq!(stage.sessions().ports.len(), 1);
}

#[test]
fn what_follows_a_first_fragment_without_a_session_is_dropped_with_it() {
    let stage = stage();
    assert!(goes_on(&stage, &datagram("192.0.2.8:40000", VIP4)));
    let [first, second, _] = &cut(&large(datagram(CLIENT4, VIP4)), &CUTS)[..] else {
        panic!("three fragments");
    };
    let outcome = stage.run(&first.frame());
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::PortsExhausted));
    assert_dropped(&stage, second, DropReason::Fragment);
    // One of TCP begins none.
    let late = Spec {
        identification: 9,
        ..large(crate::frames::segment(CLIENT4, VIP4))
    };
    let [first, second, _] = &cut(&late, &CUTS)[..] else {
        panic!("three fragments");
    };
    assert_dropped(&stage, first, DropReason::NoSession);
    assert_dropped(&stage, second, DropReason::Fragment);
}

#[test]
fn without_a_backend_they_are_what_the_policy_says_but_never_answered() {
    let pieces = cut(&large(datagram(CLIENT4, VIP4)), &CUTS);
    let stage = |policy| {
        Stage::new()
            .serve(Mode::FullNat, VIP4, UDP, &[])
            .translating(&[POOL4], PORTS)
            .no_backend(policy)
    };
    let passing = stage(refusal::PASS);
    for piece in &pieces {
        let frame = piece.frame();
        assert_eq!(passing.run(&frame), Outcome::passed(frame.clone()));
    }
    let refusing = stage(refusal::UNREACHABLE);
    let expected = Outcome::unanswered(DropReason::NoBackend, Answer::Withheld);
    assert_eq!(refusing.run(&pieces[0].frame()), expected);
    assert_dropped(&refusing, &pieces[1], DropReason::Fragment);
}

#[test]
fn one_that_is_too_long_for_its_way_is_answered_as_it_came() {
    let stage = with(server(SERVER4).within(1_000), server(SERVER6).within(1_300));
    for (request, ends, _) in requests() {
        for (place, piece) in cut(&request, &CUTS)[..2].iter().enumerate() {
            let outcome = stage.run(&piece.frame());
            // The first one of IPv4, which the others are lost with; each of IPv6 once the first has gone.
            let (reason, answers) = match place {
                0 => (DropReason::PacketTooBig, 1),
                _ => (DropReason::Fragment, 0),
            };
            assert_eq!(
                outcome.counted.drops,
                [(reason as u32, 1)].into(),
                "{ends:?}"
            );
            let told = outcome.counted.answers.get(&(Answer::TooBig as u32));
            assert_eq!(told.copied().unwrap_or(0), answers, "{ends:?}");
        }
    }
    // The way has become shorter than what has already gone by it.
    let wide = stage_after_the_first();
    let later = &cut(&large(datagram(ENDS[1][0], ENDS[1][1])), &[800])[1];
    let outcome = wide.run(&later.frame());
    assert_eq!(outcome.counted.answers, [(Answer::TooBig as u32, 1)].into());
}

/// An IPv6 way of 1,300 bytes, which the first 800 of a datagram have gone.
fn stage_after_the_first() -> Stage {
    let stage = with(server(SERVER4), server(SERVER6).within(1_300));
    let first = &cut(&large(datagram(ENDS[1][0], ENDS[1][1])), &[800])[0];
    assert!(goes_on(&stage, first));
    stage
}

#[test]
fn one_that_has_no_hop_left_is_answered_where_it_is_the_first() {
    for (request, [_, _, from, to], _) in requests() {
        let ending = Spec { ttl: 1, ..request };
        let stage = stage();
        let pieces = cut(&ending, &CUTS);
        let outcome = stage.run(&pieces[0].frame());
        assert_eq!(
            outcome.counted.drops,
            [(DropReason::TtlExpired as u32, 1)].into()
        );
        assert_eq!(outcome.counted.answers.len(), 1, "{ending:?}");
        // The session that it has begun answers for what is not for a client any more, likewise.
        let answer = cut(&between(&ending, to, from), &CUTS);
        let outcome = stage.run(&answer[0].frame());
        assert_eq!(
            outcome.counted.drops,
            [(DropReason::TtlExpired as u32, 1)].into()
        );
        assert_dropped(&stage, &answer[1], DropReason::Fragment);
    }
}

#[test]
fn a_later_one_without_a_hop_left_is_dropped_alone() {
    for (request, ..) in requests() {
        let stage = stage();
        let mut pieces = cut(&request, &CUTS);
        assert!(goes_on(&stage, &pieces[0]));
        pieces[1].ttl = 1;
        let outcome = stage.run(&pieces[1].frame());
        assert_eq!(
            outcome.counted.drops,
            [(DropReason::TtlExpired as u32, 1)].into()
        );
        assert!(goes_on(&stage, &pieces[2]));
    }
}

#[test]
fn an_answer_without_a_way_to_its_client_is_dropped_whole() {
    let stage = stage().no_route(socket(CLIENT4).ip(), NoRoute::Refused);
    assert!(goes_on(&stage, &datagram(CLIENT4, VIP4)));
    let pieces = cut(&large(datagram(SERVER4, FROM4)), &CUTS);
    assert_dropped(&stage, &pieces[0], DropReason::NoRoute);
    assert_dropped(&stage, &pieces[1], DropReason::Fragment);
}

#[test]
fn what_comes_to_a_pool_for_no_session_is_the_kernels() {
    let stage = stage();
    let pieces = cut(&large(datagram(SERVER4, FROM4)), &CUTS);
    // It may be of one until the first has come.
    assert_held(&stage, &pieces[1]);
    for piece in [&pieces[0], &pieces[2]] {
        let frame = piece.frame();
        assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
    }
    let frame = pieces[1].frame();
    assert_eq!(stage.give_back(), [Outcome::passed(frame)]);
    // Nor is one that cannot be held dropped, as it may be this host's own.
    let other = Spec {
        identification: 7,
        ..pieces[1].clone()
    };
    let frame = other.frame();
    for _ in 1..lb_common::budget::LIMIT {
        assert_held(&stage, &other);
    }
    assert_eq!(stage.run(&frame), Outcome::passed(frame.clone()));
}

#[test]
fn a_datagram_whose_session_has_lost_its_backend_begins_another() {
    let servers = [server("10.1.0.2:80"), server("10.1.0.3:80")];
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, UDP, &servers)
        .translating(&[POOL4], PORTS)
        .route(socket(CLIENT4).ip(), INGRESS)
        .ring(&[0, 0]);
    let pieces = cut(&large(datagram(CLIENT4, VIP4)), &CUTS);
    assert_eq!(
        stage.run(&pieces[0].frame()).counted.servers.keys().next(),
        Some(&0)
    );
    let stage = stage.condition(0, Condition::Dead).ring(&[1, 1]);
    // What has begun goes where it went; what begins goes on elsewhere.
    assert_eq!(
        stage.run(&pieces[1].frame()).counted.servers.keys().next(),
        Some(&0)
    );
    assert!(goes_on(&stage, &pieces[2]));
    assert_eq!(
        stage.run(&pieces[0].frame()).counted.servers.keys().next(),
        Some(&1)
    );
    assert_eq!(stage.sessions().by_flow.len(), 1);
}

#[test]
fn who_is_denied_has_no_session_by_fragments_either() {
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, UDP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    let [first, second, _] = &cut(&large(datagram(CLIENT4, VIP4)), &CUTS)[..] else {
        panic!("three fragments");
    };
    assert!(goes_on(&stage, &datagram(CLIENT4, VIP4)));
    let stage = stage
        .list(7, &[("192.0.2.7/32", false), ("0.0.0.0/0", true)])
        .guarded(7, Rate::default(), Rate::default());
    let outcome = stage.run(&first.frame());
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::AccessDenied));
    assert_dropped(&stage, second, DropReason::Fragment);
}

#[test]
fn handshakes_that_are_answered_here_are_of_whole_packets() {
    let [client, vip, from, to] = ENDS[0];
    let stage = Stage::new()
        .serve(Mode::FullNat, vip, crate::TCP, &[server(to)])
        .translating(&[POOL4], PORTS)
        .proxying(Rate::default())
        .cookie(5, 1_460)
        .route(socket(client).ip(), INGRESS);
    for opening in [syn(client, vip), crate::frames::segment(client, vip)] {
        let pieces = cut(&large(opening), &CUTS);
        let outcome = stage.run(&pieces[0].frame());
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::Fragment));
        assert!(stage.sessions().by_flow.is_empty(), "{from}");
    }
}

#[test]
fn a_fragment_is_not_made_longer_by_the_clients_address_which_is_counted() {
    let [client, vip, from, to] = ENDS[0];
    let stage = Stage::new()
        .serve(Mode::FullNat, vip, crate::TCP, &[server(to)])
        .translating(&[POOL4], PORTS)
        .telling()
        .route(socket(client).ip(), INGRESS);
    let request = large(syn(client, vip));
    let after = cut(&between(&request, from, to).routed(macs(0)), &CUTS);
    let outcome = stage.run(&cut(&request, &CUTS)[0].frame());
    assert_eq!(outcome.frame.0, after[0].frame());
    assert_eq!(outcome.counted.untold, 1);
}

#[test]
fn one_whose_datagram_another_cpu_gives_up_in_the_meantime_is_dropped() {
    let request = cut(&large(datagram(CLIENT4, VIP4)), &CUTS);
    let stage = stage();
    assert!(goes_on(&stage, &request[0]));
    for given_up in [fate::OVERLAPS, fate::DROPPED, fate::PASSES] {
        let (done, _) = stage.run_alone(&request[1].frame(), |packet, tables| {
            let mut place = Fragment::EMPTY;
            let left = pipeline::fragment(packet, tables, &mut place);
            let mut datagrams = tables.datagrams.borrow_mut();
            let known = datagrams.values_mut().next().expect("the first one's");
            let before = std::mem::replace(&mut known.fate, given_up);
            drop(datagrams);
            let done = pipeline::full_nat_fragment(packet, tables, &mut place);
            let mut datagrams = tables.datagrams.borrow_mut();
            for datagram in datagrams.values_mut() {
                (datagram.fate, datagram.seen) = (before, 0);
            }
            (left, done)
        });
        let dropped = Ok(Verdict::Drop(DropReason::Fragment));
        assert_eq!(done, (Err(Rest::FullNatFragment), dropped), "{given_up}");
    }
}
