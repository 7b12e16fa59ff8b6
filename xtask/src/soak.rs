//! The verb `soak`: connections held through a balancer over changes of every kind.
//! Sets up, builds, then becomes the program, so that signals reach it and its exit code is ours.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::build;
use crate::outcome::become_program;
use crate::project::Project;
use crate::run::require_root;
use crate::setup;

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// Passed on, such as `--quick --format json`; `-- --help` lists them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    pub passed_on: Vec<String>,
}

/// Sets up, builds and starts.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    require_root("soak", &arguments.passed_on)?;
    let facts = setup::ensure(project, setup::RUN)?;
    build::everything(project, setup::toolchain_of(&facts)?)?;
    let program = project.metadata()?.release_bin()?.join("soak");
    become_program(Command::new(&program).args(&arguments.passed_on), "soak")
}
