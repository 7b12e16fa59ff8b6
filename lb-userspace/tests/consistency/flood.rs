//! Packets of nobody's: as many flows as packets. None of them may take room from established flows.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::tables::{Address, flow_kind};

use crate::{
    frame::{self, Sent},
    sabotage::Bent,
    world::{World, client},
};

impl World {
    /// So many strangers, each of whom sends all of that.
    pub fn flood(&mut self, service: usize, strangers: u64, sent: &[Sent]) {
        let mut seen: BTreeSet<(Address, u16)> = BTreeSet::new();
        for _ in 0..strangers {
            let stranger = self.stranger(service);
            seen.insert((stranger.ip().into(), stranger.port().to_be()));
            for &sent in sent {
                let bent = Bent::new(&self.memory.tables, self.sabotage, &self.tally);
                let _ = frame::send(&bent, stranger, self.offers[service].id, sent);
                self.tally.flood += 1;
            }
        }
        let flows = self.memory.tables.flows.borrow();
        let mut keys = flows.established.records.keys();
        let intruder =
            keys.find(|key| key.kind == flow_kind::FLOW && seen.contains(&(key.source, key.port)));
        if let Some(intruder) = intruder {
            let broken = format!(
                "at {}: a flood of {sent:?} is among the established flows: {intruder:?}",
                self.now
            );
            self.tally.broken.push(broken);
        }
    }

    /// Somebody who was never there before.
    fn stranger(&mut self, service: usize) -> SocketAddr {
        loop {
            let (host, port) = (self.random.index(60_000), self.random.word() as u16 | 1);
            let stranger = client(&self.offers[service].id, 100_000 + host, port);
            if self.used.insert(stranger) {
                return stranger;
            }
        }
    }
}
