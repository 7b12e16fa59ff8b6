//! What LLVM has counted, added up by file. Pure.
//!
//! A generic function is there once for each use, and an inlined one for each place; what one of them reaches is reached.
//! Tests within the crate's own files are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Kinds of regions as `llvm-cov export` numbers them: code, rather than expansions, gaps and the like.
const CODE: u64 = 0;
/// How the module of a file's own tests shows in the names of its functions.
const TESTS: &str = "5tests";

/// A place in a file: line, column, line, column.
type Span = [u64; 4];

/// How many there are, and how many were reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    reached: usize,
    all: usize,
}

impl Share {
    fn of(reached: impl Iterator<Item = bool>) -> Self {
        let mut share = Self::default();
        for reached in reached {
            share.all += 1;
            share.reached += usize::from(reached);
        }
        share
    }

    fn add(&mut self, other: Self) {
        self.reached += other.reached;
        self.all += other.all;
    }

    /// In percent; all of nothing.
    pub fn percent(self) -> f64 {
        if self.all == 0 {
            return 100.0;
        }
        100.0 * self.reached as f64 / self.all as f64
    }

    fn shown(self) -> String {
        format!("{:.1} % of {}", self.percent(), self.all)
    }
}

/// Lines, and branches: each way that a decision can go counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Lines with code.
    pub lines: Share,
    /// See above.
    pub branches: Share,
}

/// What was reached in a file.
#[derive(Debug, Default)]
struct File {
    /// Whether a line was.
    lines: BTreeMap<u64, bool>,
    /// How often a decision went either way.
    branches: BTreeMap<Span, [u64; 2]>,
}

impl File {
    fn shares(&self) -> Shares {
        let branches = self.branches.values().flatten();
        Shares {
            lines: Share::of(self.lines.values().copied()),
            branches: Share::of(branches.map(|&times| times > 0)),
        }
    }

    /// Adds a function's regions of code, with how often each was run.
    fn add_lines(&mut self, regions: &mut [(Span, u64)]) {
        // What is within another comes after it.
        regions.sort_by_key(|&([line, column, to_line, to_column], _)| {
            (
                line,
                column,
                std::cmp::Reverse(to_line),
                std::cmp::Reverse(to_column),
            )
        });
        let mut counts = BTreeMap::new();
        for &mut ([from, _, to, _], count) in regions {
            for line in from..=to {
                let seen = counts.entry(line).or_insert(count);
                // The first and last are shared with what is around it.
                *seen = if line == from || line == to {
                    count.max(*seen)
                } else {
                    count
                };
            }
        }
        for (line, count) in counts {
            *self.lines.entry(line).or_default() |= count > 0;
        }
    }
}

/// What was reached in each file, by its name.
#[derive(Debug, Default)]
pub struct Report {
    files: BTreeMap<String, File>,
}

impl Report {
    /// Reads what `llvm-cov export` says of the files within a folder.
    ///
    /// # Errors
    /// It is not of the form that is known.
    pub fn of(exported: &Value, folder: &Path) -> Result<Self> {
        let functions = exported["data"][0]["functions"].as_array();
        let mut report = Self::default();
        for function in functions.context("functions in what llvm-cov exports")? {
            let name = function["name"].as_str().context("a function's name")?;
            if !name.contains(TESTS) {
                report.add(function, folder)?;
            }
        }
        Ok(report)
    }

    fn add(&mut self, function: &Value, folder: &Path) -> Result<()> {
        let names = function["filenames"].as_array();
        let names = names.context("a function's files")?;
        for (id, name) in (0..).zip(names) {
            let name = Path::new(name.as_str().context("a file's name")?);
            let Some(name) = name.strip_prefix(folder).ok().and_then(Path::to_str) else {
                continue;
            };
            if name.ends_with("_tests.rs") {
                continue;
            }
            let file = self.files.entry(name.to_owned()).or_default();
            let mut regions = Vec::new();
            for region in rows(function, "regions")? {
                let [span @ .., count, of, _, kind] = numbers::<8>(region)?;
                if of == id && kind == CODE {
                    regions.push((span, count));
                }
            }
            file.add_lines(&mut regions);
            for branch in rows(function, "branches")? {
                let [span @ .., taken, not, of, _, _] = numbers::<9>(branch)?;
                if of == id {
                    let times = file.branches.entry(span).or_default();
                    times[0] += taken;
                    times[1] += not;
                }
            }
        }
        Ok(())
    }

    /// Of all files together.
    pub fn total(&self) -> Shares {
        let mut total = Shares::default();
        for shares in self.files.values().map(File::shares) {
            total.lines.add(shares.lines);
            total.branches.add(shares.branches);
        }
        total
    }

