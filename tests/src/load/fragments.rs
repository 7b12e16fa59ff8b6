//! A datagram in fragments, sent in any order. Owns their making; which of them are sent is the tests'.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader, ip_number,
};

/// Bytes of the datagram in each fragment but the last: those of a link with the least MTU of IPv6.
pub const PART: usize = 1_232;
const TTL: u8 = 64;

/// A UDP datagram.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// Where it comes from.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its identification; of IPv4 the low half.
    pub id: u32,
    /// The UDP header and its payload.
    bytes: Vec<u8>,
}

impl Datagram {
    /// One of `payload`, with its checksum.
    ///
    /// # Errors
    /// It is too long, or its ends are of two families.
    pub fn new(from: SocketAddr, to: SocketAddr, id: u32, payload: &[u8]) -> Result<Self> {
        let (source, destination) = (from.port(), to.port());
        let header = match (from.ip(), to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let length = (8 + payload.len()) as u16;
                let ip = Ipv4Header::new(length, TTL, ip_number::UDP, a.octets(), b.octets());
                let ip = ip.context("a length")?;
                UdpHeader::with_ipv4_checksum(source, destination, &ip, payload)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let ip = Ipv6Header {
                    source: a.octets(),
                    destination: b.octets(),
                    ..Ipv6Header::default()
                };
                UdpHeader::with_ipv6_checksum(source, destination, &ip, payload)
            }
            mixed => bail!("addresses of two families: {mixed:?}"),
        };
        let mut bytes = header.context("a checksum")?.to_bytes().to_vec();
        bytes.extend(payload);
        let id = if from.is_ipv4() { id & 0xffff } else { id };
        Ok(Self {
            from,
            to,
            id,
            bytes,
        })
    }

    /// Its fragments as IP packets, in order.
    ///
    /// # Errors
    /// As [`Self::part`].
    pub fn parts(&self) -> Result<Vec<Vec<u8>>> {
        let starts = (0..self.bytes.len()).step_by(PART);
        starts
            .map(|from| self.part(from, (from + PART).min(self.bytes.len())))
            .collect()
    }

    /// The part of it between two places, in bytes, as an IP packet.
    ///
    /// # Errors
    /// It has no such part.
    pub fn part(&self, from: usize, to: usize) -> Result<Vec<u8>> {
        let bytes = self.bytes.get(from..to).context("beyond the datagram")?;
        let offset = IpFragOffset::try_new((from / 8) as u16).context("an offset")?;
        let more = to < self.bytes.len();
        let mut packet = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(
                    bytes.len() as u16,
                    TTL,
                    ip_number::UDP,
                    source.octets(),
                    destination.octets(),
                )
                .context("a length")?;
                header.dont_fragment = false;
                header.more_fragments = more;
                header.fragment_offset = offset;
                header.identification = self.id as u16;
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    payload_length: (8 + bytes.len()) as u16,
                    next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                    hop_limit: TTL,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let fragment = Ipv6FragmentHeader::new(ip_number::UDP, offset, more, self.id);
                [&header.to_bytes()[..], &fragment.to_bytes()].concat()
            }
            mixed => bail!("addresses of two families: {mixed:?}"),
        };
        packet.extend(bytes);
        Ok(packet)
    }
}
