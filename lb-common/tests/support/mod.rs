//! The maps for tests: a [`Stage`] of services and servers, and what a frame comes to on it. The
//! only place of these tests that knows the maps' formats.

mod buffers;
mod flows;
mod guards;
mod outcome;
mod passive;
mod quic;
mod routes;
mod sessions;
mod vlans;
mod wide;

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    memory::MemoryTables,
    mss,
    packet::SlicePacket,
    pipeline,
    tables::{
        Address, Backend, Counters, Descriptor, Endpoint, Interface, Member, NoRoute, Route,
        ServiceEntry, Slot, WayBack, feature, mode, owned, service_flag, state,
    },
    verdict::Verdict,
};

pub use flows::{Move, Scheduler};
pub use outcome::{Counted, Frame, Outcome};
pub use sessions::IDLE;

/// The interface that every frame comes in by.
pub const INGRESS: u32 = 5;
/// Another one.
pub const EGRESS: u32 = 7;
/// The hardware address of [`INGRESS`].
pub const OWN_MAC: Mac = [2, 0, 0, 0, 0, 0x77];
/// What XDP leaves in front of a frame on most NICs, in bytes.
pub const HEADROOM: usize = 256;
/// Where `gue` tunnels end.
pub const GUE_PORT: u16 = 5_555;
/// What stands in the headroom: XDP does not clear it.
const POISON: u8 = 0xff;
/// The hash of every flow on a stage, from a key that ignores the flow: `finish(6)`, computed
/// apart. Its choices among eight slots are [`CHOICES`].
pub const HASH: u64 = 0x810a_24d8_df9e_c262;
/// Slots of a ring of eight that every flow tries, in order; computed apart.
pub const CHOICES: [usize; 3] = [4, 5, 1];

/// A MAC address.
pub type Mac = [u8; 6];

/// How a service forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nat,
    FullNat,
    Ipip,
    Gue,
    /// The same, telling backends who else may have a flow.
    SecondHop,
    L2,
    /// A number that no mode has.
    Unknown,
}

/// Which flows a server may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Any.
    Takes,
    /// Those that it has.
    Drains,
    /// None.
    Dead,
}

impl Condition {
    const fn state(self) -> u8 {
        match self {
            Self::Takes => state::TAKES | state::HOLDS,
            Self::Drains => state::HOLDS,
            Self::Dead => 0,
        }
    }
}

/// A backend.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    pub address: SocketAddr,
    /// Egress interface; 0: no next hop yet.
    pub interface: u32,
    pub condition: Condition,
    /// Source of the tunnel, and how many of its last bits the flow hash sets.
    pub tunnel: (IpAddr, u32),
    /// The longest packet that can be sent to it, as it arrives.
    pub room: u16,
    /// What the MSS of SYNs to it is lowered to, as the tables have it.
    pub mss: u16,
}

/// A live server behind [`EGRESS`].
pub fn server(address: &str) -> Server {
    let address: SocketAddr = address.parse().expect("an address and port");
    let tunnel = match address {
        SocketAddr::V4(_) => ("172.16.0.0".parse().expect("an address"), 16),
        SocketAddr::V6(_) => ("fd00:77::1:0:0".parse().expect("an address"), 32),
    };
    Server {
        address,
        interface: EGRESS,
        condition: Condition::Takes,
        tunnel,
        room: u16::MAX,
        mss: mss::OFF,
    }
}

impl Server {
    pub fn behind(self, interface: u32) -> Self {
        Self { interface, ..self }
    }

    pub fn within(self, room: u16) -> Self {
        Self { room, ..self }
    }

    /// SYNs have their MSS lowered.
    pub fn lowering(self, mss: u16) -> Self {
        Self { mss, ..self }
    }

    pub fn dead(self) -> Self {
        Self {
            condition: Condition::Dead,
            ..self
        }
    }

    pub fn tunnel(self, source: &str, bits: u32) -> Self {
        let source = source.parse().expect("an address");
        Self {
            tunnel: (source, bits),
            ..self
        }
    }
}

/// Source and destination MAC address towards the server at a position (over all services).
pub fn macs(position: u8) -> (Mac, Mac) {
    ([2, 0, 0, 1, 0, position], [2, 0, 0, 2, 0, position])
}

/// Source and destination MAC address of the route back to a client.
pub const CLIENT_MACS: (Mac, Mac) = ([2, 0, 0, 3, 0, 1], [2, 0, 0, 4, 0, 1]);

/// Maps under construction. Positions differ from each other in every map, so that an index used
/// in the wrong one shows.
#[derive(Debug, Clone)]
pub struct Stage {
    tables: MemoryTables,
}

