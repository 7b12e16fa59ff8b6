//! Everything outside of the agent: the tables, the clock, the clients and their servers. Packets are
//! judged here: each has to reach whom its flow was promised.

use std::{
    cell::Cell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    steer,
    tables::{Descriptor, record_flag, service_flag},
    verdict::Verdict,
};
use lb_userspace::{
    dataplane::{Dataplane as _, DataplaneError, Operation, memory::MemoryDataplane},
    health::Event,
    model::{Protocol, ServiceId},
    plan,
};
use tokio::sync::mpsc;

use crate::{
    clients::{self, Clients},
    flow::{Flow, Stage, Time},
    frame::{self, Sent, control},
    grace::GraceWatch,
    parts,
    random::Random,
    sabotage::{Bent, Sabotage},
    scenario,
    sight::Sight,
    tally::Tally,
};

/// A service as clients know it.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Where it is.
    pub id: ServiceId,
    /// The shortest moving time that may be in force, in ticks.
    pub moving_time: Time,
    /// Whether its packets carry connection ids.
    pub quic: bool,
    /// Whether a new flow's backend may be chosen by connection.
    pub by_connection: bool,
    /// A backend has died, and the rings may not have followed.
    pub gap: bool,
    /// Whether it is there at all.
    pub open: bool,
    /// How long clients pause where nothing is promised.
    pub pause: Time,
    /// Servers whose process has ended.
    pub killed: BTreeSet<IpAddr>,
    /// Servers that the agent may rightly take for dead.
    pub forsaken: BTreeSet<IpAddr>,
}

/// See above.
pub struct World {
    /// The tables.
    pub memory: MemoryDataplane,
    /// What is random at present.
    pub random: Random,
    /// The time.
    pub now: Time,
    start: u32,
    /// The services, as many as the scenario has.
    pub offers: Vec<Offer>,
    /// Every client's place.
    pub flows: Vec<Flow>,
    due: BinaryHeap<Reverse<(Time, usize)>>,
    /// Addresses that somebody has sent from.
    pub used: BTreeSet<SocketAddr>,
    /// What is switched off.
    pub sabotage: Option<Sabotage>,
    /// What has been seen.
    pub tally: Tally,
    /// What packets in flight may still look at.
    pub grace: GraceWatch,
    /// Who has to come back to whom.
    pub clients: Clients,
    /// Clients speak between the next sweep's two reads.
    pub held_back: bool,
    /// Operations that a sabotage has kept for later.
    pub withheld: Vec<Operation>,
    /// Two packets of a flow may be on two CPUs at once.
    pub interleaved: bool,
    /// The agent looks at what packets show, and does what it comes to.
    pub watching: bool,
    /// The agent is killed by the next operation that fails.
    pub doomed: bool,
    /// It was, and no other has taken its place yet.
    pub dead: bool,
    /// Services that lead a client to the same backend at every moment.
    pub together: Vec<ServiceId>,
    /// What checks say once so many more operations have been carried out.
    pub news: Option<(u64, mpsc::Sender<Event>, Event)>,
}

impl World {
    /// One more operation is carried out: it may be time that checks say something.
    pub fn tell_in_time(&mut self) {
        match self.news.take() {
            Some((0, checks, event)) => checks.try_send(event).unwrap(),
            Some((left, checks, event)) => self.news = Some((left - 1, checks, event)),
            None => {}
        }
    }

    /// A world without traffic so far, with clients for each of `offers` in turn.
    pub fn new(
        memory: MemoryDataplane,
        offers: Vec<Offer>,
        flows: usize,
        start: u32,
        sabotage: Option<Sabotage>,
    ) -> Self {
        let mut world = Self {
            memory,
            random: Random(1),
            now: 0,
            start,
            offers,
            flows: Vec::new(),
            due: BinaryHeap::new(),
            used: BTreeSet::new(),
            sabotage,
            tally: Tally::default(),
            grace: GraceWatch::default(),
            clients: Clients::default(),
            held_back: false,
            withheld: Vec::new(),
            interleaved: false,
            watching: false,
            doomed: false,
            dead: false,
            together: Vec::new(),
            news: None,
        };
        world.set_clock();
        for number in 0..flows {
            let service = number % world.offers.len();
            world.flows.push(Flow {
                service,
                client: client(&world.offers[service].id, number, 1_024),
                stage: Stage::Idle,
                backend: None,
                loose: false,
                homeless: false,
                last: 0,
                due: 0,
                limit: 0,
            });
            let soon = world.random.below(world.offers[service].moving_time.max(1));
            world.schedule(number, soon);
        }
        world
    }

