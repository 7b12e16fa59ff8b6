//! `lbd run`: what a start does, in which order, and what is undone where it fails.
//!
//! What can be refused without touching the kernel is asked first, and services change once every
//! new interface has the program; so a start that fails leaves things as they were.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use lb_common::tables::feature;
use lb_userspace::{
    agent::{
        self, Core, Handle, Sources,
        history::{self, History},
    },
    announce::Announcer,
    config::{Config, HashKey},
    dataplane::{
        Capacity, Dataplane as _,
        bpf::{Claim, LoadOptions, Maps, Pins, Program, draw_hash_key},
    },
    fragments::{self, Keeper},
    health::{Checker, probes_in_flight},
    instance,
    model::{Change, Service, UNKNOWN_PORT, Vlans},
    neighbours::{FIRST_NEWS, Origin, Resolver, Update},
    offloads,
    plan::{Devices, features},
    store::{self, Stored},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    args::{Attach, LogLevel, Run},
    interfaces::{self, Attendant},
    read_config,
    servers::Listeners,
};

/// What is to be run.
struct Wanted<'a> {
    arguments: &'a Run,
    config: Config,
    /// The configuration as it was read.
    text: String,
    name: String,
    interfaces: BTreeSet<String>,
}

pub fn run(arguments: &Run) -> Result<()> {
    let (config, text) = read_config(arguments.config.as_deref())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let name = arguments.name.clone().or_else(|| config.name.clone());
    let given = match arguments.interface.as_slice() {
        [] => &config.interfaces,
        given => given,
    };
    let wanted = Wanted {
        name: name.unwrap_or_else(|| instance::DEFAULT.to_owned()),
        interfaces: given.iter().cloned().collect(),
        arguments,
        config,
        text,
    };
    interfaces::check(&wanted.interfaces)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(serve(&wanted))
}

async fn serve(wanted: &Wanted<'_>) -> Result<()> {
    let arguments = wanted.arguments;
    let claim = Pins::new(&arguments.bpffs, &wanted.name).claim()?;
    let started = match Started::start(wanted, &claim).await {
        Ok(started) => started,
        Err(error) => {
            if let Err(left) = claim.undo() {
                tracing::error!(%left, "what this start has pinned stays: `lbd detach` removes it");
            }
            return Err(error);
        }
    };
    started.run().await;
    Ok(())
}

/// An agent that only has to be run.
struct Started {
    core: Core<Maps>,
    /// What it is attached to.
    attendant: Attendant,
    sources: Sources,
    handle: Handle,
    listeners: Listeners,
    /// Holds fragments.
    keeper: Keeper,
}

impl Started {
    async fn start(wanted: &Wanted<'_>, claim: &Claim) -> Result<Self> {
        let Wanted {
            arguments,
            config,
            text,
            name,
            interfaces,
        } = wanted;
        let listeners = Listeners::bind(arguments, config, name).await?;
        let store = instance::state_path(name);
        let former = former_state(&store, text);
        let edited = former.is_none();
        let (access_lists, services) = match former {
            Some(stored) => (stored.access_lists, stored.services),
            None => (config.access_lists.clone(), config.services.clone()),
        };
        let needed = features::needed(&services, config.unknown_port.unwrap_or(UNKNOWN_PORT));
        let (health_events, health) = mpsc::channel(4_096);
        let checker = Checker::new(health_events, probes_in_flight(raise_descriptors()));
        let (resolver, mut network) = Resolver::spawn(origin(arguments, config, interfaces))
            .context("following the kernel's routes and neighbours")?;
        // The way back must know this host's own addresses before it rewrites anything, and what a former agent has said of
        // interfaces must not be taken for wrong: these come first, and some of them need more of the program.
        let mut news = Vec::new();
        for _ in 0..FIRST_NEWS {
            news.extend(network.recv().await);
        }
        let needed = needed | of_news(config.vlans, &news, interfaces, &services);
        let change = Change::ReplaceAll(access_lists, services);
        let (mut program, mut core) = load(arguments, config, name, claim.pins().clone(), needed)?;
        if edited {
            core.begin_edited();
        }
        core.attend(interfaces.iter().cloned());
        for update in news {
            core.network(update);
        }
        let history = instance::history_path(name);
        if let Some(former) = former_history(&history) {
            core.recall(former);
        }
        if !matches!(arguments.bpf_log, LogLevel::Off) {
            forward_log(&mut program)?;
        }
        let early = program.early_fragments()?;
        let program = Arc::new(Mutex::new(program));
        let keeper = fragments::keep(early, program.clone())
            .context("watching for fragments that come too early")?;
        let (announcer, conflicts) = Announcer::spawn();
        let mut attendant = Attendant::new(Arc::clone(&program), arguments.mode);
        let attached = attendant.bring_up(interfaces, || Ok(core.change(change)?))?;
        if core.dataplane().features() & feature::VLAN != 0 {
            attached.iter().for_each(|at| warn_of_stripping(&at.name));
        }
        core.set_interfaces(attached);
        core.listen(health, SystemTime::now);
        let (handle, requests) = Handle::new();
        let handle = handle.reporting(checker.reports());
        let sources = Sources {
            requests,
            checker,
            resolver,
            network,
            announcer,
            conflicts,
            store: Some((store, text.clone())),
            programs: program,
            history: Some(history),
        };
        Ok(Self {
            core,
            attendant,
            sources,
            handle,
            listeners,
            keeper,
        })
    }

