//! Keys and values of the maps, and [`Tables`]: how the pipeline reaches them.
//!
//! The kernel program, the agent that fills the maps and the host's double all use these types;
//! their sizes are part of the pinned format (`FORMAT`). No map access here, and no decisions.
//!
//! Addresses are 16 bytes in network byte order, IPv4 as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2);
//! words of them are loaded natively, so they are compared and summed without swapping.

use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    admit,
    flow::Flow,
    hash::FlowHash,
    packet::Packet,
    passive, persist,
    quic::{self, Start},
    rate::Rate,
    schedule, session,
    steer::{self, RouteTable, Spot},
    track::{self, Question},
    verdict::{Answer, DropReason, Piece},
};

mod fragments;
mod guards;
mod sessions;
mod signs;
mod vlans;
mod wide;

pub use fragments::{Datagram, Early, FragmentKey, HELD_WORDS, fate};
pub use guards::{AccessKey, Guard, GuardEntry, SourceKey, access};
pub use sessions::{PoolKey, PortKey, Proxied, Session, Translation, client_address, syn_proxy};
pub use signs::{HANDSHAKES, Handshake, Sign, Signs, handshake};
pub use vlans::{LOWERS, MOST_TAGS, Tag, Tagged, UPPER, Upper, VlanKey};
pub use wide::{ClassKey, Shape, VipKey};

/// Version of everything in this module. The pin directory is named after it, so that programs of
/// different formats never share a map.
pub const FORMAT: u32 = 9;

/// An IP address as two words of network-order bytes, loaded natively. Two words and not four: they are
/// compared and moved as they were written, where the processor would otherwise wait for stores
/// to join.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Address {
    /// The first eight bytes.
    first: u64,
    /// The last eight bytes.
    last: u64,
}

/// The third of four words of an IPv4-mapped address.
const V4_MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Two words as they lie in memory, in one.
#[inline(always)]
const fn join(one: u32, other: u32) -> u64 {
    if cfg!(target_endian = "big") {
        ((one as u64) << 32) | other as u64
    } else {
        ((other as u64) << 32) | one as u64
    }
}

/// The reverse of [`join`].
#[inline(always)]
const fn split(word: u64) -> [u32; 2] {
    if cfg!(target_endian = "big") {
        [(word >> 32) as u32, word as u32]
    } else {
        [word as u32, (word >> 32) as u32]
    }
}

impl Address {
    /// What stands where an address would, for nobody.
    pub const NOBODY: Self = Self { first: 0, last: 0 };

    /// An IPv4 address from its network-order word.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self {
            first: 0,
            last: join(V4_MAPPED, word),
        }
    }

    /// An address from 16 network-order bytes.
    #[inline(always)]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            first: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            last: u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        }
    }

    /// An address from four natively loaded words.
    #[inline(always)]
    pub const fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        Self {
            first: join(a, b),
            last: join(c, d),
        }
    }

    /// An address from what [`Address::halves`] gives.
    #[inline(always)]
    pub const fn from_halves(first: u64, last: u64) -> Self {
        Self { first, last }
    }

    /// Its two words of eight network-order bytes, loaded natively.
    #[inline(always)]
    pub const fn halves(self) -> (u64, u64) {
        (self.first, self.last)
    }

    /// Its four words of network-order bytes, loaded natively.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let ([a, b], [c, d]) = (split(self.first), split(self.last));
        [a, b, c, d]
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [mapped, _] = split(self.last);
        self.first == 0 && mapped == V4_MAPPED
    }

    /// Its last four bytes: the whole address for IPv4.
    #[inline(always)]
    pub const fn low(self) -> u32 {
        let [_, low] = split(self.last);
        low
    }

    /// The same with other last four bytes.
    #[inline(always)]
    pub const fn with_low(self, low: u32) -> Self {
        let [third, _] = split(self.last);
        Self {
            last: join(third, low),
            ..self
        }
    }

    /// The same with all but its first so many bits set to zero; those of an IPv4 address begin at 96.
    #[inline(always)]
    pub const fn prefix(self, bits: u32) -> Self {
        // A shift by the whole width is none.
        let first = match bits {
            0 => 0,
            1..64 => u64::MAX << (64 - bits),
            _ => u64::MAX,
        };
        let last = match bits {
            0..=64 => 0,
            65..128 => u64::MAX << (128 - bits),
            _ => u64::MAX,
        };
        Self {
            first: self.first & first.to_be(),
            last: self.last & last.to_be(),
        }
    }

    /// Its 16 bytes in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.first.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.last.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::from(address.low().to_ne_bytes())
        } else {
            Self::from(address.octets())
        }
    }
}

/// Address, port and protocol: what names a service, and the key of the way back.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port's two network-order bytes, loaded natively; 0: every port that no other endpoint of the
    /// address has.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub zero: u8,
    /// Always zero.
    pub zeros: u32,
}

/// Programs that the one on the interface goes on with, by their number.
pub const TAIL_UNUSUAL: u32 = 0;
/// The next: what nobody takes.
pub const TAIL_REFUSED: u32 = 1;
/// The next: what is too long for the way to its backend.
pub const TAIL_TOO_BIG: u32 = 2;
/// The next: SYNs whose MSS is lowered.
pub const TAIL_SYN: u32 = 3;
/// The next: fragments.
pub const TAIL_FRAGMENT: u32 = 4;
/// The next: mode `full-nat`.
pub const TAIL_FULL_NAT: u32 = 5;
/// The next: what begins a session of it.
pub const TAIL_FULL_NAT_NEW: u32 = 6;
/// The next: answers of its backends.
pub const TAIL_FULL_NAT_ANSWER: u32 = 7;
/// The next: ICMP errors about it.
pub const TAIL_FULL_NAT_ERROR: u32 = 8;
/// The next: packets of it that have no port.
pub const TAIL_UNTRANSLATED: u32 = 9;
/// The next: SCTP.
pub const TAIL_SCTP: u32 = 10;
/// The next: ARP requests and neighbour solicitations.
pub const TAIL_NEIGHBOUR: u32 = 11;
/// The one for packets of services whose backends hand flows on ([`crate::pipeline::second_hop`]).
pub const TAIL_SECOND_HOP: u32 = 12;
/// The next: frames with VLAN tags, to have these taken off.
pub const TAIL_VLAN: u32 = 13;
/// The next: the program on the interface once more, for these.
pub const TAIL_TAGGED: u32 = 14;
/// The next: frames that leave with tags, or by what their device stands over.
pub const TAIL_TAG: u32 = 15;
/// The next: fragments that were held, once their tags have been taken off.
pub const TAIL_HELD: u32 = 16;
/// The next: SYNs of mode `full-nat` that are answered here, and what answers them ([`crate::syn_proxy`]).
pub const TAIL_SYN_COOKIE: u32 = 17;
/// The next: what becomes a SYN to a session's backend.
pub const TAIL_PROXY_SYN: u32 = 18;
/// The next: what the backend answers that.
pub const TAIL_PROXY_ANSWER: u32 = 19;
/// The next: ICMP errors that say packets of tunnels to be too long.
pub const TAIL_TUNNEL_ERROR: u32 = 20;
/// The next: fragments of mode `full-nat`.
pub const TAIL_FULL_NAT_FRAGMENT: u32 = 21;
/// How many there are.
pub const TAILS: u32 = 22;

