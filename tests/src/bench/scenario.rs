//! What is measured of the packet path. Pure: a list, and nothing about how. What few packets need is [`special`].

mod special;

use anyhow::Result;
use clap::ValueEnum;
use lb_common::{
    tables::feature,
    verdict::{Answer, DropReason},
};
use lb_userspace::{
    model::{FlowState, Mode, Quic, Scheduler, ServiceId, Unserved},
    plan::features,
};

use super::{
    frame::{Frame, Payload, flags},
    harness::{Target, action},
    services::{Also, FIRST_OF_MANY, Guarded, Kind, Pool},
};

pub use special::{BACKEND_VIPS, OTHERS, TERMINALS};

/// Flows of a sweep; 0: all new.
const FLOWS: [u32; 5] = [1, 1_000, 100_000, 1_000_000, 0];
/// Of these, what `--quick` takes where flows are recorded, since recording takes time.
const QUICK_RECORDED: [u32; 3] = [1, 100_000, 0];
/// Ring of the services that are measured one by one.
const RING: u32 = 65_537;
/// Ring of many services, so that they fit.
const SMALL_RING: u32 = 251;
/// Backends of every service.
const BACKENDS: u16 = 10;

/// Which services there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fleet {
    /// One of each kind, of which one gets all packets.
    Varied,
    /// So many alike, which get packets in turn.
    Alike(u32),
    /// One of each kind that few packets need.
    Special,
    /// None: what runs is a backend's decapsulator.
    Backend,
}

/// Which scenarios belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// What most packets are: each mode, flows looked up or not, schedulers, floods.
    Common,
    /// What fewer are: other shapes, answers, errors, what is refused, and the backends' end of tunnels.
    Special,
}

/// What is to become of every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It goes to a backend, or back as it came where there is no service.
    Backend,
    /// It is the network stack's, as it came.
    Passed,
    /// It is dropped. Fragments without a first one may be held instead.
    Dropped(DropReason),
    /// Its sender is answered, and it counts as dropped where there is a reason.
    Answered(Answer, Option<DropReason>),
    /// It goes to its client in the VIP's name.
    Client,
    /// It is taken out of so many bytes of headers, and is the network stack's then.
    Unwrapped(usize),
    /// It goes to another backend.
    HandedOn,
}

impl End {
    /// The XDP action.
    pub fn action(self) -> u32 {
        match self {
            Self::Backend | Self::Answered(..) => action::TX,
            Self::Passed | Self::Unwrapped(_) => action::PASS,
            Self::Dropped(_) => action::DROP,
            // Routes to clients and other backends lead out of another interface.
            Self::Client | Self::HandedOn => action::REDIRECT,
        }
    }
}

/// Where the slots of the service stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// Their owners take every packet.
    Steady,
    /// All have just got another owner.
    Moving,
    /// The moving time has passed since.
    Settling,
}

impl Slots {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Moving => "moving",
            Self::Settling => "settling",
        }
    }
}

/// What a packet has to do with the flow tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// It does not look.
    Unasked,
    /// Its flow is established, and recorded.
    Established,
    /// It looks, finds nothing and records nothing.
    Missing,
    /// Its flow is new, and recorded.
    New,
    /// Its flow is new, and the table is full.
    Full,
}

/// One figure to be had.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Its name; flows, mode and slots tell apart what shares it.
    pub name: String,
    /// What is run.
    pub target: Target,
    /// Services there are.
    pub fleet: Fleet,
    /// The service that packets are for and what it is; `None` where they are for none.
    pub service: Option<(ServiceId, Kind)>,
    /// What packets look like.
    pub frame: Frame,
    /// Phase of the service's slots.
    pub slots: Slots,
    /// What packets find in the flow tables.
    pub records: Records,
    /// Number of the backend that their connection ids name.
    pub leads_to: Option<u16>,
    /// What each packet must end in.
    pub end: End,
    /// The frames by which flows are established, where the packets are others.
    pub opening: Option<Frame>,
    /// Bytes that its packets get beside what the mode puts in front of them.
    pub grows: usize,
    /// What the program is loaded for beside what the service needs: bits of [`feature`].
    pub besides: u32,
    /// Whether the program is loaded for everything, and not only for what the service needs.
    pub unpruned: bool,
}

