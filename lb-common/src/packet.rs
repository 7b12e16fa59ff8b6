//! Access to a packet's bytes: the [`Packet`] trait, and its implementation over a slice.
//!
//! The kernel's implementation, all pointers, is `lb-ebpf/src/packet.rs`; this crate has no
//! unsafe code. A [`Header`] is a type that any bytes are a valid value of.

use wincode::{SchemaRead, ZeroCopy, config::DefaultConfig};

/// A header: plain bytes, every pattern valid.
pub trait Header: ZeroCopy + Copy + for<'de> SchemaRead<'de, DefaultConfig, Dst = Self> {}
impl<T: ZeroCopy + Copy + for<'de> SchemaRead<'de, DefaultConfig, Dst = T>> Header for T {}

/// A frame, from its Ethernet header on. Offsets are in bytes from there.
pub trait Packet {
    /// Length of the whole frame in bytes. What [`Packet::read`] and [`Packet::write`] find may be less: a frame that is
    /// longer than a page lies in several buffers, and they know the first.
    fn length(&self) -> usize;
    /// Whether it has that many bytes at least.
    fn reaches(&self, end: usize) -> bool {
        end <= self.length()
    }
    /// Length of the frame of a packet that ends at `end`. Where all of that is in the first buffer, nothing behind is
    /// counted that might be in another.
    fn length_around(&self, _end: usize) -> usize {
        self.length()
    }
    /// Index of the interface that it came in by.
    fn interface(&self) -> u32;
    /// A copy of the header at `offset`; `None` where the frame, or its first buffer, ends before it does. By value, so
    /// that the kernel's implementation can load it word by word.
    fn read<T: Header>(&self, offset: usize) -> Option<T>;
    /// Writes the header at `offset`; `None`, and nothing written, where the frame ends before it does.
    fn write<T: Header>(&mut self, offset: usize, header: &T) -> Option<()>;
    /// The same number below 4,096, of which the kernel's verifier forgets how it came about: what follows a loop
    /// is then looked at once, not for every way through it.
    fn forget(&self, number: usize) -> usize {
        number & 0xfff
    }
    /// Makes room for `bytes` in front, of unspecified content; false where there is none.
    fn grow_front(&mut self, bytes: usize) -> bool;
    /// Takes `bytes` off the front; false where the frame would be shorter than an Ethernet header.
    fn shrink_front(&mut self, bytes: usize) -> bool;
    /// Cuts the frame off at `length`, which is at least that of an Ethernet header and no more than it
    /// has; false where it cannot be.
    fn truncate(&mut self, length: usize) -> bool;
}

/// A frame in a buffer with headroom, as XDP has it.
#[derive(Debug)]
pub struct SlicePacket<'a> {
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
    interface: u32,
}

impl<'a> SlicePacket<'a> {
    /// The frame `buffer[headroom..]`; `headroom` is cut to the buffer's length. The frame must start
    /// at an even address, as it does in every allocation with even headroom: headers hold 16-bit
    /// words, and are not found at odd ones.
    pub fn new(buffer: &'a mut [u8], headroom: usize, interface: u32) -> Self {
        let start = headroom.min(buffer.len());
        debug_assert!(
            start == buffer.len() || (buffer.as_ptr().addr() + start).is_multiple_of(2),
            "the frame starts at an odd address: give it even headroom"
        );
        let end = buffer.len();
        Self {
            buffer,
            start,
            end,
            interface,
        }
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn range<T>(&self, offset: usize) -> Option<core::ops::Range<usize>> {
        let from = self.start.checked_add(offset)?;
        let to = from.checked_add(size_of::<T>())?;
        (to <= self.end).then_some(from..to)
    }
}

impl Packet for SlicePacket<'_> {
    fn length(&self) -> usize {
        self.bytes().len()
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let bytes = self.buffer.get(self.range::<T>(offset)?)?;
        <T as ZeroCopy>::from_bytes(bytes).ok().copied()
    }

    fn write<T: Header>(&mut self, offset: usize, header: &T) -> Option<()> {
        let range = self.range::<T>(offset)?;
        let place = <T as ZeroCopy>::from_bytes_mut(self.buffer.get_mut(range)?).ok()?;
        *place = *header;
        Some(())
    }

