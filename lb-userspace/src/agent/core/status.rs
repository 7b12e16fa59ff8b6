//! What the agent tells of itself.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{
    tables::{Counters, FlowCounters, service_flag},
    verdict::{Answer, DropReason, FIRST_ANSWER, FIRST_PIECE, Piece},
};

use super::Core;
use crate::{
    dataplane::{Dataplane, DataplaneError},
    health::Target,
    model::{Admin, Backend, Service, ServiceId},
    plan::{Placed, PlacedMember, census::ServiceCensus},
    snapshot::{
        AddressPoolStatus, BackendStatus, Condition, FlowStatus, ServiceStatus, Snapshot, TableUse,
        Traffic,
    },
};

/// What has been told of the backends of each pool.
type Pools = HashMap<ServiceId, Arc<[BackendStatus]>>;

impl<D: Dataplane> Core<D> {
    /// The agent at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let mut pools = Pools::new();
        let services = self.state.services();
        let services = services.map(|service| self.status_among(service, &mut pools));
        self.snapshot_with(services.collect())
    }

    /// The same, which takes the longer the more services there are: takes in news meanwhile.
    pub(in crate::agent) fn snapshot_meanwhile(&mut self) -> Snapshot {
        let (state, mut pools) = (Arc::clone(&self.state), Pools::new());
        let mut services = Vec::new();
        for service in state.services() {
            services.push(self.status_among(service, &mut pools));
            self.hear_meanwhile();
        }
        self.snapshot_with(services)
    }

    fn snapshot_with(&self, services: Vec<ServiceStatus>) -> Snapshot {
        let counts = self.dataplane.drops().unwrap_or_else(|error| {
            tracing::error!(%error, "no drop counters");
            Vec::new()
        });
        let count = |number: u32| counts.get(number as usize).copied().unwrap_or(0);
        let reasons = DropReason::ALL.iter();
        let drops = reasons.map(|&reason| (reason.name(), count(reason as u32)));
        let answers = Answer::ALL.iter();
        let answers = answers.map(|&kind| (kind.name(), count(FIRST_ANSWER + kind as u32)));
        let fragments = Piece::ALL.iter();
        let fragments = fragments.map(|&piece| (piece.name(), count(FIRST_PIECE + piece as u32)));
        Snapshot {
            instance: self.instance.clone(),
            generation: self.layout.generation,
            interfaces: self.interfaces.clone(),
            services,
            established: TableUse {
                entries: self.census.established,
                capacity: self.dataplane.capacity().flows,
            },
            half_open: TableUse {
                entries: self.census.half_open,
                capacity: self.dataplane.capacity().half_open,
            },
            sessions: TableUse {
                entries: self.census.sessions,
                capacity: self.dataplane.capacity().sessions,
            },
            address_pools: self.address_pools(),
            announced: self.announced_status(),
            devices: if self.lacks() == 0 {
                self.devices.status(self.announcing.ports())
            } else {
                Vec::new()
            },
            events: self.chronicle.events(),
            drops: drops.collect(),
            answers: answers.collect(),
            fragments: fragments.collect(),
            unknown_port: self.unknown_port,
        }
    }

    fn address_pools(&self) -> Vec<AddressPoolStatus> {
        let pools = self.state.address_pools().map(|pool| {
            let used = pool.addresses().iter().map(|&address| {
                let ports = self.census.ports.get(&address.into());
                ports.copied().unwrap_or(0)
            });
            AddressPoolStatus {
                name: pool.name().to_owned(),
                addresses: pool.addresses().len(),
                ports: pool.ports(),
                sessions: used.sum(),
            }
        });
        pools.collect()
    }

    /// A service at this moment. Backends are told once for each pool: a thousand services may share a thousand.
    fn status_among(&self, service: &Service, pools: &mut Pools) -> ServiceStatus {
        let backends = pools.entry(self.state.lead(service.id));
        let backends = backends.or_insert_with(|| self.backend_statuses(service));
        self.service_status(service, Arc::clone(backends))
    }

    /// One service at this moment, where it is there.
    pub fn service(&self, id: ServiceId) -> Option<ServiceStatus> {
        let service = self.state.service(id)?;
        Some(self.service_status(service, self.backend_statuses(service)))
    }

    /// The backends of a service's pool, and after them those that leave it.
    fn backend_statuses(&self, service: &Service) -> Arc<[BackendStatus]> {
        let placed = self.layout.placed(service.id);
        let wanted: HashSet<SocketAddr> = service.backends.iter().map(|b| b.address).collect();
        let members: Vec<_> = placed.into_iter().flat_map(Placed::members).collect();
        let left = members
            .iter()
            .filter(|(_, m)| !wanted.contains(&m.address()));
        let left = left.map(|&at| {
            let backend = Backend {
                weight: 0,
                admin: Admin::Draining,
                ..Backend::at(at.1.address())
            };
            self.backend_status(service, placed.zip(Some(at)), backend, true)
        });
        let by_address: HashMap<SocketAddr, (u16, &PlacedMember)> =
            members.iter().map(|&at| (at.1.address(), at)).collect();
        let backends = service.backends.iter().map(|backend| {
            let at = by_address.get(&backend.address).copied();
            self.backend_status(service, placed.zip(at), backend.clone(), false)
        });
        backends.chain(left).collect()
    }

    fn service_status(&self, service: &Service, backends: Arc<[BackendStatus]>) -> ServiceStatus {
        let placed = self.layout.placed(service.id);
        let index = placed.and_then(|placed| placed.services.get(&service.id).copied());
        let counters = index.map(|index| self.dataplane.service_counters(index));
        ServiceStatus {
            service: service.clone(),
            ring_size: placed.map_or(0, |placed| placed.ring.size()),
            flows: placed
                .zip(index)
                .map_or_else(FlowStatus::default, |(placed, index)| {
                    self.flow_status(placed, index)
                }),
            lead: self.state.lead(service.id),
            tiers: self.tier_status(service),
            panic: self.known.panics.status(self.state.lead(service.id)),
            adaptive: self.adaptive_pool_status(self.state.lead(service.id)),
            traffic: traffic(counters),
            backends,
        }
    }

    /// A backend, and which member of which pool it is, where it is one.
    fn backend_status(
        &self,
        service: &Service,
        placed: Option<(&Placed, (u16, &PlacedMember))>,
        backend: Backend,
        leaving: bool,
    ) -> BackendStatus {
        let (address, lead) = (backend.address, self.state.lead(service.id));
        let member = placed.map(|(_, (_, member))| member);
        let counters = member.map(|m| self.dataplane.backend_counters(m.backend.counters));
        let checked = self.known.checked.get(&Target {
            service: lead,
            address,
        });
        let counted =
            placed.filter(|(placed, _)| placed.descriptor.flags & service_flag::COUNTED != 0);
        let load = counted.map(|(_, (_, member))| self.dataplane.load(member.backend.counters));
        BackendStatus {
            condition: if leaving {
                Condition::Up
            } else {
                self.condition(service, address)
            },
            standing: if leaving {
                None
            } else {
                self.standing((lead, address))
            },
            last_error: self
                .unusable(service, address)
                .or_else(|| checked.and_then(|checked| checked.error.clone())),
            latency: checked.and_then(|checked| checked.latency),
            checks: checked.map_or_else(Vec::new, |checked| checked.checks.clone()),
            asked: self
                .known
                .asked
                .get(&(lead, address))
                .copied()
                .unwrap_or_default(),
            damping: self.damping_status((lead, address)),
            passive: self.passive_status((lead, address)),
            slow_start: self.slow_start_status(service, (lead, address)),
            adaptive: self.adaptive_status((lead, address)),
            effective_weight: self.parts(service, address).of(backend.weight),
            reachable: member.is_some_and(|member| member.backend.interface != 0),
            mtu: member
                .filter(|member| member.backend.interface != 0)
                .map(|member| member.backend.mtu),
            leaving,
            slots: placed.map_or(0, |(placed, (id, _))| placed.ring.share(id)),
            recorded: placed.map_or(0, |(placed, (id, _))| self.census.records_of(placed, id)),
            used_in_panic: !leaving && self.known.panics.uses((lead, address)),
            drain: placed.and_then(|(placed, at)| self.drain_status(placed, at)),
            connections: load.and_then(Result::ok),
            rates: self.rates((lead, address)),
            traffic: traffic(counters),
            backend,
        }
    }

    fn flow_status(&self, placed: &Placed, index: u32) -> FlowStatus {
        let counted = self.dataplane.flow_counters(index).unwrap_or_else(|error| {
            tracing::error!(%error, "no flow counters");
            FlowCounters::default()
        });
        let phases = placed.ring.phases;
        // While the whole service moves, the phases of its slots wait.
        let whole = placed.descriptor.flags & service_flag::MOVING != 0;
        let none = ServiceCensus::default();
        let census = self.census.services.get(&index).unwrap_or(&none);
        FlowStatus {
            steady: if whole { 0 } else { phases.steady },
            moving: if whole {
                placed.ring.size()
            } else {
                phases.moving
            },
            settling: if whole { 0 } else { phases.settling },
            passed: placed.passed,
            established: census.established,
            half_open: census.half_open,
            uses: census.uses,
            lookups: counted.lookups,
            recorded: counted.recorded,
            overflows: counted.overflows,
            promotion_overflows: counted.promotion_overflows,
            named: counted.named,
            clients: self.census.clients(placed),
            client_overflows: counted.client_overflows,
            denied: counted.denied,
            source_limited: counted.source_limited,
            service_limited: counted.service_limited,
            sessions: census.sessions,
            ports_exhausted: counted.ports_exhausted,
            untold: counted.untold,
            cookies_sent: counted.cookies_sent,
            cookies_valid: counted.cookies_valid,
            cookies_invalid: counted.cookies_invalid,
        }
    }
}

fn traffic(counters: Option<Result<Counters, DataplaneError>>) -> Traffic {
    let Counters {
        packets,
        bytes,
        flows,
    } = match counters {
        Some(Ok(counters)) => counters,
        Some(Err(error)) => {
            tracing::error!(%error, "no counters");
            Counters::default()
        }
        None => Counters::default(),
    };
    Traffic {
        packets,
        bytes,
        flows,
    }
}
