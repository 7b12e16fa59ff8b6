//! The core test: whatever the frame, host and kernel make the same of it.

use std::{env, fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use lb_common::{
    tables::feature,
    verdict::{Answer, DropReason, Piece},
};
use lb_tests::{
    differential::{
        Bench, Way,
        changes::disturbance,
        frames::{Generator, Random},
        routes,
        setting::Setting,
        unhex,
    },
    fuzz::corpus,
    netns::Namespace,
    skip::root_or_skip,
};
use lb_userspace::model::Unserved;

/// How many frames to compare; the default fits a test run.
const PACKETS: &str = "LB_DIFFERENTIAL_PACKETS";
const SEED: &str = "LB_DIFFERENTIAL_SEED";

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn run() -> Result<()> {
    let setting = Setting::new()?;
    let mut bench = Bench::new(&setting)?;
    bench.refuse_unknown_ports(Unserved::Unreachable)?;
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions/frames.hex");
    let kept = fs::read_to_string(&kept).with_context(|| kept.display().to_string())?;
    for line in kept.lines().filter(|line| !line.starts_with('#')) {
        bench.compare(&unhex(line)?)?;
    }
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/frames.hex");
    for frame in corpus::read(&found)?.iter().flat_map(|input| &input.frames) {
        bench
            .compare_at_once(frame)
            .context("of the fuzzer's corpus")?;
    }
    let (packets, seed) = (number(PACKETS, 100_000), number(SEED, 1));
    let mut generator = Generator::new(seed, setting.endpoints);
    #[expect(clippy::disallowed_methods, reason = "only printed")]
    let start = Instant::now();
    let mut actions = [0u64; 4];
    let mut held = Vec::new();
    let mut changes = Random(seed ^ 0x5eed);
    for done in 0..packets {
        if done % CHANGE_EVERY == CHANGE_EVERY - 1 {
            bench
                .disturb(disturbance(&mut changes)?)
                .with_context(|| format!("before frame {done} of seed {seed}"))?;
        }
        let frame = generator.frame();
        let action = bench.compare(&frame).with_context(|| {
            format!("frame {done} of seed {seed}; keep it in tests/regressions/frames.hex")
        })?;
        actions[(action - 1) as usize] += 1;
        held.extend(bench.take_held()?);
        // Sooner and later than the first fragment.
        while held.len() > HELD {
            let frame = held.remove(changes.below(held.len() as u64)).frame;
            bench
                .compare_by(&frame, Way::Held)
                .with_context(|| format!("held, after frame {done} of seed {seed}"))?;
        }
    }
    let recorded = bench.compare_flows()?;
    let counted = bench.compare_counters()?;
    let signs = bench.compare_signs()?;
    println!(
        "{packets} frames of seed {seed}: 0 differences in {:?}; [drop, pass, transmit, redirect] = {actions:?}; {:?}; {:?} answered; {:?} in fragments; {recorded} flows recorded at the end; {:?}",
        start.elapsed(),
        counted.drops,
        counted.answers,
        counted.pieces,
        counted.flows
    );
    println!("{signs:?}; {} told by routers", bench.told);
    assert!(bench.told > 0, "no client is told of a narrower way");
    let shown = [
        signs.accepted,
        signs.refused,
        signs.unreachable,
        signs.progressed,
        signs.resent,
    ];
    assert!(shown.iter().all(|&count| count > 0), "{signs:?}");
    // A generator that no longer reaches a part of the path proves nothing about it.
    assert!(actions.iter().all(|&seen| seen > 0), "{actions:?}");
    let inconsistent = DropReason::Inconsistent as u32;
    assert!(
        !counted.drops.contains_key(&inconsistent),
        "{:?}",
        counted.drops
    );
    let named: u64 = counted.flows.values().map(|flows| flows.named).sum();
    assert!(named > 0, "no connection id has named a server");
    let proven: u64 = counted
        .flows
        .values()
        .map(|flows| flows.cookies_valid)
        .sum();
    assert!(proven > 0, "no cookie has come back");
    for reason in REACHED {
        assert!(
            counted.drops.contains_key(&(reason as u32)),
            "no {reason:?} in {packets} frames"
        );
    }
    for &piece in Piece::ALL {
        assert!(
            counted.pieces.contains_key(&(piece as u32)),
            "no {piece:?} in {packets} frames"
        );
    }
    for answer in [
        Answer::Echo,
        Answer::Reset,
        Answer::Unreachable,
        Answer::Withheld,
        Answer::TooBig,
    ] {
        assert!(
            counted.answers.contains_key(&(answer as u32)),
            "no {answer:?} in {packets} frames"
        );
    }
    Ok(())
}

/// Fragments that are held at a time.
const HELD: usize = 16;
/// Frames between two changes of rings, schedulers and health.
const CHANGE_EVERY: u64 = 250;

/// What frames of this size can be dropped for; the others take giants, or a defect.
const REACHED: [DropReason; 18] = [
    DropReason::NoBackend,
    DropReason::Truncated,
    DropReason::BadHeader,
    DropReason::Fragment,
    DropReason::ExtensionHeaders,
    DropReason::TtlExpired,
    DropReason::UnknownPort,
    DropReason::PacketTooBig,
    DropReason::FragmentTiny,
    DropReason::FragmentOverlap,
    DropReason::FragmentMalformed,
    DropReason::FragmentBeforeFirst,
    DropReason::AccessDenied,
    DropReason::SourceLimit,
    DropReason::ServiceLimit,
    DropReason::MartianSource,
    DropReason::Land,
    DropReason::CookieInvalid,
];

/// Frames to a program that is loaded for less: what it knows, the others have looked into.
const FEW: u64 = 10_000;

fn run_pruned() -> Result<()> {
    for (features, what) in [
        (feature::IPIP, "ipip"),
        (feature::NAT, "nat"),
        (
            feature::GUE | feature::L2 | feature::BY_SOURCE | feature::BY_THREE_TUPLE,
            "gue, l2, source-hash, three-tuple-hash",
        ),
        (feature::FULL_NAT, "full-nat"),
        (
            feature::FULL_NAT | feature::SYN_PROXY,
            "full-nat, SYN proxy",
        ),
        (
            feature::IPIP | feature::QUIC | feature::GUARDS,
            "ipip, quic, guards",
        ),
        (
            feature::IPIP | feature::WIDE | feature::SCTP,
            "ipip, several addresses, sctp",
        ),
        (
            feature::NAT | feature::MSS | feature::ALL_PORTS,
            "nat, mss, all ports",
        ),
        (
            feature::NAT | feature::IPIP | feature::VLAN,
            "nat, ipip, vlans",
        ),
    ] {
        let setting = Setting::for_features(features)?;
        assert!(!setting.services.is_empty(), "no service is of {what}");
        let mut bench = Bench::new(&setting)?;
        let mut generator = Generator::new(number(SEED, 1), setting.endpoints);
        for done in 0..FEW {
            bench
                .compare(&generator.frame())
                .with_context(|| format!("loaded for {what}: frame {done}"))?;
        }
        bench.compare_flows()?;
        let counted = bench.compare_counters()?;
        let inconsistent = DropReason::Inconsistent as u32;
        assert!(!counted.drops.contains_key(&inconsistent), "{what}");
        println!(
            "{FEW} frames, loaded for {what}: 0 differences; {:?}",
            counted.flows
        );
    }
    Ok(())
}

#[test]
fn a_program_that_is_loaded_for_what_is_used_alone_makes_the_same_of_every_frame() -> Result<()> {
    if !root_or_skip(
        "a_program_that_is_loaded_for_what_is_used_alone_makes_the_same_of_every_frame",
    ) {
        return Ok(());
    }
    let namespace = Namespace::unique("pruned")?;
    routes::lay(&namespace)?;
    namespace.run(run_pruned)
}

#[test]
fn host_and_kernel_make_the_same_of_every_frame() -> Result<()> {
    if !root_or_skip("host_and_kernel_make_the_same_of_every_frame") {
        return Ok(());
    }
    let namespace = Namespace::unique("differential")?;
    routes::lay(&namespace)?;
    namespace.run(run)
}
