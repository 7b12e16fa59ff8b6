//! Owns where an instance's pins are, who may change them, and their removal. Never loads or
//! attaches anything.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use lb_common::tables::FORMAT;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{detach, links::Links};
use crate::dataplane::DataplaneError;

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

    pub(super) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Maps that are this agent's alone, pinned so that programs that it loads later have them as well.
    pub(super) fn own_maps(&self) -> PathBuf {
        self.version().join("own")
    }

    /// Removes what is left of those of a former agent, whose program has them as long as it is attached.
    pub(super) fn forget_own(&self) -> Result<(), DataplaneError> {
        let path = self.own_maps();
        remove_tree(&path)
            .map_err(|error| DataplaneError::new(format!("removing {}", path.display()), &error))
    }

    /// Links of this format, and of others that an upgrade left.
    pub(super) fn links(&self) -> io::Result<Links> {
        let others = self.others()?;
        let others = others.iter().map(|version| links_of(version)).collect();
        Ok(Links::new(links_of(&self.version()), others))
    }

    /// Versions of other formats.
    fn others(&self) -> io::Result<Vec<PathBuf>> {
        let mut versions = self.versions()?;
        versions.retain(|version| *version != self.version());
        Ok(versions)
    }

    fn versions(&self) -> io::Result<Vec<PathBuf>> {
        entries(&self.root)
    }

    /// Claims the instance for this process, until the claim is dropped: whoever writes its maps or
    /// removes its pins has claimed it before.
    ///
    /// # Errors
    /// Another process has it, or there is no BPF file system.
    pub fn claim(&self) -> Result<Claim, DataplaneError> {
        let shown = self.root.display();
        let failed = |error: &io::Error| {
            DataplaneError::new(
                format!("making {shown} (is a BPF file system mounted?)"),
                error,
            )
        };
        loop {
            match self.lock() {
                Ok(Some(lock)) => {
                    let before = self.link_names().map_err(|error| failed(&error))?;
                    let taken_up = self.version().exists();
                    return Ok(Claim {
                        pins: self.clone(),
                        before,
                        taken_up,
                        _lock: lock,
                    });
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(DataplaneError::new(
                        format!("claiming the instance of {shown}"),
                        &"it is running: stop it first, or give another --name",
                    ));
                }
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    /// None where the directory went away before it was locked, as with `lbd detach`.
    fn lock(&self) -> io::Result<Option<Flock<File>>> {
        // Closed to others, any of whom could lock it for good.
        let mut directory = DirBuilder::new();
        directory.recursive(true).mode(0o700).create(&self.root)?;
        let absent = |error: io::Error| match error.kind() {
            ErrorKind::NotFound => Ok(None),
            _ => Err(error),
        };
        let opened = match File::open(&self.root) {
            Ok(opened) => opened,
            Err(error) => return absent(error),
        };
        let lock = Flock::lock(opened, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno): (File, Errno)| io::Error::from(errno))?;
        match fs::metadata(&self.root) {
            Ok(there) => Ok((there.ino() == lock.metadata()?.ino()).then_some(lock)),
            Err(error) => absent(error),
        }
    }

    /// Names of links, of every format.
    fn link_names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for version in self.versions()? {
            let links = entries(&links_of(&version))?;
            names.extend(
                links
                    .iter()
                    .filter_map(|link| link.file_name())
                    .map(OsString::from),
            );
        }
        Ok(names)
    }

    /// Takes the program from its interfaces, and removes every pin; no error where there is none.
    ///
    /// # Errors
    /// A pin cannot be removed, or the instance is running.
    pub fn remove(&self) -> Result<(), DataplaneError> {
        if !self.root.exists() {
            return Ok(());
        }
        let claim = self.claim()?;
        let removed = claim.remove();
        removed.map_err(|error| DataplaneError::new("removing the pins", &error))
    }

    /// Removes what other formats left; their links' interfaces have none of ours by then.
    pub(super) fn remove_others(&self) -> io::Result<()> {
        self.others()?
            .iter()
            .try_for_each(|version| remove_version(version))
    }
}

