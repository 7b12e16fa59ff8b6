//! Sends packets to a hardware address, which no address type of the standard library or of socket2 can name.

use std::io;

use socket2::{SockAddr, SockAddrStorage, Socket};

use crate::health::Hop;

/// Sends an IP packet by a packet socket, whose Ethernet header the kernel writes; how many bytes went.
pub(super) fn send(socket: &Socket, hop: Hop, v6: bool, packet: &[u8]) -> io::Result<usize> {
    let ethertype = if v6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
    socket.send_to(packet, &address(hop, ethertype as u16)?)
}

/// See `packet(7)`.
fn address(hop: Hop, ethertype: u16) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_ll` is numbers alone, for which zeroes will do, and the storage has room for any address
    // of the kernel's.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = ethertype.to_be();
    link.sll_ifindex = i32::try_from(hop.interface).map_err(io::Error::other)?;
    link.sll_halen = hop.mac.len() as u8;
    link.sll_addr[..hop.mac.len()].copy_from_slice(&hop.mac);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage has just become an address of the family that it says, of this length.
    Ok(unsafe { SockAddr::new(storage, length) })
}
