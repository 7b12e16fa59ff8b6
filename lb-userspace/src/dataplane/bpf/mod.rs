//! The kernel: loading the program, pinning maps and links, attaching, detaching.
//!
//! Everything that must outlive the agent is pinned under `BPFFS/lbd/NAME/v<FORMAT>`: maps under
//! `maps`, links under `links/MODE-INTERFACE`. A restarted agent takes up those maps, and replaces
//! the program of those links in one step.

mod access;
mod classes;
pub mod decap;
mod detach;
mod early;
mod flows;
mod frags;
mod grace;
mod kernel;
mod links;
mod mapped;
mod maps;
mod occupant;
mod pins;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::Xdp,
};
use lb_common::tables::{
    HASH_KEY_WORDS, TAIL_FRAGMENT, TAIL_FULL_NAT, TAIL_FULL_NAT_ANSWER, TAIL_FULL_NAT_ERROR,
    TAIL_FULL_NAT_FRAGMENT, TAIL_FULL_NAT_NEW, TAIL_HELD, TAIL_NEIGHBOUR, TAIL_PROXY_ANSWER,
    TAIL_PROXY_SYN, TAIL_REFUSED, TAIL_SCTP, TAIL_SECOND_HOP, TAIL_SYN, TAIL_SYN_COOKIE, TAIL_TAG,
    TAIL_TAGGED, TAIL_TOO_BIG, TAIL_TUNNEL_ERROR, TAIL_UNTRANSLATED, TAIL_UNUSUAL, TAIL_VLAN,
    feature,
};

use self::links::Links;
pub use self::{
    early::EarlyFragments,
    links::{Held, Mode},
    maps::Maps,
    pins::{Claim, Pins},
};
use super::{Capacity, DataplaneError, Programs};
use crate::plan::BUCKETS_PER_SERVICE;

/// The load balancer's object, built by `cargo xtask build`.
pub static LB_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_OBJECT"));

/// The program on the interface.
const ENTRY: &str = "lb";
/// Those that it goes on with, the numbers that it knows them by, and without which feature none of them does, if any.
const OTHERS: [(&str, u32, u32); 22] = [
    ("unusual", TAIL_UNUSUAL, 0),
    ("refused", TAIL_REFUSED, 0),
    ("too_big", TAIL_TOO_BIG, 0),
    ("syn", TAIL_SYN, feature::MSS),
    ("fragment", TAIL_FRAGMENT, 0),
    ("neighbour", TAIL_NEIGHBOUR, feature::ANNOUNCE),
    ("full_nat", TAIL_FULL_NAT, feature::FULL_NAT),
    ("full_nat_new", TAIL_FULL_NAT_NEW, feature::FULL_NAT),
    ("full_nat_answer", TAIL_FULL_NAT_ANSWER, feature::FULL_NAT),
    ("full_nat_error", TAIL_FULL_NAT_ERROR, feature::FULL_NAT),
    (
        "full_nat_fragment",
        TAIL_FULL_NAT_FRAGMENT,
        feature::FULL_NAT,
    ),
    ("tunnel_error", TAIL_TUNNEL_ERROR, feature::TUNNELS),
    ("untranslated", TAIL_UNTRANSLATED, feature::FULL_NAT),
    ("syn_cookie", TAIL_SYN_COOKIE, feature::SYN_PROXY),
    ("proxy_syn", TAIL_PROXY_SYN, feature::SYN_PROXY),
    ("proxy_answer", TAIL_PROXY_ANSWER, feature::SYN_PROXY),
    ("sctp", TAIL_SCTP, feature::SCTP),
    ("second_hop", TAIL_SECOND_HOP, feature::SECOND_HOP),
    ("vlan", TAIL_VLAN, feature::VLAN),
    ("tagged", TAIL_TAGGED, feature::VLAN),
    ("tag", TAIL_TAG, feature::VLAN),
    (early::HELD, TAIL_HELD, feature::VLAN),
];

/// Room for the locks of ports, beside the ports: each CPU has one at most, and so has the sweep.
const LOCKS: u32 = 1_024;

