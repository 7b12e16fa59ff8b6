//! What keys mean. Pure; never does it.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::BACKENDS;

/// What the user asks for. Servers are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End the playground.
    Quit,
    /// Kill this server, or start it again.
    Server(u8),
    /// Drain this server in every service, or end that.
    Drain(u8),
    /// Kill the agent, or start it again.
    Agent,
}

/// The keys and what each does, for the screen.
pub const HELP: [(&str, &str); 4] = [
    ("1 2 3", "kill/revive nginx"),
    ("d1 d2 d3", "drain/undrain"),
    ("a", "kill/revive lbd"),
    ("q", "quit"),
];

/// Reads key after key: `d` waits for its number.
#[derive(Debug, Default)]
pub struct Keys {
    drain: bool,
}

impl Keys {
    /// What `key` asks for, if anything.
    pub fn press(&mut self, key: KeyEvent) -> Option<Action> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let drain = std::mem::take(&mut self.drain);
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => Some(Action::Quit),
            _ if control => None,
            KeyCode::Char('q') => Some(Action::Quit),
            KeyCode::Char('a') => Some(Action::Agent),
            KeyCode::Char('d') => {
                self.drain = true;
                None
            }
            KeyCode::Char(digit) => {
                let n = u8::try_from(digit.to_digit(10)?).ok()?;
                let known = (1..=BACKENDS).contains(&n);
                let action = if drain { Action::Drain } else { Action::Server };
                known.then(|| action(n))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed(text: &str) -> Vec<Action> {
        let mut keys = Keys::default();
        let press = |c| keys.press(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE));
        text.chars().filter_map(press).collect()
    }

    #[test]
    fn a_number_kills_and_after_d_it_drains() {
        assert_eq!(pressed("2"), [Action::Server(2)]);
        assert_eq!(pressed("d2"), [Action::Drain(2)]);
        assert_eq!(pressed("d23"), [Action::Drain(2), Action::Server(3)]);
    }

    #[test]
    fn any_other_key_takes_d_back() {
        assert_eq!(pressed("dx1"), [Action::Server(1)]);
        assert_eq!(pressed("daq"), [Action::Agent, Action::Quit]);
    }

    #[test]
    fn numbers_of_no_server_do_nothing() {
        assert_eq!(pressed("04d9"), []);
    }

    #[test]
    fn control_c_quits_and_other_control_keys_do_not() {
        let mut keys = Keys::default();
        let mut press = |c| keys.press(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
        assert_eq!(press('q'), None);
        assert_eq!(press('c'), Some(Action::Quit));
    }
}
