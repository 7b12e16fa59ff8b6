//! The maps of the load balancer, `Tables` over them, and where a program goes on.
//!
//! Sizes are the smallest that load; the agent sets the real ones. Names and formats are part of
//! the pinned contract (`lb_common::tables::FORMAT`).

use core::{
    arch::asm,
    ffi::c_void,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    Global,
    bindings::{
        BPF_ANY, BPF_EXIST, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup, xdp_md,
    },
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key,
    },
    helpers,
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    admit::{self, Request},
    budget::{self, BUDGETS as HOW_MANY, Budget},
    flow::{Flow, Signal},
    fragment::{self, Fragment},
    hash::FlowHash,
    packet::Packet,
    passive::{self, Said, Step},
    persist,
    quic::{self, Start},
    rate::{self, Moment, Rate, Take},
    schedule,
    session::{self, Opening},
    steer::{self, RouteTable, Spot},
    tables::{
        self, AccessKey, Address, Backend, Bucket, ClassKey, Control, Counters, Datagram, Early,
        Endpoint, FlowCounters, FlowEvent, FlowKey, FragmentKey, GuardEntry,
        HANDSHAKES as HOW_MANY_HANDSHAKES, Handover, Handshake, Interface, Member, NoRoute,
        PoolKey, PortKey, Proxied, Record, Recorded, Route, RouteQuery, Server, ServerKey,
        ServiceEntry, Session, Shape, Sign, Signs, Slot, SourceKey, TICK_SHIFT, Table, Tables,
        Tagged, Tick, UPPER, Upper, VipKey, VlanKey, WayBack, feature,
    },
    track::{self, Question},
    verdict::{Answer, DROP_COUNTERS, DropReason, FIRST_ANSWER, FIRST_PIECE, Piece},
    vlan, wire,
};

use crate::{cookie, fib};

/// What the kernel says of an element that is there already (`asm-generic/errno-base.h`).
const EEXIST: i32 = 17;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();
#[btf_map]
static LOOKUP: Array<Bucket, 1, MMAPABLE> = Array::new();
/// By a service's index + 1, as [`LOOKUP`] has it; the first is nobody's.
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
/// Not preallocated: most services have none.
#[btf_map]
static SERVERS: HashMap<ServerKey, Server, 1, NO_PREALLOC> = HashMap::new();
#[btf_map]
static OWNED: HashMap<Address, u32, 1> = HashMap::new();
/// Prefixes of VIPs of services that have several, and VIPs of which such have ranges of ports; as [`ACCESS`].
#[btf_map]
static CLASSES: LpmTrie<[u32; 5], [u32; 2], 1> = LpmTrie::new();
/// Which service has which ports of those.
#[btf_map]
static CLASS_PORTS: LpmTrie<[u32; 2], u32, 1> = LpmTrie::new();
/// The agent's own: what descriptors do not say of such services, by index.
#[btf_map]
static SHAPES: Array<Shape, 1, MMAPABLE> = Array::new();
/// Interfaces that VIPs are announced on. Not preallocated: most configurations have none.
#[btf_map]
static INTERFACES: HashMap<u32, Interface, 1, NO_PREALLOC> = HashMap::new();
/// VLAN devices by the tags of their frames, with [`UPPER`]. Not preallocated, as what follows: most hosts have none, and an element
/// that is replaced stays whole for a grace period.
#[btf_map]
static VLANS: HashMap<VlanKey, u32, 1, NO_PREALLOC> = HashMap::new();
/// Devices that stand over others.
#[btf_map]
static UPPERS: HashMap<u32, Upper, 1, NO_PREALLOC> = HashMap::new();
/// What guards services, by the number of their pool.
#[btf_map]
static GUARDS: Array<GuardEntry, 1, MMAPABLE> = Array::new();
/// All access lists and source routes. Not preallocated: it takes as much memory as there are prefixes.
#[btf_map]
static ACCESS: LpmTrie<[u32; 5], u32, 1> = LpmTrie::new();
/// Buckets of services, by their index; shared by all CPUs. Not pinned, as those of sources: a restarted agent's
/// begin full.
#[btf_map]
static SERVICE_BUCKETS: Array<Moment, 1> = Array::new();
/// The same that flows take of which begin unproxied.
#[btf_map]
static UNPROXIED_BUCKETS: Array<Moment, 1> = Array::new();
/// Buckets of sources. With eviction: a source that is forgotten has a full bucket again, while a table that is
/// full would have none for those to come.
#[btf_map]
static SOURCE_BUCKETS: LruHashMap<SourceKey, Moment, 1> = LruHashMap::new();
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map]
static BACKEND_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
/// Preallocated and without eviction: a record leaves its table for the other one, for a newer one of its
/// flow, or by the sweep, which takes out what says nothing any more.
#[btf_map]
static ESTABLISHED: HashMap<FlowKey, Record, 1> = HashMap::new();
#[btf_map]
static HALF_OPEN: HashMap<FlowKey, Record, 1> = HashMap::new();
/// Sessions of mode `full-nat`, by the client's flow; as the flow tables without eviction. Not preallocated: most
/// configurations have none.
#[btf_map]
static SESSIONS: HashMap<FlowKey, Session, 1, NO_PREALLOC> = HashMap::new();
/// Whose each port of a pool is at each backend: an element is a claim, which one flow alone can make.
#[btf_map]
static PORTS: HashMap<PortKey, FlowKey, 1, NO_PREALLOC> = HashMap::new();
/// Addresses of pools, likewise.
#[btf_map]
static POOL_ADDRESSES: HashMap<PoolKey, Address, 1, NO_PREALLOC> = HashMap::new();
/// Flows in progress, by the index of a backend's counters.
#[btf_map]
static LOADS: Array<u64, 1, MMAPABLE> = Array::new();
/// What backends have shown, by the index of their counters.
#[btf_map]
static SIGNS: Array<Signs, 1, MMAPABLE> = Array::new();
/// Handshakes that are watched. Not pinned, as buckets are not: another agent watches others.
#[btf_map]
static HANDSHAKES: Array<Handshake, { HOW_MANY_HANDSHAKES as usize }, MMAPABLE> = Array::new();
#[btf_map]
static TURNS: PerCpuArray<u32, 1> = PerCpuArray::new();
#[btf_map]
static FLOW_COUNTERS: PerCpuArray<FlowCounters, 1> = PerCpuArray::new();
/// The agent's own: when each slot moved last, laid out as [`SLOTS`].
#[btf_map]
static MOVED: Array<u64, 1, MMAPABLE> = Array::new();
/// The programs that others go on with.
#[btf_map]
static TAILS: ProgramArray<{ tables::TAILS as usize }> = ProgramArray::new();
/// Answers of each kind that may still be given, and fragments that may still be held.
#[btf_map]
static BUDGETS: PerCpuArray<Budget, { HOW_MANY as usize }> = PerCpuArray::new();
/// What the program on the interface tells the next. Pinned, so that an agent's own programs find what a
/// former one's has left there while that is still attached.
#[btf_map]
static HANDOVER: PerCpuArray<Handover, 1> = PerCpuArray::new();
/// What has been taken off the frame at hand. Pinned, as [`HANDOVER`] is.
#[btf_map]
static TAGGED: PerCpuArray<Tagged, 1> = PerCpuArray::new();
/// What [`track_flow`] is asked, as its caller left it.
#[btf_map]
static QUESTION: PerCpuArray<MaybeUninit<Question>, 1> = PerCpuArray::new();
/// What [`begin_session`] makes, as it is made.
#[btf_map]
static OPENING: PerCpuArray<Opening, 1> = PerCpuArray::new();
/// What the kernel's routing table is asked, and its answer: 64 bytes that the stack has no room for.
#[btf_map]
static FIB: PerCpuArray<bpf_fib_lookup, 1> = PerCpuArray::new();
/// Datagrams in fragments. With eviction: what it costs is one datagram, while a table that is full would cost
/// all those of the next seconds.
#[btf_map]
static DATAGRAMS: LruHashMap<FragmentKey, Datagram, 1> = LruHashMap::new();
/// What is put there, as it is made: the stack has no room for it.
#[btf_map]
static DATAGRAM: PerCpuArray<Datagram, 1> = PerCpuArray::new();
/// The fragment that is being decided over, likewise.
#[btf_map]
static FRAGMENT: PerCpuArray<MaybeUninit<Fragment>, 1> = PerCpuArray::new();
/// Fragments on their way to the agent, which holds them: some 240.
#[btf_map]
static EARLY: RingBuf<MaybeUninit<Early>, { 1 << 19 }> = RingBuf::new();
/// Drops by reason, from [`FIRST_PIECE`] on fragments and from [`FIRST_ANSWER`] on answers by kind.
#[btf_map]
static DROPS: PerCpuArray<u64, { DROP_COUNTERS as usize }> = PerCpuArray::new();

