//! What a fragment says of itself. Decides nothing about where it goes.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{Early, Part, Seen};
use crate::{
    flow::{self, Family, Flow, MAX_EXTENSION_HEADERS},
    packet::Packet,
    pipeline::Rest,
    tables::{Address, FragmentKey},
    verdict::{DropReason, Piece},
    wire::{self, ExtensionHdr, protocol},
};

/// The farthest that a transport header may be in a frame, in bytes: as far as numbers are kept that
/// [`Packet::forget`] has seen. Frames of XDP are shorter.
const FARTHEST: usize = 0xfff;
/// The longest datagram in bytes (RFC 791 §3.1, RFC 8200 §4.5).
const LONGEST: usize = 65_535;

/// A fragment.
#[derive(Debug)]
pub struct Fragment {
    /// Its ends; ports only of a first one. Its transport is where its part of the datagram begins.
    pub(super) flow: Flow,
    /// Its datagram.
    pub(super) key: FragmentKey,
    /// Where its part belongs in the datagram, in bytes.
    pub(super) offset: usize,
    /// Bytes of its part.
    pub(super) length: usize,
    /// Bytes of the datagram's IP header and those extension headers that every fragment has.
    headers: usize,
    /// Whether others follow.
    pub(super) more: bool,
    /// Whether a source route leads it.
    led: bool,
    /// What becomes of it if it comes before the first one.
    pub(super) early: Early,
    /// Who goes on with it. Here, since there is no number for it where there is one for a verdict: the kernel's verifier
    /// refuses what the compiler puts there instead.
    pub(super) left: Option<Rest>,
}

impl Fragment {
    /// To be read into.
    pub const EMPTY: Self = Self {
        flow: Flow::EMPTY,
        key: FragmentKey {
            source: Flow::EMPTY.source,
            destination: Flow::EMPTY.destination,
            id: 0,
            protocol: 0,
            zeros: [0; 3],
        },
        offset: 0,
        length: 0,
        headers: 0,
        more: false,
        led: false,
        early: Early::Held,
        left: None,
    };

    /// Which part of its datagram it is.
    #[inline(always)]
    pub(super) const fn part(&self) -> Part {
        Part {
            from: (self.offset / 8) as u16,
            to: (self.offset + self.length).div_ceil(8) as u16,
            last: !self.more,
        }
    }

    /// Its ends; ports only of a first one.
    #[inline(always)]
    pub(crate) const fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Who goes on with it, if anybody does.
    #[inline(always)]
    pub const fn left(&self) -> Option<Rest> {
        self.left
    }

    /// What has come of its datagram with nothing but it: [`Datagram::seen`](crate::tables::Datagram::seen).
    #[inline(always)]
    pub(super) fn seen(&self) -> u64 {
        Seen::default().with(self.part()).map_or(0, Seen::word)
    }

    /// What it is counted as where it follows the first one.
    #[inline(always)]
    pub(super) const fn piece(&self) -> Piece {
        match self.early {
            Early::Held => Piece::Later,
            Early::Dropped => Piece::Released,
        }
    }

    /// Whether it can be a part of a datagram.
    ///
    /// # Errors
    /// Why not.
    #[inline(always)]
    pub(super) fn check(&self) -> Result<(), DropReason> {
        if self.led {
            return Err(DropReason::SourceRoute);
        }
        // The next one's offset is in units of eight bytes.
        let cut = self.more && self.length & 7 != 0;
        // What IPv6 counts in its length is without the IP header.
        let headers = if self.flow.v4 {
            self.headers
        } else {
            self.headers.saturating_sub(wire::IPV6)
        };
        if self.length == 0 || cut || headers + self.offset + self.length > LONGEST {
            return Err(DropReason::FragmentMalformed);
        }
        // It would write over ports or flags.
        if self.offset != 0 && self.offset < wire::TCP && self.flow.protocol == protocol::TCP {
            return Err(DropReason::FragmentTiny);
        }
        Ok(())
    }
}

/// Reads the headers of a frame; `None` where it carries no fragment of what services are of.
#[inline(always)]
pub(super) fn read<P: Packet>(packet: &P, fragment: &mut Fragment, sctp: bool) -> Option<()> {
    match flow::family(packet)? {
        Family::V4 => read_v4(packet, fragment, sctp)?,
        Family::V6 => read_v6(packet, fragment)?,
    }
    let flow = &mut fragment.flow;
    if flow.transport > FARTHEST {
        return None;
    }
    flow.transport = packet.forget(flow.transport);
    fragment.headers = packet.forget(fragment.headers);
    let end = flow.end();
    if !packet.reaches(end) {
        return None;
    }
    fragment.length = end.checked_sub(flow.transport)?;
    fragment.key.source = flow.source;
    fragment.key.destination = flow.destination;
    Some(())
}

