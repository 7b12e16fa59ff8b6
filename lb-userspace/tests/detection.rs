//! How soon heartbeats tell that a backend has died, and how often that it has although it lives; how soon probes tell that
//! one has become slow, and how often that it has although it has not: simulated networks and servers before the detectors
//! themselves. The tables that it prints are those of docs/detection.md.
//!
//! `LB_TEST_DAYS` says how many days of beats and probes are simulated for each figure; a fifth of one where it is not set.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    env,
    f64::consts::TAU,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use lb_userspace::{
    health::{
        accrual::Accrual,
        heartbeat::{Beats, Silence},
    },
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

/// How long a server takes to answer, in seconds.
#[derive(Debug, Clone, Copy)]
struct Server {
    name: &'static str,
    least: f64,
    /// Mean of what comes on top, which is exponentially distributed.
    more: f64,
    /// How many answers take as much as a tenth of a second longer.
    hiccups: f64,
}

const SERVERS: [Server; 4] = [
    Server {
        name: "near",
        least: 0.001,
        more: 0.000_2,
        hiccups: 0.0,
    },
    Server {
        name: "busy",
        least: 0.005,
        more: 0.003,
        hiccups: 0.0,
    },
    Server {
        name: "far",
        least: 0.040,
        more: 0.003,
        hiccups: 0.0,
    },
    Server {
        name: "hiccups",
        least: 0.001,
        more: 0.000_2,
        hiccups: 0.001,
    },
];

/// How many times slower one becomes.
const SLOWER: f64 = 10.0;

impl Server {
    fn answers(&self, slower: f64, random: &mut fastrand::Rng) -> Duration {
        let more = -(1.0 - random.f64()).ln() * self.more;
        let hiccup = match random.f64() < self.hiccups {
            true => random.f64() / 10.0,
            false => 0.0,
        };
        Duration::from_secs_f64((self.least + more) * slower + hiccup)
    }
}

/// What φ of the time that answers take comes to.
#[derive(Debug, Clone)]
struct Slowness {
    /// Of servers that become slow, how many are suspected by the first probe then.
    at_once: f64,
    /// For how many probes, the median.
    suspected: usize,
    /// Suspicions a day of a server that is as ever, probed every second.
    false_a_day: f64,
}

impl Display for Slowness {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let percent = self.at_once * 100.0;
        write!(
            f,
            "{percent:.0}%, {}; {:.1}",
            self.suspected, self.false_a_day
        )
    }
}

fn slowness(server: &Server, check: &Check, probes: u32) -> Slowness {
    let mut random = fastrand::Rng::with_seed(1);
    let mut usual = Accrual::new(check.phi().unwrap());
    let (mut alarms, mut at_once, mut suspected) = (0_u32, 0_u32, Vec::new());
    for number in 1..=probes {
        let took = server.answers(1.0, &mut random);
        alarms += u32::from(usual.judge(took).is_some());
        if number.is_multiple_of(DEATHS * 10) {
            let mut usual = usual.clone();
            let answers = (0..10 * check.phi().unwrap().window)
                .map(|_| usual.judge(server.answers(SLOWER, &mut random)).is_some());
            let suspicious = answers.take_while(|&suspicious| suspicious).count();
            at_once += u32::from(suspicious > 0);
            suspected.push(suspicious);
        }
    }
    suspected.sort_unstable();
    Slowness {
        at_once: f64::from(at_once) / suspected.len() as f64,
        suspected: suspected[suspected.len() / 2],
        false_a_day: f64::from(alarms) * DAY / (f64::from(probes) * INTERVAL.as_secs_f64()),
    }
}

fn probe(threshold: u32, min_std_dev_ms: Option<u64>) -> Check {
    Check {
        detector: Detector::Phi,
        phi_threshold: Some(threshold),
        phi_min_std_dev: min_std_dev_ms.map(Duration::from_millis),
        ..Check::new(Probe::TCP)
    }
}

#[test]
fn figures_of_slow_answers_by_phi() {
    let probes = (days() * DAY / INTERVAL.as_secs_f64()) as u32;
    let names = SERVERS.map(|server| server.name).join(" | ");
    println!("| detector | {names} |");
    println!("|{}", "---|".repeat(SERVERS.len() + 1));
    let rules = [
        (3, None),
        (5, None),
        (8, None),
        (12, None),
        (8, Some(1)),
        (8, Some(20)),
    ];
    for (threshold, least) in rules {
        let all = SERVERS
            .map(|server| slowness(&server, &probe(threshold, least), probes))
            .map(|figures| figures.to_string());
        let least = least.map_or(String::new(), |ms| format!(", at least {ms} ms"));
        println!("| φ {threshold}{least} | {} |", all.join(" | "));
    }
}

#[test]
fn by_default_a_busy_server_that_becomes_ten_times_slower_is_suspected_at_once_and_for_a_while() {
    let slow = slowness(&SERVERS[1], &probe(8, None), 20_000);
    assert!(slow.at_once > 0.9, "{slow:?}");
    assert!(slow.suspected > 10, "{slow:?}");
    assert!(slow.false_a_day < 20.0, "{slow:?}");
}
