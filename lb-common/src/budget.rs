//! How many answers a CPU gives in a VIP's name in a second, so that a flood of requests makes none of
//! answers (RFC 4443 §2.4(f), RFC 1812 §4.3.2.8). No clock of its own.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    tables::{SECOND, Tick},
    verdict::Answer,
};

/// Answers of a kind that a CPU gives in a second.
pub const LIMIT: u32 = 1_000;

/// Budgets: one for each of [`Answer`] by its number, though what is no answer takes none.
pub const KINDS: u32 = Answer::ALL.len() as u32;

/// Number of one more budget, which those kinds leave: that of fragments that are held ([`crate::fragment`]).
pub const HELD: u32 = KINDS;

/// How many budgets there are.
pub const BUDGETS: u32 = KINDS + 1;

/// How many answers were given; one for each kind and CPU.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Budget {
    /// In this second.
    given: u32,
    /// When that began.
    since: Tick,
}

impl Budget {
    /// Takes one, unless there have been as many as there may be.
    #[inline(always)]
    pub fn take(&mut self, now: Tick) -> bool {
        if now.wrapping_sub(self.since) >= SECOND {
            *self = Self {
                given: 0,
                since: now,
            };
        }
        let may = self.given < LIMIT;
        if may {
            self.given += 1;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_answered_in_a_second_and_in_the_next_as_many_again() {
        let mut budget = Budget::default();
        for begin in [5_000, 5_000 + SECOND, Tick::MAX - 3, SECOND - 4] {
            let given = (0..2 * LIMIT).filter(|n| budget.take(begin.wrapping_add(n % SECOND)));
            assert_eq!(given.count() as u32, LIMIT, "from {begin}");
        }
    }
}
