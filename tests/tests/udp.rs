//! Datagrams have no connections to tell old flows from new ones by: a flow stays where it is for as
//! long as it is not idle for the moving time, and after that the ring alone decides.
//!
//! `LB_TEST_MOVING_TIME` says how long that is, such as `30s`, which is what UDP services have by
//! default; 2 seconds where it is not set.

use std::{
    env,
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

fn service(vip: u8, port: u16, backends: usize) -> (SocketAddr, Service) {
    let vip = SocketAddr::from((vip_v4(vip), port));
    let moving_time = env::var("LB_TEST_MOVING_TIME").unwrap_or_else(|_| "2s".to_owned());
    let pool = v4_pool(port).take(backends);
    let service = Service::new(format!("{vip}/udp"), "nat", Health::NONE, pool);
    (vip, service.with("moving_time", moving_time))
}

#[test]
fn a_new_udp_backend_takes_its_share_within_a_minute_and_no_active_flow_moves() -> Result<()> {
    with_root(
        "a_new_udp_backend_takes_its_share_within_a_minute_and_no_active_flow_moves",
        || {
            let (numbered, active) = service(4, UDP_PORT, 2);
            let (target, fresh) = service(5, ECHO_PORT, 2);
            let services = vec![active.clone(), fresh.clone()];
            let stage = Stage::new(Topology::exclusive(BACKENDS)?, services)?;
            let _echoes = echoes(&stage)?;
            let receivers = receivers(&stage)?;
            let client = &stage.topology.client;
            let sender = Sender::start(client, numbered, RATE, FLOWS)?;
            wait_until("every flow is under way", SOON, || {
                receivers.iter().map(Receiver::count).sum::<u64>() > 2 * u64::from(FLOWS)
            })?;
            let added = Instant::now();
            for (service, port) in [(&active, UDP_PORT), (&fresh, ECHO_PORT)] {
                stage.lbctl(&format!(
                    "backend add {} {}:{port}",
                    service.vip,
                    backend_v4(3)
                ))?;
            }
            let share = wait_for("the new backend takes its share", SHARE_WITHIN, || {
                share_of_third(&stage, target)
                    .ok()
                    .filter(|&share| share > 0.2)
            })?;
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

fn receivers(stage: &Stage) -> Result<Vec<Receiver>> {
    (1..=BACKENDS)
        .map(|n| Receiver::start(stage.topology.backend(n), &backend_name(n), UDP_PORT))
        .collect()
}
