//! Owns the conversation with the kernel over rtnetlink: dumps, events, route questions, and
//! requests to resolve a neighbour. Translates both ways; never keeps or decides anything.

use std::{collections::BTreeMap, future, io, net::IpAddr, pin::Pin};

use futures_util::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use lb_common::{tables::Tag, vlan};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        BondPortState, InfoBondPort, InfoData, InfoKind, InfoPortData, InfoVlan, LinkAttribute,
        LinkFlags, LinkInfo, LinkLayerType, LinkMessage, MiiStatus,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use rtnetlink::{Handle, MulticastGroup, packet_core::NetlinkPayload};
use tokio::task::AbortHandle;

use crate::offloads::{Drivers, Xdp};

use super::{
    Kind,
    table::{Change, Freshness, Link, Neighbour, NeighbourKey, Route},
};

/// What is followed: everything that a resolution depends on.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// An event from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A change of its tables.
    Change(Change),
    /// Events were lost, since they came faster than they were read: everything must be read anew.
    Lost,
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused to {what}: {source}")]
pub struct RequestError {
    what: &'static str,
    source: rtnetlink::Error,
}

/// The way to ask the kernel. Works in the network namespace of the thread that opened it.
pub struct Netlink {
    handle: Handle,
    /// None where the kernel does not tell.
    drivers: Option<Drivers>,
}

/// The events, until the socket breaks.
pub struct Events {
    stream: Pin<Box<dyn Stream<Item = Event> + Send>>,
    connection: AbortHandle,
}

