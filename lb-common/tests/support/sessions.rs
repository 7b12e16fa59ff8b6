//! Stages in mode `full-nat`. All concerns the last service added.

use std::net::IpAddr;

use lb_common::{
    memory::Sessions,
    tables::{Address, PoolKey, Tick, Translation, client_address, feature, owned},
};

use super::Stage;

impl Stage {
    /// Its flows come from these addresses, and ports from the first to the last of the two.
    pub fn translating(mut self, pool: &[&str], (first_port, last_port): (u16, u16)) -> Self {
        // At no other index of the service's.
        let number = self.tables.service_entries.len() as u16 + 5;
        for (index, address) in (0..).zip(pool) {
            let address: IpAddr = address.parse().expect("an address");
            let (address, pool) = (Address::from(address), number.into());
            let key = PoolKey { pool, index };
            self.tables.pool_addresses.insert(key, address);
            *self.tables.owned.entry(address).or_default() |= owned::POOL;
        }
        self.tables.control.features |= feature::FULL_NAT;
        let translation = Translation {
            addresses: pool.len() as u32,
            pool: number,
            first_port,
            last_port,
            ..Translation::default()
        };
        self.moving_time(IDLE)
            .guards(|guard| guard.translation = translation)
            .open()
    }

    /// Its backends are told the client's address.
    pub fn telling(self) -> Self {
        let told = client_address::TCP_OPTION;
        self.guards(|guard| guard.translation.client_address = told)
            .open()
    }

    /// So many sessions fit.
    pub fn session_room(self, capacity: usize) -> Self {
        self.tables.sessions.borrow_mut().capacity = capacity;
        self
    }

    /// All sessions.
    pub fn sessions(&self) -> Sessions {
        self.tables.sessions.borrow().clone()
    }
}

/// How long flows may be idle.
pub const IDLE: Tick = 100_000;
