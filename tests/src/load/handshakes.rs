//! Connections that are opened, acknowledged and reset at once, at rates that sockets do not reach: raw segments, whose
//! handshakes a backend's own kernel answers. Owns their making and pace; no server gets a request.

use std::{
    net::SocketAddrV4,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};
use tokio::time::Instant;

use super::{Attempt, Failure, Phase, Reason, Report, raw::Raw};
use crate::{netns::Namespace, process::run_with_input, topology::CLIENT_V4};

/// Source ports, from the first that is no service's.
const FIRST_PORT: u16 = 1_024;
const PORTS: u64 = 64_000;
/// From one burst to the next.
const PACE: Duration = Duration::from_millis(1);
/// At most so many at once: where it is late, others run in between.
const MAX_BURST: u64 = 64;
/// Not the kernel's, whose resets of what it has no socket for are dropped by that.
const TTL: u8 = 63;
const WINDOW: u16 = 1_024;
/// What is not answered by then is not.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the listener looks whether it is told to end.
const LOOK: i64 = 50_000;
const RECEIVE_BUFFER: usize = 16 << 20;
const LONGEST: usize = 2_048;

/// Handshakes under way; end on drop.
#[derive(Debug)]
pub struct Handshakes {
    client: Namespace,
    sending: Arc<AtomicBool>,
    listening: Arc<AtomicBool>,
    attempts: Arc<Mutex<Vec<Try>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// One handshake; its number is the SYN's sequence number.
#[derive(Debug, Clone, Copy)]
struct Try {
    started: Instant,
    /// When it was answered, and whether by a SYN-ACK.
    answered: Option<(Instant, bool)>,
}

impl Handshakes {
    /// Starts `rate` handshakes a second from `client` with `target`.
    ///
    /// # Errors
    /// A socket cannot be made, or the client's kernel not be kept from resetting what it has no socket for.
    pub fn start(client: &Namespace, target: SocketAddrV4, rate: u32) -> Result<Self> {
        let rules = format!(
            "table ip handshakes {{\n chain resets {{\n  type filter hook output priority 0;\n  \
             ip daddr {} ip ttl != {TTL} tcp flags & rst == rst drop\n }}\n}}\n",
            target.ip()
        );
        run_with_input(client.command("nft").args(["-f", "-"]), &rules)?;
        let mut handshakes = Self {
            client: client.clone(),
            sending: Arc::new(AtomicBool::new(true)),
            listening: Arc::new(AtomicBool::new(true)),
            attempts: Arc::default(),
            threads: Vec::new(),
        };
        let to = target.into();
        let (sender, answerer) = (Raw::new(client, to)?, Raw::new(client, to)?);
        let listener = client.run(listener)?;
        let (on, attempts) = (
            Arc::clone(&handshakes.listening),
            Arc::clone(&handshakes.attempts),
        );
        handshakes.threads.push(thread::spawn(move || {
            listen(&listener, &answerer, target, &on, &attempts)
        }));
        let (on, attempts) = (
            Arc::clone(&handshakes.sending),
            Arc::clone(&handshakes.attempts),
        );
        handshakes.threads.push(thread::spawn(move || {
            open(&sender, target, rate, &on, &attempts)
        }));
        Ok(handshakes)
    }

    /// Begins no more, awaits answers to those under way, and says what became of all; no answer names its backend.
    ///
    /// # Errors
    /// Sending or receiving failed on the way.
    pub fn stop(mut self) -> Result<Report> {
        self.sending.store(false, Ordering::Relaxed);
        thread::sleep(PATIENCE);
        self.listening.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow!("the handshakes panicked"))??;
        }
        let tries = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Report {
            attempts: tries.iter().map(Try::attempt).collect(),
        })
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.sending.store(false, Ordering::Relaxed);
        self.listening.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        let mut nft = self.client.command("nft");
        drop(nft.args(["delete", "table", "ip", "handshakes"]).status());
    }
}

impl Try {
    fn attempt(&self) -> Attempt {
        let failed = |reason| {
            Err(Failure {
                phase: Phase::Connect,
                reason,
            })
        };
        let (ended, outcome) = match self.answered {
            Some((at, true)) => (at, Ok(String::new())),
            Some((at, false)) => (at, failed(Reason::Refused)),
            None => (self.started + PATIENCE, failed(Reason::TimedOut)),
        };
        Attempt {
            started: self.started,
            ended,
            outcome,
        }
    }
}

