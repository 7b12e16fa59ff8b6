//! `lbctl service`.

use lb_userspace::{
    api::{
        client::Client,
        dto::{Check, Condition, EditService, Health, NewService, Service},
    },
    model::{Quic, name_of},
};

use crate::{
    args::{AddService, HealthArgs, Output, Probe, QuicArgs, ServiceVerb, SettingsArgs},
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
        ServiceVerb::Set(args) => {
            let changed = client.edit_service(args.id, &edit(args.settings)).await?;
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
    // Not named at all, it is the group's.
    let health = (args.health != HealthArgs::default()).then(|| Health {
        check: check.unwrap_or(Probe::Tcp).into(),
        path,
        host,
        port,
        interval_ms: interval,
        timeout_ms: timeout,
        rise,
        fall,
    });
    let settings = edit(args.settings);
    NewService {
        id: args.id,
        group: args.group.clone(),
        mode: args.mode,
        ring_size: settings.ring_size,
        scheduler: settings.scheduler,
        flow_state: settings.flow_state,
        on_down: settings.on_down,
        moving_time_ms: settings.moving_time_ms,
        dead_after_ms: settings.dead_after_ms,
        quic: args.quic.map(quic),
        persistence_ms: settings.persistence_ms,
        persistence_prefix: settings.persistence_prefix,
        health,
        backends: args.backends.clone(),
    }
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
        scheduler,
        ring_size,
        flow_state,
        on_down,
        moving_time,
        dead_after,
        persistence,
        persistence_prefix,
    } = args;
    EditService {
        ring_size,
        scheduler,
        flow_state,
        on_down,
        moving_time_ms: moving_time,
        dead_after_ms: dead_after,
        persistence_ms: persistence,
        persistence_prefix,
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
        ("check", check_in_full(&service.health)),
        (
            "traffic",
            format!(
                "{} packets, {} bytes, {} flows",
                traffic.packets, traffic.bytes, traffic.flows
            ),
        ),
    ];
    if let Some(quic) = &service.quic {
        fields.push(("quic", connection_ids(quic, service.flows.named)));
    }
    let fields = output::fields(&fields);
    let backends = backend::list(std::slice::from_ref(service), false);
    format!("{fields}\n{backends}")
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
