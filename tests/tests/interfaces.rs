//! Several interfaces: clients at one and backends at another, in every mode.
//!
//! Interfaces whose drivers take no frames from a program, such as bridges: what a program redirects to one is lost, and nobody is
//! told. So no way leads by it to a backend, and answers that the route sends by it are the kernel's to send.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    config::{Config, Health, Service},
    netns::Namespace,
    process::{run, run_with_input},
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode, tcp, v4_pool},
    topology::{CLIENT_SIDE, CLIENT_V4, Topology, backend_name, backend_v4, vip_v4},
    wait::wait_ok,
};

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 80;
const REQUESTS: usize = 30;
/// Where they need not come to every backend.
const FEW: usize = 6;
/// Whom the route leads to by the bridge.
const BEHIND: u8 = 3;

fn ip(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), lines).map(drop)
}

/// Gives the balancer a bridge, and an address there to send from.
fn add_bridge(topology: &Topology) -> Result<()> {
    ip(
        &topology.balancer,
        "link add br0 type bridge\nlink set br0 up\naddr add 10.9.0.1/24 dev br0\n",
    )
}

/// What is shown of who is behind the bridge.
fn behind(stage: &Stage, service: &Service) -> Result<serde_json::Value> {
    let address = (backend_v4(BEHIND), PORT).into();
    stage.backend(service, address)?.context("the backend")
}

#[test]
fn a_backend_behind_an_interface_that_takes_no_frames_is_told_of_and_gets_no_flow() -> Result<()> {
    with_root(
        "a_backend_behind_an_interface_that_takes_no_frames_is_told_of_and_gets_no_flow",
        || {
            let topology = Topology::new(BACKENDS)?;
            add_bridge(&topology)?;
            let backend = backend_v4(BEHIND);
            let lines = format!(
                "route add {backend}/32 dev br0\n\
                 neigh add {backend} lladdr 02:00:00:00:00:33 dev br0 nud permanent\n"
            );
            ip(&topology.balancer, &lines)?;
            // Only the way can tell: nobody is asked how it fares.
            let service = Service::new(tcp(vip_v4(1)), "nat", Health::NONE, v4_pool(PORT));
            let stage = Stage::new(topology, vec![service.clone()])?;
            wait_ok("its way counts for none", SOON, || {
                let shown = behind(&stage, &service)?;
                let reason = shown["standing"]["reason"].as_str().context("reason")?;
                ensure!(reason.contains("br0 takes no frames from XDP"), "{shown:#}");
                Ok(())
            })?;
            let answers = stage.answers(&service, REQUESTS)?;
            ensure!(!answers.contains_key(&backend_name(BEHIND)), "{answers:?}");

            // It comes back as soon as its way leads by another one.
            let lines = format!("route del {backend}/32 dev br0\n");
            ip(&stage.topology.balancer, &lines)?;
            wait_ok("it takes new flows", SOON, || {
                let answers = stage.answers(&service, REQUESTS)?;
                ensure!(answers.contains_key(&backend_name(BEHIND)), "{answers:?}");
                Ok(())
            })
        },
    )
}

#[test]
fn answers_that_the_route_sends_by_an_interface_that_takes_no_frames_arrive() -> Result<()> {
    with_root(
        "answers_that_the_route_sends_by_an_interface_that_takes_no_frames_arrive",
        || {
            let topology = Topology::new(BACKENDS)?;
            add_bridge(&topology)?;
            // The client's second interface is a port of the bridge.
            let lines = format!(
                "link add second type veth peer name eth1 netns {}\nlink set second master br0\nlink set second up\n\
                 route add {CLIENT_V4}/32 dev br0 src 10.9.0.1\n",
                topology.client.name()
            );
            ip(&topology.balancer, &lines)?;
            ip(&topology.client, "link set eth1 up\n")?;
            for (namespace, interfaces) in [
                (&topology.client, ["all", "eth1"]),
                (&topology.balancer, ["all", "br0"]),
            ] {
                let loose = interfaces.map(|of| format!("net/ipv4/conf/{of}/rp_filter"));
                namespace.sysctls(&loose.each_ref().map(|name| (name.as_str(), "0")))?;
            }
            let service = Service::new(tcp(vip_v4(1)), "nat", Health::NONE, v4_pool(PORT));
            let stage = Stage::new(topology, vec![service.clone()])?;
            let answers = stage.answers(&service, REQUESTS)?;
            ensure!(answers.len() == usize::from(BACKENDS), "{answers:?}");
            let by_bridge = sent(&stage, "br0")?;
            ensure!(
                by_bridge > REQUESTS as u64,
                "{by_bridge} packets left by the bridge"
            );
            Ok(())
        },
    )
}

#[test]
fn clients_at_another_interface_than_the_backends_are_served_in_every_mode_and_family() -> Result<()>
{
    with_root(
        "clients_at_another_interface_than_the_backends_are_served_in_every_mode_and_family",
        || {
            let services = every_mode();
            let config = Config {
                more_interfaces: vec![CLIENT_SIDE],
                ..Config::from(services.clone())
            };
            let stage = Stage::new(Topology::two_armed(BACKENDS)?, config)?;
            for service in &services {
                let name = || format!("{} {}", service.mode, service.vip);
                stage.answers(service, FEW).with_context(name)?;
            }
            Ok(())
        },
    )
}

/// Packets that the balancer's kernel has sent by an interface.
fn sent(stage: &Stage, interface: &str) -> Result<u64> {
    let mut ip = Command::new("ip");
    ip.args([
        "-n",
        stage.topology.balancer.name(),
        "-s",
        "-j",
        "link",
        "show",
        interface,
    ]);
    let links: serde_json::Value = serde_json::from_str(&run(&mut ip)?)?;
    let packets = links[0]["stats64"]["tx"]["packets"].as_u64();
    packets.with_context(|| format!("packets sent: {links:#}"))
}