/// Gets a copy of every TCP segment that comes in.
fn listener() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Tcp)
        .context("a raw socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("its receive buffer")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, LOOK)).context("its timeout")?;
    Ok(socket)
}

fn open(
    socket: &Raw,
    target: SocketAddrV4,
    rate: u32,
    on: &AtomicBool,
    attempts: &Mutex<Vec<Try>>,
) -> Result<()> {
    let began = Instant::now();
    let mut done = 0;
    while on.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let until = due.min(done + MAX_BURST);
        for number in done..until {
            let started = Instant::now();
            let mut all = attempts.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(Try {
                started,
                answered: None,
            });
            drop(all);
            send(socket, target, port(number), number as u32, None)?;
        }
        done = until.max(done);
        thread::sleep(PACE);
    }
    Ok(())
}

fn listen(
    socket: &OwnedFd,
    answerer: &Raw,
    target: SocketAddrV4,
    on: &AtomicBool,
    attempts: &Mutex<Vec<Try>>,
) -> Result<()> {
    let mut buffer = [0; LONGEST];
    while on.load(Ordering::Relaxed) {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("receiving a segment"),
        };
        let Some(answer) = answer(&buffer[..length], target) else {
            continue;
        };
        let mut all = attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tried) = all.get_mut(answer.number as usize) else {
            continue;
        };
        let is_first = tried.answered.is_none();
        tried
            .answered
            .get_or_insert((Instant::now(), answer.sequence.is_some()));
        drop(all);
        if let (true, Some(sequence)) = (is_first, answer.sequence) {
            let port = port(answer.number.into());
            for resets in [false, true] {
                let acknowledges = Some((sequence + 1, resets));
                send(answerer, target, port, answer.number + 1, acknowledges)?;
            }
        }
    }
    Ok(())
}

fn port(number: u64) -> u16 {
    FIRST_PORT + (number % PORTS) as u16
}

/// Sends a SYN, or an acknowledgement of something, which may reset.
fn send(
    socket: &Raw,
    target: SocketAddrV4,
    port: u16,
    sequence: u32,
    acknowledges: Option<(u32, bool)>,
) -> Result<()> {
    let ip = PacketBuilder::ipv4(CLIENT_V4.octets(), target.ip().octets(), TTL);
    let tcp = ip.tcp(port, target.port(), sequence, WINDOW);
    let tcp = match acknowledges {
        None => tcp.syn(),
        Some((number, false)) => tcp.ack(number),
        Some((number, true)) => tcp.ack(number).rst(),
    };
    let mut bytes = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut bytes, &[]).context("writing a segment")?;
    socket.send(&bytes)
}

/// What a backend says to a SYN.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// Of this number.
    number: u32,
    /// Its own sequence number, where it accepts.
    sequence: Option<u32>,
}

fn answer(packet: &[u8], from: SocketAddrV4) -> Option<Answer> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport)
    else {
        return None;
    };
    let source = SocketAddrV4::new(ip.header().source_addr(), tcp.source_port());
    let is_answer = source == from && tcp.ack() && (tcp.syn() || tcp.rst());
    is_answer.then(|| Answer {
        number: tcp.acknowledgment_number().wrapping_sub(1),
        sequence: tcp.syn().then(|| tcp.sequence_number()),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 80);

    #[test]
    fn a_syn_ack_accepts_a_reset_refuses_and_neither_of_anybody_else_does() {
        let said = |from: SocketAddrV4, syn: bool| {
            let ip = PacketBuilder::ipv4(from.ip().octets(), CLIENT_V4.octets(), 64);
            let tcp = ip.tcp(from.port(), port(7), 500, WINDOW).ack(8);
            let tcp = if syn { tcp.syn() } else { tcp.rst() };
            let mut bytes = Vec::new();
            tcp.write(&mut bytes, &[]).unwrap();
            answer(&bytes, SERVER)
        };
        let answered = |sequence| {
            Some(Answer {
                number: 7,
                sequence,
            })
        };
        assert_eq!(said(SERVER, true), answered(Some(500)));
        assert_eq!(said(SERVER, false), answered(None));
        assert_eq!(said(SocketAddrV4::new(*SERVER.ip(), 81), true), None);
    }
}
