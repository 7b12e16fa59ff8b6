//! What makes a service's checks valid. Pure: files and programs that they name are not looked at.

use std::{collections::HashSet, str::FromStr as _, time::Duration};

use hickory_proto::rr::{Name, RecordType};
use hyper::header::{HeaderName, HeaderValue};
use regex::bytes::Regex;

use super::{
    Agent, Check, Dns, Exec, Health, Http, MAX_CHECKS, Method, ModelError, Probe, ServiceId, Tls,
    Udp,
};

/// Largest payload that a datagram carries over a link of 1500 bytes, unfragmented.
const MAX_PAYLOAD: usize = 1_400;

/// What is wrong with a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckProblem {
    /// Which of its keys, as the configuration names them, with a dot before those of a table in it.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

pub(super) type Checked = Result<(), CheckProblem>;

pub(super) fn wrong(field: &'static str, problem: impl Into<String>) -> Checked {
    let problem = problem.into();
    Err(CheckProblem { field, problem })
}

impl Health {
    pub(super) fn check(&self, id: ServiceId) -> Result<(), ModelError> {
        let invalid = |problem| {
            let field = "checks";
            Err(ModelError::Invalid { id, field, problem })
        };
        let count = self.checks.len();
        if count == 0 || count > MAX_CHECKS {
            return invalid(format!(
                "{count} are out of range: 1 to {MAX_CHECKS}; type \"none\" checks nothing"
            ));
        }
        if count > 1 && self.checks.iter().any(|c| c.probe == Probe::NONE) {
            return invalid("type \"none\" stands alone: leave it out, or the others".to_owned());
        }
        for kind in [
            Probe::Heartbeat {}.kind(),
            Probe::Agent(Agent::default()).kind(),
        ] {
            let of_kind = |check: &&Check| check.probe.kind() == kind;
            if self.checks.iter().filter(of_kind).count() > 1 {
                return invalid(format!(
                    "two are of type \"{kind}\": a backend has one at most"
                ));
            }
        }
        let mut seen = HashSet::new();
        for (check, name) in self.checks.iter().zip(self.names()) {
            check.check().map_err(|wrong| ModelError::InvalidCheck {
                id,
                check: name.clone(),
                field: wrong.field,
                problem: wrong.problem,
            })?;
            if let Some(name) = seen.replace(name) {
                return invalid(format!(
                    "two are called `{name}`: give each a name of its own"
                ));
            }
        }
        Ok(())
    }
}

impl Check {
    /// Whether it can be carried out.
    ///
    /// # Errors
    /// The first key that is out of range or does not fit the others.
    pub fn check(&self) -> Checked {
        self.check_name()?;
        self.check_timing()?;
        self.check_port()?;
        self.check_detector()?;
        match &self.probe {
            Probe::Http(http) if http.tls.is_some() => {
                wrong("tls", "is for type \"https\": write that, or leave it out")
            }
            Probe::Http(http) | Probe::Https(http) => check_http(http),
            Probe::Udp(udp) => check_udp(udp),
            Probe::Dns(dns) => check_dns(dns),
            Probe::Grpc(grpc) => grpc.tls.as_ref().map_or(Ok(()), check_tls),
            Probe::Exec(exec) => check_exec(exec),
            Probe::None {} | Probe::Tcp {} | Probe::Icmp {} | Probe::Vip {} => Ok(()),
            Probe::Heartbeat {} | Probe::Agent(_) => Ok(()),
        }
    }

    fn check_name(&self) -> Checked {
        let Some(name) = &self.name else {
            return Ok(());
        };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if name.is_empty() || name.len() > 32 || !name.chars().all(fits) {
            let name = name.escape_debug();
            return wrong(
                "name",
                format!("`{name}`: use 1 to 32 of a-z, 0-9, -, _ and ."),
            );
        }
        Ok(())
    }

    fn check_timing(&self) -> Checked {
        let bounds = Duration::from_millis(10)..=Duration::from_secs(3_600);
        let interval = self.interval;
        if !bounds.contains(&interval) {
            let problem = format!("{interval:?} is out of range: 10 ms to 1 hour");
            return wrong("interval", problem);
        }
        let shortest = self.fast_interval.unwrap_or(interval).min(interval);
        if let Some(fast) = self.fast_interval
            && !(*bounds.start()..=interval).contains(&fast)
        {
            let problem = format!("{fast:?} is out of range: 10 ms to the interval, {interval:?}");
            return wrong("fast_interval", problem);
        }
        if !(Duration::from_millis(1)..=interval).contains(&self.timeout) {
            let problem = format!(
                "{:?} is out of range: 1 ms to the interval, {interval:?}",
                self.timeout
            );
            return wrong("timeout", problem);
        }
        if self.jitter > shortest / 2 {
            let problem = format!(
                "{:?} is out of range: 0 s to half of the shortest interval, {:?}",
                self.jitter,
                shortest / 2
            );
            return wrong("jitter", problem);
        }
        for (field, count) in [("rise", self.rise), ("fall", self.fall)] {
            if !(1..=100).contains(&count) {
                return wrong(field, format!("{count} is out of range: 1 to 100"));
            }
        }
        Ok(())
    }

