//! `[[service]]` and what stands below it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use super::{
    Limits, adaptive, health,
    reader::{Located, Section},
};
use crate::duration;
use crate::model::{
    AccessList, AddressPool, Backend, Mode, ModelError, Prefix, Quic, Rated, Service, ServiceId,
    Settings, SourceRoutes, State, group, parse_subset,
};

const SERVICE: &[&str] = &[
    "vip",
    "group",
    "mode",
    "announce",
    "ring_size",
    "scheduler",
    "flow_state",
    "on_down",
    "moving_time",
    "dead_after",
    "no_backend",
    "mss_clamp",
    "second_hop",
    "address_pool",
    "client_address",
    "syn_proxy",
    "access_list",
    "flow_limit",
    "source_limit",
    "source_prefix_v4",
    "source_prefix_v6",
    "source_route",
    "quic",
    "persistence",
    "persistence_prefix",
    "spill_below",
    "failback",
    "slow_start",
    "adaptive",
    "flap_damping",
    "passive",
    "panic_below",
    "health",
    "checks",
    "combine",
    "backend",
];
const BACKEND: &[&str] = &[
    "address",
    "weight",
    "state",
    "max_connections",
    "max_flow_rate",
    "max_bandwidth",
    "server_id",
    "tier",
    "subsets",
];
const SOURCE_ROUTE: &[&str] = &["prefixes", "subset"];
const QUIC: &[&str] = &["config_id", "server_id_length", "nonce_length"];
/// All services, each with the place of its header.
pub(super) fn read_all(
    root: &Section<'_>,
    address_pools: &[AddressPool],
    access_lists: &[AccessList],
    limits: Limits,
) -> Vec<Located<Service>> {
    let mut read = Services {
        accepted: State::with_pools(
            address_pools.iter().cloned(),
            access_lists.iter().cloned(),
            [],
        )
        .unwrap_or_default(),
        backends: 0,
        lines: BTreeMap::new(),
        groups: BTreeMap::new(),
    };
    let mut services = Vec::new();
    for section in root.sections("service", SERVICE) {
        if let Some(service) = read.service(&section, limits) {
            services.push(Located::new(section.span(), service));
        }
    }
    services
}

/// What earlier services of the file have taken.
struct Services {
    accepted: State,
    backends: usize,
    /// The line that named each service first.
    lines: BTreeMap<ServiceId, usize>,
    /// The first service of each group, which says what the others leave out.
    groups: BTreeMap<String, Service>,
}

impl Services {
    fn service(&mut self, section: &Section<'_>, limits: Limits) -> Option<Service> {
        let group = section.value("group", group::parse_name);
        let group = group.map(Located::into_inner);
        let sibling = group.as_ref().and_then(|name| self.groups.get(name));
        let sibling = sibling.cloned();
        let settings = read_settings(section, group, sibling.as_ref());
        let (backends, entries) = self.read_backends(section, settings.as_ref(), limits);
        let mut service = settings?;
        let line = section.report().line(section.span_of("vip").start);
        if let Some(first) = self.lines.insert(service.id, line) {
            let problem = format!("service {} is on line {first} already", service.id);
            section.error(section.span_of("vip"), "vip", problem);
            return None;
        }
        if self.lines.len() == limits.services as usize + 1 {
            let problem = format!("more than limits.services = {}: raise it", limits.services);
            section.error(section.span(), "", problem);
        }
        service.backends = match sibling {
            Some(sibling) if backends.is_empty() => sibling.backends,
            _ => backends,
        };
        if let Some(group) = &service.group {
            let first = || service.clone();
            self.groups.entry(group.clone()).or_insert_with(first);
        }
        if let Err(error) = self.accepted.insert(service.clone()) {
            // What the backends are by themselves has been checked, so the rest is either a
            // setting or what one of them shares with an earlier service.
            match shared(&error).and_then(|(key, address)| Some((key, entries.get(&address)?))) {
                Some((key, entry)) => entry.error(entry.span_of(key), key, error.to_string()),
                None => report_model(section, service.id, &error),
            }
            return None;
        }
        Some(service)
    }

