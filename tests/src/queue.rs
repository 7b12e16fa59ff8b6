//! A web server that serves one request at a time, each for as long as it is told: what it takes grows with its load, as
//! that of a real one at its limit does. Owns its thread; who asks is [`crate::load`]'s.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    time::sleep,
};

use crate::{load::Background, netns::Namespace};

/// Where it listens, beside nginx.
pub const PORT: u16 = 8_090;

/// A server on a thread inside a namespace; stops on drop.
#[derive(Debug)]
pub struct QueueServer {
    _background: Background<()>,
}

#[derive(Debug)]
struct Queue {
    name: String,
    takes: Duration,
    room: usize,
    waiting: AtomicUsize,
    served: Mutex<()>,
}

impl QueueServer {
    /// Answers requests for `/` with `name`, each of which `takes` so long and `room` of which may wait; more are
    /// answered with status 503. `/health` waits in the same queue, however long that is, and says "ok".
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, name: &str, takes: Duration, room: usize) -> Result<Self> {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let listener = namespace.run(|| std::net::TcpListener::bind(at));
        let listener = listener.with_context(|| at.to_string())?;
        listener.set_nonblocking(true)?;
        let queue = Arc::new(Queue {
            name: name.to_owned(),
            takes,
            room,
            waiting: AtomicUsize::new(0),
            served: Mutex::new(()),
        });
        let background = Background::start(namespace, move |stop| serve(listener, queue, stop))?;
        Ok(Self {
            _background: background,
        })
    }
}

async fn serve(
    listener: std::net::TcpListener,
    queue: Arc<Queue>,
    mut stop: watch::Receiver<bool>,
) {
    let listener = TcpListener::from_std(listener).expect("a runtime is running");
    let routes = Router::new()
        .route("/", get(request))
        .route("/health", get(health))
        .with_state(queue);
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        served = axum::serve(listener, routes) => served.expect("accepting goes on"),
    }
}

async fn request(State(queue): State<Arc<Queue>>) -> (StatusCode, String) {
    if queue.waiting.fetch_add(1, Ordering::Relaxed) >= queue.room {
        queue.waiting.fetch_sub(1, Ordering::Relaxed);
        return (StatusCode::SERVICE_UNAVAILABLE, "full".to_owned());
    }
    queue.wait().await;
    queue.waiting.fetch_sub(1, Ordering::Relaxed);
    (StatusCode::OK, queue.name.clone())
}

async fn health(State(queue): State<Arc<Queue>>) -> &'static str {
    queue.wait().await;
    "ok"
}

impl Queue {
    /// Whoever came first is served first.
    async fn wait(&self) {
        let _turn = self.served.lock().await;
        sleep(self.takes).await;
    }
}
