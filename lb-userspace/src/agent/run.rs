//! The loop: news comes in one at a time, is made to take effect, and is answered. What weighs more comes
//! first, but nobody is kept waiting for ever by whoever has always something to say.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lb_common::tables::Tick;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    ChangeError, Core, Request,
    core::{Sweep, Teller},
    history::{self, History},
};
use crate::{
    announce::{Announcer, Conflict},
    dataplane::{Dataplane, DataplaneError, Programs},
    health::{Checker, Event, Target},
    model::Change,
    neighbours::{Resolver, Update},
    plan::census::Census,
    store::{self, Stored},
};

/// How long an answer waits for the next hops of backends that a change brought.
const RESOLVE: Duration = Duration::from_secs(1);
/// How often backends that are down are looked at.
const AGE: Duration = Duration::from_secs(1);
/// How often weights that grow are looked at: all that have a step to make make it at once.
const STEP: Duration = Duration::from_millis(200);
/// Pause before a plan that the kernel refused, or a sweep that came to nothing, is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Sweeps that are tried again that soon, until one comes to something.
const SWEEP_RETRIES: u32 = 8;

/// Whom the loop listens to, and whom it tells.
#[derive(Debug)]
pub struct Sources {
    /// Asked through [`super::Handle`].
    pub requests: mpsc::Receiver<Request>,
    /// Runs the checks, whose news the core listens to ([`Core::listen`]).
    pub checker: Checker,
    /// Resolves next hops.
    pub resolver: Resolver,
    /// Its news.
    pub network: mpsc::Receiver<Update>,
    /// Announces VIPs.
    pub announcer: Announcer,
    /// Who else claims them.
    pub conflicts: mpsc::Receiver<Conflict>,
    /// Where the state is kept for the next agent, and the configuration it began from.
    pub store: Option<(PathBuf, String)>,
    /// Loads programs for what a change needs that those in force are not loaded for.
    pub programs: Arc<dyn Programs>,
    /// Where what is known against backends is kept for it.
    pub history: Option<PathBuf>,
}

/// A change that waits for programs, and whoever waits for it.
type Parked = (Change, oneshot::Sender<Result<(), ChangeError>>);

/// A change in force whose answer waits for next hops.
struct Waiting {
    addresses: BTreeSet<IpAddr>,
    until: Instant,
    reply: oneshot::Sender<Result<(), ChangeError>>,
}

/// Runs until `shutdown`; the maps and the program stay as they are then. `ready` is called once
/// the next hops of the backends known at the start are resolved, or have had their time.
pub async fn run<D: Dataplane>(
    core: Core<D>,
    sources: Sources,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) {
    let mut agent = Running::new(core, sources);
    agent.core.begin_journal(SystemTime::now());
    agent.tell_watchers();
    agent.save();
    let mut ready = Some(ready);
    let start = Instant::now();
    let mut start_until = Some(start + RESOLVE);
    tokio::pin!(shutdown);
    loop {
        if start_until.is_some() && agent.core.unresolved().is_empty() {
            start_until = None;
        }
        if start_until.is_none()
            && let Some(ready) = ready.take()
        {
            ready();
        }
        let wake = agent.next_deadline(start_until);
        tokio::select! {
            biased;
            () = &mut shutdown => return agent.remember(),
            Some(event) = agent.core.news() => agent.on_health(event),
            Some(update) = agent.sources.network.recv() => agent.on_network(update),
            Some(request) = agent.sources.requests.recv() => agent.on_request(request),
            Some(conflict) = agent.sources.conflicts.recv() => agent.core.claimed(conflict),
            Some(census) = agent.sweeps.join_next() => agent.on_swept(census),
            Some(loaded) = agent.loads.join_next() => agent.on_loaded(loaded),
            () = sleep_until(wake.unwrap_or(start)), if wake.is_some() => {}
        }
        agent.give_turns();
        agent.follow_news();
        let now = Instant::now();
        start_until = start_until.filter(|&until| until > now);
        agent.on_deadlines(now);
        agent.core.observe(SystemTime::now());
    }
}

