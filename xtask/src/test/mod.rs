//! The verb `test`: documentation tests, then everything else through cargo-nextest.
//!
//! A test that lacks a capability (root, a kernel feature) passes but writes a line
//! `SKIP TEST: REASON` to the file named by `LB_SKIP_FILE`. Those lines are printed after the run,
//! are not counted as passed, and with `CI=true` fail it unless `.ci/expected-skips` names the test.
//! The last line printed is `N passed, N failed`.

pub mod report;

use std::env;
use std::fs;
use std::process::{Command, ExitCode};
use std::thread::available_parallelism;

use anyhow::{Context, Result};

use crate::build;
use crate::outcome::exit_code;
use crate::project::Project;
use crate::setup::{self, Facts};
pub use report::Report;
use report::{Counts, parse_doc_tests, parse_junit, parse_skips};

/// Where nextest reads how many tests run at a time; an argument wins over it.
const THREADS: &str = "NEXTEST_TEST_THREADS";
/// For each processor: the longest tests spend most of their time waiting.
const TESTS_PER_PROCESSOR: usize = 3;

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments of `cargo nextest run`, such as a filter; with any, documentation tests are left out
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    passed_on: Vec<String>,
}

/// Sets up, builds, tests.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    let facts = setup::ensure(project, setup::test_needs())?;
    build::everything(project, setup::toolchain_of(&facts)?)?;
    let report = everything(project, &arguments.passed_on)?;
    report.print_skips();
    report.print_counts();
    Ok(exit_code(report.passed()))
}

/// Runs the tests of a finished build.
pub fn everything(project: &Project, arguments: &[String]) -> Result<Report> {
    let documentation = if arguments.is_empty() {
        doc_tests(project)?
    } else {
        Counts::default()
    };
    let mut report = nextest(project, arguments)?;
    report.add(documentation);
    Ok(report)
}

/// Builds what [`everything`] runs, ahead of it. What does not build is printed, and counted, then.
pub fn build(project: &Project) -> Result<()> {
    let mut nextest = all_tests(project);
    nextest.arg("--no-run");
    nextest.output().context("cannot start cargo nextest")?;
    Ok(())
}

/// Nextest over all packages.
fn all_tests(project: &Project) -> Command {
    let mut cargo = project.host_cargo();
    cargo.args(["nextest", "run", "--workspace"]);
    if env::var_os(THREADS).is_none() {
        let processors = available_parallelism().map_or(1, Into::into);
        cargo.env(THREADS, (TESTS_PER_PROCESSOR * processors).to_string());
    }
    cargo
}

fn doc_tests(project: &Project) -> Result<Counts> {
    let mut cargo = project.host_cargo();
    let output = cargo
        .args(["test", "--doc", "--workspace"])
        .output()
        .context("cannot start the documentation tests")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = parse_doc_tests(&text);
    if !output.status.success() {
        eprint!("{text}{}", String::from_utf8_lossy(&output.stderr));
        // A documentation test that does not even compile is in no count.
        counts.failed = counts.failed.max(1);
    }
    Ok(counts)
}

fn nextest(project: &Project, arguments: &[String]) -> Result<Report> {
    let junit = project.root().join("target/nextest/default/junit.xml");
    let skips = project.logs().join("skips.txt");
    fs::create_dir_all(project.logs()).context("cannot create target/xtask")?;
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    // What is left of an earlier run must not be taken for this one's.
    if let Err(error) = fs::remove_file(&junit)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", junit.display()));
    }
    let status = all_tests(project)
        .args(arguments)
        .env("LB_SKIP_FILE", &skips)
        .env("LB_BIN_DIR", project.metadata()?.release_bin()?)
        .status()
        .context("cannot start cargo nextest")?;
    let counts = fs::read_to_string(&junit)
        .ok()
        .and_then(|text| parse_junit(&text));
    let skipped = parse_skips(&fs::read_to_string(&skips).unwrap_or_default());
    Ok(Report::new(
        counts,
        status.success(),
        skipped,
        expected_skips(project).as_deref(),
    ))
}

/// What may be skipped, a name a line; `None` where anything may, outside of CI.
pub fn expected_skips(project: &Project) -> Option<String> {
    let strict = env::var("CI").is_ok_and(|value| value == "true");
    let list = project.root().join(".ci/expected-skips");
    strict.then(|| fs::read_to_string(list).unwrap_or_default())
}

/// What `ci` needs to know before it builds.
pub fn ready(project: &Project, more: &[setup::Need]) -> Result<Facts> {
    let needs: Vec<setup::Need> = setup::test_needs().iter().chain(more).copied().collect();
    setup::ensure(project, &needs)
}
