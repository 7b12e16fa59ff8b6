//! A [`View`] as lines of text, for where there is no terminal. Pure.

use std::time::Duration;

use super::{
    board::{ServerView, ServiceView, Standing, View},
    hints::Hint,
};
use crate::topology::backend_name;

/// What to try, said once.
pub fn opening(hints: &[Hint]) -> String {
    let lines: String = hints
        .iter()
        .map(|hint| format!("  {}\n", hint.command))
        .collect();
    format!("The balancer runs. In another terminal, try:\n\n{lines}\nCtrl-C removes everything.\n")
}

/// What happened after `since`, oldest first, and a line for each service.
pub fn lines(view: &View, since: Duration) -> Vec<String> {
    let news = view.events.iter().rev().filter(|event| event.at > since);
    let news = news.map(|event| format!("{} {}", clock(event.at), event.text));
    news.chain(view.services.iter().map(line)).collect()
}

/// As `1:02`, minutes and seconds.
pub fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// What a standing is called.
pub fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Up => "up",
        Standing::Starting => "starting",
        Standing::Draining => "draining",
        Standing::Down => "down",
        Standing::Absent => "absent",
    }
}

fn line(service: &ServiceView) -> String {
    let ServiceView {
        label,
        vip,
        per_second,
        failed,
        ..
    } = service;
    let servers: String = (1..)
        .zip(&service.servers)
        .map(|(n, server)| part(n, server))
        .collect();
    format!("{label:<9} {vip:<12} {servers} {per_second:>5.1}/s {failed:>4} failed")
}

fn part(n: u8, server: &ServerView) -> String {
    let percent = server.share * 100.0;
    format!(
        " {} {:<8} {percent:>3.0} %",
        backend_name(n),
        word(server.standing)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::playground::screen::tests::view;

    #[test]
    fn a_line_has_each_servers_standing_and_share() {
        let lines = lines(&view(), Duration::from_secs(60));
        assert_eq!(
            lines[0],
            "nat v4    10.0.0.1:80   backend1 up        60 % backend2 down       0 % \
             backend3 draining  40 %  19.8/s   12 failed"
        );
        assert_eq!(lines.len(), view().services.len());
    }

    #[test]
    fn events_are_told_once_oldest_first() {
        let all = lines(&view(), Duration::ZERO);
        assert_eq!(all[0], "0:21 backend2: nginx was killed");
        assert_eq!(
            all[1],
            "0:22 backend2 is down in every service: connection refused"
        );
        let later = lines(&view(), Duration::from_secs(21));
        assert_eq!(later[0], all[1]);
    }
}
