//! The programs under test, in a namespace: `lbd` with a configuration, API socket and BPF file
//! system of its own, and `lbctl` talking to it. Never looks inside them: what they say and what
//! the network does is all that is seen.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapInfo;
use lb_userspace::instance;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    binaries,
    bpffs::Bpffs,
    config::Config,
    netns::{Namespace, next_number},
    process::{Process, run},
    topology::INTERFACE,
    wait::{wait_ok, wait_until},
};

const READY: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(5);

/// Where an instance keeps what it makes.
#[derive(Debug)]
pub struct Home {
    /// The instance's `--name`.
    pub name: String,
    /// Its API socket.
    pub socket: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its pins.
    pub bpffs: Bpffs,
    _directory: Option<TempDir>,
}

impl Home {
    /// Unlike any other's.
    ///
    /// # Errors
    /// The directory or the BPF file system cannot be made.
    pub fn unique() -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for lbd")?;
        let name = format!("t{}-{}", process::id(), next_number());
        // Of a killed run whose number was the same.
        for kept in [instance::state_path(&name), instance::history_path(&name)] {
            drop(fs::remove_file(kept));
        }
        let mut home = Self::at(name, directory.path(), Bpffs::unique()?);
        home._directory = Some(directory);
        Ok(home)
    }

    /// With the socket and configuration of `name` in `directory`, which the caller keeps.
    pub fn at(name: String, directory: &Path, bpffs: Bpffs) -> Self {
        let file = |extension| directory.join(format!("{name}.{extension}"));
        let (socket, config) = (file("sock"), file("toml"));
        Self {
            name,
            socket,
            config,
            bpffs,
            _directory: None,
        }
    }
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// What it said otherwise.
    pub fn succeeded(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}: {}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// A running `lbd`. On drop it is killed and detached, and nothing may be left.
#[derive(Debug)]
pub struct Agent {
    namespace: Namespace,
    home: Home,
    arguments: Vec<String>,
    process: Option<Process>,
    detached: bool,
}

impl Agent {
    /// Starts one in `namespace` and returns once it is ready.
    ///
    /// # Errors
    /// It is not built, or not ready soon; with its log.
    pub fn start(namespace: &Namespace, config: &Config) -> Result<Self> {
        Self::start_in(namespace, config, Home::unique()?, &[])
    }

    /// Starts one that lives in `home`, with `arguments` beside the usual ones.
    ///
    /// # Errors
    /// It is not built, or not ready soon; with its log.
    pub fn start_in(
        namespace: &Namespace,
        config: &Config,
        home: Home,
        arguments: &[&str],
    ) -> Result<Self> {
        fs::write(&home.config, config.render(&home.name)).context("writing the config")?;
        Self::start_configured(namespace, home, arguments)
    }

    /// Starts one with the configuration file that is in `home` already.
    ///
    /// # Errors
    /// It is not built, or not ready soon; with its log.
    pub fn start_configured(namespace: &Namespace, home: Home, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self {
            namespace: namespace.clone(),
            home,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            process: None,
            detached: false,
        };
        agent.restart()?;
        Ok(agent)
    }

