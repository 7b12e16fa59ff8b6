//! An agent without a kernel: the real API server in front of a loop that keeps a model's state.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use lb_userspace::{
    agent::{
        Announced, ChangeError, Handle, Request,
        journal::{Journal, KEPT},
    },
    api,
    health::{
        Target,
        reply::{Asked, Wants},
    },
    model::{Admin, Backend, BitRate, Change, ModelError, Service, State, Unserved},
    snapshot::{
        AdaptivePoolStatus, AdaptiveStatus, AddressPoolStatus, AnnouncedStatus, BackendState,
        BackendStatus, CheckStatus, ClientList, ClientRecord, Condition, DampingStatus,
        DeviceStatus, DrainStatus, FlowFilter, FlowList, FlowRecord, FlowStatus, Happened,
        InterfaceStatus, PanicStatus, Passed, PassiveStatus, Rates, RecordUses, ServiceStatus,
        SlowStartStatus, Snapshot, Standing, TableUse, TierStatus, Traffic,
    },
};
use tempfile::TempDir;
use tokio::{sync::mpsc, sync::oneshot, task::JoinHandle};

/// VIP ports that the loop refuses, as a full or failing kernel would.
pub const PORT_WITHOUT_ROOM: u16 = 507;
/// See [`PORT_WITHOUT_ROOM`].
pub const PORT_THE_KERNEL_REFUSES: u16 = 500;
/// VIPs on this port have a backend that was removed and still has flows.
pub const PORT_WITH_A_LEAVING_BACKEND: u16 = 8_081;
/// Backends of this weight have an agent that asks for half of it, and to be drained.
pub const WEIGHT_OF_AN_AGENT: u16 = 77;
/// Backends of this weight that drain have no flow any more.
pub const WEIGHT_OF_A_DRAINED: u16 = 66;
/// Backends of this weight are known to be up.
pub const WEIGHT_OF_ONE_THAT_IS_UP: u16 = 55;
/// Backends of this weight stand by.
pub const WEIGHT_OF_A_STANDBY: u16 = 22;
/// Backends of this weight have failed three times and are kept out.
pub const WEIGHT_OF_ONE_THAT_IS_HELD: u16 = 33;
/// Backends of this weight have 26% of it, by how they fare.
pub const WEIGHT_OF_ONE_THAT_ADAPTS: u16 = 37;
/// Backends of this weight have 35% of it so far.
pub const WEIGHT_OF_ONE_THAT_GROWS: u16 = 44;
/// Services with this `panic_below` are in panic.
pub const PANICS: u8 = 99;
/// Backends on this port fail their checks.
pub const PORT_DOWN: u16 = 81;
/// The epoch of an agent of whose events some are kept no more.
pub const EPOCH_OF_MANY: u64 = 3;
/// How many those are.
pub const FORGOTTEN: u64 = 6;

pub struct FakeAgent {
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    /// How often it has described all that it has.
    snapshots: Arc<AtomicUsize>,
    agent: JoinHandle<()>,
    server: JoinHandle<anyhow::Result<()>>,
    stop: oneshot::Sender<()>,
    _directory: TempDir,
}

impl FakeAgent {
    /// Serves the state that `configuration` describes.
    pub fn start(configuration: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), configuration, 1)
    }

    /// The same at a socket in `directory`, with the events of that epoch.
    pub fn start_in(directory: TempDir, configuration: &str, epoch: u64) -> Self {
        let config = lb_userspace::config::parse(configuration, "test").unwrap();
        let state = Arc::new(Mutex::new(State::new(config.services).unwrap()));
        let socket = directory.path().join("default.sock");
        let listener = api::bind(&socket).unwrap();
        let (handle, requests) = Handle::new();
        let snapshots = Arc::default();
        let known = (state.clone(), Arc::clone(&snapshots));
        let agent = tokio::spawn(run(requests, known.0, known.1, epoch));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(api::serve(listener, handle, async {
            let _ = stopped.await;
        }));
        Self {
            socket,
            state,
            snapshots,
            agent,
            server,
            stop,
            _directory: directory,
        }
    }

    /// The state as it is now.
    pub fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    /// How often it has described all that it has so far.
    pub fn snapshots(&self) -> usize {
        self.snapshots.load(Ordering::Relaxed)
    }

    /// Ends the loop, while the server still answers.
    pub async fn end_loop(&mut self) {
        self.agent.abort();
        let _ = (&mut self.agent).await;
    }

    /// Ends the server as `lbd` would; the socket's file stays.
    pub async fn stop(self) -> TempDir {
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(Duration::from_secs(10), self.server).await;
        ended.unwrap().unwrap().unwrap();
        self._directory
    }
}

