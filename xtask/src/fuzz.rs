//! The verb `fuzz`: inputs that reach more and more of the packet path on the host, then host and kernel over
//! what is made of these.
//!
//! The fuzzer is a program of the tests' package with libFuzzer linked in. What it watches is compiled with
//! counters at every edge ([`crate::stand_in`]).

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build;
use crate::outcome::succeed;
use crate::project::Project;
use crate::run::require_root;
use crate::setup;
use crate::stand_in::{Purpose, instrument};

/// Bytes of an input: a dozen frames.
const LONGEST: u32 = 8_192;

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// For how long to look for new inputs on the host, in seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Frames to compare between host and kernel afterwards
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    frames: u64,
    /// What inputs and frames are made by; on the host, also by what has been found before
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
    /// Put what reaches all that was reached into tests/corpus
    #[arg(long)]
    keep: bool,
}

/// Sets up, builds, fuzzes and compares.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    let given: Vec<String> = env::args().skip(2).collect();
    require_root("fuzz", &given)?;
    let facts = setup::ensure(project, setup::LOAD)?;
    build::everything(project, setup::toolchain_of(&facts)?)?;
    build_fuzzer(project)?;
    let release = project.metadata()?.release_bin()?;
    let (host, kernel) = (release.join("fuzz-host"), release.join("fuzz-kernel"));
    let folder = project.root().join("target/fuzz");
    let (corpus, kept) = (
        folder.join("corpus"),
        project.root().join("tests/corpus/frames.hex"),
    );
    if kept.exists() {
        let mut unpack = Command::new(&kernel);
        succeed(unpack.arg("unpack").args([&kept, &corpus]), "unpacking")?;
    }
    fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    if arguments.seconds > 0 {
        let mut fuzz = Command::new(&host);
        fuzz.arg(format!("-max_total_time={}", arguments.seconds))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-seed={}", arguments.seed))
            .arg(format!("-artifact_prefix={}/", folder.display()))
            .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=4096"])
            .arg(&corpus);
        succeed(&mut fuzz, "fuzzing on the host")?;
    }
    if arguments.keep {
        keep(&host, &kernel, &[&corpus, &folder.join("fewest"), &kept])?;
    }
    let mut compare = Command::new(&kernel);
    compare
        .args(["run", "--corpus"])
        .arg(&corpus)
        .args(["--frames", &arguments.frames.to_string()])
        .args(["--seed", &arguments.seed.to_string()]);
    succeed(&mut compare, "the comparison of host and kernel")?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps the fewest inputs that reach what all reach.
fn keep(host: &PathBuf, kernel: &PathBuf, [corpus, fewest, kept]: &[&PathBuf; 3]) -> Result<()> {
    if fewest.exists() {
        fs::remove_dir_all(fewest).with_context(|| fewest.display().to_string())?;
    }
    fs::create_dir_all(fewest).with_context(|| fewest.display().to_string())?;
    let mut merge = Command::new(host);
    merge
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-max_len={LONGEST}"))
        .args([fewest, corpus]);
    succeed(&mut merge, "choosing what to keep")?;
    let mut pack = Command::new(kernel);
    succeed(pack.arg("pack").args([fewest, kept]), "packing")
}

fn build_fuzzer(project: &Project) -> Result<()> {
    let mut cargo = project.host_cargo();
    cargo
        .args(["build", "--release", "-p", "lb-userspace", "-p", "lb-tests"])
        .args(["--features", "lb-tests/fuzz", "--bin", "fuzz-host"]);
    instrument(&mut cargo, Purpose::Fuzzing)?;
    succeed(
        &mut cargo,
        "the build of the fuzzer (which takes a C++ compiler; Debian: g++)",
    )
}
