//! What is allowed in a configuration and yet probably not meant.

use super::reader::{Located, Report};
use crate::model::{Probe, Protocol, Service};

/// The warnings about `services`, each with its place.
pub(super) fn of(services: &[Located<Service>], report: &Report<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    for located in services {
        let service = located.get_ref();
        let place = report.place(located.span().start);
        for problem in about(service) {
            warnings.push(format!("{place}: service {}: {problem}", service.id));
        }
    }
    warnings
}

fn about(service: &Service) -> impl Iterator<Item = &'static str> {
    let empty = service.backends.is_empty();
    let weightless = !empty && service.backends.iter().all(|b| b.weight == 0);
    let udp = service.id.protocol == Protocol::Udp;
    let wrong_port = udp && service.health.probe != Probe::None && service.health.port.is_none();
    [
        (empty, "has no backends: its packets are dropped"),
        (weightless, "all weights are 0: no backend takes new flows"),
        (
            wrong_port,
            "is UDP, but its check connects to the backends' port by TCP: set health.port, or health.type = \"none\"",
        ),
    ]
    .into_iter()
    .filter_map(|(applies, problem)| applies.then_some(problem))
}
