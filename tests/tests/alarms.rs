//! Down is not dead: a backend that fails its checks keeps its connections, and one that is not there
//! any more loses them at once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{
    config::Health,
    load::{
        Background, Reason,
        held::{Held, HeldReport},
    },
    netns::Namespace,
    skip::with_root,
    stage::{BACKENDS, Stage, vip, web, web_address},
    topology::{Topology, backend_name},
    wait::wait_until,
};
use tokio::{net::TcpListener, time::Instant};

/// Where checks ask, apart from where connections go.
const HEALTH_PORT: u16 = 7_100;
const CHECK: Health = Health {
    port: Some(HEALTH_PORT),
    ..Health::TCP
};
const HELD: usize = 150;
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
const SOON: Duration = Duration::from_secs(60);

/// Accepts checks until it is dropped; then they are refused.
fn listener(namespace: &Namespace) -> Result<Background<()>> {
    let any = (IpAddr::from(Ipv4Addr::UNSPECIFIED), HEALTH_PORT);
    Background::start(namespace, move |mut stop| async move {
        let listener = TcpListener::bind(any).await.expect("a port of its own");
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => drop(accepted),
            }
        }
    })
}

#[test]
fn a_false_alarm_breaks_no_connection_and_keeps_new_ones_away() -> Result<()> {
    with_root(
        "a_false_alarm_breaks_no_connection_and_keeps_new_ones_away",
        || {
            let service = web(CHECK).with("on_down", "keep").with("moving_time", "2s");
            let topology = Topology::new(BACKENDS)?;
            let listeners: Result<Vec<_>> = topology.backends.iter().map(listener).collect();
            let mut listeners = listeners?;
            let stage = Stage::new(topology, vec![service.clone()])?;
            (1..=BACKENDS)
                .try_for_each(|n| stage.await_condition(&service, web_address(n), "up"))?;
            let held = Held::open(&stage.topology.client, vip(&service)?, HELD, PERIOD)?;
            for _ in 0..2 {
                drop(listeners.remove(0));
                stage.await_condition(&service, web_address(1), "down")?;
                assert_eq!(stage.answers(&service, 100)?.get(&backend_name(1)), None);
                // Longer than the moving time, by which its slots have settled for others.
                thread::sleep(Duration::from_secs(4));
                listeners.insert(0, listener(stage.topology.backend(1))?);
                stage.await_condition(&service, web_address(1), "up")?;
                assert!(stage.answers(&service, 200)?.contains_key(&backend_name(1)));
            }
            thread::sleep(2 * PERIOD);
            let lives = held.stop()?;
            println!("{lives}");
            assert!(lives.per_backend()[&backend_name(1)] > 0);
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            Ok(())
        },
    )
}

/// How connections to backend 1 broke, and that nobody else's did.
fn ends_of_first(lives: &HeldReport) -> Vec<(Instant, Reason)> {
    let elsewhere = lives.broken_elsewhere(&backend_name(1));
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let broken = lives.lives.iter().filter_map(|life| life.broken.as_ref());
    let ends: Vec<_> = broken
        .map(|broken| (broken.at, broken.failure.reason.clone()))
        .collect();
    let all = lives.per_backend()[&backend_name(1)];
    assert_eq!(ends.len(), all, "all of a dead backend's break: {lives}");
    ends
}

#[test]
fn connections_of_a_backend_whose_port_refuses_end_at_once_and_new_ones_go_elsewhere() -> Result<()>
{
    with_root(
        "connections_of_a_backend_whose_port_refuses_end_at_once_and_new_ones_go_elsewhere",
        || {
            let service = web(Health::TCP).with("on_down", "keep");
            let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let held = Held::open(&stage.topology.client, vip(&service)?, HELD, PERIOD)?;
            stage.servers[0].kill();
            stage.await_condition(&service, web_address(1), "down")?;
            let answers = stage.answers(&service, 200)?;
            assert_eq!(answers.get(&backend_name(1)), None);
            thread::sleep(2 * PERIOD);
            let ends = ends_of_first(&held.stop()?);
            let hung = ends
                .iter()
                .filter(|(_, reason)| *reason == Reason::TimedOut);
            assert_eq!(hung.count(), 0, "{ends:?}");
            Ok(())
        },
    )
}

#[test]
fn connections_of_a_silent_backend_go_to_others_once_it_counts_as_dead_and_are_counted_there()
-> Result<()> {
    with_root(
        "connections_of_a_silent_backend_go_to_others_once_it_counts_as_dead_and_are_counted_there",
        || {
            // Long enough for every connection to be idle until its backend is dead.
            const IDLE: Duration = Duration::from_secs(10);
            // For the agent to notice that the time has come, at the latest.
            const NOTICE: Duration = Duration::from_secs(7);
            let service = web(Health::TCP)
                .with("scheduler", "least-connections")
                .with("dead_after", "1s");
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let held = Held::open(&stage.topology.client, vip(&service)?, HELD, IDLE)?;
            let counted = || -> Result<usize> {
                let backend = stage.backend(&service, web_address(1))?;
                let counted = backend.and_then(|backend| backend["connections"].as_u64());
                Ok(counted.context("connections of backend 1")? as usize)
            };
            let all = counted()?;
            stage.topology.silence(1)?;
            stage.await_condition(&service, web_address(1), "down")?;
            let down = Instant::now();
            wait_until("all of its connections have ended", SOON, || {
                held.broken() == all
            })?;
            assert_eq!(counted()?, 0, "it still counts those that others have");
            let ends = ends_of_first(&held.stop()?);
            // Another backend resets what it does not know; silence would have had them time out.
            let late = ends.iter().filter(|(at, _)| *at > down + NOTICE);
            let late: Vec<&Reason> = late.map(|(_, reason)| reason).collect();
            println!("{} of {} after its death", late.len(), ends.len());
            assert!(!late.is_empty());
            assert!(!late.contains(&&Reason::TimedOut), "{ends:?}");
            Ok(())
        },
    )
}