/// What the program on the interface tells the one that it goes on with.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Handover {
    /// Interface that the frame is to leave by; 0: it is the kernel's.
    pub interface: u32,
    /// Offset of its TCP header, in bytes. To [`TAIL_VLAN`]: whether it was held.
    pub offset: u16,
    /// What may not be exceeded, in bytes: the MTU that [`Backend::mtu`] gives, or an MSS. To [`TAIL_TOO_BIG`], 0: it is not
    /// too long, but no hop is left. To
    /// [`TAIL_UNTRANSLATED`]: the number of the [`DropReason`]; to [`TAIL_FULL_NAT`]: whether a session has just been
    /// begun, or the frame is of [`TAIL_PROXY_SYN`]'s making, as to [`TAIL_FULL_NAT_ANSWER`] of [`TAIL_PROXY_ANSWER`]'s; to [`TAIL_TAG`]: the verdict.
    pub limit: u16,
}

/// Words of the flow hash's key ([`crate::hash`]).
pub const HASH_KEY_WORDS: usize = 12;

/// The one element of the control map. [`Control::generation`] is the one store that switches
/// every service at once: its lowest bit picks the half of each [`ServiceEntry`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Control {
    /// Rises by one with every switch.
    pub generation: u64,
    /// Secret of the flow hash, drawn once when the maps are made.
    pub hash_key: [u64; HASH_KEY_WORDS],
    /// Bits of [`feature`]: what is in use.
    pub features: u32,
    /// Base-two logarithm of the number of buckets of the look-up table of services, at most 31.
    pub lookup_bits: u32,
    /// UDP port that backends take packets of mode [`mode::GUE`] at, as in [`Endpoint::port`].
    pub gue_port: u16,
    /// What packets to a port of a VIP get that no service has, one of [`refusal`]; they pass
    /// without [`feature::UNKNOWN_PORTS`].
    pub unknown_port: u8,
    /// Always zero.
    pub zero: u8,
    /// Always zero.
    pub zeros: [u16; 2],
}

/// What of the program is used: bits of [`Control::features`], and of what the program is loaded with, which is at
/// least that. Code that only what is not used would reach is taken away as the program is loaded ([`Tables::knows`]).
pub mod feature {
    /// Some service is in `nat` mode: answers are looked for.
    pub const NAT: u32 = 1;
    /// [`Control::unknown_port`](super::Control::unknown_port) says something else than
    /// [`PASS`](super::refusal::PASS).
    pub const UNKNOWN_PORTS: u32 = 2;
    /// Some service has every port of its address: what no other service has is looked for once more.
    pub const ALL_PORTS: u32 = 4;
    /// Some service is in `full-nat` mode, or there may be sessions left of one.
    pub const FULL_NAT: u32 = 8;
    /// Some service is in mode `ipip`.
    pub const IPIP: u32 = 16;
    /// Some service is in mode `gue`.
    pub const GUE: u32 = 32;
    /// Any mode that wraps packets.
    pub const TUNNELS: u32 = IPIP | GUE | SECOND_HOP;
    /// Some service is in mode `l2`.
    pub const L2: u32 = 64;
    /// Some service is [`GUARDED`](super::service_flag::GUARDED).
    pub const GUARDS: u32 = 128;
    /// Some service is QUIC's.
    pub const QUIC: u32 = 256;
    /// Packets show how some service's backends are ([`crate::passive`]).
    pub const PASSIVE: u32 = 512;
    /// The MSS of some SYNs is lowered ([`crate::mss`]).
    pub const MSS: u32 = 1024;
    /// The flows of some service are placed by their source, or were until its last move.
    pub const BY_SOURCE: u32 = 2048;
    /// The flows of some service are placed by their 3-tuple, or were until its last move.
    pub const BY_THREE_TUPLE: u32 = 4096;
    /// Some service has several addresses, or a range of ports.
    pub const WIDE: u32 = 8192;
    /// Some service is SCTP's.
    pub const SCTP: u32 = 16384;
    /// Some VIP is answered for on its links ([`crate::neighbour`]).
    pub const ANNOUNCE: u32 = 32768;
    /// Some service is of mode [`SECOND_HOP`](super::mode::SECOND_HOP).
    pub const SECOND_HOP: u32 = 65536;
    /// Frames may have VLAN tags, or routes lead out of VLAN devices or bonds ([`crate::vlan`]).
    pub const VLAN: u32 = 131_072;
    /// SYNs of some service are answered for its backends ([`crate::syn_proxy`]), or there may be sessions left of one.
    pub const SYN_PROXY: u32 = 262_144;
    /// Some service has source routes, or had until its last move.
    pub const SOURCE_ROUTES: u32 = 524_288;
    /// All of these.
    pub const ALL: u32 = 1_048_575;
}

/// What becomes of packets to a VIP that nobody takes ([`crate::refuse`]).
pub mod refusal {
    /// They are dropped.
    pub const DROP: u8 = 0;
    /// TCP is answered by a reset, all else as under [`UNREACHABLE`].
    pub const RESET: u8 = 1;
    /// They are answered by an ICMP error.
    pub const UNREACHABLE: u8 = 2;
    /// They are the kernel's.
    pub const PASS: u8 = 3;
}

/// How packets of a service are forwarded; the values of [`Descriptor::mode`].
pub mod mode {
    /// Destination rewritten.
    pub const NAT: u8 = 1;
    /// IP-in-IP encapsulation.
    pub const IPIP: u8 = 2;
    /// Destination MAC address rewritten.
    pub const L2: u8 = 3;
    /// Encapsulation in UDP.
    pub const GUE: u8 = 4;
    /// Both ends rewritten.
    pub const FULL_NAT: u8 = 5;
    /// As [`GUE`], and the backend is told who else may have the flow ([`crate::second_hop`]).
    pub const SECOND_HOP: u8 = 6;
}

