//! The kernel's packet: all pointer arithmetic is here.

use aya_ebpf::{bindings::xdp_md, helpers, programs::XdpContext};
use lb_common::{
    packet::{Header, Packet},
    wire,
};

/// The frame that the program was called with.
pub struct XdpPacket {
    ctx: *mut xdp_md,
}

impl XdpPacket {
    /// The frame of `ctx`.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx }
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the kernel passes a valid context, which outlives the program.
        unsafe { (*self.ctx).data as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as in `data`.
        unsafe { (*self.ctx).data_end as usize }
    }

    /// The bounds check that the verifier looks for.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        Some(start as *mut T)
    }

    #[inline(always)]
    fn adjust_head(&mut self, delta: i32) -> bool {
        // SAFETY: no reference into the packet lives on: `self` is borrowed mutably.
        unsafe { helpers::bpf_xdp_adjust_head(self.ctx, delta) == 0 }
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn length(&self) -> usize {
        self.data_end() - self.data()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the frame, any bytes are a `T`, and the kernel allows unaligned access on
        // the machines it is built for; the frame stays while `self` is borrowed.
        self.at(offset).map(|header| unsafe { &*header })
    }

    #[inline(always)]
    fn header_mut<T: Header>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `header`, and `self` is borrowed mutably.
        self.at(offset).map(|header| unsafe { &mut *header })
    }

    #[inline(always)]
    fn grow_front(&mut self, bytes: usize) -> bool {
        self.adjust_head(-(bytes as i32))
    }

    #[inline(always)]
    fn shrink_front(&mut self, bytes: usize) -> bool {
        self.length() >= bytes + wire::ETHERNET && self.adjust_head(bytes as i32)
    }
}

/// Sends the frame out of another interface.
#[inline(always)]
pub fn redirect(interface: u32) -> u32 {
    // SAFETY: takes no pointers.
    unsafe { helpers::bpf_redirect(interface, 0) as u32 }
}
