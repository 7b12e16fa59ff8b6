//! Formats of what is known of datagrams that come in fragments ([`crate::fragment`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Backend, MOST_TAGS, Tag, Tick};

/// What tells the fragments of one datagram from those of others (RFC 791 §3.2, RFC 8200 §4.5).
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
pub struct FragmentKey {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Its identification as it lies on the wire, loaded natively: 16 bits of IPv4, 32 of IPv6.
    pub id: u32,
    /// Its IANA protocol number; of IPv6, where it does not count, that of the fragment header.
    pub protocol: u8,
    /// Always zero.
    pub zeros: [u8; 3],
}

/// What became of the first fragment of a datagram, as the others need it. It names nothing in other maps
/// but counters, so that whatever changes meanwhile, one backend gets all of a datagram.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Datagram {
    /// The backend that it went to, with the port that it got there; of an answer, the VIP's address and port
    /// alone.
    pub backend: Backend,
    /// What its other end becomes in mode [`FULL_NAT`](super::mode::FULL_NAT): the address of the pool that it comes from, or of
    /// an answer, the client.
    pub other: Address,
    /// Its flow's hash.
    pub hash: u64,
    /// What of it has come: [`crate::fragment::Seen`].
    pub seen: u64,
    /// Index of the service.
    pub service: u32,
    /// When its last fragment came.
    pub stamp: Tick,
    /// One of [`fate`].
    pub fate: u8,
    /// One of [`super::mode`].
    pub mode: u8,
    /// Always zero.
    pub zeros: [u8; 6],
}

/// What becomes of a datagram; the values of [`Datagram::fate`].
pub mod fate {
    /// A backend gets it.
    pub const TO_BACKEND: u8 = 1;
    /// It is the answer of a backend in mode [`NAT`](super::super::mode::NAT) or [`FULL_NAT`](super::super::mode::FULL_NAT).
    pub const TO_CLIENT: u8 = 2;
    /// It is the kernel's.
    pub const PASSES: u8 = 3;
    /// Its first fragment was dropped.
    pub const DROPPED: u8 = 4;
    /// Two of its fragments overlapped (RFC 5722).
    pub const OVERLAPS: u8 = 5;
}

/// Words of the longest frame that is held: a fragment on a link of an MTU of 1,500 bytes, and some more.
pub const HELD_WORDS: usize = 256;

/// What the program hands to the agent: a fragment that came before the first of its datagram.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Early {
    /// Whose it is.
    pub key: FragmentKey,
    /// Index of the interface that it came in by.
    pub interface: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Where it belongs in its datagram, in bytes.
    pub offset: u32,
    /// How many tags were taken off it.
    pub tag_count: u32,
    /// These, as [`Tagged::tags`](super::Tagged::tags).
    pub tags: [Tag; MOST_TAGS],
    /// The frame, eight bytes to a word as they lie in memory; what is behind it says nothing.
    pub frame: [u64; HELD_WORDS],
}

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Datagram>() == 112);
    assert!(size_of::<Early>() == 64 + 8 * HELD_WORDS);
};
