//! Links, addresses, routes and sysctls of a [`super::Topology`], through iproute2 and ethtool.
//! Owns the commands; the plan they follow is the parent's.

use std::{fmt::Write as _, fs, net::IpAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{INTERFACE, backend_v4, backend_v6};
use crate::{
    netns::Namespace,
    process::{run, run_with_input},
    wait::wait_ok,
};

/// Generous: bounds what the kernel does by itself.
const SOON: Duration = Duration::from_secs(10);

/// Room for the outer headers of a tunnel in DSR, whose answers the balancer does not see: the
/// largest segment that fits 1,500 bytes inside IPv6 inside IPv6.
const DSR_ADVMSS: u32 = 1_400;

/// Before links exist, so that `default` reaches them. Answers may leave another way than requests
/// came (`rp_filter`), a router on a stick must not send its hosts past itself (redirects), and
/// addresses must work at once (duplicate address detection off).
const COMMON: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
];

/// A load generator opens far more connections than the default range of ports has.
const CLIENT: &[(&str, &str)] = &[
    ("net/ipv4/ip_local_port_range", "10000 65000"),
    ("net/ipv4/tcp_tw_reuse", "1"),
];

const BALANCER: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// VIPs on a backend's loopback must never be answered for on the segment.
const BACKEND: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/tcp_max_syn_backlog", "8192"),
];

/// The bridge with a port to each node, before the nodes configure their ends.
pub(super) fn switch(switch: &Namespace, nodes: &[(String, &Namespace)]) -> Result<()> {
    let mut links = String::new();
    let mut ports = "link add bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                     link set bridge up\n"
        .to_owned();
    for (index, (role, node)) in (1..).zip(nodes) {
        node.sysctls(COMMON)?;
        writeln!(
            links,
            "link add {INTERFACE} address 02:00:00:00:00:{index:02x} netns {} \
             type veth peer name {role} netns {}",
            node.name(),
            switch.name()
        )?;
        writeln!(ports, "link set {role} master bridge up")?;
    }
    run_with_input(Command::new("ip").args(["-batch", "-"]), &links)?;
    ip_batch(switch, &ports)?;
    for (role, node) in nodes {
        offloads_off(switch, role)?;
        offloads_off(node, INTERFACE)?;
    }
    Ok(())
}

/// The client: its subnet, and everything else through the balancer.
pub(super) fn client(client: &Namespace) -> Result<()> {
    client.sysctls(CLIENT)?;
    ip_batch(
        client,
        "addr add 10.1.0.10/24 dev eth0\n\
         addr add fd00:1::10/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 10.1.0.1\n\
         route add default via fd00:1::1\n",
    )
}

/// The balancer: the first address in both subnets, forwarding between them.
pub(super) fn balancer(balancer: &Namespace) -> Result<()> {
    balancer.sysctls(BALANCER)?;
    ip_batch(
        balancer,
        "addr add 10.1.0.1/24 dev eth0\n\
         addr add 10.2.0.1/24 dev eth0\n\
         addr add fd00:1::1/64 dev eth0 nodad\n\
         addr add fd00:2::1/64 dev eth0 nodad\n\
         link set eth0 up\n",
    )
}

/// Backend `n`: from its own address through the balancer, from a VIP straight to the client.
pub(super) fn backend(backend: &Namespace, n: u8) -> Result<()> {
    backend.sysctls(BACKEND)?;
    let (v4, v6) = (backend_v4(n), backend_v6(n));
    // In a batch, rules are IPv4's.
    let rule = ["-6", "rule", "add", "from", "fd00::/64", "lookup", "100"];
    run(backend.command("ip").args(rule))?;
    ip_batch(
        backend,
        &format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.2.0.1\n\
             route add default via fd00:2::1\n\
             rule add from 10.0.0.0/24 lookup 100\n\
             route add 10.1.0.0/24 dev eth0 table 100 advmss {DSR_ADVMSS}\n\
             route add fd00:1::/64 dev eth0 table 100 advmss {DSR_ADVMSS}\n"
        ),
    )
}

