//! What identifies a service.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use lb_common::tables::{Address, Shape, VipKey};
use serde::{Deserialize, Serialize};

use super::{ModelError, access::V4_BITS, check::check_address};

/// A layer-4 protocol that can be balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol 6.
    Tcp,
    /// User Datagram Protocol, IP protocol 17.
    Udp,
    /// Stream Control Transmission Protocol, IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What identifies a service: address, port and protocol, written `10.0.0.1:80/tcp` or `[2001:db8::1]:443/udp`. With every
/// port that no other service of the address has, `10.0.0.1:*/tcp`; with a range of them, `10.0.0.1:8000-8999/tcp`; with
/// every address of a prefix, `203.0.113.0/28:80/tcp` or `[2001:db8::/64]:80/tcp`, of which other services may have some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The virtual address and port, or the first ones; port 0 stands for every one.
    pub vip: SocketAddr,
    /// First bits of the address that count, as [`Address::prefix`] takes them: 128 where it has one.
    bits: u8,
    /// The last port, where it has a range of them; else 0.
    last_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// What is written for every port.
const EVERY_PORT: &str = "*";
/// Bits of an address.
const ALL_BITS: u8 = 128;
/// The fewest of them that make a prefix of VIPs: of IPv4 eight, whose first is the 97th, and of IPv6 half of them, as flows
/// are recorded by the rest.
const LEAST_BITS: [u8; 2] = [104, 64];

impl ServiceId {
    /// A service of one address, and of one port or, with 0, of every one.
    pub fn new(vip: SocketAddr, protocol: Protocol) -> Self {
        Self {
            vip,
            bits: ALL_BITS,
            last_port: 0,
            protocol,
        }
    }

    /// The service that its agent keeps a shape of; `vip` is what the descriptor says.
    pub(crate) fn of_shape(vip: SocketAddr, protocol: Protocol, shape: &Shape) -> Self {
        if shape.bits == 0 {
            return Self::new(vip, protocol);
        }
        let (first, last) = (shape.first_port, shape.last_port);
        Self {
            vip: SocketAddr::new(vip.ip(), first),
            bits: shape.bits.min(ALL_BITS.into()) as u8,
            last_port: if last > first { last } else { 0 },
            protocol,
        }
    }

    /// What its descriptor does not say.
    pub(crate) fn shape(&self) -> Shape {
        if !self.is_wide() {
            return Shape::default();
        }
        Shape {
            bits: self.bits.into(),
            first_port: self.vip.port(),
            last_port: self.last_port.max(self.vip.port()),
            zero: 0,
        }
    }

    /// Whether it has every port that no other service of the address has.
    pub fn has_every_port(&self) -> bool {
        self.vip.port() == 0
    }

    /// Whether it has more ports than one.
    pub fn has_several_ports(&self) -> bool {
        self.has_every_port() || self.last_port != 0
    }

    /// Whether it has every address of a prefix.
    pub fn is_prefix(&self) -> bool {
        self.bits != ALL_BITS
    }

    /// Whether it is found by prefixes, and not by its one address and one or every port.
    pub fn is_wide(&self) -> bool {
        self.is_prefix() || self.last_port != 0
    }

