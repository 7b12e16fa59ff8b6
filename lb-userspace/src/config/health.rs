//! `health`, `checks` and `combine` of a service: how its backends are checked.

use std::{collections::BTreeMap, path::PathBuf};

use super::reader::{Located, Section};
use crate::{
    duration,
    model::{Agent, Check, Dns, Exec, Grpc, Health, Http, Probe, Statuses, Tls, Udp},
};

/// Keys that every check has.
const COMMON: &[&str] = &[
    "type",
    "name",
    "port",
    "interval",
    "fast_interval",
    "timeout",
    "jitter",
    "rise",
    "fall",
    "detector",
    "phi_threshold",
    "phi_window",
    "phi_min_std_dev",
];
const TLS: &[&str] = &["server_name", "ca", "insecure"];

/// Keys of one type of check alone.
type Kind = (&'static str, &'static [&'static str]);

const HTTP: &[&str] = &[
    "path",
    "host",
    "method",
    "status",
    "body",
    "headers",
    "expect_headers",
];
const KINDS: [Kind; 12] = [
    ("tcp", &[]),
    ("http", HTTP),
    (
        "https",
        &[
            "path",
            "host",
            "method",
            "status",
            "body",
            "headers",
            "expect_headers",
            "tls",
        ],
    ),
    ("udp", &["payload", "expect"]),
    ("dns", &["query", "record", "answer", "transport"]),
    ("icmp", &[]),
    ("vip", &[]),
    ("grpc", &["service", "tls"]),
    ("exec", &["command"]),
    ("heartbeat", &[]),
    ("agent", &["send", "unreachable"]),
    ("none", &[]),
];

/// How the backends of a service are checked, where the file says so; the default where that is wrong.
pub(super) fn read(service: &Section<'_>) -> Option<Health> {
    let keys: Vec<&str> = KINDS.iter().flat_map(|(_, keys)| *keys).copied().collect();
    let known = [COMMON, &keys].concat();
    let single = service.section("health", &known);
    let several = service.sections("checks", &known);
    let combine = service.choice("combine", "a way to combine checks");
    if let Some(health) = &single
        && service.has("checks")
    {
        let problem = "stands beside checks: move it into that list, or leave one out";
        service.error(health.span(), "health", problem);
        return Some(Health::default());
    }
    if let Some(combine) = &combine
        && !service.has("checks")
    {
        let problem = "combines several checks: write them as checks = [{ type = … }, …]";
        service.error(combine.span(), "combine", problem);
    }
    if several.is_empty() && service.has("checks") {
        return Some(empty(service));
    }
    if !service.has("health") && !service.has("checks") {
        return None;
    }
    let sections: Vec<_> = single.into_iter().chain(several).collect();
    let checks: Option<Vec<Check>> = sections.iter().map(read_check).collect();
    Some(match checks {
        Some(checks) if !checks.is_empty() => Health {
            combine: combine.map(Located::into_inner).unwrap_or_default(),
            checks,
        },
        _ => Health::default(),
    })
}

fn empty(service: &Section<'_>) -> Health {
    if service.is_empty_array("checks") {
        let problem = "is empty: write a check, or health = { type = \"none\" } for none";
        service.error(service.span_of("checks"), "checks", problem);
    }
    Health::default()
}

/// The check in `section`, if all of it is right.
fn read_check(section: &Section<'_>) -> Option<Check> {
    section.require("type", "tcp");
    let kind = section.value("type", |text| {
        let found = KINDS.iter().find(|(name, _)| *name == text);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = KINDS.map(|(name, _)| format!("\"{name}\"")).into();
            format!(
                "`{}` is not a type of check: use {}",
                text.escape_debug(),
                names.join(", ")
            )
        })
    })?;
    let (kind, own) = kind.into_inner();
    let mut right = refuse_others(section, kind, own);
    let probe = read_probe(section, kind);
    let mut check = Check::new(probe?);
    right &= read_common(section, &mut check).is_some();
    if !right {
        return None;
    }
    match check.check() {
        Ok(()) => Some(check),
        Err(wrong) => {
            section.error(section.span_of(wrong.field), wrong.field, wrong.problem);
            None
        }
    }
}

/// Reports keys that belong to other types of checks; whether there are none.
fn refuse_others(section: &Section<'_>, kind: &str, own: &[&str]) -> bool {
    let mut right = true;
    for (key, span) in section.given() {
        if COMMON.contains(&key) || own.contains(&key) {
            continue;
        }
        right = false;
        let of = KINDS.iter().filter(|(_, keys)| keys.contains(&key));
        let of: Vec<_> = of.map(|(name, _)| format!("\"{name}\"")).collect();
        if !of.is_empty() {
            let of = of.join(" or ");
            section.error(
                span,
                key,
                format!("is for type = {of} only, not \"{kind}\""),
            );
        }
    }
    right
}

/// What every check has; nothing where some of it cannot be read.
fn read_common(section: &Section<'_>, check: &mut Check) -> Option<()> {
    check.name = optional(section, "name", |key| section.text(key))?;
    check.port = optional(section, "port", |key| section.integer(key, 1, 65_535))?;
    let time = |key| optional(section, key, |key| section.value(key, duration::parse));
    let count = |key| optional(section, key, |key| section.integer(key, 1, 100));
    let (interval, fast, timeout) = (time("interval"), time("fast_interval"), time("timeout"));
    let (jitter, rise, fall) = (time("jitter"), count("rise"), count("fall"));
    let detector = optional(section, "detector", |key| section.choice(key, "a detector"));
    let number = |key, least, most| optional(section, key, |key| section.integer(key, least, most));
    check.detector = detector?.unwrap_or_default();
    check.phi_threshold = number("phi_threshold", 1, 100)?;
    check.phi_window = number("phi_window", 10, 1_000)?;
    check.phi_min_std_dev = time("phi_min_std_dev")?;
    check.interval = interval?.unwrap_or(check.interval);
    check.fast_interval = fast?;
    check.timeout = timeout?.unwrap_or(check.timeout);
    check.jitter = jitter?.unwrap_or(check.jitter);
    check.rise = rise?.unwrap_or(check.rise);
    check.fall = fall?.unwrap_or(check.fall);
    Some(())
}

