//! ICMP, as real hosts and routers send it: errors reach whom they are about, so that a path whose MTU
//! shrinks does not end transfers, and a VIP answers echo requests.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    backend::LARGE,
    config::{Health, Service},
    netns::Namespace,
    process::{run, run_with_input},
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode, v4_pool, v6_pool, vip},
    topology::{CLIENT_V4, CLIENT_V6, Topology, vip_v4, vip_v6},
    wait::wait_until,
};

/// What the way to the far client takes: the least that IPv6 allows.
const NARROW: u16 = 1_280;
const SOON: Duration = Duration::from_secs(20);
/// A port that no backend listens at.
const DEAF: u16 = 9_999;

/// A client behind the client, which is its router, over a link that takes less than both ends think.
fn far_client(topology: &Topology) -> Result<Namespace> {
    let far = Namespace::unique("far")?;
    let near = topology.client.name();
    let links = format!(
        "link add far netns {near} mtu {NARROW} type veth peer name eth0 netns {} mtu 1500\n",
        far.name()
    );
    run_with_input(Command::new("ip").args(["-batch", "-"]), &links)?;
    batch(
        &topology.client,
        "addr add 10.3.0.1/24 dev far\n\
         addr add fd00:3::1/64 dev far nodad\n\
         link set far up\n",
    )?;
    topology.client.sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    batch(
        &far,
        "addr add 10.3.0.10/24 dev eth0\n\
         addr add fd00:3::10/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 10.3.0.1\n\
         route add default via fd00:3::1\n",
    )?;
    let via_client = "route add 10.3.0.0/24 via 10.1.0.10\nroute add fd00:3::/64 via fd00:1::10\n";
    batch(&topology.balancer, via_client)?;
    for backend in &topology.backends {
        batch(
            backend,
            "route add 10.3.0.0/24 via 10.1.0.10 dev eth0 onlink table 100\n\
             route add fd00:3::/64 via fd00:1::10 dev eth0 onlink table 100\n",
        )?;
    }
    Ok(far)
}

fn batch(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), lines).map(drop)
}

#[test]
fn a_transfer_over_a_path_whose_mtu_shrinks_is_completed_in_every_mode() -> Result<()> {
    with_root(
        "a_transfer_over_a_path_whose_mtu_shrinks_is_completed_in_every_mode",
        || {
            let services = every_mode();
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            let far = far_client(&stage.topology)?;
            for service in &services {
                let url = format!("http://{}/large", vip(service)?);
                wait_until("the far client is answered", SOON, || {
                    let small = url.replace("large", "health");
                    fetched(&far, &small).is_ok()
                })?;
                let bytes = fetched(&far, &url).with_context(|| {
                    format!("{} {}: {}", service.mode, service.vip, stage.agent.log())
                })?;
                ensure!(bytes == LARGE.to_string(), "{bytes} of {LARGE} bytes");
            }
            assert_told(&stage.topology.client)
        },
    )
}

/// Senders did have to be told by `router`.
fn assert_told(router: &Namespace) -> Result<()> {
    let counters = ["IcmpOutDestUnreachs", "Icmp6OutPktTooBigs"];
    let told = run(router.command("nstat").arg("-asz").args(counters))?;
    println!("{told}");
    for counter in counters {
        let line = told.lines().find(|line| line.starts_with(counter));
        let count = line.and_then(|line| line.split_whitespace().nth(1));
        ensure!(
            count.is_some_and(|count| count != "0"),
            "{counter}: {line:?}"
        );
    }
    Ok(())
}

/// Services in mode `nat`, with the VIPs among the balancer's own addresses or not.
fn nat_stage(local: bool) -> Result<(Stage, Vec<Service>)> {
    let nat = |service: &Service| service.mode == "nat";
    let services: Vec<Service> = every_mode().into_iter().filter(nat).collect();
    let topology = Topology::new(BACKENDS)?;
    if local {
        for service in &services {
            batch(
                &topology.balancer,
                &format!("addr add {} dev lo\n", vip(service)?.ip()),
            )?;
        }
    }
    let stage = Stage::new(topology, services.clone())?;
    for service in &services {
        wait_until("the client is answered", SOON, || {
            stage.answers(service, 1).is_ok()
        })?;
    }
    Ok((stage, services))
}

