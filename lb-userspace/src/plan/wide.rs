//! The part of a plan that says how services of several addresses or ports are found. Pure.
//!
//! A prefix of VIPs leads to a class, and a class has the ports that services have there: those of the prefix itself, and
//! where they leave some, those of prefixes that hold it. So of all services that a packet could be for, the longest prefix
//! of its address finds the one of the fewest addresses, and of these the one of the fewest ports ([`flattened`]). A class is
//! never changed. Other ports are another class, which is written aside; prefixes go over to it at the switch, and the
//! former one goes after the grace period.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
};

use lb_common::{
    memory::MemoryTables,
    tables::{ClassKey, VipKey, owned},
};

use super::{Draft, NoRoom, half, layout::Layout};
use crate::{
    dataplane::Operation,
    model::{ServiceId, State},
};

/// Ports in a row that one service has in a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// Index of the service.
    pub index: u32,
}

impl PortRange {
    /// The fewest prefixes of ports that are these: thirty at most.
    pub fn keys(&self, class: u32) -> Vec<ClassKey> {
        let (mut at, last) = (u32::from(self.first), u32::from(self.last));
        let mut keys = Vec::new();
        while at <= last {
            let size = at.trailing_zeros().min((last - at + 1).ilog2()).min(16);
            keys.push(ClassKey::block(class, at as u16, 16 - size));
            at += 1 << size;
        }
        keys
    }
}

/// All ports of a class, in order and without overlaps.
pub type Ports = Arc<[PortRange]>;

/// What there is of that in the maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wide {
    /// Classes, by number.
    classes: BTreeMap<u32, Ports>,
    /// The class of each prefix in force; 0: none.
    prefixes: BTreeMap<VipKey, u32>,
    /// Prefixes all addresses of which are VIPs.
    vips: BTreeSet<VipKey>,
    /// What it was made for; unknown after a restart.
    services: Vec<(ServiceId, u32)>,
}

/// Services with every port of an address of which others have ranges, so that looking for every port would be too early.
pub(super) fn overlaid(state: &State) -> BTreeSet<ServiceId> {
    let ids = state.services().map(|service| service.id);
    let ranges = ids.filter(|id| id.is_wide() && !id.is_prefix());
    let every = ranges.map(|id| id.with_every_port());
    every.filter(|&id| state.service(id).is_some()).collect()
}

impl Draft {
    /// Has everything found that [`overlaid`] says and all that is wide, and nothing else.
    pub(super) fn place_classes(&mut self) -> Result<(), NoRoom> {
        let pools = self.layout.pools.values();
        let all = pools.flat_map(|placed| &placed.services);
        let found = |id: &ServiceId| id.is_wide() || self.overlaid.contains(id);
        let mut services: Vec<(ServiceId, u32)> = all
            .filter(|(id, _)| found(id))
            .map(|(&id, &index)| (id, index))
            .collect();
        services.sort_unstable();
        if services == self.layout.wide.services
            && (!services.is_empty() || self.layout.wide == Wide::default())
        {
            return Ok(());
        }
        let before = std::mem::take(&mut self.layout.wide);
        let classes = self.place_ports(&before, by_prefix(&services));
        let wide = Wide {
            vips: vips(&services),
            services,
            ..classes
        };
        self.check_wide_room(&before, &wide)?;
        self.place_prefixes(&before, &wide);
        let former = before.classes.into_iter();
        let former = former.filter(|(number, _)| !wide.classes.contains_key(number));
        let forget = former.map(|(number, ports)| Operation::ForgetClass(number, ports));
        self.after.extend(forget);
        self.layout.wide = wide;
        Ok(())
    }

    /// Writes classes that there are not yet aside.
    fn place_ports(&mut self, before: &Wide, wanted: BTreeMap<VipKey, Ports>) -> Wide {
        let former = before.classes.iter();
        let mut known: BTreeMap<Ports, u32> = former
            .map(|(&number, ports)| (Arc::clone(ports), number))
            .collect();
        // 0 stands for none.
        let mut free = (1..).filter(|number| !before.classes.contains_key(number));
        let mut wide = Wide::default();
        for (key, ports) in wanted {
            let number = match known.get(&ports) {
                Some(&number) => number,
                None => {
                    let number = free.next().unwrap_or(u32::MAX);
                    known.insert(Arc::clone(&ports), number);
                    self.before
                        .push(Operation::Class(number, Arc::clone(&ports)));
                    number
                }
            };
            wide.classes.insert(number, ports);
            wide.prefixes.insert(key, number);
        }
        wide
    }

