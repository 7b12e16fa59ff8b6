//! What the agent knows at one moment, for the API, the command line and metrics to show.
//! Plain data; made by the agent alone.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::health::reply::Asked;
use crate::model::{Backend, BitRate, Service, ServiceId, Unserved};

mod subsets;
mod weights;

pub use subsets::SubsetStatus;
pub use weights::{AdaptivePoolStatus, AdaptiveStatus, DampingStatus, SlowStartStatus};

/// Cumulative traffic counters, summed over CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets forwarded to the backend or service.
    pub packets: u64,
    /// Their bytes as they arrived, Ethernet header included.
    pub bytes: u64,
    /// Those among them that open a connection: TCP SYNs and QUIC Initials (each that is sent again
    /// counts again).
    pub flows: u64,
}

/// What the checks say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Not probed yet; treated as up.
    Starting,
    /// Passing its checks, or not checked.
    Up,
    /// Failing its checks.
    Down,
}

impl Condition {
    /// Lower-case name, as the API and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What one check says of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckStatus {
    /// What the check is called.
    pub name: String,
    /// Whether the backend passes it.
    pub condition: Condition,
    /// Why the last probe failed, where it did.
    pub last_error: Option<String>,
    /// How long the last probe took, where it succeeded.
    pub latency: Option<Duration>,
    /// How long the next heartbeat is waited for, where the backend reports by itself.
    pub patience: Option<Duration>,
    /// Probes that succeeded, since the check began.
    pub passed: u64,
    /// Probes that failed.
    pub failed: u64,
    /// Probes that say nothing about the backend: this host could not ask, or an agent kept silent.
    pub undecided: u64,
}

impl CheckStatus {
    /// A check that has not asked yet.
    pub fn new(name: String, condition: Condition) -> Self {
        Self {
            name,
            condition,
            last_error: None,
            latency: None,
            patience: None,
            passed: 0,
            failed: 0,
            undecided: 0,
        }
    }
}

/// A backend as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendStatus {
    /// What is wanted of it.
    pub backend: Backend,
    /// What the checks say.
    pub condition: Condition,
    /// Its state, since when, and why; nothing before it was looked at.
    pub standing: Option<Standing>,
    /// Why the last probe failed, where it did.
    pub last_error: Option<String>,
    /// How long the last successful probe took.
    pub latency: Option<Duration>,
    /// What each check says; empty before the first probe.
    pub checks: Vec<CheckStatus>,
    /// What the backend's agent asks for.
    pub asked: Asked,
    /// What is held against it for having failed.
    pub damping: DampingStatus,
    /// What packets show of it, where they are looked at.
    pub passive: Option<PassiveStatus>,
    /// How far its weight has grown, while it does.
    pub slow_start: Option<SlowStartStatus>,
    /// Its share of its weight, where that follows how it fares.
    pub adaptive: Option<AdaptiveStatus>,
    /// Its weight as it counts now next to those of its tier: with what its agent asks for, what has grown and its share.
    pub effective_weight: f64,
    /// Whether the agent knows how to reach it (route and neighbour resolved).
    pub reachable: bool,
    /// The longest IP packet that can be sent to it, in bytes and as it arrives, where the way is known.
    pub mtu: Option<u16>,
    /// Whether it still has flows, or may have, although it was removed: it is not in the pool.
    pub leaving: bool,
    /// Slots of the ring that it owns.
    pub slots: u32,
    /// Flows recorded for it at the last sweep.
    pub recorded: u32,
    /// Whether it takes new flows although it is down, as its pool is in panic.
    pub used_in_panic: bool,
    /// What it still has, where it takes no new flows.
    pub drain: Option<DrainStatus>,
    /// Flows in progress, where the service counts them.
    pub connections: Option<u32>,
    /// New flows and bits a second of late, where they are measured.
    pub rates: Option<Rates>,
    /// Its traffic.
    pub traffic: Traffic,
}

/// How much a backend gets a second, of late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// New flows.
    pub flows: u64,
    /// Of the packets that it is sent.
    pub bandwidth: BitRate,
}

