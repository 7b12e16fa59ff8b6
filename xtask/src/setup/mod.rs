//! Set-up: what a verb needs, what is there, and the steps between.
//!
//! [`facts`] looks, [`toolchain`] and [`plan`] decide (pure), [`perform`] does. Tools built here go
//! to `target/tools`; the user's own folders, toolchains and running services are never changed.

mod advice;
mod facts;
mod llvm_tools;
mod perform;
mod plan;
mod toolchain;

use std::fmt;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::project::Project;
pub use facts::Facts;
pub use llvm_tools::llvm_tools;
pub use toolchain::BpfToolchain;

/// Planning goes by what the last round left (a compiler just installed names its LLVM), so a few rounds are enough.
const ROUNDS: usize = 3;

/// Something a verb cannot work without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A compiler for the BPF target and its linker.
    BpfToolchain,
    /// The BPF file system, where maps and links are pinned.
    Bpffs,
    /// Programs of the playground and of the tests in namespaces.
    NetworkTools,
    /// Further servers, and what breaks them, of the tests.
    Servers,
    /// The machine that tests on other kernels run in.
    Emulator,
    /// The test runner.
    Nextest,
    /// rustfmt and clippy for the host, clippy for the BPF programs.
    Lints,
    /// The check of licences and sources.
    Deny,
}

/// What `build` needs.
pub const BUILD: &[Need] = &[Need::BpfToolchain];
/// What the playground needs.
pub const RUN: &[Need] = &[Need::BpfToolchain, Need::NetworkTools, Need::Bpffs];
/// What attaching to a NIC and measuring need.
pub const LOAD: &[Need] = &[Need::BpfToolchain, Need::Bpffs];
/// What the tests need as root.
pub const TEST: &[Need] = &[
    Need::BpfToolchain,
    Need::NetworkTools,
    Need::Servers,
    Need::Bpffs,
    Need::Nextest,
];
/// What the tests on another kernel need: there, everything else is mounted.
pub const VM: &[Need] = &[
    Need::BpfToolchain,
    Need::NetworkTools,
    Need::Servers,
    Need::Nextest,
    Need::Emulator,
];
/// What the tests need without root: those that load programs skip themselves.
pub const TEST_UNPRIVILEGED: &[Need] = &[Need::BpfToolchain, Need::Nextest];

/// Set-up that has to be done by hand: each entry is a line to run or to follow.
#[derive(Debug)]
pub struct Blocked {
    /// Why this command cannot do it.
    pub reason: String,
    /// What to run, in order.
    pub lines: Vec<String>,
}

impl fmt::Display for Blocked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; run:", self.reason)?;
        for line in &self.lines {
            write!(formatter, "\n    {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Blocked {}

/// The verb: everything that `build`, `run`, `test` and `bench` need.
pub fn run(project: &Project) -> Result<ExitCode> {
    let facts = ensure(project, test_needs())?;
    eprintln!(
        "set-up is complete; BPF programs are built with {}",
        toolchain_of(&facts)?.describe()
    );
    Ok(ExitCode::SUCCESS)
}

/// What the tests need, for this user.
pub fn test_needs() -> &'static [Need] {
    if nix::unistd::geteuid().is_root() {
        TEST
    } else {
        TEST_UNPRIVILEGED
    }
}

/// Makes `needs` available and returns the machine's state then. Quick and silent if nothing lacks.
pub fn ensure(project: &Project, needs: &[Need]) -> Result<Facts> {
    let mut round = 0;
    loop {
        let facts = Facts::gather(project, needs);
        let plan = plan::plan(&facts, needs, &project.tools());
        if plan.is_empty() {
            return Ok(facts);
        }
        let steps = plan.runnable()?;
        if round == ROUNDS {
            bail!(
                "set-up ran, and this is still missing: {}",
                plan.titles().join("; ")
            );
        }
        perform::perform(project, &steps)?;
        round += 1;
    }
}

/// The toolchain that builds the BPF programs.
pub fn toolchain_of(facts: &Facts) -> Result<BpfToolchain> {
    toolchain::ready(facts)
        .ok_or_else(|| anyhow::anyhow!("no BPF toolchain is set up; run `cargo xtask setup`"))
}
