//! The verb `build`: the BPF objects, then the host programs that embed them.
//! Never starts what it built.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::outcome::succeed;
use crate::project::Project;
use crate::setup::{self, BpfToolchain};

/// Cargo's separator within `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_SEPARATOR: &str = "\x1f";

/// Sets up and builds everything.
pub fn run(project: &Project) -> Result<ExitCode> {
    let facts = setup::ensure(project, setup::BUILD)?;
    everything(project, setup::toolchain_of(&facts)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the BPF objects and every host program.
pub fn everything(project: &Project, toolchain: BpfToolchain) -> Result<()> {
    objects(project, toolchain)?;
    programs(project)
}

/// Builds every host program, over objects that are there.
pub fn programs(project: &Project) -> Result<()> {
    // Always the same packages: another selection unifies features differently and rebuilds.
    let mut cargo = project.host_cargo();
    cargo.args([
        "build",
        "--release",
        "-p",
        "lb-userspace",
        "-p",
        "lb-tests",
        "--bins",
    ]);
    succeed(&mut cargo, "the build of the host programs")
}

/// Builds the BPF programs and puts the finished objects into `target/bpf-objects`.
pub fn objects(project: &Project, toolchain: BpfToolchain) -> Result<()> {
    let mut cargo = toolchain.cargo(project);
    cargo.args([
        "build",
        "--release",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = for_bpf(&mut cargo, project)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the build of the BPF programs")?;
    ensure!(
        output.status.success(),
        "the build of the BPF programs failed ({})",
        output.status
    );
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    ensure!(!built.is_empty(), "lb-ebpf has no program to build");
    publish(&built, &project.objects())
}

/// Adds to a cargo `command` what compiling for the BPF target takes.
pub fn for_bpf<'a>(command: &'a mut Command, project: &Project) -> &'a mut Command {
    let endian = if cfg!(target_endian = "big") {
        "bpfeb"
    } else {
        "bpfel"
    };
    command
        .args([
            "--target",
            &format!("{endian}-unknown-none"),
            "-Z",
            "build-std=core",
        ])
        .env("CARGO_TARGET_DIR", project.bpf_target())
        // Whatever the caller's is: in several units, code comes out that the verifier rejects.
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&project.tools_bin()))
}

fn flags(tools: &Path) -> String {
    [
        // Which registers hold a probed function's arguments.
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        // BTF is made from the debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", tools.join("bpf-linker").display()),
    ]
    .join(FLAG_SEPARATOR)
}

/// The programs in cargo's messages, by name.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            let name = message["target"]["name"].as_str()?;
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

/// Copies what changed, so that nothing that embeds an unchanged object is rebuilt, and removes
/// objects whose program is gone.
fn publish(built: &BTreeMap<String, PathBuf>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, source) in built {
        let target = folder.join(format!("{name}.o"));
        copy_if_changed(source, &target)
            .with_context(|| format!("cannot write {}", target.display()))?;
    }
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let known = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .is_some_and(|stem| built.contains_key(stem));
        if !known {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn copy_if_changed(source: &Path, target: &Path) -> io::Result<()> {
    let new = fs::read(source)?;
    if fs::read(target).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let partial = target.with_extension("partial");
    fs::write(&partial, new)?;
    fs::rename(partial, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xtask-build-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lb\"},\"executable\":\"/t/lb\"}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"core\"},\"executable\":null}\n\
                        not json\n";
        assert_eq!(
            executables(messages),
            BTreeMap::from([("lb".into(), PathBuf::from("/t/lb"))])
        );
    }

    #[test]
    fn unchanged_object_keeps_its_time_and_a_changed_one_is_replaced() {
        let folder = folder("publish");
        let (program, objects) = (folder.join("lb"), folder.join("objects"));
        let built = BTreeMap::from([("lb".to_owned(), program.clone())]);
        fs::write(&program, "one").unwrap();
        publish(&built, &objects).unwrap();
        let first = fs::metadata(objects.join("lb.o"))
            .unwrap()
            .modified()
            .unwrap();
        publish(&built, &objects).unwrap();
        assert_eq!(
            fs::metadata(objects.join("lb.o"))
                .unwrap()
                .modified()
                .unwrap(),
            first
        );
        fs::write(&program, "two").unwrap();
        publish(&built, &objects).unwrap();
        assert_eq!(fs::read_to_string(objects.join("lb.o")).unwrap(), "two");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn object_of_a_removed_program_goes_away() {
        let folder = folder("stale");
        fs::write(folder.join("lb"), "one").unwrap();
        fs::create_dir_all(folder.join("objects")).unwrap();
        fs::write(folder.join("objects/old.o"), "old").unwrap();
        publish(
            &BTreeMap::from([("lb".to_owned(), folder.join("lb"))]),
            &folder.join("objects"),
        )
        .unwrap();
        assert!(!folder.join("objects/old.o").exists());
        assert!(folder.join("objects/lb.o").exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn flags_keep_debug_information_and_name_the_checkouts_linker() {
        let flags = flags(Path::new("/p/target/tools/bin"));
        let flags: Vec<&str> = flags.split(FLAG_SEPARATOR).collect();
        assert!(
            flags.contains(&"-Cdebuginfo=2") && flags.contains(&"-Clink-arg=--btf"),
            "{flags:?}"
        );
        assert!(
            flags.contains(&"-Clinker=/p/target/tools/bin/bpf-linker"),
            "{flags:?}"
        );
    }
}
