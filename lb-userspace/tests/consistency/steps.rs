//! What each kind of step does.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use clap::ValueEnum as _;
use lb_common::tables::{Sign, Tables as _};
use lb_userspace::{
    model::{
        Adaptive, Admin, Change, Failback, FlapDamping, FlowState, OnDown, Passive, Protocol,
        Scheduler, ServiceId, Settings, Signal, SlowStart, SourceRoutes,
    },
    plan::{self, census},
};

use crate::{
    agent::{Simulation, populated},
    flow::Time,
    frame::{Sent, control},
    random::Random,
    reach::reached,
    sabotage::Sabotage,
    scenario::{self, Kind, Step},
    spoil,
    stage::Swept,
};

impl Simulation {
    /// Carries a step out; the steps of `rest` that remain.
    pub fn step<'s>(&mut self, step: Step, rest: &'s [Step]) -> &'s [Step] {
        self.reseed(&step);
        let service = usize::from(step.service) % self.services.len();
        match step.kind {
            Kind::Sweep => self.sweep(&[]),
            Kind::SlowSweep => {
                let (during, rest) = rest.split_at(rest.len().min(usize::from(step.choice % 6)));
                self.sweep(during);
                return rest;
            }
            _ if self.wanted(service).is_none() => self.without_service(service, step),
            _ => self.with_service(service, step),
        }
        rest
    }

    fn without_service(&mut self, service: usize, step: Step) {
        match step.kind {
            Kind::AddService => self.add_service(service),
            Kind::Restart => self.restart(step.choice & 1 == 0),
            _ => self.traffic(step),
        }
    }

    fn with_service(&mut self, service: usize, step: Step) {
        let id = self.services[service].id;
        match step.kind {
            Kind::Traffic | Kind::AddService | Kind::Sweep | Kind::SlowSweep => self.traffic(step),
            Kind::Promotion => self.promotion(service, step),
            // Those whose addresses were forged answer what they get.
            Kind::SynFlood if id.protocol == Protocol::Tcp && step.choice.is_multiple_of(2) => {
                let sent = [Sent::Opening, Sent::Segment(control::RST)];
                self.flood(service, step, &sent);
            }
            Kind::SynFlood => self.flood(service, step, &[Sent::Opening]),
            Kind::AckFlood => self.flood(service, step, &[Sent::Segment(control::ACK)]),
            Kind::AddBackend
            | Kind::RemoveBackend
            | Kind::Weight
            | Kind::Drain
            | Kind::Undrain
            | Kind::Limit
            | Kind::Tier => {
                self.edit_pool(service, step);
            }
            Kind::Down
            | Kind::Up
            | Kind::FalseAlarm
            | Kind::Die
            | Kind::Revive
            | Kind::DieAndRevive => {
                self.health(service, step);
            }
            Kind::NextHop => {
                if let Some(address) = self.backend(service, step)
                    && self.core.network(reached(address.ip(), step.amount))
                {
                    self.enforce();
                }
            }
            Kind::Refusals => {
                if let Some(address) = self.backend(service, step) {
                    self.refuse(id, address);
                }
            }
            Kind::Age => self.age(),
            Kind::RingSize
            | Kind::Scheduler
            | Kind::FlowState
            | Kind::MovingTime
            | Kind::OnDown
            | Kind::Persistence
            | Kind::Spill
            | Kind::Recovery => {
                self.edit_settings(service, step);
            }
            Kind::Routes => self.reroute(service, step),
            Kind::Subsets => self.regroup(service, step),
            Kind::FailOver => self.change(Change::FailOver(id, step.choice % 3)),
            Kind::RemoveService => {
                self.stage.world().set_open(service, false);
                self.change(Change::RemoveService(id));
            }
            Kind::Restart => {
                self.restart(step.choice & 1 == 0);
                if step.choice & 2 == 0 {
                    self.check_all();
                }
            }
            Kind::Fail => {
                let mut world = self.stage.world();
                let at = world.memory.executed + usize::from(step.amount % 16);
                world.memory.fail_at = Some(at);
            }
            Kind::Retry => self.enforce(),
            Kind::Kill => self.killed(service, step),
        }
    }

    /// Killed amid one of several changes: what it has written of that is what packets go by until another agent reads it.
    fn killed(&mut self, service: usize, step: Step) {
        const CHANGES: [Kind; 10] = [
            Kind::AddBackend,
            Kind::RemoveBackend,
            Kind::Weight,
            Kind::Drain,
            Kind::Undrain,
            Kind::RingSize,
            Kind::Scheduler,
            Kind::FlowState,
            Kind::Routes,
            Kind::Subsets,
        ];
        let mut world = self.stage.world();
        let last = world.random.index(32);
        let kind = CHANGES[world.random.index(CHANGES.len())];
        world.memory.fail_at = Some(world.memory.executed + last);
        world.doomed = true;
        drop(world);
        self.with_service(service, Step { kind, ..step });
        let mut world = self.stage.world();
        (world.memory.fail_at, world.doomed) = (None, false);
        if !std::mem::replace(&mut world.dead, false) {
            return;
        }
        world.tally.kills += 1;
        let scale = Time::from(plan::ticks(self.moving_time));
        world.advance(scale * (Time::from(step.amount % 16)) / 16);
        drop(world);
        self.restart(step.choice & 1 == 0);
    }

    fn traffic(&mut self, step: Step) {
        let scale = Time::from(plan::ticks(self.moving_time));
        let ticks = scale * (Time::from(step.amount % 32) + 1) / 16;
        self.stage.world().advance(ticks);
        let (stepped, followed) = (self.core.step(), self.core.look());
        if stepped || followed {
            self.enforce();
        }
        self.watch();
    }

    /// As many connections in a row are refused as have a backend kept out, where that is looked at.
    fn refuse(&mut self, id: ServiceId, address: SocketAddr) {
        let placed = self.core.layout().placed(id);
        if let Some((_, member)) = placed.and_then(|placed| placed.member(address)) {
            let counters = member.backend.counters;
            let world = self.stage.world();
            let times = u64::from(Passive::ON.refusals);
            for sign in [Sign::Refused, Sign::Streak] {
                world.memory.tables.add_sign(counters, sign, times);
            }
        }
        self.watch();
    }

    /// The agent looks at what packets show.
    fn watch(&mut self) {
        self.stage.world().watching = true;
        if self.core.watches() && self.core.watch() {
            self.enforce();
        }
        self.stage.world().watching = false;
    }

    fn flood(&mut self, service: usize, step: Step, sent: &[Sent]) {
        let strangers = 4 * u64::from(step.amount);
        self.stage.world().flood(service, strangers, sent);
    }

    /// The backend that a step is about, if there is any.
    fn backend(&self, service: usize, step: Step) -> Option<SocketAddr> {
        let backends = &self.wanted(service)?.backends;
        let backend = backends.get(usize::from(step.choice) % backends.len().max(1))?;
        Some(backend.address)
    }

    fn add_service(&mut self, service: usize) {
        let number = self.number(service);
        self.stage.world().offers[service].killed.clear();
        self.servers.retain(|&(of, _), _| of != service);
        let whole = populated(&scenario::services()[number], number, self.moving_time);
        self.change(Change::AddService(whole));
    }

    /// A service's number among all that a scenario may have.
    fn number(&self, service: usize) -> usize {
        let all = scenario::services();
        all.iter()
            .position(|s| s.id == self.services[service].id)
            .unwrap()
    }

    fn edit_pool(&mut self, service: usize, step: Step) {
        let id = self.services[service].id;
        if step.kind == Kind::AddBackend {
            let at = scenario::address(
                self.number(service),
                usize::from(step.choice) % scenario::ADDRESSES,
            );
            if self
                .wanted(service)
                .is_some_and(|service| service.backend(at).is_none())
            {
                // The agent tells nothing of its past.
                let killed = self.stage.world().offers[service].killed.contains(&at.ip());
                self.servers.entry((service, at)).or_default().down = None;
                let weight = u16::from(step.amount % 4);
                let backend = scenario::backend(&self.services[service], at, weight);
                self.change(Change::AddBackend(id, backend));
                // It has to pass a check first, where others take flows.
                self.unchecked |= step.amount % 16 == 8;
                if !self.unchecked && self.tell(service, at, !killed, killed) {
                    self.enforce();
                }
            }
            return;
        }
        let Some(address) = self.backend(service, step) else {
            return;
        };
        let (mut weight, mut admin, mut max_connections, mut tier) = (None, None, None, None);
        match step.kind {
            Kind::RemoveBackend => return self.change(Change::RemoveBackend(id, address)),
            Kind::Weight => weight = Some(u16::from(step.amount % 5)),
            Kind::Drain if step.choice.is_multiple_of(4) => admin = Some(Admin::Maintenance),
            Kind::Drain => admin = Some(Admin::Draining),
            Kind::Undrain => admin = Some(Admin::Active),
            Kind::Tier => tier = Some(step.amount % 3),
            _ => max_connections = Some(Some(u32::from(step.amount)).filter(|limit| limit % 4 > 0)),
        }
        self.unchecked |= admin.is_some() && self.is_maintained(service, address);
        self.stage.world().offers[service].by_connection |= max_connections.flatten().is_some();
        self.change(Change::EditBackend {
            id,
            address,
            weight,
            admin,
            max_connections,
            rated: Default::default(),
            tier,
        });
    }

    fn health(&mut self, service: usize, step: Step) {
        let Some(address) = self.backend(service, step) else {
            return;
        };
        let killed = self
            .servers
            .get(&(service, address))
            .is_some_and(|s| s.killed);
        if step.kind == Kind::FalseAlarm && step.amount % 2 == 1 {
            return self.alarm_amid(service, address, step);
        }
        let follows = match step.kind {
            Kind::Down => self.tell(service, address, false, false),
            Kind::Up => !killed && self.tell(service, address, true, false),
            Kind::FalseAlarm => {
                let down = self.tell(service, address, false, false);
                self.stage.world().moment();
                !killed && self.tell(service, address, true, false) || down
            }
            Kind::Die => {
                self.kill(service, address, true);
                self.tell(service, address, false, step.amount.is_multiple_of(2))
            }
            Kind::Revive => {
                self.kill(service, address, false);
                self.tell(service, address, true, false)
            }
            _ => {
                self.kill(service, address, true);
                let down = self.tell(service, address, false, true);
                (0..4).for_each(|_| self.stage.world().moment());
                self.kill(service, address, false);
                self.tell(service, address, true, false) || down
            }
        };
        // A plan that failed may have taken what it did not finish with it.
        if follows {
            self.enforce();
        }
    }

    /// Two false alarms, of which the second comes while the rings follow the first.
    fn alarm_amid(&mut self, service: usize, first: SocketAddr, step: Step) {
        let next = Step {
            choice: step.choice.wrapping_add(1),
            ..step
        };
        let second = self.backend(service, next);
        self.tell(service, first, false, false);
        match second {
            Some(second) => {
                let after = u64::from(step.seed) % 32;
                self.enforce_amid_failure(service, second, after);
            }
            None => self.enforce(),
        }
        self.stage.world().moment();
        let alive = |simulation: &Self, address| {
            let server = simulation.servers.get(&(service, address));
            server.is_none_or(|server| !server.killed)
        };
        for address in [Some(first), second].into_iter().flatten() {
            if alive(self, address) {
                self.tell(service, address, true, false);
            }
        }
        self.enforce();
    }

    fn kill(&mut self, service: usize, address: SocketAddr, killed: bool) {
        self.servers.entry((service, address)).or_default().killed = killed;
        let mut world = self.stage.world();
        if killed {
            world.offers[service].killed.insert(address.ip());
            world.orphan(service, address.ip());
        } else {
            world.offers[service].killed.remove(&address.ip());
        }
    }

    fn age(&mut self) {
        if self.unchecked {
            self.check_all();
        }
        (0..self.services.len()).for_each(|service| self.forsake(service));
        (self.stage.world().offers.iter_mut()).for_each(|offer| offer.gap = true);
        if self.core.age() || !self.pending {
            self.enforce();
        }
    }

    fn edit_settings(&mut self, service: usize, step: Step) {
        let id = self.services[service].id;
        let mut settings = Settings::default();
        match step.kind {
            Kind::RingSize => settings.ring_size = Some([251, 1_021][usize::from(step.choice % 2)]),
            Kind::Scheduler => {
                let all = Scheduler::value_variants();
                let scheduler = all[usize::from(step.choice) % all.len()];
                settings.scheduler = Some(scheduler);
                if scheduler.takes_from_sequence() {
                    settings.source_routes = Some(SourceRoutes::default());
                    settings.subsets = self.in_subsets(service, |_| Vec::new());
                }
            }
            Kind::FlowState if step.choice.is_multiple_of(2) => {
                settings.flow_state = Some(FlowState::Auto)
            }
            Kind::FlowState => settings.flow_state = Some(FlowState::Always),
            Kind::MovingTime => settings.moving_time = Some(self.some_moving_time(step)),
            Kind::Persistence => {
                settings.persistence = Some(self.moving_time * u32::from(step.choice % 3) / 2);
            }
            Kind::Spill => {
                settings.spill_below = Some([0, 70, 100][usize::from(step.choice % 3)]);
                settings.failback = Some(self.some_failback(step));
            }
            Kind::Recovery => {
                let (window, hold) = (step.choice % 3, step.choice / 3 % 3);
                settings.slow_start = Some(SlowStart {
                    window: self.moving_time * u32::from(window) / 2,
                    from: step.amount % 100 + 1,
                });
                settings.flap_damping = Some(FlapDamping {
                    hold: Duration::from_secs(hold.into()),
                    most: Duration::from_secs(60),
                });
                // As far as it goes, and at once.
                let adaptive = Adaptive {
                    unsteady: 100,
                    interval: Duration::from_secs(1),
                    ..Adaptive::by([Signal::Latency])
                };
                settings.adaptive = Some((step.amount % 2 == 1).then_some(adaptive));
                settings.panic_below = Some([0, 50, 100][usize::from(step.amount % 3)]);
                let ejection = (self.moving_time / 2).max(Duration::from_secs(1));
                settings.passive = Some(Passive {
                    on: id.protocol == Protocol::Tcp && !step.amount.is_multiple_of(4),
                    max_ejected: [50, 100][usize::from(step.choice % 2)],
                    ejection,
                    longest: ejection * 4,
                    ..Passive::ON
                });
            }
            _ if step.choice.is_multiple_of(2) => settings.on_down = Some(OnDown::Keep),
            _ => settings.on_down = Some(OnDown::Resteer),
        }
        {
            let mut world = self.stage.world();
            if settings.persistence.is_some() {
                world.clients.forget_service(service);
            }
            let offer = &mut world.offers[service];
            offer.by_connection |= settings
                .scheduler
                .is_some_and(Scheduler::records_every_flow)
                || settings.persistence.is_some_and(|time| !time.is_zero());
            if let Some(time) = settings.moving_time {
                let least = offer.moving_time.min(Time::from(plan::ticks(time)));
                world.limit_moving_time(service, least);
            }
        }
        if settings.on_down == Some(OnDown::Resteer) {
            self.forsake_as(service, OnDown::Resteer, Duration::MAX);
        }
        self.change(Change::EditService(id, settings));
    }

    /// Other clients go to other subsets, or all to one.
    fn reroute(&mut self, service: usize, step: Step) {
        const SUBSETS: [&str; 3] = ["a", "b", "default"];
        let id = self.services[service].id;
        let mut world = self.stage.world();
        let clients = world.flows.len();
        let random = &mut world.random;
        let count = match step.choice % 4 {
            0 => 0,
            _ => 1 + random.index(4),
        };
        let route = |random: &mut Random| {
            let (number, length) = (random.index(clients), random.index(16));
            let subset = SUBSETS[random.index(SUBSETS.len())];
            (scenario::prefix(&id, number, length), subset.to_owned())
        };
        let routes = (0..count).map(|_| route(random)).collect();
        let regroups = random.once_in(2);
        let choices: Vec<usize> = (0..scenario::ADDRESSES).map(|_| random.index(6)).collect();
        drop(world);
        let mut settings = Settings {
            source_routes: Some(routes),
            ..Settings::default()
        };
        if regroups {
            settings.subsets = self.in_subsets(service, |n| scenario::subsets(choices[n]));
        }
        let scheduler = self.wanted(service).map(|service| service.scheduler);
        if scheduler.is_some_and(Scheduler::takes_from_sequence) {
            settings.scheduler = Some(Scheduler::Maglev);
        }
        self.change(Change::EditService(id, settings));
    }

    /// The subsets of each of a service's backends, in the order of these.
    fn in_subsets(
        &self,
        service: usize,
        subsets: impl Fn(usize) -> Vec<String>,
    ) -> BTreeMap<SocketAddr, Vec<String>> {
        let backends = self.wanted(service).into_iter().flat_map(|s| &s.backends);
        let backends = backends.enumerate();
        backends.map(|(n, b)| (b.address, subsets(n))).collect()
    }

    fn regroup(&mut self, service: usize, step: Step) {
        let scheduler = self.wanted(service).map(|service| service.scheduler);
        let Some(address) = self.backend(service, step) else {
            return;
        };
        if scheduler.is_some_and(Scheduler::takes_from_sequence) {
            return;
        }
        let subsets = scenario::subsets(step.amount.into());
        let settings = Settings {
            subsets: [(address, subsets)].into(),
            ..Settings::default()
        };
        self.change(Change::EditService(self.services[service].id, settings));
    }

    fn some_failback(&self, step: Step) -> Failback {
        match step.amount % 3 {
            0 => Failback::Automatic,
            1 => Failback::Manual,
            _ => Failback::After(self.moving_time / 2),
        }
    }

    fn some_moving_time(&self, step: Step) -> Duration {
        match step.choice % 8 {
            0 => Duration::ZERO,
            1..3 => self.moving_time / 2,
            3..5 => self.moving_time * 3,
            _ => self.moving_time,
        }
    }

    /// A change, of which flows of one packet tell at the last possible moment.
    fn promotion(&mut self, service: usize, step: Step) {
        let moving_time = self.stage.world().offers[service].moving_time;
        let kind = Kind::Weight;
        self.edit_pool(service, Step { kind, ..step });
        {
            let mut world = self.stage.world();
            world.advance(moving_time / 2);
            world.speak(moving_time.saturating_sub(2));
            world.advance(moving_time / 2 + 1);
        }
        self.sweep(&[]);
        self.stage.world().held_back = true;
        self.sweep(&[]);
    }

    /// A sweep of the flow tables, during which steps happen.
    fn sweep(&mut self, during: &[Step]) {
        // What cannot be read now is read by the next.
        let Ok(layout) = self.core.certain_layout() else {
            return;
        };
        let (now, agents) = (self.tick(), self.agents);
        let stage = self.stage.clone();
        let mut steps = during.iter().copied();
        let pause = Time::from(plan::ticks(self.moving_time)) / 8;
        let seen = spoil::seen(&layout, self.sabotage);
        let census = {
            let meanwhile = || {
                {
                    let mut world = stage.world();
                    let ticks = world.random.below(pause);
                    world.advance(ticks);
                }
                for step in steps.by_ref().take(2) {
                    self.step(within_sweep(step), &[]);
                }
            };
            let mut tables = Swept {
                stage: stage.clone(),
                meanwhile,
                quiet: false,
            };
            census::sweep(&seen, &mut tables, now)
        };
        let mut census = census.unwrap();
        for step in steps {
            self.step(within_sweep(step), &[]);
        }
        if let Some(sabotage) = self.sabotage {
            spoil::spoil(sabotage, &self.core, &layout, &mut census);
        }
        if self.agents != agents {
            // What it took off is found by the sweeps of the next.
            self.miscounted = true;
            return;
        }
        let rounds = match self.sabotage {
            Some(Sabotage::StaleCensusIsUsed) => 3,
            _ => 1,
        };
        for _ in 0..rounds {
            if rounds > 1 {
                spoil::pass_for_current(&mut self.core, &mut census);
            }
            let outcome = self.core.swept(census.clone());
            self.miscounted |= outcome.is_err();
            self.note(outcome);
        }
        self.check_counts();
    }

    /// Records and counts change together here, so that counts are right after every sweep that comes to
    /// its end.
    fn check_counts(&mut self) {
        let mut world = self.stage.world();
        let miscounts = world.miscounts();
        if miscounts.is_empty() || world.interleaved {
            self.miscounted = false;
        } else if !self.miscounted && self.sabotage.is_none() {
            let broken = format!("at {}: miscounted: {miscounts:?}", world.now);
            world.tally.broken.push(broken);
        }
    }
}

/// A step as it is done during a sweep: there is one at a time.
fn within_sweep(step: Step) -> Step {
    let kind = match step.kind {
        Kind::Sweep | Kind::SlowSweep | Kind::Promotion => Kind::Traffic,
        kind => kind,
    };
    Step { kind, ..step }
}
