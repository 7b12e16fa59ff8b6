//! How the agent's HTTP servers run and stop. What they answer is `api`'s and `metrics`', who is let in `door`'s.

mod door;

use std::{fmt::Debug, io, pin::Pin, time::Duration};

use anyhow::Context as _;
use axum::{Router, serve::Listener};
use tokio::{net::TcpListener, sync::oneshot};

use self::door::Door;
pub(crate) use self::door::Sender;

/// How long requests under way may hold up the end.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown`; requests under way then have [`GRACE`] to finish.
pub(crate) async fn serve<L>(
    listener: L,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()>
where
    L: Listener,
    L::Addr: Debug,
{
    let server = axum::serve(listener, router);
    let start =
        |signal| -> Boxed<_> { Box::pin(server.with_graceful_shutdown(signal).into_future()) };
    until(shutdown, start).await
}

/// The same at a port that others reach, of whom no more are let in than leave the agent enough to do its work with. Handlers may
/// ask who sends ([`axum::extract::ConnectInfo`] of [`Sender`]).
pub(crate) async fn serve_others(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let router = router.into_make_service_with_connect_info::<Sender>();
    let server = axum::serve(Door::new(listener), router);
    let start =
        |signal| -> Boxed<_> { Box::pin(server.with_graceful_shutdown(signal).into_future()) };
    until(shutdown, start).await
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

async fn until(
    shutdown: impl Future<Output = ()> + Send + 'static,
    start: impl FnOnce(Boxed<()>) -> Boxed<io::Result<()>>,
) -> anyhow::Result<()> {
    let (stopping, stopped) = oneshot::channel();
    let signal = async move {
        shutdown.await;
        // The receiver waits below for as long as this future lives.
        let _ = stopping.send(());
    };
    let server = start(Box::pin(signal));
    let deadline = async move {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server => ended.context("the HTTP server failed"),
        () = deadline => Ok(()),
    }
}
