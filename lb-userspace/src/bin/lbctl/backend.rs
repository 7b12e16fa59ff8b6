//! `lbctl backend`.

use lb_userspace::{
    api::{
        client::Client,
        dto::{Backend, Changed, Condition, EditBackend, NewBackend, Service},
    },
    model::{Admin, ServiceId},
};
use serde::Serialize;

use crate::{
    args::{BackendVerb, Limit, Output, Target},
    failure::Failure,
    output,
};

/// Does what `verb` says; returns what to print.
pub async fn run(client: &Client, verb: &BackendVerb, output: Output) -> Result<String, Failure> {
    let (changed, line) = match verb {
        BackendVerb::List { service } => return show(client, *service, output).await,
        BackendVerb::Add {
            target,
            weight,
            max_connections,
        } => add(client, target, *weight, *max_connections).await?,
        BackendVerb::Remove { target } => remove(client, target).await?,
        BackendVerb::Drain { target } => drain(client, target, Admin::Draining).await?,
        BackendVerb::Undrain { target } => drain(client, target, Admin::Active).await?,
        BackendVerb::Weight { target, weight } => weigh(client, target, *weight).await?,
        BackendVerb::Limit { target, limit } => set_limit(client, target, *limit).await?,
    };
    match output {
        Output::Json => output::json(&changed),
        Output::Table => Ok(line + "\n"),
    }
}

/// What changed, and the line that says it.
type Done = Result<(Changed, String), Failure>;

async fn add(client: &Client, target: &Target, weight: u16, most: Option<u32>) -> Done {
    let Target { service, address } = *target;
    let new = NewBackend {
        address,
        weight,
        state: Admin::Active,
        max_connections: most,
    };
    let changed = client.add_backend(service, &new).await?;
    let mut line = format!("added backend {address} to {service} with weight {weight}");
    if let Some(most) = most {
        line += &format!(" and at most {most} flows");
    }
    Ok((changed, line))
}

async fn remove(client: &Client, target: &Target) -> Done {
    let Target { service, address } = *target;
    let changed = client.remove_backend(service, address).await?;
    Ok((changed, format!("removed backend {address} from {service}")))
}

async fn drain(client: &Client, target: &Target, state: Admin) -> Done {
    let Target { service, address } = *target;
    let edit = EditBackend {
        state: Some(state),
        ..EditBackend::default()
    };
    let changed = client.edit_backend(service, address, &edit).await?;
    let line = match state {
        Admin::Draining => format!("backend {address} of {service} drains: it takes no new flows"),
        Admin::Active => format!("backend {address} of {service} is active: it takes new flows"),
    };
    Ok((changed, line))
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

/// The backends of `services` as a table, with or without the service's column.
pub fn list(services: &[Service], named: bool) -> String {
    let header = [
        "SERVICE",
        "BACKEND",
        "WEIGHT",
        "STATE",
        "CONDITION",
        "SHARE",
        "PACKETS",
        "FLOWS",
        "RECORDED",
        "IN PROGRESS",
        "LATENCY",
        "LAST ERROR",
    ];
    let skipped = usize::from(!named);
    let rows: Vec<_> = services
        .iter()
        .flat_map(|service| {
            service
                .backends
                .iter()
                .map(move |backend| row(service, backend))
        })
        .map(|row| row[skipped..].to_vec())
        .collect();
    if rows.is_empty() {
        return "no backends: `lbctl backend add` adds one\n".to_owned();
    }
    let right = [
        "WEIGHT",
        "SHARE",
        "PACKETS",
        "FLOWS",
        "RECORDED",
        "IN PROGRESS",
        "LATENCY",
    ];
    output::table(&header[skipped..], &right, rows)
}

fn row(service: &Service, backend: &Backend) -> [String; 12] {
    let state = match (backend.leaving, backend.state) {
        (true, _) => "leaving",
        (false, Admin::Active) => "active",
        (false, Admin::Draining) => "draining",
    };
    let condition = match (backend.condition, backend.reachable) {
        (Condition::Starting, _) => "starting",
        (Condition::Down, _) => "down",
        (Condition::Up, true) => "up",
        (Condition::Up, false) => "up, no route",
    };
    [
        service.id.to_string(),
        backend.address.to_string(),
        backend.weight.to_string(),
        state.to_owned(),
        condition.to_owned(),
        output::percent(backend.slots, service.ring_size),
        backend.traffic.packets.to_string(),
        backend.traffic.flows.to_string(),
        backend.recorded.to_string(),
        in_progress(backend),
        output::micros(backend.latency_us),
        backend.last_error.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// Flows in progress and their limit, where there are such.
fn in_progress(backend: &Backend) -> String {
    match (backend.connections, backend.max_connections) {
        (Some(now), Some(most)) => format!("{now}/{most}"),
        (Some(now), None) => now.to_string(),
        (None, Some(most)) => format!("-/{most}"),
        (None, None) => "-".to_owned(),
    }
}