/// Services whose endpoint hashes to a bucket of the look-up table, as index + 1; 0: none. A service
/// stands in one of the two buckets that its endpoint's hash names. What it is found by is in its
/// [`Descriptor`], so that finding it switches with everything else.
pub type Bucket = [u32; 4];

/// A service as of one generation: one cache line, what identifies it included.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Descriptor {
    /// Its VIP.
    pub address: Address,
    /// Its port, as in [`Endpoint::port`]; 0 also of a service that has several addresses or a range of ports, which
    /// this does not find.
    pub port: u16,
    /// Its IANA protocol number; 0: no service in this generation, and nothing else counts.
    pub protocol: u8,
    /// One of [`mode`].
    pub mode: u8,
    /// First slot of its ring in the arena, even.
    pub ring_start: u32,
    /// Slots of its ring, or of each subset's part of it, one after the other, where it [is
    /// routed](Descriptor::is_routed); 0: it has never had a backend.
    pub ring_size: u32,
    /// First slot of the ring before a move of the whole service, even; it answers for `origin`
    /// while [`service_flag::MOVING`] is set.
    pub previous_start: u32,
    /// Slots of that ring or of each part of it, and in its uppermost bits, the fields that flows were placed by there
    /// ([`Descriptor::previous_fields`]), and [`Descriptor::is_overlaid`].
    pub previous: u32,
    /// First of its pool's entries in the member map.
    pub members_start: u32,
    /// Entries of its pool; local ids run below this.
    pub members_len: u16,
    /// Bits of [`service_flag`].
    pub flags: u16,
    /// First slot, even, of the sequence that [`scheduler::TURNS`] and [`scheduler::TWO_CHOICES`]
    /// pick from, each backend as often as its weight says.
    pub schedule_start: u32,
    /// Slots of that sequence.
    pub schedule_size: u32,
    /// How long a slot moves and how long a flow may be idle, in ticks ([`Tick`]); 0: stateless.
    pub moving_time: u32,
    /// How long a client stays with its backend after its last new flow, in ticks; 0: not at all.
    pub persistence: u32,
    /// Number of the pool, for what its services share beside the ring: turns and clients.
    pub pool: u16,
    /// One of [`scheduler`], [`Descriptor::is_routed`], and from [`SAMPLING_SHIFT`] on, which handshakes are watched
    /// ([`crate::passive`]): those of one in 2^(n - 1) flows; 0: none. In mode [`FULL_NAT`](mode::FULL_NAT), where
    /// answers tell: 1, all.
    pub scheduler: u8,
    /// Lengths of its connection ids ([`quic::Lengths`]); 0: it is not QUIC.
    pub quic: u8,
}

impl Descriptor {
    /// Whether it stands for the service at this endpoint.
    #[inline(always)]
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.address == endpoint.address
            && self.port == endpoint.port
            && self.protocol == endpoint.protocol
    }

    /// Which fields of a flow place it on the ring: [`service_flag::BY_SOURCE`],
    /// [`service_flag::BY_THREE_TUPLE`] or neither, for its 5-tuple.
    #[inline(always)]
    pub const fn fields(&self) -> u16 {
        self.flags & service_flag::FIELDS
    }

    /// The same of the ring before a move of the whole service.
    #[inline(always)]
    pub const fn previous_fields(&self) -> u16 {
        (self.previous >> PREVIOUS_FIELDS_SHIFT) as u16 & service_flag::FIELDS
    }

    /// Slots of that ring.
    #[inline(always)]
    pub const fn previous_size(&self) -> u32 {
        self.previous & ((1 << PREVIOUS_SIZE_BITS) - 1)
    }

    /// Names the ring before a move of the whole service: its first slot, how many it has, and by which fields flows
    /// were placed there.
    pub const fn set_previous(&mut self, start: u32, size: u32, fields: u16) {
        self.previous_start = start;
        let fields = (fields & service_flag::FIELDS) as u32;
        self.previous = (self.previous & OVERLAID) | (fields << PREVIOUS_FIELDS_SHIFT) | size;
    }

    /// Whether it has every port of its address but for ranges that others have, so that it is found as those are.
    #[inline(always)]
    pub const fn is_overlaid(&self) -> bool {
        self.previous & OVERLAID != 0
    }

    /// Sets that.
    pub const fn set_overlaid(&mut self, overlaid: bool) {
        self.previous = (self.previous & !OVERLAID) | if overlaid { OVERLAID } else { 0 };
    }

    /// First bits of an address that make a client, as [`Address::prefix`] takes them.
    #[inline(always)]
    pub const fn client_bits(&self) -> u32 {
        128 - (self.flags >> service_flag::CLIENT_SHIFT) as u32
    }

    /// What packets get while no backend may take them: one of [`refusal`].
    #[inline(always)]
    pub const fn refusal(&self) -> u8 {
        (self.flags >> service_flag::REFUSAL_SHIFT) as u8 & 3
    }

    /// How a new flow's backend is chosen: one of [`scheduler`].
    #[inline(always)]
    pub const fn scheduler(&self) -> u8 {
        self.scheduler & (ROUTED - 1)
    }

    /// Sets that.
    pub const fn set_scheduler(&mut self, scheduler: u8) {
        self.scheduler = self.scheduler & !(ROUTED - 1) | scheduler;
    }

    /// Whether flows are placed on the part of the ring that the route of their source leads to, or were before a move
    /// of the whole service: [`Guard::routes`] says more.
    #[inline(always)]
    pub const fn is_routed(&self) -> bool {
        self.scheduler & ROUTED != 0
    }

    /// Sets that.
    pub const fn set_routed(&mut self, routed: bool) {
        self.scheduler = self.scheduler & !ROUTED | if routed { ROUTED } else { 0 };
    }

    /// Sets which handshakes are watched: at most [`MOST_SAMPLING`].
    pub const fn set_sampling(&mut self, sampling: u8) {
        let rest = self.scheduler & ((1 << SAMPLING_SHIFT) - 1);
        self.scheduler = sampling << SAMPLING_SHIFT | rest;
    }

    /// Which handshakes are watched, as [`Descriptor::scheduler`] has it.
    #[inline(always)]
    pub const fn sampling(&self) -> u8 {
        self.scheduler >> SAMPLING_SHIFT
    }

    /// What [`FlowKey::to`] is of a flow that goes to a port: of one that has a single port, the service stands
    /// for it.
    #[inline(always)]
    pub const fn key_port(&self, port: u16) -> u16 {
        if self.port == 0 { port } else { 0 }
    }

    /// The port that a flow goes to, given its [`FlowKey::to`].
    #[inline(always)]
    pub const fn port_of(&self, to: u16) -> u16 {
        if self.port == 0 { to } else { self.port }
    }

    /// What [`FlowKey::host`] is of a flow that goes to an address, likewise.
    #[inline(always)]
    pub const fn key_host(&self, address: Address) -> u64 {
        if self.port == 0 {
            let (_, host) = address.halves();
            host
        } else {
            0
        }
    }

    /// The VIP that a flow goes to, given its key.
    #[inline(always)]
    pub const fn vip_of(&self, key: &FlowKey) -> Address {
        if self.port == 0 {
            let (first, _) = self.address.halves();
            Address::from_halves(first, key.host)
        } else {
            self.address
        }
    }

    /// The port that a packet of modes [`mode::NAT`] and [`mode::FULL_NAT`] has at a backend, given the one that it came to.
    #[inline(always)]
    pub const fn port_at(&self, backend: &Backend, port: u16) -> u16 {
        if self.flags & service_flag::KEEPS_PORT != 0 {
            port
        } else {
            backend.port
        }
    }

    /// Where the service is.
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address,
            port: self.port,
            protocol: self.protocol,
            zero: 0,
            zeros: 0,
        }
    }
}

