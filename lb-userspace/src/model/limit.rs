//! How many flows may begin, of a service and of each source. Names and bounds alone.

use std::{fmt, str::FromStr};

use lb_common::rate::{MOST, Rate};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ModelError, Protocol, Service, check::invalid};

/// A burst holds at least what comes in this part of a second: the kernel's coarse clock may stand still for half
/// of that, and a smaller bucket would run over meanwhile.
const LEAST_BURST: u32 = 50;
/// And at most what comes in so many seconds.
const LONGEST_BURST: u64 = 3_600;

/// First bits of an address that make a source, unless said otherwise.
pub const SOURCE_PREFIX_V4: u8 = 32;
/// The same of IPv6: what a site's host has at least (RFC 6177).
pub const SOURCE_PREFIX_V6: u8 = 64;

/// How many flows may begin in a second: written `RATE` or `RATE,burst=N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FlowLimit {
    /// Any number.
    #[default]
    None,
    /// So many.
    To {
        /// In a second, 1 to 1,000,000,000.
        rate: u32,
        /// At once, after a pause.
        burst: u32,
    },
}

impl FlowLimit {
    /// So many a second, and a burst of as many unless said otherwise.
    ///
    /// # Errors
    /// Either is out of bounds; with the bounds.
    pub fn to(rate: u64, burst: Option<u64>) -> Result<Self, String> {
        let burst = burst.unwrap_or(rate);
        if !(1..=u64::from(MOST)).contains(&rate) {
            return Err(format!(
                "{rate} is out of range: 1 to {MOST} flows a second"
            ));
        }
        let least = rate.div_ceil(LEAST_BURST.into());
        let most = rate.saturating_mul(LONGEST_BURST).min(u32::MAX.into());
        if !(least..=most).contains(&burst) {
            return Err(format!(
                "a burst of {burst} is out of range for {rate} flows a second: {least} to {most}"
            ));
        }
        Ok(Self::To {
            rate: rate as u32,
            burst: burst as u32,
        })
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// As the program has it.
    pub fn number(self) -> Rate {
        match self {
            Self::None => Rate::default(),
            Self::To { rate, burst } => Rate::new(rate, burst),
        }
    }
}

impl fmt::Display for FlowLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::To { rate, burst } if rate == burst => rate.fmt(f),
            Self::To { rate, burst } => write!(f, "{rate},burst={burst}"),
        }
    }
}

impl FromStr for FlowLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (rate, burst) = match text.split_once(',') {
            Some((rate, burst)) => (rate, Some(burst.strip_prefix("burst="))),
            None => (text, None),
        };
        let burst = burst.map(|burst| burst.and_then(|burst| burst.parse().ok()));
        match (rate.parse(), burst) {
            (Ok(rate), None) => Self::to(rate, None),
            (Ok(rate), Some(Some(burst))) => Self::to(rate, Some(burst)),
            _ => Err(format!(
                "`{}` is not a limit of flows: write \"none\", flows a second such as 1000, or \"1000,burst=2000\"",
                text.escape_debug()
            )),
        }
    }
}

impl Serialize for FlowLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::To { rate, burst } if rate == burst => serializer.serialize_u32(*rate),
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for FlowLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected \"none\", flows a second, or \"RATE,burst=N\""
        )]
        enum Written {
            Rate(u64),
            Text(String),
        }
        let limit = match Written::deserialize(deserializer)? {
            Written::Rate(rate) => Self::to(rate, None),
            Written::Text(text) => text.parse(),
        };
        limit.map_err(serde::de::Error::custom)
    }
}

/// Whether prefixes are within bounds, and whether it can be told which packets begin a flow.
pub(super) fn check_limits(service: &Service) -> Result<(), ModelError> {
    let id = service.id;
    for (field, bits, most) in [
        ("source_prefix_v4", service.source_prefix_v4, 32),
        ("source_prefix_v6", service.source_prefix_v6, 128),
    ] {
        if bits.is_some_and(|bits| bits == 0 || bits > most) {
            let bits = bits.unwrap_or_default();
            return invalid(id, field, format!("{bits} is out of range: 1 to {most}"));
        }
    }
    let limits = [
        ("flow_limit", service.flow_limit),
        ("source_limit", service.source_limit),
    ];
    let limited = limits.into_iter().find(|(_, limit)| !limit.is_none());
    let Some((field, _)) = limited else {
        return Ok(());
    };
    if id.protocol == Protocol::Udp && service.quic.is_none() && !service.records_every_flow() {
        let problem = "a datagram begins a flow where none is recorded, and this service does not record every flow: set flow_state \"always\", or leave the limit out";
        return invalid(id, field, problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_were_written() {
        for (text, limit) in [
            ("none", FlowLimit::None),
            (
                "1000",
                FlowLimit::To {
                    rate: 1_000,
                    burst: 1_000,
                },
            ),
            (
                "1000,burst=50",
                FlowLimit::To {
                    rate: 1_000,
                    burst: 50,
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(limit));
            assert_eq!(limit.to_string(), text);
            let json = serde_json::to_string(&limit).unwrap();
            assert_eq!(serde_json::from_str::<FlowLimit>(&json).unwrap(), limit);
        }
        assert_eq!(
            "1000,burst=1000".parse::<FlowLimit>().unwrap().to_string(),
            "1000"
        );
    }

    #[test]
    fn bad_limits_say_what_would_be_right() {
        for (text, hint) in [
            ("0", "1 to 1000000000 flows a second"),
            ("many", "flows a second such as 1000"),
            ("10,20", "burst=2000"),
            ("10,burst=", "burst=2000"),
            ("1000,burst=19", "20 to 3600000"),
            ("10,burst=36001", "1 to 36000"),
        ] {
            let error = text.parse::<FlowLimit>().unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
