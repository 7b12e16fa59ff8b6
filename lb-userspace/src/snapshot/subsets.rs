//! What is told of the subsets of a service's backends.

use super::{BackendStatus, Condition, ServiceStatus};

/// A subset of a service's backends as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsetStatus {
    /// Its name.
    pub name: String,
    /// Prefixes whose clients are for it; those of no route, which are for the default one, are not counted.
    pub prefixes: usize,
    /// Backends that its clients' new flows go to.
    pub backends: usize,
    /// Those among them that do not fail their checks.
    pub up: usize,
}

impl ServiceStatus {
    /// Its subsets, the default one first; none where every backend is for every client.
    pub fn subsets(&self) -> Vec<SubsetStatus> {
        let service = &self.service;
        if !service.is_split() {
            return Vec::new();
        }
        let subsets = service.subsets();
        let status = |(number, &name): (usize, &&str)| {
            let its = |backend: &&BackendStatus| {
                !backend.leaving && subsets.serves(&backend.backend, number)
            };
            let all = self.backends.iter().filter(its);
            let is_up = |backend: &&BackendStatus| backend.condition != Condition::Down;
            SubsetStatus {
                name: name.to_owned(),
                prefixes: service.source_routes.iter().filter(|r| r.1 == name).count(),
                backends: all.clone().count(),
                up: all.filter(is_up).count(),
            }
        };
        subsets.names().iter().enumerate().map(status).collect()
    }
}
