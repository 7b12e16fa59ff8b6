//! Tiers of backends: which are for when others are too few, and how what they took is given back.
//! Names and bounds alone; who takes flows is decided elsewhere.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ModelError, Service, ServiceId, check::invalid};
use crate::duration;

/// Highest number of a tier. 0 is the primary one.
pub const MAX_TIER: u8 = 15;

/// Percent of a tier's weight that is healthy below which it gives flows to the next, unless said
/// otherwise: what is left has a good 40% more to do than when all is well.
pub const SPILL_BELOW: u8 = 70;

/// When a tier that could not carry all flows, and can again, gets them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Failback {
    /// At once.
    #[default]
    Automatic,
    /// Once somebody asks for it, or nobody else is left.
    Manual,
    /// Once it could for so long without a break.
    After(Duration),
}

impl fmt::Display for Failback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Automatic => f.write_str("automatic"),
            Self::Manual => f.write_str("manual"),
            Self::After(time) => humantime::format_duration(*time).fmt(f),
        }
    }
}

impl FromStr for Failback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "automatic" => Ok(Self::Automatic),
            "manual" => Ok(Self::Manual),
            _ => {
                let time = duration::parse(text).map_err(|_| {
                    let shown = text.escape_debug();
                    format!("`{shown}` is no way to fail back: \"automatic\", \"manual\", or a time such as \"30s\"")
                })?;
                Ok(match time {
                    Duration::ZERO => Self::Automatic,
                    time => Self::After(time),
                })
            }
        }
    }
}

impl Serialize for Failback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Failback {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Service {
    /// The numbers of its tiers, in order.
    pub fn tiers(&self) -> Vec<u8> {
        let mut tiers: Vec<u8> = self.backends.iter().map(|b| b.tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        tiers
    }

    /// Makes tier `to` the first that gets new flows.
    pub(super) fn fail_over(&mut self, to: u8) -> Result<(), ModelError> {
        let tiers = self.tiers();
        if to != 0 && !tiers.contains(&to) {
            let named: Vec<String> = tiers.iter().map(u8::to_string).collect();
            let problem = match named[..] {
                [] => format!("there is no tier {to}: the service has no backends"),
                _ => format!(
                    "there is no tier {to}: its backends are of {}",
                    named.join(", ")
                ),
            };
            return invalid(self.id, "to", problem);
        }
        self.from_tier = to;
        Ok(())
    }
}

pub(super) fn check_tier(id: ServiceId, tier: u8) -> Result<(), ModelError> {
    match tier {
        0..=MAX_TIER => Ok(()),
        _ => invalid(id, "tier", format!("{tier} is too large: 0 to {MAX_TIER}")),
    }
}

pub(super) fn check_spill(service: &Service) -> Result<(), ModelError> {
    match service.spill_below {
        0..=100 => Ok(()),
        percent => {
            let problem = format!("{percent} is too large: 0 to 100 percent");
            invalid(service.id, "spill_below", problem)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_fail_back_are_read_as_they_are_written() {
        for (text, failback) in [
            ("automatic", Failback::Automatic),
            ("manual", Failback::Manual),
            ("30s", Failback::After(Duration::from_secs(30))),
        ] {
            assert_eq!(text.parse(), Ok(failback));
            assert_eq!(failback.to_string(), text);
        }
        assert_eq!("0s".parse(), Ok(Failback::Automatic));
        let refused = "never".parse::<Failback>().unwrap_err();
        assert!(refused.contains("\"manual\""), "{refused}");
    }
}
