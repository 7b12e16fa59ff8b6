//! `lbctl events`.

use std::time::{Duration, UNIX_EPOCH};

use crate::{
    args::{self, Output},
    failure::Failure,
    output, patience,
};
use lb_userspace::{
    api::{
        client::Client,
        dto::{Event, EventKind, EventQuery, Events},
    },
    model::name_of,
};

/// How often new ones are asked for.
const LOOK: Duration = Duration::from_millis(500);

/// Shows events; goes on for ever if that is wanted.
pub async fn run(client: &Client, args: &args::Events, output: Output) -> Result<String, Failure> {
    let mut query = EventQuery {
        service: args.service,
        after: None,
        epoch: None,
        limit: Some(args.limit),
    };
    let mut list = client.events(&query).await?;
    if !args.follow {
        return match output {
            Output::Json => output::json(&list),
            Output::Table => Ok(lines(&list)),
        };
    }
    query.limit = Some(usize::MAX);
    loop {
        output::print(&match output {
            // One to a line, as they come.
            Output::Json => json_lines(&list)?,
            Output::Table => lines(&list),
        })?;
        (query.after, query.epoch) = (Some(list.last), Some(list.epoch));
        list = patience::until_answered(LOOK, || client.events(&query)).await?;
    }
}

fn lines(list: &Events) -> String {
    let mut text = String::new();
    if list.lost > 0 {
        text += &format!("({} events are kept no more; see the log)\n", list.lost);
    }
    for event in &list.events {
        text += &line(event);
    }
    text
}

fn line(event: &Event) -> String {
    let at = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(event.at_ms));
    let service = event.service;
    let reason = output::printable(&event.reason);
    match (event.backend, event.from, event.to) {
        (Some(backend), Some(from), Some(to)) => format!(
            "{at}  {service}  {backend}  {} -> {}: {reason}\n",
            name_of(from),
            name_of(to)
        ),
        (Some(backend), ..) => format!("{at}  {service}  {backend}  kept out: {reason}\n"),
        _ if matches!(event.kind, EventKind::Panic | EventKind::Conflict) => {
            format!("{at}  {service}  {reason}\n")
        }
        _ => format!("{at}  {service}  new flows: {reason}\n"),
    }
}

fn json_lines(list: &Events) -> Result<String, Failure> {
    let mut text = String::new();
    for event in &list.events {
        text += &serde_json::to_string(event)?;
        text.push('\n');
    }
    Ok(text)
}
