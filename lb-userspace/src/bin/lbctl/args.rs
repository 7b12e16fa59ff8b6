//! The arguments and their help. Values are read by the model's own parsers, so that a bad address
//! is refused before anyone is asked.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, builder::TypedValueParser};
use clap_complete::Shell;
use lb_userspace::{
    api::dto::{DEFAULT_EVENTS, DEFAULT_FLOWS, MAX_FLOWS, NewBackend, Phase},
    config, duration, instance,
    model::{
        self, Adaptive, Admin, BitRate, Check, ClientAddress, Combine, Failback, FlapDamping,
        FlowLimit, FlowState, MAX_TIER, MAX_WEIGHT, Mode, ModelError, MssClamp, OnDown, Passive,
        Prefix, Scheduler, ServerId, ServiceId, SlowStart, SynProxy, Unserved, parse_source_route,
        parse_subset,
    },
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  internal error, or an answer that makes no sense
  2  wrong arguments
  3  no agent answers (not running, stopping, or its socket may not be used)
  4  no such service, backend, access list or prefix
  5  refused: invalid, in conflict with what is there, or no room; nothing changed
  6  waited for as long as --timeout says, in vain; what was asked for is in force

A service is written ADDRESS:PORT/PROTOCOL, as 10.0.0.1:80/tcp or [2001:db8::1]:443/udp.
Every change is in force in the kernel when the command returns.";

/// Shows and changes a running load balancer (lbd).
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// The agent's socket; by default that of the instance `--name`
    #[arg(long, global = true, env = "LBCTL_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The agent's instance, whose socket is /run/lbd/NAME.sock; goes before --socket
    #[arg(long, global = true, value_name = "NAME", value_parser = instance::parse_name)]
    name: Option<String>,
    /// Tables for people, or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// What it is about.
    #[command(subcommand)]
    pub noun: Noun,
}