async fn run(
    mut requests: mpsc::Receiver<Request>,
    state: Arc<Mutex<State>>,
    snapshots: Arc<AtomicUsize>,
    epoch: u64,
) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Change(change, reply) => {
                let _ = reply.send(apply(&mut state.lock().unwrap(), *change));
            }
            Request::Snapshot(reply) => {
                snapshots.fetch_add(1, Ordering::Relaxed);
                let _ = reply.send(snapshot(&state.lock().unwrap()));
            }
            Request::Service(id, reply) => {
                let _ = reply.send(state.lock().unwrap().service(id).map(describe));
            }
            Request::Group(name, reply) => {
                let _ = reply.send(state.lock().unwrap().of_group(&name).cloned());
            }
            Request::AccessLists(reply) => {
                let _ = reply.send(state.lock().unwrap().listings());
            }
            Request::Events(filter, reply) => {
                let _ = reply.send(events(epoch).list(&filter));
            }
            Request::Announce(vip, reply) => {
                drop(reply.send(Ok(Announced {
                    vips: vip.into_iter().collect(),
                    interfaces: ["eth0".to_owned()].into(),
                })));
            }
            Request::Flows(filter, reply) => {
                let _ = reply.send(Ok(flows(&state.lock().unwrap(), filter)));
            }
            Request::Clients(filter, reply) => {
                let _ = reply.send(Ok(clients(&state.lock().unwrap(), filter)));
            }
            Request::Beat(target, reply) => {
                let _ = reply.send(beat(&state.lock().unwrap(), target));
            }
            Request::Drained(target, reply) => {
                let _ = reply.send(drained(&state.lock().unwrap(), target));
            }
        }
    }
}

/// A standby that took over: two events.
fn events(epoch: u64) -> Journal {
    let mut journal = Journal::default();
    journal.begin(epoch);
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let service = "10.0.0.1:80/tcp".parse().unwrap();
    let turned = Happened::Turned {
        backend: "10.1.0.3:81".parse().unwrap(),
        from: BackendState::Suspect,
        to: BackendState::Down,
    };
    journal.record(at, service, turned, "connection refused".to_owned());
    let shares = "100% to tier 1";
    journal.record(at, service, Happened::Tiers, shares.to_owned());
    if epoch == EPOCH_OF_MANY {
        for _ in 2..KEPT as u64 + FORGOTTEN {
            journal.record(at, service, Happened::Tiers, shares.to_owned());
        }
    }
    journal
}

fn beat(state: &State, target: Target) -> Result<(), ChangeError> {
    let Target {
        service: id,
        address,
    } = target;
    let service = state.service(id).ok_or(ModelError::UnknownService { id })?;
    let known = service.backend(address).map(drop);
    Ok(known.ok_or(ModelError::UnknownBackend { id, address })?)
}

/// Only who is drained has no flow left.
fn drained(state: &State, target: Target) -> Result<(), ChangeError> {
    beat(state, target)?;
    let service = state.service(target.service);
    let backend = service.and_then(|service| service.backend(target.address));
    match backend.is_some_and(|backend| backend.admin == Admin::Active) {
        true => Err(ChangeError::NotDrained("drain it first".to_owned())),
        false => Ok(()),
    }
}

fn apply(state: &mut State, change: Change) -> Result<(), ChangeError> {
    if let Change::AddService(service) = &change {
        match service.id.vip.port() {
            PORT_WITHOUT_ROOM => {
                return Err(ChangeError::NoRoom("raise limits.services".to_owned()));
            }
            PORT_THE_KERNEL_REFUSES => return Err(ChangeError::Kernel("EINVAL".to_owned())),
            _ => {}
        }
    }
    *state = state.apply(change)?;
    Ok(())
}

fn snapshot(state: &State) -> Snapshot {
    Snapshot {
        instance: "default".to_owned(),
        generation: 7,
        interfaces: vec![InterfaceStatus {
            name: "eth0".to_owned(),
            mode: "native",
        }],
        services: state.services().map(describe).collect(),
        established: TableUse {
            entries: 1_200,
            capacity: 262_144,
        },
        half_open: TableUse {
            entries: 65_536,
            capacity: 65_536,
        },
        sessions: TableUse {
            entries: 3,
            capacity: 262_144,
        },
        address_pools: vec![AddressPoolStatus {
            name: "snat".to_owned(),
            addresses: 2,
            ports: (1_000, 1_999),
            sessions: 3,
        }],
        events: 9,
        drops: vec![("no_backend", 3), ("malformed", 0)],
        answers: vec![("reset", 2), ("limited", 0)],
        fragments: vec![("first", 4), ("held", 0)],
        devices: vec![DeviceStatus {
            name: "eth0.100".to_owned(),
            over: vec!["eth0".to_owned()],
            tags: vec!["802.1q 100".to_owned()],
        }],
        announced: vec![AnnouncedStatus {
            vip: IpAddr::from([10, 0, 0, 1]),
            conflicts: 3,
        }],
        unknown_port: Unserved::Reset,
    }
}

