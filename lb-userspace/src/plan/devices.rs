//! Devices that stand over others, as the packet path needs to know them: which frames are whose, and by what theirs leave; and
//! those that nothing can be sent by, which are left to the kernel.
//! From the host's interfaces, and nothing else; pure.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    tables::{LOWERS, Tag, UPPER, Upper, VlanKey},
    vlan,
};

use super::{Draft, Operation};
use crate::{
    dataplane::Capacity,
    model::Vlans,
    neighbours::{Kind, Port},
    snapshot::DeviceStatus,
};

/// Bytes of a tag.
const TAG: u32 = size_of::<Tag>() as u32;

/// VLAN devices and bonds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devices {
    /// Which device frames are of, with [`UPPER`].
    pub vlans: BTreeMap<VlanKey, u32>,
    /// What each stands over, by its index.
    pub uppers: BTreeMap<u32, Upper>,
    /// Those of them that stand over nothing, since their drivers take no frames from a program: what the route sends by these is the
    /// kernel's.
    pub deaf: BTreeSet<u32>,
    /// How many there is no room for.
    pub left_out: usize,
}

impl Devices {
    /// Those of a host that something is made of. A VLAN device that is attended has the program itself: its frames come and go
    /// without tags.
    pub fn wanted(
        vlans: Vlans,
        ports: &BTreeMap<String, Port>,
        attended: &BTreeSet<String>,
    ) -> Self {
        if vlans == Vlans::Off {
            let mut devices = Self::default();
            devices.leave_deaf(ports);
            return devices;
        }
        let mut devices = Self::of(ports);
        if vlans == Vlans::On {
            devices.vlans.insert(VlanKey::ANY, 0);
        }
        for name in attended {
            if let Some(port) = ports.get(name)
                && let Kind::Vlan { .. } = port.kind
            {
                devices.uppers.remove(&port.index);
                devices
                    .vlans
                    .retain(|_, device| *device != port.index | UPPER);
            }
        }
        devices.leave_deaf(ports);
        devices
    }

    /// Whether the packet path has to know of any, given whether it asks the route for packets' ways.
    pub fn matter(&self, routes: bool) -> bool {
        let mut uppers = self.uppers.keys();
        uppers.any(|upper| routes || !self.deaf.contains(upper))
    }

    /// Leaves what is routed by a device that nothing can be sent by to the kernel, as far as there is room.
    fn leave_deaf(&mut self, ports: &BTreeMap<String, Port>) {
        const KERNELS: Upper = Upper {
            lowers: [0; LOWERS],
            tags: [[0; size_of::<Tag>()]; 2],
            count: 0,
            mtu: u16::MAX,
        };
        let most = Capacity::UPPERS as usize / 2;
        for port in ports.values().filter(|port| port.deaf) {
            if self.uppers.len() < most && !self.uppers.contains_key(&port.index) {
                self.uppers.insert(port.index, KERNELS);
                self.deaf.insert(port.index);
            }
        }
    }

    /// Those of a host. A VLAN device over two others is left out, and one over what is in another network namespace.
    pub fn of(ports: &BTreeMap<String, Port>) -> Self {
        let ports: BTreeMap<u32, Port> = ports.values().map(|port| (port.index, *port)).collect();
        let members = members(&ports);
        let mut devices = Self::default();
        for port in ports.values() {
            devices.add(&ports, &members, port);
        }
        devices
    }

    fn add(&mut self, ports: &BTreeMap<u32, Port>, members: &Members, port: &Port) {
        let Some((base, tags, count)) = base(ports, port) else {
            return;
        };
        let members = members.get(&base.index).map_or(&[][..], Vec::as_slice);
        if base.kind == Kind::Bond && members.is_empty() {
            return;
        }
        // Half of the room, so that all of them may be replaced at once.
        let most = Capacity::UPPERS as usize / 2;
        if self.uppers.len() >= most || self.vlans.len() + members.len() >= most {
            self.left_out += 1;
            return;
        }
        let live = members
            .iter()
            .filter_map(|(member, live)| live.then_some(*member));
        let live: Vec<u32> = match base.kind {
            Kind::Bond => live.collect(),
            _ => vec![base.index],
        };
        // Of a bond that has the program itself, frames may come in by it as well. What comes in by a member that stands by is
        // the kernel's, which drops it.
        for &interface in live.iter().chain([&base.index]) {
            let key = vlan::key(interface, tags);
            if count > 0 {
                self.vlans.insert(key, port.index | UPPER);
            }
        }
        let upper = Upper {
            lowers: std::array::from_fn(|place| {
                live.get(place % live.len().max(1)).copied().unwrap_or(0)
            }),
            tags,
            count,
            mtu: u16::try_from(room(port, base, count)).unwrap_or(u16::MAX),
        };
        self.uppers.insert(port.index, upper);
    }

