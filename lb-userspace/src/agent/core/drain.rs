//! How far backends that take no new flows are from having none.
//!
//! What a backend has is known only in part: recorded flows are seen by sweeps; others may be idle, and are
//! unknown until they speak, which they do through slots that still lead to it, or until these have moved on. Where
//! nobody takes new flows, slots stay; who has had no packet for the moving time then has no flow that is kept. The
//! backend itself knows: what it says counts from when it has taken no new flows for long enough that none is on its way. Recorded
//! flows that have not ended contradict it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lb_common::tables::{Tick, state};

use super::{Core, forced::Key};
use crate::{
    agent::ChangeError,
    dataplane::Dataplane,
    health::Target,
    model::ModelError,
    plan::{Layout, Placed, PlacedMember, duration, has_passed, loads::Holder, still_named, ticks},
    snapshot::DrainStatus,
};

/// A packet that was sent to a backend before it took no new flows is there by then, and what came of it is known there.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// What is known of a member that takes no new flows.
#[derive(Debug, Clone, Copy)]
struct Still {
    /// Since when it does not, at the latest.
    since: Tick,
    /// When it was reported last that it has none left.
    reported: Option<Tick>,
    /// When its agent has said so, if that was its last answer.
    by_agent: Option<Tick>,
}

/// Members that take no new flows.
#[derive(Debug, Clone, Default)]
pub(super) struct Stills {
    members: BTreeMap<Holder, Still>,
    /// An agent has ever said that its backend has no flow left.
    heard_of: bool,
}

/// Who says that a backend has no flow left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teller {
    /// Whoever reports it, once.
    Reporter,
    /// Its agent, whose next answer may be another.
    Agent,
}

impl Stills {
    /// Takes note of who takes none any more or again, by what the maps held and hold. Who changes its place is who it was.
    pub(super) fn follow(&mut self, before: &Layout, after: &Layout, now: Tick) {
        let numbers: BTreeSet<&u32> = before.pools.keys().chain(after.pools.keys()).collect();
        let (mut over, mut begun) = (Vec::new(), Vec::new());
        for number in numbers {
            let [was, is] = [before, after].map(|layout| layout.pools.get(number));
            if let (Some(was), Some(is)) = (was, is)
                && Arc::ptr_eq(was, is)
            {
                continue;
            }
            let [was, is] = [was, is].map(|placed| placed.map(Arc::as_ref));
            let room = |placed: Option<&Placed>| placed.map_or(0, |placed| placed.members.len());
            for place in 0..room(was).max(room(is)) {
                let [was, is] =
                    [was, is].map(|placed| placed.and_then(|placed| still_at(placed, place)));
                if was != is {
                    over.extend(was);
                    begun.extend(is);
                }
            }
        }
        let mut known: BTreeMap<Holder, Still> = BTreeMap::new();
        known.extend(
            over.iter()
                .filter_map(|holder| self.members.remove_entry(holder)),
        );
        for holder in begun {
            let still = known.remove(&holder).unwrap_or(Still::new(now));
            self.members.insert(holder, still);
        }
    }

    /// Takes note of one that takes none any more.
    pub(super) fn begin(&mut self, member: &PlacedMember, now: Tick) {
        if let Some(holder) = still(member) {
            self.members.entry(holder).or_insert(Still::new(now));
        }
    }

    fn said(&self, member: &PlacedMember) -> Option<Tick> {
        self.members.get(&member.holder())?.said()
    }
}

impl Still {
    fn new(since: Tick) -> Self {
        Self {
            since,
            reported: None,
            by_agent: None,
        }
    }

    /// When it was said last that it has none left, by whoever still says so.
    fn said(&self) -> Option<Tick> {
        self.by_agent.or(self.reported)
    }
}

/// A member that takes no new flows.
fn still(member: &PlacedMember) -> Option<Holder> {
    (member.backend.state & state::TAKES == 0).then(|| member.holder())
}

/// The one at a place of a pool, if there is one.
fn still_at(placed: &Placed, place: usize) -> Option<Holder> {
    placed.members.get(place)?.as_ref().ok().and_then(still)
}

