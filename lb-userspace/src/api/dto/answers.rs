//! What the agent answers.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{
    AddressPool, AnnouncedVip, Backend, Capacity, EditService, FlowTables, ServiceFlows, Subset,
    Worst, millis, requests::given,
};
use crate::{
    capacity,
    model::{
        Adaptive, Admin, BitRate, Check, ClientAddress, Combine, Failback, FlapDamping, FlowLimit,
        FlowState, Mode, MssClamp, OnDown, Passive, Quic, SOURCE_PREFIX_V4, SOURCE_PREFIX_V6,
        Scheduler, ServiceId, SlowStart, SourceRoutes, SynProxy, Unserved,
    },
    snapshot,
};

/// The agent as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the instance.
    pub instance: String,
    /// Version of the agent.
    pub version: String,
    /// Generation of the tables in force.
    pub generation: u64,
    /// Where the program is attached.
    pub interfaces: Vec<Interface>,
    /// How many services there are.
    pub services: usize,
    /// How many backends of all pools are in which condition.
    pub backends: Tally,
    /// Services in panic; of a group the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub panic: Vec<ServiceId>,
    /// The pools that are worst off.
    #[serde(default)]
    pub worst: Worst,
    /// How full the flow tables are.
    pub flow_tables: FlowTables,
    /// The address pools of mode `full-nat`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub address_pools: Vec<AddressPool>,
    /// VIPs that are announced, and how often others have claimed them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub announced: Vec<AnnouncedVip>,
    /// VLAN devices and bonds that packets leave by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Packets to VIPs that were not forwarded, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Answers in VIPs' names, by kind: `echo`, `reset`, `unreachable`; and how often there was none,
    /// where it would have been wrong (`withheld`) or one too many (`limited`).
    pub answers: BTreeMap<String, u64>,
    /// Fragments: those that were the first of their datagram, those that followed it (`later`), those that came
    /// before it (`held`), and of these those that followed in the end (`released`).
    #[serde(default)]
    pub fragments: BTreeMap<String, u64>,
    /// What packets get to ports of VIPs that no service has.
    pub unknown_port: Unserved,
}

/// A VLAN device or a bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The interfaces that packets leave by.
    pub over: Vec<String>,
    /// Tags that they get, the outermost first: `802.1ad 7`, `802.1q 100`; none of a bond.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl From<&snapshot::DeviceStatus> for Device {
    fn from(status: &snapshot::DeviceStatus) -> Self {
        Self {
            name: status.name.clone(),
            over: status.over.clone(),
            tags: status.tags.clone(),
        }
    }
}

/// An interface the program is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
}

/// Backends by condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// All.
    pub total: usize,
    /// Passing their checks, or not checked.
    pub up: usize,
    /// Failing their checks.
    pub down: usize,
    /// Not checked yet.
    pub starting: usize,
    /// Those that take new flows although they are down, as their pool is in panic.
    #[serde(default)]
    pub used_in_panic: usize,
}

