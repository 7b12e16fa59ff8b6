//! Datagrams in fragments, as real hosts send them and as networks bring them out of order: the backend of
//! their flow gets all of them, in every mode and family, and answers in fragments of its own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    config::Service,
    load::{
        fragments::{Datagram, PART},
        raw::Raw,
    },
    process::run_with_input,
    skip::with_root,
    stage::{BACKENDS, Stage, every_udp_mode, vip},
    topology::{CLIENT_V4, CLIENT_V6, Topology, backend_name},
    udp::UdpEcho,
    wait::{wait_ok, wait_until},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
/// Of a service, each from a port of its own.
const FLOWS: usize = 24;
/// Of these, so many send their fragments the other way round: no more are held in a second than may be.
const REVERSED: usize = 6;
/// Between the services, for the same reason.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes of datagrams.
const LENGTHS: [usize; 2] = [4_000, 20_000];

/// Clients whose way to the VIPs leaves room for the outer headers of tunnels.
fn stage() -> Result<(Stage, Vec<Service>, Vec<UdpEcho>)> {
    let (stage, services, servers) = stage_of_links()?;
    let routes = "route change default via 10.1.0.1 mtu 1400\n\
                  route change default via fd00:1::1 mtu 1400\n";
    let client = stage.topology.client.name();
    run_with_input(
        Command::new("ip").args(["-n", client, "-batch", "-"]),
        routes,
    )?;
    Ok((stage, services, servers))
}

/// Clients who take what their link takes for what the whole way does.
fn stage_of_links() -> Result<(Stage, Vec<Service>, Vec<UdpEcho>)> {
    let services = every_udp_mode()?;
    let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
    let servers = echo_servers(&stage, &services)?;
    Ok((stage, services, servers))
}

fn echo_servers(stage: &Stage, services: &[Service]) -> Result<Vec<UdpEcho>> {
    let mut servers = Vec::new();
    for n in 1..=BACKENDS {
        let mut own = BTreeSet::new();
        for service in services {
            let (backend, _) = service.backends[usize::from(n) - 1];
            own.insert(if matches!(service.mode, "nat" | "full-nat") {
                backend
            } else {
                vip(service)?
            });
        }
        let own: Vec<_> = own.into_iter().collect();
        servers.push(UdpEcho::start(
            stage.topology.backend(n),
            &backend_name(n),
            &own,
        )?);
    }
    Ok(servers)
}

/// A client's flow.
struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Flow {
    fn new(stage: &Stage, to: SocketAddr) -> Result<Self> {
        let own: IpAddr = if to.is_ipv4() {
            CLIENT_V4.into()
        } else {
            CLIENT_V6.into()
        };
        let socket = stage.topology.client.run(|| UdpSocket::bind((own, 0)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { socket, to })
    }

    /// Who answers what `send` sends.
    fn asked(&self, payload: &[u8], send: impl FnOnce(&[u8]) -> Result<()>) -> Result<String> {
        send(payload)?;
        let mut answer = vec![0; 65_535];
        let length = self.socket.recv(&mut answer).context("no answer")?;
        let space = answer.iter().position(|&byte| byte == b' ');
        let (name, echoed) = answer[..length].split_at(space.context("a name")?);
        ensure!(&echoed[1..] == payload, "{} bytes came back", echoed.len());
        Ok(String::from_utf8(name.to_vec())?)
    }

    /// Asks by one datagram that the kernel cuts, if need be.
    fn ask(&self, payload: &[u8]) -> Result<String> {
        self.asked(payload, |payload| {
            Ok(self.socket.send(payload).map(drop)?)
        })
    }

    /// Asks by fragments, the last one first.
    fn ask_reversed(&self, raw: &Raw, id: u32, payload: &[u8]) -> Result<String> {
        self.asked(payload, |payload| {
            let from = self.socket.local_addr()?;
            let parts = Datagram::new(from, self.to, id, payload)?.parts()?;
            parts.iter().rev().try_for_each(|part| raw.send(part))
        })
    }
}

fn payload(length: usize, n: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + n) as u8).collect()
}

/// What the program has counted, by its name.
fn counted(stage: &Stage, what: &str, name: &str) -> Result<u64> {
    let status: Value = stage.agent.lbctl_json(&["status"])?;
    status[what][name]
        .as_u64()
        .with_context(|| format!("{what} {name}"))
}

