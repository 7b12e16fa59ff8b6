//! Ways to backends that take less than clients think, as real hosts see them: a sender is told by the
//! balancer what length would do, and its transfer is completed.
//!
//! The link to a backend is narrow at its port of the switch, which drops longer frames without a word, as
//! links do; the balancer knows by its routes.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    config::Service,
    netns::Namespace,
    process::{run, run_with_input},
    skip::with_root,
    stage::{BACKENDS, Stage, every_mode_at, vip},
    topology::{
        CLIENT_V4, CLIENT_V6, POOL_V4, POOL_V6, Topology, backend_name, backend_v4, backend_v6,
    },
    wait::{wait_ok, wait_until},
};
use serde_json::Value;

/// What the narrow link takes: enough for an IPv6 packet of the least MTU in every tunnel.
const NARROW: u16 = 1_400;
/// Bytes of a transfer.
const LARGE: usize = 1 << 20;
/// Those sent before the link is narrow.
const BEFORE: usize = 1 << 18;
/// Where backends take transfers.
const PORT: u16 = 9_001;
/// What asks a backend for one.
const SEND: u8 = b'?';
/// A transfer that makes no progress is given up after so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A balancer of `services`, with a server of transfers at every backend.
fn stage(services: Vec<Service>) -> Result<Stage> {
    let stage = Stage::new(Topology::new(BACKENDS)?, services.clone())?;
    for backend in &stage.topology.backends {
        let listener = backend.run(|| TcpListener::bind(("::", PORT)))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
    }
    for service in &services {
        let at = vip(service)?;
        let name = || format!("{} {} takes transfers", service.mode, service.vip);
        wait_ok(&name(), PATIENCE, || {
            let mut stream = connect(&stage.topology.client, at)?;
            ensure!(heard(&mut stream)? == 0);
            Ok(())
        })
        .with_context(|| stage.agent.log())?;
    }
    Ok(stage)
}

/// Takes all that comes, and says how much it was; or sends a transfer where it is asked for one.
fn serve(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut taken = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            _ if buffer[0] == SEND => return Ok(stream.write_all(&vec![0; LARGE])?),
            bytes => taken += bytes as u64,
        }
    }
    Ok(stream.write_all(&taken.to_be_bytes())?)
}

fn connect(client: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    let stream = client.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Ends what is sent; how much of it the other end has taken.
fn heard(stream: &mut TcpStream) -> Result<u64> {
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken)?;
    Ok(u64::from_be_bytes(taken))
}

fn batch(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    run_with_input(ip.args(["-n", namespace.name(), "-batch", "-"]), lines).map(drop)
}

/// What the links to all backends take, from now on.
fn set_links(topology: &Topology, mtu: u16) -> Result<()> {
    let lines: String = (1..=BACKENDS)
        .map(|n| format!("link set {} mtu {mtu}\n", backend_name(n)))
        .collect();
    batch(&topology.switch, &lines)
}

/// Has the balancer know by its routes.
fn set_routes(topology: &Topology, mtu: u16) -> Result<()> {
    let lines: String = (1..=BACKENDS)
        .flat_map(|n| [IpAddr::from(backend_v4(n)), backend_v6(n).into()])
        .map(|backend| format!("route replace {backend} dev eth0 mtu {mtu}\n"))
        .collect();
    batch(&topology.balancer, &lines)
}

/// Answers of a kind that the balancer has given.
fn answers(stage: &Stage, kind: &str) -> Result<u64> {
    let status = stage.agent.lbctl_json(&["status"])?;
    status["answers"][kind]
        .as_u64()
        .with_context(|| status.to_string())
}

/// Has clients find the whole way wide again.
fn forget_paths(stage: &Stage) -> Result<()> {
    set_links(&stage.topology, 1_500)?;
    set_routes(&stage.topology, 1_500)?;
    for family in ["-4", "-6"] {
        let mut ip = stage.topology.client.command("ip");
        run(ip.args([family, "route", "flush", "cache"]))?;
    }
    Ok(())
}

/// Sends a transfer to `service`, whose way is narrow after its first part.
fn transfer(stage: &Stage, service: &Service) -> Result<()> {
    let mut stream = connect(&stage.topology.client, vip(service)?)?;
    let data = vec![0x5a; LARGE];
    let (before, after) = data.split_at(BEFORE);
    stream.write_all(before)?;
    set_links(&stage.topology, NARROW)?;
    set_routes(&stage.topology, NARROW)?;
    stream.write_all(after)?;
    let taken = heard(&mut stream)?;
    ensure!(taken == LARGE as u64, "{taken} of {LARGE} bytes");
    Ok(())
}

