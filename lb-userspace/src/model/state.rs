//! All that is wanted together: what services owe each other, and how a state becomes another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    AccessEdit, AccessList, Adaptive, AddressPool, Admin, Backend, ClientAddress, EditRated,
    Failback, FlapDamping, FlowLimit, FlowState, MAX_POOL_ADDRESSES, Mode, ModelError, MssClamp,
    OnDown, Passive, Protocol, Quic, Scheduler, ServerId, Service, ServiceId, SlowStart,
    SourceRoutes, SynProxy, Unserved,
};

/// Everything that is wanted. Valid by construction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    services: BTreeMap<ServiceId, Service>,
    /// Who has which backend in mode `nat`: answers from it must lead back to one service.
    nat: BTreeMap<(Protocol, SocketAddr), ServiceId>,
    groups: BTreeMap<String, BTreeSet<ServiceId>>,
    access_lists: BTreeMap<String, AccessList>,
    address_pools: BTreeMap<String, AddressPool>,
    /// Whose each address of a pool is.
    pooled: BTreeMap<IpAddr, String>,
}

/// One change of a [`State`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new service.
    AddService(Service),
    /// A service and its pool go.
    RemoveService(ServiceId),
    /// A new backend of a service.
    AddBackend(ServiceId, Backend),
    /// A backend goes.
    RemoveBackend(ServiceId, SocketAddr),
    /// A backend's weight, or whether it drains, or both at once; what is absent stays.
    EditBackend {
        /// Of which service.
        id: ServiceId,
        /// Which.
        address: SocketAddr,
        /// The new weight.
        weight: Option<u16>,
        /// Drain or undrain.
        admin: Option<Admin>,
        /// The new limit of flows in progress; `Some(None)` takes it away.
        max_connections: Option<Option<u32>>,
        /// What else it is said to carry.
        rated: EditRated,
        /// The new tier.
        tier: Option<u8>,
    },
    /// New flows go to this tier and those after it; 0 fails back, whatever held flows there.
    FailOver(ServiceId, u8),
    /// Settings of a service, and with it of all that share its pool; what is absent stays. With a group
    /// among them it is the service alone that changes, and goes there.
    EditService(ServiceId, Settings),
    /// A new access list, or other prefixes of one that is there.
    SetAccessList(AccessList),
    /// Prefixes of an access list come and go.
    EditAccessList(String, AccessEdit),
    /// An access list that no service has goes.
    RemoveAccessList(String),
    /// All services at once; access lists stay.
    Replace(Vec<Service>),
    /// All access lists and services at once.
    ReplaceAll(Vec<AccessList>, Vec<Service>),
}

impl Change {
    /// The service whose new flows it sends elsewhere, where that is all it does: a backend is taken for down, drained or
    /// maintained, or another tier goes first.
    pub fn diverts(&self) -> Option<ServiceId> {
        match *self {
            Self::EditBackend {
                id,
                admin: Some(Admin::Down | Admin::Draining | Admin::Maintenance),
                weight: None,
                max_connections: None,
                rated:
                    EditRated {
                        max_flow_rate: None,
                        max_bandwidth: None,
                    },
                tier: None,
                ..
            }
            | Self::FailOver(id, _) => Some(id),
            _ => None,
        }
    }

    /// Whether it may be about the pool of `lead`, the first service of its group in `state`, or come to be.
    pub fn may_be_of(&self, lead: ServiceId, state: &State) -> bool {
        let of_group = |group: &Option<String>| {
            let first = group.as_ref().and_then(|group| state.of_group(group));
            first.is_some_and(|first| first.id == lead)
        };
        match self {
            Self::AddService(service) => service.id == lead || of_group(&service.group),
            Self::EditService(id, settings) => {
                state.lead(*id) == lead || settings.group.as_ref().is_some_and(of_group)
            }
            Self::RemoveService(id)
            | Self::AddBackend(id, _)
            | Self::RemoveBackend(id, _)
            | Self::EditBackend { id, .. }
            | Self::FailOver(id, _) => state.lead(*id) == lead,
            Self::SetAccessList(_) | Self::EditAccessList(..) | Self::RemoveAccessList(_) => false,
            Self::Replace(_) | Self::ReplaceAll(..) => true,
        }
    }
}

