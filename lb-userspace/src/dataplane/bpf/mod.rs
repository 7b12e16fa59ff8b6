//! The kernel: loading the program, pinning maps and links, attaching, detaching.
//!
//! Everything that must outlive the agent is pinned under `BPFFS/lbd/NAME/v<FORMAT>`: maps under
//! `maps`, links under `links/MODE-INTERFACE`. A restarted agent takes up those maps, and replaces
//! the program of those links in one step.

pub mod decap;
mod detach;
mod flows;
mod grace;
mod mapped;
mod maps;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::ProgramArray,
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_common::tables::{FORMAT, HASH_KEY_WORDS, TAIL_UNUSUAL};

pub use self::maps::Maps;
use super::{Capacity, DataplaneError};
use crate::plan::BUCKETS_PER_SERVICE;

/// The load balancer's object, built by `cargo xtask build`.
pub static LB_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_OBJECT"));

/// How the program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By the driver.
    Native,
    /// By the network stack: works everywhere, several times slower.
    Generic,
}

impl Mode {
    /// Its name in pins, the API and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    fn xdp(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// Where an instance's pins are.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins of instance `name` under the BPF file system at `bpffs`.
    pub fn new(bpffs: &Path, name: &str) -> Self {
        Self {
            root: bpffs.join("lbd").join(name),
        }
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{FORMAT}"))
    }

    fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    fn link(&self, interface: &str, mode: Mode) -> PathBuf {
        self.links()
            .join(format!("{}-{}", mode.name(), pin_name(interface)))
    }

    /// Whether there are any.
    pub fn exist(&self) -> bool {
        self.root.exists()
    }

    /// Takes the program from its interfaces, and removes every pin.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        // Of every format, since an upgrade may have changed it.
        for version in fs::read_dir(&self.root).into_iter().flatten() {
            let links = version?.path().join("links");
            for link in fs::read_dir(links).into_iter().flatten() {
                remove_link(&link?.path())?;
            }
        }
        remove_tree(&self.root)?;
        // The directory shared by instances goes with the last of them.
        match self.root.parent().map(fs::remove_dir) {
            Some(Err(error)) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
            _ => Ok(()),
        }
    }
}

/// Detaches a link and removes its pin.
fn remove_link(pin: &Path) -> io::Result<()> {
    detach::link(pin)?;
    fs::remove_file(pin)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The program on the interface.
const ENTRY: &str = "lb";
/// The one that it goes on with for frames that take longer.
const UNUSUAL: &str = "unusual";

/// A loaded program, and its maps.
#[derive(Debug)]
pub struct Program {
    ebpf: Ebpf,
    pins: Option<Pins>,
}

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to pin; nothing outlives the process where absent.
    pub pins: Option<Pins>,
    /// Sizes of maps that do not exist yet.
    pub capacity: Capacity,
    /// Level of the program's own log: 0 none, 1 error … 5 trace.
    pub log_level: u8,
}

impl Program {
    /// Loads the program and opens or makes its maps.
    ///
    /// # Errors
    /// The kernel refuses, with the reason it gives.
    pub fn load(options: &LoadOptions) -> Result<(Self, Maps), DataplaneError> {
        let capacity = options.capacity;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("AYA_LOG_LEVEL", &options.log_level, false)
            .map_max_entries("LOOKUP", lookup_buckets(capacity.services))
            .map_max_entries("SERVICE_ENTRIES", capacity.services)
            .map_max_entries("SERVICE_COUNTERS", capacity.services)
            .map_max_entries("FLOW_COUNTERS", capacity.services)
            .map_max_entries("TURNS", capacity.services)
            .map_max_entries("SLOTS", capacity.slots.div_ceil(2))
            .map_max_entries("MOVED", capacity.slots.div_ceil(2))
            .map_max_entries("ESTABLISHED", capacity.flows)
            .map_max_entries("HALF_OPEN", capacity.half_open)
            .map_max_entries("LOADS", capacity.backends)
            .map_max_entries("MEMBERS", capacity.members)
            .map_max_entries("BACKENDS", capacity.backends)
            .map_max_entries("BACKEND_COUNTERS", capacity.backends)
            .map_max_entries("WAYS_BACK", capacity.ways_back())
            .map_max_entries("SERVERS", capacity.servers())
            .map_max_entries("OWNED", capacity.owned());
        if let Some(pins) = &options.pins {
            for directory in [pins.maps(), pins.links()] {
                fs::create_dir_all(&directory).map_err(|error| {
                    DataplaneError::new(
                        format!(
                            "making {} (is a BPF file system mounted?)",
                            directory.display()
                        ),
                        &error,
                    )
                })?;
            }
            for name in maps::NAMES {
                loader.map_pin_path(name, pins.maps().join(name));
            }
        }
        let ebpf = loader
            .load(LB_OBJECT)
            .map_err(|error| DataplaneError::new("loading the BPF object", &chain(&error)))?;
        let mut program = Self {
            ebpf,
            pins: options.pins.clone(),
        };
        for name in [ENTRY, UNUSUAL] {
            let loaded = program.named(name)?.load();
            loaded.map_err(|error| {
                DataplaneError::new(format!("loading the XDP program {name}"), &chain(&error))
            })?;
        }
        program.join()?;
        // Only now: the program refers to the maps by descriptors, which taking them can close.
        let maps = Maps::take(&mut program.ebpf)?;
        Ok((program, maps))
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

    /// Lets the entry go on with the other programs. Where a former agent's entry is still attached, it
    /// goes on with them, too: the maps that they share are of one format.
    fn join(&mut self) -> Result<(), DataplaneError> {
        let failed = |error: &dyn std::error::Error| {
            DataplaneError::new("joining the XDP programs", &chain(error))
        };
        let unusual = self.named(UNUSUAL)?.fd().map_err(|error| failed(&error))?;
        let unusual = unusual.try_clone().map_err(|error| failed(&error))?;
        let map = self.ebpf.map_mut("TAILS");
        let map = map.ok_or_else(|| DataplaneError::new("looking for map TAILS", &"none"))?;
        let mut tails = ProgramArray::try_from(map).map_err(|error| failed(&error))?;
        tails
            .set(TAIL_UNUSUAL, &unusual, 0)
            .map_err(|error| failed(&error))
    }

    /// The loaded object, for its log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches to an interface in the first of `modes` that works, replacing in one step the
    /// program that a former agent attached there.
    ///
    /// # Errors
    /// No mode works, or another program is attached.
    pub fn attach(&mut self, interface: &str, modes: &[Mode]) -> Result<Mode, DataplaneError> {
        if let Some(mode) = self.take_over(interface, modes)? {
            return Ok(mode);
        }
        let mut last = None;
        for &mode in modes {
            match self.attach_new(interface, mode) {
                Ok(()) => return Ok(mode),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            DataplaneError::new(format!("attaching to {interface}"), &"no mode was allowed")
        }))
    }

