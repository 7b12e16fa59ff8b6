//! `cargo xtask bench checks`: how punctual 10,000 checks a second are, and what they cost.

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::bench::{
    checks,
    report::{Format, checks_table},
};

#[derive(Parser)]
struct Cli {
    /// A table for people, or JSON for machines
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// For five seconds each
    #[arg(long)]
    quick: bool,
    /// Only kinds of checks whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let figures = checks::run(cli.quick, &cli.filter)?;
    ensure!(
        !figures.is_empty(),
        "no kind's name contains `{}`",
        cli.filter
    );
    println!("{}", cli.format.show(&figures, checks_table)?);
    let exceeded = checks::exceeded(&figures, cli.quick);
    ensure!(exceeded.is_empty(), "too late: {}", exceeded.join("; "));
    Ok(())
}