/// What packets show of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassiveStatus {
    /// Connections that it has accepted, where its answers pass.
    pub accepted: u64,
    /// Connections that it has refused, likewise.
    pub refused: u64,
    /// ICMP errors that say that it cannot be reached; where its answers do not pass, of watched handshakes.
    pub unreachable: u64,
    /// Watched handshakes whose client went on.
    pub progressed: u64,
    /// Those whose client did not: it has sent its SYN again, or nothing for too long, or such an error came.
    pub missed: u64,
    /// How long handshakes have taken on average, from SYN to the client's next segment.
    pub handshake: Option<Duration>,
    /// Times that it was kept out for it that are not forgotten yet.
    pub ejections: u32,
    /// How long it still is at least, where it is.
    pub left: Option<Duration>,
}

/// What a backend is at present, all considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Not checked yet; takes new flows where it is among the first of its pool.
    Starting,
    /// Takes new flows.
    Up,
    /// The same, but a check has failed since it passed last.
    Suspect,
    /// Fails its checks, or counts as down by hand.
    Down,
    /// Takes no new flows, as somebody or its agent asked.
    Draining,
    /// Is being worked on, as somebody or its agent says: takes no new flows. By hand, it is not checked either.
    Maintenance,
    /// Could take new flows, which its tier does not get at present.
    Standby,
}

impl BackendState {
    /// Whether a backend takes new flows in this state; `drains` says whether it takes none in the maps, and `used` whether its
    /// pool is in panic and uses it.
    pub fn takes_flows(self, drains: bool, used: bool) -> bool {
        match self {
            Self::Up | Self::Suspect => true,
            // Who has been added, or comes back, takes none before it has passed a check.
            Self::Starting => !drains || used,
            Self::Down | Self::Draining | Self::Maintenance | Self::Standby => used,
        }
    }
}

/// A backend's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub state: BackendState,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
}

/// What happened in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// A backend is in another state.
    Turned {
        /// Which.
        backend: SocketAddr,
        /// What it was.
        from: BackendState,
        /// What it is.
        to: BackendState,
    },
    /// New flows go to tiers in other shares.
    Tiers,
    /// A pool's panic has begun or ended.
    Panic,
    /// A backend is kept out though its checks pass, for having failed too often.
    Damped {
        /// Which.
        backend: SocketAddr,
    },
    /// Somebody else claims the VIP.
    Conflict,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// Counted from 1, since the agent started.
    pub number: u64,
    /// When it was noticed.
    pub at: SystemTime,
    /// The service, or the first of its group.
    pub service: ServiceId,
    /// What happened.
    pub what: Happened,
    /// Why.
    pub reason: String,
}

/// Which events are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this service.
    pub service: Option<ServiceId>,
    /// After the one of this number.
    pub after: Option<u64>,
    /// Of which agent that number is, as [`EventList::epoch`].
    pub epoch: Option<u64>,
    /// The last so many.
    pub limit: usize,
}

impl EventFilter {
    /// Whether it lets an event through.
    pub fn matches(&self, event: &EventRecord) -> bool {
        self.service.is_none_or(|service| service == event.service)
            && self.after.is_none_or(|after| event.number > after)
    }
}

/// Events, and what is beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<EventRecord>,
    /// The number of the last event there was, whichever service it is of.
    pub last: u64,
    /// Of which agent that number is: when it started, in milliseconds of Unix time.
    pub epoch: u64,
    /// Events after the one asked for that are kept no more; at most so many, where those of one service were asked for.
    pub lost: u64,
}

/// What a backend that takes no new flows still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainStatus {
    /// Flows recorded for it at the last sweep.
    pub observed: u32,
    /// Slots that still lead to it: flows in them that have not spoken since are unknown.
    pub unknown_slots: u32,
    /// Whether connection ids may still lead packets to it.
    pub by_id: bool,
    /// Whether it has said itself, since it takes no new flows, that it has none left.
    pub reported: bool,
    /// Whether it has no flow any more, for certain.
    pub ended: bool,
}