/// A service as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `ADDRESS:PORT/PROTOCOL`.
    pub id: ServiceId,
    /// The group that it shares pool and settings with.
    #[serde(default)]
    pub group: Option<String>,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Whether neighbours are told that its VIP is here.
    #[serde(default)]
    pub announce: bool,
    /// Slots of the ring in force: with subsets, of all of its parts.
    pub ring_size: u32,
    /// How a new flow's backend is chosen.
    pub scheduler: Scheduler,
    /// Which flows are recorded.
    pub flow_state: FlowState,
    /// What becomes of a backend's flows when its checks fail.
    pub on_down: OnDown,
    /// How long a slot moves, and how long a flow may be idle; 0: flows are never recorded.
    pub moving_time_ms: u64,
    /// How long a backend is down before it counts as dead.
    pub dead_after_ms: u64,
    /// What its packets get while no backend may take them.
    pub no_backend: Unserved,
    /// What the MSS of its SYNs is lowered to: bytes, `auto` or `off`.
    #[serde(default)]
    pub mss_clamp: MssClamp,
    /// Whether backends of mode `gue` are told who else may have a flow.
    #[serde(default)]
    pub second_hop: bool,
    /// The address pool that mode `full-nat` takes its packets' sources from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_pool: Option<String>,
    /// How backends of mode `full-nat` are told who the client is: `tcp-option` or `none`.
    #[serde(default, skip_serializing_if = "ClientAddress::is_none")]
    pub client_address: ClientAddress,
    /// Whether SYNs are answered for backends of mode `full-nat`: `off`, `always`, or `above=N` for those beyond so many a second.
    #[serde(default, skip_serializing_if = "SynProxy::is_off")]
    pub syn_proxy: SynProxy,
    /// The access list that says who may send to it; `null`: everybody may.
    #[serde(default)]
    pub access_list: Option<String>,
    /// How many flows may begin: a number a second, `RATE,burst=N` or `none`.
    #[serde(default)]
    pub flow_limit: FlowLimit,
    /// How many of each source.
    #[serde(default)]
    pub source_limit: FlowLimit,
    /// First bits of an IPv4 address that make a source.
    #[serde(default)]
    pub source_prefix_v4: u8,
    /// First bits of an IPv6 address that make a source.
    #[serde(default)]
    pub source_prefix_v6: u8,
    /// Which subset of its backends clients are for, by the prefix of their address.
    #[serde(default, skip_serializing_if = "SourceRoutes::is_empty")]
    pub source_routes: SourceRoutes,
    /// Its subsets, where not every backend is for every client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// How its connection ids are laid out; `null` where it is not QUIC.
    pub quic: Option<Quic>,
    /// How long a client's new flows go where its last new flow went; 0: not at all.
    #[serde(default)]
    pub persistence_ms: u64,
    /// Bits of an address that make a client; `null`: all.
    #[serde(default)]
    pub persistence_prefix: Option<u8>,
    /// Percent of a tier's weight that is healthy below which it gives flows to the next.
    #[serde(default)]
    pub spill_below: u8,
    /// When a tier gets back what it could not carry.
    #[serde(default)]
    pub failback: Failback,
    /// How a backend that comes up gets its weight by and by: `off`, or as `30s from 20%`.
    #[serde(default)]
    pub slow_start: SlowStart,
    /// How weights follow how the backends fare; `null`: they are as configured.
    #[serde(default)]
    pub adaptive: Option<Adaptive>,
    /// How long a backend that goes down again and again has to pass its checks first: `off`, or as `10s to 2m`.
    #[serde(default)]
    pub flap_damping: FlapDamping,
    /// What the packets of handshakes have to show of a backend before it is kept out: `off`, `on`, or settings as
    /// `refusals=3,max_ejected=50%`.
    #[serde(default)]
    pub passive: Passive,
    /// Percent of the pool's weight that is healthy below which those that are down are used as well; 0: never.
    #[serde(default)]
    pub panic_below: u8,
    /// The tier that somebody has failed over to; 0: none.
    #[serde(default)]
    pub from_tier: u8,
    /// Its tiers in order, where there is more than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    /// Its panic, while it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic: Option<Panic>,
    /// How weights have followed so far, where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapting: Option<Adapting>,
    /// How backends are checked, where there is one check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Check>,
    /// How backends are checked, where there are several checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Check>>,
    /// How those make one verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combine>,
    /// Its slots by phase, and what the flow tables do for it.
    pub flows: ServiceFlows,
    /// How loaded its pool is, where its flows are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its backends, and those removed that still have flows.
    pub backends: Vec<Backend>,
}

/// A tier of a service's backends as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Its number; 0 is the primary one.
    pub number: u8,
    /// Its backends.
    pub backends: usize,
    /// Those that can take new flows.
    pub healthy: usize,
    /// Its share of new flows, in thousandths.
    pub share: u16,
    /// Whether it could carry more than that, and waits for its failback.
    pub waits: bool,
}

/// A pool of which so few are healthy that those which are not are used as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// Percent of a tier's weight that is healthy, the tiers added up.
    pub healthy_percent: u8,
    /// Backends that take new flows although their checks fail.
    pub used: usize,
}

/// How the weights of a pool follow how its backends fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapting {
    /// Whether they are held back, as too few slots would be steady.
    pub held: bool,
    /// How often weights were changed, since the agent started.
    pub changes: u64,
    /// How often they were held back instead.
    pub holds: u64,
}

/// Counters since the tables were created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// New flows.
    pub flows: u64,
}

/// Answer to a change that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What changed.
    pub changed: Subject,
}

/// What a change was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// What happened to it.
    pub action: Action,
    /// The service.
    pub service: ServiceId,
    /// The backend, where one changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// Its new weight, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Its new state, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Admin>,
    /// Its new limit, where that changed; `null`: none.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_connections: Option<Option<u32>>,
    /// The new flows a second that it is said to carry, where that changed; `null`: nothing is said.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_flow_rate: Option<Option<u32>>,
    /// The same in bits a second.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_bandwidth: Option<Option<BitRate>>,
    /// Its new tier, or the one that new flows go to first, where that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<u8>,
    /// The service's new settings, where those changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<EditService>,
}

/// Answer to a backend that reports by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Its service.
    pub service: ServiceId,
    /// The backend.
    pub backend: SocketAddr,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is different.
    Edited,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was wrong and what would be right, in one line.
    pub error: String,
    /// The same for programs; never changes.
    pub code: String,
}

