//! `lbctl backend`.

use std::{
    fmt::Display,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_userspace::{
    api::{
        client::Client,
        dto::{
            Backend, Changed, CheckStatus, Condition, EditBackend, NewBackend, Service, Standing,
        },
    },
    model::{Admin, BitRate, DEFAULT_SUBSET, ServiceId, name_of},
};
use serde::Serialize;

use crate::{
    args::{BackendVerb, Bandwidth, Limit, Output, Target},
    drain,
    failure::Failure,
    output,
};

/// Does what `verb` says; returns what to print.
pub async fn run(client: &Client, verb: &BackendVerb, output: Output) -> Result<String, Failure> {
    let (changed, line) = match verb {
        BackendVerb::List { service } => return show(client, *service, output).await,
        BackendVerb::Heartbeat { target } => return beat(client, target, output).await,
        BackendVerb::Drained { target } => return drained(client, target, output).await,
        BackendVerb::Add {
            target,
            weight,
            max_connections,
            max_flow_rate,
            max_bandwidth,
            server_id,
            tier,
            subsets,
        } => {
            let new = NewBackend {
                address: target.address,
                weight: *weight,
                state: Admin::Active,
                max_connections: *max_connections,
                max_flow_rate: *max_flow_rate,
                max_bandwidth: *max_bandwidth,
                server_id: *server_id,
                tier: *tier,
                subsets: subsets.clone(),
            };
            add(client, target.service, &new).await?
        }
        BackendVerb::Remove { target } => remove(client, target).await?,
        BackendVerb::Drain { target, wait } => {
            let done = set_state(client, target, Admin::Draining).await?;
            drain::wait(client, target, *wait).await?;
            done
        }
        BackendVerb::Maintenance { target, wait } => {
            let done = set_state(client, target, Admin::Maintenance).await?;
            drain::wait(client, target, *wait).await?;
            done
        }
        BackendVerb::Down { target } => set_state(client, target, Admin::Down).await?,
        BackendVerb::Up { target } => set_state(client, target, Admin::Up).await?,
        BackendVerb::Undrain { target } => set_state(client, target, Admin::Active).await?,
        BackendVerb::Weight { target, weight } => weigh(client, target, *weight).await?,
        BackendVerb::Tier { target, tier } => set_tier(client, target, *tier).await?,
        BackendVerb::Limit { target, limit } => set_limit(client, target, *limit).await?,
        BackendVerb::Capacity {
            target,
            flow_rate,
            bandwidth,
        } => rate(client, target, *flow_rate, *bandwidth).await?,
    };
    match output {
        Output::Json => output::json(&changed),
        Output::Table => Ok(line + "\n"),
    }
}

/// What changed, and the line that says it.
type Done = Result<(Changed, String), Failure>;

async fn add(client: &Client, service: ServiceId, new: &NewBackend) -> Done {
    let changed = client.add_backend(service, new).await?;
    let (address, weight) = (new.address, new.weight);
    let mut line = format!("added backend {address} to {service} with weight {weight}");
    if let Some(most) = new.max_connections {
        line += &format!(" and at most {most} flows");
    }
    let said = said(new.max_flow_rate.map(Some), new.max_bandwidth.map(Some));
    if let Some(said) = said {
        line += &format!(", which {said}");
    }
    if new.tier > 0 {
        line += &format!(", of tier {}", new.tier);
    }
    if !new.subsets.is_empty() {
        line += &format!(", of subset {}", new.subsets.join(" and "));
    }
    if let Some(server_id) = new.server_id {
        line += &format!(", by server id {server_id}");
    }
    Ok((changed, line))
}

async fn beat(client: &Client, target: &Target, output: Output) -> Result<String, Failure> {
    let Target { service, address } = *target;
    let heard = client.beat(service, address).await?;
    match output {
        Output::Json => output::json(&heard),
        Output::Table => Ok(format!("reported backend {address} of {service}\n")),
    }
}

async fn drained(client: &Client, target: &Target, output: Output) -> Result<String, Failure> {
    let Target { service, address } = *target;
    let heard = client.drained(service, address).await?;
    match output {
        Output::Json => output::json(&heard),
        Output::Table => Ok(format!(
            "reported that backend {address} of {service} has no flow left\n"
        )),
    }
}

async fn remove(client: &Client, target: &Target) -> Done {
    let Target { service, address } = *target;
    let changed = client.remove_backend(service, address).await?;
    Ok((changed, format!("removed backend {address} from {service}")))
}

async fn set_state(client: &Client, target: &Target, state: Admin) -> Done {
    let Target { service, address } = *target;
    let edit = EditBackend {
        state: Some(state),
        ..EditBackend::default()
    };
    let changed = client.edit_backend(service, address, &edit).await?;
    let line = match state {
        Admin::Draining => "drains: it takes no new flows",
        Admin::Active => return Ok((changed, activated(client, target).await?)),
        Admin::Maintenance => "is in maintenance: it takes no new flows and is not checked",
        Admin::Down => "is down until `lbctl backend undrain`, whatever its checks say",
        Admin::Up => "is up until `lbctl backend undrain`, whatever its checks say",
    };
    let line = format!("backend {address} of {service} {line}");
    Ok((changed, line))
}

/// What has come of it that nobody keeps a backend from taking flows any more: something else may.
async fn activated(client: &Client, target: &Target) -> Result<String, Failure> {
    let Target { service, address } = *target;
    let backends = client.backends(service).await?;
    let backend = backends
        .into_iter()
        .find(|b| b.address == address && !b.leaving);
    let kept_out = backend.and_then(|backend| {
        let Standing { state, reason, .. } = backend.standing?;
        let (drains, used) = (backend.drain.is_some(), backend.used_in_panic);
        let state = (!state.takes_flows(drains, used)).then(|| name_of(state))?;
        Some(format!(
            "it takes no new flows yet, being {state}: {reason}"
        ))
    });
    let takes = kept_out.unwrap_or_else(|| "it takes new flows".to_owned());
    Ok(format!("backend {address} of {service} is active: {takes}"))
}

async fn weigh(client: &Client, target: &Target, weight: u16) -> Done {
    let Target { service, address } = *target;
    let edit = EditBackend {
        weight: Some(weight),
        ..EditBackend::default()
    };
    let changed = client.edit_backend(service, address, &edit).await?;
    Ok((
        changed,
        format!("backend {address} of {service} has weight {weight}"),
    ))
}

async fn set_tier(client: &Client, target: &Target, tier: u8) -> Done {
    let Target { service, address } = *target;
    let edit = EditBackend {
        tier: Some(tier),
        ..EditBackend::default()
    };
    let changed = client.edit_backend(service, address, &edit).await?;
    let line = format!("backend {address} of {service} is of tier {tier}");
    Ok((changed, line))
}

async fn set_limit(client: &Client, target: &Target, Limit(most): Limit) -> Done {
    let Target { service, address } = *target;
    let edit = EditBackend {
        max_connections: Some(most),
        ..EditBackend::default()
    };
    let changed = client.edit_backend(service, address, &edit).await?;
    let line = match most {
        Some(most) => format!("backend {address} of {service} takes at most {most} flows"),
        None => format!("backend {address} of {service} has no limit"),
    };
    Ok((changed, line))
}

async fn rate(
    client: &Client,
    target: &Target,
    flow_rate: Option<Limit>,
    bandwidth: Option<Bandwidth>,
) -> Done {
    let Target { service, address } = *target;
    let edit = EditBackend {
        max_flow_rate: flow_rate.map(|Limit(most)| most),
        max_bandwidth: bandwidth.map(|Bandwidth(most)| most),
        ..EditBackend::default()
    };
    let changed = client.edit_backend(service, address, &edit).await?;
    let said = said(edit.max_flow_rate, edit.max_bandwidth).unwrap_or_default();
    Ok((changed, format!("backend {address} of {service} {said}")))
}

/// What is said of what a backend can carry, of what that is changed.
fn said(flow_rate: Option<Option<u32>>, bandwidth: Option<Option<BitRate>>) -> Option<String> {
    let flows = flow_rate.map(|most| match most {
        Some(most) => format!("can carry {most} new flows a second"),
        None => "does not say how many new flows a second it can carry".to_owned(),
    });
    let bits = bandwidth.map(|most| match most {
        Some(most) => format!("can be sent {most}"),
        None => "does not say how many bits a second it can be sent".to_owned(),
    });
    let both: Vec<String> = [flows, bits].into_iter().flatten().collect();
    (!both.is_empty()).then(|| both.join(" and "))
}

async fn show(client: &Client, id: Option<ServiceId>, output: Output) -> Result<String, Failure> {
    let services = match id {
        Some(id) => vec![client.service(id).await?],
        None => client.services().await?,
    };
    match output {
        Output::Json => output::json(&entries(&services)),
        Output::Table => Ok(list(&services, true)),
    }
}

/// A backend in JSON: the API's, with its service.
#[derive(Serialize)]
struct Entry<'a> {
    service: ServiceId,
    #[serde(flatten)]
    backend: &'a Backend,
}

