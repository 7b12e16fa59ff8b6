//! The client's address as a TCP option, for backends that see an address of a pool only (mode `full-nat`).
//!
//! The option is the first of its segment: kind 254 (RFC 3692-style experiment, RFC 4727), its length, the client's
//! port and address in network order: 8 bytes with an address of IPv4, 20 with one of IPv6. That is the layout that
//! kernel modules for it ("TOA") read; it has no ExID (RFC 6994), which those do not expect.
//!
//! It goes with the SYN, which a server can be asked for (`TCP_SAVED_SYN` of Linux), and with the first packet that
//! follows, where such modules look for it. Where it has no room, the packet goes without it.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    checksum::Sum,
    flow::Flow,
    forward,
    packet::Packet,
    tables::Address,
    verdict::DropReason,
    wire::{self, Check, Word, protocol},
};

/// Kind of the option.
pub const KIND: u8 = 254;
/// Its length in bytes with an address of IPv4.
pub const LENGTH_V4: u8 = 8;
/// The same of IPv6.
pub const LENGTH_V6: u8 = 20;
/// The longest TCP header in words of four bytes (RFC 9293 §3.1, "Data Offset").
const MOST_WORDS: u8 = 15;
/// Offset in a TCP header of the word that begins with its length.
const DATA_OFFSET: usize = 12;

/// Puts the option into a packet of at most `room` bytes with it, wherever that packet goes; false, and nothing
/// done, where it has no place. `flow` is its length's.
///
/// # Errors
/// [`DropReason::Inconsistent`] where the headers that `flow` found are not there.
#[inline(always)]
pub fn tell<P: Packet>(
    packet: &mut P,
    flow: &mut Flow,
    client: Address,
    port: u16,
    room: u16,
) -> Result<bool, DropReason> {
    let option = if flow.v4 { LENGTH_V4 } else { LENGTH_V6 };
    // With IPv4 options or extension headers, more would have to be moved than is looked at anyway.
    let bare = wire::ETHERNET + if flow.v4 { wire::IPV4 } else { wire::IPV6 };
    if flow.protocol != protocol::TCP || flow.transport != bare {
        return Ok(false);
    }
    let length = flow.length.saturating_add(option.into());
    if length > room {
        return Ok(false);
    }
    let mut tcp: TcpHdr = forward::read(packet, bare)?;
    let Check([offset, control]) = forward::read(packet, bare + DATA_OFFSET)?;
    let words = (offset >> 4) + option / 4;
    if usize::from(offset >> 4) * 4 < wire::TCP || words > MOST_WORDS {
        return Ok(false);
    }
    let offset_after = words << 4 | (offset & 0xf);
    let segment = flow.length - (bare - wire::ETHERNET) as u16;
    let change = Sum::new()
        .remove16(u16::from_ne_bytes([offset, control]))
        .add16(u16::from_ne_bytes([offset_after, control]))
        .remove16(segment.to_be())
        .add16((segment + u16::from(option)).to_be())
        .add16(u16::from_ne_bytes([KIND, option]))
        .add16(port);
    let change = if flow.v4 {
        change.add32(client.low())
    } else {
        change.add128(client.words())
    };
    tcp.check = change.update(u16::from_ne_bytes(tcp.check)).to_ne_bytes();
    let ethernet: EthHdr = forward::read(packet, 0)?;
    if flow.v4 {
        let mut ip: Ipv4Hdr = forward::read(packet, wire::ETHERNET)?;
        let change = Sum::new()
            .remove16(u16::from_ne_bytes(ip.tot_len))
            .add16(length.to_be());
        ip.tot_len = length.to_be_bytes();
        ip.check = change.update(u16::from_ne_bytes(ip.check)).to_ne_bytes();
        if !packet.grow_front(LENGTH_V4.into()) {
            return Ok(false);
        }
        forward::write(packet, wire::ETHERNET, &ip)?;
    } else {
        let mut ip: Ipv6Hdr = forward::read(packet, wire::ETHERNET)?;
        ip.payload_len = (length - wire::IPV6 as u16).to_be_bytes();
        if !packet.grow_front(LENGTH_V6.into()) {
            return Ok(false);
        }
        forward::write(packet, wire::ETHERNET, &ip)?;
    }
    forward::write(packet, 0, &ethernet)?;
    forward::write(packet, bare, &tcp)?;
    let place = Check([offset_after, control]);
    forward::write(packet, bare + DATA_OFFSET, &place)?;
    let [first, second] = port.to_ne_bytes();
    let at = bare + wire::TCP;
    forward::write(packet, at, &Word([KIND, option, first, second]))?;
    let [a, b, c, d] = client.words();
    if flow.v4 {
        forward::write(packet, at + 4, &Word(d.to_ne_bytes()))?;
    } else {
        forward::write(packet, at + 4, &Word(a.to_ne_bytes()))?;
        forward::write(packet, at + 8, &Word(b.to_ne_bytes()))?;
        forward::write(packet, at + 12, &Word(c.to_ne_bytes()))?;
        forward::write(packet, at + 16, &Word(d.to_ne_bytes()))?;
    }
    flow.length = length;
    Ok(true)
}
