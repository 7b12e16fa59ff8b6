//! `nat`: requests to a backend and answers from it.

use std::net::SocketAddr;

use lb_common::{tables::NoRoute, verdict::Verdict};

use crate::{
    CLIENT4, CLIENT6, SERVER4, SERVER6, TCP, UDP, VIP4, VIP6,
    frames::{Flags, Spec, Transport, datagram, segment, socket, syn},
    support::{CLIENT_MACS, EGRESS, INGRESS, Mode, Outcome, Stage, macs, server},
};

/// Both families behind VIPs, TCP and UDP.
fn stage() -> Stage {
    let (v4, v6) = (server(SERVER4), server(SERVER6));
    Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[v4])
        .serve(Mode::Nat, VIP4, UDP, &[v4])
        .serve(Mode::Nat, VIP6, TCP, &[v6])
        .serve(Mode::Nat, VIP6, UDP, &[v6])
}

/// A request to the service at a position becomes exactly this at its server.
fn assert_request(request: &Spec, position: u8, server: &str, opens: u64) {
    let frame = request.frame();
    let expected = Spec {
        to: socket(server),
        ..request.clone()
    }
    .routed(macs(position));
    let count = (1, frame.len() as u64, opens);
    let mut outcome = Outcome::forwarded(
        Verdict::Redirect(EGRESS),
        expected.frame(),
        u32::from(position),
        count,
    );
    outcome.counted.services = [(u32::from(position), count)].into();
    assert_eq!(stage().run(&frame), outcome, "{request:?}");
}

#[test]
fn a_tcp_request_is_readdressed_to_the_server_and_routed() {
    assert_request(&syn(CLIENT4, VIP4), 0, SERVER4, 1);
    assert_request(&segment(CLIENT4, VIP4), 0, SERVER4, 0);
    assert_request(&syn(CLIENT6, VIP6), 2, SERVER6, 1);
    assert_request(&segment(CLIENT6, VIP6), 2, SERVER6, 0);
}

#[test]
fn a_udp_request_is_readdressed_to_the_server_and_routed() {
    assert_request(&datagram(CLIENT4, VIP4), 1, SERVER4, 0);
    assert_request(&datagram(CLIENT6, VIP6), 3, SERVER6, 0);
}

#[test]
fn a_syn_with_ack_opens_no_flow() {
    let request = Spec {
        transport: Transport::Tcp(Flags {
            syn: true,
            ..Flags::ACK
        }),
        ..segment(CLIENT4, VIP4)
    };
    assert_request(&request, 0, SERVER4, 0);
}

#[test]
fn a_segment_with_neither_syn_nor_ack_opens_no_flow() {
    let request = Spec {
        transport: Transport::Tcp(Flags::NONE),
        ..segment(CLIENT4, VIP4)
    };
    assert_request(&request, 0, SERVER4, 0);
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let request = Spec {
        transport: Transport::Udp(false),
        ..datagram(CLIENT4, VIP4)
    };
    assert_request(&request, 1, SERVER4, 0);
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    for (request, position, server) in [
        (datagram(CLIENT4, VIP4), 1, SERVER4),
        (datagram(CLIENT6, VIP6), 3, SERVER6),
    ] {
        let mut request = Spec {
            payload: vec![0; 2],
            ..request
        };
        let answered = |request: &Spec| {
            let to = socket(server);
            let frame = Spec {
                to,
                ..request.clone()
            }
            .frame();
            // The checksum stands before the two bytes of payload.
            [frame[frame.len() - 4], frame[frame.len() - 3]]
        };
        // The word that makes the sum all ones.
        request.payload = answered(&request).to_vec();
        assert_eq!(answered(&request), [0xff, 0xff]);
        assert_request(&request, position, server, 0);
    }
}

