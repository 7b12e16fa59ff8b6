//! Clients of a prefix and the part of the ring that its route leads to, also while the routes change.

use crate::{
    TCP, UDP, VIP4, VIP6,
    frames::{Spec, datagram, segment, syn},
    support::{CHOICES, Condition, Mode, Scheduler, Stage, server},
    tracking::taken_by,
};

/// More than any test lasts.
const MOVING_TIME: u32 = 1_000_000;
/// The list of routes, and another one.
const ROUTES: u32 = 7;
const OTHERS: u32 = 8;

/// Eight servers, and a ring of three parts, each of the server of its number.
fn stage_of(mode: Mode, vip: &str, protocol: u8) -> Stage {
    let v4 = vip == VIP4;
    let address = |n| match v4 {
        true => format!("10.1.0.{n}:80"),
        false => format!("[fd00:1::{n}]:80"),
    };
    let servers: Vec<_> = (1..=8).map(|n| server(&address(n))).collect();
    Stage::new()
        .serve(mode, vip, protocol, &servers)
        .moving_time(MOVING_TIME)
        .in_parts(&[0, 1, 2])
        .routes(
            ROUTES,
            &[
                ("0.0.0.0/0", 0),
                ("::/0", 0),
                ("192.0.2.0/24", 1),
                ("192.0.2.128/25", 2),
                ("2001:db8:c::/48", 2),
            ],
        )
        .routed(ROUTES, 0)
}

fn stage() -> Stage {
    stage_of(Mode::Ipip, VIP4, TCP)
}

/// Clients without a route, of the shorter prefix and of the longer one within it.
const CLIENTS: [&str; 3] = ["198.51.100.7", "192.0.2.7", "192.0.2.200"];

fn opening(client: &str, port: u16) -> Spec {
    syn(&format!("{client}:{port}"), VIP4)
}

fn later(client: &str, port: u16) -> Spec {
    segment(&format!("{client}:{port}"), VIP4)
}

/// Whom new flows of each client go to.
fn begun(stage: &Stage) -> [Option<u32>; 3] {
    CLIENTS.map(|client| taken_by(stage, &opening(client, 1)))
}

#[test]
fn the_longest_prefix_says_which_part_of_the_ring_a_client_has() {
    let stage = stage();
    assert_eq!(begun(&stage), [Some(0), Some(1), Some(2)]);
    for (client, part) in CLIENTS.into_iter().zip(0..) {
        assert_eq!(taken_by(&stage, &later(client, 2)), Some(part));
    }
    assert_eq!(stage.recorded(), (0, 0), "every slot is steady");
}

#[test]
fn clients_of_ipv6_and_of_datagrams_are_told_apart_likewise() {
    let v6 = stage_of(Mode::Nat, VIP6, TCP);
    assert_eq!(taken_by(&v6, &syn("[2001:db8:c::7]:1", VIP6)), Some(2));
    assert_eq!(taken_by(&v6, &syn("[2001:db8:d::7]:1", VIP6)), Some(0));
    let udp = stage_of(Mode::Gue, VIP4, UDP);
    let [_, client, _] = CLIENTS;
    let packet = datagram(&format!("{client}:1"), VIP4);
    assert_eq!(taken_by(&udp, &packet), Some(1));
}

#[test]
fn another_lists_routes_are_none_of_the_services() {
    let others = stage().routes(OTHERS, &[("0.0.0.0/0", 2)]);
    assert_eq!(begun(&others), [Some(0), Some(1), Some(2)]);
    assert_eq!(begun(&others.routed(OTHERS, 0)), [Some(2); 3]);
    let none = stage().routed(0, 0);
    assert_eq!(begun(&none), [Some(0); 3]);
}

#[test]
fn routes_switch_with_everything_else() {
    let both = stage().routes(OTHERS, &[("0.0.0.0/0", 2)]);
    let both = both.routed_in(1, OTHERS);
    assert_eq!(begun(&both), [Some(0), Some(1), Some(2)]);
    assert_eq!(begun(&both.generation(1)), [Some(2); 3]);
}

#[test]
fn slots_of_a_part_move_by_themselves() {
    let stage = stage().moving_in_parts(&[(0, 3), (1, 4), (2, 5)]);
    for (client, part) in CLIENTS.into_iter().zip(0..) {
        assert_eq!(taken_by(&stage, &opening(client, 1)), Some(part));
        assert_eq!(taken_by(&stage, &later(client, 2)), Some(part + 3));
    }
}

