//! A playground's name, held by one at a time. Owns the lock and the files named after it under
//! `/run/lbd`, and sweeps what a killed playground left; never touches what it cannot tell to be that.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::instance::RUN_DIR;
use nix::fcntl::{Flock, FlockArg};

use crate::{netns, topology::stable_names_taken};

/// What the agent and the playground keep, after a dot.
const FILES: [&str; 5] = ["toml", "sock", "state.json", "history.json", "lock"];

/// The right to use a name. Its files go on drop.
#[derive(Debug)]
pub struct Claim {
    name: String,
    _lock: Flock<File>,
}

impl Claim {
    /// Takes `name`, removing what a killed playground of this name left.
    ///
    /// # Errors
    /// A playground of this name runs, or someone else has namespaces called so.
    pub fn take(name: &str) -> Result<Self> {
        let directory = Path::new(RUN_DIR);
        fs::create_dir_all(directory).with_context(|| format!("making {RUN_DIR}"))?;
        let path = directory.join(format!("{name}.lock"));
        let (file, left) = open(&path).with_context(|| path.display().to_string())?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "the playground `{name}` runs already: end that one with Ctrl-C, or start this one \
                 under another name with `--name NAME`"
            );
        };
        let claim = Self {
            name: name.to_owned(),
            _lock: lock,
        };
        let taken = stable_names_taken(name);
        ensure!(
            left || taken.is_empty(),
            "network namespaces {} exist and are no playground's: remove each with \
             `ip netns del`, or start the playground under another name with `--name NAME`",
            taken.join(", ")
        );
        for namespace in taken {
            netns::remove(&namespace).context("removing what a killed playground left")?;
        }
        Ok(claim)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are.
    pub fn directory(&self) -> &'static Path {
        Path::new(RUN_DIR)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for file in files(&self.name) {
            // Which of them were made depends on how far it came.
            drop(fs::remove_file(file));
        }
        // Not the directory, even if it is empty: an agent of another name may be about to use it.
    }
}

/// The files of the playground called `name`.
pub fn files(name: &str) -> impl Iterator<Item = PathBuf> {
    FILES
        .map(|kind| Path::new(RUN_DIR).join(format!("{name}.{kind}")))
        .into_iter()
}

/// The file, and whether it was there before: then a playground was killed, or runs.
fn open(path: &Path) -> std::io::Result<(File, bool)> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Ok((OpenOptions::new().write(true).open(path)?, true))
        }
        made => Ok((made?, false)),
    }
}
