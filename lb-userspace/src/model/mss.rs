//! How a service's maximum segment sizes are lowered. Names and bounds alone.

use std::{fmt, str::FromStr};

use lb_common::mss::{self, LEAST, MOST};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ModelError, Protocol, Service, check::invalid};

/// What the maximum segment size (MSS) that SYNs tell is lowered to, where it is higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MssClamp {
    /// It is left alone.
    #[default]
    Off,
    /// What fits a packet that the way to the backend takes.
    Auto,
    /// So many bytes, [`LEAST`] to [`MOST`].
    To(u16),
}

impl MssClamp {
    /// So many bytes.
    ///
    /// # Errors
    /// They are out of bounds; with the bounds.
    pub fn to(bytes: u64) -> Result<Self, String> {
        match u16::try_from(bytes) {
            Ok(bytes) if (LEAST..=MOST).contains(&bytes) => Ok(Self::To(bytes)),
            _ => Err(format!("{bytes} is out of range: {LEAST} to {MOST} bytes")),
        }
    }

    /// Whether it is left alone.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// As the program has it: bytes, or what stands for the others.
    pub fn number(self) -> u16 {
        match self {
            Self::Off => mss::OFF,
            Self::Auto => mss::AUTO,
            Self::To(bytes) => bytes,
        }
    }
}

impl fmt::Display for MssClamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::To(bytes) => bytes.fmt(f),
        }
    }
}

impl FromStr for MssClamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            _ => match text.parse() {
                Ok(bytes) => Self::to(bytes),
                Err(_) => Err(format!(
                    "`{}` is nothing to lower an MSS to: \"off\", \"auto\", or {LEAST} to {MOST} bytes",
                    text.escape_debug()
                )),
            },
        }
    }
}

impl Serialize for MssClamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::To(bytes) => serializer.serialize_u16(*bytes),
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for MssClamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected \"off\", \"auto\" or a number of bytes"
        )]
        enum Written {
            Bytes(u64),
            Named(String),
        }
        let clamp = match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Self::to(bytes),
            Written::Named(name) => name.parse(),
        };
        clamp.map_err(serde::de::Error::custom)
    }
}

/// Whether a service has SYNs at all, or shares its pool with one that may.
pub(super) fn check_clamp(service: &Service) -> Result<(), ModelError> {
    let alone = service.id.protocol == Protocol::Udp && service.group.is_none();
    if service.mss_clamp != MssClamp::Off && alone {
        let problem = "is about TCP, of which a UDP service has none: leave it out";
        return invalid(service.id, "mss_clamp", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_mss_is_lowered_to_is_read_as_it_is_written() {
        for (text, clamp) in [
            ("off", MssClamp::Off),
            ("auto", MssClamp::Auto),
            ("536", MssClamp::To(536)),
            ("65495", MssClamp::To(65_495)),
        ] {
            assert_eq!(text.parse(), Ok(clamp));
            assert_eq!(clamp.to_string(), text);
            let json = serde_json::to_string(&clamp).unwrap();
            assert_eq!(serde_json::from_str::<MssClamp>(&json).unwrap(), clamp);
        }
        assert_eq!(serde_json::to_string(&MssClamp::To(1_400)).unwrap(), "1400");
        for (text, why) in [
            ("535", "535 is out of range: 536 to 65495 bytes"),
            ("65496", "out of range"),
            (
                "on",
                "`on` is nothing to lower an MSS to: \"off\", \"auto\"",
            ),
            ("-1", "nothing to lower"),
        ] {
            let refused = text.parse::<MssClamp>().unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert!(serde_json::from_str::<MssClamp>("100").is_err());
        let refused = serde_json::from_str::<MssClamp>("true").unwrap_err();
        assert!(refused.to_string().contains("\"auto\""), "{refused}");
    }
}
