//! The changes of a run, in the order and at the pace that a seed gives. Pure: it knows what each
//! change leaves behind, so that the next one makes sense, and never carries any out.
//!
//! Changes are drawn from a shuffled deck, so that even a short run has most kinds. A change is
//! made only where every service keeps [`MIN_USABLE`] backends that take new connections.
//!
//! While all slots of a service move at once, none moves by itself. So changes that do that come in
//! the second half of each stretch between two rests alone, for the others to be seen too.

use std::{
    fmt::{self, Display, Formatter},
    mem,
    time::Duration,
};

use clap::ValueEnum;
use fastrand::Rng;
use serde::Serialize;

mod fleet;

use fleet::Fleet;
pub use fleet::{Member, Pools};

/// Backends that every service can use at any time.
pub const MIN_USABLE: usize = 2;
/// What a revived backend is given until it counts as usable again.
const RECOVERY: Duration = Duration::from_secs(2);
/// For how long a health check is made to fail, in milliseconds.
const ALARM_MS: std::ops::Range<u64> = 1_500..3_000;
/// For how long a process is stopped, in milliseconds: with TCP's doubling retransmission timer no
/// connection is idle for more than twice that, which has to be less than the moving time.
const STALL_MS: std::ops::Range<u64> = 800..2_000;
/// From change to change within a burst, in milliseconds.
const BURST_MS: std::ops::Range<u64> = 10..60;
/// One change in so many begins a burst.
const BURST_EVERY: u32 = 6;
/// At this pace and slower, every change comes by itself: one a minute is one a minute.
const UNHURRIED: Duration = Duration::from_secs(20);
/// Further changes of a burst.
const BURST: std::ops::Range<u32> = 2..6;
/// So many changes are followed by a rest.
const REST_EVERY: usize = 50;
/// Pauses that a change waits for until it makes sense, before the plan ends without it.
const PATIENCE: usize = 20;
/// The heaviest weight given.
const MAX_WEIGHT: u16 = 8;
/// Ring sizes that a service is given in turn.
const RING_SIZES: [u32; 3] = [4_093, 16_381, 65_537];
/// Schedulers that a service is given in turn; the first is that of the start.
const SCHEDULERS: [&str; 8] = [
    "maglev",
    "source-hash",
    "three-tuple-hash",
    "round-robin",
    "weighted-round-robin",
    "least-connections",
    "weighted-least-connections",
    "power-of-two-choices",
];

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// A backend joins a service.
    Add,
    /// A backend leaves a service; its process lives on.
    Remove,
    /// A backend's share changes.
    Weight,
    /// A backend's process is killed.
    Kill,
    /// A killed backend's process is started again.
    Revive,
    /// The health check fails although the backend serves.
    FalseAlarm,
    /// A backend's process is stopped for a moment, and goes on.
    Stall,
    /// A backend takes no new connections from a service.
    Drain,
    /// A drained backend takes new ones again.
    Undrain,
    /// The agent is killed and started again.
    AgentRestart,
    /// A service's ring gets another size.
    RingSize,
    /// A service's new connections are given out otherwise.
    Scheduler,
}

impl Kind {
    /// All, each with its number in the deck.
    const DECK: [(Self, usize); 12] = [
        (Self::Add, 3),
        (Self::Remove, 3),
        (Self::Weight, 4),
        (Self::Kill, 2),
        (Self::Revive, 2),
        (Self::FalseAlarm, 3),
        (Self::Stall, 1),
        (Self::Drain, 2),
        (Self::Undrain, 2),
        (Self::AgentRestart, 1),
        (Self::RingSize, 1),
        (Self::Scheduler, 1),
    ];

    /// All kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::DECK.into_iter().map(|(kind, _)| kind)
    }

    /// As it is written in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Weight => "weight",
            Self::Kill => "kill",
            Self::Revive => "revive",
            Self::FalseAlarm => "false_alarm",
            Self::Stall => "stall",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::AgentRestart => "agent_restart",
            Self::RingSize => "ring_size",
            Self::Scheduler => "scheduler",
        }
    }

    /// Whether it moves all slots of a service at once, instead of those that change owner.
    const fn moves_all(self) -> bool {
        matches!(self, Self::RingSize | Self::Scheduler)
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a health check is made to fail. Neither closes the port: a refused connection would say
/// that the process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// It is answered with 503.
    Failing,
    /// It is not answered.
    Silent,
}

