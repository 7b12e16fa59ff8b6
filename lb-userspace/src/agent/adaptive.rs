//! Which share of its configured weight each backend of a tier has, by how they fare next to each other. Pure: signs and
//! time come in, shares come out.
//!
//! **What it should be.** A backend's share is in inverse proportion to its latency: one that takes four times as long as
//! the median of its tier gets a quarter. With that, load leads to the shares that speeds have: a server that answers μ
//! requests a second, and gets λ of them, takes 1/(μ-λ) for each (M/M/1), so that weights in proportion to μ-λ are at rest
//! where λ is in proportion to μ, whatever the load. So does how long its clients' handshakes take. Flows in progress for its
//! capacity count in the same way, and since the
//! backend's own weight is in them they are at rest half-way: at the root of what the speeds are. The worst of these counts,
//! times what its agent asks for.
//!
//! **How it gets there.** Within the bounds, by half of what is missing at most and [`STEP`] at a time, and only if that is
//! outside of a dead band. Each move against the direction of the one before halves the gain and widens the band by √2, and
//! every [`CALM`] intervals without one take one such back. A band as wide as the bounds lets nothing move, so that there are
//! never more reversals than [`reversals`], whatever the signs do: it cannot oscillate.
//!
//! **What it costs.** The ring moves with every change, so that proposals can be made smaller, down to the one backend
//! that is worst off, until they move few enough slots ([`TRIES`]).

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_common::tables::Tick;

use crate::{
    model::Adaptive,
    plan::{has_passed, ticks},
    smooth::Total,
};

/// Part of what is missing that is made up for at once, before any reversal.
const GAIN: f64 = 0.5;
/// The most that a share becomes larger or smaller at a time, as the logarithm of the ratio: a quarter.
const STEP: f64 = 0.223;
/// Intervals without a reversal after which one is forgotten.
pub const CALM: u32 = 360;
/// Intervals over which what is measured is smoothed.
const SMOOTHED: u32 = 3;
/// Flows in progress that everybody is taken to have beside its own, so that few are not compared.
const FEW: f64 = 10.0;
/// Handshakes as long as those of its tier on average that everybody is taken to have beside its own, so that few say little,
/// and who has none left is like any other.
const FEW_HANDSHAKES: f64 = 20.0;

/// What is known of how a backend fares.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Signs {
    /// How long it takes to answer.
    pub latency: Option<Duration>,
    /// How long its clients' handshakes take, in seconds.
    pub handshakes: Option<Total>,
    /// Its flows in progress.
    pub flows: Option<f64>,
    /// What it can carry, to any scale that it shares with its tier.
    pub capacity: f64,
    /// Percent of its weight that its agent asks for.
    pub asked: Option<u16>,
}

/// How a backend's share has come about.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Course {
    /// Share of the configured weight.
    share: f64,
    /// What it should have been at the last look.
    wanted: f64,
    /// Reversals that are not forgotten.
    reversals: u32,
    /// Since when there was none, or the last one was forgotten.
    calm_since: Tick,
    /// Whether the last move was upwards.
    upwards: Option<bool>,
}

/// A backend's share, and what it is away from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Percent of the configured weight that it has.
    pub percent: u16,
    /// What it should have by the last look.
    pub wanted: u16,
    /// Reversals that are not forgotten.
    pub reversals: u32,
}

/// A share that is to become another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    /// Whose.
    pub backend: SocketAddr,
    /// What it is, in percent of the configured weight.
    pub from: u16,
    /// What it becomes.
    pub to: u16,
    /// How far it is away from what it should be, as the logarithm of the ratio.
    missing: f64,
}

/// The part of each move that a proposal makes, and whether only of the one that is worst off, in the order in which they
/// are tried.
pub const TRIES: [(f64, bool); 6] = [
    (1.0, false),
    (0.5, false),
    (0.25, false),
    (1.0, true),
    (0.5, true),
    (0.25, true),
];

/// The shares of a pool's backends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shares {
    courses: BTreeMap<SocketAddr, Course>,
}

impl Shares {
    /// Takes a backend's share for what it is found to be.
    pub fn find(&mut self, backend: SocketAddr, share: f64, policy: &Adaptive, now: Tick) {
        let [least, most] = bounds(policy);
        let share = whole(share.ln().clamp(least, most).exp());
        self.courses.insert(backend, Course::new(share, now));
    }

    /// Keeps shares within bounds that may be others than before.
    pub fn bound(&mut self, policy: &Adaptive) {
        let [least, most] = [policy.least, policy.most].map(|percent| f64::from(percent) / 100.0);
        for course in self.courses.values_mut() {
            course.share = course.share.clamp(least, most);
            course.wanted = course.wanted.clamp(least, most);
        }
    }

