//! A network namespace to measure in, with the routes that answers to clients and packets for other backends take. Nothing is sent
//! there.

use std::process::Command;

use anyhow::Result;

use super::scenario::BACKEND_VIPS;
use crate::{netns::Namespace, process::run_with_input};

/// Whom routes lead to: a neighbour's MAC address.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 4, 1];

/// Makes it.
///
/// # Errors
/// The kernel refuses.
pub fn new() -> Result<Namespace> {
    let namespace = Namespace::unique("bench")?;
    namespace.sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    let [v4, v6] = BACKEND_VIPS;
    let mac = ROUTER_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let batch = format!(
        "link add out type veth peer name far\n\
         addr add 198.18.0.1/24 dev out\n\
         addr add fd00:77::1/64 dev out nodad\n\
         addr add {v4}/32 dev lo\n\
         addr add {v6}/128 dev lo nodad\n\
         link set far up\n\
         link set out up\n\
         neigh add 198.18.0.2 lladdr {mac} dev out nud permanent\n\
         neigh add fd00:77::2 lladdr {mac} dev out nud permanent\n\
         route add 100.0.0.0/8 via 198.18.0.2\n\
         route add 10.2.0.0/16 via 198.18.0.2\n\
         route add 2001:db8::/64 via fd00:77::2\n\
         route add fd00:2::/64 via fd00:77::2\n"
    );
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), &batch)?;
    Ok(namespace)
}
