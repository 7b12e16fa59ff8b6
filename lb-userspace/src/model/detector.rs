//! How checks tell what is late: names, bounds and what makes them valid. What is late now is decided by
//! [`crate::health`].

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{
    Check, Probe,
    check_health::{Checked, wrong},
};
use crate::health::accrual::least_lateness;

/// How a check tells what is late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Detector {
    /// By fixed times, so often in a row.
    #[default]
    Count,
    /// By how long it has taken of late: [`crate::health::accrual`].
    Phi,
}

impl Detector {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn is_count(&self) -> bool {
        *self == Self::Count
    }
}

/// What the detector by φ goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Phi {
    /// The φ from which something is late.
    pub threshold: u32,
    /// Times that count, the last ones.
    pub window: u32,
    /// What times are taken to vary by at least.
    pub min_std_dev: Duration,
}

impl Phi {
    /// What is gone by where nothing else is said. Beats come by a timer of the backend's and may be a little late; how long
    /// a probe takes differs by less, and is cut off by its timeout.
    fn default_of(probe: &Probe) -> Self {
        let min_std_dev = match probe {
            Probe::Heartbeat {} => 100,
            _ => 5,
        };
        Self {
            threshold: 8,
            window: 200,
            min_std_dev: Duration::from_millis(min_std_dev),
        }
    }
}

impl Check {
    /// What it goes by where that is φ.
    pub fn phi(&self) -> Option<Phi> {
        let default = Phi::default_of(&self.probe);
        (self.detector == Detector::Phi).then(|| Phi {
            threshold: self.phi_threshold.unwrap_or(default.threshold),
            window: self.phi_window.unwrap_or(default.window),
            min_std_dev: self.phi_min_std_dev.unwrap_or(default.min_std_dev),
        })
    }

    pub(super) fn check_detector(&self) -> Checked {
        let given = [
            ("phi_threshold", self.phi_threshold.is_some()),
            ("phi_window", self.phi_window.is_some()),
            ("phi_min_std_dev", self.phi_min_std_dev.is_some()),
        ];
        let Some(phi) = self.phi() else {
            return match given.into_iter().find(|(_, given)| *given) {
                Some((field, _)) => wrong(field, "is for detector = \"phi\" only"),
                None => Ok(()),
            };
        };
        if self.probe != (Probe::Heartbeat {}) && !self.probe.tells_latency() {
            let problem = format!(
                "\"phi\" is for checks that say how long something takes, which type \"{}\" does not: leave it out",
                self.probe.kind()
            );
            return wrong("detector", problem);
        }
        for (field, value, least, most) in [
            ("phi_threshold", phi.threshold, 1, 100),
            ("phi_window", phi.window, 10, 1_000),
        ] {
            if !(least..=most).contains(&value) {
                let problem = format!("{value} is out of range: {least} to {most}");
                return wrong(field, problem);
            }
        }
        let deviations = Duration::from_millis(1)..=Duration::from_secs(3_600);
        if !deviations.contains(&phi.min_std_dev) {
            let problem = format!("{:?} is out of range: 1 ms to 1 hour", phi.min_std_dev);
            return wrong("phi_min_std_dev", problem);
        }
        let least = least_lateness(&phi);
        if self.probe != (Probe::Heartbeat {}) && least >= self.timeout {
            let problem = format!(
                "{:?} has an answer be late once it takes {} ms more than usual, by when it has failed, the timeout being {:?}: set this lower, or phi_threshold",
                phi.min_std_dev,
                least.as_millis(),
                self.timeout
            );
            return wrong("phi_min_std_dev", problem);
        }
        Ok(())
    }
}
