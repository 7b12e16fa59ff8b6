//! What a run costs in processor time: of processes, from `/proc`, and of the XDP program, from
//! the kernel's own statistics of it. Reads; never decides.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use aya::{
    programs::{ProgramFd, loaded_programs},
    sys::{Stats, enable_stats},
};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use crate::{netns::Namespace, process::run, topology::INTERFACE};

/// Processor time.
pub type Seconds = f64;

/// User and system time of process `pid` and its threads so far; 0 once it is gone.
pub fn of_process(pid: u32) -> Seconds {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .ok()
        .and_then(|stat| ticks_of(&stat))
        .map_or(0.0, |ticks| ticks as f64 / ticks_a_second())
}

/// `utime` + `stime` of a line of `/proc/PID/stat`, proc(5).
fn ticks_of(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything; what follows starts with field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(14 - 3);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn ticks_a_second() -> f64 {
    match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) => ticks as f64,
        // Linux's, on every architecture that it runs on today.
        _ => 100.0,
    }
}

/// What an XDP program has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgramCost {
    /// Nanoseconds in it.
    pub nanos: u64,
    /// Packets.
    pub runs: u64,
}

impl ProgramCost {
    fn plus(self, other: Self) -> Self {
        Self {
            nanos: self.nanos + other.nanos,
            runs: self.runs + other.runs,
        }
    }
}

/// Follows the program on the interface of a namespace through its replacements.
#[derive(Debug)]
pub struct ProgramMeter {
    namespace: Namespace,
    /// Keeps the kernel counting.
    _statistics: OwnedFd,
    /// The present one. Holding it keeps its figures until they are read.
    present: Option<(u32, ProgramFd)>,
    past: ProgramCost,
}

impl ProgramMeter {
    /// Turns the kernel's statistics on, for as long as this lives.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let statistics = enable_stats(Stats::RunTime).context("turning BPF statistics on")?;
        let mut meter = Self {
            namespace: namespace.clone(),
            _statistics: statistics,
            present: None,
            past: ProgramCost::default(),
        };
        meter.follow()?;
        Ok(meter)
    }

    /// Finds the program, if it was replaced.
    ///
    /// # Errors
    /// The interface cannot be asked.
    pub fn follow(&mut self) -> Result<()> {
        let id = attached(&self.namespace)?;
        if id == self.present.as_ref().map(|(id, _)| *id) {
            return Ok(());
        }
        self.past = self.cost()?;
        self.present = None;
        for program in loaded_programs() {
            let program = program.context("listing BPF programs")?;
            if Some(program.id()) == id {
                self.present = Some((program.id(), program.fd()?));
            }
        }
        Ok(())
    }

    /// What all have cost so far.
    ///
    /// # Errors
    /// The kernel's figures cannot be read.
    pub fn cost(&self) -> Result<ProgramCost> {
        let Some((_, program)) = &self.present else {
            return Ok(self.past);
        };
        let file = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        let present = cost_of(&text).with_context(|| format!("{file} lacks run times"))?;
        Ok(self.past.plus(present))
    }
}

/// The figures in what the kernel says of a program's descriptor.
fn cost_of(fdinfo: &str) -> Option<ProgramCost> {
    let field = |name: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().parse().ok()
    };
    Some(ProgramCost {
        nanos: field("run_time_ns")?,
        runs: field("run_cnt")?,
    })
}

/// The id of the XDP program on the interface of `namespace`.
fn attached(namespace: &Namespace) -> Result<Option<u32>> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace.name(), "-json", "link", "show", INTERFACE]);
    let links: Value = serde_json::from_str(&run(&mut command)?).context("`ip -json link`")?;
    let id = links[0]["xdp"]["prog"]["id"].as_u64();
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_after_a_name_with_blanks_and_parentheses() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 70 30 5 5 20 0 1 0";
        assert_eq!(ticks_of(stat), Some(100));
        assert_eq!(ticks_of("42 (cut"), None);
    }

    #[test]
    fn this_process_has_used_some_time_and_one_that_is_not_there_none() {
        let mut sum = 0_u64;
        while of_process(std::process::id()) == 0.0 {
            sum = std::hint::black_box(sum + 1);
        }
        assert_eq!(of_process(u32::MAX), 0.0);
    }

    #[test]
    fn run_times_are_read_from_the_descriptors_lines() {
        let text = "pos:\t0\nprog_id:\t7\nrun_time_ns:\t1234\nrun_cnt:\t5\n";
        let cost = ProgramCost {
            nanos: 1_234,
            runs: 5,
        };
        assert_eq!(cost_of(text), Some(cost));
        assert_eq!(cost_of("prog_id:\t7\n"), None);
    }
}
