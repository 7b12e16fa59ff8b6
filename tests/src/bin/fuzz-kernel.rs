//! More of what the fuzzer has found, through host and kernel at once: `cargo xtask fuzz` starts it.
//!
//! Exit codes: 0 host and kernel made the same of every frame; 1 they did not, or it failed; 2 wrong usage.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lb_tests::{
    differential::{
        Bench,
        changes::disturbance,
        frames::{Generator, Random},
        hex, routes,
        setting::Setting,
    },
    fuzz::{Input, corpus, mangle},
    netns::Namespace,
};
use lb_userspace::model::Unserved;

/// Frames between two changes of rings, settings and health.
const CHANGE_EVERY: u64 = 2_000;
/// Ways that an input is changed in, at most.
const CHANGES: u64 = 8;

/// Compares host and kernel over frames that are made of a fuzzer's inputs.
#[derive(Parser)]
#[command(name = "fuzz-kernel")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compare host and kernel
    Run {
        /// The fuzzer's inputs, one a file
        #[arg(long)]
        corpus: PathBuf,
        /// Frames to compare, at least
        #[arg(long)]
        frames: u64,
        /// Gives the same frames again
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Put each input of a file into a file of its own
    Unpack { file: PathBuf, folder: PathBuf },
    /// Make one file of them
    Pack { folder: PathBuf, file: PathBuf },
}

fn main() -> Result<()> {
    match Cli::parse().verb {
        Verb::Run {
            corpus,
            frames,
            seed,
        } => {
            let inputs = corpus::of_folder(&corpus)?;
            let namespace = Namespace::unique("fuzz")?;
            routes::lay(&namespace)?;
            namespace.run(|| compare(&inputs, frames, seed))
        }
        Verb::Unpack { file, folder } => {
            let count = corpus::unpack(&file, &folder)?;
            eprintln!("{count} inputs of {}", file.display());
            Ok(())
        }
        Verb::Pack { folder, file } => {
            let count = corpus::pack(&folder, &file)?;
            eprintln!("{count} inputs in {}", file.display());
            Ok(())
        }
    }
}

fn compare(inputs: &[Input], frames: u64, seed: u64) -> Result<()> {
    let setting = Setting::new()?;
    let mut bench = Bench::new(&setting)?;
    bench.refuse_unknown_ports(Unserved::Unreachable)?;
    let mut generator = Generator::new(seed, setting.endpoints);
    let (mut random, mut changes) = (Random(!seed), Random(seed ^ 0x5eed));
    #[expect(clippy::disallowed_methods, reason = "only printed")]
    let start = Instant::now();
    let (mut done, mut sequences, mut next_change) = (0, 0u64, CHANGE_EVERY);
    while done < frames {
        // Each as it is first, then changed.
        let mut input = match inputs.get(sequences as usize) {
            Some(input) => input.clone(),
            None => {
                let mut input = match inputs.len() {
                    0 => Input::default(),
                    count => inputs[random.below(count as u64)].clone(),
                };
                for _ in 0..=random.below(CHANGES) {
                    input.mutate(&mut generator, |frame| mangle(frame, &mut random));
                }
                input
            }
        };
        sequences += 1;
        for frame in input.frames.drain(..) {
            let before = || format!("after {done} frames of seed {seed}: {}", hex(&frame));
            bench.compare_at_once(&frame).with_context(before)?;
            done += 1;
        }
        if done >= next_change {
            next_change = done + CHANGE_EVERY;
            bench
                .disturb(disturbance(&mut changes)?)
                .with_context(|| format!("after {done} frames of seed {seed}"))?;
        }
    }
    let recorded = bench.compare_flows()?;
    let counted = bench.compare_counters()?;
    println!(
        "kernel: {done} frames in {sequences} sequences of seed {seed}, {} of them kept ones: 0 differences in {:?}; {} drop reasons, {} kinds of answers, {recorded} flows recorded at the end",
        inputs.len(),
        start.elapsed(),
        counted.drops.len(),
        counted.answers.len()
    );
    Ok(())
}
