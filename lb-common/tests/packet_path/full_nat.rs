//! `full-nat`: requests that come from a pool's address at their backend, answers that come back to it, and how long
//! what is known of both is kept.

use lb_common::{
    mss,
    rate::Rate,
    session::{CLOSED_LIFETIME, HALF_CLOSED_LIFETIME},
    tables::{NoRoute, SECOND, Tick, record_flag, refusal},
    track::{OPENING_LIFETIME, RESET_LIFETIME},
    verdict::{Answer, DropReason, Verdict},
};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Flags, Spec, Transport, datagram, segment, socket, syn},
    refuse::tcp,
    support::{
        CLIENT_MACS, Condition, EGRESS, IDLE, INGRESS, Mode, Move, Outcome, Scheduler, Server,
        Stage, macs, server,
    },
};

pub const POOL4: &str = "10.9.0.1";
pub const POOL6: &str = "fd00:9::1";
/// The only port of each, so that it is known which a flow gets.
pub const PORTS: (u16, u16) = (2_000, 2_000);
pub const FROM4: &str = "10.9.0.1:2000";
pub const FROM6: &str = "[fd00:9::1]:2000";
/// Client, VIP, the pool's end, backend, of each family.
pub const ENDS: [[&str; 4]; 2] = [
    [CLIENT4, VIP4, FROM4, SERVER4],
    [CLIENT6, VIP6, FROM6, SERVER6],
];

/// Both families behind VIPs, TCP and UDP, each with one port.
pub fn stage() -> Stage {
    with(server(SERVER4), server(SERVER6))
}

pub fn with(v4: Server, v6: Server) -> Stage {
    let mut stage = Stage::new();
    for (vip, protocol, server, pool) in [
        (VIP4, TCP, v4, POOL4),
        (VIP4, UDP, v4, POOL4),
        (VIP6, TCP, v6, POOL6),
        (VIP6, UDP, v6, POOL6),
    ] {
        stage = stage
            .serve(Mode::FullNat, vip, protocol, &[server])
            .translating(&[pool], PORTS);
    }
    stage
        .route(socket(CLIENT4).ip(), INGRESS)
        .route(socket(CLIENT6).ip(), EGRESS)
}

/// One TCP service of IPv4 with these servers.
fn serving(servers: &[Server]) -> Stage {
    Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, servers)
        .translating(&[POOL4], PORTS)
        .route(socket(CLIENT4).ip(), INGRESS)
}

/// A segment of a client's with flags, nothing else.
fn flagged(from: &str, to: &str, flags: Flags) -> Spec {
    Spec {
        transport: Transport::Tcp(flags),
        ..segment(from, to)
    }
}

pub fn between(spec: &Spec, from: &str, to: &str) -> Spec {
    Spec {
        from: socket(from),
        to: socket(to),
        ..spec.clone()
    }
}

/// What comes out of a request, counted for service and server at a position.
pub fn request(
    spec: &Spec,
    from: &str,
    to: &str,
    position: u8,
    opens: u64,
    recorded: u64,
) -> Outcome {
    let count = (1, spec.frame().len() as u64, opens);
    let expected = between(spec, from, to).routed(macs(position));
    let verdict = Verdict::Redirect(EGRESS);
    let mut outcome = Outcome::forwarded(verdict, expected.frame(), position.into(), count);
    outcome.counted.services = [(u32::from(position), count)].into();
    if recorded > 0 {
        outcome.counted.flows = [(u32::from(position), (0, recorded, 0))].into();
    }
    outcome
}

/// Whether a frame is forwarded.
pub fn goes_on(stage: &Stage, spec: &Spec) -> bool {
    matches!(
        stage.run(&spec.frame()).verdict,
        Verdict::Redirect(_) | Verdict::Transmit
    )
}

/// Whether an answer finds its client.
fn is_answered(stage: &Stage) -> bool {
    goes_on(stage, &segment(SERVER4, FROM4))
}

