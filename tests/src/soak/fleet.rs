//! The backends' processes: started, killed, revived, stopped, and told to fail their health
//! checks. Owns which life of each backend runs; never decides what befalls one.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{
    cpu::{self, Seconds},
    echo_server::{DONE, Health},
    wire::Identity,
};
use crate::{
    netns::Namespace,
    process::Process,
    topology::{Topology, backend_name},
    wait::wait_ok,
};

const START: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);

/// All backends.
#[derive(Debug)]
pub struct Fleet {
    servers: Vec<Server>,
    directory: TempDir,
    /// That each serves.
    ports: u8,
    /// Of processes that have been killed.
    spent: Seconds,
}

#[derive(Debug)]
struct Server {
    namespace: Namespace,
    identity: Identity,
    process: Option<Process>,
}

impl Fleet {
    /// Starts one in each backend of `topology`, at so many ports, and returns once all serve.
    ///
    /// # Errors
    /// One does not serve soon; with its log.
    pub fn start(topology: &Topology, ports: u8) -> Result<Self> {
        let server = |(backend, namespace): (u32, &Namespace)| Server {
            namespace: namespace.clone(),
            identity: Identity { backend, life: 0 },
            process: None,
        };
        let mut fleet = Self {
            servers: (1..).zip(&topology.backends).map(server).collect(),
            directory: tempfile::tempdir().context("a directory for the servers")?,
            ports,
            spent: 0.0,
        };
        for backend in (1..).take(fleet.servers.len()) {
            fleet.revive(backend)?;
        }
        Ok(fleet)
    }

    /// The process of `backend`, or the last that it had.
    pub fn identity(&self, backend: u8) -> Identity {
        self.servers[usize::from(backend) - 1].identity
    }

    /// Starts `backend` again, and returns once it serves.
    ///
    /// # Errors
    /// It does not serve soon; with its log.
    pub fn revive(&mut self, backend: u8) -> Result<()> {
        let (control, ports) = (self.control(backend), self.ports.to_string());
        let server = self.server(backend);
        server.identity.life += 1;
        let own = env::current_exe().context("the path of this program")?;
        let mut command = server.namespace.command(own);
        command
            .arg("server")
            .args(["--backend", &server.identity.backend.to_string()])
            .args(["--life", &server.identity.life.to_string()])
            .args(["--ports", &ports])
            .arg("--control")
            .arg(&control);
        let process = server
            .process
            .insert(Process::spawn(&backend_name(backend), command)?);
        wait_ok("the echo server serves", START, || {
            ensure!(process.is_running(), "it has ended");
            UnixStream::connect(&control).context("its socket")
        })
        .with_context(|| process.log_tail())
        .map(drop)
    }

    /// Kills the process of `backend` with SIGKILL.
    pub fn kill(&mut self, backend: u8) {
        if let Some(mut process) = self.server(backend).process.take() {
            self.spent += cpu::of_process(process.id());
            process.kill();
        }
        // The next process makes its own: waiting must not take this for it.
        drop(std::fs::remove_file(self.control(backend)));
    }

    /// Stops the process of `backend` with SIGSTOP.
    ///
    /// # Errors
    /// It is dead.
    pub fn stall(&mut self, backend: u8) -> Result<()> {
        self.process(backend)?.signal(Signal::SIGSTOP)
    }

    /// Lets a stopped process go on.
    ///
    /// # Errors
    /// It is dead.
    pub fn go_on(&mut self, backend: u8) -> Result<()> {
        self.process(backend)?.signal(Signal::SIGCONT)
    }

    /// Sets what the health check of `backend` says from now on.
    ///
    /// # Errors
    /// It is dead or does not obey.
    pub fn say(&self, backend: u8, health: Health) -> Result<()> {
        let obeyed = || -> Result<()> {
            let mut stream = UnixStream::connect(self.control(backend))?;
            stream.set_read_timeout(Some(ANSWER))?;
            writeln!(stream, "{}", health.order())?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            ensure!(answer.trim() == DONE, "it answered `{}`", answer.trim());
            Ok(())
        };
        obeyed().with_context(|| format!("telling backend {backend} to be {}", health.order()))
    }

    /// Whether all run that have not been killed.
    ///
    /// # Errors
    /// One has ended by itself; with its log.
    pub fn check(&mut self) -> Result<()> {
        for process in self
            .servers
            .iter_mut()
            .filter_map(|server| server.process.as_mut())
        {
            ensure!(
                process.is_running(),
                "{} has ended by itself\n{}",
                process.name(),
                process.log_tail()
            );
        }
        Ok(())
    }

    /// Processor time of all processes so far.
    pub fn cpu(&self) -> Seconds {
        let running = self
            .servers
            .iter()
            .filter_map(|server| server.process.as_ref());
        let now: Seconds = running.map(|process| cpu::of_process(process.id())).sum();
        self.spent + now
    }

    fn control(&self, backend: u8) -> PathBuf {
        self.directory.path().join(backend_name(backend))
    }

    fn server(&mut self, backend: u8) -> &mut Server {
        &mut self.servers[usize::from(backend) - 1]
    }

    fn process(&mut self, backend: u8) -> Result<&mut Process> {
        let process = self.server(backend).process.as_mut();
        process.with_context(|| format!("backend {backend} is dead"))
    }
}
