//! This program in the compiler's place: cargo asks it to compile the workspace's crates, and it becomes the compiler, with
//! what is watched instrumented. So all other crates are those of the ordinary build.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result};

/// Set where this program stands in for the compiler: what for.
const STAND_IN: &str = "LB_XTASK_INSTRUMENTS";
/// The crate that holds the packet path, and has it compiled over tables in memory.
const PACKET_PATH: &str = "lb_common";

/// What crates are instrumented for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The coverage-guided fuzzer.
    Fuzzing,
    /// Which lines and branches are reached.
    Coverage,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Fuzzing, Self::Coverage];

    const fn name(self) -> &'static str {
        match self {
            Self::Fuzzing => "fuzzing",
            Self::Coverage => "coverage",
        }
    }

    /// Whether a crate is instrumented for it. What is generic is compiled where it is used, which the tests of the packet
    /// path do as well; and a program counts where it is instrumented itself.
    fn watches(self, name: &str) -> bool {
        match self {
            Self::Fuzzing => name == PACKET_PATH,
            Self::Coverage => [PACKET_PATH, "packet_path", "tables", "lb_tests"].contains(&name),
        }
    }

    const fn flags(self) -> &'static [&'static str] {
        match self {
            // What libFuzzer goes by (Clang's SanitizerCoverage), and what finds defects sooner.
            Self::Fuzzing => &[
                "-Cpasses=sancov-module",
                "-Cllvm-args=-sanitizer-coverage-level=4",
                "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
                "-Cllvm-args=-sanitizer-coverage-pc-table",
                "-Cllvm-args=-sanitizer-coverage-trace-compares",
                "-Ccodegen-units=1",
                "-Cdebug-assertions=on",
                "-Coverflow-checks=on",
            ],
            // Branches are not stable yet.
            Self::Coverage => &["-Cinstrument-coverage", "-Zcoverage-options=branch"],
        }
    }
}

/// Has a build by `cargo` instrument what is watched.
///
/// # Errors
/// It is not known where this program is.
pub fn instrument(cargo: &mut Command, purpose: Purpose) -> Result<()> {
    let own = env::current_exe().context("where this program is")?;
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", own)
        .env(STAND_IN, purpose.name());
    Ok(())
}

/// Where cargo has asked for the compiler: becomes it. Returns what went wrong, or that it was not asked.
pub fn stand_in() -> Option<anyhow::Error> {
    let purpose = env::var(STAND_IN).ok()?;
    let purpose = Purpose::ALL
        .into_iter()
        .find(|known| known.name() == purpose)?;
    let mut arguments = env::args_os().skip(1);
    let mut compiler = Command::new(arguments.next()?);
    let arguments: Vec<_> = arguments.collect();
    if crate_name(&arguments).is_some_and(|name| purpose.watches(name)) {
        compiler.args(purpose.flags());
        if purpose == Purpose::Coverage {
            compiler.env("RUSTC_BOOTSTRAP", "1");
        }
    }
    let error = compiler.args(arguments).exec();
    Some(anyhow::Error::new(error).context("cannot start the compiler"))
}

fn crate_name<T: AsRef<OsStr>>(arguments: &[T]) -> Option<&str> {
    let option = |argument: &T| argument.as_ref() == "--crate-name";
    let at = arguments.iter().position(option)?;
    arguments.get(at + 1)?.as_ref().to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_is_found_among_the_compilers_arguments() {
        let arguments = ["--edition=2024", "--crate-name", "lb_common", "src/lib.rs"];
        assert_eq!(crate_name(&arguments), Some("lb_common"));
        assert_eq!(crate_name(&["-vV"]), None);
        assert_eq!(crate_name(&["--crate-name"]), None);
    }

    #[test]
    fn the_packet_path_is_watched_and_nothing_but_it_and_its_tests() {
        for purpose in Purpose::ALL {
            assert!(purpose.watches("lb_common"), "{purpose:?}");
            assert!(!purpose.watches("lb_userspace"), "{purpose:?}");
        }
        assert!(!Purpose::Fuzzing.watches("packet_path"));
        assert!(Purpose::Coverage.watches("packet_path"));
    }
}
