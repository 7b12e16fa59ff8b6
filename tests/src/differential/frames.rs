//! Frames by the thousand: well-formed, oddly formed and broken, to services and elsewhere. The
//! same seed gives the same frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::fragments::Open;

/// Addresses of the balancer itself.
pub const OWN: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1)),
];

/// Ports of each address of the pool `small`: two of each family.
pub const POOL_PORTS: (u16, u16) = (40_000, 40_007);
/// Backends of mode `full-nat`.
const TRANSLATED_V4: [SocketAddrV4; 3] = [
    SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 11), 80),
    SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 12), 8_080),
    SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 13), 81),
];
const TRANSLATED_V6: [SocketAddrV6; 3] = [
    SocketAddrV6::new(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x11), 80, 0, 0),
    SocketAddrV6::new(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x12), 8_080, 0, 0),
    SocketAddrV6::new(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x13), 81, 0, 0),
];

/// Configuration of QUIC services' connection ids.
pub const CONFIG_ID: u8 = 2;
/// Bytes of their nonces.
pub const NONCE: u8 = 5;

/// The id of a server; those up to 7 are sent for.
pub const fn server_id(n: u8) -> [u8; 2] {
    [0x0a, n]
}

/// The balancer's own address of a family.
pub fn own_for(address: IpAddr) -> SocketAddr {
    let [v4, v6] = OWN;
    SocketAddr::new(if address.is_ipv4() { v4 } else { v6 }, 0)
}

/// SplitMix64 (G. Steele et al., OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> usize {
        (self.word() % limit) as usize
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.word() as u8
    }

    /// One of them, each as often.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64)]
    }
}

/// Makes frames between `endpoints` (services, backends, whatever) and strangers.
#[derive(Debug)]
pub struct Generator {
    /// Its randomness.
    pub random: Random,
    /// Addresses worth sending to and from.
    pub endpoints: Vec<SocketAddr>,
    /// Datagrams of which fragments are still to come.
    pub open: Vec<Open>,
    /// The last frame that was whole, which may come again as what is lost does.
    last: Vec<u8>,
    /// The last SYN, which may be followed by what comes next of its connection: from, to, and that one's sequence number.
    opened: Option<(SocketAddr, SocketAddr, u32)>,
}

impl Generator {
    /// One that begins.
    pub fn new(seed: u64, endpoints: Vec<SocketAddr>) -> Self {
        Self {
            random: Random(seed),
            endpoints,
            open: Vec::new(),
            last: Vec::new(),
            opened: None,
        }
    }

    /// The next frame, of 14 bytes or more: some with tags.
    pub fn frame(&mut self) -> Vec<u8> {
        let frame = self.bare();
        if self.random.once_in(6) {
            return self.tag(frame);
        }
        frame
    }

    /// The frame with one, two, or seldom three tags: of devices that there are, and others.
    fn tag(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.random.pick(&[1, 1, 1, 2, 2, 2, 2, 3]) {
            let protocol: u16 = self
                .random
                .pick(&[0x8100, 0x8100, 0x8100, 0x88a8, 0x88a8, 0x9100]);
            let id: u16 = self.random.pick(&[100, 100, 100, 7, 7, 300, 0, 4_095]);
            let priority = u16::from(self.random.byte()) << 8 & 0xf000;
            let [a, b] = protocol.to_be_bytes();
            let [c, d] = (priority | id).to_be_bytes();
            frame.splice(12..12, [a, b, c, d]);
        }
        if self.random.once_in(16) {
            frame.truncate(14 + self.random.below(14));
        }
        frame
    }

    fn bare(&mut self) -> Vec<u8> {
        if self.random.once_in(8) {
            return self.fragment();
        }
        if self.random.once_in(16) && !self.last.is_empty() {
            return self.last.clone();
        }
        let interesting = self.random.pick(&self.endpoints);
        if self.random.once_in(16) {
            let mut frame = self.who_has(interesting.ip());
            self.damage(&mut frame);
            frame.resize(frame.len().max(14), 0);
            return frame;
        }
        if self.random.once_in(12) {
            let mut frame = self.tunnelled();
            self.damage(&mut frame);
            frame.resize(frame.len().max(14), 0);
            return frame;
        }
        let stranger = self.stranger(interesting);
        let (from, to) = match self.random.below(8) {
            0..=4 => (stranger, interesting),
            5 | 6 => (interesting, stranger),
            _ if self.random.once_in(3) => self.translated(),
            _ => (interesting, own_for(interesting.ip())),
        };
        let (from, to) = match self.opened {
            Some((from, to, _)) if self.random.once_in(4) => (from, to),
            _ => (from, to),
        };
        let mut frame = self.plain(from, to);
        self.damage(&mut frame);
        if frame.len() < 14 {
            frame.resize(14, 0);
        }
        self.last.clone_from(&frame);
        frame
    }

