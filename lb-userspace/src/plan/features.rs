//! What of the program is used, from before the first packet that needs it until after the last. The programs in the
//! kernel are loaded for it before a plan begins.

use std::sync::Arc;

use lb_common::tables::{feature, owned, service_flag};

use super::{Devices, Draft, Inputs, Operation, Placed};
use crate::model::{Mode, MssClamp, Protocol, Service, Unserved};

/// What services need, and packets that none of them takes: bits of [`feature`].
pub fn needed<'a>(services: impl IntoIterator<Item = &'a Service>, unknown_port: Unserved) -> u32 {
    let unknown = flag(unknown_port != Unserved::Pass, feature::UNKNOWN_PORTS);
    services
        .into_iter()
        .fold(unknown, |needed, service| needed | of(service))
}

/// What the network around needs, given the services: bits of [`feature`].
pub fn of_network<'a>(
    devices: &Devices,
    vlans: bool,
    services: impl IntoIterator<Item = &'a Service>,
) -> u32 {
    let routes = |service: &Service| matches!(service.mode, Mode::Nat | Mode::FullNat);
    let routes = services.into_iter().any(routes);
    flag(vlans || devices.matter(routes), feature::VLAN)
}

fn of(service: &Service) -> u32 {
    let mode = match service.mode {
        Mode::Nat => feature::NAT,
        Mode::Ipip => feature::IPIP,
        Mode::Gue => feature::GUE,
        Mode::L2 => feature::L2,
        Mode::FullNat => feature::FULL_NAT,
    };
    let fields = service.scheduler.hash_fields().unwrap_or(0);
    let every = service.id.has_every_port() && !service.id.is_wide();
    mode | flag(every, feature::ALL_PORTS)
        | flag(service.id.protocol == Protocol::Sctp, feature::SCTP)
        | flag(service.id.is_wide(), feature::WIDE)
        | flag(service.is_guarded(), feature::GUARDS)
        | flag(service.quic.is_some(), feature::QUIC)
        | flag(
            !service.passive.is_off() || service.watches_handshakes(),
            feature::PASSIVE,
        )
        | flag(service.mss_clamp != MssClamp::Off, feature::MSS)
        | flag(service.announce, feature::ANNOUNCE)
        | flag(service.second_hop, feature::SECOND_HOP)
        | flag(!service.syn_proxy.is_off(), feature::SYN_PROXY)
        | flag(service.is_split(), feature::SOURCE_ROUTES)
        | placing(fields)
}

/// What it takes to place flows by these fields.
fn placing(fields: u16) -> u32 {
    flag(fields & service_flag::BY_SOURCE != 0, feature::BY_SOURCE)
        | flag(
            fields & service_flag::BY_THREE_TUPLE != 0,
            feature::BY_THREE_TUPLE,
        )
}

fn flag(is: bool, feature: u32) -> u32 {
    if is { feature } else { 0 }
}

impl Draft {
    /// From what is in use to what is wanted.
    pub(super) fn set_features(&mut self, inputs: &Inputs<'_>) {
        let Inputs {
            state,
            unknown_port,
            ..
        } = *inputs;
        let number = unknown_port.number();
        if self.layout.unknown_port != number {
            self.refusing.push(Operation::UnknownPort(number));
            self.layout.unknown_port = number;
        }
        let wanted = needed(state.services(), unknown_port)
            | of_network(inputs.devices, inputs.vlans, state.services())
            | self.left_over();
        let both = self.layout.features | wanted;
        if both != self.layout.features {
            self.before.push(Operation::Features(both));
        }
        if wanted != both {
            self.after.push(Operation::Features(wanted));
        }
        self.layout.features = wanted;
        self.features = both;
    }

    /// What is still needed though no service wants it any more: backends that leave may answer, sessions go on, and
    /// flows stand where they were placed before.
    fn left_over(&self) -> u32 {
        let is_pool = |bits: &u32| bits & owned::POOL != 0;
        let pools = self.layout.pools.values();
        let is_routed = |placed: &Arc<Placed>| placed.descriptor.is_routed();
        let routed = pools.clone().any(is_routed);
        let before = |fields, placed: &Arc<Placed>| fields | placed.descriptor.previous_fields();
        let has_sessions = self.layout.owned.values().any(is_pool);
        // Which of them are proxied, nobody counts.
        let proxied = has_sessions && self.layout.features & feature::SYN_PROXY != 0;
        flag(!self.layout.ways_back.is_empty(), feature::NAT)
            | flag(has_sessions, feature::FULL_NAT)
            | flag(proxied, feature::SYN_PROXY)
            | flag(routed, feature::SOURCE_ROUTES)
            | placing(pools.fold(0, before))
    }
}
