//! `lbctl completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;

/// The script that completes `lbctl` in `shell`.
pub fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lbctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
