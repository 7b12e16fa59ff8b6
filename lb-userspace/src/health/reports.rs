//! Owns who reports by itself, and passes beats on to the tasks of those backends. They do not go through the agent's loop,
//! which may be busy for longer than a backend may be silent.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::Notify;

use super::{Target, heartbeat::Whose};
use crate::model::ServiceId;

/// Tells the tasks of backends of their beats. Cheap to clone; all clones know of the same ones.
#[derive(Debug, Clone, Default)]
pub struct Reports(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Who reports, and whom to tell.
    reporting: HashMap<Target, Arc<Notify>>,
    /// The same by where they are.
    at: HashMap<IpAddr, Vec<Target>>,
    /// The service that a service's backends are checked under, where that is another.
    leads: HashMap<ServiceId, ServiceId>,
}

impl Known {
    fn lead(&self, service: ServiceId) -> ServiceId {
        self.leads.get(&service).copied().unwrap_or(service)
    }

    fn beat(&self, target: &Target) -> bool {
        let told = self.reporting.get(target);
        told.is_some_and(|beats| {
            beats.notify_one();
            true
        })
    }
}

impl Reports {
    /// These report from now on; `leads` are the services whose backends are checked under another one, and which that is.
    pub(super) fn set(
        &self,
        reporting: HashMap<Target, Arc<Notify>>,
        leads: HashMap<ServiceId, ServiceId>,
    ) {
        let mut at: HashMap<IpAddr, Vec<Target>> = HashMap::new();
        for target in reporting.keys() {
            at.entry(target.address.ip()).or_default().push(*target);
        }
        let known = Known {
            reporting,
            at,
            leads,
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Takes note of a beat of `target`, which may be named by any service of its group; whether it is one that reports.
    pub fn beat(&self, target: &Target) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let service = known.lead(target.service);
        known.beat(&Target { service, ..*target })
    }

    /// Takes note of a beat that came from `sender`; how many targets it is about.
    pub fn beat_from(&self, sender: IpAddr, whose: Whose) -> usize {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let service = whose.service.map(|service| known.lead(service));
        let there = known.at.get(&sender).map_or(&[][..], Vec::as_slice);
        let meant = there.iter().filter(|target| {
            whose
                .backend
                .is_none_or(|backend| backend == target.address)
                && service.is_none_or(|service| service == target.service)
        });
        meant.filter(|target| known.beat(target)).count()
    }
}
