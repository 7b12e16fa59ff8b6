//! The benchmark's harness: restores the frame that the program before has rewritten, walks its
//! source over a number of flows, and tail-calls the program to be measured.
//!
//! Repeating a test run feeds each run's output back in; without this, only the first run would
//! see the frame that is meant.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{Array, PerCpuArray, ProgramArray},
    programs::XdpContext,
};

/// Bytes of an IPv4 frame.
const SHORT: usize = 64;
/// Bytes of an IPv6 frame.
const LONG: usize = 80;

/// The frame, and how many flows it stands for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    /// [`SHORT`] or [`LONG`].
    pub length: u32,
    /// Sources walked over; 0: a new one every time.
    pub flows: u32,
    /// Its bytes.
    pub frame: [[u8; 8]; LONG / 8],
}

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static RUNS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Entry point: what is repeated.
#[xdp]
pub fn restore(ctx: XdpContext) -> u32 {
    if prepare(&ctx).is_some() {
        // SAFETY: on success this does not return; on failure the frame is untouched.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// The least that can be measured.
#[xdp]
pub fn noop(_: XdpContext) -> u32 {
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
    let runs = RUNS.get_ptr_mut(0)?;
    // SAFETY: this CPU's element.
    let run = unsafe {
        *runs += 1;
        *runs
    };
    let flow = match template.flows {
        0 => run,
        flows => run % u64::from(flows),
    };
    if template.length as usize == SHORT {
        write::<SHORT>(ctx, template, 14 + 12, 14 + 20, flow)
    } else {
        write::<LONG>(ctx, template, 14 + 20, 14 + 40, flow)
    }
}

/// Writes the frame, with the flow in the low 24 bits of its source address and in its source port.
#[inline(always)]
fn write<const LENGTH: usize>(
    ctx: &XdpContext,
    template: &Template,
    address: usize,
    port: usize,
    flow: u64,
) -> Option<()> {
    let start = ctx.data();
    if start + LENGTH > ctx.data_end() {
        return None;
    }
    let source = 0x6400_0000 | (flow as u32 & 0x00ff_ffff);
    let high = 1_024 + (flow >> 24) as u16;
    // SAFETY: `LENGTH` bytes from `start` on were just found to be there, and all offsets are within.
    unsafe {
        let words = start as *mut u64;
        for (index, word) in template.frame.iter().enumerate() {
            if index < LENGTH / 8 {
                words.add(index).write_unaligned(u64::from_ne_bytes(*word));
            }
        }
        ((start + address) as *mut u32).write_unaligned(source.to_be());
        ((start + port) as *mut u16).write_unaligned(high.to_be());
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
