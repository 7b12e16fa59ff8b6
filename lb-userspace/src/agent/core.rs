//! The agent without its loop: every piece of news becomes a plan, every plan is carried out, and
//! only then is it what the agent knows. Synchronous; no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    tables::{Counters, state},
    verdict::DropReason,
};

use super::ChangeError;
use crate::{
    config::Tunnel,
    dataplane::{Dataplane, DataplaneError, Operation},
    health::{Event, Target, TargetConfig},
    model::{Change, Probe, Service, ServiceId, State},
    neighbours::{NextHop, Update},
    plan::{self, Inputs, Layout, Placed},
    snapshot::{
        BackendStatus, Condition, FlowFilter, FlowList, FlowStatus, InterfaceStatus, ServiceStatus,
        Snapshot, TableUse, Traffic,
    },
};

/// What the checks have said of a backend last.
#[derive(Debug, Clone)]
struct Checked {
    condition: Condition,
    error: Option<String>,
    latency: Option<Duration>,
}

/// What the agent knows, and the maps that it writes.
#[derive(Debug)]
pub struct Core<D> {
    instance: String,
    interfaces: Vec<InterfaceStatus>,
    tunnel: Tunnel,
    dataplane: D,
    layout: Layout,
    state: State,
    checked: BTreeMap<Target, Checked>,
    down: BTreeSet<(ServiceId, SocketAddr)>,
    next_hops: BTreeMap<IpAddr, NextHop>,
    own_addresses: BTreeSet<IpAddr>,
}

impl<D: Dataplane> Core<D> {
    /// Takes up the maps as they are; backends that were down in them still are.
    ///
    /// # Errors
    /// The maps cannot be read or repaired.
    pub fn new(instance: String, tunnel: Tunnel, dataplane: D) -> Result<Self, DataplaneError> {
        let mut core = Self {
            instance,
            interfaces: Vec::new(),
            tunnel,
            layout: Layout::new(dataplane.capacity()),
            dataplane,
            state: State::default(),
            checked: BTreeMap::new(),
            down: BTreeSet::new(),
            next_hops: BTreeMap::new(),
            own_addresses: BTreeSet::new(),
        };
        core.adopt()?;
        for (&id, placed) in &core.layout.services {
            let dead = placed
                .members()
                .filter(|(_, member)| member.backend.state & state::TAKES == 0);
            core.down
                .extend(dead.map(|(_, member)| (id, member.address())));
        }
        Ok(core)
    }

    fn adopt(&mut self) -> Result<(), DataplaneError> {
        let (layout, repairs) = Layout::adopt(&self.dataplane.read()?, self.dataplane.capacity());
        self.dataplane.execute(&repairs)?;
        self.layout = layout;
        Ok(())
    }

    /// Says where the program is attached.
    pub fn set_interfaces(&mut self, interfaces: Vec<InterfaceStatus>) {
        self.interfaces = interfaces;
    }

