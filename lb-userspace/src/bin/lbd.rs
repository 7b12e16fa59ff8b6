//! `lbd`, the agent: arguments, tracing, signals. What it does is in the library.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_common::wire;
use lb_userspace::{
    agent::{self, Core, Handle, Sources},
    api,
    config::{self, Config},
    dataplane::{
        Capacity, Dataplane as _,
        bpf::{LoadOptions, Maps, Mode, Pins, Program, decap, draw_hash_key},
    },
    health::{Checker, heartbeat_port, probes_in_flight},
    instance, metrics,
    model::Change,
    neighbours::Resolver,
    snapshot::InterfaceStatus,
    store,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, UdpSocket},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing_subscriber::EnvFilter;

/// The load balancer's agent.
#[derive(Parser)]
#[command(
    name = "lbd",
    version,
    after_help = "Stopping `lbd run` keeps traffic going on the pinned program; `lbd detach` takes it away.\n\
                  Exit codes: 0 ok; 1 failure; 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Attach to the interfaces and balance, until stopped
    Run(Run),
    /// Check a configuration file, and say every mistake in it
    Check {
        /// The configuration file
        #[arg(long)]
        config: PathBuf,
    },
    /// Take the program and everything pinned away
    Detach(Detach),
    /// On a backend: unwrap packets of mode `ipip`, until called with `--detach`
    Decap(Decap),
}

