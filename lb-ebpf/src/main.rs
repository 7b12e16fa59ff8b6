//! The load balancer's XDP program: `lb_common::pipeline` over the kernel's maps.
//!
//! No decision is made here; pointers are in `packet.rs`, maps in `maps.rs`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod cookie;
mod fib;
mod maps;
mod packet;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use aya_log_ebpf::{debug, trace};
use lb_common::{
    full_nat,
    pipeline::{self, Rest},
    tables::{
        Handover, TAIL_FRAGMENT, TAIL_FULL_NAT, TAIL_FULL_NAT_ANSWER, TAIL_FULL_NAT_ERROR,
        TAIL_FULL_NAT_FRAGMENT, TAIL_FULL_NAT_NEW, TAIL_HELD, TAIL_NEIGHBOUR, TAIL_PROXY_ANSWER,
        TAIL_PROXY_SYN, TAIL_REFUSED, TAIL_SCTP, TAIL_SECOND_HOP, TAIL_SYN, TAIL_SYN_COOKIE,
        TAIL_TAG, TAIL_TAGGED, TAIL_TOO_BIG, TAIL_TUNNEL_ERROR, TAIL_UNTRANSLATED, TAIL_UNUSUAL,
        TAIL_VLAN, Tables,
    },
    verdict::Verdict,
    vlan,
};

use crate::{maps::Maps, packet::XdpPacket};

/// What [`Handover::offset`] tells [`vlan()`] of a frame that was held.
const WAS_HELD: u16 = 1;

/// Entry point.
#[xdp(frags)]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    let maps = Maps::first(&ctx);
    let mut packet = XdpPacket::<false>::new(&ctx);
    match pipeline::usual(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::Vlan) => {
            maps.hand_over(Handover::default());
            maps::go_on(&ctx, TAIL_VLAN);
        }
        Err(rest) => leave(&ctx, rest),
    }
    // Not there: as if it were not ours.
    xdp_action::XDP_PASS
}

/// The same for frames whose tags [`vlan()`] has taken off.
#[xdp(frags)]
#[inline(always)]
pub fn tagged(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<false, true>::new(&ctx);
    match pipeline::usual(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(rest) => leave(&ctx, rest),
    }
    pass(&ctx, &maps)
}

/// Goes on with what [`pipeline::usual`] leaves, all but tags.
#[inline(always)]
fn leave(ctx: &XdpContext, rest: Rest) {
    match rest {
        Rest::Unusual => maps::go_on(ctx, TAIL_UNUSUAL),
        Rest::Refused => maps::go_on(ctx, TAIL_REFUSED),
        Rest::TooBig => maps::go_on(ctx, TAIL_TOO_BIG),
        Rest::Syn => maps::go_on(ctx, TAIL_SYN),
        Rest::Fragment => maps::go_on(ctx, TAIL_FRAGMENT),
        Rest::FullNatAnswer => maps::go_on(ctx, TAIL_FULL_NAT_ANSWER),
        Rest::Sctp => maps::go_on(ctx, TAIL_SCTP),
        Rest::Neighbour => maps::go_on(ctx, TAIL_NEIGHBOUR),
        Rest::SecondHop => maps::go_on(ctx, TAIL_SECOND_HOP),
        // It leaves none to the others.
        Rest::FullNat
        | Rest::FullNatNew
        | Rest::FullNatFragment
        | Rest::FullNatError
        | Rest::TunnelError
        | Rest::Untranslated
        | Rest::SynCookie
        | Rest::ProxySyn
        | Rest::ProxyAnswer
        | Rest::Vlan => maps::go_on(ctx, TAIL_FULL_NAT),
    }
}

/// Takes the tags off a frame: [`pipeline::vlan`].
#[xdp(frags)]
#[inline(always)]
pub fn vlan(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<false>::new(&ctx);
    if !pipeline::vlan(&mut packet, &maps) {
        return xdp_action::XDP_PASS;
    }
    if maps.handed_over().offset == WAS_HELD {
        maps::go_on(&ctx, TAIL_HELD);
    } else {
        maps::go_on(&ctx, TAIL_TAGGED);
    }
    pass(&ctx, &maps)
}

