//! What a plan believes of the backends: who is in which pool, who is dead or in trouble, and
//! from when each counts as usable. Owns which changes make sense; never draws one.

use std::{collections::BTreeMap, time::Duration};

use super::{Alarm, Change, Kind, MIN_USABLE, SCHEDULERS};

/// Backends of a service at the start.
const POOL: u8 = 6;
/// Backends that may be dead, stopped or under a false alarm at once.
const MAX_TROUBLED: usize = 2;

/// A backend in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its share.
    pub weight: u16,
    /// Whether it takes no new connections.
    pub draining: bool,
}

/// The members of each service, by backend.
pub type Pools = Vec<BTreeMap<u8, Member>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Taken as usable from then on.
    Well(Duration),
    Dead,
    Alarmed,
    Stalled,
}

/// All backends and pools.
#[derive(Debug, Clone)]
pub struct Fleet {
    pools: Pools,
    /// Of each service; 0 where it was never set.
    ring_sizes: Vec<u32>,
    /// Of each service.
    schedulers: Vec<&'static str>,
    backends: BTreeMap<u8, Health>,
}

impl Fleet {
    /// Every backend is well; services have as many of them each, spread evenly, and lack one at least.
    pub fn new(services: usize, backends: u8) -> Self {
        let member = Member {
            weight: 1,
            draining: false,
        };
        let pool = |service: usize| {
            let first = service * usize::from(backends) / services;
            let nth = |n: u8| 1 + (first + usize::from(n)) % usize::from(backends);
            (0..POOL.min(backends - 1))
                .map(|n| (nth(n) as u8, member))
                .collect()
        };
        Self {
            pools: (0..services).map(pool).collect(),
            ring_sizes: vec![0; services],
            schedulers: vec![SCHEDULERS[0]; services],
            backends: (1..=backends)
                .map(|backend| (backend, Health::Well(Duration::ZERO)))
                .collect(),
        }
    }

    /// The members of each service.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Every change of `kind` that makes sense at `at`; weights, sizes and schedulers are the present ones.
    pub fn candidates(&self, kind: Kind, at: Duration) -> Vec<Change> {
        match kind {
            // Nothing that may take its time, for a stopped process must not stay so for long.
            Kind::AgentRestart | Kind::FalseAlarm if self.any(Health::Stalled) => Vec::new(),
            Kind::Stall if self.any(Health::Alarmed) => Vec::new(),
            Kind::AgentRestart => vec![Change::AgentRestart],
            Kind::RingSize => self.resizes().collect(),
            Kind::Scheduler => self.reschedules().collect(),
            Kind::Kill | Kind::Revive | Kind::FalseAlarm | Kind::Stall => {
                self.of_backends(kind, at).collect()
            }
            Kind::Add | Kind::Remove | Kind::Weight | Kind::Drain | Kind::Undrain => {
                self.of_members(kind, at).collect()
            }
        }
    }

    fn any(&self, health: Health) -> bool {
        self.backends.values().any(|other| *other == health)
    }

    fn resizes(&self) -> impl Iterator<Item = Change> {
        let sizes = self.ring_sizes.iter().enumerate();
        sizes.map(|(service, &slots)| Change::RingSize { service, slots })
    }

    fn reschedules(&self) -> impl Iterator<Item = Change> {
        let schedulers = self.schedulers.iter().enumerate();
        schedulers.map(|(service, &scheduler)| Change::Scheduler { service, scheduler })
    }

    fn of_backends(&self, kind: Kind, at: Duration) -> impl Iterator<Item = Change> {
        let troubled = self
            .backends
            .values()
            .filter(|health| !is_well(health))
            .count();
        self.backends
            .iter()
            .filter_map(move |(&backend, health)| match kind {
                Kind::Revive => (*health == Health::Dead).then_some(Change::Revive { backend }),
                _ if !is_well(health) || troubled >= MAX_TROUBLED => None,
                _ if !self.everywhere_spared(backend, at) => None,
                Kind::Kill => Some(Change::Kill { backend }),
                Kind::FalseAlarm => Some(Change::FalseAlarm {
                    backend,
                    alarm: Alarm::Failing,
                }),
                _ => Some(Change::Stall { backend }),
            })
    }

