//! Where things are in the checkout, and the cargo that builds for the host.
//! Never looks outside the checkout.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The checkout this command works on.
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// Finds the checkout from what cargo says about this package.
    pub fn locate() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .context("the xtask package has no parent folder")?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The workspace's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The package of the BPF programs, outside the workspace.
    pub fn bpf_package(&self) -> PathBuf {
        self.root.join("lb-ebpf")
    }

    /// Cargo's target folder of the BPF programs: apart from the host's, so neither locks the other out.
    pub fn bpf_target(&self) -> PathBuf {
        self.root.join("target/bpf")
    }

    /// The finished BPF objects, one `NAME.o` each.
    pub fn objects(&self) -> PathBuf {
        self.root.join("target/bpf-objects")
    }

    /// Tools installed for this checkout only.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// The programs of [`Self::tools`].
    pub fn tools_bin(&self) -> PathBuf {
        self.tools().join("bin")
    }

    /// Logs and reports of this command's own runs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("target/xtask")
    }

    /// Kernels to test on, and what it takes to start them.
    pub fn vm(&self) -> PathBuf {
        self.root.join("target/vm")
    }

    /// The cargo that started this command, able to find the checkout's own tools.
    pub fn host_cargo(&self) -> Command {
        let mut command = Command::new(host_cargo_path());
        command
            .current_dir(&self.root)
            .env("PATH", self.search_path());
        command
    }

    /// The user's `PATH`, then the checkout's tools: what the user has installed wins.
    fn search_path(&self) -> OsString {
        let mut path = env::var_os("PATH").unwrap_or_default();
        path.push(":");
        path.push(self.tools_bin());
        path
    }

    /// What cargo says about the workspace's own packages.
    pub fn metadata(&self) -> Result<Metadata> {
        let output = self
            .host_cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata failed: {}",
            output.status
        );
        let value =
            serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
        Ok(Metadata(value))
    }
}

/// The cargo that started this command, else the one on the `PATH`.
pub fn host_cargo_path() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// `cargo metadata` of the workspace.
pub struct Metadata(Value);

impl Metadata {
    /// Where the host's release programs are built.
    pub fn release_bin(&self) -> Result<PathBuf> {
        let target = self.0["target_directory"]
            .as_str()
            .context("cargo metadata names no target_directory")?;
        Ok(Path::new(target).join("release"))
    }

    /// The names of all programs in the workspace.
    pub fn programs(&self) -> Vec<&str> {
        let packages = self.0["packages"].as_array().into_iter().flatten();
        packages
            .flat_map(|package| package["targets"].as_array().into_iter().flatten())
            .filter(|target| target["kind"][0] == "bin")
            .filter_map(|target| target["name"].as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_lists_programs_and_no_libraries() {
        let metadata = Metadata(json!({
            "target_directory": "/t",
            "packages": [
                {"targets": [{"name": "lib", "kind": ["lib"]}, {"name": "lbd", "kind": ["bin"]}]},
                {"targets": [{"name": "bench-packet", "kind": ["bin"]}]},
            ],
        }));
        assert_eq!(metadata.programs(), ["lbd", "bench-packet"]);
        assert_eq!(metadata.release_bin().unwrap(), Path::new("/t/release"));
    }
}
