//! The keyed hash of a flow.
//!
//! Multilinear hashing: with secret 64-bit words `m`, `h = m₀ + Σ mᵢ·wᵢ` over 32-bit words `wᵢ` is
//! strongly universal in its upper 32 bits (Lemire and Kaser, "Strongly universal string hashing is fast",
//! The Computer Journal 57(11), 2014), so that whoever does not know the key cannot aim at a backend.
//! Products are independent of each other, which suits a processor's pipeline and needs no
//! rotation, which BPF lacks. A finalizer spreads the upper bits so that two choices can be drawn.

use crate::tables::{Address, Endpoint, HASH_KEY_WORDS, service_flag};

/// A flow's hash: two 32-bit choices in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowHash(u64);

#[inline(always)]
const fn product(m: u64, w: u32) -> u64 {
    m.wrapping_mul(w as u64)
}

/// Hashes a flow. `ports` are source and destination in network order, loaded as one word. The
/// first three words of an IPv4 address say nothing and are left out.
#[inline(always)]
pub fn flow(
    key: &[u64; HASH_KEY_WORDS],
    source: &Address,
    destination: &Address,
    ports: u32,
    protocol: u8,
) -> FlowHash {
    let [m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, _] = *key;
    let [s0, s1, s2, s3] = source.words();
    let [d0, d1, d2, d3] = destination.words();
    let mut sum = m0
        .wrapping_add(product(m1, s3))
        .wrapping_add(product(m2, d3))
        .wrapping_add(product(m3, ports))
        .wrapping_add(product(m4, u32::from(protocol)));
    if !source.is_v4() {
        sum = sum
            .wrapping_add(product(m5, s0))
            .wrapping_add(product(m6, s1))
            .wrapping_add(product(m7, s2))
            .wrapping_add(product(m8, d0))
            .wrapping_add(product(m9, d1))
            .wrapping_add(product(m10, d2));
    }
    FlowHash(finish(sum))
}

/// Hashes what of a flow places it on a ring: its source alone, all but its ports or all of it, as `fields` says, bits
/// of [`service_flag::FIELDS`].
#[inline(always)]
pub fn placing(
    key: &[u64; HASH_KEY_WORDS],
    fields: u16,
    source: &Address,
    destination: &Address,
    ports: u32,
    protocol: u8,
) -> FlowHash {
    if fields & service_flag::BY_SOURCE != 0 {
        return self::source(key, source);
    }
    let ports = match fields & service_flag::BY_THREE_TUPLE {
        0 => ports,
        _ => 0,
    };
    flow(key, source, destination, ports, protocol)
}

/// Hashes a client, whatever its port and destination.
#[inline(always)]
pub fn source(key: &[u64; HASH_KEY_WORDS], source: &Address) -> FlowHash {
    let [m0, m1, _, _, _, m5, m6, m7, ..] = *key;
    let [s0, s1, s2, s3] = source.words();
    let mut sum = m0.wrapping_add(product(m1, s3));
    if !source.is_v4() {
        sum = sum
            .wrapping_add(product(m5, s0))
            .wrapping_add(product(m6, s1))
            .wrapping_add(product(m7, s2));
    }
    FlowHash(finish(sum))
}

/// Which two buckets of the look-up table an endpoint may stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointHash(u64);

/// Hashes an endpoint.
#[inline(always)]
pub fn endpoint(key: &[u64; HASH_KEY_WORDS], endpoint: &Endpoint) -> EndpointHash {
    let [m0, _, m2, _, _, _, _, _, m8, m9, m10, m11] = *key;
    let [d0, d1, d2, d3] = endpoint.address.words();
    let port = ((endpoint.port as u32) << 8) | endpoint.protocol as u32;
    let mut sum = m0
        .wrapping_add(product(m2, d3))
        .wrapping_add(product(m11, port));
    if !endpoint.address.is_v4() {
        sum = sum
            .wrapping_add(product(m8, d0))
            .wrapping_add(product(m9, d1))
            .wrapping_add(product(m10, d2));
    }
    EndpointHash(sum)
}

