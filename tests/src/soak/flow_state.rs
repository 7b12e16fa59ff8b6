//! Where the balancer remembers flows in a run, and for how long its slots move. Owns what that is
//! called in its configuration.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// How long slots stay moving, and how long a connection may be idle.
pub const MOVING_TIME: Duration = Duration::from_secs(5);

/// Where the balancer remembers flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// Where the ring moved.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere: changes break connections, by which the soak shows that it sees breaks.
    RingOnly,
}

impl FlowState {
    /// Whether it remembers any.
    pub fn remembers(self) -> bool {
        self != Self::RingOnly
    }

    /// Lines of every service.
    pub fn keys(self) -> Vec<(String, String)> {
        let key = |name: &str, value: &str| (name.to_owned(), format!("\"{value}\""));
        let state = match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::RingOnly => return vec![key("moving_time", "0s")],
        };
        vec![
            key("moving_time", &format!("{}s", MOVING_TIME.as_secs())),
            key("flow_state", state),
            key("on_down", "keep"),
        ]
    }
}