    /// What is wanted.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The maps.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// Applies a change, in the kernel too.
    ///
    /// # Errors
    /// Why not; nothing changed then.
    pub fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        let next = self.state.apply(change)?;
        let before = std::mem::replace(&mut self.state, next);
        self.enforce().inspect_err(|_| self.state = before)?;
        let wanted = self.targets();
        self.checked.retain(|target, _| wanted.contains_key(target));
        self.down
            .retain(|&(service, address)| wanted.contains_key(&Target { service, address }));
        Ok(())
    }

    /// Makes the maps what is wanted and known. Does nothing where they are.
    ///
    /// # Errors
    /// The maps have no room, or the kernel refuses; nothing that a packet sees has changed then.
    pub fn enforce(&mut self) -> Result<(), ChangeError> {
        let inputs = Inputs {
            state: &self.state,
            down: &self.down,
            next_hops: &self.next_hops,
            own_addresses: &self.own_addresses,
            tunnel: self.tunnel,
        };
        let plan = plan::plan(&self.layout, &inputs)
            .map_err(|error| ChangeError::NoRoom(error.to_string()))?;
        if let Err(error) = self.dataplane.execute(&plan.operations) {
            // How far it came is in the maps themselves.
            if let Err(worse) = self.adopt() {
                tracing::error!(%worse, "the maps cannot be read back");
            }
            return Err(ChangeError::Kernel(error.to_string()));
        }
        self.layout = plan.layout;
        Ok(())
    }

    /// Takes note of what a check says. A failure takes effect in the maps before this returns, in
    /// one store; true where the rings must follow by [`Core::enforce`].
    pub fn health(&mut self, event: Event) -> bool {
        let Target { service, address } = event.target;
        if self
            .state
            .service(service)
            .is_none_or(|service| service.backend(address).is_none())
        {
            return false;
        }
        let checked = Checked {
            condition: event.condition,
            error: event.error,
            latency: event.latency,
        };
        self.checked.insert(event.target, checked);
        let down = event.condition == Condition::Down;
        let changed = if down {
            self.down.insert((service, address))
        } else {
            self.down.remove(&(service, address))
        };
        if changed && down {
            self.kill(service, address);
        }
        changed
    }

    fn kill(&mut self, service: ServiceId, address: SocketAddr) {
        let Some(placed) = self.layout.services.get_mut(&service) else {
            return;
        };
        let found = placed
            .members
            .iter_mut()
            .flatten()
            .find(|member| member.address() == address);
        let Some(member) = found else { return };
        match self.dataplane.execute(&[Operation::State(member.entry, 0)]) {
            Ok(()) => member.backend.state = 0,
            Err(error) => {
                tracing::error!(%error, %service, %address, "cannot mark a backend as down")
            }
        }
    }

    /// Takes note of news about the network; true where the maps must follow by [`Core::enforce`].
    pub fn network(&mut self, update: Update) -> bool {
        match update {
            Update::OwnAddresses(addresses) => {
                let changed = self.own_addresses != addresses;
                self.own_addresses = addresses;
                changed
            }
            Update::NextHop {
                address,
                next_hop: Some(next_hop),
                ..
            } => self.next_hops.insert(address, next_hop) != Some(next_hop),
            Update::NextHop {
                address,
                next_hop: None,
                reason,
            } => {
                let reason = reason.unwrap_or_default();
                tracing::warn!(%address, reason, "no next hop");
                self.next_hops.remove(&address).is_some()
            }
        }
    }

    /// Every backend's address.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let backends = self.state.services().flat_map(|service| &service.backends);
        backends.map(|backend| backend.address.ip()).collect()
    }

    /// Addresses whose next hop is not known yet.
    pub fn unresolved(&self) -> BTreeSet<IpAddr> {
        self.addresses()
            .into_iter()
            .filter(|address| !self.next_hops.contains_key(address))
            .collect()
    }

    /// What is to be checked.
    pub fn targets(&self) -> BTreeMap<Target, TargetConfig> {
        let mut targets = BTreeMap::new();
        for service in self.state.services() {
            for backend in &service.backends {
                let target = Target {
                    service: service.id,
                    address: backend.address,
                };
                let initial = self.condition(service, backend.address);
                targets.insert(
                    target,
                    TargetConfig {
                        health: service.health.clone(),
                        initial,
                    },
                );
            }
        }
        targets
    }

    fn condition(&self, service: &Service, address: SocketAddr) -> Condition {
        let checked = self.checked.get(&Target {
            service: service.id,
            address,
        });
        match checked {
            Some(checked) => checked.condition,
            None if self.down.contains(&(service.id, address)) => Condition::Down,
            None if service.health.probe == Probe::None => Condition::Up,
            None => Condition::Starting,
        }
    }

    /// The agent at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let drops = self.dataplane.drops().unwrap_or_else(|error| {
            tracing::error!(%error, "no drop counters");
            Vec::new()
        });
        let drops = DropReason::ALL.iter().map(|&reason| {
            (
                reason.name(),
                drops.get(reason as usize).copied().unwrap_or(0),
            )
        });
        Snapshot {
            instance: self.instance.clone(),
            generation: self.layout.generation,
            interfaces: self.interfaces.clone(),
            services: self
                .state
                .services()
                .map(|service| self.service_status(service))
                .collect(),
            established: TableUse::default(),
            half_open: TableUse::default(),
            drops: drops.collect(),
        }
    }

    /// Recorded flows.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn flows(&self, _: FlowFilter) -> Result<FlowList, ChangeError> {
        Ok(FlowList::default())
    }

    fn service_status(&self, service: &Service) -> ServiceStatus {
        let placed = self.layout.services.get(&service.id);
        let counters = placed.map(|placed| self.dataplane.service_counters(placed.index));
        ServiceStatus {
            service: service.clone(),
            ring_size: placed.map_or(0, |placed| placed.descriptor.ring_size),
            flows: FlowStatus::default(),
            traffic: traffic(counters),
            backends: service
                .backends
                .iter()
                .map(|backend| {
                    let address = backend.address;
                    let member = placed.and_then(|placed| placed.member(address));
                    let counters =
                        member.map(|(_, m)| self.dataplane.backend_counters(m.backend.counters));
                    let checked = self.checked.get(&Target {
                        service: service.id,
                        address,
                    });
                    BackendStatus {
                        backend: backend.clone(),
                        condition: self.condition(service, address),
                        last_error: checked.and_then(|checked| checked.error.clone()),
                        latency: checked.and_then(|checked| checked.latency),
                        reachable: member.is_some_and(|(_, member)| member.backend.interface != 0),
                        leaving: false,
                        slots: share(placed, member.map(|(id, _)| id)),
                        recorded: 0,
                        connections: None,
                        traffic: traffic(counters),
                    }
                })
                .collect(),
        }
    }
}

fn share(placed: Option<&Placed>, id: Option<u16>) -> u32 {
    let share = placed
        .zip(id)
        .and_then(|(placed, id)| placed.shares.get(&id));
    share.copied().unwrap_or(0)
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
