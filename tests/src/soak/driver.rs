//! Carries a plan out on the stage, through `lbctl` and signals, and watches the balancer
//! meanwhile. Owns the order of things; what is done is the plan's.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    client::{Books, Clock},
    cpu::{self, ProgramCost, ProgramMeter, Seconds},
    echo_server::Health,
    metrics::{self, Watched},
    plan::{Action, Alarm, Change, Step},
    stage::{Stage, address, name},
};
use crate::topology::backend_v4;

/// From one look at the balancer's metrics to the next.
const LOOK: Duration = Duration::from_secs(1);
/// For a failing health check to be noticed, before it succeeds again.
const NOTICE: Duration = Duration::from_secs(5);
/// Between two looks at whether it was.
const POLL: Duration = Duration::from_millis(100);
/// Changes between two lines of progress.
const PROGRESS: u64 = 20;

/// False alarms that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Alarms {
    /// The balancer took the backend for down.
    pub noticed: u64,
    /// It did not within [`NOTICE`].
    pub unnoticed: u64,
    /// No service had the backend any more.
    pub unlisted: u64,
}

/// What a run has cost, in processor time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cost {
    /// `lbd`, all its lives.
    pub agent_seconds: Seconds,
    /// The XDP program.
    pub program_seconds: Seconds,
    /// Packets that the program saw.
    pub program_packets: u64,
    /// The client and the driver.
    pub client_seconds: Seconds,
    /// The backends.
    pub backends_seconds: Seconds,
}

/// Carries steps out.
#[derive(Debug)]
pub struct Driver<'a> {
    stage: &'a mut Stage,
    books: Books,
    clock: Clock,
    meter: ProgramMeter,
    /// Of agents that have been killed.
    agent_spent: Seconds,
    watched: Watched,
    looked: Instant,
    alarms: Alarms,
    done: u64,
}

impl<'a> Driver<'a> {
    /// Begins to watch.
    ///
    /// # Errors
    /// The balancer cannot be watched.
    pub fn start(stage: &'a mut Stage, books: &Books, clock: Clock) -> Result<Self> {
        let meter = ProgramMeter::start(&stage.topology.balancer)?;
        let mut driver = Self {
            stage,
            books: books.clone(),
            clock,
            meter,
            agent_spent: 0.0,
            watched: Watched::default(),
            looked: Instant::now(),
            alarms: Alarms::default(),
            done: 0,
        };
        driver.look()?;
        Ok(driver)
    }

    /// Carries all out.
    ///
    /// # Errors
    /// Something cannot be carried out, or ended by itself.
    pub async fn carry_out(&mut self, steps: &[Step]) -> Result<()> {
        for Step { pause, action } in steps {
            self.wait(*pause).await?;
            self.check()?;
            self.act(action)
                .await
                .with_context(|| format!("carrying out {action:?}"))?;
        }
        Ok(())
    }

    /// Waits, and watches the balancer meanwhile.
    ///
    /// # Errors
    /// The balancer does not say its metrics.
    pub async fn wait(&mut self, pause: Duration) -> Result<()> {
        let end = Instant::now() + pause;
        while self.looked + LOOK < end {
            sleep_until(self.looked + LOOK).await;
            self.look()?;
        }
        sleep_until(end).await;
        Ok(())
    }

    /// What was seen of the balancer.
    pub fn watched(&self) -> &Watched {
        &self.watched
    }

    /// How false alarms went.
    pub fn alarms(&self) -> Alarms {
        self.alarms
    }

    /// What the run has cost so far.
    ///
    /// # Errors
    /// The kernel's figures cannot be read.
    pub fn cost(&self) -> Result<Cost> {
        let ProgramCost { nanos, runs } = self.meter.cost()?;
        Ok(Cost {
            agent_seconds: self.agent_spent + self.stage.agent.id().map_or(0.0, cpu::of_process),
            program_seconds: nanos as f64 / 1e9,
            program_packets: runs,
            client_seconds: cpu::of_process(std::process::id()),
            backends_seconds: self.stage.fleet.cpu(),
        })
    }

    /// A line for people who wait.
    fn progress(&self) {
        let books = self.books.open();
        let totals = books.totals();
        eprintln!(
            "{:>6.1} s: {} changes, {} connections, {} broken, {} broken with their backend",
            self.clock.now().as_secs_f64(),
            self.done,
            totals.open,
            totals.broken,
            totals.with_backend
        );
    }

    fn look(&mut self) -> Result<()> {
        let page = metrics::scrape(&self.stage.topology.balancer)?;
        let open = self.books.open().totals().open;
        self.watched.see(&page, open);
        self.looked = Instant::now();
        Ok(())
    }

    /// Whether all that should run does.
    fn check(&mut self) -> Result<()> {
        self.stage.fleet.check()?;
        let agent = &mut self.stage.agent;
        ensure!(
            agent.is_running(),
            "lbd has ended by itself\n{}",
            agent.log()
        );
        Ok(())
    }

