//! The backend's XDP program: `lb_common::decapsulate` over its maps.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod packet;

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    btf_maps::{HashMap, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    decapsulate::{self, Fate, Host},
    tables::{Address, Counters},
};

use crate::packet::XdpPacket;

/// Outer addresses at which tunnels end; the values count for nothing.
#[btf_map]
static TERMINATES: HashMap<Address, u32, 1024> = HashMap::new();
#[btf_map]
static UNWRAPPED: PerCpuArray<Counters, 1> = PerCpuArray::new();
/// Packets dropped, as [`Host::count_drop`].
#[btf_map]
static CONGESTED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The UDP port of `gue` tunnels, as [`Host::gue_port`]; set before the program is loaded.
#[unsafe(no_mangle)]
static GUE_PORT: Global<u16> = Global::new(0);

struct Maps;

impl Host for Maps {
    #[inline(always)]
    fn terminates(&self, outer: &Address) -> bool {
        // SAFETY: only its presence is asked for.
        unsafe { TERMINATES.get(outer) }.is_some()
    }

    #[inline(always)]
    fn gue_port(&self) -> u16 {
        GUE_PORT.load()
    }

    #[inline(always)]
    fn count(&self, bytes: u64) {
        if let Some(counters) = UNWRAPPED.get_ptr_mut(0) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
            unsafe { (*counters).add(bytes, false) };
        }
    }

    #[inline(always)]
    fn count_drop(&self) {
        if let Some(counter) = CONGESTED.get_ptr_mut(0) {
            // SAFETY: as in `count`.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }
}

/// Entry point.
#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    match decapsulate::process(&mut XdpPacket::<false>::new(&ctx), &Maps) {
        Fate::Pass => xdp_action::XDP_PASS,
        Fate::Drop => xdp_action::XDP_DROP,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier rejects a program in which it is not.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
