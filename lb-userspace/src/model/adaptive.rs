//! Weights that follow how backends fare: what they go by, and bounds. Names and bounds alone; what a weight is now is
//! decided elsewhere.

use std::{fmt, ops::RangeInclusive, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Mode, ModelError, Probe, Protocol, Service, check::invalid, millis, name_of};

/// What a backend's weight can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// How long its probes take.
    Latency,
    /// How long the handshakes of its clients take.
    Handshake,
    /// Its flows in progress.
    Flows,
    /// The share of its weight that its agent asks for.
    Agent,
}

/// Some of the signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Signal>", into = "Vec<Signal>")]
pub struct Signals {
    /// [`Signal::Latency`].
    pub latency: bool,
    /// [`Signal::Handshake`].
    pub handshake: bool,
    /// [`Signal::Flows`].
    pub flows: bool,
    /// [`Signal::Agent`].
    pub agent: bool,
}

impl FromIterator<Signal> for Signals {
    fn from_iter<I: IntoIterator<Item = Signal>>(signals: I) -> Self {
        let mut all = Self::default();
        for signal in signals {
            match signal {
                Signal::Latency => all.latency = true,
                Signal::Handshake => all.handshake = true,
                Signal::Flows => all.flows = true,
                Signal::Agent => all.agent = true,
            }
        }
        all
    }
}

impl From<Vec<Signal>> for Signals {
    fn from(signals: Vec<Signal>) -> Self {
        signals.into_iter().collect()
    }
}

impl From<Signals> for Vec<Signal> {
    fn from(signals: Signals) -> Self {
        let each = [
            (signals.latency, Signal::Latency),
            (signals.handshake, Signal::Handshake),
            (signals.flows, Signal::Flows),
            (signals.agent, Signal::Agent),
        ];
        let there = each.into_iter().filter(|(there, _)| *there);
        there.map(|(_, signal)| signal).collect()
    }
}

impl fmt::Display for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = Vec::from(*self).into_iter().map(name_of).collect();
        f.write_str(&names.join(", "))
    }
}

/// How the weights of a pool's backends follow how these fare, each within bounds of the configured one. In requests, what
/// is absent has its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    /// By what.
    pub from: Signals,
    /// Percent of its configured weight that a backend has at least.
    #[serde(default = "default_least")]
    pub least: u16,
    /// The same at most.
    #[serde(default = "default_most")]
    pub most: u16,
    /// Percent by which a weight has to be away from what it should be before it follows.
    #[serde(default = "default_dead_band")]
    pub dead_band: u8,
    /// Percent of the ring's slots that may be other than steady after a change.
    #[serde(default = "default_unsteady")]
    pub unsteady: u8,
    /// From one look to the next, in milliseconds; what is measured is smoothed over three times as long.
    #[serde(rename = "interval_ms", with = "millis", default = "default_interval")]
    pub interval: Duration,
    /// Added to every latency before they are compared, in milliseconds, so that what is far below makes no difference.
    #[serde(
        rename = "latency_floor_ms",
        with = "millis",
        default = "default_latency_floor"
    )]
    pub latency_floor: Duration,
}

fn default_least() -> u16 {
    20
}

fn default_most() -> u16 {
    200
}

fn default_dead_band() -> u8 {
    25
}

fn default_unsteady() -> u8 {
    5
}

fn default_interval() -> Duration {
    Duration::from_secs(10)
}

fn default_latency_floor() -> Duration {
    Duration::from_millis(1)
}

/// From one look to the next.
const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);
/// More would make any latency equal.
const HIGHEST_FLOOR: Duration = Duration::from_secs(10);

impl Adaptive {
    /// By these signals, with everything else at its default.
    pub fn by(signals: impl IntoIterator<Item = Signal>) -> Self {
        Self {
            from: signals.into_iter().collect(),
            least: default_least(),
            most: default_most(),
            dead_band: default_dead_band(),
            unsteady: default_unsteady(),
            interval: default_interval(),
            latency_floor: default_latency_floor(),
        }
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        let out = |value: u16, least: u16, most: u16, what: &str| {
            format!("{value} is out of range: {least} to {most} percent{what}")
        };
        let Self {
            from,
            least,
            most,
            dead_band,
            unsteady,
            interval,
            latency_floor,
        } = *self;
        let percent = 1..=100;
        Some(if from == Signals::default() {
            let problem = "is empty: name what weights follow, as in [\"latency\"]";
            ("adaptive.from", problem.to_owned())
        } else if !percent.contains(&least) {
            ("adaptive.least", out(least, 1, 100, " of the weight"))
        } else if !(100..=1_000).contains(&most) {
            ("adaptive.most", out(most, 100, 1_000, " of the weight"))
        } else if !percent.contains(&dead_band.into()) {
            ("adaptive.dead_band", out(dead_band.into(), 1, 100, ""))
        } else if u32::from(most) * 100 <= u32::from(least) * (100 + u32::from(dead_band)) {
            let problem = format!(
                "{dead_band}% is as wide as from {least}% to {most}% of a weight, so that none would ever move: give a lower one, or other bounds"
            );
            ("adaptive.dead_band", problem)
        } else if !percent.contains(&unsteady.into()) {
            let slots = out(unsteady.into(), 1, 100, " of the slots");
            ("adaptive.unsteady", slots)
        } else if !INTERVALS.contains(&interval) {
            let interval = humantime::format_duration(interval);
            let problem = format!("{interval} is out of range: 1s to 1h");
            ("adaptive.interval", problem)
        } else if latency_floor > HIGHEST_FLOOR {
            let floor = humantime::format_duration(latency_floor);
            let problem = format!("{floor} is out of range: 0s to 10s");
            ("adaptive.latency_floor", problem)
        } else {
            return None;
        })
    }
}

