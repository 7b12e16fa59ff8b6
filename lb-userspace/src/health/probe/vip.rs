//! Owns probes that go the way traffic does: a SYN to the VIP, or an echo request where its service is not of TCP, wrapped to the
//! backend as the packet path would wrap it, or sent to its hardware address, which has to be answered from the VIP. A backend without its VIP, or
//! without the far end of its tunnel, fails. Never completes a connection: what was opened is reset at once, by the same way.
//!
//! A socket of TCP's cannot do that: the kernel would need a tunnel device and a route for each backend, which
//! an agent that dies leaves behind, and takes no answer from an address that is its own, as a VIP may be. So
//! packets are built here, sent by a raw socket, and answers are read by a packet socket, of whose packets a
//! filter takes only those to one port. That port is bound, so that nobody else's connections use it.

mod link;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, NetSlice, PacketBuilder, PacketBuilderStep,
    SlicedPacket, TransportSlice,
};
use futures_util::future::try_join_all;
use lb_common::{packet::SlicePacket, second_hop, tables::Address, wire::protocol};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{
    sync::{OnceCell, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{ProbeError, Subject};
use crate::{
    health::{By, Hop, Way},
    model::{self, ServiceId},
};

/// Hops that a SYN may take inside of its tunnel.
const HOPS: u8 = 64;
const WINDOW: u16 = 64_240;
/// After a packet socket could not be read.
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than the headers of any answer.
const LONGEST: usize = 512;
/// VIPs of a group that one probe asks for.
const MOST_VIPS: usize = 16;

/// Where answers come in, made with the first probe of each family.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers([Arc<OnceCell<Listener>>; 2]);

/// Hears the answers of one family.
#[derive(Debug)]
struct Listener {
    port: u16,
    /// The socket that hears, to send to hardware addresses by.
    packets: Socket,
    waiting: Waiting,
    task: JoinHandle<()>,
    _bound: Socket,
}

/// Who waits, by what was sent.
type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<Heard>>>>;

/// An answer to a SYN or an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    /// Port 0 where it is an echo.
    from: SocketAddr,
    /// Its port, or the identifier of an echo.
    to_port: u16,
    /// What was sent: a sequence number, or what is echoed.
    token: u32,
    accepts: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends a wait.
struct Wait<'a>(&'a Waiting, u32);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Heard>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answers {
    /// Asks for the VIPs of `subject` at its backend, all at once: whoever is behind one of a group's is behind all of them.
    /// Until the deadline, each by itself: the first one's silence is not another's.
    pub(super) async fn ask(&self, subject: &Subject, deadline: Instant) -> Result<(), ProbeError> {
        let asked = asked(subject).into_iter().enumerate();
        let all = asked.map(|(n, vip)| async move {
            let heard = timeout_at(deadline, self.ask_at(subject, vip)).await;
            let heard = heard.unwrap_or(Err(ProbeError::Timeout(subject.timeout)));
            // What the first one does not say says nothing of its own flows.
            heard.map_err(|error| match n > 0 && error.blames_backend() {
                true => ProbeError::Unexpected(format!("{}: {error}", vip.at)),
                false => error,
            })
        });
        try_join_all(all).await.map(drop)
    }

    /// Opens a connection to a VIP at the backend, and gives it up again, or has the VIP echo.
    async fn ask_at(&self, subject: &Subject, vip: Vip) -> Result<(), ProbeError> {
        let (at, backend) = (vip.at, subject.target.address.ip());
        let way = Leaving::new(subject.way, at.is_ipv6(), backend)?;
        let failed = |error: io::Error| ProbeError::from_connect(&error);
        let listener = self.0[usize::from(at.is_ipv6())]
            .get_or_try_init(|| async { Listener::open(at.is_ipv6()) })
            .await
            .map_err(|error| ProbeError::Local(error.to_string()))?;
        let source = SocketAddr::new(way.own_address()?, listener.port);
        let token = fastrand::u32(..);
        let (heard, answer) = oneshot::channel();
        lock(&listener.waiting).insert(token, heard);
        let _wait = Wait(&listener.waiting, token);
        let asks = match vip.echoes {
            true => echo(source, at.ip(), token),
            false => segment(source, at, token, false),
        };
        way.send(listener, &asks?).map_err(failed)?;
        let heard = answer.await;
        let heard = heard.map_err(|_| ProbeError::Local("nobody hears answers".to_owned()))?;
        if heard.from != vip.answers_from() {
            let problem = format!("{} answered in the place of {at}", heard.from);
            return Err(ProbeError::Unexpected(problem));
        }
        if !heard.accepts {
            return Err(ProbeError::Refused);
        }
        if vip.echoes {
            return Ok(());
        }
        // Else the backend would wait for the rest for a minute.
        let resets = segment(source, at, token.wrapping_add(1), true);
        way.send(listener, &resets?).map_err(failed)
    }
}

/// What is asked of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Vip {
    at: SocketAddr,
    /// An echo, since its protocol knows no connections that could be given up again.
    echoes: bool,
}

