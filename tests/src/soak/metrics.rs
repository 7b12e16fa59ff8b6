//! What the balancer says of its flow tables, from its Prometheus metrics. Owns their names; a
//! figure whose metric is not there is none.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::netns::Namespace;

/// Where the balancer serves them.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_150);

const ENTRIES: &str = "lb_flow_entries";
const RECORDS: &str = "lb_flow_records";
const LOOKUPS: &str = "lb_flow_lookups_total";
const OVERFLOWS: &str = "lb_flow_overflows_total";
const PACKETS: &str = "lb_service_packets_total";
const SLOTS: &str = "lb_slots";
const PASSED: &str = "lb_slots_passed_total";
const PHASES: [&str; 3] = ["moving", "settling", "steady"];

const ANSWER: Duration = Duration::from_secs(5);

/// Asks the balancer for its metrics.
///
/// # Errors
/// It does not answer.
pub fn scrape(balancer: &Namespace) -> Result<String> {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: lbd\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, page) = answer.split_once("\r\n\r\n").context("it breaks off")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "it answers `{status}`");
        Ok(page.to_owned())
    };
    balancer.run(ask).context("asking lbd for its metrics")
}

/// Whether there are slots, and every one of them is steady.
pub fn are_steady(page: &str) -> bool {
    let slots = page.lines().filter_map(Sample::read);
    let slots = slots.filter(|sample| sample.name == SLOTS && sample.value > 0.0);
    let mut phases = slots.map(|sample| sample.label("phase")).peekable();
    phases.peek().is_some() && phases.all(|phase| phase == Some("steady"))
}

/// A value and its labels, as they are written.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    /// Reads a line of the text format; nothing where it is a comment.
    fn read(line: &'a str) -> Option<Self> {
        // Label values may hold blanks: the value follows the closing brace, if there is one.
        let (name, labels, value) = match line.split_once('{') {
            Some((name, rest)) => {
                let (labels, value) = rest.rsplit_once('}')?;
                (name, labels, value)
            }
            None => {
                let (name, value) = line.split_once(' ')?;
                (name, "", value)
            }
        };
        let value = value.split_whitespace().next()?.parse().ok()?;
        (!name.starts_with('#')).then_some(Self {
            name,
            labels,
            value,
        })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        let labels = self.labels.split(',');
        labels
            .filter_map(|label| label.split_once('='))
            .find_map(|(key, value)| (key.trim() == name).then(|| value.trim_matches('"')))
    }
}

/// Slots that went through each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SlotsPassed {
    /// Became moving.
    pub moving: u64,
    /// Became settling.
    pub settling: u64,
    /// Became steady.
    pub steady: u64,
}

/// The moment at which the flow tables held the most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peak {
    /// Entries of all flow tables together.
    pub entries: u64,
    /// Connections that stood then.
    pub open: u64,
    /// Live entries by what they were for; empty where the balancer does not say.
    pub uses: BTreeMap<String, u64>,
}

impl Peak {
    /// Entries for each connection that stood.
    pub fn share(&self) -> Option<f64> {
        (self.open > 0).then(|| self.entries as f64 / self.open as f64)
    }
}

/// Figures of a run so far, each `None` where its metric is not there.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    begun: bool,
    peak: Option<Peak>,
    counters: BTreeMap<(String, String), Counter>,
}

/// How far a counter has come since it was first seen, through resets.
#[derive(Debug, Clone, Copy, Default)]
struct Counter {
    last: f64,
    sum: f64,
}

impl Counter {
    fn see(&mut self, value: f64) {
        // A counter that went back has begun again at 0.
        let since = if value < self.last {
            value
        } else {
            value - self.last
        };
        *self = Self {
            last: value,
            sum: self.sum + since,
        };
    }
}

impl Watched {
    /// Takes note of what [`scrape`] gave while so many connections stood.
    pub fn see(&mut self, page: &str, open: u64) {
        let mut entries: Option<u64> = None;
        let mut uses = BTreeMap::new();
        for sample in page.lines().filter_map(Sample::read) {
            match sample.name {
                ENTRIES => *entries.get_or_insert(0) += sample.value as u64,
                RECORDS => {
                    let name = sample.label("use").unwrap_or_default().to_owned();
                    *uses.entry(name).or_default() += sample.value as u64;
                }
                LOOKUPS | OVERFLOWS | PACKETS | PASSED => {
                    let key = (sample.name.to_owned(), sample.labels.to_owned());
                    // A series that appears later has come from 0 since.
                    let last = if self.begun { 0.0 } else { sample.value };
                    let first = Counter { last, sum: 0.0 };
                    self.counters.entry(key).or_insert(first).see(sample.value);
                }
                _ => {}
            }
        }
        self.begun = true;
        let highest = self.peak.as_ref().map(|peak| peak.entries);
        if let Some(entries) = entries.filter(|&entries| Some(entries) > highest) {
            self.peak = Some(Peak {
                entries,
                open,
                uses,
            });
        }
    }

    /// When the flow tables held the most of all times that were looked at.
    pub fn peak(&self) -> Option<&Peak> {
        self.peak.as_ref()
    }