/// The bit of [`Descriptor::is_routed`] in [`Descriptor::scheduler`], above those of [`scheduler`].
const ROUTED: u8 = 4;
/// The first bit of [`Descriptor::sampling`] in [`Descriptor::scheduler`].
pub const SAMPLING_SHIFT: u32 = 3;
/// The largest [`Descriptor::sampling`]: one in 65,536 flows.
pub const MOST_SAMPLING: u8 = 17;

/// Bits that the size of a ring takes at most, in [`Descriptor::previous`].
const PREVIOUS_SIZE_BITS: u32 = 29;
/// The bit after those: [`Descriptor::is_overlaid`].
const OVERLAID: u32 = 1 << PREVIOUS_SIZE_BITS;
/// What brings [`service_flag::FIELDS`] above that.
const PREVIOUS_FIELDS_SHIFT: u32 = PREVIOUS_SIZE_BITS + 1 - service_flag::FIELDS.trailing_zeros();

/// Bits of [`Descriptor::flags`].
pub mod service_flag {
    /// Every flow is recorded, not only those of slots that move.
    pub const ALWAYS: u16 = 1;
    /// The whole service moves: every slot counts as moving, with its origin on the previous ring.
    pub const MOVING: u16 = 2;
    /// Flows in progress are counted per backend.
    pub const COUNTED: u16 = 4;
    /// A flow's place on the ring depends on its source address alone, so that a client keeps its
    /// backend; else on addresses, ports and protocol.
    pub const BY_SOURCE: u16 = 8;
    /// It depends on addresses and protocol, so that a client keeps its backend for each VIP.
    pub const BY_THREE_TUPLE: u16 = 16;
    /// Those that say on which fields it depends.
    pub const FIELDS: u16 = BY_SOURCE | BY_THREE_TUPLE;
    /// In mode [`NAT`](super::mode::NAT), packets keep their destination port: the pool serves several.
    pub const KEEPS_PORT: u16 = 32;
    /// From this bit on, two that say what packets get while no backend may take them: one of
    /// [`refusal`](super::refusal).
    pub const REFUSAL_SHIFT: u32 = 6;
    /// Not everybody may send to it, or begin any number of flows: the pool's [`Guard`](super::Guard) says more.
    pub const GUARDED: u16 = 256;
    /// From this bit on, how many last bits of an address do not make another client of it, 0 to 127.
    pub const CLIENT_SHIFT: u32 = 9;
    /// Those under which even a steady slot looks its flows up.
    pub const TRACKED: u16 = ALWAYS | MOVING;
}

/// How a new flow's backend is chosen; the values of [`Descriptor::scheduler`].
pub mod scheduler {
    /// The owner of its slot.
    pub const RING: u8 = 0;
    /// The next of the sequence, in turns kept per CPU.
    pub const TURNS: u8 = 1;
    /// The fewest flows in progress for its weight.
    pub const LEAST: u8 = 2;
    /// The better of two drawn from the sequence, by flows in progress for its weight.
    pub const TWO_CHOICES: u8 = 3;
}

/// Both halves of a service.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServiceEntry {
    /// One is in force, the other is written aside.
    pub halves: [Descriptor; 2],
}

/// One slot of a ring: `owner` (15 bits), `origin` (15 bits), phase (2 bits). Ids are local to
/// the pool. Two slots make an element of the arena, the even one in its low half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot(pub u32);

/// Where a slot stands in a move (ARCHITECTURE.md, "Flow consistency").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `owner` takes every packet; no flow table.
    Steady,
    /// The owner changed: recorded flows stay, unrecorded old ones belong to `origin`.
    Moving,
    /// The moving time has passed: recorded flows stay, all others belong to `owner`.
    Settling,
}

impl Slot {
    /// Largest local id.
    pub const MAX_ID: u32 = (1 << 15) - 2;
    /// What stands where a local id would, for nobody.
    pub const NOBODY: u32 = Self::MASK;
    const MASK: u32 = (1 << 15) - 1;

    /// A steady slot of `owner`, which must be at most [`Slot::MAX_ID`].
    #[inline(always)]
    pub const fn steady(owner: u32) -> Self {
        Self::new(owner, owner, Phase::Steady)
    }

    /// A slot. Ids are cut to 15 bits.
    #[inline(always)]
    pub const fn new(owner: u32, origin: u32, phase: Phase) -> Self {
        let phase = match phase {
            Phase::Steady => 0,
            Phase::Moving => 1,
            Phase::Settling => 2,
        };
        Self((owner & Self::MASK) | ((origin & Self::MASK) << 15) | (phase << 30))
    }

    /// Local id of the backend that takes the slot's new flows.
    #[inline(always)]
    pub const fn owner(self) -> u32 {
        self.0 & Self::MASK
    }

    /// Local id of the backend that unrecorded old flows belong to while the slot moves.
    #[inline(always)]
    pub const fn origin(self) -> u32 {
        (self.0 >> 15) & Self::MASK
    }

    /// Local id of the backend that the slot's unrecorded flows belong to.
    #[inline(always)]
    pub fn keeper(self) -> u32 {
        if self.phase() == Phase::Moving {
            self.origin()
        } else {
            self.owner()
        }
    }

    /// Its phase.
    #[inline(always)]
    pub const fn phase(self) -> Phase {
        match self.0 >> 30 {
            0 => Phase::Steady,
            1 => Phase::Moving,
            _ => Phase::Settling,
        }
    }
}

