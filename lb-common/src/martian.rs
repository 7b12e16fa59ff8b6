//! Sources that no host has, and packets that say they come from where they go ("LAND"). Whoever answers one is made to
//! send where the forger wants, itself included, so that to a VIP they are dropped. Looks at addresses alone, and knows
//! nothing of who has which.
//!
//! An IPv6 packet to what stands for an IPv4 address (RFC 4291 §2.5.5.2) is to none: tables have that address for the IPv4
//! one, whose packets are others.
//!
//! RFC 1122 §3.2.1.3 and RFC 4291 §2.4 to §2.7 say which these are, and RFC 6890 which of them are not forwarded.
//! A broadcast address of some subnet cannot be told from a host's. 240.0.0.0/4 is a host's, since networks number
//! hosts so, and kernels let them; so are link-local addresses, which neighbours have.

use crate::{
    flow::Flow,
    tables::{Address, owned},
    verdict::{DropReason, Verdict},
};

/// Why a packet is dropped, if it is to a VIP. What nearly every packet has to be asked are three comparisons of words
/// that are at hand.
#[inline(always)]
pub fn judge(flow: &Flow) -> Option<DropReason> {
    if flow.source == flow.destination {
        return Some(DropReason::Land);
    }
    let is_nobodys = if flow.v4 {
        is_nobodys_v4(flow.source.low())
    } else {
        is_nobodys_v6(flow.source)
    };
    is_nobodys.then_some(DropReason::MartianSource)
}

/// Whether a packet is another than others in one of these ways, so that [`outcome`] has to be asked.
#[inline(always)]
pub fn is_one(flow: &Flow) -> bool {
    is_to_a_mapped_address(flow) || judge(flow).is_some()
}

/// Whether a packet of IPv6 goes to an address that stands for one of IPv4.
#[inline(always)]
fn is_to_a_mapped_address(flow: &Flow) -> bool {
    !flow.v4 && flow.destination.is_v4()
}

/// What becomes of one to an address that is [`owned`] so: what is not to a VIP is the kernel's as it came. `None` for
/// all others.
#[inline(always)]
pub fn outcome(flow: &Flow, owned: u32) -> Option<Result<Verdict, DropReason>> {
    if is_to_a_mapped_address(flow) {
        return Some(Ok(Verdict::Pass));
    }
    let reason = judge(flow)?;
    Some(if owned & owned::VIP != 0 {
        Err(reason)
    } else {
        Ok(Verdict::Pass)
    })
}

/// This network, the loopback, multicast, and the broadcast of the link.
#[inline(always)]
fn is_nobodys_v4(source: u32) -> bool {
    let [first, ..] = source.to_ne_bytes();
    // 0 wraps.
    if first.wrapping_sub(1) < 223 && first != 127 {
        return false;
    }
    first < 240 || source == u32::MAX
}

/// Multicast, the unspecified address, the loopback, and what stands for IPv4 addresses, which is on no wire.
#[inline(always)]
fn is_nobodys_v6(source: Address) -> bool {
    const LOOPBACK: u64 = 1_u64.to_be();
    let (first, last) = source.halves();
    let [group, ..] = first.to_ne_bytes();
    if first != 0 && group != 0xff {
        return false;
    }
    group == 0xff || last == 0 || last == LOOPBACK || source.is_v4()
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;
    use std::string::ToString as _;

    use super::*;

    fn from(source: &str, destination: &str) -> Option<DropReason> {
        let at = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (source, destination) = (at(source), at(destination));
        judge(&Flow {
            source: source.into(),
            destination: destination.into(),
            v4: destination.is_ipv4(),
            ..Flow::EMPTY
        })
    }

    #[test]
    fn ipv4_sources_are_nobodys_by_their_first_byte_and_the_broadcast_by_all() {
        for first in 0..=255u8 {
            for rest in [[0, 0, 0], [0, 0, 1], [255, 255, 254], [255; 3]] {
                let [b, c, d] = rest;
                let source = IpAddr::from([first, b, c, d]);
                let nobodys =
                    matches!(first, 0 | 127 | 224..=239) || (first, rest) == (255, [255; 3]);
                assert_eq!(
                    from(&source.to_string(), "10.9.9.9"),
                    nobodys.then_some(DropReason::MartianSource),
                    "{source}"
                );
            }
        }
    }

    #[test]
    fn ipv6_sources_are_nobodys_where_they_are_multicast_or_special() {
        for source in ["::", "::1", "ff00::", "ff02::1", "ffff::1"] {
            let expected = Some(DropReason::MartianSource);
            assert_eq!(from(source, "2001:db8::1"), expected, "{source}");
        }
        for source in [
            "::2",
            "::1:0:0:0",
            "0:0:0:1::",
            "64:ff9b::7",
            "1::1",
            "fe80::1",
            "fd00::1",
            "feff::1",
            "2001:db8::2",
        ] {
            assert_eq!(from(source, "2001:db8::1"), None, "{source}");
        }
    }

    #[test]
    fn an_ipv4_address_is_no_source_of_ipv6() {
        let flow = Flow {
            source: Address::v4(7),
            destination: Address::v6([1; 16]),
            ..Flow::EMPTY
        };
        assert_eq!(judge(&flow), Some(DropReason::MartianSource));
    }

    #[test]
    fn what_comes_from_where_it_goes_is_said_to_whatever_the_source_is() {
        for address in ["10.0.0.1", "127.0.0.1", "2001:db8::1", "ff02::1"] {
            assert_eq!(from(address, address), Some(DropReason::Land), "{address}");
        }
        // All but one bit of either half.
        for source in ["2001:db8::2", "2001:db9::1", "2001:db8:0:1::1"] {
            assert_eq!(from(source, "2001:db8::1"), None, "{source}");
        }
        assert_eq!(from("10.0.0.2", "10.0.0.1"), None);
    }
}