#[test]
fn a_request_comes_from_the_pool_and_its_answer_from_the_vip() {
    for (at, [client, vip, from, to]) in (0u8..).zip(ENDS) {
        for (udp, position) in [(false, 2 * at), (true, 2 * at + 1)] {
            let stage = stage();
            let (first, then) = match udp {
                false => (syn(client, vip), segment(client, vip)),
                true => (datagram(client, vip), datagram(client, vip)),
            };
            let expected = request(&first, from, to, position, u64::from(!udp), 1);
            assert_eq!(stage.run(&first.frame()), expected, "{first:?}");
            let expected = request(&then, from, to, position, 0, 0);
            assert_eq!(stage.run(&then.frame()), expected, "{then:?}");
            let answer = between(&then, to, from);
            let expected = between(&then, vip, client).routed(CLIENT_MACS).frame();
            let verdict = match at {
                0 => Verdict::Transmit,
                _ => Verdict::Redirect(EGRESS),
            };
            let expected = Outcome::uncounted(verdict, expected);
            assert_eq!(stage.run(&answer.frame()), expected, "{answer:?}");
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without_there_and_back() {
    let stage = stage();
    let bare = Spec {
        transport: Transport::Udp(false),
        ..datagram(CLIENT4, VIP4)
    };
    let expected = request(&bare, FROM4, SERVER4, 1, 0, 1);
    assert_eq!(stage.run(&bare.frame()), expected);
    let expected = between(&bare, VIP4, CLIENT4).routed(CLIENT_MACS).frame();
    let outcome = stage.run(&between(&bare, SERVER4, FROM4).frame());
    assert_eq!(outcome, Outcome::uncounted(Verdict::Transmit, expected));
}

#[test]
fn a_request_keeps_everything_else() {
    let odd = Spec {
        traffic_class: 0xb9,
        ttl: 2,
        options: vec![1; 8],
        trailer: vec![0xee; 5],
        ..syn(CLIENT4, VIP4)
    };
    let expected = request(&odd, FROM4, SERVER4, 0, 1, 1);
    assert_eq!(stage().run(&odd.frame()), expected);
}

#[test]
fn a_port_that_is_taken_is_nobody_elses_at_that_backend() {
    let other = syn("192.0.2.8:40000", VIP4);
    let stage = serving(&[server(SERVER4)]);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    let mut expected = Outcome::dropped(DropReason::PortsExhausted);
    expected.counted.exhausted = 1;
    expected.counted.flows = [(0, (0, 0, 0))].into();
    assert_eq!(stage.run(&other.frame()), expected);
    assert_eq!(stage.sessions().by_flow.len(), 1);
    assert_eq!(stage.sessions().ports.len(), 1);
}

#[test]
fn different_backends_have_the_same_port_for_different_clients() {
    let servers = [server("10.1.0.2:80"), server("10.1.0.3:80")];
    let stage = serving(&servers).scheduled(Scheduler::Turns(&[0, 1]));
    let clients = [syn(CLIENT4, VIP4), syn("192.0.2.8:40000", VIP4)];
    assert!(clients.iter().all(|client| goes_on(&stage, client)));
    let ports: Vec<_> = stage.sessions().ports.into_keys().collect();
    assert_eq!(ports.len(), 2);
    assert_eq!(ports[0].port, ports[1].port);
    assert_ne!(ports[0].backend, ports[1].backend);
}

#[test]
fn a_pool_is_used_up_but_for_few_ports_before_a_flow_is_refused() {
    let stage = Stage::new()
        .hashing()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4, "10.9.0.2"], (1_000, 1_499));
    let all = (0..1_000u16).map(|n| syn(&format!("192.0.2.7:{}", 10_000 + n), VIP4));
    let served = all.filter(|client| goes_on(&stage, client)).count();
    assert!((900..1_000).contains(&served), "{served}");
    let sessions = stage.sessions();
    assert_eq!(
        (sessions.by_flow.len(), sessions.ports.len()),
        (served, served)
    );
    let used = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        let ports = sessions.ports.keys();
        ports.filter(|key| key.address == address.into()).count()
    };
    assert!(used(POOL4) > 400 && used("10.9.0.2") > 400);
}

