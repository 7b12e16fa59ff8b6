//! `lbctl` against the real agent: what succeeds is in force, what fails changes nothing.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    backend,
    config::{Health, Service},
    load::{held::Held, requests},
    skip::with_root,
    stage::{BACKENDS, Slots, Stage, tcp, v4_pool, vip, web, web_address},
    topology::{Topology, backend_name, backend_v4, vip_v4},
    wait::wait_until,
};
use serde_json::{Value, json};

/// From one request on each held connection to its next.
const PERIOD: Duration = Duration::from_millis(200);
/// Bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn lbctl_changes_are_in_force_when_the_command_returns() -> Result<()> {
    with_root(
        "lbctl_changes_are_in_force_when_the_command_returns",
        || {
            let pool = v4_pool(backend::PORT).take(2);
            let service = Service::new(tcp(vip_v4(1)), "nat", Health::HTTP, pool);
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let id = service.vip.as_str();
            let names = |answers: BTreeMap<String, usize>| answers.into_keys().collect::<Vec<_>>();
            let lbctl = |arguments: &[&str]| stage.agent.lbctl(arguments)?.succeeded().map(drop);
            lbctl(&["backend", "drain", id, "10.2.0.11:80"])?;
            assert_eq!(names(stage.answers(&service, 100)?), ["backend2"]);
            lbctl(&["backend", "add", id, "10.2.0.13:80"])?;
            // Who joins others passes a check first.
            stage.await_condition(&service, web_address(3), "up")?;
            assert_eq!(
                names(stage.answers(&service, 200)?),
                ["backend2", "backend3"]
            );
            lbctl(&["backend", "undrain", id, "10.2.0.11:80"])?;
            assert_eq!(stage.answers(&service, 300)?.len(), 3);
            lbctl(&["backend", "remove", id, "10.2.0.12:80"])?;
            assert_eq!(
                names(stage.answers(&service, 200)?),
                ["backend1", "backend3"]
            );
            lbctl(&["backend", "weight", id, "10.2.0.13:80", "0"])?;
            assert_eq!(names(stage.answers(&service, 100)?), ["backend1"]);
            lbctl(&["service", "remove", id])?;
            let report = requests(&stage.topology.client, vip(&service)?, 2)?;
            assert_eq!(report.succeeded(), 0, "a removed service still answers");
            Ok(())
        },
    )
}

#[test]
fn a_removed_backend_keeps_its_connections_and_is_listed_as_leaving_until_they_have_ended()
-> Result<()> {
    with_root(
        "a_removed_backend_keeps_its_connections_and_is_listed_as_leaving_until_they_have_ended",
        || {
            let service = web(Health::HTTP).with("moving_time", "2s");
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let leaver = SocketAddr::from((backend_v4(1), backend::PORT));
            let leaving = || -> Result<Option<Value>> {
                let found = stage.backend(&service, leaver)?;
                Ok(found.map(|backend| backend["leaving"].clone()))
            };
            let held = Held::open(&stage.topology.client, vip(&service)?, 150, PERIOD)?;
            stage.lbctl(&format!("backend remove {} {leaver}", service.vip))?;
            assert_eq!(leaving()?, Some(true.into()));
            let others: Vec<_> = stage.answers(&service, 200)?.into_keys().collect();
            assert_eq!(others, ["backend2", "backend3"]);
            // What nothing is recorded for would go to others from then on.
            stage.await_slots(&service, Slots::have_moved)?;
            thread::sleep(2 * PERIOD);
            assert_eq!(leaving()?, Some(true.into()));
            let lives = held.stop()?;
            println!("{lives}");
            assert!(lives.per_backend()[&backend_name(1)] > 0, "{lives}");
            assert_eq!(lives.broken_per_backend(), BTreeMap::new());
            wait_until("the removed backend has gone", SOON, || {
                leaving().is_ok_and(|leaving| leaving.is_none())
            })?;
            stage.await_slots(&service, Slots::are_steady).map(drop)
        },
    )
}

