//! The sweep of the sessions of mode `full-nat`. They depend on no slot, so all that ends one is time, and that its
//! service or its backend has gone.

use std::collections::{BTreeMap, HashSet};

use lb_common::{
    session,
    tables::{Address, FlowKey, PortKey, Session, Table, Tick, flow_kind, mode, record_flag},
};

use super::{ByIndex, Census, Layout, Placed, REMOVED_AT_ONCE, Tally, backend_of, removal};
use super::{Judgement, slot_of};
use crate::{
    dataplane::{DataplaneError, FlowTables},
    model::ServiceId,
};

/// Sweeps sessions, and then ports that are none's.
pub(super) fn sweep(
    census: &mut Census,
    layout: &Layout,
    by_index: &ByIndex<'_>,
    tables: &mut dyn FlowTables,
    loads: &mut Tally,
    now: Tick,
) -> Result<(), DataplaneError> {
    let mut doomed: Vec<(FlowKey, Session)> = Vec::new();
    let mut ports = HashSet::new();
    tables.scan_sessions(&mut |key, session| {
        let found = by_index.get(&key.service.into()).copied();
        let record = &session.record;
        if let Some(member) = found.and_then(|(_, placed)| backend_of(placed, record)) {
            loads.see(member.holder(), Table::Established, key, record);
        }
        match census.judge_session(layout, found, key, session, now) {
            Judgement::Keep => {
                census.sessions += 1;
                *census.ports.entry(session.address).or_default() += 1;
                ports.insert(session.port_key());
            }
            Judgement::Remove => doomed.push((*key, *session)),
        }
    })?;
    for chunk in doomed.chunks(REMOVED_AT_ONCE) {
        for (key, session) in chunk {
            if !remove(tables, key, session)? {
                *census.ports.entry(session.address).or_default() += 1;
                continue;
            }
            let counted = session.record.flags & record_flag::COUNTED != 0;
            let found = by_index.get(&key.service.into()).filter(|_| counted);
            let member = found.and_then(|(_, placed)| backend_of(placed, &session.record));
            if let Some(member) = member {
                *census.ended.entry(member.holder()).or_default() += 1;
            }
        }
    }
    census.released = release_orphans(tables, &ports)?;
    Ok(())
}

/// Who has a lock that the agent takes out.
const AGENT: FlowKey = FlowKey {
    source: Address::v4(0),
    port: 0,
    kind: flow_kind::AGENT,
    service: 0,
    to: 0,
    host: 0,
};

/// Removes a session that is still as it was, and frees its port; false where it is not, or begins anew or is being
/// replaced just now.
///
/// # Errors
/// The tables cannot be read or written.
fn remove(
    tables: &mut dyn FlowTables,
    key: &FlowKey,
    session: &Session,
) -> Result<bool, DataplaneError> {
    let lock = session.port_key().lock();
    if !tables.claim_port(&lock, &AGENT)? {
        return Ok(false);
    }
    let removed = remove_locked(tables, key, session);
    tables.free_port(&lock)?;
    removed
}

/// The same with its port's lock, so that nobody replaces the session or has its port meanwhile.
fn remove_locked(
    tables: &mut dyn FlowTables,
    key: &FlowKey,
    session: &Session,
) -> Result<bool, DataplaneError> {
    if tables.session(key)?.as_ref() != Some(session) {
        return Ok(false);
    }
    // Before the port, which is nobody's as long as it stands for this flow: none takes over what has no session.
    match tables.take_session(key)? {
        Some(same) if same == *session => {
            release(tables, &session.port_key(), key)?;
            Ok(true)
        }
        // A packet has come in that very moment.
        Some(renewed) => {
            tables.insert_session(key, &renewed)?;
            Ok(false)
        }
        None => Ok(false),
    }
}

/// Frees a port that is a flow's, which has no session from it.
fn release(
    tables: &mut dyn FlowTables,
    port: &PortKey,
    flow: &FlowKey,
) -> Result<bool, DataplaneError> {
    let is_its = tables.port(port)?.as_ref() == Some(flow);
    if is_its {
        tables.free_port(port)?;
    }
    Ok(is_its)
}

/// Frees ports that no session has, as where a processor was in the midst of beginning one while its session was
/// removed, and locks that an agent which has ended took out.
fn release_orphans(
    tables: &mut dyn FlowTables,
    known: &HashSet<PortKey>,
) -> Result<u32, DataplaneError> {
    let mut suspects: BTreeMap<PortKey, FlowKey> = BTreeMap::new();
    let mut left = Vec::new();
    tables.scan_ports(&mut |key, flow| {
        // A packet's is gone with it.
        match (key.lock, flow.kind) {
            (0, _) if !known.contains(key) => drop(suspects.insert(*key, *flow)),
            (1, flow_kind::AGENT) => left.push(*key),
            _ => {}
        }
    })?;
    for key in left {
        tables.free_port(&key)?;
    }
    if suspects.is_empty() {
        return Ok(0);
    }
    // A port is claimed before its session is there: whoever has claimed one of these has come to that by now.
    tables.wait_for_packets()?;
    let mut released = 0;
    for (key, flow) in suspects {
        let session = tables.session(&flow)?;
        if session.is_none_or(|session| session.port_key() != key) {
            released += u32::from(release(tables, &key, &flow)?);
        }
    }
    Ok(released)
}

impl Census {
    fn judge_session(
        &mut self,
        layout: &Layout,
        found: Option<(ServiceId, &Placed)>,
        key: &FlowKey,
        session: &Session,
        now: Tick,
    ) -> Judgement {
        let record = &session.record;
        let (_, removal) = removal(record, now);
        let Some((id, placed)) = found else {
            return removal;
        };
        // With another mode, nobody's packets find it any more.
        if placed.descriptor.mode != mode::FULL_NAT
            || !session::live(record, now, placed.descriptor.moving_time)
        {
            return Judgement::Remove;
        }
        if backend_of(placed, record).is_none() {
            return removal;
        }
        let service = self.services.entry(key.service.into()).or_default();
        match record.flags & record_flag::OPENING {
            0 => service.established += 1,
            _ => service.half_open += 1,
        }
        service.sessions += 1;
        let slot = slot_of(key, (id, placed), &layout.control.hash_key);
        let at_owner = slot.is_some_and(|(_, slot)| u32::from(record.member) == slot.owner());
        service.count_use(record, false, at_owner);
        Judgement::Keep
    }

    /// Whether answers may come to an address that was or is a pool's: sessions have ports of it, or could get some
    /// when the sweep began.
    pub(in crate::plan) fn may_answer(&self, address: Address) -> bool {
        self.ports.contains_key(&address) || self.offered.contains(&address)
    }
}
