//! How long sessions live, and which ports are tried.

use super::*;

const IDLE: Tick = 900 * SECOND;

/// Flags after a packet of an end.
fn noted(flags: u16, end: End, signal: Signal) -> u16 {
    let (clear, set) = change(end, signal);
    flags & !clear | set
}

#[test]
fn a_session_lives_by_what_both_ends_have_said() {
    use record_flag::{BACKEND_FINISHED, BACKEND_RESET, FINISHED, OPENING, RESET};
    for (flags, seconds) in [
        (OPENING, 60),
        (0, 900),
        (FINISHED, 120),
        (BACKEND_FINISHED, 120),
        (FINISHED | BACKEND_FINISHED, 60),
        (RESET, 10),
        (BACKEND_RESET, 10),
        (FINISHED | BACKEND_FINISHED | BACKEND_RESET, 10),
    ] {
        assert_eq!(lifetime(flags, IDLE), seconds * SECOND, "{flags}");
    }
}

#[test]
fn what_both_ends_have_closed_is_held_however_short_flows_may_be_idle() {
    let both = record_flag::FINISHED | record_flag::BACKEND_FINISHED;
    assert_eq!(lifetime(both, SECOND), CLOSED_LIFETIME);
    assert_eq!(lifetime(record_flag::FINISHED, SECOND), SECOND);
}

#[test]
fn each_end_takes_back_its_own_reset_only() {
    let reset = noted(0, End::Backend, Signal::Resets);
    assert_eq!(reset, record_flag::BACKEND_RESET);
    assert_eq!(noted(reset, End::Client, Signal::None), reset);
    assert_eq!(noted(reset, End::Backend, Signal::None), 0);
}

#[test]
fn only_the_client_makes_more_of_an_opening() {
    let opening = record_flag::OPENING;
    assert_eq!(noted(opening, End::Backend, Signal::None), opening);
    assert_eq!(noted(opening, End::Client, Signal::Opens), opening);
    assert_eq!(noted(opening, End::Client, Signal::None), 0);
}

#[test]
fn an_end_that_is_said_stops_the_count() {
    let counted = record_flag::COUNTED;
    for end in [End::Client, End::Backend] {
        for signal in [Signal::Finishes, Signal::Resets] {
            assert_eq!(noted(counted, end, signal) & counted, 0);
        }
    }
}

#[test]
fn places_are_within_the_pool_and_reach_all_of_it() {
    let translation = Translation {
        addresses: 3,
        first_port: 1_000,
        last_port: 1_009,
        ..Translation::default()
    };
    let mut seen = std::collections::BTreeSet::new();
    for hash in 0..100 {
        for attempt in 0..ATTEMPTS {
            let (address, port) = place(&translation, hash << 20, attempt);
            assert!(address < 3 && (1_000..=1_009).contains(&port));
            seen.insert((address, port));
        }
    }
    assert_eq!(seen.len(), 30);
}
