//! Frames with VLAN tags: what leaves by where it came in keeps them, what its route sends by a VLAN device gets that one's, and the
//! kernel gets them as they came; VLAN devices and bonds of the kernel's own, where it has any.

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use etherparse::PacketBuilder;
use lb_common::tables::{FORMAT, LOWERS, Tag, Upper};
use lb_tests::{
    agent::{Agent, Home},
    config::{Config, Health, Service},
    dump::Dump,
    link::Link,
    netns::Namespace,
    process::{run, run_with_input},
    skip::{skip, with_root},
    stage::{BACKENDS, Stage, tcp, v4_pool, v6_pool},
    topology::{CLIENT_V4, CLIENT_V6, INTERFACE, Topology, backend_v4, backend_v6, vip_v4, vip_v6},
    wait::wait_ok,
};
use nix::net::if_::if_nametoindex;
use zerocopy::transmute;

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 80;
const REQUESTS: usize = 6;
/// The switch's end of the balancer's link.
const FAR_END: &str = "balancer";

const C100: Tag = [0x81, 0, 0, 100];
const URGENT_100: Tag = [0x81, 0, 0xb0, 100];
const S7: Tag = [0x88, 0xa8, 0, 7];
const PRIORITY: Tag = [0x81, 0, 0x60, 0];
const KEPT: [&[Tag]; 5] = [
    &[C100],
    &[URGENT_100],
    &[PRIORITY],
    &[S7, C100],
    &[C100, URGENT_100],
];

fn ip(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), lines).map(drop)
}

/// `nat` and `ipip` in both families.
fn services() -> Vec<Service> {
    let v4 = [(backend_v4(1), PORT).into()];
    let v6 = [(backend_v6(1), PORT).into()];
    vec![
        Service::new(tcp(vip_v4(1)), "nat", Health::NONE, v4),
        Service::new(tcp(vip_v6(1)), "nat", Health::NONE, v6),
        Service::new(tcp(vip_v4(2)), "ipip", Health::NONE, v4),
        Service::new(tcp(vip_v6(2)), "ipip", Health::NONE, v6),
    ]
}

fn on() -> Config {
    Config {
        vlans: Some("on"),
        ..services().into()
    }
}

/// The balancer between a link that frames are put on, and what comes back there.
struct Wire {
    agent: Agent,
    topology: Topology,
    link: Link,
    back: Dump,
    /// The balancer's hardware address, and the client's.
    macs: ([u8; 6], [u8; 6]),
}

impl Wire {
    fn new() -> Result<Self> {
        let topology = Topology::new(1)?;
        let agent = Agent::start(&topology.balancer, &on())?;
        let mac = |namespace| anyhow::Ok(Link::open(namespace, INTERFACE)?.mac());
        let macs = (mac(&topology.balancer)?, mac(&topology.client)?);
        let link = Link::open(&topology.switch, FAR_END)?;
        let back = Dump::start(&topology.switch, FAR_END)?;
        Ok(Self {
            agent,
            topology,
            link,
            back,
            macs,
        })
    }

    /// A SYN with a mark that tells it from all others.
    fn syn(&self, from: (IpAddr, u16), to: (IpAddr, u16), mark: &[u8]) -> Result<Vec<u8>> {
        let (balancer, client) = self.macs;
        let ethernet = PacketBuilder::ethernet2(client, balancer);
        let packet = match (from.0, to.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet.ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet.ipv6(source.octets(), destination.octets(), 64)
            }
            both => anyhow::bail!("addresses of two families: {both:?}"),
        };
        let packet = packet.tcp(from.1, to.1, 7, 1_024).syn();
        let mut frame = Vec::with_capacity(packet.size(mark.len()));
        packet.write(&mut frame, mark)?;
        Ok(frame)
    }

    /// What comes back with a mark once it has so often.
    fn returned(&self, mark: &[u8], count: usize) -> Result<Vec<Vec<u8>>> {
        let back = wait_ok("what was sent comes back", SOON, || {
            let frames = self.back.with(mark)?;
            ensure!(
                frames.len() >= count,
                "{} of {count} frames: {frames:x?}",
                frames.len()
            );
            Ok(frames)
        });
        back.with_context(|| self.agent.log())
    }
}

fn tagged(frame: &[u8], tags: &[Tag]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, tags.as_flattened(), rest].concat()
}

