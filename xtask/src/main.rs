//! The project's commands: `cargo xtask setup | build | run | test | vm | soak | bench | fuzz | coverage | ci`.
//!
//! Owns everything between a fresh clone and a running program: tools, the BPF objects, the host
//! build, and starting what was built. Never holds logic of the load balancer itself.
//!
//! Every message goes to standard error; standard output belongs to the program that is run.
//!
//! Exit codes: 0 ok; 1 failure; 2 wrong usage; 3 set-up is needed that this command cannot do
//! itself, in which case the commands to run are printed. `run`, `soak` and `bench` become the program
//! they start and exit with its code.

mod bench;
mod build;
mod ci;
mod coverage;
mod fuzz;
mod invocation;
mod outcome;
mod program;
mod project;
mod run;
mod setup;
mod soak;
mod stand_in;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::project::Project;
use crate::setup::Blocked;

const EXIT_SETUP_NEEDED: u8 = 3;

/// The project's commands. Each installs what it lacks (Debian, as root) and says so.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Exit codes: 0 ok; 1 failure; 2 wrong usage; 3 set-up is needed that this command \
                  cannot do itself (the commands to run are printed)."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the other commands need
    Setup,
    /// Build the BPF objects and, with them embedded, the programs
    Build,
    /// Start the playground, or attach to a NIC with `--interface NIC [--config FILE]`
    Run(run::Arguments),
    /// Run all tests; arguments go to cargo-nextest
    Test(test::Arguments),
    /// Run tests on another kernel, in a virtual machine
    Vm(vm::Arguments),
    /// Hold connections over changes of every kind, and count those that break
    Soak(soak::Arguments),
    /// Run a benchmark, or all of them
    Bench(bench::Arguments),
    /// Look for frames that host and kernel treat differently, or wrongly
    Fuzz(fuzz::Arguments),
    /// Say which lines and branches of the packet path the fuzzer's inputs and its own tests reach
    Coverage(coverage::Arguments),
    /// Run every check a change has to pass
    Ci(ci::Arguments),
}

fn main() -> ExitCode {
    if let Some(error) = stand_in::stand_in() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    match dispatch(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Blocked>() {
                ExitCode::from(EXIT_SETUP_NEEDED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    let project = Project::locate()?;
    match verb {
        Verb::Setup => setup::run(&project),
        Verb::Build => build::run(&project),
        Verb::Run(arguments) => run::run(&project, &arguments),
        Verb::Test(arguments) => test::run(&project, &arguments),
        Verb::Vm(arguments) => vm::run(&project, &arguments),
        Verb::Soak(arguments) => soak::run(&project, &arguments),
        Verb::Bench(arguments) => bench::run(&project, &arguments),
        Verb::Fuzz(arguments) => fuzz::run(&project, &arguments),
        Verb::Coverage(arguments) => coverage::run(&project, &arguments),
        Verb::Ci(arguments) => ci::run(&project, &arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn trailing_arguments_are_taken_with_and_without_separator() {
        for line in [
            &["x", "run", "--interface", "eth1"][..],
            &["x", "run", "--", "--interface", "eth1"],
        ] {
            let Verb::Run(arguments) = Arguments::try_parse_from(line).unwrap().verb else {
                panic!("not parsed as run");
            };
            assert_eq!(arguments.passed_on, ["--interface", "eth1"]);
        }
    }

    #[test]
    fn options_of_the_soak_are_passed_on() {
        let line = ["x", "soak", "--quick", "--flow-state", "ring-only"];
        let Verb::Soak(arguments) = Arguments::try_parse_from(line).unwrap().verb else {
            panic!("not parsed as soak");
        };
        assert_eq!(arguments.passed_on, line[2..]);
    }
}