/// Settings of a service that can be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// [`Service::announce`].
    pub announce: Option<bool>,
    /// [`Service::ring_size`].
    pub ring_size: Option<u32>,
    /// [`Service::scheduler`].
    pub scheduler: Option<Scheduler>,
    /// [`Service::flow_state`].
    pub flow_state: Option<FlowState>,
    /// [`Service::on_down`].
    pub on_down: Option<OnDown>,
    /// [`Service::moving_time`].
    pub moving_time: Option<Duration>,
    /// [`Service::dead_after`].
    pub dead_after: Option<Duration>,
    /// [`Service::no_backend`].
    pub no_backend: Option<Unserved>,
    /// [`Service::mss_clamp`].
    pub mss_clamp: Option<MssClamp>,
    /// [`Service::second_hop`].
    pub second_hop: Option<bool>,
    /// [`Service::address_pool`].
    pub address_pool: Option<String>,
    /// [`Service::client_address`].
    pub client_address: Option<ClientAddress>,
    /// [`Service::syn_proxy`].
    pub syn_proxy: Option<SynProxy>,
    /// [`Service::access_list`]; `Some(None)`: everybody may send to it.
    pub access_list: Option<Option<String>>,
    /// [`Service::flow_limit`].
    pub flow_limit: Option<FlowLimit>,
    /// [`Service::source_limit`].
    pub source_limit: Option<FlowLimit>,
    /// [`Service::source_prefix_v4`].
    pub source_prefix_v4: Option<u8>,
    /// [`Service::source_prefix_v6`].
    pub source_prefix_v6: Option<u8>,
    /// [`Service::source_routes`]: all that there are from then on.
    pub source_routes: Option<SourceRoutes>,
    /// [`Service::persistence`].
    pub persistence: Option<Duration>,
    /// [`Service::persistence_prefix`].
    pub persistence_prefix: Option<u8>,
    /// [`Service::spill_below`].
    pub spill_below: Option<u8>,
    /// [`Service::failback`].
    pub failback: Option<Failback>,
    /// [`Service::slow_start`].
    pub slow_start: Option<SlowStart>,
    /// [`Service::adaptive`]; `Some(None)`: weights are as configured.
    pub adaptive: Option<Option<Adaptive>>,
    /// [`Service::flap_damping`].
    pub flap_damping: Option<FlapDamping>,
    /// [`Service::passive`].
    pub passive: Option<Passive>,
    /// [`Service::panic_below`].
    pub panic_below: Option<u8>,
    /// [`Service::group`]; `Some(None)`: it gets a pool of its own.
    pub group: Option<Option<String>>,
    /// [`Service::quic`]; `Some(None)`: it is QUIC no longer, and its backends have no server ids.
    pub quic: Option<Option<Quic>>,
    /// [`Backend::server_id`] of these backends.
    pub server_ids: BTreeMap<SocketAddr, ServerId>,
    /// [`Backend::subsets`] of these backends.
    pub subsets: BTreeMap<SocketAddr, Vec<String>>,
}

impl State {
    /// A state with these services.
    ///
    /// # Errors
    /// The first service that is invalid, stands twice, or differs from others of its group.
    pub fn new(services: impl IntoIterator<Item = Service>) -> Result<Self, ModelError> {
        Self::with_lists([], services)
    }

    /// A state with these access lists and services.
    ///
    /// # Errors
    /// A list that stands twice, or as [`State::new`].
    pub fn with_lists(
        access_lists: impl IntoIterator<Item = AccessList>,
        services: impl IntoIterator<Item = Service>,
    ) -> Result<Self, ModelError> {
        Self::with_pools([], access_lists, services)
    }

    /// A state with these address pools, access lists and services.
    ///
    /// # Errors
    /// Pools that have an address in common, or as [`State::with_lists`].
    pub fn with_pools(
        address_pools: impl IntoIterator<Item = AddressPool>,
        access_lists: impl IntoIterator<Item = AccessList>,
        services: impl IntoIterator<Item = Service>,
    ) -> Result<Self, ModelError> {
        let mut state = Self::default();
        for pool in address_pools {
            state.add_pool(pool)?;
        }
        for list in access_lists {
            let name = list.name().to_owned();
            if state.access_lists.insert(name.clone(), list).is_some() {
                return Err(ModelError::DuplicateAccessList { name });
            }
        }
        for service in services {
            state.insert(service)?;
        }
        Ok(state)
    }

