//! What there is on this machine. Looks only: installs nothing and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde_json::Value;

use super::Need;
use crate::invocation::forget_outer_cargo;
use crate::program;
use crate::project::{Project, host_cargo_path};

/// Where maps and links are pinned.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Debian's packaged compiler, whatever else is first on the `PATH`.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What was found. Facts that no need asks for keep their default.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether this user may install packages and mount.
    pub root: bool,
    /// Whether packages are installed by apt.
    pub apt: bool,
    /// Programs found, of those asked about.
    pub programs: BTreeSet<String>,
    /// rustup's nightly.
    pub nightly: Option<Compiler>,
    /// The compiler that Debian packages.
    pub packaged: Option<Compiler>,
    /// Shared LLVM libraries with their development files, by major version.
    pub llvm: BTreeMap<u32, PathBuf>,
    /// LLVM versions whose development package apt offers.
    pub llvm_offered: BTreeSet<u32>,
    /// What cargo installed into the checkout's tools.
    pub tools: BTreeMap<String, Tool>,
    /// Whether the BPF file system is mounted.
    pub bpffs: bool,
    /// The host's linters.
    pub host: HostLints,
}

/// A Rust compiler and what comes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiler {
    /// Major and minor version.
    pub version: (u32, u32),
    /// The major version of its LLVM, whose bitcode the linker has to read.
    pub llvm: u32,
    /// Whether the sources of `core` are there.
    pub sources: bool,
    /// Whether clippy is.
    pub clippy: bool,
}

/// A program that `cargo install` put into the checkout's tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tool {
    /// Its version.
    pub version: String,
    /// The features it was built with.
    pub features: Vec<String>,
}

/// The linters of the cargo that builds for the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLints {
    /// `cargo clippy` works.
    pub clippy: bool,
    /// `cargo fmt` works.
    pub rustfmt: bool,
    /// That cargo is Debian's, not rustup's.
    pub packaged: bool,
}

impl Facts {
    /// Looks at what `needs` asks about.
    pub fn gather(project: &Project, needs: &[Need]) -> Self {
        let mut facts = Self {
            root: nix::unistd::geteuid().is_root(),
            apt: program::find("apt-get").is_some(),
            programs: programs_found(),
            tools: installed_tools(&project.tools()),
            bpffs: statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC),
            ..Self::default()
        };
        if needs.contains(&Need::BpfToolchain) {
            facts.nightly = nightly();
            facts.packaged = compiler(Command::new(DEBIAN_RUSTC), Path::new("/usr"));
            let wanted = [&facts.nightly, &facts.packaged]
                .into_iter()
                .flatten()
                .map(|c| c.llvm);
            let wanted: BTreeSet<u32> = wanted.collect();
            facts.llvm = wanted
                .iter()
                .filter_map(|v| llvm_prefix(*v).map(|p| (*v, p)))
                .collect();
            facts.llvm_offered = offered(&wanted, &facts);
        }
        if needs.contains(&Need::Lints) {
            facts.host = host_lints(project);
        }
        facts
    }

    /// Whether `name` is on the `PATH` or among the checkout's tools.
    pub fn has_program(&self, name: &str) -> bool {
        self.programs.contains(name) || self.tools.contains_key(name)
    }
}

fn programs_found() -> BTreeSet<String> {
    let wanted = super::plan::PROGRAMS.iter();
    wanted
        .chain(&super::plan::SERVERS)
        .chain(&super::plan::EMULATOR)
        .map(|wanted| wanted.program)
        .chain(["cargo-nextest", "cargo-deny", "c++", "rustup"])
        .filter(|name| program::find(name).is_some())
        .map(str::to_owned)
        .collect()
}

/// Reads cargo's own record of what it installed.
fn installed_tools(tools: &Path) -> BTreeMap<String, Tool> {
    fs::read_to_string(tools.join(".crates2.json"))
        .map(|record| parse_tools(&record))
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, _)| program::is_executable(&tools.join("bin").join(name)))
        .collect()
}

