//! Corrects the flows in progress of backends; by how much is [`crate::plan::loads`]'s to say.

use super::Core;
use crate::{
    agent::ChangeError,
    dataplane::{Dataplane, Operation},
    plan::{
        Placed,
        loads::{self, Excess},
    },
};

impl<D: Dataplane> Core<D> {
    /// Corrects counts by what this sweep and the one before agree on.
    pub(super) fn correct_loads(&mut self, excess: &Excess) -> Result<(), ChangeError> {
        let corrections = loads::corrections(&self.census.excess, excess);
        let pools = self.layout.pools.values();
        for (_, member) in pools.flat_map(Placed::members) {
            let Some(&change) = corrections.get(&member.holder()) else {
                continue;
            };
            let add = Operation::AddLoad(member.holder().counters, change);
            let done = self.dataplane.execute(&[add]);
            done.map_err(|error| ChangeError::Kernel(error.to_string()))?;
            let backend = member.address();
            tracing::warn!(%backend, change, "flows in progress were miscounted; corrected");
        }
        Ok(())
    }
}
