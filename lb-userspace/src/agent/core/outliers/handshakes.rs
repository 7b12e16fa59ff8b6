//! The handshakes that are watched: how many of a pool's are, when one has failed, and how long they take.

use std::{collections::BTreeMap, time::Duration};

use lb_common::tables::{Handshake, SECOND, TICK_SHIFT, Tick};

use crate::{
    agent::{core::Core, outlier},
    dataplane::{Dataplane, DataplaneError},
    model::{Passive, ServiceId},
    plan::{has_passed, ticks},
};

/// How often handshakes are looked through for those that nothing follows.
const LOOK_THROUGH: Duration = Duration::from_millis(50);

/// The handshakes of a backend's clients so far, of those that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::agent::core) struct Handshakes {
    /// Those whose client went on.
    pub(in crate::agent::core) progressed: u64,
    /// How long these took in all.
    pub(in crate::agent::core) took: Duration,
    /// Those whose client did not.
    pub(in crate::agent::core) missed: u64,
}

impl Handshakes {
    /// Those since then; none where some are not known any more.
    pub(in crate::agent::core) fn since(self, before: Self) -> Self {
        let since = || {
            Some(Self {
                progressed: self.progressed.checked_sub(before.progressed)?,
                took: self.took.checked_sub(before.took)?,
                missed: self.missed.checked_sub(before.missed)?,
            })
        };
        since().unwrap_or_default()
    }
}

impl<D: Dataplane> Core<D> {
    /// Ends handshakes that nothing has followed for too long, where it is time to look.
    pub(super) fn look_through(
        &mut self,
        pools: &[(ServiceId, Passive)],
        now: Tick,
    ) -> Result<(), DataplaneError> {
        if !has_passed(ticks(LOOK_THROUGH), self.known.outliers.looked, now) {
            return Ok(());
        }
        self.known.outliers.looked = now;
        let mut patience: BTreeMap<u32, Tick> = BTreeMap::new();
        for &(lead, passive) in pools {
            let counters = self.looked_at(lead).into_iter().map(|w| w.counters);
            patience.extend(counters.map(|counters| (counters, ticks(passive.handshake))));
        }
        let stalled = &mut self.known.outliers.stalled;
        stalled.retain(|counters, _| patience.contains_key(counters));
        self.dataplane.end_handshakes(&mut |handshake: &Handshake| {
            let since = (handshake.since >> TICK_SHIFT) as Tick;
            let late = patience
                .get(&handshake.counters)
                .is_some_and(|&patience| has_passed(patience, since, now));
            if late {
                *stalled.entry(handshake.counters).or_default() += 1;
            }
            late
        })
    }

    /// What the counters with this index have of handshakes with a backend that answers `direct`ly, or not.
    pub(in crate::agent::core) fn handshakes(
        &self,
        counters: u32,
        direct: bool,
    ) -> Result<Handshakes, DataplaneError> {
        let signs = self.dataplane.signs(counters)?;
        let shown = self.shown(counters, &signs, direct);
        Ok(Handshakes {
            progressed: shown.progressed,
            took: Duration::from_nanos(signs.nanoseconds),
            missed: shown.missed,
        })
    }

    /// Watches more or fewer of a pool's handshakes; whether that is another share than before.
    pub(super) fn turn_sampling(
        &mut self,
        lead: ServiceId,
        now: Tick,
    ) -> Result<bool, DataplaneError> {
        let service = self.state.service(lead);
        if service.is_none_or(|service| !service.watches_handshakes()) {
            return Ok(false);
        }
        let before = self.known.outliers.begun.get(&lead).copied();
        if before.is_some_and(|(since, _)| !has_passed(SECOND, since, now)) {
            return Ok(false);
        }
        let mut begun = 0;
        if let Some(placed) = self.layout.placed(lead) {
            for &index in placed.services.values() {
                begun += self.dataplane.service_counters(index)?.flows;
            }
        }
        self.known.outliers.begun.insert(lead, (now, begun));
        let Some((since, had)) = before else {
            return Ok(false);
        };
        let time = u64::from(now.wrapping_sub(since)).max(1);
        let rate = begun.saturating_sub(had) * u64::from(SECOND) / time;
        let is = self.sampling_of(lead);
        let next = outlier::next_sampling(is, rate);
        self.known.outliers.sampling.insert(lead, next);
        Ok(next != is)
    }

    fn sampling_of(&self, lead: ServiceId) -> u8 {
        self.known
            .outliers
            .sampling
            .get(&lead)
            .copied()
            .unwrap_or(1)
    }
}
