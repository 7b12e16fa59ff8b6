//! How many slots rings have whose services have source routes, as the tables say it.

use lb_common::{
    memory::MemoryTables,
    tables::{Descriptor, Guard, access},
};
use lb_userspace::plan::half;

/// What is in force beside a descriptor.
pub fn guard(tables: &MemoryTables, descriptor: &Descriptor) -> Guard {
    let entry = tables.guards.get(usize::from(descriptor.pool));
    let halves = entry.map(|entry| entry.halves).unwrap_or_default();
    halves[half(tables.control.generation)]
}

/// Parts of a ring that is made for these routes.
fn parts(tables: &MemoryTables, routes: u32) -> u32 {
    let says = tables.access.iter().filter(|(key, _)| key.list == routes);
    says.map(|(_, says)| says - access::SUBSET)
        .max()
        .unwrap_or(0)
        + 1
}

/// Slots of the ring in force of a service.
pub fn ring_slots(tables: &MemoryTables, descriptor: &Descriptor) -> u32 {
    descriptor.ring_size * parts(tables, guard(tables, descriptor).routes)
}

/// Slots of the ring before that.
pub fn previous_slots(tables: &MemoryTables, descriptor: &Descriptor) -> u32 {
    let routes = guard(tables, descriptor).previous_routes;
    descriptor.previous_size() * parts(tables, routes)
}