/// Sends a frame on with its tags, or by what its device stands over: [`pipeline::tag`].
#[xdp(frags)]
#[inline(always)]
pub fn tag(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::<false>::new(&ctx);
    let verdict = pipeline::tag(&mut packet, &Maps::new(&ctx));
    carry_out(&ctx, verdict)
}

/// What [`lb`] leaves: [`pipeline::unusual`] as a program of its own, so that its stack and budget are its
/// own too.
#[xdp(frags)]
#[inline(always)]
pub fn unusual(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    match pipeline::unusual(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::Neighbour) => maps::go_on(&ctx, TAIL_NEIGHBOUR),
        Err(Rest::TunnelError) => maps::go_on(&ctx, TAIL_TUNNEL_ERROR),
        Err(_) => maps::go_on(&ctx, TAIL_FULL_NAT_ERROR),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::sctp`].
#[xdp(frags)]
#[inline(always)]
pub fn sctp(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::sctp(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::Refused) => maps::go_on(&ctx, TAIL_REFUSED),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(Rest::Fragment) => maps::go_on(&ctx, TAIL_FRAGMENT),
        // It is to none of the others.
        Err(_) => {}
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::second_hop`].
#[xdp(frags)]
#[inline(always)]
pub fn second_hop(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::second_hop(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::Refused) => maps::go_on(&ctx, TAIL_REFUSED),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(_) => maps::go_on(&ctx, TAIL_SYN),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::full_nat`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    match pipeline::full_nat(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(Rest::Syn) => maps::go_on(&ctx, TAIL_SYN),
        Err(Rest::FullNatNew) => maps::go_on(&ctx, TAIL_FULL_NAT_NEW),
        Err(Rest::ProxySyn) => maps::go_on(&ctx, TAIL_PROXY_SYN),
        Err(_) => maps::go_on(&ctx, TAIL_UNTRANSLATED),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::full_nat_new`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_new(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let packet = XdpPacket::<true, true>::new(&ctx);
    let fragment = match maps.handed_over().limit {
        full_nat::FRAGMENT => maps::fragment_left(),
        _ => None,
    };
    match pipeline::full_nat_new(&packet, &maps, fragment.as_deref()) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::FullNatFragment) => maps::go_on(&ctx, TAIL_FULL_NAT_FRAGMENT),
        Err(Rest::FullNat) => maps::go_on(&ctx, TAIL_FULL_NAT),
        Err(Rest::SynCookie) => maps::go_on(&ctx, TAIL_SYN_COOKIE),
        Err(_) => maps::go_on(&ctx, TAIL_UNTRANSLATED),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::syn_cookie`].
#[xdp(frags)]
#[inline(always)]
pub fn syn_cookie(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::syn_cookie(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::FullNat) => maps::go_on(&ctx, TAIL_FULL_NAT),
        Err(_) => maps::go_on(&ctx, TAIL_UNTRANSLATED),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::proxy_syn`].
