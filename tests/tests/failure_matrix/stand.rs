//! Three services over four hosts, each with a web server, a PostgreSQL and a Redis, and what checks say
//! of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_tests::{
    backend::{Backend, OTHER_PORT, PORT},
    config::{Health, Service},
    load::app::App,
    servers::{Server, Template, postgres},
    stage::Stage,
    topology::{Names, Topology, Turn, backend_name, backend_v4, vip_v4},
    wait::wait_until,
};

/// Backends of every service.
pub const BACKENDS: u8 = 4;
/// From one probe to the next.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// A probe without an answer for this long has failed.
pub const TIMEOUT: Duration = Duration::from_millis(250);
/// Failures in a row that make a backend down.
pub const FALL: u32 = 3;
/// Generous: this only bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(30);

/// The balancer, and everything behind it.
#[derive(Debug)]
pub struct Stand {
    /// How packets reach the backends.
    pub mode: &'static str,
    /// With the web servers.
    pub stage: Stage,
    /// The others of each host.
    others: Vec<[Server; 2]>,
}

impl Stand {
    /// Sets everything up, and returns once all backends are up.
    ///
    /// # Errors
    /// Something cannot be started.
    pub fn new(mode: &'static str, turn: Turn) -> Result<Self> {
        let topology = Topology::build(BACKENDS, Names::Unique, Some(turn))?;
        let template = Template::new()?;
        let mut others = Vec::new();
        for (n, host) in (1..).zip(&topology.backends) {
            let name = backend_name(n);
            let database = Server::postgres(host, &name, &template)?;
            others.push([database, Server::redis(host, &name)?]);
        }
        let services: Result<Vec<Service>> =
            App::ALL.into_iter().map(|app| service(app, mode)).collect();
        let stand = Self {
            mode,
            stage: Stage::new(topology, services?)?,
            others,
        };
        stand.await_conditions("up", &App::ALL, &(1..=BACKENDS).collect::<Vec<_>>())?;
        Ok(stand)
    }

    /// The web server of a backend.
    pub fn web(&self, n: u8) -> &Backend {
        &self.stage.servers[usize::from(n) - 1]
    }

    /// Starts the servers of a backend (again), so far from their usual ports.
    ///
    /// # Errors
    /// One does not start.
    pub fn serve_at(&mut self, n: u8, away: u16) -> Result<()> {
        let at = usize::from(n) - 1;
        self.stage.servers[at].restart_at([PORT, OTHER_PORT].map(|port| port + away))?;
        let [database, redis] = &mut self.others[at];
        database.start_at(App::Postgres.port() + away)?;
        redis.start_at(App::Redis.port() + away)
    }

    /// The backends, by name, for which checks say so of a service.
    ///
    /// # Errors
    /// `lbctl` does not tell.
    pub fn having(&self, condition: &str) -> Result<BTreeMap<App, BTreeSet<u8>>> {
        let list = self.stage.agent.lbctl_json(&["backend", "list"])?;
        let mut found = BTreeMap::new();
        for app in App::ALL {
            let of = |n: &u8| {
                let address = SocketAddr::from((backend_v4(*n), app.port())).to_string();
                let mut list = list.as_array().into_iter().flatten();
                list.any(|b| b["address"] == *address && b["condition"] == condition)
            };
            found.insert(app, (1..=BACKENDS).filter(of).collect());
        }
        Ok(found)
    }

    /// Waits until checks say so of these backends, for each of these.
    ///
    /// # Errors
    /// They do not, for a long time.
    pub fn await_conditions(&self, condition: &str, apps: &[App], backends: &[u8]) -> Result<()> {
        let are = |found: &BTreeMap<App, BTreeSet<u8>>| {
            let mut apps = apps.iter();
            apps.all(|app| backends.iter().all(|n| found[app].contains(n)))
        };
        wait_until(&format!("{backends:?} are {condition}"), SOON, || {
            self.having(condition).is_ok_and(|found| are(&found))
        })
        .with_context(|| self.stage.agent.log())
    }
}

/// Where a service is reached.
pub fn vip(app: App) -> SocketAddr {
    (IpAddr::from(vip_v4(1)), app.port()).into()
}

/// A service whose check asks what its clients ask, more or less: a server that is stopped still accepts
/// connections, so that a check of these alone would find nothing wrong.
fn service(app: App, mode: &'static str) -> Result<Service> {
    let pool = (1..=BACKENDS).map(|n| SocketAddr::from((backend_v4(n), app.port())));
    let of = |kind: String| {
        format!(
            "{{ {kind}, interval = \"{}ms\", timeout = \"{}ms\", rise = 2, fall = {FALL} }}",
            INTERVAL.as_millis(),
            TIMEOUT.as_millis()
        )
    };
    let program = |line: String| {
        let line = format!("exec {line} -h ${{LBD_BACKEND%:*}} -p {}", app.port());
        format!("type = \"exec\", command = [\"/bin/sh\", \"-c\", \"{line}\"]")
    };
    let check = match app {
        App::Web => of("type = \"http\", path = \"/health\"".to_owned()),
        App::Postgres => of(program(postgres("pg_isready")?.display().to_string())),
        // An option behind a command is the command's.
        App::Redis => of(program("redis-cli".to_owned()).replace("6379\"", "6379 ping\"")),
    };
    let mut checks = vec![check];
    if mode != "nat" {
        // The servers answer at their own addresses whether or not they have the VIP.
        checks.push(of("type = \"vip\"".to_owned()));
    }
    let checks: Vec<&str> = checks.iter().map(String::as_str).collect();
    let name = format!("{}/tcp", vip(app));
    Ok(Service::new(name, mode, Health::NONE, pool).checked(&checks))
}
