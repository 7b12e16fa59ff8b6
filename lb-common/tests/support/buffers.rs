//! Frames in several buffers, as long ones come: what is behind the first is there, but cannot be read.

use lb_common::{
    memory::MemoryTables,
    packet::{Header, Packet, SlicePacket},
    pipeline,
    verdict::Verdict,
};

use super::{HEADROOM, INGRESS, POISON, Stage};

/// A frame of which the first bytes are in the first buffer.
struct Buffers<'a> {
    whole: SlicePacket<'a>,
    linear: usize,
}

impl Packet for Buffers<'_> {
    fn length(&self) -> usize {
        self.whole.length()
    }

    fn interface(&self) -> u32 {
        self.whole.interface()
    }

    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let found = offset + size_of::<T>() <= self.linear;
        found.then(|| self.whole.read(offset))?
    }

    fn write<T: Header>(&mut self, offset: usize, header: &T) -> Option<()> {
        let found = offset + size_of::<T>() <= self.linear;
        found.then(|| self.whole.write(offset, header))?
    }

    fn grow_front(&mut self, bytes: usize) -> bool {
        self.linear += bytes;
        self.whole.grow_front(bytes)
    }

    fn shrink_front(&mut self, bytes: usize) -> bool {
        self.linear = self.linear.saturating_sub(bytes);
        self.whole.shrink_front(bytes)
    }

    fn truncate(&mut self, length: usize) -> bool {
        self.linear = self.linear.min(length);
        self.whole.truncate(length)
    }
}

impl Stage {
    /// What becomes of a frame of which so many bytes are in the first buffer.
    pub fn run_in_buffers(&self, frame: &[u8], linear: usize) -> (Verdict, Vec<u8>) {
        let mut buffer = vec![POISON; HEADROOM];
        buffer.extend_from_slice(frame);
        let whole = SlicePacket::new(&mut buffer, HEADROOM, INGRESS);
        let mut packet = Buffers { whole, linear };
        let verdict = pipeline::process(&mut packet, &self.tables);
        (verdict, packet.whole.bytes().to_vec())
    }

    /// What one of the programs makes of a frame by itself, whatever others would have made of it before.
    pub fn run_alone<R>(
        &self,
        frame: &[u8],
        program: impl FnOnce(&mut SlicePacket<'_>, &MemoryTables) -> R,
    ) -> (R, Vec<u8>) {
        let mut buffer = vec![POISON; HEADROOM];
        buffer.extend_from_slice(frame);
        let mut packet = SlicePacket::new(&mut buffer, HEADROOM, INGRESS);
        let done = program(&mut packet, &self.tables);
        (done, packet.bytes().to_vec())
    }
}