impl Vip {
    /// Of a service: where it has several ports, the one that the check or the backend has, if the service has it too, and else
    /// the first; where it has several addresses, the first.
    fn of(id: ServiceId, port: u16) -> Self {
        let ports = id.ports();
        let port = match ports.contains(&port) {
            true => port,
            false => *ports.start(),
        };
        Self {
            at: SocketAddr::new(id.vip.ip(), port),
            echoes: id.protocol != model::Protocol::Tcp,
        }
    }

    fn answers_from(self) -> SocketAddr {
        let port = if self.echoes { 0 } else { self.at.port() };
        SocketAddr::new(self.at.ip(), port)
    }
}

/// Where a backend is asked: at the VIP of its service, and at each further address of its group, there rather for a connection than
/// for an echo.
fn asked(subject: &Subject) -> Vec<Vip> {
    let of = |id: &ServiceId| Vip::of(*id, subject.address.port());
    let mut vips = vec![of(&subject.target.service)];
    for vip in subject.also.iter().map(of) {
        match vips.iter_mut().find(|other| other.at.ip() == vip.at.ip()) {
            Some(other) if other.echoes && !vip.echoes => *other = vip,
            Some(_) => {}
            None => vips.push(vip),
        }
    }
    vips.truncate(MOST_VIPS);
    vips
}

impl Listener {
    fn open(v6: bool) -> io::Result<Self> {
        let (domain, any, ethertype): (_, IpAddr, _) = match v6 {
            false => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into(), libc::ETH_P_IP),
            true => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into(), libc::ETH_P_IPV6),
        };
        let bound = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if v6 {
            bound.set_only_v6(true)?;
        }
        bound.bind(&SocketAddr::new(any, 0).into())?;
        let own = bound.local_addr()?.as_socket();
        let port = own.map(|own| own.port()).ok_or(io::ErrorKind::Other)?;
        let ethertype = Protocol::from(i32::from((ethertype as u16).to_be()));
        let packets = Socket::new(Domain::PACKET, Type::DGRAM, Some(ethertype))?;
        packets.set_nonblocking(true)?;
        let filter = filter(v6, port).into_iter();
        let filter: Vec<SockFilter> = filter
            .map(|Step { code, jt, jf, k }| SockFilter::new(code, jt, jf, k))
            .collect();
        packets.attach_filter(&filter)?;
        let sends = packets.try_clone()?;
        // To the runtime it is what gives datagrams, for which it knows UDP's type alone.
        let packets = tokio::net::UdpSocket::from_std(packets.into())?;
        let waiting = Waiting::default();
        let task = tokio::spawn(hear(packets, port, Arc::clone(&waiting)));
        Ok(Self {
            port,
            packets: sends,
            waiting,
            task,
            _bound: bound,
        })
    }
}