/// Bits of [`feature`] that the program is loaded for, which the loader sets. In read-only data, whose words the verifier
/// takes for constants.
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(feature::ALL);

/// Goes on with another program, of [`TAILS`]; returns where it is not there.
#[inline(always)]
pub fn go_on(ctx: &XdpContext, program: u32) {
    // SAFETY: nothing is borrowed from the frame, which the other program may change.
    unsafe { TAILS.tail_call(ctx, program) };
}

/// The same number, which the compiler knows nothing of: it would prepare that of a verdict that has none, out of whatever is at
/// hand.
#[inline(always)]
pub fn known(number: u32) -> u32 {
    let mut same = u64::from(number);
    // SAFETY: a move to itself.
    unsafe { asm!("{0} = {0}", inout(reg) same, options(nomem, nostack)) };
    same as u32
}

/// Sends the frame out of another interface.
#[inline(always)]
pub fn redirect(interface: u32) -> u32 {
    // SAFETY: takes no pointers.
    unsafe { helpers::bpf_redirect(interface, 0) as u32 }
}

/// Where a fragment is read into.
#[inline(always)]
pub fn fragment_place<'a>() -> Option<&'a mut Fragment> {
    let place = FRAGMENT.get_ptr_mut(0)?;
    // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
    Some(unsafe { (*place).write(Fragment::EMPTY) })
}

/// The one that the program before has read.
#[inline(always)]
pub fn fragment_left<'a>() -> Option<&'a mut Fragment> {
    let place = FRAGMENT.get_ptr_mut(0)?;
    // SAFETY: as above; who goes on with a fragment comes after one that has written all of it.
    Some(unsafe { (*place).assume_init_mut() })
}

/// The maps, as seen while one packet is processed.
pub struct Maps {
    ctx: *mut xdp_md,
    /// The control element, looked up once.
    control: Option<*const Control>,
    /// Whether anything may have been taken off the frame.
    later: bool,
}

impl Maps {
    /// The maps, for the packet of `ctx`.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            later: true,
            ..Self::first(ctx)
        }
    }

    /// The same in the program that sees it first.
    #[inline(always)]
    pub fn first(ctx: &XdpContext) -> Self {
        Self {
            ctx: ctx.ctx,
            control: CONTROL.get_ptr(0),
            later: false,
        }
    }

    /// The maps without a packet: for functions that ask for no route.
    #[inline(always)]
    fn hashing() -> Self {
        Self {
            ctx: core::ptr::null_mut(),
            control: CONTROL.get_ptr(0),
            later: false,
        }
    }

    /// The same for those that hash nothing either.
    #[inline(always)]
    fn alone() -> Self {
        Self {
            ctx: core::ptr::null_mut(),
            control: None,
            later: false,
        }
    }
}