impl Cli {
    /// The socket to ask.
    pub fn socket(&self) -> PathBuf {
        match (&self.name, &self.socket) {
            (Some(name), _) => instance::socket_path(name),
            (None, Some(socket)) => socket.clone(),
            (None, None) => instance::socket_path(instance::DEFAULT),
        }
    }
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns
    Table,
    /// The API's JSON
    Json,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Show the agent: interfaces, backends by condition, flow tables, drops
    Status,
    /// List, show, add, set and remove services
    Service {
        /// What to do.
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// List, add, remove, drain, force, weigh and limit backends, and report for them
    Backend {
        /// What to do.
        #[command(subcommand)]
        verb: BackendVerb,
    },
    /// List, show, set, edit and remove access lists, which say who may send to services
    ///
    /// Of the prefixes that hold a source, the longest decides. Sources in none are denied where any prefix is
    /// allowed, and allowed otherwise.
    AccessList {
        /// What to do.
        #[command(subcommand)]
        verb: AccessVerb,
    },
    /// Send a service's new flows to another tier; established connections stay where they are
    ///
    /// Tiers before it get none, unless nobody else is left. `lbctl failback` undoes it.
    Failover {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SERVICE")]
        id: ServiceId,
        /// The first tier that gets new flows
        #[arg(long, value_name = "TIER", value_parser = tier())]
        to: u8,
    },
    /// Give new flows back to the first tier that can take them, whatever held them elsewhere
    ///
    /// Undoes `lbctl failover`, and ends the wait of `--failback manual` or of a time.
    Failback {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SERVICE")]
        id: ServiceId,
    },
    /// Tell neighbours once more that VIPs are here, three times a second apart: after taking over from another balancer, say
    ///
    /// Of services with `announce`. Both the ARP and neighbour discovery of hosts that have them elsewhere are overridden.
    Announce {
        /// Which; all that are announced if absent
        vip: Option<IpAddr>,
    },
    /// Show what has happened lately: backends that turned, tiers that took over
    Events(Events),
    /// List or count recorded flows, or remembered clients
    Flows(Flows),
    /// Print completions for a shell
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// What can be done to access lists.
#[derive(Debug, Subcommand)]
pub enum AccessVerb {
    /// List all access lists
    List,
    /// Show the prefixes of one, and the services that have it
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        list: String,
    },
    /// Say what becomes of a source's packets, and by which prefix
    Check {
        /// The list's name
        #[arg(value_name = "NAME")]
        list: String,
        /// The source's address
        source: IpAddr,
    },
    /// Make an access list, or replace all of what it says: services never see a part of it
    Set {
        /// Its name
        #[arg(value_name = "NAME", value_parser = parse_list_name)]
        list: String,
        /// What it is to say.
        #[command(flatten)]
        prefixes: PrefixArgs,
    },
    /// Let single prefixes come and go, all at once
    #[command(group(ArgGroup::new("edits").required(true).multiple(true).args(["allow", "deny", "allow_file", "deny_file", "remove"])))]
    Edit {
        /// Its name
        #[arg(value_name = "NAME")]
        list: String,
        /// What comes, or changes sides.
        #[command(flatten)]
        prefixes: PrefixArgs,
        /// A prefix that goes; may be given more than once
        #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
        remove: Vec<Prefix>,
    },
    /// Remove an access list that no service has
    Remove {
        /// Its name
        #[arg(value_name = "NAME")]
        list: String,
    },
}

/// Prefixes of an access list.
#[derive(Debug, Args)]
pub struct PrefixArgs {
    /// A prefix that may send, as 192.0.2.0/24; may be given more than once
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub allow: Vec<Prefix>,
    /// A prefix that may not; may be given more than once
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub deny: Vec<Prefix>,
    /// A file of such that may send: one a line, # begins a comment
    #[arg(long, value_name = "FILE")]
    pub allow_file: Vec<PathBuf>,
    /// A file of such that may not
    #[arg(long, value_name = "FILE")]
    pub deny_file: Vec<PathBuf>,
}

/// What can be done to services.
#[derive(Debug, Subcommand)]
pub enum ServiceVerb {
    /// List all services
    List,
    /// Show one service: settings, slots by phase, flow tables, backends
    Show {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SERVICE")]
        id: ServiceId,
    },
    /// Add a service
    Add(Box<AddService>),
    /// Change settings of a service; what is not given stays
    Set(Box<SetService>),
    /// Remove a service and its backends
    Remove {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SERVICE")]
        id: ServiceId,
    },
}

/// A service to add.
#[derive(Debug, Args)]
pub struct AddService {
    /// ADDRESS:PORT/PROTOCOL
    #[arg(value_name = "SERVICE")]
    pub id: ServiceId,
    /// How packets reach the backends: rewritten (nat, full-nat), encapsulated (ipip, gue) or readdressed (l2)
    #[arg(long, value_enum, required_unless_present = "group")]
    pub mode: Option<Mode>,
    /// Share pool, ring and settings with the services of this group; what is not given is as in those
    #[arg(long, value_name = "NAME", value_parser = model::group::parse_name)]
    pub group: Option<String>,
    /// A backend; may be given more than once
    #[arg(
        long = "backend",
        value_name = "ADDRESS:PORT[,weight=N][,max-connections=N][,max-flow-rate=N][,max-bandwidth=RATE][,server-id=HEX][,tier=N][,subset=NAME]...",
        value_parser = parse_backend
    )]
    pub backends: Vec<NewBackend>,
    /// How flows are spread and kept.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// How its connection ids are laid out.
    #[command(flatten)]
    pub quic: Option<QuicArgs>,
    /// The address pool of the configuration that mode full-nat takes its packets' sources from
    #[arg(long, value_name = "NAME")]
    pub address_pool: Option<String>,
    /// The access list that says who may send to it; everybody if absent
    #[arg(long, value_name = "NAME", help_heading = "Access")]
    pub access_list: Option<String>,
    /// Clients of a prefix are for the backends of a subset; may be given more than once
    #[arg(long = "source-route", value_name = "PREFIX=SUBSET", value_parser = parse_source_route, help_heading = "Flows")]
    pub source_routes: Vec<(Prefix, String)>,
    /// How its backends are checked.
    #[command(flatten)]
    pub health: HealthArgs,
}

