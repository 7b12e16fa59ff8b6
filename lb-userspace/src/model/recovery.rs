//! How backends that were away come back, how long those are kept out that fail too often, and when those are used that are down. Names and bounds alone; what a
//! backend gets now is decided elsewhere.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ModelError, Service, check::invalid, name_of};
use crate::duration;

/// Percent of its weight that a backend begins with, unless said otherwise. As Envoy's `min_weight_percent`.
pub const SLOW_START_FROM: u8 = 10;

/// How a backend that begins to take new flows gets its weight: a part at first, and all of it once the time is
/// over, in a straight line between (HAProxy's `slowstart`, nginx's `slow_start`, Envoy's slow start window).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlowStart {
    /// How long until it has all; zero: from the start.
    pub window: Duration,
    /// Percent of its weight that it begins with, 1 to 100.
    pub from: u8,
}

impl SlowStart {
    /// Whether all of the weight is there from the start.
    pub fn is_off(&self) -> bool {
        self.window.is_zero()
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self {
            window: Duration::ZERO,
            from: SLOW_START_FROM,
        }
    }
}

impl fmt::Display for SlowStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let window = humantime::format_duration(self.window);
        write!(f, "{window} from {}%", self.from)
    }
}

impl FromStr for SlowStart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || -> Option<Self> {
            let (window, from) = match text.split_once(" from ") {
                Some((window, from)) => (window, from.strip_suffix('%')?.parse().ok()?),
                None => (text, SLOW_START_FROM),
            };
            let window = duration::parse(window).ok()?;
            (1..=100).contains(&from).then_some(Self { window, from })
        };
        match text {
            "off" => Ok(Self::default()),
            // Its part does not matter.
            _ => read().map(|read| if read.is_off() { Self::default() } else { read }).ok_or_else(|| {
                let shown = text.escape_debug();
                format!("`{shown}` is no slow start: \"off\", a time such as \"30s\", or a time and the percent of the weight at its beginning, from 1% to 100%, as \"30s from 20%\"")
            }),
        }
    }
}

impl Serialize for SlowStart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlowStart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The longest that a backend is kept out, unless said otherwise.
pub const DAMPED_AT_MOST: Duration = Duration::from_secs(5 * 60);

/// How long a backend that goes down again and again is kept out once its checks pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlapDamping {
    /// From its second failure on, and twice as long with each that follows; zero: not at all.
    pub hold: Duration,
    /// The longest; a failure is forgotten for each such time of being well.
    pub most: Duration,
}

impl FlapDamping {
    /// Whether nobody is kept out.
    pub fn is_off(&self) -> bool {
        self.hold.is_zero()
    }
}

impl Default for FlapDamping {
    fn default() -> Self {
        Self {
            hold: Duration::ZERO,
            most: DAMPED_AT_MOST,
        }
    }
}

impl fmt::Display for FlapDamping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let [hold, most] = [self.hold, self.most].map(humantime::format_duration);
        write!(f, "{hold} to {most}")
    }
}

impl FromStr for FlapDamping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || -> Option<Self> {
            let (hold, most) = match text.split_once(" to ") {
                Some((hold, most)) => (hold, Some(duration::parse(most).ok()?)),
                None => (text, None),
            };
            let hold = duration::parse(hold).ok()?;
            let most = most.unwrap_or(DAMPED_AT_MOST.max(hold));
            Some(Self { hold, most })
        };
        match text {
            "off" => Ok(Self::default()),
            // The longest does not matter.
            _ => read().map(|read| if read.is_off() { Self::default() } else { read }).ok_or_else(|| {
                let shown = text.escape_debug();
                format!("`{shown}` is no flap damping: \"off\", a time such as \"10s\", or that and the longest, as \"10s to 2m\"")
            }),
        }
    }
}

impl Serialize for FlapDamping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FlapDamping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The shortest time that a backend can be kept out for.
const LEAST_HOLD: Duration = Duration::from_secs(1);

pub(super) fn check_damping(service: &Service) -> Result<(), ModelError> {
    let FlapDamping { hold, most } = service.flap_damping;
    let [shown, longest] = [hold, most].map(humantime::format_duration);
    let problem = if service.flap_damping.is_off() {
        return Ok(());
    } else if hold < LEAST_HOLD {
        format!("{shown} is too short: 1s or more, or \"off\"")
    } else if most < hold {
        format!("{longest} is shorter than {shown}: the longest time comes last")
    } else {
        return Ok(());
    };
    invalid(service.id, "flap_damping", problem)
}

/// Whether there are weights that a backend could get by and by.
pub(super) fn check_slow_start(service: &Service) -> Result<(), ModelError> {
    if service.slow_start.is_off() || !service.scheduler.ignores_weights() {
        return Ok(());
    }
    let problem = format!(
        "goes by weights, which scheduler \"{}\" leaves aside: use the weighted one of that name, or leave slow_start out",
        name_of(service.scheduler)
    );
    invalid(service.id, "slow_start", problem)
}

pub(super) fn check_panic(service: &Service) -> Result<(), ModelError> {
    match service.panic_below {
        0..=100 => Ok(()),
        percent => {
            let problem = format!("{percent} is too large: 0 to 100 percent");
            invalid(service.id, "panic_below", problem)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flap_dampings_are_read_as_they_are_written() {
        let damping = |hold, most| FlapDamping {
            hold: Duration::from_secs(hold),
            most: Duration::from_secs(most),
        };
        for (text, read, written) in [
            ("off", FlapDamping::default(), "off"),
            ("0s to 1m", FlapDamping::default(), "off"),
            ("10s", damping(10, 300), "10s to 5m"),
            ("10m", damping(600, 600), "10m to 10m"),
            ("10s to 2m", damping(10, 120), "10s to 2m"),
        ] {
            assert_eq!(text.parse(), Ok(read), "{text}");
            assert_eq!(read.to_string(), written);
            assert_eq!(written.parse(), Ok(read));
        }
        for text in ["", "long", "10s to", "10s to ever", "10s 2m"] {
            let refused = text.parse::<FlapDamping>();
            assert!(
                refused.is_err_and(|refused| refused.contains("\"10s to 2m\"")) || text == "10s 2m"
            );
        }
    }

    #[test]
    fn slow_starts_are_read_as_they_are_written() {
        let over = |seconds, from| SlowStart {
            window: Duration::from_secs(seconds),
            from,
        };
        for (text, slow, written) in [
            ("off", SlowStart::default(), "off"),
            ("0s from 7%", SlowStart::default(), "off"),
            ("30s", over(30, 10), "30s from 10%"),
            ("1m from 25%", over(60, 25), "1m from 25%"),
            ("1m 30s from 100%", over(90, 100), "1m 30s from 100%"),
        ] {
            assert_eq!(text.parse(), Ok(slow), "{text}");
            assert_eq!(slow.to_string(), written);
            assert_eq!(written.parse(), Ok(slow));
        }
        for text in [
            "",
            "soon",
            "30s from 0%",
            "30s from 101%",
            "30s from 20",
            "from 20%",
        ] {
            let refused = text.parse::<SlowStart>().unwrap_err();
            assert!(refused.contains("\"30s from 20%\""), "{refused}");
        }
    }
}
