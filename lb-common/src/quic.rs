//! QUIC, where a service has it: what a datagram's first bytes say of its connection, and which backend
//! its connection id names. Reads tables, records nothing; whatever no id leads anywhere with is
//! [`crate::steer`]'s.
//!
//! Connection ids are those of draft-ietf-quic-load-balancers-21 without a key: a first octet of three
//! bits that name the configuration and five that are the server's own, the server id, the nonce. Only
//! what all versions have in common is read of a header (RFC 8999), and which packets are Initials of
//! versions 1 and 2 (RFC 9000 §17.2.2, RFC 9369 §3.2).

use crate::{
    flow::Flow,
    packet::Packet,
    steer::{self, Service},
    tables::{FlowEvent, ServerKey, Tables},
    wire::{self, QuicStart},
};

/// Longest server id in bytes.
pub const MAX_SERVER_ID: u8 = 15;
/// Shortest nonce in bytes.
pub const MIN_NONCE: u8 = 4;
/// Longest server id and nonce together, in bytes: with the first octet, the longest connection id of
/// versions 1 and 2.
pub const MAX_ID: u8 = 19;
/// The configuration that a server without one names: such ids lead nowhere.
pub const UNROUTABLE: u8 = 7;

/// Version 1 (RFC 9000).
const V1: u32 = 1;
/// Version 2 (RFC 9369).
const V2: u32 = 0x6b33_43cf;

/// What [`route`] says of a packet that no connection id leads anywhere, and that begins nothing.
pub const STEER: u32 = 0;
/// What it says of such a packet that begins a connection; larger than any index of a backend.
pub const OPENS: u32 = u32::MAX;

/// How long the parts of a service's connection ids are, in a byte; 0: the service is not QUIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths(pub u8);

impl Lengths {
    /// Of a server id of 1 to [`MAX_SERVER_ID`] bytes and a nonce of [`MIN_NONCE`] bytes or more,
    /// [`MAX_ID`] together at most.
    pub const fn new(server_id: u8, nonce: u8) -> Self {
        Self((server_id << 4) | (nonce.wrapping_sub(MIN_NONCE) & 0xf))
    }

    /// Bytes of the server id.
    #[inline(always)]
    pub const fn server_id(self) -> u32 {
        (self.0 >> 4) as u32
    }

    /// Bytes of the whole connection id.
    #[inline(always)]
    pub const fn connection_id(self) -> u32 {
        1 + self.server_id() + (self.0 & 0xf) as u32 + MIN_NONCE as u32
    }
}

/// The first 24 bytes of a datagram, each word's first byte its lowest. No QUIC packet with an id of
/// this kind is shorter: behind six bytes of id there are 20 at least (RFC 9001 §5.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start(pub [u64; 3]);

impl Start {
    /// The first bytes of a packet of UDP; `None` where it has fewer.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, flow: &Flow) -> Option<Self> {
        let offset = flow.transport + wire::UDP;
        if offset + size_of::<QuicStart>() > wire::ETHERNET + usize::from(flow.length) {
            return None;
        }
        let QuicStart { words } = packet.read(offset)?;
        Some(Self(words.map(u64::from_le_bytes)))
    }

    #[inline(always)]
    const fn is_long(self) -> bool {
        let Self([first, ..]) = self;
        first & 0x80 != 0
    }

    /// Whether it is an Initial of a version in which that is known.
    #[inline(always)]
    const fn is_initial(self) -> bool {
        let Self([first, ..]) = self;
        let kind = first & 0xb0;
        let version = ((first >> 8) as u32).swap_bytes();
        (kind == 0x80 && version == V1) || (kind == 0x90 && version == V2)
    }

    /// The first 16 bytes of the destination connection id, as words; what follows it where it is
    /// shorter.
    #[inline(always)]
    const fn id(self) -> [u64; 2] {
        let Self([first, second, third]) = self;
        if self.is_long() {
            [
                (first >> 48) | (second << 16),
                (second >> 48) | (third << 16),
            ]
        } else {
            [(first >> 8) | (second << 56), (second >> 8) | (third << 56)]
        }
    }

    /// Whether its destination connection id may be of these lengths. A short header does not tell.
    #[inline(always)]
    const fn fits(self, lengths: Lengths) -> bool {
        let Self([first, ..]) = self;
        !self.is_long() || (first >> 40) as u8 as u32 == lengths.connection_id()
    }
}

