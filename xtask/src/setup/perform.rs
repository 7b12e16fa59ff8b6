//! Runs the steps of a plan one by one, showing progress. Decides nothing.
//!
//! What a step prints goes to `target/xtask/STEP.log`; its end is shown if the step fails.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::plan::Step;
use crate::invocation::Invocation;
use crate::project::Project;

const LINES_SHOWN: usize = 20;
const REDRAW: Duration = Duration::from_millis(120);

/// Runs `steps` in order, up to the first that fails.
pub fn perform(project: &Project, steps: &[(&Step, &Invocation)]) -> Result<()> {
    let logs = project.logs();
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    for (index, (step, invocation)) in steps.iter().enumerate() {
        let label = format!(
            "[{}/{}] {}: {}",
            index + 1,
            steps.len(),
            step.title,
            step.why
        );
        let log = logs.join(format!("{}.log", step.id));
        let progress = start(&label);
        let outcome = run_logged(&mut invocation.command(), &log);
        finish(&progress, &label, outcome.is_ok());
        outcome.with_context(|| format!("set-up step failed: {}", step.title))?;
    }
    Ok(())
}

/// A spinner on a terminal, a plain line elsewhere.
fn start(label: &str) -> ProgressBar {
    let progress = ProgressBar::new_spinner();
    if progress.is_hidden() {
        eprintln!("{label}");
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    progress.set_message(label.to_owned());
    progress.enable_steady_tick(REDRAW);
    progress
}

fn finish(progress: &ProgressBar, label: &str, ok: bool) {
    let seconds = progress.elapsed().as_secs();
    let verdict = if ok { "done" } else { "FAILED" };
    if progress.is_hidden() {
        eprintln!("      {verdict} after {seconds} s");
    } else {
        progress.finish_and_clear();
        eprintln!("{label} ({verdict} after {seconds} s)");
    }
}

fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let err = out
        .try_clone()
        .with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    bail!(
        "{status}; the end of {}:\n{}",
        log.display(),
        tail(&text, LINES_SHOWN)
    )
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_the_end_of_the_text() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 5), "a");
        assert_eq!(tail("", 5), "");
    }

    #[test]
    fn failing_step_shows_its_exit_status_and_the_end_of_its_log() {
        let log = std::env::temp_dir().join(format!("xtask-perform-{}.log", std::process::id()));
        let error = run_logged(
            Command::new("sh").args(["-c", "echo broken >&2; exit 7"]),
            &log,
        )
        .unwrap_err();
        fs::remove_file(&log).unwrap();
        assert!(
            error.to_string().contains("exit status: 7") && error.to_string().ends_with("broken"),
            "{error}"
        );
    }
}