/// One change. Services are counted from 0, backends from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Kind` says what each is")]
pub enum Change {
    Add {
        service: usize,
        backend: u8,
        weight: u16,
    },
    Remove {
        service: usize,
        backend: u8,
    },
    Weight {
        service: usize,
        backend: u8,
        weight: u16,
    },
    Kill {
        backend: u8,
    },
    Revive {
        backend: u8,
    },
    FalseAlarm {
        backend: u8,
        alarm: Alarm,
    },
    Stall {
        backend: u8,
    },
    Drain {
        service: usize,
        backend: u8,
    },
    Undrain {
        service: usize,
        backend: u8,
    },
    AgentRestart,
    RingSize {
        service: usize,
        slots: u32,
    },
    Scheduler {
        service: usize,
        scheduler: &'static str,
    },
}

impl Change {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Add { .. } => Kind::Add,
            Self::Remove { .. } => Kind::Remove,
            Self::Weight { .. } => Kind::Weight,
            Self::Kill { .. } => Kind::Kill,
            Self::Revive { .. } => Kind::Revive,
            Self::FalseAlarm { .. } => Kind::FalseAlarm,
            Self::Stall { .. } => Kind::Stall,
            Self::Drain { .. } => Kind::Drain,
            Self::Undrain { .. } => Kind::Undrain,
            Self::AgentRestart => Kind::AgentRestart,
            Self::RingSize { .. } => Kind::RingSize,
            Self::Scheduler { .. } => Kind::Scheduler,
        }
    }
}

/// What is done at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A change.
    Change(Change),
    /// The health check of a backend succeeds again.
    AlarmEnds(u8),
    /// The process of a backend goes on.
    StallEnds(u8),
}

/// An action and the pause before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Since the end of the last action.
    pub pause: Duration,
    /// What is done.
    pub action: Action,
}

/// What a plan is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The same seed gives the same plan.
    pub seed: u64,
    /// How many changes.
    pub changes: usize,
    /// From one change to the next on average, bursts aside.
    pub pace: Duration,
    /// Every now and then nothing is changed for so long, so that slots come to rest.
    pub rest: Duration,
    /// The kinds that can be carried out.
    pub kinds: Vec<Kind>,
    /// How many services.
    pub services: usize,
    /// How many backends.
    pub backends: u8,
}

/// Where a run begins, and what is done then.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The first backends of each service.
    pub pools: Pools,
    /// In order. What alarms and stalls began is over at the end.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Draws a plan. It has fewer changes where the kinds allow for no more.
    pub fn draw(settings: &Settings) -> Self {
        let fleet = Fleet::new(settings.services, settings.backends);
        let pools = fleet.pools().clone();
        let mut planner = Planner::new(settings, fleet);
        for number in 0..settings.changes {
            if number > 0 && number.is_multiple_of(REST_EVERY) {
                planner.rest = settings.rest;
            }
            planner.slot_by_slot = number % REST_EVERY < settings.changes.min(REST_EVERY) / 2;
            if !planner.add_change() {
                break;
            }
        }
        planner.end_all();
        Self {
            pools,
            steps: planner.steps,
        }
    }

    /// The changes alone.
    pub fn changes(&self) -> impl Iterator<Item = Change> {
        self.steps.iter().filter_map(|step| match step.action {
            Action::Change(change) => Some(change),
            Action::AlarmEnds(_) | Action::StallEnds(_) => None,
        })
    }
}

struct Planner<'a> {
    settings: &'a Settings,
    random: Rng,
    fleet: Fleet,
    deck: Vec<Kind>,
    /// Changes left of the burst.
    burst: u32,
    /// Before the next change, beside its pause.
    rest: Duration,
    /// Changes that move all slots of a service at once wait, if there are others.
    slot_by_slot: bool,
    now: Duration,
    ends: Vec<(Duration, Action)>,
    steps: Vec<Step>,
}

