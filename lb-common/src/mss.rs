//! The maximum segment size that the ends of a connection tell each other in their SYNs (RFC 9293 §3.7.1),
//! lowered where a service asks for that. Chooses no backend, and touches nothing but that option.
//!
//! It bounds what is sent *to* the end that told it. A SYN without the option is left alone: its sender
//! gets segments of 536 bytes, or 1,220 over IPv6, by that.

use network_types::tcp::TcpHdr;

use crate::{
    checksum::Sum,
    egress,
    flow::Flow,
    forward, mtu,
    packet::Packet,
    tables::{Handover, Tables},
    verdict::{DropReason, Verdict},
    wire::{self, Check, TcpOption, protocol},
};

/// What [`Backend::mss`](crate::tables::Backend::mss) says where nothing is lowered.
pub const OFF: u16 = 0;
/// The same where it is lowered to what the way to the backend takes.
pub const AUTO: u16 = u16::MAX;
/// The least that it can be lowered to: what is taken for granted without the option (RFC 9293 §3.7.1).
pub const LEAST: u16 = 536;
/// The most.
pub const MOST: u16 = u16::MAX - (wire::IPV4 + wire::TCP) as u16;

/// Kinds of options that are of one byte (<https://www.iana.org/assignments/tcp-parameters>).
mod kind {
    pub const END: u8 = 0;
    pub const NO_OPERATION: u8 = 1;
}

/// Kind of the option.
pub const KIND: u8 = 2;
/// Its length in bytes.
pub const LENGTH: usize = 4;
/// Places in a header where it can begin: at any byte behind the fixed ones of the longest, but the last.
const PLACES: usize = 60 - wire::TCP - LENGTH + 1;
/// Beyond every offset of a TCP header ([`crate::flow::MAX_EXTENSION_HEADERS`]); a bound for the verifier.
const FARTHEST: usize = 0x3fff;

/// The largest segment, in bytes and without options, where `setting` is no less than [`LEAST`] and the
/// longest packet that can be sent is `room` bytes.
#[inline(always)]
pub const fn limit(setting: u16, room: u16, v4: bool) -> u16 {
    let headers = wire::TCP + if v4 { wire::IPV4 } else { wire::IPV6 };
    match setting {
        AUTO => mtu::told(room, v4) - headers as u16,
        setting => setting,
    }
}

/// Whether a packet is of those that tell an MSS, whichever end sends it.
#[inline(always)]
pub fn is_told_by<P: Packet>(packet: &P, flow: &Flow) -> bool {
    flow.protocol == protocol::TCP
        && packet
            .read::<TcpHdr>(flow.transport)
            .is_some_and(|tcp| tcp.syn() != 0)
}

/// Lowers the MSS of a frame that has become what it is to be otherwise, and sends it where it was to go,
/// as [`Handover`] says.
///
/// # Errors
/// There is no TCP header where it should be.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    let Handover {
        interface,
        offset,
        limit,
    } = tables.handed_over();
    lower(packet, usize::from(offset), limit)?;
    Ok(match interface {
        0 => Verdict::Pass,
        interface => egress::by(packet, tables, interface),
    })
}

/// Lowers the MSS option of the TCP header at `offset` to `limit`, where it is higher, with the checksum
/// (RFC 1624). The sum over header and payload stays what it was, so that no outer checksum changes.
#[inline(always)]
fn lower<P: Packet>(packet: &mut P, offset: usize, limit: u16) -> Result<(), DropReason> {
    if offset > FARTHEST {
        return Ok(());
    }
    let mut tcp: TcpHdr = forward::read(packet, offset)?;
    let Some(at) = find(packet, offset, usize::from(tcp.doff()) * 4) else {
        return Ok(());
    };
    let Check(told) = forward::read(packet, offset + at)?;
    if u16::from_be_bytes(told) <= limit {
        return Ok(());
    }
    let lowered = limit.to_be_bytes();
    let change = Sum::new()
        .remove16(summed(told, at))
        .add16(summed(lowered, at));
    tcp.check = change.update(u16::from_ne_bytes(tcp.check)).to_ne_bytes();
    forward::write(packet, offset, &tcp)?;
    forward::write(packet, offset + at, &Check(lowered))
}

/// What the option of the TCP header at `offset` tells, where it has one.
#[inline(always)]
pub fn told<P: Packet>(packet: &P, offset: usize) -> Option<u16> {
    if offset > FARTHEST {
        return None;
    }
    let tcp = packet.read::<TcpHdr>(offset)?;
    let at = find(packet, offset, usize::from(tcp.doff()) * 4)?;
    let Check(told) = packet.read(offset + at)?;
    Some(u16::from_be_bytes(told))
}

/// Where the option's value is, in bytes from the beginning of the header of so many.
#[inline(always)]
fn find<P: Packet>(packet: &P, offset: usize, header: usize) -> Option<usize> {
    let mut at = wire::TCP;
    for _ in 0..PLACES {
        // Every way here is one: older verifiers would follow each.
        at = packet.forget(at);
        if at + LENGTH > header {
            return None;
        }
        let option: TcpOption = packet.read(offset + at)?;
        match option.kind {
            kind::END => return None,
            kind::NO_OPERATION => at += 1,
            KIND if usize::from(option.length) == LENGTH => return Some(at + 2),
            _ if option.length < 2 => return None,
            _ => at += usize::from(option.length),
        }
    }
    None
}

/// Two bytes as they count in a sum: from an odd place on they are of two words (RFC 1071 §2(B)).
#[inline(always)]
const fn summed([first, second]: [u8; 2], at: usize) -> u16 {
    if at.is_multiple_of(2) {
        u16::from_ne_bytes([first, second])
    } else {
        u16::from_ne_bytes([second, first])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_way_takes_is_less_by_both_headers() {
        assert_eq!(limit(AUTO, 1_480, true), 1_440);
        assert_eq!(limit(AUTO, 1_480, false), 1_420);
        assert_eq!(limit(AUTO, 0, true), 28);
        assert_eq!(limit(AUTO, 1_000, false), 1_220);
        assert_eq!(limit(1_300, 1_480, true), 1_300);
    }
}
