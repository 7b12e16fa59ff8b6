//! What pools carry a second of what their backends are said to carry, on real traffic of which no flow is recorded.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    agent::Said,
    config::{Health, Service},
    load::open_loop::OpenLoop,
    skip::with_root,
    stage::{BACKENDS, Stage, tcp, v4_pool, vip, web_address},
    topology::{Topology, vip_v4},
    wait::wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// New connections a second, and how many a backend is said to carry.
const RATE: u32 = 150;
const MOST: u64 = 100;

fn capacity(stage: &Stage, service: &Service) -> Result<Value> {
    Ok(stage.shown(service)?["capacity"].take())
}

/// What `lbctl` says of a backend.
fn told(stage: &Stage, service: &Service, at: SocketAddr) -> Result<Value> {
    let backend = stage.backend(service, at)?;
    backend.context("a backend of the service")
}

/// Waits until new flows come at about the rate at which they are made, and so many backends can fail.
fn await_headroom(stage: &Stage, service: &Service, headroom: u64) -> Result<Value> {
    let rate = u64::from(RATE);
    let mut last = Value::Null;
    wait_until(
        &format!("{headroom} backends can fail at {rate} flows a second"),
        SOON,
        || {
            last = capacity(stage, service).unwrap_or_default();
            let load = last["flow_rate"]["load"].as_u64().unwrap_or(0);
            (rate * 3 / 4..=rate * 5 / 4).contains(&load) && last["headroom"] == headroom
        },
    )
    .with_context(|| last.to_string())?;
    Ok(last)
}

#[test]
fn new_flows_and_bits_a_second_are_measured_against_what_backends_are_said_to_carry() -> Result<()>
{
    with_root(
        "new_flows_and_bits_a_second_are_measured_against_what_backends_are_said_to_carry",
        || {
            let pool = v4_pool(lb_tests::backend::PORT);
            let service = Service::new(tcp(vip_v4(2)), "ipip", Health::NONE, pool);
            let stage = Stage::new(Topology::new(BACKENDS)?, vec![service.clone()])?;
            let load = OpenLoop::start(&stage.topology.client, vip(&service)?, RATE)?;
            let id = &service.vip;
            // Nobody has said anything.
            assert_eq!(capacity(&stage, &service)?, Value::Null);
            for n in 1..=BACKENDS {
                let at = web_address(n);
                let say =
                    format!("backend capacity {id} {at} --flow-rate {MOST} --bandwidth 10Mbit/s");
                stage.lbctl(&say)?;
            }
            let shown = await_headroom(&stage, &service, 1)?;
            println!("{shown}");
            let flows = &shown["flow_rate"];
            assert_eq!(
                (&flows["most"], &shown["scarcest"]),
                (&(3 * MOST).into(), &"flow_rate".into())
            );
            let used = flows["utilisation"].as_u64();
            assert!(
                used.is_some_and(|used| (350..=650).contains(&used)),
                "{flows}"
            );
            let imbalance = flows["imbalance"].as_u64();
            assert!(
                imbalance.is_some_and(|over| (1_000..1_700).contains(&over)),
                "{flows}"
            );
            assert!(shown["connections"].is_null(), "no flow is counted");
            assert_eq!(stage.shown(&service)?["flows"]["recorded"], 0);

            // What is sent to all of them, by their own counters.
            let sent = |stage: &Stage| -> Result<u64> {
                let bytes = (1..=BACKENDS).map(|n| {
                    let backend = told(stage, &service, web_address(n))?;
                    backend["traffic"]["bytes"].as_u64().context("bytes")
                });
                bytes.sum()
            };
            let of_one = told(&stage, &service, web_address(1))?;
            let (packets, bytes) = (&of_one["traffic"]["packets"], sent(&stage)?);
            let flows_begun = of_one["traffic"]["flows"].as_f64().context("flows")?;
            println!("{bytes} bytes to all; {packets} packets and {flows_begun} flows to one");
            let a_flow = of_one["traffic"]["bytes"].as_f64().context("bytes")? / flows_begun;
            let bits = of_one["bandwidth"].as_f64().context("bandwidth")?;
            let rate = of_one["flow_rate"].as_f64().context("flow rate")?;
            let expected = rate * a_flow * 8.0;
            assert!(
                (bits - expected).abs() < expected / 4.0,
                "{bits} and {expected}"
            );

            wait_until("the status names what is left", SOON, || {
                let status = stage.agent.lbctl(&["status"]);
                let status = status.and_then(Said::succeeded).unwrap_or_default();
                status.contains("headroom at least 1 backends")
            })?;
            let list = stage.agent.lbctl(&["backend", "list"])?.succeeded()?;
            assert!(list.contains(&format!(" of {MOST} ")), "{list}");

            // Two carry it, and one alone would not.
            stage.lbctl(&format!("backend drain {id} {}", web_address(3)))?;
            await_headroom(&stage, &service, 0)?;
            stage.lbctl(&format!("backend undrain {id} {}", web_address(3)))?;
            await_headroom(&stage, &service, 1)?;
            load.stop()?;
            Ok(())
        },
    )
}
