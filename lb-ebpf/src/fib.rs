//! The kernel's routes and neighbours, as programs ask for them.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup, xdp_md,
    },
    helpers,
};
use lb_common::tables::{NoRoute, Route, RouteQuery};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where the kernel would send a packet that came in by `ingress`; asked by means of `params`, with the program's own
/// context. A host that forwards nothing is not asked further: `unasked` is what becomes of it then.
#[inline(always)]
pub fn look_up(
    ctx: *mut xdp_md,
    params: &mut bpf_fib_lookup,
    query: &RouteQuery,
    ingress: u32,
    unasked: NoRoute,
) -> Result<Route, NoRoute> {
    ask(params, query);
    params.ifindex = ingress;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: `params` is initialised and of the size given.
    let result = unsafe { helpers::bpf_fib_lookup(ctx.cast(), &raw mut *params, size, 0) };
    match u32::try_from(result) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => {}
        Ok(BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_UNSUPP_LWT) => {
            return Err(NoRoute::Kernels);
        }
        Ok(BPF_FIB_LKUP_RET_FRAG_NEEDED) => {
            // SAFETY: a plain integer, whichever of the union's it is; with this answer, the MTU (since Linux 5.12).
            return Err(NoRoute::TooLong(unsafe {
                params.__bindgen_anon_1.mtu_result
            }));
        }
        Ok(BPF_FIB_LKUP_RET_FWD_DISABLED) => return Err(unasked),
        _ => return Err(NoRoute::Refused),
    }
    Ok(Route {
        interface: params.ifindex,
        destination_mac: params.dmac,
        source_mac: params.smac,
    })
}

/// Makes `params` the question of a route lookup; ports are left out, as most routing tables leave them
/// out.
#[inline(always)]
fn ask(params: &mut bpf_fib_lookup, query: &RouteQuery) {
    // SAFETY: plain integers, for which zero is a value.
    *params = unsafe { MaybeUninit::zeroed().assume_init() };
    params.__bindgen_anon_1.tot_len = query.length;
    if query.destination.is_v4() {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = query.source.low();
        params.__bindgen_anon_4.ipv4_dst = query.destination.low();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = query.source.words();
        params.__bindgen_anon_4.ipv6_dst = query.destination.words();
    }
}
