//! The desired state: services, backends and how they are checked. Validated, without I/O.
//!
//! A [`State`] that exists is valid: it is only made by [`State::new`] and [`State::apply`], and a
//! refused change leaves the old one as it was. How it came in (file, API) and what the kernel
//! makes of it are other modules' business.

use std::{net::SocketAddr, time::Duration};

use clap::ValueEnum;
use lb_common::tables::{mode, refusal, service_flag};
use serde::{Deserialize, Serialize};

mod access;
mod adaptive;
mod address_pool;
mod check;
mod check_health;
mod detector;
mod error;
pub mod group;
mod health;
mod id;
mod limit;
mod millis;
mod mss;
mod passive;
mod quic;
mod rated;
mod recovery;
mod second_hop;
mod state;
mod subset;
mod syn_proxy;
#[cfg(test)]
mod tests;
mod tier;

pub use access::{
    Access, AccessEdit, AccessList, MAX_PREFIXES, Prefix, Rule, Rules, parse_prefixes,
};
pub use adaptive::{Adaptive, Signal, Signals};
pub use address_pool::{
    AddressPool, ClientAddress, MAX_POOL_ADDRESSES, POOL_PORTS, parse_addresses, parse_ports,
};
pub use check_health::CheckProblem;
pub use detector::{Detector, Phi};
pub use error::ModelError;
pub use health::{
    Agent, Check, Combine, Dns, Exec, Grpc, Health, Http, MAX_CHECKS, Method, Probe, Statuses, Tls,
    Transport, Udp, Unreachable,
};
pub use id::{Protocol, ServiceId};
pub use limit::{FlowLimit, SOURCE_PREFIX_V4, SOURCE_PREFIX_V6};
pub use mss::MssClamp;
pub use passive::Passive;
pub use quic::{Quic, ServerId};
pub use rated::{BitRate, EditRated, Rated};
pub use recovery::{DAMPED_AT_MOST, FlapDamping, SLOW_START_FROM, SlowStart};
pub use state::{Change, Settings, State};
pub use subset::{
    DEFAULT_SUBSET, MAX_ROUTES, MAX_SUBSETS, SourceRoutes, Subsets, parse_source_route,
    parse_subset,
};
pub use syn_proxy::SynProxy;
pub use tier::{Failback, MAX_TIER, SPILL_BELOW};

/// Highest weight of a backend. 0 means: in the pool, but no share of new flows.
pub const MAX_WEIGHT: u16 = 1_000;
/// Backends of one service; local ids are 15 bits wide ([`lb_common::tables::Slot`]).
pub const MAX_BACKENDS: usize = 4_096;

/// The name of a setting's value, as the configuration, the API and `lbctl` write it.
pub fn name_of(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// How a packet reaches its backend (ARCHITECTURE.md, "Forwarding modes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Destination rewritten; answers return through the balancer and are rewritten back.
    Nat,
    /// Source rewritten as well, to one of an address pool, where answers come back by themselves.
    #[serde(rename = "full-nat")]
    FullNat,
    /// IP-in-IP encapsulation (RFC 2003, RFC 2473); the backend answers the client directly.
    Ipip,
    /// Encapsulation in UDP (Generic UDP Encapsulation); the backend answers the client directly.
    Gue,
    /// Destination MAC address rewritten, on a link that both are on; the backend answers the client
    /// directly.
    L2,
}

impl Mode {
    /// As the program has it: one of [`lb_common::tables::mode`].
    pub fn number(self) -> u8 {
        match self {
            Self::Nat => mode::NAT,
            Self::FullNat => mode::FULL_NAT,
            Self::Ipip => mode::IPIP,
            Self::Gue => mode::GUE,
            Self::L2 => mode::L2,
        }
    }
}

/// How a new flow's backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// By the hash of addresses, ports and protocol on a Maglev ring, by weight.
    #[default]
    Maglev,
    /// By the hash of the client's address on such a ring: a client keeps its backend.
    SourceHash,
    /// By the hash of client, VIP and protocol, whatever the ports: a client keeps its backend for each VIP.
    ThreeTupleHash,
    /// In turns, weights left aside.
    RoundRobin,
    /// In turns, each as often as its weight says.
    WeightedRoundRobin,
    /// The fewest flows in progress, weights left aside.
    LeastConnections,
    /// The fewest flows in progress for its weight.
    WeightedLeastConnections,
    /// The better of two drawn by weight.
    ///
    /// M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10),
    /// 2001.
    PowerOfTwoChoices,
}

impl Scheduler {
    /// Which fields of a flow the ring is asked by, bits of [`service_flag::FIELDS`], where it alone decides.
    pub fn hash_fields(self) -> Option<u16> {
        match self {
            Self::Maglev => Some(0),
            Self::SourceHash => Some(service_flag::BY_SOURCE),
            Self::ThreeTupleHash => Some(service_flag::BY_THREE_TUPLE),
            _ => None,
        }
    }

