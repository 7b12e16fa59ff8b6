//! How answers look: tables for people, JSON for programs.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// Writes `text` to the standard output; whether anybody is left to read it. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Local(error)),
    }
}

/// `value` as indented JSON.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A table without lines, so that it can be cut and searched. Columns named in `right` hold
/// numbers.
pub fn table(header: &[&str], right: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&header[index]) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines = table.lines();
    lines
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// Names and values, one to a line.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let line = |(name, value): &(&str, String)| format!("{name:width$}{}\n", printable(value));
    fields.iter().map(line).collect()
}

/// `part` of `whole` in percent.
pub fn percent(part: u32, whole: u32) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1}%", f64::from(part) * 100.0 / f64::from(whole)),
    }
}

/// Thousandths in percent.
pub fn thousandths(value: u64) -> String {
    format!("{}.{}%", value / 10, value % 10)
}

/// Thousandths as a ratio.
pub fn ratio(value: u64) -> String {
    format!("{}.{:02}", value / 1_000, value % 1_000 / 10)
}

/// A short time.
pub fn micros(time: Option<u64>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |us| format!("{:?}", Duration::from_micros(us)),
    )
}

/// A time as it is given to options, such as `15m` or `1m 500ms`.
pub fn millis(time: u64) -> String {
    humantime::format_duration(Duration::from_millis(time)).to_string()
}

/// What a backend says ends up on a terminal: nothing in it may move the cursor or end the line.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}
