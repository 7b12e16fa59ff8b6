//! A [`View`] in a terminal, from 80 columns and 24 rows up. Owns every glyph and colour; what they
//! stand for is the board's.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
};

use super::{
    board::{EventView, ServerView, ServiceView, Standing, View, WINDOW},
    hints::Hint,
    keys,
    lines::{clock, word},
    load::RATE,
};
use crate::topology::backend_name;

/// Below this, only its being too small is shown.
const SMALLEST: (u16, u16) = (78, 24);
/// From this width on, commands have their word before them.
const ROOM_FOR_WORDS: u16 = 92;

/// Rows of the events at least, with their heading.
const EVENTS: u16 = 3;

const COLUMNS: [Constraint; 7] = [
    Constraint::Length(9),
    Constraint::Length(12),
    Constraint::Fill(1),
    Constraint::Fill(1),
    Constraint::Fill(1),
    Constraint::Length(5),
    Constraint::Length(6),
];

/// Draws all of `view`.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let (columns, rows) = SMALLEST;
        let text = format!("the playground needs a terminal of {columns} columns and {rows} rows");
        frame.render_widget(Line::from(text), area);
        return;
    }
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let inner = area.inner(ratatui::layout::Margin::new(1, 0));
    let (table, hints) = (rows(view.services.len()) + 2, rows(view.hints.len()) + 1);
    let least = 1 + table + EVENTS + hints + 1;
    let [top, table, events, hints, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(table),
        Constraint::Min(EVENTS),
        Constraint::Length(hints),
        Constraint::Length(1),
    ])
    .spacing(u16::from(area.height >= least + 4))
    .areas(inner);
    title(frame, top, view);
    services(frame, table, view);
    let shown = view.events.iter().map(event).collect();
    section(frame, events, "EVENTS", "", shown);
    let shown = view
        .hints
        .iter()
        .map(|hint| command(hint, hints.width))
        .collect();
    section(frame, hints, "TRY", " in another terminal", shown);
    frame.render_widget(keys_line(), bottom);
}

fn title(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let left = Line::from(vec![
        " lbd playground ".bold().black().on_cyan(),
        "  client ─▶ XDP ─▶ 3 × nginx".into(),
    ]);
    let agent = if view.agent {
        "● lbd runs".green()
    } else {
        "✖ lbd is dead, XDP goes on".light_red().bold()
    };
    let right = Line::from(vec![
        agent,
        format!("   {}", clock(view.up_for)).dark_gray(),
    ]);
    frame.render_widget(left, area);
    frame.render_widget(right.alignment(Alignment::Right), area);
}

