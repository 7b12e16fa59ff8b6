//! Who has a VIP on its links: ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for a VIP that is announced are
//! answered with the hardware address of the interface that they came by, and frames are built that say so unasked. Sees nothing
//! but such frames, and looks at nothing that others say of themselves: who else claims a VIP is the agent's to hear.

use network_types::{eth::EthHdr, ip::Ipv6Hdr};

use crate::{
    checksum::Sum,
    forward,
    packet::Packet,
    steer,
    tables::{Address, Tables, UPPER, feature, owned},
    verdict::{Answer, DropReason, Verdict},
    wire::{self, ArpHdr, LinkAddressOption, NeighbourHdr, protocol},
};

/// Type of a neighbour solicitation (RFC 4861 §4.3).
pub const SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement (RFC 4861 §4.4).
pub const ADVERTISEMENT: u8 = 136;
/// Length of an ARP frame in bytes.
pub const ARP_FRAME: usize = wire::ETHERNET + size_of::<ArpHdr>();
/// Length of the frame of an advertisement with its option in bytes.
pub const ADVERTISEMENT_FRAME: usize = OPTIONS + OPTION;

/// The hop limit of whatever has passed no router (RFC 4861 §7.1).
const HOP_LIMIT: u8 = 255;
const BROADCAST: [u8; 6] = [0xff; 6];
/// `ff02::1`, to which every node listens, and the hardware address that it has (RFC 2464 §7).
const ALL_NODES: Address = Address::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Operations of ARP.
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const ARP_ETHERNET: [u8; 2] = [0, 1];
/// Flags of an advertisement (RFC 4861 §4.4).
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Kinds of options (RFC 4861 §4.6).
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

const MESSAGE: usize = wire::ETHERNET + wire::IPV6;
const OPTIONS: usize = MESSAGE + size_of::<NeighbourHdr>();
/// What options are multiples of.
const OPTION: usize = size_of::<LinkAddressOption>();
/// Eights of bytes of the longest message that is read: what hosts send has one option or two, and the kernel's verifier goes through
/// every place where each may end.
const MOST_UNITS: usize = 8;
/// Of these, what stands before the options.
const HEADER_UNITS: usize = size_of::<NeighbourHdr>() / OPTION;

/// Whether a frame of no IP packet may be an ARP request that is to be answered.
#[inline(always)]
pub fn may_be_asked<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    tables.knows(feature::ANNOUNCE) && is_arp(packet)
}

/// Answers a request or solicitation for a VIP that is announced. All else passes.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, DropReason> {
    let Some(mac) = tables.hardware_address(tables.ingress(packet) & !UPPER) else {
        return Ok(Verdict::Pass);
    };
    if is_arp(packet) {
        request(packet, tables, mac)
    } else {
        solicitation(packet, tables, mac)
    }
}

#[inline(always)]
fn is_arp<P: Packet>(packet: &P) -> bool {
    let ethernet = packet.read::<EthHdr>(0);
    ethernet.is_some_and(|ethernet| ethernet.ether_type == wire::ETHER_ARP)
}

#[inline(always)]
fn is_announced<T: Tables>(tables: &T, address: Address) -> bool {
    steer::owned(tables, address) & owned::ANNOUNCED != 0
}

/// Whether no single station has a hardware address.
#[inline(always)]
fn is_nobodys(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0 || mac == [0; 6]
}

#[inline(always)]
fn request<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    mac: [u8; 6],
) -> Result<Verdict, DropReason> {
    let Some(asked) = packet.read::<ArpHdr>(wire::ETHERNET) else {
        return Ok(Verdict::Pass);
    };
    let is_of_v4 = asked.protocol == wire::ETHER_IPV4.to_ne_bytes() && asked.protocol_length == 4;
    let target = Address::v4(u32::from_ne_bytes(asked.target));
    if !is_of_v4 || asked.operation != REQUEST || !is_announced(tables, target) {
        return Ok(Verdict::Pass);
    }
    // Somebody announces the VIP (RFC 5227 §1.1), which asks nothing.
    if asked.sender == asked.target {
        return Ok(Verdict::Pass);
    }
    let is_of_ethernet = asked.hardware == ARP_ETHERNET && asked.hardware_length == 6;
    if !is_of_ethernet || is_nobodys(asked.sender_mac) {
        return Err(DropReason::ArpMalformed);
    }
    let reply = ArpHdr {
        operation: REPLY,
        sender_mac: mac,
        sender: asked.target,
        target_mac: asked.sender_mac,
        target: asked.sender,
        ..asked
    };
    forward::readdress(packet, mac, asked.sender_mac)?;
    forward::write(packet, wire::ETHERNET, &reply)?;
    tables.count_answer(Answer::Arp);
    Ok(Verdict::Transmit)
}