impl Scenario {
    /// Mode as it is shown.
    pub fn mode(&self) -> &'static str {
        if let Fleet::Backend = self.fleet {
            return special::tunnel(&self.frame);
        }
        match (self.end, &self.service) {
            (End::Backend | End::Client, Some((_, kind))) => match kind.mode {
                Mode::Nat => "nat",
                Mode::FullNat => "full-nat",
                Mode::Ipip => "ipip",
                Mode::Gue => "gue",
                Mode::L2 => "l2",
            },
            _ => "none",
        }
    }

    /// Whether it is of mode `full-nat`, where a session is no look-up of the flow tables.
    pub fn has_sessions(&self) -> bool {
        self.service
            .is_some_and(|(_, kind)| kind.mode == Mode::FullNat)
    }

    /// Whether its packets' answers are counted against a limit.
    pub fn is_rationed(&self) -> bool {
        matches!(
            self.end,
            End::Answered(
                Answer::Echo | Answer::Reset | Answer::Unreachable | Answer::TooBig,
                _
            )
        )
    }

    /// Whether its packets are those that there are too many of.
    pub fn is_limited(&self) -> bool {
        self.end == End::Dropped(DropReason::EchoLimit)
    }

    /// Whether its packets show that backends accept connections.
    pub fn is_heard(&self) -> bool {
        let watches = |(_, kind): (ServiceId, Kind)| kind.also == Also::Watch;
        self.end == End::Client && self.service.is_some_and(watches)
    }

    /// What it belongs to.
    pub fn group(&self) -> Group {
        match self.fleet {
            Fleet::Varied | Fleet::Alike(_) => Group::Common,
            Fleet::Special | Fleet::Backend => Group::Special,
        }
    }

    /// What the program is loaded for: bits of [`feature`].
    ///
    /// # Errors
    /// Never, for a valid scenario.
    pub fn features(&self) -> Result<u32> {
        if self.unpruned {
            return Ok(feature::ALL);
        }
        let service = self
            .service
            .map(|(id, kind)| kind.service(id))
            .transpose()?;
        Ok(features::needed(&service, Unserved::Pass) | self.besides)
    }

    /// What `--filter` looks in.
    pub fn title(&self) -> String {
        let flows = match self.frame.flows {
            0 => "unbounded".to_owned(),
            flows => flows.to_string(),
        };
        format!(
            "{} {} {flows} {}",
            self.name,
            self.mode(),
            self.slots.name()
        )
    }
}

const POOL: Pool = Pool {
    number: 2,
    backends: BACKENDS,
    v6: false,
};
const POOL_V6: Pool = Pool { v6: true, ..POOL };
const IPIP: Kind = Kind {
    mode: Mode::Ipip,
    scheduler: Scheduler::Maglev,
    flow_state: FlowState::Auto,
    ring_size: Some(RING),
    pool: POOL,
    quic: None,
    guarded: Guarded::Open,
    also: Also::Nothing,
};
const NAT: Kind = Kind {
    mode: Mode::Nat,
    ..IPIP
};
/// The server that connection ids name.
const NAMED: u16 = 3;
const TCP: Payload = Payload::Tcp(flags::ACK);
const SYN: Payload = Payload::Tcp(flags::SYN);

/// Schedulers that record every flow, and what the scenarios call them.
const SCHEDULERS: [(Scheduler, &str); 5] = [
    (Scheduler::RoundRobin, "rr"),
    (Scheduler::WeightedRoundRobin, "wrr"),
    (Scheduler::LeastConnections, "lc"),
    (Scheduler::WeightedLeastConnections, "wlc"),
    (Scheduler::PowerOfTwoChoices, "p2c"),
];