fn entries(services: &[Service]) -> Vec<Entry<'_>> {
    let pairs = services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| (service.id, backend)));
    let entry = |(service, backend)| Entry { service, backend };
    pairs.map(entry).collect()
}

/// Places of the columns of server ids, tiers and subsets, which are there only where somebody has some.
const SERVER_ID: usize = 2;
const TIER: usize = 3;
const SUBSETS: usize = 4;
/// That of states, which former agents do not tell.
const STANDING: usize = 8;
/// That of what is unknown, which is there where somebody takes no new flows.
const UNKNOWN: usize = 13;
/// Those of what is measured where somebody says what that may be.
const FLOW_RATE: usize = 15;
const BANDWIDTH: usize = 16;

/// The backends of `services` as a table, with or without the service's column.
pub fn list(services: &[Service], named: bool) -> String {
    let mut header = vec![
        "SERVICE",
        "BACKEND",
        "SERVER ID",
        "TIER",
        "SUBSETS",
        "WEIGHT",
        "STATE",
        "CONDITION",
        "STANDING",
        "SHARE",
        "PACKETS",
        "FLOWS",
        "RECORDED",
        "UNKNOWN",
        "IN PROGRESS",
        "NEW/S",
        "BANDWIDTH",
        "LATENCY",
        "REASON",
    ];
    let all = || services.iter().flat_map(|service| &service.backends);
    let shown = Shown {
        service: named,
        server_id: services.iter().any(|service| service.quic.is_some()),
        tier: services.iter().any(|service| !service.tiers.is_empty()),
        subsets: services.iter().any(|service| !service.subsets.is_empty()),
        standing: all().any(|backend| backend.standing.is_some()),
        unknown: all().any(|backend| backend.drain.is_some()),
        rates: all().any(|backend| {
            let said = backend.max_flow_rate.is_some() || backend.max_bandwidth.is_some();
            said || backend.flow_rate.is_some()
        }),
    };
    let mut rows: Vec<_> = services
        .iter()
        .flat_map(|service| {
            service
                .backends
                .iter()
                .map(move |backend| row(service, backend).to_vec())
        })
        .collect();
    for cells in &mut rows {
        shown.shorten(cells);
    }
    shown.shorten(&mut header);
    if rows.is_empty() {
        return "no backends: `lbctl backend add` adds one\n".to_owned();
    }
    let right = [
        "TIER",
        "WEIGHT",
        "SHARE",
        "PACKETS",
        "FLOWS",
        "RECORDED",
        "IN PROGRESS",
        "NEW/S",
        "BANDWIDTH",
        "LATENCY",
    ];
    output::table(&header, &right, rows)
}

