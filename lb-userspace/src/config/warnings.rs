//! What is allowed in a configuration and yet probably not meant.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Limits,
    reader::{Located, Report},
};
use crate::model::{Check, OnDown, Probe, Protocol, Service, Unreachable, name_of};

/// A TCP connection that loses packets may be silent for this long between two attempts to send
/// (Linux: `TCP_RTO_MAX` is 120 s, and the backoff reaches 51 s at the eighth).
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// The warnings about `services`, each with its place.
pub(super) fn of(
    services: &[Located<Service>],
    limits: Limits,
    report: &Report<'_>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for located in services {
        let service = located.get_ref();
        let place = report.place(located.span().start);
        let problems = pool(service)
            .into_iter()
            .chain(check(service))
            .chain(flows(service, limits))
            .chain(clients(service))
            .chain(subsets(service))
            .chain([quic(service)])
            .flatten();
        for problem in problems {
            warnings.push(format!("{place}: service {}: {problem}", service.id));
        }
    }
    warnings
}

fn pool(service: &Service) -> [Option<String>; 3] {
    let backends = &service.backends;
    let weightless = !backends.is_empty() && backends.iter().all(|b| b.weight == 0);
    // Weight 0 is heeded by every scheduler.
    let mut weights = backends.iter().map(|b| b.weight).filter(|w| *w > 0);
    let first = weights.next();
    let unequal = weights.any(|weight| Some(weight) != first);
    let scheduler = name_of(service.scheduler);
    [
        backends
            .is_empty()
            .then(|| "has no backends: its packets are dropped".to_owned()),
        weightless.then(|| "all weights are 0: no backend takes new flows".to_owned()),
        (unequal && service.scheduler.ignores_weights()).then(|| {
            format!("scheduler \"{scheduler}\" leaves weights aside: use \"weighted-{scheduler}\"")
        }),
    ]
}

/// Subsets that nobody is of, or nobody is led to.
fn subsets(service: &Service) -> Vec<Option<String>> {
    let subsets = service.subsets();
    if service.backends.is_empty() || !service.is_split() {
        return Vec::new();
    }
    let empty = |(number, name): (usize, &&str)| {
        let instead = match number {
            0 => "all backends",
            _ => "those of the default one",
        };
        (!subsets.has_backends(number))
            .then(|| format!("no backend is of subset {name}: its clients go to {instead}"))
    };
    let mut warnings: Vec<_> = subsets.names().iter().enumerate().map(empty).collect();
    let named = service.backends.iter().flat_map(|b| &b.subsets);
    let named: BTreeSet<&str> = named.map(String::as_str).collect();
    let unrouted = named.iter().filter(|name| !subsets.names().contains(name));
    warnings.extend(unrouted.map(|name| {
        Some(format!("no source_route leads to subset {name}: give it one, or leave it out of the backends' subsets"))
    }));
    warnings
}

fn check(service: &Service) -> Vec<Option<String>> {
    let unchecked = service.health.is_none();
    let keeps = service.on_down() == OnDown::Keep;
    let mut warnings = vec![
        (unchecked && service.on_down.is_some()).then(|| {
            "on_down has no effect, since health.type = \"none\" finds nothing down".to_owned()
        }),
        (keeps && !unchecked && service.dead_after.is_zero()).then(|| {
            "dead_after 0 makes every backend that is down dead, which moves the flows that on_down = \"keep\" would keep".to_owned()
        }),
        (unchecked && !service.flap_damping.is_off()).then(|| {
            "flap_damping has no effect, since health.type = \"none\" finds nothing down".to_owned()
        }),
        (unchecked && service.panic_below > 0).then(|| {
            "panic_below has no effect, since health.type = \"none\" finds nothing down".to_owned()
        }),
        unheard(service).then(|| {
            "its agents are its only check, and one that does not answer changes nothing: add a check, or set unreachable = \"fail\"".to_owned()
        }),
    ];
    let checks = service.health.checks.iter().zip(service.health.names());
    warnings.extend(checks.map(|(check, name)| one(service, check, &name)));
    warnings
}

/// Whether a backend that is gone goes unnoticed.
fn unheard(service: &Service) -> bool {
    service.health.checks.iter().all(|check| {
        matches!(&check.probe, Probe::Agent(agent) if agent.unreachable == Unreachable::Keep)
    })
}

fn one(service: &Service, check: &Check, name: &str) -> Option<String> {
    let by_tcp = matches!(
        check.probe,
        Probe::Tcp {} | Probe::Http(_) | Probe::Https(_) | Probe::Grpc(_)
    );
    if service.id.protocol != Protocol::Tcp && by_tcp && check.port.is_none() {
        let protocol = service.id.protocol.to_string().to_uppercase();
        return Some(format!(
            "is {protocol}, but its check \"{name}\" connects to the backends' port by TCP: set its port, or another type"
        ));
    }
    let tls = check.probe.tls()?;
    tls.insecure.then(|| {
        format!("check \"{name}\" takes any certificate: name the one to trust by tls.ca instead")
    })
}

fn quic(service: &Service) -> Option<String> {
    let limited = service.backends.iter().any(|b| b.max_connections.is_some());
    let counted = limited || service.scheduler.counts_connections();
    (service.quic.is_some() && counted).then(|| {
        format!(
            "is QUIC, whose connections go by their connection ids and are not recorded: {} counts each only for moving_time after it began",
            if limited { "max_connections".to_owned() } else { format!("scheduler \"{}\"", name_of(service.scheduler)) }
        )
    })
}

fn clients(service: &Service) -> [Option<String>; 1] {
    let unused = service.persistence_prefix.is_some() && service.persistence.is_zero();
    [unused.then(|| {
        "persistence_prefix has no effect without persistence: set that, such as \"5m\"".to_owned()
    })]
}

fn flows(service: &Service, limits: Limits) -> [Option<String>; 3] {
    let moving_time = service.moving_time();
    let stateless = moving_time.is_zero();
    let short = service.id.protocol == Protocol::Tcp && !stateless && moving_time < LONGEST_SILENCE;
    let asked: u64 = service
        .backends
        .iter()
        .filter_map(|b| b.max_connections.map(u64::from))
        .sum();
    [
        (stateless && service.on_down == Some(OnDown::Keep)).then(|| {
            "on_down = \"keep\" has no effect, since moving_time 0 keeps no record of flows"
                .to_owned()
        }),
        short.then(|| {
            format!(
                "moving_time {} is shorter than a TCP connection may be silent while it loses packets: 1m or more",
                humantime::format_duration(moving_time)
            )
        }),
        (asked > u64::from(limits.flows)).then(|| {
            format!(
                "max_connections add up to {asked}, but no more than limits.flows = {} can be recorded: raise it",
                limits.flows
            )
        }),
    ]
}
