//! The simulation: carries a scenario's steps out upon the agent, and knows what they mean for what
//! clients are promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use lb_common::tables::HASH_KEY_WORDS;
use lb_userspace::{
    agent::{ChangeError, Core},
    config::Tunnel,
    dataplane::{Dataplane as _, memory::MemoryDataplane},
    health::{Event, Target},
    model::{Admin, Change, OnDown, Service},
    neighbours::Update,
    plan::ticks,
    snapshot::Condition,
};
use tokio::sync::mpsc;

use crate::{
    flow::Time,
    random::Random,
    reach::reached,
    sabotage::Sabotage,
    scenario::{self, Scenario, Step},
    stage::Stage,
    tally::Tally,
    world::{Offer, World},
};

/// A server, and what the agent has been told of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Server {
    /// Its process has ended.
    pub killed: bool,
    /// Its checks have failed since.
    pub down: Option<Time>,
}

/// See above.
pub struct Simulation {
    /// What the agent acts upon.
    pub stage: Stage,
    /// The agent.
    pub core: Core<Stage>,
    /// The services, as they were given; by number of the scenario.
    pub services: Vec<Service>,
    /// Servers by number of the service.
    pub servers: BTreeMap<(usize, SocketAddr), Server>,
    /// The scale of moving times.
    pub moving_time: Duration,
    /// Something failed and has to be tried again.
    pub pending: bool,
    /// Agents so far.
    pub agents: u64,
    /// The agent has not heard of all servers since it started, or since it began to check one again.
    pub unchecked: bool,
    /// A sweep did not come to its end, and its counts are not right yet.
    pub miscounted: bool,
    /// What is switched off.
    pub sabotage: Option<Sabotage>,
}

/// Runs a scenario from beginning to end.
pub fn run(scenario: &Scenario, sabotage: Option<Sabotage>) -> Tally {
    let mut simulation = Simulation::new(scenario, sabotage);
    let mut steps = scenario.steps.as_slice();
    while let Some((step, rest)) = steps.split_first() {
        steps = simulation.step(*step, rest);
    }
    let mut world = simulation.stage.world();
    world.tally.sequences = 1;
    std::mem::take(&mut world.tally)
}

impl Simulation {
    fn new(scenario: &Scenario, sabotage: Option<Sabotage>) -> Self {
        let all = scenario::services();
        let services: Vec<Service> = scenario
            .services
            .iter()
            .map(|&number| populated(&all[number], number, scenario.moving_time))
            .collect();
        let offers = services.iter().map(offer).collect();
        let memory = memory(scenario);
        let mut world = World::new(memory, offers, scenario.flows, scenario.start, sabotage);
        world.interleaved = scenario.flows.is_multiple_of(2);
        let stage = Stage::new(world);
        let mut simulation = Self {
            core: new_core(&stage),
            stage,
            services,
            servers: BTreeMap::new(),
            moving_time: scenario.moving_time,
            pending: false,
            agents: 1,
            unchecked: false,
            miscounted: false,
            sabotage,
        };
        simulation.tell_next_hops();
        simulation.change(Change::Replace(simulation.services.clone()));
        simulation
    }

    /// Makes randomness a step's own.
    pub fn reseed(&self, step: &Step) {
        self.stage.world().random = Random(u64::from(step.seed) << 8 | u64::from(step.amount));
    }

    /// The service of a number as it is wanted now.
    pub fn wanted(&self, service: usize) -> Option<&Service> {
        self.core.state().service(self.services[service].id)
    }

    /// Every next hop that anybody may need.
    pub fn tell_next_hops(&mut self) {
        let addresses: Vec<IpAddr> = (0..scenario::services().len())
            .flat_map(|service| (0..scenario::ADDRESSES).map(move |n| (service, n)))
            .map(|(service, n)| scenario::address(service, n).ip())
            .collect();
        for address in addresses {
            self.core.network(reached(address, 0));
        }
    }

    /// Asks for a change.
    pub fn change(&mut self, change: Change) {
        // It may end a panic, and with it take those for dead who are down and were used.
        for number in 0..self.services.len() {
            if self.may_panic(number) {
                self.stage.world().offers[number].gap = true;
            }
        }
        let outcome = self.core.change(change);
        self.note(outcome);
    }

