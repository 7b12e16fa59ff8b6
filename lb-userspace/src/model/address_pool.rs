//! Address pools: what services of mode `full-nat` send their clients' packets from.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use clap::ValueEnum;
use ipnet::IpNet;
use lb_common::tables::client_address;
use serde::{Deserialize, Serialize};

use super::{Mode, ModelError, Protocol, Service, check::invalid, group, name_of};

/// Addresses of all pools at most, all together.
pub const MAX_POOL_ADDRESSES: usize = 2_048;
/// Ports of a pool's addresses, unless said otherwise: all but those that need a privilege.
pub const POOL_PORTS: (u16, u16) = (1_024, u16::MAX);

/// Addresses, and ports of each of them. Valid by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPool {
    name: String,
    addresses: Vec<IpAddr>,
    ports: (u16, u16),
}

impl AddressPool {
    /// A pool of these addresses, each counted once, and ports from the first to the last of the two.
    ///
    /// # Errors
    /// [`ModelError::BadAddressPool`].
    pub fn new(
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
        ports: (u16, u16),
    ) -> Result<Self, ModelError> {
        let bad = |problem: String| ModelError::BadAddressPool {
            name: name.to_owned(),
            problem,
        };
        group::parse_name_of("a pool", name).map_err(bad)?;
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if addresses.is_empty() {
            return Err(bad("has no addresses: give one or more".to_owned()));
        }
        if addresses.len() > MAX_POOL_ADDRESSES {
            let count = addresses.len();
            return Err(bad(format!(
                "{count} addresses are too many: at most {MAX_POOL_ADDRESSES}"
            )));
        }
        if let Some(address) = addresses.iter().find(|address| !is_usable(**address)) {
            return Err(bad(format!("{address} is not a routable unicast address")));
        }
        if ports.0 == 0 || ports.0 > ports.1 {
            let (first, last) = ports;
            return Err(bad(format!(
                "{first}-{last} is no range of ports: write the first and the last, of 1 to 65535"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            addresses: addresses.into_iter().collect(),
            ports,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses in order.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Those of one family.
    pub fn of_family(&self, v4: bool) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.iter().copied();
        addresses.filter(move |address| address.is_ipv4() == v4)
    }

    /// The first and the last port of each.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }
}

fn is_usable(address: IpAddr) -> bool {
    let unusable = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    !unusable && !address.is_multicast() && !address.is_unspecified() && !address.is_loopback()
}

/// Reads addresses: one, the first and the last of several with a hyphen between, or a prefix, all of whose
/// addresses it stands for.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn parse_addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let shown = text.escape_debug();
    let example = "10.9.0.1, 10.9.0.1-10.9.0.9 or 10.9.0.0/28";
    let wrong = || format!("`{shown}` is not an address, a range or a prefix: write {example}");
    let many = || format!("`{shown}` has too many addresses: at most {MAX_POOL_ADDRESSES}");
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let (first, last) = if let Ok(net) = text.parse::<IpNet>() {
        if net.trunc() != net {
            let (length, network) = (net.prefix_len(), net.trunc());
            return Err(format!(
                "`{shown}` has bits set beyond /{length}: write {network}"
            ));
        }
        (net.network(), net.broadcast())
    } else {
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let read = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
        (read(first)?, read(last)?)
    };
    let most = MAX_POOL_ADDRESSES as u128;
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            let (first, last) = (u32::from(first), u32::from(last));
            if u128::from(last - first) >= most {
                return Err(many());
            }
            Ok((first..=last).map(|a| Ipv4Addr::from(a).into()).collect())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
            let (first, last) = (u128::from(first), u128::from(last));
            if last - first >= most {
                return Err(many());
            }
            Ok((first..=last).map(|a| Ipv6Addr::from(a).into()).collect())
        }
        _ => Err(format!(
            "`{shown}` does not lead from a lower address to a higher one of its family: write {example}"
        )),
    }
}

/// Reads ports: the first and the last with a hyphen between.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let wrong = || {
        let shown = text.escape_debug();
        format!("`{shown}` is no range of ports: write as 1024-65535")
    };
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let read = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
    let (first, last) = (read(first)?, read(last)?);
    if first == 0 || first > last {
        return Err(wrong());
    }
    Ok((first, last))
}

