//! The verb `coverage`: which lines and branches of `lb-common` are reached by the fuzzer's inputs, and which by these
//! and the crate's own tests.
//!
//! Its crates are compiled with LLVM's source-based coverage ([`crate::stand_in`]); LLVM's own tools read what was
//! counted, and [`report`] adds it up.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::report::Report;
use crate::build;
use crate::outcome::{exit_code, succeed};
use crate::project::Project;
use crate::setup;
use crate::stand_in::{Purpose, instrument};

/// The test that gives the host every input that is kept.
const REPLAY: &str = "fuzz::host::tests::every_kept_input_does_on_the_host_what_has_to_hold";

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// List each branch that is never taken, or always
    #[arg(long)]
    missing: bool,
    /// Fail where fewer of all branches are reached, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    at_least: f64,
}

/// What has been built: tests, by the name of their crate.
type Built = Vec<(String, PathBuf)>;

/// Builds, runs and reports.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    let facts = setup::ensure(project, setup::BUILD)?;
    let tools = setup::llvm_tools()?;
    // The tests embed them, and load none.
    if !project.objects().join("lb.o").exists() {
        build::objects(project, setup::toolchain_of(&facts)?)?;
    }
    let built = tests(project)?;
    let folder = project.root().join("target/coverage");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (replay, own): (Built, Built) = built.into_iter().partition(|(name, _)| name == "lb_tests");
    let mut profiles = Vec::new();
    for (name, program) in &replay {
        let profile = counted(project, &folder, name, program, &["--exact", REPLAY])?;
        profiles.push(profile);
    }
    let source = project.root().join("lb-common/src");
    let by_inputs = read(&tools, &folder, "inputs", &profiles, &replay, &source)?;
    for (name, program) in &own {
        profiles.push(counted(project, &folder, name, program, &[])?);
    }
    let everything = [replay, own].concat();
    let by_all = read(&tools, &folder, "all", &profiles, &everything, &source)?;
    print!("{}", report::table(&by_inputs, &by_all));
    if arguments.missing {
        print!("{}", by_all.missing());
    }
    let reached = by_all.total().branches.percent();
    let enough = reached >= arguments.at_least;
    if !enough {
        eprintln!(
            "coverage: {reached:.2} % of the branches are reached, not {} %",
            arguments.at_least
        );
    }
    Ok(exit_code(enough))
}

/// Builds the tests, instrumented.
fn tests(project: &Project) -> Result<Built> {
    let mut cargo = project.host_cargo();
    cargo
        .args(["test", "--no-run", "-p", "lb-common", "-p", "lb-tests"])
        .args(["--lib", "--test", "packet_path", "--test", "tables"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    instrument(&mut cargo, Purpose::Coverage)?;
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "the build of the tests failed ({})",
        output.status
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built = messages.filter_map(|message| {
        let program = PathBuf::from(message["executable"].as_str()?);
        let name = message["target"]["name"].as_str()?;
        Some((name.replace('-', "_"), program))
    });
    Ok(built.collect())
}

/// Runs tests, and returns where their counts are.
fn counted(
    project: &Project,
    folder: &Path,
    name: &str,
    program: &Path,
    arguments: &[&str],
) -> Result<PathBuf> {
    let profile = folder.join(format!("{name}.profraw"));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(project.root().join("lb-common"))
        .env("LLVM_PROFILE_FILE", &profile)
        .stdout(Stdio::null());
    succeed(&mut command, name)?;
    ensure!(
        profile.exists(),
        "{name} has counted nothing: is it instrumented?"
    );
    Ok(profile)
}

/// Reads what was counted of the packet path.
fn read(
    tools: &Path,
    folder: &Path,
    name: &str,
    profiles: &[PathBuf],
    built: &[(String, PathBuf)],
    source: &Path,
) -> Result<Report> {
    let merged = folder.join(format!("{name}.profdata"));
    let mut merge = Command::new(tools.join("llvm-profdata"));
    merge.arg("merge").args(profiles).arg("-o").arg(&merged);
    succeed(&mut merge, "llvm-profdata")?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export
        .args(["export", "-skip-expansions", "-instr-profile"])
        .arg(&merged);
    let Some(((_, first), others)) = built.split_first() else {
        bail!("cargo has built no tests");
    };
    export.arg(first);
    for (_, other) in others {
        export.arg("-object").arg(other);
    }
    let output = export
        .arg("-sources")
        .arg(source)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start llvm-cov")?;
    ensure!(
        output.status.success(),
        "llvm-cov failed ({})",
        output.status
    );
    let exported = serde_json::from_slice(&output.stdout).context("what llvm-cov has exported")?;
    Report::of(&exported, source)
}
