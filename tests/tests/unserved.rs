//! Packets to a VIP that nobody serves, as real hosts see it: resets and ICMP errors end what they are
//! about at once, what is dropped is never heard of again, and what passes is the balancer's own.

use std::{
    io::{self, ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    config::{Config, Health, Service},
    netns::Namespace,
    process::run,
    skip::with_root,
    topology::{Topology, vip_v4, vip_v6},
    wait::wait_ok,
};

/// Port of the services.
const PORT: u16 = 80;
/// A port that no service has.
const UNKNOWN: u16 = 81;
/// A packet that nobody answers is given up after so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bounds the wait for something that is about to happen.
const SOON: Duration = Duration::from_secs(20);
/// Services without a backend, and what they do about it, by their number.
const POLICIES: [(u8, &str); 4] = [(1, "reset"), (2, "unreachable"), (3, "drop"), (4, "pass")];

/// Both families' VIP of a number.
fn vips(n: u8) -> [IpAddr; 2] {
    [vip_v4(n).into(), vip_v6(n.into()).into()]
}

/// A balancer whose services have no backend, each with another policy.
fn balancer(unknown_port: Option<&'static str>) -> Result<(Topology, Agent)> {
    let mut services = Vec::new();
    for (n, policy) in POLICIES {
        for vip in vips(n) {
            for protocol in ["tcp", "udp"] {
                let id = format!("{}/{protocol}", SocketAddr::new(vip, PORT));
                let service = Service::new(id, "nat", Health::NONE, []);
                services.push(service.with("no_backend", policy));
            }
        }
    }
    let topology = Topology::new(1)?;
    let config = Config {
        services,
        unknown_port,
        ..Config::default()
    };
    let agent = Agent::start(&topology.balancer, &config)?;
    Ok((topology, agent))
}

/// How connecting ends.
fn connect(client: &Namespace, to: SocketAddr) -> io::Result<()> {
    client.run(|| TcpStream::connect_timeout(&to, PATIENCE).map(drop))
}

/// What a datagram comes to, for one who asks for every error (`IP_RECVERR`).
fn send(client: &Namespace, to: SocketAddr) -> io::Result<()> {
    client.run(|| {
        let any: IpAddr = if to.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        hear_errors(&socket, to.is_ipv4())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(&[7; 1_000])?;
        socket.recv(&mut [0; 16]).map(drop)
    })
}

fn hear_errors(socket: &UdpSocket, v4: bool) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    let set = if v4 {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)
    };
    set.map_err(io::Error::from)
}

fn assert_ends(what: &str, ended: &io::Result<()>, kind: ErrorKind) -> Result<()> {
    let found = ended.as_ref().err().map(io::Error::kind);
    ensure!(found == Some(kind), "{what}: {ended:?}, not {kind:?}");
    Ok(())
}

fn answers(agent: &Agent, kind: &str) -> Result<u64> {
    let status = agent.lbctl_json(&["status"])?;
    status["answers"][kind].as_u64().context("a count")
}

#[test]
fn clients_of_a_service_without_a_backend_are_told_so_at_once() -> Result<()> {
    with_root(
        "clients_of_a_service_without_a_backend_are_told_so_at_once",
        || {
            let (topology, agent) = balancer(None)?;
            let client = &topology.client;
            for (n, tcp, udp) in [
                (1, ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable),
                (2, ErrorKind::HostUnreachable, ErrorKind::HostUnreachable),
                (3, ErrorKind::TimedOut, ErrorKind::WouldBlock),
            ] {
                for vip in vips(n) {
                    let to = SocketAddr::new(vip, PORT);
                    assert_ends(&format!("tcp {to}"), &connect(client, to), tcp)?;
                    assert_ends(&format!("udp {to}"), &send(client, to), udp)?;
                }
            }
            ensure!(answers(&agent, "reset")? == 2);
            // What is sent again on the way to giving up included.
            ensure!(answers(&agent, "unreachable")? >= 6);
            Ok(())
        },
    )
}

#[test]
fn a_port_that_no_service_has_is_refused_as_configured() -> Result<()> {
    with_root(
        "a_port_that_no_service_has_is_refused_as_configured",
        || {
            for (policy, answered) in [("reset", true), ("unreachable", true), ("drop", false)] {
                let (topology, agent) = balancer(Some(policy))?;
                let (tcp, udp) = if answered {
                    (ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused)
                } else {
                    (ErrorKind::TimedOut, ErrorKind::WouldBlock)
                };
                for vip in vips(1) {
                    let to = SocketAddr::new(vip, UNKNOWN);
                    let client = &topology.client;
                    assert_ends(&format!("tcp {to} {policy}"), &connect(client, to), tcp)?;
                    assert_ends(&format!("udp {to} {policy}"), &send(client, to), udp)?;
                }
                let status = agent.lbctl_json(&["status"])?;
                ensure!(status["unknown_port"] == policy, "{status:#}");
                let dropped = status["drops"]["unknown_port"].as_u64();
                ensure!(dropped.is_some_and(|count| count >= 4), "{status:#}");
            }
            Ok(())
        },
    )
}

#[test]
fn what_passes_reaches_a_server_of_the_balancers_own() -> Result<()> {
    with_root("what_passes_reaches_a_server_of_the_balancers_own", || {
        let (topology, _agent) = balancer(Some("reset"))?;
        for vip in vips(4) {
            let mut ip = topology.balancer.command("ip");
            ip.args(["addr", "add", &vip.to_string(), "dev", "lo"]);
            if vip.is_ipv6() {
                // Else it cannot be bound before the kernel has been through duplicate address detection.
                ip.arg("nodad");
            }
            run(&mut ip)?;
            // The port of the service, and one that is the host's, since the address is.
            for port in [PORT, UNKNOWN] {
                let at = SocketAddr::new(vip, port);
                let sorry = topology.balancer.run(|| TcpListener::bind(at))?;
                // It is refused until the agent has heard that the address is the host's own.
                let mut asked = wait_ok(&format!("a connection to {at}"), SOON, || {
                    let connect = || TcpStream::connect_timeout(&at, PATIENCE);
                    Ok(topology.client.run(connect)?)
                })?;
                drop(sorry.accept()?);
                asked.set_read_timeout(Some(PATIENCE))?;
                ensure!(asked.read(&mut [0; 1])? == 0, "{at} was closed");
            }
        }
        Ok(())
    })
}
