//! The program is loaded for what is used alone, and again for what a change needs beyond that, under traffic.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use lb_tests::{
    agent::xdp,
    config::{Config, Health, Service},
    load::numbered::{Sender, settle},
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, UDP_PORT, address_pool, full_nat, tcp, v4_pool, web, web_address},
    topology::{INTERFACE, Topology, backend_v4, vip_v4},
    wait::wait_ok,
};

/// Generous: bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(60);

/// Datagrams a second: one lost shows an interruption of 20 µs.
const RATE: u32 = 50_000;
const FLOWS: u32 = 64;

/// The id of the program on the balancer's interface, and its bytes in the kernel's own code.
fn program(stage: &Stage) -> Result<(u32, u32)> {
    let shown = xdp(&stage.topology.balancer, INTERFACE)?;
    let id = shown["prog"]["id"].as_u64().context("a program's id")?;
    let id = u32::try_from(id)?;
    for program in loaded_programs() {
        let program = program?;
        if program.id() == id {
            let size = program.size_translated();
            return Ok((id, size.context("the kernel tells no size")?));
        }
    }
    anyhow::bail!("program {id} has gone")
}

/// Every backend's web server, as options of `lbctl service add`.
fn pool() -> String {
    let backends: Vec<String> = (1..=BACKENDS)
        .map(|n| format!("--backend {}", web_address(n)))
        .collect();
    backends.join(" ")
}

#[test]
fn a_change_that_needs_more_of_the_program_has_it_replaced_and_no_packet_is_lost() -> Result<()> {
    with_root(
        "a_change_that_needs_more_of_the_program_has_it_replaced_and_no_packet_is_lost",
        || {
            let numbered = SocketAddr::from((vip_v4(4), UDP_PORT));
            let name = format!("{numbered}/udp");
            let udp = Service::new(name, "nat", Health::NONE, v4_pool(UDP_PORT));
            let nat = web(Health::HTTP);
            // Its program is there from the start, its services are not.
            let config = Config {
                address_pools: vec![address_pool("1024-65535")],
                ..Config::from(vec![nat.clone(), udp])
            };
            let mut stage = Stage::new(Topology::exclusive(BACKENDS)?, config)?;
            let client = stage.topology.client.clone();
            let receivers = stage.receivers()?;
            let sender = Sender::start(&client, numbered, RATE, FLOWS)?;
            let (mut id, mut size) = program(&stage)?;
            println!("program {id} of {size} bytes");
            let every = format!("{}:*/tcp", vip_v4(5));
            let pool = pool();
            let set = |option| format!("service set {} {option}", nat.vip);
            let quic = format!(
                "--mode nat --quic-config-id 0 --quic-server-id-length 2 --quic-nonce-length 4 \
                 --backend {}:443,server-id=0001",
                backend_v4(1)
            );
            let translated = "--mode full-nat --address-pool snat --syn-proxy always";
            for (what, command) in [
                (
                    "l2",
                    format!("service add {}:80/tcp --mode l2 {pool}", vip_v4(2)),
                ),
                (
                    "gue",
                    format!("service add {}:80/tcp --mode gue {pool}", vip_v4(3)),
                ),
                (
                    "every port",
                    format!("service add {every} --mode l2 {pool}"),
                ),
                ("source-hash", set("--scheduler source-hash")),
                ("mss", set("--mss-clamp auto")),
                ("passive", set("--passive on")),
                ("limit", set("--flow-limit 100000")),
                (
                    "range of ports, of sctp",
                    format!("service add {}:7000-7003/sctp --mode l2 {pool}", vip_v4(7)),
                ),
                (
                    "quic, announced",
                    format!("service add {}:443/udp --announce true {quic}", vip_v4(2)),
                ),
                (
                    "second hop",
                    format!("service set {}:80/tcp --second-hop true", vip_v4(3)),
                ),
                (
                    "full-nat, proxied",
                    format!("service add {}:80/tcp {translated} {pool}", vip_v4(8)),
                ),
            ] {
                #[expect(clippy::disallowed_methods, reason = "only printed")]
                let start = Instant::now();
                stage.lbctl(&command).with_context(|| command.clone())?;
                let took = start.elapsed();
                let (now, longer) = program(&stage)?;
                println!("{what}: program {now} of {longer} bytes after {took:?}");
                ensure!(now != id, "{what}: the program was not replaced");
                ensure!(longer > size, "{what}: {longer} bytes after {size}");
                (id, size) = (now, longer);
                stage.answers(&nat, 30)?;
            }
            // So does what happens to the host: packets to what is behind a bridge are the kernel's to send.
            let mut bridge = stage.topology.balancer.command("ip");
            run(bridge.args(["link", "add", "br0", "type", "bridge"]))?;
            (id, size) = wait_ok("the program is replaced", SOON, || {
                let (now, longer) = program(&stage)?;
                ensure!(now != id && longer > size, "{now} of {longer} bytes");
                Ok((now, longer))
            })?;
            println!("devices: program {id} of {size} bytes");
            stage.answers(&nat, 30)?;
            // What it is loaded for already needs no other.
            stage.lbctl(&format!(
                "service add {}:81/tcp --mode l2 {pool}",
                vip_v4(2)
            ))?;
            ensure!(program(&stage)? == (id, size), "replaced without need");
            let delivery = settle(sender, receivers)?;
            println!("{delivery}");
            ensure!(delivery.gaps.is_empty(), "{:?}", delivery.gaps);
            ensure!(delivery.moved.is_empty(), "{delivery}");
            ensure!(
                (delivery.duplicated, delivery.reordered) == (0, 0),
                "{delivery}"
            );
            // A restarted agent's knows what the services need that it takes up, and nothing that none of them does.
            stage.agent.restart()?;
            stage.answers(&nat, 30)?;
            for removed in [format!("{}:80/tcp", vip_v4(3)), every] {
                stage.lbctl(&format!("service remove {removed}"))?;
            }
            stage.agent.restart()?;
            let (_, shorter) = program(&stage)?;
            println!("{shorter} bytes after services have gone");
            ensure!(shorter < size, "{shorter} bytes after {size}");
            stage.answers(&nat, 30).map(drop)
        },
    )
}

#[test]
fn a_mode_that_has_programs_of_its_own_serves_as_soon_as_its_first_service_is_added() -> Result<()>
{
    with_root(
        "a_mode_that_has_programs_of_its_own_serves_as_soon_as_its_first_service_is_added",
        || {
            let vip = tcp(vip_v4(7));
            let later = full_nat(vip.clone(), (1..=BACKENDS).map(web_address));
            let nat = web(Health::HTTP);
            let config = Config {
                address_pools: vec![address_pool("1024-65535")],
                ..Config::from(vec![nat.clone()])
            };
            let topology = Topology::new(BACKENDS)?;
            topology.own_pool()?;
            let stage = Stage::new(topology, config)?;
            let before = program(&stage)?;
            let pool = pool();
            stage.lbctl(&format!(
                "service add {vip} --mode full-nat --address-pool snat {pool}"
            ))?;
            ensure!(
                program(&stage)?.0 != before.0,
                "the program was not replaced"
            );
            stage.answers(&later, 30)?;
            stage.answers(&nat, 30).map(drop)
        },
    )
}
