//! A backend to measure: its decapsulator, loaded without an interface, and a server with a connection of its own.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use aya::{Ebpf, maps::PerCpuArray, programs::ProgramFd};
use lb_common::{hand_on::Hop, wire};
use lb_userspace::dataplane::bpf::decap::{self, Options};

use super::{
    frame::Frame,
    scenario::{BACKEND_VIPS, End, Scenario, TERMINALS},
};

/// The port of the server.
const PORT: u16 = 80;

/// See above.
pub struct Backend {
    ebpf: Ebpf,
    /// Of each VIP, the server and the client's end of a connection with it.
    connections: Vec<(TcpListener, TcpStream)>,
}

impl Backend {
    /// Loads the program, and connects to a server on each VIP, which this namespace has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        let ebpf = decap::load(Options {
            addresses: &TERMINALS,
            gue_port: wire::GUE_PORT,
            second_hop: true,
        })?;
        Ok(Self {
            ebpf,
            connections: BACKEND_VIPS
                .into_iter()
                .map(connect)
                .collect::<Result<_>>()?,
        })
    }

    /// The program.
    ///
    /// # Errors
    /// It cannot be shared.
    pub fn program(&mut self) -> Result<ProgramFd> {
        Ok(decap::xdp(&mut self.ebpf)?.fd()?.try_clone()?)
    }

    /// A scenario's frame, of the connection with its VIP where it is to stay here.
    ///
    /// # Errors
    /// There is none.
    pub fn frame(&self, scenario: &Scenario) -> Result<Frame> {
        let mut frame = scenario.frame.clone();
        let End::Unwrapped(headers) = scenario.end else {
            return Ok(frame);
        };
        // The version of the packet within.
        let v4 = frame.bytes[super::frame::ETHERNET + headers] >> 4 == 4;
        let own = |(_, client): &(TcpListener, TcpStream)| client.local_addr().ok();
        let mut ends = self.connections.iter().filter_map(own);
        let end = ends
            .find(|end| end.is_ipv4() == v4)
            .context("no connection")?;
        frame.bytes[frame.port_at..frame.port_at + 2].copy_from_slice(&end.port().to_be_bytes());
        Ok(frame)
    }

    /// Packets unwrapped, and handed on to where they should go.
    ///
    /// # Errors
    /// The maps cannot be read.
    pub fn counted(&self) -> Result<(u64, u64)> {
        let [unwrapped, ..] = self.total::<3>("UNWRAPPED", 0)?;
        let [handed_on] = self.total("HOPS", Hop::Direct as u32)?;
        Ok((unwrapped, handed_on))
    }

    /// An element of so many numbers, summed over all CPUs.
    fn total<const N: usize>(&self, map: &str, index: u32) -> Result<[u64; N]>
    where
        [u64; N]: aya::Pod,
    {
        let map = self.ebpf.map(map).with_context(|| map.to_owned())?;
        let array: PerCpuArray<_, [u64; N]> = PerCpuArray::try_from(map)?;
        let mut sums = [0u64; N];
        for values in array.get(&index, 0)?.iter() {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        Ok(sums)
    }
}

fn connect(vip: IpAddr) -> Result<(TcpListener, TcpStream)> {
    let at = SocketAddr::new(vip, PORT);
    let server = TcpListener::bind(at).with_context(|| at.to_string())?;
    let client = TcpStream::connect(at).with_context(|| at.to_string())?;
    Ok((server, client))
}