/// One backend of a pool: which entry of the backend map it is. The indirection makes replacing
/// an entry (a new next hop) one store, and a backend's liveness one word.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Member {
    /// Index in the backend map; 0: nobody.
    pub backend: u32,
    /// How many backends had this local id before. A [`Record`] of another generation is of one that
    /// has gone.
    pub generation: u32,
    /// Its weight, for schedulers that compare flows in progress.
    pub weight: u16,
    /// Subsets that it is not of, a bit for each by its number: new flows of their clients are not for it.
    pub apart: u16,
    /// Flows in progress at which it takes no new ones; 0: no limit.
    pub limit: u32,
}

/// How to reach a backend. Written once, before a [`Member`] names it; only [`Backend::state`]
/// changes afterwards.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Backend {
    /// Its address.
    pub address: Address,
    /// Source address of an encapsulation, before the flow hash is mixed in.
    pub source: Address,
    /// Bits of the source's last word (network order) that the flow hash sets.
    pub source_mask: u32,
    /// Bits of [`state`].
    pub state: u8,
    /// IANA protocol number of its service.
    pub protocol: u8,
    /// The longest IP packet, in bytes and as it arrives, that can be sent to it ([`crate::mtu::room`]).
    pub mtu: u16,
    /// Interface of its next hop, with [`UPPER`] where that stands over others.
    pub interface: u32,
    /// Index in the backend counters.
    pub counters: u32,
    /// MAC address of its next hop.
    pub destination_mac: [u8; 6],
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// Port, as in [`Endpoint::port`].
    pub port: u16,
    /// What the MSS of SYNs to it is lowered to: bytes, [`mss::AUTO`](crate::mss::AUTO) or
    /// [`mss::OFF`](crate::mss::OFF).
    pub mss: u16,
}

/// Bits of [`Backend::state`]. Neither: it is dead, and its flows go elsewhere.
pub mod state {
    /// Takes new flows.
    pub const TAKES: u8 = 1;
    /// Keeps the flows that it has.
    pub const HOLDS: u8 = 2;
}

/// What a `nat` backend's answers become.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct WayBack {
    /// The VIP's address.
    pub address: Address,
    /// The VIP's port, as in [`Endpoint::port`]; 0: that of the answer.
    pub port: u16,
    /// What the MSS of its SYNs is lowered to, in bytes; 0: it is not.
    pub mss: u16,
    /// Index of the backend's counters + 1 where its answers are signs of how it is
    /// ([`crate::passive`]); 0: they are not looked at.
    pub watched: u32,
}

/// What an address is to the balancer, beyond its services; the bits of the address map's values.
pub mod owned {
    /// The address of a service.
    pub const VIP: u32 = 1;
    /// An address of this host.
    pub const LOCAL: u32 = 2;
    /// An address of a pool that mode `full-nat` takes ports of.
    pub const POOL: u32 = 4;
    /// A VIP for which neighbours are answered ([`crate::neighbour`]).
    pub const ANNOUNCED: u32 = 8;
}

/// An interface that VIPs are announced on.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Interface {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Always zero.
    pub zeros: [u8; 2],
}

/// What the connection ids of a QUIC server begin with. Words have their first byte lowest.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct ServerKey {
    /// The configuration in the upper three bits of the first byte, the length of the server id in the
    /// other five; then the server id, zeros behind it.
    pub id: [u64; 2],
    /// Index of the service.
    pub service: u32,
    /// Always zero.
    pub zero: u32,
}

/// Which backend has a server id.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Server {
    /// Its local id.
    pub member: u32,
    /// Its [`Member::generation`]: of another one, the id names nobody.
    pub generation: u32,
}

/// Time in units of 2²⁰ ns (1.05 ms) of `CLOCK_MONOTONIC`, cut to 32 bits. It wraps after 52 days, so
/// only differences of less than 26 mean anything.
pub type Tick = u32;

/// Base-two logarithm of the nanoseconds of a [`Tick`].
pub const TICK_SHIFT: u32 = 20;

/// Ticks in a second, rounded up.
pub const SECOND: Tick = 954;

/// The two flow tables. Neither ever evicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Flows of which a packet after the first was seen.
    Established,
    /// Flows of which one packet was seen: what a flood of first packets can fill.
    HalfOpen,
}

/// What a flow is recorded under.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    /// The client's address.
    pub source: Address,
    /// The client's port, as in [`Endpoint::port`].
    pub port: u16,
    /// One of [`flow_kind`].
    pub kind: u16,
    /// Index of the service, which stands for the other end and the protocol; of a client, the number of
    /// the pool.
    pub service: u16,
    /// The port that it goes to, as in [`Endpoint::port`], of a service that has several ports or addresses; else 0.
    pub to: u16,
    /// The last eight bytes of the address that it goes to, of such a service; else 0.
    pub host: u64,
}

/// What a [`FlowKey`] stands for.
pub mod flow_kind {
    /// A flow.
    pub const FLOW: u16 = 0;
    /// All new flows of a client ([`crate::persist`]): the first bits of its address, and no port.
    pub const CLIENT: u16 = 1;
    /// None: the agent, which has taken out the lock of a port ([`PortKey::lock`](super::PortKey::lock)).
    pub const AGENT: u16 = 2;
}

/// Which backend a flow has, and when its last packet came. One that has expired
/// ([`crate::track::live`]) counts for nothing.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Record {
    /// Local id of the backend.
    pub member: u16,
    /// Bits of [`record_flag`].
    pub flags: u16,
    /// [`Member::generation`] at the time.
    pub generation: u32,
    /// When its last packet came.
    pub stamp: Tick,
    /// When it was recorded.
    pub since: Tick,
}

/// Bits of [`Record::flags`].
pub mod record_flag {
    /// Nothing but its opening packets has come yet.
    pub const OPENING: u16 = 1;
    /// The client has sent a FIN.
    pub const FINISHED: u16 = 2;
    /// The client's last packet was a RST.
    pub const RESET: u16 = 4;
    /// It counts among its backend's flows in progress.
    pub const COUNTED: u16 = 8;
    /// Of a [`Session`](super::Session): the backend has sent a FIN.
    pub const BACKEND_FINISHED: u16 = 16;
    /// Likewise: the backend's last packet was a RST.
    pub const BACKEND_RESET: u16 = 32;
    /// Likewise: its handshake with the client was answered here ([`Proxied`](super::Proxied)).
    pub const PROXIED: u16 = 64;
    /// Likewise: and the backend has not answered its SYN yet.
    pub const AWAITS: u16 = 128;
    /// Likewise: a SYN of its client has been answered by a cookie since. What the client acknowledges now may be that.
    pub const REOPENS: u16 = 256;
}

