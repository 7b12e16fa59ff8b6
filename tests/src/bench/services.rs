//! Services to measure with, and how their backends are reached. Pure.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Error, Result};
use lb_userspace::{
    model::{
        AddressPool, Backend, Change, ClientAddress, FlowLimit, FlowState, Health, Mode, MssClamp,
        Passive, Prefix, Protocol, Quic, Scheduler, Service, ServiceId, State, Unserved,
    },
    neighbours::{self, NextHop, Update},
};

use super::{frame::FIRST_SOURCE, harness::INGRESS};

/// Destination of every frame to a backend: its neighbour's MAC address.
pub const NEXT_HOP_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// Backends that are told apart by a number, so that one pool can take another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Which pool: the second byte of its addresses, from 2 on.
    pub number: u8,
    /// Its backends.
    pub backends: u16,
    /// Whether they are reached over IPv6.
    pub v6: bool,
}

impl Pool {
    /// Where its backends are.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (1..=self.backends).map(move |n| {
            let [high, low] = n.to_be_bytes();
            if self.v6 {
                Ipv6Addr::new(0xfd00, self.number.into(), 0, 0, 0, 0, 0, n).into()
            } else {
                Ipv4Addr::new(10, self.number, high, low).into()
            }
        })
    }

    /// Where its `n`th backend is, counted from 1.
    pub fn address(self, n: u16) -> Option<IpAddr> {
        self.addresses().nth(usize::from(n).checked_sub(1)?)
    }

    /// Whose backend an address is.
    pub fn has(self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }

    /// The pool that takes its place.
    pub fn other(self) -> Self {
        let number = if self.number == 2 { 3 } else { 2 };
        Self { number, ..self }
    }

    /// Its backends as a service names them.
    pub fn backends(self) -> Vec<Backend> {
        let backend = |ip| Backend::at(SocketAddr::new(ip, 80));
        self.addresses().map(backend).collect()
    }
}

/// What is asked of packets before they are steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarded {
    /// Nothing.
    Open,
    /// An access list of so many prefixes, which has all their sources.
    Listed(u32),
    /// How many flows begin, in all and of each source: fewer than the limits.
    Limited,
}

/// What else a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Also {
    /// Nothing.
    Nothing,
    /// It tells its backends who else may have a flow.
    SecondHop,
    /// It lowers the MSS of its SYNs to this.
    Clamp(u16),
    /// It looks at what packets of handshakes show.
    Watch,
    /// It has neighbours told of its VIP.
    Announce,
    /// It tells its backends the client's address.
    Tell,
    /// Its clients keep their backends for an hour; all those of frames are one.
    Persist,
    /// It resets what no backend takes.
    Reset,
    /// It leads clients to one of two subsets by [`ROUTES`] prefixes, which have all their sources.
    Route,
}

/// Prefixes of source routes.
pub const ROUTES: u32 = 1_024;

/// The name of an access list of so many prefixes.
pub fn list_name(prefixes: u32) -> String {
    format!("of-{prefixes}")
}

/// The name of the address pool.
pub const ADDRESS_POOL: &str = "snat";

/// Addresses enough for any number of flows here: of each family sixteen, all ports of them.
///
/// # Errors
/// Never.
pub fn address_pool() -> Result<AddressPool> {
    let v4 = (0..16).map(|n| Ipv4Addr::new(10, 254, 0, n).into());
    let v6 = (0..16).map(|n| Ipv6Addr::new(0xfd00, 0xfffe, 0, 0, 0, 0, 0, n).into());
    Ok(AddressPool::new(ADDRESS_POOL, v4.chain(v6), (1, u16::MAX))?)
}

/// So many prefixes of equal length, all those that sources of frames begin with.
///
/// # Errors
/// Never, for powers of two below 2²¹.
pub fn sources(prefixes: u32) -> Result<Vec<Prefix>> {
    let bits = 8 + prefixes.ilog2();
    let prefix = |n: u32| {
        let first = Ipv4Addr::from(FIRST_SOURCE + (n << (32 - bits)));
        Ok(format!("{first}/{bits}").parse()?)
    };
    (0..prefixes).map(prefix).collect()
}

/// What distinguishes a service under measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// How packets reach the backends.
    pub mode: Mode,
    /// How a new flow's backend is chosen.
    pub scheduler: Scheduler,
    /// Which flows are recorded.
    pub flow_state: FlowState,
    /// Slots of its ring; by the pool's size where absent.
    pub ring_size: Option<u32>,
    /// Its backends.
    pub pool: Pool,
    /// How connection ids are laid out where it is QUIC; backends have their numbers for server ids.
    pub quic: Option<Quic>,
    /// What its packets are asked.
    pub guarded: Guarded,
    /// What else it does.
    pub also: Also,
}

