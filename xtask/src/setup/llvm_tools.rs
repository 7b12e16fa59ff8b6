//! LLVM's tools for coverage: those of the host compiler's own LLVM, since the formats change. Looks only.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::facts::{llvm_prefix, parse_version, text};
use crate::program;

const TOOLS: [&str; 2] = ["llvm-cov", "llvm-profdata"];

/// The folder that they are in.
///
/// # Errors
/// There is none; says what to install.
pub fn llvm_tools() -> Result<PathBuf> {
    let rustc = || Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let verbose = text(rustc().arg("-vV")).context("`rustc -vV` fails")?;
    let (_, llvm) = parse_version(&verbose).context("`rustc -vV` names no version of LLVM")?;
    // rustup's component `llvm-tools`, beside the compiler's own libraries.
    let own = text(rustc().args(["--print", "target-libdir"]));
    let own = own.and_then(|libraries| Some(PathBuf::from(libraries.trim()).parent()?.join("bin")));
    let packaged = llvm_prefix(llvm).map(|prefix| prefix.join("bin"));
    let folders = own.into_iter().chain(packaged);
    let mut complete = folders.filter(|folder| {
        TOOLS
            .iter()
            .all(|tool| program::is_executable(&folder.join(tool)))
    });
    complete.next().with_context(|| {
        format!(
            "{} of LLVM {llvm}, which the host's compiler is built over, are missing; \
             `rustup component add llvm-tools` or `apt-get install llvm-{llvm}-dev` installs them",
            TOOLS.join(" and ")
        )
    })
}
