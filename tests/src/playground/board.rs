//! What is known of the playground: requests' outcomes and the agent's answers in, a [`View`] out.
//! Pure: the time, since the playground began, is an argument, and nothing is drawn or done.

use std::{collections::VecDeque, time::Duration};

use lb_userspace::{
    api::dto::{Backend, Condition, Service},
    model::Admin,
};

use super::{
    BACKENDS, Offer,
    changes::{self, Change},
    hints::Hint,
    load::Attempt,
};
use crate::topology::backend_name;

/// Shares and rates are of the requests that ended within so long.
pub const WINDOW: Duration = Duration::from_secs(5);
/// One backend's same change in several services is one event if no longer apart.
const SAME_EVENT: Duration = Duration::from_secs(2);
/// Events kept.
const EVENTS: usize = 50;

/// All that is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Since the playground began.
    pub up_for: Duration,
    /// Whether the agent answers.
    pub agent: bool,
    /// The services, in their order.
    pub services: Vec<ServiceView>,
    /// What happened, newest first.
    pub events: Vec<EventView>,
    /// What to try.
    pub hints: Vec<Hint>,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// As `nat v4`.
    pub label: &'static str,
    /// As `10.0.0.1:80`.
    pub vip: String,
    /// Its servers, in their order.
    pub servers: Vec<ServerView>,
    /// Answered requests per second, within the window.
    pub per_second: f64,
    /// Failed requests, within the window.
    pub failing: usize,
    /// Failed requests, since the playground began.
    pub failed: u64,
}

/// A server of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerView {
    /// What the agent said last.
    pub standing: Standing,
    /// Its weight.
    pub weight: u16,
    /// Its part of the answered requests, 0 to 1, within the window.
    pub share: f64,
}

/// What a server is to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Passing its checks.
    Up,
    /// Not checked yet.
    Starting,
    /// Passing its checks, and taking no new connections.
    Draining,
    /// Failing its checks.
    Down,
    /// Not in its pool.
    Absent,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventView {
    /// When, since the playground began.
    pub at: Duration,
    /// In words.
    pub text: String,
    /// Whether it is bad news.
    pub bad: bool,
}

#[derive(Debug)]
struct Tally {
    offer: Offer,
    servers: Vec<Server>,
    /// When each ended, and the server that answered.
    recent: VecDeque<(Duration, Option<usize>)>,
    failed: u64,
}

#[derive(Debug, Clone)]
struct Server {
    standing: Standing,
    weight: u16,
    answered: u64,
}

#[derive(Debug)]
struct Event {
    at: Duration,
    /// What joins changes to one event.
    about: String,
    services: Vec<String>,
    why: Option<String>,
    bad: bool,
}

/// What is known.
#[derive(Debug)]
pub struct Board {
    tallies: Vec<Tally>,
    hints: Vec<Hint>,
    agent: bool,
    events: VecDeque<Event>,
    last: Option<Vec<Service>>,
}

impl Board {
    /// Of a playground that begins now.
    pub fn new(offers: &[Offer], hints: Vec<Hint>) -> Self {
        let server = Server {
            standing: Standing::Starting,
            weight: 1,
            answered: 0,
        };
        let tally = |offer: &Offer| Tally {
            offer: offer.clone(),
            servers: vec![server.clone(); offer.pool.len()],
            recent: VecDeque::new(),
            failed: 0,
        };
        Self {
            tallies: offers.iter().map(tally).collect(),
            hints,
            agent: true,
            events: VecDeque::new(),
            last: None,
        }
    }

    /// A request has ended. One that an unknown server answered has failed.
    pub fn attempt(&mut self, now: Duration, attempt: &Attempt) {
        let Some(tally) = self.tallies.get_mut(attempt.service) else {
            return;
        };
        let server = attempt.outcome.as_ref().ok().and_then(|name| number(name));
        match server.and_then(|index| tally.servers.get_mut(index)) {
            Some(server) => server.answered += 1,
            None => tally.failed += 1,
        }
        tally.recent.push_back((now, server));
        while tally.recent.front().is_some_and(|(at, _)| is_old(*at, now)) {
            tally.recent.pop_front();
        }
    }

    /// The agent has answered what its services are.
    pub fn services(&mut self, now: Duration, services: Vec<Service>) {
        if !self.agent {
            self.agent = true;
            self.said(
                now,
                "lbd answers: it has taken up the maps and links".to_owned(),
                false,
            );
        }
        for tally in &mut self.tallies {
            tally.stand(&services);
        }
        let before = self.last.take();
        for change in changes::between(before.as_ref().unwrap_or(&services), &services) {
            self.changed(now, change);
        }
        self.last = Some(services);
    }

    /// The agent has not answered.
    pub fn silent(&mut self, now: Duration) {
        if self.agent {
            self.agent = false;
            self.said(
                now,
                "lbd does not answer: its program in the kernel goes on".to_owned(),
                true,
            );
        }
    }

    /// Something was done.
    pub fn said(&mut self, now: Duration, text: String, bad: bool) {
        self.push(Event {
            at: now,
            about: text,
            services: Vec::new(),
            why: None,
            bad,
        });
    }

