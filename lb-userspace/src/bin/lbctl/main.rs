//! `lbctl`, the command line: a thin client of the agent's API, with a file per noun.
//!
//! It decides nothing about services; it reads arguments, asks the agent and shows the answer.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser as _, error::ErrorKind};
use lb_userspace::api::client::Client;

use crate::{
    args::{Cli, Noun},
    failure::Failure,
};

mod access;
mod announce;
mod args;
mod backend;
mod completions;
mod drain;
mod events;
mod failover;
mod failure;
mod flows;
mod output;
mod patience;
mod service;
mod status;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli).and_then(|text| output::print(&text)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What the command prints.
fn run(cli: &Cli) -> Result<String, Failure> {
    if let Noun::Completions { shell } = cli.noun {
        return Ok(completions::script(shell));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(Failure::Local)?.block_on(ask(cli))
}

async fn ask(cli: &Cli) -> Result<String, Failure> {
    let client = Client::new(cli.socket());
    match &cli.noun {
        Noun::Status => status::show(&client, cli.output).await,
        Noun::Service { verb } => service::run(&client, verb, cli.output).await,
        Noun::AccessList { verb } => access::run(&client, verb, cli.output).await,
        Noun::Backend { verb } => backend::run(&client, verb, cli.output).await,
        Noun::Failover { id, to } => failover::to(&client, *id, *to, cli.output).await,
        Noun::Failback { id } => failover::back(&client, *id, cli.output).await,
        Noun::Announce { vip } => announce::run(&client, *vip, cli.output).await,
        Noun::Events(args) => events::run(&client, args, cli.output).await,
        Noun::Flows(args) => flows::run(&client, args, cli.output).await,
        Noun::Completions { shell } => Ok(completions::script(*shell)),
    }
}

/// Help, or a mistake in the arguments. What is wrong with a value fits one line; clap's longer
/// texts are for mistakes of form.
fn usage(error: &clap::Error) -> ExitCode {
    if let ErrorKind::ValueValidation | ErrorKind::InvalidValue = error.kind() {
        let text = error.render().to_string();
        let lines = text
            .lines()
            .map(str::trim)
            .take_while(|line| !line.is_empty());
        let line = lines.collect::<Vec<_>>().join(" ");
        complain(line.strip_prefix("error: ").unwrap_or(&line));
    } else {
        // A closed pipe is no reason to fail: nobody is left to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE))
}

fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "error: {message}");
}
