//! Frames to measure with: 64 bytes of IPv4 or 80 of IPv6, no options; QUIC, whose packets are never that
//! short, is 80 bytes of IPv4. Those of other shapes are [`special`]. Pure.

mod special;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use special::{FRONT, Tag, Tunnel};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a frame of IPv4, but for QUIC.
const SHORT: usize = 64;
/// Bytes of a frame of IPv6, and of QUIC.
const LONG: usize = 80;
/// Offset of the flags in a TCP header.
const TCP_FLAGS: usize = 13;
/// The last word of flow 0's source address.
pub const FIRST_SOURCE: u32 = 0x6400_0000;
/// The source port of the first 2²⁴ flows.
const FIRST_PORT: u16 = 1_024;
/// Type and code of an ICMP echo request (RFC 792), which stand where a source port does.
const ECHO_REQUEST: u16 = 0x0800;
/// The same of ICMPv6 (RFC 4443 §4.1).
const ECHO_REQUEST_V6: u16 = 0x8000;
/// In flags and fragment offset (RFC 791 §3.1): more fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;
/// There too: must not be fragmented.
const DONT_FRAGMENT: u16 = 0x4000;

/// Flags of a TCP header.
pub mod flags {
    /// Opens a connection, and acknowledges that.
    pub const SYN_ACK: u8 = SYN | ACK;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends one.
    pub const RST: u8 = 0x04;
    /// Belongs to one.
    pub const ACK: u8 = 0x10;
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// A SYN that says the MSS of Ethernet.
    SynWithMss,
    /// A UDP datagram.
    Udp,
    /// An SCTP packet with a chunk of data.
    Sctp,
    /// A QUIC Initial of version 1, whose connection id names nobody.
    Initial,
    /// A QUIC packet with a short header, whose connection id names a server by these two bytes, of
    /// configuration 0.
    Named(u16),
    /// An ICMP echo request.
    Icmp,
    /// An ARP packet: no IP at all.
    Arp,
    /// The first fragment of a TCP segment, with its header.
    FirstFragment,
    /// A later fragment of one.
    LaterFragment,
}

impl Payload {
    fn protocol(self, v4: bool) -> u8 {
        match self {
            Self::Udp | Self::Initial | Self::Named(_) => 17,
            Self::Sctp => 132,
            Self::Icmp if v4 => 1,
            Self::Icmp => 58,
            _ => 6,
        }
    }

    fn fragment(self) -> u16 {
        match self {
            Self::FirstFragment => MORE_FRAGMENTS,
            // In units of eight bytes.
            Self::LaterFragment => 4,
            _ => DONT_FRAGMENT,
        }
    }
}

/// A frame, and the flows and services that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes as of flow 0.
    pub bytes: Vec<u8>,
    /// Sources that it is walked over, modulo their number; 0: without end.
    pub flows: u32,
    /// Addresses that its destination is walked over, beginning at its own.
    pub destinations: u32,
    /// Offset of the four bytes that say which flow it is of: the last ones of the client's address, mostly.
    pub flow_at: usize,
    /// Offset of the two bytes that tell flows apart beyond 2²⁴: the client's port, or what stands in its place.
    pub port_at: usize,
    /// Whether what comes out may have lost bytes at its end.
    pub is_cut: bool,
}

