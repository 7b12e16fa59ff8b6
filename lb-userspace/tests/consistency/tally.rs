//! What a simulation has seen, and the line that tells it.

use std::{cell::Cell, fmt};

/// See above. Cells are counted from within the packet path.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Simulations.
    pub sequences: u64,
    /// Packets of flows.
    pub packets: u64,
    /// Packets of floods.
    pub flood: u64,
    /// Connections begun.
    pub flows: u64,
    /// Steps of the agent.
    pub changes: u64,
    /// Agents that were killed amid a change.
    pub kills: u64,
    /// Operations carried out.
    pub operations: u64,
    /// Packets that looked their flow up.
    pub lookups: Cell<u64>,
    /// Packets whose connection id named their backend.
    pub named: Cell<u64>,
    /// Choices that could not be recorded.
    pub overflows: Cell<u64>,
    /// Packets of established flows that stayed among the half-open ones.
    pub unpromoted: Cell<u64>,
    /// The most that a table has held.
    pub peak: Cell<u64>,
    /// New flows that had to reach their clients' backends.
    pub returned: u64,
    /// Promises broken, and how.
    pub broken: Vec<String>,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.packets += other.packets;
        self.flood += other.flood;
        self.flows += other.flows;
        self.returned += other.returned;
        self.changes += other.changes;
        self.kills += other.kills;
        self.operations += other.operations;
        self.lookups.set(self.lookups.get() + other.lookups.get());
        self.named.set(self.named.get() + other.named.get());
        self.overflows
            .set(self.overflows.get() + other.overflows.get());
        self.peak.set(self.peak.get().max(other.peak.get()));
        self.broken.extend(other.broken.iter().cloned());
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packets = self.packets + self.flood;
        let share = 100.0 * self.lookups.get() as f64 / (packets.max(1)) as f64;
        write!(
            f,
            "{} sequences, {} changes, {} kills amid one, {} operations, {} flows ({} of clients that return), {} packets ({} of floods), \
             {share:.1}% looked up, {} by connection id, {} overflows, {} entries at most, {} broken",
            self.sequences,
            self.changes,
            self.kills,
            self.operations,
            self.flows,
            self.returned,
            packets,
            self.flood,
            self.named.get(),
            self.overflows.get(),
            self.peak.get(),
            self.broken.len(),
        )
    }
}