/// The element whose index lies in another map. [`Array::get`] puts its index on the stack, from where it is loaded again:
/// some eight cycles on the one chain of loads that a packet waits for.
#[inline(always)]
fn element<T, const N: usize>(
    map: &'static Array<T, N, MMAPABLE>,
    index: &u32,
) -> Option<&'static T> {
    let found = look_up(core::ptr::from_ref(map).cast(), index);
    // SAFETY: an element of the map, which is never freed, or null. What changes in it is read by itself.
    unsafe { found.cast::<T>().as_ref() }
}

/// The element of an array, or null.
#[inline(always)]
fn look_up(map: *const c_void, index: &u32) -> *mut c_void {
    // SAFETY: the helper reads the key of an array, four bytes.
    unsafe { helpers::bpf_map_lookup_elem(map.cast_mut(), core::ptr::from_ref(index).cast()) }
}

/// Copies the first `length` bytes of the frame of `ctx` to `place`; how many, or `None` where there are none or `place`
/// is too small. The kernel does it, since older verifiers follow a loop anew for every way to it.
///
/// # Safety
/// `ctx` is the program's own, and `place` can be written.
#[inline(always)]
unsafe fn load<const WORDS: usize>(
    ctx: *mut xdp_md,
    place: *mut [u64; WORDS],
    mut length: usize,
) -> Option<u32> {
    if length < wire::ETHERNET {
        return None;
    }
    // SAFETY: a move to itself, which keeps the compiler from making one comparison of the two, of which the verifier
    // would learn no bound.
    unsafe { asm!("{0} = {0}", inout(reg) length, options(nomem, nostack)) };
    if length > 8 * WORDS {
        return None;
    }
    // SAFETY: `place` has room for so many bytes, and whatever they are, they are words.
    let failed = unsafe { helpers::bpf_xdp_load_bytes(ctx, 0, place.cast(), length as u32) };
    (failed == 0).then_some(length as u32)
}

/// Adds a packet to this CPU's share of a counter.
#[inline(always)]
fn count(counters: Option<*mut Counters>, bytes: u64, new_flow: bool) {
    if let Some(counters) = counters {
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        unsafe { (*counters).add(bytes, new_flow) };
    }
}

/// Adds one to this CPU's share of a counter of [`DROPS`].
#[inline(always)]
fn count_one(index: u32) {
    if let Some(counter) = DROPS.get_ptr_mut(index) {
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// Takes one of a bucket, by [`rate::take`].
#[inline(always)]
fn take_one(word: *mut Moment, now: Tick, rate: &Rate) -> bool {
    // SAFETY: an element of a map, which is never freed, though one of sources may become another's once it is
    // evicted, of which one more or less is taken then. Eight bytes and aligned; volatile, since other CPUs
    // write it at any time.
    match rate::take(unsafe { word.read_volatile() }, now, rate) {
        Take::Refused => return false,
        // SAFETY: as above; what others add meanwhile stays.
        Take::Add(interval) => unsafe { add_atomically(word, interval) },
        // SAFETY: as above; others who see a full bucket now write the same.
        Take::Set(to) => unsafe { word.write_volatile(to) },
    }
    true
}

/// In assembly, since the library offers no such addition for this target.
///
/// # Safety
/// `word` is of a map's element, eight bytes and aligned.
#[inline(always)]
unsafe fn add_atomically(word: *mut u64, change: u64) {
    // SAFETY: as the caller promises; every writer adds atomically, or may be overwritten.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {change}",
            word = in(reg) word,
            change = in(reg) change,
        );
    }
}

/// The word of a record that its flags are in.
#[inline(always)]
fn flags_word(record: &mut Record) -> *mut u64 {
    const {
        assert!(offset_of!(Record, flags) == 2 && size_of::<Record>() == 16);
    }
    core::ptr::from_mut(record).cast()
}

/// Flags where that word has them.
#[inline(always)]
const fn in_word(flags: u16) -> u64 {
    (flags as u64) << FLAGS_SHIFT
}

const FLAGS_SHIFT: u32 = if cfg!(target_endian = "big") { 32 } else { 16 };

/// Takes bits off a word, all but those of `mask`, in one step; the flags that were in it. In assembly, as
/// [`add_atomically`] is.
///
/// # Safety
/// `word` is of a map's element, eight bytes and aligned.
#[inline(always)]
unsafe fn fetch_and(word: *mut u64, mask: u64) -> u16 {
    let mut value = mask;
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "{value} = atomic_fetch_and((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    (value >> FLAGS_SHIFT) as u16
}

/// The same of bits that it gets.
///
/// # Safety
/// As [`fetch_and`].
#[inline(always)]
unsafe fn fetch_or(word: *mut u64, bits: u64) -> u16 {
    let mut value = bits;
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    (value >> FLAGS_SHIFT) as u16
}

impl Tables for Maps {
    #[inline(always)]
    fn knows(&self, feature: u32) -> bool {
        FEATURES.load() & feature != 0
    }

