//! The verb `vm`: tests on another kernel, in a virtual machine.
//!
//! The guest has this machine's file system, read-only below a layer of memory, and in it this checkout's programs
//! and tests: nothing but the kernel is another. [`kernel`] decides which, [`packages`] fetches it, [`archive`] and
//! [`modules`] make what it starts from, [`guest`] says what it is told, [`machine`] runs it. What is fetched is kept
//! in `target/vm`; of a run nothing stays, in the guest or here.

mod archive;
mod guest;
mod kernel;
mod machine;
mod modules;
mod packages;

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::outcome::exit_code;
use crate::program;
use crate::project::Project;
use crate::setup;
use crate::test::{
    Report,
    report::{parse_junit, parse_skips},
};
use kernel::{Kernel, Wanted};
use machine::{Accelerator, Folder, Machine};

/// The machine that is emulated.
const ARCHITECTURE: &str = "x86_64";
/// Cargo's name of it; what is used elsewhere need not be downloaded.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// nextest's profile: which tests, and how long they may take.
const PROFILE: &str = "vm";

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// Debian's kernel of this version, or the path of a kernel: an image to boot, with its modules where the
    /// system has them (`/boot`, `/lib/modules`), or a Debian package
    #[arg(long, default_value = kernel::DEFAULT, value_name = "VERSION|PATH")]
    kernel: Wanted,
    /// Minutes after which the guest is stopped, and the run has failed
    #[arg(long, default_value_t = 60, value_name = "MINUTES")]
    timeout: u64,
    /// Arguments of `cargo nextest run`, such as a filter: what is run instead of the profile's tests
    #[arg(last = true, value_name = "ARGUMENTS")]
    passed_on: Vec<String>,
}

/// Sets up, builds, boots and tests.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        ARCH == ARCHITECTURE,
        "`vm` runs this machine's own programs in a guest of {ARCHITECTURE}, and this is {ARCH}"
    );
    let facts = setup::ensure(project, setup::VM)?;
    build::everything(project, setup::toolchain_of(&facts)?)?;
    let place = project.vm();
    let kernel = packages::obtain(&place, &arguments.kernel)?;
    let run = Folder::unique(&place)?;
    let tests = prepare(project, &run, &kernel, &arguments.passed_on)?;
    let busybox = packages::busybox(&place)?;
    let initramfs = run.path().join("initramfs");
    write(
        &initramfs,
        &modules::initramfs(&kernel, &busybox, guest::INIT)?,
    )?;
    fs::copy(&busybox, run.path().join(guest::BUSYBOX)).context("copying busybox")?;
    write(&run.path().join(guest::SCRIPT), tests.script().as_bytes())?;
    let accelerator = Accelerator::found();
    eprintln!(
        "vm: Linux {} {}, {} minutes at most",
        kernel.release,
        accelerator.describe(),
        arguments.timeout
    );
    let machine = Machine {
        image: &kernel.image,
        initramfs: &initramfs,
        shared: run.path(),
        accelerator,
    };
    machine::run(&machine, Duration::from_secs(60 * arguments.timeout))?;
    let report = report(&run)?;
    report.print_skips();
    eprintln!("on Linux {}:", kernel.release);
    report.print_counts();
    Ok(exit_code(report.passed()))
}

/// Builds the tests, and writes down what there is for the guest, where nothing can be built. Unit tests are left
/// out: what they test reaches no kernel.
fn prepare<'a>(
    project: &'a Project,
    run: &'a Folder,
    kernel: &'a Kernel,
    passed_on: &'a [String],
) -> Result<guest::Tests<'a>> {
    let listed = describe(
        project,
        &["nextest", "list", "--workspace", "--test", "*"],
        &["--list-type", "binaries-only", "--message-format", "json"],
    )?;
    write(&run.path().join(guest::BINARIES), &listed)?;
    let metadata = describe(
        project,
        &["metadata"],
        &["--format-version", "1", "--filter-platform", PLATFORM],
    )?;
    write(&run.path().join(guest::METADATA), &metadata)?;
    Ok(guest::Tests {
        nextest: nextest(project)?,
        root: project.root(),
        programs: project.metadata()?.release_bin()?,
        modules: kernel.modules.as_deref(),
        profile: PROFILE,
        passed_on,
        variables: std::env::vars()
            .filter(|(name, _)| guest::is_passed_on(name))
            .collect(),
    })
}

/// What cargo prints.
fn describe(project: &Project, verb: &[&str], arguments: &[&str]) -> Result<Vec<u8>> {
    let mut cargo = project.host_cargo();
    cargo.args(verb).args(arguments).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo {} failed ({})",
        verb.join(" "),
        output.status
    );
    Ok(output.stdout)
}

fn nextest(project: &Project) -> Result<PathBuf> {
    let own = project.tools_bin().join("cargo-nextest");
    match program::find("cargo-nextest") {
        Some(found) => Ok(found),
        None if program::is_executable(&own) => Ok(own),
        None => bail!("cargo-nextest is not there, although set-up has run"),
    }
}

/// What the guest left of its tests.
fn report(run: &Folder) -> Result<Report> {
    let left = |name: &str| fs::read_to_string(run.path().join(name)).ok();
    let status = left(guest::STATUS).and_then(|text| guest::parse_status(&text));
    let status = status.context(
        "the guest ended before its tests had: what it printed last, above, says why (a kernel \
         that panics, or that lacks what its set-up takes)",
    )?;
    let counts = left(guest::JUNIT).and_then(|text| parse_junit(&text));
    let skipped = parse_skips(&left(guest::SKIPS).unwrap_or_default());
    Ok(Report::new(counts, status == 0, skipped, None))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
