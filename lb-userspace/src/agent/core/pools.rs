//! Backends by their keys, where many are looked up at once: to find one takes a walk along its pool.

use std::{collections::HashMap, net::SocketAddr};

use super::forced::Key;
use crate::model::{Admin, Backend, ServiceId, State};

/// Look-ups that take that walk, before pools are made ready for more.
const WALKS: u32 = 4;

/// The pools of a state, each made ready once it is asked for often enough.
pub(super) struct Pools<'a> {
    state: &'a State,
    walked: u32,
    ready: HashMap<ServiceId, HashMap<SocketAddr, &'a Backend>>,
}

impl<'a> Pools<'a> {
    /// None of them is ready.
    pub(super) fn of(state: &'a State) -> Self {
        Self {
            state,
            walked: 0,
            ready: HashMap::new(),
        }
    }

    /// A backend, where there is such a one.
    pub(super) fn backend(&mut self, (lead, address): Key) -> Option<&'a Backend> {
        if self.walked < WALKS {
            self.walked += 1;
            return self.state.service(lead)?.backend(address);
        }
        let state = self.state;
        let pool = self.ready.entry(lead).or_insert_with(|| {
            let backends = state.service(lead).into_iter().flat_map(|s| &s.backends);
            backends.map(|b| (b.address, b)).collect()
        });
        pool.get(&address).copied()
    }

    /// What an operator asked of it.
    pub(super) fn admin(&mut self, key: Key) -> Option<Admin> {
        self.backend(key).map(|backend| backend.admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mode, Service};

    #[test]
    fn the_first_look_ups_find_what_later_ones_do() {
        let address = |n: u8| SocketAddr::from(([10, 2, 0, n], 80));
        let backend = |n: u8| Backend {
            address: address(n),
            weight: n.into(),
            admin: Admin::Active,
            max_connections: None,
            server_id: None,
            tier: 0,
        };
        let service = Service {
            backends: (1..=9).map(backend).collect(),
            ..Service::new("10.0.0.1:80/tcp".parse().unwrap(), Mode::Ipip)
        };
        let id = service.id;
        let state = State::new([service]).unwrap();
        let mut pools = Pools::of(&state);
        for _ in 0..2 {
            for n in 1..=9 {
                let found = pools.backend((id, address(n)));
                assert_eq!(found.map(|found| found.weight), Some(n.into()));
            }
            assert_eq!(pools.admin((id, address(10))), None);
        }
    }
}
            rated: Default::default(),
