//! Reads a frame and says what it carries, or what is wrong with it: lengths that do not match,
//! checksums that are not right. By etherparse, so that the product's own reading is not trusted.
//! Pure.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    IpNumber, IpPayloadSlice, NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords,
};

/// Where tunnels of UDP end.
const GUE_PORT: u16 = 6_080;

/// An IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
}

/// A TCP or UDP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// TCP or UDP.
    pub protocol: IpNumber,
    /// From.
    pub source_port: u16,
    /// To.
    pub destination_port: u16,
    /// As sent; zero is a UDP datagram without one.
    pub checksum: u16,
    /// Bytes of payload.
    pub payload: usize,
}

/// A well-formed TCP or UDP packet, in a tunnel or bare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The header around it, in a tunnel.
    pub outer: Option<Ip>,
    /// What is between the two, in a tunnel of UDP.
    pub between: Option<Segment>,
    /// Its own.
    pub ip: Ip,
    /// What it carries.
    pub segment: Segment,
}

/// Reads an Ethernet frame; `None` where it carries neither TCP nor UDP.
///
/// # Errors
/// It is malformed, or a checksum is wrong.
pub fn dissect(frame: &[u8]) -> Result<Option<Packet>> {
    let sliced = SlicedPacket::from_ethernet(frame).context("a frame")?;
    let Some((outer, payload)) = network(&sliced)? else {
        return Ok(None);
    };
    let end = payload.payload.as_ptr_range().end;
    ensure!(end == frame.as_ptr_range().end, "bytes after the packet");
    ensure!(!payload.fragmented, "a fragment");
    let (between, carried) = match (&sliced.transport, payload.ip_number) {
        (_, IpNumber::IPV4 | IpNumber::IPV6) => (None, payload.payload),
        (Some(TransportSlice::Udp(udp)), _) if udp.destination_port() == GUE_PORT => {
            (transport(&sliced, outer)?, udp.payload())
        }
        _ => {
            let segment = transport(&sliced, outer)?;
            return Ok(segment.map(|segment| Packet {
                outer: None,
                between: None,
                ip: outer,
                segment,
            }));
        }
    };
    let (announced, carried) = match between {
        Some(_) => behind_gue(carried)?,
        None => (Some(payload.ip_number), carried),
    };
    let inner = SlicedPacket::from_ip(carried).context("a packet in a tunnel")?;
    let (ip, within) = network(&inner)?.context("a tunnel carries IP")?;
    ensure!(
        announced.is_none_or(|number| ip.source.is_ipv4() == (number == IpNumber::IPV4)),
        "the outer header announces another family than {ip:?}"
    );
    let end = within.payload.as_ptr_range().end;
    ensure!(
        end == frame.as_ptr_range().end,
        "bytes after the inner packet"
    );
    Ok(transport(&inner, ip)?.map(|segment| Packet {
        outer: Some(outer),
        between,
        ip,
        segment,
    }))
}

/// What GUE carries, and what it says that this is (draft-ietf-intarea-gue-09 §3): nothing where the packet itself follows.
fn behind_gue(bytes: &[u8]) -> Result<(Option<IpNumber>, &[u8])> {
    const CONTROL: u8 = 0x20;
    const WORDS: u8 = 0x1f;
    let [first, number, ..] = *bytes else {
        bail!("nothing in a tunnel");
    };
    match first >> 6 {
        0 => {
            ensure!(first & CONTROL == 0, "a control message");
            let header = 4 + 4 * usize::from(first & WORDS);
            let carried = bytes.get(header..).context("a header of GUE cut short")?;
            Ok((Some(IpNumber(number)), carried))
        }
        _ => Ok((None, bytes)),
    }
}

fn network<'a>(sliced: &SlicedPacket<'a>) -> Result<Option<(Ip, IpPayloadSlice<'a>)>> {
    Ok(match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            // RFC 1071: with the right checksum in it, a header sums up to none.
            let sum = Sum16BitWords::new().add_slice(header.slice());
            ensure!(
                sum.ones_complement() == 0,
                "the IPv4 header checksum is wrong"
            );
            ensure!(header.ttl() > 0, "no time to live");
            let ip_header = Ip {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
            };
            Some((ip_header, ip.payload().clone()))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            ensure!(header.hop_limit() > 0, "no hop limit");
            // Zero is a jumbogram's, which the reader takes for as long as the frame.
            ensure!(header.payload_length() > 0, "no payload length");
            let ip_header = Ip {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
            };
            Some((ip_header, ip.payload().clone()))
        }
        _ => None,
    })
}

fn transport(sliced: &SlicedPacket<'_>, ip: Ip) -> Result<Option<Segment>> {
    let segment = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => Segment {
            protocol: IpNumber::TCP,
            source_port: tcp.source_port(),
            destination_port: tcp.destination_port(),
            checksum: tcp.checksum(),
            payload: tcp.payload().len(),
        },
        Some(TransportSlice::Udp(udp)) => Segment {
            protocol: IpNumber::UDP,
            source_port: udp.source_port(),
            destination_port: udp.destination_port(),
            checksum: udp.checksum(),
            payload: udp.payload().len(),
        },
        _ => return Ok(None),
    };
    let right = right_checksum(sliced, ip)?;
    // RFC 768: over IPv4, zero is no checksum; over IPv6 for tunnels only (RFC 6935).
    let may_lack = ip.source.is_ipv4() || segment.destination_port == GUE_PORT;
    let none = segment.protocol == IpNumber::UDP && may_lack && segment.checksum == 0;
    // The kernel sends all ones for a computed zero, of TCP too (`skb_checksum_help`): the same number (RFC 1071 §2).
    let is_zero = |check: u16| matches!(check, 0 | 0xffff);
    let same = segment.checksum == right
        || segment.protocol == IpNumber::TCP && is_zero(segment.checksum) && is_zero(right);
    ensure!(
        none || same,
        "{:?} checksum {:#06x}, not {right:#06x}",
        segment.protocol,
        segment.checksum
    );
    Ok(Some(segment))
}