#[inline(always)]
fn solicitation<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    mac: [u8; 6],
) -> Result<Verdict, DropReason> {
    let read = (
        packet.read::<EthHdr>(0),
        packet.read::<Ipv6Hdr>(wire::ETHERNET),
        packet.read::<NeighbourHdr>(MESSAGE),
    );
    let (Some(ethernet), Some(ip), Some(message)) = read else {
        return Ok(Verdict::Pass);
    };
    let target = Address::v6(message.target);
    let is_one = ip.next_hdr == protocol::ICMPV6 && message.kind == SOLICITATION;
    // What stands for an address of IPv4 is none that anybody has.
    if !is_one || target.is_v4() || !is_announced(tables, target) {
        return Ok(Verdict::Pass);
    }
    if ip.hop_limit != HOP_LIMIT {
        return Err(DropReason::NdHopLimit);
    }
    let asker = check(packet, &ip, &message)?;
    let source = Address::v6(ip.src_addr);
    let is_probe = source == Address::v6([0; 16]);
    // Who wants to know whether it may have the address itself has none to be answered at, and must not say where it is
    // (RFC 4861 §7.1.1).
    let (to, to_mac, flags) = if is_probe {
        if asker.is_some() || Address::v6(ip.dst_addr) != solicited_node(target) {
            return Err(DropReason::NdMalformed);
        }
        (ALL_NODES, ALL_NODES_MAC, OVERRIDE)
    } else {
        let to_mac = asker.unwrap_or(ethernet.src_addr);
        if ip.src_addr[0] == 0xff || is_nobodys(to_mac) {
            return Err(DropReason::NdMalformed);
        }
        (source, to_mac, SOLICITED | OVERRIDE)
    };
    // What asks without an option is shorter than what answers.
    if !packet.reaches(ADVERTISEMENT_FRAME) && !packet.grow_front(OPTION) {
        return Err(DropReason::NoHeadroom);
    }
    if !packet.truncate(ADVERTISEMENT_FRAME) {
        return Err(DropReason::Inconsistent);
    }
    advertise(packet, mac, target, (to, to_mac), flags)?;
    tables.count_answer(Answer::Neighbour);
    Ok(Verdict::Transmit)
}