    /// Whether it pays no heed to weights, but for 0.
    pub fn ignores_weights(self) -> bool {
        matches!(self, Self::RoundRobin | Self::LeastConnections)
    }

    /// Whether it goes by how many connections backends have.
    pub fn counts_connections(self) -> bool {
        matches!(
            self,
            Self::LeastConnections | Self::WeightedLeastConnections | Self::PowerOfTwoChoices
        )
    }

    /// Whether it takes backends from a sequence of all of them, in turns or by drawing.
    pub fn takes_from_sequence(self) -> bool {
        matches!(
            self,
            Self::RoundRobin | Self::WeightedRoundRobin | Self::PowerOfTwoChoices
        )
    }

    /// Whether it chooses by connection, so that every flow has to be recorded.
    pub fn records_every_flow(self) -> bool {
        self.hash_fields().is_none()
    }
}

/// Which flows are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// Those of slots that move, and of schedulers that choose by connection.
    #[default]
    Auto,
    /// All.
    Always,
}

/// What becomes of a backend's flows when its checks fail. One that is known to be dead loses them
/// either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// They stay, so that a false alarm moves nobody.
    Keep,
    /// They go to other backends.
    Resteer,
}

/// What becomes of packets to a VIP that nobody takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unserved {
    /// They are dropped.
    Drop,
    /// TCP is answered by a reset, all else as by `unreachable`.
    Reset,
    /// They are answered by an ICMP error.
    Unreachable,
    /// They are the kernel's.
    Pass,
}

impl Unserved {
    /// As the program has it: one of [`lb_common::tables::refusal`].
    pub fn number(self) -> u8 {
        match self {
            Self::Drop => refusal::DROP,
            Self::Reset => refusal::RESET,
            Self::Unreachable => refusal::UNREACHABLE,
            Self::Pass => refusal::PASS,
        }
    }
}

/// What services do while no backend may take their packets, unless said otherwise.
pub const NO_BACKEND: Unserved = Unserved::Drop;
/// What packets get to ports of VIPs that no service has, unless said otherwise.
pub const UNKNOWN_PORT: Unserved = Unserved::Pass;

fn default_no_backend() -> Unserved {
    NO_BACKEND
}

/// What is made of frames with VLAN tags, and of routes by VLAN devices and bonds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Vlans {
    /// They are balanced, while the host has a VLAN device or a bond.
    #[default]
    Auto,
    /// They are balanced.
    On,
    /// Such frames are the kernel's.
    Off,
}

/// What an operator asked of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// Takes its share of flows while healthy.
    #[default]
    Active,
    /// Takes no new flows.
    Draining,
    /// Takes no new flows, and is not checked.
    Maintenance,
    /// Counts as down, whatever its checks say.
    Down,
    /// Counts as up, whatever its checks say.
    Up,
}

/// One server of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Where it listens. But for modes `nat` and `full-nat` outside of groups the packet's port stays the VIP's, and this
    /// port is only probed.
    pub address: SocketAddr,
    /// Its share relative to the others, 0 to [`MAX_WEIGHT`].
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// Active or draining.
    #[serde(default)]
    pub admin: Admin,
    /// Flows in progress at which it takes no new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// What else it is said to carry.
    #[serde(default, skip_serializing_if = "Rated::is_none")]
    pub rated: Rated,
    /// What the connection ids of a QUIC service name it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<ServerId>,
    /// 0 for primary ones; those of higher tiers take what those before cannot carry.
    #[serde(default)]
    pub tier: u8,
    /// The subsets that it is of; [`DEFAULT_SUBSET`] where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
}

impl Backend {
    /// An active one of weight 1, with nothing else said of it.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            weight: default_weight(),
            admin: Admin::Active,
            max_connections: None,
            rated: Rated::default(),
            server_id: None,
            tier: 0,
            subsets: Vec::new(),
        }
    }

    /// Whether it is meant to take new flows.
    pub fn is_wanted(&self) -> bool {
        matches!(self.admin, Admin::Active | Admin::Up) && self.weight > 0
    }

    /// Reads a backend's address, written `ADDRESS:PORT`.
    ///
    /// # Errors
    /// [`ModelError::BadBackend`], [`ModelError::Scoped`].
    pub fn parse_address(text: &str) -> Result<SocketAddr, ModelError> {
        let address: SocketAddr = text.parse().map_err(|_| ModelError::BadBackend {
            text: text.to_owned(),
        })?;
        if check::is_scoped(address) {
            return Err(ModelError::Scoped { address });
        }
        Ok(address)
    }
}

