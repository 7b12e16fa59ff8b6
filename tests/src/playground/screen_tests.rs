//! What the screen shows of a view, drawn into a terminal in memory.

use std::{path::Path, time::Duration};

use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::*;
use crate::playground::{hints, offers};

fn server(standing: Standing, share: f64) -> ServerView {
    ServerView {
        standing,
        weight: 1,
        share,
    }
}

/// A playground in trouble: one server down, one draining.
pub fn view() -> View {
    let offers = offers();
    let service = |offer: &crate::playground::Offer| ServiceView {
        label: offer.label,
        vip: offer.vip.to_string(),
        servers: vec![
            server(Standing::Up, 0.6),
            server(Standing::Down, 0.0),
            server(Standing::Draining, 0.4),
        ],
        per_second: 19.8,
        failing: 0,
        failed: 12,
    };
    let event = |seconds, text: &str, bad| EventView {
        at: Duration::from_secs(seconds),
        text: text.to_owned(),
        bad,
    };
    View {
        up_for: Duration::from_secs(83),
        agent: true,
        services: offers.iter().map(service).collect(),
        events: vec![
            event(
                22,
                "backend2 is down in every service: connection refused",
                true,
            ),
            event(21, "backend2: nginx was killed", false),
        ],
        hints: hints::hints(
            "lb",
            &offers[0],
            Path::new("/lb/target/release/lbctl"),
            Path::new("/lb"),
        ),
    }
}

fn drawn(view: &View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    terminal.backend().buffer().clone()
}

fn rows(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let row = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect();
    buffer.content.chunks(width).map(row).collect()
}

fn text(view: &View, width: u16, height: u16) -> String {
    rows(&drawn(view, width, height)).join("\n")
}

#[test]
fn everything_fits_the_smallest_usual_terminal() {
    let text = text(&view(), 80, 24);
    let view = view();
    for service in &view.services {
        assert!(
            text.contains(service.label) && text.contains(&service.vip),
            "{text}"
        );
    }
    for hint in &view.hints {
        assert!(
            text.contains(&hint.command),
            "{} is not whole in\n{text}",
            hint.command
        );
    }
    for event in &view.events {
        assert!(text.contains(&event.text), "{text}");
    }
    for (key, what) in keys::HELP {
        assert!(text.contains(key) && text.contains(what), "{text}");
    }
    assert!(text.contains("1:23") && text.contains("lbd runs"), "{text}");
}

#[test]
fn a_row_shows_bars_shares_and_standings() {
    let all = rows(&drawn(&view(), 80, 24));
    let row = all.iter().find(|row| row.contains("nat v4")).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "nat",
            "v4",
            "10.0.0.1:80",
            "●",
            "━━━──",
            "60%",
            "✖",
            "down",
            "◐",
            "━━───",
            "40%",
            "19.8",
            "12"
        ]
    );
}

#[test]
fn a_bar_is_as_long_as_its_share() {
    let width = |share| {
        let [full, rest] = bar(share, 10, Style::new());
        assert_eq!(full.width() + rest.width(), 10, "{share}");
        full.content.into_owned()
    };
    assert_eq!(width(0.0), "");
    assert_eq!(width(0.34), "━━━╸");
    assert_eq!(width(0.5), "━━━━━");
    assert_eq!(width(1.0), "━━━━━━━━━━");
    assert_eq!(width(7.0), "━━━━━━━━━━");
}

#[test]
fn a_server_that_is_down_but_still_answered_lately_keeps_its_share() {
    let mut view = view();
    view.services[0].servers[1].share = 0.2;
    view.services[0].servers[0].weight = 300;
    let all = rows(&drawn(&view, 80, 24));
    let row = all.iter().find(|row| row.contains("nat v4")).unwrap();
    assert!(row.contains("20%") && row.contains("60% w300"), "{row}");
}

#[test]
fn failures_are_red_while_they_last() {
    let mut failing = view();
    failing.services[0].failing = 3;
    let red = |view: &View| {
        let buffer = drawn(view, 80, 24);
        let row = rows(&buffer)
            .iter()
            .position(|row| row.contains("nat v4"))
            .unwrap();
        let last = buffer.area.width - 2;
        buffer[(last, u16::try_from(row).unwrap())].fg == Color::LightRed
    };
    assert!(red(&failing));
    assert!(!red(&view()));
}

#[test]
fn a_dead_agent_is_told() {
    let view = View {
        agent: false,
        ..view()
    };
    assert!(text(&view, 80, 24).contains("lbd is dead, XDP goes on"));
}

#[test]
fn wide_terminals_show_what_each_command_does() {
    let text = text(&view(), 100, 30);
    assert!(
        text.contains("drain     target/release/lbctl --name lb backend drain"),
        "{text}"
    );
}

#[test]
fn no_size_is_too_small_to_draw() {
    for width in [0, 1, 40, 77, 78, 79] {
        for height in [0, 1, 5, 19, 20, 23] {
            drawn(&view(), width, height);
        }
    }
    assert!(text(&view(), 70, 24).contains("needs a terminal of 78 columns and 24 rows"));
}