/// The columns that not every table has.
#[derive(Clone, Copy)]
struct Shown {
    service: bool,
    server_id: bool,
    tier: bool,
    subsets: bool,
    standing: bool,
    unknown: bool,
    rates: bool,
}

impl Shown {
    /// Takes out the columns that a table goes without.
    fn shorten<T>(self, cells: &mut Vec<T>) {
        for (at, shown) in [
            (BANDWIDTH, self.rates),
            (FLOW_RATE, self.rates),
            (UNKNOWN, self.unknown),
            (STANDING, self.standing),
            (SUBSETS, self.subsets),
            (TIER, self.tier),
            (SERVER_ID, self.server_id),
            (0, self.service),
        ] {
            if !shown {
                cells.remove(at);
            }
        }
    }
}

fn row(service: &Service, backend: &Backend) -> [String; 19] {
    let state = match (backend.leaving, backend.state) {
        (true, _) => "leaving",
        (false, Admin::Active) => "active",
        (false, Admin::Draining) => "draining",
        (false, Admin::Maintenance) => "maintenance",
        (false, Admin::Down) => "forced down",
        (false, Admin::Up) => "forced up",
    };
    let condition = match (backend.condition, backend.reachable) {
        (Condition::Up, false) => "up, no route",
        (known, _) => condition(known),
    };
    [
        service.id.to_string(),
        backend.address.to_string(),
        backend
            .server_id
            .map_or_else(|| "-".to_owned(), |id| id.to_string()),
        backend.tier.to_string(),
        match backend.subsets[..] {
            [] => DEFAULT_SUBSET.to_owned(),
            _ => backend.subsets.join(", "),
        },
        weight(backend),
        with_asked(state, backend.asked.and_then(|asked| asked.wants)),
        condition.to_owned(),
        standing(backend),
        output::percent(backend.slots, service.ring_size),
        backend.traffic.packets.to_string(),
        backend.traffic.flows.to_string(),
        backend.recorded.to_string(),
        unknown(backend),
        in_progress(backend),
        of_most(backend.flow_rate, backend.max_flow_rate),
        of_most(backend.bandwidth, backend.max_bandwidth),
        output::micros(backend.latency_us),
        reason(backend),
    ]
}