#[test]
fn a_transfer_is_completed_when_the_way_to_its_backend_becomes_narrower_in_every_mode() -> Result<()>
{
    with_root(
        "a_transfer_is_completed_when_the_way_to_its_backend_becomes_narrower_in_every_mode",
        || {
            let services = every_mode_at(PORT, "tcp")?;
            let stage = stage(services.clone())?;
            let mut told = 0;
            for service in &services {
                forget_paths(&stage)?;
                let name = format!("{} {}", service.mode, service.vip);
                transfer(&stage, service)
                    .with_context(|| format!("{name}: {}", stage.agent.log()))?;
                let before = told;
                told = answers(&stage, "too_big")?;
                println!("{name}: told {} times", told - before);
                ensure!(told > before, "{name}: the client was not told");
            }
            let drops = stage.agent.lbctl_json(&["status"])?["drops"]["packet_too_big"].take();
            ensure!(
                drops.as_u64() >= Some(told),
                "{drops} drops, {told} answers"
            );
            Ok(())
        },
    )
}

/// Bytes that a mode puts in front of a packet to a backend.
fn overhead(mode: &str, backend: SocketAddr) -> u64 {
    let outer = if backend.is_ipv4() { 20 } else { 40 };
    match mode {
        "ipip" => outer,
        "gue" => outer + 8,
        _ => 0,
    }
}

/// What `ip route get` says of the MTU to `to`, where the kernel has learnt one.
fn learnt(client: &Namespace, to: IpAddr) -> Result<Option<u64>> {
    let to = to.to_string();
    let said = run(client.command("ip").args(["-json", "route", "get", &to]))?;
    let routes: Value = serde_json::from_str(&said)?;
    Ok(routes[0]["metrics"][0]["mtu"].as_u64())
}

#[test]
fn a_client_learns_the_mtu_that_each_modes_headers_leave() -> Result<()> {
    with_root(
        "a_client_learns_the_mtu_that_each_modes_headers_leave",
        || {
            let services = every_mode_at(PORT, "tcp")?;
            let stage = stage(services.clone())?;
            for service in &services {
                forget_paths(&stage)?;
                transfer(&stage, service)?;
                let (backend, _) = service.backends[0];
                let expected = u64::from(NARROW) - overhead(service.mode, backend);
                let to = vip(service)?.ip();
                let found = learnt(&stage.topology.client, to)?;
                ensure!(found == Some(expected), "{} {to}: {found:?}", service.mode);
            }
            Ok(())
        },
    )
}

/// Has the balancer reach the first backend by way of the second, which knows the link between them to be narrow. The balancer does not.
fn put_router_before_the_first(topology: &Topology) -> Result<()> {
    let [first, router] = [1, 2].map(|n| (backend_v4(n), backend_v6(n)));
    topology.backend(2).sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    let on = format!(
        "route replace {} dev eth0 mtu {NARROW}\nroute replace {} dev eth0 mtu {NARROW}\n",
        first.0, first.1
    );
    batch(topology.backend(2), &on)?;
    let to = format!(
        "route replace {} via {}\nroute replace {} via {}\n",
        first.0, router.0, first.1, router.1
    );
    batch(&topology.balancer, &to)?;
    let narrow = format!("link set {} mtu {NARROW}\n", backend_name(1));
    batch(&topology.switch, &narrow)
}

#[test]
fn a_client_learns_from_a_router_what_a_tunnel_leaves_of_a_way_that_is_narrower_behind_it()
-> Result<()> {
    with_root(
        "a_client_learns_from_a_router_what_a_tunnel_leaves_of_a_way_that_is_narrower_behind_it",
        || {
            let services: Vec<Service> = every_mode_at(PORT, "tcp")?
                .into_iter()
                .filter(Service::is_tunnelled)
                .map(|mut service| {
                    service.backends.truncate(1);
                    service
                })
                .collect();
            let stage = stage(services.clone())?;
            put_router_before_the_first(&stage.topology)?;
            for service in &services {
                let name = format!("{} {}", service.mode, service.vip);
                deliver(&stage, service)
                    .with_context(|| format!("{name}: {}", stage.agent.log()))?;
                let (backend, _) = service.backends[0];
                let to = vip(service)?.ip();
                let expected = u64::from(NARROW) - overhead(service.mode, backend);
                let found = learnt(&stage.topology.client, to)?;
                ensure!(found == Some(expected), "{name}: {found:?}");
            }
            Ok(())
        },
    )
}

