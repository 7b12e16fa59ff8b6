//! What a backend's agent says, in HAProxy's agent-check text protocol. Pure: a line in, its meaning
//! out. Who asks, and what comes of it, is others' business.
//!
//! The protocol: <https://docs.haproxy.org/3.0/configuration.html#5.2-agent-check>. A line of words
//! between blanks, tabs and commas, in any order, upper or lower case, and after `#` a text for people.

use serde::{Deserialize, Serialize};

use crate::model::MAX_WEIGHT;

/// Highest weight in percent that is heeded.
pub const MAX_PERCENT: u16 = MAX_WEIGHT;

/// One line of an agent. What it does not mention stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Whether the backend can serve, where that is said.
    pub serving: Option<Serving>,
    /// Share of the configured weight, in percent.
    pub weight: Option<u16>,
    /// Whether it wants new flows.
    pub wants: Option<Wants>,
    /// Flows in progress at which it wants no more.
    pub max_connections: Option<u32>,
    /// The first word that means nothing.
    pub unknown: Option<String>,
}

/// Whether a backend can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// It can.
    Up,
    /// It cannot; the word and the text that say so.
    Down(String),
}

/// Whether a backend wants new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wants {
    /// It does.
    #[serde(rename = "ready")]
    Flows,
    /// It finishes those that it has.
    #[serde(rename = "drain")]
    Drain,
    /// It is being worked on: no new flows either.
    #[serde(rename = "maint")]
    Maintenance,
    /// It wants no new flows, and has none left: not HAProxy's word, which takes it for none.
    #[serde(rename = "drained")]
    Drained,
}

impl Reply {
    /// Reads a line without its end.
    pub fn parse(line: &str) -> Self {
        let (words, text) = line.split_once('#').unwrap_or((line, ""));
        let mut reply = Self::default();
        let words = words.split([' ', '\t', ',']);
        for word in words.filter(|word| !word.is_empty()) {
            reply.take(&word.to_ascii_lowercase(), text.trim());
        }
        reply
    }

    fn take(&mut self, word: &str, text: &str) {
        let down = || match text {
            "" => Serving::Down(word.to_owned()),
            text => Serving::Down(format!("{word}: {text}")),
        };
        match word {
            "up" => self.serving = Some(Serving::Up),
            "down" | "fail" | "stopped" => self.serving = Some(down()),
            "ready" => self.wants = Some(Wants::Flows),
            "drain" => self.wants = Some(Wants::Drain),
            "maint" => self.wants = Some(Wants::Maintenance),
            "drained" => self.wants = Some(Wants::Drained),
            _ => match (percent(word), limit(word)) {
                (Some(weight), _) => self.weight = Some(weight),
                (None, Some(most)) => self.max_connections = Some(most),
                (None, None) => {
                    self.unknown.get_or_insert_with(|| word.to_owned());
                }
            },
        }
    }

    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        let said = Self {
            unknown: None,
            ..self.clone()
        };
        said == Self::default()
    }
}

fn percent(word: &str) -> Option<u16> {
    let digits = word.strip_suffix('%')?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // More than fits is as much as can be.
    all_digits.then(|| digits.parse().unwrap_or(MAX_PERCENT).min(MAX_PERCENT))
}

fn limit(word: &str) -> Option<u32> {
    word.strip_prefix("maxconn:")?.parse().ok()
}

/// What a backend's agent asks for, of all that it has said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Share of the configured weight, in percent.
    pub weight: Option<u16>,
    /// Whether it wants new flows.
    pub wants: Option<Wants>,
    /// Flows in progress at which it wants no more; 0: no limit of its own, as with HAProxy.
    pub max_connections: Option<u32>,
    /// Whether its last word about itself was that it cannot serve.
    #[serde(default)]
    pub says_down: bool,
}

impl Asked {
    /// Whether it wants no new flows, in words or as none of its weight.
    pub fn wants_none(&self) -> bool {
        let wants = self.wants;
        self.weight == Some(0) || wants.is_some_and(|wants| wants != Wants::Flows)
    }

    /// Takes note of another line.
    pub fn hear(&mut self, reply: &Reply) {
        self.weight = reply.weight.or(self.weight);
        self.wants = reply.wants.or(self.wants);
        self.max_connections = reply.max_connections.or(self.max_connections);
        if let Some(serving) = &reply.serving {
            self.says_down = *serving != Serving::Up;
        }
    }
}

