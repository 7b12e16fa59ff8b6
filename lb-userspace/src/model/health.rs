//! How backends are checked: kinds of checks, their rhythm, and how several make one verdict. What
//! makes them valid is `check_health`'s; what is asked on the wire is [`crate::health::probe`]'s.
//!
//! These types are also what the API speaks and the store keeps.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Detector, millis};

/// Checks of one service at most.
pub const MAX_CHECKS: usize = 8;

/// How the backends of a service are checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// How the checks make one verdict.
    #[serde(default)]
    pub combine: Combine,
    /// The checks, one at least. A single one of [`Probe::None`] checks nothing.
    pub checks: Vec<Check>,
}

/// How several checks of a backend make one verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// Down once one check fails.
    #[default]
    All,
    /// Up while one check passes.
    Any,
}

/// One check. In requests, what is absent has its default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Check {
    /// What it is called in answers and metrics; by its type where absent: [`Health::names`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is asked.
    #[serde(flatten)]
    pub probe: Probe,
    /// Port probed instead of the backend's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From the start of one probe to the start of the next, in milliseconds.
    #[serde(rename = "interval_ms", with = "millis", default = "default_interval")]
    pub interval: Duration,
    /// The same while the last probes speak against the condition, in milliseconds.
    #[serde(
        default,
        rename = "fast_interval_ms",
        with = "millis::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub fast_interval: Option<Duration>,
    /// A probe without an answer for this long has failed, in milliseconds; at most the interval.
    #[serde(rename = "timeout_ms", with = "millis", default = "default_timeout")]
    pub timeout: Duration,
    /// How much later than its turn a probe may start, at random, in milliseconds.
    #[serde(
        rename = "jitter_ms",
        with = "millis",
        default,
        skip_serializing_if = "Duration::is_zero"
    )]
    pub jitter: Duration,
    /// Successes in a row after which a down backend is up.
    #[serde(default = "default_rise")]
    pub rise: u32,
    /// Failures in a row after which an up backend is down.
    #[serde(default = "default_fall")]
    pub fall: u32,
    /// How it tells what is late.
    #[serde(default, skip_serializing_if = "Detector::is_count")]
    pub detector: Detector,
    /// [`Phi::threshold`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phi_threshold: Option<u32>,
    /// [`Phi::window`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phi_window: Option<u32>,
    /// [`Phi::min_std_dev`], in milliseconds.
    #[serde(
        default,
        rename = "phi_min_std_dev_ms",
        with = "millis::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub phi_min_std_dev: Option<Duration>,
}

fn default_interval() -> Duration {
    Duration::from_secs(1)
}

fn default_timeout() -> Duration {
    Duration::from_millis(500)
}

fn default_rise() -> u32 {
    2
}

fn default_fall() -> u32 {
    3
}

/// What a check asks. Variants without settings have braces, so that serde refuses fields there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// Never probed: always up.
    None {},
    /// A TCP connection is accepted.
    Tcp {},
    /// An HTTP request is answered as expected.
    Http(Http),
    /// The same over TLS.
    Https(Http),
    /// A datagram is answered as expected.
    Udp(Udp),
    /// A DNS query is answered.
    Dns(Dns),
    /// An ICMP echo request is answered.
    Icmp {},
    /// A TCP connection to the VIP is accepted, or, of a service of another protocol, an echo request to it answered, asked for by
    /// the way that traffic goes.
    Vip {},
    /// `grpc.health.v1.Health/Check` answers SERVING.
    Grpc(Grpc),
    /// A program ends with status 0.
    Exec(Exec),
    /// The backend reports by itself, every interval.
    Heartbeat {},
    /// The backend is asked how it is, in HAProxy's agent-check protocol.
    Agent(Agent),
}

/// What an HTTP check asks, and which answer is right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The path, starting with `/`.
    #[serde(default = "root")]
    pub path: String,
    /// The Host header; the backend's address where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The request's method.
    #[serde(default, skip_serializing_if = "Method::is_get")]
    pub method: Method,
    /// Statuses that are right.
    #[serde(default = "good_statuses", skip_serializing_if = "are_good")]
    pub status: Vec<Statuses>,
    /// A regular expression that the body must match, within its first 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Further headers of the request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Headers that the answer must have, and a regular expression that the value of each must match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expect_headers: BTreeMap<String, String>,
    /// How the server is verified; for type `https` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

fn root() -> String {
    "/".to_owned()
}

fn good_statuses() -> Vec<Statuses> {
    vec![Statuses::GOOD]
}

fn are_good(statuses: &[Statuses]) -> bool {
    *statuses == [Statuses::GOOD]
}

impl Default for Http {
    fn default() -> Self {
        Self {
            path: root(),
            host: None,
            method: Method::default(),
            status: good_statuses(),
            body: None,
            headers: BTreeMap::new(),
            expect_headers: BTreeMap::new(),
            tls: None,
        }
    }
}

/// Method of an HTTP check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
pub enum Method {
    /// GET
    #[default]
    Get,
    /// HEAD
    Head,
    /// OPTIONS
    Options,
}

impl Method {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_get(&self) -> bool {
        *self == Self::Get
    }
}

/// HTTP statuses from `first` to `last`, written `200` or `200-399`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Statuses {
    /// The first that is right.
    pub first: u16,
    /// The last that is right.
    pub last: u16,
}

