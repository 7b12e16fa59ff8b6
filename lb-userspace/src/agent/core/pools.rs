//! Backends by their keys, where many are looked up at once: to find one takes a walk along its pool.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use lb_common::tables::state;

use super::forced::Key;
use crate::{
    model::{Admin, Backend, ServiceId, State},
    plan::Layout,
};

/// Look-ups that take that walk, before a pool is made ready for more.
const WALKS: u32 = 4;

/// The pools of a state, each made ready once it is asked for often enough.
pub(super) struct Pools<'a> {
    state: &'a State,
    known: HashMap<ServiceId, Known<'a>>,
}

/// A pool that was asked for.
enum Known<'a> {
    /// So often.
    Walked(u32),
    Ready(HashMap<SocketAddr, &'a Backend>),
}

impl<'a> Pools<'a> {
    /// None of them is ready.
    pub(super) fn of(state: &'a State) -> Self {
        Self {
            state,
            known: HashMap::new(),
        }
    }

    /// A backend, where there is such a one.
    pub(super) fn backend(&mut self, (lead, address): Key) -> Option<&'a Backend> {
        let known = self.known.entry(lead).or_insert(Known::Walked(0));
        match known {
            Known::Ready(pool) => pool.get(&address).copied(),
            Known::Walked(times) if *times < WALKS => {
                *times += 1;
                self.state.service(lead)?.backend(address)
            }
            Known::Walked(_) => {
                let service = self.state.service(lead)?;
                let backends = service.backends.iter();
                let pool: HashMap<_, _> = backends.map(|b| (b.address, b)).collect();
                let found = pool.get(&address).copied();
                *known = Known::Ready(pool);
                found
            }
        }
    }

    /// What an operator asked of it.
    pub(super) fn admin(&mut self, key: Key) -> Option<Admin> {
        self.backend(key).map(|backend| backend.admin)
    }
}

/// Who is in the pools of the maps, each of which is looked through once.
pub(super) struct Members<'a> {
    layout: &'a Layout,
    pools: HashMap<ServiceId, Option<Pool>>,
}

struct Pool {
    there: HashSet<SocketAddr>,
    /// Two who take new flows, where there are so many: one of them is another than whoever is asked about.
    takers: Vec<SocketAddr>,
}

impl<'a> Members<'a> {
    /// Nobody has been looked for.
    pub(super) fn of(layout: &'a Layout) -> Self {
        Self {
            layout,
            pools: HashMap::new(),
        }
    }

    /// Whether a backend is none of a pool that is there.
    pub(super) fn lack(&mut self, wanted: &mut Pools<'_>, (lead, address): Key) -> bool {
        let pool = self.pool(wanted, lead);
        pool.is_some_and(|pool| !pool.there.contains(&address))
    }

    /// Whether others of its pool take new flows, and may go on doing so. A pool's first backends do from the start: nobody
    /// else would.
    pub(super) fn others_take(&mut self, wanted: &mut Pools<'_>, (lead, address): Key) -> bool {
        let pool = self.pool(wanted, lead);
        pool.is_some_and(|pool| pool.takers.iter().any(|&taker| taker != address))
    }

    fn pool(&mut self, wanted: &mut Pools<'_>, lead: ServiceId) -> Option<&Pool> {
        let layout = self.layout;
        let look = || {
            let placed = layout.placed(lead)?;
            let members = || placed.members().map(|(_, member)| member);
            let mut may = |address| {
                let backend = wanted.backend((lead, address));
                backend.is_some_and(Backend::is_wanted)
            };
            let takers = members()
                .filter(|member| member.backend.state & state::TAKES != 0 && may(member.address()));
            Some(Pool {
                takers: takers.map(|member| member.address()).take(2).collect(),
                there: members().map(|member| member.address()).collect(),
            })
        };
        self.pools.entry(lead).or_insert_with(look).as_ref()
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
            weight: n.into(),
            ..Backend::at(address(n))
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
