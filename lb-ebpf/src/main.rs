//! The load balancer's XDP program: `lb_common::pipeline` over the kernel's maps.
//!
//! No decision is made here; pointers are in `packet.rs`, maps in `maps.rs`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod fib;
mod maps;
mod packet;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use aya_log_ebpf::{debug, trace};
use lb_common::{
    pipeline::{self, Rest},
    tables::{
        TAIL_FRAGMENT, TAIL_FULL_NAT, TAIL_FULL_NAT_ANSWER, TAIL_FULL_NAT_ERROR, TAIL_FULL_NAT_NEW,
        TAIL_NEIGHBOUR, TAIL_REFUSED, TAIL_SCTP, TAIL_SECOND_HOP, TAIL_SYN, TAIL_TOO_BIG,
        TAIL_UNTRANSLATED, TAIL_UNUSUAL,
    },
    verdict::Verdict,
};

use crate::{maps::Maps, packet::XdpPacket};

/// Entry point.
#[xdp(frags)]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<false>::new(&ctx);
    match pipeline::usual(&mut packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::Unusual) => maps::go_on(&ctx, TAIL_UNUSUAL),
        Err(Rest::Refused) => maps::go_on(&ctx, TAIL_REFUSED),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(Rest::Syn) => maps::go_on(&ctx, TAIL_SYN),
        Err(Rest::Fragment) => maps::go_on(&ctx, TAIL_FRAGMENT),
        Err(Rest::FullNatAnswer) => maps::go_on(&ctx, TAIL_FULL_NAT_ANSWER),
        Err(Rest::Sctp) => maps::go_on(&ctx, TAIL_SCTP),
        Err(Rest::Neighbour) => maps::go_on(&ctx, TAIL_NEIGHBOUR),
        Err(Rest::SecondHop) => maps::go_on(&ctx, TAIL_SECOND_HOP),
        // It leaves none to the others.
        Err(Rest::FullNat | Rest::FullNatNew | Rest::FullNatError | Rest::Untranslated) => {
            maps::go_on(&ctx, TAIL_FULL_NAT)
        }
    }
    // Not there: as if it were not ours.
    xdp_action::XDP_PASS
}

/// What [`lb`] leaves: [`pipeline::unusual`] as a program of its own, so that its stack and budget are its
/// own too.
#[xdp(frags)]
#[inline(always)]
pub fn unusual(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    match pipeline::unusual(&mut packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::Neighbour) => maps::go_on(&ctx, TAIL_NEIGHBOUR),
        Err(_) => maps::go_on(&ctx, TAIL_FULL_NAT_ERROR),
    }
    xdp_action::XDP_PASS
}

/// The same with [`pipeline::sctp`].
#[xdp(frags)]
#[inline(always)]
pub fn sctp(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::sctp(&mut packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::Refused) => maps::go_on(&ctx, TAIL_REFUSED),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(Rest::Fragment) => maps::go_on(&ctx, TAIL_FRAGMENT),
        // It is to none of the others.
        Err(_) => {}
    }
    xdp_action::XDP_PASS
}

/// The same with [`pipeline::second_hop`].
#[xdp(frags)]
#[inline(always)]
pub fn second_hop(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::second_hop(&mut packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::Refused) => maps::go_on(&ctx, TAIL_REFUSED),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(_) => maps::go_on(&ctx, TAIL_SYN),
    }
    xdp_action::XDP_PASS
}

/// The same with [`pipeline::full_nat`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    match pipeline::full_nat(&mut packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(Rest::Syn) => maps::go_on(&ctx, TAIL_SYN),
        Err(Rest::FullNatNew) => maps::go_on(&ctx, TAIL_FULL_NAT_NEW),
        Err(_) => maps::go_on(&ctx, TAIL_UNTRANSLATED),
    }
    xdp_action::XDP_PASS
}

/// The same with [`pipeline::full_nat_new`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_new(ctx: XdpContext) -> u32 {
    let packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::full_nat_new(&packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::FullNat) => maps::go_on(&ctx, TAIL_FULL_NAT),
        Err(_) => maps::go_on(&ctx, TAIL_UNTRANSLATED),
    }
    xdp_action::XDP_PASS
}

/// The same with [`pipeline::full_nat_answer`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_answer(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    match pipeline::full_nat_answer(&mut packet, &Maps::new(&ctx)) {
        Ok(verdict) => return act(&ctx, verdict),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(_) => maps::go_on(&ctx, TAIL_SYN),
    }
    xdp_action::XDP_PASS
}

/// The same with [`pipeline::full_nat_error`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_error(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::full_nat_error(&mut packet, &Maps::new(&ctx));
    act(&ctx, verdict)
}

/// The same with [`pipeline::untranslated`].
#[xdp(frags)]
#[inline(always)]
pub fn untranslated(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    let verdict = pipeline::untranslated(&mut packet, &Maps::new(&ctx));
    act(&ctx, verdict)
}

/// The same with [`pipeline::neighbour`].
#[xdp(frags)]
#[inline(always)]
pub fn neighbour(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::neighbour(&mut packet, &Maps::new(&ctx));
    act(&ctx, verdict)
}

/// The same with [`pipeline::refused`].
#[xdp(frags)]
#[inline(always)]
pub fn refused(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::refused(&mut packet, &Maps::new(&ctx));
    act(&ctx, verdict)
}

/// The same with [`pipeline::too_big`].
#[xdp(frags)]
#[inline(always)]
pub fn too_big(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::too_big(&mut packet, &Maps::new(&ctx));
    act(&ctx, verdict)
}

/// The same with [`pipeline::syn`].
#[xdp(frags)]
#[inline(always)]
pub fn syn(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::syn(&mut packet, &Maps::new(&ctx));
    act(&ctx, verdict)
}

/// The same with [`pipeline::fragment`].
#[xdp(frags)]
#[inline(always)]
pub fn fragment(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true>::new(&ctx);
    let Some(place) = maps::fragment_place() else {
        return xdp_action::XDP_PASS;
    };
    let verdict = pipeline::fragment(&mut packet, &Maps::new(&ctx), place);
    act(&ctx, verdict)
}

/// [`pipeline::held`], by which the agent gives back what [`fragment()`] has handed to it. On no interface.
#[xdp(frags)]
#[inline(always)]
pub fn held(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    let Some(place) = maps::fragment_place() else {
        return xdp_action::XDP_PASS;
    };
    let verdict = pipeline::held(&mut packet, &Maps::new(&ctx), place);
    act(&ctx, verdict)
}

#[inline(always)]
fn act(ctx: &XdpContext, verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Transmit => {
            trace!(ctx, "transmitted");
            xdp_action::XDP_TX
        }
        Verdict::Redirect(interface) => {
            trace!(ctx, "redirected to interface {}", interface);
            maps::redirect(interface)
        }
        Verdict::Held => {
            trace!(ctx, "held");
            xdp_action::XDP_DROP
        }
        Verdict::Drop(reason) => {
            debug!(ctx, "dropped: {}", reason.name());
            xdp_action::XDP_DROP
        }
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
