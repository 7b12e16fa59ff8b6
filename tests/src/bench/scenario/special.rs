//! What fewer packets are: of other shapes and services, from backends, about others, refused or answered; and what a backend's
//! decapsulator makes of tunnels. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    tables::feature,
    verdict::{Answer, DropReason},
    wire,
};
use lb_userspace::model::Mode;

use super::{End, Fleet, IPIP, NAT, POOL, POOL_V6, Records, SYN, Scenario, TCP, steady};
use crate::bench::{
    frame::{Frame, Payload, Tag, Tunnel, flags},
    services::{Also, Kind, Pool, WIDE_WAY},
};

/// Flows of the sweeps here.
const FLOWS: [u32; 3] = [1, 1_000_000, 0];
/// A tag, and a service provider's in front of it.
const TAG: Tag = [0x81, 0x00, 0x00, 100];
const OUTER_TAG: Tag = [0x88, 0xa8, 0x00, 7];
/// Bytes of what is too long for the way to a backend, and of what takes more than a page; Ethernet header included.
const TOO_BIG: usize = 1_514;
const JUMBO: usize = 9_014;
/// Where tunnels end.
pub const TERMINALS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 3, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, 1)),
];
/// Who else may have a flow.
pub const OTHERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 2, 0, 9)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 9)),
];
/// VIPs that a backend has, with a server on [`SERVED`].
pub const BACKEND_VIPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 250)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x250)),
];
/// The server's port, and one that nobody listens on.
const SERVED: u16 = 80;
const UNSERVED: u16 = 81;

/// Every scenario, those together that the program is loaded for once. If `quick`, it is loaded for all of them at once, which takes
/// most of the time otherwise.
pub(super) fn all(quick: bool) -> Vec<Scenario> {
    let mut list = Vec::new();
    for family in [V4, V6] {
        list.extend(tunnelled(&family));
        list.extend(shaped(&family));
        list.extend(found(&family));
        list.extend(translated(&family));
        list.extend(answers(&family));
        list.extend(errors(&family));
        let summed = |scenario| framed(scenario, Frame::summed);
        list.extend(answered(&family).into_iter().map(summed));
        list.extend(dropped(&family));
        list.extend(extras(&family));
    }
    list.push(echo_limited());
    for scenario in &mut list {
        scenario.unpruned = quick;
    }
    list.sort_by_key(|scenario| scenario.features().ok());
    for family in [V4, V6] {
        list.extend(backend(&family));
    }
    list
}

/// What names, services and pools of a family are.
struct FamilyOf {
    name: &'static str,
    v4: bool,
    pool: Pool,
}

const V4: FamilyOf = FamilyOf {
    name: "v4",
    v4: true,
    pool: POOL,
};
const V6: FamilyOf = FamilyOf {
    name: "v6",
    v4: false,
    pool: POOL_V6,
};

impl FamilyOf {
    /// A scenario's name.
    fn named(&self, what: &str, rest: &str) -> String {
        format!("{what}-{}{rest}", self.name)
    }

    /// A kind with backends of this family.
    fn with(&self, kind: Kind) -> Kind {
        Kind {
            pool: self.pool,
            ..kind
        }
    }

    /// One of two.
    fn pick<T: Copy>(&self, v4: T, v6: T) -> T {
        if self.v4 { v4 } else { v6 }
    }

    /// Of a pair, the one of this family.
    fn own(&self, [v4, v6]: [IpAddr; 2]) -> IpAddr {
        self.pick(v4, v6)
    }

    /// A steady scenario of a service of the `n`th VIP.
    fn of(&self, name: &str, n: u8, kind: Kind, payload: Payload, flows: u32) -> Scenario {
        let protocol = match payload {
            Payload::Udp => "udp",
            Payload::Sctp => "sctp",
            _ => "tcp",
        };
        self.at(
            name,
            &format!("{}:80/{protocol}", self.vip(n)),
            kind,
            payload,
            flows,
        )
    }

    /// The same of a service that is told by its name.
    fn at(&self, name: &str, service: &str, kind: Kind, payload: Payload, flows: u32) -> Scenario {
        Scenario {
            fleet: Fleet::Special,
            ..steady(name, service, self.with(kind), payload, flows)
        }
    }

    fn vip(&self, n: u8) -> String {
        if self.v4 {
            format!("10.0.0.{n}")
        } else {
            format!("[fd00::{n}]")
        }
    }
}

/// The same scenario, of other frames.
fn framed(scenario: Scenario, frame: impl FnOnce(Frame) -> Frame) -> Scenario {
    Scenario {
        frame: frame(scenario.frame.clone()),
        ..scenario
    }
}

