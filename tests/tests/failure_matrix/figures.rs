//! What was measured, and the table of it.

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use lb_tests::load::app::App;

/// What one failure was to one service.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Until the agent said so.
    pub found: Duration,
    /// Until the last new connection began that met a victim.
    pub drained: Duration,
    /// Requests that failed, each of a connection of its own.
    pub failed: usize,
    /// All such requests.
    pub attempts: usize,
    /// Connections of the victims that broke.
    pub broken: usize,
    /// Connections of others that broke.
    pub elsewhere: usize,
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "found after {} ms, last met after {} ms, {} of {} requests failed, {} connections broken, {} of others",
            self.found.as_millis(),
            self.drained.as_millis(),
            self.failed,
            self.attempts,
            self.broken,
            self.elsewhere
        )
    }
}

/// All rows, in the order of the first round; the worst of each.
#[derive(Debug, Default)]
pub struct Figures(Vec<(&'static str, App, Row)>);

impl Figures {
    /// Takes note of one.
    pub fn note(&mut self, case: &'static str, app: App, row: Row) {
        let known = self.0.iter_mut().find(|(c, a, _)| (*c, *a) == (case, app));
        match known {
            None => self.0.push((case, app, row)),
            Some((_, _, worst)) => {
                worst.found = worst.found.max(row.found);
                worst.drained = worst.drained.max(row.drained);
                worst.broken = worst.broken.max(row.broken);
                worst.elsewhere = worst.elsewhere.max(row.elsewhere);
                if row.failed > worst.failed {
                    (worst.failed, worst.attempts) = (row.failed, row.attempts);
                }
            }
        }
    }
}

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| failure | server | detect, ms | drain, ms | requests failed | its connections broken | others' |\n|---|---|---|---|---|---|---|"
        )?;
        for (case, app, row) in &self.0 {
            writeln!(
                f,
                "| {case} | {} | {} | {} | {} of {} | {} | {} |",
                app.name(),
                row.found.as_millis(),
                row.drained.as_millis(),
                row.failed,
                row.attempts,
                row.broken,
                row.elsewhere
            )?;
        }
        Ok(())
    }
}
