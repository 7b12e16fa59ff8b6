//! The loop while programs are loaded for a change.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
    mpsc as std_mpsc,
};

use lb_common::tables::feature;
use tokio::time::timeout;

use super::*;
use crate::{
    agent::Handle,
    config::Tunnel,
    dataplane::memory::MemoryDataplane,
    health::Target,
    model::{Admin, Backend, Mode, Service, ServiceId},
    neighbours::{Kind, Port},
    snapshot::Condition,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What becomes of programs that are to be loaded.
enum Fate {
    InForce,
    /// They are said to be in force, and are not.
    Pretended,
    Refused,
}

/// Loads programs once it is told what becomes of them.
#[derive(Debug)]
struct Loading {
    without: Arc<AtomicU32>,
    asked: mpsc::UnboundedSender<u32>,
    fates: Mutex<std_mpsc::Receiver<Fate>>,
}

impl Programs for Loading {
    fn load(&self, features: u32) -> Result<(), DataplaneError> {
        self.asked.send(features).unwrap();
        match self.fates.lock().unwrap().recv().unwrap() {
            Fate::InForce => {
                self.without.fetch_and(!features, Ordering::Relaxed);
                Ok(())
            }
            Fate::Pretended => Ok(()),
            Fate::Refused => Err(DataplaneError::new("loading", &"too large")),
        }
    }
}

/// An agent whose programs are loaded for mode `ipip` alone.
struct Agent {
    handle: Handle,
    health: mpsc::Sender<Event>,
    network: mpsc::Sender<Update>,
    asked: mpsc::UnboundedReceiver<u32>,
    fates: std_mpsc::Sender<Fate>,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<()>,
}

fn id(number: u8) -> ServiceId {
    format!("10.0.0.{number}:80/tcp").parse().unwrap()
}

fn service(number: u8, mode: Mode) -> Change {
    let mut service = Service::new(id(number), mode);
    service.backends = vec![Backend::at(backend(number))];
    Change::AddService(service)
}

fn backend(number: u8) -> std::net::SocketAddr {
    format!("10.1.0.{number}:80").parse().unwrap()
}

impl Agent {
    async fn start() -> Self {
        let (handle, requests) = Handle::new();
        let (events, health) = mpsc::channel(64);
        let (news, network) = mpsc::channel(64);
        let (asking, asked) = mpsc::unbounded_channel();
        let (fates, told) = std_mpsc::channel();
        let mut memory = MemoryDataplane::default();
        memory.tables.control.lookup_bits = 3;
        memory.without.store(!feature::IPIP, Ordering::Relaxed);
        let programs = Arc::new(Loading {
            without: Arc::clone(&memory.without),
            asked: asking,
            fates: Mutex::new(told),
        });
        let mut core = Core::new("loading".to_owned(), Tunnel::default(), memory).unwrap();
        core.listen(health, SystemTime::now);
        let sources = Sources {
            requests,
            checker: Checker::new(events.clone(), 1),
            resolver: Resolver::idle(),
            network,
            announcer: Announcer::idle(),
            conflicts: mpsc::channel(1).1,
            store: None,
            history: None,
            programs,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(run(core, sources, || {}, async { drop(stopped.await) }));
        let agent = Self {
            handle,
            health: events,
            network: news,
            asked,
            fates,
            stop,
            running,
        };
        agent.add(1, Mode::Ipip).await.unwrap().unwrap();
        agent
    }

    fn add(&self, number: u8, mode: Mode) -> tokio::task::JoinHandle<Result<(), ChangeError>> {
        let handle = self.handle.clone();
        tokio::spawn(async move { handle.change(service(number, mode)).await })
    }

    /// What is to be loaded next.
    async fn asked(&mut self) -> u32 {
        let asked = timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("a load in time").unwrap()
    }

    async fn services(&self) -> Vec<ServiceId> {
        let snapshot = self.handle.snapshot().await.unwrap();
        snapshot
            .services
            .iter()
            .map(|service| service.service.id)
            .collect()
    }

    /// Until the first service's backend is in this condition.
    async fn sees(&self, condition: Condition) {
        let seen = async {
            loop {
                let service = self.handle.service(id(1)).await.unwrap().unwrap();
                if service.backends[0].condition == condition {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, seen)
            .await
            .expect("the condition in time");
    }

    async fn end(self) {
        drop(self.stop);
        timeout(PATIENCE, self.running).await.unwrap().unwrap();
    }
}

async fn answer(
    change: tokio::task::JoinHandle<Result<(), ChangeError>>,
) -> Result<(), ChangeError> {
    timeout(PATIENCE, change).await.expect("an answer").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_programs_while_failures_take_effect_and_later_changes_stay_behind_it() {
    let mut agent = Agent::start().await;
    let first = agent.add(2, Mode::Nat);
    assert_eq!(agent.asked().await, feature::IPIP | feature::NAT);
    let later = agent.add(3, Mode::Ipip);
    let target = Target {
        service: id(1),
        address: backend(1),
    };
    let down = Event::new(target, Condition::Down);
    agent.health.send(down).await.unwrap();
    agent.sees(Condition::Down).await;
    assert_eq!(agent.services().await, [id(1)]);
    assert!(!first.is_finished() && !later.is_finished());
    agent.fates.send(Fate::InForce).unwrap();
    answer(first).await.unwrap();
    answer(later).await.unwrap();
    assert_eq!(agent.services().await, [id(1), id(2), id(3)]);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_the_kernel_refuses_refuse_the_change_and_no_other() {
    let mut agent = Agent::start().await;
    let first = agent.add(2, Mode::Nat);
    agent.asked().await;
    let later = agent.add(3, Mode::Ipip);
    agent.fates.send(Fate::Refused).unwrap();
    let refused = answer(first).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the kernel refused the change: loading: too large"
    );
    answer(later).await.unwrap();
    assert_eq!(agent.services().await, [id(1), id(3)]);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_need_one_program_after_the_other_get_both() {
    let mut agent = Agent::start().await;
    let first = agent.add(2, Mode::Nat);
    assert_eq!(agent.asked().await, feature::IPIP | feature::NAT);
    let second = agent.add(3, Mode::L2);
    let third = agent.add(4, Mode::Nat);
    // Changes keep their order, whatever waits for whatever.
    let last = agent.handle.clone();
    let last = tokio::spawn(async move { last.change(Change::RemoveService(id(4))).await });
    agent.fates.send(Fate::InForce).unwrap();
    assert_eq!(
        agent.asked().await,
        feature::IPIP | feature::NAT | feature::L2
    );
    agent.fates.send(Fate::InForce).unwrap();
    for change in [first, second, third, last] {
        answer(change).await.unwrap();
    }
    assert_eq!(agent.services().await, [id(1), id(2), id(3)]);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_are_not_what_they_are_said_to_be_are_not_loaded_for_ever() {
    let mut agent = Agent::start().await;
    let change = agent.add(2, Mode::Nat);
    agent.asked().await;
    agent.fates.send(Fate::Pretended).unwrap();
    let refused = answer(change).await.unwrap_err();
    assert!(matches!(refused, ChangeError::NotLoaded(_)), "{refused}");
    assert_eq!(agent.services().await, [id(1)]);
    agent.end().await;
}

fn asking(number: u8, admin: Admin) -> Change {
    Change::EditBackend {
        id: id(number),
        address: backend(number),
        weight: None,
        admin: Some(admin),
        max_connections: None,
        rated: Default::default(),
        tier: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_to_take_no_new_flows_waits_for_no_programs_unless_a_change_of_its_pool_does() {
    let mut agent = Agent::start().await;
    agent.add(5, Mode::Ipip).await.unwrap().unwrap();
    let first = agent.add(2, Mode::Nat);
    agent.asked().await;
    let divert = |change| timeout(PATIENCE, agent.handle.change(change));
    divert(asking(1, Admin::Down)).await.unwrap().unwrap();
    divert(Change::FailOver(id(1), 0)).await.unwrap().unwrap();
    // A change that waits, and one behind it of the same pool.
    let weight = Change::EditBackend {
        id: id(5),
        address: backend(5),
        weight: Some(7),
        admin: None,
        max_connections: None,
        rated: Default::default(),
        tier: None,
    };
    let mut waiting = Vec::new();
    for change in [weight, asking(5, Admin::Draining)] {
        let (reply, answer) = oneshot::channel();
        let request = Request::Change(Box::new(change), reply);
        agent.handle.requests.send(request).await.unwrap();
        waiting.push(answer);
    }
    divert(asking(1, Admin::Draining)).await.unwrap().unwrap();
    assert!(!first.is_finished());
    for answer in &mut waiting {
        answer.try_recv().expect_err("it waits");
    }
    agent.fates.send(Fate::InForce).unwrap();
    answer(first).await.unwrap();
    for answer in waiting {
        timeout(PATIENCE, answer).await.unwrap().unwrap().unwrap();
    }
    agent.end().await;
}

/// A NIC with a VLAN device over it.
fn vlan() -> Update {
    let port = |name: &str, index, kind| {
        let port = Port {
            index,
            mac: [2, 0, 0, 0, 0, 1],
            running: true,
            mtu: 1_500,
            kind,
            deaf: false,
        };
        (name.to_owned(), port)
    };
    let tag = [0x81, 0, 0, 100];
    let nic = port("eth0", 4, Kind::Plain);
    let device = port("eth0.100", 9, Kind::Vlan { lower: 4, tag });
    Update::Ports([nic, device].into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_network_comes_to_need_is_loaded_while_failures_take_effect() {
    let mut agent = Agent::start().await;
    agent.network.send(vlan()).await.unwrap();
    assert_eq!(agent.asked().await, feature::VLAN);
    let target = Target {
        service: id(1),
        address: backend(1),
    };
    let down = Event::new(target, Condition::Down);
    agent.health.send(down).await.unwrap();
    agent.sees(Condition::Down).await;
    let change = agent.add(2, Mode::Ipip);
    assert!(agent.handle.snapshot().await.unwrap().devices.is_empty());
    agent.fates.send(Fate::InForce).unwrap();
    answer(change).await.unwrap();
    let devices = agent.handle.snapshot().await.unwrap().devices;
    assert_eq!(devices[0].name, "eth0.100");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_loaded_for_the_network_refuses_no_change_and_is_not_tried_for_ever() {
    for fate in [Fate::Refused, Fate::Pretended] {
        let mut agent = Agent::start().await;
        agent.network.send(vlan()).await.unwrap();
        agent.asked().await;
        let change = agent.add(2, Mode::Ipip);
        agent.fates.send(fate).unwrap();
        answer(change).await.unwrap();
        // Another would have been asked for by now, and waited.
        agent.network.send(vlan()).await.unwrap();
        answer(agent.add(3, Mode::Ipip)).await.unwrap();
        assert_eq!(agent.services().await, [id(1), id(2), id(3)]);
        assert!(agent.asked.try_recv().is_err());
        agent.end().await;
    }
}
