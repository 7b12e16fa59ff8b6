//! Weighted Maglev look-up tables, allocation-free.
//!
//! D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4:
//! each backend has a permutation of the slots, and backends take turns to claim their next free
//! one. Weights: in each round a backend earns its weight, and claims a slot for every largest
//! weight it has earned, so that each share is within
//! 1 + N·w/Σw slots of its ideal.
//!
//! A permutation depends on the backend's address and port alone, so every balancer that knows the
//! same pool builds the same ring, whatever its history.

use crate::tables::Address;

/// Ring sizes that can be chosen: primes, so that every skip visits every slot.
pub const RING_SIZES: [u32; 8] = [251, 1_021, 4_093, 16_381, 65_537, 131_071, 262_139, 655_373];

/// Mark of a slot that nobody owns.
pub const NOBODY: u16 = u16::MAX;

/// A backend's claim to a share of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    id: u16,
    weight: u32,
    position: u32,
    skip: u32,
    earned: u32,
}

impl Claim {
    /// The claim of backend `id`, which is reached at `address` and `port`, to a share of
    /// `weight` in a ring of `size` slots (a prime of at least 3).
    pub fn new(id: u16, address: &Address, port: u16, weight: u16, size: u32) -> Self {
        // Loaded words differ with the machine's byte order; every balancer must agree.
        let [a, b, c, d] = address.words().map(|word| u64::from(u32::from_be(word)));
        let identity = [(a << 32) | b, (c << 32) | d, u64::from(u16::from_be(port))];
        let offset = digest(identity, 0x6f66_6673_6574_0001) % u64::from(size);
        let skip = digest(identity, 0x736b_6970_0000_0001) % u64::from(size - 1) + 1;
        Self::with_permutation(id, offset as u32, skip as u32, weight)
    }

    /// A claim with the paper's `offset` and `skip` given.
    pub const fn with_permutation(id: u16, offset: u32, skip: u32, weight: u16) -> Self {
        Self {
            id,
            weight: weight as u32,
            position: offset,
            skip,
            earned: 0,
        }
    }

    /// Whose claim it is.
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// The next slot of the permutation.
    fn next(&mut self, size: usize) -> usize {
        let slot = self.position as usize;
        self.position += self.skip;
        if self.position >= size as u32 {
            self.position -= size as u32;
        }
        slot
    }

    /// The next slot of the permutation that nobody owns, of which there must be one. Says which it passes.
    fn next_free(&mut self, owners: &[u16], mut passes: impl FnMut(usize)) -> usize {
        loop {
            let slot = self.next(owners.len());
            if owners.get(slot).is_some_and(|&owner| owner == NOBODY) {
                return slot;
            }
            passes(slot);
        }
    }

    /// Whether it is its turn, where the heaviest has one in every round.
    fn has_turn(&mut self, heaviest: u32) -> bool {
        self.earned += self.weight;
        let has = self.earned >= heaviest;
        if has {
            self.earned -= heaviest;
        }
        has
    }
}

fn heaviest(claims: &[Claim]) -> u32 {
    claims.iter().map(|claim| claim.weight).max().unwrap_or(0)
}

fn digest(words: [u64; 3], seed: u64) -> u64 {
    words
        .iter()
        .fold(seed, |state, &word| crate::hash::finish(state ^ word))
}

/// Fills `owners` (a prime number of slots, at most [`RING_SIZES`]'s largest) with the ids of
/// `claims`, by weight. Claims of weight 0 get none; without any other, every slot is [`NOBODY`]'s.
pub fn fill(owners: &mut [u16], claims: &mut [Claim]) {
    fill_telling(owners, claims, |_, _, _| {});
}

/// Fills `owners` as [`fill`] does, and as many `seconds` with who would own each slot instead if its owner were not there,
/// as far as one filling tells: whoever came to it first after its owner, or would, were there more to claim.
/// [`NOBODY`] where there is nobody else. Takes about twice as long.
pub fn fill_with_seconds(owners: &mut [u16], seconds: &mut [u16], claims: &mut [Claim]) {
    seconds.fill(NOBODY);
    fill_telling(owners, claims, |slot, owner, id| {
        let second = seconds.get_mut(slot);
        if let Some(second) = second.filter(|second| **second == NOBODY && owner != id) {
            *second = id;
        }
    });
    let mut left = seconds.iter().filter(|&&second| second == NOBODY).count();
    let size = owners.len();
    while left > 0 && heaviest(claims) > 0 {
        let heaviest = heaviest(claims);
        for claim in claims.iter_mut() {
            if left == 0 || !claim.has_turn(heaviest) {
                continue;
            }
            let id = claim.id;
            let lacks =
                |&slot: &usize| owners.get(slot) != Some(&id) && seconds.get(slot) == Some(&NOBODY);
            let found = (0..size).map(|_| claim.next(size)).find(lacks);
            match found.and_then(|slot| seconds.get_mut(slot)) {
                Some(second) => {
                    *second = id;
                    left -= 1;
                }
                // All that are left are its own.
                None => (claim.weight, claim.earned) = (0, 0),
            }
        }
    }
}

