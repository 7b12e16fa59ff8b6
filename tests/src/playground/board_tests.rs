//! Behaviour of the board, with time and news given.

use super::*;
use crate::{
    load::{Failure, Phase, Reason},
    playground::{changes::tests::service, offers},
};

const fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn board() -> Board {
    Board::new(&offers(), Vec::new())
}

fn answer(service: usize, name: &str) -> Attempt {
    Attempt {
        service,
        outcome: Ok(name.to_owned()),
    }
}

fn failure(service: usize) -> Attempt {
    let (phase, reason) = (Phase::Connect, Reason::Refused);
    Attempt {
        service,
        outcome: Err(Failure { phase, reason }),
    }
}

/// The first two services with backend 2 in this state and condition.
fn answered(state: &str, condition: &str) -> Vec<Service> {
    let pool = |addresses: [&'static str; 3]| {
        let [one, two, three] = addresses;
        [
            (one, 1, "active", "up"),
            (two, 1, state, condition),
            (three, 3, "active", "up"),
        ]
        .to_vec()
    };
    let v4 = pool(["10.2.0.11:80", "10.2.0.12:80", "10.2.0.13:80"]);
    let v6 = pool(["[fd00:2::11]:80", "[fd00:2::12]:80", "[fd00:2::13]:80"]);
    vec![
        service("10.0.0.1:80/tcp", &v4),
        service("[fd00::1]:80/tcp", &v6),
    ]
}

fn texts(board: &Board) -> Vec<String> {
    board
        .view(at(9_000))
        .events
        .into_iter()
        .map(|event| event.text)
        .collect()
}

#[test]
fn shares_and_rates_are_of_recent_answers() {
    let mut board = board();
    for _ in 0..10 {
        board.attempt(at(1_000), &answer(0, "backend1"));
    }
    for _ in 0..3 {
        board.attempt(at(8_000), &answer(0, "backend2"));
    }
    board.attempt(at(8_000), &answer(0, "backend3"));
    board.attempt(at(8_000), &failure(0));
    let view = &board.view(at(10_000)).services[0];
    let shares: Vec<f64> = view.servers.iter().map(|server| server.share).collect();
    assert_eq!(shares, [0.0, 0.75, 0.25]);
    assert_eq!((view.per_second, view.failing, view.failed), (0.8, 1, 1));
}

#[test]
fn what_is_old_is_forgotten_but_counted() {
    let mut board = board();
    board.attempt(at(0), &failure(1));
    let view = &board.view(at(5_001)).services[1];
    assert_eq!((view.failing, view.failed), (0, 1));
    for n in 0..100_000 {
        board.attempt(at(n), &answer(1, "backend1"));
    }
    assert!(board.tallies[1].recent.len() <= 5_001);
}

#[test]
fn an_answer_of_nobody_known_is_a_failure() {
    let mut board = board();
    board.attempt(at(1), &answer(0, "Welcome to nginx!"));
    assert_eq!(board.view(at(2)).services[0].failed, 1);
}

#[test]
fn standings_and_weights_are_the_agents() {
    let mut board = board();
    board.services(at(1), answered("active", "down"));
    let view = board.view(at(2));
    let standings: Vec<_> = view.services[0]
        .servers
        .iter()
        .map(|s| s.standing)
        .collect();
    assert_eq!(standings, [Standing::Up, Standing::Down, Standing::Up]);
    assert_eq!(view.services[0].servers[2].weight, 3);
    assert_eq!(view.services[2].servers[0].standing, Standing::Absent);
}

#[test]
fn one_backends_change_in_several_services_is_one_event() {
    let mut board = board();
    let before = answered("active", "up");
    let mut between = answered("active", "down");
    between[1] = before[1].clone();
    board.services(at(1_000), before);
    board.services(at(1_250), between);
    assert_eq!(
        texts(&board),
        ["backend2 is down in nat v4: connection refused"]
    );
    board.services(at(1_500), answered("active", "down"));
    assert_eq!(
        texts(&board),
        ["backend2 is down in nat v4, nat v6: connection refused"]
    );
    board.services(at(4_000), answered("active", "up"));
    assert_eq!(texts(&board)[0], "backend2 is up in nat v4, nat v6");
    assert!(!board.view(at(5_000)).events[0].bad && board.view(at(5_000)).events[1].bad);
}

#[test]
fn the_same_change_later_is_another_event() {
    let mut board = board();
    board.services(at(0), answered("active", "up"));
    for (time, condition) in [(1_000, "down"), (2_000, "up"), (3_500, "down")] {
        board.services(at(time), answered("active", condition));
    }
    assert_eq!(texts(&board).len(), 3);
}

#[test]
fn the_agents_silence_and_return_are_told_once() {
    let mut board = board();
    for time in 0..3 {
        board.silent(at(time));
    }
    assert!(!board.view(at(3)).agent);
    board.services(at(4), answered("active", "up"));
    assert!(board.view(at(5)).agent);
    assert_eq!(texts(&board).len(), 2);
}

#[test]
fn a_server_drains_if_any_service_says_so() {
    let mut board = board();
    board.services(at(1), answered("draining", "up"));
    assert_eq!([1, 2, 3].map(|n| board.drains(n)), [false, true, false]);
    assert!(!board.drains(0) && !board.drains(9));
}

#[test]
fn a_service_lacks_what_never_answered_or_failed() {
    let mut board = board();
    let names = ["backend1", "backend2", "backend3"];
    for index in 0..offers().len() {
        for name in names {
            assert!(board.lacking().is_some());
            board.attempt(at(1), &answer(index, name));
        }
    }
    assert_eq!(board.lacking(), None);
    board.attempt(at(2), &failure(3));
    assert_eq!(
        board.lacking().as_deref(),
        Some("1 requests to ipip 6in6 [fd00::2]:80 failed")
    );
}