const FIRST_SERVICE: u32 = 2;
const FIRST_COUNTERS: u32 = 40;
const FIRST_MEMBER: u32 = 5;

impl Stage {
    /// No services; every flow hashes to [`HASH`].
    pub fn new() -> Self {
        let mut tables = MemoryTables::default();
        tables.control.hash_key[0] = 6;
        tables.control.lookup_bits = 3;
        tables.control.gue_port = GUE_PORT.to_be();
        tables.service_entries = vec![ServiceEntry::default(); FIRST_SERVICE as usize];
        // Neighbours of a ring and of a pool that nothing may lead to.
        tables.slots = vec![u64::MAX; 3];
        tables.members = vec![Member::default(); FIRST_MEMBER as usize];
        tables.backends = vec![Backend::default()];
        Self { tables }
    }

    /// Flows hash as under a key of the field's, not all to [`HASH`].
    pub fn hashing(mut self) -> Self {
        for (word, seed) in self.tables.control.hash_key.iter_mut().zip(1u64..) {
            *word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        }
        // Services stand where the old key put them.
        self.tables.lookup.clear();
        for (index, entry) in (0..).zip(self.tables.service_entries.clone()) {
            let [descriptor, _] = entry.halves;
            if descriptor.protocol != 0 {
                self.tables.link(&descriptor.endpoint(), index);
            }
        }
        self
    }

    /// Adds a service whose ring has one slot for each server, in order; port 0 is every port.
    pub fn serve(mut self, mode: Mode, vip: &str, protocol: u8, servers: &[Server]) -> Self {
        let vip: SocketAddr = vip.parse().expect("an address and port");
        let members_start = self.tables.members.len() as u32;
        let index = self.tables.service_entries.len() as u32;
        for server in servers {
            self.add_server(server, protocol);
            if mode == Mode::Nat {
                let way_back = WayBack {
                    address: vip.ip().into(),
                    port: vip.port().to_be(),
                    mss: match server.mss {
                        mss::OFF => 0,
                        setting => mss::limit(setting, server.room, vip.is_ipv4()),
                    },
                    watched: 0,
                };
                let mut from = endpoint(server.address, protocol);
                if vip.port() == 0 {
                    from.port = 0;
                }
                self.tables.ways_back.insert(from, way_back);
            }
        }
        let descriptor = Descriptor {
            address: vip.ip().into(),
            port: vip.port().to_be(),
            protocol,
            mode: match mode {
                Mode::Nat => mode::NAT,
                Mode::FullNat => mode::FULL_NAT,
                Mode::Ipip => mode::IPIP,
                Mode::Gue => mode::GUE,
                Mode::SecondHop => mode::SECOND_HOP,
                Mode::L2 => mode::L2,
                Mode::Unknown => 99,
            },
            members_start,
            members_len: servers.len() as u16,
            ..Descriptor::default()
        };
        self.tables.control.features |= features(&descriptor);
        if servers.iter().any(|server| server.mss != mss::OFF) {
            self.tables.control.features |= feature::MSS;
        }
        let entry = ServiceEntry {
            halves: [descriptor; 2],
        };
        self.tables.service_entries.push(entry);
        self.tables.link(&endpoint(vip, protocol), index);
        *self.tables.owned.entry(vip.ip().into()).or_default() |= owned::VIP;
        let every: Vec<u32> = (0..servers.len() as u32).collect();
        self.ring(&every)
    }

    fn add_server(&mut self, server: &Server, protocol: u8) {
        let position = self.tables.backends.len() as u32 - 1;
        let (source_mac, destination_mac) = macs(position as u8);
        let (source, bits) = server.tunnel;
        let mask = 1u32.checked_shl(bits).unwrap_or(0).wrapping_sub(1);
        self.tables.backends.push(Backend {
            address: server.address.ip().into(),
            source: source.into(),
            source_mask: mask.to_be(),
            state: server.condition.state(),
            protocol,
            mtu: server.room,
            interface: server.interface,
            counters: FIRST_COUNTERS + position,
            destination_mac,
            source_mac,
            port: server.address.port().to_be(),
            mss: server.mss,
        });
        self.tables.members.push(Member {
            backend: position + 1,
            weight: 1,
            ..Member::default()
        });
    }

    /// Gives the last service this ring of positions in its pool.
    pub fn ring(self, owners: &[u32]) -> Self {
        let slots: Vec<Slot> = owners.iter().map(|&owner| Slot::steady(owner)).collect();
        self.ring_of(&slots)
    }

