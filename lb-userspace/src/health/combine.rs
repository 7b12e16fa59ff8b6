//! Owns how the verdicts of several checks make the one on their backend. Pure.

use crate::{model::Combine, snapshot::Condition};

/// The condition of a backend whose checks say `each`; up where there is none.
pub fn condition(combine: Combine, each: impl IntoIterator<Item = Condition>) -> Condition {
    let (mut ups, mut downs, mut all) = (0, 0, 0);
    for condition in each {
        all += 1;
        match condition {
            Condition::Up => ups += 1,
            Condition::Down => downs += 1,
            Condition::Starting => {}
        }
    }
    match combine {
        _ if ups == all => Condition::Up,
        _ if downs == all => Condition::Down,
        Combine::All if downs > 0 => Condition::Down,
        Combine::Any if ups > 0 => Condition::Up,
        _ => Condition::Starting,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Combine::{All, Any};
    use Condition::{Down, Starting, Up};

    #[test]
    fn with_all_one_failing_check_is_enough() {
        assert_eq!(condition(All, [Up, Up]), Up);
        assert_eq!(condition(All, [Up, Down]), Down);
        assert_eq!(condition(All, [Starting, Down]), Down);
        assert_eq!(condition(All, [Up, Starting]), Starting);
    }

    #[test]
    fn with_any_one_passing_check_is_enough() {
        assert_eq!(condition(Any, [Up, Down]), Up);
        assert_eq!(condition(Any, [Starting, Up]), Up);
        assert_eq!(condition(Any, [Down, Down]), Down);
        assert_eq!(condition(Any, [Down, Starting]), Starting);
    }

    #[test]
    fn nothing_checked_is_up() {
        assert_eq!(condition(All, []), Up);
        assert_eq!(condition(Any, []), Up);
    }

    fn conditions() -> impl Strategy<Value = Vec<Condition>> {
        prop::collection::vec(prop_oneof![Just(Starting), Just(Up), Just(Down)], 1..6)
    }

    proptest! {
        #[test]
        fn a_single_check_decides_alone(each in conditions()) {
            for combine in [All, Any] {
                prop_assert_eq!(condition(combine, [each[0]]), each[0]);
            }
        }

        #[test]
        fn order_does_not_matter_and_any_is_never_worse_than_all(each in conditions()) {
            let rank = |condition| match condition { Down => 0, Starting => 1, Up => 2 };
            let turned = each.iter().rev().copied();
            prop_assert_eq!(condition(All, turned.clone()), condition(All, each.clone()));
            prop_assert_eq!(condition(Any, turned), condition(Any, each.clone()));
            prop_assert!(rank(condition(Any, each.clone())) >= rank(condition(All, each)));
        }

        #[test]
        fn any_is_all_with_up_and_down_exchanged(each in conditions()) {
            let turn = |condition| match condition { Up => Down, Down => Up, Starting => Starting };
            let turned = each.iter().map(|&condition| turn(condition));
            prop_assert_eq!(turn(condition(Any, each.clone())), condition(All, turned));
        }
    }
}
