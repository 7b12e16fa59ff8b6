//! The order of the stages, named once: parse, find the service, steer, forward, count.
//!
//! The XDP program is this function over the kernel's maps; tests, fuzzers and the command line
//! run it over memory.

use crate::{
    flow::{self, Family, Flow, Stop},
    forward::{self, End, GuePort},
    packet::Packet,
    steer::{self, InForce},
    tables::{Address, Backend, RouteQuery, Tables, feature, mode, owned},
    verdict::{DropReason, Verdict},
};

/// Decides over a frame and makes it what it becomes.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    // Once for each family, so that neither carries the other's addresses along.
    let outcome = match flow::family(packet) {
        Some(Family::V4) => follow(packet, tables, flow::parse_v4),
        Some(Family::V6) => follow(packet, tables, flow::parse_v6),
        None => Ok(Verdict::Pass),
    };
    outcome.unwrap_or_else(|reason| {
        tables.count_drop(reason);
        Verdict::Drop(reason)
    })
}

/// The stages after the family is known.
#[inline(always)]
fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    parse: impl FnOnce(&P, &mut Flow) -> Result<(), Stop>,
) -> Result<Verdict, DropReason> {
    let mut flow = Flow::EMPTY;
    match parse(packet, &mut flow) {
        Ok(()) => match steer::service(tables, &flow.to()) {
            Some(service) => to_backend(packet, tables, &flow, &service),
            None => to_client(packet, tables, &flow),
        },
        Err(Stop::Refused(reason)) if owned(tables, flow.destination) & owned::VIP != 0 => {
            Err(reason)
        }
        Err(_) => Ok(Verdict::Pass),
    }
}

/// What an address is to the balancer. By value: whatever a helper is given the address of stays in
/// memory for good, and the flow is to live in registers.
#[inline(always)]
fn owned<T: Tables>(tables: &T, address: Address) -> u32 {
    tables.owned(&address)
}

/// A client's packet on its way to a backend.
#[inline(always)]
fn to_backend<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    in_force: &InForce<'_>,
) -> Result<Verdict, DropReason> {
    let service = &in_force.service;
    let hash = steer::hash(tables, flow, service.descriptor.hash_fields)
        .ok_or(DropReason::Inconsistent)?;
    let backend = steer::backend(tables, in_force, flow, hash)?;
    if backend.interface == 0 {
        return Err(DropReason::NoNextHop);
    }
    let bytes = packet.length() as u64;
    let egress = egress(packet, backend.interface);
    let counters = backend.counters;
    match service.descriptor.mode {
        mode @ (mode::IPIP | mode::GUE) => {
            let gue = if mode == mode::GUE {
                tables.control().map(|control| GuePort(control.gue_port))
            } else {
                None
            };
            forward::encapsulate(packet, flow, backend, hash, gue)?;
        }
        mode::NAT => translate(packet, flow, backend)?,
        mode::L2 => forward::readdress(packet, backend.source_mac, backend.destination_mac)?,
        _ => return Err(DropReason::Inconsistent),
    }
    tables.count_service(service.index, bytes, flow.opens());
    tables.count_backend(counters, bytes, flow.opens());
    Ok(egress)
}

#[inline(always)]
fn translate<P: Packet>(packet: &mut P, flow: &Flow, backend: &Backend) -> Result<(), DropReason> {
    forward::decrement_ttl(packet, flow)?;
    forward::rewrite(
        packet,
        flow,
        End::Destination,
        backend.address,
        backend.port,
    )?;
    forward::readdress(packet, backend.source_mac, backend.destination_mac)
}

/// A `nat` backend's answer on its way to the client; anything else passes untouched.
#[inline(always)]
fn to_client<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
) -> Result<Verdict, DropReason> {
    if tables
        .control()
        .is_none_or(|control| control.features & feature::NAT == 0)
    {
        return Ok(Verdict::Pass);
    }
    let Some(way_back) = tables.way_back(&flow.from()) else {
        return Ok(Verdict::Pass);
    };
    // Answers to our own probes.
    if owned(tables, flow.destination) & owned::LOCAL != 0 {
        return Ok(Verdict::Pass);
    }
    forward::rewrite(packet, flow, End::Source, way_back.address, way_back.port)?;
    let query = RouteQuery {
        source: way_back.address,
        destination: flow.destination,
        length: flow.length,
    };
    // Without a route or with its TTL at an end, the kernel forwards it or tells the sender why not.
    let Some(route) = tables.route(&query) else {
        return Ok(Verdict::Pass);
    };
    if forward::decrement_ttl(packet, flow).is_err() {
        return Ok(Verdict::Pass);
    }
    forward::readdress(packet, route.source_mac, route.destination_mac)?;
    Ok(egress(packet, route.interface))
}

#[inline(always)]
fn egress<P: Packet>(packet: &P, interface: u32) -> Verdict {
    if interface == packet.interface() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(interface)
    }
}
