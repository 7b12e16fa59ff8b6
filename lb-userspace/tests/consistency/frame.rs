//! The frames that clients send, and where a steered one goes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::{packet::SlicePacket, pipeline, tables::Tables, verdict::Verdict};
use lb_userspace::model::{Protocol, ServiceId};

use crate::scenario;

/// What XDP leaves in front of a frame.
const HEADROOM: usize = 64;
const ETHERNET: usize = 14;
/// The interface that clients' frames come in by.
pub const INGRESS: u32 = 1;

/// TCP's control bits (RFC 9293 §3.1).
pub mod control {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The first packet of a connection: a SYN, an Initial, or any datagram.
    Opening,
    /// A segment with these control bits; to a service that is not of TCP, a datagram.
    Segment(u8),
    /// A QUIC packet whose connection id names the server at an address.
    Named(IpAddr),
}

/// Sends a packet from `client` through `tables`: the backend's address where it goes on, or the
/// verdict.
pub fn send<T: Tables>(
    tables: &T,
    client: SocketAddr,
    service: ServiceId,
    sent: Sent,
) -> Result<IpAddr, Verdict> {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let to = scenario::destination(client, &service);
    let transport = transport([client.port(), to.port()], service.protocol, sent);
    match (client.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + transport.len()) as u16;
            buffer.extend([0x08, 0x00, 0x45, 0]);
            buffer.extend(length.to_be_bytes());
            buffer.extend([0, 0, 0x40, 0, 64, service.protocol.number(), 0, 0]);
            buffer.extend(from.octets());
            buffer.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            buffer.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            buffer.extend((transport.len() as u16).to_be_bytes());
            buffer.extend([service.protocol.number(), 64]);
            buffer.extend(from.octets());
            buffer.extend(to.octets());
        }
        mixed => panic!("families differ: {mixed:?}"),
    }
    buffer.extend(transport);
    let mut packet = SlicePacket::new(&mut buffer, HEADROOM, INGRESS);
    match pipeline::process(&mut packet, tables) {
        Verdict::Transmit | Verdict::Redirect(_) => Ok(destination(packet.bytes())),
        verdict => Err(verdict),
    }
}

fn transport(ports: [u16; 2], protocol: Protocol, sent: Sent) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    bytes.extend(ports.into_iter().flat_map(u16::to_be_bytes));
    let bits = match sent {
        Sent::Opening => control::SYN,
        Sent::Segment(bits) => bits,
        Sent::Named(_) => 0,
    };
    match protocol {
        Protocol::Sctp => panic!("no service of a scenario is SCTP's"),
        Protocol::Tcp => bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, bits, 0, 0, 0, 0, 0, 0]),
        // Services that are not QUIC do not look at what follows.
        Protocol::Udp => {
            bytes.extend([0, 48, 0, 0]);
            bytes.extend(quic(sent));
        }
    }
    bytes
}

/// A QUIC packet (RFC 9000 §17): an Initial with an id of the client's own, or a short header.
fn quic(sent: Sent) -> [u8; 40] {
    let mut bytes = [0; 40];
    match sent {
        Sent::Named(server) => {
            let [high, low] = scenario::server_id((server, 0).into());
            bytes[..4].copy_from_slice(&[0x40, scenario::QUIC.config_id << 5, high, low]);
        }
        // Of the configuration that has no servers.
        Sent::Opening => bytes[..7].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8, 0xe0]),
        Sent::Segment(_) => bytes[..2].copy_from_slice(&[0x40, 0xe0]),
    }
    bytes
}

/// Destination of the outermost IP header.
fn destination(frame: &[u8]) -> IpAddr {
    let address = |offset: usize, length: usize| &frame[ETHERNET + offset..][..length];
    if frame[12..ETHERNET] == [0x08, 0x00] {
        let octets: [u8; 4] = address(16, 4).try_into().unwrap();
        IpAddr::from(octets)
    } else {
        let octets: [u8; 16] = address(24, 16).try_into().unwrap();
        IpAddr::from(Ipv6Addr::from(octets))
    }
}