fn right_checksum(sliced: &SlicedPacket<'_>, ip: Ip) -> Result<u16> {
    let right = match (&sliced.transport, ip.source, ip.destination) {
        (Some(TransportSlice::Tcp(tcp)), IpAddr::V4(from), IpAddr::V4(to)) => {
            tcp.calc_checksum_ipv4(from.octets(), to.octets())?
        }
        (Some(TransportSlice::Tcp(tcp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            tcp.calc_checksum_ipv6(from.octets(), to.octets())?
        }
        (Some(TransportSlice::Udp(udp)), IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = udp.to_header();
            header.calc_checksum_ipv4_raw(from.octets(), to.octets(), udp.payload())?
        }
        (Some(TransportSlice::Udp(udp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = udp.to_header();
            header.calc_checksum_ipv6_raw(from.octets(), to.octets(), udp.payload())?
        }
        _ => bail!("no checksum over {ip:?}"),
    };
    Ok(right)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use etherparse::{IpFragOffset, Ipv4Header, PacketBuilder};

    use super::*;

    const PAYLOAD: &[u8] = b"some payload";

    fn udp_v4() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1_000, 2_000);
        let mut frame = Vec::new();
        builder.write(&mut frame, PAYLOAD).unwrap();
        frame
    }

    fn tcp_v6_in_v4() -> Vec<u8> {
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(1_000, 2_000, 5, 512);
        let mut inner = Vec::new();
        builder.write(&mut inner, PAYLOAD).unwrap();
        let length = u16::try_from(inner.len()).unwrap();
        let mut outer =
            Ipv4Header::new(length, 64, IpNumber::IPV6, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        outer.fragment_offset = IpFragOffset::ZERO;
        outer.header_checksum = outer.calc_header_checksum();
        let ethernet = [&[2; 6][..], &[4; 6], &[8, 0]].concat();
        [&ethernet[..], &outer.to_bytes(), &inner].concat()
    }

    fn udp_v4_in_udp_over_v6() -> Vec<u8> {
        let inner = &udp_v4()[14..];
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .udp(50_000, GUE_PORT);
        let mut frame = Vec::new();
        builder.write(&mut frame, inner).unwrap();
        frame
    }

    #[test]
    fn a_datagram_in_a_tunnel_of_udp_is_read_with_all_its_headers() {
        let packet = dissect(&udp_v4_in_udp_over_v6()).unwrap().unwrap();
        let (outer, between) = (packet.outer.unwrap(), packet.between.unwrap());
        assert_eq!(outer.destination, Ipv6Addr::from([2; 16]));
        assert_eq!(between.destination_port, GUE_PORT);
        assert_eq!(packet.ip.source, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(packet.segment.destination_port, 2_000);
    }

    #[test]
    fn a_bare_datagram_is_read() {
        let packet = dissect(&udp_v4()).unwrap().unwrap();
        assert_eq!(packet.outer, None);
        assert_eq!(packet.ip.source, Ipv4Addr::new(10, 0, 0, 1));
        let segment = packet.segment;
        assert_eq!(
            (segment.protocol, segment.payload),
            (IpNumber::UDP, PAYLOAD.len())
        );
        assert_eq!(
            (segment.source_port, segment.destination_port),
            (1_000, 2_000)
        );
    }

    #[test]
    fn a_segment_in_a_tunnel_is_read_with_both_headers() {
        let packet = dissect(&tcp_v6_in_v4()).unwrap().unwrap();
        assert_eq!(
            packet.outer.unwrap().destination,
            Ipv4Addr::new(10, 0, 0, 2)
        );
        assert_eq!(packet.ip.destination, Ipv6Addr::from([2; 16]));
        assert_eq!(packet.segment.protocol, IpNumber::TCP);
    }

    #[test]
    fn every_flipped_bit_that_a_checksum_or_length_covers_is_found() {
        // No checksum covers the first word and the hop limit of an IPv6 header.
        let v6 = |at: usize| ![0, 1, 2, 3, 7].contains(&at);
        for (frame, covered) in [
            (udp_v4(), &(|at: usize| at >= 14) as &dyn Fn(usize) -> bool),
            (tcp_v6_in_v4(), &|at| at >= 14 && (at < 34 || v6(at - 34))),
            (udp_v4_in_udp_over_v6(), &|at| at >= 14 && v6(at - 14)),
        ] {
            let whole = dissect(&frame).unwrap();
            for bit in (0..frame.len() * 8).filter(|bit| covered(bit / 8)) {
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                let read = dissect(&broken);
                assert!(
                    read.is_err() || read.unwrap() != whole,
                    "bit {bit} of {frame:x?}"
                );
            }
        }
    }

    #[test]
    fn a_missing_or_trailing_byte_is_found() {
        for mut frame in [udp_v4(), tcp_v6_in_v4(), udp_v4_in_udp_over_v6()] {
            dissect(&frame[..frame.len() - 1]).unwrap_err();
            frame.push(0);
            dissect(&frame).unwrap_err();
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_none_over_ipv4() {
        let mut frame = udp_v4();
        frame[40..42].fill(0);
        assert_eq!(dissect(&frame).unwrap().unwrap().segment.checksum, 0);
    }
}
