//! How backends are reached, as the agent is told of it in tests over maps in memory.

#![allow(dead_code, reason = "every test program that includes it uses a part")]

use std::net::IpAddr;

use lb_userspace::neighbours::{NextHop, Update};

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
