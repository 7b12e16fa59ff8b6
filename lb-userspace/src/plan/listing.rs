//! What is recorded, as people ask for it: flows and clients one by one. Pure but for the tables that
//! it is given, which it only reads.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    session,
    tables::{FlowKey, Phase, Record, Table, Tick, flow_kind, mode, record_flag, service_flag},
    track,
};

use super::{
    Layout, Placed, PlacedMember,
    census::{backend_of, slot_of},
    duration,
};
use crate::{
    dataplane::{DataplaneError, FlowTables},
    model::ServiceId,
    snapshot::{ClientList, ClientRecord, FlowFilter, FlowList, FlowRecord},
};

/// Since a time, which another CPU may have told a little later.
fn since(tick: Tick, now: Tick) -> Duration {
    duration(match now.wrapping_sub(tick) {
        passed if passed as i32 >= 0 => passed,
        _ => 0,
    })
}

/// Lists recorded flows.
///
/// # Errors
/// The tables cannot be read.
pub fn flows(
    layout: &Layout,
    tables: &mut dyn FlowTables,
    filter: &FlowFilter,
    now: Tick,
) -> Result<FlowList, DataplaneError> {
    let services = layout.services();
    let by_index: BTreeMap<u32, (ServiceId, &Placed)> = services
        .map(|(id, index, placed)| (index, (id, placed)))
        .collect();
    let mut list = FlowList::default();
    let is_flow = |key: &FlowKey| key.kind == flow_kind::FLOW;
    let mut show = |table, key: &FlowKey, record: &Record, is_session: bool| {
        let found = by_index.get(&key.service.into()).filter(|_| is_flow(key));
        // What is left of another mode counts for nothing.
        let found =
            found.filter(|(_, placed)| (placed.descriptor.mode == mode::FULL_NAT) == is_session);
        let Some(&(service, placed)) = found else {
            return;
        };
        let Some(flow) = flow(layout, service, placed, table, key, record, now) else {
            return;
        };
        if filter.matches(&flow) {
            list.total += 1;
            if list.flows.len() < filter.limit {
                list.flows.push(flow);
            }
        }
    };
    for table in [Table::HalfOpen, Table::Established] {
        tables.scan(table, &mut |key, record| show(table, key, record, false))?;
    }
    tables.scan_sessions(&mut |key, session| {
        let table = match session.record.flags & record_flag::OPENING {
            0 => Table::Established,
            _ => Table::HalfOpen,
        };
        show(table, key, &session.record, true);
    })?;
    Ok(list)
}

fn flow(
    layout: &Layout,
    service: ServiceId,
    placed: &Placed,
    table: Table,
    key: &FlowKey,
    record: &Record,
    now: Tick,
) -> Option<FlowRecord> {
    let moving_time = placed.descriptor.moving_time;
    let is_live = match placed.descriptor.mode {
        mode::FULL_NAT => session::live(record, now, moving_time),
        _ => track::live(record, now, moving_time),
    };
    if !is_live {
        return None;
    }
    let (_, slot) = slot_of(key, (service, placed), &layout.control.hash_key)?;
    let member = backend_of(placed, record);
    let whole = placed.descriptor.flags & service_flag::MOVING != 0;
    Some(FlowRecord {
        service,
        client: SocketAddr::new(key.source.into(), u16::from_be(key.port)),
        backend: member.map(PlacedMember::address),
        half_open: table == Table::HalfOpen,
        closing: session::ended(record.flags),
        phase: match slot.phase() {
            _ if whole => "moving",
            Phase::Steady => "steady",
            Phase::Moving => "moving",
            Phase::Settling => "settling",
        },
        idle: since(record.stamp, now),
        age: since(record.since, now),
    })
}

/// Lists the clients that are remembered for persistence; those of a group with its first service.
///
/// # Errors
/// The tables cannot be read.
pub fn clients(
    layout: &Layout,
    tables: &mut dyn FlowTables,
    filter: &FlowFilter,
    now: Tick,
) -> Result<ClientList, DataplaneError> {
    let mut list = ClientList::default();
    for table in [Table::HalfOpen, Table::Established] {
        tables.scan(table, &mut |key, record| {
            let is_client = key.kind == flow_kind::CLIENT;
            let found = layout.pools.get(&key.service.into()).filter(|_| is_client);
            let Some(placed) = found else {
                return;
            };
            let Some(client) = client(placed, table, key, record, now) else {
                return;
            };
            let services = &placed.services;
            let matches = filter.service.is_none_or(|of| services.contains_key(&of))
                && filter.backend.is_none_or(|of| of == client.backend);
            if matches {
                list.total += 1;
                if list.clients.len() < filter.limit {
                    list.clients.push(client);
                }
            }
        })?;
    }
    Ok(list)
}

fn client(
    placed: &Placed,
    table: Table,
    key: &FlowKey,
    record: &Record,
    now: Tick,
) -> Option<ClientRecord> {
    let persistence = placed.descriptor.persistence;
    if !track::live(record, now, persistence) {
        return None;
    }
    let passed = now.wrapping_sub(record.stamp) as i32;
    let left = track::lifetime(record.flags, persistence) as i32 - passed;
    let address = IpAddr::from(key.source);
    let bits = placed.descriptor.client_bits() as u8;
    Some(ClientRecord {
        service: *placed.services.keys().next()?,
        address,
        prefix: match address {
            IpAddr::V4(_) => bits.saturating_sub(96),
            IpAddr::V6(_) => bits,
        },
        backend: backend_of(placed, record)?.address(),
        half_open: table == Table::HalfOpen,
        idle: since(record.stamp, now),
        left: duration(left.try_into().unwrap_or(0)),
    })
}
