//! Owns ICMP echo probes (RFC 792, RFC 4443): a socket for each, bound to its backend, so that the kernel
//! delivers what comes from there alone.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    Ipv4HeaderSlice,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::ProbeError;

/// Bytes by which an answer is known to be ours; a ping socket's identifier is the kernel's.
type Token = [u8; 16];

/// Sends an echo request to `ip` and waits for its answer.
pub(super) async fn ask(ip: IpAddr) -> Result<(), ProbeError> {
    let failed = |error: io::Error| ProbeError::from_connect(&error);
    let socket = open(ip).map_err(failed)?;
    let token: Token = fastrand::u128(..).to_ne_bytes();
    socket.send(&request(ip, token)).await.map_err(failed)?;
    let mut buffer = [0; 256];
    loop {
        let read = socket.recv(&mut buffer).await.map_err(failed)?;
        if is_answer(ip, &buffer[..read], token) {
            return Ok(());
        }
    }
}

/// A ping socket where the kernel allows it (`net.ipv4.ping_group_range`), else a raw one. To the
/// runtime it is what takes and gives datagrams, for which it knows UDP's type alone.
fn open(ip: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(ip, 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// An echo request without the IP header. The kernel completes the checksum of ICMPv6, which covers that.
fn request(ip: IpAddr, token: Token) -> Vec<u8> {
    let echo = IcmpEchoHeader {
        id: u16::from_ne_bytes([token[0], token[1]]),
        seq: 1,
    };
    let head = match ip {
        IpAddr::V4(_) => {
            let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &token);
            header.to_bytes().to_vec()
        }
        IpAddr::V6(_) => {
            let header = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo));
            header.to_bytes().to_vec()
        }
    };
    [&head, &token[..]].concat()
}

/// Whether `packet` answers the request with `token`. A raw IPv4 socket delivers the IP header too.
fn is_answer(ip: IpAddr, packet: &[u8], token: Token) -> bool {
    match ip {
        IpAddr::V4(_) => {
            let header = Ipv4HeaderSlice::from_slice(packet).ok();
            let icmp = header.map_or(packet, |header| &packet[header.slice().len()..]);
            Icmpv4Slice::from_slice(icmp).is_ok_and(|icmp| {
                matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(_)) && icmp.payload() == token
            })
        }
        IpAddr::V6(_) => Icmpv6Slice::from_slice(packet).is_ok_and(|icmp| {
            matches!(icmp.icmp_type(), Icmpv6Type::EchoReply(_)) && icmp.payload() == token
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::probe::testing::ask as ask_at,
        model::{Check, Probe},
        skip::skip,
    };

    /// Neither root nor in the group that may ping.
    fn may_not(test: &str) -> bool {
        let refused = open(IpAddr::from([127, 0, 0, 1])).is_err();
        if refused {
            skip(test, "no socket for ICMP without CAP_NET_RAW");
        }
        refused
    }

    #[tokio::test]
    async fn the_loopback_answers_in_both_families() {
        if may_not("icmp::the_loopback_answers_in_both_families") {
            return;
        }
        let check = Check::new(Probe::Icmp {});
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let outcome = ask_at(address.parse().unwrap(), &check).await;
            assert_eq!(outcome.map(drop), Ok(()), "{address}");
        }
    }

    #[tokio::test]
    async fn address_without_a_way_is_unreachable() {
        if may_not("icmp::address_without_a_way_is_unreachable") {
            return;
        }
        let check = Check::new(Probe::Icmp {});
        let address = "240.0.0.1:0".parse().unwrap();
        let error = ask_at(address, &check).await.unwrap_err();
        assert!(error.blames_backend(), "{error:?}");
    }

    #[test]
    fn only_an_echo_reply_with_the_token_is_an_answer() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let token = [7; 16];
        let asked = request(ip, token);
        assert!(
            !is_answer(ip, &asked, token),
            "a request, seen on the loopback"
        );
        let mut answer = asked;
        answer[0] = 0;
        assert!(is_answer(ip, &answer, token));
        assert!(!is_answer(ip, &answer, [8; 16]));
        assert!(!is_answer(ip, &answer[..4], token));
        let ip_header = etherparse::Ipv4Header::new(
            24,
            64,
            etherparse::IpNumber::ICMP,
            [127, 0, 0, 1],
            [127, 0, 0, 1],
        );
        let header = ip_header.unwrap().to_bytes();
        let framed = [&header, &answer[..]].concat();
        assert!(is_answer(ip, &framed, token));
    }
}