#[test]
fn while_routes_change_old_flows_go_by_those_before_and_new_ones_by_those_since() {
    // All are led to the last part now, and the parts before had other servers.
    let stage = stage()
        .moving_from_parts(&[3, 4, 5])
        .routes(OTHERS, &[("0.0.0.0/0", 2)])
        .routed(OTHERS, ROUTES);
    for (client, part) in CLIENTS.into_iter().zip(0..) {
        assert_eq!(taken_by(&stage, &opening(client, 1)), Some(2), "{client}");
        let old = Some(part + 3);
        assert_eq!(taken_by(&stage, &later(client, 2)), old, "{client}");
    }
    // Recorded by now, and so wherever routes lead.
    let back = stage.routed(ROUTES, OTHERS);
    for (client, part) in CLIENTS.into_iter().zip(0..) {
        assert_eq!(taken_by(&back, &later(client, 1)), Some(2), "{client}");
        assert_eq!(taken_by(&back, &later(client, 2)), Some(part + 3));
        // That of a flow that nobody has seen.
        assert_eq!(taken_by(&back, &later(client, 3)), Some(5), "{client}");
    }
}

#[test]
fn routes_that_come_or_go_leave_old_flows_where_they_were() {
    let come = stage().moving_from_parts(&[6]).routed(ROUTES, 0);
    let gone = stage().moving_from_parts(&[3, 4, 5]).routed(0, ROUTES);
    for (client, part) in CLIENTS.into_iter().zip(0..) {
        assert_eq!(taken_by(&come, &later(client, 1)), Some(6), "{client}");
        assert_eq!(taken_by(&come, &opening(client, 2)), Some(part), "{client}");
        assert_eq!(taken_by(&gone, &later(client, 1)), Some(part + 3));
        assert_eq!(taken_by(&gone, &opening(client, 2)), Some(0), "{client}");
    }
}

#[test]
fn the_next_choice_for_a_flow_whose_owner_is_dead_is_of_its_part() {
    let owners = |first| {
        let mut ring = [7; 8];
        for (choice, owner) in CHOICES.into_iter().zip(first..) {
            ring[choice] = owner;
        }
        ring
    };
    // Each part has its choices of two servers of its own.
    let ring = [owners(0), owners(2)].concat();
    let stage = stage().ring(&ring).in_two_parts();
    let [other, client, _] = CLIENTS;
    let stage = stage
        .condition(0, Condition::Dead)
        .condition(2, Condition::Dead);
    assert_eq!(taken_by(&stage, &opening(other, 1)), Some(1));
    assert_eq!(taken_by(&stage, &opening(client, 1)), Some(3));
}

#[test]
fn nobody_of_another_subset_takes_a_flow_that_its_own_cannot() {
    // Server 1 is alone in its subset, and down; 3 is of both.
    let apart = |stage: Stage| {
        let stage = stage.condition(1, Condition::Drains).apart(1, &[0, 2]);
        [0, 2, 4, 5, 6, 7]
            .into_iter()
            .fold(stage, |stage, server| stage.apart(server, &[1]))
    };
    assert_eq!(begun(&apart(stage())), [Some(0), Some(3), Some(2)]);
    let alone = apart(stage()).apart(3, &[1]);
    assert_eq!(begun(&alone), [Some(0), None, Some(2)]);
    let [_, client, _] = CLIENTS;
    assert_eq!(
        taken_by(&alone, &later(client, 2)),
        Some(1),
        "it holds flows"
    );
}

#[test]
fn the_least_loaded_of_a_subset_gets_its_new_flows() {
    let stage = stage().recording_all().scheduled(Scheduler::Least);
    let stage = stage.routed(ROUTES, 0);
    let stage = [2, 3, 4, 5, 6, 7]
        .into_iter()
        .fold(stage, |stage, server| stage.apart(server, &[1]))
        .busy(0, 5)
        .busy(1, 7);
    let [_, client, _] = CLIENTS;
    for port in 1..=2 {
        assert_eq!(taken_by(&stage, &opening(client, port)), Some(0));
    }
    let takers: Vec<_> = (3..=6)
        .map(|port| taken_by(&stage, &opening(client, port)))
        .collect();
    assert_eq!(takers.iter().filter(|taker| **taker == Some(1)).count(), 2);
}

#[test]
fn a_client_is_not_led_back_to_a_server_that_its_route_does_not_lead_to() {
    let stage = stage().recording_all().persisting(MOVING_TIME, 128);
    let stage = stage.routed(ROUTES, 0);
    let [_, client, _] = CLIENTS;
    assert_eq!(taken_by(&stage, &opening(client, 1)), Some(1));
    let moved = stage.in_parts(&[0, 4, 2]);
    assert_eq!(taken_by(&moved, &opening(client, 2)), Some(1), "remembered");
    let apart = moved.apart(1, &[1]);
    assert_eq!(taken_by(&apart, &opening(client, 3)), Some(4));
    assert_eq!(
        taken_by(&apart, &later(client, 1)),
        Some(1),
        "it is recorded"
    );
}