fn with(also: Also, kind: Kind) -> Kind {
    Kind { also, ..kind }
}

/// Services whose backends are told who else may have a flow, and of SCTP.
fn tunnelled(family: &FamilyOf) -> Vec<Scenario> {
    let gue = Kind {
        mode: Mode::Gue,
        ..IPIP
    };
    let telling = with(Also::SecondHop, gue);
    let name = family.named("tcp", "-second-hop");
    let mut list: Vec<Scenario> = FLOWS
        .iter()
        .map(|&flows| Scenario {
            // The header, and an address.
            grows: wire::GUE + family.pick(4, 16),
            ..family.of(&name, 11, telling, TCP, flows)
        })
        .collect();
    let name = family.named("sctp", "");
    list.push(family.of(&name, 12, IPIP, Payload::Sctp, 0));
    list.push(family.of(&name, 13, gue, Payload::Sctp, 0));
    list
}

/// Packets with tags, and in several buffers.
fn shaped(family: &FamilyOf) -> Vec<Scenario> {
    let tagged = |rest, n, kind, tags: &[Tag]| Scenario {
        besides: feature::VLAN,
        ..framed(
            family.of(&family.named("tcp", rest), n, kind, TCP, 0),
            |frame| frame.tagged(tags),
        )
    };
    let wide = Pool {
        number: WIDE_WAY,
        ..family.pool
    };
    let jumbo = Scenario {
        fleet: Fleet::Special,
        ..steady(
            &family.named("tcp", "-jumbo"),
            &format!("{}:80/tcp", family.vip(14)),
            Kind { pool: wide, ..IPIP },
            TCP,
            0,
        )
    };
    vec![
        tagged("-tag", 12, IPIP, &[TAG]),
        tagged("-tags", 12, IPIP, &[OUTER_TAG, TAG]),
        tagged("-tag", 15, NAT, &[TAG]),
        framed(jumbo, |frame| frame.filled(JUMBO)),
    ]
}

/// Services of several addresses or ports, which stand in no bucket.
fn found(family: &FamilyOf) -> Vec<Scenario> {
    let (every, range, prefix) = family.pick(
        (
            "10.0.3.1:*/tcp",
            "10.0.3.2:8000-8999/tcp",
            "10.0.3.16/28:80/tcp",
        ),
        (
            "[fd00:0:3::1]:*/tcp",
            "[fd00:0:3::2]:8000-8999/tcp",
            "[fd00:0:4::/64]:80/tcp",
        ),
    );
    let (to_every, to_range, to_prefix) = family.pick(
        ("10.0.3.1:5060", "10.0.3.2:8080", "10.0.3.21:80"),
        (
            "[fd00:0:3::1]:5060",
            "[fd00:0:3::2]:8080",
            "[fd00:0:4::21]:80",
        ),
    );
    let found = |rest, service, to: &'static str| {
        let to = to.parse().expect("a literal address");
        FLOWS.map(|flows| {
            let scenario = family.at(&family.named("tcp", rest), service, IPIP, TCP, flows);
            framed(scenario, |_| Frame::new(to, TCP, flows, 1))
        })
    };
    [
        found("-every-port", every, to_every),
        found("-port-range", range, to_range),
        found("-prefix", prefix, to_prefix),
    ]
    .concat()
}

/// Mode `full-nat` of datagrams, and with the client's address told.
fn translated(family: &FamilyOf) -> Vec<Scenario> {
    let kind = Kind {
        mode: Mode::FullNat,
        ..IPIP
    };
    let name = family.named("udp", "");
    let mut list: Vec<Scenario> = [1, 100_000]
        .iter()
        .map(|&flows| Scenario {
            records: Records::Established,
            ..family.of(&name, 16, kind, Payload::Udp, flows)
        })
        .collect();
    list.push(Scenario {
        records: Records::New,
        ..family.of(&family.named("udp", "-recorded"), 16, kind, Payload::Udp, 0)
    });
    list.push(Scenario {
        records: Records::New,
        grows: family.pick(8, 20),
        ..family.of(
            &family.named("syn", "-client-address-recorded"),
            17,
            with(Also::Tell, kind),
            SYN,
            0,
        )
    });
    list
}

/// What backends send to clients.
fn answers(family: &FamilyOf) -> Vec<Scenario> {
    let from = family.pool.addresses().next().expect("a backend");
    let nat = framed(
        family.of(&family.named("answer", ""), 15, NAT, TCP, 0),
        |_| Frame::answer((from, SERVED).into(), flags::ACK, 0),
    );
    let full_nat = Kind {
        mode: Mode::FullNat,
        ..IPIP
    };
    // Their frames are made of what the sessions' first packets have become.
    let mut list = vec![nat];
    for (name, payload, n) in [("answer", TCP, 18), ("answer-udp", Payload::Udp, 16)] {
        let scenario = family.of(&family.named(name, ""), n, full_nat, payload, 1);
        list.push(Scenario {
            opening: Some(scenario.frame.clone()),
            records: Records::Established,
            ..scenario
        });
    }
    list.into_iter()
        .map(|scenario| Scenario {
            end: End::Client,
            ..scenario
        })
        .collect()
}