    /// Where it keeps what it makes.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Replaces its configuration file; takes effect when it is started again.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_config(&self, config: &Config) -> Result<()> {
        fs::write(&self.home.config, config.render(&self.home.name)).context("writing the config")
    }

    /// Replaces the arguments beside the usual ones; takes effect when it is started again.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(ToString::to_string).collect();
    }

    /// Kills it if it runs, starts it again, and returns once it is ready.
    ///
    /// # Errors
    /// It is not ready soon; with its log.
    pub fn restart(&mut self) -> Result<()> {
        self.sigkill();
        // A killed agent leaves its socket: waiting must not take that for the new one's.
        drop(fs::remove_file(&self.home.socket));
        self.detached = false;
        let command = run_command(
            &self.namespace,
            &self.home,
            &self.home.socket,
            &self.arguments,
        )?;
        self.process = Some(Process::spawn("lbd", command)?);
        self.ready()
    }

    /// The same, but that it is asked to stop.
    ///
    /// # Errors
    /// As [`Self::sigterm`] and [`Self::restart`].
    pub fn stop_and_restart(&mut self) -> Result<()> {
        self.sigterm()?;
        self.restart()
    }

    /// Waits until what it keeps of backends for the next agent has `what` in it.
    ///
    /// # Errors
    /// It has not soon.
    pub fn await_history(&self, what: &str) -> Result<()> {
        let path = instance::history_path(&self.home.name);
        let read = || fs::read_to_string(&path);
        wait_until("it is kept for the next agent", STOP, || {
            read().is_ok_and(|kept| kept.contains(what))
        })
        .with_context(|| format!("no {what} in {:?}", read()))
    }

    /// The same, until it has a moment called `since`.
    ///
    /// # Errors
    /// It has not soon.
    pub fn await_moment(&self, since: &str) -> Result<()> {
        let path = instance::history_path(&self.home.name);
        let name = format!("\"{since}\":");
        let is_there = |kept: String| {
            let mut after = kept.split(&name).skip(1);
            after.any(|text| text.starts_with(|first: char| first.is_ascii_digit()))
        };
        wait_until("a moment is kept for the next agent", STOP, || {
            fs::read_to_string(&path).is_ok_and(is_there)
        })
        .with_context(|| format!("no {since} in {}", path.display()))
    }

    /// Runs `lbd detach` of its name, whether it runs or not.
    ///
    /// # Errors
    /// It refuses.
    pub fn try_detach(&self) -> Result<()> {
        let mut command = self.namespace.command(binaries::find("lbd")?);
        command
            .args(["detach", "--name", &self.home.name, "--bpffs"])
            .arg(self.home.bpffs.path());
        run(&mut command).map(drop)
    }

    /// Waits until its API answers.
    ///
    /// # Errors
    /// It has ended, or does not answer soon; with its log.
    pub fn ready(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("lbd is not running")?;
        let socket = &self.home.socket;
        wait_ok("lbd is ready", READY, || {
            ensure!(process.is_running(), "lbd has ended");
            UnixStream::connect(socket).with_context(|| socket.display().to_string())
        })
        .with_context(|| process.log_tail())?;
        let said = self.lbctl(&["status"])?.succeeded();
        let log = || self.process.as_ref().map(Process::log_tail);
        said.map(drop).with_context(|| log().unwrap_or_default())
    }

    /// Kills it with SIGKILL; its program goes on forwarding.
    pub fn sigkill(&mut self) {
        self.process = None;
    }

    /// Asks it to stop with SIGTERM and waits until it has; its program goes on forwarding.
    ///
    /// # Errors
    /// It is not running, does not stop soon, or says that it failed.
    pub fn sigterm(&mut self) -> Result<()> {
        let mut process = self.process.take().context("lbd is not running")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(STOP)?;
        ensure!(
            status.success(),
            "lbd ended with {status}\n{}",
            process.log_tail()
        );
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// What the running one has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs `lbctl` against it.
    ///
    /// # Errors
    /// It is not built or cannot be started; its failing is not an error here.
    pub fn lbctl(&self, arguments: &[&str]) -> Result<Said> {
        lbctl(&self.home.socket, arguments)
    }

    /// What `lbctl … --output json` says.
    ///
    /// # Errors
    /// It fails, or does not write JSON.
    pub fn lbctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["--output", "json"]].concat();
        let text = self.lbctl(&arguments)?.succeeded()?;
        serde_json::from_str(&text).with_context(|| format!("lbctl {arguments:?} wrote {text}"))
    }

    /// Stops it and takes its program away.
    ///
    /// # Errors
    /// `lbd detach` fails, or something is left: a program on the interface, or a pin.
    pub fn detach(&mut self) -> Result<()> {
        self.sigkill();
        self.detached = true;
        self.try_detach()?;
        let leftovers = self.leftovers()?;
        ensure!(leftovers.is_empty(), "lbd detach left {leftovers:?}");
        Ok(())
    }

    /// What is there of it in the kernel: pins, and a program on the interface.
    ///
    /// # Errors
    /// The interface cannot be asked.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        leftovers(&self.namespace, &self.home.bpffs)
    }

    /// The kernel's ids of its pinned maps, by name: others after a restart would be other maps.
    ///
    /// # Errors
    /// It has none, or the kernel does not tell.
    pub fn map_ids(&self) -> Result<BTreeMap<String, u32>> {
        let pins = self.home.bpffs.entries();
        let is_map = |pin: &&PathBuf| pin.parent().is_some_and(|parent| parent.ends_with("maps"));
        let ids = pins.iter().filter(is_map).map(|pin| {
            let map = MapInfo::from_pin(pin).with_context(|| pin.display().to_string())?;
            let name = pin.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), map.id()))
        });
        let ids = ids.collect::<Result<BTreeMap<_, _>>>()?;
        ensure!(!ids.is_empty(), "no map is pinned: {pins:?}");
        Ok(ids)
    }
}

/// Ways in which an agent is replaced by the next one: killed, and asked to stop.
pub const RESTARTS: [fn(&mut Agent) -> Result<()>; 2] = [Agent::restart, Agent::stop_and_restart];

impl Drop for Agent {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if thread::panicking() {
            eprintln!(
                "{}",
                self.process
                    .as_ref()
                    .map(Process::log_tail)
                    .unwrap_or_default()
            );
        }
        if let Err(error) = self.detach() {
            assert!(thread::panicking(), "{error:#}");
            eprintln!("{error:#}");
        }
    }
}

/// Our decapsulator on the interface of a backend, for as long as this lives.
#[derive(Debug)]
pub struct Decapsulator {
    namespace: Namespace,
    bpffs: Bpffs,
}

