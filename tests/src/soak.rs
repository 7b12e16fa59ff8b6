//! The proof on real traffic that an established connection whose backend lives is never moved,
//! over any sequence of changes.
//!
//! | module | owns |
//! |---|---|
//! | [`plan`] | the changes, from a seed; pure |
//! | [`account`] | who broke, and why; pure |
//! | [`stage`] | network, balancer and its configuration |
//! | [`fleet`], [`echo_server`] | the backends' processes, and what they do |
//! | [`client`], [`wire`] | the connections, and what they say |
//! | [`driver`] | carrying the plan out |
//! | [`flow_state`] | where the balancer remembers flows |
//! | [`metrics`], [`cpu`] | what the balancer says of itself, and what it costs |
//! | [`report`] | how the end is told |

use std::time::Duration;

use anyhow::{Result, ensure};

pub mod account;
pub mod client;
pub mod cpu;
pub mod driver;
pub mod echo_server;
pub mod fleet;
pub mod flow_state;
pub mod metrics;
pub mod plan;
pub mod report;
pub mod stage;
pub mod wire;

use account::Account;
use client::{Books, Clients, Clock, Load};
use driver::Driver;
use flow_state::{FlowState, MOVING_TIME};
use plan::{Kind, Plan, Settings};
use report::{Report, Run};
use stage::{Size, Stage};

/// The most connections: each service's have the ports of one client's address.
pub const MOST_CONNECTIONS: usize = 100_000;
/// After the last change, for connections that are broken to notice.
const SETTLE: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Services and backends.
    pub size: Size,
    /// Connections that stand at any time.
    pub connections: usize,
    /// Those of them that live for the whole run.
    pub held: usize,
    /// How long the others live on average, before another one takes their place.
    pub lifetime: Duration,
    /// Connections to close and open again from the same port every second, beside them.
    pub churn: usize,
    /// Changes to make.
    pub changes: usize,
    /// Their kinds.
    pub kinds: Vec<Kind>,
    /// From one change to the next, on average.
    pub pace: Duration,
    /// Of changes and lifetimes.
    pub seed: u64,
    /// Where the balancer remembers flows.
    pub flow_state: FlowState,
    /// Room in each flow table; the balancer's default where absent.
    pub flows: Option<u32>,
}

/// Holds connections, makes changes, and reports. Everything made is unmade, also where the future
/// is dropped.
///
/// # Errors
/// The stage cannot be set up, or a change cannot be carried out. That a connection breaks is no
/// error here.
pub async fn run(options: &Options) -> Result<Report> {
    ensure!(
        (1..=MOST_CONNECTIONS).contains(&options.connections),
        "{} connections: 1 to {MOST_CONNECTIONS} have ports",
        options.connections
    );
    let moves = options.flow_state.remembers();
    let size = options.size;
    eprintln!(
        "soak: {} connections through {} services of {} backends, {} changes, seed {}",
        options.connections, size.services, size.backends, options.changes, options.seed
    );
    let plan = Plan::draw(&Settings {
        seed: options.seed,
        changes: options.changes,
        pace: options.pace,
        rest: settling(moves),
        kinds: kinds(options),
        services: size.services.into(),
        backends: size.backends,
    });
    let mut stage = Stage::start(size, &plan.pools, options.flow_state, options.flows)?;
    let idle = moves.then_some(MOVING_TIME);
    let (books, clock) = (Books::new(Account::new(idle)), Clock::start());
    let load = Load {
        targets: stage::targets(size),
        held: options.held,
        mortal: options.connections.saturating_sub(options.held),
        lifetime: options.lifetime,
        churn: options.churn,
        seed: options.seed,
    };
    let clients = Clients::start(&stage.topology.client, load, &books, clock)?;
    let mut driver = Driver::start(&mut stage, &books, clock)?;
    driver.carry_out(&plan.steps).await?;
    driver.wait(settling(moves)).await?;
    let cost = driver.cost()?;
    clients.stop()?;
    let run = Run {
        connections: options.connections,
        held: options.held,
        lifetime: options.lifetime,
        size,
        pace: options.pace,
        seed: options.seed,
        flow_state: options.flow_state,
        seconds: clock.now().as_secs_f64(),
        alarms: driver.alarms(),
        cost,
    };
    Ok(Report::new(run, &books.open(), driver.watched()))
}

/// Those asked for that there are. Most schedulers go by records of flows.
fn kinds(options: &Options) -> Vec<Kind> {
    Kind::all()
        .filter(|kind| options.kinds.contains(kind))
        .filter(|&kind| options.flow_state.remembers() || kind != Kind::Scheduler)
        .collect()
}

/// Until all slots are at rest, and every connection has had an exchange since.
fn settling(moves: bool) -> Duration {
    match moves {
        true => MOVING_TIME * 2 + SETTLE,
        false => SETTLE,
    }
}
