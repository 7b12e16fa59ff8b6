//! VIPs that are announced: hosts on the balancer's links find them by ARP and neighbour discovery, hear of them when they become the
//! balancer's, and who else claims one is told of.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, Icmpv6Header, Icmpv6Type, Ipv6Header, ip_number};
use lb_tests::{
    capture::{Capture, Direction},
    config::{Health, Service},
    link::Link,
    netns::Namespace,
    process::{run, run_with_input},
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, v4_pool, v6_pool},
    topology::{CLIENT_V4, CLIENT_V6, INTERFACE, Topology, vip_v4, vip_v6},
    wait::{wait_ok, wait_until},
};

const SOON: Duration = Duration::from_secs(20);
const REQUESTS: usize = 6;
const PORT: u16 = 80;
/// How often each VIP is announced each time.
const TIMES: usize = 3;

fn announced() -> Vec<Service> {
    let nat = Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(PORT));
    let l2 = Service::new(tcp(vip_v6(2)), "l2", Health::HTTP, v6_pool(PORT));
    vec![nat.with_true("announce"), l2.with_true("announce")]
}

fn ip(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), lines).map(drop)
}

/// The client takes all VIPs for hosts on its own link.
fn on_link(topology: &Topology) -> Result<()> {
    ip(
        &topology.client,
        "route add 10.0.0.0/24 dev eth0\nroute add fd00::/64 dev eth0\n",
    )
}

/// What the client knows of a neighbour.
fn known(client: &Namespace, address: IpAddr) -> Result<String> {
    let address = address.to_string();
    run(Command::new("ip").args(["-n", client.name(), "neigh", "show", "to", &address]))
}

fn mac(namespace: &Namespace) -> Result<[u8; 6]> {
    Ok(Link::open(namespace, INTERFACE)?.mac())
}

fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn count(stage: &Stage, of: &str, name: &str) -> Result<u64> {
    let status = stage.agent.lbctl_json(&["status"])?;
    status[of][name]
        .as_u64()
        .with_context(|| status.to_string())
}

#[test]
fn hosts_on_the_link_find_vips_that_are_announced_and_no_others() -> Result<()> {
    with_root(
        "hosts_on_the_link_find_vips_that_are_announced_and_no_others",
        || {
            let mut services = announced();
            services.push(Service::new(
                tcp(vip_v4(3)),
                "nat",
                Health::NONE,
                [(Ipv4Addr::new(10, 2, 0, 11), 81).into()],
            ));
            let mut stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            on_link(&stage.topology)?;
            let client = stage.topology.client.clone();
            let balancer = written(mac(&stage.topology.balancer)?);
            for service in &services[..2] {
                stage.answers(service, REQUESTS)?;
            }
            for vip in [IpAddr::from(vip_v4(1)), vip_v6(2).into()] {
                let known = known(&client, vip)?;
                ensure!(known.contains(&balancer), "{vip}: {known}");
            }
            let answered = (
                count(&stage, "answers", "arp")?,
                count(&stage, "answers", "neighbour")?,
            );
            ensure!(answered.0 > 0 && answered.1 > 0, "{answered:?}");
            // Of the third, nobody says where it is.
            let asked = vip_v4(3);
            let mut ping = client.command("ping");
            let pinged = ping.args(["-c1", "-W1", &asked.to_string()]).output()?;
            let known = known(&client, asked.into())?;
            ensure!(
                !pinged.status.success() && !known.contains(&balancer),
                "{known}"
            );
            // The program goes on answering without the agent, for hosts that ask anew.
            stage.agent.sigkill();
            ip(&client, "neigh flush dev eth0\n")?;
            for service in &services[..2] {
                stage.answers(service, REQUESTS)?;
            }
            stage.agent.restart()
        },
    )
}

#[test]
fn a_host_that_wants_an_announced_vip_for_itself_is_told_that_it_is_taken() -> Result<()> {
    with_root(
        "a_host_that_wants_an_announced_vip_for_itself_is_told_that_it_is_taken",
        || {
            let stage = Stage::new(Topology::new(BACKENDS)?, announced())?;
            let client = &stage.topology.client;
            client.sysctls(&[
                ("net/ipv6/conf/all/accept_dad", "1"),
                ("net/ipv6/conf/eth0/accept_dad", "1"),
                ("net/ipv6/conf/eth0/dad_transmits", "1"),
            ])?;
            let (taken, free) = (vip_v6(2), vip_v6(99));
            ip(
                client,
                &format!("addr add {taken}/128 dev eth0\naddr add {free}/128 dev eth0\n"),
            )?;
            wait_ok("both are tried", SOON, || {
                let shown = run(Command::new("ip").args([
                    "-n",
                    client.name(),
                    "-6",
                    "-o",
                    "addr",
                    "show",
                    "dev",
                    INTERFACE,
                ]))?;
                let line = |address: Ipv6Addr| {
                    shown
                        .lines()
                        .find(|line| line.contains(&format!(" {address}/")))
                        .unwrap_or_default()
                        .to_owned()
                };
                let (taken, free) = (line(taken), line(free));
                ensure!(taken.contains("dadfailed"), "{shown}");
                ensure!(
                    !free.contains("tentative") && !free.contains("dadfailed") && !free.is_empty(),
                    "{shown}"
                );
                Ok(())
            })
        },
    )
}