    /// The valid backends of a service, and where each stands.
    fn read_backends<'t>(
        &mut self,
        section: &Section<'t>,
        service: Option<&Service>,
        limits: Limits,
    ) -> (Vec<Backend>, HashMap<SocketAddr, Section<'t>>) {
        let mut backends = Vec::new();
        let mut entries: HashMap<SocketAddr, Section<'t>> = HashMap::new();
        for entry in section.sections("backend", BACKEND) {
            let Some(backend) = read_backend(&entry, service) else {
                continue;
            };
            if let Some(first) = entries.get(&backend.address) {
                let line = section.report().line(first.span_of("address").start);
                let problem = format!("{} is on line {line} already", backend.address);
                entry.error(entry.span_of("address"), "address", problem);
                continue;
            }
            self.backends += 1;
            if self.backends == limits.backends as usize + 1 {
                let problem = format!("more than limits.backends = {}: raise it", limits.backends);
                entry.error(entry.span(), "", problem);
            }
            entries.insert(backend.address, entry);
            backends.push(backend);
        }
        (backends, entries)
    }
}

/// The key and the backend of something that another backend has already.
fn shared(error: &ModelError) -> Option<(&'static str, SocketAddr)> {
    match error {
        ModelError::SharedNatBackend { address, .. } => Some(("address", *address)),
        ModelError::SharedServerId { address, .. } => Some(("server_id", *address)),
        _ => None,
    }
}

/// What a service's section says; what it leaves out is as in `shared`, or has its default.
fn read_settings(
    section: &Section<'_>,
    group: Option<String>,
    shared: Option<&Service>,
) -> Option<Service> {
    section.require("vip", "10.0.0.1:80/tcp");
    if shared.is_none() {
        section.require("mode", "ipip");
    }
    let id = section.value("vip", |text| {
        text.parse().map_err(|e: ModelError| problem_of(&e))
    });
    let mode = section.choice("mode", "a mode");
    let announce = section.boolean("announce");
    let ring_size = section.integer("ring_size", 1, i64::from(u32::MAX));
    let scheduler = section.choice("scheduler", "a scheduler");
    let flow_state = section.choice("flow_state", "a flow state");
    let on_down = section.choice("on_down", "what on_down can be");
    let moving_time = section.value("moving_time", duration::parse);
    let dead_after = section.value("dead_after", duration::parse);
    let no_backend = section.choice("no_backend", "what no_backend can be");
    let mss_clamp = section.text_or_number("mss_clamp", str::parse);
    let second_hop = section.boolean("second_hop");
    let address_pool = section.text("address_pool");
    let client_address = section.choice("client_address", "what client_address can be");
    let syn_proxy = section.value("syn_proxy", str::parse);
    let access_list = section.text("access_list");
    let flow_limit = section.text_or_number("flow_limit", str::parse);
    let source_limit = section.text_or_number("source_limit", str::parse);
    let source_prefix_v4 = section.integer("source_prefix_v4", 1, 32);
    let source_prefix_v6 = section.integer("source_prefix_v6", 1, 128);
    let source_routes = read_routes(section);
    let quic = section.section("quic", QUIC).map(|s| read_quic(&s));
    let persistence = section.value("persistence", duration::parse);
    let prefix = section.integer("persistence_prefix", 1, 128);
    let spill_below = section.integer("spill_below", 0, 100);
    let failback = section.value("failback", str::parse);
    let slow_start = section.value("slow_start", str::parse);
    let adaptive = adaptive::read(section);
    let flap_damping = section.value("flap_damping", str::parse);
    let passive = section.value("passive", str::parse);
    let panic_below = section.integer("panic_below", 0, 100);
    let health = health::read(section);
    let adaptive = match adaptive {
        Some(None) => return None,
        adaptive => adaptive.flatten(),
    };
    // Backends cannot be judged by what is not known of it.
    let quic = match quic {
        Some(None) => return None,
        quic => quic.flatten(),
    };
    let id = id?.into_inner();
    let mut service = match shared {
        Some(shared) => shared.clone(),
        // A service whose mode is unknown is still worth checking: ipip is the one that forbids less.
        None => Service::new(id, Mode::Ipip),
    };
    (service.id, service.group, service.backends) = (id, group, Vec::new());
    service.mode = mode.map_or(service.mode, Located::into_inner);
    service.quic = quic.or(service.quic);
    service.health = health.unwrap_or(service.health);
    let settings = Settings {
        announce: announce.map(Located::into_inner),
        ring_size: ring_size.map(Located::into_inner),
        scheduler: scheduler.map(Located::into_inner),
        flow_state: flow_state.map(Located::into_inner),
        on_down: on_down.map(Located::into_inner),
        moving_time: moving_time.map(Located::into_inner),
        dead_after: dead_after.map(Located::into_inner),
        no_backend: no_backend.map(Located::into_inner),
        mss_clamp: mss_clamp.map(Located::into_inner),
        second_hop: second_hop.map(Located::into_inner),
        address_pool: address_pool.map(Located::into_inner),
        client_address: client_address.map(Located::into_inner),
        syn_proxy: syn_proxy.map(Located::into_inner),
        access_list: access_list.map(|name| Some(name.into_inner())),
        flow_limit: flow_limit.map(Located::into_inner),
        source_limit: source_limit.map(Located::into_inner),
        source_prefix_v4: source_prefix_v4.map(Located::into_inner),
        source_prefix_v6: source_prefix_v6.map(Located::into_inner),
        source_routes: Some(source_routes?).filter(|routes| !routes.is_empty()),
        persistence: persistence.map(Located::into_inner),
        persistence_prefix: prefix.map(Located::into_inner),
        spill_below: spill_below.map(Located::into_inner),
        failback: failback.map(Located::into_inner),
        slow_start: slow_start.map(Located::into_inner),
        adaptive: adaptive.map(Some),
        flap_damping: flap_damping.map(Located::into_inner),
        passive: passive.map(Located::into_inner),
        panic_below: panic_below.map(Located::into_inner),
        ..Settings::default()
    };
    settings.apply(&mut service).ok()?;
    Some(service)
}