/// What makes a UDP service QUIC. All of it or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "QUIC")]
pub struct QuicArgs {
    /// Configuration that the servers' connection ids name, 0 to 6
    #[arg(long = "quic-config-id", value_name = "N", required = false, requires_all = ["server_id_length", "nonce_length"])]
    pub config_id: u8,
    /// Bytes of their server ids
    #[arg(long = "quic-server-id-length", value_name = "N", required = false, requires_all = ["config_id", "nonce_length"])]
    pub server_id_length: u8,
    /// Bytes behind them
    #[arg(long = "quic-nonce-length", value_name = "N", required = false, requires_all = ["config_id", "server_id_length"])]
    pub nonce_length: u8,
}

/// A service to change.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("settings").required(true).multiple(true).args(SETTINGS)))]
pub struct SetService {
    /// ADDRESS:PORT/PROTOCOL
    #[arg(value_name = "SERVICE")]
    pub id: ServiceId,
    /// What is to change.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Share pool and ring with the services of this group, whose settings and backends have to be the
    /// same; refused where flows would be forgotten
    #[arg(long, value_name = "NAME", value_parser = model::group::parse_name)]
    pub group: Option<String>,
    /// Share its pool with nobody; refused where flows would be forgotten
    #[arg(long, conflicts_with = "group")]
    pub no_group: bool,
    /// Weights return to the configured ones, by and by
    #[arg(long, conflicts_with = "adaptive", help_heading = "Flows")]
    pub no_adaptive: bool,
    /// The address pool of the configuration that mode full-nat takes its packets' sources from
    #[arg(long, value_name = "NAME")]
    pub address_pool: Option<String>,
    /// The access list that says who may send to it
    #[arg(long, value_name = "NAME", help_heading = "Access")]
    pub access_list: Option<String>,
    /// Everybody may send to it
    #[arg(long, conflicts_with = "access_list", help_heading = "Access")]
    pub no_access_list: bool,
    /// Clients of a prefix are for the backends of a subset; may be given more than once, and these are all then
    #[arg(long = "source-route", value_name = "PREFIX=SUBSET", value_parser = parse_source_route, help_heading = "Flows")]
    pub source_routes: Vec<(Prefix, String)>,
    /// All clients are for the backends of the default subset
    #[arg(long, conflicts_with = "source_routes", help_heading = "Flows")]
    pub no_source_routes: bool,
    /// The subsets that a backend is of, none for the default one; may be given more than once
    #[arg(
        long = "subsets",
        value_name = "ADDRESS:PORT=[NAME,...]",
        value_parser = parse_subsets,
        help_heading = "Flows"
    )]
    pub subsets: Vec<(SocketAddr, Vec<String>)>,
    /// How its connection ids are laid out from now on.
    #[command(flatten)]
    pub quic: Option<QuicArgs>,
    /// It is QUIC no longer; refused while its backends can be told by connection ids
    #[arg(long, conflicts_with_all = ["config_id", "server_ids"], help_heading = "QUIC")]
    pub no_quic: bool,
    /// What connection ids name a backend by; may be given more than once
    #[arg(
        long = "server-id",
        value_name = "ADDRESS:PORT=HEX",
        value_parser = parse_server_id,
        help_heading = "QUIC"
    )]
    pub server_ids: Vec<(SocketAddr, ServerId)>,
}

/// What can be changed, by the names of the fields of [`SetService`] and [`SettingsArgs`].
const SETTINGS: [&str; 37] = [
    "announce",
    "address_pool",
    "client_address",
    "syn_proxy",
    "access_list",
    "no_access_list",
    "flow_limit",
    "source_limit",
    "source_prefix_v4",
    "source_prefix_v6",
    "source_routes",
    "no_source_routes",
    "subsets",
    "group",
    "no_group",
    "config_id",
    "no_quic",
    "server_ids",
    "scheduler",
    "ring_size",
    "flow_state",
    "on_down",
    "moving_time",
    "dead_after",
    "no_backend",
    "mss_clamp",
    "second_hop",
    "persistence",
    "persistence_prefix",
    "spill_below",
    "failback",
    "slow_start",
    "adaptive",
    "no_adaptive",
    "flap_damping",
    "passive",
    "panic_below",
];