#[test]
fn a_flow_without_a_port_is_answered_as_one_without_a_backend() {
    let stage = serving(&[server(SERVER4)]).no_backend(refusal::RESET);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    let refused = stage.run(&syn("192.0.2.8:40000", VIP4).frame());
    assert_eq!(refused.verdict, Verdict::Transmit);
    assert_eq!(refused.counted.answers, [(Answer::Reset as u32, 1)].into());
    let reason = DropReason::PortsExhausted as u32;
    assert_eq!(refused.counted.drops, [(reason, 1)].into());
    let passing = serving(&[server(SERVER4)]).no_backend(refusal::PASS);
    assert!(goes_on(&passing, &syn(CLIENT4, VIP4)));
    let other = syn("192.0.2.8:40000", VIP4).frame();
    assert_eq!(passing.run(&other).verdict, Verdict::Pass);
}

#[test]
fn a_flow_without_room_gives_its_port_back() {
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], (2_000, 2_999))
        .session_room(0);
    let refused = stage.run(&syn(CLIENT4, VIP4).frame());
    assert_eq!(refused.verdict, Verdict::Drop(DropReason::PortsExhausted));
    assert_eq!(stage.sessions().ports.len(), 0);
}

#[test]
fn a_service_without_a_pool_has_no_ports() {
    let stage = serving(&[server(SERVER4)]).translating(&[], PORTS);
    let refused = stage.run(&syn(CLIENT4, VIP4).frame());
    assert_eq!(refused.verdict, Verdict::Drop(DropReason::PortsExhausted));
}

#[test]
fn only_a_syn_begins_a_tcp_session() {
    for flags in [Flags::ACK, Flags::FIN, Flags::RST, Flags::NONE] {
        let stage = serving(&[server(SERVER4)]);
        let stray = flagged(CLIENT4, VIP4, flags).frame();
        let expected = Outcome::dropped(DropReason::NoSession);
        assert_eq!(stage.run(&stray), expected, "{flags:?}");
        assert!(stage.sessions().by_flow.is_empty());
    }
    let stage = serving(&[server(SERVER4)]).no_backend(refusal::RESET);
    let answered = stage.run(&segment(CLIENT4, VIP4).frame());
    assert_eq!(answered.verdict, Verdict::Transmit);
    let reason = DropReason::NoSession as u32;
    assert_eq!(answered.counted.drops, [(reason, 1)].into());
}

#[test]
fn what_comes_to_the_pool_and_is_of_no_session_is_the_kernels() {
    let stage = stage();
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    for (from, to) in [
        (SERVER4, "10.9.0.1:2001"),
        ("10.1.0.2:8081", FROM4),
        ("10.1.0.3:8080", FROM4),
        (SERVER6, FROM6),
    ] {
        let stray = segment(from, to).frame();
        assert_eq!(stage.run(&stray), Outcome::passed(stray), "{from} {to}");
    }
    let other = datagram(SERVER4, FROM4).frame();
    assert_eq!(stage.run(&other), Outcome::passed(other));
}

#[test]
fn an_answer_that_cannot_go_on_is_counted_by_what_stops_it() {
    for (client, vip, from, to) in ENDS.map(|[client, vip, from, to]| (client, vip, from, to)) {
        let stopped = stage().no_route(socket(client).ip(), NoRoute::Refused);
        let last_hop = Spec {
            ttl: 1,
            ..segment(to, from)
        };
        let neighbourless = stage().no_route(socket(client).ip(), NoRoute::Kernels);
        for (stage, answer, reason) in [
            (&stopped, segment(to, from), DropReason::NoRoute),
            (&stage(), last_hop.clone(), DropReason::TtlExpired),
            (&neighbourless, last_hop, DropReason::TtlExpired),
        ] {
            assert!(goes_on(stage, &syn(client, vip)));
            let outcome = stage.run(&answer.frame());
            let dropped = [(reason as u32, 1)].into();
            assert_eq!(outcome.counted.drops, dropped, "{to}");
        }
    }
}

#[test]
fn an_answer_that_the_kernel_can_send_on_is_the_kernels_as_its_client_gets_it() {
    let fragmentable = Spec {
        fragment: (false, false, 0),
        ..segment(SERVER4, FROM4)
    };
    for (why, answer) in [
        (NoRoute::Kernels, segment(SERVER4, FROM4)),
        (NoRoute::TooLong(20), fragmentable),
    ] {
        let stage = stage().no_route(socket(CLIENT4).ip(), why);
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        let expected = between(&answer, VIP4, CLIENT4);
        let outcome = stage.run(&answer.frame());
        assert_eq!(outcome, Outcome::passed(expected.frame()), "{why:?}");
    }
}

