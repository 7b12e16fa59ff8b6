//! The benchmarks `packet`, `control` and `checks`: what they measure, and how. Their programs only read
//! arguments.
//!
//! [`scenario`] lists what is measured of the packet path, [`frame`] lays its frames out and
//! [`services`] its services; [`harness`] runs frames through a program in the kernel, [`balancer`] is
//! the product, [`backend`] the other end of its tunnels, [`network`] what both are in, [`rig`] brings it into a scenario's state, [`measure`] verifies and times, [`claim`] judges,
//! [`report`] shows, and [`packet`] joins them.
//! [`control`] measures the agent's core over the same maps. Nothing of these attaches to an interface or sends a packet.
//! [`checks`] runs the checker over the loopback.

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

pub mod backend;
pub mod balancer;
pub mod checks;
pub mod claim;
pub mod control;
pub mod frame;
pub mod harness;
pub mod measure;
pub mod network;
pub mod packet;
pub mod report;
pub mod rig;
pub mod scenario;
pub mod services;

/// Keeps this thread on the first processor, whose caches and per-CPU maps then see every run.
///
/// # Errors
/// The kernel refuses.
pub fn one_processor() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).context("staying on one processor")
}