/// How a service's flows are spread and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Flows")]
pub struct SettingsArgs {
    /// Whether ARP and neighbour discovery for its VIP are answered, and it is announced [default: false]
    #[arg(long, value_name = "BOOL")]
    pub announce: Option<bool>,
    /// How a new flow's backend is chosen [default: maglev]
    #[arg(long, value_enum)]
    pub scheduler: Option<Scheduler>,
    /// Slots of the ring, one of the primes that `lbctl` names when refusing; chosen if absent
    #[arg(long, value_name = "N")]
    pub ring_size: Option<u32>,
    /// Which flows are recorded [default: auto]
    #[arg(long, value_enum)]
    pub flow_state: Option<FlowState>,
    /// What becomes of a backend's flows when its checks fail [default: keep for TCP and QUIC, resteer for other UDP]
    #[arg(long, value_enum)]
    pub on_down: Option<OnDown>,
    /// How long slots move and flows may be idle; 0s records nothing [default: 15m for TCP, 30s for UDP]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub moving_time: Option<u64>,
    /// How long a backend is down before it counts as dead [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub dead_after: Option<u64>,
    /// What packets get while no backend may take them [default: drop]
    #[arg(long, value_enum)]
    pub no_backend: Option<Unserved>,
    /// What the MSS of TCP SYNs is lowered to: off, auto (what fits the way to the backend), or bytes [default: off]
    #[arg(long, value_name = "BYTES", value_parser = parse_mss_clamp)]
    pub mss_clamp: Option<MssClamp>,
    /// Whether backends of mode gue are told who else may have a flow, for `lbd decap --second-hop` [default: false]
    #[arg(long, value_name = "BOOL")]
    pub second_hop: Option<bool>,
    /// How backends of mode full-nat are told who the client is [default: none]
    #[arg(long, value_enum)]
    pub client_address: Option<ClientAddress>,
    /// Which SYNs are answered for backends of mode full-nat: off, always, or above=N, those beyond N a second [default: off]
    #[arg(long, value_name = "WHICH", value_parser = parse_syn_proxy)]
    pub syn_proxy: Option<SynProxy>,
    /// How many flows may begin a second: none, N, or N,burst=N [default: none]
    #[arg(long, value_name = "RATE", value_parser = parse_flow_limit, help_heading = "Access")]
    pub flow_limit: Option<FlowLimit>,
    /// How many of each source [default: none]
    #[arg(long, value_name = "RATE", value_parser = parse_flow_limit, help_heading = "Access")]
    pub source_limit: Option<FlowLimit>,
    /// First bits of an IPv4 address that make a source [default: 32]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=32), help_heading = "Access")]
    pub source_prefix_v4: Option<u8>,
    /// First bits of an IPv6 address that make a source [default: 64]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=128), help_heading = "Access")]
    pub source_prefix_v6: Option<u8>,
    /// How long a client's new flows go where its last new flow went; 0s: not at all [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub persistence: Option<u64>,
    /// Bits of an address that make a client [default: all]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=128))]
    pub persistence_prefix: Option<u8>,
    /// Percent of a tier's weight that is healthy below which it gives flows to the next; 0: when nobody is left [default: 70]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub spill_below: Option<u8>,
    /// When a tier that could not carry its flows gets them back: automatic, manual, or after a time as 30s [default: automatic]
    #[arg(long, value_name = "WHEN", value_parser = parse_failback)]
    pub failback: Option<Failback>,
    /// Over which time a backend that comes up gets its weight, from 10% or as '30s from 20%'; off: at once [default: off]
    #[arg(long, value_name = "TIME", value_parser = parse_slow_start)]
    pub slow_start: Option<SlowStart>,
    /// What weights follow, and how, written as in the configuration: '{ from = ["latency"], least = 20 }'
    #[arg(long, value_name = "ADAPTIVE", value_parser = config::parse_adaptive)]
    pub adaptive: Option<Adaptive>,
    /// How long a backend that goes down again has to pass its checks first, doubled each time up to 5m or as in '10s to 2m'; off: not at all [default: off]
    #[arg(long, value_name = "TIME", value_parser = parse_flap_damping)]
    pub flap_damping: Option<FlapDamping>,
    /// What handshakes have to show of a backend before it is kept out: on, off, or settings as 'refusals=3,max_ejected=50%' [default: off]
    #[arg(long, value_name = "SETTINGS", value_parser = parse_passive)]
    pub passive: Option<Passive>,
    /// Percent of the pool's weight that is healthy below which backends that are down are used as well; 0: never [default: 0]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub panic_below: Option<u8>,
}

