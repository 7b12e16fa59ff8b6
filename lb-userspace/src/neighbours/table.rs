//! Owns the mirror of the kernel's links, addresses and neighbours, and the answers to route
//! questions; resolves an address from them. Never talks to the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Kind, NextHop, Origin, Port};
use crate::offloads::Xdp;

/// A neighbour as the kernel keys it: interface and address.
pub type NeighbourKey = (u32, IpAddr);

/// A next hop, or why there is none.
pub type Resolution = Result<NextHop, String>;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one as Ethernet does.
    pub mac: Option<[u8; 6]>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is set up. A lost carrier is left to the health checks: it often comes back.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// How it is related to others.
    pub kind: Kind,
}

/// How sure the kernel is of a neighbour, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The kernel knows it or is just asking; or an operator has set it.
    Fresh,
    /// Known, but not confirmed lately.
    Stale,
    /// Not known: never asked, forgotten, or asked in vain.
    Lost,
}

/// A neighbour of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address, or the last one known.
    pub mac: Option<[u8; 6]>,
    /// How sure the kernel is of it.
    pub freshness: Freshness,
}

/// The kernel's answer to how an address is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Interface to send by.
    pub interface: u32,
    /// The router, where the address is not on the link; possibly of the other family.
    pub gateway: Option<IpAddr>,
    /// Own address that the kernel would send from.
    pub source: Option<IpAddr>,
    /// MTU of the route, where it has one of its own.
    pub mtu: Option<u32>,
}

/// A change of the kernel's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface is new or different.
    Link(u32, Link),
    /// An interface is gone.
    LinkGone(u32),
    /// An own address of an interface is new or different.
    Address(u32, IpAddr),
    /// An own address of an interface is gone.
    AddressGone(u32, IpAddr),
    /// A neighbour is new or different. Without a hardware address the last one is kept.
    Neighbour(NeighbourKey, Neighbour),
    /// Some route or rule changed.
    Routes,
}

/// What must be looked at again after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effect {
    /// The routes of all addresses: the kernel must be asked again.
    pub routes: bool,
    /// The resolutions, from what is known here.
    pub resolutions: bool,
    /// The set of own addresses.
    pub own_addresses: bool,
    /// The interfaces.
    pub ports: bool,
}

impl std::ops::BitOrAssign for Effect {
    fn bitor_assign(&mut self, other: Self) {
        self.routes |= other.routes;
        self.resolutions |= other.resolutions;
        self.own_addresses |= other.own_addresses;
        self.ports |= other.ports;
    }
}

/// All that is known of the network around.
#[derive(Debug, Clone, Default)]
pub struct Table {
    origin: Origin,
    /// What interfaces' drivers have of XDP, as far as the kernel tells.
    drivers: BTreeMap<u32, Xdp>,
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpAddr)>,
    neighbours: BTreeMap<NeighbourKey, Neighbour>,
    routes: BTreeMap<IpAddr, Result<Route, String>>,
}

