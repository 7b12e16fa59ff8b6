//! What ICMP errors leave of the flows that they are about: nothing, for anybody may send one. They are read
//! as hearsay, and go to whoever has the flow.

use lb_common::{
    tables::refusal,
    track::OPENING_LIFETIME,
    verdict::{DropReason, Verdict},
};

use crate::{
    CLIENT4, TCP, UDP, VIP4,
    frames::{Flags, Spec, Transport, datagram, segment, syn},
    icmp::{about, error, quote},
    support::{Condition, EGRESS, Mode, Move, Scheduler, Server, Stage, server},
    tracking::taken_by,
};

/// Eight servers.
fn stage(protocol: u8) -> Stage {
    let servers: Vec<Server> = (1..=8).map(|n| server(&format!("10.1.0.{n}:80"))).collect();
    Stage::new().serve(Mode::Ipip, VIP4, protocol, &servers)
}

/// An error about a segment that a client was sent.
fn sent_to(client: &str) -> Spec {
    error((3, 4), &quote(&about(false, VIP4, client), Some(8)))
}

/// Longer than any flow is idle here.
const MOVING_TIME: u32 = 1_000_000;

#[test]
fn an_error_about_a_flow_hashed_by_some_fields_goes_where_its_clients_packets_go() {
    for stage in [
        stage(TCP).hashing().by_source(),
        stage(TCP).hashing().by_three_tuple(),
    ] {
        for port in 1_000..1_032 {
            let client = format!("192.0.2.{}:{port}", port % 8);
            let taken = taken_by(&stage, &segment(&client, VIP4));
            assert_eq!(taken_by(&stage, &sent_to(&client)), taken, "{port}");
        }
    }
}

#[test]
fn an_error_goes_to_the_backend_that_has_the_flow_whatever_its_ring_says() {
    let [old, new, next] = [0, 1, 2];
    let stage = stage(TCP).moving_time(MOVING_TIME);
    let stage = stage.moved(Move::Moving(new, old));
    assert_eq!(taken_by(&stage, &syn(CLIENT4, VIP4)), Some(new));
    for established in [false, true] {
        if established {
            assert_eq!(taken_by(&stage, &segment(CLIENT4, VIP4)), Some(new));
        }
        assert_eq!(taken_by(&stage, &sent_to(CLIENT4)), Some(new));
        assert_eq!(taken_by(&stage, &sent_to("192.0.2.7:9")), Some(old));
        let moves = [Move::Moving(next, old), Move::Settling(next)];
        for (to, keeper) in moves.into_iter().zip([old, next]) {
            let stage = stage.clone().moved(to);
            assert_eq!(taken_by(&stage, &sent_to(CLIENT4)), Some(new), "{to:?}");
            let unknown = taken_by(&stage, &sent_to("192.0.2.7:9"));
            assert_eq!(unknown, Some(keeper), "{to:?}");
        }
    }
    // Who has it no more is not told, nor is it made somebody else's.
    let gone = stage.clone().condition(new, Condition::Dead);
    assert_eq!(taken_by(&gone, &sent_to(CLIENT4)), Some(old));
    stage.at(MOVING_TIME);
    assert_eq!(taken_by(&stage, &sent_to(CLIENT4)), Some(old), "expired");
}

#[test]
fn an_error_about_a_flow_leaves_the_flow_tables_as_they_were() {
    let udp = |client: &str| error((3, 3), &quote(&about(true, VIP4, client), Some(8)));
    let every: Vec<u32> = (0..8).collect();
    let scheduled = |protocol| {
        let stage = stage(protocol).moving_time(MOVING_TIME);
        let stage = stage.recording_all().scheduled(Scheduler::Turns(&every));
        stage.persisting(MOVING_TIME, 128).moved(Move::Steady(7))
    };
    let moving = stage(TCP).moving_time(MOVING_TIME);
    let moving = moving.moved(Move::Moving(1, 0));
    for (stage, error) in [
        (scheduled(TCP), sent_to as fn(&str) -> Spec),
        (moving, sent_to),
        (scheduled(UDP), udp),
    ] {
        let ending = |port: u16, flags| Spec {
            transport: Transport::Tcp(flags),
            ..segment(&format!("192.0.2.7:{port}"), VIP4)
        };
        // Unknown, begun, established, reset, ended.
        for port in 2..=5 {
            stage.run(&ending(port, Flags::SYN).frame());
        }
        for (port, flags) in [(3, Flags::ACK), (4, Flags::RST), (5, Flags::FIN)] {
            stage.run(&ending(port, flags).frame());
        }
        stage.run(&datagram("192.0.2.7:2", VIP4).frame());
        let before = stage.flows();
        for now in [1, OPENING_LIFETIME, MOVING_TIME] {
            stage.at(now);
            for port in 1..=5 {
                let outcome = stage.run(&error(&format!("192.0.2.7:{port}")).frame());
                assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS), "{port}");
                assert_eq!(outcome.counted.flows, [(0, (1, 0, 0))].into(), "{port}");
                assert_eq!(stage.flows(), before, "{port} at {now}");
            }
        }
    }
}

#[test]
fn an_error_about_a_flow_without_a_keeper_is_dropped_or_the_kernels() {
    let stage = stage(TCP).moving_time(MOVING_TIME);
    let stage = stage.moved(Move::Moving(1, 0));
    let stage = (0..2).fold(stage, |stage, n| stage.condition(n, Condition::Dead));
    let frame = sent_to(CLIENT4).frame();
    let outcome = stage.run(&frame);
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoBackend));
    let outcome = stage.no_backend(refusal::PASS).run(&frame);
    assert_eq!(outcome.verdict, Verdict::Pass);
}