/// A service's flows as they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowStatus {
    /// Slots whose owner takes every packet.
    pub steady: u32,
    /// Slots whose owner changed within the moving time.
    pub moving: u32,
    /// Slots that wait for their last recorded flows.
    pub settling: u32,
    /// Slots that have become moving, settling and steady so far, by this agent.
    pub passed: Passed,
    /// Records of established flows at the last sweep.
    pub established: u32,
    /// Records of half-open flows then.
    pub half_open: u32,
    /// What these records are for.
    pub uses: RecordUses,
    /// Packets that looked their flow up.
    pub lookups: u64,
    /// Flows recorded so far.
    pub recorded: u64,
    /// Choices that could not be recorded, since the table was full.
    pub overflows: u64,
    /// Packets of established flows that stayed among the half-open ones, likewise.
    pub promotion_overflows: u64,
    /// Packets whose connection id named their backend.
    pub named: u64,
    /// Clients remembered for persistence at the last sweep.
    pub clients: u32,
    /// Clients that could not be remembered, since the table was full.
    pub client_overflows: u64,
    /// Packets dropped since the access list denies their source.
    pub denied: u64,
    /// Packets that would have begun a flow, of more than their source may begin.
    pub source_limited: u64,
    /// The same, of more than all may begin.
    pub service_limited: u64,
    /// Sessions of mode `full-nat` at the last sweep.
    pub sessions: u32,
    /// Flows that found no free port of the address pool, or no room for their session.
    pub ports_exhausted: u64,
    /// Packets that were to tell the client's address, and had no room for it.
    pub untold: u64,
    /// SYNs answered by a cookie.
    pub cookies_sent: u64,
    /// Packets that acknowledged one.
    pub cookies_valid: u64,
    /// Packets that might have, and did not.
    pub cookies_invalid: u64,
}

/// A service's live records by what they are for, each under the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordUses {
    /// The client has ended the flow, by FIN or RST.
    pub ended: u32,
    /// The slot moves, or the whole service: recorded are all flows but those that stay whatever comes.
    pub moving: u32,
    /// The flow has another backend than its slot's owner.
    pub away: u32,
    /// The owner has it: every flow is recorded, or the next sweep removes the record.
    pub home: u32,
}

/// Slots that have entered each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Have begun to move.
    pub moving: u64,
    /// Have begun to settle.
    pub settling: u64,
    /// Have become steady again.
    pub steady: u64,
}

/// How full a flow table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableUse {
    /// Records at the last sweep, expired ones included.
    pub entries: u32,
    /// Records that it has room for.
    pub capacity: u32,
}

/// An address pool as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPoolStatus {
    /// Its name.
    pub name: String,
    /// How many addresses it has.
    pub addresses: usize,
    /// The first and the last port of each.
    pub ports: (u16, u16),
    /// Sessions that had one of its ports at the last sweep; of different backends, several can have the same.
    pub sessions: u32,
}

/// A recorded flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRecord {
    /// Its service.
    pub service: ServiceId,
    /// The client.
    pub client: SocketAddr,
    /// The backend that it stays with; unknown once that has gone.
    pub backend: Option<SocketAddr>,
    /// Whether only its first packet was seen.
    pub half_open: bool,
    /// Whether the client has ended it.
    pub closing: bool,
    /// Phase of its slot: `steady`, `moving` or `settling`.
    pub phase: &'static str,
    /// Since its last packet.
    pub idle: Duration,
    /// Since it was recorded.
    pub age: Duration,
}

/// A client that is remembered for persistence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRecord {
    /// Its service.
    pub service: ServiceId,
    /// Its address, or the first of its prefix.
    pub address: IpAddr,
    /// Bits of the address that make it a client.
    pub prefix: u8,
    /// The backend that its new flows go to.
    pub backend: SocketAddr,
    /// Whether nothing but its opening packets was seen.
    pub half_open: bool,
    /// Since its last new flow.
    pub idle: Duration,
    /// Until it is forgotten, unless another flow comes.
    pub left: Duration,
}

