//! Owns the verdict on one backend: counts probe outcomes and says when its condition turns.
//! Never probes, never looks at a clock.

use crate::snapshot::Condition;

/// What one probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The backend answered as it should.
    Success,
    /// It did not.
    Failure,
    /// It says by itself that it can serve (`true`) or cannot, which needs no second time.
    Says(bool),
    /// It was reached, and nothing was said about it.
    Nothing,
}

/// A condition that has just turned into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: Condition,
    /// What it is now.
    pub to: Condition,
}

/// Condition of one backend and the run of outcomes that speaks against it.
#[derive(Debug, Clone)]
pub struct Machine {
    condition: Condition,
    rise: u32,
    fall: u32,
    against: u32,
    /// Failures in a row, whatever the condition.
    failures: u32,
}

impl Machine {
    /// A backend in condition `initial` that comes up after `rise` successes in a row and goes down
    /// after `fall` failures in a row. Zero counts as one.
    pub fn new(initial: Condition, rise: u32, fall: u32) -> Self {
        Self {
            condition: initial,
            rise: rise.max(1),
            fall: fall.max(1),
            against: 0,
            failures: 0,
        }
    }

    /// The condition now.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Whether the last probes speak against the condition, or there is none yet.
    pub fn in_doubt(&self) -> bool {
        self.against > 0 || self.condition == Condition::Starting
    }

    /// Whether probes have failed as often in a row as takes a backend down, which one that began so has yet to be shown to be.
    pub fn fails(&self) -> bool {
        self.failures >= self.fall
    }

    /// Takes note of a probe; returns the transition it completes, if any.
    pub fn observe(&mut self, outcome: Outcome) -> Option<Transition> {
        self.failures = match outcome {
            Outcome::Failure => self.failures.saturating_add(1),
            Outcome::Says(false) => self.fall,
            Outcome::Success | Outcome::Says(true) => 0,
            Outcome::Nothing => self.failures,
        };
        let (turned, needed) = match (self.condition, outcome) {
            (Condition::Up, Outcome::Success | Outcome::Says(true))
            | (Condition::Down, Outcome::Failure | Outcome::Says(false)) => {
                self.against = 0;
                return None;
            }
            (Condition::Up | Condition::Down, Outcome::Nothing) => return None,
            (_, Outcome::Says(true)) => (Condition::Up, 1),
            (_, Outcome::Says(false)) => (Condition::Down, 1),
            // Unproven, but usable: one success is proof enough, doubt needs as much as for `Up`.
            (Condition::Starting, Outcome::Success | Outcome::Nothing) => (Condition::Up, 1),
            (Condition::Down, Outcome::Success) => (Condition::Up, self.rise),
            (Condition::Starting | Condition::Up, Outcome::Failure) => (Condition::Down, self.fall),
        };
        self.against += 1;
        (self.against >= needed).then(|| self.turn(turned))
    }