struct Running<D> {
    core: Core<D>,
    sources: Sources,
    waiting: Vec<Waiting>,
    retry: Option<Instant>,
    sweep: Sweeping,
    /// When backends that are down are looked at next.
    age: Instant,
    /// When it is looked at next how backends fare whose weights follow that.
    look: Instant,
    /// When weights that grow are looked at next, if any do.
    step: Instant,
    /// The one sweep that is under way, if any.
    sweeps: JoinSet<Result<Census, DataplaneError>>,
    /// Sweeps that came to nothing in a row and were tried again soon.
    sweep_retries: u32,
    /// The programs that are being loaded, if any are.
    loads: JoinSet<Result<u32, DataplaneError>>,
    /// What programs have been loaded for in vain, if a change still says that they are not.
    loaded: u32,
    /// What they are being loaded for that the network needs and no change.
    for_network: u32,
    /// What of that they could not be loaded for.
    refused: u32,
    /// Changes in the order in which they came, since the one that they are loaded for.
    parked: VecDeque<Parked>,
    /// What is kept for the next agent.
    remembered: Option<History<Tick>>,
    /// What should be kept could not be written the last time.
    forgetful: bool,
}

/// The sweep of the flow tables, which runs beside the loop.
enum Sweeping {
    Due(Instant),
    UnderWay(Instant),
}

impl<D: Dataplane> Running<D> {
    /// Nothing has been done yet.
    fn new(core: Core<D>, sources: Sources) -> Self {
        Self {
            core,
            sources,
            waiting: Vec::new(),
            retry: None,
            sweep: Sweeping::Due(Instant::now()),
            age: Instant::now() + AGE,
            look: Instant::now() + AGE,
            step: Instant::now(),
            sweeps: JoinSet::new(),
            sweep_retries: 0,
            loads: JoinSet::new(),
            loaded: 0,
            for_network: 0,
            refused: 0,
            parked: VecDeque::new(),
            remembered: None,
            forgetful: false,
        }
    }

    fn next_deadline(&self, start: Option<Instant>) -> Option<Instant> {
        let sweep = match self.sweep {
            Sweeping::Due(due) => Some(due),
            Sweeping::UnderWay(_) => None,
        };
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        let step = self.core.is_ramping().then_some(self.step);
        let watch = self.core.watches_at();
        let (age, look) = (Some(self.age), Some(self.look));
        // What came while others had their turn has yet to be seen to.
        let heard = self.core.has_news().then(Instant::now);
        let own = [self.retry, sweep, age, look, step, watch, start, heard];
        waiting.chain(own.into_iter().flatten()).min()
    }

    /// One turn for everybody who has something to say.
    fn give_turns(&mut self) {
        if let Some(event) = self.core.news_at_hand() {
            self.on_health(event);
        }
        if let Ok(update) = self.sources.network.try_recv() {
            self.on_network(update);
        }
        if let Ok(request) = self.sources.requests.try_recv() {
            self.on_request(request);
        }
        if let Ok(conflict) = self.sources.conflicts.try_recv() {
            self.core.claimed(conflict);
        }
        if let Some(census) = self.sweeps.try_join_next() {
            self.on_swept(census);
        }
        if let Some(loaded) = self.loads.try_join_next() {
            self.on_loaded(loaded);
        }
    }

    /// Does what is due.
    fn on_deadlines(&mut self, now: Instant) {
        if self.retry.is_some_and(|at| at <= now) || self.core.has_heard() {
            self.enforce();
        }
        self.core.hear_meanwhile();
        if self.age <= now {
            self.age = now + AGE;
            if self.core.age() {
                self.enforce();
            }
        }
        if self.look <= now {
            self.core.measure();
            self.core.hear_meanwhile();
            let adapted = self.core.look();
            // Others have a turn between one pool and the next.
            self.look = match self.core.has_looks_left() {
                true => now,
                false => now + AGE,
            };
            if adapted {
                self.enforce();
            }
            self.remember();
        }
        if self.core.is_ramping() && self.step <= now {
            self.step = now + STEP;
            if self.core.step() {
                self.enforce();
            }
        }
        if self.core.watches_at().is_some_and(|at| at <= now) && self.core.watch_now() {
            self.enforce();
        }
        if matches!(self.sweep, Sweeping::Due(due) if due <= now) {
            self.start_sweep();
        }
        let due = |waiting: &mut Waiting| waiting.until <= now;
        for waiting in self.waiting.extract_if(.., due) {
            drop(waiting.reply.send(Ok(())));
        }
    }

