//! Which backends get which part of new flows, as they come back and as they fare: the agent's core over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod adaptive;
mod damping;
mod history;
mod panic;
mod passive;
mod pool;
mod rates;
#[path = "../reach/mod.rs"]
mod reach;
mod slow_start;