/// Which events to show.
#[derive(Debug, Clone, Copy, Args)]
pub struct Events {
    /// Of this service: ADDRESS:PORT/PROTOCOL
    #[arg(long)]
    pub service: Option<ServiceId>,
    /// Show at most so many, the last ones
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EVENTS)]
    pub limit: usize,
    /// Go on with new ones as they come
    #[arg(long)]
    pub follow: bool,
}

/// Which recorded flows to show.
#[derive(Debug, Clone, Copy, Args)]
pub struct Flows {
    /// Of this service: ADDRESS:PORT/PROTOCOL
    #[arg(long)]
    pub service: Option<ServiceId>,
    /// Of this backend: ADDRESS:PORT
    #[arg(long, value_name = "BACKEND", value_parser = model::Backend::parse_address)]
    pub backend: Option<SocketAddr>,
    /// In slots of this phase
    #[arg(long, value_enum, conflicts_with = "clients")]
    pub phase: Option<Phase>,
    /// Clients remembered for persistence instead
    #[arg(long)]
    pub clients: bool,
    /// Only count them
    #[arg(long, conflicts_with = "limit")]
    pub count: bool,
    /// Show at most so many, up to 100000
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FLOWS, value_parser = limit())]
    pub limit: usize,
}

/// How a service's backends are checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
#[command(next_help_heading = "Health checks")]
pub struct HealthArgs {
    /// What is asked of a backend [default: tcp]
    #[arg(long = "health", value_enum)]
    pub check: Option<Kind>,
    /// Path of an HTTP or HTTPS check [default: /]
    #[arg(long = "health-path", value_name = "PATH")]
    pub path: Option<String>,
    /// Host header of an HTTP or HTTPS check [default: the backend's address]
    #[arg(long = "health-host", value_name = "HOST")]
    pub host: Option<String>,
    /// Port checked [default: the backend's]
    #[arg(long = "health-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Time between checks, as 500ms or 2s [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub interval: Option<u64>,
    /// Time after which a check has failed [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub timeout: Option<u64>,
    /// Successes in a row that make a backend up [default: 2]
    #[arg(long, value_name = "N")]
    pub rise: Option<u32>,
    /// Failures in a row that make a backend down [default: 3]
    #[arg(long, value_name = "N")]
    pub fall: Option<u32>,
    /// A check with any settings, written as in the configuration: '{ type = "dns", query = "example.org" }'; may
    /// be given more than once
    #[arg(
        long = "check",
        value_name = "CHECK",
        value_parser = config::parse_check,
        conflicts_with_all = ["check", "path", "host", "port", "interval", "timeout", "rise", "fall"]
    )]
    pub checks: Vec<Check>,
    /// How several checks make one verdict [default: all]
    #[arg(long, value_enum, requires = "checks")]
    pub combine: Option<Combine>,
}