fn default_weight() -> u16 {
    1
}

/// How long a backend is down before it counts as dead, unless said otherwise.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);

fn default_dead_after() -> Duration {
    DEAD_AFTER
}

fn default_spill() -> u8 {
    SPILL_BELOW
}

/// A service and its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Address, port, protocol.
    pub id: ServiceId,
    /// The group that it shares its pool with, and all settings below: one ring, one set of backends, one
    /// scheduler. Packets keep their port then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Whether neighbours are told that its VIP is here: ARP and neighbour discovery are answered, and it is announced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub announce: bool,
    /// Slots of the Maglev ring, a prime; chosen from the pool's size where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    /// How a new flow's backend is chosen.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Which flows are recorded.
    #[serde(default)]
    pub flow_state: FlowState,
    /// What becomes of a backend's flows when its checks fail; by the protocol where absent:
    /// [`Service::on_down`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_down: Option<OnDown>,
    /// How long a slot moves after its owner changed, and how long a flow may be idle, in milliseconds;
    /// by the protocol where absent: [`Service::moving_time`]. 0: flows are never recorded.
    #[serde(
        default,
        rename = "moving_time_ms",
        with = "millis::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub moving_time: Option<Duration>,
    /// How long a backend is down before it counts as dead, in milliseconds.
    #[serde(
        default = "default_dead_after",
        rename = "dead_after_ms",
        with = "millis"
    )]
    pub dead_after: Duration,
    /// What its packets get while no backend may take them.
    #[serde(default = "default_no_backend")]
    pub no_backend: Unserved,
    /// What the MSS of its SYNs is lowered to, where it is higher.
    #[serde(default, skip_serializing_if = "MssClamp::is_off")]
    pub mss_clamp: MssClamp,
    /// Whether backends of mode `gue` are told who else may have a flow, so that they can hand on what they do not know.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub second_hop: bool,
    /// The address pool that mode `full-nat` takes its packets' sources from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_pool: Option<String>,
    /// How backends of mode `full-nat` are told who the client is.
    #[serde(default, skip_serializing_if = "ClientAddress::is_none")]
    pub client_address: ClientAddress,
    /// Whether its SYNs are answered for its backends.
    #[serde(default, skip_serializing_if = "SynProxy::is_off")]
    pub syn_proxy: SynProxy,
    /// The access list that says who may send to it; everybody where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_list: Option<String>,
    /// How many flows may begin.
    #[serde(default, skip_serializing_if = "FlowLimit::is_none")]
    pub flow_limit: FlowLimit,
    /// How many of each source.
    #[serde(default, skip_serializing_if = "FlowLimit::is_none")]
    pub source_limit: FlowLimit,
    /// First bits of an IPv4 address that make a source; [`SOURCE_PREFIX_V4`] where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_v4: Option<u8>,
    /// First bits of an IPv6 address that make a source; [`SOURCE_PREFIX_V6`] where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_v6: Option<u8>,
    /// Which subset of its backends clients are for, by the prefix of their address.
    #[serde(default, skip_serializing_if = "SourceRoutes::is_empty")]
    pub source_routes: SourceRoutes,
    /// How its connection ids are laid out, where it is QUIC: packets go by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<Quic>,
    /// How long a client's new flows go where its last new flow went, in milliseconds; 0: not at all.
    #[serde(
        default,
        rename = "persistence_ms",
        with = "millis",
        skip_serializing_if = "Duration::is_zero"
    )]
    pub persistence: Duration,
    /// Bits of an address that make a client: all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_prefix: Option<u8>,
    /// Percent of a tier's weight that is healthy below which it gives flows to the next tier.
    #[serde(default = "default_spill")]
    pub spill_below: u8,
    /// When a tier gets back what it could not carry.
    #[serde(default)]
    pub failback: Failback,
    /// How a backend that comes up gets its weight by and by.
    #[serde(default, skip_serializing_if = "SlowStart::is_off")]
    pub slow_start: SlowStart,
    /// How weights follow how the backends fare; they are as configured where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// How long a backend that goes down again and again has to pass its checks first.
    #[serde(default, skip_serializing_if = "FlapDamping::is_off")]
    pub flap_damping: FlapDamping,
    /// What the packets of handshakes have to show of a backend before it is kept out.
    #[serde(default, skip_serializing_if = "Passive::is_off")]
    pub passive: Passive,
    /// Percent of the pool's weight that is healthy below which those that are down are used as well; 0: never.
    #[serde(default)]
    pub panic_below: u8,
    /// The tier that somebody has failed over to: those before it get no flows while another can take them.
    #[serde(default)]
    pub from_tier: u8,
    /// How its backends are checked.
    #[serde(default)]
    pub health: Health,
    /// Its servers, in the order given, without duplicates.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