impl Frame {
    /// A frame to `vip`.
    pub fn new(vip: SocketAddr, payload: Payload, flows: u32, destinations: u32) -> Self {
        let length = match (vip, payload) {
            (SocketAddr::V6(_), _) | (_, Payload::Initial | Payload::Named(_)) => LONG,
            (SocketAddr::V4(_), _) => SHORT,
        };
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let protocol = payload.protocol(vip.is_ipv4());
        match vip.ip() {
            IpAddr::V4(ip) => ipv4(&mut bytes, ip, payload, length),
            IpAddr::V6(ip) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, protocol, 64]);
                bytes.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
                bytes.extend(FIRST_SOURCE.to_be_bytes());
                bytes.extend(ip.octets());
            }
        }
        let source_port = match (payload, vip) {
            (Payload::Icmp, SocketAddr::V4(_)) => ECHO_REQUEST,
            (Payload::Icmp, SocketAddr::V6(_)) => ECHO_REQUEST_V6,
            _ => FIRST_PORT,
        };
        bytes.extend(source_port.to_be_bytes());
        bytes.extend(vip.port().to_be_bytes());
        match payload {
            Payload::Udp => bytes.extend([0, 26, 0x12, 0x34]),
            Payload::Initial | Payload::Named(_) => {
                bytes.extend([0, 46, 0x12, 0x34]);
                bytes.extend(quic(payload));
            }
            Payload::Tcp(flags) => bytes.extend(tcp(flags)),
            // One word of options more (RFC 9293 §3.2), behind the urgent pointer.
            Payload::SynWithMss => {
                let mut header = tcp(flags::SYN);
                header[8] = 0x60;
                bytes.extend(header);
                bytes.extend([0, 0, 2, 4, 0x05, 0xb4]);
            }
            // A tag, a checksum, and the first and last chunk of a message (RFC 9260 §3).
            Payload::Sctp => bytes.extend([0, 0, 0, 1, 1, 2, 3, 4, 0, 3, 0, 16, 0, 0, 0, 1]),
            _ => bytes.extend(tcp(flags::ACK)),
        }
        bytes.resize(length, 0);
        let [flow_at, port_at] = source_at(vip.is_ipv4());
        Self {
            bytes,
            flows,
            destinations,
            flow_at,
            port_at,
            is_cut: false,
        }
    }

    /// Whether it is laid out as IPv4; so is ARP.
    pub fn is_v4(&self) -> bool {
        self.bytes[12] == 0x08
    }

    /// Whether it has one of the shapes that [`Frame::new`] makes and its end stays, which the harness restores fastest.
    pub fn is_plain(&self) -> bool {
        let v4 = self.is_v4();
        let has_length = self.bytes.len() == LONG || v4 && self.bytes.len() == SHORT;
        has_length && !self.is_cut && [self.flow_at, self.port_at] == source_at(v4)
    }

    /// The two bytes at [`Frame::port_at`] as of flow 0.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[self.port_at], self.bytes[self.port_at + 1]])
    }

    /// A frame of TCP with other flags.
    pub fn with_tcp_flags(&self, flags: u8) -> Self {
        let mut frame = self.clone();
        frame.bytes[self.port_at + TCP_FLAGS] = flags;
        frame
    }

    /// What the harness makes of it in its `run`th run, counted from 0.
    pub fn at(&self, run: u64) -> Vec<u8> {
        let flow = match self.flows {
            0 => run,
            flows => run % u64::from(flows),
        };
        let mut bytes = self.bytes.clone();
        let source = FIRST_SOURCE | (flow as u32 & 0x00ff_ffff);
        bytes[self.flow_at..self.flow_at + 4].copy_from_slice(&source.to_be_bytes());
        let port = self.port() + (flow >> 24) as u16;
        bytes[self.port_at..self.port_at + 2].copy_from_slice(&port.to_be_bytes());
        if self.destinations > 1 {
            let at = ETHERNET + 16;
            let first = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            let place = (flow % u64::from(self.destinations)) as u32;
            let to = u32::from_be_bytes(first) + place;
            bytes[at..at + 4].copy_from_slice(&to.to_be_bytes());
        }
        bytes
    }
}

/// Offsets of the last word of the source address and of the source port, without options and extension headers.
fn source_at(v4: bool) -> [usize; 2] {
    if v4 {
        [ETHERNET + 12, ETHERNET + 20]
    } else {
        [ETHERNET + 20, ETHERNET + 40]
    }
}

fn ipv4(bytes: &mut Vec<u8>, destination: Ipv4Addr, payload: Payload, length: usize) {
    bytes.extend(if payload == Payload::Arp {
        [8, 6]
    } else {
        [8, 0]
    });
    let length = match payload {
        // Of units of eight bytes, as every fragment but the last one.
        Payload::FirstFragment => 44,
        _ => (length - ETHERNET) as u8,
    };
    bytes.extend([0x45, 0, 0, length, 0, 0]);
    bytes.extend(payload.fragment().to_be_bytes());
    bytes.extend([64, payload.protocol(true), 0, 0]);
    bytes.extend(FIRST_SOURCE.to_be_bytes());
    bytes.extend(destination.octets());
}

