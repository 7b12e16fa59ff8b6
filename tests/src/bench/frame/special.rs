//! Frames of other shapes: longer, tagged, in tunnels, from backends, and about others. Where their flow is told is elsewhere
//! than in a client's packets. Checksums are right where anything reads them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::{
    checksum::Sum,
    second_hop,
    tables::Address,
    wire::{self, protocol},
};

use super::{ETHERNET, FIRST_PORT, FIRST_SOURCE, Frame, Payload, flags, source_at, tcp};

/// A VLAN tag, from its protocol on.
pub type Tag = [u8; 4];

/// Bytes at the front of a frame that the harness writes anew, at most: all headers that there may be.
pub const FRONT: usize = 256;
/// Where frames come from, and go to.
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TTL: u8 = 64;
const GUE_VARIANT_0: u8 = 0;
/// Offset of the sequence number in a TCP header.
const SEQUENCE: usize = 4;

/// What a packet is wrapped in on its way to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// IP.
    Ipip,
    /// GUE of variant 1, to this UDP port.
    Gue(u16),
    /// GUE of variant 0, to this UDP port, that tells who else may have the flow.
    Telling(u16, IpAddr),
}

/// The client's address of flow 0.
fn client(v4: bool) -> IpAddr {
    let [a, b, c, d] = FIRST_SOURCE.to_be_bytes();
    if v4 {
        [a, b, c, d].into()
    } else {
        let low = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, low(a, b), low(c, d)).into()
    }
}

/// Who tells of errors.
fn router(v4: bool) -> IpAddr {
    if v4 {
        [198, 51, 100, 9].into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).into()
    }
}

/// Bytes of an IP header.
fn ip_length(v4: bool) -> usize {
    if v4 { wire::IPV4 } else { wire::IPV6 }
}

/// Offset of the last word of the destination, from the IP header on.
fn destination_at(v4: bool) -> usize {
    if v4 { 16 } else { 36 }
}

fn ethernet(v4: bool) -> Vec<u8> {
    let ether_type = if v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&OWN_MAC[..], &CLIENT_MAC, &ether_type].concat()
}

/// An IP packet of one family.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = ((wire::IPV4 + payload.len()) as u16).to_be_bytes();
            bytes.extend([0x45, 0, high, low, 0, 0, 0x40, 0, ttl, protocol, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (from, to) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            bytes.extend([0x60, 0, 0, 0, high, low, protocol, ttl]);
            bytes.extend(Address::from(from).octets());
            bytes.extend(Address::from(to).octets());
        }
    }
    bytes.extend(payload);
    bytes
}

/// A TCP header without options.
fn segment(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(tcp(flags));
    bytes.extend([0, 0]);
    bytes
}

impl Frame {
    fn of(bytes: Vec<u8>, flows: u32, [flow_at, port_at]: [usize; 2]) -> Self {
        Self {
            bytes,
            flows,
            destinations: 1,
            flow_at,
            port_at,
            is_cut: false,
        }
    }

    /// The same where what comes out may have lost bytes at its end.
    pub fn cut(self) -> Self {
        Self {
            is_cut: true,
            ..self
        }
    }

    /// Bytes at the front that a program may write over: all but the rest of a long payload.
    pub fn front(&self) -> &[u8] {
        &self.bytes[..self.bytes.len().min(FRONT)]
    }

    /// What a backend sends to the clients: a segment with these flags.
    pub fn answer(backend: SocketAddr, flags: u8, flows: u32) -> Self {
        let v4 = backend.is_ipv4();
        let tcp = segment(backend.port(), FIRST_PORT, flags);
        let packet = ip(backend.ip(), client(v4), protocol::TCP, TTL, &tcp);
        let at = [ETHERNET + destination_at(v4), ETHERNET + ip_length(v4) + 2];
        let mut bytes = [ethernet(v4), packet].concat();
        bytes.resize(bytes.len().max(super::SHORT), 0);
        Self::of(bytes, flows, at)
    }

    /// What the receiver of a frame with ports that came out of the program sends back, from flow 0 alone.
    pub fn answer_to(out: &[u8]) -> Self {
        let v4 = out[12] == 0x08;
        let (network, transport) = (ETHERNET, ETHERNET + ip_length(v4));
        let (source, length) = if v4 { (12, 4) } else { (8, 16) };
        let mut bytes = out.to_vec();
        let mut swap = |at: usize, length: usize| {
            let (one, other) = bytes[at..at + 2 * length].split_at_mut(length);
            one.swap_with_slice(other);
        };
        swap(0, 6);
        swap(network + source, length);
        swap(transport, 2);
        // What its flow would be told by stays as it is: nothing reads the sequence number, nor a datagram's data.
        let at = transport
            + if bytes[network + if v4 { 9 } else { 6 }] == protocol::TCP {
                SEQUENCE
            } else {
                wire::UDP
            };
        Self::of(bytes, 1, [at, at])
    }