#[test]
fn a_nat_backend_is_told_by_the_balancer_that_the_way_to_the_client_is_narrower() -> Result<()> {
    with_root(
        "a_nat_backend_is_told_by_the_balancer_that_the_way_to_the_client_is_narrower",
        || {
            for local in [false, true] {
                let (stage, services) = nat_stage(local)?;
                let balancer = &stage.topology.balancer;
                for client in [IpAddr::from(CLIENT_V4), CLIENT_V6.into()] {
                    let narrow = format!("route add {client} dev eth0 mtu lock {NARROW}\n");
                    batch(balancer, &narrow)?;
                }
                for service in &services {
                    let url = format!("http://{}/large", vip(service)?);
                    let bytes = fetched(&stage.topology.client, &url)
                        .with_context(|| format!("{url}, local: {local}"))?;
                    ensure!(bytes == LARGE.to_string(), "{bytes} of {LARGE} bytes");
                }
                assert_told(balancer)?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_client_whose_neighbour_the_kernel_does_not_know_is_answered() -> Result<()> {
    with_root(
        "a_client_whose_neighbour_the_kernel_does_not_know_is_answered",
        || {
            for local in [false, true] {
                let (stage, services) = nat_stage(local)?;
                let balancer = &stage.topology.balancer;
                balancer.sysctls(&[("net/ipv4/conf/all/accept_local", "1")])?;
                for (service, client) in
                    (services.iter()).zip([IpAddr::from(CLIENT_V4), CLIENT_V6.into()])
                {
                    batch(balancer, &format!("neigh del {client} dev eth0\n"))?;
                    stage
                        .answers(service, 1)
                        .with_context(|| format!("local: {local}"))?;
                }
            }
            Ok(())
        },
    )
}

/// How many bytes curl got.
fn fetched(client: &Namespace, url: &str) -> Result<String> {
    let limit = ["--silent", "--show-error", "--fail", "--max-time", "10"];
    let wanted = ["--output", "/dev/null", "--write-out", "%{size_download}"];
    let mut curl = client.command("curl");
    run(curl.args(limit).args(wanted).arg(url))
}

#[test]
fn a_client_of_a_nat_service_learns_that_nobody_listens_at_the_backends_port() -> Result<()> {
    with_root(
        "a_client_of_a_nat_service_learns_that_nobody_listens_at_the_backends_port",
        || {
            let vips = [
                SocketAddr::from((vip_v4(9), DEAF)),
                SocketAddr::from((vip_v6(9), DEAF)),
            ];
            let [v4, v6] = vips;
            let services = vec![
                Service::new(format!("{v4}/udp"), "nat", Health::NONE, v4_pool(DEAF)),
                Service::new(format!("{v6}/udp"), "nat", Health::NONE, v6_pool(DEAF)),
            ];
            let stage = Stage::new(Topology::new(BACKENDS)?, services)?;
            for vip in vips {
                wait_until("the client is refused", SOON, || {
                    stage
                        .topology
                        .client
                        .run(|| is_refused(vip))
                        .unwrap_or(false)
                })
                .with_context(|| stage.agent.log())?;
            }
            Ok(())
        },
    )
}

/// Whether the kernel tells a client of `vip` that its datagram was not taken.
fn is_refused(vip: SocketAddr) -> Result<bool> {
    let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(vip)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send(b"is anybody there?")?;
    let heard = socket.recv(&mut [0; 64]);
    Ok(heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

#[test]
fn a_vip_answers_echo_requests_of_every_length_and_family() -> Result<()> {
    with_root(
        "a_vip_answers_echo_requests_of_every_length_and_family",
        || {
            let services = every_mode();
            let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
            for service in &services {
                for length in ["0", "56", "1400", "1401"] {
                    let to = vip(service)?.ip().to_string();
                    let mut ping = stage.topology.client.command("ping");
                    let said =
                        run(ping.args(["-c", "3", "-i", "0.01", "-W", "5", "-s", length, &to]))?;
                    ensure!(said.contains(" 0% packet loss"), "{said}");
                }
            }
            Ok(())
        },
    )
}
