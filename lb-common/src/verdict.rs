//! What becomes of a packet, and why one is dropped. Names only; no behaviour beyond them.

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours, or the kernel's to finish: on to the network stack.
    Pass,
    /// Out of the interface it came in by.
    Transmit,
    /// Out of another interface, by index.
    Redirect(u32),
    /// Kept for a moment, to come again as if from the network.
    Held,
    /// Gone, and counted.
    Drop(DropReason),
}

macro_rules! counted {
    (
        $(#[doc = $about:literal])+ $kind:ident:
        $($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $kind {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl $kind {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name in the API and in metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counted! {
    /// Why a packet addressed to a VIP was not forwarded, though its sender may have been told
    /// ([`Answer`]). The number is the counter's index and never changes its meaning.
    DropReason:
    /// The service has no backend that may take the packet.
    NoBackend = 0, "no_backend";
    /// The chosen backend has no known next hop yet.
    NoNextHop = 1, "no_next_hop";
    /// Shorter than its headers say.
    Truncated = 2, "truncated";
    /// An IP header that contradicts itself or the frame (RFC 791 §3.1, RFC 8200 §3).
    BadHeader = 3, "bad_header";
    /// A fragment of a datagram whose first one was dropped.
    Fragment = 4, "fragment";
    /// More IPv6 extension headers than are followed, or one that must not be skipped.
    ExtensionHeaders = 5, "extension_headers";
    /// Would exceed 65,535 bytes once encapsulated.
    TooLong = 6, "too_long";
    /// Its TTL or hop limit ran out.
    TtlExpired = 7, "ttl_expired";
    /// The frame had no room for another header.
    NoHeadroom = 8, "no_headroom";
    /// The tables contradict each other: a defect of ours.
    Inconsistent = 9, "inconsistent";
    /// An echo request to a VIP, of more than are answered ([`crate::budget::LIMIT`]).
    EchoLimit = 10, "echo_limit";
    /// To a port of a VIP, or of a protocol, that no service has.
    UnknownPort = 11, "unknown_port";
    /// Longer than the way to its backend takes, with what the mode puts in front of it; of mode `full-nat`, also an
    /// answer that is longer than the way to its client.
    PacketTooBig = 12, "packet_too_big";
    /// A first fragment without all of its headers, or one that would write over them
    /// (RFC 1858, RFC 3128, RFC 8200 §4.5).
    FragmentTiny = 13, "fragment_tiny";
    /// A fragment of what has come before, or of a datagram of which two overlapped (RFC 5722).
    FragmentOverlap = 14, "fragment_overlap";
    /// A fragment that is empty, ends where none may follow, or makes its datagram too long.
    FragmentMalformed = 15, "fragment_malformed";
    /// A fragment whose first one has not come in time, or that could not be held until then.
    FragmentBeforeFirst = 16, "fragment_before_first";
    /// The service's access list denies its source ([`crate::admit`]).
    AccessDenied = 17, "access_denied";
    /// It would begin a flow, of more than its source may begin.
    SourceLimit = 18, "source_limit";
    /// It would begin a flow, of more than may begin.
    ServiceLimit = 19, "service_limit";
    /// Of mode `full-nat`: no port of the address pool that was tried for its flow was free, or there was no room for
    /// another session.
    PortsExhausted = 20, "ports_exhausted";
    /// Of mode `full-nat`: it is of a connection that is not known, and opens none.
    NoSession = 21, "no_session";
    /// From an address that no host has ([`crate::martian`]).
    MartianSource = 22, "martian_source";
    /// From the address that it goes to.
    Land = 23, "land";
    /// An answer to a session of mode `full-nat` that no route leads on to its client.
    NoRoute = 24, "no_route";
    /// An ARP request for a VIP that contradicts itself (RFC 826, RFC 1122 §3.3.6).
    ArpMalformed = 25, "arp_malformed";
    /// A neighbour solicitation for a VIP that has passed a router (RFC 4861 §7.1.1).
    NdHopLimit = 26, "nd_hop_limit";
    /// One with a wrong checksum.
    NdChecksum = 27, "nd_checksum";
    /// One that breaks another rule there.
    NdMalformed = 28, "nd_malformed";
    /// With a source route of IPv4 (RFC 791 §3.1), by which it is led and which answers would have to follow back.
    SourceRoute = 29, "source_route";
    /// Of a service that has got another mode, or has gone, while the packet was looked at.
    Switched = 30, "switched";
    /// Of a service whose SYNs are answered for its backends ([`crate::syn_proxy`]): it is of a connection that is not known,
    /// and acknowledges no SYN cookie.
    CookieInvalid = 31, "cookie_invalid";
}

counted! {
    /// What was answered in a VIP's name, and why not. Numbers are as those of [`DropReason`].
    Answer:
    /// An echo reply.
    Echo = 0, "echo";
    /// A TCP reset.
    Reset = 1, "reset";
    /// An ICMP error.
    Unreachable = 2, "unreachable";
    /// Nothing, since the packet is none to be answered ([`crate::refuse`]).
    Withheld = 3, "withheld";
    /// Nothing, of more than are answered in a second ([`crate::budget`]).
    Limited = 4, "limited";
    /// An ICMP error that says what length the way to a backend takes.
    TooBig = 5, "too_big";
    /// An ARP reply.
    Arp = 6, "arp";
    /// A neighbour advertisement.
    Neighbour = 7, "neighbour";
    /// An ICMP error that says that a packet has been through as many hops as it may.
    Expired = 8, "expired";
}

counted! {
    /// What fragments of datagrams to VIPs, and of answers to their clients, came to. Numbers are as those of
    /// [`DropReason`].
    Piece:
    /// A first one, by which the others will be steered.
    First = 0, "first";
    /// One that followed its first one.
    Later = 1, "later";
    /// One that came before it, and was held.
    Held = 2, "held";
    /// One that was held, and followed.
    Released = 3, "released";
}

/// Elements of the map that drops and answers are counted in: room for those to come.
pub const DROP_COUNTERS: u32 = 64;

/// Where the fragments begin in it.
pub const FIRST_PIECE: u32 = 40;

/// Where the answers begin in it.
pub const FIRST_ANSWER: u32 = 48;

const _: () = {
    assert!(DropReason::ALL.len() <= FIRST_PIECE as usize);
    assert!(Piece::ALL.len() <= (FIRST_ANSWER - FIRST_PIECE) as usize);
    assert!(Answer::ALL.len() <= (DROP_COUNTERS - FIRST_ANSWER) as usize);
};
