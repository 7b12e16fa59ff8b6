//! The contract on real traffic: an established connection whose backend lives is never moved.
//! And the proof of the proof: where the ring alone decides, the same run sees connections break.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use lb_tests::{binaries, skip::root_or_skip};
use serde_json::Value;

/// What a quick soak reports, and whether it called that a success.
fn soak(arguments: &[&str]) -> Result<(Value, bool)> {
    let mut command = Command::new(binaries::find("soak")?);
    command
        .args(["--quick", "--format", "json"])
        .args(arguments);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("starting the soak")?;
    let report = serde_json::from_slice(&output.stdout).context("the soak's report")?;
    println!("{report:#}");
    Ok((report, output.status.success()))
}

fn number(report: &Value, name: &str) -> u64 {
    report[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name} in {report:#}"))
}

#[test]
fn no_connection_whose_backend_lives_breaks_over_changes_of_every_kind() -> Result<()> {
    if !root_or_skip("no_connection_whose_backend_lives_breaks_over_changes_of_every_kind") {
        return Ok(());
    }
    let (report, succeeded) = soak(&["--schedulers"])?;
    assert_eq!(number(&report, "broken"), 0);
    assert!(succeeded);
    assert_eq!(number(&report, "changes"), 25);
    assert!(number(&report, "most_open") >= 1_000);
    assert!(
        number(&report, "broken_with_backend") > 0,
        "a kill breaks its own connections"
    );
    // Else it has seen nothing of what it is about.
    assert!(number(&report, "peak_entries") > 0);
    assert!(report["peak_share"].as_f64() > Some(0.0), "{report:#}");
    assert!(number(&report["peak_uses"], "moving") > 0, "{report:#}");
    assert!(report["lookup_share"].as_f64() > Some(0.0), "{report:#}");
    let passed = &report["slots_passed"];
    for phase in ["moving", "settling", "steady"] {
        assert!(number(passed, phase) >= 1_000, "{phase}: {passed:#}");
    }
    Ok(())
}

#[test]
fn where_the_ring_alone_decides_the_soak_sees_connections_break() -> Result<()> {
    if !root_or_skip("where_the_ring_alone_decides_the_soak_sees_connections_break") {
        return Ok(());
    }
    let few = ["--connections", "300", "--changes", "12", "--seed", "1"];
    let (report, succeeded) = soak(&[&few[..], &["--flow-state", "ring-only"]].concat())?;
    assert!(number(&report, "broken") > 0);
    assert!(succeeded, "breaks are what ring-only is expected to show");
    assert_eq!(number(&report, "changes"), 12);
    Ok(())
}
