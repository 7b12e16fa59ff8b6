//! BPF file systems of a run's own, so that pins of two runs never meet and none outlives its run.
//! Owns mounting and unmounting; never looks into what is pinned.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::Once,
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::netns::{is_gone, next_number, owner_of};

const PARENT: &str = "/run";
const PREFIX: &str = "lb-test-";

static SWEEP: Once = Once::new();

/// A mounted BPF file system in a directory of its own. Unmounting it on drop removes every pin.
#[derive(Debug)]
pub struct Bpffs {
    directory: PathBuf,
}

impl Bpffs {
    /// Mounts one in a new directory named after this process.
    ///
    /// # Errors
    /// The directory or the mount cannot be made.
    pub fn unique() -> Result<Self> {
        SWEEP.call_once(sweep_stale);
        let name = format!("{PREFIX}{}-{}", process::id(), next_number());
        Self::at(&Path::new(PARENT).join(name))
    }

    /// Mounts one at `directory`, which is made, and removed on drop.
    ///
    /// # Errors
    /// The directory or the mount cannot be made.
    pub fn at(directory: &Path) -> Result<Self> {
        let shown = directory.display();
        fs::create_dir_all(directory).with_context(|| format!("making {shown}"))?;
        mount(
            Some("bpf"),
            directory,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting a BPF file system at {shown}"))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Everything pinned in it, directories included.
    pub fn entries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.directory.clone()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    pending.push(path.clone());
                }
                found.push(path);
            }
        }
        // Not in the order in which they were made.
        found.sort_unstable();
        found
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.directory) {
            eprintln!("{} stays behind: {error:#}", self.directory.display());
        }
    }
}

/// Unmounts the BPF file system at `directory` and removes the directory.
///
/// # Errors
/// Nothing is mounted there, or the directory cannot be removed.
pub fn unmount(directory: &Path) -> Result<()> {
    umount2(directory, MntFlags::MNT_DETACH).context("unmounting")?;
    fs::remove_dir(directory).context("removing the directory")
}

/// Removes what processes left that died without cleaning up.
fn sweep_stale() {
    for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| owner_of(name, PREFIX));
        if owner.is_some_and(is_gone) {
            // Another process may be sweeping the same one.
            drop(unmount(&entry.path()));
        }
    }
}