impl EndpointHash {
    /// The bucket of 2^`bits` that is looked into first (`choice` 0) or second (1).
    #[inline(always)]
    pub const fn bucket(self, bits: u32, choice: u32) -> u32 {
        // Neighbouring addresses differ by the same amount each, so that without some mixing all of
        // them could stand in few buckets. One multiplication is enough for that.
        let word = if choice == 0 {
            (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        } else {
            finish(self.0)
        };
        ((word >> 33) >> (31 - bits)) as u32
    }
}

/// A finalizer of two multiplications (Moremur, P. Evensen 2019), a bijection.
#[inline(always)]
pub(crate) const fn finish(mut x: u64) -> u64 {
    x ^= x >> 27;
    x = x.wrapping_mul(0x3C79_AC49_2BA7_B653);
    x ^= x >> 33;
    x = x.wrapping_mul(0x1C69_B3F7_4AC4_AE35);
    x ^ (x >> 27)
}

impl FlowHash {
    /// From the word of another's [`FlowHash::word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// All of it.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The slot of a ring of `size` slots: the first choice, or, with `attempt` > 0, another.
    #[inline(always)]
    pub const fn slot(self, size: u32, attempt: u32) -> u32 {
        let word = if attempt == 0 {
            self.0
        } else {
            finish(self.0 ^ attempt as u64)
        };
        (((word >> 32) * size as u64) >> 32) as u32
    }

    /// 32 bits that vary with the flow, independent of its slot.
    #[inline(always)]
    pub const fn entropy(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; HASH_KEY_WORDS] = [
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
        0x8ebc_6af0_9c88_c6e3,
        0x5899_65cc_7537_4cc3,
        0x1d8e_4e27_c47d_124f,
        0xeb44_acca_b455_d165,
        0x2545_f491_4f6c_dd1d,
        0x27bb_2ee6_87b0_b0fd,
    ];

    fn v6(word: usize, value: u32) -> Address {
        let mut words = [0x2001_0db8_u32.to_be(), 1, 2, 3];
        words[word] = value;
        Address::from_words(words)
    }

    proptest! {
        #[test]
        fn every_field_of_a_v4_flow_changes_the_hash(s: u32, d: u32, ports: u32, bit in 0u32..32) {
            let base = flow(&KEY, &Address::v4(s), &Address::v4(d), ports, 6);
            let flip = 1 << bit;
            prop_assert_ne!(base, flow(&KEY, &Address::v4(s ^ flip), &Address::v4(d), ports, 6));
            prop_assert_ne!(base, flow(&KEY, &Address::v4(s), &Address::v4(d ^ flip), ports, 6));
            prop_assert_ne!(base, flow(&KEY, &Address::v4(s), &Address::v4(d), ports ^ flip, 6));
            prop_assert_ne!(base, flow(&KEY, &Address::v4(s), &Address::v4(d), ports, 17));
        }

        #[test]
        fn every_word_of_a_v6_address_changes_the_hash(word in 0usize..4, a: u32, b: u32, ports: u32) {
            prop_assume!(a != b);
            let fixed = v6(0, 0x2001_0db8);
            prop_assert_ne!(
                flow(&KEY, &v6(word, a), &fixed, ports, 6),
                flow(&KEY, &v6(word, b), &fixed, ports, 6)
            );
            prop_assert_ne!(
                flow(&KEY, &fixed, &v6(word, a), ports, 6),
                flow(&KEY, &fixed, &v6(word, b), ports, 6)
            );
        }

        #[test]
        fn every_key_word_matters_to_a_v6_flow(word in 0usize..11, change in 1u64..) {
            let mut key = KEY;
            key[word] ^= change;
            let (source, destination) = (v6(3, 7), v6(3, 9));
            prop_assert_ne!(
                flow(&KEY, &source, &destination, 1, 6),
                flow(&key, &source, &destination, 1, 6)
            );
        }

        #[test]
        fn a_slot_lies_within_the_ring(word: u64, size in 1u32.., attempt in 0u32..4) {
            prop_assert!(FlowHash(word).slot(size, attempt) < size);
        }
    }

    #[test]
    fn the_finalizer_is_the_published_one() {
        // Computed by an independent implementation in arbitrary-precision arithmetic.
        assert_eq!(finish(0), 0);
        assert_eq!(finish(1), 0x3c02_aa47_7582_92bd);
        assert_eq!(finish(0x0123_4567_89ab_cdef), 0x6d97_305f_5628_8c62);
    }

