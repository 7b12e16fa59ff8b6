//! What is on a link, frame by frame, from a packet socket. Owns the socket; what a frame says is
//! [`crate::dissect`]'s.

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
        socket, sockopt,
    },
};

use crate::netns::Namespace;

/// Holds thousands of frames until they are asked for.
const RECEIVE_BUFFER: usize = 64 << 20;
/// More than any frame here has.
const MAX_FRAME: usize = 1 << 14;
/// As `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// Which way frames go, seen from the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Out of it.
    Sent,
    /// Into it; past XDP programs, which run before.
    Received,
}

/// Frames of one interface in one direction, from the start on.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    interface: usize,
    direction: Direction,
}

impl Capture {
    /// Starts on `interface` of `namespace`.
    ///
    /// # Errors
    /// There is no such interface, or the socket cannot be made.
    pub fn start(namespace: &Namespace, interface: &str, direction: Direction) -> Result<Self> {
        let (socket, index) = namespace.run(|| {
            let index = if_nametoindex(interface).with_context(|| interface.to_owned())?;
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let all = SockProtocol::EthAll;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all)
                .context("a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("a large buffer")?;
            anyhow::Ok((socket, index))
        })?;
        Ok(Self {
            socket,
            interface: index as usize,
            direction,
        })
    }

    /// The frames so far that no earlier call returned.
    ///
    /// # Errors
    /// The socket fails.
    pub fn take(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some((interface, direction, frame)) = self.next()? {
            if interface == self.interface && direction == self.direction {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn next(&self) -> Result<Option<(usize, Direction, Vec<u8>)>> {
        let mut frame = vec![0; MAX_FRAME];
        let mut slices = [IoSliceMut::new(&mut frame)];
        let fd = self.socket.as_raw_fd();
        let (length, from) = match recvmsg::<LinkAddr>(fd, &mut slices, None, MsgFlags::empty()) {
            Ok(message) => (message.bytes, message.address),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error).context("reading a frame"),
        };
        let from = from.context("a frame has an interface")?;
        let direction = if from.pkttype() == OUTGOING {
            Direction::Sent
        } else {
            Direction::Received
        };
        frame.truncate(length);
        Ok(Some((from.ifindex(), direction, frame)))
    }
}
