//! The benchmark's harness: restores the frame that the program before has rewritten, walks its
//! source over a number of flows and its destination over a number of services, and tail-calls the
//! program to be measured. Beside it, what any such program is to be compared with.
//!
//! Repeating a test run feeds each run's output back in; without this, only the first run would
//! see the frame that is meant.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, generated},
    macros::{map, xdp},
    maps::{Array, PerCpuArray, ProgramArray},
    programs::XdpContext,
};

/// Bytes of an IPv4 frame, but for QUIC.
const SHORT: usize = 64;
/// Bytes of an IPv6 frame, and of QUIC over IPv4.
const LONG: usize = 80;

/// Where the Ethernet header ends.
const NETWORK: usize = 14;
/// The first byte of IPv4's EtherType.
const ETHERTYPE_V4: u8 = 0x08;
const V4: bool = true;
const V6: bool = false;

/// The frame, and what it is walked over. The host's half is `lb_tests::bench::harness`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    /// [`SHORT`] or [`LONG`].
    pub length: u32,
    /// Sources walked over; 0: a new one every time.
    pub flows: u32,
    /// Destinations walked over, one address after another; IPv4 only.
    pub destinations: u32,
    /// The first source port, or the two bytes that stand in its place.
    pub port: u32,
    /// Its bytes.
    pub frame: [[u8; 8]; LONG / 8],
}

/// Bytes at the front of a frame of any shape that are written anew, at most: all headers that there may be.
const HEAD: usize = 256;

/// A frame of any shape, and what it is walked over; as [`Template`] otherwise.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Shape {
    /// Bytes of the whole frame.
    pub length: u32,
    /// Bytes of its front that are written anew, less one: below [`HEAD`].
    pub last: u32,
    /// Sources walked over; 0: a new one every time.
    pub flows: u32,
    /// The first value of the two bytes at `port_at`.
    pub port: u32,
    /// Offset of the four bytes that say which flow it is of.
    pub flow_at: u32,
    /// Offset of the two bytes that say which one beyond 2²⁴.
    pub port_at: u32,
    /// The frame's front.
    pub front: [u8; HEAD],
}

#[map]
static SHAPE: Array<Shape> = Array::with_max_entries(1, 0);
/// Where the frame began in the first run; 0 before.
#[map]
static ORIGIN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Where it begins now.
#[map]
static PLACE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static RUNS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Entry point: what is repeated.
#[xdp(frags)]
pub fn restore(ctx: XdpContext) -> u32 {
    if prepare(&ctx).is_some() {
        // SAFETY: on success this does not return; on failure the frame is untouched.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The same for frames of any shape, and for programs that change their length at either end; takes a little longer.
#[xdp(frags)]
pub fn restore_any(ctx: XdpContext) -> u32 {
    if prepare_any(&ctx).is_some() {
        // SAFETY: as above.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The least that can be measured: a bare `XDP_TX`, which sends the frame back to where it came from.
#[xdp(frags)]
pub fn noop(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The least that a switch takes for sent back by a neighbour: its MAC addresses change places.
#[xdp(frags)]
pub fn swap_macs(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + NETWORK > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: both addresses lie within the bytes just found to be there.
    unsafe {
        let (first, second) = (start as *mut [u16; 3], (start + 6) as *mut [u16; 3]);
        let destination = first.read_unaligned();
        first.write_unaligned(second.read_unaligned());
        second.write_unaligned(destination);
    }
    xdp_action::XDP_TX
}

#[inline(always)]
fn prepare(ctx: &XdpContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    // Opaque, or the compiler adds the length to a packet pointer, which the verifier refuses.
    let length = core::hint::black_box(ctx.data_end() - ctx.data());
    let surplus = length as i32 - template.length as i32;
    // SAFETY: no reference into the frame exists yet.
    if surplus != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, surplus) } != 0 {
        return None;
    }
    let flow = next_flow(template.flows)?;
    if template.length as usize == SHORT {
        write::<SHORT, V4>(ctx, template, flow)?;
        if template.destinations > 1 {
            redirect(ctx, template, flow)?;
        }
        Some(())
    } else if template.frame[1][4] == ETHERTYPE_V4 {
        write::<LONG, V4>(ctx, template, flow)
    } else {
        write::<LONG, V6>(ctx, template, flow)
    }
}

/// The flow that this run's frame is of.
#[inline(always)]
fn next_flow(flows: u32) -> Option<u64> {
    let runs = RUNS.get_ptr_mut(0)?;
    // SAFETY: this CPU's element.
    let run = unsafe {
        let run = *runs;
        *runs = run + 1;
        run
    };
    Some(match flows {
        0 => run,
        flows => run % u64::from(flows),
    })
}

/// How far the frame's beginning has gone from where it was in the first run, in bytes. Pointers into a frame are no numbers to the
/// verifier, but for what is read from a map.
#[inline(always)]
fn shift(ctx: &XdpContext) -> Option<i32> {
    let (origin, place) = (ORIGIN.get_ptr_mut(0)?, PLACE.get_ptr_mut(0)?);
    // SAFETY: this CPU's elements.
    unsafe {
        place.write_volatile(ctx.data() as u64);
        let now = place.read_volatile();
        if *origin == 0 {
            *origin = now;
        }
        Some(now.wrapping_sub(*origin) as i32)
    }
}

#[inline(always)]
fn prepare_any(ctx: &XdpContext) -> Option<()> {
    let shape = SHAPE.get(0)?;
    let shift = shift(ctx)?;
    // SAFETY: no reference into the frame exists here, or anywhere below.
    if shift != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, -shift) } != 0 {
        return None;
    }
    // SAFETY: the context is the kernel's own.
    let length = unsafe { generated::bpf_xdp_get_buff_len(ctx.ctx) };
    let surplus = length as i32 - shape.length as i32;
    // SAFETY: as above.
    if surplus != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) } != 0 {
        return None;
    }
    let flow = next_flow(shape.flows)?;
    let front = (shape.last & (HEAD as u32 - 1)) + 1;
    put(ctx, 0, shape.front.as_ptr(), front)?;
    let source = (0x6400_0000 | (flow as u32 & 0x00ff_ffff)).to_be_bytes();
    put(ctx, shape.flow_at, source.as_ptr(), 4)?;
    let port = (shape.port as u16 + (flow >> 24) as u16).to_be_bytes();
    put(ctx, shape.port_at, port.as_ptr(), 2)
}

