//! Numbers and headers of the wire that network-types lacks. No parsing here.
//!
//! Ports, addresses and ether types are compared as natively loaded network-order words.

use wincode::{SchemaRead, SchemaWrite};

/// Length of an Ethernet header in bytes, and so the offset of the IP header.
pub const ETHERNET: usize = 14;
/// Offset in an IPv4 header of its TTL, which [`Ipv4Rest`] begins with.
pub const IPV4_TTL: usize = 8;
/// Length of an IPv4 header without options in bytes.
pub const IPV4: usize = 20;
/// Length of an IPv6 header in bytes.
pub const IPV6: usize = 40;
/// Offset in an IPv6 header of the protocol number of what follows.
pub const NEXT_HEADER: usize = 6;
/// Offset in an IPv6 header of the hop limit.
pub const HOP_LIMIT: usize = 7;
/// Offset in an IPv6 header of the source address.
pub const IPV6_SOURCE: usize = 8;
/// Offset in an IPv6 header of the destination address.
pub const IPV6_DESTINATION: usize = 24;
/// Length of an IPv6 fragment header in bytes.
pub const FRAGMENT: usize = 8;
/// Length of a TCP header without options in bytes.
pub const TCP: usize = 20;
/// Offset in a TCP header of its checksum.
pub const TCP_CHECK: usize = 16;
/// Offset in a UDP header of its checksum.
pub const UDP_CHECK: usize = 6;
/// Length of a UDP header in bytes.
pub const UDP: usize = 8;
/// Length in bytes of a GUE header of variant 0 with the first word of private data, as [`GueHdr`] has them.
pub const GUE: usize = 8;
/// Length of an SCTP common header and the beginning of its first chunk in bytes, as [`SctpStart`] has them.
pub const SCTP_START: usize = 16;
/// Length of an ICMP or ICMPv6 header in bytes.
pub const ICMP: usize = 8;

/// Ether type of IPv4, natively loaded.
pub const ETHER_IPV4: u16 = 0x0800_u16.to_be();
/// Ether type of IPv6, natively loaded.
pub const ETHER_IPV6: u16 = 0x86DD_u16.to_be();
/// Ether type of ARP, natively loaded.
pub const ETHER_ARP: u16 = 0x0806_u16.to_be();

/// Ether type of a VLAN tag (IEEE 802.1Q), natively loaded.
pub const ETHER_VLAN: u16 = 0x8100_u16.to_be();
/// Ether type of a service provider's (IEEE 802.1ad), natively loaded.
pub const ETHER_SERVICE_VLAN: u16 = 0x88A8_u16.to_be();

/// UDP port of Generic UDP Encapsulation, as registered at IANA.
pub const GUE_PORT: u16 = 6080;

/// IANA protocol numbers (<https://www.iana.org/assignments/protocol-numbers>).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 encapsulation.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 encapsulation.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 without anything behind.
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Control bits of a TCP header (RFC 9293 §3.1).
pub mod control {
    /// Its sender has no more to say.
    pub const FIN: u8 = 1;
    /// It opens a connection.
    pub const SYN: u8 = 2;
    /// It ends one at once.
    pub const RST: u8 = 4;
    /// It acknowledges.
    pub const ACK: u8 = 16;
}

/// The first bytes of a QUIC packet, as many as its destination connection id is found in ([`crate::quic`]).
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct QuicStart {
    /// The bytes, eight by eight.
    pub words: [[u8; 8]; 3],
}

/// The first eight bytes of an IPv6 extension header (RFC 8200 §4), which every one has.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct ExtensionHdr {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Length in units that the kind of header defines.
    pub length: u8,
    /// Third and fourth byte: routing type and segments left; fragment offset and M flag.
    pub data: [u8; 2],
    /// The rest.
    pub more: [u8; 4],
}

/// What a TCP header begins with, to its control bits (RFC 9293 §3.1). As bytes: to take bit after bit of a bit field, as
/// network-types' does, are branches in BPF, in which every packet's four of the data offset are too many.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct TcpStart {
    /// Its source port.
    pub source: [u8; 2],
    /// Its destination port.
    pub destination: [u8; 2],
    /// Its sequence number.
    pub sequence: [u8; 4],
    /// Its acknowledgement number.
    pub acknowledged: [u8; 4],
    /// The data offset in units of four bytes in the first four bits, and four that are reserved.
    pub offset: u8,
    /// The control bits, as [`mod@control`] has them.
    pub control: u8,
}