/// Hands answers to whom they are for, for ever.
async fn hear(packets: tokio::net::UdpSocket, port: u16, waiting: Waiting) {
    let mut buffer = [0; LONGEST];
    loop {
        // Such a socket fails while an interface goes down, and works again after that.
        let Ok(read) = packets.recv(&mut buffer).await else {
            sleep(PAUSE).await;
            continue;
        };
        let Some(heard) = parse(&buffer[..read]).filter(|heard| heard.to_port == port) else {
            continue;
        };
        if let Some(waits) = lock(&waiting).remove(&heard.token) {
            // Who waited may have given up.
            let _ = waits.send(heard);
        }
    }
}

/// What an answer says: a SYN that acknowledges, a reset, or an echo.
fn parse(packet: &[u8]) -> Option<Heard> {
    let packet = SlicedPacket::from_ip(packet).ok()?;
    let from: IpAddr = match packet.net? {
        NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
        _ => return None,
    };
    let echoed = |echo: IcmpEchoHeader, payload: &[u8]| {
        Some(Heard {
            from: SocketAddr::new(from, 0),
            to_port: echo.id,
            token: u32::from_be_bytes(payload.try_into().ok()?),
            accepts: true,
        })
    };
    match packet.transport? {
        TransportSlice::Tcp(tcp) => (tcp.ack() && (tcp.syn() || tcp.rst())).then(|| Heard {
            from: SocketAddr::new(from, tcp.source_port()),
            to_port: tcp.destination_port(),
            token: tcp.acknowledgment_number().wrapping_sub(1),
            accepts: !tcp.rst(),
        }),
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoReply(echo) => echoed(echo, icmp.payload()),
            _ => None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::EchoReply(echo) => echoed(echo, icmp.payload()),
            _ => None,
        },
        _ => None,
    }
}

