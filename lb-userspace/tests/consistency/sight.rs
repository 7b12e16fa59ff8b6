//! What the tables say of a flow: for judging where the promise itself has a limit, and for telling
//! what went wrong.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    hash,
    memory::MemoryTables,
    steer::{self, InForce, Service},
    tables::{Descriptor, FlowKey, Record, Slot, flow_kind},
    track,
};
use lb_userspace::{model::ServiceId, plan};

use crate::scenario;

/// See above.
#[derive(Debug)]
pub struct Sight<'t> {
    tables: &'t MemoryTables,
    descriptor: &'t Descriptor,
    slot: Option<Slot>,
    /// The subset that its client is for.
    pub subset: u32,
    /// Its slot on the ring before a move of the whole service.
    previous: Option<Slot>,
    established: Option<Record>,
    half_open: Option<Record>,
}

impl<'t> Sight<'t> {
    /// Of a client's flow to a service, where there is such a service.
    pub fn of(tables: &'t MemoryTables, id: ServiceId, client: SocketAddr) -> Option<Self> {
        let at = scenario::endpoint(id);
        let half = plan::half(tables.control.generation);
        let mut services = (0..).zip(&tables.service_entries);
        let (service, entry) = services.find(|(_, entry)| entry.halves[half].is_at(&at))?;
        let descriptor = &entry.halves[half];
        let to = scenario::destination(client, &id);
        let (source, destination) = (client.ip().into(), to.ip().into());
        let (port, to) = (client.port().to_be(), to.port().to_be());
        let ports = u32::from(port) << 16 | u32::from(to);
        let hash = |fields| {
            let key = &tables.control.hash_key;
            hash::placing(key, fields, &source, &destination, ports, at.protocol)
        };
        let d = descriptor;
        let in_force = InForce {
            service: Service {
                index: service,
                descriptor,
            },
            half: half as u32,
        };
        let spot = steer::spot(tables, &in_force, source, hash(d.fields()));
        let spot = spot.filter(|_| d.ring_size > 0);
        let previous = hash(d.previous_fields());
        let key = FlowKey {
            source,
            port,
            kind: flow_kind::FLOW,
            service: service as u16,
            to: d.key_port(to),
            host: d.key_host(destination),
        };
        let flows = tables.flows.borrow();
        Some(Self {
            tables,
            descriptor,
            slot: spot.map(|spot| spot.slot),
            subset: spot.map_or(0, |spot| spot.subset),
            previous: steer::previous_slot(tables, d, half as u32, source, previous),
            established: flows.established.records.get(&key).copied(),
            half_open: flows.half_open.records.get(&key).copied(),
        })
    }

    /// Whether a table has a record of it, live or not.
    pub fn is_known(&self) -> bool {
        self.established.is_some() || self.half_open.is_some()
    }

    /// Whether it is not recorded, and whom the ring before names for it holds no flows.
    pub fn is_stray(&self) -> bool {
        let (now, moving_time) = (self.tables.time.get(), self.descriptor.moving_time);
        let records = [self.established, self.half_open];
        let recorded = records
            .iter()
            .flatten()
            .any(|record| track::live(record, now, moving_time));
        let holds = |id| {
            let candidate = steer::candidate(self.tables, self.descriptor, id);
            candidate.is_some_and(|candidate| candidate.holds())
        };
        let kept = |previous: Slot| holds(previous.keeper()) || holds(previous.owner());
        !recorded && !self.previous.is_some_and(kept)
    }
}

impl fmt::Display for Sight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |slot: Slot| (slot.owner(), slot.origin(), slot.phase());
        let Descriptor {
            flags, members_len, ..
        } = *self.descriptor;
        write!(
            f,
            "subset {}, slot {:?}, previous {:?}, established {:?}, half-open {:?}, flags {flags:#x}, members",
            self.subset,
            self.slot.map(names),
            self.previous.map(names),
            self.established,
            self.half_open,
        )?;
        for id in 0..u32::from(members_len) {
            match steer::candidate(self.tables, self.descriptor, id) {
                Some(steer::Candidate {
                    backend, member, ..
                }) => {
                    write!(
                        f,
                        " {} in state {} apart from {:#b}",
                        IpAddr::from(backend.address),
                        backend.state,
                        member.apart
                    )?;
                }
                None => write!(f, " nobody")?,
            }
        }
        Ok(())
    }
}
