//! From what is there and what is needed to the steps between. Pure: looks at nothing and runs nothing.

use std::path::Path;

use anyhow::Result;

use super::advice;
use super::facts::{BPFFS, Facts};
use super::toolchain::{self, BpfToolchain, Choice, LINKER_VERSION};
use super::{Blocked, Need};
use crate::invocation::Invocation;

/// A program that the playground and the tests start, and the Debian package it comes in.
pub struct Wanted {
    /// The program.
    pub program: &'static str,
    /// Its package.
    pub package: &'static str,
}

const fn wanted(program: &'static str, package: &'static str) -> Wanted {
    Wanted { program, package }
}

/// What runs in the namespaces.
pub const PROGRAMS: [Wanted; 6] = [
    wanted("nginx", "nginx"),
    wanted("ip", "iproute2"),
    wanted("ethtool", "ethtool"),
    wanted("tcpdump", "tcpdump"),
    wanted("curl", "curl"),
    wanted("ping", "iputils-ping"),
];

/// What tests run there beside that. PostgreSQL's own programs are in no `PATH`; this one comes with them.
pub const SERVERS: [Wanted; 3] = [
    wanted("redis-server", "redis-server"),
    wanted("pg_ctlcluster", "postgresql"),
    wanted("nft", "nftables"),
];

/// What other kernels are booted in.
pub const EMULATOR: [Wanted; 1] = [wanted("qemu-system-x86_64", "qemu-system-x86")];

const NEXTEST_VERSION: &str = "0.9.143";
const DENY_VERSION: &str = "0.19.0";

/// Installs without a service being started: a policy file, present only meanwhile, forbids it, and
/// servers are then kept from starting at boot. They are wanted as programs of the tests' own.
const QUIET_INSTALL: &str = "\
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
fi
apt-get install -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120 \"$@\" || exit
for server in nginx redis-server postgresql; do
    case \" $* \" in *\" $server \"*) update-rc.d $server disable ;; esac
done";

/// One step: what it does and why, the line a person would type, and how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Names the log.
    pub id: &'static str,
    /// What is done.
    pub title: String,
    /// What it is for.
    pub why: &'static str,
    /// The line to type, where this command may not do it.
    pub by_hand: String,
    /// How it is run; without, only a person can do it.
    pub run: Option<Invocation>,
    /// Whether it takes root.
    pub privileged: bool,
}

/// The steps of one round, in order.
#[derive(Debug, Default)]
pub struct Plan {
    steps: Vec<Step>,
    root: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What there is to do, for people.
    pub fn titles(&self) -> Vec<&str> {
        self.steps.iter().map(|step| step.title.as_str()).collect()
    }

    /// The steps with how each is run; refused as a whole if this user cannot do one of them.
    pub fn runnable(&self) -> Result<Vec<(&Step, &Invocation)>, Blocked> {
        let possible = |step: &&Step| step.run.is_some() && (self.root || !step.privileged);
        if self.steps.iter().all(|step| possible(&step)) {
            return Ok(self
                .steps
                .iter()
                .filter_map(|step| Some((step, step.run.as_ref()?)))
                .collect());
        }
        let reason = if self.steps.iter().all(|step| step.run.is_some()) {
            "set-up is needed that takes root"
        } else {
            "set-up is needed that this command cannot do on this machine"
        };
        let lines = self
            .steps
            .iter()
            .map(|step| format!("{}    # {}", step.by_hand, step.why))
            .collect();
        Err(Blocked {
            reason: reason.to_owned(),
            lines,
        })
    }
}

/// The steps that `needs` lack.
pub fn plan(facts: &Facts, needs: &[Need], tools: &Path) -> Plan {
    let mut steps: Vec<Step> = needs
        .iter()
        .flat_map(|need| match need {
            Need::BpfToolchain => bpf_toolchain(facts, tools),
            Need::Bpffs => bpffs(facts),
            Need::NetworkTools => {
                let why = "the playground and the tests in namespaces start them";
                installed(facts, "apt-network", &PROGRAMS, why)
            }
            Need::Servers => {
                let why = "the tests of failures start them";
                installed(facts, "apt-servers", &SERVERS, why)
            }
            Need::Emulator => {
                let why = "boots other kernels";
                installed(facts, "apt-emulator", &EMULATOR, why)
            }
            Need::Nextest => cargo_tool(
                facts,
                tools,
                "cargo-nextest",
                NEXTEST_VERSION,
                "runs the tests",
            ),
            Need::Deny => cargo_tool(
                facts,
                tools,
                "cargo-deny",
                DENY_VERSION,
                "checks licences and sources",
            ),
            Need::Lints => lints(facts),
        })
        .collect();
    if facts.apt && steps.iter().any(|step| step.id.starts_with("apt-")) {
        steps.insert(0, update());
    }
    Plan {
        steps,
        root: facts.root,
    }
}

fn bpf_toolchain(facts: &Facts, tools: &Path) -> Vec<Step> {
    if toolchain::ready(facts).is_some() {
        return Vec::new();
    }
    let Some(choice) = toolchain::choose(facts) else {
        return vec![advice::bpf_toolchain(facts)];
    };
    let mut steps = Vec::new();
    if choice.toolchain == BpfToolchain::Packaged
        && toolchain::usable(facts.packaged.as_ref()).is_none()
    {
        let packages = ["rustc-web", "cargo-web", "rust-web-src"];
        steps.push(apt(
            "apt-compiler",
            &packages,
            "the compiler of the BPF programs and the sources of core",
        ));
    }
    steps.extend(linker_libraries(facts, choice));
    if !toolchain::linker_reads(facts, choice.llvm) {
        steps.push(linker(facts, choice, tools));
    }
    steps
}

