use super::*;

const FIRST: Identity = Identity {
    backend: 1,
    life: 1,
};
const REVIVED: Identity = Identity {
    backend: 1,
    life: 2,
};
const OTHER: Identity = Identity {
    backend: 2,
    life: 1,
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A connection to `backend` that stood from second 1 and broke at second `when`.
fn broken(backend: Identity, when: u64) -> Break {
    Break {
        at: at(when),
        born: at(1),
        service: 0,
        port: 10_000,
        backend: Some(backend),
        phase: Phase::Exchange,
        how: How::Reset,
        quiet: at(1),
        after: None,
    }
}

/// One that was never greeted.
fn ungreeted(born: u64, when: u64) -> Break {
    Break {
        born: at(born),
        backend: None,
        phase: Phase::Greeting,
        ..broken(FIRST, when)
    }
}

/// Books with `count` open connections.
fn books(count: usize) -> Account {
    let mut account = Account::new(Some(at(5)));
    (0..count).for_each(|_| account.opened());
    account
}

#[test]
fn a_connection_whose_backend_was_killed_breaks_with_it() {
    let mut account = books(1);
    account.kills(FIRST, at(5));
    assert_eq!(account.broke(broken(FIRST, 5)), Verdict::WithBackend);
    let totals = account.totals();
    assert_eq!((totals.broken, totals.with_backend), (0, 1));
    assert!(account.kept().is_empty());
}

#[test]
fn a_connection_that_breaks_before_the_kill_is_broken() {
    let mut account = books(1);
    account.kills(FIRST, at(6));
    assert_eq!(account.broke(broken(FIRST, 5)), Verdict::Broken);
    let totals = account.totals();
    assert_eq!((totals.broken, totals.with_backend), (1, 0));
}

#[test]
fn a_connection_of_another_backend_is_broken_by_a_kill() {
    let mut account = books(1);
    account.kills(FIRST, at(5));
    assert_eq!(account.broke(broken(OTHER, 6)), Verdict::Broken);
}

#[test]
fn a_revived_backend_is_not_excused_by_the_death_of_its_former_life() {
    let mut account = books(2);
    account.kills(FIRST, at(5));
    assert_eq!(account.broke(broken(REVIVED, 9)), Verdict::Broken);
    assert_eq!(account.broke(broken(FIRST, 9)), Verdict::WithBackend);
}

#[test]
fn an_ungreeted_connection_is_excused_by_a_kill_in_its_time_only() {
    let mut account = books(0);
    account.kills(FIRST, at(5));
    assert_eq!(account.broke(ungreeted(6, 7)), Verdict::WithBackend);
    account.gone(FIRST, at(6));
    assert_eq!(account.broke(ungreeted(4, 6)), Verdict::WithBackend);
    assert_eq!(account.broke(ungreeted(6, 7)), Verdict::WithBackend);
    assert_eq!(account.broke(ungreeted(7, 8)), Verdict::Broken);
    assert_eq!(account.broke(ungreeted(3, 4)), Verdict::Broken);
    assert_eq!(account.totals().open, 0);
}

#[test]
fn nothing_is_promised_to_a_connection_that_was_idle_for_the_moving_time() {
    let quiet = |seconds| Break {
        quiet: at(seconds),
        ..broken(FIRST, 20)
    };
    let mut account = books(3);
    assert_eq!(account.broke(quiet(5)), Verdict::Idle);
    assert_eq!(account.broke(quiet(4)), Verdict::Broken);
    assert_eq!((account.totals().broken, account.totals().idle), (1, 1));
    let mut unlimited = Account::new(None);
    unlimited.opened();
    assert_eq!(unlimited.broke(quiet(50)), Verdict::Broken);
}

#[test]
fn latencies_beyond_the_histograms_first_size_are_told_apart() {
    let mut account = books(1);
    (1..=100).for_each(|n| account.echoed(Duration::from_millis(n)));
    let median = account.latencies().value_at_quantile(0.5);
    assert!((49_000..51_100).contains(&median), "{median}");
}

#[test]
fn a_break_is_put_down_to_the_last_change_before_it() {
    let mut account = books(3);
    account.broke(broken(FIRST, 1));
    account.changes(Kind::Add, at(2));
    account.changes(Kind::Weight, at(4));
    account.broke(broken(FIRST, 3));
    account.broke(broken(FIRST, 9));
    let expected = [("add", 1), ("start", 1), ("weight", 1)];
    assert_eq!(account.totals().broken_after, BTreeMap::from(expected));
    let after: Vec<_> = account.kept().iter().map(|broken| broken.after).collect();
    assert_eq!(after, [None, Some(Kind::Add), Some(Kind::Weight)]);
}

#[test]
fn an_answer_is_due_within_the_limit() {
    let account = books(1);
    assert_eq!(account.deadline(Some(FIRST), at(3), at(4)), at(3) + LIMIT);
}

#[test]
fn a_stopped_backend_owes_its_answer_only_after_it_went_on() {
    let mut account = books(1);
    account.stalls(FIRST, at(4));
    assert_eq!(account.deadline(Some(FIRST), at(3), at(90)), at(90) + LIMIT);
    assert_eq!(account.deadline(Some(OTHER), at(3), at(90)), at(3) + LIMIT);
    account.goes_on(FIRST, at(6));
    assert_eq!(account.deadline(Some(FIRST), at(3), at(90)), at(6) + LIMIT);
    assert_eq!(account.deadline(Some(FIRST), at(7), at(90)), at(7) + LIMIT);
}

#[test]
fn a_greeting_may_wait_for_any_stopped_backend() {
    let mut account = books(0);
    account.stalls(FIRST, at(4));
    account.goes_on(FIRST, at(6));
    assert_eq!(account.deadline(None, at(3), at(7)), at(6) + LIMIT);
}

#[test]
fn open_connections_are_those_greeted_and_neither_closed_nor_broken() {
    let mut account = books(5);
    account.closed();
    account.broke(broken(FIRST, 5));
    account.not_opened("refused");
    account.opened();
    let totals = account.totals();
    assert_eq!((totals.open, totals.most_open, totals.opened), (4, 5, 6));
    assert_eq!(totals.not_opened, BTreeMap::from([("refused".into(), 1)]));
}

#[test]
fn only_the_first_breaks_are_kept_but_all_are_counted() {
    let mut account = books(100);
    (0..100).for_each(|_| {
        account.broke(broken(FIRST, 2));
    });
    assert_eq!(account.totals().broken, 100);
    assert_eq!(account.kept().len(), KEPT);
}
