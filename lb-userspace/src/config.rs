//! The configuration file: TOML text to a validated [`Config`]. Pure; reading the file is the
//! caller's.
//!
//! Every mistake in a file is reported, each with its line, its key and what would be right. What
//! makes a service valid is decided by the model alone; this module only knows where it was written.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::wire;

use crate::{
    instance,
    model::{AccessList, AddressPool, Service, Unserved, Vlans},
};

mod access;
mod adaptive;
mod address_pool;
mod hash_key;
mod health;
mod reader;
mod service;
mod warnings;

pub use access::{NamedFile, ReadFile};
pub use adaptive::parse_adaptive;
pub use hash_key::HashKey;
pub use health::parse_check;
use reader::{Located, Report, Section};

/// A mistake in a configuration, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as the caller named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key at fault, such as `service[0].backend[1].weight`; empty where the text is no TOML.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// What tunnels to the backends have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer sources of mode `ipip` to IPv4 backends: network address and prefix length; the
    /// interface's own address where absent.
    pub source_v4: Option<(Ipv4Addr, u8)>,
    /// The same for IPv6 backends.
    pub source_v6: Option<(Ipv6Addr, u8)>,
    /// UDP port that backends take packets of mode `gue` at.
    pub gue_port: u16,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            source_v4: None,
            source_v6: None,
            gue_port: wire::GUE_PORT,
        }
    }
}

/// Sizes of the kernel's tables; they are fixed once the tables exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Services at most.
    pub services: u32,
    /// Backends at most, of all services together.
    pub backends: u32,
    /// Ring slots at most, of all services together.
    pub ring_slots: u32,
    /// Records of established flows at most.
    pub flows: u32,
    /// Records of half-open flows at most, which a SYN flood can fill.
    pub half_open: u32,
    /// Datagrams in fragments at most that are remembered at once.
    pub fragments: u32,
    /// Prefixes of access lists at most; while a list is replaced, the former ones count, too.
    pub access_prefixes: u32,
    /// Sources at most whose new flows are limited at once.
    pub sources: u32,
    /// Sessions of mode `full-nat` at most.
    pub sessions: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 4_096,
            backends: 65_536,
            ring_slots: 8_388_608,
            flows: 262_144,
            half_open: 65_536,
            fragments: 16_384,
            access_prefixes: 2_097_152,
            sources: 65_536,
            sessions: 262_144,
        }
    }
}

/// A configuration without mistakes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Name of the instance, where the file gives one.
    pub name: Option<String>,
    /// Interfaces to attach to.
    pub interfaces: Vec<String>,
    /// Where Prometheus metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Where backends report by UDP, if anywhere.
    pub heartbeat: Option<SocketAddr>,
    /// What packets get to ports of VIPs that no service has, where the file says it.
    pub unknown_port: Option<Unserved>,
    /// The secret of the flow hash, where it is not drawn.
    pub hash_key: Option<HashKey>,
    /// What is made of VLAN tags.
    pub vlans: Vlans,
    /// Outer addresses of mode `ipip`.
    pub tunnel: Tunnel,
    /// Sizes of the kernel's tables.
    pub limits: Limits,
    /// The address pools, valid together.
    pub address_pools: Vec<AddressPool>,
    /// The access lists, each name once.
    pub access_lists: Vec<AccessList>,
    /// The services, valid together: `State::with_pools` accepts them.
    pub services: Vec<Service>,
    /// What is allowed and yet probably not meant, each with file and line.
    pub warnings: Vec<String>,
}

/// Reads a configuration that names no other files; `file_name` is only quoted in errors.
///
/// # Errors
/// As [`parse_with`].
pub fn parse(text: &str, file_name: &str) -> Result<Config, Vec<ConfigError>> {
    parse_with(text, file_name, &|_| {
        Err("there are no other files here".to_owned())
    })
}

/// Reads a configuration, and the files that it names by `read`; `file_name` is only quoted in errors.
///
/// # Errors
/// Every mistake found, in the order of the file.
pub fn parse_with(
    text: &str,
    file_name: &str,
    read: ReadFile<'_>,
) -> Result<Config, Vec<ConfigError>> {
    let report = Report::new(file_name, text);
    let (document, syntax) = toml::de::DeTable::parse_recoverable(text);
    for error in &syntax {
        report.error(error.span().unwrap_or_default(), "", error.message());
    }
    if !syntax.is_empty() {
        // What the parser recovered is a guess; judging it would report mistakes nobody made.
        return Err(report.into_errors());
    }
    let keys = &[
        "name",
        "interfaces",
        "metrics",
        "heartbeat",
        "unknown_port",
        "hash_key_file",
        "vlans",
        "tunnel",
        "limits",
        "access_list",
        "address_pool",
        "service",
    ];
    let root = Section::root(document.get_ref(), keys, &report);
    let limits = root.section("limits", LIMITS).map(|s| read_limits(&s));
    let limits = limits.unwrap_or_default();
    let access_lists = access::read_all(&root, read);
    let address_pools = address_pool::read_all(&root);
    let services = service::read_all(&root, &address_pools, &access_lists, limits);
    let config = Config {
        name: root
            .value("name", instance::parse_name)
            .map(Located::into_inner),
        interfaces: read_interfaces(&root),
        metrics: root
            .value("metrics", |text| parse_listener(text, "127.0.0.1:9150"))
            .map(Located::into_inner),
        heartbeat: root
            .value("heartbeat", |text| parse_listener(text, "0.0.0.0:9151"))
            .map(Located::into_inner),
        unknown_port: root
            .choice("unknown_port", "what unknown_port can be")
            .map(Located::into_inner),
        hash_key: hash_key::read(&root, read),
        vlans: root
            .choice("vlans", "what vlans can be")
            .map(Located::into_inner)
            .unwrap_or_default(),
        tunnel: root
            .section("tunnel", TUNNEL)
            .map(|s| read_tunnel(&s))
            .unwrap_or_default(),
        limits,
        address_pools,
        access_lists,
        warnings: warnings::of(&services, limits, &report),
        services: services.into_iter().map(Located::into_inner).collect(),
    };
    match report.into_errors() {
        errors if errors.is_empty() => Ok(config),
        errors => Err(errors),
    }
}

