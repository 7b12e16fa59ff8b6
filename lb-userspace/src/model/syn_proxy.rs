//! Whether SYNs are answered for backends. Names and bounds alone.

use std::{fmt, str::FromStr};

use lb_common::{
    rate::{MOST, Rate},
    tables::syn_proxy,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Mode, ModelError, Protocol, Service, check::invalid};

/// Whether the SYNs of a service of mode `full-nat` are answered for its backends, by cookies
/// ([`lb_common::syn_proxy`]): written `off`, `always` or `above=N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SynProxy {
    /// None is.
    #[default]
    Off,
    /// All are.
    Always,
    /// Those that are more than so many a second, 1 to 1,000,000,000.
    Above(u32),
}

impl SynProxy {
    /// Whether none is.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// As the program has it: one of [`syn_proxy`].
    pub fn number(self) -> u8 {
        match self {
            Self::Off => syn_proxy::OFF,
            Self::Always | Self::Above(_) => syn_proxy::ON,
        }
    }

    /// How many flows begin unproxied though others do not, with a burst of what comes in a second; none unless it is set.
    pub fn unproxied(self) -> Rate {
        match self {
            Self::Off | Self::Always => Rate::default(),
            Self::Above(rate) => Rate::new(rate, rate),
        }
    }
}

impl fmt::Display for SynProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Always => f.write_str("always"),
            Self::Above(rate) => write!(f, "above={rate}"),
        }
    }
}

impl FromStr for SynProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let above = |rate: &str| match rate.parse() {
            Ok(rate) if (1..=MOST).contains(&rate) => Ok(Self::Above(rate)),
            _ => Err(format!(
                "`{}` is out of range: 1 to {MOST} new flows a second",
                rate.escape_debug()
            )),
        };
        match (text, text.strip_prefix("above=")) {
            ("off", _) => Ok(Self::Off),
            ("always", _) => Ok(Self::Always),
            (_, Some(rate)) => above(rate),
            _ => Err(format!(
                "`{}` does not say which SYNs are answered here: write \"off\", \"always\", or \"above=1000\" for those beyond 1000 a second",
                text.escape_debug()
            )),
        }
    }
}

impl Serialize for SynProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SynProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether there are SYNs, and sessions that can be translated.
pub(super) fn check_syn_proxy(service: &Service) -> Result<(), ModelError> {
    let id = service.id;
    if service.syn_proxy.is_off() {
        return Ok(());
    }
    if service.mode != Mode::FullNat {
        let problem = "only mode \"full-nat\" sees what backends answer, and can translate it: leave it out, or use that mode";
        return invalid(id, "syn_proxy", problem);
    }
    if id.protocol != Protocol::Tcp {
        let problem = "only TCP has SYNs: leave it out";
        return invalid(id, "syn_proxy", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_it_is_read() {
        for (text, syn_proxy) in [
            ("off", SynProxy::Off),
            ("always", SynProxy::Always),
            ("above=1", SynProxy::Above(1)),
            ("above=1000000000", SynProxy::Above(MOST)),
        ] {
            assert_eq!(text.parse(), Ok(syn_proxy));
            assert_eq!(syn_proxy.to_string(), text);
            let json = serde_json::to_string(&syn_proxy).unwrap();
            assert_eq!(serde_json::from_str::<SynProxy>(&json).unwrap(), syn_proxy);
        }
        for (text, problem) in [
            ("", "write \"off\""),
            ("above", "write \"off\""),
            ("above=", "1 to 1000000000"),
            ("above=0", "1 to 1000000000"),
            ("above=-1", "1 to 1000000000"),
            ("above=1000000001", "1 to 1000000000"),
        ] {
            let error = text.parse::<SynProxy>().unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_above_a_rate_leaves_that_rate_unproxied() {
        assert!(!SynProxy::Always.unproxied().is_set());
        assert_eq!(SynProxy::Above(50).unproxied(), Rate::new(50, 50));
        assert_eq!(SynProxy::Above(50).number(), syn_proxy::ON);
        assert_eq!(SynProxy::Off.number(), syn_proxy::OFF);
    }
}