/// Every scenario, those of one fleet together; `quick` leaves out what takes long to prepare.
pub fn all(quick: bool) -> Vec<Scenario> {
    let recorded: &[u32] = if quick { &QUICK_RECORDED } else { &FLOWS };
    let mut list = vec![baseline()];
    list.extend(stateless());
    list.extend(quic());
    list.extend(guarded());
    list.extend(full_nat(recorded));
    list.extend(untouched());
    list.extend(moves(recorded));
    list.extend(floods());
    list.extend(recording(recorded));
    list.extend([1, 1_000, 10_000].map(alike));
    list.extend(special::all(quick));
    list
}

/// A scenario of one service: steady, and unasked for flows.
fn steady(name: &str, vip: &str, kind: Kind, payload: Payload, flows: u32) -> Scenario {
    let id: ServiceId = vip.parse().expect("a literal service");
    Scenario {
        name: name.to_owned(),
        target: Target::Product,
        fleet: Fleet::Varied,
        service: Some((id, kind)),
        frame: Frame::new(id.vip, payload, flows, 1),
        slots: Slots::Steady,
        records: Records::Unasked,
        leads_to: None,
        end: End::Backend,
        opening: None,
        grows: 0,
        besides: 0,
        unpruned: false,
    }
}

/// The floor: what it takes to send a frame back at all.
fn baseline() -> Scenario {
    Scenario {
        target: Target::SwapMacs,
        service: None,
        ..tcp_v4(1)
    }
    .named("xdp-tx-macs")
}

fn tcp_v4(flows: u32) -> Scenario {
    steady("tcp-v4", "10.0.0.2:80/tcp", IPIP, TCP, flows)
}

/// One scenario for each number of flows.
fn sweep(flows: &[u32], scenario: impl Fn(u32) -> Scenario) -> impl Iterator<Item = Scenario> {
    flows.iter().map(move |&flows| scenario(flows))
}

fn stateless() -> Vec<Scenario> {
    let v6 = Kind {
        pool: POOL_V6,
        ..IPIP
    };
    let nat_v6 = Kind {
        pool: POOL_V6,
        ..NAT
    };
    let with = |mode, kind| Kind { mode, ..kind };
    let source_hash = Kind {
        scheduler: Scheduler::SourceHash,
        ..IPIP
    };
    let three_tuple = Kind {
        scheduler: Scheduler::ThreeTupleHash,
        ..IPIP
    };
    let families = [
        ("tcp-v4", "10.0.0.2:80/tcp", IPIP, TCP),
        ("udp-v4", "10.0.0.2:80/udp", IPIP, Payload::Udp),
        ("tcp-v6", "[fd00::2]:80/tcp", v6, TCP),
        ("udp-v6", "[fd00::2]:80/udp", v6, Payload::Udp),
        ("tcp-v4v6", "10.0.0.3:80/tcp", v6, TCP),
        ("tcp-v4", "10.0.0.1:80/tcp", NAT, TCP),
        ("tcp-v6", "[fd00::1]:80/tcp", nat_v6, TCP),
        ("tcp-v4", "10.0.0.5:80/tcp", with(Mode::Gue, IPIP), TCP),
        ("tcp-v6", "[fd00::5]:80/tcp", with(Mode::Gue, v6), TCP),
        ("tcp-v4", "10.0.0.6:80/tcp", with(Mode::L2, IPIP), TCP),
        ("tcp-v6", "[fd00::6]:80/tcp", with(Mode::L2, v6), TCP),
        ("tcp-v4-source-hash", "10.0.0.4:80/tcp", source_hash, TCP),
        ("tcp-v4-three-tuple", "10.0.0.4:81/tcp", three_tuple, TCP),
    ];
    let mut list: Vec<Scenario> = families
        .iter()
        .flat_map(|&(name, vip, kind, payload)| {
            sweep(&FLOWS, move |flows| steady(name, vip, kind, payload, flows))
        })
        .collect();
    let other = |name, payload| steady(name, "10.0.0.2:80/tcp", IPIP, payload, 0);
    list.push(Scenario {
        unpruned: true,
        ..other("tcp-v4-unpruned", TCP)
    });
    list.push(other("syn-v4", SYN));
    list.push(other("rst-v4", Payload::Tcp(flags::RST)));
    list
}

