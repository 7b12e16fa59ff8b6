//! How a packet leaves: to its backend, as the service's mode has it, or to a client, as the kernel's
//! routes say. Reads tables; bytes are [`crate::forward`]'s.

use crate::{
    flow::Flow,
    forward::{self, Gue},
    hash::FlowHash,
    packet::Packet,
    tables::{Address, Backend, Endpoint, NoRoute, RouteQuery, Tables, WayBack, feature, mode},
    verdict::{DropReason, Verdict},
    vlan,
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
    // Features first: what they leave of this is as good as nothing where one mode is used.
    if tables.knows(feature::IPIP) && mode == mode::IPIP {
        return forward::encapsulate(packet, flow, backend, hash, None);
    }
    if tables.knows(feature::L2) && mode == mode::L2 {
        return forward::readdress(packet, backend.source_mac, backend.destination_mac);
    }
    if tables.knows(feature::GUE) && mode == mode::GUE {
        return in_gue(packet, tables, flow, backend, hash, None);
    }
    Err(DropReason::Inconsistent)
}

/// The same in mode [`mode::GUE`], and, with `other`, in mode [`mode::SECOND_HOP`], where the backend is told who else may have
/// the flow, or [`Address::NOBODY`].
///
/// # Errors
/// As [`forward::encapsulate`].
#[inline(always)]
pub fn in_gue<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    backend: &Backend,
    hash: FlowHash,
    other: Option<Address>,
) -> Result<(), DropReason> {
    let gue = Gue {
        port: tables.control().ok_or(DropReason::Inconsistent)?.gue_port,
        other,
    };
    forward::encapsulate(packet, flow, backend, hash, Some(gue))
}

/// What answers from an endpoint become, where some service is in mode `nat` and this is its backend. The
/// endpoint by value: what a helper is given the address of stays in memory, and with it all that it is
/// part of.
#[inline(always)]
pub fn way_back<T: Tables>(tables: &T, mut from: Endpoint) -> Option<WayBack> {
    if !tables.uses(feature::NAT) {
        return None;
    }
    if let Some(way_back) = tables.way_back(&from) {
        return Some(way_back);
    }
    if !tables.uses(feature::ALL_PORTS) {
        return None;
    }
    let port = from.port;
    from.port = 0;
    let every = tables.way_back(&from)?;
    Some(WayBack { port, ..every })
}

/// How a packet goes on to a client.
#[derive(Debug, Clone, Copy)]
pub enum Onward {
    /// From here, out of an interface.
    Sent(u32),
    /// By the kernel, to which it is handed as the client is to get it.
    Kernels,
    /// Not at all. Of a backend that sent it to the client, the kernel gets it as it came, so that it tells the backend,
    /// which knows nothing of the VIP, and does not take it for one that claims to be from this host.
    Ends(Obstacle),
}

/// Why a packet does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Its TTL or hop limit ends here.
    Expired,
    /// It is longer than the way takes, which is so many bytes, and must not be fragmented.
    TooLong(u16),
    /// No route leads on, or it is for this host.
    NoRoute,
}

/// How a packet of `flow` goes on to its destination as one from `source`; to be asked before it is made
/// one. What is sent from here is addressed to its next hop, with one off its TTL.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no Ethernet header.
#[inline(always)]
pub fn onward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    source: Address,
) -> Result<Onward, DropReason> {
    let surplus = vlan::surplus(tables);
    let query = RouteQuery {
        source,
        destination: flow.destination,
        length: flow.length.saturating_add(surplus),
    };
    match tables.route(&query) {
        Ok(route) => {
            if forward::decrement_ttl(packet, flow).is_err() {
                return Ok(Onward::Ends(Obstacle::Expired));
            }
            forward::readdress(packet, route.source_mac, route.destination_mac)?;
            return Ok(Onward::Sent(route.interface));
        }
        Err(NoRoute::TooLong(room)) if !forward::may_be_fragmented(packet, flow) => {
            let room = room.saturating_sub(surplus);
            return Ok(Onward::Ends(Obstacle::TooLong(room)));
        }
        Err(NoRoute::Refused) => return Ok(Onward::Ends(Obstacle::NoRoute)),
        Err(NoRoute::Kernels | NoRoute::TooLong(_)) => {}
    }
    Ok(if forward::outlives_a_hop(packet, flow) {
        Onward::Kernels
    } else {
        Onward::Ends(Obstacle::Expired)
    })
}

/// What becomes of a packet that goes on so.
#[inline(always)]
pub fn leave<P: Packet, T: Tables>(packet: &P, tables: &T, onward: Onward) -> Verdict {
    match onward {
        Onward::Sent(interface) => by(packet, tables, interface),
        Onward::Kernels | Onward::Ends(_) => Verdict::Pass,
    }
}

/// The verdict that sends a packet out of an interface.
#[inline(always)]
pub fn by<P: Packet, T: Tables>(packet: &P, tables: &T, interface: u32) -> Verdict {
    if interface == tables.ingress(packet) {
        Verdict::Transmit
    } else {
        Verdict::Redirect(interface)
    }
}