    fn set_clock(&self) {
        let tick = self.start.wrapping_add(self.now as u32);
        self.memory.tables.time.set(tick);
    }

    fn schedule(&mut self, number: usize, after: Time) {
        let due = self.now + after.max(1);
        self.flows[number].due = due;
        self.due.push(Reverse((due, number)));
    }

    /// Lets time pass, and clients send what is due.
    pub fn advance(&mut self, ticks: Time) {
        let end = self.now + ticks;
        while let Some(&Reverse((due, number))) = self.due.peek()
            && due <= end
        {
            self.due.pop();
            if self.flows[number].due == due {
                self.now = self.now.max(due);
                self.set_clock();
                self.act(number);
            }
        }
        self.now = end;
        self.set_clock();
    }

    /// What happens between two operations: a little time passes, and some clients send.
    pub fn moment(&mut self) {
        let ticks = self.random.below(3);
        self.advance(ticks);
        for _ in 0..self.random.below(4) {
            let number = self.random.index(self.flows.len());
            self.act(number);
        }
    }

    /// Every client without a connection begins one.
    pub fn rush(&mut self) {
        for number in 0..self.flows.len() {
            if self.flows[number].stage == Stage::Idle {
                self.act(number);
            }
        }
    }

    /// Every client with a connection sends at once, and not again for so long.
    pub fn speak(&mut self, pause: Time) {
        for number in 0..self.flows.len() {
            if self.flows[number].stage == Stage::Idle {
                continue;
            }
            self.act(number);
            if pause > 0 {
                self.schedule(number, pause);
            }
        }
    }

    /// One client does what comes next.
    fn act(&mut self, number: usize) {
        if self.flows[number].is_forgotten(self.now) {
            self.flows[number].end();
        }
        let offer = &self.offers[self.flows[number].service];
        let udp = offer.id.protocol == Protocol::Udp;
        match self.flows[number].stage {
            Stage::Idle => self.begin(number, !udp || offer.quic),
            Stage::Opening if self.random.once_in(8) => self.begin(number, true),
            Stage::Opening if self.random.once_in(16) => self.flows[number].end(),
            Stage::Opening | Stage::Established | Stage::Attacked => self.proceed(number, udp),
            Stage::Closing(left) | Stage::Orphaned(left) => self.wind_up(number, left),
        }
        self.plan_next(number);
    }

    /// The first packet of a connection, or the same once more.
    fn begin(&mut self, number: usize, has_connections: bool) {
        let flow = &self.flows[number];
        let mut moved = false;
        if flow.stage == Stage::Idle {
            if !self.offers[flow.service].open {
                return;
            }
            self.tally.flows += 1;
            if self.random.once_in(2) {
                moved = true;
                self.move_client(number);
            }
        }
        let reached = self.open(number, moved);
        let alive = self.alive(number, reached);
        let flow = &mut self.flows[number];
        flow.backend = alive;
        flow.stage = match alive {
            None => Stage::Idle,
            Some(_) if has_connections => Stage::Opening,
            Some(_) => Stage::Established,
        };
    }

    /// A client's address changes, to one that no flow of it was recorded by.
    fn move_client(&mut self, number: usize) {
        let client = &mut self.flows[number].client;
        loop {
            let port = 1_024 + self.random.below(60_000) as u16;
            client.set_port(port);
            if self.used.insert(*client) {
                return;
            }
        }
    }

    /// Sends a packet that may open a connection, from another port than the last or not; it has to reach
    /// whom its client was with.
    fn open(&mut self, number: usize, moved: bool) -> Option<IpAddr> {
        let flow = self.flows[number].clone();
        let id = self.offers[flow.service].id;
        let tables = &self.memory.tables;
        let descriptor = clients::in_force(tables, id).unwrap_or_default();
        let whole = descriptor.flags & service_flag::MOVING != 0;
        let udp = id.protocol == Protocol::Udp;
        let quic = self.offers[flow.service].quic;
        // A connection that was never closed and is opened again is taken for the same. Of UDP, nothing
        // says that it is new: it may be older than what is set. That of QUIC may name its server.
        let tells = flow.stage == Stage::Idle
            && descriptor.persistence > 0
            && moved
            && !(quic || (whole && udp));
        let expected = self.clients.expected(&flow, &descriptor, tables, self.now);
        let overflows = self.tally.overflows.get();
        let reached = self.send(number, Sent::Opening).ok();
        let tables = &self.memory.tables;
        let certain = self.tally.overflows.get() == overflows;
        let sure = reached.filter(|_| certain);
        if let (false, Some(server)) = (udp, sure)
            && !clients::is_taking(tables, &descriptor, server)
        {
            let told = format!(
                "at {}: {flow:?} began with {server}, who takes none",
                self.now
            );
            self.tally.broken.push(told);
        }
        if let (true, false, Some(server)) = (moved, udp, sure)
            && !clients::is_for(tables, &descriptor, flow.client.ip(), server)
        {
            let told = format!(
                "at {}: {flow:?} began with {server}, who is of another subset",
                self.now
            );
            self.tally.broken.push(told);
        }
        if !tells {
            self.clients.went_on(&flow, sure, udp);
            return reached;
        }
        self.tally.returned += u64::from(expected.is_some());
        if certain && expected.is_some() && reached != expected {
            let strayed = format!(
                "at {}: {flow:?} came to {reached:?}, not {expected:?}",
                self.now
            );
            self.tally.broken.push(strayed);
        }
        self.clients.began(&flow, &descriptor, sure, self.now);
        reached
    }