/// Copies so many bytes into the frame.
#[inline(always)]
fn put(ctx: &XdpContext, at: u32, from: *const u8, bytes: u32) -> Option<()> {
    // SAFETY: the callers' bytes are there; the kernel checks that the frame's are.
    let done =
        unsafe { generated::bpf_xdp_store_bytes(ctx.ctx, at, from.cast_mut().cast(), bytes) };
    (done == 0).then_some(())
}

/// Writes the frame, with the flow in the low 24 bits of its source address and in its source port.
#[inline(always)]
fn write<const LENGTH: usize, const IS_V4: bool>(
    ctx: &XdpContext,
    template: &Template,
    flow: u64,
) -> Option<()> {
    let (address, port) = if IS_V4 { (12, 20) } else { (20, 40) };
    let start = ctx.data();
    if start + LENGTH > ctx.data_end() {
        return None;
    }
    let source = 0x6400_0000 | (flow as u32 & 0x00ff_ffff);
    let high = template.port as u16 + (flow >> 24) as u16;
    // SAFETY: `LENGTH` bytes from `start` on were just found to be there, and all offsets are within.
    unsafe {
        let words = start as *mut u64;
        for (index, word) in template.frame.iter().enumerate() {
            if index < LENGTH / 8 {
                words.add(index).write_unaligned(u64::from_ne_bytes(*word));
            }
        }
        ((start + NETWORK + address) as *mut u32).write_unaligned(source.to_be());
        ((start + NETWORK + port) as *mut u16).write_unaligned(high.to_be());
    }
    Some(())
}

/// Addresses an IPv4 frame to the flow's destination: flow `n` always has the same one.
#[inline(always)]
fn redirect(ctx: &XdpContext, template: &Template, flow: u64) -> Option<()> {
    let start = ctx.data();
    if start + SHORT > ctx.data_end() {
        return None;
    }
    let place = (flow % u64::from(template.destinations)) as u32;
    // SAFETY: within the bytes just found to be there.
    unsafe {
        let at = (start + NETWORK + 16) as *mut u32;
        let first = u32::from_be(at.read_unaligned());
        at.write_unaligned((first + place).to_be());
    }
    Some(())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier rejects a program in which it is not.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
