//! The part of a plan that places a service's pool: its members, their entries, and what state they
//! are in. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    mtu,
    tables::{Address, Backend, Member, Slot, state},
};

use super::{
    Draft, Inputs, Liveness, NoRoom,
    layout::{Placed, PlacedMember, Vacant, members_room},
    servers::still_named,
};
use crate::{
    config::Tunnel,
    dataplane::Operation,
    model::{self, Mode, Scheduler, Service, Subsets},
    neighbours::NextHop,
};

impl Draft {
    /// Gives every backend its entry and its local id. Those that are wanted no more stay as long as
    /// flows may be theirs ([`Draft::release_left`]).
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
        let subsets = service.subsets();
        for backend in &service.backends {
            let wanted = Wanted::of(service, &subsets, backend, inputs);
            match current.get(&backend.address) {
                Some(&id) => self.refresh_member(placed, id, wanted),
                None => self.add_member(service, wanted, placed, inputs)?,
            }
        }
        let wanted: BTreeSet<SocketAddr> = service.backends.iter().map(|b| b.address).collect();
        for (&address, &id) in current.iter().filter(|(at, _)| !wanted.contains(at)) {
            self.leave(service, placed, id, address.ip(), inputs);
        }
        if placed.members.len() > placed.members_room as usize {
            self.move_members(service, placed)?;
        }
        placed.descriptor.members_len = placed.members.len() as u16;
        Ok(())
    }

    /// A backend that was removed keeps the flows that it has.
    fn leave(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        id: u16,
        address: IpAddr,
        inputs: &Inputs<'_>,
    ) {
        let Some(Ok(member)) = placed.members.get(usize::from(id)) else {
            return;
        };
        let mut entry = member.backend;
        entry.state &= state::HOLDS;
        entry.mss = service.mss_clamp.number();
        set_next_hop(&mut entry, service, address, inputs);
        let wanted = Wanted {
            entry,
            weight: 0,
            apart: member.member.apart,
            limit: member.member.limit,
            resigns: true,
        };
        self.refresh_member(placed, id, wanted);
    }

    /// What a state loses is one store, at once; but where the backend is fit to take new flows and only
    /// should not, it takes them until no packet sees a ring that names it: it may be the last there. What
    /// a state gains must wait until the ring knows: flows were recorded elsewhere while the backend took
    /// none. Anything else is a new entry, put in place by one store.
    fn refresh_member(&mut self, placed: &mut Placed, id: u16, wanted: Wanted) {
        let Some(Ok(member)) = placed.members.get_mut(usize::from(id)) else {
            return;
        };
        let mut entry = Backend {
            counters: member.backend.counters,
            ..wanted.entry
        };
        if entry.interface == 0 {
            keep_next_hop(&mut entry, &member.backend);
        }
        entry.state = reachable(&entry);
        let before = member.backend.state;
        let aside = Backend {
            state: before,
            ..entry
        };
        let renewed = aside != member.backend;
        let index = renewed.then(|| self.layout.entries.take()).flatten();
        if renewed && index.is_none() {
            // Better late than that nobody else's failure is followed. What it may no longer do, it does not.
            self.put_off += 1;
            entry = Backend {
                state: before & entry.state,
                ..member.backend
            };
        }
        let (mut lasting, gained) = (before & entry.state, entry.state & !before);
        let resigns = wanted.resigns && before & !entry.state == state::TAKES;
        if resigns {
            lasting = before;
        }
        if lasting != before {
            self.before.push(Operation::State(member.entry, lasting));
        }
        let (weight, limit) = (wanted.weight, wanted.limit);
        let revalued = (member.member.weight, member.member.limit) != (weight, limit);
        (member.member.weight, member.member.limit) = (weight, limit);
        // Until every packet goes by the new routes, it is for clients of whom it was or will be.
        let apart = std::mem::replace(&mut member.member.apart, wanted.apart);
        let regrouped = apart != wanted.apart;
        member.backend = entry;
        if let Some(index) = index {
            let aside = Backend {
                state: lasting,
                ..entry
            };
            self.before.push(Operation::Backend(index, aside));
            self.released.entries.push(member.entry);
            member.entry = index;
            member.member.backend = index;
        }
        let place = member.entry;
        if index.is_some() || revalued || regrouped {
            let open = apart & wanted.apart;
            self.before.push(write_apart(placed, id, open));
        }
        if regrouped {
            self.after.push(write(placed, id));
        }
        if gained & state::TAKES != 0 {
            self.woken.entry(placed.number).or_default().insert(id);
        }
        if gained != 0 {
            // Until then new flows of its slots were recorded elsewhere, and its own records counted for
            // nothing: what a sweep has found does not hold.
            placed.marks += 1;
            self.wakes.push(Operation::State(place, entry.state));
        }
        if resigns {
            self.after.push(Operation::State(place, entry.state));
        }
    }

    fn add_member(
        &mut self,
        service: &Service,
        mut wanted: Wanted,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) -> Result<(), NoRoom> {
        let index = self.take_entry(service)?;
        wanted.entry.counters = self
            .layout
            .counters
            .take()
            .ok_or_else(|| no_backends(service))?;
        wanted.entry.state = reachable(&wanted.entry);
        self.before
            .push(Operation::ZeroBackend(wanted.entry.counters));
        self.before.push(Operation::Backend(index, wanted.entry));
        let id = placed
            .members
            .iter()
            .position(Result::is_err)
            .unwrap_or(placed.members.len());
        if id > Slot::MAX_ID as usize {
            return Err(no_backends(service));
        }
        let generation = match placed.members.get(id) {
            Some(Err(vacant)) => vacant.generation,
            // Not what a service that was here before may have left records of.
            _ => inputs.now,
        };
        let member = Ok(PlacedMember {
            entry: index,
            backend: wanted.entry,
            member: Member {
                backend: index,
                generation,
                weight: wanted.weight,
                apart: wanted.apart,
                limit: wanted.limit,
            },
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

    /// Takes entries and ids from backends that were removed, once no flow can be theirs: no slot
    /// names them, a sweep that began when none did found no record, and no connection id leads packets
    /// to them. Whether any has gone.
    pub(super) fn release_left(
        &mut self,
        service: &Service,
        placed: &mut Placed,
        inputs: &Inputs<'_>,
    ) -> bool {
        let census = inputs.census.filter(|census| census.is_about(placed));
        let stateless = placed.descriptor.moving_time == 0;
        let named = still_named(placed);
        let left: Vec<u16> = placed
            .members()
            .filter(|(_, member)| service.backend(member.address()).is_none())
            .map(|(id, _)| id)
            .filter(|&id| !placed.names(id) && !named.contains(&id))
            .filter(|&id| stateless || census.is_some_and(|c| c.is_vacant(placed, id)))
            .collect();
        for &id in &left {
            let place = &mut placed.members[usize::from(id)];
            if let Ok(member) = place {
                self.released.entries.push(member.entry);
                self.released.counters.push(member.backend.counters);
                *place = Err(Vacant {
                    generation: member.member.generation.wrapping_add(1),
                });
            }
            self.after.push(write(placed, id));
        }
        !left.is_empty()
    }

    /// An entry for one more backend. The last one is left for those that are there: their next hops change.
    fn take_entry(&mut self, service: &Service) -> Result<u32, NoRoom> {
        let entries = &mut self.layout.entries;
        let index = (entries.left() > 1).then(|| entries.take()).flatten();
        index.ok_or_else(|| no_backends(service))
    }
}

fn no_backends(service: &Service) -> NoRoom {
    NoRoom {
        what: format!("the backends of service {}", service.id),
        setting: "backends",
    }
}

/// The same, but for the subsets that it is not of.
fn write_apart(placed: &Placed, id: u16, apart: u16) -> Operation {
    match write(placed, id) {
        Operation::Member(index, member) => Operation::Member(index, Member { apart, ..member }),
        other => other,
    }
}

/// The store that makes a member what `placed` says of it.
fn write(placed: &Placed, id: u16) -> Operation {
    let member = match &placed.members[usize::from(id)] {
        Ok(member) => member.member,
        Err(vacant) => Member {
            generation: vacant.generation,
            ..Member::default()
        },
    };
    Operation::Member(placed.descriptor.members_start + u32::from(id), member)
}

/// What a backend's entry and member should hold. The counters are left open, and the next hop where
/// none is known.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    entry: Backend,
    weight: u16,
    /// Subsets that it is not of.
    apart: u16,
    limit: u32,
    /// It takes no new flows because it should not, rather than because it cannot.
    resigns: bool,
}

impl Wanted {
    fn of(
        service: &Service,
        subsets: &Subsets<'_>,
        backend: &model::Backend,
        inputs: &Inputs<'_>,
    ) -> Self {
        let liveness = inputs.down.get(&(service.id, backend.address));
        let takes = backend.is_wanted();
        let mut entry = Backend {
            address: backend.address.ip().into(),
            port: backend.address.port().to_be(),
            protocol: service.id.protocol.number(),
            mss: service.mss_clamp.number(),
            state: match liveness {
                Some(Liveness::Dead) => 0,
                Some(Liveness::Down) => state::HOLDS,
                None if takes => state::HOLDS | state::TAKES,
                None => state::HOLDS,
            },
            ..Backend::default()
        };
        set_next_hop(&mut entry, service, backend.address.ip(), inputs);
        Self {
            entry,
            weight: match service.scheduler {
                Scheduler::LeastConnections => 1,
                _ => backend.weight,
            },
            apart: subsets.apart_from(backend),
            limit: backend.max_connections.unwrap_or(0),
            resigns: liveness.is_none() && !takes,
        }
    }
}

/// The state of a backend, less new flows while nobody knows how to reach it.
fn reachable(entry: &Backend) -> u8 {
    match entry.interface {
        0 => entry.state & !state::TAKES,
        _ => entry.state,
    }
}

/// The way to `address`, where there is one for packets of `mode`.
pub fn next_hop(
    next_hops: &BTreeMap<IpAddr, NextHop>,
    mode: Mode,
    address: IpAddr,
) -> Option<&NextHop> {
    let next_hop = next_hops.get(&address)?;
    // A router would send the packet to the VIP, which is back to the balancer.
    (mode != Mode::L2 || next_hop.on_link).then_some(next_hop)
}

fn set_next_hop(wanted: &mut Backend, service: &Service, address: IpAddr, inputs: &Inputs<'_>) {
    let mode = service.mode;
    let Some(next_hop) = next_hop(inputs.next_hops, mode, address) else {
        return;
    };
    let tunnel = match mode {
        Mode::Ipip => inputs.tunnel,
        // The UDP source port varies with the flow; the address need not.
        Mode::Nat | Mode::FullNat | Mode::Gue | Mode::L2 => Tunnel::default(),
    };
    wanted.interface = inputs.devices.marked(next_hop.interface);
    wanted.source_mac = next_hop.source_mac;
    wanted.destination_mac = next_hop.destination_mac;
    let room = inputs.devices.mtu(next_hop.interface);
    let way = room.map_or(next_hop.mtu, |room| room.min(next_hop.mtu));
    wanted.mtu = mtu::room(way, service.mode_number(), address.is_ipv4());
    (wanted.source, wanted.source_mask) = outer_source(next_hop.source_address, tunnel);
}

fn keep_next_hop(wanted: &mut Backend, current: &Backend) {
    wanted.interface = current.interface;
    wanted.source_mac = current.source_mac;
    wanted.destination_mac = current.destination_mac;
    wanted.mtu = current.mtu;
    (wanted.source, wanted.source_mask) = (current.source, current.source_mask);
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
