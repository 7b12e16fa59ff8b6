//! How far backends that take no new flows are from having none.
//!
//! What a backend has is known only in part: recorded flows are seen by sweeps; others may be idle, and are
//! unknown until they speak, which they do through slots that still lead to it, or until these have moved on.

use lb_common::tables::state;

use super::Core;
use crate::{
    dataplane::Dataplane,
    plan::{Placed, PlacedMember, still_named},
    snapshot::DrainStatus,
};

impl<D: Dataplane> Core<D> {
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
        let unknown_slots = placed.naming(id);
        let by_id = still_named(placed).contains(&id);
        let stateless = placed.descriptor.moving_time == 0;
        let swept = self.census.is_about(placed) && self.census.is_vacant(placed, id);
        Some(DrainStatus {
            observed: self.census.records_of(placed, id),
            unknown_slots,
            by_id,
            ended: unknown_slots == 0 && !by_id && (stateless || swept),
        })
    }
}
