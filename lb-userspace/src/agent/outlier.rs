//! Who is kept out for what the packets of its handshakes show, for how long, and how many may be at a time. Pure: counts
//! and time come in.
//!
//! Three signs count. Connections refused in a row: only a closed port or a host that is not there makes them, so a
//! few are enough. And, of the answers of a backend and of the handshakes of its clients, a share that fails
//! which is large by itself and cannot be chance where that of the others is what is usual. What clients bring
//! about (floods of forged SYNs, a network that loses packets) makes all backends look alike, and so nobody an outlier.
//!
//! "Cannot be chance" is Chernoff's bound: of n trials that fail with probability p each, a share s > p of them
//! fails with a probability of at most exp(-n·D(s‖p)), D being the divergence of Kullback and Leibler (H. Chernoff,
//! Annals of Mathematical Statistics 23(4), 1952). Ejection, a time that grows with each, and a ceiling are as Envoy
//! has them.

use std::{collections::BTreeMap, time::Duration};

use lb_common::tables::Tick;

use crate::{
    model::Passive,
    plan::{has_passed, ticks},
};

/// The logarithm of one to the probability below which nothing is chance: 10⁻⁹.
const IMPLAUSIBLE: f64 = 20.723;
/// What fails anyway, at least: a better network cannot be told from this one by as few trials.
const USUAL: f64 = 0.01;
/// Parts of the window, of which the oldest is given up at a time. They begin at the same moments for all backends.
const PARTS: usize = 20;
/// Of which so many are looked at by themselves as well, the last ones: else a window that is full of what was good would have to
/// be half over first.
const LAST_PARTS: usize = 2;

/// What a backend has shown so far. Counts rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused, or found unreachable.
    pub refused: u64,
    /// Those since the last one that was accepted.
    pub streak: u64,
    /// Watched handshakes whose client went on.
    pub progressed: u64,
    /// Those whose client has sent its SYN again, or nothing for too long.
    pub missed: u64,
}

impl Shown {
    fn since(self, before: Self) -> Recent {
        Recent {
            answers: Trials {
                good: self.accepted - before.accepted,
                bad: self.refused - before.refused,
            },
            handshakes: Trials {
                good: self.progressed - before.progressed,
                bad: self.missed - before.missed,
            },
        }
    }

    fn is_after(self, before: Self) -> bool {
        self.accepted >= before.accepted
            && self.refused >= before.refused
            && self.progressed >= before.progressed
            && self.missed >= before.missed
    }
}

/// How trials ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trials {
    /// Well.
    pub good: u64,
    /// Otherwise.
    pub bad: u64,
}

impl Trials {
    fn all(self) -> u64 {
        self.good + self.bad
    }

    fn plus(self, other: Self) -> Self {
        Self {
            good: self.good + other.good,
            bad: self.bad + other.bad,
        }
    }

    /// What is left of these without a part of them.
    fn minus(self, part: Self) -> Self {
        Self {
            good: self.good - part.good,
            bad: self.bad - part.bad,
        }
    }

    /// Whether so many fail as cannot be chance where others are as these are.
    fn is_implausible(self, others: Self) -> bool {
        let (all, bad) = (self.all() as f64, self.bad as f64);
        // Laplace's rule of succession, for where others have had few.
        let usual = ((others.bad + 1) as f64 / (others.all() + 2) as f64).max(USUAL);
        let share = bad / all;
        share > usual && all * divergence(share, usual) >= IMPLAUSIBLE
    }

    /// Whether it fails more than settings allow, and others do not.
    fn is_outlier(self, others: Self, settings: &Passive) -> bool {
        settings.failing > 0
            && self.all() >= u64::from(settings.volume)
            && self.bad * 100 >= self.all() * u64::from(settings.failing)
            && self.is_implausible(others)
    }
}

/// D(s‖p) of two Bernoulli distributions, in nats.
fn divergence(s: f64, p: f64) -> f64 {
    let term = |s: f64, p: f64| if s > 0.0 { s * (s / p).ln() } else { 0.0 };
    term(s, p) + term(1.0 - s, 1.0 - p)
}

/// What a backend has shown of late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recent {
    /// Its answers.
    pub answers: Trials,
    /// The handshakes of its clients.
    pub handshakes: Trials,
}

impl Recent {
    fn plus(self, other: Self) -> Self {
        Self {
            answers: self.answers.plus(other.answers),
            handshakes: self.handshakes.plus(other.handshakes),
        }
    }

    fn minus(self, part: Self) -> Self {
        Self {
            answers: self.answers.minus(part.answers),
            handshakes: self.handshakes.minus(part.handshakes),
        }
    }
}