    /// The share of packets that were looked up in a flow table, 0 to 1.
    pub fn lookup_share(&self) -> Option<f64> {
        let (lookups, packets) = (self.sum(LOOKUPS, None)?, self.sum(PACKETS, None)?);
        (packets > 0.0).then_some(lookups / packets)
    }

    /// Flows that found no room in a flow table.
    pub fn overflows(&self) -> Option<u64> {
        self.sum(OVERFLOWS, None).map(|sum| sum as u64)
    }

    /// Slots that went through each phase.
    pub fn slots_passed(&self) -> Option<SlotsPassed> {
        let sums = PHASES.map(|phase| self.sum(PASSED, Some(phase)).map(|sum| sum as u64));
        if sums == [None; 3] {
            return None;
        }
        let [moving, settling, steady] = sums.map(Option::unwrap_or_default);
        Some(SlotsPassed {
            moving,
            settling,
            steady,
        })
    }

    /// Of all services, in `phase` if any is named.
    fn sum(&self, name: &str, phase: Option<&str>) -> Option<f64> {
        let counted = self.counters.iter().filter(|((known, labels), _)| {
            let sample = Sample {
                name: known,
                labels,
                value: 0.0,
            };
            known == name && (phase.is_none() || sample.label("phase") == phase)
        });
        counted
            .map(|(_, counter)| counter.sum)
            .reduce(|sum, next| sum + next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(pages: &[&str]) -> Watched {
        let mut watched = Watched::default();
        pages.iter().for_each(|page| watched.see(page, 50));
        watched
    }

    #[test]
    fn a_balancer_without_flow_tables_has_no_figures() {
        let watched = watched(&[
            "# TYPE lb_service_packets counter\nlb_service_packets_total{service=\"a\"} 5\n# EOF\n",
        ]);
        assert_eq!(watched.peak(), None);
        assert_eq!(watched.lookup_share(), None);
        assert_eq!(watched.overflows(), None);
        assert_eq!(watched.slots_passed(), None);
    }

    #[test]
    fn slots_are_steady_where_none_is_in_another_phase_and_some_are() {
        let page = |steady, moving| {
            format!(
                "lb_slots{{service=\"a\",phase=\"moving\"}} {moving}\n\
                 lb_slots{{service=\"a\",phase=\"steady\"}} {steady}\n"
            )
        };
        assert!(are_steady(&page(251, 0)));
        assert!(!are_steady(&page(250, 1)));
        assert!(!are_steady(&page(0, 0)));
    }

    #[test]
    fn peak_is_the_most_entries_of_all_tables_at_one_time() {
        let page = |established, half_open| {
            format!(
                "lb_flow_entries{{table=\"established\"}} {established}\n\
                 lb_flow_entries{{table=\"half_open\"}} {half_open}\n\
                 lb_flow_records{{service=\"a\",use=\"away\"}} {half_open}\n\
                 lb_flow_records{{service=\"b\",use=\"away\"}} 3\n"
            )
        };
        let pages = [page(10, 5), page(12, 1), page(0, 9)];
        let watched = watched(&pages.each_ref().map(String::as_str));
        let peak = watched.peak().expect("entries were seen");
        assert_eq!((peak.entries, peak.open), (15, 50));
        assert_eq!(peak.share(), Some(0.3));
        assert_eq!(peak.uses, BTreeMap::from([("away".to_owned(), 8)]));
    }

    #[test]
    fn share_counts_what_happened_since_the_first_look_through_a_reset() {
        let page = |lookups, packets| {
            format!(
                "lb_flow_lookups_total{{service=\"a b\"}} {lookups}\n\
                 lb_service_packets_total{{service=\"a b\"}} {packets}\n"
            )
        };
        let pages = [page(100, 1_000), page(110, 1_040), page(5, 60)];
        let watched = watched(&pages.each_ref().map(String::as_str));
        assert_eq!(watched.lookup_share(), Some(0.15));
    }

    #[test]
    fn slots_are_summed_over_services_by_phase() {
        let page = |n| {
            format!(
                "lb_slots_passed_total{{service=\"a\",phase=\"moving\"}} {n}\n\
                 lb_slots_passed_total{{service=\"b\",phase=\"moving\"}} {n}\n\
                 lb_slots_passed_total{{service=\"a\",phase=\"steady\"}} 7\n"
            )
        };
        let later = "lb_slots_passed_total{service=\"a\",phase=\"settling\"} 2\n";
        let watched = watched(&[&page(0), &page(4), later]);
        let passed = SlotsPassed {
            moving: 8,
            settling: 2,
            steady: 0,
        };
        assert_eq!(watched.slots_passed(), Some(passed));
    }

    #[test]
    fn values_are_read_with_and_without_labels_and_time() {
        let sample = |line| Sample::read(line).map(|sample| (sample.name, sample.value));
        assert_eq!(sample("lb_generation 7"), Some(("lb_generation", 7.0)));
        assert_eq!(sample("a{b=\"c d\"} 1e3 1700000000"), Some(("a", 1_000.0)));
        assert_eq!(sample("# HELP a b"), None);
        assert_eq!(sample("# EOF"), None);
    }
}