    fn add_pool(&mut self, pool: AddressPool) -> Result<(), ModelError> {
        let name = pool.name().to_owned();
        let bad = |problem| ModelError::BadAddressPool {
            name: name.clone(),
            problem,
        };
        for &address in pool.addresses() {
            if let Some(other) = self.pooled.insert(address, name.clone()) {
                let problem = format!("{address} is of pool {other} already: give each its own");
                return Err(bad(problem));
            }
        }
        if self.pooled.len() > MAX_POOL_ADDRESSES {
            let count = self.pooled.len();
            return Err(bad(format!(
                "with it, pools have {count} addresses, and {MAX_POOL_ADDRESSES} are the most"
            )));
        }
        if self.address_pools.insert(name.clone(), pool).is_some() {
            return Err(bad("stands twice: give another name".to_owned()));
        }
        Ok(())
    }

    /// The address pools, by name.
    pub fn address_pools(&self) -> impl ExactSizeIterator<Item = &AddressPool> {
        self.address_pools.values()
    }

    /// The address pool of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn address_pool(&self, name: &str) -> Result<&AddressPool, ModelError> {
        let pool = self.address_pools.get(name);
        pool.ok_or_else(|| ModelError::UnknownAddressPool {
            name: name.to_owned(),
        })
    }

    /// The services, in order of address, port and protocol.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values()
    }

    /// The access lists, by name.
    pub fn access_lists(&self) -> impl ExactSizeIterator<Item = &AccessList> {
        self.access_lists.values()
    }

    /// Each access list, and the services that have it.
    pub fn listings(&self) -> Vec<(AccessList, Vec<ServiceId>)> {
        let listing = |list: &AccessList| (list.clone(), self.listed(list.name()).collect());
        self.access_lists().map(listing).collect()
    }

    /// The access list of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn access_list(&self, name: &str) -> Result<&AccessList, ModelError> {
        let list = self.access_lists.get(name);
        list.ok_or_else(|| ModelError::UnknownAccessList {
            name: name.to_owned(),
        })
    }

    /// The services that have an access list.
    pub fn listed(&self, name: &str) -> impl Iterator<Item = ServiceId> {
        let services = self.services.values();
        let listed = services.filter(move |s| s.access_list.as_deref() == Some(name));
        listed.map(|service| service.id)
    }

    /// The services that share a pool, all those of each together: the first one's settings and backends
    /// are those of all. In order of the first.
    pub fn pools(&self) -> Vec<Vec<&Service>> {
        let leads = self.services.values().filter(|s| self.lead(s.id) == s.id);
        leads.map(|lead| self.pool(lead.id)).collect()
    }

    /// The services that share the pool of one, the first of its group first.
    pub fn pool(&self, id: ServiceId) -> Vec<&Service> {
        let ids = self.sharing(id).into_iter();
        ids.filter_map(|id| self.services.get(&id)).collect()
    }

    /// The service that stands for all that share the pool of one: the first of its group.
    pub fn lead(&self, id: ServiceId) -> ServiceId {
        let group = self.group_of(id);
        group.and_then(|group| group.first().copied()).unwrap_or(id)
    }

    fn group_of(&self, id: ServiceId) -> Option<&BTreeSet<ServiceId>> {
        self.groups.get(self.services.get(&id)?.group.as_ref()?)
    }

    /// A service and those that it shares its pool with.
    fn sharing(&self, id: ServiceId) -> BTreeSet<ServiceId> {
        let group = self.group_of(id).cloned();
        group.unwrap_or_else(|| BTreeSet::from([id]))
    }

    /// The service of that id.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(&id)
    }

    /// The first service of a group, which says what they share.
    pub fn of_group(&self, group: &str) -> Option<&Service> {
        self.service(*self.groups.get(group)?.first()?)
    }

    /// The same with `services` in the place of those of their ids: as they are to be carried out,
    /// which only differs in weights, drains and limits, and may be finer than what can be asked for.
    #[must_use]
    pub fn overlaid(&self, services: impl IntoIterator<Item = Service>) -> Self {
        let mut over = self.clone();
        let services = services.into_iter().map(|service| (service.id, service));
        over.services.extend(services);
        over
    }

    /// The state after `change`; `self` stays what it was.
    ///
    /// # Errors
    /// What is wrong with the change.
    pub fn apply(&self, change: Change) -> Result<Self, ModelError> {
        let mut next = self.clone();
        match change {
            Change::AddService(service) => next.insert(service)?,
            Change::RemoveService(id) => {
                next.take(id)?;
            }
            Change::AddBackend(id, backend) => next.edit(id, |service| {
                service.backends.push(backend.clone());
                Ok(())
            })?,
            Change::RemoveBackend(id, address) => next.edit(id, |service| {
                service
                    .backend(address)
                    .ok_or(ModelError::UnknownBackend { id, address })?;
                service.backends.retain(|b| b.address != address);
                Ok(())
            })?,
            Change::EditBackend {
                id,
                address,
                weight,
                admin,
                max_connections,
                rated,
                tier,
            } => next.edit_backend(id, address, |backend| {
                backend.weight = weight.unwrap_or(backend.weight);
                backend.admin = admin.unwrap_or(backend.admin);
                backend.max_connections = max_connections.unwrap_or(backend.max_connections);
                backend.rated = backend.rated.edited(rated);
                backend.tier = tier.unwrap_or(backend.tier);
            })?,
            Change::FailOver(id, tier) => next.edit(id, |service| service.fail_over(tier))?,
            Change::EditService(id, settings) => match &settings.group {
                None => next.edit(id, |service| settings.apply(service))?,
                Some(_) => {
                    let mut service = next.take(id)?;
                    settings.apply(&mut service)?;
                    next.insert(service)?;
                }
            },
            Change::SetAccessList(list) => {
                next.access_lists.insert(list.name().to_owned(), list);
            }
            Change::EditAccessList(name, edit) => {
                let list = self.access_list(&name)?.edited(&edit)?;
                next.access_lists.insert(name, list);
            }
            Change::RemoveAccessList(name) => {
                self.access_list(&name)?;
                let user = self.listed(&name).next();
                if let Some(id) = user {
                    return Err(ModelError::AccessListInUse { name, id });
                }
                next.access_lists.remove(&name);
            }
            Change::Replace(services) => {
                let lists = self.access_lists.values().cloned();
                next = Self::with_pools(self.address_pools().cloned(), lists, services)?;
            }
            Change::ReplaceAll(lists, services) => {
                next = Self::with_pools(self.address_pools().cloned(), lists, services)?;
            }
        }
        Ok(next)
    }

    /// Adds a service.
    ///
    /// # Errors
    /// What is wrong with it; `self` stays what it was then.
    pub fn insert(&mut self, service: Service) -> Result<(), ModelError> {
        let id = service.id;
        if self.services.contains_key(&id) {
            return Err(ModelError::DuplicateService { id });
        }
        service.check()?;
        self.check_ports(id)?;
        if let Some(name) = &service.access_list {
            self.access_list(name)?;
        }
        self.check_pool(&service)?;
        self.check_group(&service)?;
        self.check_ways_back(&service)?;
        for way in ways_back(&service) {
            self.nat.insert(way, id);
        }
        if let Some(group) = &service.group {
            self.groups.entry(group.clone()).or_default().insert(id);
        }
        self.services.insert(id, service);
        Ok(())
    }

    fn take(&mut self, id: ServiceId) -> Result<Service, ModelError> {
        let service = self.services.remove(&id);
        let service = service.ok_or(ModelError::UnknownService { id })?;
        for way in ways_back(&service) {
            self.nat.remove(&way);
        }
        if let Some(group) = &service.group
            && let Some(ids) = self.groups.get_mut(group)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.groups.remove(group);
            }
        }
        Ok(service)
    }

    /// Edits a service, and with it all that share its pool.
    fn edit(
        &mut self,
        id: ServiceId,
        edit: impl Fn(&mut Service) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let ids = self.sharing(id);
        let services: Result<Vec<Service>, _> = ids.into_iter().map(|id| self.take(id)).collect();
        for mut service in services? {
            edit(&mut service)?;
            self.insert(service)?;
        }
        Ok(())
    }

    fn edit_backend(
        &mut self,
        id: ServiceId,
        address: SocketAddr,
        edit: impl Fn(&mut Backend),
    ) -> Result<(), ModelError> {
        self.edit(id, |service| {
            edit(service.backend_mut(address)?);
            Ok(())
        })
    }

    /// Whether of the ranges of ports at the same addresses, one of two holds the other.
    fn check_ports(&self, id: ServiceId) -> Result<(), ModelError> {
        let at = |port| ServiceId::new(SocketAddr::new(id.vip.ip(), port), Protocol::Tcp);
        let services = self.services.range(at(0)..);
        let others = services.map(|(&other, _)| other);
        let mut others = others.take_while(|other| other.vip.ip() == id.vip.ip());
        match others.find(|other| id.crosses(other)) {
            Some(other) => Err(ModelError::CrossingPorts { id, other }),
            None => Ok(()),
        }
    }

    /// Whether a service finds addresses in its pool, and is at none that packets are to come from.
    fn check_pool(&self, service: &Service) -> Result<(), ModelError> {
        let id = service.id;
        let invalid = |field, problem| Err(ModelError::Invalid { id, field, problem });
        if let Some(name) = &service.address_pool {
            let v4 = id.vip.is_ipv4();
            if self.address_pool(name)?.of_family(v4).next().is_none() {
                let family = if v4 { "IPv4" } else { "IPv6" };
                let problem = format!("{name} has no address of {family}, which the VIP is of");
                return invalid("address_pool", problem);
            }
        }
        let mut pooled = self.pooled.iter();
        let clash = match id.is_prefix() {
            true => pooled.find(|(ip, _)| id.has_address(**ip)),
            false => self.pooled.get_key_value(&id.vip.ip()),
        };
        if let Some((ip, name)) = clash {
            let problem = format!(
                "{ip} is of address pool {name}, which packets to backends come from: give another"
            );
            return invalid("vip", problem);
        }
        let mut backends = service.backends.iter().map(|backend| backend.address);
        let clash = backends.find_map(|at| Some((at, self.pooled.get(&at.ip())?)));
        if let Some((address, name)) = clash {
            let problem = format!(
                "{address} is of address pool {name}, which packets to backends come from: give a server's"
            );
            return invalid("address", problem);
        }
        Ok(())
    }

    fn check_group(&self, service: &Service) -> Result<(), ModelError> {
        let Some(group) = &service.group else {
            return Ok(());
        };
        let other = self.groups.get(group).and_then(|ids| ids.first());
        let other = other.and_then(|id| self.services.get(id));
        match other.and_then(|other| Some((other.id, service.difference(other)?))) {
            None => Ok(()),
            Some((other, difference)) => Err(ModelError::GroupDiffers {
                id: service.id,
                other,
                field: difference.field,
                what: difference.what,
            }),
        }
    }

    fn check_ways_back(&self, service: &Service) -> Result<(), ModelError> {
        for way in ways_back(service) {
            if let Some(other) = self.in_the_way(service.id, way) {
                let (id, address) = (service.id, way.1);
                return Err(ModelError::SharedNatBackend { id, other, address });
            }
        }
        Ok(())
    }

    /// Whose answers could not be told from those that come by `way`.
    fn in_the_way(&self, id: ServiceId, way: (Protocol, SocketAddr)) -> Option<ServiceId> {
        let (protocol, at) = way;
        if let Some(&other) = self.nat.get(&way) {
            return Some(other);
        }
        let port = |port| (protocol, SocketAddr::new(at.ip(), port));
        let others = if at.port() == 0 {
            self.nat.range(port(1)..=port(u16::MAX))
        } else {
            self.nat.range(port(0)..=port(0))
        };
        let mut others = others.map(|(&(_, other_at), &other)| (other_at, other));
        let clash = others.find(|&(other_at, other)| {
            // The one of the two that has a single port.
            let (single, single_at) = if at.port() == 0 {
                (other, other_at)
            } else {
                (id, at)
            };
            // Of one VIP, every port stays itself, and so leads back to it.
            id.vip.ip() != other.vip.ip() || single.vip_port_at(single_at) != single_at.port()
        });
        clash.map(|(_, other)| other)
    }
}