    async fn act(&mut self, action: &Action) -> Result<()> {
        let backend = match *action {
            Action::Change(change) => {
                if self.done.is_multiple_of(PROGRESS) {
                    self.progress();
                }
                self.done += 1;
                self.books.open().changes(change.kind(), self.clock.now());
                return self.change(&change);
            }
            Action::AlarmEnds(backend) => {
                self.await_notice(backend).await?;
                return self.stage.fleet.say(backend, Health::Well);
            }
            Action::StallEnds(backend) => backend,
        };
        self.stage.fleet.go_on(backend)?;
        let identity = self.stage.fleet.identity(backend);
        self.books.open().goes_on(identity, self.clock.now());
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<()> {
        match *change {
            Change::Add {
                service,
                backend,
                weight,
            } => {
                let weight = weight.to_string();
                self.backend("add", service, backend, &["--weight", &weight])
            }
            Change::Remove { service, backend } => self.backend("remove", service, backend, &[]),
            Change::Weight {
                service,
                backend,
                weight,
            } => self.backend("weight", service, backend, &[&weight.to_string()]),
            Change::Drain { service, backend } => self.backend("drain", service, backend, &[]),
            Change::Undrain { service, backend } => self.backend("undrain", service, backend, &[]),
            Change::RingSize { service, slots } => {
                let (service, slots) = (name(service), slots.to_string());
                self.lbctl(&["service", "set", &service, "--ring-size", &slots])
            }
            Change::Scheduler { service, scheduler } => {
                self.lbctl(&["service", "set", &name(service), "--scheduler", scheduler])
            }
            Change::FalseAlarm { backend, alarm } => {
                let health = match alarm {
                    Alarm::Failing => Health::Failing,
                    Alarm::Silent => Health::Silent,
                };
                self.stage.fleet.say(backend, health)
            }
            Change::Kill { backend } => {
                let identity = self.stage.fleet.identity(backend);
                self.books.open().kills(identity, self.clock.now());
                self.stage.fleet.kill(backend);
                self.books.open().gone(identity, self.clock.now());
                Ok(())
            }
            Change::Revive { backend } => self.stage.fleet.revive(backend),
            Change::Stall { backend } => {
                let identity = self.stage.fleet.identity(backend);
                self.books.open().stalls(identity, self.clock.now());
                self.stage.fleet.stall(backend)
            }
            Change::AgentRestart => self.restart_agent(),
        }
    }

    fn restart_agent(&mut self) -> Result<()> {
        // What it counted itself goes with it.
        self.look()?;
        self.agent_spent += self.stage.agent.id().map_or(0.0, cpu::of_process);
        self.stage.agent.restart()?;
        self.meter.follow()
    }

    fn backend(&self, verb: &str, service: usize, backend: u8, more: &[&str]) -> Result<()> {
        let (service, backend) = (name(service), address(service, backend).to_string());
        self.lbctl(&[&["backend", verb, &service, &backend], more].concat())
    }

    fn lbctl(&self, arguments: &[&str]) -> Result<()> {
        let said = self.stage.agent.lbctl(arguments)?;
        said.succeeded()
            .map(drop)
            .with_context(|| format!("lbctl {}", arguments.join(" ")))
    }

    /// Waits until the balancer takes `backend` for down, wherever it knows it.
    async fn await_notice(&mut self, backend: u8) -> Result<()> {
        let end = Instant::now() + NOTICE;
        let address = IpAddr::from(backend_v4(backend));
        loop {
            let listed = self.stage.agent.lbctl_json(&["backend", "list"])?;
            match condition(&listed, address) {
                Some(true) => self.alarms.noticed += 1,
                Some(false) if Instant::now() < end => {
                    sleep(POLL).await;
                    continue;
                }
                Some(false) => self.alarms.unnoticed += 1,
                None => self.alarms.unlisted += 1,
            }
            return Ok(());
        }
    }
}

/// Whether every entry at `address` in a list of backends is down, if there is any that is checked.
fn condition(listed: &Value, address: IpAddr) -> Option<bool> {
    let is_own = |entry: &&Value| {
        let own = entry["address"].as_str().map(str::parse::<SocketAddr>);
        matches!(own, Some(Ok(own)) if own.ip() == address) && entry["leaving"] != true
    };
    let entries = listed.as_array().into_iter().flatten();
    let own = entries.filter(is_own);
    own.map(|entry| entry["condition"] == "down")
        .reduce(|all, down| all && down)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_backend_is_down_once_every_service_says_so() {
        let list = |first: &str, second: &str| {
            json!([
                {"address": "10.2.0.11:7000", "condition": first},
                {"address": "10.2.0.11:7001", "condition": second},
                {"address": "10.2.0.11:7002", "condition": "up", "leaving": true},
                {"address": "10.2.0.12:7000", "condition": "up"},
            ])
        };
        let at = |n| IpAddr::from(backend_v4(n));
        assert_eq!(condition(&list("down", "up"), at(1)), Some(false));
        assert_eq!(condition(&list("down", "down"), at(1)), Some(true));
        assert_eq!(condition(&list("down", "down"), at(3)), None);
    }
}