/// Mode `full-nat`: established sessions, and new ones.
fn full_nat(flows: &[u32]) -> Vec<Scenario> {
    let established: Vec<u32> = flows.iter().copied().filter(|&flows| flows > 0).collect();
    let mut list = Vec::new();
    for (name, opening, vip, pool) in [
        ("tcp-v4", "syn-v4-recorded", "10.0.0.9:80/tcp", POOL),
        ("tcp-v6", "syn-v6-recorded", "[fd00::9:0]:80/tcp", POOL_V6),
    ] {
        let kind = Kind {
            mode: Mode::FullNat,
            pool,
            ..IPIP
        };
        list.extend(sweep(&established, |flows| Scenario {
            records: Records::Established,
            ..steady(name, vip, kind, TCP, flows)
        }));
        list.push(Scenario {
            records: Records::New,
            ..steady(opening, vip, kind, SYN, 0)
        });
    }
    list
}

/// What begins connections of QUIC services, and what connection ids lead.
fn quic() -> impl Iterator<Item = Scenario> {
    let ids = Quic {
        config_id: 0,
        server_id_length: 2,
        nonce_length: 5,
    };
    let kind = Kind {
        quic: Some(ids),
        ..IPIP
    };
    let of = move |name, payload, flows| steady(name, "10.0.0.7:443/udp", kind, payload, flows);
    let initials = move |flows| of("quic-v4-initial", Payload::Initial, flows);
    let named = move |flows| Scenario {
        leads_to: Some(NAMED),
        ..of("quic-v4-named", Payload::Named(NAMED), flows)
    };
    sweep(&FLOWS, initials).chain(sweep(&FLOWS, named))
}

/// Services that not everybody may send to, or begin any number of flows.
fn guarded() -> Vec<Scenario> {
    let with = |guarded| Kind { guarded, ..IPIP };
    let mut list = Vec::new();
    for (place, prefixes) in [1, 1 << 20].into_iter().enumerate() {
        let vip = format!("10.0.2.{place}:80/tcp");
        let name = format!("tcp-v4-list-{prefixes}");
        let kind = with(Guarded::Listed(prefixes));
        list.extend(sweep(&[1, 1_000_000, 0], |flows| {
            steady(&name, &vip, kind, TCP, flows)
        }));
    }
    let limited = with(Guarded::Limited);
    for (name, payload) in [("tcp-v4-limited", TCP), ("syn-v4-limited", SYN)] {
        list.extend(sweep(&[1, 0], |flows| {
            steady(name, "10.0.2.2:80/tcp", limited, payload, flows)
        }));
    }
    list
}

/// Packets that are not forwarded.
fn untouched() -> Vec<Scenario> {
    let to = |name, vip, payload, end, known: bool| {
        let scenario = steady(name, vip, IPIP, payload, 1);
        Scenario {
            service: scenario.service.filter(|_| known),
            end,
            ..scenario
        }
    };
    let vip = "10.0.0.2:80/tcp";
    vec![
        to("pass-v4-no-vip", "10.9.9.9:80/tcp", TCP, End::Passed, false),
        to(
            "pass-v6-no-vip",
            "[fd00::9]:80/tcp",
            TCP,
            End::Passed,
            false,
        ),
        // Those to a VIP are answered, so many a second.
        to(
            "pass-v4-icmp",
            "10.9.9.9:80/tcp",
            Payload::Icmp,
            End::Passed,
            false,
        ),
        to("pass-non-ip", vip, Payload::Arp, End::Passed, true),
        // Each of a datagram of its own.
        steady("frag-v4-first", vip, IPIP, Payload::FirstFragment, 0),
        // Without a first one.
        to(
            "frag-v4-later",
            vip,
            Payload::LaterFragment,
            End::Dropped(DropReason::FragmentBeforeFirst),
            true,
        ),
    ]
}

