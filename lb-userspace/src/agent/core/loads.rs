//! Keeps the flows in progress of backends right; what to add is [`crate::plan::census`]'s and
//! [`crate::plan::loads`]'s to say.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Core;
use crate::{
    agent::ChangeError,
    dataplane::{Dataplane, Operation},
    plan::{
        census::Census,
        loads::{self, Holder},
    },
};

impl<D: Dataplane> Core<D> {
    /// Takes off the flows whose records a sweep has removed.
    pub(super) fn take_off(&mut self, census: &Census) -> Result<(), ChangeError> {
        let known = self.certain_layout().map(drop);
        known.map_err(|error| ChangeError::Kernel(error.to_string()))?;
        let ended = census
            .ended
            .iter()
            .map(|(&holder, &count)| (holder, -count));
        self.add_loads(&ended.collect(), |_, _| {})
    }

    /// Corrects counts by what this sweep and the one before agree on.
    pub(super) fn correct_loads(&mut self, census: &Census) -> Result<(), ChangeError> {
        let corrections = loads::corrections(&self.census.excess, &census.excess);
        self.add_loads(&corrections, |backend, change| {
            tracing::warn!(%backend, change, "flows in progress were miscounted; corrected");
        })
    }

    /// Adds to counts, as far as they are still of those that they were of, and tells of each.
    fn add_loads(
        &mut self,
        changes: &BTreeMap<Holder, i64>,
        tell: impl Fn(SocketAddr, i64),
    ) -> Result<(), ChangeError> {
        let pools = self.layout.pools.values();
        for (_, member) in pools.flat_map(|placed| placed.members()) {
            let Some(&change) = changes.get(&member.holder()) else {
                continue;
            };
            let add = Operation::AddLoad(member.holder().counters, change);
            let done = self.dataplane.execute(&[add]);
            done.map_err(|error| ChangeError::Kernel(error.to_string()))?;
            tell(member.address(), change);
        }
        Ok(())
    }
}