impl Service {
    /// A service without backends, with every setting at its default.
    pub fn new(id: ServiceId, mode: Mode) -> Self {
        Self {
            id,
            group: None,
            mode,
            announce: false,
            ring_size: None,
            scheduler: Scheduler::default(),
            flow_state: FlowState::default(),
            on_down: None,
            moving_time: None,
            dead_after: DEAD_AFTER,
            no_backend: NO_BACKEND,
            mss_clamp: MssClamp::Off,
            second_hop: false,
            address_pool: None,
            client_address: ClientAddress::None,
            syn_proxy: SynProxy::Off,
            access_list: None,
            flow_limit: FlowLimit::None,
            source_limit: FlowLimit::None,
            source_prefix_v4: None,
            source_prefix_v6: None,
            source_routes: SourceRoutes::default(),
            quic: None,
            persistence: Duration::ZERO,
            persistence_prefix: None,
            spill_below: SPILL_BELOW,
            failback: Failback::default(),
            slow_start: SlowStart::default(),
            adaptive: None,
            flap_damping: FlapDamping::default(),
            passive: Passive::default(),
            panic_below: 0,
            from_tier: 0,
            health: Health::default(),
            backends: Vec::new(),
        }
    }

    /// What becomes of a backend's flows when its checks fail: without connections, nothing is
    /// lost by moving them.
    pub fn on_down(&self) -> OnDown {
        self.on_down.unwrap_or(match (self.id.protocol, self.quic) {
            (Protocol::Tcp | Protocol::Sctp, _) | (_, Some(_)) => OnDown::Keep,
            (Protocol::Udp, None) => OnDown::Resteer,
        })
    }

    /// How long a slot moves after its owner changed, and how long a flow may be idle: as long as
    /// connections of the protocol commonly are.
    pub fn moving_time(&self) -> Duration {
        self.moving_time.unwrap_or(match self.id.protocol {
            Protocol::Tcp | Protocol::Sctp => Duration::from_secs(15 * 60),
            Protocol::Udp => Duration::from_secs(30),
        })
    }

    /// Bits of an address that make a client, as [`lb_common::tables::Address::prefix`] takes them.
    pub fn client_bits(&self) -> u8 {
        match self.id.vip {
            SocketAddr::V4(_) => 96 + self.persistence_prefix.unwrap_or(32).min(32),
            SocketAddr::V6(_) => self.persistence_prefix.unwrap_or(128).min(128),
        }
    }

    /// What a backend counts for in its pool: its weight, or 1 where the scheduler leaves weights aside.
    pub fn counted_weight(&self, backend: &Backend) -> u64 {
        match backend.weight {
            0 => 0,
            _ if self.scheduler.ignores_weights() => 1,
            weight => weight.into(),
        }
    }

    /// Whether every flow is recorded, not only those of slots that move.
    pub fn records_every_flow(&self) -> bool {
        self.counts_flows()
            || !self.persistence.is_zero()
            || self.flow_state == FlowState::Always
            || self.mode == Mode::FullNat
            || self.scheduler.records_every_flow()
    }

    /// Whether flows in progress are counted.
    pub fn counts_flows(&self) -> bool {
        let mut backends = self.backends.iter();
        let limited = backends.any(|backend| backend.max_connections.is_some());
        limited || self.scheduler.counts_connections()
    }

    /// Whether packets tell which of them begin a flow.
    pub fn tells_beginnings(&self) -> bool {
        self.id.protocol != Protocol::Udp || self.quic.is_some()
    }

    /// Whether not everybody may send to it, or begin any number of flows.
    pub fn is_guarded(&self) -> bool {
        self.access_list.is_some() || !self.flow_limit.is_none() || !self.source_limit.is_none()
    }

    /// Whether backends answer clients by themselves, and not by the balancer.
    pub fn answers_directly(&self) -> bool {
        !matches!(self.mode, Mode::Nat | Mode::FullNat)
    }

    /// Whether its clients' handshakes tell which backends fail: where those answer by the balancer, their answers tell,
    /// and no client can make them.
    pub fn judges_handshakes(&self) -> bool {
        !self.passive.is_off() && self.answers_directly()
    }

    /// Whether weights follow how long they take.
    pub fn times_handshakes(&self) -> bool {
        self.adaptive
            .is_some_and(|adaptive| adaptive.from.handshake)
    }

    /// Whether they are watched, for either.
    pub fn watches_handshakes(&self) -> bool {
        self.judges_handshakes() || self.times_handshakes()
    }

    /// The backend at `address`.
    pub fn backend(&self, address: SocketAddr) -> Option<&Backend> {
        self.backends.iter().find(|b| b.address == address)
    }
}
