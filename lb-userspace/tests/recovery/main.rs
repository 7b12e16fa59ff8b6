//! Backends that come back: the agent's core over tables in memory.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod damping;
mod panic;
mod pool;
#[path = "../reach/mod.rs"]
mod reach;
mod slow_start;