    /// An error that says that hosts cannot be reached, about packets in the VIP's name to the clients.
    pub fn error(vip: SocketAddr, flows: u32) -> Self {
        let v4 = vip.is_ipv4();
        let tcp = segment(vip.port(), FIRST_PORT, flags::ACK);
        // As much as every error quotes.
        let quoted = ip(vip.ip(), client(v4), protocol::TCP, TTL, &tcp);
        let quoted = &quoted[..ip_length(v4) + 8];
        let (protocol, unreachable) = if v4 {
            (protocol::ICMP, [3, 1])
        } else {
            (protocol::ICMPV6, [1, 0])
        };
        let message = [&unreachable[..], &[0x12, 0x34, 0, 0, 0, 0], quoted].concat();
        let packet = ip(router(v4), vip.ip(), protocol, TTL, &message);
        let network = ETHERNET + ip_length(v4) + wire::ICMP;
        let at = [network + destination_at(v4), network + ip_length(v4) + 2];
        Self::of([ethernet(v4), packet].concat(), flows, at)
    }

    /// The same, filled up to so many bytes, of which its IP header knows.
    pub fn filled(mut self, length: usize) -> Self {
        self.bytes.resize(length, 0x5a);
        self.says(length - ETHERNET)
    }

    /// The same with an IP header that says that the packet has so many bytes.
    pub fn says(mut self, packet: usize) -> Self {
        let (at, length) = if self.is_v4() {
            (ETHERNET + 2, packet)
        } else {
            (ETHERNET + 4, packet - wire::IPV6)
        };
        self.bytes[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        self
    }

    /// The same with the checksum that its IPv4 header has to have to be answered; of what has tags or IPv6, nothing is done.
    pub fn summed(mut self) -> Self {
        if self.bytes[12..14] != [8, 0] {
            return self;
        }
        let header = &mut self.bytes[ETHERNET..ETHERNET + wire::IPV4];
        header[10..12].fill(0);
        let pairs = header.chunks_exact(2);
        let sum = pairs.fold(Sum::new(), |sum, pair| {
            sum.add16(u16::from_ne_bytes([pair[0], pair[1]]))
        });
        header[10..12].copy_from_slice(&sum.checksum().to_ne_bytes());
        self
    }

    /// The same of TCP from another address, from which all flows come then.
    pub fn sent_by(mut self, source: IpAddr) -> Self {
        let [end, transport] = source_at(self.is_v4());
        let octets = match source {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        self.bytes[end + 4 - octets.len()..end + 4].copy_from_slice(&octets);
        self.flow_at = transport + SEQUENCE;
        self
    }

    /// The same behind VLAN tags.
    pub fn tagged(mut self, tags: &[Tag]) -> Self {
        let tags = tags.as_flattened();
        self.bytes.splice(12..12, tags.iter().copied());
        self.flow_at += tags.len();
        self.port_at += tags.len();
        self
    }

    /// A fragment of a TCP segment over IPv6: the first one, with its header, or a later one.
    pub fn fragment_v6(vip: SocketAddr, payload: Payload, flows: u32) -> Self {
        // An offset of four units, the last one; or none, and more to come (RFC 8200 §4.5).
        let place = match payload {
            Payload::LaterFragment => [0, 4 << 3],
            _ => [0, 1],
        };
        let mut fragment = vec![protocol::TCP, 0, place[0], place[1], 0, 0, 0, 7];
        fragment.extend(segment(FIRST_PORT, vip.port(), flags::ACK));
        fragment.resize(8 + 32, 0);
        let packet = ip(client(false), vip.ip(), protocol::FRAGMENT, TTL, &fragment);
        let [flow_at, transport] = source_at(false);
        Self::of(
            [ethernet(false), packet].concat(),
            flows,
            [flow_at, transport + 8],
        )
    }

    /// A question by ARP who has an address.
    pub fn who_has(vip: [u8; 4]) -> Self {
        let mut bytes = [&[0xff; 6][..], &CLIENT_MAC, &[0x08, 0x06]].concat();
        bytes.extend([0, 1, 0x08, 0x00, 6, 4, 0, 1]);
        bytes.extend(CLIENT_MAC);
        bytes.extend(FIRST_SOURCE.to_be_bytes());
        bytes.extend([0; 6]);
        bytes.extend(vip);
        bytes.resize(super::SHORT, 0);
        // Ports are none; the end of it is nobody's.
        Self::of(bytes, 1, [ETHERNET + 14, super::SHORT - 2])
    }

    /// The same by a neighbour solicitation (RFC 4861 §4.3), which says where its sender is.
    pub fn solicitation(vip: Ipv6Addr) -> Self {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(vip.octets());
        message.extend([1, 1]);
        message.extend(CLIENT_MAC);
        let length = message.len() as u16;
        let (from, to) = (Address::from(client(false)), Address::from(IpAddr::V6(vip)));
        let sum = Sum::new()
            .add128(from.words())
            .add128(to.words())
            .add16(length.to_be())
            .add16(u16::from(protocol::ICMPV6).to_be());
        let pairs = message.chunks_exact(2);
        let sum = pairs.fold(sum, |sum, pair| {
            sum.add16(u16::from_ne_bytes([pair[0], pair[1]]))
        });
        message[2..4].copy_from_slice(&sum.checksum().to_ne_bytes());
        let packet = ip(client(false), vip.into(), protocol::ICMPV6, 255, &message);
        let [flow_at, message_at] = source_at(false);
        // The flags, which nobody reads.
        Self::of(
            [ethernet(false), packet].concat(),
            1,
            [flow_at, message_at + 4],
        )
    }

    /// The same on its way to where a tunnel ends.
    pub fn tunnelled(self, tunnel: Tunnel, to: IpAddr) -> Self {
        let inner_v4 = self.is_v4();
        let packet = &self.bytes[ETHERNET..];
        let gue = match tunnel {
            Tunnel::Telling(_, other) => telling(other, inner_v4),
            Tunnel::Ipip | Tunnel::Gue(_) => Vec::new(),
        };
        let (protocol, payload) = match tunnel {
            Tunnel::Ipip if inner_v4 => (protocol::IPV4, packet.to_vec()),
            Tunnel::Ipip => (protocol::IPV6, packet.to_vec()),
            Tunnel::Gue(port) | Tunnel::Telling(port, _) => {
                let length = (wire::UDP + gue.len() + packet.len()) as u16;
                let mut udp = 0xc000u16.to_be_bytes().to_vec();
                udp.extend(port.to_be_bytes());
                udp.extend(length.to_be_bytes());
                // None, as RFC 6935 allows.
                udp.extend([0, 0]);
                (protocol::UDP, [udp, gue, packet.to_vec()].concat())
            }
        };
        let around = payload.len() - packet.len() + ip_length(to.is_ipv4());
        let outer = ip(router(to.is_ipv4()), to, protocol, TTL, &payload);
        Self {
            bytes: [ethernet(to.is_ipv4()), outer].concat(),
            flow_at: self.flow_at + around,
            port_at: self.port_at + around,
            ..self
        }
    }
}

/// A GUE header that tells of somebody, as the balancer writes it.
fn telling(other: IpAddr, inner_v4: bool) -> Vec<u8> {
    let address = match other {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let length = second_hop::length(Some(other.into()), other.is_ipv4());
    let words = (length as u8 - 4) / 4;
    let inner = if inner_v4 {
        protocol::IPV4
    } else {
        protocol::IPV6
    };
    let mut header = vec![GUE_VARIANT_0 | words, inner, 0, 0, b'L', b'B', 1, 1];
    header.extend(address);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::frame::destination;

    const VIPS: [&str; 2] = ["10.0.0.1:80", "[fd00::1]:80"];

    #[test]
    fn every_flow_has_another_client_wherever_that_is_told() {
        for vip in VIPS.map(|vip| vip.parse::<SocketAddr>().unwrap()) {
            for frame in [
                Frame::answer(vip, flags::ACK, 0),
                Frame::error(vip, 0),
                Frame::new(vip, Payload::Tcp(flags::ACK), 0, 1).tagged(&[[0x81, 0, 0, 7]; 2]),
            ] {
                assert_eq!(frame.at(0), frame.bytes, "{vip}");
                assert_ne!(frame.at(1), frame.at(2), "{vip}");
                assert_ne!(frame.at(1), frame.at(1 + (1 << 24)), "{vip}");
            }
        }
    }

    #[test]
    fn an_answer_goes_where_what_it_answers_came_from() {
        for vip in VIPS.map(|vip| vip.parse::<SocketAddr>().unwrap()) {
            let asked = Frame::new(vip, Payload::Tcp(flags::ACK), 1, 1);
            let answer = Frame::answer_to(&asked.bytes);
            assert_eq!(destination(&answer.bytes), Some(client(vip.is_ipv4())));
            assert_eq!(answer.at(5).len(), answer.bytes.len());
        }
    }

    #[test]
    fn headers_say_how_long_frames_are() {
        for vip in VIPS.map(|vip| vip.parse::<SocketAddr>().unwrap()) {
            let plain = Frame::new(vip, Payload::Tcp(flags::ACK), 1, 1);
            let other: IpAddr = [10, 2, 0, 9].into();
            for frame in [
                Frame::error(vip, 1),
                plain.clone().filled(1_514),
                plain.clone().tunnelled(Tunnel::Ipip, other),
                plain.clone().tunnelled(Tunnel::Gue(6_080), other),
                plain.tunnelled(Tunnel::Telling(6_080, other), other),
            ] {
                let v4 = frame.is_v4();
                let at = ETHERNET + if v4 { 2 } else { 4 };
                let said = u16::from_be_bytes([frame.bytes[at], frame.bytes[at + 1]]);
                let more = if v4 { 0 } else { wire::IPV6 };
                assert_eq!(usize::from(said) + more + ETHERNET, frame.bytes.len());
            }
        }
    }
}
