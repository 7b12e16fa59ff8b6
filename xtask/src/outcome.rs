//! How a child process ended, as a result or as this command's exit code.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

/// Runs `command` on this terminal and fails if it does.
pub fn succeed(command: &mut Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {what}"))?;
    ensure!(status.success(), "{what} failed ({status})");
    Ok(())
}

/// Becomes `command`, so that signals and the exit code are its own. Returns only on failure.
pub fn become_program(command: &mut Command, what: &str) -> Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("cannot start {what}"))
}

/// Success or failure as an exit code.
pub fn exit_code(ok: bool) -> ExitCode {
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
