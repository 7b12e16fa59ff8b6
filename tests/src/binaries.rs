//! Finds the programs under test. Never builds them.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Names the directory that holds `lbd` and `lbctl`, where they are not beside the running program.
pub const BIN_DIR: &str = "LB_BIN_DIR";

/// The path of `program`: in [`BIN_DIR`], else in the nearest directory above the running program
/// (tests run from `target/PROFILE/deps`, the playground from `target/PROFILE`).
///
/// # Errors
/// It is not there; says how to build it.
pub fn find(program: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("the path of this program")?;
    let found = match env::var_os(BIN_DIR) {
        Some(directory) => existing(Path::new(&directory), program),
        None => own
            .ancestors()
            .skip(1)
            .find_map(|directory| existing(directory, program)),
    };
    found.with_context(|| {
        format!(
            "{program} is not built: run `cargo xtask build`, or set {BIN_DIR} to its directory"
        )
    })
}

fn existing(directory: &Path, program: &str) -> Option<PathBuf> {
    let path = directory.join(program);
    path.is_file().then_some(path)
}
