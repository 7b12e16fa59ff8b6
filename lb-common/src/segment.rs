//! TCP segments that are made here: a header, at most an option or a byte behind it, in the place of what a frame was.
//! Writes the packet, reads no tables.

use network_types::{eth::EthHdr, tcp::TcpHdr};

use crate::{
    checksum::Sum,
    flow::Flow,
    forward, mss,
    packet::Packet,
    verdict::DropReason,
    wire::{self, Byte, Check, Word, protocol},
};

/// Offset in a TCP header of the word that begins with its length.
const DATA_OFFSET: usize = 12;
/// A traffic class without its ECN bits, which are of the packet that is no more (RFC 3168 §5).
const NO_ECN: u8 = 0xfc;

/// Whose a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Of the frame's own sender, to where that goes.
    Same,
    /// Of who the frame is sent to, back to where it comes from.
    Back,
}

/// What stands behind the fixed part of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    None,
    /// The option that tells the largest segment.
    Mss(u16),
    /// A byte of data, which is zero.
    Byte,
}

/// A segment. Numbers are in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledged: u32,
    /// Bits of [`wire::control`].
    pub control: u8,
    /// Its window, as it is written.
    pub window: u16,
    /// What stands behind.
    pub tail: Tail,
}

/// Makes a segment of the frame that `flow` was read from. Its headers have no options then, and its TTL begins anew.
///
/// # Errors
/// [`DropReason::NoHeadroom`] where it is longer than what it was, by more than there is room; [`DropReason::Inconsistent`] where
/// the frame has no headers.
#[inline(always)]
pub fn make<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    direction: Direction,
    segment: Segment,
) -> Result<(), DropReason> {
    let ethernet: EthHdr = forward::read(packet, 0)?;
    let transport = wire::ETHERNET + if flow.v4 { wire::IPV4 } else { wire::IPV6 };
    let (words, behind) = match segment.tail {
        Tail::None => (5, 0),
        Tail::Mss(_) => (6, mss::LENGTH),
        Tail::Byte => (5, 1),
    };
    resize(packet, transport + wire::TCP + behind)?;
    let (source, destination) = match direction {
        Direction::Same => (flow.source, flow.destination),
        Direction::Back => (flow.destination, flow.source),
    };
    let (from, to) = match direction {
        Direction::Same => (flow.source_port, flow.destination_port),
        Direction::Back => (flow.destination_port, flow.source_port),
    };
    let ethernet = match direction {
        Direction::Same => ethernet,
        Direction::Back => EthHdr {
            dst_addr: ethernet.src_addr,
            src_addr: ethernet.dst_addr,
            ..ethernet
        },
    };
    forward::write(packet, 0, &ethernet)?;
    let length = (wire::TCP + behind) as u16;
    let class = flow.traffic_class & NO_ECN;
    if flow.v4 {
        let whole = wire::IPV4 as u16 + length;
        let (source, destination) = (source.low(), destination.low());
        let ip = forward::header_v4(class, whole, protocol::TCP, source, destination);
        forward::write(packet, wire::ETHERNET, &ip)?;
    } else {
        let first = u32::from(class) << 20;
        let ip = forward::header_v6(first, length, protocol::TCP, source, destination);
        forward::write(packet, wire::ETHERNET, &ip)?;
    }
    let control = [words << 4, segment.control];
    let option = match segment.tail {
        Tail::Mss(mss) => {
            let [first, last] = mss.to_be_bytes();
            [mss::KIND, mss::LENGTH as u8, first, last]
        }
        Tail::None | Tail::Byte => [0; 4],
    };
    // The prefix that stands before IPv4 addresses in their sum, 0xffff twice, sums to nothing.
    let sum = Sum::new()
        .add128(source.words())
        .add128(destination.words())
        .add16(u16::from(protocol::TCP).to_be())
        .add16(length.to_be())
        .add16(from)
        .add16(to)
        .add32(segment.sequence.to_be())
        .add32(segment.acknowledged.to_be())
        .add16(u16::from_ne_bytes(control))
        .add16(segment.window.to_be())
        .add32(u32::from_ne_bytes(option));
    let tcp = TcpHdr {
        source: from.to_ne_bytes(),
        dest: to.to_ne_bytes(),
        seq: segment.sequence.to_be_bytes(),
        ack_seq: segment.acknowledged.to_be_bytes(),
        _bitfield_align_1: [],
        _bitfield_1: TcpHdr::new_bitfield_1(0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        window: segment.window.to_be_bytes(),
        check: sum.checksum().to_ne_bytes(),
        urg_ptr: [0; 2],
    };
    forward::write(packet, transport, &tcp)?;
    forward::write(packet, transport + DATA_OFFSET, &Check(control))?;
    match segment.tail {
        Tail::None => Ok(()),
        Tail::Mss(_) => forward::write(packet, transport + wire::TCP, &Word(option)),
        Tail::Byte => forward::write(packet, transport + wire::TCP, &Byte(0)),
    }
}

/// Has a frame be of a length. What it holds is lost.
#[inline(always)]
fn resize<P: Packet>(packet: &mut P, length: usize) -> Result<(), DropReason> {
    let mut now = packet.length();
    if now < length {
        // It goes on beginning at an even address.
        let missing = (length - now).next_multiple_of(2);
        if !packet.grow_front(missing) {
            return Err(DropReason::NoHeadroom);
        }
        now += missing;
    }
    if now > length && !packet.truncate(length) {
        return Err(DropReason::Inconsistent);
    }
    Ok(())
}

/// Rewrites the sequence number, or what is acknowledged, as `change` has it, of the header of a segment at `transport`, with its
/// checksum (RFC 1624).
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no such header.
#[inline(always)]
pub fn renumber<P: Packet>(
    packet: &mut P,
    transport: usize,
    number: Number,
    change: impl FnOnce(u32) -> u32,
) -> Result<(), DropReason> {
    let at = transport + number.offset();
    let Word(before) = forward::read(packet, at)?;
    let after = change(u32::from_be_bytes(before)).to_be_bytes();
    let Check(check) = forward::read(packet, transport + wire::TCP_CHECK)?;
    let check = changed(before, after).update(u16::from_ne_bytes(check));
    forward::write(packet, at, &Word(after))?;
    forward::write(
        packet,
        transport + wire::TCP_CHECK,
        &Check(check.to_ne_bytes()),
    )
}

/// What a number that changes makes of a sum that it is part of.
#[inline(always)]
pub fn changed(before: [u8; 4], after: [u8; 4]) -> Sum {
    Sum::new()
        .remove32(u32::from_ne_bytes(before))
        .add32(u32::from_ne_bytes(after))
}

/// A number of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// That of its first byte.
    Sequence,
    /// That of the byte that its sender waits for.
    Acknowledged,
}

impl Number {
    /// Where it is in a TCP header.
    #[inline(always)]
    pub const fn offset(self) -> usize {
        match self {
            Self::Sequence => 4,
            Self::Acknowledged => 8,
        }
    }
}