    fn of_members(&self, kind: Kind, at: Duration) -> impl Iterator<Item = Change> {
        let all = move |service| self.backends.keys().map(move |&backend| (service, backend));
        (0..self.pools.len())
            .flat_map(all)
            .filter_map(move |(service, backend)| {
                let spared = || self.spared(service, backend, at);
                match (kind, self.pools[service].get(&backend)) {
                    (Kind::Add, None) => {
                        (self.backends[&backend] != Health::Dead).then_some(Change::Add {
                            service,
                            backend,
                            weight: 1,
                        })
                    }
                    (Kind::Remove, Some(_)) => {
                        spared().then_some(Change::Remove { service, backend })
                    }
                    (Kind::Weight, Some(member)) => Some(Change::Weight {
                        service,
                        backend,
                        weight: member.weight,
                    }),
                    (Kind::Drain, Some(member)) if !member.draining => {
                        spared().then_some(Change::Drain { service, backend })
                    }
                    (Kind::Undrain, Some(member)) if member.draining => {
                        Some(Change::Undrain { service, backend })
                    }
                    _ => None,
                }
            })
    }

    fn everywhere_spared(&self, backend: u8, at: Duration) -> bool {
        (0..self.pools.len()).all(|service| self.spared(service, backend, at))
    }

    /// Whether enough others of `service` take new connections at `at`.
    fn spared(&self, service: usize, backend: u8, at: Duration) -> bool {
        let others = self.usable(service, at).filter(|&other| other != backend);
        others.count() >= MIN_USABLE
    }

    /// Who takes new connections of `service` at `at`.
    pub fn usable(&self, service: usize, at: Duration) -> impl Iterator<Item = u8> {
        let members = self.pools[service].iter();
        members.filter_map(move |(&backend, member)| {
            let well = matches!(self.backends[&backend], Health::Well(from) if from <= at);
            (well && !member.draining).then_some(backend)
        })
    }

    /// Takes note of a change; a backend that comes with it is usable from `usable_from` on.
    pub fn apply(&mut self, change: &Change, usable_from: Duration) {
        match *change {
            Change::Add {
                service,
                backend,
                weight,
            } => {
                let member = Member {
                    weight,
                    draining: false,
                };
                self.pools[service].insert(backend, member);
            }
            Change::Remove { service, backend } => {
                self.pools[service].remove(&backend);
            }
            Change::Weight {
                service,
                backend,
                weight,
            } => {
                self.member(service, backend, |member| member.weight = weight);
            }
            Change::Drain { service, backend } => {
                self.member(service, backend, |member| member.draining = true);
            }
            Change::Undrain { service, backend } => {
                self.member(service, backend, |member| member.draining = false);
            }
            Change::Kill { backend } => self.set(backend, Health::Dead),
            Change::FalseAlarm { backend, .. } => self.set(backend, Health::Alarmed),
            Change::Stall { backend } => self.set(backend, Health::Stalled),
            Change::Revive { backend } => self.recover(backend, usable_from),
            Change::RingSize { service, slots } => self.ring_sizes[service] = slots,
            Change::Scheduler { service, scheduler } => self.schedulers[service] = scheduler,
            Change::AgentRestart => {}
        }
    }

    /// `backend` is well again, and usable from `from` on.
    pub fn recover(&mut self, backend: u8, from: Duration) {
        self.set(backend, Health::Well(from));
    }

    fn set(&mut self, backend: u8, health: Health) {
        self.backends.insert(backend, health);
    }

    fn member(&mut self, service: usize, backend: u8, edit: impl FnOnce(&mut Member)) {
        if let Some(member) = self.pools[service].get_mut(&backend) {
            edit(member);
        }
    }
}

fn is_well(health: &Health) -> bool {
    matches!(health, Health::Well(_))
}
