//! What the command line takes, and its help.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_common::wire;
use lb_userspace::instance;

/// The load balancer's agent.
#[derive(Parser)]
#[command(
    name = "lbd",
    version,
    after_help = "Stopping `lbd run` keeps traffic going on the pinned program; `lbd detach` takes it away.\n\
                  Exit codes: 0 ok; 1 failure; 2 wrong usage."
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Attach to the interfaces and balance, until stopped
    Run(Run),
    /// Check a configuration file, and say every mistake in it
    Check {
        /// The configuration file
        #[arg(long)]
        config: PathBuf,
    },
    /// Take the program and everything pinned away
    Detach(Detach),
    /// On a backend: unwrap packets of modes `ipip` and `gue`, until called with `--detach`
    Decap(Decap),
}

#[derive(Args)]
pub struct Run {
    /// Configuration file (TOML)
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Interface to attach to, instead of the configuration's; may be repeated
    #[arg(long)]
    pub interface: Vec<String>,
    /// Name of this instance, after which pins, socket and kept state are named
    #[arg(long, value_parser = instance::parse_name)]
    pub name: Option<String>,
    /// Socket of the API [default: /run/lbd/NAME.sock]
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Address to serve Prometheus metrics on
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// Address of the port that backends report to, by UDP or HTTP, for checks of type heartbeat
    #[arg(long)]
    pub heartbeat: Option<SocketAddr>,
    /// How to attach
    #[arg(long, value_enum, default_value_t = Attach::Auto)]
    pub mode: Attach,
    /// Where the BPF file system is mounted
    #[arg(long, default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Log of the XDP program: costs every packet that is logged
    #[arg(long, value_enum, default_value_t = LogLevel::Off)]
    pub bpf_log: LogLevel,
    /// Only check the configuration
    #[arg(long)]
    pub check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// By the driver, or else, with a warning, by the network stack
    Auto,
    /// By the driver, or not at all
    Native,
    /// By the network stack
    Generic,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum LogLevel {
    /// Nothing, at no cost
    Off = 0,
    /// Dropped packets
    Debug = 4,
    /// Every packet that is ours
    Trace = 5,
}

#[derive(Args)]
pub struct Detach {
    /// Name of the instance
    #[arg(long, value_parser = instance::parse_name, default_value = instance::DEFAULT)]
    pub name: String,
    /// Its socket [default: /run/lbd/NAME.sock]
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Where the BPF file system is mounted
    #[arg(long, default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

#[derive(Args)]
pub struct Decap {
    /// Interface that tunnelled packets come in by
    #[arg(long)]
    pub interface: String,
    /// Address that they are sent to [default: every address of the interface]
    #[arg(long)]
    pub address: Vec<IpAddr>,
    /// UDP port that packets of mode `gue` are sent to
    #[arg(long, default_value_t = wire::GUE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub gue_port: u16,
    /// Hand packets of TCP connections that this host does not know on to the backend that a service with `second_hop` names
    #[arg(long)]
    pub second_hop: bool,
    /// Tell what the decapsulator has unwrapped, handed on and dropped
    #[arg(long, conflicts_with_all = ["detach", "second_hop"])]
    pub counters: bool,
    /// Take the decapsulator away
    #[arg(long)]
    pub detach: bool,
    /// Attach by the network stack, for drivers without native XDP
    #[arg(long)]
    pub generic: bool,
    /// Where the BPF file system is mounted
    #[arg(long, default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}