    fn start_sweep(&mut self) {
        match self.core.sweep() {
            Ok(sweep) => {
                self.sweep = Sweeping::UnderWay(Instant::now());
                self.sweeps.spawn_blocking(move || sweep.run());
            }
            Err(error) => self.sweep_failed(&error, "the flow tables cannot be swept"),
        }
    }

    fn on_swept(&mut self, census: Result<Result<Census, DataplaneError>, JoinError>) {
        let census = match census {
            Ok(Ok(census)) => census,
            Ok(Err(error)) => {
                return self.sweep_failed(&error, "the flow tables cannot be swept");
            }
            Err(error) => return self.sweep_failed(&error, "a sweep of the flow tables broke off"),
        };
        // What it found was true when it was made: a plan that failed takes another sweep.
        if let Err(error) = self.core.swept(census) {
            if self.core.is_behind() {
                self.retry = Some(Instant::now() + RETRY);
            }
            return self.sweep_failed(&error, "slots cannot settle");
        }
        self.sweep_retries = 0;
        // Some that have left may be gone for good.
        self.sources.resolver.watch(self.core.watched());
        let took = match self.sweep {
            Sweeping::UnderWay(since) => since.elapsed(),
            Sweeping::Due(_) => Duration::ZERO,
        };
        self.sweep = Sweeping::Due(Instant::now() + self.core.next_sweep(took));
    }

    /// Soon once more, but not for ever: what goes on failing is as urgent as any sweep.
    fn sweep_failed(&mut self, error: &dyn std::error::Error, what: &str) {
        let interval = self.core.sweep_interval();
        let pause = match self.sweep_retries {
            SWEEP_RETRIES.. => interval,
            _ => RETRY.min(interval),
        };
        self.sweep_retries = self.sweep_retries.saturating_add(1);
        tracing::error!(%error, again_in = ?pause, "{what}; trying again");
        self.sweep = Sweeping::Due(Instant::now() + pause);
    }

