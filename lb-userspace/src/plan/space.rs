//! Room in the maps: single indices, and spans of consecutive ones. Pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet};

/// Hands out indices below a limit, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indices {
    used: BTreeSet<u32>,
    first: u32,
    limit: u32,
}

impl Indices {
    /// The indices from `first` to below `limit`, all free.
    pub fn new(first: u32, limit: u32) -> Self {
        Self {
            used: BTreeSet::new(),
            first,
            limit,
        }
    }

    /// The lowest free index, now used.
    pub fn take(&mut self) -> Option<u32> {
        // Used indices are nearly dense, so the first gap is found by walking them in order.
        let mut index = self.first;
        if self.used.len() as u32 == self.used.last().map_or(0, |last| last + 1 - self.first) {
            index = self.used.last().map_or(self.first, |last| last + 1);
        } else {
            for &used in &self.used {
                if used != index {
                    break;
                }
                index += 1;
            }
        }
        (index < self.limit).then(|| {
            self.used.insert(index);
            index
        })
    }

    /// Marks an index that is known to be used.
    pub fn claim(&mut self, index: u32) {
        self.used.insert(index);
    }

    /// Frees an index.
    pub fn release(&mut self, index: u32) {
        self.used.remove(&index);
    }

    /// How many are free.
    pub fn left(&self) -> u32 {
        self.limit
            .saturating_sub(self.first + self.used.len() as u32)
    }

    /// How many are used.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.used.len()
    }
}

/// Hands out spans of an array, first fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    used: BTreeMap<u32, u32>,
    limit: u32,
}

impl Spans {
    /// An array of `limit` elements, all free.
    pub fn new(limit: u32) -> Self {
        Self {
            used: BTreeMap::new(),
            limit,
        }
    }

    /// Start of a free span of `length` elements, now used.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let mut start = 0u32;
        for (&used, &size) in &self.used {
            if used - start >= length {
                break;
            }
            start = used + size;
        }
        let end = start.checked_add(length)?;
        (end <= self.limit).then(|| {
            self.used.insert(start, length);
            start
        })
    }

    /// Marks a span that is known to be used. Empty ones count for nothing.
    pub fn claim(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.used.insert(start, length);
        }
    }

    /// Frees the span that starts there.
    pub fn release(&mut self, start: u32) {
        self.used.remove(&start);
    }

    /// Elements used.
    #[cfg(test)]
    pub fn used(&self) -> u32 {
        self.used.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn indices_are_reused_lowest_first_and_end_at_the_limit() {
        let mut indices = Indices::new(1, 4);
        assert_eq!(
            [indices.take(), indices.take(), indices.take()],
            [Some(1), Some(2), Some(3)]
        );
        assert_eq!(indices.take(), None);
        indices.release(2);
        assert_eq!(indices.take(), Some(2));
        indices.release(1);
        indices.release(3);
        assert_eq!([indices.take(), indices.take()], [Some(1), Some(3)]);
    }

    #[test]
    fn claimed_indices_are_not_handed_out() {
        let mut indices = Indices::new(0, 10);
        indices.claim(0);
        indices.claim(2);
        assert_eq!([indices.take(), indices.take()], [Some(1), Some(3)]);
        assert_eq!(indices.used(), 4);
    }

    proptest! {
        #[test]
        fn spans_never_overlap(steps in prop::collection::vec((1u32..20, any::<bool>()), 1..60)) {
            let mut spans = Spans::new(100);
            let mut live: Vec<(u32, u32)> = Vec::new();
            for (length, release) in steps {
                if release && !live.is_empty() {
                    spans.release(live.remove(0).0);
                } else if let Some(start) = spans.take(length) {
                    prop_assert!(start + length <= 100);
                    prop_assert!(live.iter().all(|&(s, l)| start >= s + l || s >= start + length));
                    live.push((start, length));
                } else {
                    prop_assert!(spans.used() + length > 100 || live.len() > 1);
                }
            }
            prop_assert_eq!(spans.used(), live.iter().map(|l| l.1).sum::<u32>());
        }
    }
}
