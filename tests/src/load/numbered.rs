//! Numbered UDP datagrams at a fixed rate from the client, and receivers at the backends that tick
//! every number off: TCP repeats what is lost, this does not. Owns sender, receivers and pacing;
//! the bookkeeping is [`account`]'s.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::time::Instant;

use crate::netns::Namespace;

pub mod account;

pub use account::{Delivery, Gap, Receipts, Sent};

/// The most datagrams sent without a pause: a veth's ring holds 256.
const MAX_BURST: u64 = 64;
/// From one burst to the next.
const PACE: Duration = Duration::from_micros(500);
/// From one look at what has come to the next.
const TAKE: Duration = Duration::from_millis(2);
/// Holds seconds of datagrams, should the receiver not run for a while.
const RECEIVE_BUFFER: usize = 64 << 20;
/// A receiver that is told to stop does so once nothing has come for this long.
const QUIET: Duration = Duration::from_millis(100);
/// The payload: flow, number, and filling up to the size of a small request.
const DATAGRAM: usize = 64;

/// Sends numbered datagrams from a thread inside a namespace.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Sent>>>,
}

impl Sender {
    /// Starts `rate` datagrams a second from `client` to `target`, from `flows` ports in turn.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn start(client: &Namespace, target: SocketAddr, rate: u32, flows: u32) -> Result<Self> {
        let open = || {
            (0..flows)
                .map(|_| connected(target))
                .collect::<Result<Vec<_>>>()
        };
        let sockets = client.run(open)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = client.thread(move || send_all(&sockets, rate, &stopped));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops, and says what was sent.
    ///
    /// # Errors
    /// Sending failed on the way.
    pub fn stop(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the sender is running")?;
        thread.join().map_err(|_| anyhow!("the sender panicked"))?
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Receives numbered datagrams on a thread inside a namespace.
#[derive(Debug)]
pub struct Receiver {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<Receipts>>,
}

impl Receiver {
    /// Receives at `port` of every address of `namespace`, VIPs included, under `name`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let socket = namespace.run(|| listening(port))?;
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let name = name.to_owned();
        let thread = thread::spawn(move || receive_all(&socket, name, &stopped, &counted));
        Ok(Self {
            stop,
            count,
            thread: Some(thread),
        })
    }

    /// How many datagrams came so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Receives what is still on the way, and says what came. The sender has to be stopped first.
    ///
    /// # Errors
    /// The receiver panicked.
    pub fn stop(mut self) -> Result<Receipts> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the receiver is running")?;
        thread.join().map_err(|_| anyhow!("the receiver panicked"))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Stops `sender`, then `receivers`, and accounts for every datagram.
///
/// # Errors
/// One of them failed on the way.
pub fn settle(sender: Sender, receivers: Vec<Receiver>) -> Result<Delivery> {
    let sent = sender.stop()?;
    let receipts = receivers
        .into_iter()
        .map(Receiver::stop)
        .collect::<Result<Vec<_>>>()?;
    Ok(Delivery::account(&sent, receipts))
}

fn connected(target: SocketAddr) -> Result<UdpSocket> {
    let any = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).context("a socket to send from")?;
    socket
        .connect(target)
        .with_context(|| format!("a socket to {target}/udp"))?;
    Ok(socket)
}

fn listening(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("receiving at port {port}/udp"))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("a large buffer")?;
    socket.set_nonblocking(true).context("a socket to poll")?;
    Ok(socket)
}

/// Keeps to the schedule in the long run, in bursts that no queue on the way overflows from. Where
/// it is late, it only lets the others run in between.
fn send_all(sockets: &[UdpSocket], rate: u32, stop: &AtomicBool) -> Result<Sent> {
    let mut sent = Sent::start(sockets.len(), rate, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let due = (sent.started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let burst = due.saturating_sub(sent.total()).min(MAX_BURST);
        for _ in 0..burst {
            let (flow, number) = sent.next();
            send(&sockets[flow], &datagram(flow, number), &mut sent.repeated)?;
            sent.count();
        }
        if burst < MAX_BURST {
            thread::sleep(PACE);
        } else {
            thread::yield_now();
        }
    }
    sent.took = sent.started.elapsed();
    Ok(sent)
}

/// Sends once. An error that an earlier datagram brought back (a closed port, no route) is
/// reported by the next send instead of sending: that is made up for.
fn send(socket: &UdpSocket, datagram: &[u8], repeated: &mut u64) -> Result<()> {
    const ATTEMPTS: u32 = 100;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match socket.send(datagram) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
        *repeated += 1;
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::Other.into())).context("sending a datagram")
}

fn datagram(flow: usize, number: u64) -> [u8; DATAGRAM] {
    let mut datagram = [0; DATAGRAM];
    datagram[..8].copy_from_slice(&(flow as u64).to_be_bytes());
    datagram[8..16].copy_from_slice(&number.to_be_bytes());
    datagram
}

/// Takes what has come once in a while: waking up for each datagram would cost more than the rest.
fn receive_all(socket: &UdpSocket, name: String, stop: &AtomicBool, count: &AtomicU64) -> Receipts {
    let mut receipts = Receipts::of(name);
    let mut last = Instant::now();
    loop {
        // In this order: what was sent before the order to stop is taken after it was seen.
        let stopped = stop.load(Ordering::Relaxed);
        let taken = take_all(socket, &mut receipts);
        count.fetch_add(taken, Ordering::Relaxed);
        if taken > 0 {
            last = Instant::now();
        } else if stopped && last.elapsed() >= QUIET {
            return receipts;
        }
        thread::sleep(TAKE);
    }
}

/// Ticks off what the socket holds, and says how much that was.
fn take_all(socket: &UdpSocket, receipts: &mut Receipts) -> u64 {
    let mut buffer = [0; DATAGRAM];
    let mut taken = 0;
    while let Ok(length) = socket.recv(&mut buffer) {
        match header(&buffer) {
            Some((flow, number)) if length == DATAGRAM => {
                receipts.tick(flow, number);
                taken += 1;
            }
            _ => receipts.foreign += 1,
        }
    }
    taken
}

/// Flow and number of a datagram.
fn header(datagram: &[u8; DATAGRAM]) -> Option<(u64, u64)> {
    let (flow, rest) = datagram.split_first_chunk()?;
    Some((
        u64::from_be_bytes(*flow),
        u64::from_be_bytes(*rest.first_chunk()?),
    ))
}
