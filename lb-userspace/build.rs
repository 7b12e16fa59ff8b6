//! Tells the compiler where the BPF objects are that the agent embeds. Never builds them: that
//! takes another toolchain, and is done by `cargo xtask build`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const FOLDER: &str = "LB_BPF_OBJECTS";
const OBJECTS: [(&str, &str); 2] = [("LB_OBJECT", "lb.o"), ("DECAP_OBJECT", "decap.o")];

fn main() -> ExitCode {
    println!("cargo:rerun-if-env-changed={FOLDER}");
    let folder = env::var_os(FOLDER).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf-objects"),
        PathBuf::from,
    );
    for (variable, name) in OBJECTS {
        let object = folder.join(name);
        println!("cargo:rerun-if-changed={}", object.display());
        let Ok(object) = object.canonicalize() else {
            println!(
                "cargo::error=the BPF object {} is missing; run `cargo xtask build`",
                object.display()
            );
            return ExitCode::FAILURE;
        };
        println!("cargo:rustc-env={variable}={}", object.display());
    }
    ExitCode::SUCCESS
}