/// A backend that was removed while it had flows.
fn leaving() -> BackendStatus {
    let address = "10.1.0.9:80".parse().unwrap();
    BackendStatus {
        backend: Backend::at(address),
        condition: Condition::Down,
        standing: None,
        last_error: None,
        latency: None,
        checks: Vec::new(),
        asked: Asked::default(),
        damping: DampingStatus::default(),
        passive: None,
        slow_start: None,
        adaptive: None,
        effective_weight: 0.0,
        reachable: true,
        mtu: None,
        leaving: true,
        slots: 0,
        recorded: 2,
        used_in_panic: false,
        drain: None,
        connections: None,
        rates: None,
        traffic: Traffic {
            packets: 11,
            bytes: 660,
            flows: 1,
        },
    }
}

/// The first check of a backend that is down fails.
fn checks(service: &Service, down: bool) -> Vec<CheckStatus> {
    let names = service.health.names();
    if names.len() < 2 {
        return Vec::new();
    }
    let status = |(index, name)| {
        let fails = down && index == 0;
        CheckStatus {
            passed: 20,
            failed: if fails { 3 } else { 0 },
            last_error: fails.then(|| "connection refused".to_owned()),
            latency: (!fails).then_some(Duration::from_micros(250)),
            ..CheckStatus::new(
                name,
                if fails {
                    Condition::Down
                } else {
                    Condition::Up
                },
            )
        }
    };
    names.into_iter().enumerate().map(status).collect()
}

/// Whoever is of the first tier has all flows.
fn tiers(service: &Service) -> Vec<TierStatus> {
    let numbers = match service.tiers() {
        numbers if numbers.len() > 1 => numbers,
        _ => Vec::new(),
    };
    let status = |(n, number): (usize, u8)| {
        let count = service.backends.iter().filter(|b| b.tier == number).count();
        TierStatus {
            number,
            backends: count,
            healthy: count,
            share: if n == 0 { 1_000 } else { 0 },
            waits: false,
        }
    };
    numbers.into_iter().enumerate().map(status).collect()
}

/// Who panics early does so.
fn panic(service: &Service) -> Option<PanicStatus> {
    (service.panic_below == PANICS).then_some(PanicStatus {
        healthy_percent: 25,
        used: 3,
    })
}

/// What is held against the one that is held.
fn damping(weight: u16) -> DampingStatus {
    match weight {
        WEIGHT_OF_ONE_THAT_IS_HELD => DampingStatus {
            failures: 3,
            left: Some(Duration::from_secs(20)),
        },
        _ => DampingStatus::default(),
    }
}

/// What packets show of every backend of a service that looks at them.
fn signs() -> PassiveStatus {
    PassiveStatus {
        accepted: 4_321,
        refused: 65,
        unreachable: 7,
        progressed: 1_001,
        missed: 89,
        handshake: Some(Duration::from_micros(1_750)),
        ejections: 2,
        left: Some(Duration::from_secs(19)),
    }
}

fn standing(weight: u16) -> Option<Standing> {
    let (state, reason) = match weight {
        WEIGHT_OF_A_DRAINED => (BackendState::Draining, "by hand"),
        WEIGHT_OF_ONE_THAT_IS_UP => (BackendState::Up, "by hand"),
        WEIGHT_OF_A_STANDBY => (BackendState::Standby, "tier 1 is not needed"),
        _ => return None,
    };
    Some(Standing {
        state,
        reason: reason.to_owned(),
        since: SystemTime::now() - Duration::from_secs(330),
    })
}

fn adaptive(weight: u16) -> Option<AdaptiveStatus> {
    (weight == WEIGHT_OF_ONE_THAT_ADAPTS).then_some(AdaptiveStatus {
        percent: 26,
        wanted: 25,
        reversals: 1,
        latency: Some(Duration::from_millis(12)),
        handshake: None,
    })
}