    /// Runs until a signal; the program goes on forwarding then.
    async fn run(self) {
        let (ready, running) = self.listeners.serve(self.handle);
        let watch = self.attendant.watch();
        agent::run(self.core, self.sources, ready, signalled()).await;
        tracing::info!("stopping; the program goes on forwarding");
        drop((running, watch, self.keeper));
    }
}

/// What a former agent kept, if it began from the same configuration.
fn former_state(store: &Path, text: &str) -> Option<Stored> {
    let stored = store::load(store, text).unwrap_or_else(|error| {
        tracing::warn!(%error, "the state of the former agent is unusable; the configuration counts");
        None
    });
    if stored.is_some() {
        tracing::info!("taking up the state of the former agent");
    }
    stored
}

/// What a former agent knew against backends, where that is to be made use of.
fn former_history(path: &Path) -> Option<History<Duration>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        text => text,
    };
    let read = text.map_err(anyhow::Error::from);
    let read = read.and_then(|text| Ok(history::read(&text, store::uptime()?)?));
    let unusable = |error: &anyhow::Error| {
        let path = path.display();
        tracing::warn!(%path, "nothing is held against anybody: the history of the former agent is unusable: {error:#}");
    };
    read.inspect_err(unusable).ok()
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

/// Says where frames come without the tags that they have on the wire.
fn warn_of_stripping(interface: &str) {
    match offloads::strips_tags(interface) {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            %interface,
            "the NIC strips VLAN tags, so that frames with tags are taken for frames without: `ethtool -K {interface} rxvlan off`"
        ),
        Err(error) => {
            tracing::debug!(%interface, %error, "the kernel does not tell whether VLAN tags are stripped")
        }
    }
}

/// From where packets are sent.
fn origin(arguments: &Run, config: &Config, interfaces: &BTreeSet<String>) -> Origin {
    let native = match arguments.mode {
        Attach::Auto | Attach::Native => interfaces.clone(),
        Attach::Generic => BTreeSet::new(),
    };
    Origin {
        native,
        follows_lowers: config.vlans != Vlans::Off,
    }
}

/// What the network needs of the program.
fn of_news(
    vlans: Vlans,
    news: &[Update],
    interfaces: &BTreeSet<String>,
    services: &[Service],
) -> u32 {
    let devices = news.iter().find_map(|update| match update {
        Update::Ports(ports) => Some(Devices::wanted(vlans, ports, interfaces)),
        _ => None,
    });
    features::of_network(&devices.unwrap_or_default(), vlans == Vlans::On, services)
}

/// Loads the program for what is needed, and for what those do that a former agent left in the maps.
fn load(
    arguments: &Run,
    config: &Config,
    name: &str,
    pins: Pins,
    needed: u32,
) -> Result<(Program, Core<Maps>)> {
    let limits = &config.limits;
    let unknown_port = config.unknown_port.unwrap_or(UNKNOWN_PORT);
    let options = LoadOptions {
        features: needed | Program::features_in_use(&pins)?,
        pins: Some(pins),
        capacity: Capacity {
            services: limits.services,
            // Entry 0 stands for nobody; replaced entries stay until the grace period.
            backends: limits.backends.saturating_mul(2).saturating_add(1),
            members: limits.backends.saturating_mul(4),
            slots: limits.ring_slots,
            flows: limits.flows,
            half_open: limits.half_open,
            fragments: limits.fragments,
            access_prefixes: limits.access_prefixes,
            sources: limits.sources,
            sessions: limits.sessions,
        },
        log_level: arguments.bpf_log as u8,
    };
    let (program, mut maps) = Program::load(&options)?;
    let configured = config.hash_key.map(|HashKey(key)| key);
    let former = maps.control()?.hash_key;
    if former == [0; lb_common::tables::HASH_KEY_WORDS] {
        maps.initialise(match configured {
            Some(key) => key,
            None => draw_hash_key().context("drawing the flow hash's secret")?,
        })?;
    } else if configured.is_some_and(|key| key != former) {
        tracing::warn!(
            "the pinned maps keep their hash key, which is another than that of hash_key_file; `lbd detach` first to change it"
        );
    }
    let capacity = maps.capacity();
    if capacity != options.capacity {
        tracing::warn!(
            ?capacity,
            "the pinned maps keep their size; `lbd detach` first to change [limits]"
        );
    }
    let mut core = Core::new(name.to_owned(), config.tunnel, maps)?;
    core.offer_pools(config.address_pools.iter().cloned())?;
    core.refuse_unknown_ports(unknown_port);
    core.set_vlans(config.vlans);
    Ok((program, core))
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
