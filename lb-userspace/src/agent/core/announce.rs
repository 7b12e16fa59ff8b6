//! Which VIPs are announced on which interfaces, and who else has claimed them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::Core;
use crate::{
    agent::{Announced, ChangeError},
    announce::{Conflict, Owned},
    dataplane::Dataplane,
    model::ModelError,
    neighbours::{Kind, Port},
    snapshot::AnnouncedStatus,
};

/// What VIPs are announced by.
#[derive(Debug, Default)]
pub(super) struct Announcing {
    /// Names of the interfaces that the program is attached to.
    attended: BTreeSet<String>,
    /// All interfaces of this host.
    ports: BTreeMap<String, Port>,
    /// Their names, by index.
    names: BTreeMap<u32, String>,
    /// How many frames have claimed each VIP.
    claims: BTreeMap<IpAddr, u64>,
}

impl Announcing {
    fn attached(&self) -> impl Iterator<Item = (&String, &Port)> {
        let ports = self.ports.iter();
        ports.filter(|(name, port)| self.is_attended(name, port.kind))
    }

    /// Whether frames of an interface come by one that the program is attached to.
    fn is_attended(&self, name: &str, kind: Kind) -> bool {
        let below = match kind {
            Kind::Vlan { lower, .. } => self.names.get(&lower),
            _ => None,
        };
        let below = below.and_then(|name| self.ports.get_key_value(name));
        let is_part = matches!(kind, Kind::Member { .. });
        !is_part && self.attended.contains(name)
            || below.is_some_and(|(name, port)| self.is_attended(name, port.kind))
    }

    /// Names of the interfaces that the program is attached to.
    pub(super) fn attended(&self) -> &BTreeSet<String> {
        &self.attended
    }

    /// All interfaces of this host.
    pub(super) fn ports(&self) -> &BTreeMap<String, Port> {
        &self.ports
    }

    /// Hardware addresses of the interfaces that the program is attached to, and of VLAN devices over them.
    pub(super) fn links(&self) -> BTreeMap<u32, [u8; 6]> {
        let attached: BTreeMap<u32, [u8; 6]> = self
            .attached()
            .map(|(_, port)| (port.index, port.mac))
            .collect();
        // What comes in by a member of a bond is for the bond, but by one that stands by: an answer would leave by it, and have
        // the switch send there what is for the bond.
        let members = self.ports.values().filter_map(|port| match port.kind {
            Kind::Member { bond, active } if active => Some((port.index, *attached.get(&bond)?)),
            _ => None,
        });
        let members: Vec<_> = members.collect();
        attached.into_iter().chain(members).collect()
    }

    /// Takes note of the host's interfaces; true where that changes whose addresses VIPs have.
    pub(super) fn set_ports(&mut self, ports: BTreeMap<String, Port>) -> bool {
        let before = self.links();
        let names = ports.iter().map(|(name, port)| (port.index, name.clone()));
        self.names = names.collect();
        self.ports = ports;
        self.links() != before
    }
}

impl<D: Dataplane> Core<D> {
    /// Says where the program is going to be attached.
    pub fn attend(&mut self, interfaces: impl IntoIterator<Item = String>) {
        self.announcing.attended.extend(interfaces);
    }

    /// VIPs that are announced.
    fn announced_vips(&self) -> BTreeSet<IpAddr> {
        let services = self.state.services().filter(|service| service.announce);
        services.map(|service| service.id.vip.ip()).collect()
    }

    /// What is announced, and where.
    pub fn owned(&self) -> Owned {
        let ports = self.announcing.attached();
        Owned {
            vips: self.announced_vips(),
            ports: ports.map(|(_, &port)| (port.index, port)).collect(),
            macs: self
                .announcing
                .ports
                .values()
                .map(|port| port.mac)
                .collect(),
        }
    }

    /// What is announced once more where somebody asks for that, of one VIP or of all.
    ///
    /// # Errors
    /// It is not announced at all.
    pub fn announced(&self, vip: Option<IpAddr>) -> Result<Announced, ChangeError> {
        let mut vips = self.announced_vips();
        if let Some(vip) = vip {
            if !vips.contains(&vip) {
                return Err(ModelError::NotAnnounced { vip }.into());
            }
            vips = [vip].into();
        }
        let running = self.announcing.attached().filter(|(_, port)| port.running);
        Ok(Announced {
            vips,
            interfaces: running.map(|(name, _)| name.clone()).collect(),
        })
    }

    /// Takes note that somebody else claims a VIP.
    pub fn claimed(&mut self, conflict: Conflict) {
        let Conflict {
            vip,
            mac,
            interface,
            frames,
        } = conflict;
        *self.announcing.claims.entry(vip).or_default() += frames;
        let mut services = self.state.services();
        let Some(service) = services.find(|service| service.id.vip.ip() == vip) else {
            return;
        };
        let mut names = self.announcing.attached();
        let name = names.find(|(_, port)| port.index == interface);
        let name = name.map_or_else(|| interface.to_string(), |(name, _)| name.clone());
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let reason = format!("{mac} on {name} claims {vip} as well ({frames} frames)");
        let id = service.id;
        self.chronicle.note_conflict(id, reason);
    }

    /// VIPs that are announced, and how often others have claimed them.
    pub(super) fn announced_status(&self) -> Vec<AnnouncedStatus> {
        let claims = |vip| self.announcing.claims.get(&vip).copied().unwrap_or(0);
        let vips = self.announced_vips().into_iter();
        vips.map(|vip| AnnouncedStatus {
            vip,
            conflicts: claims(vip),
        })
        .collect()
    }
}
