//! `lbctl service`.

use lb_userspace::{
    api::{
        client::Client,
        dto::{Check, Condition, Health, NewService, Service},
    },
    model,
};

use crate::{
    args::{AddService, HealthArgs, Output, ServiceVerb},
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
            let changed = client.add_service(&new_service(args)).await?;
            match output {
                Output::Json => output::json(&changed),
                Output::Table => Ok(format!(
                    "added service {}{}\n",
                    args.id,
                    with_backends(args)
                )),
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
        0 => ": it has no backends yet, see `lbctl backend add`".to_owned(),
        1 => " with 1 backend".to_owned(),
        count => format!(" with {count} backends"),
    }
}

fn new_service(args: &AddService) -> NewService {
    let HealthArgs {
        check,
        path,
        host,
        port,
        interval,
        timeout,
        rise,
        fall,
    } = args.health.clone();
    NewService {
        id: args.id,
        mode: args.mode.into(),
        ring_size: args.ring_size,
        health: Some(Health {
            check: check.into(),
            path,
            host,
            port,
            interval_ms: interval,
            timeout_ms: timeout,
            rise,
            fall,
        }),
        backends: args.backends.clone(),
    }
}

fn list(services: &[Service]) -> String {
    if services.is_empty() {
        return "no services: `lbctl service add` adds one\n".to_owned();
    }
    let header = [
        "SERVICE", "MODE", "UP", "CHECK", "RING", "PACKETS", "BYTES", "FLOWS",
    ];
    let row = |service: &Service| {
        let all = service.backends.len();
        let up = service
            .backends
            .iter()
            .filter(|b| b.condition != Condition::Down)
            .count();
        vec![
            service.id.to_string(),
            mode(service).to_owned(),
            format!("{up}/{all}"),
            check(&service.health),
            service.ring_size.to_string(),
            service.traffic.packets.to_string(),
            service.traffic.bytes.to_string(),
            service.traffic.flows.to_string(),
        ]
    };
    let rows = services.iter().map(row).collect();
    output::table(&header, &["UP", "RING", "PACKETS", "BYTES", "FLOWS"], rows)
}

fn show(service: &Service) -> String {
    let traffic = &service.traffic;
    let fields = output::fields(&[
        ("service", service.id.to_string()),
        ("mode", mode(service).to_owned()),
        ("ring", format!("{} slots", service.ring_size)),
        ("check", check_in_full(&service.health)),
        (
            "traffic",
            format!(
                "{} packets, {} bytes, {} flows",
                traffic.packets, traffic.bytes, traffic.flows
            ),
        ),
    ]);
    let backends = backend::list(std::slice::from_ref(service), false);
    format!("{fields}\n{backends}")
}

fn mode(service: &Service) -> &'static str {
    match service.mode {
        model::Mode::Nat => "nat",
        model::Mode::Ipip => "ipip",
    }
}

fn check(health: &Health) -> String {
    let kind = match health.check {
        Check::None => "none",
        Check::Tcp => "tcp",
        Check::Http => "http",
    };
    match health.port {
        Some(port) => format!("{kind}:{port}"),
        None => kind.to_owned(),
    }
}

fn check_in_full(health: &Health) -> String {
    if health.check == Check::None {
        return check(health);
    }
    let path = health.path.as_deref().map(|path| format!(" {path}"));
    let host = health.host.as_deref().map(|host| format!(" on {host}"));
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    format!(
        "{}{}{} every {} ms, timeout {} ms, rise {}, fall {}",
        check(health),
        path.unwrap_or_default(),
        host.unwrap_or_default(),
        number(health.interval_ms),
        number(health.timeout_ms),
        number(health.rise.map(Into::into)),
        number(health.fall.map(Into::into)),
    )
}
