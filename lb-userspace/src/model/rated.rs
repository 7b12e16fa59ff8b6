//! What a backend is said to carry beside flows in progress: new flows and bits a second. Nobody turns anything away for
//! these; load is measured against them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bits a second, written as `800Mbit/s` or `1.5G`, with decimal prefixes, and as a number in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BitRate(pub u64);

/// Prefixes, and the power of ten that each is.
const PREFIXES: [(char, u32); 4] = [('T', 12), ('G', 9), ('M', 6), ('k', 3)];
/// What may stand for bits a second, the longest first.
const UNITS: [&str; 3] = ["bit/s", "bps", "bit"];

impl FromStr for BitRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no bandwidth: write bits a second with or without a prefix, such as \"800Mbit/s\" or \"1.5G\""
            )
        };
        let number = UNITS.iter().find_map(|unit| text.strip_suffix(unit));
        let number = number.unwrap_or(text).trim_end();
        let prefix = PREFIXES.iter().find(|(prefix, _)| {
            number.ends_with([
                *prefix,
                prefix.to_ascii_lowercase(),
                prefix.to_ascii_uppercase(),
            ])
        });
        let (number, power) = match prefix {
            Some(&(_, power)) => (number[..number.len() - 1].trim_end(), power),
            None => (number, 0),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // What is left of a bit is none.
        if !are_digits(whole)
            || !are_digits(part)
            || part.trim_end_matches('0').len() > power as usize
        {
            return Err(wrong());
        }
        let digits: String = part
            .chars()
            .chain("000000000000".chars())
            .take(power as usize)
            .collect();
        let rate = format!("{whole}{digits}")
            .parse()
            .ok()
            .filter(|&rate| rate > 0);
        rate.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for BitRate {
    /// With three decimals at most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rate) = *self;
        let prefix = PREFIXES
            .iter()
            .find(|(_, power)| rate >= 10_u64.pow(*power));
        let Some(&(prefix, power)) = prefix else {
            return write!(f, "{rate}bit/s");
        };
        let thousandths = rate / 10_u64.pow(power - 3);
        let (whole, part) = (thousandths / 1_000, thousandths % 1_000);
        let part = format!("{part:03}");
        match part.trim_end_matches('0') {
            "" => write!(f, "{whole}{prefix}bit/s"),
            part => write!(f, "{whole}.{part}{prefix}bit/s"),
        }
    }
}

/// What a backend is said to carry at most. What is absent is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rated {
    /// New flows a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_flow_rate: Option<u32>,
    /// Of what it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<BitRate>,
}

impl Rated {
    /// Whether nothing is said.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// As it is after a change.
    pub fn edited(self, edit: EditRated) -> Self {
        Self {
            max_flow_rate: edit.max_flow_rate.unwrap_or(self.max_flow_rate),
            max_bandwidth: edit.max_bandwidth.unwrap_or(self.max_bandwidth),
        }
    }
}

/// A change of that: what is absent stays, and `Some(None)` takes away what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EditRated {
    /// [`Rated::max_flow_rate`].
    pub max_flow_rate: Option<Option<u32>>,
    /// [`Rated::max_bandwidth`].
    pub max_bandwidth: Option<Option<BitRate>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bandwidths_are_read_with_decimal_prefixes_and_shown_with_the_largest() {
        for (text, rate, shown) in [
            ("1", 1, "1bit/s"),
            ("1500", 1_500, "1.5kbit/s"),
            ("800Mbit/s", 800_000_000, "800Mbit/s"),
            ("1.5G", 1_500_000_000, "1.5Gbit/s"),
            ("10gbit", 10_000_000_000, "10Gbit/s"),
            ("2.5 Gbps", 2_500_000_000, "2.5Gbit/s"),
            ("0.001k", 1, "1bit/s"),
            ("1.2345K", 1_234, "1.234kbit/s"),
            ("1T", 1_000_000_000_000, "1Tbit/s"),
        ] {
            let read: Result<BitRate, String> = text.parse();
            match text {
                // Half of a bit is none.
                "1.2345K" => assert!(read.is_err()),
                _ => assert_eq!(read, Ok(BitRate(rate)), "{text}"),
            }
            assert_eq!(BitRate(rate).to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_bandwidth_is_refused_with_what_would_be_one() {
        for text in [
            "",
            "0",
            "0.0G",
            "G",
            "1.",
            ".5G",
            "-1",
            "1e9",
            "1 000",
            "1GB",
            "1Gib",
            "1.5",
            "99999999T",
            "ⅷ",
        ] {
            let refused = text.parse::<BitRate>().unwrap_err();
            assert!(refused.contains("800Mbit/s"), "{text}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_what_it_was_but_for_what_is_not_shown(rate in 1..u64::MAX / 10) {
            let BitRate(read) = BitRate(rate).to_string().parse().unwrap();
            prop_assert!(read <= rate && rate - read <= rate / 1_000);
        }
    }
}
