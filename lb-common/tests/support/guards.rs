//! Stages on which not everybody may send. All but lists concerns the last service added.

use std::net::IpAddr;

use lb_common::{
    rate::Rate,
    tables::{AccessKey, Address, Guard, GuardEntry, access, service_flag},
};

use super::Stage;

/// A prefix in the list of a number.
pub(super) fn key(number: u32, prefix: &str) -> AccessKey {
    let (address, bits) = prefix.split_once('/').expect("a prefix");
    let address: IpAddr = address.parse().expect("an address");
    let bits: u32 = bits.parse().expect("a length");
    let before = if address.is_ipv4() { 96 } else { 0 };
    AccessKey {
        bits: AccessKey::LIST_BITS + before + bits,
        list: number,
        address: Address::from(address),
    }
}

impl Stage {
    /// An access list of a number: prefixes, and whether they are allowed.
    pub fn list(mut self, number: u32, prefixes: &[(&str, bool)]) -> Self {
        for &(prefix, allowed) in prefixes {
            let says = if allowed {
                access::ALLOWED
            } else {
                access::DENIED
            };
            self.tables.access.insert(key(number, prefix), says);
        }
        self
    }

    /// An access list, 0 for none, and limits; sources are told apart by all bits.
    pub fn guarded(self, list: u32, flows: Rate, sources: Rate) -> Self {
        self.guards(|guard| {
            *guard = Guard {
                list,
                source_bits_v4: 128,
                source_bits_v6: 128,
                flows,
                sources,
                ..*guard
            };
        })
    }

    /// Another list in one half.
    pub fn guarded_in(self, half: usize, list: u32) -> Self {
        self.entry(|entry| entry.halves[half].list = list)
    }

    /// Other source routes in one half.
    pub fn routed_in(self, half: usize, routes: u32) -> Self {
        self.entry(|entry| entry.halves[half].routes = routes)
            .unguarded()
    }

    /// Sources are told apart by so many bits, of every service.
    pub fn sources_of(mut self, v4: u16, v6: u16) -> Self {
        for guard in self.tables.guards.iter_mut().flat_map(|g| &mut g.halves) {
            (guard.source_bits_v4, guard.source_bits_v6) = (96 + v4, v6);
        }
        self
    }

    /// The descriptor does not say that there is a guard.
    pub fn unguarded(self) -> Self {
        self.describe(|descriptor| descriptor.flags &= !service_flag::GUARDED)
    }

    /// Changes both halves of its guard.
    pub(super) fn guards(self, change: impl FnMut(&mut Guard)) -> Self {
        self.entry(|entry| entry.halves.iter_mut().for_each(change))
    }

    /// It has a guard that its descriptor says nothing of, as one that does nothing but translate.
    pub(super) fn open(self) -> Self {
        self.unguarded()
    }

    fn entry(mut self, change: impl FnOnce(&mut GuardEntry)) -> Self {
        // A pool of its own, at no other index of the service's.
        let pool = self.tables.service_entries.len() + 2;
        self.tables.guards.resize(pool + 1, GuardEntry::default());
        change(&mut self.tables.guards[pool]);
        self.describe(|descriptor| {
            descriptor.pool = pool as u16;
            descriptor.flags |= service_flag::GUARDED;
        })
    }
}
