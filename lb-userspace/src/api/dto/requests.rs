//! What clients ask for.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};

use crate::model::{
    self, Adaptive, Admin, BitRate, Check, ClientAddress, Combine, Failback, FlapDamping,
    FlowLimit, FlowState, Health, Mode, ModelError, MssClamp, OnDown, Passive, Quic, Rated,
    Scheduler, ServerId, ServiceId, Settings, SlowStart, SourceRoutes, SynProxy, Unserved,
};

/// A service to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// `ADDRESS:PORT/PROTOCOL`.
    pub id: ServiceId,
    /// The group that it shares pool and settings with: those of its group are what is absent below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How packets reach the backends; may be absent where its group says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Slots of the ring; chosen by the agent where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    /// How a new flow's backend is chosen; `maglev` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// Whether neighbours are told that its VIP is here; not where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<bool>,
    /// Which flows are recorded; `auto` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_state: Option<FlowState>,
    /// What becomes of a backend's flows when its checks fail; `keep` for TCP and QUIC and `resteer`
    /// for other UDP where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_down: Option<OnDown>,
    /// How long a slot moves, and how long a flow may be idle; 15 minutes for TCP and 30 seconds for
    /// UDP where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_time_ms: Option<u64>,
    /// How long a backend is down before it counts as dead; a minute where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_after_ms: Option<u64>,
    /// What its packets get while no backend may take them; `drop` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_backend: Option<Unserved>,
    /// What the MSS of its SYNs is lowered to: bytes, `auto` or, where absent, `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_clamp: Option<MssClamp>,
    /// Whether backends of mode `gue` are told who else may have a flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_hop: Option<bool>,
    /// How its connection ids are laid out, where it is QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<Quic>,
    /// The address pool that mode `full-nat` takes its packets' sources from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_pool: Option<String>,
    /// How backends of mode `full-nat` are told who the client is: `tcp-option` or, where absent, `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<ClientAddress>,
    /// Whether SYNs are answered for backends of mode `full-nat`: `off`, `always`, or `above=N` for those beyond so many a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syn_proxy: Option<SynProxy>,
    /// The access list that says who may send to it; everybody where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_list: Option<String>,
    /// How many flows may begin: a number a second, `RATE,burst=N` or, where absent, `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_limit: Option<FlowLimit>,
    /// How many of each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_limit: Option<FlowLimit>,
    /// First bits of an IPv4 address that make a source; 32 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_v4: Option<u8>,
    /// First bits of an IPv6 address that make a source; 64 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_v6: Option<u8>,
    /// Which subset of its backends clients are for, by the prefix of their address: `{"10.1.0.0/16": "canary"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_routes: Option<SourceRoutes>,
    /// How long a client's new flows go where its last new flow went; 0, or absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_ms: Option<u64>,
    /// Bits of an address that make a client; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_prefix: Option<u8>,
    /// Percent of a tier's weight that is healthy below which it gives flows to the next; 70 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_below: Option<u8>,
    /// When a tier gets back what it could not carry: `automatic`, where absent, `manual`, or a time as `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,
    /// What part of its weight a backend that comes up begins with, and how long until it has all, as `30s` or `30s from 20%`;
    /// `off` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// How weights follow how the backends fare; they are as configured where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// How long a backend that goes down again and again has to pass its checks before it gets flows, doubled each time, as
    /// `10s` or `10s to 5m`; `off` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flap_damping: Option<FlapDamping>,
    /// What the packets of handshakes have to show of a backend before it is kept out: `on`, or settings as
    /// `refusals=3,max_ejected=50%`; `off` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<Passive>,
    /// Percent of the pool's weight that is healthy below which those that are down are used as well; 0, or absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_below: Option<u8>,
    /// How backends are checked, where there is one check; by TCP connection where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Check>,
    /// How backends are checked, where there are several checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Check>>,
    /// How those make one verdict; `all` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combine>,
    /// Its first backends.
    #[serde(default)]
    pub backends: Vec<NewBackend>,
}