/// Opens the way to ask and the events.
///
/// They are two sockets: a flood of events may overflow the one, but never costs an answer.
///
/// # Errors
/// The sockets cannot be opened.
pub fn open() -> io::Result<(Netlink, Events)> {
    let (events_connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    // The other connection ends with its handles, this one would wait for another event first.
    let events_connection = tokio::spawn(events_connection).abort_handle();
    tokio::spawn(connection);
    let stream = messages.filter_map(|(message, _)| future::ready(event(message.payload)));
    let events = Events {
        stream: Box::pin(stream),
        connection: events_connection,
    };
    let drivers = Drivers::open().inspect_err(|error| {
        tracing::debug!(%error, "the kernel does not tell which interfaces take frames that are redirected to them");
    });
    let drivers = drivers.ok();
    Ok((Netlink { handle, drivers }, events))
}

impl Events {
    /// The next event; `None` once the socket is broken. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        self.stream.next().await
    }

    /// The next event if it is there already.
    pub fn ready(&mut self) -> Option<Event> {
        self.stream.next().now_or_never().flatten()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// What drivers have of XDP, by the index of their interfaces; `None` where the kernel does not tell.
    pub fn drivers(&self) -> Option<BTreeMap<u32, Xdp>> {
        let drivers = self.drivers.as_ref()?.ask();
        let drivers = drivers.inspect_err(|error| {
            tracing::debug!(%error, "the kernel does not tell what drivers have of XDP");
        });
        drivers.ok()
    }

    /// All links, addresses and neighbours.
    ///
    /// # Errors
    /// What could not be read.
    pub async fn dump(&self) -> Result<Vec<Change>, RequestError> {
        let failed = |what| move |source| RequestError { what, source };
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list links"))?;
        let addresses: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        let neighbours: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list neighbours"))?;
        let links = links.into_iter().map(RouteNetlinkMessage::NewLink);
        let addresses = addresses.into_iter().map(RouteNetlinkMessage::NewAddress);
        let neighbours = neighbours
            .into_iter()
            .map(RouteNetlinkMessage::NewNeighbour);
        Ok(links
            .chain(addresses)
            .chain(neighbours)
            .filter_map(change)
            .collect())
    }

    /// How `address` is reached. Of a multipath route, the path that the kernel picks for it.
    ///
    /// # Errors
    /// Why it is not reached by sending packets to a neighbour, in one line.
    pub async fn route(&self, address: IpAddr) -> Result<Route, String> {
        let mut question = RouteMessage::default();
        (
            question.header.address_family,
            question.header.destination_prefix_length,
        ) = if address.is_ipv4() {
            (AddressFamily::Inet, 32)
        } else {
            (AddressFamily::Inet6, 128)
        };
        question
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let mut answers = self.handle.route().get(question).execute();
        match answers.try_next().await {
            Ok(Some(answer)) => route(address, &answer),
            Ok(None) => Err("the kernel gave no answer about its route".to_owned()),
            Err(rtnetlink::Error::NetlinkError(error)) => {
                Err(format!("the kernel has no route to it: {}", error.to_io()))
            }
            Err(error) => Err(format!("its route cannot be asked for: {error}")),
        }
    }

    /// Asks the kernel to find out about a neighbour, as if a packet were to be sent to it.
    ///
    /// `NTF_USE` and not `NTF_EXT_MANAGED`, although that would spare the repetition: a managed
    /// neighbour stays so after the agent is gone, and nothing is to be left behind. Must not be
    /// used on permanent neighbours, which it would make forgettable.
    ///
    /// # Errors
    /// Mostly that the kernel's table of neighbours is full.
    pub async fn use_neighbour(&self, (interface, ip): NeighbourKey) -> Result<(), RequestError> {
        let request = self.handle.neighbours().add(interface, ip);
        let request = request
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let what = "resolve a neighbour (if its table is full, raise net.ipv4.neigh.default.gc_thresh3 or the ipv6 one)";
        request
            .execute()
            .await
            .map_err(|source| RequestError { what, source })
    }
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    match payload {
        NetlinkPayload::Overrun(_) => Some(Event::Lost),
        NetlinkPayload::InnerMessage(message) => change(message).map(Event::Change),
        _ => None,
    }
}

fn change(message: RouteNetlinkMessage) -> Option<Change> {
    match message {
        // Bridges send messages of a family of their own about their ports.
        RouteNetlinkMessage::NewLink(link) if is_bridge_port(&link) => None,
        RouteNetlinkMessage::DelLink(link) if is_bridge_port(&link) => None,
        RouteNetlinkMessage::NewLink(message) => {
            Some(Change::Link(message.header.index, link(&message)))
        }
        RouteNetlinkMessage::DelLink(message) => Some(Change::LinkGone(message.header.index)),
        RouteNetlinkMessage::NewAddress(message) => Some(Change::Address(
            message.header.index,
            own_address(&message)?,
        )),
        RouteNetlinkMessage::DelAddress(message) => Some(Change::AddressGone(
            message.header.index,
            own_address(&message)?,
        )),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message),
        RouteNetlinkMessage::DelNeighbour(message) => {
            let lost = Neighbour {
                mac: None,
                freshness: Freshness::Lost,
            };
            Some(Change::Neighbour(neighbour_key(&message)?, lost))
        }
        RouteNetlinkMessage::NewRoute(_)
        | RouteNetlinkMessage::DelRoute(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Some(Change::Routes),
        _ => None,
    }
}

fn is_bridge_port(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

fn link(message: &LinkMessage) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up,
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        kind: kind(message),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = mac.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    link
}

/// How a link is related to others, of this network namespace.
fn kind(message: &LinkMessage) -> Kind {
    let (mut lower, mut bond, mut infos) = (None, None, &[][..]);
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::Controller(index) => bond = Some(*index),
            LinkAttribute::LinkInfo(list) => infos = list,
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            _ => {}
        }
    }
    // The one below is in another namespace, and its index says nothing here. A bond is where its members are.
    if elsewhere {
        lower = None;
    }
    for info in infos {
        match (info, lower, bond) {
            (LinkInfo::Data(InfoData::Vlan(vlan)), Some(lower), _) => {
                return vlan_tag(vlan).map_or(Kind::Plain, |tag| Kind::Vlan { lower, tag });
            }
            (LinkInfo::Kind(InfoKind::Bond), ..) => return Kind::Bond,
            (LinkInfo::PortData(InfoPortData::BondPort(port)), _, Some(bond)) => {
                let active = port.iter().all(is_active);
                return Kind::Member { bond, active };
            }
            _ => {}
        }
    }
    Kind::Plain
}