    /// Ends of what a backend of mode `full-nat` sends, or is said of what it gets.
    pub(super) fn translated(&mut self) -> (SocketAddr, SocketAddr) {
        let (backends, address): ([SocketAddr; 3], fn(u8) -> IpAddr) = if self.random.once_in(3) {
            (TRANSLATED_V6.map(Into::into), |n| {
                Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, n.into()).into()
            })
        } else {
            (TRANSLATED_V4.map(Into::into), |n| {
                Ipv4Addr::new(10, 9, 0, n).into()
            })
        };
        let to = address(1 + self.random.below(2) as u8);
        let (first, last) = POOL_PORTS;
        let port = first + self.random.below((last - first + 1).into()) as u16;
        (self.random.pick(&backends), SocketAddr::new(to, port))
    }

    pub(super) fn stranger(&mut self, like: SocketAddr) -> SocketAddr {
        if self.random.once_in(32) {
            let nobody = self.nobody(like.ip());
            return SocketAddr::new(nobody, self.random.word() as u16);
        }
        // Half of them come again, as packets of a connection do.
        let word = if self.random.once_in(2) {
            Random(self.random.word() % 64).word()
        } else {
            self.random.word()
        };
        let [.., a, b, c, d] = word.to_be_bytes();
        let ip = match like.ip() {
            IpAddr::V4(_) => IpAddr::from([192, a, b, c]),
            IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, a.into(), b.into(), c.into()]),
        };
        SocketAddr::new(ip, u16::from_be_bytes([c, d]))
    }

    /// An address that none may send to `to` from: no host's, or that address itself; or one next to those.
    fn nobody(&mut self, to: IpAddr) -> IpAddr {
        let byte = self.random.byte();
        let last = self.random.pick(&[0, 1, 255]);
        if to.is_ipv4() {
            let first = self
                .random
                .pick(&[0, 1, 126, 127, 128, 223, 224, 239, 240, 255]);
            let rest = self.random.pick(&[byte, 255]);
            self.random
                .pick(&[IpAddr::from([first, rest, rest, last]), to])
        } else {
            let group = self.random.pick(&[0xfe80, 0xfeff, 0xff00, 0xff02, 0xffff]);
            let last = u16::from(last);
            let own = IpAddr::from([0, 0, 0, 0, 0, 0, 0, last]);
            let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a02, last]);
            let group = IpAddr::from([group, 0, 0, 0, 0, 0, 0, last]);
            self.random.pick(&[own, mapped, group, to])
        }
    }

    fn protocol(&mut self) -> u8 {
        self.random
            .pick(&[6, 6, 6, 17, 17, 17, 1, 58, 132, 47, 4, 41])
    }

    pub(super) fn transport(&mut self, protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        if let 1 | 58 = protocol {
            return self.message(protocol == 1, from, to);
        }
        let mut bytes = Vec::new();
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        match protocol {
            6 => {
                // Often one of a few sequence numbers, so that segments follow a SYN, or one comes again.
                let sequence = match self.random.below(8) {
                    n @ 0..=4 => n as u32,
                    5 => u32::MAX,
                    _ => self.random.word() as u32,
                };
                let opened = self.opened.filter(|&(of, at, _)| (of, at) == (from, to));
                let (sequence, follows) = match opened {
                    Some((_, _, next)) => (next, true),
                    None => (sequence, false),
                };
                if follows {
                    self.opened = None;
                }
                bytes.extend(sequence.to_be_bytes());
                bytes.extend((0..4).map(|_| self.random.byte()));
                let flags = self
                    .random
                    .pick(&[0x02, 0x10, 0x12, 0x18, 0x04, 0x11, 0x42, 0x02, 0x14]);
                if flags & 0x12 == 0x02 && !follows {
                    self.opened = Some((from, to, sequence.wrapping_add(1)));
                }
                let options = self.options();
                bytes.extend([0x50 + 4 * options.len() as u8, flags]);
                bytes.extend((0..6).map(|_| self.random.byte()));
                bytes.extend(options);
            }
            // The tag, the checksum and the header of a chunk.
            132 => {
                bytes.extend((0..8).map(|_| self.random.byte()));
                let kind = self.random.pick(&[1, 1, 0, 10, 3, 6, 7, 8, 14]);
                bytes.extend([kind, 0, 0, 4]);
            }
            _ => {
                let check = self.random.pick(&[0, 0xffff, 0x1234, 0xfffe]);
                bytes.extend(8u16.to_be_bytes());
                bytes.extend(u16::to_be_bytes(check));
                if self.random.once_in(2) {
                    bytes.extend(self.quic());
                }
            }
        }
        // Some are longer than ways are wide, a few longer than a page, and so in several buffers.
        let payload = match self.random.below(128) {
            0..4 => 1_200 + self.random.below(400),
            4 => 4_100 + self.random.below(4_700),
            _ => self.random.below(48),
        };
        bytes.extend((0..payload).map(|_| self.random.byte()));
        bytes
    }

    /// TCP options, of whole words: mostly none, else often with an MSS somewhere.
    fn options(&mut self) -> Vec<u8> {
        let mut options = Vec::new();
        if self.random.once_in(2) {
            return options;
        }
        for _ in 0..=self.random.below(5) {
            match self.random.below(8) {
                0..=2 => options.extend([2, 4, self.random.pick(&[0, 1, 5, 5, 35]), 180]),
                3 | 4 => options.push(1),
                5 => options.extend([3, 3, 7]),
                6 => options.extend([8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
                _ => options.push(self.random.byte()),
            }
        }
        options.resize(options.len().next_multiple_of(4).min(40), 0);
        options
    }

    /// An ICMP message, about a packet that went the other way where it is an error.
    fn message(&mut self, v4: bool, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let kind = if v4 {
            self.random.pick(&[3, 3, 3, 11, 12, 8, 0, 5])
        } else {
            self.random.pick(&[1, 2, 2, 3, 4, 128, 129, 135])
        };
        let code = match self.random.below(8) {
            n @ 0..=4 => n as u8,
            _ => self.random.byte(),
        };
        let mut bytes = vec![kind, code, self.random.byte(), self.random.byte()];
        bytes.extend([0, 0, 5, 0xdc]);
        let protocol = self.random.pick(&[6, 6, 17, 17, 132]);
        let flags = self.random.pick(&[0x4000, 0, 0x2000, 0x0007]);
        let first = self.random.pick(&[0x45, 0x45, 0x45, 0x46, 0x44]);
        match (to.ip(), from.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([first, 0, 5, 0xdc, 0, 0]);
                bytes.extend(u16::to_be_bytes(flags));
                bytes.extend([60, protocol, self.random.byte(), self.random.byte()]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([first + 0x1b, 0, 0, 0, 5, 0xb4, protocol, 60]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => {}
        }
        bytes.extend(to.port().to_be_bytes());
        bytes.extend(from.port().to_be_bytes());
        let check = self.random.pick(&[0, 0x1234]);
        bytes.extend([0, 40]);
        bytes.extend(u16::to_be_bytes(check));
        let more = self.random.below(24);
        bytes.extend((0..more).map(|_| self.random.byte()));
        if self.random.once_in(8) {
            bytes.truncate(self.random.below(bytes.len() as u64));
        }
        bytes
    }

    /// The beginning of a QUIC packet: of either header, of versions known and unknown, with an id that
    /// may name a server.
    fn quic(&mut self) -> Vec<u8> {
        let mut id = self.connection_id();
        let mut bytes = Vec::new();
        if self.random.once_in(2) {
            bytes.push(0x7f & self.random.byte());
        } else {
            bytes.push(0x80 | self.random.byte());
            let version = self
                .random
                .pick(&[1, 1, 0x6b33_43cf, 0x6b33_43cf, 0, 0x1a2a_3a4a]);
            bytes.extend(u32::to_be_bytes(version));
            let length = id.len();
            id.resize(self.random.pick(&[length, length, length, 0, 4, 20]), 0);
            bytes.push(id.len() as u8);
        }
        bytes.extend(id);
        bytes
    }

    fn connection_id(&mut self) -> Vec<u8> {
        let config = self.random.pick(&[CONFIG_ID, CONFIG_ID, CONFIG_ID, 0, 7]);
        let [first, _] = server_id(0);
        let mut id = vec![config << 5 | self.random.byte() & 0x1f, first];
        id.push(self.random.below(8) as u8);
        id.extend((0..NONCE).map(|_| self.random.byte()));
        id
    }

    /// A packet of either family.
    pub(super) fn plain(&mut self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        if from.is_ipv4() {
            self.v4(from, to)
        } else {
            self.v6(from, to)
        }
    }

    fn v4(&mut self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let protocol = self.protocol();
        let transport = self.transport(protocol, from, to);
        let options = if self.random.once_in(4) {
            self.random.below(11) * 4
        } else {
            0
        };
        let length = (20 + options + transport.len()) as u16;
        let fragment = match self.random.below(10) {
            0 => self.random.word() as u16,
            1 => 0x2000,
            _ => 0x4000,
        };
        let mut frame = ethernet(0x0800);
        frame.extend([0x45 + (options / 4) as u8, self.random.byte()]);
        frame.extend(length.to_be_bytes());
        frame.extend([self.random.byte(), self.random.byte()]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([self.random.pick(&[64, 64, 64, 255, 2, 1, 0]), protocol]);
        frame.extend([self.random.byte(), self.random.byte()]);
        for address in [from, to] {
            if let IpAddr::V4(v4) = address.ip() {
                frame.extend(v4.octets());
            }
        }
        frame.extend((0..options).map(|_| self.random.byte()));
        frame.extend(transport);
        frame
    }

    fn v6(&mut self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let protocol = self.protocol();
        let (first, mut payload) = self.extensions(protocol);
        payload.extend(self.transport(protocol, from, to));
        let mut frame = ethernet(0x86dd);
        frame.extend([0x60 | (self.random.byte() & 0xf), self.random.byte()]);
        frame.extend([self.random.byte(), self.random.byte()]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([first, self.random.pick(&[64, 64, 64, 255, 2, 1, 0])]);
        for address in [from, to] {
            if let IpAddr::V6(v6) = address.ip() {
                frame.extend(v6.octets());
            }
        }
        frame.extend(payload);
        frame
    }

    /// A chain of extension headers that ends at `protocol`; often an empty one.
    fn extensions(&mut self, protocol: u8) -> (u8, Vec<u8>) {
        let count = if self.random.once_in(2) {
            0
        } else {
            self.random.below(9)
        };
        let kinds: Vec<u8> = (0..count)
            .map(|_| self.random.pick(&[0, 43, 44, 51, 60, 60]))
            .collect();
        let mut bytes = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let next = kinds.get(index + 1).copied().unwrap_or(protocol);
            let (length, size) = match kind {
                44 => (self.random.byte(), 8),
                51 => (1, 12),
                _ => (1, 16),
            };
            let data = self
                .random
                .pick(&[[0, 0], [0, 0], [0, 0], [0, 1], [0, 6], [4, 0], [0, 8]]);
            bytes.extend([next, length]);
            bytes.extend(data);
            bytes.extend((4..size).map(|_| self.random.byte()));
        }
        (kinds.first().copied().unwrap_or(protocol), bytes)
    }

    /// Leaves most frames alone.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        match self.random.below(12) {
            0 => frame.truncate(14 + self.random.below(80)),
            1 => {
                for _ in 0..=self.random.below(4) {
                    let at = self.random.below(frame.len() as u64);
                    frame[at] ^= 1 << self.random.below(8);
                }
            }
            2 => frame.extend((0..self.random.below(40)).map(|n| n as u8)),
            3 => {
                let at = self.random.below(frame.len() as u64);
                frame[at] = self.random.byte();
            }
            _ => {}
        }
    }
}

pub(super) fn ethernet(ether_type: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ether_type.to_be_bytes());
    frame
}
