//! Which backend takes a flow: service, slot, member, backend. Reads tables, writes nothing.

use crate::{
    flow::Flow,
    hash::FlowHash,
    tables::{Backend, Descriptor, Endpoint, Slot, Tables, state},
    verdict::DropReason,
};

/// Slots tried before a flow is given up: the first choice and two more, so that a dead
/// backend's flows find a live one before the ring follows.
pub const ATTEMPTS: u32 = 3;

/// A service as of the generation in force.
#[derive(Debug, Clone, Copy)]
pub struct Service<'t> {
    /// Its index in the service map and counters.
    pub index: u32,
    /// What is in force for it.
    pub descriptor: &'t Descriptor,
}

/// The service at an endpoint, if there is one now.
#[inline(always)]
pub fn service<'t, T: Tables>(tables: &'t T, endpoint: &Endpoint) -> Option<Service<'t>> {
    let index = tables.service(endpoint)?;
    let [even, odd] = &tables.service_entry(index)?.halves;
    let descriptor = if tables.generation() & 1 == 0 {
        even
    } else {
        odd
    };
    (descriptor.active != 0).then_some(Service { index, descriptor })
}

/// The hash that places a flow on its service's ring.
#[inline(always)]
pub fn hash<T: Tables>(tables: &T, flow: &Flow) -> Option<FlowHash> {
    let key = &tables.control()?.hash_key;
    Some(crate::hash::flow(
        key,
        &flow.source,
        &flow.destination,
        flow.ports(),
        flow.protocol,
    ))
}

/// The backend that takes a flow.
///
/// # Errors
/// [`DropReason::NoBackend`] when the ring is empty or every attempt met a dead backend;
/// [`DropReason::Inconsistent`] when a slot leads nowhere.
#[inline(always)]
pub fn backend<'t, T: Tables>(
    tables: &'t T,
    descriptor: &Descriptor,
    hash: FlowHash,
) -> Result<&'t Backend, DropReason> {
    if descriptor.ring_size == 0 {
        return Err(DropReason::NoBackend);
    }
    for attempt in 0..ATTEMPTS {
        let slot = slot(tables, descriptor, hash, attempt).ok_or(DropReason::Inconsistent)?;
        let backend = member(tables, descriptor, slot.owner()).ok_or(DropReason::Inconsistent)?;
        if backend.state & state::ALIVE != 0 {
            return Ok(backend);
        }
    }
    Err(DropReason::NoBackend)
}

#[inline(always)]
fn slot<T: Tables>(
    tables: &T,
    descriptor: &Descriptor,
    hash: FlowHash,
    attempt: u32,
) -> Option<Slot> {
    let index = descriptor.ring_start + hash.slot(descriptor.ring_size, attempt);
    let pair = tables.slots(index >> 1)?;
    Some(Slot(if index & 1 == 0 {
        pair as u32
    } else {
        (pair >> 32) as u32
    }))
}

#[inline(always)]
fn member<'t, T: Tables>(tables: &'t T, descriptor: &Descriptor, id: u32) -> Option<&'t Backend> {
    if id >= descriptor.members_len {
        return None;
    }
    match tables.member(descriptor.members_start + id)?.backend {
        0 => None,
        index => tables.backend(index),
    }
}
