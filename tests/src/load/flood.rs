//! TCP segments from addresses that nobody has, each from a new one, as attackers send them. Owns
//! their making and pace; what they do to others is the tests'.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use etherparse::PacketBuilder;
use tokio::time::Instant;

use super::raw::Raw;
use crate::netns::Namespace;

/// Sources are counted up from here, through a range that RFC 2544 keeps for tests.
const FIRST_SOURCE: u32 = Ipv4Addr::new(198, 18, 0, 0).to_bits();
/// So many, then with the next port.
const SOURCES: u32 = 1 << 17;
const FIRST_PORT: u16 = 1_024;
/// From one burst to the next.
const PACE: Duration = Duration::from_millis(2);
/// At most so many at once: where it is late, others run in between.
const MAX_BURST: u64 = 64;
const TTL: u8 = 64;
const WINDOW: u16 = 1_024;

/// What each segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// The opening of a connection.
    Syn,
    /// A later one, of a connection that nobody knows.
    Ack,
}

/// A flood under way; ends on drop.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// Starts `rate` segments a second from `client` to `target`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(
        client: &Namespace,
        target: SocketAddrV4,
        segment: Segment,
        rate: u32,
    ) -> Result<Self> {
        let socket = Raw::new(client, target.into())?;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread =
            thread::spawn(move || send_all(&socket, target, segment, rate, &stopped, &counted));
        Ok(Self {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; how many were sent.
    ///
    /// # Errors
    /// Sending failed on the way.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the flood is under way")?;
        thread.join().map_err(|_| anyhow!("the flood panicked"))??;
        Ok(self.sent())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn send_all(
    socket: &Raw,
    target: SocketAddrV4,
    segment: Segment,
    rate: u32,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let done = sent.load(Ordering::Relaxed);
        for number in done..due.min(done + MAX_BURST) {
            socket.send(&packet(number, target, segment)?)?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(PACE);
    }
    Ok(())
}

fn packet(number: u64, target: SocketAddrV4, segment: Segment) -> Result<Vec<u8>> {
    let source = Ipv4Addr::from_bits(FIRST_SOURCE + (number % u64::from(SOURCES)) as u32);
    let port = FIRST_PORT + (number / u64::from(SOURCES)) as u16;
    let ip = PacketBuilder::ipv4(source.octets(), target.ip().octets(), TTL);
    let tcp = ip.tcp(port, target.port(), number as u32, WINDOW);
    let tcp = match segment {
        Segment::Syn => tcp.syn(),
        Segment::Ack => tcp.ack(number as u32),
    };
    let mut bytes = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut bytes, &[]).context("writing a segment")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn every_segment_is_of_a_new_source_and_right() {
        let target = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 80);
        let mut sources = BTreeSet::new();
        for number in (0..300).chain(u64::from(SOURCES)..u64::from(SOURCES) + 300) {
            let bytes = packet(number, target, Segment::Syn).unwrap();
            let sliced = SlicedPacket::from_ip(&bytes).unwrap();
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
                (sliced.net, sliced.transport)
            else {
                panic!("{bytes:x?}");
            };
            let (ip, target) = (ip.header(), target.ip().octets());
            assert!(tcp.syn() && !tcp.ack());
            let checksum = tcp.calc_checksum_ipv4(ip.source(), target).unwrap();
            assert_eq!(tcp.checksum(), checksum);
            sources.insert((ip.source(), tcp.source_port()));
        }
        assert_eq!(sources.len(), 600);
    }
}