fn parse_tools(record: &str) -> BTreeMap<String, Tool> {
    let record: Value = serde_json::from_str(record).unwrap_or_default();
    let installs = record["installs"].as_object().into_iter().flatten();
    installs
        .filter_map(|(id, details)| {
            let mut words = id.split(' ');
            let (name, version) = (words.next()?, words.next()?);
            let features = details["features"].as_array().into_iter().flatten();
            let features = features
                .filter_map(|f| f.as_str().map(str::to_owned))
                .collect();
            Some((
                name.to_owned(),
                Tool {
                    version: version.to_owned(),
                    features,
                },
            ))
        })
        .collect()
}

fn nightly() -> Option<Compiler> {
    let rustc = || {
        let mut command = Command::new("rustup");
        // Looking must not download a toolchain.
        command
            .env("RUSTUP_AUTO_INSTALL", "0")
            .args(["run", "nightly", "rustc"]);
        command
    };
    program::find("rustup")?;
    let sysroot = text(rustc().args(["--print", "sysroot"]))?;
    compiler(rustc(), Path::new(sysroot.trim()))
}

fn compiler(mut rustc: Command, sysroot: &Path) -> Option<Compiler> {
    forget_outer_cargo(&mut rustc);
    let (version, llvm) = parse_version(&text(rustc.arg("-vV"))?)?;
    Some(Compiler {
        version,
        llvm,
        sources: sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .exists(),
        clippy: program::is_executable(&sysroot.join("bin/cargo-clippy")),
    })
}

/// The compiler's version and its LLVM's major version, from `rustc -vV`.
pub(super) fn parse_version(verbose: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name));
    let mut release = field("release: ")?.split('.');
    let version = (release.next()?.parse().ok()?, release.next()?.parse().ok()?);
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((version, llvm))
}

/// Where distributions put LLVM `version`; the user's `LLVM_PREFIX` comes first.
pub(super) fn llvm_prefix(version: u32) -> Option<PathBuf> {
    let library = |prefix: &Path| {
        ["lib", "lib64"].iter().any(|lib| {
            prefix
                .join(lib)
                .join(format!("libLLVM-{version}.so"))
                .exists()
        })
    };
    let usual = [
        format!("/usr/lib/llvm-{version}"),
        format!("/usr/lib/llvm{version}"),
        format!("/usr/lib64/llvm{version}"),
    ];
    env::var_os("LLVM_PREFIX")
        .map(PathBuf::from)
        .into_iter()
        .chain(usual.map(PathBuf::from))
        .find(|prefix| library(prefix))
}

/// Asks apt, only for what is missing.
fn offered(wanted: &BTreeSet<u32>, facts: &Facts) -> BTreeSet<u32> {
    let missing = wanted
        .iter()
        .copied()
        .filter(|version| facts.apt && !facts.llvm.contains_key(version));
    missing
        .filter(|version| {
            let policy = text(
                Command::new("apt-cache")
                    .arg("policy")
                    .arg(format!("llvm-{version}-dev")),
            );
            policy.is_some_and(|policy| {
                policy.contains("Candidate: ") && !policy.contains("Candidate: (none)")
            })
        })
        .collect()
}

fn host_lints(project: &Project) -> HostLints {
    let works = |verb: &str| text(project.host_cargo().args([verb, "--version"])).is_some();
    HostLints {
        clippy: works("clippy"),
        rustfmt: works("fmt"),
        packaged: host_cargo_path() == Path::new("/usr/bin/cargo"),
    }
}

/// What `command` prints, if it succeeds.
pub(super) fn text(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_version_and_llvm_are_read_from_rustc() {
        let verbose = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_version(verbose), Some(((1, 97), 22)));
        assert_eq!(parse_version("rustc 1.0\n"), None);
    }

    #[test]
    fn installed_tools_are_read_from_cargos_record() {
        let record = r#"{"installs":{"bpf-linker 0.13.0 (registry+x)":{"features":["llvm-22"],"bins":["bpf-linker"]}}}"#;
        let expected = Tool {
            version: "0.13.0".into(),
            features: vec!["llvm-22".into()],
        };
        assert_eq!(
            parse_tools(record),
            BTreeMap::from([("bpf-linker".into(), expected)])
        );
        assert!(parse_tools("not json").is_empty());
    }
}
