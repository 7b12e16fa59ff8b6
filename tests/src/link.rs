//! Sends frames out of an interface as they are, from a packet socket. Owns the socket; frames are the tests'.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket},
};

use crate::netns::Namespace;

/// An interface to send by.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    mac: [u8; 6],
}

impl Link {
    /// Opens `interface` of `namespace`.
    ///
    /// # Errors
    /// There is no such interface, or the socket cannot be made.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.run(|| {
            let mut found = getifaddrs().context("the interfaces")?.filter_map(|found| {
                let is_it = found.interface_name == interface;
                found.address?.as_link_addr().copied().filter(|_| is_it)
            });
            let address = found.next().with_context(|| interface.to_owned())?;
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
                .context("a packet socket")?;
            bind(socket.as_raw_fd(), &address).context("binding it")?;
            let mac = address.addr().context("a hardware address")?;
            Ok(Self { socket, mac })
        })
    }

    /// Its hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        let sent = sent.context("sending a frame")?;
        ensure!(sent == frame.len(), "{sent} of {} bytes", frame.len());
        Ok(())
    }
}