/// Its state and how long it has been in that.
fn standing(backend: &Backend) -> String {
    let Some(standing) = &backend.standing else {
        return "-".to_owned();
    };
    let since = UNIX_EPOCH + Duration::from_millis(standing.since_ms);
    let passed = SystemTime::now().duration_since(since).unwrap_or_default();
    let passed = humantime::format_duration(Duration::from_secs(passed.as_secs())).to_string();
    // The largest unit will do.
    let passed = passed.split(' ').next().unwrap_or_default();
    format!("{} {passed}", name_of(standing.state))
}

/// Why it is in that state.
fn reason(backend: &Backend) -> String {
    let standing = backend.standing.as_ref().map(|told| told.reason.clone());
    let reason = standing.or_else(|| backend.last_error.clone());
    reason.unwrap_or_else(|| "-".to_owned())
}

/// Where flows may be that nobody has seen since the backend takes no new ones.
fn unknown(backend: &Backend) -> String {
    match backend.drain {
        None => "-".to_owned(),
        Some(drain) if drain.ended => "none".to_owned(),
        Some(drain) if drain.by_id => "by connection id".to_owned(),
        Some(drain) => format!("{} slots", drain.unknown_slots),
    }
}

/// What is configured and what the backend's agent makes of it.
fn with_asked(own: impl Display, asked: Option<impl Display>) -> String {
    match asked {
        Some(asked) => format!("{own} (agent: {asked})"),
        None => own.to_string(),
    }
}

/// What is configured, what the agent makes of it, how much of it is there already, and how it fares.
fn weight(backend: &Backend) -> String {
    let mut own = with_asked(backend.weight, percent_asked(backend));
    if let Some(slow) = &backend.slow_start {
        own += &format!(" (grown: {}%)", slow.weight_percent);
    }
    if let Some(share) = &backend.adaptive {
        own += &format!(" (adapted: {}%)", share.weight_percent);
    }
    own
}

fn percent_asked(backend: &Backend) -> Option<String> {
    let percent = backend.asked?.weight_percent?;
    Some(format!("{percent}%"))
}

/// What each check says of each backend of `service`, as a table.
pub fn checks(service: &Service) -> String {
    let header = [
        "BACKEND",
        "CHECK",
        "CONDITION",
        "PASSED",
        "FAILED",
        "UNDECIDED",
        "LATENCY",
        "LAST ERROR",
    ];
    let right = ["PASSED", "FAILED", "UNDECIDED", "LATENCY"];
    let of = |backend: &Backend, check: &CheckStatus| {
        vec![
            backend.address.to_string(),
            check.name.clone(),
            condition(check.condition).to_owned(),
            check.passed.to_string(),
            check.failed.to_string(),
            check.undecided.to_string(),
            output::micros(check.latency_us),
            check.last_error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let backends = service.backends.iter();
    let rows = backends.flat_map(|backend| backend.checks.iter().map(move |c| of(backend, c)));
    output::table(&header, &right, rows.collect())
}

/// What packets show of each backend of `service`, as a table.
pub fn signs(service: &Service) -> String {
    let header = [
        "BACKEND",
        "ACCEPTED",
        "REFUSED",
        "UNREACHABLE",
        "WENT ON",
        "MISSED",
        "HANDSHAKE",
        "EJECTIONS",
        "KEPT OUT FOR",
    ];
    let of = |backend: &Backend| {
        let shown = backend.passive?;
        Some(vec![
            backend.address.to_string(),
            shown.accepted.to_string(),
            shown.refused.to_string(),
            shown.unreachable.to_string(),
            shown.progressed.to_string(),
            shown.missed.to_string(),
            output::micros(shown.handshake_us),
            shown.ejections.to_string(),
            shown.left_ms.map_or_else(|| "-".to_owned(), output::millis),
        ])
    };
    let rows = service.backends.iter().filter_map(of).collect();
    output::table(&header, &header[1..], rows)
}

fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::Starting => "starting",
        Condition::Up => "up",
        Condition::Down => "down",
    }
}

/// Flows in progress and their limit, where there are such.
fn in_progress(backend: &Backend) -> String {
    match (backend.connections, backend.max_connections) {
        (Some(now), Some(most)) => format!("{now}/{most}"),
        (now, most) => of_most(now, most),
    }
}

/// What a backend has of something, and how much it can have, where there is such.
fn of_most(now: Option<impl Display>, most: Option<impl Display>) -> String {
    match (now, most) {
        (Some(now), Some(most)) => format!("{now} of {most}"),
        (Some(now), None) => now.to_string(),
        (None, Some(most)) => format!("-/{most}"),
        (None, None) => "-".to_owned(),
    }
}
