//! The loop over maps in memory, with more to do than there is time for.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lb_common::{
    memory::MemoryTables,
    tables::{Counters, FlowCounters, Tick},
};
use tokio::time::timeout;

use super::*;
use crate::{
    agent::Handle,
    config::Tunnel,
    dataplane::{Capacity, FlowTables, Operation, memory::MemoryDataplane},
    health::Target,
    model::{Admin, Backend, Mode, Service},
    plan::Ring,
    snapshot::Condition,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Maps, and checks that have more news whenever one has been heard.
struct Flood {
    memory: MemoryDataplane,
    event: Event,
    events: mpsc::Sender<Event>,
    over: Arc<AtomicBool>,
}

impl Dataplane for Flood {
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
        self.memory.execute(operations)
    }

    fn read(&self) -> Result<MemoryTables, DataplaneError> {
        self.memory.read()
    }

    fn service_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
        self.memory.service_counters(index)
    }

    fn backend_counters(&self, index: u32) -> Result<Counters, DataplaneError> {
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

    fn flow_tables(&self) -> Result<Box<dyn FlowTables + Send>, DataplaneError> {
        self.memory.flow_tables()
    }

    fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        self.memory.drops()
    }
}

/// Ends the flood, also where a test fails.
struct Dam(Arc<AtomicBool>);

impl Drop for Dam {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn backend(n: u8) -> Backend {
    Backend {
        address: SocketAddr::from(([10, 1, 0, n], 80)),
        weight: 1,
        admin: Admin::Active,
        max_connections: None,
        server_id: None,
        tier: 0,
    }
}

fn service() -> Service {
    Service {
        backends: vec![backend(1), backend(2)],
        ..Service::new("10.0.0.1:80/tcp".parse().unwrap(), Mode::Ipip)
    }
}

/// An agent that never hears the end of a backend that is down.
fn flooded(requests: mpsc::Receiver<Request>) -> (Core<Flood>, Sources, Dam) {
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
    };
    let mut core = Core::new("flood".to_owned(), Tunnel::default(), flood).unwrap();
    core.change(Change::AddService(service())).unwrap();
    let sources = Sources {
        requests,
        checker: Checker::new(events, 1),
        health,
        resolver: Resolver::idle(),
        network: mpsc::channel(1).1,
        store: None,
    };
    (core, sources, Dam(over))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_news_starves_neither_requests_nor_deadlines() {
    let (handle, requests) = Handle::new();
    let (core, sources, dam) = flooded(requests);
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
