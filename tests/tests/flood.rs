//! Floods of segments from sources that are all new, while slots move and the flow tables are small:
//! nobody's connection suffers, and no table of established flows fills.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use lb_tests::{
    config::{Config, Health, Service},
    load::{
        Phase, Reason, Report,
        flood::{Flood, Segment},
        held::Held,
        open_loop::OpenLoop,
    },
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, vip, web},
    topology::Topology,
    wait::wait_until,
};
use serde_json::Value;

/// Segments a second.
const RATE: u32 = 4_000;
/// Records that each table has room for: the flood fills one within a second, and the connections
/// that are held fit the other.
const ROOM: u32 = 1_024;
const HELD: usize = 300;
/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(500);
/// Legitimate new connections a second.
const NEW: u32 = 50;
const SOON: Duration = Duration::from_secs(60);

/// What moves slots, again and again.
const CHANGES: &[&str] = &[
    "backend drain {} 10.2.0.11:80",
    "backend weight {} 10.2.0.12:80 5",
    "backend undrain {} 10.2.0.11:80",
    "backend remove {} 10.2.0.13:80",
    "backend weight {} 10.2.0.12:80 1",
    "backend add {} 10.2.0.13:80",
];

fn survives(segment: Segment) -> Result<()> {
    let service = web(Health::TCP).with("moving_time", "3s");
    let config = Config {
        services: vec![service.clone()],
        limits: vec![("flows", ROOM), ("half_open", ROOM)],
        ..Config::default()
    };
    let stage = Stage::new(Topology::new(BACKENDS)?, config)?;
    let (client, target) = (&stage.topology.client, vip(&service)?);
    let SocketAddr::V4(flooded) = target else {
        bail!("{target} is flooded by IPv4");
    };
    let held = Held::open(client, target, HELD, PERIOD)?;
    let before = drops(&stage)?;
    let flood = Flood::start(client, flooded, segment, RATE)?;
    let legitimate = OpenLoop::start(client, target, NEW)?;
    for change in CHANGES {
        stage.lbctl(&change.replace("{}", &service.vip))?;
        let sent = flood.sent() + u64::from(RATE) / 2;
        wait_until("the flood goes on", SOON, || flood.sent() > sent)?;
        assert_established_have_room(&stage)?;
    }
    thread::sleep(2 * PERIOD);
    let (legitimate, sent) = (legitimate.stop()?, flood.stop()?);
    println!("{segment:?}: {sent} sent; {legitimate}");
    println!("{:#}", stage.shown(&service)?["flows"]);
    // Else it was no flood.
    assert!(overflows(&stage, &service)? > u64::from(ROOM));
    assert_eq!(drops(&stage)?, before, "dropped by the balancer");
    assert_none_broke(&legitimate);
    // The tables are free again, and what waited for that goes on.
    stage.await_slots(&service, Slots::have_moved)?;
    thread::sleep(2 * PERIOD);
    let lives = held.stop()?;
    println!("{lives}");
    assert_eq!(lives.broken_per_backend(), BTreeMap::new());
    Ok(())
}

fn overflows(stage: &Stage, service: &Service) -> Result<u64> {
    let shown = stage.shown(service)?;
    shown["flows"]["overflows"].as_u64().context("a number")
}

fn assert_established_have_room(stage: &Stage) -> Result<()> {
    let status = stage.agent.lbctl_json(&["status"])?;
    let entries = status["flow_tables"]["established"]["entries"].as_u64();
    assert!(entries < Some(u64::from(ROOM) * 3 / 4), "{status:#}");
    Ok(())
}

fn drops(stage: &Stage) -> Result<Value> {
    Ok(stage.agent.lbctl_json(&["status"])?["drops"].take())
}

/// A server that cannot keep up with the flood may leave an opening unanswered, which moves nobody.
fn assert_none_broke(report: &Report) {
    let broken: Vec<_> = report
        .failures()
        .filter(|(_, failure)| {
            (failure.phase, &failure.reason) != (Phase::Connect, &Reason::TimedOut)
        })
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert!(report.succeeded() > 0, "{report}");
}

#[test]
fn a_flood_of_openings_moves_no_established_connection_and_breaks_no_new_one() -> Result<()> {
    with_root(
        "a_flood_of_openings_moves_no_established_connection_and_breaks_no_new_one",
        || survives(Segment::Syn),
    )
}

#[test]
fn a_flood_of_acknowledgements_moves_no_established_connection_and_breaks_no_new_one() -> Result<()>
{
    with_root(
        "a_flood_of_acknowledgements_moves_no_established_connection_and_breaks_no_new_one",
        || survives(Segment::Ack),
    )
}
