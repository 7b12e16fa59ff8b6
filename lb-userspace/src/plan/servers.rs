//! The part of a plan that says which server id leads to which backend. Pure.
//!
//! An id is told before the switch, so that whoever is new can be found from its first answer on, and
//! taken away after the grace period. Either is true by itself: with an id goes the generation of the
//! backend that has it, so that it leads to nobody else, whatever a packet sees of the pool.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::tables::{Server, ServerKey, state};

use super::{Draft, Inputs, Placed, PlanError, check_room};
use crate::{
    dataplane::Operation,
    model::{Quic, Service, State},
};

/// A QUIC service in the maps, with its index there.
type Identified<'a> = (u32, &'a Service, Quic, &'a Placed);

impl Draft {
    /// Backends have the ids that are wanted of them. One that leaves keeps its own, and all keep those
    /// of other configurations: connections that began under them go on.
    pub(super) fn set_servers(&mut self, state: &State) -> Result<(), PlanError> {
        let services: BTreeMap<u32, Identified<'_>> = state
            .services()
            .filter_map(|service| {
                let placed = self.layout.placed(service.id)?;
                let index = *placed.services.get(&service.id)?;
                Some((index, (index, service, service.quic?, placed)))
            })
            .collect();
        let mut wanted: BTreeMap<ServerKey, Server> =
            services.values().flat_map(wanted_of).collect();
        for (&key, &server) in &self.layout.servers {
            let Some(&(_, service, quic, placed)) = services.get(&key.service) else {
                continue;
            };
            let Some(address) = kept(service, quic, placed, &key, &server) else {
                continue;
            };
            if wanted
                .insert(key, server)
                .is_some_and(|taken| taken != server)
            {
                let other = service.id;
                return Err(PlanError::ServerIdLeaving { address, other });
            }
        }
        let room = self.layout.capacity.servers();
        check_room(&self.layout.servers, &wanted, room, "backends", |needed| {
            format!(
                "{needed} server ids, one of each backend for each service of a group ({room} fit)"
            )
        })?;
        for (&key, &server) in &wanted {
            if self.layout.servers.get(&key) != Some(&server) {
                self.before.push(Operation::Server(key, server));
            }
        }
        for &key in self.layout.servers.keys() {
            if !wanted.contains_key(&key) {
                self.after.push(Operation::ForgetServer(key));
            }
        }
        self.layout.servers = wanted;
        Ok(())
    }
}

/// The ids of a service's pool.
fn wanted_of<'a>(
    (index, service, quic, placed): &'a Identified<'_>,
) -> impl Iterator<Item = (ServerKey, Server)> + 'a {
    service.backends.iter().filter_map(|backend| {
        let (id, member) = placed.member(backend.address)?;
        let server_id = backend.server_id?;
        let key = ServerKey::new(*index, quic.config_id, server_id.bytes());
        let server = Server {
            member: id.into(),
            generation: member.member.generation,
        };
        Some((key, server))
    })
}

/// The backend of an id that nobody wants now and that it keeps nevertheless.
fn kept(
    service: &Service,
    quic: Quic,
    placed: &Placed,
    key: &ServerKey,
    server: &Server,
) -> Option<SocketAddr> {
    let member = placed
        .member_by_id(server.member)
        .filter(|member| member.member.generation == server.generation)?;
    let address = member.address();
    let leaves = service.backend(address).is_none();
    let readable = key.length() == u32::from(quic.server_id_length);
    let former = key.config_id() != quic.config_id;
    (readable && (leaves || former)).then_some(address)
}

/// Takes note of which backends that take no new flows still get packets. Connection ids lead to them without a
/// record, and so do steady slots where nobody else could own them, so that a sweep of the flow tables does not tell.
pub(super) fn note_traffic(placed: &mut Placed, inputs: &Inputs<'_>) {
    let resigned: BTreeMap<u16, u32> = placed
        .members()
        .filter(|(_, member)| member.backend.state & state::TAKES == 0)
        .map(|(id, member)| (id, member.backend.counters))
        .collect();
    let within = placed.descriptor.moving_time;
    for (id, counters) in resigned {
        if let Some(&packets) = inputs.traffic.get(&counters) {
            let watched = placed.traffic.entry(id).or_default();
            watched.note(packets, inputs.now, within);
        }
    }
}

/// Forgets what was watched of members that take new flows, or have gone.
pub(super) fn forget_traffic(placed: &mut Placed) {
    let members = placed.members();
    let resigned = members.filter(|(_, member)| member.backend.state & state::TAKES == 0);
    let resigned: BTreeSet<u16> = resigned.map(|(id, _)| id).collect();
    placed.traffic.retain(|id, _| resigned.contains(id));
}

/// Local ids of members that connection ids may still lead packets to.
pub fn still_named(placed: &Placed) -> BTreeSet<u16> {
    if placed.descriptor.quic == 0 {
        return BTreeSet::new();
    }
    placed
        .members()
        .map(|(id, _)| id)
        .filter(|id| {
            placed
                .traffic
                .get(id)
                .is_none_or(|watched| !watched.is_quiet())
        })
        .collect()
}