fn describe(service: &Service) -> ServiceStatus {
    let leaving = (service.id.vip.port() == PORT_WITH_A_LEAVING_BACKEND).then(leaving);
    let backends = service.backends.iter().map(|backend| {
        let down = backend.address.port() == PORT_DOWN;
        BackendStatus {
            backend: backend.clone(),
            condition: if down { Condition::Down } else { Condition::Up },
            standing: standing(backend.weight),
            last_error: down.then(|| "connection refused".to_owned()),
            latency: (!down).then_some(Duration::from_micros(250)),
            checks: checks(service, down),
            asked: Asked {
                weight: (backend.weight == WEIGHT_OF_AN_AGENT).then_some(50),
                wants: (backend.weight == WEIGHT_OF_AN_AGENT).then_some(Wants::Drain),
                max_connections: None,
                says_down: false,
            },
            damping: damping(backend.weight),
            passive: (!service.passive.is_off()).then(signs),
            slow_start: (backend.weight == WEIGHT_OF_ONE_THAT_GROWS).then_some(SlowStartStatus {
                percent: 35,
                left: Duration::from_secs(20),
            }),
            adaptive: adaptive(backend.weight),
            effective_weight: backend.weight.into(),
            reachable: true,
            mtu: Some(if down { 1_460 } else { 1_480 }),
            leaving: false,
            slots: if down { 0 } else { 502 },
            recorded: 5,
            used_in_panic: service.panic_below == PANICS && down,
            drain: (!matches!(backend.admin, Admin::Active | Admin::Up)).then_some(DrainStatus {
                observed: 5,
                unknown_slots: 17,
                by_id: false,
                reported: false,
                ended: backend.weight == WEIGHT_OF_A_DRAINED,
            }),
            connections: backend.max_connections.map(|_| 3),
            rates: (!backend.rated.is_none()).then_some(Rates {
                flows: 40,
                bandwidth: BitRate(1_500_000),
            }),
            traffic: Traffic {
                packets: 1_234,
                bytes: 56_789,
                flows: 12,
            },
        }
    });
    ServiceStatus {
        service: service.clone(),
        lead: service.id,
        tiers: tiers(service),
        panic: panic(service),
        adaptive: service.adaptive.map(|_| AdaptivePoolStatus {
            held: true,
            changes: 3,
            holds: 2,
        }),
        ring_size: 1_004,
        flows: FlowStatus {
            steady: 1_000,
            moving: 3,
            settling: 1,
            passed: Passed {
                moving: 20,
                settling: 17,
                steady: 16,
            },
            established: 10,
            half_open: 4,
            uses: RecordUses {
                ended: 1,
                moving: 9,
                away: 4,
                home: 0,
            },
            lookups: 70,
            recorded: 30,
            promotion_overflows: 3,
            overflows: 2,
            named: 6,
            clients: 7,
            client_overflows: 1,
            denied: 11,
            source_limited: 21,
            service_limited: 31,
            sessions: 41,
            ports_exhausted: 51,
            untold: 61,
            cookies_sent: 71,
            cookies_valid: 81,
            cookies_invalid: 91,
        },
        traffic: Traffic {
            packets: 2_468,
            bytes: 113_578,
            flows: 24,
        },
        backends: backends.chain(leaving).collect(),
    }
}

/// The flows of each backend, one a phase, and one whose backend has gone.
fn flows(state: &State, filter: FlowFilter) -> FlowList {
    let record = |service: &Service, backend, phase, client: &str| FlowRecord {
        service: service.id,
        client: client.parse().unwrap(),
        backend,
        half_open: phase == "moving",
        closing: phase == "settling",
        phase,
        idle: Duration::from_millis(1_500),
        age: Duration::from_secs(60),
    };
    let all = state.services().flat_map(|service| {
        let of = move |backend: SocketAddr| {
            ["steady", "moving", "settling"]
                .map(|phase| record(service, Some(backend), phase, "192.0.2.7:40000"))
        };
        let gone = record(service, None, "moving", "[2001:db8::7]:40000");
        let backends = service.backends.iter().map(|b| b.address);
        backends.flat_map(of).chain([gone])
    });
    let matching: Vec<_> = all
        .filter(|flow| filter.service.is_none_or(|id| flow.service == id))
        .filter(|flow| filter.backend.is_none_or(|a| flow.backend == Some(a)))
        .filter(|flow| filter.phase.is_none_or(|phase| flow.phase == phase))
        .collect();
    FlowList {
        total: matching.len(),
        flows: matching.into_iter().take(filter.limit).collect(),
    }
}

/// A client of each backend, one of which has only opened a flow.
fn clients(state: &State, filter: FlowFilter) -> ClientList {
    let all = state.services().flat_map(|service| {
        (0..)
            .zip(&service.backends)
            .map(|(n, backend)| ClientRecord {
                service: service.id,
                address: IpAddr::from([192, 0, 2, n]),
                prefix: service.persistence_prefix.unwrap_or(32),
                backend: backend.address,
                half_open: n == 1,
                idle: Duration::from_millis(1_500),
                left: Duration::from_secs(60),
            })
    });
    let matching: Vec<_> = all
        .filter(|client| filter.service.is_none_or(|id| client.service == id))
        .filter(|client| filter.backend.is_none_or(|a| client.backend == a))
        .collect();
    ClientList {
        total: matching.len(),
        clients: matching.into_iter().take(filter.limit).collect(),
    }
}