/// What can be done to backends.
#[derive(Debug, Subcommand)]
pub enum BackendVerb {
    /// List the backends of one service, or of all
    List {
        /// ADDRESS:PORT/PROTOCOL
        service: Option<ServiceId>,
    },
    /// Add a backend
    Add {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// Its share relative to the others
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = weight())]
        weight: u16,
        /// Flows in progress at which it takes no new ones
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max_connections: Option<u32>,
        /// New flows a second that it can carry, against which they are measured
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max_flow_rate: Option<u32>,
        /// Bits a second that it can be sent, such as 800Mbit/s or 1.5G, likewise
        #[arg(long, value_name = "RATE", value_parser = parse_bandwidth)]
        max_bandwidth: Option<BitRate>,
        /// What connection ids name it by, in hexadecimal; for QUIC services
        #[arg(long, value_name = "HEX")]
        server_id: Option<ServerId>,
        /// 0 for primary ones; those of higher tiers take what those before cannot carry
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = tier())]
        tier: u8,
        /// A subset that it is of; may be given more than once [default: default]
        #[arg(long = "subset", value_name = "NAME", value_parser = parse_subset)]
        subsets: Vec<String>,
    },
    /// Remove a backend; it is listed as leaving until its flows have ended
    Remove {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Give a backend no new flows; those that it has stay
    Drain {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// The same, and do not check it; it has to pass its checks before it gets flows again
    Maintenance {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a backend for down, whatever its checks say, until `undrain`
    Down {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Take a backend for up, whatever its checks say, until `undrain`
    Up {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Undo drain, maintenance, down and up: its checks decide again whether it gets new flows
    #[command(visible_alias = "auto")]
    Undrain {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Set a backend's share relative to the others
    Weight {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// 0 to 1000
        #[arg(value_parser = weight())]
        weight: u16,
    },
    /// Put a backend into another tier
    Tier {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// 0 to 15; 0 is the primary one
        #[arg(value_parser = tier())]
        tier: u8,
    },
    /// Report that a backend can serve, for a check of type heartbeat
    Heartbeat {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Report that a drained backend has no connection left, as it knows itself, so that its drain ends
    Drained {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Limit a backend's flows in progress; at the limit it takes no new ones
    Limit {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// How many, or none to take the limit away
        #[arg(value_name = "N|none", value_parser = parse_limit)]
        limit: Limit,
    },
    /// Say what a backend can carry, against which its load is measured; nothing is turned away for it
    #[command(group = clap::ArgGroup::new("said").required(true).multiple(true))]
    Capacity {
        /// Which.
        #[command(flatten)]
        target: Target,
        /// New flows a second, or none to take that back
        #[arg(long, value_name = "N|none", value_parser = parse_limit, group = "said")]
        flow_rate: Option<Limit>,
        /// Bits a second that it is sent, such as 800Mbit/s or 1.5G, or none to take that back
        #[arg(long, value_name = "RATE|none", value_parser = parse_most_bandwidth, group = "said")]
        bandwidth: Option<Bandwidth>,
    },
}

/// Whether to wait until a backend has no flow any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Wait {
    /// Wait until it has no flow any more for certain, and tell how far it is
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this; exit code 6 then, and it goes on draining [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "wait")]
    pub timeout: Option<Duration>,
}

/// A backend of a service.
#[derive(Debug, Clone, Copy, Args)]
pub struct Target {
    /// ADDRESS:PORT/PROTOCOL
    pub service: ServiceId,
    /// ADDRESS:PORT
    #[arg(value_name = "BACKEND", value_parser = model::Backend::parse_address)]
    pub address: SocketAddr,
}

/// How many flows a backend may have in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u32>);

/// How many bits a second a backend can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(pub Option<BitRate>);

/// Checks that need few settings or none; `--check` has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A TCP connection is accepted
    Tcp,
    /// GET answers with a status in the 200s or 300s
    Http,
    /// The same over TLS, whose certificate is verified
    Https,
    /// An ICMP echo request is answered
    Icmp,
    /// The backend reports by itself, every interval
    Heartbeat,
    /// Never checked, always up
    None,
}

fn weight() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=i64::from(MAX_WEIGHT))
}

fn tier() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=i64::from(MAX_TIER))
}

fn parse_syn_proxy(text: &str) -> Result<SynProxy, String> {
    text.parse()
}

fn parse_flow_limit(text: &str) -> Result<FlowLimit, String> {
    text.parse()
}

fn parse_prefix(text: &str) -> Result<Prefix, ModelError> {
    text.parse()
}

fn parse_list_name(text: &str) -> Result<String, String> {
    model::AccessList::new(text, [], []).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn parse_mss_clamp(text: &str) -> Result<MssClamp, String> {
    text.parse()
}

fn parse_failback(text: &str) -> Result<Failback, String> {
    text.parse()
}

fn parse_slow_start(text: &str) -> Result<SlowStart, String> {
    text.parse()
}

fn parse_flap_damping(text: &str) -> Result<FlapDamping, String> {
    text.parse()
}

fn parse_passive(text: &str) -> Result<Passive, String> {
    text.parse()
}

fn limit() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64)
        .range(0..=MAX_FLOWS as u64)
        .map(|limit| limit as usize)
}

