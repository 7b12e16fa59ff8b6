//! The backend's end of an `ipip` or `gue` tunnel: takes the outer headers off (RFC 2003, RFC 2473;
//! draft-ietf-intarea-gue-09, variant 1).
//!
//! Only what is addressed to this host and wraps an IP packet is touched; all else passes. Checksums of
//! a tunnel's UDP header are left unread: the inner packet has its own.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    packet::Packet,
    tables::Address,
    verdict::Verdict,
    wire::{self, protocol},
};

/// What the decapsulator asks of its host.
pub trait Host {
    /// Whether tunnelled packets to this outer address are to be unwrapped.
    fn terminates(&self, outer: &Address) -> bool;
    /// The UDP port of `gue` tunnels, natively loaded; 0: none end here.
    fn gue_port(&self) -> u16;
    /// Counts an unwrapped packet.
    fn count(&self, bytes: u64);
}

/// The outer IP header of a packet.
struct Outer {
    destination: Address,
    /// Protocol of what it wraps.
    inner: u8,
    /// Its length in bytes.
    length: usize,
}

/// Unwraps a frame where it should be, and hands every frame to the network stack.
#[inline(always)]
pub fn process<P: Packet, H: Host>(packet: &mut P, host: &H) -> Verdict {
    if let Some(outer) = outer(packet)
        && host.terminates(&outer.destination)
        && unwrap(packet, host, &outer).is_some()
    {
        host.count(packet.length() as u64);
    }
    Verdict::Pass
}

#[inline(always)]
fn outer<P: Packet>(packet: &P) -> Option<Outer> {
    match packet.read::<EthHdr>(0)?.ether_type {
        wire::ETHER_IPV4 => {
            let ip = packet.read::<Ipv4Hdr>(wire::ETHERNET)?;
            let fragment = u16::from_be_bytes(ip.frags) & 0x3fff != 0;
            // Our encapsulation writes no options; what has some is the kernel's.
            if ip.vihl != 0x45 || fragment {
                return None;
            }
            let destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
            Some(Outer {
                destination,
                inner: ip.proto,
                length: wire::IPV4,
            })
        }
        wire::ETHER_IPV6 => {
            let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
            let destination = Address::v6(ip.dst_addr);
            Some(Outer {
                destination,
                inner: ip.next_hdr,
                length: wire::IPV6,
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn unwrap<P: Packet, H: Host>(packet: &mut P, host: &H, outer: &Outer) -> Option<()> {
    let mut headers = outer.length;
    if outer.inner == protocol::UDP {
        let udp = packet.read::<UdpHdr>(wire::ETHERNET + headers)?;
        let port = u16::from_ne_bytes(udp.dst);
        if port == 0 || port != host.gue_port() {
            return None;
        }
        headers += wire::UDP;
    }
    let inner = wire::ETHERNET + headers;
    // In a `gue` tunnel its version says what the packet is, and that there is no header before it.
    let ether_type = match outer.inner {
        protocol::IPV4 | protocol::UDP if packet.read::<Ipv4Hdr>(inner)?.vihl >> 4 == 4 => {
            wire::ETHER_IPV4
        }
        protocol::IPV6 | protocol::UDP if packet.read::<Ipv6Hdr>(inner)?.vcf[0] >> 4 == 6 => {
            wire::ETHER_IPV6
        }
        _ => return None,
    };
    let ethernet = EthHdr {
        ether_type,
        ..packet.read::<EthHdr>(0)?
    };
    if !packet.shrink_front(headers) {
        return None;
    }
    packet.write(0, &ethernet)
}
