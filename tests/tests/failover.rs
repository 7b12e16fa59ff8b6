//! A backend is killed and revived under load: 1,000 new connections a second and 1,000 connections
//! that are kept alive, each with a request twice a second.
//!
//! `LB_TEST_SECONDS` says for how long; 12 seconds where it is not set, which is three rounds.

use std::{env, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    config::Health,
    load::{
        Attempt, Phase, Report,
        held::{Held, HeldReport},
        open_loop::OpenLoop,
    },
    skip::with_root,
    stage::{BACKENDS, Stage, vip, web},
    topology::{Topology, backend_name},
    wait::wait_until,
};
use tokio::time::Instant;

/// New connections a second.
const RATE: u32 = 1_000;
/// Connections kept alive.
const HELD: usize = 1_000;
/// From one request on each of them to its next.
const PERIOD: Duration = Duration::from_millis(500);
/// Killed in every round.
const VICTIM: u8 = 2;

/// Before each kill.
const STEADY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(5);
const DETECTION_SLACK: Duration = Duration::from_millis(100);

/// Probes are given their whole interval, so that a busy machine kills nobody.
const CHECK: Health = Health {
    timeout_ms: Health::HTTP.interval_ms,
    ..Health::HTTP
};

/// When things happened to the victim.
#[derive(Debug, Clone, Copy)]
struct Round {
    killed: Instant,
    /// The agent said so: shortly after it had taken effect.
    seen_down: Instant,
}

impl Round {
    /// New connections may meet the victim until then.
    fn detected_by(&self) -> Instant {
        self.killed + Duration::from_millis(CHECK.detection_ms().into()) + DETECTION_SLACK
    }

    /// Whether the victim's death explains that `attempt` failed.
    fn explains(&self, attempt: &Attempt) -> bool {
        attempt.ended >= self.killed && attempt.started <= self.detected_by()
    }
}

#[test]
fn after_detection_no_connection_meets_the_killed_backend_and_no_other_backends_breaks()
-> Result<()> {
    with_root(
        "after_detection_no_connection_meets_the_killed_backend_and_no_other_backends_breaks",
        || {
            let until = Instant::now() + duration()?;
            let service = web(CHECK);
            let mut stage = Stage::new(Topology::exclusive(BACKENDS)?, vec![service.clone()])?;
            wait_until("all backends are up", SOON, || {
                (1..=BACKENDS).all(|n| is(&stage, n, "up"))
            })?;
            let load = OpenLoop::start(&stage.topology.client, vip(&service)?, RATE)?;
            let mut rounds = Vec::new();
            while rounds.is_empty() || Instant::now() < until {
                let held = Held::open(&stage.topology.client, vip(&service)?, HELD, PERIOD)?;
                rounds.push(kill_and_revive(&mut stage)?);
                let (round, held) = (rounds.len(), held.stop()?);
                println!("round {round}: {held}");
                assert_only_the_victims_break(&held);
            }
            let answers = stage.answers(&service, 300)?;
            assert_eq!(
                answers.len(),
                3,
                "the revived backend has its share: {answers:?}"
            );
            let report = load.stop()?;
            println!("{report}, slowest {:?}", report.slowest());
            assert_failures_end_with_detection(&report, &rounds)
        },
    )
}

/// How long to go on, from the environment.
fn duration() -> Result<Duration> {
    const VARIABLE: &str = "LB_TEST_SECONDS";
    let seconds = match env::var(VARIABLE) {
        Ok(seconds) => seconds
            .parse()
            .with_context(|| format!("{VARIABLE}={seconds} is not a number of seconds"))?,
        Err(_) => 12,
    };
    Ok(Duration::from_secs(seconds))
}

fn is(stage: &Stage, backend: u8, condition: &str) -> bool {
    let list = stage.agent.lbctl_json(&["backend", "list"]);
    list.is_ok_and(|list| list[usize::from(backend) - 1]["condition"] == condition)
}

fn kill_and_revive(stage: &mut Stage) -> Result<Round> {
    let victim = usize::from(VICTIM) - 1;
    thread::sleep(STEADY);
    let killed = Instant::now();
    stage.servers[victim].kill();
    wait_until("the victim is found dead", SOON, || {
        is(stage, VICTIM, "down")
    })?;
    let seen_down = Instant::now();
    // Every kept connection has two requests meanwhile, so that none that broke goes unnoticed.
    thread::sleep(2 * PERIOD);
    stage.servers[victim].restart()?;
    wait_until("the victim is back", SOON, || is(stage, VICTIM, "up"))?;
    thread::sleep(2 * PERIOD);
    Ok(Round { killed, seen_down })
}

fn assert_only_the_victims_break(held: &HeldReport) {
    let victim = backend_name(VICTIM);
    let (all, broken) = (held.per_backend(), held.broken_per_backend());
    assert_eq!(
        all.get(&victim),
        broken.get(&victim),
        "all of a killed server's break"
    );
    let elsewhere = held.broken_elsewhere(&victim);
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

fn assert_failures_end_with_detection(report: &Report, rounds: &[Round]) -> Result<()> {
    for (attempt, failure) in report.failures() {
        if rounds.iter().any(|round| round.explains(attempt)) {
            continue;
        }
        let since = rounds[0].killed;
        bail!(
            "{failure}, begun {:?} before or {:?} after the first kill",
            since.saturating_duration_since(attempt.started),
            attempt.started.saturating_duration_since(since)
        );
    }
    for (number, round) in (1..).zip(rounds) {
        let met = misdirected(report, round);
        let last = met.iter().max().copied().unwrap_or_default();
        println!(
            "round {number}: {} SYNs met the dead backend, the last {last:?} after the kill; the \
             agent said so after {:?}",
            met.len(),
            round.seen_down - round.killed
        );
        // Else the load was not there to tell.
        ensure!(!met.is_empty(), "no connection met the dead backend");
    }
    Ok(())
}

/// When SYNs went to the dead victim of `round`, from its kill on.
fn misdirected(report: &Report, round: &Round) -> Vec<Duration> {
    let refused = report
        .failures()
        .filter(|(attempt, failure)| failure.phase == Phase::Connect && round.explains(attempt));
    refused
        .map(|(attempt, _)| attempt.started.saturating_duration_since(round.killed))
        .collect()
}
