//! What a backend makes of packets whose flow another one may have: those of connections that it does not know go on to
//! that one, once. Pure: sockets and routes are its host's to look up.
//!
//! On go TCP packets that do not open a connection, and ICMP errors about such, for which there is no socket of their own.
//! A listening one is none, but where the packet answers a SYN cookie, of which nothing else is kept. All that cannot be
//! read for certain stays: datagrams of UDP, fragments, unknown extension headers.

use crate::{
    decapsulate::{Fate, Host},
    flow::{self, Family, Flow, Stop},
    forward, icmp,
    packet::{Header, Packet},
    second_hop,
    tables::{Address, NoRoute, Route, RouteQuery},
    verdict::DropReason,
    wire::{self, Check, protocol},
};

/// Whose a connection is at this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// Its own: established, being opened or closed, or in time-wait.
    Flow,
    /// Nobody's, but its port takes connections.
    Listener,
    /// Nobody's.
    Nobody,
}

/// What comes of a packet that goes on; its number is its counter's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hop {
    /// It went to the other backend.
    Direct = 0,
    /// It went there by whom it came from, since the neighbour on the way is not known here.
    Back = 1,
    /// Dropped: its TTL or hop limit ends here.
    Expired = 2,
    /// Dropped: it is longer than the way there takes.
    TooLong = 3,
    /// Dropped: no route leads there.
    NoRoute = 4,
}

impl Hop {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Direct,
        Self::Back,
        Self::Expired,
        Self::TooLong,
        Self::NoRoute,
    ];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "handed on",
            Self::Back => "handed on by the sender",
            Self::Expired => "dropped: TTL expired",
            Self::TooLong => "dropped: too long",
            Self::NoRoute => "dropped: no route",
        }
    }
}

/// A tunnelled packet, as if the headers around it were not there.
struct Inside<'a, P> {
    packet: &'a P,
    /// Bytes of those.
    headers: usize,
}

impl<P: Packet> Packet for Inside<'_, P> {
    #[inline(always)]
    fn length(&self) -> usize {
        self.packet.length().saturating_sub(self.headers)
    }

    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        self.packet.reaches(end + self.headers)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.packet.interface()
    }

    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        self.packet.read(offset + self.headers)
    }

    #[inline(always)]
    fn write<T: Header>(&mut self, _offset: usize, _header: &T) -> Option<()> {
        None
    }

    #[inline(always)]
    fn forget(&self, number: usize) -> usize {
        self.packet.forget(number)
    }

    #[inline(always)]
    fn grow_front(&mut self, _bytes: usize) -> bool {
        false
    }

    #[inline(always)]
    fn shrink_front(&mut self, _bytes: usize) -> bool {
        false
    }

    #[inline(always)]
    fn truncate(&mut self, _length: usize) -> bool {
        false
    }
}

/// Whether the packet behind so many bytes of headers is this host's to answer.
#[inline(always)]
pub fn stays<P: Packet, H: Host>(packet: &P, host: &H, headers: usize, family: Family) -> bool {
    let inside = Inside { packet, headers };
    let mut flow = Flow::EMPTY;
    let parsed = match family {
        Family::V4 => flow::parse_v4(&inside, &mut flow),
        Family::V6 => flow::parse_v6(&inside, &mut flow),
    };
    match parsed {
        Ok(()) if flow.protocol != protocol::TCP || flow.opens() => true,
        Ok(()) => {
            flow.transport = packet.forget(flow.transport);
            match host.socket(&flow.from(), &flow.to()) {
                Socket::Flow => true,
                Socket::Listener => host.answers_cookie(&inside, &flow),
                Socket::Nobody => false,
            }
        }
        Err(Stop::Unusual) => match icmp::about(&inside, family) {
            // About a packet of this host's to the client, if anything.
            Some((own, client)) if own.protocol == protocol::TCP => {
                host.socket(&client, &own) == Socket::Flow
            }
            _ => true,
        },
        Err(_) => true,
    }
}

/// A tunnelled packet's outer headers.
pub struct Outer {
    /// Where they lead: here.
    pub destination: Address,
    /// Offset of the UDP header.
    pub udp: usize,
}

/// Sends a packet on to `other`, which is told of nobody else, so that it goes no further.
#[inline(always)]
pub fn hand_on<P: Packet, H: Host>(
    packet: &mut P,
    host: &H,
    outer: &Outer,
    other: Address,
) -> Fate {
    let length = packet.length().saturating_sub(wire::ETHERNET);
    let route = host.route(&RouteQuery {
        source: outer.destination,
        destination: other,
        length: u16::try_from(length).unwrap_or(u16::MAX),
    });
    let route = match route {
        Ok(route) => Some(route),
        Err(NoRoute::Kernels) => None,
        Err(NoRoute::TooLong(_)) => return dropped(host, Hop::TooLong),
        Err(NoRoute::Refused) => return dropped(host, Hop::NoRoute),
    };
    match readdress(packet, outer, other, route.as_ref()) {
        Ok(()) => {}
        Err(DropReason::TtlExpired) => return dropped(host, Hop::Expired),
        Err(_) => return dropped(host, Hop::NoRoute),
    }
    match route {
        Some(route) => {
            host.count_hop(Hop::Direct);
            if route.interface == packet.interface() {
                Fate::Transmit
            } else {
                Fate::Redirect(route.interface)
            }
        }
        None => {
            host.count_hop(Hop::Back);
            Fate::Transmit
        }
    }
}

#[inline(always)]
fn dropped<H: Host>(host: &H, hop: Hop) -> Fate {
    host.count_hop(hop);
    Fate::Drop
}

/// The same headers from this host to another one, with a hop less to go, and nobody else told of; to the next hop on
/// that way, or else back to the last one.
#[inline(always)]
fn readdress<P: Packet>(
    packet: &mut P,
    outer: &Outer,
    other: Address,
    route: Option<&Route>,
) -> Result<(), DropReason> {
    let (own, v4) = (outer.destination, outer.destination.is_v4());
    let change = forward::set_addresses(packet, wire::ETHERNET, v4, Some(own), Some(other), 1)?;
    let told = second_hop::forget(packet, outer.udp + wire::UDP, other, v4)?;
    let at = outer.udp + wire::UDP_CHECK;
    let Check(check) = forward::read(packet, at)?;
    if check != [0; 2] {
        let after = change.plus(told).update(u16::from_ne_bytes(check));
        forward::write(packet, at, &Check(forward::sent(after).to_ne_bytes()))?;
    }
    match route {
        Some(route) => forward::readdress(packet, route.source_mac, route.destination_mac),
        None => forward::turn_back(packet),
    }
}