/// How the backends of mode `full-nat` are told who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddress {
    /// They are not.
    #[default]
    None,
    /// By a TCP option ([`lb_common::client_address`]).
    TcpOption,
}

impl ClientAddress {
    /// As the program has it: one of [`client_address`].
    pub fn number(self) -> u8 {
        match self {
            Self::None => client_address::NONE,
            Self::TcpOption => client_address::TCP_OPTION,
        }
    }

    /// Whether it is what it is where nothing is said.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// What mode `full-nat` needs, and what nothing else may have.
pub(super) fn check_full_nat(service: &Service) -> Result<(), ModelError> {
    let id = service.id;
    if service.mode != Mode::FullNat {
        let mode = name_of(service.mode);
        if service.address_pool.is_some() {
            let problem = format!(
                "mode \"{mode}\" keeps the client's address: leave it out, or use mode \"full-nat\""
            );
            return invalid(id, "address_pool", problem);
        }
        if !service.client_address.is_none() {
            let problem = format!(
                "backends of mode \"{mode}\" see the client's address anyway: leave it out, or use mode \"full-nat\""
            );
            return invalid(id, "client_address", problem);
        }
        return Ok(());
    }
    if service.address_pool.is_none() {
        let problem = "missing, and mode \"full-nat\" takes addresses and ports of it: write the name of an [[address_pool]]";
        return invalid(id, "address_pool", problem);
    }
    if service.client_address == ClientAddress::TcpOption && id.protocol != Protocol::Tcp {
        let problem = "\"tcp-option\" is one of TCP: leave it out for a UDP service";
        return invalid(id, "client_address", problem);
    }
    if service.quic.is_some() {
        let problem = "mode \"full-nat\" tells flows by their addresses and ports, which connection ids are to outlive: use mode \"nat\" or a tunnel";
        return invalid(id, "quic", problem);
    }
    if service.moving_time().is_zero() {
        let problem = "0 keeps no record of flows, and mode \"full-nat\" needs one of each: set it, or use mode \"nat\"";
        return invalid(id, "moving_time", problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_one_by_one_by_range_and_by_prefix() {
        let read = |text| {
            parse_addresses(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(read("10.9.0.1").unwrap(), ["10.9.0.1"]);
        assert_eq!(
            read("10.9.0.254-10.9.1.1").unwrap(),
            ["10.9.0.254", "10.9.0.255", "10.9.1.0", "10.9.1.1"]
        );
        assert_eq!(read("10.9.0.4/31").unwrap(), ["10.9.0.4", "10.9.0.5"]);
        assert_eq!(read("fd09::/127").unwrap(), ["fd09::", "fd09::1"]);
        for (text, problem) in [
            ("10.9.0", "is not an address"),
            ("10.9.0.9-10.9.0.1", "from a lower address to a higher"),
            ("10.9.0.1-fd09::1", "of its family"),
            ("10.9.0.1/24", "write 10.9.0.0/24"),
            ("10.0.0.0/8", "too many"),
            ("fd09::/64", "too many"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn ports_are_a_range_of_what_there_is() {
        assert_eq!(parse_ports("1024-65535"), Ok((1_024, 65_535)));
        assert_eq!(parse_ports("7-7"), Ok((7, 7)));
        for text in ["", "80", "0-5", "9-8", "1-65536", "a-b"] {
            assert!(parse_ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pool_has_addresses_that_packets_can_come_from() {
        let pool = |addresses: &[&str]| {
            AddressPool::new(
                "p",
                addresses.iter().map(|a| a.parse().unwrap()),
                POOL_PORTS,
            )
        };
        assert_eq!(
            pool(&["10.9.0.2", "10.9.0.1", "10.9.0.2"])
                .unwrap()
                .addresses()
                .len(),
            2
        );
        for bad in [&[][..], &["127.0.0.1"], &["224.0.0.1"], &["fe80::1"]] {
            assert!(pool(bad).is_err(), "{bad:?}");
        }
        assert!(AddressPool::new("p", ["10.9.0.1".parse().unwrap()], (9, 8)).is_err());
        assert!(AddressPool::new("a b", ["10.9.0.1".parse().unwrap()], POOL_PORTS).is_err());
    }
}