/// Puts the client on a bridge of its own, where the balancer has its address on the client's subnet by another interface.
pub(super) fn split(switch: &Namespace, balancer: &Namespace, interface: &str) -> Result<()> {
    ip_batch(
        switch,
        &format!(
            "link add clients type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set clients up\n\
             link set client master clients\n\
             link add {interface} type veth peer name {interface} netns {}\n\
             link set {interface} master clients up\n",
            balancer.name()
        ),
    )?;
    ip_batch(
        balancer,
        &format!(
            "addr del 10.1.0.1/24 dev {INTERFACE}\n\
             addr del fd00:1::1/64 dev {INTERFACE}\n\
             addr add 10.1.0.1/24 dev {interface}\n\
             addr add fd00:1::1/64 dev {interface} nodad\n\
             link set {interface} up\n"
        ),
    )?;
    offloads_off(switch, interface)?;
    offloads_off(balancer, interface)
}

/// Has a backend answer from a VIP by the balancer, for want of another way to the client.
pub(super) fn answer_by_balancer(backend: &Namespace) -> Result<()> {
    ip_batch(
        backend,
        &format!(
            "route replace 10.1.0.0/24 via 10.2.0.1 table 100 advmss {DSR_ADVMSS}\n\
             route replace fd00:1::/64 via fd00:2::1 table 100 advmss {DSR_ADVMSS}\n"
        ),
    )
}

/// Waits until `node` can find neighbours by IPv6. It asks for them from its link-local address where
/// a packet's own source is not of the link, as a VIP's is not; the kernel makes that address once it
/// has noticed that the link is up, which it looks for once a second.
pub(super) fn await_link_local(node: &Namespace, interface: &str) -> Result<()> {
    wait_ok("a link-local address", SOON, || {
        let listed = node.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))?;
        let own = |line: &&str| line.starts_with("fe80") && line.ends_with(interface);
        ensure!(listed.lines().any(|line| own(&line)), "it has {listed:?}");
        Ok(())
    })
}

/// Puts `vips` on the loopback of `backend`.
pub(super) fn accept_vips(backend: &Namespace, vips: &[IpAddr]) -> Result<()> {
    let batch: String = vips
        .iter()
        .map(|vip| match vip {
            IpAddr::V4(vip) => format!("addr add {vip}/32 dev lo\n"),
            IpAddr::V6(vip) => format!("addr add {vip}/128 dev lo nodad\n"),
        })
        .collect();
    ip_batch(backend, &batch)
}

/// Sets a port of the switch `up` or `down`.
pub(super) fn set_port(switch: &Namespace, port: &str, state: &str) -> Result<()> {
    ip_batch(switch, &format!("link set {port} {state}\n"))
}

/// Packets dropped on receipt and on sending, by link.
pub(super) fn drops(namespace: &Namespace) -> Result<Vec<(String, u64)>> {
    let json = run(Command::new("ip").args(["-n", namespace.name(), "-json", "-stats", "link"]))?;
    let links: Vec<Value> = serde_json::from_str(&json).context("output of `ip -json link`")?;
    let count = |link: &Value, way: &str| link["stats64"][way]["dropped"].as_u64().unwrap_or(0);
    let drops = links.iter().map(|link| {
        let name = link["ifname"].as_str().unwrap_or_default().to_owned();
        (name, count(link, "rx") + count(link, "tx"))
    });
    Ok(drops.collect())
}

/// What leaves a veth must look as on a wire: an XDP program sees packets before the checksum and
/// the segmentation that an offload would have left to the hardware.
fn offloads_off(namespace: &Namespace, interface: &str) -> Result<()> {
    let features = ["-K", interface, "tx", "off", "tso", "off", "gro", "off"];
    run(namespace.command("ethtool").args(features)).map(drop)
}

pub(super) fn ip_batch(namespace: &Namespace, batch: &str) -> Result<()> {
    run_with_input(
        Command::new("ip").args(["-n", namespace.name(), "-batch", "-"]),
        batch,
    )
    .map(drop)
}
