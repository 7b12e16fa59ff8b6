//! The loop over maps in memory, with more to do than there is time for, or over maps that fail.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use lb_common::{
    memory::MemoryTables,
    tables::{
        Counters, FlowCounters, FlowKey, Handshake, PortKey, Record, Session, Signs, Table, Tick,
    },
};
use tokio::time::timeout;

use super::{meanwhile_tests::way, *};
use crate::{
    agent::Handle,
    config::Tunnel,
    dataplane::{Capacity, FlowTables, Operation, Wait, memory::MemoryDataplane},
    health::Target,
    model::{Admin, Backend, Mode, Service},
    plan::Ring,
    snapshot::{BackendState, Condition, EventFilter, Happened},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Maps, and checks that have more news whenever one has been heard.
pub(super) struct Flood {
    pub(super) memory: MemoryDataplane,
    event: Event,
    pub(super) events: mpsc::Sender<Event>,
    over: Arc<AtomicBool>,
    faults: Arc<Faults>,
}

/// Programs that nobody is to load.
#[derive(Debug)]
struct NoPrograms;

impl Programs for NoPrograms {
    fn load(&self, features: u32) -> Result<(), DataplaneError> {
        unreachable!("loaded for {features:#x}")
    }
}

/// What is to go wrong, how often, and when sweeps began; what checks say while a plan is carried out.
#[derive(Default)]
pub(super) struct Faults {
    /// Lists of operations so far, and waits.
    pub(super) executed: AtomicUsize,
    /// What they say while that one of them is carried out.
    pub(super) told: Mutex<Option<(usize, Event)>>,
    /// What they say in the next wait, which is over once a backend is marked or no patience is left.
    pub(super) told_in_wait: Mutex<Option<Event>>,
    /// What they say while counters are read.
    pub(super) told_in_read: Mutex<Option<Event>>,
    /// A backend was marked.
    pub(super) marked: AtomicBool,
    /// What packets show of backends from the next wait on, which is over as the one above is.
    pub(super) shown_in_wait: Mutex<Option<Signs>>,
    shown: Mutex<Option<Signs>>,
    /// And before that wait was over.
    pub(super) in_time: AtomicBool,
    panics: AtomicU32,
    refusals: AtomicU32,
    sweeps: Mutex<Vec<Instant>>,
}

impl Faults {
    fn is_due(left: &AtomicU32) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }

    /// One more operation is carried out.
    fn execute(&self, events: &mpsc::Sender<Event>) {
        let number = self.executed.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap();
        if told.as_ref().is_some_and(|(at, _)| *at == number)
            && let Some((_, event)) = told.take()
        {
            events.try_send(event).unwrap();
        }
    }

    fn wait(&self, events: &mpsc::Sender<Event>) {
        self.execute(events);
        let told = self.told_in_wait.lock().unwrap().take();
        let shown = self.shown_in_wait.lock().unwrap().take();
        if told.is_none() && shown.is_none() {
            return;
        }
        self.marked.store(false, Ordering::Release);
        *self.shown.lock().unwrap() = shown;
        if let Some(event) = told {
            events.try_send(event).unwrap();
        }
        self.in_time.store(self.await_mark(), Ordering::Release);
    }

    /// Waits until a backend is marked, or no patience is left; whether one was.
    pub(super) fn await_mark(&self) -> bool {
        let begun = SystemTime::now();
        let is_marked = || self.marked.load(Ordering::Acquire);
        while !is_marked() && begun.elapsed().unwrap() < PATIENCE {
            std::thread::yield_now();
        }
        is_marked()
    }

    /// From each sweep to the next.
    fn pauses(&self) -> Vec<Duration> {
        let sweeps = self.sweeps.lock().unwrap();
        sweeps.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// Flow tables without a record, whose reader may panic.
struct Empty {
    is_trap: bool,
}

impl FlowTables for Empty {
    fn scan(
        &mut self,
        _: Table,
        _: &mut dyn FnMut(&FlowKey, &Record),
    ) -> Result<(), DataplaneError> {
        assert!(!self.is_trap, "the panic of a test");
        Ok(())
    }

    fn remove(&mut self, _: Table, _: &FlowKey, _: &Record) -> Result<bool, DataplaneError> {
        Ok(false)
    }

    fn scan_sessions(
        &mut self,
        _: &mut dyn FnMut(&FlowKey, &Session),
    ) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn scan_ports(&mut self, _: &mut dyn FnMut(&PortKey, &FlowKey)) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn session(&mut self, _: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        Ok(None)
    }

    fn take_session(&mut self, _: &FlowKey) -> Result<Option<Session>, DataplaneError> {
        Ok(None)
    }

    fn insert_session(&mut self, _: &FlowKey, _: &Session) -> Result<bool, DataplaneError> {
        Ok(false)
    }

    fn port(&mut self, _: &PortKey) -> Result<Option<FlowKey>, DataplaneError> {
        Ok(None)
    }

    fn free_port(&mut self, _: &PortKey) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn claim_port(&mut self, _: &PortKey, _: &FlowKey) -> Result<bool, DataplaneError> {
        Ok(false)
    }

    fn wait_for_packets(&mut self) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn load(&self, _: u32) -> Result<i64, DataplaneError> {
        Ok(0)
    }
}

impl Dataplane for Flood {
    fn features(&self) -> u32 {
        self.memory.features()
    }

    fn now(&self) -> Tick {
        if !self.over.load(Ordering::Relaxed) {
            // Full is as good.
            let _ = self.events.try_send(self.event.clone());
        }
        self.memory.now()
    }

    fn capacity(&self) -> Capacity {
        self.memory.capacity()
    }

    fn execute(&mut self, operations: &[Operation]) -> Result<(), DataplaneError> {
        self.faults.execute(&self.events);
        if Faults::is_due(&self.faults.refusals) {
            return Err(DataplaneError::Overtaken(0));
        }
        let mark = |operation: &Operation| matches!(operation, Operation::State(..));
        if operations.iter().any(mark) {
            self.faults.marked.store(true, Ordering::Release);
        }
        self.memory.execute(operations)
    }

    fn grace(&self) -> Wait {
        let (faults, events) = (Arc::clone(&self.faults), self.events.clone());
        Box::new(move || {
            faults.wait(&events);
            Ok(())
        })
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        self.memory.read()
    }

    fn service_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        self.memory.service_counters(index)
    }

    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        if let Some(event) = self.faults.told_in_read.lock().unwrap().take() {
            self.events.try_send(event).unwrap();
        }
        self.memory.backend_counters(index)
    }

    fn ring(&self, start: u32, size: u32) -> Result<Ring, DataplaneError> {
        self.memory.ring(start, size)
    }

    fn flow_counters(&self, index: u32) -> Result<FlowCounters, DataplaneError> {
        self.memory.flow_counters(index)
    }

    fn load(&self, counters: u32) -> Result<u32, DataplaneError> {
        Dataplane::load(&self.memory, counters)
    }

    fn signs(&self, counters: u32) -> Result<Signs, DataplaneError> {
        match *self.faults.shown.lock().unwrap() {
            // Of the first of them.
            Some(shown) if counters == 0 => Ok(shown),
            _ => self.memory.signs(counters),
        }
    }

    fn set_way_in(&mut self, counters: u32, interface: u32) -> Result<(), DataplaneError> {
        self.memory.set_way_in(counters, interface)
    }

    fn end_handshakes(
        &mut self,
        ends: &mut dyn FnMut(&Handshake) -> bool,
    ) -> Result<(), DataplaneError> {
        self.memory.end_handshakes(ends)
    }

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        self.faults.sweeps.lock().unwrap().push(Instant::now());
        let is_trap = Faults::is_due(&self.faults.panics);
        Ok(Box::new(Empty { is_trap }))
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        self.memory.drops()
    }
}