/// Fills `owners`, and tells of each slot that is passed: which, its owner, and who passes it.
#[inline(always)]
fn fill_telling(owners: &mut [u16], claims: &mut [Claim], mut passed: impl FnMut(usize, u16, u16)) {
    owners.fill(NOBODY);
    let heaviest = heaviest(claims);
    if heaviest == 0 {
        return;
    }
    let mut free = owners.len();
    loop {
        for claim in claims.iter_mut() {
            if !claim.has_turn(heaviest) {
                continue;
            }
            if free == 0 {
                return;
            }
            let id = claim.id;
            let slot = claim.next_free(owners, |slot| {
                passed(slot, owners.get(slot).copied().unwrap_or(NOBODY), id);
            });
            if let Some(owner) = owners.get_mut(slot) {
                *owner = claim.id;
            }
            free -= 1;
        }
        if free == 0 {
            return;
        }
    }
}

/// The ring size that suits a pool: at least 100 slots a backend keep shares within 1% (§5.3 of the
/// paper). `current` is kept while it has 50, since another size moves every flow.
pub fn suitable_size(backends: usize, current: Option<u32>) -> u32 {
    let backends = u32::try_from(backends).unwrap_or(u32::MAX);
    if let Some(current) = current
        && current / 50 >= backends
    {
        return current;
    }
    let [.., largest] = RING_SIZES;
    RING_SIZES
        .into_iter()
        .filter(|&size| size >= SMALLEST_DEFAULT)
        .find(|&size| size / 100 >= backends)
        .unwrap_or(largest)
}