    fn ring_of(mut self, slots: &[Slot]) -> Self {
        let (start, size) = self.lay(slots);
        self.describe(|descriptor| (descriptor.ring_start, descriptor.ring_size) = (start, size))
    }

    /// Puts slots into the arena; where they are.
    fn lay(&mut self, slots: &[Slot]) -> (u32, u32) {
        let start = self.tables.slots.len() as u32 * 2;
        for pair in slots.chunks(2) {
            let slot = |n: usize| u64::from(pair.get(n).map_or(u32::MAX, |slot| slot.0));
            self.tables.slots.push(slot(0) | (slot(1) << 32));
        }
        (start, slots.len() as u32)
    }

    fn describe(mut self, change: impl Fn(&mut Descriptor)) -> Self {
        let last = self.tables.service_entries.last_mut();
        let halves = &mut last.expect("a service").halves;
        halves.iter_mut().for_each(change);
        for descriptor in halves {
            self.tables.control.features |= features(descriptor);
        }
        self
    }

    /// The last service's ring names slots that the arena does not have.
    pub fn ring_out_of_bounds(self) -> Self {
        self.describe(|descriptor| descriptor.ring_start = 1 << 20)
    }

    /// The last service's pool lies where no member is.
    pub fn pool_out_of_bounds(self) -> Self {
        self.describe(|descriptor| descriptor.members_start = 1 << 20)
    }

    /// The last service's pool has nobody at any position.
    pub fn empty_pool(self) -> Self {
        self.describe(|descriptor| descriptor.members_start = 0)
    }

    /// The last service exists in one half only: that of even or odd generations.
    pub fn only_in(mut self, half: usize) -> Self {
        let last = self.tables.service_entries.last_mut();
        last.expect("a service").halves[1 - half] = Descriptor::default();
        self
    }

    /// Puts a generation in force.
    pub fn generation(mut self, generation: u64) -> Self {
        self.tables.control.generation = generation;
        self
    }

    /// Answers are looked for, or not, whatever the services' modes.
    pub fn looking_for_answers(mut self, look: bool) -> Self {
        self.tables.control.features &= !feature::NAT;
        if look {
            self.tables.control.features |= feature::NAT;
        }
        self
    }

    /// The program is loaded without these of [`feature`], whatever the services need.
    pub fn without(mut self, features: u32) -> Self {
        self.tables.control.features &= !features;
        self
    }

    /// What the last service's packets get while no backend may take them, one of [`refusal`].
    pub fn no_backend(self, refusal: u8) -> Self {
        self.describe(|descriptor| {
            descriptor.flags |= u16::from(refusal) << service_flag::REFUSAL_SHIFT;
        })
    }

    /// What packets to ports get that no service has, one of [`refusal`].
    pub fn unknown_port(mut self, refusal: u8) -> Self {
        self.tables.control.features |= feature::UNKNOWN_PORTS;
        self.tables.control.unknown_port = refusal;
        self
    }

    /// An address of the balancer's own.
    pub fn own(mut self, address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        *self.tables.owned.entry(address.into()).or_default() |= owned::LOCAL;
        self
    }

    /// Neighbours are told that every VIP so far is at [`OWN_MAC`], on [`INGRESS`].
    pub fn announcing(mut self) -> Self {
        self.tables.control.features |= feature::ANNOUNCE;
        for bits in self.tables.owned.values_mut() {
            *bits |= owned::ANNOUNCED;
        }
        let own = Interface {
            mac: OWN_MAC,
            zeros: [0; 2],
        };
        self.tables.interfaces.insert(INGRESS, own);
        self
    }

    /// The same, but that no interface is known by its hardware address.
    pub fn announcing_nowhere(self) -> Self {
        let mut stage = self.announcing();
        stage.tables.interfaces.clear();
        stage
    }

    /// A route to a client by an interface, with [`CLIENT_MACS`].
    pub fn route(mut self, client: IpAddr, interface: u32) -> Self {
        let (source_mac, destination_mac) = CLIENT_MACS;
        let route = Route {
            interface,
            destination_mac,
            source_mac,
        };
        self.tables.routes.insert(client.into(), Ok(route));
        self
    }

    /// No route to a client, for a reason.
    pub fn no_route(mut self, client: IpAddr, why: NoRoute) -> Self {
        self.tables.routes.insert(client.into(), Err(why));
        self
    }