    /// Has prefixes lead there from the switch on. One that is new leads where its address did before until then, and one
    /// that goes, where it will lead without it.
    fn place_prefixes(&mut self, before: &Wide, wide: &Wide) {
        let aside = half(self.layout.generation + 1);
        let keys: BTreeSet<&VipKey> = before.prefixes.keys().chain(wide.prefixes.keys()).collect();
        for &key in keys {
            let (old, new) = (before.class(&key), wide.class(&key));
            let stays = wide.prefixes.contains_key(&key);
            if old == new && stays && before.prefixes.contains_key(&key) {
                continue;
            }
            self.reclassed = true;
            let mut halves = [old; 2];
            halves[aside] = new;
            self.before.push(Operation::VipPrefix(key, halves));
            self.after.push(match stays {
                true => Operation::VipPrefix(key, [new; 2]),
                false => Operation::ForgetVipPrefix(key),
            });
        }
        for &key in wide.vips.difference(&before.vips) {
            self.before.push(Operation::VipPrefix(key, [owned::VIP; 2]));
        }
        for &key in before.vips.difference(&wide.vips) {
            self.after.push(Operation::ForgetVipPrefix(key));
        }
    }

    fn check_wide_room(&self, before: &Wide, wide: &Wide) -> Result<(), NoRoom> {
        let capacity = &self.layout.capacity;
        let prefixes = before.prefixes.len() + before.vips.len();
        let prefixes = prefixes + wide.prefixes.len() + wide.vips.len();
        let new = wide.classes.iter();
        let new = new.filter(|(number, _)| !before.classes.contains_key(number));
        let classes = before.classes.iter().chain(new);
        let ports: usize = classes
            .flat_map(|(_, ports)| ports.iter())
            .map(|range| range.keys(0).len())
            .sum();
        for (needed, room, what) in [
            (prefixes, capacity.vip_prefixes(), "prefixes of VIPs"),
            (ports, capacity.class_ports(), "prefixes of ports of VIPs"),
        ] {
            if needed > room as usize {
                return Err(NoRoom {
                    what: format!("{needed} {what}, before and after a change ({room} fit)"),
                    setting: "services",
                });
            }
        }
        Ok(())
    }
}

impl Wide {
    /// The class of the longest prefix that holds one.
    fn class(&self, key: &VipKey) -> u32 {
        let lengths = (VipKey::PROTOCOL_BITS..=key.bits).rev();
        let mut found = lengths.filter_map(|bits| self.prefixes.get(&key.prefix(bits)));
        found.next().copied().unwrap_or(0)
    }
}

/// Prefixes of VIPs, whatever the protocol.
fn vips(services: &[(ServiceId, u32)]) -> BTreeSet<VipKey> {
    let prefixes = services.iter().filter(|(id, _)| id.is_prefix());
    prefixes.map(|(id, _)| id.vip_key(0)).collect()
}

/// The ports that services have at each prefix.
fn by_prefix(services: &[(ServiceId, u32)]) -> BTreeMap<VipKey, Ports> {
    let mut own: BTreeMap<VipKey, Vec<(RangeInclusive<u16>, u32)>> = BTreeMap::new();
    for (id, index) in services {
        let at = own.entry(id.vip_key(id.protocol.number())).or_default();
        at.push((id.ports(), *index));
    }
    for ranges in own.values_mut() {
        ranges.sort_by_key(|(ports, _)| ports.len());
    }
    // Of all that hold it, the longest first.
    let all = |key: &VipKey| {
        let lengths = (VipKey::PROTOCOL_BITS..=key.bits).rev();
        let prefixes = lengths.map(|bits| key.prefix(bits));
        let ranges = prefixes.filter_map(|prefix| own.get(&prefix)).flatten();
        flattened(ranges.cloned())
    };
    own.keys().map(|key| (*key, all(key))).collect()
}

/// Ranges of which each has what those before it have left, in order.
fn flattened(ranges: impl Iterator<Item = (RangeInclusive<u16>, u32)>) -> Ports {
    let mut flat: Vec<PortRange> = Vec::new();
    for (range, index) in ranges {
        let (mut next, last) = (u32::from(*range.start()), u32::from(*range.end()));
        let mut gaps = Vec::new();
        for taken in &flat {
            let (from, to) = (u32::from(taken.first), u32::from(taken.last));
            if from > last {
                break;
            }
            if from > next {
                gaps.push((next, from - 1));
            }
            next = next.max(to + 1);
        }
        if next <= last {
            gaps.push((next, last));
        }
        let range = |(first, last): (u32, u32)| PortRange {
            first: first as u16,
            last: last as u16,
            index,
        };
        flat.extend(gaps.into_iter().map(range));
        flat.sort_unstable();
    }
    joined(flat)
}

/// Neighbours of one service as one; from ranges in order.
fn joined(ranges: Vec<PortRange>) -> Ports {
    let mut all: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(before)
                if before.index == range.index
                    && u32::from(before.last) + 1 == u32::from(range.first) =>
            {
                before.last = range.last;
            }
            _ => all.push(range),
        }
    }
    all.into()
}

