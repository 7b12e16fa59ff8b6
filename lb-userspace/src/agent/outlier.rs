//! Who is kept out for what the packets of its handshakes show, for how long, and how many may be at a time. Pure: counts
//! and time come in.
//!
//! Three signs count. Connections refused in a row: only a closed port or a host that is not there makes them, so a
//! few are enough. And, of the answers of a backend and of the handshakes of its clients, a share that fails
//! which is large by itself and cannot be chance next to that of the others. What clients bring
//! about (floods of forged SYNs, a network that loses packets) makes all backends look alike, and so nobody an outlier.
//!
//! What cannot be chance is `trials`' to say.
//!
//! Compared is what is of the same time. That a handshake goes well is known at once, that it fails only after a time, so
//! that whoever begins to take flows looks better than it is at first: nothing of that counts, neither for it nor against
//! others.
//!
//! Ejection, a time that grows with each, and a ceiling are as Envoy has them.

mod trials;

use std::{collections::BTreeMap, time::Duration};

use lb_common::tables::Tick;

pub use self::trials::Trials;
use crate::{
    model::Passive,
    plan::{has_passed, ticks},
};

/// How much later than it is over the agent may learn that a handshake has failed.
const LATE: Duration = Duration::from_millis(100);
/// Parts of the window, of which the oldest is given up at a time. They begin at the same moments for all backends.
const PARTS: usize = 20;
/// Of which so many are looked at by themselves as well, the last ones: else a window that is full of what was good would have to
/// be half over first.
const LAST_PARTS: Tick = 2;

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

/// What a backend has shown of late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recent {
    /// Its answers.
    pub answers: Trials,
    /// The handshakes of its clients.
    pub handshakes: Trials,
}

