//! VLAN tags (IEEE 802.1Q), one or two: taken off a frame before anything else looks at it, and put back, or others in their
//! place, as the last thing. Beside that, devices that nothing can be sent by, since they stand over others: VLAN devices and
//! bonds. Decides nothing of what is in a frame.
//!
//! An answer, and a packet that leaves where it came in by, keep their tags as they came, priority included. A packet that the route
//! sends by another device gets that one's, or none. The kernel gets frames as they came.

use crate::{
    forward,
    packet::Packet,
    tables::{
        Backend, Handover, LOWERS, NoRoute, Tables, Tag, Tagged, UPPER, Upper, VlanKey, feature,
    },
    verdict::{DropReason, Verdict},
    wire::{self, Byte, Check, EthernetAddresses, Ipv6Address, Ports, Word, protocol},
};

/// Where the first tag begins in a frame, in bytes: where the type is of one that has none.
const FIRST: usize = wire::ETHERNET - size_of::<Check>();
const TAG: usize = size_of::<Tag>();

/// What [`Handover::limit`] says of a frame that leaves.
const PASSES: u16 = 0;
const TRANSMITTED: u16 = 1;
const REDIRECTED: u16 = 2;

/// Whether a frame of neither family begins with a tag that is to be taken off. A third one is not.
#[inline(always)]
pub fn is_tagged<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    // What is known may have ceased to be wanted, with the program to be replaced later.
    if !tables.uses(feature::VLAN) || tables.tagged().is_some() {
        return false;
    }
    let ether_type = packet.read::<Check>(FIRST);
    ether_type.is_some_and(|Check(bytes)| is_protocol(bytes))
}

/// Whether an ether type is a tag's.
#[inline(always)]
const fn is_protocol(bytes: [u8; 2]) -> bool {
    matches!(
        u16::from_ne_bytes(bytes),
        wire::ETHER_VLAN | wire::ETHER_SERVICE_VLAN
    )
}

/// Takes a frame's tags off, and notes them and the interface that they are of; false, and nothing done, where there are none,
/// or they are of a VLAN that the host has no device for and that is not taken without ([`VlanKey::ANY`]).
#[inline(always)]
pub fn enter<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> bool {
    // One after the other: of what is read together, the compiler looks at parts that may not be there.
    let Some(addresses) = packet.read::<EthernetAddresses>(0) else {
        return false;
    };
    let Some(Word(first)) = packet.read::<Word>(FIRST) else {
        return false;
    };
    let Some(Word(second)) = packet.read::<Word>(FIRST + TAG) else {
        return false;
    };
    let [a, b, ..] = first;
    let [c, d, ..] = second;
    if !is_protocol([a, b]) {
        return false;
    }
    let mut tagged = Tagged {
        tags: [first, [0; TAG]],
        count: 1,
        interface: packet.interface(),
    };
    if is_protocol([c, d]) {
        tagged.tags = [first, second];
        tagged.count = 2;
    }
    let key = key(tagged.interface, tagged.tags);
    if key.tags != [[0; TAG]; 2] {
        match tables.vlan(&key) {
            Some(device) => tagged.interface = device,
            None if tables.vlan(&VlanKey::ANY).is_none() => return false,
            None => {}
        }
    }
    if !packet.shrink_front(tagged.count as usize * TAG) || packet.write(0, &addresses).is_none() {
        return false;
    }
    tables.note_tags(&tagged);
    true
}

/// What a VLAN device is found by. A tag of VLAN 0 says nothing but a priority (IEEE 802.1Q §6.9), and the kernel goes by the one behind
/// it.
#[inline(always)]
pub const fn key(interface: u32, [first, second]: [Tag; 2]) -> VlanKey {
    const NONE: Tag = [0; TAG];
    let tags = match (alone(first), alone(second)) {
        (None, None) => [NONE, NONE],
        (Some(one), None) | (None, Some(one)) => [one, NONE],
        (Some(one), Some(other)) => [one, other],
    };
    VlanKey { interface, tags }
}

/// A tag without its priority; `None` of VLAN 0.
#[inline(always)]
const fn alone([a, b, c, d]: Tag) -> Option<Tag> {
    let c = c & 0xf;
    if c | d == 0 { None } else { Some([a, b, c, d]) }
}