    #[inline(always)]
    fn uses(&self, feature: u32) -> bool {
        // In one go: with a branch for each, the compiler jumps into the middle of what follows, with registers that the
        // verifier knows to hold something else.
        let known = FEATURES.load();
        self.control()
            .is_some_and(|control| control.features & known & feature != 0)
    }

    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        // SAFETY: an element of the map, which is never freed; what changes in it is read by itself.
        self.control.map(|control| unsafe { &*control })
    }

    #[inline(always)]
    fn generation(&self) -> u64 {
        match self.control {
            // SAFETY: an element of the map; volatile, since the agent stores to it at any time.
            Some(control) => unsafe { (&raw const (*control).generation).read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        LOOKUP.get(index)
    }

    #[inline(always)]
    fn service_entry(&self, index: u32) -> Option<&ServiceEntry> {
        SERVICE_ENTRIES.get(index.wrapping_add(1))
    }

    #[inline(always)]
    fn service_entry_of(&self, place: &u32) -> Option<&ServiceEntry> {
        element(&SERVICE_ENTRIES, place)
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
    fn backend_of(&self, member: &Member) -> Option<&Backend> {
        element(&BACKENDS, &member.backend)
    }

    #[inline(always)]
    fn way_back(&self, key: &Endpoint) -> Option<WayBack> {
        // SAFETY: copied at once, from memory that stays the map's. An element that the agent removes or
        // replaces meanwhile may be another backend's before the copy is done, since the map reuses it at
        // once: an answer of a backend that leaves may then come from another VIP, of which its client
        // has no connection. Any bytes are a `WayBack`.
        unsafe { WAYS_BACK.get(key) }.copied()
    }

    #[inline(always)]
    fn may_answer(&self, answer: Answer) -> bool {
        match BUDGETS.get_ptr_mut(answer as u32) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
            Some(budget) => unsafe { (*budget).take(self.now()) },
            None => false,
        }
    }

    #[inline(always)]
    fn hand_over(&self, handover: Handover) {
        if let Some(place) = HANDOVER.get_ptr_mut(0) {
            // SAFETY: this CPU's element, which nothing else touches while a packet is processed on it.
            unsafe { *place = handover };
        }
    }

    #[inline(always)]
    fn handed_over(&self) -> Handover {
        match HANDOVER.get_ptr(0) {
            // SAFETY: as above; any bytes are a `Handover`.
            Some(place) => unsafe { *place },
            None => Handover::default(),
        }
    }

    #[inline(always)]
    fn server(&self, key: &ServerKey) -> Option<Server> {
        // SAFETY: copied at once, from memory that is given back only after a grace period, though the
        // kernel's allocator of elements may make another of it before (since Linux 6.1). It
        // counts only for a live member of the packet's own service, so that at worst one packet goes to
        // another server. Any bytes are a `Server`.
        unsafe { SERVERS.get(key) }.copied()
    }

    #[inline(always)]
    fn owned(&self, address: &Address) -> u32 {
        // SAFETY: copied at once; a word, so that it is one that some address has.
        unsafe { OWNED.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn hardware_address(&self, interface: u32) -> Option<[u8; 6]> {
        // SAFETY: copied at once, from memory that is given back only after a grace period. Any bytes are an `Interface`.
        unsafe { INTERFACES.get(interface) }.map(|found| found.mac)
    }

    #[inline(always)]
    fn tagged(&self) -> Option<Tagged> {
        if !self.later || !self.knows(feature::VLAN) {
            return None;
        }
        let place = TAGGED.get_ptr(0)?;
        // SAFETY: this CPU's element, which nothing else touches while a packet is processed on it; any bytes are a `Tagged`.
        // Volatile, or the compiler makes one instruction of these loads and those of the context, which the verifier refuses.
        let tagged = unsafe {
            Tagged {
                tags: (*place).tags,
                count: (&raw const (*place).count).read_volatile(),
                interface: (&raw const (*place).interface).read_volatile(),
            }
        };
        (tagged.count != 0).then_some(tagged)
    }

    #[inline(always)]
    fn note_tags(&self, tagged: &Tagged) {
        if let Some(place) = TAGGED.get_ptr_mut(0) {
            // SAFETY: as above.
            unsafe { *place = *tagged };
        }
    }

    #[inline(always)]
    fn vlan(&self, key: &VlanKey) -> Option<u32> {
        // SAFETY: copied at once; a word, so that it is one that some device has.
        unsafe { VLANS.get(key) }.copied()
    }

    #[inline(always)]
    fn upper(&self, interface: u32) -> Option<&Upper> {
        // SAFETY: memory that is given back only after a grace period, in which nobody writes to it.
        unsafe { UPPERS.get(interface) }
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute> {
        let params = FIB.get_ptr_mut(0).ok_or(NoRoute::Refused)?;
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        let params = unsafe { &mut *params };
        // SAFETY: the context is the kernel's own.
        let mut ingress = unsafe { (*self.ctx).ingress_ifindex };
        if let Some(tagged) = self.tagged() {
            ingress = tagged.interface & !UPPER;
        }
        let mut route = fib::look_up(self.ctx, params, query, ingress, NoRoute::Refused)?;
        if self.knows(feature::VLAN) {
            // The key where it lies, as in `element`.
            #[expect(
                clippy::needless_borrows_for_generic_args,
                reason = "a copy would be on the stack"
            )]
            // SAFETY: as in `upper`.
            let upper = unsafe { UPPERS.get(&params.ifindex) };
            route.interface = vlan::led(route.interface, upper, query.length)?;
        }
        Ok(route)
    }

    #[inline(always)]
    fn count_service(&self, index: u32, bytes: u64, new_flow: bool) {
        count(SERVICE_COUNTERS.get_ptr_mut(index), bytes, new_flow);
    }

    #[inline(always)]
    fn count_backend(&self, backend: &Backend, bytes: u64, new_flow: bool) {
        let map = core::ptr::from_ref(&BACKEND_COUNTERS).cast();
        let counters = look_up(map, &backend.counters).cast::<Counters>();
        count((!counters.is_null()).then_some(counters), bytes, new_flow);
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason) {
        count_one(reason as u32);
    }

    #[inline(always)]
    fn count_answer(&self, answer: Answer) {
        count_one(FIRST_ANSWER + answer as u32);
    }

    #[inline(always)]
    fn count_piece(&self, piece: Piece) {
        count_one(FIRST_PIECE + piece as u32);
    }

    #[inline(always)]
    fn visit_datagram<R>(
        &self,
        key: &FragmentKey,
        visit: impl FnOnce(&mut Datagram) -> R,
    ) -> Option<R> {
        let datagram = DATAGRAMS.get_ptr_mut(key)?;
        // SAFETY: an element of a preallocated map is never freed, though it may become another datagram's once
        // it is evicted, of which a fragment then goes astray. Another CPU may write the same fields at the same
        // time; each is written whole.
        Some(visit(unsafe { &mut *datagram }))
    }

    #[inline(always)]
    fn note_datagram(&self, key: &FragmentKey, fill: impl FnOnce(&mut Datagram)) {
        let Some(datagram) = DATAGRAM.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        let datagram = unsafe { &mut *datagram };
        *datagram = Datagram::default();
        fill(datagram);
        // Without it, the other fragments are as those that came too early.
        #[expect(
            clippy::needless_borrows_for_generic_args,
            reason = "by value, it would be copied to the stack, which has no room for it"
        )]
        let _ = DATAGRAMS.insert(key, &*datagram, BPF_ANY.into());
    }

    #[inline(always)]
    fn hold<P: Packet>(&self, packet: &P, key: &FragmentKey, offset: u32) -> bool {
        let Some(budget) = BUDGETS.get_ptr_mut(budget::HELD) else {
            return false;
        };
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        if !unsafe { (*budget).take(self.now()) } {
            return false;
        }
        let Some(mut place) = EARLY.reserve(0) else {
            return false;
        };
        let early: *mut Early = place.as_mut_ptr().cast();
        let length = fragment::holds(packet).and_then(|length| {
            // SAFETY: the place is an `Early`'s, and this program's alone until it is submitted; the context is that
            // of the program's own frame.
            unsafe { load(self.ctx, &raw mut (*early).frame, length) }
        });
        let Some(length) = length else {
            place.discard(0);
            return false;
        };
        let tagged = self.tagged().unwrap_or(Tagged::NONE);
        // SAFETY: as above.
        unsafe {
            (*early).key = *key;
            (*early).interface = packet.interface();
            (*early).length = length;
            (*early).offset = offset;
            (*early).tag_count = tagged.count;
            (*early).tags = tagged.tags;
        }
        place.submit(0);
        true
    }

    #[inline(always)]
    fn guards(&self, pool: u32) -> Option<&GuardEntry> {
        GUARDS.get(pool)
    }

    #[inline(always)]
    fn access(&self, key: &AccessKey) -> u32 {
        let [a, b, c, d] = key.address.words();
        let key = Key::new(key.bits, [key.list, a, b, c, d]);
        // Copied at once; a word, so that it is one that some prefix has.
        ACCESS.get(&key).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn class(&self, key: &VipKey) -> [u32; 2] {
        let [a, b, c, d] = key.address.words();
        let key = Key::new(key.bits, [key.protocol, a, b, c, d]);
        CLASSES.get(&key).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn class_port(&self, key: &ClassKey) -> u32 {
        let [first, second] = key.port;
        let port = u32::from_ne_bytes([first, second, 0, 0]);
        let key = Key::new(key.bits, [key.class, port]);
        CLASS_PORTS.get(&key).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn take_of_source(&self, key: &SourceKey, rate: &Rate) -> bool {
        let mut word = SOURCE_BUCKETS.get_ptr_mut(key);
        if word.is_none() {
            // Another CPU may have put it there meanwhile, which is as good.
            let _ = SOURCE_BUCKETS.insert(key, 0, BPF_NOEXIST.into());
            word = SOURCE_BUCKETS.get_ptr_mut(key);
        }
        match word {
            Some(word) => take_one(word, self.now(), rate),
            // No room at all: the service's own limit holds nevertheless.
            None => true,
        }
    }

    #[inline(always)]
    fn take_of_service(&self, service: u32, rate: &Rate) -> bool {
        match SERVICE_BUCKETS.get_ptr_mut(service) {
            Some(word) => take_one(word, self.now(), rate),
            None => true,
        }
    }

    #[inline(always)]
    fn take_of_unproxied(&self, service: u32, rate: &Rate) -> bool {
        match UNPROXIED_BUCKETS.get_ptr_mut(service) {
            Some(word) => take_one(word, self.now(), rate),
            None => true,
        }
    }

    #[inline(always)]
    fn cookie(&self, flow: &Flow, sequence: u32, mss: u16) -> Option<(u32, u16)> {
        cookie::of(flow, sequence, mss)
    }

    #[inline(always)]
    fn is_cookie(&self, flow: &Flow, sequence: u32, cookie: u32) -> bool {
        cookie::is(flow, sequence, cookie)
    }

    #[inline(always)]
    fn now(&self) -> Tick {
        // SAFETY: takes no pointers.
        (unsafe { helpers::generated::bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as Tick
    }

    #[inline(always)]
    fn visit<R>(
        &self,
        table: Table,
        key: &FlowKey,
        visit: impl FnOnce(&mut Record) -> R,
    ) -> Option<R> {
        let record = flow_table(table).get_ptr_mut(key)?;
        // SAFETY: an element of a preallocated map is never freed, and any bytes are a `Record`. Another
        // CPU may write the same flow's fields at the same time; each is written whole, and any mix of
        // them is one that the flow's packets in another order would have left. An element that is
        // removed meanwhile (by a promotion, by the sweep, for a record in its place) may become another
        // flow's, of which this then reads or writes a field (docs/consistency.md, "Its limits").
        Some(visit(unsafe { &mut *record }))
    }

    #[inline(always)]
    fn record(&self, table: Table, key: &FlowKey, record: &Record, over: bool) -> Recorded {
        let flags = if over { BPF_ANY } else { BPF_NOEXIST };
        recorded(flow_table(table).insert(key, record, flags.into()))
    }

    #[inline(always)]
    fn forget(&self, table: Table, key: &FlowKey) {
        // Gone already is as good.
        let _ = flow_table(table).remove(key);
    }

    #[inline(always)]
    fn visit_session<R>(&self, key: &FlowKey, visit: impl FnOnce(&mut Session) -> R) -> Option<R> {
        let session = SESSIONS.get_ptr_mut(key)?;
        // SAFETY: as with a flow's record, though its memory is given back after a grace period, which the kernel's
        // allocator of elements sees to. Which port and backend it has is written when its element is put into
        // the map only; one that is replaced meanwhile may become another flow's, whose packet then goes
        // astray.
        Some(visit(unsafe { &mut *session }))
    }

    #[inline(always)]
    fn clear_flags(&self, record: &mut Record, flags: u16) -> u16 {
        // SAFETY: of a map's element, as it is called with no other, whose first eight bytes are aligned.
        unsafe { fetch_and(flags_word(record), !in_word(flags)) }
    }

    #[inline(always)]
    fn set_flags(&self, record: &mut Record, flags: u16) -> u16 {
        // SAFETY: as above.
        unsafe { fetch_or(flags_word(record), in_word(flags)) }
    }

    #[inline(always)]
    fn put_session(&self, key: &FlowKey, session: &Session) -> Recorded {
        recorded(SESSIONS.insert(key, session, BPF_NOEXIST.into()))
    }

    #[inline(always)]
    fn remove_session(&self, key: &FlowKey) {
        // Gone already is as good.
        let _ = SESSIONS.remove(key);
    }

    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<FlowKey> {
        // SAFETY: copied at once, from memory that is the map's for as long as this runs. An element that is released
        // meanwhile may be another port's before the copy is done: what it leads to is compared with the port again.
        unsafe { PORTS.get(key) }.copied()
    }

    #[inline(always)]
    fn claim_port(&self, key: &PortKey, flow: &FlowKey) -> Recorded {
        recorded(PORTS.insert(key, flow, BPF_NOEXIST.into()))
    }

    #[inline(always)]
    fn hand_port_on(&self, key: &PortKey, flow: &FlowKey) -> bool {
        PORTS.insert(key, flow, BPF_EXIST.into()).is_ok()
    }

    #[inline(always)]
    fn release_port(&self, key: &PortKey) {
        // Gone already is as good.
        let _ = PORTS.remove(key);
    }

    #[inline(always)]
    fn pool_address(&self, key: &PoolKey) -> Option<Address> {
        // SAFETY: copied at once, from memory that is given back only after a grace period. The addresses of a pool
        // leave after one in which no packet can have seen its number in force.
        unsafe { POOL_ADDRESSES.get(key) }.copied()
    }

    #[inline(always)]
    fn count_flow(&self, service: u32, event: FlowEvent) {
        if let Some(counters) = FLOW_COUNTERS.get_ptr_mut(service) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
            unsafe { (*counters).add(event) };
        }
    }

    #[inline(always)]
    fn load(&self, counters: u32) -> u32 {
        let load = match LOADS.get_ptr(counters) {
            // SAFETY: an element of the map; volatile, since other CPUs add to it at any time.
            Some(load) => unsafe { load.read_volatile() },
            None => 0,
        };
        // Below zero for a moment reads as zero.
        if load >> 63 == 0 { load as u32 } else { 0 }
    }

    #[inline(always)]
    fn add_load(&self, counters: u32, change: i32) {
        if let Some(load) = LOADS.get_ptr_mut(counters) {
            // SAFETY: an element of the map, eight bytes and aligned.
            unsafe { add_atomically(load, i64::from(change) as u64) };
        }
    }

    #[inline(always)]
    fn turn(&self, pool: u32) -> u32 {
        match TURNS.get_ptr_mut(pool) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
            Some(turn) => unsafe {
                *turn = (*turn).wrapping_add(1);
                *turn
            },
            None => 0,
        }
    }

    #[inline(always)]
    fn exact_now(&self) -> u64 {
        // SAFETY: takes no pointers.
        unsafe { helpers::bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn comes_by(&self, counters: u32) -> u32 {
        match SIGNS.get_ptr(counters) {
            // SAFETY: an element of the map; volatile, since the agent stores to it at any time.
            Some(signs) => unsafe { (&raw const (*signs).interface).read_volatile() as u32 },
            None => 0,
        }
    }

    #[inline(always)]
    fn add_sign(&self, counters: u32, sign: Sign, amount: u64) {
        let Some(signs) = SIGNS.get_ptr_mut(counters) else {
            return;
        };
        // SAFETY: an element of the map, which is never freed, and of words alone, which others only add to.
        let word: *mut u64 = unsafe { (*signs).word(sign) };
        // SAFETY: as above; eight bytes and aligned.
        unsafe { add_atomically(word, amount) };
    }

    #[inline(always)]
    fn end_streak(&self, counters: u32) {
        if let Some(signs) = SIGNS.get_ptr_mut(counters) {
            // SAFETY: an element of the map. Volatile, since other CPUs add to it at any time; it is written
            // only where that changes it, so that its line stays with every CPU otherwise.
            unsafe {
                let streak = &raw mut (*signs).streak;
                if streak.read_volatile() != 0 {
                    streak.write_volatile(0);
                }
            }
        }
    }

    #[inline(always)]
    fn visit_handshake<R>(&self, place: u32, visit: impl FnOnce(&mut Handshake) -> R) -> Option<R> {
        let handshake = HANDSHAKES.get_ptr_mut(place)?;
        // SAFETY: an element of the map, and any bytes are a `Handshake`. Another CPU, or the agent, may write the
        // same one at the same time: of which a handshake is counted twice, or not at all.
        Some(visit(unsafe { &mut *handshake }))
    }

    #[inline(always)]
    fn note(&self, counters: u32, said: Said, interface: u32) {
        note_answer(counters, said as u32, interface);
    }

    #[inline(always)]
    fn follow_handshake(&self, step: Step) {
        follow_handshake(step.tag, step.sequence, step.counters, step.signal as u32);
    }

    #[inline(always)]
    fn admits_source(&self, request: Request) -> u32 {
        let (first, last) = request.source.halves();
        admits_source(first, last, request.service)
    }

    #[inline(always)]
    fn admits_flow(&self, request: Request, recorded: bool) -> u32 {
        let (first, last) = request.source.halves();
        let service = request.service << 1 | u32::from(recorded);
        admits_flow(first, last, service, request.ports, request.host)
    }

    #[inline(always)]
    fn find_apart(&self, endpoint: Endpoint, half: u32) -> u32 {
        let [a, b, c, d] = endpoint.address.words();
        let word = |first: u32, second: u32| u64::from(second) << 32 | u64::from(first);
        let rest = u32::from(endpoint.port) << 8 | u32::from(endpoint.protocol);
        find_service(word(a, b), word(c, d), rest, half)
    }

    #[inline(always)]
    fn owned_as_prefix(&self, address: Address) -> u32 {
        let (first, second) = address.halves();
        own_prefix(first, second)
    }

    #[inline(always)]
    fn subset(&self, source: Address, RouteTable(table): RouteTable) -> u32 {
        let (first, last) = source.halves();
        subset_of(first, last, table)
    }

    #[inline(always)]
    fn pick(&self, service: u32, half: u32, hash: FlowHash, spot: Spot) -> u32 {
        pick_backend(service, half, hash.word(), spot.slot.0, spot.subset)
    }

    #[inline(always)]
    fn least(&self, service: u32, half: u32, subset: u32) -> u32 {
        least_backend(service, both(half, subset))
    }

    #[inline(always)]
    fn lightest(&self, service: u32, half: u32, subset: u32, start: u32) -> u32 {
        lightest_backend(service, both(half, subset), start)
    }

    #[inline(always)]
    fn route_by_id(&self, service: u32, half: u32, Start([first, second, third]): Start) -> u32 {
        route_by_connection_id(service, half, first, second, third)
    }

    #[inline(always)]
    fn track(&self, question: &Question) -> u32 {
        let Some(place) = QUESTION.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
        let asked = unsafe { (*place).write(*question) };
        track::settle(|over| {
            asked.over = over;
            track_flow()
        })
    }

    #[inline(always)]
    fn ask(&self, question: &Question) {
        if let Some(place) = QUESTION.get_ptr_mut(0) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it.
            unsafe { (*place).write(*question) };
        }
    }

    #[inline(always)]
    fn choose(&self, question: &Question) -> u32 {
        self.ask(question);
        choose_backend()
    }

    // The question is the one that `choose_backend` was asked.
    #[inline(always)]
    fn begin_session(&self, _: &Question, id: u32, proxied: Proxied) -> u32 {
        begin_session(id, proxied.cookie, proxied.sequence, proxied.mss.into())
    }

    #[inline(always)]
    fn take_over(&self, _: &Question, id: u32, proxied: Proxied) -> u32 {
        take_over_port(id, proxied.cookie, proxied.sequence, proxied.mss.into())
    }

    // The question is the one that `track_flow` was asked.
    #[inline(always)]
    fn recall(&self, _: &Question) -> u32 {
        recall_client()
    }

    #[inline(always)]
    fn remember(&self, _: &Question, id: u32) {
        remember_client(id);
    }

    #[inline(always)]
    fn confirm(&self, _: &Question, id: u32) {
        confirm_client(id);
    }
}

/// [`passive::note`] as a function that the verifier takes by itself, for packets of handshakes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_answer(counters: u32, said: u32, interface: u32) -> u32 {
    passive::note(&Maps::alone(), counters, Said::from_number(said), interface);
    0
}

/// [`passive::follow`] likewise, for flows of which the handshake is watched.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow_handshake(tag: u64, sequence: u32, counters: u32, signal: u32) -> u32 {
    let step = Step {
        tag,
        sequence,
        counters,
        signal: Signal::from_number(signal),
    };
    passive::follow(&Maps::alone(), step);
    0
}

/// [`admit::judge_source`] as a function that the verifier takes by itself, out of the way of services that are
/// open to everybody. Takes the source in two words.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admits_source(first: u64, last: u64, service: u32) -> u32 {
    let request = Request {
        source: Address::from_halves(first, last),
        service,
        ports: 0,
        host: 0,
    };
    admit::judge_source(&Maps::alone(), &request)
}

/// [`admit::judge_flow`] likewise; the last bit of `service` says whether flows that are recorded do not begin.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admits_flow(first: u64, last: u64, service: u32, ports: u32, host: u64) -> u32 {
    let request = Request {
        source: Address::from_halves(first, last),
        service: service >> 1,
        ports,
        host,
    };
    admit::judge_flow(&Maps::alone(), &request, service & 1 != 0)
}

