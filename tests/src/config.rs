//! Configuration files for `lbd`, as text. Kept apart from the product's own types, so that tests
//! read the format the way a user writes it.

use std::{
    fmt::{self, Display, Formatter},
    net::SocketAddr,
};

use crate::topology::INTERFACE;

/// How backends are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// `"http"`, `"tcp"` or `"none"`.
    pub kind: &'static str,
    /// The port that is asked; the backend's own where absent.
    pub port: Option<u16>,
    /// From probe to probe, in milliseconds.
    pub interval_ms: u32,
    /// A probe's time, in milliseconds.
    pub timeout_ms: u32,
    /// Successes until up.
    pub rise: u32,
    /// Failures until down.
    pub fall: u32,
}

impl Health {
    /// `GET /health` five times a second, down after three failures.
    pub const HTTP: Self = Self {
        kind: "http",
        port: None,
        interval_ms: 200,
        timeout_ms: 100,
        rise: 2,
        fall: 3,
    };
    /// The same with a connection alone.
    pub const TCP: Self = Self {
        kind: "tcp",
        ..Self::HTTP
    };
    /// No probes.
    pub const NONE: Self = Self {
        kind: "none",
        ..Self::HTTP
    };

    /// The longest that the decision may take after a failure: `interval × fall`.
    pub const fn detection_ms(&self) -> u32 {
        self.interval_ms * self.fall
    }
}

impl Display for Health {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            port,
            interval_ms,
            timeout_ms,
            rise,
            fall,
        } = self;
        let path = match *kind {
            "none" => return write!(f, "{{ type = \"none\" }}"),
            "http" => "path = \"/health\", ",
            _ => "",
        };
        let port = port.map_or_else(String::new, |port| format!("port = {port}, "));
        write!(
            f,
            "{{ type = \"{kind}\", {path}{port}interval = \"{interval_ms}ms\", \
             timeout = \"{timeout_ms}ms\", rise = {rise}, fall = {fall} }}"
        )
    }
}

/// A service and its pool.
#[derive(Debug, Clone)]
pub struct Service {
    /// As `10.0.0.1:80/tcp`.
    pub vip: String,
    /// `"nat"`, `"full-nat"`, `"ipip"`, `"gue"` or `"l2"`.
    pub mode: &'static str,
    /// How its backends are checked.
    pub health: Health,
    /// Addresses and weights.
    pub backends: Vec<(SocketAddr, u16)>,
    /// Server ids of the backends, in their order, of a QUIC service.
    pub server_ids: Vec<String>,
    /// Tiers of the backends, in their order; those without one are primary.
    pub tiers: Vec<u8>,
    /// Several checks in the place of `health`, as they are written.
    pub checks: Vec<String>,
    /// Further keys and their values, as they are written.
    pub keys: Vec<(String, String)>,
}

