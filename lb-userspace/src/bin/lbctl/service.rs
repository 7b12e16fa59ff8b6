//! `lbctl service`.

use std::{net::SocketAddr, time::Duration};

use lb_userspace::{
    api::{
        client::Client,
        dto::{Capacity, Condition, EditService, NewService, Service, Subset, Tier, Use},
    },
    model::{
        BitRate, Check, Combine, DEFAULT_SUBSET, FlowLimit, Http, Prefix, Probe, Quic,
        SourceRoutes, name_of,
    },
};

use crate::{
    args::{AddService, HealthArgs, Kind, Output, QuicArgs, ServiceVerb, SetService, SettingsArgs},
    backend,
    failure::Failure,
    output,
};

/// Does what `verb` says; returns what to print.
pub async fn run(client: &Client, verb: &ServiceVerb, output: Output) -> Result<String, Failure> {
    match verb {
        ServiceVerb::List => {
            let services = client.services().await?;
            match output {
                Output::Json => output::json(&services),
                Output::Table => Ok(list(&services)),
            }
        }
        ServiceVerb::Show { id } => {
            let service = client.service(*id).await?;
            match output {
                Output::Json => output::json(&service),
                Output::Table => Ok(show(&service)),
            }
        }
        ServiceVerb::Add(args) => {
            let changed = client.add_service(&new_service(args)?).await?;
            match output {
                Output::Json => output::json(&changed),
                Output::Table => Ok(format!(
                    "added service {}{}\n",
                    args.id,
                    with_backends(args)
                )),
            }
        }
        ServiceVerb::Set(args) => {
            let changed = client.edit_service(args.id, &changes(args)).await?;
            match output {
                Output::Json => output::json(&changed),
                Output::Table => Ok(format!("changed service {}\n", args.id)),
            }
        }
        ServiceVerb::Remove { id } => {
            let changed = client.remove_service(*id).await?;
            match output {
                Output::Json => output::json(&changed),
                Output::Table => Ok(format!("removed service {id}\n")),
            }
        }
    }
}

fn with_backends(args: &AddService) -> String {
    match args.backends.len() {
        0 if args.group.is_some() => " with the backends of its group".to_owned(),
        0 => ": it has no backends yet, see `lbctl backend add`".to_owned(),
        1 => " with 1 backend".to_owned(),
        count => format!(" with {count} backends"),
    }
}

fn new_service(args: &AddService) -> Result<NewService, Failure> {
    // Not named at all, it is the group's.
    let named = args.health != HealthArgs::default();
    let (health, checks) = match &args.health.checks[..] {
        [] if !named => (None, None),
        [] => (Some(check(&args.health)?), None),
        checks => (None, Some(checks.to_vec())),
    };
    let settings = edit(args.settings);
    Ok(NewService {
        id: args.id,
        group: args.group.clone(),
        mode: args.mode,
        announce: settings.announce,
        ring_size: settings.ring_size,
        scheduler: settings.scheduler,
        flow_state: settings.flow_state,
        on_down: settings.on_down,
        moving_time_ms: settings.moving_time_ms,
        dead_after_ms: settings.dead_after_ms,
        no_backend: settings.no_backend,
        mss_clamp: settings.mss_clamp,
        second_hop: settings.second_hop,
        address_pool: args.address_pool.clone(),
        client_address: settings.client_address,
        syn_proxy: settings.syn_proxy,
        access_list: args.access_list.clone(),
        source_routes: routes(&args.source_routes, false),
        flow_limit: settings.flow_limit,
        source_limit: settings.source_limit,
        source_prefix_v4: settings.source_prefix_v4,
        source_prefix_v6: settings.source_prefix_v6,
        quic: args.quic.map(quic),
        persistence_ms: settings.persistence_ms,
        persistence_prefix: settings.persistence_prefix,
        spill_below: settings.spill_below,
        failback: settings.failback,
        slow_start: settings.slow_start,
        adaptive: settings.adaptive.flatten(),
        flap_damping: settings.flap_damping,
        passive: settings.passive,
        panic_below: settings.panic_below,
        health,
        checks,
        combine: args.health.combine,
        backends: args.backends.clone(),
    })
}

