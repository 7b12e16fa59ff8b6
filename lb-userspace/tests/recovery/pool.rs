//! An agent with one service of a few backends, and what happens to them.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use lb_common::tables::state;
use lb_userspace::{
    agent::{Core, history::History},
    config::{self, Tunnel},
    dataplane::memory::MemoryDataplane,
    health::{Event, Target, reply::Asked},
    model::{Admin, Backend, Change, Service, ServiceId, Settings},
    snapshot::{BackendStatus, Condition, EventFilter, EventRecord},
};

use crate::reach::{asking, left_behind, memory, reached, wind};

pub const VIP: &str = "10.0.0.1:80/tcp";
const SLOTS: u32 = 1_021;

pub fn id() -> ServiceId {
    VIP.parse().unwrap()
}

pub fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 80))
}

/// See above. Backends are numbered from 1.
pub struct Pool {
    pub core: Core<MemoryDataplane>,
    services: Vec<Service>,
}

impl Pool {
    /// A service with these keys of the configuration, and a backend of each of `backends`: more keys of theirs.
    pub fn new(keys: &str, backends: &[&str]) -> Self {
        Self::with_ring(SLOTS, keys, backends)
    }

    /// The same, with a ring of so many slots.
    pub fn with_ring(slots: u32, keys: &str, backends: &[&str]) -> Self {
        Self::over(memory(), slots, keys, backends)
    }

    /// The same, over these maps.
    pub fn over(memory: MemoryDataplane, slots: u32, keys: &str, backends: &[&str]) -> Self {
        Self::made(memory, "ipip", slots, keys, backends)
    }

    /// The same in another mode.
    pub fn in_mode(mode: &str, slots: u32, keys: &str, backends: &[&str]) -> Self {
        Self::made(memory(), mode, slots, keys, backends)
    }

    fn made(
        memory: MemoryDataplane,
        mode: &str,
        slots: u32,
        keys: &str,
        backends: &[&str],
    ) -> Self {
        let backend = |(n, keys): (u8, &&str)| format!("{{ address = \"{}\"{keys} }}", address(n));
        let backends: Vec<String> = (1..).zip(backends).map(backend).collect();
        let text = format!(
            "[[service]]\nvip = \"{VIP}\"\nmode = \"{mode}\"\nring_size = {slots}\n{keys}\nbackend = [{}]\n",
            backends.join(", ")
        );
        let services = config::parse(&text, "test").unwrap().services;
        let mut pool = Self {
            core: agent_over(memory),
            services,
        };
        pool.change(Change::Replace(pool.services.clone()));
        pool
    }

    /// Another agent over the same maps, which is told the state that this one has come to.
    pub fn restart(mut self) -> Self {
        let services = self.core.state().services().cloned().collect();
        self.core = agent_over(std::mem::take(self.core.dataplane_mut()));
        self.change(Change::Replace(services));
        self
    }

    /// Another agent over the same maps, whose configuration was edited like this.
    pub fn restart_edited(mut self, edit: impl Fn(&mut Service)) -> Self {
        let mut services: Vec<Service> = self.core.state().services().cloned().collect();
        services.iter_mut().for_each(edit);
        self.core = agent_over(std::mem::take(self.core.dataplane_mut()));
        self.core.begin_edited();
        self.change(Change::Replace(services));
        self
    }

    /// The same after so long a time, and with what this agent has left to it.
    pub fn restart_after(self, away: Duration) -> Self {
        self.restart_with(away, |history| history)
    }

    /// The same, with what becomes of that.
    pub fn restart_with(
        mut self,
        away: Duration,
        change: impl FnOnce(History<Duration>) -> History<Duration>,
    ) -> Self {
        let services = self.core.state().services().cloned().collect();
        let history = left_behind(&self.core, away);
        self.core = agent_over(std::mem::take(self.core.dataplane_mut()));
        self.core.recall(change(history));
        self.change(Change::Replace(services));
        self
    }

    /// The service in a group with another one, which comes first: what is known of the pool is known under that one then.
    pub fn behind_another(&self) -> [Service; 2] {
        ["10.0.0.0:80/tcp", VIP].map(|vip| {
            let mut service = self.core.state().service(id()).unwrap().clone();
            service.id = vip.parse().unwrap();
            service.group = Some("web".to_owned());
            service
        })
    }