/// How a service's packets found their backends where the ring alone did not say, one CPU's share.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowCounters {
    /// Packets that looked their flow up.
    pub lookups: u64,
    /// Flows recorded.
    pub recorded: u64,
    /// Choices that could not be recorded, since the table was full.
    pub overflows: u64,
    /// Packets whose connection id named their backend.
    pub named: u64,
    /// Clients that could not be remembered, likewise.
    pub client_overflows: u64,
    /// Packets of established flows that stayed recorded among the half-open ones, likewise. They keep
    /// their place there, so nothing waits for them.
    pub promotion_overflows: u64,
    /// Packets dropped since the access list denies their source.
    pub denied: u64,
    /// Packets that would have begun a flow, of more than their source may begin.
    pub source_limited: u64,
    /// The same, of more than all may begin.
    pub service_limited: u64,
    /// Flows that found no free port of the address pool, or no room for their session.
    pub ports_exhausted: u64,
    /// Packets that were to tell the client's address, and had no room for it.
    pub untold: u64,
    /// SYNs answered by a cookie.
    pub cookies_sent: u64,
    /// Packets that acknowledged one.
    pub cookies_valid: u64,
    /// Packets that might have, and did not.
    pub cookies_invalid: u64,
}

/// What is counted in [`FlowCounters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEvent {
    /// A packet looked its flow up.
    Lookup,
    /// A flow was recorded.
    Recorded,
    /// A choice could not be recorded.
    Overflow,
    /// A flow that was recorded when it was half-open found no room among the established ones.
    PromotionOverflow,
    /// A packet's connection id named its backend.
    Named,
    /// A client could not be remembered.
    ClientOverflow,
    /// A packet's source was denied.
    Denied,
    /// A source's flow was one too many.
    SourceLimit,
    /// A service's was.
    ServiceLimit,
    /// A flow found no port, or no room.
    PortsExhausted,
    /// A packet could not tell the client's address.
    Untold,
    /// A SYN was answered by a cookie.
    CookieSent,
    /// A packet acknowledged one.
    CookieValid,
    /// A packet might have, and did not.
    CookieInvalid,
}

impl FlowCounters {
    /// Adds one event.
    #[inline(always)]
    pub fn add(&mut self, event: FlowEvent) {
        let counter = match event {
            FlowEvent::Lookup => &mut self.lookups,
            FlowEvent::Recorded => &mut self.recorded,
            FlowEvent::Overflow => &mut self.overflows,
            FlowEvent::PromotionOverflow => &mut self.promotion_overflows,
            FlowEvent::Named => &mut self.named,
            FlowEvent::ClientOverflow => &mut self.client_overflows,
            FlowEvent::Denied => &mut self.denied,
            FlowEvent::SourceLimit => &mut self.source_limited,
            FlowEvent::ServiceLimit => &mut self.service_limited,
            FlowEvent::PortsExhausted => &mut self.ports_exhausted,
            FlowEvent::Untold => &mut self.untold,
            FlowEvent::CookieSent => &mut self.cookies_sent,
            FlowEvent::CookieValid => &mut self.cookies_valid,
            FlowEvent::CookieInvalid => &mut self.cookies_invalid,
        };
        *counter = counter.wrapping_add(1);
    }
}

/// Traffic of a service or backend, one CPU's share.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Counters {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes as they arrived.
    pub bytes: u64,
    /// Those among them that open a connection: TCP SYNs without ACK, Initials of QUIC services.
    pub flows: u64,
}

impl Counters {
    /// Adds one packet.
    #[inline(always)]
    pub fn add(&mut self, bytes: u64, new_flow: bool) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
        self.flows = self.flows.wrapping_add(u64::from(new_flow));
    }
}

/// Where the kernel would send a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The egress interface, as in [`Backend::interface`].
    pub interface: u32,
    /// MAC address of the next hop.
    pub destination_mac: [u8; 6],
    /// MAC address of the egress interface.
    pub source_mac: [u8; 6],
}

/// Why there is no [`Route`] for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoute {
    /// The kernel can send it, as the program cannot: it has to find its neighbour first, say.
    Kernels,
    /// It is longer than the way takes, which is so many bytes.
    TooLong(u16),
    /// Nor can the kernel, which tells the sender so where it is of use; or it is this host's.
    Refused,
}

/// What becomes of a record to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It stands.
    Done,
    /// There is one already.
    Taken,
    /// The table is full.
    Full,
}

/// What a route is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteQuery {
    /// Source of the packet as it will leave.
    pub source: Address,
    /// Its destination.
    pub destination: Address,
    /// Its length at layer 3.
    pub length: u16,
}