const TUNNEL: &[&str] = &["source_v4", "source_v6", "gue_port"];
const LIMITS: &[&str] = &[
    "services",
    "backends",
    "ring_slots",
    "flows",
    "half_open",
    "fragments",
    "access_prefixes",
    "sources",
    "sessions",
];

fn read_limits(section: &Section<'_>) -> Limits {
    let default = Limits::default();
    let size = |key, max, default| {
        let given = section.integer(key, 1, max);
        given.map_or(default, Located::into_inner)
    };
    Limits {
        services: size("services", 1 << 16, default.services),
        backends: size("backends", 1 << 20, default.backends),
        ring_slots: size("ring_slots", 1 << 28, default.ring_slots),
        // The kernel sets all of their memory aside, some 100 bytes a record.
        flows: size("flows", 1 << 24, default.flows),
        half_open: size("half_open", 1 << 24, default.half_open),
        // Some 200 bytes each.
        fragments: size("fragments", 1 << 22, default.fragments),
        // Memory is taken as prefixes come, some 100 bytes each.
        access_prefixes: size("access_prefixes", 1 << 26, default.access_prefixes),
        // Some 100 bytes each.
        sources: size("sources", 1 << 24, default.sources),
        // Memory is taken as sessions come, some 300 bytes each.
        sessions: size("sessions", 1 << 24, default.sessions),
    }
}

fn read_interfaces(root: &Section<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in root.strings("interfaces") {
        // The kernel's own rule: IFNAMSIZ is 16 with the closing zero (dev_valid_name).
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let text = *name.get_ref();
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
            let shown = text.escape_debug();
            let problem = format!("`{shown}` is not an interface's name: `ip link` shows them");
            root.error(name.span(), "interfaces", problem);
        } else if names.iter().any(|n| n == text) {
            root.error(
                name.span(),
                "interfaces",
                format!("`{text}` stands here twice"),
            );
        } else {
            names.push(text.to_owned());
        }
    }
    names
}

fn parse_listener(text: &str, example: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let shown = text.escape_debug();
        format!("`{shown}` is not ADDRESS:PORT, such as {example} or [::1]:9150")
    })
}

fn read_tunnel(section: &Section<'_>) -> Tunnel {
    let v4 = section.value("source_v4", |text| {
        let net = text.parse::<Ipv4Net>();
        let net = net.map_err(|_| not_a_prefix(text, "IPv4", "10.255.0.0/16"))?;
        let usable = !net.addr().is_multicast() && !net.addr().is_loopback();
        check_prefix(net.trunc() == net, net.trunc(), usable, net.prefix_len(), 8)?;
        Ok((net.addr(), net.prefix_len()))
    });
    let v6 = section.value("source_v6", |text| {
        let net = text.parse::<Ipv6Net>();
        let net = net.map_err(|_| not_a_prefix(text, "IPv6", "fd00:ffff::/64"))?;
        let usable = !net.addr().is_multicast() && !net.addr().is_loopback();
        check_prefix(
            net.trunc() == net,
            net.trunc(),
            usable,
            net.prefix_len(),
            16,
        )?;
        Ok((net.addr(), net.prefix_len()))
    });
    Tunnel {
        source_v4: v4.map(Located::into_inner),
        source_v6: v6.map(Located::into_inner),
        gue_port: section
            .integer("gue_port", 1, 65_535)
            .map_or(wire::GUE_PORT, Located::into_inner),
    }
}

fn not_a_prefix(text: &str, family: &str, example: &str) -> String {
    format!("`{text}` is not an {family} prefix, such as {example}")
}

/// A source prefix must be one that a packet can come from, and not half of the internet.
fn check_prefix(
    is_network: bool,
    network: impl fmt::Display,
    usable: bool,
    length: u8,
    shortest: u8,
) -> Result<(), String> {
    if length < shortest {
        return Err(format!("/{length} is too wide: /{shortest} or longer"));
    }
    if !usable {
        return Err(format!(
            "{network} cannot be a source: give a unicast prefix"
        ));
    }
    if !is_network {
        return Err(format!("has bits set beyond /{length}: write {network}"));
    }
    Ok(())
}