/// The one check that options of their own describe.
fn check(args: &HealthArgs) -> Result<Check, Failure> {
    let http = || {
        let default = Http::default();
        Http {
            path: args.path.clone().unwrap_or(default.path),
            host: args.host.clone(),
            ..default
        }
    };
    let probe = match args.check.unwrap_or(Kind::Tcp) {
        Kind::Http => Probe::Http(http()),
        Kind::Https => Probe::Https(http()),
        _ if args.path.is_some() || args.host.is_some() => {
            let problem = "--health-path and --health-host are for --health http and https only";
            return Err(Failure::Arguments(problem.to_owned()));
        }
        Kind::Tcp => Probe::TCP,
        Kind::Icmp => Probe::Icmp {},
        Kind::Heartbeat => Probe::Heartbeat {},
        Kind::None => Probe::NONE,
    };
    let default = Check::new(probe);
    let millis = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
    Ok(Check {
        port: args.port,
        interval: millis(args.interval, default.interval),
        timeout: millis(args.timeout, default.timeout),
        rise: args.rise.unwrap_or(default.rise),
        fall: args.fall.unwrap_or(default.fall),
        ..default
    })
}

fn quic(args: QuicArgs) -> Quic {
    let QuicArgs {
        config_id,
        server_id_length,
        nonce_length,
    } = args;
    Quic {
        config_id,
        server_id_length,
        nonce_length,
    }
}

fn edit(args: SettingsArgs) -> EditService {
    let SettingsArgs {
        announce,
        scheduler,
        ring_size,
        flow_state,
        on_down,
        moving_time,
        dead_after,
        no_backend,
        mss_clamp,
        second_hop,
        client_address,
        syn_proxy,
        flow_limit,
        source_limit,
        source_prefix_v4,
        source_prefix_v6,
        persistence,
        persistence_prefix,
        spill_below,
        failback,
        slow_start,
        adaptive,
        flap_damping,
        passive,
        panic_below,
    } = args;
    EditService {
        announce,
        ring_size,
        scheduler,
        flow_state,
        on_down,
        moving_time_ms: moving_time,
        dead_after_ms: dead_after,
        no_backend,
        mss_clamp,
        second_hop,
        client_address,
        syn_proxy,
        flow_limit,
        source_limit,
        source_prefix_v4,
        source_prefix_v6,
        persistence_ms: persistence,
        persistence_prefix,
        spill_below,
        failback,
        slow_start,
        adaptive: adaptive.map(Some),
        flap_damping,
        passive,
        panic_below,
        ..EditService::default()
    }
}

/// The routes that are given, or none at all.
fn routes(given: &[(Prefix, String)], none: bool) -> Option<SourceRoutes> {
    (none || !given.is_empty()).then(|| given.iter().cloned().collect())
}

fn changes(args: &SetService) -> EditService {
    let group = args.group.clone();
    let access_list = args.access_list.clone();
    let settings = edit(args.settings);
    EditService {
        adaptive: settings.adaptive.or(args.no_adaptive.then_some(None)),
        address_pool: args.address_pool.clone(),
        access_list: (access_list.is_some() || args.no_access_list).then_some(access_list),
        group: (group.is_some() || args.no_group).then_some(group),
        quic: (args.quic.is_some() || args.no_quic).then(|| args.quic.map(quic)),
        server_ids: args.server_ids.iter().copied().collect(),
        source_routes: routes(&args.source_routes, args.no_source_routes),
        subsets: args.subsets.iter().cloned().collect(),
        ..settings
    }
}

fn list(services: &[Service]) -> String {
    if services.is_empty() {
        return "no services: `lbctl service add` adds one\n".to_owned();
    }
    let header = [
        "SERVICE",
        "MODE",
        "SCHEDULER",
        "UP",
        "CHECK",
        "RING",
        "PACKETS",
        "BYTES",
        "FLOWS",
    ];
    let row = |service: &Service| {
        let pool = || service.backends.iter().filter(|b| !b.leaving);
        let (all, up) = (pool(), pool().filter(|b| b.condition != Condition::Down));
        let (all, up) = (all.count(), up.count());
        vec![
            service.id.to_string(),
            name_of(service.mode),
            name_of(service.scheduler),
            format!("{up}/{all}"),
            summary(service),
            service.ring_size.to_string(),
            service.traffic.packets.to_string(),
            service.traffic.bytes.to_string(),
            service.traffic.flows.to_string(),
        ]
    };
    let rows = services.iter().map(row).collect();
    output::table(&header, &["UP", "RING", "PACKETS", "BYTES", "FLOWS"], rows)
}