#[test]
fn packets_keep_their_tags_where_they_leave_by_where_they_came_in() -> Result<()> {
    with_root(
        "packets_keep_their_tags_where_they_leave_by_where_they_came_in",
        || {
            let wire = Wire::new()?;
            let vips: [IpAddr; 4] = [
                vip_v4(1).into(),
                vip_v6(1).into(),
                vip_v4(2).into(),
                vip_v6(2).into(),
            ];
            for (n, vip) in vips.into_iter().enumerate() {
                let client = if vip.is_ipv4() {
                    CLIENT_V4.into()
                } else {
                    CLIENT_V6.into()
                };
                let mark = format!("kept, service {n}").into_bytes();
                let frame = wire.syn((client, 40_000), (vip, PORT), &mark)?;
                // Until the way to the backend is known.
                wait_ok("it is forwarded", SOON, || {
                    wire.link.send(&frame)?;
                    ensure!(!wire.back.with(&mark)?.is_empty(), wire.agent.log());
                    Ok(())
                })?;
                let bare = wire.back.with(&mark)?.remove(0);
                ensure!(bare[12] != 0x81 && bare[0..6] != frame[0..6], "{bare:x?}");
                for tags in KEPT {
                    wire.link.send(&tagged(&frame, tags))?;
                    let expected = tagged(&bare, tags);
                    wait_ok("it comes back with its tags", SOON, || {
                        let back = wire.back.with(&mark)?;
                        ensure!(
                            back.contains(&expected),
                            "{vip} {tags:x?}: {back:x?}, not {expected:x?}"
                        );
                        Ok(())
                    })?;
                }
            }
            Ok(())
        },
    )
}

#[test]
fn what_the_kernel_gets_has_the_tags_that_it_came_with() -> Result<()> {
    with_root(
        "what_the_kernel_gets_has_the_tags_that_it_came_with",
        || {
            let wire = Wire::new()?;
            let arrived = Dump::start(&wire.topology.balancer, INTERFACE)?;
            let three: &[Tag] = &[S7, C100, C100];
            for (n, tags) in KEPT.into_iter().chain([three]).enumerate() {
                for (client, own) in [
                    (IpAddr::from(CLIENT_V4), IpAddr::from([10, 1, 0, 1])),
                    (CLIENT_V6.into(), "fd00:1::1".parse()?),
                ] {
                    let mark = format!("passed, tags {n}, {own}").into_bytes();
                    let frame = tagged(&wire.syn((client, 40_000), (own, 9), &mark)?, tags);
                    wire.link.send(&frame)?;
                    let frames = wait_ok("it arrives", SOON, || {
                        let frames = arrived.with(&mark)?;
                        ensure!(!frames.is_empty(), "nothing with {tags:x?}");
                        Ok(frames)
                    })?;
                    ensure!(frames == [frame.clone()], "{frames:x?}, not {frame:x?}");
                }
            }
            Ok(())
        },
    )
}

/// Makes the balancer's programs take its interface for a VLAN device over itself, as no kernel would.
fn pretend(wire: &Wire, tag: Tag) -> Result<()> {
    let home = wire.agent.home();
    let pin = home.bpffs.path().join("lbd").join(&home.name);
    let pin = pin.join(format!("v{FORMAT}/maps/UPPERS"));
    let index = wire.topology.balancer.run(|| if_nametoindex(INTERFACE))?;
    let upper = Upper {
        lowers: [index; LOWERS],
        tags: [tag, [0; 4]],
        count: 1,
        mtu: 1_500,
    };
    let data = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
    let mut map: HashMap<MapData, u32, [u8; 44]> = Map::HashMap(data).try_into()?;
    let value: [u8; 44] = transmute!(upper);
    Ok(map.insert(index, value, 0)?)
}

#[test]
fn an_answer_gets_the_tag_of_the_device_that_its_route_names() -> Result<()> {
    with_root(
        "an_answer_gets_the_tag_of_the_device_that_its_route_names",
        || {
            let wire = Wire::new()?;
            let (_, client) = wire.macs;
            let mac = client.map(|byte| format!("{byte:02x}")).join(":");
            ip(
                &wire.topology.balancer,
                &format!(
                    "neigh replace {CLIENT_V4} lladdr {mac} dev {INTERFACE} nud permanent\n\
                 neigh replace {CLIENT_V6} lladdr {mac} dev {INTERFACE} nud permanent\n"
                ),
            )?;
            let ends: [(IpAddr, IpAddr, IpAddr); 2] = [
                (backend_v4(1).into(), CLIENT_V4.into(), vip_v4(1).into()),
                (backend_v6(1).into(), CLIENT_V6.into(), vip_v6(1).into()),
            ];
            let answers = ends.into_iter().enumerate().map(|(n, (backend, to, vip))| {
                let mark = format!("an answer, {n}").into_bytes();
                let frame = wire.syn((backend, PORT), (to, 40_000), &mark)?;
                wire.link.send(&frame)?;
                let bare = wire.returned(&mark, 1)?.remove(0);
                let source = match vip {
                    IpAddr::V4(vip) => vip.octets().to_vec(),
                    IpAddr::V6(vip) => vip.octets().to_vec(),
                };
                ensure!(
                    bare.windows(source.len()).any(|at| at == source),
                    "{bare:x?}"
                );
                Ok((mark, frame, bare))
            });
            let answers = answers.collect::<Result<Vec<_>>>()?;
            pretend(&wire, C100)?;
            for (mark, frame, bare) in answers {
                let expected = tagged(&bare, &[C100]);
                for (seen, tags) in [(2, &[][..]), (3, &[C100]), (4, &[S7, C100])] {
                    wire.link.send(&tagged(&frame, tags))?;
                    let back = wire.returned(&mark, seen)?;
                    ensure!(
                        back.last() == Some(&expected),
                        "{tags:x?}: {back:x?}, not {expected:x?}"
                    );
                }
            }
            Ok(())
        },
    )
}

