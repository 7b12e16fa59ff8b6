//! Mode `full-nat` where what is known has been overtaken: sessions and ports of another's, services that have become others, backends
//! that have left; and requests that go nowhere for want of a backend, of a way there, or of a header that is understood.

use lb_common::{
    mss,
    rate::Rate,
    tables::{Address, SECOND, Session, mode, record_flag},
    track::OPENING_LIFETIME,
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Extension, Flags, Spec, Transport, segment, socket, syn},
    full_nat::{FROM4, OTHER4, POOL4, POOL6, PORTS, goes_on},
    support::{
        CLIENT_MACS, Condition, INGRESS, Mode, Move, Outcome, Scheduler, Server, Stage, server,
    },
};

const VIP4_TOO: &str = "10.0.0.2:80";
const SERVERS: [&str; 2] = ["10.1.0.2:80", "10.1.0.3:80"];

/// One service with these servers, and a port.
fn serving(servers: &[Server]) -> Stage {
    Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, servers)
        .translating(&[POOL4], PORTS)
        .route(socket(CLIENT4).ip(), INGRESS)
}

/// The same with one server, and a session of the client's.
fn begun(server: Server) -> Stage {
    let stage = serving(&[server]);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    stage
}

fn flagged(from: &str, to: &str, flags: Flags) -> Spec {
    Spec {
        transport: Transport::Tcp(flags),
        ..segment(from, to)
    }
}

fn answer() -> Vec<u8> {
    segment(SERVER4, FROM4).frame()
}

/// That an answer goes to the client from the VIP.
fn assert_answered(stage: &Stage) {
    let expected = Spec {
        from: socket(VIP4),
        to: socket(CLIENT4),
        ..segment(SERVER4, FROM4)
    };
    let expected = expected.routed(CLIENT_MACS).frame();
    let expected = Outcome::uncounted(Verdict::Transmit, expected);
    assert_eq!(stage.run(&answer()), expected);
}

#[test]
fn an_answer_to_a_port_whose_session_has_other_ends_by_now_is_the_kernels() {
    assert_answered(&begun(server(SERVER4)));
    let changes: [fn(&mut Session); 4] = [
        |session| session.port ^= 1,
        |session| session.address = Address::v4(7),
        |session| session.backend = Address::v4(7),
        |session| session.backend_port ^= 1,
    ];
    for change in changes {
        let stage = begun(server(SERVER4)).left(|sessions| {
            sessions.by_flow.values_mut().for_each(change);
        });
        assert_eq!(stage.run(&answer()), Outcome::passed(answer()));
    }
}

#[test]
fn an_answer_to_a_service_that_has_become_another_is_the_kernels() {
    for (mode, protocol) in [(mode::NAT, TCP), (mode::FULL_NAT, UDP)] {
        let stage = begun(server(SERVER4)).turned_into(mode, protocol);
        assert_eq!(stage.run(&answer()), Outcome::passed(answer()));
    }
}

#[test]
fn an_answer_of_a_backend_that_has_left_finds_its_client_and_ends_no_flow_of_its_successor() {
    let left = || {
        let stage = serving(&[server(SERVER4)]).recording_all();
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert_eq!(stage.in_progress(0), 1);
        stage.replaced(0)
    };
    assert_answered(&left());
    let stage = left();
    assert!(goes_on(&stage, &flagged(SERVER4, FROM4, Flags::FIN)));
    assert_eq!(stage.in_progress(0), 1);
}

#[test]
fn of_answers_that_open_nothing_the_mss_is_left_alone_whatever_their_way() {
    let lowering = server(SERVER4).within(1_000).lowering(mss::AUTO);
    assert_answered(&begun(lowering));
    // Its way has just gone: the client's next packets wait for another.
    let stage = serving(&[lowering.behind(0)]);
    let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoNextHop));
    let opened = Spec {
        transport: Transport::Tcp(Flags {
            ack: true,
            ..Flags::SYN
        }),
        ..segment(SERVER4, FROM4)
    };
    let expected = Spec {
        from: socket(VIP4),
        to: socket(CLIENT4),
        ..opened.clone()
    };
    let outcome = stage.run(&opened.frame());
    assert_eq!(outcome.frame.0, expected.routed(CLIENT_MACS).frame());
}

#[test]
fn a_request_to_nobody_is_dropped_as_that() {
    let dead = server(SERVER4).dead();
    for servers in [&[][..], &[dead]] {
        let stage = serving(servers);
        let expected = Outcome::dropped(DropReason::NoBackend);
        assert_eq!(stage.run(&syn(CLIENT4, VIP4).frame()), expected);
        assert!(stage.sessions().ports.is_empty());
    }
}

#[test]
fn a_request_whose_addresses_are_authenticated_cannot_be_translated() {
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP6, TCP, &[server(SERVER6)])
        .translating(&[POOL6], PORTS);
    let authenticated = Spec {
        extensions: vec![Extension::Authentication(12)],
        ..syn(CLIENT6, VIP6)
    };
    let outcome = stage.run(&authenticated.frame());
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::ExtensionHeaders));
    assert!(goes_on(&stage, &syn(CLIENT6, VIP6)));
}

