//! Sessions that several CPUs are at: another packet comes in between any two steps of one that begins a session. Of
//! whatever order, every session has a port of its own, and what went on went as its session says.

use lb_common::{
    session::CLOSED_LIFETIME,
    tables::{Address, SECOND, Session, Tick},
    track::OPENING_LIFETIME,
    verdict::Verdict,
};

use crate::{
    CLIENT4, SERVER4, TCP, UDP, VIP4,
    frames::{Flags, Spec, Transport, datagram, segment, socket, syn},
    full_nat::{FROM4, OTHER4, POOL4, goes_on},
    support::{Mode, Outcome, Scheduler, Stage, server},
};

/// More steps than any packet takes.
const MOST: u32 = 500;

/// One service with two backends, which take turns, and so many ports of each.
fn stage(protocol: u8, ports: u16) -> Stage {
    Stage::new()
        .serve(
            Mode::FullNat,
            VIP4,
            protocol,
            &[server(SERVER4), server("10.1.0.3:8080")],
        )
        .scheduled(Scheduler::Turns(&[0, 1]))
        .translating(&[POOL4], (2_000, 1_999 + ports))
        .recording_all()
}

/// The same with one backend, so that every flow asks for the same ports.
fn narrow(ports: u16) -> Stage {
    Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], (2_000, 1_999 + ports))
        .recording_all()
}

/// Ends that a frame has at the backend: addresses, ports.
fn ends(frame: &[u8]) -> (Address, Address, u16, u16) {
    let word = |at: usize| {
        Address::v4(u32::from_ne_bytes(
            frame[at..at + 4].try_into().expect("four bytes"),
        ))
    };
    let half = |at: usize| u16::from_ne_bytes(frame[at..at + 2].try_into().expect("two bytes"));
    (word(26), word(30), half(34), half(36))
}

fn ends_of(session: &Session) -> (Address, Address, u16, u16) {
    (
        session.address,
        session.backend,
        session.port,
        session.backend_port,
    )
}

/// What must hold of a client's packet and what became of it.
fn assert_went_as_its_session_says(stage: &Stage, packet: &Spec, outcome: &Outcome) -> bool {
    let went = matches!(outcome.verdict, Verdict::Redirect(_) | Verdict::Transmit);
    if went {
        let sessions = stage.sessions();
        let own = sessions.by_flow.iter().find(|(flow, _)| {
            flow.source == packet.from.ip().into() && flow.port == packet.from.port().to_be()
        });
        let (_, session) = own.expect("what went on has a session");
        assert_eq!(ends(&outcome.frame.0), ends_of(session), "{packet:?}");
    }
    went
}

/// Runs two packets in every order of their steps; how often the first, the second and both went on.
fn in_every_order(
    prepared: impl Fn() -> Stage,
    now: Tick,
    first: &Spec,
    second: &Spec,
) -> [usize; 3] {
    let mut went = [0; 3];
    for steps in 0..MOST {
        let stage = prepared();
        stage.at(now);
        let Some([one, other]) = stage.at_once(&first.frame(), steps, &second.frame()) else {
            assert!(steps > 3, "it took {steps} steps");
            return went;
        };
        let one = assert_went_as_its_session_says(&stage, first, &one);
        let other = assert_went_as_its_session_says(&stage, second, &other);
        stage.assert_sound();
        for (count, is) in went.iter_mut().zip([one, other, one && other]) {
            *count += usize::from(is);
        }
    }
    panic!("a packet of {MOST} steps");
}

#[test]
fn a_flow_that_two_cpus_begin_has_one_session_and_one_backend() {
    for (protocol, packet) in [(TCP, syn(CLIENT4, VIP4)), (UDP, datagram(CLIENT4, VIP4))] {
        let fresh = || stage(protocol, 3);
        let [first, second, both] = in_every_order(fresh, 0, &packet, &packet);
        assert_eq!((first, second), (both, both), "none is lost");
    }
}

