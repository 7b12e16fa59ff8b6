//! The kernel's SYN cookies, by the helpers that ask for no socket (since Linux 6.0). They read no more of the headers than what is
//! set here.

use aya_ebpf::helpers::generated::{
    bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
    bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6,
};
use lb_common::{
    flow::Flow,
    mss,
    wire::{self, control},
};

/// An IPv4 header.
#[repr(C)]
struct Ipv4 {
    before: [u32; 3],
    source: u32,
    destination: u32,
}

/// An IPv6 header.
#[repr(C)]
struct Ipv6 {
    before: [u32; 2],
    source: [u32; 4],
    destination: [u32; 4],
}

/// A TCP header with the option that tells the MSS.
#[repr(C)]
struct Tcp {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    control: [u8; 4],
    check_and_urgent: u32,
    option: [u8; 4],
}

const _: () = {
    assert!(size_of::<Ipv4>() == wire::IPV4);
    assert!(size_of::<Ipv6>() == wire::IPV6);
    assert!(size_of::<Tcp>() == wire::TCP + mss::LENGTH);
};

impl Ipv4 {
    #[inline(always)]
    fn of(flow: &Flow) -> Self {
        Self {
            before: [0; 3],
            source: flow.source.low(),
            destination: flow.destination.low(),
        }
    }
}

impl Ipv6 {
    #[inline(always)]
    fn of(flow: &Flow) -> Self {
        Self {
            before: [0; 2],
            source: flow.source.words(),
            destination: flow.destination.words(),
        }
    }
}

impl Tcp {
    /// Of a client's packet. Numbers are in host order.
    #[inline(always)]
    fn of(flow: &Flow, sequence: u32, acknowledged: u32, mss: u16) -> Self {
        let [first, last] = mss.to_be_bytes();
        Self {
            source: flow.source_port,
            destination: flow.destination_port,
            sequence: sequence.to_be(),
            acknowledged: acknowledged.to_be(),
            control: [(size_of::<Self>() as u8 / 4) << 4, control::SYN, 0, 0],
            check_and_urgent: 0,
            option: [mss::KIND, mss::LENGTH as u8, first, last],
        }
    }
}

/// The cookie of a SYN, and the MSS that it stands for.
#[inline(always)]
pub fn of(flow: &Flow, sequence: u32, mss: u16) -> Option<(u32, u16)> {
    let mut tcp = Tcp::of(flow, sequence, 0, mss);
    let header = (&raw mut tcp).cast();
    let length = size_of::<Tcp>() as u32;
    let made = if flow.v4 {
        let mut ip = Ipv4::of(flow);
        // SAFETY: both headers are there, and as long as the helper is told, or takes them to be.
        unsafe { bpf_tcp_raw_gen_syncookie_ipv4((&raw mut ip).cast(), header, length) }
    } else {
        let mut ip = Ipv6::of(flow);
        // SAFETY: as above.
        unsafe { bpf_tcp_raw_gen_syncookie_ipv6((&raw mut ip).cast(), header, length) }
    };
    // The cookie below, the MSS above.
    (made >= 0).then_some((made as u32, (made >> 32) as u16))
}

/// Whether a cookie is that of a SYN.
#[inline(always)]
pub fn is(flow: &Flow, sequence: u32, cookie: u32) -> bool {
    // As the client's answer has them.
    let (next, acknowledged) = (sequence.wrapping_add(1), cookie.wrapping_add(1));
    let mut tcp = Tcp::of(flow, next, acknowledged, 0);
    let header = (&raw mut tcp).cast();
    let failed = if flow.v4 {
        let mut ip = Ipv4::of(flow);
        // SAFETY: as in `of`.
        unsafe { bpf_tcp_raw_check_syncookie_ipv4((&raw mut ip).cast(), header) }
    } else {
        let mut ip = Ipv6::of(flow);
        // SAFETY: as in `of`.
        unsafe { bpf_tcp_raw_check_syncookie_ipv6((&raw mut ip).cast(), header) }
    };
    failed == 0
}