fn linker_libraries(facts: &Facts, choice: Choice) -> Option<Step> {
    let llvm = format!("llvm-{}-dev", choice.llvm);
    let mut packages = Vec::new();
    if !facts.llvm.contains_key(&choice.llvm) {
        packages.push(llvm.as_str());
    }
    if facts.apt && !facts.programs.contains("c++") {
        packages.push("g++");
    }
    (!packages.is_empty()).then(|| apt("apt-llvm", &packages, "bpf-linker is built over it"))
}

fn linker(facts: &Facts, choice: Choice, tools: &Path) -> Step {
    let version = format!("={LINKER_VERSION}");
    let feature = format!("llvm-{}", choice.llvm);
    let install = [
        "bpf-linker",
        "--version",
        &version,
        "--no-default-features",
        "--features",
        &feature,
    ];
    let install = ["install", "--locked", "--force"]
        .into_iter()
        .chain(install)
        .map(str::to_owned);
    let root = ["--root".to_owned(), tools.display().to_string()];
    let run = match choice.toolchain {
        BpfToolchain::Nightly => {
            let nightly = ["run", "nightly", "cargo"].map(str::to_owned);
            Invocation::new("rustup", nightly.into_iter().chain(install).chain(root))
        }
        BpfToolchain::Packaged => Invocation::new("/usr/bin/cargo", install.chain(root))
            .env("RUSTC", super::facts::DEBIAN_RUSTC),
    };
    let prefix = facts.llvm.get(&choice.llvm).map_or_else(
        || format!("/usr/lib/llvm-{}", choice.llvm),
        |prefix| prefix.display().to_string(),
    );
    let run = run
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    let title = format!(
        "build bpf-linker {LINKER_VERSION} over LLVM {} into target/tools",
        choice.llvm
    );
    unprivileged("bpf-linker", title, "links the BPF programs", run)
}

fn bpffs(facts: &Facts) -> Vec<Step> {
    if facts.bpffs {
        return Vec::new();
    }
    let run = Invocation::new("mount", ["-t", "bpf", "bpf", BPFFS]);
    let title = format!("mount the BPF file system at {BPFFS}");
    let step = unprivileged("bpffs", title, "programs and maps are pinned there", run);
    vec![Step {
        privileged: true,
        ..step
    }]
}

fn installed(facts: &Facts, id: &'static str, wanted: &[Wanted], why: &'static str) -> Vec<Step> {
    let missing: Vec<&Wanted> = wanted
        .iter()
        .filter(|wanted| !facts.has_program(wanted.program))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    if facts.apt {
        let packages: Vec<&str> = missing.iter().map(|wanted| wanted.package).collect();
        vec![apt(id, &packages, why)]
    } else {
        let programs: Vec<&str> = missing.iter().map(|wanted| wanted.program).collect();
        vec![advice::programs(&programs, why)]
    }
}

fn cargo_tool(
    facts: &Facts,
    tools: &Path,
    name: &'static str,
    version: &str,
    why: &'static str,
) -> Vec<Step> {
    if facts.has_program(name) {
        return Vec::new();
    }
    let exact = format!("={version}");
    let mut arguments = vec!["install", "--locked", "--force", name, "--version", &exact];
    if name == "cargo-nextest" {
        // Without the self-updater, which would pull in a TLS stack.
        arguments.extend(["--no-default-features", "--features", "default-no-update"]);
    }
    let root = tools.display().to_string();
    arguments.extend(["--root", &root]);
    // Built once and run for seconds: build time counts, not its speed.
    let run = Invocation::new("cargo", arguments)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    vec![unprivileged(
        name,
        format!("build {name} {version} into target/tools"),
        why,
        run,
    )]
}

fn lints(facts: &Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    let host = &facts.host;
    let bpf_clippy = facts
        .packaged
        .as_ref()
        .is_some_and(|compiler| compiler.clippy);
    let bpf_packaged = toolchain::ready(facts) != Some(BpfToolchain::Nightly);
    let mut packages = Vec::new();
    if facts.apt && !bpf_clippy && (bpf_packaged || host.packaged && !host.clippy) {
        packages.push("rust-web-clippy");
    }
    if host.packaged && !host.rustfmt {
        packages.push("rustfmt-web");
    }
    if !packages.is_empty() {
        steps.push(apt(
            "apt-lints",
            &packages,
            "the linters of the packaged compiler",
        ));
    }
    if !(host.packaged || host.clippy && host.rustfmt) {
        steps.push(advice::host_lints());
    }
    steps
}

fn update() -> Step {
    let run = Invocation::new("apt-get", ["update"]);
    let step = unprivileged(
        "apt-update",
        "refresh apt's package lists".to_owned(),
        "packages are missing",
        run,
    );
    Step {
        privileged: true,
        ..step
    }
}

fn apt(id: &'static str, packages: &[&str], why: &'static str) -> Step {
    let arguments = ["-c", QUIET_INSTALL, "install"]
        .into_iter()
        .chain(packages.iter().copied());
    Step {
        id,
        title: format!("install {}", packages.join(" ")),
        why,
        by_hand: format!("apt-get install {}", packages.join(" ")),
        run: Some(Invocation::new("sh", arguments).env("DEBIAN_FRONTEND", "noninteractive")),
        privileged: true,
    }
}

fn unprivileged(id: &'static str, title: String, why: &'static str, run: Invocation) -> Step {
    Step {
        id,
        title,
        why,
        by_hand: run.to_string(),
        run: Some(run),
        privileged: false,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