/// Established flows where every slot moves or settles.
fn moves(flows: &[u32]) -> Vec<Scenario> {
    let phased = |slots, unbounded| {
        sweep(flows, move |flows| Scenario {
            slots,
            records: if flows == 0 {
                unbounded
            } else {
                Records::Established
            },
            ..tcp_v4(flows)
        })
    };
    let mut list: Vec<Scenario> = phased(Slots::Moving, Records::Full).collect();
    list.extend(phased(Slots::Settling, Records::Missing));
    list
}

/// New flows where every slot moves.
fn floods() -> [Scenario; 2] {
    let flood = |records| Scenario {
        slots: Slots::Moving,
        records,
        ..steady("syn-v4", "10.0.0.2:80/tcp", IPIP, SYN, 0)
    };
    [
        flood(Records::Full),
        flood(Records::New).named("syn-v4-recorded"),
    ]
}

/// Services that record every flow: established ones, and new ones.
fn recording(flows: &[u32]) -> Vec<Scenario> {
    let mut kinds = vec![(
        "always",
        Kind {
            flow_state: FlowState::Always,
            ..IPIP
        },
    )];
    kinds.extend(SCHEDULERS.map(|(scheduler, name)| (name, Kind { scheduler, ..IPIP })));
    let mut list = Vec::new();
    for (place, (name, kind)) in kinds.into_iter().enumerate() {
        let vip = format!("10.0.1.{place}:80/tcp");
        list.extend(sweep(flows, |flows| Scenario {
            records: if flows == 0 {
                Records::Full
            } else {
                Records::Established
            },
            ..steady(&format!("tcp-v4-{name}"), &vip, kind, TCP, flows)
        }));
        list.push(Scenario {
            records: Records::New,
            ..steady(&format!("syn-v4-{name}-recorded"), &vip, kind, SYN, 0)
        });
    }
    list
}

/// Flows over so many services, each packet to the next.
fn alike(services: u32) -> Scenario {
    let kind = Kind {
        ring_size: Some(SMALL_RING),
        ..IPIP
    };
    let vip = format!("{FIRST_OF_MANY}:80/tcp");
    let plural = if services == 1 { "" } else { "s" };
    let one = steady("", &vip, kind, TCP, 1_000_000);
    Scenario {
        fleet: Fleet::Alike(services),
        frame: Frame {
            destinations: services,
            ..one.frame.clone()
        },
        ..one
    }
    .named(&format!("tcp-v4-{services}-service{plural}"))
}

impl Scenario {
    fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_scenarios_share_a_title() {
        for quick in [false, true] {
            let scenarios = all(quick);
            let titles: BTreeSet<String> = scenarios.iter().map(Scenario::title).collect();
            assert_eq!(titles.len(), scenarios.len());
        }
    }

    #[test]
    fn every_scheduler_is_measured() {
        let scenarios = all(true);
        for scheduler in [
            Scheduler::Maglev,
            Scheduler::SourceHash,
            Scheduler::ThreeTupleHash,
        ]
        .into_iter()
        .chain(SCHEDULERS.map(|(scheduler, _)| scheduler))
        {
            let is = |scenario: &Scenario| {
                scenario
                    .service
                    .is_some_and(|(_, kind)| kind.scheduler == scheduler)
            };
            assert!(scenarios.iter().any(is), "{scheduler:?}");
        }
    }

    #[test]
    fn quick_leaves_out_numbers_of_flows_and_nothing_else() {
        let names = |quick| -> BTreeSet<String> {
            all(quick)
                .into_iter()
                .map(|scenario| format!("{} {}", scenario.name, scenario.slots.name()))
                .collect()
        };
        assert_eq!(names(true), names(false));
    }
}