/// The address that nodes listen to for who asks for `target` (RFC 4291 §2.7.1).
#[inline(always)]
fn solicited_node(target: Address) -> Address {
    let [.., a, b, c] = target.octets();
    Address::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Whether a solicitation is whole and sound (RFC 4861 §7.1.1); where it says that its sender is.
#[inline(always)]
fn check<P: Packet>(
    packet: &P,
    ip: &Ipv6Hdr,
    message: &NeighbourHdr,
) -> Result<Option<[u8; 6]>, DropReason> {
    let length = usize::from(u16::from_be_bytes(ip.payload_len));
    let units = length / OPTION;
    let is_whole = length.is_multiple_of(OPTION) && (HEADER_UNITS..=MOST_UNITS).contains(&units);
    if !is_whole || !packet.reaches(MESSAGE + length) || message.code != 0 {
        return Err(DropReason::NdMalformed);
    }
    let mut sum = Sum::new()
        .add128(Address::v6(ip.src_addr).words())
        .add128(Address::v6(ip.dst_addr).words())
        .add16(u16::from_ne_bytes(ip.payload_len))
        .add16(u16::from(protocol::ICMPV6).to_be());
    let mut asker = None;
    // Where the next option begins, in units.
    let mut next = HEADER_UNITS;
    for unit in 0..MOST_UNITS {
        if unit >= units {
            break;
        }
        let Some(read) = packet.read::<LinkAddressOption>(MESSAGE + unit * OPTION) else {
            return Err(DropReason::NdMalformed);
        };
        let LinkAddressOption { kind, length, mac } = read;
        let [a, b, c, d, e, f] = mac;
        sum = sum
            .add16(u16::from_ne_bytes([kind, length]))
            .add16(u16::from_ne_bytes([a, b]))
            .add32(u32::from_ne_bytes([c, d, e, f]));
        if unit == next {
            if length == 0 {
                return Err(DropReason::NdMalformed);
            }
            if kind == SOURCE_LINK_ADDRESS && length == 1 {
                asker = Some(mac);
            }
            next += usize::from(length);
        }
    }
    if sum.fold() != 0xffff {
        return Err(DropReason::NdChecksum);
    }
    if next != units {
        return Err(DropReason::NdMalformed);
    }
    Ok(asker)
}

/// Makes the frame an advertisement that `target` is at `mac`.
#[inline(always)]
fn advertise<P: Packet>(
    packet: &mut P,
    mac: [u8; 6],
    target: Address,
    (to, to_mac): (Address, [u8; 6]),
    flags: u8,
) -> Result<(), DropReason> {
    const LENGTH: u16 = (ADVERTISEMENT_FRAME - MESSAGE) as u16;
    let option = LinkAddressOption {
        kind: TARGET_LINK_ADDRESS,
        length: 1,
        mac,
    };
    let [a, b, c, d, e, f] = mac;
    let sum = Sum::new()
        .add128(target.words())
        .add128(to.words())
        .add16(LENGTH.to_be())
        .add16(u16::from(protocol::ICMPV6).to_be())
        .add16(u16::from_ne_bytes([ADVERTISEMENT, 0]))
        .add16(u16::from_ne_bytes([flags, 0]))
        .add128(target.words())
        .add16(u16::from_ne_bytes([option.kind, option.length]))
        .add16(u16::from_ne_bytes([a, b]))
        .add32(u32::from_ne_bytes([c, d, e, f]));
    let message = NeighbourHdr {
        kind: ADVERTISEMENT,
        code: 0,
        check: sum.checksum().to_ne_bytes(),
        flags: [flags, 0, 0, 0],
        target: target.octets(),
    };
    let ethernet = EthHdr {
        dst_addr: to_mac,
        src_addr: mac,
        ether_type: wire::ETHER_IPV6,
    };
    let ip = Ipv6Hdr {
        hop_limit: HOP_LIMIT,
        ..forward::header_v6(0, LENGTH, protocol::ICMPV6, target, to)
    };
    forward::write(packet, 0, &ethernet)?;
    forward::write(packet, wire::ETHERNET, &ip)?;
    forward::write(packet, MESSAGE, &message)?;
    forward::write(packet, OPTIONS, &option)
}

/// Length of the frame that [`announce`] makes, in bytes.
pub const fn announcement_length(vip: Address) -> usize {
    if vip.is_v4() {
        ARP_FRAME
    } else {
        ADVERTISEMENT_FRAME
    }
}

/// Makes a frame of [`announcement_length`] bytes one that tells everybody on the link that `vip` is at `mac`: an ARP
/// announcement (RFC 5227 §3) or an unsolicited advertisement that overrides what is known (RFC 4861 §7.2.6).
///
/// # Errors
/// [`DropReason::Inconsistent`] where it is too short.
pub fn announce<P: Packet>(packet: &mut P, mac: [u8; 6], vip: Address) -> Result<(), DropReason> {
    if !vip.is_v4() {
        return advertise(packet, mac, vip, (ALL_NODES, ALL_NODES_MAC), OVERRIDE);
    }
    let ethernet = EthHdr {
        dst_addr: BROADCAST,
        src_addr: mac,
        ether_type: wire::ETHER_ARP,
    };
    let address = vip.low().to_ne_bytes();
    let announcement = ArpHdr {
        hardware: ARP_ETHERNET,
        protocol: wire::ETHER_IPV4.to_ne_bytes(),
        hardware_length: 6,
        protocol_length: 4,
        operation: REQUEST,
        sender_mac: mac,
        sender: address,
        target_mac: [0; 6],
        target: address,
    };
    forward::write(packet, 0, &ethernet)?;
    forward::write(packet, wire::ETHERNET, &announcement)
}

/// Who says that it has an address, as [`claim`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: Address,
    /// Where it is said to be.
    pub mac: [u8; 6],
}

/// What a frame says of where its sender is: any ARP packet (RFC 5227 §2.4), or an advertisement that names a hardware address
/// and has passed no router. `None` where it says nothing.
pub fn claim<P: Packet>(packet: &P) -> Option<Claim> {
    if is_arp(packet) {
        let arp = packet.read::<ArpHdr>(wire::ETHERNET)?;
        let is_of_both = arp.hardware == ARP_ETHERNET
            && arp.protocol == wire::ETHER_IPV4.to_ne_bytes()
            && (arp.hardware_length, arp.protocol_length) == (6, 4);
        return is_of_both.then(|| Claim {
            address: Address::v4(u32::from_ne_bytes(arp.sender)),
            mac: arp.sender_mac,
        });
    }
    let ethernet = packet.read::<EthHdr>(0)?;
    let ip = packet.read::<Ipv6Hdr>(wire::ETHERNET)?;
    let message = packet.read::<NeighbourHdr>(MESSAGE)?;
    let is_one = ethernet.ether_type == wire::ETHER_IPV6
        && ip.next_hdr == protocol::ICMPV6
        && ip.hop_limit == HOP_LIMIT
        && message.kind == ADVERTISEMENT;
    // Elsewhere than first, none has been seen.
    let option = packet.read::<LinkAddressOption>(OPTIONS)?;
    let names = (option.kind, option.length) == (TARGET_LINK_ADDRESS, 1);
    (is_one && names).then(|| Claim {
        address: Address::v6(message.target),
        mac: option.mac,
    })
}

const _: () = {
    assert!(size_of::<ArpHdr>() == 28);
    assert!(size_of::<NeighbourHdr>() == 24);
    assert!(size_of::<LinkAddressOption>() == OPTION);
    // A solicitation without an option lacks one option's room at most.
    assert!(OPTIONS + OPTION == ADVERTISEMENT_FRAME);
};