impl std::fmt::Display for Wants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Flows => "ready",
            Self::Drain => "drain",
            Self::Maintenance => "maint",
            Self::Drained => "drained",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn down(text: &str) -> Reply {
        Reply {
            serving: Some(Serving::Down(text.to_owned())),
            ..Reply::default()
        }
    }

    fn weighted(weight: u16) -> Reply {
        Reply {
            weight: Some(weight),
            ..Reply::default()
        }
    }

    #[test]
    fn each_word_says_one_thing() {
        let up = Reply {
            serving: Some(Serving::Up),
            ..Reply::default()
        };
        let wants = |wants| Reply {
            wants: Some(wants),
            ..Reply::default()
        };
        let limited = Reply {
            max_connections: Some(30),
            ..Reply::default()
        };
        for (line, reply) in [
            ("up", up),
            ("down", down("down")),
            ("fail", down("fail")),
            ("stopped", down("stopped")),
            ("ready", wants(Wants::Flows)),
            ("drain", wants(Wants::Drain)),
            ("maint", wants(Wants::Maintenance)),
            ("drained", wants(Wants::Drained)),
            ("maxconn:30", limited),
            ("75%", weighted(75)),
            ("0%", weighted(0)),
            ("", Reply::default()),
        ] {
            assert_eq!(Reply::parse(line), reply, "{line}");
        }
    }

    #[test]
    fn words_come_in_any_order_case_and_between_any_separators() {
        let reply = Reply {
            serving: Some(Serving::Up),
            weight: Some(50),
            wants: Some(Wants::Flows),
            max_connections: Some(10),
            unknown: None,
        };
        for line in [
            "up ready 50% maxconn:10",
            "50%,READY\tmaxconn:10, Up",
            "  ready,,up maxconn:10\t50% # all is well, 7% down",
        ] {
            assert_eq!(Reply::parse(line), reply, "{line}");
        }
    }

    #[test]
    fn what_stands_behind_the_sharp_explains_why_it_is_down() {
        assert_eq!(
            Reply::parse("down # disk is full, 100% up"),
            down("down: disk is full, 100% up")
        );
        assert_eq!(Reply::parse("fail#x"), down("fail: x"));
    }

    #[test]
    fn the_last_of_two_words_about_the_same_counts() {
        assert_eq!(Reply::parse("10% 20%"), weighted(20));
        assert_eq!(Reply::parse("up down"), down("down"));
    }

    #[test]
    fn weights_beyond_the_largest_are_the_largest() {
        assert_eq!(Reply::parse("99999999%"), weighted(MAX_PERCENT));
        assert_eq!(Reply::parse("1001%"), weighted(MAX_PERCENT));
    }

    #[test]
    fn words_without_a_meaning_are_told_and_the_others_count() {
        for (line, unknown) in [
            ("75% sideways left", "sideways"),
            ("75% 80", "80"),
            ("75% -3%", "-3%"),
            ("75% %", "%"),
            ("75% maxconn:many", "maxconn:many"),
            ("75% maxconn:-1", "maxconn:-1"),
        ] {
            let reply = Reply::parse(line);
            assert_eq!(reply.weight, Some(75), "{line}");
            assert_eq!(reply.unknown.as_deref(), Some(unknown), "{line}");
        }
        assert!(Reply::parse("what").is_empty());
        assert!(!Reply::parse("what up").is_empty());
    }

    #[test]
    fn what_a_line_does_not_mention_stays() {
        let mut asked = Asked::default();
        asked.hear(&Reply::parse("50% drain down"));
        assert!(asked.says_down);
        asked.hear(&Reply::parse("up maxconn:5"));
        asked.hear(&Reply::parse("75% stopped"));
        asked.hear(&Reply::parse(""));
        assert_eq!(
            asked,
            Asked {
                weight: Some(75),
                wants: Some(Wants::Drain),
                max_connections: Some(5),
                says_down: true,
            }
        );
        asked.hear(&Reply::parse("ready"));
        assert_eq!(asked.wants, Some(Wants::Flows));
        asked.hear(&Reply::parse("up"));
        assert!(!asked.says_down);
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_a_panic(line in ".{0,80}") {
            let reply = Reply::parse(&line);
            prop_assert!(reply.weight.is_none_or(|weight| weight <= MAX_PERCENT));
        }
    }
}