/// Ends the flood, also where a test fails.
pub(super) struct Dam(Arc<AtomicBool>);

impl Drop for Dam {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) fn backend(n: u8) -> Backend {
    Backend::at(SocketAddr::from(([10, 1, 0, n], 80)))
}

pub(super) fn service() -> Service {
    Service {
        backends: vec![backend(1), backend(2)],
        ..Service::new("10.0.0.1:80/tcp".parse().unwrap(), Mode::Ipip)
    }
}

/// An agent that never hears the end of a backend that is down.
pub(super) fn flooded(
    requests: mpsc::Receiver<Request>,
    faults: Arc<Faults>,
) -> (Core<Flood>, Sources, Dam) {
    let (events, health) = mpsc::channel(8);
    let over = Arc::new(AtomicBool::new(false));
    let target = Target {
        service: service().id,
        address: backend(1).address,
    };
    let mut memory = MemoryDataplane::default();
    memory.tables.control.lookup_bits = 3;
    let flood = Flood {
        memory,
        event: Event::new(target, Condition::Down),
        events: events.clone(),
        over: Arc::clone(&over),
        faults: Arc::clone(&faults),
    };
    let mut core = Core::new("flood".to_owned(), Tunnel::default(), flood).unwrap();
    core.change(Change::AddService(service())).unwrap();
    core.listen(health, SystemTime::now);
    let sources = Sources {
        requests,
        checker: Checker::new(events, 1),
        resolver: Resolver::idle(),
        network: mpsc::channel(1).1,
        announcer: Announcer::idle(),
        conflicts: mpsc::channel(1).1,
        store: None,
        programs: Arc::new(NoPrograms),
        history: None,
    };
    (core, sources, Dam(over))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_news_starves_neither_requests_nor_deadlines() {
    let (handle, requests) = Handle::new();
    let (core, sources, dam) = flooded(requests, Arc::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(run(core, sources, || {}, async { drop(stopped.await) }));
    let snapshot = timeout(PATIENCE, handle.snapshot()).await;
    let snapshot = snapshot.expect("an answer in time").unwrap();
    assert_eq!(snapshot.services.len(), 1);
    // Nobody resolves it, so that its answer comes when its time is over.
    let change = Change::AddBackend(service().id, backend(3));
    let changed = timeout(PATIENCE, handle.change(change)).await;
    changed.expect("a deadline in time").unwrap();
    drop(dam);
    drop(stop);
    timeout(PATIENCE, running).await.expect("an end").unwrap();
}

/// From each sweep to the next, of an agent at rest to which `prepare` has something go wrong.
async fn pauses(prepare: impl FnOnce(&mut Core<Flood>, &Faults)) -> Vec<Duration> {
    let faults = Arc::new(Faults::default());
    let (_handle, requests) = Handle::new();
    let (mut core, sources, dam) = flooded(requests, Arc::clone(&faults));
    drop(dam);
    while core.news_at_hand().is_some() {}
    faults.sweeps.lock().unwrap().clear();
    prepare(&mut core, &faults);
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(run(core, sources, || {}, async { drop(stopped.await) }));
    tokio::time::sleep(3 * SWEEP).await;
    drop(stop);
    running.await.unwrap();
    faults.pauses()
}

/// From one sweep to the next where the shortest moving time is a quarter of an hour.
const SWEEP: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_sweep_that_panics_is_followed_by_another_soon_and_then_by_those_that_are_due() {
    let pauses = pauses(|_, faults| faults.panics.store(2, Ordering::Relaxed)).await;
    assert_eq!(pauses[..3], [RETRY, RETRY, SWEEP]);
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_fails_after_a_sweep_is_tried_again_soon_with_another() {
    // The plan itself, and what is read back then.
    let pauses = pauses(|core, faults| {
        // So that there is something to do.
        assert!(core.network(way(1, 4)));
        faults.refusals.store(2, Ordering::Relaxed);
    });
    let pauses = pauses.await;
    assert_eq!(pauses[..2], [RETRY, SWEEP]);
}

#[tokio::test(start_paused = true)]
async fn sweeps_that_always_fail_are_tried_again_soon_so_many_times_and_then_when_due() {
    let pauses = pauses(|_, faults| faults.panics.store(u32::MAX, Ordering::Relaxed)).await;
    let soon = SWEEP_RETRIES as usize;
    assert!(pauses[..soon].iter().all(|&pause| pause == RETRY));
    assert_eq!(pauses[soon], SWEEP);
}

/// The core of an agent at rest.
pub(super) fn at_rest(faults: Arc<Faults>) -> (Running<Flood>, Dam) {
    let (_, requests) = Handle::new();
    let (core, sources, dam) = flooded(requests, faults);
    dam.0.store(true, Ordering::Relaxed);
    let mut agent = Running::new(core, sources);
    while agent.core.news_at_hand().is_some() {}
    (agent, dam)
}

/// The same, two backends of which have news since they were looked at.
fn with_news(news: &[(u8, Condition)]) -> (Running<Flood>, Dam) {
    let (mut agent, dam) = at_rest(Arc::default());
    agent.core.observe(SystemTime::now());
    let events = agent.core.dataplane().events.clone();
    for &(n, condition) in news {
        let target = Target {
            service: service().id,
            address: backend(n).address,
        };
        events.try_send(Event::new(target, condition)).unwrap();
    }
    (agent, dam)
}

/// What backend 1 has been told to have turned to.
fn turns_of_first(agent: &Running<Flood>) -> Vec<BackendState> {
    let all = EventFilter {
        service: None,
        after: None,
        epoch: None,
        limit: usize::MAX,
    };
    let told = agent.core.events(&all).events.into_iter();
    let of_first = told.filter_map(|event| match event.what {
        Happened::Turned {
            backend: of, to, ..
        } => (of == backend(1).address).then_some(to),
        _ => None,
    });
    of_first.collect()
}

#[tokio::test]
async fn who_goes_down_and_comes_up_before_the_agent_looks_is_told_to_have_done_both() {
    use Condition::{Down, Up};
    let (mut agent, _dam) = with_news(&[(1, Up), (2, Up), (1, Down), (2, Up), (1, Up)]);
    let first = agent.core.news_at_hand().unwrap();
    agent.on_health(first);
    agent.core.observe(SystemTime::now());
    use BackendState as State;
    let turns = [State::Up, State::Down, State::Up];
    assert_eq!(turns_of_first(&agent), turns);
    assert!(agent.core.news_at_hand().is_none(), "all was heard");
}

#[tokio::test]
async fn who_goes_down_and_comes_up_between_two_turns_is_told_to_have_done_both() {
    let (mut agent, _dam) = with_news(&[(1, Condition::Up)]);
    agent.give_turns();
    let target = Target {
        service: service().id,
        address: backend(1).address,
    };
    for condition in [Condition::Down, Condition::Up] {
        let events = agent.core.dataplane().events.clone();
        events.try_send(Event::new(target, condition)).unwrap();
        agent.give_turns();
    }
    agent.core.observe(SystemTime::now());
    use BackendState as State;
    let turns = [State::Up, State::Down, State::Up];
    assert_eq!(turns_of_first(&agent), turns);
}

#[tokio::test]
async fn what_could_not_be_kept_for_the_next_agent_is_kept_once_it_can() {
    let (mut agent, _dam) = with_news(&[]);
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("file");
    std::fs::write(&missing, "").unwrap();
    let path = missing.join("history.json");
    agent.sources.history = Some(path.clone());
    let down = Change::EditBackend {
        id: service().id,
        address: backend(1).address,
        weight: None,
        admin: Some(Admin::Down),
        max_connections: None,
        rated: Default::default(),
        tier: None,
    };
    agent.core.change(down).unwrap();
    agent.remember();
    assert!(!path.exists());
    std::fs::remove_file(&missing).unwrap();
    agent.remember();
    assert!(path.exists());
}