/// Why a backend is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// So many connections in a row were refused.
    Refusals(u64),
    /// So its answers were, and those of others.
    Answers(Trials, Trials),
    /// So the handshakes of its clients were.
    Handshakes(Trials, Trials),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut tell = |own: &Trials, others: &Trials, what: &str| {
            let (all, others_all) = (own.all(), others.all());
            write!(
                f,
                "{} of {all} {what}, and of others {} of {others_all}",
                own.bad, others.bad
            )
        };
        match self {
            Self::Refusals(1) => f.write_str("a connection was refused"),
            Self::Refusals(times) => write!(f, "{times} connections in a row were refused"),
            Self::Answers(own, others) => tell(own, others, "connections were refused"),
            Self::Handshakes(own, others) => tell(own, others, "handshakes were not answered"),
        }
    }
}

/// What is kept of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    last: Shown,
    /// The refusals that have been paid for.
    paid: u64,
    window: [Recent; PARTS],
    /// All parts of it together.
    recent: Recent,
    /// The number of the part that is being filled, counted from the beginning of time.
    part: Tick,
    /// Ejections that are not forgotten yet.
    pub times: u32,
    /// Since when it is kept out, if it is.
    pub ejected: Option<Tick>,
    /// Since when it is well, or forgotten the last ejection for, while it is.
    well_since: Tick,
}

impl Outlier {
    /// A backend of which what it has shown so far counts for nothing.
    pub fn new(shown: Shown, now: Tick) -> Self {
        Self {
            last: shown,
            paid: shown.refused,
            window: Default::default(),
            recent: Recent::default(),
            part: 0,
            times: 0,
            ejected: None,
            well_since: now,
        }
    }

    /// Takes in what it has shown by now.
    pub fn take(&mut self, shown: Shown, settings: &Passive, now: Tick) {
        if !shown.is_after(self.last) {
            (self.last, self.paid) = (Shown::default(), 0);
        }
        self.turn_window(settings, now);
        let news = shown.since(self.last);
        let part = &mut self.window[place(self.part)];
        *part = part.plus(news);
        self.recent = self.recent.plus(news);
        self.last = shown;
        self.forgive(settings, now);
    }

    fn turn_window(&mut self, settings: &Passive, now: Tick) {
        let length = (ticks(settings.window) / PARTS as Tick).max(1);
        let part = now / length;
        // All of it where it is of another time.
        let over = part.wrapping_sub(self.part).min(PARTS as Tick);
        for number in 0..over {
            let over = std::mem::take(&mut self.window[place(part.wrapping_sub(number))]);
            self.recent = self.recent.minus(over);
        }
        self.part = part;
    }

    fn forgive(&mut self, settings: &Passive, now: Tick) {
        let time = ticks(settings.ejection).max(1);
        while self.is_on_probation() && has_passed(time, self.well_since, now) {
            self.times -= 1;
            self.well_since = self.well_since.wrapping_add(time);
        }
    }

    /// The last parts of that.
    fn lately(&self) -> Recent {
        let parts = (0..LAST_PARTS as Tick).map(|n| self.window[place(self.part.wrapping_sub(n))]);
        parts.fold(Recent::default(), Recent::plus)
    }

    /// Whether there is anything to judge.
    pub fn is_suspect(&self) -> bool {
        let bad = self.recent.answers.bad + self.recent.handshakes.bad;
        self.ejected.is_some() || bad > 0
    }

    /// Whether it is back, and an ejection is not forgotten yet: one refusal is enough then.
    pub fn is_on_probation(&self) -> bool {
        self.ejected.is_none() && self.times > 0
    }

    /// How long it is kept out.
    pub fn hold(&self, settings: &Passive) -> Duration {
        let time = settings.ejection.saturating_mul(self.times);
        time.min(settings.longest)
    }

    /// Why it is to be kept out, if it is; `others` are what the others have shown in the whole window and lately.
    fn fails(&self, others: [Recent; 2], settings: &Passive) -> Option<Reason> {
        let refused = self.last.streak.min(self.last.refused - self.paid);
        let few = if self.is_on_probation() {
            1
        } else {
            settings.refusals.into()
        };
        if settings.refusals > 0 && refused >= few {
            return Some(Reason::Refusals(refused));
        }
        let mut spans = [self.recent, self.lately()].into_iter().zip(others);
        spans.find_map(|(own, others)| {
            if own.answers.is_outlier(others.answers, settings) {
                return Some(Reason::Answers(own.answers, others.answers));
            }
            own.handshakes
                .is_outlier(others.handshakes, settings)
                .then_some(Reason::Handshakes(own.handshakes, others.handshakes))
        })
    }

    fn eject(&mut self, settings: &Passive, now: Tick) {
        // No more than lead to the longest time, so that all are forgotten in bounded time.
        if self.times == 0 || self.hold(settings) < settings.longest {
            self.times += 1;
        }
        self.ejected = Some(now);
    }

    /// It takes flows again: what it has shown until now is of before.
    fn come_back(&mut self, now: Tick) {
        self.ejected = None;
        self.paid = self.last.refused;
        (self.window, self.recent) = Default::default();
        self.well_since = now;
    }
}

/// Where a part is in the window.
fn place(part: Tick) -> usize {
    part as usize % PARTS
}