/// [`steer::find`] as a function that the verifier takes by itself, for those few packets that a second
/// look-up is for. Takes the endpoint in words, its protocol in the last byte of `rest`, its port above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_service(first: u64, second: u64, rest: u32, half: u32) -> u32 {
    let words = [
        first as u32,
        (first >> 32) as u32,
        second as u32,
        (second >> 32) as u32,
    ];
    let endpoint = Endpoint {
        address: Address::from_words(words),
        port: (rest >> 8) as u16,
        protocol: rest as u8,
        zero: 0,
        zeros: 0,
    };
    let maps = Maps::hashing();
    steer::find(&maps, &endpoint, half)
}

/// [`steer::owned_as_prefix`], likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn own_prefix(first: u64, second: u64) -> u32 {
    let address = Address::from_halves(first, second);
    steer::owned_as_prefix(&Maps::alone(), address)
}

/// [`steer::subset`], likewise, out of the way of services without source routes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn subset_of(first: u64, last: u64, table: u32) -> u32 {
    let source = Address::from_halves(first, last);
    steer::subset(&Maps::alone(), source, RouteTable(table))
}

/// [`schedule::pick`] as a function that the verifier takes by itself, whatever its callers do, so
/// that the program stays within its budget.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pick_backend(service: u32, half: u32, hash: u64, slot: u32, subset: u32) -> u32 {
    let spot = Spot {
        slot: Slot(slot),
        subset,
    };
    let hash = FlowHash::from_word(hash);
    schedule::pick(&Maps::alone(), service, half, hash, spot)
}