impl Layout {
    /// What the maps hold, whole or not, and the operations that make both halves one.
    pub(super) fn adopt_wide(&mut self, tables: &MemoryTables, in_force: usize) -> Vec<Operation> {
        let mut repairs = Vec::new();
        for (&key, halves) in &tables.classes {
            if key.protocol == 0 {
                self.wide.vips.insert(key);
                continue;
            }
            let class = halves[in_force];
            self.wide.prefixes.insert(key, class);
            if halves[1 - in_force] != class {
                repairs.push(Operation::VipPrefix(key, [class; 2]));
            }
        }
        let mut classes: BTreeMap<u32, Vec<PortRange>> = BTreeMap::new();
        for (key, &place) in &tables.class_ports {
            let first = u16::from_be_bytes(key.port);
            let length = 1_u32 << 16_u32.saturating_sub(key.bits - ClassKey::CLASS_BITS);
            classes.entry(key.class).or_default().push(PortRange {
                first,
                last: (u32::from(first) + length - 1) as u16,
                index: place.saturating_sub(1),
            });
        }
        for (number, mut ranges) in classes {
            ranges.sort_unstable();
            self.wide.classes.insert(number, joined(ranges));
        }
        let shapes = (0..).zip(&tables.shapes);
        let shapes = shapes.filter(|(_, shape)| shape.bits != 0);
        self.shapes = shapes.map(|(index, &shape)| (index, shape)).collect();
        repairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(ranges: &[(RangeInclusive<u16>, u32)]) -> Vec<(u16, u16, u32)> {
        let flat = flattened(ranges.iter().cloned());
        flat.iter().map(|r| (r.first, r.last, r.index)).collect()
    }

    #[test]
    fn each_range_has_what_those_before_it_have_left() {
        assert_eq!(
            flat(&[(80..=80, 1), (10..=99, 2), (0..=u16::MAX, 3)]),
            [
                (0, 9, 3),
                (10, 79, 2),
                (80, 80, 1),
                (81, 99, 2),
                (100, u16::MAX, 3)
            ]
        );
        assert_eq!(flat(&[(0..=u16::MAX, 1), (5..=6, 2)]), [(0, u16::MAX, 1)]);
        assert_eq!(flat(&[(1..=2, 1), (3..=4, 1)]), [(1, 4, 1)]);
        assert_eq!(
            flat(&[(u16::MAX..=u16::MAX, 1), (9..=u16::MAX, 2)]),
            [(9, u16::MAX - 1, 2), (u16::MAX, u16::MAX, 1)]
        );
    }

    #[test]
    fn prefixes_of_ports_are_those_of_the_range_and_no_others() {
        for (first, last, most) in [
            (0, u16::MAX, 1),
            (1, u16::MAX - 1, 30),
            (8_000, 8_999, 10),
            (80, 80, 1),
            (u16::MAX, u16::MAX, 1),
        ] {
            let range = PortRange {
                first,
                last,
                index: 7,
            };
            let keys = range.keys(3);
            assert!(keys.len() <= most, "{first}-{last}: {}", keys.len());
            let found = |port: u16| {
                let blocks = (0..=16).map(|bits| ClassKey::block(3, port, bits));
                blocks.filter(|block| keys.contains(block)).count()
            };
            for port in 0..=u16::MAX {
                let expected = usize::from((first..=last).contains(&port));
                assert_eq!(found(port), expected, "{port} of {first}-{last}");
            }
        }
    }

    fn id(text: &str) -> ServiceId {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_has_the_ports_of_those_that_hold_it_where_it_has_none_of_its_own() {
        let services = [
            (id("10.0.0.0/24:*/tcp"), 1),
            (id("10.0.0.16/28:80/tcp"), 2),
            (id("10.0.0.17:70-90/tcp"), 3),
            (id("10.0.0.16/28:1000-1999/udp"), 4),
        ];
        let classes = by_prefix(&services);
        let of = |text: &str| -> Vec<(u16, u16, u32)> {
            let id = id(text);
            let ports = &classes[&id.vip_key(id.protocol.number())];
            ports.iter().map(|r| (r.first, r.last, r.index)).collect()
        };
        assert_eq!(classes.len(), 4);
        assert_eq!(of("10.0.0.0/24:*/tcp"), [(0, u16::MAX, 1)]);
        assert_eq!(
            of("10.0.0.16/28:80/tcp"),
            [(0, 79, 1), (80, 80, 2), (81, u16::MAX, 1)]
        );
        assert_eq!(
            of("10.0.0.17:70-90/tcp"),
            [(0, 69, 1), (70, 90, 3), (91, u16::MAX, 1)]
        );
        assert_eq!(of("10.0.0.16/28:1000-1999/udp"), [(1_000, 1_999, 4)]);
    }
}
