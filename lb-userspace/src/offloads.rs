//! Whether a NIC strips VLAN tags off frames before a program sees them, as the kernel tells over generic netlink
//! (`Documentation/networking/ethtool-netlink.rst`). Changes nothing of it.

use std::io::{self, ErrorKind};

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
/// Of netlink (`linux/netlink.h`).
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const NESTED: u16 = 1 << 15;
const TYPE: u16 = 0x3fff;

/// Whether tags of what comes in by an interface are taken off by the NIC.
///
/// # Errors
/// The kernel does not tell.
pub fn strips_tags(interface: &str) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let answer = ask(
        &socket,
        CONTROL,
        GET_FAMILY,
        &attribute(FAMILY_NAME, &named(ETHTOOL)),
    )?;
    let family = find(&answer, FAMILY_ID).and_then(|id| id.first_chunk().copied());
    let family = u16::from_ne_bytes(family.ok_or(ErrorKind::InvalidData)?);
    let device = attribute(DEVICE_NAME, &named(interface));
    let header = attribute(FEATURES_HEADER | NESTED, &device);
    let answer = ask(&socket, family, GET_FEATURES, &header)?;
    let active = find(&answer, FEATURES_ACTIVE).ok_or(ErrorKind::InvalidData)?;
    Ok(lists(active, STRIPS))
}

/// Asks a family, and reads the attributes of its answer.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(&request(family, command, attributes), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    answered(&answer).map(<[u8]>::to_vec)
}

fn request(family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (MESSAGE_HEADER + GENERIC_HEADER + attributes.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
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
            let answer = request(30, 12, &attributes.concat());
            let read = answered(&answer).unwrap();
            assert_eq!(
                lists(find(read, FEATURES_ACTIVE).unwrap(), STRIPS),
                stripped
            );
        }
    }

    #[test]
    fn a_refusal_is_the_kernels_error_and_half_an_answer_none() {
        let mut refusal = request(ERROR, 0, &[]);
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
    fn the_kernel_tells_of_an_interface_that_there_is_and_of_no_other() {
        assert!(!strips_tags("lo").expect("the loopback"));
        assert!(strips_tags("no-such-nic").is_err());
    }
}