impl Service {
    /// With equal backends.
    pub fn new(
        vip: impl Display,
        mode: &'static str,
        health: Health,
        backends: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let backends = backends.into_iter().map(|address| (address, 1)).collect();
        Self {
            vip: vip.to_string(),
            mode,
            health,
            backends,
            server_ids: Vec::new(),
            tiers: Vec::new(),
            checks: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// The prefix of its VIPs, where it has several.
    pub fn prefix(&self) -> Option<&str> {
        let (vip, _) = self.vip.rsplit_once('/')?;
        let (addresses, _) = vip.rsplit_once(':')?;
        let addresses = addresses.trim_matches(['[', ']']);
        addresses.contains('/').then_some(addresses)
    }

    /// Whether its packets reach backends with another header around them.
    pub fn is_tunnelled(&self) -> bool {
        ["ipip", "gue"].contains(&self.mode)
    }

    /// Whether backends answer to the balancer from their own addresses.
    pub fn is_translated(&self) -> bool {
        ["nat", "full-nat"].contains(&self.mode)
    }

    /// As QUIC, with this table and these server ids.
    #[must_use]
    pub fn with_quic(mut self, table: &str, ids: impl IntoIterator<Item = String>) -> Self {
        self.keys.push(("quic".to_owned(), table.to_owned()));
        self.server_ids.extend(ids);
        self
    }

    /// With its backends in these tiers.
    #[must_use]
    pub fn tiered(mut self, tiers: &[u8]) -> Self {
        self.tiers = tiers.to_vec();
        self
    }

    /// Checked so instead: by these, written as the value of `checks` is.
    #[must_use]
    pub fn checked(mut self, checks: &[&str]) -> Self {
        self.checks = checks.iter().map(|check| (*check).to_owned()).collect();
        self
    }

    /// With another key, whose value is a number.
    #[must_use]
    pub fn with_number(mut self, key: &str, value: u32) -> Self {
        self.keys.push((key.to_owned(), value.to_string()));
        self
    }

    /// With another key, whose value is true.
    #[must_use]
    pub fn with_true(mut self, key: &str) -> Self {
        self.keys.push((key.to_owned(), "true".to_owned()));
        self
    }

    /// With another key, whose value is text.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Display) -> Self {
        self.keys.push((key.to_owned(), format!("\"{value}\"")));
        self
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            vip,
            mode,
            health,
            backends,
            server_ids,
            tiers,
            checks,
            keys,
        } = self;
        writeln!(f, "\n[[service]]\nvip = \"{vip}\"\nmode = \"{mode}\"")?;
        match &checks[..] {
            [] => writeln!(f, "health = {health}")?,
            checks => writeln!(f, "checks = [{}]", checks.join(", "))?,
        }
        for (key, value) in keys {
            writeln!(f, "{key} = {value}")?;
        }
        for (n, (address, weight)) in backends.iter().enumerate() {
            writeln!(
                f,
                "[[service.backend]]\naddress = \"{address}\"\nweight = {weight}"
            )?;
            if let Some(tier) = tiers.get(n) {
                writeln!(f, "tier = {tier}")?;
            }
            if let Some(id) = server_ids.get(n) {
                writeln!(f, "server_id = \"{id}\"")?;
            }
        }
        Ok(())
    }
}

/// A whole file for the balancer of a topology.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// All services.
    pub services: Vec<Service>,
    /// Interfaces that are attended beside [`INTERFACE`].
    pub more_interfaces: Vec<&'static str>,
    /// Of `[limits]`: those that differ from the defaults.
    pub limits: Vec<(&'static str, u32)>,
    /// The UDP port that backends report to, of all addresses.
    pub heartbeat_port: Option<u16>,
    /// What packets get to ports of VIPs that no service has, where that is written.
    pub unknown_port: Option<&'static str>,
    /// The file that has the secret of the flow hash, where one does.
    pub hash_key_file: Option<String>,
    /// What is made of VLAN tags, where that is written.
    pub vlans: Option<&'static str>,
    /// Access lists, as they are written.
    pub access_lists: Vec<String>,
    /// Address pools, likewise.
    pub address_pools: Vec<String>,
}

impl From<Vec<Service>> for Config {
    fn from(services: Vec<Service>) -> Self {
        Self {
            services,
            ..Self::default()
        }
    }
}

impl Config {
    /// The text, for the instance called `name`.
    pub fn render(&self, name: &str) -> String {
        let services: String = self.services.iter().map(Service::to_string).collect();
        let interfaces = [&[INTERFACE][..], &self.more_interfaces].concat();
        let limits: String = self
            .limits
            .iter()
            .map(|(name, value)| format!("{name} = {value}\n"))
            .collect();
        let heartbeat = self
            .heartbeat_port
            .map(|port| format!("heartbeat = \"0.0.0.0:{port}\"\n"));
        let heartbeat = heartbeat.unwrap_or_default();
        let unknown_port = self
            .unknown_port
            .map(|policy| format!("unknown_port = \"{policy}\"\n"));
        let unknown_port = unknown_port.unwrap_or_default();
        let hash_key = self
            .hash_key_file
            .as_ref()
            .map(|file| format!("hash_key_file = \"{file}\"\n"));
        let hash_key = hash_key.unwrap_or_default();
        let vlans = self.vlans.map(|vlans| format!("vlans = \"{vlans}\"\n"));
        let vlans = vlans.unwrap_or_default();
        format!(
            "name = \"{name}\"\ninterfaces = {interfaces:?}\n{heartbeat}{unknown_port}{hash_key}{vlans}\n[tunnel]\n\
             source_v4 = \"10.255.0.0/16\"\nsource_v6 = \"fd00:ffff::/64\"\n\
             [limits]\n{limits}{}{}{services}",
            self.access_lists.concat(),
            self.address_pools.concat(),
        )
    }
}
