//! What an agent is called, and where its socket and its kept state are.
//!
//! Pure: it names paths and never touches them.

use std::path::{Path, PathBuf};

/// The instance meant where none is named.
pub const DEFAULT: &str = "default";

/// Where agents keep their sockets.
pub const RUN_DIR: &str = "/run/lbd";

/// Checks an instance's name, for clap and the configuration alike.
///
/// # Errors
/// What a name looks like.
pub fn parse_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=32).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{}` is not a name: use 1 to 32 of a-z, 0-9 and -",
            text.escape_debug()
        ))
    }
}

/// The API socket of the instance `name`.
pub fn socket_path(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{name}.sock"))
}

/// Where the instance `name` keeps what it knows against backends.
pub fn history_path(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{name}.history.json"))
}

/// Where the instance `name` keeps its state, wherever its socket is.
pub fn state_path(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{name}.state.json"))
}