fn vlan_tag(vlan: &[InfoVlan]) -> Option<Tag> {
    let id = vlan.iter().find_map(|info| match info {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    let protocol = vlan.iter().find_map(|info| match info {
        InfoVlan::Protocol(protocol) => Some(*protocol),
        _ => None,
    });
    Some(vlan::tag(protocol.unwrap_or_default().into(), id))
}

/// Whether what a bond says of a member lets it send by that: standbys are backups, and so is what has not agreed with the other end
/// yet (802.3ad).
fn is_active(info: &InfoBondPort) -> bool {
    match info {
        InfoBondPort::BondPortState(state) => *state == BondPortState::Active,
        InfoBondPort::MiiStatus(status) => matches!(status, MiiStatus::Up | MiiStatus::GoingDown),
        _ => true,
    }
}

/// `IFA_ADDRESS` is the peer's on point-to-point links, where `IFA_LOCAL` is ours.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
    })
}

fn neighbour_key(message: &NeighbourMessage) -> Option<NeighbourKey> {
    let ip = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        })?;
    (!message.header.flags.contains(NeighbourFlags::Proxy)).then_some((message.header.ifindex, ip))
}

fn neighbour(message: &NeighbourMessage) -> Option<Change> {
    let freshness = match message.header.state {
        NeighbourState::Failed | NeighbourState::None => Freshness::Lost,
        NeighbourState::Stale => Freshness::Stale,
        _ => Freshness::Fresh,
    };
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
            _ => None,
        });
    Some(Change::Neighbour(
        neighbour_key(message)?,
        Neighbour { mac, freshness },
    ))
}

fn route(address: IpAddr, answer: &RouteMessage) -> Result<Route, String> {
    match answer.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(format!("{address} is an address of this host itself")),
        RouteType::BlackHole => return Err("its route is a blackhole".to_owned()),
        RouteType::Unreachable => return Err("its route says unreachable".to_owned()),
        RouteType::Prohibit => return Err("its route says prohibited".to_owned()),
        other => return Err(format!("its route is not unicast but {other:?}")),
    }
    let mut interface = None;
    let mut route = Route {
        interface: 0,
        gateway: None,
        source: None,
        mtu: None,
    };
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => route.gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::Via(RouteVia::Inet(v4)) => route.gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Metrics(metrics) => route.mtu = mtu(metrics),
            RouteAttribute::Encap(_) => {
                return Err(
                    "its route encapsulates (lwtunnel), which cannot be followed".to_owned(),
                );
            }
            _ => {}
        }
    }
    route.interface = interface.ok_or("its route names no interface")?;
    Ok(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoPortKind;

    use super::*;

    fn link_with(attributes: Vec<LinkAttribute>) -> Kind {
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        kind(&message)
    }

    #[test]
    fn a_bonds_member_is_one_also_where_its_link_ends_in_another_namespace() {
        let state = InfoBondPort::BondPortState(BondPortState::Active);
        let port = LinkInfo::PortData(InfoPortData::BondPort(vec![state]));
        let member = [
            LinkAttribute::Link(2),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::Controller(7),
            LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bond), port]),
        ];
        let is_member = Kind::Member {
            bond: 7,
            active: true,
        };
        assert_eq!(link_with(member.to_vec()), is_member);
    }

    #[test]
    fn a_vlan_over_what_is_in_another_namespace_is_related_to_nothing_here() {
        let vlan = LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100)]));
        let here = vec![LinkAttribute::Link(2), LinkAttribute::LinkInfo(vec![vlan])];
        assert!(matches!(
            link_with(here.clone()),
            Kind::Vlan { lower: 2, .. }
        ));
        let elsewhere = [vec![LinkAttribute::LinkNetNsId(0)], here].concat();
        assert_eq!(link_with(elsewhere), Kind::Plain);
    }
}