#[xdp(frags)]
#[inline(always)]
pub fn proxy_syn(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::proxy_syn(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(_) => maps::go_on(&ctx, TAIL_FULL_NAT),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::proxy_answer`].
#[xdp(frags)]
#[inline(always)]
pub fn proxy_answer(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    match pipeline::proxy_answer(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(_) => maps::go_on(&ctx, TAIL_FULL_NAT_ANSWER),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::full_nat_answer`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_answer(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    match pipeline::full_nat_answer(&mut packet, &maps) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(Rest::ProxyAnswer) => maps::go_on(&ctx, TAIL_PROXY_ANSWER),
        Err(_) => maps::go_on(&ctx, TAIL_SYN),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::full_nat_error`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_error(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::full_nat_error(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::tunnel_error`].
#[xdp(frags)]
#[inline(always)]
pub fn tunnel_error(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::tunnel_error(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::untranslated`].
#[xdp(frags)]
#[inline(always)]
pub fn untranslated(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    let verdict = pipeline::untranslated(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::neighbour`].
#[xdp(frags)]
#[inline(always)]
pub fn neighbour(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::neighbour(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::refused`].
#[xdp(frags)]
#[inline(always)]
pub fn refused(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::refused(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::too_big`].
#[xdp(frags)]
#[inline(always)]
pub fn too_big(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::too_big(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::syn`].
#[xdp(frags)]
#[inline(always)]
pub fn syn(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let verdict = pipeline::syn(&mut packet, &maps);
    act(&ctx, &maps, verdict)
}

/// The same with [`pipeline::fragment`].
#[xdp(frags)]
#[inline(always)]
pub fn fragment(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let Some(place) = maps::fragment_place() else {
        return pass(&ctx, &maps);
    };
    match pipeline::fragment(&mut packet, &maps, place) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::FullNatFragment) => maps::go_on(&ctx, TAIL_FULL_NAT_FRAGMENT),
        Err(_) => maps::go_on(&ctx, TAIL_TOO_BIG),
    }
    pass(&ctx, &maps)
}

/// The same with [`pipeline::full_nat_fragment`].
#[xdp(frags)]
#[inline(always)]
pub fn full_nat_fragment(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true>::new(&ctx);
    let Some(place) = maps::fragment_left() else {
        return pass(&ctx, &maps);
    };
    match pipeline::full_nat_fragment(&mut packet, &maps, place) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::FullNatNew) => maps::go_on(&ctx, TAIL_FULL_NAT_NEW),
        Err(_) => maps::go_on(&ctx, TAIL_TOO_BIG),
    }
    pass(&ctx, &maps)
}

/// [`pipeline::held`], by which the agent gives back what [`fragment()`] has handed to it. On no interface.
#[xdp(frags)]
#[inline(always)]
pub fn held(ctx: XdpContext) -> u32 {
    let maps = Maps::new(&ctx);
    let mut packet = XdpPacket::<true, true>::new(&ctx);
    let Some(place) = maps::fragment_place() else {
        return pass(&ctx, &maps);
    };
    match pipeline::held(&mut packet, &maps, place) {
        Ok(verdict) => return act(&ctx, &maps, verdict),
        Err(Rest::FullNatFragment) => maps::go_on(&ctx, TAIL_FULL_NAT_FRAGMENT),
        Err(Rest::TooBig) => maps::go_on(&ctx, TAIL_TOO_BIG),
        Err(_) => {
            maps.hand_over(Handover {
                offset: WAS_HELD,
                ..Handover::default()
            });
            maps::go_on(&ctx, TAIL_VLAN);
        }
    }
    pass(&ctx, &maps)
}

/// As if the frame were not ours: the program to go on with is not there.
#[inline(always)]
fn pass(ctx: &XdpContext, maps: &Maps) -> u32 {
    act(ctx, maps, Verdict::Pass)
}

#[inline(always)]
fn act(ctx: &XdpContext, maps: &Maps, verdict: Verdict) -> u32 {
    let is_left = match verdict {
        Verdict::Pass => vlan::passes(maps),
        Verdict::Transmit => vlan::transmits(maps),
        Verdict::Redirect(interface) => {
            let interface = maps::known(interface);
            if !vlan::redirects(maps, interface) {
                trace!(ctx, "redirected to interface {}", interface);
                return maps::redirect(interface);
            }
            true
        }
        Verdict::Held | Verdict::Drop(_) => {
            vlan::ends(maps);
            false
        }
    };
    if is_left {
        maps::go_on(ctx, TAIL_TAG);
        return xdp_action::XDP_DROP;
    }
    carry_out(ctx, verdict)
}

#[inline(always)]
fn carry_out(ctx: &XdpContext, verdict: Verdict) -> u32 {
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
