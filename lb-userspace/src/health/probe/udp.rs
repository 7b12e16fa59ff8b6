//! Owns UDP probes: a datagram out, one in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use regex::bytes::Regex;
use tokio::net::UdpSocket;

use super::{MAX_ANSWER, ProbeError, pattern};
use crate::model::Udp;

/// A datagram, and which answer is right.
#[derive(Debug)]
pub struct Question {
    payload: Vec<u8>,
    expect: Option<Regex>,
}

impl Question {
    pub(super) fn new(udp: &Udp) -> Result<Self, ProbeError> {
        Ok(Self {
            payload: udp.bytes().map_err(ProbeError::Unaskable)?,
            expect: udp.expect.as_deref().map(pattern).transpose()?,
        })
    }

    pub(super) async fn ask(&self, address: SocketAddr) -> Result<(), ProbeError> {
        let answer = exchange(address, &self.payload).await?;
        match &self.expect {
            Some(expected) if !expected.is_match(&answer) => Err(ProbeError::Unexpected(format!(
                "the answer of {} bytes does not match /{expected}/",
                answer.len()
            ))),
            _ => Ok(()),
        }
    }
}

/// Sends `payload` and returns the first datagram that comes back from there.
pub(super) async fn exchange(address: SocketAddr, payload: &[u8]) -> Result<Vec<u8>, ProbeError> {
    let io = |error: std::io::Error| ProbeError::from_connect(&error);
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(io)?;
    // Only then does the kernel tell of ICMP errors, and keeps strangers' datagrams away.
    socket.connect(address).await.map_err(io)?;
    socket.send(payload).await.map_err(io)?;
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    socket.recv_buf(&mut answer).await.map_err(io)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::probe::testing::{ask, ask_at},
        model::{Check, Probe},
    };

    fn check(payload: &str, expect: Option<&str>) -> Check {
        Check::new(Probe::Udp(Udp {
            payload: payload.to_owned(),
            expect: expect.map(str::to_owned),
        }))
    }

    /// Answers each datagram with itself, reversed.
    async fn reverser() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2_048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                buffer[..length].reverse();
                let _ = socket.send_to(&buffer[..length], client).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn any_answer_is_right_where_none_is_expected() {
        let server = reverser().await;
        assert!(ask_at(server, &check("ping", None)).await.is_ok());
        assert!(ask_at(server, &check("", None)).await.is_ok());
    }

    #[tokio::test]
    async fn the_answer_must_match_what_is_expected() {
        let server = reverser().await;
        let check_bytes = check("hex:00ff", Some("(?-u)^\\xff\\x00$"));
        let right = ask_at(server, &check_bytes);
        assert!(right.await.is_ok());
        let wrong = ask_at(server, &check("ping", Some("^ping$")))
            .await
            .unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "the answer of 4 bytes does not match /^ping$/"
        );
        assert!(wrong.blames_backend() && !wrong.says_dead(true));
    }

    #[tokio::test]
    async fn a_closed_port_refuses_and_a_silent_server_times_out() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let silent = ask_at(address, &check("ping", None)).await.unwrap_err();
        assert!(matches!(silent, ProbeError::Timeout(_)), "{silent:?}");
        drop(socket);
        let refused = ask(address, &check("ping", None)).await.unwrap_err();
        assert_eq!(refused, ProbeError::Refused);
    }

    #[tokio::test]
    async fn asks_over_ipv6() {
        let socket = UdpSocket::bind("[::1]:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut buffer = [0; 64];
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..length], client).await.unwrap();
        });
        assert!(ask(address, &check("ping", Some("^ping$"))).await.is_ok());
        server.await.unwrap();
    }
}
