//! `lbctl flows`.

use lb_userspace::api::{
    client::Client,
    dto::{self, ClientQuery, Flow, FlowQuery},
};
use serde::Serialize;

use crate::{
    args::{Flows, Output},
    failure::Failure,
    output,
};

/// Lists or counts recorded flows; returns what to print.
pub async fn run(client: &Client, args: &Flows, output: Output) -> Result<String, Failure> {
    if args.clients {
        return clients(client, args, output).await;
    }
    let query = FlowQuery {
        service: args.service,
        backend: args.backend,
        phase: args.phase,
        limit: Some(if args.count { 0 } else { args.limit }),
    };
    let flows = client.flows(&query).await?;
    show(&flows, flows.total, args, output, list)
}

async fn clients(client: &Client, args: &Flows, output: Output) -> Result<String, Failure> {
    let query = ClientQuery {
        service: args.service,
        backend: args.backend,
        limit: Some(if args.count { 0 } else { args.limit }),
    };
    let clients = client.clients(&query).await?;
    show(&clients, clients.total, args, output, list_clients)
}

/// What was found, or how much of it there is.
fn show<T: Serialize>(
    found: &T,
    total: usize,
    args: &Flows,
    output: Output,
    list: impl FnOnce(&T) -> String,
) -> Result<String, Failure> {
    match (output, args.count) {
        (Output::Json, true) => output::json(&Count { total }),
        (Output::Json, false) => output::json(found),
        (Output::Table, true) => Ok(format!("{total}\n")),
        (Output::Table, false) => Ok(list(found)),
    }
}

/// The count in JSON, named as in the list.
#[derive(Serialize)]
struct Count {
    total: usize,
}

fn list(flows: &dto::Flows) -> String {
    if flows.total == 0 {
        return "no recorded flows: slots that are steady need none\n".to_owned();
    }
    let header = [
        "SERVICE", "CLIENT", "BACKEND", "STATE", "PHASE", "IDLE", "AGE",
    ];
    let rows = flows.flows.iter().map(row).collect();
    let mut text = output::table(&header, &["IDLE", "AGE"], rows);
    if flows.flows.len() < flows.total {
        let (shown, total) = (flows.flows.len(), flows.total);
        text += &format!("{shown} of {total} flows; --limit shows more\n");
    }
    text
}

fn row(flow: &Flow) -> Vec<String> {
    let state = match (flow.closing, flow.half_open) {
        (true, _) => "closing",
        (false, true) => "half-open",
        (false, false) => "established",
    };
    let backend = flow.backend.map(|address| address.to_string());
    vec![
        flow.service.to_string(),
        flow.client.to_string(),
        backend.unwrap_or_else(|| "gone".to_owned()),
        state.to_owned(),
        flow.phase.clone(),
        output::millis(flow.idle_ms),
        output::millis(flow.age_ms),
    ]
}

fn list_clients(clients: &dto::Clients) -> String {
    if clients.total == 0 {
        return "no remembered clients: services without persistence have none\n".to_owned();
    }
    let header = ["SERVICE", "CLIENT", "BACKEND", "STATE", "IDLE", "LEFT"];
    let row = |client: &dto::Client| {
        vec![
            client.service.to_string(),
            client.client.clone(),
            client.backend.to_string(),
            if client.half_open {
                "half-open"
            } else {
                "established"
            }
            .to_owned(),
            output::millis(client.idle_ms),
            output::millis(client.left_ms),
        ]
    };
    let rows = clients.clients.iter().map(row).collect();
    let mut text = output::table(&header, &["IDLE", "LEFT"], rows);
    if clients.clients.len() < clients.total {
        let (shown, total) = (clients.clients.len(), clients.total);
        text += &format!("{shown} of {total} clients; --limit shows more\n");
    }
    text
}
