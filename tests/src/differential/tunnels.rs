//! Packets in tunnels to backends, as a balancer sends them and not quite. Makes frames alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};

use super::frames::{Generator, ethernet};
use super::setting::GUE_PORT;

/// Bytes before what a frame of Ethernet carries.
const ETHERNET: usize = 14;
/// What the header that names another backend begins its private data with (docs/second-hop.md).
const MARK: [u8; 3] = *b"LB\x01";

impl Generator {
    /// A packet in a tunnel: bare, or in GUE with or without a header that tells of another backend.
    pub fn tunnelled(&mut self) -> Vec<u8> {
        let interesting = self.random.pick(&self.endpoints.clone());
        let stranger = self.stranger(interesting);
        let frame = self.plain(stranger, interesting);
        let inner = frame.get(ETHERNET..).unwrap_or_default();
        let v4 = self.random.once_in(2);
        let number = if interesting.is_ipv4() {
            IpNumber::IPV4
        } else {
            IpNumber::IPV6
        };
        let (from, to) = (self.backend(v4), self.backend(v4));
        // The versions of IP tell by themselves that there is no header of GUE (variant 1).
        let mut tunnel = if self.random.once_in(4) {
            Vec::new()
        } else {
            self.told(number, v4)
        };
        tunnel.extend_from_slice(inner);
        let in_udp = self.random.pick(&[true, true, false]);
        let number = if in_udp { IpNumber::UDP } else { number };
        let payload = if in_udp { &tunnel } else { inner };
        self.around(from, to, number, payload)
    }

    fn backend(&mut self, v4: bool) -> IpAddr {
        let last = 11 + self.random.below(4) as u8;
        if v4 {
            Ipv4Addr::new(10, 2, 0, last).into()
        } else {
            Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, last.into()).into()
        }
    }

    /// A header of GUE, mostly of the length and family that belong there.
    fn told(&mut self, number: IpNumber, v4: bool) -> Vec<u8> {
        let other = self.random.once_in(8) ^ v4;
        let words = if other { 2 } else { 5 };
        let words = self.random.pick(&[words, words, words, words, 0, 3]);
        let flags = self.random.pick(&[0, 0, 0, 0, 0, 0, 0, 1]);
        let mut header = vec![words, number.0, flags, 0];
        let [l, b, version] = MARK;
        let count = self.random.pick(&[1, 1, 1, 0]);
        let version = self.random.pick(&[version, version, version, 2]);
        header.extend([l, b, version, count]);
        match self.backend(other) {
            IpAddr::V4(v4) => header.extend(v4.octets()),
            IpAddr::V6(v6) => header.extend(v6.octets()),
        }
        header.truncate(4 + 4 * usize::from(words));
        header
    }

    fn around(&mut self, from: IpAddr, to: IpAddr, number: IpNumber, payload: &[u8]) -> Vec<u8> {
        let hops = self.random.pick(&[64, 64, 64, 2, 1, 0]);
        let mut bytes = Vec::new();
        let builder = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), hops)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), hops)
            }
            mixed => unreachable!("both are backends of one family: {mixed:?}"),
        };
        let port = self.random.pick(&[GUE_PORT, GUE_PORT, GUE_PORT, 80]);
        let written = if number == IpNumber::UDP {
            builder.udp(50_000, port).write(&mut bytes, payload)
        } else {
            builder.write(&mut bytes, number, payload)
        };
        if written.is_err() {
            bytes.clear();
        }
        // Congestion, marked on the way.
        if let Some(traffic_class) = bytes.get_mut(1) {
            *traffic_class |= self.random.pick(&[0, 0, 3, 0x30, 1, 0x10]);
        }
        if self.random.once_in(2)
            && let Ok((mut ip, rest)) = Ipv4Header::from_slice(&bytes)
        {
            ip.header_checksum = ip.calc_header_checksum();
            bytes = [&ip.to_bytes()[..], rest].concat();
        }
        let ether_type = if from.is_ipv4() { 0x0800 } else { 0x86dd };
        [ethernet(ether_type), bytes].concat()
    }
}