/// A TCP header from its sequence number on.
fn tcp(flags: u8) -> [u8; 14] {
    [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0x12, 0x34]
}

/// The beginning of a QUIC packet (RFC 9000 §17), with a connection id of eight bytes.
fn quic(payload: Payload) -> Vec<u8> {
    match payload {
        // A configuration of 7 is nobody's.
        Payload::Initial => [&[0xc0, 0, 0, 0, 1, 8][..], &[0xff; 8]].concat(),
        Payload::Named(server) => [&[0x40, 0][..], &server.to_be_bytes(), &[0x5a; 5]].concat(),
        _ => Vec::new(),
    }
}

/// Where a packet goes: the destination of a frame's first IP header.
pub fn destination(frame: &[u8]) -> Option<IpAddr> {
    address(frame, 30, 38)
}

/// Where a packet comes from: the source of a frame's first IP header.
pub fn source(frame: &[u8]) -> Option<IpAddr> {
    address(frame, 26, 22)
}

/// The address of a frame at one of these offsets, by the family.
fn address(frame: &[u8], v4_at: usize, v6_at: usize) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let bytes: [u8; 4] = frame.get(v4_at..v4_at + 4)?.try_into().ok()?;
            Some(bytes.into())
        }
        [0x86, 0xdd] => {
            let bytes: [u8; 16] = frame.get(v6_at..v6_at + 16)?.try_into().ok()?;
            Some(bytes.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(vip: &str, flows: u32, destinations: u32) -> Frame {
        let vip = vip.parse().unwrap();
        Frame::new(vip, Payload::Tcp(flags::ACK), flows, destinations)
    }

    #[test]
    fn frames_have_the_two_sizes_that_the_harness_writes() {
        for payload in [
            Payload::Tcp(flags::SYN),
            Payload::SynWithMss,
            Payload::Udp,
            Payload::Sctp,
            Payload::Icmp,
            Payload::Arp,
            Payload::LaterFragment,
        ] {
            let new = |vip: &str| Frame::new(vip.parse().unwrap(), payload, 1, 1);
            assert_eq!(new("10.0.0.1:80").bytes.len(), 64);
            assert_eq!(new("[fd00::1]:80").bytes.len(), 80);
        }
    }

    #[test]
    fn quic_is_as_long_as_its_packets_are() {
        for payload in [Payload::Initial, Payload::Named(3)] {
            let frame = Frame::new("10.0.0.1:443".parse().unwrap(), payload, 1, 1);
            assert!(frame.is_v4() && frame.bytes.len() == 80);
        }
    }

    #[test]
    fn tcp_flags_can_be_changed_afterwards() {
        for vip in ["10.0.0.1:80", "[fd00::1]:80"] {
            let new = |flags| Frame::new(vip.parse().unwrap(), Payload::Tcp(flags), 1, 1);
            assert_eq!(new(flags::SYN).with_tcp_flags(flags::RST), new(flags::RST));
        }
    }

    #[test]
    fn runs_walk_over_sources_and_come_round() {
        let frame = frame("10.0.0.1:80", 3, 1);
        assert_eq!(frame.at(0), frame.bytes);
        assert_ne!(frame.at(1), frame.at(2));
        assert_eq!(frame.at(1), frame.at(4));
    }

    #[test]
    fn without_end_no_two_runs_have_the_same_source() {
        let frame = frame("[fd00::1]:80", 0, 1);
        assert_ne!(frame.at(5), frame.at(5 + (1 << 24)));
    }

    #[test]
    fn a_flow_keeps_its_destination() {
        let frame = frame("10.0.0.254:80", 30, 10);
        assert_eq!(destination(&frame.at(5)), Some([10, 0, 1, 3].into()));
        assert_eq!(destination(&frame.at(35)), Some([10, 0, 1, 3].into()));
        assert_eq!(destination(&frame.at(9)), Some([10, 0, 1, 7].into()));
    }
}