/// ICMP errors about backends' packets.
fn errors(family: &FamilyOf) -> Vec<Scenario> {
    let error = |n, kind, flows| {
        framed(
            family.of(&family.named("error", ""), n, kind, TCP, flows),
            |_| {
                let vip = format!("{}:80", family.vip(n));
                Frame::error(vip.parse().expect("a literal address"), flows)
            },
        )
    };
    let full_nat = Kind {
        mode: Mode::FullNat,
        ..IPIP
    };
    let of_session = error(18, full_nat, 1_000);
    let opening = family.of("", 18, full_nat, TCP, 1_000).frame;
    vec![
        error(12, IPIP, 0),
        error(15, NAT, 0),
        Scenario {
            opening: Some(opening),
            records: Records::Established,
            ..of_session
        },
    ]
}

/// What is answered in the VIP's name.
fn answered(family: &FamilyOf) -> Vec<Scenario> {
    let to = |what, rest, n, payload, answer, reason| Scenario {
        end: End::Answered(answer, reason),
        ..family.of(&family.named(what, rest), n, IPIP, payload, 1)
    };
    let refusing = with(
        Also::Reset,
        Kind {
            pool: Pool {
                backends: 0,
                ..family.pool
            },
            ..IPIP
        },
    );
    let refused = |what, payload, protocol, answer| {
        let service = format!("{}:80/{protocol}", family.vip(20));
        let name = family.named(what, "-no-backend");
        let scenario = Scenario {
            fleet: Fleet::Special,
            end: End::Answered(answer, Some(DropReason::NoBackend)),
            ..steady(&name, &service, refusing, payload, 1)
        };
        framed(scenario, Frame::cut)
    };
    let unknown = |what, payload, answer| {
        let scenario = to(
            what,
            "-unknown-port",
            12,
            TCP,
            answer,
            Some(DropReason::UnknownPort),
        );
        Scenario {
            besides: feature::UNKNOWN_PORTS,
            ..framed(scenario, |_| {
                let at = format!("{}:81", family.vip(12));
                Frame::new(at.parse().expect("a literal address"), payload, 1, 1).cut()
            })
        }
    };
    let too_big = to(
        "tcp",
        "-too-big",
        12,
        TCP,
        Answer::TooBig,
        Some(DropReason::PacketTooBig),
    );
    let asks = family.of(
        &family.named(family.pick("arp", "ndp"), ""),
        19,
        with(Also::Announce, IPIP),
        TCP,
        1,
    );
    vec![
        framed(to("echo", "", 12, TCP, Answer::Echo, None), |frame| {
            echo(&frame, family)
        }),
        framed(too_big, |frame| frame.filled(TOO_BIG)),
        refused("reset", TCP, "tcp", Answer::Reset),
        refused("unreachable", Payload::Udp, "udp", Answer::Unreachable),
        unknown("reset", TCP, Answer::Reset),
        unknown("unreachable", Payload::Udp, Answer::Unreachable),
        Scenario {
            end: End::Answered(family.pick(Answer::Arp, Answer::Neighbour), None),
            ..framed(asks, |_| match family.v4 {
                true => Frame::who_has([10, 0, 0, 19]),
                false => Frame::solicitation(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x19)),
            })
        },
    ]
}

/// An echo request to where a frame goes.
fn echo(frame: &Frame, family: &FamilyOf) -> Frame {
    let to = crate::bench::frame::destination(&frame.bytes).expect("an IP packet");
    // Where ports would be, its checksum is.
    let port = family.pick(0x1234, 0x5678);
    Frame::new((to, port).into(), Payload::Icmp, 1, 1)
}

/// An echo request of more than are answered.
fn echo_limited() -> Scenario {
    let scenario = V4.of("echo-v4-limited", 12, IPIP, TCP, 1);
    Scenario {
        end: End::Dropped(DropReason::EchoLimit),
        ..framed(scenario, |frame| echo(&frame, &V4))
    }
}

