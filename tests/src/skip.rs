//! Tests that cannot run here say so instead of passing silently. Owns the form of that message
//! and the file that collects them; never decides whether a test can run.

use std::{env, fs::OpenOptions, io::Write as _};

use anyhow::Result;
use nix::unistd::Uid;

/// Names the file that collects skips, one per line.
pub const SKIP_FILE: &str = "LB_SKIP_FILE";

/// Reports that `test` did not run, and why: on standard output, and in the file that
/// [`SKIP_FILE`] names, for whoever sums up the run.
pub fn skip(test: &str, reason: &str) {
    // A line for each.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    println!("SKIP {test}: {reason}");
    let Some(path) = env::var_os(SKIP_FILE) else {
        return;
    };
    let appended = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        // In one piece: other tests append at the same time.
        .and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()));
    if let Err(error) = appended {
        eprintln!("{SKIP_FILE}={}: {error}", path.to_string_lossy());
    }
}

/// Whether the caller may make namespaces; where not, `test` is reported as skipped.
pub fn root_or_skip(test: &str) -> bool {
    let root = Uid::effective().is_root();
    if !root {
        skip(test, "needs root for network namespaces and BPF");
    }
    root
}

/// Runs `test`, called `name`, where namespaces can be made; elsewhere it is reported as skipped.
///
/// # Errors
/// The test's own.
pub fn with_root(name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    if root_or_skip(name) { test() } else { Ok(()) }
}
