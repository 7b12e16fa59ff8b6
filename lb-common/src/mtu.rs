//! How long a packet may be on its way to a backend: numbers alone. Reads no packet and no tables.
//!
//! All are lengths of IP packets in bytes, headers included.

use crate::{tables::mode, wire};

/// The longest IPv4 packet that every router takes (RFC 791 §3.2).
pub const LEAST_V4: u16 = 68;
/// The least MTU of IPv6 (RFC 8200 §5).
pub const LEAST_V6: u16 = 1_280;

/// Bytes that a mode puts in front of a packet whose backend has an address of IPv4, or of IPv6.
pub const fn overhead(mode: u8, v4: bool) -> u16 {
    let header = if v4 { wire::IPV4 } else { wire::IPV6 };
    let bytes = match mode {
        mode::IPIP => header,
        mode::GUE => header + wire::UDP,
        mode::SECOND_HOP => header + wire::UDP + wire::GUE + address_length(v4),
        _ => 0,
    };
    bytes as u16
}

/// Length of an address in bytes.
pub const fn address_length(v4: bool) -> usize {
    if v4 { 4 } else { 16 }
}

/// The longest packet that can be sent to such a backend over a way of MTU `way`
/// ([`Backend::mtu`](crate::tables::Backend::mtu)).
pub const fn room(way: u32, mode: u8, v4: bool) -> u16 {
    let longest = if way < u16::MAX as u32 {
        way as u16
    } else {
        u16::MAX
    };
    longest.saturating_sub(overhead(mode, v4))
}

/// The MTU that a sender of a packet is told where it should send no longer ones than `room`: never less
/// than its family demands of every link, since no sender has to believe that (RFC 8201 §4, RFC 1191 §3).
#[inline(always)]
pub const fn told(room: u16, v4: bool) -> u16 {
    let least = if v4 { LEAST_V4 } else { LEAST_V6 };
    if room < least { least } else { room }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_takes_its_headers_off_the_way() {
        let of = |mode| [true, false].map(|v4| room(1_500, mode, v4));
        assert_eq!(of(mode::NAT), [1_500, 1_500]);
        assert_eq!(of(mode::L2), [1_500, 1_500]);
        assert_eq!(of(mode::IPIP), [1_480, 1_460]);
        assert_eq!(of(mode::GUE), [1_472, 1_452]);
        assert_eq!(of(mode::SECOND_HOP), [1_460, 1_428]);
    }

    #[test]
    fn no_way_is_longer_than_a_packet_can_be_or_shorter_than_nothing() {
        assert_eq!(room(u32::MAX, mode::NAT, true), 65_535);
        assert_eq!(room(65_536, mode::GUE, true), 65_507);
        assert_eq!(room(65_534, mode::NAT, true), 65_534);
        assert_eq!(room(30, mode::IPIP, false), 0);
    }

    #[test]
    fn nobody_is_told_less_than_its_family_demands() {
        assert_eq!(told(1_400, true), 1_400);
        assert_eq!(told(60, true), 68);
        assert_eq!(told(1_281, false), 1_281);
        assert_eq!(told(1_279, false), 1_280);
    }
}