#[test]
fn a_request_keeps_everything_else() {
    let request = Spec {
        traffic_class: 0xb9,
        ttl: 2,
        options: vec![1; 8],
        fragment: (false, false, 0),
        trailer: vec![0xee; 5],
        payload: Vec::new(),
        ..segment(CLIENT4, VIP4)
    };
    assert_request(&request, 0, SERVER4, 0);
    let request = Spec {
        traffic_class: 0xb9,
        ttl: 2,
        trailer: vec![0xee; 5],
        payload: Vec::new(),
        ..segment(CLIENT6, VIP6)
    };
    assert_request(&request, 2, SERVER6, 0);
}

#[test]
fn a_server_behind_the_interface_that_the_frame_came_in_by_gets_it_transmitted() {
    let stage = Stage::new().serve(Mode::Nat, VIP4, TCP, &[server(SERVER4).behind(INGRESS)]);
    let frame = syn(CLIENT4, VIP4).frame();
    let expected = syn(CLIENT4, SERVER4).routed(macs(0)).frame();
    let count = (1, frame.len() as u64, 1);
    let outcome = Outcome::forwarded(Verdict::Transmit, expected, 0, count);
    assert_eq!(stage.run(&frame), outcome);
}

/// Answers of each kind, and what they are to the client.
fn answers() -> [(Spec, Spec); 4] {
    [
        (segment(SERVER4, CLIENT4), segment(VIP4, CLIENT4)),
        (datagram(SERVER4, CLIENT4), datagram(VIP4, CLIENT4)),
        (segment(SERVER6, CLIENT6), segment(VIP6, CLIENT6)),
        (datagram(SERVER6, CLIENT6), datagram(VIP6, CLIENT6)),
    ]
}

#[test]
fn an_answer_comes_from_the_vip_and_is_routed_to_the_client() {
    for (answer, expected) in answers() {
        for (interface, verdict) in [
            (EGRESS, Verdict::Redirect(EGRESS)),
            (INGRESS, Verdict::Transmit),
        ] {
            let stage = stage().route(answer.to.ip(), interface);
            let expected = expected.clone().routed(CLIENT_MACS).frame();
            let outcome = stage.run(&answer.frame());
            assert_eq!(outcome, Outcome::uncounted(verdict, expected));
        }
    }
}

#[test]
fn an_answer_that_only_the_kernel_can_send_is_rewritten_and_left_to_it() {
    for (answer, expected) in answers() {
        let stage = stage().no_route(answer.to.ip(), NoRoute::Kernels);
        let outcome = stage.run(&answer.frame());
        assert_eq!(outcome, Outcome::passed(expected.frame()));
    }
}

/// The kernel tells the backend of it, which knows its own address only.
fn assert_left_as_it_is(stage: &Stage, answer: &Spec) {
    let frame = answer.frame();
    let outcome = stage.run(&frame);
    assert_eq!(outcome, Outcome::passed(frame), "{answer:?}");
}

#[test]
fn an_answer_that_goes_nowhere_is_left_to_the_kernel_as_it_is() {
    for (answer, _) in answers() {
        assert_left_as_it_is(&stage(), &answer);
        let refused = stage().no_route(answer.to.ip(), NoRoute::Refused);
        assert_left_as_it_is(&refused, &answer);
    }
}

#[test]
fn an_answer_longer_than_its_way_is_left_to_the_kernel_as_it_is() {
    for (answer, _) in answers() {
        let stage = stage().no_route(answer.to.ip(), NoRoute::TooLong(1_000));
        let whole = Spec {
            fragment: (true, false, 0),
            ..answer
        };
        assert_left_as_it_is(&stage, &whole);
    }
}

#[test]
fn an_answer_that_the_kernel_may_fragment_is_rewritten_and_left_to_it() {
    for (answer, expected) in answers().into_iter().filter(|(spec, _)| spec.to.is_ipv4()) {
        let stage = stage().no_route(answer.to.ip(), NoRoute::TooLong(1_000));
        let fragment = (false, false, 0);
        let answer = Spec { fragment, ..answer };
        let expected = Spec {
            fragment,
            ..expected
        };
        let outcome = stage.run(&answer.frame());
        assert_eq!(outcome, Outcome::passed(expected.frame()));
    }
}