impl fmt::Display for Adaptive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interval = humantime::format_duration(self.interval);
        write!(
            f,
            "by {}, {}% to {}% of each weight, every {interval}, at most {}% of slots unsteady",
            self.from, self.least, self.most, self.unsteady
        )
    }
}

impl Probe {
    /// Whether how long it takes says something of how loaded its server is.
    pub fn tells_latency(&self) -> bool {
        match self {
            Self::Tcp {} | Self::Http(_) | Self::Https(_) | Self::Udp(_) | Self::Dns(_) => true,
            Self::Icmp {} | Self::Vip {} | Self::Grpc(_) => true,
            Self::None {} | Self::Exec(_) | Self::Heartbeat {} | Self::Agent(_) => false,
        }
    }
}

/// Whether there are weights to follow anything, and what they are to follow is known.
pub(super) fn check_adaptive(service: &Service) -> Result<(), ModelError> {
    let Some(adaptive) = &service.adaptive else {
        return Ok(());
    };
    if let Some((field, problem)) = adaptive.problem() {
        return invalid(service.id, field, problem);
    }
    if service.scheduler.ignores_weights() {
        let problem = format!(
            "changes weights, which scheduler \"{}\" leaves aside: use the weighted one of that name, or leave adaptive out",
            name_of(service.scheduler)
        );
        return invalid(service.id, "adaptive", problem);
    }
    let mut probes = service.health.checks.iter().map(|check| &check.probe);
    if adaptive.from.latency && !probes.clone().any(Probe::tells_latency) {
        let problem = "\"latency\" is that of probes, and no check has any: add a check of type \"http\" or another that asks the server, or leave it out";
        return invalid(service.id, "adaptive.from", problem);
    }
    if adaptive.from.handshake {
        let refuse = |problem| invalid(service.id, "adaptive.from", problem);
        if service.id.protocol != Protocol::Tcp {
            return refuse(
                "\"handshake\" is that of TCP, and UDP has none: use \"latency\", or leave it out",
            );
        }
        if service.mode == Mode::FullNat {
            return refuse(
                "\"handshake\" is not measured in mode \"full-nat\" yet: use \"latency\", or another mode",
            );
        }
    }
    if adaptive.from.agent && !probes.any(|probe| matches!(probe, Probe::Agent(_))) {
        let problem = "\"agent\" is what a backend's agent asks for, and no check is of type \"agent\": add one, or leave it out";
        return invalid(service.id, "adaptive.from", problem);
    }
    if adaptive.from.flows && !service.backends.is_empty() && !service.counts_flows() {
        let problem = "\"flows\" are counted where a backend has max_connections, or the scheduler goes by connections: give backends max_connections, or leave it out";
        return invalid(service.id, "adaptive.from", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_followed_where_there_are_any_that_are_measured() {
        let refused = |id: &str, mode| {
            let service = Service {
                adaptive: Some(Adaptive::by([Signal::Handshake])),
                ..Service::new(id.parse().unwrap(), mode)
            };
            let error = check_adaptive(&service).err();
            error.map(|error| error.to_string()).unwrap_or_default()
        };
        let udp = refused("10.0.0.1:53/udp", Mode::Nat);
        assert!(udp.contains("UDP has none: use \"latency\""), "{udp}");
        let full_nat = refused("10.0.0.1:80/tcp", Mode::FullNat);
        assert!(full_nat.contains("or another mode"), "{full_nat}");
        for mode in [Mode::Nat, Mode::L2, Mode::Ipip, Mode::Gue] {
            assert_eq!(refused("10.0.0.1:80/tcp", mode), "", "{mode:?}");
        }
    }
}
