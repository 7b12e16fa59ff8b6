//! `cargo xtask bench control`: how long changes take, from the agent's decision to the packet that
//! is steered by it.

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::bench::{
    control, one_processor,
    report::{Format, control_table},
};

#[derive(Parser)]
struct Cli {
    /// A table for people, or JSON for machines
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Fewer times, and smaller flow tables
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    one_processor()?;
    let latencies = control::run(cli.quick, &cli.filter)?;
    ensure!(
        !latencies.is_empty(),
        "no scenario's name contains `{}`",
        cli.filter
    );
    println!("{}", cli.format.show(&latencies, control_table)?);
    let exceeded = control::bounds::exceeded(&latencies, cli.quick);
    ensure!(exceeded.is_empty(), "too slow: {}", exceeded.join("; "));
    Ok(())
}
