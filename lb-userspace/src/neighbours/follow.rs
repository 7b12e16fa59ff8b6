//! Owns the task that keeps the table equal to the kernel's and says what changed for the watched
//! addresses. Never decides how an address is resolved (`table`).

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant, MissedTickBehavior},
};

use super::{
    Origin, Port, Update,
    netlink::{self, Event, Events, Netlink},
    table::{Effect, Resolution, Table},
};

/// Changes of routes, links and addresses come in crowds: questions wait this long for the rest.
const SETTLE: Duration = Duration::from_millis(50);
/// How often neighbours that are stale or lost are asked after, the kernel's own rhythm for its
/// managed neighbours (`interval_probe_time_ms`), and what drivers have of XDP, which changes with other ends' programs.
const REFRESH: Duration = Duration::from_secs(5);
/// How often everything is read anew. Events make it superfluous but for those that the kernel
/// does not send, such as a path MTU that it learned.
const RESYNC: Duration = Duration::from_secs(60);
/// Pause before broken sockets are opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Why following ended.
enum End {
    /// Nobody watches or listens any more.
    Unheard,
    /// The sockets do not work any more.
    Broken(String),
}

/// Follows the kernel until nobody watches or listens any more.
pub async fn run(
    origin: Origin,
    netlink: Netlink,
    mut events: Events,
    mut watched: watch::Receiver<BTreeSet<IpAddr>>,
    updates: mpsc::Sender<Update>,
) {
    let mut follower = Follower::new(origin, netlink, updates);
    while let Err(End::Broken(reason)) = follower.follow(&mut events, &mut watched).await {
        tracing::warn!(
            "lost touch with the kernel's routes and neighbours, trying again: {reason}"
        );
        (follower.netlink, events) = reopen().await;
    }
}

async fn reopen() -> (Netlink, Events) {
    loop {
        time::sleep(REOPEN).await;
        match netlink::open() {
            Ok(open) => return open,
            Err(error) => tracing::warn!("cannot open netlink sockets: {error}"),
        }
    }
}

/// Waits until `due`, or for ever.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

struct Follower {
    netlink: Netlink,
    updates: mpsc::Sender<Update>,
    table: Table,
    watched: BTreeSet<IpAddr>,
    /// When the routes of all watched addresses are to be asked for again.
    routes_due: Option<Instant>,
    /// What was found changed since it was last told.
    untold: Effect,
    told: BTreeMap<IpAddr, Resolution>,
    told_own: Option<BTreeSet<IpAddr>>,
    told_ports: Option<BTreeMap<String, Port>>,
    /// How long the last round of questions took.
    round: Duration,
}

impl Follower {
    fn new(origin: Origin, netlink: Netlink, updates: mpsc::Sender<Update>) -> Self {
        Self {
            netlink,
            updates,
            table: Table::new(origin),
            watched: BTreeSet::new(),
            routes_due: None,
            untold: Effect::default(),
            told: BTreeMap::new(),
            told_own: None,
            told_ports: None,
            round: Duration::ZERO,
        }
    }

