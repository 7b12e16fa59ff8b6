//! Where answers to clients go: the kernel's routes in a namespace, and what the host is to find of them.
//! Every outcome of a look-up is there. Owns no frames and judges none.

use std::{
    net::{IpAddr, Ipv6Addr},
    process::Command,
};

use anyhow::Result;
use lb_common::tables::{NoRoute, Route, RouteQuery};

use super::setting::{BOTH_VLANS, OUTER_VLAN, VLAN};
use crate::{netns::Namespace, process::run_with_input};

/// The longest IPv4 packet on the narrow one of the routes, in bytes.
const NARROW: u16 = 80;
/// The same on the others, whose interface is what bounds it.
const WIDE: u16 = 1_500;
/// What the routes lead to: the interface, its MAC address, its neighbour's.
const ROUTE: Route = Route {
    interface: super::setting::OUT,
    destination_mac: [2, 0, 0, 0, 4, 1],
    source_mac: [2, 0, 0, 0, 3, 1],
};

/// Lays routes in `namespace`, which has none, and makes what frames with tags are said to come by, to the strangers of [`super::frames`].
///
/// # Errors
/// The kernel refuses.
pub fn lay(namespace: &Namespace) -> Result<()> {
    namespace.sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    let batch = format!(
        "link add out index {} address 02:00:00:00:03:01 type veth peer name far\n\
         addr add 198.18.0.1/24 dev out\n\
         addr add fd00:77::1/64 dev out nodad\n\
         link add in20 index {VLAN} type veth peer name in21 index {OUTER_VLAN}\n\
         link add in22 index {BOTH_VLANS} type veth peer name in23\n\
         link set in20 up\n\
         link set in21 up\n\
         link set in22 up\n\
         link set in23 up\n\
         link set far up\n\
         link set out up\n\
         neigh add 198.18.0.2 lladdr 02:00:00:00:04:01 dev out nud permanent\n\
         neigh add fd00:77::2 lladdr 02:00:00:00:04:01 dev out nud permanent\n\
         route add 192.0.0.0/9 via 198.18.0.2\n\
         route add 192.128.0.0/10 via 198.18.0.3\n\
         route add 192.192.0.0/11 via 198.18.0.2 mtu lock {NARROW}\n\
         route add unreachable 192.224.0.0/12\n\
         route add 2001:db8::/89 via fd00:77::2\n\
         route add 2001:db8:0:0:0:80::/90 via fd00:77::3\n",
        ROUTE.interface
    );
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), &batch).map(drop)
}

/// What a look-up finds ([`MemoryTables::router`](lb_common::memory::MemoryTables::router)).
///
/// # Errors
/// There is no way on that the packet path may take.
pub fn look_up(query: &RouteQuery) -> Result<Route, NoRoute> {
    let length = query.length;
    match (query.source.into(), query.destination.into()) {
        (_, IpAddr::V4(to)) => match to.octets() {
            [192, 0..192, ..] if length > WIDE => Err(NoRoute::TooLong(WIDE)),
            [192, 0..128, ..] => Ok(ROUTE),
            [192, 128..192, ..] => Err(NoRoute::Kernels),
            [192, 192..224, ..] if length <= NARROW => Ok(ROUTE),
            [192, 192..224, ..] => Err(NoRoute::TooLong(NARROW)),
            _ => Err(NoRoute::Refused),
        },
        (IpAddr::V6(from), _) if stays(from) => Err(NoRoute::Refused),
        (_, IpAddr::V6(to)) => match to.segments() {
            [0x2001, 0xdb8, 0, 0, 0, 0..0xc0, ..] if length > WIDE => Err(NoRoute::TooLong(WIDE)),
            [0x2001, 0xdb8, 0, 0, 0, 0..0x80, ..] => Ok(ROUTE),
            [0x2001, 0xdb8, 0, 0, 0, 0x80..0xc0, ..] => Err(NoRoute::Kernels),
            _ => Err(NoRoute::Refused),
        },
    }
}

/// Whether an address is no host's or may not leave a link: the kernel's look-up refuses to route what comes from such.
fn stays(source: Ipv6Addr) -> bool {
    source.is_multicast() || source.is_loopback() || source.is_unicast_link_local()
}