/// Has a host hear no ICMP of either family but what finds neighbours, as where a firewall takes the errors.
fn deafen(host: &Namespace) -> Result<()> {
    let rules = "table inet deaf {\n\
                 chain input {\n\
                 type filter hook input priority 0;\n\
                 meta l4proto icmp drop\n\
                 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } drop\n\
                 }\n\
                 }\n";
    run_with_input(host.command("nft").args(["-f", "-"]), rules).map(drop)
}

/// Sends a transfer to `service`, whose way is as wide as it is.
fn deliver(stage: &Stage, service: &Service) -> Result<()> {
    let mut stream = connect(&stage.topology.client, vip(service)?)?;
    stream.write_all(&vec![0x5a; LARGE])?;
    let taken = heard(&mut stream)?;
    ensure!(taken == LARGE as u64, "{taken} of {LARGE} bytes");
    Ok(())
}

#[test]
fn a_client_that_hears_no_errors_is_kept_within_the_way_by_the_mss_of_nat_services() -> Result<()> {
    with_root(
        "a_client_that_hears_no_errors_is_kept_within_the_way_by_the_mss_of_nat_services",
        || {
            let nat = |service: &Service| service.mode == "nat";
            let services: Vec<Service> = every_mode_at(PORT, "tcp")?
                .into_iter()
                .filter(nat)
                .collect();
            let stage = stage(services.clone())?;
            deafen(&stage.topology.client)?;
            set_links(&stage.topology, NARROW)?;
            set_routes(&stage.topology, NARROW)?;
            wait_until("the balancer knows the way", PATIENCE, || {
                services.iter().all(|service| {
                    stage.shown(service).is_ok_and(|shown| {
                        let backends = shown["backends"].as_array();
                        backends.is_some_and(|all| all.iter().all(|b| b["mtu"] == NARROW))
                    })
                })
            })?;
            for service in &services {
                let heard = deliver(&stage, service);
                ensure!(heard.is_err(), "{}: {heard:?}", service.vip);
                stage.lbctl(&format!("service set {} --mss-clamp auto", service.vip))?;
                deliver(&stage, service)
                    .with_context(|| format!("{}: {}", service.vip, stage.agent.log()))?;
            }
            Ok(())
        },
    )
}

/// Gets a transfer from a backend of `service`.
fn fetch(stage: &Stage, service: &Service) -> Result<()> {
    let mut stream = connect(&stage.topology.client, vip(service)?)?;
    stream.write_all(&[SEND])?;
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken)?;
    ensure!(taken.len() == LARGE, "{} of {LARGE} bytes", taken.len());
    Ok(())
}

#[test]
fn a_backend_that_answers_directly_is_kept_within_its_way_to_the_client_by_a_lower_mss()
-> Result<()> {
    with_root(
        "a_backend_that_answers_directly_is_kept_within_its_way_to_the_client_by_a_lower_mss",
        || {
            let direct = |service: &Service| service.mode != "nat";
            let services: Vec<Service> = every_mode_at(PORT, "tcp")?
                .into_iter()
                .filter(direct)
                .collect();
            let stage = stage(services.clone())?;
            batch(&stage.topology.switch, "link set client mtu 1280\n")?;
            let fetched = fetch(&stage, &services[0]);
            ensure!(fetched.is_err(), "{fetched:?}: its way is not narrow");
            for service in &services {
                stage.lbctl(&format!("service set {} --mss-clamp 1200", service.vip))?;
                fetch(&stage, service)
                    .with_context(|| format!("{} {}", service.mode, service.vip))?;
            }
            let shown = stage.shown(&services[0])?;
            ensure!(shown["mss_clamp"] == 1_200, "{shown}");
            stage.lbctl(&format!("service set {} --mss-clamp off", services[0].vip))?;
            let fetched = fetch(&stage, &services[0]);
            ensure!(fetched.is_err(), "{fetched:?}: it is not off");
            Ok(())
        },
    )
}

