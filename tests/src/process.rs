//! Child processes: killed with all their descendants on drop, with their output kept in a file
//! and shown when a test fails. Never knows what it runs.

use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::NamedTempFile;

use crate::wait::{wait_for, wait_until};

/// How much of a log a failing test shows.
const TAIL_LINES: usize = 40;
/// For a killed process to be gone.
const END: Duration = Duration::from_secs(5);

/// A running program with its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: NamedTempFile,
}

impl Process {
    /// Starts `command` in a process group of its own, with its output going to a log.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let log = NamedTempFile::new().context("a file for the log")?;
        let open = || {
            File::options()
                .append(true)
                .open(log.path())
                .context("opening the log")
        };
        command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, standard output and error together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// The file that [`Self::log`] reads.
    pub fn log_path(&self) -> &Path {
        self.log.path()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends `signal` to the program alone.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            bail!("{} has ended already:\n{}", self.name, self.log_tail());
        }
        kill(self.pid(), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It runs on after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, limit, || self.child.try_wait().transpose())?.context(what)
    }

    /// Kills it and all its descendants with SIGKILL, and waits until they have let go of
    /// everything, such as a port that they share.
    pub fn kill(&mut self) {
        // The group lives on without its leader: a master killed alone leaves workers.
        let group = self.pid();
        let _ = killpg(group, Signal::SIGKILL);
        drop(self.child.wait());
        if let Err(error) = wait_until("the end of its group", END, || !is_alive(group)) {
            eprintln!("{}: {error:#}", self.name);
        }
    }

    /// The last lines of its log, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let mut tail = format!("--- log of {} ---", self.name);
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            let _ = write!(tail, "\n{line}");
        }
        tail
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// Whether a process of `group` runs still. One that nobody has waited for yet holds nothing.
fn is_alive(group: Pid) -> bool {
    let stats = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.any(|stat| state_and_group(&stat).is_some_and(|(state, of)| of == group && state != "Z"))
}

/// Fields 3 and 5 of proc_pid_stat(5); the second, in brackets, may hold anything.
fn state_and_group(stat: &str) -> Option<(&str, Pid)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, Pid::from_raw(group)))
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// It cannot be started or fails; the message has its arguments and what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{shown}`"))?;
    succeeded(&shown, output)
}

/// Runs `command` with `input` as its standard input and returns its standard output.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let shown = shown(command);
    let file = NamedTempFile::new().context("a file for the input")?;
    fs::write(file.path(), input).context("writing the input")?;
    let stdin = File::open(file.path()).context("opening the input")?;
    let output = command
        .stdin(stdin)
        .output()
        .with_context(|| format!("starting `{shown}`"))?;
    succeeded(&shown, output).with_context(|| format!("input was:\n{input}"))
}

fn shown(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(shown, " {}", argument.to_string_lossy());
    }
    shown
}

fn succeeded(shown: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed ({}): {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{shown}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_group_are_read_past_any_name() {
        let stat = "42 (a) b (c) S 1 40 39 0 -1";
        assert_eq!(state_and_group(stat), Some(("S", Pid::from_raw(40))));
        assert_eq!(state_and_group("42 (cut"), None);
    }

    #[test]
    fn descendants_are_gone_once_a_process_is_killed() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & sleep 1000"]);
        let mut process = Process::spawn("sh", shell).unwrap();
        let group = process.pid();
        assert!(is_alive(group));
        process.kill();
        assert!(!is_alive(group));
    }
}
