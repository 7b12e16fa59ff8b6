//! The Internet checksum: whole (RFC 1071) and incremental (RFC 1624).
//!
//! Words are added as they are loaded: ones' complement sums do not depend on byte order as long
//! as it is the same throughout (RFC 1071 §2(B)), so nothing is swapped.

/// A ones' complement sum under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a 16-bit word.
    #[inline(always)]
    pub const fn add16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds a 32-bit word: two 16-bit ones, since 2¹⁶ ≡ 1.
    #[inline(always)]
    pub const fn add32(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds four 32-bit words.
    #[inline(always)]
    pub const fn add128(self, words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        self.add32(a).add32(b).add32(c).add32(d)
    }

    /// Takes a 16-bit word out.
    #[inline(always)]
    pub const fn remove16(self, word: u16) -> Self {
        self.add16(!word)
    }

    /// Takes a 32-bit word out.
    #[inline(always)]
    pub const fn remove32(self, word: u32) -> Self {
        self.add32(!word)
    }

    /// Takes four 32-bit words out.
    #[inline(always)]
    pub const fn remove128(self, words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        self.remove32(a).remove32(b).remove32(c).remove32(d)
    }

    /// Both sums together.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum in 16 bits. Enough for 2³² added words.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }

    /// The checksum field of a header whose other words were added.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum field after the change that this sum describes: HC' = ~(~HC + ~m + m')
    /// (RFC 1624 §3, equation 3).
    #[inline(always)]
    pub const fn update(self, check: u16) -> u16 {
        self.add16(!check).checksum()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §1, word by word, with nothing clever.
    fn naive(words: &[u16]) -> u16 {
        let mut sum = 0u32;
        for &word in words {
            sum += u32::from(word);
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        sum as u16
    }

    fn same(a: u16, b: u16) -> bool {
        a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff))
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let sum = Sum::new()
            .add16(0x0001)
            .add16(0xf203)
            .add16(0xf4f5)
            .add16(0xf6f7);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn the_example_of_rfc_1624_comes_out() {
        let update = Sum::new().remove16(0x5555).add16(0x3285);
        assert_eq!(update.update(0xdd2f), 0x0000);
    }

    #[test]
    fn folding_takes_every_carry() {
        // Each of the folds but the first leaves one more carry here.
        for (sum, folded) in [
            (0x0000_0000_0001_0000, 1),
            (0x0000_0000_ffff_ffff, 0xffff),
            (0x0000_0001_0000_0000, 1),
            (0x0001_0000_ffff_ffff, 1),
            (u64::MAX, 0xffff),
        ] {
            assert_eq!(Sum(sum).fold(), folded, "{sum:#x}");
        }
    }

    proptest! {
        #[test]
        fn folding_is_the_remainder_by_0xffff(sum: u64) {
            prop_assert_eq!(u64::from(Sum(sum).fold()) % 0xffff, sum % 0xffff);
        }

        #[test]
        fn folding_equals_the_word_by_word_sum(words in prop::collection::vec(any::<u16>(), 0..64)) {
            let sum = words.iter().fold(Sum::new(), |sum, &word| sum.add16(word));
            prop_assert!(same(sum.fold(), naive(&words)));
        }

        #[test]
        fn wide_words_sum_like_their_halves(a: [u32; 4], b: u32) {
            let halves: Vec<u16> = a.iter().chain([&b]).flat_map(|w| [(w >> 16) as u16, *w as u16]).collect();
            prop_assert!(same(Sum::new().add128(a).add32(b).fold(), naive(&halves)));
        }

        #[test]
        fn an_incremental_update_equals_a_recomputation(
            mut words in prop::collection::vec(any::<u32>(), 5..20), to: [u32; 4], port: u16, at in 0usize..1,
        ) {
            let whole = |words: &[u32], port: u16| {
                words.iter().fold(Sum::new(), |sum, &word| sum.add32(word)).add16(port).checksum()
            };
            let before = whole(&words, 7);
            let from = [words[at], words[at + 1], words[at + 2], words[at + 3]];
            words[at..at + 4].copy_from_slice(&to);
            let update = Sum::new().remove128(from).add128(to).remove16(7).add16(port);
            prop_assert!(same(update.update(before), whole(&words, port)));
            let (old, new) = (words[4], words[4] ^ 0x8000_0001);
            let before = whole(&words, port);
            words[4] = new;
            prop_assert!(same(Sum::new().remove32(old).add32(new).update(before), whole(&words, port)));
        }
    }
}