/// The longest packets that can be sent to its backends.
fn mtu(service: &Service) -> String {
    let known = || service.backends.iter().filter_map(|backend| backend.mtu);
    match (known().min(), known().max()) {
        (Some(least), Some(most)) if least != most => {
            format!("{least} to {most} bytes, by backend")
        }
        (Some(all), _) => format!("{all} bytes"),
        (None, _) => "not known".to_owned(),
    }
}

fn show(service: &Service) -> String {
    let traffic = &service.traffic;
    let mut fields = vec![
        ("service", service.id.to_string()),
        (
            "group",
            service.group.clone().unwrap_or_else(|| "none".to_owned()),
        ),
        ("mode", name_of(service.mode)),
        ("scheduler", name_of(service.scheduler)),
        ("ring", ring(service)),
        ("passed", passed(service)),
        ("flow state", name_of(service.flow_state)),
        ("flows", flows(service)),
        ("moving time", output::millis(service.moving_time_ms)),
        ("persistence", persistence(service)),
        ("on down", name_of(service.on_down)),
        ("dead after", output::millis(service.dead_after_ms)),
        ("no backend", name_of(service.no_backend)),
        ("mtu", mtu(service)),
        ("mss clamp", service.mss_clamp.to_string()),
    ];
    if service.second_hop {
        fields.push(("second hop", "yes".to_owned()));
    }
    if service.announce {
        fields.push(("announced", "yes".to_owned()));
    }
    if !service.slow_start.is_off() {
        fields.push(("slow start", service.slow_start.to_string()));
    }
    let adaptive = match (&service.adaptive, service.adapting) {
        (Some(adaptive), _) => Some(adaptive.to_string()),
        // By and by, as they have moved away from them.
        (None, Some(_)) => Some("off; weights return to the configured ones".to_owned()),
        (None, None) => None,
    };
    if let Some(adaptive) = adaptive {
        let held = service.adapting.is_some_and(|adapting| adapting.held);
        let held = if held {
            "; held back until more are steady"
        } else {
            ""
        };
        fields.push(("adaptive", format!("{adaptive}{held}")));
    }
    if !service.flap_damping.is_off() {
        fields.push(("damping", service.flap_damping.to_string()));
    }
    if !service.passive.is_off() {
        fields.push(("passive", service.passive.to_string()));
    }
    if service.panic_below > 0 {
        fields.push(("panic", panic(service)));
    }
    if let Some(pool) = &service.address_pool {
        fields.push(("address pool", address_pool(pool, service)));
    }
    if !service.syn_proxy.is_off() {
        fields.push(("SYN proxy", syn_proxy(service)));
    }
    fields.extend(guards(service));
    fields.extend(
        service
            .subsets
            .iter()
            .map(|s| ("subset", subset(service, s))),
    );
    if !service.tiers.is_empty() {
        let failback = service.failback;
        let spill = format!(
            "below {}% of weight; failback {failback}",
            service.spill_below
        );
        fields.push(("tiers", tiers(service)));
        fields.push(("spill", spill));
    }
    if let Some(known) = &service.capacity {
        fields.extend(capacity(known));
    }
    let checks = checks_of(service);
    if let Some(combine) = service.combine {
        fields.push(("combine", name_of(combine)));
    }
    fields.extend(checks.iter().map(|check| ("check", in_full(check))));
    fields.push((
        "traffic",
        format!(
            "{} packets, {} bytes, {} flows",
            traffic.packets, traffic.bytes, traffic.flows
        ),
    ));
    if let Some(quic) = &service.quic {
        fields.push(("quic", connection_ids(quic, service.flows.named)));
    }
    let fields = output::fields(&fields);
    let backends = backend::list(std::slice::from_ref(service), false);
    let checks = match checks[..] {
        [_] => String::new(),
        _ => format!("\n{}", backend::checks(service)),
    };
    let signs = match service.passive.is_off() {
        true => String::new(),
        false => format!("\n{}", backend::signs(service)),
    };
    format!("{fields}\n{backends}{checks}{signs}")
}

