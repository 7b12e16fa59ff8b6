//! The socket file: made for its owner alone, and never taken from an agent that lives.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;

/// Listens at `path`, which only its owner may use. A socket that a dead agent left is replaced,
/// and a missing directory is made. To be called within a Tokio runtime; who stops serving
/// removes the file.
///
/// # Errors
/// An agent answers there already, something else than a socket is there, or the file system
/// refuses.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    check_free(path)?;
    if let Some(parent) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(parent);
        made.with_context(|| format!("cannot make the directory {}", parent.display()))?;
    }
    // Bound under another name, closed to others, and only then put in its place: nobody can
    // connect before its mode is set, and a dead socket gives way without a moment of absence.
    let aside = aside(path);
    let bound = UnixListener::bind(&aside);
    let listener = bound.with_context(|| format!("cannot listen at {}", aside.display()))?;
    let placed = fs::set_permissions(&aside, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&aside, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&aside);
        return Err(error).with_context(|| format!("cannot listen at {}", path.display()));
    }
    Ok(listener)
}

fn check_free(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} is there and not a socket: move it away, or give another --socket");
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => {
            bail!("an agent answers at {shown} already: stop it, or give this one another --name")
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot tell whether an agent lives at {shown}"))
        }
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}