#[test]
fn a_session_lasts_as_long_as_its_state_says() {
    // A connection that is established may be idle for longer than one that is half closed.
    let idle = 2 * HALF_CLOSED_LIFETIME;
    let quiet: [(&[(bool, Flags)], Tick); 5] = [
        (&[], OPENING_LIFETIME),
        (&[(true, Flags::ACK)], idle),
        (&[(true, Flags::FIN)], HALF_CLOSED_LIFETIME),
        (&[(true, Flags::FIN), (false, Flags::FIN)], CLOSED_LIFETIME),
        (&[(true, Flags::ACK), (false, Flags::RST)], RESET_LIFETIME),
    ];
    for (said, lifetime) in quiet {
        let stage = serving(&[server(SERVER4)]).moving_time(idle);
        assert!(goes_on(stage.at(1_000), &syn(CLIENT4, VIP4)));
        for &(by_client, flags) in said {
            let packet = match by_client {
                true => flagged(CLIENT4, VIP4, flags),
                false => flagged(SERVER4, FROM4, flags),
            };
            assert!(goes_on(stage.at(2_000), &packet), "{said:?}");
        }
        let last = if said.is_empty() { 1_000 } else { 2_000 };
        // A packet would make it last, so that the two ends of its life are looked at on a copy.
        let lives = stage.clone();
        assert!(is_answered(lives.at(last + lifetime - 1)), "{said:?}");
        assert!(!is_answered(stage.at(last + lifetime)), "{said:?}");
    }
}

#[test]
fn a_client_whose_connection_is_established_is_remembered_for_as_long_as_the_service_says() {
    const PERSISTENCE: Tick = 10 * OPENING_LIFETIME;
    let servers = [server(SERVER4), server("10.1.0.12:80")];
    let stage = || {
        serving(&servers)
            .scheduled(Scheduler::Turns(&[0, 1]))
            .persisting(PERSISTENCE, 128)
    };
    let backend = |outcome: Outcome| *outcome.counted.servers.keys().next().expect("forwarded");
    let opened = |stage: &Stage, port: u16| {
        let client = format!("{}:{port}", socket(CLIENT4).ip());
        backend(stage.run(&syn(&client, VIP4).frame()))
    };
    let stage = stage().translating(&[POOL4], (2_000, 2_100));
    let first = opened(&stage, 4_000);
    let client = format!("{}:4000", socket(CLIENT4).ip());
    assert_eq!(backend(stage.run(&segment(&client, VIP4).frame())), first);
    assert_eq!(stage.clients(), (1, 0));
    stage.at(PERSISTENCE - 1);
    assert_eq!(opened(&stage, 4_001), first);
    stage.at(3 * PERSISTENCE);
    assert_ne!(opened(&stage, 4_002), first);
}

#[test]
fn an_answer_keeps_a_session() {
    let stage = serving(&[server(SERVER4)]);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
    let mut now = 0;
    for _ in 0..5 {
        now += IDLE - 1;
        assert!(is_answered(stage.at(now)), "{now}");
    }
    let client = segment(CLIENT4, VIP4);
    assert!(goes_on(stage.at(now + IDLE - 1), &client));
}

#[test]
fn a_client_that_opens_anew_after_an_end_keeps_its_port_and_begins_anew() {
    for end in [Flags::FIN, Flags::RST] {
        let stage = serving(&[server(SERVER4)]);
        assert!(goes_on(stage.at(1), &syn(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &flagged(SERVER4, FROM4, end)));
        let again = syn(CLIENT4, VIP4);
        let expected = request(&again, FROM4, SERVER4, 0, 1, 1);
        assert_eq!(stage.at(5).run(&again.frame()), expected);
        let sessions = stage.sessions();
        let session = sessions.by_flow.values().next().unwrap();
        assert_eq!((session.record.since, sessions.ports.len()), (5, 1));
        assert!(is_answered(stage.at(5 + RESET_LIFETIME)));
    }
}

#[test]
fn a_client_that_opens_anew_with_another_backend_has_another_port_and_frees_the_first() {
    let servers = [server("10.1.0.2:80"), server("10.1.0.3:80")];
    let stage = serving(&servers).scheduled(Scheduler::Turns(&[0, 1]));
    let mut backends = Vec::new();
    for _ in 0..2 {
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &flagged(CLIENT4, VIP4, Flags::RST)));
        let sessions = stage.sessions();
        assert_eq!((sessions.by_flow.len(), sessions.ports.len()), (1, 1));
        backends.extend(sessions.ports.into_keys().map(|key| key.backend));
    }
    assert_ne!(backends[0], backends[1]);
}

