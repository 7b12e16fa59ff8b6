//! The agent comes and goes under traffic: what it made in the kernel forwards on, is taken up
//! again by the next one, and goes with `lbd detach`.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::{Agent, Decapsulator, has_program, xdp},
    config::{Health, Service},
    load::{
        held::Held,
        numbered::{Delivery, Sender, settle},
    },
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, UDP_PORT, every_mode, v4_pool, vip, web},
    topology::{INTERFACE, Topology, backend_name, vip_v4},
};
use tokio::time::Instant;

/// Datagrams a second: one lost shows an interruption of 20 µs.
const RATE: u32 = 50_000;
const FLOWS: u32 = 64;
const KILLS: u32 = 10;

#[test]
fn killing_the_agent_loses_no_packet_breaks_no_connection_and_resets_no_counter() -> Result<()> {
    with_root(
        "killing_the_agent_loses_no_packet_breaks_no_connection_and_resets_no_counter",
        || {
            let numbered = SocketAddr::from((vip_v4(4), UDP_PORT));
            let web = web(Health::HTTP);
            let udp = Service::new(
                format!("{numbered}/udp"),
                "nat",
                Health::NONE,
                v4_pool(UDP_PORT),
            );
            let mut stage = Stage::new(Topology::exclusive(BACKENDS)?, vec![web.clone(), udp])?;
            let client = stage.topology.client.clone();
            let receivers = stage.receivers()?;
            let held = Held::open(&client, vip(&web)?, 100, Duration::from_millis(500))?;
            let sender = Sender::start(&client, numbered, RATE, FLOWS)?;
            for round in 1..=KILLS {
                kill_and_restart(&mut stage.agent).with_context(|| format!("restart {round}"))?;
            }
            let delivery = settle(sender, receivers)?;
            let lives = held.stop()?;
            println!("{KILLS} kills: {delivery}; {lives}");
            let broken = lives.broken_per_backend();
            assert!(broken.is_empty(), "{broken:?}");
            assert_nothing_missing(&delivery, &stage)
        },
    )
}

#[test]
fn slots_that_move_while_the_agent_is_killed_go_on_moving_and_settle() -> Result<()> {
    with_root(
        "slots_that_move_while_the_agent_is_killed_go_on_moving_and_settle",
        || {
            const MOVING_TIME: Duration = Duration::from_secs(5);
            let service = web(Health::HTTP).with("moving_time", "5s");
            let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let client = stage.topology.client.clone();
            let held = Held::open(&client, vip(&service)?, 200, Duration::from_millis(200))?;
            let moved = Instant::now();
            stage.lbctl("backend drain 10.0.0.1:80/tcp 10.2.0.11:80")?;
            stage.agent.restart()?;
            let slots = stage.slots(&service)?;
            // On a machine that was busy for so long they have settled already.
            if moved.elapsed() < MOVING_TIME {
                assert!(slots.moving > 0, "{slots:?}");
            }
            stage.await_slots(&service, Slots::have_moved)?;
            println!("moved for {:?} over a restart", moved.elapsed());
            assert!(moved.elapsed() >= MOVING_TIME);
            // What was recorded before the restart is known after it.
            thread::sleep(Duration::from_secs(1));
            assert_eq!(stage.answers(&service, 100)?.get(&backend_name(1)), None);
            let lives = held.stop()?;
            println!("{lives}");
            assert!(lives.per_backend()[&backend_name(1)] > 0);
            assert!(lives.broken_per_backend().is_empty(), "{lives}");
            Ok(())
        },
    )
}

/// The new agent takes up the maps of the killed one, and no counter goes back.
fn kill_and_restart(agent: &mut Agent) -> Result<()> {
    let (maps, before) = (agent.map_ids()?, counters(agent)?);
    agent.restart()?;
    let after = counters(agent)?;
    assert_eq!(agent.map_ids()?, maps, "the maps are others");
    for (name, count) in &before {
        let now = after.get(name).with_context(|| format!("{name} is gone"))?;
        ensure!(now >= count, "{name} went from {count} to {now}");
    }
    ensure!(
        after.values().sum::<u64>() > before.values().sum(),
        "no packet was counted meanwhile: {after:?}"
    );
    Ok(())
}

/// Packets of every service and backend, and drops by reason.
fn counters(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let services = agent.lbctl_json(&["service", "list"])?;
    let status = agent.lbctl_json(&["status"])?;
    let mut found = BTreeMap::new();
    for service in services.as_array().context("a list of services")? {
        let id = service["id"].as_str().context("a service has an id")?;
        let packets = &service["traffic"]["packets"];
        found.insert(id.to_owned(), packets.as_u64().context("packets")?);
        for backend in service["backends"].as_array().context("backends")? {
            let packets = &backend["traffic"]["packets"];
            let name = format!("{id} {}", backend["address"]);
            found.insert(name, packets.as_u64().context("packets")?);
        }
    }
    for (reason, count) in status["drops"].as_object().context("drops")? {
        found.insert(reason.clone(), count.as_u64().context("a count")?);
    }
    Ok(found)
}

fn assert_nothing_missing(delivery: &Delivery, stage: &Stage) -> Result<()> {
    let gaps = &delivery.gaps;
    assert!(
        gaps.is_empty(),
        "{gaps:?}, {:?}",
        stage.topology.link_drops()?
    );
    assert_eq!(
        (delivery.duplicated, delivery.reordered),
        (0, 0),
        "{delivery}"
    );
    assert!(delivery.moved.is_empty(), "{delivery}");
    Ok(())
}

#[test]
fn detaching_removes_program_pins_and_links_and_a_new_agent_starts_afresh() -> Result<()> {
    with_root(
        "detaching_removes_program_pins_and_links_and_a_new_agent_starts_afresh",
        || {
            let mut stage = Stage::new(Topology::new(BACKENDS)?, every_mode())?;
            let service = web(Health::HTTP);
            stage.answers(&service, 30)?;
            stage.agent.sigterm()?;
            let left = stage.agent.leftovers()?;
            ensure!(has_program(&stage.topology.balancer, INTERFACE)?);
            ensure!(left.iter().any(|pin| pin.contains("/links/")), "{left:?}");
            stage.answers(&service, 30)?;
            // Fails if a pin, a program, or the instance's directory stays.
            stage.agent.detach()?;
            stage.agent.restart()?;
            let packets: u64 = counters(&stage.agent)?.values().sum();
            ensure!(packets == 0, "counters of the detached one: {packets}");
            stage.answers(&service, 30).map(drop)
        },
    )
}

#[test]
fn detaching_a_decapsulator_leaves_neither_program_nor_pin() -> Result<()> {
    with_root(
        "detaching_a_decapsulator_leaves_neither_program_nor_pin",
        || {
            let topology = Topology::new(1)?;
            for _ in 0..20 {
                Decapsulator::attach(topology.backend(1))?.detach()?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_restart_in_another_mode_moves_the_program_there() -> Result<()> {
    with_root("a_restart_in_another_mode_moves_the_program_there", || {
        /// `XDP_ATTACHED_DRV` and `XDP_ATTACHED_SKB` of `linux/if_link.h`.
        const MODES: [(&str, u64); 2] = [("generic", 2), ("native", 1)];
        let service = web(Health::HTTP);
        let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
        for (mode, number) in [MODES, MODES].concat() {
            stage.agent.set_arguments(&["--mode", mode]);
            stage.agent.restart()?;
            let program = xdp(&stage.topology.balancer, INTERFACE)?;
            ensure!(program["mode"] == number, "asked for {mode}: {program}");
            stage.answers(&service, 30)?;
        }
        Ok(())
    })
}