#[test]
fn large_datagrams_go_where_their_flow_goes_in_every_mode_and_order() -> Result<()> {
    with_root(
        "large_datagrams_go_where_their_flow_goes_in_every_mode_and_order",
        || {
            let (stage, services, _servers) = stage()?;
            let mut id = 1;
            for service in &services {
                let to = vip(service)?;
                let raw = Raw::new(&stage.topology.client, to)?;
                let mut names = BTreeSet::new();
                for n in 0..FLOWS {
                    let flow = Flow::new(&stage, to)?;
                    let shown = || format!("{} {}, flow {n}", service.mode, service.vip);
                    let name = flow.ask(&payload(100, n)).with_context(shown)?;
                    for length in LENGTHS {
                        let payload = payload(length, n);
                        let own = flow.ask(&payload).with_context(shown)?;
                        ensure!(own == name, "{}: {own}, not {name}", shown());
                        if n < REVERSED {
                            id += 1;
                            let own = flow.ask_reversed(&raw, id, &payload);
                            let own = own.with_context(|| {
                                format!("{} reversed; {}", shown(), stage.agent.log())
                            })?;
                            ensure!(own == name, "{} reversed: {own}, not {name}", shown());
                        }
                    }
                    names.insert(name);
                }
                ensure!(names.len() == 3, "{}: only {names:?}", service.vip);
                thread::sleep(PAUSE);
            }
            let count = |name| counted(&stage, "fragments", name);
            let parts = LENGTHS.map(|length| (length + 8).div_ceil(PART) - 1);
            let held = services.len() * REVERSED * parts.iter().sum::<usize>();
            println!(
                "first {}, later {}, held {}, released {}",
                count("first")?,
                count("later")?,
                count("held")?,
                count("released")?
            );
            assert_eq!(count("held")?, held as u64);
            assert_eq!(count("released")?, held as u64);
            for reason in ["fragment", "fragment_overlap", "fragment_before_first"] {
                assert_eq!(counted(&stage, "drops", reason)?, 0, "{reason}");
            }
            Ok(())
        },
    )
}

#[test]
fn a_client_whose_fragments_are_too_long_for_a_tunnel_is_told_and_its_next_datagrams_arrive()
-> Result<()> {
    with_root(
        "a_client_whose_fragments_are_too_long_for_a_tunnel_is_told_and_its_next_datagrams_arrive",
        || {
            let (stage, services, _servers) = stage_of_links()?;
            let mut told = 0;
            for service in &services {
                let to = vip(service)?;
                let flow = Flow::new(&stage, to)?;
                flow.socket
                    .set_read_timeout(Some(Duration::from_millis(500)))?;
                // What is told of is lost; what the sender's kernel has heard of it counts for what comes after.
                let mut asked = 0;
                wait_ok(
                    &format!("{} {} answers", service.mode, service.vip),
                    SOON,
                    || {
                        asked += 1;
                        flow.ask(&payload(3_000, asked))
                    },
                )?;
                let is_tunnel = matches!(service.mode, "ipip" | "gue");
                let now = counted(&stage, "answers", "too_big")?;
                ensure!(
                    is_tunnel == (now > told) && is_tunnel == (asked > 1),
                    "{} {}: asked {asked} times, told {} times",
                    service.mode,
                    service.vip,
                    now - told
                );
                told = now;
                for n in 0..3 {
                    flow.ask(&payload(20_000, n))?;
                }
            }
            Ok(())
        },
    )
}

#[test]
fn fragments_that_nothing_can_be_made_of_are_counted_by_what_is_wrong_with_them() -> Result<()> {
    with_root(
        "fragments_that_nothing_can_be_made_of_are_counted_by_what_is_wrong_with_them",
        || {
            let (stage, services, _servers) = stage()?;
            let await_drops = |reason: &str, wanted: u64| {
                wait_until(&format!("{wanted} {reason}"), SOON, || {
                    counted(&stage, "drops", reason).is_ok_and(|count| count == wanted)
                })
                .with_context(|| format!("{:?}", counted(&stage, "drops", reason)))
            };
            let mut wanted = 0;
            for (service, id) in services.iter().zip(0x7000..) {
                wanted += 1;
                let to = vip(service)?;
                let raw = Raw::new(&stage.topology.client, to)?;
                let flow = Flow::new(&stage, to)?;
                let from = flow.socket.local_addr()?;
                let datagram = Datagram::new(from, to, id, &payload(4_000, 1))?;
                // The first one never comes.
                raw.send(&datagram.part(PART, 2 * PART)?)?;
                await_drops("fragment_before_first", wanted)?;
                // The second overlaps it; the others are given up.
                raw.send(&datagram.part(0, PART)?)?;
                raw.send(&datagram.part(PART - 8, 2 * PART)?)?;
                raw.send(&datagram.part(2 * PART, 3 * PART)?)?;
                await_drops("fragment_overlap", 2 * wanted)?;
                // It ends where another may not begin.
                raw.send(&datagram.part(3 * PART, 3 * PART + 12)?)?;
                await_drops("fragment_malformed", wanted)?;
                // One that is whole does not suffer from it.
                flow.ask(&payload(4_000, 2))?;
            }
            assert_eq!(
                counted(&stage, "fragments", "held")?,
                counted(&stage, "drops", "fragment_before_first")?
            );
            Ok(())
        },
    )
}