    /// Forgets backends that are not there any more.
    pub fn retain(&mut self, mut there: impl FnMut(SocketAddr) -> bool) {
        self.courses.retain(|&backend, _| there(backend));
    }

    /// Percent of their configured weights that backends have.
    pub fn all(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        let courses = self.courses.iter();
        courses.map(|(&backend, course)| (backend, percent(course.share)))
    }

    /// Percent of its configured weight that a backend has.
    pub fn percent(&self, backend: SocketAddr) -> u16 {
        self.courses
            .get(&backend)
            .map_or(100, |course| percent(course.share))
    }

    /// How a backend stands, once it was looked at.
    pub fn standing(&self, backend: SocketAddr) -> Option<Standing> {
        let course = self.courses.get(&backend)?;
        Some(Standing {
            percent: percent(course.share),
            wanted: percent(course.wanted),
            reversals: course.reversals,
        })
    }

    /// Looks at the backends of a tier that take new flows; what is to become of their shares.
    pub fn look(
        &mut self,
        signs: &BTreeMap<SocketAddr, Signs>,
        policy: &Adaptive,
        now: Tick,
    ) -> Vec<Move> {
        let wanted = wanted(signs, policy);
        let calm = ticks(policy.interval.saturating_mul(CALM));
        let mut moves = Vec::new();
        for (&backend, wanted) in signs.keys().zip(wanted) {
            let new = Course::new(1.0, now);
            let course = self.courses.entry(backend).or_insert(new);
            course.calm_down(calm, now);
            let Some(wanted) = wanted else {
                course.wanted = course.share;
                continue;
            };
            course.wanted = wanted.exp();
            moves.extend(course.next(backend, policy));
        }
        moves
    }

    /// Whether everybody has its configured weight.
    pub fn are_whole(&self) -> bool {
        self.courses
            .values()
            .all(|course| percent(course.share) == 100)
    }

    /// What is to become of the shares where weights follow nothing any more: all of each comes back, by steps as large as any,
    /// whatever is measured.
    pub fn give_back(&mut self) -> Vec<Move> {
        let back = self.courses.iter_mut().filter_map(|(&backend, course)| {
            course.wanted = 1.0;
            let missing = course.wanted.ln() - course.share.ln();
            course.step(backend, missing, missing, [f64::MIN, f64::MAX])
        });
        back.collect()
    }

    /// Makes moves.
    pub fn make(&mut self, moves: &[Move], now: Tick) {
        for one in moves {
            if let Some(course) = self.courses.get_mut(&one.backend) {
                course.go(f64::from(one.to) / 100.0, now);
            }
        }
    }
}

/// The same moves by a part of each, of all or only the one that is worst off; those that come to nothing are left out.
pub fn smaller(moves: &[Move], (part, worst): (f64, bool)) -> Vec<Move> {
    let farthest = moves
        .iter()
        .max_by(|a, b| a.missing.abs().total_cmp(&b.missing.abs()));
    let moves = match worst {
        true => farthest.into_iter().collect(),
        false => moves.iter().collect::<Vec<_>>(),
    };
    let smaller = moves.into_iter().map(|one| {
        let way = f64::from(one.to) - f64::from(one.from);
        let to = (f64::from(one.from) + way * part).round();
        Move {
            to: to as u16,
            ..*one
        }
    });
    smaller.filter(|one| one.to != one.from).collect()
}

/// The time over which what is measured is smoothed.
pub fn smoothed_over(policy: &Adaptive) -> Duration {
    policy.interval.saturating_mul(SMOOTHED)
}

/// How often a share can turn back within so many intervals, at most.
pub fn reversals(policy: &Adaptive, intervals: u32) -> u32 {
    let [least, most] = bounds(policy);
    let widest = (0..).find(|&reversals| band(policy, reversals) >= most - least);
    widest.unwrap_or(u32::MAX) + intervals / CALM + 1
}

impl Course {
    fn new(share: f64, now: Tick) -> Self {
        Self {
            share,
            wanted: share,
            reversals: 0,
            calm_since: now,
            upwards: None,
        }
    }

    fn calm_down(&mut self, calm: Tick, now: Tick) {
        if has_passed(calm, self.calm_since, now) {
            self.reversals = self.reversals.saturating_sub(1);
            self.calm_since = now;
        }
    }