impl Statuses {
    /// What counts as good unless said otherwise.
    pub const GOOD: Self = Self {
        first: 200,
        last: 399,
    };

    /// Whether `status` is among them.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| {
            let number = text.trim().parse().ok();
            number.filter(|status| (100..=599).contains(status))
        };
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!(
                "`{}` is not an HTTP status: write \"200\" or \"200-399\", within 100 to 599",
                text.escape_debug()
            )),
        }
    }
}

impl TryFrom<String> for Statuses {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl From<Statuses> for String {
    fn from(statuses: Statuses) -> Self {
        statuses.to_string()
    }
}

/// How a TLS server is verified.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Name that is asked for (SNI) and that the certificate must bear; the Host header's where absent, and
    /// else the backend's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// File with the certificates that are trusted, in PEM; the system's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Whether any certificate will do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}

/// What a UDP check sends, and which answer is right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// The datagram: text, or `hex:` and hexadecimal digits.
    #[serde(default)]
    pub payload: String,
    /// A regular expression that the answer must match; any answer is right where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
}

impl Udp {
    /// The datagram's bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        let Some(digits) = self.payload.strip_prefix("hex:") else {
            return Ok(self.payload.clone().into_bytes());
        };
        let wrong = || format!("`{digits}` is not pairs of hexadecimal digits, as in hex:00ff");
        let digits: Option<Vec<u8>> = digits
            .chars()
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0);
        let pairs = digits.ok_or_else(wrong)?;
        Ok(pairs.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
    }
}

/// What a DNS check asks for. Right is an answer without an error that has a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// The name.
    pub query: String,
    /// The type of record, such as `A` or `SOA`.
    #[serde(default = "a_record")]
    pub record: String,
    /// A record that must be among the answers, as its text, such as `192.0.2.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// By datagram or connection.
    #[serde(default)]
    pub transport: Transport,
}

fn a_record() -> String {
    "A".to_owned()
}

/// What a DNS query goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A datagram
    #[default]
    Udp,
    /// A connection
    Tcp,
}

/// What a gRPC check asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    /// Service that must be SERVING; the server as a whole where empty.
    #[serde(default)]
    pub service: String,
    /// How the server is verified; without TLS where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// The program that an exec check runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Its path and its arguments; no shell sees them.
    pub command: Vec<String>,
}

/// How a backend's agent is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Sent once connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// What it means that the agent does not answer.
    #[serde(default)]
    pub unreachable: Unreachable,
}

/// What it means that an agent does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unreachable {
    /// Nothing: what it said last stays, as with HAProxy.
    #[default]
    Keep,
    /// A failure.
    Fail,
}

impl Probe {
    /// A TCP check.
    pub const TCP: Self = Self::Tcp {};
    /// No check.
    pub const NONE: Self = Self::None {};

    /// Its type, as the configuration names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None {} => "none",
            Self::Tcp {} => "tcp",
            Self::Http(_) => "http",
            Self::Https(_) => "https",
            Self::Udp(_) => "udp",
            Self::Dns(_) => "dns",
            Self::Icmp {} => "icmp",
            Self::Vip {} => "vip",
            Self::Grpc(_) => "grpc",
            Self::Exec(_) => "exec",
            Self::Heartbeat {} => "heartbeat",
            Self::Agent(_) => "agent",
        }
    }

    /// How its server is verified, where there is TLS.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Https(Http { tls, .. }) | Self::Grpc(Grpc { tls, .. }) => tls.as_ref(),
            _ => None,
        }
    }
}

impl Check {
    /// A check of that kind, with the default rhythm and thresholds.
    pub fn new(probe: Probe) -> Self {
        Self {
            name: None,
            probe,
            port: None,
            interval: default_interval(),
            fast_interval: None,
            timeout: default_timeout(),
            jitter: Duration::ZERO,
            rise: default_rise(),
            fall: default_fall(),
            detector: Detector::default(),
            phi_threshold: None,
            phi_window: None,
            phi_min_std_dev: None,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Check::new(Probe::TCP).into()
    }
}

impl From<Check> for Health {
    fn from(check: Check) -> Self {
        Self {
            combine: Combine::default(),
            checks: vec![check],
        }
    }
}

impl Health {
    /// No checks: always up.
    pub fn none() -> Self {
        Check::new(Probe::NONE).into()
    }

    /// Whether nothing is checked.
    pub fn is_none(&self) -> bool {
        self.checks.iter().all(|check| check.probe == Probe::NONE)
    }

    /// Whether backends report by themselves.
    pub fn expects_beats(&self) -> bool {
        let mut probes = self.checks.iter().map(|check| &check.probe);
        probes.any(|probe| *probe == Probe::Heartbeat {})
    }

    /// Whether probes go the way that traffic does.
    pub(super) fn probes_vip(&self) -> bool {
        let mut probes = self.checks.iter().map(|check| &check.probe);
        probes.any(|probe| *probe == Probe::Vip {})
    }

    /// What each check is called: its name, or its type, with a number from the second of its kind on.
    pub fn names(&self) -> Vec<String> {
        let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
        let name = |check: &Check| {
            let kind = check.probe.kind();
            let nth = seen.entry(kind).or_default();
            *nth += 1;
            match (&check.name, *nth) {
                (Some(name), _) => name.clone(),
                (None, 1) => kind.to_owned(),
                (None, nth) => format!("{kind}-{nth}"),
            }
        };
        self.checks.iter().map(name).collect()
    }
}