/// Whether the kernel makes such devices; where not, the test is reported as skipped.
fn makes(name: &str, namespace: &Namespace, device: &str, module: &str) -> bool {
    let made = ip(namespace, &format!("link add {device}\n"));
    if let Err(error) = &made {
        skip(
            name,
            &format!("the kernel has no {module} (`modprobe {module}`): {error:#}"),
        );
    }
    made.is_ok()
}

fn announced_services() -> Vec<Service> {
    vec![
        Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, v4_pool(PORT)),
        Service::new(tcp(vip_v6(1)), "nat", Health::HTTP, v6_pool(PORT)),
        Service::new(tcp(vip_v4(2)), "ipip", Health::HTTP, v4_pool(PORT)),
    ]
}

#[test]
fn backends_in_a_vlan_are_reached_by_its_device() -> Result<()> {
    const NAME: &str = "backends_in_a_vlan_are_reached_by_its_device";
    with_root(NAME, || {
        let topology = Topology::new(BACKENDS)?;
        let add = "link eth0 name eth0.100 type vlan id 100";
        if !makes(NAME, &topology.balancer, add, "8021q") {
            return Ok(());
        }
        // What would be taken off the frame before the program sees it.
        run(topology
            .switch
            .command("ethtool")
            .args(["-K", FAR_END, "txvlan", "off"]))?;
        let moved = |own: [String; 2]| {
            let [v4, v6] = own;
            format!(
                "addr del {v4}/24 dev eth0\naddr del {v6}/64 dev eth0\nlink set eth0.100 up\n\
                 addr add {v4}/24 dev eth0.100\naddr add {v6}/64 dev eth0.100 nodad\n"
            )
        };
        let own = ["10.2.0.1".to_owned(), "fd00:2::1".to_owned()];
        ip(&topology.balancer, &moved(own))?;
        for n in 1..=BACKENDS {
            let own = [backend_v4(n).to_string(), backend_v6(n).to_string()];
            let lines = format!(
                "link add {add}\n{}route replace default via 10.2.0.1 dev eth0.100\n\
                 route replace default via fd00:2::1 dev eth0.100\n",
                moved(own)
            );
            ip(topology.backend(n), &lines)?;
        }
        let services = announced_services();
        let stage = Stage::new(topology, services.clone())?;
        let status = stage.agent.lbctl(&["status"])?.succeeded()?;
        ensure!(
            status.contains("eth0.100 (802.1q 100) over eth0"),
            "{status}"
        );
        for service in &services[..2] {
            stage.answers(service, REQUESTS)?;
        }
        Ok(())
    })
}

#[test]
fn a_bond_is_attended_by_its_members() -> Result<()> {
    const NAME: &str = "a_bond_is_attended_by_its_members";
    with_root(NAME, || {
        let topology = Topology::new(BACKENDS)?;
        let balancer = &topology.balancer;
        if !makes(
            NAME,
            balancer,
            "bond0 type bond mode active-backup miimon 100",
            "bonding",
        ) {
            return Ok(());
        }
        ip(
            balancer,
            "link set eth0 down\nlink set eth0 master bond0\nlink set bond0 up\n\
             addr flush dev eth0\n\
             addr add 10.1.0.1/24 dev bond0\naddr add 10.2.0.1/24 dev bond0\n\
             addr add fd00:1::1/64 dev bond0 nodad\naddr add fd00:2::1/64 dev bond0 nodad\n",
        )?;
        let home = Home::unique()?;
        let services = announced_services();
        let agent = Agent::start_in(balancer, &services.into(), home, &["--interface", "bond0"])?;
        wait_ok("the bond has a live member", SOON, || {
            let status = agent.lbctl(&["status"])?.succeeded()?;
            ensure!(status.contains("bond0 (bond) over eth0"), "{status}");
            ensure!(status.contains("eth0 (native)"), "{status}");
            Ok(())
        })
    })
}
