//! The arguments and their help. Values are read by the model's own parsers, so that a bad address
//! is refused before anyone is asked.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lb_userspace::{
    api::dto::{Check, NewBackend},
    duration, instance,
    model::{self, Admin, MAX_WEIGHT, ModelError, ServiceId},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  internal error, or an answer that makes no sense
  2  wrong arguments
  3  no agent answers (not running, stopping, or its socket may not be used)
  4  no such service or backend
  5  refused: invalid, in conflict with what is there, or no room; nothing changed

A service is written ADDRESS:PORT/PROTOCOL, as 10.0.0.1:80/tcp or [2001:db8::1]:443/udp.
Every change is in force in the kernel when the command returns.";

/// Shows and changes a running load balancer (lbd).
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// The agent's socket; by default that of the instance `--name`
    #[arg(long, global = true, env = "LBCTL_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The agent's instance, whose socket is /run/lbd/NAME.sock; goes before --socket
    #[arg(long, global = true, value_name = "NAME", value_parser = instance::parse_name)]
    name: Option<String>,
    /// Tables for people, or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// What it is about.
    #[command(subcommand)]
    pub noun: Noun,
}

impl Cli {
    /// The socket to ask.
    pub fn socket(&self) -> PathBuf {
        match (&self.name, &self.socket) {
            (Some(name), _) => instance::socket_path(name),
            (None, Some(socket)) => socket.clone(),
            (None, None) => instance::socket_path(instance::DEFAULT),
        }
    }
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns
    Table,
    /// The API's JSON
    Json,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Show the agent: interfaces, backends by condition, drops
    Status,
    /// List, show, add and remove services
    Service {
        /// What to do.
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// List, add, remove, drain and weigh backends
    Backend {
        /// What to do.
        #[command(subcommand)]
        verb: BackendVerb,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// What can be done to services.
#[derive(Debug, Subcommand)]
pub enum ServiceVerb {
    /// List all services
    List,
    /// Show one service and its backends
    Show {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SERVICE")]
        id: ServiceId,
    },
    /// Add a service
    Add(Box<AddService>),
    /// Remove a service and its backends
    Remove {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SERVICE")]
        id: ServiceId,
    },
}

/// A service to add.
#[derive(Debug, Args)]
pub struct AddService {
    /// ADDRESS:PORT/PROTOCOL
    #[arg(value_name = "SERVICE")]
    pub id: ServiceId,
    /// How packets reach the backends: rewritten (nat) or encapsulated (ipip)
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// Slots of the ring, one of the primes that `lbctl` names when refusing; chosen if absent
    #[arg(long, value_name = "N")]
    pub ring_size: Option<u32>,
    /// A backend; may be given more than once
    #[arg(long = "backend", value_name = "ADDRESS:PORT[,weight=N]", value_parser = parse_backend)]
    pub backends: Vec<NewBackend>,
    /// How its backends are checked.
    #[command(flatten)]
    pub health: HealthArgs,
}

/// How a service's backends are checked.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Health checks")]
pub struct HealthArgs {
    /// What is asked of a backend
    #[arg(long = "health", value_enum, default_value_t = Probe::Tcp)]
    pub check: Probe,
    /// Path of an HTTP check [default: /]
    #[arg(long = "health-path", value_name = "PATH")]
    pub path: Option<String>,
    /// Host header of an HTTP check [default: the backend's address]
    #[arg(long = "health-host", value_name = "HOST")]
    pub host: Option<String>,
    /// Port checked [default: the backend's]
    #[arg(long = "health-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Time between checks, as 500ms or 2s [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub interval: Option<u64>,
    /// Time after which a check has failed [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub timeout: Option<u64>,
    /// Successes in a row that make a backend up [default: 2]
    #[arg(long, value_name = "N")]
    pub rise: Option<u32>,
    /// Failures in a row that make a backend down [default: 3]
    #[arg(long, value_name = "N")]
    pub fall: Option<u32>,
}

/// What can be done to backends.
#[derive(Debug, Subcommand)]
pub enum BackendVerb {
    /// List the backends of one service, or of all
    List {
        /// ADDRESS:PORT/PROTOCOL
        service: Option<ServiceId>,
    },
    /// Add a backend
    Add {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// Its share relative to the others
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = weight())]
        weight: u16,
    },
    /// Remove a backend; its flows go to others
    Remove {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Give a backend no new flows
    Drain {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Give a drained backend new flows again
    Undrain {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Set a backend's share relative to the others
    Weight {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// 0 to 1000
        #[arg(value_parser = weight())]
        weight: u16,
    },
}

/// A backend of a service.
#[derive(Debug, Clone, Copy, Args)]
pub struct Target {
    /// ADDRESS:PORT/PROTOCOL
    pub service: ServiceId,
    /// ADDRESS:PORT
    #[arg(value_name = "BACKEND", value_parser = model::Backend::parse_address)]
    pub address: SocketAddr,
}

/// [`model::Mode`] as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Destination rewritten; answers return through the balancer
    Nat,
    /// Encapsulated; the backend answers the client directly
    Ipip,
}

impl From<Mode> for model::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Nat => Self::Nat,
            Mode::Ipip => Self::Ipip,
        }
    }
}

/// [`Check`] as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// A TCP connection is accepted
    Tcp,
    /// GET answers with a status in the 200s or 300s
    Http,
    /// Never checked, always up
    None,
}

impl From<Probe> for Check {
    fn from(probe: Probe) -> Self {
        match probe {
            Probe::Tcp => Self::Tcp,
            Probe::Http => Self::Http,
            Probe::None => Self::None,
        }
    }
}

fn weight() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=i64::from(MAX_WEIGHT))
}

fn parse_millis(text: &str) -> Result<u64, String> {
    let millis = u64::try_from(duration::parse(text)?.as_millis());
    millis.map_err(|_| format!("`{text}` is too long: at most 1h"))
}

fn parse_backend(text: &str) -> Result<NewBackend, String> {
    let (address, options) = text.split_once(',').unwrap_or((text, ""));
    let address = model::Backend::parse_address(address).map_err(|e: ModelError| e.to_string())?;
    let weight = match options.strip_prefix("weight=") {
        Some(weight) => weight.parse().ok().filter(|weight| *weight <= MAX_WEIGHT),
        None if options.is_empty() && !text.ends_with(',') => Some(1),
        None => None,
    };
    let weight = weight.ok_or_else(|| {
        format!("`{options}` is not an option of a backend: write weight=N, with N from 0 to {MAX_WEIGHT}")
    })?;
    let state = Admin::Active;
    Ok(NewBackend {
        address,
        weight,
        state,
    })
}