    /// Decisions that have not gone both ways, one a line.
    pub fn missing(&self) -> String {
        let mut text = String::new();
        for (name, file) in &self.files {
            for ([line, column, ..], times) in &file.branches {
                let never = match times {
                    [0, 0] => "never reached",
                    [0, _] => "never true",
                    [_, 0] => "never false",
                    _ => continue,
                };
                let _ = writeln!(text, "lb-common/src/{name}:{line}:{column}: {never}");
            }
        }
        text
    }
}

fn rows<'a>(function: &'a Value, of: &str) -> Result<&'a [Value]> {
    let rows = function[of].as_array();
    Ok(rows.with_context(|| format!("a function's {of}"))?)
}

fn numbers<const N: usize>(row: &Value) -> Result<[u64; N]> {
    let row = row.as_array().context("a row of numbers")?;
    let numbers: Option<Vec<u64>> = row.iter().map(Value::as_u64).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.with_context(|| format!("{N} numbers, not {}", row.len()))
}

/// Both side by side.
pub fn table(by_inputs: &Report, by_all: &Report) -> String {
    let mut text = String::new();
    let mut row = |cells: [&str; 5]| {
        let [name, first @ ..] = cells;
        let _ = write!(text, "{name:24}");
        for cell in first {
            let _ = write!(text, "  {cell:>16}");
        }
        text.push('\n');
    };
    row([
        "lb-common/src",
        "lines, inputs",
        "branches, inputs",
        "lines, all",
        "branches, all",
    ]);
    let none = Shares::default();
    let files = by_all.files.iter().map(|(name, file)| {
        let inputs = by_inputs.files.get(name).map_or(none, File::shares);
        (name.as_str(), inputs, file.shares())
    });
    for (name, inputs, all) in files.chain([("total", by_inputs.total(), by_all.total())]) {
        row([
            name,
            &inputs.lines.shown(),
            &inputs.branches.shown(),
            &all.lines.shown(),
            &all.branches.shown(),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two uses of a function of lines 1 to 9, with an `if` of lines 3 to 5, and a test.
    fn exported() -> Value {
        let used = |name: &str, taken: u64, not: u64| {
            json!({
                "name": name, "filenames": ["/p/src/a.rs"],
                "regions": [
                    [1, 1, 9, 2, taken + not, 0, 0, 0],
                    [3, 12, 5, 6, taken, 0, 0, 0],
                ],
                "branches": [[3, 4, 3, 11, taken, not, 0, 0, 4]],
            })
        };
        let functions = [
            used("f::<A>", 0, 2),
            used("f::<B>", 0, 0),
            used("_ZN1a5tests1fE", 5, 5),
        ];
        json!({ "data": [{ "functions": functions }] })
    }

    #[test]
    fn what_one_use_reaches_is_reached_and_what_tests_do_to_themselves_is_not_asked() {
        let report = Report::of(&exported(), Path::new("/p/src")).unwrap();
        let Shares { lines, branches } = report.total();
        // The line within the braces is not run; those of the braces are shared.
        assert_eq!((lines.reached, lines.all), (8, 9));
        assert_eq!((branches.reached, branches.all), (1, 2));
        assert_eq!(report.missing(), "lb-common/src/a.rs:3:4: never true\n");
    }

    #[test]
    fn files_elsewhere_and_files_of_tests_are_left_out() {
        for (name, folder) in [("/p/src/a_tests.rs", "/p/src"), ("/q/a.rs", "/p/src")] {
            let mut exported = exported();
            exported["data"][0]["functions"][0]["filenames"][0] = json!(name);
            exported["data"][0]["functions"][1]["filenames"][0] = json!(name);
            let report = Report::of(&exported, Path::new(folder)).unwrap();
            assert_eq!(report.total(), Shares::default(), "{name}");
        }
    }

    #[test]
    fn a_form_that_is_not_known_is_an_error() {
        for exported in [json!({}), json!({ "data": [{ "functions": [{}] }] })] {
            assert!(Report::of(&exported, Path::new("/")).is_err(), "{exported}");
        }
    }

    #[test]
    fn the_table_has_both_reports_and_their_totals() {
        let report = |exported| Report::of(&exported, Path::new("/p/src")).unwrap();
        let (none, some) = (Report::default(), report(exported()));
        let table = table(&none, &some);
        let last = table.lines().last().unwrap();
        assert!(
            last.starts_with("total") && last.ends_with("50.0 % of 2"),
            "{table}"
        );
        assert_eq!(table.lines().count(), 3, "{table}");
    }
}
