//! What interfaces do with frames before a program sees them and after, as the kernel tells over generic netlink: whether a NIC
//! strips VLAN tags (`Documentation/networking/ethtool-netlink.rst`), and what drivers have of XDP
//! (`Documentation/netlink/specs/netdev.yaml`). Changes nothing of it.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// The family that tells which number others have, and what it is asked (`linux/genetlink.h`).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `linux/ethtool_netlink.h`.
const ETHTOOL: &str = "ethtool";
const GET_FEATURES: u8 = 11;
const FEATURES_HEADER: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const DEVICE_NAME: u16 = 2;
/// What strips tags of 802.1Q is called among features.
const STRIPS: &str = "rx-vlan-hw-parse";
/// `linux/netdev.h`.
const NETDEV: &str = "netdev";
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_XDP: u16 = 3;
const XDP_BASIC: u64 = 1;
const XDP_TRANSMIT: u64 = 4;
/// Of netlink (`linux/netlink.h`).
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;
const TYPE: u16 = 0x3fff;

/// Whether tags of what comes in by an interface are taken off by the NIC.
///
/// # Errors
/// The kernel does not tell.
pub fn strips_tags(interface: &str) -> io::Result<bool> {
    let (socket, family) = open(ETHTOOL)?;
    let device = attribute(DEVICE_NAME, &named(interface));
    let header = attribute(FEATURES_HEADER | NESTED, &device);
    let answer = ask(&socket, family, GET_FEATURES, &header)?;
    let active = find(&answer, FEATURES_ACTIVE).ok_or(ErrorKind::InvalidData)?;
    Ok(lists(active, STRIPS))
}

/// What a driver has of XDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xdp {
    /// It runs programs itself.
    pub native: bool,
    /// It sends frames that a program elsewhere redirects to it (`ndo_xdp_xmit`). Where it does not, they are lost, and the program
    /// is not told.
    pub transmits: bool,
}

/// The way to ask what drivers have of XDP, in the network namespace of the thread that opened it.
pub struct Drivers {
    socket: Socket,
    family: u16,
}

impl Drivers {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel does not tell; those before 6.3 do not.
    pub fn open() -> io::Result<Self> {
        let (socket, family) = open(NETDEV)?;
        Ok(Self { socket, family })
    }

    /// What each interface's driver has, by the interface's index.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn ask(&self) -> io::Result<BTreeMap<u32, Xdp>> {
        let request = request(self.family, REQUEST | DUMP, GET_DEVICE, &[]);
        self.socket.send(&request, 0)?;
        let mut drivers = BTreeMap::new();
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            if take(&answer, &mut drivers)? {
                return Ok(drivers);
            }
        }
    }
}

/// Takes what a part of the answer says of interfaces; whether it is the last.
fn take(mut part: &[u8], drivers: &mut BTreeMap<u32, Xdp>) -> io::Result<bool> {
    while let Some(length) = part.first_chunk().copied().map(u32::from_ne_bytes) {
        let length = length as usize;
        let message = part.get(..length).ok_or(ErrorKind::InvalidData)?;
        let kind = message.get(4..6).and_then(|kind| kind.first_chunk());
        if kind.copied().map(u16::from_ne_bytes) == Some(DONE) {
            return Ok(true);
        }
        drivers.extend(driver(answered(message)?));
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// An interface's index and what its driver has.
fn driver(attributes: &[u8]) -> Option<(u32, Xdp)> {
    let index = find(attributes, DEVICE_INDEX)?.first_chunk().copied()?;
    let has = find(attributes, DEVICE_XDP)?.first_chunk().copied()?;
    let has = u64::from_ne_bytes(has);
    let xdp = Xdp {
        native: has & XDP_BASIC != 0,
        transmits: has & XDP_TRANSMIT != 0,
    };
    Some((u32::from_ne_bytes(index), xdp))
}

/// A way to ask a family, and its number.
fn open(name: &str) -> io::Result<(Socket, u16)> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let name = attribute(FAMILY_NAME, &named(name));
    let answer = ask(&socket, CONTROL, GET_FAMILY, &name)?;
    let family = find(&answer, FAMILY_ID).and_then(|id| id.first_chunk().copied());
    Ok((
        socket,
        u16::from_ne_bytes(family.ok_or(ErrorKind::InvalidData)?),
    ))
}

/// Asks a family, and reads the attributes of its answer.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(&request(family, REQUEST, command, attributes), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    answered(&answer).map(<[u8]>::to_vec)
}