/// Two servers, of which the first has died with the client's flow.
fn bereft(prepared: impl Fn(Stage) -> Stage) -> Stage {
    let stage = prepared(serving(&SERVERS.map(server)).ring(&[0; 8]));
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    stage.condition(0, Condition::Dead).moved(Move::Steady(1))
}

#[test]
fn a_flow_that_has_lost_its_backend_is_none_that_begins_for_limits() {
    let stage = bereft(|stage| stage.guarded(0, Rate::new(1, 1), Rate::default()));
    assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
    let limited = stage.run(&syn(OTHER4, VIP4).frame());
    assert_eq!(limited.verdict, Verdict::Drop(DropReason::ServiceLimit));
}

#[test]
fn a_flow_that_ends_as_it_loses_its_backend_is_none_in_progress() {
    for (flags, expected) in [
        (Flags::ACK, (1, record_flag::COUNTED)),
        (Flags::FIN, (0, record_flag::FINISHED)),
        (Flags::RST, (0, record_flag::RESET)),
    ] {
        let stage = bereft(Stage::recording_all);
        assert!(goes_on(&stage, &flagged(CLIENT4, VIP4, flags)));
        let sessions = stage.sessions();
        let session = sessions.by_flow.values().next().expect("a session");
        assert_eq!((stage.in_progress(1), session.record.flags), expected);
        stage.assert_sound();
    }
}

#[test]
fn a_client_that_opens_anew_with_another_port_of_its_backend_frees_the_first() {
    let servers = ["10.1.0.2:80", "10.1.0.2:81"].map(server);
    let stage = serving(&servers).scheduled(Scheduler::Turns(&[0, 1]));
    let mut ports = Vec::new();
    for _ in 0..2 {
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &flagged(CLIENT4, VIP4, Flags::RST)));
        let now = stage.sessions().ports;
        assert_eq!(now.len(), 1);
        ports.extend(now.into_keys().map(|key| key.backend_port));
    }
    assert_ne!(ports[0], ports[1]);
}

#[test]
fn a_client_that_opens_anew_without_its_port_takes_one_that_is_nobodys() {
    for same in [true, false] {
        let servers = SERVERS.map(server);
        let turns: &[u32] = if same { &[0] } else { &[0, 1] };
        let stage = serving(&servers)
            .scheduled(Scheduler::Turns(turns))
            .recording_all();
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &flagged(CLIENT4, VIP4, Flags::RST)));
        let stage = stage.left(|sessions| sessions.ports.clear());
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert_eq!(stage.sessions().by_flow.len(), 1);
        stage.assert_sound();
    }
}

#[test]
fn a_client_that_opens_anew_with_two_backends_at_once_has_one_session() {
    let turning = || {
        let stage = serving(&SERVERS.map(server))
            .scheduled(Scheduler::Turns(&[0, 1, 1]))
            .recording_all();
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &flagged(CLIENT4, VIP4, Flags::RST)));
        stage
    };
    let again = syn(CLIENT4, VIP4).frame();
    let mut went = 0;
    for steps in 0.. {
        let stage = turning();
        let Some([one, other]) = stage.at_once(&again, steps, &again) else {
            assert!(steps > 3, "it took {steps} steps");
            break;
        };
        assert_eq!(stage.sessions().by_flow.len(), 1, "{steps}");
        stage.assert_sound();
        let is_sent = |outcome: &Outcome| matches!(outcome.verdict, Verdict::Redirect(_));
        assert!(is_sent(&one) || is_sent(&other), "{steps}");
        went += u32::from(is_sent(&one) && is_sent(&other));
    }
    assert!(went > 0);
}

/// Two services from the same port at the same backend, of which the second has a session that has expired.
fn expired() -> Stage {
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS)
        .serve(Mode::FullNat, VIP4_TOO, TCP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS);
    assert!(goes_on(stage.at(1), &syn(CLIENT4, VIP4_TOO)));
    stage.at(1 + OPENING_LIFETIME + SECOND);
    stage
}

#[test]
fn a_port_that_is_not_known_to_be_expired_is_not_taken_over() {
    let other = syn(OTHER4, VIP4);
    assert!(goes_on(&expired(), &other));
    let kept = [
        expired().turned_into(mode::NAT, TCP),
        expired().turned_into(mode::FULL_NAT, UDP),
        // It has another port by now, and whose this one is, is about to be said.
        expired().left(|sessions| {
            let sessions = sessions.by_flow.values_mut();
            sessions.for_each(|session| session.port ^= 1);
        }),
        expired().left(|sessions| sessions.by_flow.clear()),
    ];
    for stage in kept {
        let outcome = stage.run(&other.frame());
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::PortsExhausted));
        assert_eq!(stage.sessions().ports.len(), 1);
    }
}