    async fn follow(
        &mut self,
        events: &mut Events,
        watched: &mut watch::Receiver<BTreeSet<IpAddr>>,
    ) -> Result<Infallible, End> {
        self.resync().await?;
        self.tell().await?;
        let now = Instant::now();
        let [mut resync, mut refresh] = [RESYNC, REFRESH].map(|p| time::interval_at(now + p, p));
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = resync.tick() => self.resync().await?,
                changed = watched.changed() => {
                    changed.map_err(|_| End::Unheard)?;
                    let addresses = watched.borrow_and_update().clone();
                    self.watch(addresses).await?;
                }
                event = events.next() => {
                    let closed = || End::Broken("the socket of events is closed".to_owned());
                    self.take(event.ok_or_else(closed)?, events).await?;
                }
                () = at(self.routes_due) => self.ask_all_routes().await,
                _ = refresh.tick() => {
                    self.ask_drivers();
                    self.use_neighbours(true).await;
                }
            }
            self.tell().await?;
        }
    }

    /// Reads everything anew.
    async fn resync(&mut self) -> Result<(), End> {
        let dump = self
            .netlink
            .dump()
            .await
            .map_err(|error| End::Broken(error.to_string()))?;
        self.table.replace(dump);
        self.ask_drivers();
        self.untold = Effect {
            routes: false,
            resolutions: true,
            own_addresses: true,
            ports: true,
        };
        self.ask_all_routes().await;
        Ok(())
    }

    fn ask_drivers(&mut self) {
        if let Some(drivers) = self.netlink.drivers() {
            self.untold |= self.table.set_drivers(drivers);
        }
    }

    async fn watch(&mut self, watched: BTreeSet<IpAddr>) -> Result<(), End> {
        self.watched = watched;
        let told = std::mem::take(&mut self.told).into_iter();
        let (kept, forgotten): (_, BTreeMap<_, _>) =
            told.partition(|(address, _)| self.watched.contains(address));
        self.told = kept;
        if !forgotten.is_empty() {
            let addresses = forgotten.into_keys().collect();
            self.send(Update::Forgotten(addresses)).await?;
        }
        self.table.keep_routes(&self.watched);
        let table = &self.table;
        let new = self
            .watched
            .iter()
            .copied()
            .filter(|ip| !table.has_route(*ip))
            .collect();
        self.ask_routes(new).await;
        Ok(())
    }

    /// Takes note of an event and of all that wait behind it.
    async fn take(&mut self, first: Event, events: &mut Events) -> Result<(), End> {
        let mut next = Some(first);
        let mut effect = Effect::default();
        let mut lost = false;
        while let Some(event) = next {
            match event {
                Event::Change(change) => effect |= self.table.apply(change),
                Event::Lost => lost = true,
            }
            next = events.ready();
        }
        self.untold |= effect;
        if effect.ports {
            self.ask_drivers();
        }
        if effect.routes {
            // While routes never come to rest, at most a fifth of the time goes into questions.
            let due = Instant::now() + SETTLE + self.round * 4;
            self.routes_due.get_or_insert(due);
        }
        if lost {
            tracing::debug!("events of the kernel were lost; reading everything anew");
            self.resync().await?;
        }
        Ok(())
    }

    async fn ask_all_routes(&mut self) {
        self.routes_due = None;
        let started = Instant::now();
        self.ask_routes(self.watched.iter().copied().collect())
            .await;
        self.round = started.elapsed();
    }

    async fn ask_routes(&mut self, addresses: Vec<IpAddr>) {
        for address in addresses {
            let route = self.netlink.route(address).await;
            self.table.set_route(address, route);
        }
        self.untold.resolutions = true;
        self.use_neighbours(false).await;
    }

    /// Has the kernel find out about the neighbours in use that it is not sure of. Its answers come
    /// as events.
    async fn use_neighbours(&self, also_stale: bool) {
        let mut failures = Vec::new();
        for neighbour in self.table.doubtful_neighbours(also_stale) {
            if let Err(error) = self.netlink.use_neighbour(neighbour).await {
                failures.push((neighbour.1, error));
            }
        }
        if let Some((ip, error)) = failures.first() {
            tracing::warn!(
                "{} neighbours cannot be resolved, such as {ip}: {error}",
                failures.len()
            );
        }
    }

    /// Sends what is new.
    async fn tell(&mut self) -> Result<(), End> {
        let untold = std::mem::take(&mut self.untold);
        if untold.own_addresses {
            let own = self.table.own_addresses();
            if self.told_own.as_ref() != Some(&own) {
                self.told_own = Some(own.clone());
                self.send(Update::OwnAddresses(own)).await?;
            }
        }
        if untold.ports {
            let ports = self.table.ports();
            if self.told_ports.as_ref() != Some(&ports) {
                self.told_ports = Some(ports.clone());
                self.send(Update::Ports(ports)).await?;
            }
        }
        if untold.resolutions {
            for address in self.watched.clone() {
                self.tell_resolution(address).await?;
            }
        }
        Ok(())
    }

    async fn tell_resolution(&mut self, address: IpAddr) -> Result<(), End> {
        let resolution = self.table.resolve(address);
        if !self.table.has_route(address) || self.told.get(&address) == Some(&resolution) {
            return Ok(());
        }
        self.told.insert(address, resolution.clone());
        let (next_hop, reason) = match resolution {
            Ok(next_hop) => (Some(next_hop), None),
            Err(reason) => (None, Some(reason)),
        };
        self.send(Update::NextHop {
            address,
            next_hop,
            reason,
        })
        .await
    }

    async fn send(&self, update: Update) -> Result<(), End> {
        self.updates.send(update).await.map_err(|_| End::Unheard)
    }
}
