//! What a test run came to: counts, skipped tests, and whether it passed. Pure but for printing.

use std::collections::BTreeMap;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Succeeded.
    pub passed: usize,
    /// Failed, timed out or could not be run.
    pub failed: usize,
}

/// The outcome of a test run.
#[derive(Debug)]
pub struct Report {
    counts: Counts,
    runner_ok: bool,
    skipped: BTreeMap<String, String>,
    unexpected: Vec<String>,
}

impl Report {
    /// `expected` lists the tests that may be skipped; without it, any may.
    pub fn new(
        counts: Option<Counts>,
        runner_ok: bool,
        skipped: BTreeMap<String, String>,
        expected: Option<&str>,
    ) -> Self {
        let unexpected = expected.map_or_else(Vec::new, |list| unexpected(&skipped, list));
        let mut counts = counts.unwrap_or_default();
        counts.passed = counts.passed.saturating_sub(skipped.len());
        // A run that broke before any test (a compiler error) is in no count.
        if !runner_ok {
            counts.failed = counts.failed.max(1);
        }
        Self {
            counts,
            runner_ok,
            skipped,
            unexpected,
        }
    }

    /// Adds tests run elsewhere.
    pub fn add(&mut self, more: Counts) {
        self.counts.passed += more.passed;
        self.counts.failed += more.failed;
    }

    /// Whether the run is good.
    pub fn passed(&self) -> bool {
        self.runner_ok && self.counts.failed == 0 && self.unexpected.is_empty()
    }

    /// Prints the skipped tests, if any, and those that should not have been.
    pub fn print_skips(&self) {
        for (test, reason) in &self.skipped {
            eprintln!("SKIP {test}: {reason}");
        }
        for test in &self.unexpected {
            eprintln!("error: {test} was skipped, and .ci/expected-skips does not name it");
        }
        if !self.skipped.is_empty() {
            eprintln!("{} skipped", self.skipped.len());
        }
    }

    /// Prints the last line of a run.
    pub fn print_counts(&self) {
        println!("{}", self.line());
    }

    fn line(&self) -> String {
        let failed = self.counts.failed + self.unexpected.len();
        format!("{} passed, {failed} failed", self.counts.passed)
    }
}

/// The skipped tests that `expected` (a name a line, `#` starts a comment) does not list.
fn unexpected(skipped: &BTreeMap<String, String>, expected: &str) -> Vec<String> {
    let tests = skipped.keys().filter(|test| !is_listed(test, expected));
    tests.cloned().collect()
}

/// Whether a list of what may be skipped has a name.
pub fn is_listed(name: &str, expected: &str) -> bool {
    let mut lines = expected.lines();
    lines.any(|line| line.split('#').next().unwrap_or_default().trim() == name)
}

/// Reads lines `TEST: REASON`, with or without `SKIP` before them as tests print it; test names hold
/// `::`, so the name ends at a colon and a space.
pub fn parse_skips(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("SKIP ").unwrap_or(line).split_once(": "))
        .map(|(test, reason)| (test.to_owned(), reason.to_owned()))
        .collect()
}

/// Adds up the lines `test result: ok. N passed; N failed; …`.
pub fn parse_doc_tests(text: &str) -> Counts {
    let number = |line: &str, label: &str| -> usize {
        let parts = line
            .split([';', '.'])
            .filter_map(|part| part.trim().strip_suffix(label));
        parts
            .filter_map(|part| part.trim().parse::<usize>().ok())
            .sum()
    };
    let results = text
        .lines()
        .filter(|line| line.starts_with("test result: "));
    results.fold(Counts::default(), |sum, line| Counts {
        passed: sum.passed + number(line, "passed"),
        failed: sum.failed + number(line, "failed"),
    })
}

/// Reads the totals from the root element of nextest's JUnit report.
pub fn parse_junit(text: &str) -> Option<Counts> {
    let start = text.find("<testsuites")?;
    let element = &text[start..start + text[start..].find('>')?];
    let attribute = |name: &str| -> Option<usize> {
        let rest = element.split_once(&format!(" {name}=\""))?.1;
        rest.split_once('"')?.0.parse().ok()
    };
    let failed = attribute("failures")? + attribute("errors")?;
    Some(Counts {
        passed: attribute("tests")?.saturating_sub(failed),
        failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNIT: &str = r#"<?xml version="1.0"?>
<testsuites name="nextest-run" tests="12" failures="2" errors="1" time="3.0"><testsuite name="a" tests="12">"#;

    fn skipped(names: &[&str]) -> BTreeMap<String, String> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), "needs root".to_owned()))
            .collect()
    }

    fn all_passed(n: usize) -> Option<Counts> {
        Some(Counts {
            passed: n,
            failed: 0,
        })
    }

    #[test]
    fn totals_are_read_from_nextests_report() {
        assert_eq!(
            parse_junit(JUNIT),
            Some(Counts {
                passed: 9,
                failed: 3
            })
        );
        assert_eq!(parse_junit("<html>"), None);
    }

    #[test]
    fn documentation_tests_of_all_crates_are_added_up() {
        let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; finished in 0.1s\n\
                    test result: FAILED. 3 passed; 1 failed; 0 ignored\n";
        assert_eq!(
            parse_doc_tests(text),
            Counts {
                passed: 5,
                failed: 1
            }
        );
    }

    #[test]
    fn skipped_tests_are_not_counted_as_passed() {
        let report = Report::new(all_passed(5), true, skipped(&["a::b"]), None);
        assert_eq!(report.line(), "4 passed, 0 failed");
        assert!(report.passed());
    }

    #[test]
    fn a_test_that_skips_twice_counts_once() {
        let skips = parse_skips("SKIP e2e::nat: needs root\ne2e::nat: needs veth\nnoise\n");
        assert_eq!(
            skips,
            BTreeMap::from([("e2e::nat".into(), "needs veth".into())])
        );
    }

    #[test]
    fn only_listed_tests_may_be_skipped_where_a_list_is_given() {
        let list = "# kernel\ne2e::nat  # no root here\n";
        assert!(Report::new(all_passed(2), true, skipped(&["e2e::nat"]), Some(list)).passed());
        let report = Report::new(all_passed(2), true, skipped(&["e2e::ipip"]), Some(list));
        assert!(!report.passed());
        assert_eq!(report.line(), "1 passed, 1 failed");
    }

    #[test]
    fn run_that_broke_before_any_test_counts_as_failed() {
        let report = Report::new(None, false, BTreeMap::new(), None);
        assert_eq!(report.line(), "0 passed, 1 failed");
        assert!(!report.passed());
    }
}