/// The tag of a VLAN, its priority the least.
pub const fn tag(protocol: u16, id: u16) -> Tag {
    let [a, b] = protocol.to_be_bytes();
    let [c, d] = (id & 0xfff).to_be_bytes();
    [a, b, c, d]
}

/// The longest packet that can be sent to a backend from here, as it arrives: [`Backend::mtu`], less what tags take that it keeps.
#[inline(always)]
pub fn room<T: Tables>(tables: &T, backend: &Backend) -> u16 {
    match tables.tagged() {
        Some(tagged) if tagged.interface == backend.interface => {
            backend.mtu.saturating_sub(tagged.surplus())
        }
        _ => backend.mtu,
    }
}

/// What tags take of the way of a packet that keeps them.
#[inline(always)]
pub fn surplus<T: Tables>(tables: &T) -> u16 {
    tables.tagged().map_or(0, |tagged| tagged.surplus())
}

/// By which interface a route leads out that names this one, with what is known of it.
///
/// # Errors
/// The packet is too long for what stands below, or nothing is below that it can be sent by, and it is the kernel's.
#[inline(always)]
pub fn led(interface: u32, upper: Option<&Upper>, length: u16) -> Result<u32, NoRoute> {
    match upper {
        Some(upper) if upper.lowers[0] == 0 => Err(NoRoute::Kernels),
        Some(upper) if length > upper.mtu => Err(NoRoute::TooLong(upper.mtu)),
        Some(_) => Ok(interface | UPPER),
        None => Ok(interface),
    }
}

/// Whether a verdict over a frame has to be carried out by [`leave`], which it is handed over to.
#[inline(always)]
pub fn is_left<T: Tables>(tables: &T, verdict: Verdict) -> bool {
    match verdict {
        Verdict::Pass => passes(tables),
        Verdict::Transmit => transmits(tables),
        Verdict::Redirect(interface) => redirects(tables, interface),
        Verdict::Held | Verdict::Drop(_) => {
            ends(tables);
            false
        }
    }
}

/// The same of [`Verdict::Pass`]. Each kind by itself, since the kernel's verifier follows what has a number only where the verdict
/// has one; so are those that follow.
#[inline(always)]
pub fn passes<T: Tables>(tables: &T) -> bool {
    is_left_as(tables, PASSES, 0)
}

/// The same of [`Verdict::Transmit`].
#[inline(always)]
pub fn transmits<T: Tables>(tables: &T) -> bool {
    is_left_as(tables, TRANSMITTED, 0)
}

/// The same of [`Verdict::Redirect`].
#[inline(always)]
pub fn redirects<T: Tables>(tables: &T, interface: u32) -> bool {
    is_left_as(tables, REDIRECTED, interface)
}

/// Forgets the tags of a frame that goes nowhere.
#[inline(always)]
pub fn ends<T: Tables>(tables: &T) {
    if tables.knows(feature::VLAN) && tables.tagged().is_some() {
        tables.note_tags(&Tagged::NONE);
    }
}

#[inline(always)]
fn is_left_as<T: Tables>(tables: &T, limit: u16, interface: u32) -> bool {
    let is_left =
        tables.knows(feature::VLAN) && (tables.tagged().is_some() || interface & UPPER != 0);
    if is_left {
        tables.hand_over(Handover {
            interface,
            offset: 0,
            limit,
        });
    }
    is_left
}

/// Carries out what was handed over: the last thing that is done to a frame.
///
/// # Errors
/// There is no room for its tags, or nothing to leave by.
#[inline(always)]
pub fn leave<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    let Handover {
        interface, limit, ..
    } = tables.handed_over();
    let tagged = tables.tagged().unwrap_or(Tagged::NONE);
    tables.note_tags(&Tagged::NONE);
    if limit != REDIRECTED {
        put(packet, tagged.tags, tagged.count)?;
        return Ok(if limit == TRANSMITTED {
            Verdict::Transmit
        } else {
            Verdict::Pass
        });
    }
    let mut interface = interface;
    if interface & UPPER != 0 {
        let upper = tables.upper(interface & !UPPER);
        let upper = upper.ok_or(DropReason::NoNextHop)?;
        interface = upper.lowers[spread(packet) & (LOWERS - 1)];
        if interface == 0 {
            return Err(DropReason::NoNextHop);
        }
        put(packet, upper.tags, u32::from(upper.count))?;
    }
    Ok(if interface == packet.interface() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(interface)
    })
}