/// The source routes of a service; nothing where one of them is wrong.
fn read_routes(section: &Section<'_>) -> Option<SourceRoutes> {
    let mut sound = true;
    let mut subsets: BTreeMap<Prefix, String> = BTreeMap::new();
    for route in section.sections("source_route", SOURCE_ROUTE) {
        route.require("subset", "canary");
        let subset = route.value("subset", parse_subset);
        let prefixes = route.all_strings("prefixes");
        if prefixes.as_ref().is_some_and(Vec::is_empty) {
            let problem = "names none: write prefixes = [\"10.1.0.0/16\"]";
            route.error(route.span_of("prefixes"), "prefixes", problem.to_owned());
        }
        let prefixes = prefixes.unwrap_or_default();
        sound &= subset.is_some() && !prefixes.is_empty();
        let subset = subset.map(Located::into_inner).unwrap_or_default();
        for text in prefixes {
            let read: Result<Prefix, ModelError> = text.get_ref().parse();
            let problem = match read {
                Ok(prefix) => match subsets.insert(prefix, subset.clone()) {
                    None => continue,
                    Some(other) => format!("{prefix} goes to {other} already: leave one out"),
                },
                Err(error) => error.to_string(),
            };
            route.error(text.span(), "prefixes", problem);
            sound = false;
        }
    }
    sound.then(|| subsets.into_iter().collect())
}

