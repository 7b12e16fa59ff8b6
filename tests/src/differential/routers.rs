//! What routers on the way to backends say of packets in tunnels that were sent there. Frames alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use super::frames::ethernet;

const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);
/// Of an IP header, which protocols are what a tunnel may be: IPv4, IPv6, UDP.
const TUNNELS: [u8; 3] = [4, 41, 17];

/// The error about a frame that left, if it might be a tunnel's: that its packet is too long, by a byte or by half, or that nobody is
/// there, and of the packet as much as such errors quote, or less; which of all by this number.
pub fn error(sent: &[u8], number: u64) -> Option<Vec<u8>> {
    let quoted = sent.get(14..)?;
    let (source, protocol, v4) = match (sent.get(12..14)?, quoted.first()?) {
        ([8, 0], 0x45) => {
            let source: [u8; 4] = quoted.get(12..16)?.try_into().ok()?;
            (IpAddr::from(source), *quoted.get(9)?, true)
        }
        ([0x86, 0xdd], _) => {
            let source: [u8; 16] = quoted.get(8..24)?.try_into().ok()?;
            (IpAddr::from(source), *quoted.get(6)?, false)
        }
        _ => return None,
    };
    if !TUNNELS.contains(&protocol) {
        return None;
    }
    let way = quoted.len()
        - if number.is_multiple_of(2) {
            1
        } else {
            quoted.len() / 2
        };
    let is_too_long = !number.is_multiple_of(5);
    let (kind, code) = match (v4, is_too_long) {
        (true, true) => (3, 4),
        (true, false) => (3, 2),
        (false, true) => (2, 0),
        (false, false) => (1, 4),
    };
    let rest = (way as u32).to_be_bytes();
    let most = match number % 7 {
        0 => 28 + number as usize % 64,
        1..=3 => 548,
        _ => 1_232,
    };
    let quoted = &quoted[..quoted.len().min(most)];
    let mut packet = Vec::new();
    match source {
        IpAddr::V4(to) => PacketBuilder::ipv4(ROUTER_V4.octets(), to.octets(), 60)
            .icmpv4_raw(kind, code, rest)
            .write(&mut packet, quoted)
            .ok()?,
        IpAddr::V6(to) => PacketBuilder::ipv6(ROUTER_V6.octets(), to.octets(), 60)
            .icmpv6_raw(kind, code, rest)
            .write(&mut packet, quoted)
            .ok()?,
    }
    Some([ethernet(if v4 { 0x0800 } else { 0x86dd }), packet].concat())
}
