//! IP packets with their headers as given. Owns the socket; what is in them is others'.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::netns::Namespace;

/// Sends IP packets as they are, of raw(7), to one destination.
#[derive(Debug)]
pub struct Raw {
    socket: OwnedFd,
    to: SocketAddr,
}

impl Raw {
    /// From `namespace` to the address of `to`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let raw = || {
            socket(
                family,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Raw,
            )
        };
        let socket = namespace.run(raw).context("a raw socket")?;
        Ok(Self { socket, to })
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let fd = self.socket.as_raw_fd();
        let none = MsgFlags::empty();
        let sent = match self.to {
            // The port of a raw socket's destination is its protocol's number, or zero.
            SocketAddr::V4(mut to) => {
                to.set_port(0);
                sendto(fd, packet, &SockaddrIn::from(to), none)
            }
            SocketAddr::V6(mut to) => {
                to.set_port(0);
                sendto(fd, packet, &SockaddrIn6::from(to), none)
            }
        };
        sent.map(drop).context("sending a packet")
    }
}