/// A loaded program, and its maps.
#[derive(Debug)]
pub struct Program {
    ebpf: Ebpf,
    options: LoadOptions,
    /// What those in force are loaded for, as [`Maps`] tells.
    features: Arc<AtomicU32>,
}

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to pin; nothing outlives the process where absent.
    pub pins: Option<Pins>,
    /// Sizes of maps that do not exist yet.
    pub capacity: Capacity,
    /// What it is loaded for: bits of [`feature`]. What is beyond that, it does not know.
    pub features: u32,
    /// Level of the program's own log: 0 none, 1 error … 5 trace.
    pub log_level: u8,
}

impl Program {
    /// Loads the program and opens or makes its maps.
    ///
    /// # Errors
    /// The kernel refuses, with the reason it gives.
    pub fn load(options: &LoadOptions) -> Result<(Self, Maps), DataplaneError> {
        let mut taken_up = false;
        if let Some(pins) = &options.pins {
            taken_up = pins.maps().exists();
            pins.forget_own()?;
        }
        let mut program = Self::open(options.clone())?;
        // A former agent's entry goes on as it was until it is replaced.
        if !taken_up {
            program.join()?;
        }
        // Only now: the program refers to the maps by descriptors, which taking them can close.
        let maps = Maps::take(&mut program.ebpf, Arc::clone(&program.features))?;
        Ok((program, maps))
    }

    /// Loads the program over maps that are there, or makes them.
    fn open(options: LoadOptions) -> Result<Self, DataplaneError> {
        let capacity = options.capacity;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("AYA_LOG_LEVEL", &options.log_level, false)
            .override_global("FEATURES", &options.features, true)
            .map_max_entries("LOOKUP", lookup_buckets(capacity.services))
            .map_max_entries("SERVICE_ENTRIES", capacity.services + 1)
            .map_max_entries("SERVICE_COUNTERS", capacity.services)
            .map_max_entries("FLOW_COUNTERS", capacity.services)
            .map_max_entries("TURNS", capacity.services)
            .map_max_entries("SLOTS", capacity.slots.div_ceil(2))
            .map_max_entries("MOVED", capacity.slots.div_ceil(2))
            .map_max_entries("ESTABLISHED", capacity.flows)
            .map_max_entries("HALF_OPEN", capacity.half_open)
            .map_max_entries("SESSIONS", capacity.sessions)
            .map_max_entries("PORTS", capacity.sessions.saturating_add(LOCKS))
            .map_max_entries("POOL_ADDRESSES", Capacity::POOL_ADDRESSES)
            .map_max_entries("LOADS", capacity.backends)
            .map_max_entries("SIGNS", capacity.backends)
            .map_max_entries("MEMBERS", capacity.members)
            .map_max_entries("BACKENDS", capacity.backends)
            .map_max_entries("BACKEND_COUNTERS", capacity.backends)
            .map_max_entries("WAYS_BACK", capacity.ways_back())
            .map_max_entries("SERVERS", capacity.servers())
            .map_max_entries("OWNED", capacity.owned())
            .map_max_entries("INTERFACES", Capacity::INTERFACES)
            .map_max_entries("VLANS", Capacity::UPPERS)
            .map_max_entries("UPPERS", Capacity::UPPERS)
            .map_max_entries("DATAGRAMS", capacity.fragments)
            .map_max_entries(access::ACCESS, capacity.access_prefixes)
            .map_max_entries(classes::CLASSES, capacity.vip_prefixes())
            .map_max_entries(classes::CLASS_PORTS, capacity.class_ports())
            .map_max_entries("SHAPES", capacity.services)
            .map_max_entries("GUARDS", capacity.services)
            .map_max_entries("SERVICE_BUCKETS", capacity.services)
            .map_max_entries("UNPROXIED_BUCKETS", capacity.services)
            .map_max_entries("SOURCE_BUCKETS", capacity.sources);
        if let Some(pins) = &options.pins {
            for (directory, names) in [
                (pins.maps(), &maps::NAMES[..]),
                (pins.own_maps(), &maps::OWN),
            ] {
                fs::create_dir_all(&directory).map_err(|error| {
                    DataplaneError::new(format!("making {}", directory.display()), &error)
                })?;
                for name in names {
                    loader.map_pin_path(name, directory.join(name));
                }
            }
        }
        let ebpf = loader
            .load(LB_OBJECT)
            .map_err(|error| refused("loading the BPF object", &error))?;
        let mut program = Self {
            ebpf,
            features: Arc::new(AtomicU32::new(options.features)),
            options,
        };
        let others = others(program.options.features).map(|(name, _)| name);
        let names: BTreeSet<&str> = [ENTRY, early::HELD].into_iter().chain(others).collect();
        for name in names {
            let loaded = program.named(name)?.load();
            loaded.map_err(|error| refused(format!("loading the XDP program {name}"), &error))?;
        }
        Ok(program)
    }

