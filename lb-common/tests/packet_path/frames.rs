//! Frames from descriptions, laid out and summed by etherparse: what the packet path is compared
//! with shares no code with it.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpAuthHeader, IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, TcpHeader, TransportHeader,
    UdpHeader, ip_number,
};

use crate::support::Mac;

/// MAC addresses of a frame on its way in.
pub const MACS_IN: (Mac, Mac) = ([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]);
/// TTL or hop limit of a packet on its way in.
const TTL: u8 = 57;

/// An IPv6 extension header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options of so many bytes: 6, 14, 22 …
    HopByHop(usize),
    /// Destination options, likewise.
    Destination(usize),
    /// A routing header, by segments left.
    Routing(u8),
    /// A fragment header: offset in units of eight bytes, more fragments.
    Fragment(u16, bool),
    /// An authentication header with a value of so many bytes: 4, 12, 20 …
    Authentication(usize),
}

impl Extension {
    fn number(&self) -> IpNumber {
        match self {
            Self::HopByHop(_) => ip_number::IPV6_HOP_BY_HOP,
            Self::Destination(_) => ip_number::IPV6_DEST_OPTIONS,
            Self::Routing(_) => ip_number::IPV6_ROUTE,
            Self::Fragment(..) => ip_number::IPV6_FRAG,
            Self::Authentication(_) => ip_number::AUTH,
        }
    }

    fn bytes(&self, next: IpNumber) -> Vec<u8> {
        let raw = |content: &[u8]| {
            let header = Ipv6RawExtHeader::new_raw(next, content).expect("a length that fits");
            header.to_bytes().to_vec()
        };
        match *self {
            Self::HopByHop(length) | Self::Destination(length) => raw(&vec![0; length]),
            Self::Routing(segments_left) => raw(&[4, segments_left, 0, 0, 0, 0]),
            Self::Fragment(offset, more) => {
                let offset = IpFragOffset::try_new(offset).expect("13 bits");
                Ipv6FragmentHeader::new(next, offset, more, 0x0bad_cafe)
                    .to_bytes()
                    .to_vec()
            }
            Self::Authentication(length) => {
                let value = vec![0x5a; length];
                let header = IpAuthHeader::new(next, 1, 2, &value).expect("a length that fits");
                header.to_bytes().to_vec()
            }
        }
    }
}

/// Flags of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
}

impl Flags {
    pub const NONE: Self = Self {
        syn: false,
        ack: false,
        fin: false,
        rst: false,
    };
    pub const SYN: Self = Self {
        syn: true,
        ..Self::NONE
    };
    pub const ACK: Self = Self {
        ack: true,
        ..Self::NONE
    };
    /// As hosts send it, with ACK.
    pub const FIN: Self = Self {
        fin: true,
        ..Self::ACK
    };
    pub const RST: Self = Self {
        rst: true,
        ..Self::NONE
    };
}

/// What stands behind the IP headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP with flags.
    Tcp(Flags),
    /// UDP, with a checksum or without.
    Udp(bool),
    /// The payload alone, under this number.
    Other(u8),
}

/// A packet, field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub macs: (Mac, Mac),
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub ttl: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub identification: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv4: don't fragment, more fragments, offset in units of eight bytes.
    pub fragment: (bool, bool, u16),
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// Bytes behind the IP packet.
    pub trailer: Vec<u8>,
}

/// An address and port.
pub fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// A SYN from one socket to another.
pub fn syn(from: &str, to: &str) -> Spec {
    tcp(from, to, Transport::Tcp(Flags::SYN))
}

/// A later segment.
pub fn segment(from: &str, to: &str) -> Spec {
    tcp(from, to, Transport::Tcp(Flags::ACK))
}

fn tcp(from: &str, to: &str, transport: Transport) -> Spec {
    Spec {
        macs: MACS_IN,
        from: socket(from),
        to: socket(to),
        ttl: TTL,
        traffic_class: 0,
        flow_label: 0x51234,
        identification: 0x4321,
        options: Vec::new(),
        fragment: (true, false, 0),
        extensions: Vec::new(),
        transport,
        payload: b"a payload".to_vec(),
        trailer: Vec::new(),
    }
}

/// A datagram from one socket to another.
pub fn datagram(from: &str, to: &str) -> Spec {
    tcp(from, to, Transport::Udp(true))
}

impl Spec {
    /// The packet as a router with these MAC addresses sends it on.
    pub fn routed(self, macs: (Mac, Mac)) -> Self {
        Self {
            macs,
            ttl: self.ttl - 1,
            ..self
        }
    }

