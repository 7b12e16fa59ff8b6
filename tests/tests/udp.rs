//! Datagrams have no connections to tell old flows from new ones by: a flow stays where it is for as
//! long as it is not idle for the moving time, and after that the ring alone decides.
//!
//! How long that is makes most of what there is to see take longer, so it is 2 seconds but for one test.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    config::{Health, Service},
    load::{
        Checksum,
        numbered::{Receiver, Sender, settle},
        udp_requests,
    },
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, UDP_PORT, v4_pool},
    topology::{Topology, backend_name, backend_v4, vip_v4},
    udp::UdpEcho,
    wait::{wait_for, wait_until},
};
use tokio::time::Instant;

/// Where new flows are sent to, and counted by who answers.
const ECHO_PORT: u16 = UDP_PORT + 1;
/// Datagrams a second of all flows that stay active.
const RATE: u32 = 2_000;
const FLOWS: u32 = 256;
/// What is promised for the default moving time.
const SHARE_WITHIN: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

/// With two backends, and the moving time that UDP services have where nothing is said.
fn by_default(vip: u8, port: u16) -> (SocketAddr, Service) {
    let vip = SocketAddr::from((vip_v4(vip), port));
    let pool = v4_pool(port).take(2);
    let service = Service::new(format!("{vip}/udp"), "nat", Health::NONE, pool);
    (vip, service)
}

fn service(vip: u8, port: u16) -> (SocketAddr, Service) {
    let (vip, service) = by_default(vip, port);
    (vip, service.with("moving_time", "2s"))
}

#[test]
fn a_new_udp_backend_takes_its_share_within_a_minute_at_the_default_moving_time() -> Result<()> {
    with_root(
        "a_new_udp_backend_takes_its_share_within_a_minute_at_the_default_moving_time",
        || {
            let (target, fresh) = by_default(5, ECHO_PORT);
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![fresh.clone()])?;
            let _echoes = echoes(&stage)?;
            let shown = stage.shown(&fresh)?;
            assert_eq!(shown["moving_time_ms"], 30_000, "{shown:#}");
            add_third(&stage, &fresh, ECHO_PORT)?;
            let added = Instant::now();
            // Until its slots have moved, whoever comes may have been there before.
            assert_eq!(share_of_third(&stage, target)?, 0.0);
            // Asked for again and again, clients' few ports would never be idle for as long as that.
            stage.await_slots(&fresh, Slots::have_moved)?;
            let share = share_of_third(&stage, target)?;
            println!("{share:.2} of new flows after {:?}", added.elapsed());
            assert!((0.2..0.5).contains(&share), "{share}");
            assert!(added.elapsed() < SHARE_WITHIN);
            Ok(())
        },
    )
}

#[test]
fn a_new_udp_backend_takes_its_share_within_a_minute_and_no_active_flow_moves() -> Result<()> {
    with_root(
        "a_new_udp_backend_takes_its_share_within_a_minute_and_no_active_flow_moves",
        || {
            let (numbered, active) = service(4, UDP_PORT);
            let (target, fresh) = service(5, ECHO_PORT);
            let services = vec![active.clone(), fresh.clone()];
            let stage = Stage::new(Topology::exclusive(BACKENDS)?, services)?;
            let _echoes = echoes(&stage)?;
            let receivers = stage.receivers()?;
            let client = &stage.topology.client;
            let sender = Sender::start(client, numbered, RATE, FLOWS)?;
            wait_until("every flow is under way", SOON, || {
                receivers.iter().map(Receiver::count).sum::<u64>() > 2 * u64::from(FLOWS)
            })?;
            let added = Instant::now();
            for (service, port) in [(&active, UDP_PORT), (&fresh, ECHO_PORT)] {
                add_third(&stage, service, port)?;
            }
            let share = await_share(&stage, target)?;
            println!("{share:.2} of new flows after {:?}", added.elapsed());
            stage.await_slots(&active, Slots::have_moved)?;
            // What is recorded of an active flow outlives the move.
            thread::sleep(Duration::from_secs(1));
            println!("{:?}", stage.slots(&active)?);
            let delivery = settle(sender, receivers)?;
            println!("{delivery}");
            assert!(delivery.moved.is_empty(), "{delivery}");
            assert_eq!(
                (delivery.missing(), delivery.duplicated),
                (0, 0),
                "{:?}",
                delivery.gaps
            );
            assert_eq!(delivery.per_receiver[&backend_name(3)], 0, "{delivery}");
            Ok(())
        },
    )
}

fn add_third(stage: &Stage, service: &Service, port: u16) -> Result<()> {
    let third = SocketAddr::from((backend_v4(3), port));
    stage.lbctl(&format!("backend add {} {third}", service.vip))?;
    Ok(())
}

fn await_share(stage: &Stage, target: SocketAddr) -> Result<f64> {
    wait_for("the new backend takes its share", SHARE_WITHIN, || {
        let share = share_of_third(stage, target).ok();
        share.filter(|&share| share > 0.2)
    })
}

/// The share of new flows that backend 3 has; the ring gives it a third.
fn share_of_third(stage: &Stage, target: SocketAddr) -> Result<f64> {
    const ASKED: usize = 300;
    let report = udp_requests(&stage.topology.client, target, ASKED, Checksum::Present)?;
    ensure!(report.succeeded() == ASKED, "{report}");
    let third = report.per_backend().get(&backend_name(3)).copied();
    Ok(third.unwrap_or_default() as f64 / ASKED as f64)
}

fn echoes(stage: &Stage) -> Result<Vec<UdpEcho>> {
    (1..=BACKENDS)
        .map(|n| {
            let address = (IpAddr::from(backend_v4(n)), ECHO_PORT).into();
            UdpEcho::start(stage.topology.backend(n), &backend_name(n), &[address])
        })
        .collect()
}