/// Smallest size chosen unasked: leaves a pool room to grow before its ring has to.
const SMALLEST_DEFAULT: u32 = 4_093;

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn pool(weights: &[u16], size: u32) -> Vec<Claim> {
        let claim = |(id, &weight): (usize, &u16)| {
            let address = Address::v4(u32::from_ne_bytes([10, 1, (id >> 8) as u8, id as u8]));
            Claim::new(id as u16, &address, 80_u16.to_be(), weight, size)
        };
        weights.iter().enumerate().map(claim).collect()
    }

    fn ring(weights: &[u16], size: u32) -> Vec<u16> {
        let mut owners = vec![0; size as usize];
        fill(&mut owners, &mut pool(weights, size));
        owners
    }

    fn shares(owners: &[u16], backends: usize) -> Vec<u32> {
        let mut shares = vec![0; backends];
        for &owner in owners {
            shares[usize::from(owner)] += 1;
        }
        shares
    }

    #[test]
    fn the_table_of_the_paper_comes_out() {
        let claim = |id, (offset, skip)| Claim::with_permutation(id, offset, skip, 1);
        let mut all = [claim(0, (3, 4)), claim(1, (0, 2)), claim(2, (3, 1))];
        let mut owners = [0; 7];
        fill(&mut owners, &mut all);
        assert_eq!(owners, [1, 0, 1, 0, 2, 2, 0]);
        let mut without_b1 = [claim(0, (3, 4)), claim(2, (3, 1))];
        fill(&mut owners, &mut without_b1);
        assert_eq!(owners, [0, 0, 0, 0, 2, 2, 2]);
    }

    #[test]
    fn four_hundred_equal_backends_differ_by_at_most_one_slot() {
        let shares = shares(&ring(&[1; 400], 65_537), 400);
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 1, "{least}..={most}");
    }

    #[test]
    fn weights_two_one_one_are_met_within_two_slots() {
        let shares = shares(&ring(&[2, 1, 1], 65_537), 3);
        for (share, ideal) in shares.iter().zip([32_768.5, 16_384.25, 16_384.25]) {
            assert!((f64::from(*share) - ideal).abs() <= 2.0, "{shares:?}");
        }
    }

    #[test]
    fn losing_one_of_a_hundred_backends_moves_few_other_slots() {
        let before = ring(&[1; 100], 65_537);
        let mut weights = [1; 100];
        weights[37] = 0;
        let after = ring(&weights, 65_537);
        let innocent = before
            .iter()
            .zip(&after)
            .filter(|(b, a)| **b != 37 && a != b)
            .count();
        assert!(innocent as f64 / 65_537.0 < 0.02, "{innocent} slots");
        assert!(!after.contains(&37));
    }

    fn ring_and_seconds(weights: &[u16], size: u32) -> [Vec<u16>; 2] {
        let [mut owners, mut seconds] = [(); 2].map(|()| vec![0; size as usize]);
        fill_with_seconds(&mut owners, &mut seconds, &mut pool(weights, size));
        [owners, seconds]
    }

    #[test]
    fn seconds_are_mostly_who_would_own_the_slots_without_their_owners() {
        let weights = [1; 50];
        let [owners, seconds] = ring_and_seconds(&weights, 16_381);
        assert_eq!(owners, ring(&weights, 16_381));
        for gone in [0, 17, 49] {
            let mut without = weights;
            without[gone] = 0;
            let after = ring(&without, 16_381);
            let both = owners.iter().zip(seconds.iter().zip(&after));
            let own = both.filter(|(owner, _)| usize::from(**owner) == gone);
            let (own, right) = own.fold((0, 0), |(own, right), (_, (second, after))| {
                (own + 1, right + u32::from(second == after))
            });
            std::println!("{right} of {own}");
            assert!(right * 10 >= own * 6, "{right} of {own}");
        }
    }

    #[test]
    fn without_anybody_else_a_slot_has_no_second() {
        let [owners, seconds] = ring_and_seconds(&[1], 251);
        assert!(owners.iter().all(|&owner| owner == 0));
        assert!(seconds.iter().all(|&second| second == NOBODY));
        let [_, seconds] = ring_and_seconds(&[0, 0], 251);
        assert!(seconds.iter().all(|&second| second == NOBODY));
    }

    #[test]
    fn a_ring_is_the_same_on_every_machine() {
        let owners = ring(&[1, 2, 3], 251);
        let digest = owners.iter().fold(0u64, |sum, &owner| {
            sum.wrapping_mul(31).wrapping_add(owner.into())
        });
        // From an independent implementation of the same definition.
        assert_eq!(digest, 0x6c18_d58a_71c3_e846);
    }

    #[test]
    fn a_claim_depends_on_address_and_port() {
        let at = |address, port: u16| Claim::new(0, &Address::v4(address), port, 1, 65_537);
        assert_ne!(at(1, 80), at(2, 80));
        assert_ne!(at(1, 80), at(1, 81));
        let v6 = |words| Claim::new(0, &Address::from_words(words), 80, 1, 65_537);
        let claims = [
            v6([1, 0, 0, 0]),
            v6([0, 1, 0, 0]),
            v6([0, 0, 1, 0]),
            v6([0, 0, 0, 1]),
        ];
        for (i, a) in claims.iter().enumerate() {
            assert!(claims[i + 1..].iter().all(|b| a != b), "{claims:?}");
        }
    }

    #[test]
    fn a_claim_says_whose_it_is() {
        let ids: Vec<u16> = pool(&[1; 300], 251).iter().map(Claim::id).collect();
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn a_ring_without_weight_belongs_to_nobody() {
        assert!(ring(&[0, 0], 251).iter().all(|&owner| owner == NOBODY));
        assert!(ring(&[], 251).iter().all(|&owner| owner == NOBODY));
    }

    #[test]
    fn a_suitable_ring_has_a_hundred_slots_a_backend_and_stays() {
        assert_eq!(suitable_size(0, None), 4_093);
        assert_eq!(suitable_size(40, None), 4_093);
        assert_eq!(suitable_size(41, None), 16_381);
        assert_eq!(suitable_size(81, Some(4_093)), 4_093);
        assert_eq!(suitable_size(82, Some(4_093)), 16_381);
        assert_eq!(suitable_size(3, Some(65_537)), 65_537);
        assert_eq!(suitable_size(1_000_000, None), 655_373);
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(0u16..=1_000, 1..20)) {
            let size = 16_381;
            let total: u32 = weights.iter().map(|&w| u32::from(w)).sum();
            prop_assume!(total > 0);
            let shares = shares(&ring(&weights, size), weights.len());
            for (&weight, &share) in weights.iter().zip(&shares) {
                // Rounding down costs each backend less than a slot, and what all of them lose is
                // handed out again by weight.
                let part = f64::from(weight) / f64::from(total);
                let bound = 1.0 + weights.len() as f64 * part;
                let ideal = f64::from(size) * part;
                prop_assert!((f64::from(share) - ideal).abs() <= bound, "{weight}: {share} for {ideal}");
            }
        }

        #[test]
        fn every_slot_has_a_second_who_is_not_its_owner(weights in prop::collection::vec(1u16..=1_000, 2..12)) {
            let [owners, seconds] = ring_and_seconds(&weights, 1_021);
            prop_assert_eq!(&owners, &ring(&weights, 1_021));
            for (owner, second) in owners.iter().zip(&seconds) {
                prop_assert!(owner != second && *second != NOBODY);
            }
        }

        #[test]
        fn a_permutation_visits_every_slot(address: u32, port: u16) {
            let mut owners = vec![NOBODY; 251];
            let mut claim = Claim::new(0, &Address::v4(address), port, 1, 251);
            for _ in 0..251 {
                let slot = claim.next_free(&owners, |_| {});
                prop_assert_eq!(owners[slot], NOBODY);
                owners[slot] = 0;
            }
        }
    }
}
