//! How a packet leaves: to its backend, as the service's mode has it, or to a client, as the kernel's
//! routes say. Reads tables; bytes are [`crate::forward`]'s.

use crate::{
    flow::Flow,
    forward::{self, GuePort},
    hash::FlowHash,
    packet::Packet,
    tables::{Address, Backend, Endpoint, RouteQuery, Tables, WayBack, feature, mode},
    verdict::{DropReason, Verdict},
};

/// Brings a packet to its backend as it is, in the way of a mode that leaves it so.
///
/// # Errors
/// [`DropReason::Inconsistent`] for any other mode; else as [`forward::encapsulate`].
#[inline(always)]
pub fn deliver<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    mode: u8,
    backend: &Backend,
    hash: FlowHash,
) -> Result<(), DropReason> {
    match mode {
        mode::IPIP => forward::encapsulate(packet, flow, backend, hash, None),
        mode::GUE => {
            let control = tables.control().ok_or(DropReason::Inconsistent)?;
            let port = GuePort(control.gue_port);
            forward::encapsulate(packet, flow, backend, hash, Some(port))
        }
        mode::L2 => forward::readdress(packet, backend.source_mac, backend.destination_mac),
        _ => Err(DropReason::Inconsistent),
    }
}

/// What answers from an endpoint become, where some service is in mode `nat` and this is its backend. The
/// endpoint by value: what a helper is given the address of stays in memory, and with it all that it is
/// part of.
#[inline(always)]
pub fn way_back<T: Tables>(tables: &T, from: Endpoint) -> Option<&WayBack> {
    let control = tables.control()?;
    if control.features & feature::NAT == 0 {
        return None;
    }
    tables.way_back(&from)
}

/// Sends a packet of `flow` on to its destination, as one from `source`. Without a route or with its TTL
/// at an end, the kernel forwards it or tells the sender why not.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no Ethernet header.
#[inline(always)]
pub fn to_client<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    source: Address,
) -> Result<Verdict, DropReason> {
    let query = RouteQuery {
        source,
        destination: flow.destination,
        length: flow.length,
    };
    let Some(route) = tables.route(&query) else {
        return Ok(Verdict::Pass);
    };
    if forward::decrement_ttl(packet, flow).is_err() {
        return Ok(Verdict::Pass);
    }
    forward::readdress(packet, route.source_mac, route.destination_mac)?;
    Ok(by(packet, route.interface))
}

/// The verdict that sends a packet out of an interface.
#[inline(always)]
pub fn by<P: Packet>(packet: &P, interface: u32) -> Verdict {
    if interface == packet.interface() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(interface)
    }
}