    /// Has the maps follow what the agent knows.
    pub fn enforce(&mut self) {
        let outcome = self.core.enforce();
        self.note(outcome);
    }

    /// What the end of a plan means for what is promised.
    pub fn note(&mut self, outcome: Result<(), ChangeError>) {
        let mut world = self.stage.world();
        world.tally.changes += 1;
        self.pending = match outcome {
            Ok(()) => false,
            Err(ChangeError::Kernel(_)) => self.core.is_behind(),
            // Nothing was done.
            Err(ChangeError::Refused(_)) => self.pending,
            Err(error) => panic!("refused: {error}"),
        };
        for (number, service) in self.services.iter().enumerate() {
            let wanted = self.core.state().service(service.id);
            if wanted.is_some() != world.offers[number].open {
                world.set_open(number, wanted.is_some());
            }
            let (Some(wanted), false) = (wanted, self.pending) else {
                continue;
            };
            let now = offer(wanted);
            world.offers[number].gap = false;
            world.offers[number].by_connection = now.by_connection;
            world.limit_moving_time(number, now.moving_time);
        }
    }

    /// Tells the agent what a check of a server says; whether the rings must follow. Nobody checks a server
    /// in maintenance.
    pub fn tell(&mut self, service: usize, address: SocketAddr, up: bool, dead: bool) -> bool {
        let gap = self.stage.world().offers[service].gap;
        let Some(event) = self.found(service, address, up, dead) else {
            return false;
        };
        let follows = self.core.health(event);
        let dies = !up || self.may_panic(service);
        self.stage.world().offers[service].gap = gap || (follows && dies);
        follows
    }

    /// The same while a plan is under way, when so many of its operations have been carried out, or else right after it.
    pub fn enforce_amid_failure(&mut self, service: usize, address: SocketAddr, after: u64) {
        let Some(event) = self.found(service, address, false, false) else {
            return self.enforce();
        };
        let (checks, news) = mpsc::channel(1);
        self.core.listen(news, || SystemTime::UNIX_EPOCH);
        self.stage.world().news = Some((after, checks, event));
        self.enforce();
        self.stage.world().offers[service].gap = true;
        let left = self.stage.world().news.take().map(|(_, _, event)| event);
        if let Some(event) = left.or_else(|| self.core.news_at_hand()) {
            self.core.health(event);
        }
        self.enforce();
    }

    /// What a check finds, and what that means for what is promised.
    fn found(
        &mut self,
        service: usize,
        address: SocketAddr,
        up: bool,
        dead: bool,
    ) -> Option<Event> {
        if self.is_maintained(service, address) {
            return None;
        }
        let now = self.stage.world().now;
        let server = self.servers.entry((service, address)).or_default();
        server.down = match up {
            true => None,
            false => Some(server.down.unwrap_or(now)),
        };
        self.forsake(service);
        let dead = dead || self.sabotage == Some(Sabotage::DownIsTakenForDead);
        let id = self.services[service].id;
        self.stage.world().offers[service].gap = true;
        let target = Target {
            service: id,
            address,
        };
        let condition = if up { Condition::Up } else { Condition::Down };
        let host = match address.ip() {
            IpAddr::V4(v4) => Time::from(v4.octets()[3]),
            IpAddr::V6(v6) => Time::from(v6.octets()[15]),
        };
        Some(Event {
            changed: true,
            dead: !up && dead,
            // Servers fare now so, now otherwise.
            smoothed: Some(Duration::from_millis(1 << (((now >> 8) + host) % 8))),
            ..Event::new(target, condition)
        })
    }

    /// Whether backends of a service that are down may be used.
    fn may_panic(&self, service: usize) -> bool {
        let wanted = self.wanted(service);
        wanted.is_some_and(|wanted| wanted.panic_below > 0)
    }

    /// Whether a server is in maintenance.
    pub fn is_maintained(&self, service: usize, address: SocketAddr) -> bool {
        let backend = self.wanted(service).and_then(|s| s.backend(address));
        backend.is_some_and(|backend| backend.admin == Admin::Maintenance)
    }

