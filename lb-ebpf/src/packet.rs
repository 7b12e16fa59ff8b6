//! The kernel's packet: all pointer arithmetic is here.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{Global, bindings::xdp_md, helpers, programs::XdpContext};
use lb_common::{
    packet::{Header, Packet},
    wire,
};

/// More bytes than the first buffer of any frame has, which headers are read in.
const LONGEST: usize = 0x3fff;

/// Whether a frame may lie in several buffers, as one does that is longer than a page; only the first is between `data` and
/// `data_end`. Set before the program is loaded: 0 on kernels that have no such frames (before Linux 5.18).
#[unsafe(no_mangle)]
static MULTI_BUFFER: Global<u8> = Global::new(1);

/// The frame that the program was called with. Where its headers are at offsets that were read from it,
/// `WANDERS` keeps the compiler from finding a place a second time, since the verifier knows of the first
/// one only that it is within bounds. `AGAIN` tells the frames of one program from those of another that does the same,
/// since what two programs have in common is not inlined.
pub struct XdpPacket<const WANDERS: bool = false, const AGAIN: bool = false> {
    ctx: *mut xdp_md,
}

impl<const WANDERS: bool, const AGAIN: bool> XdpPacket<WANDERS, AGAIN> {
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

    /// Bytes in the first buffer.
    #[inline(always)]
    fn linear(&self) -> usize {
        self.data_end() - self.data()
    }

    /// The bounds check that the verifier looks for.
    #[inline(always)]
    fn at<T>(&self, mut offset: usize) -> Option<*mut T> {
        if WANDERS {
            // SAFETY: as below. The verifier needs a bound for what was read from memory; no frame is longer.
            unsafe { asm!("{0} = {0}", inout(reg) offset, options(nomem, nostack)) };
            if offset > LONGEST {
                return None;
            }
        }
        let mut start = self.data() + offset;
        if WANDERS {
            // SAFETY: a move to itself; without an instruction, its line would have no place.
            unsafe { asm!("{0} = {0}", inout(reg) start, options(nomem, nostack)) };
        }
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

impl<const WANDERS: bool, const AGAIN: bool> Packet for XdpPacket<WANDERS, AGAIN> {
    #[inline(always)]
    fn length(&self) -> usize {
        if MULTI_BUFFER.load() == 0 {
            return self.linear();
        }
        // SAFETY: as in `data`.
        unsafe { helpers::generated::bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        end <= self.linear() || end <= self.length()
    }

    #[inline(always)]
    fn length_around(&self, end: usize) -> usize {
        let linear = self.linear();
        if end <= linear { linear } else { self.length() }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let from: *const T = self.at(offset)?;
        let mut header = Aligned(MaybeUninit::<T>::uninit());
        // SAFETY: `at` found all of `T` within the frame, and the copy has room for it.
        unsafe { copy(from.cast(), header.0.as_mut_ptr().cast(), size_of::<T>()) };
        // SAFETY: all of its bytes were copied, and any bytes are a `T`.
        Some(unsafe { header.0.assume_init() })
    }

    #[inline(always)]
    fn write<T: Header>(&mut self, offset: usize, header: &T) -> Option<()> {
        let to: *mut T = self.at(offset)?;
        let header = Aligned(*header);
        // SAFETY: as in `read`, and no reference into the frame exists.
        unsafe { copy((&raw const header.0).cast(), to.cast(), size_of::<T>()) };
        Some(())
    }

    #[inline(always)]
    fn forget(&self, number: usize) -> usize {
        forget_number(number as u64) as usize & 0xfff
    }

    #[inline(always)]
    fn grow_front(&mut self, bytes: usize) -> bool {
        self.adjust_head(-(bytes as i32))
    }

    #[inline(always)]
    fn shrink_front(&mut self, bytes: usize) -> bool {
        self.linear() >= bytes + wire::ETHERNET && self.adjust_head(bytes as i32)
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> bool {
        let before = self.length();
        if length < wire::ETHERNET || length > before {
            return false;
        }
        let delta = length as i32 - before as i32;
        // SAFETY: no reference into the packet lives on: `self` is borrowed mutably.
        unsafe { helpers::bpf_xdp_adjust_tail(self.ctx, delta) == 0 }
    }
}

/// A function that the verifier takes by itself, so that it knows nothing of what comes back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forget_number(number: u64) -> u64 {
    let mut same = number;
    // SAFETY: a move to itself, which keeps the compiler from seeing that as well.
    unsafe { asm!("{0} = {0}", inout(reg) same, options(nomem, nostack)) };
    same
}

/// A header on the stack, where the verifier insists on alignment.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// Copies a header, all of a fixed size, a word at a time: its own alignment is that of a byte, and
/// the compiler would load and store it byte by byte.
///
/// # Safety
/// `length` bytes can be read at `from` and written at `to`.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    let mut done = 0;
    while done + 4 <= length {
        // SAFETY: within both. BPF has no traps for alignment, and the verifier rejects a program
        // whose access the machine could not do; frames start at even addresses at least.
        unsafe {
            to.add(done)
                .cast::<u32>()
                .write(from.add(done).cast::<u32>().read());
        }
        done += 4;
    }
    while done + 2 <= length {
        // SAFETY: as above.
        unsafe {
            to.add(done)
                .cast::<u16>()
                .write(from.add(done).cast::<u16>().read());
        }
        done += 2;
    }
    if done < length {
        // SAFETY: as above.
        unsafe { to.add(done).write(from.add(done).read()) };
    }
}