fn request(family: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (MESSAGE_HEADER + GENERIC_HEADER + attributes.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

/// The attributes of an answer.
fn answered(message: &[u8]) -> io::Result<&[u8]> {
    let kind = message
        .get(4..6)
        .and_then(|kind| kind.first_chunk().copied());
    let (header, body) = message
        .split_at_checked(MESSAGE_HEADER)
        .ok_or(ErrorKind::InvalidData)?;
    if kind.map(u16::from_ne_bytes) == Some(ERROR) {
        let code = body.first_chunk().copied().ok_or(ErrorKind::InvalidData)?;
        return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(code)));
    }
    let length = header.first_chunk().copied().map(u32::from_ne_bytes);
    let end = length.map_or(0, |length| (length as usize).min(message.len()));
    let attributes = message.get(MESSAGE_HEADER + GENERIC_HEADER..end);
    attributes.ok_or_else(|| ErrorKind::InvalidData.into())
}

/// A name as netlink has it, its zero included.
fn named(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & TYPE == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Whether a set of bits, of which those are listed by name that it has, has this one.
fn lists(set: &[u8], bit: &str) -> bool {
    let name = named(bit);
    set.windows(name.len()).any(|at| at == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bits: &[&str]) -> Vec<u8> {
        let bits = bits.iter().flat_map(|bit| {
            let name = attribute(2, &named(bit));
            attribute(
                1 | NESTED,
                &[attribute(1, &7u32.to_ne_bytes()), name].concat(),
            )
        });
        let bits: Vec<u8> = bits.collect();
        [attribute(1, &[]), attribute(3 | NESTED, &bits)].concat()
    }

    #[test]
    fn the_active_features_alone_say_whether_tags_are_stripped() {
        let (with, without) = (
            set(&["rx-gro", STRIPS]),
            set(&["rx-vlan-filter", "rx-vlan-hw-parse2"]),
        );
        for (active, stripped) in [(&with, true), (&without, false)] {
            let attributes = [
                attribute(FEATURES_HEADER | NESTED, &attribute(1, &3u32.to_ne_bytes())),
                attribute(2 | NESTED, &with),
                attribute(FEATURES_ACTIVE | NESTED, active),
            ];
            let answer = request(30, REQUEST, 12, &attributes.concat());
            let read = answered(&answer).unwrap();
            assert_eq!(
                lists(find(read, FEATURES_ACTIVE).unwrap(), STRIPS),
                stripped
            );
        }
    }

    #[test]
    fn a_refusal_is_the_kernels_error_and_half_an_answer_none() {
        let mut refusal = request(ERROR, REQUEST, 0, &[]);
        refusal.splice(MESSAGE_HEADER.., (-19i32).to_ne_bytes());
        assert_eq!(answered(&refusal).unwrap_err().raw_os_error(), Some(19));
        for length in 0..MESSAGE_HEADER {
            assert!(answered(&refusal[..length]).is_err());
        }
        let whole = attribute(FEATURES_ACTIVE, b"abc");
        for length in 0..7 {
            assert_eq!(find(&whole[..length], FEATURES_ACTIVE), None);
        }
    }

    #[test]
    fn what_drivers_have_of_xdp_is_read_from_all_parts_of_the_answer() {
        let about = |index: u32, has: u64| {
            let attributes = [
                attribute(DEVICE_INDEX, &index.to_ne_bytes()),
                attribute(DEVICE_XDP, &has.to_ne_bytes()),
            ];
            request(30, 0, GET_DEVICE, &attributes.concat())
        };
        let done = request(DONE, 0, 0, &[]);
        let mut drivers = BTreeMap::new();
        assert!(!take(&[about(1, 0), about(7, 0x7f)].concat(), &mut drivers).unwrap());
        assert!(take(&[about(9, 1), done].concat(), &mut drivers).unwrap());
        let has = |native, transmits| Xdp { native, transmits };
        assert_eq!(
            drivers,
            [
                (1, has(false, false)),
                (7, has(true, true)),
                (9, has(true, false))
            ]
            .into()
        );
        let half = &about(3, 1)[..20];
        assert!(take(half, &mut drivers).is_err());
    }

    #[test]
    fn the_kernel_tells_that_the_loopback_has_nothing_of_xdp() {
        let drivers = match Drivers::open() {
            Ok(drivers) => drivers.ask().expect("what drivers have"),
            Err(error) if error.raw_os_error() == Some(2) => return,
            Err(error) => panic!("{error}"),
        };
        let none = Xdp {
            native: false,
            transmits: false,
        };
        assert_eq!(drivers.get(&1), Some(&none), "{drivers:?}");
    }

    #[test]
    fn the_kernel_tells_of_an_interface_that_there_is_and_of_no_other() {
        assert!(!strips_tags("lo").expect("the loopback"));
        assert!(strips_tags("no-such-nic").is_err());
    }
}
