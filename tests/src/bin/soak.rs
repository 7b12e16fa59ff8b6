//! `cargo xtask soak`: connections held over changes of every kind.
//!
//! Exit codes: 0 no connection broke whose backend lived; 1 one did (unless the flow state is
//! `ring-only`, where they do), or the run failed; 2 wrong usage; 130 interrupted.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_tests::soak::{
    self, Options,
    echo_server::{self, serve},
    flow_state::FlowState,
    plan::Kind,
    report::Report,
    stage::Size,
};
use tokio::signal::unix::{SignalKind, signal};

const EXIT_INTERRUPTED: u8 = 130;
/// The share of connections that is churned every second.
const CHURN_PERCENT: usize = 1;

/// Holds connections through a balancer while everything about it changes, and counts those that
/// break although their backend lives.
#[derive(Parser)]
#[command(name = "soak", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Be a backend
    #[command(hide = true)]
    Server(echo_server::Options),
}

#[derive(Args)]
struct Arguments {
    /// Connections that stand at any time [default: 10000, with --quick 1000]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// How many of a hundred live for the whole run
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(..=100))]
    held: u8,
    /// How long the others live on average, in seconds, before another takes their place
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    lifetime: u64,
    /// Services [default: 20, with --quick 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=99))]
    services: Option<u8>,
    /// Backends, six of which each service begins with [default: 30, with --quick 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(4..=99))]
    backends: Option<u8>,
    /// Changes to make [default: 200, with --quick 25]
    #[arg(long, value_name = "N")]
    changes: Option<usize>,
    /// Make changes of these kinds only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    only: Vec<Kind>,
    /// Change schedulers too: most of them record every flow, so that entries say little then
    #[arg(long, conflicts_with = "only")]
    schedulers: bool,
    /// Connections to close and open again from the same ports every second, beside the others
    /// [default: 1 % of them]
    #[arg(long, value_name = "N")]
    churn: Option<usize>,
    /// From one change to the next, in milliseconds, on average; some come in bursts,
    /// where that is less than 20,000
    /// [default: 2000, with --quick 500]
    #[arg(long, value_name = "MS")]
    pace: Option<u64>,
    /// Gives the same changes again [default: a new one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Where the balancer remembers flows
    #[arg(long, value_enum, default_value_t = FlowState::Auto)]
    flow_state: FlowState,
    /// Room in each flow table [default: the balancer's]
    #[arg(long, value_name = "N")]
    flows: Option<u32>,
    /// Fewer connections and changes: a minute
    #[arg(long)]
    quick: bool,
    /// A table for people, or JSON for machines
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Arguments {
    fn options(&self) -> Options {
        let connections = self.or(self.connections, 10_000, 1_000);
        let churn = (connections * CHURN_PERCENT / 100).min(soak::client::Load::most_churn());
        Options {
            size: Size {
                services: self.or(self.services, 20, 4),
                backends: self.or(self.backends, 30, 8),
            },
            connections,
            held: connections * usize::from(self.held) / 100,
            lifetime: Duration::from_secs(self.lifetime),
            churn: self.churn.unwrap_or(churn),
            changes: self.or(self.changes, 200, 25),
            kinds: self.kinds(),
            pace: Duration::from_millis(self.or(self.pace, 2_000, 500)),
            // Small enough for every reader of JSON.
            seed: self.seed.unwrap_or_else(|| fastrand::u32(..).into()),
            flow_state: self.flow_state,
            flows: self.flows,
        }
    }
}

impl Arguments {
    fn or<T>(&self, given: Option<T>, full: T, quick: T) -> T {
        given.unwrap_or(if self.quick { quick } else { full })
    }

    fn kinds(&self) -> Vec<Kind> {
        if !self.only.is_empty() {
            return self.only.clone();
        }
        Kind::all()
            .filter(|&kind| self.schedulers || kind != Kind::Scheduler)
            .collect()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.role {
        Some(Role::Server(options)) => serve(options).await.map(|()| ExitCode::SUCCESS),
        None => run(&cli.arguments).await,
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let options = arguments.options();
    tokio::select! {
        report = soak::run(&options) => tell(&report?, arguments.format),
        _ = terminate.recv() => Ok(interrupted()),
        _ = tokio::signal::ctrl_c() => Ok(interrupted()),
    }
}

fn interrupted() -> ExitCode {
    eprintln!("interrupted: everything is removed");
    ExitCode::from(EXIT_INTERRUPTED)
}

fn tell(report: &Report, format: Format) -> Result<ExitCode> {
    match format {
        Format::Table => print!("{report}"),
        Format::Json => println!("{}", serde_json::to_string_pretty(report)?),
    }
    Ok(match report.passed() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
