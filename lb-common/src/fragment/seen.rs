//! Which parts of a datagram have come, so that fragments that overlap are told. One word: what a flood of
//! fragments costs is bounded, and another CPU's fragment of the same datagram leaves it true, if perhaps
//! not whole.

/// The beginning that has come without a gap, one run behind a gap, and where the datagram ends if that is
/// known. In units of eight bytes, as offsets on the wire are. What lies behind a second gap is not noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Where the first gap begins.
    end: u16,
    /// Where the run behind it begins.
    from: u16,
    /// Where that ends; no more than `from`: there is none.
    to: u16,
    /// Where the datagram ends; 0: not known.
    total: u16,
}

/// Why a fragment is not of what has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// All of it has come before, as where the network sends it twice.
    Again,
    /// It contradicts what has come.
    Contradicts,
}

/// The part of a datagram that a fragment is, in units of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub from: u16,
    /// Where it ends, beyond that; of the last one rounded up.
    pub to: u16,
    /// Whether nothing follows.
    pub last: bool,
}

impl Seen {
    /// From the word of another's [`Seen::word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            end: word as u16,
            from: (word >> 16) as u16,
            to: (word >> 32) as u16,
            total: (word >> 48) as u16,
        }
    }

    /// All of it, to be stored at once.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.end as u64
            | (self.from as u64) << 16
            | (self.to as u64) << 32
            | (self.total as u64) << 48
    }

    /// Whether the whole datagram has come.
    #[inline(always)]
    pub const fn is_whole(self) -> bool {
        self.total != 0 && self.end == self.total
    }

    /// Notes a part.
    ///
    /// # Errors
    /// It overlaps what is noted, or lies beyond the end, or there is another end.
    #[inline(always)]
    pub fn with(self, part: Part) -> Result<Self, Overlap> {
        let Part { from, to, last } = part;
        let runs = self.from < self.to;
        if to <= self.end || (runs && from >= self.from && to <= self.to) {
            return Err(Overlap::Again);
        }
        let overlaps = from < self.end || (runs && from < self.to && to > self.from);
        let beyond = self.total != 0 && (to > self.total || last);
        let cuts = last && runs && self.to > to;
        if overlaps || beyond || cuts {
            return Err(Overlap::Contradicts);
        }
        let mut seen = self;
        if last {
            seen.total = to;
        }
        if from == self.end {
            seen.end = to;
            if runs && to == self.from {
                seen.end = self.to;
                (seen.from, seen.to) = (0, 0);
            }
        } else if !runs {
            (seen.from, seen.to) = (from, to);
        } else if from == self.to {
            seen.to = to;
        } else if to == self.from {
            seen.from = from;
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn part(from: u16, to: u16) -> Part {
        let last = false;
        Part { from, to, last }
    }

    fn last(from: u16, to: u16) -> Part {
        let last = true;
        Part { from, to, last }
    }

    fn all(parts: &[Part]) -> Result<Seen, Overlap> {
        let add = |seen: Seen, part: &Part| seen.with(*part);
        parts.iter().try_fold(Seen::default(), add)
    }

    /// A datagram cut at these places.
    fn cut(mut at: Vec<u16>) -> Vec<Part> {
        at.sort_unstable();
        at.dedup();
        let mut parts: Vec<Part> = (at.windows(2)).map(|pair| part(pair[0], pair[1])).collect();
        if let Some(end) = parts.last_mut() {
            end.last = true;
        }
        parts
    }

    #[test]
    fn a_datagram_is_whole_once_all_of_it_has_come_in_order_or_with_one_gap() {
        for parts in [
            [part(0, 185), part(185, 370), last(370, 400)],
            [part(0, 185), last(370, 400), part(185, 370)],
            [last(370, 400), part(185, 370), part(0, 185)],
        ] {
            let [first, second, _] = parts;
            assert!(!all(&[first, second]).unwrap().is_whole(), "{parts:?}");
            assert!(all(&parts).unwrap().is_whole(), "{parts:?}");
        }
    }

    #[test]
    fn what_has_come_before_comes_again_and_what_has_come_in_part_contradicts() {
        let noted = [part(0, 10), part(20, 30)];
        let noted = all(&noted).unwrap();
        for again in [part(0, 10), part(3, 4), part(20, 30), part(21, 30)] {
            assert_eq!(noted.with(again), Err(Overlap::Again), "{again:?}");
        }
        for other in [
            part(0, 11),
            part(9, 12),
            part(19, 21),
            part(19, 31),
            part(29, 31),
            part(5, 25),
            last(12, 14),
        ] {
            assert_eq!(noted.with(other), Err(Overlap::Contradicts), "{other:?}");
        }
    }

    #[test]
    fn a_datagram_has_one_end_and_nothing_behind_it() {
        let noted = all(&[part(0, 10), last(20, 30)]).unwrap();
        for other in [part(30, 31), last(12, 20), last(30, 40)] {
            assert_eq!(noted.with(other), Err(Overlap::Contradicts), "{other:?}");
        }
        assert!(noted.with(part(10, 20)).unwrap().is_whole());
    }

    proptest! {
        #[test]
        fn parts_that_do_not_overlap_are_taken_in_any_order(
            at in prop::collection::vec(1..8_192u16, 1..20), order: u64,
        ) {
            let mut parts = cut([0].into_iter().chain(at).collect());
            let mut seed = order;
            for place in (1..parts.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                parts.swap(place, (seed >> 33) as usize % (place + 1));
            }
            prop_assert!(all(&parts).is_ok(), "{parts:?}");
        }

        #[test]
        fn of_what_has_come_in_order_every_overlap_is_told(
            at in prop::collection::vec(1..8_000u16, 1..20), from in 0..8_191u16, length in 1..300u16,
        ) {
            let parts = cut([0].into_iter().chain(at).collect());
            let noted = all(&parts).unwrap();
            let end = parts.last().map_or(0, |part| part.to);
            prop_assume!(from < end);
            prop_assert!(noted.with(part(from, from + length)).is_err());
        }

        #[test]
        fn a_word_says_all_of_it(end: u16, from: u16, to: u16, total: u16) {
            let seen = Seen { end, from, to, total };
            prop_assert_eq!(Seen::from_word(seen.word()), seen);
        }
    }
}
