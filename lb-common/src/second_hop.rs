//! Who else may have a flow, as backends are told in the private data of GUE (draft-ietf-intarea-gue-09 §3.2, variant 0):
//! the bytes, and the packets of services that tell it. What backends make of it is [`crate::hand_on`]'s.
//!
//! Private data are a word that says whose they are and how many addresses count, none or one, and an address of
//! the family of the outer header. The address always has its place, so that every packet of a service is as much longer.

use crate::{
    checksum::Sum,
    egress,
    flow::Flow,
    forward, full_nat, mtu,
    packet::Packet,
    pipeline::{self, Rest},
    steer,
    tables::{Address, Tables, mode, refusal},
    verdict::{DropReason, Verdict},
    wire::{self, GueHdr, Ipv6Address, Word, protocol},
};

/// What private data begin with that are these; the number of addresses follows.
const MARK: [u8; 3] = [b'L', b'B', 1];
/// The bits of a header's first byte that say how long it is; the others are the variant, and whether it is a control
/// message.
const LENGTH: u8 = 0x1f;

/// Decides over a client's packet to such a service, and makes it what it becomes.
///
/// # Errors
/// It is left to another.
#[inline(always)]
pub fn request<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Result<Verdict, DropReason>, Rest> {
    let mut flow = Flow::EMPTY;
    if !full_nat::read(packet, &mut flow) {
        return Ok(Ok(Verdict::Pass));
    }
    // It may have got another mode in this very moment.
    let Some(found) = steer::service(tables, &flow.to())
        .filter(|found| found.service.descriptor.mode == mode::SECOND_HOP)
    else {
        return Ok(Err(DropReason::Switched));
    };
    match pipeline::to_backend::<true, _, _>(packet, tables, &mut flow, &found) {
        Ok(backend) if pipeline::opens_with_mss(tables, &flow, backend) => {
            pipeline::leave_syn(tables, &flow, mode::SECOND_HOP, backend);
            Err(Rest::Syn)
        }
        Ok(backend) => Ok(Ok(egress::by(packet, tables, backend.interface))),
        Err(DropReason::NoBackend) if found.service.descriptor.refusal() != refusal::DROP => {
            Err(Rest::Refused)
        }
        Err(DropReason::PacketTooBig) => Err(Rest::TooBig),
        Err(reason) => Ok(Err(reason)),
    }
}

/// Bytes that it takes to tell somebody, to a backend of a family; 0 where nothing is told.
#[inline(always)]
pub const fn length(other: Option<Address>, v4: bool) -> usize {
    match other {
        Some(_) => wire::GUE + mtu::address_length(v4),
        None => 0,
    }
}

/// Writes a header of GUE that tells of `other`, an address of the family that `v4` says, or [`Address::NOBODY`], in front
/// of a packet of `inner_v4`; its sum.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is no room.
#[inline(always)]
pub fn write<P: Packet>(
    packet: &mut P,
    at: usize,
    other: Address,
    v4: bool,
    inner_v4: bool,
) -> Result<Sum, DropReason> {
    let [l, b, version] = MARK;
    let words = (length(Some(other), v4) - size_of::<Word>()) / size_of::<Word>();
    let header = GueHdr {
        first: words as u8,
        protocol: if inner_v4 {
            protocol::IPV4
        } else {
            protocol::IPV6
        },
        flags: [0; 2],
        private: [l, b, version, count(other)],
    };
    forward::write(packet, at, &header)?;
    let sum = Sum::new()
        .add16(u16::from_ne_bytes([header.first, header.protocol]))
        .add32(u32::from_ne_bytes(header.private))
        .add128(address(other, v4).words());
    write_address(packet, at, other, v4)?;
    Ok(sum)
}

/// What of an address is written, the rest of it zeros.
#[inline(always)]
const fn address(other: Address, v4: bool) -> Address {
    if v4 {
        Address::NOBODY.with_low(other.low())
    } else {
        other
    }
}

#[inline(always)]
fn count(other: Address) -> u8 {
    u8::from(other != Address::NOBODY)
}

#[inline(always)]
fn write_address<P: Packet>(
    packet: &mut P,
    at: usize,
    other: Address,
    v4: bool,
) -> Result<(), DropReason> {
    let at = at + wire::GUE;
    if v4 {
        return forward::write(packet, at, &Word(other.low().to_ne_bytes()));
    }
    let (first, last) = other.halves();
    forward::write(
        packet,
        at,
        &Ipv6Address([first.to_ne_bytes(), last.to_ne_bytes()]),
    )
}

/// Takes out whom the header at `at` tells of; what that changes of a sum that it is part of.
///
/// # Errors
/// [`DropReason::Inconsistent`] where there is none.
#[inline(always)]
pub fn forget<P: Packet>(
    packet: &mut P,
    at: usize,
    other: Address,
    v4: bool,
) -> Result<Sum, DropReason> {
    let mut header: GueHdr = forward::read(packet, at)?;
    let before = u32::from_ne_bytes(header.private);
    let [l, b, version, _] = header.private;
    header.private = [l, b, version, count(Address::NOBODY)];
    forward::write(packet, at, &header)?;
    write_address(packet, at, Address::NOBODY, v4)?;
    Ok(Sum::new()
        .remove32(before)
        .add32(u32::from_ne_bytes(header.private))
        .remove128(address(other, v4).words()))
}

/// A header of GUE of variant 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Its length in bytes.
    pub length: usize,
    /// Protocol of the packet behind.
    pub protocol: u8,
    /// Who else may have the flow.
    pub other: Option<Address>,
}

/// The length in bytes of the header at `at`, and the protocol of the packet behind. `None` as of [`read`].
#[inline(always)]
pub fn extent<P: Packet>(packet: &P, at: usize) -> Option<(usize, u8)> {
    let Word([first, protocol, flags @ ..]) = packet.read(at)?;
    let is_ip = matches!(protocol, protocol::IPV4 | protocol::IPV6);
    if first & !LENGTH != 0 || flags != [0; 2] || !is_ip {
        return None;
    }
    let length = match first & LENGTH {
        0 => size_of::<Word>(),
        2 => length(Some(Address::NOBODY), true),
        5 => length(Some(Address::NOBODY), false),
        _ => return None,
    };
    Some((length, protocol))
}

/// Reads the header at `at`, in a tunnel whose outer header is of the family that `v4` says. `None` where it is of another
/// variant, says something that has to be understood (§3.3: extension fields), or is longer than any that is known.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, at: usize, v4: bool) -> Option<Told> {
    let (length, protocol) = extent(packet, at)?;
    let plain = Told {
        length,
        protocol,
        other: None,
    };
    if length == size_of::<Word>() {
        return Some(plain);
    }
    let GueHdr { private, .. } = packet.read(at)?;
    let [l, b, version, count] = private;
    let is_v4 = length == self::length(Some(Address::NOBODY), true);
    // Somebody else's private data, or nobody's address.
    if [l, b, version] != MARK || count != 1 || is_v4 != v4 {
        return Some(plain);
    }
    let at = at + wire::GUE;
    let other = if v4 {
        let Word(bytes) = packet.read(at)?;
        Address::v4(u32::from_ne_bytes(bytes))
    } else {
        let Ipv6Address([first, last]) = packet.read(at)?;
        Address::from_halves(u64::from_ne_bytes(first), u64::from_ne_bytes(last))
    };
    Some(Told {
        other: Some(other),
        ..plain
    })
}
