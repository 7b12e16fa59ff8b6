//! Which server takes a flow: the ring, its dead owners, and the half of the service in force.

use lb_common::verdict::{DropReason, Verdict};

use crate::{
    CLIENT4, SERVER4, TCP, UDP, VIP4,
    frames::{datagram, syn},
    support::{CHOICES, EGRESS, Mode, Outcome, Server, Stage, server},
};

/// Eight servers, all but `dead` alive, each with a slot of the ring.
fn eight(dead: &[usize]) -> Stage {
    let servers: Vec<Server> = (0..8)
        .map(|n| {
            let server = server(&format!("10.1.0.{}:8080", n + 1));
            if dead.contains(&n) {
                server.dead()
            } else {
                server
            }
        })
        .collect();
    Stage::new().serve(Mode::Ipip, VIP4, TCP, &servers)
}

/// Whom a packet went to.
fn taken_by(stage: &Stage) -> Option<usize> {
    let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
    let server = *outcome.counted.servers.keys().next()? as usize;
    assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
    assert_eq!(outcome.frame.0[5], server as u8, "the server's MAC address");
    Some(server)
}

#[test]
fn a_dead_servers_flows_go_to_their_second_and_then_third_choice() {
    let [first, second, third] = CHOICES;
    assert_eq!(taken_by(&eight(&[])), Some(first));
    assert_eq!(taken_by(&eight(&[first])), Some(second));
    assert_eq!(taken_by(&eight(&[first, second])), Some(third));
}

#[test]
fn a_flow_all_of_whose_choices_are_dead_goes_to_whoever_is_alive() {
    for alive in (0..8).filter(|n| !CHOICES.contains(n)) {
        let others: Vec<usize> = (0..8).filter(|&n| n != alive).collect();
        assert_eq!(taken_by(&eight(&others)), Some(alive));
    }
    let nobody = eight(&[0, 1, 2, 3, 4, 5, 6, 7]).run(&syn(CLIENT4, VIP4).frame());
    assert_eq!(nobody, Outcome::dropped(DropReason::NoBackend));
}

#[test]
fn a_server_that_dies_moves_no_other_servers_flows() {
    let [first, ..] = CHOICES;
    for other in (0..8).filter(|&n| n != first) {
        assert_eq!(taken_by(&eight(&[other])), Some(first));
    }
}

#[test]
fn both_slots_of_an_element_are_reached() {
    let [even, ..] = CHOICES;
    for (first, second) in [(0, 1), (1, 0)] {
        let pair = |n: usize| if n == even { first } else { second };
        let ring: Vec<u32> = (0..8).map(pair).collect();
        assert_eq!(taken_by(&eight(&[]).ring(&ring)), Some(first as usize));
    }
    let odd = 5;
    let ring: Vec<u32> = (0..8).map(|n| u32::from(n == odd)).collect();
    // The first choice is even and its owner dead.
    assert_eq!(taken_by(&eight(&[0]).ring(&ring)), Some(1));
}

#[test]
fn slots_name_members_of_their_own_pool() {
    let stage = eight(&[]).serve(Mode::Ipip, "10.0.0.2:80", TCP, &[server("10.9.0.1:80")]);
    let outcome = stage.run(&syn(CLIENT4, "10.0.0.2:80").frame());
    assert_eq!(outcome.counted.servers.keys().collect::<Vec<_>>(), [&8]);
    assert_eq!(outcome.counted.services.keys().collect::<Vec<_>>(), [&1]);
    let [first, ..] = CHOICES;
    assert_eq!(taken_by(&stage), Some(first));
}

#[test]
fn an_empty_ring_drops_what_comes() {
    let stage = eight(&[]).ring(&[]);
    let outcome = stage.run(&syn(CLIENT4, VIP4).frame());
    assert_eq!(outcome, Outcome::dropped(DropReason::NoBackend));
}

#[test]
fn the_generations_parity_picks_the_half_of_a_service() {
    let frame = syn(CLIENT4, VIP4).frame();
    for half in 0..2 {
        let stage = eight(&[]).only_in(half);
        for generation in 0..6 {
            let outcome = stage.clone().generation(generation).run(&frame);
            if generation as usize % 2 == half {
                assert_eq!(outcome.verdict, Verdict::Redirect(EGRESS));
            } else {
                assert_eq!(outcome, Outcome::passed(frame.clone()));
            }
        }
    }
}

#[test]
fn one_address_serves_tcp_and_udp_apart() {
    let stage = Stage::new()
        .serve(Mode::Nat, VIP4, TCP, &[server(SERVER4)])
        .serve(Mode::Nat, VIP4, UDP, &[server("10.1.0.3:8080")]);
    let to = |frame: &[u8]| stage.run(frame).frame.0[30..34].to_vec();
    assert_eq!(to(&syn(CLIENT4, VIP4).frame()), [10, 1, 0, 2]);
    assert_eq!(to(&datagram(CLIENT4, VIP4).frame()), [10, 1, 0, 3]);
}

#[test]
fn flows_spread_over_every_server_evenly() {
    let stage = eight(&[]).hashing();
    let mut taken = [0; 8];
    for port in 0..4_000 {
        let outcome = stage.run(&syn(&format!("192.0.2.7:{port}"), VIP4).frame());
        taken[*outcome.counted.servers.keys().next().unwrap() as usize] += 1;
    }
    // 500 each; five standard deviations are 105.
    assert!(taken.iter().all(|n| (395..=605).contains(n)), "{taken:?}");
}