impl<D: Dataplane> Core<D> {
    /// Takes note that a backend says that it has no flow left, as it knew so long ago; whether that is news.
    ///
    /// # Errors
    /// It is not there, or takes new flows, or has done so until too short a time ago: what it says is of before.
    pub fn says_drained(
        &mut self,
        target: Target,
        teller: Teller,
        age: Duration,
    ) -> Result<bool, ChangeError> {
        let Target {
            service: id,
            address,
        } = target;
        let known = self.state.service(id);
        known.ok_or(ModelError::UnknownService { id })?;
        let placed = self.layout.placed(id);
        let member = placed.and_then(|placed| placed.member(address));
        let (_, member) = member.ok_or(ModelError::UnknownBackend { id, address })?;
        let holder = member.holder();
        let now = self.dataplane.now();
        let takes = member.backend.state & state::TAKES != 0;
        let Some(still) = self.stills.members.get_mut(&holder).filter(|_| !takes) else {
            return Err(ChangeError::NotDrained(format!(
                "backend {address} of {id} takes new flows, so that it may have some at any time: drain it first, and report it once it has none"
            )));
        };
        let quiet = duration(now.wrapping_sub(still.since)).saturating_sub(age);
        if quiet < IN_FLIGHT {
            let [quiet, least] = [quiet, IN_FLIGHT].map(|time| time.as_millis());
            return Err(ChangeError::NotDrained(format!(
                "backend {address} of {id} has taken no new flows for {quiet} ms only, and packets of some may be on their way: report it once it has taken none for {least} ms"
            )));
        }
        let news = still.said().is_none();
        let said = match teller {
            Teller::Reporter => &mut still.reported,
            Teller::Agent => &mut still.by_agent,
        };
        *said = Some(now.wrapping_sub(ticks(age)));
        self.stills.heard_of |= teller == Teller::Agent;
        Ok(news)
    }

    /// Takes note that a backend's agent does not say, or says no longer, that it has no flow left.
    pub(super) fn takes_drained_back(&mut self, (lead, address): Key) {
        if !self.stills.heard_of {
            return;
        }
        let placed = self.layout.placed(lead);
        let member = placed.and_then(|placed| placed.member(address));
        let still = member.and_then(|(_, member)| self.stills.members.get_mut(&member.holder()));
        if let Some(still) = still {
            still.by_agent = None;
        }
    }

    /// Whether the next sweep may find that a backend has no flow left which says so.
    pub(super) fn awaits_proof(&self) -> bool {
        self.stills
            .members
            .values()
            .any(|still| still.said().is_some())
            && self.layout.pools.values().any(|placed| {
                let mut members = placed.members();
                members.any(|(id, member)| {
                    self.stills.said(member).is_some() && !self.has_none_left(placed, id, member)
                })
            })
    }

    /// Whether a member has said that it has no flow left, and a sweep since has found none.
    fn has_none_left(&self, placed: &Placed, id: u16, member: &PlacedMember) -> bool {
        let Some(said) = self.stills.said(member) else {
            return false;
        };
        let stateless = placed.descriptor.moving_time == 0;
        let swept = has_passed(0, said, self.census.began) && self.census.is_about(placed);
        stateless || (swept && self.census.is_idle(placed, id))
    }

    /// What is left of a member that takes no new flows; nothing of one that takes some.
    pub(super) fn drain_status(
        &self,
        placed: &Placed,
        (id, member): (u16, &PlacedMember),
    ) -> Option<DrainStatus> {
        if member.backend.state & state::TAKES != 0 {
            return None;
        }
        if member.backend.state & state::HOLDS == 0 {
            return Some(DrainStatus {
                ended: true,
                ..DrainStatus::default()
            });
        }
        let unknown_slots = match placed.is_quiet(id) {
            true => 0,
            false => placed.naming(id),
        };
        let by_id = still_named(placed).contains(&id);
        let stateless = placed.descriptor.moving_time == 0;
        let swept = self.census.is_about(placed) && self.census.is_vacant(placed, id);
        let moved = unknown_slots == 0 && !by_id && (stateless || swept);
        Some(DrainStatus {
            observed: self.census.records_of(placed, id),
            unknown_slots,
            by_id,
            reported: self.stills.said(member).is_some(),
            ended: moved || self.has_none_left(placed, id, member),
        })
    }
}
