//! `cargo xtask run`: a client, the balancer and three nginx servers in network namespaces, to try
//! the product on. Everything goes when it ends.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::{
    agent::{Agent, Decapsulator, Home},
    backend::{Backend, PORT},
    bpffs::Bpffs,
    config::{Config, Health, Service},
    load::requests,
    topology::{Names, Topology, backend_v4, backend_v6, stable_names_taken, vip_v4, vip_v6},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};

const BACKENDS: u8 = 3;
/// Requests to each service between two lines.
const REQUESTS: usize = 60;

#[derive(Parser)]
struct Cli {
    /// End after so many seconds; failure where a service did not reach every backend
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

fn services() -> Vec<Service> {
    let v4 = || (1..=BACKENDS).map(|n| SocketAddr::from((backend_v4(n), PORT)));
    let v6 = || (1..=BACKENDS).map(|n| SocketAddr::from((backend_v6(n), PORT)));
    let tcp = |address: IpAddr| format!("{}/tcp", SocketAddr::new(address, PORT));
    vec![
        Service::new(tcp(vip_v4(1).into()), "nat", Health::HTTP, v4()),
        Service::new(tcp(vip_v6(1).into()), "nat", Health::HTTP, v6()),
        Service::new(tcp(vip_v4(2).into()), "ipip", Health::HTTP, v4()),
        Service::new(tcp(vip_v6(2).into()), "ipip", Health::HTTP, v6()),
        Service::new(tcp(vip_v4(3).into()), "ipip", Health::HTTP, v6()),
    ]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let taken = stable_names_taken();
    ensure!(
        taken.is_empty(),
        "another playground runs, or was killed: {taken:?} exist; `ip netns del NAME` removes each"
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let topology = Topology::build(BACKENDS, Names::Stable, None)?;
    let _servers = Backend::start_all(&topology)?;
    topology.accept_vips(&[vip_v4(2).into(), vip_v6(2).into(), vip_v4(3).into()])?;
    let tunnels: Result<Vec<_>> = topology.backends.iter().map(Decapsulator::attach).collect();
    let _tunnels = tunnels?;
    let run = Path::new("/run/lbd");
    fs::create_dir_all(run)?;
    let home = Home::at("playground".to_owned(), run, Bpffs::unique()?);
    let services = services();
    let config = Config {
        services: services.clone(),
    };
    let agent = Agent::start_in(&topology.balancer, &config, home, &[])?;
    print_help(&topology, &agent);
    let end = cli
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    while end.is_none_or(|end| Instant::now() < end) {
        for service in &services {
            show(&topology, service, cli.seconds.is_some())?;
        }
        println!();
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        if timeout(Duration::from_secs(2), stop).await.is_ok() {
            break;
        }
    }
    println!("removing everything");
    Ok(())
}

/// A line of what has just been balanced; with `strict`, every backend must have answered.
fn show(topology: &Topology, service: &Service, strict: bool) -> Result<()> {
    let (vip, _) = service.vip.split_once('/').unwrap_or_default();
    let report = requests(&topology.client, vip.parse()?, REQUESTS)?;
    let answers = report.per_backend();
    let failed = REQUESTS - report.succeeded();
    println!(
        "{:<5} {:<18} {answers:?}, {failed} failed",
        service.mode, service.vip
    );
    ensure!(
        !strict || (failed == 0 && answers.len() == usize::from(BACKENDS)),
        "{} did not reach every backend",
        service.vip
    );
    Ok(())
}

fn print_help(topology: &Topology, agent: &Agent) {
    let client = topology.client.name();
    let backend = topology.backend(2).name();
    let socket = agent.home().socket.display();
    println!(
        "The balancer runs. In another terminal, try:\n\n  \
         ip netns exec {client} curl http://10.0.0.1/\n  \
         target/release/lbctl --socket {socket} status\n  \
         target/release/lbctl --socket {socket} backend list\n  \
         target/release/lbctl --socket {socket} backend drain 10.0.0.1:80/tcp 10.2.0.11:80\n  \
         kill -9 $(ip netns pids {backend})      # a server dies\n\n\
         Each line: {REQUESTS} new requests, and which server answered. Ctrl-C removes everything.\n"
    );
}
