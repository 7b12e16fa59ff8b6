//! The maps of the load balancer, and `Tables` over them.
//!
//! Sizes are the smallest that load; the agent sets the real ones. Names and formats are part of
//! the pinned contract (`lb_common::tables::FORMAT`).

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_fib_lookup, xdp_md},
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers,
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    tables::{
        Address, Backend, Control, Counters, Endpoint, Member, Route, RouteQuery, ServiceEntry,
        Tables, WayBack,
    },
    verdict::{DROP_COUNTERS, DropReason},
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();
#[btf_map]
static SERVICES: HashMap<Endpoint, u32, 1> = HashMap::new();
#[btf_map]
static SERVICE_ENTRIES: Array<ServiceEntry, 1, MMAPABLE> = Array::new();
#[btf_map]
static SLOTS: Array<u64, 1, MMAPABLE> = Array::new();
#[btf_map]
static MEMBERS: Array<Member, 1, MMAPABLE> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, 1, MMAPABLE> = Array::new();
#[btf_map]
static WAYS_BACK: HashMap<Endpoint, WayBack, 1> = HashMap::new();
#[btf_map]
static OWNED: HashMap<Address, u32, 1> = HashMap::new();
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map]
static BACKEND_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map]
static DROPS: PerCpuArray<u64, { DROP_COUNTERS as usize }> = PerCpuArray::new();

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The maps, as seen while one packet is processed.
pub struct Maps {
    ctx: *mut xdp_md,
}

impl Maps {
    /// The maps, for the packet of `ctx`.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx }
    }
}

/// Adds a packet to this CPU's share of a counter.
#[inline(always)]
fn count<const N: usize>(map: &PerCpuArray<Counters, N>, index: u32, bytes: u64, new_flow: bool) {
    if let Some(counters) = map.get_ptr_mut(index) {
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        unsafe { (*counters).add(bytes, new_flow) };
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }

    #[inline(always)]
    fn generation(&self) -> u64 {
        match CONTROL.get_ptr(0) {
            // SAFETY: an element of the map; volatile, since the agent stores to it at any time.
            Some(control) => unsafe { (&raw const (*control).generation).read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn service(&self, key: &Endpoint) -> Option<u32> {
        // SAFETY: copied at once; an element is written before it is linked.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn service_entry(&self, index: u32) -> Option<&ServiceEntry> {
        SERVICE_ENTRIES.get(index)
    }

    #[inline(always)]
    fn slots(&self, index: u32) -> Option<u64> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn member(&self, index: u32) -> Option<&Member> {
        MEMBERS.get(index)
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn way_back(&self, key: &Endpoint) -> Option<&WayBack> {
        // SAFETY: elements are replaced whole, and freed only after a grace period.
        unsafe { WAYS_BACK.get(key) }
    }

    #[inline(always)]
    fn owned(&self, address: &Address) -> u32 {
        // SAFETY: copied at once.
        unsafe { OWNED.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Option<Route> {
        let mut params = fib_params(query);
        // SAFETY: the context is the kernel's own.
        params.ifindex = unsafe { (*self.ctx).ingress_ifindex };
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: `params` is initialised and of the size given.
        let result = unsafe { helpers::bpf_fib_lookup(self.ctx.cast(), &raw mut params, size, 0) };
        if result != 0 {
            return None;
        }
        Some(Route {
            interface: params.ifindex,
            destination_mac: params.dmac,
            source_mac: params.smac,
        })
    }

    #[inline(always)]
    fn count_service(&self, index: u32, bytes: u64, new_flow: bool) {
        count(&SERVICE_COUNTERS, index, bytes, new_flow);
    }

    #[inline(always)]
    fn count_backend(&self, index: u32, bytes: u64, new_flow: bool) {
        count(&BACKEND_COUNTERS, index, bytes, new_flow);
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason) {
        if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }
}

/// The question of a route lookup; ports are left out, as most routing tables leave them out.
#[inline(always)]
fn fib_params(query: &RouteQuery) -> bpf_fib_lookup {
    // SAFETY: plain integers, for which zero is a value.
    let mut params: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
    params.__bindgen_anon_1.tot_len = query.length;
    if query.destination.is_v4() {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = query.source.low();
        params.__bindgen_anon_4.ipv4_dst = query.destination.low();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = query.source.0;
        params.__bindgen_anon_4.ipv6_dst = query.destination.0;
    }
    params
}