/// One instruction of a filter: what it does, how far it jumps where something holds and where not, and its
/// argument.
#[derive(Debug, Clone, Copy)]
struct Step {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// Passes TCP segments to a port, and echoes of that identifier. A filter sees packets from their IP header on
/// (`Documentation/networking/filter.rst`).
fn filter(v6: bool, port: u16) -> Vec<Step> {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE_AT_X: u16 = 0x50;
    const LOAD_HALF_AT_X: u16 = 0x48;
    const LOAD_X_HEADER_LENGTH: u16 = 0xb1;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const ICMP_REPLY: u32 = 0;
    const ICMPV6_REPLY: u32 = 129;
    let step = |code, jt, jf, k| Step { code, jt, jf, k };
    let port = u32::from(port);
    let mut steps = match v6 {
        false => vec![
            step(LOAD_HALF, 0, 0, 6),
            step(JUMP_IF_SET, 11, 0, 0x1fff),
            step(LOAD_X_HEADER_LENGTH, 0, 0, 0),
            step(LOAD_BYTE, 0, 0, 9),
            step(JUMP_IF_EQUAL, 0, 2, protocol::TCP.into()),
            step(LOAD_HALF_AT_X, 0, 0, 2),
            step(JUMP_IF_EQUAL, 5, 6, port),
            step(JUMP_IF_EQUAL, 0, 5, protocol::ICMP.into()),
            step(LOAD_BYTE_AT_X, 0, 0, 0),
            step(JUMP_IF_EQUAL, 0, 3, ICMP_REPLY),
            step(LOAD_HALF_AT_X, 0, 0, 4),
        ],
        true => vec![
            step(LOAD_BYTE, 0, 0, 6),
            step(JUMP_IF_EQUAL, 0, 2, protocol::TCP.into()),
            step(LOAD_HALF, 0, 0, 42),
            step(JUMP_IF_EQUAL, 5, 6, port),
            step(JUMP_IF_EQUAL, 0, 5, protocol::ICMPV6.into()),
            step(LOAD_BYTE, 0, 0, 40),
            step(JUMP_IF_EQUAL, 0, 3, ICMPV6_REPLY),
            step(LOAD_HALF, 0, 0, 44),
        ],
    };
    steps.extend([
        step(JUMP_IF_EQUAL, 0, 1, port),
        step(RETURN, 0, 0, LONGEST as u32),
        step(RETURN, 0, 0, 0),
    ]);
    steps
}

/// This host's address on the way to `backend`.
fn own_address(backend: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match backend {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Sends nothing: port 9 is that of discard.
    socket.connect((backend, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// A packet between two addresses.
fn between(from: IpAddr, to: IpAddr) -> Result<PacketBuilderStep<IpHeaders>, ProbeError> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Ok(PacketBuilder::ipv4(from.octets(), to.octets(), HOPS))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Ok(PacketBuilder::ipv6(from.octets(), to.octets(), HOPS))
        }
        _ => {
            let problem = "the VIP and the backend are of two families".to_owned();
            Err(ProbeError::Unaskable(problem))
        }
    }
}

/// A segment that opens a connection, or one that gives it up.
fn segment(
    source: SocketAddr,
    vip: SocketAddr,
    sequence: u32,
    resets: bool,
) -> Result<Vec<u8>, ProbeError> {
    let ip = between(source.ip(), vip.ip())?;
    let tcp = ip.tcp(source.port(), vip.port(), sequence, WINDOW);
    let tcp = if resets { tcp.rst() } else { tcp.syn() };
    let mut packet = Vec::with_capacity(tcp.size(0));
    let written = tcp.write(&mut packet, &[]);
    written.map_err(|error| ProbeError::Unaskable(error.to_string()))?;
    Ok(packet)
}

/// An echo request, of the identifier that `source` has for a port.
fn echo(source: SocketAddr, vip: IpAddr, token: u32) -> Result<Vec<u8>, ProbeError> {
    let ip = between(source.ip(), vip)?;
    let (id, payload) = (source.port(), token.to_be_bytes());
    let mut packet = Vec::new();
    let written = match vip {
        IpAddr::V4(_) => ip.icmpv4_echo_request(id, 1).write(&mut packet, &payload),
        IpAddr::V6(_) => ip.icmpv6_echo_request(id, 1).write(&mut packet, &payload),
    };
    written.map_err(|error| ProbeError::Unaskable(error.to_string()))?;
    Ok(packet)
}

/// How packets of the VIP's family get to a backend.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    by: By,
    backend: IpAddr,
    v6: bool,
    /// There, wherever it is needed.
    hop: Option<Hop>,
}

impl Leaving {
    fn new(way: Way, v6: bool, backend: IpAddr) -> Result<Self, ProbeError> {
        let Way { by, hop, lost } = way;
        if by == By::Address {
            let problem = "traffic goes to the backend's own address, and not to the VIP";
            return Err(ProbeError::Unaskable(problem.to_owned()));
        }
        if hop.is_none() && (by == By::Mac || backend.is_ipv6() != v6) {
            // Traffic goes on as it last could, which is what the check is to find out.
            if lost {
                let problem = "the next hop to the backend is lost";
                return Err(ProbeError::NoWay(problem.to_owned()));
            }
            let problem = "no next hop to the backend is known yet";
            return Err(ProbeError::Local(problem.to_owned()));
        }
        Ok(Self {
            by,
            backend,
            v6,
            hop,
        })
    }

    /// This host's address that the backend is to answer to, which is of the VIP's family.
    fn own_address(self) -> Result<IpAddr, ProbeError> {
        match self.hop {
            Some(hop) if self.backend.is_ipv6() != self.v6 => {
                let own = own_address_of(hop.interface, self.v6);
                own.map_err(|error| ProbeError::Local(error.to_string()))
            }
            _ => own_address(self.backend).map_err(|error| ProbeError::from_connect(&error)),
        }
    }

    /// A packet behind a header that names no other backend.
    fn telling_nobody(self, packet: &[u8]) -> io::Result<Vec<u8>> {
        let v4 = self.backend.is_ipv4();
        let header = second_hop::length(Some(Address::NOBODY), v4);
        let mut told = vec![0; header];
        told.extend(packet);
        let mut frame = SlicePacket::new(&mut told, 0, 0);
        second_hop::write(&mut frame, 0, Address::NOBODY, v4, !self.v6)
            .map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(told)
    }

