//! Which compiler builds the BPF programs, and how it is called.
//!
//! `core` is built from source for the BPF target, which needs a compiler that takes unstable
//! options, its sources, and a bpf-linker over the same LLVM. rustup's nightly is served first, then
//! Debian's packaged compiler with `RUSTC_BOOTSTRAP=1`. Deciding here is pure.

use std::process::Command;

use super::facts::{Compiler, DEBIAN_RUSTC, Facts};
use crate::invocation::forget_outer_cargo;
use crate::project::Project;

/// The bpf-linker that is installed.
pub const LINKER_VERSION: &str = "0.13.0";
/// The oldest compiler that builds the workspace.
pub const OLDEST_COMPILER: (u32, u32) = (1, 89);
/// The LLVM of the compiler that Debian's security archive offers, as long as it is not installed and cannot be asked.
const PACKAGED_LLVM: u32 = 22;

/// A toolchain for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfToolchain {
    /// rustup's nightly with `rust-src`.
    Nightly,
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`.
    Packaged,
}

/// A toolchain and the LLVM its linker has to be built over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The toolchain.
    pub toolchain: BpfToolchain,
    /// LLVM's major version.
    pub llvm: u32,
}

impl BpfToolchain {
    /// What it is, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Nightly => "rustup's nightly",
            Self::Packaged => "Debian's packaged compiler",
        }
    }

    /// Its cargo, untouched by the cargo around this process.
    pub fn cargo(self, project: &Project) -> Command {
        match self {
            Self::Nightly => rustup_nightly(project),
            Self::Packaged => packaged(project, "/usr/bin/cargo"),
        }
    }

    /// Its clippy, to be given clippy's own arguments.
    pub fn clippy(self, project: &Project) -> Command {
        match self {
            Self::Nightly => {
                let mut command = rustup_nightly(project);
                command.arg("clippy");
                command
            }
            Self::Packaged => {
                // Named by its path: a bare `cargo clippy` would find rustup's first.
                let mut command = packaged(project, "/usr/bin/cargo-clippy");
                command.env("CARGO", "/usr/bin/cargo").arg("clippy");
                command
            }
        }
    }

    /// Whether [`Self::clippy`] is there.
    pub fn has_clippy(self, facts: &Facts) -> bool {
        self.compiler(facts).is_some_and(|compiler| compiler.clippy)
    }

    fn compiler(self, facts: &Facts) -> Option<&Compiler> {
        match self {
            Self::Nightly => facts.nightly.as_ref(),
            Self::Packaged => facts.packaged.as_ref(),
        }
    }
}

fn rustup_nightly(project: &Project) -> Command {
    let mut command = Command::new("rustup");
    forget_outer_cargo(&mut command);
    command
        .current_dir(project.bpf_package())
        .args(["run", "nightly", "cargo"]);
    command
}

fn packaged(project: &Project, program: &str) -> Command {
    let mut command = Command::new(program);
    forget_outer_cargo(&mut command);
    command
        .current_dir(project.bpf_package())
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

/// The toolchain that is complete, linker included.
pub fn ready(facts: &Facts) -> Option<BpfToolchain> {
    [BpfToolchain::Nightly, BpfToolchain::Packaged]
        .into_iter()
        .find(|toolchain| {
            usable(toolchain.compiler(facts)).is_some_and(|c| linker_reads(facts, c.llvm))
        })
}

/// The toolchain to complete: the first whose parts are there or can be installed.
pub fn choose(facts: &Facts) -> Option<Choice> {
    let may_install = facts.root && facts.apt;
    let nightly = usable(facts.nightly.as_ref())
        .map(|compiler| compiler.llvm)
        .filter(|llvm| {
            facts.llvm.contains_key(llvm) || may_install && facts.llvm_offered.contains(llvm)
        })
        .map(|llvm| Choice {
            toolchain: BpfToolchain::Nightly,
            llvm,
        });
    let packaged = || {
        let compiler = usable(facts.packaged.as_ref());
        let complete = compiler.is_some_and(|compiler| facts.llvm.contains_key(&compiler.llvm));
        let llvm = compiler.map_or(PACKAGED_LLVM, |compiler| compiler.llvm);
        (complete || facts.apt).then_some(Choice {
            toolchain: BpfToolchain::Packaged,
            llvm,
        })
    };
    nightly.or_else(packaged)
}

/// Whether the installed linker is the pinned one, over `llvm`.
pub fn linker_reads(facts: &Facts, llvm: u32) -> bool {
    facts.tools.get("bpf-linker").is_some_and(|linker| {
        linker.version == LINKER_VERSION && linker.features.contains(&format!("llvm-{llvm}"))
    })
}

/// `compiler`, if it can build `core` for the BPF target.
pub fn usable(compiler: Option<&Compiler>) -> Option<&Compiler> {
    compiler.filter(|compiler| compiler.sources && compiler.version >= OLDEST_COMPILER)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;

    use super::*;
    use crate::setup::facts::Tool;

    fn compiler(minor: u32, llvm: u32, sources: bool) -> Option<Compiler> {
        Some(Compiler {
            version: (1, minor),
            llvm,
            sources,
            clippy: false,
        })
    }

    fn debian_root() -> Facts {
        Facts {
            root: true,
            apt: true,
            ..Facts::default()
        }
    }

    fn chosen(facts: &Facts) -> Option<(BpfToolchain, u32)> {
        choose(facts).map(|choice| (choice.toolchain, choice.llvm))
    }

    #[test]
    fn nightly_with_sources_and_its_llvm_is_served_first() {
        let llvm = BTreeMap::from([(23, PathBuf::from("/usr/lib/llvm-23"))]);
        let facts = Facts {
            nightly: compiler(99, 23, true),
            packaged: compiler(96, 22, true),
            llvm,
            ..debian_root()
        };
        assert_eq!(chosen(&facts), Some((BpfToolchain::Nightly, 23)));
    }

    #[test]
    fn nightly_is_served_when_apt_offers_its_llvm() {
        let facts = Facts {
            nightly: compiler(99, 23, true),
            llvm_offered: BTreeSet::from([23]),
            ..debian_root()
        };
        assert_eq!(chosen(&facts), Some((BpfToolchain::Nightly, 23)));
    }

    #[test]
    fn nightly_without_sources_or_without_its_llvm_gives_way_to_debian() {
        let unsourced = Facts {
            nightly: compiler(97, 22, false),
            ..debian_root()
        };
        assert_eq!(chosen(&unsourced), Some((BpfToolchain::Packaged, 22)));
        let unlinkable = Facts {
            nightly: compiler(99, 23, true),
            ..debian_root()
        };
        assert_eq!(chosen(&unlinkable), Some((BpfToolchain::Packaged, 22)));
    }

    #[test]
    fn linker_follows_the_llvm_of_the_installed_compiler() {
        let facts = Facts {
            packaged: compiler(98, 23, true),
            ..debian_root()
        };
        assert_eq!(chosen(&facts), Some((BpfToolchain::Packaged, 23)));
    }

    #[test]
    fn nothing_is_chosen_without_a_compiler_and_without_apt() {
        assert_eq!(
            choose(&Facts {
                root: true,
                ..Facts::default()
            }),
            None
        );
    }

    #[test]
    fn toolchain_is_ready_only_with_the_pinned_linker_over_its_llvm() {
        let linker = |version: &str, feature: &str| {
            let tool = Tool {
                version: version.into(),
                features: vec![feature.into()],
            };
            Facts {
                packaged: compiler(96, 22, true),
                tools: BTreeMap::from([("bpf-linker".into(), tool)]),
                ..debian_root()
            }
        };
        assert_eq!(
            ready(&linker(LINKER_VERSION, "llvm-22")),
            Some(BpfToolchain::Packaged)
        );
        assert_eq!(ready(&linker(LINKER_VERSION, "llvm-21")), None);
        assert_eq!(ready(&linker("0.10.3", "llvm-22")), None);
    }

    #[test]
    fn compiler_older_than_the_workspace_needs_is_not_used() {
        assert_eq!(usable(compiler(85, 19, true).as_ref()), None);
        assert!(usable(compiler(89, 21, true).as_ref()).is_some());
    }
}
