//! Steps that only a person can do, with the lines to follow. Pure.

use super::facts::Facts;
use super::plan::Step;
use super::toolchain::LINKER_VERSION;

/// How to get a BPF toolchain where there is no apt.
pub fn bpf_toolchain(facts: &Facts) -> Step {
    let line = match &facts.nightly {
        Some(nightly) if nightly.sources => format!(
            "install the development files of LLVM {llvm} (llvm-{llvm}-dev, llvm{llvm}-devel; a prefix of its own goes \
             into LLVM_PREFIX) for bpf-linker {LINKER_VERSION}",
            llvm = nightly.llvm
        ),
        _ => "rustup toolchain install nightly --component rust-src".to_owned(),
    };
    by_hand(
        "bpf-toolchain",
        "a compiler for the BPF programs",
        "builds the BPF programs",
        line,
    )
}

/// Programs to install with whatever package manager there is.
pub fn programs(missing: &[&str], why: &'static str) -> Step {
    let line = format!("install with your package manager: {}", missing.join(" "));
    by_hand("programs", "programs of the tests", why, line)
}

/// The host's linters, where rustup manages them.
pub fn host_lints() -> Step {
    let line = "rustup component add clippy rustfmt".to_owned();
    by_hand(
        "host-lints",
        "clippy and rustfmt",
        "the checks of every change",
        line,
    )
}

fn by_hand(id: &'static str, title: &str, why: &'static str, line: String) -> Step {
    Step {
        id,
        title: title.to_owned(),
        why,
        by_hand: line,
        run: None,
        privileged: false,
    }
}
