use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::setup::facts::{Compiler, HostLints, Tool};
use crate::setup::{BUILD, RUN, TEST, VM};

fn programs(names: &[&str]) -> impl Iterator<Item = String> {
    names.iter().map(|name| (*name).to_owned())
}

/// A Debian machine, as root, with a compiler driver and nothing of ours.
fn fresh() -> Facts {
    Facts {
        root: true,
        apt: true,
        programs: programs(&["c++"]).collect(),
        ..Facts::default()
    }
}

/// The same with everything installed.
fn complete() -> Facts {
    let linker = Tool {
        version: LINKER_VERSION.into(),
        features: vec!["llvm-22".into()],
    };
    let mut facts = Facts {
        packaged: Some(Compiler {
            version: (1, 96),
            llvm: 22,
            sources: true,
            clippy: true,
        }),
        llvm: BTreeMap::from([(22, PathBuf::from("/usr/lib/llvm-22"))]),
        tools: BTreeMap::from([("bpf-linker".into(), linker)]),
        bpffs: true,
        host: HostLints {
            clippy: true,
            rustfmt: true,
            packaged: false,
        },
        ..fresh()
    };
    facts.programs.extend(programs(&[
        "nginx",
        "ip",
        "ethtool",
        "tcpdump",
        "curl",
        "ping",
        "redis-server",
        "pg_ctlcluster",
        "nft",
        "cargo-nextest",
    ]));
    facts
}

fn planned(facts: &Facts, needs: &[Need]) -> Vec<&'static str> {
    plan(facts, needs, Path::new("/p/target/tools"))
        .steps
        .iter()
        .map(|step| step.id)
        .collect()
}

fn step(facts: &Facts, needs: &[Need], id: &str) -> Step {
    let plan = plan(facts, needs, Path::new("/p/target/tools"));
    plan.steps.into_iter().find(|step| step.id == id).unwrap()
}

#[test]
fn fresh_debian_gets_compiler_llvm_linker_tools_and_bpffs_after_one_update() {
    let expected = [
        "apt-update",
        "apt-compiler",
        "apt-llvm",
        "bpf-linker",
        "apt-network",
        "apt-servers",
        "bpffs",
        "cargo-nextest",
    ];
    assert_eq!(planned(&fresh(), TEST), expected);
    assert!(plan(&fresh(), TEST, Path::new("/t")).runnable().is_ok());
}

#[test]
fn complete_machine_gets_no_step() {
    assert!(plan(&complete(), TEST, Path::new("/t")).is_empty());
    assert!(plan(&complete(), &[Need::Lints], Path::new("/t")).is_empty());
}

#[test]
fn build_installs_no_network_tools() {
    let steps = planned(&fresh(), BUILD);
    assert!(
        !steps.contains(&"apt-network") && !steps.contains(&"bpffs"),
        "{steps:?}"
    );
}

#[test]
fn only_missing_packages_are_installed() {
    let mut facts = complete();
    facts.programs.remove("ethtool");
    facts.programs.remove("ping");
    assert_eq!(planned(&facts, RUN), ["apt-update", "apt-network"]);
    assert_eq!(
        step(&facts, RUN, "apt-network").by_hand,
        "apt-get install ethtool iputils-ping"
    );
}

#[test]
fn only_tests_on_another_kernel_install_an_emulator() {
    assert_eq!(planned(&complete(), VM), ["apt-update", "apt-emulator"]);
    assert_eq!(
        step(&complete(), VM, "apt-emulator").by_hand,
        "apt-get install qemu-system-x86"
    );
    assert!(!planned(&fresh(), TEST).contains(&"apt-emulator"));
}

#[test]
fn lost_linker_is_rebuilt_without_touching_apt() {
    let facts = Facts {
        tools: BTreeMap::new(),
        ..complete()
    };
    assert_eq!(planned(&facts, BUILD), ["bpf-linker"]);
}

#[test]
fn linker_goes_to_the_checkout_and_over_the_compilers_llvm() {
    let line = step(&fresh(), BUILD, "bpf-linker").by_hand;
    assert!(line.contains("--root /p/target/tools"), "{line}");
    assert!(
        line.contains("--features llvm-22") && line.contains("LLVM_PREFIX=/usr/lib/llvm-22"),
        "{line}"
    );
}

#[test]
fn unprivileged_user_gets_the_exact_commands() {
    let facts = Facts {
        root: false,
        ..fresh()
    };
    let blocked = plan(&facts, RUN, Path::new("/t")).runnable().unwrap_err();
    let text = blocked.to_string();
    assert!(text.contains("takes root"), "{text}");
    for line in [
        "apt-get update",
        "apt-get install rustc-web cargo-web rust-web-src",
        "mount -t bpf bpf /sys/fs/bpf",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn unprivileged_user_may_build_the_linker() {
    let facts = Facts {
        root: false,
        tools: BTreeMap::new(),
        ..complete()
    };
    assert!(plan(&facts, BUILD, Path::new("/t")).runnable().is_ok());
}

#[test]
fn machine_without_apt_is_told_about_rustup_and_the_programs() {
    let facts = Facts {
        apt: false,
        ..fresh()
    };
    let text = plan(&facts, RUN, Path::new("/t"))
        .runnable()
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("rustup toolchain install nightly --component rust-src"),
        "{text}"
    );
    assert!(
        text.contains("nginx ip ethtool tcpdump curl ping"),
        "{text}"
    );
    assert!(!text.contains("apt-get"), "{text}");
}

#[test]
fn machine_without_apt_that_has_nightly_and_llvm_builds_the_linker_with_it() {
    let facts = Facts {
        root: false,
        apt: false,
        nightly: Some(Compiler {
            version: (1, 99),
            llvm: 23,
            sources: true,
            clippy: true,
        }),
        llvm: BTreeMap::from([(23, PathBuf::from("/opt/llvm"))]),
        ..Facts::default()
    };
    assert_eq!(planned(&facts, BUILD), ["bpf-linker"]);
    let line = step(&facts, BUILD, "bpf-linker").by_hand;
    assert!(line.contains("rustup run nightly cargo install"), "{line}");
    assert!(
        line.contains("LLVM_PREFIX=/opt/llvm") && line.contains("llvm-23"),
        "{line}"
    );
}

#[test]
fn installing_never_removes_packages_and_never_starts_services() {
    assert!(QUIET_INSTALL.contains("--no-remove"));
    assert!(QUIET_INSTALL.contains("policy-rc.d"));
    assert!(QUIET_INSTALL.contains("for server in nginx redis-server postgresql;"));
    assert!(QUIET_INSTALL.contains("update-rc.d $server disable"));
}

#[test]
fn host_linters_of_a_packaged_cargo_come_from_apt_and_of_rustup_from_the_user() {
    let host = |packaged| HostLints {
        clippy: false,
        rustfmt: false,
        packaged,
    };
    let mut facts = Facts {
        host: host(true),
        ..complete()
    };
    facts.packaged.as_mut().unwrap().clippy = false;
    assert_eq!(planned(&facts, &[Need::Lints]), ["apt-update", "apt-lints"]);
    assert_eq!(
        step(&facts, &[Need::Lints], "apt-lints").by_hand,
        "apt-get install rust-web-clippy rustfmt-web"
    );
    let facts = Facts {
        host: host(false),
        ..complete()
    };
    assert_eq!(planned(&facts, &[Need::Lints]), ["host-lints"]);
}