/// Who is in a subset, and whose clients are for it.
fn subset(service: &Service, subset: &Subset) -> String {
    const SHOWN: usize = 8;
    let Subset {
        name,
        prefixes,
        backends,
        up,
    } = subset;
    let routes = service.source_routes.iter();
    let its = routes.filter(|(_, to)| *to == name);
    let mut shown: Vec<String> = its
        .take(SHOWN)
        .map(|(prefix, _)| prefix.to_string())
        .collect();
    if *prefixes > SHOWN {
        shown.push(format!("{} more", prefixes - SHOWN));
    }
    if name == DEFAULT_SUBSET {
        shown.push("all other sources".to_owned());
    }
    format!(
        "{name}: {up} of {backends} backends up; {}",
        shown.join(", ")
    )
}

/// Where packets come from at backends, and how that went.
fn address_pool(name: &str, service: &Service) -> String {
    let flows = &service.flows;
    let exhausted = flows.ports_exhausted;
    let mut text = format!(
        "{name}: {} sessions; {exhausted} flows without a port so far",
        flows.sessions
    );
    if !service.client_address.is_none() {
        let (how, untold) = (name_of(service.client_address), flows.untold);
        text += &format!("; client address by {how}, {untold} packets without room for it");
    }
    text
}

/// Which SYNs are answered for backends, and what came of that.
fn syn_proxy(service: &Service) -> String {
    let (which, flows) = (service.syn_proxy, &service.flows);
    let (sent, valid, invalid) = (
        flows.cookies_sent,
        flows.cookies_valid,
        flows.cookies_invalid,
    );
    format!("{which}; {sent} cookies sent, {valid} valid and {invalid} invalid ones back so far")
}

/// Who may send, and how many flows may begin, as far as that is bounded.
fn guards(service: &Service) -> Vec<(&'static str, String)> {
    let flows = &service.flows;
    let mut guards = Vec::new();
    if let Some(name) = &service.access_list {
        let denied = flows.denied;
        guards.push((
            "access list",
            format!("{name}; {denied} packets denied so far"),
        ));
    }
    if !service.flow_limit.is_none() {
        let (limit, refused) = (in_words(service.flow_limit), flows.service_limited);
        guards.push(("flow limit", format!("{limit}; {refused} refused so far")));
    }
    if !service.source_limit.is_none() {
        let bits = match service.id.vip {
            SocketAddr::V4(_) => service.source_prefix_v4,
            SocketAddr::V6(_) => service.source_prefix_v6,
        };
        let (limit, refused) = (in_words(service.source_limit), flows.source_limited);
        let text = format!("{limit}, of each /{bits}; {refused} refused so far");
        guards.push(("source limit", text));
    }
    guards
}

fn in_words(limit: FlowLimit) -> String {
    match limit {
        FlowLimit::None => "any number".to_owned(),
        FlowLimit::To { rate, burst } => format!("{rate} new flows a second, {burst} at once"),
    }
}

fn connection_ids(quic: &Quic, named: u64) -> String {
    format!(
        "configuration {}, server ids of {} bytes, nonces of {}; {named} packets by connection id so far",
        quic.config_id, quic.server_id_length, quic.nonce_length
    )
}

fn ring(service: &Service) -> String {
    let slots = &service.flows;
    format!(
        "{} slots: {} steady, {} moving, {} settling",
        service.ring_size, slots.steady, slots.moving, slots.settling
    )
}

fn passed(service: &Service) -> String {
    let passed = &service.flows.passed;
    format!(
        "{} slots began to move, {} to settle, {} became steady",
        passed.moving, passed.settling, passed.steady
    )
}

fn flows(service: &Service) -> String {
    let flows = &service.flows;
    format!(
        "{} established, {} half-open; so far {} recorded, {} looked up, {} without room",
        flows.established, flows.half_open, flows.recorded, flows.lookups, flows.overflows
    )
}

/// When the pool panics, and whether it does.
fn panic(service: &Service) -> String {
    let below = format!("below {}% of weight", service.panic_below);
    match &service.panic {
        None => below,
        Some(panic) => format!(
            "{below}; in panic, with {}%: {} backends that are down are used as well",
            panic.healthy_percent, panic.used
        ),
    }
}

