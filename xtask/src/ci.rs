//! The verb `ci`: every check a change has to pass. Each check runs even if one before it failed;
//! the tests come last, and their counts are the last line.

use std::io::{self, Write as _};
use std::panic::resume_unwind;
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;

use anyhow::Result;
use nix::unistd::geteuid;

use crate::bench;
use crate::build;
use crate::outcome::exit_code;
use crate::project::Project;
use crate::setup::{self, Facts, Need};
use crate::test::{self, report::is_listed};

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// Check licences, sources and known vulnerabilities too (builds cargo-deny if it is missing)
    #[arg(long)]
    full: bool,
}

/// How a check ended.
enum Verdict {
    Passed,
    Failed,
    Skipped(&'static str),
}

/// A check by name, and how it ended.
type Checked = (&'static str, Verdict);

/// Sets up, builds and checks.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    let mut more = vec![Need::Lints];
    if arguments.full {
        more.push(Need::Deny);
    }
    let facts = test::ready(project, &more)?;
    let mut verdicts = vec![("fmt", format(project)?)];
    // Everything else embeds them. A tree that does not build has no further checks to pass.
    build::objects(project, setup::toolchain_of(&facts)?)?;
    let (built, linted) = thread::scope(|scope| {
        let linted = scope.spawn(|| beside_the_build(project, &facts, arguments.full));
        (build::programs(project), linted.join())
    });
    built?;
    verdicts.extend(linted.unwrap_or_else(|panicked| resume_unwind(panicked))?);
    for (name, title) in [
        ("packet", "bench packet"),
        ("control", "bench control"),
        ("checks", "bench checks"),
    ] {
        verdicts.push((title, quick_bench(project, name, title)?));
    }
    let report = test::everything(project, &[])?;
    report.print_skips();
    let expected = test::expected_skips(project);
    let ok = summarize(&verdicts, expected.as_deref()) && report.passed();
    report.print_counts();
    Ok(exit_code(ok))
}

/// The checks that take no finished build, then the build of the tests: in another folder and profile than
/// the programs, whose build is at times a single compiler's work. Nothing is measured meanwhile.
fn beside_the_build(project: &Project, facts: &Facts, full: bool) -> Result<Vec<Checked>> {
    let verdicts = vec![
        ("clippy", host_clippy(project)?),
        ("clippy of the BPF programs", bpf_clippy(project, facts)?),
        ("licences and sources", deny(project, facts, full)?),
    ];
    eprintln!("ci: the build of the tests");
    test::build(project)?;
    Ok(verdicts)
}

/// Prints a line for each check; whether none failed, nor was skipped though `expected` does not list it.
fn summarize(verdicts: &[Checked], expected: Option<&str>) -> bool {
    let mut ok = true;
    for (name, verdict) in verdicts {
        match verdict {
            Verdict::Passed => eprintln!("{name}: passed"),
            Verdict::Failed => {
                eprintln!("{name}: FAILED");
                ok = false;
            }
            Verdict::Skipped(reason) => {
                let may = expected.is_none_or(|list| is_listed(name, list));
                let verdict = if may { "" } else { " (FAILED: not expected)" };
                eprintln!("SKIP {name}: {reason}{verdict}");
                ok &= may;
            }
        }
    }
    ok
}

fn check(name: &str, command: &mut Command) -> Result<Verdict> {
    eprintln!("ci: {name}");
    Ok(verdict(command.status()?))
}

/// As [`check`], beside another command: what it prints comes in one piece, once it has ended.
fn check_beside(name: &str, command: &mut Command) -> Result<Verdict> {
    let output = command.output()?;
    let mut said = format!("ci: {name}\n").into_bytes();
    said.extend([output.stdout, output.stderr].concat());
    io::stderr().lock().write_all(&said)?;
    Ok(verdict(output.status))
}

fn verdict(status: ExitStatus) -> Verdict {
    if status.success() {
        Verdict::Passed
    } else {
        Verdict::Failed
    }
}

fn format(project: &Project) -> Result<Verdict> {
    let workspace = check(
        "fmt",
        project.host_cargo().args(["fmt", "--all", "--check"]),
    )?;
    let mut bpf = project.host_cargo();
    bpf.args(["fmt", "--check", "--manifest-path"])
        .arg(project.bpf_package().join("Cargo.toml"));
    match (workspace, check("fmt of the BPF programs", &mut bpf)?) {
        (Verdict::Passed, Verdict::Passed) => Ok(Verdict::Passed),
        _ => Ok(Verdict::Failed),
    }
}

fn host_clippy(project: &Project) -> Result<Verdict> {
    let mut cargo = project.host_cargo();
    cargo.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    check_beside("clippy", &mut cargo)
}

fn bpf_clippy(project: &Project, facts: &Facts) -> Result<Verdict> {
    let toolchain = setup::toolchain_of(facts)?;
    if !toolchain.has_clippy(facts) {
        return Ok(Verdict::Skipped("the BPF toolchain has no clippy"));
    }
    let mut clippy = toolchain.clippy(project);
    build::for_bpf(clippy.arg("--release"), project).args(["--", "-D", "warnings"]);
    check_beside("clippy of the BPF programs", &mut clippy)
}

fn deny(project: &Project, facts: &Facts, full: bool) -> Result<Verdict> {
    if !facts.has_program("cargo-deny") {
        return Ok(Verdict::Skipped(
            "cargo-deny is not installed; `cargo xtask ci --full` builds it",
        ));
    }
    let mut cargo = project.host_cargo();
    cargo.args([
        "deny",
        "--workspace",
        "check",
        "bans",
        "licenses",
        "sources",
    ]);
    if full {
        // Needs the network, and fails for changes elsewhere: not for every change here.
        cargo.arg("advisories");
    }
    check_beside("licences and sources", &mut cargo)
}

fn quick_bench(project: &Project, name: &str, title: &str) -> Result<Verdict> {
    let metadata = project.metadata()?;
    if !bench::known(&metadata).iter().any(|known| known == name) {
        return Ok(Verdict::Skipped("the workspace has no program of its name"));
    }
    if !geteuid().is_root() {
        return Ok(Verdict::Skipped("measuring takes root"));
    }
    let quick = ["--quick".to_owned()];
    check(
        title,
        &mut bench::program(project, &metadata, name, &quick)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_beside_the_build_passes_and_fails_as_its_command_does() {
        let ended = |program| check_beside(program, &mut Command::new(program)).unwrap();
        assert!(matches!(ended("true"), Verdict::Passed));
        assert!(matches!(ended("false"), Verdict::Failed));
    }
}
