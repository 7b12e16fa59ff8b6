//! How soon heartbeats tell that a backend has died, and how often that it has although it lives: simulated networks before
//! the detectors themselves. The table that it prints is that of docs/detection.md.
//!
//! `LB_TEST_DAYS` says how many days of beats are simulated for each figure; a fifth of one where it is not set.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    env,
    f64::consts::TAU,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use lb_userspace::{
    health::heartbeat::{Beats, Silence},
    model::{Check, Detector, Probe},
};
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(1);
const DAY: f64 = 86_400.0;
/// Every so many beats are followed by what would happen if the backend died then.
const DEATHS: u32 = 50;

/// How beats travel.
#[derive(Debug, Clone, Copy)]
struct Network {
    name: &'static str,
    /// Standard deviation of what the way takes beside the least, and of what the sender is late by; seconds.
    jitter: f64,
    /// How many beats are lost.
    loss: f64,
    /// How many beats begin a pause of the sender, which they last as much as a second longer for.
    pauses: f64,
}

const NETWORKS: [Network; 5] = [
    Network {
        name: "steady",
        jitter: 0.001,
        loss: 0.0,
        pauses: 0.0,
    },
    Network {
        name: "jittery",
        jitter: 0.2,
        loss: 0.0,
        pauses: 0.0,
    },
    Network {
        name: "pauses",
        jitter: 0.01,
        loss: 0.0,
        pauses: 0.001,
    },
    Network {
        name: "1% lost",
        jitter: 0.01,
        loss: 0.01,
        pauses: 0.0,
    },
    Network {
        name: "5% lost",
        jitter: 0.01,
        loss: 0.05,
        pauses: 0.0,
    },
];

/// What tells, and after how many silences.
#[derive(Debug, Clone)]
struct Rule {
    name: String,
    check: Check,
    fall: u32,
}

fn rules() -> Vec<Rule> {
    let beat = || Check::new(Probe::Heartbeat {});
    let fixed = [1, 2, 3, 5].map(|fall| Rule {
        name: format!("{fall} missing"),
        check: beat(),
        fall,
    });
    let phi = [3, 5, 8, 12, 16].map(|threshold| Rule {
        name: format!("φ {threshold}"),
        check: Check {
            detector: Detector::Phi,
            phi_threshold: Some(threshold),
            ..beat()
        },
        fall: 1,
    });
    fixed.into_iter().chain(phi).collect()
}

/// What a rule comes to in a network.
#[derive(Debug, Clone)]
struct Figures {
    /// From death to its being told.
    median: Duration,
    p99: Duration,
    /// Deaths told a day of a backend that lives.
    false_a_day: f64,
}

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [median, p99] = [self.median, self.p99].map(|time| time.as_secs_f64());
        write!(f, "{median:.2}, {p99:.2}; {:.1}", self.false_a_day)
    }
}

/// A normally distributed number.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (TAU * random.f64()).cos()
}

/// Beats as they arrive, in seconds after the first was sent, in their order; nothing of those that are lost.
fn arrival(network: &Network, number: u32, random: &mut fastrand::Rng) -> Option<f64> {
    let late = normal(random).abs() * network.jitter;
    let pause = match random.f64() < network.pauses {
        true => random.f64(),
        false => 0.0,
    };
    (random.f64() >= network.loss).then(|| f64::from(number) + late + pause)
}

fn figures(network: &Network, rule: &Rule, beats: u32) -> Figures {
    let mut random = fastrand::Rng::with_seed(1);
    let start = Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut detector = Beats::new(&rule.check, start);
    let (mut last, mut deaths, mut alarms) = (0.0, Vec::new(), 0_u32);
    for number in 1..=beats {
        let arrived = arrival(network, number, &mut random);
        if let Some(seconds) = arrived.map(|seconds| seconds.max(last)) {
            last = seconds;
            alarms += u32::from(dies(&mut detector, rule.fall, Some(at(seconds))).is_some());
            detector.beat(at(seconds));
        }
        if number.is_multiple_of(DEATHS) {
            // After this beat was sent, and before the next would have been.
            let died = at(f64::from(number) + random.f64());
            let told = dies(&mut detector.clone(), rule.fall, None).unwrap();
            deaths.push(told.max(died) - died);
        }
    }
    deaths.sort_unstable();
    Figures {
        median: deaths[deaths.len() / 2],
        p99: deaths[deaths.len() * 99 / 100],
        false_a_day: f64::from(alarms) * DAY / (f64::from(beats) * INTERVAL.as_secs_f64()),
    }
}

/// When the backend is told to be dead, if no beat comes until then.
fn dies(detector: &mut Beats, fall: u32, until: Option<Instant>) -> Option<Instant> {
    let mut told = None;
    for _ in 1..=fall {
        let due = detector.due();
        if until.is_some_and(|until| until <= due) {
            return None;
        }
        assert_eq!(detector.silence(due), Silence::Missed);
        told = Some(due);
    }
    told
}

fn days() -> f64 {
    let days = env::var("LB_TEST_DAYS").ok();
    days.map_or(0.2, |days| days.parse().unwrap())
}

#[test]
fn figures_of_detectors_by_count_and_by_phi() {
    let beats = (days() * DAY / INTERVAL.as_secs_f64()) as u32;
    let names = NETWORKS.map(|network| network.name).join(" | ");
    println!("| detector | {names} |");
    println!("|{}", "---|".repeat(NETWORKS.len() + 1));
    let mut before: Option<(Detector, [Figures; NETWORKS.len()])> = None;
    for rule in rules() {
        let all = NETWORKS.map(|network| figures(&network, &rule, beats));
        println!(
            "| {} | {} |",
            rule.name,
            all.each_ref().map(Figures::to_string).join(" | ")
        );
        if let Some((detector, before)) = before
            && detector == rule.check.detector
        {
            for (stricter, laxer) in before.iter().zip(&all) {
                assert!(stricter.median <= laxer.median, "{stricter} {laxer}");
                assert!(
                    stricter.false_a_day >= laxer.false_a_day,
                    "{stricter} {laxer}"
                );
            }
        }
        before = Some((rule.check.detector, all));
    }
}

#[test]
fn phi_finds_the_dead_of_a_steady_network_sooner_than_three_beats_and_accuses_nobody_who_lives() {
    let rules = rules();
    let of = |name: &str| {
        let rule = rules.iter().find(|rule| rule.name == name).unwrap();
        figures(&NETWORKS[0], rule, 20_000)
    };
    let (phi, three) = (of("φ 8"), of("3 missing"));
    assert!(phi.median * 2 < three.median, "{phi:?} {three:?}");
    assert_eq!((phi.false_a_day, three.false_a_day), (0.0, 0.0));
}