    fn grow_front(&mut self, bytes: usize) -> bool {
        match self.start.checked_sub(bytes) {
            Some(start) => {
                self.start = start;
                true
            }
            None => false,
        }
    }

    fn shrink_front(&mut self, bytes: usize) -> bool {
        let fits = self.length() >= bytes.saturating_add(crate::wire::ETHERNET);
        if fits {
            self.start += bytes;
        }
        fits
    }

    fn truncate(&mut self, length: usize) -> bool {
        let fits = (crate::wire::ETHERNET..=self.length()).contains(&length);
        if fits {
            self.end = self.start + length;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use network_types::{eth::EthHdr, udp::UdpHdr};

    use super::*;

    #[repr(align(2))]
    struct Buffer([u8; 24]);

    /// A byte's value is its index.
    fn counting() -> Buffer {
        Buffer(core::array::from_fn(|n| n as u8))
    }

    #[test]
    fn a_header_is_found_where_the_frame_has_all_of_it() {
        let mut buffer = counting();
        let mut packet = SlicePacket::new(&mut buffer.0, 2, 3);
        assert_eq!(packet.interface(), 3);
        assert_eq!(packet.length(), 22);
        let udp: UdpHdr = packet.read(14).unwrap();
        assert_eq!(udp.src, [16, 17]);
        for beyond in [15, 22, 1_000, usize::MAX - 1, usize::MAX] {
            assert!(packet.read::<UdpHdr>(beyond).is_none(), "{beyond}");
            assert!(packet.write(beyond, &udp).is_none(), "{beyond}");
        }
        assert_eq!(packet.bytes(), &counting().0[2..]);
    }

    #[test]
    fn a_header_is_written_where_it_belongs_and_nowhere_else() {
        let mut buffer = counting();
        let mut packet = SlicePacket::new(&mut buffer.0, 2, 3);
        let mut udp: UdpHdr = packet.read(14).unwrap();
        udp.src = [0xaa, 0xbb];
        assert_eq!(packet.write(14, &udp), Some(()));
        let mut expected = counting().0;
        expected[16..18].copy_from_slice(&[0xaa, 0xbb]);
        assert_eq!(packet.bytes(), &expected[2..]);
    }

    #[test]
    fn the_front_grows_into_the_headroom_and_no_further() {
        let mut buffer = counting();
        let mut packet = SlicePacket::new(&mut buffer.0, 4, 0);
        assert!(!packet.grow_front(6));
        assert_eq!(packet.bytes().first(), Some(&4));
        assert!(packet.grow_front(4));
        assert_eq!(packet.length(), 24);
        assert_eq!(packet.bytes().first(), Some(&0));
        assert!(!packet.grow_front(1));
    }

    #[test]
    fn the_front_shrinks_to_an_ethernet_header_and_no_further() {
        let mut buffer = counting();
        let mut packet = SlicePacket::new(&mut buffer.0, 0, 0);
        assert!(!packet.shrink_front(11));
        assert!(!packet.shrink_front(usize::MAX));
        assert_eq!(packet.length(), 24);
        assert!(packet.shrink_front(10));
        assert_eq!(packet.bytes().first(), Some(&10));
        assert!(packet.read::<EthHdr>(0).is_some());
        assert!(!packet.shrink_front(1));
    }

    #[test]
    fn what_is_cut_off_is_no_longer_there() {
        let mut buffer = counting();
        let mut packet = SlicePacket::new(&mut buffer.0, 4, 0);
        for length in [13, 21, usize::MAX] {
            assert!(!packet.truncate(length), "{length}");
        }
        assert_eq!(packet.length(), 20);
        assert!(packet.truncate(16));
        assert_eq!(packet.bytes(), &counting().0[4..20]);
        assert!(packet.read::<UdpHdr>(8).is_some());
        assert!(packet.read::<UdpHdr>(9).is_none());
        assert!(!packet.truncate(17));
    }

    #[test]
    fn headroom_beyond_the_buffer_leaves_an_empty_frame() {
        let mut buffer = [0; 8];
        let packet = SlicePacket::new(&mut buffer, 9, 0);
        assert_eq!(packet.length(), 0);
        assert!(packet.read::<EthHdr>(0).is_none());
    }

    #[test]
    #[should_panic(expected = "odd address")]
    fn a_frame_at_an_odd_address_is_refused() {
        SlicePacket::new(&mut counting().0, 1, 0);
    }
}