    /// The move that brings it nearer to what it should be, if it is far enough away.
    fn next(&self, backend: SocketAddr, policy: &Adaptive) -> Option<Move> {
        let missing = (self.wanted / self.share).ln();
        if missing.abs() <= band(policy, self.reversals) {
            return None;
        }
        let gain = GAIN / f64::from(2_u32.saturating_pow(self.reversals));
        self.step(backend, missing, missing * gain, bounds(policy))
    }

    /// The move by so much of what is missing, within bounds; all of these are logarithms.
    fn step(
        &self,
        backend: SocketAddr,
        missing: f64,
        by: f64,
        [least, most]: [f64; 2],
    ) -> Option<Move> {
        let step = by.clamp(-STEP, STEP);
        let next = (self.share.ln() + step).clamp(least, most).exp();
        let (from, to) = (percent(self.share), percent(next));
        let to = match to == from {
            false => to,
            // A percent is more than the step where the share is small, and the least that there is.
            true if missing > 0.0 => from.saturating_add(1).min(percent(self.wanted)),
            true => from.saturating_sub(1).max(percent(self.wanted)),
        };
        (from != to).then_some(Move {
            backend,
            from,
            to,
            missing,
        })
    }

    fn go(&mut self, share: f64, now: Tick) {
        let upwards = share > self.share;
        if self.upwards.is_some_and(|before| before != upwards) {
            self.reversals = self.reversals.saturating_add(1);
            self.calm_since = now;
        }
        (self.upwards, self.share) = (Some(upwards), share);
    }
}

/// The logarithms of the shares that backends should have, in the order of `signs`; nothing for one of whom nothing is known.
fn wanted(signs: &BTreeMap<SocketAddr, Signs>, policy: &Adaptive) -> Vec<Option<f64>> {
    let floor = policy.latency_floor.as_secs_f64();
    let latency = |signs: &Signs| Some(signs.latency?.as_secs_f64() + floor);
    let latencies = next_to_median(signs.values().map(latency));
    let known = signs.values().filter_map(|signs| signs.handshakes);
    let usual = known.fold(Total::default(), Total::plus).mean();
    let handshake = |signs: &Signs| {
        let own = signs.handshakes?.plus(Total::of(FEW_HANDSHAKES, usual?));
        Some(own.mean()? + floor)
    };
    let handshakes = next_to_median(signs.values().map(handshake));
    let mean = signs.values().map(|s| s.capacity).sum::<f64>() / signs.len().max(1) as f64;
    let load = |signs: &Signs| Some(signs.flows? / signs.capacity + FEW / mean);
    let loads = next_to_median(signs.values().map(load));
    let [least, most] = bounds(policy);
    let times = latencies.into_iter().zip(handshakes);
    let each = signs.values().zip(times.zip(loads));
    each.map(|(signs, ((latency, handshake), load))| {
        // What is known of one alone is known next to nobody.
        let known = [latency, handshake, load].into_iter().flatten();
        let worst = known.reduce(f64::min);
        let asked = signs.asked.map(|percent| f64::from(percent.max(1)) / 100.0);
        let share = match (worst, asked) {
            (None, None) => return None,
            (worst, asked) => worst.unwrap_or(1.0) * asked.unwrap_or(1.0),
        };
        Some(share.ln().clamp(least, most))
    })
    .collect()
}

/// How many times each cost the lower median is, where there are two at least; those that are no number above 0 count
/// for nothing.
fn next_to_median(costs: impl Iterator<Item = Option<f64>>) -> Vec<Option<f64>> {
    let known = |cost: &f64| cost.is_finite() && *cost > 0.0;
    let costs: Vec<Option<f64>> = costs.map(|cost| cost.filter(known)).collect();
    let mut sorted: Vec<f64> = costs.iter().flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let median = match sorted.len() {
        0 | 1 => None,
        several => sorted.get((several - 1) / 2).copied(),
    };
    costs
        .into_iter()
        .map(|cost| Some(median? / cost?))
        .collect()
}

/// Logarithms of the least and the largest share.
fn bounds(policy: &Adaptive) -> [f64; 2] {
    [policy.least, policy.most].map(|percent| (f64::from(percent.max(1)) / 100.0).ln())
}

/// How far a share has to be from what it should be to follow, as the logarithm of the ratio, after so many reversals.
fn band(policy: &Adaptive, reversals: u32) -> f64 {
    let first = (f64::from(policy.dead_band) / 100.0).ln_1p();
    first * 2_f64.powf(f64::from(reversals) / 2.0)
}

fn percent(share: f64) -> u16 {
    (share * 100.0).round() as u16
}

/// Shares are whole percents, so that what is told is what is.
fn whole(share: f64) -> f64 {
    f64::from(percent(share)) / 100.0
}

#[cfg(test)]
#[path = "adaptive_tests.rs"]
mod tests;