    pub fn change(&mut self, change: Change) {
        self.core.change(change).unwrap();
        self.core.observe(SystemTime::UNIX_EPOCH);
    }

    pub fn set(&mut self, settings: Settings) {
        self.change(Change::EditService(id(), settings));
    }

    pub fn ask(&mut self, n: u8, admin: Admin) {
        self.change(asking(id(), address(n), admin));
    }

    /// A new backend, of this weight.
    pub fn add(&mut self, n: u8, weight: u16) {
        let backend = Backend {
            address: address(n),
            weight,
            ..self.services[0].backends[0].clone()
        };
        self.change(Change::AddBackend(id(), backend));
    }

    /// Checks say this.
    pub fn check(&mut self, event: Event) {
        if self.core.health(event) {
            self.core.enforce().unwrap();
        }
        self.core.observe(SystemTime::UNIX_EPOCH);
    }

    pub fn up(&mut self, n: u8) {
        self.check(event(n, Condition::Up));
    }

    pub fn down(&mut self, n: u8) {
        self.check(Event {
            error: Some("timed out".to_owned()),
            ..event(n, Condition::Down)
        });
    }

    /// Its own port refuses.
    pub fn refuses(&mut self, n: u8) {
        self.check(Event {
            dead: true,
            ..event(n, Condition::Down)
        });
    }

    /// So many seconds pass, and the agent looks at its watch as often as it does.
    pub fn pass(&mut self, seconds: u64) {
        for _ in 0..5 * seconds {
            wind(&self.core, Duration::from_millis(200));
            let (aged, stepped) = (self.core.age(), self.core.step());
            if aged || stepped {
                self.core.enforce().unwrap();
            }
            self.core.observe(SystemTime::UNIX_EPOCH);
        }
    }

    /// What a backend does in the maps.
    pub fn state(&self, n: u8) -> u8 {
        let placed = self.core.layout().placed(id()).unwrap();
        placed.member(address(n)).unwrap().1.backend.state
    }

    pub fn takes(&self, n: u8) -> bool {
        self.state(n) & state::TAKES != 0
    }

    /// Percent of the slots whose owner takes new flows.
    pub fn share(&self, n: u8) -> u32 {
        let placed = self.core.layout().placed(id()).unwrap();
        let (local, _) = placed.member(address(n)).unwrap();
        match self.takes(n) {
            true => (placed.ring.share(local) * 100 + SLOTS / 2) / SLOTS,
            false => 0,
        }
    }

    pub fn shares<const N: usize>(&self) -> [u32; N] {
        std::array::from_fn(|n| self.share(n as u8 + 1))
    }

    /// Slots of the ring that have moved so far.
    pub fn moved(&self) -> u64 {
        self.core.service(id()).unwrap().flows.passed.moving
    }

    pub fn status(&self, n: u8) -> BackendStatus {
        let service = self.core.service(id()).unwrap();
        service.backend(address(n)).unwrap().clone()
    }

    /// What a backend's agent has asked for so far, as its checks are told.
    pub fn asked(&self, n: u8) -> Asked {
        let target = event(n, Condition::Up).target;
        self.core.targets()[&target].asked
    }

    /// Why a backend is in the state that it is in.
    pub fn reason(&self, n: u8) -> String {
        self.status(n).standing.unwrap().reason
    }

    pub fn events(&self) -> Vec<EventRecord> {
        let all = EventFilter {
            service: None,
            after: None,
            epoch: None,
            limit: usize::MAX,
        };
        self.core.events(&all).events
    }
}

pub fn agent_over(memory: MemoryDataplane) -> Core<MemoryDataplane> {
    let mut core = Core::new("recovery".to_owned(), Tunnel::default(), memory).unwrap();
    for n in 1..=100 {
        core.network(reached(address(n).ip(), 1));
    }
    core
}

pub fn event(n: u8, condition: Condition) -> Event {
    let target = Target {
        service: id(),
        address: address(n),
    };
    Event {
        changed: true,
        ..Event::new(target, condition)
    }
}