/// The value of `key` if it is there: the outer one is nothing where it is wrong.
fn optional<T>(
    section: &Section<'_>,
    key: &str,
    read: impl FnOnce(&str) -> Option<Located<T>>,
) -> Option<Option<T>> {
    match read(key) {
        Some(value) => Some(Some(value.into_inner())),
        None if section.has(key) => None,
        None => Some(None),
    }
}

fn read_probe(section: &Section<'_>, kind: &str) -> Option<Probe> {
    let text = |key| optional(section, key, |key| section.text(key));
    Some(match kind {
        "none" => Probe::None {},
        "http" => Probe::Http(read_http(section)?),
        "https" => Probe::Https(read_http(section)?),
        "udp" => Probe::Udp(Udp {
            payload: text("payload")?.unwrap_or_default(),
            expect: text("expect")?,
        }),
        "dns" => Probe::Dns(read_dns(section)?),
        "icmp" => Probe::Icmp {},
        "vip" => Probe::Vip {},
        "grpc" => Probe::Grpc(Grpc {
            service: text("service")?.unwrap_or_default(),
            tls: read_tls(section)?,
        }),
        "exec" => {
            if !section.has("command") {
                let problem = "missing: write command = [\"/path/of/program\", \"argument\"]";
                section.error(section.span(), "command", problem);
                return None;
            }
            let command = section.all_strings("command")?;
            let command = command.iter().map(|word| (*word.get_ref()).to_owned());
            Probe::Exec(Exec {
                command: command.collect(),
            })
        }
        "heartbeat" => Probe::Heartbeat {},
        "agent" => Probe::Agent(Agent {
            send: text("send")?,
            unreachable: section
                .choice("unreachable", "what unreachable can be")
                .map_or_else(
                    || (!section.has("unreachable")).then(Default::default),
                    |given| Some(given.into_inner()),
                )?,
        }),
        _ => Probe::Tcp {},
    })
}

fn read_http(section: &Section<'_>) -> Option<Http> {
    let default = Http::default();
    let text = |key| optional(section, key, |key| section.text(key));
    let method = optional(section, "method", |key| section.choice(key, "a method"));
    let statuses = section.all_strings("status")?;
    let mut status = Vec::new();
    for given in &statuses {
        match given.get_ref().parse::<Statuses>() {
            Ok(statuses) => status.push(statuses),
            Err(problem) => {
                section.error(given.span(), "status", problem);
                return None;
            }
        }
    }
    Some(Http {
        path: text("path")?.unwrap_or(default.path),
        host: text("host")?,
        method: method?.unwrap_or_default(),
        status: if section.has("status") {
            status
        } else {
            default.status
        },
        body: text("body")?,
        headers: read_pairs(section, "headers"),
        expect_headers: read_pairs(section, "expect_headers"),
        tls: read_tls(section)?,
    })
}

fn read_pairs(section: &Section<'_>, key: &str) -> BTreeMap<String, String> {
    let pairs = section.pairs(key).into_iter();
    pairs
        .map(|(name, value)| (name.to_owned(), value.get_ref().to_string()))
        .collect()
}

/// The outer option is nothing where it is wrong.
fn read_tls(section: &Section<'_>) -> Option<Option<Tls>> {
    if !section.has("tls") {
        return Some(None);
    }
    let tls = section.section("tls", TLS)?;
    let text = |key| optional(&tls, key, |key| tls.text(key));
    let insecure = optional(&tls, "insecure", |key| tls.boolean(key));
    Some(Some(Tls {
        server_name: text("server_name")?,
        ca: text("ca")?.map(PathBuf::from),
        insecure: insecure?.unwrap_or(false),
    }))
}

fn read_dns(section: &Section<'_>) -> Option<Dns> {
    section.require("query", "example.org");
    let text = |key| optional(section, key, |key| section.text(key));
    let transport = optional(section, "transport", |key| {
        section.choice(key, "a transport")
    });
    Some(Dns {
        query: text("query")??,
        record: text("record")?.unwrap_or_else(|| "A".to_owned()),
        answer: text("answer")?,
        transport: transport?.unwrap_or_default(),
    })
}

/// Reads a check by itself, written as the value of `checks` would be: `{ type = "tcp", port = 80 }`.
///
/// # Errors
/// What is wrong with it, a line for each mistake.
pub fn parse_check(text: &str) -> Result<Check, String> {
    let document = format!("check = {text}");
    let report = super::Report::new("", &document);
    let (table, syntax) = toml::de::DeTable::parse_recoverable(&document);
    if let Some(error) = syntax.first() {
        return Err(format!(
            "`{text}` is not a check, such as {{ type = \"http\", path = \"/health\" }}: {}",
            error.message()
        ));
    }
    let keys: Vec<&str> = KINDS.iter().flat_map(|(_, keys)| *keys).copied().collect();
    let root = Section::root(table.get_ref(), &["check"], &report);
    let section = root.section("check", &[COMMON, &keys].concat());
    let check = section.as_ref().and_then(read_check);
    let problems: Vec<String> = report
        .into_errors()
        .into_iter()
        .map(|error| format!("{}: {}", error.key, error.problem))
        .collect();
    match check {
        Some(check) if problems.is_empty() => Ok(check),
        _ => Err(problems.join("; ")),
    }
}