    /// Whether server `n`, counted from 1, takes no new connections of some service.
    pub fn drains(&self, n: u8) -> bool {
        let mut services = self.last.iter().flatten();
        let address = |tally: &Tally| {
            tally
                .offer
                .pool
                .get(usize::from(n).wrapping_sub(1))
                .copied()
        };
        let addresses: Vec<_> = self.tallies.iter().filter_map(address).collect();
        services.any(|service| {
            let mut of_server = service
                .backends
                .iter()
                .filter(|b| addresses.contains(&b.address));
            of_server.any(|backend| backend.state == Admin::Draining)
        })
    }

    /// The first service with a failed request, or with a server that has not answered any.
    pub fn lacking(&self) -> Option<String> {
        self.tallies.iter().find_map(|tally| {
            let name = format!("{} {}", tally.offer.label, tally.offer.vip);
            let silent = tally.servers.iter().position(|server| server.answered == 0);
            match (tally.failed, silent) {
                (0, None) => None,
                (0, Some(index)) => Some(format!("{name} did not reach backend{}", index + 1)),
                (failed, _) => Some(format!("{failed} requests to {name} failed")),
            }
        })
    }

    /// What is to be shown.
    pub fn view(&self, now: Duration) -> View {
        View {
            up_for: now,
            agent: self.agent,
            services: self.tallies.iter().map(|tally| tally.view(now)).collect(),
            events: self.events.iter().map(|event| self.event(event)).collect(),
            hints: self.hints.clone(),
        }
    }

    fn changed(&mut self, now: Duration, change: Change) {
        let service = self
            .tallies
            .iter()
            .find(|tally| tally.offer.vip == change.vip);
        let service = service.map_or(change.vip.to_string(), |tally| tally.offer.label.to_owned());
        let about = format!("{} {}", self.server_name(change.backend), change.what);
        let same = |event: &&mut Event| event.about == about && now - event.at <= SAME_EVENT;
        if let Some(event) = self.events.iter_mut().find(same) {
            if !event.services.contains(&service) {
                event.services.push(service);
            }
            return;
        }
        self.push(Event {
            at: now,
            about,
            services: vec![service],
            bad: change.what == "is down",
            why: change.why,
        });
    }

    fn server_name(&self, address: std::net::IpAddr) -> String {
        let pools = self.tallies.iter().map(|tally| &tally.offer.pool);
        let place = |pool: &Vec<std::net::SocketAddr>| pool.iter().position(|b| b.ip() == address);
        let index = pools.map(place).find_map(|place| place);
        let name = index
            .and_then(|index| u8::try_from(index + 1).ok())
            .map(backend_name);
        name.unwrap_or_else(|| format!("backend {address}"))
    }

    fn push(&mut self, event: Event) {
        self.events.push_front(event);
        self.events.truncate(EVENTS);
    }

    fn event(&self, event: &Event) -> EventView {
        let mut text = event.about.clone();
        if event.services.len() == self.tallies.len() {
            text += " in every service";
        } else if !event.services.is_empty() {
            text += " in ";
            text += &event.services.join(", ");
        }
        if let Some(why) = &event.why {
            text += ": ";
            text += why;
        }
        EventView {
            at: event.at,
            text,
            bad: event.bad,
        }
    }
}

impl Tally {
    /// Takes up what the agent says of its servers.
    fn stand(&mut self, services: &[Service]) {
        let service = services
            .iter()
            .find(|service| service.id.vip == self.offer.vip);
        let backends = service.map_or(&[][..], |service| &service.backends);
        for (server, address) in self.servers.iter_mut().zip(&self.offer.pool) {
            let backend = backends.iter().find(|backend| backend.address == *address);
            server.standing = backend.map_or(Standing::Absent, standing);
            server.weight = backend.map_or(server.weight, |backend| backend.weight);
        }
    }

    fn view(&self, now: Duration) -> ServiceView {
        let recent = self.recent.iter().filter(|(at, _)| !is_old(*at, now));
        let outcomes: Vec<_> = recent.map(|(_, server)| *server).collect();
        let answered = outcomes.iter().flatten().count();
        let of = |index| {
            outcomes
                .iter()
                .flatten()
                .filter(|server| **server == index)
                .count()
        };
        let server = |(index, server): (usize, &Server)| ServerView {
            standing: server.standing,
            weight: server.weight,
            share: of(index) as f64 / answered.max(1) as f64,
        };
        ServiceView {
            label: self.offer.label,
            vip: self.offer.vip.to_string(),
            servers: self.servers.iter().enumerate().map(server).collect(),
            per_second: answered as f64 / now.min(WINDOW).as_secs_f64().max(1.0),
            failing: outcomes.len() - answered,
            failed: self.failed,
        }
    }
}

fn is_old(at: Duration, now: Duration) -> bool {
    now.saturating_sub(at) > WINDOW
}

fn standing(backend: &Backend) -> Standing {
    match (backend.condition, backend.state) {
        (Condition::Down, _) => Standing::Down,
        (_, Admin::Down) => Standing::Down,
        (_, Admin::Draining | Admin::Maintenance) => Standing::Draining,
        (Condition::Starting, _) => Standing::Starting,
        (Condition::Up, _) => Standing::Up,
    }
}

/// The place of the server called `name`.
fn number(name: &str) -> Option<usize> {
    (1..=BACKENDS).position(|n| backend_name(n) == name)
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