fn read_quic(section: &Section<'_>) -> Option<Quic> {
    for (key, example) in [
        ("config_id", 0),
        ("server_id_length", 2),
        ("nonce_length", 6),
    ] {
        section.require_number(key, example);
    }
    // What they may be is the model's to say, as far as they are bytes.
    let byte = |key| section.integer(key, 0, i64::from(u8::MAX));
    let (config_id, server_id_length) = (byte("config_id"), byte("server_id_length"));
    let nonce_length = byte("nonce_length");
    Some(Quic {
        config_id: config_id?.into_inner(),
        server_id_length: server_id_length?.into_inner(),
        nonce_length: nonce_length?.into_inner(),
    })
}

fn read_backend(section: &Section<'_>, service: Option<&Service>) -> Option<Backend> {
    section.require("address", "10.1.0.2:80");
    let address = section.value("address", |text| {
        Backend::parse_address(text).map_err(|error| error.to_string())
    });
    let weight = section.integer("weight", 0, i64::from(crate::model::MAX_WEIGHT));
    let admin = section.choice("state", "a state");
    let max_connections = section.integer("max_connections", 1, i64::from(u32::MAX));
    let max_flow_rate = section.integer("max_flow_rate", 1, i64::from(u32::MAX));
    let max_bandwidth = section.text_or_number("max_bandwidth", str::parse);
    let tier = section.integer("tier", 0, i64::from(crate::model::MAX_TIER));
    let subsets = read_subsets(section);
    let server_id = section.value("server_id", |text| {
        text.parse().map_err(|error: ModelError| error.to_string())
    });
    if server_id.is_none() && section.has("server_id") {
        // Nothing more can be said of it.
        return None;
    }
    let backend = Backend {
        address: address?.into_inner(),
        weight: weight.map_or(1, Located::into_inner),
        admin: admin.map(Located::into_inner).unwrap_or_default(),
        max_connections: max_connections.map(Located::into_inner),
        rated: Rated {
            max_flow_rate: max_flow_rate.map(Located::into_inner),
            max_bandwidth: max_bandwidth.map(Located::into_inner),
        },
        server_id: server_id.map(Located::into_inner),
        tier: tier.map(Located::into_inner).unwrap_or_default(),
        subsets: subsets?,
    };
    let Some(service) = service else {
        return Some(backend);
    };
    match service.check_backend(&backend) {
        Ok(()) => Some(backend),
        Err(error) => {
            report_model(section, service.id, &error);
            None
        }
    }
}

/// The subsets that a backend names; nothing where one is no name.
fn read_subsets(section: &Section<'_>) -> Option<Vec<String>> {
    let names = section.all_strings("subsets")?.into_iter().map(|text| {
        let read = parse_subset(text.get_ref());
        let report = |problem| section.error(text.span(), "subsets", problem);
        read.map_err(report).ok()
    });
    // All of them are told of.
    let names: Vec<Option<String>> = names.collect();
    names.into_iter().collect()
}

/// Reports a refusal of the model at the key that it names.
fn report_model(section: &Section<'_>, id: ServiceId, error: &ModelError) {
    let field = match error {
        ModelError::Invalid { field, .. } | ModelError::GroupDiffers { field, .. } => *field,
        ModelError::UnknownAccessList { .. } => "access_list",
        ModelError::UnknownAddressPool { .. } => "address_pool",
        _ => "",
    };
    let problem = match error {
        ModelError::Invalid { id: of, .. } if *of == id => problem_of(error),
        ModelError::UnknownAccessList { .. } | ModelError::UnknownAddressPool { .. } => {
            problem_of(error)
        }
        error => error.to_string(),
    };
    section.error(section.span_of(field), field, problem);
}

/// The refusal without the service's name, where the place says it already.
fn problem_of(error: &ModelError) -> String {
    match error {
        ModelError::Invalid { problem, .. } => problem.clone(),
        ModelError::UnknownAccessList { name } => {
            format!("no access list {name}: write an [[access_list]] of that name")
        }
        ModelError::UnknownAddressPool { name } => {
            format!("no address pool {name}: write an [[address_pool]] of that name")
        }
        error => error.to_string(),
    }
}