/// [`schedule::least`] likewise: a loop around the one of [`lightest_backend`], which the verifier would
/// follow as often as this one turns.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn least_backend(service: u32, both: u32) -> u32 {
    schedule::least(&Maps::alone(), service, both & 1, both >> 1)
}

/// [`schedule::lightest`] likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lightest_backend(service: u32, both: u32, start: u32) -> u32 {
    schedule::lightest(&Maps::alone(), service, both & 1, both >> 1, start)
}

/// Half and subset in the one number that these take, so that neither is kept on the stack beside the other.
#[inline(always)]
const fn both(half: u32, subset: u32) -> u32 {
    subset << 1 | (half & 1)
}

/// [`quic::route`] as another such function, out of the way of services that are not QUIC.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn route_by_connection_id(
    service: u32,
    half: u32,
    first: u64,
    second: u64,
    third: u64,
) -> u32 {
    let start = Start([first, second, third]);
    quic::route(&Maps::alone(), service, half, start)
}

/// [`track::answer`] as another such function. Takes its argument through a map, since it may be given
/// no pointers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn track_flow() -> u32 {
    match question() {
        Some(question) => track::answer(&Maps::alone(), question),
        None => 0,
    }
}

/// [`track::choose`] likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose_backend() -> u32 {
    match question() {
        Some(question) => track::choose(&Maps::alone(), question),
        None => schedule::NOBODY,
    }
}

