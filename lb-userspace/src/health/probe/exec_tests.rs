//! Exec probes with real programs.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    health::probe::testing::{ask, ask_at},
    model::{Check, Probe},
};

const SOON: Duration = Duration::from_secs(10);

fn backend() -> SocketAddr {
    "127.0.0.1:8080".parse().unwrap()
}

/// A check by a shell, for tests to be short: the product starts none.
fn shell(script: &str) -> Check {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Check::new(Probe::Exec(Exec { command }))
}

async fn error_of(script: &str) -> String {
    ask(backend(), &shell(script))
        .await
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn status_0_passes_and_every_other_end_fails_and_is_told() {
    assert!(ask(backend(), &shell("exit 0")).await.is_ok());
    assert_eq!(error_of("exit 3").await, "exit status: 3");
    let killed = error_of("kill -9 $$").await;
    assert!(killed.starts_with("signal: 9"), "{killed}");
}

#[tokio::test]
async fn what_it_writes_is_shown_in_one_line_and_only_so_much_of_it() {
    let error = error_of("printf 'disk is full\\nand hot'; exit 2").await;
    assert_eq!(error, "exit status: 2: disk is full and hot");
    // More than a pipe holds: it must not hang on it.
    let long = error_of("head -c 1000000 /dev/zero | tr '\\0' x; exit 1").await;
    let shown = long.matches('x').count();
    assert!((MAX_OUTPUT..MAX_OUTPUT + 5).contains(&shown), "{long}");
}

#[tokio::test]
async fn service_backend_and_check_are_in_the_environment_and_nothing_else_is() {
    let script = r#"[ "$LBD_SERVICE" = 10.0.0.1:80/tcp ] && [ "$LBD_BACKEND" = 127.0.0.1:8080 ] &&
        [ "$LBD_BACKEND_ADDRESS" = 127.0.0.1 ] && [ "$LBD_BACKEND_PORT" = 8080 ] &&
        [ "$LBD_CHECK" = exec ] && [ "$LBD_TIMEOUT_MS" = 10000 ] && [ -z "$CARGO" ] && [ -z "$HOME" ]"#;
    assert_eq!(ask(backend(), &shell(script)).await.map(drop), Ok(()));
}

#[tokio::test]
async fn no_shell_sees_the_arguments() {
    let command = ["/bin/echo", "$(exit 3); exit 3"]
        .map(str::to_owned)
        .to_vec();
    let check = Check::new(Probe::Exec(Exec { command }));
    assert!(ask(backend(), &check).await.is_ok());
}

#[tokio::test]
async fn a_program_that_is_missing_blames_this_host_and_not_the_backend() {
    let command = vec!["/nowhere/check".to_owned()];
    let check = Check::new(Probe::Exec(Exec { command }));
    let error = ask(backend(), &check).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/check"), "{error}");
    assert!(!error.blames_backend());
}

/// Processes whose environment says that they belong to this test, by their state.
fn states(mark: &str) -> Vec<char> {
    let mut states = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if command.contains(mark)
            && let Some((_, rest)) = stat.rsplit_once(") ")
        {
            states.extend(rest.chars().next());
        }
    }
    states
}

/// Children of this process that nobody has waited for.
fn zombies() -> usize {
    let own = format!(" {} ", std::process::id());
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| Some(stat.rsplit_once(") ")?.1.to_owned()))
        .filter(|rest| rest.starts_with(&format!("Z{own}")))
        .count()
}

async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a bound for the test")]
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_timeout_kills_all_that_the_program_has_started_and_leaves_no_zombie() {
    let mark = format!("86399.{}", std::process::id());
    let script = format!("sleep {mark} & sleep {mark}; exit 0");
    let check = Check {
        timeout: Duration::from_millis(300),
        ..shell(&script)
    };
    let asked = tokio::spawn(async move { ask_at(backend(), &check).await });
    wait_until("both sleep", || {
        states(&format!("sleep\0{mark}")).len() == 2
    })
    .await;
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error, ProbeError::Timeout(Duration::from_millis(300)));
    wait_until("all are gone", || states(&mark).is_empty()).await;
    wait_until("none is a zombie", || zombies() == 0).await;
}

#[tokio::test]
async fn a_check_that_is_dropped_kills_its_program() {
    let mark = format!("86398.{}", std::process::id());
    let check = shell(&format!("sleep {mark} & sleep {mark}"));
    let asked = tokio::spawn(async move { ask(backend(), &check).await });
    wait_until("both sleep", || {
        states(&format!("sleep\0{mark}")).len() == 2
    })
    .await;
    asked.abort();
    wait_until("all are gone", || states(&mark).is_empty()).await;
}

#[tokio::test]
async fn what_it_leaves_behind_does_not_hold_the_verdict_up_and_is_killed() {
    let mark = format!("86397.{}", std::process::id());
    let outcome = ask(backend(), &shell(&format!("sleep {mark} & exit 0"))).await;
    assert_eq!(outcome.map(drop), Ok(()));
    wait_until("it is gone", || states(&mark).is_empty()).await;
}