impl<'a> Planner<'a> {
    fn new(settings: &'a Settings, fleet: Fleet) -> Self {
        Self {
            settings,
            random: Rng::with_seed(settings.seed),
            fleet,
            deck: Vec::new(),
            burst: 0,
            rest: Duration::ZERO,
            slot_by_slot: false,
            now: Duration::ZERO,
            ends: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Whether there was one to add.
    fn add_change(&mut self) -> bool {
        let mut at = self.now + mem::take(&mut self.rest);
        for _ in 0..PATIENCE {
            at += self.pause();
            self.end_until(at);
            if let Some(change) = self.draw(at) {
                self.add(at, change);
                return true;
            }
        }
        false
    }

    fn add(&mut self, at: Duration, change: Change) {
        self.push(at, Action::Change(change));
        let hold = |range, random: &mut Rng| at + Duration::from_millis(random.u64(range));
        match change {
            Change::FalseAlarm { backend, .. } => {
                let end = hold(ALARM_MS, &mut self.random);
                self.ends.push((end, Action::AlarmEnds(backend)));
            }
            Change::Stall { backend } => {
                let end = hold(STALL_MS, &mut self.random);
                self.ends.push((end, Action::StallEnds(backend)));
            }
            _ => {}
        }
        self.fleet.apply(&change, at + RECOVERY);
    }

    fn pause(&mut self) -> Duration {
        if self.burst > 0 {
            self.burst -= 1;
            return Duration::from_millis(self.random.u64(BURST_MS));
        }
        if self.random.u32(..BURST_EVERY) == 0 && self.settings.pace < UNHURRIED {
            self.burst = self.random.u32(BURST);
        }
        self.settings.pace.mul_f64(0.5 + self.random.f64())
    }

    /// The first card of the deck that can be played, else of a new deck below it.
    fn draw(&mut self, at: Duration) -> Option<Change> {
        let waits = |planner: &Self, kind: Kind| planner.slot_by_slot && kind.moves_all();
        if let Some(change) = self.play(at, waits) {
            return Some(change);
        }
        // What could not be played keeps its turn, once for each kind.
        self.deck.sort_unstable();
        self.deck.dedup();
        self.deal();
        self.play(at, waits).or_else(|| self.play(at, |_, _| false))
    }

    fn play(&mut self, at: Duration, waits: impl Fn(&Self, Kind) -> bool) -> Option<Change> {
        let played = (0..self.deck.len()).find_map(|card| {
            let kind = self.deck[card];
            (!waits(self, kind)).then_some(())?;
            Some((card, self.candidate(kind, at)?))
        });
        let (card, change) = played?;
        self.deck.remove(card);
        Some(change)
    }

    fn deal(&mut self) {
        let kinds = &self.settings.kinds;
        let cards = Kind::DECK
            .into_iter()
            .filter(|(kind, _)| kinds.contains(kind))
            .flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
        let mut deck: Vec<Kind> = cards.collect();
        self.random.shuffle(&mut deck);
        self.deck.extend(deck);
    }

    fn candidate(&mut self, kind: Kind, at: Duration) -> Option<Change> {
        let candidates = self.fleet.candidates(kind, at);
        let drawn = *self.random.choice(&candidates)?;
        Some(self.vary(drawn))
    }

    /// Draws what a candidate leaves open.
    fn vary(&mut self, change: Change) -> Change {
        match change {
            Change::Add {
                service, backend, ..
            } => {
                let weight = self.random.u16(1..=MAX_WEIGHT);
                Change::Add {
                    service,
                    backend,
                    weight,
                }
            }
            Change::Weight {
                service,
                backend,
                weight,
            } => {
                // Another one than it has.
                let weight = 1 + (weight - 1 + self.random.u16(1..MAX_WEIGHT)) % MAX_WEIGHT;
                Change::Weight {
                    service,
                    backend,
                    weight,
                }
            }
            Change::FalseAlarm { backend, .. } => {
                let alarm = match self.random.bool() {
                    true => Alarm::Failing,
                    false => Alarm::Silent,
                };
                Change::FalseAlarm { backend, alarm }
            }
            Change::RingSize { service, slots } => {
                let others: Vec<u32> = RING_SIZES
                    .into_iter()
                    .filter(|&size| size != slots)
                    .collect();
                let slots = self.random.choice(others).unwrap_or(slots);
                Change::RingSize { service, slots }
            }
            Change::Scheduler { service, scheduler } => {
                let others = SCHEDULERS.into_iter().filter(|&other| other != scheduler);
                let others: Vec<&str> = others.collect();
                let scheduler = self.random.choice(others).unwrap_or(scheduler);
                Change::Scheduler { service, scheduler }
            }
            change => change,
        }
    }

    /// What is over at `at`.
    fn end_until(&mut self, at: Duration) {
        self.ends.sort_by_key(|(end, _)| *end);
        while let Some(&(end, action)) = self.ends.first().filter(|(end, _)| *end <= at) {
            self.ends.remove(0);
            self.push(end, action);
            if let Action::AlarmEnds(backend) | Action::StallEnds(backend) = action {
                self.fleet.recover(backend, end + RECOVERY);
            }
        }
    }

    fn end_all(&mut self) {
        self.end_until(Duration::MAX);
    }

    fn push(&mut self, at: Duration, action: Action) {
        let pause = at.saturating_sub(self.now);
        self.now = self.now.max(at);
        self.steps.push(Step { pause, action });
    }
}

#[cfg(test)]
mod tests;