    /// The same over the maps of one that is loaded already.
    fn open_again(options: LoadOptions) -> Result<Self, DataplaneError> {
        if options.pins.is_none() {
            return Err(DataplaneError::new(
                "loading the program again",
                &"its maps are not pinned",
            ));
        }
        Self::open(options)
    }

    /// The XDP program.
    ///
    /// # Errors
    /// The object has none: a defect of the build.
    pub fn xdp(&mut self) -> Result<&mut Xdp, DataplaneError> {
        self.named(ENTRY)
    }

    fn named(&mut self, name: &str) -> Result<&mut Xdp, DataplaneError> {
        let program = self.ebpf.program_mut(name).map(<&mut Xdp>::try_from);
        match program {
            Some(Ok(xdp)) => Ok(xdp),
            _ => Err(DataplaneError::new(
                format!("looking for program {name}"),
                &"the object has no XDP program of that name",
            )),
        }
    }

    /// Lets the entry go on with the other programs. Where a former agent's entry is attached for a
    /// moment longer, it goes on with them, too: the maps that they share are of one format.
    fn join(&mut self) -> Result<(), DataplaneError> {
        let failed = |error: &dyn std::error::Error| {
            DataplaneError::new("joining the XDP programs", &chain(error))
        };
        for (name, number) in others(self.options.features) {
            let program = self.named(name)?.fd().map_err(|error| failed(&error))?;
            let program = program.try_clone().map_err(|error| failed(&error))?;
            let map = self.ebpf.map_mut("TAILS");
            let map = map.ok_or_else(|| DataplaneError::new("looking for map TAILS", &"none"))?;
            let mut tails = ProgramArray::try_from(map).map_err(|error| failed(&error))?;
            let set = tails.set(number, &program, 0);
            set.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// The loaded object, for its log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Whether a former agent attached to `interface`.
    ///
    /// # Errors
    /// The pins cannot be read.
    pub fn held(&self, interface: &str) -> Result<Held, DataplaneError> {
        Ok(self.links()?.held(interface))
    }

    /// What the maps of a former agent, if there are any, need of the program: bits of [`feature`].
    ///
    /// # Errors
    /// They cannot be read.
    pub fn features_in_use(pins: &Pins) -> Result<u32, DataplaneError> {
        let path = pins.maps().join(maps::CONTROL);
        if !path.exists() {
            return Ok(0);
        }
        let failed = |error: &dyn std::error::Error| {
            DataplaneError::new(format!("reading {}", path.display()), &chain(error))
        };
        let data = MapData::from_pin(&path).map_err(|error| failed(&error))?;
        maps::features(data).map_err(|error| failed(&error))
    }

    /// Another program over the same maps, loaded for these features and on no interface: to compare with.
    ///
    /// # Errors
    /// The maps are not pinned, or the kernel refuses.
    pub fn beside(&self, features: u32) -> Result<Self, DataplaneError> {
        let mut beside = Self::open_again(LoadOptions {
            features,
            ..self.options.clone()
        })?;
        beside.join()?;
        Ok(beside)
    }

    /// Puts one in force on every interface that is loaded for these features as well.
    ///
    /// # Errors
    /// The kernel refuses. Some interfaces may have it; those that do not have what they had.
    fn reload(program: &Mutex<Self>, features: u32) -> Result<(), DataplaneError> {
        let lock = || program.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut options, known) = {
            let program = lock();
            (program.options.clone(), Arc::clone(&program.features))
        };
        options.features |= features;
        // What takes long, with the one in force at hand for whoever needs it.
        let mut next = Self::open_again(options)?;
        let mut program = lock();
        next.join()?;
        let links = next.links()?;
        links.replace_all(next.xdp()?)?;
        known.store(next.options.features, Ordering::Release);
        next.features = known;
        *program = next;
        Ok(())
    }

    /// Attaches to an interface in the first of `modes` that works, replacing in one step the
    /// program that a former agent attached there.
    ///
    /// # Errors
    /// No mode works, or another program is attached.
    pub fn attach(&mut self, interface: &str, modes: &[Mode]) -> Result<Mode, DataplaneError> {
        let links = self.links()?;
        self.join()?;
        links.attach(self.xdp()?, interface, modes)
    }

    /// Attaches to an interface that is another than that of the same name before.
    ///
    /// # Errors
    /// As [`Program::attach`], or the former link cannot be removed.
    pub fn attach_anew(&mut self, interface: &str, modes: &[Mode]) -> Result<Mode, DataplaneError> {
        self.links()?.remove(interface).map_err(|error| {
            DataplaneError::new(format!("removing the former link of {interface}"), &error)
        })?;
        self.attach(interface, modes)
    }

    /// Detaches from an interface, if a program of ours is attached there.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn let_go(&self, interface: &str) -> Result<(), DataplaneError> {
        self.links()?
            .remove(interface)
            .map_err(|error| DataplaneError::new(format!("detaching from {interface}"), &error))
    }

