//! The core test: whatever the frame, host and kernel make the same of it.

use std::{env, fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use lb_common::verdict::DropReason;
use lb_tests::{
    differential::{
        Bench,
        frames::{Generator, OWN, Random},
        unhex,
    },
    netns::Namespace,
    skip::root_or_skip,
};
use lb_userspace::{
    health::Target,
    model::{Mode, Probe, Service},
};
use std::net::{IpAddr, SocketAddr};

/// How many frames to compare; the default fits a test run.
const PACKETS: &str = "LB_DIFFERENTIAL_PACKETS";
const SEED: &str = "LB_DIFFERENTIAL_SEED";

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn service(vip: &str, mode: Mode, backends: &[&str]) -> Result<Service> {
    let backends: Vec<_> = backends
        .iter()
        .map(|address| serde_json::json!({ "address": address }))
        .collect();
    let mut service: Service = serde_json::from_value(serde_json::json!({
        "id": vip, "mode": mode, "backends": backends
    }))?;
    service.health.probe = Probe::None;
    Ok(service)
}

fn services() -> Result<Vec<Service>> {
    let v4 = ["10.2.0.11:80", "10.2.0.12:8080", "10.2.0.13:81"];
    let v6 = ["[fd00:2::11]:80", "[fd00:2::12]:8080", "[fd00:2::13]:81"];
    Ok(vec![
        service("10.0.0.1:80/tcp", Mode::Nat, &v4)?,
        service("10.0.0.1:80/udp", Mode::Nat, &v4)?,
        service("[fd00::1]:80/tcp", Mode::Nat, &v6)?,
        service("[fd00::1]:80/udp", Mode::Nat, &v6)?,
        service("10.0.0.2:80/tcp", Mode::Ipip, &v4)?,
        service("10.0.0.2:80/udp", Mode::Ipip, &v4)?,
        service("[fd00::2]:80/tcp", Mode::Ipip, &v6)?,
        service("[fd00::2]:80/udp", Mode::Ipip, &v6)?,
        service("10.0.0.3:80/tcp", Mode::Ipip, &v6)?,
        service("[fd00::3]:80/tcp", Mode::Ipip, &v4)?,
        service("10.0.0.4:80/tcp", Mode::Ipip, &[])?,
        service(
            "10.0.0.5:80/tcp",
            Mode::Ipip,
            &["10.2.0.21:80", "10.2.0.22:80"],
        )?,
        service("10.0.0.6:80/tcp", Mode::Ipip, &["10.2.0.31:80"])?,
    ])
}

fn run() -> Result<()> {
    let services = services()?;
    let dead: SocketAddr = "10.2.0.21:80".parse()?;
    let down = Target {
        service: "10.0.0.5:80/tcp".parse()?,
        address: dead,
    };
    let unreachable: IpAddr = "10.2.0.31".parse()?;
    let mut endpoints: Vec<SocketAddr> = services.iter().map(|service| service.id.vip).collect();
    endpoints.extend(
        services
            .iter()
            .flat_map(|s| s.backends.iter().map(|b| b.address)),
    );
    endpoints.extend(OWN.map(|address| SocketAddr::new(address, 80)));
    let mut bench = Bench::new(services, &[down], &[unreachable])?;
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions/frames.hex");
    let kept = fs::read_to_string(&kept).with_context(|| kept.display().to_string())?;
    for line in kept.lines().filter(|line| !line.starts_with('#')) {
        bench.compare(&unhex(line)?)?;
    }
    let (packets, seed) = (number(PACKETS, 50_000), number(SEED, 1));
    let mut generator = Generator {
        random: Random(seed),
        endpoints,
    };
    #[expect(clippy::disallowed_methods, reason = "only printed")]
    let start = Instant::now();
    let mut actions = [0u64; 4];
    for done in 0..packets {
        let frame = generator.frame();
        let action = bench.compare(&frame).with_context(|| {
            format!("frame {done} of seed {seed}; keep it in tests/regressions/frames.hex")
        })?;
        actions[(action - 1) as usize] += 1;
    }
    let counted = bench.compare_counters()?;
    println!(
        "{packets} frames of seed {seed}: 0 differences in {:?}; [drop, pass, transmit, redirect] = {actions:?}; {:?}",
        start.elapsed(),
        counted.drops
    );
    // A generator that no longer reaches a part of the path proves nothing about it.
    assert!(actions.iter().all(|&seen| seen > 0), "{actions:?}");
    for reason in REACHED {
        assert!(
            counted.drops.contains_key(&(reason as u32)),
            "no {reason:?} in {packets} frames"
        );
    }
    Ok(())
}

/// What frames of this size can be dropped for; the others take giants, or a defect.
const REACHED: [DropReason; 6] = [
    DropReason::NoBackend,
    DropReason::Truncated,
    DropReason::BadHeader,
    DropReason::Fragment,
    DropReason::ExtensionHeaders,
    DropReason::TtlExpired,
];

#[test]
fn host_and_kernel_make_the_same_of_every_frame() -> Result<()> {
    if !root_or_skip("host_and_kernel_make_the_same_of_every_frame") {
        return Ok(());
    }
    Namespace::unique("differential")?.run(run)
}
