//! The verb `run`: the playground, or the agent on a NIC.
//! Sets up, builds, then becomes the program, so that signals reach it.

use std::process::{Command, ExitCode};

use anyhow::Result;
use nix::unistd::geteuid;

use crate::build;
use crate::invocation::quoted;
use crate::outcome::become_program;
use crate::project::Project;
use crate::setup::{self, Blocked, Need};

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// Passed on: to the agent if `--interface NIC` is among them, else to the playground
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    pub passed_on: Vec<String>,
}

/// What is started.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Playground,
    Nic,
}

impl Mode {
    fn of(arguments: &[String]) -> Self {
        let names_nic =
            |argument: &String| argument == "--interface" || argument.starts_with("--interface=");
        if arguments.iter().any(names_nic) {
            Self::Nic
        } else {
            Self::Playground
        }
    }

    fn needs(&self) -> &'static [Need] {
        match self {
            Self::Playground => setup::RUN,
            Self::Nic => setup::LOAD,
        }
    }
}

/// Sets up, builds and starts.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    require_root("run", &arguments.passed_on)?;
    let mode = Mode::of(&arguments.passed_on);
    let facts = setup::ensure(project, mode.needs())?;
    build::everything(project, setup::toolchain_of(&facts)?)?;
    let programs = project.metadata()?.release_bin()?;
    let mut command = match mode {
        Mode::Playground => Command::new(programs.join("playground")),
        Mode::Nic => {
            let mut agent = Command::new(programs.join("lbd"));
            agent.arg("run");
            agent
        }
    };
    command.args(&arguments.passed_on);
    let what = command.get_program().display().to_string();
    become_program(&mut command, &what)
}

/// Loading programs and making namespaces take root; says how to get it.
pub fn require_root(verb: &str, arguments: &[String]) -> Result<(), Blocked> {
    if geteuid().is_root() {
        return Ok(());
    }
    let mut line = format!("sudo --preserve-env=PATH cargo xtask {verb}");
    if !arguments.is_empty() {
        let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        line += &format!(" -- {}", words.join(" "));
    }
    let reason = format!("`{verb}` loads BPF programs, which takes root");
    Err(Blocked {
        reason,
        lines: vec![line],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(arguments: &[&str]) -> Mode {
        Mode::of(
            &arguments
                .iter()
                .map(|a| (*a).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn interface_argument_selects_the_agent() {
        assert_eq!(mode(&["--interface", "eth1"]), Mode::Nic);
        assert_eq!(
            mode(&["--config", "lb.toml", "--interface=eth1"]),
            Mode::Nic
        );
        assert_eq!(mode(&[]), Mode::Playground);
        assert_eq!(mode(&["--backends", "5"]), Mode::Playground);
    }

    #[test]
    fn attaching_to_a_nic_installs_no_network_tools() {
        assert!(!Mode::Nic.needs().contains(&Need::NetworkTools));
    }
}