#[inline(always)]
fn read_v4<P: Packet>(packet: &P, fragment: &mut Fragment, sctp: bool) -> Option<()> {
    let ip = packet.read::<Ipv4Hdr>(wire::ETHERNET)?;
    let header = flow::header_v4(&ip)?;
    let bits = u16::from_be_bytes(ip.frags);
    if bits & 0x3fff == 0 || !flow::has_ports(ip.proto, sctp) {
        return None;
    }
    let flow = &mut fragment.flow;
    flow.source = Address::v4(u32::from_ne_bytes(ip.src_addr));
    flow.destination = Address::v4(u32::from_ne_bytes(ip.dst_addr));
    flow.protocol = ip.proto;
    flow.traffic_class = ip.tos;
    flow.length = u16::from_be_bytes(ip.tot_len);
    flow.transport = wire::ETHERNET + header;
    flow.v4 = true;
    fragment.key.id = u16::from_ne_bytes(ip.id).into();
    fragment.key.protocol = ip.proto;
    fragment.offset = usize::from(bits & 0x1fff) * 8;
    fragment.headers = header;
    fragment.more = bits & 0x2000 != 0;
    fragment.led = flow::is_source_routed(packet, flow.transport);
    Some(())
}

#[inline(always)]
fn read_v6<P: Packet>(packet: &P, fragment: &mut Fragment) -> Option<()> {
    let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
    let (mut number, mut offset) = (ip.next_hdr, wire::ETHERNET + wire::IPV6);
    for _ in 0..MAX_EXTENSION_HEADERS {
        let header = packet.read::<ExtensionHdr>(offset)?;
        match flow::extension_length(number, &header) {
            Ok(length) if flow::is_extension(number) => offset += length,
            Err(DropReason::Fragment) => {
                let [first, second, ..] = ip.vcf;
                let bits = u16::from_be_bytes(header.data);
                let flow = &mut fragment.flow;
                flow.source = Address::v6(ip.src_addr);
                flow.destination = Address::v6(ip.dst_addr);
                flow.protocol = header.next_header;
                flow.traffic_class = (first << 4) | (second >> 4);
                let length = u16::from_be_bytes(ip.payload_len);
                flow.length = length.checked_add(wire::IPV6 as u16)?;
                flow.transport = offset + wire::FRAGMENT;
                flow.v4 = false;
                fragment.key.id = u32::from_ne_bytes(header.more);
                fragment.key.protocol = protocol::FRAGMENT;
                fragment.offset = usize::from(bits & 0xfff8);
                fragment.headers = offset - wire::ETHERNET;
                fragment.more = bits & 1 != 0;
                return Some(());
            }
            _ => return None,
        }
        number = header.next_header;
    }
    None
}

/// What a first fragment is to the balancer.
pub(super) enum Found {
    /// A datagram of a protocol that services are of.
    Flow,
    /// One that no service could be addressed by.
    Foreign,
}

/// Reads what only a first fragment has: the rest of the header chain, and the transport header, of which all
/// must be there (RFC 1858 §3, RFC 7112 §5).
#[inline(always)]
pub(super) fn ports<P: Packet>(
    packet: &P,
    flow: &mut Flow,
    sctp: bool,
) -> Result<Found, DropReason> {
    let end = flow.end();
    if !flow.v4 {
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !flow::is_extension(flow.protocol) {
                break;
            }
            let header = packet.read::<ExtensionHdr>(flow.transport);
            let header = header.ok_or(DropReason::FragmentTiny)?;
            let length = flow::extension_length(flow.protocol, &header);
            flow.transport += length.map_err(|_| DropReason::ExtensionHeaders)?;
            flow.protocol = header.next_header;
            if flow.transport > end {
                return Err(DropReason::FragmentTiny);
            }
        }
        if flow::is_extension(flow.protocol) || flow.transport > FARTHEST {
            return Err(DropReason::ExtensionHeaders);
        }
    }
    flow.transport = packet.forget(flow.transport);
    if !flow::has_ports(flow.protocol, sctp) {
        return Ok(Found::Foreign);
    }
    match flow::transport(packet, flow, sctp, flow::Part::First) {
        Ok(()) => Ok(Found::Flow),
        Err(_) => Err(DropReason::FragmentTiny),
    }
}