    /// Its bytes, with every checksum.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = ethernet(self.macs, self.from.ip());
        frame.extend(self.ip());
        frame.extend(&self.trailer);
        frame
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        let mut content = self.transport();
        let mut next = self.number();
        for extension in self.extensions.iter().rev() {
            content.splice(0..0, extension.bytes(next));
            next = extension.number();
        }
        let mut packet = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = self.header_v4(source.octets(), destination.octets(), content.len());
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
                traffic_class: self.traffic_class,
                flow_label: Ipv6FlowLabel::try_new(self.flow_label).expect("20 bits"),
                payload_length: content.len() as u16,
                next_header: next,
                hop_limit: self.ttl,
                source: source.octets(),
                destination: destination.octets(),
            }
            .to_bytes()
            .to_vec(),
            mixed => panic!("addresses of two families: {mixed:?}"),
        };
        packet.extend(content);
        packet
    }

    fn header_v4(&self, source: [u8; 4], destination: [u8; 4], content: usize) -> Ipv4Header {
        let (dont_fragment, more_fragments, offset) = self.fragment;
        let mut header = Ipv4Header {
            dscp: IpDscp::try_new(self.traffic_class >> 2).expect("6 bits"),
            ecn: IpEcn::try_new(self.traffic_class & 3).expect("2 bits"),
            total_len: (20 + self.options.len() + content) as u16,
            identification: self.identification,
            dont_fragment,
            more_fragments,
            fragment_offset: IpFragOffset::try_new(offset).expect("13 bits"),
            time_to_live: self.ttl,
            protocol: self.number(),
            header_checksum: 0,
            source,
            destination,
            options: self.options[..].try_into().expect("whole words"),
        };
        header.header_checksum = header.calc_header_checksum();
        header
    }

    /// The protocol number of what stands behind the IP headers.
    pub fn number(&self) -> IpNumber {
        match self.transport {
            Transport::Tcp(..) => ip_number::TCP,
            Transport::Udp(_) => ip_number::UDP,
            Transport::Other(number) => IpNumber(number),
        }
    }

    /// What stands behind the IP headers.
    pub fn transport(&self) -> Vec<u8> {
        let (from, to) = (self.from.port(), self.to.port());
        let mut header = match self.transport {
            Transport::Tcp(flags) => {
                let mut header = TcpHeader::new(from, to, 0x1234_5678, 0x4000);
                (header.syn, header.ack) = (flags.syn, flags.ack);
                (header.fin, header.rst) = (flags.fin, flags.rst);
                TransportHeader::Tcp(header)
            }
            Transport::Udp(_) => TransportHeader::Udp(UdpHeader {
                source_port: from,
                destination_port: to,
                length: (8 + self.payload.len()) as u16,
                checksum: 0,
            }),
            Transport::Other(_) => return self.payload.clone(),
        };
        if self.transport != Transport::Udp(false) {
            self.sum(&mut header);
        }
        let mut bytes = Vec::new();
        header.write(&mut bytes).expect("room in memory");
        bytes.extend(&self.payload);
        bytes
    }

    fn sum(&self, header: &mut TransportHeader) {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let pseudo = self.header_v4(source.octets(), destination.octets(), 0);
                let summed = header.update_checksum_ipv4(&pseudo, &self.payload);
                summed.expect("a length that fits");
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let pseudo = Ipv6Header {
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let summed = header.update_checksum_ipv6(&pseudo, &self.payload);
                summed.expect("a length that fits");
            }
            mixed => panic!("addresses of two families: {mixed:?}"),
        }
    }
}

/// An Ethernet header for an IP packet of an address's family.
pub fn ethernet((source, destination): (Mac, Mac), family: IpAddr) -> Vec<u8> {
    let ether_type = match family {
        IpAddr::V4(_) => EtherType::IPV4,
        IpAddr::V6(_) => EtherType::IPV6,
    };
    Ethernet2Header {
        source,
        destination,
        ether_type,
    }
    .to_bytes()
    .to_vec()
}

/// A tunnel's outer headers, as RFC 2003 and RFC 2473 have them, or with UDP between.
#[derive(Debug, Clone, Copy)]
pub struct Outer {
    pub macs: (Mac, Mac),
    pub source: IpAddr,
    pub destination: IpAddr,
    pub traffic_class: u8,
    /// Of IPv6.
    pub flow_label: u32,
    /// Of UDP, where that is between.
    pub ports: Option<(u16, u16)>,
    /// Whether UDP has a checksum.
    pub summed: bool,
}

impl Outer {
    /// Bytes of its headers.
    pub fn length(&self) -> usize {
        let ip = if self.destination.is_ipv4() { 20 } else { 40 };
        ip + self.ports.map_or(0, |_| 8)
    }

    /// The frame that carries an IP packet, and bytes behind it.
    pub fn around(&self, packet: &[u8], trailer: &[u8]) -> Vec<u8> {
        let inner = match packet[0] >> 4 {
            4 => ip_number::IPV4,
            _ => ip_number::IPV6,
        };
        let (from, to) = self.ports.unwrap_or_default();
        let spec = Spec {
            macs: self.macs,
            from: SocketAddr::new(self.source, from),
            to: SocketAddr::new(self.destination, to),
            ttl: 64,
            traffic_class: self.traffic_class,
            flow_label: self.flow_label,
            identification: 0,
            transport: match self.ports {
                Some(_) => Transport::Udp(self.summed),
                None => Transport::Other(inner.0),
            },
            payload: packet.to_vec(),
            trailer: trailer.to_vec(),
            ..syn("0.0.0.0:0", "0.0.0.0:0")
        };
        spec.frame()
    }
}
