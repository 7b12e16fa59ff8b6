//! Owns exec probes: a program that decides, in a process group of its own, without a shell.
//!
//! It finds in its environment `LBD_SERVICE`, `LBD_BACKEND`, `LBD_BACKEND_ADDRESS`, `LBD_BACKEND_PORT`,
//! `LBD_CHECK` and `LBD_TIMEOUT_MS`, and of this process's own only `PATH`.

use std::{env, process::ExitStatus, process::Stdio};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, ChildStdout, Command},
};

use super::{ProbeError, Subject};
use crate::model::Exec;

/// How much of what a program writes is shown.
const MAX_OUTPUT: usize = 200;

/// A program and its arguments.
#[derive(Debug)]
pub struct Question {
    program: String,
    arguments: Vec<String>,
}

/// A program under way. Dropped, it and all that it has started and left behind are killed.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // While nobody has waited for the leader, its number cannot be another's; just after, it is not,
        // as the kernel hands numbers out in order. Then the runtime waits for it (`kill_on_drop`).
        if let Some(group) = self.group {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Question {
    pub(super) fn new(exec: &Exec) -> Result<Self, ProbeError> {
        match exec.command.split_first() {
            Some((program, arguments)) => Ok(Self {
                program: program.clone(),
                arguments: arguments.to_vec(),
            }),
            None => Err(ProbeError::Unaskable("no program".to_owned())),
        }
    }

    pub(super) async fn ask(&self, subject: &Subject) -> Result<(), ProbeError> {
        let mut running = self.start(subject)?;
        let mut stdout = running.child.stdout.take();
        let mut output = Vec::new();
        let status = loop {
            tokio::select! {
                biased;
                status = running.child.wait() => break status,
                () = read_some(&mut stdout, &mut output) => {}
            }
        };
        let status = status.map_err(|error| ProbeError::Local(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        // What it wrote last may be unread; who else holds the pipe is not waited for.
        tokio::select! {
            biased;
            () = read_some(&mut stdout, &mut output) => {}
            () = std::future::ready(()) => {}
        }
        Err(ProbeError::Exited(describe(status, &output)))
    }

    fn start(&self, subject: &Subject) -> Result<Running, ProbeError> {
        let address = subject.address;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LBD_SERVICE", subject.target.service.to_string())
            .env("LBD_BACKEND", subject.target.address.to_string())
            .env("LBD_BACKEND_ADDRESS", address.ip().to_string())
            .env("LBD_BACKEND_PORT", address.port().to_string())
            .env("LBD_CHECK", &subject.check)
            .env("LBD_TIMEOUT_MS", subject.timeout.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| {
            // Missing or not executable: an error of the configuration or this host, not the backend's.
            ProbeError::Local(format!("{}: {error}", self.program))
        })?;
        let group = child.id().map(|id| Pid::from_raw(id.cast_signed()));
        Ok(Running { child, group })
    }
}

/// Reads a little; what is too much is thrown away. Never ends once there is nothing more.
async fn read_some(stdout: &mut Option<ChildStdout>, output: &mut Vec<u8>) {
    let Some(open) = stdout else {
        return std::future::pending().await;
    };
    let mut buffer = [0; 1_024];
    match open.read(&mut buffer).await {
        Ok(read) if read > 0 => {
            let room = MAX_OUTPUT - output.len();
            output.extend_from_slice(&buffer[..read.min(room)]);
        }
        _ => *stdout = None,
    }
}

fn describe(status: ExitStatus, output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.as_str() {
        "" => status.to_string(),
        text => format!("{status}: {text}"),
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