    #[test]
    fn flows_hash_alike_on_every_machine_of_a_byte_order() {
        // From an independent implementation in arbitrary-precision arithmetic.
        let v4 = |word| Address::v4(word);
        let hash = flow(&KEY, &v4(0x0100_000a), &v4(0x0200_000a), 0x1234_5678, 6);
        assert_eq!(hash, FlowHash(0x834a_2c64_80d0_3685));
        let (source, destination) = (
            Address::from_words([1, 2, 3, 4]),
            Address::from_words([5, 6, 7, 8]),
        );
        let hash = flow(&KEY, &source, &destination, 0x1234_5678, 17);
        assert_eq!(hash, FlowHash(0x1060_d795_74d1_f53d));
    }

    #[test]
    fn clients_hash_alike_on_every_machine_of_a_byte_order() {
        // From the same independent implementation.
        let hash = source(&KEY, &Address::v4(0x0100_000a));
        assert_eq!(hash.word(), 0x8dd6_5d82_2098_6f38);
        let hash = source(&KEY, &Address::from_words([1, 2, 3, 4]));
        assert_eq!(hash, FlowHash::from_word(0xe3b6_b742_3243_e5c8));
    }

    #[test]
    fn endpoints_stand_in_the_same_buckets_on_every_machine_of_a_byte_order() {
        // From the same independent implementation: buckets of 2⁴ and of 2³¹, both choices.
        for (address, port, protocol, buckets) in [
            (
                Address::v4(0x0100_000a),
                0x5000,
                6,
                [12, 0, 1_679_697_157, 134_194_677],
            ),
            (
                Address::from_words([5, 6, 7, 8]),
                0x1234,
                17,
                [9, 0, 1_264_476_191, 99_308_779],
            ),
        ] {
            let hash = endpoint(
                &KEY,
                &Endpoint {
                    address,
                    port,
                    protocol,
                    zero: 0,
                    zeros: 0,
                },
            );
            let found = [(4, 0), (4, 1), (31, 0), (31, 1)].map(|(bits, n)| hash.bucket(bits, n));
            assert_eq!(found, buckets);
            assert_eq!([hash.bucket(0, 0), hash.bucket(0, 1)], [0, 0]);
        }
    }

    #[test]
    fn attempts_choose_the_published_slots() {
        let choices = |size| [0, 1, 2].map(|attempt| FlowHash(finish(6)).slot(size, attempt));
        assert_eq!(choices(8), [4, 5, 1]);
        assert_eq!(FlowHash(finish(1)).slot(65_537, 0), 15_362);
        assert_eq!(FlowHash(finish(1)).slot(65_537, 1), 44_366);
        assert_eq!(FlowHash(finish(1)).slot(65_537, 2), 46_142);
        assert_eq!(choices(1), [0, 0, 0]);
    }

    #[test]
    fn sequential_ports_spread_evenly_over_slots() {
        let mut counts = [0u32; 64];
        for port in 0..64_000u32 {
            let hash = flow(
                &KEY,
                &Address::v4(0x0100_000a),
                &Address::v4(0x0200_000a),
                port,
                6,
            );
            counts[hash.slot(64, 0) as usize] += 1;
        }
        assert!(
            counts.iter().all(|&n| (850..=1_150).contains(&n)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_second_attempt_is_independent_of_the_first() {
        let mut same = 0;
        for port in 0..10_000u32 {
            let hash = flow(&KEY, &Address::v4(1), &Address::v4(2), port, 6);
            same += u32::from(hash.slot(100, 0) == hash.slot(100, 1));
            same += u32::from(hash.slot(100, 1) == hash.slot(100, 2));
        }
        assert!(
            (100..=300).contains(&same),
            "expected about 200 of 20,000, got {same}"
        );
    }

    #[test]
    fn entropy_does_not_follow_from_the_slot() {
        let mut seen = std::collections::BTreeSet::new();
        for port in 0..1_000u32 {
            let hash = flow(&KEY, &Address::v4(1), &Address::v4(2), port, 6);
            if hash.slot(10, 0) == 0 {
                seen.insert(hash.entropy() >> 28);
            }
        }
        assert_eq!(seen.len(), 16);
    }
}