/// What every SCTP packet begins with: the common header, and the header of its first chunk (RFC 9260 §3).
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct SctpStart {
    /// Its source port.
    pub source: [u8; 2],
    /// Its destination port.
    pub destination: [u8; 2],
    /// Its verification tag.
    pub tag: [u8; 4],
    /// Its checksum: CRC32c over all of it, and nothing of the IP header.
    pub check: [u8; 4],
    /// Type of the chunk.
    pub kind: u8,
    /// Flags of the chunk.
    pub flags: u8,
    /// Length of the chunk.
    pub length: [u8; 2],
}

/// What every ICMP and ICMPv6 message begins with (RFC 792, RFC 4443 §2.1).
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct IcmpHdr {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Its checksum.
    pub check: [u8; 2],
    /// What its type makes of it.
    pub rest: [u8; 4],
}

/// An ARP packet of IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct ArpHdr {
    /// Kind of hardware: 1 for Ethernet.
    pub hardware: [u8; 2],
    /// Protocol, as an ether type.
    pub protocol: [u8; 2],
    /// Length of hardware addresses in bytes.
    pub hardware_length: u8,
    /// Length of protocol addresses in bytes.
    pub protocol_length: u8,
    /// Request or reply.
    pub operation: [u8; 2],
    /// Hardware address of the sender.
    pub sender_mac: [u8; 6],
    /// Its IPv4 address.
    pub sender: [u8; 4],
    /// Hardware address of the target.
    pub target_mac: [u8; 6],
    /// Its IPv4 address.
    pub target: [u8; 4],
}

/// A neighbour solicitation or advertisement without its options (RFC 4861 §4.3, §4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct NeighbourHdr {
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Its checksum.
    pub check: [u8; 2],
    /// Flags of an advertisement; else zero.
    pub flags: [u8; 4],
    /// The address that it is about.
    pub target: [u8; 16],
}

/// The link-layer address option of neighbour discovery (RFC 4861 §4.6.1), and eight bytes of any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct LinkAddressOption {
    /// Its kind.
    pub kind: u8,
    /// Its length in units of eight bytes.
    pub length: u8,
    /// The hardware address.
    pub mac: [u8; 6],
}

/// A header of Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue-09 §3.2), and the first word of its private data,
/// where it has any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct GueHdr {
    /// The variant in the first two bits, whether it is a control message in the third; then how long all is that
    /// follows the first four bytes, in units of four bytes.
    pub first: u8,
    /// Protocol of the packet behind.
    pub protocol: u8,
    /// Which extension fields there are.
    pub flags: [u8; 2],
    /// The beginning of the private data.
    pub private: [u8; 4],
}

/// What every TCP option begins with that is longer than a byte, and the value of one of four bytes.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct TcpOption {
    /// Its kind.
    pub kind: u8,
    /// Its length in bytes, these two included.
    pub length: u8,
    /// The rest.
    pub value: [u8; 2],
}

/// An IPv4 header from its TTL on (RFC 791 §3.1): all that changes of one whose packet goes on. Read without the rest, it
/// stays in registers.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct Ipv4Rest {
    /// TTL, protocol, and both bytes of the checksum.
    pub life: [u8; 4],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// An IPv6 address, eight bytes by eight.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct Ipv6Address(pub [[u8; 8]; 2]);

/// The addresses that an Ethernet header begins with.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct EthernetAddresses {
    /// The destination.
    pub destination: [u8; 6],
    /// The source.
    pub source: [u8; 6],
}

/// The ports that TCP and UDP headers begin with.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct Ports {
    /// The source.
    pub source: [u8; 2],
    /// The destination.
    pub destination: [u8; 2],
}

/// Four bytes of whatever they are, to be summed.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct Word(pub [u8; 4]);

/// One byte of them.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct Byte(pub u8);

/// A 16-bit word by itself, such as a checksum where the header that has it may not be whole.
#[derive(Debug, Clone, Copy, SchemaRead, SchemaWrite)]
#[repr(C)]
#[wincode(assert_zero_copy)]
pub struct Check(pub [u8; 2]);