    /// Runs a frame through the pipeline with [`HEADROOM`] in front.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.run_with(frame, HEADROOM)
    }

    /// Runs a frame through the pipeline with so much room in front, poisoned.
    pub fn run_with(&self, frame: &[u8], headroom: usize) -> Outcome {
        self.run_by(frame, headroom, |packet| {
            pipeline::process(packet, &self.tables)
        })
    }

    /// Runs the fragments that are held, in the order in which they came, as the agent gives them back.
    pub fn give_back(&self) -> Vec<Outcome> {
        let held = self.tables.held.take();
        let run = |packet: &mut SlicePacket<'_>| pipeline::process_held(packet, &self.tables);
        held.iter()
            .map(|held| self.run_by(&held.frame, HEADROOM, run))
            .collect()
    }

    fn run_by(
        &self,
        frame: &[u8],
        headroom: usize,
        run: impl Fn(&mut SlicePacket<'_>) -> Verdict,
    ) -> Outcome {
        let (verdict, bytes) = run_by(frame, headroom, run);
        Outcome {
            verdict,
            frame: Frame(bytes),
            counted: self.counted(),
        }
    }

    fn counted(&self) -> Counted {
        let counted = self.tables.take_counted();
        let count = |from: u32| {
            move |(index, n): (u32, Counters)| (index - from, (n.packets, n.bytes, n.flows))
        };
        let refused = counted.flows.iter().map(|(index, n)| {
            let refused = (n.denied, n.source_limited, n.service_limited);
            (index - FIRST_SERVICE, refused)
        });
        let refused = refused
            .filter(|&(_, refused)| refused != (0, 0, 0))
            .collect();
        let named = counted.flows.iter();
        let named = named.filter(|(_, n)| n.named > 0);
        Counted {
            named: named
                .map(|(index, n)| (index - FIRST_SERVICE, n.named))
                .collect(),
            refused,
            exhausted: counted.flows.values().map(|n| n.ports_exhausted).sum(),
            untold: counted.flows.values().map(|n| n.untold).sum(),
            cookies: counted
                .flows
                .values()
                .fold((0, 0, 0), |(sent, valid, invalid), n| {
                    let invalid = invalid + n.cookies_invalid;
                    (sent + n.cookies_sent, valid + n.cookies_valid, invalid)
                }),
            clients: counted.flows.values().map(|n| n.client_overflows).sum(),
            flows: (counted.flows.into_iter())
                .map(|(index, n)| (index - FIRST_SERVICE, (n.lookups, n.recorded, n.overflows)))
                .collect(),
            services: counted
                .services
                .into_iter()
                .map(count(FIRST_SERVICE))
                .collect(),
            servers: counted
                .backends
                .into_iter()
                .map(count(FIRST_COUNTERS))
                .collect(),
            drops: counted.drops,
            answers: counted.answers,
            pieces: counted.pieces,
        }
    }
}

/// What becomes of a frame with so much room in front, poisoned.
fn run_by(
    frame: &[u8],
    headroom: usize,
    run: impl Fn(&mut SlicePacket<'_>) -> Verdict,
) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![POISON; headroom];
    buffer.extend_from_slice(frame);
    let mut packet = SlicePacket::new(&mut buffer, headroom, INGRESS);
    let verdict = run(&mut packet);
    let bytes = match verdict {
        Verdict::Drop(_) | Verdict::Held => Vec::new(),
        _ => packet.bytes().to_vec(),
    };
    (verdict, bytes)
}

fn endpoint(at: SocketAddr, protocol: u8) -> Endpoint {
    Endpoint {
        address: Address::from(at.ip()),
        port: at.port().to_be(),
        protocol,
        zero: 0,
        zeros: 0,
    }
}

/// Bits of [`feature`] that a service's packets need, as far as they follow from its descriptor.
fn features(descriptor: &Descriptor) -> u32 {
    let fields = descriptor.fields() | descriptor.previous_fields();
    let mode = match descriptor.mode {
        mode::NAT => feature::NAT,
        mode::IPIP => feature::IPIP,
        mode::L2 => feature::L2,
        mode::GUE => feature::GUE,
        mode::SECOND_HOP => feature::SECOND_HOP,
        mode::FULL_NAT => feature::FULL_NAT,
        _ => 0,
    };
    let flag = |is: bool, feature: u32| if is { feature } else { 0 };
    mode | flag(descriptor.port == 0, feature::ALL_PORTS)
        | flag(descriptor.protocol == 132, feature::SCTP)
        | flag(
            descriptor.flags & service_flag::GUARDED != 0,
            feature::GUARDS,
        )
        | flag(fields & service_flag::BY_SOURCE != 0, feature::BY_SOURCE)
        | flag(
            fields & service_flag::BY_THREE_TUPLE != 0,
            feature::BY_THREE_TUPLE,
        )
        | flag(descriptor.quic != 0, feature::QUIC)
        | flag(descriptor.sampling() != 0, feature::PASSIVE)
}
