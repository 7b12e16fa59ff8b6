//! What guards a service: its access list, and limits of the flows that begin ([`crate::admit`]). Beside them, since
//! it switches with them and is of one pool as they are: what its flows are translated to ([`crate::session`]), and which
//! subset of its backends clients are led to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Translation};
use crate::rate::Rate;

/// What a packet's source, or its flow's beginning, is asked for, as of one generation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Guard {
    /// Number of the access list; 0: there is none.
    pub list: u32,
    /// First bits of an IPv4 address that make a source with a bucket of its own, as [`Address::prefix`] takes
    /// them: 96 and more.
    pub source_bits_v4: u16,
    /// The same of an IPv6 address.
    pub source_bits_v6: u16,
    /// Number of the list of its source routes, among those of access lists; 0: there is none.
    pub routes: u32,
    /// The same before a move of the whole service.
    pub previous_routes: u32,
    /// How many flows may begin.
    pub flows: Rate,
    /// How many of one source.
    pub sources: Rate,
    /// How many flows may begin unproxied, where [`Translation::syn_proxy`] says that others may not.
    pub unproxied: Rate,
    /// What its flows become, in mode [`FULL_NAT`](super::mode::FULL_NAT).
    pub translation: Translation,
}

impl Guard {
    /// First bits of this address that make a source.
    #[inline(always)]
    pub const fn source_bits(&self, source: Address) -> u32 {
        if source.is_v4() {
            self.source_bits_v4 as u32
        } else {
            self.source_bits_v6 as u32
        }
    }
}

/// Both halves of a pool's guard; which is in force goes by
/// [`Control::generation`](super::Control::generation), as with its services.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GuardEntry {
    /// One is in force, the other is written aside.
    pub halves: [Guard; 2],
}

/// A prefix of an access list or of source routes, or what is looked for there: as the kernel's trie has it
/// (`struct bpf_lpm_trie_key_u8`), so that one trie holds all lists.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct AccessKey {
    /// How many bits count of what follows: [`AccessKey::LIST_BITS`] and those of the address.
    pub bits: u32,
    /// Number of the list.
    pub list: u32,
    /// The address; bits that do not count are zero.
    pub address: Address,
}

impl AccessKey {
    /// Bits of the list's number.
    pub const LIST_BITS: u32 = 32;

    /// The same with fewer bits that count.
    pub const fn prefix(self, bits: u32) -> Self {
        Self {
            bits,
            list: if bits < Self::LIST_BITS { 0 } else { self.list },
            address: self.address.prefix(bits.saturating_sub(Self::LIST_BITS)),
        }
    }
}

/// What a prefix of a list says.
pub mod access {
    /// Of source routes: the number of a subset added to this.
    pub const SUBSET: u32 = 16;
    /// Subsets of a service at most.
    pub const SUBSETS: u32 = 16;
    /// Packets come through.
    pub const ALLOWED: u32 = 1;
    /// They are dropped.
    pub const DENIED: u32 = 2;
}

/// What a source's bucket is found by.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct SourceKey {
    /// The first bits of its address.
    pub address: Address,
    /// Index of the service.
    pub service: u32,
    /// Always zero.
    pub zero: u32,
}

const _: () = {
    assert!(size_of::<Guard>() == 80);
    assert!(size_of::<GuardEntry>() == 160);
    assert!(size_of::<AccessKey>() == 24);
    assert!(size_of::<SourceKey>() == 24);
};