    /// What is told of them, given the host's interfaces.
    pub fn status(&self, ports: &BTreeMap<String, Port>) -> Vec<DeviceStatus> {
        let names: BTreeMap<u32, &String> = ports
            .iter()
            .map(|(name, port)| (port.index, name))
            .collect();
        let name = |index: u32| {
            let name = names.get(&index);
            name.map_or_else(|| index.to_string(), |name| (*name).clone())
        };
        let told = |(&index, upper): (&u32, &Upper)| {
            let lowers: BTreeSet<u32> = upper
                .lowers
                .into_iter()
                .filter(|&lower| lower != 0)
                .collect();
            DeviceStatus {
                name: name(index),
                over: lowers.into_iter().map(name).collect(),
                tags: upper.tags[..upper.count.into()]
                    .iter()
                    .map(written)
                    .collect(),
            }
        };
        let uppers = self.uppers.iter();
        uppers
            .filter(|(index, _)| !self.deaf.contains(index))
            .map(told)
            .collect()
    }

    /// An interface as backends have it.
    pub fn marked(&self, interface: u32) -> u32 {
        match self.uppers.contains_key(&interface) {
            true => interface | UPPER,
            false => interface,
        }
    }

    /// How long a packet may be that leaves by an interface, whatever that says itself.
    pub fn mtu(&self, interface: u32) -> Option<u32> {
        self.uppers.get(&interface).map(|upper| upper.mtu.into())
    }

    /// The interface that frames of a next hop's come in by, as the packet path names it; 0: there are several.
    pub fn way_in(&self, interface: u32) -> u32 {
        match self.uppers.get(&(interface & !UPPER)) {
            Some(bond) if bond.count == 0 => {
                let [first, rest @ ..] = bond.lowers;
                if rest == [first; LOWERS - 1] {
                    first
                } else {
                    0
                }
            }
            _ => interface,
        }
    }
}

/// A tag as people write it.
fn written(&[a, b, c, d]: &Tag) -> String {
    let protocol = match [a, b] {
        [0x88, 0xa8] => "802.1ad",
        _ => "802.1q",
    };
    format!("{protocol} {}", u16::from_be_bytes([c, d]))
}

/// What stands below a VLAN device or a bond, with the tags between.
fn base<'a>(ports: &'a BTreeMap<u32, Port>, port: &'a Port) -> Option<(&'a Port, [Tag; 2], u16)> {
    const NONE: Tag = [0; 4];
    match port.kind {
        Kind::Bond => Some((port, [NONE, NONE], 0)),
        Kind::Vlan { lower, tag } => {
            let below = ports.get(&lower)?;
            let Kind::Vlan { lower, tag: outer } = below.kind else {
                return Some((below, [tag, NONE], 1));
            };
            let below = ports.get(&lower)?;
            let is_third = matches!(below.kind, Kind::Vlan { .. });
            (!is_third).then_some((below, [outer, tag], 2))
        }
        Kind::Plain | Kind::Member { .. } => None,
    }
}

/// Members of bonds, by these, and whether each can be sent by.
type Members = BTreeMap<u32, Vec<(u32, bool)>>;

fn members(ports: &BTreeMap<u32, Port>) -> Members {
    let mut members = Members::new();
    for port in ports.values() {
        if let Kind::Member { bond, active } = port.kind {
            let member = (port.index, active && port.running);
            members.entry(bond).or_default().push(member);
        }
    }
    members
}

/// The longest packet that leaves. An interface takes one tag on top of its MTU, as the kernel has it (`VLAN_HLEN` in
/// `is_skb_forwardable`), and no more.
fn room(port: &Port, base: &Port, count: u16) -> u32 {
    let beyond = u32::from(count).saturating_sub(1) * TAG;
    port.mtu.min(base.mtu.saturating_sub(beyond))
}

impl Draft {
    /// From those in the maps to those that there are.
    pub(super) fn set_devices(&mut self, wanted: &Devices) {
        let before = std::mem::replace(&mut self.layout.devices, wanted.clone());
        for (&index, &upper) in &wanted.uppers {
            if before.uppers.get(&index) != Some(&upper) {
                self.before.push(Operation::Upper(index, upper));
            }
        }
        for (&key, &device) in &wanted.vlans {
            if before.vlans.get(&key) != Some(&device) {
                self.before.push(Operation::Vlan(key, device));
            }
        }
        let gone = before
            .vlans
            .into_keys()
            .filter(|key| !wanted.vlans.contains_key(key));
        self.after.extend(gone.map(Operation::ForgetVlan));
        let gone = before
            .uppers
            .into_keys()
            .filter(|index| !wanted.uppers.contains_key(index));
        self.after.extend(gone.map(Operation::ForgetUpper));
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