#[derive(Args)]
struct Run {
    /// Configuration file (TOML)
    #[arg(long)]
    config: Option<PathBuf>,
    /// Interface to attach to, instead of the configuration's; may be repeated
    #[arg(long)]
    interface: Vec<String>,
    /// Name of this instance, after which pins and socket are named
    #[arg(long, value_parser = instance::parse_name)]
    name: Option<String>,
    /// Socket of the API [default: /run/lbd/NAME.sock]
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Address to serve Prometheus metrics on
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// Address of the UDP port that backends report to, for checks of type heartbeat
    #[arg(long)]
    heartbeat: Option<SocketAddr>,
    /// How to attach
    #[arg(long, value_enum, default_value_t = Attach::Auto)]
    mode: Attach,
    /// Where the BPF file system is mounted
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Log of the XDP program: costs every packet that is logged
    #[arg(long, value_enum, default_value_t = LogLevel::Off)]
    bpf_log: LogLevel,
    /// Only check the configuration
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attach {
    /// By the driver, or else, with a warning, by the network stack
    Auto,
    /// By the driver, or not at all
    Native,
    /// By the network stack
    Generic,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    /// Nothing, at no cost
    Off = 0,
    /// Dropped packets
    Debug = 4,
    /// Every packet that is ours
    Trace = 5,
}

#[derive(Args)]
struct Detach {
    /// Name of the instance
    #[arg(long, value_parser = instance::parse_name, default_value = instance::DEFAULT)]
    name: String,
    /// Its socket [default: /run/lbd/NAME.sock]
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Where the BPF file system is mounted
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

#[derive(Args)]
struct Decap {
    /// Interface that tunnelled packets come in by
    #[arg(long)]
    interface: String,
    /// Address that they are sent to [default: every address of the interface]
    #[arg(long)]
    address: Vec<IpAddr>,
    /// UDP port that packets of mode `gue` are sent to
    #[arg(long, default_value_t = wire::GUE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    gue_port: u16,
    /// Take the decapsulator away
    #[arg(long)]
    detach: bool,
    /// Attach by the network stack, for drivers without native XDP
    #[arg(long)]
    generic: bool,
    /// Where the BPF file system is mounted
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.verb {
        Verb::Run(arguments) if arguments.check => check(arguments.config.as_deref()),
        Verb::Run(arguments) => run(&arguments),
        Verb::Check { config } => check(Some(&config)),
        Verb::Detach(arguments) => detach(&arguments),
        Verb::Decap(arguments) => decapsulate(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration and its text; nothing configured where there is no file.
fn read_config(path: Option<&Path>) -> Result<(Config, String)> {
    let Some(path) = path else {
        return Ok((Config::default(), String::new()));
    };
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    match config::parse(&text, &path.display().to_string()) {
        Ok(config) => Ok((config, text)),
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            bail!(
                "the configuration has {} mistake(s):\n{}",
                errors.len(),
                lines.join("\n")
            )
        }
    }
}

fn check(path: Option<&Path>) -> Result<()> {
    let (config, _) = read_config(path)?;
    for warning in &config.warnings {
        println!("warning: {warning}");
    }
    println!("ok: {} services", config.services.len());
    Ok(())
}

fn detach(arguments: &Detach) -> Result<()> {
    let name = &arguments.name;
    let socket = arguments
        .socket
        .clone()
        .unwrap_or_else(|| instance::socket_path(name));
    if UnixStream::connect(&socket).is_ok() {
        bail!(
            "instance {name} is running (it answers at {}): stop it first",
            socket.display()
        );
    }
    Pins::new(&arguments.bpffs, name)
        .remove()
        .with_context(|| format!("removing the pins of instance {name}"))?;
    for leftover in [store_path(&socket), socket] {
        drop(fs::remove_file(leftover));
    }
    Ok(())
}

fn store_path(socket: &Path) -> PathBuf {
    socket.with_extension("state.json")
}

fn decapsulate(arguments: &Decap) -> Result<()> {
    let Decap {
        interface, bpffs, ..
    } = arguments;
    if arguments.detach {
        return decap::detach(bpffs, interface).context("removing the decapsulator's pins");
    }
    let addresses = match arguments.address.as_slice() {
        [] => addresses_of(interface)?,
        given => given.to_vec(),
    };
    decap::attach(
        bpffs,
        interface,
        &addresses,
        arguments.gue_port,
        arguments.generic,
    )?;
    println!(
        "unwrapping on {interface}: {addresses:?}; `lbd decap --interface {interface} --detach` ends it"
    );
    Ok(())
}

fn addresses_of(interface: &str) -> Result<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs().context("asking for the interface's addresses")?;
    let addresses: Vec<IpAddr> = all
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    if addresses.is_empty() {
        bail!("interface {interface} has no address, or is not there: give one by --address");
    }
    Ok(addresses)
}

fn run(arguments: &Run) -> Result<()> {
    let (config, text) = read_config(arguments.config.as_deref())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let name = arguments.name.clone().or_else(|| config.name.clone());
    let name = name.unwrap_or_else(|| instance::DEFAULT.to_owned());
    let interfaces: BTreeSet<String> = if arguments.interface.is_empty() {
        config.interfaces.iter().cloned().collect()
    } else {
        arguments.interface.iter().cloned().collect()
    };
    if interfaces.is_empty() {
        bail!(
            "no interface to attach to: give --interface NIC, or `interfaces` in the configuration"
        );
    }
    let socket = arguments
        .socket
        .clone()
        .unwrap_or_else(|| instance::socket_path(&name));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(serve(arguments, &config, text, &name, &interfaces, &socket))
}

async fn serve(
    arguments: &Run,
    config: &Config,
    text: String,
    name: &str,
    interfaces: &BTreeSet<String>,
    socket: &Path,
) -> Result<()> {
    let listener = api::bind(socket)?;
    let (mut program, mut core) = load(arguments, config, name)?;
    let store = store_path(socket);
    let services = store::load(&store, &text).unwrap_or_else(|error| {
        tracing::warn!(%error, "the state of the former agent is unusable; the configuration counts");
        None
    });
    if services.is_some() {
        tracing::info!("taking up the state of the former agent");
    }
    let (health_events, health) = mpsc::channel(4_096);
    let checker = Checker::new(health_events, probes_in_flight(raise_descriptors()));
    let (resolver, mut network) =
        Resolver::spawn().context("following the kernel's routes and neighbours")?;
    // The way back must know this host's own addresses before it rewrites anything.
    if let Some(update) = network.recv().await {
        core.network(update);
    }
    core.change(Change::Replace(
        services.unwrap_or_else(|| config.services.clone()),
    ))?;
    core.set_interfaces(attach(&mut program, interfaces, arguments.mode)?);
    if !matches!(arguments.bpf_log, LogLevel::Off) {
        forward_log(&mut program)?;
    }
    let (handle, requests) = Handle::new();
    let (stop, stopped) = watch::channel(false);
    let servers = Servers {
        handle,
        stopped: stopped.clone(),
    };
    if let Some(address) = arguments.metrics.or(config.metrics) {
        servers.metrics(address).await?;
    }
    if let Some(address) = arguments.heartbeat.or(config.heartbeat) {
        servers.heartbeat(address).await?;
    }
    let ready = move || {
        servers.api(listener);
        tracing::info!("ready");
    };
    let sources = Sources {
        requests,
        checker,
        health,
        resolver,
        network,
        store: Some((store, text)),
    };
    agent::run(core, sources, ready, signalled()).await;
    tracing::info!("stopping; the program goes on forwarding");
    stop.send_replace(true);
    drop(fs::remove_file(socket));
    Ok(())
}

/// Allows itself as many open files as it may: each probe under way is one. How many those are.
fn raise_descriptors() -> u64 {
    let files = Resource::RLIMIT_NOFILE;
    let raised = getrlimit(files).and_then(|(_, most)| setrlimit(files, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    getrlimit(files).map_or(1_024, |(now, _)| now)
}

fn load(arguments: &Run, config: &Config, name: &str) -> Result<(Program, Core<Maps>)> {
    let limits = &config.limits;
    let options = LoadOptions {
        pins: Some(Pins::new(&arguments.bpffs, name)),
        capacity: Capacity {
            services: limits.services,
            // Entry 0 stands for nobody; replaced entries stay until the grace period.
            backends: limits.backends.saturating_mul(2).saturating_add(1),
            members: limits.backends.saturating_mul(4),
            slots: limits.ring_slots,
            flows: limits.flows,
            half_open: limits.half_open,
        },
        log_level: arguments.bpf_log as u8,
    };
    let (program, mut maps) = Program::load(&options)?;
    if maps.control()?.hash_key == [0; lb_common::tables::HASH_KEY_WORDS] {
        maps.initialise(draw_hash_key().context("drawing the flow hash's secret")?)?;
    }
    let capacity = maps.capacity();
    if capacity != options.capacity {
        tracing::warn!(
            ?capacity,
            "the pinned maps keep their size; `lbd detach` first to change [limits]"
        );
    }
    let core = Core::new(name.to_owned(), config.tunnel, maps)?;
    Ok((program, core))
}

fn attach(
    program: &mut Program,
    interfaces: &BTreeSet<String>,
    mode: Attach,
) -> Result<Vec<InterfaceStatus>> {
    let modes: &[Mode] = match mode {
        Attach::Auto => &[Mode::Native, Mode::Generic],
        Attach::Native => &[Mode::Native],
        Attach::Generic => &[Mode::Generic],
    };
    let mut attached = Vec::new();
    for interface in interfaces {
        let got = program.attach(interface, modes)?;
        if got == Mode::Generic && mode == Attach::Auto {
            tracing::warn!(%interface, "no native XDP: attached in generic mode, which is several times slower");
        }
        tracing::info!(%interface, mode = got.name(), "attached");
        attached.push(InterfaceStatus {
            name: interface.clone(),
            mode: got.name(),
        });
    }
    program
        .detach_others(interfaces)
        .context("detaching from interfaces no longer configured")?;
    Ok(attached)
}

/// Sends the XDP program's log to ours.
fn forward_log(program: &mut Program) -> Result<()> {
    let logger =
        aya_log::EbpfLogger::init(program.ebpf()).context("opening the XDP program's log")?;
    #[expect(
        deprecated,
        reason = "its replacement is unsafe code; the logger owns its descriptor"
    )]
    let mut logger =
        tokio::io::unix::AsyncFd::new(logger).context("watching the XDP program's log")?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}

/// Starts the servers that talk to the agent.
struct Servers {
    handle: Handle,
    stopped: watch::Receiver<bool>,
}

impl Servers {
    fn until_stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopped = self.stopped.clone();
        async move { drop(stopped.wait_for(|&stopped| stopped).await) }
    }

    fn api(&self, listener: tokio::net::UnixListener) {
        let server = api::serve(listener, self.handle.clone(), self.until_stopped());
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the API has ended");
            }
        });
    }

    async fn heartbeat(&self, address: SocketAddr) -> Result<()> {
        let socket = UdpSocket::bind(address)
            .await
            .with_context(|| format!("listening for heartbeats on {address}"))?;
        tokio::spawn(heartbeat_port::listen(socket, self.handle.clone()));
        Ok(())
    }

    async fn metrics(&self, address: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("serving metrics on {address}"))?;
        let server = metrics::serve(listener, self.handle.clone(), self.until_stopped());
        tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the metrics server has ended");
            }
        });
        Ok(())
    }
}

async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