/// What cannot be done, the exit code, and what the message has to say.
const REFUSALS: &[(&str, i32, &str)] = &[
    (
        "service remove 10.0.0.9:80/tcp",
        4,
        "no service 10.0.0.9:80/tcp: `lbctl service list`",
    ),
    (
        "backend drain 10.0.0.9:80/tcp 10.2.0.11:80",
        4,
        "no service 10.0.0.9:80/tcp: `lbctl service list`",
    ),
    (
        "backend drain 10.0.0.1:80/tcp 10.2.0.19:80",
        4,
        "`lbctl backend list 10.0.0.1:80/tcp` shows",
    ),
    ("service remove 10.0.0.1:80", 2, "is not a service"),
    (
        "backend add 10.0.0.1:80/tcp 10.2.0:80",
        2,
        "write ADDRESS:PORT",
    ),
    (
        "service add 127.0.0.1:80/tcp --mode nat",
        2,
        "not a routable unicast address",
    ),
    (
        "backend weight 10.0.0.1:80/tcp 10.2.0.11:80 1001",
        2,
        "0..=1000",
    ),
    (
        "service add 10.0.0.1:80/tcp --mode nat",
        5,
        "exists already",
    ),
    (
        "backend add 10.0.0.1:80/tcp 10.2.0.11:80",
        5,
        "`lbctl backend weight`",
    ),
    (
        "backend add 10.0.0.1:80/tcp [fd00:2::11]:80",
        5,
        "another address family",
    ),
    (
        "service add 10.0.0.2:80/tcp --mode nat --backend 10.2.0.11:80",
        5,
        "use mode \"ipip\"",
    ),
    (
        "service add 10.0.0.2:80/tcp --mode nat --ring-size 1000",
        5,
        "1000 is not one of",
    ),
];

#[test]
fn what_lbctl_refuses_it_explains_in_one_line_and_nothing_changes() -> Result<()> {
    with_root(
        "what_lbctl_refuses_it_explains_in_one_line_and_nothing_changes",
        || {
            let service = web(Health::NONE);
            let mut stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let before = state(&stage)?;
            for (arguments, code, part) in REFUSALS {
                assert_fails(&stage, arguments, *code, part)?;
                assert_eq!(state(&stage)?, before, "lbctl {arguments}");
            }
            assert_eq!(stage.answers(&service, 300)?.len(), 3);
            stage.agent.sigterm()?;
            assert_fails(
                &stage,
                "backend drain 10.0.0.1:80/tcp 10.2.0.11:80",
                3,
                "is lbd running?",
            )?;
            // Neither what runs in the kernel nor what the next agent starts from has changed.
            assert_eq!(stage.answers(&service, 300)?.len(), 3);
            stage.agent.restart()?;
            let after = state(&stage)?;
            assert_eq!(without_traffic(after), without_traffic(before));
            Ok(())
        },
    )
}

/// Services, their backends, and the generation in force.
fn state(stage: &Stage) -> Result<(Value, Value)> {
    let services = stage.agent.lbctl_json(&["service", "list"])?;
    let status = stage.agent.lbctl_json(&["status"])?;
    Ok((services, status["generation"].clone()))
}

/// What the next agent starts from: since when a backend is in its state, each agent says for itself.
fn without_traffic((mut services, _): (Value, Value)) -> Value {
    for service in services.as_array_mut().into_iter().flatten() {
        service["traffic"].take();
        // Slots move from the start where a backend's neighbour was found later than another's; then
        // flows are recorded.
        let flows = service["flows"].take();
        service["flows"] = json!([flows["steady"], flows["moving"], flows["settling"]]);
        for backend in service["backends"].as_array_mut().into_iter().flatten() {
            backend["traffic"].take();
            backend["recorded"].take();
            backend["standing"]["since_ms"].take();
        }
    }
    services
}

fn assert_fails(stage: &Stage, arguments: &str, code: i32, part: &str) -> Result<()> {
    let said = stage
        .agent
        .lbctl(&arguments.split(' ').collect::<Vec<_>>())
        .with_context(|| arguments.to_owned())?;
    assert_eq!(
        said.status.code(),
        Some(code),
        "lbctl {arguments}: {said:?}"
    );
    assert_eq!(said.stdout, "", "lbctl {arguments}");
    let lines: Vec<&str> = said.stderr.lines().collect();
    let one = matches!(lines[..], [line] if line.starts_with("error: ") && line.contains(part));
    assert!(one, "lbctl {arguments}: {:?} without {part:?}", said.stderr);
    Ok(())
}
