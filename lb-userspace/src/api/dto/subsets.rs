//! What the agent answers of subsets of backends.

use serde::{Deserialize, Serialize};

use crate::snapshot;

/// A subset of a service's backends as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Prefixes whose clients are for it; those of no route, which are for the default one, are not counted.
    pub prefixes: usize,
    /// Backends that its clients' new flows go to.
    pub backends: usize,
    /// Those among them that do not fail their checks.
    pub up: usize,
}

impl From<snapshot::SubsetStatus> for Subset {
    fn from(status: snapshot::SubsetStatus) -> Self {
        let snapshot::SubsetStatus {
            name,
            prefixes,
            backends,
            up,
        } = status;
        Self {
            name,
            prefixes,
            backends,
            up,
        }
    }
}