#[test]
fn a_session_stays_with_a_backend_that_drains_and_its_syn_does_not() {
    let servers = [server("10.1.0.2:80"), server("10.1.0.3:80")];
    let stage = serving(&servers).ring(&[0; 8]);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    let stage = stage.condition(0, Condition::Drains).moved(Move::Steady(1));
    let kept = segment(CLIENT4, VIP4);
    let expected = request(&kept, FROM4, "10.1.0.2:80", 0, 0, 0);
    assert_eq!(stage.run(&kept.frame()), expected);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    let ports = stage.sessions().ports;
    let to: Vec<std::net::IpAddr> = ports.keys().map(|key| key.backend.into()).collect();
    assert_eq!(to, ["10.1.0.3".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn a_flow_whose_backend_has_died_gets_another_to_be_reset_by() {
    let servers = [server("10.1.0.2:80"), server("10.1.0.3:80")];
    let stage = serving(&servers).ring(&[0; 8]);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    let stage = stage.condition(0, Condition::Dead).moved(Move::Steady(1));
    let next = segment(CLIENT4, VIP4);
    let outcome = stage.run(&next.frame());
    let expected = between(&next, FROM4, "10.1.0.3:80").routed(macs(1));
    assert_eq!(outcome.frame.0, expected.frame());
    assert_eq!(stage.sessions().ports.len(), 1);
}

#[test]
fn flows_in_progress_are_counted_until_an_end_is_said_by_either_side() {
    for by_client in [true, false] {
        let stage = serving(&[server(SERVER4)]).recording_all();
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
        assert_eq!(stage.in_progress(0), 1);
        let end = match by_client {
            true => flagged(CLIENT4, VIP4, Flags::FIN),
            false => flagged(SERVER4, FROM4, Flags::FIN),
        };
        assert!(goes_on(&stage, &end) && goes_on(&stage, &end));
        assert_eq!(stage.in_progress(0), 0);
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
        assert_eq!(stage.in_progress(0), 1);
    }
}

#[test]
fn a_retransmitted_syn_is_of_the_same_session() {
    let stage = serving(&[server(SERVER4)]).recording_all();
    for _ in 0..3 {
        assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    }
    assert_eq!(
        (stage.sessions().by_flow.len(), stage.in_progress(0)),
        (1, 1)
    );
}

#[test]
fn limits_are_asked_of_flows_that_begin_alone() {
    let two = Rate::new(1, 2);
    let ports = (2_000, 2_999);
    let stage = Stage::new()
        .hashing()
        .serve(Mode::FullNat, VIP4, UDP, &[server(SERVER4)])
        .translating(&[POOL4], ports)
        .guarded(0, two, Rate::default());
    let client = |n: u16| datagram(&format!("192.0.2.7:{}", 40_000 + n), VIP4);
    let begun = (0..8).filter(|&n| goes_on(&stage, &client(n))).count();
    assert_eq!((begun, stage.sessions().by_flow.len()), (2, 2));
    assert!((0..20).all(|_| goes_on(&stage, &client(0))));
}

#[test]
fn limits_are_asked_of_flows_that_begin_while_a_service_moves_too() {
    let two = Rate::new(1, 2);
    let stage = Stage::new()
        .hashing()
        .serve(Mode::FullNat, VIP4, UDP, &[server(SERVER4)])
        .translating(&[POOL4], (2_000, 2_999))
        .guarded(0, two, Rate::default())
        .moving_from(&[0; 8]);
    let client = |n: u16| datagram(&format!("192.0.2.7:{}", 40_000 + n), VIP4);
    let begun = (0..8).filter(|&n| goes_on(&stage, &client(n))).count();
    assert_eq!((begun, stage.sessions().by_flow.len()), (2, 2));
    assert!((0..20).all(|_| goes_on(&stage, &client(0))));
}

#[test]
fn flows_from_before_flows_were_counted_are_counted_by_their_clients_next_packet() {
    let stage = serving(&[server(SERVER4)]);
    for packet in [syn(CLIENT4, VIP4), segment(CLIENT4, VIP4)] {
        assert!(goes_on(&stage, &packet));
    }
    assert_eq!(stage.in_progress(0), 0);
    let stage = stage.recording_all();
    for _ in 0..2 {
        assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
        assert_eq!(stage.in_progress(0), 1);
    }
    for _ in 0..2 {
        assert!(goes_on(&stage, &flagged(SERVER4, FROM4, Flags::FIN)));
        assert_eq!(stage.in_progress(0), 0);
    }
    // It has ended.
    assert!(goes_on(&stage, &segment(CLIENT4, VIP4)));
    assert_eq!(stage.in_progress(0), 0);
    stage.assert_sound();
}

/// Another client.
pub const OTHER4: &str = "192.0.2.8:40000";

#[test]
fn a_flow_that_finds_no_port_has_that_of_a_session_that_expired_a_second_ago() {
    let idle = 2 * HALF_CLOSED_LIFETIME;
    let said: [(&[(bool, Flags)], Tick); 4] = [
        (&[], OPENING_LIFETIME),
        (&[(true, Flags::ACK)], idle),
        (&[(true, Flags::FIN), (false, Flags::FIN)], CLOSED_LIFETIME),
        (&[(true, Flags::ACK), (false, Flags::RST)], RESET_LIFETIME),
    ];
    for (said, lifetime) in said {
        let stage = serving(&[server(SERVER4)])
            .moving_time(idle)
            .recording_all();
        assert!(goes_on(stage.at(1_000), &syn(CLIENT4, VIP4)));
        for &(by_client, flags) in said {
            let packet = match by_client {
                true => flagged(CLIENT4, VIP4, flags),
                false => flagged(SERVER4, FROM4, flags),
            };
            assert!(goes_on(&stage, &packet), "{said:?}");
        }
        let expires = 1_000 + lifetime + SECOND;
        let other = syn(OTHER4, VIP4);
        let refused = stage.at(expires - 1).run(&other.frame());
        assert_eq!(refused.verdict, Verdict::Drop(DropReason::PortsExhausted));
        let expected = request(&other, FROM4, SERVER4, 0, 1, 1);
        assert_eq!(stage.at(expires).run(&other.frame()), expected, "{said:?}");
        let sessions = stage.sessions();
        let flow = sessions.by_flow.keys().next().expect("a session");
        assert_eq!(flow.source, socket(OTHER4).ip().into());
        assert_eq!(stage.in_progress(0), 1, "the first is not counted any more");
        stage.assert_sound();
        // Who had it finds another, or none.
        let late = stage.run(&segment(CLIENT4, VIP4).frame());
        assert_eq!(late.verdict, Verdict::Drop(DropReason::NoSession));
    }
}

#[test]
fn a_session_for_which_there_is_no_room_has_that_of_one_that_has_expired() {
    let stage = Stage::new()
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], (2_000, 2_001))
        .session_room(1);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    assert!(!goes_on(&stage, &syn(OTHER4, VIP4)));
    stage.assert_sound();
    stage.at(OPENING_LIFETIME + SECOND);
    assert!(goes_on(&stage, &syn(OTHER4, VIP4)));
    assert_eq!(stage.sessions().by_flow.len(), 1);
    stage.assert_sound();
}

#[test]
fn both_ends_may_finish_at_once_and_neither_is_forgotten_or_counted_twice() {
    const COUNTED: u16 = record_flag::COUNTED;
    for (end, own, others) in [
        (
            flagged(CLIENT4, VIP4, Flags::FIN),
            record_flag::FINISHED,
            record_flag::BACKEND_FINISHED,
        ),
        (
            flagged(SERVER4, FROM4, Flags::FIN),
            record_flag::BACKEND_FINISHED,
            record_flag::FINISHED,
        ),
    ] {
        let stage = serving(&[server(SERVER4)]).recording_all();
        for packet in [syn(CLIENT4, VIP4), segment(CLIENT4, VIP4)] {
            assert!(goes_on(&stage, &packet));
        }
        // The other CPU is about to take the flow off the count.
        stage.flagged_meanwhile(COUNTED, others);
        assert!(goes_on(&stage, &end));
        let sessions = stage.sessions();
        let session = sessions.by_flow.values().next().expect("a session");
        assert_eq!(session.record.flags, own | others);
        assert_eq!(stage.in_progress(0), 1, "it is the other's to do");
    }
}

#[test]
fn a_service_of_every_port_has_sessions_by_port() {
    let stage = Stage::new()
        .hashing()
        .serve(Mode::FullNat, "10.0.0.1:0", TCP, &[server("10.1.0.2:80")])
        .translating(&[POOL4], (2_000, 2_999))
        .keeping_ports()
        .route(socket(CLIENT4).ip(), INGRESS);
    for port in [25, 443] {
        let vip = format!("10.0.0.1:{port}");
        assert!(goes_on(&stage, &syn(CLIENT4, &vip)));
        let sessions = stage.sessions();
        let key = sessions
            .ports
            .keys()
            .find(|key| key.backend_port.to_be() == port);
        let from = format!("{POOL4}:{}", key.unwrap().port.to_be());
        let answer = segment(&format!("10.1.0.2:{port}"), &from);
        let expected = between(&answer, &vip, CLIENT4).routed(CLIENT_MACS).frame();
        let expected = Outcome::uncounted(Verdict::Transmit, expected);
        assert_eq!(stage.run(&answer.frame()), expected);
    }
}

#[test]
fn a_packet_too_long_for_its_way_is_answered() {
    let stage = with(server(SERVER4).within(60), server(SERVER6));
    assert_eq!(
        stage.run(&syn(CLIENT4, VIP4).frame()).verdict,
        Verdict::Redirect(EGRESS)
    );
    let long = Spec {
        payload: vec![7; 100],
        ..segment(CLIENT4, VIP4)
    };
    let answered = stage.run(&long.frame());
    assert_eq!(
        answered.counted.answers,
        [(Answer::TooBig as u32, 1)].into()
    );
}

#[test]
fn the_mss_is_lowered_there_and_back() {
    let stage = serving(&[server(SERVER4).within(1_000).lowering(mss::AUTO)]);
    let told = |mss: u16| {
        let [high, low] = mss.to_be_bytes();
        [2, 4, high, low]
    };
    let opening = |from: &str, to: &str, ack: bool, mss: u16| {
        let set = |header: &mut etherparse::TcpHeader| {
            (header.syn, header.ack) = (true, ack);
            header.options = (&told(mss)[..]).try_into().unwrap();
        };
        tcp(from, to, set, b"")
    };
    let out = stage.run(&opening(CLIENT4, VIP4, false, 1_460).frame());
    let expected = opening(FROM4, SERVER4, false, 960).routed(macs(0));
    assert_eq!(out.frame.0, expected.frame());
    let out = stage.run(&opening(SERVER4, FROM4, true, 1_460).frame());
    let expected = opening(VIP4, CLIENT4, true, 960).routed(CLIENT_MACS);
    assert_eq!(out.frame.0, expected.frame());
}

#[test]
fn sessions_of_a_second_are_of_the_service_that_they_began_with() {
    // Of a service that has gone, or become another's, nothing is answered.
    let stage = serving(&[server(SERVER4)]);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    assert!(is_answered(stage.at(SECOND)));
    let gone = stage.clone().only_in(1);
    assert!(!is_answered(&gone));
}

#[test]
fn a_backend_that_a_nat_service_has_too_answers_each_by_its_own_way() {
    let stage = Stage::new()
        .serve(Mode::Nat, "10.0.0.2:80", TCP, &[server(SERVER4)])
        .serve(Mode::FullNat, VIP4, TCP, &[server(SERVER4)])
        .translating(&[POOL4], PORTS)
        .own(POOL4)
        .route(socket(CLIENT4).ip(), INGRESS);
    assert!(goes_on(&stage, &syn(CLIENT4, VIP4)));
    for (to, vip) in [(FROM4, VIP4), (CLIENT4, "10.0.0.2:80")] {
        let answer = segment(SERVER4, to);
        let expected = between(&answer, vip, CLIENT4).routed(CLIENT_MACS).frame();
        let expected = Outcome::uncounted(Verdict::Transmit, expected);
        assert_eq!(stage.run(&answer.frame()), expected);
    }
}
