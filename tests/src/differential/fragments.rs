//! Datagrams in fragments: in order, out of order, twice, overlapping, too short and too long, several of them
//! interleaved. Makes frames alone.

use std::net::{IpAddr, SocketAddr};

use super::frames::{Generator, ethernet};

/// Datagrams under way at a time.
const OPEN: usize = 8;

/// A datagram of which fragments are still to come.
#[derive(Debug)]
pub struct Open {
    from: SocketAddr,
    to: SocketAddr,
    id: u32,
    protocol: u8,
    /// What stands before the fragment header, and its own number, and what that is before.
    before: (u8, Vec<u8>),
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
struct Piece {
    /// In bytes.
    offset: usize,
    bytes: Vec<u8>,
    more: bool,
}

impl Generator {
    /// The next fragment of one of the datagrams under way.
    pub(super) fn fragment(&mut self) -> Vec<u8> {
        if self.open.len() < OPEN {
            let open = self.datagram();
            self.open.push(open);
        }
        let which = self.random.below(self.open.len() as u64);
        let open = &mut self.open[which];
        let piece = open.pieces.remove(0);
        let frame = frame(open, &piece);
        if open.pieces.is_empty() {
            self.open.remove(which);
        }
        frame
    }

    fn datagram(&mut self) -> Open {
        let interesting = self.random.pick(&self.endpoints.clone());
        let stranger = self.stranger(interesting);
        let (from, to) = match self.random.below(4) {
            0 if self.random.once_in(2) => self.translated(),
            0 => (interesting, stranger),
            _ => (stranger, interesting),
        };
        let mut protocol = self.random.pick(&[6, 17, 17]);
        let mut bytes = self.transport(protocol, from, to);
        let more = self.random.below(600);
        bytes.extend((0..more).map(|n| n as u8));
        let mut before = (44, Vec::new());
        if from.is_ipv6() && self.random.once_in(4) {
            before = (0, vec![44, 0, 1, 4, 0, 0, 0, 0]);
        }
        if from.is_ipv6() && self.random.once_in(6) {
            // A header that only the first fragment has.
            let options = [protocol, 0, 1, 4, 0, 0, 0, 0];
            bytes.splice(0..0, options);
            protocol = 60;
        }
        let pieces = self.cut(&bytes);
        Open {
            from,
            to,
            id: self.random.word() as u32,
            protocol,
            before,
            pieces,
        }
    }

    fn cut(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        while offset < bytes.len() {
            let least = if offset == 0 && !self.random.once_in(8) {
                24
            } else {
                8
            };
            let length = least + 8 * self.random.below(24);
            let end = (offset + length).min(bytes.len());
            pieces.push(Piece {
                offset,
                bytes: bytes[offset..end].to_vec(),
                more: end < bytes.len(),
            });
            offset = end;
        }
        match self.random.below(4) {
            0 => pieces.reverse(),
            1 => {
                for place in (1..pieces.len()).rev() {
                    pieces.swap(place, self.random.below(place as u64 + 1));
                }
            }
            _ => {}
        }
        if self.random.once_in(3) {
            let place = self.random.below(pieces.len() as u64);
            let mut another = pieces[place].clone();
            match self.random.below(6) {
                0 | 1 => {}
                2 => another.offset = another.offset.saturating_sub(8),
                3 => another.offset += 8,
                4 => another.bytes.push(7),
                _ => another.offset = 0xffff & !7,
            }
            let place = self.random.below(pieces.len() as u64 + 1);
            pieces.insert(place, another);
        }
        pieces
    }
}

fn frame(open: &Open, piece: &Piece) -> Vec<u8> {
    match (open.from.ip(), open.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut frame = ethernet(0x0800);
            let length = (20 + piece.bytes.len()) as u16;
            let bits = (piece.offset / 8) as u16 | u16::from(piece.more) << 13;
            frame.extend([0x45, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend((open.id as u16).to_be_bytes());
            frame.extend(bits.to_be_bytes());
            frame.extend([64, open.protocol, 0x12, 0x34]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            frame.extend(&piece.bytes);
            frame
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (first, before) = &open.before;
            let mut frame = ethernet(0x86dd);
            let length = (before.len() + 8 + piece.bytes.len()) as u16;
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([*first, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            frame.extend(before);
            frame.extend([open.protocol, 0]);
            frame.extend((piece.offset as u16 | u16::from(piece.more)).to_be_bytes());
            frame.extend(open.id.to_be_bytes());
            frame.extend(&piece.bytes);
            frame
        }
        mixed => unreachable!("a stranger is of the family of whom it speaks to: {mixed:?}"),
    }
}