/// [`session::begin`] likewise, out of the way of sessions that are there already.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin_session(id: u32, cookie: u32, sequence: u32, mss: u32) -> u32 {
    let maps = Maps::hashing();
    let proxied = proxied(cookie, sequence, mss);
    match question() {
        Some(question) => match OPENING.get_ptr_mut(0) {
            // SAFETY: this CPU's element, which nothing else touches while the program runs on it; any bytes are an
            // `Opening`.
            Some(place) => session::begin(&maps, question, id, proxied, unsafe { &mut *place }),
            None => session::INCONSISTENT,
        },
        None => session::INCONSISTENT,
    }
}

/// [`session::take_over`] likewise, out of the way of flows that find a port.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_over_port(id: u32, cookie: u32, sequence: u32, mss: u32) -> u32 {
    let maps = Maps::hashing();
    let proxied = proxied(cookie, sequence, mss);
    match (question(), OPENING.get_ptr_mut(0)) {
        (Some(question), Some(place)) => {
            // SAFETY: as in `begin_session`.
            session::take_over(&maps, question, id, proxied, unsafe { &mut *place })
        }
        _ => session::INCONSISTENT,
    }
}

/// A handshake, of which nothing is known yet of the backend's end.
#[inline(always)]
const fn proxied(cookie: u32, sequence: u32, mss: u32) -> Proxied {
    Proxied {
        cookie,
        sequence,
        shift: 0,
        mss: mss as u16,
        zeros: [0; 2],
    }
}