/// The VIPs that frames announce, with whose hardware addresses.
fn announcements(frames: &[Vec<u8>]) -> Vec<(IpAddr, [u8; 6])> {
    let mac = |bytes: &[u8]| bytes.try_into().unwrap_or([0; 6]);
    let mut found = Vec::new();
    for frame in frames {
        let is_arp = frame.len() >= 42 && frame[12..14] == [8, 6] && frame[..6] == [0xff; 6];
        if is_arp && frame[28..32] == frame[38..42] {
            let vip: [u8; 4] = frame[28..32].try_into().unwrap_or_default();
            found.push((vip.into(), mac(&frame[22..28])));
        }
        let is_advertisement =
            frame.len() >= 86 && frame[12..14] == [0x86, 0xdd] && frame[54] == 136;
        if is_advertisement && frame[..6] == [0x33, 0x33, 0, 0, 0, 1] {
            let vip: [u8; 16] = frame[62..78].try_into().unwrap_or_default();
            found.push((vip.into(), mac(&frame[80..86])));
        }
    }
    found
}

/// What is announced on the client's link, from its beginning on.
struct Heard {
    capture: Capture,
    all: Vec<(IpAddr, [u8; 6])>,
}

impl Heard {
    fn on(client: &Namespace) -> Result<Self> {
        let capture = Capture::start(client, INTERFACE, Direction::Received)?;
        Ok(Self {
            capture,
            all: Vec::new(),
        })
    }

    /// Waits until a VIP at a hardware address has been announced so often, and no more.
    fn times(&mut self, vip: IpAddr, mac: [u8; 6], times: usize) -> Result<()> {
        wait_ok("all announcements", SOON, || {
            self.all.extend(announcements(&self.capture.take()?));
            let heard = self.all.iter().filter(|&&heard| heard == (vip, mac));
            let heard = heard.count();
            ensure!(heard == times, "{vip} {heard} times instead of {times}");
            Ok(())
        })
    }
}

#[test]
fn vips_are_announced_when_they_become_the_balancers_and_when_somebody_asks() -> Result<()> {
    with_root(
        "vips_are_announced_when_they_become_the_balancers_and_when_somebody_asks",
        || {
            let topology = Topology::new(BACKENDS)?;
            let mut heard = Heard::on(&topology.client)?;
            let (v4, v6) = (IpAddr::from(vip_v4(1)), IpAddr::from(vip_v6(2)));
            let balancer = mac(&topology.balancer)?;
            let mut services = announced();
            services[1].keys.clear();
            let mut stage = Stage::new(topology, services)?;
            // The agent has started; a service says so later; somebody asks.
            heard.times(v4, balancer, TIMES)?;
            heard.times(v6, balancer, 0)?;
            stage.lbctl(&format!("service set {} --announce true", tcp(v6)))?;
            heard.times(v6, balancer, TIMES)?;
            stage.lbctl("announce 10.0.0.1")?;
            heard.times(v4, balancer, 2 * TIMES)?;
            stage.lbctl("announce")?;
            heard.times(v4, balancer, 3 * TIMES)?;
            heard.times(v6, balancer, 2 * TIMES)?;
            // The link is lost and comes back; the interface gets another address; the agent starts again.
            let port = |state| {
                ip(
                    &stage.topology.switch,
                    &format!("link set balancer {state}\n"),
                )
            };
            port("down")?;
            wait_until("the link is lost", SOON, || {
                let said = stage.agent.lbctl_json(&["announce"]);
                said.is_ok_and(|said| said["interfaces"] == serde_json::json!([]))
            })?;
            port("up")?;
            heard.times(v4, balancer, 4 * TIMES)?;
            let other = [2, 0, 0, 0, 9, 9];
            ip(
                &stage.topology.balancer,
                &format!("link set eth0 address {}\n", written(other)),
            )?;
            heard.times(v4, other, TIMES)?;
            heard.times(v6, other, TIMES)?;
            stage.agent.restart()?;
            heard.times(v4, other, 2 * TIMES)?;
            // One that is not announced is refused.
            let refused = stage.agent.lbctl(&["announce", "10.0.0.9"])?;
            ensure!(!refused.status.success(), "{refused:?}");
            ensure!(
                refused.stderr.contains("10.0.0.9 is not announced"),
                "{refused:?}"
            );
            ensure!(
                heard.all.iter().all(|(vip, _)| [v4, v6].contains(vip)),
                "{:?}",
                heard.all
            );
            Ok(())
        },
    )
}