impl Also {
    fn set(self, service: &mut Service) -> Result<()> {
        match self {
            Self::Nothing => {}
            Self::Route => {
                let prefixes = match service.id.vip.is_ipv4() {
                    true => sources(ROUTES)?,
                    false => vec!["::/0".parse()?],
                };
                let names = ["default", "other"].map(str::to_owned);
                let routes = prefixes
                    .into_iter()
                    .zip(names.iter().rev().cycle().cloned());
                service.source_routes = routes.collect();
                for backend in &mut service.backends {
                    backend.subsets = names.to_vec();
                }
            }
            Self::SecondHop => service.second_hop = true,
            Self::Clamp(mss) => service.mss_clamp = MssClamp::To(mss),
            Self::Watch => service.passive = Passive::ON,
            Self::Announce => service.announce = true,
            Self::Tell => service.client_address = ClientAddress::TcpOption,
            Self::Persist => {
                service.persistence = Duration::from_secs(3_600);
                let bits = if service.id.vip.is_ipv4() { 8 } else { 64 };
                service.persistence_prefix = Some(bits);
            }
            Self::Reset => service.no_backend = Unserved::Reset,
        }
        Ok(())
    }
}

impl Kind {
    /// A service of this kind that is never probed.
    ///
    /// # Errors
    /// Never, for a valid kind.
    pub fn service(&self, id: ServiceId) -> Result<Service> {
        let mut service: Service = serde_json::from_value(serde_json::json!({
            "id": id, "mode": self.mode, "scheduler": self.scheduler, "flow_state": self.flow_state,
        }))?;
        service.ring_size = self.ring_size;
        service.health = Health::none();
        service.backends = self.pool.backends();
        service.quic = self.quic;
        service.address_pool = (self.mode == Mode::FullNat).then(|| ADDRESS_POOL.to_owned());
        self.also.set(&mut service)?;
        match self.guarded {
            Guarded::Open => {}
            Guarded::Listed(prefixes) => service.access_list = Some(list_name(prefixes)),
            Guarded::Limited => {
                let limit = FlowLimit::to(1_000_000_000, None).map_err(Error::msg)?;
                (service.flow_limit, service.source_limit) = (limit, limit);
            }
        }
        if self.quic.is_some() {
            for (n, backend) in (1u16..).zip(&mut service.backends) {
                backend.server_id = Some(format!("{n:04x}").parse()?);
            }
        }
        Ok(service)
    }
}

/// The `n`th of many services.
pub fn numbered(n: u32) -> ServiceId {
    let address = Ipv4Addr::from_bits(FIRST_OF_MANY.to_bits() + n);
    ServiceId::new(SocketAddr::new(address.into(), 80), Protocol::Tcp)
}

/// The address of the first of many services.
pub const FIRST_OF_MANY: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// The change that gives some services of a state another pool each, all at once.
pub fn repool(state: &State, pool_of: impl Fn(&Service) -> Option<Pool>) -> Change {
    let services = state.services().map(|service| {
        let mut service = service.clone();
        if let Some(pool) = pool_of(&service) {
            service.backends = pool.backends();
        }
        service
    });
    Change::Replace(services.collect())
}

/// The number of the pool to which long packets go.
pub const WIDE_WAY: u8 = 9;
/// Bytes that a packet may have on the way there, and to all others.
const MTU: [u32; 2] = [9_500, 1_500];

fn mtu(address: IpAddr) -> u32 {
    let number = match address {
        IpAddr::V4(v4) => u16::from(v4.octets()[1]),
        IpAddr::V6(v6) => v6.segments()[1],
    };
    MTU[usize::from(number != u16::from(WIDE_WAY))]
}

/// How a backend is reached: by the interface that test runs come in by, so that forwarding ends in
/// `XDP_TX`.
pub fn next_hop(address: IpAddr) -> Update {
    let source_address: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::new(10, 255, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 1).into(),
    };
    Update::NextHop {
        address,
        next_hop: Some(NextHop {
            interface: INGRESS,
            source_mac: SOURCE_MAC,
            destination_mac: NEXT_HOP_MAC,
            source_address,
            mtu: mtu(address),
            on_link: true,
        }),
        reason: None,
    }
}

/// The interface that test runs come in by, and its name.
pub fn port() -> (String, neighbours::Port) {
    let port = neighbours::Port {
        index: INGRESS,
        mac: SOURCE_MAC,
        running: true,
        mtu: MTU[1],
        kind: neighbours::Kind::Plain,
        deaf: false,
    };
    ("lo".to_owned(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_take_each_others_place_share_no_address() {
        for v6 in [false, true] {
            let pool = Pool {
                number: 2,
                backends: 1_000,
                v6,
            };
            assert_eq!(pool.other().other(), pool);
            assert!(
                pool.other()
                    .addresses()
                    .all(|address| !pool.has(address) && pool.other().has(address))
            );
        }
    }
}
