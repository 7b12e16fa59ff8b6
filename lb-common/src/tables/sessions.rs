//! Formats of what mode `full-nat` keeps: sessions, the ports that they have, and the pools that those are of
//! ([`crate::session`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Record};
use crate::flow::Flow;

/// What the flows of a service become at their backends; nothing but zeros in any other mode.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Translation {
    /// How many addresses the pool has; 0: there is none.
    pub addresses: u32,
    /// Its number, by which its addresses are found.
    pub pool: u16,
    /// The first port of each address, in host order.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
    /// How backends are told who the client is: one of [`client_address`].
    pub client_address: u8,
    /// Whether its SYNs are answered for the backend: one of [`syn_proxy`].
    pub syn_proxy: u8,
    /// Always zero.
    pub zeros: [u8; 4],
}

impl Translation {
    /// Ports of each address.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        (self.last_port as u32).saturating_sub(self.first_port as u32) + 1
    }
}

/// How backends are told who the client is; the values of [`Translation::client_address`].
pub mod client_address {
    /// They are not.
    pub const NONE: u8 = 0;
    /// By a TCP option ([`crate::client_address`]).
    pub const TCP_OPTION: u8 = 1;
}

/// Whether SYNs are answered for the backend ([`crate::syn_proxy`]); the values of [`Translation::syn_proxy`].
pub mod syn_proxy {
    /// They are not.
    pub const OFF: u8 = 0;
    /// They are, but for as many as [`Guard::unproxied`](super::super::Guard::unproxied) lets through.
    pub const ON: u8 = 1;
}

/// What an address of a pool is found by.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct PoolKey {
    /// The number of the pool.
    pub pool: u32,
    /// Which of its addresses, from 0.
    pub index: u32,
}

/// What the answers to a session are told by: both ends of its packets as the backend sees them.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct PortKey {
    /// The backend's address.
    pub backend: Address,
    /// The address of the pool.
    pub address: Address,
    /// The backend's port, as in [`Endpoint::port`](super::Endpoint::port).
    pub backend_port: u16,
    /// The port of the pool's address, likewise.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// 0: the port. 1: its lock, which whoever changes a session of that port, or gives the port to another flow, takes
    /// out for as long as that takes.
    pub lock: u8,
    /// Always zero.
    pub zeros: [u8; 2],
}

impl PortKey {
    /// What a backend's packet to an address of a pool is told by.
    #[inline(always)]
    pub const fn of_answer(flow: &Flow) -> Self {
        Self {
            backend: flow.source,
            address: flow.destination,
            backend_port: flow.source_port,
            port: flow.destination_port,
            protocol: flow.protocol,
            lock: 0,
            zeros: [0; 2],
        }
    }

    /// What its lock is kept under.
    #[inline(always)]
    pub const fn lock(self) -> Self {
        Self { lock: 1, ..self }
    }
}

/// A flow of mode `full-nat`: which backend it has, since when, and what it comes from there. Under the
/// [`FlowKey`](super::FlowKey) of the client's packets.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Session {
    /// Its backend, and when the last packet came, of either end.
    pub record: Record,
    /// The address of the pool that it comes from.
    pub address: Address,
    /// The backend's address.
    pub backend: Address,
    /// The port that it comes from, as in [`Endpoint::port`](super::Endpoint::port).
    pub port: u16,
    /// The port that it goes to at the backend, likewise.
    pub backend_port: u16,
    /// The number that the pool had.
    pub pool: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub zero: u8,
    /// Its handshake, where the backend's part of it was answered here.
    pub proxied: Proxied,
}

/// A handshake of which the backend's part was answered here ([`crate::syn_proxy`]); nothing but zeros else.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Proxied {
    /// What has been acknowledged of it: the sequence number that the backend's end began with for the client.
    pub cookie: u32,
    /// The sequence number of the client's SYN.
    pub sequence: u32,
    /// What makes of a sequence number of the backend's the one that the client knows, modulo 2³².
    pub shift: u32,
    /// The largest segment, in bytes, that the client takes; 0: its handshake was not answered here.
    pub mss: u16,
    /// Always zero.
    pub zeros: [u8; 2],
}

impl Session {
    /// What its answers are told by.
    #[inline(always)]
    pub const fn port_key(&self) -> PortKey {
        PortKey {
            backend: self.backend,
            address: self.address,
            backend_port: self.backend_port,
            port: self.port,
            protocol: self.protocol,
            lock: 0,
            zeros: [0; 2],
        }
    }
}

const _: () = {
    assert!(size_of::<Translation>() == 16);
    assert!(size_of::<PoolKey>() == 8);
    assert!(size_of::<PortKey>() == 40);
    assert!(size_of::<Session>() == 72);
};