impl Recent {
    fn bad(self) -> u64 {
        self.answers.bad + self.handshakes.bad
    }

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
    /// How many parts count, that one included.
    parts: Tick,
    /// Since when it takes new flows, if it does.
    taking: Option<Tick>,
    /// Ejections that are not forgotten yet.
    pub times: u32,
    /// Since when it is kept out, if it is.
    pub ejected: Option<Tick>,
    /// Since when it is well, or forgotten the last ejection for, while it is.
    pub well_since: Tick,
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
            parts: 0,
            taking: None,
            times: 0,
            ejected: None,
            well_since: now,
        }
    }

    /// The same with ejections that were counted before, by settings that may have been others.
    pub fn known(times: u32, ejected: Option<Tick>, well_since: Tick, settings: &Passive) -> Self {
        let longest = settings.longest.as_millis();
        let most = longest.div_ceil(settings.ejection.as_millis().max(1));
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Self {
            times: times.min(most).max(u32::from(ejected.is_some())),
            ejected,
            ..Self::new(Shown::default(), well_since)
        }
    }

    /// What it has shown so far counts for nothing.
    pub fn begin_at(&mut self, shown: Shown) {
        (self.last, self.paid) = (shown, shown.refused);
    }

    /// Takes in what it has shown by now, and whether it takes new flows.
    pub fn take(&mut self, shown: Shown, takes: bool, settings: &Passive, now: Tick) {
        if takes != self.taking.is_some() {
            self.begin_anew();
            self.taking = takes.then_some(now);
        }
        if !shown.is_after(self.last) {
            (self.last, self.paid) = (Shown::default(), 0);
        }
        self.turn_window(settings, now);
        if self.parts > 0 {
            let news = shown.since(self.last);
            let part = &mut self.window[place(self.part)];
            *part = part.plus(news);
            self.recent = self.recent.plus(news);
        }
        self.last = shown;
        self.forgive(settings, now);
    }

    fn turn_window(&mut self, settings: &Passive, now: Tick) {
        let length = part_length(settings);
        let part = now / length;
        // All of it where it is of another time.
        let over = part.wrapping_sub(self.part).min(PARTS as Tick);
        for number in 0..over {
            let over = std::mem::take(&mut self.window[place(part.wrapping_sub(number))]);
            self.recent = self.recent.minus(over);
        }
        self.part = part;
        let learnt = ticks(settings.handshake + LATE);
        self.parts = match self.parts {
            0 if over == 0 => 0,
            0 => {
                // Those that failed of the flows that it took first are known when this part begins.
                let taken = self.taking.map(|since| now.wrapping_sub(since));
                let before = taken.and_then(|taken| taken.checked_sub(now % length));
                before.is_some_and(|before| before >= learnt).into()
            }
            parts => (parts + over).min(PARTS as Tick),
        };
    }

    /// What it has shown so far is of before.
    fn begin_anew(&mut self) {
        (self.window, self.recent, self.parts) = Default::default();
        self.taking = None;
    }

    fn forgive(&mut self, settings: &Passive, now: Tick) {
        let time = ticks(settings.ejection).max(1);
        while self.is_on_probation() && has_passed(time, self.well_since, now) {
            self.times -= 1;
            self.well_since = self.well_since.wrapping_add(time);
        }
    }

    /// The last so many parts of that.
    fn lately(&self, parts: Tick) -> Recent {
        if parts >= self.parts {
            return self.recent;
        }
        let parts = (0..parts).map(|n| self.window[place(self.part.wrapping_sub(n))]);
        parts.fold(Recent::default(), Recent::plus)
    }

    /// Whether there is anything to judge.
    pub fn is_suspect(&self) -> bool {
        let refused = self.last.streak.min(self.last.refused - self.paid);
        self.ejected.is_some() || self.recent.bad() > 0 || refused > 0
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

    /// Why it is to be kept out, if it is; `others` tells what the others have shown in the last so many parts.
    fn fails(&self, mut others: impl FnMut(Tick) -> Recent, settings: &Passive) -> Option<Reason> {
        let refused = self.last.streak.min(self.last.refused - self.paid);
        let few = if self.is_on_probation() {
            1
        } else {
            settings.refusals.into()
        };
        if settings.refusals > 0 && refused >= few {
            return Some(Reason::Refusals(refused));
        }
        if self.recent.bad() == 0 {
            return None;
        }
        [self.parts, self.parts.min(LAST_PARTS)]
            .into_iter()
            .find_map(|parts| {
                let (own, others) = (self.lately(parts), others(parts));
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
        self.begin_anew();
        self.well_since = now;
    }
}

/// How long a part of the window is.
fn part_length(settings: &Passive) -> Tick {
    (ticks(settings.window) / PARTS as Tick).max(1)
}

/// Where a part is in the window.
fn place(part: Tick) -> usize {
    part as usize % PARTS
}

/// How a backend stands, but for what packets show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Nobody keeps it from taking new flows, neither people nor its agent.
    pub wanted: bool,
    /// It is, and could take some, or does.
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

/// Judges a pool: `places` are all of its backends.
pub fn judge<K: Ord + Copy>(
    pool: &mut BTreeMap<K, &mut Outlier>,
    places: &BTreeMap<K, Place>,
    settings: &Passive,
    now: Tick,
) -> Vec<Change<K>> {
    pool.retain(|key, _| places.contains_key(key));
    let most = ceiling(places.values().filter(|p| p.wanted).count(), settings);
    let mut changes: Vec<Change<K>> = let_in(pool, places, settings, now, most)
        .into_iter()
        .map(Change::Returned)
        .collect();
    let out = |key: &K| pool.get(key).is_some_and(|o| o.ejected.is_some());
    let taking = places.iter().filter(|(key, p)| p.takes && !out(key));
    let mut taking = taking.count();
    let left = places.iter().filter(|(key, p)| p.wanted && out(key));
    let mut room = most - left.count();
    // The surest first; each that goes changes what the others are compared with.
    while room > 0 && taking > 1 {
        let Some((key, reason)) = worst(pool, places, settings, now) else {
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
    pool: &mut BTreeMap<K, &mut Outlier>,
    places: &BTreeMap<K, Place>,
    settings: &Passive,
    now: Tick,
    most: usize,
) -> Vec<K> {
    let out = |(key, outlier): (&K, &&mut Outlier)| {
        let place = places.get(key)?;
        Some((outlier.ejected?, *key, *place))
    };
    let mut out: Vec<(Tick, K, Place)> = pool.iter().filter_map(out).collect();
    out.sort_by_key(|&(since, ..)| std::cmp::Reverse(now.wrapping_sub(since)));
    let mut left = out.iter().filter(|(.., place)| place.wanted).count();
    let mut back = Vec::new();
    for (since, key, place) in out {
        let Some(outlier) = pool.get_mut(&key) else {
            continue;
        };
        let hold = ticks(outlier.hold(settings).max(place.at_least));
        let waited = place.ready && has_passed(hold, since, now);
        if waited || place.forced || (place.wanted && left > most) {
            outlier.come_back(now);
            back.push(key);
            left -= usize::from(place.wanted);
        }
    }
    back
}

fn worst<K: Ord + Copy>(
    pool: &BTreeMap<K, &mut Outlier>,
    places: &BTreeMap<K, Place>,
    settings: &Passive,
    now: Tick,
) -> Option<(K, Reason)> {
    let part = now / part_length(settings);
    // Who is there, and has been for so many parts.
    let compared = |outlier: &Outlier, parts: Tick| {
        outlier.ejected.is_none() && outlier.part == part && outlier.parts >= parts
    };
    let mut sums: BTreeMap<Tick, Recent> = BTreeMap::new();
    let mut found: Option<(K, Reason)> = None;
    for (&key, outlier) in pool {
        let may = places.get(&key).is_some_and(|p| p.takes && !p.forced);
        if !may || outlier.ejected.is_some() {
            continue;
        }
        let others = |parts: Tick| {
            let all = sums.entry(parts).or_insert_with(|| {
                let there = pool.values().filter(|other| compared(other, parts));
                let shown = there.map(|other| other.lately(parts));
                shown.fold(Recent::default(), Recent::plus)
            });
            match compared(outlier, parts) {
                true => all.minus(outlier.lately(parts)),
                false => *all,
            }
        };
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