fn parse_millis(text: &str) -> Result<u64, String> {
    let millis = u64::try_from(duration::parse(text)?.as_millis());
    millis.map_err(|_| format!("`{text}` is too long: at most 1 week"))
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    match text.parse() {
        Ok(limit) if limit > 0 => Ok(Limit(Some(limit))),
        _ => Err(format!(
            "`{text}` is not a limit: 1 to {}, or none",
            u32::MAX
        )),
    }
}

fn parse_bandwidth(text: &str) -> Result<BitRate, String> {
    text.parse()
}

fn parse_most_bandwidth(text: &str) -> Result<Bandwidth, String> {
    match text {
        "none" => Ok(Bandwidth(None)),
        text => Ok(Bandwidth(Some(text.parse()?))),
    }
}

fn parse_server_id(text: &str) -> Result<(SocketAddr, ServerId), String> {
    let (address, server_id) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not a backend's server id: write ADDRESS:PORT=HEX"))?;
    let address = model::Backend::parse_address(address).map_err(|e: ModelError| e.to_string())?;
    let server_id = server_id.parse().map_err(|e: ModelError| e.to_string())?;
    Ok((address, server_id))
}

fn parse_subsets(text: &str) -> Result<(SocketAddr, Vec<String>), String> {
    let (address, names) = text.split_once('=').ok_or_else(|| {
        format!("`{text}` says no backend's subsets: write ADDRESS:PORT=NAME,NAME")
    })?;
    let address = model::Backend::parse_address(address).map_err(|e: ModelError| e.to_string())?;
    let names = names.split(',').filter(|name| !name.is_empty());
    let names: Result<Vec<String>, String> = names.map(parse_subset).collect();
    Ok((address, names?))
}

fn parse_backend(text: &str) -> Result<NewBackend, String> {
    let mut parts = text.split(',');
    let address = parts.next().unwrap_or_default();
    let address = model::Backend::parse_address(address).map_err(|e: ModelError| e.to_string())?;
    let mut backend = NewBackend {
        address,
        weight: 1,
        state: Admin::Active,
        max_connections: None,
        max_flow_rate: None,
        max_bandwidth: None,
        server_id: None,
        tier: 0,
        subsets: Vec::new(),
    };
    for option in parts {
        let known = match option.split_once('=') {
            Some(("weight", n)) => {
                let weight = n.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
                weight.map(|weight| backend.weight = weight)
            }
            Some(("max-connections", n)) => {
                let most = n.parse().ok().filter(|most| *most > 0);
                most.map(|most| backend.max_connections = Some(most))
            }
            Some(("max-flow-rate", n)) => {
                let most = n.parse().ok().filter(|most| *most > 0);
                most.map(|most| backend.max_flow_rate = Some(most))
            }
            Some(("max-bandwidth", rate)) => rate
                .parse()
                .ok()
                .map(|most| backend.max_bandwidth = Some(most)),
            Some(("server-id", id)) => id.parse().ok().map(|id| backend.server_id = Some(id)),
            Some(("tier", n)) => {
                let tier = n.parse().ok().filter(|tier| *tier <= MAX_TIER);
                tier.map(|tier| backend.tier = tier)
            }
            Some(("subset", name)) => parse_subset(name)
                .ok()
                .map(|name| backend.subsets.push(name)),
            _ => None,
        };
        known.ok_or_else(|| {
            format!("`{option}` is not an option of a backend: write weight=N, with N from 0 to {MAX_WEIGHT}, max-connections=N, with N from 1, max-flow-rate=N, likewise, max-bandwidth=RATE, such as 1.5G, tier=N, with N from 0 to {MAX_TIER}, subset=NAME, or server-id=HEX, with two digits for each of 1 to 15 bytes")
        })?;
    }
    Ok(backend)
}