/// Puts tags into a frame.
#[inline(always)]
fn put<P: Packet>(packet: &mut P, [first, second]: [Tag; 2], count: u32) -> Result<(), DropReason> {
    if count == 0 {
        return Ok(());
    }
    let addresses: EthernetAddresses = forward::read(packet, 0)?;
    let two = count > 1;
    if !packet.grow_front(if two { 2 * TAG } else { TAG }) {
        return Err(DropReason::NoHeadroom);
    }
    forward::write(packet, 0, &addresses)?;
    forward::write(packet, FIRST, &Word(first))?;
    if two {
        forward::write(packet, FIRST + TAG, &Word(second))?;
    }
    Ok(())
}

/// A number that is the same for all packets of a flow, by which they are spread over what a device stands over: of their addresses,
/// and of their ports, where every packet has them. What is in a tunnel has its flow in the outer source address or port.
#[inline(always)]
fn spread<P: Packet>(packet: &P) -> usize {
    const SOURCE_V4: usize = wire::ETHERNET + 12;
    const DESTINATION_V4: usize = wire::ETHERNET + 16;
    const FRAGMENT_V4: usize = wire::ETHERNET + 6;
    const PROTOCOL_V4: usize = wire::ETHERNET + 9;
    const NEXT_HEADER_V6: usize = wire::ETHERNET + 6;
    /// All but that it must not be fragmented.
    const FRAGMENTED: u16 = u16::from_ne_bytes([0xbf, 0xff]);
    /// IPv4 without options.
    const PLAIN_V4: u8 = 0x45;
    let check = |offset| {
        let check = packet.read::<Check>(offset);
        check.map_or(0, |Check(bytes)| u16::from_ne_bytes(bytes))
    };
    let word = |offset| {
        let word = packet.read::<Word>(offset);
        word.map_or(0, |Word(bytes)| u32::from_ne_bytes(bytes))
    };
    let half = |offset| match packet.read::<Ipv6Address>(offset) {
        Some(Ipv6Address([first, last])) => u64::from_ne_bytes(first) ^ u64::from_ne_bytes(last),
        None => 0,
    };
    let byte = |offset| packet.read::<Byte>(offset).map_or(0, |Byte(byte)| byte);
    let has_ports = |offset| matches!(byte(offset), protocol::TCP | protocol::UDP | protocol::SCTP);
    let ports = |offset| match packet.read::<Ports>(offset) {
        Some(Ports {
            source,
            destination,
        }) => u32::from(u16::from_ne_bytes(source) ^ u16::from_ne_bytes(destination)),
        None => 0,
    };
    let mut hash = if check(FIRST) == wire::ETHER_IPV4 {
        let addresses = word(SOURCE_V4) ^ word(DESTINATION_V4);
        let is_whole = check(FRAGMENT_V4) & FRAGMENTED == 0;
        if has_ports(PROTOCOL_V4) && is_whole && byte(wire::ETHERNET) == PLAIN_V4 {
            addresses ^ ports(wire::ETHERNET + wire::IPV4)
        } else {
            addresses
        }
    } else {
        let both = half(wire::ETHERNET + wire::IPV6_SOURCE)
            ^ half(wire::ETHERNET + wire::IPV6_DESTINATION);
        let addresses = (both ^ both >> 32) as u32;
        if has_ports(NEXT_HEADER_V6) {
            addresses ^ ports(wire::ETHERNET + wire::IPV6)
        } else {
            addresses
        }
    };
    hash ^= hash >> 16;
    hash ^= hash >> 8;
    (hash ^ hash >> 4) as usize
}

/// The frame that has been `frame` before tags were taken off.
#[cfg(any(test, feature = "std"))]
pub fn restored(frame: &[u8], tags: &[Tag]) -> std::vec::Vec<u8> {
    let (addresses, rest) = frame.split_at(FIRST.min(frame.len()));
    [addresses, tags.as_flattened(), rest].concat()
}
