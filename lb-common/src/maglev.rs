//! Weighted Maglev look-up tables.

/// Ring sizes that can be chosen: primes, so that every skip visits every slot.
pub const RING_SIZES: [u32; 8] = [251, 1_021, 4_093, 16_381, 65_537, 131_071, 262_139, 655_373];
