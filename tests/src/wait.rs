//! Bounded waiting. Owns the one polling loop of the harness, so that no test sleeps a fixed time
//! for something that it could await.

use std::{thread, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Polls `probe` until it gives a value.
///
/// # Errors
/// `what` did not happen within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(POLL);
    }
}

/// Polls `holds` until it is true.
///
/// # Errors
/// `what` was not true within `limit`.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || holds().then_some(()))
}

/// Polls `attempt` until it succeeds.
///
/// # Errors
/// The last error, once `limit` is over.
pub fn wait_ok<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut last = None;
    let waited = wait_for(what, limit, || {
        attempt().map_err(|error| last = Some(error)).ok()
    });
    match (waited, last) {
        (Err(timeout), Some(error)) => Err(error.context(timeout)),
        (waited, _) => waited,
    }
}
