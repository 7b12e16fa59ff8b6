//! A real web server per backend namespace: nginx, which answers with its name. Owns its
//! configuration, start, death and revival; health checks and traffic are others' business.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{
    netns::Namespace,
    process::Process,
    topology::{Topology, backend_name},
    wait::wait_ok,
};

/// The port that services point at.
pub const PORT: u16 = 80;
/// A second port, so that two `nat` services can share the servers.
pub const OTHER_PORT: u16 = 8080;
/// Size of the body at `/large`.
pub const LARGE: usize = 1 << 20;

/// A file beside nginx while it is to fail.
const FAILING: &str = "failing";
const START: Duration = Duration::from_secs(5);

/// An nginx in a namespace.
#[derive(Debug)]
pub struct Backend {
    name: String,
    namespace: Namespace,
    directory: TempDir,
    process: Option<Process>,
}

impl Backend {
    /// Starts one that answers `name` on [`PORT`] and [`OTHER_PORT`] of every address, and returns
    /// once it does. Paths: `/` the name, `/health` "ok", `/large` [`LARGE`] bytes.
    ///
    /// # Errors
    /// nginx is not installed or refuses to start; with its log.
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for nginx")?;
        let large: Vec<u8> = (0..LARGE).map(|at| b'a' + (at % 23) as u8).collect();
        fs::write(directory.path().join("large"), large)?;
        let (name, namespace) = (name.to_owned(), namespace.clone());
        let mut backend = Self {
            name,
            namespace,
            directory,
            process: None,
        };
        backend.restart()?;
        Ok(backend)
    }

    /// One for each backend of `topology`, named `backend1`, `backend2` …
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_all(topology: &Topology) -> Result<Vec<Self>> {
        (1..)
            .zip(&topology.backends)
            .map(|(n, namespace)| Self::start(namespace, &backend_name(n)))
            .collect()
    }

    /// What it answers.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its master runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Makes it answer everything with status 500, or as usual again.
    ///
    /// # Errors
    /// The file that says so cannot be written or removed.
    pub fn fail_requests(&self, fail: bool) -> Result<()> {
        let file = self.directory.path().join(FAILING);
        let done = match fail {
            true => fs::write(&file, ""),
            false => fs::remove_file(&file),
        };
        done.with_context(|| file.display().to_string())
    }

    /// Kills master and workers with SIGKILL; the kernel then refuses connections to it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it (again), and returns once it accepts connections.
    ///
    /// # Errors
    /// It does not accept any soon; with its log.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_at([PORT, OTHER_PORT])
    }

    /// The same with other ports, so that the usual ones are closed.
    ///
    /// # Errors
    /// As [`Self::restart`].
    pub fn restart_at(&mut self, ports: [u16; 2]) -> Result<()> {
        self.kill();
        let directory = self.directory.path();
        fs::write(
            directory.join("nginx.conf"),
            configuration(directory, &self.name, ports),
        )?;
        let mut command = self.namespace.command("nginx");
        command
            .arg("-p")
            .arg(self.directory.path())
            .args(["-c", "nginx.conf", "-e", "stderr"]);
        let process = Process::spawn(&self.name, command)?;
        let process = self.process.insert(process);
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
        wait_ok("nginx accepts connections", START, || {
            ensure!(process.is_running(), "nginx has ended");
            self.namespace
                .run(|| TcpStream::connect(own))
                .context("connecting")
        })
        .with_context(|| process.log_tail())?;
        Ok(())
    }

    /// Whether a connection to `address` at [`PORT`] is accepted, asked from inside.
    pub fn accepts_at(&self, address: IpAddr) -> bool {
        self.namespace
            .run(|| TcpStream::connect((address, PORT)).is_ok())
    }
}

/// Connections are held for as long as a test likes; nothing is logged per request.
fn configuration(directory: &Path, name: &str, ports: [u16; 2]) -> String {
    let directory = directory.display();
    let listen: String = ports
        .map(|port| {
            format!(
                "    listen {port} backlog=4096;\n    \
                 listen [::]:{port} backlog=4096 ipv6only=on;\n"
            )
        })
        .concat();
    format!(
        r#"daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  default_type text/plain;
  keepalive_timeout 1h;
  keepalive_requests 1000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
{listen}    if (-e {directory}/{FAILING}) {{ return 500; }}
    location / {{ return 200 "{name}\n"; }}
    location = /health {{ return 200 "ok\n"; }}
    location = /large {{ root {directory}; }}
  }}
}}
"#
    )
}
