//! The backend's XDP program: `lb_common::decapsulate` over its maps.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod fib;
mod packet;

use core::mem::MaybeUninit;

use aya_ebpf::{
    Global,
    bindings::{
        BPF_TCP_LISTEN, bpf_fib_lookup, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6, tcphdr, xdp_action, xdp_md,
    },
    btf_maps::{HashMap, PerCpuArray},
    cty::c_void,
    helpers,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    decapsulate::{self, Fate, Host},
    flow::Flow,
    hand_on::{Hop, Socket},
    packet::Packet,
    tables::{Address, Counters, Endpoint, NoRoute, Route, RouteQuery},
    wire,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::packet::XdpPacket;

/// The network namespace that a packet is in.
const OWN_NAMESPACE: u64 = u64::MAX;

/// Outer addresses at which tunnels end; the values count for nothing.
#[btf_map]
static TERMINATES: HashMap<Address, u32, 1024> = HashMap::new();
#[btf_map]
static UNWRAPPED: PerCpuArray<Counters, 1> = PerCpuArray::new();
/// Packets dropped, as [`Host::count_drop`].
#[btf_map]
static CONGESTED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Packets that were to be handed on, by [`Hop`].
#[btf_map]
static HOPS: PerCpuArray<u64, { Hop::ALL.len() }> = PerCpuArray::new();

/// Whether packets are handed on, as [`Host::hands_on`]; set before the program is loaded.
#[unsafe(no_mangle)]
static SECOND_HOP: Global<u8> = Global::new(1);
/// The UDP port of `gue` tunnels, as [`Host::gue_port`]; set before the program is loaded.
#[unsafe(no_mangle)]
static GUE_PORT: Global<u16> = Global::new(0);

struct Maps {
    ctx: *mut xdp_md,
}

impl Maps {
    /// Lets `visit` have the socket between two ends, where there is one.
    #[inline(always)]
    fn with_socket<R>(
        &self,
        remote: &Endpoint,
        local: &Endpoint,
        visit: impl FnOnce(*mut bpf_sock) -> R,
    ) -> Option<R> {
        // SAFETY: plain integers, for which zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
        let size = if remote.address.is_v4() {
            tuple.__bindgen_anon_1.ipv4 = Tuple4 {
                saddr: remote.address.low(),
                daddr: local.address.low(),
                sport: remote.port,
                dport: local.port,
            };
            size_of::<Tuple4>()
        } else {
            tuple.__bindgen_anon_1.ipv6 = Tuple6 {
                saddr: remote.address.words(),
                daddr: local.address.words(),
                sport: remote.port,
                dport: local.port,
            };
            size_of::<Tuple6>()
        };
        // SAFETY: the context is the program's own, and the tuple has at least the size given.
        let socket = unsafe {
            helpers::generated::bpf_skc_lookup_tcp(
                self.ctx.cast(),
                &raw mut tuple,
                size as u32,
                OWN_NAMESPACE,
                0,
            )
        };
        if socket.is_null() {
            return None;
        }
        let seen = visit(socket);
        // SAFETY: it was given by the look-up, once, and is not used afterwards.
        unsafe { helpers::generated::bpf_sk_release(socket.cast()) };
        Some(seen)
    }

    /// Whether a packet of `flow` answers a SYN cookie of the socket that its port takes connections by.
    ///
    /// # Safety
    /// There is an IP header of `length` bytes at `ip`, and a TCP header at `tcp`.
    #[inline(always)]
    unsafe fn is_cookie(
        &self,
        flow: &Flow,
        ip: *mut c_void,
        length: usize,
        tcp: *mut tcphdr,
    ) -> bool {
        // SAFETY: the socket is held, and the headers are the caller's to vouch for.
        let checked = self.with_socket(&flow.from(), &flow.to(), |socket| unsafe {
            helpers::generated::bpf_tcp_check_syncookie(
                socket.cast(),
                ip,
                length as u32,
                tcp,
                size_of::<TcpHdr>() as u32,
            )
        });
        checked == Some(0)
    }
}

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

    #[inline(always)]
    fn hands_on(&self) -> bool {
        SECOND_HOP.load() != 0
    }

    #[inline(always)]
    fn socket(&self, remote: &Endpoint, local: &Endpoint) -> Socket {
        // SAFETY: of every kind of socket that the look-up finds, the state can be read, in one load.
        let state = |socket: *mut bpf_sock| unsafe { (&raw const (*socket).state).read_volatile() };
        match self.with_socket(remote, local, state) {
            None => Socket::Nobody,
            Some(BPF_TCP_LISTEN) => Socket::Listener,
            Some(_) => Socket::Flow,
        }
    }

    #[inline(always)]
    fn answers_cookie<P: Packet>(&self, packet: &P, flow: &Flow) -> bool {
        let Some(mut tcp) = packet.read::<TcpHdr>(flow.transport) else {
            return false;
        };
        let tcp = (&raw mut tcp).cast();
        if flow.v4 {
            let Some(mut ip) = packet.read::<Ipv4Hdr>(wire::ETHERNET) else {
                return false;
            };
            let ip = (&raw mut ip).cast();
            // SAFETY: the headers are as long as is said.
            unsafe { self.is_cookie(flow, ip, size_of::<Ipv4Hdr>(), tcp) }
        } else {
            let Some(mut ip) = packet.read::<Ipv6Hdr>(wire::ETHERNET) else {
                return false;
            };
            let ip = (&raw mut ip).cast();
            // SAFETY: as above.
            unsafe { self.is_cookie(flow, ip, size_of::<Ipv6Hdr>(), tcp) }
        }
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute> {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: the context is the kernel's own.
        let ingress = unsafe { (*self.ctx).ingress_ifindex };
        // What came from a router, or the balancer, gets there by it.
        fib::look_up(self.ctx, &mut params, query, ingress, NoRoute::Kernels)
    }

    #[inline(always)]
    fn count_hop(&self, hop: Hop) {
        if let Some(counter) = HOPS.get_ptr_mut(hop as u32) {
            // SAFETY: as in `count`.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }
}

/// Entry point.
#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    match decapsulate::process(&mut XdpPacket::<true>::new(&ctx), &Maps { ctx: ctx.ctx }) {
        Fate::Pass => xdp_action::XDP_PASS,
        Fate::Drop => xdp_action::XDP_DROP,
        Fate::Transmit => xdp_action::XDP_TX,
        // SAFETY: takes no pointers.
        Fate::Redirect(interface) => unsafe { helpers::bpf_redirect(interface, 0) as u32 },
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
