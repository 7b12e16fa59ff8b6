//! Load generators, which run inside the client's namespace and say afterwards what became of
//! every attempt: when it began, which backend answered, or how it failed. They judge nothing;
//! that is the tests'.
//!
//! | module | load | answers |
//! |---|---|---|
//! | [`open_loop`] | new connections at a fixed rate, whether or not earlier ones succeed | [`Report`] |
//! | [`requests`] | a number of requests, each on a connection or socket of its own | [`Report`] |
//! | [`held`] | connections kept open, each with an exchange now and then | [`held::HeldReport`] |
//! | [`app`] | what both of these may talk to: web servers, PostgreSQL, Redis | names |
//! | [`flood`] | spoofed segments, each from a new source | none: nobody could get them |
//! | [`handshakes`] | connections that are opened and reset, at rates that sockets do not reach | [`Report`] |
//! | [`fragments`] | datagrams in fragments, in any order | none |
//! | [`numbered`] | UDP datagrams at a fixed rate, each accounted for at the receivers | [`numbered::Delivery`] |
//!
//! All times are tokio `Instant`s of one clock, so that a test relates them to its own events.

use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::{runtime::Builder, sync::watch};

use crate::netns::Namespace;

pub mod app;
pub mod flood;
pub mod fragments;
pub mod handshakes;
pub mod held;
pub mod http;
pub mod numbered;
pub mod open_loop;
pub mod raw;
pub mod report;
pub mod requests;

pub use report::{Attempt, Failure, Phase, Reason, Report};
pub use requests::{Checksum, requests, udp_requests};

/// Work on a runtime of its own, on a thread inside a namespace.
#[derive(Debug)]
pub struct Background<T> {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts `work`, which has to end once its argument turns true (or its sender is gone).
    ///
    /// # Errors
    /// No runtime can be made.
    pub fn start<F, W>(namespace: &Namespace, work: F) -> Result<Self>
    where
        F: FnOnce(watch::Receiver<bool>) -> W + Send + 'static,
        W: Future<Output = T>,
    {
        let (stop, stopped) = watch::channel(false);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("a runtime")?;
        let thread = namespace.thread(move || {
            // Sockets belong to the namespace of the thread that makes them: only this one runs.
            runtime.block_on(work(stopped))
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Tells the work to end and returns its value.
    ///
    /// # Errors
    /// The work panicked.
    pub fn stop(mut self) -> Result<T> {
        self.end().context("the load generator is running")?
    }

    fn end(&mut self) -> Option<Result<T>> {
        self.stop.send_replace(true);
        let joined = self.thread.take()?.join();
        Some(joined.map_err(|_| anyhow::anyhow!("the load generator panicked")))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // It has reported its panic, if any; this drop may be part of another one.
            drop(thread.join());
        }
    }
}

/// Raises the limit of open files to what the system grants: load needs many.
///
/// # Errors
/// The limit cannot be read or set.
pub fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("reading RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising RLIMIT_NOFILE")
}