/// A backend to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBackend {
    /// `ADDRESS:PORT`.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Its share relative to the others.
    #[serde(default = "one")]
    pub weight: u16,
    /// Whether it takes new flows.
    #[serde(default)]
    pub state: Admin,
    /// Flows in progress at which it takes no new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// New flows a second that it is said to carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_flow_rate: Option<u32>,
    /// Bits a second that it is said to be able to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<BitRate>,
    /// What connection ids name it by, in hexadecimal; for QUIC services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<ServerId>,
    /// 0 for primary ones; those of higher tiers take what those before cannot carry.
    #[serde(default)]
    pub tier: u8,
    /// The subsets that it is of; the default one where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
}

fn one() -> u16 {
    1
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    model::Backend::parse_address(&text).map_err(serde::de::Error::custom)
}

/// A change of a backend; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditBackend {
    /// Its share relative to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether it takes new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Admin>,
    /// Flows in progress at which it takes no new ones; `null` takes the limit away.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_connections: Option<Option<u32>>,
    /// New flows a second that it is said to carry; `null` takes that back.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_flow_rate: Option<Option<u32>>,
    /// Bits a second that it is said to be able to be sent; `null` takes that back.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_bandwidth: Option<Option<BitRate>>,
    /// Its tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<u8>,
}

/// Which tier new flows go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailOver {
    /// The first tier that gets some; 0 fails back.
    pub to: u8,
}

/// Tells `null`, which is a value, from absence, which `default` stands for.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A change of a service's settings; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditService {
    /// Whether neighbours are told that its VIP is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<bool>,
    /// Slots of the ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    /// How a new flow's backend is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// Which flows are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_state: Option<FlowState>,
    /// What becomes of a backend's flows when its checks fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_down: Option<OnDown>,
    /// How long a slot moves, and how long a flow may be idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_time_ms: Option<u64>,
    /// How long a backend is down before it counts as dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_after_ms: Option<u64>,
    /// What its packets get while no backend may take them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_backend: Option<Unserved>,
    /// What the MSS of its SYNs is lowered to: bytes, `auto` or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_clamp: Option<MssClamp>,
    /// Whether backends of mode `gue` are told who else may have a flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_hop: Option<bool>,
    /// The address pool that mode `full-nat` takes its packets' sources from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_pool: Option<String>,
    /// How backends of mode `full-nat` are told who the client is: `tcp-option` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<ClientAddress>,
    /// Whether SYNs are answered for backends of mode `full-nat`: `off`, `always`, or `above=N` for those beyond so many a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syn_proxy: Option<SynProxy>,
    /// The access list that says who may send to it; `null`: everybody may.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub access_list: Option<Option<String>>,
    /// How many flows may begin: a number a second, `RATE,burst=N` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_limit: Option<FlowLimit>,
    /// How many of each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_limit: Option<FlowLimit>,
    /// First bits of an IPv4 address that make a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_v4: Option<u8>,
    /// First bits of an IPv6 address that make a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_v6: Option<u8>,
    /// Which subset of its backends clients are for, by the prefix of their address: all such routes from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_routes: Option<SourceRoutes>,
    /// How long a client's new flows go where its last new flow went; 0: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_ms: Option<u64>,
    /// Bits of an address that make a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence_prefix: Option<u8>,
    /// Percent of a tier's weight that is healthy below which it gives flows to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_below: Option<u8>,
    /// When a tier gets back what it could not carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,
    /// How a backend that comes up gets its weight by and by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// How weights follow how the backends fare; `null`: they are as configured.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub adaptive: Option<Option<Adaptive>>,
    /// How long a backend that goes down again and again has to pass its checks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flap_damping: Option<FlapDamping>,
    /// What the packets of handshakes have to show of a backend before it is kept out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<Passive>,
    /// Percent of the pool's weight that is healthy below which those that are down are used as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_below: Option<u8>,
    /// The group that it shares its pool with from now on; `null`: a pool of its own.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub group: Option<Option<String>>,
    /// How its connection ids are laid out; `null`: it is QUIC no longer.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub quic: Option<Option<Quic>>,
    /// What connection ids name its backends by, by `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub server_ids: BTreeMap<SocketAddr, ServerId>,
    /// The subsets that its backends are of, by `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subsets: BTreeMap<SocketAddr, Vec<String>>,
}

