//! Packet sockets: sending announcements, and hearing claims. What a frame says is [`lb_common::neighbour`]'s.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use lb_common::{
    neighbour::{self, Claim},
    packet::SlicePacket,
    tables::Address,
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, recvfrom, send as send_frame,
        socket,
    },
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::schedule::Announcement;

/// Longer than all that is read of a frame.
const LONGEST: usize = 128;

/// Sends announcements; those that could not be sent.
pub fn send(announcements: &[Announcement]) -> Vec<(Announcement, io::Error)> {
    let mut sockets = BTreeMap::new();
    let mut failed = Vec::new();
    for announcement in announcements {
        let index = announcement.interface;
        let socket = sockets.entry(index).or_insert_with(|| sender(index));
        let sent = match socket {
            Ok(socket) => frame(announcement).and_then(|frame| {
                let sent = send_frame(socket.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT);
                sent.map(drop).map_err(io::Error::from)
            }),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        failed.extend(sent.err().map(|error| (*announcement, error)));
    }
    failed
}

fn frame(announcement: &Announcement) -> io::Result<Vec<u8>> {
    let vip = Address::from(announcement.vip);
    let mut frame = vec![0; neighbour::announcement_length(vip)];
    let mut packet = SlicePacket::new(&mut frame, 0, announcement.interface);
    neighbour::announce(&mut packet, announcement.mac, vip)
        .map_err(|reason| io::Error::other(reason.name()))?;
    Ok(frame)
}

/// A socket that sends frames out of an interface, and receives none.
fn sender(interface: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let sender = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    bind(sender.as_raw_fd(), &address(interface)?)?;
    Ok(sender)
}

/// The address that packet sockets have an interface by.
fn address(interface: u32) -> io::Result<LinkAddr> {
    let mut found = getifaddrs()?.filter_map(|found| found.address?.as_link_addr().copied());
    let found = found.find(|address| address.ifindex() == interface as usize);
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the interface is gone"))
}

/// A claim, and where it was heard.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// Index of the interface.
    pub interface: u32,
    /// The claim.
    pub claim: Claim,
}

/// Hears claims on all interfaces of the namespace.
#[derive(Debug)]
pub struct Listener {
    // To the runtime, what gives datagrams is one of UDP's.
    arp: UdpSocket,
    advertisements: UdpSocket,
}

impl Listener {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel gives no packet sockets.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            arp: receiver(libc::ETH_P_ARP, &[])?,
            advertisements: receiver(libc::ETH_P_IPV6, &FILTER)?,
        })
    }

    /// The next claim. Safe to cancel.
    ///
    /// # Errors
    /// A socket failed.
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            let heard = tokio::select! {
                heard = self.arp.async_io(Interest::READABLE, || receive(&self.arp)) => heard,
                heard = self.advertisements.async_io(Interest::READABLE, || receive(&self.advertisements)) => heard,
            };
            if let Some(heard) = heard? {
                return Ok(heard);
            }
        }
    }
}

/// Lets only neighbour advertisements through: an accumulator machine's program, by the numbers of `linux/bpf_common.h`.
const FILTER: [(u16, u8, u8, u32); 6] = [
    // The protocol after the IPv6 header, then the type of the message.
    (0x30, 0, 0, 20),
    (0x15, 0, 3, 58),
    (0x30, 0, 0, 54),
    (0x15, 0, 1, neighbour::ADVERTISEMENT as u32),
    (0x06, 0, 0, u32::MAX),
    (0x06, 0, 0, 0),
];

fn receiver(ether_type: i32, filter: &[(u16, u8, u8, u32)]) -> io::Result<UdpSocket> {
    let protocol = Protocol::from(i32::from((ether_type as u16).to_be()));
    let receiver = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    receiver.set_nonblocking(true)?;
    if !filter.is_empty() {
        let filter: Vec<_> = filter
            .iter()
            .map(|&(code, jt, jf, k)| SockFilter::new(code, jt, jf, k))
            .collect();
        receiver.attach_filter(&filter)?;
    }
    UdpSocket::from_std(receiver.into())
}

/// A frame's claim, if it makes one.
fn receive(socket: &UdpSocket) -> io::Result<Option<Heard>> {
    let mut frame = vec![0; LONGEST];
    let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame)?;
    let Some(from) = from else {
        return Ok(None);
    };
    frame.truncate(length);
    let interface = from.ifindex() as u32;
    let claim = neighbour::claim(&SlicePacket::new(&mut frame, 0, interface));
    Ok(claim.map(|claim| Heard { interface, claim }))
}