#[test]
fn two_flows_that_want_the_same_port_do_not_both_get_it() {
    let other = syn(OTHER4, VIP4);
    let client = syn(CLIENT4, VIP4);
    let [first, second, both] = in_every_order(|| narrow(1), 0, &client, &other);
    assert_eq!(both, 0);
    assert!(first > 0 && second > 0, "{first} {second}");
    let [first, second, both] = in_every_order(|| narrow(2), 0, &client, &other);
    assert_eq!((first, second), (both, both), "there is one for each");
}

/// A session of the client that has expired, or ended.
fn former(prepared: impl Fn() -> Stage, end: Option<Flags>) -> Stage {
    let stage = prepared();
    assert!(goes_on(stage.at(0), &syn(CLIENT4, VIP4)));
    if let Some(flags) = end {
        assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
        let end = Spec {
            transport: Transport::Tcp(flags),
            ..segment(CLIENT4, VIP4)
        };
        assert!(goes_on(&stage, &end));
    }
    stage
}

#[test]
fn a_port_whose_session_has_expired_is_taken_over_once_whoever_asks_for_it() {
    let now = OPENING_LIFETIME + SECOND;
    let expired = || former(|| narrow(1), None);
    let others = [syn(OTHER4, VIP4), syn("192.0.2.9:40000", VIP4)];
    let [first, second, both] = in_every_order(expired, now, &others[0], &others[1]);
    assert_eq!(both, 0);
    assert!(first > 0 && second > 0, "{first} {second}");
    // Who had it opens anew at the same time.
    let again = syn(CLIENT4, VIP4);
    for (one, other) in [(&again, &others[0]), (&others[0], &again)] {
        let [first, second, both] = in_every_order(expired, now, one, other);
        assert_eq!(both, 0);
        assert!(first > 0 && second > 0, "{first} {second}");
    }
}

#[test]
fn a_client_that_opens_anew_on_two_cpus_has_one_session() {
    let again = syn(CLIENT4, VIP4);
    for end in [Flags::FIN, Flags::RST] {
        for prepared in [|| stage(TCP, 3), || narrow(1)] {
            let ended = || former(prepared, Some(end));
            let [_, second, _] = in_every_order(ended, 5, &again, &again);
            assert!(second > 0);
        }
    }
    let expired = || former(|| stage(TCP, 3), None);
    in_every_order(expired, CLOSED_LIFETIME * 2, &again, &again);
}

#[test]
fn a_client_that_opens_anew_while_another_flow_begins_keeps_a_port_of_its_own() {
    let (again, other) = (syn(CLIENT4, VIP4), syn(OTHER4, VIP4));
    for prepared in [|| stage(TCP, 2), || narrow(2)] {
        let ended = || former(prepared, Some(Flags::RST));
        for (one, other) in [(&again, &other), (&other, &again)] {
            let [first, second, both] = in_every_order(ended, 5, one, other);
            assert_eq!((first, second), (both, both));
        }
    }
}

#[test]
fn answers_come_in_while_a_session_begins_anew_and_touch_none_but_it() {
    let again = syn(CLIENT4, VIP4);
    let answer = Spec {
        from: socket(SERVER4),
        to: socket(FROM4),
        ..segment(SERVER4, FROM4)
    };
    for flags in [Flags::ACK, Flags::FIN, Flags::RST] {
        let answer = Spec {
            transport: Transport::Tcp(flags),
            ..answer.clone()
        };
        for steps in 0..MOST {
            let stage = former(|| narrow(1), Some(Flags::FIN));
            let Some([one, _]) = stage.at(5).at_once(&again.frame(), steps, &answer.frame()) else {
                break;
            };
            // A FIN or RST of before, just after it has begun, may cost it this SYN.
            let went = assert_went_as_its_session_says(&stage, &again, &one);
            assert!(went || flags != Flags::ACK, "{steps}");
            stage.assert_sound();
        }
    }
}