/// Remembered clients, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientList {
    /// How many match, those beyond the limit included.
    pub total: usize,
    /// The first of them, in no order.
    pub clients: Vec<ClientRecord>,
}

/// Which recorded flows or clients are asked for; a client has no slot, and so no phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowFilter {
    /// Of this service.
    pub service: Option<ServiceId>,
    /// Of this backend.
    pub backend: Option<SocketAddr>,
    /// In a slot of this phase: `steady`, `moving` or `settling`.
    pub phase: Option<&'static str>,
    /// At most so many.
    pub limit: usize,
}

impl FlowFilter {
    /// Whether it lets a flow through.
    pub fn matches(&self, flow: &FlowRecord) -> bool {
        self.service.is_none_or(|service| service == flow.service)
            && (self.backend.is_none() || self.backend == flow.backend)
            && self.phase.is_none_or(|phase| phase == flow.phase)
    }
}

/// Recorded flows, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowList {
    /// How many match, those beyond the limit included.
    pub total: usize,
    /// The first of them, in no order.
    pub flows: Vec<FlowRecord>,
}

/// A tier of a service's backends as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierStatus {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PanicStatus {
    /// Percent of a tier's weight that is healthy, the tiers added up.
    pub healthy_percent: u8,
    /// Backends that take new flows although their checks fail.
    pub used: usize,
}

/// A service as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceStatus {
    /// What is wanted, backends included.
    pub service: Service,
    /// The first service of its group, or itself: backends are its, and shown by the others too.
    pub lead: ServiceId,
    /// Slots of its ring now, of all parts of it.
    pub ring_size: u32,
    /// Its slots by phase, and what the flow tables do for it.
    pub flows: FlowStatus,
    /// Its traffic.
    pub traffic: Traffic,
    /// Its tiers in order, where there is more than one.
    pub tiers: Vec<TierStatus>,
    /// Its panic, while it is in one.
    pub panic: Option<PanicStatus>,
    /// How weights follow how its backends fare, where they do.
    pub adaptive: Option<AdaptivePoolStatus>,
    /// Its backends, in the order of `service.backends`; one for all services of a group.
    pub backends: Arc<[BackendStatus]>,
}

impl ServiceStatus {
    /// The backend at `address`.
    pub fn backend(&self, address: SocketAddr) -> Option<&BackendStatus> {
        self.backends.iter().find(|b| b.backend.address == address)
    }
}

/// An interface the XDP program is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: &'static str,
}

/// A device that stands over others, as the packet path sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// The interfaces that frames leave by.
    pub over: Vec<String>,
    /// Tags that they get, the outermost first: `802.1ad 7`, `802.1q 100`.
    pub tags: Vec<String>,
}

/// A VIP of which neighbours are told that it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnouncedStatus {
    /// Which.
    pub vip: IpAddr,
    /// Frames by which others have claimed it, since the agent started.
    pub conflicts: u64,
}

/// The agent at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Name of this instance (`--name`).
    pub instance: String,
    /// Generation of the tables in force; rises by one with each change of rings.
    pub generation: u64,
    /// Where the program is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// All services.
    pub services: Vec<ServiceStatus>,
    /// The table of established flows.
    pub established: TableUse,
    /// The table of half-open flows.
    pub half_open: TableUse,
    /// The table of sessions.
    pub sessions: TableUse,
    /// The address pools.
    pub address_pools: Vec<AddressPoolStatus>,
    /// VIPs that are announced.
    pub announced: Vec<AnnouncedStatus>,
    /// VLAN devices and bonds.
    pub devices: Vec<DeviceStatus>,
    /// Events since the agent started.
    pub events: u64,
    /// Packets to VIPs that were not forwarded, by the reason's name; every reason is listed.
    pub drops: Vec<(&'static str, u64)>,
    /// Answers in VIPs' names, and why there were none, by kind; every kind is listed.
    pub answers: Vec<(&'static str, u64)>,
    /// Fragments by what they came to; each kind is listed.
    pub fragments: Vec<(&'static str, u64)>,
    /// What packets get to ports of VIPs that no service has.
    pub unknown_port: Unserved,
}