fn heading(name: &'static str, note: String) -> Line<'static> {
    Line::from(vec![name.cyan().bold(), note.dark_gray()])
}

fn section(frame: &mut Frame<'_>, area: Rect, name: &'static str, note: &str, rows: Vec<Line<'_>>) {
    put(frame, area, 0, heading(name, note.to_owned()));
    for (row, line) in (1..).zip(rows) {
        put(frame, area, row, line);
    }
}

/// Puts `line` into a row of `area`, if there is that row.
fn put(frame: &mut Frame<'_>, area: Rect, row: u16, line: Line<'_>) {
    if row < area.height {
        let row = Rect::new(area.x, area.y + row, area.width, 1);
        frame.render_widget(line, row);
    }
}

fn services(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let note = format!(
        "  {RATE} new connections a second to each; shares of the last {} s",
        WINDOW.as_secs()
    );
    put(frame, area, 0, heading("SERVICES", note));
    let head = |text: &str| Line::from(text.to_owned().dark_gray());
    let servers = (1..=3).map(|n| head(&backend_name(n)));
    let mut heads = vec![head("mode"), head("VIP")];
    heads.extend(servers);
    heads.extend(["req/s", "failed"].map(|name| head(name).alignment(Alignment::Right)));
    columns(frame, area, 1, heads);
    for (row, service) in (2..).zip(&view.services) {
        columns(frame, area, row, cells(service, server_width(area)));
    }
}

fn columns(frame: &mut Frame<'_>, area: Rect, row: u16, cells: Vec<Line<'_>>) {
    let row = Rect::new(area.x, area.y + row, area.width, 1);
    let places: [Rect; 7] = Layout::horizontal(COLUMNS).spacing(1).areas(row);
    for (cell, place) in cells.into_iter().zip(places) {
        frame.render_widget(cell, place);
    }
}

fn server_width(area: Rect) -> usize {
    let places: [Rect; 7] = Layout::horizontal(COLUMNS).spacing(1).areas(area);
    places[2..5]
        .iter()
        .map(|place| usize::from(place.width))
        .min()
        .unwrap_or(0)
}

fn cells(service: &ServiceView, width: usize) -> Vec<Line<'static>> {
    let right = |span: Span<'static>| Line::from(span).alignment(Alignment::Right);
    let failed = match (service.failing, service.failed) {
        (0, 0) => "0".dark_gray(),
        (0, failed) => failed.to_string().into(),
        (_, failed) => failed.to_string().light_red().bold(),
    };
    let mut cells = vec![
        Line::from(service.label.bold()),
        Line::from(service.vip.clone()),
    ];
    cells.extend(
        service
            .servers
            .iter()
            .map(|server| server_cell(server, width)),
    );
    cells.push(right(format!("{:.1}", service.per_second).into()));
    cells.push(right(failed));
    cells
}

/// Marker, bar (or, without a share, what it is instead), percentage and weight.
fn server_cell(server: &ServerView, width: usize) -> Line<'static> {
    let (marker, colour) = match server.standing {
        Standing::Up => ("●", Color::Green),
        Standing::Starting => ("○", Color::Cyan),
        Standing::Draining => ("◐", Color::Yellow),
        Standing::Down => ("✖", Color::LightRed),
        Standing::Absent => ("·", Color::DarkGray),
    };
    let colour = Style::new().fg(colour);
    let weight = match server.weight {
        1 => String::new(),
        weight => format!(" w{weight}"),
    };
    let room = width.saturating_sub("● ".chars().count() + " 100%".len() + weight.len() + 1);
    let mut spans = vec![Span::styled(format!("{marker} "), colour)];
    if server.share < 0.005 && server.standing != Standing::Up {
        spans.push(Span::styled(word(server.standing), colour));
        return Line::from(spans);
    }
    spans.extend(bar(server.share, room, colour));
    spans.push(format!(" {:>3.0}%", server.share * 100.0).into());
    spans.push(weight.dark_gray());
    Line::from(spans)
}

/// A bar of `width`, to half a column.
fn bar(share: f64, width: usize, colour: Style) -> [Span<'static>; 2] {
    let halves = (share.clamp(0.0, 1.0) * 2.0 * width as f64).round() as usize;
    let mut full = "━".repeat(halves / 2);
    if halves % 2 == 1 {
        full.push('╸');
    }
    let rest = "─".repeat(width - halves.div_ceil(2));
    [
        Span::styled(full, colour),
        Span::styled(rest, Color::DarkGray),
    ]
}

fn event(event: &EventView) -> Line<'_> {
    let text = event.text.as_str();
    let text = if event.bad {
        text.light_red()
    } else {
        text.into()
    };
    Line::from(vec![format!("{:>6}  ", clock(event.at)).dark_gray(), text])
}

fn command(hint: &Hint, width: u16) -> Line<'_> {
    let word = if width >= ROOM_FOR_WORDS {
        format!("{:<10}", hint.what)
    } else {
        String::new()
    };
    Line::from(vec![word.dark_gray(), hint.command.as_str().into()])
}

fn keys_line() -> Line<'static> {
    let pairs = keys::HELP.iter();
    let spans = pairs.flat_map(|(key, what)| [key.bold().cyan(), format!(" {what}  ").into()]);
    Line::from(spans.collect::<Vec<_>>())
}

#[cfg(test)]
#[path = "screen_tests.rs"]
pub(super) mod tests;