    /// Nothing is promised any more to flows whose backend the agent may rightly take for dead.
    pub fn forsake(&self, service: usize) {
        let Some(wanted) = self.core.state().service(self.services[service].id) else {
            return;
        };
        self.forsake_as(service, wanted.on_down(), wanted.dead_after);
    }

    /// The same, given what makes a backend that is down count as dead.
    pub fn forsake_as(&self, service: usize, on_down: OnDown, dead_after: Duration) {
        let Some(wanted) = self.wanted(service) else {
            return;
        };
        let mut world = self.stage.world();
        let (now, after) = (world.now, Time::from(ticks(dead_after)));
        let dead = self.servers.iter().filter(|&(&(of, address), server)| {
            let down = server
                .down
                .filter(|_| of == service && wanted.backend(address).is_some());
            down.is_some_and(|since| on_down == OnDown::Resteer || now - since >= after)
        });
        let dead: BTreeSet<IpAddr> = dead.map(|(&(_, address), _)| address.ip()).collect();
        dead.iter()
            .for_each(|&address| world.orphan(service, address));
        world.offers[service].forsaken = dead;
    }

    /// Another agent takes the place of this one, over the same maps.
    pub fn restart(&mut self, knows_next_hops: bool) {
        let services: Vec<Service> = self.core.state().services().cloned().collect();
        let fails = self.stage.world().memory.fail_at.is_some();
        self.core = new_core(&self.stage);
        // Its first sweep may have been what failed.
        self.miscounted |= fails;
        self.agents += 1;
        self.unchecked = true;
        if knows_next_hops {
            self.tell_next_hops();
        }
        self.change(Change::Replace(services.clone()));
        if self.pending {
            self.change(Change::Replace(services));
        }
        self.tell_next_hops();
    }

    /// Every check tells what it finds.
    pub fn check_all(&mut self) {
        self.unchecked = false;
        for number in 0..self.services.len() {
            let addresses: Vec<SocketAddr> = self
                .wanted(number)
                .map(|service| service.backends.iter().map(|b| b.address).collect())
                .unwrap_or_default();
            for address in addresses {
                let server = self
                    .servers
                    .get(&(number, address))
                    .copied()
                    .unwrap_or_default();
                self.tell(number, address, server.down.is_none(), server.killed);
            }
        }
        self.enforce();
    }

    /// The clock, as the agent reads it.
    pub fn tick(&self) -> u32 {
        self.core.dataplane().now()
    }
}

fn memory(scenario: &Scenario) -> MemoryDataplane {
    let mut memory = MemoryDataplane::default();
    let mut random = Random(7);
    memory.tables.control.lookup_bits = 5;
    memory.tables.control.hash_key =
        std::array::from_fn::<_, HASH_KEY_WORDS, _>(|_| random.word() | 1);
    let flows = memory.tables.flows.get_mut();
    flows.established.capacity = scenario.established;
    flows.half_open.capacity = scenario.half_open;
    memory
}

/// An agent over the maps as they are.
pub fn new_core(stage: &Stage) -> Core<Stage> {
    loop {
        let core = Core::new("consistency".to_owned(), Tunnel::default(), stage.clone());
        // What fails, fails once.
        if let Ok(mut core) = core {
            core.network(Update::OwnAddresses(["10.0.0.1".parse().unwrap()].into()));
            return core;
        }
    }
}

/// A service with its first backends.
pub fn populated(service: &Service, number: usize, moving_time: Duration) -> Service {
    let backends = (0..4).map(|n| {
        let weight = n as u16 % 2 + 1;
        scenario::backend(service, scenario::address(number, n), weight)
    });
    Service {
        backends: backends.collect(),
        moving_time: Some(moving_time),
        ..service.clone()
    }
}

/// A service as its clients begin to know it.
pub fn offer(service: &Service) -> Offer {
    Offer {
        id: service.id,
        moving_time: ticks(service.moving_time()).into(),
        quic: service.quic.is_some(),
        by_connection: service.scheduler.records_every_flow()
            || !service.persistence.is_zero()
            || service.counts_flows(),
        gap: false,
        open: true,
        pause: Time::from(ticks(service.moving_time())).max(2),
        killed: BTreeSet::new(),
        forsaken: BTreeSet::new(),
    }
}
