//! What a run says at its end: JSON for machines, a table for people. Owns the form alone.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use serde::Serialize;

use super::{
    account::{Account, Break, Totals},
    driver::{Alarms, Cost},
    flow_state::FlowState,
    metrics::{Peak, SlotsPassed, Watched},
    stage::Size,
};

/// Breaks that the table shows; JSON has more.
const SHOWN: usize = 5;

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// That stood at any time, beside those that were churned.
    pub connections: usize,
    /// Those of them that lived for the whole run.
    pub held: usize,
    /// How long the others lived on average, in seconds: distributed exponentially.
    pub mean_lifetime: f64,
    /// Services and backends.
    #[serde(flatten)]
    pub size: Size,
    /// From one change to the next, in seconds, on average and without bursts.
    pub pace: f64,
    /// Carried out.
    pub changes: u64,
    /// Connections broken although their backend lived.
    pub broken: u64,
    /// Connections broken after their backend was killed.
    pub broken_with_backend: u64,
    /// Connections broken after they had sent nothing for the moving time.
    pub broken_idle: u64,
    /// The most entries of all flow tables together; null without flow tables.
    pub peak_entries: Option<u64>,
    /// The same for each connection that stood then.
    pub peak_share: Option<f64>,
    /// What the live ones among them were for.
    pub peak_uses: BTreeMap<String, u64>,
    /// The share of packets that were looked up in a flow table; null without flow tables.
    pub lookup_share: Option<f64>,
    /// Slots that went through each phase; null without phases.
    pub slots_passed: Option<SlotsPassed>,
    /// Flows that found no room in a flow table; null without flow tables.
    pub overflows: Option<u64>,
    /// From the first connection to the last.
    pub seconds: f64,
    /// Gives the same changes again.
    pub seed: u64,
    /// As asked for.
    pub flow_state: FlowState,
    /// Changes by kind.
    pub changes_by_kind: BTreeMap<&'static str, u64>,
    /// How false alarms went.
    pub false_alarms: Alarms,
    /// Connections greeted by a backend.
    pub opened: u64,
    /// The most that stood at once.
    pub most_open: u64,
    /// Connections closed in order, to be opened again.
    pub churned: u64,
    /// Attempts to connect that failed, by error: mostly at killed backends.
    pub not_opened: BTreeMap<String, u64>,
    /// Answered requests.
    pub echoes: u64,
    /// How long answers took.
    pub echo_ms: Spread,
    /// Processor time.
    pub cpu: Cost,
    /// The broken ones by the last change before.
    pub broken_after: BTreeMap<&'static str, u64>,
    /// The broken ones by what they did and how it went wrong.
    pub broken_how: BTreeMap<String, u64>,
    /// The first broken ones.
    pub breaks: Vec<Break>,
}

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Half are below.
    pub p50: f64,
    /// 99 % are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// What a run was.
#[derive(Debug, Clone)]
pub struct Run {
    /// That stand at any time.
    pub connections: usize,
    /// Those of them that live for the whole run.
    pub held: usize,
    /// Of the others, on average.
    pub lifetime: Duration,
    /// Services and backends.
    pub size: Size,
    /// From one change to the next.
    pub pace: Duration,
    /// Of the plan.
    pub seed: u64,
    /// As asked for.
    pub flow_state: FlowState,
    /// How long it took.
    pub seconds: f64,
    /// How false alarms went.
    pub alarms: Alarms,
    /// Processor time.
    pub cost: Cost,
}

impl Report {
    /// Puts together what is known of a run.
    pub fn new(run: Run, account: &Account, watched: &Watched) -> Self {
        let Totals {
            opened,
            open: _,
            most_open,
            closed,
            echoes,
            broken,
            with_backend,
            idle,
            broken_after,
            broken_how,
            not_opened,
        } = account.totals().clone();
        let changes_by_kind = account.changes_by_kind();
        let peak = watched.peak();
        let how = |((phase, how), count)| (format!("{}: {}", word(&phase), word(&how)), count);
        Self {
            connections: run.connections,
            held: run.held,
            mean_lifetime: run.lifetime.as_secs_f64(),
            size: run.size,
            pace: run.pace.as_secs_f64(),
            changes: changes_by_kind.values().sum(),
            broken,
            broken_with_backend: with_backend,
            broken_idle: idle,
            peak_entries: peak.map(|peak| peak.entries),
            peak_share: peak.and_then(Peak::share),
            peak_uses: peak.map(|peak| peak.uses.clone()).unwrap_or_default(),
            lookup_share: watched.lookup_share(),
            slots_passed: watched.slots_passed(),
            overflows: watched.overflows(),
            seconds: run.seconds,
            seed: run.seed,
            flow_state: run.flow_state,
            changes_by_kind,
            false_alarms: run.alarms,
            opened,
            most_open,
            churned: closed,
            not_opened,
            echoes,
            echo_ms: spread(account),
            cpu: run.cost,
            broken_after,
            broken_how: broken_how.into_iter().map(how).collect(),
            breaks: account.kept().to_vec(),
        }
    }