/// How loaded the pool is by each resource, as far as that is known.
fn capacity(capacity: &Capacity) -> Vec<(&'static str, String)> {
    let plain: fn(u64) -> String = |n| n.to_string();
    let bits: fn(u64) -> String = |n| BitRate(n).to_string();
    let by = [
        ("capacity", capacity.connections, plain, " flows"),
        ("flow rate", capacity.flow_rate, plain, " new flows/s"),
        ("bandwidth", capacity.bandwidth, bits, ""),
    ];
    let known = by
        .into_iter()
        .filter_map(|(name, by, shown, unit)| Some((name, used(&by?, shown, unit))));
    known.collect()
}

fn used(by: &Use, shown: fn(u64) -> String, unit: &str) -> String {
    let load = shown(by.load);
    let mut text = match (by.most, by.utilisation) {
        (Some(most), Some(used)) => {
            let (most, percent) = (shown(most), output::thousandths(used));
            format!("{load} of {most}{unit} ({percent})")
        }
        _ => format!("{load}{unit}; not every backend has a limit"),
    };
    if let Some(imbalance) = by.imbalance {
        text += &format!(", imbalance {}", output::ratio(imbalance));
    }
    if let Some(headroom) = by.headroom {
        text += &format!(", headroom {headroom} backends");
    }
    text
}

/// The share of each tier, and why it has no more.
fn tiers(service: &Service) -> String {
    let tier = |tier: &Tier| {
        let why = match tier {
            _ if tier.number < service.from_tier => ", failed over by hand",
            Tier { waits: true, .. } => ", waits for its failback",
            _ => "",
        };
        format!(
            "{}: {} of new flows, {} of {} healthy{why}",
            tier.number,
            output::percent(tier.share.into(), 1_000),
            tier.healthy,
            tier.backends
        )
    };
    let tiers: Vec<String> = service.tiers.iter().map(tier).collect();
    tiers.join("; ")
}

fn persistence(service: &Service) -> String {
    if service.persistence_ms == 0 {
        return "none".to_owned();
    }
    let by = match service.persistence_prefix {
        Some(bits) => format!(" by the first {bits} bits of addresses"),
        None => String::new(),
    };
    let flows = &service.flows;
    format!(
        "{}{by}: {} clients; so far {} without room",
        output::millis(service.persistence_ms),
        flows.clients,
        flows.client_overflows
    )
}

/// The checks of a service, as they were given.
fn checks_of(service: &Service) -> Vec<Check> {
    let single = service.health.iter();
    let several = service.checks.iter().flatten();
    single.chain(several).cloned().collect()
}

/// The checks in short.
fn summary(service: &Service) -> String {
    let each: Vec<String> = checks_of(service).iter().map(kind).collect();
    let combined = match service.combine {
        Some(Combine::Any) => " or ",
        _ => " and ",
    };
    each.join(combined)
}

fn kind(check: &Check) -> String {
    let kind = check.probe.kind();
    match check.port {
        Some(port) => format!("{kind}:{port}"),
        None => kind.to_owned(),
    }
}

fn in_full(check: &Check) -> String {
    if check.probe == Probe::NONE {
        return kind(check);
    }
    let number = |time: Duration| time.as_millis();
    let fast = check
        .fast_interval
        .map(|fast| format!(" ({} ms in doubt)", number(fast)));
    let jitter = match number(check.jitter) {
        0 => String::new(),
        jitter => format!(", jitter {jitter} ms"),
    };
    let detector = check.phi().map(|phi| format!(", phi {}", phi.threshold));
    let name = check.name.as_ref().map(|name| format!("{name}: "));
    format!(
        "{}{}{} every {} ms{}, timeout {} ms, rise {}, fall {}{jitter}{}",
        name.unwrap_or_default(),
        kind(check),
        question(&check.probe),
        number(check.interval),
        fast.unwrap_or_default(),
        number(check.timeout),
        check.rise,
        check.fall,
        detector.unwrap_or_default(),
    )
}

/// What a check asks, beyond its kind.
fn question(probe: &Probe) -> String {
    match probe {
        Probe::Http(http) | Probe::Https(http) => {
            let host = http.host.as_deref().map(|host| format!(" on {host}"));
            format!(" {}{}", http.path, host.unwrap_or_default())
        }
        Probe::Dns(dns) => format!(" {} {}", dns.query, dns.record),
        Probe::Grpc(grpc) if !grpc.service.is_empty() => format!(" {}", grpc.service),
        Probe::Exec(exec) => format!(" {}", exec.command.join(" ")),
        _ => String::new(),
    }
}
