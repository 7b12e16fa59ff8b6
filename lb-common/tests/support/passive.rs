//! What servers show on a [`Stage`].

use lb_common::tables::{Signs, Tables as _, feature};

use super::{FIRST_COUNTERS, Stage};

impl Stage {
    /// The last service watches the handshakes of one in 2^(`sampling` - 1) flows; of all servers, answers that
    /// come in by an interface count.
    pub fn watching(mut self, sampling: u8, interface: u32) -> Self {
        for (counters, backend) in (FIRST_COUNTERS..).zip(self.tables.backends.iter().skip(1)) {
            let ways = self.tables.ways_back.iter_mut();
            let own = ways.filter(|(from, _)| from.address == backend.address);
            own.for_each(|(_, back)| back.watched = counters + 1);
            self.tables.control.features |= feature::PASSIVE;
            let signs = self.tables.signs.get_mut();
            signs.entry(counters).or_default().interface = interface.into();
        }
        self.describe(|descriptor| descriptor.set_sampling(sampling))
    }

    /// What a server has shown.
    pub fn signs(&self, server: u32) -> Signs {
        let signs = self.tables.signs.borrow();
        let counters = FIRST_COUNTERS + server;
        let signs = signs.get(&counters).copied().unwrap_or_default();
        Signs {
            interface: 0,
            ..signs
        }
    }

    /// So many ticks pass.
    pub fn ticks(&self, ticks: u32) {
        self.tables.time.set(self.tables.now().wrapping_add(ticks));
    }

    /// States of the handshakes that are watched, or were.
    pub fn handshakes(&self) -> Vec<u32> {
        let handshakes = self.tables.handshakes.borrow();
        let states = handshakes.values().map(|handshake| handshake.state);
        states.filter(|&state| state != 0).collect()
    }
}
