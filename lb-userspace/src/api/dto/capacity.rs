//! How loaded pools are.

use serde::{Deserialize, Serialize};

use crate::{
    capacity::{self, Resource},
    model::ServiceId,
    snapshot::Snapshot,
};

/// How loaded a service's pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The highest utilisation of those below, in thousandths.
    pub utilisation: Option<u64>,
    /// The highest imbalance of those below, in thousandths.
    pub imbalance: Option<u64>,
    /// The least headroom of those below.
    pub headroom: Option<usize>,
    /// Of which of those below there will be too little first.
    pub scarcest: Option<Resource>,
    /// By flows in progress, where they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Use>,
    /// By new flows a second, where they are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_rate: Option<Use>,
    /// By bits a second, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Use>,
}

/// How loaded it is by one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// What the backends that take new flows have in use.
    pub load: u64,
    /// What these can have, where each says how much.
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
        let by = |resource| capacity.uses.get(&resource).copied().map(Into::into);
        Self {
            utilisation: capacity.utilisation(),
            imbalance: capacity.imbalance(),
            headroom: capacity.headroom(),
            scarcest: capacity.scarcest(),
            connections: by(Resource::Connections),
            flow_rate: by(Resource::FlowRate),
            bandwidth: by(Resource::Bandwidth),
        }
    }
}

impl From<capacity::Use> for Use {
    fn from(by: capacity::Use) -> Self {
        let capacity::Use {
            load,
            most,
            utilisation,
            imbalance,
            headroom,
        } = by;
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
            utilisation: each(|c| c.utilisation()).max(),
            imbalance: each(|c| c.imbalance()).max(),
            headroom: each(|c| c.headroom().map(|backends| backends as u64)).min(),
        }
    }
}
