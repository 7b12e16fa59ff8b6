//! Formats of what finds services of several addresses or ports ([`crate::steer`]): prefixes of VIPs lead to a class,
//! and prefixes of a class's ports to a service. Which those are is the agent's to say, so that the longest prefix of either
//! is the right one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Address;

/// A prefix of VIPs, or what is looked for there: as the kernel's trie has it (`struct bpf_lpm_trie_key_u8`).
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
pub struct VipKey {
    /// How many bits count of what follows: [`VipKey::PROTOCOL_BITS`] and those of the address.
    pub bits: u32,
    /// IANA protocol number; 0: whatever the protocol, and what is found are bits of [`owned`](mod@super::owned).
    pub protocol: u32,
    /// The address; bits that do not count are zero.
    pub address: Address,
}

impl VipKey {
    /// Bits of the protocol.
    pub const PROTOCOL_BITS: u32 = 32;

    /// All of an address.
    #[inline(always)]
    pub const fn of(protocol: u8, address: Address) -> Self {
        Self {
            bits: Self::PROTOCOL_BITS + 128,
            protocol: protocol as u32,
            address,
        }
    }

    /// The same with fewer bits that count, [`VipKey::PROTOCOL_BITS`] at least.
    pub const fn prefix(self, bits: u32) -> Self {
        Self {
            bits,
            protocol: self.protocol,
            address: self
                .address
                .prefix(bits.saturating_sub(Self::PROTOCOL_BITS)),
        }
    }
}

/// Some ports of a class, likewise.
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
pub struct ClassKey {
    /// How many bits count of what follows: [`ClassKey::CLASS_BITS`] and those of the port.
    pub bits: u32,
    /// Number of the class.
    pub class: u32,
    /// The port in network order; bits that do not count are zero.
    pub port: [u8; 2],
    /// Always zero.
    pub zeros: [u8; 2],
}

impl ClassKey {
    /// Bits of the class.
    pub const CLASS_BITS: u32 = 32;

    /// All of a port, which is as in [`Endpoint::port`](super::Endpoint::port).
    #[inline(always)]
    pub const fn of(class: u32, port: u16) -> Self {
        Self {
            bits: Self::CLASS_BITS + 16,
            class,
            port: port.to_ne_bytes(),
            zeros: [0; 2],
        }
    }

    /// Those that begin with so many bits of a port, which is in host order.
    pub const fn block(class: u32, port: u16, bits: u32) -> Self {
        let port = match bits {
            0 => 0,
            1..16 => port & (u16::MAX << (16 - bits)),
            _ => port,
        };
        Self {
            bits: Self::CLASS_BITS + bits,
            class,
            port: port.to_be_bytes(),
            zeros: [0; 2],
        }
    }
}

/// What of a service its descriptor does not say, where it has several addresses or ports: the agent's own, which no
/// packet needs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Shape {
    /// First bits of its address that count, as [`Address::prefix`] takes them; 0: it has one address, and one port
    /// or every one.
    pub bits: u16,
    /// Its first port, in host order; 0: it has every one.
    pub first_port: u16,
    /// Its last port.
    pub last_port: u16,
    /// Always zero.
    pub zero: u16,
}

const _: () = {
    assert!(size_of::<VipKey>() == 24);
    assert!(size_of::<ClassKey>() == 12);
    assert!(size_of::<Shape>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_ports_has_those_that_begin_so() {
        let port = |port: u16| port.to_be_bytes();
        assert_eq!(
            ClassKey::block(7, 8_080, 16),
            ClassKey::of(7, 8_080_u16.to_be())
        );
        assert_eq!(ClassKey::block(7, 8_080, 12).port, port(8_080));
        assert_eq!(ClassKey::block(7, 8_095, 12).port, port(8_080));
        assert_eq!(ClassKey::block(7, u16::MAX, 0).port, port(0));
    }
}
