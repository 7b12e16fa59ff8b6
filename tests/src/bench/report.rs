//! Shows figures: a table for people, JSON for machines. What either says is decided here alone.

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::{
    checks,
    measure::{Measured, Spread},
    scenario::Scenario,
};

/// For whom figures are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// People.
    Table,
    /// Machines.
    Json,
}

impl Format {
    /// The figures as text.
    ///
    /// # Errors
    /// Never, for figures.
    pub fn show<T: Serialize>(self, figures: &[T], table: fn(&[T]) -> String) -> Result<String> {
        Ok(match self {
            Self::Table => table(figures),
            Self::Json => serde_json::to_string_pretty(figures)?,
        })
    }
}

/// A figure of `bench packet`; its fields are the JSON's.
#[derive(Debug, Serialize)]
pub struct Figure {
    scenario: String,
    mode: &'static str,
    flows: serde_json::Value,
    slots: &'static str,
    ns: Spread,
    noop_ns: f64,
}

impl Figure {
    /// What was measured of a scenario.
    pub fn new(scenario: &Scenario, measured: &Measured) -> Self {
        Self {
            scenario: scenario.name.clone(),
            mode: scenario.mode(),
            flows: match scenario.frame.flows {
                0 => "unbounded".into(),
                flows => flows.into(),
            },
            slots: scenario.slots.name(),
            ns: measured.net,
            noop_ns: measured.noop.median,
        }
    }

    fn row(&self) -> [String; 9] {
        let Self {
            scenario,
            mode,
            flows,
            slots,
            ns,
            noop_ns,
        } = self;
        let whole = |ns: f64| format!("{ns:.0}");
        [
            scenario.clone(),
            (*mode).to_owned(),
            flows.to_string().trim_matches('"').to_owned(),
            (*slots).to_owned(),
            whole(ns.median),
            whole(ns.min),
            whole(ns.max),
            whole(*noop_ns),
            // How much longer than a bare XDP_TX the whole takes.
            format!("{:.1}", (ns.median + noop_ns) / noop_ns.max(1.0)),
        ]
    }
}

/// A figure of `bench control`; its fields are the JSON's.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// What took the time.
    pub scenario: String,
    /// Backends, over all services.
    pub backends: u32,
    /// Slots of rings, over all services.
    pub slots: u32,
    /// Milliseconds, half of the times.
    pub p50_ms: f64,
    /// Milliseconds, 99 of 100 times.
    pub p99_ms: f64,
    /// Milliseconds at most.
    pub max_ms: f64,
}

impl Latency {
    fn row(&self) -> [String; 6] {
        let Self {
            scenario,
            backends,
            slots,
            p50_ms,
            p99_ms,
            max_ms,
        } = self;
        let [p50, p99, max] = [p50_ms, p99_ms, max_ms].map(|ms| format!("{ms:.4}"));
        [
            scenario.clone(),
            backends.to_string(),
            slots.to_string(),
            p50,
            p99,
            max,
        ]
    }
}

/// A table of `bench packet`'s figures.
pub fn packet_table(figures: &[Figure]) -> String {
    let header = [
        "SCENARIO",
        "MODE",
        "FLOWS",
        "SLOTS",
        "NS MEDIAN",
        "MIN",
        "MAX",
        "NO-OP",
        "RATIO",
    ];
    table(&header, figures.iter().map(|figure| figure.row().to_vec()))
}

/// A table of `bench control`'s figures.
pub fn control_table(figures: &[Latency]) -> String {
    let header = [
        "SCENARIO", "BACKENDS", "SLOTS", "P50 MS", "P99 MS", "MAX MS",
    ];
    table(&header, figures.iter().map(|figure| figure.row().to_vec()))
}

/// A table of `bench checks`' figures.
pub fn checks_table(figures: &[checks::Figure]) -> String {
    let header = [
        "SCENARIO",
        "BACKENDS",
        "INTERVAL MS",
        "PROBES",
        "MISSING",
        "LATE P50 MS",
        "P99",
        "MAX",
        "DRIFT MS",
        "CPU %",
    ];
    let row = |figure: &checks::Figure| {
        let ms = |ms: f64| format!("{ms:.2}");
        vec![
            figure.scenario.to_owned(),
            figure.backends.to_string(),
            figure.interval_ms.to_string(),
            figure.probes.to_string(),
            figure.missing.to_string(),
            ms(figure.late_p50_ms),
            ms(figure.late_p99_ms),
            ms(figure.late_max_ms),
            ms(figure.drift_ms),
            format!("{:.0}", figure.cpu_percent),
        ]
    };
    table(&header, figures.iter().map(row))
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenario;

    #[test]
    fn json_has_the_fields_that_are_promised() {
        let spread = Spread::of(vec![1.0, 2.0, 3.0]);
        let measured = Measured {
            net: spread,
            noop: Spread::of(vec![20.0]),
        };
        let scenarios = scenario::all(true);
        let scenario = scenarios
            .iter()
            .find(|scenario| scenario.frame.flows == 0)
            .unwrap();
        let figure = Figure::new(scenario, &measured);
        assert_eq!(
            serde_json::to_value(&figure).unwrap(),
            serde_json::json!({
                "scenario": scenario.name, "mode": scenario.mode(), "flows": "unbounded",
                "slots": scenario.slots.name(), "ns": { "min": 1.0, "median": 2.0, "max": 3.0 },
                "noop_ns": 20.0,
            })
        );
        assert_eq!(figure.row().last().unwrap(), "1.1");
    }
}