    /// Whether the contract held, where it was asked for.
    pub fn passed(&self) -> bool {
        self.broken == 0 || self.flow_state == FlowState::RingOnly
    }
}

fn spread(account: &Account) -> Spread {
    let micros = account.latencies();
    let millis = |micros: u64| micros as f64 / 1_000.0;
    Spread {
        p50: millis(micros.value_at_quantile(0.5)),
        p99: millis(micros.value_at_quantile(0.99)),
        max: millis(micros.max()),
    }
}

/// As JSON writes a unit variant.
fn word(value: &impl Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().replace('_', " ")
}

fn listed<K: Display, V: Display>(map: &BTreeMap<K, V>) -> String {
    let items: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key} {value}"))
        .collect();
    match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(", "),
    }
}

fn known(value: Option<impl Display>) -> String {
    value.map_or_else(|| "not known".to_owned(), |value| value.to_string())
}

impl Report {
    fn rows(&self) -> Vec<(&'static str, String)> {
        let cpu = &self.cpu;
        let slots = self.slots_passed.map(|passed| {
            let SlotsPassed {
                moving,
                settling,
                steady,
            } = passed;
            format!("{moving} moving, {settling} settling, {steady} steady")
        });
        let Spread { p50, p99, max } = self.echo_ms;
        let Alarms {
            noticed,
            unnoticed,
            unlisted,
        } = self.false_alarms;
        vec![
            ("broken", self.broken.to_string()),
            ("  after", listed(&self.broken_after)),
            ("  how", listed(&self.broken_how)),
            (
                "broken with their backend",
                self.broken_with_backend.to_string(),
            ),
            (
                "connections",
                format!(
                    "{} at any time (at most {}), {} for the whole run, the others {:.0} s on average",
                    self.connections, self.most_open, self.held, self.mean_lifetime
                ),
            ),
            ("  ended", self.churned.to_string()),
            (
                "services",
                format!("{} of {} backends", self.size.services, self.size.backends),
            ),
            ("not opened", listed(&self.not_opened)),
            (
                "changes",
                format!(
                    "{}, one in {:.1} s: {}",
                    self.changes,
                    self.pace,
                    listed(&self.changes_by_kind)
                ),
            ),
            (
                "false alarms",
                format!("{noticed} noticed, {unnoticed} not, {unlisted} in no service"),
            ),
            ("flow state", word(&self.flow_state)),
            ("peak entries", known(self.peak_entries)),
            (
                "  of connections",
                known(
                    self.peak_share
                        .map(|share| format!("{:.1} %", share * 100.0)),
                ),
            ),
            ("  for", listed(&self.peak_uses)),
            ("overflows", known(self.overflows)),
            (
                "lookup share",
                known(
                    self.lookup_share
                        .map(|share| format!("{:.2} %", share * 100.0)),
                ),
            ),
            ("slots passed", known(slots)),
            (
                "echoes",
                format!(
                    "{}, ms p50 {p50:.2}, p99 {p99:.2}, max {max:.0}",
                    self.echoes
                ),
            ),
            (
                "seconds",
                format!("{:.1} (seed {})", self.seconds, self.seed),
            ),
            (
                "cpu seconds",
                format!(
                    "agent {:.1}, program {:.3} ({} packets), client {:.1}, backends {:.1}",
                    cpu.agent_seconds,
                    cpu.program_seconds,
                    cpu.program_packets,
                    cpu.client_seconds,
                    cpu.backends_seconds
                ),
            ),
        ]
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        for (name, value) in self.rows() {
            table.add_row([name.to_owned(), value]);
        }
        writeln!(f, "{}", table.trim_fmt())?;
        for broken in self.breaks.iter().take(SHOWN) {
            writeln!(f, "{broken}")?;
        }
        Ok(())
    }
}
