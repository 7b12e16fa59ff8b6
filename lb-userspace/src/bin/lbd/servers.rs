//! Who listens for `lbd run`: the API's socket, metrics, heartbeats. Bound before the kernel is
//! touched, served once the agent is ready.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use lb_userspace::{agent::Handle, api, config::Config, health::heartbeat_port, instance, metrics};
use tokio::{
    net::{TcpListener, UdpSocket, UnixListener},
    sync::watch,
};

use crate::args::Run;

/// What is listened on.
pub struct Listeners {
    api: UnixListener,
    socket: SocketFile,
    metrics: Option<TcpListener>,
    reports: Option<(UdpSocket, TcpListener)>,
}

impl Listeners {
    /// Binds all that is asked for; on an error nothing of it is left.
    ///
    /// # Errors
    /// An address is taken, or not this machine's.
    pub async fn bind(arguments: &Run, config: &Config, name: &str) -> Result<Self> {
        let socket = arguments.socket.clone();
        let socket = socket.unwrap_or_else(|| instance::socket_path(name));
        let api = api::bind(&socket)?;
        let socket = SocketFile(socket);
        let metrics = match arguments.metrics.or(config.metrics) {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let reports = match arguments.heartbeat.or(config.heartbeat) {
            Some(address) => Some(hear(address).await?),
            None => None,
        };
        Ok(Self {
            api,
            socket,
            metrics,
            reports,
        })
    }

    /// Starts to serve: metrics and heartbeats at once, the API when the first of what this returns
    /// is called. All end when the second is dropped.
    pub fn serve(self, handle: Handle) -> (impl FnOnce(), Running) {
        let (stop, stopped) = watch::channel(false);
        let servers = Servers { handle, stopped };
        if let Some(listener) = self.metrics {
            servers.metrics(listener);
        }
        if let Some((datagrams, requests)) = self.reports {
            tokio::spawn(heartbeat_port::listen(datagrams, servers.handle.clone()));
            servers.reports(requests);
        }
        let running = Running {
            stop,
            _socket: self.socket,
        };
        let ready = move || {
            servers.api(self.api);
            tracing::info!("ready");
        };
        (ready, running)
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("serving metrics on {address}"))
}

/// Backends report by datagrams, or by requests to the same port of TCP.
async fn hear(address: SocketAddr) -> Result<(UdpSocket, TcpListener)> {
    let what = || format!("listening for heartbeats on {address}");
    let datagrams = UdpSocket::bind(address).await.with_context(what)?;
    // The port that was given, where any was asked for.
    let address = datagrams.local_addr().with_context(what)?;
    let requests = TcpListener::bind(address).await.with_context(what)?;
    Ok((datagrams, requests))
}

/// The API's socket in the file system; goes on drop.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// Servers run while this lives.
pub struct Running {
    stop: watch::Sender<bool>,
    _socket: SocketFile,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Starts the servers that talk to the agent.
struct Servers {
    handle: Handle,
    stopped: watch::Receiver<bool>,
}

impl Servers {
    fn until_stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopped = self.stopped.clone();
        async move { drop(stopped.wait_for(|&stopped| stopped).await) }
    }

    fn api(&self, listener: UnixListener) {
        let server = api::serve(listener, self.handle.clone(), self.until_stopped());
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the API has ended");
            }
        });
    }

    fn reports(&self, listener: TcpListener) {
        let server = api::serve_reports(listener, self.handle.clone(), self.until_stopped());
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "backends cannot report by TCP any more");
            }
        });
    }

    fn metrics(&self, listener: TcpListener) {
        let server = metrics::serve(listener, self.handle.clone(), self.until_stopped());
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the metrics server has ended");
            }
        });
    }
}