    /// Answers with what is in the flow tables, beside the loop.
    fn list<T: Send + 'static>(
        &mut self,
        list: impl FnOnce(Sweep) -> Result<T, DataplaneError> + Send + 'static,
        reply: oneshot::Sender<Result<T, ChangeError>>,
    ) {
        let failed = |error: DataplaneError| ChangeError::Kernel(error.to_string());
        match self.core.sweep() {
            Ok(sweep) => drop(tokio::task::spawn_blocking(move || {
                drop(reply.send(list(sweep).map_err(failed)));
            })),
            Err(error) => drop(reply.send(Err(failed(error)))),
        }
    }

    /// All news that is there, then one plan for all of it. What comes meanwhile takes effect, and what else follows from it
    /// has to wait.
    fn on_health(&mut self, event: Event) {
        if self.core.hear(event) {
            self.enforce();
        }
    }

    /// Sees to what has come of news that were heard, some of them while others had their turn.
    fn follow_news(&mut self) {
        for (target, since) in self.core.none_left() {
            if let Err(early) = self.hear_drained(target, Teller::Agent, since.elapsed()) {
                // It says so again.
                tracing::debug!(%early, "not drained yet");
            }
        }
    }

    /// A backend says that it has no flow left: a sweep shows whether none is recorded either.
    fn hear_drained(
        &mut self,
        target: Target,
        teller: Teller,
        age: Duration,
    ) -> Result<(), ChangeError> {
        let news = self.core.says_drained(target, teller, age)?;
        if news && matches!(self.sweep, Sweeping::Due(_)) {
            self.sweep = Sweeping::Due(Instant::now());
        }
        Ok(())
    }

    fn on_network(&mut self, update: Update) {
        let others = self.sources.network.len();
        let mut changed = self.hear(update);
        for _ in 0..others {
            if let Ok(update) = self.sources.network.try_recv() {
                changed |= self.hear(update);
            }
        }
        self.load_for_network();
        if changed {
            self.enforce();
            if self.core.probes_by_hops() {
                self.sources.checker.set(self.core.targets());
            }
        }
        self.sources.announcer.own(self.core.owned());
        let done = |waiting: &mut Waiting| waiting.addresses.is_empty();
        for waiting in self.waiting.extract_if(.., done) {
            drop(waiting.reply.send(Ok(())));
        }
    }

    fn hear(&mut self, update: Update) -> bool {
        if let Update::NextHop { address, .. } = &update {
            for waiting in &mut self.waiting {
                waiting.addresses.remove(address);
            }
        }
        self.core.network(update)
    }

    fn on_request(&mut self, request: Request) {
        // Whoever asks is answered once what was heard before is in force.
        if self.core.has_heard() {
            self.enforce();
        }
        match request {
            // Nobody may be left to hear an answer, which is no matter.
            Request::Snapshot(reply) => drop(reply.send(self.core.snapshot_meanwhile())),
            Request::Service(id, reply) => drop(reply.send(self.core.service(id))),
            Request::Group(name, reply) => {
                drop(reply.send(self.core.state().of_group(&name).cloned()));
            }
            Request::AccessLists(reply) => {
                drop(reply.send(self.core.state().listings()));
            }
            Request::Events(filter, reply) => drop(reply.send(self.core.events(&filter))),
            Request::Flows(filter, reply) => {
                self.list(move |sweep| sweep.list(&filter), reply);
            }
            Request::Clients(filter, reply) => {
                self.list(move |sweep| sweep.clients(&filter), reply);
            }
            Request::Announce(vip, reply) => {
                let announced = self.core.announced(vip);
                if announced.is_ok() {
                    self.sources.announcer.again(vip);
                }
                drop(reply.send(announced));
            }
            Request::Change(change, reply) => self.on_change(*change, reply),
            Request::Beat(target, reply) => {
                let expected = self.core.expects_beat(target);
                if let Ok(target) = &expected {
                    self.sources.checker.reports().beat(target);
                }
                drop(reply.send(expected.map(|_| ()).map_err(Into::into)));
            }
            Request::Drained(target, reply) => {
                drop(reply.send(self.hear_drained(target, Teller::Reporter, Duration::ZERO)));
            }
        }
    }

    fn on_change(&mut self, change: Change, reply: oneshot::Sender<Result<(), ChangeError>>) {
        // Loading takes the kernel seconds, in which failures and whatever else there is take effect; changes keep their
        // order, but for what cannot wait and has nothing to do with those that do.
        if !self.loads.is_empty() && !self.may_overtake(&change) {
            self.parked.push_back((change, reply));
            return;
        }
        let known = self.core.addresses();
        // Lists of prefixes are shared, not copied.
        if let Err(error) = self.core.change(change.clone()) {
            if let ChangeError::NotLoaded(features) = error
                && features & !self.loaded != 0
            {
                match self.loads.is_empty() {
                    true => {
                        self.load(features);
                        self.parked.push_front((change, reply));
                    }
                    false => self.parked.push_back((change, reply)),
                }
                return;
            }
            drop(reply.send(Err(error)));
            if self.core.is_behind() {
                self.retry = Some(Instant::now() + RETRY);
            }
            return;
        }
        self.tell_watchers();
        self.save();
        self.remember();
        let unresolved = self.core.unresolved();
        let addresses: BTreeSet<IpAddr> = unresolved.difference(&known).copied().collect();
        if addresses.is_empty() {
            drop(reply.send(Ok(())));
            return;
        }
        let until = Instant::now() + RESOLVE;
        self.waiting.push(Waiting {
            addresses,
            until,
            reply,
        });
    }

    /// Whether a change takes new flows from somebody who should have none, and no change that waits is of that pool.
    fn may_overtake(&self, change: &Change) -> bool {
        let Some(id) = change.diverts() else {
            return false;
        };
        let state = self.core.state();
        let lead = state.lead(id);
        self.parked
            .iter()
            .all(|(parked, _)| !parked.may_be_of(lead, state))
    }

    /// Has programs loaded for what the network has come to need, unless they could not be. What is wanted goes on without meanwhile.
    fn load_for_network(&mut self) {
        let lacks = self.core.lacks() & !self.refused;
        if lacks != 0 && self.loads.is_empty() {
            self.for_network = lacks;
            self.load(lacks);
        }
    }

    fn load(&mut self, features: u32) {
        let programs = Arc::clone(&self.sources.programs);
        tracing::info!(
            features = format_args!("{features:#x}"),
            "loading the programs for what is needed now"
        );
        self.loads
            .spawn_blocking(move || programs.load(features).map(|()| features));
    }

    fn on_loaded(&mut self, loaded: Result<Result<u32, DataplaneError>, JoinError>) {
        let failed = match loaded {
            Ok(Ok(features)) => {
                self.loaded |= features;
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(format!("loading the programs broke off: {error}")),
        };
        let lacked = std::mem::take(&mut self.for_network);
        if lacked != 0 {
            // What is said to be loaded and is not is not loaded for ever.
            self.refused |= lacked & self.core.lacks();
            match failed {
                Some(why) => tracing::error!(%why, "nothing is made of VLANs and bonds"),
                None => self.enforce(),
            }
        // The one that they were loaded for came first; those that came later may not need them.
        } else if let Some(why) = failed
            && let Some((_, reply)) = self.parked.pop_front()
        {
            tracing::error!(%why, "a change is refused");
            drop(reply.send(Err(ChangeError::Kernel(why))));
        }
        for _ in 0..self.parked.len() {
            // If one needs others again, the rest waits behind it.
            if !self.loads.is_empty() {
                break;
            }
            if let Some((change, reply)) = self.parked.pop_front() {
                self.on_change(change, reply);
            }
        }
        self.load_for_network();
    }

    fn tell_watchers(&mut self) {
        self.sources.resolver.watch(self.core.watched());
        self.core.hear_meanwhile();
        self.sources.checker.set(self.core.targets());
        self.core.hear_meanwhile();
        self.sources.announcer.own(self.core.owned());
    }

    /// Keeps what is wanted for the next agent. Takes in news meanwhile: a disk may be slow.
    fn save(&mut self) {
        let Some((path, config)) = &self.sources.store else {
            return;
        };
        let stored = Stored {
            config: config.clone(),
            access_lists: self.core.state().access_lists().cloned().collect(),
            services: self.core.state().services().cloned().collect(),
        };
        let saved = self.core.beside("save", || store::save(path, &stored));
        if let Err(error) = saved {
            let path = path.display();
            tracing::error!(%error, %path, "changes will not outlive this agent");
        }
    }

    /// Keeps what is known against backends, where that is news. Takes in news meanwhile.
    fn remember(&mut self) {
        let Some(path) = &self.sources.history else {
            return;
        };
        let history = self.core.history();
        if self.remembered.as_ref() == Some(&history) {
            return;
        }
        let ticks = self.core.dataplane().now();
        let write = || -> anyhow::Result<()> {
            let text = history::write(history.clone(), ticks, store::uptime()?)?;
            Ok(store::write(path, &text)?)
        };
        let kept = self.core.beside("keep", || match history.is_empty() {
            true => store::remove(path).map_err(Into::into),
            false => write(),
        });
        match kept {
            Ok(()) => {
                self.remembered = Some(history);
                self.forgetful = false;
            }
            // It is tried again with every look, and told once.
            Err(error) => {
                let path = path.display();
                if !std::mem::replace(&mut self.forgetful, true) {
                    tracing::error!(%error, %path, "what is held against backends would not outlive this agent; trying again");
                }
            }
        }
    }

    fn enforce(&mut self) {
        self.retry = None;
        if let Err(error) = self.core.enforce() {
            tracing::error!(%error, "the maps are not what is wanted; trying again");
            let again = Instant::now() + RETRY;
            self.retry = Some(again);
        }
    }
}

#[cfg(test)]
#[path = "run_load_tests.rs"]
mod load_tests;
#[cfg(test)]
#[path = "run_meanwhile_tests.rs"]
mod meanwhile_tests;
#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
