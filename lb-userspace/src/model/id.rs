//! What identifies a service.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ModelError, check::check_address};

/// A layer-4 protocol that can be balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol 6.
    Tcp,
    /// User Datagram Protocol, IP protocol 17.
    Udp,
}

impl Protocol {
    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What identifies a service: address, port and protocol, written `10.0.0.1:80/tcp` or
/// `[2001:db8::1]:443/udp`; with every port that no other service of the address has, `10.0.0.1:*/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The virtual address and port; port 0 stands for every one.
    pub vip: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

/// What is written for every port.
const EVERY_PORT: &str = ":*";

impl ServiceId {
    /// Whether it has every port that no other service of the address has.
    pub fn has_every_port(&self) -> bool {
        self.vip.port() == 0
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.has_every_port() {
            return write!(f, "{}/{}", self.vip, self.protocol);
        }
        match self.vip {
            SocketAddr::V4(vip) => write!(f, "{}", vip.ip())?,
            SocketAddr::V6(vip) => write!(f, "[{}]", vip.ip())?,
        }
        write!(f, "{EVERY_PORT}/{}", self.protocol)
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
            _ => return Err(bad()),
        };
        let vip: SocketAddr = match vip.strip_suffix(EVERY_PORT) {
            Some(ip) => format!("{ip}:0").parse().map_err(|_| bad())?,
            None => {
                let vip: SocketAddr = vip.parse().map_err(|_| bad())?;
                (vip.port() != 0).then_some(vip).ok_or_else(bad)?
            }
        };
        let id = Self { vip, protocol };
        check_address(vip, "vip", &id)?;
        Ok(id)
    }
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
