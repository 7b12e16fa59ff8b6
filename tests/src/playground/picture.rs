//! The screen as an SVG file, for the documentation: what is drawn is what a terminal shows.

use std::fmt::Write as _;

use anstyle_svg::{Term, WIN10_CONSOLE};
use anyhow::{Context as _, Result};
use ratatui::{
    Terminal,
    backend::{IntoCrossterm as _, TestBackend},
    buffer::{Buffer, Cell},
};

use super::{board::View, screen};

/// Columns and rows of a picture.
const SIZE: (u16, u16) = (100, 30);

/// `view` as the text of an SVG file.
///
/// # Errors
/// It cannot be drawn.
pub fn svg(view: &View) -> Result<String> {
    let (columns, rows) = SIZE;
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).context("a terminal")?;
    let drawn = terminal.draw(|frame| screen::draw(frame, view));
    let ansi = ansi(drawn.context("drawing")?.buffer)?;
    // Legible on black in every colour that the screen uses.
    Ok(Term::new().palette(WIN10_CONSOLE).render_svg(&ansi))
}

/// The rows of `buffer` with the escape sequences of their styles.
fn ansi(buffer: &Buffer) -> Result<String> {
    let mut text = String::new();
    for row in buffer.content.chunks(usize::from(buffer.area.width)) {
        for cells in row.chunk_by(|a, b| a.style() == b.style()) {
            let symbols: String = cells.iter().map(Cell::symbol).collect();
            let style = cells[0].style().into_crossterm();
            write!(text, "{}", style.apply(symbols)).context("writing to memory")?;
        }
        text.push('\n');
    }
    Ok(text)
}
