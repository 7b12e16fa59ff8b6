//! An agent without a kernel: the real API server in front of a loop that keeps a model's state.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use lb_userspace::{
    agent::{ChangeError, Handle, Request},
    api,
    model::{Change, Service, State},
    snapshot::{BackendStatus, Condition, InterfaceStatus, ServiceStatus, Snapshot, Traffic},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, sync::oneshot, task::JoinHandle};

/// VIP ports that the loop refuses, as a full or failing kernel would.
pub const PORT_WITHOUT_ROOM: u16 = 507;
/// See [`PORT_WITHOUT_ROOM`].
pub const PORT_THE_KERNEL_REFUSES: u16 = 500;
/// Backends on this port fail their checks.
pub const PORT_DOWN: u16 = 81;

pub struct FakeAgent {
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    agent: JoinHandle<()>,
    server: JoinHandle<anyhow::Result<()>>,
    stop: oneshot::Sender<()>,
    _directory: TempDir,
}

impl FakeAgent {
    /// Serves the state that `configuration` describes.
    pub fn start(configuration: &str) -> Self {
        let config = lb_userspace::config::parse(configuration, "test").unwrap();
        let state = Arc::new(Mutex::new(State::new(config.services).unwrap()));
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("default.sock");
        let listener = api::bind(&socket).unwrap();
        let (handle, requests) = Handle::new();
        let agent = tokio::spawn(run(requests, state.clone()));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(api::serve(listener, handle, async {
            let _ = stopped.await;
        }));
        Self {
            socket,
            state,
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

async fn run(mut requests: mpsc::Receiver<Request>, state: Arc<Mutex<State>>) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Change(change, reply) => {
                let _ = reply.send(apply(&mut state.lock().unwrap(), change));
            }
            Request::Snapshot(reply) => {
                let _ = reply.send(snapshot(&state.lock().unwrap()));
            }
        }
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
        drops: vec![("no_backend", 3), ("malformed", 0)],
    }
}

fn describe(service: &Service) -> ServiceStatus {
    let backends = service.backends.iter().map(|backend| {
        let down = backend.address.port() == PORT_DOWN;
        BackendStatus {
            backend: backend.clone(),
            condition: if down { Condition::Down } else { Condition::Up },
            last_error: down.then(|| "connection refused".to_owned()),
            latency: (!down).then_some(Duration::from_micros(250)),
            reachable: true,
            slots: if down { 0 } else { 502 },
            traffic: Traffic {
                packets: 1_234,
                bytes: 56_789,
                flows: 12,
            },
        }
    });
    ServiceStatus {
        service: service.clone(),
        ring_size: 1_004,
        traffic: Traffic {
            packets: 2_468,
            bytes: 113_578,
            flows: 24,
        },
        backends: backends.collect(),
    }
}