impl From<&snapshot::Snapshot> for Status {
    fn from(snapshot: &snapshot::Snapshot) -> Self {
        let mut backends = Tally::default();
        // The backends of a group once, though all its services show them.
        let leads = snapshot.services.iter().filter(|s| s.lead == s.service.id);
        let panics = leads.clone().filter(|s| s.panic.is_some());
        let panic = panics.map(|s| s.service.id).collect();
        let pools = leads.flat_map(|s| s.backends.iter());
        for backend in pools.filter(|b| !b.leaving) {
            backends.total += 1;
            backends.used_in_panic += usize::from(backend.used_in_panic);
            match backend.condition {
                snapshot::Condition::Starting => backends.starting += 1,
                snapshot::Condition::Up => backends.up += 1,
                snapshot::Condition::Down => backends.down += 1,
            }
        }
        let interface = |i: &snapshot::InterfaceStatus| Interface {
            name: i.name.clone(),
            mode: i.mode.to_owned(),
        };
        let drops = snapshot.drops.iter();
        let named = |(name, count): &(&str, u64)| ((*name).to_owned(), *count);
        Self {
            instance: snapshot.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: snapshot.generation,
            interfaces: snapshot.interfaces.iter().map(interface).collect(),
            services: snapshot.services.len(),
            backends,
            panic,
            worst: snapshot.into(),
            flow_tables: FlowTables {
                established: snapshot.established.into(),
                half_open: snapshot.half_open.into(),
                sessions: snapshot.sessions.into(),
            },
            address_pools: snapshot.address_pools.iter().map(Into::into).collect(),
            announced: snapshot.announced.iter().map(Into::into).collect(),
            devices: snapshot.devices.iter().map(Into::into).collect(),
            drops: drops.map(named).collect(),
            answers: snapshot.answers.iter().map(named).collect(),
            fragments: snapshot.fragments.iter().map(named).collect(),
            unknown_port: snapshot.unknown_port,
        }
    }
}

impl From<&snapshot::ServiceStatus> for Service {
    fn from(status: &snapshot::ServiceStatus) -> Self {
        let service = &status.service;
        let (health, checks, combine) = match &service.health.checks[..] {
            [check] => (Some(check.clone()), None, None),
            checks => (None, Some(checks.to_vec()), Some(service.health.combine)),
        };
        Self {
            id: service.id,
            group: service.group.clone(),
            mode: service.mode,
            announce: service.announce,
            ring_size: status.ring_size,
            scheduler: service.scheduler,
            flow_state: service.flow_state,
            on_down: service.on_down(),
            moving_time_ms: millis(service.moving_time()),
            dead_after_ms: millis(service.dead_after),
            no_backend: service.no_backend,
            mss_clamp: service.mss_clamp,
            second_hop: service.second_hop,
            address_pool: service.address_pool.clone(),
            client_address: service.client_address,
            syn_proxy: service.syn_proxy,
            access_list: service.access_list.clone(),
            flow_limit: service.flow_limit,
            source_limit: service.source_limit,
            source_prefix_v4: service.source_prefix_v4.unwrap_or(SOURCE_PREFIX_V4),
            source_prefix_v6: service.source_prefix_v6.unwrap_or(SOURCE_PREFIX_V6),
            source_routes: service.source_routes.clone(),
            subsets: status.subsets().into_iter().map(Into::into).collect(),
            quic: service.quic,
            persistence_ms: millis(service.persistence),
            persistence_prefix: service.persistence_prefix,
            spill_below: service.spill_below,
            failback: service.failback,
            slow_start: service.slow_start,
            adaptive: service.adaptive,
            flap_damping: service.flap_damping,
            passive: service.passive,
            panic_below: service.panic_below,
            from_tier: service.from_tier,
            panic: status.panic.map(|panic| Panic {
                healthy_percent: panic.healthy_percent,
                used: panic.used,
            }),
            adapting: status.adaptive.map(|pool| Adapting {
                held: pool.held,
                changes: pool.changes,
                holds: pool.holds,
            }),
            tiers: status.tiers.iter().copied().map(Into::into).collect(),
            health,
            checks,
            combine,
            flows: status.flows.into(),
            capacity: capacity::of(status).map(Into::into),
            traffic: status.traffic.into(),
            backends: status.backends.iter().map(Into::into).collect(),
        }
    }
}

impl From<snapshot::TierStatus> for Tier {
    fn from(status: snapshot::TierStatus) -> Self {
        let snapshot::TierStatus {
            number,
            backends,
            healthy,
            share,
            waits,
        } = status;
        Self {
            number,
            backends,
            healthy,
            share,
            waits,
        }
    }
}

impl From<snapshot::Traffic> for Traffic {
    fn from(traffic: snapshot::Traffic) -> Self {
        let snapshot::Traffic {
            packets,
            bytes,
            flows,
        } = traffic;
        Self {
            packets,
            bytes,
            flows,
        }
    }
}
