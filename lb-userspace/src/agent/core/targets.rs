//! What is to be checked, and under which service that is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    Core,
    forced::{Key, of_pool},
};
use crate::{
    agent::adaptive::smoothed_over,
    dataplane::Dataplane,
    health::{By, Hop, Target, TargetConfig, Way},
    model::{Admin, Backend, Check, Mode, ModelError, Probe, Service, ServiceId, State},
    plan,
    snapshot::Condition,
};

impl<D: Dataplane> Core<D> {
    /// What is to be checked.
    pub fn targets(&self) -> BTreeMap<Target, TargetConfig> {
        let mut targets = BTreeMap::new();
        for pool in self.state.pools() {
            let Some(&service) = pool.first() else {
                continue;
            };
            let health = Arc::new(service.health.clone());
            let follows = service.adaptive.filter(|adaptive| adaptive.from.latency);
            let also = pool.iter().map(|service| service.id);
            let also: Arc<[ServiceId]> = also.filter(|&id| id != service.id).collect();
            let checked = |backend: &&Backend| backend.admin != Admin::Maintenance;
            for backend in service.backends.iter().filter(checked) {
                let target = Target {
                    service: service.id,
                    address: backend.address,
                };
                let initial = self.condition(service, backend.address);
                let asked = self
                    .known
                    .asked
                    .get(&(service.id, backend.address))
                    .copied();
                targets.insert(
                    target,
                    TargetConfig {
                        health: Arc::clone(&health),
                        alone: is_alone(&pool, backend),
                        way: self.way(&pool, service, backend.address),
                        smooth: follows.map(|adaptive| smoothed_over(&adaptive)),
                        initial,
                        asked: asked.unwrap_or_default(),
                        also: Arc::clone(&also),
                    },
                );
            }
        }
        targets
    }

    /// How probes of a backend that go as traffic does leave this host.
    fn way(&self, pool: &[&Service], service: &Service, address: SocketAddr) -> Way {
        let backend = address.ip();
        let by = match service.mode {
            Mode::Ipip => By::Ipip,
            Mode::Gue => By::Gue {
                port: self.tunnel.gue_port,
                second_hop: service.second_hop,
            },
            Mode::L2 => By::Mac,
            Mode::Nat | Mode::FullNat => By::Address,
        };
        let next = plan::next_hop(&self.next_hops, service.mode, backend);
        let needs = pool.iter().any(|service| service.probes_by_hop(backend));
        let hop = next.filter(|_| needs);
        let hop = hop.map(|next| Hop {
            interface: next.interface,
            mac: next.destination_mac,
        });
        Way {
            by,
            hop,
            lost: needs && next.is_none() && self.has_last_way(service, address),
        }
    }

    /// Whether what is checked, and how, changes with next hops.
    pub fn probes_by_hops(&self) -> bool {
        let by_hop = |service: &Service| {
            let mut backends = service.backends.iter();
            backends.any(|backend| service.probes_by_hop(backend.address.ip()))
        };
        self.state.services().any(by_hop)
    }

    /// What is checked where `target` reports by itself.
    ///
    /// # Errors
    /// What is missing, and what would be right.
    pub fn expects_beat(&self, target: Target) -> Result<Target, ModelError> {
        let Target {
            service: id,
            address,
        } = target;
        let service = self.state.service(id);
        let service = service.ok_or(ModelError::UnknownService { id })?;
        if service.backend(address).is_none() {
            return Err(ModelError::UnknownBackend { id, address });
        }
        if !service.health.expects_beats() {
            let problem = "none is of type \"heartbeat\", so that nothing comes of one".to_owned();
            let field = "checks";
            return Err(ModelError::Invalid { id, field, problem });
        }
        Ok(Target {
            service: self.state.lead(id),
            address,
        })
    }

    pub(super) fn condition(&self, service: &Service, address: SocketAddr) -> Condition {
        let lead = self.state.lead(service.id);
        let checked = self.known.checked.get(&Target {
            service: lead,
            address,
        });
        let down = self.known.down.get(&(lead, address));
        match checked {
            Some(checked) => checked.condition,
            None if down.is_some_and(|down| !down.new) => Condition::Down,
            None if service.health.is_none() => Condition::Up,
            None => Condition::Starting,
        }
    }

    /// What is known of a pool's backends is known under its first service; that may be another now, one
    /// of which nothing is known by itself.
    pub(super) fn follow_leads(&mut self, before: &State) {
        let leads: BTreeSet<(ServiceId, ServiceId)> = before
            .services()
            .filter(|service| self.state.service(service.id).is_some())
            .map(|service| (before.lead(service.id), self.state.lead(service.id)))
            .filter(|&(_, now)| before.service(now).is_none() || before.lead(now) != now)
            .collect();
        self.known.follow(&leads);
    }
}

/// Whether what refuses a check at a backend's own port refuses all of its flows: all arrive there, by one protocol. A
/// check at VIPs asks no more than one service of each.
fn is_alone(pool: &[&Service], backend: &Backend) -> bool {
    let Some((first, others)) = pool.split_first() else {
        return false;
    };
    let at_vip = |check: &Check| matches!(check.probe, Probe::Vip {});
    let one_question = others.is_empty() || !first.health.checks.iter().any(at_vip);
    let mut services = pool.iter();
    one_question
        && services.all(|service| {
            service.id.protocol == first.id.protocol
                && service.arrives_at(backend.address) == backend.address
        })
}

/// What is known under former leads is known under those of now too, given as `(before, now)`; none of the
/// latter was one before.
pub(super) fn inherit<K: Ord + Copy, V: Clone>(
    known: &mut BTreeMap<K, V>,
    leads: &BTreeSet<(ServiceId, ServiceId)>,
    lead_of: impl Fn(K) -> ServiceId,
    under: impl Fn(K, ServiceId) -> K,
) {
    for &(before, now) in leads {
        let of_lead = known.iter().filter(|&(&key, _)| lead_of(key) == before);
        let heirs: Vec<(K, V)> = of_lead
            .map(|(&key, value)| (under(key, now), value.clone()))
            .collect();
        known.extend(heirs);
    }
}

/// The same of backends of whom it is only known that they are among these.
pub(super) fn inherit_keys(known: &mut BTreeSet<Key>, leads: &BTreeSet<(ServiceId, ServiceId)>) {
    for &(before, now) in leads {
        let of_lead = known.range(of_pool(before));
        let heirs: Vec<Key> = of_lead.map(|&(_, address)| (now, address)).collect();
        known.extend(heirs);
    }
}
