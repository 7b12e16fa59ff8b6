//! VIPs that are announced.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{agent, snapshot::AnnouncedStatus};

/// Has VIPs announced once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announce {
    /// Which; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<IpAddr>,
}

/// What is announced, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// Names of the interfaces whose links hear it.
    pub interfaces: BTreeSet<String>,
}

/// A VIP of which neighbours are told that it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedVip {
    /// Which.
    pub vip: IpAddr,
    /// Frames by which others have claimed it, since the agent started.
    pub conflicts: u64,
}

impl From<agent::Announced> for Announced {
    fn from(announced: agent::Announced) -> Self {
        Self {
            vips: announced.vips,
            interfaces: announced.interfaces,
        }
    }
}

impl From<&AnnouncedStatus> for AnnouncedVip {
    fn from(status: &AnnouncedStatus) -> Self {
        Self {
            vip: status.vip,
            conflicts: status.conflicts,
        }
    }
}