/// The maps, as the pipeline sees them: the kernel's in the XDP program, [`crate::memory`]'s on the
/// host. An index out of bounds is `None`. Counting and recording take `&self`, as they do in the kernel.
pub trait Tables {
    /// The control element.
    fn control(&self) -> Option<&Control>;
    /// Whether this is loaded for any of some features, bits of [`feature`]. Only what it is loaded for is in the tables. A constant
    /// to the kernel's verifier, which takes out what cannot be reached.
    fn knows(&self, feature: u32) -> bool;
    /// Whether anything uses one that it is loaded for.
    fn uses(&self, feature: u32) -> bool;
    /// The generation in force, read once.
    fn generation(&self) -> u64;
    /// A bucket of the look-up table of services.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// A service's entry.
    fn service_entry(&self, index: u32) -> Option<&ServiceEntry>;
    /// Two slots of the arena: `2 * index` in the low half, the next one in the high half.
    fn slots(&self, index: u32) -> Option<u64>;
    /// The entry of the service that a place of a bucket leads to. Where a map's key lies in a map, it need not be
    /// copied to the stack first, and read back from there.
    #[inline(always)]
    fn service_entry_of(&self, place: &u32) -> Option<&ServiceEntry> {
        self.service_entry(place.wrapping_sub(1))
    }
    /// A member.
    fn member(&self, index: u32) -> Option<&Member>;
    /// A backend.
    fn backend(&self, index: u32) -> Option<&Backend>;
    /// The one that a member names; likewise.
    #[inline(always)]
    fn backend_of(&self, member: &Member) -> Option<&Backend> {
        self.backend(member.backend)
    }
    /// What the answers of a `nat` backend become.
    fn way_back(&self, key: &Endpoint) -> Option<WayBack>;
    /// Whether an answer of this kind may be given now, of those that are allowed in a second; it
    /// counts as given then.
    fn may_answer(&self, answer: Answer) -> bool;
    /// Leaves word for the program that goes on with the packet.
    fn hand_over(&self, handover: Handover);
    /// What was left for this one.
    fn handed_over(&self) -> Handover;
    /// Which backend has a server id.
    fn server(&self, key: &ServerKey) -> Option<Server>;
    /// What an address is to the balancer by itself: bits of [`owned`].
    fn owned(&self, address: &Address) -> u32;
    /// The number of the class of the longest prefix of VIPs that holds an address, as of either half; 0: there is
    /// none.
    fn class(&self, key: &VipKey) -> [u32; 2];
    /// Index + 1 of the service that has a port of a class; 0: none.
    fn class_port(&self, key: &ClassKey) -> u32;
    /// The hardware address of an interface that VIPs are announced on, by its index.
    fn hardware_address(&self, interface: u32) -> Option<[u8; 6]>;
    /// What has been taken off the frame at hand, if anything: never in the program that sees frames first.
    fn tagged(&self) -> Option<Tagged>;
    /// Notes that.
    fn note_tags(&self, tagged: &Tagged);
    /// The VLAN device that frames are of, with [`UPPER`].
    fn vlan(&self, key: &VlanKey) -> Option<u32>;
    /// What a device stands over, by its index.
    fn upper(&self, interface: u32) -> Option<&Upper>;
    /// The interface that the frame at hand is of: the one that it came in by, or the VLAN device over that.
    #[inline(always)]
    fn ingress<P: Packet>(&self, packet: &P) -> u32 {
        match self.tagged() {
            Some(tagged) => tagged.interface,
            None => packet.interface(),
        }
    }
    /// Where the kernel would send a packet.
    ///
    /// # Errors
    /// Why it is the kernel's to deal with.
    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute>;
    /// Adds a forwarded packet to a service's counters.
    fn count_service(&self, index: u32, bytes: u64, new_flow: bool);
    /// Adds a forwarded packet to a backend's counters.
    fn count_backend(&self, backend: &Backend, bytes: u64, new_flow: bool);
    /// Counts a dropped packet.
    fn count_drop(&self, reason: DropReason);
    /// Counts an answer, or that there is none.
    fn count_answer(&self, answer: Answer);

    /// Counts a fragment.
    fn count_piece(&self, piece: Piece);

    /// Lets `visit` read and change what is known of a datagram in place, where there is anything.
    fn visit_datagram<R>(
        &self,
        key: &FragmentKey,
        visit: impl FnOnce(&mut Datagram) -> R,
    ) -> Option<R>;
    /// Remembers what the first fragment of a datagram came to, as `fill` makes it of nothing, whatever was known
    /// before; perhaps at the cost of what another one of long ago came to.
    fn note_datagram(&self, key: &FragmentKey, fill: impl FnOnce(&mut Datagram));
    /// Keeps the frame of a fragment of `key` that belongs at `offset`, until the agent gives it back; false where
    /// it cannot be, or there have been more in this second than may be.
    fn hold<P: Packet>(&self, packet: &P, key: &FragmentKey, offset: u32) -> bool;

    /// What guards the services of a pool.
    fn guards(&self, pool: u32) -> Option<&GuardEntry>;
    /// What the longest prefix of an access list says that a key has: one of [`access`](mod@access); 0 where there
    /// is none.
    fn access(&self, key: &AccessKey) -> u32;
    /// Takes one of a source's bucket, by [`rate::take`](crate::rate::take); whether there was one.
    fn take_of_source(&self, key: &SourceKey, rate: &Rate) -> bool;
    /// The same of a service's own.
    fn take_of_service(&self, service: u32, rate: &Rate) -> bool;
    /// The same of the one that flows take of which begin unproxied.
    fn take_of_unproxied(&self, service: u32, rate: &Rate) -> bool;

    /// The cookie that answers a SYN of a flow with this sequence number, whose sender takes segments of `mss` bytes, and the
    /// largest segment, no longer than that, which the cookie stands for. It depends on the time, and on nothing that is kept of
    /// the SYN. `None` where there is none.
    fn cookie(&self, flow: &Flow, sequence: u32, mss: u16) -> Option<(u32, u16)>;
    /// Whether that is one that [`Tables::cookie`] has given a SYN of the flow in the last minutes.
    fn is_cookie(&self, flow: &Flow, sequence: u32, cookie: u32) -> bool;

    /// The time.
    fn now(&self) -> Tick;
    /// Lets `visit` read and change a flow's record in place, where there is one.
    fn visit<R>(
        &self,
        table: Table,
        key: &FlowKey,
        visit: impl FnOnce(&mut Record) -> R,
    ) -> Option<R>;
    /// Records a flow; over what is recorded for it only if told to, in one step with finding that out.
    fn record(&self, table: Table, key: &FlowKey, record: &Record, over: bool) -> Recorded;
    /// Removes a flow's record.
    fn forget(&self, table: Table, key: &FlowKey);
    /// Lets `visit` read and change a session in place, where there is one.
    fn visit_session<R>(&self, key: &FlowKey, visit: impl FnOnce(&mut Session) -> R) -> Option<R>;
    /// Takes flags, bits of [`record_flag`], off a session's record, in one step whatever other CPUs do to it at the time;
    /// those that it had.
    fn clear_flags(&self, record: &mut Record, flags: u16) -> u16;
    /// The reverse.
    fn set_flags(&self, record: &mut Record, flags: u16) -> u16;
    /// Keeps a session where there is none, in one step with finding that out.
    fn put_session(&self, key: &FlowKey, session: &Session) -> Recorded;
    /// Removes a session.
    fn remove_session(&self, key: &FlowKey);
    /// Whose a port is, or its lock.
    fn port(&self, key: &PortKey) -> Option<FlowKey>;
    /// Gives a port to a flow, or its lock, unless it is somebody's.
    fn claim_port(&self, key: &PortKey, flow: &FlowKey) -> Recorded;
    /// Gives a port that is somebody's to another flow; whether it could.
    fn hand_port_on(&self, key: &PortKey, flow: &FlowKey) -> bool;
    /// Takes a port back, or its lock.
    fn release_port(&self, key: &PortKey);
    /// An address of a pool.
    fn pool_address(&self, key: &PoolKey) -> Option<Address>;
    /// Counts what the flow tables do for a service.
    fn count_flow(&self, service: u32, event: FlowEvent);
    /// Flows in progress of a backend, by the index of its counters.
    fn load(&self, counters: u32) -> u32;
    /// Adds to them; may go below zero for a moment, which reads as zero.
    fn add_load(&self, counters: u32, change: i32);
    /// Whose turn it is in a pool's sequence: rises by one with every call on the same CPU.
    fn turn(&self, pool: u32) -> u32;