/// An advertisement of `target` to all nodes, or a solicitation for it, of a hop limit.
fn discovery(link: &Link, kind: u8, target: Ipv6Addr, hop_limit: u8) -> Result<Vec<u8>> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let source = if kind == 136 { target } else { CLIENT_V6 };
    let option = [&[if kind == 136 { 2 } else { 1 }, 1][..], &link.mac()].concat();
    let body = [&target.octets()[..], &option].concat();
    let message = Icmpv6Type::Unknown {
        type_u8: kind,
        code_u8: 0,
        bytes5to8: [0x20, 0, 0, 0],
    };
    let icmp = Icmpv6Header::with_checksum(message, source.octets(), all_nodes.octets(), &body)?;
    let ip = Ipv6Header {
        payload_length: 8 + body.len() as u16,
        next_header: ip_number::IPV6_ICMP,
        hop_limit,
        source: source.octets(),
        destination: all_nodes.octets(),
        ..Ipv6Header::default()
    };
    let ethernet = Ethernet2Header {
        source: link.mac(),
        destination: [0x33, 0x33, 0, 0, 0, 1],
        ether_type: EtherType::IPV6,
    };
    Ok([
        &ethernet.to_bytes()[..],
        &ip.to_bytes(),
        &icmp.to_bytes(),
        &body,
    ]
    .concat())
}

/// An ARP request from `sender` for `target`.
fn arp(link: &Link, hardware: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let ethernet = Ethernet2Header {
        source: link.mac(),
        destination: [0xff; 6],
        ether_type: EtherType::ARP,
    };
    let arp = [0, hardware, 8, 0, 6, 4, 0, 1];
    [
        &ethernet.to_bytes()[..],
        &arp,
        &link.mac(),
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat()
}

#[test]
fn who_else_claims_a_vip_is_told_of_and_what_is_ill_formed_is_dropped_and_counted() -> Result<()> {
    with_root(
        "who_else_claims_a_vip_is_told_of_and_what_is_ill_formed_is_dropped_and_counted",
        || {
            let stage = Stage::new(Topology::new(BACKENDS)?, announced())?;
            let link = Link::open(&stage.topology.client, INTERFACE)?;
            let (v4, v6) = (vip_v4(1), vip_v6(2));
            link.send(&arp(&link, 6, CLIENT_V4, v4))?;
            link.send(&discovery(&link, 135, v6, 254)?)?;
            let mut torn = discovery(&link, 135, v6, 255)?;
            torn[80] ^= 1;
            link.send(&torn)?;
            wait_ok("each is counted", SOON, || {
                for reason in ["arp_malformed", "nd_hop_limit", "nd_checksum"] {
                    let dropped = count(&stage, "drops", reason)?;
                    ensure!(dropped == 1, "{dropped} {reason}");
                }
                Ok(())
            })?;
            let events = stage.agent.lbctl_json(&["events"])?;
            ensure!(!events.to_string().contains("claims"), "{events}");
            // Thrice, of which the first is told at once.
            for _ in 0..3 {
                link.send(&arp(&link, 1, v4, v4))?;
                link.send(&discovery(&link, 136, v6, 255)?)?;
            }
            let claimant = written(link.mac());
            wait_ok("both are told", SOON, || {
                let events = stage.agent.lbctl_json(&["events"])?;
                let events = events["events"].as_array().context("events")?.clone();
                let told = |vip: IpAddr| {
                    let said = format!("{claimant} on eth0 claims {vip} ");
                    let is_it = |event: &&serde_json::Value| {
                        let reason = event["reason"].as_str();
                        event["kind"] == "conflict"
                            && reason.is_some_and(|reason| reason.contains(&said))
                    };
                    events.iter().filter(is_it).count()
                };
                for vip in [v4.into(), v6.into()] {
                    let told = told(vip);
                    ensure!(told == 1, "{vip}: {told} of {events:?}");
                }
                Ok(())
            })?;
            let status = stage.agent.lbctl_json(&["status"])?;
            let shown = status["announced"].as_array().context("announced")?.clone();
            ensure!(
                shown.len() == 2 && shown.iter().all(|vip| vip["conflicts"] == 1),
                "{shown:?}"
            );
            Ok(())
        },
    )
}
