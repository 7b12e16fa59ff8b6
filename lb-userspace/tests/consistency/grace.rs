//! Watches that nothing is written over that a packet in flight may still look at.
//!
//! A packet reads the generation once, and then whatever that leads to. What has been reachable at any
//! time since the last grace period is therefore not to be reused; in place, only stores that are
//! true by themselves are allowed: slots of the ring in force, a member, a state, a next generation.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::memory::MemoryTables;
use lb_userspace::{dataplane::Operation, plan::half};

use crate::parts::{guard, previous_slots, ring_slots};

/// See above.
#[derive(Debug, Default)]
pub struct GraceWatch {
    seen: Reachable,
}

/// What packets may look at.
#[derive(Debug, Default)]
struct Reachable {
    /// Halves of services.
    halves: BTreeSet<(u32, usize)>,
    /// Spans of the arena: start and length.
    spans: BTreeMap<u32, u32>,
    /// Backend entries.
    entries: BTreeSet<u32>,
    /// Counters of backends.
    counters: BTreeSet<u32>,
    /// Source routes, by the number of their list.
    routes: BTreeSet<u32>,
}

impl GraceWatch {
    /// What is wrong with carrying out an operation now.
    pub fn objection(&self, operation: &Operation, tables: &MemoryTables) -> Option<String> {
        let seen = &self.seen;
        let reused = match operation {
            Operation::Slots(ring) => {
                let (start, end) = (ring.start, ring.start + ring.size());
                let mut now = Reachable::default();
                now.add(tables);
                let in_place = now.spans.get(&start) == Some(&ring.size());
                let overlaps = |(&at, &size): (&u32, &u32)| at < end && start < at + size;
                !in_place && seen.spans.iter().any(overlaps)
            }
            Operation::Backend(index, _) => seen.entries.contains(index),
            Operation::ZeroBackend(index) => seen.counters.contains(index),
            Operation::Descriptor(index, half, _) => seen.halves.contains(&(*index, *half)),
            Operation::Access(list, _) | Operation::ForgetAccess(list, _) => {
                seen.routes.contains(list)
            }
            _ => false,
        };
        reused.then(|| {
            format!("a packet in flight may look at what is overwritten by {operation:.200?}")
        })
    }

    /// Takes note of an operation that has just been carried out.
    pub fn carried_out(&mut self, operation: &Operation, tables: &MemoryTables) {
        if *operation == Operation::Grace {
            self.seen = Reachable::default();
        }
        if matches!(
            operation,
            Operation::Grace | Operation::Switch(_) | Operation::Member(..)
        ) {
            self.seen.add(tables);
        }
    }
}

impl Reachable {
    fn add(&mut self, tables: &MemoryTables) {
        let in_force = half(tables.control.generation);
        for (entry, index) in tables.service_entries.iter().zip(0..) {
            // Even one that stands for no service is read to find that out.
            self.halves.insert((index, in_force));
            let descriptor = entry.halves[in_force];
            for (start, size) in [
                (descriptor.ring_start, ring_slots(tables, &descriptor)),
                (
                    descriptor.previous_start,
                    previous_slots(tables, &descriptor),
                ),
                (descriptor.schedule_start, descriptor.schedule_size),
            ] {
                if size > 0 {
                    self.spans.insert(start, size);
                }
            }
            if descriptor.is_routed() {
                let guard = guard(tables, &descriptor);
                self.routes.extend([guard.routes, guard.previous_routes]);
            }
            let members = descriptor.members_start as usize..;
            let pool = tables.members.get(members).unwrap_or_default();
            for member in pool.iter().take(descriptor.members_len.into()) {
                if member.backend == 0 {
                    continue;
                }
                self.entries.insert(member.backend);
                let backend = &tables.backends[member.backend as usize];
                self.counters.insert(backend.counters);
            }
        }
    }
}