    /// A flow's backend as far as anything can be promised of it.
    fn alive(&self, number: usize, reached: Option<IpAddr>) -> Option<IpAddr> {
        let offer = &self.offers[self.flows[number].service];
        let dead =
            |server: &IpAddr| offer.killed.contains(server) || offer.forsaken.contains(server);
        reached.filter(|server| !dead(server))
    }

    fn proceed(&mut self, number: usize, udp: bool) {
        let stage = self.flows[number].stage;
        let (bits, next) = match self.random.below(64) {
            // It ends by silence.
            0..3 if stage != Stage::Opening => return self.flows[number].end(),
            _ if udp => (0, Stage::Established),
            3..6 => (control::FIN | control::ACK, Stage::Closing(2)),
            6..8 => (control::RST, Stage::Idle),
            8 => (control::RST, Stage::Attacked),
            _ => (control::ACK, Stage::Established),
        };
        self.check(number, bits);
        let flow = &mut self.flows[number];
        if flow.backend.is_some() {
            flow.stage = next;
        }
        if next == Stage::Idle {
            flow.end();
        }
    }

    fn wind_up(&mut self, number: usize, left: u8) {
        let orphan = matches!(self.flows[number].stage, Stage::Orphaned(_));
        if orphan {
            // Whoever gets it answers with a RST.
            let _ = self.send(number, Sent::Segment(control::ACK));
            let flow = self.flows[number].clone();
            self.clients.forget(&flow);
        } else {
            self.check(number, control::ACK);
        }
        let flow = &mut self.flows[number];
        match left - 1 {
            _ if flow.stage == Stage::Idle => {}
            0 => flow.end(),
            left if orphan => flow.stage = Stage::Orphaned(left),
            left => flow.stage = Stage::Closing(left),
        }
    }

    /// Sends a packet that has to reach the flow's backend.
    fn check(&mut self, number: usize, bits: u8) {
        let sent = match self.flows[number].backend {
            Some(server) if self.offers[self.flows[number].service].quic => Sent::Named(server),
            _ => Sent::Segment(bits),
        };
        if matches!(sent, Sent::Named(_)) && self.random.once_in(4) {
            self.move_client(number);
        }
        let before = self.flows[number].clone();
        let uncertain = |tally: &Tally| tally.overflows.get() + tally.unpromoted.get();
        let misses = uncertain(&self.tally);
        let reached = self.send(number, sent);
        // A client is there for certain once a flow of it has been established.
        let sure = reached.ok().filter(|_| uncertain(&self.tally) == misses);
        // A RST establishes none; of what is no TCP, nothing is one.
        let tcp = self.offers[before.service].id.protocol == Protocol::Tcp;
        let establishes = !(tcp && bits & control::RST != 0);
        self.clients.went_on(&before, sure, establishes);
        if before.loose {
            self.flows[number].backend = self.alive(number, reached.ok());
        } else if reached.ok() != before.backend {
            let id = self.offers[before.service].id;
            let told = Sight::of(&self.memory.tables, id, before.client)
                .map_or_else(String::new, |sight| sight.to_string());
            let broken = format!("at {}: {before:?} came to {reached:?}; {told}", self.now);
            self.flows[number].end();
            self.tally.broken.push(broken);
        }
        if self.flows[number].backend.is_none() {
            self.flows[number].end();
        }
    }

