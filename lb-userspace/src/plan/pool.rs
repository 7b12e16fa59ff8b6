//! The part of a plan that places a service's pool and ring.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    maglev::{self, Claim},
    tables::{Address, Backend, Member, Slot, state},
};

use super::{
    Draft, Inputs, NoRoom,
    layout::{Placed, PlacedMember, Ring, Vacant, members_room, ring_span},
};
use crate::{
    config::Tunnel,
    dataplane::Operation,
    model::{self, Admin, Service},
    neighbours::NextHop,
};

impl Draft {
    /// Gives every backend its entry and its local id, and takes them from those that left: last, so
    /// that an id that is still in the ring in force goes to nobody else.
    pub(super) fn place_members(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        let current: BTreeMap<SocketAddr, u16> = placed
            .members()
            .map(|(id, member)| (member.address(), id))
            .collect();
        for backend in &service.backends {
            match current.get(&backend.address) {
                Some(&id) => self.refresh_member(service, backend, placed, id, inputs)?,
                None => self.add_member(service, backend, placed, inputs)?,
            }
        }
        if placed.members.len() > placed.members_room as usize {
            self.move_members(service, placed)?;
        }
        self.drop_members(service, placed);
        placed.descriptor.members_len = placed.members.len() as u16;
        Ok(())
    }

    /// Liveness is one store; anything else is a new entry, put in place by one store.
    fn refresh_member(
        &mut self,
        service: &Service,
        backend: &model::Backend,
        placed: &mut Placed,
        id: u16,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        let Some(Ok(member)) = placed.members.get_mut(usize::from(id)) else {
            return Ok(());
        };
        let wanted = entry(service, backend, Some(&member.backend), inputs);
        if wanted.state != member.backend.state {
            self.before
                .push(Operation::State(member.entry, wanted.state));
            member.backend.state = wanted.state;
        }
        if wanted != member.backend {
            let index = self.take_entry(service)?;
            self.before.push(Operation::Backend(index, wanted));
            self.released.entries.push(member.entry);
            (member.entry, member.backend) = (index, wanted);
            self.before.push(write(placed, id));
        }
        Ok(())
    }

    fn add_member(
        &mut self,
        service: &Service,
        backend: &model::Backend,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        let index = self.take_entry(service)?;
        let mut wanted = entry(service, backend, None, inputs);
        wanted.counters = self
            .layout
            .counters
            .take()
            .ok_or_else(|| no_backends(service))?;
        self.before.push(Operation::ZeroBackend(wanted.counters));
        self.before.push(Operation::Backend(index, wanted));
        let id = placed
            .members
            .iter()
            .position(Result::is_err)
            .unwrap_or(placed.members.len());
        let generation = match placed.members.get(id) {
            Some(Err(vacant)) => vacant.generation,
            _ => 0,
        };
        let member = Ok(PlacedMember {
            entry: index,
            backend: wanted,
            generation,
        });
        match placed.members.get_mut(id) {
            Some(slot) => *slot = member,
            None => placed.members.push(member),
        }
        // Beyond the span's room, the whole pool is about to be written elsewhere.
        if id < placed.members_room as usize {
            self.before.push(write(placed, id as u16));
        }
        Ok(())
    }

    fn move_members(&mut self, service: &Service, placed: &mut Placed) -> Result<(), NoRoom> {
        let room = members_room(placed.members.len() as u32);
        let start = self
            .layout
            .member_spans
            .take(room)
            .ok_or_else(|| no_backends(service))?;
        if placed.members_room > 0 {
            self.released
                .member_spans
                .push(placed.descriptor.members_start);
        }
        placed.descriptor.members_start = start;
        placed.members_room = room;
        let ids = 0..placed.members.len() as u16;
        self.before.extend(ids.map(|id| write(placed, id)));
        Ok(())
    }

    fn drop_members(&mut self, service: &Service, placed: &mut Placed) {
        let wanted: BTreeSet<SocketAddr> = service.backends.iter().map(|b| b.address).collect();
        let gone: Vec<u16> = placed
            .members()
            .filter_map(|(id, member)| (!wanted.contains(&member.address())).then_some(id))
            .collect();
        for id in gone {
            let slot = &mut placed.members[usize::from(id)];
            if let Ok(member) = slot {
                self.released.entries.push(member.entry);
                self.released.counters.push(member.backend.counters);
                *slot = Err(Vacant {
                    generation: member.generation.wrapping_add(1),
                });
            }
            self.after.push(write(placed, id));
        }
    }

    fn take_entry(&mut self, service: &Service) -> Result<u32, NoRoom> {
        self.layout
            .entries
            .take()
            .ok_or_else(|| no_backends(service))
    }