impl From<EditService> for Settings {
    fn from(edit: EditService) -> Self {
        Self {
            announce: edit.announce,
            ring_size: edit.ring_size,
            scheduler: edit.scheduler,
            flow_state: edit.flow_state,
            on_down: edit.on_down,
            moving_time: edit.moving_time_ms.map(Duration::from_millis),
            dead_after: edit.dead_after_ms.map(Duration::from_millis),
            no_backend: edit.no_backend,
            mss_clamp: edit.mss_clamp,
            second_hop: edit.second_hop,
            address_pool: edit.address_pool,
            client_address: edit.client_address,
            syn_proxy: edit.syn_proxy,
            access_list: edit.access_list,
            flow_limit: edit.flow_limit,
            source_limit: edit.source_limit,
            source_prefix_v4: edit.source_prefix_v4,
            source_prefix_v6: edit.source_prefix_v6,
            source_routes: edit.source_routes,
            persistence: edit.persistence_ms.map(Duration::from_millis),
            persistence_prefix: edit.persistence_prefix,
            spill_below: edit.spill_below,
            failback: edit.failback,
            slow_start: edit.slow_start,
            adaptive: edit.adaptive,
            flap_damping: edit.flap_damping,
            passive: edit.passive,
            panic_below: edit.panic_below,
            group: edit.group,
            quic: edit.quic,
            server_ids: edit.server_ids,
            subsets: edit.subsets,
        }
    }
}

impl NewService {
    /// The model's service; the model still has to accept it. What is absent is as in `shared`, another
    /// service of its group, or has its default.
    ///
    /// # Errors
    /// Both one check and several; nothing says the mode.
    pub fn into_model(self, shared: Option<&model::Service>) -> Result<model::Service, ModelError> {
        let mut service = match (shared, self.mode) {
            (Some(shared), _) => shared.clone(),
            (None, Some(mode)) => model::Service::new(self.id, mode),
            (None, None) => {
                let (id, field) = (self.id, "mode");
                let problem =
                    "missing: give \"nat\", \"full-nat\", \"ipip\", \"gue\" or \"l2\"".to_owned();
                return Err(ModelError::Invalid { id, field, problem });
            }
        };
        (service.id, service.group) = (self.id, self.group);
        service.mode = self.mode.unwrap_or(service.mode);
        let settings = EditService {
            announce: self.announce,
            ring_size: self.ring_size,
            scheduler: self.scheduler,
            flow_state: self.flow_state,
            on_down: self.on_down,
            moving_time_ms: self.moving_time_ms,
            dead_after_ms: self.dead_after_ms,
            no_backend: self.no_backend,
            mss_clamp: self.mss_clamp,
            second_hop: self.second_hop,
            address_pool: self.address_pool,
            client_address: self.client_address,
            syn_proxy: self.syn_proxy,
            access_list: self.access_list.map(Some),
            flow_limit: self.flow_limit,
            source_limit: self.source_limit,
            source_prefix_v4: self.source_prefix_v4,
            source_prefix_v6: self.source_prefix_v6,
            source_routes: self.source_routes,
            persistence_ms: self.persistence_ms,
            persistence_prefix: self.persistence_prefix,
            spill_below: self.spill_below,
            failback: self.failback,
            slow_start: self.slow_start,
            adaptive: self.adaptive.map(Some),
            flap_damping: self.flap_damping,
            passive: self.passive,
            panic_below: self.panic_below,
            quic: self.quic.map(Some),
            ..EditService::default()
        };
        Settings::from(settings).apply(&mut service)?;
        service.health = match (self.health, self.checks) {
            (Some(_), Some(_)) => {
                let (id, field) = (self.id, "health");
                let problem = "stands beside checks: leave one out".to_owned();
                return Err(ModelError::Invalid { id, field, problem });
            }
            (None, None) => service.health,
            (Some(check), None) => check.into(),
            (None, Some(checks)) => Health {
                combine: self.combine.unwrap_or_default(),
                checks,
            },
        };
        if !self.backends.is_empty() {
            service.backends = self.backends.into_iter().map(Into::into).collect();
        }
        Ok(service)
    }
}

impl From<NewBackend> for model::Backend {
    fn from(new: NewBackend) -> Self {
        Self {
            address: new.address,
            weight: new.weight,
            admin: new.state,
            max_connections: new.max_connections,
            rated: Rated {
                max_flow_rate: new.max_flow_rate,
                max_bandwidth: new.max_bandwidth,
            },
            server_id: new.server_id,
            tier: new.tier,
            subsets: new.subsets,
        }
    }
}
