//! A backend: echoes what it is sent, says who it is, and has a health check that can be told to
//! fail while it goes on serving. Runs as a process of its own, to be stopped and killed; never
//! knows of the balancer.

use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use super::wire::{Identity, REQUEST, Reply};
use crate::load::raise_file_limit;

/// Where it echoes: here and at the ports that follow.
pub const PORT: u16 = 7_000;
/// Where its health is asked for, by `GET /health`.
pub const HEALTH_PORT: u16 = PORT - 1;
/// Connections not yet accepted: all of another's clients may come at once.
const BACKLOG: u32 = 4_096;

/// The arguments of a server.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Its number
    #[arg(long)]
    pub backend: u32,
    /// Which of this backend's processes it is
    #[arg(long)]
    pub life: u32,
    /// At how many ports it echoes
    #[arg(long)]
    pub ports: u8,
    /// Socket that it takes orders at, a line each
    #[arg(long)]
    pub control: PathBuf,
}

/// What its health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// 200.
    Well,
    /// 503.
    Failing,
    /// Nothing, for as long as the other side cares to wait.
    Silent,
}

impl Health {
    /// The order that asks for it.
    pub const fn order(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Failing => "failing",
            Self::Silent => "silent",
        }
    }

    fn of_order(order: &str) -> Option<Self> {
        [Self::Well, Self::Failing, Self::Silent]
            .into_iter()
            .find(|health| health.order() == order)
    }
}

/// What it answers to an order that it carried out.
pub const DONE: &str = "done";

/// Serves for ever. Once it takes orders, it serves.
///
/// # Errors
/// A port is taken, or a listener fails.
pub async fn serve(options: &Options) -> Result<()> {
    raise_file_limit()?;
    let identity = Identity {
        backend: options.backend,
        life: options.life,
    };
    let ports = PORT..PORT + u16::from(options.ports);
    let data: Vec<TcpListener> = ports.map(listen).collect::<Result<_>>()?;
    let health = listen(HEALTH_PORT)?;
    let (orders, said) = watch::channel(Health::Well);
    let control = control(&options.control)?;
    tokio::try_join!(
        echo_at_all(data, identity),
        answer_checks(health, said),
        take_orders(control, Arc::new(orders)),
    )
    .map(drop)
}

/// At all addresses. A port still used by connections of a killed process is no obstacle.
fn listen(port: u16) -> Result<TcpListener> {
    let bind = || {
        let socket = TcpSocket::new_v6()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("listening at port {port}"))
}

fn control(path: &Path) -> Result<UnixListener> {
    // A killed process leaves its socket.
    drop(std::fs::remove_file(path));
    UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))
}

async fn echo_at_all(listeners: Vec<TcpListener>, identity: Identity) -> Result<()> {
    let mut serving: JoinSet<Result<()>> = listeners
        .into_iter()
        .map(|listener| echo_all(listener, identity))
        .collect();
    match serving.join_next().await {
        Some(ended) => ended.context("an echo server")?,
        None => std::future::pending().await,
    }
}

async fn echo_all(listener: TcpListener, identity: Identity) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accepting a connection")?;
        tokio::spawn(async move {
            // A client that goes away is no business of the others.
            drop(echo(stream, identity).await);
        });
    }
}

async fn echo(mut stream: TcpStream, by: Identity) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(&by.encode()).await?;
    let mut request = [0; REQUEST];
    loop {
        stream.read_exact(&mut request).await?;
        stream.write_all(&Reply { request, by }.encode()).await?;
    }
}

async fn answer_checks(listener: TcpListener, health: watch::Receiver<Health>) -> Result<()> {
    let router = Router::new()
        .route("/health", get(check))
        .with_state(health);
    axum::serve(listener, router)
        .await
        .context("serving health checks")
}

async fn check(State(health): State<watch::Receiver<Health>>) -> StatusCode {
    let health = *health.borrow();
    match health {
        Health::Well => StatusCode::OK,
        Health::Failing => StatusCode::SERVICE_UNAVAILABLE,
        Health::Silent => std::future::pending().await,
    }
}

async fn take_orders(listener: UnixListener, health: Arc<watch::Sender<Health>>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accepting an order")?;
        let health = Arc::clone(&health);
        tokio::spawn(async move {
            if let Err(error) = obey(stream, &health).await {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn obey(stream: UnixStream, health: &watch::Sender<Health>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut order = String::new();
    stream
        .read_line(&mut order)
        .await
        .context("reading an order")?;
    let Some(wanted) = Health::of_order(order.trim()) else {
        bail!("`{}` is no order", order.trim());
    };
    health.send_replace(wanted);
    let answer = format!("{DONE}\n");
    stream
        .write_all(answer.as_bytes())
        .await
        .context("answering an order")
}
