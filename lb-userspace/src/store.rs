//! The state as changed at run time, kept for the next agent until the machine restarts.
//!
//! Written beside the configuration that it began from: once that is edited, the file is the truth
//! again and what was changed by hand is void.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::model::{AccessList, Service};

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// The configuration's text when the agent started, and what tells the files that it names.
    pub config: String,
    /// The access lists since.
    #[serde(default)]
    pub access_lists: Vec<AccessList>,
    /// The services since.
    pub services: Vec<Service>,
}

/// For the owner alone: headers and arguments of checks may be secrets.
const MODE: u32 = 0o600;

/// Keeps `stored` at `path`, as [`write`] does.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: &Path, stored: &Stored) -> io::Result<()> {
    write(path, &serde_json::to_vec(stored)?)
}

/// Writes a file at `path`, in a directory that is made where it is missing; a reader sees the old
/// or the new, never a part, and has to be the owner.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&temporary)?;
    // Another agent's may have been left there, open to all.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(content)?;
    fs::rename(temporary, path)
}

/// Removes a file, where it is there.
///
/// # Errors
/// It stays.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was kept at `path` under the same configuration, if anything.
///
/// # Errors
/// The file is there and cannot be read or understood.
pub fn load(path: &Path, config: &str) -> io::Result<Option<Stored>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let stored: Stored = serde_json::from_slice(&bytes)?;
    Ok((stored.config == config).then_some(stored))
}

/// How long ago the machine was started, by the clock that nobody puts forward or back.
///
/// # Errors
/// The kernel does not say.
pub fn uptime() -> io::Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(time.into())
}

/// What tells a file's content from others, as far as edits go: FNV-1a of 64 bits.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let service = serde_json::from_str(r#"{"id":"10.0.0.1:80/tcp","mode":"nat"}"#).unwrap();
        Stored {
            config: "a".to_owned(),
            access_lists: vec![
                AccessList::new("office", ["10.0.0.0/8".parse().unwrap()], []).unwrap(),
            ],
            services: vec![service],
        }
    }

    #[test]
    fn what_was_kept_comes_back_under_the_same_configuration_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(load(&path, "a").unwrap(), None);
        save(&path, &stored()).unwrap();
        assert_eq!(load(&path, "a").unwrap(), Some(stored()));
        assert_eq!(load(&path, "edited").unwrap(), None);
    }

    #[test]
    fn only_the_owner_may_read_it_whatever_was_there_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/a.state.json");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        save(&path, &stored()).unwrap();
        assert_eq!(mode(), 0o600);
        let left = path.with_extension("new");
        for open in [&path, &left] {
            fs::write(open, "left").unwrap();
            fs::set_permissions(open, Permissions::from_mode(0o644)).unwrap();
        }
        save(&path, &stored()).unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(load(&path, "a").unwrap(), Some(stored()));
    }

    #[test]
    fn fingerprints_are_those_of_fnv() {
        // From the authors' test vectors (<http://www.isthe.com/chongo/tech/comp/fnv/>).
        assert_eq!(fingerprint(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, "{").unwrap();
        assert!(load(&path, "a").is_err());
    }
}