    /// Builds the ring anew where its claims or its size have changed.
    pub(super) fn place_ring(
        &mut self,
        service: &Service,
        placed: &mut Placed,
    ) -> Result<(), NoRoom> {
        let ring = wanted_ring(service, placed);
        if placed.ring.as_ref() == Some(&ring) {
            return Ok(());
        }
        self.release_ring(&placed.descriptor);
        placed.descriptor.ring_size = 0;
        placed.descriptor.ring_start = 0;
        placed.shares = BTreeMap::new();
        if !ring.claims.is_empty() {
            let start = self
                .layout
                .slots
                .take(ring_span(ring.size))
                .ok_or_else(|| NoRoom {
                    what: format!("the ring of service {} ({} slots)", service.id, ring.size),
                    setting: "ring_slots",
                })?;
            let owners = build(&ring, placed);
            for &owner in &owners {
                *placed.shares.entry(owner).or_default() += 1;
            }
            let slots = owners
                .iter()
                .map(|&owner| Slot::steady(owner.into()))
                .collect();
            self.before.push(Operation::Slots { start, slots });
            placed.descriptor.ring_start = start;
            placed.descriptor.ring_size = ring.size;
        }
        placed.ring = Some(ring);
        Ok(())
    }
}

fn no_backends(service: &Service) -> NoRoom {
    NoRoom {
        what: format!("the backends of service {}", service.id),
        setting: "backends",
    }
}

/// The store that makes a member what `placed` says of it.
fn write(placed: &Placed, id: u16) -> Operation {
    let member = match &placed.members[usize::from(id)] {
        Ok(member) => Member {
            backend: member.entry,
            generation: member.generation,
            ..Member::default()
        },
        Err(vacant) => Member {
            generation: vacant.generation,
            ..Member::default()
        },
    };
    Operation::Member(placed.descriptor.members_start + u32::from(id), member)
}

/// What a backend's entry should hold; `current` keeps its counters, and its next hop as long
/// as no other is known.
fn entry(
    service: &Service,
    backend: &model::Backend,
    current: Option<&Backend>,
    inputs: &Inputs<'_>,
) -> Backend {
    let down = inputs.down.contains(&(service.id, backend.address));
    let mut wanted = Backend {
        address: backend.address.ip().into(),
        port: backend.address.port().to_be(),
        protocol: service.id.protocol.number(),
        state: if down { 0 } else { state::TAKES | state::HOLDS },
        counters: current.map_or(0, |current| current.counters),
        ..Backend::default()
    };
    match (inputs.next_hops.get(&backend.address.ip()), current) {
        (Some(next_hop), _) => set_next_hop(&mut wanted, next_hop, inputs.tunnel),
        (None, Some(current)) => {
            wanted.source = current.source;
            wanted.source_mask = current.source_mask;
            wanted.interface = current.interface;
            wanted.source_mac = current.source_mac;
            wanted.destination_mac = current.destination_mac;
        }
        (None, None) => {}
    }
    wanted
}

fn set_next_hop(wanted: &mut Backend, next_hop: &NextHop, tunnel: Tunnel) {
    wanted.interface = next_hop.interface;
    wanted.source_mac = next_hop.source_mac;
    wanted.destination_mac = next_hop.destination_mac;
    (wanted.source, wanted.source_mask) = outer_source(next_hop.source_address, tunnel);
}

/// The outer source, and the bits of its last word that vary with the flow.
fn outer_source(own: IpAddr, tunnel: Tunnel) -> (Address, u32) {
    let host_bits = |bits: u32| u32::MAX.checked_shr(32 - bits.min(32)).unwrap_or(0).to_be();
    match own {
        IpAddr::V4(_) => match tunnel.source_v4 {
            Some((prefix, length)) => {
                (IpAddr::V4(prefix).into(), host_bits(32 - u32::from(length)))
            }
            None => (own.into(), 0),
        },
        IpAddr::V6(_) => match tunnel.source_v6 {
            Some((prefix, length)) => (
                IpAddr::V6(prefix).into(),
                host_bits(128 - u32::from(length)),
            ),
            None => (own.into(), 0),
        },
    }
}

/// A backend takes new flows while it is active, not down, has weight and can be reached.
fn wanted_ring(service: &Service, placed: &Placed) -> Ring {
    let claims = placed
        .members()
        .filter_map(|(id, member)| {
            let backend = service.backend(member.address())?;
            let takes = backend.admin == Admin::Active
                && backend.weight > 0
                && member.backend.state & state::TAKES != 0
                && member.backend.interface != 0;
            takes.then_some((id, backend.weight))
        })
        .collect();
    // Down and drained backends count, so that a failure does not change the size.
    let in_force = Some(placed.descriptor.ring_size).filter(|&size| size > 0);
    let current = placed.ring.as_ref().map(|ring| ring.size).or(in_force);
    let size = service
        .ring_size
        .unwrap_or_else(|| maglev::suitable_size(service.backends.len(), current));
    Ring { size, claims }
}

fn build(ring: &Ring, placed: &Placed) -> Vec<u16> {
    let mut claims: Vec<Claim> = ring
        .claims
        .iter()
        .filter_map(|&(id, weight)| {
            let member = placed.members.get(usize::from(id))?.as_ref().ok()?;
            Some(Claim::new(
                id,
                &member.backend.address,
                member.backend.port,
                weight,
                ring.size,
            ))
        })
        .collect();
    // In the order of addresses, which every balancer shares, not in that of local ids.
    claims.sort_by_key(|claim| {
        let member = placed
            .members
            .get(usize::from(claim.id()))
            .and_then(|member| member.as_ref().ok());
        member.map(PlacedMember::address)
    });
    let mut owners = vec![maglev::NOBODY; ring.size as usize];
    maglev::fill(&mut owners, &mut claims);
    owners
}