impl ServerKey {
    /// What the connection ids of a server begin with, of a service by its index. `server_id` is cut to
    /// [`MAX_SERVER_ID`] bytes.
    pub fn new(service: u32, config_id: u8, server_id: &[u8]) -> Self {
        let mut bytes = [0; 16];
        let [first, rest @ ..] = &mut bytes;
        *first = config_id << 5;
        let length = server_id.len().min(rest.len());
        for (to, from) in rest.iter_mut().zip(server_id) {
            *to = *from;
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        let words = [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]];
        Self::of(service, words.map(u64::from_le_bytes), length as u32)
    }

    /// The configuration.
    pub const fn config_id(&self) -> u8 {
        let [first, _] = self.id;
        (first as u8) >> 5
    }

    /// Bytes of the server id.
    pub const fn length(&self) -> u32 {
        let [first, _] = self.id;
        (first & 0x1f) as u32
    }

    /// What a connection id names, of which these are the first 16 bytes. The length stands where the
    /// server's own bits were, so that ids of another length are other ids.
    #[inline(always)]
    const fn of(service: u32, [first, second]: [u64; 2], length: u32) -> Self {
        let kept = length + 1;
        let beyond = kept.saturating_sub(8);
        Self {
            id: [
                (first & mask(kept) & !0x1f) | length as u64,
                second & mask(beyond),
            ],
            service,
            zero: 0,
        }
    }
}

/// The lowest `bytes` of a word.
#[inline(always)]
const fn mask(bytes: u32) -> u64 {
    if bytes >= 8 {
        u64::MAX
    } else {
        (1 << (8 * bytes)) - 1
    }
}

/// Index of the backend that a packet's connection id names, while that holds flows; else [`OPENS`] or
/// [`STEER`]. `half` is the half of the service in force.
#[inline(always)]
pub fn route<T: Tables>(tables: &T, service: u32, half: u32, start: Start) -> u32 {
    let Some(service) = Service::at(tables, service, half) else {
        return STEER;
    };
    let lengths = Lengths(service.descriptor.quic);
    if start.fits(lengths) {
        let key = ServerKey::of(service.index, start.id(), lengths.server_id());
        let index = named(tables, &service, &key);
        if index != STEER {
            tables.count_flow(service.index, FlowEvent::Named);
            return index;
        }
    }
    if start.is_initial() { OPENS } else { STEER }
}