#[test]
fn an_answer_at_the_end_of_its_ttl_is_left_to_the_kernel_as_it_is() {
    for (answer, _) in answers() {
        let client = answer.to.ip();
        for stage in [
            stage().route(client, EGRESS),
            stage().no_route(client, NoRoute::Kernels),
            stage().no_route(client, NoRoute::TooLong(1_000)),
        ] {
            for ttl in [0, 1] {
                let fragment = (false, false, 0);
                let answer = Spec {
                    ttl,
                    fragment,
                    ..answer.clone()
                };
                assert_left_as_it_is(&stage, &answer);
            }
        }
    }
}

#[test]
fn an_answer_without_a_checksum_stays_without() {
    let without = |spec: Spec| Spec {
        transport: Transport::Udp(false),
        ..spec
    };
    let stage = stage().route(socket(CLIENT4).ip(), EGRESS);
    let outcome = stage.run(&without(datagram(SERVER4, CLIENT4)).frame());
    let expected = without(datagram(VIP4, CLIENT4)).routed(CLIENT_MACS);
    let verdict = Verdict::Redirect(EGRESS);
    assert_eq!(outcome, Outcome::uncounted(verdict, expected.frame()));
}

#[test]
fn an_answer_to_the_balancer_itself_is_its_probes_and_stays() {
    for (answer, _) in answers() {
        let own = answer.to.ip().to_string();
        let stage = stage().own(&own).route(answer.to.ip(), EGRESS);
        let frame = answer.frame();
        assert_eq!(stage.run(&frame), Outcome::passed(frame));
    }
}

#[test]
fn only_the_servers_endpoint_answers() {
    let elsewhere = [
        segment("10.1.0.2:8081", CLIENT4),
        segment("10.1.0.3:8080", CLIENT4),
        segment("[fd00:1::2]:8081", CLIENT6),
        segment("[fd00:1::3]:8080", CLIENT6),
    ];
    for packet in elsewhere {
        let frame = packet.frame();
        let stage = stage().route(packet.to.ip(), EGRESS);
        assert_eq!(stage.run(&frame), Outcome::passed(frame), "{packet:?}");
    }
    let tcp_only = Stage::new().serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)]);
    let frame = datagram(SERVER4, CLIENT4).frame();
    assert_eq!(tcp_only.run(&frame), Outcome::passed(frame));
}

#[test]
fn no_answers_are_looked_for_where_no_service_needs_it() {
    for (answer, _) in answers() {
        let frame = answer.frame();
        let stage = stage().looking_for_answers(false);
        assert_eq!(stage.run(&frame), Outcome::passed(frame));
    }
}

#[test]
fn a_server_that_calls_another_vip_is_a_client_there() {
    let other = "10.0.0.9:443";
    let stage = stage().serve(Mode::Nat, other, TCP, &[server("10.1.0.9:4443")]);
    let frame = syn(SERVER4, other).frame();
    let expected = syn(SERVER4, "10.1.0.9:4443").routed(macs(4)).frame();
    let count = (1, frame.len() as u64, 1);
    let mut outcome = Outcome::forwarded(Verdict::Redirect(EGRESS), expected, 4, count);
    outcome.counted.services = [(4, count)].into();
    assert_eq!(stage.run(&frame), outcome);
}

#[test]
fn in_a_group_a_request_keeps_its_port() {
    for (protocol, request) in [
        (TCP, segment(CLIENT4, VIP4)),
        (UDP, datagram(CLIENT4, VIP4)),
    ] {
        let stage = Stage::new()
            .serve(Mode::Nat, VIP4, protocol, &[server(SERVER4)])
            .keeping_ports();
        let frame = request.frame();
        let kept = SocketAddr::new(socket(SERVER4).ip(), socket(VIP4).port());
        let expected = Spec {
            to: kept,
            ..request
        }
        .routed(macs(0));
        let count = (1, frame.len() as u64, 0);
        let verdict = Verdict::Redirect(EGRESS);
        let outcome = Outcome::forwarded(verdict, expected.frame(), 0, count);
        assert_eq!(stage.run(&frame), outcome);
    }
}
