//! `lbctl events`.

use std::{
    io::{self, Write as _},
    time::{Duration, UNIX_EPOCH},
};

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

/// Shows events; goes on if that is wanted, until nobody reads them any more.
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
        let read = output::print(&match output {
            // One to a line, as they come.
            Output::Json => json_lines(&list)?,
            Output::Table => lines(&list),
        })?;
        if !read {
            return Ok(String::new());
        }
        (query.after, query.epoch) = (Some(list.last), Some(list.epoch));
        list = patience::until_answered(LOOK, || client.events(&query)).await?;
    }
}

fn lines(list: &Events) -> String {
    let mut text = String::new();
    if list.lost > 0 {
        text += &format!("({})\n", lost(list));
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

fn lost(list: &Events) -> String {
    format!("{} events are kept no more; see the log", list.lost)
}

fn json_lines(list: &Events) -> Result<String, Failure> {
    let mut text = String::new();
    if list.lost > 0 {
        // Lines are events, and none is left of these.
        let _ = writeln!(io::stderr(), "{}", lost(list));
    }
    for event in &list.events {
        text += &serde_json::to_string(event)?;
        text.push('\n');
    }
    Ok(text)
}
