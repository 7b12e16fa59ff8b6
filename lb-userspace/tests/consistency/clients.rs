//! Clients of services with persistence, and whom their next new flow has to reach: another oracle.
//!
//! It expects no more than is certain: what could not be recorded, or went elsewhere for a reason that
//! clients cannot know, ends an expectation.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    memory::MemoryTables,
    schedule,
    steer::{self, Candidate, RouteTable},
    tables::{Descriptor, Tables as _, Tick},
    track::OPENING_LIFETIME,
};
use lb_userspace::plan;

use crate::{
    flow::{Flow, Time},
    scenario,
};

/// Whom a client's last new flow got, and when.
#[derive(Debug, Clone, Copy)]
struct Expected {
    backend: IpAddr,
    at: Time,
    /// More than packets that open or reset has come.
    confirmed: bool,
}

impl Expected {
    fn is_fresh(&self, persistence: Tick, now: Time) -> bool {
        let lifetime = match self.confirmed {
            true => persistence,
            false => persistence.min(OPENING_LIFETIME),
        };
        now - self.at < Time::from(lifetime)
    }
}

/// See above.
#[derive(Debug, Default)]
pub struct Clients {
    expected: BTreeMap<(usize, IpAddr), Expected>,
}

impl Clients {
    /// Whom the client's next new flow has to reach, if anybody.
    pub fn expected(
        &self,
        flow: &Flow,
        descriptor: &Descriptor,
        tables: &MemoryTables,
        now: Time,
    ) -> Option<IpAddr> {
        let expected = self.expected.get(&(flow.service, flow.client.ip()))?;
        let fresh = expected.is_fresh(descriptor.persistence, now);
        let subset = subset(tables, descriptor, flow.client.ip());
        (fresh && takes(tables, descriptor, expected.backend, subset)).then_some(expected.backend)
    }

    /// A new flow of a client reached a backend, as far as that is certain.
    pub fn began(
        &mut self,
        flow: &Flow,
        descriptor: &Descriptor,
        reached: Option<IpAddr>,
        now: Time,
    ) {
        let key = (flow.service, flow.client.ip());
        let before = self.expected.remove(&key);
        let before = before.filter(|before| before.is_fresh(descriptor.persistence, now));
        if let Some(backend) = reached {
            let confirmed = before.is_some_and(|before| before.confirmed);
            let expected = Expected {
                backend,
                at: now,
                confirmed,
            };
            self.expected.insert(key, expected);
        }
    }

    /// Another packet of the client's reached a backend, as far as that is certain, and established a flow, or
    /// not.
    pub fn went_on(&mut self, flow: &Flow, reached: Option<IpAddr>, establishes: bool) {
        let key = (flow.service, flow.client.ip());
        let Some(expected) = self.expected.get_mut(&key) else {
            return;
        };
        if reached == Some(expected.backend) {
            expected.confirmed |= establishes;
        } else {
            self.expected.remove(&key);
        }
    }

    /// Nothing is certain of a client any more.
    pub fn forget(&mut self, flow: &Flow) {
        self.expected.remove(&(flow.service, flow.client.ip()));
    }

    /// Nothing is certain of a service's clients any more.
    pub fn forget_service(&mut self, service: usize) {
        self.expected.retain(|&(of, _), _| of != service);
    }

    /// Nothing is certain of anybody.
    pub fn forget_all(&mut self) {
        self.expected.clear();
    }
}

/// The subset that a client is for.
fn subset(tables: &MemoryTables, descriptor: &Descriptor, client: IpAddr) -> u32 {
    let half = plan::half(tables.control.generation) as u32;
    match descriptor.is_routed() {
        true => tables.subset(client.into(), RouteTable::of(descriptor, half, false)),
        false => 0,
    }
}

/// Whether a backend is for new flows of a client.
pub fn is_for(
    tables: &MemoryTables,
    descriptor: &Descriptor,
    client: IpAddr,
    address: IpAddr,
) -> bool {
    let subset = subset(tables, descriptor, client);
    let its = |candidate: Candidate<'_>| candidate.member.apart >> subset & 1 == 0;
    members(tables, descriptor, address).any(its)
}

/// Whether a backend takes one more flow.
fn takes(tables: &MemoryTables, descriptor: &Descriptor, address: IpAddr, subset: u32) -> bool {
    let one_more = |candidate: &Candidate<'_>| schedule::eligible(tables, candidate, subset);
    members(tables, descriptor, address).any(|candidate| one_more(&candidate))
}

/// Whether a backend takes new flows, however many it has.
pub fn is_taking(tables: &MemoryTables, descriptor: &Descriptor, address: IpAddr) -> bool {
    members(tables, descriptor, address).any(|candidate| candidate.takes())
}

/// The members of a service at an address.
fn members<'t>(
    tables: &'t MemoryTables,
    descriptor: &'t Descriptor,
    address: IpAddr,
) -> impl Iterator<Item = Candidate<'t>> {
    let ids = 0..u32::from(descriptor.members_len);
    let all = ids.filter_map(move |id| steer::candidate(tables, descriptor, id));
    all.filter(move |candidate| IpAddr::from(candidate.backend.address) == address)
}

/// What is in force for the service of an endpoint.
pub fn in_force(tables: &MemoryTables, id: lb_userspace::model::ServiceId) -> Option<Descriptor> {
    let half = plan::half(tables.control.generation);
    let mut entries = tables
        .service_entries
        .iter()
        .map(|entry| entry.halves[half]);
    entries.find(|descriptor| descriptor.is_at(&scenario::endpoint(id)))
}