    /// Sends a packet as traffic goes there.
    fn send(self, listener: &Listener, packet: &[u8]) -> io::Result<()> {
        let domain = Domain::for_address(SocketAddr::new(self.backend, 0));
        let to = |port| SocketAddr::new(self.backend, port).into();
        let sent = match (self.by, self.hop) {
            (By::Ipip, _) => {
                // Whose outer header is the kernel's to write.
                let inner = match self.v6 {
                    false => libc::IPPROTO_IPIP,
                    true => libc::IPPROTO_IPV6,
                };
                let socket = Socket::new(domain, Type::RAW, Some(inner.into()))?;
                socket.send_to(packet, &to(0))?
            }
            (By::Gue { port, second_hop }, _) => {
                let socket = Socket::new(domain, Type::DGRAM, None)?;
                match second_hop {
                    true => socket.send_to(&self.telling_nobody(packet)?, &to(port))?,
                    false => socket.send_to(packet, &to(port))?,
                }
            }
            (By::Mac, Some(hop)) => link::send(&listener.packets, hop, self.v6, packet)?,
            (By::Mac, None) | (By::Address, _) => return Err(io::ErrorKind::Unsupported.into()),
        };
        if sent < packet.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

/// This host's address of a family on an interface: the one that it would send to all hosts there from.
fn own_address_of(interface: u32, v6: bool) -> io::Result<IpAddr> {
    let name = nix::net::if_::if_indextoname(interface)?;
    let (domain, all): (_, IpAddr) = match v6 {
        false => (Domain::IPV4, Ipv4Addr::new(224, 0, 0, 1).into()),
        // Of global scope, so that no link-local address will do.
        true => (
            Domain::IPV6,
            Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1).into(),
        ),
    };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.bind_device(Some(name.as_bytes()))?;
    // Sends nothing, as above.
    socket.connect(&SocketAddr::new(all, 9).into())?;
    let own = socket.local_addr()?.as_socket();
    let own = own.map(|own| own.ip()).filter(|own| !own.is_unspecified());
    own.ok_or_else(|| {
        let (name, family) = (name.to_string_lossy(), if v6 { "IPv6" } else { "IPv4" });
        let problem = format!("{name} has no address of {family}, which the VIP is of");
        io::Error::new(io::ErrorKind::AddrNotAvailable, problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What the other side would answer to `packet`.
    fn answer(vip: &str, to: &str, acknowledged: u32, accepts: bool) -> Vec<u8> {
        let (vip, to) = (address(vip), address(to));
        let ip = match (vip.ip(), to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
            _ => unreachable!("one family"),
        };
        let tcp = ip.tcp(vip.port(), to.port(), 7, 1_000).ack(acknowledged);
        let tcp = if accepts { tcp.syn() } else { tcp.rst() };
        let mut packet = Vec::new();
        tcp.write(&mut packet, &[]).unwrap();
        packet
    }

    /// Runs a filter as the kernel does: bytes of the packet that it passes.
    fn passes(filter: &[Step], packet: &[u8]) -> u32 {
        let half = |at: usize| u32::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let (mut at, mut a, mut x) = (0, 0, 0);
        loop {
            let step = &filter[at];
            at += 1;
            let k = step.k as usize;
            match step.code {
                0x30 => a = packet[k].into(),
                0x28 => a = half(k),
                0x48 => a = half(x + k),
                0x50 => a = packet[x + k].into(),
                0xb1 => x = usize::from(packet[k] & 0xf) * 4,
                0x15 => at += usize::from(if a == step.k { step.jt } else { step.jf }),
                0x45 => at += usize::from(if a & step.k != 0 { step.jt } else { step.jf }),
                0x06 => return step.k,
                code => panic!("{code:x}"),
            }
        }
    }

    const GUE: By = By::Gue {
        port: 6_080,
        second_hop: false,
    };

    const FAMILIES: [(&str, &str); 2] = [
        ("10.0.0.1:80", "10.1.0.1:4000"),
        ("[fd00::1]:80", "[fd00:2::1]:4000"),
    ];

    #[test]
    fn an_answer_tells_whether_the_vip_accepts_and_what_it_answers() {
        for (vip, to) in FAMILIES {
            for accepts in [true, false] {
                let heard = parse(&answer(vip, to, 43, accepts)).unwrap();
                let from = address(vip);
                assert_eq!(
                    heard,
                    Heard {
                        from,
                        to_port: 4000,
                        token: 42,
                        accepts
                    }
                );
            }
        }
    }

    /// What the host of `vip` would make of an echo request.
    fn echoed(vip: &str, to: &str, id: u16, token: u32) -> Vec<u8> {
        let (vip, to) = (address(vip).ip(), address(to).ip());
        let (ip, mut packet) = (between(vip, to).unwrap(), Vec::new());
        let payload = token.to_be_bytes();
        let written = match vip {
            IpAddr::V4(_) => ip.icmpv4_echo_reply(id, 1).write(&mut packet, &payload),
            IpAddr::V6(_) => ip.icmpv6_echo_reply(id, 1).write(&mut packet, &payload),
        };
        written.unwrap();
        packet
    }

    #[test]
    fn an_echo_tells_what_was_sent_and_whose_it_is() {
        for (vip, to) in FAMILIES {
            let heard = parse(&echoed(vip, to, 4_000, 42)).unwrap();
            let vip = Vip::of(format!("{vip}/udp").parse().unwrap(), 80);
            assert_eq!(
                heard,
                Heard {
                    from: vip.answers_from(),
                    to_port: 4_000,
                    token: 42,
                    accepts: true
                }
            );
        }
    }

    #[test]
    fn what_is_sent_is_no_answer() {
        for (vip, from) in FAMILIES {
            let (vip, from) = (address(vip), address(from));
            for resets in [true, false] {
                let sent = segment(from, vip, 42, resets).unwrap();
                assert_eq!(parse(&sent), None);
            }
            let sent = echo(from, vip.ip(), 42).unwrap();
            assert_eq!(parse(&sent), None);
            assert_eq!(passes(&filter(vip.is_ipv6(), from.port()), &sent), 0);
        }
    }

    /// Where a backend at that port is asked.
    fn asked_of(port: u16, service: &str, also: &[&str]) -> Vec<String> {
        let backend = SocketAddr::from(([10, 2, 0, 1], port));
        let check = model::Check::new(model::Probe::Vip {});
        let mut subject = crate::health::probe::testing::subject(backend, &check);
        subject.target.service = service.parse().unwrap();
        subject.also = also.iter().map(|id| id.parse().unwrap()).collect();
        let shown = |vip: Vip| match vip.echoes {
            true => format!("{} echoes", vip.at.ip()),
            false => vip.at.to_string(),
        };
        asked(&subject).into_iter().map(shown).collect()
    }

    #[test]
    fn of_several_ports_that_of_the_check_or_the_backend_is_asked_and_of_several_addresses_the_first()
     {
        for (service, port, asked) in [
            ("10.0.0.1:443/tcp", 80, "10.0.0.1:443"),
            ("10.0.0.1:*/tcp", 80, "10.0.0.1:80"),
            ("10.0.0.1:8000-8999/tcp", 8_080, "10.0.0.1:8080"),
            ("10.0.0.1:8000-8999/tcp", 80, "10.0.0.1:8000"),
            ("10.0.0.0/28:443/tcp", 80, "10.0.0.0:443"),
            ("[fd00::]/64:443/tcp", 80, "[fd00::]:443"),
            ("10.0.0.1:53/udp", 53, "10.0.0.1 echoes"),
        ] {
            let service = service.replace("[fd00::]/64", "[fd00::/64]");
            assert_eq!(asked_of(port, &service, &[]), [asked], "{service}");
        }
    }

    #[test]
    fn every_address_of_a_group_is_asked_once_rather_for_a_connection() {
        let also = ["10.0.0.1:443/tcp", "10.0.0.2:80/tcp", "10.0.0.3:53/udp"];
        let asked = asked_of(80, "10.0.0.1:53/udp", &also);
        assert_eq!(asked, ["10.0.0.1:443", "10.0.0.2:80", "10.0.0.3 echoes"]);
        let many: Vec<String> = (2..=250).map(|n| format!("10.0.0.{n}:80/tcp")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(asked_of(80, "10.0.0.1:80/tcp", &many).len(), MOST_VIPS);
    }

    #[test]
    fn where_a_second_hop_is_told_a_probe_has_a_header_that_names_nobody() {
        for (backend, length) in [("10.2.0.1", 12), ("fd00:2::1", 24)] {
            let by = By::Gue {
                port: 6_080,
                second_hop: true,
            };
            let backend: IpAddr = backend.parse().unwrap();
            let hop = Some(Hop {
                interface: 1,
                mac: [2; 6],
            });
            let way = Way {
                by,
                hop,
                lost: false,
            };
            let way = Leaving::new(way, false, backend).unwrap();
            let told = way.telling_nobody(b"packet").unwrap();
            let (header, packet) = told.split_at(length);
            assert_eq!(packet, b"packet");
            // The length in words behind the first one, and IPv4 inside.
            assert_eq!(header[..4], [(length / 4 - 1) as u8, 4, 0, 0]);
            assert_eq!(header[4..8], *b"LB\x01\0");
            assert!(header[8..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_filter_passes_segments_to_its_port_and_its_echoes_and_nothing_else() {
        for (vip, to) in FAMILIES {
            let v6 = address(vip).is_ipv6();
            let packet = answer(vip, to, 1, true);
            assert!(passes(&filter(v6, 4_000), &packet) > 0);
            assert_eq!(passes(&filter(v6, 4_001), &packet), 0);
            let mut udp = packet.clone();
            udp[if v6 { 6 } else { 9 }] = 17;
            assert_eq!(passes(&filter(v6, 4_000), &udp), 0);
            let echoed = echoed(vip, to, 4_000, 42);
            assert!(passes(&filter(v6, 4_000), &echoed) > 0);
            assert_eq!(passes(&filter(v6, 4_001), &echoed), 0);
        }
        let mut fragment = answer(FAMILIES[0].0, FAMILIES[0].1, 1, true);
        fragment[7] = 1;
        assert_eq!(passes(&filter(false, 4_000), &fragment), 0);
    }

    #[test]
    fn without_a_next_hop_nobody_is_asked_who_needs_one_and_nobody_is_blamed() {
        let hop = Some(Hop {
            interface: 1,
            mac: [2; 6],
        });
        let backend: IpAddr = "10.2.0.1".parse().unwrap();
        for (by, v6, needs) in [
            (By::Ipip, false, false),
            (GUE, false, false),
            (By::Ipip, true, true),
            (GUE, true, true),
            (By::Mac, false, true),
            (By::Mac, true, true),
        ] {
            let way = Way {
                by,
                hop,
                lost: false,
            };
            assert!(Leaving::new(way, v6, backend).is_ok());
            let without = Leaving::new(Way { hop: None, ..way }, v6, backend);
            assert_eq!(without.is_err(), needs, "{by:?} {v6}");
            assert!(without.err().is_none_or(|error| !error.blames_backend()));
        }
        assert!(Leaving::new(Way::default(), false, backend).is_err());
    }

    #[test]
    fn who_had_a_next_hop_and_lost_it_is_blamed_where_one_is_needed() {
        let backend: IpAddr = "10.2.0.1".parse().unwrap();
        for (by, v6, needs) in [
            (By::Ipip, false, false),
            (By::Ipip, true, true),
            (GUE, true, true),
            (By::Mac, false, true),
        ] {
            let way = Way {
                by,
                hop: None,
                lost: true,
            };
            let left = Leaving::new(way, v6, backend);
            assert_eq!(left.is_err(), needs, "{by:?} {v6}");
            let error = left.err();
            assert!(error.is_none_or(|error| error.blames_backend() && !error.says_dead(true)));
        }
    }

    #[test]
    fn no_segment_is_of_two_families() {
        let packet = segment(address("10.0.0.1:1"), address("[fd00::1]:80"), 1, false);
        assert!(matches!(packet, Err(ProbeError::Unaskable(_))));
    }
}
