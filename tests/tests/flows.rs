//! What `lbctl flows` and `lbctl service show` say is what happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{
    backend,
    config::{Health, Service},
    load::held::Held,
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, v4_pool, vip, web, web_address},
    topology::{CLIENT_V4, Topology, backend_name, vip_v4},
    wait::wait_for,
};
use serde::Deserialize;

/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
const HELD: usize = 200;
const SOON: Duration = Duration::from_secs(60);

/// As `lbctl flows` lists one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Flow {
    service: String,
    client: SocketAddr,
    backend: Option<SocketAddr>,
    half_open: bool,
    closing: bool,
    phase: String,
}

/// As `lbctl flows` lists them.
#[derive(Debug, Clone, Deserialize)]
struct Flows {
    total: usize,
    flows: Vec<Flow>,
}

fn flows(stage: &Stage, filter: &str) -> Result<Flows> {
    let words = ["flows"].into_iter().chain(filter.split_whitespace());
    let json = stage.agent.lbctl_json(&words.collect::<Vec<_>>())?;
    serde_json::from_value(json).context("a list of flows")
}

/// Waits until the flows that `filter` selects are no longer half-open and do not become more.
fn await_flows(stage: &Stage, filter: &str) -> Result<Flows> {
    let mut last = 0;
    let listed = wait_for(&format!("flows {filter}"), SOON, || {
        thread::sleep(2 * PERIOD);
        let now = flows(stage, filter).ok()?;
        let before = std::mem::replace(&mut last, now.total);
        let established = now.flows.iter().all(|flow| !flow.half_open);
        (established && now.total > 0 && now.total == before).then_some(now)
    });
    listed.with_context(|| format!("{:?}", flows(stage, "")))
}

fn clients(flows: &Flows) -> BTreeSet<SocketAddr> {
    flows.flows.iter().map(|flow| flow.client).collect()
}

#[test]
fn flows_of_a_drained_backend_are_listed_while_its_slots_move_and_settle() -> Result<()> {
    with_root(
        "flows_of_a_drained_backend_are_listed_while_its_slots_move_and_settle",
        || {
            let service = web(Health::HTTP).with("moving_time", "8s");
            let other = Service::new(
                format!("{}:80/tcp", vip_v4(2)),
                "nat",
                Health::NONE,
                v4_pool(backend::OTHER_PORT),
            );
            let stage = Stage::new(
                Topology::new(BACKENDS)?,
                vec![service.clone(), other.clone()],
            )?;
            // Backends come up one after another, and slots move to each: what opens meanwhile is recorded.
            let all = stage.await_slots(&service, Slots::are_steady)?.steady;
            let held = Held::open(&stage.topology.client, vip(&service)?, HELD, PERIOD)?;
            let said = stage.agent.lbctl(&["flows"])?.succeeded()?;
            assert_eq!(said, "no recorded flows: slots that are steady need none\n");

            let drained = web_address(1);
            stage.lbctl(&format!("backend drain {} {drained}", service.vip))?;
            let slots = stage.slots(&service)?;
            assert!(slots.moving > 0, "{slots:?}");
            assert_eq!(slots.steady + slots.moving + slots.settling, all);
            let own = format!("--service {} --backend {drained}", service.vip);
            let moving = await_flows(&stage, &format!("{own} --phase moving --limit 1000"))?;
            for flow in &moving.flows {
                assert_eq!(flow.client.ip(), CLIENT_V4);
                assert_eq!((flow.closing, flow.phase.as_str()), (false, "moving"));
                assert_eq!((&flow.service, flow.backend), (&service.vip, Some(drained)));
            }
            assert_filters(&stage, &own, &other, moving.total)?;

            stage.await_slots(&service, |slots| slots.have_moved() && slots.settling > 0)?;
            let settling = await_flows(&stage, &format!("{own} --phase settling --limit 1000"))?;
            assert_eq!(clients(&settling), clients(&moving));
            assert_eq!(flows(&stage, "--phase moving")?.total, 0);

            let lives = held.stop()?;
            println!("{lives}, {} listed", moving.total);
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            assert_eq!(lives.per_backend()[&backend_name(1)], moving.total);
            let slots = stage.await_slots(&service, Slots::are_steady)?;
            assert_eq!(slots.steady, all);
            assert_eq!(flows(&stage, "")?.total, 0);
            Ok(())
        },
    )
}

/// `own` selects `count` flows, however the question is put.
fn assert_filters(stage: &Stage, own: &str, other: &Service, count: usize) -> Result<()> {
    let total = |filter: &str| flows(stage, &format!("{filter} --limit 0")).map(|all| all.total);
    assert_eq!(total(own)?, count);
    for nobodys in [
        format!("--service {}", other.vip),
        format!("{own} --phase steady"),
        "--backend 10.2.0.99:80".to_owned(),
    ] {
        assert_eq!(total(&nobodys)?, 0, "{nobodys}");
    }
    let by_backend: Vec<usize> = (1..=BACKENDS)
        .map(|n| total(&format!("--backend {}", web_address(n))))
        .collect::<Result<_>>()?;
    assert_eq!(
        by_backend.iter().sum::<usize>(),
        total("")?,
        "{by_backend:?}"
    );
    let first = flows(stage, &format!("{own} --limit 3"))?;
    assert_eq!((first.flows.len(), first.total), (3, count));

    let words = |more: &str| format!("flows {own} {more}");
    let said = |more: &str| -> Result<String> {
        let words = words(more);
        let words: Vec<&str> = words.split_whitespace().collect();
        stage.agent.lbctl(&words)?.succeeded()
    };
    assert_eq!(said("--count")?, format!("{count}\n"));
    let table = said("--limit 3")?;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("SERVICE"), "{table}");
    assert_eq!(lines.len(), 5, "{table}");
    assert_eq!(lines[4], format!("3 of {count} flows; --limit shows more"));
    Ok(())
}