/// What is being asked.
#[inline(always)]
fn question<'a>() -> Option<&'a Question> {
    let question = QUESTION.get_ptr(0)?;
    // SAFETY: this CPU's element, which the caller of `track_flow` wrote before.
    Some(unsafe { (*question).assume_init_ref() })
}

/// [`persist::recall`] likewise; so are the two that follow. They have some stack of their own, which a
/// packet of an unknown client alone pays for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recall_client() -> u32 {
    match question() {
        Some(question) => persist::recall(&Maps::alone(), question),
        None => schedule::NOBODY,
    }
}

/// [`persist::remember`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember_client(id: u32) -> u32 {
    if let Some(question) = question() {
        persist::remember(&Maps::alone(), question, id);
    }
    0
}

/// [`persist::confirm`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn confirm_client(id: u32) -> u32 {
    if let Some(question) = question() {
        persist::confirm(&Maps::alone(), question, id);
    }
    0
}

/// What became of an element to be inserted.
#[inline(always)]
fn recorded(inserted: Result<(), i32>) -> Recorded {
    match inserted {
        Ok(()) => Recorded::Done,
        Err(error) if error == -EEXIST => Recorded::Taken,
        Err(_) => Recorded::Full,
    }
}

#[inline(always)]
fn flow_table(table: Table) -> &'static HashMap<FlowKey, Record, 1> {
    match table {
        Table::Established => &ESTABLISHED,
        Table::HalfOpen => &HALF_OPEN,
    }
}
