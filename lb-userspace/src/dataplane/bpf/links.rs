//! Owns how a program comes onto an interface, and stays there: BPF links, pinned as
//! `MODE-INTERFACE`. Never decides which interfaces.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use super::{
    chain, occupant,
    pins::{entries, remove_link},
};
use crate::dataplane::DataplaneError;

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

/// Pinned links in a directory.
#[derive(Debug)]
pub struct Links {
    directory: PathBuf,
    /// Where former versions pinned theirs.
    former: Vec<PathBuf>,
}

/// Whether an interface has a former agent's program, in the order in which interfaces are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// It has none.
    Not,
    /// One over maps of this format.
    SameFormat,
    /// One over others.
    OtherFormat,
}

/// What became of a link that was there.
enum Former {
    None,
    Replaced(Mode),
    /// It was in a mode that is not wanted any more.
    Removed(Mode),
}

impl Links {
    pub fn new(directory: PathBuf, former: Vec<PathBuf>) -> Self {
        Self { directory, former }
    }

    fn pin(&self, interface: &str, mode: Mode) -> PathBuf {
        pin(&self.directory, interface, mode)
    }

    /// Pins of links to `interface`.
    fn pinned(&self, interface: &str) -> Vec<(Mode, PathBuf)> {
        let directories = [&self.directory].into_iter().chain(&self.former);
        directories
            .flat_map(|directory| pinned_in(directory, interface))
            .collect()
    }

    /// Whether a link to `interface` is pinned, alive or not.
    pub fn has(&self, interface: &str) -> bool {
        self.held(interface) != Held::Not
    }

    /// Where a link to `interface` is pinned, alive or not.
    pub fn held(&self, interface: &str) -> Held {
        let is_in = |directory: &PathBuf| !pinned_in(directory, interface).is_empty();
        if is_in(&self.directory) {
            Held::SameFormat
        } else if self.former.iter().any(is_in) {
            Held::OtherFormat
        } else {
            Held::Not
        }
    }

    /// Replaces the program of every link of this version.
    ///
    /// # Errors
    /// The kernel refuses; the program of some may have been replaced.
    pub fn replace_all(&self, xdp: &mut Xdp) -> Result<(), DataplaneError> {
        let failed = |path: &Path, error: &dyn std::error::Error| {
            DataplaneError::new(
                format!("replacing the program of the link {}", path.display()),
                &chain(error),
            )
        };
        let pins = entries(&self.directory).map_err(|error| failed(&self.directory, &error))?;
        for path in pins {
            let pinned = PinnedLink::from_pin(&path).map_err(|error| failed(&path, &error))?;
            // One whose interface has gone is left to whoever looks after interfaces.
            replace(xdp, &path.display().to_string(), pinned.into())?;
        }
        Ok(())
    }

    /// Attaches to an interface in the first of `modes` that works, replacing in one step the
    /// program of a link that is there.
    ///
    /// # Errors
    /// No mode works, or another program is attached. A link that was there stays.
    pub fn attach(
        &self,
        xdp: &mut Xdp,
        interface: &str,
        modes: &[Mode],
    ) -> Result<Mode, DataplaneError> {
        fs::create_dir_all(&self.directory).map_err(|error| {
            DataplaneError::new(format!("making {}", self.directory.display()), &error)
        })?;
        let former = self.take_over(xdp, interface, modes)?;
        if let Former::Replaced(mode) = former {
            return Ok(mode);
        }
        let attached = self.attach_first(xdp, interface, modes);
        if let (Err(_), Former::Removed(mode)) = (&attached, former) {
            self.attach_new(xdp, interface, mode)?;
        }
        attached
    }

    /// Replaces the program of a pinned link, where there is a live one in one of `modes`.
    fn take_over(
        &self,
        xdp: &mut Xdp,
        interface: &str,
        modes: &[Mode],
    ) -> Result<Former, DataplaneError> {
        let failed = |path: &Path, error: &dyn std::error::Error| {
            DataplaneError::new(
                format!("taking up the link {}", path.display()),
                &chain(error),
            )
        };
        let mut former = Former::None;
        for (mode, path) in self.pinned(interface) {
            let pinned = PinnedLink::from_pin(&path).map_err(|error| failed(&path, &error))?;
            if modes.contains(&mode) {
                if replace(xdp, interface, pinned.into())? {
                    let pin = self.pin(interface, mode);
                    fs::rename(&path, pin).map_err(|error| failed(&path, &error))?;
                    return Ok(Former::Replaced(mode));
                }
                // The interface has gone since.
            } else {
                former = Former::Removed(mode);
            }
            remove_link(&path).map_err(|error| failed(&path, &error))?;
        }
        Ok(former)
    }

