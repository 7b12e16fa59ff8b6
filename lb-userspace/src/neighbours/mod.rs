//! Owns the next hops: by which interface, to which hardware address and from which own address
//! packets for a backend leave, as the kernel's routes and neighbours say, kept fresh.
//! Never changes a route, and never judges whether a backend lives.
//!
//! `table` resolves from a mirror of the kernel's tables, `netlink` talks to the kernel, `follow`
//! joins them on a task of its own.

mod follow;
mod netlink;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use lb_common::tables::Tag;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

/// How packets to an address leave this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface that the kernel's route names. Where that is a bridge, a bond or a
    /// VLAN, it is that one's index and not a member's.
    pub interface: u32,
    /// Hardware address of that interface.
    pub source_mac: [u8; 6],
    /// Hardware address of the backend, or of the router to it; the last known one.
    pub destination_mac: [u8; 6],
    /// Own address that the kernel prefers for sending to it.
    pub source_address: IpAddr,
    /// Largest IP packet that the way takes.
    pub mtu: u32,
    /// Whether it is on that interface's link, and not behind a router.
    pub on_link: bool,
}

/// An interface of Ethernet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Whether it is up and has a link.
    pub running: bool,
    /// Its MTU.
    pub mtu: u32,
    /// What it stands over, or is part of.
    pub kind: Kind,
    /// Whether nothing can be sent by it from where packets come in: its driver takes no frames that a program redirects.
    pub deaf: bool,
}

/// How an interface is related to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Not at all, or as does not matter here.
    #[default]
    Plain,
    /// A VLAN device.
    Vlan {
        /// Index of what it stands over.
        lower: u32,
        /// What its frames have there, as they lie on the wire.
        tag: Tag,
    },
    /// A bond.
    Bond,
    /// Part of one.
    Member {
        /// Index of the bond.
        bond: u32,
        /// Whether that sends by it.
        active: bool,
    },
}

/// News from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// A watched address is reached another way, or for the first time. Said once for each watched
    /// address, also if it has no next hop.
    NextHop {
        /// The watched address.
        address: IpAddr,
        /// How it is reached now.
        next_hop: Option<NextHop>,
        /// Why it is not, where it is not.
        reason: Option<String>,
    },
    /// These are watched no longer, and no news of them comes until they are watched again.
    Forgotten(BTreeSet<IpAddr>),
    /// All addresses of all interfaces of this network namespace, loopback included.
    OwnAddresses(BTreeSet<IpAddr>),
    /// All interfaces of Ethernet's of this network namespace, by name.
    Ports(BTreeMap<String, Port>),
}

/// What is said before anything else: [`Update::OwnAddresses`] and [`Update::Ports`], once each.
pub const FIRST_NEWS: usize = 2;

/// From where packets are sent.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The interfaces that have the program in native mode, where drivers permit that; by name. What a program in generic mode redirects
    /// is sent as the kernel's own packets are.
    pub native: BTreeSet<String>,
    /// Whether what leaves by VLAN devices and bonds is sent by what these stand over.
    pub follows_lowers: bool,
}

/// Resolves the watched addresses. Dropping it ends that.
#[derive(Debug)]
pub struct Resolver {
    watched: watch::Sender<BTreeSet<IpAddr>>,
    task: AbortHandle,
}

impl Resolver {
    /// Starts resolving in the network namespace of the calling thread, for who sends from there; nothing is watched yet.
    ///
    /// # Errors
    /// The kernel's tables cannot be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(origin: Origin) -> io::Result<(Self, mpsc::Receiver<Update>)> {
        let (watched, receiver) = watch::channel(BTreeSet::new());
        let (updates, news) = mpsc::channel(1_024);
        let (netlink, events) = netlink::open()?;
        let task =
            tokio::spawn(follow::run(origin, netlink, events, receiver, updates)).abort_handle();
        Ok((Self { watched, task }, news))
    }

    /// Makes `addresses` the watched ones. Those that were watched before are not reported again,
    /// unless they have changed.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        self.watched.send_if_modified(|watched| {
            let changed = *watched != addresses;
            *watched = addresses;
            changed
        });
    }
}

impl Resolver {
    /// One that says nothing, for who tells next hops by hand.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn idle() -> Self {
        Self {
            watched: watch::channel(BTreeSet::new()).0,
            task: tokio::spawn(std::future::pending::<()>()).abort_handle(),
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod netns;
#[cfg(test)]
mod tests;