/// How a backend stands, but for what packets show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// It takes new flows.
    pub takes: bool,
    /// Somebody wants it to, whatever it shows.
    pub forced: bool,
    /// It could come back: its checks pass, or it has none.
    pub ready: bool,
    /// How long it is kept out at least, so that its checks have asked since.
    pub at_least: Duration,
}

/// What a judgement changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<K> {
    /// A backend is kept out from now on.
    Ejected(K, Reason),
    /// A backend is not any more.
    Returned(K),
}

/// How many of a pool may be kept out at a time.
pub fn ceiling(pool: usize, settings: &Passive) -> usize {
    let share = pool * usize::from(settings.max_ejected) / 100;
    let least = usize::from(settings.max_ejected > 0);
    share.max(least).min(pool.saturating_sub(1))
}

/// Judges a pool: `places` are its backends that people want to take flows.
pub fn judge<K: Ord + Copy>(
    pool: &mut BTreeMap<K, Outlier>,
    places: &BTreeMap<K, Place>,
    settings: &Passive,
    now: Tick,
) -> Vec<Change<K>> {
    pool.retain(|key, _| places.contains_key(key));
    let most = ceiling(places.len(), settings);
    let mut changes: Vec<Change<K>> = let_in(pool, places, settings, now, most)
        .into_iter()
        .map(Change::Returned)
        .collect();
    let ejected = |outlier: &Outlier| outlier.ejected.is_some();
    let mut taking = places
        .iter()
        .filter(|(key, place)| place.takes && !pool.get(key).is_some_and(ejected))
        .count();
    let mut room = most - pool.values().filter(|o| ejected(o)).count();
    // The surest first; each that goes changes what the others are compared with.
    while room > 0 && taking > 1 {
        let Some((key, reason)) = worst(pool, places, settings) else {
            break;
        };
        if let Some(outlier) = pool.get_mut(&key) {
            outlier.eject(settings, now);
        }
        changes.push(Change::Ejected(key, reason));
        (room, taking) = (room - 1, taking - 1);
    }
    changes
}

/// Who comes back: those who have waited long enough, those whom people want, and those who are too many.
fn let_in<K: Ord + Copy>(
    pool: &mut BTreeMap<K, Outlier>,
    places: &BTreeMap<K, Place>,
    settings: &Passive,
    now: Tick,
    most: usize,
) -> Vec<K> {
    let since = |(key, outlier): (&K, &Outlier)| Some((outlier.ejected?, *key));
    let mut out: Vec<(Tick, K)> = pool.iter().filter_map(since).collect();
    out.sort_by_key(|&(since, _)| std::cmp::Reverse(now.wrapping_sub(since)));
    let mut left = out.len();
    let mut back = Vec::new();
    for (since, key) in out {
        let (Some(outlier), Some(place)) = (pool.get_mut(&key), places.get(&key)) else {
            continue;
        };
        let hold = ticks(outlier.hold(settings).max(place.at_least));
        let waited = place.ready && has_passed(hold, since, now);
        if waited || place.forced || left > most {
            outlier.come_back(now);
            back.push(key);
            left -= 1;
        }
    }
    back
}

fn worst<K: Ord + Copy>(
    pool: &BTreeMap<K, Outlier>,
    places: &BTreeMap<K, Place>,
    settings: &Passive,
) -> Option<(K, Reason)> {
    let inside = || pool.iter().filter(|(_, outlier)| outlier.ejected.is_none());
    let sum = |[whole, last]: [Recent; 2], (_, outlier): (&K, &Outlier)| {
        [whole.plus(outlier.recent), last.plus(outlier.lately())]
    };
    let [whole, last] = inside().fold(Default::default(), sum);
    let mut found: Option<(K, Reason)> = None;
    for (&key, outlier) in inside() {
        let place = places.get(&key);
        if place.is_none_or(|place| !place.takes || place.forced) {
            continue;
        }
        let others = [whole.minus(outlier.recent), last.minus(outlier.lately())];
        match (outlier.fails(others, settings), &found) {
            (Some(Reason::Refusals(n)), Some((_, Reason::Refusals(most)))) if n <= *most => {}
            (Some(reason @ Reason::Refusals(_)), _) | (Some(reason), None) => {
                found = Some((key, reason));
            }
            _ => {}
        }
    }
    found
}

/// Handshakes watched in a second, about, of each pool.
pub const WATCHED_A_SECOND: u64 = 500;
/// Below so many, more of the flows are watched.
const FEW: u64 = WATCHED_A_SECOND / 3;

/// Which flows' handshakes are watched from now on, as [`lb_common::tables::Descriptor::sampling`], where so many begin
/// in a second.
pub fn next_sampling(now: u8, flows: u64) -> u8 {
    let most = lb_common::tables::MOST_SAMPLING;
    let watched = |sampling: u8| flows >> (sampling.clamp(1, most) - 1);
    let enough = (1..most).find(|&sampling| watched(sampling) <= WATCHED_A_SECOND);
    let enough = enough.unwrap_or(most);
    if now == 0 || enough > now || watched(now) < FEW {
        enough
    } else {
        now
    }
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