    /// Detaches from every interface but these, as a former configuration may have named others,
    /// and removes what was pinned for other formats of the maps.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn keep_only(&self, interfaces: &BTreeSet<String>) -> Result<(), DataplaneError> {
        self.links()?
            .keep(interfaces)
            .and_then(|()| {
                self.options
                    .pins
                    .as_ref()
                    .map_or(Ok(()), Pins::remove_others)
            })
            .map_err(|error| DataplaneError::new("removing pins of former agents", &error))
    }

    fn links(&self) -> Result<Links, DataplaneError> {
        let doing = "reading the pinned links";
        let pins = self.options.pins.as_ref();
        let pins = pins.ok_or_else(|| DataplaneError::new(doing, &"nothing is pinned"))?;
        pins.links()
            .map_err(|error| DataplaneError::new(doing, &error))
    }
}

impl Programs for Mutex<Program> {
    fn load(&self, features: u32) -> Result<(), DataplaneError> {
        Program::reload(self, features)
    }
}

/// Those of [`OTHERS`] that any packet may come to.
fn others(features: u32) -> impl Iterator<Item = (&'static str, u32)> {
    OTHERS
        .into_iter()
        .filter(move |(_, _, needs)| *needs == 0 || features & needs != 0)
        .map(|(name, number, _)| (name, number))
}

/// Buckets of the look-up table for so many services.
fn lookup_buckets(services: u32) -> u32 {
    services
        .saturating_mul(BUCKETS_PER_SERVICE)
        .checked_next_power_of_two()
        .unwrap_or(1 << 31)
}

/// A fresh secret for the flow hash.
///
/// # Errors
/// The system has no randomness to give.
pub fn draw_hash_key() -> io::Result<[u64; HASH_KEY_WORDS]> {
    let mut bytes = [[0u8; 8]; HASH_KEY_WORDS];
    fs::File::open("/dev/urandom")?.read_exact(bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_ne_bytes))
}

/// What a kernel did not load, and whether it is too old for it.
fn refused(loading: impl Into<String>, error: &dyn std::error::Error) -> DataplaneError {
    DataplaneError::new(loading.into() + &kernel::remark(), &chain(error))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