impl Decapsulator {
    /// Attaches it.
    ///
    /// # Errors
    /// `lbd` is not built, or refuses.
    pub fn attach(namespace: &Namespace) -> Result<Self> {
        Self::attach_in(namespace, Bpffs::unique()?)
    }

    /// What it has counted, by `lbd decap --counters`.
    ///
    /// # Errors
    /// `lbd` refuses, or says something else.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let said = self.lbd_decap(&["--counters"])?;
        let line = |line: &str| {
            let (what, count) = line.rsplit_once(": ")?;
            Some((what.to_owned(), count.parse().ok()?))
        };
        let lines = said
            .lines()
            .map(|text| line(text).with_context(|| text.to_owned()));
        lines.collect()
    }

    /// Attaches it with its pins in `bpffs`.
    ///
    /// # Errors
    /// `lbd` is not built, or refuses.
    pub fn attach_in(namespace: &Namespace, bpffs: Bpffs) -> Result<Self> {
        let namespace = namespace.clone();
        let decapsulator = Self { namespace, bpffs };
        decapsulator.lbd_decap(&[])?;
        if !has_program(&decapsulator.namespace, INTERFACE)? {
            bail!("`lbd decap` succeeded, but {INTERFACE} has no XDP program");
        }
        Ok(decapsulator)
    }

    /// Takes it away.
    ///
    /// # Errors
    /// `lbd` refuses, or something is left: the program on the interface, or a pin.
    pub fn detach(self) -> Result<()> {
        self.lbd_decap(&["--detach"])?;
        let leftovers = leftovers(&self.namespace, &self.bpffs)?;
        ensure!(
            leftovers.is_empty(),
            "lbd decap --detach left {leftovers:?}"
        );
        Ok(())
    }

    /// Calls `lbd decap` with these `arguments` beside the usual ones.
    ///
    /// # Errors
    /// `lbd` is not built, or refuses.
    pub fn lbd_decap(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.namespace.command(binaries::find("lbd")?);
        command
            .args(["decap", "--interface", INTERFACE, "--bpffs"])
            .arg(self.bpffs.path())
            .args(arguments);
        run(&mut command)
    }
}

fn run_command(
    namespace: &Namespace,
    home: &Home,
    socket: &Path,
    arguments: &[String],
) -> Result<Command> {
    let mut command = namespace.command(binaries::find("lbd")?);
    command
        .args(["run", "--config"])
        .arg(&home.config)
        .args(["--name", &home.name, "--socket"])
        .arg(socket)
        .arg("--bpffs")
        .arg(home.bpffs.path())
        .args(arguments);
    Ok(command)
}

/// What an `lbd run` says that lives in `home`, but with its socket at `socket`, and is to be refused;
/// `arguments` come beside the usual ones.
///
/// # Errors
/// It is not built, succeeds, or does not end soon.
pub fn refused(
    namespace: &Namespace,
    home: &Home,
    socket: &Path,
    arguments: &[&str],
) -> Result<String> {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let command = run_command(namespace, home, socket, &arguments)?;
    let mut process = Process::spawn("lbd", command)?;
    let status = process.wait(READY).with_context(|| process.log_tail())?;
    ensure!(status.code() == Some(1), "{status}: {}", process.log());
    Ok(process.log())
}

/// Pins in `bpffs`, and a program on the interface of `namespace`.
///
/// # Errors
/// The interface cannot be asked.
pub fn leftovers(namespace: &Namespace, bpffs: &Bpffs) -> Result<Vec<String>> {
    // The kernel pins iterators of its own, `maps.debug` and `progs.debug`, in every instance.
    let ours = |pin: &&PathBuf| pin.extension().is_none_or(|extension| extension != "debug");
    let pins = bpffs.entries();
    let ours = pins.iter().filter(ours);
    let mut found: Vec<_> = ours.map(|pin| pin.display().to_string()).collect();
    if has_program(namespace, INTERFACE)? {
        found.push(format!("an XDP program on {INTERFACE}"));
    }
    Ok(found)
}

/// Runs `lbctl` against `socket`.
///
/// # Errors
/// It is not built or cannot be started; its failing is not an error here.
pub fn lbctl(socket: &Path, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(binaries::find("lbctl")?);
    command.arg("--socket").arg(socket).args(arguments);
    let output = command.output().context("starting lbctl")?;
    Ok(Said {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Whether `interface` of `namespace` has an XDP program.
///
/// # Errors
/// The interface cannot be asked.
pub fn has_program(namespace: &Namespace, interface: &str) -> Result<bool> {
    Ok(xdp(namespace, interface)?.is_object())
}

/// What `ip -json link` says of the XDP program on `interface` of `namespace`; null without one.
///
/// # Errors
/// The interface cannot be asked.
pub fn xdp(namespace: &Namespace, interface: &str) -> Result<Value> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace.name(), "-json", "link", "show", interface]);
    let links: Value = serde_json::from_str(&run(&mut command)?).context("`ip -json link`")?;
    Ok(links[0]["xdp"].clone())
}
