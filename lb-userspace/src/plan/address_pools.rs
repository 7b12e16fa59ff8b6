//! The part of a plan that says which addresses mode `full-nat` takes ports of. Pure.
//!
//! The addresses of a pool that are of one family have a number, by which services are told them. One whose addresses
//! change gets another number: it is written aside, services go over to it at the switch, and the former one goes
//! after the grace period. What comes to an address that no pool has any more is looked at as long as sessions
//! have ports of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    memory::MemoryTables,
    tables::{Address, PoolKey, Translation, owned},
};

use super::{Draft, census::Census, layout::Layout};
use crate::{
    dataplane::Operation,
    model::{Mode, Service, State},
};

/// Addresses of one family, in order.
pub type Addresses = Arc<[Address]>;

/// Those that a service takes ports of, where it does.
fn addresses_of(state: &State, service: &Service) -> Option<Addresses> {
    let name = service.address_pool.as_ref()?;
    let pool = state.address_pool(name).ok()?;
    let family = pool.of_family(service.id.vip.is_ipv4());
    (service.mode == Mode::FullNat).then(|| family.map(Address::from).collect())
}

/// How the addresses of a pool go: the last one first, so that an agent that ends amid it leaves the beginning of a pool,
/// which the next one takes for what it is.
fn removal(number: u16, addresses: &Addresses) -> impl Iterator<Item = Operation> + use<> {
    let pool = u32::from(number);
    let indices = (0..addresses.len() as u32).rev();
    indices.map(move |index| Operation::ForgetPoolAddress(PoolKey { pool, index }))
}

impl Draft {
    /// Has the addresses of every pool that some service has in the maps, and no others.
    pub(super) fn place_address_pools(&mut self, state: &State) {
        let services = state.services();
        let wanted: BTreeSet<Addresses> = services.filter_map(|s| addresses_of(state, s)).collect();
        let before = std::mem::take(&mut self.layout.address_pools);
        let mut numbers: BTreeSet<u16> = before.keys().copied().collect();
        let mut after = BTreeMap::new();
        for addresses in wanted {
            let known = before.iter().find(|(_, had)| **had == addresses);
            let number = match known {
                Some((&number, _)) => number,
                None => {
                    let free = (1..).find(|number| !numbers.contains(number));
                    let free = free.unwrap_or(u16::MAX);
                    numbers.insert(free);
                    let operation = Operation::PoolAddresses(free, Arc::clone(&addresses));
                    self.before.push(operation);
                    free
                }
            };
            after.insert(number, addresses);
        }
        for (number, addresses) in before {
            if !after.contains_key(&number) {
                self.after.extend(removal(number, &addresses));
            }
        }
        self.layout.address_pools = after;
    }

    /// What the flows of a service become.
    pub(super) fn translation(&self, state: &State, service: &Service) -> Translation {
        let Some(addresses) = addresses_of(state, service) else {
            return Translation::default();
        };
        let mut pools = self.layout.address_pools.iter();
        let number = pools.find(|(_, placed)| **placed == addresses);
        let name = service.address_pool.as_ref();
        let pool = name.and_then(|name| state.address_pool(name).ok());
        let (Some((&number, _)), Some(pool)) = (number, pool) else {
            return Translation::default();
        };
        let (first_port, last_port) = pool.ports();
        Translation {
            addresses: addresses.len() as u32,
            pool: number,
            first_port,
            last_port,
            client_address: service.client_address.number(),
            syn_proxy: service.syn_proxy.number(),
            zeros: [0; 4],
        }
    }

    /// Which addresses answers to sessions come to: those of pools, and those that sessions still have ports of.
    pub(super) fn answered_addresses(&self, census: Option<&Census>) -> BTreeSet<Address> {
        let pools = self.layout.address_pools.values();
        let mut answered: BTreeSet<Address> = pools.flat_map(|all| all.iter().copied()).collect();
        let before = self.layout.owned.iter();
        let before = before.filter(|(_, bits)| **bits & owned::POOL != 0);
        let left = before.filter(|(address, _)| census.is_none_or(|c| c.may_answer(**address)));
        answered.extend(left.map(|(&address, _)| address));
        answered
    }
}

impl Layout {
    /// The pools that the maps hold, whole or not. Where one lacks an address, nobody's stands for it.
    pub(super) fn adopt_address_pools(&mut self, tables: &MemoryTables) {
        let mut pools: BTreeMap<u16, Vec<Address>> = BTreeMap::new();
        // By number, then in order.
        for (key, &address) in &tables.pool_addresses {
            let pool = pools.entry(key.pool as u16).or_default();
            pool.resize(key.index as usize, Address::default());
            pool.push(address);
        }
        self.address_pools = pools
            .into_iter()
            .map(|(number, addresses)| (number, addresses.into()))
            .collect();
    }
}