impl Table {
    /// Nothing is known yet.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            ..Self::default()
        }
    }

    /// Replaces what is known of drivers.
    pub fn set_drivers(&mut self, drivers: BTreeMap<u32, Xdp>) -> Effect {
        let changed = self.drivers != drivers;
        self.drivers = drivers;
        Effect {
            resolutions: changed,
            ports: changed,
            ..Effect::default()
        }
    }

    /// Whether nothing can be sent by an interface from where packets come in. What the kernel does not tell is taken for well.
    fn is_deaf(&self, index: u32, link: &Link) -> bool {
        match link.kind {
            Kind::Vlan { lower, .. } if self.origin.follows_lowers => {
                let below = self.links.get(&lower);
                return below.is_some_and(|link| self.is_deaf(lower, link));
            }
            Kind::Bond if self.origin.follows_lowers => return false,
            _ => {}
        }
        let transmits = |index| self.drivers.get(index).is_none_or(|has| has.transmits);
        !transmits(&index) && self.redirects_to(index)
    }

    /// Whether what leaves by an interface is redirected to it by a driver: not what leaves where it came in.
    fn redirects_to(&self, index: u32) -> bool {
        let native = |index: &u32| self.drivers.get(index).is_none_or(|has| has.native);
        let named = |link: &Link| self.origin.native.contains(&link.name);
        let mut origins = self.links.iter().filter(|(_, link)| named(link));
        origins.any(|(origin, _)| *origin != index && native(origin))
    }

    /// Mirrors `change`.
    pub fn apply(&mut self, change: Change) -> Effect {
        // The kernel says nothing of the IPv4 routes that go with a link or an address.
        let routes = |changed| Effect {
            routes: changed,
            resolutions: changed,
            ..Effect::default()
        };
        let own = |changed| Effect {
            own_addresses: changed,
            ..routes(changed)
        };
        match change {
            Change::Link(index, link) => {
                let before = self.links.insert(index, link.clone());
                // Of a carrier alone, routes do not depend but by events of their own.
                let carrier = link.carrier;
                let routed = before.clone().map(|before| Link { carrier, ..before });
                Effect {
                    ports: before.as_ref() != Some(&link),
                    ..routes(routed != Some(link))
                }
            }
            Change::LinkGone(index) => {
                self.neighbours.retain(|key, _| key.0 != index);
                let gone = self.links.remove(&index).is_some();
                Effect {
                    ports: gone,
                    ..routes(gone)
                }
            }
            // An address that is there already may have become usable (duplicate detection done).
            Change::Address(index, ip) => {
                let new = self.addresses.insert((index, ip));
                Effect {
                    own_addresses: new,
                    ..routes(true)
                }
            }
            Change::AddressGone(index, ip) => own(self.addresses.remove(&(index, ip))),
            Change::Neighbour(key, neighbour) => self.apply_neighbour(key, neighbour),
            Change::Routes => routes(true),
        }
    }

    /// A lost neighbour keeps its last hardware address: whether the backend lives is for the
    /// health checks to say, and packets sent in vain are no worse than packets dropped.
    fn apply_neighbour(&mut self, key: NeighbourKey, mut neighbour: Neighbour) -> Effect {
        let known = self.neighbours.get(&key).and_then(|known| known.mac);
        neighbour.mac = neighbour.mac.or(known);
        self.neighbours.insert(key, neighbour);
        Effect {
            resolutions: neighbour.mac != known,
            ..Effect::default()
        }
    }

    /// Replaces links, addresses and neighbours by `dump`, all of the kernel's. Last known hardware
    /// addresses of neighbours in use survive, those of others are forgotten.
    pub fn replace(&mut self, dump: impl IntoIterator<Item = Change>) {
        let in_use: BTreeSet<_> = self
            .routes
            .keys()
            .filter_map(|ip| self.neighbour_of(*ip))
            .collect();
        let old = std::mem::take(&mut self.neighbours);
        self.links.clear();
        self.addresses.clear();
        for change in dump {
            self.apply(change);
        }
        for (key, neighbour) in old {
            if in_use.contains(&key) && self.links.contains_key(&key.0) {
                let lost = Neighbour {
                    freshness: Freshness::Lost,
                    ..neighbour
                };
                let now = self.neighbours.entry(key).or_insert(lost);
                now.mac = now.mac.or(neighbour.mac);
            }
        }
    }

    /// Notes the kernel's answer for `address`: its route, or why there is none.
    pub fn set_route(&mut self, address: IpAddr, route: Result<Route, String>) {
        self.routes.insert(address, route);
    }

    /// Forgets the routes of all addresses that are not in `watched`.
    pub fn keep_routes(&mut self, watched: &BTreeSet<IpAddr>) {
        self.routes.retain(|address, _| watched.contains(address));
    }

    /// Whether the kernel has been asked for the route of `address`.
    pub fn has_route(&self, address: IpAddr) -> bool {
        self.routes.contains_key(&address)
    }

    /// All own addresses, of any interface.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|(_, ip)| *ip).collect()
    }

    /// All interfaces of Ethernet's, by name.
    pub fn ports(&self) -> BTreeMap<String, Port> {
        let port = |(&index, link): (&u32, &Link)| {
            let running = link.up && link.carrier;
            let mac = link.mac?;
            Some((
                link.name.clone(),
                Port {
                    index,
                    mac,
                    running,
                    mtu: link.mtu,
                    kind: link.kind,
                    deaf: self.is_deaf(index, link),
                },
            ))
        };
        self.links.iter().filter_map(port).collect()
    }

    /// Neighbours in use of which the kernel is not sure, for it to be asked to find out.
    pub fn doubtful_neighbours(&self, also_stale: bool) -> BTreeSet<NeighbourKey> {
        let doubtful = |key: &NeighbourKey| match self.neighbours.get(key).map(|n| n.freshness) {
            Some(Freshness::Fresh) => false,
            Some(Freshness::Stale) => also_stale,
            Some(Freshness::Lost) | None => true,
        };
        self.routes
            .keys()
            .filter_map(|ip| self.neighbour_of(*ip))
            .filter(doubtful)
            .collect()
    }

    /// The neighbour that packets to `address` are handed to.
    fn neighbour_of(&self, address: IpAddr) -> Option<NeighbourKey> {
        let route = self.routes.get(&address)?.as_ref().ok()?;
        self.ethernet(route).ok()?;
        Some((route.interface, route.gateway.unwrap_or(address)))
    }

    /// How packets to `address` leave this host.
    ///
    /// # Errors
    /// Why they cannot, in one line.
    pub fn resolve(&self, address: IpAddr) -> Resolution {
        let route = self
            .routes
            .get(&address)
            .ok_or("its route is not known yet")?
            .as_ref()?;
        let (link, source_mac) = self.ethernet(route)?;
        let name = &link.name;
        let source_address = route
            .source
            .ok_or_else(|| format!("{name} has no address to send from"))?;
        let neighbour = route.gateway.unwrap_or(address);
        let known = self.neighbours.get(&(route.interface, neighbour));
        let destination_mac = known.and_then(|known| known.mac).ok_or_else(|| {
            format!("{neighbour} has not told its hardware address on {name} (ARP or NDP) yet")
        })?;
        // A route may claim more than its interface can send.
        let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        let interface = route.interface;
        Ok(NextHop {
            interface,
            source_mac,
            destination_mac,
            source_address,
            mtu,
            on_link: route.gateway.is_none(),
        })
    }

    fn ethernet(&self, route: &Route) -> Result<(&Link, [u8; 6]), String> {
        let index = route.interface;
        let link = self
            .links
            .get(&index)
            .ok_or_else(|| format!("interface {index} is gone"))?;
        if !link.up {
            return Err(format!("interface {} is down", link.name));
        }
        let mac = link.mac.ok_or_else(|| {
            format!(
                "interface {} has no Ethernet address: use one that has",
                link.name
            )
        })?;
        if self.is_deaf(index, link) {
            return Err(format!(
                "the driver of {0} takes no frames from XDP (ndo_xdp_xmit): route by an interface whose driver does, attach to {0} alone, or start with `--mode generic`",
                link.name
            ));
        }
        Ok((link, mac))
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
