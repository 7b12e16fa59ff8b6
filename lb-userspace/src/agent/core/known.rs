//! What is known of backends beside what people want of them: what checks, packets and agents have said, and what has
//! come of it. Put back as a whole where a change is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::tables::Tick;

use super::{
    adaptive::Adapting, asked::AllAsked, damping::Damped, forced::Key, outliers::Outliers,
    panic::Panics, rates::Measured, slow_start::SlowStarts, standby::Tiers, targets::inherit,
};
use crate::{
    health::Target,
    model::ServiceId,
    snapshot::{CheckStatus, Condition},
};

/// What the checks have said of a backend last.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) condition: Condition,
    pub(super) error: Option<String>,
    /// Whether that says anything against the backend.
    pub(super) suspect: bool,
    pub(super) latency: Option<Duration>,
    /// How long probes take on average, where weights follow that.
    pub(super) smoothed: Option<Duration>,
    pub(super) checks: Vec<CheckStatus>,
}

/// A backend that fails its checks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Down {
    pub(super) since: Tick,
    /// It counts as dead.
    pub(super) dead: bool,
    /// Nobody is there: its own port refuses, or its host does not answer.
    pub(super) gone: bool,
    /// It was found in the maps to hold flows and to take none, whatever the reason: no check has
    /// failed often enough yet.
    pub(super) found: bool,
    /// It was added while others took new flows, and has not been checked yet.
    pub(super) new: bool,
    /// The agent before this one knew that its checks fail, and since when.
    pub(super) failing: bool,
}

/// See above; everything is under the first service of a group.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// What backends' agents ask for.
    pub(super) asked: AllAsked,
    /// Who takes which share of new flows.
    pub(super) tiers: Tiers,
    /// Who is kept out for failing too often.
    pub(super) damped: Damped,
    /// Who is kept out for what packets show.
    pub(super) outliers: Outliers,
    /// Which pools are in panic.
    pub(super) panics: Panics,
    /// Whose weight grows.
    pub(super) slow: SlowStarts,
    /// Whose weights follow how they fare.
    pub(super) adapting: Adapting,
    /// How much backends get.
    pub(super) measured: Measured,
    pub(super) checked: BTreeMap<Target, Checked>,
    pub(super) down: BTreeMap<Key, Down>,
    /// Backends that somebody has forced down.
    pub(super) forced: BTreeMap<Key, Down>,
}

impl Known {
    /// Pools have another first service now, by `(before, now)`, under which nothing is known by itself.
    pub(super) fn follow(&mut self, leads: &BTreeSet<(ServiceId, ServiceId)>) {
        self.tiers.follow(leads);
        self.slow.follow(leads);
        self.adapting.follow(leads);
        self.measured.follow(leads);
        self.panics.follow(leads);
        self.damped.follow(leads);
        self.outliers.follow(leads);
        let under = |(_, address), now| (now, address);
        inherit(&mut self.down, leads, |(lead, _)| lead, under);
        inherit(&mut self.forced, leads, |(lead, _)| lead, under);
        inherit(&mut self.asked, leads, |(lead, _)| lead, under);
        let under = |target, service| Target { service, ..target };
        inherit(&mut self.checked, leads, |target| target.service, under);
    }

    /// Forgets all backends but these.
    pub(super) fn retain(&mut self, keys: &BTreeSet<Key>) {
        self.checked
            .retain(|target, _| keys.contains(&(target.service, target.address)));
        self.down.retain(|key, _| keys.contains(key));
        self.damped.retain(keys);
        self.outliers.retain(keys);
        self.asked.retain(|key, _| keys.contains(key));
    }
}
