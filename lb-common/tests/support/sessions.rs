//! Stages in mode `full-nat`. All concerns the last service added.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use lb_common::{
    memory::Sessions,
    packet::SlicePacket,
    pipeline,
    rate::Rate,
    tables::{
        Address, PoolKey, Tick, Translation, client_address, feature, owned, record_flag, syn_proxy,
    },
};

use super::{Counted, Frame, HEADROOM, Outcome, Stage, run_by};

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

    /// Its SYNs are answered for it, but for as many as a rate lets through.
    pub fn proxying(mut self, unproxied: Rate) -> Self {
        self.tables.control.features |= feature::SYN_PROXY;
        self.guards(|guard| {
            guard.translation.syn_proxy = syn_proxy::ON;
            guard.unproxied = unproxied;
        })
        .open()
    }

    /// This cookie answers all SYNs, and stands for this MSS.
    pub fn cookie(self, cookie: u32, mss: u16) -> Self {
        self.tables.cookie.set(Some((cookie, mss)));
        self
    }

    /// Cookies depend on the SYN that they answer.
    pub fn hashing_cookies(self) -> Self {
        self.tables.cookie.set(None);
        self.hashing()
    }

    /// So many sessions fit.
    pub fn session_room(self, capacity: usize) -> Self {
        self.tables.sessions.borrow_mut().capacity = capacity;
        self
    }

    /// Runs a frame, and another one on another CPU once so many steps of it have been taken; what became of both, the
    /// first one first. `None` where it takes no more steps than that.
    pub fn at_once(&self, frame: &[u8], steps: u32, other: &[u8]) -> Option<[Outcome; 2]> {
        let kept = Arc::new(Mutex::new(None));
        let place = Arc::clone(&kept);
        let other = other.to_vec();
        self.tables.meanwhile.after(steps, move |tables| {
            let run = |packet: &mut SlicePacket<'_>| pipeline::process(packet, tables);
            let (verdict, bytes) = run_by(&other, HEADROOM, run);
            *place.lock().expect("no panic") = Some((verdict, bytes));
        });
        let first = self.run(frame);
        let is_done = self.tables.meanwhile.is_done();
        let (verdict, bytes) = kept.lock().expect("no panic").take()?;
        assert!(is_done);
        let second = Outcome {
            verdict,
            frame: Frame(bytes),
            counted: Counted::default(),
        };
        Some([first, second])
    }

    /// Another CPU takes flags off the next session whose flags are changed, and sets others, just before that.
    pub fn flagged_meanwhile(&self, clear: u16, set: u16) {
        self.tables.meanwhile.flags(clear, set);
    }

    /// That every session has its port, every port its session, no lock is left, and as many flows count as sessions say.
    ///
    /// # Panics
    /// It is not so.
    pub fn assert_sound(&self) {
        let sessions = self.sessions();
        for (flow, session) in &sessions.by_flow {
            let holder = sessions.ports.get(&session.port_key());
            assert_eq!(holder, Some(flow), "{session:?} has no port");
        }
        assert_eq!(
            sessions.ports.len(),
            sessions.by_flow.len(),
            "{:?}",
            sessions.ports
        );
        let flows = self.tables.flows.borrow();
        let counted: i32 = flows.loads.values().sum();
        let of_sessions = sessions.by_flow.values();
        let count = of_sessions.filter(|s| s.record.flags & record_flag::COUNTED != 0);
        assert_eq!(counted, count.count() as i32, "{:?}", flows.loads);
    }

    /// The tables are as somebody else has just left them.
    pub fn left(self, change: impl FnOnce(&mut Sessions)) -> Self {
        change(&mut self.tables.sessions.borrow_mut());
        self
    }

    /// Packets of its flows go another way now, one of [`mode`](lb_common::tables::mode).
    pub fn turned_into(self, mode: u8, protocol: u8) -> Self {
        self.describe(|descriptor| (descriptor.mode, descriptor.protocol) = (mode, protocol))
    }

    /// All sessions.
    pub fn sessions(&self) -> Sessions {
        self.tables.sessions.borrow().clone()
    }
}

/// How long flows may be idle.
pub const IDLE: Tick = 100_000;
