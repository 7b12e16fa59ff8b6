//! Doing: the network, the servers and the agent, and what is done to them while the playground
//! runs. Owns all that is made, which goes on drop; never decides what to do or shows anything.

use std::{net::IpAddr, path::PathBuf, sync::mpsc as orders, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{BACKENDS, Offer, claim::Claim};
use crate::{
    agent::{Agent, Decapsulator, Home},
    backend::Backend,
    bpffs::Bpffs,
    netns::Namespace,
    topology::{Names, Topology},
    wait::wait_ok,
};

const READY: Duration = Duration::from_secs(10);

/// Something to be done. Servers are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Kill this server if it runs, else start it.
    Server(u8),
    /// Let this server take no new connections in any service, or take them again.
    Drain(u8, bool),
    /// Kill the agent if it runs, else start it.
    Agent,
}

/// All that was made.
#[derive(Debug)]
pub struct Stage {
    // Dropped in this order: the program goes before the interface that it is on.
    agent: Agent,
    _tunnels: Vec<Decapsulator>,
    servers: Vec<Backend>,
    topology: Topology,
    offers: Vec<Offer>,
    _claim: Claim,
}

impl Stage {
    /// Makes everything under the name claimed and returns once every backend of `offers` is up.
    ///
    /// # Errors
    /// What could not be made.
    pub fn build(claim: Claim, offers: Vec<Offer>) -> Result<Self> {
        let topology = Topology::build(BACKENDS, Names::Stable(claim.name()), None)?;
        let servers = Backend::start_all(&topology)?;
        let direct = offers.iter().filter(|offer| offer.mode != "nat");
        let vips: Vec<IpAddr> = direct.map(|offer| offer.vip.ip()).collect();
        topology.accept_vips(&vips)?;
        let tunnels: Result<Vec<_>> = topology.backends.iter().map(Decapsulator::attach).collect();
        let tunnels = tunnels?;
        let services: Vec<_> = offers.iter().map(Offer::service).collect();
        let home = Home::at(claim.name().to_owned(), claim.directory(), Bpffs::unique()?);
        let agent = Agent::start_in(&topology.balancer, &services.into(), home, &[])?;
        let stage = Self {
            agent,
            _tunnels: tunnels,
            servers,
            topology,
            offers,
            _claim: claim,
        };
        wait_ok("every backend is up", READY, || stage.every_backend_is_up())?;
        Ok(stage)
    }

    /// Where clients are.
    pub fn client(&self) -> &Namespace {
        &self.topology.client
    }

    /// The socket that the agent answers on.
    pub fn socket(&self) -> PathBuf {
        self.agent.home().socket.clone()
    }

    /// Carries `order` out; returns what was done, in words, where the agent will not tell it.
    ///
    /// # Errors
    /// What could not be done, and why.
    pub fn obey(&mut self, order: Order) -> Result<Option<String>> {
        match order {
            Order::Server(n) => self.toggle_server(n).map(Some),
            Order::Drain(n, on) => self.drain(n, on).map(|()| None),
            Order::Agent => self.toggle_agent(),
        }
    }

    fn every_backend_is_up(&self) -> Result<()> {
        let backends = self.agent.lbctl_json(&["backend", "list"])?;
        let up = |backend: &&Value| backend["condition"] == "up" && backend["reachable"] == true;
        let up = backends.as_array().into_iter().flatten().filter(up).count();
        let wanted: usize = self.offers.iter().map(|offer| offer.pool.len()).sum();
        ensure!(up == wanted, "{up} of {wanted} are: {backends:#}");
        Ok(())
    }

    fn toggle_server(&mut self, n: u8) -> Result<String> {
        let server = n.checked_sub(1).map(usize::from);
        let server = server.and_then(|index| self.servers.get_mut(index));
        let server = server.with_context(|| format!("there is no server {n}"))?;
        let name = server.name().to_owned();
        if server.is_running() {
            server.kill();
            return Ok(format!("{name}: nginx was killed"));
        }
        server.restart()?;
        Ok(format!("{name}: nginx runs again"))
    }

    fn toggle_agent(&mut self) -> Result<Option<String>> {
        if self.agent.is_running() {
            self.agent.sigkill();
            return Ok(Some("lbd was killed".to_owned()));
        }
        self.agent.restart().map(|()| None)
    }

    fn drain(&self, n: u8, on: bool) -> Result<()> {
        let verb = if on { "drain" } else { "undrain" };
        for offer in &self.offers {
            let address = offer.pool[usize::from(n) - 1].to_string();
            let service = format!("{}/tcp", offer.vip);
            self.agent
                .lbctl(&["backend", verb, &service, &address])?
                .succeeded()?;
        }
        Ok(())
    }
}

/// A stage on a thread of its own, since doing takes time: orders go in, and what was done comes
/// out. Everything is removed on drop.
#[derive(Debug)]
pub struct Hand {
    orders: Option<orders::Sender<Order>>,
    said: mpsc::UnboundedReceiver<Result<String>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hand {
    /// Takes `stage` over.
    pub fn start(mut stage: Stage) -> Self {
        let (orders, received) = orders::channel();
        let (say, said) = mpsc::unbounded_channel();
        let thread = thread::spawn(move || {
            for order in received {
                // Whoever gave the order may be ending, and not listen.
                match stage.obey(order) {
                    Ok(None) => {}
                    Ok(Some(done)) => drop(say.send(Ok(done))),
                    Err(error) => drop(say.send(Err(error))),
                }
            }
        });
        Self {
            orders: Some(orders),
            said,
            thread: Some(thread),
        }
    }

    /// Has `order` carried out, after those given before.
    pub fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A thread that is gone is noticed in `next`.
            let _ = orders.send(order);
        }
    }

    /// What was done next, or could not be; none once the thread is gone.
    pub async fn next(&mut self) -> Option<Result<String>> {
        self.said.recv().await
    }

    /// Removes everything.
    ///
    /// # Errors
    /// Something could not be removed; it has been said what.
    pub fn end(mut self) -> Result<()> {
        self.join()
            .map_err(|_| anyhow!("not everything could be removed"))
    }

    fn join(&mut self) -> thread::Result<()> {
        self.orders = None;
        self.thread.take().map_or(Ok(()), thread::JoinHandle::join)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        // A panic has been reported by the thread itself.
        drop(self.join());
    }
}
