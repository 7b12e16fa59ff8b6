//! The programs over the maps on the host. Generic code is compiled where it is used: here once, so that who watches
//! this crate at work (the fuzzer, what measures coverage) sees all of it.

use std::cell::Cell;

use super::{MemoryTables, Router};
use crate::{
    decapsulate::{self, Fate, Host},
    flow::Flow,
    hand_on::{Hop, Socket},
    packet::{Packet, SlicePacket},
    pipeline,
    tables::{Address, Endpoint, NoRoute, Route, RouteQuery},
    verdict::Verdict,
};

impl MemoryTables {
    /// [`pipeline::process`] over them.
    pub fn process(&self, packet: &mut SlicePacket<'_>) -> Verdict {
        pipeline::process(packet, self)
    }

    /// [`pipeline::process_held`] over them.
    pub fn process_held(&self, packet: &mut SlicePacket<'_>) -> Verdict {
        pipeline::process_held(packet, self)
    }
}

/// A backend's host in memory, which unwraps what comes and hands on what is another one's.
#[derive(Debug, Clone)]
pub struct MemoryHost {
    /// At which outer addresses tunnels end.
    pub terminates: fn(&Address) -> bool,
    /// The UDP port of tunnels that end here, in network byte order.
    pub gue_port: u16,
    /// Whose the connection between a remote and a local end is.
    pub socket: fn(&Endpoint, &Endpoint) -> Socket,
    /// Whether a packet of a flow answers a SYN cookie.
    pub answers_cookie: fn(&Flow) -> bool,
    /// The way to others.
    pub router: Router,
    /// Packets unwrapped, and dropped for congestion.
    pub counted: Cell<[u64; 2]>,
    /// Packets handed on, by [`Hop`].
    pub hops: Cell<[u64; Hop::ALL.len()]>,
}

impl MemoryHost {
    /// [`decapsulate::process`] here.
    pub fn process(&self, packet: &mut SlicePacket<'_>) -> Fate {
        decapsulate::process(packet, self)
    }
}

impl Host for MemoryHost {
    fn terminates(&self, outer: &Address) -> bool {
        (self.terminates)(outer)
    }

    fn gue_port(&self) -> u16 {
        self.gue_port
    }

    fn count(&self, _: u64) {
        let [unwrapped, congested] = self.counted.get();
        self.counted.set([unwrapped + 1, congested]);
    }

    fn count_drop(&self) {
        let [unwrapped, congested] = self.counted.get();
        self.counted.set([unwrapped, congested + 1]);
    }

    fn hands_on(&self) -> bool {
        true
    }

    fn socket(&self, remote: &Endpoint, local: &Endpoint) -> Socket {
        (self.socket)(remote, local)
    }

    fn answers_cookie<P: Packet>(&self, _: &P, flow: &Flow) -> bool {
        (self.answers_cookie)(flow)
    }

    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute> {
        (self.router)(query)
    }

    fn count_hop(&self, hop: Hop) {
        let mut hops = self.hops.get();
        if let Some(count) = hops.get_mut(hop as usize) {
            *count += 1;
        }
        self.hops.set(hops);
    }
}