    /// Sends a flow's packet, and notes it.
    fn send(&mut self, number: usize, sent: Sent) -> Result<IpAddr, Verdict> {
        let overflows = self.tally.overflows.get();
        let reached = self.pass(number, sent);
        let flow = &self.flows[number];
        let offer = &self.offers[flow.service];
        let overflowed = self.tally.overflows.get() > overflows;
        self.tally.packets += 1;
        // Without connections to tell new flows by, one that cannot be recorded stays new where a
        // scheduler chooses, between a death and the ring that follows it, and while nobody lives that its
        // slot names, as until all have been told of who are back together.
        let stray = self.is_stray(number);
        let unsure = offer.gap || offer.by_connection || stray;
        let connectionless = offer.id.protocol == Protocol::Udp && !offer.quic;
        // Nor is anything promised to one that had to be placed anew just then, or still has nobody to
        // stay with.
        let again = self.flows[number].loose && (offer.gap || stray);
        let loose = overflowed && (unsure && connectionless || again);
        let limit = offer.moving_time;
        let flow = &mut self.flows[number];
        (flow.last, flow.limit, flow.loose) = (self.now, limit, loose);
        flow.homeless = overflowed;
        reached
    }

    /// Has a packet pass the tables, perhaps while its twin does on another CPU.
    fn pass(&mut self, number: usize, sent: Sent) -> Result<IpAddr, Verdict> {
        let meanwhile = (self.interleaved && self.random.once_in(4)).then(|| self.random.below(5));
        let flow = &self.flows[number];
        let id = self.offers[flow.service].id;
        let tables = &self.memory.tables;
        let bent = || Bent::new(tables, self.sabotage, &self.tally);
        let Some(accesses) = meanwhile else {
            return frame::send(&bent(), flow.client, id, sent);
        };
        // Where a record is given up, each CPU may choose for itself.
        let fresh = Sight::of(tables, id, flow.client).is_some_and(|sight| !sight.is_known());
        let stateless = self.offers[flow.service].moving_time == 0;
        let promised = sent != Sent::Opening && flow.backend.is_some() && !flow.loose;
        let overflows = self.tally.overflows.get();
        let twin = Cell::new(None);
        let act = || twin.set(Some(frame::send(&bent(), flow.client, id, sent)));
        let reached = frame::send(&bent().meanwhile(accesses, &act), flow.client, id, sent);
        let certain = self.tally.overflows.get() == overflows && !stateless;
        self.tally.packets += u64::from(twin.get().is_some());
        // The first of them may have been the last that a backend takes.
        if let (Some(Ok(other)), Ok(one)) = (twin.get(), reached)
            && other != one
            && certain
            && (fresh || promised)
        {
            let parted = format!("at {}: two of {flow:?} at once: {one}, {other}", self.now);
            self.tally.broken.push(parted);
        }
        reached
    }

    /// When a client sends again: anything from at once to the last moment.
    fn plan_next(&mut self, number: usize) {
        let flow = &self.flows[number];
        let idle = flow.stage == Stage::Idle || flow.limit == 0;
        let most = match idle {
            true => self.offers[flow.service].pause,
            false => flow.patience().max(2),
        };
        let opening = flow.stage == Stage::Opening && !idle;
        let after = match self.random.below(8) {
            1.. if opening => self.random.below(3) + 1,
            0 => self.random.below(3) + 1,
            1 => most - 1,
            2..4 => self.random.below((most / 8).max(1)) + 1,
            _ => self.random.below(most - 1) + 1,
        };
        self.schedule(number, after);
    }

    /// A server's process ends, or what amounts to it: nothing is promised to its flows any more.
    pub fn orphan(&mut self, service: usize, backend: IpAddr) {
        for number in 0..self.flows.len() {
            let flow = &self.flows[number];
            if flow.service == service && flow.backend == Some(backend) {
                let strays = self.random.below(3) as u8;
                self.flows[number].orphan(strays);
                let soon = self.random.below(1_000);
                self.schedule(number, soon);
            }
        }
    }

    /// Carries an operation out, and knows what it means for what is promised.
    pub fn carry_out(&mut self, operation: &Operation) -> Result<(), DataplaneError> {
        let before = self.in_force();
        self.memory.execute(std::slice::from_ref(operation))?;
        for (before, now) in before.iter().zip(&self.in_force()) {
            if moves_twice(before, now) {
                self.loosen_strays(&now.0);
            }
            if before.0.persistence != now.0.persistence {
                self.forget_clients(&now.0);
            }
        }
        if matches!(operation, Operation::Member(_, member) if member.backend == 0) {
            self.clients.forget_all();
        }
        self.grace.carried_out(operation, &self.memory.tables);
        self.compare_services();
        self.tally.operations += 1;
        Ok(())
    }