    /// The time in nanoseconds of `CLOCK_MONOTONIC`, exactly: for packets of which there are few.
    fn exact_now(&self) -> u64;
    /// The interface that a backend's answers come in by, by the index of its counters; 0: none count.
    fn comes_by(&self, counters: u32) -> u32;
    /// Adds to what a backend has shown.
    fn add_sign(&self, counters: u32, sign: Sign, amount: u64);
    /// Ends a backend's failures in a row, where there are any.
    fn end_streak(&self, counters: u32);
    /// Lets `visit` read and change the handshake at a place, below [`HANDSHAKES`].
    fn visit_handshake<R>(&self, place: u32, visit: impl FnOnce(&mut Handshake) -> R) -> Option<R>;

    /// [`passive::note`] of these tables, perhaps by a call; so is the one that follows.
    #[inline(always)]
    fn note(&self, counters: u32, said: passive::Said, interface: u32)
    where
        Self: Sized,
    {
        passive::note(self, counters, said, interface);
    }

    /// [`passive::follow`] of these tables.
    #[inline(always)]
    fn follow_handshake(&self, step: passive::Step)
    where
        Self: Sized,
    {
        passive::follow(self, step);
    }

    /// [`admit::judge_source`] of these tables, perhaps by a call; so is the one that follows.
    #[inline(always)]
    fn admits_source(&self, request: admit::Request) -> u32
    where
        Self: Sized,
    {
        admit::judge_source(self, &request)
    }

    /// [`admit::judge_flow`] of these tables.
    #[inline(always)]
    fn admits_flow(&self, request: admit::Request, recorded: bool) -> u32
    where
        Self: Sized,
    {
        admit::judge_flow(self, &request, recorded)
    }

    /// [`steer::find`] of these tables, perhaps by a call.
    #[inline(always)]
    fn find_apart(&self, endpoint: Endpoint, half: u32) -> u32
    where
        Self: Sized,
    {
        steer::find(self, &endpoint, half)
    }

    /// [`steer::owned_as_prefix`] of these tables, perhaps by a call.
    #[inline(always)]
    fn owned_as_prefix(&self, address: Address) -> u32
    where
        Self: Sized,
    {
        steer::owned_as_prefix(self, address)
    }

    /// [`steer::subset`] of these tables, perhaps by a call.
    #[inline(always)]
    fn subset(&self, source: Address, table: RouteTable) -> u32
    where
        Self: Sized,
    {
        steer::subset(self, source, table)
    }

    /// [`schedule::pick`] of these tables, perhaps by a call; so are the two that follow.
    #[inline(always)]
    fn pick(&self, service: u32, half: u32, hash: FlowHash, spot: Spot) -> u32
    where
        Self: Sized,
    {
        schedule::pick(self, service, half, hash, spot)
    }

    /// [`schedule::least`] of these tables.
    #[inline(always)]
    fn least(&self, service: u32, half: u32, subset: u32) -> u32
    where
        Self: Sized,
    {
        schedule::least(self, service, half, subset)
    }

    /// [`schedule::lightest`] of these tables.
    #[inline(always)]
    fn lightest(&self, service: u32, half: u32, subset: u32, start: u32) -> u32
    where
        Self: Sized,
    {
        schedule::lightest(self, service, half, subset, start)
    }

    /// [`quic::route`] of these tables, perhaps by a call.
    #[inline(always)]
    fn route_by_id(&self, service: u32, half: u32, start: Start) -> u32
    where
        Self: Sized,
    {
        quic::route(self, service, half, start)
    }

    /// [`persist::recall`] of these tables, perhaps by a call; so are the two that follow.
    #[inline(always)]
    fn recall(&self, question: &Question) -> u32
    where
        Self: Sized,
    {
        persist::recall(self, question)
    }

    /// [`persist::remember`] of these tables.
    #[inline(always)]
    fn remember(&self, question: &Question, id: u32)
    where
        Self: Sized,
    {
        persist::remember(self, question, id);
    }

    /// Puts a question where the functions find it that the kernel's verifier takes by themselves. [`Tables::track`] and
    /// [`Tables::choose`] do so too; what they go on with has it from there.
    #[inline(always)]
    fn ask(&self, _question: &Question) {}

    /// [`persist::confirm`] of these tables, of the question that was asked last.
    #[inline(always)]
    fn confirm(&self, question: &Question, id: u32)
    where
        Self: Sized,
    {
        persist::confirm(self, question, id);
    }

    /// [`track::choose`] of these tables, perhaps by a call.
    #[inline(always)]
    fn choose(&self, question: &Question) -> u32
    where
        Self: Sized,
    {
        track::choose(self, question)
    }

    /// [`session::begin`] of these tables, perhaps by a call; the question is the one that [`Tables::choose`] has
    /// been asked.
    #[inline(always)]
    fn begin_session(&self, question: &Question, id: u32, proxied: Proxied) -> u32
    where
        Self: Sized,
    {
        let mut place = session::Opening::default();
        session::begin(self, question, id, proxied, &mut place)
    }

    /// [`session::take_over`] of these tables likewise.
    #[inline(always)]
    fn take_over(&self, question: &Question, id: u32, proxied: Proxied) -> u32
    where
        Self: Sized,
    {
        let mut place = session::Opening::default();
        session::take_over(self, question, id, proxied, &mut place)
    }

    /// [`track::answer`] of these tables, perhaps by a call.
    #[inline(always)]
    fn track(&self, question: &Question) -> u32
    where
        Self: Sized,
    {
        track::settle(|over| {
            let question = Question { over, ..*question };
            track::answer(self, &question)
        })
    }
}

const _: () = {
    assert!(size_of::<Endpoint>() == 24);
    assert!(size_of::<Bucket>() == 16);
    assert!(size_of::<Descriptor>() == 64, "one cache line");
    assert!(size_of::<ServiceEntry>() == 128);
    assert!(size_of::<Member>() == 16);
    assert!(size_of::<Backend>() == 64, "one cache line");
    assert!(size_of::<WayBack>() == 24);
    assert!(size_of::<Interface>() == 8);
    assert!(size_of::<Handover>() == 8);
    assert!(size_of::<Counters>() == 24);
    assert!(size_of::<Control>() == 120);
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<Record>() == 16);
    assert!(size_of::<ServerKey>() == 24);
    assert!(size_of::<Server>() == 8);
    assert!(size_of::<FlowCounters>() == 112);
    assert!(size_of::<Signs>() == 64, "one cache line");
    assert!(size_of::<Handshake>() == 32);
};