    fn check_port(&self) -> Checked {
        let kind = self.probe.kind();
        match (&self.probe, self.port) {
            (_, Some(0)) => wrong("port", "port 0 is not a port: use 1 to 65535"),
            (Probe::Icmp {} | Probe::Heartbeat {} | Probe::None {}, Some(_)) => wrong(
                "port",
                format!("type \"{kind}\" asks no port: leave it out"),
            ),
            (Probe::Agent(_), None) => wrong(
                "port",
                "missing: an agent listens on a port of its own, write port = 9777",
            ),
            _ => Ok(()),
        }
    }
}

fn blank(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

fn check_http(http: &Http) -> Checked {
    if !http.path.starts_with('/') || http.path.contains(blank) {
        let path = http.path.escape_debug();
        return wrong(
            "path",
            format!("`{path}` must start with / and have no blanks"),
        );
    }
    if let Some(host) = &http.host
        && (host.is_empty() || host.contains(blank))
    {
        return wrong(
            "host",
            format!("`{}` is not a host name", host.escape_debug()),
        );
    }
    if http.status.is_empty() {
        return wrong("status", "no status would be right: write [\"200-399\"]");
    }
    if http.method == Method::Head && http.body.is_some() {
        let problem = "an answer to HEAD has none: use method = \"GET\", or leave it out";
        return wrong("body", problem);
    }
    check_pattern("body", http.body.as_deref())?;
    for (name, value) in &http.headers {
        check_header("headers", name)?;
        if HeaderValue::from_str(value).is_err() {
            let value = value.escape_debug();
            return wrong(
                "headers",
                format!("{name}: `{value}` is not a header's value"),
            );
        }
        if ["host", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
            let problem = format!("{name}: is set by the check itself: `host` names the host");
            return wrong("headers", problem);
        }
    }
    for (name, pattern) in &http.expect_headers {
        check_header("expect_headers", name)?;
        check_pattern("expect_headers", Some(pattern))?;
    }
    http.tls.as_ref().map_or(Ok(()), check_tls)
}

fn check_header(field: &'static str, name: &str) -> Checked {
    match HeaderName::from_str(name) {
        Ok(_) => Ok(()),
        Err(_) => wrong(
            field,
            format!("`{}` is not a header's name", name.escape_debug()),
        ),
    }
}

fn check_pattern(field: &'static str, pattern: Option<&str>) -> Checked {
    match pattern.map(Regex::new) {
        Some(Err(regex::Error::CompiledTooBig(limit))) => wrong(
            field,
            format!("takes more than {limit} bytes to match: simplify it"),
        ),
        // What the library says spans lines, and the last says what is wrong.
        Some(Err(error)) => {
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default();
            let why = why.trim_start_matches("error: ");
            wrong(field, format!("is not a regular expression: {why}"))
        }
        Some(Ok(_)) | None => Ok(()),
    }
}

fn check_tls(tls: &Tls) -> Checked {
    if let Some(name) = &tls.server_name
        && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
    {
        let name = name.escape_debug();
        return wrong(
            "tls.server_name",
            format!("`{name}` is not a host name or address"),
        );
    }
    if tls.insecure && tls.ca.is_some() {
        return wrong(
            "tls.insecure",
            "any certificate will do then, and `ca` is not looked at: leave one out",
        );
    }
    match &tls.ca {
        Some(ca) if !ca.is_absolute() => wrong(
            "tls.ca",
            format!("`{}` is not an absolute path", ca.display()),
        ),
        _ => Ok(()),
    }
}

fn check_udp(udp: &Udp) -> Checked {
    match udp.bytes() {
        Err(problem) => return wrong("payload", problem),
        Ok(bytes) if bytes.len() > MAX_PAYLOAD => {
            let problem = format!("{} bytes are too many: at most {MAX_PAYLOAD}", bytes.len());
            return wrong("payload", problem);
        }
        Ok(_) => {}
    }
    check_pattern("expect", udp.expect.as_deref())
}

fn check_dns(dns: &Dns) -> Checked {
    if dns.query.is_empty() || Name::from_ascii(&dns.query).is_err() {
        let query = dns.query.escape_debug();
        return wrong(
            "query",
            format!("`{query}` is not a domain name, such as example.org"),
        );
    }
    if RecordType::from_str(&dns.record).is_err() {
        let record = dns.record.escape_debug();
        return wrong(
            "record",
            format!("`{record}` is not a type of record: use A, AAAA, SOA, NS, TXT or another"),
        );
    }
    Ok(())
}

fn check_exec(exec: &Exec) -> Checked {
    match exec.command.first() {
        None => wrong(
            "command",
            "is empty: write [\"/path/of/program\", \"argument\"]",
        ),
        Some(program) if !program.starts_with('/') => wrong(
            "command",
            format!("`{}` is not an absolute path", program.escape_debug()),
        ),
        Some(_) if exec.command.iter().any(|word| word.contains('\0')) => {
            wrong("command", "has a zero byte, which no argument can")
        }
        Some(_) => Ok(()),
    }
}
