//! Real servers beside nginx in a backend's namespace: PostgreSQL and Redis, which answer with the
//! backend's name. Owns their configuration, start and end; traffic and checks are others' business.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::unistd::User;
use tempfile::TempDir;

use crate::{
    load::app::{App, NAME_KEY},
    netns::Namespace,
    process::{Process, run},
    wait::wait_ok,
};

/// Where Debian keeps PostgreSQL, by version.
const POSTGRES: &str = "/usr/lib/postgresql";
/// Whom it runs as: it refuses to be root.
const USER: &str = "postgres";
/// Generous: recovery after a crash included.
const START: Duration = Duration::from_secs(30);

/// What is missing of the programs that this needs.
pub fn missing() -> Option<String> {
    if !Path::new("/usr/bin/redis-server").exists() {
        return Some("redis-server (Debian: redis-server)".to_owned());
    }
    if postgres("postgres").is_err() {
        return Some("PostgreSQL (Debian: postgresql)".to_owned());
    }
    (!Path::new("/usr/sbin/nft").exists()).then(|| "nft (Debian: nftables)".to_owned())
}

/// A program of the newest PostgreSQL that is installed.
///
/// # Errors
/// There is none.
pub fn postgres(program: &str) -> Result<PathBuf> {
    let versions = fs::read_dir(POSTGRES).context(POSTGRES)?.flatten();
    let programs = versions.map(|version| version.path().join("bin").join(program));
    let newest = programs.filter(|path| path.exists()).max();
    newest.with_context(|| format!("no {program} below {POSTGRES}"))
}

/// A cluster that servers copy.
#[derive(Debug)]
pub struct Template(TempDir);

impl Template {
    /// Makes it.
    ///
    /// # Errors
    /// PostgreSQL is not there or refuses.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for PostgreSQL")?;
        own(directory.path())?;
        let mut command = as_postgres(Command::new("setpriv"));
        command
            .arg(postgres("initdb")?)
            .args(["--no-sync", "--auth=trust", "--pgdata"])
            .arg(directory.path().join("data"));
        run(&mut command)?;
        Ok(Self(directory))
    }
}

/// A PostgreSQL or Redis in a namespace.
#[derive(Debug)]
pub struct Server {
    app: App,
    name: String,
    namespace: Namespace,
    directory: TempDir,
    process: Option<Process>,
}

impl Server {
    /// Starts a PostgreSQL called `name` on its usual port of every address, and returns once it does.
    ///
    /// # Errors
    /// It does not start; with its log.
    pub fn postgres(namespace: &Namespace, name: &str, template: &Template) -> Result<Self> {
        let server = Self::new(App::Postgres, namespace, name)?;
        let data = template.0.path().join("data");
        run(Command::new("cp")
            .arg("-a")
            .arg(data)
            .arg(server.directory.path()))?;
        own(server.directory.path())?;
        let access = server.directory.path().join("data/pg_hba.conf");
        fs::write(&access, "host all all all trust\n").context("pg_hba.conf")?;
        server.started()
    }

    /// Starts a Redis called `name` on its usual port of every address, and returns once it does.
    ///
    /// # Errors
    /// It does not start; with its log.
    pub fn redis(namespace: &Namespace, name: &str) -> Result<Self> {
        Self::new(App::Redis, namespace, name)?.started()
    }

    fn new(app: App, namespace: &Namespace, name: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for a server")?;
        let (name, namespace) = (name.to_owned(), namespace.clone());
        let process = None;
        Ok(Self {
            app,
            name,
            namespace,
            directory,
            process,
        })
    }

    fn started(mut self) -> Result<Self> {
        self.start_at(self.app.port())?;
        Ok(self)
    }

    /// Kills it, with what it has started.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it (again) on a port, and returns once it accepts connections there and knows its name.
    ///
    /// # Errors
    /// It does not soon; with its log.
    pub fn start_at(&mut self, port: u16) -> Result<()> {
        self.kill();
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_ok("a server is ready", START, || {
            if !self.process.as_mut().is_some_and(Process::is_running) {
                // Perhaps again: a PostgreSQL whose predecessor's children, each of a group of its own, have
                // not noticed its end yet finds its memory in use.
                let command = match self.app {
                    App::Postgres => self.postgres_command(port)?,
                    _ => self.redis_command(port),
                };
                self.process = Some(Process::spawn(self.app.name(), command)?);
            }
            self.namespace
                .run(|| TcpStream::connect(own))
                .context("connecting")?;
            ready(self.app, &self.namespace, &self.name, port)
        })
        .with_context(|| {
            self.process
                .as_ref()
                .map_or_else(String::new, Process::log_tail)
        })
    }

    fn postgres_command(&self, port: u16) -> Result<Command> {
        let mut command = as_postgres(self.namespace.command("setpriv"));
        let set = |setting: &str, value: &str| format!("--{setting}={value}");
        command
            .arg(postgres("postgres")?)
            .arg("-D")
            .arg(self.directory.path().join("data"))
            .arg(set("port", &port.to_string()))
            .arg(set("listen_addresses", "*"))
            .arg(set("unix_socket_directories", ""))
            .arg(set("cluster_name", &self.name))
            .arg(set("shared_buffers", "1MB"))
            .arg(set("fsync", "off"));
        Ok(command)
    }

    fn redis_command(&self, port: u16) -> Command {
        let mut command = self.namespace.command("redis-server");
        command
            .args(["--port", &port.to_string(), "--protected-mode", "no"])
            .args(["--save", "", "--appendonly", "no", "--bind", "*", "-::*"])
            .arg("--dir")
            .arg(self.directory.path());
        command
    }
}

/// Whether a server does what it is there for; a Redis is told its name.
fn ready(app: App, namespace: &Namespace, name: &str, port: u16) -> Result<()> {
    let port = port.to_string();
    let mut command = match app {
        App::Postgres => namespace.command(postgres("pg_isready")?),
        _ => namespace.command("redis-cli"),
    };
    command.args(["-h", "127.0.0.1", "-p", &port]);
    if app == App::Redis {
        command.args(["set", NAME_KEY, name]);
    }
    run(&mut command).map(drop)
}

/// Begins a command line of `setpriv` that goes on with the program.
fn as_postgres(mut setpriv: Command) -> Command {
    setpriv.args(["--reuid", USER, "--regid", USER, "--init-groups"]);
    setpriv
}

fn own(directory: &Path) -> Result<()> {
    let user = User::from_name(USER)?.with_context(|| format!("no user {USER}"))?;
    chown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .context("giving PostgreSQL its directory")
}
