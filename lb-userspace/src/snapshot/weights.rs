//! What is told of the weights that backends have, and of who has none for having failed.

use std::time::Duration;

/// What is held against a backend for having failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DampingStatus {
    /// Failures that are not forgotten yet.
    pub failures: u32,
    /// How long it is kept out although its checks pass, where it is.
    pub left: Option<Duration>,
}

/// How far a backend is that gets its weight by and by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStartStatus {
    /// Percent of its weight that it has.
    pub percent: u8,
    /// How long until it has all.
    pub left: Duration,
}

/// A backend whose weight follows how it fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveStatus {
    /// Percent of its weight that it has.
    pub percent: u16,
    /// What it should have by the last look.
    pub wanted: u16,
    /// How often it has turned back and forth of late.
    pub reversals: u32,
    /// How long its probes take on average, where that counts.
    pub latency: Option<Duration>,
    /// How long its clients' handshakes take on average, where that counts.
    pub handshake: Option<Duration>,
}

/// How the weights of a pool follow how its backends fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdaptivePoolStatus {
    /// Whether they are held back, as too few slots would be steady.
    pub held: bool,
    /// How often weights were changed.
    pub changes: u64,
    /// How often they were held back instead.
    pub holds: u64,
}
