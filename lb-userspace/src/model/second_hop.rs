//! Where backends can be told who else may have a flow: what that takes of a service and of its backends.

use lb_common::tables::mode;

use super::{Mode, ModelError, Protocol, Service, check::invalid, name_of};

impl Service {
    /// How its packets reach the backends, as the program has it: one of [`mode`].
    pub fn mode_number(&self) -> u8 {
        if self.second_hop {
            mode::SECOND_HOP
        } else {
            self.mode.number()
        }
    }
}

/// Whether the ring alone says who may have a flow, and there is room to tell it.
pub(super) fn check_second_hop(service: &Service) -> Result<(), ModelError> {
    let (id, field) = (service.id, "second_hop");
    if !service.second_hop {
        return Ok(());
    }
    if service.mode != Mode::Gue {
        let problem = format!(
            "mode \"{}\" has no room to tell backends who else may have a flow: use mode \"gue\"",
            name_of(service.mode)
        );
        return invalid(id, field, problem);
    }
    // A datagram of a service that shares the pool of one of TCP is told of somebody, and stays where it comes.
    let alone = service.id.protocol == Protocol::Udp && service.group.is_none();
    if alone || service.id.protocol == Protocol::Sctp {
        let problem = "is about connections of TCP, which backends can look up: leave it out";
        return invalid(id, field, problem);
    }
    if service.scheduler.records_every_flow() {
        let problem = format!(
            "scheduler \"{}\" gives a flow to any backend, and only its record says to which: use maglev, source-hash or three-tuple-hash",
            name_of(service.scheduler)
        );
        return invalid(id, field, problem);
    }
    if !service.persistence.is_zero() {
        let problem = "with persistence, only a client's record says which backend has its flows: leave out one of the two";
        return invalid(id, field, problem);
    }
    Ok(())
}

/// Whether every backend can be told of every other: an address has the room of one of its family.
pub(super) fn check_families(service: &Service) -> Result<(), ModelError> {
    let mut backends = service.backends.iter();
    let Some(first) = backends.next() else {
        return Ok(());
    };
    let other = backends.find(|backend| backend.address.is_ipv4() != first.address.is_ipv4());
    match other {
        Some(other) if service.second_hop => {
            let problem = format!(
                "needs backends of one address family, and {} is of another than {}",
                other.address, first.address
            );
            invalid(service.id, "second_hop", problem)
        }
        _ => Ok(()),
    }
}