    fn turn(&mut self, to: Condition) -> Transition {
        let from = std::mem::replace(&mut self.condition, to);
        self.against = 0;
        Transition { from, to }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Condition::{Down, Starting, Up};
    use Outcome::{Failure, Nothing, Says, Success};

    /// Observes all of `outcomes` and returns the indices at which the condition turned.
    fn turns(machine: &mut Machine, outcomes: &[Outcome]) -> Vec<(usize, Transition)> {
        let observed = outcomes.iter().map(|&outcome| machine.observe(outcome));
        observed
            .enumerate()
            .filter_map(|(index, turn)| Some((index, turn?)))
            .collect()
    }

    #[test]
    fn first_success_brings_a_starting_backend_up() {
        let mut machine = Machine::new(Starting, 5, 3);
        let turn = Transition {
            from: Starting,
            to: Up,
        };
        assert_eq!(
            turns(&mut machine, &[Failure, Failure, Success]),
            [(2, turn)]
        );
    }

    #[test]
    fn starting_backend_goes_down_on_exactly_the_fall_th_failure() {
        let mut machine = Machine::new(Starting, 2, 3);
        let turn = Transition {
            from: Starting,
            to: Down,
        };
        assert_eq!(turns(&mut machine, &[Failure; 4]), [(2, turn)]);
    }

    #[test]
    fn up_backend_goes_down_on_exactly_the_fall_th_failure() {
        let mut machine = Machine::new(Up, 2, 3);
        let turn = Transition { from: Up, to: Down };
        assert_eq!(turns(&mut machine, &[Failure; 4]), [(2, turn)]);
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut machine = Machine::new(Up, 2, 3);
        let outcomes = [Failure, Failure, Success, Failure, Failure, Success];
        assert_eq!(turns(&mut machine, &outcomes), []);
    }

    #[test]
    fn down_backend_comes_up_on_exactly_the_rise_th_success() {
        let mut machine = Machine::new(Down, 2, 3);
        let turn = Transition { from: Down, to: Up };
        assert_eq!(
            turns(&mut machine, &[Success, Failure, Success, Success, Success]),
            [(3, turn)]
        );
    }

    #[test]
    fn a_failure_right_after_recovery_does_not_count_the_ones_before_it() {
        let mut machine = Machine::new(Down, 1, 2);
        let outcomes = [Failure, Failure, Success, Failure];
        assert_eq!(
            turns(&mut machine, &outcomes),
            [(2, Transition { from: Down, to: Up })]
        );
        assert_eq!(machine.condition(), Up);
    }

    #[test]
    fn zero_thresholds_count_as_one() {
        let mut machine = Machine::new(Up, 0, 0);
        assert_eq!(
            machine.observe(Failure),
            Some(Transition { from: Up, to: Down })
        );
        assert_eq!(
            machine.observe(Success),
            Some(Transition { from: Down, to: Up })
        );
    }

    #[test]
    fn what_a_backend_says_of_itself_counts_at_once() {
        let mut machine = Machine::new(Up, 5, 5);
        let turns = turns(
            &mut machine,
            &[Says(false), Nothing, Says(true), Says(true)],
        );
        assert_eq!(
            turns,
            [
                (0, Transition { from: Up, to: Down }),
                (2, Transition { from: Down, to: Up }),
            ]
        );
    }

    #[test]
    fn nothing_said_leaves_everything_but_brings_a_starting_backend_up() {
        let mut machine = Machine::new(Up, 2, 2);
        assert_eq!(turns(&mut machine, &[Nothing, Failure, Nothing]), []);
        assert!(machine.in_doubt());
        assert!(machine.observe(Failure).is_some());
        let mut machine = Machine::new(Starting, 2, 2);
        assert!(machine.in_doubt());
        machine.observe(Nothing);
        assert_eq!((machine.condition(), machine.in_doubt()), (Up, false));
    }

    /// The rule as a sentence: look back over the outcomes since the last turn.
    fn naive(initial: Condition, rise: u32, fall: u32, outcomes: &[Outcome]) -> Condition {
        let (mut condition, mut since) = (initial, 0);
        for end in 1..=outcomes.len() {
            let run = |wanted| {
                outcomes[since..end]
                    .iter()
                    .rev()
                    .take_while(|&&o| o == wanted)
                    .count()
            };
            let next = match condition {
                Starting if run(Success) >= 1 => Up,
                Down if run(Success) >= rise as usize => Up,
                Starting | Up if run(Failure) >= fall as usize => Down,
                same => same,
            };
            if next != condition {
                (condition, since) = (next, end);
            }
        }
        condition
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_model_after_every_outcome(
            initial in prop_oneof![Just(Starting), Just(Up), Just(Down)],
            rise in 1_u32..5,
            fall in 1_u32..5,
            outcomes in prop::collection::vec(prop_oneof![Just(Success), Just(Failure)], 0..60),
        ) {
            let mut machine = Machine::new(initial, rise, fall);
            for end in 1..=outcomes.len() {
                let before = machine.condition();
                let turn = machine.observe(outcomes[end - 1]);
                let expected = naive(initial, rise, fall, &outcomes[..end]);
                prop_assert_eq!(machine.condition(), expected);
                let changed = (before != expected).then_some(Transition { from: before, to: expected });
                prop_assert_eq!(turn, changed);
            }
        }
    }
}