/// What is dropped for what it says of itself, or for what it lacks.
fn dropped(family: &FamilyOf) -> Vec<Scenario> {
    let of = |what, reason| Scenario {
        end: End::Dropped(reason),
        ..family.of(&family.named(what, ""), 12, IPIP, TCP, 1)
    };
    let (nobody, vip): (IpAddr, IpAddr) = family.pick(
        (
            Ipv4Addr::LOCALHOST.into(),
            Ipv4Addr::new(10, 0, 0, 12).into(),
        ),
        (
            Ipv6Addr::LOCALHOST.into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x12).into(),
        ),
    );
    let mut list = vec![
        framed(of("martian", DropReason::MartianSource), |frame| {
            frame.sent_by(nobody)
        }),
        framed(of("land", DropReason::Land), |frame| frame.sent_by(vip)),
        framed(of("bad-length", DropReason::BadHeader), |frame| {
            frame.says(1_000)
        }),
    ];
    if !family.v4 {
        let to = (vip, SERVED).into();
        let fragment = |end, name, payload, flows| {
            let scenario = family.of(name, 12, IPIP, TCP, flows);
            Scenario {
                end,
                ..framed(scenario, |_| Frame::fragment_v6(to, payload, flows))
            }
        };
        list.push(fragment(
            End::Backend,
            "frag-v6-first",
            Payload::FirstFragment,
            0,
        ));
        list.push(fragment(
            End::Dropped(DropReason::FragmentBeforeFirst),
            "frag-v6-later",
            Payload::LaterFragment,
            1,
        ));
    }
    list
}

/// What services do beside sending packets on.
fn extras(family: &FamilyOf) -> Vec<Scenario> {
    let of = |what, rest, n, also, payload, flows| {
        family.of(
            &family.named(what, rest),
            n,
            with(also, IPIP),
            payload,
            flows,
        )
    };
    let watched = Kind {
        pool: Pool {
            number: 4,
            ..family.pool
        },
        ..with(Also::Watch, NAT)
    };
    let heard = Scenario {
        fleet: Fleet::Special,
        end: End::Client,
        ..steady(
            &family.named("answer", "-watched"),
            &format!("{}:80/tcp", family.vip(21)),
            watched,
            TCP,
            0,
        )
    };
    let from = watched.pool.addresses().next().expect("a backend");
    let persistent = |what, rest, payload, flows, records| Scenario {
        records,
        ..of(what, rest, 24, Also::Persist, payload, flows)
    };
    let recorded = Records::Established;
    vec![
        of(
            "syn",
            "-mss",
            22,
            Also::Clamp(1_400),
            Payload::SynWithMss,
            0,
        ),
        of("tcp", "-routed", 26, Also::Route, TCP, 1),
        of("tcp", "-routed", 26, Also::Route, TCP, 0),
        of("syn", "-watched", 23, Also::Watch, SYN, 0),
        of("tcp", "-watched", 23, Also::Watch, TCP, 0),
        framed(heard, |_| {
            Frame::answer((from, SERVED).into(), flags::SYN_ACK, 0)
        }),
        persistent("tcp", "-persistent", TCP, 1, recorded),
        persistent("tcp", "-persistent", TCP, 100_000, recorded),
        persistent("syn", "-persistent-recorded", SYN, 0, Records::New),
    ]
}

/// A backend's end of tunnels.
fn backend(family: &FamilyOf) -> Vec<Scenario> {
    let (to, other, vip) = (
        family.own(TERMINALS),
        family.own(OTHERS),
        family.own(BACKEND_VIPS),
    );
    let of = |rest, port: u16, tunnel: Tunnel, end: fn(usize) -> End| {
        let plain = Frame::new((vip, port).into(), TCP, 1, 1);
        // To itself, as its own connection to its own server is.
        let frame = plain.clone().sent_by(vip).tunnelled(tunnel, to);
        Scenario {
            fleet: Fleet::Backend,
            service: None,
            end: end(frame.bytes.len() - plain.bytes.len()),
            frame,
            ..steady(
                &family.named("decap", rest),
                "10.0.0.12:80/tcp",
                IPIP,
                TCP,
                1,
            )
        }
    };
    let telling = Tunnel::Telling(wire::GUE_PORT, other);
    vec![
        of("", SERVED, Tunnel::Ipip, End::Unwrapped),
        of("", SERVED, Tunnel::Gue(wire::GUE_PORT), End::Unwrapped),
        of("-second-hop-known", SERVED, telling, End::Unwrapped),
        of("-second-hop-handed-on", UNSERVED, telling, |_| {
            End::HandedOn
        }),
    ]
}

/// The mode of the tunnel that a packet is in.
pub(super) fn tunnel(frame: &Frame) -> &'static str {
    let at = crate::bench::frame::ETHERNET + if frame.is_v4() { 9 } else { 6 };
    match frame.bytes.get(at) {
        Some(&wire::protocol::UDP) => "gue",
        _ => "ipip",
    }
}
