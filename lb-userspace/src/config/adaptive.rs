//! `adaptive` of a service: what its backends' weights follow.

use super::reader::{Located, Section};
use crate::{
    duration,
    model::{Adaptive, Signal, name_of},
};

const ADAPTIVE: &[&str] = &[
    "from",
    "least",
    "most",
    "dead_band",
    "unsteady",
    "interval",
    "latency_floor",
];

/// What a service's section says of it, if anything; the inner one is nothing where that is wrong.
pub(super) fn read(service: &Section<'_>) -> Option<Option<Adaptive>> {
    if !service.has("adaptive") {
        return None;
    }
    let section = service.section("adaptive", ADAPTIVE);
    Some(section.as_ref().and_then(read_section))
}

/// What the values may be is the model's to say.
fn read_section(section: &Section<'_>) -> Option<Adaptive> {
    if !section.has("from") {
        let problem = "missing: write from = [\"latency\"], \"handshake\", \"flows\" or \"agent\", or several";
        section.error(section.span(), "from", problem);
        return None;
    }
    let names = section.all_strings("from")?;
    let signals: Option<Vec<Signal>> = names.iter().map(|name| signal(section, name)).collect();
    let default = Adaptive::by(signals?);
    let percent = |key| section.integer(key, 1, 100).map(Located::into_inner);
    let most = section.integer("most", 100, 1_000).map(Located::into_inner);
    let time = |key| section.value(key, duration::parse);
    let time = |key| time(key).map(Located::into_inner);
    let adaptive = Adaptive {
        from: default.from,
        least: percent("least").map(u16::from).unwrap_or(default.least),
        most: most.unwrap_or(default.most),
        dead_band: percent("dead_band").unwrap_or(default.dead_band),
        unsteady: percent("unsteady").unwrap_or(default.unsteady),
        interval: time("interval").unwrap_or(default.interval),
        latency_floor: time("latency_floor").unwrap_or(default.latency_floor),
    };
    Some(adaptive)
}

fn signal(section: &Section<'_>, name: &Located<&str>) -> Option<Signal> {
    let known = [
        Signal::Latency,
        Signal::Handshake,
        Signal::Flows,
        Signal::Agent,
    ];
    let found = known
        .into_iter()
        .find(|&signal| name_of(signal) == *name.get_ref());
    if found.is_none() {
        let problem = format!(
            "`{}` is nothing that weights can follow: use \"latency\", \"handshake\", \"flows\" or \"agent\"",
            name.get_ref().escape_debug()
        );
        section.error(name.span(), "from", problem);
    }
    found
}

/// Reads it by itself, written as in the configuration: `{ from = ["latency"] }`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_adaptive(text: &str) -> Result<Adaptive, String> {
    let document = format!("adaptive = {text}");
    let report = super::Report::new("", &document);
    let (table, syntax) = toml::de::DeTable::parse_recoverable(&document);
    if let Some(error) = syntax.first() {
        return Err(format!(
            "`{text}` says not what weights follow, such as {{ from = [\"latency\"] }}: {}",
            error.message()
        ));
    }
    let read = read(&Section::root(table.get_ref(), &["adaptive"], &report)).flatten();
    let errors = report.into_errors().into_iter();
    let problems: Vec<String> = errors
        .map(|error| format!("{}: {}", error.key, error.problem))
        .collect();
    match read {
        Some(adaptive) if problems.is_empty() => Ok(adaptive),
        _ => Err(problems.join("; ")),
    }
}
