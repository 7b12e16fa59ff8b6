//! How the agent's HTTP servers run and stop. What they answer is `api`'s and `metrics`'.

use std::{fmt::Debug, time::Duration};

use anyhow::Context as _;
use axum::{Router, serve::Listener};
use tokio::sync::oneshot;

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
    let (stopping, stopped) = oneshot::channel();
    let signal = async move {
        shutdown.await;
        // The receiver waits below for as long as this future lives.
        let _ = stopping.send(());
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(signal);
    let deadline = async move {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server.into_future() => ended.context("the HTTP server failed"),
        () = deadline => Ok(()),
    }
}