    /// Counts of flows in progress that are not what the records say, by the index of the counters: what
    /// is counted, and what should be.
    pub fn miscounts(&self) -> BTreeMap<u32, (i32, i32)> {
        let tables = &self.memory.tables;
        let services: Vec<Descriptor> = self.in_force().into_iter().map(|(d, _)| d).collect();
        let flows = tables.flows.borrow();
        let members = services.iter().flat_map(|d| {
            (0..d.members_len).filter_map(|id| steer::candidate(tables, d, id.into()))
        });
        let mut counts: BTreeMap<u32, (i32, i32)> = members
            .map(|member| {
                let counters = member.backend.counters;
                let load = flows.loads.get(&counters).copied().unwrap_or(0);
                (counters, (load, 0))
            })
            .collect();
        let (established, half_open) = (&flows.established.records, &flows.half_open.records);
        for (key, record) in established.iter().chain(half_open) {
            let service = services.get(key.service as usize);
            let named = service.and_then(|d| steer::candidate(tables, d, record.member.into()));
            if let Some(named) = named
                && named.member.generation == record.generation
                && record.flags & record_flag::COUNTED != 0
                && let Some((_, truth)) = counts.get_mut(&named.backend.counters)
            {
                *truth += 1;
            }
        }
        counts.retain(|_, (load, truth)| load != truth);
        counts
    }

    /// Those that were forgotten by the time before are not remembered by a longer one.
    fn forget_clients(&mut self, service: &Descriptor) {
        let mut offers = self.offers.iter();
        if let Some(number) = offers.position(|offer| service.is_at(&scenario::endpoint(offer.id)))
        {
            self.clients.forget_service(number);
        }
    }

    /// Every service, and which list has its routes.
    fn in_force(&self) -> Vec<(Descriptor, u32)> {
        let tables = &self.memory.tables;
        let half = plan::half(tables.control.generation);
        let descriptors = tables
            .service_entries
            .iter()
            .map(|entry| entry.halves[half]);
        let routed = |d: Descriptor| (d, parts::guard(tables, &d).routes);
        descriptors.map(routed).collect()
    }

    /// A flow that finds no room in the tables, and whose backend by the ring before a move of the
    /// whole service is dead, stays with the owner of its slot: until the whole moves once more.
    fn loosen_strays(&mut self, service: &Descriptor) {
        for number in 0..self.flows.len() {
            let id = self.offers[self.flows[number].service].id;
            if self.flows[number].homeless
                && service.is_at(&scenario::endpoint(id))
                && self.is_stray(number)
            {
                self.flows[number].loose = true;
            }
        }
    }

    /// Whether a flow is of nobody that the tables name.
    fn is_stray(&self, number: usize) -> bool {
        let flow = &self.flows[number];
        let id = self.offers[flow.service].id;
        let sight = Sight::of(&self.memory.tables, id, flow.client);
        sight.is_some_and(|sight| sight.is_stray())
    }

    /// A service goes, or comes anew.
    pub fn set_open(&mut self, service: usize, open: bool) {
        self.offers[service].open = open;
        self.clients.forget_service(service);
        for flow in self.flows.iter_mut().filter(|flow| flow.service == service) {
            flow.end();
        }
    }

    /// The moving time in force is, or may be, another.
    pub fn limit_moving_time(&mut self, service: usize, ticks: Time) {
        let offer = &mut self.offers[service];
        offer.moving_time = ticks;
        for flow in self.flows.iter_mut().filter(|flow| flow.service == service) {
            flow.limit = flow.limit.min(ticks);
        }
    }
}

/// Whether a service that moves as a whole has begun to do so anew.
fn moves_twice(before: &(Descriptor, u32), now: &(Descriptor, u32)) -> bool {
    let settings = |(d, routes): &(Descriptor, u32)| {
        let always = d.flags & service_flag::ALWAYS;
        (
            d.ring_size,
            d.scheduler,
            d.fields(),
            d.persistence > 0,
            always,
            *routes,
        )
    };
    before.0.flags & now.0.flags & service_flag::MOVING != 0 && settings(before) != settings(now)
}

/// A client's address in the family of a service.
pub fn client(id: &ServiceId, number: usize, port: u16) -> SocketAddr {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    match id.vip.ip() {
        IpAddr::V4(_) => SocketAddr::from(([192, high, middle, low], port)),
        IpAddr::V6(_) => {
            let [high, middle, low] = [high, middle, low].map(u16::from);
            SocketAddr::from(([0x2001, 0xdb8, 1, 0, 0, high, middle, low], port))
        }
    }
}
