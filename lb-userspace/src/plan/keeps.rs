//! Whether a plan forgets flows because a service leaves its pool, or its connection ids become
//! unreadable. Pure.
//!
//! A record names a backend by an id that means nothing in another pool, so flows follow a service there
//! only where no record is needed: where both rings are at rest, place flows by themselves, and name the
//! same backends. Anything else is an obstacle, which waiting may remove.

use std::net::SocketAddr;

use lb_common::tables::{ServerKey, mode, scheduler, service_flag, state};

use super::{Layout, Placed, PlanError};
use crate::model::ServiceId;

/// Refuses what the layout after would have forgotten of the one before.
///
/// # Errors
/// [`PlanError::Forgets`] names the first service, and what stands in the way.
pub(super) fn check(before: &Layout, after: &Layout) -> Result<(), PlanError> {
    for (id, index, placed) in after.services() {
        let Some(former) = before.placed(id) else {
            continue;
        };
        let Some(&former_index) = former.services.get(&id) else {
            continue;
        };
        let obstacle = obstacle(id, former, placed).or_else(|| {
            let forgotten = forgotten_server(before, (former, former_index), after, (placed, index))?;
            Some(format!(
                "its connections with {forgotten} are told by connection ids that could not be read any more: keep server_id_length and the backends' server ids, unless config_id changes with those"
            ))
        });
        if let Some(obstacle) = obstacle {
            return Err(PlanError::Forgets { id, obstacle });
        }
    }
    Ok(())
}

/// What keeps a service's flows from following it to another port, or into another pool.
fn obstacle(id: ServiceId, former: &Placed, placed: &Placed) -> Option<String> {
    if readdresses(id, former, placed) {
        return Some("its packets would reach backends at another port, as those of a group keep theirs: give the backends the VIP's port".to_owned());
    }
    if former.number == placed.number {
        return None;
    }
    let (old, new) = (&former.descriptor, &placed.descriptor);
    if old.moving_time == 0 && new.moving_time == 0 {
        return None;
    }
    let by_ring = |pool: &Placed| {
        pool.descriptor.scheduler() == scheduler::RING
            && pool.descriptor.flags & service_flag::ALWAYS == 0
    };
    if !by_ring(former) || !by_ring(placed) {
        return Some("every flow of it is recorded, for backends as its pool numbers them: set scheduler maglev, source-hash or three-tuple-hash, flow_state auto and no persistence first".to_owned());
    }
    let moves = former.ring.phases.steady != former.ring.size() || former.previous.is_some();
    if moves || placed.ring.phases.moving > 0 || placed.previous.is_some() {
        return Some(
            "slots move or settle: try again once `lbctl service show` says that all are steady"
                .to_owned(),
        );
    }
    let same_places = old.fields() == new.fields() && former.routes.is_same(&placed.routes);
    (!same_places || !same_owners(former, placed)).then(|| {
        "the two rings give flows to different backends, or one of them takes none: give both the same ring_size, source routes and backends, all up and not drained".to_owned()
    })
}

/// Whether `nat` and `full-nat` backends are reached at another port in a group than outside of it.
fn readdresses(id: ServiceId, former: &Placed, placed: &Placed) -> bool {
    let keeps_port = |pool: &Placed| pool.descriptor.flags & service_flag::KEEPS_PORT;
    matches!(placed.descriptor.mode, mode::NAT | mode::FULL_NAT)
        && keeps_port(former) != keeps_port(placed)
        && placed
            .members()
            .any(|(_, member)| !id.ports().contains(&member.address().port()))
}

/// Whether each slot leads to one backend in both rings, which takes new flows: of one that takes none,
/// flows may be recorded elsewhere although its slot is steady.
fn same_owners(former: &Placed, placed: &Placed) -> bool {
    let owner = |pool: &Placed, id: u32| -> Option<SocketAddr> {
        let member = pool.member_by_id(id)?;
        (member.backend.state & state::TAKES != 0).then(|| member.address())
    };
    former.ring.size() == placed.ring.size()
        && (former.ring.slots.iter().zip(&placed.ring.slots)).all(|(old, new)| {
            let old = owner(former, old.owner());
            old.is_some() && old == owner(placed, new.owner())
        })
}

/// A backend that a connection id led to and leads to no longer. One that the plan has released from the
/// same pool had no connections any more.
fn forgotten_server(
    before: &Layout,
    (former, former_index): (&Placed, u32),
    after: &Layout,
    (placed, index): (&Placed, u32),
) -> Option<SocketAddr> {
    let keys = before.servers.iter();
    let mut of_service = keys.filter(|(key, _)| key.service == former_index);
    of_service.find_map(|(key, server)| {
        let backend = former.member_by_id(server.member)?.address();
        if former.number == placed.number && placed.member(backend).is_none() {
            return None;
        }
        let key = ServerKey {
            service: index,
            ..*key
        };
        let leads = after.servers.get(&key);
        let leads = leads.and_then(|server| placed.member_by_id(server.member));
        (leads.map(|member| member.address()) != Some(backend)).then_some(backend)
    })
}
