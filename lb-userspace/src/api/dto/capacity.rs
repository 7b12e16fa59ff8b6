//! How loaded pools are.

use serde::{Deserialize, Serialize};

use crate::{capacity, model::ServiceId, snapshot::Snapshot};

/// How loaded a service's pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Flows in progress of the backends that take new ones.
    pub load: u64,
    /// Flows that these may have, where each says how many.
    pub most: Option<u64>,
    /// The former as a share of the latter, in thousandths.
    pub utilisation: Option<u64>,
    /// The most loaded backend for its weight over the mean of its tier, in thousandths.
    pub imbalance: Option<u64>,
    /// How many backends can fail, the largest first, before the others and standbys cannot carry the load; 0 in panic.
    pub headroom: Option<usize>,
}

/// The pools that are worst off, of those for which it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Worst {
    /// The highest utilisation, in thousandths.
    pub utilisation: Option<Of>,
    /// The highest imbalance, in thousandths.
    pub imbalance: Option<Of>,
    /// The least headroom, in backends.
    pub headroom: Option<Of>,
}

/// A figure of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Of {
    /// How much.
    pub value: u64,
    /// Of which, or of the first of its group.
    pub service: ServiceId,
}

impl From<capacity::Capacity> for Capacity {
    fn from(capacity: capacity::Capacity) -> Self {
        let capacity::Capacity {
            load,
            most,
            utilisation,
            imbalance,
            headroom,
        } = capacity;
        Self {
            load,
            most,
            utilisation,
            imbalance,
            headroom,
        }
    }
}

impl From<&Snapshot> for Worst {
    fn from(snapshot: &Snapshot) -> Self {
        let pools = snapshot.services.iter();
        let pools = pools.filter(|status| status.lead == status.service.id);
        let known: Vec<(ServiceId, capacity::Capacity)> = pools
            .filter_map(|status| Some((status.service.id, capacity::of(status)?)))
            .collect();
        let each = |figure: fn(&capacity::Capacity) -> Option<u64>| {
            let of = move |(service, capacity): &(ServiceId, capacity::Capacity)| {
                Some(Of {
                    value: figure(capacity)?,
                    service: *service,
                })
            };
            known.iter().filter_map(of)
        };
        Self {
            utilisation: each(|c| c.utilisation).max(),
            imbalance: each(|c| c.imbalance).max(),
            headroom: each(|c| c.headroom.map(|backends| backends as u64)).min(),
        }
    }
}