/// Where the answers to a `nat` service come from.
fn ways_back(service: &Service) -> impl Iterator<Item = (Protocol, SocketAddr)> {
    let backends = match service.mode {
        Mode::Nat => service.backends.as_slice(),
        Mode::FullNat | Mode::Ipip | Mode::Gue | Mode::L2 => &[],
    };
    let served = backends.iter().flat_map(|b| service.served_at(b.address));
    served.map(|at| (service.id.protocol, at))
}

impl Settings {
    /// Makes them a service's own.
    ///
    /// # Errors
    /// A server id, or subsets, of a backend that it has not.
    pub fn apply(&self, service: &mut Service) -> Result<(), ModelError> {
        let Self {
            announce,
            ring_size,
            scheduler,
            flow_state,
            on_down,
            moving_time,
            dead_after,
            no_backend,
            mss_clamp,
            second_hop,
            address_pool,
            client_address,
            syn_proxy,
            access_list,
            flow_limit,
            source_limit,
            source_prefix_v4,
            source_prefix_v6,
            source_routes,
            persistence,
            persistence_prefix,
            spill_below,
            failback,
            slow_start,
            adaptive,
            flap_damping,
            passive,
            panic_below,
            group,
            quic,
            server_ids,
            subsets,
        } = self;
        service.announce = announce.unwrap_or(service.announce);
        service.ring_size = ring_size.or(service.ring_size);
        service.scheduler = scheduler.unwrap_or(service.scheduler);
        service.flow_state = flow_state.unwrap_or(service.flow_state);
        service.on_down = on_down.or(service.on_down);
        service.moving_time = moving_time.or(service.moving_time);
        service.dead_after = dead_after.unwrap_or(service.dead_after);
        service.no_backend = no_backend.unwrap_or(service.no_backend);
        service.mss_clamp = mss_clamp.unwrap_or(service.mss_clamp);
        service.second_hop = second_hop.unwrap_or(service.second_hop);
        if let Some(address_pool) = address_pool {
            service.address_pool = Some(address_pool.clone());
        }
        service.client_address = client_address.unwrap_or(service.client_address);
        service.syn_proxy = syn_proxy.unwrap_or(service.syn_proxy);
        if let Some(access_list) = access_list {
            service.access_list.clone_from(access_list);
        }
        service.flow_limit = flow_limit.unwrap_or(service.flow_limit);
        service.source_limit = source_limit.unwrap_or(service.source_limit);
        service.source_prefix_v4 = source_prefix_v4.or(service.source_prefix_v4);
        service.source_prefix_v6 = source_prefix_v6.or(service.source_prefix_v6);
        if let Some(source_routes) = source_routes {
            service.source_routes.clone_from(source_routes);
        }
        service.persistence = persistence.unwrap_or(service.persistence);
        service.persistence_prefix = persistence_prefix.or(service.persistence_prefix);
        service.spill_below = spill_below.unwrap_or(service.spill_below);
        service.failback = failback.unwrap_or(service.failback);
        service.slow_start = slow_start.unwrap_or(service.slow_start);
        service.adaptive = adaptive.unwrap_or(service.adaptive);
        service.flap_damping = flap_damping.unwrap_or(service.flap_damping);
        service.passive = passive.unwrap_or(service.passive);
        service.panic_below = panic_below.unwrap_or(service.panic_below);
        if let Some(group) = group {
            service.group.clone_from(group);
        }
        service.quic = quic.unwrap_or(service.quic);
        if *quic == Some(None) {
            service.backends.iter_mut().for_each(|b| b.server_id = None);
        }
        for (&address, &server_id) in server_ids {
            service.backend_mut(address)?.server_id = Some(server_id);
        }
        for (&address, subsets) in subsets {
            service.backend_mut(address)?.subsets.clone_from(subsets);
        }
        Ok(())
    }
}

impl Service {
    fn backend_mut(&mut self, address: SocketAddr) -> Result<&mut Backend, ModelError> {
        let id = self.id;
        let mut backends = self.backends.iter_mut();
        let backend = backends.find(|backend| backend.address == address);
        backend.ok_or(ModelError::UnknownBackend { id, address })
    }
}
