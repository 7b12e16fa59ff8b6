//! The harness in the kernel, `lb-ebpf/src/bench.rs`, from the host's side: sets the frame, aims at a
//! program and runs it by `BPF_PROG_TEST_RUN`. Judges nothing.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};

use super::frame::{FRONT, Frame};

/// Numbers of XDP actions.
pub mod action {
    /// The packet is gone.
    pub const DROP: u32 = 1;
    /// On to the network stack.
    pub const PASS: u32 = 2;
    /// Out of the interface that it came in by.
    pub const TX: u32 = 3;
    /// Out of another one.
    pub const REDIRECT: u32 = 4;
}

/// The interface that a test run's frames come in by: the loopback.
pub const INGRESS: u32 = 1;
/// Bytes of the harness' template: four words, and the longest frame.
const TEMPLATE: usize = 16 + 80;
/// Bytes of its shapes: six words, and the longest front.
const SHAPE: usize = 24 + FRONT;
/// Room for what programs add.
const MOST_ADDED: usize = 256;

/// What the harness calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A program that does nothing but return `XDP_TX`.
    Noop,
    /// One that swaps the MAC addresses first.
    SwapMacs,
    /// The load balancer.
    Product,
}

/// What came of some runs.
#[derive(Debug)]
pub struct Run {
    /// The XDP action of the last.
    pub action: u32,
    /// The frame that came out of it.
    pub frame: Vec<u8>,
    /// Nanoseconds that each took, harness included. The kernel divides by their number itself, and
    /// cuts off what is left of a nanosecond.
    pub ns: f64,
}

/// The loaded harness.
pub struct Harness {
    ebpf: Ebpf,
    noop: ProgramFd,
    swap_macs: ProgramFd,
    product: ProgramFd,
    /// What a test run starts with; the harness writes over it.
    first: Vec<u8>,
    /// The program that restores it.
    restores: &'static str,
    runs: u64,
}

/// What restores frames of the usual two shapes, and what those of any.
const PLAIN: &str = "restore";
const ANY: &str = "restore_any";

impl Harness {
    /// Loads it, to run `product`.
    ///
    /// # Errors
    /// It is not built, or the kernel refuses it.
    pub fn new(product: ProgramFd) -> Result<Self> {
        let object = fs::read(object()?)?;
        let mut ebpf = EbpfLoader::new().load(&object)?;
        for name in [PLAIN, ANY] {
            program(&mut ebpf, name)?.load()?;
        }
        let mut load = |name| -> Result<ProgramFd> {
            let program = program(&mut ebpf, name)?;
            program.load()?;
            Ok(program.fd()?.try_clone()?)
        };
        let (noop, swap_macs) = (load("noop")?, load("swap_macs")?);
        Ok(Self {
            ebpf,
            noop,
            swap_macs,
            product,
            first: Vec::new(),
            restores: PLAIN,
            runs: 0,
        })
    }

    /// Sets what [`Target::Product`] is.
    pub fn set_product(&mut self, product: ProgramFd) {
        self.product = product;
    }

    /// Sets the frame that every run starts with.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_frame(&mut self, frame: &Frame) -> Result<()> {
        self.first.clone_from(&frame.bytes);
        if !frame.is_plain() {
            self.restores = ANY;
            return self.set_shape(frame);
        }
        self.restores = PLAIN;
        let words = [
            frame.bytes.len() as u32,
            frame.flows,
            frame.destinations,
            u32::from(frame.port()),
        ];
        let template: [u8; TEMPLATE] = laid_out(&words, &frame.bytes);
        let map = self.ebpf.map_mut("TEMPLATE").context("TEMPLATE")?;
        Array::<_, [u8; TEMPLATE]>::try_from(map)?.set(0, template, 0)?;
        Ok(())
    }

    fn set_shape(&mut self, frame: &Frame) -> Result<()> {
        let front = frame.front();
        let words = [
            frame.bytes.len() as u32,
            front.len() as u32 - 1,
            frame.flows,
            u32::from(frame.port()),
            frame.flow_at as u32,
            frame.port_at as u32,
        ];
        let shape: [u8; SHAPE] = laid_out(&words, front);
        let map = self.ebpf.map_mut("SHAPE").context("SHAPE")?;
        Array::<_, [u8; SHAPE]>::try_from(map)?.set(0, shape, 0)?;
        Ok(())
    }

    /// The number of the next run, which says what flow its frame is of ([`Frame::at`]).
    pub fn next_run(&self) -> u64 {
        self.runs
    }

    /// Sets the number of the next run.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_next_run(&mut self, run: u64) -> Result<()> {
        self.set_on_all("RUNS", run)?;
        self.runs = run;
        Ok(())
    }

    fn set_on_all(&mut self, name: &str, value: u64) -> Result<()> {
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        let map = self.ebpf.map_mut(name).with_context(|| name.to_owned())?;
        let values = PerCpuValues::try_from(vec![value; cpus])?;
        Ok(PerCpuArray::<_, u64>::try_from(map)?.set(0, values, 0)?)
    }

    /// Whether the kernel keeps statistics of every program's run time, which makes every run longer:
    /// by `kernel.bpf_stats_enabled`, or for a process that asked for it.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn is_watched(&mut self) -> Result<bool> {
        let mut ran = 0;
        for name in [PLAIN, ANY] {
            ran += program(&mut self.ebpf, name)?.info()?.run_count();
        }
        Ok(ran > 0)
    }

    /// Runs a program over so many frames. The caller stays on one processor: runs are numbered on
    /// each for itself.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn run(&mut self, target: Target, repeat: u32) -> Result<Run> {
        let target = match target {
            Target::Noop => &self.noop,
            Target::SwapMacs => &self.swap_macs,
            Target::Product => &self.product,
        };
        let map = self.ebpf.map_mut("TARGET").context("TARGET")?;
        ProgramArray::try_from(map)?.set(0, target, 0)?;
        if self.restores == ANY {
            self.set_on_all("ORIGIN", 0)?;
        }
        let mut frame = vec![0; self.first.len() + MOST_ADDED];
        let result = program(&mut self.ebpf, self.restores)?
            .test_run(TestRunOptions {
                data_in: Some(&self.first),
                data_out: Some(&mut frame),
                repeat,
                ..TestRunOptions::default()
            })
            .context("BPF_PROG_TEST_RUN")?;
        self.runs += u64::from(repeat);
        frame.truncate(result.data_size_out as usize);
        Ok(Run {
            action: result.return_value,
            frame,
            ns: result.duration.as_nanos() as f64,
        })
    }
}

/// Words, and bytes behind them, with zeros to the end.
fn laid_out<const LENGTH: usize>(words: &[u32], bytes: &[u8]) -> [u8; LENGTH] {
    let mut whole = [0u8; LENGTH];
    for (place, word) in whole.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let rest = &mut whole[4 * words.len()..];
    rest[..bytes.len()].copy_from_slice(bytes);
    whole
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    Ok(program
        .with_context(|| format!("bench.o has no program {name}"))?
        .try_into()?)
}

fn object() -> Result<PathBuf> {
    let executable = env::current_exe()?;
    let found = executable
        .ancestors()
        .map(|folder| folder.join("bpf-objects/bench.o"))
        .find(|path| path.exists());
    found.context("bpf-objects/bench.o is not built: run `cargo xtask build`")
}
