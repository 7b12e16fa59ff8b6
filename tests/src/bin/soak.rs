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
};
use tokio::signal::unix::{SignalKind, signal};

const EXIT_INTERRUPTED: u8 = 130;
/// The share of connections that is churned every second.
const CHURN_PERCENT: usize = 3;

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
    /// Connections to hold [default: 10000, with --quick 1000]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Changes to make [default: 200, with --quick 25]
    #[arg(long, value_name = "N")]
    changes: Option<usize>,
    /// Make changes of these kinds only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    only: Vec<Kind>,
    /// Connections to close and open again every second [default: 3 % of those held]
    #[arg(long, value_name = "N")]
    churn: Option<usize>,
    /// From one change to the next, in milliseconds, on average; some come in bursts
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pace: u64,
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
        let or = |given: Option<usize>, full, quick| {
            given.unwrap_or(if self.quick { quick } else { full })
        };
        let connections = or(self.connections, 10_000, 1_000);
        let churn = (connections * CHURN_PERCENT / 100).min(soak::client::Load::most_churn());
        Options {
            connections,
            churn: self.churn.unwrap_or(churn),
            changes: or(self.changes, 200, 25),
            only: self.only.clone(),
            pace: Duration::from_millis(self.pace),
            // Small enough for every reader of JSON.
            seed: self.seed.unwrap_or_else(|| fastrand::u32(..).into()),
            flow_state: self.flow_state,
            flows: self.flows,
        }
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
