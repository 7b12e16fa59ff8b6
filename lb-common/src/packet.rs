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
    /// Length of the frame in bytes.
    fn length(&self) -> usize;
    /// Index of the interface that it came in by.
    fn interface(&self) -> u32;
    /// A copy of the header at `offset`; `None` where the frame ends before it does. By value, so
    /// that the kernel's implementation can load it word by word.
    fn read<T: Header>(&self, offset: usize) -> Option<T>;
    /// Writes the header at `offset`; `None`, and nothing written, where the frame ends before it does.
    fn write<T: Header>(&mut self, offset: usize, header: &T) -> Option<()>;
    /// Makes room for `bytes` in front, of unspecified content; false where there is none.
    fn grow_front(&mut self, bytes: usize) -> bool;
    /// Takes `bytes` off the front; false where the frame would be shorter than an Ethernet header.
    fn shrink_front(&mut self, bytes: usize) -> bool;
}

/// A frame in a buffer with headroom, as XDP has it.
#[derive(Debug)]
pub struct SlicePacket<'a> {
    buffer: &'a mut [u8],
    start: usize,
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
        Self {
            buffer,
            start,
            interface,
        }
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn range<T>(&self, offset: usize) -> Option<core::ops::Range<usize>> {
        let from = self.start.checked_add(offset)?;
        Some(from..from.checked_add(size_of::<T>())?)
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
}