/// The right to change an instance's pins: one process has it.
#[derive(Debug)]
pub struct Claim {
    pins: Pins,
    /// Links that were there.
    before: BTreeSet<OsString>,
    /// Whether maps of this format were there.
    taken_up: bool,
    _lock: Flock<File>,
}

impl Claim {
    /// What is claimed.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Removes what was pinned since the claim: links to interfaces that had none, and maps, unless
    /// they were there or a former agent's link has come to use them.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn undo(&self) -> io::Result<()> {
        let version = self.pins.version();
        let (old, new): (Vec<_>, Vec<_>) =
            entries(&links_of(&version))?.into_iter().partition(|link| {
                link.file_name()
                    .is_some_and(|name| self.before.contains(name))
            });
        new.iter().try_for_each(|link| remove_link(link))?;
        if !self.taken_up && old.is_empty() {
            remove_tree(&version)?;
        }
        self.remove_root()
    }

    fn remove(&self) -> io::Result<()> {
        // Of every format, since an upgrade may have changed it.
        for version in self.pins.versions()? {
            remove_version(&version)?;
        }
        self.remove_root()
    }

    /// Removes the instance's directory, and the one shared by instances with the last of them.
    fn remove_root(&self) -> io::Result<()> {
        let root = &self.pins.root;
        remove_if_empty(root)?;
        root.parent().map_or(Ok(()), remove_if_empty)
    }
}

fn links_of(version: &Path) -> PathBuf {
    version.join("links")
}

/// Detaches the links of a version, and removes all of it.
fn remove_version(version: &Path) -> io::Result<()> {
    let links = entries(&links_of(version))?;
    links.iter().try_for_each(|link| remove_link(link))?;
    remove_tree(version)
}

/// Detaches a link and removes its pin.
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
    detach::link(pin)?;
    fs::remove_file(pin)
}

/// What is in a directory; nothing where there is no directory.
pub(super) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        found => found?.map(|entry| Ok(entry?.path())).collect(),
    }
}

pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in entries(path)? {
        if fs::symlink_metadata(&entry)?.is_dir() {
            remove_tree(&entry)?;
        } else {
            fs::remove_file(entry)?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes a directory, unless it is in use or not there.
pub(super) fn remove_if_empty(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_claimed_by_one_at_a_time_whatever_its_socket() {
        let bpffs = tempfile::tempdir().unwrap();
        let pins = Pins::new(bpffs.path(), "a");
        let claim = pins.claim().unwrap();
        let refused = pins.claim().unwrap_err().to_string();
        assert!(refused.contains("it is running"), "{refused}");
        let refused = pins.remove().unwrap_err().to_string();
        assert!(refused.contains("it is running"), "{refused}");
        Pins::new(bpffs.path(), "b").claim().unwrap();
        drop(claim);
        pins.claim().unwrap();
    }

    #[test]
    fn what_is_not_there_is_removed_without_an_error_and_without_a_trace() {
        let bpffs = tempfile::tempdir().unwrap();
        let pins = Pins::new(bpffs.path(), "a");
        pins.remove().unwrap();
        drop(pins.claim().unwrap());
        pins.remove().unwrap();
        pins.remove().unwrap();
        assert_eq!(entries(bpffs.path()).unwrap(), [] as [PathBuf; 0]);
    }

    #[test]
    fn undoing_a_claim_removes_what_it_made_and_keeps_what_was_there() {
        let bpffs = tempfile::tempdir().unwrap();
        let pins = Pins::new(bpffs.path(), "a");
        let claim = pins.claim().unwrap();
        fs::create_dir_all(pins.maps()).unwrap();
        claim.undo().unwrap();
        assert_eq!(entries(bpffs.path()).unwrap(), [] as [PathBuf; 0]);
        fs::create_dir_all(pins.maps()).unwrap();
        let claim = pins.claim().unwrap();
        claim.undo().unwrap();
        assert!(pins.maps().exists());
    }
}