/// The services of mode `full-nat`, each with one backend.
fn translated() -> Result<Vec<Service>> {
    let full_nat = |service: &Service| service.mode == "full-nat";
    let services = every_mode_at(PORT, "tcp")?.into_iter().filter(full_nat);
    let one = |service: Service| Service {
        backends: service.backends[..1].to_vec(),
        ..service
    };
    Ok(services.map(one).collect())
}

#[test]
fn a_backend_in_full_nat_is_told_that_the_way_to_a_client_is_narrower_and_its_transfer_goes_on()
-> Result<()> {
    with_root(
        "a_backend_in_full_nat_is_told_that_the_way_to_a_client_is_narrower_and_its_transfer_goes_on",
        || {
            let services = translated()?;
            let stage = stage(services.clone())?;
            batch(
                &stage.topology.switch,
                &format!("link set client mtu {NARROW}\n"),
            )?;
            for client in [IpAddr::from(CLIENT_V4), CLIENT_V6.into()] {
                // Routers cut or refuse at the MTU of a route only where it is locked.
                let line = format!("route replace {client} dev eth0 mtu lock {NARROW}\n");
                batch(&stage.topology.balancer, &line)?;
            }
            for service in &services {
                let before = answers(&stage, "too_big")?;
                fetch(&stage, service)
                    .with_context(|| format!("{}: {}", service.vip, stage.agent.log()))?;
                let told = answers(&stage, "too_big")? - before;
                let v4 = vip(service)?.is_ipv4();
                let pool: IpAddr = if v4 { POOL_V4.into() } else { POOL_V6.into() };
                let found = learnt(stage.topology.backend(1), pool)?;
                println!("{}: told {told} times, learnt {found:?}", service.vip);
                ensure!(told > 0 && found == Some(NARROW.into()), "{told} {found:?}");
            }
            Ok(())
        },
    )
}

#[test]
fn a_connection_in_full_nat_outlives_that_its_client_cannot_be_reached_for_a_while() -> Result<()> {
    with_root(
        "a_connection_in_full_nat_outlives_that_its_client_cannot_be_reached_for_a_while",
        || {
            let services = translated()?;
            let stage = stage(services.clone())?;
            let balancer = &stage.topology.balancer;
            let finish = |mut stream: TcpStream| {
                let mut taken = Vec::new();
                stream.read_to_end(&mut taken)?;
                ensure!(taken.len() == LARGE, "{} of {LARGE} bytes", taken.len());
                Ok(())
            };
            for service in &services {
                let at = vip(service)?;
                let client: IpAddr = if at.is_ipv4() {
                    CLIENT_V4.into()
                } else {
                    CLIENT_V6.into()
                };
                let mut stream = connect(&stage.topology.client, at)?;
                let before = dropped(&stage, "no_route")?;
                batch(balancer, &format!("route add unreachable {client}\n"))?;
                stream.write_all(&[SEND])?;
                wait_until("answers find no route", PATIENCE, || {
                    dropped(&stage, "no_route").is_ok_and(|now| now > before + 1)
                })?;
                batch(balancer, &format!("route del unreachable {client}\n"))?;
                finish(stream).with_context(|| format!("{at}: {}", stage.agent.log()))?;
            }
            let mut stream = connect(&stage.topology.client, vip(&services[0])?)?;
            // It answers nobody who asks for its address.
            let ignore = |how| {
                let settings = [("net/ipv4/conf/eth0/arp_ignore", how)];
                stage.topology.client.sysctls(&settings)
            };
            ignore("8")?;
            batch(balancer, &format!("neigh del {CLIENT_V4} dev eth0\n"))?;
            stream.write_all(&[SEND])?;
            wait_until("no neighbour is found", PATIENCE, || {
                let mut ip = balancer.command("ip");
                let shown = run(ip.args(["neigh", "show", &CLIENT_V4.to_string()]));
                shown.is_ok_and(|shown| shown.contains("FAILED"))
            })?;
            ignore("0")?;
            finish(stream).with_context(|| stage.agent.log())
        },
    )
}

/// Packets dropped for a reason.
fn dropped(stage: &Stage, reason: &str) -> Result<u64> {
    let status = stage.agent.lbctl_json(&["status"])?;
    status["drops"][reason]
        .as_u64()
        .with_context(|| status.to_string())
}