/// The backend of a server id, as long as it is the one that was given it.
#[inline(always)]
fn named<T: Tables>(tables: &T, service: &Service<'_>, key: &ServerKey) -> u32 {
    let Some(server) = tables.server(key) else {
        return STEER;
    };
    match steer::candidate(tables, service.descriptor, server.member) {
        Some(candidate)
            if candidate.member.generation == server.generation && candidate.holds() =>
        {
            candidate.member.backend
        }
        _ => STEER,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// A datagram's first bytes.
    fn start(bytes: &[u8]) -> Start {
        let mut padded = [0xee; 24];
        padded[..bytes.len()].copy_from_slice(bytes);
        let mut words = [0; 3];
        for (word, chunk) in words.iter_mut().zip(padded.chunks(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap());
        }
        Start(words)
    }

    fn long(first: u8, version: u32, id: &[u8]) -> Start {
        let mut bytes = Vec::from([first]);
        bytes.extend(version.to_be_bytes());
        bytes.push(id.len() as u8);
        bytes.extend(id.iter().take(18));
        start(&bytes)
    }

    fn short(id: &[u8]) -> Start {
        let mut bytes = Vec::from([0x4a]);
        bytes.extend(id);
        start(&bytes)
    }

    fn key(start: Start, lengths: Lengths) -> Option<ServerKey> {
        let key = ServerKey::of(3, start.id(), lengths.server_id());
        start.fits(lengths).then_some(key)
    }

    /// Configuration, server id, nonce, connection id.
    type Vector = (u8, &'static [u8], &'static [u8], &'static [u8]);

    /// Those of the draft, "Unencrypted CIDs". It prints octets of the second without their leading zeros.
    const VECTORS: [Vector; 2] = [
        (
            0,
            &[0xc4, 0x60, 0x5e],
            &[0x45, 0x04, 0xcc, 0x4f],
            &[0x07, 0xc4, 0x60, 0x5e, 0x45, 0x04, 0xcc, 0x4f],
        ),
        (
            1,
            &[0x35, 0x0d, 0x28, 0xb4, 0x20],
            &[0x34, 0x87, 0xd9, 0x70, 0x0b],
            &[
                0x2a, 0x35, 0x0d, 0x28, 0xb4, 0x20, 0x34, 0x87, 0xd9, 0x70, 0x0b,
            ],
        ),
    ];

    #[test]
    fn the_drafts_unencrypted_connection_ids_name_their_servers() {
        for (config_id, server_id, nonce, id) in VECTORS {
            let lengths = Lengths::new(server_id.len() as u8, nonce.len() as u8);
            let wanted = Some(ServerKey::new(3, config_id, server_id));
            assert_eq!(key(short(id), lengths), wanted);
            assert_eq!(key(long(0xc0, V1, id), lengths), wanted);
            assert_eq!(key(long(0xd0, V2, id), lengths), wanted);
            // Of any version whatever.
            assert_eq!(key(long(0x80, 0xfaca_de00, id), lengths), wanted);
        }
    }

    #[test]
    fn ids_of_every_length_name_their_servers_whatever_the_nonce_and_the_first_octets_own_bits() {
        for length in 1..=MAX_SERVER_ID {
            for nonce in MIN_NONCE..=MAX_ID - length {
                let lengths = Lengths::new(length, nonce);
                let server_id: Vec<u8> = (1..=length).map(|n| n * 17).collect();
                let mut id = Vec::from([0xa0 | (nonce & 0x1f)]);
                id.extend(&server_id);
                id.extend((0..nonce).map(|n| 0xff - n));
                assert_eq!(lengths.server_id(), u32::from(length));
                assert_eq!(lengths.connection_id() as usize, id.len());
                assert_ne!(lengths.0, 0);
                let server = ServerKey::new(3, 5, &server_id);
                assert_eq!((server.config_id(), server.length()), (5, length.into()));
                let wanted = Some(server);
                assert_eq!(key(short(&id), lengths), wanted, "{id:x?}");
                assert_eq!(key(long(0xe3, V1, &id), lengths), wanted, "{id:x?}");
            }
        }
    }

    #[test]
    fn a_long_header_with_an_id_of_another_length_names_nobody() {
        let lengths = Lengths::new(2, 5);
        for length in 0..=20 {
            let id = [0x20; 20];
            let found = key(long(0xc0, V1, &id[..length]), lengths);
            assert_eq!(found.is_some(), length == 8, "{length}");
        }
    }

    #[test]
    fn server_ids_that_begin_alike_are_told_apart() {
        let keys = [
            ServerKey::new(3, 0, &[1]),
            ServerKey::new(3, 0, &[1, 0]),
            ServerKey::new(3, 1, &[1]),
            ServerKey::new(4, 0, &[1]),
            ServerKey::new(3, 0, &[2]),
        ];
        for (n, one) in keys.iter().enumerate() {
            for (m, other) in keys.iter().enumerate() {
                assert_eq!(one == other, n == m, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn initials_of_both_versions_begin_connections_and_nothing_else_does() {
        let id = [0; 8];
        for (first, version, wanted) in [
            (0xc0, V1, true),
            // The fixed bit may be anything (RFC 9287).
            (0x8f, V1, true),
            (0xd0, V1, false),
            (0xe0, V1, false),
            (0xf0, V1, false),
            (0xd0, V2, true),
            (0xc0, V2, false),
            (0xe0, V2, false),
            (0xc0, 0, false),
            (0xc0, 0x0a0a_0a0a, false),
            (0x40, V1, false),
        ] {
            let found = long(first, version, &id).is_initial();
            assert_eq!(found, wanted, "{first:x} {version:x}");
        }
    }
}