    /// Replaces the program of a pinned link, where there is a live one.
    fn take_over(
        &mut self,
        interface: &str,
        modes: &[Mode],
    ) -> Result<Option<Mode>, DataplaneError> {
        let Some(pins) = self.pins.clone() else {
            return Ok(None);
        };
        for mode in [Mode::Native, Mode::Generic] {
            let path = pins.link(interface, mode);
            let Ok(pinned) = PinnedLink::from_pin(&path) else {
                continue;
            };
            if modes.contains(&mode) && self.update(interface, pinned.into())? {
                return Ok(Some(mode));
            }
            // The interface has gone since, or the mode is no longer wanted.
            remove_link(&path).map_err(|error| {
                DataplaneError::new(
                    format!("removing the stale link {}", path.display()),
                    &error,
                )
            })?;
        }
        Ok(None)
    }

    /// Replaces the program of a link; false where the link's interface has gone.
    fn update(&mut self, interface: &str, link: FdLink) -> Result<bool, DataplaneError> {
        let doing = format!("replacing the program on {interface}");
        let failed = |error: &dyn std::error::Error| DataplaneError::new(&*doing, &chain(error));
        let link = XdpLink::try_from(link).map_err(|error| failed(&error))?;
        let xdp = self.xdp()?;
        match xdp.attach_to_link(link) {
            // The pin keeps it; dropping this handle does not detach.
            Ok(id) => xdp
                .take_link(id)
                .map(|_| true)
                .map_err(|error| failed(&error)),
            Err(ProgramError::SyscallError(call))
                if call.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn attach_new(&mut self, interface: &str, mode: Mode) -> Result<(), DataplaneError> {
        let doing = format!("attaching to {interface} in {} mode", mode.name());
        let pins = self.pins.clone();
        let xdp = self.xdp()?;
        let id = xdp
            .attach(interface, mode.xdp())
            .map_err(|error| DataplaneError::new(&*doing, &explain(&error)))?;
        let Some(pins) = pins else { return Ok(()) };
        let link = xdp
            .take_link(id)
            .map_err(|error| DataplaneError::new(&*doing, &chain(&error)))?;
        // Without BPF links, the program would not outlive the agent.
        let link = FdLink::try_from(link).map_err(|_| {
            DataplaneError::new(
                &*doing,
                &"this kernel has no BPF links for XDP (Linux 5.9 has them)",
            )
        })?;
        link.pin(pins.link(interface, mode))
            .map(drop)
            .map_err(|error| DataplaneError::new(doing, &chain(&error)))
    }

    /// Detaches from every interface but these, as a former configuration may have named others.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach_others(&self, interfaces: &BTreeSet<String>) -> io::Result<()> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        let keep: BTreeSet<String> = interfaces.iter().map(|name| pin_name(name)).collect();
        for entry in fs::read_dir(pins.links())? {
            let entry = entry?;
            let name = entry.file_name();
            let wanted = name.to_str().and_then(|name| name.split_once('-'));
            if wanted.is_none_or(|(_, interface)| !keep.contains(interface)) {
                remove_link(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// An interface's name as the BPF file system takes it, which keeps dots for itself.
fn pin_name(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
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

fn explain(error: &ProgramError) -> String {
    let text = chain(error);
    match error {
        ProgramError::UnknownInterface { name } => format!("there is no interface {name}"),
        ProgramError::SyscallError(call) => match call.io_error.raw_os_error() {
            Some(libc::EBUSY) => {
                "another XDP program is attached there: detach it first (`ip link set dev NIC xdp off`)".to_owned()
            }
            Some(libc::EOPNOTSUPP) => "the driver has no native XDP: use --mode generic".to_owned(),
            Some(libc::EPERM) => "not permitted: root, or CAP_BPF and CAP_NET_ADMIN, is needed".to_owned(),
            _ => text,
        },
        _ => text,
    }
}
