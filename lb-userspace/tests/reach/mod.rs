//! What tests of the agent over maps in memory begin with: the maps, how backends are reached, and what people
//! ask of them.

#![allow(dead_code, reason = "every test program that includes it uses a part")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tables::HASH_KEY_WORDS;
use lb_userspace::{
    agent::{
        Core,
        history::{self, History},
    },
    dataplane::{Dataplane as _, memory::MemoryDataplane},
    model::{Admin, Change, ServiceId},
    neighbours::{NextHop, Update},
    plan::ticks,
};

/// Empty maps, with room for a few services.
pub fn memory() -> MemoryDataplane {
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 3;
    memory.tables.control.hash_key = [0x9e37_79b9_7f4a_7c15; HASH_KEY_WORDS];
    memory
}

/// What somebody asks of a backend, all else left as it is.
pub fn asking(id: ServiceId, address: SocketAddr, admin: Admin) -> Change {
    Change::EditBackend {
        id,
        address,
        weight: None,
        admin: Some(admin),
        max_connections: None,
        rated: Default::default(),
        tier: None,
    }
}

/// Lets time pass by the maps' clock.
pub fn wind(core: &Core<MemoryDataplane>, time: Duration) {
    let clock = &core.dataplane().tables.time;
    clock.set(clock.get().wrapping_add(ticks(time)));
}

/// What an agent that ends leaves to the next one, which starts after so long a time.
#[expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
pub fn left_behind(core: &Core<MemoryDataplane>, away: Duration) -> History<Duration> {
    let now = Duration::from_secs(1_700_000);
    let text = history::write(core.history(), core.dataplane().now(), now).unwrap();
    wind(core, away);
    history::read(&text, now + away).unwrap()
}

/// A next hop of an address, in one of several ways.
pub fn next_hop(address: IpAddr, way: u8) -> NextHop {
    NextHop {
        interface: 7,
        source_mac: [2, 0, 0, 0, 1, way],
        destination_mac: [2, 0, 0, 0, 2, way],
        source_address: match address {
            IpAddr::V4(_) => IpAddr::from([10, 0, 0, 1]),
            IpAddr::V6(_) => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        },
        mtu: 1_500,
        on_link: true,
    }
}

/// The news of it.
pub fn reached(address: IpAddr, way: u8) -> Update {
    Update::NextHop {
        address,
        next_hop: Some(next_hop(address, way)),
        reason: None,
    }
}