    fn attach_first(
        &self,
        xdp: &mut Xdp,
        interface: &str,
        modes: &[Mode],
    ) -> Result<Mode, DataplaneError> {
        let mut last = DataplaneError::new(format!("attaching to {interface}"), &"in no mode");
        for &mode in modes {
            match self.attach_new(xdp, interface, mode) {
                Ok(()) => return Ok(mode),
                // Another mode could not be had beside the other program, and would hide this.
                Err(Refused { error, taken: true }) => return Err(error),
                Err(Refused { error, .. }) => last = error,
            }
        }
        Err(last)
    }

    fn attach_new(&self, xdp: &mut Xdp, interface: &str, mode: Mode) -> Result<(), Refused> {
        let doing = format!("attaching to {interface} in {} mode", mode.name());
        let failed = |error: &dyn std::error::Error| DataplaneError::new(&*doing, &chain(error));
        let id = xdp.attach(interface, mode.xdp()).map_err(|error| Refused {
            error: DataplaneError::new(&*doing, &explain(interface, &error)),
            taken: is_taken(&error),
        })?;
        let link = xdp.take_link(id).map_err(|error| failed(&error))?;
        // Without BPF links, the program would not outlive this process.
        let link = FdLink::try_from(link).map_err(|_| {
            DataplaneError::new(
                &*doing,
                &"this kernel has no BPF links for XDP (Linux 5.9 has them)",
            )
        })?;
        let pinned = link.pin(self.pin(interface, mode));
        Ok(pinned.map(drop).map_err(|error| failed(&error))?)
    }

    /// Forgets links to `interface`, and detaches those that are alive.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove(&self, interface: &str) -> io::Result<()> {
        let pinned = self.pinned(interface);
        pinned.iter().try_for_each(|(_, path)| remove_link(path))
    }

    /// Detaches from every interface but these.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn keep(&self, interfaces: &BTreeSet<String>) -> io::Result<()> {
        let keep: BTreeSet<String> = interfaces.iter().map(|name| pin_name(name)).collect();
        for path in entries(&self.directory)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let interface = name.and_then(|name| name.split_once('-'));
            if interface.is_none_or(|(_, interface)| !keep.contains(interface)) {
                remove_link(&path)?;
            }
        }
        Ok(())
    }
}

/// Why a program was not attached.
struct Refused {
    error: DataplaneError,
    /// The interface has another program.
    taken: bool,
}

impl From<DataplaneError> for Refused {
    fn from(error: DataplaneError) -> Self {
        Self {
            error,
            taken: false,
        }
    }
}

impl From<Refused> for DataplaneError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// Replaces the program of a link; false where the link's interface has gone.
fn replace(xdp: &mut Xdp, interface: &str, link: FdLink) -> Result<bool, DataplaneError> {
    let doing = format!("replacing the program on {interface}");
    let failed = |error: &dyn std::error::Error| DataplaneError::new(&*doing, &chain(error));
    let link = XdpLink::try_from(link).map_err(|error| failed(&error))?;
    match xdp.attach_to_link(link) {
        // The pin keeps it; dropping this handle does not detach.
        Ok(id) => xdp
            .take_link(id)
            .map(|_| true)
            .map_err(|error| failed(&error)),
        Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(failed(&error)),
    }
}

/// Pins of links to `interface` in a directory.
fn pinned_in(directory: &Path, interface: &str) -> Vec<(Mode, PathBuf)> {
    let mut pinned: Vec<_> = [Mode::Native, Mode::Generic]
        .map(|mode| (mode, pin(directory, interface, mode)))
        .into();
    pinned.retain(|(_, path)| path.exists());
    pinned
}

fn pin(directory: &Path, interface: &str, mode: Mode) -> PathBuf {
    directory.join(format!("{}-{}", mode.name(), pin_name(interface)))
}

/// An interface's name as the BPF file system takes it, which keeps dots for itself.
pub(super) fn pin_name(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

/// Whether the interface has another program; EEXIST: one in another mode.
fn is_taken(error: &ProgramError) -> bool {
    matches!(errno(error), Some(libc::EBUSY | libc::EEXIST))
}

fn explain(interface: &str, error: &ProgramError) -> String {
    if let ProgramError::UnknownInterface { name } = error {
        return format!("there is no interface {name}");
    }
    match errno(error) {
        _ if is_taken(error) => occupant::describe(interface),
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP: attach in generic mode".to_owned(),
        Some(libc::EPERM) => {
            "not permitted: root, or CAP_BPF and CAP_NET_ADMIN, is needed".to_owned()
        }
        _ => chain(error),
    }
}