    /// Its ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        match (self.vip.port(), self.last_port) {
            (0, _) => 0..=u16::MAX,
            (one, 0) => one..=one,
            (first, last) => first..=last,
        }
    }

    /// What its addresses are found by, of its protocol or, with 0, of any.
    pub(crate) fn vip_key(&self, protocol: u8) -> VipKey {
        let bits = VipKey::PROTOCOL_BITS + u32::from(self.bits);
        VipKey::of(protocol, self.vip.ip().into()).prefix(bits)
    }

    /// The port of the VIP that a backend serves at `at` in mode `nat`.
    pub(super) fn vip_port_at(&self, at: SocketAddr) -> u16 {
        match self.last_port {
            0 => self.vip.port(),
            _ => at.port(),
        }
    }

    /// Whether it has an address.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        let all = Address::from(ip).prefix(self.bits.into());
        ip.is_ipv4() == self.vip.is_ipv4() && all == Address::from(self.vip.ip())
    }

    /// The service with every port of its address.
    pub(crate) fn with_every_port(&self) -> Self {
        Self::new(SocketAddr::new(self.vip.ip(), 0), self.protocol)
    }

    /// Whether another one has some of its ports at the same addresses, and each of the two has some that the other has
    /// not, so that neither is the more specific one.
    pub(super) fn crosses(&self, other: &Self) -> bool {
        let same = self.protocol == other.protocol
            && self.vip.ip() == other.vip.ip()
            && self.bits == other.bits;
        let (a, b) = (self.ports(), other.ports());
        let apart = a.end() < b.start() || b.end() < a.start();
        let holds = |one: &RangeInclusive<u16>, all: &RangeInclusive<u16>| {
            all.contains(one.start()) && all.contains(one.end())
        };
        same && !apart && !holds(&a, &b) && !holds(&b, &a)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.vip.ip();
        let (open, close) = match ip {
            IpAddr::V4(_) => ("", ""),
            IpAddr::V6(_) => ("[", "]"),
        };
        write!(f, "{open}{ip}")?;
        if self.is_prefix() {
            let before = if ip.is_ipv4() { V4_BITS } else { 0 };
            write!(f, "/{}", self.bits.saturating_sub(before))?;
        }
        write!(f, "{close}:")?;
        match (self.vip.port(), self.last_port) {
            (0, _) => f.write_str(EVERY_PORT)?,
            (one, 0) => write!(f, "{one}")?,
            (first, last) => write!(f, "{first}-{last}")?,
        }
        write!(f, "/{}", self.protocol)
    }
}

impl FromStr for ServiceId {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let bad = || ModelError::BadService {
            text: text.to_owned(),
        };
        let (vip, protocol) = text.rsplit_once('/').ok_or_else(bad)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(bad()),
        };
        let (address, ports) = vip.rsplit_once(':').ok_or_else(bad)?;
        let (address, bits) = match address.split_once('/') {
            None => (address.to_owned(), None),
            // The length stands within the brackets of IPv6.
            Some((address, bits)) => match bits.strip_suffix(']') {
                Some(bits) => (format!("{address}]"), Some(bits)),
                None => (address.to_owned(), Some(bits)),
            },
        };
        let (first, last) = match ports.split_once('-') {
            None => (ports, None),
            Some((first, last)) => (first, Some(last)),
        };
        let first = if first == EVERY_PORT { "0" } else { first };
        let vip: SocketAddr = format!("{address}:{first}").parse().map_err(|_| bad())?;
        if (vip.port() == 0) != (ports == EVERY_PORT) {
            return Err(bad());
        }
        let mut id = Self::new(vip, protocol);
        check_address(vip, "vip", &id)?;
        if let Some(last) = last {
            id.last_port = last_port(vip.port(), last).map_err(|problem| ModelError::BadSpan {
                text: text.to_owned(),
                problem,
            })?;
        }
        if let Some(bits) = bits {
            id.bits = prefix_bits(vip.ip(), bits).map_err(|problem| ModelError::BadSpan {
                text: text.to_owned(),
                problem,
            })?;
        }
        Ok(id)
    }
}

/// The last port of a range; 0 where it is of one port.
fn last_port(first: u16, last: &str) -> Result<u16, String> {
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    match last.parse::<u16>().ok().filter(|_| is_number) {
        Some(last) if last == first => Ok(0),
        Some(last) if last > first => Ok(last),
        _ => Err(format!(
            "{first}-{last} is no range of ports: write the lower one first, such as 8000-8999, of 1 to 65535"
        )),
    }
}

/// First bits, of 128, of an address that begins a prefix.
fn prefix_bits(ip: IpAddr, length: &str) -> Result<u8, String> {
    let (before, [least, most]) = match ip {
        IpAddr::V4(_) => (V4_BITS, [LEAST_BITS[0] - V4_BITS, 32]),
        IpAddr::V6(_) => (0, [LEAST_BITS[1], 128]),
    };
    let bits = match length.parse::<u8>() {
        Ok(bits) if (least..=most).contains(&bits) => before + bits,
        _ => {
            return Err(format!(
                "/{length} is out of range: /{least} to /{most} of such an address"
            ));
        }
    };
    let begins = Address::from(ip).prefix(bits.into());
    if begins != Address::from(ip) {
        let begins = IpAddr::from(begins);
        return Err(format!(
            "{ip} has bits set beyond /{length}: write {begins}/{length}"
        ));
    }
    Ok(bits)
}

impl Serialize for ServiceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
